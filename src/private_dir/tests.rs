//! Directories that other users may have prepared.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::Path,
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::stat::Mode,
    unistd::{geteuid, mkfifo},
};

use super::*;

/// Users of every Debian. The group of `nobody` is the primary group of `_apt`, too.
const OTHER: u32 = 1;
const NOGROUP: u32 = 65534;

struct Home(tempfile::TempDir);

impl Home {
    /// `None` unless we are root, because only root can make directories of other users.
    fn with_others() -> Option<Self> {
        if geteuid().is_root() {
            return Some(Self::new());
        }
        eprintln!("SKIPPED: only root can make directories of other users");
        None
    }

    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn directory(&self, name: &str, owner: u32, mode: u32) -> std::path::PathBuf {
        let path = self.at(name);
        fs::create_dir(&path).unwrap();
        own(&path, owner, mode);
        path
    }
}

fn own(path: &Path, owner: u32, mode: u32) {
    if geteuid().is_root() {
        chown(path, Some(owner), Some(owner)).unwrap();
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn me() -> u32 {
    geteuid().as_raw()
}

fn refused(path: &Path) -> String {
    let error = PrivateDir::make(path, 0o700).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    assert_eq!(check(path).unwrap_err().to_string(), error.to_string());
    error.to_string()
}

#[test]
fn missing_directories_of_a_path_are_made_with_the_mode() {
    let home = Home::new();
    let path = home.at("a/b");
    check(&path).unwrap();
    assert!(!home.at("a").exists());
    PrivateDir::make(&path, 0o711).unwrap();
    for made in [home.at("a"), path.clone()] {
        assert_eq!(
            made.metadata().unwrap().permissions().mode() & 0o7777,
            0o711
        );
    }
    PrivateDir::open(&path).unwrap();
    let missing = PrivateDir::open(&home.at("c")).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    fs::write(home.at("file"), "").unwrap();
    assert!(PrivateDir::make(&home.at("file/x"), 0o700).is_err());
}

#[test]
fn a_directory_of_another_user_is_refused_anywhere_on_the_path() {
    let Some(home) = Home::with_others() else {
        return;
    };
    let path = home.directory("theirs", OTHER, 0o755);
    for refused_path in [path.clone(), path.join("deeper")] {
        let error = refused(&refused_path);
        assert!(
            error.contains("daemon (uid 1)") && error.contains("mode 0755"),
            "{error}"
        );
        assert!(error.starts_with(&path.display().to_string()), "{error}");
    }
    assert!(!path.join("deeper").exists());
}

#[test]
fn a_directory_that_other_users_may_write_to_is_refused_unless_it_is_sticky() {
    let home = Home::new();
    let path = home.directory("shared", me(), 0o777);
    let error = refused(&path);
    assert!(
        error.contains("mode 0777") && error.contains("chmod go-w"),
        "{error}"
    );
    refused(&path.join("x"));
    own(&path, me(), 0o1777);
    PrivateDir::make(&path.join("x"), 0o700).unwrap();
}

#[test]
fn a_directory_that_a_group_may_write_to_is_refused_if_other_users_are_in_the_group() {
    let Some(home) = Home::with_others() else {
        return;
    };
    let path = home.directory("group", 0, 0o775);
    for (group, is_private) in [(0, true), (NOGROUP, false)] {
        chown(&path, Some(0), Some(group)).unwrap();
        assert_eq!(PrivateDir::open(&path).is_ok(), is_private, "{group}");
    }
}

#[test]
fn only_our_own_entries_of_a_sticky_directory_are_used() {
    let Some(home) = Home::with_others() else {
        return;
    };
    let tmp = home.directory("tmp", 0, 0o1777);
    home.directory("tmp/supervise", OTHER, 0o755);
    refused(&tmp.join("supervise"));
    // A link that belongs to another user is refused, even if it leads to a directory of ours.
    let ours = home.directory("ours", 0, 0o700);
    symlink(&ours, tmp.join("link")).unwrap();
    PrivateDir::make(&tmp.join("link"), 0o700).unwrap();
    nix::unistd::fchownat(
        nix::fcntl::AT_FDCWD,
        &tmp.join("link"),
        Some(OTHER.into()),
        None,
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .unwrap();
    let error = refused(&tmp.join("link"));
    assert!(error.contains("symbolic link"), "{error}");

    let directory = PrivateDir::open(&tmp).unwrap();
    fs::write(tmp.join("lock"), "theirs").unwrap();
    own(&tmp.join("lock"), OTHER, 0o666);
    let error = directory
        .file("lock", Create::IfMissing, 0o600)
        .unwrap_err();
    assert!(error.to_string().contains("daemon (uid 1)"), "{error}");
}

#[test]
fn only_a_regular_file_of_ours_with_one_name_is_opened() {
    let home = Home::new();
    let directory = PrivateDir::open(home.0.path()).unwrap();
    fs::write(home.at("precious"), "precious").unwrap();
    symlink(home.at("precious"), home.at("link")).unwrap();
    symlink(home.at("missing"), home.at("dangling")).unwrap();
    fs::hard_link(home.at("precious"), home.at("second")).unwrap();
    mkfifo(&home.at("pipe"), Mode::S_IRWXU).unwrap();
    fs::create_dir(home.at("directory")).unwrap();
    for name in ["link", "dangling", "second", "pipe", "directory"] {
        let error = directory.file(name, Create::IfMissing, 0o600).unwrap_err();
        let path = home.at(name);
        assert!(
            error.to_string().starts_with(&path.display().to_string()),
            "{error}"
        );
    }
    assert!(!home.at("missing").exists());
    for name in ["link", "pipe", "directory"] {
        assert!(directory.read(name, 10).is_err(), "{name}");
    }
    fs::remove_file(home.at("second")).unwrap();
    assert_eq!(directory.read("precious", 8).unwrap(), b"precious");
    assert!(directory.read("precious", 7).is_err());
    assert!(
        PrivateDir::open(Path::new("/dev"))
            .unwrap()
            .read("zero", 1)
            .is_err()
    );
}

#[test]
fn a_replaced_file_is_a_new_file_and_a_link_is_not_followed() {
    let home = Home::new();
    let directory = PrivateDir::open(home.0.path()).unwrap();
    fs::write(home.at("precious"), "precious").unwrap();
    symlink(home.at("precious"), home.at("name")).unwrap();
    symlink(home.at("precious"), home.at(".name.half")).unwrap();
    // The usual umask allows less.
    directory.replace("name", b"new", 0o666).unwrap();
    assert_eq!(fs::read(home.at("name")).unwrap(), b"new");
    assert_eq!(fs::read(home.at("precious")).unwrap(), b"precious");
    assert_eq!(
        home.at("name").metadata().unwrap().permissions().mode() & 0o777,
        0o666
    );
    assert!(!home.at(".name.half").exists());
}

#[test]
fn a_file_in_a_shared_directory_is_refused_if_another_user_may_have_made_it() {
    let Some(home) = Home::with_others() else {
        return;
    };
    let shared = home.directory("shared", 0, 0o777);
    let flags = OFlag::O_RDWR | OFlag::O_CREAT;
    open_shared(&shared.join("mine"), flags, 0o600).unwrap();
    open_shared(&shared.join("mine"), flags, 0o600).unwrap();
    fs::write(home.at("precious"), "").unwrap();
    symlink(home.at("precious"), home.at("link")).unwrap();
    open_shared(&home.at("link"), flags, 0o600).unwrap();
    symlink(home.at("precious"), shared.join("link")).unwrap();
    open_shared(&shared.join("link"), flags, 0o600).unwrap();
    for name in ["link", "mine"] {
        nix::unistd::fchownat(
            nix::fcntl::AT_FDCWD,
            &shared.join(name),
            Some(OTHER.into()),
            None,
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .unwrap();
        let error = open_shared(&shared.join(name), flags, 0o600).unwrap_err();
        assert!(error.to_string().contains("uid 1"), "{error}");
    }
    fs::write(shared.join("second"), "").unwrap();
    fs::hard_link(shared.join("second"), home.at("second")).unwrap();
    open_shared(&home.at("second"), flags, 0o600).unwrap();
    assert!(open_shared(&shared.join("second"), flags, 0o600).is_err());
    mkfifo(&shared.join("pipe"), Mode::S_IRWXU).unwrap();
    assert!(open_shared(&shared.join("pipe"), flags, 0o600).is_err());
    assert!(open_shared(Path::new("/dev/null"), flags, 0o600).is_err());
    assert!(open_shared(&home.at("no/such"), flags, 0o600).is_err());
}

/// Makes a chain of directories in `at`.
fn dig(at: &PrivateDir, levels: u32) {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut at = openat(at, ".", flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
        at = openat(&at, "d", flags, Mode::empty()).unwrap();
    }
}

#[test]
fn a_tree_of_thirty_thousand_levels_is_removed() {
    // A disk takes up to 3 ms to remove a directory; a tmpfs is faster.
    let memory = Path::new("/dev/shm");
    let (place, levels) = if memory.is_dir() {
        (memory.to_owned(), 30_000)
    } else {
        (std::env::temp_dir(), 3000)
    };
    let home = Home(tempfile::tempdir_in(place).unwrap());
    let directory = PrivateDir::open(home.0.path()).unwrap();
    dig(&directory, levels);
    fs::write(home.at("d/file"), "").unwrap();
    symlink("/etc", home.at("d/link")).unwrap();
    fs::write(home.at("spared"), "").unwrap();
    directory
        .clear(Some("spared"), Duration::from_secs(60))
        .unwrap();
    assert_eq!(directory.names().unwrap(), ["spared"]);
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn a_directory_that_takes_too_long_to_remove_is_moved_aside_and_swept_later() {
    let home = Home::new();
    let below = PrivateDir::open(home.0.path()).unwrap();
    let claimed = below.claim("shop", 0o755, Contents::Removed).unwrap();
    below.move_aside("shop").unwrap();
    drop(claimed);
    let again = below.claim("shop", 0o755, Contents::Removed).unwrap();
    assert_eq!(again.name(), "shop");
    fs::create_dir_all(home.at(".supervise-removed.1/a/b")).unwrap();
    below.move_aside("shop").unwrap();
    assert!(home.at(".supervise-removed.2/lock").exists());
    below.sweep();
    let left = || (1..=2).any(|number| home.at(&format!(".supervise-removed.{number}")).exists());
    let gone = (0..4000).any(|_| {
        std::thread::park_timeout(Duration::from_millis(5));
        !left()
    });
    assert!(gone);
}

#[test]
fn a_tree_that_was_not_removed_in_time_is_removed_by_the_next_attempt() {
    let home = Home::new();
    let directory = PrivateDir::open(home.0.path()).unwrap();
    fs::create_dir_all(home.at("a/b/c/d")).unwrap();
    fs::create_dir_all(home.at(".removed.1/left")).unwrap();
    assert!(directory.clear(None, Duration::ZERO).is_err());
    directory.clear(None, Duration::from_secs(60)).unwrap();
    assert_eq!(directory.names().unwrap().len(), 0);
}

#[test]
fn two_services_of_one_name_claim_different_directories() {
    let home = Home::new();
    let below = PrivateDir::open(home.0.path()).unwrap();
    let claim = |contents| below.claim("shop", 0o755, contents).unwrap();
    let first = claim(Contents::Removed);
    fs::write(home.at("shop/mine"), "").unwrap();
    let second = claim(Contents::Removed);
    assert_eq!((first.name(), second.name()), ("shop", "shop.2"));
    assert!(home.at("shop/mine").exists());
    drop(first);
    assert!(!home.at("shop").exists() && home.at("shop.2").exists());
    drop(second);

    let kept = claim(Contents::Kept);
    fs::write(home.at("shop/mine"), "").unwrap();
    assert_eq!(claim(Contents::Kept).name(), "shop.2");
    // The next binary uses the same descriptor, in the same process.
    let lock = kept.lock().unwrap().try_clone().unwrap();
    drop(kept);
    let taken_over = below.claimed("shop", Some(lock), Contents::Kept).unwrap();
    assert_eq!(claim(Contents::Kept).name(), "shop.2");
    drop(taken_over);
    let again = claim(Contents::Kept);
    assert_eq!(again.name(), "shop");
    assert!(home.at("shop/mine").exists());
    drop(again);
    // The next service removes the contents that a killed service has left behind.
    let next = claim(Contents::Removed);
    assert_eq!(next.name(), "shop");
    assert_eq!(next.directory().names().unwrap(), ["lock"]);
    let mode = home.at("shop").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    // A directory that was replaced after it was opened is not the locked one.
    assert!(
        below
            .is_still("shop", next.directory(), next.lock().unwrap())
            .unwrap()
    );
    below.rename("shop", "moved").unwrap();
    below.subdirectory("shop", 0o755).unwrap();
    assert!(
        !below
            .is_still("shop", next.directory(), next.lock().unwrap())
            .unwrap()
    );
    drop(next);
}

#[test]
fn a_directory_of_another_user_with_our_name_is_not_claimed() {
    let Some(home) = Home::with_others() else {
        return;
    };
    home.directory("tmp", 0, 0o1777);
    home.directory("tmp/shop", OTHER, 0o755);
    symlink("/etc", home.at("tmp/shop.2")).unwrap();
    let below = PrivateDir::open(&home.at("tmp")).unwrap();
    let claimed = below.claim("shop", 0o700, Contents::Removed).unwrap();
    assert_eq!(claimed.name(), "shop.3");
}
