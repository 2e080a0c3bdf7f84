//! The processes of a server that are neither its main process nor workers, with their names and
//! sizes: gunicorn's dirty arbiter with its workers, a resource tracker.

use crate::{
    host::context::Context,
    supervisor::{snapshot::HelperView, spec::Kind},
};

/// Maximum processes in the list.
const LISTED_MAX: usize = 32;

/// These children of the main process and all processes below them. Each child comes with whether
/// it is a fork that runs the server's own code.
pub(in crate::host) fn of_server(context: &Context, children: &[(i32, bool)]) -> Vec<HelperView> {
    let Kind::Server(server) = context.spec().kind else {
        return Vec::new();
    };
    let proc = context.proc();
    let view = |pid, name: Option<&str>| {
        let seen = proc.statm(pid).and_then(|statm| statm.read()).ok()?;
        Some(HelperView {
            pid,
            name: name.unwrap_or("helper").to_owned(),
            command: proc.command(pid),
            memory: seen.resident.minus(seen.shared),
        })
    };
    let mut all = Vec::new();
    for &(pid, forked) in children {
        let names = server.helpers.filter(|_| forked);
        all.extend(view(pid, names.map(|names| names.name)));
        let below = proc.descendants(pid).into_iter();
        all.extend(below.filter_map(|child| view(child, names.map(|names| names.children))));
    }
    all.truncate(LISTED_MAX);
    all
}
