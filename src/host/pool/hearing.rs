//! The messages of the template and the nests, and the ends of nests and workers.

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
    Nest, News,
    child::{Child, Left},
    memory::Observed,
    words::receive,
};
use crate::{
    host::{Host, clock, hear::Source, keeper::ended, pidfd::PidFd},
    supervisor::{
        action::Action,
        event::{Effect, Ended, Oom},
        pool::event::WorkerEnd,
    },
    units::{Bytes, Signal, WorkerId},
};

impl Host {
    pub(in crate::host) fn on_template(&mut self, token: u64) {
        loop {
            let Some(pool) = &mut self.pool else { return };
            let Ok((word, fds)) = receive(&pool.control, &mut pool.buffer) else {
                return;
            };
            if word.is_empty() {
                // The keeper reports its end.
                self.sources.remove(&token);
                return;
            }
            let text = String::from_utf8_lossy(&word).into_owned();
            let mut words = text.splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("ready"), _, _) => {
                    let words = word.get(6..).unwrap_or_default().to_vec();
                    pool.news.push_back(News::TemplateReady(words));
                }
                (Some("nest"), Some(slot), Some(pid)) => {
                    if let (Ok(slot), Ok(pid)) = (slot.parse(), pid.parse()) {
                        self.add_nest(slot, pid, fds);
                    }
                }
                (Some("none"), Some(slot), Some(errno)) => {
                    if let (Ok(slot), Ok(errno)) = (slot.parse(), errno.parse()) {
                        let error = io::Error::from_raw_os_error(errno);
                        pool.news.push_back(News::NotForked(slot, None, error));
                    }
                }
                _ => {
                    let words = word.get(7..).unwrap_or_default().to_vec();
                    pool.news.push_back(News::TemplateFailed(words));
                }
            }
        }
    }

    fn add_nest(&mut self, slot: u32, pid: i32, fds: Vec<OwnedFd>) {
        let Some(pool) = &mut self.pool else { return };
        let id = pool.next_nest;
        pool.next_nest = id.next();
        let cap = pool.caps.get(&slot).copied().flatten();
        let Some(socket) = fds.into_iter().next() else {
            pool.news.push_back(News::NestGone(slot, Oom::No));
            return;
        };
        let _ = fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        let raw = socket.as_raw_fd();
        pool.nests.insert(slot, Nest { id, socket });
        let run = self.run.as_ref().map(|run| run.id).unwrap_or_default();
        self.carry_out(
            clock::now(),
            Action::Adopt {
                run,
                worker: id,
                pid,
                cap,
            },
        );
        if let Err(error) = self.watch_raw(raw, Source::Nest(slot)) {
            let what = format!("watch the socket of slot {slot}: {error}");
            self.fail(what, None, Effect::Other);
        }
        if let Some(pool) = &mut self.pool {
            pool.news.push_back(News::NestUp(slot));
        }
    }

    pub(in crate::host) fn on_nest(&mut self, slot: u32) {
        loop {
            let Some(pool) = &mut self.pool else { return };
            let Some(nest) = pool.nests.get(&slot) else {
                return;
            };
            let Ok((word, fds)) = receive(&nest.socket, &mut pool.buffer) else {
                return;
            };
            if word.is_empty() {
                // Level-triggered: if it were still watched, its end would wake us again and again.
                let _ = self.epoll.delete(&nest.socket);
                return;
            }
            let text = String::from_utf8_lossy(&word).into_owned();
            let words: Vec<&str> = text.split(' ').collect();
            let number = |at: usize| words.get(at).and_then(|word| word.parse::<i64>().ok());
            let its = number(1).and_then(|it| u64::try_from(it).ok());
            let Some(worker) = its.and_then(|it| pool.numbers.get(&it).copied()) else {
                continue;
            };
            match (words.first(), number(2), number(3)) {
                (Some(&"born"), Some(pid), _) => {
                    let secret = words.get(3).copied().unwrap_or_default();
                    self.add_child((slot, worker), (pid, secret_of(secret)), fds);
                }
                (Some(&"ended"), Some(status), Some(peak)) => {
                    let status = i32::try_from(status).unwrap_or(0);
                    let peak = Bytes(u64::try_from(peak).unwrap_or(0).saturating_mul(1024));
                    self.on_child_ended((slot, worker), ended(status), peak);
                }
                _ => {
                    let errno = number(2).and_then(|errno| i32::try_from(errno).ok());
                    let error = io::Error::from_raw_os_error(errno.unwrap_or(libc::EAGAIN));
                    pool.numbers.retain(|_, known| *known != worker);
                    pool.news
                        .push_back(News::NotForked(slot, Some(worker), error));
                }
            }
        }
    }

    fn add_child(
        &mut self,
        (slot, worker): (u32, WorkerId),
        (pid, secret): (i64, [u8; 16]),
        fds: Vec<OwnedFd>,
    ) {
        let mut fds = fds.into_iter();
        let (Some(socket), Some(page), Some(output)) = (fds.next(), fds.next(), fds.next()) else {
            return;
        };
        let page = Arc::new(File::from(page));
        let socket = UnixStream::from(socket);
        let _ = socket.set_nonblocking(true);
        let token = self.watch(&socket, Source::Child(worker)).ok();
        // RACE: it may have been reaped already. Its pid cannot have been used again so soon.
        let process = i32::try_from(pid)
            .ok()
            .and_then(|pid| PidFd::open(pid).ok());
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
        if let Some(pool) = &mut self.pool {
            pool.children.insert(worker, child);
            pool.outputs.add(worker, output, page);
            pool.news.push_back(News::Born(worker, secret));
        }
    }

    pub(in crate::host) fn on_child_readable(&mut self, worker: WorkerId, token: u64) {
        self.push(worker);
        let Some(pool) = &mut self.pool else { return };
        let Some(child) = pool.children.get_mut(&worker) else {
            return;
        };
        match child.read(&mut pool.buffer) {
            Left::Nothing => {}
            Left::Perhaps => pool.more = true,
            Left::End => {
                let _ = self.epoll.delete(&child.socket);
                child.token = None;
                self.sources.remove(&token);
            }
        }
        // What it printed before it sent this is reported first.
        pool.outputs.read_if_ready(worker, &mut pool.buffer);
        pool.report_outputs();
        pool.news.push_back(News::Said(worker));
    }

    fn on_child_ended(&mut self, (slot, worker): (u32, WorkerId), how: Ended, peak: Bytes) {
        let nest = self.nest_of(slot);
        let oom = nest.map_or(Oom::No, |nest| self.oom_of(nest, how));
        let tracked = nest.and_then(|nest| self.workers.get(&nest));
        let peak = match oom {
            Oom::Cap => tracked.and_then(|it| it.group.peak()).or(Some(peak)),
            Oom::No | Oom::Budget | Oom::Elsewhere => self.peak_at_end(worker, Some(peak)),
        };
        self.end_child(worker, (how, oom, peak));
    }

    /// Reads all that a worker has sent and printed, and then reports its end.
    fn end_child(&mut self, worker: WorkerId, (ended, oom, peak): (Ended, Oom, Option<Bytes>)) {
        let Some(pool) = &mut self.pool else { return };
        pool.numbers.retain(|_, known| *known != worker);
        let (mut progress, mut stays) = ([0; 3], false);
        if let Some(child) = pool.children.get_mut(&worker) {
            while child.read(&mut pool.buffer) == Left::Perhaps {}
            progress = child.progress();
            let has_sent = !child.received.is_empty();
            stays = pool.outputs.end(worker, progress[0], &mut pool.buffer);
            pool.report_outputs();
            if has_sent {
                pool.news.push_back(News::Said(worker));
            }
        }
        if stays && !self.files.has_room(&self.epoll.0) {
            pool.outputs.close_one_ended();
        }
        let [begun, finished, receiving] = progress;
        pool.news.push_back(News::Ended(WorkerEnd {
            worker,
            ended,
            oom,
            peak,
            begun,
            finished,
            receiving,
        }));
    }

    /// A nest has ended: the workers that are left in its group are killed. `peak` is that of the
    /// group, if the OOM killer ended it.
    pub fn on_nest_gone(&mut self, id: WorkerId, oom: Oom, peak: Option<Bytes>) {
        let Some(pool) = &mut self.pool else { return };
        let slot = pool
            .nests
            .iter()
            .find(|(_, nest)| nest.id == id)
            .map(|(slot, _)| *slot);
        let Some(slot) = slot else { return };
        // Its last messages are read first.
        self.on_nest(slot);
        let Some(pool) = &mut self.pool else { return };
        let left: Vec<WorkerId> = pool
            .children
            .iter()
            .filter(|(_, child)| child.slot == slot)
            .map(|(worker, _)| *worker)
            .filter(|worker| pool.numbers.values().any(|known| known == worker))
            .collect();
        for worker in left {
            self.kill_child(worker);
            let peak = peak.or_else(|| self.peak_at_end(worker, None));
            self.end_child(worker, (Ended::Signal(Signal::KILL), oom, peak));
        }
        let Some(pool) = &mut self.pool else { return };
        pool.nests.remove(&slot);
        self.sources
            .retain(|_, source| *source != Source::Nest(slot));
        pool.news.push_back(News::NestGone(slot, oom));
    }
}

/// The bytes that begin each mark in a worker's output (`prints.py`).
fn secret_of(hex: &str) -> [u8; 16] {
    u128::from_str_radix(hex, 16)
        .unwrap_or_default()
        .to_be_bytes()
}
