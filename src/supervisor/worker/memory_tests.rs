//! What follows from one worker's samples.

use super::*;

const CEILING: Option<Bytes> = Some(Bytes::mib(300));
const EXACT: SampleKind = SampleKind::Exact {
    within: Bytes::mib(15),
};

fn at(millis: u64) -> Timestamp {
    Timestamp::from_nanos(millis * 1_000_000)
}

fn cheap(millis: u64, anon_mib: u64) -> Sample {
    Sample {
        at: at(millis),
        rss: Bytes::mib(anon_mib + 20),
        anon: Bytes::mib(anon_mib),
        processes: 1,
        ..Sample::default()
    }
}

fn exact(millis: u64, anon_mib: u64, private_mib: u64) -> Sample {
    let private = Bytes::mib(private_mib);
    let exact = Exact {
        private,
        anon: private,
        pss: private,
        charged: None,
        took: Duration::from_millis(1),
        ..Exact::default()
    };
    Sample {
        exact: Some(exact),
        ..cheap(millis, anon_mib)
    }
}

fn fed(samples: &[Sample]) -> Memory {
    let mut memory = Memory::new(Measure::Private, false, at(0));
    for sample in samples {
        memory.on_sample(*sample, CEILING);
    }
    memory
}

#[test]
fn the_estimate_is_the_exact_figure_plus_the_change_in_anonymous_pages() {
    assert_eq!(
        fed(&[exact(0, 50, 30), cheap(100, 60)]).value(),
        Bytes::mib(40)
    );
    assert_eq!(
        fed(&[exact(0, 50, 30), cheap(100, 45)]).value(),
        Bytes::mib(25)
    );
}

/// A worker of one parent process of 40 MiB and four forks.
fn tree(millis: u64) -> Sample {
    let mut sample = Sample {
        processes: 5,
        ..exact(millis, 200, 10)
    };
    if let Some(exact) = &mut sample.exact {
        exact.share = Some(Bytes::mib(50));
    }
    sample
}

#[test]
fn memory_that_only_processes_of_a_whole_program_share_counts() {
    let mut program = Memory::new(Measure::Private, true, at(0));
    program.on_sample(tree(0), CEILING);
    assert_eq!(program.value(), Bytes::mib(50));
    assert_eq!(program.shared(), Bytes::mib(150));
    // A server's worker shares its pages with its master as well.
    assert_eq!(fed(&[tree(0)]).value(), Bytes::mib(10));
    // Before Linux 5.3 there are no shares.
    program.on_sample(exact(100, 200, 10), CEILING);
    assert_eq!(program.value(), Bytes::mib(10));
}

#[test]
fn pages_that_count_twice_after_a_fork_do_not_raise_the_peak() {
    let forked = Sample {
        processes: 5,
        ..cheap(100, 200)
    };
    let memory = fed(&[exact(0, 40, 40), forked]);
    assert_eq!(memory.peak(), Bytes::mib(40));
    assert!(!memory.is_sure());
}

#[test]
fn a_sample_that_is_only_an_upper_bound_does_not_count_as_over() {
    let mut memory = fed(&[cheap(0, 400)]);
    assert_eq!(memory.samples_over(), 0);
    assert_eq!(memory.poll_sample(at(1000), CEILING), Some(EXACT));
    memory.on_sample(exact(1001, 400, 310), CEILING);
    assert_eq!(memory.samples_over(), 1);
}

#[test]
fn only_consecutive_samples_over_the_ceiling_count() {
    assert_eq!(
        fed(&[exact(0, 300, 310), cheap(1, 301), cheap(2, 302)]).samples_over(),
        3
    );
    assert_eq!(
        fed(&[exact(0, 300, 310), cheap(1, 100), cheap(2, 302)]).samples_over(),
        1
    );
}

#[test]
fn a_steady_leak_has_a_slope_and_a_forecast() {
    let samples: Vec<_> = (0..10)
        .map(|i| exact(i * 1000, 100 + i * 10, 100 + i * 10))
        .collect();
    let memory = fed(&samples);
    let mib_per_second = memory.slope().unwrap() / Bytes::mib(1).as_f64();
    assert!((mib_per_second - 10.0).abs() < 0.01, "{mib_per_second}");
    let left = memory.time_to(Bytes::mib(300)).unwrap().as_secs_f64();
    assert!((left - 11.0).abs() < 0.1, "{left}");
}

#[test]
fn samples_become_more_frequent_near_the_ceiling() {
    let far = fed(&[exact(0, 100, 100), cheap(1000, 101)]);
    assert_eq!(far.sample_at(), at(2000));
    let near = fed(&[exact(0, 250, 250), cheap(1000, 270), cheap(2000, 290)]);
    let spacing = near.sample_at().since(at(2000));
    assert!(spacing <= Duration::from_millis(130), "{spacing:?}");
    let runaway = fed(&[exact(0, 100, 100), cheap(100, 290)]);
    assert!(runaway.sample_at().since(at(100)) <= Duration::from_millis(2));
}

#[test]
fn after_a_fork_an_exact_sample_is_taken() {
    let forked = Sample {
        processes: 2,
        ..cheap(400, 400)
    };
    let mut memory = fed(&[exact(0, 200, 180), forked]);
    assert_eq!(memory.samples_over(), 0);
    assert_eq!(memory.poll_sample(at(2000), CEILING), Some(EXACT));
    memory.on_sample(
        Sample {
            processes: 2,
            ..exact(2001, 400, 190)
        },
        CEILING,
    );
    assert_eq!(
        (memory.value(), memory.samples_over()),
        (Bytes::mib(190), 0)
    );
}

#[test]
fn growing_shared_memory_causes_an_exact_sample_and_growing_file_mappings_do_not() {
    let mapped = |millis: u64, shmem: u64, files: u64| Sample {
        rss: Bytes::mib(70 + shmem + files),
        shmem: Bytes::mib(shmem),
        ..cheap(millis, 50)
    };
    let mut memory = fed(&[exact(0, 50, 30), mapped(1000, 10, 500)]);
    assert_eq!(
        memory.poll_sample(at(2000), CEILING),
        Some(SampleKind::Cheap)
    );
    memory.on_sample(mapped(2000, 80, 0), CEILING);
    assert_eq!(memory.poll_sample(at(3000), CEILING), Some(EXACT));
}

#[test]
fn growing_file_mappings_cause_an_exact_sample_of_pss() {
    let mut memory = Memory::new(Measure::Pss, false, at(0));
    memory.on_sample(exact(0, 50, 30), CEILING);
    let mapped = Sample {
        rss: Bytes::mib(150),
        ..cheap(1000, 50)
    };
    memory.on_sample(mapped, CEILING);
    assert_eq!(memory.poll_sample(at(2000), CEILING), Some(EXACT));
}

#[test]
fn a_late_exact_sample_does_not_replace_a_newer_cheap_one() {
    let memory = fed(&[exact(0, 50, 30), cheap(100, 60), exact(50, 55, 35)]);
    assert_eq!(memory.value(), Bytes::mib(40));
    assert_eq!(memory.last().unwrap().at, at(100));
}

#[test]
fn pages_touched_before_the_move_into_the_group_are_charged_elsewhere() {
    let mut sample = exact(0, 50, 30);
    sample.exact = sample.exact.map(|e| Exact {
        private: Bytes::mib(90),
        charged: Some(Bytes::mib(22)),
        ..e
    });
    assert_eq!(fed(&[sample]).charged_elsewhere(), Some(Bytes::mib(8)));
    assert_eq!(fed(&[exact(0, 50, 30)]).charged_elsewhere(), None);
}

#[test]
fn file_pages_are_not_part_of_the_peak() {
    let mapped = Sample {
        rss: Bytes::mib(370),
        ..cheap(100, 60)
    };
    let memory = fed(&[exact(0, 50, 50), mapped, cheap(200, 40)]);
    assert_eq!(memory.peak(), Bytes::mib(60));
    assert_eq!(memory.peak_of(Bytes::mib(390)), Bytes::mib(80));
    assert_eq!(memory.peak_of(Bytes::mib(100)), Bytes::mib(60));
}

#[test]
fn the_cgroup_measure_counts_what_cannot_be_reclaimed() {
    let mut memory = Memory::new(Measure::Cgroup, false, at(0));
    let group = |millis, held: Option<u64>| Sample {
        cgroup: Some(Bytes::mib(900)),
        held: held.map(Bytes::mib),
        ..cheap(millis, 50)
    };
    memory.on_sample(group(0, Some(80)), CEILING);
    assert_eq!(memory.value(), Bytes::mib(80));
    // A sample without this figure keeps the last one.
    memory.on_sample(group(100, None), CEILING);
    assert_eq!(memory.value(), Bytes::mib(80));
    assert_eq!(memory.view(None).cgroup, Some(Bytes::mib(80)));
}
