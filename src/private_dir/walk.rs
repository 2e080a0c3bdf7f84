//! Resolves a path to a directory step by step. Each directory is held before the next one is
//! looked up, so that the checked directory is the one that is used.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, openat, readlinkat},
    sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, mkdirat},
    unistd::{AccessFlags, faccessat},
};

use super::{PrivateDir, kind, refusal, regular, trust::Trusted};

/// The number of links that the kernel follows (path_resolution(7)).
const LINKS_MAX: u32 = 40;

/// Whether a directory that other users may write to is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Strict {
    Yes,
    /// Only links that other users may have made are refused.
    No,
}

/// The current position of a walk.
struct Place {
    fd: OwnedFd,
    found: FileStat,
    path: PathBuf,
}

/// The type of an entry.
enum Step {
    Directory(Place),
    Link(PathBuf),
    Other,
    Nothing,
}

struct Walk {
    trusted: Trusted,
    strict: Strict,
    here: Place,
    links: u32,
}

/// Walks to a directory. Missing directories are made if there is a mode for them.
pub(super) fn walk(path: &Path, create: Option<Mode>, strict: Strict) -> io::Result<PrivateDir> {
    let mut walk = Walk::begin(path, strict)?;
    walk.go(path, create)?;
    Ok(PrivateDir {
        fd: walk.here.fd,
        path: path.to_owned(),
    })
}

/// Whether [`PrivateDir::make`] would succeed. Makes nothing.
///
/// # Errors
/// The error that it would return.
pub fn check(path: &Path) -> io::Result<()> {
    let mut walk = Walk::begin(path, Strict::Yes)?;
    match walk.go(path, None) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other?,
    }
    // Here a missing directory would be made, or files be written to an existing one.
    let here = &walk.here;
    let writable = AccessFlags::W_OK | AccessFlags::X_OK;
    faccessat(&here.fd, ".", writable, AtFlags::AT_EACCESS)
        .map_err(|error| naming(&here.path, error.into()))
}

/// Opens a regular file in a directory that other users may share, such as a journal at an
/// operator's path. A link or a file that other users may have made is refused.
///
/// # Errors
/// Other users may have made it, or it cannot be opened.
pub fn open_shared(path: &Path, flags: OFlag, mode: u32) -> io::Result<File> {
    let mut target = path.to_owned();
    let mut links = 0;
    loop {
        let name = target
            .file_name()
            .ok_or_else(|| naming(&target, io::ErrorKind::IsADirectory.into()))?
            .to_owned();
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut walk = Walk::begin(&parent, Strict::No)?;
        walk.go(&parent, None).map_err(|error| match error.kind() {
            // The error names the requested file, not the first directory that is missing.
            io::ErrorKind::NotFound => naming(&target, Errno::ENOENT.into()),
            io::ErrorKind::NotADirectory => naming(&target, Errno::ENOTDIR.into()),
            _ => error,
        })?;
        let (fd, found) = (&walk.here.fd, &walk.here.found);
        let named = |error: Errno| naming(&target, error.into());
        let held = openat(fd, &*name, probe(), Mode::empty());
        let before = match held {
            Ok(held) => Some((fstat(&held).map_err(named)?, held)),
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(named(error)),
        };
        if let Some((entry, held)) = &before {
            let trusted = walk.trusted.entry(entry, found);
            trusted.map_err(|error| naming(&target, error))?;
            if kind(entry) == SFlag::S_IFLNK {
                links += 1;
                if links > LINKS_MAX {
                    return Err(named(Errno::ELOOP));
                }
                let to = readlinkat(held, "").map_err(named)?;
                target = parent.join(to);
                continue;
            }
            let usable = regular(entry).and_then(|()| walk.trusted.names(entry, found));
            usable.map_err(|error| naming(&target, error))?;
        }
        let safe = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = openat(fd, &*name, flags | safe, Mode::from_bits_truncate(mode));
        let file = file.map_err(named)?;
        // RACE: another user may have replaced it since the check.
        let opened = fstat(&file).map_err(named)?;
        let same = walk.trusted.entry(&opened, found);
        let same = same.and_then(|()| walk.trusted.names(&opened, found));
        let same = same.and_then(|()| regular(&opened));
        same.map_err(|error| naming(&target, error))?;
        return Ok(file.into());
    }
}

impl Walk {
    fn begin(path: &Path, strict: Strict) -> io::Result<Self> {
        let root = Place::open(Path::new("/"))?;
        let trusted = Trusted::new(&root.found);
        let here = if path.is_absolute() {
            trusted
                .directory(&root.found, None, strict == Strict::Yes)
                .map_err(|error| naming(&root.path, error))?;
            root
        } else {
            Place::open(Path::new("."))?
        };
        Ok(Self {
            trusted,
            strict,
            here,
            links: 0,
        })
    }

    fn go(&mut self, path: &Path, create: Option<Mode>) -> io::Result<()> {
        let mut names = names(path);
        while let Some(name) = names.pop_front() {
            match self.step(&name)? {
                Step::Directory(place) => self.here = place,
                Step::Link(to) => {
                    self.links += 1;
                    if self.links > LINKS_MAX {
                        return Err(self.naming(&name, Errno::ELOOP.into()));
                    }
                    if to.is_absolute() {
                        self.here = Place::open(Path::new("/"))?;
                    }
                    let mut all = super::walk::names(&to);
                    all.append(&mut names);
                    names = all;
                }
                Step::Other => return Err(self.naming(&name, Errno::ENOTDIR.into())),
                Step::Nothing => {
                    let Some(mode) = create else {
                        return Err(self.naming(&name, Errno::ENOENT.into()));
                    };
                    self.make(&name, mode)
                        .map_err(|error| self.naming(&name, error))?;
                    names.push_front(name);
                }
            }
        }
        Ok(())
    }

    fn step(&self, name: &OsStr) -> io::Result<Step> {
        let path = self.here.path.join(name);
        let named = |error: io::Error| naming(&path, error);
        let fd = match openat(&self.here.fd, name, probe(), Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(Step::Nothing),
            Err(error) => return Err(named(error.into())),
        };
        let found = fstat(&fd).map_err(|error| named(error.into()))?;
        let parent = (name != "..").then_some(&self.here.found);
        match kind(&found) {
            SFlag::S_IFDIR => {
                self.trusted
                    .directory(&found, parent, self.strict == Strict::Yes)
                    .map_err(named)?;
                Ok(Step::Directory(Place { fd, found, path }))
            }
            SFlag::S_IFLNK => {
                let trusted = self.trusted.entry(&found, &self.here.found);
                trusted.map_err(|_| {
                    named(refusal(
                        "another user may have made this symbolic link; it is not followed",
                    ))
                })?;
                let to = readlinkat(&fd, "").map_err(|error| named(error.into()))?;
                Ok(Step::Link(PathBuf::from(to)))
            }
            _ => Ok(Step::Other),
        }
    }

    fn make(&self, name: &OsStr, mode: Mode) -> io::Result<()> {
        match mkdirat(&self.here.fd, name, mode) {
            // RACE: another service has just made it. It is checked like any other directory.
            Err(Errno::EEXIST) => return Ok(()),
            made => made?,
        }
        // The umask may have removed permissions. No other user can have replaced the directory,
        // because it is ours and its parent was checked.
        fchmodat(&self.here.fd, name, mode, FchmodatFlags::FollowSymlink)?;
        Ok(())
    }

    fn naming(&self, name: &OsStr, error: io::Error) -> io::Error {
        naming(&self.here.path.join(name), error)
    }
}

impl Place {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|error| naming(path, error.into()))?;
        let found = fstat(&fd)?;
        Ok(Self {
            fd,
            found,
            path: path.to_owned(),
        })
    }
}

fn probe() -> OFlag {
    OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn names(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

fn naming(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
