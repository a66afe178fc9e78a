//! One connection: what has arrived, what is owed, and how it ends.
//!
//! The rule on which everything rests: **a connection is read only while it owes nothing.**  From
//! it follow the single scratch buffer of a loop, pending output that never exceeds it,
//! back-pressure on the peer by TCP's own window, and an interest that is a function of state
//! ([`Connection::want`]).  The peer's end of stream is seen only when everything before it has been
//! written, so it ends the connection at once.
//!
//! A [`Connection`] borrows its stream for one turn and never owns it.  What it waits for is derived
//! from its state; it has no clock and knows no descriptor.
//!
//! mio is edge-triggered.  A read that returns less than was asked for has drained the socket
//! (epoll(7)), so the turn ends there and a message costs two system calls.  There are three
//! exceptions, in which the rest is not announced again: the peer's FIN can arrive with the data in
//! one event, a read stops at the urgent mark, and a read from a Unix stream stops behind passed
//! descriptors.  The event or the kind of stream indicates them ([`Hint::ReadOn`],
//! [`Duplex::stops_short`]), and the stream is read to its end or to `WouldBlock`.

use std::io::{self, ErrorKind};
use std::ops::Range;

use super::buffers::{BufferStore, PendingOutput};
use super::deadlines::Deadline;
use super::end_reason::{EndReason, Summary};
use super::stream::Duplex;
use super::time::MonoTime;
use super::{FIRST_READ_BYTES, GRACE, LINGER, Limits, SCRATCH, TURN_BYTES};

/// The errno(3) for pending output that there is no memory for.
const ENOMEM: u16 = 12;

/// Bytes that a shorter read counts as in a turn, so that a peer whose reads end after one byte each
/// (urgent marks, passed descriptors) gets 256 of them in a turn, and not 262 144.
const READ_MIN_BYTES: usize = 1024;

/// The part of its life that a connection is in.  They follow each other in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before the stream stands a header, which the loop has to take first: what is read and written
    /// here begins behind it.
    Header {
        /// When the connection is closed if the header is not complete.
        due: MonoTime,
        /// The reason for that: [`EndReason::HeaderTimeout`], or the reason for draining.
        reason: EndReason,
    },
    /// Both directions are open.
    Echoing,
    /// The connection is to end in good order.  It is read until `WouldBlock`, after a stop until
    /// the peer has been silent for [`GRACE`] as well; what was read is written.
    Draining {
        /// When draining began.
        since: MonoTime,
        /// The reason for it.
        reason: EndReason,
    },
    /// The same, and it is known what is still to be echoed before the service sends its FIN.  A peer
    /// that never stops sending gets back what had arrived when draining began, or for a stop
    /// [`LINGER`] later.
    Finishing {
        /// When draining began.
        since: MonoTime,
        /// The position in the peer's stream, in bytes, up to which it is echoed.
        until: u64,
        /// The reason for draining.
        reason: EndReason,
    },
    /// The service has sent its FIN.  Input is discarded until the peer's FIN, or for [`LINGER`] and
    /// until the peer has acknowledged everything.
    Lingering {
        /// When the FIN was sent, or when unacknowledged bytes were last found.
        since: MonoTime,
        /// When the connection is closed even with unacknowledged bytes.
        until: MonoTime,
        /// The reason for draining.
        reason: EndReason,
    },
}

/// What a connection waits for; never both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Input, because nothing is owed.
    Read,
    /// Room in the send queue, because something is owed.
    Write,
}

/// What an event says about the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// A short read has drained the stream.
    Plain,
    /// There may be more behind a short read: read on to the end or to `WouldBlock`.
    ReadOn,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing more can be done until the kernel announces what [`Connection::want`] returns.
    Blocked,
    /// There may be more to do, but the turn is over.  The kernel will not announce it.
    Yield,
    /// The loop has to look at the header, of which more may have arrived.
    Header,
    /// The connection has ended.
    Done(EndReason),
}

/// The state of a connection that another process began.
#[derive(Debug)]
pub struct Start {
    /// The name under which the store knows it.
    pub owner: u64,
    /// When a header has to be complete ([`Phase::Header`]); `None`: none is expected, or it was taken.
    pub header_due: Option<MonoTime>,
    /// Bytes received behind the header.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// What is owed.
    pub pending: Option<PendingOutput>,
    /// When the connection began.
    pub began: MonoTime,
    /// When a byte last moved in either direction.
    pub moved: MonoTime,
    /// Whether the service has sent its FIN.
    pub finished: bool,
    /// Whether something may wait to be read.
    pub input: bool,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    hint: Hint,
    /// How often the length of the first read may be doubled while the send queue is empty.
    doublings: u8,
    /// The name under which the store knows it; 0: none.
    owner: u64,
    /// Positions in the two streams, in bytes from their beginnings; a header is not counted.
    received: u64,
    sent: u64,
    pending: Option<PendingOutput>,
    began: MonoTime,
    /// When a byte last moved in either direction.
    moved: MonoTime,
}

impl Connection {
    /// A connection that begins now.
    #[must_use]
    pub(crate) fn new(now: MonoTime) -> Self {
        Self {
            phase: Phase::Echoing,
            hint: Hint::Plain,
            doublings: 0,
            owner: 0,
            received: 0,
            sent: 0,
            pending: None,
            began: now,
            moved: now,
        }
    }

    /// A connection that begins now, with a header that has to be complete at the time `due`.
    #[must_use]
    pub(crate) fn behind_header(due: MonoTime, now: MonoTime) -> Self {
        let reason = EndReason::HeaderTimeout;
        Self {
            phase: Phase::Header { due, reason },
            ..Self::new(now)
        }
    }

    /// A connection that another process began.
    #[must_use]
    pub(crate) fn resumed(start: Start, limits: &Limits, now: MonoTime) -> Self {
        let used_up = limits.bytes.is_some_and(|most| start.received >= most);
        let reason = if used_up {
            EndReason::MaxBytes
        } else {
            EndReason::MaxLifetime
        };
        let phase = match (start.finished, used_up) {
            // A process that hands its connections over has sent a FIN only because of a limit.
            (true, _) => Phase::Lingering {
                since: now,
                until: now + limits.stop_timeout.max(LINGER),
                reason,
            },
            (false, true) => Phase::Draining { since: now, reason },
            (false, false) => match start.header_due {
                Some(due) => Phase::Header {
                    due,
                    reason: EndReason::HeaderTimeout,
                },
                None => Phase::Echoing,
            },
        };
        Self {
            phase,
            // What was announced to the other process is not announced to this one.
            hint: Hint::ReadOn,
            doublings: 0,
            owner: start.owner,
            received: start.received,
            sent: start.sent,
            pending: start.pending,
            began: start.began,
            moved: start.moved,
        }
    }

    /// One turn: moves what can be moved, at most [`TURN_BYTES`] of input.
    ///
    /// This is the only loop of the data path; rare cases have functions of their own.
    pub(crate) fn advance(
        &mut self,
        io: &mut impl Duplex,
        store: &mut impl BufferStore,
        hint: Hint,
        limits: &Limits,
        now: MonoTime,
    ) -> Step {
        self.add_hint(hint);
        let mut budget = TURN_BYTES;
        loop {
            if self.pending.is_some() {
                if let Some(step) = self.flush(io, store, now) {
                    return step;
                }
            }
            if budget == 0 {
                return Step::Yield;
            }
            if !matches!(self.phase, Phase::Echoing) {
                if matches!(self.phase, Phase::Header { .. }) {
                    return Step::Header;
                }
                if let Some(reason) = self.end_draining(io, limits, now) {
                    if io.finish_write().is_err() {
                        return Step::Done(reason);
                    }
                }
            }
            let at = self.received;
            store.begin_read(self.owner, at);
            let length = self.read_length(io).min(budget);
            let count = match io.read(&mut store.scratch()[..length]) {
                Ok(0) => return Step::Done(self.reason_of_end()),
                Ok(count) => count,
                Err(error) => match self.read_failed(io, &error, now) {
                    Some(step) => return step,
                    None => continue,
                },
            };
            budget = budget.saturating_sub(count.max(READ_MIN_BYTES));
            self.received += count as u64;
            self.moved = now;
            store.filled(count);
            if matches!(self.phase, Phase::Lingering { .. }) {
                continue;
            }
            let (written, blocked) = match io.write(store.read()) {
                Ok(written) => (written, Step::Blocked),
                Err(error) => match write_failed(&error) {
                    done @ Step::Done(_) => return done,
                    blocked => (0, blocked),
                },
            };
            self.sent += written as u64;
            if limits.bytes.is_some_and(|most| self.received >= most) {
                self.drain(EndReason::MaxBytes, now);
            }
            self.adapt_read_length(length, count, written);
            if written < count {
                return self.owe(store, written..count, at + written as u64, blocked);
            }
            let drained = count < length && self.hint == Hint::Plain && !io.stops_short();
            if drained && matches!(self.phase, Phase::Echoing) {
                return Step::Blocked;
            }
        }
    }

    /// Keeps the part of the scratch that was not written.
    #[cold]
    fn owe(
        &mut self,
        store: &mut impl BufferStore,
        rest: Range<usize>,
        at: u64,
        blocked: Step,
    ) -> Step {
        match store.keep(self.owner, rest, at) {
            Some(slot) => {
                self.pending = Some(PendingOutput::new(slot, 0));
                blocked
            }
            None => Step::Done(EndReason::Error(ENOMEM)),
        }
    }

    /// Writes what is owed; `None` when all of it is written.
    #[cold]
    fn flush(
        &mut self,
        io: &mut impl Duplex,
        store: &mut impl BufferStore,
        now: MonoTime,
    ) -> Option<Step> {
        while let Some(pending) = &mut self.pending {
            match io.write(pending.bytes(store)) {
                Ok(0) => return Some(Step::Done(EndReason::Error(0))),
                Ok(count) => {
                    self.sent += count as u64;
                    self.moved = now;
                    if pending.advance(count) {
                        self.release(store);
                    }
                }
                Err(error) => return Some(write_failed(&error)),
            }
        }
        None
    }

    /// How the turn ends after a failed read; `None`: it goes on.
    #[cold]
    fn read_failed(&mut self, io: &impl Duplex, error: &io::Error, now: MonoTime) -> Option<Step> {
        let step = match (error.kind(), self.phase) {
            (ErrorKind::Interrupted, _) => Step::Yield,
            // At the urgent mark Linux says `WouldBlock` while a signal is pending, although bytes
            // wait (tcp_recvmsg_locked).
            (ErrorKind::WouldBlock, _) if self.hint == Hint::ReadOn && io.unread() > Some(0) => {
                Step::Yield
            }
            (ErrorKind::WouldBlock, Phase::Draining { .. }) if now < self.fin_due() => {
                Step::Blocked
            }
            (
                ErrorKind::WouldBlock,
                Phase::Draining { since, reason } | Phase::Finishing { since, reason, .. },
            ) => {
                self.phase = Phase::Finishing {
                    since,
                    until: self.received,
                    reason,
                };
                return None;
            }
            (ErrorKind::WouldBlock, _) => {
                self.hint = Hint::Plain;
                Step::Blocked
            }
            (_, Phase::Lingering { reason, .. }) => Step::Done(reason),
            _ => Step::Done(EndReason::of(error)),
        };
        Some(step)
    }

    /// How many bytes the next read may return.  A long read is for a peer that takes its echo:
    /// nothing waits to be sent, and the last read of half that length was written at once.
    fn read_length(&self, io: &impl Duplex) -> usize {
        if self.doublings > 0 && io.unsent() > 0 {
            return FIRST_READ_BYTES;
        }
        FIRST_READ_BYTES << self.doublings
    }

    /// Adapts the length of reads to what became of a read of up to `length` bytes.
    fn adapt_read_length(&mut self, length: usize, count: usize, written: usize) {
        if written < count {
            self.doublings = 0;
        } else if count == length
            && length == FIRST_READ_BYTES << self.doublings
            && length < SCRATCH
        {
            self.doublings += 1;
        }
    }

    /// Frees the memory of what is owed: it was written, or the connection has ended.
    pub(crate) fn release(&mut self, store: &mut impl BufferStore) {
        if let Some(pending) = self.pending.take() {
            store.free(pending.into_slot());
        }
    }

    /// Sets the name under which the store knows the connection and what it owes; 0: none.
    pub(crate) fn set_owner(&mut self, owner: u64, store: &mut impl BufferStore) {
        self.owner = owner;
        if let Some(pending) = &self.pending {
            let at = self.received - u64::from(pending.slot().length.get());
            store.set_owner(pending.slot(), owner, at);
        }
    }

    /// Records what an event said; it holds until a read returns the end or `WouldBlock`.
    pub(crate) fn add_hint(&mut self, hint: Hint) {
        if hint == Hint::ReadOn {
            self.hint = hint;
        }
    }

    /// When the service's FIN may be sent: after a stop when the peer has been silent for long
    /// enough that nothing more is on its way; at once after a limit.
    fn fin_due(&self) -> MonoTime {
        match self.phase {
            Phase::Draining {
                since,
                reason: EndReason::Shutdown,
            } => (self.moved.max(since) + GRACE).min(since + LINGER),
            _ => self.began,
        }
    }

    /// Goes from draining to lingering when nothing more has to be read before the service's FIN;
    /// returns the reason for draining then.
    #[cold]
    fn end_draining(
        &mut self,
        io: &impl Duplex,
        limits: &Limits,
        now: MonoTime,
    ) -> Option<EndReason> {
        let (since, reason) = match self.phase {
            // A peer that pauses, as most do, gets back what was still on its way as well.
            Phase::Draining { since, reason }
                if reason == EndReason::Shutdown && now < since + LINGER =>
            {
                return None;
            }
            Phase::Draining { since, reason } => {
                let unread = io.unread().unwrap_or(u64::MAX);
                self.phase = Phase::Finishing {
                    since,
                    until: self.received.saturating_add(unread),
                    reason,
                };
                return None;
            }
            Phase::Finishing {
                since,
                until,
                reason,
            } if self.received >= until => (since, reason),
            _ => return None,
        };
        self.phase = Phase::Lingering {
            since: now,
            until: (since + limits.stop_timeout).max(now + LINGER),
            reason,
        };
        Some(reason)
    }

    /// What to wait for when blocked.
    #[must_use]
    pub fn want(&self) -> Want {
        if self.pending.is_some() {
            Want::Write
        } else {
            Want::Read
        }
    }

    /// The next deadline.
    ///
    /// While the connection is echoing and [`Connection::want`] stays the same, traffic only makes
    /// it later.
    #[must_use]
    pub fn due(&self, limits: &Limits) -> Option<(MonoTime, Deadline)> {
        let quiet = if self.pending.is_some() {
            limits.stall.map(|span| (span, Deadline::Stall))
        } else {
            limits.idle.map(|span| (span, Deadline::Idle))
        };
        let quiet = quiet.map(|(span, deadline)| (self.moved + span, deadline));
        let whole = match self.phase {
            Phase::Echoing => limits
                .end_of_life(self.began)
                .map(|at| (at, Deadline::Lifetime)),
            Phase::Draining {
                reason: EndReason::Shutdown,
                ..
            } if self.pending.is_none() => Some((self.fin_due(), Deadline::SendFin)),
            // Not at once for a time-out of zero: it is for a stop, and a limit drains as well.
            Phase::Draining { since, .. } | Phase::Finishing { since, .. } => Some((
                since + limits.stop_timeout.max(LINGER),
                Deadline::StopTimeout,
            )),
            Phase::Lingering { since, until, .. } => {
                return Some(((since + LINGER).min(until), Deadline::Linger));
            }
            Phase::Header { due, .. } => return Some((due, Deadline::Header)),
        };
        match (quiet, whole) {
            (Some(quiet), Some(whole)) => Some(if quiet.0 < whole.0 { quiet } else { whole }),
            (quiet, whole) => quiet.or(whole),
        }
    }

    /// Begins to drain the connection, if it is echoing; the next turn acts on it.  A header that has
    /// begun to arrive gets [`LINGER`] to become complete, and what has arrived behind it is echoed.
    pub(crate) fn drain(&mut self, reason: EndReason, now: MonoTime) {
        match &mut self.phase {
            Phase::Echoing => {
                self.phase = Phase::Draining { since: now, reason };
            }
            Phase::Header { due, reason: of } => {
                *due = (*due).min(now + LINGER);
                *of = reason;
            }
            Phase::Draining { .. } | Phase::Finishing { .. } | Phase::Lingering { .. } => {}
        }
    }

    /// Begins the stream, as the loop has taken the header.
    pub(crate) fn header_taken(&mut self, now: MonoTime) {
        if let Phase::Header { reason, .. } = self.phase {
            self.phase = Phase::Echoing;
            self.moved = now;
            if reason != EndReason::HeaderTimeout {
                self.drain(reason, now);
            }
        }
    }

    /// Lingers for another [`LINGER`] because of unacknowledged bytes; false if it has lingered for
    /// as long as it may.
    pub(crate) fn linger_on(&mut self, now: MonoTime) -> bool {
        match &mut self.phase {
            Phase::Lingering { since, until, .. } if now < *until => {
                *since = now;
                true
            }
            _ => false,
        }
    }

    /// The name under which the store knows it; 0: none.
    #[must_use]
    pub(crate) fn owner(&self) -> u64 {
        self.owner
    }

    /// When it began.
    #[must_use]
    pub(crate) fn began(&self) -> MonoTime {
        self.began
    }

    /// The part of its life that it is in.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether both directions are open.
    #[must_use]
    pub(crate) fn is_echoing(&self) -> bool {
        matches!(self.phase, Phase::Echoing)
    }

    /// Bytes received so far, which is the position in the peer's stream.
    #[must_use]
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Bytes sent so far, which is the position in the service's stream.
    #[must_use]
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes received and not written yet, from 0 to [`SCRATCH`].
    #[must_use]
    pub(crate) fn owed(&self) -> u64 {
        let pending = self.pending.as_ref();
        pending.map_or(0, |pending| u64::from(pending.owed()))
    }

    /// The summary of a connection that ends for `reason`.
    #[must_use]
    pub(crate) fn summary(&self, reason: EndReason, now: MonoTime) -> Summary {
        Summary {
            reason,
            received: self.received,
            sent: self.sent,
            owed: match self.phase {
                Phase::Lingering { .. } => 0,
                // Not `owed()`: after a failed write the rest is not pending output.
                _ => self.received - self.sent,
            },
            duration: now.since(self.began),
        }
    }

    /// Asserts what must hold between turns.
    ///
    /// # Panics
    /// If it does not.
    pub fn check(&self) {
        match self.phase {
            Phase::Lingering { .. } => {
                assert!(
                    self.pending.is_none(),
                    "the FIN was sent while something was owed"
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

    /// The reason for the end of a connection whose peer has sent its FIN.
    fn reason_of_end(&self) -> EndReason {
        match self.phase {
            Phase::Echoing => EndReason::PeerClosed,
            Phase::Header { reason, .. }
            | Phase::Draining { reason, .. }
            | Phase::Finishing { reason, .. }
            | Phase::Lingering { reason, .. } => reason,
        }
    }
}

/// How a turn ends after a failed write.
#[cold]
fn write_failed(error: &io::Error) -> Step {
    match error.kind() {
        ErrorKind::WouldBlock => Step::Blocked,
        ErrorKind::Interrupted => Step::Yield,
        _ => Step::Done(EndReason::of(error)),
    }
}

#[cfg(test)]
pub(super) mod tests;
