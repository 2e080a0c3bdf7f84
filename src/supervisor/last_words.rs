//! What is to be read of us when nothing can be said any more: a container that passes its limit is
//! killed as a whole, supervisor included, and its pod then shows one short text
//! (`terminationMessagePath`). So the text is kept up to date before: when a worker ends for its
//! memory, when all together come near the limit, and when the service is given up.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Supervisor,
    action::Action,
    cause::Class,
    report::{Cause, End},
    tell::{end_message, span},
};
use crate::units::{Bytes, Signal, Timestamp};

/// Kubernetes keeps no more of it.
const BYTES_MAX: usize = 4096;
/// So many ends are told.
const ENDS: usize = 6;
/// It is not written more often; the last text is never held back.
const PAUSE: Duration = Duration::from_secs(1);
/// This part of the limit is near it, and this one far enough from it again.
const NEAR: f64 = 0.9;
const FAR: f64 = 0.8;
/// Nearness is told anew when it has moved by this part of the limit.
const STEP: f64 = 0.02;
/// A process that ended by itself above this part of its cap probably ended for it.
const AT_CAP: f64 = 0.9;

/// See the module.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct LastWords {
    began: Timestamp,
    /// Ends for memory, oldest first, as they are told.
    ends: VecDeque<(Cause, String)>,
    /// The end before the last moment, whatever it was.
    last_end: Option<String>,
    charge: Option<Charge>,
    near: Option<Near>,
    changed: bool,
    written: bool,
    not_before: Timestamp,
}

/// What the tightest group above us was charged with at one moment.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Charge {
    used: Bytes,
    of: Bytes,
    /// What we knew of at that moment: the charge moves on with it.
    known: Bytes,
}

/// All together are near the limit.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Near {
    used: Bytes,
    of: Bytes,
    /// The memory of the largest process that the sentence names.
    #[serde(default)]
    largest: Bytes,
    sentence: String,
}

impl LastWords {
    pub(super) const fn new(now: Timestamp) -> Self {
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

    /// Another supervisor opens the file, and empties it.
    pub(super) fn on_taken_over(&mut self) {
        self.changed = !self.ends.is_empty() || self.near.is_some();
    }

    /// An end is worth telling if it was for memory, or may have been.
    pub(super) fn on_end(&mut self, end: &End, cap: Option<Bytes>) {
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

    /// The text, the newest first. Empty: there is nothing to say.
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

    /// What to do, for each kind of trouble once.
    fn advice(&self) -> Vec<&'static str> {
        let any = |wanted: &[Cause]| self.ends.iter().any(|(cause, _)| wanted.contains(cause));
        let mut advice = Vec::new();
        if any(&[Cause::Cap]) {
            advice.push(
                "what to do: see what one request or job takes (supervise report, and the log), \
                 or give a larger --cap",
            );
        }
        if any(&[Cause::Oom, Cause::Signal(Signal::KILL)]) || self.near.is_some() {
            advice.push(
                "what to do: raise the container's memory limit, have fewer workers, or give a \
                 lower --ceiling or --budget",
            );
        }
        if any(&[Cause::BudgetKill]) {
            advice.push(
                "what to do: have fewer workers or a lower --ceiling, so that all fit into the \
                 budget",
            );
        }
        advice
    }
}

impl Supervisor {
    /// The tightest group above us is charged with so much.
    pub(super) fn on_charged(&mut self, now: Timestamp, used: Bytes, of: Bytes) {
        let known = self.known_memory();
        self.last_words.charge = Some(Charge { used, of, known });
        self.mind_nearness(now);
    }

    /// Whether all together are near the limit by now.
    pub(super) fn mind_nearness(&mut self, now: Timestamp) {
        let Some(charge) = self.last_words.charge else {
            return;
        };
        let grown = self.known_memory().minus(charge.known);
        let (used, of) = (charge.used.plus(grown).min(charge.of), charge.of);
        let words = &self.last_words;
        match &words.near {
            Some(_) if used < of.scaled(FAR) => {
                self.last_words.near = None;
                self.last_words.changed = true;
            }
            // RACE: a fast leak fills the container before its samples follow. So a sentence is
            // also renewed when the largest process has grown since.
            Some(near)
                if near.of == of
                    && used < near.used.plus(of.scaled(STEP))
                    && self.largest_memory() < near.largest.plus(of.scaled(STEP)) => {}
            None if used < of.scaled(NEAR) => {}
            Some(_) | None => {
                let since = span(now.since(words.began));
                let sentence = format!(
                    "{since} after the start: close to the limit: {used} of {of} are in use; \
                     above it the kernel ends this container (OOMKilled). {}",
                    self.largest()
                );
                self.last_words.near = Some(Near {
                    used,
                    of,
                    largest: self.largest_memory(),
                    sentence,
                });
                self.last_words.changed = true;
            }
        }
    }

    /// Writes what has changed, unless it was written just now.
    pub(super) fn mind_last_words(&mut self, now: Timestamp) {
        if self.last_words.changed && self.last_words.not_before <= now {
            self.last_words.not_before = now.later(PAUSE);
            self.write_last_words(None);
        }
    }

    pub(super) fn last_words_deadline(&self) -> Option<Timestamp> {
        let words = &self.last_words;
        words.changed.then_some(words.not_before)
    }

    /// The service is over. What went well leaves nothing to read.
    pub(super) fn close_last_words(&mut self, status: i32) {
        if status == 0 {
            if self.last_words.written {
                self.act(Action::LastWords {
                    text: String::new(),
                });
            }
            return;
        }
        let name = &self.spec.name;
        let verdict = match status {
            75 => format!(
                "{name} was given up: more than {} ends within {}; exit status 75",
                self.spec.restart.limit,
                span(self.spec.restart.window)
            ),
            125..=127 => format!("{name} could not be started; exit status {status}"),
            // A traceback is in the log, and a pod that has no message shows the end of that.
            _ if self.last_words.ends.is_empty() => return,
            _ => format!("{name} is over with exit status {status}"),
        };
        if self.last_words.ends.is_empty() {
            let last = self.last_words.last_end.clone().unwrap_or_default();
            self.write_last_words(Some(format!("{verdict}\n{last}; the log says why")));
        } else {
            self.write_last_words(Some(verdict));
        }
    }

    fn write_last_words(&mut self, verdict: Option<String>) {
        self.last_words.changed = false;
        let text = self.last_words.text(verdict);
        self.last_words.written = !text.is_empty();
        self.act(Action::LastWords { text });
    }

    /// Private memory of all that we watch.
    fn known_memory(&self) -> Bytes {
        let workers = self.workers.values();
        workers.fold(self.server_memory, |sum, worker| {
            sum.plus(worker.memory.view(None).private)
        })
    }

    fn largest_memory(&self) -> Bytes {
        let workers = self.workers.values();
        let workers = workers.map(|worker| worker.memory.view(None).private);
        workers.fold(self.server_memory, Bytes::max)
    }

    fn largest(&self) -> String {
        let mut held: Vec<_> = self
            .workers
            .iter()
            .map(|(id, worker)| (worker.memory.view(None).private, id.to_string()))
            .chain([(self.server_memory, "the server itself".to_owned())])
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
            event::Event,
            report::Who,
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
        }
    }

    /// A service that has not begun, in a group whose charge is told.
    struct Contained(Supervisor);

    impl Contained {
        fn new() -> Self {
            let spec = Spec::for_test(MemorySpec::plain());
            Self(Supervisor::new(spec, 1, Timestamp::default()))
        }

        /// What is written when so much of 1000M is in use at that millisecond.
        fn charged(&mut self, millis: u64, mib: u64) -> Vec<String> {
            let (used, of) = (Bytes::mib(mib), Bytes::mib(1000));
            self.happens(millis, Event::Charged { used, of })
        }

        fn happens(&mut self, millis: u64, event: Event) -> Vec<String> {
            let now = Timestamp::from_nanos(millis * 1_000_000);
            self.0.handle_event(now, event);
            let mut written = Vec::new();
            while let Some(action) = self.0.poll_action() {
                if let Action::LastWords { text } = action {
                    written.push(text);
                }
            }
            written
        }
    }

    #[test]
    fn nearness_is_told_once_as_it_grows_and_taken_back_when_it_is_over() {
        let mut pod = Contained::new();
        assert!(pod.charged(1000, 899).is_empty());
        let said = pod.charged(2000, 900).remove(0);
        let close = "2.0s after the start: close to the limit: 900M of 1000M are in use; ";
        assert!(said.starts_with(close), "{said}");
        assert!(pod.charged(3000, 910).is_empty(), "no news");
        let said = pod.charged(4000, 925).remove(0);
        assert!(said.contains("925M of 1000M"), "{said}");
        assert!(pod.charged(5000, 801).is_empty(), "still near");
        assert_eq!(pod.charged(6000, 799), [""]);
        assert!(pod.charged(7000, 850).is_empty());
    }

    #[test]
    fn what_a_server_has_grown_by_since_counts_at_once() {
        let mut pod = Contained::new();
        assert!(pod.charged(1000, 800).is_empty());
        let private = Bytes::mib(101);
        pod.happens(1100, Event::ServerSampled { private });
        let said = pod.happens(1200, Event::Deadline);
        assert!(said.is_empty(), "nobody looks without a sample of a worker");
        pod.0.mind_nearness(Timestamp::from_nanos(1_300_000_000));
        let said = pod.happens(1300, Event::Deadline).remove(0);
        assert!(said.contains("901M of 1000M are in use"), "{said}");
        assert!(
            said.contains("The largest: the server itself 101M"),
            "{said}"
        );
    }

    #[test]
    fn what_the_largest_holds_is_told_again_when_its_sample_follows() {
        let mut pod = Contained::new();
        let private = Bytes::mib(37);
        pod.happens(900, Event::ServerSampled { private });
        let said = pod.charged(1000, 960).remove(0);
        assert!(
            said.contains("The largest: the server itself 37M"),
            "{said}"
        );
        let private = Bytes::mib(950);
        pod.happens(2000, Event::ServerSampled { private });
        let said = pod.charged(2100, 961).remove(0);
        assert!(said.contains("961M of 1000M are in use"), "{said}");
        assert!(
            said.contains("The largest: the server itself 950M"),
            "{said}"
        );
        assert!(pod.charged(4000, 961).is_empty(), "no news");
    }

    #[test]
    fn it_is_written_at_most_once_a_second_and_never_forgotten() {
        let mut pod = Contained::new();
        assert_eq!(pod.charged(1000, 900).len(), 1);
        assert!(pod.charged(1100, 950).is_empty());
        let due = pod.0.last_words_deadline();
        assert_eq!(due, Some(Timestamp::from_nanos(2_000_000_000)));
        let said = pod.happens(2000, Event::Deadline).remove(0);
        assert!(said.contains("950M of 1000M"), "{said}");
        assert_eq!(pod.0.last_words_deadline(), None);
    }

    /// What is written after these ends.
    fn after(ends: &[End]) -> String {
        let mut words = LastWords::new(Timestamp::default());
        for end in ends {
            words.on_end(end, Some(Bytes::mib(300)));
        }
        words.text(None)
    }

    #[test]
    fn an_end_for_memory_is_told_with_what_to_do() {
        assert_eq!(
            after(&[end(Cause::Cap, 300)]),
            "42s after the start: w1 ended: cap, ended by the kernel at its cap (memory 300M, peak \
             300M, age 40s)\nwhat to do: see what one request or job takes (supervise report, and \
             the log), or give a larger --cap\n"
        );
        assert!(after(&[end(Cause::Oom, 100)]).contains("raise the container's memory limit"));
        assert!(after(&[end(Cause::BudgetKill, 100)]).contains("fewer workers"));
        let killed = Cause::Signal(Signal::KILL);
        assert!(after(&[end(killed, 100)]).contains("raise the container's memory limit"));
    }

    #[test]
    fn other_ends_leave_nothing_to_read_unless_they_were_at_the_cap() {
        for cause in [Cause::Ceiling, Cause::Stop, Cause::Exit(0), Cause::Exit(1)] {
            assert_eq!(after(&[end(cause, 100)]), "", "{cause}");
        }
        assert!(after(&[end(Cause::Exit(1), 280)]).contains("larger --cap"));
        assert_eq!(after(&[end(Cause::Ceiling, 280)]), "");
    }

    #[test]
    fn the_newest_ends_come_first_and_no_more_than_fit() {
        let ends: Vec<_> = (0..40).map(|peak| end(Cause::Cap, 100 + peak)).collect();
        let text = after(&ends);
        assert!(text.starts_with("42s after the start: w1 ended: cap"));
        assert!(text.find("peak 139M") < text.find("peak 134M"), "{text}");
        assert!(!text.contains("peak 133M"), "{text}");
        let mut words = LastWords::new(Timestamp::default());
        words.on_end(&end(Cause::Cap, 300), None);
        let text = words.text(Some("ä".repeat(3000)));
        assert_eq!(text.len(), BYTES_MAX);
    }
}
