//! Many conversations of one loop: who may go on, who is due, what was done.
//!
//! The shard is generic over its stream, so that a simulation can own thousands of scripted ones,
//! and it knows no poll: [`Shard::turn`] says what to register, and the server does.  A stream
//! that is over stays in its seat until the server takes it ([`Shard::remove`]), because
//! deregistration needs the registry.
//!
//! A connection whose turn ended before its work did is *ready*: it stands in a list here, and the
//! server gives it further turns, because an edge-triggered kernel announces nothing twice.

use std::collections::VecDeque;
use std::time::Instant;

use slab::Slab;

use super::Limits;
use super::backlog::Store;
use super::connection::{Connection, Duplex, Hint, Phase, Reason, Step, Summary, Want};
use super::counters::Counters;
use super::timers::Timers;

/// What the server has to do after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    Same,
    /// Register the stream for something else.
    Rearm(Want),
    /// Take the stream out and close it.
    Over(Summary),
}

#[derive(Debug)]
struct Seat<S> {
    stream: S,
    connection: Connection,
    /// Where its entry in the timers stands.
    armed: Option<Instant>,
    /// What the kernel was last asked for.
    registered: Want,
    queued: bool,
    over: bool,
}

/// The conversations of one loop.
#[derive(Debug)]
pub struct Shard<S> {
    seats: Slab<Seat<S>>,
    store: Store,
    timers: Timers,
    ready: VecDeque<usize>,
    limits: Limits,
    counters: Counters,
}

impl<S: Duplex> Shard<S> {
    /// An empty shard.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            seats: Slab::new(),
            store: Store::new(),
            timers: Timers::default(),
            ready: VecDeque::new(),
            limits,
            counters: Counters::default(),
        }
    }

    /// Takes in a stream, to be registered for reading under the key that is returned.
    pub fn insert(&mut self, stream: S, now: Instant) -> usize {
        self.counters.accepted += 1;
        let connection = Connection::new(now);
        let due = connection.due(&self.limits).map(|(at, _)| at);
        let key = self.seats.insert(Seat {
            stream,
            connection,
            armed: None,
            registered: Want::Read,
            queued: false,
            over: false,
        });
        self.timers.set(key, &mut self.seats[key].armed, due);
        key
    }

    /// The stream in a seat.
    ///
    /// # Panics
    /// If the seat is empty.
    pub fn stream_mut(&mut self, key: usize) -> &mut S {
        &mut self.seats[key].stream
    }

    /// The conversation in a seat, unless the seat is empty: a stale event may name it.
    #[must_use]
    pub fn connection(&self, key: usize) -> Option<&Connection> {
        self.seats.get(key).map(|seat| &seat.connection)
    }

    /// The bytes of the last read of the last turn.
    #[must_use]
    pub fn last_read(&self) -> &[u8] {
        self.store.read()
    }

    /// Gives a connection its turn.
    ///
    /// An event is a hint: for an empty seat, or one that is over, nothing happens.
    pub fn turn(&mut self, key: usize, hint: Hint, now: Instant) -> Turn {
        let Some(seat) = self.seats.get_mut(key).filter(|seat| !seat.over) else {
            return Turn::Same;
        };
        let before = (seat.connection.received(), seat.connection.sent());
        let step =
            seat.connection
                .advance(&mut seat.stream, &mut self.store, hint, &self.limits, now);
        self.counters.received += seat.connection.received() - before.0;
        self.counters.sent += seat.connection.sent() - before.1;
        if let Step::Done(reason) = step {
            return self.end(key, reason, now);
        }
        seat.connection.check();
        // Activity only makes a deadline later, and its entry is put back when it fires early.
        let due = seat.connection.due(&self.limits).map(|(at, _)| at);
        if due.is_none()
            || seat
                .armed
                .is_none_or(|armed| due.is_some_and(|due| due < armed))
        {
            self.timers.set(key, &mut seat.armed, due);
        }
        let want = seat.connection.want();
        if step == Step::Yield {
            self.queue(key, Hint::Plain);
            Turn::Same
        } else if want == seat.registered {
            Turn::Same
        } else {
            seat.registered = want;
            Turn::Rearm(want)
        }
    }

    /// Whether a connection stands in the ready list already.
    #[must_use]
    pub fn queued(&self, key: usize) -> bool {
        self.seats.get(key).is_some_and(|seat| seat.queued)
    }

    /// Puts a connection into the ready list, once; what an event said is not forgotten.
    pub fn queue(&mut self, key: usize, hint: Hint) {
        let Some(seat) = self.seats.get_mut(key).filter(|seat| !seat.over) else {
            return;
        };
        seat.connection.remember(hint);
        if !seat.queued {
            seat.queued = true;
            self.ready.push_back(key);
        }
    }

    /// Takes the next connection from the ready list.
    pub fn next_ready(&mut self) -> Option<usize> {
        let key = self.ready.pop_front()?;
        if let Some(seat) = self.seats.get_mut(key) {
            seat.queued = false;
        }
        Some(key)
    }

    /// How many connections are ready.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Acts on one deadline that has passed, until there is none.
    ///
    /// A connection that has to leave is put into the ready list; one that has to be closed is
    /// returned with its key.
    pub fn expire(&mut self, now: Instant) -> Option<(usize, Turn)> {
        while let Some(key) = self.timers.fired(now) {
            let seat = &mut self.seats[key];
            let lingering = matches!(seat.connection.phase(), Phase::Lingering { .. });
            match seat.connection.due(&self.limits) {
                // While lingering the same reason is why we left, and nothing but a close helps.
                Some((at, Reason::Lifetime))
                    if at <= now && seat.connection.phase() == Phase::Echoing =>
                {
                    seat.connection.leave(Reason::Lifetime, now);
                    self.arm(key);
                    self.queue(key, Hint::Plain);
                }
                // Closing while the peer still sends is a reset, which destroys what is in flight.
                Some((at, _))
                    if at <= now
                        && lingering
                        && seat.stream.unacknowledged() > 0
                        && seat.connection.linger_on(now) =>
                {
                    self.arm(key);
                }
                Some((at, reason)) if at <= now => {
                    let reason = if lingering { Reason::Abandoned } else { reason };
                    return Some((key, self.end(key, reason, now)));
                }
                _ => self.arm(key),
            }
        }
        None
    }

    /// When [`Shard::expire`] has to be called next.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Asks a connection to end in good order, and queues it: its next turn acts on it.
    pub fn leave(&mut self, key: usize, now: Instant) {
        self.seats[key].connection.leave(Reason::Left, now);
        self.arm(key);
        self.queue(key, Hint::Plain);
    }

    /// Asks every connection to end in good order.
    pub fn leave_all(&mut self, now: Instant) {
        let keys: Vec<usize> = self.seats.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.leave(key, now);
        }
    }

    /// Ends every connection as it is; to be taken out with the keys that are returned.
    pub fn abandon_all(&mut self, now: Instant) -> Vec<(usize, Turn)> {
        self.ready.clear();
        self.seats
            .iter_mut()
            .for_each(|(_, seat)| seat.queued = false);
        let keys: Vec<usize> = self
            .seats
            .iter()
            .filter(|(_, seat)| !seat.over)
            .map(|(key, _)| key)
            .collect();
        keys.into_iter()
            .map(|key| (key, self.end(key, Reason::Abandoned, now)))
            .collect()
    }

    /// Ends one connection for a reason that lies outside its stream; to be taken out then.
    pub fn end(&mut self, key: usize, reason: Reason, now: Instant) -> Turn {
        let seat = &mut self.seats[key];
        self.timers.set(key, &mut seat.armed, None);
        seat.over = true;
        if std::mem::take(&mut seat.queued) {
            self.ready.retain(|ready| *ready != key);
        }
        // A time-out while lingering is the end of leaving, and not a failure of its own as long as
        // the peer has everything.
        let reason = match (seat.connection.phase(), reason) {
            (Phase::Lingering { why, .. }, Reason::Abandoned)
                if seat.stream.unacknowledged() == 0 =>
            {
                why
            }
            (_, reason) => reason,
        };
        let summary = seat.connection.summary(reason, now);
        self.counters.close(&summary);
        Turn::Over(summary)
    }

    /// Takes a stream that is over out of its seat.
    ///
    /// # Panics
    /// If the connection is not over: its counters would be lost.
    pub fn remove(&mut self, key: usize) -> S {
        let seat = self.seats.remove(key);
        assert!(seat.over, "a connection was removed before it was over");
        seat.stream
    }

    /// Replaces the limits, for every connection.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        let keys: Vec<usize> = self.seats.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.arm(key);
        }
    }

    /// A copy of the totals.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How many seats are taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Whether no seat is taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// Every connection, for a report.
    pub fn connections(&self) -> impl Iterator<Item = (&S, &Connection)> {
        self.seats
            .iter()
            .map(|(_, seat)| (&seat.stream, &seat.connection))
    }

    /// Asserts what must hold between rounds.
    pub fn check(&self) {
        assert!(
            self.timers.len() <= self.seats.len(),
            "more timers than connections"
        );
        assert!(
            self.ready.len() <= self.seats.len(),
            "more ready than connections"
        );
        for (_, seat) in self.seats.iter().filter(|(_, seat)| !seat.over) {
            seat.connection.check();
            if let Some((due, _)) = seat.connection.due(&self.limits) {
                assert!(
                    seat.armed.is_some_and(|armed| armed <= due),
                    "a deadline would be missed"
                );
            }
        }
    }

    fn arm(&mut self, key: usize) {
        let seat = &mut self.seats[key];
        let due = if seat.over {
            None
        } else {
            seat.connection.due(&self.limits)
        };
        self.timers.set(key, &mut seat.armed, due.map(|(at, _)| at));
    }
}
