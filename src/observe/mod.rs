//! SHOWS. Events as log lines, the snapshot as metrics and as a page of text, and a memory report
//! as a page of text.

pub mod log;
pub mod metrics;
pub mod report_page;
pub mod status_page;
pub mod suggestion_page;
mod text_layout;
