//! Going on as another binary: what is handed over, and the moment in which it is.

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
        doors::{Descriptors, Keys},
        wire::UpgradesDoc,
    },
    host::{
        self, Host, clock,
        exec::{Binary, Inherited, adopt},
    },
    observe::log::Log,
    supervisor::{
        Supervisor, event::Event, handed::Handed, report::Report, spec::Spec, tell::Told,
    },
    units::RequestId,
};

/// Counts up when what is handed over changes so much that it cannot be read any more.
const FORMAT: u32 = 2;
/// Whoever asked has the answer by then.
const ANSWERED: Duration = Duration::from_millis(100);
/// Lines of the log that nobody takes are not waited for longer.
const LOG_MAX: Duration = Duration::from_millis(200);

/// All that one binary hands to the next.
#[derive(Debug, Deserialize, Serialize)]
pub struct State {
    format: u32,
    version: String,
    name: String,
    socket: String,
    started: f64,
    upgrades: UpgradesDoc,
    past: VecDeque<Told>,
    next_event: u64,
    supervisor: Handed,
    host: host::Handed,
    agent: agent::Handed,
    /// Earlier versions held no lock there.
    #[serde(default)]
    kept: Option<agent::kept::Handed>,
    doors: Option<Descriptors<RawFd>>,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
    version: String,
}

impl State {
    /// Reads a state, and says why it cannot be taken over under these wishes.
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
        for (what, then, now) in [
            ("name", &state.name, spec.name.as_str()),
            ("control.socket", &state.socket, &*socket),
        ] {
            if then != now {
                return Err(format!(
                    "{what} was {then} and would be {now}: that takes a restart of the service"
                ));
            }
        }
        Ok(state)
    }

    /// The doors that were kept open. To be asked for once.
    pub fn doors(&mut self) -> Option<Descriptors<OwnedFd>> {
        let doors = self.doors.take()?;
        Some(Descriptors {
            lock: adopt(doors.lock)?,
            socket: adopt(doors.socket)?,
            reading: doors.reading.and_then(adopt),
        })
    }
}

/// Binaries that are being asked whether they can take over.
#[derive(Debug)]
pub(super) struct Checks {
    sender: mpsc::Sender<Event>,
    answers: mpsc::Receiver<Event>,
}

impl Checks {
    pub(super) fn new() -> Self {
        let (sender, answers) = mpsc::channel(1);
        Self { sender, answers }
    }

    /// The next answer.
    pub(super) async fn next(&mut self) -> Event {
        match self.answers.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

impl Driver {
    /// As [`Driver::new`], but goes on where another binary stopped. Nothing is started.
    pub fn take_over(
        mut spec: Spec,
        (log, keys): (Log, Keys),
        state: State,
        failed: Option<String>,
    ) -> io::Result<(Self, Questions)> {
        let now = clock::now();
        let handed = (state.agent, state.kept);
        let (agent, warnings) = agents::prepare(&mut spec, Some(handed));
        let host = Host::take_over(&spec, now, state.host)?;
        let history = spec.control.history;
        let supervisor = Supervisor::take_over(spec, now, state.supervisor);
        let (mut driver, sender) = Self::hold((supervisor, host, agent), history, (log, keys))?;
        driver.context.started = state.started;
        driver.context.upgrades = state.upgrades;
        driver.past = state.past;
        driver.next_event = state.next_event;
        match failed {
            None => {
                driver.context.upgrades.done += 1;
                driver.tell(Report::Upgraded {
                    version: VERSION.to_owned(),
                    from: state.version,
                });
            }
            Some(why) => driver.fail_upgrade(why),
        }
        for warning in warnings {
            driver.tell(Report::Warning(warning));
        }
        Ok((driver, sender))
    }

    /// Asks the installed binary whether it can take over; another thread waits for its answer.
    pub(super) fn check_upgrade(&mut self, request: RequestId) {
        let sender = self.checks.sender.clone();
        let asked = Binary::installed()
            .map_err(|error| error.to_string())
            .and_then(|binary| Ok((binary, self.state()?.0)));
        std::thread::spawn(move || {
            let verdict = asked.and_then(|(binary, state)| binary.check(&state));
            // The service may be over.
            let _ = sender.blocking_send(Event::UpgradeChecked { request, verdict });
        });
    }

    /// Until then nobody new comes in, so that nobody is inside when the other one begins.
    pub(super) fn upgrade_soon(&mut self) {
        self.keys.shut(true);
        self.upgrade_at = Some(clock::now().later(ANSWERED));
    }

    /// Becomes the other binary, if it is time. Returns only if that did not work.
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
        // RACE: since the binary was tried the service may have begun to stop.
        if let Some(why) = self.supervisor.holds_up_upgrade() {
            return Err(why.to_owned());
        }
        let (state, keep) = self.state()?;
        let binary = Binary::installed().map_err(|error| error.to_string())?;
        self.log.flush(LOG_MAX);
        self.agent.flush();
        match binary.execute(&state, &keep) {
            Ok(never) => match never {},
            Err(error) => Err(format!("execute {}: {error}", binary.path().display())),
        }
    }

    fn fail_upgrade(&mut self, why: String) {
        self.tell(Report::Warning(format!(
            "the upgrade failed: {why}; supervise {VERSION} goes on"
        )));
        self.keys.shut(false);
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
        let doors = self.keys.made_of();
        keep.extend([doors.lock, doors.socket].into_iter().chain(doors.reading));
        keep.extend(self.agent.descriptors());
        let state = State {
            format: FORMAT,
            version: VERSION.to_owned(),
            name: spec.name.clone(),
            socket: spec.control.socket.to_string_lossy().into_owned(),
            started: self.context.started,
            upgrades: self.context.upgrades.clone(),
            past: self.past.clone(),
            next_event: self.next_event,
            supervisor: self.supervisor.hand_over(),
            host,
            agent: self.agent.hand_over(),
            kept: self.agent.kept().hand_over(),
            doors: Some(doors),
        };
        let text = serde_json::to_vec(&state).map_err(|error| error.to_string())?;
        Ok((text, keep))
    }
}

/// What was handed to this process, read; why it cannot be taken over is told to the old binary,
/// which goes on. That does not return unless the old one is gone, too.
pub fn read_or_go_back(inherited: &Inherited, spec: &Spec) -> Result<State, String> {
    let text = inherited.state().map_err(|error| error.to_string());
    text.and_then(|text| State::read(&text, spec))
        .map_err(|why| go_back(inherited, &why))
}

/// The old binary goes on. Returns what went wrong if it cannot.
pub fn go_back(inherited: &Inherited, why: &str) -> String {
    let error = inherited.go_back(why);
    format!("{why}; and the binary before could not be executed again: {error}")
}
