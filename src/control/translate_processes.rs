//! Translates the processes that are not workers, and back.

use crate::{supervisor::snapshot::LeftoverView, units::Bytes};

use super::{
    documents::LeftoverDoc,
    translate::{InvalidStatus, duration, seconds},
};

impl From<&LeftoverView> for LeftoverDoc {
    fn from(left: &LeftoverView) -> Self {
        Self {
            worker: left.worker.to_string(),
            pid: left.pid,
            command: left.command.clone(),
            memory: left.memory.get(),
            processes: left.processes,
            idle_s: seconds(left.idle),
        }
    }
}

impl TryFrom<LeftoverDoc> for LeftoverView {
    type Error = InvalidStatus;

    fn try_from(left: LeftoverDoc) -> Result<Self, InvalidStatus> {
        Ok(Self {
            worker: left.worker.parse().map_err(InvalidStatus)?,
            pid: left.pid,
            command: left.command,
            memory: Bytes(left.memory),
            processes: left.processes,
            idle: duration(left.idle_s),
        })
    }
}
