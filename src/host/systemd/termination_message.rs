//! A container's termination message: a file that is read after we have ended.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

use crate::{private_dir, supervisor::spec::TerminationLog};

/// The default path of Kubernetes; a container's `terminationMessagePath` overrides it.
const DEFAULT_PATH: &str = "/dev/termination-log";

/// The file. It is open from the start, because there may be no memory to open it when it is
/// needed.
#[derive(Debug, Default)]
pub(in crate::host) struct TerminationMessage {
    file: Option<(File, PathBuf)>,
    /// The length of the text in the file.
    length: usize,
}

impl TerminationMessage {
    /// Opens and empties it, because its text is from an earlier process.
    pub(in crate::host) fn open(setting: &TerminationLog, is_init: bool) -> io::Result<Self> {
        let path = match setting {
            TerminationLog::Off => return Ok(Self::default()),
            TerminationLog::At(path) => path.as_path(),
            TerminationLog::Auto if is_init && Path::new(DEFAULT_PATH).is_file() => {
                Path::new(DEFAULT_PATH)
            }
            TerminationLog::Auto => return Ok(Self::default()),
        };
        let named = matches!(setting, TerminationLog::At(_));
        let mut flags = OFlag::O_WRONLY;
        flags.set(OFlag::O_CREAT, named);
        let file = private_dir::open_shared(path, flags, 0o644);
        // Truncated only after the checks.
        let file = file.and_then(|file| file.set_len(0).map(|()| file));
        match file {
            Ok(file) => Ok(Self {
                file: Some((file, path.to_owned())),
                length: 0,
            }),
            Err(error) if named => Err(io::Error::new(
                error.kind(),
                format!("open the termination log {error}"),
            )),
            // The default file is optional.
            Err(_) => Ok(Self::default()),
        }
    }

    pub(in crate::host) const fn is_kept(&self) -> bool {
        self.file.is_some()
    }

    /// Replaces the text by one write over the whole old text, so that a kill at any moment leaves
    /// the old text or the new one. The file itself is a mount, so it cannot be replaced. After an
    /// error no more is written; the error has the path.
    pub(super) fn write(&mut self, text: &str) -> Result<(), (PathBuf, io::Error)> {
        let Some((file, path)) = self.file.take() else {
            return Ok(());
        };
        match self.write_to(&file, text) {
            Ok(()) => self.file = Some((file, path)),
            Err(error) => return Err((path, error)),
        }
        Ok(())
    }

    fn write_to(&mut self, file: &File, text: &str) -> io::Result<()> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(text.len().max(self.length), b'\n');
        file.write_all_at(&bytes, 0)?;
        file.set_len(u64::try_from(text.len()).unwrap_or(u64::MAX))?;
        self.length = text.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_replaces_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("termination-log");
        std::fs::write(&path, "of an earlier process").unwrap();
        let mut message =
            TerminationMessage::open(&TerminationLog::At(path.clone()), false).unwrap();
        let read = || std::fs::read_to_string(&path).unwrap();
        assert_eq!(read(), "");
        for text in ["a longer text\n", "short\n", ""] {
            message.write(text).unwrap();
            assert_eq!(read(), text);
        }
    }

    #[test]
    fn a_file_that_another_user_may_have_placed_is_not_truncated() {
        use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let open = |name: &str| TerminationMessage::open(&TerminationLog::At(at(name)), false);
        std::fs::write(at("precious"), "precious").unwrap();
        std::fs::hard_link(at("precious"), at("second")).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
        let error = open("second").unwrap_err().to_string();
        assert!(error.contains("second name"), "{error}");
        if nix::unistd::geteuid().is_root() {
            symlink(at("precious"), at("link")).unwrap();
            lchown(at("link"), Some(1), None).unwrap();
            let error = open("link").unwrap_err().to_string();
            assert!(error.contains("(uid 1)"), "{error}");
        }
        assert!(open("/dev/null").is_err());
        assert_eq!(std::fs::read(at("precious")).unwrap(), b"precious");
    }

    #[test]
    fn a_configured_file_must_open_and_the_default_file_may_be_missing() {
        let named = TerminationLog::At("/no/such/place/termination-log".into());
        let error = TerminationMessage::open(&named, false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/no/such/place/termination-log"), "{error}");
        let auto = TerminationMessage::open(&TerminationLog::Auto, false).unwrap();
        assert!(!auto.is_kept());
        assert!(
            !TerminationMessage::open(&TerminationLog::Off, true)
                .unwrap()
                .is_kept()
        );
    }
}
