//! Reads one value into one type, or says what would be right. The same for flags, variables and
//! files, but that a file's numbers are numbers and its texts are texts.

use std::{fmt, net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use crate::{
    servers::gunicorn,
    supervisor::spec::{
        AgentLoad, Kind, Leaks, Leftovers, Limit, LogFormat, Measure, ReadyWhen, RestartWhen,
        Rlimit, TerminationLog,
    },
    units::{Signal, Size},
};

use super::{keys::nearest, wish::Value};

/// The words for how the command is understood; `None` is to be found out.
pub(super) const SERVERS: [(&str, Option<Kind>); 3] = [
    ("auto", None),
    ("none", Some(Kind::Single)),
    ("gunicorn", Some(Kind::Server(gunicorn::HABITS))),
];

/// The words for what is held against the ceiling.
pub(super) const MEASURES: [(&str, Measure); 4] = [
    ("private", Measure::Private),
    ("rss", Measure::Rss),
    ("pss", Measure::Pss),
    ("cgroup", Measure::Cgroup),
];

/// The words for the use of the trip wire.
pub(super) const WIRES: [(&str, bool); 2] = [("auto", true), ("off", false)];

/// The words for which ends are followed by another start.
pub(super) const WHENS: [(&str, RestartWhen); 3] = [
    ("always", RestartWhen::Always),
    ("on-failure", RestartWhen::OnFailure),
    ("never", RestartWhen::Never),
];

/// The words for what is done about processes that outlive their worker.
pub(super) const LEFTOVERS: [(&str, Leftovers); 2] =
    [("end", Leftovers::End), ("tell", Leftovers::Tell)];

/// The words for whether the agent is put into the workers.
pub(super) const LOADS: [(&str, AgentLoad); 3] = [
    ("auto", AgentLoad::Auto),
    ("on", AgentLoad::On),
    ("off", AgentLoad::Off),
];

/// The words for when workers are asked why they are fat.
pub(super) const LEAKS: [(&str, Leaks); 4] = [
    ("auto", Leaks::Auto),
    ("on", Leaks::On),
    ("always", Leaks::Always),
    ("off", Leaks::Off),
];

/// The words for how a log line looks.
pub(super) const FORMATS: [(&str, LogFormat); 3] = [
    ("auto", LogFormat::Auto),
    ("text", LogFormat::Text),
    ("json", LogFormat::Json),
];

type Read<T> = Result<T, String>;

/// Any text but an empty one.
pub(super) fn text(value: &Value) -> Read<String> {
    let text = as_text(value, "a text in quotes")?;
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if text.contains('\0') {
        return Err("it has a NUL in it".to_owned());
    }
    Ok(text.to_owned())
}

/// A path.
pub(super) fn path(value: &Value) -> Read<PathBuf> {
    text(value).map(PathBuf::from)
}

/// The value of an environment variable: a text, an empty one too, or a number.
pub(super) fn variable(value: &Value) -> Read<String> {
    match value {
        Value::Integer(number) => Ok(number.to_string()),
        Value::Words(text) | Value::Text(text) if text.is_empty() => Ok(String::new()),
        Value::Words(_)
        | Value::Text(_)
        | Value::Float(_)
        | Value::Bool(_)
        | Value::List(_)
        | Value::Other(_) => text(value),
    }
}

/// A list of words, not empty.
pub(super) fn words(value: &Value) -> Read<Vec<String>> {
    match value {
        Value::List(list) if !list.is_empty() => list
            .iter()
            .map(|word| match word {
                Value::Text(word) if !word.contains('\0') => Ok(word.clone()),
                other => Err(wrong(other, "each word in quotes")),
            })
            .collect(),
        Value::List(_) => Err("it is empty; write [\"PROGRAM\", \"ARGUMENT\"]".to_owned()),
        Value::Words(text) | Value::Text(text) => {
            let words: Vec<&str> = text.split_whitespace().collect();
            Err(wrong(
                value,
                &format!("a list of words, such as {words:?}: no shell reads it"),
            ))
        }
        Value::Integer(_) | Value::Float(_) | Value::Bool(_) | Value::Other(_) => {
            Err(wrong(value, "[\"PROGRAM\", \"ARGUMENT\"]"))
        }
    }
}

/// A size, `auto` or `none`.
pub(super) fn limit(value: &Value) -> Read<Limit> {
    match size_or_none(value)? {
        Some(Limit::Auto) => Ok(Limit::Auto),
        other => Ok(other.unwrap_or(Limit::Off)),
    }
}

/// A size or `none`.
pub(super) fn swap(value: &Value) -> Read<Limit> {
    match size_or_none(value)? {
        Some(Limit::Auto) => Err("`auto` is no amount of swap; write a size or `none`".to_owned()),
        other => Ok(other.unwrap_or(Limit::Off)),
    }
}

fn size_or_none(value: &Value) -> Read<Option<Limit>> {
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

/// A duration, zero too.
pub(super) fn duration(value: &Value) -> Read<Duration> {
    let text = as_text(value, "a duration with its unit in quotes, such as \"30s\"")?;
    humantime::parse_duration(text).map_err(|_| {
        format!(
            "`{text}` is not a duration; write a number and its unit: `500ms`, `30s`, `1m30s`, `6h`"
        )
    })
}

/// A duration above zero.
pub(super) fn span(value: &Value) -> Read<Duration> {
    let read = duration(value)?;
    if read.is_zero() {
        return Err(format!("{value} is no time at all; it must be above zero"));
    }
    Ok(read)
}

/// A duration above zero, or `none`.
pub(super) fn maybe_span(value: &Value) -> Read<Option<Duration>> {
    if matches!(value, Value::Words(text) | Value::Text(text) if text == "none") {
        return Ok(None);
    }
    span(value).map(Some)
}

/// A whole number.
pub(super) fn count(value: &Value, range: RangeInclusive<u32>) -> Read<u32> {
    let (least, most) = (range.start(), range.end());
    let right = format!("a whole number from {least} to {most}");
    let number = match value {
        Value::Integer(number) => Some(*number),
        Value::Words(text) => text.trim().parse().ok(),
        _ => return Err(wrong(value, &format!("{right}, without quotes"))),
    };
    number
        .and_then(|number| u32::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("{value} is not {right}"))
}

/// A whole number above zero, or `none`.
pub(super) fn maybe_count(value: &Value) -> Read<Option<u64>> {
    if matches!(value, Value::Words(text) | Value::Text(text) if text == "none") {
        return Ok(None);
    }
    count(value, 1..=u32::MAX).map(|number| Some(u64::from(number)))
}

/// A weight of `cpu.weight` (cgroup-v2.rst), or `none`.
pub(super) fn weight(value: &Value) -> Read<Option<u64>> {
    match maybe_count(value)? {
        Some(weight) if weight > 10_000 => {
            Err("it is above 10000; write 1 to 10000, or none".into())
        }
        weight => Ok(weight),
    }
}

/// Paths of requests: a list in a file, with commas between them in a flag.
pub(super) fn paths(value: &Value) -> Read<Vec<String>> {
    let list: Vec<&str> = match value {
        Value::List(list) => list
            .iter()
            .map(|one| as_text(one, "each path in quotes"))
            .collect::<Read<_>>()?,
        Value::Words(text) => text.split(',').map(str::trim).collect(),
        _ => return Err(wrong(value, "a list of paths, such as [\"/healthz\"]")),
    };
    let path = |text: &&str| {
        let blank = |c: char| c.is_whitespace() || c.is_control() || c == ',';
        if text.starts_with('/') && !text.contains(blank) {
            return Ok((*text).to_owned());
        }
        Err(format!(
            "`{text}` is no path of a request; write it from its `/` on, without the host"
        ))
    };
    list.iter().map(path).collect()
}

/// Yes or no.
pub(super) fn switch(value: &Value) -> Read<bool> {
    match value {
        Value::Bool(value) => Ok(*value),
        Value::Words(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err(format!("{value} is neither `true` nor `false`")),
        },
        _ => Err(wrong(value, "true or false, without quotes")),
    }
}

/// A part of a whole: `0.1` or `10%`.
pub(super) fn part(value: &Value) -> Read<f64> {
    const RIGHT: &str = "a part from 0 to 1, such as 0.1, or \"10%\"";
    let read = match value {
        Value::Float(number) => Some(*number),
        Value::Integer(0) => Some(0.0),
        Value::Integer(1) => Some(1.0),
        Value::Words(text) | Value::Text(text) => match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse().ok().map(|part: f64| part / 100.0),
            None => text.trim().parse().ok(),
        },
        _ => None,
    };
    read.filter(|part| (0.0..=1.0).contains(part))
        .ok_or_else(|| format!("{value} is not {RIGHT}"))
}

/// One of a few words.
pub(super) fn choice<T: Copy>(value: &Value, known: &[(&str, T)]) -> Read<T> {
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let list = names.join(", ");
    let text = as_text(value, &format!("one of {list}, in quotes"))?;
    known
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, meant)| *meant)
        .ok_or_else(|| match nearest(text, names) {
            Some(near) => format!("{value} is none of {list}; did you mean `{near}`?"),
            None => format!("{value} is none of {list}"),
        })
}

/// A signal by name or number.
pub(super) fn signal(value: &Value) -> Read<Signal> {
    match value {
        Value::Integer(number) => number.to_string().parse(),
        _ => as_text(value, "a signal in quotes, such as \"TERM\"")?.parse(),
    }
}

/// `SOFT` or `SOFT:HARD`; one alone is both, as prlimit(1) has it.
pub(super) fn rlimit(value: &Value) -> Read<Rlimit> {
    let number;
    let text = match value {
        Value::Integer(bound) => {
            number = bound.to_string();
            &number
        }
        _ => as_text(value, "a number, or a text such as \"1024:4096\"")?,
    };
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    let (soft, hard) = (bound(soft)?, bound(hard)?);
    if soft.unwrap_or(u64::MAX) > hard.unwrap_or(u64::MAX) {
        return Err(format!("the soft limit of {value} is above the hard one"));
    }
    Ok(Rlimit { soft, hard })
}

fn bound(text: &str) -> Read<Option<u64>> {
    let text = text.trim();
    if text == "unlimited" {
        return Ok(None);
    }
    // A number can be zero here (`core`), which a size cannot.
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

/// A TCP address; without a host it is on loopback, so that nobody else sees it unless told so.
pub(super) fn address(value: &Value) -> Read<Option<SocketAddr>> {
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

/// A file, or where none is named.
pub(super) fn termination_log(value: &Value) -> Read<TerminationLog> {
    match as_text(value, "a path, \"auto\" or \"off\", in quotes")? {
        "auto" => Ok(TerminationLog::Auto),
        "off" => Ok(TerminationLog::Off),
        _ => path(value).map(TerminationLog::At),
    }
}

/// The sign of being up.
pub(super) fn ready(value: &Value) -> Read<ReadyWhen> {
    const RIGHT: &str = "auto, notify, tcp:HOST:PORT, http://HOST:PORT/PATH or delay:DUR";
    let text = as_text(value, &format!("one of {RIGHT}, in quotes"))?;
    match text.split_once(':') {
        None if text == "auto" => Ok(ReadyWhen::Auto),
        None if text == "notify" => Ok(ReadyWhen::Notify),
        Some(("delay", delay)) => duration(&Value::Words(delay.to_owned())).map(ReadyWhen::Delay),
        Some(("tcp", address)) => host_and_port(address, None).map(ReadyWhen::Tcp),
        Some(("http", url)) => http(url).map(ReadyWhen::Http),
        _ => Err(format!("{value} is none of {RIGHT}")),
    }
}

/// `//HOST:PORT/PATH`, also with its `http:` said twice, made whole.
fn http(url: &str) -> Read<String> {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("//"))
        .ok_or_else(|| format!("`http:{url}` is no URL; write http://HOST:PORT/PATH"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("the path `/{path}` has a blank in it"));
    }
    Ok(format!("http://{}/{path}", host_and_port(host, Some(80))?))
}

pub(super) fn host_and_port(address: &str, port: Option<u16>) -> Read<String> {
    let bad = || format!("`{address}` is not HOST:PORT");
    // The colons of an IPv6 address stand in brackets.
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

pub(super) fn as_text<'a>(value: &'a Value, right: &str) -> Read<&'a str> {
    match value {
        Value::Words(text) | Value::Text(text) => Ok(text),
        Value::Integer(_) | Value::Float(_) | Value::Bool(_) | Value::List(_) | Value::Other(_) => {
            Err(wrong(value, right))
        }
    }
}

pub(super) fn wrong(value: &Value, right: &str) -> String {
    let is: &dyn fmt::Display = match value {
        Value::Words(_) | Value::Text(_) => &"a text",
        Value::Integer(_) | Value::Float(_) => &"a number",
        Value::Bool(_) => &"a boolean",
        Value::List(_) => &"a list",
        Value::Other(what) => return format!("it is {what}; write {right}"),
    };
    format!("{value} is {is}; write {right}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Value {
        Value::Words(text.to_owned())
    }

    #[test]
    fn the_sign_of_being_up_is_read_in_each_of_its_forms() {
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
            assert_eq!(ready(&said(text)), Ok(meant), "{text}");
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
            assert!(ready(&said(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn an_rlimit_alone_is_soft_and_hard() {
        let both = |soft, hard| Ok(Rlimit { soft, hard });
        assert_eq!(rlimit(&Value::Integer(0)), both(Some(0), Some(0)));
        assert_eq!(rlimit(&said("1K:unlimited")), both(Some(1024), None));
        assert_eq!(rlimit(&said("unlimited")), both(None, None));
        for text in ["", "-1", "2:1", "unlimited:1", "80%", "1:2:3", "300Q"] {
            assert!(rlimit(&said(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_part_is_a_fraction_or_hundredths() {
        assert_eq!(part(&said("10%")), Ok(0.1));
        assert_eq!(part(&Value::Float(0.25)), Ok(0.25));
        for value in [said("1.5"), said("-1"), said("nan"), Value::Integer(10)] {
            assert!(part(&value).is_err(), "{value}");
        }
    }

    #[test]
    fn an_address_without_a_host_is_on_loopback() {
        let loopback = Ok(Some(SocketAddr::from(([127, 0, 0, 1], 9100))));
        for text in ["9100", ":9100", "127.0.0.1:9100"] {
            assert_eq!(address(&said(text)), loopback);
        }
        assert_eq!(address(&said("none")), Ok(None));
        assert!(address(&said("localhost")).is_err());
    }
}
