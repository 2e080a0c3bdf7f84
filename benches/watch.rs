//! Watches the workers of a server from outside, every 5 ms, to see how far over its ceiling any
//! goes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{client::Load, clock, house::House, proc};

const LOOK: Duration = Duration::from_millis(5);
const SEARCH: u32 = 10;

/// The exact figure stalls its target, so it is read at these ages of a worker and then no more: by
/// then it has written to what it shared with its parent.
const EXACT_AT: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// The highest that one process was seen at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    seen: Instant,
    exact_looks: usize,
    /// Anonymous memory less private memory, as of the last exact look.
    shared: i64,
    /// Its highest private memory.
    pub private: u64,
    /// Its highest resident memory.
    pub rss: u64,
}

/// A watch in progress.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<i32, Life>>,
}

impl Watch {
    /// Begins to watch the workers of `house`.
    pub(crate) fn on(house: &House) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (root, over) = (house.pid(), Arc::clone(&stop));
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
                    look_at(*pid, &mut lives);
                }
                next += LOOK;
                clock::until(next);
            }
            lives
        });
        Self { stop, thread }
    }

    /// Ends it: every worker that was seen.
    pub(crate) fn end(self) -> Vec<Life> {
        self.stop.store(true, Ordering::Relaxed);
        let lives = self.thread.join().expect("the watch panicked");
        lives.into_values().collect()
    }
}

fn look_at(pid: i32, lives: &mut BTreeMap<i32, Life>) {
    let Some((rss, anon)) = proc::resident(pid) else {
        return;
    };
    let now = clock::now();
    let life = lives.entry(pid).or_insert(Life {
        seen: now,
        exact_looks: 0,
        shared: 0,
        private: 0,
        rss: 0,
    });
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    if EXACT_AT
        .get(life.exact_looks)
        .is_some_and(|age| now - life.seen >= *age)
        && let Some((private, _)) = proc::exact(pid)
    {
        life.exact_looks += 1;
        life.shared = signed(anon) - signed(private);
    }
    let private = u64::try_from(signed(anon) - life.shared).unwrap_or(0);
    life.private = life.private.max(private);
    life.rss = life.rss.max(rss);
}

/// Waits until `load` is answered and all workers are up: connections that are kept stay with the
/// worker that took them, and would all be the first one's.
pub(crate) fn settled(house: &House, load: &Load) {
    house.wait("an answer", Duration::from_secs(20), || {
        load.once("/pid").ok()
    });
    rest(Duration::from_secs(2));
}

/// Returns after `time`: a figure is of a span of time, and nothing is waited for.
pub(crate) fn rest(time: Duration) {
    clock::until(clock::now() + time);
}

/// The processes that are ours, not the command's, and the part of a core that they take in
/// `lasts`, after a while in which what has started settles.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of seconds")]
pub(crate) fn cost_at_rest(house: &House, lasts: Duration) -> (Vec<i32>, f64) {
    rest(Duration::from_secs(5));
    let ours: Vec<_> = house
        .everybody()
        .into_iter()
        .filter(|pid| !proc::is_python(*pid))
        .collect();
    let cpu = || ours.iter().map(|pid| proc::cpu_nanos(*pid)).sum::<u64>();
    let before = cpu();
    rest(lasts);
    let part = (cpu() - before) as f64 / lasts.as_nanos() as f64;
    (ours, part)
}

/// Python processes whose parent is a Python process: gunicorn's workers, whoever started gunicorn.
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
