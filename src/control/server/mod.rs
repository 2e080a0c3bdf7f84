//! Accepts clients, passes their questions to the driver and sends the answers. A slow or stuck
//! client uses one of a bounded number of connections, and never blocks the supervisor.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Method, Request, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{
    PendingRequest, Question,
    access::{Access, AccessRules, read_only},
    listeners::{Connection, Listeners},
    routes::{self, HttpResponse, Refusal, RequestView},
};

/// Maximum clients at a time on each listener. A further client replaces the oldest client that has
/// not sent its request yet or does not read its answer.
const CLIENTS_MAX: usize = 64;
/// Maximum clients that follow events on each listener. They are counted separately, so that a
/// probe is always answered.
const FOLLOWERS_MAX: usize = 16;
/// Time limit for a disconnected client to make room.
const ROOM_MAX: Duration = Duration::from_secs(1);
/// Time limit of receiving a request.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// Time limit of sending an answer.
const SEND_MAX: Duration = Duration::from_secs(30);
/// Maximum bytes of a request's headers, and of its body.
const REQUEST_BYTES: usize = 16 << 10;
/// Time limit of answers under way when the service ends.
const LAST_ANSWERS_MAX: Duration = Duration::from_secs(1);
/// Pause after a failed accept(2), such as when no descriptors are left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves until the receiver of the questions is closed. Pending answers are still delivered, for a
/// second at most. The socket is removed at the end.
pub async fn run(mut listeners: Listeners, questions: mpsc::Sender<PendingRequest>) {
    let mut clients = Clients::new(questions, listeners.rules());
    let questions = clients.questions.clone();
    loop {
        tokio::select! {
            accepted = listeners.accept() => match accepted {
                Ok(Connection::Unix(stream)) => clients.admit(stream, Access::Full),
                Ok(Connection::Tcp(stream)) => clients.admit(stream, Access::ReadOnly),
                Err(_) => sleep(ACCEPT_AGAIN).await,
            },
            Some(_) = clients.tasks.join_next() => {}
            () = questions.closed() => break,
        }
    }
    drop(listeners);
    let answered = async { while clients.tasks.join_next().await.is_some() {} };
    // Clients that have not read their answer by now do not get it.
    let _late = timeout(LAST_ANSWERS_MAX, answered).await;
}

/// All connected clients.
struct Clients {
    questions: mpsc::Sender<PendingRequest>,
    rules: Arc<AccessRules>,
    tasks: JoinSet<()>,
    /// Counted separately, so that many clients of the TCP port do not keep operators out.
    unix: Places,
    tcp: Places,
}

/// The clients of one listener, and the free places for clients.
struct Places {
    free: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    /// Oldest first.
    connected: VecDeque<Connected>,
}

/// A client that can be disconnected to make room.
struct Connected {
    task: AbortHandle,
    /// Whether it waits for the supervisor's answer, or follows events. It is not slow then.
    busy: Arc<AtomicBool>,
}

/// One client, and the place that it occupies.
struct Client {
    access: Access,
    /// The place; a client that follows events releases it.
    place: Mutex<Option<OwnedSemaphorePermit>>,
    followers: Arc<Semaphore>,
    busy: Arc<AtomicBool>,
    rules: Arc<AccessRules>,
}

impl Places {
    fn new() -> Self {
        Self {
            free: Arc::new(Semaphore::new(CLIENTS_MAX)),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            connected: VecDeque::new(),
        }
    }

    /// Disconnects the oldest slow client; false if there is none.
    fn make_room(&mut self) -> bool {
        let slow = |one: &Connected| !one.busy.load(Relaxed);
        let Some(at) = self.connected.iter().position(slow) else {
            return false;
        };
        if let Some(one) = self.connected.remove(at) {
            one.task.abort();
        }
        true
    }
}

impl Clients {
    fn new(questions: mpsc::Sender<PendingRequest>, rules: Arc<AccessRules>) -> Self {
        Self {
            questions,
            rules,
            tasks: JoinSet::new(),
            unix: Places::new(),
            tcp: Places::new(),
        }
    }

    /// Closes the connection if there is no place for it.
    fn admit<S>(&mut self, stream: S, access: Access)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let places = match access {
            Access::Full => &mut self.unix,
            Access::ReadOnly => &mut self.tcp,
        };
        places.connected.retain(|one| !one.task.is_finished());
        let place = Arc::clone(&places.free).try_acquire_owned().ok();
        if place.is_none() && !places.make_room() {
            return;
        }
        let busy = Arc::new(AtomicBool::new(false));
        let client = Client {
            access,
            place: Mutex::new(place),
            followers: Arc::clone(&places.followers),
            busy: Arc::clone(&busy),
            rules: Arc::clone(&self.rules),
        };
        let (free, questions) = (Arc::clone(&places.free), self.questions.clone());
        let task = self.tasks.spawn(async move {
            if client.has_place() || client.wait_for_place(free).await {
                serve(stream, &client, questions).await;
            }
        });
        places.connected.push_back(Connected { task, busy });
    }
}

impl Client {
    fn has_place(&self) -> bool {
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.is_some()
    }

    /// Waits for the place of a client that was disconnected.
    async fn wait_for_place(&self, free: Arc<Semaphore>) -> bool {
        let Ok(Ok(permit)) = timeout(ROOM_MAX, free.acquire_owned()).await else {
            return false;
        };
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.replace(permit);
        true
    }

    /// Takes a follower's place and releases its own.
    fn follow(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let follower = Arc::clone(&self.followers).try_acquire_owned();
        let follower = follower.map_err(|_| {
            let why = format!("{FOLLOWERS_MAX} clients follow already; try again later");
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why)
        })?;
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.take();
        Ok(follower)
    }
}

/// Serves one request, then closes the connection.
async fn serve<S>(stream: S, client: &Client, questions: mpsc::Sender<PendingRequest>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let answered = Notify::new();
    // Kept as long as the connection.
    let following = Mutex::new(None);
    let service = service_fn(|request| async {
        let (response, follower) = answer(request, client, &questions).await;
        if let Some(place) = follower {
            let mut following = following.lock().unwrap_or_else(PoisonError::into_inner);
            following.replace(place);
        } else {
            client.busy.store(false, Relaxed);
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
    let time_limit = async {
        answered.notified().await;
        sleep(SEND_MAX).await;
    };
    tokio::select! {
        // A broken connection needs no action here.
        _ = connection => {}
        () = time_limit => {}
    }
}

/// The response, and a follower's place if the client follows events.
async fn answer(
    request: Request<Incoming>,
    client: &Client,
    questions: &mpsc::Sender<PendingRequest>,
) -> (HttpResponse, Option<OwnedSemaphorePermit>) {
    let read = read(request, client).await.and_then(|question| {
        let follows = matches!(question, Question::Events { follow: true, .. });
        let place = follows.then(|| client.follow()).transpose()?;
        Ok((question, place))
    });
    let (question, place) = match read {
        Ok(read) => read,
        Err(refusal) => return (refusal.into_response(), None),
    };
    client.busy.store(true, Relaxed);
    let (reply, answer) = oneshot::channel();
    let pending = PendingRequest { question, reply };
    if questions.send(pending).await.is_ok()
        && let Ok(reply) = answer.await
    {
        return (routes::response(reply), place);
    }
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the service is ending");
    (refusal.into_response(), None)
}

async fn read(request: Request<Incoming>, client: &Client) -> Result<Question, Refusal> {
    let (head, body) = request.into_parts();
    if client.access == Access::ReadOnly && head.method != Method::GET {
        return Err(read_only());
    }
    let body = match timeout(REQUEST_MAX, Limited::new(body, REQUEST_BYTES).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => {
            let why = format!("read the body: {error}");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
        }
        Err(_) => {
            let why = "the body did not arrive in time";
            return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, why));
        }
    };
    let last_event = head.headers.get("last-event-id");
    let view = RequestView {
        path: head.uri.path(),
        query: head.uri.query().unwrap_or_default(),
        body: &body,
        last_event: last_event.and_then(|value| value.to_str().ok()),
    };
    let question = routes::question(&head.method, view)?;
    if client.access == Access::ReadOnly {
        client.rules.check(&question, &head)?;
    }
    Ok(question)
}

#[cfg(test)]
mod tests;
