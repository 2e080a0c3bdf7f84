//! What is run: the program found, its directory and its user checked.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::{
    servers,
    supervisor::spec::{CommandSpec, Kind, Listen},
};

use super::{
    Facts,
    complaint::{Blame, Complaint},
    environment::Environ,
    listen, place,
    wish::{Book, Origin, Wishes},
    words,
};

/// Where programs are looked for without a PATH (execvp(3)).
const PATH_DEFAULT: &str = "/bin:/usr/bin";

/// What is at a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entry {
    /// Nothing, or nothing we may see.
    Nothing,
    /// A directory.
    Directory,
    /// A file that can be executed.
    Program,
    /// Anything else.
    Other,
}

/// The command as it will be executed. After a complaint it is only good for judging the rest.
pub(super) fn lower(
    wishes: &Wishes,
    environ: &Environ,
    facts: &dyn Facts,
    book: &mut Book,
) -> CommandSpec {
    let env = environment(book);
    let directory = directory(facts, book);
    let user = book.optional("user", words::text);
    if let Some(name) = user.as_deref().filter(|name| !facts.user_exists(name)) {
        book.complain(
            &book.origin("user"),
            "user",
            format!("there is no user `{name}`"),
        );
    }
    if user.is_some() && facts.uid() != 0 {
        let text = "user: only root may run COMMAND as another user; under systemd take `User=`, \
                    or the drop-in root.conf";
        book.warnings.push(text.to_owned());
    }
    let (argv, origin) = argv(wishes, book);
    let path = env
        .get(OsStr::new("PATH"))
        .or_else(|| environ.get(OsStr::new("PATH")))
        .map_or(OsStr::new(PATH_DEFAULT), OsString::as_os_str);
    let here = directory.clone().unwrap_or_else(|| facts.here());
    let program = match argv.first().map(|typed| find(typed, path, &here, facts)) {
        Some(Ok(program)) => program,
        Some(Err((blame, why))) => {
            let text = format!("{}: {why}", origin.naming("command"));
            book.complaints.push(Complaint::new(blame, origin, text));
            PathBuf::new()
        }
        None => PathBuf::new(),
    };
    CommandSpec {
        program,
        argv,
        env,
        directory,
        user,
        listen: listen(facts, book),
    }
}

/// Relative paths are from where we are.
fn listen(facts: &dyn Facts, book: &mut Book) -> Vec<Listen> {
    let wished = book.optional("listen", listen::listen).unwrap_or_default();
    let whole = |one| match one {
        Listen::Unix(path) => Listen::Unix(facts.here().join(path)),
        Listen::Tcp(_) => one,
    };
    let wished: Vec<_> = wished.into_iter().map(whole).collect();
    for address in &wished {
        if let Listen::Unix(path) = address
            && let Err(text) = place::check_socket(path)
        {
            book.complain(&book.origin("listen"), "listen", text);
        }
    }
    wished
}

/// How the command is understood.
/// And whether that was guessed from the command line.
pub(super) fn kind(argv: &[OsString], book: &mut Book) -> (Kind, bool) {
    let said = book.value("server", |value| words::choice(value, &words::SERVERS));
    let kind = said.unwrap_or_else(|| {
        let argv: Vec<String> = argv
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        servers::recognise(&argv).map_or(Kind::Single, |kind| Kind::Server(servers::habits(kind)))
    });
    (kind, said.is_none())
}

fn argv(wishes: &Wishes, book: &mut Book) -> (Vec<OsString>, Origin) {
    if !wishes.command.is_empty() {
        return (wishes.command.clone(), Origin::Flag("COMMAND".to_owned()));
    }
    let origin = book.origin("command");
    if origin == Origin::Default {
        book.complain(
            &origin,
            "command",
            "nothing says what to run; write command = [\"PROGRAM\", \"ARGUMENT\"], \
             or COMMAND after `--`",
        );
    }
    let words = book.optional("command", words::words).unwrap_or_default();
    (words.into_iter().map(OsString::from).collect(), origin)
}

fn environment(book: &mut Book) -> BTreeMap<OsString, OsString> {
    let mut env = BTreeMap::new();
    for name in book.names("env") {
        let key = format!("env.{name}");
        if name.is_empty() || name.contains(['=', '\0']) {
            book.complain(
                &book.origin(&key),
                &key,
                "a variable's name has no `=` and is not empty",
            );
        }
        if let Some(value) = book.optional(&key, words::variable) {
            env.insert(name.into(), value.into());
        }
    }
    env
}

fn directory(facts: &dyn Facts, book: &mut Book) -> Option<PathBuf> {
    let directory = facts.here().join(book.optional("directory", words::path)?);
    if facts.entry(&directory) != Entry::Directory {
        let text = format!("{} is not a directory", directory.display());
        book.complain(&book.origin("directory"), "directory", text);
    }
    Some(directory)
}

/// Finds a program as execvp(3) does from within `here`.
fn find(
    typed: &OsStr,
    path: &OsStr,
    here: &Path,
    facts: &dyn Facts,
) -> Result<PathBuf, (Blame, String)> {
    let shown = typed.to_string_lossy();
    if typed.is_empty() {
        return Err((Blame::NotFound, "the program's name is empty".to_owned()));
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
        let why = format!("{} is not executable; chmod +x it", found.display());
        return Err((Blame::NotExecutable, why));
    }
    if is_path && facts.entry(&here.join(typed)) == Entry::Directory {
        let why = format!("`{shown}` is a directory, not a program");
        return Err((Blame::NotExecutable, why));
    }
    let hint = if is_path {
        "is not there"
    } else if typed.as_bytes().contains(&b' ') {
        "is not in PATH; write the words apart, without quotes around all of them"
    } else {
        "is not in PATH; install it, or write its whole path"
    };
    Err((Blame::NotFound, format!("`{shown}` {hint}")))
}
