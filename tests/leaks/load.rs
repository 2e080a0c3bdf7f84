//! A load at a fixed rate, with a different number in each request.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{clock, http::Connection};

const CONNECTIONS: u32 = 4;
const TIMEOUT: Duration = Duration::from_secs(10);

/// A load in progress. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    begun: Instant,
    rate: f64,
    next: AtomicU32,
    ok: AtomicU32,
    lost: AtomicU32,
    stop: AtomicBool,
}

impl Load {
    /// Starts a load of `rate` requests a second on the service at `port`.
    pub(crate) fn start(port: u16, rate: f64) -> Self {
        let shared = Arc::new(Shared {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            begun: clock::now(),
            rate,
            next: AtomicU32::new(0),
            ok: AtomicU32::new(0),
            lost: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        });
        let one = || {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.ask())
        };
        let threads = (0..CONNECTIONS).map(|_| one()).collect();
        Self { shared, threads }
    }

    /// Ends the load. Returns the numbers of answered and of failed requests.
    pub(crate) fn finish(mut self) -> (u32, u32) {
        self.end();
        let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        (count(&self.shared.ok), count(&self.shared.lost))
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A client that panicked has printed why.
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn ask(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            clock::until(self.begun + Duration::from_secs_f64(f64::from(number) / self.rate));
            let mut connection = Connection::new(self.address, TIMEOUT);
            let answer = connection.get(&format!("/?n={number}"), false);
            let is_ok = answer.is_ok_and(|body| body.starts_with(b"ok:"));
            let counter = if is_ok { &self.ok } else { &self.lost };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}
