//! All connections of one loop: which of them can go on, what is due, what was done, and the rounds
//! in which they get their turns.
//!
//! [`Connections`] is generic over its streams, so that a simulation can use thousands of scripted
//! ones, and it knows no poll: the [`Outcome`] of a turn says what to register.  A stream that has
//! ended stays in the table until it is removed ([`Connections::remove`]), because to deregister it
//! takes the registry of its loop.
//!
//! A connection whose turn ended before its work did is *ready*: it stands in a list here and gets
//! further turns, because an edge-triggered kernel announces nothing twice.
//!
//! A round ([`run_round`]) gives a turn to every connection that is due and to every one that is
//! ready, as far as its [`Allowance`] goes.  What concerns the poll, the log and the crash guard is
//! left to the loop that owns the connections ([`EventLoop`]).

use std::collections::VecDeque;
use std::ops::Range;

use slab::Slab;

#[cfg(doc)]
use super::LINGER;
use super::Limits;
use super::buffers::BufferStore;
use super::connection::{Connection, Hint, Phase, Start, Step, Want};
use super::counters::Counters;
use super::deadlines::{Deadline, Deadlines};
use super::end_reason::{EndReason, Summary};
use super::stream::Duplex;
use super::time::MonoTime;

/// A table of at most so many entries keeps its memory when the last connection has ended.
const KEPT_ENTRIES: usize = 256;

/// Bytes that may move in one round.
const ROUND_BYTES: u64 = 4 * 1024 * 1024;

/// Bytes that a turn which moves less counts as in a round, because it takes time as well.
const TURN_MIN_BYTES: u64 = 4096;

/// The same for a turn with which a connection ends: to close its socket takes some 20 us.
const END_MIN_BYTES: u64 = 16 * 1024;

/// Deadlines acted on in one round.
const ROUND_DEADLINES: usize = 256;

/// What the loop has to do after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Same,
    /// Register the stream for something else.
    Rearm(Want),
    /// Look at the header, of which more may have arrived: call [`Connections::header_taken`] when it
    /// was taken, or [`Connections::header_missing`] when it is not complete.
    Header,
    /// Remove the stream and close it.
    Over(Summary),
}

/// Bytes moved in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

impl Moved {
    /// Bytes in both directions together.
    #[must_use]
    pub fn total(self) -> u64 {
        self.received + self.sent
    }
}

#[derive(Debug)]
struct Entry<S> {
    stream: S,
    connection: Connection,
    /// What the kernel was last asked to announce.
    registered: Want,
    /// It stands in the ready list.
    queued: bool,
    /// It was restored and has had no turn yet.
    untried: bool,
    /// It has ended and was not removed yet.
    over: bool,
}

/// The connections of one loop.
#[derive(Debug)]
pub struct Connections<S, M> {
    entries: Slab<Entry<S>>,
    store: M,
    deadlines: Deadlines,
    ready: VecDeque<usize>,
    limits: Limits,
    counters: Counters,
    /// Moved by connections that have ended.
    ended: Moved,
    /// Moved in the last turn.
    moved: Moved,
    /// Restored connections that have had no turn yet.
    untried: usize,
}

impl<S: Duplex, M: BufferStore> Connections<S, M> {
    /// An empty table.
    #[must_use]
    pub fn new(limits: Limits, store: M) -> Self {
        Self {
            entries: Slab::new(),
            store,
            deadlines: Deadlines::default(),
            ready: VecDeque::new(),
            limits,
            counters: Counters::default(),
            ended: Moved::default(),
            moved: Moved::default(),
            untried: 0,
        }
    }

    /// Adds an accepted stream, which has to be registered for reading under the key that is
    /// returned.
    pub fn insert(&mut self, stream: S, now: MonoTime) -> usize {
        self.counters.accepted += 1;
        self.add(stream, Connection::new(now))
    }

    /// Adds an accepted stream before which a header stands that has to be complete at the time `due`.
    /// It has to be registered for reading under the key that is returned.
    pub fn insert_behind_header(&mut self, stream: S, due: MonoTime, now: MonoTime) -> usize {
        self.counters.accepted += 1;
        self.add(stream, Connection::behind_header(due, now))
    }

    /// Adds a stream of another process, which has to be registered for what is returned beside its
    /// key.  It is ready, unless nothing waits to be read or written; the poll announces what comes
    /// before it is registered, too (`EPOLL_CTL_ADD` of epoll_ctl(2)).  The totals that are continued
    /// ([`Connections::resume`]) count it already as accepted.
    pub(crate) fn restore(&mut self, stream: S, start: Start, now: MonoTime) -> (usize, Want) {
        let input = start.input;
        let connection = Connection::resumed(start, &self.limits, now);
        let want = connection.want();
        let is_ready = input || want == Want::Write || !connection.is_echoing();
        self.counters.received += connection.received();
        self.counters.sent += connection.sent();
        let key = self.add(stream, connection);
        let entry = &mut self.entries[key];
        entry.registered = want;
        if is_ready {
            entry.untried = true;
            self.untried += 1;
            self.queue(key, Hint::ReadOn);
        }
        (key, want)
    }

    /// Continues the totals of another process, which [`Connections::snapshot`] returned there.
    pub(crate) fn resume(&mut self, counters: Counters) {
        self.counters = counters;
        self.ended = Moved {
            received: counters.received,
            sent: counters.sent,
        };
    }

    /// Counts connections of the totals that are continued as ended, because they could not be restored.
    pub(crate) fn not_restored(&mut self, count: u64) {
        self.counters.closed[EndReason::NotRestored.index()] += count;
    }

    /// The totals for a later process.  Their bytes are those of ended connections: the later
    /// process finds out itself how far the others have come, whenever this one ends.
    #[must_use]
    pub(crate) fn snapshot(&self) -> Counters {
        Counters {
            received: self.ended.received,
            sent: self.ended.sent,
            ..self.counters
        }
    }

    fn add(&mut self, stream: S, connection: Connection) -> usize {
        let key = self.entries.insert(Entry {
            stream,
            connection,
            registered: Want::Read,
            queued: false,
            untried: false,
            over: false,
        });
        self.arm(key);
        key
    }

    /// The stream of a connection.
    ///
    /// # Panics
    /// If there is none under this key.
    pub fn stream_mut(&mut self, key: usize) -> &mut S {
        &mut self.entries[key].stream
    }

    /// The stream of a connection, and the memory of this loop.
    ///
    /// # Panics
    /// If there is none under this key.
    pub(crate) fn parts_mut(&mut self, key: usize) -> (&mut S, &mut M) {
        (&mut self.entries[key].stream, &mut self.store)
    }

    /// The stream of a connection, if there is one under this key.
    #[must_use]
    pub(crate) fn stream(&self, key: usize) -> Option<&S> {
        self.entries.get(key).map(|entry| &entry.stream)
    }

    /// The memory of this loop.
    #[must_use]
    pub(crate) fn store(&self) -> &M {
        &self.store
    }

    /// The memory of this loop, to change it.
    pub(crate) fn store_mut(&mut self) -> &mut M {
        &mut self.store
    }

    /// Sets the name under which the store knows a connection; 0: none.
    ///
    /// # Panics
    /// If there is no connection under this key.
    pub(crate) fn set_owner(&mut self, key: usize, owner: u64) {
        self.entries[key]
            .connection
            .set_owner(owner, &mut self.store);
    }

    /// The connection under a key, if there is one.
    #[must_use]
    pub fn connection(&self, key: usize) -> Option<&Connection> {
        self.entries.get(key).map(|entry| &entry.connection)
    }

    /// The bytes of the last read of the last turn.
    #[must_use]
    pub(crate) fn last_read(&self) -> &[u8] {
        self.store.read()
    }

    /// Gives a connection a turn.  Nothing happens if it has ended, or if there is none under this
    /// key: an event is a hint, and may come too late.
    #[inline]
    pub(crate) fn turn(&mut self, key: usize, hint: Hint, now: MonoTime) -> Outcome {
        self.advance(key, hint, now).1
    }

    /// Gives a connection a turn; also returns how that ended.
    #[inline]
    fn advance(&mut self, key: usize, hint: Hint, now: MonoTime) -> (Step, Outcome) {
        self.moved = Moved::default();
        let Some(entry) = self.entries.get_mut(key).filter(|entry| !entry.over) else {
            return (Step::Blocked, Outcome::Same);
        };
        if std::mem::take(&mut entry.untried) {
            self.untried -= 1;
        }
        let connection = &mut entry.connection;
        let before = (connection.received(), connection.sent(), connection.want());
        let step = connection.advance(&mut entry.stream, &mut self.store, hint, &self.limits, now);
        self.moved = Moved {
            received: connection.received() - before.0,
            sent: connection.sent() - before.1,
        };
        self.counters.received += self.moved.received;
        self.counters.sent += self.moved.sent;
        if let Step::Done(reason) = step {
            return (step, self.end(key, reason, now));
        }
        connection.check();
        let want = connection.want();
        // In all other cases the turn has only made the deadline later (`Connection::due`), and an
        // entry that is too early is moved when its time has come.
        if want != before.2 || !connection.is_echoing() {
            let due = connection.due(&self.limits).map(|(at, _)| at);
            let earlier = |armed| due.is_some_and(|due| due < armed);
            if due.is_none() || self.deadlines.armed(key).is_none_or(earlier) {
                self.deadlines.set(key, due);
            }
        }
        let outcome = if step == Step::Header {
            Outcome::Header
        } else if step == Step::Yield {
            self.queue(key, Hint::Plain);
            Outcome::Same
        } else if want == entry.registered {
            Outcome::Same
        } else {
            entry.registered = want;
            Outcome::Rearm(want)
        };
        (step, outcome)
    }

    /// Bytes moved in the last turn.
    #[must_use]
    pub fn moved(&self) -> Moved {
        self.moved
    }

    /// Whether a connection stands in the ready list.
    #[must_use]
    pub fn is_queued(&self, key: usize) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.queued)
    }

    /// Puts a connection into the ready list, once, and records what an event said.  Nothing
    /// happens if it has ended, or if there is none under this key.
    pub fn queue(&mut self, key: usize, hint: Hint) {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| !entry.over) else {
            return;
        };
        entry.connection.add_hint(hint);
        if !entry.queued {
            entry.queued = true;
            self.ready.push_back(key);
        }
    }

    /// Takes the first connection from the ready list.
    #[inline]
    fn next_ready(&mut self) -> Option<usize> {
        let key = self.ready.pop_front()?;
        if let Some(entry) = self.entries.get_mut(key) {
            entry.queued = false;
        }
        Some(key)
    }

    /// The number of connections in the ready list.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// The number of restored connections that have had no turn yet.
    #[must_use]
    pub(crate) fn untried(&self) -> usize {
        self.untried
    }

    /// A connection that has a deadline at or before `now`.
    #[inline]
    fn next_overdue(&mut self, now: MonoTime) -> Option<usize> {
        loop {
            let key = self.deadlines.fired(now)?;
            if self.overdue(key, now).is_some() {
                return Some(key);
            }
            self.arm(key);
        }
    }

    /// The deadline of a connection that is at or before `now`.
    fn overdue(&self, key: usize, now: MonoTime) -> Option<Deadline> {
        let (at, deadline) = self.entries[key].connection.due(&self.limits)?;
        (at <= now).then_some(deadline)
    }

    /// Acts on a deadline of a connection.
    ///
    /// The connection gets a turn first, which may move the deadline: what has arrived or could be
    /// written in the meantime is not late, only this loop is.
    #[cold]
    fn expire(&mut self, key: usize, now: MonoTime) -> Outcome {
        if self.overdue(key, now) == Some(Deadline::Lifetime) {
            let connection = &mut self.entries[key].connection;
            connection.drain(EndReason::MaxLifetime, now);
        }
        let (step, outcome) = self.advance(key, Hint::Plain, now);
        if matches!(outcome, Outcome::Over(_)) {
            return outcome;
        }
        self.arm(key);
        match self
            .overdue(key, now)
            .and_then(|deadline| self.closes(key, deadline, step, now))
        {
            Some(reason) => self.end(key, reason, now),
            None => outcome,
        }
    }

    /// The reason for which a deadline closes a connection after its turn; `None` if the connection
    /// stays open.  Then the deadline was moved, or the same round acts on it again, as its entry
    /// is still the first.
    fn closes(
        &mut self,
        key: usize,
        deadline: Deadline,
        step: Step,
        now: MonoTime,
    ) -> Option<EndReason> {
        let entry = &mut self.entries[key];
        match deadline {
            // The turn was interrupted before it could do what would have moved the deadline.
            Deadline::Idle | Deadline::Stall if step == Step::Yield => None,
            // Input is hidden behind an urgent mark.
            Deadline::Idle if entry.stream.unread() > Some(0) => {
                entry.connection.add_hint(Hint::ReadOn);
                None
            }
            Deadline::Idle => Some(EndReason::IdleTimeout),
            Deadline::Stall => Some(EndReason::StallTimeout),
            // The turn has moved an earlier deadline, and what this one asks for is still to be
            // done; or it was interrupted before it could send the FIN; or the loop has to look at
            // the header once more.
            Deadline::Lifetime | Deadline::SendFin | Deadline::Header => None,
            // A close turns into a reset, which destroys what is in flight, if the peer still sends.
            Deadline::Linger
                if entry.stream.unacknowledged() > 0 && entry.connection.linger_on(now) =>
            {
                self.arm(key);
                None
            }
            Deadline::Linger | Deadline::StopTimeout => Some(EndReason::StopTimeout),
        }
    }

    /// Begins the stream of a connection whose header was taken, and puts it into the ready list.
    ///
    /// # Panics
    /// If there is no connection under this key.
    pub fn header_taken(&mut self, key: usize, now: MonoTime) {
        self.entries[key].connection.header_taken(now);
        self.arm(key);
        self.queue(key, Hint::ReadOn);
    }

    /// Ends a connection whose header was looked at and is not complete, if its time is over.
    ///
    /// # Panics
    /// If there is no connection under this key.
    pub fn header_missing(&mut self, key: usize, now: MonoTime) -> Outcome {
        match self.entries[key].connection.phase() {
            Phase::Header { due, reason } if due <= now => self.end(key, reason, now),
            _ => Outcome::Same,
        }
    }

    /// When the next deadline has to be acted on, or earlier.
    #[must_use]
    pub fn next_due(&self) -> Option<MonoTime> {
        self.deadlines.next()
    }

    /// Begins to drain a connection for a stop, and puts it into the ready list, because its next
    /// turn acts on it.
    ///
    /// # Panics
    /// If there is no connection under this key.
    pub fn drain(&mut self, key: usize, now: MonoTime) {
        self.entries[key].connection.drain(EndReason::Shutdown, now);
        self.arm(key);
        self.queue(key, Hint::Plain);
    }

    /// Begins to drain all connections for a stop.
    pub fn drain_all(&mut self, now: MonoTime) {
        for key in self.keys(|_| true) {
            self.drain(key, now);
        }
    }

    /// Ends the selected connections as they are; returns the keys of those to be removed.
    pub fn abandon(
        &mut self,
        selected: impl Fn(&S) -> bool,
        now: MonoTime,
    ) -> Vec<(usize, Outcome)> {
        let mut keys = self.keys(selected);
        keys.retain(|key| !self.entries[*key].over);
        // All at once: `end` would go through the list for each.
        for key in &keys {
            self.entries[*key].queued = false;
        }
        let entries = &self.entries;
        self.ready.retain(|key| entries[*key].queued);
        keys.into_iter()
            .map(|key| (key, self.end(key, EndReason::StopTimeout, now)))
            .collect()
    }

    fn keys(&self, selected: impl Fn(&S) -> bool) -> Vec<usize> {
        let entries = self.entries.iter();
        entries
            .filter(|(_, entry)| selected(&entry.stream))
            .map(|(key, _)| key)
            .collect()
    }

    /// Ends a connection; it has to be removed then.
    ///
    /// # Panics
    /// If there is no connection under this key.
    #[cold]
    pub(crate) fn end(&mut self, key: usize, reason: EndReason, now: MonoTime) -> Outcome {
        let entry = &mut self.entries[key];
        self.deadlines.set(key, None);
        entry.over = true;
        if std::mem::take(&mut entry.untried) {
            self.untried -= 1;
        }
        if std::mem::take(&mut entry.queued) {
            self.ready.retain(|ready| *ready != key);
        }
        // While lingering the end of time is no failure, unless the peer lacks something.
        let reason = match (entry.connection.phase(), reason) {
            (Phase::Lingering { reason, .. }, EndReason::StopTimeout)
                if entry.stream.unacknowledged() == 0 =>
            {
                reason
            }
            (_, reason) => reason,
        };
        let summary = entry.connection.summary(reason, now);
        entry.connection.release(&mut self.store);
        self.ended.received += summary.received;
        self.ended.sent += summary.sent;
        self.counters.close(&summary);
        Outcome::Over(summary)
    }

    /// Removes the stream of a connection that has ended.
    ///
    /// # Panics
    /// If the connection has not ended: it would not be counted.
    pub fn remove(&mut self, key: usize) -> S {
        let entry = self.entries.remove(key);
        assert!(entry.over, "a connection was removed before its end");
        if self.entries.is_empty() && self.entries.capacity() > KEPT_ENTRIES {
            // The memory of many connections that were open at the same time.
            self.entries = Slab::new();
            self.ready = VecDeque::new();
            self.deadlines = Deadlines::default();
        }
        entry.stream
    }

    /// Replaces the limits, for every connection.
    pub fn set_limits(&mut self, limits: Limits) {
        if limits == self.limits {
            return;
        }
        self.limits = limits;
        for key in self.keys(|_| true) {
            self.arm(key);
        }
    }

    /// The totals.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether there is no connection, not even one to be removed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every connection that has not ended.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &S, &Connection)> {
        self.entries
            .iter()
            .filter(|(_, entry)| !entry.over)
            .map(|(key, entry)| (key, &entry.stream, &entry.connection))
    }

    /// A number that is above every key.
    pub(crate) fn end_of_keys(&self) -> usize {
        self.entries.capacity()
    }

    /// Every connection that has not ended and has one of these keys.
    pub(crate) fn iter_in(
        &self,
        keys: Range<usize>,
    ) -> impl Iterator<Item = (usize, &S, &Connection)> {
        keys.filter_map(|key| {
            let entry = self.entries.get(key).filter(|entry| !entry.over)?;
            Some((key, &entry.stream, &entry.connection))
        })
    }

    /// Asserts what must hold between turns.
    ///
    /// # Panics
    /// If it does not.
    pub fn check(&self) {
        assert!(
            self.deadlines.count() <= self.entries.len(),
            "more deadlines than connections"
        );
        let count = |selected: fn(&Entry<S>) -> bool| {
            let entries = self.entries.iter();
            entries.filter(|(_, entry)| selected(entry)).count()
        };
        assert_eq!(
            (count(|entry| entry.queued), count(|entry| entry.untried)),
            (self.ready.len(), self.untried),
            "ready and untried connections"
        );
        for (key, entry) in self.entries.iter().filter(|(_, entry)| !entry.over) {
            entry.connection.check();
            if let Some((due, deadline)) = entry.connection.due(&self.limits) {
                let armed = self.deadlines.armed(key);
                assert!(
                    armed.is_some_and(|armed| armed <= due),
                    "{deadline:?} would be missed: {due:?}, armed for {armed:?}"
                );
            }
        }
    }

    /// Moves the entry of a connection in the deadlines to its deadline.
    fn arm(&mut self, key: usize) {
        let entry = &self.entries[key];
        let due = if entry.over {
            None
        } else {
            entry.connection.due(&self.limits)
        };
        self.deadlines.set(key, due.map(|(at, _)| at));
    }
}

/// How much may happen in one round before the poll is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Bytes that may move, received and sent together.  The last turn may exceed it.
    pub bytes: u64,
    /// Deadlines that may be acted on.
    pub deadlines: usize,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            bytes: ROUND_BYTES,
            deadlines: ROUND_DEADLINES,
        }
    }
}

/// A loop that has connections: what happens around and after their turns in a round.
pub trait EventLoop {
    /// The streams of the connections.
    type Stream: Duplex;

    /// The memory of the loop.
    type Store: BufferStore;

    /// The connections of the loop.
    fn connections(&mut self) -> &mut Connections<Self::Stream, Self::Store>;

    /// Calls `turn`, which gives a turn to the connection under `key` and acts on it.  A loop that
    /// has to know which connection has a turn when the process crashes records it here.
    fn guard(&mut self, key: usize, turn: impl FnOnce(&mut Self)) {
        let _ = key;
        turn(self);
    }

    /// Acts on the outcome of a turn, in which [`Connections::moved`] bytes were moved.
    fn on_turn(&mut self, key: usize, outcome: Outcome);
}

/// One round: acts on the deadlines at or before `now`, and then gives each ready connection one
/// turn.  Returns what is left of the allowance; where none is left, the next round continues.
///
/// Deadlines come first, because under a flood the ready list uses up every round.  Each connection
/// of the list gets one turn only, so that a single flooding peer, too, lets the poll announce others
/// in between.
#[inline]
pub fn run_round<L: EventLoop>(
    event_loop: &mut L,
    mut allowance: Allowance,
    now: MonoTime,
) -> Allowance {
    while allowance.bytes > 0 && allowance.deadlines > 0 {
        let Some(key) = event_loop.connections().next_overdue(now) else {
            break;
        };
        allowance.deadlines -= 1;
        event_loop.guard(key, |event_loop| {
            let outcome = event_loop.connections().expire(key, now);
            settle(event_loop, key, outcome, &mut allowance);
        });
    }
    for _ in 0..event_loop.connections().ready() {
        if allowance.bytes == 0 {
            break;
        }
        // An outcome may have ended a connection that was in the list.
        let Some(key) = event_loop.connections().next_ready() else {
            break;
        };
        event_loop.guard(key, |event_loop| {
            let outcome = event_loop.connections().turn(key, Hint::Plain, now);
            settle(event_loop, key, outcome, &mut allowance);
        });
    }
    allowance
}

/// Deducts a turn from the allowance, and lets the loop act on it.
#[inline]
fn settle<L: EventLoop>(
    event_loop: &mut L,
    key: usize,
    outcome: Outcome,
    allowance: &mut Allowance,
) {
    let least = if matches!(outcome, Outcome::Over(_)) {
        END_MIN_BYTES
    } else {
        TURN_MIN_BYTES
    };
    let moved = event_loop.connections().moved().total();
    allowance.bytes = allowance.bytes.saturating_sub(moved.max(least));
    event_loop.on_turn(key, outcome);
}

#[cfg(test)]
mod tests;
