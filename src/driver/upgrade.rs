//! Switching to another binary: the state that is handed over, and the time of the switch.

use std::{
    collections::VecDeque,
    io,
    os::fd::{OwnedFd, RawFd},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{Driver, Questions, VERSION, agents};
use crate::{
    agent,
    control::{
        documents::UpgradesDoc,
        listeners::{Descriptors, Gate},
    },
    host::{
        self, Host, clock,
        process::exec::{Binary, Inherited, adopt},
    },
    observe::log::Log,
    supervisor::{
        Supervisor,
        event::Event,
        event_format::EventRecord,
        input::Input,
        spec::{Kind, Spec},
        state,
    },
    units::RequestId,
};

/// The version of the state. It increases with each change that an older reader cannot read.
const FORMAT: u32 = 3;
/// Delay of the switch, so that the client gets its answer first.
const ANSWER_DELAY: Duration = Duration::from_millis(100);
/// Time limit for writing the queued lines of the log.
const LOG_MAX: Duration = Duration::from_millis(200);

/// The state that one binary hands over to the next.
#[derive(Debug, Deserialize, Serialize)]
pub struct State {
    format: u32,
    version: String,
    name: String,
    socket: String,
    #[serde(default)]
    copies: Option<u64>,
    started: f64,
    upgrades: UpgradesDoc,
    past: VecDeque<EventRecord>,
    next_event: u64,
    supervisor: state::State,
    host: host::HostState,
    agent: agent::AgentState,
    /// Earlier versions held no lock there.
    #[serde(default)]
    kept: Option<agent::kept::KeptState>,
    #[serde(rename = "doors")]
    listeners: Option<Descriptors<RawFd>>,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
    version: String,
}

impl State {
    /// Parses a state. The error is the reason why it cannot be taken over with these settings.
    pub fn read(text: &[u8], spec: &Spec) -> Result<Self, String> {
        let Format { format, version } =
            serde_json::from_slice(text).map_err(|error| format!("read the state: {error}"))?;
        let of_it = format!("the state of supervise {version}");
        if format != FORMAT {
            return Err(format!(
                "{of_it} cannot be read by {VERSION}: stop the service and start it again"
            ));
        }
        let state: Self =
            serde_json::from_slice(text).map_err(|error| format!("read {of_it}: {error}"))?;
        let socket = spec.control.socket.to_string_lossy();
        let number = |copies: Option<u64>| copies.map_or("none".to_owned(), |it| it.to_string());
        for (what, then, now) in [
            ("name", &*state.name, &*spec.name),
            ("control.socket", &*state.socket, &*socket),
            ("copies", &*number(state.copies), &*number(spec.copies)),
        ] {
            if then != now {
                return Err(format!(
                    "{what} cannot change from {then} to {now} in an upgrade; restart the service instead"
                ));
            }
        }
        Ok(state)
    }

    /// The listeners that were kept open. A second call returns `None`.
    pub fn listeners(&mut self) -> Option<Descriptors<OwnedFd>> {
        let listeners = self.listeners.take()?;
        Some(Descriptors {
            lock: adopt(listeners.lock)?,
            socket: adopt(listeners.socket)?,
            port: listeners.port.and_then(adopt),
        })
    }
}

/// Checks of binaries that are under way.
#[derive(Debug)]
pub(super) struct Checks {
    sender: mpsc::Sender<Input>,
    answers: mpsc::Receiver<Input>,
}

impl Checks {
    pub(super) fn new() -> Self {
        let (sender, answers) = mpsc::channel(1);
        Self { sender, answers }
    }

    /// The next result.
    pub(super) async fn next(&mut self) -> Input {
        match self.answers.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

impl Driver {
    /// Like [`Driver::new`], but continues with the state of another binary. It starts nothing.
    pub fn take_over(
        mut spec: Spec,
        (log, gate): (Log, Gate),
        state: State,
        failed: Option<String>,
    ) -> io::Result<(Self, Questions)> {
        let now = clock::now();
        if let Some(server) = state.supervisor.server_found()
            && spec.kind_is_guessed
        {
            spec.kind = Kind::Server(server);
        }
        let handed = (state.agent, state.kept);
        let (agent, warnings) = agents::prepare(&mut spec, Some(handed));
        let host = Host::take_over(&spec, now, state.host)?;
        let history = spec.control.history;
        let supervisor = Supervisor::take_over(spec, now, state.supervisor);
        let (mut driver, sender) = Self::assemble((supervisor, host, agent), history, (log, gate))?;
        driver.context.started = state.started;
        driver.context.upgrades = state.upgrades;
        driver.events.take_over(state.past, state.next_event);
        match failed {
            None => {
                driver.context.upgrades.done += 1;
                driver.publish(Event::Upgraded {
                    version: VERSION.to_owned(),
                    from: state.version,
                });
            }
            Some(why) => driver.fail_upgrade(why),
        }
        for warning in warnings {
            driver.publish(Event::Warning(warning));
        }
        Ok((driver, sender))
    }

    /// Asks the installed binary whether it can take over, on another thread.
    pub(super) fn check_upgrade(&mut self, request: RequestId) {
        let sender = self.checks.sender.clone();
        let asked = Binary::installed()
            .map_err(|error| error.to_string())
            .and_then(|binary| Ok((binary, self.state()?.0)));
        std::thread::spawn(move || {
            let verdict = asked.and_then(|(binary, state)| binary.check(&state));
            // The service may have ended.
            let _ = sender.blocking_send(Input::UpgradeChecked { request, verdict });
        });
    }

    /// Schedules the switch. No new connection is accepted until then, so that none is open at the
    /// switch.
    pub(super) fn schedule_upgrade(&mut self) {
        self.gate.close();
        self.upgrade_at = Some(clock::now().later(ANSWER_DELAY));
    }

    /// Executes the other binary, if it is time. Returns only on failure.
    pub(super) fn upgrade_if_due(&mut self) {
        if self.upgrade_at.is_none_or(|at| at > clock::now()) {
            return;
        }
        self.upgrade_at = None;
        if let Err(why) = self.upgrade() {
            self.fail_upgrade(why);
        }
    }

    fn upgrade(&mut self) -> Result<(), String> {
        // RACE: since the check, the service may have begun to stop.
        if let Some(why) = self.supervisor.holds_up_upgrade() {
            return Err(why.to_owned());
        }
        let (state, keep) = self.state()?;
        let binary = Binary::installed().map_err(|error| error.to_string())?;
        self.log.flush(LOG_MAX);
        self.agent.kept_mut().flush();
        match binary.execute(&state, &keep) {
            Ok(never) => match never {},
            Err(error) => Err(format!("execute {}: {error}", binary.path().display())),
        }
    }

    fn fail_upgrade(&mut self, why: String) {
        self.publish(Event::Warning(format!(
            "the upgrade failed: {why}; supervise {VERSION} continues"
        )));
        self.gate.open();
        self.context.upgrades.failed += 1;
        self.context.upgrades.failed_why = Some(why);
    }

    fn state(&self) -> Result<(Vec<u8>, Vec<RawFd>), String> {
        let (host, mut keep) = self
            .host
            .get_ref()
            .hand_over()
            .ok_or("no command is running")?;
        let spec = self.supervisor.spec();
        let listeners = self.gate.descriptors();
        keep.extend(
            [listeners.lock, listeners.socket]
                .into_iter()
                .chain(listeners.port),
        );
        keep.extend(self.agent.descriptors());
        let state = State {
            format: FORMAT,
            version: VERSION.to_owned(),
            name: spec.name.clone(),
            socket: spec.control.socket.to_string_lossy().into_owned(),
            copies: spec.copies,
            started: self.context.started,
            upgrades: self.context.upgrades.clone(),
            past: self.events.past().clone(),
            next_event: self.events.next(),
            supervisor: self.supervisor.hand_over(),
            host,
            agent: self.agent.hand_over(),
            kept: self.agent.kept().hand_over(),
            listeners: Some(listeners),
        };
        let text = serde_json::to_vec(&state).map_err(|error| error.to_string())?;
        Ok((text, keep))
    }
}

/// Parses the state that was handed over to this process. If it cannot be taken over, executes the
/// old binary again, with the reason. Returns an error only if that fails, too.
pub fn read_or_go_back(inherited: &Inherited, spec: &Spec) -> Result<State, String> {
    let text = inherited.state().map_err(|error| error.to_string());
    text.and_then(|text| State::read(&text, spec))
        .map_err(|why| go_back(inherited, &why))
}

/// Executes the old binary again. Returns only on failure, with the reason.
pub fn go_back(inherited: &Inherited, why: &str) -> String {
    let error = inherited.go_back(why);
    format!("{why}; the old binary could not be executed again: {error}")
}
