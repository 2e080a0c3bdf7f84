//! What was wished for, validated: the one input of the whole program. `config` makes it.

use std::{collections::BTreeMap, ffi::OsString, fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::units::{Habits, Signal, Size};

/// Everything one service is to be.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The service's name: its socket, its cgroup, its log lines.
    pub name: String,
    /// What is run.
    pub command: CommandSpec,
    /// How it is understood.
    pub kind: Kind,
    /// `kind` is not configured; it was derived from the command line.
    pub kind_is_guessed: bool,
    /// Limits on memory.
    pub memory: MemorySpec,
    /// Any other rlimit, per worker, by its lower-case name without `RLIMIT_` (`nofile`).
    pub rlimits: BTreeMap<String, Rlimit>,
    /// What else a control group holds.
    pub cgroup: CgroupSpec,
    /// When a healthy worker is replaced.
    pub recycle: RecycleSpec,
    /// What is put into the workers.
    pub agent: AgentSpec,
    /// When and how a worker is asked why it is fat.
    pub leaks: LeaksSpec,
    /// What follows an unplanned end of the command.
    pub restart: RestartSpec,
    /// How it is stopped.
    pub stop: StopSpec,
    /// When it counts as up.
    pub ready: ReadySpec,
    /// Say what would have been recycled, and do nothing.
    pub dry_run: bool,
    /// How operators reach it.
    pub control: ControlSpec,
    /// How it logs.
    pub log: LogSpec,
}

impl Spec {
    /// The configured features that do not work in a worker without the agent, in words.
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
                matches!(self.kind, Kind::Server(_)),
                "serving on when a new worker cannot boot",
            ),
        ];
        let needs = needs.into_iter().filter(|(is_wished, _)| *is_wished);
        needs.map(|(_, what)| what)
    }

    /// The agent is to be put into the workers: something that is wished for needs it.
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
    /// The program, found and executable when the spec was made.
    pub program: PathBuf,
    /// The command line as given; the first word is what the user typed for the program.
    pub argv: Vec<OsString>,
    /// Added to the environment.
    pub env: BTreeMap<OsString, OsString>,
    /// Where it runs; `None` is where we are.
    pub directory: Option<PathBuf>,
    /// Whose it is; `None` is ours. The name exists.
    pub user: Option<String>,
    /// The sockets that are held for it, in this order.
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

/// How the command is understood.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A server whose own children are the workers.
    Server(Habits),
    /// Any program: one worker.
    Single,
}

/// A limit as wished.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// Derived from what the service may have (DESIGN §3).
    Auto,
    /// Switched off.
    Off,
    /// That much.
    At(Size),
}

/// Which figure of a worker is held against its ceiling.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Measure {
    /// What its end would give back: anonymous pages and their swap, huge pages, and shared memory
    /// without a name. No pages of files.
    Private,
    /// Resident pages, shared ones included.
    Rss,
    /// Private pages and its share of the shared ones.
    Pss,
    /// What its cgroup is charged with and the kernel cannot take back: no page cache.
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
    /// Over it, a worker is recycled gracefully.
    pub ceiling: Limit,
    /// Over it, the kernel ends the worker.
    pub cap: Limit,
    /// Over it, all workers together are too many.
    pub budget: Limit,
    /// What is held against the ceiling.
    pub measure: Measure,
    /// So many samples in a row must be over the ceiling; at least 1.
    pub strikes: u32,
    /// Swap a worker may use where its cap is a cgroup.
    pub swap: Limit,
    /// Use the trip wire where there is one.
    pub wire: bool,
    /// Over its ceiling, a worker collects garbage first and stays if that was enough.
    pub gc_first: bool,
}

/// A soft and a hard rlimit; `None` is unlimited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rlimit {
    /// The value that is enforced.
    pub soft: Option<u64>,
    /// How far the process may raise it.
    pub hard: Option<u64>,
}

/// `[cgroup]`: limits that only version 2 has for us, and only where they were wished for.
#[derive(Clone, Copy, Debug, Default)]
pub struct CgroupSpec {
    /// So many processes and threads a worker may be.
    pub pids_max: Option<u64>,
    /// The service's share of the processor beside its neighbours, 1 to 10000.
    pub cpu_weight: Option<u64>,
}

/// `[recycle]`.
#[derive(Clone, Copy, Debug)]
pub struct RecycleSpec {
    /// So many workers may be away at a time; at least 1.
    pub at_once: u32,
    /// No worker is recycled before it is that old, unless it would die of its growth.
    pub min_age: Duration,
    /// Older workers are recycled.
    pub max_age: Option<Duration>,
    /// Those that have done so many requests or tasks are recycled; at least 1.
    pub max_tasks: Option<u64>,
    /// Equal limits are spread by up to this part of them, 0 to 1.
    pub jitter: f64,
    /// A spare worker raised for a recycle is given back after that long without another one due.
    pub settle: Duration,
    /// Raise the replacement before the old one goes, where it can be.
    pub capacity_first: bool,
    /// What is done about processes that outlive the worker which started them.
    pub leftovers: Leftovers,
}

/// What is done about processes that outlive the worker which started them.
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
    /// Whether it is put into the workers.
    pub load: AgentLoad,
    /// Kept-alive connections are closed only after an answer that says so, where a server would
    /// reset them; for up to that long. Zero: off.
    pub drain: Duration,
    /// Requests on these paths are not counted.
    pub ignore_paths: Vec<String>,
}

/// Whether the agent is put into the workers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AgentLoad {
    /// Where a feature needs it.
    Auto,
    /// Yes, and it is a warning if it does not load.
    On,
    /// No.
    Off,
}

/// `[leaks]`.
#[derive(Clone, Debug)]
pub struct LeaksSpec {
    /// When workers are asked.
    pub ask: Leaks,
    /// A report takes no longer.
    pub time_box: Duration,
    /// So many reports are kept; at least 1.
    pub kept: usize,
    /// Where reports and events outlive the service; `None`: they end with it.
    pub directory: Option<PathBuf>,
    /// The service's own directory there, by its name and where its command runs.
    pub service: String,
}

/// When workers are asked why they are fat.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Leaks {
    /// Jobs only, as they near their cap. A worker that serves is not asked.
    Auto,
    /// Also workers that serve, before they are replaced for their memory. They are traced when
    /// they near their ceiling.
    On,
    /// The same, traced from their first request on.
    Always,
    /// Only when an operator asks.
    Off,
}

/// `[restart]`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct RestartSpec {
    /// Which ends are followed by another start.
    pub when: RestartWhen,
    /// The wait after the first unplanned end; it doubles with each further one.
    pub delay_min: Duration,
    /// The longest wait.
    pub delay_max: Duration,
    /// More ends than this within `window` and the service is given up (exit status 75).
    pub limit: u32,
    /// Over which ends are counted.
    pub window: Duration,
}

/// Which ends are followed by another start.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum RestartWhen {
    /// All that were not asked for.
    Always,
    /// Those by a signal or with a status other than 0.
    OnFailure,
    /// None: a job.
    Never,
}

/// `[stop]`.
#[derive(Clone, Copy, Debug)]
pub struct StopSpec {
    /// Asks the command to end.
    pub signal: Signal,
    /// Between asking and SIGKILL, for a worker and for the whole.
    pub grace: Duration,
}

/// `[ready]`.
#[derive(Clone, Debug)]
pub struct ReadySpec {
    /// The sign.
    pub when: ReadyWhen,
    /// A worker or service that is not ready after that long is reported.
    pub timeout: Duration,
}

/// The sign that a service is up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ReadyWhen {
    /// A server: its first worker's heartbeat. Another program: it has lived for a second.
    Auto,
    /// It says `READY=1` on its `NOTIFY_SOCKET`.
    Notify,
    /// A TCP connection succeeds, `HOST:PORT`.
    Tcp(String),
    /// `GET` is answered with a status below 400, `http://HOST:PORT/PATH`.
    Http(String),
    /// It has lived that long.
    Delay(Duration),
}

/// `[control]`.
#[derive(Clone, Debug)]
pub struct ControlSpec {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Serves the reading half over TCP as well, `HOST:PORT`.
    pub metrics: Option<std::net::SocketAddr>,
    /// Host names under which `/v1` is served over TCP, beside addresses and `localhost`.
    pub hosts: Vec<String>,
    /// File with the token that events and reports need over TCP; `None`: they are not served
    /// there.
    pub token_file: Option<PathBuf>,
    /// So many ends and events are kept for asking; at least 1.
    pub history: usize,
    /// Where it is kept what is to be read when we are gone.
    pub termination_log: TerminationLog,
}

/// Where it is kept why a container ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TerminationLog {
    /// Where Kubernetes looks, if we are PID 1 and the file is there.
    Auto,
    /// Nowhere.
    Off,
    /// There.
    At(PathBuf),
}

/// `[log]`.
#[derive(Clone, Copy, Debug)]
pub struct LogSpec {
    /// How a line looks.
    pub format: LogFormat,
    /// Also what is only of use to us.
    pub verbose: bool,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// A record of the journal where stderr is the journal, else for people.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl MemorySpec {
    /// Every limit derived, nothing special.
    pub const fn plain() -> Self {
        Self {
            ceiling: Limit::Auto,
            cap: Limit::Auto,
            budget: Limit::Auto,
            measure: Measure::Private,
            strikes: 1,
            swap: Limit::Off,
            wire: false,
            gc_first: false,
        }
    }
}

#[cfg(test)]
impl Spec {
    /// A single program for unit tests, with these limits and nothing else configured.
    pub(super) fn for_test(memory: MemorySpec) -> Self {
        let command = CommandSpec {
            listen: Vec::new(),
            program: "/bin/true".into(),
            argv: Vec::new(),
            env: BTreeMap::new(),
            directory: None,
            user: None,
        };
        Self::for_pool("shop".to_owned(), memory, command, "/tmp".into())
    }
}

impl Spec {
    /// What the machine's side of a pool is to be: `command` is the template's, and nothing of it
    /// is restarted or recycled but by the pool.
    pub fn for_pool(
        name: String,
        memory: MemorySpec,
        command: CommandSpec,
        directory: PathBuf,
    ) -> Self {
        let never = Duration::MAX;
        Self {
            kind: Kind::Single,
            kind_is_guessed: false,
            command,
            memory,
            rlimits: BTreeMap::new(),
            cgroup: CgroupSpec::default(),
            recycle: RecycleSpec {
                at_once: 1,
                min_age: Duration::ZERO,
                max_age: None,
                max_tasks: None,
                jitter: 0.0,
                settle: never,
                capacity_first: false,
                leftovers: Leftovers::Tell,
            },
            agent: AgentSpec {
                load: AgentLoad::Off,
                drain: Duration::ZERO,
                ignore_paths: Vec::new(),
            },
            leaks: LeaksSpec {
                ask: Leaks::Off,
                time_box: Duration::ZERO,
                kept: 1,
                directory: None,
                service: String::new(),
            },
            restart: RestartSpec {
                when: RestartWhen::Always,
                delay_min: Duration::ZERO,
                delay_max: Duration::ZERO,
                limit: u32::MAX,
                window: never,
            },
            stop: StopSpec {
                signal: Signal::TERM,
                grace: Duration::ZERO,
            },
            ready: ReadySpec {
                when: ReadyWhen::Auto,
                timeout: never,
            },
            dry_run: false,
            control: ControlSpec {
                socket: directory.join(format!("{name}.sock")),
                metrics: None,
                hosts: Vec::new(),
                token_file: None,
                history: 1,
                termination_log: TerminationLog::Off,
            },
            log: LogSpec {
                format: LogFormat::Text,
                verbose: false,
            },
            name,
        }
    }
}
