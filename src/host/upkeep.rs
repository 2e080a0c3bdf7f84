//! What has to be done now and then: groups removed, limits read again, the server itself looked
//! at.

use std::time::Duration;

use super::{Host, clock, discovery::server_below, run::Run, tmpfs};
use crate::{
    supervisor::{event::Event, spec::Kind},
    units::{Bytes, Timestamp},
};

const EVERY: Duration = Duration::from_secs(1);
/// A group whose last process is still on its way out is tried again after this.
const SOON: Duration = Duration::from_millis(50);
/// What this service may have is read every so many turns.
const AVAILABLE: u64 = 5;
/// After a search for a server there is a pause of this many times its duration: 12 s after one of
/// 60 ms.
const SERVER_SEARCH_PAUSE: u32 = 200;
/// Least memory outside of processes that is reported as part of the budget.
const CONTENTS_MIN: Bytes = Bytes::mib(4);
/// Files in memory are named when they take this part of the budget.
const FILES_FROM: f64 = 0.3;

/// When it is time again.
#[derive(Debug)]
pub(super) struct Upkeep {
    next: Timestamp,
    turn: u64,
    soon: bool,
}

impl Upkeep {
    pub(super) const fn new(now: Timestamp) -> Self {
        Self {
            next: now,
            turn: 0,
            soon: false,
        }
    }

    pub(super) const fn deadline(&self) -> Timestamp {
        self.next
    }

    /// Something has ended that may leave an empty group.
    pub(super) const fn soon(&mut self) {
        self.soon = true;
    }
}

impl Host {
    pub(super) fn keep_up(&mut self, now: Timestamp) {
        if std::mem::take(&mut self.upkeep.soon) {
            self.upkeep.next = self.upkeep.next.min(now.later(SOON));
        }
        if now < self.upkeep.next {
            return;
        }
        self.upkeep.next = now.next_multiple(EVERY);
        self.upkeep.turn += 1;
        // Helpers that outlive their worker may finish what they do: their group goes after them.
        self.gone
            .retain(|group| group.remove().is_err_and(|error| !error.is_gone()));
        self.look_for_server(now);
        self.hurry_keeper(now);
        self.hold_waiting();
        self.tell_leftovers(now);
        self.sample_server();
        self.sample_charge();
        self.kills.on_turn(&self.found);
        if self.last_words.is_kept()
            && let Some(charge) = self.found.charge()
        {
            self.events.push_back(Event::Charged {
                used: charge.used,
                of: charge.of,
            });
        }
        if self.upkeep.turn.is_multiple_of(AVAILABLE)
            && let Ok(available) = self.found.available(&self.proc)
            && available != self.available
        {
            self.available = available;
            self.events.push_back(Event::Available(available));
        }
    }

    /// Finds a server that a script or an unknown launcher has started, by the running processes.
    /// Reports it once for each start.
    fn look_for_server(&mut self, now: Timestamp) {
        let is_one = matches!(self.spec.kind, Kind::Single) && self.pool.is_none();
        if !is_one || !self.spec.kind_is_guessed || self.is_job() {
            return;
        }
        let is_due = |run: &&mut Run| run.looks_for_server > 0 && run.look_for_server_at <= now;
        let Some(run) = self.run.as_mut().filter(is_due) else {
            return;
        };
        run.looks_for_server -= 1;
        let Some(root) = run.root else { return };
        let begun = clock::now();
        let found = server_below(&self.proc, root);
        let took = clock::now().since(begun);
        run.look_for_server_at = now.later(took.saturating_mul(SERVER_SEARCH_PAUSE));
        if let Some(pid) = found {
            run.looks_for_server = 0;
            let server = "gunicorn";
            self.events.push_back(Event::ServerFound { pid, server });
        }
    }

    /// Our own resident memory.
    pub fn own_memory(&self) -> Option<Bytes> {
        let own = i32::try_from(std::process::id()).ok()?;
        self.proc
            .statm(own)
            .and_then(|statm| statm.read())
            .ok()
            .map(|seen| seen.resident)
    }

    /// What the kernel holds against the budget.
    pub(super) fn sample_charge(&mut self) {
        if let Some(held) = self.groups.held() {
            self.events.push_back(Event::Held { held });
        }
        if let Some(mut contents) = self.groups.contents()
            && contents.shared.plus(contents.kernel) >= CONTENTS_MIN
        {
            // Looking through a tmpfs takes its time: it is done where its files may matter.
            if contents.shared >= self.budget.unwrap_or(self.available).scaled(FILES_FROM) {
                tmpfs::name_files(&mut contents, tmpfs::started(&self.proc));
            }
            self.events.push_back(Event::Contents(contents));
        }
    }

    /// Anonymous pages of the server itself: of its masters and of their children that are no
    /// workers. What a preloaded application shares with its workers is charged to the master.
    fn sample_server(&mut self) {
        let Some(discovery) = self.run.as_ref().and_then(|run| run.discovery.as_ref()) else {
            return;
        };
        let group = self.server_group.as_ref();
        let charged = group.and_then(super::cgroup::Group::charged);
        let anon = |pid: i32| {
            let seen = self.proc.statm(pid).and_then(|statm| statm.read()).ok()?;
            Some(seen.resident.minus(seen.shared))
        };
        let masters = discovery.masters();
        let of_masters = || {
            let each = masters.iter().filter_map(|pid| anon(*pid));
            each.fold(Bytes::ZERO, Bytes::plus)
        };
        let private = charged.map_or_else(of_masters, |(anon, _)| anon);
        self.events.push_back(Event::ServerSampled { private });
    }
}
