//! Reading and writing the files of a control group.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::CgroupError;
use crate::units::Bytes;

/// Version 1 writes "no limit" as the largest multiple of a page, version 2 as `max`. No machine
/// has this much memory.
const UNLIMITED: u64 = 1 << 62;

/// A file that stays open. Each read starts at its beginning, where the kernel generates its text
/// anew.
///
/// It cannot be used for `cgroup.procs` of version 1: the kernel keeps the list while the file is
/// open (`cgroup_pidlist_start` in `cgroup-v1.c`), and a process that joined later is missing from
/// it.
#[derive(Debug)]
pub(super) struct OpenFile {
    path: PathBuf,
    file: File,
}

impl OpenFile {
    pub(super) fn open(path: PathBuf) -> Result<Self, CgroupError> {
        match File::open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(CgroupError::Read { path, error }),
        }
    }

    /// Its whole text.
    pub(super) fn text(&self) -> Result<String, CgroupError> {
        let mut text = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let from = u64::try_from(text.len()).unwrap_or(u64::MAX);
            match self.file.read_at(&mut chunk, from) {
                Ok(0) => return Ok(String::from_utf8_lossy(&text).into_owned()),
                Ok(length) => text.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(&self.path)(error)),
            }
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(read_error(path))
}

/// The single number in a file.
pub(super) fn number(path: &Path) -> Result<u64, CgroupError> {
    one_number(&read(path)?, path)
}

/// The limit in a file; `None` is unlimited.
pub(super) fn limit(path: &Path) -> Result<Option<Bytes>, CgroupError> {
    let text = read(path)?;
    if text.trim() == "max" {
        return Ok(None);
    }
    let bytes = one_number(&text, path)?;
    Ok((bytes < UNLIMITED).then_some(Bytes(bytes)))
}

/// The number of a name in a file of `name number` lines.
pub(super) fn entry(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(' ')?;
        value.trim().parse().ok()
    })
}

/// Like [`entry`], for the file at `path`.
pub(super) fn entry_of(path: &Path, name: &'static str) -> Result<u64, CgroupError> {
    entry(&read(path)?, name).ok_or_else(|| CgroupError::Strange {
        path: path.to_owned(),
        what: name,
    })
}

/// The numbers of these names in the file at `path`. The first name must exist; the others are zero
/// if the kernel lacks them.
pub(super) fn entries_of<const N: usize>(
    path: &Path,
    names: [&'static str; N],
) -> Result<[Bytes; N], CgroupError> {
    let text = read(path)?;
    let first = names.first().copied().unwrap_or_default();
    if entry(&text, first).is_none() {
        return Err(CgroupError::Strange {
            path: path.to_owned(),
            what: first,
        });
    }
    Ok(names.map(|name| Bytes(entry(&text, name).unwrap_or(0))))
}

/// The sum of these entries of the file at `path`; a missing entry is zero.
pub(super) fn sum_of<const N: usize>(path: &Path, names: [&'static str; N]) -> Option<Bytes> {
    let text = read(path).ok()?;
    let entries = names.map(|name| entry(&text, name).unwrap_or(0));
    Some(Bytes(entries.into_iter().fold(0, u64::saturating_add)))
}

/// Whether the word is in a file of words.
pub(super) fn has_word(path: &Path, word: &str) -> bool {
    read(path).is_ok_and(|text| text.split_ascii_whitespace().any(|found| found == word))
}

/// Writes all of `data` in one call, as the kernel requires. Never creates a file.
pub(super) fn write(path: &Path, data: &str) -> Result<(), CgroupError> {
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .and_then(|mut file| file.write_all(data.as_bytes()))
        .map_err(|error| CgroupError::Write {
            path: path.to_owned(),
            data: data.to_owned(),
            error,
        })
}

/// Like [`write()`], for a file that is missing if the kernel was built or booted without the
/// feature.
pub(super) fn write_if_there(path: &Path, data: &str) -> Result<(), CgroupError> {
    if path.exists() {
        write(path, data)
    } else {
        Ok(())
    }
}

/// Makes a group, or uses the existing one.
pub(super) fn make(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::Make {
            path: path.to_owned(),
            error,
        }),
        _ => Ok(()),
    }
}

/// Removes a group; a missing group is not an error. Fails while a process is in it.
pub(super) fn remove(path: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CgroupError::Remove {
            path: path.to_owned(),
            error,
        }),
        _ => Ok(()),
    }
}

/// The groups directly below this one, ordered by name; none if it does not exist.
pub(super) fn below(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    found.sort_unstable();
    found
}

/// Process ids, one a line. Processes of another pid namespace are shown as 0, and left out.
pub(super) fn pids(text: &str) -> impl Iterator<Item = i32> {
    let all = text.lines().filter_map(|line| line.trim().parse().ok());
    all.filter(|pid| *pid > 0)
}

fn one_number(text: &str, path: &Path) -> Result<u64, CgroupError> {
    text.trim().parse().map_err(|_| CgroupError::Strange {
        path: path.to_owned(),
        what: "number",
    })
}

fn read_error(path: &Path) -> impl Fn(io::Error) -> CgroupError {
    |error| CgroupError::Read {
        path: path.to_owned(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_or_none() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("limit");
        for (text, expected) in [
            ("max\n", None),
            ("9223372036854771712\n", None),
            ("67108864\n", Some(Bytes::mib(64))),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(limit(&path).unwrap(), expected);
        }
        fs::write(&path, "strange").unwrap();
        let error = limit(&path).unwrap_err().to_string();
        assert!(error.ends_with("/limit: no number in it"), "{error}");
    }

    #[test]
    fn a_name_that_is_a_prefix_of_another_name_is_not_confused_with_it() {
        let text = "total_rss_huge 1\ntotal_rss 2\n";
        assert_eq!(entry(text, "total_rss"), Some(2));
        assert_eq!(entry(text, "total"), None);
    }

    #[test]
    fn each_read_of_an_open_file_gets_its_whole_current_text() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("cgroup.procs");
        fs::write(&path, "").unwrap();
        let kept = OpenFile::open(path.clone()).unwrap();
        assert_eq!(pids(&kept.text().unwrap()).count(), 0);
        let many: String = (0..5000).map(|pid| format!("{pid}\n")).collect();
        fs::write(&path, many).unwrap();
        assert_eq!(pids(&kept.text().unwrap()).count(), 4999);
    }

    #[test]
    fn a_write_error_has_the_path_and_the_data() {
        let error = write(Path::new("/nowhere/memory.max"), "512M").unwrap_err();
        let expected = "write 512M to /nowhere/memory.max: No such file";
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}
