//! Memory that does not belong to workers: the server's own, and other contents of the budget.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::supervisor::{input::Contents, snapshot::HelperView};
use crate::units::{Bytes, Timestamp};

/// The least time between two events about memory pressure.
const PRESSURE_EVENT_PAUSE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Usage {
    /// Private memory of the server's own processes.
    server: Bytes,
    /// The last charge of the service's cgroups, without what the kernel can reclaim.
    #[serde(skip)]
    held: Bytes,
    #[serde(skip)]
    contents: Contents,
    /// The server's processes that are neither its main process nor workers.
    #[serde(skip)]
    helpers: Vec<HelperView>,
    /// No earlier event about pressure.
    #[serde(skip)]
    next_pressure_event: Timestamp,
}

impl Usage {
    pub(super) const fn server(&self) -> Bytes {
        self.server
    }

    pub(super) const fn on_server_sampled(&mut self, private: Bytes) {
        self.server = private;
    }

    pub(super) fn helpers(&self) -> &[HelperView] {
        &self.helpers
    }

    pub(super) fn on_helpers(&mut self, helpers: Vec<HelperView>) {
        self.helpers = helpers;
    }

    pub(super) const fn held(&self) -> Bytes {
        self.held
    }

    /// Returns true if the charge is larger than before.
    pub(super) fn on_held(&mut self, held: Bytes) -> bool {
        std::mem::replace(&mut self.held, held) < held
    }

    /// A worker has ended. The last reading still includes its charge.
    pub(super) const fn forget_held(&mut self) {
        self.held = Bytes::ZERO;
    }

    /// What the budget is charged with besides the memory of workers.
    pub(super) const fn contents(&self) -> &Contents {
        &self.contents
    }

    pub(super) fn on_contents(&mut self, contents: Contents) {
        self.contents = contents;
    }

    /// The kernel reports memory pressure. Returns true if an event should be emitted.
    pub(super) fn on_pressure(&mut self, now: Timestamp) -> bool {
        let is_due = now >= self.next_pressure_event;
        if is_due {
            self.next_pressure_event = now.later(PRESSURE_EVENT_PAUSE);
        }
        is_due
    }
}
