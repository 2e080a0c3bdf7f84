//! The validated settings of one service. `config` makes them.

use std::{collections::BTreeMap, ffi::OsString, fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::pool::spec::PoolSettings;
use crate::{
    servers::profile::Profile,
    units::{Signal, Size},
};

/// All settings of one service.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The service's name: its socket, its cgroup, its log lines.
    pub name: String,
    /// The command to run.
    pub command: CommandSpec,
    /// Whether the command is a server with workers or a single program.
    pub kind: Kind,
    /// `kind` is not configured, but derived from the command line.
    pub kind_is_guessed: bool,
    /// The number of copies of the command. `None`: it is not multiplied.
    pub copies: Option<u64>,
    /// The number of copies is chosen when the first one is measured: at most this one.
    pub copies_up_to: Option<u32>,
    /// A single program that gets listening sockets, and whose replacement may start first.
    pub overlap: bool,
    /// Limits on memory.
    pub memory: MemorySpec,
    /// Any other rlimit, per worker, by its lower-case name without `RLIMIT_` (`nofile`).
    pub rlimits: BTreeMap<String, Rlimit>,
    /// Other limits of a cgroup.
    pub cgroup: CgroupSpec,
    /// When a healthy worker is replaced.
    pub recycle: RecycleSpec,
    /// The agent in the workers.
    pub agent: AgentSpec,
    /// When and how workers report on their memory.
    pub leaks: LeaksSpec,
    /// When the command is restarted.
    pub restart: RestartSpec,
    /// How the command is stopped.
    pub stop: StopSpec,
    /// How readiness is detected.
    pub ready: ReadySpec,
    /// Report which workers would be recycled, and do not recycle them.
    pub dry_run: bool,
    /// The control API.
    pub control: ControlSpec,
    /// The log.
    pub log: LogSpec,
    /// The settings of a pool. `None`: the service is not a pool.
    pub pool: Option<PoolSettings>,
}

impl Spec {
    /// The names of the configured features that need the agent.
    pub fn needs_agent(&self) -> impl Iterator<Item = &'static str> + use<> {
        let needs = [
            (self.recycle.max_tasks.is_some(), "recycle.max_tasks"),
            (
                !self.agent.drain.is_zero(),
                "closing keep-alive connections",
            ),
            (self.memory.gc_first, "collecting garbage before a recycle"),
            (self.leaks.ask != Leaks::Off, "memory reports"),
            (
                matches!(self.kind, Kind::Server(server) if server.is_guarded),
                "keeping old workers when a new one cannot boot",
            ),
        ];
        let needs = needs.into_iter().filter(|(is_wanted, _)| *is_wanted);
        needs.map(|(_, what)| what)
    }

    /// Whether the agent is loaded into workers.
    pub fn wants_agent(&self) -> bool {
        match self.agent.load {
            AgentLoad::Auto => self.needs_agent().next().is_some(),
            AgentLoad::On => true,
            AgentLoad::Off => false,
        }
    }
}

/// The command, as it will be executed.
#[derive(Clone, Debug)]
pub struct CommandSpec {
    /// The program. It existed and was executable when the settings were read.
    pub program: PathBuf,
    /// The command line as given. The first word is the program as the user typed it.
    pub argv: Vec<OsString>,
    /// Variables added to its environment.
    pub env: BTreeMap<OsString, OsString>,
    /// Its working directory. `None`: that of the supervisor.
    pub directory: Option<PathBuf>,
    /// The user that it runs as, who exists. `None`: the user of the supervisor.
    pub user: Option<String>,
    /// The listening sockets that the supervisor passes to it, in this order.
    pub listen: Vec<Listen>,
}

/// Where a socket listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Listen {
    /// `HOST:PORT`.
    Tcp(String),
    /// A path.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The kind of the command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A server whose child processes are the workers.
    Server(&'static Profile),
    /// Any other program: it is a single worker with all its processes.
    Single,
}

/// A limit as configured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// Derived from the memory available to the service (DESIGN §3).
    Auto,
    /// Switched off.
    Off,
    /// This size.
    At(Size),
}

/// Which measure of a worker's memory is compared with its ceiling.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Measure {
    /// What its end would free: anonymous pages and their swap, huge pages, and unnamed shared
    /// memory. File pages are not included.
    Private,
    /// Resident pages, including shared ones.
    Rss,
    /// Private pages and its share of the shared ones.
    Pss,
    /// The charge of its cgroup without what the kernel can reclaim, such as page cache.
    Cgroup,
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => "private",
            Self::Rss => "rss",
            Self::Pss => "pss",
            Self::Cgroup => "cgroup",
        })
    }
}

/// `[memory]`.
#[derive(Clone, Copy, Debug)]
pub struct MemorySpec {
    /// A worker over this limit is recycled gracefully.
    pub ceiling: Limit,
    /// The kernel kills a worker over this limit.
    pub cap: Limit,
    /// The limit of the whole service.
    pub budget: Limit,
    /// What is compared with the ceiling.
    pub measure: Measure,
    /// Consecutive samples above the ceiling required. At least 1.
    pub consecutive_samples: u32,
    /// Swap that a worker may use if a cgroup enforces its cap.
    pub swap: Limit,
    /// Set a threshold at the ceiling if the kernel supports it.
    pub threshold: bool,
    /// A worker over its ceiling collects garbage first, and is not replaced if that is enough.
    pub gc_first: bool,
}

/// A soft and a hard rlimit. `None` is unlimited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rlimit {
    /// The value that is enforced.
    pub soft: Option<u64>,
    /// The highest value to which the process may raise it.
    pub hard: Option<u64>,
}

/// `[cgroup]`: limits that need cgroup v2. They are set only if they are configured.
#[derive(Clone, Copy, Debug, Default)]
pub struct CgroupSpec {
    /// Maximum processes and threads of a worker.
    pub pids_max: Option<u64>,
    /// The service's share of CPU time compared with other services, 1 to 10000.
    pub cpu_weight: Option<u64>,
}

/// `[recycle]`.
#[derive(Clone, Copy, Debug)]
pub struct RecycleSpec {
    /// Maximum workers unavailable at once. At least 1.
    pub max_unavailable: u32,
    /// No worker is recycled before this age, unless its growth would carry it to its cap.
    pub min_age: Duration,
    /// A worker is recycled at this age.
    pub max_age: Option<Duration>,
    /// A worker is recycled after this many requests or tasks. At least 1.
    pub max_tasks: Option<u64>,
    /// Each worker's limits are lowered by a random part, up to this, 0 to 1.
    pub jitter: f64,
    /// The surge ends if no worker had to be replaced for this long.
    pub surge_idle: Duration,
    /// Start the replacement before the old worker is asked to exit, if that is possible.
    pub surge: bool,
    /// What is done about processes that outlive the worker that started them.
    pub leftovers: Leftovers,
}

/// What is done about processes that outlive the worker that started them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Leftovers {
    /// They are ended when they have used no CPU for a while, or when memory is short.
    End,
    /// They are only reported.
    Tell,
}

/// `[agent]`.
#[derive(Clone, Debug)]
pub struct AgentSpec {
    /// Whether the agent is loaded into the workers.
    pub load: AgentLoad,
    /// Close keep-alive connections with `Connection: close`, for up to this long, if the server
    /// would reset them. Zero: off.
    pub drain: Duration,
    /// Requests on these paths are not counted.
    pub ignore_paths: Vec<String>,
}

/// Whether the agent is loaded into the workers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AgentLoad {
    /// If a configured feature needs it.
    Auto,
    /// Always. A warning is given if it cannot be loaded.
    On,
    /// Never.
    Off,
}

/// `[leaks]`.
#[derive(Clone, Debug)]
pub struct LeaksSpec {
    /// When workers are asked for reports.
    pub ask: Leaks,
    /// Time limit of a memory report.
    pub time_box: Duration,
    /// Maximum reports that are kept. At least 1.
    pub kept: usize,
    /// The directory in which reports and events are kept after the service has ended. `None`: they
    /// are not.
    pub directory: Option<PathBuf>,
    /// The name of the service's own directory in it. It follows from the name of the service and
    /// the working directory of its command.
    pub service: String,
}

/// When workers are asked for memory reports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Leaks {
    /// Only jobs, when they come near their cap. Workers that serve are not asked.
    Auto,
    /// Also workers that serve, before they are replaced for their memory. They are traced when
    /// they come near their ceiling.
    On,
    /// The same, but they are traced from their first request on.
    Always,
    /// Only when an operator requests a report.
    Off,
}

/// `[restart]`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct RestartSpec {
    /// When to restart the command.
    pub when: RestartWhen,
    /// The delay after the first unplanned end. It doubles with each further one.
    pub delay_min: Duration,
    /// The longest delay.
    pub delay_max: Duration,
    /// The supervisor gives up after more ends than this within `window` (exit status 75).
    pub limit: u32,
    /// The window in which ends are counted.
    pub window: Duration,
}

/// When to restart the command.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum RestartWhen {
    /// After every end that the supervisor did not ask for.
    Always,
    /// After an end by a signal or with a status other than 0.
    OnFailure,
    /// Never: the service is a job.
    Never,
}

/// `[stop]`.
#[derive(Clone, Copy, Debug)]
pub struct StopSpec {
    /// The signal that stops the command.
    pub signal: Signal,
    /// The time between this signal and SIGKILL, for a worker and for the whole service.
    pub grace: Duration,
    /// The time between this signal and the end of event streams and WebSockets. It is shorter than
    /// `grace`, because clients are told in the rest.
    pub stream_grace: Duration,
    /// How much more time a worker or the command may get by `EXTEND_TIMEOUT_USEC=`.
    pub extend_max: Duration,
}

/// `[ready]`.
#[derive(Clone, Debug)]
pub struct ReadySpec {
    /// How readiness is detected.
    pub when: ReadyWhen,
    /// A worker or service that is not ready after this long is reported.
    pub timeout: Duration,
}

/// How readiness is detected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ReadyWhen {
    /// A server: by the heartbeat of its first worker. Another program: after one second.
    Auto,
    /// The command sends `READY=1` to its `NOTIFY_SOCKET`.
    Notify,
    /// A TCP connection to `HOST:PORT` succeeds.
    Tcp(String),
    /// `GET http://HOST:PORT/PATH` is answered with a status below 400.
    Http(String),
    /// The command has run for this long.
    Delay(Duration),
}

/// `[control]`.
#[derive(Clone, Debug)]
pub struct ControlSpec {
    /// The Unix socket of the control API.
    pub socket: PathBuf,
    /// The address `HOST:PORT` at which the reading part of the control API is served over TCP.
    pub metrics: Option<std::net::SocketAddr>,
    /// Host names under which `/v1` is served over TCP, besides addresses and `localhost`.
    pub hosts: Vec<String>,
    /// File with the token that is needed for events and reports over TCP. `None`: they are not
    /// served over TCP.
    pub token_file: Option<PathBuf>,
    /// Maximum ends and events that are kept. At least 1.
    pub history: usize,
    /// The file of the termination message.
    pub termination_log: TerminationLog,
}

/// The file of the termination message, which says why a container ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TerminationLog {
    /// The default path of Kubernetes, if the supervisor is PID 1 and the file exists.
    Auto,
    /// None.
    Off,
    /// This path.
    At(PathBuf),
}

/// `[log]`.
#[derive(Clone, Copy, Debug)]
pub struct LogSpec {
    /// The format of a line.
    pub format: LogFormat,
    /// Also log the reasons of decisions.
    pub verbose: bool,
}

/// The format of the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// Records of the journal if stderr is the journal, else text.
    Auto,
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl MemorySpec {
    /// All limits are derived, and all features are off.
    pub const fn plain() -> Self {
        Self {
            ceiling: Limit::Auto,
            cap: Limit::Auto,
            budget: Limit::Auto,
            measure: Measure::Private,
            consecutive_samples: 1,
            swap: Limit::Off,
            threshold: false,
            gc_first: false,
        }
    }
}
