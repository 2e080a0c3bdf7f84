//! TALKS TO PYTHON: puts the agent's files where the workers find them, asks, reads the answers,
//! and keeps what workers said.
//!
//! The agent itself is `python/supervise/_agent`. This room writes files and reads files: which
//! process is asked, and the signal that makes it look, is the host's (the driver holds both).

mod answers;
mod channel;
mod files;
pub mod frames;
pub mod kept;
mod outside;
mod page;
pub mod pool;
pub mod prints;
mod stacks;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    os::fd::{OwnedFd, RawFd},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    supervisor::{
        action::{About, AgentAsk},
        event::{Counts, Said},
        spec::Spec,
    },
    units::{Bytes, WorkerId},
};
use channel::Channel;
use kept::Kept;

/// Our end of the agents.
#[derive(Debug)]
pub struct Agent {
    /// `None`: nothing is put into the workers.
    channel: Option<Channel>,
    kept: Kept,
}

/// What our end hands to its successor.
#[derive(Debug, Deserialize, Serialize)]
pub struct Handed(Option<channel::Handed>);

/// Where the agent's directory is to be, and whose what workers write there is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory that it is made in.
    pub below: PathBuf,
    /// Its name; a number is added while another service uses it.
    pub name: String,
    /// The user and group of the command, where they are not ours.
    pub owner: Option<(u32, u32)>,
}

impl Agent {
    /// Keeps reports, and asks nobody.
    pub const fn mute(kept: Kept) -> Self {
        Self {
            channel: None,
            kept,
        }
    }

    /// Puts the files in place. Nothing loads them before an environment says so.
    pub fn install(&mut self, place: &Place) -> io::Result<()> {
        self.channel = Some(Channel::install(place)?);
        Ok(())
    }

    /// What a successor needs to go on.
    pub fn hand_over(&self) -> Handed {
        Handed(self.channel.as_ref().map(Channel::hand_over))
    }

    /// Descriptors that stay open for a successor.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let channel = self.channel.as_ref().and_then(Channel::lock);
        let kept = self.kept.hand_over().and_then(|kept| kept.lock());
        channel.into_iter().chain(kept).collect()
    }

    /// Keeps an event, a JSON object in one line.
    pub fn keep_event(&mut self, line: String) {
        self.kept.keep_event(line);
    }

    /// Waits until what is kept is on disk, for a second at most.
    pub fn flush(&mut self) {
        self.kept.flush();
    }

    /// Goes on with the directory that a predecessor has put in place; false if it had none.
    /// `adopt` takes over a descriptor that the predecessor left open.
    pub fn take_over(
        &mut self,
        place: &Place,
        handed: Handed,
        adopt: fn(RawFd) -> Option<OwnedFd>,
    ) -> io::Result<bool> {
        if let Some(handed) = handed.0 {
            self.channel = Some(Channel::take_over(place, handed, adopt)?);
        }
        Ok(self.channel.is_some())
    }

    /// What the command's environment has to say, so that its interpreters load the agent.
    /// `before` is the PYTHONPATH it would have.
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
        let mut variables: Vec<(OsString, OsString)> = vec![
            ("PYTHONPATH".into(), path),
            ("SUPERVISE_AGENT".into(), directory),
        ];
        if !spec.agent.drain.is_zero() {
            let seconds = spec.agent.drain.as_secs_f64().to_string();
            variables.push(("SUPERVISE_AGENT_DRAIN".into(), seconds.into()));
        }
        if !spec.agent.ignore_paths.is_empty() {
            let paths = spec.agent.ignore_paths.join(",");
            variables.push(("SUPERVISE_AGENT_IGNORE".into(), paths.into()));
        }
        variables
    }

    /// Where answers appear.
    pub fn answers(&self) -> Option<PathBuf> {
        self.channel.as_ref().map(Channel::answers)
    }

    /// Leaves a question for a process; the signal that makes it look is the caller's.
    pub fn ask(&mut self, worker: WorkerId, pid: i32, ask: &AgentAsk) -> io::Result<()> {
        match &mut self.channel {
            Some(channel) => channel.ask(worker, pid, ask),
            None => Err(io::Error::other("the agent is switched off")),
        }
    }

    /// The answers that have come; it is `at` now, in Unix seconds.
    pub fn collect(&mut self, at: f64) -> Vec<(WorkerId, Said)> {
        let Some(channel) = &mut self.channel else {
            return Vec::new();
        };
        let answers = channel.collect();
        answers
            .into_iter()
            .map(|(worker, about, answer)| {
                let said = match (answers::report(&answer), about) {
                    (Some(report), Some(about)) => self.keep(&about, report, at),
                    (None, _) | (Some(_), None) => answers::read(&answer),
                };
                (worker, said)
            })
            .collect()
    }

    /// The file that stacks are written to, by its inode.
    pub fn stacks_file(&self) -> Option<u64> {
        let channel = self.channel.as_ref()?;
        Some(channel.stacks.inode())
    }

    /// Notes that a process of a worker that holds `memory` is about to write its stacks.
    pub fn note_stack(&mut self, worker: WorkerId, memory: Bytes) {
        if let Some(channel) = &mut self.channel {
            channel.stacks.note(worker, memory);
        }
    }

    /// Keeps a report of what is known of a worker that does not answer.
    pub fn keep_outside(
        &mut self,
        about: &About,
        silent: &str,
        mappings: &[(String, Bytes)],
        at: f64,
    ) -> Said {
        let channel = self.channel.as_ref();
        let stacks = channel.map(|channel| channel.stacks.of(about.worker));
        let stacks = stacks.unwrap_or_default();
        let report = outside::compose(about, silent, mappings, &stacks);
        self.keep(about, report, at)
    }

    fn keep(&mut self, about: &About, mut report: Value, at: f64) -> Said {
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
        answers::hold_against_worker(&mut report);
        let summary = answers::summary(&report);
        self.kept.keep(about.report, report);
        Said::Reported {
            report: about.report,
            cause: about.cause,
            summary,
        }
    }

    /// What went wrong in keeping reports since it was last asked.
    pub fn poll_warning(&mut self) -> Option<String> {
        self.kept.poll_warning()
    }

    /// What has been kept.
    pub const fn kept(&self) -> &Kept {
        &self.kept
    }

    /// What workers have counted, by whose each process is.
    pub fn counts(&mut self, owners: &BTreeMap<i32, WorkerId>) -> Vec<(WorkerId, Counts)> {
        match &mut self.channel {
            Some(channel) => channel.page.read(owners),
            None => Vec::new(),
        }
    }

    /// Listening sockets by inode, each with the process that reported it for its server.
    pub fn listeners(&mut self) -> Vec<(i32, u64)> {
        match &mut self.channel {
            Some(channel) => channel.page.listeners(),
            None => Vec::new(),
        }
    }

    /// The last figures of a worker that has ended; it is asked nothing any more.
    pub fn last_counts(&mut self, worker: WorkerId) -> Option<Counts> {
        let channel = self.channel.as_mut()?;
        channel.forget(worker);
        channel.page.bury(worker)
    }
}
