//! What clients say, known in advance.
//!
//! Every stream is a piece of one endless repetition, and begins somewhere else in it, so that
//! bytes of one connection do not pass for another's.  Nothing is made while it runs: a message
//! is a slice, and what comes back is compared with slices.  The repetition is short, because it
//! shares the processor's cache with the server; its length is a prime, so that no mistake of a
//! buffer's or a segment's size goes unseen.

use std::io::IoSlice;

/// After so many bytes it begins again.
const PERIOD: usize = 32_749;

/// A piece up to this length is one slice.
pub const WHOLE: usize = 4096;

/// The repetition, once and a bit.
#[derive(Debug)]
pub struct Pattern(Vec<u8>);

impl Pattern {
    pub fn new() -> Self {
        let once = crate::daemon::pattern(862, PERIOD);
        Self(once.iter().copied().cycle().take(PERIOD + WHOLE).collect())
    }

    /// The piece of at most [`WHOLE`] bytes at a position.
    pub fn whole(&self, position: u64, length: usize) -> &[u8] {
        let at = place(position);
        &self.0[at..at + length]
    }

    /// A piece of any length.
    pub fn slices(&self, position: u64, mut length: usize) -> Vec<IoSlice<'_>> {
        let mut at = place(position);
        let mut slices = Vec::with_capacity(length / PERIOD + 2);
        while length > 0 {
            let end = PERIOD.min(at + length);
            slices.push(IoSlice::new(&self.0[at..end]));
            length -= end - at;
            at = 0;
        }
        slices
    }

    /// Whether these bytes are what comes at a position.
    pub fn is_at(&self, position: u64, bytes: &[u8]) -> bool {
        if bytes.len() <= WHOLE {
            return bytes == self.whole(position, bytes.len());
        }
        let (start, rest) =
            bytes.split_at(PERIOD.min(bytes.len() + place(position)) - place(position));
        start == &self.0[place(position)..][..start.len()]
            && rest
                .chunks(PERIOD)
                .all(|chunk| chunk == &self.0[..chunk.len()])
    }
}

/// A stream's first position, different for each number.
pub fn start(number: usize) -> u64 {
    (number * 7919 % PERIOD) as u64
}

fn place(position: u64) -> usize {
    (position % PERIOD as u64) as usize
}
