//! Records of systemd's journal, used if stderr is the journal (systemd.exec(5), `JOURNAL_STREAM`).
//! docs/decisions/0010-logging.md explains why this is not `tracing-journald`.
//!
//! The journal's native protocol: a record is a datagram of `FIELD=value` lines. A value with a
//! line break has its length before it instead of `=`. A record that is too large for a datagram
//! is sent as a sealed file.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::{fs::MetadataExt, net::UnixDatagram},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg},
    },
};

/// Where systemd-journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// Whether this stderr is the journal. The variable alone does not show it, because it may be
/// inherited from a parent with another stderr.
pub(super) fn is_behind(stderr: &File, stream: Option<&OsStr>) -> bool {
    let Some(said) = stream.and_then(OsStr::to_str) else {
        return false;
    };
    stderr
        .metadata()
        .is_ok_and(|found| format!("{}:{}", found.dev(), found.ino()) == said)
}

/// Sends each write as one record.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// The journal that listens at `path`; `None` if there is no socket.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let socket = UnixDatagram::unbound().ok().filter(|_| path.exists())?;
        Some(Self {
            socket,
            path: path.to_owned(),
        })
    }

    fn send_file(&self, record: &[u8]) -> io::Result<()> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut file = File::from(memfd_create(c"supervise-record", flags)?);
        file.write_all(record)?;
        // The journal maps the file, so it must not change any more.
        let seals = SealFlag::F_SEAL_SEAL
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_WRITE;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let address = UnixAddr::new(&self.path)?;
        let file = [file.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&file)];
        let (socket, flags) = (self.socket.as_raw_fd(), MsgFlags::empty());
        sendmsg(socket, &[], &message, flags, Some(&address))?;
        Ok(())
    }
}

impl Write for Journal {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        // The path is resolved each time, because the journal may have been restarted.
        match self.socket.send_to(record, &self.path) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS)) => {
                self.send_file(record)?;
            }
            sent => drop(sent?),
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The fields of a record so far.
#[derive(Debug, Default)]
pub(super) struct Record(Vec<u8>);

impl Record {
    /// Adds a field. Its name becomes capitals, digits and `_`, and begins with a letter.
    pub(super) fn put(&mut self, name: &str, value: &str) {
        let name: String = name
            .to_ascii_uppercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .skip_while(|c| !c.is_ascii_alphabetic())
            .collect();
        if name.is_empty() {
            return;
        }
        self.0.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            let length = u64::try_from(value.len()).unwrap_or(u64::MAX);
            self.0.push(b'\n');
            self.0.extend_from_slice(&length.to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSliceMut, Read as _};

    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::*;

    /// The fields of a record, read as the journal reads them.
    fn fields(mut record: &[u8]) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_owned()).unwrap();
        let mut fields = Vec::new();
        while let Some(end) = record.iter().position(|&byte| byte == b'\n') {
            let (line, rest) = (&record[..end], &record[end + 1..]);
            let equals = line.iter().position(|&byte| byte == b'=');
            if let Some(at) = equals {
                fields.push((text(&line[..at]), text(&line[at + 1..])));
                record = rest;
            } else {
                let (length, rest) = rest.split_at(8);
                let length = u64::from_le_bytes(length.try_into().unwrap());
                let (value, rest) = rest.split_at(usize::try_from(length).unwrap());
                fields.push((text(line), text(value)));
                record = rest.strip_prefix(b"\n").unwrap();
            }
        }
        assert!(record.is_empty());
        fields
    }

    #[test]
    fn a_line_break_cannot_forge_a_field() {
        let mut record = Record::default();
        record.put("MESSAGE", "bad\nWORKER=w1");
        record.put("age_s", "1.5");
        record.put("_1.odd-name", "=");
        record.put("_", "nothing");
        let expected = [
            ("MESSAGE", "bad\nWORKER=w1"),
            ("AGE_S", "1.5"),
            ("ODD_NAME", "="),
        ];
        let found = fields(&record.into_bytes());
        assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn a_record_is_sent_as_a_datagram_or_if_large_as_a_sealed_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        assert!(Journal::at(&path).is_none());
        let journald = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::at(&path).unwrap();
        journal.write_all(b"MESSAGE=small\n").unwrap();
        let mut small = [0; 64];
        let length = journald.recv(&mut small).unwrap();
        assert_eq!(&small[..length], b"MESSAGE=small\n");

        let mut record = Record::default();
        record.put("MESSAGE", &"x".repeat(1 << 20));
        let record = record.into_bytes();
        journal.write_all(&record).unwrap();
        let mut room = nix::cmsg_space!([i32; 1]);
        let mut byte = [0];
        let mut parts = [IoSliceMut::new(&mut byte)];
        let descriptor = journald.as_raw_fd();
        let flags = MsgFlags::empty();
        let message = recvmsg::<UnixAddr>(descriptor, &mut parts, Some(&mut room), flags).unwrap();
        assert_eq!(message.bytes, 0);
        let Some(ControlMessageOwned::ScmRights(files)) = message.cmsgs().unwrap().next() else {
            panic!("no file came");
        };
        let mut file = File::open(format!("/proc/self/fd/{}", files[0])).unwrap();
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).unwrap();
        assert_eq!(seals & libc::F_SEAL_WRITE, libc::F_SEAL_WRITE);
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert!(read == record);
    }

    #[test]
    fn only_the_stderr_that_the_variable_names_is_the_journal() {
        let ours = tempfile::tempfile().unwrap();
        let found = ours.metadata().unwrap();
        let stream = format!("{}:{}", found.dev(), found.ino());
        assert!(is_behind(&ours, Some(stream.as_ref())));
        assert!(!is_behind(&ours, None));
        assert!(!is_behind(&ours, Some("8:1".as_ref())));
        let other = tempfile::tempfile().unwrap();
        assert!(!is_behind(&other, Some(stream.as_ref())));
    }
}
