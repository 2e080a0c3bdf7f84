//! Reads the frames of workers, and writes the messages of failed tasks.

use std::time::Duration;

use bytes::Buf as _;

use super::{PoolDriver, start_errors};
use crate::{
    host::clock,
    protocol::{
        document,
        frame::{self, FromWorker, Reply},
    },
    queue::{Detail, Failure, Outcome, START_FAILED, Verdict},
    supervisor::{
        input::Ended,
        pool::input::{Action, Fate, How, Input},
    },
    units::{Bytes, WorkerId},
};

/// After a task that ran at least this long, the worker has updated its memory peak.
const LONG_MICROS: u32 = 1000;

impl PoolDriver {
    /// Reads all frames that a worker has sent.
    pub(super) fn read_frames(&mut self, worker: WorkerId) {
        let mut received = self.host.get_mut().take_received(worker);
        let mut at = 0;
        loop {
            match Reply::read(received.get(at..).unwrap_or_default()) {
                Ok(Some((frame, length))) => {
                    self.on_frame(worker, frame);
                    at += length;
                }
                Ok(None) => break,
                Err(_) => {
                    // A task may have found the socket among its descriptors and written to it.
                    // The rest of the stream cannot be parsed. The tasks of the worker are kept.
                    self.parts
                        .observer
                        .say(&format!("{worker} sent a malformed frame; killing it"));
                    self.host.get_ref().kill_child(worker);
                    return;
                }
            }
        }
        received.advance(at);
        self.host.get_mut().return_received(worker, received);
    }

    fn on_frame(&mut self, worker: WorkerId, frame: Reply<'_>) {
        let reported = Bytes(u64::from(frame.peak_kib) * 1024);
        let how = match frame.kind {
            FromWorker::Result => How::Returned,
            FromWorker::Raised => How::Raised,
            FromWorker::Unserializable => How::Unserializable,
            FromWorker::Hello => {
                if let Err(why) = frame::check_version(frame.seq) {
                    self.start_error = Some(document::error("RuntimeError", &why));
                    self.host.get_ref().kill_child(worker);
                    return self.hand_in(Input::InitializerFailed(worker));
                }
                self.parts.sink.begin();
                return self.hand_in(Input::Ready {
                    worker,
                    base: reported,
                });
            }
            FromWorker::Failed => {
                self.start_error = Some(frame.body.to_vec());
                return self.hand_in(Input::InitializerFailed(worker));
            }
            FromWorker::Reported => return self.on_report(worker, frame.seq, frame.body),
            FromWorker::NotBegun => {
                let seq = frame.seq;
                return self.hand_in(Input::NotBegun { worker, seq });
            }
        };
        self.end_task_prints(worker, frame.seq);
        // After a shorter task, the worker's figures are the same as before.
        let is_long = frame.micros >= LONG_MICROS;
        let host = self.host.get_ref();
        let now = is_long.then(|| host.peak_of_child(worker)).flatten();
        let before = self.peaks.get(&worker).copied();
        let peak = now.max(before).unwrap_or(reported);
        if now > before {
            self.peaks.insert(worker, peak);
        }
        let event = Input::Ended {
            worker,
            seq: frame.seq,
            how,
            micros: frame.micros,
            peak,
        };
        self.pool.handle_input(clock::now(), event);
        // A delivery needs the body of this frame; other actions are carried out as usual.
        while let Some(action) = self.pool.poll_action() {
            if let Action::Deliver {
                seq, attempts, ran, ..
            } = action
            {
                let id = self.tasks.remove(&seq).and_then(|task| task.id);
                self.note_delivered(worker, seq, id.as_deref());
                let verdict = self.verdict(how, attempts, frame.body);
                self.parts.sink.put(Outcome {
                    seq,
                    id,
                    worker: Some(worker),
                    micros: match frame.micros {
                        // The largest value of the frame means that the time did not fit.
                        u32::MAX => in_micros(ran).max(u64::from(u32::MAX)),
                        micros => u64::from(micros),
                    },
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

pub(super) fn in_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What the message of a failed task needs besides its fate.
#[derive(Clone, Copy, Debug)]
pub(super) struct FailureContext<'a> {
    pub(super) cap: Option<Bytes>,
    pub(super) timeout: Option<Duration>,
    /// The size of the task's arguments.
    pub(super) size: Bytes,
    /// The task was tried more than once.
    pub(super) is_retry: bool,
    /// Why no worker could be started, as JSON.
    pub(super) start_error: Option<&'a [u8]>,
}

/// The cause of a failed task, and its message.
pub(super) fn cause_and_message(fate: Fate, context: FailureContext<'_>) -> (String, String) {
    match fate {
        Fate::Cap | Fate::CapReceiving => {
            let cap = context
                .cap
                .map_or_else(String::new, |cap| format!(" of {cap}"));
            let at = match fate {
                Fate::CapReceiving => format!(" while it received the task's {}", context.size),
                _ => String::new(),
            };
            let again = if context.is_retry {
                ", even when it ran this task alone"
            } else {
                ""
            };
            let message = format!("the worker reached its cap{cap}{at}{again}");
            ("cap".to_owned(), message)
        }
        Fate::Timeout => {
            let after = context.timeout.unwrap_or_default();
            let after = humantime::format_duration(after);
            (
                "timeout".to_owned(),
                format!("the task ran longer than its timeout of {after}"),
            )
        }
        Fate::Died(ended) => {
            let cause = cause_of_end(ended);
            let message = format!("the worker ended during the task ({cause})");
            (cause, message)
        }
        Fate::StartFailed => {
            let why = context.start_error.and_then(start_errors::one_line);
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            let message = format!("no worker could be started{why}");
            (START_FAILED.to_owned(), message)
        }
    }
}

/// How an end is named in a result.
pub(super) fn cause_of_end(ended: Ended) -> String {
    match ended {
        Ended::Exit(status) => format!("exit:{status}"),
        Ended::Signal(signal) => format!("signal:{signal}"),
        Ended::Unseen => "signal:KILL".to_owned(),
    }
}
