//! Histories of services that leak, that fill a cache and that do neither, and their limits.

use super::{suggestion::Suggestion, *};
use crate::supervisor::{
    cause::Cause,
    event::{Effective, Who},
};

const START: u64 = 1_700_000_000;

fn id(number: u64) -> WorkerId {
    format!("w{number}").parse().unwrap()
}

/// A service whose worker does ten tasks a second, and what it holds after each.
struct Service {
    history: History,
    now: u64,
    next: u64,
    done: u64,
    mode: &'static str,
    counts: bool,
}

impl Service {
    fn new() -> Self {
        Self {
            history: History::default(),
            now: START,
            next: 1,
            done: 0,
            mode: "server",
            counts: true,
        }
    }

    /// A worker lives for this time, warms up in the first two seconds, and ends like this.
    fn live(&mut self, seconds: u64, cause: Option<Cause>, memory: impl Fn(u64) -> Bytes) {
        let worker = id(self.next);
        self.next += 1;
        for second in 0..seconds {
            self.now += 1;
            self.done += 10;
            let observed = Observed {
                worker,
                age: Duration::from_secs(second),
                tasks: self.counts.then_some(second * 10),
                memory: Some(memory(second)),
                warm: second >= 2,
            };
            let limit = |size| Effective {
                bytes: Some(size),
                from: String::new(),
            };
            let observation = Observation {
                limits: Limits {
                    available: Bytes::mib(4096),
                    ceiling: limit(Bytes::mib(500)),
                    cap: limit(Bytes::mib(1000)),
                    budget: limit(Bytes::mib(2048)),
                },
                mode: self.mode.to_owned(),
                server: Bytes::mib(48),
                memory: memory(second),
                tasks: self.counts.then_some(self.done),
                workers: vec![observed],
            };
            self.history.observe(self.now, &observation);
        }
        let Some(cause) = cause else { return };
        self.history.on_ended(
            self.now,
            &End {
                who: Who::Worker(worker),
                pid: 1,
                cause,
                memory: memory(seconds - 1),
                peak: memory(seconds - 1),
                limit: None,
                age: Duration::from_secs(seconds),
                tasks: self.counts.then_some(seconds * 10),
                drain: None,
                killed: false,
                at: Timestamp::ZERO,
                report: None,
                ran: None,
                running: None,
            },
        );
    }

    fn suggest(&self) -> Suggestion {
        self.history.check().unwrap();
        let text = serde_json::to_string(&self.history).unwrap();
        let read: History = serde_json::from_str(&text).unwrap();
        read.check().unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        self.history.suggest()
    }

    fn limits(&self) -> suggestion::Limits {
        let suggestion = self.suggest();
        suggestion
            .limits
            .unwrap_or_else(|| panic!("{suggestion:#?}"))
    }
}

fn mib(size: Bytes) -> u64 {
    size.get() >> 20
}

#[test]
fn a_service_that_does_not_leak_gets_a_quarter_more_than_it_needs() {
    let mut service = Service::new();
    for _ in 0..3 {
        service.live(300, Some(Cause::Request), |second| {
            Bytes::mib(200 + second % 3)
        });
    }
    let limits = service.limits();
    assert_eq!(mib(limits.ceiling.unwrap()), 253);
    assert_eq!(mib(limits.cap), 506);
    // (2048 - 48) / 253 = 7, and one of them is the replacement.
    assert_eq!(limits.workers, Some(6));
    assert_eq!((limits.tasks_per_life, limits.life_s), (None, None));
    assert!(!limits.lower_bound);
}

#[test]
fn what_a_worker_leaks_is_not_needed() {
    let mut service = Service::new();
    for _ in 0..4 {
        // 1 MiB a second is 100 KiB a task.
        service.live(200, Some(Cause::Ceiling), |second| {
            Bytes::mib(200 + second + 20 * (second % 2))
        });
    }
    let suggestion = service.suggest();
    let limits = suggestion.limits.unwrap();
    let ceiling = mib(limits.ceiling.unwrap());
    assert!((270..=290).contains(&ceiling), "{suggestion:#?}");
    let growth = suggestion.seen.growth_per_task.unwrap();
    assert!((95e3..115e3).contains(&growth), "{growth}");
    let tasks = limits.tasks_per_life.unwrap();
    assert!((400..800).contains(&tasks), "{tasks}");
    let text = suggestion.summary().text;
    assert!(
        text.starts_with(&format!("the dry run suggests --ceiling {ceiling}M ")),
        "{text}"
    );
    assert!(text.contains(", or --ceiling 3"), "{text}");
    assert_eq!(mib(suggestion.seen.peak), 200 + 199 + 20);
}

#[test]
fn without_counted_tasks_a_leak_is_growth_in_time() {
    let mut service = Service::new();
    service.counts = false;
    for _ in 0..3 {
        service.live(200, Some(Cause::Ceiling), |second| Bytes::mib(100 + second));
    }
    let limits = service.limits();
    assert_eq!(limits.tasks_per_life, None);
    let life = limits.life_s.unwrap();
    assert!((20..40).contains(&life), "{life}");
    assert!((125..=135).contains(&mib(limits.ceiling.unwrap())));
}

#[test]
fn workers_that_do_not_count_tasks_do_not_change_the_growth_per_task() {
    let mut service = Service::new();
    for counts in [true, false, false, true, true, false] {
        service.counts = counts;
        service.live(200, Some(Cause::Ceiling), |second| Bytes::mib(100 + second));
    }
    let growth = service.suggest().seen.growth_per_task.unwrap();
    assert!((95e3..115e3).contains(&growth), "{growth}");
}

#[test]
fn a_cache_that_is_full_is_needed() {
    let mut service = Service::new();
    for _ in 0..3 {
        service.live(600, Some(Cause::Request), |second| {
            Bytes::mib(100 + second.min(150))
        });
    }
    let limits = service.limits();
    assert_eq!(mib(limits.ceiling.unwrap()), 313);
    assert_eq!(limits.tasks_per_life, None);
}

#[test]
fn a_rare_large_worker_stays_below_the_ceiling() {
    let mut service = Service::new();
    for _ in 0..150 {
        service.live(2000, Some(Cause::Request), |_| Bytes::mib(100));
    }
    service.live(60, Some(Cause::Request), |_| Bytes::mib(400));
    assert_eq!(mib(service.limits().ceiling.unwrap()), 400);
}

#[test]
fn a_start_that_needs_more_raises_the_cap_only() {
    let mut service = Service::new();
    for _ in 0..3 {
        service.live(100, Some(Cause::Request), |second| {
            Bytes::mib(if second < 2 { 800 } else { 100 })
        });
    }
    let limits = service.limits();
    assert_eq!(mib(limits.ceiling.unwrap()), 125);
    assert_eq!(mib(limits.cap), 1000);
}

#[test]
fn after_kills_at_the_cap_the_figures_are_a_lower_bound() {
    let mut service = Service::new();
    for cause in [Cause::Request, Cause::Cap, Cause::Request] {
        service.live(100, Some(cause), |_| Bytes::mib(100));
    }
    let suggestion = service.suggest();
    assert_eq!(suggestion.seen.cut, 1);
    assert!(suggestion.limits.unwrap().lower_bound);
}

#[test]
fn too_little_is_named() {
    let mut service = Service::new();
    assert!(service.suggest().limits.is_none());
    for _ in 0..2 {
        service.live(100, Some(Cause::Request), |_| Bytes::mib(100));
    }
    let missing = service.suggest().missing.join("; ");
    assert!(missing.contains("3 workers"), "{missing}");
    assert!(missing.contains("seen: 2"), "{missing}");
    assert!(missing.contains("1000 requests"), "{missing}");
    // A worker that lived too briefly to show anything does not count.
    service.live(3, Some(Cause::Request), |_| Bytes::mib(100));
    assert!(service.suggest().limits.is_none());
    // One worker that goes on is enough after ten minutes.
    service.live(700, None, |_| Bytes::mib(100));
    assert_eq!(mib(service.limits().ceiling.unwrap()), 125);
}

#[test]
fn a_job_gets_a_cap_from_its_highest_peak() {
    let mut service = Service::new();
    service.mode = "job";
    assert!(service.suggest().limits.is_none());
    service.live(5, Some(Cause::Exit(0)), |second| Bytes::mib(100 * second));
    let limits = service.limits();
    assert_eq!((limits.ceiling, mib(limits.cap)), (None, 500));
}

#[test]
fn lives_and_their_points_are_bounded() {
    let mut service = Service::new();
    for number in 0..400 {
        service.live(30, Some(Cause::Request), |second| {
            Bytes::mib(number + second)
        });
    }
    service.live(100_000, None, |second| Bytes::mib(100 + second % 1000));
    service.suggest();
    let text = serde_json::to_string(&service.history).unwrap();
    assert!(text.len() < 400 << 10, "{}", text.len());
}

#[test]
fn a_worker_that_runs_is_gone_after_a_restart() {
    let mut service = Service::new();
    service.live(100, None, |_| Bytes::mib(100));
    service.history.on_restarted();
    service.next = 1;
    service.live(100, None, |_| Bytes::mib(100));
    let seen = service.suggest().seen;
    assert_eq!((seen.workers, seen.ended), (2, 1));
}

#[test]
fn a_history_of_another_shape_is_refused() {
    let mut service = Service::new();
    service.live(100, None, |_| Bytes::mib(100));
    let text = serde_json::to_string(&service.history).unwrap();
    for (from, to) in [
        ("\"format\":1", "\"format\":2"),
        ("\"every_s\":60", "\"every_s\":61"),
        ("\"cause\":null", "\"cause\":\"\u{1b}[2J\""),
        ("\"worker\":\"w1\"", "\"worker\":\"1\""),
        ("\"every_s\":8,\"points\"", "\"every_s\":0,\"points\""),
    ] {
        let forged = text.replace(from, to);
        assert_ne!(forged, text, "{from}");
        let read = serde_json::from_str::<History>(&forged);
        assert!(read.is_err() || read.unwrap().check().is_err(), "{to}");
    }
}
