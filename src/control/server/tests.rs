//! The server with clients of each kind. The test answers in place of the driver.

use std::{future::Future, ops::ControlFlow, path::Path};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    sync::broadcast,
};

use crate::{
    control::{Reply, client::Client, listeners::Gate},
    supervisor::{
        action::Answer,
        event::Event,
        event_format::EventRecord,
        input::{Ask, Stop},
        spec::{ControlSpec, TerminationLog},
    },
};

use super::*;

const TOKEN: &str = "0123456789abcdef";

/// A server in a directory of its own.
struct TestServer {
    home: tempfile::TempDir,
    port: u16,
    gate: Gate,
    questions: mpsc::Receiver<PendingRequest>,
    task: tokio::task::JoinHandle<()>,
}

impl TestServer {
    fn open() -> Self {
        let home = tempfile::tempdir().unwrap();
        let token_file = home.path().join("token");
        std::fs::write(&token_file, TOKEN).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&token_file, mode).unwrap();
        let spec = ControlSpec {
            socket: home.path().join("shop.sock"),
            hosts: Vec::new(),
            token_file: Some(token_file),
            metrics: Some("127.0.0.1:0".parse().unwrap()),
            termination_log: TerminationLog::Off,
            history: 10,
        };
        let (listeners, gate) = Listeners::open(&spec, "shop", None).unwrap();
        let port = listeners.port();
        let (sender, questions) = mpsc::channel(8);
        let task = tokio::spawn(super::run(listeners, sender));
        Self {
            home,
            port,
            gate,
            questions,
            task,
        }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.home.path().join("shop.sock")
    }

    async fn question(&mut self) -> PendingRequest {
        self.questions.recv().await.unwrap()
    }
}

/// Runs a test on one thread, and fails instead of hanging.
fn run(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    runtime.block_on(async {
        timeout(Duration::from_secs(20), test)
            .await
            .expect("the test comes to an end");
    });
}

async fn get(socket: &Path, path: &str) -> (u16, String) {
    Client::connect(socket)
        .await
        .unwrap()
        .get(path)
        .await
        .unwrap()
}

async fn get_later(socket: std::path::PathBuf, path: &str) -> (u16, String) {
    get(&socket, path).await
}

async fn post(socket: &Path, path: &str, body: &str) -> (u16, String) {
    Client::connect(socket)
        .await
        .unwrap()
        .post(path, body)
        .await
        .unwrap()
}

async fn over_tcp(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request =
        format!("{request} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

fn record(id: u64) -> EventRecord {
    EventRecord {
        id,
        at: 1.0,
        mono_ns: 7,
        event: Event::Stopping,
    }
}

#[test]
fn new_clients_wait_while_the_gate_is_closed_and_connected_clients_are_answered() {
    run(async {
        let mut server = TestServer::open();
        let connected = tokio::spawn(get_later(server.socket(), "/v1/reports"));
        let pending = server.question().await;
        server.gate.close();
        let waiting = tokio::spawn(get_later(server.socket(), "/v1/reports"));
        // A connected client is answered, and no other client is accepted.
        pending.reply.send(Reply::Document("1".to_owned())).unwrap();
        assert_eq!(connected.await.unwrap(), (200, "1".to_owned()));
        // Each task has run many more times than an accepted client needs.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert!(server.questions.is_empty() && !waiting.is_finished());
        server.gate.open();
        let pending = server.question().await;
        pending.reply.send(Reply::Document("2".to_owned())).unwrap();
        assert_eq!(waiting.await.unwrap(), (200, "2".to_owned()));
    });
}

#[test]
fn a_change_is_answered_when_it_is_done_or_refused() {
    run(async {
        let mut server = TestServer::open();
        let socket = server.socket();
        let (answer, ()) = tokio::join!(post(&socket, "/v1/stop", "{\"now\": true}"), async {
            let pending = server.question().await;
            assert_eq!(pending.question, Question::Do(Ask::Stop(Stop::Now)));
            let done = Answer::Done("stopped".to_owned());
            pending.reply.send(Reply::Answer(done)).unwrap();
        });
        assert_eq!(answer, (200, "{\"done\":\"stopped\"}".to_owned()));

        let (answer, ()) = tokio::join!(post(&socket, "/v1/reload", ""), async {
            let refused = Answer::Refused("it is stopping".to_owned());
            server
                .question()
                .await
                .reply
                .send(Reply::Answer(refused))
                .unwrap();
        });
        assert_eq!(answer, (409, "{\"error\":\"it is stopping\"}".to_owned()));
        assert_eq!(get(&socket, "/v1/nothing").await.0, 404);
    });
}

#[test]
fn a_service_that_is_not_ready_answers_with_the_reason() {
    run(async {
        let mut server = TestServer::open();
        let socket = server.socket();
        let (answer, ()) = tokio::join!(get(&socket, "/readyz"), async {
            let why = "no worker has a heartbeat".to_owned();
            let is = Reply::Is { ok: false, why };
            server.question().await.reply.send(is).unwrap();
        });
        assert_eq!(answer, (503, "no worker has a heartbeat\n".to_owned()));
    });
}

#[test]
fn the_tcp_port_answers_questions_and_refuses_changes() {
    run(async {
        let mut server = TestServer::open();
        let refused = over_tcp(server.port, "POST /v1/stop").await;
        assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");

        let (text, ()) = tokio::join!(over_tcp(server.port, "GET /metrics"), async {
            let pending = server.question().await;
            assert_eq!(pending.question, Question::Metrics);
            let text = "supervise_up 1\n".to_owned();
            pending.reply.send(Reply::Text(text)).unwrap();
        });
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("supervise_up 1\n"));
        assert!(text.contains("text/plain; version=0.0.4"), "{text}");
        let refused = over_tcp(server.port, "POST /v1/workers/w1/report").await;
        assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
        let (text, ()) = tokio::join!(over_tcp(server.port, "GET /v1/reports"), async {
            let pending = server.question().await;
            assert_eq!(pending.question, Question::Reports);
            let text = "[{\"id\": \"r3\"}]".to_owned();
            pending.reply.send(Reply::Document(text)).unwrap();
        });
        assert!(text.ends_with("[{\"id\": \"r3\"}]") && text.contains("application/json"));
    });
}

#[test]
fn a_follower_gets_past_events_new_events_and_the_number_it_missed() {
    run(async {
        let mut server = TestServer::open();
        let (events, live) = broadcast::channel(2);
        for id in 2..6 {
            events.send(record(id)).unwrap();
        }
        let client = Client::connect(&server.socket()).await.unwrap();
        let mut received = Vec::new();
        let following = client.follow("/v1/events?follow&after=0", |message| {
            received.push((message.id, message.event));
            ControlFlow::Continue(())
        });
        let (end, ()) = tokio::join!(following, async {
            let pending = server.question().await;
            let question = Question::Events {
                after: Some(0),
                follow: true,
            };
            assert_eq!(pending.question, question);
            let live = Some(live);
            let past = vec![record(1)];
            pending.reply.send(Reply::Events { past, live }).unwrap();
            drop(events);
        });
        end.unwrap();
        let kind = |id| (Some(id), "stopping".to_owned());
        let missed = (None, "missed".to_owned());
        assert_eq!(received, [kind(1), missed, kind(4), kind(5)]);
    });
}

#[test]
fn the_request_of_a_client_that_disconnects_is_dropped() {
    run(async {
        let mut server = TestServer::open();
        let socket = server.socket();
        let waiting = tokio::spawn(async move { post(&socket, "/v1/recycle", "").await });
        let mut pending = server.question().await;
        waiting.abort();
        pending.reply.closed().await;
    });
}

#[test]
fn many_slow_clients_do_not_keep_others_out() {
    run(async {
        let mut server = TestServer::open();
        let (mut silent, mut partial) = (Vec::new(), Vec::new());
        for _ in 0..CLIENTS_MAX {
            // Some clients send nothing, and others only a part of a request.
            silent.push(UnixStream::connect(server.socket()).await.unwrap());
            let mut client = TcpStream::connect(("127.0.0.1", server.port))
                .await
                .unwrap();
            client
                .write_all(b"GET /healthz HTTP/1.1\r\n")
                .await
                .unwrap();
            partial.push(client);
        }
        for _ in 0..3 {
            let complete = tokio::spawn(get_later(server.socket(), "/healthz"));
            let is = |why: &str| Reply::Is {
                ok: true,
                why: why.to_owned(),
            };
            server.question().await.reply.send(is("")).unwrap();
            assert_eq!(complete.await.unwrap(), (200, "ok\n".to_owned()));
            let (text, ()) = tokio::join!(over_tcp(server.port, "GET /healthz"), async {
                server.question().await.reply.send(is("")).unwrap();
            });
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        }
    });
}

#[test]
fn a_client_that_waits_for_the_supervisor_keeps_its_place() {
    run(async {
        let mut server = TestServer::open();
        let waiting = tokio::spawn({
            let socket = server.socket();
            async move { post(&socket, "/v1/recycle", "").await }
        });
        let pending = server.question().await;
        let mut crowd = Vec::new();
        for _ in 0..2 * CLIENTS_MAX {
            crowd.push(UnixStream::connect(server.socket()).await.unwrap());
        }
        // The last client was accepted by now, and older clients were disconnected.
        assert_eq!(crowd[0].read(&mut [0; 8]).await.unwrap(), 0);
        let done = Answer::Done("all of them".to_owned());
        pending.reply.send(Reply::Answer(done)).unwrap();
        assert_eq!(waiting.await.unwrap().0, 200);
    });
}

#[test]
fn followers_do_not_use_the_places_of_other_clients() {
    run(async {
        let mut server = TestServer::open();
        let (live, _) = broadcast::channel(8);
        let mut followers = Vec::new();
        for _ in 0..FOLLOWERS_MAX {
            let mut stream = UnixStream::connect(server.socket()).await.unwrap();
            let request = b"GET /v1/events?follow HTTP/1.1\r\nHost: x\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let reply = Reply::Events {
                past: vec![record(1)],
                live: Some(live.subscribe()),
            };
            server.question().await.reply.send(reply).unwrap();
            let mut first = [0; 12];
            stream.read_exact(&mut first).await.unwrap();
            assert_eq!(&first, b"HTTP/1.1 200");
            followers.push(stream);
        }
        let (status, why) = get(&server.socket(), "/v1/events?follow").await;
        assert_eq!(status, 503, "{why}");
        assert!(why.contains("16 clients follow already"), "{why}");
        // Followers take no place of clients with requests.
        let mut silent = Vec::new();
        for _ in 0..CLIENTS_MAX - 1 {
            silent.push(UnixStream::connect(server.socket()).await.unwrap());
        }
        let probe = tokio::spawn(get_later(server.socket(), "/readyz"));
        let why = String::new();
        let is = Reply::Is { ok: true, why };
        server.question().await.reply.send(is).unwrap();
        assert_eq!(probe.await.unwrap().0, 200);
        // The oldest silent client is still connected.
        let oldest = &mut silent[0];
        let request = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n";
        oldest.write_all(request).await.unwrap();
        let is = Reply::Is {
            ok: true,
            why: String::new(),
        };
        server.question().await.reply.send(is).unwrap();
        let mut first = [0; 12];
        oldest.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        // When a follower leaves, another client may follow.
        followers.pop();
        loop {
            let next = tokio::spawn(get_later(server.socket(), "/v1/events?follow"));
            tokio::select! {
                pending = server.question() => {
                    drop(pending);
                    break;
                }
                refused = next => assert_eq!(refused.unwrap().0, 503),
            }
        }
    });
}

#[test]
fn a_body_that_is_too_long_is_refused() {
    run(async {
        let server = TestServer::open();
        let answer = post(&server.socket(), "/v1/stop", &"x".repeat(REQUEST_BYTES + 1)).await;
        assert_eq!(answer.0, 400);
    });
}

#[test]
fn the_last_answer_is_sent_before_the_server_ends() {
    run(async {
        let mut server = TestServer::open();
        let socket = server.socket();
        let asking = tokio::spawn(async move { post(&socket, "/v1/stop", "").await });
        let pending = server.question().await;
        let done = Answer::Done("stopped".to_owned());
        pending.reply.send(Reply::Answer(done)).unwrap();
        let socket = server.socket();
        drop(server.questions);
        server.task.await.unwrap();
        assert!(!socket.exists());
        assert_eq!(asking.await.unwrap().0, 200);
    });
}
