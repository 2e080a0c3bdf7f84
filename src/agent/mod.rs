//! TALKS TO PYTHON: installs the agent's files for the workers, writes questions, reads answers and
//! counters, and keeps memory reports.
//!
//! The agent itself is `python/supervise/_agent`. This module only writes and reads files. The host
//! chooses the process and sends it the signal; the driver connects the two.

mod answers;
mod channel;
mod files;
pub mod kept;
mod outside;
mod page;
pub mod pool;
pub mod prints;
mod routes;
mod stacks;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    os::fd::{OwnedFd, RawFd},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    protocol::{
        agent_page,
        question::{Answer, Content, Question},
    },
    supervisor::{
        action::{About, AgentAsk, ReportWhen},
        event::Running,
        input::{AgentAnswer, Counts},
        spec::Spec,
    },
    units::{Bytes, WorkerId},
};
use channel::{Channel, ChannelState};
use kept::Kept;

/// The supervisor's side of the agents.
#[derive(Debug)]
pub struct Agent {
    /// `None`: no worker loads the agent.
    channel: Option<Channel>,
    kept: Kept,
    /// The growth by route, for the next report.
    routes: Value,
    /// The worker that has ended last, and its request in progress.
    running: Option<(WorkerId, Running)>,
}

/// The state of the supervisor's side, for the next binary in an upgrade.
#[derive(Debug, Deserialize, Serialize)]
pub struct AgentState(Option<ChannelState>);

/// The directory for the agent's directory, and the owner of the files that workers write.
#[derive(Clone, Debug)]
pub struct Place {
    /// The parent directory.
    pub below: PathBuf,
    /// Its name. A number is added while another service uses the name.
    pub name: String,
    /// The user and group of the command, if they differ from the supervisor's.
    pub owner: Option<(u32, u32)>,
}

impl Agent {
    /// Without agents: reports and events are only kept.
    pub const fn without_channel(kept: Kept) -> Self {
        Self {
            channel: None,
            kept,
            routes: Value::Null,
            running: None,
        }
    }

    /// Writes the files. Interpreters load them if PYTHONPATH has the directory.
    pub fn install(&mut self, place: &Place) -> io::Result<()> {
        self.channel = Some(Channel::install(place)?);
        Ok(())
    }

    /// The state for the next binary.
    pub fn hand_over(&self) -> AgentState {
        AgentState(self.channel.as_ref().map(Channel::hand_over))
    }

    /// Descriptors that stay open for the next binary.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let channel = self.channel.as_ref().and_then(Channel::lock);
        let kept = self.kept.hand_over().and_then(|kept| kept.lock());
        channel.into_iter().chain(kept).collect()
    }

    /// Continues with the directory of the previous binary; false if it had none. `adopt` takes a
    /// descriptor that it left open.
    pub fn take_over(
        &mut self,
        place: &Place,
        state: AgentState,
        adopt: fn(RawFd) -> Option<OwnedFd>,
    ) -> io::Result<bool> {
        if let Some(state) = state.0 {
            self.channel = Some(Channel::take_over(place, state, adopt)?);
        }
        Ok(self.channel.is_some())
    }

    /// The variables that make the interpreters of the command load the agent. `before` is the
    /// PYTHONPATH that the command would have without it.
    pub fn environment(&self, spec: &Spec, before: Option<OsString>) -> Vec<(OsString, OsString)> {
        let Some(channel) = &self.channel else {
            return Vec::new();
        };
        let directory = channel.path().as_os_str().to_owned();
        let mut path = directory.clone();
        if let Some(before) = before.filter(|before| !before.is_empty()) {
            path.push(":");
            path.push(before);
        }
        let mut variables: Vec<(OsString, OsString)> = vec![("PYTHONPATH".into(), path)];
        variables.push(("SUPERVISE_AGENT".into(), directory));
        if !spec.agent.drain.is_zero() {
            let seconds = spec.agent.drain.as_secs_f64().to_string();
            variables.push(("SUPERVISE_AGENT_DRAIN".into(), seconds.into()));
            let (streams, all) = (spec.stop.stream_grace, spec.stop.grace);
            let seconds = format!("{} {}", streams.as_secs_f64(), all.as_secs_f64());
            variables.push(("SUPERVISE_AGENT_STREAMS".into(), seconds.into()));
        }
        if !spec.agent.ignore_paths.is_empty() {
            let paths = spec.agent.ignore_paths.join(",");
            variables.push(("SUPERVISE_AGENT_IGNORE".into(), paths.into()));
        }
        variables
    }

    /// The directory of the answers.
    pub fn answers(&self) -> Option<PathBuf> {
        self.channel.as_ref().map(Channel::answers)
    }

    /// Writes a question for a process. The caller sends the signal that makes the agent read it.
    pub fn ask(&mut self, worker: WorkerId, pid: i32, ask: &AgentAsk) -> io::Result<()> {
        match &mut self.channel {
            Some(channel) => channel.ask(worker, pid, ask),
            None => Err(io::Error::other("the agent is switched off")),
        }
    }

    /// Removes the question of a worker that it has not answered yet.
    pub fn withdraw(&mut self, worker: WorkerId) {
        if let Some(channel) = &mut self.channel {
            channel.withdraw(worker);
        }
    }

    /// Whether the agent in this process of a worker can be asked and counted.
    ///
    /// # Errors
    ///
    /// It speaks an unsupported protocol.
    pub fn understands(&mut self, worker: WorkerId, pid: i32) -> Result<(), String> {
        match &mut self.channel {
            Some(channel) => channel.understands(worker, pid),
            None => Ok(()),
        }
    }

    /// A worker whose agent was found to speak an unsupported protocol, and the reason.
    pub fn poll_foreign(&mut self) -> Option<(WorkerId, String)> {
        self.channel.as_mut()?.poll_foreign()
    }

    /// Reads new answers. `at` is the time, in Unix seconds.
    pub fn collect(&mut self, at: f64) -> Vec<(WorkerId, AgentAnswer)> {
        let Some(channel) = &mut self.channel else {
            return Vec::new();
        };
        let answers = channel.collect();
        answers
            .into_iter()
            .map(|(worker, about, answer)| {
                let said = self.on_answer(about.as_ref(), answer, at);
                (worker, said)
            })
            .collect()
    }

    fn on_answer(&mut self, about: Option<&About>, answer: Answer, at: f64) -> AgentAnswer {
        match (
            agent_page::understand(answer.protocol),
            answer.content,
            about,
        ) {
            (Err(why), _, _) => AgentAnswer::Failed(why),
            (Ok(()), Content::Report(report), Some(about)) => self.keep(about, report, at),
            (Ok(()), content, _) => answers::said(content),
        }
    }

    /// The text of a request for a report, to a worker of a pool.
    pub fn request_for_report(about: &About, room: Bytes, time_box: Duration) -> String {
        let ask = AgentAsk::Report {
            about: about.clone(),
            room,
            time_box,
            when: ReportWhen::Now,
        };
        Question::encode(about.report.0, channel::question(&ask))
    }

    /// Takes the answer of a worker of a pool, and keeps the report. `at` is the time, in Unix
    /// seconds.
    pub fn on_report(&mut self, about: &About, answer: &[u8], at: f64) -> AgentAnswer {
        let is_short = u64::try_from(answer.len()).is_ok_and(|length| length <= files::ANSWER_MAX);
        match Some(answer).filter(|_| is_short).and_then(Answer::read) {
            Some(answer) => self.on_answer(Some(about), answer, at),
            None => AgentAnswer::Failed("its answer is malformed".to_owned()),
        }
    }

    /// The inode of the stacks file.
    pub fn stacks_file(&self) -> Option<u64> {
        let channel = self.channel.as_ref()?;
        Some(channel.stacks.inode())
    }

    /// Notes that a process of a worker with this much memory is about to write its stacks.
    pub fn note_stack(&mut self, worker: WorkerId, memory: Bytes) {
        if let Some(channel) = &mut self.channel {
            channel.stacks.note(worker, memory);
        }
    }

    /// Makes and keeps a report about a worker that does not answer.
    pub fn keep_outside(
        &mut self,
        about: &About,
        silent: &str,
        mappings: &[(String, Bytes)],
        at: f64,
    ) -> AgentAnswer {
        let channel = self.channel.as_ref();
        let stacks = channel.map(|channel| channel.stacks.of(about.worker));
        let stacks = stacks.unwrap_or_default();
        let report = outside::compose(about, silent, mappings, &stacks);
        self.keep(about, report, at)
    }

    fn keep(&mut self, about: &About, mut report: Value, at: f64) -> AgentAnswer {
        let baseline = about.baseline;
        let growth = baseline.map(|baseline| about.private.minus(baseline).get());
        report["id"] = json!(about.report.to_string());
        report["worker"] = json!(about.worker.to_string());
        report["pid"] = json!(about.pid);
        report["at"] = json!((at * 1e3).round() / 1e3);
        report["cause"] = json!(about.cause.to_string());
        report["process"] = json!({
            "private": about.private.get(),
            "rss": about.rss.get(),
            "baseline": baseline.map(Bytes::get),
            "growth": growth,
            "processes": about.processes,
        });
        report["routes"] = self.routes.clone();
        answers::scale_to_worker(&mut report);
        let summary = answers::summary(&report);
        self.kept.keep(about.report, report);
        AgentAnswer::Reported {
            report: about.report,
            cause: about.cause,
            summary,
        }
    }

    /// The next warning about reports and events that could not be kept.
    pub fn poll_warning(&mut self) -> Option<String> {
        self.kept.poll_warning()
    }

    /// The kept reports.
    pub const fn kept(&self) -> &Kept {
        &self.kept
    }

    /// What is kept, to keep more.
    pub const fn kept_mut(&mut self) -> &mut Kept {
        &mut self.kept
    }

    /// The counters of all workers. `owners` has the worker of each process.
    pub fn counts(&mut self, owners: &BTreeMap<i32, WorkerId>) -> Vec<(WorkerId, Counts)> {
        match &mut self.channel {
            Some(channel) => channel.counts(owners),
            None => Vec::new(),
        }
    }

    /// The inodes of listening sockets, each with the process that has named it as its server's.
    pub fn listeners(&mut self) -> Vec<(i32, u64)> {
        match &mut self.channel {
            Some(channel) => channel.page.listeners(),
            None => Vec::new(),
        }
    }

    /// The last counters of a worker that has ended. Its question is removed.
    pub fn last_counts(&mut self, worker: WorkerId) -> Option<Counts> {
        let channel = self.channel.as_mut()?;
        channel.forget(worker);
        channel.page.take_last(worker)
    }
}
