//! The files of a map: what it reads, what it writes, and that these are not one file.

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

/// The time in which the end of the input is seen after a reader has closed the output.
const INPUT_FIRST: Duration = Duration::from_millis(100);

/// An input, by the name that was given to it; else standard input.
pub(super) fn open_input(path: Option<&Path>) -> Result<File, String> {
    match path {
        Some(path) => File::open(path).map_err(|error| named(path, &error)),
        None => copy_of(&io::stdin()),
    }
}

/// An output that is left as it was until it is written or flushed.
#[derive(Debug)]
pub(super) struct Output {
    path: Option<PathBuf>,
    /// None: there was none yet.
    file: Option<File>,
    is_ready: bool,
}

impl Output {
    /// Opens an output, by the name that was given to it; else standard output.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else {
            return Ok(Self {
                path: None,
                file: Some(copy_of(&io::stdout())?),
                is_ready: true,
            });
        };
        let file = match OpenOptions::new().write(true).open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                can_be_made(path).map_err(|error| named(path, &error))?;
                None
            }
            Err(error) => return Err(named(path, &error)),
        };
        Ok(Self {
            path: Some(path.to_owned()),
            file,
            is_ready: false,
        })
    }

    /// The output must be neither the input nor the journal, by whatever name.
    pub(super) fn is_not(&self, other: &File, what: &str) -> Result<(), String> {
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

    /// It is standard output, which whoever started us has opened as it is to be.
    pub(super) const fn is_stream(&self) -> bool {
        self.path.is_none()
    }

    /// Is ready when nobody reads the output any more; only of a pipe that is known before it is
    /// written.
    pub(super) fn reader_gone(&self) -> Option<ReaderGone> {
        let file = self.file.as_ref()?;
        if !file.metadata().ok()?.file_type().is_fifo() {
            return None;
        }
        let copy: OwnedFd = file.as_fd().try_clone_to_owned().ok()?;
        let (sender, receiver) = oneshot::channel();
        let watcher = thread::Builder::new().name("reader".to_owned());
        let watch = move || {
            // A pipe without a reader has an error (poll(2)), and nothing else is waited for.
            let mut fds = [PollFd::new(copy.as_fd(), PollFlags::empty())];
            while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
            let is_gone = fds[0]
                .revents()
                .is_some_and(|it| it.contains(PollFlags::POLLERR));
            // RACE: a program that has all its results closes the input and then the output. The
            // end of the input is to be seen first.
            thread::park_timeout(INPUT_FIRST);
            let _ = sender.send(is_gone);
        };
        // Without it, the next write says it.
        watcher.spawn(watch).ok()?;
        Some(ReaderGone(Box::pin(async move {
            if receiver.await != Ok(true) {
                std::future::pending::<()>().await;
            }
        })))
    }

    fn ready(&mut self) -> io::Result<&mut File> {
        if !self.is_ready {
            match (&self.file, &self.path) {
                // Pipes and devices have no length.
                (Some(file), _) if file.metadata()?.is_file() => file.set_len(0)?,
                (None, Some(path)) => {
                    let made = File::create(path);
                    let named =
                        |error: io::Error| io::Error::new(error.kind(), named(path, &error));
                    self.file = Some(made.map_err(named)?);
                }
                (Some(_), _) | (None, None) => {}
            }
            self.is_ready = true;
        }
        let file = self.file.as_mut();
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.ready()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.ready()?.flush()
    }
}

/// Says now what would be said only after the first results.
fn can_be_made(path: &Path) -> io::Result<()> {
    let path = target_of(path);
    let folder = path.parent().filter(|path| !path.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK)?;
    Ok(())
}

/// Where a link leads to, or a chain of them, if there is nothing.
fn target_of(path: &Path) -> PathBuf {
    /// As many as the kernel follows.
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

/// Whether what is written into the one would be read from the other.
fn is_same(one: Option<Metadata>, other: Option<Metadata>) -> bool {
    let (Some(one), Some(other)) = (one, other) else {
        return false;
    };
    let kind = one.file_type();
    // A terminal, a socket or /dev/null may well be both.
    (kind.is_file() || kind.is_fifo() || kind.is_block_device())
        && (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn copy_of(fd: &impl AsFd) -> Result<File, String> {
    let owned = fd.as_fd().try_clone_to_owned();
    owned.map(File::from).map_err(|error| error.to_string())
}

pub(super) fn named(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Goes back to where it was when it was opened. False: that cannot be done.
pub(super) fn go_back(file: &mut File, to: Option<u64>) -> io::Result<bool> {
    match to {
        Some(place) if file.metadata()?.is_file() => {
            file.seek(SeekFrom::Start(place))?;
            Ok(true)
        }
        Some(_) | None => Ok(false),
    }
}
