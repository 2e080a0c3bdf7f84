//! `Spec` to TOML: the effective configuration, as `supervise check` shows it. It loads again.

use std::{ffi::OsStr, time::Duration};

use toml::{Table, Value};

use crate::{
    supervisor::spec::{Limit, ReadyWhen, Rlimit, Spec, TerminationLog},
    units::{Bytes, Size},
};

use super::words::{FORMATS, LEAKS, LEFTOVERS, LOADS, MEASURES, SERVERS, WHENS, WIRES};

/// The effective configuration. A text that is not UTF-8 is shown as well as it can be.
pub fn render(spec: &Spec) -> String {
    let mut all = Table::new();
    put(&mut all, "name", spec.name.as_str());
    let argv: Vec<Value> = spec.command.argv.iter().map(|word| text(word)).collect();
    put(&mut all, "command", argv);
    put(&mut all, "server", named(&SERVERS, Some(spec.kind)));
    put(&mut all, "dry_run", spec.dry_run);
    if let Some(directory) = &spec.command.directory {
        put(&mut all, "directory", text(directory.as_os_str()));
    }
    if let Some(user) = &spec.command.user {
        put(&mut all, "user", user.as_str());
    }
    let listen = spec.command.listen.iter();
    let listen: Vec<Value> = listen.map(|one| one.to_string().into()).collect();
    if !listen.is_empty() {
        put(&mut all, "listen", listen);
    }
    let env = &spec.command.env;
    let env = env.iter().map(|(name, value)| (lossy(name), text(value)));
    put_some(&mut all, "env", env.collect());
    let rlimits = spec.rlimits.iter();
    let rlimits = rlimits.map(|(name, limit)| (name.clone(), Value::from(rlimit(*limit))));
    put_some(&mut all, "rlimit", rlimits.collect());
    put(&mut all, "memory", memory(spec));
    put(&mut all, "cgroup", cgroup(spec));
    put(&mut all, "recycle", recycle(spec));
    put(&mut all, "agent", agent(spec));
    put(&mut all, "leaks", leaks(spec));
    put(&mut all, "restart", restart(spec));
    put(&mut all, "stop", stop(spec));
    put(&mut all, "ready", ready(spec));
    put(&mut all, "control", control(spec));
    let mut log = Table::new();
    put(&mut log, "format", named(&FORMATS, spec.log.format));
    put(&mut log, "verbose", spec.log.verbose);
    put(&mut all, "log", log);
    all.to_string()
}

fn memory(spec: &Spec) -> Table {
    let memory = &spec.memory;
    let mut table = Table::new();
    put(&mut table, "ceiling", limit(memory.ceiling));
    put(&mut table, "cap", limit(memory.cap));
    put(&mut table, "budget", limit(memory.budget));
    put(&mut table, "measure", named(&MEASURES, memory.measure));
    put(&mut table, "strikes", i64::from(memory.strikes));
    put(&mut table, "swap", limit(memory.swap));
    put(&mut table, "wire", named(&WIRES, memory.wire));
    put(&mut table, "gc_first", memory.gc_first);
    table
}

fn cgroup(spec: &Spec) -> Table {
    let mut table = Table::new();
    put_count(&mut table, "pids_max", spec.cgroup.pids_max);
    put_count(&mut table, "cpu_weight", spec.cgroup.cpu_weight);
    table
}

fn put_count(table: &mut Table, name: &str, count: Option<u64>) {
    match count {
        Some(count) => put(table, name, i64::try_from(count).unwrap_or(i64::MAX)),
        None => put(table, name, "none"),
    }
}

fn recycle(spec: &Spec) -> Table {
    let recycle = &spec.recycle;
    let mut table = Table::new();
    put(&mut table, "at_once", i64::from(recycle.at_once));
    put(&mut table, "min_age", duration(recycle.min_age));
    let max_age = recycle.max_age.map_or_else(|| "none".to_owned(), duration);
    put(&mut table, "max_age", max_age);
    put_count(&mut table, "max_tasks", recycle.max_tasks);
    if !spec.agent.ignore_paths.is_empty() {
        put(&mut table, "ignore_paths", spec.agent.ignore_paths.clone());
    }
    put(&mut table, "jitter", recycle.jitter);
    put(&mut table, "settle", duration(recycle.settle));
    put(&mut table, "capacity_first", recycle.capacity_first);
    put(
        &mut table,
        "leftovers",
        named(&LEFTOVERS, recycle.leftovers),
    );
    table
}

fn agent(spec: &Spec) -> Table {
    let mut table = Table::new();
    put(&mut table, "load", named(&LOADS, spec.agent.load));
    put(&mut table, "drain", duration(spec.agent.drain));
    table
}

fn leaks(spec: &Spec) -> Table {
    let leaks = &spec.leaks;
    let mut table = Table::new();
    put(&mut table, "ask", named(&LEAKS, leaks.ask));
    put(&mut table, "time_box", duration(leaks.time_box));
    put(
        &mut table,
        "kept",
        i64::try_from(leaks.kept).unwrap_or(i64::MAX),
    );
    if let Some(directory) = &leaks.directory {
        put(&mut table, "directory", text(directory.as_os_str()));
    }
    table
}

fn restart(spec: &Spec) -> Table {
    let restart = &spec.restart;
    let mut table = Table::new();
    put(&mut table, "when", named(&WHENS, restart.when));
    put(&mut table, "delay_min", duration(restart.delay_min));
    put(&mut table, "delay_max", duration(restart.delay_max));
    put(&mut table, "limit", i64::from(restart.limit));
    put(&mut table, "window", duration(restart.window));
    table
}

fn stop(spec: &Spec) -> Table {
    let mut table = Table::new();
    put(&mut table, "signal", spec.stop.signal.to_string());
    put(&mut table, "grace", duration(spec.stop.grace));
    table
}

fn ready(spec: &Spec) -> Table {
    let when = match &spec.ready.when {
        ReadyWhen::Auto => "auto".to_owned(),
        ReadyWhen::Notify => "notify".to_owned(),
        ReadyWhen::Tcp(address) => format!("tcp:{address}"),
        ReadyWhen::Http(url) => url.clone(),
        ReadyWhen::Delay(delay) => format!("delay:{}", duration(*delay)),
    };
    let mut table = Table::new();
    put(&mut table, "when", when);
    put(&mut table, "timeout", duration(spec.ready.timeout));
    table
}

fn control(spec: &Spec) -> Table {
    let control = &spec.control;
    let mut table = Table::new();
    put(&mut table, "socket", text(control.socket.as_os_str()));
    let metrics = control.metrics.map(|address| address.to_string());
    put(
        &mut table,
        "metrics",
        metrics.unwrap_or_else(|| "none".to_owned()),
    );
    if !control.hosts.is_empty() {
        put(&mut table, "hosts", control.hosts.clone());
    }
    if let Some(path) = &control.token_file {
        put(&mut table, "token_file", text(path.as_os_str()));
    }
    let history = i64::try_from(control.history).unwrap_or(i64::MAX);
    put(&mut table, "history", history);
    let log = match &control.termination_log {
        TerminationLog::Auto => Value::from("auto"),
        TerminationLog::Off => Value::from("off"),
        TerminationLog::At(path) => text(path.as_os_str()),
    };
    put(&mut table, "termination_log", log);
    table
}

/// Leaves out what is empty.
fn put_some(all: &mut Table, key: &str, table: Table) {
    if !table.is_empty() {
        put(all, key, table);
    }
}

fn put(table: &mut Table, key: &str, value: impl Into<Value>) {
    table.insert(key.to_owned(), value.into());
}

/// The word for it; every value has one.
fn named<T: PartialEq>(known: &[(&'static str, T)], value: T) -> &'static str {
    known
        .iter()
        .find(|(_, meant)| *meant == value)
        .map_or("auto", |(name, _)| name)
}

fn text(words: &OsStr) -> Value {
    Value::String(lossy(words))
}

fn lossy(words: &OsStr) -> String {
    words.to_string_lossy().into_owned()
}

fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn limit(limit: Limit) -> String {
    match limit {
        Limit::Auto => "auto".to_owned(),
        Limit::Off => "none".to_owned(),
        Limit::At(Size::Percent(percent)) => format!("{percent}%"),
        Limit::At(Size::Bytes(bytes)) => exact(bytes),
    }
}

/// Not rounded as `Bytes` shows it: what is written here is loaded again.
fn exact(bytes: Bytes) -> String {
    let shown = bytes.to_string();
    match shown.parse() {
        Ok(Size::Bytes(read)) if read == bytes => shown,
        _ => bytes.get().to_string(),
    }
}

fn rlimit(rlimit: Rlimit) -> String {
    let bound =
        |bound: Option<u64>| bound.map_or("unlimited".to_owned(), |bound| bound.to_string());
    format!("{}:{}", bound(rlimit.soft), bound(rlimit.hard))
}
