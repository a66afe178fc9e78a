//! The first round after a start, in which nobody knows yet whether a connection kills us.
//!
//! Whose turn it is stands in the arena before the turn begins, so that the successor knows whom a
//! crash is blamed on.  There is one such word, so one connection has a turn at a time, however many
//! loops there are.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::arena::Arena;
use super::layout::header;

/// The turns of the first round.
#[derive(Debug)]
pub struct Caution {
    arena: Arc<Arena>,
    turn: Mutex<()>,
    /// Turns until everybody who was adopted has had one.
    left: AtomicUsize,
}

impl Caution {
    pub(super) fn new(arena: Arc<Arena>, adopted: usize) -> Self {
        Self {
            arena,
            turn: Mutex::new(()),
            left: AtomicUsize::new(adopted),
        }
    }

    /// Says whose turn it is, as long as the guard lives.
    pub fn take(&self, cookie: u64) -> MutexGuard<'_, ()> {
        let alone = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let fewer = |left: usize| left.checked_sub(1);
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        self.arena.set(header::IN_HAND, cookie);
        alone
    }

    /// Whether everybody has had a turn.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    /// The crashes of the past are forgotten.  Nobody may take a turn under it any more.
    pub(super) fn forget(&self) {
        for word in [header::IN_HAND, header::STARTS, header::SUSPECT] {
            self.arena.set(word, 0);
        }
    }
}
