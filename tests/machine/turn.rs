//! Decides which tests run at the same time: a test that loads the machine excludes others.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The number of slots. `.cargo/config.toml` sets the same number of test threads.
const SLOTS: u32 = 6;

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    used: 0,
    last: 0,
    next: 0,
});
static CHANGED: Condvar = Condvar::new();

/// Tests get their slots in the order of their requests. Otherwise a test that needs all slots
/// could wait until all other tests are over.
struct Queue {
    used: u32,
    last: u64,
    next: u64,
}

/// The slots of one test, until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn(u32);

/// For a test that measures: no other test runs at the same time.
pub(crate) fn alone() -> Turn {
    take(SLOTS)
}

/// For a test that keeps a server busy: it runs with one other such test, or with a few quiet
/// ones.
pub(crate) fn loaded() -> Turn {
    take(SLOTS / 2)
}

/// For a quiet test.
pub(crate) fn beside() -> Turn {
    take(1)
}

fn take(slots: u32) -> Turn {
    let mut queue = locked();
    let ticket = queue.last;
    queue.last += 1;
    while queue.next != ticket || queue.used + slots > SLOTS {
        queue = CHANGED.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
    queue.next += 1;
    queue.used += slots;
    CHANGED.notify_all();
    Turn(slots)
}

impl Drop for Turn {
    fn drop(&mut self) {
        locked().used -= self.0;
        CHANGED.notify_all();
    }
}

/// A test that fails while it holds slots leaves the counts correct, so a poisoned lock is usable.
fn locked() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}
