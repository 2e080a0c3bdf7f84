//! Settings with all features off, from which others are made.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::spec::{
    AgentLoad, AgentSpec, CgroupSpec, CommandSpec, ControlSpec, Kind, Leaks, LeaksSpec, Leftovers,
    LogFormat, LogSpec, MemorySpec, ReadySpec, ReadyWhen, RecycleSpec, RestartSpec, RestartWhen,
    Spec, StopSpec, TerminationLog,
};
use crate::units::Signal;

#[cfg(test)]
impl Spec {
    /// A single program for unit tests, with these limits and nothing else configured.
    pub(crate) fn for_test(memory: MemorySpec) -> Self {
        let command = CommandSpec {
            listen: Vec::new(),
            program: "/bin/true".into(),
            argv: Vec::new(),
            env: BTreeMap::new(),
            directory: None,
            user: None,
        };
        Self::base("shop".to_owned(), memory, command, "/tmp/shop.sock".into())
    }
}

impl Spec {
    /// Settings with all features off and no time limits. A pool uses them for the settings that it
    /// has no keys for, because it restarts and recycles its workers by itself.
    pub fn base(name: String, memory: MemorySpec, command: CommandSpec, socket: PathBuf) -> Self {
        let never = Duration::MAX;
        Self {
            kind: Kind::Single,
            kind_is_guessed: false,
            copies: None,
            copies_up_to: None,
            overlap: false,
            command,
            memory,
            rlimits: BTreeMap::new(),
            cgroup: CgroupSpec::default(),
            recycle: RecycleSpec {
                max_unavailable: 1,
                min_age: Duration::ZERO,
                max_age: None,
                max_tasks: None,
                jitter: 0.0,
                surge_idle: never,
                surge: false,
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
                stream_grace: Duration::ZERO,
                extend_max: Duration::ZERO,
            },
            ready: ReadySpec {
                when: ReadyWhen::Auto,
                timeout: never,
            },
            dry_run: false,
            control: ControlSpec {
                socket,
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
            pool: None,
        }
    }
}
