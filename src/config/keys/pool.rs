//! `[pool]`.

use super::{Key, Mode, key};
use crate::{
    config::types::{
        AutoOr, COUNT_MAX, Callable, Choice, Choices, Modules, Number, OptionalDuration,
        OptionalPath, Switch,
    },
    supervisor::pool::spec::{Call, StartMethod},
};

/// Maximum workers of a pool.
const WORKERS_MAX: u32 = 4096;
/// Maximum tasks that are sent to a worker at once.
const BATCH_MAX: u32 = 65_536;

impl Choices for StartMethod {
    const VALUES: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("template", Self::Template),
        ("fresh", Self::Fresh),
    ];
}

impl Choices for Call {
    const VALUES: &'static [(&'static str, Self)] = &[
        ("one", Self::One),
        ("args", Self::Args),
        ("kwargs", Self::Kwargs),
    ];
}

/// A field of the pool's settings.
macro_rules! pool_field {
    ($type:ty, $name:ident) => {
        $crate::config::keys::Field {
            set: Some(|spec, value| {
                let pool = spec.pool.get_or_insert_default();
                pool.$name = <$type as $crate::config::types::ValueType>::parse(value)?;
                Ok(())
            }),
            show: |spec| {
                <$type as $crate::config::types::ValueType>::show(&spec.pool.as_ref()?.$name)
            },
        }
    };
}

const fn only_pool(mut key: Key) -> Key {
    key.modes = &[Mode::Pool];
    key
}

pub(super) const KEYS: &[Key] = &[
    only_pool(key(
        "pool.function",
        ("", ""),
        ("", "etl:convert"),
        "Function to call for each task, MODULE:FUNCTION",
        pool_field!(Callable, function),
    )),
    only_pool(key(
        "pool.workers",
        ("workers", "N|auto"),
        ("auto", "4"),
        "Number of workers; auto: the number of cores",
        pool_field!(AutoOr<WORKERS_MAX>, workers),
    ))
    .basic()
    .short('n'),
    only_pool(key(
        "pool.task_timeout",
        ("task-timeout", "DUR"),
        ("none", "1m"),
        "Kill a task that runs longer: 30s, 6h, none",
        pool_field!(OptionalDuration, task_timeout),
    ))
    .basic(),
    only_pool(key(
        "pool.retries",
        ("retries", "N"),
        ("0", "3"),
        "Maximum retries of a failed task",
        pool_field!(Number<0, COUNT_MAX>, retries),
    ))
    .basic(),
    only_pool(key(
        "pool.oom_retries",
        ("oom-retries", "N"),
        ("1", "2"),
        "Maximum retries of a task whose worker reached its cap, each alone in a new worker",
        pool_field!(Number<0, COUNT_MAX>, oom_retries),
    )),
    only_pool(key(
        "pool.python",
        ("python", "PATH"),
        ("", "/usr/bin/python3"),
        "Python interpreter [default: that of the environment of supervise, else python3]",
        pool_field!(OptionalPath, python),
    )),
    only_pool(key(
        "pool.imports",
        ("import", "MODULE,..."),
        ("", "numpy"),
        "Import this module first, once for all workers; may be repeated",
        pool_field!(Modules, imports),
    )),
    only_pool(key(
        "pool.start",
        ("start", "auto|template|fresh"),
        ("auto", "fresh"),
        "How workers start; template: forked from a process with all imports; fresh: each worker imports; auto: template, unless an import opens something that forks cannot share",
        pool_field!(Choice<StartMethod>, start),
    )),
    only_pool(key(
        "pool.batch",
        ("batch", "N|auto"),
        ("auto", "16"),
        "Tasks sent to a worker at once; auto: tasks that take 1ms together",
        pool_field!(AutoOr<BATCH_MAX>, batch),
    )),
    only_pool(key(
        "pool.input",
        ("input", "FILE"),
        ("", "tasks.jsonl"),
        "Read tasks from FILE [default: standard input]",
        pool_field!(OptionalPath, input),
    ))
    .basic()
    .short('i'),
    only_pool(key(
        "pool.output",
        ("output", "FILE"),
        ("", "results.jsonl"),
        "Write results to FILE, which must not be the input [default: standard output]",
        pool_field!(OptionalPath, output),
    ))
    .basic()
    .short('o'),
    only_pool(key(
        "pool.ordered",
        ("ordered", ""),
        ("false", "true"),
        "Write results in the order of the tasks",
        pool_field!(Switch, is_ordered),
    ))
    .basic(),
    only_pool(key(
        "pool.plain",
        ("plain", ""),
        ("false", "true"),
        "Read each line as a string, not as JSON",
        pool_field!(Switch, is_plain),
    ))
    .basic(),
    only_pool(key(
        "pool.call",
        ("call", "one|args|kwargs"),
        ("one", "kwargs"),
        "How to pass the `args` of a task: as one value, as positional arguments, as keywords",
        pool_field!(Choice<Call>, call),
    )),
    only_pool(key(
        "pool.initializer",
        ("initializer", "MODULE:FUNCTION"),
        ("", "etl:connect"),
        "Function to call first in each worker",
        pool_field!(Callable, initializer),
    )),
    only_pool(key(
        "pool.journal",
        ("journal", "FILE"),
        ("", "etl.journal"),
        "Keep a journal in FILE, so that a stopped run can be resumed",
        pool_field!(OptionalPath, journal),
    ))
    .basic(),
    only_pool(key(
        "pool.resume",
        ("resume", ""),
        ("false", "true"),
        "Continue the run of the journal: finished tasks do not run again; the input must be the same",
        pool_field!(Switch, resumes),
    ))
    .basic(),
    only_pool(key(
        "pool.retry_failed",
        ("retry-failed", ""),
        ("false", "true"),
        "With --resume, run tasks that failed in the journal again",
        pool_field!(Switch, retries_failed),
    )),
    only_pool(key(
        "pool.stop_on_error",
        ("stop-on-error", ""),
        ("false", "true"),
        "Stop at the first failure",
        pool_field!(Switch, stops_on_error),
    )),
];
