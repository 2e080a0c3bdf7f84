//! The starts of workers, and those that failed in a row, after which the pool gives up.

use crate::units::WorkerId;

/// The ids of workers, and the numbers of failed starts in a row.
#[derive(Debug)]
pub(super) struct Starts {
    /// The id of the next worker.
    next_worker: WorkerId,
    /// Workers in a row whose initializer has failed.
    failed: u32,
    /// Workers in a row that have died while they started.
    deaths: u32,
    /// Templates in a row that have failed.
    template_failures: u32,
    /// A template has been ready at least once.
    has_imported: bool,
}

impl Default for Starts {
    fn default() -> Self {
        Self {
            next_worker: WorkerId::FIRST,
            failed: 0,
            deaths: 0,
            template_failures: 0,
            has_imported: false,
        }
    }
}

impl Starts {
    /// The id of a worker that starts now. No id is used twice.
    pub(super) const fn begin_worker(&mut self) -> WorkerId {
        let worker = self.next_worker;
        self.next_worker = worker.next();
        worker
    }

    pub(super) const fn on_template_ready(&mut self) {
        self.has_imported = true;
    }

    /// The template has failed. Returns how often in a row.
    pub(super) const fn on_template_failed(&mut self) -> u32 {
        self.template_failures = self.template_failures.saturating_add(1);
        self.template_failures
    }

    pub(super) const fn has_imported(&self) -> bool {
        self.has_imported
    }

    /// The initializer of a worker has failed. Returns how many have failed in a row.
    pub(super) const fn on_worker_failed(&mut self) -> u32 {
        self.failed = self.failed.saturating_add(1);
        self.failed
    }

    /// A worker has died while it started. Returns how many have died in a row.
    pub(super) const fn on_worker_died(&mut self) -> u32 {
        self.deaths = self.deaths.saturating_add(1);
        self.deaths
    }

    pub(super) const fn on_worker_ready(&mut self) {
        self.failed = 0;
        self.deaths = 0;
        self.template_failures = 0;
    }
}
