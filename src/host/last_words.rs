//! The file that is read when we are gone: a container's termination message.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

use super::Host;
use crate::{
    escape, private_dir,
    supervisor::{event::Effect, spec::TerminationLog},
};

/// Where Kubernetes looks for it, unless a container's `terminationMessagePath` says otherwise.
const USUAL: &str = "/dev/termination-log";

/// The file, held open from the start: when it is needed there may be no memory to open it.
#[derive(Debug, Default)]
pub(super) struct LastWords {
    file: Option<(File, PathBuf)>,
    length: usize,
}

impl LastWords {
    /// Opens and empties it: what another life said is not ours.
    pub(super) fn open(wish: &TerminationLog, is_init: bool) -> io::Result<Self> {
        let path = match wish {
            TerminationLog::Off => return Ok(Self::default()),
            TerminationLog::At(path) => path.as_path(),
            TerminationLog::Auto if is_init && Path::new(USUAL).is_file() => Path::new(USUAL),
            TerminationLog::Auto => return Ok(Self::default()),
        };
        let named = matches!(wish, TerminationLog::At(_));
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
            // Nobody asked for it.
            Err(_) => Ok(Self::default()),
        }
    }

    pub(super) const fn is_kept(&self) -> bool {
        self.file.is_some()
    }

    /// Replaces the text by one write over all of the old one, so that we may be killed at any
    /// moment: then it is the old text or the new one. The file itself is a mount and stays.
    fn write(&mut self, text: &str) -> io::Result<()> {
        let Some((file, _)) = &self.file else {
            return Ok(());
        };
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(text.len().max(self.length), b'\n');
        file.write_all_at(&bytes, 0)?;
        file.set_len(u64::try_from(text.len()).unwrap_or(u64::MAX))?;
        self.length = text.len();
        Ok(())
    }
}

impl Host {
    pub(super) fn keep_last_words(&mut self, text: &str) {
        if let Err(error) = self.last_words.write(&escape::lines(text)) {
            let path = self.last_words.file.take().map(|(_, path)| path);
            let path = path.unwrap_or_default();
            let what = format!("write the termination log {}: {error}", path.display());
            self.fail(what, None, Effect::Other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_takes_the_place_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("termination-log");
        std::fs::write(&path, "of another life").unwrap();
        let mut words = LastWords::open(&TerminationLog::At(path.clone()), false).unwrap();
        let read = || std::fs::read_to_string(&path).unwrap();
        assert_eq!(read(), "");
        for text in ["a longer text\n", "short\n", ""] {
            words.write(text).unwrap();
            assert_eq!(read(), text);
        }
    }

    #[test]
    fn a_file_that_another_user_may_have_put_there_is_not_emptied() {
        use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let open = |name: &str| LastWords::open(&TerminationLog::At(at(name)), false);
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
    fn what_was_named_must_open_and_what_was_not_need_not_be_there() {
        let named = TerminationLog::At("/no/such/place/termination-log".into());
        let error = LastWords::open(&named, false).unwrap_err().to_string();
        assert!(error.contains("/no/such/place/termination-log"), "{error}");
        let auto = LastWords::open(&TerminationLog::Auto, false).unwrap();
        assert!(!auto.is_kept());
        assert!(
            !LastWords::open(&TerminationLog::Off, true)
                .unwrap()
                .is_kept()
        );
    }
}
