//! The `supervise` binary with real servers, real signals and real memory.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper fails its test in place, with the log of the service"
)]

mod agent;
mod agent_requests;
mod assets;
mod boot_failures;
#[expect(dead_code, reason = "the benches use the rest")]
mod client;
mod client_failures;
mod client_gunicorn;
mod clock;
mod container;
mod copies;
mod drains;
mod ended_services;
mod examples;
mod executor;
mod faults;
mod fleet;
mod held_sockets;
mod helpers;
mod hostile;
mod http;
mod inner_sockets;
mod job;
mod killed;
mod launchers;
mod leaks;
mod listen;
mod loops;
mod mapped;
mod notify;
mod open_files;
mod operator;
mod orphans;
mod overlap;
mod pool;
mod pool_ends;
mod pool_forks;
mod pool_large;
mod pool_peak;
mod pool_reports;
mod pool_resume;
mod pool_starts;
mod pool_status;
mod probes;
#[expect(dead_code, reason = "the benches use the rest")]
mod proc;
mod program;
mod queues;
mod routes;
mod runaway;
mod servers;
mod service;
mod service_manager;
mod signals;
mod start_in_group;
mod status;
mod stops;
mod streams;
mod suggest;
mod task_output;
mod tcp_port;
mod trust;
mod turn;
mod upgrade;
mod usage_errors;
mod uvicorn;
#[expect(dead_code, reason = "the benches use the rest")]
mod venv;
