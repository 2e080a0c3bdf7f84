//! What a container platform asks and is told: the examples for Docker and Kubernetes are real.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    client::Load,
    clock,
    container::{contained, init},
    house::{House, free_port, send},
    http::{Connection, Failure},
    turn,
    venv::NEWEST,
};

const SOON: Duration = Duration::from_secs(20);

/// The words of `ENTRYPOINT` and `CMD`, those of `supervise` and those after the two dashes.
fn dockerfile() -> (Vec<String>, Vec<String>) {
    let text = fs::read_to_string(folder().join("Dockerfile")).unwrap();
    let text = text.replace("\\\n", "");
    let words = |name: &str| -> Vec<String> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        serde_json::from_str(line.unwrap()).unwrap()
    };
    let mut all = words("ENTRYPOINT ");
    all.extend(words("CMD "));
    let dashes = all.iter().position(|word| word == "--").unwrap();
    let command = all.split_off(dashes + 1);
    all.truncate(dashes);
    assert_eq!(all.remove(0), "supervise");
    (all, command)
}

/// The documents of the Kubernetes example, as JSON; read by PyYAML.
fn kubernetes() -> Value {
    let code = "import sys, json, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let output = Command::new(NEWEST.bin("python"))
        .args(["-c", code])
        .arg(folder().join("kubernetes.yaml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// `supervise check` takes these options and this command; what would hold.
#[track_caller]
fn checked(options: &[String], command: &[String]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("shop.toml");
    fs::write(&empty, "").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_supervise"))
        .arg("check")
        .arg(&empty)
        .args(options)
        .arg("--")
        .args(command)
        .env("PATH", search_path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_image_of_the_example_answers_its_probes() {
    let _turn = turn::beside();
    let (mut options, mut command) = dockerfile();
    let (port, probes) = (free_port(), free_port());
    let other = |words: &mut Vec<String>, from: &str, to: u16| {
        let place = words.iter_mut().find(|word| **word == from).unwrap();
        *place = format!("0.0.0.0:{to}");
    };
    other(&mut options, "0.0.0.0:9091", probes);
    other(&mut command, "0.0.0.0:8000", port);
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let Some(plan) = contained(None, &options, &command) else {
        return;
    };
    let house = plan
        .env("PATH", search_path())
        .env("IMPORT_SLEEP", "1")
        .start();
    house.wait("alive before it is ready", SOON, || {
        let before = probe(probes, "/readyz") == Err(Failure::BadStatus(503));
        (before && probe(probes, "/healthz").is_ok()).then_some(())
    });
    house.wait("readiness", SOON, || probe(probes, "/readyz").ok());
    assert!(Load::on(port).once("/pid").is_ok());
    assert_eq!(posted(probes), 403);
    ends(house);
}

/// `stop` of a container: TERM to PID 1.
#[track_caller]
fn ends(mut house: House) {
    send(init(&house), Signal::SIGTERM);
    assert_eq!(house.ends(SOON).code(), Some(0));
}

#[test]
fn the_dockerfile_starts_what_supervise_takes() {
    let (options, command) = dockerfile();
    let shown = checked(&options, &command);
    assert!(shown.contains("metrics = \"0.0.0.0:9091\""), "{shown}");
    assert!(shown.contains("server = \"gunicorn\""), "{shown}");
}

#[test]
fn the_pod_asks_where_supervise_answers_and_waits_longer_than_it() {
    let pod = kubernetes()["spec"]["template"]["spec"].take();
    let container = &pod["containers"][0];
    let (options, _) = dockerfile();
    let words = container["args"].as_array().unwrap();
    let words: Vec<_> = words
        .iter()
        .map(|word| word.as_str().unwrap().to_owned())
        .collect();
    let shown = checked(&options, &words);
    assert!(shown.contains("server = \"gunicorn\""), "{shown}");
    let ports = container["ports"].as_array().unwrap();
    let named = ports
        .iter()
        .find(|port| port["name"] == "supervise")
        .unwrap();
    assert_eq!(named["containerPort"], 9091);
    for (probe, path) in [
        ("startupProbe", "/readyz"),
        ("readinessProbe", "/readyz"),
        ("livenessProbe", "/healthz"),
    ] {
        assert_eq!(container[probe]["httpGet"]["path"], path, "{probe}");
        assert_eq!(container[probe]["httpGet"]["port"], "supervise", "{probe}");
    }
    let at = options.iter().position(|word| word == "--grace").unwrap();
    let grace = options[at + 1]
        .trim_end_matches('s')
        .parse::<u64>()
        .unwrap();
    let sleep = &container["lifecycle"]["preStop"]["exec"]["command"][1];
    let before = sleep.as_str().unwrap().parse::<u64>().unwrap();
    let whole = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(
        whole >= grace + before + 5,
        "{whole} for {grace} and {before}"
    );
    assert_eq!(container["terminationMessagePath"], "/dev/termination-log");
    // One worker that runs away, another one at its ceiling, and the threads' stacks.
    let percent = |name: &str| {
        let all = container["env"].as_array().unwrap();
        let of = all
            .iter()
            .find(|variable| variable["name"] == name)
            .unwrap();
        let text = of["value"].as_str().unwrap();
        text.trim_end_matches('%').parse::<u64>().unwrap()
    };
    let worst = (percent("SUPERVISE_CAP") + percent("SUPERVISE_CEILING")) * 512 / 100 + 128;
    assert!(worst < 512 - 16, "{worst}");
    assert_eq!(container["resources"]["limits"]["memory"], "512Mi");
    for variable in container["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        let manual = fs::read_to_string(folder().join("../docs/configuration.md")).unwrap();
        assert!(manual.contains(&format!("`{name}`")), "{name}");
    }
}

fn probe(port: u16, path: &str) -> Result<Vec<u8>, Failure> {
    Connection::new(([127, 0, 0, 1], port).into(), Duration::from_secs(2)).get(path, false)
}

/// The status of a request that would change something.
fn posted(port: u16) -> u16 {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .write_all(b"POST /v1/stop HTTP/1.1\r\nHost: pod\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    let whole = clock::poll(SOON, || stream.read_to_string(&mut answer).ok());
    assert!(whole.is_some(), "{answer}");
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Where gunicorn is, as in an image.
fn search_path() -> String {
    let gunicorn = PathBuf::from(NEWEST.bin("gunicorn"));
    let bin = gunicorn.parent().unwrap().display().to_string();
    format!("{bin}:{}", std::env::var("PATH").unwrap_or_default())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}
