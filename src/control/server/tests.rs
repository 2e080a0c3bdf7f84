//! The server with clients of every kind. The test answers in place of the supervisor.

use std::{future::Future, ops::ControlFlow, path::Path};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    sync::broadcast,
};

use crate::{
    control::{Reply, client::Client, doors::Keys},
    supervisor::{
        action::Answer,
        event::{Ask, Stop},
        report::Report,
        spec::{ControlSpec, TerminationLog},
        tell::Told,
    },
};

use super::*;

const TOKEN: &str = "0123456789abcdef";

/// A server in a directory of its own.
struct House {
    home: tempfile::TempDir,
    port: u16,
    keys: Keys,
    questions: mpsc::Receiver<Asked>,
    server: tokio::task::JoinHandle<()>,
}

impl House {
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
        let (doors, keys) = Doors::open(&spec, "shop", None).unwrap();
        let port = doors.port();
        let (asked, questions) = mpsc::channel(8);
        let server = tokio::spawn(super::run(doors, asked));
        Self {
            home,
            port,
            keys,
            questions,
            server,
        }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.home.path().join("shop.sock")
    }

    async fn question(&mut self) -> Asked {
        self.questions.recv().await.unwrap()
    }
}

/// Runs on one thread, and fails rather than hangs.
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

fn told(id: u64) -> Told {
    Told {
        id,
        at: 1.0,
        mono_ns: 7,
        report: Report::Stopping,
    }
}

#[test]
fn while_the_doors_are_shut_all_wait_and_nobody_is_refused() {
    run(async {
        let mut house = House::open();
        let inside = tokio::spawn(get_later(house.socket(), "/v1/reports"));
        let asked = house.question().await;
        house.keys.shut(true);
        let waiting = tokio::spawn(get_later(house.socket(), "/v1/reports"));
        // A connected client is answered, and no other client is let in.
        asked.reply.send(Reply::Document("1".to_owned())).unwrap();
        assert_eq!(inside.await.unwrap(), (200, "1".to_owned()));
        // All have had many more turns than a client that is let in needs.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert!(house.questions.is_empty() && !waiting.is_finished());
        house.keys.shut(false);
        let asked = house.question().await;
        asked.reply.send(Reply::Document("2".to_owned())).unwrap();
        assert_eq!(waiting.await.unwrap(), (200, "2".to_owned()));
    });
}

#[test]
fn a_wish_is_answered_when_it_has_come_true() {
    run(async {
        let mut house = House::open();
        let socket = house.socket();
        let (answer, ()) = tokio::join!(post(&socket, "/v1/stop", "{\"now\": true}"), async {
            let asked = house.question().await;
            assert_eq!(asked.question, Question::Do(Ask::Stop(Stop::Now)));
            let done = Answer::Done("stopped".to_owned());
            asked.reply.send(Reply::Answer(done)).unwrap();
        });
        assert_eq!(answer, (200, "{\"done\":\"stopped\"}".to_owned()));

        let (answer, ()) = tokio::join!(post(&socket, "/v1/reload", ""), async {
            let refused = Answer::Refused("it is stopping".to_owned());
            house
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
fn a_service_that_is_not_ready_says_why() {
    run(async {
        let mut house = House::open();
        let socket = house.socket();
        let (answer, ()) = tokio::join!(get(&socket, "/readyz"), async {
            let why = "no worker has a heartbeat".to_owned();
            let is = Reply::Is { ok: false, why };
            house.question().await.reply.send(is).unwrap();
        });
        assert_eq!(answer, (503, "no worker has a heartbeat\n".to_owned()));
    });
}

#[test]
fn the_port_answers_and_changes_nothing() {
    run(async {
        let mut house = House::open();
        let refused = over_tcp(house.port, "POST /v1/stop").await;
        assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");

        let (text, ()) = tokio::join!(over_tcp(house.port, "GET /metrics"), async {
            let asked = house.question().await;
            assert_eq!(asked.question, Question::Metrics);
            let text = "supervise_up 1\n".to_owned();
            asked.reply.send(Reply::Text(text)).unwrap();
        });
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("supervise_up 1\n"));
        assert!(text.contains("text/plain; version=0.0.4"), "{text}");
        let refused = over_tcp(house.port, "POST /v1/workers/w1/report").await;
        assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
        let (text, ()) = tokio::join!(over_tcp(house.port, "GET /v1/reports"), async {
            let asked = house.question().await;
            assert_eq!(asked.question, Question::Reports);
            let text = "[{\"id\": \"r3\"}]".to_owned();
            asked.reply.send(Reply::Document(text)).unwrap();
        });
        assert!(text.ends_with("[{\"id\": \"r3\"}]") && text.contains("application/json"));
    });
}

#[test]
fn a_follower_hears_the_past_then_the_present_and_what_it_missed() {
    run(async {
        let mut house = House::open();
        let (events, live) = broadcast::channel(2);
        for id in 2..6 {
            events.send(told(id)).unwrap();
        }
        let client = Client::connect(&house.socket()).await.unwrap();
        let mut heard = Vec::new();
        let following = client.follow("/v1/events?follow&after=0", |message| {
            heard.push((message.id, message.event));
            ControlFlow::Continue(())
        });
        let (end, ()) = tokio::join!(following, async {
            let asked = house.question().await;
            let question = Question::Events {
                after: Some(0),
                follow: true,
            };
            assert_eq!(asked.question, question);
            let live = Some(live);
            let past = vec![told(1)];
            asked.reply.send(Reply::Events { past, live }).unwrap();
            drop(events);
        });
        end.unwrap();
        let kind = |id| (Some(id), "stopping".to_owned());
        let missed = (None, "missed".to_owned());
        assert_eq!(heard, [kind(1), missed, kind(4), kind(5)]);
    });
}

#[test]
fn who_does_not_wait_for_the_answer_is_forgotten() {
    run(async {
        let mut house = House::open();
        let socket = house.socket();
        let waiting = tokio::spawn(async move { post(&socket, "/v1/recycle", "").await });
        let mut asked = house.question().await;
        waiting.abort();
        asked.reply.closed().await;
    });
}

#[test]
fn a_crowd_of_slow_clients_keeps_nobody_out() {
    run(async {
        let mut house = House::open();
        let (mut crowd, mut halves) = (Vec::new(), Vec::new());
        for _ in 0..CLIENTS_MAX {
            // Some say nothing, and some do not come to an end.
            crowd.push(UnixStream::connect(house.socket()).await.unwrap());
            let mut half = TcpStream::connect(("127.0.0.1", house.port)).await.unwrap();
            half.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
            halves.push(half);
        }
        for _ in 0..3 {
            let whole = tokio::spawn(get_later(house.socket(), "/healthz"));
            let is = |why: &str| Reply::Is {
                ok: true,
                why: why.to_owned(),
            };
            house.question().await.reply.send(is("")).unwrap();
            assert_eq!(whole.await.unwrap(), (200, "ok\n".to_owned()));
            let (text, ()) = tokio::join!(over_tcp(house.port, "GET /healthz"), async {
                house.question().await.reply.send(is("")).unwrap();
            });
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        }
    });
}

#[test]
fn one_who_waits_for_the_supervisor_makes_no_room() {
    run(async {
        let mut house = House::open();
        let waiting = tokio::spawn({
            let socket = house.socket();
            async move { post(&socket, "/v1/recycle", "").await }
        });
        let asked = house.question().await;
        let mut crowd = Vec::new();
        for _ in 0..2 * CLIENTS_MAX {
            crowd.push(UnixStream::connect(house.socket()).await.unwrap());
        }
        // The last of the crowd was let in by now, and others had to go.
        assert_eq!(crowd[0].read(&mut [0; 8]).await.unwrap(), 0);
        let done = Answer::Done("all of them".to_owned());
        asked.reply.send(Reply::Answer(done)).unwrap();
        assert_eq!(waiting.await.unwrap().0, 200);
    });
}

#[test]
fn followers_have_places_of_their_own() {
    run(async {
        let mut house = House::open();
        let (live, _) = broadcast::channel(8);
        let mut followers = Vec::new();
        for _ in 0..FOLLOWERS_MAX {
            let mut stream = UnixStream::connect(house.socket()).await.unwrap();
            let request = b"GET /v1/events?follow HTTP/1.1\r\nHost: x\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let reply = Reply::Events {
                past: vec![told(1)],
                live: Some(live.subscribe()),
            };
            house.question().await.reply.send(reply).unwrap();
            let mut first = [0; 12];
            stream.read_exact(&mut first).await.unwrap();
            assert_eq!(&first, b"HTTP/1.1 200");
            followers.push(stream);
        }
        let (status, why) = get(&house.socket(), "/v1/events?follow").await;
        assert_eq!(status, 503, "{why}");
        assert!(why.contains("16 clients follow already"), "{why}");
        // Followers take no place of clients with requests.
        let mut silent = Vec::new();
        for _ in 0..CLIENTS_MAX - 1 {
            silent.push(UnixStream::connect(house.socket()).await.unwrap());
        }
        let probe = tokio::spawn(get_later(house.socket(), "/readyz"));
        let why = String::new();
        let is = Reply::Is { ok: true, why };
        house.question().await.reply.send(is).unwrap();
        assert_eq!(probe.await.unwrap().0, 200);
        // The oldest of the silent clients still has its connection.
        let oldest = &mut silent[0];
        let request = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n";
        oldest.write_all(request).await.unwrap();
        let is = Reply::Is {
            ok: true,
            why: String::new(),
        };
        house.question().await.reply.send(is).unwrap();
        let mut first = [0; 12];
        oldest.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        // When a follower leaves, another client may follow.
        followers.pop();
        loop {
            let next = tokio::spawn(get_later(house.socket(), "/v1/events?follow"));
            tokio::select! {
                asked = house.question() => {
                    drop(asked);
                    break;
                }
                refused = next => assert_eq!(refused.unwrap().0, 503),
            }
        }
    });
}

#[test]
fn a_body_without_end_is_refused() {
    run(async {
        let house = House::open();
        let answer = post(&house.socket(), "/v1/stop", &"x".repeat(REQUEST_BYTES + 1)).await;
        assert_eq!(answer.0, 400);
    });
}

#[test]
fn the_last_answer_is_delivered_before_the_door_is_shut() {
    run(async {
        let mut house = House::open();
        let socket = house.socket();
        let asking = tokio::spawn(async move { post(&socket, "/v1/stop", "").await });
        let asked = house.question().await;
        let done = Answer::Done("stopped".to_owned());
        asked.reply.send(Reply::Answer(done)).unwrap();
        let socket = house.socket();
        drop(house.questions);
        house.server.await.unwrap();
        assert!(!socket.exists());
        assert_eq!(asking.await.unwrap().0, 200);
    });
}
