//! A program that is itself the only worker. To replace it, the supervisor stops it and starts it
//! again, and no process serves in between.

use crate::supervisor::{
    Supervisor, action::Action, policy::candidates::Candidate, worker::lifecycle::By,
};
use crate::units::Timestamp;

impl Supervisor {
    pub(super) fn replace_program(&mut self, now: Timestamp, candidates: &[Candidate]) {
        let Some(candidate) = candidates.first() else {
            return;
        };
        self.warn_once("single", || {
            "this program is one worker: it is recycled as a whole, and no process serves between \
             its stop and its next start"
                .to_owned()
        });
        self.begin_drain(now, candidate, By::Signal);
    }

    pub(super) fn ask_program_to_exit(&mut self) {
        self.out.act(Action::SignalCommand {
            run: self.state.service.run(),
            signal: self.spec.stop.signal,
        });
    }
}
