//! TELLS. Reports as log lines, the picture as metrics and as a page for people, and why a worker
//! is fat as another.

mod journal;
pub mod log;
pub mod metrics;
pub mod page;
mod paper;
mod sink;
pub mod view;
