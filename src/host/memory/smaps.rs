//! Private memory of a process: the memory that its end would free (proc(5), `smaps_rollup`,
//! `smaps`).
//!
//! It consists of anonymous pages, and of shared memory that has no name. Pages of files do not
//! count, clean or dirty, because the kernel can take them back, or write them back, at any time.
//! In its sums over all mappings, the kernel separates these kinds only as shares (`Pss_Anon`,
//! `Pss_File`, `Pss_Shmem`), which give bounds. If the bounds are too far apart, the mappings are
//! read one by one.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
};

use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    stat::{fstat, major, minor},
};

use super::procfs::{Proc, ProcError, read, read_error};
use crate::units::Bytes;

/// The exact memory of a process.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Exact {
    /// The memory that its end would free, including swap and huge pages.
    pub private: Bytes,
    /// Resident anonymous pages of this process only; a lower bound.
    pub anon: Bytes,
    /// Private pages, its share of the shared pages, and its share of the swap.
    pub pss: Bytes,
    /// Like `private`, plus its share of the pages that it shares. `None` before Linux 5.3.
    pub share: Option<Bytes>,
}

impl Proc {
    /// The exact memory of a process. The error of `private` is at most `within`, and so is that of
    /// `share` if the process is `shared`, that is, one of several processes of a worker. The
    /// smaller `within` is, the more often all mappings are read. This takes about 20 ms a
    /// gigabyte, twice that with all mappings, and the process cannot map memory meanwhile.
    pub fn exact(&self, pid: i32, within: Bytes, shared: bool) -> Result<Exact, ProcError> {
        let path = self.path_of(pid, "smaps_rollup");
        let text = match read(&path) {
            Ok(text) => text,
            // The file does not exist before Linux 4.14. If the process is gone, reading `smaps`
            // fails as well.
            Err(error) if error.is_gone() => return self.exact_by_mapping(pid, None),
            Err(error) => return Err(error),
        };
        let mut fields = Fields::default();
        text.lines().for_each(|line| fields.take_line(line));
        if !fields.has_rss {
            // A process that is ending has no memory any more.
            return Err(ProcError::unexpected(&path, "no `Rss` in it"));
        }
        let (least, most) = fields.bounds();
        let share = fields.pss_anon.map(|anon| anon.plus(fields.non_resident()));
        if most.minus(least) > within || (shared && fields.pss_shmem > within) {
            return self.exact_by_mapping(pid, share);
        }
        Ok(Exact {
            private: most.plus(fields.non_resident()),
            anon: fields.least_anon().min(most),
            pss: fields.pss.plus(fields.swap_pss),
            share,
        })
    }

    /// The same, summed over all mappings. `share` is the share of everything but shared memory,
    /// because shared anonymous pages are known only as a sum over all mappings.
    pub(in crate::host) fn exact_by_mapping(
        &self,
        pid: i32,
        share: Option<Bytes>,
    ) -> Result<Exact, ProcError> {
        let path = self.path_of(pid, "smaps");
        let mut file = BufReader::new(File::open(&path).map_err(read_error(&path))?);
        // In another mount namespace, the process sees other file systems than we do.
        let mounts = read(&self.path_of(pid, "mountinfo")).unwrap_or_default();
        let shmem = Devices::of_shmem(&mounts);
        let mut sum = Exact {
            share,
            ..Exact::default()
        };
        let mut has_rss = false;
        let mut kind = Kind::Other;
        let mut fields = Fields::default();
        // The names of mappings are bytes and may not be UTF-8.
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = file
                .read_until(b'\n', &mut line)
                .map_err(read_error(&path))?;
            let text = String::from_utf8_lossy(&line);
            if length > 0 && text.starts_with(|first: char| first.is_ascii_uppercase()) {
                fields.take_line(text.trim_end());
                continue;
            }
            // A new mapping begins, or the file ends.
            has_rss |= fields.has_rss;
            let anon = fields.private.min(fields.anonymous);
            let resident = match kind {
                Kind::Unnamed => fields.private,
                Kind::Other => anon,
            };
            sum.anon = sum.anon.plus(anon);
            sum.private = sum.private.plus(resident).plus(fields.non_resident());
            if kind == Kind::Unnamed {
                let unnamed = fields.pss.minus(fields.anonymous);
                sum.share = sum.share.map(|share| share.plus(unnamed));
            }
            sum.pss = sum.pss.plus(fields.pss).plus(fields.swap_pss);
            if length == 0 {
                break;
            }
            fields = Fields::default();
            kind = shmem.kind(text.trim_end());
        }
        if has_rss {
            Ok(sum)
        } else {
            Err(ProcError::unexpected(&path, "no `Rss` in it"))
        }
    }
}

/// The figures of one mapping, or the sum over all mappings.
#[derive(Clone, Copy, Debug, Default)]
struct Fields {
    has_rss: bool,
    pss: Bytes,
    /// Shares of anonymous pages, of files and of shared memory. Since Linux 5.3, in the sum only.
    pss_anon: Option<Bytes>,
    pss_file: Bytes,
    pss_shmem: Bytes,
    /// Pages of any kind that no other process maps.
    private: Bytes,
    /// Pages that other processes map as well, each counted in full.
    shared: Bytes,
    /// Anonymous pages. Pages shared by a fork count in full.
    anonymous: Bytes,
    hugetlb: Bytes,
    /// Its share of the swap. Not `Swap`, which counts pages that were shared before they were
    /// swapped out in full for each process that shares them.
    swap_pss: Bytes,
}

impl Fields {
    fn take_line(&mut self, line: &str) {
        let Some((name, value)) = line.split_once(':') else {
            return;
        };
        let Some(number) = value.trim().strip_suffix("kB") else {
            return;
        };
        let Ok(kib) = number.trim_end().parse::<u64>() else {
            return;
        };
        let bytes = Bytes(kib << 10);
        match name {
            "Rss" => self.has_rss = true,
            "Pss" => self.pss = bytes,
            "Pss_Anon" => self.pss_anon = Some(bytes),
            "Pss_File" => self.pss_file = bytes,
            "Pss_Shmem" => self.pss_shmem = bytes,
            "Private_Clean" | "Private_Dirty" => self.private = self.private.plus(bytes),
            "Shared_Clean" | "Shared_Dirty" => self.shared = self.shared.plus(bytes),
            "Anonymous" => self.anonymous = bytes,
            "Private_Hugetlb" => self.hugetlb = bytes,
            "SwapPss" => self.swap_pss = bytes,
            _ => {}
        }
    }

    /// Resident anonymous pages of this process only: a lower bound.
    ///
    /// The share of a kind is at least the private part of that kind, so private pages minus the
    /// shares of files and of shared memory are anonymous. A shared anonymous page has two or more
    /// processes, and counts at most half in `Pss_Anon`.
    fn least_anon(&self) -> Bytes {
        let unshared = self.anonymous.minus(self.shared);
        let Some(pss_anon) = self.pss_anon else {
            return unshared;
        };
        let of_others = self.pss_file.plus(self.pss_shmem);
        self.private
            .minus(of_others)
            .max(pss_anon.plus(pss_anon).minus(self.anonymous))
            .max(unshared)
    }

    /// Its own pages that are not resident, or not counted as resident.
    fn non_resident(&self) -> Bytes {
        self.hugetlb.plus(self.swap_pss)
    }

    /// Lower and upper bound of the resident pages that its end would free.
    fn bounds(&self) -> (Bytes, Bytes) {
        let most = match self.pss_anon {
            Some(pss_anon) => self.private.min(pss_anon.plus(self.pss_shmem)),
            None => self.private,
        };
        (self.least_anon().min(most), most)
    }
}

/// The kind of a mapping.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// Shared memory that is freed with the last process that has it: memfd_create(2), `MAP_SHARED`
    /// without a file, a removed file of a tmpfs.
    Unnamed,
    /// Everything else: a file, named shared memory (it outlives the process), or a mapping without
    /// a file. Only anonymous pages count: the pages of `MAP_PRIVATE` that were written to.
    Other,
}

/// Devices of file systems whose files are shared memory, in the notation of `smaps` (`00:1f`).
#[derive(Debug)]
struct Devices(Vec<String>);

impl Devices {
    /// The devices of mounted tmpfs file systems, and the kernel's own, which is not mounted
    /// (`shm_mnt` in `mm/shmem.c`).
    fn of_shmem(mountinfo: &str) -> Self {
        let mounted = mountinfo.lines().filter_map(|line| {
            let (mount, system) = line.split_once(" - ")?;
            let is_shmem = system.split(' ').next() == Some("tmpfs");
            let (major, minor) = mount.split(' ').nth(2)?.split_once(':')?;
            is_shmem.then_some((major.parse().ok()?, minor.parse().ok()?))
        });
        Self(
            mounted
                .chain(kernels_own())
                .map(|(major, minor): (u64, u64)| format!("{major:02x}:{minor:02x}"))
                .collect(),
        )
    }

    /// The kind of a mapping by its first line: `ADDRESSES rw-s OFFSET DEVICE INODE   PATH`.
    fn kind(&self, line: &str) -> Kind {
        let mut words = line.splitn(6, ' ');
        let device = words.nth(3).unwrap_or_default();
        let path = words.nth(1).unwrap_or_default().trim_start();
        // A System V segment (shmget(2)) is always shown as `/SYSV... (deleted)`, but it outlives
        // the process.
        let is_segment = path.starts_with("/SYSV");
        let is_shmem = self.0.iter().any(|known| known == device);
        if is_shmem && path.ends_with(" (deleted)") && !is_segment {
            Kind::Unnamed
        } else {
            Kind::Other
        }
    }
}

fn kernels_own() -> Option<(u64, u64)> {
    let file = memfd_create(c"shmem", MFdFlags::MFD_CLOEXEC).ok()?;
    let device = fstat(&file).ok()?.st_dev;
    Some((major(device), minor(device)))
}

#[cfg(test)]
#[path = "smaps_tests.rs"]
mod tests;
