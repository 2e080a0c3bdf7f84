//! What the decider wants of agents: the host knows the processes, the agent room what is said.

use std::{
    env,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use super::Driver;
use crate::{
    agent::{
        Agent, Handed, Place,
        kept::{self, Kept},
    },
    host::{agents, clock, exec, users},
    supervisor::{
        action::{About, Action, AgentAsk},
        event::{self, Event, Said},
        spec::{AgentLoad, Spec},
    },
    units::{Bytes, Timestamp, WorkerId},
};

/// Opens what is kept and puts the agent in place, or goes on with a predecessor's; `spec.command`
/// loads it from then on. What does not work is told, and is no reason not to start.
pub(super) fn prepare(
    spec: &mut Spec,
    handed: Option<(Handed, Option<kept::Handed>)>,
) -> (Agent, Vec<String>) {
    let (handed, claimed) = handed.map_or((None, None), |(agent, kept)| (Some(agent), kept));
    let claimed = claimed.map(|kept| {
        let lock = kept.lock().and_then(exec::adopt);
        (kept, lock)
    });
    let kept = Kept::take_over(kept_at(spec), spec.leaks.kept, claimed);
    let mut agent = Agent::mute(kept);
    let mut warnings = Vec::new();
    if !spec.wants_agent() {
        return (agent, warnings);
    }
    let installed = place(spec).and_then(|place| {
        let goes_on = handed.map(|handed| agent.take_over(&place, handed, exec::adopt));
        if goes_on.transpose()?.is_some_and(|goes_on| goes_on) {
            return Ok(());
        }
        agent.install(&place)
    });
    if let Err(error) = installed {
        warnings.push(format!("the agent is off: {error}"));
        spec.agent.load = AgentLoad::Off;
        return (agent, warnings);
    }
    let variable = OsStr::new("PYTHONPATH");
    let own = spec.command.env.get(variable).cloned();
    let before = own.or_else(|| env::var_os(variable));
    let environment = agent.environment(spec, before);
    spec.command.env.extend(environment);
    (agent, warnings)
}

/// Where the service keeps its reports and events.
fn kept_at(spec: &Spec) -> Option<kept::Place> {
    let here = || env::current_dir().unwrap_or_default();
    Some(kept::Place {
        base: spec.leaks.directory.clone()?,
        name: spec.leaks.service.clone(),
        about: kept::About {
            name: spec.name.clone(),
            directory: spec.command.directory.clone().unwrap_or_else(here),
            socket: spec.control.socket.clone(),
        },
    })
}

/// Beside the socket, whose directory is ours alone; where the command is another user's, in one
/// that others may pass through.
fn place(spec: &Spec) -> io::Result<Place> {
    let Some(user) = &spec.command.user else {
        let path = spec.control.socket.with_extension("agent");
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        return Ok(Place {
            below: path.parent().unwrap_or(Path::new(".")).to_owned(),
            name: name.into_owned(),
            owner: None,
        });
    };
    let owner = users::ids(user).ok_or_else(|| io::Error::other(format!("no user `{user}`")))?;
    Ok(Place {
        below: PathBuf::from("/run/supervise-agent"),
        name: spec.name.clone(),
        owner: Some(owner),
    })
}

impl Driver {
    /// Carries out what concerns agents; gives back what does not.
    pub(super) fn perform_with_agent(&mut self, action: Action) -> Option<Action> {
        let now = clock::now();
        match action {
            Action::FindAgent { worker } => self.find_agent(now, worker),
            Action::AskAgent { worker, ask } => self.ask_agent(now, worker, &ask),
            Action::NoteStack { worker, memory } => self.note_stack(now, worker, memory),
            Action::KeepReport { about, silent } => self.keep_outside(&about, &silent),
            Action::ReadCounts => self.read_counts(now),
            Action::DrainBacklog { run } => {
                let told = self.agent.listeners();
                self.host.get_mut().drain_backlog(now, run, told);
            }
            other => return Some(other),
        }
        None
    }

    fn find_agent(&mut self, now: Timestamp, worker: WorkerId) {
        let agent = match self.host.get_mut().agent_process(now, worker) {
            Ok(_) => event::Agent::Loaded,
            Err(why) => event::Agent::Absent(why),
        };
        let expected = self.host.get_mut().runs_python(now, worker);
        self.own.push_back(Event::AgentFound {
            worker,
            agent,
            expected,
        });
    }

    fn ask_agent(&mut self, now: Timestamp, worker: WorkerId, ask: &AgentAsk) {
        let host = self.host.get_mut();
        let asked = host.agent_process(now, worker).and_then(|pid| {
            let left = self.agent.ask(worker, pid, ask);
            left.and_then(|()| host.signal_agent(now, worker, pid, agents::QUESTION))
                .map_err(|error| error.to_string())
        });
        if let Err(why) = asked {
            let said = Said::Failed(why);
            self.own.push_back(Event::Said { worker, said });
        }
    }

    fn note_stack(&mut self, now: Timestamp, worker: WorkerId, memory: Bytes) {
        let host = self.host.get_mut();
        let (Ok(pid), Some(file)) = (host.agent_process(now, worker), self.agent.stacks_file())
        else {
            return;
        };
        if host.has_open(pid, file) {
            self.agent.note_stack(worker, memory);
            // One that has just ended writes nothing, and nothing is known of it then.
            let _ = host.signal_agent(now, worker, pid, agents::STACKS);
        }
    }

    fn keep_outside(&mut self, about: &About, silent: &str) {
        let worker = about.worker;
        let mappings = self.host.get_ref().outside(worker);
        let at = clock::unix_seconds();
        let said = self.agent.keep_outside(about, silent, &mappings, at);
        self.own.push_back(Event::Said { worker, said });
    }

    fn read_counts(&mut self, now: Timestamp) {
        let owners = self.host.get_mut().owners(now);
        for (worker, counts) in self.agent.counts(&owners) {
            self.own.push_back(Event::Counted { worker, counts });
        }
    }

    /// Takes in the answers that have come.
    pub(super) fn collect_answers(&mut self) {
        if self.host.get_mut().take_post() {
            for (worker, said) in self.agent.collect(clock::unix_seconds()) {
                self.own.push_back(Event::Said { worker, said });
            }
        }
    }

    /// What a worker had counted is known before its end is.
    pub(super) fn count_the_dead(&mut self, event: &Event) {
        let Event::WorkerEnded { worker, .. } = *event else {
            return;
        };
        if let Some(counts) = self.agent.last_counts(worker) {
            let counted = Event::Counted { worker, counts };
            self.supervisor.handle_event(clock::now(), counted);
        }
    }
}
