//! Parses values. An error names the expected form. In a file, numbers and strings are different
//! types.

use std::{
    fmt, net::SocketAddr, ops::RangeInclusive, path::PathBuf, sync::LazyLock, time::Duration,
};

use crate::{
    servers,
    supervisor::spec::{Kind, Limit, ReadyWhen, Rlimit, TerminationLog},
    units::{Signal, Size},
};

use super::{keys::nearest, settings::Value};

/// The values of `server`; `None`: the server is guessed from the command line.
pub(super) static SERVERS: LazyLock<Vec<(&str, Option<Kind>)>> = LazyLock::new(|| {
    let fixed = [("auto", None), ("none", Some(Kind::Single))];
    let known = servers::PROFILES.map(|server| (server.name, Some(Kind::Server(server))));
    fixed.into_iter().chain(known).collect()
});

/// A value, or an error with the expected form.
pub(super) type Parsed<T> = Result<T, String>;

/// A string that is not empty.
pub(super) fn text(value: &Value) -> Parsed<String> {
    let text = as_text(value, "a string in quotes")?;
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if text.contains('\0') {
        return Err("it contains a NUL".to_owned());
    }
    Ok(text.to_owned())
}

/// A path.
pub(super) fn path(value: &Value) -> Parsed<PathBuf> {
    text(value).map(PathBuf::from)
}

/// The value of an environment variable: a string, which may be empty, or a number.
pub(super) fn variable(value: &Value) -> Parsed<String> {
    match value {
        Value::Integer(number) => Ok(number.to_string()),
        Value::Untyped(text) | Value::Text(text) if text.is_empty() => Ok(String::new()),
        Value::Untyped(_)
        | Value::Text(_)
        | Value::Float(_)
        | Value::Bool(_)
        | Value::List(_)
        | Value::Other(_) => text(value),
    }
}

/// A list of words that is not empty.
pub(super) fn words(value: &Value) -> Parsed<Vec<String>> {
    match value {
        Value::List(list) if !list.is_empty() => list
            .iter()
            .map(|word| match word {
                Value::Text(word) if !word.contains('\0') => Ok(word.clone()),
                other => Err(wrong(other, "each word in quotes")),
            })
            .collect(),
        Value::List(_) => Err("it is empty; write [\"PROGRAM\", \"ARGUMENT\"]".to_owned()),
        Value::Untyped(text) | Value::Text(text) => {
            let words: Vec<&str> = text.split_whitespace().collect();
            Err(wrong(
                value,
                &format!("a list of words, such as {words:?}; it is not passed to a shell"),
            ))
        }
        Value::Integer(_) | Value::Float(_) | Value::Bool(_) | Value::Other(_) => {
            Err(wrong(value, "[\"PROGRAM\", \"ARGUMENT\"]"))
        }
    }
}

/// A size, `auto` or `none`.
pub(super) fn limit(value: &Value) -> Parsed<Limit> {
    match size_or_none(value)? {
        Some(Limit::Auto) => Ok(Limit::Auto),
        other => Ok(other.unwrap_or(Limit::Off)),
    }
}

/// A size or `none`.
pub(super) fn swap(value: &Value) -> Parsed<Limit> {
    match size_or_none(value)? {
        Some(Limit::Auto) => {
            Err("`auto` does not apply to swap; write a size or `none`".to_owned())
        }
        other => Ok(other.unwrap_or(Limit::Off)),
    }
}

fn size_or_none(value: &Value) -> Parsed<Option<Limit>> {
    let number;
    let text = match value {
        Value::Integer(bytes) => {
            number = bytes.to_string();
            &number
        }
        _ => as_text(value, "a size in quotes, such as \"300M\"")?,
    };
    match text {
        "auto" => Ok(Some(Limit::Auto)),
        "none" => Ok(None),
        size => Size::limit(size).map(|size| Some(Limit::At(size))),
    }
}

/// A duration, which may be zero.
pub(super) fn duration(value: &Value) -> Parsed<Duration> {
    let text = as_text(value, "a duration with its unit in quotes, such as \"30s\"")?;
    humantime::parse_duration(text).map_err(|_| {
        format!(
            "`{text}` is not a duration; write a number and its unit: `500ms`, `30s`, `1m30s`, `6h`"
        )
    })
}

/// A duration above zero.
pub(super) fn span(value: &Value) -> Parsed<Duration> {
    let read = duration(value)?;
    if read.is_zero() {
        return Err(format!("{value} is not above zero"));
    }
    Ok(read)
}

/// A duration above zero, or `none`.
pub(super) fn maybe_span(value: &Value) -> Parsed<Option<Duration>> {
    if matches!(value, Value::Untyped(text) | Value::Text(text) if text == "none") {
        return Ok(None);
    }
    span(value).map(Some)
}

/// A whole number in a range.
pub(super) fn count(value: &Value, range: RangeInclusive<u32>) -> Parsed<u32> {
    let (least, most) = (range.start(), range.end());
    let expected = format!("a whole number from {least} to {most}");
    let number = match value {
        Value::Integer(number) => Some(*number),
        Value::Untyped(text) => text.trim().parse().ok(),
        _ => return Err(wrong(value, &format!("{expected}, without quotes"))),
    };
    number
        .and_then(|number| u32::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("{value} is not {expected}"))
}

/// A whole number above zero, or `none`.
pub(super) fn maybe_count(value: &Value) -> Parsed<Option<u64>> {
    if matches!(value, Value::Untyped(text) | Value::Text(text) if text == "none") {
        return Ok(None);
    }
    count(value, 1..=u32::MAX).map(|number| Some(u64::from(number)))
}

/// A weight of `cpu.weight` (cgroup-v2.rst), or `none`.
pub(super) fn weight(value: &Value) -> Parsed<Option<u64>> {
    match maybe_count(value)? {
        Some(weight) if weight > 10_000 => {
            Err("it is above 10000; write 1 to 10000, or none".into())
        }
        weight => Ok(weight),
    }
}

/// A list of strings: a list in a file, separated by commas in a flag.
pub(super) fn list<'a>(value: &'a Value, each: &str, expected: &str) -> Parsed<Vec<&'a str>> {
    match value {
        Value::List(list) => list
            .iter()
            .map(|one| as_text(one, &format!("each {each} in quotes")))
            .collect(),
        Value::Untyped(text) => Ok(text.split(',').map(str::trim).collect()),
        _ => Err(wrong(value, expected)),
    }
}

/// Names of Python modules.
pub(super) fn modules(value: &Value) -> Parsed<Vec<String>> {
    let list = list(value, "name", "a list of modules, such as [\"numpy\"]")?;
    let module = |text: &&str| {
        let name = (*text).to_owned();
        is_dotted(text)
            .then_some(name)
            .ok_or_else(|| format!("`{text}` is not the name of a module"))
    };
    list.iter().map(module).collect()
}

/// `MODULE:FUNCTION`.
pub(super) fn callable(value: &Value) -> Parsed<String> {
    let text = as_text(value, "MODULE:FUNCTION in quotes")?;
    let (module, name) = text.split_once(':').unwrap_or((text, ""));
    if is_dotted(module) && is_dotted(name) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{text}` is not a function; write MODULE:FUNCTION, such as `etl:convert`"
        ))
    }
}

fn is_dotted(path: &str) -> bool {
    path.split('.')
        .all(|part| !part.is_empty() && part.chars().all(|it| it == '_' || it.is_alphanumeric()))
}

/// Paths of requests.
pub(super) fn paths(value: &Value) -> Parsed<Vec<String>> {
    let list = list(value, "path", "a list of paths, such as [\"/healthz\"]")?;
    let path = |text: &&str| {
        let blank = |c: char| c.is_whitespace() || c.is_control() || c == ',';
        if text.starts_with('/') && !text.contains(blank) {
            return Ok((*text).to_owned());
        }
        Err(format!(
            "`{text}` is not the path of a request; start it with `/`, without the host"
        ))
    };
    list.iter().map(path).collect()
}

/// `true` or `false`.
pub(super) fn switch(value: &Value) -> Parsed<bool> {
    match value {
        Value::Bool(value) => Ok(*value),
        Value::Untyped(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err(format!("{value} is neither `true` nor `false`")),
        },
        _ => Err(wrong(value, "true or false, without quotes")),
    }
}

/// A part of a whole: `0.1` or `10%`.
pub(super) fn part(value: &Value) -> Parsed<f64> {
    const EXPECTED: &str = "a part from 0 to 1, such as 0.1, or \"10%\"";
    let read = match value {
        Value::Float(number) => Some(*number),
        Value::Integer(0) => Some(0.0),
        Value::Integer(1) => Some(1.0),
        Value::Untyped(text) | Value::Text(text) => match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse().ok().map(|part: f64| part / 100.0),
            None => text.trim().parse().ok(),
        },
        _ => None,
    };
    read.filter(|part| (0.0..=1.0).contains(part))
        .ok_or_else(|| format!("{value} is not {EXPECTED}"))
}

/// One of several names.
pub(super) fn choice<T: Copy>(value: &Value, known: &[(&str, T)]) -> Parsed<T> {
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let list = names.join(", ");
    let text = as_text(value, &format!("one of {list}, in quotes"))?;
    known
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, meant)| *meant)
        .ok_or_else(|| match nearest(text, names) {
            Some(near) => format!("{value} is not one of {list}; did you mean `{near}`?"),
            None => format!("{value} is not one of {list}"),
        })
}

/// A signal by name or number.
pub(super) fn signal(value: &Value) -> Parsed<Signal> {
    match value {
        Value::Integer(number) => number.to_string().parse(),
        _ => as_text(value, "a signal in quotes, such as \"TERM\"")?.parse(),
    }
}

/// `SOFT:HARD`, or one number for both, as for prlimit(1).
pub(super) fn rlimit(value: &Value) -> Parsed<Rlimit> {
    let number;
    let text = match value {
        Value::Integer(bound) => {
            number = bound.to_string();
            &number
        }
        _ => as_text(value, "a number, or a string such as \"1024:4096\"")?,
    };
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    let (soft, hard) = (bound(soft)?, bound(hard)?);
    if soft.unwrap_or(u64::MAX) > hard.unwrap_or(u64::MAX) {
        return Err(format!("the soft limit of {value} is above the hard limit"));
    }
    Ok(Rlimit { soft, hard })
}

fn bound(text: &str) -> Parsed<Option<u64>> {
    let text = text.trim();
    if text == "unlimited" {
        return Ok(None);
    }
    // A number may be zero (`core`), but a size may not.
    if let Ok(number) = text.parse() {
        return Ok(Some(number));
    }
    match text.parse() {
        Ok(Size::Bytes(bytes)) => Ok(Some(bytes.get())),
        Ok(Size::Percent(_)) | Err(_) => Err(format!(
            "`{text}` is not an rlimit; write a number, a size such as `512M`, or `unlimited`"
        )),
    }
}

/// A TCP address. Without a host, it is on loopback, so that other machines cannot reach it.
pub(super) fn address(value: &Value) -> Parsed<Option<SocketAddr>> {
    let text = as_text(value, "an address in quotes, such as \"127.0.0.1:9100\"")?;
    if text == "none" {
        return Ok(None);
    }
    let port = text.strip_prefix(':').unwrap_or(text);
    if let Ok(port) = port.parse::<u16>() {
        return Ok(Some(SocketAddr::from(([127, 0, 0, 1], port))));
    }
    text.parse().map(Some).map_err(|_| {
        format!("{value} is not an address; write `127.0.0.1:9100`, `[::1]:9100` or `9100`")
    })
}

/// A path, `auto` or `off`.
pub(super) fn termination_log(value: &Value) -> Parsed<TerminationLog> {
    match as_text(value, "a path, \"auto\" or \"off\", in quotes")? {
        "auto" => Ok(TerminationLog::Auto),
        "off" => Ok(TerminationLog::Off),
        _ => path(value).map(TerminationLog::At),
    }
}

/// How readiness is detected.
pub(super) fn ready(value: &Value) -> Parsed<ReadyWhen> {
    const FORMS: &str = "auto, notify, tcp:HOST:PORT, http://HOST:PORT/PATH or delay:DUR";
    let text = as_text(value, &format!("one of {FORMS}, in quotes"))?;
    match text.split_once(':') {
        None if text == "auto" => Ok(ReadyWhen::Auto),
        None if text == "notify" => Ok(ReadyWhen::Notify),
        Some(("delay", delay)) => duration(&Value::Untyped(delay.to_owned())).map(ReadyWhen::Delay),
        Some(("tcp", address)) => host_and_port(address, None).map(ReadyWhen::Tcp),
        Some(("http", url)) => http(url).map(ReadyWhen::Http),
        _ => Err(format!("{value} is not one of {FORMS}")),
    }
}

/// Completes `//HOST:PORT/PATH` to a URL. The prefix `http:` may be written twice.
fn http(url: &str) -> Parsed<String> {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("//"))
        .ok_or_else(|| format!("`http:{url}` is not a URL; write http://HOST:PORT/PATH"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!(
            "the path `/{path}` contains a space or a control character"
        ));
    }
    Ok(format!("http://{}/{path}", host_and_port(host, Some(80))?))
}

pub(super) fn host_and_port(address: &str, port: Option<u16>) -> Parsed<String> {
    let bad = || format!("`{address}` is not HOST:PORT");
    // The colons of an IPv6 address are in brackets.
    let bare = address.rfind(']').map_or(address, |end| &address[end..]);
    let (host, port) = match (bare.contains(':'), port) {
        (true, _) => {
            let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
            (host, port.parse::<u16>().map_err(|_| bad())?)
        }
        (false, Some(port)) => (address, port),
        (false, None) => return Err(bad()),
    };
    let blank = |c: char| c.is_whitespace() || c.is_control();
    let colons = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if host.is_empty() || port == 0 || colons || host.contains(blank) {
        return Err(bad());
    }
    Ok(format!("{host}:{port}"))
}

pub(super) fn as_text<'a>(value: &'a Value, expected: &str) -> Parsed<&'a str> {
    match value {
        Value::Untyped(text) | Value::Text(text) => Ok(text),
        Value::Integer(_) | Value::Float(_) | Value::Bool(_) | Value::List(_) | Value::Other(_) => {
            Err(wrong(value, expected))
        }
    }
}

pub(super) fn wrong(value: &Value, expected: &str) -> String {
    let is: &dyn fmt::Display = match value {
        Value::Untyped(_) | Value::Text(_) => &"a string",
        Value::Integer(_) | Value::Float(_) => &"a number",
        Value::Bool(_) => &"a boolean",
        Value::List(_) => &"a list",
        Value::Other(what) => return format!("it is {what}; write {expected}"),
    };
    format!("{value} is {is}; write {expected}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn untyped(text: &str) -> Value {
        Value::Untyped(text.to_owned())
    }

    #[test]
    fn each_form_of_readiness_is_parsed() {
        for (text, meant) in [
            ("auto", ReadyWhen::Auto),
            ("notify", ReadyWhen::Notify),
            ("delay:2s", ReadyWhen::Delay(Duration::from_secs(2))),
            ("tcp:localhost:80", ReadyWhen::Tcp("localhost:80".into())),
            ("tcp:[::1]:80", ReadyWhen::Tcp("[::1]:80".into())),
            (
                "http://a:8000/up",
                ReadyWhen::Http("http://a:8000/up".into()),
            ),
            ("http:http://a", ReadyWhen::Http("http://a:80/".into())),
            ("http://[::1]", ReadyWhen::Http("http://[::1]:80/".into())),
        ] {
            assert_eq!(ready(&untyped(text)), Ok(meant), "{text}");
        }
        for text in [
            "",
            "up",
            "tcp:",
            "tcp:80",
            "tcp:a:0",
            "tcp:::1:80",
            "tcp:a:99999",
            "http:a",
            "https://a",
            "http://a:b/",
            "http:///x",
            "http://a/b c",
            "delay:2",
        ] {
            assert!(ready(&untyped(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_single_rlimit_sets_soft_and_hard_limit() {
        let both = |soft, hard| Ok(Rlimit { soft, hard });
        assert_eq!(rlimit(&Value::Integer(0)), both(Some(0), Some(0)));
        assert_eq!(rlimit(&untyped("1K:unlimited")), both(Some(1024), None));
        assert_eq!(rlimit(&untyped("unlimited")), both(None, None));
        for text in ["", "-1", "2:1", "unlimited:1", "80%", "1:2:3", "300Q"] {
            assert!(rlimit(&untyped(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_part_is_a_fraction_or_a_percentage() {
        assert_eq!(part(&untyped("10%")), Ok(0.1));
        assert_eq!(part(&Value::Float(0.25)), Ok(0.25));
        for value in [
            untyped("1.5"),
            untyped("-1"),
            untyped("nan"),
            Value::Integer(10),
        ] {
            assert!(part(&value).is_err(), "{value}");
        }
    }

    #[test]
    fn an_address_without_a_host_is_on_loopback() {
        let loopback = Ok(Some(SocketAddr::from(([127, 0, 0, 1], 9100))));
        for text in ["9100", ":9100", "127.0.0.1:9100"] {
            assert_eq!(address(&untyped(text)), loopback);
        }
        assert_eq!(address(&untyped("none")), Ok(None));
        assert!(address(&untyped("localhost")).is_err());
    }
}
