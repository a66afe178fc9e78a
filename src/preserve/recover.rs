//! What the previous process has left: which of its connections go on, and from which byte.
//!
//! The service manager passes the state file and the descriptor queues.  Every descriptor in a queue is
//! received, without taking it out, so that nothing is lost if this process crashes meanwhile.  The
//! socket behind it is one of a connection that was open, or of one that was already over:
//!
//! - *Was it still open?*  The state file has a record with the cookie of the socket.  Without a record
//!   the connection was over, and its socket is closed; nothing is logged.
//!
//! That is all that is done for all connections before the first goes on.  Two more things are decided
//! when the turn of a connection comes ([`Recovered::examine`]), while others are served already:
//!
//! - *How many bytes were read from it and written to it?*  The kernel has counted them
//!   ([`crate::sys::positions`]).  It does not count the bytes of a Unix stream: after a hand-over its
//!   record has the positions, after a crash the connection is lost.
//! - *Which bytes are owed to the peer?*  Those that were read and not written.  They are in a slot with
//!   the connection's mark, or else in the scratch, if that has the connection's mark.  If they are in
//!   neither, the connection is closed.  Bytes are never guessed.
//!
//! If the state file cannot be used, all connections are closed.  So they are after many crashes at the
//! start, and so is a connection that was being served at each of the last crashes
//! ([`super::crash_guard`]): no connection can keep the service from starting for ever.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Protocol, SockRef};

use super::crash_guard::{CrashHistory, MAX_CRASHES};
use super::fd_queue::{End, FdQueue, Queue};
use super::state_file::{Before, Damage, Record, StateFile};
use super::test_faults;
use crate::echo::SCRATCH;
use crate::sys::cgroup::memory_kills;
use crate::sys::memory::Region;
use crate::sys::positions::{Positions, positions};
use crate::sys::sockopt::end;

/// Why a connection is closed that would be one too many.
const TOO_FEW_DESCRIPTORS: &str = "there are not enough descriptors (LimitNOFILE=)";

/// Why a connection is closed whose owed bytes took memory when that was short.
const SHORT_OF_MEMORY: &str = "the previous process was killed for want of memory";

/// Why a connection is closed if all are.
const ALL_CLOSED: &str = "all connections are closed";

/// What the names begin with under which the manager stores our descriptors; the generation follows.
const STATE_FILE: &str = "preserve-state-";
const FD_QUEUE: &str = "preserve-queue-";

/// What the names began with before the first release.
const FORMER_STATE_FILE: &str = "survival-arena-";
const FORMER_FD_QUEUE: &str = "survival-parcel-";

/// The name of a state file in the store.
#[must_use]
pub(crate) fn state_file_name(generation: u64) -> String {
    format!("{STATE_FILE}{generation}")
}

/// The name of both ends of a descriptor queue in the store.
#[must_use]
pub(crate) fn fd_queue_name(generation: u64) -> String {
    format!("{FD_QUEUE}{generation}")
}

/// The descriptors from the store, each with its generation.
#[derive(Debug, Default)]
pub(crate) struct StoredFds {
    state_files: Vec<(u64, OwnedFd)>,
    senders: Vec<(u64, OwnedFd)>,
    queues: Vec<(u64, Queue)>,
    /// The names of all these in the store.
    names: BTreeSet<String>,
    /// Reserved names that are not of this form, or whose descriptor is of another kind.
    pub unexpected: Vec<String>,
}

/// Why all connections of the previous process are closed.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// There is no state file.
    Missing,
    /// The state file cannot be used.
    Damaged(Damage),
    /// So many processes in a row crashed before their first full round.
    Crashes(u64),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is no state file"),
            Self::Damaged(damage) => damage.fmt(f),
            Self::Crashes(count) => write!(f, "{count} processes in a row crashed at their start"),
        }
    }
}

/// Where the owed bytes of a connection stand in the payload of its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the slot with this index, this far behind its beginning.
    Slot(usize, usize),
    /// In the scratch, this far behind its beginning.
    Scratch(usize),
}

/// How many bytes are owed, and where they stand.
pub(crate) type Owed = (usize, Place);

/// A connection of the previous process whose socket was found, and that was not examined yet.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its socket, and the cookie of that.
    pub socket: OwnedFd,
    pub cookie: u64,
    /// The partition that its record is in.
    pub partition: usize,
    /// The index of its record there.
    pub record_id: u32,
    /// Whether there is something to do for it as far as is known: bytes or an end wait to be read, or
    /// bytes in a slot to be written.
    pub is_busy: bool,
}

/// A connection that goes on.
#[derive(Debug)]
pub(crate) struct RecoveredConnection {
    /// Its socket.
    pub socket: OwnedFd,
    /// What the state file has of it.
    pub record: Record,
    /// The partition that its record is in.
    pub partition: usize,
    /// How many bytes were read from it and written to it.
    pub positions: Positions,
    /// Whether the kernel counts its bytes: it is a plain TCP connection.
    pub counted: bool,
    /// What is owed to the peer.
    pub owed: Option<Owed>,
}

/// What the previous process has left.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// The state file, if it can be read.
    pub state_file: Option<Arc<StateFile>>,
    /// The payload of each of its partitions.
    pub payloads: Vec<Region>,
    /// The indexes of the listeners' names that it uses.
    pub listeners: BTreeSet<u32>,
    /// The slots by the cookie of their owner, each in the partition of its record.
    pub slots: HashMap<u64, u32>,
    /// The sending end of the latest descriptor queue that has every connection that was found.
    pub fd_queue: Option<FdQueue>,
    /// The highest generation in a name.
    pub generation: u64,
    /// All names in the store, those of `state_file` and `fd_queue` included.
    pub names: BTreeSet<String>,
    /// The connections that were found.
    pub found: Vec<Found>,
    /// How many connections the previous process had preserved; 0 if all are closed.
    pub before: usize,
    /// Whether a queue has descriptors that could not be opened.
    pub unseen: bool,
    /// Whether the previous process has handed its connections over.
    pub planned: bool,
    /// Whether the previous process was killed for want of memory.
    pub short: bool,
    /// Crashes in a row before this start.
    pub crashes: u64,
    /// The history of crashes as it was found.
    crash_history: CrashHistory,
    /// The cookie of the connection that was being served at each of the last crashes.
    culprit: Option<u64>,
    /// Why all connections are closed, if they are.
    pub unusable: Option<Unusable>,
    /// Why connections were closed, and how many for each reason.
    pub lost: HashMap<&'static str, usize>,
}

/// What a descriptor queue was found to hold.
struct QueueContent {
    generation: u64,
    /// How many descriptors are in it, and in how many messages.
    entries: usize,
    messages: usize,
    /// The cookies of the sockets among these, sorted.
    cookies: Vec<u64>,
}

/// The generation in a name that begins with one of `starts`.  A later one must always be possible.
fn generation(name: &str, starts: [&str; 2]) -> Option<u64> {
    let number = starts.iter().find_map(|start| name.strip_prefix(start))?;
    let generation = number.parse().ok()?;
    (generation < u64::MAX / 2).then_some(generation)
}

/// How many connections may go on, by the state files among what was passed.
#[must_use]
pub(crate) fn expected(passed: &[(String, OwnedFd)]) -> usize {
    let is_state_file = |name: &str| generation(name, [STATE_FILE, FORMER_STATE_FILE]).is_some();
    let state_files = passed.iter().filter(|(name, _)| is_state_file(name));
    let records = state_files.filter_map(|(_, descriptor)| {
        let (state_file, _) = StateFile::open(descriptor.try_clone().ok()?).ok()?;
        let partitions = 0..state_file.geometry().partitions;
        Some(partitions.map(|index| state_file.used(index).0).sum())
    });
    records.max().unwrap_or(0)
}

impl StoredFds {
    /// Sorts descriptors that were passed under reserved names.
    #[must_use]
    pub(crate) fn sort(passed: Vec<(String, OwnedFd)>) -> Self {
        let mut stored = Self::default();
        for (name, descriptor) in passed {
            if let Some(generation) = generation(&name, [STATE_FILE, FORMER_STATE_FILE]) {
                stored.state_files.push((generation, descriptor));
                stored.names.insert(name);
                continue;
            }
            let generation = generation(&name, [FD_QUEUE, FORMER_FD_QUEUE]);
            match generation.map(|generation| (generation, End::of(descriptor))) {
                Some((generation, Ok(End::Sender(end)))) => stored.senders.push((generation, end)),
                Some((generation, Ok(End::Queue(end)))) => stored.queues.push((generation, end)),
                Some((_, Err(_))) | None => {
                    stored.unexpected.push(name);
                    continue;
                }
            }
            stored.names.insert(name);
        }
        stored
    }

    /// Finds the sockets of the connections that were open, at most `max_connections`; the others are
    /// closed.
    #[must_use]
    pub(crate) fn recover(mut self, max_connections: usize) -> Recovered {
        let mut recovered = Recovered {
            names: std::mem::take(&mut self.names),
            generation: self.latest_generation(),
            ..Recovered::default()
        };
        if recovered.names.is_empty() {
            return recovered;
        }
        // The last process has used the latest file; an older one is of no use.
        self.state_files.sort_by_key(|(generation, _)| *generation);
        let latest = self.state_files.pop();
        match latest.map(|(_, file)| StateFile::open(file)) {
            None => recovered.unusable = Some(Unusable::Missing),
            Some(Err(damage)) => recovered.unusable = Some(Unusable::Damaged(damage)),
            Some(Ok((state_file, payloads))) => recovered.begin(Arc::new(state_file), payloads),
        }
        let contents = self.find_sockets(&mut recovered, max_connections);
        if !recovered.unseen {
            recovered.fd_queue = self.take_complete_queue(&contents, &recovered);
        }
        recovered
    }

    /// Receives every descriptor in the queues; returns what each queue holds.
    fn find_sockets(&self, recovered: &mut Recovered, max_connections: usize) -> Vec<QueueContent> {
        let mut finder = Finder::new(recovered, max_connections);
        let mut unseen = false;
        let mut contents = Vec::with_capacity(self.queues.len());
        for (generation, queue) in &self.queues {
            let mut content = QueueContent {
                generation: *generation,
                entries: 0,
                messages: 0,
                cookies: Vec::new(),
            };
            // What a queue holds that cannot be read counts as missing.
            let _ = queue.peek(|found, cut| {
                unseen |= cut;
                content.entries += found.len();
                content.messages += 1;
                let announced = announced(&found);
                let cookies = found
                    .into_iter()
                    .zip(announced)
                    .filter_map(|(socket, announced)| finder.find(socket, announced));
                content.cookies.extend(cookies);
            });
            content.cookies.sort_unstable();
            contents.push(content);
        }
        let Finder {
            records,
            listeners,
            slots,
            found,
            mut lost,
            ..
        } = finder;
        recovered.unseen = unseen;
        if recovered.unusable.is_none() {
            recovered.before = records.len();
            let missing = records.iter().filter(|record| !record.seen).count();
            if missing > 0 {
                let why = if unseen {
                    TOO_FEW_DESCRIPTORS
                } else {
                    "its descriptor was not found"
                };
                *lost.entry(why).or_default() += missing;
            }
        }
        recovered.listeners = listeners;
        recovered.slots = slots;
        recovered.found = found;
        recovered.lost = lost;
        contents
    }

    /// Takes the sending end of the latest queue that can go on being used: it has every connection
    /// that was found, and each of its ends is there once, under its present name.  After a crash during a
    /// rotation there are two queues, and there may be no room in flight for a third.  `None`: a new
    /// queue has to be made.
    fn take_complete_queue(
        &mut self,
        contents: &[QueueContent],
        recovered: &Recovered,
    ) -> Option<FdQueue> {
        let is_complete = |content: &&QueueContent| {
            let generation = content.generation;
            let senders = self.senders.iter().filter(|(of, _)| *of == generation);
            let queues = self.queues.iter().filter(|(of, _)| *of == generation);
            let mut found = recovered.found.iter();
            senders.count() == 1
                && queues.count() == 1
                && recovered.names.contains(&fd_queue_name(generation))
                && found.all(|found| content.cookies.binary_search(&found.cookie).is_ok())
        };
        let content = contents
            .iter()
            .filter(is_complete)
            .max_by_key(|content| content.generation)?;
        let mut senders = self.senders.iter();
        let index = senders.position(|(generation, _)| *generation == content.generation)?;
        let (generation, sender) = self.senders.swap_remove(index);
        let QueueContent {
            entries, messages, ..
        } = content;
        Some(FdQueue::resumed(generation, sender, *entries, *messages))
    }

    fn latest_generation(&self) -> u64 {
        let state_files = self.state_files.iter().map(|(generation, _)| *generation);
        let senders = self.senders.iter().map(|(generation, _)| *generation);
        let queues = self.queues.iter().map(|(generation, _)| *generation);
        state_files.chain(senders).chain(queues).max().unwrap_or(0)
    }
}

impl Recovered {
    /// Begins the use of a state file by this process: reads how the previous one has ended, and counts
    /// this start.
    fn begin(&mut self, state_file: Arc<StateFile>, payloads: Vec<Region>) {
        self.planned = state_file.take_over();
        self.crash_history = CrashHistory::read(&state_file);
        let crash_history = self.crash_history.after_start(self.planned);
        crash_history.write(&state_file);
        self.culprit = crash_history.culprit();
        if !self.planned {
            self.crashes = self.crash_history.starts;
        }
        let kills = memory_kills().map_or(0, |kills| kills.saturating_add(1));
        let kills_before = state_file.header().memory_kills.swap(kills);
        self.short = !self.planned && kills_before != 0 && kills > kills_before;
        if self.crashes >= MAX_CRASHES {
            self.unusable = Some(Unusable::Crashes(self.crashes));
        }
        state_file.header().crashes.current.set(0);
        self.state_file = Some(state_file);
        self.payloads = payloads;
    }

    /// Leaves a state file as it was found.  The next process then does not take this start for a
    /// crash.
    pub(super) fn undo(&self, state_file: &StateFile) {
        self.crash_history.write(state_file);
        if self.planned {
            state_file.hand_over();
        }
    }
}

/// Where the record of a cookie is.
struct Known {
    cookie: u64,
    partition: usize,
    index: usize,
    /// Whether a socket with this cookie was found.
    seen: bool,
}

/// Finds the connections that the sockets belong to, one socket after the other.
struct Finder<'a> {
    recovered: &'a Recovered,
    /// The records, sorted by cookie.
    records: Vec<Known>,
    /// The indexes of the names in these.
    listeners: BTreeSet<u32>,
    /// The slots by the cookie of their owner, each in the partition of its record.
    slots: HashMap<u64, u32>,
    max_connections: usize,
    /// The cookies of the sockets so far that have no record.
    unknown: HashSet<u64>,
    found: Vec<Found>,
    lost: HashMap<&'static str, usize>,
}

impl<'a> Finder<'a> {
    fn new(recovered: &'a Recovered, max_connections: usize) -> Self {
        let mut finder = Self {
            recovered,
            records: Vec::new(),
            listeners: BTreeSet::new(),
            slots: HashMap::new(),
            max_connections,
            unknown: HashSet::new(),
            found: Vec::new(),
            lost: HashMap::new(),
        };
        if let Some(state_file) = &recovered.state_file {
            finder.index(state_file);
        }
        finder
    }

    /// Reads all records and all marks of slots.
    fn index(&mut self, state_file: &StateFile) {
        let mut marked = Vec::new();
        for partition in 0..state_file.geometry().partitions {
            let (records, slots) = state_file.used(partition);
            for index in 0..records {
                if let Some(record) = state_file.read_record(partition, index) {
                    self.listeners.insert(record.listener);
                    self.records.push(Known {
                        cookie: record.cookie,
                        partition,
                        index,
                        seen: false,
                    });
                }
            }
            for slot in (0..).take(slots) {
                let owner = state_file.mark(partition, slot as usize).owner.get();
                if owner != 0 {
                    marked.push((owner, partition, slot));
                }
            }
        }
        self.records.sort_unstable_by_key(|known| known.cookie);
        // A cookie is that of one socket, and a socket has one record.
        self.records.dedup_by_key(|known| known.cookie);
        for (owner, partition, slot) in marked {
            // A connection stays with one worker, so its bytes are in the partition of its record.
            if self
                .known(owner)
                .is_some_and(|known| known.partition == partition)
            {
                self.slots.insert(owner, slot);
            }
        }
    }

    /// The record with this cookie.
    fn known(&mut self, cookie: u64) -> Option<&mut Known> {
        let at = self
            .records
            .binary_search_by_key(&cookie, |known| known.cookie);
        self.records.get_mut(at.ok()?)
    }

    /// Finds the connection of a socket, which was `announced` to have input or not; returns the cookie
    /// of the socket, if it has one.
    fn find(&mut self, socket: OwnedFd, announced: bool) -> Option<u64> {
        let cookie = SockRef::from(&socket).cookie().ok()?;
        // A socket may be in two queues.
        let (is_new, place) = match self.known(cookie) {
            Some(known) => {
                let is_new = !std::mem::replace(&mut known.seen, true);
                (is_new, Some((known.partition, known.index)))
            }
            None => (self.unknown.insert(cookie), None),
        };
        if is_new {
            self.add(socket, cookie, place, announced);
        }
        Some(cookie)
    }

    /// `place`: the partition of its record, and the index there.
    fn add(
        &mut self,
        socket: OwnedFd,
        cookie: u64,
        place: Option<(usize, usize)>,
        announced: bool,
    ) {
        let is_unusable = self.recovered.unusable.is_some();
        let (Some((partition, index)), false) = (place, is_unusable) else {
            // Without a state file it is not known which connections were over.
            if is_unusable && (self.recovered.state_file.is_none() || place.is_some()) {
                *self.lost.entry(ALL_CLOSED).or_default() += 1;
            }
            return end(&socket, false);
        };
        let found = Found {
            socket,
            cookie,
            partition,
            record_id: u32::try_from(index).unwrap_or(u32::MAX),
            is_busy: announced || self.slots.contains_key(&cookie),
        };
        if self.found.len() >= self.max_connections {
            *self.lost.entry(TOO_FEW_DESCRIPTORS).or_default() += 1;
            return self.recovered.close(&found);
        }
        self.found.push(found);
    }
}

/// Whether each of these sockets has something to be read, by one system call for all.
fn announced(sockets: &[OwnedFd]) -> Vec<bool> {
    let watch = |socket| PollFd::new(socket, PollFlags::IN);
    let mut watched: Vec<PollFd<'_>> = sockets.iter().map(watch).collect();
    // Only the order in which the connections go on depends on it, so an error does no harm.
    let _ = poll(&mut watched, Some(&Timespec::default()));
    let announced = watched.iter().map(|watched| !watched.revents().is_empty());
    announced.collect()
}

impl Recovered {
    /// Closes a connection that cannot go on.
    pub(super) fn close(&self, found: &Found) {
        let state_file = self.state_file.as_ref();
        let record =
            state_file.and_then(|file| file.read_record(found.partition, found.record_id as usize));
        // Where bytes are given up, an end of the stream would say that all came back.  And bytes that
        // were written to a connection of Multipath TCP would wait for a peer that does not read, for as
        // long as a descriptor queue holds the socket.
        let socket = &found.socket;
        let is_owed = record.is_some_and(|record| is_owed(socket, &record));
        end(socket, is_owed || !is_counted(socket));
    }

    /// Examines a connection: how far it has come, and what is owed to its peer.  `None`: it cannot go
    /// on, was closed, and is counted in [`Recovered::lost`].
    pub(crate) fn examine(&mut self, found: Found) -> Option<RecoveredConnection> {
        let state_file = self.state_file.clone()?;
        let Found {
            cookie,
            partition,
            record_id,
            ..
        } = found;
        let record = state_file.read_record(partition, record_id as usize)?;
        let current = &state_file.header().crashes.current;
        current.set(cookie);
        let counted = is_counted(&found.socket);
        let verdict = if self.culprit == Some(cookie) {
            Err("the process crashed again and again while it served the connection")
        } else {
            self.positions_and_owed(&state_file, partition, &found.socket, counted, &record)
        };
        let examined = match verdict {
            Ok((positions, before, owed)) => Some(RecoveredConnection {
                socket: found.socket,
                record: Record { before, ..record },
                partition,
                positions,
                counted,
                owed,
            }),
            Err(why) => {
                self.close(&found);
                *self.lost.entry(why).or_default() += 1;
                None
            }
        };
        current.set(0);
        examined
    }

    /// How many bytes were read and written, what stands before the stream, and what is owed; an error
    /// says why the connection cannot go on.
    fn positions_and_owed(
        &self,
        state_file: &StateFile,
        partition: usize,
        socket: &OwnedFd,
        counted: bool,
        record: &Record,
    ) -> Result<(Positions, Before, Option<Owed>), &'static str> {
        let (found, before) = self.find_positions(socket, counted, record)?;
        if found.over {
            return Err("it was over already");
        }
        let is_consistent = if self.planned {
            (found.received, found.sent) == (record.received, record.sent)
        } else {
            found.received >= record.received && found.sent >= record.sent
        };
        if !is_consistent {
            return Err("its record contradicts the kernel");
        }
        if found.finished || found.received == found.sent {
            return Ok((found, before, None));
        }
        let count = found
            .received
            .checked_sub(found.sent)
            .and_then(|count| usize::try_from(count).ok())
            .filter(|count| *count <= SCRATCH)
            .ok_or("more bytes were written than read, or too few")?;
        let owed = self.find_owed(state_file, partition, record.cookie, found.sent, count)?;
        Ok((found, before, Some(owed)))
    }

    /// How many bytes of the stream were read and written, and what stands before it.
    fn find_positions(
        &self,
        socket: &OwnedFd,
        counted: bool,
        record: &Record,
    ) -> Result<(Positions, Before), &'static str> {
        // After a hand-over the record is exact.
        let recorded = (recorded_positions(record), record.before);
        if !counted {
            return if self.planned {
                Ok(recorded)
            } else {
                Err("a stream other than TCP does not survive a crash")
            };
        }
        if test_faults::is_on(test_faults::NO_COUNTERS) {
            return Ok(recorded);
        }
        match positions(socket, surely_read(record)) {
            Ok(found) => behind_header(found, record.before),
            Err(_) if self.planned => Ok(recorded),
            Err(_) => Err("the kernel does not say how many bytes were read and written"),
        }
    }

    /// Where the `count` owed bytes stand that begin at the position `sent`.
    fn find_owed(
        &self,
        state_file: &StateFile,
        partition: usize,
        cookie: u64,
        sent: u64,
        count: usize,
    ) -> Result<Owed, &'static str> {
        let in_slot = self.slots.get(&cookie).and_then(|slot| {
            let slot = *slot as usize;
            let ahead = state_file.mark(partition, slot).find(cookie, sent, count)?;
            Some(Place::Slot(slot, ahead))
        });
        // The memory for which the previous process was killed would still be in use, and this process
        // would be killed as well.
        if self.short && in_slot.is_some() {
            return Err(SHORT_OF_MEMORY);
        }
        let in_scratch = || {
            let scratch = &state_file.partition_head(partition).scratch;
            scratch.find(cookie, sent, count).map(Place::Scratch)
        };
        in_slot
            .or_else(in_scratch)
            .map(|place| (count, place))
            .ok_or("the bytes that are owed were not found")
    }
}

/// The positions in the stream by those that the kernel has counted, which include a header that stands
/// before it.  The header was recorded before it was taken, and it is taken by one read.
fn behind_header(found: Positions, before: Before) -> Result<(Positions, Before), &'static str> {
    match (before, found.received.checked_sub(before.length())) {
        (Before::Nothing, _) => Ok((found, before)),
        (Before::Taken(_), Some(received)) => Ok((Positions { received, ..found }, before)),
        _ if found.received == 0 => Ok((found, Before::Header)),
        _ => Err("a part of its PROXY header was read"),
    }
}

/// The positions that a record has.
fn recorded_positions(record: &Record) -> Positions {
    Positions {
        received: record.received,
        sent: record.sent,
        finished: false,
        over: false,
        input: true,
        quiet: Duration::ZERO,
    }
}

/// How many bytes were read from a connection at least, by its record.  A header may be recorded and not
/// read yet.  If a record that nothing has noticed to be wrong says too many, bytes seem to be owed that
/// are found nowhere.
fn surely_read(record: &Record) -> u64 {
    match record.before {
        Before::Nothing => record.received,
        Before::Header | Before::Taken(_) => 0,
    }
}

/// Whether bytes were read from a connection and not written to it, by the kernel's counters.
fn is_owed(socket: &OwnedFd, record: &Record) -> bool {
    positions(socket, 0)
        .is_ok_and(|found| !found.finished && found.received != found.sent + record.before.length())
}

/// Whether the kernel counts the bytes of a stream.  It does not count those of a Unix stream, and not
/// all of those of Multipath TCP.
fn is_counted(socket: &OwnedFd) -> bool {
    SockRef::from(socket).protocol().ok().flatten() == Some(Protocol::TCP)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsFd, BorrowedFd};

    use super::super::crash_guard::CrashGuard;
    use super::super::layout::{ConnectionRecord, Geometry};
    use super::super::partition::{Partition, RecordId};
    use super::super::state_file::Taken;
    use super::*;
    use crate::echo::buffers::BufferStore;
    use crate::sys::memory::Word;

    const SMALL: Geometry = Geometry {
        partitions: 1,
        records: 8,
    };

    /// A process with two connections, and what the manager stores of it.
    struct Process {
        state_file: Arc<StateFile>,
        partition: Partition,
        queue: Queue,
        fd_queue: FdQueue,
        /// Each with its client.
        sockets: Vec<(TcpStream, TcpStream)>,
        cookies: Vec<u64>,
    }

    impl Process {
        fn new() -> Self {
            let (state_file, mut payloads) = StateFile::create(SMALL, 1).unwrap();
            let state_file = Arc::new(state_file);
            let mut partition = Partition::new(state_file.clone(), 0, payloads.remove(0));
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let sockets: Vec<_> = (0..2)
                .map(|_| {
                    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                    (listener.accept().unwrap().0, client)
                })
                .collect();
            let (mut fd_queue, queue) = FdQueue::new(2).unwrap();
            let mut cookies = Vec::new();
            for (number, (socket, _)) in sockets.iter().enumerate() {
                let cookie = SockRef::from(socket).cookie().unwrap();
                cookies.push(cookie);
                partition.add_record(&Record {
                    cookie,
                    began: 1,
                    number: number as u64,
                    listener: 0,
                    before: Before::Nothing,
                    received: 0,
                    sent: 0,
                });
                fd_queue.append(&[socket.as_fd()]).unwrap();
            }
            Self {
                state_file,
                partition,
                queue,
                fd_queue,
                sockets,
                cookies,
            }
        }

        /// A client sends bytes, which are read and not written; `kept`: they are copied into a slot.
        fn read(&mut self, number: usize, bytes: &[u8], kept: bool) {
            let (socket, client) = &mut self.sockets[number];
            client.write_all(bytes).unwrap();
            let owner = self.cookies[number];
            self.partition.begin_read(owner, 0);
            let scratch = self.partition.scratch();
            socket.read_exact(&mut scratch[..bytes.len()]).unwrap();
            if kept {
                let _ = self.partition.keep(owner, 0..bytes.len(), 0).unwrap();
            }
        }

        /// What the next process recovers, and the connections that go on.
        fn recover(&self, max_connections: usize) -> (Recovered, Vec<RecoveredConnection>) {
            let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
            let stored = StoredFds::sort(vec![
                (fd_queue_name(2), duplicate(self.queue.as_fd())),
                (
                    state_file_name(1),
                    duplicate(self.state_file.file().unwrap()),
                ),
                (fd_queue_name(2), duplicate(self.fd_queue.as_fd())),
            ]);
            examine_all(stored.recover(max_connections))
        }
    }

    /// Examines the connections that were found.
    fn examine_all(mut recovered: Recovered) -> (Recovered, Vec<RecoveredConnection>) {
        let found = std::mem::take(&mut recovered.found).into_iter();
        let connections = found.filter_map(|found| recovered.examine(found)).collect();
        (recovered, connections)
    }

    fn owed(connections: &[RecoveredConnection], cookie: u64) -> Option<(usize, Place)> {
        let connection = |connection: &&RecoveredConnection| connection.record.cookie == cookie;
        connections.iter().find(connection).unwrap().owed
    }

    #[test]
    fn owed_bytes_are_found_in_a_slot_and_in_the_scratch() {
        let mut process = Process::new();
        process.read(0, b"in a slot", true);
        process.read(1, b"in the scratch", false);
        // Each process that crashes before it serves leaves everything as it was.
        for crashes in 0..3 {
            let (recovered, connections) = process.recover(9);
            assert_eq!((recovered.before, connections.len()), (2, 2));
            assert_eq!((recovered.planned, recovered.crashes), (false, crashes));
            assert!(recovered.fd_queue.is_some() && recovered.unusable.is_none());
            let slot = owed(&connections, process.cookies[0]);
            assert_eq!(slot, Some((9, Place::Slot(0, 0))));
            let scratch = owed(&connections, process.cookies[1]);
            assert_eq!(scratch, Some((14, Place::Scratch(0))));
        }
    }

    #[test]
    fn a_header_was_taken_as_a_whole_or_is_looked_at_again() {
        let taken = Before::Taken(Taken {
            length: 7,
            addresses: None,
        });
        let header = Before::Header;
        for (before, read, expected) in [
            (taken, &b""[..], Some((header, 0))),
            (taken, b"header", None),
            (taken, b"header:", Some((taken, 0))),
            (taken, b"header:data", Some((taken, 4))),
            (header, b"", Some((header, 0))),
            (header, b"h", None),
            (Before::Nothing, b"data", Some((Before::Nothing, 4))),
        ] {
            let mut process = Process::new();
            let record = Record {
                before,
                ..process.state_file.read_record(0, 0).unwrap()
            };
            process.partition.remove_record(RecordId::new(0).unwrap());
            process.partition.add_record(&record).unwrap();
            process.read(0, read, false);
            // Header and stream are read one after the other, and the scratch has the last read.
            let owner = process.cookies[0];
            let header = usize::try_from(before.length()).unwrap().min(read.len());
            process
                .partition
                .scratch()
                .copy_within(header..read.len(), 0);
            let (_, connections) = process.recover(9);
            let found = connections
                .iter()
                .find(|connection| connection.record.cookie == owner);
            let found = found.map(|found| (found.record.before, found.positions.received));
            assert_eq!(found, expected, "{before:?}, {} bytes read", read.len());
            if let Some((_, count)) = expected.filter(|(_, count)| *count > 0) {
                let count = usize::try_from(count).unwrap();
                assert_eq!(owed(&connections, owner), Some((count, Place::Scratch(0))));
            }
        }
    }

    #[test]
    fn a_crash_while_positions_are_recorded_loses_no_connection() {
        // The process is killed after each of the stores, and before the first.
        for stores in 0..=3 {
            let mut process = Process::new();
            process.read(0, b"in a slot", true);
            let words = |process: &Process| {
                let words: &ConnectionRecord = process.state_file.record_words(0, 0);
                [&words.received, &words.sent, &words.positions_check].map(Word::get)
            };
            let before = words(&process);
            let mut record = process.state_file.read_record(0, 0).unwrap();
            record.received = 9;
            process.partition.record(RecordId::new(0).unwrap(), &record);
            let record = process.state_file.record_words(0, 0);
            let places = [&record.received, &record.sent, &record.positions_check];
            for (word, value) in places.into_iter().zip(before).skip(stores) {
                word.set(value);
            }
            let (recovered, connections) = process.recover(9);
            assert_eq!(
                (recovered.before, connections.len()),
                (2, 2),
                "after {stores}"
            );
            assert!(recovered.lost.is_empty(), "after {stores}");
            let slot = owed(&connections, process.cookies[0]);
            assert_eq!(slot, Some((9, Place::Slot(0, 0))), "after {stores}");
        }
    }

    #[test]
    fn a_connection_whose_owed_bytes_are_nowhere_is_reset() {
        let mut process = Process::new();
        process.read(0, b"overwritten by the next", false);
        process.read(1, b"next", false);
        let (recovered, connections) = process.recover(9);
        assert_eq!(connections.len(), 1);
        assert_eq!(recovered.lost["the bytes that are owed were not found"], 1);
        // The end of the stream would say that all came back.
        let error = process.sockets[0].1.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_connection_without_a_record_or_beyond_the_maximum_is_closed() {
        let mut process = Process::new();
        process.partition.remove_record(RecordId::new(0).unwrap());
        let (recovered, connections) = process.recover(9);
        assert_eq!((recovered.before, connections.len()), (1, 1));
        assert!(recovered.lost.is_empty());
        assert_eq!(process.sockets[0].1.read(&mut [0]).unwrap(), 0);
        let (recovered, connections) = process.recover(0);
        assert_eq!((recovered.before, connections.len()), (1, 0));
        assert_eq!(recovered.lost[TOO_FEW_DESCRIPTORS], 1);
        assert_eq!(process.sockets[1].1.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_connection_that_was_being_served_at_three_crashes_in_a_row_is_closed() {
        for spread in [false, true] {
            let process = Process::new();
            for crash in 0..4 {
                let (recovered, connections) = process.recover(9);
                let is_culprit = !spread && crash == 3;
                assert_eq!(connections.len(), if is_culprit { 1 } else { 2 }, "{crash}");
                assert_eq!(recovered.lost.len(), usize::from(is_culprit));
                // The process crashes before its first full round, while it serves one of them.
                let victim = if spread { crash % 2 } else { 0 };
                let crash_guard = CrashGuard::new(process.state_file.clone());
                drop(crash_guard.take(process.cookies[victim]));
            }
        }
    }

    #[test]
    fn after_a_full_round_or_a_hand_over_no_crash_counts() {
        let process = Process::new();
        for planned in [false, true] {
            for _ in 0..5 {
                let (recovered, connections) = process.recover(9);
                assert_eq!((connections.len(), recovered.crashes), (2, 0));
                let crash_guard = CrashGuard::new(process.state_file.clone());
                drop(crash_guard.take(process.cookies[0]));
                if planned {
                    process.state_file.hand_over();
                } else {
                    crash_guard.forget();
                }
            }
        }
    }

    #[test]
    fn after_a_hundred_crashes_in_a_row_all_connections_are_closed() {
        let mut process = Process::new();
        for crashes in 0..MAX_CRASHES {
            let (recovered, connections) = process.recover(9);
            assert_eq!((connections.len(), recovered.crashes), (2, crashes));
        }
        let (recovered, connections) = process.recover(9);
        assert!(matches!(
            recovered.unusable,
            Some(Unusable::Crashes(MAX_CRASHES))
        ));
        assert!(connections.is_empty());
        assert_eq!(process.sockets[0].1.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn of_several_queues_the_latest_that_is_complete_goes_on() {
        let process = Process::new();
        let all = |fd_queue: &mut FdQueue| {
            for (socket, _) in &process.sockets {
                fd_queue.append(&[socket.as_fd()]).unwrap();
            }
        };
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
        // How many of the connections the new queue has; whether both of its ends are there.
        for (count, both_ends, expected) in
            [(2, true, 3), (2, false, 2), (1, true, 2), (0, true, 2)]
        {
            let (mut fd_queue, queue) = FdQueue::new(3).unwrap();
            match count {
                2 => all(&mut fd_queue),
                1 => fd_queue.append(&[process.sockets[1].0.as_fd()]).unwrap(),
                _ => {}
            }
            let mut passed = vec![
                (fd_queue_name(3), duplicate(queue.as_fd())),
                (fd_queue_name(2), duplicate(process.queue.as_fd())),
                (
                    state_file_name(1),
                    duplicate(process.state_file.file().unwrap()),
                ),
                (fd_queue_name(2), duplicate(process.fd_queue.as_fd())),
            ];
            if both_ends {
                passed.push((fd_queue_name(3), duplicate(fd_queue.as_fd())));
            }
            let (recovered, connections) = examine_all(StoredFds::sort(passed).recover(9));
            assert_eq!(connections.len(), 2);
            let fd_queue = recovered.fd_queue.unwrap();
            assert_eq!(
                (fd_queue.generation, fd_queue.entries),
                (expected, 2),
                "{count}"
            );
        }
    }

    #[test]
    fn connections_are_recovered_under_former_names_and_need_a_new_queue() {
        let process = Process::new();
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
        let file = duplicate(process.state_file.file().unwrap());
        let stored = StoredFds::sort(vec![
            ("survival-parcel-2".into(), duplicate(process.queue.as_fd())),
            ("survival-arena-1".into(), file),
            (
                "survival-parcel-2".into(),
                duplicate(process.fd_queue.as_fd()),
            ),
        ]);
        let (recovered, connections) = examine_all(stored.recover(9));
        assert_eq!((recovered.before, connections.len()), (2, 2));
        assert!(recovered.fd_queue.is_none());
        assert_eq!((recovered.generation, recovered.names.len()), (2, 2));
    }

    #[test]
    fn unexpected_names_are_returned() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let stored = StoredFds::sort(vec![
            ("preserve-state-x".into(), one.into()),
            (fd_queue_name(1), other.into()),
        ]);
        assert_eq!(stored.unexpected, ["preserve-state-x", "preserve-queue-1"]);
        let recovered = stored.recover(9);
        assert!(recovered.unusable.is_none() && recovered.names.is_empty());
    }
}
