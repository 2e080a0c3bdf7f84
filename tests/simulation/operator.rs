//! Operators: what they ask of the service, and when.

use std::time::Duration;

use supervise::{
    supervisor::event::{Ask, Event, Stop},
    units::{RequestId, Signal, WorkerId},
};

use crate::world::{Happening, World};

impl World {
    /// Plans all that operators will ask while things go wrong.
    pub(crate) fn plan_asks(&mut self) {
        let whole = u64::try_from(self.scenario.turmoil.as_millis()).unwrap_or(0);
        for number in 0..self.scenario.asks {
            let at = self.chance.millis(0, whole);
            let event = self.wish_of_operator(RequestId(u64::from(number)));
            self.after(at, Happening::Tell(event));
        }
    }

    fn wish_of_operator(&mut self, request: RequestId) -> Event {
        let ask = |ask| Event::Asked { request, ask };
        match self.chance.between(0, 99) {
            0..=24 => {
                // Alive by then, gone, or never there.
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
            48..=60 => Event::Signalled(Signal::HUP),
            61..=78 => Event::Signalled(Signal::TTIN),
            79..=94 => Event::Signalled(Signal::TTOU),
            95 => Event::Signalled(Signal::QUIT),
            96 => Event::Signalled(Signal::RELOAD),
            97 => Event::Signalled(Signal::USR1),
            _ => Event::Signalled(Signal::TERM),
        }
    }

    /// The last wish: the service is to end.
    pub(crate) fn ask_to_stop(&mut self) {
        let request = RequestId(1000);
        match self.chance.between(0, 3) {
            0 => self.tell(Duration::ZERO, Event::Signalled(Signal::INT)),
            1 => {
                let wait = self.chance.millis(0, 3000);
                self.tell(Duration::ZERO, Event::Signalled(Signal::TERM));
                self.tell(wait, Event::Signalled(Signal::TERM));
            }
            2 => {
                let ask = Ask::Stop(Stop::Graceful);
                self.tell(Duration::ZERO, Event::Asked { request, ask });
            }
            _ => {
                let ask = Ask::Stop(Stop::Now);
                self.tell(Duration::ZERO, Event::Asked { request, ask });
            }
        }
    }
}
