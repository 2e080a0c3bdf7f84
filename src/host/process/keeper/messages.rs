//! The messages between the supervisor and a keeper.

use std::{
    ffi::OsString,
    os::{fd::RawFd, unix::process::ExitStatusExt},
    process::ExitStatus,
};

use super::ARGUMENT;

/// A message from the keeper to the supervisor: four 64-bit numbers in native byte order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::host) enum Message {
    /// The command's process exists, and waits for one byte before it executes.
    Waiting { pid: i32 },
    /// The command has executed.
    Executed { pid: i32 },
    /// The command could not be executed.
    Failed { errno: i32 },
    /// A child of the keeper has ended; `status` is that of wait(2), and the peak is in KiB.
    Reaped {
        pid: i32,
        status: i32,
        peak_kib: i64,
    },
}

/// The length of a message.
pub(in crate::host) const MESSAGE_LENGTH: usize = 32;

impl Message {
    pub(super) fn to_bytes(self) -> [u8; MESSAGE_LENGTH] {
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
        let mut bytes = [0; MESSAGE_LENGTH];
        for (slot, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    /// `None` for an unknown message.
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

/// How a process ended, from its wait(2) status.
pub(in crate::host) fn ended(status: i32) -> crate::supervisor::input::Ended {
    use crate::{supervisor::input::Ended, units::Signal};
    let status = ExitStatus::from_raw(status);
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Exit(code),
        (None, Some(signal)) => Ended::Signal(Signal(signal)),
        (None, None) => Ended::Unseen,
    }
}

/// What the keeper gets as its command line, after [`ARGUMENT`].
#[derive(Debug)]
pub(in crate::host) struct Orders {
    /// Its end of the socket.
    pub(in crate::host) socket: RawFd,
    /// The supervisor.
    pub(in crate::host) supervisor: i32,
    /// Whether to put the command into the terminal's foreground, because it is a job that may read
    /// from it.
    pub(in crate::host) foreground: bool,
    /// The sockets that are passed on to the command, in their order.
    pub(in crate::host) lent: Vec<RawFd>,
    /// The version 2 group that the command is created in, if there is one.
    pub(in crate::host) place: Option<RawFd>,
    /// The soft limit of the command's open files. `None`: unlimited.
    pub(in crate::host) open_files: Option<u64>,
    /// The user that the command runs as. Empty: ours.
    pub(in crate::host) user: OsString,
    /// The program to execute.
    pub(in crate::host) program: OsString,
    /// Its arguments, including the name of the program.
    pub(in crate::host) argv: Vec<OsString>,
}

impl Orders {
    pub(in crate::host) fn into_args(self) -> Vec<OsString> {
        let mut args = vec![
            ARGUMENT.into(),
            self.socket.to_string().into(),
            self.supervisor.to_string().into(),
            if self.foreground {
                "foreground"
            } else {
                "background"
            }
            .into(),
            comma_separated(&self.lent).into(),
            comma_separated(self.place.as_slice()).into(),
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
            supervisor: number(args.next()?)?,
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

fn comma_separated(numbers: &[RawFd]) -> String {
    let words: Vec<_> = numbers.iter().map(ToString::to_string).collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_parsed_to_what_was_sent() {
        for message in [
            Message::Waiting { pid: 7 },
            Message::Executed { pid: 8 },
            Message::Failed { errno: 2 },
            Message::Reaped {
                pid: 9,
                status: 256,
                peak_kib: 1 << 40,
            },
        ] {
            assert_eq!(Message::from_bytes(&message.to_bytes()), Some(message));
        }
        assert_eq!(Message::from_bytes(&[9; MESSAGE_LENGTH]), None);
    }

    #[test]
    fn every_wait_status_is_parsed() {
        use crate::{supervisor::input::Ended, units::Signal};
        for code in 0..=255 {
            assert_eq!(ended(code << 8), Ended::Exit(code));
        }
        for signal in 1..=31 {
            assert_eq!(ended(signal), Ended::Signal(Signal(signal)));
        }
    }
}
