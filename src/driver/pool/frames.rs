//! What workers say, and how an end without words is put into words.

use std::time::Duration;

use bytes::Buf as _;

use super::PoolDriver;
use crate::{
    agent::frames::{Frame, Kind, read},
    host::clock,
    queue::{Detail, Failure, Outcome, Verdict},
    supervisor::{
        event::Ended,
        pool::event::{Action, Event, Fate, How},
    },
    units::{Bytes, WorkerId},
};

impl PoolDriver {
    /// Takes in all that a worker has said.
    pub(super) fn hear(&mut self, worker: WorkerId) {
        let mut said = self.host.get_mut().take_said(worker);
        let mut at = 0;
        loop {
            match read(said.get(at..).unwrap_or_default()) {
                Ok(Some((frame, length))) => {
                    self.on_frame(worker, frame);
                    at += length;
                }
                Ok(None) => break,
                Err(_) => {
                    // RACE: a task has found our socket among its descriptors and written into it.
                    // What is behind cannot be understood: the worker goes, its tasks stay.
                    self.parts
                        .onlooker
                        .say(&format!("{worker} does not make sense, and is killed"));
                    self.host.get_ref().kill_child(worker);
                    return;
                }
            }
        }
        said.advance(at);
        self.host.get_mut().return_said(worker, said);
    }

    fn on_frame(&mut self, worker: WorkerId, frame: Frame<'_>) {
        let peak = Bytes(u64::from(frame.peak_kib) * 1024);
        let how = match frame.kind {
            Kind::Result => How::Returned,
            Kind::Raised => How::Raised,
            Kind::Unserializable => How::Unserializable,
            Kind::Hello => return self.hand_in(Event::Ready { worker, base: peak }),
            Kind::Failed => {
                self.last_words = Some(frame.body.to_vec());
                return self.hand_in(Event::CouldNotStart(worker));
            }
            Kind::Output => {
                let id = self.tasks.get(&frame.seq).and_then(|task| task.id.clone());
                let id = id.map_or_else(|| frame.seq.to_string(), String::from);
                let line = String::from_utf8_lossy(frame.body);
                return self.parts.onlooker.print(&format!("[task {id}] {line}"));
            }
        };
        let event = Event::Ended {
            worker,
            seq: frame.seq,
            how,
            micros: frame.micros,
            peak,
        };
        self.pool.handle_event(clock::now(), event);
        // A delivery is of the frame that we hold; all else is carried out as ever.
        while let Some(action) = self.pool.poll_action() {
            if let Action::Deliver { seq, attempts, .. } = action {
                let id = self.tasks.remove(&seq).and_then(|task| task.id);
                let verdict = self.verdict(how, attempts, frame.body);
                self.parts.sink.put(Outcome {
                    seq,
                    id,
                    worker: Some(worker),
                    micros: u64::from(frame.micros),
                    peak: Some(peak),
                    verdict,
                });
            } else {
                self.carry_out(action);
            }
        }
    }

    fn verdict(&mut self, how: How, attempts: u32, body: &[u8]) -> Verdict {
        let cause = match how {
            How::Returned => {
                self.tally.done += 1;
                return Verdict::Done(body.into());
            }
            How::Raised => "exception",
            How::Unserializable => "unserializable",
        };
        self.tally.failed += 1;
        Verdict::Failed(Failure {
            cause: cause.to_owned(),
            attempts,
            detail: Detail::Raised(body.into()),
        })
    }
}

/// The cause, and a message.
pub(super) fn in_words(
    fate: Fate,
    cap: Option<Bytes>,
    timeout: Option<Duration>,
) -> (String, String) {
    match fate {
        Fate::Cap => {
            let cap = cap.map_or_else(String::new, |cap| format!(" of {cap}"));
            let message = format!("the worker met its cap{cap}, and again when it was alone");
            ("cap".to_owned(), message)
        }
        Fate::Timeout => {
            let after = timeout.unwrap_or_default();
            let after = humantime::format_duration(after);
            (
                "timeout".to_owned(),
                format!("it ran for longer than {after}"),
            )
        }
        Fate::Died(ended) => {
            let cause = ended_in_words(ended);
            let message = format!("the worker ended during the task ({cause})");
            (cause, message)
        }
        Fate::StartFailed => {
            let message = "no worker could be started".to_owned();
            ("start-failed".to_owned(), message)
        }
    }
}

/// Why no worker starts, from the words of the one that could not.
pub(super) fn start_failure(words: &[u8]) -> String {
    let words: serde_json::Value = serde_json::from_slice(words).unwrap_or_default();
    let word = |name: &str| words.get(name).and_then(serde_json::Value::as_str);
    let text = word("traceback").or_else(|| word("message"));
    let text = text.unwrap_or("it ended before it could say why");
    format!("no worker can be started:\n{}", text.trim_end())
}

/// How an end is named in a result.
fn ended_in_words(ended: Ended) -> String {
    match ended {
        Ended::Exit(status) => format!("exit:{status}"),
        Ended::Signal(signal) => format!("signal:{signal}"),
        Ended::Unseen => "signal:KILL".to_owned(),
    }
}
