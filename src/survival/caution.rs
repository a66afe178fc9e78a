//! The first round after a start, in which nobody knows yet whether a connection kills us.
//!
//! Whose turn it is stands in the arena before the turn begins, so that the successor knows whom a
//! crash is blamed on.  There is one such word, so one connection has a turn at a time, however many
//! loops there are.

use std::sync::{Arc, Mutex, MutexGuard};

use super::arena::Arena;
use super::layout::header;
use crate::system::lock::lock;

/// The turns of the first round.
#[derive(Debug)]
pub struct Caution {
    arena: Arc<Arena>,
    turn: Mutex<()>,
}

impl Caution {
    pub(super) fn new(arena: Arc<Arena>) -> Self {
        let turn = Mutex::new(());
        Self { arena, turn }
    }

    /// Says whose turn it is, as long as the guard lives.
    pub fn take(&self, cookie: u64) -> MutexGuard<'_, ()> {
        let alone = lock(&self.turn);
        self.arena.set(header::IN_HAND, cookie);
        alone
    }

    /// The crashes of the past are forgotten.  Nobody may take a turn under it any more.
    pub(super) fn forget(&self) {
        for word in [header::IN_HAND, header::STARTS, header::SUSPECT] {
            self.arena.set(word, 0);
        }
    }
}
