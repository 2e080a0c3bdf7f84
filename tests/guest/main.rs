//! The package on a real system: installed on a Debian with systemd as PID 1 and cgroup v2, with
//! real memory limits.
//!
//! Outside, this program builds the package and the guests, boots each guest once and copies itself
//! into it. Inside (`--inside`) it is root, runs the scenarios and prints one line for each check.
//! The CPU is emulated, so no check depends on seconds: printed times compare within the guest.
//!
//!     .ci/debian watchdog stop      installs what is needed, and runs only these scenarios
#![expect(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test prints its checks, and a step that cannot be done fails its scenario in place"
)]

mod cgroup;
mod checks;
#[path = "../machine/client.rs"]
#[expect(
    dead_code,
    reason = "the tests of the machine and the benches use the rest"
)]
mod client;
#[path = "../machine/clock.rs"]
mod clock;
#[path = "../machine/http.rs"]
mod http;
mod inside;
mod leak;
mod life;
mod livelock;
mod machine;
mod outside;
mod package;
mod runaway;
mod shop;
#[path = "../machine/status.rs"]
mod status;
mod threshold;
mod upgrade;
mod users;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    match words.as_slice() {
        [first, suite, wanted @ ..] if first == "--inside" => inside::run(suite, wanted),
        _ => outside::run(&words),
    }
}
