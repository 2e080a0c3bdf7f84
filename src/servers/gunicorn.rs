//! gunicorn 20 to 27. The signals of its master and its workers are documented in its
//! `docs/signals`, and checked in `arbiter.py` of 20.1, 23.0 and 27.0.

use super::profile::{Found, Helpers, Profile, Replacement, Retires, Signals, Workers};
use crate::units::Signal;

/// The signals of its master.
pub(super) const REPLACEMENT: Replacement = Replacement::Surge {
    raise: Signal::TTIN,
    lower: Signal::TTOU,
    retires: Retires::Oldest,
    retire: Signal::TERM,
};

/// The profile of gunicorn.
pub static PROFILE: Profile = Profile {
    name: "gunicorn",
    scripts: &[],
    words: &[],
    title: Some("gunicorn: master"),
    found: Found::ByCommand,
    workers: Workers::Forks {
        heartbeat: "wgunicorn-",
    },
    replace: REPLACEMENT,
    signals: Signals {
        reload: Some(Signal::HUP),
        second_master: Some(Signal::USR2),
        quit: Some(Signal::QUIT),
        ..Signals::NONE
    },
    boot_failures: &[3, 4],
    is_guarded: true,
    guard: None,
    helpers: Some(Helpers {
        name: "dirty arbiter",
        children: "dirty worker",
    }),
};
