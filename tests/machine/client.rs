//! The strict client: load on a service in which nothing is forgiven and nothing is repeated.
//!
//! Closed loop, or open loop at a fixed rate; then a latency counts from the moment the request was
//! due, so that a stalled service cannot hide behind a client that waits for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    clock,
    http::{Connection, Failure},
};

/// A service that is down is asked again after this.
const BACK_OFF: Duration = Duration::from_millis(1);

/// A service that is up answers within this.
const ANSWERED: Duration = Duration::from_secs(20);

/// The width of a bucket of throughput.
pub(crate) const BUCKET: Duration = Duration::from_millis(100);

/// A load to be put on a service whose answers are `ok:PID`.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Where the service is.
    pub address: SocketAddr,
    /// What is asked for.
    pub path: String,
    /// How many connections ask at the same time.
    pub connections: u32,
    /// Whether a connection serves more than one request.
    pub keep_alive: bool,
    /// Requests a second over all connections; `None`: each asks again as soon as it is answered.
    pub rate: Option<f64>,
    /// For how long.
    pub lasts: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl Load {
    /// Eight connections that ask for `/` as fast as they are answered, for five seconds.
    pub(crate) fn on(port: u16) -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            path: "/".to_owned(),
            connections: 8,
            keep_alive: true,
            rate: None,
            lasts: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
        }
    }

    /// Puts the load on and waits for its end.
    pub(crate) fn run(self) -> Outcome {
        self.start().join()
    }

    /// Puts the load on.
    pub(crate) fn start(self) -> Running {
        let shared = Arc::new(Shared::default());
        let begun = clock::now();
        let threads = (0..self.connections)
            .map(|number| {
                let (load, shared) = (self.clone(), Arc::clone(&shared));
                thread::spawn(move || load.ask(number, begun, &shared))
            })
            .collect();
        Running {
            shared,
            begun,
            threads,
        }
    }

    /// One request whose body is `ok:PID`; gives the PID.
    pub(crate) fn once(&self, path: &str) -> Result<i32, Failure> {
        let mut connection = Connection::new(self.address, self.timeout);
        connection.get(path, false).and_then(|body| pid_in(&body))
    }

    /// What one connection does.
    fn ask(&self, number: u32, begun: Instant, shared: &Shared) -> Outcome {
        let end = begun + self.lasts;
        let every = self
            .rate
            .map(|rate| Duration::from_secs_f64(f64::from(self.connections) / rate));
        let mut due = begun
            + every.map_or(Duration::ZERO, |every| {
                every * number / self.connections.max(1)
            });
        let mut connection = Connection::new(self.address, self.timeout);
        let mut outcome = Outcome::default();
        loop {
            match every {
                Some(_) => clock::until(due.min(end)),
                None => due = clock::now(),
            }
            if clock::now() >= end || shared.stop.load(Ordering::Relaxed) {
                break;
            }
            let answer = connection
                .get(&self.path, self.keep_alive)
                .and_then(|body| pid_in(&body));
            outcome.count(begun, due, answer);
            if answer.is_ok() {
                shared.answered.fetch_add(1, Ordering::Relaxed);
            }
            match every {
                Some(every) => due += every,
                None if answer.is_err() => clock::until(clock::now() + BACK_OFF),
                None => {}
            }
        }
        outcome.connections = connection.made;
        outcome
    }
}

fn pid_in(body: &[u8]) -> Result<i32, Failure> {
    std::str::from_utf8(body)
        .ok()
        .and_then(|text| text.strip_prefix("ok:")?.strip_suffix('\n')?.parse().ok())
        .ok_or(Failure::BadBody)
}

/// What the connections of a load and its owner know of each other.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
}

/// A load in progress.
#[derive(Debug)]
pub(crate) struct Running {
    shared: Arc<Shared>,
    begun: Instant,
    threads: Vec<JoinHandle<Outcome>>,
}

impl Running {
    /// Waits for its end.
    pub(crate) fn join(self) -> Outcome {
        let mut whole = Outcome::default();
        for thread in self.threads {
            whole.add(thread.join().expect("a client thread panicked"));
        }
        whole.elapsed = clock::now() - self.begun;
        whole.sort();
        whole
    }

    /// Waits until it has met so many more answers.
    #[track_caller]
    pub(crate) fn meets(&self, answers: u64) {
        let answered = || self.shared.answered.load(Ordering::Relaxed);
        let enough = answered() + answers;
        let met = clock::poll(ANSWERED, || (answered() >= enough).then_some(()));
        assert!(met.is_some(), "{} of {enough} answers", answered());
    }

    /// Ends it early: each connection finishes the request it is at.
    pub(crate) fn finish(self) -> Outcome {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join()
    }
}

/// What came of a load.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Whole, right answers.
    pub ok: u64,
    /// The others, by class.
    pub failures: BTreeMap<Failure, u64>,
    /// When the first of them were, since the beginning.
    pub first_failures: Vec<(Duration, Failure)>,
    /// Of the right answers, shortest first.
    pub latencies: Vec<Duration>,
    /// Right answers by the time they came.
    pub buckets: Vec<u32>,
    /// Connections made.
    pub connections: u64,
    /// The processes that answered.
    pub pids: BTreeSet<i32>,
    /// From the beginning to the last answer.
    pub elapsed: Duration,
}

impl Outcome {
    fn count(&mut self, begun: Instant, due: Instant, answer: Result<i32, Failure>) {
        let now = clock::now();
        match answer {
            Ok(pid) => {
                self.ok += 1;
                self.pids.insert(pid);
                self.latencies.push(now.saturating_duration_since(due));
                let bucket = (now - begun).as_millis() / BUCKET.as_millis();
                let bucket = usize::try_from(bucket).expect("a load lasts seconds, not ages");
                if self.buckets.len() <= bucket {
                    self.buckets.resize(bucket + 1, 0);
                }
                self.buckets[bucket] += 1;
            }
            Err(failure) => {
                *self.failures.entry(failure).or_default() += 1;
                if self.first_failures.len() < 20 {
                    self.first_failures.push((now - begun, failure));
                }
            }
        }
    }

    /// Takes in what another connection saw.
    fn add(&mut self, other: Self) {
        self.ok += other.ok;
        self.connections += other.connections;
        self.pids.extend(other.pids);
        self.latencies.extend(other.latencies);
        self.first_failures.extend(other.first_failures);
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
    }

    /// Takes in what came of a load that was put on after this one; the buckets are of no use then.
    pub(crate) fn then(&mut self, next: Self) {
        self.elapsed += next.elapsed;
        self.add(next);
        self.sort();
    }

    fn sort(&mut self) {
        self.latencies.sort_unstable();
        self.first_failures.sort_unstable();
        self.first_failures.truncate(20);
    }

    /// How many were lost.
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The latency that `part` of the answers kept within: 0.5 is the median.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into the list of latencies"
    )]
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies
            .get((last as f64 * part) as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Right answers a second.
    #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
    pub(crate) fn rate(&self) -> f64 {
        self.ok as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// The worst bucket as a part of the mean one. The first and the last two are left out: there
    /// the load begins and ends.
    #[expect(clippy::cast_precision_loss, reason = "a few thousand buckets")]
    pub(crate) fn dip(&self) -> f64 {
        let inner = self
            .buckets
            .get(1..self.buckets.len().saturating_sub(2))
            .unwrap_or_default();
        let sum: u32 = inner.iter().sum();
        let worst = inner.iter().min().copied().unwrap_or(0);
        f64::from(worst) * inner.len() as f64 / f64::from(sum.max(1))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |part| self.quantile(part).as_secs_f64() * 1e3;
        write!(
            f,
            "{} ok, {} failed, {:.0}/s, p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms, {} connections, \
             {} processes",
            self.ok,
            self.failed(),
            self.rate(),
            milliseconds(0.5),
            milliseconds(0.99),
            milliseconds(1.0),
            self.connections,
            self.pids.len(),
        )?;
        for (failure, count) in &self.failures {
            write!(f, ", {failure} {count}")?;
        }
        for (when, failure) in &self.first_failures {
            write!(f, "\n  at {:.3} s {failure}", when.as_secs_f64())?;
        }
        Ok(())
    }
}
