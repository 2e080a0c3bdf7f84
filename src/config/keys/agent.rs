//! `[agent]` and `[leaks]`.

use super::{Key, derived, field, key};
use crate::{
    config::types::{Choice, Choices, Duration, Entries, PositiveDuration, text},
    supervisor::spec::{AgentLoad, Leaks},
};

/// Maximum number of kept reports. Each has up to 64 KiB.
const KEPT_MAX: u32 = 1_000;

impl Choices for AgentLoad {
    const VALUES: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("on", Self::On), ("off", Self::Off)];
}

impl Choices for Leaks {
    const VALUES: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("on", Self::On),
        ("always", Self::Always),
        ("off", Self::Off),
    ];
}

pub(super) const KEYS: &[Key] = &[
    key(
        "agent.load",
        ("agent", "auto|on|off"),
        ("auto", "on"),
        "Load the agent into Python workers; auto: if a feature needs it; on: warn if it does not load",
        field!(Choice<AgentLoad>, agent.load),
    ),
    key(
        "agent.drain",
        ("drain", "DUR"),
        ("2s", "3s"),
        "Close keep-alive connections with `Connection: close`, for up to this long; 0s: off",
        field!(Duration, agent.drain),
    ),
    key(
        "leaks.ask",
        ("leaks", "auto|on|always|off"),
        ("auto", "on"),
        "Make reports of workers' memory growth, before a worker exits; on: trace workers of servers more often; always: on, and trace from the first request",
        field!(Choice<Leaks>, leaks.ask),
    )
    .shared(),
    key(
        "leaks.time_box",
        ("leaks-time-box", "DUR"),
        ("2s", "4s"),
        "Time limit of a memory report",
        field!(PositiveDuration, leaks.time_box),
    )
    .shared(),
    key(
        "leaks.kept",
        ("leaks-kept", "N"),
        ("32", "64"),
        "Maximum memory reports kept",
        field!(Entries<KEPT_MAX>, leaks.kept),
    )
    .shared(),
    key(
        "leaks.directory",
        ("leaks-directory", "DIR"),
        ("", "/srv/reports"),
        "Directory for reports and events, with a subdirectory NAME-HASH for each service [default: the state directory]",
        derived(|spec| Some(text(spec.leaks.directory.as_ref()?.as_os_str()))),
    )
    .shared(),
];
