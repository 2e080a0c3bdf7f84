//! The strict client: load on a service, in which every failure counts and no request is repeated.
//!
//! It works as a closed loop, or as an open loop at a fixed rate. At a fixed rate a latency counts
//! from the time when the request was due, so that the client does not hide a stalled service.

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

/// The time between a failed request and the next one.
const BACK_OFF: Duration = Duration::from_millis(1);

/// The time limit for a number of answers.
const ANSWERED: Duration = Duration::from_secs(20);

/// The width of a bucket of throughput.
pub(crate) const BUCKET: Duration = Duration::from_millis(100);

/// A load for a service with answers of the form `ok:PID`.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// The address of the service.
    pub address: SocketAddr,
    /// The path of the requests.
    pub path: String,
    /// The number of concurrent connections.
    pub connections: u32,
    /// Whether a connection serves more than one request.
    pub keep_alive: bool,
    /// Requests a second over all connections. `None`: each sends its next request after an answer.
    pub rate: Option<f64>,
    /// The duration of the load.
    pub lasts: Duration,
    /// The time limit of an answer.
    pub timeout: Duration,
}

impl Load {
    /// Eight connections that request `/` in a closed loop for five seconds.
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

    /// Runs the load to its end.
    pub(crate) fn run(self) -> Outcome {
        self.start().join()
    }

    /// Starts the load.
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

    /// Sends one request. Returns the pid in the body `ok:PID`.
    pub(crate) fn once(&self, path: &str) -> Result<i32, Failure> {
        let mut connection = Connection::new(self.address, self.timeout);
        connection.get(path, false).and_then(|body| pid_in(&body))
    }

    /// Runs one connection.
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

/// State shared by the connections of a load and its owner.
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

    /// Waits for this many more answers.
    #[track_caller]
    pub(crate) fn wait_for_answers(&self, answers: u64) {
        let answered = || self.shared.answered.load(Ordering::Relaxed);
        let enough = answered() + answers;
        let met = clock::poll(ANSWERED, || (answered() >= enough).then_some(()));
        assert!(met.is_some(), "{} of {enough} answers", answered());
    }

    /// Ends it early: each connection finishes its current request.
    pub(crate) fn finish(self) -> Outcome {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join()
    }
}

/// The result of a load.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The number of correct answers.
    pub ok: u64,
    /// The number of failures of each kind.
    pub failures: BTreeMap<Failure, u64>,
    /// The first failures, with their time since the start.
    pub first_failures: Vec<(Duration, Failure)>,
    /// The latencies of the correct answers, shortest first.
    pub latencies: Vec<Duration>,
    /// Correct answers in each [`BUCKET`] of time.
    pub buckets: Vec<u32>,
    /// The number of connections made.
    pub connections: u64,
    /// The processes that answered.
    pub pids: BTreeSet<i32>,
    /// The time from the start to the last answer.
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

    /// Adds the result of another connection.
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

    /// Adds the result of a load that was started after this one. The buckets are meaningless then.
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

    /// The number of failed requests.
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The latency that `part` of the answers did not exceed: 0.5 is the median.
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

    /// Correct answers a second.
    #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
    pub(crate) fn rate(&self) -> f64 {
        self.ok as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// The worst bucket as a part of the mean one, without the first and the last two buckets, in
    /// which the load starts and ends.
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
