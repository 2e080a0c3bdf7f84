//! Emptying a directory that other users have written to. A tree may be thousands of levels deep
//! and may change while it is removed, so that there is no recursion, no descriptor for each level
//! and no `..`: what is not empty is moved to the top, where it is opened like all others.

use std::{
    ffi::{CString, OsStr},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    time::{Duration, Instant},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{OFlag, openat, renameat},
    sys::stat::{Mode, fchmod},
    unistd::{UnlinkatFlags, unlinkat},
};

use super::refusal;

/// Removes what is in `top`, except `spared`, within `limit`.
pub(super) fn clear(top: &OwnedFd, spared: Option<&OsStr>, limit: Duration) -> io::Result<()> {
    let until = now() + limit;
    let mut moved = 0u64;
    let mut waiting = names(&open(top, c".")?, spared)?;
    while let Some(name) = waiting.pop() {
        in_time(until)?;
        if removed(top, &name)? {
            continue;
        }
        let child = match open(top, &name) {
            Ok(child) => child,
            // RACE: it was exchanged; the next round sees what is there now.
            Err(Errno::ENOTDIR | Errno::ELOOP | Errno::ENOENT) => {
                waiting.push(name);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // Its owner may have no permission on it. An error does not stop root.
        let _allowed = fchmod(&child, Mode::S_IRWXU);
        let mut found = Vec::new();
        for below in names(&child, None)? {
            in_time(until)?;
            if removed(&child, &below)? {
                continue;
            }
            let to = free_name(top, &mut moved);
            match renameat(&child, &*below, top, &*to) {
                Ok(()) => found.push(to),
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // RACE: something may have been put into it meanwhile.
        if !removed(top, &name)? {
            waiting.push(name);
        }
        waiting.append(&mut found);
    }
    Ok(())
}

/// A name that is free. Entries of an earlier attempt may still be there.
fn free_name(top: &OwnedFd, moved: &mut u64) -> CString {
    loop {
        *moved += 1;
        let name = CString::new(format!(".removed.{moved}")).unwrap_or_default();
        if unlinkat(top, &*name, UnlinkatFlags::RemoveDir) != Err(Errno::ENOTEMPTY) {
            return name;
        }
    }
}

/// False: it is a directory with something in it.
fn removed(directory: &OwnedFd, name: &CString) -> io::Result<bool> {
    match unlinkat(directory, &**name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(true),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    match unlinkat(directory, &**name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn open(directory: &OwnedFd, name: &std::ffi::CStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(directory, name, flags, Mode::empty()) {
        Err(Errno::EACCES) => {
            // A directory of ours without permission for us. If a link takes its place, the second
            // attempt does not follow it, and the mode that the link's target got does no harm.
            let flags = nix::sys::stat::FchmodatFlags::FollowSymlink;
            nix::sys::stat::fchmodat(directory, name, Mode::S_IRWXU, flags)?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            openat(directory, name, flags | OFlag::O_CLOEXEC, Mode::empty())
        }
        opened => opened,
    }
}

fn names(directory: &OwnedFd, spared: Option<&OsStr>) -> io::Result<Vec<CString>> {
    let mut listing = Dir::from_fd(directory.try_clone()?)?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let name = entry?.file_name().to_owned();
        let plain = OsStr::from_bytes(name.to_bytes());
        if plain != "." && plain != ".." && Some(plain) != spared {
            names.push(name);
        }
    }
    Ok(names)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the time depends on the files in it, and no decision depends on the time"
)]
fn now() -> Instant {
    Instant::now()
}

fn in_time(until: Instant) -> io::Result<()> {
    if now() < until {
        return Ok(());
    }
    Err(refusal(
        "it could not be removed in time: too much is in it",
    ))
}
