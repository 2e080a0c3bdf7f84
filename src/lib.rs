//! `supervise` keeps Python processes within their memory limits, from outside.
//!
//! The modules, in reading order: [`units`] has the types that all modules share, and [`escape`]
//! makes foreign text safe to show; [`cli`] and [`config`] parse settings into a `Spec`;
//! [`supervisor`] decides; [`servers`] knows the wrapped programs; [`host`] controls the kernel;
//! [`agent`] talks to Python; [`control`] talks to operators; [`observe`] reports; [`driver`] is
//! the main loop between them.

pub mod agent;
pub mod cli;
pub mod config;
pub mod control;
pub mod driver;
pub mod escape;
pub mod host;
pub mod observe;
pub mod private_dir;
pub mod protocol;
pub mod queue;
pub mod servers;
pub mod supervisor;
pub mod units;
