//! What stands where in the arena: numbers, and nothing but numbers.
//!
//! ```text
//! header   what the arena is (checked), then what changes while it is used
//! names    of listeners, by which seats name theirs
//! lanes    for each loop: its claim, how far its seats and slots were ever used
//! seats    for each loop: what the kernel does not remember of a connection
//! marks    for each loop: whose each slot is, and from which position
//! payload  for each loop: its scratch, then its slots
//! ```
//!
//! Everything is a word of 64 bits, but for the payload.  The memory is sparse: what
//! was never used costs nothing, so there is room for as many connections as there can be.

use crate::echo::SCRATCH;
pub(super) use crate::system::memory::WORD;

/// "tcp-echo", as a number.
pub(super) const MAGIC: u64 = u64::from_be_bytes(*b"tcp-echo");

/// Of this layout.  Any change of it, of [`SCRATCH`] or of the reasons for an end needs another one.
pub const VERSION: u64 = 2;

/// Bytes to whose multiples the parts are aligned: the largest page that Linux has by default (64 KiB
/// on arm64 and ppc64).  Memory that is not aligned to a page cannot be given back (madvise(2)).
const PAGE: usize = 65_536;

const _: () = assert!(SCRATCH % PAGE == 0, "slots begin with a page");

/// Words of the part of the header that never changes, the check not counted.
pub(super) const FIXED: usize = 7;

/// The words of the header, by their offsets in bytes.
pub mod header {
    /// The first of the words that never change: magic, version, size, lanes, seats, scratch,
    /// generation; their check follows.
    pub const FIXED: usize = 0;
    /// Whether the process handed its connections over before it ended.
    pub const STATE: usize = 128;
    /// Starts in a row that did not get through a full round.
    pub const STARTS: usize = 136;
    /// Whose turn it is, until the first full round.
    pub const IN_HAND: usize = 144;
    /// Who was in hand at the last crash.
    pub const SUSPECT: usize = 152;
    /// At how many crashes in a row.
    pub const SUSPECTED: usize = 160;
    /// Processes that had been killed for want of memory when this one started, and one more;
    /// 0: not known.
    pub const MEMORY_KILLS: usize = 168;
    /// When the first start failed since one has succeeded, in microseconds of `CLOCK_MONOTONIC`; 0:
    /// none has.
    pub const FAILING_SINCE: usize = 176;
    /// The totals, twice: a crash may come while one of them is written.
    pub const TOTALS: [usize; 2] = [256, 512];
}

/// The words of a lane, by their offsets in bytes.
pub(super) mod lane {
    /// Whose the scratch is.
    pub(in crate::survival) const OWNER: usize = 0;
    /// The marked position at which its content begins; right behind the owner.
    pub(in crate::survival) const AT: usize = 8;
    /// Seats below this number were used at some time.
    pub(in crate::survival) const SEATS: usize = 64;
    /// Slots below this number were used at some time.
    pub(in crate::survival) const SLOTS: usize = 72;
}

/// Names of listeners.
pub(super) const NAMES: usize = 4096;

/// Bytes for a name: its length, itself, and a check.
pub(super) const NAME: usize = 256;

/// Bytes of a seat.
pub(super) const SEAT: usize = 64;

/// Bytes of the mark of a slot.
pub(super) const MARK: usize = 16;

/// How large an arena is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Loops.
    pub lanes: usize,
    /// Seats, and slots, of each of them.
    pub seats: usize,
}

impl Geometry {
    const NAMES_AT: usize = PAGE;
    const LANES_AT: usize = Self::NAMES_AT + NAMES * NAME;

    /// Bytes of what is used from the start on: header, names and lanes.
    pub(super) fn head(self) -> usize {
        self.seats_at()
    }

    fn seats_at(self) -> usize {
        Self::LANES_AT + self.lanes * PAGE
    }

    fn marks_at(self) -> usize {
        self.seats_at() + self.lanes * pages(self.seats * SEAT)
    }

    /// Bytes of all that is words.
    pub(super) fn words(self) -> usize {
        self.marks_at() + self.lanes * pages(self.seats * MARK)
    }

    /// Bytes of the payload of a lane.
    pub(super) fn payload(self) -> usize {
        (1 + self.seats) * SCRATCH
    }

    /// Where the payload of a lane begins.
    pub(super) fn payload_at(self, lane: usize) -> usize {
        assert!(lane < self.lanes, "no such lane");
        self.words() + lane * self.payload()
    }

    /// Bytes altogether.
    #[must_use]
    pub fn size(self) -> usize {
        self.words() + self.lanes * self.payload()
    }

    pub(super) fn name(self, index: usize) -> usize {
        assert!(index < NAMES, "no such name");
        Self::NAMES_AT + index * NAME
    }

    pub(super) fn lane(self, lane: usize) -> usize {
        assert!(lane < self.lanes, "no such lane");
        Self::LANES_AT + lane * PAGE
    }

    pub(super) fn seat(self, lane: usize, seat: usize) -> usize {
        assert!(lane < self.lanes && seat < self.seats, "no such seat");
        self.seats_at() + lane * pages(self.seats * SEAT) + seat * SEAT
    }

    pub(super) fn mark(self, lane: usize, slot: usize) -> usize {
        assert!(lane < self.lanes && slot < self.seats, "no such slot");
        self.marks_at() + lane * pages(self.seats * MARK) + slot * MARK
    }
}

/// Where a slot begins in the payload of its lane, behind the scratch.
pub(super) fn slot_at(slot: usize) -> usize {
    (1 + slot) * SCRATCH
}

fn pages(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE)
}

/// Spreads words over a word, so that damage shows.
pub(super) fn check(words: &[u64]) -> u64 {
    words.iter().fold(MAGIC, |sum, word| {
        let product = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        product ^ (product >> 29)
    })
}

/// The low bits of a position; the upper ones hold a check.  Positions are told apart modulo
/// 256 TiB, a thousand million times what can be owed.
const POSITION: u64 = (1 << 48) - 1;

/// A position of an owner's stream, marked as that owner's: in one word, so that a store is whole
/// or not there.
pub(super) fn marked(owner: u64, at: u64) -> u64 {
    let position = at & POSITION;
    let mark = (owner ^ position).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    position | mark << 48
}

/// How far behind a marked position of an owner another position of its stream lies.
pub(super) fn distance(owner: u64, word: u64, position: u64) -> Option<usize> {
    if owner == 0 || word != marked(owner, word) {
        return None;
    }
    usize::try_from(position.wrapping_sub(word) & POSITION).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_follow_each_other_and_fill_the_arena() {
        for (lanes, seats) in [(1, 1), (1, 65_536), (3, 77)] {
            let geometry = Geometry { lanes, seats };
            let (last_lane, last) = (lanes - 1, seats - 1);
            assert_eq!(geometry.name(NAMES - 1) + NAME, geometry.lane(0));
            assert_eq!(geometry.lane(last_lane) + PAGE, geometry.seat(0, 0));
            assert!(geometry.seat(last_lane, last) + SEAT <= geometry.mark(0, 0));
            assert!(geometry.mark(last_lane, last) + MARK <= geometry.words());
            assert_eq!(slot_at(last) + SCRATCH, geometry.payload());
            assert_eq!(
                geometry.words() + lanes * geometry.payload(),
                geometry.size()
            );
        }
    }

    #[test]
    fn a_marked_position_is_its_owners_and_no_others() {
        for at in [0, 5, POSITION, POSITION + 9, u64::MAX - 70_000] {
            let word = marked(77, at);
            for ahead in [0, 1, 65_536] {
                let position = at.wrapping_add(ahead);
                let expected = usize::try_from(ahead).expect("it is small");
                assert_eq!(distance(77, word, position), Some(expected));
            }
            assert_eq!(distance(78, word, at), None);
            assert_eq!(distance(0, marked(0, at), at), None);
            for bit in 0..64 {
                assert_eq!(distance(77, word ^ 1 << bit, at), None, "bit {bit} of {at}");
            }
        }
        assert_eq!(distance(77, 0, 0), None);
    }
}
