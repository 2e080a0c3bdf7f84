//! `supervise` itself beside real servers, real signals and real memory.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper of a test fails the test, with its log, where it stands"
)]

mod agent;
mod around;
mod assets;
mod births;
mod boot_failures;
#[expect(dead_code, reason = "the benches use the rest")]
mod client;
mod client_classes;
mod client_gunicorn;
mod clock;
mod container;
mod drains;
mod examples;
mod executor;
mod faults;
mod held_sockets;
mod helpers;
mod hostile;
mod house;
mod http;
mod inner_sockets;
mod job;
mod kept;
mod killed;
mod leaks;
mod listen;
mod loops;
mod manager;
mod mapped;
mod open_files;
mod operator;
mod orphans;
mod pool;
mod pool_ends;
mod pool_forks;
mod pool_large;
mod pool_peak;
mod pool_resume;
mod pool_starts;
mod prints;
mod probes;
#[expect(dead_code, reason = "the benches use the rest")]
mod proc;
mod questions;
mod reading;
mod runaway;
mod signals;
mod stops;
mod trust;
mod turn;
mod upgrade;
#[expect(dead_code, reason = "the benches use the rest")]
mod venv;
mod wrong_use;
