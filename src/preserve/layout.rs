//! The layout of the state file: which bytes of it mean what.
//!
//! ```text
//! header        what the file is (with a check), then what changes while it is in use
//! names         of listeners; a record refers to one of them by its index
//! partitions    for each worker: the mark of its scratch, and how much of its part was ever used
//! records       for each worker: what the kernel does not remember of a connection
//! marks         for each worker: the owner of each slot, and where in its stream the slot begins
//! headers       for each worker: what the PROXY header before a stream says, by the record's index
//! payload       for each worker: its scratch, then its slots
//! ```
//!
//! Everything but the payload consists of words of 64 bits.  The structs below give the words names;
//! their fields stand in the file in the order in which they are declared.  The file is sparse: a page
//! that was never written takes no memory, so the file can be large enough for as many connections as
//! there may ever be.
//!
//! A process may be killed between any two stores.  So whatever takes more than one store has a word
//! that makes it valid: a [`check`] over the other words, or the cookie of a connection, which is
//! stored last.

use crate::echo::SCRATCH;
use crate::echo::end_reason::EndReason;
use crate::sys::memory::{Word, shared};

/// What every state file begins with: "tcp-echo", as a number.
pub(super) const MAGIC: u64 = u64::from_be_bytes(*b"tcp-echo");

/// The version of this layout.  A process uses only a file of the same version.  Every change of the
/// structs below, of their places, of [`SCRATCH`] or of [`EndReason::ALL`] needs a new version; a
/// test compares a hash of all these.
pub(crate) const LAYOUT_VERSION: u64 = 3;

/// The alignment of each part in bytes: the largest page that Linux has by default (64 KiB on arm64 and
/// ppc64).  Only whole pages can be given back to the kernel (madvise(2)).
const PAGE: usize = 65_536;

const _: () = assert!(SCRATCH % PAGE == 0, "a slot begins with a page");

/// How many names of listeners there may be.
pub(super) const NAMES: usize = 4096;

shared! {
    /// The beginning of the file.
    pub(super) struct Header {
        /// [`MAGIC`].
        pub(super) magic: Word,
        /// [`LAYOUT_VERSION`].
        pub(super) version: Word,
        /// Bytes of the file.
        pub(super) size: Word,
        /// [`Geometry::partitions`].
        pub(super) partitions: Word,
        /// [`Geometry::records`].
        pub(super) records: Word,
        /// [`SCRATCH`].
        pub(super) scratch: Word,
        /// The number in the file's name in the store.
        pub(super) generation: Word,
        /// Over the words before, which never change.
        pub(super) check: Word,
        _unused: [Word; 8],
        /// 1: the process that used the file last has handed its connections over.
        pub(super) handed_over: Word,
        /// The crashes before the first full round.
        pub(super) crashes: Crashes,
        /// How many processes had been killed for want of memory when the process that uses the file
        /// started, plus one; 0: unknown.
        pub(super) memory_kills: Word,
        /// When the first of the starts in a row failed that served no connection, in microseconds of
        /// `CLOCK_MONOTONIC`; 0: the last start has succeeded.
        pub(super) failing_since: Word,
        /// 1: the service is drained by request.
        pub(super) drained: Word,
        _unused_too: [Word; 8],
        /// The totals, twice, as a crash may come while one of them is written.
        pub(super) totals: [TotalsRecord; 2],
    }

    /// What is remembered of crashes before the first full round ([`super::crash_guard`]).
    pub(super) struct Crashes {
        /// Starts in a row that did not get through a full round.
        pub(super) starts: Word,
        /// The cookie of the connection that is being served; 0: none.
        pub(super) current: Word,
        /// The cookie of the connection that was being served at the last crash; 0: none.
        pub(super) suspect: Word,
        /// At how many crashes in a row it was.
        pub(super) suspected: Word,
    }

    /// The totals of the service ([`super::totals::Totals`]).
    pub(super) struct TotalsRecord {
        /// Greater by one than that of the record written before.
        pub(super) sequence: Word,
        pub(super) number: Word,
        pub(super) refused: Word,
        pub(super) accepted: Word,
        pub(super) received: Word,
        pub(super) sent: Word,
        /// In the order of [`EndReason::ALL`].
        pub(super) closed: [Word; EndReason::ALL.len()],
        /// Over all words before.
        pub(super) check: Word,
        _unused: [Word; 25 - EndReason::ALL.len()],
    }

    /// The name of a listener.
    pub(super) struct ListenerName {
        /// A byte with the length of the name, then the name, as numbers with the lowest byte first.
        pub(super) text: [Word; 31],
        /// Over all words of the text.
        pub(super) check: Word,
    }

    /// What is known of the part of one worker.
    pub(super) struct PartitionHead {
        /// The mark of the scratch.
        pub(super) scratch: Mark,
        _unused: [Word; 6],
        /// Records with a lower index were used at some time.
        pub(super) records: Word,
        /// Slots with a lower index were used at some time.
        pub(super) slots: Word,
    }

    /// Which connection the bytes of a scratch or of a slot belong to.
    pub(super) struct Mark {
        /// The cookie of the connection; 0: none.
        pub(super) owner: Word,
        /// The position in its stream at which the bytes begin, as [`marked`] has it.
        pub(super) begin: Word,
    }

    /// What the kernel does not remember of a connection
    /// ([`Record`](super::state_file::Record)).
    pub(super) struct ConnectionRecord {
        /// 0: the record is free.
        pub(super) cookie: Word,
        pub(super) began: Word,
        pub(super) number: Word,
        /// The index of a name; with [`BEHIND_HEADER`] added where a PROXY header stands before the
        /// stream.
        pub(super) listener: Word,
        /// Over the four words before.
        pub(super) check: Word,
        pub(super) received: Word,
        pub(super) sent: Word,
        /// Over the cookie and the two words before.
        pub(super) positions_check: Word,
    }

    /// What a PROXY header says, which was taken or is taken next.
    pub(super) struct HeaderRecord {
        /// Two IPv6 addresses, or IPv4 addresses written as such; source first.
        pub(super) addresses: [Word; 4],
        /// From the lowest bits on, 16 for each: the length of the header, the port of the source, that
        /// of the destination, and 1 if there are addresses.
        pub(super) rest: Word,
        /// Over the cookie and the words before.
        pub(super) check: Word,
        _unused: [Word; 2],
    }
}

const _: () = assert!(size_of::<Header>() <= PAGE, "the names begin with a page");

/// Stands in [`ConnectionRecord::listener`] above the index.
pub(super) const BEHIND_HEADER: u64 = 1 << 32;

impl Header {
    /// The words that never change, but for their check.
    pub(super) fn fixed(&self) -> [u64; 7] {
        [
            &self.magic,
            &self.version,
            &self.size,
            &self.partitions,
            &self.records,
            &self.scratch,
            &self.generation,
        ]
        .map(Word::get)
    }
}

/// How large a state file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// How many workers have a part of it: 1 to 1024.
    pub partitions: usize,
    /// How many records, and how many slots, each part has: 1 to 16 777 216.
    pub records: usize,
}

impl Geometry {
    const NAMES_AT: usize = PAGE;
    const PARTITIONS_AT: usize = Self::NAMES_AT + NAMES * size_of::<ListenerName>();

    /// Whether the numbers are in their ranges.
    pub(super) fn is_possible(self) -> bool {
        (1..=1024).contains(&self.partitions) && (1..=1 << 24).contains(&self.records)
    }

    /// Bytes that are used from the start on: header, names and heads of partitions.
    pub(super) fn head(self) -> usize {
        Self::PARTITIONS_AT + self.partitions * PAGE
    }

    /// Bytes of the records of a partition.
    fn records_size(self) -> usize {
        (self.records * size_of::<ConnectionRecord>()).next_multiple_of(PAGE)
    }

    fn marks_begin(self) -> usize {
        self.head() + self.partitions * self.records_size()
    }

    /// Bytes of the marks of a partition.
    fn marks_size(self) -> usize {
        (self.records * size_of::<Mark>()).next_multiple_of(PAGE)
    }

    fn headers_begin(self) -> usize {
        self.marks_begin() + self.partitions * self.marks_size()
    }

    /// Bytes of the headers of a partition.
    fn headers_size(self) -> usize {
        (self.records * size_of::<HeaderRecord>()).next_multiple_of(PAGE)
    }

    /// Bytes of all that consists of words.
    pub(super) fn words(self) -> usize {
        self.headers_begin() + self.partitions * self.headers_size()
    }

    /// Bytes of the payload of a partition.
    pub(super) fn payload(self) -> usize {
        slot_at(self.records)
    }

    /// Bytes of the file.
    #[must_use]
    pub(crate) fn size(self) -> usize {
        self.words() + self.partitions * self.payload()
    }

    /// The offset of a name in the file.
    pub(super) fn name_at(self, index: usize) -> usize {
        assert!(index < NAMES, "no such name");
        Self::NAMES_AT + index * size_of::<ListenerName>()
    }

    /// The offset of the head of a partition in the file.
    pub(super) fn partition_at(self, partition: usize) -> usize {
        assert!(partition < self.partitions, "no such partition");
        Self::PARTITIONS_AT + partition * PAGE
    }

    /// The offset of a record in the file.
    pub(super) fn record_at(self, partition: usize, record: usize) -> usize {
        assert!(partition < self.partitions, "no such partition");
        assert!(record < self.records, "no such record");
        self.head() + partition * self.records_size() + record * size_of::<ConnectionRecord>()
    }

    /// The offset of the mark of a slot in the file.
    pub(super) fn mark_at(self, partition: usize, slot: usize) -> usize {
        assert!(partition < self.partitions, "no such partition");
        assert!(slot < self.records, "no such slot");
        self.marks_begin() + partition * self.marks_size() + slot * size_of::<Mark>()
    }

    /// The offset of what the header before a stream says, by the index of its record.
    pub(super) fn header_at(self, partition: usize, record: usize) -> usize {
        assert!(partition < self.partitions, "no such partition");
        assert!(record < self.records, "no such record");
        self.headers_begin() + partition * self.headers_size() + record * size_of::<HeaderRecord>()
    }

    /// The offset of the payload of a partition in the file.
    pub(super) fn payload_at(self, partition: usize) -> usize {
        assert!(partition < self.partitions, "no such partition");
        self.words() + partition * self.payload()
    }
}

/// The offset of a slot in the payload of its partition, in which the scratch comes first.
pub(super) fn slot_at(slot: usize) -> usize {
    (1 + slot) * SCRATCH
}

/// A word that depends on every bit of other words, by which damage to them is noticed.
pub(super) fn check(words: &[u64]) -> u64 {
    words.iter().fold(MAGIC, |sum, word| {
        let product = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        product ^ (product >> 29)
    })
}

/// The bits of a marked position that hold the position; the upper ones hold a check.  So positions
/// are compared modulo 256 TiB, which is a thousand million times what can be owed.
const POSITION: u64 = (1 << 48) - 1;

/// A position in the stream of `owner`, with a check over both.  As it is one word, a store of it is
/// complete or has not happened.
pub(super) fn marked(owner: u64, position: u64) -> u64 {
    let position = position & POSITION;
    let mark = (owner ^ position).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    position | mark << 48
}

/// Distance in bytes from the position stored in `word` to `position`; `None` if `word` is not a
/// position marked for `owner`.
pub(super) fn distance(owner: u64, word: u64, position: u64) -> Option<usize> {
    if owner == 0 || word != marked(owner, word) {
        return None;
    }
    usize::try_from(position.wrapping_sub(word) & POSITION).ok()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// Every version of the layout, with the hash of its description.  To change the layout, raise
    /// [`LAYOUT_VERSION`] and add a line here; a line that stands here never changes.
    const HASHES: [(u64, u64); 2] = [(2, 0xfaef_3ecb_28d7_6560), (3, 0x11f0_f7f7_a306_4693)];

    /// All that two processes have to agree on to use the same file.
    fn description() -> String {
        let geometry = Geometry {
            partitions: 2,
            records: 5000,
        };
        let mut text = format!("scratch {SCRATCH}, page {PAGE}, names {NAMES}\n");
        writeln!(text, "end reasons {:?}", EndReason::ALL.map(|row| row.word)).expect("memory");
        let (check, marked) = (check(&[1, 2, 3]), marked(77, 5));
        writeln!(text, "check {check:#x}, marked {marked:#x}").expect("memory");
        writeln!(
            text,
            "name 1 at {}, partition 1 at {}, record 1 at {}, mark 1 at {}, header 1 at {}, payload 1 at {}, \
             slot 1 at {}, size {}",
            geometry.name_at(1),
            geometry.partition_at(1),
            geometry.record_at(1, 1),
            geometry.mark_at(1, 1),
            geometry.header_at(1, 1),
            geometry.payload_at(1),
            slot_at(1),
            geometry.size()
        )
        .expect("memory");
        for (name, size, fields) in [
            ("Header", size_of::<Header>(), Header::FIELDS),
            ("Crashes", size_of::<Crashes>(), Crashes::FIELDS),
            (
                "TotalsRecord",
                size_of::<TotalsRecord>(),
                TotalsRecord::FIELDS,
            ),
            (
                "ListenerName",
                size_of::<ListenerName>(),
                ListenerName::FIELDS,
            ),
            (
                "PartitionHead",
                size_of::<PartitionHead>(),
                PartitionHead::FIELDS,
            ),
            ("Mark", size_of::<Mark>(), Mark::FIELDS),
            (
                "ConnectionRecord",
                size_of::<ConnectionRecord>(),
                ConnectionRecord::FIELDS,
            ),
            (
                "HeaderRecord",
                size_of::<HeaderRecord>(),
                HeaderRecord::FIELDS,
            ),
        ] {
            writeln!(text, "{name}: {size} bytes").expect("memory");
            for (field, offset, size) in fields {
                writeln!(text, "  {field}: {size} bytes at {offset}").expect("memory");
            }
        }
        text
    }

    /// FNV-1a, which is the same with every version of the compiler.
    fn hash(text: &str) -> u64 {
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    #[test]
    fn the_layout_changes_only_with_its_version() {
        let found = (LAYOUT_VERSION, hash(&description()));
        assert_eq!(
            HASHES.last(),
            Some(&found),
            "the layout has changed: raise LAYOUT_VERSION and add its hash ({:#018x}) to HASHES\n{}",
            found.1,
            description()
        );
        let versions = HASHES.map(|(version, _)| version);
        assert!(versions.is_sorted_by(|before, after| before < after));
    }

    #[test]
    fn the_parts_follow_each_other_and_fill_the_file() {
        for (partitions, records) in [(1, 1), (1, 65_536), (3, 77)] {
            let geometry = Geometry {
                partitions,
                records,
            };
            let (partition, record) = (partitions - 1, records - 1);
            assert_eq!(
                geometry.name_at(NAMES - 1) + size_of::<ListenerName>(),
                geometry.partition_at(0)
            );
            assert_eq!(
                geometry.partition_at(partition) + PAGE,
                geometry.record_at(0, 0)
            );
            let end_of_records =
                geometry.record_at(partition, record) + size_of::<ConnectionRecord>();
            assert!(end_of_records <= geometry.mark_at(0, 0));
            let end_of_marks = geometry.mark_at(partition, record) + size_of::<Mark>();
            assert!(end_of_marks <= geometry.header_at(0, 0));
            let end_of_headers = geometry.header_at(partition, record) + size_of::<HeaderRecord>();
            assert!(end_of_headers <= geometry.words());
            assert_eq!(slot_at(record) + SCRATCH, geometry.payload());
            assert_eq!(
                geometry.payload_at(partition) + geometry.payload(),
                geometry.size()
            );
        }
    }

    #[test]
    fn a_marked_position_is_valid_for_its_owner_only() {
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
