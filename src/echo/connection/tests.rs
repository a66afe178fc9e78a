use std::time::Duration;

use std::io::{Read, Write};

use super::*;
use crate::echo::buffers::HeapStore;
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

/// The last result of a stream, in one direction.
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

/// A scripted stream.  It checks each byte that is written, and asserts that nothing impossible is
/// asked of it.
#[derive(Debug)]
pub(in crate::echo) struct Script {
    pub(in crate::echo) reads: VecDeque<In>,
    pub(in crate::echo) writes: VecDeque<Out>,
    pub(in crate::echo) stops_short: bool,
    pub(in crate::echo) finish_fails: bool,
    /// What the stream says of its queues; it does not change what the script does.
    pub(in crate::echo) unread: Option<u64>,
    pub(in crate::echo) unacknowledged: u64,
    pub(in crate::echo) unsent: u64,
    /// Bytes that were read and written; each is checked when it is written.
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

    /// The stream of a connection whose first `moved` bytes another process has echoed.
    pub(in crate::echo) fn resumed(reads: impl IntoIterator<Item = In>, moved: u64) -> Self {
        Self {
            given: moved,
            taken: moved,
            ..Self::new(reads, [])
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
        assert!(!self.finished, "written after the FIN");
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

/// A connection with its script, a store and a clock.
struct Harness {
    connection: Connection,
    script: Script,
    store: HeapStore,
    limits: Limits,
    now: MonoTime,
    /// Whether an event said to read on and no `WouldBlock` has come since: kept here once more.
    read_on: bool,
    /// When a byte last moved: kept here once more.
    moved: MonoTime,
}

impl Harness {
    fn new(reads: impl IntoIterator<Item = In>, writes: impl IntoIterator<Item = Out>) -> Self {
        let now = MonoTime::new(1 << 60);
        Self {
            connection: Connection::new(now),
            script: Script::new(reads, writes),
            store: HeapStore::new(),
            limits: Limits::default(),
            now,
            read_on: false,
            moved: now,
        }
    }

    /// When the FIN may be sent after a stop, if the last byte moved at `moved`.
    fn silent_at(since: MonoTime, moved: MonoTime) -> MonoTime {
        (moved.max(since) + GRACE).min(since + LINGER)
    }

    /// Gives the connection a turn and checks everything that must hold after any turn.
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
        assert!(moved <= TURN_BYTES as u64, "{moved} bytes in one turn");
        assert!(
            reads <= TURN_BYTES / READ_MIN_BYTES + 1,
            "{reads} reads in one turn"
        );
        assert_eq!(connection.received(), script.given);
        assert_eq!(connection.sent(), script.taken);
        assert!(connection.owed() <= SCRATCH as u64, "owes too much");
        let owes = connection.owed() > 0;
        assert_eq!(connection.want() == Want::Write, owes);
        let echoing = connection.phase() == Phase::Echoing;
        match step {
            Step::Header => panic!("there is no header"),
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
                    || moved + reads as u64 * READ_MIN_BYTES as u64 >= TURN_BYTES as u64,
                "yielded for nothing"
            ),
            Step::Done(_) => assert!(script.broken, "done, and nothing had happened"),
        }
        if let (
            Phase::Draining {
                since,
                reason: EndReason::Shutdown,
            }
            | Phase::Finishing {
                since,
                reason: EndReason::Shutdown,
                ..
            },
            Phase::Lingering { .. },
        ) = (was.0, connection.phase())
        {
            // What is read after the FIN is discarded and does not count.
            let silent = script.taken == was.1 && self.now >= Self::silent_at(since, was.2);
            assert!(
                silent || self.now >= since + LINGER,
                "the FIN was sent before the peer was silent"
            );
        }
        if let (
            Step::Blocked,
            false,
            Phase::Draining { since, reason } | Phase::Finishing { since, reason, .. },
        ) = (step, owes, connection.phase())
        {
            assert_eq!(
                reason,
                EndReason::Shutdown,
                "draining for a limit does not wait"
            );
            let silent = Self::silent_at(since, self.moved);
            assert!(self.now < silent, "the FIN is late");
            let due = connection.due(&Limits {
                idle: None,
                ..self.limits.clone()
            });
            assert_eq!(
                due,
                Some((silent, Deadline::SendFin)),
                "no deadline for the FIN"
            );
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

    /// Gives turns, as events would, until the script is used up.
    #[track_caller]
    fn finish(&mut self) -> Step {
        loop {
            match self.turn() {
                Step::Done(reason) => return Step::Done(reason),
                Step::Blocked if self.script.reads.is_empty() && self.connection.owed() == 0 => {
                    return Step::Blocked;
                }
                Step::Blocked | Step::Yield | Step::Header => {}
            }
        }
    }

    fn drain(&mut self) {
        self.connection.drain(EndReason::Shutdown, self.now);
    }

    fn due(&self) -> Option<(MonoTime, Deadline)> {
        self.connection.due(&self.limits)
    }
}

// How a turn ends.

#[test]
fn a_message_costs_one_read_and_one_write() {
    let mut test = Harness::new([In::Data(5), In::Data(7)], []);
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!(test.script.calls, (1, 1), "a short read ends the turn");
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!((test.script.calls, test.script.taken), ((2, 2), 12));
}

#[test]
fn reads_grow_while_the_peer_takes_its_echo() {
    let mut test = Harness::new([In::Data(4 * MIB)], []);
    // Twice as much each time, up to the bytes of a turn, and then all of them at once.
    assert_eq!(test.turn(), Step::Yield);
    assert_eq!(test.script.calls, (3, 3));
    assert_eq!(test.turn(), Step::Yield);
    assert_eq!(test.script.calls, (4, 4));
    // While something waits to be sent, reads are short; after a short write they begin short.
    test.script.unsent = 1;
    assert_eq!(test.turn(), Step::Yield);
    assert_eq!(test.script.calls, (8, 8));
    test.script.unsent = 0;
    test.script.writes.push_back(Out::Take(SCRATCH - 1));
    test.script.writes.push_back(Out::Block);
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!(test.connection.owed(), 1);
    assert_eq!(test.script.calls, (9, 9));
    test.script.writes.clear();
    assert_eq!(test.turn(), Step::Yield);
    assert_eq!(test.script.calls, (12, 13));
}

#[test]
fn a_read_that_fills_the_buffer_is_followed_by_another() {
    let mut test = Harness::new([In::Data(FIRST_READ_BYTES), In::Data(1)], []);
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!(test.script.calls, (2, 2));
    assert_eq!(test.script.taken, FIRST_READ_BYTES as u64 + 1);
}

#[test]
fn the_end_behind_a_short_read_is_found_if_the_event_announced_it() {
    let mut test = Harness::new([In::Data(5), In::End], []);
    assert_eq!(
        test.turn_with(Hint::ReadOn),
        Step::Done(EndReason::PeerClosed)
    );
    assert_eq!(test.script.taken, 5);
}

#[test]
fn a_hint_holds_while_something_is_owed() {
    let mut test = Harness::new([In::Data(5), In::End], [Out::Block]);
    assert_eq!(test.turn_with(Hint::ReadOn), Step::Blocked);
    assert_eq!(test.connection.want(), Want::Write);
    assert_eq!(test.turn(), Step::Done(EndReason::PeerClosed));
    // The same holds for a hint to a connection that waits for its turn.
    let mut test = Harness::new([In::Data(5), In::End], []);
    test.connection.add_hint(Hint::ReadOn);
    test.connection.add_hint(Hint::Plain);
    test.read_on = true;
    assert_eq!(test.turn(), Step::Done(EndReason::PeerClosed));
}

#[test]
fn would_block_settles_a_hint() {
    let mut test = Harness::new([In::Data(5), In::Block, In::Data(5), In::Data(5)], []);
    assert_eq!(test.turn_with(Hint::ReadOn), Step::Blocked);
    assert_eq!(test.script.calls, (2, 1));
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!(test.script.calls, (3, 2), "two calls a message again");
}

#[test]
fn would_block_does_not_count_while_bytes_wait() {
    let reads = [In::Data(1), In::Hide, In::Data(1), In::Block];
    let mut test = Harness::new(reads, []);
    assert_eq!(test.turn_with(Hint::ReadOn), Step::Yield);
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!(test.script.taken, 2);
    // The FIN is not sent before they are echoed.
    let reads = [In::Data(1), In::Hide, In::Data(1), In::Block, In::End];
    let mut test = Harness::new(reads, []);
    test.connection.add_hint(Hint::ReadOn);
    test.read_on = true;
    test.drain();
    test.now += LINGER;
    test.moved = test.now;
    test.script.unread = Some(2);
    assert_eq!(test.turn(), Step::Yield);
    assert!(!test.script.finished);
    assert_eq!(test.finish(), Step::Done(EndReason::Shutdown));
    assert_eq!(test.script.taken, 2);
}

#[test]
fn a_stream_that_stops_short_is_read_to_would_block() {
    let mut test = Harness::new([In::Data(5), In::Data(5), In::End], []);
    test.script.stops_short = true;
    assert_eq!(test.turn(), Step::Done(EndReason::PeerClosed));
    assert_eq!(test.script.taken, 10);
}

#[test]
fn nothing_is_read_while_something_is_owed() {
    let mut test = Harness::new(
        [In::Data(100), In::Data(100)],
        [Out::Take(40), Out::Take(30), Out::Block, Out::Take(30)],
    );
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!(test.connection.owed(), 60);
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!((test.connection.owed(), test.script.calls.0), (30, 1));
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!(test.connection.want(), Want::Read);
    assert_eq!(
        test.script.taken, 200,
        "read again in the turn that wrote the rest"
    );
}

#[test]
fn a_flood_yields_after_the_bytes_of_a_turn() {
    let mut test = Harness::new([In::Data(MIB)], []);
    for turn in 1..=4 {
        assert_eq!(test.turn(), Step::Yield);
        assert_eq!(test.script.taken, turn * TURN_BYTES as u64);
    }
    assert_eq!(test.turn(), Step::Blocked);
    // A read of an odd length does not exceed it either.
    let mut test = Harness::new([In::Data(READ_MIN_BYTES + 1), In::Data(MIB)], []);
    assert_eq!(test.turn_with(Hint::ReadOn), Step::Yield);
    assert_eq!(test.script.taken, TURN_BYTES as u64);
}

#[test]
fn a_peer_whose_reads_end_after_each_byte_yields_too() {
    let mut test = Harness::new([In::Data(1); 1000], []);
    test.script.stops_short = true;
    assert_eq!(test.turn(), Step::Yield);
    assert_eq!(test.script.taken, (TURN_BYTES / READ_MIN_BYTES) as u64);
}

#[test]
fn an_interrupted_call_yields_and_loses_nothing() {
    let mut test = Harness::new(
        [In::Interrupt, In::Data(10), In::End],
        [Out::Interrupt, Out::Take(3), Out::Interrupt],
    );
    assert_eq!(test.turn(), Step::Yield);
    assert_eq!(test.turn(), Step::Yield);
    assert_eq!(test.connection.owed(), 10);
    assert_eq!(test.turn(), Step::Yield);
    assert_eq!(test.connection.owed(), 7);
    assert_eq!(test.finish(), Step::Done(EndReason::PeerClosed));
    assert_eq!(test.script.taken, 10);
}

// How a connection ends.

#[test]
fn an_error_ends_the_connection_and_the_summary_says_what_was_lost() {
    let reset = EndReason::Reset;
    for (errno, reason) in [
        (libc_errno::ECONNRESET, reset),
        (libc_errno::ECONNABORTED, reset),
        (libc_errno::EPIPE, reset),
        (libc_errno::ENOTCONN, reset),
        (libc_errno::ETIMEDOUT, EndReason::TimedOut),
        (libc_errno::EHOSTUNREACH, EndReason::TimedOut),
        (libc_errno::ENETUNREACH, EndReason::TimedOut),
        (
            libc_errno::ENOBUFS.into(),
            EndReason::Error(libc_errno::ENOBUFS),
        ),
        (ENOMEM.into(), EndReason::Error(ENOMEM)),
    ] {
        let mut read = Harness::new([In::Data(SCRATCH), In::Fail(errno)], []);
        let mut wrote = Harness::new([In::Data(9)], [Out::Fail(errno)]);
        let mut flushed = Harness::new([In::Data(9)], [Out::Take(5), Out::Fail(errno)]);
        for (test, owed) in [(&mut read, 0), (&mut wrote, 9), (&mut flushed, 4)] {
            assert_eq!(test.finish(), Step::Done(reason));
            let summary = test.connection.summary(reason, test.now + SECOND);
            assert_eq!(summary.owed, owed);
            assert_eq!(summary.received, summary.sent + owed);
            assert_eq!(summary.duration, SECOND);
        }
    }
}

/// The numbers of errno(3), which the code of this folder does not use.
mod libc_errno {
    pub(super) const EPIPE: i32 = 32;
    pub(super) const ENETUNREACH: i32 = 101;
    pub(super) const ECONNABORTED: i32 = 103;
    pub(super) const ECONNRESET: i32 = 104;
    pub(super) const ENOBUFS: u16 = 105;
    pub(super) const ENOTCONN: i32 = 107;
    pub(super) const ETIMEDOUT: i32 = 110;
    pub(super) const EHOSTUNREACH: i32 = 113;
}

#[test]
fn a_write_that_returns_zero_is_an_error() {
    let mut test = Harness::new([In::Data(9)], [Out::Take(0), Out::Take(0)]);
    assert_eq!(test.turn(), Step::Blocked);
    let step = test.connection.advance(
        &mut test.script,
        &mut test.store,
        Hint::Plain,
        &test.limits,
        test.now,
    );
    assert_eq!(step, Step::Done(EndReason::Error(0)));
}

#[test]
fn the_peers_end_waits_behind_what_is_owed() {
    let mut test = Harness::new([In::Data(9), In::End], [Out::Block, Out::Take(8)]);
    assert_eq!(test.turn_with(Hint::ReadOn), Step::Blocked);
    assert_eq!(test.turn(), Step::Done(EndReason::PeerClosed));
    assert_eq!(test.script.taken, 9);
}

#[test]
fn draining_echoes_what_is_readable_then_sends_the_fin_then_lingers() {
    let mut test = Harness::new([In::Data(5), In::Data(5), In::Block], []);
    test.drain();
    let asked = test.now;
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!(test.script.taken, 10, "a short read does not end draining");
    assert!(!test.script.finished, "more may be on its way");
    let (since, reason) = (asked, EndReason::Shutdown);
    let draining = Phase::Draining { since, reason };
    assert_eq!(test.connection.phase(), draining);
    assert_eq!(test.due(), Some((asked + GRACE, Deadline::SendFin)));
    test.now = asked + GRACE - MILLISECOND;
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!(test.connection.phase(), draining);
    test.now = asked + GRACE;
    assert_eq!(test.turn(), Step::Blocked);
    assert!(test.script.finished);
    let (since, until) = (test.now, asked + test.limits.stop_timeout);
    let lingering = Phase::Lingering {
        since,
        until,
        reason,
    };
    assert_eq!(test.connection.phase(), lingering);
    test.script.reads = [In::Data(MIB), In::Interrupt, In::End].into();
    assert_eq!(test.finish(), Step::Done(EndReason::Shutdown));
    let summary = test.connection.summary(EndReason::Shutdown, test.now);
    assert_eq!((summary.sent, summary.owed), (10, 0));
    assert_eq!(summary.received, 10 + MIB as u64);
}

#[test]
fn after_a_stop_each_byte_postpones_the_fin_but_not_beyond_linger() {
    let mut test = Harness::new([], []);
    // A byte that moved before the stop does not shorten the silence after it.
    test.now += SECOND;
    test.drain();
    let asked = test.now;
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
        test.now = asked + MILLISECOND * at;
        test.script.reads = [In::Data(3)].into();
        assert_eq!(test.turn(), Step::Blocked);
        assert!(!test.script.finished, "at {at}");
        let due = asked + MILLISECOND * due;
        assert_eq!(test.due(), Some((due, Deadline::SendFin)), "at {at}");
    }
    test.now = asked + LINGER;
    assert_eq!(test.turn(), Step::Blocked);
    assert!(test.script.finished);
    assert_eq!(test.script.taken, 30);
}

#[test]
fn what_arrives_when_the_fin_is_due_is_echoed_and_postpones_it() {
    let mut test = Harness::new([], []);
    test.drain();
    test.now += GRACE;
    test.script.reads = [In::Data(7)].into();
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!((test.script.taken, test.script.finished), (7, false));
    assert_eq!(test.due(), Some((test.now + GRACE, Deadline::SendFin)));
    test.now += GRACE;
    assert_eq!(test.turn(), Step::Blocked);
    assert!(test.script.finished);
}

#[test]
fn what_the_peer_takes_after_a_stop_postpones_the_fin_too() {
    let mut test = Harness::new([In::Data(50)], [Out::Take(10), Out::Block]);
    assert_eq!(test.turn(), Step::Blocked);
    test.drain();
    let asked = test.now;
    assert_eq!(test.turn(), Step::Blocked);
    let abandoned = (asked + test.limits.stop_timeout, Deadline::StopTimeout);
    assert_eq!(
        test.due(),
        Some(abandoned),
        "no FIN while something is owed"
    );
    test.now = asked + GRACE * 3;
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!((test.script.taken, test.script.finished), (50, false));
    assert_eq!(test.due(), Some((asked + GRACE * 4, Deadline::SendFin)));
}

#[test]
fn a_flood_after_a_stop_is_echoed_as_far_as_it_had_arrived_when_linger_was_over() {
    let flood = || [In::Data(1000), In::Data(500)];
    for (unread, taken) in [(Some(1000), 1001), (Some(999), 1001), (None, 1501)] {
        let mut test = Harness::new([In::Data(1)], []);
        test.drain();
        let asked = test.now;
        assert_eq!(test.turn(), Step::Blocked);
        test.now = asked + LINGER;
        test.script.unread = unread;
        test.script.reads = flood().into();
        assert_eq!(test.turn(), Step::Blocked);
        assert!(test.script.finished);
        assert_eq!(test.script.taken, taken, "{unread:?} to be read");
        assert_eq!(test.connection.received(), 1501);
    }
    // Before that time, the number of unread bytes does not matter.
    let mut test = Harness::new([], []);
    test.drain();
    test.now += LINGER - MILLISECOND;
    test.script.unread = Some(1000);
    test.script.reads = flood().into();
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!((test.script.taken, test.script.finished), (1500, false));
    // Draining for a limit does not wait.
    let mut test = Harness::new(flood(), []);
    test.script.unread = Some(1000);
    test.connection.drain(EndReason::MaxLifetime, test.now);
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!((test.script.taken, test.script.finished), (1000, true));
}

#[test]
fn a_limit_sends_the_fin_at_once() {
    for reason in [EndReason::MaxLifetime, EndReason::MaxBytes] {
        let mut test = Harness::new([In::Data(5), In::Data(5)], []);
        test.connection.drain(reason, test.now);
        assert_eq!(test.turn(), Step::Blocked);
        assert_eq!((test.script.taken, test.script.finished), (10, true));
        assert_eq!(test.due(), Some((test.now + LINGER, Deadline::Linger)));
    }
}

#[test]
fn draining_writes_what_is_owed_first() {
    let mut test = Harness::new([In::Data(50)], [Out::Take(10), Out::Block, Out::Take(20)]);
    assert_eq!(test.turn(), Step::Blocked);
    test.drain();
    test.now += LINGER;
    assert_eq!(test.turn(), Step::Blocked);
    assert!(!test.script.finished);
    assert_eq!(test.turn(), Step::Blocked);
    assert!(test.script.finished);
    assert_eq!(test.script.taken, 50);
}

#[test]
fn the_first_reason_for_draining_counts() {
    let mut test = Harness::new([], []);
    test.connection.drain(EndReason::MaxLifetime, test.now);
    let (since, reason) = (test.now, EndReason::MaxLifetime);
    let asked = since;
    test.now += SECOND;
    test.drain();
    let draining = Phase::Draining { since, reason };
    assert_eq!(test.connection.phase(), draining);
    assert_eq!(test.turn(), Step::Blocked);
    let since = test.now;
    test.now += SECOND;
    test.drain();
    let until = asked + test.limits.stop_timeout;
    let lingering = Phase::Lingering {
        since,
        until,
        reason,
    };
    assert_eq!(test.connection.phase(), lingering);
}

#[test]
fn a_peer_that_ends_while_draining_ends_it_in_good_order() {
    let mut test = Harness::new([], []);
    test.script.finish_fails = true;
    test.drain();
    assert_eq!(test.turn(), Step::Blocked);
    test.now += GRACE;
    assert_eq!(test.turn(), Step::Done(EndReason::Shutdown));
    for last in [In::End, In::Fail(libc_errno::ECONNRESET)] {
        let mut test = Harness::new([In::Block, last], []);
        test.drain();
        test.now += GRACE;
        assert_eq!(test.turn(), Step::Done(EndReason::Shutdown));
        assert!(test.script.finished);
    }
    // The end of the peer's stream before the FIN is one in good order.
    let mut test = Harness::new([In::Data(3), In::End], []);
    test.drain();
    assert_eq!(test.turn(), Step::Done(EndReason::Shutdown));
    assert_eq!((test.script.taken, test.script.finished), (3, false));
    // A reset before the FIN is a reset: something may have been lost.
    let mut test = Harness::new([In::Fail(libc_errno::ECONNRESET)], []);
    test.drain();
    assert_eq!(test.turn(), Step::Done(EndReason::Reset));
}

#[test]
fn a_peer_that_reaches_the_limit_of_bytes_gets_all_back_and_the_fin() {
    for most in [1, 99, 100] {
        let mut test = Harness::new([In::Data(100)], []);
        test.limits.bytes = Some(most);
        assert_eq!(test.turn(), Step::Blocked);
        assert!(test.script.finished, "at {most}");
        assert_eq!(test.script.taken, 100);
        test.script.reads = [In::End].into();
        assert_eq!(test.turn(), Step::Done(EndReason::MaxBytes));
    }
    let mut test = Harness::new([In::Data(100)], [Out::Take(1), Out::Block]);
    test.limits.bytes = Some(100);
    assert_eq!(test.turn(), Step::Blocked);
    assert!(!test.script.finished);
    assert_eq!(test.finish(), Step::Blocked);
    assert!(test.script.finished);
    let mut test = Harness::new([In::Data(100)], []);
    test.limits.bytes = Some(101);
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!(test.connection.phase(), Phase::Echoing);
}

// When it ends by the clock.

#[test]
fn without_limits_nothing_is_due() {
    let mut test = Harness::new([], []);
    test.limits.stall = None;
    assert_eq!(test.due(), None);
}

#[test]
fn the_idle_time_out_runs_from_the_last_byte_while_nothing_is_owed() {
    let mut test = Harness::new([In::Block, In::Data(1)], []);
    (test.limits.idle, test.limits.stall) = (Some(SECOND * 9), None);
    let start = test.now;
    assert_eq!(test.due(), Some((start + SECOND * 9, Deadline::Idle)));
    test.now += SECOND;
    test.turn();
    assert_eq!(test.due(), Some((start + SECOND * 9, Deadline::Idle)));
    test.now += SECOND;
    test.turn();
    assert_eq!(test.due(), Some((start + SECOND * 11, Deadline::Idle)));
}

#[test]
fn the_stall_time_out_runs_from_the_last_byte_taken_while_something_is_owed() {
    let mut test = Harness::new(
        [In::Data(9)],
        [Out::Block, Out::Block, Out::Take(1), Out::Block],
    );
    (test.limits.idle, test.limits.stall) = (Some(SECOND), Some(SECOND * 9));
    let start = test.now;
    for (second, due) in [(0, 9), (1, 9), (2, 11)] {
        test.now = start + SECOND * second;
        assert_eq!(test.turn(), Step::Blocked);
        let due = start + SECOND * due;
        assert_eq!(test.due(), Some((due, Deadline::Stall)), "at {second}");
    }
    test.now = start + SECOND * 3;
    assert_eq!(test.turn(), Step::Blocked);
    assert_eq!(test.due(), Some((start + SECOND * 4, Deadline::Idle)));
}

#[test]
fn the_earlier_of_two_deadlines_counts() {
    let mut test = Harness::new([], []);
    for (idle, lifetime, due) in [
        (Some(3), None, Some((3, Deadline::Idle))),
        (Some(3), Some(5), Some((3, Deadline::Idle))),
        (Some(5), Some(3), Some((3, Deadline::Lifetime))),
        (None, Some(3), Some((3, Deadline::Lifetime))),
    ] {
        test.limits.idle = idle.map(|seconds| SECOND * seconds);
        test.limits.lifetime = lifetime.map(|seconds| SECOND * seconds);
        let end_of_life = test.limits.end_of_life(test.now);
        let due = due.and_then(|(seconds, deadline)| match deadline {
            Deadline::Lifetime => Some((end_of_life?, deadline)),
            _ => Some((test.now + SECOND * seconds, deadline)),
        });
        assert_eq!(test.due(), due);
    }
}

#[test]
fn draining_has_a_deadline_even_without_limits() {
    let mut test = Harness::new([In::Data(9)], [Out::Block, Out::Block]);
    test.limits.stall = None;
    test.limits.stop_timeout = SECOND * 7;
    test.limits.lifetime = Some(SECOND);
    test.turn();
    test.drain();
    let due = Some((test.now + SECOND * 7, Deadline::StopTimeout));
    assert_eq!(test.due(), due);
    test.now += SECOND;
    test.turn();
    assert_eq!(test.due(), due, "a turn does not extend it");
    test.limits.stall = Some(SECOND * 2);
    assert!(
        test.due()
            .is_some_and(|(_, deadline)| deadline == Deadline::Stall)
    );
}

#[test]
fn draining_may_always_take_as_long_as_lingering() {
    for (stop_timeout, due) in [
        (Duration::ZERO, LINGER),
        (LINGER - MILLISECOND, LINGER),
        (LINGER * 2, LINGER * 2),
    ] {
        let mut test = Harness::new([In::Data(9)], [Out::Take(4)]);
        (test.limits.bytes, test.limits.stop_timeout) = (Some(9), stop_timeout);
        assert_eq!(test.turn(), Step::Blocked);
        let due = test.now + due;
        assert_eq!(test.due(), Some((due, Deadline::StopTimeout)));
    }
}

#[test]
fn an_idle_or_stall_time_out_counts_while_draining() {
    let mut test = Harness::new([], []);
    test.limits.idle = Some(SECOND);
    test.now += SECOND - GRACE / 2;
    test.drain();
    let idle = test.now + GRACE / 2;
    assert_eq!(test.due(), Some((idle, Deadline::Idle)));
    test.limits.idle = Some(SECOND * 2);
    assert_eq!(test.due(), Some((test.now + GRACE, Deadline::SendFin)));
}

#[test]
fn input_does_not_move_the_deadline_of_lingering() {
    let mut test = Harness::new([], []);
    test.limits.idle = Some(Duration::from_millis(1));
    test.drain();
    test.now += SECOND;
    assert_eq!(test.turn(), Step::Blocked);
    let due = Some((test.now + LINGER, Deadline::Linger));
    assert_eq!(test.due(), due);
    for _ in 0..5 {
        test.now += SECOND / 20;
        test.script.reads = [In::Data(1000)].into();
        test.turn();
        assert_eq!(test.due(), due);
    }
}

// When a header stands before its stream.

#[test]
fn nothing_is_read_before_the_header_was_taken() {
    let now = MonoTime::new(1 << 60);
    let (due, limits) = (now + SECOND, Limits::default());
    let mut store = HeapStore::new();
    let mut script = Script::new([In::Data(3), In::End], []);
    let mut connection = Connection::behind_header(due, now);
    for _ in 0..2 {
        let step = connection.advance(&mut script, &mut store, Hint::Plain, &limits, now);
        assert_eq!(step, Step::Header);
        assert_eq!(connection.due(&limits), Some((due, Deadline::Header)));
        connection.check();
    }
    connection.header_taken(now);
    let step = connection.advance(&mut script, &mut store, Hint::ReadOn, &limits, now);
    assert_eq!(step, Step::Done(EndReason::PeerClosed));
    let summary = connection.summary(EndReason::PeerClosed, now);
    assert_eq!((summary.received, summary.sent, summary.owed), (3, 3, 0));
}

#[test]
fn a_stop_leaves_a_header_some_time_and_then_drains_the_stream() {
    let now = MonoTime::new(1 << 60);
    let limits = Limits::default();
    let mut connection = Connection::behind_header(now + 10 * SECOND, now);
    connection.drain(EndReason::Shutdown, now);
    assert_eq!(
        connection.due(&limits),
        Some((now + LINGER, Deadline::Header))
    );
    assert_eq!(connection.reason_of_end(), EndReason::Shutdown);
    connection.header_taken(now);
    assert!(matches!(
        connection.phase(),
        Phase::Draining {
            reason: EndReason::Shutdown,
            ..
        }
    ));
}

// Whatever happens.

fn reads() -> impl Strategy<Value = In> {
    prop_oneof![
        6 => (1..200_usize).prop_map(In::Data),
        2 => (1..3 * SCRATCH).prop_map(In::Data),
        1 => Just(In::Data(SCRATCH)),
        1 => (1..6 * TURN_BYTES / 5).prop_map(In::Data),
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
        drain_at in prop::option::of(0..40_usize),
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
        let most_turns = reads.len() + writes.len() + total / READ_MIN_BYTES + 48;
        let mut test = Harness::new(reads, writes);
        match fate {
            Fate::End => test.script.reads.push_back(In::End),
            Fate::ReadFails => test.script.reads.push_back(In::Fail(libc_errno::ECONNRESET)),
            Fate::WriteFails => test.script.writes.push_back(Out::Fail(libc_errno::EPIPE)),
            Fate::Open => {}
        }
        test.limits.bytes = most;
        test.script.stops_short = stops_short;
        test.script.finish_fails = finish_fails;
        test.script.unread = unread;
        let mut over = None;
        for turn in 0..most_turns {
            if drain_at == Some(turn) {
                test.drain();
            }
            let hint = if hints[turn % hints.len()] { Hint::ReadOn } else { Hint::Plain };
            test.now += MILLISECOND * pauses[turn % pauses.len()];
            match test.turn_with(hint) {
                Step::Done(reason) => {
                    over = Some(reason);
                    break;
                }
                Step::Yield | Step::Header => {}
                Step::Blocked => {
                    if test.script.reads.is_empty() && test.connection.owed() == 0 {
                        if let Phase::Lingering { since, .. } = test.connection.phase() {
                            prop_assert_eq!(test.due().map(|(at, _)| at), Some(since + LINGER));
                            break;
                        }
                        if let Phase::Draining { .. } = test.connection.phase() {
                            // The turn has checked which deadline it is.
                            test.now = test.due().expect("a deadline for the FIN").0;
                        }
                        // The peer sends nothing more: the daemon stops.
                        test.drain();
                    }
                }
            }
            prop_assert!(turn + 1 < most_turns, "it does not end");
        }
        let (connection, script) = (&test.connection, &test.script);
        // The script has compared each byte; here their number is checked.
        if script.finished {
            let lingers = matches!(connection.phase(), Phase::Lingering { .. });
            prop_assert!(lingers, "finished, but does not linger");
        } else if matches!(over, Some(EndReason::PeerClosed | EndReason::Shutdown | EndReason::MaxBytes)) {
            prop_assert_eq!(script.taken, script.given);
        }
        match over {
            Some(EndReason::Reset) => {
                prop_assert!(matches!(fate, Fate::ReadFails | Fate::WriteFails));
            }
            Some(EndReason::PeerClosed) => prop_assert!(fate == Fate::End),
            Some(EndReason::MaxBytes) => prop_assert!(most.is_some_and(|most| script.given >= most)),
            Some(EndReason::Shutdown) | None => {}
            other => prop_assert!(false, "ended for {other:?}"),
        }
    }
}

/// Every open connection takes as much, and a field more is a few percent of all that it takes.
#[test]
#[cfg(target_pointer_width = "64")]
fn a_connection_is_small() {
    assert_eq!((size_of::<Phase>(), size_of::<Connection>()), (24, 80));
}
