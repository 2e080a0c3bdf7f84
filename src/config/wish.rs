//! What was wished for as it was written: one key, one value, and who said so.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use super::{
    complaint::{Blame, Complaint},
    keys::KEYS,
};

/// What the command line wished for.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// The file to read.
    pub config: Option<PathBuf>,
    /// The words after `--`; empty: the file has them.
    pub command: Vec<OsString>,
    /// The flags, in the order in which they count: a later one wins.
    pub flags: Vec<Wish>,
}

/// One wish.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Its key's full name (`memory.ceiling`, `env.PORT`).
    pub key: String,
    /// What is wished.
    pub value: Value,
    /// Who says so.
    pub origin: Origin,
}

/// A value as it was written.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a flag, a variable or a default: its type is what the key wants.
    Words(String),
    /// A string of a file.
    Text(String),
    /// An integer of a file.
    Integer(i64),
    /// A float of a file.
    Float(f64),
    /// `true` or `false` in a file.
    Bool(bool),
    /// A list in a file.
    List(Vec<Self>),
    /// What no key wants.
    Other(&'static str),
}

/// Where a wish comes from; what comes later overrides.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// This `SUPERVISE_*` variable.
    Variable(String),
    /// This line of this file.
    File(PathBuf, usize),
    /// This flag, as it is typed; or `COMMAND`.
    Flag(String),
}

/// All wishes of all layers, the last one for each key, and what is wrong with them.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) wishes: BTreeMap<String, Wish>,
    pub(super) complaints: Vec<Complaint>,
    pub(super) warnings: Vec<String>,
}

impl Wish {
    /// What a flag says about a key.
    pub fn flag(key: impl Into<String>, flag: &str, text: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            value: Value::Words(text.into()),
            origin: Origin::Flag(format!("--{flag}")),
        }
    }
}

impl Origin {
    /// A complaint about what stands here, on this key.
    pub(super) fn complain(&self, key: &str, text: impl fmt::Display) -> Complaint {
        let blame = match self {
            Self::Flag(_) => Blame::Use,
            Self::Default | Self::Variable(_) | Self::File(..) => Blame::Configuration,
        };
        Complaint::new(blame, self.clone(), format!("{}: {text}", self.naming(key)))
    }

    /// The place; a file's line does not say the key, a flag and a variable do.
    pub(super) fn naming(&self, key: &str) -> String {
        match self {
            Self::Default => key.to_owned(),
            Self::Variable(name) | Self::Flag(name) => name.clone(),
            Self::File(path, line) => format!("{}: {key}", place(path, *line)),
        }
    }
}

/// `shop.toml:7`.
pub(super) fn place(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.display())
}

impl Book {
    /// With every key's default in it.
    pub(super) fn of_defaults() -> Self {
        let mut book = Self::default();
        for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
            book.add(default_of(key.name, key.default));
        }
        book
    }

    /// Overrides what was said before about the same key.
    pub(super) fn add(&mut self, wish: Wish) {
        self.wishes.insert(wish.key.clone(), wish);
    }

    /// Notes what is wrong.
    pub(super) fn complain(&mut self, origin: &Origin, key: &str, text: impl fmt::Display) {
        self.complaints.push(origin.complain(key, text));
    }

    /// Notes that two keys do not fit each other: who spoke last is the one to change his mind.
    pub(super) fn complain_of_both(&mut self, one: &str, other: &str, text: impl fmt::Display) {
        let (first, second) = (self.origin(one), self.origin(other));
        if first >= second {
            self.complain(&first, one, text);
        } else {
            self.complain(&second, other, text);
        }
    }

    /// Who says so.
    pub(super) fn origin(&self, key: &str) -> Origin {
        self.wishes
            .get(key)
            .map_or(Origin::Default, |wish| wish.origin.clone())
    }

    /// What this key is to be. If that cannot be read it is complained about, and the default
    /// stands in so that the rest can be judged too.
    pub(super) fn value<T>(&mut self, key: &str, read: impl Fn(&Value) -> Result<T, String>) -> T {
        if let Some(value) = self.optional(key, &read) {
            return value;
        }
        KEYS.iter()
            .find(|known| known.name == key)
            .and_then(|known| read(&Value::Words(known.default.to_owned())).ok())
            .unwrap_or_else(|| unreachable!("the default of {key} can be read"))
    }

    /// What this key is to be, if anybody wished for it and it can be read.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        read: impl Fn(&Value) -> Result<T, String>,
    ) -> Option<T> {
        let wish = self.wishes.get(key)?;
        match read(&wish.value) {
            Ok(value) => Some(value),
            Err(text) => {
                let complaint = wish.origin.complain(key, text);
                self.complaints.push(complaint);
                None
            }
        }
    }

    /// The names in a table of free names, in order.
    pub(super) fn names(&self, table: &str) -> Vec<String> {
        self.wishes
            .keys()
            .filter_map(|key| key.split_once('.'))
            .filter(|(before, _)| *before == table)
            .map(|(_, name)| name.to_owned())
            .collect()
    }
}

fn default_of(key: &str, text: &str) -> Wish {
    Wish {
        key: key.to_owned(),
        value: Value::Words(text.to_owned()),
        origin: Origin::Default,
    }
}

impl fmt::Display for Value {
    /// As it stands in a file; flags and variables in backquotes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Words(text) => write!(f, "`{text}`"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number:?}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::List(_) => f.write_str("[…]"),
            Self::Other(what) => f.write_str(what),
        }
    }
}
