//! Where bytes wait: the scratch that every read goes through, and the backlog of one connection.
//!
//! There is one scratch per loop.  What the peer takes at once never leaves it; what it does not
//! take is copied into a [`Slot`], which is given back with its last byte.  An idle connection
//! therefore owns no buffer at all, and a stalled one at most [`SCRATCH`] bytes, which cannot
//! grow: nothing is read while something is owed.
//!
//! The state machine is handed a [`Store`] and does not know where that lives: in the arena
//! ([`crate::survival`] has the implementation that the daemon uses), or on the heap
//! ([`Heap`]), which is enough for a simulation.  What a store is told before each read
//! ([`Store::claim`]) is what lets another process find the bytes again.

use std::num::NonZeroU32;
use std::ops::Range;

use slab::Slab;

use super::SCRATCH;

/// The memory of one loop.
pub trait Store {
    /// The buffer for the next read, [`SCRATCH`] bytes.  Its content is valid until the next one.
    fn scratch(&mut self) -> &mut [u8];

    /// Notes whose the scratch is from now on, and which position of its stream the next read
    /// begins at.  An owner of 0 is nobody.
    fn claim(&mut self, owner: u64, at: u64);

    /// Notes how many bytes the read has put into the scratch.
    fn filled(&mut self, count: usize);

    /// The bytes of the last read.
    fn read(&self) -> &[u8];

    /// Copies a part of the scratch, which begins at position `at` of its owner's stream, into a
    /// slot; `None`: there is no memory for it.
    #[must_use]
    fn keep(&mut self, owner: u64, rest: Range<usize>, at: u64) -> Option<Slot>;

    /// Notes whose a slot is, and which position of its stream it begins at.
    fn own(&mut self, slot: &Slot, owner: u64, at: u64);

    /// The bytes in a slot.
    fn slot(&self, slot: &Slot) -> &[u8];

    /// Takes a slot back.
    fn free(&mut self, slot: Slot);
}

/// A place in a store, for up to [`SCRATCH`] bytes.  Not to be copied: it is given back once.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    /// Which one.
    pub index: u32,
    /// How many bytes are in it: never none.
    pub length: NonZeroU32,
}

/// The length of a slot for a part of the scratch.
#[must_use]
pub fn length(rest: &Range<usize>) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(rest.len()).ok()?)
}

/// What one connection owes: never nothing, and never more than [`SCRATCH`] bytes.
#[derive(Debug)]
pub struct Backlog {
    slot: Slot,
    paid: u32,
}

impl Backlog {
    /// What is owed is in this slot, but for the first `paid` bytes, which were written already.
    #[must_use]
    pub fn new(slot: Slot, paid: u32) -> Self {
        assert!(paid < slot.length.get(), "a backlog owes something");
        Self { slot, paid }
    }

    /// The bytes still owed, in order.
    #[must_use]
    pub fn owed<'a>(&self, store: &'a impl Store) -> &'a [u8] {
        &store.slot(&self.slot)[self.paid as usize..]
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        (self.slot.length.get() - self.paid) as usize
    }

    /// Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Notes that the first `count` owed bytes were written; true when nothing is left.
    pub fn pay(&mut self, count: usize) -> bool {
        assert!(count <= self.len(), "paid more than owed");
        self.paid += u32::try_from(count).unwrap_or(u32::MAX);
        self.paid == self.slot.length.get()
    }

    /// The slot.
    #[must_use]
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Gives the slot up, to be freed.
    #[must_use]
    pub fn into_slot(self) -> Slot {
        self.slot
    }
}

/// A store on the heap, whose content ends with its process.
#[derive(Debug)]
pub struct Heap {
    scratch: Box<[u8]>,
    filled: usize,
    slots: Slab<Box<[u8]>>,
}

impl Heap {
    /// A store with a scratch and no slot.
    #[must_use]
    pub fn new() -> Self {
        Self {
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            filled: 0,
            slots: Slab::new(),
        }
    }

    /// How many slots are taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no slot is taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for Heap {
    fn scratch(&mut self) -> &mut [u8] {
        &mut self.scratch
    }

    fn claim(&mut self, _: u64, _: u64) {}

    fn filled(&mut self, count: usize) {
        self.filled = count;
    }

    fn read(&self) -> &[u8] {
        &self.scratch[..self.filled]
    }

    fn keep(&mut self, _: u64, rest: Range<usize>, _: u64) -> Option<Slot> {
        let length = length(&rest)?;
        let index = self.slots.insert(self.scratch[rest].into());
        let index = u32::try_from(index).ok()?;
        Some(Slot { index, length })
    }

    fn own(&mut self, _: &Slot, _: u64, _: u64) {}

    fn slot(&self, slot: &Slot) -> &[u8] {
        &self.slots[slot.index as usize]
    }

    fn free(&mut self, slot: Slot) {
        self.slots.remove(slot.index as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_paid_in_order_and_to_the_byte() {
        let mut store = Heap::new();
        store.scratch()[..6].copy_from_slice(b"abcdef");
        let slot = store.keep(0, 2..6, 2).expect("memory");
        let mut backlog = Backlog::new(slot, 0);
        store.scratch()[..6].fill(0);
        assert_eq!(backlog.owed(&store), b"cdef");
        assert!(!backlog.pay(3));
        assert_eq!(backlog.owed(&store), b"f");
        assert!(backlog.pay(1));
        store.free(backlog.into_slot());
        assert!(store.is_empty());
    }

    #[test]
    #[should_panic(expected = "paid more than owed")]
    fn paying_too_much_is_our_own_mistake() {
        let slot = Heap::new().keep(0, 0..1, 0).expect("memory");
        Backlog::new(slot, 0).pay(2);
    }
}
