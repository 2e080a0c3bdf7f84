//! The termination message: a short text that a Kubernetes pod shows after its container has ended
//! (`terminationMessagePath`).
//!
//! A container that passes its memory limit is killed as a whole, including the supervisor. So the
//! text is written in advance: when a worker ends because of its memory, when the service comes
//! near the limit, and when the supervisor gives up.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use crate::supervisor::{
    Supervisor,
    action::Action,
    cause::Cause,
    cause::Class,
    event::End,
    event_format::{end_message, span},
};
use crate::units::{Bytes, Signal, Timestamp};

/// The maximum size that Kubernetes keeps.
const BYTES_MAX: usize = 4096;
/// Maximum ends in the message.
const ENDS: usize = 6;
/// The least time between two writes. The last text is written without a pause.
const PAUSE: Duration = Duration::from_secs(1);
/// The service is near the limit when it uses this part of it ...
const NEAR: f64 = 0.9;
/// ... until it uses less than this part.
const FAR: f64 = 0.8;
/// The sentence about the limit is renewed when a figure has grown by this part of the limit.
const STEP: f64 = 0.02;
/// If a process ended by itself above this part of its cap, the cap is probably the reason.
const AT_CAP: f64 = 0.9;

/// The contents of the termination message.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct TerminationMessage {
    /// The start of the service.
    began: Timestamp,
    /// Ends because of memory with their sentences, oldest first.
    ends: VecDeque<(Cause, String)>,
    /// The sentence of the last end, for any reason.
    last_end: Option<String>,
    charge: Option<Charge>,
    near: Option<Near>,
    /// The text has changed since it was written.
    changed: bool,
    /// The text that was written last is not empty.
    written: bool,
    /// No earlier write.
    not_before: Timestamp,
}

/// The charge of the cgroup above the service that is nearest to its limit, at one moment.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Charge {
    used: Bytes,
    of: Bytes,
    /// The sampled memory of the service at that moment. Its growth since then is added to the
    /// charge.
    known: Bytes,
}

/// The service is near the limit.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Near {
    used: Bytes,
    of: Bytes,
    /// The memory of the largest process named in the sentence.
    #[serde(default)]
    largest: Bytes,
    sentence: String,
}

impl TerminationMessage {
    pub(crate) const fn new(now: Timestamp) -> Self {
        Self {
            began: now,
            ends: VecDeque::new(),
            last_end: None,
            charge: None,
            near: None,
            changed: false,
            written: false,
            not_before: now,
        }
    }

    /// A new supervisor took over. It has opened the file and thereby emptied it.
    pub(crate) fn on_taken_over(&mut self) {
        self.changed = !self.ends.is_empty() || self.near.is_some();
    }

    /// Adds an end to the message if memory was its reason, or may have been.
    pub(crate) fn on_end(&mut self, end: &End, cap: Option<Bytes>) {
        let mut sentence = format!(
            "{} after the start: {}",
            span(end.at.since(self.began)),
            end_message(end)
        );
        let by_itself = matches!(end.cause, Cause::Exit(1..) | Cause::Signal(_));
        let at_cap = cap.is_some_and(|cap| end.peak >= cap.scaled(AT_CAP));
        let for_memory = end.cause.class() == Class::Kernel
            || end.cause == Cause::Signal(Signal::KILL)
            || (by_itself && at_cap);
        if for_memory {
            if by_itself && at_cap {
                let cap = cap.unwrap_or_default();
                sentence.push_str(&format!("; its cap was {cap}"));
            }
            if self.ends.len() >= ENDS {
                self.ends.pop_front();
            }
            let cause = if by_itself && at_cap {
                Cause::Cap
            } else {
                end.cause
            };
            self.ends.push_back((cause, sentence.clone()));
            self.changed = true;
        }
        self.last_end = Some(sentence);
    }

    /// The text, with the newest end first. Empty: there is no message.
    fn text(&self, verdict: Option<String>) -> String {
        let mut lines: Vec<String> = verdict.into_iter().collect();
        lines.extend(self.near.as_ref().map(|near| near.sentence.clone()));
        lines.extend(self.ends.iter().rev().map(|(_, sentence)| sentence.clone()));
        lines.extend(self.advice().into_iter().map(str::to_owned));
        let mut text = lines.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        let fits = |at: &usize| text.is_char_boundary(*at);
        let end = (0..=BYTES_MAX.min(text.len())).rev().find(fits);
        text.truncate(end.unwrap_or(0));
        text
    }

    /// What the operator can do, once for each kind of problem.
    fn advice(&self) -> Vec<&'static str> {
        let any = |wanted: &[Cause]| self.ends.iter().any(|(cause, _)| wanted.contains(cause));
        let mut advice = Vec::new();
        if any(&[Cause::Cap]) {
            advice.push(
                "hint: find out what uses the memory (`supervise report`, and the log), or give a \
                 larger --cap",
            );
        }
        if any(&[Cause::Oom, Cause::Signal(Signal::KILL)]) || self.near.is_some() {
            advice.push(
                "hint: raise the container's memory limit, run fewer workers, or give a lower \
                 --ceiling or --budget",
            );
        }
        if any(&[Cause::BudgetKill]) {
            advice.push(
                "hint: run fewer workers or give a lower --ceiling, so that all workers fit into \
                 the budget",
            );
        }
        advice
    }
}

impl Supervisor {
    /// The charge of the cgroup above the service that is nearest to its limit.
    pub(crate) fn on_charged(&mut self, now: Timestamp, used: Bytes, of: Bytes) {
        let known = self.known_memory();
        self.state.termination.charge = Some(Charge { used, of, known });
        self.check_nearness(now);
    }

    /// Updates the sentence that the service is near the limit.
    pub(crate) fn check_nearness(&mut self, now: Timestamp) {
        let Some(charge) = self.state.termination.charge else {
            return;
        };
        let grown = self.known_memory().minus(charge.known);
        let (used, of) = (charge.used.plus(grown).min(charge.of), charge.of);
        let message = &self.state.termination;
        match &message.near {
            Some(_) if used < of.scaled(FAR) => {
                self.state.termination.near = None;
                self.state.termination.changed = true;
            }
            // RACE: a fast leak may fill the container before the leaking process is sampled. So
            // the sentence is also renewed when the largest process has grown.
            Some(near)
                if near.of == of
                    && used < near.used.plus(of.scaled(STEP))
                    && self.largest_memory() < near.largest.plus(of.scaled(STEP)) => {}
            None if used < of.scaled(NEAR) => {}
            Some(_) | None => {
                let since = span(now.since(message.began));
                let sentence = format!(
                    "{since} after the start: close to the limit: {used} of {of} are in use; \
                     above the limit the kernel kills this container (OOMKilled). {}",
                    self.largest()
                );
                self.state.termination.near = Some(Near {
                    used,
                    of,
                    largest: self.largest_memory(),
                    sentence,
                });
                self.state.termination.changed = true;
            }
        }
    }

    /// Writes the changed text. The next write comes after a pause.
    pub(crate) fn write_termination_message(&mut self, now: Timestamp) {
        self.state.termination.not_before = now.later(PAUSE);
        self.write_message(None);
    }

    pub(crate) fn write_termination_message_at(&self) -> Option<Timestamp> {
        let message = &self.state.termination;
        message.changed.then_some(message.not_before)
    }

    /// The service is over. Writes the final text, which is empty if the exit status is 0.
    pub(crate) fn close_termination_message(&mut self, status: i32) {
        if status == 0 {
            if self.state.termination.written {
                self.act(Action::TerminationMessage {
                    text: String::new(),
                });
            }
            return;
        }
        let name = &self.spec.name;
        let verdict = match status {
            75 => format!(
                "{name} was given up: more than {} exits within {}; exit status 75",
                self.spec.restart.limit,
                span(self.spec.restart.window)
            ),
            125..=127 => format!("{name} could not be started; exit status {status}"),
            // A traceback is in the log, and a pod that has no message shows the end of that.
            _ if self.state.termination.ends.is_empty() => return,
            _ => format!("{name} exited with status {status}"),
        };
        if self.state.termination.ends.is_empty() {
            let last = self.state.termination.last_end.clone().unwrap_or_default();
            self.write_message(Some(format!("{verdict}\n{last}; the log says why")));
        } else {
            self.write_message(Some(verdict));
        }
    }

    fn write_message(&mut self, verdict: Option<String>) {
        self.state.termination.changed = false;
        let text = self.state.termination.text(verdict);
        self.state.termination.written = !text.is_empty();
        self.act(Action::TerminationMessage { text });
    }

    /// The private memory of all workers and the server, by their last samples.
    fn known_memory(&self) -> Bytes {
        let workers = self.state.workers.values();
        workers.fold(self.state.usage.server(), |sum, worker| {
            sum.plus(worker.memory().view(None).private)
        })
    }

    fn largest_memory(&self) -> Bytes {
        let workers = self.state.workers.values();
        let workers = workers.map(|worker| worker.memory().view(None).private);
        workers.fold(self.state.usage.server(), Bytes::max)
    }

    fn largest(&self) -> String {
        let mut held: Vec<_> = self
            .state
            .workers
            .iter()
            .map(|(id, worker)| (worker.memory().view(None).private, id.to_string()))
            .chain([(self.state.usage.server(), "the server itself".to_owned())])
            .filter(|(memory, _)| *memory > Bytes::ZERO)
            .collect();
        held.sort_by(|one, other| other.cmp(one));
        held.truncate(ENDS);
        let held: Vec<_> = held
            .into_iter()
            .map(|(memory, who)| format!("{who} {memory}"))
            .collect();
        format!("The largest: {}", held.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        supervisor::{
            event::Who,
            input::Input,
            spec::{MemorySpec, Spec},
        },
        units::WorkerId,
    };

    fn end(cause: Cause, peak_mib: u64) -> End {
        End {
            who: Who::Worker(WorkerId::FIRST),
            pid: 7,
            cause,
            memory: Bytes::mib(peak_mib),
            peak: Bytes::mib(peak_mib),
            limit: None,
            age: Duration::from_secs(40),
            tasks: None,
            drain: None,
            killed: false,
            at: Timestamp::from_nanos(42_000_000_000),
            report: None,
            ran: None,
            running: None,
        }
    }

    /// A service that has not been started, in a container.
    struct Contained(Supervisor);

    impl Contained {
        fn new() -> Self {
            let spec = Spec::for_test(MemorySpec::plain());
            Self(Supervisor::new(spec, 1, Timestamp::default()))
        }

        /// Hands in that `mib` of 1000M are in use. Returns the texts that are written.
        fn charged(&mut self, millis: u64, mib: u64) -> Vec<String> {
            let (used, of) = (Bytes::mib(mib), Bytes::mib(1000));
            self.happens(millis, Input::Charged { used, of })
        }

        fn happens(&mut self, millis: u64, event: Input) -> Vec<String> {
            let now = Timestamp::from_nanos(millis * 1_000_000);
            self.0.handle_input(now, event);
            let mut written = Vec::new();
            while let Some(action) = self.0.poll_action() {
                if let Action::TerminationMessage { text } = action {
                    written.push(text);
                }
            }
            written
        }
    }

    #[test]
    fn the_sentence_about_the_limit_is_renewed_with_growth_and_removed_when_it_is_over() {
        let mut pod = Contained::new();
        assert!(pod.charged(1000, 899).is_empty());
        let text = pod.charged(2000, 900).remove(0);
        let close = "2.0s after the start: close to the limit: 900M of 1000M are in use; ";
        assert!(text.starts_with(close), "{text}");
        assert!(pod.charged(3000, 910).is_empty(), "no news");
        let text = pod.charged(4000, 925).remove(0);
        assert!(text.contains("925M of 1000M"), "{text}");
        assert!(pod.charged(5000, 801).is_empty(), "still near");
        assert_eq!(pod.charged(6000, 799), [""]);
        assert!(pod.charged(7000, 850).is_empty());
    }

    #[test]
    fn growth_of_the_server_since_the_last_charge_counts_at_once() {
        let mut pod = Contained::new();
        assert!(pod.charged(1000, 800).is_empty());
        let private = Bytes::mib(101);
        pod.happens(1100, Input::ServerSampled { private });
        let text = pod.happens(1200, Input::Deadline);
        assert!(
            text.is_empty(),
            "it is checked only after a sample of a worker"
        );
        pod.0.check_nearness(Timestamp::from_nanos(1_300_000_000));
        let text = pod.happens(1300, Input::Deadline).remove(0);
        assert!(text.contains("901M of 1000M are in use"), "{text}");
        assert!(
            text.contains("The largest: the server itself 101M"),
            "{text}"
        );
    }

    #[test]
    fn the_sentence_is_renewed_when_a_late_sample_shows_a_larger_process() {
        let mut pod = Contained::new();
        let private = Bytes::mib(37);
        pod.happens(900, Input::ServerSampled { private });
        let text = pod.charged(1000, 960).remove(0);
        assert!(
            text.contains("The largest: the server itself 37M"),
            "{text}"
        );
        let private = Bytes::mib(950);
        pod.happens(2000, Input::ServerSampled { private });
        let text = pod.charged(2100, 961).remove(0);
        assert!(text.contains("961M of 1000M are in use"), "{text}");
        assert!(
            text.contains("The largest: the server itself 950M"),
            "{text}"
        );
        assert!(pod.charged(4000, 961).is_empty(), "no news");
    }

    #[test]
    fn the_message_is_written_at_most_once_a_second_and_not_lost() {
        let mut pod = Contained::new();
        assert_eq!(pod.charged(1000, 900).len(), 1);
        assert!(pod.charged(1100, 950).is_empty());
        let due = pod.0.write_termination_message_at();
        assert_eq!(due, Some(Timestamp::from_nanos(2_000_000_000)));
        let text = pod.happens(2000, Input::Deadline).remove(0);
        assert!(text.contains("950M of 1000M"), "{text}");
        assert_eq!(pod.0.write_termination_message_at(), None);
    }

    /// The text after these ends.
    fn after(ends: &[End]) -> String {
        let mut message = TerminationMessage::new(Timestamp::default());
        for end in ends {
            message.on_end(end, Some(Bytes::mib(300)));
        }
        message.text(None)
    }

    #[test]
    fn an_end_because_of_memory_is_in_the_message_with_a_hint() {
        assert_eq!(
            after(&[end(Cause::Cap, 300)]),
            "42s after the start: w1 ended: cap, killed by the kernel at its cap (memory 300M, \
             peak 300M, age 40s)\nhint: find out what uses the memory (`supervise report`, and \
             the log), or give a larger --cap\n"
        );
        assert!(after(&[end(Cause::Oom, 100)]).contains("raise the container's memory limit"));
        assert!(after(&[end(Cause::BudgetKill, 100)]).contains("fewer workers"));
        let killed = Cause::Signal(Signal::KILL);
        assert!(after(&[end(killed, 100)]).contains("raise the container's memory limit"));
    }

    #[test]
    fn other_ends_are_not_in_the_message_unless_they_were_near_the_cap() {
        for cause in [Cause::Ceiling, Cause::Stop, Cause::Exit(0), Cause::Exit(1)] {
            assert_eq!(after(&[end(cause, 100)]), "", "{cause}");
        }
        assert!(after(&[end(Cause::Exit(1), 280)]).contains("larger --cap"));
        assert_eq!(after(&[end(Cause::Ceiling, 280)]), "");
    }

    #[test]
    fn the_newest_ends_come_first_and_the_text_is_cut_at_the_maximum_size() {
        let ends: Vec<_> = (0..40).map(|peak| end(Cause::Cap, 100 + peak)).collect();
        let text = after(&ends);
        assert!(text.starts_with("42s after the start: w1 ended: cap"));
        assert!(text.find("peak 139M") < text.find("peak 134M"), "{text}");
        assert!(!text.contains("peak 133M"), "{text}");
        let mut message = TerminationMessage::new(Timestamp::default());
        message.on_end(&end(Cause::Cap, 300), None);
        let text = message.text(Some("ä".repeat(3000)));
        assert_eq!(text.len(), BYTES_MAX);
    }
}
