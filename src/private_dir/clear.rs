//! Empties a directory that other users have written to. A tree may be thousands of levels deep and
//! may change meanwhile, so this uses no recursion, no descriptor for each level and no `..`: a
//! directory that is not empty is moved to the top, and opened there like the others.

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

/// Removes everything in `top`, except `spared`, within `limit`.
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
            // RACE: it was replaced; the next round handles the new entry.
            Err(Errno::ENOTDIR | Errno::ELOOP | Errno::ENOENT) => {
                waiting.push(name);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // Its owner may have no permission on it. Root does not need this to succeed.
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
        // RACE: something may have been added to it meanwhile.
        if !removed(top, &name)? {
            waiting.push(name);
        }
        waiting.append(&mut found);
    }
    Ok(())
}

/// A free name. Entries of an earlier attempt may still exist.
fn free_name(top: &OwnedFd, moved: &mut u64) -> CString {
    loop {
        *moved += 1;
        let name = CString::new(format!(".removed.{moved}")).unwrap_or_default();
        if unlinkat(top, &*name, UnlinkatFlags::RemoveDir) != Err(Errno::ENOTEMPTY) {
            return name;
        }
    }
}

/// Removes an entry. False if it is a directory that is not empty.
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
            // A directory of ours that we have no permission on. If a link replaces it, the second
            // attempt does not follow the link, and the mode that the target of the link got does
            // no harm.
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
    reason = "the time limit is for removing files only, and the decider does not see it"
)]
fn now() -> Instant {
    Instant::now()
}

fn in_time(until: Instant) -> io::Result<()> {
    if now() < until {
        return Ok(());
    }
    Err(refusal("it has too many entries to be removed in time"))
}
