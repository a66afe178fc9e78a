//! Thousands of scripted connections, seeded: the echo in a world without sockets.
//!
//! The kernel here is a model of what the design rests on (see `kernel`): pipes with bounded
//! buffers, a network that delivers and acknowledges late, edge-triggered announcements (once, when
//! something new can be read or written and the registration asks for it), registration anew that
//! announces again, reads that stop at urgent marks and behind passed descriptors, resets,
//! interruptions.  Peers act between any two system calls of the service.  The service is the table
//! of connections and its rounds, as they are (`echo::connections::run_round`).
//!
//! Checked after every turn or round: each byte that is written is the next one of what was read; no
//! connection is forgotten (one that could go on is announced, or stands in the ready list); no
//! deadline is missed; nothing that arrived before a time-out was acted on is lost to it; after a
//! stop the FIN waits for silence; no connection is closed while lingering before the peer has
//! acknowledged everything or its time is over; the reason of every end is true; in the end every
//! peer got everything back, or the clock jumps and no connection is left.
//!
//! The message of a failure names its seed.  `TCP_ECHO_SEED=n` runs that one alone,
//! `TCP_ECHO_SEEDS=n` asks for more of them.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use tcp_echo::echo::buffers::HeapStore;
use tcp_echo::echo::connection::{Connection, Hint, Phase, Want};
use tcp_echo::echo::connections::{Allowance, Connections, EventLoop, Outcome, run_round};
use tcp_echo::echo::deadlines::Deadline;
use tcp_echo::echo::end_reason::{EndReason, Summary};
use tcp_echo::echo::stream::Duplex;
use tcp_echo::echo::time::MonoTime;
use tcp_echo::echo::{GRACE, LINGER, Limits, SCRATCH, TURN_BYTES};

/// Worlds, unless asked otherwise.
const SEEDS: u64 = 240;

/// Connections in each.
const CONNECTIONS: u64 = 150;

/// Open at the same time, at most.
const OPEN: usize = 24;

#[test]
fn whatever_happens_every_byte_comes_back_and_no_connection_is_forgotten() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("TCP_ECHO_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TCP_ECHO_SEEDS").unwrap_or(SEEDS),
    };
    let mut reasons = [0; EndReason::ALL.len()];
    let (mut connections, mut bytes) = (0, 0);
    let all = seeds.end - seeds.start > 1;
    for seed in seeds {
        let counters = catch_unwind(AssertUnwindSafe(|| World::new(seed).run()));
        let counters = counters.unwrap_or_else(|_| {
            panic!("the world of seed {seed} broke; TCP_ECHO_SEED={seed} shows it again")
        });
        connections += counters.accepted;
        bytes += counters.sent;
        for (sum, (_, count)) in reasons.iter_mut().zip(counters.by_reason()) {
            *sum += count;
        }
    }
    println!("{connections} connections, {bytes} bytes, ended: {reasons:?}");
    if all {
        // A world in which something never happens tests nothing of it.
        for (row, count) in EndReason::ALL.iter().zip(reasons) {
            // The model has no other errors, and no earlier process.
            let cannot = [
                "error",
                "not-restored",
                "header-invalid",
                "untrusted",
                "max-connections-per-source",
            ]
            .contains(&row.word);
            assert!(count > 0 || cannot, "nothing ended as {}", row.word);
        }
    }
}

/// A reproducible source of chance (splitmix64).
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }
}

/// The bytes of every stream, from a position on.
fn bytes_at(position: u64, most: usize) -> &'static [u8] {
    static PATTERN: std::sync::OnceLock<testkit::Pattern> = std::sync::OnceLock::new();
    let pattern = PATTERN.get_or_init(|| testkit::Pattern::new(3, 1 << 16));
    pattern.piece(position, most)
}

/// How a peer behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// Sends and reads as it comes.
    Normal,
    /// Sends all before it reads.
    WriteFirst,
    /// Never reads.
    Deaf,
    /// Never ends its stream.
    Patient,
    /// Resets at some point, or becomes unreachable.
    Rude,
}

/// A pipe in both directions, its registration, and its peer.
#[derive(Debug)]
struct Pipe {
    chance: Chance,
    habit: Habit,
    /// A read may stop short without a further announcement: a Unix stream with descriptors.
    unix: bool,
    /// Parts of a header that are still to come before anything else; `None`: the header was taken, or
    /// there is none.
    header: Option<u64>,
    /// Part of a header has come since the service looked at it.
    header_grew: bool,
    /// Bytes that the peer has still to send.
    plan: u64,
    /// Positions in the peer's stream: sent by it, read by the service.
    sent: u64,
    read: u64,
    /// Positions in the service's stream, each at most the one before: written by it, sent by its
    /// kernel, acknowledged by that of the peer, read by the peer.
    written: u64,
    transmitted: u64,
    acknowledged: u64,
    taken: u64,
    /// The sizes of three buffers: what was sent by the peer and not read by the service; what was
    /// written and not acknowledged; what was sent and not read by the peer.
    receive_room: u64,
    send_room: u64,
    peer_room: u64,
    /// Where a read stops, if the peer marked something as urgent.
    mark: Option<u64>,
    peer_finished: bool,
    finished: bool,
    reset: bool,
    /// Instead of a reset the peer became unreachable, with this number of errno(3).
    unreachable: Option<i32>,
    /// The registration, and whether it has something to announce.
    interest: Want,
    announced: bool,
    /// A write found too little room, so that an event announces room.
    wants_room: bool,
    /// Nothing happens by chance any more.
    calm: bool,
    /// The last call was interrupted.
    interrupted: bool,
    /// When draining for a stop began.
    stopped: Option<MonoTime>,
    /// When it was opened, when a byte last moved, when the service sent its FIN, and the clock of the
    /// world.
    began: MonoTime,
    /// It was seen to end because of its age.
    aged: bool,
    moved: MonoTime,
    lingers: Option<MonoTime>,
    clock: Rc<Cell<MonoTime>>,
}

impl Pipe {
    fn new(chance: &mut Chance, clock: &Rc<Cell<MonoTime>>) -> Self {
        let plan = match chance.below(8) {
            0 => 0,
            1..=4 => chance.below(300),
            5 => chance.below(20_000),
            6 => chance.below(200_000),
            _ => chance.below(600_000),
        };
        let buffers = [1, 7, 500, 4096, 20_000, 65_536, 200_000, 500_000];
        let habit = match chance.below(16) {
            0..=8 => Habit::Normal,
            9..=10 => Habit::WriteFirst,
            11 => Habit::Deaf,
            12..=13 => Habit::Patient,
            _ => Habit::Rude,
        };
        // Or it takes for ever.
        let least = if plan > 5000 { 500 } else { 1 };
        let header = chance.one_in(4).then(|| chance.below(4));
        let mut room = || chance.of(&buffers).max(least);
        let (receive_room, send_room, peer_room) = (room(), room(), room());
        Self {
            habit,
            unix: chance.one_in(5),
            header,
            header_grew: header == Some(0),
            plan,
            sent: 0,
            read: 0,
            written: 0,
            transmitted: 0,
            acknowledged: 0,
            taken: 0,
            receive_room,
            send_room,
            peer_room,
            mark: None,
            peer_finished: false,
            finished: false,
            reset: false,
            unreachable: None,
            interest: Want::Read,
            announced: false,
            wants_room: false,
            calm: false,
            interrupted: false,
            stopped: None,
            began: clock.get(),
            aged: false,
            moved: clock.get(),
            lingers: None,
            clock: Rc::clone(clock),
            chance: Chance(chance.next()),
        }
    }

    /// When the FIN may be sent after a stop.
    fn silent_at(&self, since: MonoTime) -> MonoTime {
        (self.moved.max(since) + GRACE).min(since + LINGER)
    }

    fn free(&self) -> u64 {
        self.send_room - (self.written - self.acknowledged)
    }

    /// What poll(2) would say.
    fn is_ready(&self, want: Want) -> bool {
        self.reset
            || match want {
                Want::Read if self.header.is_some() => self.header_grew,
                Want::Read => self.sent > self.read || self.peer_finished,
                // As TCP does: not for a few bytes.
                Want::Write => self.free() * 3 >= self.send_room,
            }
    }

    /// Something new happened that is good for `want`; a reset is announced for either.
    fn announce(&mut self, want: Want) {
        if self.interest == want || self.reset {
            self.announced = true;
        }
    }

    /// Registration anew announces what is there (see `kernel`).
    fn register(&mut self, interest: Want) {
        self.interest = interest;
        self.announced = self.is_ready(interest);
    }

    /// What the event says, if there still is something to say when it is collected.
    fn collect(&mut self) -> Option<Hint> {
        if !std::mem::take(&mut self.announced) || !self.is_ready(self.interest) {
            return None;
        }
        // Under interest in room alone neither a FIN nor a mark is announced; descriptors never are.
        let reading = self.interest == Want::Read;
        let closed = self.reset || (reading && self.peer_finished);
        let urgent = reading && self.mark.is_some() && !self.unix;
        Some(if closed || urgent {
            Hint::ReadOn
        } else {
            Hint::Plain
        })
    }

    /// The peer does something, or nothing; first it sends the header, part by part.
    fn peer_acts(&mut self) {
        if let Some(missing) = self.header.filter(|missing| *missing > 0) {
            if self.chance.one_in(3) {
                self.header = Some(missing - 1);
                self.header_grew = true;
                self.announce(Want::Read);
            }
            return;
        }
        match self.chance.below(11) {
            0..=3 => self.peer_sends(),
            4..=6 => self.peer_reads(),
            7 => self.peer_finishes(),
            8..=9 => self.network_acts(),
            _ if self.habit == Habit::Rude && self.chance.one_in(6) => self.peer_resets(),
            _ => {}
        }
    }

    fn peer_sends(&mut self) {
        let room = self.receive_room - (self.sent - self.read);
        let most = self.plan.min(room);
        if self.peer_finished || self.reset || most == 0 {
            return;
        }
        let count = 1 + self.chance.below(most);
        if self.chance.one_in(12) {
            // Only the last mark counts (tcp(7)); a descriptor stands somewhere as well.
            self.mark = Some(self.sent + self.chance.below(count));
        }
        self.sent += count;
        self.plan -= count;
        self.announce(Want::Read);
    }

    fn peer_reads(&mut self) {
        let most = self.acknowledged - self.taken;
        let waits = match self.habit {
            Habit::Deaf => true,
            Habit::WriteFirst => {
                // Until its own sending is stuck, or it is done with it.
                self.plan > 0 && self.sent - self.read < self.receive_room
            }
            _ => false,
        };
        if !waits && !self.reset && most > 0 {
            self.taken += 1 + self.chance.below(most);
        }
    }

    /// Some of what was written is sent, as far as the peer has room for it, and some of what was
    /// sent is acknowledged.
    fn network_acts(&mut self) {
        let some = self.chance.below(1 + self.window() - self.transmitted);
        self.transmitted += some;
        let some = self.chance.below(1 + self.transmitted - self.acknowledged);
        self.acknowledge(self.acknowledged + some);
    }

    /// The position up to which the service's kernel may send.
    fn window(&self) -> u64 {
        self.written.min(self.taken + self.peer_room)
    }

    fn acknowledge(&mut self, position: u64) {
        if self.reset || position == self.acknowledged {
            return;
        }
        self.acknowledged = position;
        if self.wants_room && self.is_ready(Want::Write) {
            self.wants_room = false;
            self.announce(Want::Write);
        }
    }

    fn peer_finishes(&mut self) {
        if self.plan > 0 || self.peer_finished || self.reset || self.habit == Habit::Patient {
            return;
        }
        self.peer_finished = true;
        self.announce(Want::Read);
    }

    fn peer_resets(&mut self) {
        self.reset = true;
        if self.chance.one_in(4) {
            // ENETUNREACH, ETIMEDOUT, EHOSTUNREACH.
            self.unreachable = Some(self.chance.of(&[101, 110, 113]));
        }
        self.announce(self.interest);
    }

    /// From now on the peer sends and reads all, and the network delivers all.
    fn be_good(&mut self) {
        self.calm = true;
        self.habit = Habit::Normal;
    }

    /// A good peer sends and reads all that it can, and finishes.
    fn carry_on(&mut self) {
        while self.header.is_some_and(|missing| missing > 0) {
            self.peer_acts();
        }
        self.peer_sends();
        while self.written > self.taken && !self.reset {
            self.transmitted = self.window();
            self.acknowledge(self.transmitted);
            self.peer_reads();
        }
        self.peer_finishes();
    }

    /// Between two system calls the peer and the network act, and any call may be interrupted.
    fn meanwhile(&mut self) -> io::Result<()> {
        assert_eq!(self.header, None, "the header was not taken");
        self.interrupted = false;
        if !self.calm {
            if self.chance.one_in(2) {
                self.network_acts();
            }
            if self.chance.one_in(4) {
                self.peer_acts();
            }
            if self.chance.one_in(20) {
                self.interrupted = true;
                return Err(ErrorKind::Interrupted.into());
            }
        }
        if self.reset {
            return Err(match self.unreachable {
                Some(errno) => io::Error::from_raw_os_error(errno),
                None => ErrorKind::ConnectionReset.into(),
            });
        }
        Ok(())
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.meanwhile()?;
        if self.sent == self.read {
            return if self.peer_finished {
                Ok(0)
            } else {
                Err(ErrorKind::WouldBlock.into())
            };
        }
        // At the urgent mark a pending signal counts as nothing to read (tcp_recvmsg of Linux).
        let at_mark = self.mark == Some(self.read) && !self.unix;
        if at_mark && !self.calm && self.chance.one_in(3) {
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut count = (self.sent - self.read).min(buffer.len() as u64);
        if let Some(mark) = self.mark {
            if mark > self.read {
                count = count.min(mark - self.read);
            }
        }
        let end = self.read + count;
        let mut rest = &mut buffer[..usize::try_from(count).unwrap()];
        while !rest.is_empty() {
            let bytes = bytes_at(self.read, rest.len());
            let (now, later) = rest.split_at_mut(bytes.len());
            now.copy_from_slice(bytes);
            self.read += bytes.len() as u64;
            rest = later;
        }
        assert_eq!(self.read, end);
        if self.mark.is_some_and(|mark| self.read > mark) {
            self.mark = None;
        }
        self.moved = self.clock.get();
        Ok(usize::try_from(count).unwrap())
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!self.finished, "written after the FIN");
        assert!(!bytes.is_empty(), "nothing to write was written");
        self.meanwhile()?;
        let count = self.free().min(bytes.len() as u64);
        self.wants_room |= count < bytes.len() as u64;
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = usize::try_from(count).unwrap();
        let mut rest = &bytes[..count];
        while !rest.is_empty() {
            let right = bytes_at(self.written, rest.len());
            assert!(
                rest[..right.len()] == *right,
                "wrong bytes at {}",
                self.written
            );
            self.written += right.len() as u64;
            rest = &rest[right.len()..];
        }
        assert!(self.written <= self.read, "more came back than was sent");
        self.moved = self.clock.get();
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Duplex for Pipe {
    fn finish_write(&mut self) -> io::Result<()> {
        assert!(!self.finished, "finished twice");
        assert_eq!(self.written, self.read, "finished with something owed");
        if let Some(since) = self.stopped {
            assert!(
                self.clock.get() >= self.silent_at(since),
                "cut off: {self:?}"
            );
        }
        if self.reset {
            return Err(ErrorKind::NotConnected.into());
        }
        self.finished = true;
        self.lingers = Some(self.clock.get());
        Ok(())
    }

    fn unread(&self) -> Option<u64> {
        (!self.unix).then(|| self.sent - self.read)
    }

    fn unacknowledged(&self) -> u64 {
        // What was written to a Unix stream is with the peer already.
        if self.unix || self.reset {
            return 0;
        }
        self.written - self.acknowledged
    }

    fn unsent(&self) -> u64 {
        if self.unix {
            return 1;
        }
        self.written - self.transmitted
    }

    fn stops_short(&self) -> bool {
        self.unix
    }
}

/// The service, its kernel and its peers.
struct World {
    chance: Chance,
    clock: Rc<Cell<MonoTime>>,
    connections: Connections<Pipe, HeapStore>,
    limits: Limits,
    /// The keys in use.
    keys: Vec<usize>,
    /// Those whose header was taken in this round.
    begun: Vec<usize>,
    arrived: u64,
    stopping: bool,
    /// What is left of the allowance of the round.
    left: Allowance,
    /// Summaries, to be compared with the counters.
    over: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let limits = some_limits(&mut chance);
        Self {
            clock: Rc::new(Cell::new(MonoTime::new(1 << 60))),
            connections: Connections::new(limits.clone(), HeapStore::new()),
            limits,
            keys: Vec::new(),
            begun: Vec::new(),
            arrived: 0,
            stopping: false,
            left: Allowance::default(),
            over: 0,
            chance,
        }
    }

    fn now(&self) -> MonoTime {
        self.clock.get()
    }

    fn run(mut self) -> tcp_echo::echo::counters::Counters {
        while self.arrived < CONNECTIONS {
            for _ in 0..=self.chance.below(12) {
                self.something_happens();
            }
            self.round();
        }
        if self.chance.one_in(2) {
            self.all_peers_finish();
        } else {
            self.the_service_stops();
        }
        assert!(self.connections.is_empty() && self.keys.is_empty());
        assert_eq!(
            (self.connections.ready(), self.connections.next_due()),
            (0, None)
        );
        let counters = self.connections.counters();
        assert_eq!(counters.accepted, self.arrived);
        assert_eq!((counters.open(), counters.closed()), (0, self.over));
        counters
    }

    fn something_happens(&mut self) {
        match self.chance.below(40) {
            0..=7 if self.keys.len() < OPEN => self.arrive(),
            8..=29 if !self.keys.is_empty() => {
                let key = self.chance.of(&self.keys);
                self.connections.stream_mut(key).peer_acts();
            }
            30..=36 => {
                let span = self.chance.of(&[1, 5, 20, 100, 300, 1000]);
                let span = Duration::from_millis(self.chance.below(span));
                self.clock.set(self.now() + span);
            }
            37 if self.chance.one_in(4) => {
                self.limits = some_limits(&mut self.chance);
                self.connections.set_limits(self.limits.clone());
            }
            38 => {
                // An event that is too late: for no connection, for another one, or for nothing.
                let key = usize::try_from(self.chance.below(2 * OPEN as u64)).unwrap();
                let hint = self.chance.of(&[Hint::Plain, Hint::ReadOn]);
                self.connections.queue(key, hint);
            }
            39 if !self.keys.is_empty() && self.chance.one_in(10) => {
                let key = self.chance.of(&self.keys);
                self.drain(key);
            }
            _ => {}
        }
        self.connections.check();
    }

    fn arrive(&mut self) {
        let mut pipe = Pipe::new(&mut self.chance, &self.clock);
        // The peer may have sent something before it was accepted.
        for _ in 0..self.chance.below(4) {
            pipe.peer_acts();
        }
        pipe.register(Want::Read);
        let now = self.now();
        let key = if pipe.header.is_some() {
            let due = now + Duration::from_millis(self.chance.below(3000));
            self.connections.insert_behind_header(pipe, due, now)
        } else {
            self.connections.insert(pipe, now)
        };
        assert!(!self.keys.contains(&key), "a key was used twice");
        self.keys.push(key);
        self.arrived += 1;
        if self.stopping {
            self.drain(key);
        }
    }

    fn drain(&mut self, key: usize) {
        self.record_stop(key);
        self.connections.drain(key, self.now());
    }

    /// Records in the pipe that it is drained for a stop, unless it is drained already.
    fn record_stop(&mut self, key: usize) {
        let now = self.now();
        let phase = self
            .connections
            .connection(key)
            .expect("it is taken")
            .phase();
        if phase == Phase::Echoing {
            self.connections.stream_mut(key).stopped = Some(now);
        }
    }

    /// One round: events, and what they and the clock lead to.
    fn round(&mut self) {
        self.begun.clear();
        let mut events = Vec::new();
        for key in &self.keys {
            if let Some(hint) = self.connections.stream_mut(*key).collect() {
                events.push((*key, hint));
            }
        }
        for _ in 0..events.len() {
            // In any order; what happens in the meantime is announced in the next round.
            let next = usize::try_from(self.chance.below(events.len() as u64)).unwrap();
            let (key, hint) = events.swap_remove(next);
            self.connections.queue(key, hint);
        }
        let usual = Allowance::default();
        let allowance = Allowance {
            bytes: self
                .chance
                .of(&[usual.bytes, usual.bytes, 100_000, 10_000, 1]),
            deadlines: self.chance.of(&[usual.deadlines, usual.deadlines, 2, 1]),
        };
        let now = self.now();
        self.left = run_round(self, allowance, now);
        self.no_connection_is_forgotten();
    }

    fn settle(&mut self, key: usize, turn: Outcome) {
        match turn {
            Outcome::Same => {}
            Outcome::Rearm(want) => self.connections.stream_mut(key).register(want),
            Outcome::Header => self.look_at_header(key),
            Outcome::Over(summary) => {
                let phase = self.connections.connection(key).unwrap().phase();
                let pipe = self.connections.remove(key);
                self.keys.retain(|open| *open != key);
                self.over += 1;
                self.is_true(&summary, phase, &pipe);
                self.connections.check();
            }
        }
    }

    /// Takes the header of a connection, if it is complete.
    fn look_at_header(&mut self, key: usize) {
        let now = self.now();
        let pipe = self.connections.stream_mut(key);
        pipe.header_grew = false;
        if pipe.header != Some(0) {
            let outcome = self.connections.header_missing(key, now);
            return self.settle(key, outcome);
        }
        pipe.header = None;
        pipe.moved = now;
        self.connections.header_taken(key, now);
        self.begun.push(key);
        let phase = self.connections.connection(key).map(Connection::phase);
        if matches!(phase, Some(Phase::Draining { .. })) {
            self.connections.stream_mut(key).stopped = Some(now);
        }
    }

    /// The summary of a connection is what its pipe has seen.
    fn is_true(&self, summary: &Summary, phase: Phase, pipe: &Pipe) {
        let about = format!("{summary:?} {phase:?} {pipe:?}");
        assert_eq!(summary.received, pipe.read, "{about}");
        assert_eq!(summary.sent, pipe.written, "{about}");
        let lingered = matches!(phase, Phase::Lingering { .. });
        // The FIN fails after a reset since the last read.
        let failed = lingered && pipe.reset;
        assert!(pipe.finished == lingered || failed, "{about}");
        if !lingered {
            assert_eq!(summary.owed, pipe.read - pipe.written, "{about}");
        }
        let quiet = self.now().since(pipe.moved);
        match summary.reason {
            EndReason::PeerClosed => {
                assert!(pipe.peer_finished && pipe.read == pipe.sent, "{about}");
                assert_eq!(pipe.read, pipe.written, "{about}");
            }
            EndReason::HeaderTimeout => {
                let Phase::Header { due, .. } = phase else {
                    panic!("{about}");
                };
                assert!(self.now() >= due && pipe.header > Some(0), "{about}");
            }
            EndReason::Shutdown | EndReason::MaxLifetime | EndReason::MaxBytes => {
                assert!(lingered || summary.owed == 0, "{about}");
                // Not before its time, nor before the peer has everything.
                if let (Some(sent), false) = (pipe.lingers, pipe.reset || pipe.peer_finished) {
                    assert!(self.now().since(sent) >= LINGER, "{about}");
                    assert_eq!(pipe.unacknowledged(), 0, "{about}");
                }
            }
            EndReason::Reset => assert!(pipe.reset && pipe.unreachable.is_none(), "{about}"),
            EndReason::NotRestored => panic!("there was no predecessor: {about}"),
            EndReason::TimedOut => assert!(pipe.unreachable.is_some(), "{about}"),
            EndReason::IdleTimeout => {
                assert!(
                    self.limits.idle.is_some_and(|span| quiet >= span),
                    "{about}"
                );
                assert_eq!(summary.owed, 0, "{about}");
                // It had a last turn, which would have read what had arrived.
                let silent = pipe.read == pipe.sent && !pipe.peer_finished && !pipe.reset;
                assert!(silent, "{about}");
            }
            EndReason::StallTimeout => {
                let stalled = self.limits.stall.is_some_and(|span| quiet >= span);
                assert!(stalled && summary.owed > 0, "{about}");
                assert!(pipe.free() == 0 && !pipe.reset, "{about}");
            }
            EndReason::StopTimeout => match phase {
                Phase::Echoing | Phase::Header { .. } => panic!("{about}"),
                Phase::Draining { since, .. } | Phase::Finishing { since, .. } => {
                    let most = self.limits.stop_timeout.max(LINGER);
                    assert!(self.now().since(since) >= most, "{about}");
                }
                Phase::Lingering { until, .. } => {
                    assert!(self.now() >= until, "{about}");
                    assert!(pipe.unacknowledged() > 0, "{about}");
                }
            },
            EndReason::Error(_)
            | EndReason::HeaderInvalid
            | EndReason::Untrusted
            | EndReason::MaxConnectionsPerSource => panic!("{about}"),
        }
    }

    /// A connection that could go on is announced, or stands in the ready list; one that is due was
    /// acted on, unless the allowance was used up.
    fn no_connection_is_forgotten(&mut self) {
        self.connections.check();
        let used_up = self.left.bytes == 0 || self.left.deadlines == 0;
        let now = self.now();
        for key in self.keys.clone() {
            let queued = self.connections.is_queued(key);
            let connection = self.connections.connection(key).expect("it has not ended");
            let (want, phase) = (connection.want(), connection.phase());
            let due = connection.due(&self.limits);
            let overdue = due.is_some_and(|(at, _)| at <= now);
            // A deadline that begins with the stream may have passed then; the next round acts on it.
            let begins = self.begun.contains(&key);
            assert!(
                !overdue || queued || used_up || begins,
                "{due:?} has passed"
            );
            if let Phase::Lingering { since, until, .. } = phase {
                let most = (since + LINGER).min(until);
                assert_eq!(due, Some((most, Deadline::Linger)));
            }
            let pipe = self.connections.stream_mut(key);
            let age = now.since(pipe.began);
            let aged = matches!(
                phase,
                Phase::Draining { reason, .. }
                    | Phase::Finishing { reason, .. }
                    | Phase::Lingering { reason, .. }
                    if reason == EndReason::MaxLifetime
            );
            if aged && !std::mem::replace(&mut pipe.aged, aged) {
                // Not before its last tenth.
                let in_time = |span: Duration| age >= span - span / 10;
                assert!(self.limits.lifetime.is_some_and(in_time), "{age:?}");
            }
            if queued {
                continue;
            }
            if phase == Phase::Echoing && !used_up && !begins {
                let late = self.limits.lifetime.is_some_and(|span| age >= span);
                assert!(!late, "{age:?} of {:?}", self.limits.lifetime);
            }
            assert_eq!(pipe.interest, want, "registered for the wrong thing");
            assert_eq!(
                want == Want::Write,
                pipe.read > pipe.written && !pipe.finished
            );
            assert!(
                pipe.announced || !pipe.is_ready(want),
                "forgotten: wants {want:?} in {phase:?}: {pipe:?}"
            );
            if let (
                Phase::Draining { since, reason } | Phase::Finishing { since, reason, .. },
                Want::Read,
            ) = (phase, want)
            {
                // Only after a stop a drained connection waits for silence, with a deadline.
                assert_eq!(
                    (reason, pipe.stopped),
                    (EndReason::Shutdown, Some(since)),
                    "{pipe:?}"
                );
                let silent = pipe.silent_at(since);
                assert!(now < silent || used_up, "the FIN is late: {pipe:?}");
                assert!(
                    due.is_some_and(|(at, _)| at <= silent),
                    "no deadline: {pipe:?}"
                );
            }
        }
    }

    /// Every peer sends the rest, reads all and finishes: no deadline is needed.
    fn all_peers_finish(&mut self) {
        self.limits = Limits {
            idle: None,
            stall: None,
            lifetime: None,
            bytes: None,
            stop_timeout: Duration::from_secs(3600),
        };
        self.connections.set_limits(self.limits.clone());
        for key in self.keys.clone() {
            self.connections.stream_mut(key).be_good();
        }
        let mut rounds = 2_000_000;
        while !self.keys.is_empty() {
            for key in self.keys.clone() {
                self.connections.stream_mut(key).carry_on();
            }
            self.round();
            rounds -= 1;
            assert!(rounds > 0, "it does not end: {:?}", self.keys);
        }
    }

    /// All connections are drained, and then the clock jumps.
    fn the_service_stops(&mut self) {
        self.stopping = true;
        for key in self.keys.clone() {
            self.record_stop(key);
        }
        self.connections.drain_all(self.now());
        assert_eq!(self.connections.ready(), self.keys.len());
        for _ in 0..self.chance.below(20) {
            for _ in 0..=self.chance.below(12) {
                self.something_happens();
            }
            self.round();
        }
        if self.chance.one_in(4) {
            // The second signal.
            for (key, turn) in self.connections.abandon(|_| true, self.now()) {
                let Outcome::Over(summary) = turn else {
                    panic!("{turn:?}")
                };
                let pipe = self.connections.remove(key);
                let abandoned = summary.reason == EndReason::StopTimeout;
                let lacks = !pipe.finished || pipe.unacknowledged() > 0;
                assert_eq!(abandoned, lacks, "{summary:?} {pipe:?}");
                self.over += 1;
            }
            self.keys.clear();
            return;
        }
        self.limits.stop_timeout = self.limits.stop_timeout.min(Duration::from_secs(10));
        self.connections.set_limits(self.limits.clone());
        // Draining, for at most as long as it may take, and then lingering.
        for _ in 0..2 {
            self.clock.set(self.now() + Duration::from_secs(10));
            self.round();
        }
        let mut rounds = 0;
        while !self.keys.is_empty() {
            // Those whose turn was interrupted, or that the allowance left over.
            self.clock.set(self.now() + LINGER);
            self.round();
            rounds += 1;
            assert!(rounds < 200, "left behind: {:?}", self.keys);
        }
    }
}

impl EventLoop for World {
    type Stream = Pipe;
    type Store = HeapStore;

    fn connections(&mut self) -> &mut Connections<Pipe, HeapStore> {
        &mut self.connections
    }

    fn on_turn(&mut self, key: usize, outcome: Outcome) {
        let moved = self.connections.moved();
        assert!(moved.received <= TURN_BYTES as u64, "{moved:?} in one turn");
        assert!(
            moved.sent <= (TURN_BYTES + SCRATCH) as u64,
            "{moved:?} in one turn"
        );
        self.settle(key, outcome);
        self.connections.check();
    }
}

fn some_limits(chance: &mut Chance) -> Limits {
    let mut span = |often, most| {
        let milliseconds = 1 + chance.below(most);
        chance
            .one_in(often)
            .then(|| Duration::from_millis(milliseconds))
    };
    let (idle, stall, lifetime) = (span(3, 20_000), span(2, 20_000), span(4, 30_000));
    Limits {
        idle,
        stall,
        lifetime,
        bytes: chance.one_in(4).then(|| chance.below(100_000)),
        stop_timeout: Duration::from_millis(chance.below(10_000)),
    }
}
