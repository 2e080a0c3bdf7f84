//! The file: TOML to wishes. Knows which keys there are, not what their values mean.

use std::{ops::Range, path::Path};

use toml::de::{DeTable, DeValue};

use super::{
    complaint::{Blame, Complaint, ConfigError},
    keys::{KEYS, Key, nearest},
    wish::{Book, Origin, Value, Wish, place},
};

/// One file being read.
struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

/// Adds a file's wishes to the book. A file that cannot be read, or is not TOML, says nothing else.
pub(super) fn read(path: &Path, book: &mut Book) -> Result<(), ConfigError> {
    let text = std::fs::read(path)
        .map_err(|error| error.to_string())
        .and_then(|bytes| String::from_utf8(bytes).map_err(|error| error.to_string()))
        .map_err(|why| {
            let text = format!("read {}: {why}", path.display());
            failed(vec![complaint(path, 0, text)])
        })?;
    let file = File { path, text: &text };
    let (document, errors) = DeTable::parse_recoverable(&text);
    if !errors.is_empty() {
        return Err(failed(errors.iter().map(|e| file.syntax(e)).collect()));
    }
    for (key, value) in document.get_ref() {
        match value.get_ref() {
            DeValue::Table(table) => file.table(key.get_ref(), key.span(), table, book),
            single => file.entry(key.get_ref(), key.span(), single, book),
        }
    }
    Ok(())
}

impl File<'_> {
    fn table(&self, name: &str, span: Range<usize>, table: &DeTable<'_>, book: &mut Book) {
        if !KEYS.iter().any(|key| key.table() == name) {
            let tables = KEYS.iter().map(Key::table).filter(|t| !t.is_empty());
            let near = nearest(name, tables).map(|near| format!("[{near}]"));
            return self.unknown(&format!("table `[{name}]`"), span, near, book);
        }
        for (key, value) in table {
            let full = format!("{name}.{}", key.get_ref());
            self.entry(&full, key.span(), value.get_ref(), book);
        }
    }

    /// One `key = value`.
    fn entry(&self, name: &str, span: Range<usize>, value: &DeValue<'_>, book: &mut Book) {
        let (table, leaf) = name.split_once('.').unwrap_or(("", name));
        let known = KEYS.iter().any(|key| {
            key.name == name || (key.is_map() && !table.is_empty() && key.table() == table)
        });
        if known {
            return book.add(Wish {
                key: name.to_owned(),
                value: as_value(value),
                origin: self.origin(span),
            });
        }
        if table.is_empty() && KEYS.iter().any(|key| key.table() == name) {
            let text = format!("it is a table; write [{name}] and its keys below");
            return book.complain(&self.origin(span), name, text);
        }
        let near = meant(table, leaf).map(str::to_owned);
        self.unknown(&format!("key `{name}`"), span, near, book);
    }

    fn unknown(&self, what: &str, span: Range<usize>, near: Option<String>, book: &mut Book) {
        let line = self.line(span.start);
        let hint = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        let text = format!("{}: unknown {what}{hint}", place(self.path, line));
        book.complaints.push(complaint(self.path, line, text));
    }

    fn syntax(&self, error: &toml::de::Error) -> Complaint {
        let at = error.span().map_or(0, |span| span.start);
        let line = self.line(at);
        let shown = self.text.lines().nth(line - 1).unwrap_or_default().trim();
        let what = error.message().lines().collect::<Vec<_>>().join(", ");
        let text = format!("{}: not TOML: {what}: {shown}", place(self.path, line));
        complaint(self.path, line, text)
    }

    fn origin(&self, span: Range<usize>) -> Origin {
        Origin::File(self.path.to_owned(), self.line(span.start))
    }

    /// The line a byte is on, from 1.
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().iter().take(at);
        1 + before.filter(|byte| **byte == b'\n').count()
    }
}

/// The key that was probably meant: one of the same table, else the same name in another one.
fn meant(table: &str, leaf: &str) -> Option<&'static str> {
    let named = |wanted: &str, inside: Option<&str>| {
        let fits = |key: &&Key| inside.is_none_or(|table| key.table() == table);
        let found = KEYS.iter().filter(fits).find(|key| key.leaf() == wanted);
        found.map(|key| key.name)
    };
    let own = KEYS
        .iter()
        .filter(|key| key.table() == table)
        .map(Key::leaf);
    if let Some(near) = nearest(leaf, own) {
        return named(near, Some(table));
    }
    nearest(leaf, KEYS.iter().map(Key::leaf)).and_then(|near| named(near, None))
}

fn as_value(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).map_or(
            Value::Other("a number too large for anything"),
            Value::Integer,
        ),
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .map_or(Value::Other("an odd number"), Value::Float),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Array(list) => {
            Value::List(list.iter().map(|one| as_value(one.get_ref())).collect())
        }
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Table(_) => Value::Other("a table"),
    }
}

fn complaint(path: &Path, line: usize, text: String) -> Complaint {
    Complaint::new(
        Blame::Configuration,
        Origin::File(path.to_owned(), line),
        text,
    )
}

fn failed(complaints: Vec<Complaint>) -> ConfigError {
    ConfigError::from_all(complaints)
        .unwrap_or_else(|| unreachable!("a file that cannot be read has its complaint"))
}
