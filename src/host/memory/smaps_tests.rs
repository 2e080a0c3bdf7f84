//! Each kind of mapping, made by a child process and read with this kernel.

use std::{
    io::Write as _,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::{super::procfs::tests::kernel, *};

/// Other memory that may change: the interpreter's own, and pages that the kernel counts late.
const NOISE: Bytes = Bytes::mib(2);
const WITHIN: Bytes = Bytes::mib(8);

/// Makes 40 MiB of one kind, and waits.
const MAPS: &str = "
import ctypes, mmap, os, sys, tempfile
kind, folder, size = sys.argv[1], sys.argv[2], 40 << 20
# Before the first sample, so that the memory of this import is not counted.
if kind == 'shared memory of multiprocessing':
    from multiprocessing.shared_memory import SharedMemory
print('up', flush=True)
sys.stdin.readline()

def touch(it, part=1.0, write=True):
    end = int(len(it) * part)
    if write: it[0:end:4096] = b'x' * (end // 4096)
    else: it[0:end:4096]

def file(where, keep):
    path = os.path.join(where, 'supervise-test-%d' % os.getpid())
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for _ in range(size >> 20): os.write(fd, b'x' * (1 << 20))
    if not keep: os.unlink(path)
    return fd

def mapped(fd, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE):
    return mmap.mmap(fd, size, flags, prot)

def memfd():
    fd = os.memfd_create('test')
    os.ftruncate(fd, size)
    return fd

def fork(work=lambda: None):
    'Forks a child that has done its work when this returns, and lives as long as this process.'
    ready, life = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(life[1]); work(); os.write(ready[1], b'x'); os.read(life[0], 1); os._exit(0)
    os.read(ready[0], 1)

if kind == 'file read':
    it = mapped(file(folder, True), prot=mmap.PROT_READ); touch(it, write=False)
elif kind == 'file written': it = mapped(file(folder, True)); touch(it)
elif kind == 'file removed and written': it = mapped(file(folder, False)); touch(it)
elif kind == 'file copied on write':
    it = mapped(file(folder, True), mmap.MAP_PRIVATE); touch(it, write=False); touch(it, 0.5)
elif kind == 'file mapped privately and read':
    it = mapped(file(folder, True), mmap.MAP_PRIVATE); touch(it, write=False)
elif kind == 'anonymous': it = bytearray(b'x') * size
elif kind == 'anonymous, freed lazily':
    it = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); touch(it)
    it.madvise(mmap.MADV_FREE)
elif kind == 'anonymous, shared with a fork': it = bytearray(b'x') * size; fork()
elif kind == 'shared without a file': it = mmap.mmap(-1, size); touch(it)
elif kind == 'shared without a file, with a fork':
    it = mmap.mmap(-1, size); touch(it); fork(lambda: touch(it))
elif kind == 'memfd': it = mapped(memfd()); touch(it)
elif kind == 'memfd mapped privately':
    it = mapped(memfd(), mmap.MAP_PRIVATE); touch(it, 0.5)
elif kind == 'tmpfs, removed': it = mapped(file('/dev/shm', False)); touch(it)
elif kind == 'tmpfs, named': it = mapped(file('/dev/shm', True)); touch(it)
elif kind == 'tmpfs, named, copied on write':
    it = mapped(file('/dev/shm', True), mmap.MAP_PRIVATE); touch(it, 0.5)
elif kind == 'shared memory of multiprocessing':
    kept = SharedMemory(create=True, size=size); it = kept.buf; touch(it)
elif kind == 'model and library':
    it = mapped(file(folder, True), prot=mmap.PROT_READ); touch(it, write=False)
    more = bytearray(b'x') * size; fork(); last = bytearray(b'x') * (size // 2)
else: sys.exit('unknown kind: ' + kind)
print('touched', flush=True)
sys.stdin.readline()
for path in (os.path.join(folder, 'supervise-test-%d' % os.getpid()),
             '/dev/shm/supervise-test-%d' % os.getpid()):
    if os.path.exists(path): os.unlink(path)
if 'kept' in globals(): it.release(); kept.close(); kept.unlink()
print('done', flush=True)
";

struct Mapper {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Mapper {
    fn start(kind: &str, folder: &Path) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", MAPS, kind])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut mapper = Self {
            child,
            input,
            output,
        };
        assert_eq!(mapper.line(), "up\n");
        mapper
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    fn step(&mut self, until: &str) {
        writeln!(self.input).unwrap();
        assert_eq!(self.line().trim_end(), until);
    }

    fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn near(kind: &str, what: &str, bytes: Bytes, expected_mib: u64, within: Bytes) {
    let expected = Bytes::mib(expected_mib);
    let off = bytes.get().abs_diff(expected.get());
    assert!(
        off <= within.get(),
        "{kind}: {what} is {bytes}, not {expected}"
    );
}

/// The private and the anonymous part of 40 MiB of each kind.
const KINDS: [(&str, u64, u64); 17] = [
    ("file read", 0, 0),
    ("file written", 0, 0),
    ("file removed and written", 0, 0),
    ("file copied on write", 20, 20),
    ("file mapped privately and read", 0, 0),
    ("anonymous", 40, 40),
    ("anonymous, freed lazily", 40, 40),
    ("anonymous, shared with a fork", 0, 0),
    ("shared without a file", 40, 0),
    ("shared without a file, with a fork", 0, 0),
    ("memfd", 40, 0),
    ("memfd mapped privately", 20, 20),
    ("tmpfs, removed", 40, 0),
    ("tmpfs, named", 0, 0),
    ("tmpfs, named, copied on write", 20, 20),
    ("shared memory of multiprocessing", 0, 0),
    ("model and library", 20, 20),
];

#[test]
fn only_memory_that_the_end_of_a_process_frees_is_private() {
    // Not in the directory for temporary files, which may be a tmpfs.
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    if statfs(folder.path()).unwrap().filesystem_type() == TMPFS_MAGIC {
        eprintln!("NOT RUN: needs a checkout on a disk, and this one is on a tmpfs");
        return;
    }
    let proc = Proc::default();
    for (kind, private, anon) in KINDS {
        let mut mapper = Mapper::start(kind, folder.path());
        let before = proc.exact_by_mapping(mapper.pid(), None).unwrap();
        mapper.step("touched");
        let pid = mapper.pid();
        let fine = proc.exact_by_mapping(pid, None).unwrap();
        // After a fork, the interpreter shares its own memory with the child.
        let forks = kind.contains("fork") || kind == "model and library";
        let slack = if forks { WITHIN } else { NOISE };
        let grown = |now: Bytes, then: Bytes| now.minus(then);
        near(
            kind,
            "private",
            grown(fine.private, before.private),
            private,
            slack,
        );
        near(
            kind,
            "anonymous",
            grown(fine.anon, before.anon),
            anon,
            slack,
        );
        let quick = proc.exact(pid, WITHIN, false).unwrap();
        near(
            kind,
            "private, by bounds",
            grown(quick.private, before.private),
            private,
            WITHIN,
        );
        assert!(
            quick.anon <= fine.anon.plus(Bytes(64 << 10)),
            "{kind}: {} by bounds is more than {}",
            quick.anon,
            fine.anon
        );
        mapper.step("done");
    }
}

#[test]
fn pages_shared_only_by_a_worker_and_its_forks_count_once() {
    let folder = tempfile::tempdir().unwrap();
    let proc = Proc::default();
    for (kind, more) in [
        ("anonymous, shared with a fork", 0),
        ("shared without a file, with a fork", 0),
        ("model and library", 20),
    ] {
        let mut mapper = Mapper::start(kind, folder.path());
        let before = proc.exact(mapper.pid(), WITHIN, true).unwrap();
        mapper.step("touched");
        let pid = mapper.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let child = children.trim().parse().unwrap();
        let shares = [pid, child].map(|pid| proc.exact(pid, WITHIN, true).unwrap().share.unwrap());
        let both = shares[0].plus(shares[1]).minus(before.share.unwrap());
        near(kind, "own", both, 40 + more, WITHIN);
        mapper.step("done");
    }
}

const ROLLUP: &str = "562791940000-7ffd9d599000 ---p 00000000 00:00 0          [rollup]
Rss:               81656 kB
Pss:               80360 kB
Pss_Dirty:           116 kB
Pss_Anon:          20000 kB
Pss_File:          60260 kB
Pss_Shmem:           100 kB
Shared_Clean:       1492 kB
Shared_Dirty:          0 kB
Private_Clean:     60048 kB
Private_Dirty:     20116 kB
Anonymous:         20000 kB
LazyFree:              0 kB
Private_Hugetlb:    2048 kB
Swap:                100 kB
SwapPss:              25 kB
Locked:                0 kB
";

const MAPPINGS: &str = "\
7f0000000000-7f0000a00000 r--s 00000000 fe:00 12   /srv/model of ours: v1.bin
Rss:               60000 kB
Pss:               60000 kB
Private_Clean:     60000 kB
Anonymous:             0 kB
VmFlags: rd sh
7f0001000000-7f0001a00000 rw-p 00000000 fe:00 12   /srv/data.npy
Rss:                3000 kB
Pss:                3000 kB
Private_Clean:      1000 kB
Private_Dirty:      2000 kB
Anonymous:          2000 kB
SwapPss:               5 kB
VmFlags: rd wr
7f0002000000-7f0002a00000 rw-s 00000000 00:1f 99   /dev/shm/psm_1 (deleted)
Rss:                 400 kB
Private_Dirty:       400 kB
Anonymous:             0 kB
7f0003000000-7f0003a00000 rw-s 00000000 00:1f 98   /dev/shm/psm_2
Rss:                 800 kB
Private_Dirty:       800 kB
Anonymous:             0 kB
7f0004000000-7f0004a00000 rw-s 00000000 fe:00 13   /tmp/gone (deleted)
Rss:                1600 kB
Private_Dirty:      1600 kB
Anonymous:             0 kB
7f0005000000-7f0005a00000 rw-p 00000000 00:00 0
Rss:                   0 kB
Private_Hugetlb:    2048 kB
";

const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
31 22 0:31 / /dev/shm rw,nosuid shared:2 - tmpfs tmpfs rw
";

#[test]
fn mappings_are_not_read_if_the_bounds_are_close() {
    let (_root, proc) = kernel(&[("7/smaps_rollup", ROLLUP)]);
    let seen = proc.exact(7, Bytes::mib(1), false).unwrap();
    assert_eq!(seen.private, Bytes((20_100 + 2048 + 25) << 10));
    assert_eq!(seen.anon, Bytes(20_000 << 10));
    assert_eq!(seen.pss, Bytes((80_360 + 25) << 10));
    // Two of three file pages are private, and the sums do not show which; there is no `smaps` to
    // read.
    assert!(proc.exact(7, Bytes(4096), false).unwrap_err().is_gone());
}

#[test]
fn each_mapping_is_read_on_a_kernel_without_shares_by_kind_or_without_sums() {
    let old: String = ROLLUP
        .lines()
        .filter(|line| !line.starts_with("Pss_"))
        .flat_map(|line| [line, "\n"])
        .collect();
    for rollup in [Some(old.as_str()), None] {
        let mut files = vec![("7/smaps", MAPPINGS), ("7/mountinfo", MOUNTS)];
        files.extend(rollup.map(|text| ("7/smaps_rollup", text)));
        let (_root, proc) = kernel(&files);
        let seen = proc.exact(7, Bytes::mib(1), false).unwrap();
        assert_eq!(seen.private, Bytes((2000 + 5 + 400 + 2048) << 10));
        assert_eq!(seen.anon, Bytes(2000 << 10));
    }
}

#[test]
fn a_process_that_is_ending_has_no_figures() {
    let (_root, proc) = kernel(&[("7/smaps_rollup", ""), ("8/smaps", "")]);
    assert!(!proc.exact(7, Bytes::ZERO, false).unwrap_err().is_gone());
    assert!(!proc.exact(8, Bytes::ZERO, false).unwrap_err().is_gone());
    assert!(
        Proc::default()
            .exact(i32::MAX, Bytes::ZERO, false)
            .unwrap_err()
            .is_gone()
    );
}
