//! TELLS. Reports as log lines, the picture as metrics and as a page for people.

pub mod log;
pub mod metrics;
mod sink;
pub mod view;
