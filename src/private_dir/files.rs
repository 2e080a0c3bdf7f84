//! Files in a held directory. They are opened without following a link, and only if they are
//! regular files.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{Mode, SFlag, fchmod, fstat, fstatat},
};

use super::{Create, PrivateDir, ours, refusal, regular};

impl PrivateDir {
    /// Opens a regular file that we have given to another user, for reading and writing.
    ///
    /// # Errors
    /// It is a link, or not a regular file.
    pub fn given_file(&self, name: &str) -> io::Result<File> {
        self.open_at(name, OFlag::O_RDWR, 0)
            .map_err(self.naming(name))
    }

    /// Opens a regular file of ours in this directory, for reading and writing.
    ///
    /// # Errors
    /// It is a link, not a regular file, belongs to another user, or has a second name.
    pub fn file(&self, name: &str, create: Create, mode: u32) -> io::Result<File> {
        let flags = OFlag::O_RDWR
            | match create {
                Create::Never => OFlag::empty(),
                Create::IfMissing => OFlag::O_CREAT,
                Create::New => OFlag::O_CREAT | OFlag::O_EXCL,
            };
        let named = self.naming(name);
        let file = self.open_at(name, flags, mode).map_err(&named)?;
        let found = fstat(&file).map_err(|error| named(error.into()))?;
        ours(&found, SFlag::S_IFREG).map_err(&named)?;
        // Another user may have made a hard link here to a file of ours elsewhere.
        if found.st_nlink > 1 {
            return Err(named(refusal("the file has a second name (a hard link)")));
        }
        Ok(file)
    }

    /// Reads a regular file of any owner in this directory, up to `most` bytes.
    ///
    /// # Errors
    /// It does not exist, is not a regular file, or is longer.
    pub fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let named = self.naming(name);
        let file = self.open_at(name, OFlag::O_RDONLY, 0).map_err(&named)?;
        let mut bytes = Vec::new();
        (&file)
            .take(most.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(&named)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length > most) {
            return Err(named(io::Error::other(format!(
                "it is longer than {most} bytes"
            ))));
        }
        Ok(bytes)
    }

    /// Opens without following a link and without waiting for the other end of a pipe, and only if
    /// it is a regular file, because opening a device may have effects.
    fn open_at(&self, name: &str, flags: OFlag, mode: u32) -> io::Result<File> {
        match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => regular(&found)?,
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let safe = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(mode);
        let file = openat(&self.fd, name, flags | safe, mode)?;
        // RACE: other users who may write to the directory may have replaced the file meanwhile.
        regular(&fstat(&file)?)?;
        Ok(file.into())
    }

    /// Writes a file so that readers see either the old content or the new content.
    ///
    /// # Errors
    /// The disk is full, or we may not write to the directory.
    pub fn replace(&self, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
        let half = format!(".{name}.half");
        // A crash may have left one behind.
        self.remove(&half)?;
        let written = self.file(&half, Create::New, mode).and_then(|mut file| {
            file.write_all(content)?;
            // The umask may have removed permissions that other users need.
            fchmod(&file, Mode::from_bits_truncate(mode))?;
            Ok(())
        });
        let placed = written.and_then(|()| self.rename(&half, name));
        if placed.is_err() {
            // This fails if the file was not made.
            let _gone = self.remove(&half);
        }
        placed.map_err(self.naming(name))
    }
}
