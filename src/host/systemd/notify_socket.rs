//! The socket to which the command and its workers send messages about themselves (sd_notify(3)).

use std::{
    fs::{self, Permissions},
    io::{self, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{
            fs::{PermissionsExt as _, lchown},
            net::UnixDatagram,
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt::PassCred,
};

use crate::escape;

/// Messages that are read at once. The next ones are read after other events were handled.
const READ_MAX: usize = 32;
/// The longest text of a status, in characters.
const STATUS_MAX: usize = 200;

/// See the module.
#[derive(Debug)]
pub(super) struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
}

/// One message, without the variables that mean nothing here.
#[derive(Debug, Default, Eq, PartialEq)]
pub(in crate::host) struct NotifyMessage {
    /// The process that has sent it, as the kernel says (unix(7), `SCM_CREDENTIALS`). It may have
    /// ended.
    pub(in crate::host) sender: Option<i32>,
    /// `READY=1`.
    pub(in crate::host) ready: bool,
    /// `STATUS=`, safe for a terminal.
    pub(in crate::host) status: Option<String>,
    /// `EXTEND_TIMEOUT_USEC=`.
    pub(in crate::host) extend: Option<Duration>,
}

impl NotifySocket {
    /// Binds the path, and replaces an old socket there. Only this user can send messages, given by
    /// its ids.
    pub(super) fn open(path: &Path, user: Option<(u32, u32)>) -> io::Result<Self> {
        let _ = fs::remove_file(path);
        let socket = UnixDatagram::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        if let Some((user, group)) = user {
            lchown(path, Some(user), Some(group))?;
        }
        socket.set_nonblocking(true)?;
        setsockopt(&socket, PassCred, &true)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The messages since the last call, or the first of them if there are many.
    pub(super) fn take(&self) -> Vec<NotifyMessage> {
        std::iter::from_fn(|| self.receive())
            .take(READ_MAX)
            .collect()
    }

    fn receive(&self) -> Option<NotifyMessage> {
        let mut text = [0; 4096];
        // The credentials come first, and there is room for nothing else: the kernel closes the
        // descriptors that a message may have (unix(7)).
        let mut control = nix::cmsg_space!(UnixCredentials);
        let (fd, flags) = (self.socket.as_raw_fd(), MsgFlags::MSG_CMSG_CLOEXEC);
        let mut into = [IoSliceMut::new(&mut text)];
        let received = recvmsg::<()>(fd, &mut into, Some(&mut control), flags).ok()?;
        let length = received.bytes;
        let sender = received.cmsgs().ok().and_then(|mut parts| {
            parts.find_map(|part| match part {
                ControlMessageOwned::ScmCredentials(sender) => Some(sender.pid()),
                _ => None,
            })
        });
        Some(NotifyMessage {
            // Zero: a process in another pid namespace, which has no pid in ours.
            sender: sender.filter(|pid| *pid > 0),
            ..NotifyMessage::parse(&text[..length])
        })
    }
}

impl NotifyMessage {
    fn parse(text: &[u8]) -> Self {
        let mut message = Self::default();
        for line in text.split(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(line);
            match line.split_once('=') {
                Some(("READY", "1")) => message.ready = true,
                Some(("STATUS", text)) => {
                    let text: String = text.trim().chars().take(STATUS_MAX).collect();
                    message.status = Some(escape::line(&text).into_owned());
                }
                Some(("EXTEND_TIMEOUT_USEC", usec)) => {
                    message.extend = usec.trim().parse().ok().map(Duration::from_micros);
                }
                _ => {}
            }
        }
        message
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages that the socket has received, each sent as one of these.
    fn received(sent: &[&[u8]]) -> Vec<NotifyMessage> {
        let folder = tempfile::tempdir().unwrap();
        let socket = NotifySocket::open(&folder.path().join("notify"), None).unwrap();
        let command = UnixDatagram::unbound().unwrap();
        for message in sent {
            command.send_to(message, socket.path()).unwrap();
        }
        let all = socket.take();
        assert!(socket.take().is_empty());
        all
    }

    #[test]
    fn a_message_without_the_line_ready_1_does_not_mean_ready() {
        let all = received(&[b"STATUS=READY=1 soon", b"STATUS=up\nREADY=1"]);
        let ready: Vec<_> = all.iter().map(|message| message.ready).collect();
        assert_eq!(ready, [false, true]);
    }

    #[test]
    fn a_message_has_its_sender_its_status_and_its_extension() {
        let [message] = &received(&[b"EXTEND_TIMEOUT_USEC=2500000\nSTATUS=batch \x1b[2J7\n"])[..]
        else {
            panic!("one message was sent")
        };
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(message.sender, Some(own));
        assert_eq!(message.extend, Some(Duration::from_millis(2500)));
        assert_eq!(message.status.as_deref(), Some("batch \\u{1b}[2J7"));
    }

    #[test]
    fn a_number_that_is_none_and_a_text_without_end_do_no_harm() {
        let long = [b"STATUS=".to_vec(), vec![b'x'; 1000]].concat();
        let all = received(&[
            b"EXTEND_TIMEOUT_USEC=-1",
            b"EXTEND_TIMEOUT_USEC=soon",
            &long,
        ]);
        assert_eq!(all[0].extend, None);
        assert_eq!(all[1].extend, None);
        assert_eq!(all[2].status.as_ref().map(String::len), Some(STATUS_MAX));
    }
}
