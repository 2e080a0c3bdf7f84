//! Finds the program of COMMAND, and checks its directory and its user.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::{
    servers,
    supervisor::spec::{CommandSpec, Kind, Listen, RestartWhen, Spec},
};

use super::{
    Facts,
    diagnostic::{Diagnostic, ErrorKind},
    environment::Environ,
    listen, parsers, paths,
    settings::{CommandLine, Origin, Settings, Value},
};

/// The directories in which programs are searched without a PATH (execvp(3)).
const PATH_DEFAULT: &str = "/bin:/usr/bin";

/// In the command line, this is replaced by the number of the first listening socket.
const SOCKET: &str = "{fd}";
/// sd_listen_fds(3).
const FIRST_SOCKET: &str = "3";
/// Maximum copies of a command.
const COPIES_MAX: u64 = 1024;

/// The kind of file at a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entry {
    /// No file, or none that is visible to this user.
    Nothing,
    /// A directory.
    Directory,
    /// A file that can be executed.
    Program,
    /// Anything else.
    Other,
}

/// The command as it will be executed. The result is valid only if no error was recorded.
pub(super) fn build(
    command_line: &CommandLine,
    environ: &Environ,
    facts: &dyn Facts,
    settings: &mut Settings,
) -> CommandSpec {
    let env = environment(settings);
    let directory = directory(facts, settings);
    let user = settings.optional("user", parsers::text);
    if let Some(name) = user.as_deref().filter(|name| !facts.user_exists(name)) {
        settings.error(
            &settings.origin("user"),
            "user",
            format!("there is no user `{name}`"),
        );
    }
    if user.is_some() && facts.uid() != 0 {
        let text = "user: only root can run COMMAND as another user; under systemd, use `User=` or \
                    the drop-in root.conf";
        settings.warnings.push(text.to_owned());
    }
    let (argv, origin) = argv(command_line, settings);
    let path = env
        .get(OsStr::new("PATH"))
        .or_else(|| environ.get(OsStr::new("PATH")))
        .map_or(OsStr::new(PATH_DEFAULT), OsString::as_os_str);
    let here = directory.clone().unwrap_or_else(|| facts.here());
    let program = match argv.first().map(|typed| find(typed, path, &here, facts)) {
        Some(Ok(program)) => program,
        Some(Err((kind, why))) => {
            let text = format!("{}: {why}", origin.naming("command"));
            settings
                .diagnostics
                .push(Diagnostic::new(kind, origin, text));
            PathBuf::new()
        }
        None => PathBuf::new(),
    };
    let listen = listen(facts, settings);
    let has_sockets = has_sockets(&listen, environ);
    let argv = argv.into_iter().map(|word| match word.to_str() {
        Some(text) if has_sockets => text.replace(SOCKET, FIRST_SOCKET).into(),
        Some(_) | None => word,
    });
    CommandSpec {
        program,
        argv: argv.collect(),
        env,
        directory,
        user,
        listen,
    }
}

/// Whether the command gets listening sockets: the supervisor opens them, or got them itself.
fn has_sockets(listen: &[Listen], environ: &Environ) -> bool {
    !listen.is_empty() || environ.get(OsStr::new("LISTEN_FDS")).is_some()
}

/// Whether the command is a single program that gets listening sockets, and whose replacement may
/// start first. If it is seen to accept connections at them, it is treated as a fleet of one copy.
pub(super) fn may_overlap(spec: &Spec, environ: &Environ) -> bool {
    let is_program = spec.kind == Kind::Single && spec.kind_is_guessed;
    is_program
        && spec.recycle.surge
        && spec.restart.when != RestartWhen::Never
        && has_sockets(&spec.command.listen, environ)
        && !servers::has_several_workers(&words_of(&spec.command.argv))
}

fn words_of(argv: &[OsString]) -> Vec<String> {
    let words = argv.iter().map(|word| word.to_string_lossy().into_owned());
    words.collect()
}

/// The addresses to listen on. Relative paths are relative to the current directory.
fn listen(facts: &dyn Facts, settings: &mut Settings) -> Vec<Listen> {
    let listen = settings
        .optional("listen", listen::listen)
        .unwrap_or_default();
    let absolute = |one| match one {
        Listen::Unix(path) => Listen::Unix(facts.here().join(path)),
        Listen::Tcp(_) => one,
    };
    let listen: Vec<_> = listen.into_iter().map(absolute).collect();
    for address in &listen {
        if let Listen::Unix(path) = address
            && let Err(text) = paths::check_socket(path)
        {
            settings.error(&settings.origin("listen"), "listen", text);
        }
    }
    listen
}

/// The kind of the command, and whether it was guessed from the command line.
pub(super) fn kind(argv: &[OsString], settings: &mut Settings) -> (Kind, bool) {
    let set = settings
        .optional("server", |value| parsers::choice(value, &parsers::SERVERS))
        .flatten();
    let kind = set
        .unwrap_or_else(|| servers::recognise(&words_of(argv)).map_or(Kind::Single, Kind::Server));
    (kind, set.is_none())
}

/// The number of copies at the start, and for `auto` the number of cores.
pub(super) fn copies(facts: &dyn Facts, settings: &mut Settings) -> (Option<u64>, Option<u32>) {
    let parse = |value: &Value| {
        if matches!(value, Value::Untyped(text) | Value::Text(text) if text == "auto") {
            return Ok((Some(1), Some(facts.cores())));
        }
        parsers::maybe_count(value).map(|number| (number, None))
    };
    settings.optional("copies", parse).unwrap_or_default()
}

/// Makes the command a fleet of copies.
pub(super) fn multiply(spec: &mut Spec, settings: &mut Settings) {
    let copies = spec.copies.unwrap_or(1);
    if copies > COPIES_MAX {
        let text = format!("{copies} copies are too many; at most {COPIES_MAX}");
        settings.error(&settings.origin("copies"), "copies", text);
    }
    if spec.restart.when == RestartWhen::Never {
        let text = "a job is one run of COMMAND, and `copies` multiplies it; leave out one of both";
        settings.error_of_both("copies", "restart.when", text);
    }
    let words = words_of(&spec.command.argv);
    let several = match spec.kind {
        Kind::Server(server) => Some(server.name),
        Kind::Single => servers::has_several_workers(&words).then_some("COMMAND"),
    };
    if let Some(server) = several {
        let text = format!(
            "`copies` multiplies COMMAND, and {server} starts several workers itself; leave out \
             one of both"
        );
        settings.error(&settings.origin("copies"), "copies", text);
    }
    spec.kind = Kind::Server(&servers::fleet::PROFILE);
    spec.kind_is_guessed = false;
}

fn argv(command_line: &CommandLine, settings: &mut Settings) -> (Vec<OsString>, Origin) {
    if !command_line.command.is_empty() {
        return (
            command_line.command.clone(),
            Origin::Flag("COMMAND".to_owned()),
        );
    }
    let origin = settings.origin("command");
    if origin == Origin::Default {
        settings.error(
            &origin,
            "command",
            "no command to run; write command = [\"PROGRAM\", \"ARGUMENT\"], or put COMMAND after \
             `--`",
        );
    }
    let words = settings
        .optional("command", parsers::words)
        .unwrap_or_default();
    (words.into_iter().map(OsString::from).collect(), origin)
}

fn environment(settings: &mut Settings) -> BTreeMap<OsString, OsString> {
    let mut env = BTreeMap::new();
    for name in settings.names("env") {
        let key = format!("env.{name}");
        if name.is_empty() || name.contains(['=', '\0']) {
            settings.error(
                &settings.origin(&key),
                &key,
                "the name of a variable must not be empty and must not contain `=`",
            );
        }
        if let Some(value) = settings.optional(&key, parsers::variable) {
            env.insert(name.into(), value.into());
        }
    }
    env
}

fn directory(facts: &dyn Facts, settings: &mut Settings) -> Option<PathBuf> {
    let directory = facts
        .here()
        .join(settings.optional("directory", parsers::path)?);
    if facts.entry(&directory) != Entry::Directory {
        let text = format!("{} is not a directory", directory.display());
        settings.error(&settings.origin("directory"), "directory", text);
    }
    Some(directory)
}

/// Finds a program like execvp(3) with `here` as the current directory.
fn find(
    typed: &OsStr,
    path: &OsStr,
    here: &Path,
    facts: &dyn Facts,
) -> Result<PathBuf, (ErrorKind, String)> {
    let shown = typed.to_string_lossy();
    if typed.is_empty() {
        return Err((
            ErrorKind::NotFound,
            "the name of the program is empty".to_owned(),
        ));
    }
    let is_path = typed.as_bytes().contains(&b'/');
    let places: Vec<PathBuf> = if is_path {
        vec![here.join(typed)]
    } else {
        std::env::split_paths(path)
            .map(|directory| here.join(directory).join(typed))
            .collect()
    };
    if let Some(program) = places
        .iter()
        .find(|place| facts.entry(place) == Entry::Program)
    {
        return Ok(program.clone());
    }
    if let Some(found) = places
        .iter()
        .find(|place| facts.entry(place) == Entry::Other)
    {
        let why = format!("{0} is not executable; run `chmod +x {0}`", found.display());
        return Err((ErrorKind::NotExecutable, why));
    }
    if is_path && facts.entry(&here.join(typed)) == Entry::Directory {
        let why = format!("`{shown}` is a directory, not a program");
        return Err((ErrorKind::NotExecutable, why));
    }
    let hint = if is_path {
        "does not exist"
    } else if typed.as_bytes().contains(&b' ') {
        "is not in PATH; write program and arguments as separate words, not quoted together"
    } else {
        "is not in PATH; install it, or write its full path"
    };
    Err((ErrorKind::NotFound, format!("`{shown}` {hint}")))
}
