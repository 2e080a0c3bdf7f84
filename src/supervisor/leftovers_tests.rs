//! When a leftover process of a worker is reported, and when it is ended.

use super::*;
use crate::{
    supervisor::{
        input::{Input, Machine},
        spec::{Limit, MemorySpec, Spec},
    },
    units::Size,
};

/// A service with a budget of 300M, in which workers leave processes behind.
struct Service(Supervisor);

impl Service {
    fn new(leftovers: Mode) -> Self {
        let memory = MemorySpec {
            budget: Limit::At(Size::Bytes(Bytes::mib(300))),
            ..MemorySpec::plain()
        };
        let mut spec = Spec::for_test(memory);
        spec.recycle.leftovers = leftovers;
        let mut service = Self(Supervisor::new(spec, 1, Timestamp::default()));
        for event in [
            Input::Machine(Machine::default()),
            Input::Available(Bytes::mib(1000)),
        ] {
            service.happens(0, event);
        }
        service
    }

    fn happens(&mut self, seconds: u64, event: Input) -> (Vec<(i32, Signal)>, Vec<Event>) {
        let now = Timestamp::default().later(Duration::from_secs(seconds));
        self.0.handle_input(now, event);
        let actions = std::iter::from_fn(|| self.0.poll_action());
        let ended = actions.filter_map(|action| {
            let Action::EndLeftover { process, signal } = action else {
                return None;
            };
            Some((process.0, signal))
        });
        let ended = ended.collect();
        let events = std::iter::from_fn(|| self.0.poll_event());
        let about = |event: &Event| {
            matches!(
                event,
                Event::LeftBehind(_) | Event::LeftoverEnded(..) | Event::Warning(_)
            )
        };
        (ended, events.filter(about).collect())
    }

    /// Hands in the leftovers found at that second. Returns the signalled processes, and the kinds
    /// of events.
    fn left(
        &mut self,
        seconds: u64,
        found: &[Leftover],
    ) -> (Vec<(i32, Signal)>, Vec<&'static str>) {
        let (ended, events) = self.happens(seconds, Input::LeftBehind(found.to_vec()));
        (ended, events.iter().map(Event::kind).collect())
    }
}

fn browser(pid: i32, tree: i32, idle_s: u64) -> Leftover {
    Leftover {
        worker: WorkerId::FIRST,
        pid,
        started: 7,
        tree,
        command: "chrome --headless".to_owned(),
        memory: Bytes::mib(30),
        idle: Duration::from_secs(idle_s),
    }
}

#[test]
fn a_leftover_is_reported_and_ended_once_it_is_idle() {
    let mut service = Service::new(Mode::End);
    assert_eq!(service.left(1, &[browser(5, 5, 0)]), (vec![], vec![]));
    let (ended, events) = service.left(2, &[browser(5, 5, 1)]);
    assert_eq!((ended, events), (vec![], vec!["left-behind"]));
    assert_eq!(service.left(5, &[browser(5, 5, 4)]), (vec![], vec![]));
    let (ended, events) = service.left(6, &[browser(5, 5, 5)]);
    assert_eq!(
        (ended, events),
        (vec![(5, Signal::TERM)], vec!["leftover-ended"])
    );
    assert_eq!(service.left(7, &[browser(5, 5, 6)]), (vec![], vec![]));
    // The process ignores SIGTERM.
    let (ended, events) = service.left(8, &[browser(5, 5, 7)]);
    assert_eq!((ended, events), (vec![(5, Signal::KILL)], vec![]));
    assert_eq!(service.left(9, &[]), (vec![], vec![]));
    let now = Timestamp::default();
    let view = service.0.snapshot(now);
    assert_eq!((view.leftovers.len(), view.leftovers_ended), (0, 1));
}

#[test]
fn one_active_process_keeps_its_whole_tree() {
    let mut service = Service::new(Mode::End);
    let tree = |idle| [browser(5, 5, idle), browser(6, 5, 0), browser(9, 9, idle)];
    for second in 1..60 {
        let (ended, _) = service.left(second, &tree(second));
        let other = (second >= 5).then_some(9);
        assert!(
            ended.iter().all(|(pid, _)| Some(*pid) == other),
            "{ended:?}"
        );
    }
    let (ended, _) = service.left(60, &[browser(5, 5, 60), browser(6, 5, 5)]);
    assert_eq!(ended, [(5, Signal::TERM), (6, Signal::TERM)]);
}

#[test]
fn if_the_budget_is_short_the_largest_tree_is_killed_at_once() {
    let mut service = Service::new(Mode::End);
    let large = Leftover {
        memory: Bytes::mib(90),
        ..browser(6, 6, 0)
    };
    let (ended, _) = service.left(1, &[browser(5, 5, 0), large.clone()]);
    assert_eq!(ended, []);
    service.happens(
        2,
        Input::Held {
            held: Bytes::mib(290),
        },
    );
    let (ended, events) = service.left(2, &[browser(5, 5, 0), large]);
    assert_eq!(ended, [(6, Signal::KILL)]);
    assert!(events.contains(&"leftover-ended"), "{events:?}");
}

#[test]
fn with_leftovers_set_to_tell_a_process_is_reported_once_and_not_ended() {
    let mut service = Service::new(Mode::Tell);
    service.left(1, &[browser(5, 5, 0)]);
    let (ended, events) = service.left(2, &[browser(5, 5, 1)]);
    assert_eq!((ended, events), (vec![], vec!["warning", "left-behind"]));
    service.happens(
        3,
        Input::Held {
            held: Bytes::mib(299),
        },
    );
    assert_eq!(service.left(60, &[browser(5, 5, 59)]), (vec![], vec![]));
}

#[test]
fn a_later_process_with_the_same_pid_is_a_new_leftover() {
    let mut service = Service::new(Mode::End);
    service.left(1, &[browser(5, 5, 4)]);
    let (ended, _) = service.left(2, &[browser(5, 5, 5)]);
    assert_eq!(ended, [(5, Signal::TERM)]);
    let next = Leftover {
        started: 8,
        ..browser(5, 5, 0)
    };
    for second in 3..9 {
        assert_eq!(service.left(second, std::slice::from_ref(&next)).0, []);
    }
}
