//! The state file: memory that lasts longer than the process, as the service manager holds it too.
//!
//! A connection survives its process only if the next process knows what the kernel does not: which
//! listener accepted it, when, and which bytes were read from it and not yet written.  All that is in
//! one memory file (memfd_create(2)), which is mapped as a whole and which the manager stores.  Where
//! there is no manager, or no memory file can be made, the same code works on anonymous memory, which
//! ends with the process.
//!
//! Nothing that is read from the file is believed.  The words of the header that never change have a
//! check, and so has each record, name and mark.  A file of another layout or size, or with a damaged
//! header, is refused as a whole ([`Damage`]); with a damaged record one connection is lost.  The file
//! is sealed, so that no process can shrink it while it is mapped.
//!
//! This module is about the file as a whole, and reads and writes its records.  What a worker does with
//! its part of the file is in [`super::partition`].

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::layout::{
    BEHIND_HEADER, ConnectionRecord, Geometry, Header, HeaderRecord, LAYOUT_VERSION, ListenerName,
    MAGIC, Mark, NAMES, PartitionHead, check, distance,
};
use crate::echo::SCRATCH;
use crate::proxy_header::Addresses;
use crate::sys::memory::{
    Memory, Place, Region, Word, Words, allocate, cannot_shrink, memory_file,
};

/// The value of [`Header::drained`] while the service is drained.
const DRAINED: u64 = 1;

/// The value of [`Header::handed_over`] after a hand-over.
const HANDED_OVER: u64 = 1;

/// Why a state file cannot be used.
#[derive(Debug)]
pub(crate) enum Damage {
    /// It cannot be mapped.
    Unusable(io::Error),
    /// It is not a state file, or not complete; with what is wrong.
    Broken(&'static str),
    /// It has another layout, of this version.
    Version(u64),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(error) => write!(f, "the state file cannot be mapped: {error}"),
            Self::Broken(what) => write!(f, "the state file is damaged ({what})"),
            Self::Version(found) => write!(
                f,
                "the state file has layout {found}, and this version of tcp-echo uses layout \
                 {LAYOUT_VERSION}"
            ),
        }
    }
}

/// What the kernel does not remember of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// `SO_COOKIE` of socket(7), which is the same in every process.
    pub cookie: u64,
    /// When it was accepted, in microseconds of `CLOCK_MONOTONIC`.
    pub began: u64,
    /// Its number in the log.
    pub number: u64,
    /// The index of its listener's name; `u32::MAX`: unknown.
    pub listener: u32,
    /// What stands before its stream.
    pub before: Before,
    /// Bytes of its stream read from it: after a hand-over exactly, otherwise at least.
    pub received: u64,
    /// Bytes written to it: after a hand-over exactly, otherwise at least.
    pub sent: u64,
}

/// What stands before the stream of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    Nothing,
    /// A PROXY header, which is not complete or was not taken yet.
    Header,
    /// A PROXY header, which was taken or is taken next: only the kernel knows whether the process has
    /// come to that.
    Taken(Taken),
}

impl Before {
    /// Bytes of the header that was taken.
    #[must_use]
    pub(crate) fn length(self) -> u64 {
        match self {
            Self::Taken(taken) => taken.length.into(),
            Self::Nothing | Self::Header => 0,
        }
    }
}

/// What is recorded of a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Bytes of the header.
    pub length: u16,
    /// The addresses that it gives, if any.
    pub addresses: Option<Addresses>,
}

impl Taken {
    fn words(self) -> [u64; 5] {
        let Self { length, addresses } = self;
        let Some(Addresses {
            source,
            destination,
        }) = addresses
        else {
            return [0, 0, 0, 0, length.into()];
        };
        let [one, two] = halves(source.ip());
        let [three, four] = halves(destination.ip());
        let ports = u64::from(source.port()) << 16 | u64::from(destination.port()) << 32;
        [one, two, three, four, u64::from(length) | ports | 1 << 48]
    }

    fn of_words(words: [u64; 5]) -> Self {
        let [one, two, three, four, rest] = words;
        let part = |number: u32| (rest >> (16 * number) & 0xffff) as u16;
        let address = |high: u64, low: u64, port| {
            let ip = Ipv6Addr::from(u128::from(high) << 64 | u128::from(low));
            SocketAddr::new(IpAddr::V6(ip).to_canonical(), port)
        };
        Self {
            length: part(0),
            addresses: (part(3) != 0).then(|| Addresses {
                source: address(one, two, part(1)),
                destination: address(three, four, part(2)),
            }),
        }
    }
}

/// An address as the two halves of one of IPv6.
fn halves(ip: IpAddr) -> [u64; 2] {
    let ip = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let [high, low] = [0, 8].map(|at| ip.octets()[at..].first_chunk().copied());
    [high, low].map(|half| u64::from_be_bytes(half.unwrap_or_default()))
}

/// The words of the memory, and the file behind it.  The payload belongs to the partitions.
#[derive(Debug)]
pub(crate) struct StateFile {
    words: Words,
    geometry: Geometry,
    generation: u64,
    /// The file, or why there is none.
    file: Result<File, String>,
}

impl StateFile {
    /// Makes a new state file, and returns it with the payload of each partition.  Where the process
    /// may not map as much, it has fewer records.
    ///
    /// # Errors
    /// Those of mmap(2): not even a file with one record for each partition can be mapped.
    pub(crate) fn create(geometry: Geometry, generation: u64) -> io::Result<(Self, Vec<Region>)> {
        let mut geometry = geometry;
        loop {
            match Self::try_create(geometry, generation) {
                Err(_) if geometry.records > 1 => geometry.records /= 2,
                result => return result,
            }
        }
    }

    fn try_create(geometry: Geometry, generation: u64) -> io::Result<(Self, Vec<Region>)> {
        // Where no file can be made, as under RLIMIT_FSIZE, every connection can still be served.
        let file = memory_file("tcp-echo", geometry.size()).and_then(|file| {
            allocate(&file, 0, geometry.head())?;
            for partition in 0..geometry.partitions {
                allocate(&file, geometry.payload_at(partition), SCRATCH)?;
            }
            Ok(file)
        });
        let file = file.map_err(|error| error.to_string());
        let memory = Memory::new(file.as_ref().ok(), geometry.size())?;
        let (state_file, payloads) = Self::new(memory, geometry, generation, file);
        let header = state_file.header();
        header.magic.set(MAGIC);
        header.version.set(LAYOUT_VERSION);
        header.size.set(geometry.size() as u64);
        header.partitions.set(geometry.partitions as u64);
        header.records.set(geometry.records as u64);
        header.scratch.set(SCRATCH as u64);
        header.generation.set(generation);
        header.check.set(check(&header.fixed()));
        Ok((state_file, payloads))
    }

    fn new(
        memory: Memory,
        geometry: Geometry,
        generation: u64,
        file: Result<File, String>,
    ) -> (Self, Vec<Region>) {
        let (words, payloads) =
            memory.divide(geometry.words(), geometry.partitions, geometry.payload());
        let state_file = Self {
            words,
            geometry,
            generation,
            file,
        };
        (state_file, payloads)
    }

    /// Opens a state file that another process has made, and returns it with the payload of each
    /// partition.
    ///
    /// # Errors
    /// Why the file cannot be used.
    pub(crate) fn open(file: OwnedFd) -> Result<(Self, Vec<Region>), Damage> {
        let file = File::from(file);
        let length = file.metadata().map_err(Damage::Unusable)?.len();
        if !cannot_shrink(&file) {
            return Err(Damage::Broken("no sealed memory file"));
        }
        let smallest = Geometry {
            partitions: 1,
            records: 1,
        };
        let size = usize::try_from(length).unwrap_or(0);
        if size < smallest.size() {
            return Err(Damage::Broken("too short"));
        }
        let memory = Memory::new(Some(&file), size).map_err(Damage::Unusable)?;
        let (geometry, generation) = check_header(memory.at(0), length)?;
        Ok(Self::new(memory, geometry, generation, Ok(file)))
    }

    /// The file, to be stored by the manager; `None`: the memory ends with this process.
    #[must_use]
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().ok().map(AsFd::as_fd)
    }

    /// Why there is no file; empty if there is one.
    #[must_use]
    pub(crate) fn no_file(&self) -> &str {
        self.file.as_ref().err().map_or("", String::as_str)
    }

    /// Allocates `size` bytes that are used for the first time, from the offset `at` in the file on.
    ///
    /// # Errors
    /// Those of fallocate(2): memory is short.
    pub(super) fn allocate(&self, at: usize, size: usize) -> io::Result<()> {
        match &self.file {
            Ok(file) => allocate(file, at, size),
            Err(_) => Ok(()),
        }
    }

    /// How large the file is.
    #[must_use]
    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The number in the file's name in the store.
    #[must_use]
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Begins the use of the file by this process; returns whether the previous process has handed its
    /// connections over.
    pub(crate) fn take_over(&self) -> bool {
        self.header().handed_over.swap(0) == HANDED_OVER
    }

    /// Ends the use of the file by this process.  Every record is exact, and nothing changes any more.
    pub(crate) fn hand_over(&self) {
        self.header().handed_over.set(HANDED_OVER);
    }

    /// Whether the service is drained by request, which its next process goes on with.
    #[must_use]
    pub(crate) fn is_drained(&self) -> bool {
        self.header().drained.get() == DRAINED
    }

    /// Records whether the service is drained by request.
    pub(crate) fn set_drained(&self, drained: bool) {
        self.header().drained.set(if drained { DRAINED } else { 0 });
    }

    /// Writes down the name of a listener, if it is new; returns its index.  Names with an index in
    /// `used` stay.  `None`: the name is longer than 247 bytes, or all are in use.
    pub(crate) fn put_name(&self, name: &str, used: &BTreeSet<u32>) -> Option<u32> {
        let indexes = || (0_u32..).take(NAMES);
        if let Some(index) = indexes().find(|index| self.name(*index).as_deref() == Some(name)) {
            return Some(index);
        }
        let unused = || indexes().filter(|index| !used.contains(index));
        let index = unused()
            .find(|index| self.name(*index).is_none())
            .or_else(|| unused().next())?;
        let place = self.listener_name(index);
        let mut bytes = [0; size_of::<ListenerName>() - size_of::<Word>()];
        bytes[0] = u8::try_from(name.len()).ok()?;
        bytes
            .get_mut(1..=name.len())?
            .copy_from_slice(name.as_bytes());
        let words: Vec<u64> = bytes
            .chunks_exact(size_of::<Word>())
            .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
            .collect();
        // The check comes last: a crash before that leaves a name that is not valid.
        for (word, value) in place.text.iter().zip(&words) {
            word.set(*value);
        }
        place.check.set(check(&words));
        Some(index)
    }

    /// The name with an index; `None`: there is none, or it is damaged.
    #[must_use]
    pub(crate) fn name(&self, index: u32) -> Option<String> {
        if index as usize >= NAMES {
            return None;
        }
        let place = self.listener_name(index);
        let first = place.text[0].get();
        if first == 0 {
            // Never used: the length of a name stands in the first word.
            return None;
        }
        let words = place.text.each_ref().map(Word::get);
        if place.check.get() != check(&words) {
            return None;
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let name = bytes.get(1..=usize::from(bytes[0]))?;
        String::from_utf8(name.to_vec()).ok()
    }

    /// How many records and how many slots of a partition were ever used.
    #[must_use]
    pub(super) fn used(&self, partition: usize) -> (usize, usize) {
        let head = self.partition_head(partition);
        let count = |word: &Word| {
            let count = usize::try_from(word.get()).unwrap_or(usize::MAX);
            count.min(self.geometry.records)
        };
        (count(&head.records), count(&head.slots))
    }

    /// Reads a record; `None`: it is free, or damaged.
    #[must_use]
    pub(super) fn read_record(&self, partition: usize, index: usize) -> Option<Record> {
        let record = self.record_words(partition, index);
        let (cookie, began) = (record.cookie.get(), record.began.get());
        let (number, listener) = (record.number.get(), record.listener.get());
        if cookie == 0 || record.check.get() != check(&[cookie, began, number, listener]) {
            return None;
        }
        let (received, sent) = (record.received.get(), record.sent.get());
        // A crash may come while the positions are written.  0 is a lower bound as well.
        let valid = record.positions_check.get() == check(&[cookie, received, sent]);
        let (received, sent) = if valid { (received, sent) } else { (0, 0) };
        Some(Record {
            cookie,
            began,
            number,
            listener: u32::try_from(listener & !BEHIND_HEADER).unwrap_or(u32::MAX),
            before: if listener & BEHIND_HEADER == 0 {
                Before::Nothing
            } else {
                self.read_header(partition, index, cookie)
            },
            received,
            sent,
        })
    }

    /// Writes a record.  Its cookie, which makes it valid, comes last.
    pub(super) fn write_record(&self, partition: usize, index: usize, record: &Record) {
        let Record {
            cookie,
            began,
            number,
            listener,
            before,
            ..
        } = *record;
        let listener = match before {
            Before::Nothing => u64::from(listener),
            Before::Header | Before::Taken(_) => u64::from(listener) | BEHIND_HEADER,
        };
        let words = self.record_words(partition, index);
        words.cookie.set(0);
        // What an earlier connection has left there does not fit the cookie of this one.
        if let Before::Taken(taken) = before {
            self.write_header(partition, index, cookie, taken);
        }
        words.began.set(began);
        words.number.set(number);
        words.listener.set(listener);
        words.check.set(check(&[cookie, began, number, listener]));
        self.write_positions(partition, index, record);
        words.cookie.set(cookie);
    }

    /// What is recorded of the header before the stream of a connection.
    fn read_header(&self, partition: usize, index: usize, cookie: u64) -> Before {
        let record = self.header_words(partition, index);
        let [one, two, three, four] = record.addresses.each_ref().map(Word::get);
        let words = [one, two, three, four, record.rest.get()];
        if record.check.get() != check_header_record(cookie, words) {
            return Before::Header;
        }
        Before::Taken(Taken::of_words(words))
    }

    /// Records the header before the stream of a connection, which is taken after this.
    pub(super) fn write_header(&self, partition: usize, index: usize, cookie: u64, taken: Taken) {
        let record = self.header_words(partition, index);
        let words = taken.words();
        for (word, value) in record.addresses.iter().zip(words) {
            word.set(value);
        }
        record.rest.set(words[4]);
        record.check.set(check_header_record(cookie, words));
    }

    /// Writes only the positions of a record that is valid.
    pub(super) fn write_positions(&self, partition: usize, index: usize, record: &Record) {
        let Record {
            cookie,
            received,
            sent,
            ..
        } = *record;
        let words = self.record_words(partition, index);
        words.received.set(received);
        words.sent.set(sent);
        words.positions_check.set(check(&[cookie, received, sent]));
    }

    /// Makes a record free.
    pub(super) fn clear_record(&self, partition: usize, index: usize) {
        self.record_words(partition, index).cookie.set(0);
    }

    /// Clears all marks, so that no bytes of this file belong to a connection.
    pub(super) fn clear_owners(&self) {
        for partition in 0..self.geometry.partitions {
            self.partition_head(partition).scratch.owner.set(0);
            for slot in 0..self.used(partition).1 {
                self.mark(partition, slot).owner.set(0);
            }
        }
    }

    /// The beginning of the file.
    pub(super) fn header(&self) -> &Header {
        self.words.at(0)
    }

    /// What is known of a partition.
    pub(super) fn partition_head(&self, partition: usize) -> &PartitionHead {
        self.words.at(self.geometry.partition_at(partition))
    }

    /// The mark of the scratch of a partition, for the data path.
    pub(super) fn scratch_mark(&self, partition: usize) -> Place<Mark> {
        let head = self.geometry.partition_at(partition);
        self.words
            .place(head + std::mem::offset_of!(PartitionHead, scratch))
    }

    /// The mark of a slot.
    pub(super) fn mark(&self, partition: usize, slot: usize) -> &Mark {
        self.words.at(self.geometry.mark_at(partition, slot))
    }

    /// The words of a record.
    pub(super) fn record_words(&self, partition: usize, index: usize) -> &ConnectionRecord {
        self.words.at(self.geometry.record_at(partition, index))
    }

    fn header_words(&self, partition: usize, index: usize) -> &HeaderRecord {
        self.words.at(self.geometry.header_at(partition, index))
    }

    fn listener_name(&self, index: u32) -> &ListenerName {
        self.words.at(self.geometry.name_at(index as usize))
    }
}

impl Mark {
    /// Where the bytes of a scratch or slot that begin at a position of the stream of `owner` stand:
    /// how far behind its beginning.  `None`: it does not have all `count` of them.
    #[must_use]
    pub(super) fn find(&self, owner: u64, position: u64, count: usize) -> Option<usize> {
        if self.owner.get() != owner {
            return None;
        }
        let ahead = distance(owner, self.begin.get(), position)?;
        (ahead <= SCRATCH && count <= SCRATCH - ahead).then_some(ahead)
    }
}

/// The check of a [`HeaderRecord`] of the connection with this cookie.
fn check_header_record(cookie: u64, words: [u64; 5]) -> u64 {
    let [one, two, three, four, five] = words;
    check(&[cookie, one, two, three, four, five])
}

/// The geometry and the generation of a file of `length` bytes, if its header is not damaged.
fn check_header(header: &Header, length: u64) -> Result<(Geometry, u64), Damage> {
    let fixed = header.fixed();
    let [
        magic,
        version,
        size,
        partitions,
        records,
        scratch,
        generation,
    ] = fixed;
    if magic != MAGIC {
        return Err(Damage::Broken("no magic"));
    }
    // This comes before the check, which may be another one in another version.
    if version != LAYOUT_VERSION {
        return Err(Damage::Version(version));
    }
    if header.check.get() != check(&fixed) {
        return Err(Damage::Broken("header"));
    }
    let number = |word: u64| usize::try_from(word).unwrap_or(usize::MAX);
    let geometry = Geometry {
        partitions: number(partitions),
        records: number(records),
    };
    let fits = size == length
        && scratch == SCRATCH as u64
        && geometry.is_possible()
        && geometry.size() as u64 == length;
    if fits {
        Ok((geometry, generation))
    } else {
        Err(Damage::Broken("size"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::super::partition::Partition;
    use super::super::totals::Totals;
    use super::*;
    use crate::echo::buffers::BufferStore;
    use crate::echo::counters::Counters;
    use crate::echo::end_reason::EndReason;

    const SMALL: Geometry = Geometry {
        partitions: 2,
        records: 3,
    };

    fn record(cookie: u64) -> Record {
        Record {
            cookie,
            began: 1_000 + cookie,
            number: 2_000 + cookie,
            listener: 5,
            before: Before::Nothing,
            received: 0x0123_4567_89ab,
            sent: 0x0123_4567_8000,
        }
    }

    /// The file, as another process gets it.
    fn duplicate(state_file: &StateFile) -> OwnedFd {
        state_file.file().unwrap().try_clone_to_owned().unwrap()
    }

    /// Every word of layout version 3 that is not 0 in a file with one of everything in it, as the
    /// first program with this version wrote it.
    #[test]
    fn every_word_stands_where_version_3_has_it() {
        const WORDS: [(usize, u64); 91] = [
            (0x0, 0x7463_702d_6563_686f),
            (0x8, 0x3),
            (0x10, 0x39_0000),
            (0x18, 0x2),
            (0x20, 0x3),
            (0x28, 0x4_0000),
            (0x30, 0x9),
            (0x38, 0x99bd_94ee_b195_7b82),
            (0x80, 0x1),
            (0x88, 0xb),
            (0x90, 0xc),
            (0x98, 0xd),
            (0xa0, 0xe),
            (0xa8, 0xf),
            (0xb0, 0x10),
            (0xb8, 0x1),
            (0x100, 0x1),
            (0x108, 0x28),
            (0x110, 0x32),
            (0x118, 0x3c),
            (0x120, 0x3d),
            (0x128, 0x3e),
            (0x130, 0x50),
            (0x138, 0x51),
            (0x140, 0x52),
            (0x148, 0x53),
            (0x150, 0x54),
            (0x158, 0x55),
            (0x160, 0x56),
            (0x168, 0x57),
            (0x170, 0x58),
            (0x178, 0x59),
            (0x180, 0x5a),
            (0x188, 0x5b),
            (0x190, 0x5c),
            (0x198, 0x5d),
            (0x1a0, 0x5e),
            (0x1a8, 0x30fc_d0d8_9c2a_4f99),
            (0x200, 0x2),
            (0x208, 0x29),
            (0x210, 0x32),
            (0x218, 0x3c),
            (0x220, 0x3d),
            (0x228, 0x3e),
            (0x230, 0x50),
            (0x238, 0x51),
            (0x240, 0x52),
            (0x248, 0x53),
            (0x250, 0x54),
            (0x258, 0x55),
            (0x260, 0x56),
            (0x268, 0x57),
            (0x270, 0x58),
            (0x278, 0x59),
            (0x280, 0x5a),
            (0x288, 0x5b),
            (0x290, 0x5c),
            (0x298, 0x5d),
            (0x2a0, 0x5e),
            (0x2a8, 0x12a3_78b3_bc5f_81bc),
            (0x1_0100, 0x37_3a5d_3a3a_5b06),
            (0x1_01f8, 0x9ad8_feb1_7dc1_63d9),
            (0x12_0000, 0x46),
            (0x12_0008, 0xd41c_0123_4567_89ab),
            (0x12_0040, 0x2),
            (0x12_0048, 0x2),
            (0x14_0000, 0x46),
            (0x14_0008, 0x42e),
            (0x14_0010, 0x816),
            (0x14_0018, 0x1_0000_0005),
            (0x14_0020, 0xb30_0e6f_a6c3_d0d9),
            (0x14_0028, 0x123_4567_89ab),
            (0x14_0030, 0x123_4567_8000),
            (0x14_0038, 0x81ad_9fad_f6ce_873b),
            (0x14_0040, 0x47),
            (0x14_0048, 0x42f),
            (0x14_0050, 0x817),
            (0x14_0058, 0x5),
            (0x14_0060, 0xb63b_604f_c927_7e3a),
            (0x14_0068, 0x1_0000_0000),
            (0x14_0070, 0xffff_ffff),
            (0x14_0078, 0xb7b1_daa4_4ca4_8217),
            (0x16_0000, 0x47),
            (0x16_0008, 0xffb0_0000_ffff_ffff),
            (0x16_0010, 0x46),
            (0x16_0018, 0x9ab2_ffff_ffff_ffff),
            (0x18_0008, 0xffff_cb00_7109),
            (0x18_0010, 0x2001_0db8_0000_0000),
            (0x18_0018, 0x7),
            (0x18_0020, 0x1_0007_ca64_012c),
            (0x18_0028, 0xdf8e_19eb_0854_ff75),
        ];
        let (state_file, mut payloads) = StateFile::create(SMALL, 9).unwrap();
        let state_file = Arc::new(state_file);
        let mut partition = Partition::new(state_file.clone(), 1, payloads.pop().unwrap());
        let first = Record {
            before: Before::Taken(Taken {
                length: 300,
                addresses: Some(Addresses {
                    source: "203.0.113.9:51812".parse().unwrap(),
                    destination: "[2001:db8::7]:7".parse().unwrap(),
                }),
            }),
            ..record(70)
        };
        let _ = partition.add_record(&first).unwrap();
        let second = partition.add_record(&record(71)).unwrap();
        let later = Record {
            received: 0x1_0000_0000,
            sent: 0xffff_ffff,
            ..record(71)
        };
        partition.record(second, &later);
        partition.begin_read(70, 0x0123_4567_89ab);
        partition.scratch()[..10].copy_from_slice(b"0123456789");
        partition.filled(10);
        let _ = partition.keep(71, 2..10, 0xffff_ffff).unwrap();
        let _ = partition.keep(70, 4..8, u64::MAX).unwrap();
        let used = BTreeSet::from([0]);
        assert_eq!(state_file.put_name("[::]:7", &used), Some(1));
        for number in [40, 41] {
            state_file.record(&Totals {
                number,
                refused: 50,
                counters: Counters {
                    accepted: 60,
                    received: 61,
                    sent: 62,
                    closed: std::array::from_fn::<_, { EndReason::ALL.len() }, _>(|kind| {
                        80 + kind as u64
                    }),
                },
            });
        }
        let header = state_file.header();
        header.crashes.starts.set(11);
        header.crashes.current.set(12);
        header.crashes.suspect.set(13);
        header.crashes.suspected.set(14);
        header.memory_kills.set(15);
        header.failing_since.set(16);
        state_file.set_drained(true);
        state_file.hand_over();

        let mut bytes = vec![0; SMALL.size()];
        File::from(duplicate(&state_file))
            .read_exact_at(&mut bytes, 0)
            .unwrap();
        let (words, payload) = bytes.split_at(SMALL.words());
        let found: Vec<(usize, u64)> = words
            .chunks(8)
            .enumerate()
            .map(|(index, word)| (8 * index, u64::from_ne_bytes(word.try_into().unwrap())))
            .filter(|(_, word)| *word != 0)
            .collect();
        assert_eq!(found, WORDS);
        let payload = &payload[SMALL.payload()..];
        assert_eq!(payload[..10], *b"0123456789");
        assert_eq!(payload[SCRATCH..SCRATCH + 8], *b"23456789");
        assert_eq!(payload[2 * SCRATCH..2 * SCRATCH + 4], *b"4567");
    }

    #[test]
    fn another_process_reads_what_was_written() {
        let (state_file, _payloads) = StateFile::create(SMALL, 9).unwrap();
        assert_eq!(state_file.put_name("one", &BTreeSet::new()), Some(0));
        state_file.write_record(1, 2, &record(70));
        state_file.hand_over();
        let (found, payloads) = StateFile::open(duplicate(&state_file)).unwrap();
        assert_eq!((found.geometry(), found.generation()), (SMALL, 9));
        assert_eq!(payloads.len(), 2);
        assert_eq!(found.name(0).as_deref(), Some("one"));
        assert_eq!(found.read_record(1, 2), Some(record(70)));
        assert_eq!(found.read_record(1, 1), None);
        // A hand-over holds for one process.
        assert!(found.take_over());
        assert!(!state_file.take_over());
        found.clear_record(1, 2);
        assert_eq!(state_file.read_record(1, 2), None);
    }

    #[test]
    fn what_stands_before_a_stream_is_read_as_it_was_written() {
        let (state_file, _payloads) = StateFile::create(SMALL, 9).unwrap();
        let taken = |source: &str, destination: &str| {
            Before::Taken(Taken {
                length: 4096,
                addresses: Some(Addresses {
                    source: source.parse().unwrap(),
                    destination: destination.parse().unwrap(),
                }),
            })
        };
        let without = Taken {
            length: 28,
            addresses: None,
        };
        for (cookie, before) in [
            (70, taken("203.0.113.9:51812", "192.0.2.1:7")),
            (71, taken("[2001:db8::9]:65535", "[::1]:0")),
            (72, Before::Taken(without)),
            // What the one before has left is not taken for its own.
            (73, Before::Header),
            (74, Before::Nothing),
        ] {
            let record = Record {
                before,
                ..record(cookie)
            };
            state_file.write_record(1, 2, &record);
            assert_eq!(state_file.read_record(1, 2), Some(record));
        }
        let waiting = Record {
            before: Before::Header,
            ..record(75)
        };
        state_file.write_record(1, 2, &waiting);
        state_file.write_header(1, 2, 75, without);
        let found = state_file.read_record(1, 2).unwrap();
        assert_eq!(found.before, Before::Taken(without));
    }

    #[test]
    fn a_name_is_written_once_and_replaced_when_it_is_not_used() {
        let (state_file, _payloads) = StateFile::create(SMALL, 1).unwrap();
        let none = BTreeSet::new();
        assert_eq!(state_file.put_name("one", &none), Some(0));
        assert_eq!(state_file.put_name("two", &none), Some(1));
        assert_eq!(state_file.put_name("one", &none), Some(0));
        let longest = "n".repeat(247);
        assert_eq!(state_file.put_name(&longest, &none), Some(2));
        assert_eq!(state_file.name(2), Some(longest));
        assert_eq!(state_file.put_name(&"n".repeat(248), &none), None);
        // All names but one are in use.
        let used = (0..).take(NAMES).filter(|index| *index != 1).collect();
        assert_eq!(state_file.put_name("new", &used), Some(1));
        assert_eq!(state_file.name(1).as_deref(), Some("new"));
        assert_eq!(state_file.name(0).as_deref(), Some("one"));
        let used = (0..).take(NAMES).collect();
        assert_eq!(state_file.put_name("one more", &used), None);
        assert_eq!(state_file.name(u32::MAX), None);
    }

    #[test]
    fn a_damaged_record_or_name_is_not_read() {
        let (state_file, _payloads) = StateFile::create(SMALL, 1).unwrap();
        state_file.write_record(0, 0, &record(70));
        let words = state_file.record_words(0, 0);
        for word in [&words.cookie, &words.began, &words.number, &words.check] {
            let value = word.swap(77);
            assert_eq!(state_file.read_record(0, 0), None);
            word.set(value);
        }
        // Positions that are not valid are lower bounds.
        words.sent.set(77);
        let found = state_file.read_record(0, 0).unwrap();
        assert_eq!((found.received, found.sent), (0, 0));
        let index = state_file.put_name("one", &BTreeSet::new()).unwrap();
        state_file.listener_name(index).text[0].set(77);
        assert_eq!(state_file.name(index), None);
    }

    #[test]
    fn a_file_that_is_not_a_state_file_is_refused_with_the_reason() {
        let open = |change: &dyn Fn(&Header)| {
            let (state_file, _payloads) = StateFile::create(SMALL, 1).unwrap();
            change(state_file.header());
            StateFile::open(duplicate(&state_file))
                .unwrap_err()
                .to_string()
        };
        assert!(open(&|header| header.magic.set(1)).contains("no magic"));
        let other = open(&|header| header.version.set(LAYOUT_VERSION + 1));
        assert!(other.contains(&format!("layout {}", LAYOUT_VERSION + 1)));
        assert!(open(&|header| header.records.set(2)).contains("header"));
        let sized = open(&|header| {
            header.records.set(2);
            header.check.set(check(&header.fixed()));
        });
        assert!(sized.contains("size"));
        let refusal = |file: OwnedFd| StateFile::open(file).unwrap_err().to_string();
        let short = memory_file("test", 4096).unwrap();
        assert!(refusal(short.into()).contains("too short"));
        let device = File::open("/dev/null").unwrap();
        assert!(refusal(device.into()).contains("no sealed memory file"));
    }

    #[test]
    fn bytes_are_found_by_their_owner_and_position() {
        let (state_file, mut payloads) = StateFile::create(SMALL, 1).unwrap();
        let state_file = Arc::new(state_file);
        let mut partition = Partition::new(state_file.clone(), 0, payloads.remove(0));
        let slot = partition.keep(70, 0..100, 1_000).unwrap();
        let mark = state_file.mark(0, slot.index as usize);
        assert_eq!(mark.find(70, 1_000, 100), Some(0));
        assert_eq!(mark.find(70, 1_040, 60), Some(40));
        assert_eq!(mark.find(70, 999, 1), None);
        assert_eq!(mark.find(71, 1_000, 100), None);
        assert_eq!(mark.find(70, 1_001, SCRATCH), None);
        partition.begin_read(71, 5);
        let scratch = state_file.scratch_mark(0);
        assert_eq!(scratch.find(71, 7, 9), Some(2));
        state_file.clear_owners();
        assert_eq!(mark.find(70, 1_000, 100), None);
        assert_eq!(scratch.find(71, 7, 9), None);
    }
}
