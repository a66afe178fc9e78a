//! One loop's part of the arena: its scratch, its slots and its seats.
//!
//! Before each read two words say whose the scratch is and which position of its stream it begins
//! at; they are all that surviving costs in the data path.  A slot bears the same two words.  It
//! is nobody's while bytes are copied into it, so what it is marked with is always true.
//!
//! Slots that were used and are free again keep their memory for a second, as giving it back costs
//! more than a copy; what nobody needed for a second is given back to the kernel, a few at a time.

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::Duration;

use super::arena::{Arena, Record};
use super::layout::{MARK, SEAT, WORD, lane, marked, slot_at};
use crate::echo::SCRATCH;
use crate::echo::backlog::{Slot, Store, length};
use crate::echo::tick::Tick;
use crate::system::memory::{Pair, Region};

/// How long memory that is not needed is kept.
const WARM: Duration = Duration::from_secs(1);

/// Bytes of seats and of marks that are allocated at a time: the smallest page.
const ALLOCATED: usize = 4096;

/// Slots given back at a time: each takes some 50 us.
const TRIM: usize = 16;

/// Between two such times.
const PAUSE: Duration = Duration::from_millis(20);

/// A seat in the arena: what is noted of one connection there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat(NonZeroU32);

impl Seat {
    /// A seat, by its number.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        number.checked_add(1).and_then(NonZeroU32::new).map(Self)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0.get() - 1
    }
}

/// Numbers that are taken and given back, the lowest first as long as none was given back.
#[derive(Debug, Default)]
struct Numbers {
    next: usize,
    free: Vec<u32>,
}

impl Numbers {
    fn take(&mut self, most: usize) -> Option<usize> {
        if let Some(number) = self.free.pop() {
            return Some(number as usize);
        }
        (self.next < most).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    fn give(&mut self, number: u32) {
        self.free.push(number);
    }

    /// Takes the last number back that was never used before.
    fn untake(&mut self) {
        self.next -= 1;
    }
}

/// One loop's part.
#[derive(Debug)]
pub struct Lane {
    arena: Arc<Arena>,
    index: usize,
    payload: Region,
    /// Whose the scratch is, and from which position on.
    claim: Pair,
    filled: usize,
    seats: Numbers,
    /// Slots without memory.
    slots: Numbers,
    /// Bytes at the beginning of each slot that are known to be allocated.
    allocated: Vec<u32>,
    /// Free slots that have their memory still.
    warm: Vec<u32>,
    /// How many of these were not needed since the last look.
    unneeded: usize,
    trim: Option<Tick>,
}

impl Lane {
    /// The part of a loop, of an arena that nobody has used yet.
    #[must_use]
    pub fn new(arena: Arc<Arena>, index: usize, payload: Region) -> Self {
        let claim = arena.claim(index);
        Self {
            arena,
            index,
            payload,
            claim,
            filled: 0,
            seats: Numbers::default(),
            slots: Numbers::default(),
            allocated: Vec::new(),
            warm: Vec::new(),
            unneeded: 0,
            trim: None,
        }
    }

    /// The part of a loop, as another process has left it, but for the seats and slots that are
    /// in use.  Where memory is `short`, that of the free slots is given back at once.
    #[must_use]
    pub fn resumed(
        arena: Arc<Arena>,
        index: usize,
        payload: Region,
        short: bool,
        seat_taken: impl Fn(u32) -> bool,
        slot_taken: impl Fn(u32) -> bool,
    ) -> Self {
        let (seats, slots) = arena.used(index);
        let mut lane = Self::new(arena, index, payload);
        lane.seats.next = seats;
        lane.slots.next = slots;
        let numbers = |most: usize| (0..u32::try_from(most).unwrap_or(u32::MAX)).rev();
        for seat in numbers(seats).filter(|seat| !seat_taken(*seat)) {
            lane.arena.clear(index, seat as usize);
            lane.seats.give(seat);
        }
        for slot in numbers(slots).filter(|slot| !slot_taken(*slot)) {
            lane.disown(slot);
            if short {
                lane.cool(slot);
            } else {
                lane.warm.push(slot);
            }
        }
        lane
    }

    /// The arena.
    #[must_use]
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Notes a connection; `None`: there is no seat left, or no memory.
    pub fn sit(&mut self, record: &Record) -> Option<Seat> {
        let geometry = self.arena.geometry();
        let seat = self.seats.take(geometry.seats)?;
        let used = geometry.lane(self.index) + lane::SEATS;
        if self.arena.get(used) <= seat as u64 {
            if seat % (ALLOCATED / SEAT) == 0 {
                let at = geometry.seat(self.index, seat);
                if self.arena.allocate(at, ALLOCATED).is_err() {
                    self.seats.untake();
                    return None;
                }
            }
            self.arena.set(used, seat as u64 + 1);
        }
        self.arena.fill(self.index, seat, record);
        Seat::new(u32::try_from(seat).ok()?)
    }

    /// Notes how far a connection has come.
    pub fn note(&self, seat: Seat, record: &Record) {
        self.arena
            .note_seat(self.index, seat.number() as usize, record);
    }

    /// Forgets a connection: whoever finds it closes it.
    pub fn stand(&mut self, seat: Seat) {
        self.arena.clear(self.index, seat.number() as usize);
        self.seats.give(seat.number());
    }

    /// The bytes of all slots, and of the scratch before them.
    #[must_use]
    pub fn payload(&self) -> &Region {
        &self.payload
    }

    /// Puts bytes of a connection into a slot, from wherever they are in this payload or in `other`.
    pub fn put(
        &mut self,
        owner: u64,
        from: Range<usize>,
        other: Option<&Region>,
        at: u64,
    ) -> Option<Slot> {
        let slot = self.take(length(&from)?)?;
        let place = slot_at(slot.index as usize);
        match other {
            None => self.payload.bytes_mut().copy_within(from, place),
            Some(other) => {
                let place = place..place + from.len();
                self.payload.bytes_mut()[place].copy_from_slice(&other.bytes()[from]);
            }
        }
        self.own(&slot, owner, at);
        Some(slot)
    }

    /// When [`Lane::trim`] has to be called next.
    #[must_use]
    pub fn next_due(&self) -> Option<Tick> {
        self.trim
    }

    /// Gives memory back that was not needed for a while.
    pub fn trim(&mut self, now: Tick) {
        if self.warm.is_empty() {
            self.trim = None;
            return;
        }
        let Some(due) = self.trim else {
            self.trim = Some(now + WARM);
            self.unneeded = self.warm.len();
            return;
        };
        if now < due {
            return;
        }
        let count = self.unneeded.min(TRIM).min(self.warm.len());
        for slot in self.warm.drain(..count).collect::<Vec<_>>() {
            self.cool(slot);
        }
        self.unneeded -= count;
        if self.unneeded > 0 {
            self.trim = Some(now + PAUSE);
        } else {
            self.unneeded = self.warm.len();
            self.trim = (!self.warm.is_empty()).then_some(now + WARM);
        }
    }

    /// Gives the memory of a free slot back to the kernel.
    fn cool(&mut self, slot: u32) {
        self.payload.give_back(slot_at(slot as usize), SCRATCH);
        if let Some(allocated) = self.allocated.get_mut(slot as usize) {
            *allocated = 0;
        }
        self.slots.give(slot);
    }

    /// `None`: there is no slot left, or no memory.
    fn take(&mut self, length: NonZeroU32) -> Option<Slot> {
        let geometry = self.arena.geometry();
        let index = match self.warm.pop() {
            Some(index) => {
                self.unneeded = self.unneeded.min(self.warm.len());
                index as usize
            }
            None => self.slots.take(geometry.seats)?,
        };
        let used = geometry.lane(self.index) + lane::SLOTS;
        let first = self.arena.get(used) <= index as u64;
        if first && index % (ALLOCATED / MARK) == 0 {
            let at = geometry.mark(self.index, index);
            if self.arena.allocate(at, ALLOCATED).is_err() {
                self.slots.untake();
                return None;
            }
        }
        if first {
            self.arena.set(used, index as u64 + 1);
        }
        if self.allocated.len() <= index {
            self.allocated.resize(index + 1, 0);
        }
        let has = self.allocated[index];
        let index = u32::try_from(index).ok()?;
        if has < length.get() {
            let at = geometry.payload_at(self.index) + slot_at(index as usize);
            if self.arena.allocate(at, length.get() as usize).is_err() {
                self.warm.push(index);
                return None;
            }
            self.allocated[index as usize] = length.get();
        }
        self.disown(index);
        // The copy that follows may not come before that.
        compiler_fence(Ordering::SeqCst);
        Some(Slot { index, length })
    }

    fn disown(&self, slot: u32) {
        let mark = self.arena.geometry().mark(self.index, slot as usize);
        self.arena.set(mark, 0);
    }
}

impl Store for Lane {
    fn scratch(&mut self) -> &mut [u8] {
        &mut self.payload.bytes_mut()[..SCRATCH]
    }

    fn claim(&mut self, owner: u64, at: u64) {
        // Nobody asks from where on it is nobody's.
        let at = if owner == 0 { 0 } else { marked(owner, at) };
        self.claim.set(owner, at);
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

    fn own(&mut self, slot: &Slot, owner: u64, at: u64) {
        let mark = self.arena.geometry().mark(self.index, slot.index as usize);
        self.arena.set(mark, 0);
        self.arena.set(mark + WORD, marked(owner, at));
        self.arena.set(mark, owner);
    }

    fn slot(&self, slot: &Slot) -> &[u8] {
        let place = slot_at(slot.index as usize);
        &self.payload.bytes()[place..place + slot.length.get() as usize]
    }

    fn free(&mut self, slot: Slot) {
        self.disown(slot.index);
        self.warm.push(slot.index);
    }
}
