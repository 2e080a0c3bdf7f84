//! A worker's settings in the kernel. They are remembered, so that only changes are written.

use serde::{Deserialize, Serialize};

use crate::supervisor::{action::Priority, worker::threshold::Threshold};
use crate::units::{Bytes, Timestamp};

/// A cap is written again only if it differs by this much: two figures read one after the other
/// differ by less.
pub(crate) const CAP_STEP: Bytes = Bytes::mib(1);

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct KernelSettings {
    priority: Priority,
    cap: Option<Bytes>,
    /// Setting its cap has failed.
    cap_failed: bool,
    threshold: Option<Threshold>,
    /// It does not leave well when it is asked: it would die, or its server would stop.
    #[serde(default)]
    leaves_badly: bool,
}

impl KernelSettings {
    /// A worker that starts under this cap.
    pub(crate) const fn new(cap: Option<Bytes>) -> Self {
        Self {
            priority: Priority::Normal,
            cap,
            cap_failed: false,
            threshold: None,
            leaves_badly: false,
        }
    }

    pub(crate) const fn leaves_badly(&self) -> bool {
        self.leaves_badly
    }

    pub(crate) const fn on_leaves_badly(&mut self) {
        self.leaves_badly = true;
    }

    pub(crate) const fn cap(&self) -> Option<Bytes> {
        self.cap
    }

    pub(crate) const fn has_failed(&self) -> bool {
        self.cap_failed
    }

    pub(crate) const fn on_cap_failed(&mut self) {
        self.cap_failed = true;
    }

    /// Returns true if the priority changes.
    pub(crate) fn set_priority(&mut self, priority: Priority) -> bool {
        std::mem::replace(&mut self.priority, priority) != priority
    }

    /// Returns true if the cap changes by enough to write it again.
    pub(crate) fn set_cap(&mut self, cap: Option<Bytes>) -> bool {
        let changes = match (self.cap, cap) {
            (Some(old), Some(cap)) => old.get().abs_diff(cap.get()) >= CAP_STEP.get(),
            (old, cap) => old != cap,
        };
        if changes {
            self.cap = cap;
        }
        changes
    }

    /// The kernel enforces this cap instead of the one that was written. Returns the one that was
    /// written.
    pub(crate) const fn on_cap_in_force(&mut self, cap: Bytes) -> Option<Bytes> {
        self.cap.replace(cap)
    }

    /// Returns true if the threshold has to be set again, at this charge of the group.
    pub(crate) fn set_threshold(
        &mut self,
        now: Timestamp,
        at: Option<Bytes>,
        slack: Bytes,
    ) -> bool {
        let before = self.threshold;
        let changes = !before.is_some_and(|set| set.fits(now, at, slack));
        if changes {
            self.threshold = Some(Threshold::set(now, at, before));
        }
        changes
    }

    pub(crate) fn on_threshold_reached(&mut self, now: Timestamp) {
        if let Some(threshold) = &mut self.threshold {
            threshold.on_reached(now);
        }
    }

    /// A new supervisor took over. A threshold belongs to a descriptor of the old one and has ended
    /// with it.
    pub(crate) const fn on_taken_over(&mut self) {
        self.threshold = None;
    }
}
