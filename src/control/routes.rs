//! Translates requests into questions, and replies into responses. Pure, except for following
//! events.

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
        event_format::EventRecord,
        input::{Ask, Stop},
    },
};

use super::{Question, Reply, documents::EventDoc};

/// A response. Its body is complete, or a stream of events.
pub(super) type HttpResponse = Response<BoxBody<Bytes, Infallible>>;

/// Maximum time between two messages to a follower, so that a broken connection is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Maximum events that wait for a slow follower, in addition to the events that the driver keeps.
const FOLLOW_AHEAD: usize = 16;

/// The parts of a request that determine its question.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RequestView<'a> {
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) body: &'a [u8],
    pub(super) last_event: Option<&'a str>,
}

/// Why a request is refused.
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

    pub(super) fn into_response(self) -> HttpResponse {
        let mut response = json_response(self.status, &json!({"error": self.why}));
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

/// The question of a request.
pub(super) fn question(method: &Method, view: RequestView<'_>) -> Result<Question, Refusal> {
    let (needed, question) = route(view)?;
    if *method == needed {
        return Ok(question);
    }
    Err(Refusal {
        status: StatusCode::METHOD_NOT_ALLOWED,
        why: format!("{} needs the method {needed}", view.path),
        allow: Some(needed),
        challenge: false,
    })
}

fn route(view: RequestView<'_>) -> Result<(Method, Question), Refusal> {
    let parts: Vec<&str> = view.path.split('/').skip(1).collect();
    let (get, change) = (
        |question| (Method::GET, question),
        |ask| (Method::POST, Question::Do(ask)),
    );
    let unknown = |why| Refusal::new(StatusCode::NOT_FOUND, why);
    Ok(match parts.as_slice() {
        ["v1", "status"] => get(Question::Status),
        ["v1", "events"] => get(Question::Events {
            after: after_parameter(view)?,
            follow: parameter(view.query, "follow").is_some(),
        }),
        ["v1", "reports"] => get(Question::Reports),
        ["v1", "reports", id] => get(Question::Report(id.parse().map_err(unknown)?)),
        ["v1", "history"] => get(Question::History),
        ["metrics"] => get(Question::Metrics),
        ["healthz"] => get(Question::Health),
        ["readyz"] => get(Question::Readiness),
        ["v1", "recycle"] => change(Ask::RecycleAll),
        ["v1", "workers", id, "recycle"] => change(Ask::Recycle(id.parse().map_err(unknown)?)),
        ["v1", "workers", id, "report"] => change(Ask::Report(id.parse().map_err(unknown)?)),
        ["v1", "reload"] => change(Ask::Reload),
        ["v1", "upgrade"] => change(Ask::Upgrade),
        ["v1", "stop"] => change(Ask::Stop(stop_of_body(view)?)),
        ["v1", "scale"] => change(Ask::Scale(workers_parameter(view)?)),
        _ => {
            let why = format!("unknown path {}", view.path);
            return Err(Refusal::new(StatusCode::NOT_FOUND, why));
        }
    })
}

/// The value of a parameter; empty if it has none.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

fn after_parameter(view: RequestView<'_>) -> Result<Option<u64>, Refusal> {
    let Some(text) = view.last_event.or_else(|| parameter(view.query, "after")) else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        let why = format!("`{text}` is not the id of an event");
        Refusal::new(StatusCode::BAD_REQUEST, why)
    })
}

fn workers_parameter(view: RequestView<'_>) -> Result<u32, Refusal> {
    let text = parameter(view.query, "workers").unwrap_or_default();
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| {
        let why = format!("`{text}` is not a number of workers: 1 or more");
        Refusal::new(StatusCode::BAD_REQUEST, why)
    })
}

fn stop_of_body(view: RequestView<'_>) -> Result<Stop, Refusal> {
    #[derive(Default, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[serde(default)]
        now: bool,
    }
    let body: Body = match view.body {
        [] => Body::default(),
        text => serde_json::from_slice(text).map_err(|error| {
            Refusal::new(StatusCode::BAD_REQUEST, format!("read the body: {error}"))
        })?,
    };
    Ok(if body.now || parameter(view.query, "now").is_some() {
        Stop::Now
    } else {
        Stop::Graceful
    })
}

/// The response for a reply.
pub(super) fn response(reply: Reply) -> HttpResponse {
    match reply {
        Reply::Status(status) => json_response(StatusCode::OK, &*status),
        Reply::Events { past, live: None } => json_response(
            StatusCode::OK,
            &past.iter().map(EventDoc::from).collect::<Vec<_>>(),
        ),
        Reply::Events {
            past,
            live: Some(live),
        } => follow(past, live),
        Reply::Document(text) => typed_response(
            StatusCode::OK,
            "application/json",
            escape::json(&text).into_owned(),
        ),
        // 0.0.4 is the version of Prometheus' text format.
        Reply::Text(text) => typed_response(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            text,
        ),
        Reply::Is { ok: true, .. } => {
            typed_response(StatusCode::OK, "text/plain; charset=utf-8", "ok\n")
        }
        Reply::Is { ok: false, why } => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let why = format!("{}\n", escape::line(&why));
            typed_response(status, "text/plain; charset=utf-8", why)
        }
        Reply::Answer(Answer::Done(what)) => json_response(StatusCode::OK, &json!({"done": what})),
        // The driver answers with the document itself. This remains if the report could not be
        // kept.
        Reply::Answer(Answer::Reported(report)) => {
            let done = format!("{report} is kept");
            json_response(StatusCode::OK, &json!({"done": done}))
        }
        Reply::Answer(Answer::Refused(why)) => {
            Refusal::new(StatusCode::CONFLICT, why).into_response()
        }
        Reply::Answer(Answer::Unknown(why)) => {
            Refusal::new(StatusCode::NOT_FOUND, why).into_response()
        }
    }
}

/// A response with a body of this content type.
fn typed_response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> HttpResponse {
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

fn json_response(status: StatusCode, document: &impl Serialize) -> HttpResponse {
    match serde_json::to_string(document) {
        // curl writes the answer to a terminal.
        Ok(text) => typed_response(status, "application/json", escape::json(&text).into_owned()),
        Err(error) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            typed_response(status, "text/plain; charset=utf-8", error.to_string())
        }
    }
}

/// A stream of server-sent events (HTML, "Server-sent events").
fn follow(past: Vec<EventRecord>, live: broadcast::Receiver<EventRecord>) -> HttpResponse {
    let (sender, body) = Channel::new(FOLLOW_AHEAD);
    // Ends with the follower or with the events.
    tokio::spawn(send_events(sender, past, live));
    let mut response = typed_response(StatusCode::OK, "text/event-stream", "");
    *response.body_mut() = body.boxed();
    response
}

/// Sends the past events, and then new events until either side ends.
async fn send_events(
    mut to: Sender<Bytes>,
    past: Vec<EventRecord>,
    mut live: broadcast::Receiver<EventRecord>,
) {
    for record in &past {
        if to.send_data(event_message(record)).await.is_err() {
            return;
        }
    }
    loop {
        let text = match timeout(KEEP_ALIVE, live.recv()).await {
            Ok(Ok(record)) => event_message(&record),
            Ok(Err(RecvError::Lagged(missed))) => missed_message(missed),
            Ok(Err(RecvError::Closed)) => return,
            Err(_) => Bytes::from_static(b":\n\n"),
        };
        if to.send_data(text).await.is_err() {
            return;
        }
    }
}

fn event_message(record: &EventRecord) -> Bytes {
    let document = json!(EventDoc::from(record)).to_string();
    let document = escape::json(&document);
    let kind = record.event.kind();
    format!("id: {}\nevent: {kind}\ndata: {document}\n\n", record.id).into()
}

fn missed_message(missed: u64) -> Bytes {
    let message = format!("{missed} events were dropped, because they were read too slowly");
    let document = json!({"event": "missed", "message": message, "missed": missed});
    format!("event: missed\ndata: {document}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(method: Method, path: &str, expected: Question) {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let view = RequestView {
            path,
            query,
            ..RequestView::default()
        };
        assert_eq!(question(&method, view), Ok(expected));
    }

    fn refused(method: Method, view: RequestView<'_>) -> u16 {
        question(&method, view)
            .unwrap_err()
            .into_response()
            .status()
            .as_u16()
    }

    #[test]
    fn each_path_gives_its_question() {
        let events = |after, follow| Question::Events { after, follow };
        asks(Method::GET, "/v1/status", Question::Status);
        asks(Method::GET, "/v1/events", events(None, false));
        asks(
            Method::GET,
            "/v1/events?after=7&follow",
            events(Some(7), true),
        );
        asks(Method::GET, "/v1/reports", Question::Reports);
        asks(Method::GET, "/v1/history", Question::History);
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
            "/v1/scale?workers=4",
            Question::Do(Ask::Scale(4)),
        );
        asks(
            Method::POST,
            "/v1/stop?now",
            Question::Do(Ask::Stop(Stop::Now)),
        );
    }

    #[test]
    fn an_invalid_request_is_refused_with_a_reason() {
        let view = |path| RequestView {
            path,
            ..RequestView::default()
        };
        assert_eq!(refused(Method::GET, view("/")), 404);
        assert_eq!(refused(Method::GET, view("/v1/status/")), 404);
        assert_eq!(refused(Method::POST, view("/v1/workers/9/recycle")), 404);
        assert_eq!(refused(Method::POST, view("/v1/status")), 405);
        assert_eq!(refused(Method::GET, view("/v1/stop")), 405);
        assert_eq!(refused(Method::POST, view("/v1/scale")), 400);
        for query in ["workers=0", "workers=-1", "workers=two"] {
            let path = "/v1/scale";
            let view = RequestView {
                path,
                query,
                ..RequestView::default()
            };
            assert_eq!(refused(Method::POST, view), 400, "{query}");
        }
        assert_eq!(refused(Method::GET, view("/v1/reports/3")), 404);
        assert_eq!(refused(Method::GET, view("/v1/reports/r3/x")), 404);
        assert_eq!(refused(Method::POST, view("/v1/reports")), 405);
        assert_eq!(refused(Method::GET, view("/v1/workers/w1/report")), 405);
        assert_eq!(refused(Method::POST, view("/v1/workers/r1/report")), 404);
        let bad = RequestView {
            query: "after=x",
            ..view("/v1/events")
        };
        assert_eq!(refused(Method::GET, bad), 400);
        let bad = RequestView {
            body: b"{\"later\": 1}",
            ..view("/v1/stop")
        };
        assert_eq!(refused(Method::POST, bad), 400);
    }

    #[test]
    fn a_body_may_request_a_stop_now_and_last_event_id_overrides_the_query() {
        let view = RequestView {
            path: "/v1/stop",
            body: b"{\"now\": true}",
            ..RequestView::default()
        };
        let now = Question::Do(Ask::Stop(Stop::Now));
        assert_eq!(question(&Method::POST, view), Ok(now));
        let view = RequestView {
            path: "/v1/events",
            query: "after=1",
            last_event: Some("5"),
            ..RequestView::default()
        };
        let events = Question::Events {
            after: Some(5),
            follow: false,
        };
        assert_eq!(question(&Method::GET, view), Ok(events));
    }
}
