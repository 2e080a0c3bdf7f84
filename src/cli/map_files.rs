//! The files of `supervise map`: opens its input and its output, and checks that they differ.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Seek as _, SeekFrom, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{AccessFlags, access},
};
use tokio::sync::oneshot;

use crate::queue::ReaderGone;

/// The delay between the closing of the output and its report.
const CLOSE_DELAY: Duration = Duration::from_millis(100);

/// Opens the input: a file, or standard input.
pub(super) fn open_input(path: Option<&Path>) -> Result<File, String> {
    match path {
        Some(path) => File::open(path).map_err(|error| message_with_path(path, &error)),
        None => copy_of(&io::stdin()),
    }
}

/// An output that stays unchanged until the first write or flush.
#[derive(Debug)]
pub(super) struct Output {
    path: Option<PathBuf>,
    /// `None`: the file does not exist yet.
    file: Option<File>,
    is_prepared: bool,
}

impl Output {
    /// Opens the output: a file, or standard output.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else {
            return Ok(Self {
                path: None,
                file: Some(copy_of(&io::stdout())?),
                is_prepared: true,
            });
        };
        let file = match OpenOptions::new().write(true).open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                check_parent(path).map_err(|error| message_with_path(path, &error))?;
                None
            }
            Err(error) => return Err(message_with_path(path, &error)),
        };
        Ok(Self {
            path: Some(path.to_owned()),
            file,
            is_prepared: false,
        })
    }

    /// Checks that the output and `other` are different files, even if their names differ.
    pub(super) fn check_differs(&self, other: &File, what: &str) -> Result<(), String> {
        let same = self
            .file
            .as_ref()
            .is_some_and(|file| is_same(file.metadata().ok(), other.metadata().ok()));
        if !same {
            return Ok(());
        }
        let name = match &self.path {
            Some(path) => path.display().to_string(),
            None => "standard output".to_owned(),
        };
        Err(format!("{name}: the output is {what}"))
    }

    /// Whether the output is standard output, which is never truncated.
    pub(super) const fn is_stream(&self) -> bool {
        self.path.is_none()
    }

    /// A future that is ready when the reader of the output has gone. `None` for other files than
    /// pipes, where only the next write can show that.
    pub(super) fn reader_gone(&self) -> Option<ReaderGone> {
        let file = self.file.as_ref()?;
        if !file.metadata().ok()?.file_type().is_fifo() {
            return None;
        }
        let copy: OwnedFd = file.as_fd().try_clone_to_owned().ok()?;
        let (sender, receiver) = oneshot::channel();
        let watcher = thread::Builder::new().name("reader".to_owned());
        let watch = move || {
            // poll(2) returns POLLERR when a pipe has no reader. Without requested events it waits
            // for nothing else.
            let mut fds = [PollFd::new(copy.as_fd(), PollFlags::empty())];
            while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
            let is_gone = fds[0]
                .revents()
                .is_some_and(|it| it.contains(PollFlags::POLLERR));
            // RACE: a program that has all its results may close the input and then the output.
            // With the delay, the loop sees the end of the input first and finishes normally.
            thread::park_timeout(CLOSE_DELAY);
            let _ = sender.send(is_gone);
        };
        // Without this thread, the next write fails instead.
        watcher.spawn(watch).ok()?;
        Some(ReaderGone(Box::pin(async move {
            if receiver.await != Ok(true) {
                std::future::pending::<()>().await;
            }
        })))
    }

    /// The file. It is created or truncated before the first write.
    fn prepared(&mut self) -> io::Result<&mut File> {
        if !self.is_prepared {
            match (&self.file, &self.path) {
                // Pipes and devices cannot be truncated.
                (Some(file), _) if file.metadata()?.is_file() => file.set_len(0)?,
                (None, Some(path)) => {
                    let created = File::create(path);
                    let named = |error: io::Error| {
                        io::Error::new(error.kind(), message_with_path(path, &error))
                    };
                    self.file = Some(created.map_err(named)?);
                }
                (Some(_), _) | (None, None) => {}
            }
            self.is_prepared = true;
        }
        let file = self.file.as_mut();
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.prepared()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.prepared()?.flush()
    }
}

/// Checks that a file can be created, so that the run fails now and not at its first results.
fn check_parent(path: &Path) -> io::Result<()> {
    let path = resolve_links(path);
    let folder = path.parent().filter(|path| !path.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK)?;
    Ok(())
}

/// Follows symbolic links to a file that does not exist.
fn resolve_links(path: &Path) -> PathBuf {
    /// The kernel follows at most this many links (path_resolution(7)).
    const LINKS_MAX: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(target) = fs::read_link(&path) else {
            break;
        };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    path
}

/// Whether both are the same file, so that bytes written to one can be read from the other.
fn is_same(one: Option<Metadata>, other: Option<Metadata>) -> bool {
    let (Some(one), Some(other)) = (one, other) else {
        return false;
    };
    let kind = one.file_type();
    // A terminal, a socket or /dev/null may be both input and output.
    (kind.is_file() || kind.is_fifo() || kind.is_block_device())
        && (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn copy_of(fd: &impl AsFd) -> Result<File, String> {
    let owned = fd.as_fd().try_clone_to_owned();
    owned.map(File::from).map_err(|error| error.to_string())
}

pub(super) fn message_with_path(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Seeks to `to`, the position where reading began. False: the file cannot seek.
pub(super) fn seek_back(file: &mut File, to: Option<u64>) -> io::Result<bool> {
    match to {
        Some(offset) if file.metadata()?.is_file() => {
            file.seek(SeekFrom::Start(offset))?;
            Ok(true)
        }
        Some(_) | None => Ok(false),
    }
}
