//! `supervise` keeps Python processes within their memory, from outside.
//!
//! The rooms, in reading order: [`units`] are the words all share, and [`escape`] makes foreign
//! text safe to show; [`cli`] and [`config`] read
//! wishes into a `Spec`; [`supervisor`] decides; [`servers`] knows the wrapped programs; [`host`]
//! touches the kernel; [`agent`] talks to Python; [`control`] talks to operators; [`observe`]
//! tells; [`driver`] is the one loop between them.

pub mod agent;
pub mod cli;
pub mod config;
pub mod control;
pub mod driver;
pub mod escape;
pub mod host;
pub mod observe;
pub mod private_dir;
pub mod queue;
pub mod servers;
pub mod supervisor;
pub mod units;
