//! gunicorn, 20 to 27: which signals its master and its workers understand (its `docs/signals`,
//! and `arbiter.py` of 20.1, 23.0 and 27.0).

use crate::units::{Habits, ServerKind, Signal};

/// How gunicorn treats its workers.
pub const HABITS: Habits = Habits {
    kind: ServerKind::Gunicorn,
    retire: Signal::TERM,
    raise: Signal::TTIN,
    lower: Signal::TTOU,
    reload: Signal::HUP,
    second_master: Signal::USR2,
    quit: Signal::QUIT,
    boot_failures: [3, 4],
};
