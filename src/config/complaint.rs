//! What is wrong with the wishes: all of it at once, each with its place and what would be right.

use super::wish::Origin;

/// Why there is no `Spec`: every complaint, one a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", lines(complaints))]
pub struct ConfigError {
    /// Never empty.
    complaints: Vec<Complaint>,
}

/// One thing that is wrong.
#[derive(Debug)]
pub(super) struct Complaint {
    blame: Blame,
    origin: Origin,
    text: String,
}

/// Whose mistake it is, the first one first when there are several.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Blame {
    /// A file's or a variable's.
    Configuration,
    /// A flag's.
    Use,
    /// COMMAND is there, and cannot be executed.
    NotExecutable,
    /// COMMAND is not there.
    NotFound,
}

impl Complaint {
    pub(super) const fn new(blame: Blame, origin: Origin, text: String) -> Self {
        Self {
            blame,
            origin,
            text,
        }
    }
}

impl ConfigError {
    /// `None` if nothing is wrong.
    pub(super) fn from_all(mut complaints: Vec<Complaint>) -> Option<Self> {
        // In the order of the layers and of a file's lines.
        complaints.sort_by(|one, other| one.origin.cmp(&other.origin));
        (!complaints.is_empty()).then_some(Self { complaints })
    }

    /// The exit status that says what kind of mistake it is.
    pub fn status(&self) -> i32 {
        match self.complaints.iter().map(|one| one.blame).min() {
            Some(Blame::Use) => 2,
            Some(Blame::NotExecutable) => 126,
            Some(Blame::NotFound) => 127,
            Some(Blame::Configuration) | None => 78,
        }
    }
}

fn lines(complaints: &[Complaint]) -> String {
    let texts: Vec<&str> = complaints.iter().map(|one| one.text.as_str()).collect();
    texts.join("\n")
}
