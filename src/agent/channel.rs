//! Questions to agents and their answers, by way of files: a question for a process lies in `ask`
//! under its pid, the answer in `said`.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    supervisor::action::{About, AgentAsk},
    units::WorkerId,
};

use super::{
    Place,
    files::Directory,
    page::{self, Page},
    stacks::{Note, Stacks},
};

/// Frames kept of each traced allocation: the line itself, and enough of those who called it to
/// reach the application from within a library.
const FRAMES: u32 = 6;

/// The directory and what is under way in it.
#[derive(Debug)]
pub(super) struct Channel {
    directory: Directory,
    pub(super) page: Page,
    pub(super) stacks: Stacks,
    next: u64,
    /// One for each worker at the most.
    pending: BTreeMap<WorkerId, Pending>,
}

/// A question that is with a process.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Pending {
    id: u64,
    pid: i32,
    about: Option<About>,
}

/// What is under way, for a successor.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Handed {
    page: page::Handed,
    stacks: Vec<Note>,
    next: u64,
    pending: BTreeMap<WorkerId, Pending>,
    /// The directory's name and its lock. Earlier versions had neither.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    lock: Option<RawFd>,
}

impl Channel {
    pub(super) fn hand_over(&self) -> Handed {
        Handed {
            page: self.page.hand_over(),
            stacks: self.stacks.notes().to_vec(),
            next: self.next,
            pending: self.pending.clone(),
            name: Some(self.directory.name().to_owned()),
            lock: self.lock(),
        }
    }

    /// The descriptor of the directory's lock.
    pub(super) fn lock(&self) -> Option<RawFd> {
        self.directory.lock()
    }

    pub(super) fn take_over(
        place: &Place,
        handed: Handed,
        adopt: fn(RawFd) -> Option<OwnedFd>,
    ) -> io::Result<Self> {
        let lock = handed.lock.and_then(adopt);
        let directory = Directory::take_over(place, (handed.name.as_deref(), lock))?;
        let page = Page::take_over(directory.page()?, handed.page);
        let stacks = Stacks::take_over(directory.stacks()?, handed.stacks)?;
        Ok(Self {
            directory,
            page,
            stacks,
            next: handed.next,
            pending: handed.pending,
        })
    }

    pub(super) fn install(place: &Place) -> io::Result<Self> {
        let directory = Directory::install(place)?;
        let page = Page::create(directory.new_page(&page::empty())?);
        let stacks = Stacks::create(directory.new_stacks()?)?;
        directory.give(place.owner)?;
        Ok(Self {
            directory,
            page,
            stacks,
            next: 1,
            pending: BTreeMap::new(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn answers(&self) -> PathBuf {
        self.directory.said()
    }

    pub(super) fn ask(&mut self, worker: WorkerId, pid: i32, ask: &AgentAsk) -> io::Result<()> {
        let id = self.next;
        self.next += 1;
        self.directory
            .write_ask(pid, &question(id, ask).to_string())?;
        let about = match ask {
            AgentAsk::Report { about, .. } => Some(about.clone()),
            AgentAsk::Collect | AgentAsk::Open { .. } | AgentAsk::Close => None,
        };
        self.pending.insert(worker, Pending { id, pid, about });
        Ok(())
    }

    /// The answers that have come, each with whom it is about if it is to be a report.
    pub(super) fn collect(&mut self) -> Vec<(WorkerId, Option<About>, Value)> {
        let directory = &self.directory;
        let mut answers = Vec::new();
        self.pending.retain(|worker, pending| {
            let Some(answer) = directory.read_answer(pending.pid, pending.id) else {
                return true;
            };
            answers.push((*worker, pending.about.take(), answer));
            false
        });
        answers
    }

    /// A worker has ended: it answers nothing any more. What it ran is still asked for.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        if let Some(pending) = self.pending.remove(&worker) {
            self.directory.remove_ask(pending.pid);
        }
    }
}

fn question(id: u64, ask: &AgentAsk) -> Value {
    match ask {
        AgentAsk::Collect => json!({"id": id, "do": "gc"}),
        AgentAsk::Open { room } => {
            json!({"id": id, "do": "open", "frames": FRAMES, "room": room.get()})
        }
        AgentAsk::Close => json!({"id": id, "do": "close"}),
        AgentAsk::Report {
            about,
            room,
            time_box,
        } => json!({
            "id": id,
            "do": "report",
            "box_s": time_box.as_secs_f64(),
            "room": room.get(),
            "private": about.private.get(),
            "baseline": about.baseline.unwrap_or_default().get(),
            "cause": about.cause.to_string(),
        }),
    }
}
