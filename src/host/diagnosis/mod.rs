//! What this machine allows, and why something is missing: the rows of `supervise doctor`, our own
//! privileges, and the reason why a process has no agent.

pub(super) mod agent_diagnosis;
pub mod doctor;
pub mod privileges;
