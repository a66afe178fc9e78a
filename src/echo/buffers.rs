//! Where bytes wait: the scratch that every read goes through, and the pending output of one
//! connection.
//!
//! Each loop has one scratch.  What the peer takes at once never leaves it; the rest is copied into
//! a [`Slot`], which is freed with its last byte.  An idle connection therefore has no buffer at
//! all, and a stalled one has at most [`SCRATCH`] bytes, which cannot grow: nothing is read while
//! something is owed.
//!
//! The state machine is passed a [`BufferStore`] and does not know where its memory is: in the
//! state file (`preserve::partition` has the implementation that the daemon uses), or on the heap
//! ([`HeapStore`]), which is enough for a simulation.  What is recorded before each read
//! ([`BufferStore::begin_read`]) lets a later process find the bytes again.

use std::num::NonZeroU32;
use std::ops::Range;

use slab::Slab;

use super::SCRATCH;

/// The memory of one loop.
pub trait BufferStore {
    /// The buffer for the next read, [`SCRATCH`] bytes.  Its content is valid until that read.
    fn scratch(&mut self) -> &mut [u8];

    /// Records the owner of the scratch from now on (0: none), and the position `at` of the owner's
    /// stream, in bytes, at which the next read begins.
    fn begin_read(&mut self, owner: u64, at: u64);

    /// Records how many bytes the read has put into the scratch.
    fn filled(&mut self, count: usize);

    /// The bytes of the last read.
    fn read(&self) -> &[u8];

    /// Copies the part `rest` of the scratch, which begins at position `at` of its owner's stream,
    /// into a slot; `None` if there is no memory for it.
    #[must_use]
    fn keep(&mut self, owner: u64, rest: Range<usize>, at: u64) -> Option<Slot>;

    /// Records the owner of a slot (0: none), and the position `at` of the owner's stream at which
    /// the slot begins.
    fn set_owner(&mut self, slot: &Slot, owner: u64, at: u64);

    /// The bytes in a slot.
    fn slot(&self, slot: &Slot) -> &[u8];

    /// Frees a slot.
    fn free(&mut self, slot: Slot);
}

/// A place in a store.  It cannot be copied, because it is freed once.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its number in the store.
    pub index: u32,
    /// The number of bytes in it, at most [`SCRATCH`].
    pub length: NonZeroU32,
}

/// The length of a slot for a part of the scratch; `None` if the part is empty.
#[must_use]
pub(crate) fn length(rest: &Range<usize>) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(rest.len()).ok()?)
}

/// What one connection owes: from 1 to [`SCRATCH`] bytes.
#[derive(Debug)]
pub struct PendingOutput {
    slot: Slot,
    /// How many bytes at the beginning of the slot were written already.
    written: u32,
}

impl PendingOutput {
    /// The bytes of a slot without the first `written`, which were written already.
    ///
    /// # Panics
    /// If that is all of them.
    #[must_use]
    pub(crate) fn new(slot: Slot, written: u32) -> Self {
        assert!(written < slot.length.get(), "pending output is never empty");
        Self { slot, written }
    }

    /// The bytes still owed, in order.
    #[must_use]
    pub(crate) fn bytes<'a>(&self, store: &'a impl BufferStore) -> &'a [u8] {
        &store.slot(&self.slot)[self.written as usize..]
    }

    /// The number of bytes still owed.
    #[must_use]
    pub(crate) fn owed(&self) -> u32 {
        self.slot.length.get() - self.written
    }

    /// Records that the first `count` owed bytes were written; true if nothing is owed any more.
    ///
    /// # Panics
    /// If fewer than `count` bytes are owed.
    pub(crate) fn advance(&mut self, count: usize) -> bool {
        assert!(count <= self.owed() as usize, "more was written than owed");
        self.written += u32::try_from(count).unwrap_or(u32::MAX);
        self.written == self.slot.length.get()
    }

    /// The slot.
    #[must_use]
    pub(crate) fn slot(&self) -> &Slot {
        &self.slot
    }

    /// The slot, to be freed.
    #[must_use]
    pub(crate) fn into_slot(self) -> Slot {
        self.slot
    }
}

/// A store on the heap.  Its content ends with its process.
#[derive(Debug)]
pub struct HeapStore {
    scratch: Box<[u8]>,
    filled: usize,
    slots: Slab<Box<[u8]>>,
}

impl HeapStore {
    /// A store with a scratch and without slots.
    #[must_use]
    pub fn new() -> Self {
        Self {
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            filled: 0,
            slots: Slab::new(),
        }
    }

    /// The number of slots in use.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }
}

impl Default for HeapStore {
    fn default() -> Self {
        Self::new()
    }
}

impl BufferStore for HeapStore {
    fn scratch(&mut self) -> &mut [u8] {
        &mut self.scratch
    }

    fn begin_read(&mut self, _: u64, _: u64) {}

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

    fn set_owner(&mut self, _: &Slot, _: u64, _: u64) {}

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
    fn pending_output_is_written_in_order_and_to_the_byte() {
        let mut store = HeapStore::new();
        store.scratch()[..6].copy_from_slice(b"abcdef");
        let slot = store.keep(0, 2..6, 2).expect("memory");
        let mut pending = PendingOutput::new(slot, 0);
        store.scratch()[..6].fill(0);
        assert_eq!(pending.bytes(&store), b"cdef");
        assert!(!pending.advance(3));
        assert_eq!(pending.bytes(&store), b"f");
        assert!(pending.advance(1));
        store.free(pending.into_slot());
        assert_eq!(store.slots(), 0);
    }

    #[test]
    #[should_panic(expected = "more was written than owed")]
    fn writing_more_than_is_owed_is_a_mistake_of_the_service() {
        let slot = HeapStore::new().keep(0, 0..1, 0).expect("memory");
        PendingOutput::new(slot, 0).advance(2);
    }
}
