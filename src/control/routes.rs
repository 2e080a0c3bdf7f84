//! Paths and methods become questions, replies become responses. Pure, but for following events.

use std::{convert::Infallible, time::Duration};

use http_body_util::{BodyExt as _, Channel, Full, channel::Sender, combinators::BoxBody};
use hyper::{
    Method, Response, StatusCode,
    body::Bytes,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE},
};
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::timeout,
};

use crate::{
    escape,
    supervisor::{
        action::Answer,
        event::{Ask, Stop},
        tell::Told,
    },
};

use super::{Question, Reply, wire::EventDoc};

/// A response on its way.
pub(super) type Answered = Response<BoxBody<Bytes, Infallible>>;

/// A follower hears something at least that often, so that one who is gone is noticed.
const PULSE: Duration = Duration::from_secs(15);
/// So many events wait for a slow follower beside those that the driver keeps.
const FOLLOW_AHEAD: usize = 16;

/// The part of a request that decides what is asked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Words<'a> {
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) body: &'a [u8],
    pub(super) last_event: Option<&'a str>,
}

/// Why nothing is asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    status: StatusCode,
    why: String,
    allow: Option<Method>,
    /// The response asks for a token.
    challenge: bool,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self {
            status,
            why: why.into(),
            allow: None,
            challenge: false,
        }
    }

    /// Asks for a token (RFC 6750, section 3).
    pub(super) fn unauthorized(why: impl Into<String>) -> Self {
        Self {
            challenge: true,
            ..Self::new(StatusCode::UNAUTHORIZED, why)
        }
    }

    pub(super) fn answer(self) -> Answered {
        let mut response = json(self.status, &json!({"error": self.why}));
        if let Some(allow) = &self.allow
            && let Ok(value) = allow.as_str().parse()
        {
            response.headers_mut().insert(ALLOW, value);
        }
        if self.challenge {
            let value = HeaderValue::from_static("Bearer realm=\"supervise\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, value);
        }
        response
    }
}

/// What a request asks.
pub(super) fn question(method: &Method, words: Words<'_>) -> Result<Question, Refusal> {
    let (needed, question) = route(words)?;
    if *method == needed {
        return Ok(question);
    }
    Err(Refusal {
        status: StatusCode::METHOD_NOT_ALLOWED,
        why: format!("{} is asked with {needed}", words.path),
        allow: Some(needed),
        challenge: false,
    })
}

fn route(words: Words<'_>) -> Result<(Method, Question), Refusal> {
    let parts: Vec<&str> = words.path.split('/').skip(1).collect();
    let (get, change) = (
        |question| (Method::GET, question),
        |ask| (Method::POST, Question::Do(ask)),
    );
    let unknown = |why| Refusal::new(StatusCode::NOT_FOUND, why);
    Ok(match parts.as_slice() {
        ["v1", "status"] => get(Question::Status),
        ["v1", "events"] => get(Question::Events {
            after: after(words)?,
            follow: parameter(words.query, "follow").is_some(),
        }),
        ["v1", "reports"] => get(Question::Reports),
        ["v1", "reports", id] => get(Question::Report(id.parse().map_err(unknown)?)),
        ["metrics"] => get(Question::Metrics),
        ["healthz"] => get(Question::Health),
        ["readyz"] => get(Question::Readiness),
        ["v1", "recycle"] => change(Ask::RecycleAll),
        ["v1", "workers", id, "recycle"] => change(Ask::Recycle(id.parse().map_err(unknown)?)),
        ["v1", "workers", id, "report"] => change(Ask::Report(id.parse().map_err(unknown)?)),
        ["v1", "reload"] => change(Ask::Reload),
        ["v1", "upgrade"] => change(Ask::Upgrade),
        ["v1", "stop"] => change(Ask::Stop(stop(words)?)),
        ["v1", "scale"] => {
            let why = format!("{} is not in this version", words.path);
            return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, why));
        }
        _ => {
            let why = format!("there is no {}", words.path);
            return Err(Refusal::new(StatusCode::NOT_FOUND, why));
        }
    })
}

/// The value of a parameter; empty when it has none.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

fn after(words: Words<'_>) -> Result<Option<u64>, Refusal> {
    let Some(text) = words.last_event.or_else(|| parameter(words.query, "after")) else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        let why = format!("`{text}` is not the id of an event");
        Refusal::new(StatusCode::BAD_REQUEST, why)
    })
}

fn stop(words: Words<'_>) -> Result<Stop, Refusal> {
    #[derive(Default, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[serde(default)]
        now: bool,
    }
    let body: Body = match words.body {
        [] => Body::default(),
        text => serde_json::from_slice(text).map_err(|error| {
            Refusal::new(StatusCode::BAD_REQUEST, format!("read the body: {error}"))
        })?,
    };
    Ok(if body.now || parameter(words.query, "now").is_some() {
        Stop::Now
    } else {
        Stop::Graceful
    })
}

/// A reply on its way.
pub(super) fn response(reply: Reply) -> Answered {
    match reply {
        Reply::Status(status) => json(StatusCode::OK, &*status),
        Reply::Events { past, live: None } => json(
            StatusCode::OK,
            &past.iter().map(EventDoc::from).collect::<Vec<_>>(),
        ),
        Reply::Events {
            past,
            live: Some(live),
        } => follow(past, live),
        Reply::Document(text) => plain(
            StatusCode::OK,
            "application/json",
            escape::json(&text).into_owned(),
        ),
        // The version is that of Prometheus' text format.
        Reply::Text(text) => plain(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            text,
        ),
        Reply::Is { ok: true, .. } => plain(StatusCode::OK, "text/plain; charset=utf-8", "ok\n"),
        Reply::Is { ok: false, why } => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let why = format!("{}\n", escape::line(&why));
            plain(status, "text/plain; charset=utf-8", why)
        }
        Reply::Answer(Answer::Done(what)) => json(StatusCode::OK, &json!({"done": what})),
        // Whoever asked for a report gets it as a document; this only says where it is.
        Reply::Answer(Answer::Reported(report)) => {
            let done = format!("{report} is kept");
            json(StatusCode::OK, &json!({"done": done}))
        }
        Reply::Answer(Answer::Refused(why)) => Refusal::new(StatusCode::CONFLICT, why).answer(),
        Reply::Answer(Answer::Unknown(why)) => Refusal::new(StatusCode::NOT_FOUND, why).answer(),
    }
}

fn plain(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answered {
    let mut response = Response::new(Full::new(body.into()).boxed());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    headers.insert(
        CACHE_CONTROL,
        hyper::header::HeaderValue::from_static("no-store"),
    );
    response
}

fn json(status: StatusCode, document: &impl Serialize) -> Answered {
    match serde_json::to_string(document) {
        // curl writes the answer to a terminal.
        Ok(text) => plain(status, "application/json", escape::json(&text).into_owned()),
        Err(error) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            plain(status, "text/plain; charset=utf-8", error.to_string())
        }
    }
}

/// A stream of server-sent events (HTML, "Server-sent events").
fn follow(past: Vec<Told>, live: broadcast::Receiver<Told>) -> Answered {
    let (sender, body) = Channel::new(FOLLOW_AHEAD);
    // Ends with the follower or with the events.
    tokio::spawn(feed(sender, past, live));
    let mut response = plain(StatusCode::OK, "text/event-stream", "");
    *response.body_mut() = body.boxed();
    response
}

async fn feed(mut to: Sender<Bytes>, past: Vec<Told>, mut live: broadcast::Receiver<Told>) {
    for told in &past {
        if to.send_data(event(told)).await.is_err() {
            return;
        }
    }
    loop {
        let text = match timeout(PULSE, live.recv()).await {
            Ok(Ok(told)) => event(&told),
            Ok(Err(RecvError::Lagged(missed))) => missing(missed),
            Ok(Err(RecvError::Closed)) => return,
            Err(_) => Bytes::from_static(b":\n\n"),
        };
        if to.send_data(text).await.is_err() {
            return;
        }
    }
}

fn event(told: &Told) -> Bytes {
    let document = json!(EventDoc::from(told)).to_string();
    let document = escape::json(&document);
    let kind = told.report.kind();
    format!("id: {}\nevent: {kind}\ndata: {document}\n\n", told.id).into()
}

fn missing(missed: u64) -> Bytes {
    let message = format!("{missed} events were dropped: they were read too slowly");
    let document = json!({"event": "missed", "message": message, "missed": missed});
    format!("event: missed\ndata: {document}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(method: Method, path: &str, expected: Question) {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let words = Words {
            path,
            query,
            ..Words::default()
        };
        assert_eq!(question(&method, words), Ok(expected));
    }

    fn refused(method: Method, words: Words<'_>) -> u16 {
        question(&method, words)
            .unwrap_err()
            .answer()
            .status()
            .as_u16()
    }

    #[test]
    fn every_path_asks_its_question() {
        let events = |after, follow| Question::Events { after, follow };
        asks(Method::GET, "/v1/status", Question::Status);
        asks(Method::GET, "/v1/events", events(None, false));
        asks(
            Method::GET,
            "/v1/events?after=7&follow",
            events(Some(7), true),
        );
        asks(Method::GET, "/v1/reports", Question::Reports);
        asks(
            Method::GET,
            "/v1/reports/r3",
            Question::Report(crate::units::ReportId(3)),
        );
        asks(Method::GET, "/metrics", Question::Metrics);
        asks(Method::GET, "/healthz", Question::Health);
        asks(Method::GET, "/readyz", Question::Readiness);
        let w2 = crate::units::WorkerId::FIRST.next();
        asks(
            Method::POST,
            "/v1/workers/w2/recycle",
            Question::Do(Ask::Recycle(w2)),
        );
        asks(
            Method::POST,
            "/v1/workers/w2/report",
            Question::Do(Ask::Report(w2)),
        );
        asks(Method::POST, "/v1/recycle", Question::Do(Ask::RecycleAll));
        asks(Method::POST, "/v1/reload", Question::Do(Ask::Reload));
        asks(
            Method::POST,
            "/v1/stop",
            Question::Do(Ask::Stop(Stop::Graceful)),
        );
        asks(
            Method::POST,
            "/v1/stop?now",
            Question::Do(Ask::Stop(Stop::Now)),
        );
    }

    #[test]
    fn what_cannot_be_asked_is_refused_with_its_reason() {
        let words = |path| Words {
            path,
            ..Words::default()
        };
        assert_eq!(refused(Method::GET, words("/")), 404);
        assert_eq!(refused(Method::GET, words("/v1/status/")), 404);
        assert_eq!(refused(Method::POST, words("/v1/workers/9/recycle")), 404);
        assert_eq!(refused(Method::POST, words("/v1/status")), 405);
        assert_eq!(refused(Method::GET, words("/v1/stop")), 405);
        assert_eq!(refused(Method::POST, words("/v1/scale")), 501);
        assert_eq!(refused(Method::GET, words("/v1/reports/3")), 404);
        assert_eq!(refused(Method::GET, words("/v1/reports/r3/x")), 404);
        assert_eq!(refused(Method::POST, words("/v1/reports")), 405);
        assert_eq!(refused(Method::GET, words("/v1/workers/w1/report")), 405);
        assert_eq!(refused(Method::POST, words("/v1/workers/r1/report")), 404);
        let bad = Words {
            query: "after=x",
            ..words("/v1/events")
        };
        assert_eq!(refused(Method::GET, bad), 400);
        let bad = Words {
            body: b"{\"later\": 1}",
            ..words("/v1/stop")
        };
        assert_eq!(refused(Method::POST, bad), 400);
    }

    #[test]
    fn a_body_may_say_now_and_the_last_event_wins_over_the_query() {
        let words = Words {
            path: "/v1/stop",
            body: b"{\"now\": true}",
            ..Words::default()
        };
        let now = Question::Do(Ask::Stop(Stop::Now));
        assert_eq!(question(&Method::POST, words), Ok(now));
        let words = Words {
            path: "/v1/events",
            query: "after=1",
            last_event: Some("5"),
            ..Words::default()
        };
        let events = Question::Events {
            after: Some(5),
            follow: false,
        };
        assert_eq!(question(&Method::GET, words), Ok(events));
    }
}
