//! The keys without a table, and `[env]`.

use toml::Value;

use super::{Key, derived, field, key};
use crate::{
    config::{
        parsers::SERVERS,
        types::{Switch, lossy, name_of, or_none, text},
    },
    supervisor::spec::Spec,
};

pub(super) const KEYS: &[Key] = &[
    key(
        "name",
        ("name", "NAME"),
        ("", "shop"),
        "Name for the socket, the cgroup and log lines [default: from CONFIG or COMMAND; for a pool: map-MODULE or executor]",
        derived(name),
    )
    .shared(),
    key(
        "command",
        ("", ""),
        ("", r#"["gunicorn", "-w", "4", "shop.wsgi"]"#),
        "Command line, as a list of words",
        derived(|spec| {
            let argv = spec.command.argv.iter().map(|word| text(word));
            spec.pool.is_none().then(|| Value::Array(argv.collect()))
        }),
    ),
    key(
        "server",
        ("server", "auto|none|gunicorn|uvicorn|hypercorn|uwsgi|granian|rq|huey|taskiq|dramatiq"),
        ("auto", "gunicorn"),
        "Server software of COMMAND; none: a program that is a single worker",
        derived(|spec| Some(name_of(&SERVERS, Some(spec.kind)).into())),
    ),
    key(
        "copies",
        ("copies", "N|auto"),
        ("none", "4"),
        "Number of copies of COMMAND to run; auto: as many as fit",
        derived(|spec| {
            let auto = spec.copies_up_to.map(|_| "auto".into());
            Some(auto.unwrap_or_else(|| or_none(spec.copies)))
        }),
    )
    .short('n')
    .basic(),
    key(
        "directory",
        ("directory", "DIR"),
        ("", "/srv/shop"),
        "Working directory of COMMAND [default: the current directory]",
        derived(|spec| Some(text(spec.command.directory.as_ref()?.as_os_str()))),
    ),
    key(
        "user",
        ("user", "USER"),
        ("", "www-data"),
        "User that COMMAND runs as, with its HOME, USER and LOGNAME [default: the current user]",
        derived(|spec| Some(spec.command.user.as_deref()?.into())),
    ),
    key(
        "listen",
        ("listen", "ADDR,..."),
        ("", r#"["0.0.0.0:8000", "unix:/run/shop.sock"]"#),
        "Open listening sockets and pass them to COMMAND as LISTEN_FDS: 127.0.0.1:8000, :8000, unix:/PATH; may be repeated",
        derived(|spec| {
            let listen = spec.command.listen.iter();
            let listen: Vec<Value> = listen.map(|one| one.to_string().into()).collect();
            (!listen.is_empty()).then_some(Value::Array(listen))
        }),
    ),
    key(
        "dry_run",
        ("dry-run", ""),
        ("false", "true"),
        "Report what would be recycled, and change nothing",
        field!(Switch, dry_run),
    )
    .basic(),
    key(
        "env.*",
        ("env", "K=V"),
        ("", r#"PYTHONUNBUFFERED = "1""#),
        "Set a variable of COMMAND's environment; may be repeated",
        derived(|spec| {
            let env = spec.command.env.iter();
            let env: toml::Table = env.map(|(name, value)| (lossy(name), text(value))).collect();
            (!env.is_empty()).then_some(Value::Table(env))
        }),
    ),
];

/// The name. The default name of a pool is not shown, because the process id may be added to it.
fn name(spec: &Spec) -> Option<Value> {
    let is_shown = spec.pool.as_ref().is_none_or(|pool| pool.is_named);
    is_shown.then(|| spec.name.as_str().into())
}
