//! Every key there is: the one table from which flags, variables, defaults, help and the checks of
//! the documents come.

/// One thing that can be wished for.
#[derive(Debug)]
pub struct Key {
    /// Where it stands in a file: `memory.ceiling` is `ceiling` in the table `[memory]`. In the
    /// tables `env.*` and `rlimit.*` the names are the user's.
    pub name: &'static str,
    /// Its flag without the dashes; empty: it has none.
    pub flag: &'static str,
    /// What the flag's value is called; empty: a switch, without a value.
    pub value: &'static str,
    /// As it would be written; empty: it has none.
    pub default: &'static str,
    /// One line for `--help`.
    pub help: &'static str,
}

const fn key(
    name: &'static str,
    flag: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> Key {
    Key {
        name,
        flag,
        value,
        default,
        help,
    }
}

/// All keys, by table, in the order in which they are shown.
pub const KEYS: [Key; 51] = [
    key(
        "name",
        "name",
        "NAME",
        "",
        "Name of the service: socket, cgroup, log lines [default: from CONFIG or COMMAND]",
    ),
    key("command", "", "", "", "The command line as a list of words"),
    key(
        "server",
        "server",
        "auto|none|gunicorn",
        "auto",
        "Which server COMMAND is; `none` watches it as one worker",
    ),
    key(
        "directory",
        "directory",
        "DIR",
        "",
        "Where COMMAND runs [default: the current directory]",
    ),
    key(
        "user",
        "user",
        "USER",
        "",
        "Run COMMAND as this user, with its HOME, USER and LOGNAME [default: the user who starts it]",
    ),
    key(
        "listen",
        "listen",
        "ADDR,...",
        "",
        "Hold a listening socket for COMMAND, given on as LISTEN_FDS: 127.0.0.1:8000, :8000, unix:/PATH; may be repeated",
    ),
    key(
        "dry_run",
        "dry-run",
        "",
        "false",
        "Say what would be recycled, and do nothing",
    ),
    key(
        "env.*",
        "env",
        "K=V",
        "",
        "Set a variable of COMMAND's environment; may be repeated",
    ),
    key(
        "memory.ceiling",
        "ceiling",
        "SIZE",
        "auto",
        "Recycle a worker above this: 300M, 1.5G, bytes, 80% of the memory there is, auto, none",
    ),
    key(
        "memory.cap",
        "cap",
        "SIZE",
        "auto",
        "The kernel ends a worker above this; a size, auto, none",
    ),
    key(
        "memory.budget",
        "budget",
        "SIZE",
        "auto",
        "The same for all workers together; a size, auto, none",
    ),
    key(
        "memory.measure",
        "measure",
        "private|rss|pss|cgroup",
        "private",
        "Which measure is compared with the ceiling",
    ),
    key(
        "memory.strikes",
        "strikes",
        "N",
        "1",
        "So many samples in a row must be over the ceiling",
    ),
    key(
        "memory.swap",
        "swap",
        "SIZE",
        "none",
        "Swap a worker may use beside its cap; a size, none",
    ),
    key(
        "memory.wire",
        "wire",
        "auto|off",
        "auto",
        "Let the kernel tell when a worker passes the ceiling, where it can",
    ),
    key(
        "memory.gc_first",
        "gc-first",
        "true|false",
        "true",
        "Over its ceiling, a worker collects garbage first and stays if that was enough",
    ),
    key(
        "rlimit.*",
        "rlimit",
        "NAME=SOFT[:HARD]",
        "",
        "Set an rlimit of each worker: a number, a size or unlimited; may be repeated",
    ),
    key(
        "cgroup.pids_max",
        "pids-max",
        "N",
        "none",
        "So many processes and threads a worker may be, where cgroup v2 can hold it; none",
    ),
    key(
        "cgroup.cpu_weight",
        "cpu-weight",
        "N",
        "none",
        "The service's share of the processor beside its neighbours, 1 to 10000, by cgroup v2; none",
    ),
    key(
        "recycle.at_once",
        "at-once",
        "N",
        "1",
        "So many workers may be away at a time",
    ),
    key(
        "recycle.min_age",
        "min-age",
        "DUR",
        "10s",
        "Recycle no worker younger than this, unless its growth would end it sooner",
    ),
    key(
        "recycle.max_age",
        "max-age",
        "DUR",
        "none",
        "Recycle a worker older than this: 30s, 6h, none",
    ),
    key(
        "recycle.max_tasks",
        "max-tasks",
        "N",
        "none",
        "Recycle a worker after so many requests or tasks; none",
    ),
    key(
        "recycle.ignore_paths",
        "ignore-paths",
        "PATH,...",
        "",
        "Do not count requests on these paths: /healthz,/livez",
    ),
    key(
        "recycle.jitter",
        "jitter",
        "PART",
        "0.1",
        "Spread equal limits by up to this part of them: 0.1 or 10%",
    ),
    key(
        "recycle.settle",
        "settle",
        "DUR",
        "60s",
        "Give a spare worker back after this long without another recycle due",
    ),
    key(
        "recycle.capacity_first",
        "capacity-first",
        "true|false",
        "true",
        "Raise the replacement before the old worker goes, where the budget has room",
    ),
    key(
        "recycle.leftovers",
        "leftovers",
        "end|tell",
        "end",
        "Processes that outlive their worker: end: end them once idle for 5s or when memory is short; tell: only report them",
    ),
    key(
        "agent.load",
        "agent",
        "auto|on|off",
        "auto",
        "Put the agent into Python workers: where a feature needs it, or warn where it is not, or never",
    ),
    key(
        "agent.drain",
        "drain",
        "DUR",
        "2s",
        "Let kept-alive connections end by an answer, for up to this long, where a server resets them; 0s: off",
    ),
    key(
        "leaks.ask",
        "leaks",
        "auto|on|always|off",
        "auto",
        "Ask workers why their memory grew: auto: jobs only; on: servers' workers too; always: and trace them from their first request on; off: none",
    ),
    key(
        "leaks.time_box",
        "leaks-time-box",
        "DUR",
        "2s",
        "A report takes no longer",
    ),
    key(
        "leaks.kept",
        "leaks-kept",
        "N",
        "32",
        "So many reports are kept",
    ),
    key(
        "leaks.directory",
        "leaks-directory",
        "DIR",
        "",
        "Where reports and events are kept, in a directory NAME-HASH for each service \
         [default: the state directory]",
    ),
    key(
        "restart.when",
        "restart",
        "always|on-failure|never",
        "on-failure",
        "Which ends of COMMAND are followed by another start; never: a job",
    ),
    key(
        "restart.delay_min",
        "restart-delay-min",
        "DUR",
        "200ms",
        "The wait before a restart; it doubles with each further one",
    ),
    key(
        "restart.delay_max",
        "restart-delay-max",
        "DUR",
        "30s",
        "The longest wait before a restart",
    ),
    key(
        "restart.limit",
        "restart-limit",
        "N",
        "5",
        "More ends than this within the window, and the service is given up",
    ),
    key(
        "restart.window",
        "restart-window",
        "DUR",
        "60s",
        "Over which ends are counted",
    ),
    key(
        "stop.signal",
        "stop-signal",
        "SIGNAL",
        "TERM",
        "Asks COMMAND to end",
    ),
    key(
        "stop.grace",
        "grace",
        "DUR",
        "30s",
        "Between asking a worker or COMMAND to end and SIGKILL",
    ),
    key(
        "ready.when",
        "ready",
        "WHEN",
        "auto",
        "The sign of being up: auto, notify, tcp:HOST:PORT, http://HOST:PORT/PATH, delay:DUR",
    ),
    key(
        "ready.timeout",
        "ready-timeout",
        "DUR",
        "60s",
        "Report what is not ready after this long",
    ),
    key(
        "control.socket",
        "socket",
        "PATH",
        "",
        "The control socket [default: NAME.sock in the runtime directory]",
    ),
    key(
        "control.metrics",
        "metrics",
        "ADDR",
        "none",
        "Serve metrics and status over TCP: HOST:PORT, or PORT on loopback; none",
    ),
    key(
        "control.hosts",
        "hosts",
        "NAME,...",
        "",
        "Host names accepted for status, events and reports over TCP, beside addresses and localhost",
    ),
    key(
        "control.token_file",
        "token-file",
        "PATH",
        "",
        "File (mode 0600) with the token that events and reports need over TCP; without it they are refused there",
    ),
    key(
        "control.history",
        "history",
        "N",
        "1000",
        "So many ends and events are kept for asking",
    ),
    key(
        "control.termination_log",
        "termination-log",
        "PATH|auto|off",
        "auto",
        "Keep the reason of an end there; auto: /dev/termination-log, as PID 1 in a container",
    ),
    key(
        "log.format",
        "log-format",
        "auto|text|json",
        "auto",
        "How a log line looks; auto: a record with fields where stderr is the journal, else text",
    ),
    key(
        "log.verbose",
        "verbose",
        "",
        "false",
        "Log what only helps to understand supervise itself, too",
    ),
];

impl Key {
    /// The table it stands in; empty: none.
    pub fn table(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(table, _)| table)
    }

    /// Its name within its table.
    pub fn leaf(&self) -> &'static str {
        self.name
            .split_once('.')
            .map_or(self.name, |(_, leaf)| leaf)
    }

    /// Any name may stand in its table.
    pub fn is_map(&self) -> bool {
        self.name.ends_with(".*")
    }

    /// It is a list: its flag may be repeated.
    pub fn is_list(&self) -> bool {
        self.value.ends_with(",...")
    }

    /// Its environment variable, for those that have one.
    pub fn variable(&self) -> Option<String> {
        let has_one = !self.flag.is_empty() && !self.is_map();
        has_one.then(|| {
            format!(
                "SUPERVISE_{}",
                self.flag.to_ascii_uppercase().replace('-', "_")
            )
        })
    }
}

/// The word of `known` that was probably meant by `word`.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        // As near as clap asks a flag to be before it names it.
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_keys_share_a_name_or_a_flag() {
        for (at, one) in KEYS.iter().enumerate() {
            for other in KEYS.iter().skip(at + 1) {
                assert_ne!(one.name, other.name);
                assert!(one.flag != other.flag || one.flag.is_empty(), "{one:?}");
            }
        }
    }

    #[test]
    fn the_nearest_word_is_named_only_if_it_is_near() {
        let known = ["ceiling", "cap", "budget"];
        assert_eq!(nearest("celing", known), Some("ceiling"));
        assert_eq!(nearest("zzz", known), None);
    }
}
