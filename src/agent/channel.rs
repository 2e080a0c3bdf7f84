//! Questions to agents, their answers, and their counters.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Place,
    files::Directory,
    page::{Page, PageState},
    stacks::{Note, Stacks},
};
use crate::{
    protocol::{
        agent_page,
        question::{Answer, Ask, Question, When},
    },
    supervisor::{
        action::{About, AgentAsk, ReportWhen},
        input::Counts,
    },
    units::WorkerId,
};

/// Frames recorded for each traced allocation: the line itself, and enough callers to reach the
/// application from a library.
const FRAMES: u32 = 25;

/// The agent's directory, and the questions that are not answered yet.
#[derive(Debug)]
pub(super) struct Channel {
    directory: Directory,
    pub(super) page: Page,
    pub(super) stacks: Stacks,
    /// The id of the next question.
    next_id: u64,
    /// At most one for each worker.
    pending: BTreeMap<WorkerId, Pending>,
    /// Workers whose agents speak an unsupported protocol, and the reason.
    foreign: BTreeMap<WorkerId, String>,
    /// Workers in `foreign` that were not reported yet.
    found_foreign: Vec<WorkerId>,
}

/// A question that a process has not answered yet.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Pending {
    id: u64,
    pid: i32,
    /// The subject of the report, if the question is a request for one.
    about: Option<About>,
}

/// The state for the next binary in an upgrade.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct ChannelState {
    page: PageState,
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
    pub(super) fn hand_over(&self) -> ChannelState {
        ChannelState {
            page: self.page.hand_over(),
            stacks: self.stacks.notes().to_vec(),
            next: self.next_id,
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
        state: ChannelState,
        adopt: fn(RawFd) -> Option<OwnedFd>,
    ) -> io::Result<Self> {
        let lock = state.lock.and_then(adopt);
        let directory = Directory::take_over(place, (state.name.as_deref(), lock))?;
        let page = if state.page.is_understood() {
            Page::take_over(directory.page()?, state.page)
        } else {
            // The agents in the workers continue to write to their page, which is not read any
            // more.
            directory.remove_page()?;
            let page = Page::create(directory.new_page(&agent_page::empty())?);
            directory.give_page(place.owner)?;
            page
        };
        let stacks = Stacks::take_over(directory.stacks()?, state.stacks)?;
        Ok(Self {
            directory,
            page,
            stacks,
            next_id: state.next,
            pending: state.pending,
            foreign: BTreeMap::new(),
            found_foreign: Vec::new(),
        })
    }

    pub(super) fn install(place: &Place) -> io::Result<Self> {
        let directory = Directory::install(place)?;
        let page = Page::create(directory.new_page(&agent_page::empty())?);
        let stacks = Stacks::create(directory.new_stacks()?)?;
        directory.give(place.owner)?;
        Ok(Self {
            directory,
            page,
            stacks,
            next_id: 1,
            pending: BTreeMap::new(),
            foreign: BTreeMap::new(),
            found_foreign: Vec::new(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The directory that agents write their answers to.
    pub(super) fn answers(&self) -> PathBuf {
        self.directory.answers()
    }

    /// Writes a question for the agent in this process of a worker.
    pub(super) fn ask(&mut self, worker: WorkerId, pid: i32, ask: &AgentAsk) -> io::Result<()> {
        let id = self.next_id;
        self.next_id += 1;
        self.directory
            .write_ask(pid, &Question::encode(id, question(ask)))?;
        let about = match ask {
            AgentAsk::Report { about, .. } => Some(about.clone()),
            AgentAsk::Collect | AgentAsk::Base | AgentAsk::Open { .. } | AgentAsk::Close => None,
        };
        self.pending.insert(worker, Pending { id, pid, about });
        Ok(())
    }

    /// Whether the agent in this process of a worker speaks a supported protocol.
    ///
    /// An agent that has neither counted nor answered yet is assumed to do so.
    pub(super) fn understands(&mut self, worker: WorkerId, pid: i32) -> Result<(), String> {
        if let Some(why) = self.foreign.get(&worker) {
            return Err(why.clone());
        }
        let version = self.page.version_of(pid);
        version.map_or(Ok(()), agent_page::understand)
    }

    /// A worker whose agent was found to speak an unsupported protocol, and the reason.
    pub(super) fn poll_foreign(&mut self) -> Option<(WorkerId, String)> {
        let worker = self.found_foreign.pop()?;
        Some((worker, self.foreign.get(&worker)?.clone()))
    }

    /// Reads new answers. An answer to a request for a report comes with the subject of the report.
    pub(super) fn collect(&mut self) -> Vec<(WorkerId, Option<About>, Answer)> {
        let directory = &self.directory;
        let mut answers = Vec::new();
        self.pending.retain(|worker, pending| {
            let Some(answer) = directory.read_answer(pending.pid, pending.id) else {
                return true;
            };
            answers.push((*worker, pending.about.take(), answer));
            false
        });
        for (worker, _, answer) in &answers {
            self.note_version(*worker, answer.protocol);
        }
        answers
    }

    /// The counters of all workers. `running` has the worker of each running process.
    pub(super) fn counts(&mut self, running: &BTreeMap<i32, WorkerId>) -> Vec<(WorkerId, Counts)> {
        let mut versions = Vec::new();
        let counts = self.page.read(running, &mut |worker, version| {
            versions.push((worker, version))
        });
        for (worker, version) in versions {
            self.note_version(worker, version);
        }
        counts
    }

    /// Notes the worker if its agent speaks an unsupported protocol.
    fn note_version(&mut self, worker: WorkerId, version: u64) {
        if let Err(why) = agent_page::understand(version)
            && self.foreign.insert(worker, why).is_none()
        {
            self.found_foreign.push(worker);
        }
    }

    /// Removes the question of a worker that has ended. Its stacks are still read.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        self.foreign.remove(&worker);
        self.found_foreign.retain(|found| *found != worker);
        self.withdraw(worker);
        self.pending.remove(&worker);
    }

    /// Removes the question of a worker that is not answered yet. An answer is taken nevertheless.
    pub(super) fn withdraw(&mut self, worker: WorkerId) {
        if let Some(pending) = self.pending.get(&worker) {
            self.directory.remove_ask(pending.pid);
        }
    }
}

/// The question of the protocol for a request of the decider.
pub(super) fn question(ask: &AgentAsk) -> Ask {
    match ask {
        AgentAsk::Collect => Ask::Gc,
        AgentAsk::Base => Ask::Base,
        AgentAsk::Open { room, base } => Ask::Open {
            base: *base,
            frames: FRAMES,
            room: room.get(),
        },
        AgentAsk::Close => Ask::Close,
        AgentAsk::Report {
            about,
            room,
            time_box,
            when,
        } => Ask::Report {
            time_budget_s: time_box.as_secs_f64(),
            room: room.get(),
            private: about.private.get(),
            baseline: about.baseline.unwrap_or_default().get(),
            cause: about.cause.to_string(),
            when: match when {
                ReportWhen::Now => When::Now,
                ReportWhen::Idle => When::Idle,
                ReportWhen::AfterDrain => When::AfterDrain,
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::{
        agent::{Agent, kept::Kept},
        supervisor::input::AgentAnswer,
        units::Bytes,
    };

    fn agent(home: &Path) -> Agent {
        let place = Place {
            below: home.to_owned(),
            name: "shop.agent".to_owned(),
            owner: None,
        };
        let mut agent = Agent::without_channel(Kept::take_over(None, 10, None));
        agent.install(&place).unwrap();
        agent
    }

    #[test]
    fn an_agent_that_answers_in_another_protocol_counts_as_absent_until_its_worker_ends() {
        let home = tempfile::tempdir().unwrap();
        let mut agent = agent(home.path());
        let (old, new) = (WorkerId::FIRST, WorkerId::FIRST.next());
        agent.ask(old, 7, &AgentAsk::Close).unwrap();
        agent.ask(new, 8, &AgentAsk::Close).unwrap();
        let answer = |pid: i32, id: u64, protocol: u64| {
            let answer = json!({"id": id, "protocol": protocol, "do": "close", "ok": true});
            let name = format!("{pid}.json");
            fs::write(agent.answers().unwrap().join(name), answer.to_string()).unwrap();
        };
        answer(7, 1, agent_page::VERSION + 1);
        answer(8, 2, agent_page::VERSION);
        let said = agent.collect(0.0);
        let why = "its agent speaks a newer protocol than this version of supervise: 2, not 1";
        let failed = AgentAnswer::Failed(why.to_owned());
        assert_eq!(said, [(old, failed), (new, AgentAnswer::Closed)]);
        assert_eq!(agent.poll_foreign(), Some((old, why.to_owned())));
        assert_eq!(agent.poll_foreign(), None);
        assert_eq!(agent.understands(old, 7), Err(why.to_owned()));
        assert_eq!(agent.understands(new, 8), Ok(()));
        agent.last_counts(old);
        assert_eq!(agent.understands(old, 7), Ok(()));
    }

    #[test]
    fn workers_of_a_binary_with_another_page_layout_have_no_agent_after_an_upgrade() {
        let home = tempfile::tempdir().unwrap();
        let agent = agent(home.path());
        let page = home.path().join("shop.agent/page");
        let before = fs::File::open(&page).unwrap();
        let state = |version: u64| {
            let mut state = serde_json::to_value(agent.hand_over()).unwrap();
            state["page"]["version"] = json!(version);
            state["lock"] = json!(null);
            state
        };
        let place = Place {
            below: home.path().to_owned(),
            name: "shop.agent".to_owned(),
            owner: None,
        };
        for version in [0, agent_page::VERSION, agent_page::VERSION + 1] {
            let state = serde_json::from_value(state(version)).unwrap();
            let mut next = Agent::without_channel(Kept::take_over(None, 10, None));
            assert!(next.take_over(&place, state, |_| None).unwrap());
            let now = fs::File::open(&page).unwrap();
            let is_same = same_file(&before, &now);
            assert_eq!(is_same, version <= agent_page::VERSION, "{version}");
            assert_eq!(next.counts(&BTreeMap::new()), []);
            std::mem::forget(next);
        }
    }

    fn same_file(one: &fs::File, other: &fs::File) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        one.metadata().unwrap().ino() == other.metadata().unwrap().ino()
    }

    #[test]
    fn a_question_to_the_agent_has_its_limits() {
        let room = Bytes::mib(1);
        assert_eq!(
            question(&AgentAsk::Open { room, base: true }),
            Ask::Open {
                base: true,
                frames: FRAMES,
                room: 1 << 20
            }
        );
        assert_eq!(question(&AgentAsk::Collect), Ask::Gc);
    }
}
