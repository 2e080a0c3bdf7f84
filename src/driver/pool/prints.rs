//! What tasks print: read from their workers' pipes, passed on line by line with the task's id.
//!
//! Nothing here waits for whoever reads our standard error. While the reader is behind, no pipe is
//! read: the pipes fill up and the tasks that print wait, while the results of others go on.

use std::{collections::BTreeMap, future::poll_fn, time::Duration};

use tokio::time::timeout;

use super::PoolDriver;
use crate::{
    agent::prints::{Lines, Secret, Stream},
    host::{
        clock,
        pool::{News, Piece},
    },
    queue::Task,
    supervisor::{event::Event, pool::event::Seq},
    units::{Signal, WorkerId},
};

/// Where all is to end at once, whoever reads our standard error has so long for what is left.
const HURRY: Duration = Duration::from_secs(1);

/// A pipe has no room for marks of more tasks (64 KiB).
const DELIVERED_MAX: usize = 3000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Prints {
    outputs: BTreeMap<WorkerId, Output>,
    /// The reader of our standard error is behind: no pipe is read.
    pub(super) waits: bool,
    /// All is to end at once.
    pub(super) hurries: bool,
}

#[derive(Debug)]
struct Output {
    stream: Stream,
    tag: Tag,
}

/// What stands before each line of a task.
#[derive(Debug)]
struct Tag {
    worker: WorkerId,
    text: String,
    task: Option<Seq>,
    /// The ids of tasks whose results were delivered while no pipe was read, and of the last one: a
    /// process that outlives it may still print.
    delivered: BTreeMap<Seq, Box<str>>,
}

impl Tag {
    fn of(&mut self, task: Seq, tasks: &BTreeMap<Seq, Task>) -> &str {
        if self.task != Some(task) {
            self.task = Some(task);
            let known = tasks.get(&task).and_then(|it| it.id.as_deref());
            let delivered = self.delivered.get(&task).map(|id| &**id);
            self.text = match known.or(delivered) {
                Some(id) => format!("[task {id}] "),
                // Before its first task: what its imports and its initializer print.
                None if task == 0 => format!("[worker {}] ", self.worker),
                None => format!("[task {task}] "),
            };
        }
        &self.text
    }
}

impl PoolDriver {
    pub(super) fn expect_prints(&mut self, worker: WorkerId, secret: Secret) {
        let tag = Tag {
            worker,
            text: String::new(),
            task: None,
            delivered: BTreeMap::new(),
        };
        let stream = Stream::new(secret);
        self.prints.outputs.insert(worker, Output { stream, tag });
    }

    /// Passes on the lines that `feed` finds.
    fn pass_on(&mut self, worker: WorkerId, feed: impl FnOnce(&mut Stream, Lines<'_>)) {
        let Some(output) = self.prints.outputs.get_mut(&worker) else {
            return;
        };
        let Output { stream, tag } = output;
        let tasks = &self.tasks;
        let mut text = Vec::new();
        feed(stream, &mut |task, line| {
            text.extend_from_slice(tag.of(task, tasks).as_bytes());
            text.extend_from_slice(line);
            text.push(b'\n');
        });
        if text.is_empty() {
            return;
        }
        self.parts.onlooker.print(&text);
        if !self.prints.waits && !self.parts.onlooker.has_room() {
            self.prints.waits = true;
            self.host.get_mut().take_prints(false);
        }
    }

    pub(super) fn on_printed(&mut self, worker: WorkerId, piece: &Piece) {
        self.pass_on(worker, |stream, lines| {
            stream.feed(&piece.bytes, piece.begun, piece.is_settled, lines);
        });
    }

    pub(super) fn on_prints_over(&mut self, worker: WorkerId) {
        self.pass_on(worker, |stream, lines| stream.end(stream.last(), lines));
        self.prints.outputs.remove(&worker);
    }

    /// The worker has ended. What it has printed was read before, unless it waits in the pipe.
    pub(super) fn end_prints(&mut self, worker: WorkerId, begun: Seq) {
        if !self.prints.waits {
            self.pass_on(worker, |stream, lines| stream.end(begun, lines));
        }
    }

    /// A task has ended in its worker. What it has printed was read before, unless it waits.
    pub(super) fn end_task_prints(&mut self, worker: WorkerId, seq: Seq) {
        let output = self.prints.outputs.get(&worker);
        if !self.prints.waits && output.is_some_and(|it| it.stream.has_line_of(seq)) {
            self.pass_on(worker, |stream, lines| stream.end_task(seq, lines));
        }
    }

    /// The result of a task is delivered: its id is needed for what was not read yet.
    pub(super) fn note_delivered(&mut self, worker: WorkerId, seq: Seq, id: Option<&str>) {
        if let Some(id) = id
            && let Some(Output { tag, .. }) = self.prints.outputs.get_mut(&worker)
        {
            if !self.prints.waits {
                tag.delivered.clear();
            } else if tag.delivered.len() >= DELIVERED_MAX {
                tag.delivered.pop_first();
            }
            tag.delivered.insert(seq, id.into());
        }
    }

    pub(super) fn take_prints_again(&mut self) {
        self.prints.waits = false;
        self.host.get_mut().take_prints(true);
    }

    /// All processes have ended: what they have printed is passed on to its last line.
    pub(super) async fn finish_prints(&mut self) {
        self.host.get_mut().take_prints(false);
        self.prints.waits = true;
        while self.host.get_mut().read_prints() {
            while let Some(news) = self.host.get_mut().poll_news() {
                match news {
                    News::Printed { worker, piece } => self.on_printed(worker, &piece),
                    News::PrintsOver(worker) => self.on_prints_over(worker),
                    _ => {}
                }
            }
            if self.until_room(false).await {
                break;
            }
        }
        let left: Vec<WorkerId> = self.prints.outputs.keys().copied().collect();
        for worker in left {
            self.on_prints_over(worker);
        }
    }

    /// Waits until there is room for more, or until all was written. True: it is given up, after
    /// one more signal, or in time where all is to end at once.
    pub(super) async fn until_room(&mut self, all: bool) -> bool {
        if self.prints.hurries || self.reader_is_gone() {
            return timeout(HURRY, self.room(all)).await.unwrap_or(true);
        }
        self.room(all).await
    }

    async fn room(&mut self, all: bool) -> bool {
        loop {
            let onlooker = &mut self.parts.onlooker;
            let room = poll_fn(|cx| {
                if all {
                    onlooker.poll_finish(cx)
                } else {
                    onlooker.poll_room(cx)
                }
            });
            tokio::select! {
                biased;
                () = room => return false,
                woken = self.host.readable_mut() => {
                    if let Ok(mut guard) = woken {
                        guard.get_inner_mut().collect(clock::now());
                        guard.clear_ready();
                    }
                }
            }
            while let Some(event) = self.host.get_mut().poll_event() {
                if matches!(event, Event::Signalled(Signal::TERM | Signal::INT)) {
                    return true;
                }
            }
        }
    }
}
