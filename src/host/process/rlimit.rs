//! Resource limits of one process (getrlimit(2)), set from outside, and the cap for workers that
//! have no group.
#![expect(unsafe_code, reason = "prlimit(2) for another process is only in libc")]

use std::{io, ptr};

use crate::{
    host::memory::procfs::{Proc, ProcError},
    supervisor::spec::Rlimit,
    units::{Bytes, RLIMITS},
};

/// How much a thread's stack adds to the data size, by glibc's default (pthread_create(3)).
const STACK: Bytes = Bytes::mib(8);
/// The number of threads whose stacks always fit into the cap.
const THREADS_MIN: u64 = 16;

/// A limit could not be set.
#[derive(Debug, thiserror::Error)]
pub enum RlimitError {
    /// The limit is unknown.
    #[error("unknown limit `{0}`")]
    Unknown(String),
    /// The kernel refused. It always does for a process of another user, without CAP_SYS_RESOURCE.
    #[error("limit {name} of process {pid} to {limit}: {error}")]
    Refused {
        /// The name of the limit.
        name: String,
        /// The pid of the process.
        pid: i32,
        /// The new value.
        limit: String,
        /// The error of the kernel.
        error: io::Error,
    },
    /// The threads of the process could not be counted.
    #[error(transparent)]
    Proc(#[from] ProcError),
}

impl RlimitError {
    /// Whether the process has ended, which is normal.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Unknown(_) => false,
            Self::Refused { error, .. } => error.raw_os_error() == Some(libc::ESRCH),
            Self::Proc(error) => error.is_gone(),
        }
    }
}

/// Sets a limit of a running process, by its name in [`RLIMITS`].
pub fn set(pid: i32, name: &str, limit: Rlimit) -> Result<(), RlimitError> {
    let resource = resource(name).ok_or_else(|| RlimitError::Unknown(name.to_owned()))?;
    let new = libc::rlimit {
        rlim_cur: limit.soft.unwrap_or(libc::RLIM_INFINITY),
        rlim_max: limit.hard.unwrap_or(libc::RLIM_INFINITY),
    };
    // SAFETY: the kernel reads one rlimit, which lives until the call is over; it writes nothing.
    let result = unsafe { libc::prlimit(pid, resource, &raw const new, ptr::null_mut()) };
    if result == 0 {
        return Ok(());
    }
    let word = |value: Option<u64>| value.map_or_else(|| "unlimited".to_owned(), |v| v.to_string());
    Err(RlimitError::Refused {
        name: name.to_owned(),
        pid,
        limit: format!("{}:{}", word(limit.soft), word(limit.hard)),
        error: io::Error::last_os_error(),
    })
}

/// The limit of a running process.
pub fn get(pid: i32, name: &str) -> Result<Rlimit, RlimitError> {
    let resource = resource(name).ok_or_else(|| RlimitError::Unknown(name.to_owned()))?;
    let mut old = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one rlimit, which lives until the call is over; it reads nothing.
    let result = unsafe { libc::prlimit(pid, resource, ptr::null(), &raw mut old) };
    if result != 0 {
        return Err(RlimitError::Refused {
            name: name.to_owned(),
            pid,
            limit: "what it is".to_owned(),
            error: io::Error::last_os_error(),
        });
    }
    let finite = |value| (value != libc::RLIM_INFINITY).then_some(value);
    Ok(Rlimit {
        soft: finite(old.rlim_cur),
        hard: finite(old.rlim_max),
    })
}

/// Sets the cap as RLIMIT_DATA, for a worker without a group. An allocation beyond it fails, and
/// Python raises MemoryError. `None` removes the cap.
///
/// The limit counts brk, and private writable mappings, touched or not, including thread stacks
/// (getrlimit(2)). So it includes the stacks of all threads of the process, and of at least 16. It
/// counts each process by itself, and child processes inherit it. RLIMIT_AS would not do: it counts
/// the 64 MB of address space reserved for the arena of each thread, and mapped files. Only the
/// soft limit is set, so that the cap can be raised again without a privilege.
pub fn set_cap(proc: &Proc, pid: i32, cap: Option<Bytes>) -> Result<(), RlimitError> {
    let hard = get(pid, "data")?.hard;
    let soft = match cap {
        Some(cap) => {
            let threads = proc.stat(pid)?.threads.max(THREADS_MIN);
            let wanted = cap
                .get()
                .saturating_add(threads.saturating_mul(STACK.get()));
            Some(hard.map_or(wanted, |hard| wanted.min(hard)))
        }
        None => hard,
    };
    set(pid, "data", Rlimit { soft, hard })
}

/// The kernel's numbers, in the order of [`RLIMITS`].
const RESOURCES: [libc::__rlimit_resource_t; RLIMITS.len()] = [
    libc::RLIMIT_AS,
    libc::RLIMIT_CORE,
    libc::RLIMIT_CPU,
    libc::RLIMIT_DATA,
    libc::RLIMIT_FSIZE,
    libc::RLIMIT_LOCKS,
    libc::RLIMIT_MEMLOCK,
    libc::RLIMIT_MSGQUEUE,
    libc::RLIMIT_NICE,
    libc::RLIMIT_NOFILE,
    libc::RLIMIT_NPROC,
    libc::RLIMIT_RSS,
    libc::RLIMIT_RTPRIO,
    libc::RLIMIT_RTTIME,
    libc::RLIMIT_SIGPENDING,
    libc::RLIMIT_STACK,
];

fn resource(name: &str) -> Option<libc::__rlimit_resource_t> {
    let place = RLIMITS.iter().position(|known| *known == name)?;
    Some(RESOURCES[place])
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that runs until its standard input is closed.
    fn started() -> (Child, i32) {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id().try_into().unwrap();
        (child, pid)
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn every_limit_name_means_the_kernels_limit() {
        let (child, pid) = started();
        let text = Proc::default().text(&format!("{pid}/limits")).unwrap();
        for (name, line) in [
            ("as", "Max address space"),
            ("core", "Max core file size"),
            ("data", "Max data size"),
            ("nofile", "Max open files"),
            ("rttime", "Max realtime timeout"),
            ("stack", "Max stack size"),
        ] {
            let line = text.lines().find(|found| found.starts_with(line)).unwrap();
            let soft = get(pid, name).unwrap().soft;
            let word = soft.map_or_else(|| "unlimited".to_owned(), |soft| soft.to_string());
            assert!(line.contains(&word), "{name}: {word} is not in {line}");
        }
        for name in RLIMITS {
            set(pid, name, get(pid, name).unwrap()).unwrap();
        }
        end(child);
    }

    #[test]
    fn a_limit_of_a_running_process_is_set_from_outside() {
        let (child, pid) = started();
        let limit = Rlimit {
            soft: Some(64),
            hard: Some(128),
        };
        set(pid, "nofile", limit).unwrap();
        assert_eq!(get(pid, "nofile").unwrap(), limit);
        let error = set(pid, "open_files", limit).unwrap_err().to_string();
        assert_eq!(error, "unknown limit `open_files`");
        end(child);
        let error = set(i32::MAX, "nofile", limit).unwrap_err().to_string();
        let expected = "limit nofile of process 2147483647 to 64:128: No such process";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn the_cap_leaves_room_for_stacks_and_can_be_raised_again() {
        let (child, pid) = started();
        let proc = Proc::default();
        let before = get(pid, "data").unwrap();
        for mebibytes in [100, 50, 200] {
            set_cap(&proc, pid, Some(Bytes::mib(mebibytes))).unwrap();
            let after = get(pid, "data").unwrap();
            assert_eq!(after.soft, Some(Bytes::mib(mebibytes + 16 * 8).get()));
            assert_eq!(after.hard, before.hard);
        }
        set_cap(&proc, pid, None).unwrap();
        assert_eq!(get(pid, "data").unwrap().soft, before.hard);
        end(child);
    }

    #[test]
    fn python_raises_memory_error_over_the_cap() {
        let code = "
import sys
print('up', flush=True)
sys.stdin.readline()
kept = bytearray(40 << 20)
try:
    bytearray(400 << 20)
except MemoryError:
    sys.exit(7)
";
        let mut child = Command::new("python3")
            .args(["-c", code])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = io::BufReader::new(child.stdout.take().unwrap());
        io::BufRead::read_line(&mut output, &mut line).unwrap();
        let pid = child.id().try_into().unwrap();
        set_cap(&Proc::default(), pid, Some(Bytes::mib(64))).unwrap();
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(7));
    }
}
