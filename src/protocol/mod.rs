//! THE PROTOCOL BETWEEN RUST AND PYTHON: the layout of all data that the two exchange. The same
//! layouts are in `python/supervise/_agent/protocol.py` (the agent) and
//! `python/supervise/_pool/protocol.py` (the pool's processes and the client of an executor). Both
//! sides are tested with the vectors in `tests/golden/protocol`.
//!
//! There are two encodings.
//!
//! *Fixed structs*, for data that is exchanged for each task, request or fork. Fields have fixed
//! offsets. Streams and datagrams are little-endian. Words of shared pages are in native byte
//! order, because access to a word must be one load or store.
//!
//! | what | module | peers |
//! |---|---|---|
//! | frames of a pool worker | [`frame`] | worker, supervisor |
//! | frames of an executor | [`frame`] | client, supervisor |
//! | messages of fork servers | [`fork_server`] | fork server, supervisor |
//! | marks in the output of a worker | [`mark`] | worker, supervisor |
//! | the page of a pool worker | [`pool_page`] | worker, supervisor |
//! | the page of counters | [`agent_page`], [`agent_routes`] | agents, supervisor |
//!
//! *JSON*, for all other data. Python needs only its standard library for it.
//!
//! | what | module | how it is sent |
//! |---|---|---|
//! | settings of the template | [`template`] | argument of its command line |
//! | messages of the template | [`template`] | datagrams, one with a descriptor |
//! | questions to agents and their answers | [`question`] | files, announced by a signal |
//! | errors of tasks and of starts | [`document`] | body of a frame, part of a message |
//!
//! Python's own encodings are not part of this: pickles, which only Python reads, and the stacks
//! that `faulthandler` writes.
//!
//! The processes of a pool come with the binary, but the client and its pickles come with the
//! Python package. So a pool has a version ([`frame::VERSION`]). The settings of the template, the
//! setup of an executor and the first frame of a worker contain it. A different version is an error
//! at the start. Agents stay in their workers during an upgrade of the supervisor. They have a
//! separate version ([`agent_page::VERSION`]) in their slot of the page and in each answer. If the
//! version of an agent differs, its worker keeps running and is treated as if it had no agent.
//!
//! Tasks run code of users, which can write any bytes into any of these channels. So a decoder
//! accepts any bytes and does not panic.

pub mod agent_page;
pub mod agent_routes;
pub mod document;
pub mod fork_server;
pub mod frame;
#[cfg(test)]
mod golden_tests;
pub mod mark;
pub mod pool_page;
pub mod question;
pub mod template;

/// The word number `number` of a page; 0 if the page is too short.
fn word(page: &[u8], number: usize) -> u64 {
    let at = number.saturating_mul(WORD);
    let bytes = page.get(at..at.saturating_add(WORD));
    u64::from_ne_bytes(bytes.and_then(|it| it.try_into().ok()).unwrap_or_default())
}

/// The length of a word of a page.
const WORD: usize = 8;
