//! The actions and events that were decided on and are not polled yet.

use std::collections::VecDeque;

use crate::supervisor::event::Event;

/// The pending actions and events, oldest first.
#[derive(Debug)]
pub(super) struct Outbox<Action> {
    actions: VecDeque<Action>,
    events: VecDeque<Event>,
}

impl<Action> Outbox<Action> {
    pub(super) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(super) fn emit(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(super) fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

impl<Action> Default for Outbox<Action> {
    fn default() -> Self {
        Self {
            actions: VecDeque::new(),
            events: VecDeque::new(),
        }
    }
}
