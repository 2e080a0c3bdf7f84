//! Passes the tasks of the source to the pool.

use std::time::Duration;

use super::PoolDriver;
use crate::{
    queue::{Detail, Failure, Given},
    supervisor::pool::input::Input,
};

/// Maximum keys with separate estimates.
const KEYS_MAX: u32 = 4000;

impl PoolDriver {
    pub(super) fn take_given(&mut self) {
        for given in std::mem::take(&mut self.given) {
            self.parts.sink.expect(given.seq());
            match given {
                Given::Task(task) => {
                    let key = self.key_of(task.key.as_deref());
                    let seq = task.seq;
                    self.tasks.insert(seq, task);
                    self.own.push_back(Input::TaskArrived { seq, key });
                }
                Given::Bad {
                    seq,
                    id,
                    message,
                    is_text,
                } => {
                    if is_text && !std::mem::replace(&mut self.hinted_plain, true) {
                        self.parts.observer.say(&format!(
                            "line {seq} is not JSON. hint: --plain takes each line as a string"
                        ));
                    }
                    let failure = Failure {
                        cause: "unreadable".to_owned(),
                        attempts: 0,
                        detail: Detail::Message(message),
                    };
                    self.put_failure((seq, id), (None, Duration::ZERO, None), failure);
                    self.own.push_back(Input::Unreadable);
                }
            }
        }
        if self.source_ended {
            self.own.push_back(Input::SourceEnded);
        }
    }

    fn key_of(&mut self, key: Option<&str>) -> u32 {
        let Some(key) = key else { return 0 };
        if let Some(known) = self.keys.get(key) {
            return *known;
        }
        let new = u32::try_from(self.keys.len() + 1).unwrap_or(0);
        // Further keys share the estimates of tasks without a key, so that memory stays bounded.
        if new > KEYS_MAX {
            return 0;
        }
        self.keys.insert(key.into(), new);
        new
    }
}
