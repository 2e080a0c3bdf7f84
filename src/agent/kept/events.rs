//! The most recent events on disk, one JSON object a line, in two files of bounded size.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    sync::Arc,
};

use crate::private_dir::{Create, PrivateDir};

/// Size at which the newer file replaces the older one.
const FILE_MAX: u64 = 1 << 20;
const NEWER: &str = "events.jsonl";
const OLDER: &str = "events.1.jsonl";

/// The newer file, opened with the first event.
#[derive(Debug)]
pub(super) struct EventFile {
    directory: Arc<PrivateDir>,
    file: Option<(File, u64)>,
}

impl EventFile {
    pub(super) const fn new(directory: Arc<PrivateDir>) -> Self {
        Self {
            directory,
            file: None,
        }
    }

    /// Appends an event. If `missed` events before it were not written, a line has their number.
    pub(super) fn write(&mut self, line: &str, missed: u64) -> io::Result<()> {
        let note = match missed {
            0 => String::new(),
            missed => format!("{{\"event\":\"missed\",\"missed\":{missed}}}\n"),
        };
        let text = format!("{note}{line}\n");
        let written = self.append(text.as_bytes());
        if written.is_err() {
            // The next event reopens the file, which may be gone or end in a half-written line.
            self.file = None;
        }
        written
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let (mut file, size) = match self.file.take() {
            Some(open) => open,
            None => self.open()?,
        };
        file.write_all(text)?;
        let size = size.saturating_add(length);
        if size < FILE_MAX {
            self.file = Some((file, size));
            return Ok(());
        }
        drop(file);
        self.directory.rename(NEWER, OLDER)
    }

    fn open(&self) -> io::Result<(File, u64)> {
        let mut file = self.directory.file(NEWER, Create::IfMissing, 0o600)?;
        let size = file.seek(SeekFrom::End(0))?;
        if size == 0 {
            return Ok((file, 0));
        }
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last == *b"\n" {
            return Ok((file, size));
        }
        // A crash has cut off the last line. The line feed separates it from the next event.
        file.write_all(b"\n")?;
        Ok((file, size + 1))
    }
}

/// The events, the oldest first, without lines that are cut off.
pub(super) fn read(directory: &PrivateDir) -> Vec<String> {
    let mut lines = Vec::new();
    for name in [OLDER, NEWER] {
        // The last line may begin just below the limit.
        let text = directory.read(name, 2 * FILE_MAX).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let whole = text.lines().filter(|line| {
            let parsed = serde_json::from_str::<serde_json::Value>(line);
            parsed.is_ok_and(|value| value.is_object())
        });
        lines.extend(whole.map(str::to_owned));
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn the_newest_events_are_kept_in_two_bounded_files() {
        let home = tempfile::tempdir().unwrap();
        let directory = Arc::new(PrivateDir::open(home.path()).unwrap());
        let mut events = EventFile::new(Arc::clone(&directory));
        let filler = "x".repeat(1000);
        for number in 0..4000 {
            let line = format!("{{\"id\":{number},\"filler\":\"{filler}\"}}");
            events.write(&line, 0).unwrap();
        }
        let sizes = [OLDER, NEWER].map(|name| {
            let found = fs::metadata(home.path().join(name)).unwrap();
            assert_eq!(found.permissions().mode() & 0o777, 0o600);
            found.len()
        });
        assert!(
            sizes.iter().all(|size| *size < FILE_MAX + 2000),
            "{sizes:?}"
        );
        let read = read(&directory);
        assert!(read.len() > 1000 && read.len() < 2200, "{}", read.len());
        assert!(read.last().unwrap().starts_with("{\"id\":3999,"));
        let first = 4000 - read.len();
        assert!(read[0].starts_with(&format!("{{\"id\":{first},")));
    }

    #[test]
    fn a_half_written_line_is_left_out_and_does_not_affect_others() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(NEWER), "{\"id\":1}\n{\"id\":").unwrap();
        let directory = Arc::new(PrivateDir::open(home.path()).unwrap());
        let mut events = EventFile::new(Arc::clone(&directory));
        events.write("{\"id\":3}", 1).unwrap();
        let expected = [
            "{\"id\":1}",
            "{\"event\":\"missed\",\"missed\":1}",
            "{\"id\":3}",
        ];
        assert_eq!(read(&directory), expected);
    }

    #[test]
    fn a_link_is_not_followed_for_writing() {
        let home = tempfile::tempdir().unwrap();
        let precious = home.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, home.path().join(NEWER)).unwrap();
        let directory = Arc::new(PrivateDir::open(home.path()).unwrap());
        let mut events = EventFile::new(Arc::clone(&directory));
        assert!(events.write("{}", 0).is_err());
        assert_eq!(read(&directory), [""; 0]);
        assert_eq!(fs::read(precious).unwrap(), b"precious");
    }
}
