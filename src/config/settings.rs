//! Settings as written: key, value and origin.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use super::{
    diagnostic::{Diagnostic, ErrorKind},
    keys::{Key, Mode, keys},
};
use crate::supervisor::spec::Spec;

/// The settings on a command line.
#[derive(Clone, Debug, Default)]
pub struct CommandLine {
    /// The command line is for a pool. A file with a table `[pool]` is also for a pool.
    pub is_pool: bool,
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// COMMAND, the words after `--`; empty: the file has the command.
    pub command: Vec<OsString>,
    /// The flags. A later one overrides an earlier one.
    pub flags: Vec<Setting>,
}

/// A setting.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The full name of its key (`memory.ceiling`, `env.PORT`).
    pub key: String,
    /// The value.
    pub value: Value,
    /// The place where it was set.
    pub origin: Origin,
}

/// A value as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// From a flag, a variable or a default. The key determines the type.
    Untyped(String),
    /// A string in a file.
    Text(String),
    /// An integer in a file.
    Integer(i64),
    /// A float in a file.
    Float(f64),
    /// `true` or `false` in a file.
    Bool(bool),
    /// A list in a file.
    List(Vec<Self>),
    /// A value that no key accepts.
    Other(&'static str),
}

/// The origin of a setting. A later variant overrides an earlier one.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Origin {
    /// The key's default.
    Default,
    /// This `SUPERVISE_*` variable.
    Variable(String),
    /// This line of this file.
    File(PathBuf, usize),
    /// This flag as typed, or `COMMAND`.
    Flag(String),
}

/// The effective settings, one for each key, and their diagnostics.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub(super) all: BTreeMap<String, Setting>,
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) warnings: Vec<String>,
    /// Hints, each with the origin of its setting.
    pub(super) hints: Vec<(Origin, String)>,
    /// Keys that a file sets by their old name.
    old_names: BTreeMap<String, String>,
    /// The file has a table `[pool]`.
    pub(super) has_pool: bool,
}

impl Setting {
    /// A setting from a flag.
    pub fn flag(key: impl Into<String>, flag: &str, text: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            value: Value::Untyped(text.into()),
            origin: Origin::Flag(format!("--{flag}")),
        }
    }
}

impl Origin {
    /// An error in the value of `key` from this origin.
    pub(super) fn error(&self, key: &str, text: impl fmt::Display) -> Diagnostic {
        let kind = match self {
            Self::Flag(_) => ErrorKind::Use,
            Self::Default | Self::Variable(_) | Self::File(..) => ErrorKind::Configuration,
        };
        Diagnostic::new(kind, self.clone(), format!("{}: {text}", self.naming(key)))
    }

    /// The location, with the key: `shop.toml:7: memory.cap`, or `--cap`.
    pub(super) fn naming(&self, key: &str) -> String {
        match self {
            Self::Default => key.to_owned(),
            Self::Variable(name) | Self::Flag(name) => name.clone(),
            Self::File(path, line) => format!("{}: {key}", location(path, *line)),
        }
    }

    /// Whether both are variables, or both are in the file.
    const fn is_same_layer(&self, other: &Self) -> bool {
        matches!(
            (self, other),
            (Self::Variable(_), Self::Variable(_)) | (Self::File(..), Self::File(..))
        )
    }
}

/// `shop.toml:7`.
pub(super) fn location(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.display())
}

impl Settings {
    /// Adds a setting. It overrides an earlier one of the same key.
    pub(super) fn add(&mut self, setting: Setting) {
        self.all.insert(setting.key.clone(), setting);
    }

    /// Adds a setting from a file or a variable, which may use the old name of a key.
    pub(super) fn add_by_name(&mut self, key: &Key, is_old: bool, setting: Setting) {
        let (new, old) = match (&setting.origin, key.old) {
            (Origin::Variable(_), Some(_)) => (
                key.variable().unwrap_or_default(),
                key.old_variable().unwrap_or_default(),
            ),
            (_, Some((old, _))) => (key.name.to_owned(), old.to_owned()),
            (_, None) => return self.add(setting),
        };
        let earlier = self.all.get(key.name);
        if let Some(earlier) = earlier.filter(|it| it.origin.is_same_layer(&setting.origin)) {
            let text = format!("`{old}` is the old name of `{new}`; remove `{old}`");
            let later = earlier.origin.clone().max(setting.origin);
            return self.error(&later, key.name, text);
        }
        if is_old {
            let mut at = String::new();
            if let Origin::File(path, line) = &setting.origin {
                at = format!("{}: ", location(path, *line));
                self.old_names.insert(key.name.to_owned(), old.clone());
            }
            let hint = format!("{at}`{old}` is the old name of `{new}`; use the new name");
            self.hints.push((setting.origin.clone(), hint));
        }
        self.add(setting);
    }

    /// Adds the defaults of keys that are not set, and checks that the settings apply to this mode.
    /// A variable that does not apply is ignored, because it may be meant for another command.
    pub(super) fn complete(&mut self, mode: Mode) {
        for key in keys() {
            if key.applies_to(mode) {
                let default = key.default(mode);
                if !default.is_empty() && !self.all.contains_key(key.name) {
                    self.add(Setting {
                        key: key.name.to_owned(),
                        value: Value::Untyped(default.to_owned()),
                        origin: Origin::Default,
                    });
                }
                continue;
            }
            let names: Vec<String> = if key.is_map() {
                let names = self.names(key.table()).into_iter();
                names
                    .map(|name| format!("{}.{name}", key.table()))
                    .collect()
            } else {
                vec![key.name.to_owned()]
            };
            for name in names {
                if let Some(setting) = self.all.remove(&name)
                    && !matches!(setting.origin, Origin::Variable(_))
                {
                    self.error(
                        &setting.origin,
                        &name,
                        match mode {
                            Mode::Pool => "does not apply to a pool; remove it",
                            Mode::Service => "applies only to a pool; remove it",
                        },
                    );
                }
            }
        }
    }

    /// Sets all fields of the spec that keys set directly.
    pub(super) fn apply(&mut self, mode: Mode, spec: &mut Spec) {
        for key in keys().filter(|key| key.applies_to(mode)) {
            let (Some(set), Some(setting)) = (key.field.set, self.all.get(key.name)) else {
                continue;
            };
            if let Err(text) = set(spec, &setting.value) {
                let name = self
                    .old_names
                    .get(key.name)
                    .map_or(key.name, String::as_str);
                let diagnostic = setting.origin.error(name, text);
                self.diagnostics.push(diagnostic);
                // The default replaces the value, so that the other settings are checked, too.
                let default = Value::Untyped(key.default(mode).to_owned());
                let _ = set(spec, &default);
            }
        }
    }

    /// Records an error.
    pub(super) fn error(&mut self, origin: &Origin, key: &str, text: impl fmt::Display) {
        self.diagnostics.push(origin.error(key, text));
    }

    /// Records that two keys contradict each other. The location is that of the later setting.
    pub(super) fn error_of_both(&mut self, one: &str, other: &str, text: impl fmt::Display) {
        let (first, second) = (self.origin(one), self.origin(other));
        if first >= second {
            self.error(&first, one, text);
        } else {
            self.error(&second, other, text);
        }
    }

    /// The origin of a key's value.
    pub(super) fn origin(&self, key: &str) -> Origin {
        self.all
            .get(key)
            .map_or(Origin::Default, |setting| setting.origin.clone())
    }

    /// The value of a key, if it is set and can be parsed. If it cannot be parsed, records an
    /// error.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> Option<T> {
        let setting = self.all.get(key)?;
        match parse(&setting.value) {
            Ok(value) => Some(value),
            Err(text) => {
                let diagnostic = setting.origin.error(key, text);
                self.diagnostics.push(diagnostic);
                None
            }
        }
    }

    /// The names in a table in which the user chooses the names, sorted.
    pub(super) fn names(&self, table: &str) -> Vec<String> {
        self.all
            .keys()
            .filter_map(|key| key.split_once('.'))
            .filter(|(before, _)| *before == table)
            .map(|(_, name)| name.to_owned())
            .collect()
    }
}

impl fmt::Display for Value {
    /// The value as written in a file. Values of flags and variables are in backticks.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untyped(text) => write!(f, "`{text}`"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number:?}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::List(_) => f.write_str("[…]"),
            Self::Other(what) => f.write_str(what),
        }
    }
}
