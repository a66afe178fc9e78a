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

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use super::backlog::{Backlog, Store};
use super::{BUDGET, LINGER, Limits};

/// What the smallest read costs of a turn's budget, in bytes, so that a peer whose reads end
/// after each byte (urgent marks, passed descriptors) gets 256 of them a turn and not 262 144.
const LEAST: usize = 1024;

/// A stream with two directions that end on their own.
pub trait Duplex: Read + Write {
    /// Ends our direction with a FIN (shutdown(2) with `SHUT_WR`).
    ///
    /// # Errors
    /// Those of shutdown(2): the peer may be gone already.
    fn finish_write(&mut self) -> io::Result<()>;

    /// How many bytes wait to be read (`FIONREAD`, tcp(7)), if that can be told.
    fn unread(&self) -> Option<u64> {
        None
    }

    /// How many bytes were written and not acknowledged by the peer (`SIOCOUTQ`, tcp(7)), our FIN
    /// aside: a reset would destroy them.
    fn unacknowledged(&self) -> u64 {
        0
    }

    /// Whether a read may always return less than there is, without a further event: on a Unix
    /// stream it stops behind passed descriptors (unix(7)).
    fn stops_short(&self) -> bool {
        false
    }
}

/// Where in its life a conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Both directions are open.
    Echoing,
    /// We were asked to go: echo what has arrived until then, pay, then FIN.
    Leaving {
        /// When we were asked.
        since: Instant,
        /// Why.
        why: Reason,
        /// The position in the peer's stream up to which it is echoed, if the stream can tell; a
        /// read that says `WouldBlock` has reached it in any case.  Without it a peer that never
        /// stops sending would keep us for as long as leaving may take.  `None`: not asked yet.
        until: Option<u64>,
    },
    /// Our FIN is out; input is thrown away until the peer's FIN, or for [`LINGER`] and until the
    /// peer has acknowledged what it was sent.
    Lingering {
        /// When the FIN went out, or when something was last found unacknowledged.
        since: Instant,
        /// When that does not count any more.
        until: Instant,
        /// Why we left.
        why: Reason,
    },
}

/// What the connection waits for; never both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing is owed: for input.
    Read,
    /// Something is owed: for room in the send queue.
    Write,
}

/// What an event said besides "try".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// A short read has drained the stream.
    Plain,
    /// It may not have: read on to the end or to `WouldBlock`.
    ReadOn,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing more can be done until the kernel announces what [`Connection::want`] says.
    Blocked,
    /// There may be more to do, but it is somebody else's turn.  Nothing will be announced.
    Yield,
    /// The conversation is over.
    Done(Reason),
}

/// Why a conversation ended.  Counted and told; never an `Err`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The peer finished, and got everything back.
    PeerDone,
    /// We were stopped, and everything readable came back.
    Left,
    /// The peer reset the connection, or is gone.
    Reset,
    /// Another error of the stream, by errno(3).
    Error(i32),
    /// Nothing was said for the idle time-out.
    Idle,
    /// The peer took nothing of what it is owed for the stall time-out.
    Stalled,
    /// The connection reached its greatest age.
    Lifetime,
    /// The peer sent as many bytes as it may.
    Spent,
    /// Leaving took too long; what was owed is lost.
    Abandoned,
}

impl Reason {
    /// The words for the log, the counters and the manual, in the order of [`Reason::kind`].
    pub const KINDS: [&'static str; 9] = [
        "peer-done",
        "left",
        "reset",
        "error",
        "idle",
        "stalled",
        "lifetime",
        "spent",
        "abandoned",
    ];

    /// The index into [`Reason::KINDS`].
    #[must_use]
    pub fn kind(self) -> usize {
        match self {
            Self::PeerDone => 0,
            Self::Left => 1,
            Self::Reset => 2,
            Self::Error(_) => 3,
            Self::Idle => 4,
            Self::Stalled => 5,
            Self::Lifetime => 6,
            Self::Spent => 7,
            Self::Abandoned => 8,
        }
    }

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::KINDS[self.kind()]
    }

    fn of(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected => Self::Reset,
            _ => Self::Error(error.raw_os_error().unwrap_or(0)),
        }
    }
}

/// What is told of a conversation when it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Why it ended.
    pub reason: Reason,
    /// Bytes received, those thrown away after our FIN included.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes that were owed and could not be paid.
    pub owed: u64,
    /// From its beginning to its end.
    pub duration: Duration,
}

/// One conversation.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    hint: Hint,
    /// Positions in the two streams, from their beginnings.
    received: u64,
    sent: u64,
    backlog: Option<Backlog>,
    began: Instant,
    /// When a byte last moved in either direction.
    moved: Instant,
}

impl Connection {
    /// A conversation that begins now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Echoing,
            hint: Hint::Plain,
            received: 0,
            sent: 0,
            backlog: None,
            began: now,
            moved: now,
        }
    }

    /// Moves what can be moved, at most [`BUDGET`] bytes.
    ///
    /// The one loop of the data path; it is kept in one piece on purpose.
    pub fn advance(
        &mut self,
        io: &mut impl Duplex,
        store: &mut Store,
        hint: Hint,
        limits: &Limits,
        now: Instant,
    ) -> Step {
        self.remember(hint);
        let mut budget = BUDGET;
        loop {
            while let Some(backlog) = &mut self.backlog {
                match io.write(backlog.owed()) {
                    Ok(0) => return Step::Done(Reason::Error(0)),
                    Ok(count) => {
                        self.sent += count as u64;
                        self.moved = now;
                        if backlog.pay(count) {
                            self.backlog = None;
                        }
                    }
                    Err(error) => match error.kind() {
                        ErrorKind::WouldBlock => return Step::Blocked,
                        ErrorKind::Interrupted => return Step::Yield,
                        _ => return Step::Done(Reason::of(&error)),
                    },
                }
            }
            if budget == 0 {
                return Step::Yield;
            }
            if let Phase::Leaving { why, until, .. } = &mut self.phase {
                match *until {
                    None => {
                        let unread = io.unread().unwrap_or(u64::MAX);
                        *until = Some(self.received.saturating_add(unread));
                    }
                    Some(until) if self.received >= until => {
                        let why = *why;
                        if io.finish_write().is_err() {
                            return Step::Done(why);
                        }
                        self.phase = Phase::Lingering {
                            since: now,
                            until: now + limits.leave.max(LINGER),
                            why,
                        };
                    }
                    Some(_) => {}
                }
            }
            let scratch = store.scratch();
            let room = scratch.len().min(budget);
            let scratch = &mut scratch[..room];
            let count = match io.read(scratch) {
                Ok(0) => return Step::Done(self.ended()),
                Ok(count) => count,
                Err(error) => match (error.kind(), self.phase) {
                    (ErrorKind::Interrupted, _) => return Step::Yield,
                    (ErrorKind::WouldBlock, Phase::Leaving { since, why, .. }) => {
                        let until = Some(self.received);
                        self.phase = Phase::Leaving { since, why, until };
                        continue;
                    }
                    (ErrorKind::WouldBlock, _) => {
                        self.hint = Hint::Plain;
                        return Step::Blocked;
                    }
                    (_, Phase::Lingering { why, .. }) => return Step::Done(why),
                    _ => return Step::Done(Reason::of(&error)),
                },
            };
            let drained = count < room && self.hint == Hint::Plain && !io.stops_short();
            budget = budget.saturating_sub(count.max(LEAST));
            self.received += count as u64;
            self.moved = now;
            store.filled(count);
            if matches!(self.phase, Phase::Lingering { .. }) {
                continue;
            }
            let (written, interrupted) = match io.write(store.read()) {
                Ok(written) => (written, false),
                Err(error) if error.kind() == ErrorKind::WouldBlock => (0, false),
                Err(error) if error.kind() == ErrorKind::Interrupted => (0, true),
                Err(error) => return Step::Done(Reason::of(&error)),
            };
            self.sent += written as u64;
            if limits.bytes.is_some_and(|most| self.received >= most) {
                self.leave(Reason::Spent, now);
            }
            if written < count {
                self.backlog = Some(store.keep(written..count));
                return if interrupted {
                    Step::Yield
                } else {
                    Step::Blocked
                };
            }
            if drained && self.phase == Phase::Echoing {
                return Step::Blocked;
            }
        }
    }

    /// Keeps what an event said until a read has reached the end or `WouldBlock`.
    pub fn remember(&mut self, hint: Hint) {
        if hint == Hint::ReadOn {
            self.hint = hint;
        }
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

    /// The next deadline, and what it would mean.  [`Reason::Lifetime`] means to leave while
    /// echoing; everything else means to close.
    #[must_use]
    pub fn due(&self, limits: &Limits) -> Option<(Instant, Reason)> {
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
            Phase::Leaving { since, .. } => Some((since + limits.leave, Reason::Abandoned)),
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
    pub fn leave(&mut self, why: Reason, now: Instant) {
        if self.phase == Phase::Echoing {
            self.phase = Phase::Leaving {
                since: now,
                why,
                until: None,
            };
        }
    }

    /// Lingers for another while, as there is something unacknowledged; false if it may not.
    pub fn linger_on(&mut self, now: Instant) -> bool {
        match &mut self.phase {
            Phase::Lingering { since, until, .. } if now < *until => {
                *since = now;
                true
            }
            _ => false,
        }
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
            .map_or(0, |backlog| backlog.owed().len() as u64)
    }

    /// What to tell when it ends for `reason`.
    #[must_use]
    pub fn summary(&self, reason: Reason, now: Instant) -> Summary {
        Summary {
            reason,
            received: self.received,
            sent: self.sent,
            owed: match self.phase {
                Phase::Lingering { .. } => 0,
                // After a failed write the rest never reached a backlog.
                _ => self.received - self.sent,
            },
            duration: now.saturating_duration_since(self.began),
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
