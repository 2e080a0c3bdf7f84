//! The snapshot as Prometheus text (exposition format 0.0.4). docs/metrics.md lists every name.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
};

use crate::{
    supervisor::{
        input::Agent,
        snapshot::{PoolView, RouteView, Snapshot, WorkerView},
    },
    units::Bytes,
};

/// Information about the supervisor that a snapshot does not have.
#[derive(Clone, Debug)]
pub struct Own {
    /// The supervisor's version.
    pub version: String,
    /// Its start, in Unix seconds.
    pub started: f64,
    /// Its resident memory.
    pub rss: Bytes,
    /// Lines of its log that were lost.
    pub lost_log_lines: u64,
}

/// Causes that are shown from the start with 0, so that the first end of a kind is a visible
/// increase.
const PLANNED: [&str; 5] = ["age", "budget", "ceiling", "reload", "request"];
const UNPLANNED: [&str; 3] = ["budget-kill", "cap", "oom"];

/// The page.
pub fn render(snapshot: &Snapshot, own: &Own) -> String {
    let mut page = Page::default();
    of_service(&mut page, snapshot, own);
    of_limits(&mut page, snapshot);
    of_workers(&mut page, &snapshot.workers);
    of_tasks(&mut page, snapshot);
    of_routes(&mut page, &snapshot.routes);
    if let Some(pool) = &snapshot.pool {
        of_pool(&mut page, pool);
    }
    of_agents(&mut page, &snapshot.workers);
    page.family(
        "supervise_recycles_total",
        "counter",
        "Workers replaced on purpose, by cause.",
    );
    page.by("cause", &PLANNED, &snapshot.recycles);
    page.family(
        "supervise_leftover_processes",
        "gauge",
        "Processes that outlived the worker which started them.",
    );
    let left = &snapshot.leftovers;
    let processes: u32 = left.iter().map(|one| one.processes).sum();
    page.sample(&[], processes);
    page.family(
        "supervise_leftover_memory_bytes",
        "gauge",
        "Memory of these processes.",
    );
    let memory = left
        .iter()
        .fold(Bytes::ZERO, |sum, one| sum.plus(one.memory));
    page.sample(&[], memory.get());
    page.family(
        "supervise_leftovers_ended_total",
        "counter",
        "Processes that outlived their worker and were ended.",
    );
    page.sample(&[], snapshot.leftovers_ended);
    page.family(
        "supervise_rescues_total",
        "counter",
        "Workers that freed enough memory at their ceiling and were kept.",
    );
    page.sample(&[], snapshot.rescues);
    page.family(
        "supervise_recycling_suspended",
        "gauge",
        "Whether recycling is suspended because a start failed.",
    );
    page.sample(&[], u8::from(snapshot.suspended.is_some()));
    page.family(
        "supervise_failed_starts_total",
        "counter",
        "Starts of replacements that failed.",
    );
    page.sample(&[], snapshot.failed_starts);
    page.family(
        "supervise_ends_total",
        "counter",
        "Unplanned ends, by cause.",
    );
    page.by("cause", &UNPLANNED, &snapshot.unplanned);
    page.family(
        "supervise_restarts_total",
        "counter",
        "Starts of the command after the first.",
    );
    page.sample(&[], snapshot.restarts);
    page.text
}

fn of_service(page: &mut Page, snapshot: &Snapshot, own: &Own) {
    page.family(
        "supervise_info",
        "gauge",
        "Name, version and mode of the service; always 1.",
    );
    let info = [
        ("name", snapshot.name.as_str()),
        ("version", &own.version),
        ("mode", &snapshot.mode),
    ];
    page.sample(&info, 1);
    page.family(
        "supervise_up",
        "gauge",
        "Whether the supervisor answers; always 1.",
    );
    page.sample(&[], 1);
    page.family("supervise_ready", "gauge", "Whether the service is ready.");
    page.sample(&[], u8::from(snapshot.ready));
    page.family(
        "supervise_start_time_seconds",
        "gauge",
        "The supervisor's start, in Unix seconds.",
    );
    page.sample(&[], own.started);
    page.family(
        "supervise_resident_memory_bytes",
        "gauge",
        "Resident memory of the supervisor itself.",
    );
    page.sample(&[], own.rss.get());
    page.family(
        "supervise_log_lines_lost_total",
        "counter",
        "Log lines that were lost because the log was not read in time.",
    );
    page.sample(&[], own.lost_log_lines);
}

fn of_limits(page: &mut Page, snapshot: &Snapshot) {
    let limits = &snapshot.limits;
    page.family(
        "supervise_available_bytes",
        "gauge",
        "Memory available to the service.",
    );
    page.sample(&[], limits.available.get());
    page.family(
        "supervise_limit_bytes",
        "gauge",
        "Limits in force; a limit that is off is omitted.",
    );
    for (name, limit) in [
        ("ceiling", &limits.ceiling),
        ("cap", &limits.cap),
        ("budget", &limits.budget),
    ] {
        page.maybe(&[("limit", name)], limit.bytes.map(Bytes::get));
    }
    page.family(
        "supervise_cap_enforced",
        "gauge",
        "Whether the kernel enforces the cap for whole workers.",
    );
    page.sample(&[], u8::from(snapshot.enforced));
}

fn of_workers(page: &mut Page, workers: &[WorkerView]) {
    page.family("supervise_workers", "gauge", "Running workers, by state.");
    let mut states = BTreeMap::new();
    for worker in workers {
        *states.entry(worker.state.clone()).or_insert(0_u64) += 1;
    }
    page.by("state", &["draining", "ready", "starting"], &states);

    page.family(
        "supervise_worker_memory_bytes",
        "gauge",
        "Memory of a worker, by measure.",
    );
    for worker in workers {
        let memory = &worker.memory;
        for (measure, bytes) in [
            ("private", Some(memory.private)),
            ("rss", Some(memory.rss)),
            ("pss", memory.pss),
            ("cgroup", memory.cgroup),
        ] {
            page.of_worker(worker, &[("measure", measure)], bytes.map(Bytes::get));
        }
    }
    page.family(
        "supervise_worker_peak_bytes",
        "gauge",
        "Highest memory of a worker so far.",
    );
    for worker in workers {
        page.of_worker(worker, &[], Some(worker.memory.peak.get()));
    }
    page.family(
        "supervise_worker_baseline_bytes",
        "gauge",
        "Memory of a worker after warm-up.",
    );
    for worker in workers {
        page.of_worker(worker, &[], worker.memory.baseline.map(Bytes::get));
    }
    page.family(
        "supervise_worker_slope_bytes_per_second",
        "gauge",
        "Growth rate of a worker.",
    );
    for worker in workers {
        page.of_worker(worker, &[], worker.memory.slope_bps);
    }
    page.family("supervise_worker_age_seconds", "gauge", "Age of a worker.");
    for worker in workers {
        page.of_worker(worker, &[], Some(worker.age.as_secs_f64()));
    }
}

fn of_tasks(page: &mut Page, snapshot: &Snapshot) {
    page.family(
        "supervise_requests_total",
        "counter",
        "Requests or tasks done by all workers, including workers that have ended.",
    );
    page.maybe(&[], snapshot.requests);
    page.family(
        "supervise_worker_tasks_total",
        "counter",
        "Requests or tasks done by a worker.",
    );
    for worker in &snapshot.workers {
        page.of_worker(worker, &[], worker.tasks);
    }
    page.family(
        "supervise_worker_bytes_per_task",
        "gauge",
        "Growth of a worker since its baseline, per request or task.",
    );
    for worker in &snapshot.workers {
        page.of_worker(worker, &[], worker.bytes_per_task);
    }
}

fn of_routes(page: &mut Page, routes: &[RouteView]) {
    page.family(
        "supervise_route_requests_total",
        "counter",
        "Requests or tasks done by all workers, by route.",
    );
    for route in routes {
        page.sample(&[("route", &route.route)], route.requests);
    }
    page.family(
        "supervise_route_bytes_per_request",
        "gauge",
        "Growth of workers for each request of a route, as estimated.",
    );
    for route in routes {
        page.sample(&[("route", &route.route)], route.per_request.get());
    }
    page.family(
        "supervise_route_growth_certain",
        "gauge",
        "Whether it is certain that requests of a route make workers grow.",
    );
    for route in routes {
        page.sample(&[("route", &route.route)], u8::from(route.certain));
    }
}

fn of_pool(page: &mut Page, pool: &PoolView) {
    page.family(
        "supervise_pool_tasks_total",
        "counter",
        "Tasks of a pool that have ended, by result.",
    );
    let ended = [
        ("done", pool.done),
        ("failed", pool.failed),
        ("abandoned", pool.abandoned),
    ];
    for (result, tasks) in ended {
        page.sample(&[("result", result)], tasks);
    }
    page.family(
        "supervise_pool_tasks",
        "gauge",
        "Tasks of a pool that were read and have not ended, by state.",
    );
    for (state, tasks) in [("running", pool.running), ("waiting", pool.waiting)] {
        page.sample(&[("state", state)], tasks);
    }
}

fn of_agents(page: &mut Page, workers: &[WorkerView]) {
    page.family(
        "supervise_worker_agent_loaded",
        "gauge",
        "Whether the agent is loaded, so that a memory report is possible.",
    );
    for worker in workers {
        let loaded = match worker.agent {
            Agent::Unknown => None,
            Agent::Loaded => Some(1),
            Agent::Absent(_) => Some(0),
        };
        page.of_worker(worker, &[], loaded);
    }
    page.family(
        "supervise_worker_traced",
        "gauge",
        "Whether allocations of a worker are traced at the moment.",
    );
    for worker in workers {
        page.of_worker(worker, &[], Some(u8::from(worker.traced)));
    }
}

/// The text so far. Each family has a head, followed by its samples.
#[derive(Debug, Default)]
struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        self.push(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.push(self.name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            self.push(format_args!("{before}{label}=\"{}\"", escaped(text)));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        self.push(format_args!("{end} {value}\n"));
    }

    fn maybe(&mut self, labels: &[(&str, &str)], value: Option<impl Display>) {
        if let Some(value) = value {
            self.sample(labels, value);
        }
    }

    fn of_worker(
        &mut self,
        worker: &WorkerView,
        more: &[(&str, &str)],
        value: Option<impl Display>,
    ) {
        // The slot stays the same across recycles. The worker's name distinguishes it from its
        // replacement while both run.
        let (slot, id) = (worker.slot.to_string(), worker.id.to_string());
        let labels = [&[("slot", slot.as_str()), ("worker", &id)], more].concat();
        self.maybe(&labels, value);
    }

    /// One sample for each value of a label: the values in `always`, and all other counted values.
    fn by(&mut self, label: &str, always: &[&str], counts: &BTreeMap<String, u64>) {
        let mut all: BTreeMap<&str, u64> = always.iter().map(|word| (*word, 0)).collect();
        all.extend(counts.iter().map(|(word, count)| (word.as_str(), *count)));
        for (word, count) in all {
            self.sample(&[(label, word)], count);
        }
    }

    fn push(&mut self, text: impl Display) {
        // Writing to a string does not fail.
        let _written = write!(self.text, "{text}");
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::{
        supervisor::event::Effective,
        supervisor::snapshot::MemoryView,
        units::{WorkerId, golden},
    };

    use super::*;

    const DOCUMENT: &str = include_str!("../../docs/metrics.md");

    fn page() -> String {
        let mut snapshot = Snapshot {
            name: "a \"shop\"".to_owned(),
            mode: "server".to_owned(),
            ready: true,
            recycles: BTreeMap::from([("ceiling".to_owned(), 2)]),
            requests: Some(345),
            workers: vec![WorkerView {
                id: WorkerId::FIRST.next(),
                memory: MemoryView {
                    private: Bytes(7),
                    slope_bps: Some(-3.5),
                    ..MemoryView::default()
                },
                ..WorkerView::for_test()
            }],
            routes: vec![RouteView {
                route: "/users/<id>".to_owned(),
                requests: 300,
                growth: Bytes(300 * 51_200),
                per_request: Bytes(51_200),
                share: 0.9,
                certain: true,
            }],
            pool: Some(PoolView {
                done: 340,
                failed: 5,
                running: 2,
                waiting: 8,
                ..PoolView::default()
            }),
            ..Snapshot::default()
        };
        snapshot.limits.ceiling = Effective {
            bytes: Some(Bytes::mib(300)),
            from: "given".to_owned(),
        };
        let own = Own {
            version: "0.1.0".to_owned(),
            started: 1000.5,
            rss: Bytes::mib(5),
            lost_log_lines: 0,
        };
        render(&snapshot, &own)
    }

    #[test]
    fn a_page_has_the_documented_names_and_labels() {
        golden::check("metrics.txt", &page());
    }

    #[test]
    fn the_document_lists_every_metric_with_its_labels_and_no_other() {
        let page = page();
        let rendered: BTreeSet<String> = page
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| Some(line.rsplit_once(' ')?.0))
            .map(|series| {
                let (name, labels) = series.split_once('{').unwrap_or((series, ""));
                let labels = labels
                    .split(',')
                    .filter_map(|label| Some(label.split_once('=')?.0));
                format!("{name}: {}", labels.collect::<Vec<_>>().join(" "))
            })
            .collect();
        // The one worker of the page has no baseline.
        let unseen = "supervise_worker_baseline_bytes: slot worker".to_owned();
        let rendered: BTreeSet<_> = rendered.into_iter().chain([unseen]).collect();
        let documented: BTreeSet<String> = DOCUMENT
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .map(|row| {
                let cells: Vec<_> = row.split(" | ").collect();
                let labels = cells[2].replace([',', '`'], "");
                format!("{}: {labels}", cells[0].trim_end_matches('`'))
            })
            .collect();
        assert_eq!(rendered, documented);
    }
}
