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
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::layout::{
    FIXED, Geometry, MAGIC, NAME, NAMES, SEAT, VERSION, WORD, check, distance, header, lane,
};
use crate::echo::SCRATCH;
use crate::echo::counters::Counters;
use crate::echo::reason::Reason;

/// The state of an arena whose process has handed everything over.
const HANDED_OVER: u64 = 1;

/// Words of the totals: turn, number, refused, accepted, received, sent, then the ended ones.
const TOTALS: usize = 6 + Reason::KINDS.len();

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

/// What the service has done so far, over all its processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connections so far, for their numbers.
    pub number: u64,
    /// Connections closed for their source's sake.
    pub refused: u64,
    /// The rest.
    pub counters: Counters,
}

/// What the kernel does not remember of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name: `SO_COOKIE` of socket(7), the same in every process.
    pub cookie: u64,
    /// When it began, in nanoseconds of `CLOCK_MONOTONIC`.
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

/// The memory, and the file behind it.
#[derive(Debug)]
pub struct Arena {
    map: Map,
    geometry: Geometry,
    generation: u64,
    file: Option<File>,
}

impl Arena {
    /// A new arena with room for so much, or for less where the process may not map so much.
    ///
    /// # Errors
    /// Not even the smallest one can be mapped.
    pub fn create(geometry: Geometry, generation: u64) -> io::Result<Self> {
        let mut geometry = geometry;
        loop {
            match Self::try_create(geometry, generation) {
                Err(_) if geometry.seats > 1 => geometry.seats /= 2,
                result => return result,
            }
        }
    }

    fn try_create(geometry: Geometry, generation: u64) -> io::Result<Self> {
        let file = memory_file(geometry.size()).ok();
        let arena = Self {
            map: Map::new(file.as_ref(), geometry.size())?,
            geometry,
            generation,
            file,
        };
        let fixed = arena.meant();
        for (index, word) in fixed.into_iter().chain([check(&fixed)]).enumerate() {
            arena.set(header::FIXED + index * WORD, word);
        }
        Ok(arena)
    }

    /// Opens an arena that another process has left.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(file: OwnedFd) -> Result<Self, Damage> {
        let file = File::from(file);
        let length = file.metadata().map_err(Damage::Unusable)?.len();
        let seals = fcntl_get_seals(&file).map_err(|_| Damage::Broken("no memory file"))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(Damage::Broken("not sealed"));
        }
        let size = usize::try_from(length).unwrap_or(0);
        let smallest = Geometry { lanes: 1, seats: 1 };
        if size < smallest.size() {
            return Err(Damage::Broken("too short"));
        }
        let mut arena = Self {
            map: Map::new(Some(&file), size).map_err(Damage::Unusable)?,
            // Until it is known.
            geometry: smallest,
            generation: 0,
            file: Some(file),
        };
        (arena.geometry, arena.generation) = arena.check_header(length)?;
        Ok(arena)
    }

    fn check_header(&self, length: u64) -> Result<(Geometry, u64), Damage> {
        let found: [u64; FIXED] =
            std::array::from_fn(|index| self.get(header::FIXED + index * WORD));
        let sum = self.get(header::FIXED + FIXED * WORD);
        let [magic, version, size, lanes, seats, scratch, generation] = found;
        if magic != MAGIC {
            return Err(Damage::Broken("no magic"));
        }
        // Before the check, which another version may make otherwise.
        if version != VERSION {
            return Err(Damage::Version(version));
        }
        if sum != check(&found) {
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
        self.file.as_ref().map(AsFd::as_fd)
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
        let state = self.word(header::STATE);
        state.swap(0, Ordering::AcqRel) == HANDED_OVER
    }

    /// Says that the process has noted everything and touches nothing any more.
    pub fn hand_over(&self) {
        self.set(header::STATE, HANDED_OVER);
    }

    /// The totals that were noted last; of two, one is always whole.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let latest = header::TOTALS
            .into_iter()
            .filter_map(|at| self.totals_at(at))
            .max_by_key(|words| words[0]);
        let Some([_, number, refused, accepted, received, sent, closed @ ..]) = latest else {
            return Totals::default();
        };
        Totals {
            number,
            refused,
            counters: Counters {
                accepted,
                received,
                sent,
                closed,
            },
        }
    }

    fn totals_at(&self, at: usize) -> Option<[u64; TOTALS]> {
        let words: [u64; TOTALS] = std::array::from_fn(|index| self.get(at + index * WORD));
        (self.get(at + TOTALS * WORD) == check(&words)).then_some(words)
    }

    /// Notes the totals.
    pub fn note(&self, totals: &Totals) {
        let turns = header::TOTALS.map(|at| self.totals_at(at).map_or(0, |words| words[0]));
        let oldest = usize::from(turns[1] < turns[0]);
        let Counters {
            accepted,
            received,
            sent,
            closed,
        } = totals.counters;
        let mut words = [0; TOTALS];
        let turn = turns[1 - oldest].wrapping_add(1);
        words[..6].copy_from_slice(&[
            turn,
            totals.number,
            totals.refused,
            accepted,
            received,
            sent,
        ]);
        words[6..].copy_from_slice(&closed);
        let at = header::TOTALS[oldest];
        for (index, word) in words.into_iter().enumerate() {
            self.set(at + index * WORD, word);
        }
        self.set(at + TOTALS * WORD, check(&words));
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
        let whole = cookie != 0
            && fixed == check(&[cookie, began, number, listener])
            && noted == check(&[cookie, received, sent]);
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
        self.word(at).load(Ordering::Acquire)
    }

    /// Sets a word, after all that was set before it.
    pub(super) fn set(&self, at: usize, value: u64) {
        self.word(at).store(value, Ordering::Release);
    }

    #[expect(unsafe_code, reason = "mapped memory is reached by its address")]
    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at % WORD == 0 && at + WORD <= self.map.size);
        // SAFETY: it lies within the mapping, is aligned, and is only ever used as an atomic word.
        unsafe { AtomicU64::from_ptr(self.map.base.as_ptr().add(at).cast()) }
    }

    /// The address of bytes of scratch or slots.
    fn payload(&self, at: usize, count: usize) -> *mut u8 {
        let (begin, length) = self.geometry.payload();
        assert!(at >= begin && at - begin + count <= length, "no payload");
        self.map.base.as_ptr().wrapping_add(at)
    }

    /// Bytes of scratch or slots.  Whoever calls has the lane, or knows that nobody uses it.
    #[expect(unsafe_code, reason = "mapped memory is reached by its address")]
    pub(super) fn bytes(&self, at: usize, count: usize) -> &[u8] {
        // SAFETY: payload lies within the mapping; each lane's is written through its one `Lane`
        // only, by `&mut`.
        unsafe { slice::from_raw_parts(self.payload(at, count), count) }
    }

    /// The same, to write into.
    #[expect(
        unsafe_code,
        clippy::mut_from_ref,
        reason = "mapped memory is reached by its address"
    )]
    pub(super) fn bytes_mut(&self, at: usize, count: usize) -> &mut [u8] {
        // SAFETY: as in `bytes`; the caller holds the lane by `&mut`, so no other reference to
        // these bytes exists.
        unsafe { slice::from_raw_parts_mut(self.payload(at, count), count) }
    }

    /// Gives payload memory back to the kernel; it reads as zero then.
    #[expect(unsafe_code, reason = "madvise(2) works on addresses")]
    pub(super) fn give_back(&self, at: usize, count: usize) {
        let place = self.payload(at, count);
        // SAFETY: the range is payload that nobody refers to.  Failing, it stays as it is.
        let _ = unsafe { madvise(place.cast(), count, Advice::LinuxRemove) };
    }
}

/// A mapping.
#[derive(Debug)]
struct Map {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: the memory belongs to this value until it is dropped.  All its words are atomic; scratch
// and slots are handed out through the one `Lane` that has their part.
#[expect(unsafe_code, reason = "mapped memory is shared by all loops")]
unsafe impl Send for Map {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "mapped memory is shared by all loops")]
unsafe impl Sync for Map {}

impl Map {
    #[expect(unsafe_code, reason = "mmap(2) gives an address")]
    fn new(file: Option<&File>, size: usize) -> io::Result<Self> {
        let (null, access) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that exists.
        let base = unsafe {
            match file {
                Some(file) => mmap(null, size, access, flags, file, 0),
                None => mmap_anonymous(null, size, access, flags),
            }
        }?;
        // SAFETY: the range was mapped just now.  A core may not contain what peers sent; failing,
        // LimitCORE= of the unit is left.
        let _ = unsafe { madvise(base, size, Advice::LinuxDontDump) };
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at no address"))?;
        Ok(Self { base, size })
    }
}

impl Drop for Map {
    #[expect(unsafe_code, reason = "munmap(2) works on addresses")]
    fn drop(&mut self) {
        // SAFETY: it was mapped with this size, and nothing refers to it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.size) };
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes
        .chunks_exact(WORD)
        .map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap_or_default()))
}

/// A memory file that cannot shrink.
fn memory_file(size: usize) -> io::Result<File> {
    let name = "tcp-echo";
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux before 6.3 does not know that flag.
    let file = memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create(name, flags))?;
    let file = File::from(file);
    file.set_len(size as u64)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(file)
}
