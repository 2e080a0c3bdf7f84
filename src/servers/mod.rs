//! KNOWS servers: which command line is one. Data in, answer out; it never looks at a process.

mod application;
pub mod gunicorn;
mod launcher;

pub use application::application;

use crate::units::{Habits, ServerKind};

const GUNICORN: &str = "gunicorn";

/// The server a command line starts, seen through the usual launchers: `uv run`, `env`, `sh -c`.
///
/// What a wrapper script will execute cannot be read from its command line: then it is `None`.
pub fn recognise(argv: &[String]) -> Option<ServerKind> {
    starts(argv, GUNICORN).then_some(ServerKind::Gunicorn)
}

/// The variable by which what a command line starts takes the number of a listening socket, where
/// it does not look for `LISTEN_FDS` (sd_listen_fds(3)).
pub fn socket_variable(argv: &[String]) -> Option<&'static str> {
    starts(argv, "uvicorn").then_some("UVICORN_FD")
}

fn starts(argv: &[String], server: &str) -> bool {
    let mut words = argv;
    while let Some((program, rest)) = words.split_first() {
        if runs(words, server) {
            return true;
        }
        match launcher::open(basename(program), rest) {
            launcher::Inside::Command(inner) => words = inner,
            launcher::Inside::Module(module) => return is_module(module, server),
            launcher::Inside::Script(commands) => {
                return commands.iter().any(|command| starts(command, server));
            }
            launcher::Inside::Nothing => return false,
        }
    }
    false
}

/// How a make of server treats its workers.
pub const fn habits(kind: ServerKind) -> Habits {
    match kind {
        ServerKind::Gunicorn => gunicorn::HABITS,
    }
}

/// Whether one process's own command line, as `/proc/PID/cmdline` has it, is that of gunicorn's
/// main process. Without setproctitle its workers have the same one: who is whose child tells.
pub fn is_gunicorn(argv: &[String]) -> bool {
    argv.first()
        .is_some_and(|title| title.starts_with("gunicorn: master"))
        || runs(argv, GUNICORN)
}

/// The program is the server's script, or an interpreter that is given it.
fn runs(argv: &[String], server: &str) -> bool {
    let Some((program, rest)) = argv.split_first() else {
        return false;
    };
    let name = basename(program);
    is_versioned(name, server)
        || ((is_versioned(name, "python") || is_versioned(name, "pypy")) && is_given(rest, server))
}

/// `gunicorn`, `gunicorn3`, `python3.11`: the name, then only a version.
fn is_versioned(name: &str, base: &str) -> bool {
    name.strip_prefix(base).is_some_and(|version| {
        version
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '.' | '-'))
    })
}

/// `gunicorn` or one within it, `gunicorn.app.wsgiapp`.
fn is_module(module: &str, server: &str) -> bool {
    module
        .strip_prefix(server)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// What an interpreter's own arguments make it run: the options of python(1), where `-m` and `-c`
/// end them and may stand at the end of a cluster (`-um`).
fn is_given(arguments: &[String], server: &str) -> bool {
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let Some(option) = word.strip_prefix('-').filter(|option| !option.is_empty()) else {
            return is_versioned(basename(word), server);
        };
        if option == "-check-hash-based-pycs" {
            words.next();
        }
        if option.starts_with('-') {
            continue;
        }
        let Some(at) = option.find(['m', 'c', 'W', 'X']) else {
            continue;
        };
        let (letter, attached) = option.split_at(at).1.split_at(1);
        let value = if attached.is_empty() {
            words.next().map(String::as_str)
        } else {
            Some(attached)
        };
        match letter {
            "m" => return value.is_some_and(|module| is_module(module, server)),
            "c" => return false,
            _ => {}
        }
    }
    false
}

fn basename(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn gunicorn_is_seen_however_it_is_started() {
        for line in [
            "gunicorn app",
            "/srv/x/bin/gunicorn -w 2 app",
            "gunicorn3 app",
            "python -m gunicorn app",
            "python3.11 -u -m gunicorn app",
            "python -um gunicorn app",
            "python -mgunicorn.app.wsgiapp app",
            "python -X dev -Wignore -W default -m gunicorn app",
            "/x/bin/python /x/bin/gunicorn app",
            "uv run gunicorn app",
            "uv run --python 3.12 --frozen -- gunicorn app",
            "uv --quiet run --with gunicorn -m gunicorn app",
            "poetry run gunicorn app",
            "pipenv run python -m gunicorn app",
            "env -i -u HOME A=B C= gunicorn app",
            "nice -n 5 ionice -c 2 gunicorn app",
            "nice -5 gunicorn app",
            "nohup setsid gunicorn app",
            "timeout -s TERM 60 gunicorn app",
            "dumb-init -v -- gunicorn app",
            "tini -g -- gunicorn app",
            "ddtrace-run gunicorn app",
            "opentelemetry-instrument --traces_exporter console gunicorn app",
            "newrelic-admin run-program gunicorn app",
        ] {
            assert_eq!(
                recognise(&words(line)),
                Some(ServerKind::Gunicorn),
                "{line}"
            );
        }
    }

    #[test]
    fn gunicorn_is_seen_in_what_a_shell_is_told() {
        for script in [
            "exec gunicorn app",
            "cd /srv && exec 'gunicorn' -w 2 app",
            "set -e; PORT=80 gunicorn app",
            ". venv/bin/activate\nexec uv run \"gunicorn\" app",
        ] {
            for flags in ["-c", "-lc", "-ec"] {
                let argv = ["bash", flags, script].map(str::to_owned);
                assert_eq!(recognise(&argv), Some(ServerKind::Gunicorn), "{script}");
            }
        }
    }

    #[test]
    fn what_only_mentions_gunicorn_is_not_it() {
        for line in [
            "",
            "python app.py gunicorn",
            "python -c gunicorn",
            "python -m pytest gunicorn",
            "python",
            "./start.sh gunicorn",
            "gunicorn-reloader app",
            "pip install gunicorn",
            "uv pip install gunicorn",
            "env",
            "bash start.sh gunicorn",
            "uv run",
        ] {
            assert_eq!(recognise(&words(line)), None, "{line}");
        }
        let argv = ["sh", "-c", "echo gunicorn # gunicorn"].map(str::to_owned);
        assert_eq!(recognise(&argv), None);
    }

    #[test]
    fn uvicorn_is_told_of_its_socket_by_a_variable() {
        for line in [
            "uvicorn shop:app",
            "python -m uvicorn shop:app",
            "uv run uvicorn shop:app",
        ] {
            assert_eq!(socket_variable(&words(line)), Some("UVICORN_FD"), "{line}");
        }
        for line in [
            "gunicorn -k uvicorn.workers.UvicornWorker a",
            "uvicorn_x",
            "",
        ] {
            assert_eq!(socket_variable(&words(line)), None, "{line}");
        }
    }

    #[test]
    fn a_process_of_gunicorn_is_known_by_its_own_command_line() {
        for line in [
            "gunicorn: master [shop:app]",
            "/x/bin/python3.11 /x/bin/gunicorn -w 2 shop:app",
            "python -m gunicorn shop:app",
        ] {
            let argv = match line.strip_prefix("gunicorn:") {
                Some(_) => vec![line.to_owned()],
                None => words(line),
            };
            assert!(is_gunicorn(&argv), "{line}");
        }
        for line in [
            "uv run gunicorn shop:app",
            "sh -c gunicorn",
            "python x.py",
            "",
        ] {
            assert!(!is_gunicorn(&words(line)), "{line}");
        }
    }
}
