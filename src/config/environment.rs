//! The `SUPERVISE_*` variables: environment to wishes.

use std::{collections::BTreeMap, ffi::OsString};

use super::{
    keys::{KEYS, nearest},
    wish::{Book, Origin, Value, Wish},
};

/// The environment we were started with.
pub(super) type Environ = BTreeMap<OsString, OsString>;

/// Adds their wishes to the book. A stranger is only warned of: it may be meant for somebody else.
pub(super) fn read(environ: &Environ, book: &mut Book) {
    let known: Vec<(String, &str)> = KEYS
        .iter()
        .filter_map(|key| key.variable().map(|variable| (variable, key.name)))
        .collect();
    for (name, value) in environ {
        let Some(name) = name.to_str().filter(|name| name.starts_with("SUPERVISE_")) else {
            continue;
        };
        let Some((_, key)) = known.iter().find(|(variable, _)| variable == name) else {
            let near = nearest(name, known.iter().map(|(variable, _)| variable.as_str()));
            let hint = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            book.warnings
                .push(format!("unknown variable `{name}`{hint}"));
            continue;
        };
        let origin = Origin::Variable(name.to_owned());
        match value.to_str() {
            Some(text) => book.add(Wish {
                key: (*key).to_owned(),
                value: Value::Words(text.to_owned()),
                origin,
            }),
            None => book.complain(&origin, key, "it is not UTF-8"),
        }
    }
}
