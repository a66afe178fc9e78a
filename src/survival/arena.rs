//! The arena: memory that outlives its process, because the service manager holds it too.
//!
//! It is a memory file (memfd_create(2)), mapped whole.  Where there is no manager, or no memory
//! file to be had, the same code works on memory that ends with the process.
//!
//! Nothing that is read here is believed.  What never changes is covered by a check, each seat, name
//! and mark by its own; an arena of another layout, another size or with a damaged header is
//! refused as a whole ([`Damage`]), a damaged seat is one connection less.  The file is sealed, so
//! that nobody can shrink it under us.
//!
//! This file is about the arena as a whole; what one loop does with its part of it is in
//! [`super::lane`].

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use super::layout::{
    FIXED, Geometry, MAGIC, NAME, NAMES, SEAT, VERSION, WORD, check, distance, header, lane,
};
use crate::echo::SCRATCH;
use crate::system::memory::{Memory, Pair, Region, Words, allocate, cannot_shrink, memory_file};

/// The state of an arena whose process has handed everything over.
const HANDED_OVER: u64 = 1;

/// Why an arena cannot be used.
#[derive(Debug)]
pub enum Damage {
    /// It cannot be mapped.
    Unusable(io::Error),
    /// It is no arena, or not whole.
    Broken(&'static str),
    /// Another version of this program made it.
    Version(u64),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(error) => write!(f, "the arena cannot be mapped: {error}"),
            Self::Broken(what) => write!(f, "the arena is damaged ({what})"),
            Self::Version(found) => {
                write!(
                    f,
                    "the arena has layout {found}, and this version knows {VERSION}"
                )
            }
        }
    }
}

/// What the kernel does not remember of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name: `SO_COOKIE` of socket(7), the same in every process.
    pub cookie: u64,
    /// When it began, in microseconds of `CLOCK_MONOTONIC`.
    pub began: u64,
    /// Its number.
    pub number: u64,
    /// Its listener, as an index of a name.
    pub listener: u32,
    /// Positions at some time: exact ones after a hand-over, else lower bounds.
    pub received: u64,
    /// See above.
    pub sent: u64,
}

/// The words of the memory, and the file behind it.  The payload is in the lanes.
#[derive(Debug)]
pub struct Arena {
    words: Words,
    geometry: Geometry,
    generation: u64,
    /// Or why there is none.
    file: Result<File, String>,
}

impl Arena {
    /// A new arena with room for so much, or for less where the process may not map so much; with
    /// the payload of each lane.
    ///
    /// # Errors
    /// Not even the smallest one can be mapped.
    pub fn create(geometry: Geometry, generation: u64) -> io::Result<(Self, Vec<Region>)> {
        let mut geometry = geometry;
        loop {
            match Self::try_create(geometry, generation) {
                Err(_) if geometry.seats > 1 => geometry.seats /= 2,
                result => return result,
            }
        }
    }

    fn try_create(geometry: Geometry, generation: u64) -> io::Result<(Self, Vec<Region>)> {
        // Without one, as under RLIMIT_FSIZE, there is room for everybody still.
        let file = memory_file("tcp-echo", geometry.size()).and_then(|file| {
            allocate(&file, 0, geometry.head())?;
            for lane in 0..geometry.lanes {
                allocate(&file, geometry.payload_at(lane), SCRATCH)?;
            }
            Ok(file)
        });
        let file = file.map_err(|error| error.to_string());
        let memory = Memory::new(file.as_ref().ok(), geometry.size())?;
        let (arena, payloads) = Self::new(memory, geometry, generation, file);
        let fixed = arena.meant();
        for (index, word) in fixed.into_iter().chain([check(&fixed)]).enumerate() {
            arena.set(header::FIXED + index * WORD, word);
        }
        Ok((arena, payloads))
    }

    fn new(
        memory: Memory,
        geometry: Geometry,
        generation: u64,
        file: Result<File, String>,
    ) -> (Self, Vec<Region>) {
        let (words, payloads) = memory.divide(geometry.words(), geometry.lanes, geometry.payload());
        let arena = Self {
            words,
            geometry,
            generation,
            file,
        };
        (arena, payloads)
    }

    /// Opens an arena that another process has left.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(file: OwnedFd) -> Result<(Self, Vec<Region>), Damage> {
        let file = File::from(file);
        let length = file.metadata().map_err(Damage::Unusable)?.len();
        if !cannot_shrink(&file) {
            return Err(Damage::Broken("no sealed memory file"));
        }
        let smallest = Geometry { lanes: 1, seats: 1 };
        let size = usize::try_from(length).unwrap_or(0);
        if size < smallest.size() {
            return Err(Damage::Broken("too short"));
        }
        let memory = Memory::new(Some(&file), size).map_err(Damage::Unusable)?;
        let (geometry, generation) = check_header(&memory, length)?;
        Ok(Self::new(memory, geometry, generation, Ok(file)))
    }

    /// The words of the header that never change.
    fn meant(&self) -> [u64; FIXED] {
        let Geometry { lanes, seats } = self.geometry;
        [
            MAGIC,
            VERSION,
            self.geometry.size() as u64,
            lanes as u64,
            seats as u64,
            SCRATCH as u64,
            self.generation,
        ]
    }

    /// The file, to be stored by the manager; `None`: the memory ends with this process.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().ok().map(AsFd::as_fd)
    }

    /// Why there is no file.
    #[must_use]
    pub fn no_file(&self) -> &str {
        self.file.as_ref().err().map_or("", String::as_str)
    }

    /// Allocates bytes that are used for the first time, by their offset in the file.
    pub(super) fn allocate(&self, at: usize, size: usize) -> io::Result<()> {
        match &self.file {
            Ok(file) => allocate(file, at, size),
            Err(_) => Ok(()),
        }
    }

    /// How large it is.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The number in its name.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Says that a process uses it from now on; returns whether the one before had handed it over.
    pub fn take_over(&self) -> bool {
        let state = self.words.word(header::STATE);
        state.swap(0, Ordering::AcqRel) == HANDED_OVER
    }

    /// Says that the process has noted everything and touches nothing any more.
    pub fn hand_over(&self) {
        self.set(header::STATE, HANDED_OVER);
    }

    /// The index of a listener's name, which is put down if it is new; names in `used` stay.
    /// `None`: it is too long, or there are too many.
    pub fn put_name(&self, name: &str, used: &BTreeSet<u32>) -> Option<u32> {
        let all = || (0_u32..).zip(0..NAMES);
        let found = all().find(|(_, at)| self.name_at(*at).as_deref() == Some(name));
        if let Some((index, _)) = found {
            return Some(index);
        }
        let free = || all().filter(|(index, _)| !used.contains(index));
        let (index, at) = free()
            .find(|(_, at)| self.name_at(*at).is_none())
            .or_else(|| free().next())?;
        let length = u8::try_from(name.len())
            .ok()
            .filter(|l| usize::from(*l) < NAME - WORD)?;
        let mut bytes = [0; NAME - WORD];
        bytes[0] = length;
        bytes[1..=name.len()].copy_from_slice(name.as_bytes());
        let words: Vec<u64> = words(&bytes).collect();
        let place = self.geometry.name(at);
        // A crash in between leaves a name that does not check.
        for (number, word) in words.iter().enumerate() {
            self.set(place + number * WORD, *word);
        }
        self.set(place + NAME - WORD, check(&words));
        Some(index)
    }

    /// The name with an index.
    #[must_use]
    pub fn name(&self, index: u32) -> Option<String> {
        let index = usize::try_from(index).ok().filter(|i| *i < NAMES)?;
        self.name_at(index)
    }

    fn name_at(&self, index: usize) -> Option<String> {
        let place = self.geometry.name(index);
        let words: [u64; NAME / WORD - 1] =
            std::array::from_fn(|number| self.get(place + number * WORD));
        if self.get(place + NAME - WORD) != check(&words) {
            return None;
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let name = bytes.get(1..=usize::from(bytes[0]))?;
        String::from_utf8(name.to_vec()).ok()
    }

    /// The words that say whose the scratch of a lane is, and from which position on.
    pub(super) fn claim(&self, lane: usize) -> Pair {
        self.words.pair(self.geometry.lane(lane) + lane::OWNER)
    }

    /// Makes all payload nobody's.
    pub(super) fn disown(&self) {
        for lane in 0..self.geometry.lanes {
            self.set(self.geometry.lane(lane) + lane::OWNER, 0);
            for slot in 0..self.used(lane).1 {
                self.set(self.geometry.mark(lane, slot), 0);
            }
        }
    }

    /// How many seats and slots of a lane were ever used.
    #[must_use]
    pub(super) fn used(&self, lane: usize) -> (usize, usize) {
        let place = self.geometry.lane(lane);
        let number = |at| {
            let word = usize::try_from(self.get(place + at)).unwrap_or(usize::MAX);
            word.min(self.geometry.seats)
        };
        (number(lane::SEATS), number(lane::SLOTS))
    }

    /// What stands in a seat; `None`: it is free, or damaged.
    #[must_use]
    pub(super) fn seat(&self, lane: usize, seat: usize) -> Option<Record> {
        let place = self.geometry.seat(lane, seat);
        let words: [u64; SEAT / WORD] = std::array::from_fn(|index| self.get(place + index * WORD));
        let [
            cookie,
            began,
            number,
            listener,
            fixed,
            received,
            sent,
            noted,
        ] = words;
        let whole = cookie != 0 && fixed == check(&[cookie, began, number, listener]);
        // A crash may come while they are noted: nothing is a lower bound as well.
        let (received, sent) = if noted == check(&[cookie, received, sent]) {
            (received, sent)
        } else {
            (0, 0)
        };
        whole.then_some(Record {
            cookie,
            began,
            number,
            listener: u32::try_from(listener).unwrap_or(u32::MAX),
            received,
            sent,
        })
    }

    /// Fills a seat; its cookie, which makes it valid, comes last.
    pub(super) fn fill(&self, lane: usize, seat: usize, record: &Record) {
        let place = self.geometry.seat(lane, seat);
        let Record {
            cookie,
            began,
            number,
            listener,
            ..
        } = *record;
        let listener = u64::from(listener);
        self.set(place, 0);
        for (index, word) in [
            (1, began),
            (2, number),
            (3, listener),
            (4, check(&[cookie, began, number, listener])),
        ] {
            self.set(place + index * WORD, word);
        }
        self.note_seat(lane, seat, record);
        self.set(place, cookie);
    }

    /// Notes positions in a seat.
    pub(super) fn note_seat(&self, lane: usize, seat: usize, record: &Record) {
        let place = self.geometry.seat(lane, seat);
        let Record {
            cookie,
            received,
            sent,
            ..
        } = *record;
        for (index, word) in [
            (5, received),
            (6, sent),
            (7, check(&[cookie, received, sent])),
        ] {
            self.set(place + index * WORD, word);
        }
    }

    /// Empties a seat.
    pub(super) fn clear(&self, lane: usize, seat: usize) {
        self.set(self.geometry.seat(lane, seat), 0);
    }

    /// Whose a slot is; 0: nobody's.
    #[must_use]
    pub(super) fn owner(&self, lane: usize, slot: usize) -> u64 {
        self.get(self.geometry.mark(lane, slot))
    }

    /// The bytes that an owner owes, from a position on, as far as a slot has them; with how far
    /// into it they begin.
    #[must_use]
    pub(super) fn in_slot(&self, lane: usize, slot: usize, at: u64, count: usize) -> Option<usize> {
        let mark = self.geometry.mark(lane, slot);
        let ahead = distance(self.get(mark), self.get(mark + WORD), at)?;
        (ahead <= SCRATCH && count <= SCRATCH - ahead).then_some(ahead)
    }

    /// The same for the scratch of a lane, which `owner` must have claimed.
    #[must_use]
    pub(super) fn in_scratch(
        &self,
        lane: usize,
        owner: u64,
        at: u64,
        count: usize,
    ) -> Option<usize> {
        let place = self.geometry.lane(lane);
        if self.get(place + lane::OWNER) != owner {
            return None;
        }
        let ahead = distance(owner, self.get(place + lane::AT), at)?;
        (ahead <= SCRATCH && count <= SCRATCH - ahead).then_some(ahead)
    }

    /// A word.
    pub(super) fn get(&self, at: usize) -> u64 {
        self.words.word(at).load(Ordering::Acquire)
    }

    /// Sets a word, after all that was set before it.
    pub(super) fn set(&self, at: usize, value: u64) {
        self.words.word(at).store(value, Ordering::Release);
    }
}

/// What the header says, if it is whole.
fn check_header(memory: &Memory, length: u64) -> Result<(Geometry, u64), Damage> {
    let get = |index| {
        let word = memory.word(header::FIXED + index * WORD);
        word.load(Ordering::Acquire)
    };
    let found: [u64; FIXED] = std::array::from_fn(get);
    let [magic, version, size, lanes, seats, scratch, generation] = found;
    if magic != MAGIC {
        return Err(Damage::Broken("no magic"));
    }
    // Before the check, which another version may make otherwise.
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    if get(FIXED) != check(&found) {
        return Err(Damage::Broken("header"));
    }
    let number = |word: u64| usize::try_from(word).unwrap_or(usize::MAX);
    let geometry = Geometry {
        lanes: number(lanes),
        seats: number(seats),
    };
    let fits = size == length
        && scratch == SCRATCH as u64
        && (1..=1024).contains(&geometry.lanes)
        && (1..=1 << 24).contains(&geometry.seats)
        && geometry.size() as u64 == length;
    if fits {
        Ok((geometry, generation))
    } else {
        Err(Damage::Broken("size"))
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes
        .chunks_exact(WORD)
        .map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap_or_default()))
}
