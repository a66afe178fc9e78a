//! Thousands of scripted conversations, seeded: the shard in a world without sockets.
//!
//! The kernel here is a model of what the design rests on (see `kernel`): pipes with bounded
//! buffers, edge-triggered announcements (once, when something new can be read or written and the
//! registration asks for it), registration anew that announces again, reads that stop at urgent
//! marks and behind passed descriptors, resets, interruptions.  Peers act between any two system
//! calls of the daemon.  The daemon is the shard, driven by a copy of the loop in `server`.
//!
//! The promises, checked after every step or round: each byte that is written is the next one of
//! what was read; no connection is forgotten (whoever could go on is announced, or stands in the
//! ready list); no deadline is missed; nothing that arrived before a time-out was noticed is lost
//! to it; after a stop our FIN waits for silence; every reason is true; at the end everybody got everything
//! back, or the clock jumps and nobody is left.
//!
//! The message of a failure names its seed.  `TCP_ECHO_SEED=n` runs that one alone,
//! `TCP_ECHO_SEEDS=n` asks for more of them.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use tcp_echo::echo::backlog::Heap;
use tcp_echo::echo::connection::{Hint, Want};
use tcp_echo::echo::duplex::Duplex;
use tcp_echo::echo::phase::Phase;
use tcp_echo::echo::reason::{Reason, Summary};
use tcp_echo::echo::shard::{Shard, Turn};
use tcp_echo::echo::tick::Tick;
use tcp_echo::echo::{BUDGET, GRACE, LINGER, Limits, SCRATCH};

/// Worlds, unless asked otherwise.
const SEEDS: u64 = 240;

/// Connections in each.
const CONNECTIONS: u64 = 150;

/// Open at the same time, at most.
const OPEN: usize = 24;

/// Bytes that may move in a round, as in the server.
const ROUND: u64 = 4 * 1024 * 1024;

/// What the shortest turn costs of it, as in the server.
const LEAST: u64 = 4096;

#[test]
fn whatever_happens_every_byte_comes_back_and_nobody_is_forgotten() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("TCP_ECHO_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TCP_ECHO_SEEDS").unwrap_or(SEEDS),
    };
    let mut reasons = [0; Reason::KINDS.len()];
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
        for (kind, count) in Reason::KINDS.iter().zip(reasons) {
            // Lost is who was left by a predecessor, of whom there is none here.
            let cannot = ["error", "lost"].contains(kind);
            assert!(count > 0 || cannot, "nothing ended as {kind}");
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

/// The bytes of every stream, from a position on: their period is a prime number, so that nothing
/// that is lost, doubled or moved looks right.
fn bytes_at(position: u64, most: usize) -> &'static [u8] {
    const PERIOD: usize = 131_071;
    static NOISE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let noise = NOISE.get_or_init(|| crate::daemon::pattern(3, PERIOD));
    let from = usize::try_from(position % PERIOD as u64).unwrap();
    &noise[from..(from + most).min(PERIOD)]
}

/// What kind of peer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// Sends and reads as it comes.
    Normal,
    /// Sends all before it reads.
    WriteFirst,
    /// Never reads.
    Deaf,
    /// Never finishes.
    Patient,
    /// Resets at some point, or is lost.
    Rude,
}

/// A pipe in both directions, its registration, and its peer.
#[derive(Debug)]
struct Pipe {
    chance: Chance,
    habit: Habit,
    /// What a read may stop short of without an announcement: a Unix stream with descriptors.
    unix: bool,
    /// Bytes the peer still means to send.
    plan: u64,
    /// Positions in the peer's stream: sent by it, read by us.
    sent: u64,
    read: u64,
    /// Positions in ours: written by us, taken by the peer.
    written: u64,
    taken: u64,
    /// What the two buffers hold.
    room: (u64, u64),
    /// Where a read stops, if the peer marked something as urgent.
    mark: Option<u64>,
    peer_finished: bool,
    we_finished: bool,
    reset: bool,
    /// It was not a reset: the peer or the path to it is gone, with this number of errno(3).
    lost: Option<i32>,
    /// The registration, and whether it has something to announce.
    interest: Want,
    announced: bool,
    /// We ran out of room: making some is an event.
    wants_room: bool,
    /// Chance does not act through this one any more.
    calm: bool,
    /// The last call was interrupted.
    interrupted: bool,
    /// When we were asked to leave for a stop.
    left: Option<Tick>,
    /// When a byte last moved, when our FIN went out, and the world's clock.
    moved: Tick,
    lingers: Option<Tick>,
    clock: Rc<Cell<Tick>>,
}

impl Pipe {
    fn new(chance: &mut Chance, clock: &Rc<Cell<Tick>>) -> Self {
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
        let mut room = (chance.of(&buffers), chance.of(&buffers));
        if plan > 5000 {
            // Or it takes for ever.
            room = (room.0.max(500), room.1.max(500));
        }
        Self {
            habit,
            unix: chance.one_in(5),
            plan,
            sent: 0,
            read: 0,
            written: 0,
            taken: 0,
            room,
            mark: None,
            peer_finished: false,
            we_finished: false,
            reset: false,
            lost: None,
            interest: Want::Read,
            announced: false,
            wants_room: false,
            calm: false,
            interrupted: false,
            left: None,
            moved: clock.get(),
            lingers: None,
            clock: Rc::clone(clock),
            chance: Chance(chance.next()),
        }
    }

    /// When a peer that we leave for a stop has been silent, and our FIN may go.
    fn silent_at(&self, since: Tick) -> Tick {
        (self.moved.max(since) + GRACE).min(since + LINGER)
    }

    fn free(&self) -> u64 {
        self.room.1 - (self.written - self.taken)
    }

    /// What a poll would say.
    fn is_ready(&self, want: Want) -> bool {
        self.reset
            || match want {
                Want::Read => self.sent > self.read || self.peer_finished,
                // As TCP does: not for a few bytes.
                Want::Write => self.free() * 3 >= self.room.1,
            }
    }

    /// Something new happened that is good for `want`; a reset is heard under either.
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
        // Under interest in room alone neither a FIN nor a mark is told; descriptors never are.
        let reading = self.interest == Want::Read;
        let closed = self.reset || (reading && self.peer_finished);
        let urgent = reading && self.mark.is_some() && !self.unix;
        Some(if closed || urgent {
            Hint::ReadOn
        } else {
            Hint::Plain
        })
    }

    /// The peer does something, or nothing.
    fn peer_acts(&mut self) {
        match self.chance.below(9) {
            0..=3 => self.peer_sends(),
            4..=6 => self.peer_reads(),
            7 => self.peer_finishes(),
            _ if self.habit == Habit::Rude && self.chance.one_in(6) => self.peer_resets(),
            _ => {}
        }
    }

    fn peer_sends(&mut self) {
        let room = self.room.0 - (self.sent - self.read);
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
        let most = self.written - self.taken;
        let waits = match self.habit {
            Habit::Deaf => true,
            Habit::WriteFirst => {
                // Until its own sending is stuck, or it is done with it.
                self.plan > 0 && self.sent - self.read < self.room.0
            }
            _ => false,
        };
        if waits || self.reset || most == 0 {
            return;
        }
        self.taken += 1 + self.chance.below(most);
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
            self.lost = Some(self.chance.of(&[101, 110, 113]));
        }
        self.announce(self.interest);
    }

    /// From now on the peer does what it still has to, and ends.
    fn be_good(&mut self) {
        self.calm = true;
        self.habit = Habit::Normal;
    }

    /// A good peer sends and reads all that it can, and finishes.
    fn carry_on(&mut self) {
        self.peer_sends();
        while self.written > self.taken && !self.reset {
            self.peer_reads();
        }
        self.peer_finishes();
    }

    /// Between two system calls others are at work, and any call may be interrupted.
    fn meanwhile(&mut self) -> io::Result<()> {
        self.interrupted = false;
        if !self.calm {
            if self.chance.one_in(4) {
                self.peer_acts();
            }
            if self.chance.one_in(20) {
                self.interrupted = true;
                return Err(ErrorKind::Interrupted.into());
            }
        }
        if self.reset {
            return Err(match self.lost {
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
        assert!(!self.we_finished, "written after our FIN");
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
        assert!(!self.we_finished, "finished twice");
        assert_eq!(self.written, self.read, "finished with something owed");
        if let Some(since) = self.left {
            assert!(
                self.clock.get() >= self.silent_at(since),
                "cut off: {self:?}"
            );
        }
        if self.reset {
            return Err(ErrorKind::NotConnected.into());
        }
        self.we_finished = true;
        self.lingers = Some(self.clock.get());
        Ok(())
    }

    fn unread(&self) -> Option<u64> {
        (!self.unix).then(|| self.sent - self.read)
    }

    fn stops_short(&self) -> bool {
        self.unix
    }
}

/// A daemon, its kernel and its peers.
struct World {
    chance: Chance,
    clock: Rc<Cell<Tick>>,
    shard: Shard<Pipe, Heap>,
    limits: Limits,
    /// The seats that are taken.
    keys: Vec<usize>,
    arrived: u64,
    leaving: bool,
    /// Summaries, to be compared with the counters.
    over: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let limits = some_limits(&mut chance);
        Self {
            clock: Rc::new(Cell::new(Tick::new(1 << 60))),
            shard: Shard::new(limits.clone(), Heap::new()),
            limits,
            keys: Vec::new(),
            arrived: 0,
            leaving: false,
            over: 0,
            chance,
        }
    }

    fn now(&self) -> Tick {
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
            self.everybody_finishes();
        } else {
            self.the_daemon_stops();
        }
        assert!(self.shard.is_empty() && self.keys.is_empty());
        assert_eq!((self.shard.ready(), self.shard.next_due()), (0, None));
        let counters = self.shard.counters();
        assert_eq!(counters.accepted, self.arrived);
        assert_eq!((counters.open(), counters.closed()), (0, self.over));
        counters
    }

    fn something_happens(&mut self) {
        match self.chance.below(40) {
            0..=7 if self.keys.len() < OPEN => self.arrive(),
            8..=29 if !self.keys.is_empty() => {
                let key = self.chance.of(&self.keys);
                self.shard.stream_mut(key).peer_acts();
            }
            30..=36 => {
                let span = self.chance.of(&[1, 5, 20, 100, 300, 1000]);
                let span = Duration::from_millis(self.chance.below(span));
                self.clock.set(self.now() + span);
            }
            37 if self.chance.one_in(4) => {
                self.limits = some_limits(&mut self.chance);
                self.shard.set_limits(self.limits.clone());
            }
            38 => {
                // An event that is too late: of nobody, of somebody else, or of nothing.
                let key = usize::try_from(self.chance.below(2 * OPEN as u64)).unwrap();
                let hint = self.chance.of(&[Hint::Plain, Hint::ReadOn]);
                self.shard.queue(key, hint);
            }
            39 if !self.keys.is_empty() && self.chance.one_in(10) => {
                let key = self.chance.of(&self.keys);
                self.leave(key);
            }
            _ => {}
        }
        self.shard.check();
    }

    fn arrive(&mut self) {
        let mut pipe = Pipe::new(&mut self.chance, &self.clock);
        // It may have said something before it was accepted.
        for _ in 0..self.chance.below(4) {
            pipe.peer_acts();
        }
        pipe.register(Want::Read);
        let key = self.shard.insert(pipe, self.now());
        assert!(!self.keys.contains(&key), "a seat was given twice");
        self.keys.push(key);
        self.arrived += 1;
        if self.leaving {
            self.leave(key);
        }
    }

    fn leave(&mut self, key: usize) {
        self.is_asked(key);
        self.shard.leave(key, self.now());
    }

    /// Notes in the pipe that a stop is asked for, unless it leaves already.
    fn is_asked(&mut self, key: usize) {
        let now = self.now();
        let phase = self.shard.connection(key).expect("it is taken").phase();
        if phase == Phase::Echoing {
            self.shard.stream_mut(key).left = Some(now);
        }
    }

    /// One round of the server's loop.
    fn round(&mut self) {
        let mut allowance = self.chance.of(&[ROUND, ROUND, ROUND, 100_000, 1000]);
        let mut events = Vec::new();
        for key in &self.keys {
            if let Some(hint) = self.shard.stream_mut(*key).collect() {
                events.push((*key, hint));
            }
        }
        for _ in 0..events.len() {
            // In any order; what happens in the meantime is announced in the next round.
            let next = usize::try_from(self.chance.below(events.len() as u64)).unwrap();
            let (key, hint) = events.swap_remove(next);
            self.shard.queue(key, hint);
        }
        for _ in 0..self.shard.ready() {
            if allowance == 0 || self.chance.one_in(8) {
                break;
            }
            let key = self.shard.next_ready().expect("it is in the list");
            allowance = self.turn(key, allowance);
        }
        // At an urgent mark a connection may need some of them.
        let mut deadlines = 2 * self.keys.len() + 32;
        while let Some((key, turn)) = self.shard.expire(self.now()) {
            self.settle(key, turn);
            self.shard.check();
            assert!(deadlines > 0, "the deadlines do not end");
            deadlines -= 1;
        }
        self.nobody_is_forgotten();
    }

    fn turn(&mut self, key: usize, allowance: u64) -> u64 {
        let before = self.shard.counters();
        let turn = self.shard.turn(key, Hint::Plain, self.now());
        self.shard.check();
        let after = self.shard.counters();
        let (received, sent) = (after.received - before.received, after.sent - before.sent);
        assert!(received <= BUDGET as u64, "{received} bytes in one turn");
        assert!(
            sent <= (BUDGET + SCRATCH) as u64,
            "{sent} bytes in one turn"
        );
        self.settle(key, turn);
        allowance.saturating_sub((received + sent).max(LEAST))
    }

    fn settle(&mut self, key: usize, turn: Turn) {
        match turn {
            Turn::Same => {}
            Turn::Rearm(want) => self.shard.stream_mut(key).register(want),
            Turn::Over(summary) => {
                let phase = self.shard.connection(key).unwrap().phase();
                let pipe = self.shard.remove(key);
                self.keys.retain(|open| *open != key);
                self.over += 1;
                self.is_true(&summary, phase, &pipe);
                self.shard.check();
            }
        }
    }

    /// What is told of a conversation is what its pipe has seen.
    fn is_true(&self, summary: &Summary, phase: Phase, pipe: &Pipe) {
        let about = format!("{summary:?} {phase:?} {pipe:?}");
        assert_eq!(summary.received, pipe.read, "{about}");
        assert_eq!(summary.sent, pipe.written, "{about}");
        let lingered = matches!(phase, Phase::Lingering { .. });
        // Our FIN fails if the peer was gone since the last read.
        let failed = lingered && pipe.reset;
        assert!(pipe.we_finished == lingered || failed, "{about}");
        if !lingered {
            assert_eq!(summary.owed, pipe.read - pipe.written, "{about}");
        }
        let quiet = self.now().since(pipe.moved);
        match summary.reason {
            Reason::PeerDone => {
                assert!(pipe.peer_finished && pipe.read == pipe.sent, "{about}");
                assert_eq!(pipe.read, pipe.written, "{about}");
            }
            Reason::Left | Reason::Lifetime | Reason::Spent => {
                assert!(lingered || summary.owed == 0, "{about}");
                // Not by a time-out of its own, nor before its time.
                if let (Phase::Lingering { since, .. }, false) =
                    (phase, pipe.reset || pipe.peer_finished)
                {
                    assert!(self.now().since(since) >= LINGER, "{about}");
                }
            }
            Reason::Reset => assert!(pipe.reset && pipe.lost.is_none(), "{about}"),
            Reason::Lost => panic!("there was no predecessor: {about}"),
            Reason::Vanished => assert!(pipe.lost.is_some(), "{about}"),
            Reason::Idle => {
                assert!(
                    self.limits.idle.is_some_and(|span| quiet >= span),
                    "{about}"
                );
                assert_eq!(summary.owed, 0, "{about}");
                // It had a last turn: what had arrived would have saved it.
                let silent = pipe.read == pipe.sent && !pipe.peer_finished && !pipe.reset;
                assert!(silent || pipe.interrupted, "{about}");
            }
            Reason::Stalled => {
                let stalled = self.limits.stall.is_some_and(|span| quiet >= span);
                assert!(stalled && summary.owed > 0, "{about}");
                let stuck = pipe.free() == 0 && !pipe.reset;
                assert!(stuck || pipe.interrupted, "{about}");
            }
            Reason::Abandoned => {
                let Phase::Leaving { since, .. } = phase else {
                    panic!("{about}");
                };
                let most = self.limits.leave.max(LINGER);
                assert!(self.now().since(since) >= most, "{about}");
            }
            Reason::Error(_) => panic!("{about}"),
        }
    }

    /// Whoever could go on is announced, or stands in the ready list; whoever is due is gone.
    fn nobody_is_forgotten(&mut self) {
        self.shard.check();
        if let Some(due) = self.shard.next_due() {
            assert!(due > self.now(), "a deadline has passed");
        }
        for key in self.keys.clone() {
            let lingers = self.shard.stream_mut(key).lingers;
            assert!(
                lingers.is_none_or(|since| self.now().since(since) < LINGER),
                "it lingers for too long"
            );
            if self.shard.queued(key) {
                continue;
            }
            let connection = self.shard.connection(key).expect("it is not over");
            let (want, phase) = (connection.want(), connection.phase());
            let (now, due) = (self.now(), self.shard.next_due());
            let pipe = self.shard.stream_mut(key);
            assert_eq!(pipe.interest, want, "registered for the wrong thing");
            assert_eq!(
                want == Want::Write,
                pipe.read > pipe.written && !pipe.we_finished
            );
            assert!(
                pipe.announced || !pipe.is_ready(want),
                "forgotten: wants {want:?} in {phase:?}: {pipe:?}"
            );
            if let (Phase::Leaving { since, why, .. }, Want::Read) = (phase, want) {
                // For a stop it waits for silence, with a timer; nobody else is still here.
                assert_eq!((why, pipe.left), (Reason::Left, Some(since)), "{pipe:?}");
                let silent = pipe.silent_at(since);
                assert!(now < silent, "our FIN is late: {pipe:?}");
                assert!(due.is_some_and(|due| due <= silent), "no timer: {pipe:?}");
            }
        }
    }

    /// Every peer sends the rest, reads all and finishes: all is well without the clock.
    fn everybody_finishes(&mut self) {
        self.limits = Limits {
            idle: None,
            stall: None,
            lifetime: None,
            bytes: None,
            leave: Duration::from_secs(3600),
        };
        self.shard.set_limits(self.limits.clone());
        for key in self.keys.clone() {
            self.shard.stream_mut(key).be_good();
        }
        let mut patience = 2_000_000;
        while !self.keys.is_empty() {
            for key in self.keys.clone() {
                self.shard.stream_mut(key).carry_on();
            }
            self.round();
            patience -= 1;
            assert!(patience > 0, "it does not end: {:?}", self.keys);
        }
    }

    /// All are asked to leave, and then the clock jumps.
    fn the_daemon_stops(&mut self) {
        self.leaving = true;
        for key in self.keys.clone() {
            self.is_asked(key);
        }
        self.shard.leave_all(self.now());
        assert_eq!(self.shard.ready(), self.keys.len());
        for _ in 0..self.chance.below(20) {
            for _ in 0..=self.chance.below(12) {
                self.something_happens();
            }
            self.round();
        }
        if self.chance.one_in(4) {
            // The second signal.
            for (key, turn) in self.shard.abandon(|_| true, self.now()) {
                let Turn::Over(summary) = turn else {
                    panic!("{turn:?}")
                };
                let pipe = self.shard.remove(key);
                let abandoned = summary.reason == Reason::Abandoned;
                assert_eq!(abandoned, !pipe.we_finished, "{summary:?} {pipe:?}");
                self.over += 1;
            }
            self.keys.clear();
            return;
        }
        self.limits.leave = self.limits.leave.min(Duration::from_secs(10));
        self.shard.set_limits(self.limits.clone());
        // Leaving, at most as long as it may, and then lingering: two jumps, and a turn between.
        for _ in 0..2 {
            self.clock.set(self.now() + Duration::from_secs(10));
            self.round();
        }
        let mut rounds = 0;
        while !self.keys.is_empty() {
            // Those whose last turn was interrupted, or which the allowance cut off.
            self.clock.set(self.now() + LINGER);
            self.round();
            rounds += 1;
            assert!(rounds < 200, "left behind: {:?}", self.keys);
        }
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
        leave: Duration::from_millis(chance.below(10_000)),
    }
}
