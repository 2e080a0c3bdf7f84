//! The requests of each route and the one in progress, read from the page of counters
//! ([`crate::protocol::agent_routes`]).

use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt as _, sync::Arc};

use serde_json::json;

use super::{Agent, outside};
use crate::{
    protocol::agent_routes::{self, COUNTS, NAME, NAMES, Name},
    supervisor::{event::Running, routes::OTHER_ROUTES, snapshot::RouteView},
    units::{Timestamp, WorkerId},
};

/// Routes that have done requests, and the number of these requests.
pub(super) type Done = Vec<(Arc<str>, u64)>;

/// What was read before from the area of each slot.
#[derive(Debug)]
pub(super) struct RouteCounts {
    areas: BTreeMap<usize, Area>,
    other: Arc<str>,
    /// The page has areas of the known version.
    is_understood: bool,
}

/// What was read before from the area of a process.
#[derive(Debug)]
struct Area {
    pid: i32,
    counts: Vec<u64>,
    names: Vec<Option<Arc<str>>>,
}

/// Routes in a report.
const REPORTED_MAX: usize = 20;

impl Agent {
    /// Notes the growth by route, the largest first, for reports from now on.
    pub fn note_routes(&mut self, routes: &[RouteView]) {
        let document = |route: &RouteView| {
            json!({
                "route": route.route,
                "requests": route.requests,
                "growth_bytes": route.growth.get(),
                "per_request": route.per_request.get(),
                "share": (route.share * 1e3).round() / 1e3,
                "certain": route.certain,
            })
        };
        self.routes = routes.iter().take(REPORTED_MAX).map(document).collect();
    }

    /// The requests of each worker by route since the last call.
    pub fn routes(&mut self, owners: &BTreeMap<i32, WorkerId>) -> Vec<(WorkerId, Done)> {
        match &mut self.channel {
            Some(channel) => channel.page.routes(owners),
            None => Vec::new(),
        }
    }

    /// The requests by route of a worker that has ended, before [`Self::last_counts`].
    pub fn last_routes(&mut self, worker: WorkerId) -> Done {
        match &mut self.channel {
            Some(channel) => channel.page.last_routes(worker),
            None => Vec::new(),
        }
    }

    /// What a worker ran when its stack was recorded last, near its cap: `etl.py:7 load, at 92M`.
    pub fn ran(&self, worker: WorkerId) -> Option<String> {
        outside::ran(&self.channel.as_ref()?.stacks.of(worker))
    }

    /// Notes which request was in progress in a worker that has ended, before
    /// [`Self::last_counts`].
    pub fn note_running(&mut self, now: Timestamp, worker: WorkerId, pid: Option<i32>) {
        let channel = self.channel.as_mut();
        let running = channel.and_then(|channel| channel.page.running(now, worker, pid));
        self.running = running.map(|running| (worker, running));
    }

    /// The request that was in progress in the worker that has ended last.
    pub fn running(&self, worker: WorkerId) -> Option<Running> {
        let (of, running) = self.running.as_ref()?;
        (*of == worker).then(|| running.clone())
    }
}

impl RouteCounts {
    /// For a page with areas of this version. 0: it has none yet, and they are added.
    pub(super) fn of_page(file: &File, version: u64) -> Self {
        if version == 0 {
            // If this fails, agents find no areas, and count only requests of all routes together.
            let word = agent_routes::VERSION.to_ne_bytes();
            let _ = file
                .set_len(agent_routes::LENGTH as u64)
                .and_then(|()| file.write_all_at(&word, agent_routes::VERSION_AT as u64));
        }
        Self {
            areas: BTreeMap::new(),
            other: OTHER_ROUTES.into(),
            is_understood: version == 0 || version == agent_routes::VERSION,
        }
    }

    /// The path of the request that the process in a slot has begun last.
    pub(super) fn last_begun(&self, file: &File, slot: usize) -> Option<String> {
        let mut bytes = [0; agent_routes::LAST_BEGUN_LENGTH];
        let at = agent_routes::offset(slot) + agent_routes::LAST_BEGUN;
        let read = self.is_understood && file.read_exact_at(&mut bytes, at as u64).is_ok();
        let text = agent_routes::last_begun(&bytes).filter(|_| read)?;
        Some(text.to_owned())
    }

    /// The requests of the process in a slot since the last reading.
    pub(super) fn read(&mut self, file: &File, slot: usize, pid: i32) -> Done {
        let mut bytes = [0; COUNTS];
        let start = agent_routes::offset(slot);
        if !self.is_understood || file.read_exact_at(&mut bytes, start as u64).is_err() {
            return Vec::new();
        }
        let area = self.areas.entry(slot).or_insert_with(|| Area::new(pid));
        if area.pid != pid {
            *area = Area::new(pid);
        }
        let mut done = Vec::new();
        for (route, count) in agent_routes::counts(&bytes).enumerate() {
            let more = count.saturating_sub(area.counts[route]);
            if more == 0 {
                continue;
            }
            let name = match area.names.get(route) {
                Some(Some(known)) => Some(Arc::clone(known)),
                Some(None) => name(file, start + agent_routes::name_offset(route), &self.other),
                None => Some(Arc::clone(&self.other)),
            };
            // A route without a name is counted later, when its process has written the name.
            let Some(name) = name else { continue };
            area.counts[route] = count;
            if let Some(known) = area.names.get_mut(route) {
                *known = Some(Arc::clone(&name));
            }
            done.push((name, more));
        }
        done
    }
}

impl Area {
    fn new(pid: i32) -> Self {
        Self {
            pid,
            counts: vec![0; NAMES + 1],
            names: vec![None; NAMES],
        }
    }
}

/// The name at an offset of the page. An invalid one counts as `other`.
fn name(file: &File, offset: usize, other: &Arc<str>) -> Option<Arc<str>> {
    let mut bytes = [0; NAME];
    file.read_exact_at(&mut bytes, offset as u64).ok()?;
    match Name::read(&bytes) {
        Name::Missing => None,
        Name::Invalid => Some(Arc::clone(other)),
        Name::Valid(name) => Some(name.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::{
        agent::kept::Kept,
        supervisor::{action::About, cause::Cause},
        units::{Bytes, ReportId},
    };

    fn put(file: &File, at: usize, word: u64) {
        file.write_all_at(&word.to_ne_bytes(), at as u64).unwrap();
    }

    fn count(file: &File, slot: usize, route: usize, number: u64) {
        put(file, agent_routes::offset(slot) + 8 * route, number);
    }

    fn name(file: &File, slot: usize, route: usize, text: &str) {
        let at = agent_routes::offset(slot) + agent_routes::name_offset(route);
        file.write_all_at(text.as_bytes(), (at + 8) as u64).unwrap();
        put(file, at, text.len() as u64);
    }

    fn done(of: &[(&str, u64)]) -> Done {
        of.iter()
            .map(|(route, number)| ((*route).into(), *number))
            .collect()
    }

    #[test]
    fn requests_since_the_last_reading_are_read_by_the_name_of_their_route() {
        let file = tempfile::tempfile().unwrap();
        let mut routes = RouteCounts::of_page(&file, 0);
        assert_eq!(routes.read(&file, 7, 41), []);
        name(&file, 7, 0, "/a");
        count(&file, 7, 0, 3);
        // This route has no name yet, and the name of the next one is invalid.
        count(&file, 7, 1, 5);
        count(&file, 7, 2, 6);
        name(&file, 7, 2, "/\n");
        count(&file, 7, NAMES, 2);
        let expected = done(&[("/a", 3), ("other", 6), ("other", 2)]);
        assert_eq!(routes.read(&file, 7, 41), expected);
        name(&file, 7, 1, "/b");
        count(&file, 7, 0, 4);
        assert_eq!(routes.read(&file, 7, 41), done(&[("/a", 1), ("/b", 5)]));
        // Another process has claimed the slot.
        assert_eq!(
            routes.read(&file, 7, 42)[..2],
            done(&[("/a", 4), ("/b", 5)])
        );
        assert_eq!(routes.read(&file, 8, 42), []);
    }

    #[test]
    fn a_report_has_the_routes_with_the_largest_growth() {
        let mut agent = Agent::without_channel(Kept::take_over(None, 10, None));
        let route = |number: u64| RouteView {
            route: format!("/r{number}"),
            requests: 3,
            growth: Bytes(3000 - number),
            per_request: Bytes(1000),
            share: 0.5,
            certain: true,
        };
        agent.note_routes(&(0..65).map(route).collect::<Vec<_>>());
        let about = About {
            report: ReportId(1),
            worker: WorkerId::FIRST,
            pid: 7,
            cause: Cause::Cap,
            private: Bytes::mib(200),
            rss: Bytes::mib(200),
            baseline: None,
            processes: 1,
        };
        agent.keep_outside(&about, "the kernel ended it", &[], 0.0);
        let report: Value = serde_json::from_str(agent.kept().get(ReportId(1)).unwrap()).unwrap();
        let routes = report["routes"].as_array().unwrap();
        let first = json!({
            "route": "/r0", "requests": 3, "growth_bytes": 3000, "per_request": 1000,
            "share": 0.5, "certain": true,
        });
        assert_eq!((&routes[0], routes.len()), (&first, REPORTED_MAX));
    }

    #[test]
    fn a_count_that_falls_is_not_taken_for_requests() {
        let file = tempfile::tempfile().unwrap();
        let mut routes = RouteCounts::of_page(&file, 0);
        name(&file, 0, 0, "/a");
        for (number, expected) in [
            (9, &[("/a", 9)][..]),
            (3, &[]),
            (u64::MAX, &[("/a", u64::MAX - 9)]),
        ] {
            count(&file, 0, 0, number);
            assert_eq!(routes.read(&file, 0, 41), done(expected));
        }
    }

    #[test]
    fn a_page_of_another_binary_gets_areas_if_it_has_none_and_unknown_areas_are_not_read() {
        let file = tempfile::tempfile().unwrap();
        let version = || {
            let mut word = [0; 8];
            let read = file.read_exact_at(&mut word, agent_routes::VERSION_AT as u64);
            read.map(|()| u64::from_ne_bytes(word)).ok()
        };
        let mut newer = RouteCounts::of_page(&file, agent_routes::VERSION + 1);
        assert_eq!(version(), None);
        let mut routes = RouteCounts::of_page(&file, 0);
        assert_eq!(version(), Some(agent_routes::VERSION));
        assert_eq!(file.metadata().unwrap().len(), agent_routes::LENGTH as u64);
        name(&file, 0, 0, "/a");
        count(&file, 0, 0, 9);
        assert_eq!(newer.read(&file, 0, 41), []);
        assert_eq!(routes.read(&file, 0, 41), done(&[("/a", 9)]));
        // A worker has made the page shorter.
        file.set_len(1000).unwrap();
        assert_eq!(routes.read(&file, 0, 41), []);
    }
}
