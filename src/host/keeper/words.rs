//! What the supervisor and a keeper say to each other.

use std::{
    ffi::OsString,
    os::{fd::RawFd, unix::process::ExitStatusExt},
    process::ExitStatus,
};

use super::WORD;

/// What the keeper tells the supervisor. On the wire: four native 64-bit numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::host) enum Word {
    /// The command's process is there and waits for one byte before it executes.
    Waiting { pid: i32 },
    /// It executes.
    Executed { pid: i32 },
    /// It could not be executed.
    Failed { errno: i32 },
    /// A child of the keeper ended; `status` as wait(2) gives it, its peak in KiB.
    Reaped {
        pid: i32,
        status: i32,
        peak_kib: i64,
    },
}

/// The length of a word.
pub(in crate::host) const WORD_LENGTH: usize = 32;

impl Word {
    pub(super) fn to_bytes(self) -> [u8; WORD_LENGTH] {
        let numbers: [i64; 4] = match self {
            Self::Waiting { pid } => [1, i64::from(pid), 0, 0],
            Self::Executed { pid } => [2, i64::from(pid), 0, 0],
            Self::Failed { errno } => [3, i64::from(errno), 0, 0],
            Self::Reaped {
                pid,
                status,
                peak_kib,
            } => [4, i64::from(pid), i64::from(status), peak_kib],
        };
        let mut bytes = [0; WORD_LENGTH];
        for (slot, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    /// `None` for what no keeper says.
    pub(in crate::host) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut numbers = [0_i64; 4];
        for (number, slot) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
            *number = i64::from_ne_bytes(slot.try_into().ok()?);
        }
        let small = |index: usize| i32::try_from(*numbers.get(index)?).ok();
        match numbers[0] {
            1 => Some(Self::Waiting { pid: small(1)? }),
            2 => Some(Self::Executed { pid: small(1)? }),
            3 => Some(Self::Failed { errno: small(1)? }),
            4 => Some(Self::Reaped {
                pid: small(1)?,
                status: small(2)?,
                peak_kib: numbers[3],
            }),
            _ => None,
        }
    }
}

/// How a wait(2) status reads.
pub(in crate::host) fn ended(status: i32) -> crate::supervisor::event::Ended {
    use crate::{supervisor::event::Ended, units::Signal};
    let status = ExitStatus::from_raw(status);
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Exit(code),
        (None, Some(signal)) => Ended::Signal(Signal(signal)),
        (None, None) => Ended::Unseen,
    }
}

/// What a keeper is told on its command line, after [`WORD`].
#[derive(Debug)]
pub(in crate::host) struct Orders {
    /// Its end of the socket.
    pub(in crate::host) socket: RawFd,
    /// The supervisor.
    pub(in crate::host) parent: i32,
    /// Puts the command into the terminal's foreground: it is a job that may read from it.
    pub(in crate::host) foreground: bool,
    /// The sockets that are passed on to the command, in their order.
    pub(in crate::host) lent: Vec<RawFd>,
    /// The version 2 group that the command is born in, if there is one.
    pub(in crate::host) place: Option<RawFd>,
    /// The soft limit of the command's open files; `None`: unlimited.
    pub(in crate::host) open_files: Option<u64>,
    /// Whose the command is; empty for ours.
    pub(in crate::host) user: OsString,
    /// What is executed.
    pub(in crate::host) program: OsString,
    /// Its command line.
    pub(in crate::host) argv: Vec<OsString>,
}

impl Orders {
    pub(in crate::host) fn into_args(self) -> Vec<OsString> {
        let mut args = vec![
            WORD.into(),
            self.socket.to_string().into(),
            self.parent.to_string().into(),
            if self.foreground {
                "foreground"
            } else {
                "background"
            }
            .into(),
            joined(&self.lent).into(),
            joined(self.place.as_slice()).into(),
            self.open_files
                .map(|limit| limit.to_string())
                .unwrap_or_default()
                .into(),
            self.user,
            self.program,
        ];
        args.extend(self.argv);
        args
    }

    pub(super) fn from_args(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        let number = |word: OsString| word.to_str()?.parse().ok();
        Some(Self {
            socket: number(args.next()?)?,
            parent: number(args.next()?)?,
            foreground: args.next()? == "foreground",
            lent: (args.next()?.to_str()?.split_terminator(','))
                .map(|word| word.parse().ok())
                .collect::<Option<_>>()?,
            place: match args.next()?.to_str()? {
                "" => None,
                word => Some(word.parse().ok()?),
            },
            open_files: match args.next()?.to_str()? {
                "" => None,
                word => Some(word.parse().ok()?),
            },
            user: args.next()?,
            program: args.next()?,
            argv: args.collect(),
        })
    }
}

fn joined(numbers: &[RawFd]) -> String {
    let words: Vec<_> = numbers.iter().map(ToString::to_string).collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back_as_they_are_said() {
        for word in [
            Word::Waiting { pid: 7 },
            Word::Executed { pid: 8 },
            Word::Failed { errno: 2 },
            Word::Reaped {
                pid: 9,
                status: 256,
                peak_kib: 1 << 40,
            },
        ] {
            assert_eq!(Word::from_bytes(&word.to_bytes()), Some(word));
        }
        assert_eq!(Word::from_bytes(&[9; WORD_LENGTH]), None);
    }

    #[test]
    fn every_wait_status_is_understood() {
        use crate::{supervisor::event::Ended, units::Signal};
        for code in 0..=255 {
            assert_eq!(ended(code << 8), Ended::Exit(code));
        }
        for signal in 1..=31 {
            assert_eq!(ended(signal), Ended::Signal(Signal(signal)));
        }
    }
}
