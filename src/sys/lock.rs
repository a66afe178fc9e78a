//! Locks without poisoning.
//!
//! The standard library poisons a mutex when a thread panics that holds it, as what it guards may be
//! inconsistent.  Here a panic ends the process, so no other thread ever sees that.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, and waits for it if another thread holds it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
