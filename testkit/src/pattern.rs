//! The bytes that are sent, known in advance, so that what comes back is compared with what is due.

use std::io::IoSlice;

/// Bytes that differ at every position of interest, reproducibly.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[4]
        })
        .collect()
}

/// After so many bytes a [`Pattern`] begins again.  It is a prime, so that no mistake of a buffer's or
/// a segment's size goes unseen, and little, as a load shares the processor's cache with the server.
const PERIOD: usize = 32_749;

/// One endless repetition of bytes, of which every stream is a piece.  Nothing is made while it runs:
/// a message is a slice of it.
#[derive(Debug)]
pub struct Pattern {
    /// The repetition, once and a bit.
    bytes: Vec<u8>,
    whole: usize,
}

impl Pattern {
    /// A piece of up to `whole` bytes is one slice.
    pub fn new(seed: u64, whole: usize) -> Self {
        let once = pattern(seed, PERIOD);
        Self {
            bytes: once.iter().copied().cycle().take(PERIOD + whole).collect(),
            whole,
        }
    }

    /// The first position of a stream, different for each number below the period: the bytes of one
    /// stream do not pass for those of another.
    pub fn start(number: usize) -> u64 {
        (number % PERIOD * 7919 % PERIOD) as u64
    }

    /// The piece at a position: `most` bytes, or as many as one slice has.
    pub fn piece(&self, position: u64, most: usize) -> &[u8] {
        let at = place(position);
        &self.bytes[at..at + most.min(self.whole)]
    }

    /// A piece of any length.
    pub fn slices(&self, position: u64, mut length: usize) -> Vec<IoSlice<'_>> {
        let mut at = place(position);
        let mut slices = Vec::with_capacity(length / PERIOD + 2);
        while length > 0 {
            let end = PERIOD.min(at + length);
            slices.push(IoSlice::new(&self.bytes[at..end]));
            length -= end - at;
            at = 0;
        }
        slices
    }

    /// Whether these bytes are what comes at a position.
    pub fn is_at(&self, position: u64, bytes: &[u8]) -> bool {
        if bytes.len() <= self.whole {
            return bytes == self.piece(position, bytes.len());
        }
        let at = place(position);
        let (start, rest) = bytes.split_at(bytes.len().min(PERIOD - at));
        start == &self.bytes[at..at + start.len()]
            && rest
                .chunks(PERIOD)
                .all(|chunk| chunk == &self.bytes[..chunk.len()])
    }
}

fn place(position: u64) -> usize {
    (position % PERIOD as u64) as usize
}

/// Pseudo-random numbers, the same for the same seed.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number from 1 to `most`, small ones as likely as large ones.
    pub fn up_to(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let magnitude = usize::BITS - most.leading_zeros();
        let most_now = most >> ((self.0 >> 40) as u32 % magnitude);
        (self.0 >> 8) as usize % most_now.max(1) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_in_pieces_is_recognized_at_its_place_and_nowhere_else() {
        let pattern = Pattern::new(1, 4096);
        for position in [0, 1, PERIOD as u64 - 1, 5 * PERIOD as u64 + 30_000] {
            for length in [1000, 4096, 4097, PERIOD, 3 * PERIOD + 17] {
                let slices = pattern.slices(position, length);
                let sent: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
                assert_eq!(sent.len(), length);
                assert!(pattern.is_at(position, &sent));
                assert!(!pattern.is_at(position + 1, &sent));
                assert_eq!(pattern.piece(position, length), &sent[..length.min(4096)]);
                let mut wrong = sent;
                wrong[length - 1] ^= 1;
                assert!(!pattern.is_at(position, &wrong));
            }
        }
    }
}
