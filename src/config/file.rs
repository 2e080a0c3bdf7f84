//! Reads settings from a TOML file. Checks the names of keys, not their values.

use std::{ops::Range, path::Path};

use toml::de::{DeTable, DeValue};

use super::{
    diagnostic::{ConfigError, Diagnostic, ErrorKind},
    keys::{Key, keys, nearest},
    settings::{Origin, Setting, Settings, Value, location},
};

/// A configuration file.
struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

/// Adds the settings in a file.
///
/// # Errors
/// The file cannot be read, or is not TOML.
pub(super) fn read(path: &Path, settings: &mut Settings) -> Result<(), ConfigError> {
    let text = std::fs::read(path)
        .map_err(|error| error.to_string())
        .and_then(|bytes| String::from_utf8(bytes).map_err(|error| error.to_string()))
        .map_err(|why| {
            let text = format!("read {}: {why}", path.display());
            failed(vec![diagnostic(path, 0, text)])
        })?;
    let file = File { path, text: &text };
    let (document, errors) = DeTable::parse_recoverable(&text);
    if !errors.is_empty() {
        return Err(failed(errors.iter().map(|e| file.syntax(e)).collect()));
    }
    settings.has_pool = document.get_ref().contains_key("pool");
    for (key, value) in document.get_ref() {
        match value.get_ref() {
            DeValue::Table(table) => file.table(key.get_ref(), key.span(), table, settings),
            single => file.entry(key.get_ref(), key.span(), single, settings),
        }
    }
    Ok(())
}

impl File<'_> {
    fn table(&self, name: &str, span: Range<usize>, table: &DeTable<'_>, settings: &mut Settings) {
        if !keys().any(|key| key.table() == name) {
            let tables = keys().map(Key::table).filter(|t| !t.is_empty());
            let near = nearest(name, tables).map(|near| format!("[{near}]"));
            return self.unknown(&format!("table `[{name}]`"), span, near, settings);
        }
        for (key, value) in table {
            let full = format!("{name}.{}", key.get_ref());
            self.entry(&full, key.span(), value.get_ref(), settings);
        }
    }

    /// Adds one `key = value`.
    fn entry(&self, name: &str, span: Range<usize>, value: &DeValue<'_>, settings: &mut Settings) {
        let (table, leaf) = name.split_once('.').unwrap_or(("", name));
        let is_known = |key: &&Key| {
            key.name == name || (key.is_map() && !table.is_empty() && key.table() == table)
        };
        let is_old = |key: &&Key| key.old.is_some_and(|(old, _)| old == name);
        let setting = |key: &str| Setting {
            key: key.to_owned(),
            value: as_value(value),
            origin: self.origin(span.clone()),
        };
        if let Some(key) = keys().find(is_known) {
            return settings.add_by_name(key, false, setting(name));
        }
        if let Some(key) = keys().find(is_old) {
            return settings.add_by_name(key, true, setting(key.name));
        }
        if table.is_empty() && keys().any(|key| key.table() == name) {
            let text = format!("it is a table; write [{name}] and its keys below");
            return settings.error(&self.origin(span), name, text);
        }
        let near = nearest_key(table, leaf).map(str::to_owned);
        self.unknown(&format!("key `{name}`"), span, near, settings);
    }

    fn unknown(
        &self,
        what: &str,
        span: Range<usize>,
        near: Option<String>,
        settings: &mut Settings,
    ) {
        let line = self.line(span.start);
        let hint = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        let text = format!("{}: unknown {what}{hint}", location(self.path, line));
        settings.diagnostics.push(diagnostic(self.path, line, text));
    }

    fn syntax(&self, error: &toml::de::Error) -> Diagnostic {
        let at = error.span().map_or(0, |span| span.start);
        let line = self.line(at);
        let shown = self.text.lines().nth(line - 1).unwrap_or_default().trim();
        let what = error.message().lines().collect::<Vec<_>>().join(", ");
        let text = format!("{}: not TOML: {what}: {shown}", location(self.path, line));
        diagnostic(self.path, line, text)
    }

    fn origin(&self, span: Range<usize>) -> Origin {
        Origin::File(self.path.to_owned(), self.line(span.start))
    }

    /// The line number of a byte, from 1.
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().iter().take(at);
        1 + before.filter(|byte| **byte == b'\n').count()
    }
}

/// The key that was probably meant: one in the same table, else one in another table.
fn nearest_key(table: &str, leaf: &str) -> Option<&'static str> {
    let named = |wanted: &str, inside: Option<&str>| {
        let fits = |key: &&Key| inside.is_none_or(|table| key.table() == table);
        let found = keys().filter(fits).find(|key| key.leaf() == wanted);
        found.map(|key| key.name)
    };
    let own = keys().filter(|key| key.table() == table).map(Key::leaf);
    if let Some(near) = nearest(leaf, own) {
        return named(near, Some(table));
    }
    nearest(leaf, keys().map(Key::leaf)).and_then(|near| named(near, None))
}

fn as_value(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("a number that is too large"), Value::Integer),
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .map_or(Value::Other("an unsupported number"), Value::Float),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Array(list) => {
            Value::List(list.iter().map(|one| as_value(one.get_ref())).collect())
        }
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Table(_) => Value::Other("a table"),
    }
}

fn diagnostic(path: &Path, line: usize, text: String) -> Diagnostic {
    Diagnostic::new(
        ErrorKind::Configuration,
        Origin::File(path.to_owned(), line),
        text,
    )
}

fn failed(diagnostics: Vec<Diagnostic>) -> ConfigError {
    ConfigError::from_all(diagnostics)
        .unwrap_or_else(|| unreachable!("there is at least one diagnostic"))
}
