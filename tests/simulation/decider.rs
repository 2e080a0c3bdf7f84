//! The decider without the rest of `supervise`. That this builds shows that it needs nothing else.
//!
//! Its unit tests run as part of `supervise`, not here.
#![cfg(not(test))]

#[path = "../../src/servers/mod.rs"]
pub mod servers;
#[path = "../../src/supervisor/mod.rs"]
pub mod supervisor;
#[path = "../../src/units/mod.rs"]
pub mod units;
