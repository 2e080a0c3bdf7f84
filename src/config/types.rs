//! The types of values: how a value is parsed, and how it is written in a file.

use std::{ffi::OsStr, marker::PhantomData, net::SocketAddr, path::PathBuf, time};

use toml::Value as Shown;

use super::{
    listen,
    parsers::{self, Parsed, choice},
    settings::Value,
};
use crate::{
    supervisor::spec::{Limit, ReadyWhen, Rlimit, TerminationLog},
    units::{Bytes, Signal, Size},
};

/// Maximum of most counts. A larger number is certainly an error.
pub(super) const COUNT_MAX: u32 = 10_000;

/// The type of a key's value.
pub(super) trait ValueType {
    type Of;

    /// Parses a value.
    fn parse(value: &Value) -> Parsed<Self::Of>;

    /// The value as written in a file; `None`: it is not set.
    fn show(of: &Self::Of) -> Option<Shown>;
}

/// The names of the values of an enumeration.
pub(super) trait Choices: Copy + PartialEq + 'static {
    const VALUES: &'static [(&'static str, Self)];
}

/// One of several names.
pub(super) struct Choice<T>(PhantomData<T>);

impl<T: Choices> ValueType for Choice<T> {
    type Of = T;

    fn parse(value: &Value) -> Parsed<T> {
        choice(value, T::VALUES)
    }

    fn show(of: &T) -> Option<Shown> {
        Some(name_of(T::VALUES, *of).into())
    }
}

/// A whole number in this range.
pub(super) struct Number<const MIN: u32, const MAX: u32>;

impl<const MIN: u32, const MAX: u32> ValueType for Number<MIN, MAX> {
    type Of = u32;

    fn parse(value: &Value) -> Parsed<u32> {
        parsers::count(value, MIN..=MAX)
    }

    fn show(of: &u32) -> Option<Shown> {
        Some(i64::from(*of).into())
    }
}

/// The number of entries of a list, from 1.
pub(super) struct Entries<const MAX: u32>;

impl<const MAX: u32> ValueType for Entries<MAX> {
    type Of = usize;

    fn parse(value: &Value) -> Parsed<usize> {
        let count = parsers::count(value, 1..=MAX)?;
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    fn show(of: &usize) -> Option<Shown> {
        Some(i64::try_from(*of).unwrap_or(i64::MAX).into())
    }
}

/// A whole number from 1, or `auto`.
pub(super) struct AutoOr<const MAX: u32>;

impl<const MAX: u32> ValueType for AutoOr<MAX> {
    type Of = Option<u32>;

    fn parse(value: &Value) -> Parsed<Option<u32>> {
        match value {
            Value::Untyped(text) | Value::Text(text) if text == "auto" => Ok(None),
            Value::Untyped(_) | Value::Integer(_) => parsers::count(value, 1..=MAX).map(Some),
            _ => Err(parsers::wrong(
                value,
                &format!("`auto` or a number from 1 to {MAX}"),
            )),
        }
    }

    fn show(of: &Option<u32>) -> Option<Shown> {
        Some(of.map_or_else(|| "auto".into(), |number| i64::from(number).into()))
    }
}

/// Defines types by two functions: one that parses, and one that shows.
macro_rules! value_types {
    ($($(#[$doc:meta])* $name:ident: $of:ty = $parse:expr, $show:expr;)+) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl ValueType for $name {
            type Of = $of;

            fn parse(value: &Value) -> Parsed<$of> {
                $parse(value)
            }

            fn show(of: &$of) -> Option<Shown> {
                $show(of)
            }
        }
    )+};
}

value_types! {
    /// `true` or `false`.
    Switch: bool = parsers::switch, |of: &bool| Some((*of).into());
    /// `auto` or `off`.
    AutoOrOff: bool = |value| choice(value, &AUTO_OR_OFF),
        |of: &bool| Some(name_of(&AUTO_OR_OFF, *of).into());
    /// A size, `auto` or `none`.
    MemoryLimit: Limit = parsers::limit, |of: &Limit| Some(limit(*of).into());
    /// A size or `none`.
    Swap: Limit = parsers::swap, |of: &Limit| Some(limit(*of).into());
    /// A whole number from 1, or `none`.
    Count: Option<u64> = parsers::maybe_count, |of: &Option<u64>| Some(or_none(*of));
    /// A weight of `cpu.weight`, or `none`.
    Weight: Option<u64> = parsers::weight, |of: &Option<u64>| Some(or_none(*of));
    /// A duration.
    Duration: time::Duration = parsers::duration, |of: &time::Duration| Some(duration(*of).into());
    /// A duration above zero.
    PositiveDuration: time::Duration = parsers::span,
        |of: &time::Duration| Some(duration(*of).into());
    /// A duration above zero, or `none`.
    OptionalDuration: Option<time::Duration> = parsers::maybe_span,
        |of: &Option<time::Duration>| {
            Some(of.map_or_else(|| "none".to_owned(), duration).into())
        };
    /// A part of a whole, from 0 to 1.
    Part: f64 = parsers::part, |of: &f64| Some((*of).into());
    /// A signal.
    SignalName: Signal = parsers::signal, |of: &Signal| Some(of.to_string().into());
    /// Paths of requests.
    RequestPaths: Vec<String> = parsers::paths, |of: &Vec<String>| list(of);
    /// Names of hosts.
    Hosts: Vec<String> = listen::hosts, |of: &Vec<String>| list(of);
    /// Names of Python modules.
    Modules: Vec<String> = parsers::modules, |of: &Vec<String>| list(of);
    /// `MODULE:FUNCTION`.
    Callable: Option<String> = |value| parsers::callable(value).map(Some),
        |of: &Option<String>| Some(of.as_deref()?.into());
    /// A path.
    OptionalPath: Option<PathBuf> = |value| parsers::path(value).map(Some),
        |of: &Option<PathBuf>| Some(text(of.as_ref()?.as_os_str()));
    /// A TCP address, or `none`.
    Address: Option<SocketAddr> = parsers::address, |of: &Option<SocketAddr>| {
        Some(of.map_or_else(|| "none".to_owned(), |address| address.to_string()).into())
    };
    /// How readiness is detected.
    Readiness: ReadyWhen = parsers::ready, |of: &ReadyWhen| Some(ready(of).into());
    /// A path, `auto` or `off`.
    TerminationFile: TerminationLog = parsers::termination_log, |of: &TerminationLog| {
        Some(match of {
            TerminationLog::Auto => "auto".into(),
            TerminationLog::Off => "off".into(),
            TerminationLog::At(path) => text(path.as_os_str()),
        })
    };
}

const AUTO_OR_OFF: [(&str, bool); 2] = [("auto", true), ("off", false)];

/// The name of a value. Each value has one.
pub(super) fn name_of<T: PartialEq>(known: &[(&'static str, T)], value: T) -> &'static str {
    known
        .iter()
        .find(|(_, meant)| *meant == value)
        .map_or("auto", |(name, _)| name)
}

/// A string. Bytes that are not UTF-8 are replaced.
pub(super) fn text(words: &OsStr) -> Shown {
    Shown::String(lossy(words))
}

pub(super) fn lossy(words: &OsStr) -> String {
    words.to_string_lossy().into_owned()
}

pub(super) fn rlimit(rlimit: Rlimit) -> String {
    let bound =
        |bound: Option<u64>| bound.map_or("unlimited".to_owned(), |bound| bound.to_string());
    format!("{}:{}", bound(rlimit.soft), bound(rlimit.hard))
}

fn list(of: &[String]) -> Option<Shown> {
    let list = || Shown::Array(of.iter().map(|one| one.as_str().into()).collect());
    (!of.is_empty()).then(list)
}

pub(super) fn or_none(count: Option<u64>) -> Shown {
    count.map_or_else(
        || "none".into(),
        |count| i64::try_from(count).unwrap_or(i64::MAX).into(),
    )
}

fn duration(duration: time::Duration) -> String {
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

/// A size that is not rounded, unlike the display of `Bytes`, because the file is loaded again.
fn exact(bytes: Bytes) -> String {
    let shown = bytes.to_string();
    match shown.parse() {
        Ok(Size::Bytes(read)) if read == bytes => shown,
        _ => bytes.get().to_string(),
    }
}

fn ready(when: &ReadyWhen) -> String {
    match when {
        ReadyWhen::Auto => "auto".to_owned(),
        ReadyWhen::Notify => "notify".to_owned(),
        ReadyWhen::Tcp(address) => format!("tcp:{address}"),
        ReadyWhen::Http(url) => url.clone(),
        ReadyWhen::Delay(delay) => format!("delay:{}", duration(*delay)),
    }
}
