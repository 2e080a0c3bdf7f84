//! The package, as an administrator meets it: installed on a Debian whose PID 1 is systemd and
//! whose control groups are of version 2, with real limits of memory.
//!
//! Outside, this program builds package and guests, boots each guest once and gives itself in;
//! inside (`--inside`) it is root, runs the guest's scenarios and says one line for each check. The
//! CPU is emulated, so nothing here asserts seconds: what is printed compares within the guest.
//!
//!     .ci/debian watchdog stop      installs what is needed, and runs only these scenarios
#![expect(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test says what it sees, and what cannot be done fails its scenario where it stands"
)]

mod book;
mod cgroup;
#[path = "../machine/client.rs"]
#[expect(dead_code, reason = "the tests beside and the benches use the rest")]
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
mod upgrade;
mod users;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    match words.as_slice() {
        [first, suite, wanted @ ..] if first == "--inside" => inside::run(suite, wanted),
        _ => outside::run(&words),
    }
}
