//! Who we are, and who else there is.

use nix::unistd::{User, geteuid};

/// Our effective user.
pub fn own_id() -> u32 {
    geteuid().as_raw()
}

/// Whether this machine knows a user of that name.
pub fn exists(name: &str) -> bool {
    matches!(User::from_name(name), Ok(Some(_)))
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
