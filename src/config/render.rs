//! Writes the effective configuration as TOML, which can be loaded again, and a file with every
//! key.

use std::fmt::Write as _;

use toml::Table;

use super::{
    keys::{Key, Mode, keys},
    settings::Value,
};
use crate::supervisor::spec::Spec;

/// The effective configuration.
pub fn render(spec: &Spec) -> String {
    let mut all = Table::new();
    let mode = mode_of(spec);
    for key in keys().filter(|key| key.applies_to(mode)) {
        let Some(value) = (key.field.show)(spec) else {
            continue;
        };
        if key.table().is_empty() || key.is_map() {
            let name = if key.is_map() { key.table() } else { key.name };
            all.insert(name.to_owned(), value);
            continue;
        }
        let table = all
            .entry(key.table())
            .or_insert_with(|| Table::new().into());
        if let Some(table) = table.as_table_mut() {
            table.insert(key.leaf().to_owned(), value);
        }
    }
    all.to_string()
}

const fn mode_of(spec: &Spec) -> Mode {
    match spec.pool {
        Some(_) => Mode::Pool,
        None => Mode::Service,
    }
}

const HEADER: &str = "\
# Sizes: \"300M\", \"1.5G\" (binary), a number of bytes, or \"80%\" of the available memory.
# Durations: \"500ms\", \"30s\", \"6h\". Flags override this file, and this file overrides
# the SUPERVISE_* variables. Keys without a default are comments with an example.
";

/// A file with every key, its default and its help.
pub fn template(mode: Mode) -> String {
    let mut text = HEADER.to_owned();
    let mut table = "";
    for key in keys().filter(|key| key.applies_to(mode)) {
        if key.table() != table {
            table = key.table();
            let _ = write!(text, "\n[{table}]");
        }
        let default = key.default(mode);
        let line = if key.is_map() {
            format!("#{}", key.example)
        } else if default.is_empty() {
            format!("#{} = {}", key.leaf(), literal(key, mode, key.example))
        } else {
            format!("{} = {}", key.leaf(), literal(key, mode, default))
        };
        let _ = write!(text, "\n# {}\n{line}\n", key.help);
    }
    text
}

/// A value of a key as written in a file.
pub(super) fn literal(key: &Key, mode: Mode, value: &str) -> String {
    let mut spec = super::build::base(mode);
    let set = key
        .field
        .set
        .map(|set| set(&mut spec, &Value::Untyped(value.to_owned())));
    let shown = set.is_some_and(|set| set.is_ok());
    match (key.field.show)(&spec).filter(|_| shown) {
        Some(shown) => shown.to_string(),
        // This is a key that `build` sets. Its value is a list or a string.
        None if value.starts_with('[') => value.to_owned(),
        None => toml::Value::from(value).to_string(),
    }
}
