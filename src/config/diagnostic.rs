//! Errors in settings. All errors are reported at once, each with its location and a correction.

use super::settings::Origin;

/// All errors in the settings, one per line.
#[derive(Debug, thiserror::Error)]
#[error("{}", lines(diagnostics))]
pub struct ConfigError {
    /// Never empty.
    diagnostics: Vec<Diagnostic>,
}

/// One error.
#[derive(Debug)]
pub(super) struct Diagnostic {
    kind: ErrorKind,
    origin: Origin,
    text: String,
}

/// The kind of an error. Of several errors, the one whose kind comes first here decides the exit
/// status.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum ErrorKind {
    /// An error in a file or a variable.
    Configuration,
    /// An error in a flag.
    Use,
    /// COMMAND exists but cannot be executed.
    NotExecutable,
    /// COMMAND does not exist.
    NotFound,
}

impl Diagnostic {
    pub(super) const fn new(kind: ErrorKind, origin: Origin, text: String) -> Self {
        Self { kind, origin, text }
    }
}

impl ConfigError {
    /// `None` if there are no diagnostics.
    pub(super) fn from_all(mut diagnostics: Vec<Diagnostic>) -> Option<Self> {
        // This sorts by layer and, within a file, by line.
        diagnostics.sort_by(|one, other| one.origin.cmp(&other.origin));
        (!diagnostics.is_empty()).then_some(Self { diagnostics })
    }

    /// The exit status of `supervise`.
    pub fn status(&self) -> i32 {
        match self.diagnostics.iter().map(|one| one.kind).min() {
            Some(ErrorKind::Use) => 2,
            Some(ErrorKind::NotExecutable) => 126,
            Some(ErrorKind::NotFound) => 127,
            Some(ErrorKind::Configuration) | None => 78,
        }
    }
}

fn lines(diagnostics: &[Diagnostic]) -> String {
    let texts: Vec<&str> = diagnostics.iter().map(|one| one.text.as_str()).collect();
    texts.join("\n")
}
