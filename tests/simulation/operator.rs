//! Operators: their requests and signals to the service, at random times.

use std::time::Duration;

use supervise::{
    supervisor::input::{Ask, Input, Stop},
    units::{RequestId, Signal, WorkerId},
};

use crate::world::{Happening, World};

impl World {
    /// Plans all requests of operators in the phase with faults.
    pub(crate) fn plan_asks(&mut self) {
        let whole = u64::try_from(self.scenario.turmoil.as_millis()).unwrap_or(0);
        for number in 0..self.scenario.asks {
            let at = self.chance.millis(0, whole);
            let input = self.random_request(RequestId(u64::from(number)));
            self.after(at, Happening::Deliver(input));
        }
    }

    fn random_request(&mut self, request: RequestId) -> Input {
        let ask = |ask| Input::Asked { request, ask };
        match self.chance.between(0, 99) {
            0..=24 => {
                // The worker may be alive then, ended, or have never existed.
                let number = self.chance.small(1, 15);
                let worker = (1..number).fold(WorkerId::FIRST, |id, _| id.next());
                ask(Ask::Recycle(worker))
            }
            25..=29 => ask(Ask::RecycleAll),
            30..=34 => {
                let number = self.chance.small(1, 15);
                let worker = (1..number).fold(WorkerId::FIRST, |id, _| id.next());
                ask(Ask::Report(worker))
            }
            35..=44 => ask(Ask::Reload),
            45..=46 => ask(Ask::Stop(Stop::Graceful)),
            47 => ask(Ask::Stop(Stop::Now)),
            48..=60 => Input::Signalled(Signal::HUP),
            61..=78 => Input::Signalled(Signal::TTIN),
            79..=94 => Input::Signalled(Signal::TTOU),
            95 => Input::Signalled(Signal::QUIT),
            96 => Input::Signalled(Signal::RELOAD),
            97 => Input::Signalled(Signal::USR1),
            _ => Input::Signalled(Signal::TERM),
        }
    }

    /// The last request: the service stops.
    pub(crate) fn ask_to_stop(&mut self) {
        let request = RequestId(1000);
        match self.chance.between(0, 3) {
            0 => self.deliver(Duration::ZERO, Input::Signalled(Signal::INT)),
            1 => {
                let wait = self.chance.millis(0, 3000);
                self.deliver(Duration::ZERO, Input::Signalled(Signal::TERM));
                self.deliver(wait, Input::Signalled(Signal::TERM));
            }
            2 => {
                let ask = Ask::Stop(Stop::Graceful);
                self.deliver(Duration::ZERO, Input::Asked { request, ask });
            }
            _ => {
                let ask = Ask::Stop(Stop::Now);
                self.deliver(Duration::ZERO, Input::Asked { request, ask });
            }
        }
    }
}
