//! Directories that only we and root can change, held by a descriptor.
//!
//! Other users may have prepared the places of locks, sockets, the agent's code and kept reports:
//! with a link instead of a file, or a directory of their own instead of ours. So the owner and
//! mode of every directory on the path are checked ([`PrivateDir::make`], see `walk`), and
//! everything below is opened by a name relative to the held descriptor, never through a link.

mod claim;
mod clear;
mod files;
mod lock;
mod trust;
mod walk;

#[cfg(test)]
mod tests;

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, renameat},
    sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, geteuid, unlinkat},
};

pub use claim::{Claimed, Contents};
pub use lock::try_lock;
pub use walk::{check, open_shared};

/// A directory that is held open. Only we, root and the owner of `/` can replace it or an entry of
/// ours in it.
#[derive(Debug)]
pub struct PrivateDir {
    fd: OwnedFd,
    path: PathBuf,
}

/// Whether a file may be missing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Create {
    /// It must exist.
    Never,
    /// It is created if it is missing.
    IfMissing,
    /// It must not exist.
    New,
}

impl PrivateDir {
    /// Opens a directory, and makes the missing directories of its path with this mode.
    ///
    /// # Errors
    /// A directory on the path can be changed by other users, or cannot be made. The error has its
    /// path, its owner and its mode.
    pub fn make(path: &Path, mode: u32) -> io::Result<Self> {
        walk::walk(
            path,
            Some(Mode::from_bits_truncate(mode)),
            walk::Strict::Yes,
        )
    }

    /// Opens an existing directory.
    ///
    /// # Errors
    /// It does not exist, or a directory on the path can be changed by other users.
    pub fn open(path: &Path) -> io::Result<Self> {
        walk::walk(path, None, walk::Strict::Yes)
    }

    /// Opens a directory of any user for reading, but follows no link that another user may have
    /// made.
    ///
    /// # Errors
    /// It does not exist, or such a link is on the path.
    pub fn open_untrusted(path: &Path) -> io::Result<Self> {
        walk::walk(path, None, walk::Strict::No)
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another descriptor of the same directory.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
            path: self.path.clone(),
        })
    }

    /// Opens a directory of ours in this one, makes it if it is missing, and sets this mode.
    ///
    /// # Errors
    /// It is a link, not a directory, or belongs to another user.
    pub fn subdirectory(&self, name: &str, mode: u32) -> io::Result<Self> {
        let named = self.naming(name);
        match mkdirat(&self.fd, name, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(named(error.into())),
        }
        let directory = self.existing(name)?;
        let readable = openat(
            &directory.fd,
            ".",
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        );
        readable
            .and_then(|fd| fchmod(&fd, Mode::from_bits_truncate(mode)))
            .map_err(|error| named(error.into()))?;
        Ok(directory)
    }

    /// Opens an existing directory of ours in this one.
    ///
    /// # Errors
    /// It is a link, not a directory, or belongs to another user.
    pub fn existing(&self, name: &str) -> io::Result<Self> {
        let named = self.naming(name);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd =
            openat(&self.fd, name, flags, Mode::empty()).map_err(|error| named(error.into()))?;
        let found = fstat(&fd).map_err(|error| named(error.into()))?;
        ours(&found, SFlag::S_IFDIR).map_err(named)?;
        let path = self.path.join(name);
        Ok(Self { fd, path })
    }

    /// Opens a directory in this one that we have given to another user.
    ///
    /// # Errors
    /// It is a link, or not a directory.
    pub fn given_directory(&self, name: &str) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty());
        let fd = fd.map_err(|error| self.naming(name)(error.into()))?;
        let path = self.path.join(name);
        Ok(Self { fd, path })
    }

    /// Renames an entry.
    ///
    /// # Errors
    /// It does not exist, or the new name is that of a directory.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        renameat(&self.fd, from, &self.fd, to).map_err(io::Error::from)
    }

    /// Removes a file; a missing file is not an error.
    ///
    /// # Errors
    /// It is a directory, or belongs to another user.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(self.naming(name)(error.into())),
        }
    }

    /// Removes an empty directory.
    fn remove_directory(&self, name: &str) -> io::Result<()> {
        unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir).map_err(io::Error::from)
    }

    /// Removes everything in it, at any depth, except the entry `spared`.
    ///
    /// # Errors
    /// Something cannot be removed, or not within the time limit.
    pub fn clear(&self, spared: Option<&str>, limit: std::time::Duration) -> io::Result<()> {
        clear::clear(&self.fd, spared.map(OsStr::new), limit).map_err(self.naming(""))
    }

    /// The names of its entries, without `.` and `..`.
    ///
    /// # Errors
    /// It cannot be listed.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut listing = Dir::openat(&self.fd, ".", flags, Mode::empty())
            .map_err(|error| self.naming("")(error.into()))?;
        let mut names = Vec::new();
        for entry in listing.iter() {
            let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// The status of an entry, without following a link. `None`: there is no such entry.
    ///
    /// # Errors
    /// We may not search the directory.
    pub fn entry(&self, name: &str) -> io::Result<Option<FileStat>> {
        match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(self.naming(name)(error.into())),
        }
    }

    /// Gives a directory or file of ours in this directory to another user.
    ///
    /// # Errors
    /// We are not root.
    pub fn give(&self, name: &str, (user, group): (u32, u32)) -> io::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let given = openat(&self.fd, name, flags, Mode::empty())
            .and_then(|fd| fchown(&fd, Some(Uid::from_raw(user)), Some(Gid::from_raw(group))));
        given.map_err(|error| self.naming(name)(error.into()))
    }

    /// Adds the path of the entry to an error.
    fn naming(&self, name: &str) -> impl Fn(io::Error) -> io::Error {
        let path = if name.is_empty() {
            self.path.clone()
        } else {
            self.path.join(name)
        };
        move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    }
}

impl AsFd for PrivateDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The error for an entry that other users may have prepared.
fn refusal(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why.into())
}

fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT
}

fn regular(found: &FileStat) -> io::Result<()> {
    of_kind(found, SFlag::S_IFREG)
}

fn of_kind(found: &FileStat, wanted: SFlag) -> io::Result<()> {
    match kind(found) {
        what if what == wanted => Ok(()),
        SFlag::S_IFLNK => Err(refusal("a symbolic link is there, which is not followed")),
        _ if wanted == SFlag::S_IFDIR => Err(refusal("it is not a directory")),
        _ => Err(refusal("it is not a regular file")),
    }
}

/// Requires an entry of this kind that belongs to us.
fn ours(found: &FileStat, wanted: SFlag) -> io::Result<()> {
    of_kind(found, wanted)?;
    let own = geteuid().as_raw();
    if found.st_uid != own {
        return Err(refusal(format!(
            "it belongs to {} with mode {:04o}, not to {}; remove it",
            trust::user(found.st_uid),
            found.st_mode & 0o7777,
            trust::user(own),
        )));
    }
    Ok(())
}
