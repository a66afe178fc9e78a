//! The bytes that a conversation sends, and where bytes that come back belong.
//!
//! Each word of eight bytes is an invertible mix of the seed of the run, the number of the
//! connection and the place of the word.  So nothing that was sent has to be stored to check what
//! comes back, and a word that comes at a wrong place says which connection it was sent on, and
//! at which offset: bytes are missing, came twice, came late, or belong to another connection;
//! what decodes to nothing that was sent was changed, or inserted.
//!
//! From one word to the next the mix is an addition: the words of a run are the multiples of an odd
//! number, which no two of them share, with the upper half folded into the lower one, so that every
//! byte changes from word to word.  That number follows from the seed, so that words of another run
//! do not follow each other as those of this one do.

use std::fmt;

/// Bytes in a word.
const WORD: usize = 8;

/// Bytes that are made or checked at once: the processor has instructions for several words.
const BLOCK: usize = 8 * WORD;

/// Bits of a word's number.  After 8 TiB a stream goes on as that of the next connection.
const INDEX_BITS: u32 = 40;

/// Streams of one seed: connection numbers are below this.
pub const CONNECTIONS: u32 = 1 << (64 - INDEX_BITS);

/// Findings that a [`Checker`] keeps; further ones are counted.
const KEPT: usize = 16;

/// The inverse of an odd number modulo 2^64, by Newton's method.
const fn inverse(odd: u64) -> u64 {
    let mut found = odd;
    let mut round = 0;
    while round < 6 {
        found = found.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(found)));
        round += 1;
    }
    found
}

/// A number of which every bit depends on every bit of the seed (the finalizer of SplitMix64).
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The upper half, folded into the lower one.  Folded twice it is what it was.
const fn fold(value: u64) -> u64 {
    value ^ (value >> 32)
}

/// A place in what a run sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of the connection, below [`CONNECTIONS`].
    pub connection: u32,
    /// Bytes from the beginning of what is sent on it.
    pub offset: u64,
}

/// What one connection sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The first word, not folded.
    first: u64,
    /// From one word to the next; odd.
    step: u64,
    connection: u32,
}

impl Stream {
    /// The stream of a connection in the run of a seed.
    ///
    /// # Panics
    /// The number of the connection is not below [`CONNECTIONS`].
    #[must_use]
    pub const fn new(seed: u64, connection: u32) -> Self {
        assert!(connection < CONNECTIONS, "too many connections");
        let step = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) | 1;
        let run = Self {
            first: mix(step),
            step,
            connection: 0,
        };
        run.other(connection)
    }

    /// The stream of another connection in the same run.
    const fn other(self, connection: u32) -> Self {
        let further = (connection as u64).wrapping_sub(self.connection as u64);
        Self {
            first: self.value(further << INDEX_BITS),
            connection,
            ..self
        }
    }

    /// A word, not folded.
    const fn value(self, index: u64) -> u64 {
        self.first.wrapping_add(index.wrapping_mul(self.step))
    }

    const fn word(self, index: u64) -> [u8; WORD] {
        fold(self.value(index)).to_le_bytes()
    }

    /// Where a word belongs that begins at a multiple of eight.
    const fn place(self, word: [u8; WORD]) -> Place {
        let value = fold(u64::from_le_bytes(word)).wrapping_sub(self.first);
        let index = value.wrapping_mul(inverse(self.step));
        Place {
            connection: self.connection.wrapping_add((index >> INDEX_BITS) as u32) % CONNECTIONS,
            offset: (index & ((1 << INDEX_BITS) - 1)) * WORD as u64,
        }
    }

    /// Writes what is sent from `offset` on.
    #[inline]
    pub fn fill(self, offset: u64, buffer: &mut [u8]) {
        if offset % WORD as u64 != 0 || buffer.len() % BLOCK != 0 {
            return self.fill_any(offset, buffer);
        }
        let mut index = offset / WORD as u64;
        for block in buffer.chunks_exact_mut(BLOCK) {
            if let Some(block) = block.first_chunk_mut() {
                fill_block(self.value(index), self.step, block);
            }
            index += (BLOCK / WORD) as u64;
        }
    }

    /// The same for what is not made of blocks.
    #[inline(never)]
    fn fill_any(self, offset: u64, buffer: &mut [u8]) {
        let (mut index, skip) = split(offset);
        let (head, rest) = buffer.split_at_mut(before_word(skip, buffer.len()));
        if skip > 0 {
            self.fill_part(index, skip, head);
            index += 1;
        }
        let (blocks, rest) = rest.split_at_mut(rest.len() / BLOCK * BLOCK);
        if !blocks.is_empty() {
            self.fill(index * WORD as u64, blocks);
            index += (blocks.len() / WORD) as u64;
        }
        for word in rest.chunks_mut(WORD) {
            self.fill_part(index, 0, word);
            index += 1;
        }
    }

    /// Writes a part of a word.
    fn fill_part(self, index: u64, skip: usize, part: &mut [u8]) {
        part.copy_from_slice(&self.word(index)[skip..skip + part.len()]);
    }

    /// Whether these are the bytes that are sent from `offset` on; looked at only where they are made of
    /// blocks.
    fn is_at(self, offset: u64, bytes: &[u8]) -> bool {
        let mut index = offset / WORD as u64;
        offset % WORD as u64 == 0
            && bytes.len() % BLOCK == 0
            && bytes.chunks_exact(BLOCK).all(|block| {
                let value = self.value(index);
                index += (BLOCK / WORD) as u64;
                block
                    .first_chunk()
                    .is_some_and(|block| is_block(value, self.step, block))
            })
    }

    /// How many bytes are those that are sent from `offset` on, up to the first that is not.
    #[must_use]
    pub fn agreeing(self, offset: u64, bytes: &[u8]) -> usize {
        let (mut index, skip) = split(offset);
        let mut right = before_word(skip, bytes.len());
        if skip > 0 {
            let same = common(&self.word(index)[skip..], &bytes[..right]);
            if same < right {
                return same;
            }
            index += 1;
        }
        while let Some(block) = bytes[right..].first_chunk() {
            if !is_block(self.value(index), self.step, block) {
                break;
            }
            right += BLOCK;
            index += (BLOCK / WORD) as u64;
        }
        for came in bytes[right..].chunks(WORD) {
            let same = common(&self.word(index), came);
            right += same;
            if same < came.len() {
                break;
            }
            index += 1;
        }
        right
    }

    /// How many bytes at the end of `bytes` are those that are sent just before `offset`.
    fn agreeing_before(self, offset: u64, bytes: &[u8]) -> usize {
        let most = usize::try_from(offset).map_or(WORD, |offset| offset.min(WORD));
        let span = bytes.len().min(most);
        let mut expected = [0; WORD];
        self.fill(offset - span as u64, &mut expected[..span]);
        let pairs = bytes.iter().rev().zip(expected[..span].iter().rev());
        pairs.take_while(|(came, sent)| came == sent).count()
    }
}

/// The number of the word that an offset is in, and the byte in it.
fn split(offset: u64) -> (u64, usize) {
    #[expect(clippy::cast_possible_truncation, reason = "it is below eight")]
    (offset / WORD as u64, (offset % WORD as u64) as usize)
}

/// How many of so many bytes belong to a word of which `skip` bytes came before.
fn before_word(skip: usize, bytes: usize) -> usize {
    bytes.min((WORD - skip) % WORD)
}

// What follows from a word by additions is not derived by multiplications instead where the compiler
// does not see what the block is part of.

/// Writes the block that begins with a word, which is given without being folded.
#[inline(never)]
fn fill_block(mut value: u64, step: u64, block: &mut [u8; BLOCK]) {
    for word in block.chunks_exact_mut(WORD) {
        word.copy_from_slice(&fold(value).to_le_bytes());
        value = value.wrapping_add(step);
    }
}

/// Whether a block is the one that begins with a word, which is given without being folded.
#[inline(never)]
fn is_block(mut value: u64, step: u64, block: &[u8; BLOCK]) -> bool {
    let mut different = 0;
    for came in block.chunks_exact(WORD) {
        let mut word = [0; WORD];
        word.copy_from_slice(came);
        different |= fold(value) ^ u64::from_le_bytes(word);
        value = value.wrapping_add(step);
    }
    different == 0
}

/// How many bytes two slices have in common at their beginning.
fn common(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// What is wrong at one place of what came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Bytes that were sent are left out.
    Missing {
        /// The offset of the first of them in what was sent.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// Bytes come that have come before.
    Repeated {
        /// Where, in bytes received.
        at: u64,
        /// Their offset in what was sent.
        offset: u64,
    },
    /// Bytes come that were left out before.
    Late {
        /// Where, in bytes received.
        at: u64,
        /// Their offset in what was sent.
        offset: u64,
    },
    /// Bytes come that were sent on another connection.
    Foreign {
        /// Where, in bytes received.
        at: u64,
        /// Where they were sent.
        place: Place,
    },
    /// Bytes came changed, as many as were sent.
    Changed {
        /// The offset of the first of them in what was sent.
        offset: u64,
        /// From the first to the last that is wrong.
        bytes: u64,
    },
    /// Bytes come that were never sent, between those that were.
    Inserted {
        /// Where, in bytes received.
        at: u64,
        /// How many.
        bytes: u64,
    },
    /// Bytes come that were never sent, and none behind them that were.
    Strange {
        /// Where, in bytes received.
        at: u64,
        /// How many.
        bytes: u64,
    },
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { offset, bytes } => write!(f, "{bytes} bytes missing at {offset}"),
            Self::Repeated { at, offset } => {
                write!(f, "the bytes sent at {offset} come again at {at}")
            }
            Self::Late { at, offset } => write!(f, "the bytes sent at {offset} come late, at {at}"),
            Self::Foreign { at, place } => write!(
                f,
                "at {at} come bytes that were sent on connection {} at {}",
                place.connection, place.offset
            ),
            Self::Changed { offset, bytes } => write!(f, "{bytes} bytes changed at {offset}"),
            Self::Inserted { at, bytes } => write!(f, "{bytes} bytes inserted at {at}"),
            Self::Strange { at, bytes } => {
                write!(f, "{bytes} bytes that were never sent at {at}")
            }
        }
    }
}

/// Checks what comes back on one connection.
#[derive(Clone, Debug)]
pub struct Checker {
    stream: Stream,
    received: u64,
    /// What should come next.
    next: Place,
    /// The offset up to which everything came, or is in `missing`.
    furthest: u64,
    missing: Vec<std::ops::Range<u64>>,
    /// Bytes since the first wrong one, while their place is not known.
    lost: Vec<u8>,
    wrong: Vec<Wrong>,
    count: u64,
}

impl Checker {
    /// A checker for what comes back on a stream.
    #[must_use]
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            received: 0,
            next: Place {
                connection: stream.connection,
                offset: 0,
            },
            furthest: 0,
            missing: Vec::new(),
            lost: Vec::new(),
            wrong: Vec::new(),
            count: 0,
        }
    }

    /// Bytes that came.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// How many findings there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The first findings.
    #[must_use]
    pub fn wrong(&self) -> &[Wrong] {
        &self.wrong
    }

    /// Whether a byte came that is not in its place, even if it is not known yet where it belongs.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        self.count > 0 || !self.lost.is_empty()
    }

    /// Takes the next bytes that came; `sent` bytes were sent on this connection by now.
    ///
    /// Returns whether each of them is in its place.
    #[inline]
    pub fn feed(&mut self, bytes: &[u8], sent: u64) -> bool {
        let Place { connection, offset } = self.next;
        let end = offset + bytes.len() as u64;
        // As nearly always.
        if connection == self.stream.connection
            && end <= sent
            && self.lost.is_empty()
            && self.stream.is_at(offset, bytes)
        {
            self.received += bytes.len() as u64;
            self.next.offset = end;
            self.furthest = self.furthest.max(end);
            return true;
        }
        self.feed_any(bytes, sent)
    }

    /// The same where something is wrong, or the pieces are not made of blocks.
    #[inline(never)]
    fn feed_any(&mut self, bytes: &[u8], sent: u64) -> bool {
        let count = self.count;
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = match self.lost.is_empty() {
                true => self.follow(rest, sent),
                false => self.search(rest, sent),
            };
        }
        self.count == count && self.lost.is_empty()
    }

    /// No more bytes come.
    pub fn finish(&mut self) {
        if !self.lost.is_empty() {
            let bytes = self.lost.len() as u64;
            let at = self.received - bytes;
            // What is too short to say where it belongs: bytes that are changed at the end.
            let changed = bytes < 2 * WORD as u64 && self.next.connection == self.stream.connection;
            self.lost.clear();
            self.record(match changed {
                true => Wrong::Changed {
                    offset: self.next.offset,
                    bytes,
                },
                false => Wrong::Strange { at, bytes },
            });
        }
    }

    /// Goes on where the bytes are as expected; returns the rest.
    fn follow<'a>(&mut self, bytes: &'a [u8], sent: u64) -> &'a [u8] {
        let own = self.next.connection == self.stream.connection;
        let (stream, most) = match own {
            // More than was sent cannot be an echo.
            true => (self.stream, sent.saturating_sub(self.next.offset)),
            false => (self.stream.other(self.next.connection), u64::MAX),
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let right = stream.agreeing(self.next.offset, &bytes[..bytes.len().min(most)]);
        self.received += right as u64;
        self.next.offset += right as u64;
        if own {
            self.furthest = self.furthest.max(self.next.offset);
        }
        let rest = &bytes[right..];
        if let Some((first, rest)) = rest.split_first() {
            self.lost.push(*first);
            self.received += 1;
            return rest;
        }
        rest
    }

    /// Looks for a word that says where it belongs; returns the rest.
    fn search<'a>(&mut self, bytes: &'a [u8], sent: u64) -> &'a [u8] {
        for (index, byte) in bytes.iter().enumerate() {
            self.lost.push(*byte);
            self.received += 1;
            if let Some((place, length)) = self.belongs(sent) {
                self.found(place, length);
                return &bytes[index + 1..];
            }
        }
        &[]
    }

    /// Where the last bytes that came belong, and how many of them say so.
    fn belongs(&self, sent: u64) -> Option<(Place, usize)> {
        let place = self.stream.place(*self.lost.last_chunk::<WORD>()?);
        if place.connection == self.stream.connection {
            return (place.offset + WORD as u64 <= sent).then_some((place, WORD));
        }
        // How much was sent on another connection is not known here, so by chance any word would
        // belong to some: two in a row would not.
        let two = self.lost.last_chunk::<{ 2 * WORD }>()?;
        let first = self.stream.place(*two.first_chunk::<WORD>()?);
        let next = Place {
            offset: first.offset + WORD as u64,
            ..first
        };
        (next == place).then_some((first, 2 * WORD))
    }

    /// The last `length` bytes that came belong to `place`.
    fn found(&mut self, mut place: Place, length: usize) {
        let stream = self.stream.other(place.connection);
        let before = &self.lost[..self.lost.len() - length];
        let back = stream.agreeing_before(place.offset, before);
        let strange = (before.len() - back) as u64;
        let at = self.received - self.lost.len() as u64;
        let length = (back + length) as u64;
        place.offset -= back as u64;
        self.lost.clear();
        let own = place.connection == self.stream.connection;
        let was_own = self.next.connection == self.stream.connection;
        let begin = at + strange;
        if own && was_own && strange > 0 && place.offset == self.next.offset + strange {
            self.record(Wrong::Changed {
                offset: self.next.offset,
                bytes: strange,
            });
        } else {
            if strange > 0 {
                self.record(Wrong::Inserted { at, bytes: strange });
            }
            self.jumped(begin, place, own);
        }
        self.next = Place {
            offset: place.offset + length,
            ..place
        };
        if own {
            self.furthest = self.furthest.max(self.next.offset);
        }
    }

    fn jumped(&mut self, at: u64, place: Place, own: bool) {
        let offset = place.offset;
        if !own {
            self.record(Wrong::Foreign { at, place });
        } else if offset > self.furthest {
            let bytes = offset - self.furthest;
            self.record(Wrong::Missing {
                offset: self.furthest,
                bytes,
            });
            if self.missing.len() < KEPT {
                self.missing.push(self.furthest..offset);
            }
        } else if offset < self.furthest {
            match self.missing.iter().any(|range| range.contains(&offset)) {
                true => self.record(Wrong::Late { at, offset }),
                false => self.record(Wrong::Repeated { at, offset }),
            }
        }
    }

    fn record(&mut self, wrong: Wrong) {
        self.count += 1;
        if self.wrong.len() < KEPT {
            self.wrong.push(wrong);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: Stream = Stream::new(0x5eed, 3);
    const SENT: u64 = 10_000;

    fn sent(range: std::ops::Range<u64>) -> Vec<u8> {
        of(OURS, range)
    }

    fn of(stream: Stream, range: std::ops::Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).expect("small")];
        stream.fill(range.start, &mut bytes);
        bytes
    }

    /// What is found in pieces of each of some lengths, which must not matter.
    #[track_caller]
    fn findings(parts: &[Vec<u8>]) -> Vec<Wrong> {
        let bytes = parts.concat();
        let in_pieces = |length: usize| {
            let mut checker = Checker::new(OURS);
            let mut right = true;
            for piece in bytes.chunks(length) {
                right &= checker.feed(piece, SENT);
            }
            assert_eq!(right, !checker.is_wrong());
            checker.finish();
            assert_eq!(checker.received(), bytes.len() as u64);
            assert_eq!(checker.count(), checker.wrong().len() as u64);
            checker.wrong().to_vec()
        };
        let found = in_pieces(bytes.len());
        for length in [1, 7, 8, 64, 1000] {
            assert_eq!(in_pieces(length), found, "in pieces of {length}");
        }
        found
    }

    #[test]
    fn a_word_says_where_it_belongs() {
        let last = (1 << INDEX_BITS) - 1;
        for connection in [0, 3, 77, CONNECTIONS - 1] {
            for index in [0, 1, 0x5eed, last] {
                let place = Place {
                    connection,
                    offset: index * WORD as u64,
                };
                let word = Stream::new(0x5eed, connection).word(index);
                assert_eq!(OURS.place(word), place);
                assert_eq!(OURS.other(connection).word(index), word);
            }
        }
    }

    #[test]
    fn words_of_another_run_do_not_follow_each_other() {
        for seed in 0..1000 {
            let other = Stream::new(seed, 3);
            let places = [0, 1, 2].map(|index| OURS.place(other.word(index)));
            for pair in places.windows(2) {
                let step = pair[1].offset.wrapping_sub(pair[0].offset);
                assert_ne!(step, WORD as u64, "seed {seed}: {places:?}");
            }
        }
    }

    #[test]
    fn what_is_right_is_right() {
        assert_eq!(findings(&[sent(0..SENT)]), []);
    }

    #[test]
    fn bytes_that_are_missing() {
        for (offset, bytes) in [(0, 512), (1000, 1), (1003, 17), (1024, 4096)] {
            assert_eq!(
                findings(&[sent(0..offset), sent(offset + bytes..SENT)]),
                [Wrong::Missing { offset, bytes }]
            );
        }
    }

    #[test]
    fn bytes_that_come_again() {
        for (from, to) in [(0, 512), (900, 1000), (901, 1003)] {
            assert_eq!(
                findings(&[sent(0..to), sent(from..SENT)]),
                [Wrong::Repeated {
                    at: to,
                    offset: from
                }]
            );
        }
    }

    #[test]
    fn bytes_that_are_displaced() {
        let parts = [
            sent(0..100),
            sent(603..1100),
            sent(100..603),
            sent(1100..SENT),
        ];
        let missing = Wrong::Missing {
            offset: 100,
            bytes: 503,
        };
        let late = Wrong::Late {
            at: 597,
            offset: 100,
        };
        assert_eq!(findings(&parts), [missing, late]);
    }

    #[test]
    fn bytes_of_another_connection() {
        let place = Place {
            connection: 1,
            offset: 77,
        };
        let other = of(Stream::new(0x5eed, 1), 77..177);
        // Between ours, and instead of ours.
        assert_eq!(
            findings(&[sent(0..1001), other.clone(), sent(1001..SENT)]),
            [Wrong::Foreign { at: 1001, place }]
        );
        assert_eq!(
            findings(&[sent(0..1001), other, sent(1101..SENT)]),
            [
                Wrong::Foreign { at: 1001, place },
                Wrong::Missing {
                    offset: 1001,
                    bytes: 100
                }
            ]
        );
    }

    #[test]
    fn bytes_that_were_changed_or_inserted() {
        let flipped = |from: u64, bytes: u64| {
            let bytes: Vec<u8> = sent(from..from + bytes).iter().map(|b| !b).collect();
            bytes
        };
        for (offset, bytes) in [(0, 1), (500, 1), (503, 20), (SENT - 3, 3)] {
            assert_eq!(
                findings(&[
                    sent(0..offset),
                    flipped(offset, bytes),
                    sent(offset + bytes..SENT)
                ]),
                [Wrong::Changed { offset, bytes }]
            );
        }
        assert_eq!(
            findings(&[b"220 ready\r\n".to_vec(), sent(0..SENT)]),
            [Wrong::Inserted { at: 0, bytes: 11 }]
        );
        assert_eq!(
            findings(&[sent(0..50), vec![0; 50]]),
            [Wrong::Strange { at: 50, bytes: 50 }]
        );
        // Of a run with another seed.
        assert_eq!(
            findings(&[of(Stream::new(1, 3), 0..50)]),
            [Wrong::Strange { at: 0, bytes: 50 }]
        );
    }

    #[test]
    fn more_than_was_sent_is_no_echo() {
        let mut checker = Checker::new(OURS);
        assert!(checker.feed(&sent(0..100), 100));
        assert!(!checker.feed(&sent(100..150), 100));
        checker.finish();
        assert_eq!(checker.wrong(), [Wrong::Strange { at: 100, bytes: 50 }]);
    }

    proptest! {
        #[test]
        fn the_pieces_do_not_matter(from in 0..5000_u64, span in 0..200_u64, cut in 0..200_u64) {
            let whole = sent(from..from + span);
            let cut = cut.min(span);
            prop_assert_eq!(&whole, &[sent(from..from + cut), sent(from + cut..from + span)].concat());
            prop_assert_eq!(OURS.agreeing(from, &whole), whole.len());
            if let Some(last) = whole.len().checked_sub(1) {
                let mut changed = whole;
                changed[last] ^= 1;
                prop_assert_eq!(OURS.agreeing(from, &changed), last);
            }
        }
    }
}
