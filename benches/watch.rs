//! Samples the workers of a server from outside every 5 ms, to find how far each exceeds its
//! ceiling.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{client::Load, clock, proc, service::Service};

const INTERVAL: Duration = Duration::from_millis(5);
/// New workers are searched for every tenth time.
const SEARCH: u32 = 10;

/// Reading the exact value stalls the process, so it is read only at these ages of a worker. After
/// the last one the worker has copied the pages that it shared with its parent.
const EXACT_AT: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// The peaks of one process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    seen: Instant,
    exact_samples: usize,
    /// Anonymous memory minus private memory, at the last exact sample.
    shared: i64,
    /// Its highest private memory.
    pub private: u64,
    /// Its highest resident memory.
    pub rss: u64,
}

/// Samples in a thread.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<i32, Life>>,
}

impl Watch {
    /// Starts to sample the workers of `service`.
    pub(crate) fn on(service: &Service) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (root, over) = (service.pid(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut lives = BTreeMap::new();
            let mut next = clock::now();
            let mut workers = Vec::new();
            for look in 0_u32.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                if look.is_multiple_of(SEARCH) {
                    workers = workers_below(root);
                }
                for pid in &workers {
                    sample(*pid, &mut lives);
                }
                next += INTERVAL;
                clock::until(next);
            }
            lives
        });
        Self { stop, thread }
    }

    /// Stops. Returns the peaks of every worker.
    pub(crate) fn end(self) -> Vec<Life> {
        self.stop.store(true, Ordering::Relaxed);
        let lives = self.thread.join().expect("the watch panicked");
        lives.into_values().collect()
    }
}

fn sample(pid: i32, lives: &mut BTreeMap<i32, Life>) {
    let Some((rss, anon)) = proc::resident(pid) else {
        return;
    };
    let now = clock::now();
    let life = lives.entry(pid).or_insert(Life {
        seen: now,
        exact_samples: 0,
        shared: 0,
        private: 0,
        rss: 0,
    });
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    if EXACT_AT
        .get(life.exact_samples)
        .is_some_and(|age| now - life.seen >= *age)
        && let Some((private, _)) = proc::exact(pid)
    {
        life.exact_samples += 1;
        life.shared = signed(anon) - signed(private);
    }
    let private = u64::try_from(signed(anon) - life.shared).unwrap_or(0);
    life.private = life.private.max(private);
    life.rss = life.rss.max(rss);
}

/// Waits until `load` is answered and all workers are ready. Otherwise the first worker would
/// accept all keep-alive connections.
pub(crate) fn settled(service: &Service, load: &Load) {
    service.wait("an answer", Duration::from_secs(20), || {
        load.once("/pid").ok()
    });
    rest(Duration::from_secs(2));
}

/// Sleeps for `time`, where a measurement needs a span of time and not a condition.
pub(crate) fn rest(time: Duration) {
    clock::until(clock::now() + time);
}

/// The processes of `supervise` without those of the command, and the part of a core that they use
/// during `lasts`, after some time to settle.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of seconds")]
pub(crate) fn cost_at_rest(service: &Service, lasts: Duration) -> (Vec<i32>, f64) {
    rest(Duration::from_secs(5));
    let ours: Vec<_> = service
        .processes()
        .into_iter()
        .filter(|pid| !proc::is_python(*pid))
        .collect();
    let cpu = || ours.iter().map(|pid| proc::cpu_nanos(*pid)).sum::<u64>();
    let before = cpu();
    rest(lasts);
    let part = (cpu() - before) as f64 / lasts.as_nanos() as f64;
    (ours, part)
}

/// The Python processes with a Python process as parent: the workers of gunicorn, whatever program
/// started it.
pub(crate) fn workers_below(root: i32) -> Vec<i32> {
    let mut workers = Vec::new();
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        let is_python = proc::is_python(pid);
        for child in proc::children(pid) {
            if is_python && proc::is_python(child) {
                workers.push(child);
            } else {
                open.push(child);
            }
        }
    }
    workers
}
