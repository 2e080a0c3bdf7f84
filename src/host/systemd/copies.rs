//! The readiness of each copy of a fleet, if `ready.when` says how it is detected. A copy is ready
//! when it accepts connections and has, in addition, sent its message or answered its own probe.

use std::{collections::BTreeMap, sync::Arc};

use nix::sys::eventfd::EventFd;

use super::probe::{Probe, is_success};
use crate::{host::memory::procfs::Proc, supervisor::spec::ReadyWhen};

/// The readiness of copies.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// The copies that accept connections and are not known to be ready, by pid. `None`: a copy
    /// sends a message.
    waiting: BTreeMap<i32, Option<Probe>>,
    /// The processes that have sent `READY=1`, by pid, and when they were started.
    notified: BTreeMap<i32, u64>,
}

impl Copies {
    /// A copy accepts connections. Returns whether it is ready, too.
    pub(super) fn accepts(
        &mut self,
        (when, waker): (&ReadyWhen, &Arc<EventFd>),
        proc: &Proc,
        pid: i32,
    ) -> bool {
        self.waiting.retain(|pid, _| proc.stat(*pid).is_ok());
        match when {
            ReadyWhen::Auto => true,
            ReadyWhen::Notify => {
                let is_ready = self.has_notified(proc, pid);
                if !is_ready {
                    self.waiting.insert(pid, None);
                }
                is_ready
            }
            ReadyWhen::Tcp(_) | ReadyWhen::Http(_) | ReadyWhen::Delay(_) => {
                let probe = Probe::of_copy(when, pid, Arc::clone(waker));
                self.waiting.insert(pid, probe);
                false
            }
        }
    }

    /// These processes have sent `READY=1`.
    pub(super) fn on_notified(&mut self, proc: &Proc, pids: &[i32]) {
        let started = |pid: i32| proc.stat(pid).map(|stat| stat.starttime);
        self.notified
            .retain(|pid, since| started(*pid).is_ok_and(|now| now == *since));
        let new = pids
            .iter()
            .filter_map(|pid| Some((*pid, started(*pid).ok()?)));
        self.notified.extend(new);
    }

    fn has_notified(&self, proc: &Proc, pid: i32) -> bool {
        let mut tree = vec![pid];
        tree.extend(proc.descendants(pid));
        let has = |pid: &i32| {
            let since = self.notified.get(pid);
            since.is_some_and(|since| proc.stat(*pid).is_ok_and(|now| now.starttime == *since))
        };
        tree.iter().any(has)
    }

    /// The copies that are ready now, and those that have answered with a failure, by pid and
    /// status.
    pub(super) fn take(&mut self, proc: &Proc) -> Vec<(i32, Result<(), u16>)> {
        let mut known = Vec::new();
        for (&pid, probe) in &self.waiting {
            let result = match probe {
                None => self.has_notified(proc, pid).then_some(Ok(())),
                Some(probe) => probe.take().map(|status| {
                    if is_success(status) {
                        Ok(())
                    } else {
                        Err(status)
                    }
                }),
            };
            known.extend(result.map(|result| (pid, result)));
        }
        for (pid, _) in &known {
            self.waiting.remove(pid);
        }
        known
    }

    /// The copies whose readiness is not known yet.
    pub(super) fn waiting(&self) -> Vec<i32> {
        self.waiting.keys().copied().collect()
    }

    /// This start of the command is over.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn own() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn a_copy_is_ready_when_it_accepts_and_has_sent_its_message_in_either_order() {
        let (proc, waker) = (Proc::default(), Arc::new(EventFd::new().unwrap()));
        let how = (&ReadyWhen::Notify, &waker);
        let mut copies = Copies::default();
        assert!(!copies.accepts(how, &proc, own()));
        assert_eq!(
            (copies.take(&proc), copies.waiting()),
            (vec![], vec![own()])
        );
        copies.on_notified(&proc, &[own()]);
        assert_eq!(copies.take(&proc), [(own(), Ok(()))]);
        assert!(copies.take(&proc).is_empty() && copies.waiting().is_empty());
        assert!(copies.accepts(how, &proc, own()));
        copies.clear();
        assert!(!copies.accepts(how, &proc, own()));
    }

    #[test]
    fn a_message_of_another_process_does_not_make_a_copy_ready() {
        let (proc, waker) = (Proc::default(), Arc::new(EventFd::new().unwrap()));
        let mut copies = Copies::default();
        copies.on_notified(&proc, &[proc.stat(own()).unwrap().ppid]);
        assert!(!copies.accepts((&ReadyWhen::Notify, &waker), &proc, own()));
    }

    #[test]
    fn a_copy_is_ready_after_the_delay_and_at_once_without_a_condition() {
        let (proc, waker) = (Proc::default(), Arc::new(EventFd::new().unwrap()));
        let mut copies = Copies::default();
        assert!(copies.accepts((&ReadyWhen::Auto, &waker), &proc, own()));
        let delay = ReadyWhen::Delay(Duration::from_millis(20));
        assert!(!copies.accepts((&delay, &waker), &proc, own()));
        let mut polled = [PollFd::new(
            std::os::fd::AsFd::as_fd(&*waker),
            PollFlags::POLLIN,
        )];
        poll(&mut polled, PollTimeout::from(10_000_u16)).unwrap();
        assert_eq!(copies.take(&proc), [(own(), Ok(()))]);
    }
}
