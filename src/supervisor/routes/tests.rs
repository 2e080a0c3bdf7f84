//! Simulated services: twenty routes under a mixed load, and a kernel that shows memory late.

use super::*;

/// The kernel and the allocator show up to this much too little.
const NOISE: f64 = 256.0 * 1024.0;
const KEPT: f64 = 50.0 * 1024.0;

/// Workers that serve twenty routes.
struct Service {
    routes: Routes,
    now: Timestamp,
    random: u64,
    /// The true memory of each worker.
    memory: Vec<f64>,
    /// Requests of a route per second in each worker.
    rates: [f64; 20],
    /// Whether the requests of a route come at equal distances.
    is_regular: bool,
    names: Vec<Arc<str>>,
    /// Growth of each worker in a second without any request.
    background: f64,
}

impl Service {
    fn new(seed: u64, workers: usize) -> Self {
        Self {
            routes: Routes::default(),
            now: Timestamp::from_nanos(1_000_000_000_000),
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            memory: vec![100e6; workers],
            rates: [2.0; 20],
            is_regular: false,
            names: (0..20).map(|n| format!("/r{n}").into()).collect(),
            background: 0.0,
        }
    }

    /// From 0 to 1 (xorshift64*).
    fn random(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let bits = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        f64::from(u32::try_from(bits).unwrap()) / f64::from(u32::MAX)
    }

    /// The number of requests of a route since `before`, at random or at equal distances.
    fn requests(&mut self, route: usize, before: Timestamp) -> u64 {
        let rate = self.rates[route];
        if self.is_regular {
            let phase = Duration::from_millis(37).saturating_mul(u32::try_from(route).unwrap());
            let until = |at: Timestamp| scaled(at.later(phase).as_nanos(), rate / 1e9);
            return until(self.now) - until(before);
        }
        let limit = (-rate * self.now.since(before).as_secs_f64()).exp();
        let (mut number, mut product) = (0, self.random());
        while product > limit {
            number += 1;
            product *= self.random();
        }
        number
    }

    /// Seconds pass. `grow` is the growth of a worker by its number, a route and its requests.
    fn run(&mut self, seconds: u64, grow: &mut impl FnMut(usize, usize, u64) -> f64) {
        let end = self.now.later(Duration::from_secs(seconds));
        while self.now < end {
            let before = self.now;
            self.routes.reading += 1;
            self.now = self.routes.planned(before).min(end);
            let mut id = WorkerId::FIRST;
            for worker in 0..self.memory.len() {
                let mut done = Vec::new();
                for route in 0..20 {
                    let number = self.requests(route, before);
                    if number > 0 {
                        done.push((Arc::clone(&self.names[route]), number));
                        self.memory[worker] += grow(worker, route, number);
                    }
                }
                let seconds = self.now.since(before).as_secs_f64();
                self.memory[worker] += self.background * seconds;
                let shown = Bytes(1).scaled(self.memory[worker] - self.random() * NOISE);
                self.routes.read(self.now, id, done, resident(shown.get()));
                id = id.next();
            }
        }
    }

    fn certain(&self) -> Vec<String> {
        let view = self.routes.view().into_iter();
        view.filter(|route| route.certain)
            .map(|route| route.route)
            .collect()
    }
}

fn resident(anon: u64) -> Option<Resident> {
    let (anon, processes) = (Bytes(anon), 1);
    Some(Resident { anon, processes })
}

/// The growth by a leak of `/r7`.
fn leak(_: usize, route: usize, requests: u64) -> f64 {
    if route == 7 {
        float(requests) * KEPT
    } else {
        0.0
    }
}

#[test]
fn a_route_that_keeps_memory_is_certain_within_two_minutes_under_a_mixed_load() {
    for seed in 1..=20 {
        let mut service = Service::new(seed, 2);
        // The busiest route keeps nothing.
        service.rates[3] = 20.0;
        service.run(120, &mut leak);
        let routes = service.routes.view();
        let first = &routes[0];
        assert_eq!(service.certain(), ["/r7"], "seed {seed}: {routes:#?}");
        assert_eq!(first.route, "/r7", "seed {seed}");
        let kept = first.per_request.as_f64() / KEPT;
        assert!(
            (0.5..1.5).contains(&kept) && first.share > 0.5,
            "seed {seed}: {first:?}"
        );
        assert_eq!(routes.len(), 20);
    }
}

#[test]
fn a_route_that_keeps_little_is_certain_after_half_an_hour() {
    let mut service = Service::new(1, 2);
    service.rates = [5.0; 20];
    let mut leak = |worker: usize, route: usize, requests: u64| leak(worker, route, requests) / 8.0;
    service.run(120, &mut leak);
    assert_eq!(service.certain(), Vec::<String>::new());
    service.run(1800, &mut leak);
    assert_eq!(service.certain(), ["/r7"]);
    assert_eq!(service.routes.view()[0].route, "/r7");
}

#[test]
fn a_route_that_begins_to_keep_memory_is_certain_after_a_few_minutes() {
    let mut service = Service::new(1, 2);
    service.run(900, &mut |_, _, _| 0.0);
    assert_eq!(service.certain(), Vec::<String>::new());
    service.run(240, &mut leak);
    assert_eq!(service.certain(), ["/r7"], "{:#?}", service.routes.view());
}

#[test]
fn growth_that_no_request_causes_is_not_attributed_to_a_route() {
    for seed in 1..=20 {
        let mut service = Service::new(seed, 2);
        service.background = 250e3;
        service.run(240, &mut |_, _, _| 0.0);
        assert_eq!(service.certain(), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn a_route_that_has_filled_its_cache_is_no_longer_accused() {
    for seed in 1..=10 {
        let mut service = Service::new(seed, 2);
        let mut room = [200.0 * KEPT; 2];
        let mut fill = |worker: usize, route: usize, requests: u64| {
            let kept = leak(worker, route, requests).min(room[worker]);
            room[worker] -= kept;
            kept
        };
        service.run(90, &mut fill);
        assert_eq!(service.certain(), ["/r7"], "seed {seed}");
        service.run(150, &mut fill);
        assert_eq!(service.certain(), Vec::<String>::new(), "seed {seed}");
        service.run(450, &mut fill);
        let routes = service.routes.view();
        assert_eq!(service.certain(), Vec::<String>::new(), "seed {seed}");
        let filled = routes.iter().find(|route| route.route == "/r7").unwrap();
        assert!(
            filled.per_request < Bytes(10 << 10),
            "seed {seed}: {routes:#?}"
        );
    }
}

#[test]
fn a_route_that_keeps_memory_is_certain_under_a_regular_load() {
    for seed in 1..=5 {
        let mut service = Service::new(seed, 2);
        service.is_regular = true;
        service.run(120, &mut |worker, route, requests| {
            5.0 * leak(worker, route, requests)
        });
        assert_eq!(
            service.certain(),
            ["/r7"],
            "seed {seed}: {:#?}",
            service.routes.view()
        );
    }
}

#[test]
fn imports_of_a_first_request_are_not_growth() {
    let mut service = Service::new(1, 2);
    service.rates = [0.5; 20];
    let mut imported = [[false; 20]; 2];
    service.run(120, &mut |worker, route, _| {
        let is_first = !std::mem::replace(&mut imported[worker][route], true);
        if is_first { 20e6 } else { 0.0 }
    });
    let routes = service.routes.view();
    let growth = routes.iter().map(|route| route.growth.get()).sum::<u64>();
    assert!(growth < 10_000_000, "{routes:#?}");
    assert_eq!(service.certain(), Vec::<String>::new());
}

#[test]
fn growth_in_one_request_of_many_is_not_certain() {
    for seed in 1..=10 {
        let mut service = Service::new(seed, 1);
        service.rates[7] = 0.1;
        let mut calls = 0;
        let mut grow = |_: usize, route: usize, requests: u64| {
            let before = calls;
            calls += if route == 7 { requests } else { 0 };
            if before < 5 && calls >= 5 { 30e6 } else { 0.0 }
        };
        for second in 0..300 {
            service.run(1, &mut grow);
            assert_eq!(
                service.certain(),
                Vec::<String>::new(),
                "seed {seed}, {second}"
            );
        }
    }
}

#[test]
fn routes_that_are_always_called_together_are_not_certain() {
    let mut routes = Routes::default();
    let mut anon = 100_000_000;
    for second in 0..200_u64 {
        let number = 1 + second * 7 % 5;
        anon += number * 50_000;
        let done = vec![("/a".into(), number), ("/b".into(), number)];
        routes.read(at(1000 * second), WorkerId::FIRST, done, resident(anon));
    }
    let view = routes.view();
    assert!(view.iter().all(|route| !route.certain), "{view:#?}");
    let growth = view.iter().map(|route| route.growth.get()).sum::<u64>();
    assert!((25_000_000..35_000_000).contains(&growth), "{view:#?}");
}

#[test]
fn a_65th_route_is_counted_with_all_others() {
    let mut routes = Routes::default();
    for number in 0..70 {
        let done = vec![(format!("/r{number}").into(), 1)];
        routes.read(at(number), WorkerId::FIRST, done, None);
    }
    routes.read(
        at(70),
        WorkerId::FIRST,
        vec![(OTHER_ROUTES.into(), 4)],
        None,
    );
    let view = routes.view();
    assert_eq!(view.len(), 65);
    assert_eq!(
        (view[0].route.as_str(), view[0].requests),
        (OTHER_ROUTES, 10)
    );
}

#[test]
fn any_counts_leave_an_estimate_of_finite_figures() {
    let mut routes = Routes::default();
    for number in 0..2000 {
        let done = vec![("/a".into(), u64::MAX), ("/b".into(), number % 7)];
        let anon = if number % 3 == 0 { u64::MAX } else { number };
        routes.read(at(1000 * number), WorkerId::FIRST, done, resident(anon));
    }
    let view = routes.view();
    assert!(
        view.iter().all(|route| route.share.is_finite()),
        "{view:#?}"
    );
    let coefficients = routes.estimate.unwrap().coefficients();
    assert!(
        coefficients.iter().all(|one| one.value.is_finite()),
        "{view:#?}"
    );
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_nanos(millis * 1_000_000)
}

#[test]
fn windows_of_the_start_of_a_route_and_of_idle_workers_are_left_out() {
    let mut window = Window::default();
    let mut end = |millis, column: Option<usize>, memory| {
        let requests = column.map(|column| (column, 1)).into_iter().collect();
        let ended = window.end(at(millis), memory, &requests);
        ended.map(|(lasts, growth)| (lasts.as_millis(), growth))
    };
    assert_eq!(end(1000, Some(0), resident(50)), None);
    assert_eq!(end(2000, Some(0), resident(60)), None);
    assert_eq!(end(5000, Some(0), resident(60)), None);
    assert_eq!(end(5100, Some(0), resident(40)), Some((100, -20.0)));
    assert_eq!(end(5200, Some(1), resident(70)), None);
    assert_eq!(end(5300, Some(1), resident(90)), Some((100, 20.0)));
    // The worker has no requests, and is idle after two seconds.
    assert_eq!(end(7200, None, resident(90)), Some((1900, 0.0)));
    assert_eq!(end(7400, None, resident(95)), None);
    // Something else has changed the memory, and the next window begins after that.
    assert_eq!(end(7500, Some(0), None), None);
    assert_eq!(end(7600, Some(0), resident(95)), None);
    assert_eq!(end(7700, Some(0), resident(96)), Some((100, 1.0)));
    let forked = Resident {
        anon: Bytes(200),
        processes: 2,
    };
    assert_eq!(end(7800, Some(0), Some(forked)), None);
}
