//! Wishes to `Spec`: each key read, the whole judged.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use crate::{
    servers,
    supervisor::spec::{
        AgentSpec, CgroupSpec, ControlSpec, LeaksSpec, LogSpec, MemorySpec, ReadySpec, ReadyWhen,
        RecycleSpec, RestartSpec, Rlimit, Spec, StopSpec, TerminationLog,
    },
    units::RLIMITS,
};

use super::{
    Facts, command,
    environment::Environ,
    keys::nearest,
    limits, listen, place,
    wish::{Book, Origin, Wishes},
    words,
};

/// More of anything that is counted is a slip of the finger.
const COUNT_MAX: u32 = 10_000;

/// So many ends and events are a few hundred bytes each.
const HISTORY_MAX: u32 = 100_000;

/// So many reports are up to 64 KiB each.
const KEPT_MAX: u32 = 1_000;

/// The spec; good only if the book has no complaints afterwards.
pub(super) fn lower(
    wishes: &Wishes,
    environ: &Environ,
    facts: &dyn Facts,
    book: &mut Book,
) -> Spec {
    let command = command::lower(wishes, environ, facts, book);
    let (kind, kind_is_guessed) = command::kind(&command.argv, book);
    let here = command.directory.clone().unwrap_or_else(|| facts.here());
    let name = name(wishes, (&command.argv, &here), book);
    let ready = ready(book);
    if !command.listen.is_empty() && matches!(ready.when, ReadyWhen::Tcp(_)) {
        let text = "ready.when: a connection to a socket of `listen` succeeds before the command \
                    answers; http://HOST:PORT/PATH says more";
        book.warnings.push(text.to_owned());
    }
    Spec {
        kind,
        kind_is_guessed,
        memory: memory(book),
        rlimits: rlimits(book),
        cgroup: CgroupSpec {
            pids_max: book.value("cgroup.pids_max", words::maybe_count),
            cpu_weight: book.value("cgroup.cpu_weight", words::weight),
        },
        recycle: recycle(book),
        agent: agent(book),
        leaks: leaks((&name, &here), environ, facts, book),
        restart: restart(book),
        stop: StopSpec {
            signal: book.value("stop.signal", words::signal),
            grace: book.value("stop.grace", words::duration),
        },
        ready,
        dry_run: book.value("dry_run", words::switch),
        control: control(&name, environ, facts, book),
        log: LogSpec {
            format: book.value("log.format", |value| words::choice(value, &words::FORMATS)),
            verbose: book.value("log.verbose", words::switch),
        },
        name,
        command,
    }
}

/// As said, else after the file, else after the application, else after the directory it runs in.
fn name(wishes: &Wishes, (argv, here): (&[OsString], &Path), book: &mut Book) -> String {
    let checked = |value: &_| {
        let name = words::text(value)?;
        place::check_name(&name).map(|()| name)
    };
    let given = book.optional("name", checked);
    given.unwrap_or_else(|| default_name(wishes.config.as_deref(), argv, here))
}

fn default_name(config: Option<&Path>, argv: &[OsString], here: &Path) -> String {
    let words = argv.iter().map(|word| word.to_string_lossy().into_owned());
    let words: Vec<String> = words.collect();
    let text = |name: &OsStr| name.to_string_lossy().into_owned();
    let config = config.and_then(Path::file_stem).map(text);
    let source = config
        .or_else(|| servers::application(&words))
        .or_else(|| here.file_name().map(text));
    place::name_from(&source.unwrap_or_default())
}

fn memory(book: &mut Book) -> MemorySpec {
    let memory = MemorySpec {
        ceiling: book.value("memory.ceiling", words::limit),
        cap: book.value("memory.cap", words::limit),
        budget: book.value("memory.budget", words::limit),
        measure: book.value("memory.measure", |value| {
            words::choice(value, &words::MEASURES)
        }),
        strikes: book.value("memory.strikes", |value| words::count(value, 1..=COUNT_MAX)),
        swap: book.value("memory.swap", words::swap),
        wire: book.value("memory.wire", |value| words::choice(value, &words::WIRES)),
        gc_first: book.value("memory.gc_first", words::switch),
    };
    limits::check(&memory, book);
    memory
}

fn rlimits(book: &mut Book) -> BTreeMap<String, Rlimit> {
    let mut rlimits = BTreeMap::new();
    for name in book.names("rlimit") {
        let key = format!("rlimit.{name}");
        let lower = name.to_ascii_lowercase();
        let plain = lower.strip_prefix("rlimit_").unwrap_or(&lower);
        if !RLIMITS.contains(&plain) {
            let hint = nearest(plain, RLIMITS).map_or_else(
                || format!("there are {}", RLIMITS.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            book.complain(
                &book.origin(&key),
                &key,
                format!("`{name}` is no rlimit; {hint}"),
            );
        }
        if let Some(rlimit) = book.optional(&key, words::rlimit) {
            rlimits.insert(plain.to_owned(), rlimit);
        }
    }
    rlimits
}

fn recycle(book: &mut Book) -> RecycleSpec {
    let recycle = RecycleSpec {
        at_once: book.value("recycle.at_once", |value| {
            words::count(value, 1..=COUNT_MAX)
        }),
        min_age: book.value("recycle.min_age", words::duration),
        max_age: book.value("recycle.max_age", words::maybe_span),
        max_tasks: book.value("recycle.max_tasks", words::maybe_count),
        jitter: book.value("recycle.jitter", words::part),
        settle: book.value("recycle.settle", words::duration),
        capacity_first: book.value("recycle.capacity_first", words::switch),
        leftovers: book.value("recycle.leftovers", |value| {
            words::choice(value, &words::LEFTOVERS)
        }),
    };
    if recycle.max_age.is_some_and(|max| max < recycle.min_age) {
        let text = "recycle.max_age is below recycle.min_age; raise the one or lower the other";
        book.complain_of_both("recycle.max_age", "recycle.min_age", text);
    }
    recycle
}

fn agent(book: &mut Book) -> AgentSpec {
    AgentSpec {
        load: book.value("agent.load", |value| words::choice(value, &words::LOADS)),
        drain: book.value("agent.drain", words::duration),
        ignore_paths: book
            .optional("recycle.ignore_paths", words::paths)
            .unwrap_or_default(),
    }
}

fn leaks(
    (name, here): (&str, &Path),
    environ: &Environ,
    facts: &dyn Facts,
    book: &mut Book,
) -> LeaksSpec {
    let kept = book.value("leaks.kept", |value| words::count(value, 1..=KEPT_MAX));
    let directory = book
        .optional("leaks.directory", words::path)
        .map(|path| facts.here().join(path))
        .or_else(|| {
            let unusable = |path: &Path| facts.unusable(path);
            let (chosen, warnings) = place::state_dir(environ.clone(), facts.uid(), unusable);
            book.warnings.extend(warnings);
            chosen
        });
    LeaksSpec {
        ask: book.value("leaks.ask", |value| words::choice(value, &words::LEAKS)),
        time_box: book.value("leaks.time_box", words::span),
        kept: usize::try_from(kept).unwrap_or(usize::MAX),
        directory,
        service: place::state_name(name, here),
    }
}

fn restart(book: &mut Book) -> RestartSpec {
    let restart = RestartSpec {
        when: book.value("restart.when", |value| words::choice(value, &words::WHENS)),
        delay_min: book.value("restart.delay_min", words::span),
        delay_max: book.value("restart.delay_max", words::span),
        limit: book.value("restart.limit", |value| words::count(value, 1..=COUNT_MAX)),
        window: book.value("restart.window", words::span),
    };
    if restart.delay_max < restart.delay_min {
        let text = "restart.delay_max is below restart.delay_min; raise the one or lower the other";
        book.complain_of_both("restart.delay_max", "restart.delay_min", text);
    }
    restart
}

fn ready(book: &mut Book) -> ReadySpec {
    ReadySpec {
        when: book.value("ready.when", words::ready),
        timeout: book.value("ready.timeout", words::span),
    }
}

fn control(name: &str, environ: &Environ, facts: &dyn Facts, book: &mut Book) -> ControlSpec {
    let socket = book
        .optional("control.socket", words::path)
        .map(|path| facts.here().join(path))
        .unwrap_or_else(|| {
            let chosen =
                place::runtime_dir(environ.clone(), facts.uid(), |path| facts.unusable(path));
            let directory = match chosen {
                Ok((directory, warnings)) => {
                    book.warnings.extend(warnings);
                    directory
                }
                Err(text) => {
                    book.complain(&Origin::Default, "control.socket", text);
                    PathBuf::new()
                }
            };
            place::socket_in(&directory, name)
        });
    if let Err(text) = place::check_socket(&socket) {
        book.complain(&book.origin("control.socket"), "control.socket", text);
    }
    let history = book.value("control.history", |value| {
        words::count(value, 1..=HISTORY_MAX)
    });
    ControlSpec {
        socket,
        metrics: book.value("control.metrics", words::address),
        hosts: (book.optional("control.hosts", listen::hosts)).unwrap_or_default(),
        token_file: (book.optional("control.token_file", words::path))
            .map(|path| facts.here().join(path)),
        history: usize::try_from(history).unwrap_or(usize::MAX),
        termination_log: match book.value("control.termination_log", words::termination_log) {
            TerminationLog::At(path) => TerminationLog::At(facts.here().join(path)),
            log @ (TerminationLog::Auto | TerminationLog::Off) => log,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_after_its_file_its_application_or_the_directory_it_runs_in() {
        let named = |config: Option<&str>, line: &str, here: &str| {
            let argv: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            default_name(config.map(Path::new), &argv, Path::new(here))
        };
        let line = "gunicorn -w 4 shop:app";
        assert_eq!(named(Some("/etc/till.toml"), line, "/srv"), "till");
        assert_eq!(named(None, line, "/srv"), "shop");
        assert_eq!(named(None, "python -c pass", "/srv/my shop"), "my-shop");
        assert_eq!(named(None, "sh", "/"), "service");
    }
}
