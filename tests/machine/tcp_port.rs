//! The TCP port: probes need no authorisation, events and reports need the token.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    time::Duration,
};

use super::service::{Plan, free_port};

const LIMIT: Duration = Duration::from_secs(30);
const TOKEN: &str = "correct-horse-battery";

fn ask(port: u16, path: &str, host: &str, more: &str) -> u16 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut line = [0; 12];
    stream.read_exact(&mut line).unwrap();
    String::from_utf8_lossy(&line[9..]).parse().unwrap()
}

#[test]
fn only_known_hosts_are_served_and_events_and_reports_need_the_token() {
    let home = tempfile::tempdir().unwrap();
    let token = home.path().join("token");
    fs::write(&token, TOKEN).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let file = token.to_str().unwrap();
    let options = [
        "--metrics",
        &address,
        "--hosts",
        "shop.example",
        "--ready",
        "delay:0s",
    ];
    let with_token = [&options[..], &["--token-file", file]].concat();
    let service = Plan::supervise(&with_token, &["sleep", "1000"]).start();
    service.ready(1);
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(ask(port, path, "evil.example", ""), 200, "{path}");
    }
    for path in [
        "/v1/status",
        "/v1/events",
        "/v1/events?follow",
        "/v1/reports",
        "/v1/history",
    ] {
        assert_eq!(ask(port, path, "evil.example", &right), 403, "{path}");
        for host in ["localhost", &address, "shop.example:80"] {
            assert_eq!(ask(port, path, host, &right), 200, "{path} {host}");
        }
    }
    assert_eq!(ask(port, "/v1/status", "localhost", ""), 200);
    for path in ["/v1/events", "/v1/history"] {
        assert_eq!(ask(port, path, "localhost", ""), 401, "{path}");
    }
    assert!(service.stop(LIMIT).success());

    let service = Plan::supervise(&options, &["sleep", "1000"]).start();
    service.ready(1);
    assert_eq!(ask(port, "/v1/status", "localhost", ""), 200);
    assert_eq!(ask(port, "/v1/events", "localhost", &right), 403);
    assert!(service.stop(LIMIT).success());

    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let ended = Plan::supervise(&with_token, &["sleep", "1000"]).run(LIMIT);
    assert_eq!(ended.status.code(), Some(125));
    assert!(
        ended.stderr.contains("has mode 0644; it must be 0600"),
        "{}",
        ended.stderr
    );
}
