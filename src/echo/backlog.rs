//! Where bytes wait: the scratch that every read goes through, and the backlog of one connection.
//!
//! There is one scratch per loop.  What the peer takes at once never leaves it; what it does not
//! take is copied into a [`Backlog`] of exactly that size, which is freed with its last byte.  An
//! idle connection therefore owns no buffer at all, and a stalled one at most [`SCRATCH`] bytes,
//! which cannot grow: nothing is read while something is owed.
//!
//! Both live behind types of their own so that they can move into shared memory without a change
//! in the state machine.

use std::ops::Range;

use super::SCRATCH;

/// The memory of one loop.
#[derive(Debug)]
pub struct Store {
    scratch: Box<[u8]>,
    filled: usize,
}

impl Store {
    /// A store with a scratch of [`SCRATCH`] bytes.
    #[must_use]
    pub fn new() -> Self {
        Self {
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            filled: 0,
        }
    }

    /// The buffer for the next read.  Its content is valid until the next one.
    pub fn scratch(&mut self) -> &mut [u8] {
        &mut self.scratch
    }

    /// Takes the part of the scratch that could not be written yet into a backlog; `None`: there is
    /// no memory for it.
    #[must_use]
    pub fn keep(&self, rest: Range<usize>) -> Option<Backlog> {
        assert!(!rest.is_empty(), "a backlog owes something");
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(rest.len()).ok()?;
        bytes.extend_from_slice(&self.scratch[rest]);
        Some(Backlog { bytes, paid: 0 })
    }

    /// Notes how many bytes a read has put into the scratch.
    pub fn filled(&mut self, count: usize) {
        self.filled = count;
    }

    /// The bytes of the last read.
    #[must_use]
    pub fn read(&self) -> &[u8] {
        &self.scratch[..self.filled]
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

/// What one connection owes: never empty, never more than [`SCRATCH`] bytes.
#[derive(Debug)]
pub struct Backlog {
    bytes: Vec<u8>,
    paid: usize,
}

impl Backlog {
    /// The bytes still owed, in order.
    #[must_use]
    pub fn owed(&self) -> &[u8] {
        &self.bytes[self.paid..]
    }

    /// Notes that the first `count` owed bytes were written; true when nothing is left.
    pub fn pay(&mut self, count: usize) -> bool {
        assert!(count <= self.owed().len(), "paid more than owed");
        self.paid += count;
        self.paid == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_paid_in_order_and_to_the_byte() {
        let mut store = Store::new();
        store.scratch()[..6].copy_from_slice(b"abcdef");
        let mut backlog = store.keep(2..6).expect("memory");
        store.scratch()[..6].fill(0);
        assert_eq!(backlog.owed(), b"cdef");
        assert!(!backlog.pay(3));
        assert_eq!(backlog.owed(), b"f");
        assert!(backlog.pay(1));
    }

    #[test]
    #[should_panic(expected = "paid more than owed")]
    fn paying_too_much_is_our_own_mistake() {
        let mut backlog = Store::new().keep(0..1).expect("memory");
        backlog.pay(2);
    }
}
