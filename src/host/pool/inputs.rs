//! The messages of the template and the fork servers, and the ends of fork servers and workers.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use bytes::BytesMut;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{
    ForkServer, News, PoolContext, PoolHost,
    child::{Child, Left},
    memory::Observed,
    messages::receive,
};
use crate::{
    host::{
        clock,
        context::Context,
        held::{ForkServerId, HeldId},
        kernel_events::Source,
        process::{keeper::ended, open_files::Waiting, pidfd::PidFd},
        workers::ForkServerNews,
    },
    protocol::{
        document, fork_server,
        mark::Secret,
        pool_page::Progress,
        template::{self, FromTemplate},
    },
    supervisor::{
        input::{Effect, Ended, Oom},
        pool::input::WorkerEnd,
    },
    units::{Bytes, Signal, WorkerId},
};

impl PoolHost {
    pub(super) fn on_template(&mut self, with: &mut PoolContext<'_>, token: u64) {
        loop {
            let Ok((message, fds)) = receive(&self.control, &mut self.buffer) else {
                return;
            };
            if message.is_empty() {
                // The keeper reports its end.
                with.context.watches_mut().forget(token);
                return;
            }
            let news = match template::decode(&message) {
                Some(FromTemplate::Ready(imports)) => News::TemplateReady(imports),
                Some(FromTemplate::Failed(error)) => {
                    News::TemplateFailed(error.get().as_bytes().to_vec())
                }
                Some(FromTemplate::ForkServer { slot, pid }) => {
                    self.add_fork_server(with, slot, pid, fds);
                    continue;
                }
                Some(FromTemplate::Refused { slot, errno }) => {
                    News::NotForked(slot, None, io::Error::from_raw_os_error(errno))
                }
                None => {
                    let why = "the template sent a malformed message";
                    News::TemplateFailed(document::error("RuntimeError", why))
                }
            };
            self.news.push_back(news);
        }
    }

    fn add_fork_server(
        &mut self,
        with: &mut PoolContext<'_>,
        slot: u32,
        pid: i32,
        fds: Vec<OwnedFd>,
    ) {
        let id = ForkServerId(self.next_fork_server);
        self.next_fork_server += 1;
        let cap = self.caps.get(&slot).copied().flatten();
        let Some(socket) = fds.into_iter().next() else {
            self.news.push_back(News::ForkServerGone(slot, Oom::No));
            return;
        };
        let _ = fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        let raw = socket.as_raw_fd();
        self.fork_servers.insert(slot, ForkServer { id, socket });
        let waiting = Waiting {
            id: HeldId::ForkServer(id),
            pid,
            cap,
        };
        with.workers.adopt(with.context, with.groups, waiting);
        if let Err(error) = with
            .context
            .watches_mut()
            .watch_raw(raw, Source::ForkServer(slot))
        {
            let what = format!("watch the socket of slot {slot}: {error}");
            with.context.fail(what, None, Effect::Other);
        }
        self.news.push_back(News::ForkServerUp(slot));
    }

    pub(super) fn on_fork_server(&mut self, with: &mut PoolContext<'_>, slot: u32) {
        loop {
            let Some(server) = self.fork_servers.get(&slot) else {
                return;
            };
            let Ok((message, fds)) = receive(&server.socket, &mut self.buffer) else {
                return;
            };
            if message.is_empty() {
                // The watch is level-triggered. Without this, the end of the socket would wake the
                // loop again and again.
                with.context.watches().mute(&server.socket);
                return;
            }
            match fork_server::Message::read(&message) {
                Some(message) => self.on_fork_server_message(with, slot, message, fds),
                None => {
                    let what = format!(
                        "the fork server of slot {slot} sent a malformed message; killing it"
                    );
                    with.context.fail(what, None, Effect::Other);
                    let id = HeldId::ForkServer(server.id);
                    with.workers
                        .kill(with.context, with.groups, clock::now(), id);
                }
            }
        }
    }

    fn on_fork_server_message(
        &mut self,
        with: &mut PoolContext<'_>,
        slot: u32,
        message: fork_server::Message,
        fds: Vec<OwnedFd>,
    ) {
        let Some(worker) = self.numbers.get(&message.number).copied() else {
            return;
        };
        match message.news {
            fork_server::News::Forked { pid, secret } => {
                self.add_child(with, (slot, worker), (pid, secret), fds);
            }
            fork_server::News::Ended { status, peak_kib } => {
                let peak = Bytes(peak_kib.saturating_mul(1024));
                self.on_child_ended(with, (slot, worker), ended(status), peak);
            }
            fork_server::News::Refused { errno } => {
                let error = io::Error::from_raw_os_error(errno);
                self.numbers.remove(&message.number);
                self.news
                    .push_back(News::NotForked(slot, Some(worker), error));
            }
        }
    }

    fn add_child(
        &mut self,
        with: &mut PoolContext<'_>,
        (slot, worker): (u32, WorkerId),
        (pid, secret): (i32, Secret),
        fds: Vec<OwnedFd>,
    ) {
        let mut fds = fds.into_iter();
        let (Some(socket), Some(page), Some(output)) = (fds.next(), fds.next(), fds.next()) else {
            return;
        };
        let page = Arc::new(File::from(page));
        let socket = UnixStream::from(socket);
        let _ = socket.set_nonblocking(true);
        let token = with
            .context
            .watches_mut()
            .watch(&socket, Source::Child(worker))
            .ok();
        // RACE: the worker may have been reaped already. Its pid cannot have been used again so
        // soon.
        let process = PidFd::open(pid).ok();
        let child = Child {
            slot,
            process,
            socket,
            token,
            page: Arc::clone(&page),
            received: BytesMut::new(),
            unsent: BytesMut::new(),
            waits: false,
            observed: Observed::default(),
        };
        self.children.insert(worker, child);
        self.outputs.add(worker, output, page);
        self.news.push_back(News::Forked(worker, pid, secret));
    }

    pub(super) fn on_child_readable(
        &mut self,
        context: &mut Context,
        worker: WorkerId,
        token: u64,
    ) {
        self.push(context, worker);
        let Some(child) = self.children.get_mut(&worker) else {
            return;
        };
        match child.read(&mut self.buffer) {
            Left::Nothing => {}
            Left::Perhaps => self.more = true,
            Left::End => {
                context.watches().mute(&child.socket);
                child.token = None;
                context.watches_mut().forget(token);
            }
        }
        // Output that it printed before it sent this must be reported first.
        self.outputs.read_if_ready(worker, &mut self.buffer);
        self.report_outputs();
        self.news.push_back(News::Received(worker));
    }

    fn on_child_ended(
        &mut self,
        with: &mut PoolContext<'_>,
        (slot, worker): (u32, WorkerId),
        how: Ended,
        peak: Bytes,
    ) {
        let server = self.fork_server_of(slot);
        let oom = server.map_or(Oom::No, |server| {
            with.workers.oom_of(with.context, with.groups, server, how)
        });
        let peak = match oom {
            Oom::Cap => {
                let of_group = server.and_then(|server| with.workers.peak(server));
                of_group.or(Some(peak))
            }
            Oom::No | Oom::Budget | Oom::Elsewhere => {
                self.peak_at_end(with.workers, worker, Some(peak))
            }
        };
        self.end_child(with, worker, (how, oom, peak));
    }

    /// Reads all that a worker has sent and printed, and then reports its end.
    fn end_child(
        &mut self,
        with: &mut PoolContext<'_>,
        worker: WorkerId,
        (ended, oom, peak): (Ended, Oom, Option<Bytes>),
    ) {
        self.numbers.retain(|_, known| *known != worker);
        let (mut progress, mut stays) = (Progress::default(), false);
        if let Some(child) = self.children.get_mut(&worker) {
            while child.read(&mut self.buffer) == Left::Perhaps {}
            progress = child.progress();
            let has_sent = !child.received.is_empty();
            stays = self.outputs.end(worker, progress.begun, &mut self.buffer);
            self.report_outputs();
            if has_sent {
                self.news.push_back(News::Received(worker));
            }
        }
        if stays && !with.workers.has_room(with.context) {
            self.outputs.close_one_ended();
        }
        let Progress {
            begun,
            finished,
            receiving,
        } = progress;
        self.news.push_back(News::Ended(WorkerEnd {
            worker,
            ended,
            oom,
            peak,
            begun,
            finished,
            receiving,
        }));
    }

    /// Takes in what has happened to fork servers.
    pub(super) fn on_fork_server_news(&mut self, with: &mut PoolContext<'_>) {
        for news in with.workers.take_fork_server_news() {
            match news {
                ForkServerNews::Ended { id, oom, peak } => {
                    self.on_fork_server_gone(with, id, oom, peak);
                }
                ForkServerNews::ChildKilled => self.news.push_back(News::ChildKilled),
            }
        }
    }

    /// A fork server has ended. The workers that are left in its cgroup are killed. `peak` is the
    /// peak of the cgroup, if the OOM killer ended the fork server.
    fn on_fork_server_gone(
        &mut self,
        with: &mut PoolContext<'_>,
        id: ForkServerId,
        oom: Oom,
        peak: Option<Bytes>,
    ) {
        let Some(slot) = self.slot_of(id) else { return };
        // Its last messages are read first.
        self.on_fork_server(with, slot);
        let left: Vec<WorkerId> = self
            .children
            .iter()
            .filter(|(_, child)| child.slot == slot)
            .map(|(worker, _)| *worker)
            .filter(|worker| self.numbers.values().any(|known| known == worker))
            .collect();
        for worker in left {
            self.kill(worker);
            let peak = peak.or_else(|| self.peak_at_end(with.workers, worker, None));
            self.end_child(with, worker, (Ended::Signal(Signal::KILL), oom, peak));
        }
        self.fork_servers.remove(&slot);
        with.context
            .watches_mut()
            .forget_sources(&[Source::ForkServer(slot)]);
        self.news.push_back(News::ForkServerGone(slot, oom));
    }
}
