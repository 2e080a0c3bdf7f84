//! Which routes of a service keep memory: the requests of each route, and the growth that its
//! requests cause in all workers together.
//!
//! The workers count their requests by route. A *window* is the time between two readings of the
//! counts and of the memory of a worker. `estimate` attributes the growth in all windows to the
//! routes, and to a background that does not depend on requests.
//!
//! Windows have different lengths. In windows of a second, each route of a service with a steady
//! load always has the same number of requests, which says nothing; in short windows it does not.
//! And a request that takes long begins and ends in the same window only if that is long.
//!
//! Growth that no request causes is left out: windows while a worker starts, drains or is asked by
//! the supervisor, and the first window in which a worker serves a route, because of imports.
//!
//! An upgrade does not hand this over: requests and growth are counted from the start of each
//! supervisor.

mod estimate;
mod matrix;
mod regression;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use crate::supervisor::{Supervisor, action::Action, input::Resident, snapshot::RouteView};
use crate::units::{Bytes, Timestamp, WorkerId, scaled};
use estimate::Estimate;
use regression::Coefficient;

/// Routes that are told apart. All others are counted together.
pub const ROUTES_MAX: usize = 64;
/// The name of all other routes.
pub const OTHER_ROUTES: &str = "other";

/// More requests in a window were not counted by the agent, but written by the application.
const REQUESTS_MAX: u64 = 10_000_000;

/// Column of the regression: all other routes.
const OTHER: usize = ROUTES_MAX;
/// Column of the regression: seconds.
const BACKGROUND: usize = ROUTES_MAX + 1;
const COLUMNS: usize = ROUTES_MAX + 2;

/// The time from one reading to the next in milliseconds, one after the other. These are primes, so
/// that readings do not keep step with requests that come at regular intervals.
const WINDOWS: [u64; 6] = [53, 101, 199, 397, 797, 1601];
/// Windows are twice as long from this number of workers on, three times from twice this number on,
/// and so on, because reading takes longer.
const WORKERS_MAX: usize = 50;
/// The time between two readings while no worker has requests.
const IDLE: Duration = Duration::from_secs(1);
/// A worker without requests for this time is idle. Its windows are left out.
const IDLE_AFTER: Duration = Duration::from_secs(2);
/// A window in this time after the first request of a worker is left out.
const START: Duration = Duration::from_secs(3);

/// Requests and growth of all routes.
#[derive(Debug, Default)]
pub(super) struct Routes {
    columns: BTreeMap<Arc<str>, usize>,
    /// Requests of each column, since the start.
    requests: Vec<u64>,
    windows: BTreeMap<WorkerId, Window>,
    /// Made with the first window.
    estimate: Option<Estimate>,
    /// The length of all windows together.
    observed: Duration,
    next: Timestamp,
    /// The number of the last reading.
    reading: usize,
}

/// The current window of a worker.
#[derive(Debug, Default)]
struct Window {
    /// The reading at its start. `None`: it starts with the next reading.
    start: Option<Start>,
    /// When the first and the last request were seen.
    used: Option<(Timestamp, Timestamp)>,
    /// Columns that had requests in earlier windows, as bits.
    seen: u128,
}

/// The memory of a worker at the start of a window.
#[derive(Clone, Copy, Debug)]
struct Start {
    at: Timestamp,
    memory: Resident,
}

impl Window {
    /// Ends the window, and starts the next one. Returns its length and the growth, if it is one to
    /// learn from. `memory`: `None` if something else than requests may have changed it.
    fn end(
        &mut self,
        now: Timestamp,
        memory: Option<Resident>,
        requests: &BTreeMap<usize, u64>,
    ) -> Option<(Duration, f64)> {
        let bits = requests.keys().fold(0, |bits, column| bits | 1 << column);
        let is_new = bits & !self.seen != 0;
        self.seen |= bits;
        if bits != 0 {
            let first = self.used.map_or(now, |(first, _)| first);
            self.used = Some((first, now));
        }
        let start = self.start.take();
        self.start = memory.map(|memory| Start { at: now, memory });
        let (start, memory, (first, last)) = (start?, memory?, self.used?);
        let is_early = start.at < first.later(START);
        let is_idle = now.since(last) >= IDLE_AFTER;
        let is_same = start.memory.processes == memory.processes;
        (is_same && !is_new && !is_early && !is_idle).then(|| {
            let growth = memory.anon.as_f64() - start.memory.anon.as_f64();
            (now.since(start.at), growth)
        })
    }
}

impl Routes {
    /// A reading: the requests of a worker since the last one, and its memory if that is known and
    /// nothing but requests has changed it.
    fn read(
        &mut self,
        now: Timestamp,
        worker: WorkerId,
        done: Vec<(Arc<str>, u64)>,
        memory: Option<Resident>,
    ) {
        let requests = self.count(done);
        if !requests.is_empty() {
            self.next = self.planned(now);
        }
        let window = self.windows.entry(worker).or_default();
        let Some((lasts, growth)) = window.end(now, memory, &requests) else {
            return;
        };
        self.observed = self.observed.saturating_add(lasts);
        let routes = requests.iter().map(|(at, number)| (*at, float(*number)));
        let requests: Vec<_> = routes.chain([(BACKGROUND, lasts.as_secs_f64())]).collect();
        let estimate = self.estimate.get_or_insert_with(|| Estimate::new(COLUMNS));
        estimate.add(now, &requests, growth);
    }

    /// Adds up requests. Returns them by column.
    fn count(&mut self, done: Vec<(Arc<str>, u64)>) -> BTreeMap<usize, u64> {
        self.requests.resize(COLUMNS, 0);
        let mut requests = BTreeMap::new();
        for (route, number) in done {
            let free = self.columns.len();
            let column = match self.columns.entry(route) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) if free < ROUTES_MAX && **new.key() != *OTHER_ROUTES => {
                    *new.insert(free)
                }
                Entry::Vacant(_) => OTHER,
            };
            let number = number.min(REQUESTS_MAX);
            let sum: &mut u64 = requests.entry(column).or_default();
            *sum = sum.saturating_add(number);
            self.requests[column] = self.requests[column].saturating_add(number);
        }
        requests
    }

    /// When the reading after the one at `now` is due, if there are requests.
    fn planned(&self, now: Timestamp) -> Timestamp {
        let millis = WINDOWS[self.reading % WINDOWS.len()];
        let times = u32::try_from(self.windows.len() / WORKERS_MAX).unwrap_or(u32::MAX);
        now.later(Duration::from_millis(millis).saturating_mul(times.saturating_add(1)))
    }

    /// The memory of a worker changes for a reason other than its requests.
    pub(super) fn disturb(&mut self, worker: WorkerId) {
        if let Some(window) = self.windows.get_mut(&worker) {
            window.start = None;
        }
    }

    /// All routes, the one with the largest growth first.
    fn view(&self) -> Vec<RouteView> {
        let coefficients = match &self.estimate {
            Some(estimate) => estimate.coefficients(),
            None => vec![Coefficient::UNKNOWN; COLUMNS],
        };
        let growth = |column: usize| {
            let requests = self.requests.get(column).copied().unwrap_or_default();
            scaled(requests, coefficients[column].value)
        };
        let background = coefficients[BACKGROUND].value * self.observed.as_secs_f64();
        let all = (0..=OTHER).map(|column| float(growth(column))).sum::<f64>() + background;
        let other: Arc<str> = OTHER_ROUTES.into();
        let columns = self.columns.iter().map(|(route, column)| (route, *column));
        let columns = columns.chain([(&other, OTHER)]);
        let mut routes: Vec<RouteView> = columns
            .map(|(route, column)| {
                let coefficient = coefficients[column];
                RouteView {
                    route: route.to_string(),
                    requests: self.requests.get(column).copied().unwrap_or_default(),
                    growth: Bytes(growth(column)),
                    per_request: Bytes(scaled(1, coefficient.value)),
                    share: if all > 0.0 {
                        float(growth(column)) / all
                    } else {
                        0.0
                    },
                    certain: coefficient.is_certain(),
                }
            })
            .filter(|route| route.requests > 0)
            .collect();
        routes.sort_by(|one, other| {
            let key = |route: &RouteView| (route.growth, route.requests);
            key(other)
                .cmp(&key(one))
                .then_with(|| one.route.cmp(&other.route))
        });
        routes
    }
}

impl Supervisor {
    /// All routes, the one with the largest growth first.
    pub fn routes(&self) -> Vec<RouteView> {
        self.routes.view()
    }

    /// When to read the counts and the memory of all workers next.
    pub(super) fn read_routes_at(&self) -> Option<Timestamp> {
        let mut workers = self.state.workers.values();
        let any = workers.any(|worker| worker.requests().is_loaded());
        any.then_some(self.routes.next)
    }

    pub(super) fn read_routes(&mut self, now: Timestamp) {
        let workers = &self.state.workers;
        self.routes
            .windows
            .retain(|id, _| workers.get(id).is_some());
        self.routes.reading = self.routes.reading.wrapping_add(1);
        self.routes.next = now.later(Duration::from_nanos(1)).next_multiple(IDLE);
        self.act(Action::ReadRoutes);
    }

    /// Requests of a worker by route since the last reading, and its memory at this moment.
    pub(super) fn on_routes_read(
        &mut self,
        now: Timestamp,
        id: WorkerId,
        done: Vec<(Arc<str>, u64)>,
        memory: Option<Resident>,
    ) {
        let Some(worker) = self.state.workers.get(&id) else {
            return;
        };
        let is_asked = worker.requests().pending().is_some() || worker.tracing().is_open();
        let is_steady = worker.is_ready() && !worker.is_leaving() && !is_asked;
        let memory = memory.filter(|_| is_steady);
        self.routes.read(now, id, done, memory);
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "numbers of requests and sizes are far below 2^53"
)]
const fn float(number: u64) -> f64 {
    number as f64
}
