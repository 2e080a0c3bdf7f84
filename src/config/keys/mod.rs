//! The table of all keys. Flags, variables, defaults, help, the effective configuration and the
//! documents are generated from it.
//!
//! A key has a row here, a field in the [`Spec`], code that uses the field, and a generated row in
//! docs/configuration.md.

mod agent;
mod limits;
mod pool;
mod run;
mod service;

use super::settings::Value;
use crate::supervisor::spec::Spec;

/// The kind of a configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// A service: `supervise -- COMMAND` and `supervise run`.
    Service,
    /// A pool: `supervise map`.
    Pool,
}

/// A key.
#[derive(Debug)]
pub struct Key {
    /// The name in a file: `memory.ceiling` is `ceiling` in the table `[memory]`. In the tables
    /// `env.*` and `rlimit.*`, the user chooses the names.
    pub name: &'static str,
    /// The flag without the dashes; empty: the key has no flag.
    pub flag: &'static str,
    /// The short form of the flag.
    pub short: Option<char>,
    /// The name of the flag's value; empty: the flag has no value.
    pub value: &'static str,
    default: &'static str,
    pool_default: Option<&'static str>,
    /// A value other than the default, as in a file.
    pub(super) example: &'static str,
    /// One line for `--help`.
    pub help: &'static str,
    /// The old name and flag, which still work.
    pub old: Option<(&'static str, &'static str)>,
    modes: &'static [Mode],
    /// Whether `-h` shows it.
    pub is_basic: bool,
    pub(super) field: Field,
}

/// Parses a value and sets a field.
type Set = fn(&mut Spec, &Value) -> Result<(), String>;

/// The field of the spec that a key sets.
#[derive(Debug)]
pub(super) struct Field {
    /// `None`: `build` sets the field, because it depends on others.
    pub(super) set: Option<Set>,
    /// The value of the field as written in a file; `None`: it is not set.
    pub(super) show: fn(&Spec) -> Option<toml::Value>,
}

/// A field with a value of this type: `field!(MemoryLimit, memory.cap)`.
macro_rules! field {
    ($type:ty, $($path:ident).+) => {
        $crate::config::keys::Field {
            set: Some(|spec, value| {
                spec.$($path).+ = <$type as $crate::config::types::ValueType>::parse(value)?;
                Ok(())
            }),
            show: |spec| <$type as $crate::config::types::ValueType>::show(&spec.$($path).+),
        }
    };
}
use field;

/// A field that `build` sets.
const fn derived(show: fn(&Spec) -> Option<toml::Value>) -> Field {
    Field { set: None, show }
}

const fn key(
    name: &'static str,
    (flag, value): (&'static str, &'static str),
    (default, example): (&'static str, &'static str),
    help: &'static str,
    field: Field,
) -> Key {
    Key {
        name,
        flag,
        short: None,
        value,
        default,
        pool_default: None,
        example,
        help,
        old: None,
        modes: &[Mode::Service],
        is_basic: false,
        field,
    }
}

impl Key {
    /// The key applies to services and pools.
    const fn shared(mut self) -> Self {
        self.modes = &[Mode::Service, Mode::Pool];
        self
    }

    /// Sets a different default for pools.
    const fn pool_default(mut self, default: &'static str) -> Self {
        self.pool_default = Some(default);
        self
    }

    /// Its flag has a short form.
    const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    /// `-h` shows it.
    const fn basic(mut self) -> Self {
        self.is_basic = true;
        self
    }

    /// The key was renamed. The old name and flag still work.
    const fn formerly(mut self, name: &'static str, flag: &'static str) -> Self {
        self.old = Some((name, flag));
        self
    }

    /// Whether the key applies to a mode.
    pub fn applies_to(&self, mode: Mode) -> bool {
        self.modes.contains(&mode)
    }

    /// The default as written; empty: there is none.
    pub fn default(&self, mode: Mode) -> &'static str {
        match (mode, self.pool_default) {
            (Mode::Pool, Some(default)) => default,
            (Mode::Service | Mode::Pool, _) => self.default,
        }
    }

    /// The table of the key; empty: none.
    pub fn table(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(table, _)| table)
    }

    /// The name within the table.
    pub fn leaf(&self) -> &'static str {
        self.name
            .split_once('.')
            .map_or(self.name, |(_, leaf)| leaf)
    }

    /// Whether the user chooses the names in the table.
    pub fn is_map(&self) -> bool {
        self.name.ends_with(".*")
    }

    /// Whether the value is a list. The flag of a list may be repeated.
    pub fn is_list(&self) -> bool {
        self.value.ends_with(",...")
    }

    /// The environment variable of the key, if it has one.
    pub fn variable(&self) -> Option<String> {
        let has_one = !self.flag.is_empty() && !self.is_map();
        has_one.then(|| variable_of(self.flag))
    }

    /// The environment variable of the old name.
    pub(super) fn old_variable(&self) -> Option<String> {
        self.old.map(|(_, flag)| variable_of(flag))
    }
}

fn variable_of(flag: &str) -> String {
    format!("SUPERVISE_{}", flag.to_ascii_uppercase().replace('-', "_"))
}

/// All keys, by table, in the order in which they are shown.
pub fn keys() -> impl Iterator<Item = &'static Key> + Clone {
    let parts: [&'static [Key]; 5] = [
        service::KEYS,
        limits::KEYS,
        agent::KEYS,
        run::KEYS,
        pool::KEYS,
    ];
    parts.into_iter().flatten()
}

/// The most similar word in `known`, if it is similar enough to suggest it.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        // clap suggests a flag above the same similarity.
        .filter(|(similarity, _)| *similarity > 0.7)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_flags_of_keys_are_unique() {
        let names = keys().map(|key| key.name);
        let old = keys().filter_map(|key| key.old);
        let mut names: Vec<&str> = names.chain(old.clone().map(|(name, _)| name)).collect();
        let flags = keys().map(|key| key.flag).filter(|flag| !flag.is_empty());
        let mut flags: Vec<&str> = flags.chain(old.map(|(_, flag)| flag)).collect();
        for all in [&mut names, &mut flags] {
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count);
        }
    }

    #[test]
    fn the_nearest_word_is_suggested_only_if_it_is_similar() {
        let known = ["ceiling", "cap", "budget"];
        assert_eq!(nearest("celing", known), Some("ceiling"));
        assert_eq!(nearest("zzz", known), None);
    }
}
