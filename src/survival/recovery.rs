//! What a process finds of its predecessor's, and what it makes of it.
//!
//! The manager passes the arena and the parcel.  Each descriptor in flight is looked at, without
//! taking it out, and judged:
//!
//! - The arena knows its cookie, or it was over before: then it is closed, and nobody is told.
//! - The kernel says how far the conversation has come ([`crate::system::positions`]).  What was
//!   read and not written is owed.  It is in the connection's slot, or else in the scratch that
//!   bears its name; if it is in neither, the connection is lost, and closed.  No byte is guessed.
//! - A Unix stream has no such counters.  After a hand-over its seat says how far it had come;
//!   after a crash it is lost.
//!
//! An arena that cannot be read loses all connections.  So does one whose process never got
//! through a round, again and again ([`CRASHES`]), and of connections the one that was in hand
//! each time ([`SUSPICIONS`]): whatever they do to us, they do not do it for ever.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Protocol, SockRef};

use super::arena::{Arena, Damage, Record};
use super::controls;
use super::layout::header;
use super::parcel::{End, Parcel, Queue};
use crate::echo::SCRATCH;
use crate::system::cgroup::memory_kills;
use crate::system::memory::Region;
use crate::system::positions::{Positions, positions};
use crate::system::socket::end;

/// The crash in a row, each before the first full round, at which every connection is given up.
/// More than a storm of kills brings in the time that a test has patience for, and less than
/// `StartLimitBurst=` of the unit.
pub const CRASHES: u64 = 100;

/// At how many of these in a row a connection has to be in hand to be given up.  One may be an
/// accident, and so may two: whoever kills us at every start hits somebody.
pub const SUSPICIONS: u64 = 3;

/// Why there is no place for a connection.
const FEW: &str = "there are not enough descriptors (LimitNOFILE=)";

/// Why a connection is given up for which the process before had bytes in memory.
const SHORT: &str = "the process before was killed for want of memory";

/// The words that tell whom a crash is blamed on.
const SUSPICION: [usize; 3] = [header::IN_HAND, header::SUSPECT, header::SUSPECTED];

/// The beginnings of the names under which the manager keeps our descriptors.
const ARENA: &str = "survival-arena-";
const PARCEL: &str = "survival-parcel-";

/// The name of an arena in the store.
#[must_use]
pub fn arena_name(generation: u64) -> String {
    format!("{ARENA}{generation}")
}

/// The name of both ends of a parcel in the store.
#[must_use]
pub fn parcel_name(generation: u64) -> String {
    format!("{PARCEL}{generation}")
}

/// The descriptors of a predecessor.
#[derive(Debug, Default)]
pub struct Estate {
    arenas: Vec<(u64, OwnedFd)>,
    senders: Vec<(u64, OwnedFd)>,
    queues: Vec<(u64, Queue)>,
    /// Names under which we know no descriptor, or not such a one.
    pub strangers: Vec<String>,
}

/// Why the connections of a predecessor are given up.
#[derive(Debug)]
pub enum Ruin {
    /// There is no arena.
    Missing,
    /// It cannot be used.
    Damaged(Damage),
    /// Process after process crashed.
    Crashes(u64),
}

impl fmt::Display for Ruin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is no arena"),
            Self::Damaged(damage) => damage.fmt(f),
            Self::Crashes(count) => write!(f, "{count} processes in a row crashed at their start"),
        }
    }
}

/// Where the bytes are that a connection is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a slot, so far behind its beginning.
    Slot(usize, usize),
    /// In the scratch, so far behind its beginning.
    Scratch(usize),
}

/// The number of a parcel, how many descriptors are in its queue, and the cookies of these.
type Content = (u64, usize, HashSet<u64>);

/// How many bytes, and where in the lane.
pub type Owed = (usize, Place);

/// A connection that goes on.
#[derive(Debug)]
pub struct Heir {
    /// Its socket.
    pub socket: OwnedFd,
    /// What the arena knows of it.
    pub record: Record,
    /// The lane of its loop.
    pub lane: usize,
    /// Its seat there.
    pub seat: u32,
    /// How far it has come.
    pub positions: Positions,
    /// What it is owed.
    pub owed: Option<Owed>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// The arena, unless there is none that can be used, and the payload of its lanes.
    pub arena: Option<(Arc<Arena>, Vec<Region>)>,
    /// The sending end of the latest parcel that has all who go on.
    pub parcel: Option<Parcel>,
    /// The highest number in a name.
    pub generation: u64,
    /// Names in the store, of which those of `arena` and `parcel` are to stay.
    pub names: BTreeSet<String>,
    /// Connections that go on.
    pub heirs: Vec<Heir>,
    /// How many there were.
    pub before: usize,
    /// Whether descriptors were left in flight that could not be opened.
    pub unseen: bool,
    /// Whether the predecessor had handed over.
    pub planned: bool,
    /// Whether the predecessor was killed for want of memory.
    pub short: bool,
    /// Crashes in a row before this start.
    pub crashes: u64,
    /// Who was in hand, who was suspected, and at how many crashes, as it was found.
    pub suspicion: [u64; 3],
    /// Why all were given up.
    pub ruin: Option<Ruin>,
    /// Why some were given up, with how many.
    pub lost: HashMap<&'static str, usize>,
}

impl Estate {
    /// Sorts what was passed under reserved names.
    #[must_use]
    pub fn sort(passed: Vec<(String, OwnedFd)>) -> Self {
        let mut estate = Self::default();
        for (name, descriptor) in passed {
            // One more must be possible, for ever.
            let number = |start| {
                let number = name.strip_prefix(start)?.parse::<u64>().ok()?;
                (number < u64::MAX / 2).then_some(number)
            };
            if let Some(generation) = number(ARENA) {
                estate.arenas.push((generation, descriptor));
                continue;
            }
            match number(PARCEL).map(|generation| (generation, End::of(descriptor))) {
                Some((generation, Ok(End::Sender(end)))) => estate.senders.push((generation, end)),
                Some((generation, Ok(End::Queue(end)))) => estate.queues.push((generation, end)),
                Some((_, Err(_))) | None => estate.strangers.push(name),
            }
        }
        estate
    }

    /// Reads it all.  At most `most` connections are kept.
    #[must_use]
    pub fn read(mut self, most: usize) -> Findings {
        let mut findings = Findings {
            names: self.names(),
            generation: self.latest(),
            ..Findings::default()
        };
        if findings.names.is_empty() {
            return findings;
        }
        self.arenas.sort_by_key(|(generation, _)| *generation);
        // An older one is not what the last process worked with.
        match self.arenas.pop().map(|(_, file)| Arena::open(file)) {
            None => findings.ruin = Some(Ruin::Missing),
            Some(Err(damage)) => findings.ruin = Some(Ruin::Damaged(damage)),
            Some(Ok((arena, payloads))) => findings.open(Arc::new(arena), payloads),
        }
        let mut reader = Reader::new(&findings, most);
        let mut short = false;
        let mut contents = Vec::with_capacity(self.queues.len());
        for (generation, queue) in &self.queues {
            let mut cookies = HashSet::new();
            let mut entries = 0;
            // What cannot be looked at any more is lost, as what is missing.
            let _ = queue.peek(|found, cut| {
                short |= cut;
                entries += found.len();
                cookies.extend(found.into_iter().filter_map(|socket| reader.judge(socket)));
            });
            contents.push((*generation, entries, cookies));
        }
        let Reader {
            index,
            heirs,
            lost,
            seen,
            ..
        } = reader;
        let missing = index
            .seats
            .keys()
            .filter(|cookie| !seen.contains(*cookie))
            .count();
        if findings.ruin.is_none() {
            findings.before = index.seats.len();
        }
        findings.unseen = short;
        findings.heirs = heirs;
        findings.lost = lost;
        if missing > 0 && findings.ruin.is_none() {
            let why = if short {
                FEW
            } else {
                "its descriptor was not found"
            };
            *findings.lost.entry(why).or_default() += missing;
        }
        if let Some((arena, _)) = &findings.arena {
            arena.set(header::IN_HAND, 0);
        }
        if !short {
            findings.parcel = self.whole(&contents, &findings.heirs);
        }
        findings
    }

    /// The latest parcel of which both ends are there and that has all heirs.  After a crash inside a
    /// renewal there are two, and for a third there may be no room in flight.  Where none has all, or
    /// only parts are there, a new one is made.
    fn whole(&mut self, contents: &[Content], heirs: &[Heir]) -> Option<Parcel> {
        let once = |all: &mut dyn Iterator<Item = u64>, generation| {
            all.filter(|other| *other == generation).count() == 1
        };
        let (generation, entries, _) = contents
            .iter()
            .filter(|(generation, _, cookies)| {
                once(
                    &mut self.senders.iter().map(|(other, _)| *other),
                    *generation,
                ) && once(&mut contents.iter().map(|(other, ..)| *other), *generation)
                    && heirs
                        .iter()
                        .all(|heir| cookies.contains(&heir.record.cookie))
            })
            .max_by_key(|(generation, ..)| *generation)?;
        let at = self
            .senders
            .iter()
            .position(|(other, _)| other == generation)?;
        let (_, sender) = self.senders.swap_remove(at);
        Some(Parcel::resumed(*generation, sender, *entries))
    }

    fn names(&self) -> BTreeSet<String> {
        let parcels = self.senders.iter().map(|(generation, _)| generation);
        let parcels = parcels.chain(self.queues.iter().map(|(generation, _)| generation));
        let arenas = self
            .arenas
            .iter()
            .map(|(generation, _)| arena_name(*generation));
        arenas
            .chain(parcels.map(|generation| parcel_name(*generation)))
            .collect()
    }

    fn latest(&self) -> u64 {
        let arenas = self.arenas.iter().map(|(generation, _)| *generation);
        let senders = self.senders.iter().map(|(generation, _)| *generation);
        let queues = self.queues.iter().map(|(generation, _)| *generation);
        arenas.chain(senders).chain(queues).max().unwrap_or(0)
    }
}

impl Findings {
    /// Takes an arena over, unless too many have crashed over it.
    fn open(&mut self, arena: Arc<Arena>, payloads: Vec<Region>) {
        self.planned = arena.take_over();
        self.suspicion = SUSPICION.map(|word| arena.get(word));
        let starts = if self.planned {
            0
        } else {
            arena.get(header::STARTS)
        };
        arena.set(header::STARTS, starts.saturating_add(1));
        self.crashes = starts;
        if starts > 0 {
            let (in_hand, suspect) = (arena.get(header::IN_HAND), arena.get(header::SUSPECT));
            let before = if in_hand == suspect {
                arena.get(header::SUSPECTED)
            } else {
                0
            };
            arena.set(header::SUSPECT, in_hand);
            arena.set(header::SUSPECTED, before.saturating_add(1));
        } else {
            arena.set(header::SUSPECT, 0);
        }
        let kills = memory_kills().map_or(0, |kills| kills.saturating_add(1));
        let before = arena.get(header::MEMORY_KILLS);
        self.short = !self.planned && before != 0 && kills > before;
        arena.set(header::MEMORY_KILLS, kills);
        if starts >= CRASHES {
            self.ruin = Some(Ruin::Crashes(starts));
        }
        self.arena = Some((arena, payloads));
    }

    /// Leaves an arena as it was found, for the next start: this one was no crash.
    pub(super) fn restore(&self, arena: &Arena) {
        arena.set(header::STARTS, self.crashes);
        for (word, value) in SUSPICION.into_iter().zip(self.suspicion) {
            arena.set(word, value);
        }
        if self.planned {
            arena.hand_over();
        }
    }
}

/// Where everything stands in an arena.
#[derive(Debug, Default)]
struct Index {
    seats: HashMap<u64, (usize, usize, Record)>,
    slots: HashMap<u64, (usize, usize)>,
}

impl Index {
    fn of(arena: &Arena) -> Self {
        let mut index = Self::default();
        for lane in 0..arena.geometry().lanes {
            let (seats, slots) = arena.used(lane);
            for seat in 0..seats {
                if let Some(record) = arena.seat(lane, seat) {
                    index.seats.insert(record.cookie, (lane, seat, record));
                }
            }
            for slot in 0..slots {
                let owner = arena.owner(lane, slot);
                if owner != 0 {
                    index.slots.insert(owner, (lane, slot));
                }
            }
        }
        index
    }
}

/// Judges one descriptor after the other.
struct Reader<'a> {
    arena: Option<&'a Arena>,
    planned: bool,
    short: bool,
    /// Everything is given up.
    ruined: bool,
    index: Index,
    /// Who was in hand at each of the last crashes.
    poison: Option<u64>,
    most: usize,
    seen: HashSet<u64>,
    heirs: Vec<Heir>,
    lost: HashMap<&'static str, usize>,
}

impl<'a> Reader<'a> {
    fn new(findings: &'a Findings, most: usize) -> Self {
        let arena = findings.arena.as_ref().map(|(arena, _)| &**arena);
        let poison = arena
            .filter(|arena| arena.get(header::SUSPECTED) >= SUSPICIONS)
            .map(|arena| arena.get(header::SUSPECT))
            .filter(|cookie| *cookie != 0);
        Self {
            arena,
            planned: findings.planned,
            short: findings.short,
            ruined: findings.ruin.is_some(),
            index: arena.map(Index::of).unwrap_or_default(),
            poison,
            most,
            seen: HashSet::new(),
            heirs: Vec::new(),
            lost: HashMap::new(),
        }
    }

    /// Returns its cookie, if it has one.
    fn judge(&mut self, socket: OwnedFd) -> Option<u64> {
        let cookie = SockRef::from(&socket).cookie().ok()?;
        // Otherwise it is in another parcel too.
        if self.seen.insert(cookie) {
            self.judge_new(socket, cookie);
        }
        Some(cookie)
    }

    fn judge_new(&mut self, socket: OwnedFd, cookie: u64) {
        let known = self.index.seats.get(&cookie).copied();
        let (Some(arena), Some((lane, seat, record)), false) = (self.arena, known, self.ruined)
        else {
            // Without an arena nobody knows who was over already.
            if self.ruined && (self.arena.is_none() || known.is_some()) {
                *self.lost.entry("all are given up").or_default() += 1;
            }
            return end(&socket, false);
        };
        arena.set(header::IN_HAND, cookie);
        let verdict = if self.poison == Some(cookie) {
            Err("the process crashed over it, again and again")
        } else if self.heirs.len() >= self.most {
            Err(FEW)
        } else {
            self.examine(arena, lane, &socket, &record)
        };
        match verdict {
            Ok((positions, owed)) => self.heirs.push(Heir {
                socket,
                record,
                lane,
                seat: u32::try_from(seat).unwrap_or(u32::MAX),
                positions,
                owed,
            }),
            Err(why) => {
                // What was sent over Multipath TCP would wait for a peer that does not read for as
                // long as a parcel holds the socket.
                end(&socket, why == SHORT || !is_counted(&socket));
                *self.lost.entry(why).or_default() += 1;
            }
        }
    }

    /// How far it has come, and what it is owed.
    fn examine(
        &self,
        arena: &Arena,
        lane: usize,
        socket: &OwnedFd,
        record: &Record,
    ) -> Result<(Positions, Option<Owed>), &'static str> {
        let found = match (is_counted(socket), self.planned) {
            (false, false) => return Err("a stream other than TCP does not survive a crash"),
            (false, true) => noted(record),
            (true, _) if controls::is_on(controls::NO_COUNTERS) => noted(record),
            (true, planned) => match positions(socket) {
                Ok(found) => found,
                // As after any hand-over, it is where it was noted to be.
                Err(_) if planned => noted(record),
                Err(_) => return Err("the kernel does not say how far it is"),
            },
        };
        if found.over {
            return Err("it was over already");
        }
        let before = (record.received, record.sent);
        let right = if self.planned {
            (found.received, found.sent) == before
        } else {
            found.received >= before.0 && found.sent >= before.1
        };
        if !right {
            return Err("what was noted of it contradicts the kernel");
        }
        if found.finished || found.received == found.sent {
            return Ok((found, None));
        }
        let count = found
            .received
            .checked_sub(found.sent)
            .and_then(|owed| usize::try_from(owed).ok())
            .filter(|owed| *owed <= SCRATCH)
            .ok_or("more was written than read, or too little")?;
        let cookie = record.cookie;
        // One loop had it from the first byte to the last, so it is in the lane of that loop.
        let slot = self.index.slots.get(&cookie);
        let in_slot = slot.filter(|(of, _)| *of == lane).and_then(|(_, slot)| {
            let ahead = arena.in_slot(lane, *slot, found.sent, count)?;
            Some((count, Place::Slot(*slot, ahead)))
        });
        // What it was killed for would be there still, and kill the next one.
        if self.short && in_slot.is_some() {
            return Err(SHORT);
        }
        let in_scratch = || {
            let ahead = arena.in_scratch(lane, cookie, found.sent, count)?;
            Some((count, Place::Scratch(ahead)))
        };
        let owed = in_slot.or_else(in_scratch);
        owed.map(|owed| (found, Some(owed)))
            .ok_or("what it is owed was not found")
    }
}

/// How far a connection had come when that was last noted.
fn noted(record: &Record) -> Positions {
    Positions {
        received: record.received,
        sent: record.sent,
        finished: false,
        over: false,
        quiet: Duration::ZERO,
    }
}

/// Whether the kernel counts the bytes of a stream: of a Unix one it does not, of Multipath TCP not the
/// whole.
fn is_counted(socket: &OwnedFd) -> bool {
    SockRef::from(socket).protocol().ok().flatten() == Some(Protocol::TCP)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsFd, BorrowedFd};

    use super::super::lane::Lane;
    use super::super::layout::{Geometry, WORD};
    use super::*;
    use crate::echo::backlog::Store;

    const SMALL: Geometry = Geometry { lanes: 1, seats: 8 };

    /// A process that had two connections, and what the manager has of it.
    struct Past {
        arena: Arc<Arena>,
        lane: Lane,
        queue: Queue,
        parcel: Parcel,
        /// Each with its client.
        sockets: Vec<(TcpStream, TcpStream)>,
        cookies: Vec<u64>,
    }

    impl Past {
        fn new() -> Self {
            let (arena, mut payloads) = Arena::create(SMALL, 1).unwrap();
            let arena = Arc::new(arena);
            let mut lane = Lane::new(arena.clone(), 0, payloads.remove(0));
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let sockets: Vec<_> = (0..2)
                .map(|_| {
                    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                    (listener.accept().unwrap().0, client)
                })
                .collect();
            let (mut parcel, queue) = Parcel::new(2).unwrap();
            let mut cookies = Vec::new();
            for (number, (socket, _)) in sockets.iter().enumerate() {
                let cookie = SockRef::from(socket).cookie().unwrap();
                cookies.push(cookie);
                lane.sit(&Record {
                    cookie,
                    began: 1,
                    number: number as u64,
                    listener: 0,
                    received: 0,
                    sent: 0,
                });
                parcel.append(&[socket.as_fd()]).unwrap();
            }
            Self {
                arena,
                lane,
                queue,
                parcel,
                sockets,
                cookies,
            }
        }

        /// The n-th client says something, which is read and not written.
        fn read(&mut self, number: usize, said: &[u8], kept: bool) {
            let (socket, client) = &mut self.sockets[number];
            client.write_all(said).unwrap();
            let owner = self.cookies[number];
            self.lane.claim(owner, 0);
            let scratch = self.lane.scratch();
            socket.read_exact(&mut scratch[..said.len()]).unwrap();
            if kept {
                let _ = self.lane.keep(owner, 0..said.len(), 0).unwrap();
            }
        }

        /// The next process looks at it.
        fn read_by_successor(&self, most: usize) -> Findings {
            let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
            Estate::sort(vec![
                (parcel_name(2), duplicate(self.queue.as_fd())),
                (arena_name(1), duplicate(self.arena.file().unwrap())),
                (parcel_name(2), duplicate(self.parcel.as_fd())),
            ])
            .read(most)
        }
    }

    fn owed(findings: &Findings, cookie: u64) -> Option<(usize, Place)> {
        let heir = |heir: &&Heir| heir.record.cookie == cookie;
        findings.heirs.iter().find(heir).unwrap().owed
    }

    #[test]
    fn what_is_owed_is_found_where_it_is() {
        let mut past = Past::new();
        past.read(0, b"in a slot", true);
        past.read(1, b"in the scratch", false);
        // As often as processes come and go, and whoever looks first.
        for crashes in 0..3 {
            let findings = past.read_by_successor(9);
            assert_eq!((findings.before, findings.heirs.len()), (2, 2));
            assert_eq!((findings.planned, findings.crashes), (false, crashes));
            assert!(findings.parcel.is_some() && findings.ruin.is_none());
            let slot = owed(&findings, past.cookies[0]);
            assert_eq!(slot, Some((9, Place::Slot(0, 0))));
            let scratch = owed(&findings, past.cookies[1]);
            assert_eq!(scratch, Some((14, Place::Scratch(0))));
        }
    }

    #[test]
    fn a_crash_while_positions_are_noted_loses_nobody() {
        // After each of the words, and before the first.
        for stores in 0..=3 {
            let mut past = Past::new();
            past.read(0, b"in a slot", true);
            let place = SMALL.seat(0, 0);
            let words = [5, 6, 7].map(|word| place + word * WORD);
            let before = words.map(|at| past.arena.get(at));
            let mut record = past.arena.seat(0, 0).unwrap();
            record.received = 9;
            past.lane
                .note(super::super::lane::Seat::new(0).unwrap(), &record);
            for (at, word) in words.into_iter().zip(before).skip(stores) {
                past.arena.set(at, word);
            }
            let findings = past.read_by_successor(9);
            assert_eq!(
                (findings.before, findings.heirs.len()),
                (2, 2),
                "after {stores}"
            );
            assert!(findings.lost.is_empty(), "after {stores}");
            let slot = owed(&findings, past.cookies[0]);
            assert_eq!(slot, Some((9, Place::Slot(0, 0))), "after {stores}");
        }
    }

    #[test]
    fn what_is_owed_and_nowhere_is_not_guessed() {
        let mut past = Past::new();
        past.read(0, b"overwritten by the next", false);
        past.read(1, b"next", false);
        let findings = past.read_by_successor(9);
        assert_eq!(findings.heirs.len(), 1);
        assert_eq!(findings.lost["what it is owed was not found"], 1);
        // It is told to the client, too.
        assert_eq!(past.sockets[0].1.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn who_has_no_seat_or_no_place_is_ended() {
        let mut past = Past::new();
        past.lane.stand(super::super::lane::Seat::new(0).unwrap());
        let findings = past.read_by_successor(9);
        assert_eq!((findings.before, findings.heirs.len()), (1, 1));
        assert!(findings.lost.is_empty());
        assert_eq!(past.sockets[0].1.read(&mut [0]).unwrap(), 0);
        let findings = past.read_by_successor(0);
        assert_eq!((findings.before, findings.heirs.len()), (1, 0));
        assert_eq!(findings.lost[FEW], 1);
        assert_eq!(past.sockets[1].1.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn who_is_in_hand_at_three_crashes_in_a_row_is_given_up() {
        for spread in [false, true] {
            let past = Past::new();
            for crash in 0..4 {
                let findings = past.read_by_successor(9);
                let poisonous = !spread && crash == 3;
                assert_eq!(
                    findings.heirs.len(),
                    if poisonous { 1 } else { 2 },
                    "{crash}"
                );
                assert_eq!(findings.lost.len(), usize::from(poisonous));
                // The process crashes in the turn of one of them, before its first full round.
                let victim = if spread { crash % 2 } else { 0 };
                past.arena.set(header::IN_HAND, past.cookies[victim]);
            }
        }
    }

    #[test]
    fn a_full_round_and_a_hand_over_end_the_row() {
        let past = Past::new();
        for end in [
            |arena: &Arena| arena.set(header::STARTS, 0),
            Arena::hand_over,
        ] {
            for _ in 0..5 {
                let findings = past.read_by_successor(9);
                assert_eq!((findings.heirs.len(), findings.crashes), (2, 0));
                past.arena.set(header::IN_HAND, past.cookies[0]);
                end(&past.arena);
            }
            let _ = past.read_by_successor(9);
            past.arena.set(header::STARTS, 0);
        }
    }

    #[test]
    fn after_a_hundred_crashes_in_a_row_all_are_given_up() {
        let mut past = Past::new();
        for crashes in 0..CRASHES {
            let findings = past.read_by_successor(9);
            assert_eq!((findings.heirs.len(), findings.crashes), (2, crashes));
        }
        let findings = past.read_by_successor(9);
        assert!(matches!(findings.ruin, Some(Ruin::Crashes(CRASHES))));
        assert!(findings.heirs.is_empty());
        assert_eq!(past.sockets[0].1.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn of_several_parcels_the_one_with_all_heirs_goes_on() {
        let past = Past::new();
        let all = |parcel: &mut Parcel| {
            for (socket, _) in &past.sockets {
                parcel.append(&[socket.as_fd()]).unwrap();
            }
        };
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
        // Whether the new one has both, one or none; whether both of its ends are there.
        for (count, whole, wanted) in [(2, true, 3), (2, false, 2), (1, true, 2), (0, true, 2)] {
            let (mut parcel, queue) = Parcel::new(3).unwrap();
            match count {
                2 => all(&mut parcel),
                1 => parcel.append(&[past.sockets[1].0.as_fd()]).unwrap(),
                _ => {}
            }
            let mut passed = vec![
                (parcel_name(3), duplicate(queue.as_fd())),
                (parcel_name(2), duplicate(past.queue.as_fd())),
                (arena_name(1), duplicate(past.arena.file().unwrap())),
                (parcel_name(2), duplicate(past.parcel.as_fd())),
            ];
            if whole {
                passed.push((parcel_name(3), duplicate(parcel.as_fd())));
            }
            let findings = Estate::sort(passed).read(9);
            assert_eq!(findings.heirs.len(), 2);
            let found = findings.parcel.unwrap();
            assert_eq!((found.generation, found.entries), (wanted, 2), "{count}");
        }
    }

    #[test]
    fn names_that_mean_nothing_are_named() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let estate = Estate::sort(vec![
            ("survival-arena-x".into(), one.into()),
            (parcel_name(1), other.into()),
        ]);
        assert_eq!(estate.strangers, ["survival-arena-x", "survival-parcel-1"]);
        let findings = estate.read(9);
        assert!(findings.ruin.is_none() && findings.names.is_empty());
    }
}
