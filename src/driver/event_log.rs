//! The most recent events, numbered: kept for later requests, and passed to followers as they come.

use std::collections::VecDeque;

use tokio::sync::broadcast;

use crate::{
    host::clock,
    supervisor::{event::Event, event_format::EventRecord},
};

/// Maximum events that a follower may lag behind. A slower one gets the number of events it has
/// missed.
const FOLLOWERS_BEHIND: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct EventLog {
    /// The oldest first; never longer than `events_max`.
    past: VecDeque<EventRecord>,
    events_max: usize,
    next_id: u64,
    /// Passes new events to the followers.
    live: broadcast::Sender<EventRecord>,
}

impl EventLog {
    pub(super) fn new(events_max: usize) -> Self {
        Self {
            past: VecDeque::new(),
            events_max,
            next_id: 1,
            live: broadcast::channel(FOLLOWERS_BEHIND).0,
        }
    }

    /// Continues with the events of the previous binary.
    pub(super) fn take_over(&mut self, past: VecDeque<EventRecord>, next: u64) {
        self.past = past;
        self.next_id = next;
    }

    /// Numbers an event, keeps it, and passes it to the followers.
    pub(super) fn keep(&mut self, event: Event) -> EventRecord {
        let record = EventRecord {
            id: self.next_id,
            at: clock::unix_seconds(),
            mono_ns: clock::now().as_nanos(),
            event,
        };
        self.next_id += 1;
        if self.past.len() >= self.events_max {
            self.past.pop_front();
        }
        self.past.push_back(record.clone());
        // This fails without a follower.
        let _ = self.live.send(record.clone());
        record
    }

    /// The events with a greater number; without a number, all.
    pub(super) fn after(&self, id: Option<u64>) -> Vec<EventRecord> {
        let newer = self.past.iter().filter(|record| Some(record.id) > id);
        newer.cloned().collect()
    }

    /// A receiver for all further events.
    pub(super) fn follow(&self) -> broadcast::Receiver<EventRecord> {
        self.live.subscribe()
    }

    pub(super) const fn past(&self) -> &VecDeque<EventRecord> {
        &self.past
    }

    pub(super) const fn next(&self) -> u64 {
        self.next_id
    }
}
