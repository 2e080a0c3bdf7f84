//! Access control of the TCP port (DESIGN §8).
//!
//! Probes and metrics are open to all clients. Other requests need a `Host` that names this
//! service, because after DNS rebinding a page in a browser sends its own host name. Events,
//! reports and the history contain data of the application, so they need a token as well.

use std::{
    fs::OpenOptions,
    io::Read as _,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use hyper::{
    StatusCode,
    header::{AUTHORIZATION, HOST},
    http::request::Parts,
};

use super::{Question, listener::ControlError, routes::Refusal};
use crate::supervisor::spec::ControlSpec;

/// Maximum length of a token in bytes.
const TOKEN_MAX: usize = 4096;
/// Minimum length of a token in bytes, so that it cannot be guessed.
const TOKEN_MIN: usize = 16;

/// What a client may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Access {
    /// Everything, for clients of the control socket.
    Full,
    /// No changes, and only what the [`AccessRules`] allow, for clients of the TCP port.
    ReadOnly,
}

/// The allowed hosts and the token.
#[derive(Debug)]
pub(super) struct AccessRules {
    hosts: Vec<String>,
    token: Option<Token>,
}

struct Token(Vec<u8>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl AccessRules {
    pub(super) fn of(spec: &ControlSpec) -> Result<Self, ControlError> {
        let token = spec.token_file.as_deref().map(|path| {
            Token::read(path).map_err(|why| ControlError::Token {
                path: path.to_owned(),
                why,
            })
        });
        Ok(Self {
            hosts: spec.hosts.clone(),
            token: token.transpose()?,
        })
    }

    /// Whether a request over TCP is allowed.
    pub(super) fn check(&self, question: &Question, head: &Parts) -> Result<(), Refusal> {
        match question {
            Question::Metrics | Question::Health | Question::Readiness => Ok(()),
            Question::Status => self.check_host(head),
            Question::Events { .. }
            | Question::Reports
            | Question::Report(_)
            | Question::History => {
                self.check_host(head)?;
                self.check_token(head)
            }
            Question::Do(_) => Err(read_only()),
        }
    }

    fn check_host(&self, head: &Parts) -> Result<(), Refusal> {
        let refuse = |why: String| Err(Refusal::new(StatusCode::FORBIDDEN, why));
        let mut named = head.headers.get_all(HOST).iter();
        let (Some(host), None) = (named.next(), named.next()) else {
            return refuse("exactly one `Host` header is needed".to_owned());
        };
        let host = host.to_str().unwrap_or_default();
        // A request in the form for proxies has the host twice (RFC 9112, section 3.2.2).
        let all = std::iter::once(host).chain(head.uri.authority().map(|name| name.as_str()));
        for host in all {
            if !self.is_allowed_host(host) {
                return refuse(format!(
                    "the host `{host}` is not allowed: use the IP address, or add the host to \
                     control.hosts"
                ));
            }
        }
        Ok(())
    }

    fn is_allowed_host(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => {
                let Some((address, port)) = rest.split_once(']') else {
                    return false;
                };
                return address.parse::<Ipv6Addr>().is_ok()
                    && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
            }
            None => match host.rsplit_once(':') {
                Some((name, port)) if is_port(port) => name,
                Some(_) => return false,
                None => host,
            },
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        name.parse::<Ipv4Addr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || (self.hosts.iter()).any(|known| known.eq_ignore_ascii_case(name))
    }

    fn check_token(&self, head: &Parts) -> Result<(), Refusal> {
        let Some(token) = &self.token else {
            let why = "events and reports are not served by this port without a token: set \
                       control.token_file, or use the control socket";
            return Err(Refusal::new(StatusCode::FORBIDDEN, why));
        };
        let given = head
            .headers
            .get(AUTHORIZATION)
            .map(|value| value.as_bytes());
        let given = given.and_then(|value| {
            let (scheme, rest) = value.split_at_checked("bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(rest)
        });
        match given {
            Some(given) if token.matches(given.trim_ascii()) => Ok(()),
            Some(_) => Err(Refusal::unauthorized("wrong token")),
            None => Err(Refusal::unauthorized(
                "events and reports need `Authorization: Bearer` with the token of \
                 control.token_file",
            )),
        }
    }
}

/// The refusal of a change, which TCP clients must not make.
pub(super) fn read_only() -> Refusal {
    let why = "this port is read-only; use the control socket";
    Refusal::new(StatusCode::FORBIDDEN, why)
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok() && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl Token {
    /// Reads a file that only our user can write or read.
    fn read(path: &Path) -> Result<Self, String> {
        let file = OpenOptions::new()
            .read(true)
            // A link could point elsewhere, and opening a FIFO could block.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| format!("cannot be read ({error}); it must be a regular file"))?;
        let found = file.metadata().map_err(|error| error.to_string())?;
        if !found.is_file() {
            return Err("is not a regular file".to_owned());
        }
        let (own, owner) = (nix::unistd::geteuid().as_raw(), found.uid());
        if owner != own {
            return Err(format!(
                "belongs to user {owner}; it must belong to user {own}"
            ));
        }
        let mode = found.mode() & 0o7777;
        if mode & !0o600 != 0 {
            return Err(format!("has mode {mode:04o}; it must be 0600: `chmod 600`"));
        }
        let mut text = Vec::new();
        let most = u64::try_from(TOKEN_MAX).unwrap_or(u64::MAX);
        file.take(most + 1)
            .read_to_end(&mut text)
            .map_err(|error| format!("cannot be read ({error})"))?;
        let token = text.trim_ascii();
        if token.len() < TOKEN_MIN || text.len() > TOKEN_MAX {
            return Err(format!(
                "holds {} bytes; a token has from {TOKEN_MIN} to {TOKEN_MAX}",
                text.len()
            ));
        }
        if !token.iter().all(u8::is_ascii_graphic) {
            return Err("holds more than one word of ASCII; write the token alone".to_owned());
        }
        Ok(Self(token.to_owned()))
    }

    /// Compares in constant time, so that the token cannot be found byte by byte.
    fn matches(&self, given: &[u8]) -> bool {
        let mut differs = u8::from(given.len() != self.0.len());
        for (at, byte) in self.0.iter().enumerate() {
            differs |= byte ^ given.get(at).copied().unwrap_or(!byte);
        }
        std::hint::black_box(differs) == 0
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use hyper::Request;

    use super::*;

    const SECRET: &str = "correct-horse-battery";

    fn rules(token: bool) -> AccessRules {
        AccessRules {
            hosts: vec!["shop.example".to_owned()],
            token: token.then(|| Token(SECRET.into())),
        }
    }

    fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_host_must_be_an_address_or_a_configured_name() {
        let rules = rules(true);
        for (host, is_ours) in [
            ("127.0.0.1:9100", true),
            ("10.1.2.3", true),
            ("[::1]:9100", true),
            ("[fd00::1]", true),
            ("localhost", true),
            ("LocalHost.:9100", true),
            ("shop.example:9100", true),
            ("SHOP.example", true),
            ("evil.example", false),
            ("evil.shop.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("127.0.0.1@evil.example", false),
            ("shop.example:", false),
            ("shop.example:+80", false),
            ("[::1", false),
            ("[::1]evil", false),
            ("::1", false),
            ("", false),
        ] {
            assert_eq!(rules.is_allowed_host(host), is_ours, "{host}");
            let head = head("/v1/status", &[("host", host)]);
            assert_eq!(rules.check(&Question::Status, &head).is_ok(), is_ours);
            assert!(rules.check(&Question::Metrics, &head).is_ok());
            assert!(rules.check(&Question::Health, &head).is_ok());
            assert!(rules.check(&Question::Readiness, &head).is_ok());
        }
        let refused = |head: &Parts| rules.check(&Question::Status, head).is_err();
        assert!(refused(&head("/v1/status", &[])));
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert!(refused(&head("/v1/status", &twice)));
        let proxied = head("http://evil.example/v1/status", &[("host", "localhost")]);
        assert!(refused(&proxied));
    }

    #[test]
    fn events_and_reports_need_the_right_token() {
        let events = Question::Events {
            after: None,
            follow: true,
        };
        let status = |rules: &AccessRules, question: &Question, given: Option<&str>| {
            let given = given.map(|given| ("authorization", given));
            let headers: Vec<_> = [("host", "localhost")].into_iter().chain(given).collect();
            let checked = rules.check(question, &head("/v1/events", &headers));
            checked
                .err()
                .map(|refusal| refusal.into_response().status().as_u16())
        };
        let right = format!("Bearer {SECRET}");
        for question in [&events, &Question::Reports, &Question::History] {
            assert_eq!(status(&rules(true), question, Some(&right)), None);
            let elsewhere = [("host", "evil.example"), ("authorization", right.as_str())];
            let elsewhere = head("/v1/events", &elsewhere);
            assert!(rules(true).check(question, &elsewhere).is_err());
            assert_eq!(status(&rules(true), question, None), Some(401));
            assert_eq!(status(&rules(false), question, Some(&right)), Some(403));
            for wrong in [
                "Bearer",
                "Bearer ",
                "Bearer correct-horse-batterx",
                "Bearer correct-horse-battery-",
                "Bearer correct-horse-batter",
                "Basic correct-horse-battery",
                SECRET,
            ] {
                assert_eq!(
                    status(&rules(true), question, Some(wrong)),
                    Some(401),
                    "{wrong}"
                );
            }
        }
        assert_eq!(status(&rules(true), &Question::Status, None), None);
        let stop = Question::Do(crate::supervisor::input::Ask::Reload);
        assert_eq!(status(&rules(true), &stop, Some(&right)), Some(403));
    }

    #[test]
    fn a_token_file_that_other_users_could_read_or_write_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("token");
        let write = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let why = || Token::read(&path).map(drop).unwrap_err();
        assert!(why().contains("cannot be read"), "{}", why());
        write("correct-horse-battery\n", 0o600);
        assert_eq!(Token::read(&path).unwrap().0, SECRET.as_bytes());
        write("correct-horse-battery\n", 0o640);
        assert!(why().contains("has mode 0640"), "{}", why());
        write("short\n", 0o600);
        assert!(why().contains("from 16 to 4096"), "{}", why());
        write(&"x".repeat(5000), 0o600);
        assert!(why().contains("from 16 to 4096"), "{}", why());
        write("two words are not one token", 0o600);
        assert!(why().contains("one word"), "{}", why());
        write("correct-horse-battery\n", 0o600);
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Token::read(&link).is_err());
        assert!(Token::read(home.path()).is_err());
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(1), None).unwrap();
            assert!(why().contains("belongs to user 1"), "{}", why());
        }
    }
}
