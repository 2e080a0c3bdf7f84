//! What a status shows.

use serde_json::Value;

/// The live workers of a status.
pub(crate) fn workers(status: &Value) -> &[Value] {
    status["workers"].as_array().map_or(&[], Vec::as_slice)
}

/// The pids of the live workers of a status.
pub(crate) fn pids(status: &Value) -> Vec<i32> {
    workers(status)
        .iter()
        .filter_map(|worker| i32::try_from(worker["pid"].as_i64()?).ok())
        .collect()
}
