//! A request takes all memory it can get: its worker reaches the cap, and the unit is not affected.

use serde_json::Value;

use super::{
    cgroup,
    checks::Checks,
    machine::show,
    shop::{PLAN, UNIT, ends, load, pids, workers},
};

pub(crate) fn run(checks: &mut Checks) {
    let shop = PLAN.start();
    let before = pids(&shop.ready());
    let (invocation, group) = (show(UNIT, "InvocationID"), shop.group());
    let others = super::client::Load {
        path: "/pid".to_owned(),
        ..load(10.0)
    }
    .start();
    let lost = load(1.0).once("/alloc?mb=1000&rate=1000000");
    checks.check(
        "the runaway request is lost",
        lost.is_err(),
        format_args!("{lost:?}"),
    );
    let end = shop.wait("an end by the cap", || {
        let status = shop.status()?;
        ends(&status).first().cloned()
    });
    // A surge worker that was started when it exceeded its ceiling may exist with the replacement.
    let status = shop.wait("two ready workers", || {
        let status = shop.status()?;
        let is_ready = |worker: &&Value| worker["state"] == "ready";
        (workers(&status).iter().filter(is_ready).count() >= 2).then_some(status)
    });
    let outcome = others.finish();
    let (peak, limit) = (bytes(&end["peak"]), bytes(&end["limit"]));
    // The kernel's limit is lowered in steps of a megabyte for memory charged elsewhere.
    checks.check(
        "its end's cause is the cap, and its peak is the limit",
        end["cause"] == "cap" && peak.abs_diff(limit) <= 1 << 20,
        format_args!("cause {}, peak {peak}, limit {limit}", end["cause"]),
    );
    let after = pids(&status);
    let stayed = after.iter().filter(|pid| before.contains(pid)).count();
    let ended = ends(&status).len();
    checks.check(
        "exactly one worker ended",
        stayed == 1 && ended == 1,
        format_args!("{before:?}, then {after:?}; {ended} end"),
    );
    checks.check(
        "no other request is lost",
        outcome.failed() == 0 && outcome.ok > 0,
        &outcome,
    );
    let (state, restarts) = (show(UNIT, "ActiveState"), show(UNIT, "NRestarts"));
    checks.check(
        "the unit stays active, in the same invocation",
        state == "active" && restarts == "0" && show(UNIT, "InvocationID") == invocation,
        format_args!(
            "{state}, NRestarts={restarts}, Result={}",
            show(UNIT, "Result")
        ),
    );
    let kills = cgroup::entry(&group, "memory.events", "oom_group_kill");
    checks.equal(
        "the kernel's own count of groups killed",
        kills.unwrap_or(0),
        1,
    );
}

fn bytes(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}
