//! Output of tasks: read from the workers' pipes and forwarded line by line with the task's id.
//!
//! The loop does not wait for the reader of standard error. While that reader is slow, the pipes
//! are not read. They fill up, and tasks that print block; all other tasks and results continue.

use std::{collections::BTreeMap, future::poll_fn, time::Duration};

use tokio::time::timeout;

use super::PoolDriver;
use crate::{
    agent::prints::{Lines, Stream},
    host::{
        clock,
        pool::{News, Piece},
    },
    protocol::mark::Secret,
    queue::Task,
    supervisor::{input::Input, pool::input::Seq},
    units::{Signal, WorkerId},
};

/// In an urgent stop, the reader of standard error has this time for the remaining output.
const URGENT_TIMEOUT: Duration = Duration::from_secs(1);

/// The maximum number of task marks in a full pipe (64 KiB).
const DELIVERED_MAX: usize = 3000;

/// What the loop waits for at its end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    /// The observer has room for more output.
    HasRoom,
    /// The observer has written everything.
    AllWritten,
}

/// A signal or the timeout has ended a wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct GaveUp;

/// The outputs of all workers.
#[derive(Debug, Default)]
pub(super) struct Prints {
    outputs: BTreeMap<WorkerId, Output>,
    /// The reader of standard error is slow, so the pipes are not read.
    pub(super) is_paused: bool,
    /// A second signal has asked the pool to stop at once.
    pub(super) is_urgent: bool,
}

#[derive(Debug)]
struct Output {
    stream: Stream,
    tag: Tag,
}

/// The prefix of each line of a task.
#[derive(Debug)]
struct Tag {
    worker: WorkerId,
    text: String,
    task: Option<Seq>,
    /// The ids of delivered tasks whose output may still arrive: the last task, whose child
    /// processes may still print, and all tasks that were delivered while the pipes were not read.
    delivered: BTreeMap<Seq, Box<str>>,
}

impl Tag {
    fn for_task(&mut self, task: Seq, tasks: &BTreeMap<Seq, Task>) -> &str {
        if self.task != Some(task) {
            self.task = Some(task);
            let known = tasks.get(&task).and_then(|it| it.id.as_deref());
            let delivered = self.delivered.get(&task).map(|id| &**id);
            self.text = match known.or(delivered) {
                Some(id) => format!("[task {id}] "),
                // Imports and the initializer print before the first task.
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

    /// Prints the lines that `feed` finds, each with its tag.
    fn forward(&mut self, worker: WorkerId, feed: impl FnOnce(&mut Stream, Lines<'_>)) {
        let Some(output) = self.prints.outputs.get_mut(&worker) else {
            return;
        };
        let Output { stream, tag } = output;
        let tasks = &self.tasks;
        let mut text = Vec::new();
        feed(stream, &mut |task, line| {
            text.extend_from_slice(tag.for_task(task, tasks).as_bytes());
            text.extend_from_slice(line);
            text.push(b'\n');
        });
        if text.is_empty() {
            return;
        }
        self.parts.observer.print(&text);
        if !self.prints.is_paused && !self.parts.observer.has_room() {
            self.pause_prints();
        }
    }

    pub(super) fn on_printed(&mut self, worker: WorkerId, piece: &Piece) {
        self.forward(worker, |stream, lines| {
            stream.feed(&piece.bytes, piece.begun, piece.is_settled, lines);
        });
    }

    pub(super) fn on_prints_over(&mut self, worker: WorkerId) {
        self.forward(worker, |stream, lines| stream.end(stream.last(), lines));
        self.prints.outputs.remove(&worker);
    }

    /// The worker has ended. Its output was read before, unless the pipes are not read.
    pub(super) fn end_prints(&mut self, worker: WorkerId, begun: Seq) {
        if !self.prints.is_paused {
            self.forward(worker, |stream, lines| stream.end(begun, lines));
        }
    }

    /// A task has ended. Its output was read before, unless the pipes are not read.
    pub(super) fn end_task_prints(&mut self, worker: WorkerId, seq: Seq) {
        let output = self.prints.outputs.get(&worker);
        if !self.prints.is_paused && output.is_some_and(|it| it.stream.has_line_of(seq)) {
            self.forward(worker, |stream, lines| stream.end_task(seq, lines));
        }
    }

    /// The result of a task is delivered. Its id is kept for output that was not read yet.
    pub(super) fn note_delivered(&mut self, worker: WorkerId, seq: Seq, id: Option<&str>) {
        if let Some(id) = id
            && let Some(Output { tag, .. }) = self.prints.outputs.get_mut(&worker)
        {
            if !self.prints.is_paused {
                tag.delivered.clear();
            } else if tag.delivered.len() >= DELIVERED_MAX {
                tag.delivered.pop_first();
            }
            tag.delivered.insert(seq, id.into());
        }
    }

    fn pause_prints(&mut self) {
        self.prints.is_paused = true;
        self.host.get_mut().take_prints(false);
    }

    pub(super) fn resume_prints(&mut self) {
        self.prints.is_paused = false;
        self.host.get_mut().take_prints(true);
    }

    /// All processes have ended: forwards the rest of their output.
    pub(super) async fn finish_prints(&mut self) {
        self.pause_prints();
        while self.host.get_mut().read_prints() {
            while let Some(news) = self.host.get_mut().poll_news() {
                match news {
                    News::Printed { worker, piece } => self.on_printed(worker, &piece),
                    News::PrintsOver(worker) => self.on_prints_over(worker),
                    _ => {}
                }
            }
            if self.wait_until(Until::HasRoom).await.is_err() {
                break;
            }
        }
        let left: Vec<WorkerId> = self.prints.outputs.keys().copied().collect();
        for worker in left {
            self.on_prints_over(worker);
        }
    }

    /// Waits for the observer, in an urgent stop not longer than [`URGENT_TIMEOUT`].
    pub(super) async fn wait_until(&mut self, until: Until) -> Result<(), GaveUp> {
        if self.prints.is_urgent || self.reader_is_gone() {
            let waited = timeout(URGENT_TIMEOUT, self.wait_or_signal(until)).await;
            return waited.unwrap_or(Err(GaveUp));
        }
        self.wait_or_signal(until).await
    }

    async fn wait_or_signal(&mut self, until: Until) -> Result<(), GaveUp> {
        loop {
            let observer = &mut self.parts.observer;
            let reached = poll_fn(|cx| match until {
                Until::HasRoom => observer.poll_room(cx),
                Until::AllWritten => observer.poll_finish(cx),
            });
            tokio::select! {
                biased;
                () = reached => return Ok(()),
                woken = self.host.readable_mut() => {
                    if let Ok(mut guard) = woken {
                        guard.get_inner_mut().collect(clock::now());
                        guard.clear_ready();
                    }
                }
            }
            while let Some(event) = self.host.get_mut().poll_event() {
                if matches!(event, Input::Signalled(Signal::TERM | Signal::INT)) {
                    return Err(GaveUp);
                }
            }
        }
    }
}
