//! Complete pages and graphs.

use serde_json::json;

use super::*;

const MIB: u64 = 1 << 20;

fn page(document: &Value, width: usize) -> String {
    report(document, width, Path::new("/srv/shop"))
}

fn leak() -> Value {
    json!({
        "id": "r3", "worker": "w7", "pid": 4242, "at": 1_757_073_600.25, "cause": "ceiling",
        "process": {
            "private": 301 * MIB, "rss": 312 * MIB, "baseline": 211 * MIB, "growth": 90 * MIB,
        },
        "verdict": "python", "explained": 0.9,
        "suspects": [
            {
                "where": "/srv/shop/app.py:42", "function": "remember", "type": "bytearray",
                "count": 12400,
                "bytes": 81 * MIB, "growth_bytes": 79 * MIB, "holder": "app.CACHE",
                "chain": ["app.CACHE", "dict", "list", "bytearray"],
                "note": "one more for each request",
            },
            {
                "where": null, "function": null, "type": "Session", "count": 310, "bytes": 2 * MIB,
                "growth_bytes": null, "holder": null, "chain": [], "note": null,
            },
        ],
        "gc": {"collected": 1200, "uncollectable": 0, "enabled": false, "freed_bytes": 3 * MIB},
        "malloc": {"in_use": 120 * MIB, "free": 4 * MIB, "arenas": 3},
        "threads": [{"name": "MainThread", "stack": ["app.py:1 <module>"]}],
        "tasks": {"count": 412, "growth": 380},
        "request": ["GET /leak/7"],
        "routes": [
            {
                "route": "/leak/<id>", "requests": 1200, "growth_bytes": 86 * MIB,
                "per_request": 71_680, "share": 0.955, "certain": true,
            },
            {"route": "/", "requests": 9, "growth_bytes": MIB, "per_request": 9, "share": 0.01},
        ],
        "grew": {"python": 81 * MIB, "native": 5 * MIB, "garbage": 0, "freed": 4 * MIB},
        "next": "`app.CACHE` grew by 12,400 entries; bound it, or use a WeakValueDictionary",
        "cost": {"windows": 2, "traced_s": 6.0, "took_s": 0.31},
        "base": "armed", "missing": ["native stacks: not allowed"], "unheard_of": [1, 2],
    })
}

#[test]
fn a_leak_is_shown_with_worker_verdict_suspects_and_advice() {
    let expected = "\
verdict    live Python objects: 81M of 90M growth explained
line       app.py:42 remember
held by    app.CACHE
what to do `app.CACHE` grew by 12,400 entries; bound it, or use a WeakValueDictionary

r3         w7 (pid 4242), ceiling, 2025-09-05T12:00:00Z: 301M private (312M resident), 211M after
           warm-up, grew by 90M

suspects
 1.   +79M app.py:42 remember: 12,400 bytearray, 81M in all
           held by app.CACHE
             app.CACHE -> dict -> list -> bytearray
           one more for each request
 2.     2M 310 Session

running    GET /leak/7
routes     /leak/<id>: 70K for each request, 86M and 96% of the growth of the service (certain)
tasks      412 asyncio tasks, 380 more than after warm-up
grew by    python 81M, native 5M, freed 4M
gc         collected 1,200 objects, which freed 3M; it is switched off
malloc     120M in use, 4M free, in 3 arenas
cost       traced for 6.0s in 2 windows; the report took 0.3s
missing    native stacks: not allowed
";
    assert_eq!(page(&leak(), 100), expected);
}

#[test]
fn a_worker_that_did_not_answer_is_shown_with_outside_figures() {
    let document = json!({
        "id": "r4", "worker": "w1", "cause": "cap",
        "process": {"private": 512 * MIB, "rss": 600 * MIB, "baseline": null},
        "threads": [
            {"name": "t1", "stack": ["pool.py:9 wait", "pool.py:3 run"]},
            {"name": "MainThread", "stack": ["load.py:7 <module>"]},
            {"name": "t2", "stack": ["pool.py:9 wait", "pool.py:3 run"]},
        ],
        "base": "none",
        "missing": ["the worker's own words: it did not answer within 2s"],
    });
    let expected = "\
verdict    none: the worker did not answer, these figures were
           measured from outside
what to do ask again with `supervise report WORKER` while a
           worker's memory is high

r4         w1, cap: 512M private (600M resident)

threads    2 threads (t1 ...): pool.py:9 wait -> pool.py:3 run
           MainThread: load.py:7 <module>
missing    a census from before the growth: sizes are totals, not
           growth
           the worker's own words: it did not answer within 2s
";
    assert_eq!(page(&document, 66), expected);
}

#[test]
fn each_verdict_has_its_phrase() {
    for (verdict, words) in [
        ("python", "live Python objects"),
        ("native", "memory outside Python's allocators"),
        ("garbage", "cycles that gc had not collected"),
        ("freed", "free in the allocator, not returned to the system"),
        ("mixed", "several things at once (python 40M, native 50M)"),
        ("unknown", "not known, because the objects were not counted"),
        ("later", "later"),
    ] {
        let document = json!({
            "verdict": verdict, "explained": 0.5,
            "process": {"private": 300 * MIB, "baseline": 210 * MIB},
            "grew": {"python": 40 * MIB, "native": 50 * MIB},
        });
        let text = page(&document, 120);
        let line = format!("verdict    {words}: 45M of 90M growth explained\n");
        assert!(text.contains(&line), "{text}");
        assert!(text.contains("what to do "), "{text}");
    }
}

#[test]
fn a_report_of_another_shape_is_shown_as_far_as_it_can_be_parsed() {
    let document = json!({
        "id": 3, "worker": ["w1"], "at": "yesterday", "verdict": "native", "explained": "half",
        "process": 7, "suspects": [1, {"where": "a.py:1", "count": "many", "chain": "root"}],
        "gc": [], "tasks": null, "request": "GET /", "missing": {"a": 1}, "cost": {"took_s": -1},
    });
    let expected = "\
verdict    memory outside Python's allocators
line       a.py:1
what to do look for allocations outside Python: numpy, images, drivers, C extensions; \
recycling by memory limits them
           meanwhile

3          a worker: no figures

suspects
 1.      - a.py:1: memory
             root

running    GET /
cost       the report took 0s
";
    assert_eq!(page(&document, 120), expected);
    let nothing = page(&json!(null), 120);
    assert!(
        nothing.contains("\nreport     a worker: no figures\n"),
        "{nothing}"
    );
}

#[test]
fn text_of_a_worker_cannot_forge_a_line_or_exceed_the_width() {
    let mut document = leak();
    document["suspects"][0]["chain"] = (0..60).map(|link| format!("link{link}")).collect();
    document["suspects"][0]["note"] = json!("long".repeat(90));
    document["suspects"][0]["function"] = json!("x\n\u{1b}[2J");
    document["suspects"][1]["type"] = json!("word ".repeat(200));
    document["request"] = (0..10).map(|request| format!("GET /{request}")).collect();
    document["suspects"]
        .as_array_mut()
        .unwrap()
        .extend(vec![json!({"type": "dict"}); 20]);
    let text = page(&document, 100);
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
        assert!(!line.contains(char::is_control), "{line}");
    }
    for line in [
        " 1.   +79M app.py:42 x\\n\\u{1b}[2J: 12,400 bytearray, 81M in all",
        "             link0 -> link1 -> link2 -> link3 -> (52 more) -> link56 -> link57 -> link58 -> link59",
        "           and 14 more, see --json",
        "           and 4 more, see --json",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn many_threads_are_grouped_by_their_stack() {
    let mut document = leak();
    let thread = |number| json!({"name": format!("t{number}"), "stack": ["q.py:5 get"]});
    document["threads"] = (0..40).map(thread).collect();
    let text = page(&document, 100);
    assert!(
        text.contains("\nthreads    40 threads (t0 ...): q.py:5 get\n"),
        "{text}"
    );
}

#[test]
fn the_graph_shares_equal_beginnings_and_escapes_labels() {
    let document = json!({
        "id": "r3", "worker": "w7", "verdict": "python", "explained": 0.5,
        "suspects": [
            {
                "where": "C:\\app.py:4", "function": "f", "type": "A", "count": 2,
                "growth_bytes": MIB,
                "holder": "app.CACHE", "chain": ["module app", "dict \"x\""],
            },
            {"type": "B", "bytes": 512, "holder": "app.CACHE", "chain": ["module app", "list\n"]},
            {"type": "C", "chain": []},
        ],
    });
    let expected = r#"digraph "r3" {
    rankdir=LR;
    node [shape=box];
    label="w7: live Python objects: 50% explained";
    n1 [label="app.CACHE"];
    n2 [label="module app"];
    n1 -> n2;
    n3 [label="dict \"x\""];
    n2 -> n3;
    s1 [label="2 A\n+1M\nC:\\app.py:4 f", style=bold];
    n3 -> s1;
    n4 [label="list"];
    n2 -> n4;
    s2 [label="B\n512", style=bold];
    n4 -> s2;
    s3 [label="C\n-", style=bold];
}
"#;
    assert_eq!(dot(&document), expected);
}
