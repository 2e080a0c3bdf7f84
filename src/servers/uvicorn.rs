//! uvicorn 0.30 to 0.54 with several workers. Its main process starts them with the `spawn` method
//! of multiprocessing, and replaces a worker within half a second of its exit
//! (`supervisors/multiprocess.py`).

use super::profile::{Found, Profile, Replacement, Retires, Signals, Workers};
use crate::units::Signal;

/// The profile of uvicorn.
pub static PROFILE: Profile = Profile {
    name: "uvicorn",
    scripts: &[],
    words: &[],
    title: None,
    // With one worker, uvicorn is a single process, and its command line does not always show which
    // case it is. Programs of other names run it, too (`fastapi run`, `litestar run`).
    found: Found::ByWorkers,
    workers: Workers::Spawned { word: "spawn_main" },
    replace: Replacement::Surge {
        raise: Signal::TTIN,
        lower: Signal::TTOU,
        retires: Retires::Newest,
        retire: Signal::TERM,
    },
    signals: Signals {
        reload: Some(Signal::HUP),
        ..Signals::NONE
    },
    // This is `STARTUP_FAILURE` in uvicorn's main.py.
    boot_failures: &[3],
    is_guarded: true,
    guard: None,
    helpers: None,
};
