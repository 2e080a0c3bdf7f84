//! `[restart]`, `[stop]`, `[ready]`, `[control]` and `[log]`.

use super::{Key, derived, field, key};
use crate::{
    config::{
        paths,
        types::{
            Address, COUNT_MAX, Choice, Choices, Duration, Entries, Hosts, Number, OptionalPath,
            PositiveDuration, Readiness, SignalName, Switch, TerminationFile, text,
        },
    },
    supervisor::spec::{LogFormat, RestartWhen},
};

/// Maximum number of exits and events kept in memory. Each has a few hundred bytes.
const HISTORY_MAX: u32 = 100_000;

impl Choices for RestartWhen {
    const VALUES: &'static [(&'static str, Self)] = &[
        ("always", Self::Always),
        ("on-failure", Self::OnFailure),
        ("never", Self::Never),
    ];
}

impl Choices for LogFormat {
    const VALUES: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("text", Self::Text),
        ("json", Self::Json),
    ];
}

pub(super) const KEYS: &[Key] = &[
    key(
        "restart.when",
        ("restart", "always|on-failure|never"),
        ("on-failure", "always"),
        "When to restart COMMAND; never: it is a job",
        field!(Choice<RestartWhen>, restart.when),
    )
    .basic(),
    key(
        "restart.delay_min",
        ("restart-delay-min", "DUR"),
        ("200ms", "100ms"),
        "Delay before the first restart; doubled for each further restart",
        field!(PositiveDuration, restart.delay_min),
    ),
    key(
        "restart.delay_max",
        ("restart-delay-max", "DUR"),
        ("30s", "10s"),
        "Maximum delay before a restart",
        field!(PositiveDuration, restart.delay_max),
    ),
    key(
        "restart.limit",
        ("restart-limit", "N"),
        ("5", "7"),
        "Give up after more exits than this within the window",
        field!(Number<1, COUNT_MAX>, restart.limit),
    ),
    key(
        "restart.window",
        ("restart-window", "DUR"),
        ("1m", "2m"),
        "Time window of the restart limit",
        field!(PositiveDuration, restart.window),
    ),
    key(
        "stop.signal",
        ("stop-signal", "SIGNAL"),
        ("TERM", "INT"),
        "Signal that stops COMMAND",
        field!(SignalName, stop.signal),
    ),
    key(
        "stop.grace",
        ("grace", "DUR"),
        ("30s", "40s"),
        "Grace period of a worker or COMMAND between the stop signal and SIGKILL",
        field!(Duration, stop.grace),
    ),
    key(
        "stop.stream_grace",
        ("stream-grace", "DUR"),
        ("10s", "20s"),
        "Time for event streams and WebSockets of a worker before they are closed; by default at most a third of stop.grace",
        field!(Duration, stop.stream_grace),
    ),
    key(
        "stop.extend_max",
        ("extend-max", "DUR"),
        ("1h", "5m"),
        "Maximum that a program may add to its grace period by EXTEND_TIMEOUT_USEC of sd_notify",
        field!(Duration, stop.extend_max),
    ),
    key(
        "ready.when",
        ("ready", "WHEN"),
        ("auto", "http://127.0.0.1:8000/ready"),
        "How readiness is detected: auto, notify, tcp:HOST:PORT, http://HOST:PORT/PATH, delay:DUR",
        field!(Readiness, ready.when),
    ),
    key(
        "ready.timeout",
        ("ready-timeout", "DUR"),
        ("1m", "2m"),
        "Report a worker or COMMAND that is not ready after this long",
        field!(PositiveDuration, ready.timeout),
    ),
    key(
        "control.socket",
        ("socket", "PATH"),
        ("", "/run/shop.control"),
        "Control socket [default: NAME.sock in the runtime directory]",
        derived(|spec| {
            let socket = &spec.control.socket;
            let is_derived = spec.pool.as_ref().is_some_and(|pool| {
                !pool.is_named && *socket == paths::socket_in(&pool.directory, &spec.name)
            });
            (!is_derived).then(|| text(socket.as_os_str()))
        }),
    )
    .shared(),
    key(
        "control.metrics",
        ("metrics", "ADDR"),
        ("none", "127.0.0.1:9100"),
        "Serve metrics and status at HOST:PORT, or PORT on loopback",
        field!(Address, control.metrics),
    )
    .shared()
    .basic(),
    key(
        "control.hosts",
        ("hosts", "NAME,..."),
        ("", "shop.example"),
        "Host names accepted over TCP for status, events and reports, in addition to addresses and localhost",
        field!(Hosts, control.hosts),
    )
    .shared(),
    key(
        "control.token_file",
        ("token-file", "PATH"),
        ("", "/etc/supervise/token"),
        "File (mode 0600) with the token for events and reports over TCP; without it, these requests are refused",
        field!(OptionalPath, control.token_file),
    )
    .shared(),
    key(
        "control.history",
        ("history", "N"),
        ("1000", "500"),
        "Maximum exits and events kept in memory",
        field!(Entries<HISTORY_MAX>, control.history),
    )
    .shared(),
    key(
        "control.termination_log",
        ("termination-log", "PATH|auto|off"),
        ("auto", "off"),
        "File for the reason of the exit; auto: /dev/termination-log, if PID 1 in a container",
        field!(TerminationFile, control.termination_log),
    ),
    key(
        "log.format",
        ("log-format", "auto|text|json"),
        ("auto", "json"),
        "Format of log lines; auto: records with fields if standard error is the journal, else text",
        field!(Choice<LogFormat>, log.format),
    ),
    key(
        "log.verbose",
        ("verbose", ""),
        ("false", "true"),
        "Log internal details as well",
        field!(Switch, log.verbose),
    ),
];
