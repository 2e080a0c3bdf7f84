//! uWSGI 2.0 with a master process. A worker that gets HUP finishes its request and exits, and its
//! master starts another one with the same number (`core/uwsgi.c`). Gateways, such as the one of
//! `http`, ignore HUP.

use super::profile::{Found, Profile, Replacement, Serves, Signals, Workers};
use crate::units::Signal;

/// The profile of uWSGI.
pub static PROFILE: Profile = Profile {
    name: "uwsgi",
    scripts: &["pyuwsgi"],
    words: &[],
    title: Some("uWSGI master"),
    found: Found::ByBoth,
    workers: Workers::Children(Serves::Connections),
    replace: Replacement::Signal {
        retire: Signal::HUP,
    },
    signals: Signals {
        reload: Some(Signal::HUP),
        quit: Some(Signal::QUIT),
        ..Signals::NONE
    },
    // A new worker is a fork of the master, which has loaded the application. Only with `lazy-apps`
    // and `need-app` can it fail, and then the master exits, too, unless the agent prevents it.
    boot_failures: &[],
    is_guarded: false,
    guard: None,
    helpers: None,
};
