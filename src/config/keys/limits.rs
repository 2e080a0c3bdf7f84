//! `[memory]`, `[rlimit]`, `[cgroup]` and `[recycle]`.

use super::{Key, derived, field, key};
use crate::{
    config::types::{
        AutoOrOff, COUNT_MAX, Choice, Choices, Count, Duration, MemoryLimit, Number,
        OptionalDuration, Part, RequestPaths, Swap, Switch, Weight, rlimit,
    },
    supervisor::spec::{Leftovers, Measure},
};

impl Choices for Measure {
    const VALUES: &'static [(&'static str, Self)] = &[
        ("private", Self::Private),
        ("rss", Self::Rss),
        ("pss", Self::Pss),
        ("cgroup", Self::Cgroup),
    ];
}

impl Choices for Leftovers {
    const VALUES: &'static [(&'static str, Self)] = &[("end", Self::End), ("tell", Self::Tell)];
}

pub(super) const KEYS: &[Key] = &[
    key(
        "memory.ceiling",
        ("ceiling", "SIZE"),
        ("auto", "300M"),
        "Recycle a worker above this: 300M, 80% of memory, auto, none",
        field!(MemoryLimit, memory.ceiling),
    )
    .shared()
    .basic(),
    key(
        "memory.cap",
        ("cap", "SIZE"),
        ("auto", "80%"),
        "Let the kernel kill a worker above this: a size, auto, none",
        field!(MemoryLimit, memory.cap),
    )
    .shared()
    .basic(),
    key(
        "memory.budget",
        ("budget", "SIZE"),
        ("auto", "none"),
        "Limit all workers together: a size, auto, none",
        field!(MemoryLimit, memory.budget),
    )
    .shared()
    .pool_default("80%")
    .basic(),
    key(
        "memory.measure",
        ("measure", "private|rss|pss|cgroup"),
        ("private", "rss"),
        "Measure that is compared with the ceiling",
        field!(Choice<Measure>, memory.measure),
    ),
    key(
        "memory.consecutive_samples",
        ("consecutive-samples", "N"),
        ("1", "2"),
        "Consecutive samples above the ceiling required before a worker is recycled",
        field!(Number<1, COUNT_MAX>, memory.consecutive_samples),
    )
    .formerly("memory.strikes", "strikes"),
    key(
        "memory.swap",
        ("swap", "SIZE"),
        ("none", "100M"),
        "Swap that a worker may use in addition to its cap: a size, none",
        field!(Swap, memory.swap),
    ),
    key(
        "memory.threshold",
        ("threshold", "auto|off"),
        ("auto", "off"),
        "Let the kernel report when a worker exceeds its ceiling, if possible",
        field!(AutoOrOff, memory.threshold),
    )
    .formerly("memory.wire", "wire"),
    key(
        "memory.gc_first",
        ("gc-first", "true|false"),
        ("true", "false"),
        "Collect garbage in a worker over its ceiling, and keep the worker if that was enough",
        field!(Switch, memory.gc_first),
    ),
    key(
        "rlimit.*",
        ("rlimit", "NAME=SOFT[:HARD]"),
        ("", r#"nofile = "4096:65536""#),
        "Set an rlimit of each worker: a number, a size, unlimited; may be repeated",
        derived(|spec| {
            let rlimits = spec.rlimits.iter();
            let rlimits: toml::Table = rlimits
                .map(|(name, limit)| (name.clone(), rlimit(*limit).into()))
                .collect();
            (!rlimits.is_empty()).then_some(toml::Value::Table(rlimits))
        }),
    ),
    key(
        "cgroup.pids_max",
        ("pids-max", "N"),
        ("none", "200"),
        "Maximum processes and threads per worker, by cgroup v2: a number, none",
        field!(Count, cgroup.pids_max),
    ),
    key(
        "cgroup.cpu_weight",
        ("cpu-weight", "N"),
        ("none", "50"),
        "CPU weight of the service relative to its sibling cgroups, by cgroup v2: 1 to 10000, none",
        field!(Weight, cgroup.cpu_weight),
    ),
    key(
        "recycle.max_unavailable",
        ("max-unavailable", "N"),
        ("1", "2"),
        "Maximum workers unavailable at once",
        field!(Number<1, COUNT_MAX>, recycle.max_unavailable),
    )
    .formerly("recycle.at_once", "at-once"),
    key(
        "recycle.min_age",
        ("min-age", "DUR"),
        ("10s", "20s"),
        "Do not recycle a worker younger than this, unless it would reach its cap sooner",
        field!(Duration, recycle.min_age),
    ),
    key(
        "recycle.max_age",
        ("max-age", "DUR"),
        ("none", "12h"),
        "Recycle a worker older than this: 30s, 6h, none",
        field!(OptionalDuration, recycle.max_age),
    )
    .shared(),
    key(
        "recycle.max_tasks",
        ("max-tasks", "N"),
        ("none", "1000"),
        "Recycle a worker after this many requests or tasks",
        field!(Count, recycle.max_tasks),
    )
    .shared()
    .basic(),
    key(
        "recycle.ignore_paths",
        ("ignore-paths", "PATH,..."),
        ("", "/healthz"),
        "Do not count requests on these paths: /healthz,/livez",
        field!(RequestPaths, agent.ignore_paths),
    ),
    key(
        "recycle.jitter",
        ("jitter", "PART"),
        ("0.1", "0.2"),
        "Lower each worker's limit by a random part, up to this: 0.1, 10%",
        field!(Part, recycle.jitter),
    ),
    key(
        "recycle.surge_idle",
        ("surge-idle", "DUR"),
        ("1m", "30s"),
        "Stop the surge worker after no recycle was due for this long",
        field!(Duration, recycle.surge_idle),
    )
    .formerly("recycle.settle", "settle"),
    key(
        "recycle.surge",
        ("surge", "true|false"),
        ("true", "false"),
        "Start the replacement before the old worker stops, if the budget has room",
        field!(Switch, recycle.surge),
    )
    .formerly("recycle.capacity_first", "capacity-first"),
    key(
        "recycle.leftovers",
        ("leftovers", "end|tell"),
        ("end", "tell"),
        "Stop processes that outlive their worker, when idle for 5s or when memory is short; tell: only report them",
        field!(Choice<Leftovers>, recycle.leftovers),
    ),
];
