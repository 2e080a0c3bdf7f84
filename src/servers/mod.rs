//! THE SUPPORTED SERVERS and the command lines that start them. This is pure: it reads no process.

mod application;
pub mod dramatiq;
pub mod fleet;
pub mod granian;
pub mod gunicorn;
pub mod huey;
pub mod hypercorn;
mod launcher;
pub mod profile;
pub mod rq;
pub mod taskiq;
#[cfg(test)]
mod tests;
pub mod uvicorn;
pub mod uwsgi;

pub use application::application;

use profile::{Found, Profile};

/// All supported servers.
pub static PROFILES: [&Profile; 9] = [
    &gunicorn::PROFILE,
    &uvicorn::PROFILE,
    &hypercorn::PROFILE,
    &uwsgi::PROFILE,
    &granian::PROFILE,
    &rq::PROFILE,
    &huey::PROFILE,
    &taskiq::PROFILE,
    &dramatiq::PROFILE,
];

/// Servers with an option for the number of workers.
const COUNTS_WORKERS: [&str; 5] = ["fastapi", "granian", "hypercorn", "litestar", "uvicorn"];

/// The server that a command line starts, also through common launchers: `uv run`, `env`, `sh -c`.
///
/// `None` for a wrapper script, because its command line does not show what it executes.
pub fn recognise(argv: &[String]) -> Option<&'static Profile> {
    PROFILES
        .into_iter()
        .find(|server| server.found == Found::ByCommand && starts(argv, server.name))
}

/// The variable from which the started program reads the number of a listening socket, if it does
/// not support `LISTEN_FDS` (sd_listen_fds(3)).
pub fn socket_variable(argv: &[String]) -> Option<&'static str> {
    starts(argv, "uvicorn").then_some("UVICORN_FD")
}

/// Whether the command line asks a server for several workers: `uvicorn --workers 4`.
pub fn has_several_workers(argv: &[String]) -> bool {
    if !COUNTS_WORKERS.iter().any(|server| starts(argv, server)) {
        return false;
    }
    let mut words = argv.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let (option, value) = word.split_once('=').unzip();
        let is_number = matches!(option.unwrap_or(word), "--workers" | "-w" | "-W");
        let value = if is_number {
            value.or_else(|| words.next())
        } else {
            None
        };
        if value.and_then(|value| value.parse().ok()) > Some(1) {
            return true;
        }
    }
    false
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

/// Whether the command line of a process (`/proc/PID/cmdline`) is that of a server's main process.
/// Without setproctitle, gunicorn's workers have the same command line; the caller tells them apart
/// by their parents.
pub fn is_main(server: &Profile, argv: &[String]) -> bool {
    let named = |title: &str| argv.first().is_some_and(|word| word.starts_with(title));
    let is_there = |word: &&str| argv.iter().any(|other| other == word);
    let has_workers = server.words.is_empty() || server.words.iter().any(is_there);
    let mut scripts = server.scripts.iter().chain([&server.name]);
    server.title.is_some_and(named) || (has_workers && scripts.any(|name| runs(argv, name)))
}

/// Whether the program is the script of the server, or an interpreter that runs the server.
fn runs(argv: &[String], server: &str) -> bool {
    let Some((program, rest)) = argv.split_first() else {
        return false;
    };
    let name = basename(program);
    is_versioned(name, server)
        || ((is_versioned(name, "python") || is_versioned(name, "pypy")) && is_given(rest, server))
}

/// Whether a name is `base`, optionally with a version: `gunicorn`, `gunicorn3`, `python3.11`.
fn is_versioned(name: &str, base: &str) -> bool {
    name.strip_prefix(base).is_some_and(|version| {
        version
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '.' | '-'))
    })
}

/// Whether a module is that of the server or one inside it: `gunicorn`, `gunicorn.app.wsgiapp`.
fn is_module(module: &str, server: &str) -> bool {
    module
        .strip_prefix(server)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether the arguments of an interpreter make it run the server. `-m` and `-c` end the options of
/// python(1), and may be the last letter of combined options (`-um`).
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
