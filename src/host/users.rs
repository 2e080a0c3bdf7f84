//! Who we are, and who else there is.

#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
pub use in_files::look_in_files_only;

use std::ffi::OsString;

use nix::unistd::{User, geteuid};

/// Our effective user.
pub fn own_id() -> u32 {
    geteuid().as_raw()
}

/// Whether this machine knows a user of that name.
pub fn exists(name: &str) -> bool {
    matches!(User::from_name(name), Ok(Some(_)))
}

/// The environment variables that systemd sets for `User=`, without the shell. Our own environment
/// describes the user that started us.
pub fn environment(name: &str) -> Vec<(&'static str, OsString)> {
    let Some(user) = User::from_name(name).ok().flatten() else {
        return Vec::new();
    };
    vec![
        ("HOME", user.dir.into_os_string()),
        ("USER", user.name.clone().into()),
        ("LOGNAME", user.name.into()),
    ]
}

/// The user and group ids of a name.
pub fn ids(name: &str) -> Option<(u32, u32)> {
    let user = User::from_name(name).ok().flatten()?;
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

/// A descriptor that a parent has left open for us, checked to be one.
pub fn inherited(fd: i32) -> std::io::Result<std::os::fd::OwnedFd> {
    super::pool::adopt_inherited(fd)
}

/// Nothing to do: this program was not linked statically.
#[cfg(not(all(target_env = "gnu", target_feature = "crt-static")))]
pub const fn look_in_files_only() {}

#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
mod in_files {
    #![expect(unsafe_code, reason = "nsswitch.conf is read by the C library alone")]

    use std::ffi::{CStr, c_char, c_int};

    unsafe extern "C" {
        /// What `/etc/nsswitch.conf` would say of a database (glibc, `nss.h`).
        fn __nss_configure_lookup(database: *const c_char, service: *const c_char) -> c_int;
    }

    /// What is asked, and where: in what is linked into libc.a.
    const WHERE: [(&CStr, &CStr); 4] = [
        (c"passwd", c"files"),
        (c"group", c"files"),
        (c"initgroups", c"files"),
        (c"hosts", c"files dns"),
    ];

    /// Users, groups and hosts come from /etc and DNS, whatever /etc/nsswitch.conf says. A program
    /// that is linked statically would load the modules named there together with another C
    /// library, and crash: `passwd: files systemd` did, for a user that is not in /etc/passwd. To
    /// be called first of all, before there is a second thread.
    pub fn look_in_files_only() {
        for (database, service) in WHERE {
            // SAFETY: both are texts that live for ever and end with a NUL; the library only reads
            // them, and keeps its answer in its own memory. No other thread asks meanwhile. (A
            // database that it does not know is not asked either: its answer is of no use.)
            unsafe { __nss_configure_lookup(database.as_ptr(), service.as_ptr()) };
        }
    }
}
