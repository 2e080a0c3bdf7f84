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
