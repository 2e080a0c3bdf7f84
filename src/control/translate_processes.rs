//! Translates the processes that are not workers, and back.

use crate::{
    supervisor::snapshot::{HelperView, LeftoverView},
    units::Bytes,
};

use super::{
    documents::{HelperDoc, LeftoverDoc},
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

impl From<&HelperView> for HelperDoc {
    fn from(helper: &HelperView) -> Self {
        Self {
            pid: helper.pid,
            name: helper.name.clone(),
            command: helper.command.clone(),
            memory: helper.memory.get(),
        }
    }
}

impl From<HelperDoc> for HelperView {
    fn from(helper: HelperDoc) -> Self {
        Self {
            pid: helper.pid,
            name: helper.name,
            command: helper.command,
            memory: Bytes(helper.memory),
        }
    }
}

/// A helper, for tests.
#[cfg(test)]
pub(super) fn sample() -> HelperView {
    HelperView {
        pid: 44,
        name: "dirty worker".to_owned(),
        command: "gunicorn shop:app".to_owned(),
        memory: Bytes(8),
    }
}
