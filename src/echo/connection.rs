//! One conversation: what has arrived, what is owed, and how it ends.
//!
//! The rule everything hangs on: **we read only when we owe nothing.**  From it follow the single
//! scratch buffer of a loop, a backlog that never exceeds it, back-pressure on the peer by TCP's
//! own window, and an interest that is a function of state ([`Connection::want`]).  The peer's
//! end of stream is seen only when everything before it has been paid, so it ends the
//! conversation at once.
//!
//! A [`Connection`] borrows its stream for a turn and never owns it.  It derives all it waits
//! for from its state; it has no clock and no opinion about descriptors.
//!
//! mio is edge-triggered.  A read shorter than the scratch has drained the socket (epoll(7)), so
//! the turn ends there and a message costs two system calls.  Where that does not hold, the event
//! or the kind of stream says so ([`Hint::ReadOn`]) and we read until the end or `WouldBlock`:
//! the peer's FIN can arrive with the data in one event, a read stops at the urgent mark, and a
//! read from a Unix stream stops behind passed descriptors.  None of these is announced again.

use std::io::{self, ErrorKind};
use std::mem::{Discriminant, discriminant};
use std::ops::Range;

use super::backlog::{Backlog, Store};
use super::duplex::Duplex;
use super::phase::Phase;
use super::reason::{Reason, Summary};
pub use super::step::{Hint, Step, Want};
use super::tick::Tick;
use super::{BUDGET, FIRST, GRACE, LINGER, Limits, SCRATCH};

/// errno(3) of a backlog that there is no memory for.
const ENOMEM: i32 = 12;

/// What the smallest read costs of a turn's budget, in bytes, so that a peer whose reads end
/// after each byte (urgent marks, passed descriptors) gets 256 of them a turn and not 262 144.
const LEAST: usize = 1024;

/// Where a conversation stood when another process had it.
#[derive(Debug)]
pub struct Start {
    /// Under which name the store knows it.
    pub owner: u64,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// What is owed.
    pub backlog: Option<Backlog>,
    /// When it began.
    pub began: Tick,
    /// When a byte last moved.
    pub moved: Tick,
    /// Whether our FIN is out.
    pub finished: bool,
}

/// One conversation.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    hint: Hint,
    /// Under which name the store knows it; 0: none.
    owner: u64,
    /// How often the first read's length may be doubled, as long as the send queue is empty.
    doubled: u8,
    /// Positions in the two streams, from their beginnings.
    received: u64,
    sent: u64,
    backlog: Option<Backlog>,
    began: Tick,
    /// When a byte last moved in either direction.
    moved: Tick,
}

impl Connection {
    /// A conversation that begins now.
    #[must_use]
    pub fn new(now: Tick) -> Self {
        Self {
            phase: Phase::Echoing,
            hint: Hint::Plain,
            owner: 0,
            doubled: 0,
            received: 0,
            sent: 0,
            backlog: None,
            began: now,
            moved: now,
        }
    }

    /// A conversation that another process began.
    #[must_use]
    pub fn resumed(start: Start, limits: &Limits, now: Tick) -> Self {
        let spent = limits.bytes.is_some_and(|most| start.received >= most);
        let why = if spent {
            Reason::Spent
        } else {
            Reason::Lifetime
        };
        let phase = match (start.finished, spent) {
            // Only a limit makes a FIN of ours part of a conversation that goes on.
            (true, _) => Phase::Lingering {
                since: now,
                until: now + limits.leave.max(LINGER),
                why,
            },
            (false, true) => Phase::Leaving {
                since: now,
                why,
                until: None,
            },
            (false, false) => Phase::Echoing,
        };
        Self {
            phase,
            // What was announced to the other process is not announced to us.
            hint: Hint::ReadOn,
            owner: start.owner,
            doubled: 0,
            received: start.received,
            sent: start.sent,
            backlog: start.backlog,
            began: start.began,
            moved: start.moved,
        }
    }

    /// Moves what can be moved, at most [`BUDGET`] bytes.
    ///
    /// The one loop of the data path; what is rare stands beside it.
    pub fn advance(
        &mut self,
        io: &mut impl Duplex,
        store: &mut impl Store,
        hint: Hint,
        limits: &Limits,
        now: Tick,
    ) -> Step {
        self.remember(hint);
        let mut budget = BUDGET;
        loop {
            if self.backlog.is_some() {
                if let Some(step) = self.pay(io, store, now) {
                    return step;
                }
            }
            if budget == 0 {
                return Step::Yield;
            }
            if !matches!(self.phase, Phase::Echoing) {
                if let Some(why) = self.has_left(io, limits, now) {
                    if io.finish_write().is_err() {
                        return Step::Done(why);
                    }
                }
            }
            let at = self.received;
            store.claim(self.owner, at);
            let room = self.room(io).min(budget);
            let count = match io.read(&mut store.scratch()[..room]) {
                Ok(0) => return Step::Done(self.ended()),
                Ok(count) => count,
                Err(error) => match self.not_read(io, &error, now) {
                    Some(step) => return step,
                    None => continue,
                },
            };
            budget = budget.saturating_sub(count.max(LEAST));
            self.received += count as u64;
            self.moved = now;
            store.filled(count);
            if matches!(self.phase, Phase::Lingering { .. }) {
                continue;
            }
            let (written, blocked) = match io.write(store.read()) {
                Ok(written) => (written, Step::Blocked),
                Err(error) => match not_written(&error) {
                    done @ Step::Done(_) => return done,
                    blocked => (0, blocked),
                },
            };
            self.sent += written as u64;
            if limits.bytes.is_some_and(|most| self.received >= most) {
                self.leave(Reason::Spent, now);
            }
            self.learn(room, count, written);
            if written < count {
                return self.owe(store, written..count, at + written as u64, blocked);
            }
            let drained = count < room && self.hint == Hint::Plain && !io.stops_short();
            if drained && matches!(self.phase, Phase::Echoing) {
                return Step::Blocked;
            }
        }
    }

    /// Keeps what was not written, until it can be.
    #[cold]
    fn owe(&mut self, store: &mut impl Store, rest: Range<usize>, at: u64, blocked: Step) -> Step {
        match store.keep(self.owner, rest, at) {
            Some(slot) => {
                self.backlog = Some(Backlog::new(slot, 0));
                blocked
            }
            None => Step::Done(Reason::Error(ENOMEM)),
        }
    }

    /// Pays what is owed; `None`: all of it.
    #[cold]
    fn pay(&mut self, io: &mut impl Duplex, store: &mut impl Store, now: Tick) -> Option<Step> {
        while let Some(backlog) = &mut self.backlog {
            match io.write(backlog.owed(store)) {
                Ok(0) => return Some(Step::Done(Reason::Error(0))),
                Ok(count) => {
                    self.sent += count as u64;
                    self.moved = now;
                    if backlog.pay(count) {
                        self.forget(store);
                    }
                }
                Err(error) => return Some(not_written(&error)),
            }
        }
        None
    }

    /// What a failed read means; `None`: read on.
    #[cold]
    fn not_read(&mut self, io: &impl Duplex, error: &io::Error, now: Tick) -> Option<Step> {
        let step = match (error.kind(), self.phase) {
            (ErrorKind::Interrupted, _) => Step::Yield,
            // At the urgent mark Linux answers so while a signal is pending, although bytes wait.
            (ErrorKind::WouldBlock, _) if self.hint == Hint::ReadOn && io.unread() > Some(0) => {
                Step::Yield
            }
            (ErrorKind::WouldBlock, Phase::Leaving { .. }) if now < self.pause() => Step::Blocked,
            (ErrorKind::WouldBlock, Phase::Leaving { since, why, .. }) => {
                let until = Some(self.received);
                self.phase = Phase::Leaving { since, why, until };
                return None;
            }
            (ErrorKind::WouldBlock, _) => {
                self.hint = Hint::Plain;
                Step::Blocked
            }
            (_, Phase::Lingering { why, .. }) => Step::Done(why),
            _ => Step::Done(Reason::of(error)),
        };
        Some(step)
    }

    /// How much to read.  Much only if the peer takes it: nothing waits to be sent, and the last read
    /// of half as much was written at once.
    fn room(&self, io: &impl Duplex) -> usize {
        if self.doubled > 0 && io.unsent() > 0 {
            return FIRST;
        }
        FIRST << self.doubled
    }

    /// Learns from what became of a read of up to `room` bytes.
    fn learn(&mut self, room: usize, count: usize, written: usize) {
        if written < count {
            self.doubled = 0;
        } else if count == room && room == FIRST << self.doubled && room < SCRATCH {
            self.doubled += 1;
        }
    }

    /// Gives up what is still owed: it was paid, or the conversation is over.
    pub fn forget(&mut self, store: &mut impl Store) {
        if let Some(backlog) = self.backlog.take() {
            store.free(backlog.into_slot());
        }
    }

    /// Gives it the name under which the store shall know it, and what it owes too; 0 takes it
    /// back.
    pub fn own(&mut self, owner: u64, store: &mut impl Store) {
        self.owner = owner;
        if let Some(backlog) = &self.backlog {
            let at = self.received - u64::from(backlog.slot().length.get());
            store.own(backlog.slot(), owner, at);
        }
    }

    /// Keeps what an event said until a read has reached the end or `WouldBlock`.
    pub fn remember(&mut self, hint: Hint) {
        if hint == Hint::ReadOn {
            self.hint = hint;
        }
    }

    /// When a peer that we leave for a stop counts as silent, so that our FIN may go: what it has
    /// sent may still be on its way.  At once for one that is cut off by a limit.
    fn pause(&self) -> Tick {
        match self.phase {
            Phase::Leaving {
                since,
                why: Reason::Left,
                until: None,
            } => (self.moved.max(since) + GRACE).min(since + LINGER),
            _ => self.began,
        }
    }

    /// When leaving and nothing more has to be read before our FIN: begins to linger, and says why.
    #[cold]
    fn has_left(&mut self, io: &impl Duplex, limits: &Limits, now: Tick) -> Option<Reason> {
        let Phase::Leaving { since, why, until } = &mut self.phase else {
            return None;
        };
        let (since, why) = (*since, *why);
        match *until {
            // Whoever pauses, as most do, gets back what was still on its way as well.
            None if why == Reason::Left && now < since + LINGER => return None,
            None => {
                let unread = io.unread().unwrap_or(u64::MAX);
                *until = Some(self.received.saturating_add(unread));
                return None;
            }
            Some(until) if self.received < until => return None,
            Some(_) => {}
        }
        self.phase = Phase::Lingering {
            since: now,
            until: (since + limits.leave).max(now + LINGER),
            why,
        };
        Some(why)
    }

    /// What to wait for when blocked.
    #[must_use]
    pub fn want(&self) -> Want {
        if self.backlog.is_some() {
            Want::Write
        } else {
            Want::Read
        }
    }

    /// The next deadline, and what it would mean.  While echoing [`Reason::Lifetime`] means to
    /// leave, while leaving [`Reason::Left`] to send our FIN; everything else means to close.
    #[must_use]
    pub fn due(&self, limits: &Limits) -> Option<(Tick, Reason)> {
        let quiet = if self.backlog.is_some() {
            limits
                .stall
                .map(|span| (self.moved + span, Reason::Stalled))
        } else {
            limits.idle.map(|span| (self.moved + span, Reason::Idle))
        };
        let whole = match self.phase {
            Phase::Lingering { since, until, why } => {
                return Some(((since + LINGER).min(until), why));
            }
            Phase::Leaving {
                why: Reason::Left,
                until: None,
                ..
            } if self.backlog.is_none() => Some((self.pause(), Reason::Left)),
            // Never at once: a limit of zero is for a stop, not for who is cut off by another limit.
            Phase::Leaving { since, .. } => {
                Some((since + limits.leave.max(LINGER), Reason::Abandoned))
            }
            Phase::Echoing => limits
                .lifetime
                .map(|span| (self.began + span, Reason::Lifetime)),
        };
        match (quiet, whole) {
            (Some(one), Some(other)) => Some(if one.0 < other.0 { one } else { other }),
            (one, other) => one.or(other),
        }
    }

    /// Asks the conversation to end in good order; the next turn acts on it.
    pub fn leave(&mut self, why: Reason, now: Tick) {
        if self.phase == Phase::Echoing {
            self.phase = Phase::Leaving {
                since: now,
                why,
                until: None,
            };
        }
    }

    /// Lingers for another while, as there is something unacknowledged; false if it may not.
    pub fn linger_on(&mut self, now: Tick) -> bool {
        match &mut self.phase {
            Phase::Lingering { since, until, .. } if now < *until => {
                *since = now;
                true
            }
            _ => false,
        }
    }

    /// Under which name the store knows it; 0: none.
    #[must_use]
    pub fn owner(&self) -> u64 {
        self.owner
    }

    /// When it began.
    #[must_use]
    pub fn began(&self) -> Tick {
        self.began
    }

    /// What its deadline is made from, but for the time: as long as this stays the same, activity only
    /// makes it later.
    #[must_use]
    pub fn state(&self) -> (Want, Discriminant<Phase>) {
        (self.want(), discriminant(&self.phase))
    }

    /// Where in its life it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Bytes received so far: the position in the peer's stream.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes sent so far: the position in our stream.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes received and not given back yet.
    #[must_use]
    pub fn owed(&self) -> u64 {
        self.backlog
            .as_ref()
            .map_or(0, |backlog| backlog.len() as u64)
    }

    /// What to tell when it ends for `reason`.
    #[must_use]
    pub fn summary(&self, reason: Reason, now: Tick) -> Summary {
        Summary {
            reason,
            received: self.received,
            sent: self.sent,
            owed: match self.phase {
                Phase::Lingering { .. } => 0,
                // After a failed write the rest never reached a backlog.
                _ => self.received - self.sent,
            },
            duration: now.since(self.began),
        }
    }

    /// Asserts what must hold between turns.
    pub fn check(&self) {
        match self.phase {
            Phase::Lingering { .. } => {
                assert!(
                    self.backlog.is_none(),
                    "our FIN went out with something owed"
                );
                assert!(self.received >= self.sent, "more was sent than received");
            }
            _ => assert!(
                self.received == self.sent + self.owed(),
                "received {} is not sent {} and owed {}",
                self.received,
                self.sent,
                self.owed()
            ),
        }
    }

    /// The peer has finished: why the conversation is over.
    fn ended(&self) -> Reason {
        match self.phase {
            Phase::Echoing => Reason::PeerDone,
            Phase::Leaving { why, .. } | Phase::Lingering { why, .. } => why,
        }
    }
}

/// What a failed write means.
#[cold]
fn not_written(error: &io::Error) -> Step {
    match error.kind() {
        ErrorKind::WouldBlock => Step::Blocked,
        ErrorKind::Interrupted => Step::Yield,
        _ => Step::Done(Reason::of(error)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use std::io::{Read, Write};

    use super::*;
    use crate::echo::backlog::Heap;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::sync::LazyLock;

    /// What a read does next; after the last one it would block.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::echo) enum In {
        /// So many bytes are there; what does not fit into the buffer stays.
        Data(usize),
        Block,
        /// It would block although the next data is there: tcp(7) at the urgent mark, with a signal
        /// pending.
        Hide,
        Interrupt,
        End,
        Fail(i32),
    }

    /// What a write does next; after the last one it takes everything.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::echo) enum Out {
        Take(usize),
        Block,
        Interrupt,
        Fail(i32),
    }

    /// The last thing that a stream answered, in one direction.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Answer {
        /// As many bytes as were asked for.
        Whole,
        /// Fewer.
        Part,
        /// `WouldBlock`.
        Block,
        /// `WouldBlock`, although there is something.
        Hidden,
    }

    /// A scripted stream.  It checks each byte that it is given, and asserts what no stream can.
    #[derive(Debug)]
    pub(in crate::echo) struct Script {
        pub(in crate::echo) reads: VecDeque<In>,
        pub(in crate::echo) writes: VecDeque<Out>,
        pub(in crate::echo) stops_short: bool,
        pub(in crate::echo) finish_fails: bool,
        /// What the stream says of its queues; the script itself goes on regardless.
        pub(in crate::echo) unread: Option<u64>,
        pub(in crate::echo) unacknowledged: u64,
        pub(in crate::echo) unsent: u64,
        /// Bytes handed out, and the order in which they were taken back is checked.
        pub(in crate::echo) given: u64,
        pub(in crate::echo) taken: u64,
        pub(in crate::echo) finished: bool,
        pub(in crate::echo) calls: (usize, usize),
        /// A call of this turn was interrupted.
        interrupted: bool,
        /// A call failed or found the end: none may follow.
        broken: bool,
        read: Option<Answer>,
        wrote: Option<Answer>,
    }

    impl Script {
        pub(in crate::echo) fn new(
            reads: impl IntoIterator<Item = In>,
            writes: impl IntoIterator<Item = Out>,
        ) -> Self {
            Self {
                reads: reads.into_iter().collect(),
                writes: writes.into_iter().collect(),
                stops_short: false,
                finish_fails: false,
                unread: None,
                unacknowledged: 0,
                unsent: 0,
                given: 0,
                taken: 0,
                finished: false,
                calls: (0, 0),
                interrupted: false,
                broken: false,
                read: None,
                wrote: None,
            }
        }
    }

    /// The bytes of every stream from a position on, up to some length: noise whose period is a
    /// prime number, so that nothing that is lost, doubled or moved looks right.
    fn bytes_at(position: u64, most: usize) -> &'static [u8] {
        const PERIOD: usize = 131_071;
        static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let mut state = 1_u64;
            let mut next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                state.to_be_bytes()[1]
            };
            (0..PERIOD).map(|_| next()).collect()
        });
        let from = usize::try_from(position % PERIOD as u64).expect("it is less than the period");
        &NOISE[from..(from + most).min(PERIOD)]
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            assert!(!self.broken, "read after the stream had ended");
            self.calls.0 += 1;
            let there = match self.reads.pop_front() {
                Some(In::Data(there)) => there,
                Some(In::Interrupt) => {
                    self.interrupted = true;
                    return Err(ErrorKind::Interrupted.into());
                }
                Some(In::End) => {
                    self.broken = true;
                    return Ok(0);
                }
                Some(In::Fail(errno)) => {
                    self.broken = true;
                    return Err(io::Error::from_raw_os_error(errno));
                }
                Some(In::Block) | None => {
                    self.read = Some(Answer::Block);
                    return Err(ErrorKind::WouldBlock.into());
                }
                Some(In::Hide) => {
                    self.read = Some(Answer::Hidden);
                    return Err(ErrorKind::WouldBlock.into());
                }
            };
            let count = there.min(buffer.len());
            if count < there {
                self.reads.push_front(In::Data(there - count));
            }
            self.read = Some(if count < buffer.len() {
                Answer::Part
            } else {
                Answer::Whole
            });
            let mut filled = 0;
            while filled < count {
                let bytes = bytes_at(self.given, count - filled);
                buffer[filled..filled + bytes.len()].copy_from_slice(bytes);
                filled += bytes.len();
                self.given += bytes.len() as u64;
            }
            Ok(count)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            assert!(!self.broken, "written after the stream had ended");
            assert!(!self.finished, "written after our FIN");
            assert!(!bytes.is_empty(), "nothing to write was written");
            self.calls.1 += 1;
            let most = match self.writes.pop_front() {
                None => usize::MAX,
                Some(Out::Take(most)) => most,
                Some(Out::Block) => {
                    self.wrote = Some(Answer::Block);
                    return Err(ErrorKind::WouldBlock.into());
                }
                Some(Out::Interrupt) => {
                    self.interrupted = true;
                    return Err(ErrorKind::Interrupted.into());
                }
                Some(Out::Fail(errno)) => {
                    self.broken = true;
                    return Err(io::Error::from_raw_os_error(errno));
                }
            };
            let count = bytes.len().min(most);
            self.wrote = Some(if count < bytes.len() {
                Answer::Part
            } else {
                Answer::Whole
            });
            let mut rest = &bytes[..count];
            while !rest.is_empty() {
                let right = bytes_at(self.taken, rest.len());
                assert!(
                    rest[..right.len()] == *right,
                    "wrong bytes at {}",
                    self.taken
                );
                self.taken += right.len() as u64;
                rest = &rest[right.len()..];
            }
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            unreachable!("there is nothing to flush")
        }
    }

    impl Duplex for Script {
        fn finish_write(&mut self) -> io::Result<()> {
            assert!(!self.finished, "finished twice");
            assert_eq!(self.taken, self.given, "finished with something owed");
            if self.finish_fails {
                self.broken = true;
                return Err(ErrorKind::NotConnected.into());
            }
            self.finished = true;
            Ok(())
        }

        fn unread(&self) -> Option<u64> {
            match (self.read, self.reads.front()) {
                (Some(Answer::Block), _) => Some(0),
                (Some(Answer::Hidden), Some(In::Data(count))) => Some(*count as u64),
                _ => self.unread,
            }
        }

        fn unacknowledged(&self) -> u64 {
            self.unacknowledged
        }

        fn unsent(&self) -> u64 {
            self.unsent
        }

        fn stops_short(&self) -> bool {
            self.stops_short
        }
    }

    const SECOND: Duration = Duration::from_secs(1);
    const MILLISECOND: Duration = Duration::from_millis(1);
    const MIB: usize = 1024 * 1024;

    /// A conversation with its script, a store and a clock.
    struct Talk {
        connection: Connection,
        script: Script,
        store: Heap,
        limits: Limits,
        now: Tick,
        /// What the events have said and no `WouldBlock` has settled: the rule, kept twice.
        read_on: bool,
        /// When a byte last moved: kept twice as well.
        moved: Tick,
    }

    impl Talk {
        fn new(reads: impl IntoIterator<Item = In>, writes: impl IntoIterator<Item = Out>) -> Self {
            let now = Tick::new(1 << 60);
            Self {
                connection: Connection::new(now),
                script: Script::new(reads, writes),
                store: Heap::new(),
                limits: Limits::default(),
                now,
                read_on: false,
                moved: now,
            }
        }

        /// When our FIN may go after a stop, as far as the bytes up to `moved` are concerned.
        fn silent_at(since: Tick, moved: Tick) -> Tick {
            (moved.max(since) + GRACE).min(since + LINGER)
        }

        /// Gives it a turn and checks all that must hold after any.
        #[track_caller]
        fn turn_with(&mut self, hint: Hint) -> Step {
            let before = (self.script.given, self.script.calls);
            let was = (self.connection.phase(), self.script.taken, self.moved);
            self.script.interrupted = false;
            (self.script.read, self.script.wrote) = (None, None);
            self.read_on |= hint == Hint::ReadOn;
            let step = self.connection.advance(
                &mut self.script,
                &mut self.store,
                hint,
                &self.limits,
                self.now,
            );
            let (connection, script) = (&self.connection, &self.script);
            let moved = script.given - before.0;
            if moved > 0 || script.taken > was.1 {
                self.moved = self.now;
            }
            let reads = script.calls.0 - before.1.0;
            assert!(moved <= BUDGET as u64, "{moved} bytes in one turn");
            assert!(reads <= BUDGET / LEAST + 1, "{reads} reads in one turn");
            assert_eq!(connection.received(), script.given);
            assert_eq!(connection.sent(), script.taken);
            assert!(connection.owed() <= SCRATCH as u64, "owes too much");
            let owes = connection.owed() > 0;
            assert_eq!(connection.want() == Want::Write, owes);
            let echoing = connection.phase() == Phase::Echoing;
            match step {
                Step::Blocked if owes => {
                    let wrote = script.wrote;
                    assert!(
                        matches!(wrote, Some(Answer::Part | Answer::Block)),
                        "waits for room, but the last write said {wrote:?}"
                    );
                }
                Step::Blocked => match script.read {
                    Some(Answer::Block) => {}
                    Some(Answer::Part) if echoing && !self.read_on && !script.stops_short => {}
                    read => panic!("waits for input, but the last read said {read:?}"),
                },
                Step::Yield => assert!(
                    script.interrupted
                        || (self.read_on && script.read == Some(Answer::Hidden))
                        || moved + reads as u64 * LEAST as u64 >= BUDGET as u64,
                    "yielded for nothing"
                ),
                Step::Done(_) => assert!(script.broken, "done, and nothing had happened"),
            }
            if let (
                Phase::Leaving {
                    since,
                    why: Reason::Left,
                    ..
                },
                Phase::Lingering { .. },
            ) = (was.0, connection.phase())
            {
                // What is read behind our FIN is thrown away and does not count.
                let silent = script.taken == was.1 && self.now >= Self::silent_at(since, was.2);
                assert!(
                    silent || self.now >= since + LINGER,
                    "our FIN cut the peer off"
                );
            }
            if let (Step::Blocked, false, Phase::Leaving { since, why, .. }) =
                (step, owes, connection.phase())
            {
                assert_eq!(why, Reason::Left, "a limit waits for nobody");
                let silent = Self::silent_at(since, self.moved);
                assert!(self.now < silent, "our FIN is late");
                let due = connection.due(&Limits {
                    idle: None,
                    ..self.limits.clone()
                });
                assert_eq!(due, Some((silent, Reason::Left)), "no timer for our FIN");
            }
            if !matches!(step, Step::Done(_)) {
                connection.check();
            }
            if step == Step::Blocked && script.read == Some(Answer::Block) {
                self.read_on = false;
            }
            step
        }

        #[track_caller]
        fn turn(&mut self) -> Step {
            self.turn_with(Hint::Plain)
        }

        /// The events of the kernel come until nothing of the script is left.
        #[track_caller]
        fn finish(&mut self) -> Step {
            loop {
                match self.turn() {
                    Step::Done(reason) => return Step::Done(reason),
                    Step::Blocked
                        if self.script.reads.is_empty() && self.connection.owed() == 0 =>
                    {
                        return Step::Blocked;
                    }
                    Step::Blocked | Step::Yield => {}
                }
            }
        }

        fn leave(&mut self) {
            self.connection.leave(Reason::Left, self.now);
        }

        fn due(&self) -> Option<(Tick, Reason)> {
            self.connection.due(&self.limits)
        }
    }

    // How a turn ends.

    #[test]
    fn a_message_costs_one_read_and_one_write() {
        let mut talk = Talk::new([In::Data(5), In::Data(7)], []);
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!(talk.script.calls, (1, 1), "a short read ends the turn");
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!((talk.script.calls, talk.script.taken), ((2, 2), 12));
    }

    #[test]
    fn a_read_is_as_long_as_the_peer_has_earned() {
        let mut talk = Talk::new([In::Data(4 * MIB)], []);
        // Twice as much each time, within the budget, and then all of it at once.
        assert_eq!(talk.turn(), Step::Yield);
        assert_eq!(talk.script.calls, (3, 3));
        assert_eq!(talk.turn(), Step::Yield);
        assert_eq!(talk.script.calls, (4, 4));
        // What waits to be sent makes it careful, and what was not taken at once forgetful.
        talk.script.unsent = 1;
        assert_eq!(talk.turn(), Step::Yield);
        assert_eq!(talk.script.calls, (8, 8));
        talk.script.unsent = 0;
        talk.script.writes.push_back(Out::Take(SCRATCH - 1));
        talk.script.writes.push_back(Out::Block);
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!(talk.connection.owed(), 1);
        assert_eq!(talk.script.calls, (9, 9));
        talk.script.writes.clear();
        assert_eq!(talk.turn(), Step::Yield);
        assert_eq!(talk.script.calls, (12, 13));
    }

    #[test]
    fn a_read_that_fills_the_buffer_is_followed_by_another() {
        let mut talk = Talk::new([In::Data(FIRST), In::Data(1)], []);
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!(talk.script.calls, (2, 2));
        assert_eq!(talk.script.taken, FIRST as u64 + 1);
    }

    #[test]
    fn the_end_behind_a_short_read_is_found_when_the_event_told_of_it() {
        let mut talk = Talk::new([In::Data(5), In::End], []);
        assert_eq!(talk.turn_with(Hint::ReadOn), Step::Done(Reason::PeerDone));
        assert_eq!(talk.script.taken, 5);
    }

    #[test]
    fn what_the_event_told_is_remembered_while_something_is_owed() {
        let mut talk = Talk::new([In::Data(5), In::End], [Out::Block]);
        assert_eq!(talk.turn_with(Hint::ReadOn), Step::Blocked);
        assert_eq!(talk.connection.want(), Want::Write);
        assert_eq!(talk.turn(), Step::Done(Reason::PeerDone));
        // And so it is when it was said to a connection that waits for its turn.
        let mut talk = Talk::new([In::Data(5), In::End], []);
        talk.connection.remember(Hint::ReadOn);
        talk.connection.remember(Hint::Plain);
        talk.read_on = true;
        assert_eq!(talk.turn(), Step::Done(Reason::PeerDone));
    }

    #[test]
    fn what_the_event_told_is_settled_by_would_block() {
        let mut talk = Talk::new([In::Data(5), In::Block, In::Data(5), In::Data(5)], []);
        assert_eq!(talk.turn_with(Hint::ReadOn), Step::Blocked);
        assert_eq!(talk.script.calls, (2, 1));
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!(talk.script.calls, (3, 2), "two calls a message again");
    }

    #[test]
    fn would_block_is_no_answer_while_something_is_there() {
        let reads = [In::Data(1), In::Hide, In::Data(1), In::Block];
        let mut talk = Talk::new(reads, []);
        assert_eq!(talk.turn_with(Hint::ReadOn), Step::Yield);
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!(talk.script.taken, 2);
        // Nor is our FIN sent before it.
        let reads = [In::Data(1), In::Hide, In::Data(1), In::Block, In::End];
        let mut talk = Talk::new(reads, []);
        talk.connection.remember(Hint::ReadOn);
        talk.read_on = true;
        talk.leave();
        talk.now += LINGER;
        talk.moved = talk.now;
        talk.script.unread = Some(2);
        assert_eq!(talk.turn(), Step::Yield);
        assert!(!talk.script.finished);
        assert_eq!(talk.finish(), Step::Done(Reason::Left));
        assert_eq!(talk.script.taken, 2);
    }

    #[test]
    fn a_stream_that_stops_short_is_read_to_would_block() {
        let mut talk = Talk::new([In::Data(5), In::Data(5), In::End], []);
        talk.script.stops_short = true;
        assert_eq!(talk.turn(), Step::Done(Reason::PeerDone));
        assert_eq!(talk.script.taken, 10);
    }

    #[test]
    fn nothing_is_read_while_something_is_owed() {
        let mut talk = Talk::new(
            [In::Data(100), In::Data(100)],
            [Out::Take(40), Out::Take(30), Out::Block, Out::Take(30)],
        );
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!(talk.connection.owed(), 60);
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!((talk.connection.owed(), talk.script.calls.0), (30, 1));
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!(talk.connection.want(), Want::Read);
        assert_eq!(talk.script.taken, 200, "read again in the turn that paid");
    }

    #[test]
    fn a_flood_yields_after_its_budget() {
        let mut talk = Talk::new([In::Data(MIB)], []);
        for turn in 1..=4 {
            assert_eq!(talk.turn(), Step::Yield);
            assert_eq!(talk.script.taken, turn * BUDGET as u64);
        }
        assert_eq!(talk.turn(), Step::Blocked);
        // Neither does an odd size overrun it.
        let mut talk = Talk::new([In::Data(LEAST + 1), In::Data(MIB)], []);
        assert_eq!(talk.turn_with(Hint::ReadOn), Step::Yield);
        assert_eq!(talk.script.taken, BUDGET as u64);
    }

    #[test]
    fn a_peer_whose_reads_end_after_each_byte_yields_too() {
        let mut talk = Talk::new([In::Data(1); 1000], []);
        talk.script.stops_short = true;
        assert_eq!(talk.turn(), Step::Yield);
        assert_eq!(talk.script.taken, (BUDGET / LEAST) as u64);
    }

    #[test]
    fn an_interrupted_call_yields_and_loses_nothing() {
        let mut talk = Talk::new(
            [In::Interrupt, In::Data(10), In::End],
            [Out::Interrupt, Out::Take(3), Out::Interrupt],
        );
        assert_eq!(talk.turn(), Step::Yield);
        assert_eq!(talk.turn(), Step::Yield);
        assert_eq!(talk.connection.owed(), 10);
        assert_eq!(talk.turn(), Step::Yield);
        assert_eq!(talk.connection.owed(), 7);
        assert_eq!(talk.finish(), Step::Done(Reason::PeerDone));
        assert_eq!(talk.script.taken, 10);
    }

    // How a conversation ends.

    #[test]
    fn an_error_ends_the_conversation_and_says_what_was_lost() {
        let reset = Reason::Reset;
        for (errno, reason) in [
            (libc_errno::ECONNRESET, reset),
            (libc_errno::ECONNABORTED, reset),
            (libc_errno::EPIPE, reset),
            (libc_errno::ENOTCONN, reset),
            (libc_errno::ETIMEDOUT, Reason::Vanished),
            (libc_errno::EHOSTUNREACH, Reason::Vanished),
            (libc_errno::ENETUNREACH, Reason::Vanished),
            (libc_errno::ENOBUFS, Reason::Error(libc_errno::ENOBUFS)),
            (libc_errno::ENOMEM, Reason::Error(libc_errno::ENOMEM)),
        ] {
            let mut read = Talk::new([In::Data(SCRATCH), In::Fail(errno)], []);
            let mut wrote = Talk::new([In::Data(9)], [Out::Fail(errno)]);
            let mut paid = Talk::new([In::Data(9)], [Out::Take(5), Out::Fail(errno)]);
            for (talk, owed) in [(&mut read, 0), (&mut wrote, 9), (&mut paid, 4)] {
                assert_eq!(talk.finish(), Step::Done(reason));
                let summary = talk.connection.summary(reason, talk.now + SECOND);
                assert_eq!(summary.owed, owed);
                assert_eq!(summary.received, summary.sent + owed);
                assert_eq!(summary.duration, SECOND);
            }
        }
    }

    /// The numbers of errno(3), which this folder does not otherwise know.
    mod libc_errno {
        pub(super) const ENOMEM: i32 = 12;
        pub(super) const EPIPE: i32 = 32;
        pub(super) const ENETUNREACH: i32 = 101;
        pub(super) const ECONNABORTED: i32 = 103;
        pub(super) const ECONNRESET: i32 = 104;
        pub(super) const ENOBUFS: i32 = 105;
        pub(super) const ENOTCONN: i32 = 107;
        pub(super) const ETIMEDOUT: i32 = 110;
        pub(super) const EHOSTUNREACH: i32 = 113;
    }

    #[test]
    fn a_stream_that_takes_nothing_and_says_so_with_zero_is_an_error_and_not_a_spin() {
        let mut talk = Talk::new([In::Data(9)], [Out::Take(0), Out::Take(0)]);
        assert_eq!(talk.turn(), Step::Blocked);
        let step = talk.connection.advance(
            &mut talk.script,
            &mut talk.store,
            Hint::Plain,
            &talk.limits,
            talk.now,
        );
        assert_eq!(step, Step::Done(Reason::Error(0)));
    }

    #[test]
    fn the_peers_end_waits_behind_what_is_owed() {
        let mut talk = Talk::new([In::Data(9), In::End], [Out::Block, Out::Take(8)]);
        assert_eq!(talk.turn_with(Hint::ReadOn), Step::Blocked);
        assert_eq!(talk.turn(), Step::Done(Reason::PeerDone));
        assert_eq!(talk.script.taken, 9);
    }

    #[test]
    fn leaving_echoes_what_is_readable_then_finishes_then_lingers() {
        let mut talk = Talk::new([In::Data(5), In::Data(5), In::Block], []);
        talk.leave();
        let asked = talk.now;
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!(talk.script.taken, 10, "a short read does not end leaving");
        assert!(!talk.script.finished, "more may be on its way");
        let (since, why, until) = (asked, Reason::Left, None);
        let leaving = Phase::Leaving { since, why, until };
        assert_eq!(talk.connection.phase(), leaving);
        assert_eq!(talk.due(), Some((asked + GRACE, Reason::Left)));
        talk.now = asked + GRACE - MILLISECOND;
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!(talk.connection.phase(), leaving);
        talk.now = asked + GRACE;
        assert_eq!(talk.turn(), Step::Blocked);
        assert!(talk.script.finished);
        let (since, until) = (talk.now, asked + talk.limits.leave);
        let lingering = Phase::Lingering { since, until, why };
        assert_eq!(talk.connection.phase(), lingering);
        talk.script.reads = [In::Data(MIB), In::Interrupt, In::End].into();
        assert_eq!(talk.finish(), Step::Done(Reason::Left));
        let summary = talk.connection.summary(Reason::Left, talk.now);
        assert_eq!((summary.sent, summary.owed), (10, 0));
        assert_eq!(summary.received, 10 + MIB as u64);
    }

    #[test]
    fn after_a_stop_each_byte_moves_our_fin_but_not_beyond_linger() {
        let mut talk = Talk::new([], []);
        // What moved before the stop does not shorten the silence after it.
        talk.now += SECOND;
        talk.leave();
        let asked = talk.now;
        for (at, due) in [
            (0, 50),
            (49, 99),
            (98, 148),
            (147, 197),
            (196, 246),
            (245, 295),
            (294, 344),
            (343, 393),
            (392, 400),
            (399, 400),
        ] {
            talk.now = asked + MILLISECOND * at;
            talk.script.reads = [In::Data(3)].into();
            assert_eq!(talk.turn(), Step::Blocked);
            assert!(!talk.script.finished, "at {at}");
            let due = asked + MILLISECOND * due;
            assert_eq!(talk.due(), Some((due, Reason::Left)), "at {at}");
        }
        talk.now = asked + LINGER;
        assert_eq!(talk.turn(), Step::Blocked);
        assert!(talk.script.finished);
        assert_eq!(talk.script.taken, 30);
    }

    #[test]
    fn what_arrived_when_our_fin_was_due_comes_back_and_moves_it() {
        let mut talk = Talk::new([], []);
        talk.leave();
        talk.now += GRACE;
        talk.script.reads = [In::Data(7)].into();
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!((talk.script.taken, talk.script.finished), (7, false));
        assert_eq!(talk.due(), Some((talk.now + GRACE, Reason::Left)));
        talk.now += GRACE;
        assert_eq!(talk.turn(), Step::Blocked);
        assert!(talk.script.finished);
    }

    #[test]
    fn what_the_peer_takes_after_a_stop_moves_our_fin_too() {
        let mut talk = Talk::new([In::Data(50)], [Out::Take(10), Out::Block]);
        assert_eq!(talk.turn(), Step::Blocked);
        talk.leave();
        let asked = talk.now;
        assert_eq!(talk.turn(), Step::Blocked);
        let abandoned = (asked + talk.limits.leave, Reason::Abandoned);
        assert_eq!(
            talk.due(),
            Some(abandoned),
            "no FIN while something is owed"
        );
        talk.now = asked + GRACE * 3;
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!((talk.script.taken, talk.script.finished), (50, false));
        assert_eq!(talk.due(), Some((asked + GRACE * 4, Reason::Left)));
    }

    #[test]
    fn who_floods_after_a_stop_gets_back_what_had_arrived_when_linger_was_over() {
        let flood = || [In::Data(1000), In::Data(500)];
        for (unread, taken) in [(Some(1000), 1001), (Some(999), 1001), (None, 1501)] {
            let mut talk = Talk::new([In::Data(1)], []);
            talk.leave();
            let asked = talk.now;
            assert_eq!(talk.turn(), Step::Blocked);
            talk.now = asked + LINGER;
            talk.script.unread = unread;
            talk.script.reads = flood().into();
            assert_eq!(talk.turn(), Step::Blocked);
            assert!(talk.script.finished);
            assert_eq!(talk.script.taken, taken, "{unread:?} to be read");
            assert_eq!(talk.connection.received(), 1501);
        }
        // Before, it is not asked how many.
        let mut talk = Talk::new([], []);
        talk.leave();
        talk.now += LINGER - MILLISECOND;
        talk.script.unread = Some(1000);
        talk.script.reads = flood().into();
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!((talk.script.taken, talk.script.finished), (1500, false));
        // Nor does a limit wait.
        let mut talk = Talk::new(flood(), []);
        talk.script.unread = Some(1000);
        talk.connection.leave(Reason::Lifetime, talk.now);
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!((talk.script.taken, talk.script.finished), (1000, true));
    }

    #[test]
    fn who_is_cut_off_by_a_limit_gets_our_fin_at_once() {
        for why in [Reason::Lifetime, Reason::Spent] {
            let mut talk = Talk::new([In::Data(5), In::Data(5)], []);
            talk.connection.leave(why, talk.now);
            assert_eq!(talk.turn(), Step::Blocked);
            assert_eq!((talk.script.taken, talk.script.finished), (10, true));
            assert_eq!(talk.due(), Some((talk.now + LINGER, why)));
        }
    }

    #[test]
    fn leaving_pays_first() {
        let mut talk = Talk::new([In::Data(50)], [Out::Take(10), Out::Block, Out::Take(20)]);
        assert_eq!(talk.turn(), Step::Blocked);
        talk.leave();
        talk.now += LINGER;
        assert_eq!(talk.turn(), Step::Blocked);
        assert!(!talk.script.finished);
        assert_eq!(talk.turn(), Step::Blocked);
        assert!(talk.script.finished);
        assert_eq!(talk.script.taken, 50);
    }

    #[test]
    fn who_is_asked_to_leave_twice_leaves_for_the_first_reason() {
        let mut talk = Talk::new([], []);
        talk.connection.leave(Reason::Lifetime, talk.now);
        let (since, why) = (talk.now, Reason::Lifetime);
        let asked = since;
        talk.now += SECOND;
        talk.leave();
        let until = None;
        let leaving = Phase::Leaving { since, why, until };
        assert_eq!(talk.connection.phase(), leaving);
        assert_eq!(talk.turn(), Step::Blocked);
        let since = talk.now;
        talk.now += SECOND;
        talk.leave();
        let until = asked + talk.limits.leave;
        let lingering = Phase::Lingering { since, until, why };
        assert_eq!(talk.connection.phase(), lingering);
    }

    #[test]
    fn who_is_gone_while_we_leave_has_left() {
        let mut talk = Talk::new([], []);
        talk.script.finish_fails = true;
        talk.leave();
        assert_eq!(talk.turn(), Step::Blocked);
        talk.now += GRACE;
        assert_eq!(talk.turn(), Step::Done(Reason::Left));
        for last in [In::End, In::Fail(libc_errno::ECONNRESET)] {
            let mut talk = Talk::new([In::Block, last], []);
            talk.leave();
            talk.now += GRACE;
            assert_eq!(talk.turn(), Step::Done(Reason::Left));
            assert!(talk.script.finished);
        }
        // Its end before our FIN is one in good order.
        let mut talk = Talk::new([In::Data(3), In::End], []);
        talk.leave();
        assert_eq!(talk.turn(), Step::Done(Reason::Left));
        assert_eq!((talk.script.taken, talk.script.finished), (3, false));
        // Before our FIN a reset is one: something may have been lost.
        let mut talk = Talk::new([In::Fail(libc_errno::ECONNRESET)], []);
        talk.leave();
        assert_eq!(talk.turn(), Step::Done(Reason::Reset));
    }

    #[test]
    fn who_has_sent_all_that_it_may_gets_it_back_and_our_fin() {
        for most in [1, 99, 100] {
            let mut talk = Talk::new([In::Data(100)], []);
            talk.limits.bytes = Some(most);
            assert_eq!(talk.turn(), Step::Blocked);
            assert!(talk.script.finished, "at {most}");
            assert_eq!(talk.script.taken, 100);
            talk.script.reads = [In::End].into();
            assert_eq!(talk.turn(), Step::Done(Reason::Spent));
        }
        let mut talk = Talk::new([In::Data(100)], [Out::Take(1), Out::Block]);
        talk.limits.bytes = Some(100);
        assert_eq!(talk.turn(), Step::Blocked);
        assert!(!talk.script.finished);
        assert_eq!(talk.finish(), Step::Blocked);
        assert!(talk.script.finished);
        let mut talk = Talk::new([In::Data(100)], []);
        talk.limits.bytes = Some(101);
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!(talk.connection.phase(), Phase::Echoing);
    }

    // When it ends by the clock.

    #[test]
    fn without_limits_nothing_is_due() {
        let mut talk = Talk::new([], []);
        talk.limits.stall = None;
        assert_eq!(talk.due(), None);
    }

    #[test]
    fn the_idle_time_out_runs_from_the_last_byte_while_nothing_is_owed() {
        let mut talk = Talk::new([In::Block, In::Data(1)], []);
        (talk.limits.idle, talk.limits.stall) = (Some(SECOND * 9), None);
        let start = talk.now;
        assert_eq!(talk.due(), Some((start + SECOND * 9, Reason::Idle)));
        talk.now += SECOND;
        talk.turn();
        assert_eq!(talk.due(), Some((start + SECOND * 9, Reason::Idle)));
        talk.now += SECOND;
        talk.turn();
        assert_eq!(talk.due(), Some((start + SECOND * 11, Reason::Idle)));
    }

    #[test]
    fn the_stall_time_out_runs_from_the_last_byte_taken_while_something_is_owed() {
        let mut talk = Talk::new(
            [In::Data(9)],
            [Out::Block, Out::Block, Out::Take(1), Out::Block],
        );
        (talk.limits.idle, talk.limits.stall) = (Some(SECOND), Some(SECOND * 9));
        let start = talk.now;
        for (second, due) in [(0, 9), (1, 9), (2, 11)] {
            talk.now = start + SECOND * second;
            assert_eq!(talk.turn(), Step::Blocked);
            let due = start + SECOND * due;
            assert_eq!(talk.due(), Some((due, Reason::Stalled)), "at {second}");
        }
        talk.now = start + SECOND * 3;
        assert_eq!(talk.turn(), Step::Blocked);
        assert_eq!(talk.due(), Some((start + SECOND * 4, Reason::Idle)));
    }

    #[test]
    fn the_earlier_of_two_deadlines_counts() {
        let mut talk = Talk::new([], []);
        for (idle, lifetime, due) in [
            (Some(3), None, Some((3, Reason::Idle))),
            (Some(3), Some(5), Some((3, Reason::Idle))),
            (Some(5), Some(3), Some((3, Reason::Lifetime))),
            (None, Some(3), Some((3, Reason::Lifetime))),
        ] {
            talk.limits.idle = idle.map(|seconds| SECOND * seconds);
            talk.limits.lifetime = lifetime.map(|seconds| SECOND * seconds);
            let due = due.map(|(seconds, reason)| (talk.now + SECOND * seconds, reason));
            assert_eq!(talk.due(), due);
        }
    }

    #[test]
    fn leaving_has_a_deadline_even_without_limits() {
        let mut talk = Talk::new([In::Data(9)], [Out::Block, Out::Block]);
        talk.limits.stall = None;
        talk.limits.leave = SECOND * 7;
        talk.limits.lifetime = Some(SECOND);
        talk.turn();
        talk.leave();
        let due = Some((talk.now + SECOND * 7, Reason::Abandoned));
        assert_eq!(talk.due(), due);
        talk.now += SECOND;
        talk.turn();
        assert_eq!(talk.due(), due, "a turn does not extend it");
        talk.limits.stall = Some(SECOND * 2);
        assert!(talk.due().is_some_and(|(_, why)| why == Reason::Stalled));
    }

    #[test]
    fn leaving_may_always_take_as_long_as_lingering() {
        for (leave, due) in [
            (Duration::ZERO, LINGER),
            (LINGER - MILLISECOND, LINGER),
            (LINGER * 2, LINGER * 2),
        ] {
            let mut talk = Talk::new([In::Data(9)], [Out::Take(4)]);
            (talk.limits.bytes, talk.limits.leave) = (Some(9), leave);
            assert_eq!(talk.turn(), Step::Blocked);
            let due = talk.now + due;
            assert_eq!(talk.due(), Some((due, Reason::Abandoned)));
        }
    }

    #[test]
    fn an_idle_or_stall_time_out_counts_while_leaving() {
        let mut talk = Talk::new([], []);
        talk.limits.idle = Some(SECOND);
        talk.now += SECOND - GRACE / 2;
        talk.leave();
        let idle = talk.now + GRACE / 2;
        assert_eq!(talk.due(), Some((idle, Reason::Idle)));
        talk.limits.idle = Some(SECOND * 2);
        assert_eq!(talk.due(), Some((talk.now + GRACE, Reason::Left)));
    }

    #[test]
    fn lingering_has_a_deadline_that_nothing_moves() {
        let mut talk = Talk::new([], []);
        talk.limits.idle = Some(Duration::from_millis(1));
        talk.leave();
        talk.now += SECOND;
        assert_eq!(talk.turn(), Step::Blocked);
        let due = Some((talk.now + LINGER, Reason::Left));
        assert_eq!(talk.due(), due);
        for _ in 0..5 {
            talk.now += SECOND / 20;
            talk.script.reads = [In::Data(1000)].into();
            talk.turn();
            assert_eq!(talk.due(), due);
        }
    }

    // Whatever happens.

    fn reads() -> impl Strategy<Value = In> {
        prop_oneof![
            6 => (1..200_usize).prop_map(In::Data),
            2 => (1..3 * SCRATCH).prop_map(In::Data),
            1 => Just(In::Data(SCRATCH)),
            1 => (1..6 * BUDGET / 5).prop_map(In::Data),
            4 => Just(In::Block),
            1 => Just(In::Interrupt),
        ]
    }

    fn writes() -> impl Strategy<Value = Out> {
        prop_oneof![
            6 => (1..200_usize).prop_map(Out::Take),
            3 => (1..2 * SCRATCH).prop_map(Out::Take),
            4 => Just(Out::Block),
            2 => Just(Out::Interrupt),
        ]
    }

    /// How a stream ends, if it does.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Fate {
        End,
        ReadFails,
        WriteFails,
        Open,
    }

    fn cases() -> u32 {
        let asked = std::env::var("PROPTEST_CASES").ok();
        asked.and_then(|text| text.parse().ok()).unwrap_or(1500)
    }

    proptest! {
        // PROPTEST_CASES asks for more, PROPTEST_RNG_SEED for the same again.
        #![proptest_config(ProptestConfig {
            cases: cases(),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn the_output_is_the_input(
            reads in prop::collection::vec(reads(), 0..24),
            writes in prop::collection::vec(writes(), 0..24),
            hints in prop::collection::vec(any::<bool>(), 8),
            fate in prop::sample::select(vec![
                Fate::End, Fate::End, Fate::End, Fate::ReadFails, Fate::WriteFails, Fate::Open,
            ]),
            leave_at in prop::option::of(0..40_usize),
            most in prop::option::weighted(0.3, 0..300_000_u64),
            stops_short in any::<bool>(),
            finish_fails in prop::bool::weighted(0.1),
            unread in prop::option::of(0..200_000_u64),
            pauses in prop::collection::vec(prop::sample::select(vec![
                0, 0, 1, 1, 1, 20, 49, 50, 51, 200, 400,
            ]), 8),
        ) {
            let total: usize = reads.iter().map(|read| match read {
                In::Data(count) => *count,
                _ => 0,
            }).sum();
            // A turn uses up an item of the script, or its budget.
            let patience = reads.len() + writes.len() + total / LEAST + 48;
            let mut talk = Talk::new(reads, writes);
            match fate {
                Fate::End => talk.script.reads.push_back(In::End),
                Fate::ReadFails => talk.script.reads.push_back(In::Fail(libc_errno::ECONNRESET)),
                Fate::WriteFails => talk.script.writes.push_back(Out::Fail(libc_errno::EPIPE)),
                Fate::Open => {}
            }
            talk.limits.bytes = most;
            talk.script.stops_short = stops_short;
            talk.script.finish_fails = finish_fails;
            talk.script.unread = unread;
            let mut over = None;
            for turn in 0..patience {
                if leave_at == Some(turn) {
                    talk.leave();
                }
                let hint = if hints[turn % hints.len()] { Hint::ReadOn } else { Hint::Plain };
                talk.now += MILLISECOND * pauses[turn % pauses.len()];
                match talk.turn_with(hint) {
                    Step::Done(reason) => {
                        over = Some(reason);
                        break;
                    }
                    Step::Yield => {}
                    Step::Blocked => {
                        if talk.script.reads.is_empty() && talk.connection.owed() == 0 {
                            if let Phase::Lingering { since, .. } = talk.connection.phase() {
                                prop_assert_eq!(talk.due().map(|(at, _)| at), Some(since + LINGER));
                                break;
                            }
                            if let Phase::Leaving { .. } = talk.connection.phase() {
                                // That it is due, and for what, was checked after the turn.
                                talk.now = talk.due().expect("our FIN").0;
                            }
                            // Nobody says anything more: the end of the daemon.
                            talk.leave();
                        }
                    }
                }
                prop_assert!(turn + 1 < patience, "it does not end");
            }
            let (connection, script) = (&talk.connection, &talk.script);
            // Each byte was compared when it was written; here it is about how many.
            if script.finished {
                let lingers = matches!(connection.phase(), Phase::Lingering { .. });
                prop_assert!(lingers, "finished, but does not linger");
            } else if matches!(over, Some(Reason::PeerDone | Reason::Left | Reason::Spent)) {
                prop_assert_eq!(script.taken, script.given);
            }
            match over {
                Some(Reason::Reset) => {
                    prop_assert!(matches!(fate, Fate::ReadFails | Fate::WriteFails));
                }
                Some(Reason::PeerDone) => prop_assert!(fate == Fate::End),
                Some(Reason::Spent) => prop_assert!(most.is_some_and(|most| script.given >= most)),
                Some(Reason::Left) | None => {}
                other => prop_assert!(false, "ended for {other:?}"),
            }
        }
    }
}
