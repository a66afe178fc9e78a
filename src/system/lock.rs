//! Locks, without the poison of the standard library.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock.  Nothing behind it can be found half done: a panic ends the process.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
