//! Growth by route: the route that keeps memory is named.

use std::time::Duration;

use serde_json::Value;

use super::{
    client::Load,
    service::{Plan, Service, free_port},
    turn,
    venv::{FLASK, Gunicorn, NEWEST},
};

const SOON: Duration = Duration::from_secs(60);
const LEAK_KB: u64 = 500;

/// The figures of a route with fewer requests are rough.
const REQUESTS: u64 = 150;

/// Starts a load on each of twenty routes, and waits until a route is certain to grow, and its
/// figures are exact enough.
fn wait_for_certain(service: &Service, port: u16) -> Value {
    let loads: Vec<_> = (0..20)
        .map(|number| Load {
            path: format!("/r{number}/{}", 100 + number),
            connections: 1,
            // The busiest route keeps nothing. Routes that are always requested at the same time
            // could not be told apart.
            rate: Some(if number == 3 {
                20.0
            } else {
                3.0 + 0.2 * f64::from(number)
            }),
            lasts: 2 * SOON,
            ..Load::on(port)
        })
        .map(Load::start)
        .collect();
    let status = service.wait("a route that is certain to grow", SOON, || {
        let status = service.status()?;
        let is_certain = |route: &Value| {
            route["certain"] == true && route["requests"].as_u64() >= Some(REQUESTS)
        };
        (status["routes"].as_array()?.iter().any(is_certain)).then_some(status)
    });
    for load in loads {
        let outcome = load.finish();
        assert_eq!(outcome.failed(), 0, "{outcome}");
    }
    status
}

/// Asserts that the route that keeps memory is named in the status, in the metrics and on the page.
fn assert_named(gunicorn: Gunicorn, route: &str) {
    let _turn = turn::loaded();
    let port = free_port();
    let service = Plan::supervise(&["--ceiling", "2G"], &NEWEST.gunicorn(port, gunicorn))
        .env("LEAK_KB", LEAK_KB)
        .start();
    service.ready(2);
    let status = wait_for_certain(&service, port);
    let routes = status["routes"].as_array().unwrap();
    let (first, others) = routes.split_first().unwrap();
    assert_eq!(first["route"], route, "{status:#}");
    let is_uncertain = |route: &Value| route["certain"] == false;
    assert!(others.iter().all(is_uncertain), "{status:#}");
    let kept = first["per_request"].as_u64().unwrap() >> 10;
    assert!((LEAK_KB / 2..LEAK_KB * 2).contains(&kept), "{first}");
    assert!(first["share"].as_f64().unwrap() > 0.5, "{first}");
    let (_, metrics) = service.ask("/metrics");
    let certain = format!("supervise_route_growth_certain{{route=\"{route}\"}} 1\n");
    assert!(metrics.contains(&certain), "{metrics}");
    let page = service.client(&["status"]).stdout;
    let page = String::from_utf8_lossy(&page);
    let row = page.lines().find(|line| line.starts_with(route));
    assert!(row.is_some_and(|row| row.ends_with("yes")), "{page}");
}

#[test]
fn the_route_that_keeps_memory_is_named_first_under_a_mixed_load() {
    let gunicorn = Gunicorn {
        app: "twenty_routes:app",
        ..FLASK
    };
    assert_named(gunicorn, "/r7/<int:item>");
}

#[test]
fn the_route_that_keeps_memory_is_named_without_templates_in_asgi_workers() {
    let gunicorn = Gunicorn {
        app: "twenty_routes_asgi:app",
        ..Gunicorn::of("asgi")
    };
    assert_named(gunicorn, "/r7/{n}");
}
