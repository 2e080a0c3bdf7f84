//! Lets clients in, hands their questions on and carries the answers back. A client that is slow,
//! stuck or gone costs one of a bounded number of places, and never the supervisor's time.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Method, Request, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Asked, Question,
    doors::{Doors, Guest},
    routes::{self, Answered, Refusal, Words},
};

/// So many clients at a time for each door; the others find the connection closed.
const CLIENTS_MAX: usize = 64;
/// A request is complete after that long, or it is none.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// An answer is taken within that long, or it is dropped.
const TAKE_MAX: Duration = Duration::from_secs(30);
/// Headers and body of a request are no longer than this, each.
const REQUEST_BYTES: usize = 16 << 10;
/// When the service ends, answers under way have that long.
const FAREWELL: Duration = Duration::from_secs(1);
/// After a failed accept(2), such as for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Through which door a client came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Half {
    /// The Unix socket: everything.
    Whole,
    /// TCP: nothing is changed.
    Reading,
}

/// Serves until nobody receives questions any more; answers under way are still delivered, for a
/// second at most. The socket is removed at the end.
pub async fn run(mut doors: Doors, questions: mpsc::Sender<Asked>) {
    let mut clients = Clients::new(questions);
    let questions = clients.questions.clone();
    loop {
        tokio::select! {
            guest = doors.guest() => match guest {
                Ok(Guest::Whole(stream)) => clients.admit(stream, Half::Whole),
                Ok(Guest::Reading(stream)) => clients.admit(stream, Half::Reading),
                Err(_) => sleep(ACCEPT_AGAIN).await,
            },
            Some(_) = clients.tasks.join_next() => {}
            () = questions.closed() => break,
        }
    }
    drop(doors);
    let farewell = async { while clients.tasks.join_next().await.is_some() {} };
    // Whoever has not taken an answer by now does not get it.
    let _late = timeout(FAREWELL, farewell).await;
}

/// Everybody who is inside.
struct Clients {
    questions: mpsc::Sender<Asked>,
    tasks: JoinSet<()>,
    /// Two, so that a crowd on the port does not keep the operator out.
    whole: Arc<Semaphore>,
    reading: Arc<Semaphore>,
}

impl Clients {
    fn new(questions: mpsc::Sender<Asked>) -> Self {
        Self {
            questions,
            tasks: JoinSet::new(),
            whole: Arc::new(Semaphore::new(CLIENTS_MAX)),
            reading: Arc::new(Semaphore::new(CLIENTS_MAX)),
        }
    }

    /// One who finds no place finds the connection closed.
    fn admit<S>(&mut self, stream: S, half: Half)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let places = match half {
            Half::Whole => &self.whole,
            Half::Reading => &self.reading,
        };
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            let questions = self.questions.clone();
            self.tasks.spawn(async move {
                serve(stream, half, questions).await;
                drop(place);
            });
        }
    }
}

/// One client, one request.
async fn serve<S>(stream: S, half: Half, questions: mpsc::Sender<Asked>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let answered = Notify::new();
    let service = service_fn(|request| async {
        let (response, follows) = answer(request, half, &questions).await;
        if !follows {
            answered.notify_one();
        }
        Ok::<_, Infallible>(response)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_MAX)
        .max_buf_size(REQUEST_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let patience = async {
        answered.notified().await;
        sleep(TAKE_MAX).await;
    };
    tokio::select! {
        // A broken connection is the client's own business.
        _ = connection => {}
        () = patience => {}
    }
}

/// The response, and whether it goes on for as long as the client wishes.
async fn answer(
    request: Request<Incoming>,
    half: Half,
    questions: &mpsc::Sender<Asked>,
) -> (Answered, bool) {
    let question = match read(request, half).await {
        Ok(question) => question,
        Err(refusal) => return (refusal.answer(), false),
    };
    let follows = matches!(question, Question::Events { follow: true, .. });
    let (reply, answer) = oneshot::channel();
    let asked = Asked { question, reply };
    if questions.send(asked).await.is_ok()
        && let Ok(reply) = answer.await
    {
        return (routes::response(reply), follows);
    }
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the service is ending");
    (refusal.answer(), false)
}

async fn read(request: Request<Incoming>, half: Half) -> Result<Question, Refusal> {
    let (head, body) = request.into_parts();
    if half == Half::Reading && head.method != Method::GET {
        let why = "nothing is changed by this port; use the control socket";
        return Err(Refusal::new(StatusCode::FORBIDDEN, why));
    }
    let body = match timeout(REQUEST_MAX, Limited::new(body, REQUEST_BYTES).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => {
            let why = format!("read the body: {error}");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
        }
        Err(_) => {
            let why = "the body did not come";
            return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, why));
        }
    };
    let last_event = head.headers.get("last-event-id");
    let words = Words {
        path: head.uri.path(),
        query: head.uri.query().unwrap_or_default(),
        body: &body,
        last_event: last_event.and_then(|value| value.to_str().ok()),
    };
    routes::question(&head.method, words)
}

#[cfg(test)]
mod tests {
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

    /// A server in a directory of its own; the test is the one who answers.
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
            let spec = ControlSpec {
                socket: home.path().join("shop.sock"),
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
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n");
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
            // Whoever is inside is answered, and nobody else comes in.
            asked.reply.send(Reply::Document("1".to_owned())).unwrap();
            assert_eq!(inside.await.unwrap(), (200, "1".to_owned()));
            // All have had many more turns than one who is let in needs.
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
    fn silent_clients_take_only_their_places() {
        run(async {
            let mut house = House::open();
            let mut silent = Vec::new();
            for _ in 0..CLIENTS_MAX {
                silent.push(UnixStream::connect(house.socket()).await.unwrap());
            }
            let mut late = UnixStream::connect(house.socket()).await.unwrap();
            assert_eq!(
                late.read(&mut [0; 8]).await.unwrap(),
                0,
                "the last one is not let in"
            );

            // When one goes, there is a place again.
            silent.pop();
            let socket = house.socket();
            let again = tokio::spawn(async move {
                loop {
                    let client = Client::connect(&socket).await.unwrap();
                    if let Ok(answer) = client.get("/healthz").await {
                        return answer;
                    }
                }
            });
            let why = String::new();
            let is = Reply::Is { ok: true, why };
            house.question().await.reply.send(is).unwrap();
            assert_eq!(again.await.unwrap(), (200, "ok\n".to_owned()));
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
}
