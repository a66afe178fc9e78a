//! The part of the state file that one worker uses: its scratch, its slots and its records.
//!
//! Every read of the worker puts the bytes into the scratch.  Bytes that the peer does not take at once
//! are copied from there into a slot, where they wait as pending output.  If the process is killed, the
//! next one has to know which connection the bytes in a scratch or slot belong to.  So each has a mark
//! of two words: the cookie of the connection, and the position in its stream at which the bytes begin.
//! The mark of the scratch is set before each read; these two stores are all that preservation costs in
//! the data path.  The mark of a slot is cleared before bytes are copied into it and set afterwards, so
//! a mark is never wrong.
//!
//! To give the memory of a slot back to the kernel costs more than to copy bytes into it.  So a slot
//! that becomes free keeps its memory for a second, in which it may be used again, and then the memory
//! is given back, for a few slots at a time.

use std::io;
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::Duration;

use super::layout::{ConnectionRecord, HeaderRecord, Mark, marked, slot_at};
use super::state_file::{Before, Record, StateFile, Taken};
use crate::echo::SCRATCH;
use crate::echo::buffers::{BufferStore, Slot, length};
use crate::echo::time::MonoTime;
use crate::sys::memory::{Place, Region};

/// How long a free slot keeps its memory.
const KEEP_MEMORY: Duration = Duration::from_secs(1);

/// Slots whose memory is given back at a time: each takes some 50 us.
const SLOTS_PER_TRIM: usize = 16;

/// Between two such times, as long as there are more.
const BETWEEN_TRIMS: Duration = Duration::from_millis(20);

/// Bytes of records, and of marks, that are allocated at a time: the smallest page.
const ALLOCATION: usize = 4096;

/// The index of a connection's record in its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordId(NonZeroU32);

impl RecordId {
    /// The record with an index; `None` for `u32::MAX`.
    #[must_use]
    pub(crate) fn new(index: u32) -> Option<Self> {
        index.checked_add(1).and_then(NonZeroU32::new).map(Self)
    }

    /// The index.
    #[must_use]
    pub(crate) fn index(self) -> u32 {
        self.0.get() - 1
    }
}

/// Indexes that are taken and given back.  One that was given back is taken before one that was never
/// taken, and these are taken in ascending order.
#[derive(Debug, Default)]
struct Indexes {
    next: usize,
    free: Vec<u32>,
}

impl Indexes {
    /// Takes an index below `count`.
    fn take(&mut self, count: usize) -> Option<usize> {
        if let Some(index) = self.free.pop() {
            return Some(index as usize);
        }
        (self.next < count).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    fn give_back(&mut self, index: u32) {
        self.free.push(index);
    }

    /// Gives the index back that was taken last, and had never been taken before.
    fn undo(&mut self) {
        self.next -= 1;
    }
}

/// The part of one worker.
#[derive(Debug)]
pub(crate) struct Partition {
    state_file: Arc<StateFile>,
    index: usize,
    payload: Region,
    /// The mark of the scratch.
    scratch: Place<Mark>,
    /// Bytes that the last read has put into the scratch.
    filled: usize,
    records: Indexes,
    /// Slots that have no memory when they are free.
    slots: Indexes,
    /// For each slot how many bytes at its beginning are allocated for certain.
    allocated: Vec<u32>,
    /// Free slots that still have their memory.
    free_with_memory: Vec<u32>,
    /// How many of these were not used since the last trim, at least.
    unneeded: usize,
    next_trim: Option<MonoTime>,
}

impl Partition {
    /// A part of a state file that was never used.
    #[must_use]
    pub(crate) fn new(state_file: Arc<StateFile>, index: usize, payload: Region) -> Self {
        let scratch = state_file.scratch_mark(index);
        Self {
            state_file,
            index,
            payload,
            scratch,
            filled: 0,
            records: Indexes::default(),
            slots: Indexes::default(),
            allocated: Vec::new(),
            free_with_memory: Vec::new(),
            unneeded: 0,
            next_trim: None,
        }
    }

    /// A part that another process has used.  `is_record_used` and `is_slot_used` say which records and
    /// slots, by their index, belong to connections that were found; the others become free.  Where memory is
    /// `short`, the free slots do not keep theirs.
    #[must_use]
    pub(crate) fn resumed(
        state_file: Arc<StateFile>,
        index: usize,
        payload: Region,
        short: bool,
        is_record_used: impl Fn(u32) -> bool,
        is_slot_used: impl Fn(u32) -> bool,
    ) -> Self {
        let (records, slots) = state_file.used(index);
        let mut partition = Self::new(state_file, index, payload);
        partition.records.next = records;
        partition.slots.next = slots;
        let indexes = |count: usize| (0..u32::try_from(count).unwrap_or(u32::MAX)).rev();
        for record in indexes(records).filter(|record| !is_record_used(*record)) {
            partition.state_file.clear_record(index, record as usize);
            partition.records.give_back(record);
        }
        for slot in indexes(slots).filter(|slot| !is_slot_used(*slot)) {
            partition.release(slot, short);
        }
        partition
    }

    /// Frees a slot that another process has filled.  Where memory is `short`, it does not keep its own.
    pub(super) fn release(&mut self, slot: u32, short: bool) {
        self.clear_owner(slot);
        if short {
            self.give_back_memory(slot);
        } else {
            self.free_with_memory.push(slot);
        }
    }

    /// The state file.
    #[must_use]
    pub(crate) fn state_file(&self) -> &Arc<StateFile> {
        &self.state_file
    }

    /// Writes a record for a connection; `None`: there is no free record, or no memory for it.
    pub(crate) fn add_record(&mut self, record: &Record) -> Option<RecordId> {
        let geometry = self.state_file.geometry();
        let index = self.records.take(geometry.records)?;
        let head = self.state_file.partition_head(self.index);
        if head.records.get() <= index as u64 {
            if index % (ALLOCATION / size_of::<ConnectionRecord>()) == 0 {
                let at = geometry.record_at(self.index, index);
                if self.state_file.allocate(at, ALLOCATION).is_err() {
                    self.records.undo();
                    return None;
                }
            }
            head.records.set(index as u64 + 1);
        }
        let record_id = RecordId::new(u32::try_from(index).ok()?)?;
        if matches!(record.before, Before::Taken(_)) && self.allocate_header(record_id).is_err() {
            self.records.give_back(record_id.index());
            return None;
        }
        self.state_file.write_record(self.index, index, record);
        Some(record_id)
    }

    /// Writes the positions of a connection into its record.
    pub(crate) fn record(&self, record_id: RecordId, record: &Record) {
        self.state_file
            .write_positions(self.index, record_id.index() as usize, record);
    }

    /// Records the header before the stream of the connection with this cookie, which is taken next.
    ///
    /// # Errors
    /// Those of fallocate(2): there is no memory for it.
    pub(crate) fn record_header(
        &self,
        record_id: RecordId,
        cookie: u64,
        taken: Taken,
    ) -> io::Result<()> {
        self.allocate_header(record_id)?;
        let index = record_id.index() as usize;
        self.state_file
            .write_header(self.index, index, cookie, taken);
        Ok(())
    }

    /// Allocates the memory for a header, as a store without it would end the process.
    fn allocate_header(&self, record_id: RecordId) -> io::Result<()> {
        let geometry = self.state_file.geometry();
        let at = geometry.header_at(self.index, record_id.index() as usize);
        self.state_file.allocate(at, size_of::<HeaderRecord>())
    }

    /// Removes the record of a connection.  A process that then finds the socket in a descriptor queue
    /// closes it.
    pub(crate) fn remove_record(&mut self, record_id: RecordId) {
        self.state_file
            .clear_record(self.index, record_id.index() as usize);
        self.records.give_back(record_id.index());
    }

    /// Copies the bytes `from` of this payload, or of `other`, into a slot.  They belong to the
    /// connection with the cookie `owner`, and begin at `position` in its stream.  `None`: there are no
    /// bytes, no free slot, or no memory for it.
    pub(crate) fn put(
        &mut self,
        owner: u64,
        from: Range<usize>,
        other: Option<&Region>,
        position: u64,
    ) -> Option<Slot> {
        let slot = self.take_slot(length(&from)?)?;
        let place = slot_at(slot.index as usize);
        match other {
            None => self.payload.bytes_mut().copy_within(from, place),
            Some(other) => {
                let place = place..place + from.len();
                self.payload.bytes_mut()[place].copy_from_slice(&other.bytes()[from]);
            }
        }
        self.set_owner(&slot, owner, position);
        Some(slot)
    }

    /// When [`Partition::trim`] has to be called next.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<MonoTime> {
        self.next_trim
    }

    /// Gives the memory of slots back to the kernel that were not used for [`KEEP_MEMORY`].
    pub(crate) fn trim(&mut self, now: MonoTime) {
        if self.free_with_memory.is_empty() {
            self.next_trim = None;
            return;
        }
        let Some(due) = self.next_trim else {
            self.next_trim = Some(now + KEEP_MEMORY);
            self.unneeded = self.free_with_memory.len();
            return;
        };
        if now < due {
            return;
        }
        // A slot that becomes free is added at the end and is used again from there, so those at the
        // beginning are the ones that were not used.
        let count = self
            .unneeded
            .min(SLOTS_PER_TRIM)
            .min(self.free_with_memory.len());
        for slot in self.free_with_memory.drain(..count).collect::<Vec<_>>() {
            self.give_back_memory(slot);
        }
        self.unneeded -= count;
        if self.unneeded > 0 {
            self.next_trim = Some(now + BETWEEN_TRIMS);
        } else {
            self.unneeded = self.free_with_memory.len();
            self.next_trim = (self.unneeded > 0).then_some(now + KEEP_MEMORY);
        }
    }

    /// Gives the memory of a free slot back to the kernel.
    fn give_back_memory(&mut self, slot: u32) {
        self.payload.give_back(slot_at(slot as usize), SCRATCH);
        if let Some(allocated) = self.allocated.get_mut(slot as usize) {
            *allocated = 0;
        }
        self.slots.give_back(slot);
    }

    /// Takes a free slot, without an owner and with memory for `length` bytes; `None`: there is no free
    /// slot, or no memory.
    fn take_slot(&mut self, length: NonZeroU32) -> Option<Slot> {
        let geometry = self.state_file.geometry();
        let slot = match self.free_with_memory.pop() {
            Some(slot) => {
                self.unneeded = self.unneeded.min(self.free_with_memory.len());
                slot as usize
            }
            None => self.slots.take(geometry.records)?,
        };
        let head = self.state_file.partition_head(self.index);
        if head.slots.get() <= slot as u64 {
            if slot % (ALLOCATION / size_of::<Mark>()) == 0 {
                let at = geometry.mark_at(self.index, slot);
                if self.state_file.allocate(at, ALLOCATION).is_err() {
                    self.slots.undo();
                    return None;
                }
            }
            head.slots.set(slot as u64 + 1);
        }
        if self.allocated.len() <= slot {
            self.allocated.resize(slot + 1, 0);
        }
        let index = u32::try_from(slot).ok()?;
        if self.allocated[slot] < length.get() {
            let at = geometry.payload_at(self.index) + slot_at(slot);
            if self.state_file.allocate(at, length.get() as usize).is_err() {
                self.free_with_memory.push(index);
                return None;
            }
            self.allocated[slot] = length.get();
        }
        self.clear_owner(index);
        // The compiler may not move the copy that follows before the store.
        compiler_fence(Ordering::SeqCst);
        Some(Slot { index, length })
    }

    fn clear_owner(&self, slot: u32) {
        self.state_file.mark(self.index, slot as usize).owner.set(0);
    }
}

impl BufferStore for Partition {
    fn scratch(&mut self) -> &mut [u8] {
        &mut self.payload.bytes_mut()[..SCRATCH]
    }

    fn begin_read(&mut self, owner: u64, at: u64) {
        // Without an owner the position is never read.
        let begin = if owner == 0 { 0 } else { marked(owner, at) };
        // One lookup for both stores, which are in the path of every message.
        let mark: &Mark = &self.scratch;
        mark.owner.set(owner);
        mark.begin.set(begin);
    }

    fn filled(&mut self, count: usize) {
        self.filled = count;
    }

    fn read(&self) -> &[u8] {
        &self.payload.bytes()[..self.filled]
    }

    fn keep(&mut self, owner: u64, rest: Range<usize>, at: u64) -> Option<Slot> {
        self.put(owner, rest, None, at)
    }

    fn set_owner(&mut self, slot: &Slot, owner: u64, at: u64) {
        let mark = self.state_file.mark(self.index, slot.index as usize);
        mark.owner.set(0);
        mark.begin.set(marked(owner, at));
        mark.owner.set(owner);
    }

    fn slot(&self, slot: &Slot) -> &[u8] {
        let place = slot_at(slot.index as usize);
        &self.payload.bytes()[place..place + slot.length.get() as usize]
    }

    fn free(&mut self, slot: Slot) {
        self.clear_owner(slot.index);
        self.free_with_memory.push(slot.index);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use super::super::layout::Geometry;
    use super::*;

    const SMALL: Geometry = Geometry {
        partitions: 1,
        records: 3,
    };

    fn partition() -> (Partition, File) {
        let (state_file, mut payloads) = StateFile::create(SMALL, 1).unwrap();
        let file = state_file.file().unwrap().try_clone_to_owned().unwrap();
        let partition = Partition::new(Arc::new(state_file), 0, payloads.remove(0));
        (partition, file.into())
    }

    fn record(cookie: u64) -> Record {
        Record {
            cookie,
            began: 1,
            number: 2,
            listener: 3,
            before: Before::Nothing,
            received: 4,
            sent: 5,
        }
    }

    /// The part as the next process gets it, in which the first record and the first slot are used.
    fn resumed(file: &File, short: bool) -> Partition {
        let file = file.try_clone().unwrap();
        let (state_file, mut payloads) = StateFile::open(file.into()).unwrap();
        let is_first = |index| index == 0;
        let payload = payloads.remove(0);
        Partition::resumed(Arc::new(state_file), 0, payload, short, is_first, is_first)
    }

    #[test]
    fn a_removed_record_is_used_again_and_there_are_no_more_than_fit() {
        let (mut partition, _file) = partition();
        let indexes = [70, 71, 72].map(|cookie| partition.add_record(&record(cookie)).unwrap());
        assert_eq!(indexes.map(RecordId::index), [0, 1, 2]);
        assert_eq!(partition.add_record(&record(73)), None);
        partition.remove_record(indexes[1]);
        assert_eq!(partition.state_file().read_record(0, 1), None);
        assert_eq!(partition.add_record(&record(73)), Some(indexes[1]));
        assert_eq!(partition.state_file().read_record(0, 1), Some(record(73)));
    }

    #[test]
    fn a_slot_has_its_bytes_until_it_is_free() {
        let (mut partition, _file) = partition();
        partition.scratch()[..8].copy_from_slice(b"01234567");
        let slots = [70, 71, 72].map(|owner| partition.keep(owner, 2..6, 9).unwrap());
        assert!(partition.keep(73, 0..1, 0).is_none());
        partition.scratch().fill(0);
        assert_eq!(partition.slot(&slots[2]), b"2345");
        let [_, second, _] = slots;
        let index = second.index as usize;
        let state_file = partition.state_file().clone();
        assert_eq!(state_file.mark(0, index).find(71, 9, 4), Some(0));
        partition.free(second);
        assert_eq!(state_file.mark(0, index).find(71, 9, 4), None);
        assert!(partition.keep(73, 0..1, 0).is_some());
    }

    #[test]
    fn a_free_slot_keeps_its_memory_for_a_second() {
        let (mut partition, file) = partition();
        let blocks = || file.metadata().unwrap().blocks();
        let before = blocks();
        partition.scratch().fill(1);
        let slot = partition.keep(70, 0..SCRATCH, 0).unwrap();
        let _used = partition.keep(71, 0..1, 0).unwrap();
        let filled = blocks();
        assert!(filled >= before + SCRATCH as u64 / 512);
        partition.free(slot);
        let now = MonoTime::new(1 << 60);
        partition.trim(now);
        let due = partition.next_due().unwrap();
        assert_eq!(due, now + KEEP_MEMORY);
        partition.trim(now + KEEP_MEMORY / 2);
        assert_eq!(blocks(), filled);
        partition.trim(due);
        assert!(blocks() <= filled - SCRATCH as u64 / 512);
        assert_eq!(partition.next_due(), None);
        // The slot can be used again.
        let slot = partition.keep(72, 0..SCRATCH, 0).unwrap();
        assert!(partition.slot(&slot).iter().all(|byte| *byte == 1));
    }

    #[test]
    fn a_resumed_part_frees_what_no_connection_uses() {
        for short in [false, true] {
            let (mut before, file) = partition();
            before.scratch().fill(1);
            for cookie in [70, 71] {
                before.add_record(&record(cookie)).unwrap();
                before.keep(cookie, 0..SCRATCH, 0).unwrap();
            }
            let blocks = || file.metadata().unwrap().blocks();
            let filled = blocks();
            let mut partition = resumed(&file, short);
            assert_eq!(
                blocks() < filled,
                short,
                "memory is given back where it is short"
            );
            let state_file = partition.state_file().clone();
            assert_eq!(state_file.read_record(0, 0), Some(record(70)));
            assert_eq!(state_file.read_record(0, 1), None);
            assert_eq!(state_file.mark(0, 0).find(70, 0, 1), Some(0));
            assert_eq!(state_file.mark(0, 1).find(71, 0, 1), None);
            let record_id = partition.add_record(&record(72)).unwrap();
            assert_eq!(record_id.index(), 1);
            assert_eq!(partition.keep(72, 0..1, 0).unwrap().index, 1);
            assert_eq!(partition.keep(73, 0..1, 0).unwrap().index, 2);
            assert!(partition.keep(74, 0..1, 0).is_none());
        }
    }
}
