//! Reads settings from `SUPERVISE_*` variables.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
};

use super::{
    keys::{Key, keys, nearest},
    settings::{Origin, Setting, Settings, Value},
};

/// The environment of `supervise`.
pub(super) type Environ = BTreeMap<OsString, OsString>;

/// Variables that are not settings. `supervise` sets most of them itself, for the agent and for its
/// Python package, and a service may run another `supervise`. `SUPERVISE_LOG` is a filter for
/// debug output.
const OWN: [&str; 4] = [
    "SUPERVISE_AGENT_",
    "SUPERVISE_BINARY",
    "SUPERVISE_LOG",
    "SUPERVISE_SYS_PATH",
];

/// Whether `supervise` has set the variable. `SUPERVISE_AGENT` is the variable of `agent.load`, but
/// with a directory as its value it is for the agent.
fn is_own(name: &str, value: &OsStr) -> bool {
    let is_directory = || value.as_encoded_bytes().starts_with(b"/");
    OWN.iter()
        .any(|own| name == *own || (own.ends_with('_') && name.starts_with(own)))
        || name == "SUPERVISE_AGENT" && is_directory()
}

/// Adds the settings in variables. An unknown variable is a warning, not an error: another program
/// may use it.
pub(super) fn read(environ: &Environ, settings: &mut Settings) {
    let known: Vec<(String, &Key)> = keys()
        .filter_map(|key| key.variable().map(|variable| (variable, key)))
        .collect();
    for (name, value) in environ {
        let Some(name) = name.to_str().filter(|name| name.starts_with("SUPERVISE_")) else {
            continue;
        };
        if is_own(name, value) {
            continue;
        }
        let by_name = known.iter().find(|(variable, _)| variable == name);
        let is_old = |key: &&Key| key.old_variable().as_deref() == Some(name);
        let (key, is_old) = match (by_name, keys().find(is_old)) {
            (Some((_, key)), _) => (*key, false),
            (None, Some(key)) => (key, true),
            (None, None) => {
                let near = nearest(name, known.iter().map(|(variable, _)| variable.as_str()));
                let hint = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                let warning = format!("unknown variable `{name}`{hint}");
                settings.warnings.push(warning);
                continue;
            }
        };
        let origin = Origin::Variable(name.to_owned());
        match value.to_str() {
            Some(text) => settings.add_by_name(
                key,
                is_old,
                Setting {
                    key: key.name.to_owned(),
                    value: Value::Untyped(text.to_owned()),
                    origin,
                },
            ),
            None => settings.error(&origin, key.name, "it is not UTF-8"),
        }
    }
}
