//! Messages to the service manager, and the readiness of the command: systemd's notification
//! protocol in both directions, probes of the service, and a container's termination message.

mod copies;
mod notify_socket;
mod probe;
mod sd_notify;
mod termination_message;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{context::Context, kernel_events::Source, memory::procfs::Proc, process::users};
use crate::{
    escape,
    servers::profile::Workers,
    supervisor::{
        action::Notice,
        input::Effect,
        spec::{Kind, ReadyWhen, Spec},
    },
    units::Timestamp,
};
use copies::Copies;
pub(super) use notify_socket::NotifyMessage;
use notify_socket::NotifySocket;
use probe::Probe;
use sd_notify::SdNotify;
pub(super) use termination_message::TerminationMessage;

/// See the module.
#[derive(Debug)]
pub(super) struct Systemd {
    sd_notify: SdNotify,
    termination_message: TerminationMessage,
    /// Wakes the loop when a probe was answered.
    waker: Arc<EventFd>,
    probe: Option<Probe>,
    copies: Copies,
    /// The socket for messages of the command, with its token.
    notify_socket: Option<(NotifySocket, u64)>,
}

impl Systemd {
    pub(super) fn new(termination_message: TerminationMessage) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            sd_notify: SdNotify::find(),
            termination_message,
            waker: Arc::new(EventFd::from_flags(flags)?),
            probe: None,
            copies: Copies::default(),
            notify_socket: None,
        })
    }

    /// Watches for answers to probes.
    pub(super) fn watch(&self, context: &mut Context) -> io::Result<()> {
        let watches = context.watches_mut();
        watches.watch(&*self.waker, Source::Waker).map(drop)
    }

    /// Whether a service manager has asked for notifications.
    pub(super) const fn has_manager(&self) -> bool {
        self.sd_notify.has_manager()
    }

    /// The interval of watchdog messages to the service manager.
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.sd_notify.watchdog()
    }

    /// Sends a watchdog message to the service manager.
    pub(super) fn send_watchdog(&self) {
        self.sd_notify.send_watchdog();
    }

    /// Sends a notice to the service manager.
    pub(super) fn notify(&self, now: Timestamp, notice: &Notice) {
        self.sd_notify.send_notice(notice, now.as_nanos() / 1000);
    }

    /// Whether there is a file for the termination message.
    pub(super) const fn has_termination_message(&self) -> bool {
        self.termination_message.is_kept()
    }

    /// Replaces the text of the termination message.
    pub(super) fn write_termination_message(&mut self, context: &mut Context, text: &str) {
        if let Err((path, error)) = self.termination_message.write(&escape::lines(text)) {
            let what = format!("write the termination log {}: {error}", path.display());
            context.fail(what, None, Effect::Other);
        }
    }

    /// Opens the socket for messages of the command. It must open only if readiness depends on it.
    pub(super) fn open_notify_socket(&mut self, context: &mut Context) -> io::Result<()> {
        let path = notify_path(context.spec());
        let user = context.spec().command.user.as_deref().and_then(users::ids);
        let opened = NotifySocket::open(&path, user).and_then(|socket| {
            let token = context.watches_mut().watch(&socket, Source::NotifySocket)?;
            self.notify_socket = Some((socket, token));
            Ok(())
        });
        match context.spec().ready.when {
            ReadyWhen::Notify => opened,
            ReadyWhen::Auto | ReadyWhen::Tcp(_) | ReadyWhen::Http(_) | ReadyWhen::Delay(_) => {
                Ok(())
            }
        }
    }

    /// The path of that socket.
    pub(super) fn notify_path(&self) -> Option<&Path> {
        self.notify_socket.as_ref().map(|(socket, _)| socket.path())
    }

    /// Starts to probe the service, if the settings ask for it. A fleet is ready when a copy is.
    pub(super) fn start_probe(&mut self, spec: &Spec) {
        if !is_fleet(spec) {
            self.probe = Probe::of_service(&spec.ready.when, Arc::clone(&self.waker));
        }
    }

    /// Whether the probe of the service was answered since the last call.
    pub(super) fn take_answer(&self) -> bool {
        let _ = self.waker.read();
        self.probe
            .as_ref()
            .is_some_and(|probe| probe.take().is_some())
    }

    /// The messages of the command since the last call, or the first of them if there are many.
    pub(super) fn take_messages(&self) -> Vec<NotifyMessage> {
        let socket = self.notify_socket.as_ref();
        socket.map_or_else(Vec::new, |(socket, _)| socket.take())
    }

    /// A process of the command has sent its readiness message. Returns whether the service is
    /// ready: a fleet is ready when a copy is.
    pub(super) fn on_ready_message(&mut self, context: &Context, sender: Option<i32>) -> bool {
        if let Some(sender) = sender {
            self.copies.on_notified(context.proc(), &[sender]);
        }
        !is_fleet(context.spec())
    }

    /// A worker accepts connections. Returns whether it is ready, too: for a copy of a fleet, the
    /// settings may ask for more.
    pub(super) fn is_ready(&mut self, context: &Context, pid: i32) -> bool {
        let (spec, how) = (context.spec(), &context.spec().ready.when);
        !is_fleet(spec) || self.copies.accepts((how, &self.waker), context.proc(), pid)
    }

    /// The copies of a fleet that have become ready, or have answered with the status of a failure.
    pub(super) fn take_copies(&mut self, proc: &Proc) -> Vec<(i32, Result<(), u16>)> {
        self.copies.take(proc)
    }

    /// The copies that accept connections and are not known to be ready.
    pub(super) fn waiting_copies(&self) -> Vec<i32> {
        self.copies.waiting()
    }

    /// Ends probes and the socket for messages, at the end of this start of the command.
    pub(super) fn end_start(&mut self, context: &mut Context) {
        self.probe = None;
        self.copies.clear();
        if let Some((socket, token)) = self.notify_socket.take() {
            context.watches_mut().unwatch(&socket, token);
        }
    }
}

fn is_fleet(spec: &Spec) -> bool {
    matches!(spec.kind, Kind::Server(profile) if profile.workers == Workers::Copies)
}

fn notify_path(spec: &Spec) -> PathBuf {
    spec.control.socket.with_extension("notify")
}
