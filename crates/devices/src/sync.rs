//! Locking without poison: a device that panicked in one thread leaves registers, not broken invariants.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, whether or not another thread panicked while it held it.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
