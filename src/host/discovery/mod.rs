//! Finding a server's master and its workers among all that the command started.
//!
//! The master is the topmost process whose command line is gunicorn's: the command itself, or what
//! a shell script or a launcher started. A program of any name that embeds gunicorn is a master as
//! well: it holds heartbeat files, and its forks hold the same files.
//!
//! A worker is a fork of the master that has not executed anything (it shares its stack's address,
//! which execve(2) draws anew) and that holds a heartbeat file which the master holds too and no
//! other worker does. The master makes that file before it forks, so a fork without one is no
//! worker but a helper: gunicorn's dirty arbiter is one, and the files of the dirty workers below
//! it are its own and not the master's. A second master (USR2) is a child that executed gunicorn.

mod kin;
mod search;
#[cfg(test)]
mod tests;

pub(super) use search::{Discovery, Finding, Handed, server_below};
