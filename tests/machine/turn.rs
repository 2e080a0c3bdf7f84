//! Who runs beside whom: a test that puts load on the machine has it to itself.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static MACHINE: RwLock<()> = RwLock::new(());

/// Nothing else runs while this is held.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    // A test that failed while it held the turn has left nothing broken behind the lock.
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Other quiet tests may run while this is held.
pub(crate) fn beside() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}
