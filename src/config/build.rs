//! Builds the `Spec` from settings: parses each value, then checks that the values are consistent.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use crate::{
    servers,
    supervisor::{
        pool::spec::{Call, PoolSettings},
        spec::{
            AgentLoad, CommandSpec, LeaksSpec, MemorySpec, ReadyWhen, Rlimit, Spec, StopSpec,
            TerminationLog,
        },
    },
    units::RLIMITS,
};

use super::{
    Facts, command,
    environment::Environ,
    keys::{Mode, nearest},
    limits, parsers, paths,
    settings::{CommandLine, Origin, Settings},
};

/// A spec without settings.
pub(super) fn base(mode: Mode) -> Spec {
    let command = CommandSpec {
        program: PathBuf::new(),
        argv: Vec::new(),
        env: BTreeMap::new(),
        directory: None,
        user: None,
        listen: Vec::new(),
    };
    let mut spec = Spec::base(String::new(), MemorySpec::plain(), command, PathBuf::new());
    spec.pool = match mode {
        Mode::Service => None,
        Mode::Pool => {
            // Workers of a pool load the agent only to make a report.
            spec.agent.load = AgentLoad::Off;
            Some(PoolSettings::default())
        }
    };
    spec
}

/// The spec of a service. It is valid only if no error was recorded.
pub(super) fn service(
    command_line: &CommandLine,
    environ: &Environ,
    facts: &dyn Facts,
    settings: &mut Settings,
) -> Spec {
    let mut spec = base(Mode::Service);
    settings.apply(Mode::Service, &mut spec);
    spec.command = command::build(command_line, environ, facts, settings);
    (spec.kind, spec.kind_is_guessed) = command::kind(&spec.command.argv, settings);
    (spec.copies, spec.copies_up_to) = command::copies(facts, settings);
    if spec.copies.is_some() {
        command::multiply(&mut spec, settings);
    }
    spec.overlap = command::may_overlap(&spec, environ);
    let here = spec.command.directory.clone();
    let here = here.unwrap_or_else(|| facts.here());
    let default = || default_name(command_line.config.as_deref(), &spec.command.argv, &here);
    spec.name = name(settings).unwrap_or_else(default);
    spec.rlimits = rlimits(settings);
    spec.leaks = LeaksSpec {
        directory: state_directory(environ, facts, settings),
        service: paths::state_name(&spec.name, &here),
        ..spec.leaks
    };
    let runtime_dir = |settings: &mut Settings| runtime_directory(environ, facts, settings);
    spec.control.socket = socket(&spec.name, facts, settings, runtime_dir);
    if settings.origin("stop.stream_grace") == Origin::Default {
        let stop = &mut spec.stop;
        stop.stream_grace = stop.stream_grace.min(stop.grace / 3);
    }
    make_absolute(&mut spec, facts);
    check(&spec, settings);
    spec
}

/// The spec of a pool. It is valid only if no error was recorded. The caller sets its command,
/// which is the Python interpreter.
pub(super) fn pool(environ: &Environ, facts: &dyn Facts, settings: &mut Settings) -> Spec {
    let mut spec = base(Mode::Pool);
    settings.apply(Mode::Pool, &mut spec);
    let given = name(settings);
    let is_named = given.is_some();
    let function = spec.pool.as_ref().and_then(|pool| pool.function.as_deref());
    spec.name = given.unwrap_or_else(|| pool_name(function));
    let directory = runtime_directory(environ, facts, settings);
    spec.control.socket = socket(&spec.name, facts, settings, |_| directory.clone());
    spec.leaks = LeaksSpec {
        directory: state_directory(environ, facts, settings),
        service: paths::state_name(&spec.name, &facts.here()),
        ..spec.leaks
    };
    if let Some(pool) = &mut spec.pool {
        pool.is_named = is_named;
        pool.directory = directory;
        check_pool(pool, settings);
    }
    make_absolute(&mut spec, facts);
    check(&spec, settings);
    spec
}

/// The name of a pool: `map-` and the module of the function, so that a service named after the
/// module can run at the same time. If several runs of one function overlap, the later ones add
/// their process id.
fn pool_name(function: Option<&str>) -> String {
    let module = function.and_then(|function| function.split(':').next());
    let last = module.and_then(|module| module.rsplit('.').next());
    let plain = |name: &&str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        !name.is_empty() && name.len() <= 64 && name.chars().all(is_plain)
    };
    last.filter(plain)
        .map_or_else(|| "executor".to_owned(), |name| format!("map-{name}"))
}

fn check_pool(pool: &PoolSettings, settings: &mut Settings) {
    if pool.is_plain && pool.call != Call::One {
        let text = "--plain cannot be used with --call: a line is one value";
        settings.error_of_both("pool.plain", "pool.call", text);
    }
    if pool.resumes && pool.journal.is_none() {
        let text = "no journal to resume; write --journal FILE, or `journal` in [pool]";
        settings.error(&settings.origin("pool.resume"), "pool.resume", text);
    }
    if pool.retries_failed && !pool.resumes {
        let text = "applies only to a resumed run; write --resume, or `resume` in [pool]";
        settings.error(
            &settings.origin("pool.retry_failed"),
            "pool.retry_failed",
            text,
        );
    }
}

/// Checks that the settings are consistent.
fn check(spec: &Spec, settings: &mut Settings) {
    limits::check(&spec.memory, settings);
    // The probe of a copy is answered only by the copy itself.
    let holds = !spec.command.listen.is_empty() && spec.copies.is_none();
    if holds && matches!(spec.ready.when, ReadyWhen::Tcp(_)) {
        let text = "ready.when: a connection to a socket of `listen` succeeds before the command \
                    answers; use http://HOST:PORT/PATH";
        settings.warnings.push(text.to_owned());
    }
    let recycle = &spec.recycle;
    if recycle.max_age.is_some_and(|max| max < recycle.min_age) {
        let text = "recycle.max_age is below recycle.min_age; raise the first or lower the second";
        settings.error_of_both("recycle.max_age", "recycle.min_age", text);
    }
    check_stream_grace(&spec.stop, settings);
    if spec.restart.delay_max < spec.restart.delay_min {
        let text =
            "restart.delay_max is below restart.delay_min; raise the first or lower the second";
        settings.error_of_both("restart.delay_max", "restart.delay_min", text);
    }
}

/// Clients of streams are told after `stream_grace`, which takes a part of the rest of `grace`.
fn check_stream_grace(stop: &StopSpec, settings: &mut Settings) {
    let longest = stop.grace / 4 * 3;
    if stop.stream_grace > longest {
        let text = format!(
            "stop.stream_grace is {}, and clients are told before stop.grace ({}) is over; \
             set stop.stream_grace to {} or less, or raise stop.grace",
            humantime::format_duration(stop.stream_grace),
            humantime::format_duration(stop.grace),
            humantime::format_duration(longest),
        );
        settings.error_of_both("stop.stream_grace", "stop.grace", text);
    }
}

/// Relative paths in settings are relative to the current directory.
fn make_absolute(spec: &mut Spec, facts: &dyn Facts) {
    let control = &mut spec.control;
    control.token_file = control
        .token_file
        .take()
        .map(|path| facts.here().join(path));
    if let TerminationLog::At(path) = &mut control.termination_log {
        *path = facts.here().join(&*path);
    }
}

/// The name, if it is set.
fn name(settings: &mut Settings) -> Option<String> {
    settings.optional("name", |value| {
        let name = parsers::text(value)?;
        paths::check_name(&name).map(|()| name)
    })
}

/// The name of the file, or of the application, or of the directory in which COMMAND runs.
fn default_name(config: Option<&Path>, argv: &[OsString], here: &Path) -> String {
    let words = argv.iter().map(|word| word.to_string_lossy().into_owned());
    let words: Vec<String> = words.collect();
    let text = |name: &OsStr| name.to_string_lossy().into_owned();
    let config = config.and_then(Path::file_stem).map(text);
    let source = config
        .or_else(|| servers::application(&words))
        .or_else(|| here.file_name().map(text));
    paths::name_from(&source.unwrap_or_default())
}

fn rlimits(settings: &mut Settings) -> BTreeMap<String, Rlimit> {
    let mut rlimits = BTreeMap::new();
    for name in settings.names("rlimit") {
        let key = format!("rlimit.{name}");
        let lower = name.to_ascii_lowercase();
        let plain = lower.strip_prefix("rlimit_").unwrap_or(&lower);
        if !RLIMITS.contains(&plain) {
            let hint = nearest(plain, RLIMITS).map_or_else(
                || format!("known rlimits: {}", RLIMITS.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            settings.error(
                &settings.origin(&key),
                &key,
                format!("`{name}` is not an rlimit; {hint}"),
            );
        }
        if let Some(rlimit) = settings.optional(&key, parsers::rlimit) {
            rlimits.insert(plain.to_owned(), rlimit);
        }
    }
    rlimits
}

/// The directory for reports and events.
fn state_directory(
    environ: &Environ,
    facts: &dyn Facts,
    settings: &mut Settings,
) -> Option<PathBuf> {
    if let Some(path) = settings.optional("leaks.directory", parsers::path) {
        return Some(facts.here().join(path));
    }
    let unusable = |path: &Path| facts.unusable(path);
    let (chosen, warnings) = paths::state_dir(environ.clone(), facts.uid(), unusable);
    settings.warnings.extend(warnings);
    chosen
}

fn runtime_directory(environ: &Environ, facts: &dyn Facts, settings: &mut Settings) -> PathBuf {
    match paths::runtime_dir(environ.clone(), facts.uid(), |path| facts.unusable(path)) {
        Ok((directory, warnings)) => {
            settings.warnings.extend(warnings);
            directory
        }
        Err(text) => {
            settings.error(&Origin::Default, "control.socket", text);
            PathBuf::new()
        }
    }
}

/// The control socket: the configured one, or one in the runtime directory, named after the
/// service.
fn socket(
    name: &str,
    facts: &dyn Facts,
    settings: &mut Settings,
    runtime_dir: impl Fn(&mut Settings) -> PathBuf,
) -> PathBuf {
    let set = settings.optional("control.socket", parsers::path);
    let set = set.map(|path| facts.here().join(path));
    let socket = set.unwrap_or_else(|| paths::socket_in(&runtime_dir(settings), name));
    if let Err(text) = paths::check_socket(&socket) {
        settings.error(&settings.origin("control.socket"), "control.socket", text);
    }
    socket
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_after_its_file_its_application_or_its_directory() {
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
