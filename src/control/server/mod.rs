//! Lets clients in, hands their questions on and carries the answers back. A client that is slow,
//! stuck or gone costs one of a bounded number of places, and never the supervisor's time.

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
    Asked, Question,
    access::{Access, read_only},
    doors::{Doors, Guest},
    routes::{self, Answered, Refusal, Words},
};

/// Maximum clients at a time on each listener. One more takes the place of the oldest client that
/// has not sent its request yet or does not read its answer.
const CLIENTS_MAX: usize = 64;
/// Maximum clients that follow events on each listener. They are counted apart, so that a probe is
/// always answered.
const FOLLOWERS_MAX: usize = 16;
/// Maximum wait for the end of a client that has to make room.
const ROOM_MAX: Duration = Duration::from_secs(1);
/// Time limit of receiving a request.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// Time limit of sending an answer.
const TAKE_MAX: Duration = Duration::from_secs(30);
/// Maximum bytes of a request's headers, and of its body.
const REQUEST_BYTES: usize = 16 << 10;
/// Time limit of answers under way when the service ends.
const FAREWELL: Duration = Duration::from_secs(1);
/// Pause after a failed accept(2), for instance when no descriptors are left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The listener that a client came through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Half {
    /// The Unix socket: everything.
    Whole,
    /// TCP: nothing is changed.
    Reading,
}

/// Serves until the receiver of the questions is closed; answers under way are still delivered, for
/// a second at most. The socket is removed at the end.
pub async fn run(mut doors: Doors, questions: mpsc::Sender<Asked>) {
    let mut clients = Clients::new(questions, doors.access());
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
    // Clients that have not read their answer by now do not get it.
    let _late = timeout(FAREWELL, farewell).await;
}

/// All connected clients.
struct Clients {
    questions: mpsc::Sender<Asked>,
    access: Arc<Access>,
    tasks: JoinSet<()>,
    /// Two, so that a crowd on the port does not keep the operator out.
    whole: Places,
    reading: Places,
}

/// The clients of one listener, and the places for them.
struct Places {
    seats: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    /// Oldest first.
    inside: VecDeque<Inside>,
}

/// A client that may have to make room.
struct Inside {
    task: AbortHandle,
    /// It waits for the supervisor's answer, or follows events: the client is not slow.
    busy: Arc<AtomicBool>,
}

/// What one client holds.
struct Held {
    half: Half,
    /// Given back by a client that follows events.
    seat: Mutex<Option<OwnedSemaphorePermit>>,
    followers: Arc<Semaphore>,
    busy: Arc<AtomicBool>,
    access: Arc<Access>,
}

impl Places {
    fn new() -> Self {
        Self {
            seats: Arc::new(Semaphore::new(CLIENTS_MAX)),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            inside: VecDeque::new(),
        }
    }

    /// Disconnects the oldest slow client; false if there is none.
    fn make_room(&mut self) -> bool {
        let slow = |one: &Inside| !one.busy.load(Relaxed);
        let Some(at) = self.inside.iter().position(slow) else {
            return false;
        };
        if let Some(one) = self.inside.remove(at) {
            one.task.abort();
        }
        true
    }
}

impl Clients {
    fn new(questions: mpsc::Sender<Asked>, access: Arc<Access>) -> Self {
        Self {
            questions,
            access,
            tasks: JoinSet::new(),
            whole: Places::new(),
            reading: Places::new(),
        }
    }

    /// Closes the connection if there is no place for it.
    fn admit<S>(&mut self, stream: S, half: Half)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let places = match half {
            Half::Whole => &mut self.whole,
            Half::Reading => &mut self.reading,
        };
        places.inside.retain(|one| !one.task.is_finished());
        let seat = Arc::clone(&places.seats).try_acquire_owned().ok();
        if seat.is_none() && !places.make_room() {
            return;
        }
        let busy = Arc::new(AtomicBool::new(false));
        let held = Held {
            half,
            seat: Mutex::new(seat),
            followers: Arc::clone(&places.followers),
            busy: Arc::clone(&busy),
            access: Arc::clone(&self.access),
        };
        let (seats, questions) = (Arc::clone(&places.seats), self.questions.clone());
        let task = self.tasks.spawn(async move {
            if held.has_seat() || held.wait_for_seat(seats).await {
                serve(stream, &held, questions).await;
            }
        });
        places.inside.push_back(Inside { task, busy });
    }
}

impl Held {
    fn has_seat(&self) -> bool {
        let seat = self.seat.lock().unwrap_or_else(PoisonError::into_inner);
        seat.is_some()
    }

    /// Waits for the place of a client that was disconnected.
    async fn wait_for_seat(&self, seats: Arc<Semaphore>) -> bool {
        let Ok(Ok(free)) = timeout(ROOM_MAX, seats.acquire_owned()).await else {
            return false;
        };
        let mut seat = self.seat.lock().unwrap_or_else(PoisonError::into_inner);
        seat.replace(free);
        true
    }

    /// Takes a follower's place and gives its own back.
    fn follow(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let place = Arc::clone(&self.followers).try_acquire_owned();
        let place = place.map_err(|_| {
            let why = format!("{FOLLOWERS_MAX} clients follow already; try again later");
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why)
        })?;
        let mut seat = self.seat.lock().unwrap_or_else(PoisonError::into_inner);
        seat.take();
        Ok(place)
    }
}

/// One client, one request.
async fn serve<S>(stream: S, held: &Held, questions: mpsc::Sender<Asked>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let answered = Notify::new();
    // Held for as long as the connection is.
    let following = Mutex::new(None);
    let service = service_fn(|request| async {
        let (response, follower) = answer(request, held, &questions).await;
        if let Some(place) = follower {
            let mut following = following.lock().unwrap_or_else(PoisonError::into_inner);
            following.replace(place);
        } else {
            held.busy.store(false, Relaxed);
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

/// The response, and a follower's place where the response lasts as long as the client stays.
async fn answer(
    request: Request<Incoming>,
    held: &Held,
    questions: &mpsc::Sender<Asked>,
) -> (Answered, Option<OwnedSemaphorePermit>) {
    let read = read(request, held).await.and_then(|question| {
        let follows = matches!(question, Question::Events { follow: true, .. });
        let place = follows.then(|| held.follow()).transpose()?;
        Ok((question, place))
    });
    let (question, place) = match read {
        Ok(read) => read,
        Err(refusal) => return (refusal.answer(), None),
    };
    held.busy.store(true, Relaxed);
    let (reply, answer) = oneshot::channel();
    let asked = Asked { question, reply };
    if questions.send(asked).await.is_ok()
        && let Ok(reply) = answer.await
    {
        return (routes::response(reply), place);
    }
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the service is ending");
    (refusal.answer(), None)
}

async fn read(request: Request<Incoming>, held: &Held) -> Result<Question, Refusal> {
    let (head, body) = request.into_parts();
    if held.half == Half::Reading && head.method != Method::GET {
        return Err(read_only());
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
    let question = routes::question(&head.method, words)?;
    if held.half == Half::Reading {
        held.access.check(&question, &head)?;
    }
    Ok(question)
}

#[cfg(test)]
mod tests;
