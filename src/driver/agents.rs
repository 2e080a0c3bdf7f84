//! The decider's requests to agents: the host knows the processes, and the agent module the
//! protocol.

use std::{
    env,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use super::Driver;
use crate::{
    agent::{
        Agent, AgentState, Place,
        kept::{self, Kept, KeptState},
    },
    host::{
        clock,
        process::{exec, users},
        workers::agents::{QUESTION, STACKS},
    },
    supervisor::{
        action::{About, Action, AgentAsk},
        input::{self, AgentAnswer, Input},
        spec::{AgentLoad, Spec},
    },
    units::{Bytes, Timestamp, WorkerId},
};

/// Opens the kept reports and installs the agent, or continues with the agent of the previous
/// binary. From then on `spec.command` loads it. An error becomes a warning, and the service starts
/// without the agent.
pub(super) fn prepare(
    spec: &mut Spec,
    handed: Option<(AgentState, Option<KeptState>)>,
) -> (Agent, Vec<String>) {
    let (handed, claimed) = handed.map_or((None, None), |(agent, kept)| (Some(agent), kept));
    let claimed = claimed.map(|kept| {
        let lock = kept.lock().and_then(exec::adopt);
        (kept, lock)
    });
    let kept = Kept::take_over(kept_at(spec), spec.leaks.kept, claimed);
    let mut agent = Agent::without_channel(kept);
    let mut warnings = Vec::new();
    if !spec.wants_agent() {
        return (agent, warnings);
    }
    let installed = agent_place(spec).and_then(|place| {
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

/// The directory for the service's reports and events.
pub(super) fn kept_at(spec: &Spec) -> Option<kept::Place> {
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

/// The directory of the agent: beside the socket, whose directory is private; if the command runs
/// as another user, in a directory that this user can enter.
fn agent_place(spec: &Spec) -> io::Result<Place> {
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
    /// Carries out an action on agents. Returns any other action.
    pub(super) fn perform_with_agent(&mut self, action: Action) -> Option<Action> {
        let now = clock::now();
        match action {
            Action::FindAgent { worker } => self.find_agent(now, worker),
            Action::AskAgent { worker, ask } => self.ask_agent(now, worker, &ask),
            Action::WithdrawReport { worker } => self.agent.withdraw(worker),
            Action::NoteStack { worker, memory } => self.note_stack(now, worker, memory),
            Action::KeepReport { about, silent } => self.keep_report(&about, &silent),
            Action::ReadCounts => self.read_counts(now),
            Action::ReadRoutes => self.read_routes(now),
            Action::DrainBacklog { run } => {
                let named = self.agent.listeners();
                self.host.get_mut().drain_backlog(now, run, named);
            }
            other => return Some(other),
        }
        None
    }

    fn find_agent(&mut self, now: Timestamp, worker: WorkerId) {
        let agent = match self.agent_process(now, worker) {
            Ok(_) => input::Agent::Loaded,
            Err(why) => input::Agent::Absent(why),
        };
        let expected = self.host.get_mut().agents().runs_python(now, worker);
        self.own_inputs.push_back(Input::AgentFound {
            worker,
            agent,
            expected,
        });
    }

    /// The process of a worker with an agent that we can talk to, or the reason why there is none.
    fn agent_process(&mut self, now: Timestamp, worker: WorkerId) -> Result<i32, String> {
        let pid = self.host.get_mut().agents().process(now, worker)?;
        self.agent.understands(worker, pid)?;
        Ok(pid)
    }

    fn ask_agent(&mut self, now: Timestamp, worker: WorkerId, ask: &AgentAsk) {
        let process = self.agent_process(now, worker);
        let mut agents = self.host.get_mut().agents();
        let asked = process.and_then(|pid| {
            let left = self.agent.ask(worker, pid, ask);
            // The worker itself looks for a request when it has answered its last request.
            let sent = left.and_then(|()| match ask.waits_for_drain() {
                true => Ok(()),
                false => agents.signal(now, worker, pid, QUESTION),
            });
            sent.map_err(|error| error.to_string())
        });
        if let Err(why) = asked {
            let answer = AgentAnswer::Failed(why);
            self.own_inputs
                .push_back(Input::AgentAnswered { worker, answer });
        }
    }

    /// Makes a worker write its stack, beside its memory at this time.
    fn note_stack(&mut self, now: Timestamp, worker: WorkerId, memory: Bytes) {
        let mut agents = self.host.get_mut().agents();
        let (Ok(pid), Some(file)) = (agents.process(now, worker), self.agent.stacks_file()) else {
            return;
        };
        if agents.has_open(pid, file) {
            self.agent.note_stack(worker, memory);
            // A process that has just ended writes nothing, so it has no stack.
            let _ = agents.signal(now, worker, pid, STACKS);
        }
    }

    /// Keeps a report that is made without the worker's agent. `silent`: why the agent made none.
    fn keep_report(&mut self, about: &About, silent: &str) {
        let worker = about.worker;
        let mappings = self.host.get_mut().agents().memory_by_mapping(worker);
        let at = clock::unix_seconds();
        self.agent.note_routes(&self.supervisor.routes());
        let answer = self.agent.keep_outside(about, silent, &mappings, at);
        self.own_inputs
            .push_back(Input::AgentAnswered { worker, answer });
    }

    fn read_counts(&mut self, now: Timestamp) {
        let running = self.host.get_mut().agents().workers_by_pid(now);
        for (worker, counts) in self.agent.counts(&running) {
            self.own_inputs.push_back(Input::Counted { worker, counts });
        }
        self.report_foreign_agents();
    }

    fn read_routes(&mut self, now: Timestamp) {
        let mut agents = self.host.get_mut().agents();
        let running = agents.workers_by_pid(now);
        let mut memory = agents.resident(&running);
        for (worker, done) in self.agent.routes(&running) {
            self.own_inputs.push_back(Input::RoutesRead {
                worker,
                done,
                memory: memory.remove(&worker),
            });
        }
    }

    /// Answers and counts may be the first sign that an agent speaks another protocol.
    fn report_foreign_agents(&mut self) {
        while let Some((worker, why)) = self.agent.poll_foreign() {
            self.own_inputs.push_back(Input::AgentFound {
                worker,
                agent: input::Agent::Absent(why),
                expected: true,
            });
        }
    }

    /// Collects the answers that have come.
    pub(super) fn collect_answers(&mut self) {
        if self.host.get_mut().take_answers() {
            self.agent.note_routes(&self.supervisor.routes());
            for (worker, answer) in self.agent.collect(clock::unix_seconds()) {
                self.own_inputs
                    .push_back(Input::AgentAnswered { worker, answer });
            }
            self.report_foreign_agents();
        }
    }

    /// Passes on the last counts of a worker and a report that it has made just before its end,
    /// before its end is handled.
    pub(super) fn pass_on_last_answers(&mut self, event: &Input) {
        let Input::WorkerEnded { worker, .. } = *event else {
            return;
        };
        self.agent.note_routes(&self.supervisor.routes());
        for (worker, answer) in self.agent.collect(clock::unix_seconds()) {
            let answered = Input::AgentAnswered { worker, answer };
            self.supervisor.handle_input(clock::now(), answered);
        }
        let pid = self.supervisor.pid_of(worker);
        self.agent.note_running(clock::now(), worker, pid);
        let done = self.agent.last_routes(worker);
        if let Some(counts) = self.agent.last_counts(worker) {
            for last in [
                Input::Counted { worker, counts },
                Input::RoutesRead {
                    worker,
                    done,
                    memory: None,
                },
            ] {
                self.supervisor.handle_input(clock::now(), last);
            }
        }
    }
}
