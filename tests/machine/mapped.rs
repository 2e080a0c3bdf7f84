//! Pages of files do not count as a worker's memory: not for its ceiling, its cap or the status.
//! Unnamed shared memory does.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use super::{
    client::Load,
    pool, proc,
    service::{Plan, Service, free_port},
    status::workers,
    turn,
    venv::{Gunicorn, NEWEST, programs, python},
};

const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// A folder on a disk. The folder for temporary files may be a tmpfs.
fn disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
}

#[test]
fn a_job_that_maps_more_than_its_cap_survives_unless_it_writes_to_private_pages() {
    let _turn = turn::beside();
    let folder = disk();
    let options = ["--restart", "never", "--cap", "100M"];
    let program = programs().join("maps.py").display().to_string();
    for kind in ["r", "c"] {
        let words = [&python(), &program, kind, "150", "40"].map(ToString::to_string);
        let plan = Plan::supervise(&options, &words).env("MAPS_FOLDER", folder.path().display());
        let ended = plan.run(SOON);
        let by_rlimit = ended.stderr.contains("RLIMIT_DATA");
        if by_rlimit && kind == "c" {
            println!("NOT RUN: needs a memory cgroup to limit pages copied on write");
            continue;
        }
        let expected = if kind == "r" { 0 } else { 128 + 9 };
        assert_eq!(
            ended.status.code(),
            Some(expected),
            "{kind}: {}",
            ended.stderr
        );
        let warns = ended.stderr.contains("warn");
        assert_eq!(warns, kind == "c", "{}", ended.stderr);
    }
}

/// A gunicorn with one worker that maps files on request: ceiling 100M, cap 200M.
fn start_gunicorn(folder: &Path, named: &Path) -> (Service, Load) {
    let port = free_port();
    let gunicorn = Gunicorn {
        workers: 1,
        class: "sync",
        app: "maps:app",
    };
    let options = ["--ceiling", "100M", "--cap", "200M", "--min-age", "100ms"];
    let service = Plan::supervise(&options, &NEWEST.gunicorn(port, gunicorn))
        .env("MAPS_FOLDER", folder.display())
        .env("MAPS_TMPFS", named.display())
        .start();
    service.ready(1);
    (service, Load::on(port))
}

fn figure(status: &Value, name: &str) -> Option<u64> {
    workers(status).first()?["memory"][name].as_u64()
}

/// The kernel's memory limit of the only worker. `None` without a memory cgroup.
fn limit(service: &Service) -> Option<u64> {
    let groups = proc::groups_of(service.pid().try_into().unwrap());
    let files = ["w1/memory.limit_in_bytes", "w1/memory.max"];
    let paths: Vec<PathBuf> = groups
        .iter()
        .flat_map(|group| files.map(|file| group.join(file)))
        .collect();
    let text = paths
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())?;
    text.trim().parse().ok()
}

#[test]
fn a_server_that_maps_files_is_not_recycled_and_keeps_its_cap() {
    let _turn = turn::beside();
    let folder = disk();
    let named = tempfile::tempdir_in("/dev/shm").unwrap();
    let (service, load) = start_gunicorn(folder.path(), named.path());
    load.once("/r?mb=250").unwrap();
    load.once("/rplus?mb=60").unwrap();
    load.once("/named?mb=30").unwrap();
    let status = service.wait("a sample after the mappings", SOON, || {
        let status = service.status()?;
        (figure(&status, "rss")? > 200 * MIB).then_some(status)
    });
    assert!(figure(&status, "private") < Some(50 * MIB), "{status:#}");
    assert_eq!(status["ends"].as_array().map(Vec::len), Some(0));
    if let Some(limit) = limit(&service) {
        assert!((180 * MIB..=200 * MIB).contains(&limit), "{limit}");
    } else {
        println!("NOT RUN: needs a memory cgroup to check the limit");
    }
    // Now memory that is freed with the worker: 120M, over the ceiling and below the cap.
    load.once("/memfd?mb=70").unwrap();
    load.once("/c?mb=50").unwrap();
    service.wait("an end by the ceiling", SOON, || {
        let status = service.status()?;
        let ends = status["ends"].as_array()?;
        ends.iter()
            .any(|end| end["cause"] == "ceiling")
            .then_some(())
    });
    assert!(!service.log().contains("is not held"), "{}", service.log());
}

const TASKS: &str = "
import mmap, os, time
KEPT = []

def keep(size, fd):
    KEPT.append(mmap.mmap(fd, size))
    KEPT[-1][0:size:4096] = b'y' * (size // 4096)
    time.sleep(0.5)
    return os.getpid()

def files(number):
    size = 100 << 20
    fd = os.open('cached', os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, size)
    return keep(size, fd)

def memory(number):
    fd = os.memfd_create('kept')
    os.ftruncate(fd, 100 << 20)
    return keep(100 << 20, fd)
";

#[test]
fn a_pool_recycles_a_worker_for_unnamed_shared_memory_and_not_for_files() {
    let _turn = turn::beside();
    let folder = disk();
    fs::write(folder.path().join("tasks.py"), TASKS).unwrap();
    for (function, is_kept) in [("tasks:files", true), ("tasks:memory", false)] {
        let words = [function, "--ceiling", "60M", "--cap", "400M"];
        let (output, results) = pool::run(folder.path(), 4, &words);
        let pids: BTreeSet<_> = results
            .values()
            .filter_map(|result| result["result"].as_u64())
            .collect();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(results.len(), 4, "{stderr}");
        // Two workers, and each task takes a worker over its ceiling if it counts.
        let expected = if is_kept { 1..=2 } else { 3..=4 };
        assert!(
            expected.contains(&pids.len()),
            "{function}: {pids:?} {stderr}"
        );
    }
}
