//! Probes of container platforms: the examples for Docker and Kubernetes work.

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
    http::{Connection, Failure},
    service::{Service, free_port, send},
    turn,
    venv::NEWEST,
};

const SOON: Duration = Duration::from_secs(20);

/// The options of `supervise` and the command, from `ENTRYPOINT` and `CMD`.
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

/// The Kubernetes example as JSON, read by PyYAML.
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

/// Asserts that `supervise check` accepts these options and this command. Returns its output.
#[track_caller]
fn check(options: &[String], command: &[String]) -> String {
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
fn the_example_image_answers_its_probes() {
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
    let service = plan
        .env("PATH", search_path())
        .env("IMPORT_SLEEP", "1")
        .start();
    service.wait("health before readiness", SOON, || {
        let before = probe(probes, "/readyz") == Err(Failure::BadStatus(503));
        (before && probe(probes, "/healthz").is_ok()).then_some(())
    });
    service.wait("readiness", SOON, || probe(probes, "/readyz").ok());
    assert!(Load::on(port).once("/pid").is_ok());
    assert_eq!(post_stop(probes), 403);
    stop_container(service);
}

/// Stops it as a container runtime does: with SIGTERM to PID 1.
#[track_caller]
fn stop_container(mut service: Service) {
    send(init(&service), Signal::SIGTERM);
    assert_eq!(service.ends(SOON).code(), Some(0));
}

#[test]
fn supervise_accepts_the_options_of_the_dockerfile() {
    let (options, command) = dockerfile();
    let shown = check(&options, &command);
    assert!(shown.contains("metrics = \"0.0.0.0:9091\""), "{shown}");
    assert!(shown.contains("server = \"gunicorn\""), "{shown}");
}

#[test]
fn the_example_pod_probes_the_right_paths_and_allows_the_grace_period() {
    let pod = kubernetes()["spec"]["template"]["spec"].take();
    let container = &pod["containers"][0];
    let (options, _) = dockerfile();
    let words = container["args"].as_array().unwrap();
    let words: Vec<_> = words
        .iter()
        .map(|word| word.as_str().unwrap().to_owned())
        .collect();
    let shown = check(&options, &words);
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
    // One worker at its cap, one at its ceiling, and the stacks of threads.
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

/// The status of the answer to a request that would stop the service.
fn post_stop(port: u16) -> u16 {
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

/// The PATH with gunicorn, as in an image.
fn search_path() -> String {
    let gunicorn = PathBuf::from(NEWEST.bin("gunicorn"));
    let bin = gunicorn.parent().unwrap().display().to_string();
    format!("{bin}:{}", std::env::var("PATH").unwrap_or_default())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}
