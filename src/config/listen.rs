//! Parses the addresses of listening sockets, and the names of hosts.

use super::{
    parsers::{Parsed, host_and_port, list},
    settings::Value,
};
use crate::supervisor::spec::Listen;

/// Addresses: a list in a file, separated by commas in a flag.
pub(super) fn listen(value: &Value) -> Parsed<Vec<Listen>> {
    const EXPECTED: &str = "a list of addresses, such as [\":8000\"]";
    let list = list(value, "address", EXPECTED)?;
    let read: Vec<Listen> = list.into_iter().map(one).collect::<Parsed<_>>()?;
    for (at, address) in read.iter().enumerate() {
        if read.iter().take(at).any(|earlier| earlier == address) {
            return Err(format!("`{address}` is listed twice"));
        }
    }
    Ok(read)
}

/// Names of hosts: a list in a file, separated by commas in a flag.
pub(super) fn hosts(value: &Value) -> Parsed<Vec<String>> {
    let list = list(value, "name", "a list of names, such as [\"shop.example\"]")?;
    let host = |text: &&str| {
        let label = |label: &str| {
            let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            !label.is_empty() && label.chars().all(is_letter)
        };
        if text.split('.').all(label) {
            return Ok(text.to_ascii_lowercase());
        }
        Err(format!(
            "`{text}` is not a host name; write it without scheme and port, such as \
             `shop.example`"
        ))
    };
    list.iter().map(host).collect()
}

/// Parses an address. `:8000` is on all IPv4 addresses, as in gunicorn, and `8000` on loopback.
fn one(text: &str) -> Parsed<Listen> {
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() || path.contains('\0') {
            return Err(format!("`{text}` has no path; write `unix:/run/shop.http`"));
        }
        return Ok(Listen::Unix(path.into()));
    }
    let address = text.strip_prefix("tcp:").unwrap_or(text);
    let whole = match address.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None if address.parse::<u16>().is_ok() => format!("127.0.0.1:{address}"),
        None => address.to_owned(),
    };
    host_and_port(&whole, None).map(Listen::Tcp).map_err(|_| {
        format!(
            "`{text}` is not an address to listen on; write `127.0.0.1:8000`, `:8000` (all IPv4 \
             addresses), `[::]:8000` (all addresses), `8000` (loopback) or `unix:/PATH`"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_an_address_is_parsed() {
        for (text, shown) in [
            (":8000", "0.0.0.0:8000"),
            ("8000", "127.0.0.1:8000"),
            ("localhost:8000", "localhost:8000"),
            ("tcp:[::1]:80", "[::1]:80"),
            ("[::]:80", "[::]:80"),
            ("unix:/run/shop.http", "unix:/run/shop.http"),
        ] {
            let read = one(text).unwrap();
            assert_eq!(read.to_string(), shown);
            assert_eq!(one(shown), Ok(read), "{shown}");
        }
        for text in ["", ":", "unix:", "localhost", ":0", "::1:80", "http://a:80"] {
            assert!(one(text).is_err(), "{text}");
        }
    }

    #[test]
    fn several_addresses_are_a_list_or_separated_by_commas() {
        let separated = listen(&Value::Untyped(":80, unix:/x".to_owned()));
        let listed = [":80", "unix:/x"].map(|one| Value::Text(one.to_owned()));
        assert_eq!(separated, listen(&Value::List(listed.into())));
        assert_eq!(separated.unwrap().len(), 2);
        let twice = listen(&Value::Untyped(":80,0.0.0.0:80".to_owned()));
        assert!(twice.unwrap_err().contains("twice"));
        assert!(listen(&Value::Text(":80".to_owned())).is_err());
    }
}
