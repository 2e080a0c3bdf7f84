//! What a process waits for: a process that waits for connections serves.

use crate::host::memory::procfs::Proc;

/// What a process, or a tree of processes, waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wait {
    /// For connections at a socket that the server holds as well.
    ForConnections,
    /// The call does not show for what (select(2), poll(2), io_uring_enter(2)).
    Unknown,
    /// For nothing: its main thread runs, or waits for another thread, as for the interpreter.
    Runs,
    /// For something else.
    ForOther,
}

/// Whether it waits with epoll at a socket that its server holds as well. Connections arrive there.
pub(super) fn waits_for_connections(proc: &Proc, server: i32, pid: i32) -> bool {
    let targets = proc.epoll_targets(pid).unwrap_or_default();
    let shared = shared_sockets(proc, server, pid);
    shared.iter().any(|descriptor| targets.contains(descriptor))
}

/// What a process and its descendants wait for.
pub(super) fn wait_of_tree(proc: &Proc, server: i32, pid: i32) -> Wait {
    let mut tree = vec![pid];
    tree.extend(proc.descendants(pid));
    let waits = tree
        .into_iter()
        .map(|one| match wait_of(proc, server, one) {
            // A launcher waits for the program that it has started.
            Wait::Unknown | Wait::Runs if has_children(proc, one) => Wait::ForOther,
            wait => wait,
        });
    clearest(waits)
}

/// Whether it holds sockets for its children (sd_listen_fds(3)), and not only as its output.
pub(super) fn holds_sockets(proc: &Proc, pid: i32) -> bool {
    let sockets = proc.sockets(pid).unwrap_or_default();
    sockets.iter().any(|(descriptor, _)| *descriptor > 2)
}

fn wait_of(proc: &Proc, server: i32, pid: i32) -> Wait {
    if waits_for_connections(proc, server, pid) {
        return Wait::ForConnections;
    }
    let shared = shared_sockets(proc, server, pid);
    clearest(proc.threads(pid).into_iter().map(|thread| {
        let call = proc.text(&format!("{pid}/task/{thread}/syscall"));
        match blocked_in(&call.unwrap_or_default()) {
            Some(Call::Accept(descriptor)) if shared.contains(&descriptor) => Wait::ForConnections,
            Some(Call::Poll) if thread == pid => Wait::Unknown,
            Some(Call::Runs) if thread == pid => Wait::Runs,
            Some(Call::Accept(_) | Call::Poll | Call::Runs) | None => Wait::ForOther,
        }
    }))
}

/// The wait that says most about the whole.
fn clearest(waits: impl Iterator<Item = Wait>) -> Wait {
    let waits: Vec<_> = waits.collect();
    [Wait::ForConnections, Wait::Unknown, Wait::Runs]
        .into_iter()
        .find(|wait| waits.contains(wait))
        .unwrap_or(Wait::ForOther)
}

fn has_children(proc: &Proc, pid: i32) -> bool {
    let mut children = Vec::new();
    // This fails for a process that has just ended.
    let _ = proc.children(pid, &mut children);
    !children.is_empty()
}

/// The descriptors of a process for sockets that its server holds as well.
fn shared_sockets(proc: &Proc, server: i32, pid: i32) -> Vec<i32> {
    let held = proc.sockets(server).unwrap_or_default();
    let own = proc.sockets(pid).unwrap_or_default().into_iter();
    let shared = own.filter(|(_, inode)| held.iter().any(|(_, other)| other == inode));
    shared.map(|(descriptor, _)| descriptor).collect()
}

/// A call in which a thread is blocked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Call {
    /// accept(2) at this descriptor.
    Accept(i32),
    /// poll(2), select(2) or io_uring_enter(2).
    Poll,
    /// None, or futex(2).
    Runs,
}

/// The call in a `/proc/PID/syscall`: its number, and its arguments in hexadecimal (proc(5)).
fn blocked_in(text: &str) -> Option<Call> {
    let mut words = text.split_ascii_whitespace();
    let word = words.next()?;
    if word == "running" {
        return Some(Call::Runs);
    }
    match word.parse().ok()? {
        libc::SYS_futex => Some(Call::Runs),
        libc::SYS_accept | libc::SYS_accept4 => {
            let descriptor = words.next()?.strip_prefix("0x")?;
            let descriptor = i64::from_str_radix(descriptor, 16).ok()?;
            i32::try_from(descriptor).ok().map(Call::Accept)
        }
        libc::SYS_ppoll | libc::SYS_pselect6 | libc::SYS_io_uring_enter => Some(Call::Poll),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll | libc::SYS_select => Some(Call::Poll),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::*;

    const SERVER: i32 = 40;
    const COPY: i32 = 41;
    const CHILD: i32 = 42;

    /// A process that holds the socket, is blocked in this call with the socket as its first
    /// argument, and has these children.
    fn process(root: &Path, pid: i32, call: i64, children: &str) {
        let task = root.join(format!("{pid}/task/{pid}"));
        fs::create_dir_all(&task).unwrap();
        fs::write(task.join("children"), children).unwrap();
        fs::write(task.join("syscall"), format!("{call} 0x3 0x0 0x7ffd2")).unwrap();
        let descriptors = root.join(format!("{pid}/fd"));
        fs::create_dir_all(&descriptors).unwrap();
        let _ = symlink("socket:[77]", descriptors.join("3"));
    }

    #[test]
    fn a_process_that_accepts_serves_and_one_that_polls_perhaps() {
        for (call, wait) in [
            (libc::SYS_accept4, Wait::ForConnections),
            (libc::SYS_ppoll, Wait::Unknown),
            (libc::SYS_futex, Wait::Runs),
            (libc::SYS_read, Wait::ForOther),
        ] {
            let root = tempfile::tempdir().unwrap();
            process(root.path(), SERVER, libc::SYS_ppoll, "41");
            process(root.path(), COPY, call, "");
            let proc = Proc::at(root.path());
            assert_eq!(wait_of_tree(&proc, SERVER, COPY), wait);
        }
    }

    #[test]
    fn a_launcher_that_polls_does_not_count_and_its_child_does() {
        for (call, wait) in [
            (libc::SYS_accept4, Wait::ForConnections),
            (libc::SYS_read, Wait::ForOther),
        ] {
            let root = tempfile::tempdir().unwrap();
            process(root.path(), SERVER, libc::SYS_ppoll, "41");
            process(root.path(), COPY, libc::SYS_ppoll, "42");
            process(root.path(), CHILD, call, "");
            let proc = Proc::at(root.path());
            assert_eq!(wait_of_tree(&proc, SERVER, COPY), wait);
        }
    }

    #[test]
    fn a_process_that_accepts_at_another_socket_does_not_serve() {
        let root = tempfile::tempdir().unwrap();
        process(root.path(), SERVER, libc::SYS_ppoll, "41");
        process(root.path(), COPY, libc::SYS_accept4, "");
        let socket = root.path().join("41/fd/3");
        fs::remove_file(&socket).unwrap();
        symlink("socket:[78]", &socket).unwrap();
        let proc = Proc::at(root.path());
        assert_eq!(wait_of_tree(&proc, SERVER, COPY), Wait::ForOther);
    }

    #[test]
    fn a_thread_that_runs_is_blocked_in_no_call() {
        assert_eq!(blocked_in("running"), Some(Call::Runs));
        assert_eq!(blocked_in(""), None);
    }
}
