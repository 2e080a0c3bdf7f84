//! Causes of ends, judged and read back.

use std::str::FromStr;

use crate::units::Signal;

use super::report::Cause;

impl Cause {
    /// The end was asked for, or the program was done: nothing to worry about.
    pub const fn is_expected(self) -> bool {
        match self {
            Self::Ceiling
            | Self::Tasks
            | Self::Age
            | Self::Request
            | Self::Reload
            | Self::Scale
            | Self::Stop
            | Self::Exit(0) => true,
            Self::Cap
            | Self::Oom
            | Self::Budget
            | Self::Exit(_)
            | Self::Signal(_)
            | Self::StartFailed
            | Self::Unready
            | Self::Hung
            | Self::Unseen => false,
        }
    }
}

impl FromStr for Cause {
    type Err = String;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, String> {
        const WORDS: [Cause; 14] = [
            Cause::Ceiling,
            Cause::Cap,
            Cause::Oom,
            Cause::Budget,
            Cause::Tasks,
            Cause::Age,
            Cause::Request,
            Cause::Reload,
            Cause::Scale,
            Cause::StartFailed,
            Cause::Unready,
            Cause::Hung,
            Cause::Stop,
            Cause::Unseen,
        ];
        let unknown = || format!("`{text}` is no cause");
        if let Some(cause) = WORDS.iter().find(|cause| cause.to_string() == text) {
            return Ok(*cause);
        }
        match text.split_once(':') {
            Some(("exit", status)) => status.parse().map(Self::Exit).map_err(|_| unknown()),
            Some(("signal", name)) => name.parse::<Signal>().map(Self::Signal),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_reads_back() {
        for text in [
            "ceiling",
            "cap",
            "oom",
            "budget",
            "tasks",
            "age",
            "request",
            "reload",
            "scale",
            "start-failed",
            "unready",
            "hung",
            "stop",
            "exit:unseen",
            "exit:3",
            "signal:KILL",
        ] {
            let cause: Cause = text.parse().unwrap();
            assert_eq!(cause.to_string(), text);
        }
        assert!("exit:x".parse::<Cause>().is_err());
        assert!("fat".parse::<Cause>().is_err());
    }
}
