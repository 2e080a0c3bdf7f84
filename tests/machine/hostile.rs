//! Text from other programs uses bounded memory, and reaches a terminal without control characters.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Output},
    thread,
    time::Duration,
};

use super::{
    clock, proc, program,
    service::{Plan, SUPERVISE},
    status::workers,
    turn,
};

const LIMIT: Duration = Duration::from_secs(30);

/// Answers every client with `head`, and then with `piece` repeatedly for as long as it reads.
fn endless_server(socket: &Path, head: &'static [u8], piece: Vec<u8>) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(mut client), piece) = (client, piece.clone()) else {
                return;
            };
            thread::spawn(move || {
                let _request = client.read(&mut [0; 4096]);
                let _head = client.write_all(head);
                while client.write_all(&piece).is_ok() {}
            });
        }
    });
}

/// A client that may map 400 MB, which is too little to store an endless answer.
fn client(socket: &Path, words: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v 400000; exec \"$0\" \"$@\"", SUPERVISE]);
    command.args(words).arg("--socket").arg(socket);
    command.output().unwrap()
}

#[test]
fn a_client_survives_an_endless_answer() {
    let _turn = turn::beside();
    let home = tempfile::tempdir().unwrap();
    let cases: [(&str, &'static [u8], Vec<u8>); 3] = [
        ("body", b"HTTP/1.1 200 OK\r\n\r\n", vec![b'['; 1 << 20]),
        ("head", b"HTTP/1.1 200 OK\r\n", b"a: b\r\n".repeat(1 << 10)),
        ("one-line", b"HTTP/1.1 200 OK\r\nx: ", vec![b'x'; 1 << 20]),
    ];
    for (name, head, piece) in cases {
        let socket = home.path().join(name);
        endless_server(&socket, head, piece);
        for words in [
            &["status"][..],
            &["events"],
            &["events", "--follow"],
            &["report"],
            &["stop"],
            &["upgrade"],
        ] {
            let output = client(&socket, words);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{name} {words:?}: {said}");
            assert!(said.starts_with("supervise: "), "{name} {words:?}: {said}");
        }
    }
}

#[test]
fn control_characters_in_answers_of_a_worker_are_escaped() {
    let _turn = turn::beside();
    let text = "\u{1b}[2J\n2026-01-01T00:00:00Z info  forged\r\u{202e}RTL\u{9b}31m\u{200b}";
    let program = r#"
import json, os, signal
home = os.environ["SUPERVISE_AGENT"]
text = os.environ["TEXT"]

def answer(*_):
    with open(f"{home}/ask/{os.getpid()}") as file:
        question = json.load(file)
    suspect = {"where": text, "function": text, "holder": text, "chain": [text]}
    report = {"verdict": text, "explained": 1, "suspects": [suspect], "request": text}
    with open(f"{home}/said/half", "w") as file:
        json.dump({"id": question["id"], "ok": True, "report": report}, file)
    os.rename(f"{home}/said/half", f"{home}/said/{os.getpid()}.json")

signal.signal(39, answer)
signal.signal(40, lambda *_: None)
print("up", flush=True)
while True:
    signal.pause()
"#;
    let options = ["--ready", "delay:500ms", "--agent", "on", "--leaks", "on"];
    let command = ["/usr/bin/python3", "-c", program];
    let service = Plan::supervise(&options, &command)
        .env("TEXT", text)
        .start();
    // From now on the program answers instead of the agent.
    service.wait_for_output("up", LIMIT);
    let status = service.wait("the agent", LIMIT, || {
        service
            .status()
            .filter(|status| workers(status)[0]["agent"] == "loaded")
    });
    let worker = workers(&status)[0]["id"].as_str().unwrap().to_owned();
    let asked = service.client(&["report", &worker]);
    let said = String::from_utf8_lossy(&asked.stdout);
    assert!(asked.status.success(), "{asked:?}\n{}", service.log());
    assert!(said.contains("\\u{1b}[2J"), "{said}");

    // The client may get its answer before the report is logged.
    let log = service.wait("the report in the log", LIMIT, || {
        Some(service.log()).filter(|log| log.contains("\\u{202e}RTL"))
    });
    for words in [
        &["events"][..],
        &["events", "--json"],
        &["report"],
        &["report", "--json"],
        &["report", "--dot"],
        &["status"],
    ] {
        let output = service.client(words).stdout;
        assert_clean(&format!("{words:?}"), &output);
    }
    assert_clean("report", &asked.stdout);
    assert_clean("the log", log.as_bytes());
    let forged = |text: &str| text.lines().any(|line| line.contains("Z info  forged"));
    let starts = |text: &str| text.lines().any(|line| line.starts_with("2026-01-01"));
    assert!(forged(&log) && !starts(&log), "{log}");
    assert!(service.stop(LIMIT).success());
}

fn assert_clean(what: &str, text: &[u8]) {
    let text = String::from_utf8(text.to_owned()).unwrap();
    let is_wrong = |letter: char| {
        (letter.is_control() && letter != '\n')
            || ('\u{200b}'..='\u{200f}').contains(&letter)
            || ('\u{202a}'..='\u{202e}').contains(&letter)
    };
    assert!(!text.contains(is_wrong), "{what}: {text:?}");
}

#[test]
fn a_new_binary_with_endless_output_is_killed_with_its_child_processes() {
    let _turn = turn::beside();
    let home = tempfile::tempdir().unwrap();
    let binary = home.path().join("supervise");
    program::copy(SUPERVISE.as_ref(), &binary);
    let plan = Plan::supervise(&["--ready", "delay:0s"], &["sleep", "1000"]);
    let service = plan.binary(&binary).start();
    service.ready(1);
    let before = proc::children(service.pid());
    // One of its children leaves the process group.
    let new = home.path().join("new");
    program::script(&new, "setsid sleep 1000 &\nexec yes");
    fs::rename(&new, &binary).unwrap();

    let mut command = Command::new(SUPERVISE);
    command.arg("upgrade").arg("--socket").arg(service.socket());
    let began = clock::now();
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("its answer is longer than 16K"), "{said}");
    assert!(clock::now() - began < Duration::from_secs(8), "{said}");
    service.wait("its children to be gone", LIMIT, || {
        (proc::children(service.pid()) == before).then_some(())
    });
    let (resident, _) = proc::resident(service.pid()).unwrap();
    assert!(resident < 100 << 20, "{resident}");
    assert!(service.stop(LIMIT).success());
}
