//! Our own user, and other users of this machine.

#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
pub use in_files::disable_nss_modules;

use std::ffi::OsString;

use nix::unistd::{User, geteuid};

/// Our effective user id.
pub fn own_id() -> u32 {
    geteuid().as_raw()
}

/// Whether this machine has a user of that name.
pub fn exists(name: &str) -> bool {
    matches!(User::from_name(name), Ok(Some(_)))
}

/// The environment variables that systemd sets for `User=`, without the shell. Our own variables
/// describe the user that started us.
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

/// The user and group ids of a user name.
pub fn ids(name: &str) -> Option<(u32, u32)> {
    let user = User::from_name(name).ok().flatten()?;
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

/// A descriptor that a parent has left open for us, checked to be open.
pub fn inherited(fd: i32) -> std::io::Result<std::os::fd::OwnedFd> {
    crate::host::pool::adopt_inherited(fd)
}

/// Does nothing: this program was not linked statically.
#[cfg(not(all(target_env = "gnu", target_feature = "crt-static")))]
pub const fn disable_nss_modules() {}

#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
mod in_files {
    #![expect(unsafe_code, reason = "only the C library reads nsswitch.conf")]

    use std::ffi::{CStr, c_char, c_int};

    unsafe extern "C" {
        /// Overrides what `/etc/nsswitch.conf` says about a database (glibc, `nss.h`).
        fn __nss_configure_lookup(database: *const c_char, service: *const c_char) -> c_int;
    }

    /// The databases, and their sources that are linked into libc.a.
    const WHERE: [(&CStr, &CStr); 4] = [
        (c"passwd", c"files"),
        (c"group", c"files"),
        (c"initgroups", c"files"),
        (c"hosts", c"files dns"),
    ];

    /// Makes users, groups and hosts come from /etc and DNS, whatever /etc/nsswitch.conf says. A
    /// program that is linked statically would load the modules named there together with another C
    /// library, and crash: `passwd: files systemd` caused this for a user that is not in
    /// /etc/passwd. Call it first, before there is a second thread.
    pub fn disable_nss_modules() {
        for (database, service) in WHERE {
            // SAFETY: both strings are static and end with a NUL; the library only reads them, and
            // keeps its settings in its own memory. No other thread runs yet. The result is not
            // needed: it is an error only for a database that the library does not know, and so
            // never looks up.
            unsafe { __nss_configure_lookup(database.as_ptr(), service.as_ptr()) };
        }
    }
}
