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

use slab::Slab;

use super::backlog::Store;
use super::connection::{Connection, Hint, Start, Step, Want};
use super::counters::Counters;
use super::duplex::Duplex;
use super::phase::Phase;
use super::reason::{Reason, Summary};
use super::tick::Tick;
use super::timers::Timers;
use super::{GRACE, Limits};

/// Seats that are kept for those to come when all are empty.
const FEW: usize = 256;

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
    armed: Option<Tick>,
    /// What the kernel was last asked for.
    registered: Want,
    queued: bool,
    over: bool,
}

/// The conversations of one loop.
#[derive(Debug)]
pub struct Shard<S, M> {
    seats: Slab<Seat<S>>,
    store: M,
    timers: Timers,
    ready: VecDeque<usize>,
    limits: Limits,
    counters: Counters,
    /// Bytes received and sent by those that are over.
    past: (u64, u64),
    /// Bytes received and sent in the last turn.
    moved: (u64, u64),
}

impl<S: Duplex, M: Store> Shard<S, M> {
    /// An empty shard.
    #[must_use]
    pub fn new(limits: Limits, store: M) -> Self {
        Self {
            seats: Slab::new(),
            store,
            timers: Timers::default(),
            ready: VecDeque::new(),
            limits,
            counters: Counters::default(),
            past: (0, 0),
            moved: (0, 0),
        }
    }

    /// Takes in a stream, to be registered for reading under the key that is returned.
    pub fn insert(&mut self, stream: S, now: Tick) -> usize {
        self.counters.accepted += 1;
        self.seat(stream, Connection::new(now))
    }

    /// Takes in a stream of another process, to be registered for what is returned; it is ready.
    /// The totals that go on ([`Shard::resume`]) count it already.
    pub fn adopt(&mut self, stream: S, start: Start, now: Tick) -> (usize, Want) {
        let connection = Connection::resumed(start, &self.limits, now);
        let want = connection.want();
        self.counters.received += connection.received();
        self.counters.sent += connection.sent();
        let key = self.seat(stream, connection);
        self.seats[key].registered = want;
        self.queue(key, Hint::ReadOn);
        (key, want)
    }

    /// Goes on from the totals of another process, as [`Shard::noted`] gives them.
    pub fn resume(&mut self, counters: Counters) {
        self.counters = counters;
        self.past = (counters.received, counters.sent);
    }

    /// The totals for another process.  The bytes are those of connections that are over: how far
    /// the others have come it will find out itself, wherever this one ends.
    #[must_use]
    pub fn noted(&self) -> Counters {
        let (received, sent) = self.past;
        Counters {
            received,
            sent,
            ..self.counters
        }
    }

    fn seat(&mut self, stream: S, connection: Connection) -> usize {
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

    /// The stream in a seat, unless the seat is empty.
    #[must_use]
    pub fn stream(&self, key: usize) -> Option<&S> {
        self.seats.get(key).map(|seat| &seat.stream)
    }

    /// The memory of this loop.
    #[must_use]
    pub fn store(&self) -> &M {
        &self.store
    }

    /// The same, to work with.
    pub fn store_mut(&mut self) -> &mut M {
        &mut self.store
    }

    /// Gives a connection the name under which the store shall know it; 0 takes it back.
    ///
    /// # Panics
    /// If the seat is empty.
    pub fn own(&mut self, key: usize, owner: u64) {
        self.seats[key].connection.own(owner, &mut self.store);
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
    pub fn turn(&mut self, key: usize, hint: Hint, now: Tick) -> Turn {
        self.moved = (0, 0);
        let Some(seat) = self.seats.get_mut(key).filter(|seat| !seat.over) else {
            return Turn::Same;
        };
        let connection = &mut seat.connection;
        let before = (connection.received(), connection.sent());
        let state = connection.state();
        let step = connection.advance(&mut seat.stream, &mut self.store, hint, &self.limits, now);
        self.moved = (
            connection.received() - before.0,
            connection.sent() - before.1,
        );
        self.counters.received += self.moved.0;
        self.counters.sent += self.moved.1;
        if let Step::Done(reason) = step {
            return self.end(key, reason, now);
        }
        connection.check();
        let want = connection.want();
        // Activity only makes a deadline later, and its entry is put back when it fires early.
        if state != connection.state() {
            let due = connection.due(&self.limits).map(|(at, _)| at);
            let earlier = |armed| due.is_some_and(|due| due < armed);
            if due.is_none() || seat.armed.is_none_or(earlier) {
                self.timers.set(key, &mut seat.armed, due);
            }
        }
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

    /// Bytes received and sent in the last turn.
    #[must_use]
    pub fn moved(&self) -> (u64, u64) {
        self.moved
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

    /// Acts on one deadline that has passed.
    ///
    /// It gets a last turn first: what has arrived or could be written meanwhile is not late, only
    /// we are.  Each such turn is returned, so that the server can bound them in a round.
    pub fn expire(&mut self, now: Tick) -> Option<(usize, Turn)> {
        let key = self.next_overdue(now)?;
        let (phase, reason) = self.overdue(key, now)?;
        if reason == Reason::Lifetime && phase == Phase::Echoing {
            self.seats[key].connection.leave(reason, now);
        }
        let turn = self.turn(key, Hint::Plain, now);
        if matches!(turn, Turn::Over(_)) {
            return Some((key, turn));
        }
        self.arm(key);
        let end = self
            .overdue(key, now)
            .and_then(|(phase, reason)| self.conclude(key, phase, reason, now));
        Some((key, end.unwrap_or(turn)))
    }

    /// Whom [`Shard::expire`] would give its last turn.
    pub fn next_overdue(&mut self, now: Tick) -> Option<usize> {
        loop {
            let key = self.timers.fired(now)?;
            if self.overdue(key, now).is_some() {
                return Some(key);
            }
            self.arm(key);
        }
    }

    /// Where a connection is, and what its deadline means, if that has passed.
    fn overdue(&self, key: usize, now: Tick) -> Option<(Phase, Reason)> {
        let connection = &self.seats[key].connection;
        let (at, reason) = connection.due(&self.limits)?;
        (at <= now).then(|| (connection.phase(), reason))
    }

    /// Ends a connection that is overdue after its last turn, unless it may stay a while.
    fn conclude(&mut self, key: usize, phase: Phase, reason: Reason, now: Tick) -> Option<Turn> {
        let seat = &mut self.seats[key];
        let reason = match phase {
            // Closing while the peer still sends is a reset, which destroys what is in flight.
            Phase::Lingering { .. } => {
                if seat.stream.unacknowledged() > 0 && seat.connection.linger_on(now) {
                    self.arm(key);
                    return None;
                }
                Reason::Abandoned
            }
            // The turn has moved an earlier deadline, and this one does not close.
            Phase::Echoing if reason == Reason::Lifetime => {
                seat.connection.leave(reason, now);
                self.arm(key);
                self.queue(key, Hint::Plain);
                return None;
            }
            // The turn was interrupted, or at an urgent mark, before it could read what is there:
            // it is given the next one of this round.
            Phase::Echoing if reason == Reason::Idle && seat.stream.unread() > Some(0) => {
                self.arm(key);
                self.queue(key, Hint::ReadOn);
                return None;
            }
            // The turn was interrupted before it could send our FIN: another one follows.
            Phase::Leaving { .. } if reason == Reason::Left => {
                self.timers.set(key, &mut seat.armed, Some(now + GRACE));
                self.queue(key, Hint::Plain);
                return None;
            }
            _ => reason,
        };
        Some(self.end(key, reason, now))
    }

    /// When [`Shard::expire`] has to be called next.
    #[must_use]
    pub fn next_due(&self) -> Option<Tick> {
        self.timers.next()
    }

    /// Asks a connection to end in good order, and queues it: its next turn acts on it.
    pub fn leave(&mut self, key: usize, now: Tick) {
        self.seats[key].connection.leave(Reason::Left, now);
        self.arm(key);
        self.queue(key, Hint::Plain);
    }

    /// Asks every connection to end in good order.
    pub fn leave_all(&mut self, now: Tick) {
        let keys: Vec<usize> = self.seats.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.leave(key, now);
        }
    }

    /// Ends connections as they are; to be taken out with the keys that are returned.
    pub fn abandon(&mut self, whom: impl Fn(&S) -> bool, now: Tick) -> Vec<(usize, Turn)> {
        self.ready.clear();
        self.seats
            .iter_mut()
            .for_each(|(_, seat)| seat.queued = false);
        let keys: Vec<usize> = self
            .connections()
            .filter(|(_, stream, _)| whom(stream))
            .map(|(key, _, _)| key)
            .collect();
        keys.into_iter()
            .map(|key| (key, self.end(key, Reason::Abandoned, now)))
            .collect()
    }

    /// Ends one connection for a reason that lies outside its stream; to be taken out then.
    #[cold]
    pub fn end(&mut self, key: usize, reason: Reason, now: Tick) -> Turn {
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
        seat.connection.forget(&mut self.store);
        self.past.0 += summary.received;
        self.past.1 += summary.sent;
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
        if self.seats.is_empty() && self.seats.capacity() > FEW {
            // A crowd has left, and its seats would stay.
            self.seats = Slab::new();
            self.ready = VecDeque::new();
        }
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

    /// Every connection that is not over.
    pub fn connections(&self) -> impl Iterator<Item = (usize, &S, &Connection)> {
        self.seats
            .iter()
            .filter(|(_, seat)| !seat.over)
            .map(|(key, seat)| (key, &seat.stream, &seat.connection))
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
                // Who is queued gets a turn at once, which sets it.
                assert!(
                    seat.queued || seat.armed.is_some_and(|armed| armed <= due),
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

#[cfg(test)]
mod tests {
    use super::super::backlog::Heap;
    use super::super::connection::tests::{In, Out, Script};
    use super::*;
    use crate::echo::LINGER;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    /// A shard whose limits are all off, but for the one of leaving, and its clock.
    struct World {
        shard: Shard<Script, Heap>,
        start: Tick,
        now: Tick,
    }

    fn limits() -> Limits {
        Limits {
            idle: None,
            stall: None,
            lifetime: None,
            bytes: None,
            leave: SECOND * 10,
        }
    }

    impl World {
        fn new(limits: Limits) -> Self {
            let start = Tick::new(1 << 60);
            Self {
                shard: Shard::new(limits, Heap::new()),
                start,
                now: start,
            }
        }

        fn arrive(
            &mut self,
            reads: impl IntoIterator<Item = In>,
            writes: impl IntoIterator<Item = Out>,
        ) -> usize {
            let key = self.shard.insert(Script::new(reads, writes), self.now);
            self.shard.check();
            key
        }

        #[track_caller]
        fn turn(&mut self, key: usize) -> Turn {
            let turn = self.shard.turn(key, Hint::Plain, self.now);
            self.shard.check();
            turn
        }

        /// One turn for each that is ready, as the server's loop does.
        fn ready(&mut self) -> Vec<(usize, Turn)> {
            let mut turns = Vec::new();
            for _ in 0..self.shard.ready() {
                let key = self.shard.next_ready().expect("it is in the list");
                let turn = self.turn(key);
                turns.push((key, turn));
            }
            turns
        }

        fn stream(&mut self, key: usize) -> &mut Script {
            self.shard.stream_mut(key)
        }

        fn at(&mut self, seconds: u32) -> &mut Self {
            self.now = self.start + SECOND * seconds;
            self
        }

        /// What the deadlines that have passed bring, until none is left.
        #[track_caller]
        fn last_turns(&mut self) -> Vec<(usize, Turn)> {
            let mut turns = Vec::new();
            while let Some(turn) = self.shard.expire(self.now) {
                self.shard.check();
                turns.push(turn);
                assert!(turns.len() <= 2 * self.shard.len(), "it does not end");
            }
            assert!(self.shard.next_due().is_none_or(|due| due > self.now));
            turns
        }

        /// Those whose last turn ended them, with the reasons, taken out as the server does.
        #[track_caller]
        fn expire(&mut self) -> Vec<(usize, Reason)> {
            self.last_turns()
                .into_iter()
                .filter(|(_, turn)| matches!(turn, Turn::Over(_)))
                .map(|(key, turn)| (key, self.take_out(key, turn).reason))
                .collect()
        }

        #[track_caller]
        fn take_out(&mut self, key: usize, turn: Turn) -> Summary {
            let Turn::Over(summary) = turn else {
                panic!("not over: {turn:?}");
            };
            self.shard.remove(key);
            self.shard.check();
            summary
        }

        fn due(&self) -> Option<Duration> {
            self.shard.next_due().map(|due| due.since(self.start))
        }

        /// Where the only entry of the timers stands is what the shard waits for.
        fn timers(&self) -> usize {
            self.shard.timers.len()
        }

        fn phase(&self, key: usize) -> Phase {
            self.shard.connection(key).expect("a taken seat").phase()
        }
    }

    #[test]
    fn a_stale_key_is_harmless() {
        let mut world = World::new(limits());
        assert_eq!(world.turn(7), Turn::Same);
        world.shard.queue(7, Hint::ReadOn);
        assert_eq!(world.shard.ready(), 0);
        assert!(!world.shard.queued(7));
        let key = world.arrive([In::End], []);
        let turn = world.turn(key);
        assert!(matches!(turn, Turn::Over(_)));
        // Over, and not taken out yet: the stream is not touched again, nor counted.
        assert_eq!(world.turn(key), Turn::Same);
        world.shard.queue(key, Hint::ReadOn);
        world.shard.leave_all(world.now);
        assert_eq!(world.shard.ready(), 0);
        assert!(world.shard.abandon(|_| true, world.now).is_empty());
        assert_eq!(world.shard.counters().closed(), 1);
        world.take_out(key, turn);
        assert_eq!(world.turn(key), Turn::Same);
        assert!(world.shard.connection(key).is_none());
    }

    #[test]
    fn an_event_for_a_seat_that_changed_hands_costs_one_read() {
        let mut world = World::new(limits());
        let old = world.arrive([In::End], []);
        let turn = world.turn(old);
        world.take_out(old, turn);
        let new = world.arrive([], []);
        assert_eq!(old, new, "the seat is reused, or this tests nothing");
        let turn = world.shard.turn(new, Hint::ReadOn, world.now);
        assert_eq!(turn, Turn::Same);
        assert_eq!(world.shard.stream_mut(new).calls, (1, 0));
    }

    #[test]
    #[should_panic(expected = "before it was over")]
    fn nobody_is_removed_before_the_end() {
        let mut world = World::new(limits());
        let key = world.arrive([], []);
        world.shard.remove(key);
    }

    #[test]
    fn the_interest_is_told_only_when_it_changes() {
        let mut world = World::new(limits());
        let key = world.arrive(
            [In::Data(9), In::Data(9), In::Data(9)],
            [Out::Take(9), Out::Take(4), Out::Block, Out::Take(5)],
        );
        assert_eq!(world.turn(key), Turn::Same);
        assert_eq!(world.turn(key), Turn::Rearm(Want::Write));
        assert_eq!(world.turn(key), Turn::Same);
        assert_eq!(world.turn(key), Turn::Rearm(Want::Read));
        assert_eq!(world.turn(key), Turn::Same);
    }

    #[test]
    fn who_yields_is_registered_for_what_it_wants_once_it_is_blocked() {
        let mut world = World::new(limits());
        let key = world.arrive(
            [In::Data(9), In::Data(9)],
            [Out::Take(4), Out::Interrupt, Out::Interrupt],
        );
        assert_eq!(world.turn(key), Turn::Rearm(Want::Write));
        assert_eq!(world.turn(key), Turn::Same);
        assert!(world.shard.queued(key));
        assert_eq!(world.ready(), [(key, Turn::Same)]);
        assert!(world.shard.queued(key));
        assert_eq!(world.ready(), [(key, Turn::Rearm(Want::Read))]);
        assert!(!world.shard.queued(key));
    }

    #[test]
    fn the_ready_list_holds_a_seat_once_and_in_order() {
        let mut world = World::new(limits());
        let keys: Vec<_> = (0..3)
            .map(|_| world.arrive([In::Interrupt, In::Interrupt], []))
            .collect();
        for key in [2, 0, 2, 1, 0] {
            world.shard.queue(keys[key], Hint::Plain);
        }
        assert_eq!(world.shard.ready(), 3);
        let order: Vec<_> = world.ready().into_iter().map(|(key, _)| key).collect();
        assert_eq!(order, [keys[2], keys[0], keys[1]]);
        // Each yielded, and stands in the list again, in the same order.
        assert_eq!(world.shard.ready(), 3);
        // An event gives one of them its turn early: it does not leave the list, nor enter twice.
        world.turn(keys[1]);
        assert_eq!(world.shard.ready(), 3);
        let order: Vec<_> = std::iter::from_fn(|| world.shard.next_ready()).collect();
        assert_eq!(order, [keys[2], keys[0], keys[1]]);
        assert!(!keys.iter().any(|key| world.shard.queued(*key)));
    }

    #[test]
    fn what_an_event_said_to_one_that_is_queued_is_not_forgotten() {
        let mut world = World::new(limits());
        let key = world.arrive([In::Interrupt, In::Data(5), In::End], []);
        assert_eq!(world.turn(key), Turn::Same);
        world.shard.queue(key, Hint::ReadOn);
        let turns = world.ready();
        assert_eq!(world.take_out(key, turns[0].1).reason, Reason::PeerDone);
    }

    #[test]
    fn an_end_while_queued_leaves_nothing_in_the_list() {
        let mut world = World::new(Limits {
            idle: Some(SECOND),
            ..limits()
        });
        let other = world.arrive([In::Interrupt], []);
        let key = world.arrive([In::Interrupt], []);
        world.turn(key);
        world.turn(other);
        let turn = world.shard.end(key, Reason::Error(12), world.now);
        assert_eq!(world.take_out(key, turn).reason, Reason::Error(12));
        // The seat is taken again: a stale entry would give it a turn that nobody gave it.
        let new = world.arrive([In::Data(1)], []);
        assert_eq!(key, new);
        assert!(!world.shard.queued(new));
        assert_eq!(world.ready(), [(other, Turn::Same)]);
        assert_eq!(world.shard.stream_mut(new).calls, (0, 0));
        // By the clock, too: one of them, as the other has said something meanwhile.
        world.shard.queue(other, Hint::Plain);
        assert_eq!(world.at(1).expire(), [(other, Reason::Idle)]);
        assert_eq!(world.stream(new).taken, 1);
        assert_eq!(world.shard.next_ready(), None);
        world.shard.queue(new, Hint::Plain);
        assert_eq!(world.at(2).expire(), [(new, Reason::Idle)]);
        assert_eq!(world.shard.next_ready(), None);
    }

    #[test]
    fn an_entry_is_moved_lazily_when_later_and_at_once_when_earlier() {
        let mut world = World::new(Limits {
            idle: Some(SECOND * 10),
            stall: Some(SECOND * 3),
            ..limits()
        });
        let key = world.arrive([In::Data(1), In::Data(9)], [Out::Take(1), Out::Take(4)]);
        assert_eq!(world.due(), Some(SECOND * 10));
        world.at(4).turn(key);
        assert_eq!(world.due(), Some(SECOND * 10), "activity moves nothing");
        world.at(5).turn(key);
        assert_eq!(world.due(), Some(SECOND * 8), "a stall is due earlier");
        assert_eq!(world.timers(), 1);
        world.at(6).turn(key);
        assert_eq!(world.due(), Some(SECOND * 8), "paid: idle, but later");
        assert!(world.at(8).expire().is_empty(), "early, and put back");
        assert_eq!(world.due(), Some(SECOND * 16));
        assert!(world.at(15).expire().is_empty());
        assert_eq!(world.at(16).expire(), [(key, Reason::Idle)]);
        assert_eq!((world.timers(), world.due()), (0, None));
    }

    #[test]
    fn a_deadline_that_is_no_more_has_no_entry() {
        let mut world = World::new(Limits {
            stall: Some(SECOND),
            ..limits()
        });
        let key = world.arrive([In::Data(9)], [Out::Take(4)]);
        assert_eq!(world.timers(), 0);
        world.turn(key);
        assert_eq!(world.due(), Some(SECOND));
        world.turn(key);
        assert_eq!(world.timers(), 0, "nothing is owed, nothing is due");
    }

    #[test]
    fn a_close_takes_its_entry_along() {
        let mut world = World::new(Limits {
            idle: Some(SECOND),
            ..limits()
        });
        let one = world.arrive([In::End], []);
        let two = world.arrive([], []);
        assert_eq!(world.timers(), 2);
        let turn = world.turn(one);
        assert_eq!(world.timers(), 1, "before it is taken out");
        world.take_out(one, turn);
        assert_eq!(world.at(1).expire(), [(two, Reason::Idle)]);
        assert_eq!(world.timers(), 0);
    }

    #[test]
    fn many_deadlines_fire_in_one_go_and_in_order() {
        let mut world = World::new(Limits {
            idle: Some(SECOND),
            ..limits()
        });
        let keys: Vec<_> = (0..100)
            .map(|tenth| {
                world.now = world.start + SECOND / 10 * tenth;
                world.arrive([], [])
            })
            .collect();
        world.now = world.start + SECOND * 3;
        let gone: Vec<_> = world.expire().into_iter().map(|(key, _)| key).collect();
        assert_eq!(gone, keys[..21]);
        assert_eq!(world.timers(), 79);
    }

    #[test]
    fn the_greatest_age_asks_to_leave_and_does_not_close() {
        let mut world = World::new(Limits {
            lifetime: Some(SECOND * 5),
            ..limits()
        });
        let key = world.arrive([In::Data(7)], []);
        let owes = world.arrive([In::Data(9)], [Out::Take(4), Out::Block]);
        world.turn(owes);
        let turns = world.at(5).last_turns();
        assert_eq!(turns, [(key, Turn::Same), (owes, Turn::Same)]);
        let stream = world.stream(key);
        assert_eq!((stream.taken, stream.finished), (7, true), "in that turn");
        assert!(!world.stream(owes).finished);
        assert_eq!(world.due(), Some(SECOND * 5 + LINGER));
        assert_eq!(world.shard.ready(), 0);
        world.stream(key).reads = [In::End].into();
        let turn = world.turn(key);
        assert_eq!(world.take_out(key, turn).reason, Reason::Lifetime);
        assert_eq!(
            world.due(),
            Some(SECOND * 15),
            "leaving has a limit of its own"
        );
        assert_eq!(world.turn(owes), Turn::Rearm(Want::Read));
        assert!(world.stream(owes).finished);
    }

    #[test]
    fn what_arrived_before_a_deadline_was_noticed_is_not_late() {
        let mut world = World::new(Limits {
            idle: Some(SECOND),
            ..limits()
        });
        let spoke = world.arrive([], []);
        let owes = world.arrive([], [Out::Take(4)]);
        let yields = world.arrive([], []);
        let ended = world.arrive([], []);
        let reset = world.arrive([], []);
        let silent = world.arrive([], []);
        world.at(3);
        world.stream(spoke).reads = [In::Data(5)].into();
        world.stream(owes).reads = [In::Data(9)].into();
        world.stream(yields).reads = [In::Data(1 << 20)].into();
        world.stream(ended).reads = [In::End].into();
        world.stream(reset).reads = [In::Fail(104)].into();
        let turns = world.last_turns();
        let rescued = [
            (spoke, Turn::Same),
            (owes, Turn::Rearm(Want::Write)),
            (yields, Turn::Same),
        ];
        assert_eq!(turns[..3], rescued);
        let gone: Vec<_> = turns[3..]
            .iter()
            .map(|(key, turn)| (*key, world.take_out(*key, *turn).reason))
            .collect();
        let reasons = [Reason::PeerDone, Reason::Reset, Reason::Idle];
        assert!(
            gone.into_iter()
                .eq([ended, reset, silent].into_iter().zip(reasons))
        );
        assert_eq!(world.stream(spoke).taken, 5);
        assert!(!world.shard.queued(spoke) && world.shard.queued(yields));
        // From then on it is as if there had been no deadline before.
        assert_eq!((world.due(), world.timers()), (Some(SECOND * 4), 2));
        world.ready();
        assert_eq!(world.turn(owes), Turn::Rearm(Want::Read));
        assert_eq!(world.at(4).expire().len(), 2);
    }

    #[test]
    fn who_took_something_before_its_stall_was_noticed_goes_on() {
        let mut world = World::new(Limits {
            stall: Some(SECOND),
            ..limits()
        });
        let blocked = [Out::Take(4), Out::Block];
        let all = world.arrive([In::Data(9)], [Out::Take(4)]);
        let some = world.arrive([In::Data(9)], [Out::Take(4), Out::Take(1), Out::Block]);
        let nothing = world.arrive([In::Data(9)], blocked);
        let gone = world.arrive([In::Data(9)], [Out::Take(4), Out::Fail(32)]);
        for key in [all, some, nothing, gone] {
            assert_eq!(world.turn(key), Turn::Rearm(Want::Write));
        }
        let turns = world.at(3).last_turns();
        let rescued = [(all, Turn::Rearm(Want::Read)), (some, Turn::Same)];
        assert_eq!(turns[..2], rescued);
        for ((key, turn), reason) in turns[2..].iter().zip([Reason::Stalled, Reason::Reset]) {
            let summary = world.take_out(*key, *turn);
            assert_eq!((summary.reason, summary.owed), (reason, 5));
        }
        assert_eq!(world.stream(all).taken, 9);
        assert_eq!(world.stream(some).taken, 5);
        assert_eq!((world.due(), world.timers()), (Some(SECOND * 4), 1));
        world.stream(some).writes = [Out::Block].into();
        assert_eq!(world.at(4).expire(), [(some, Reason::Stalled)]);
    }

    #[test]
    fn a_greatest_age_behind_a_time_out_that_was_moved_does_not_close_either() {
        for (reads, writes) in [
            (vec![In::Data(7)], vec![]),
            (vec![In::Data(7)], vec![Out::Take(2), Out::Block]),
        ] {
            let mut world = World::new(Limits {
                idle: Some(SECOND),
                lifetime: Some(SECOND * 2),
                ..limits()
            });
            let key = world.arrive([], []);
            world.at(3);
            let owes = !writes.is_empty();
            world.stream(key).reads = reads.into();
            world.stream(key).writes = writes.into();
            let turn = if owes {
                Turn::Rearm(Want::Write)
            } else {
                Turn::Same
            };
            assert_eq!(world.last_turns(), [(key, turn)]);
            assert!(matches!(
                world.phase(key),
                Phase::Leaving {
                    why: Reason::Lifetime,
                    ..
                }
            ));
            assert!(world.shard.queued(key));
            world.ready();
            if owes {
                world.turn(key);
            }
            let stream = world.stream(key);
            assert_eq!((stream.taken, stream.finished), (7, true));
            world.now += LINGER;
            assert_eq!(world.expire(), [(key, Reason::Lifetime)]);
        }
    }

    #[test]
    fn each_call_gives_one_last_turn_at_most() {
        let mut world = World::new(Limits {
            idle: Some(SECOND),
            ..limits()
        });
        let keys: Vec<_> = (0..3).map(|_| world.arrive([], [])).collect();
        world.at(1);
        for key in &keys {
            world.stream(*key).reads = [In::Data(1)].into();
        }
        for key in &keys {
            assert_eq!(world.shard.expire(world.now), Some((*key, Turn::Same)));
            let turned = keys.iter().filter(|other| *other <= key).count();
            assert_eq!(world.shard.counters().received, turned as u64);
        }
        assert_eq!(world.shard.expire(world.now), None);
    }

    #[test]
    fn after_a_stop_our_fin_is_sent_by_the_clock() {
        let mut world = World::new(limits());
        let silent = world.arrive([], []);
        let talks = world.arrive([], []);
        world.at(1);
        world.shard.leave_all(world.now);
        world.ready();
        assert_eq!(world.due(), Some(SECOND + GRACE));
        assert_eq!(world.timers(), 2);
        world.now += GRACE / 2;
        world.stream(talks).reads = [In::Data(3)].into();
        assert_eq!(world.turn(talks), Turn::Same);
        assert!(world.expire().is_empty());
        world.now = world.start + SECOND + GRACE;
        assert_eq!(world.last_turns(), [(silent, Turn::Same)]);
        assert!(world.stream(silent).finished);
        assert!(!world.stream(talks).finished);
        assert_eq!(world.due(), Some(SECOND + GRACE * 3 / 2));
        // What arrived just then comes back, and moves it.
        world.now += GRACE / 2;
        world.stream(talks).reads = [In::Data(4)].into();
        assert_eq!(world.last_turns(), [(talks, Turn::Same)]);
        let stream = world.stream(talks);
        assert_eq!((stream.taken, stream.finished), (7, false));
        assert_eq!(world.due(), Some(SECOND + GRACE * 5 / 2));
        world.now += GRACE;
        assert_eq!(world.last_turns(), [(talks, Turn::Same)]);
        assert!(world.stream(talks).finished);
        assert_eq!(world.due(), Some(SECOND + GRACE + LINGER));
        world.now += LINGER;
        let gone = [(silent, Reason::Left), (talks, Reason::Left)];
        assert_eq!(world.expire(), gone);
    }

    #[test]
    fn an_interrupted_turn_does_not_cost_our_fin() {
        let mut world = World::new(limits());
        let key = world.arrive([], []);
        world.shard.leave_all(world.now);
        world.ready();
        world.now += GRACE;
        world.stream(key).reads = [In::Interrupt].into();
        assert_eq!(world.last_turns(), [(key, Turn::Same)]);
        assert!(world.shard.queued(key) && !world.stream(key).finished);
        assert_eq!(world.ready(), [(key, Turn::Same)]);
        assert!(world.stream(key).finished);
        world.now += LINGER;
        assert_eq!(world.expire(), [(key, Reason::Left)]);
    }

    #[test]
    fn lingering_ends_by_the_clock_for_the_reason_that_began_it() {
        for (reason, bytes, lifetime) in [
            (Reason::Left, None, None),
            (Reason::Spent, Some(1), None),
            (Reason::Lifetime, None, Some(SECOND * 2)),
        ] {
            let mut world = World::new(Limits {
                bytes,
                lifetime,
                ..limits()
            });
            let key = world.arrive([In::Data(3)], []);
            world.turn(key);
            match reason {
                Reason::Left => {
                    world.shard.leave(key, world.now);
                    world.ready();
                    world.now += GRACE;
                    assert!(world.expire().is_empty());
                }
                Reason::Lifetime => assert!(world.at(2).expire().is_empty()),
                _ => {}
            }
            assert_eq!(world.shard.ready(), 0);
            let Phase::Lingering { since, why, .. } = world.phase(key) else {
                panic!("{reason:?}: {:?}", world.phase(key));
            };
            assert_eq!((since, why), (world.now, reason));
            assert_eq!(world.shard.next_due(), Some(since + LINGER));
            world.now = since + LINGER;
            assert_eq!(world.expire(), [(key, reason)]);
            assert_eq!((world.timers(), world.shard.ready()), (0, 0));
        }
    }

    #[test]
    fn lingering_goes_on_while_something_is_unacknowledged_and_its_end_is_found() {
        let mut world = World::new(Limits {
            leave: SECOND,
            ..limits()
        });
        let keys: Vec<_> = (0..3).map(|_| world.arrive([], [])).collect();
        world.shard.leave_all(world.now);
        world.now += GRACE;
        world.ready();
        let [ends, settles, never] = keys[..] else {
            unreachable!()
        };
        for key in &keys {
            world.stream(*key).unacknowledged = 1;
        }
        world.now += LINGER;
        let all: Vec<_> = keys.iter().map(|key| (*key, Turn::Same)).collect();
        assert_eq!(world.last_turns(), all);
        assert_eq!(world.due(), Some(GRACE + LINGER * 2));
        // An end that was not announced yet, and an acknowledgement.
        world.stream(ends).reads = [In::Data(3), In::End].into();
        world.stream(settles).unacknowledged = 0;
        world.now += LINGER;
        let gone = [(ends, Reason::Left), (settles, Reason::Left)];
        assert_eq!(world.expire(), gone);
        // At most as long as leaving may take.
        assert_eq!(world.due(), Some(SECOND));
        assert_eq!(world.at(1).expire(), [(never, Reason::Abandoned)]);
    }

    #[test]
    fn leaving_that_takes_too_long_is_abandoned() {
        let mut world = World::new(limits());
        let blocked = [Out::Take(4), Out::Block, Out::Block];
        let key = world.arrive([In::Data(9)], blocked);
        let other = world.arrive([In::Data(9)], [Out::Take(4), Out::Block]);
        world.turn(key);
        world.turn(other);
        world.shard.leave_all(world.now);
        assert_eq!(world.ready(), [(key, Turn::Same), (other, Turn::Same)]);
        assert!(world.at(9).last_turns().is_empty());
        // Who can be paid at last, is.
        let turns = world.at(10).last_turns();
        assert_eq!(turns[1..], [(other, Turn::Rearm(Want::Read))]);
        let stream = world.stream(other);
        assert_eq!((stream.taken, stream.finished), (9, true));
        let summary = world.take_out(key, turns[0].1);
        assert_eq!((summary.reason, summary.owed), (Reason::Abandoned, 5));
    }

    #[test]
    fn new_limits_hold_for_those_that_are_here() {
        let mut world = World::new(limits());
        let key = world.arrive([], []);
        let idle = |seconds: u32| Limits {
            idle: (seconds > 0).then_some(SECOND * seconds),
            ..limits()
        };
        for (seconds, due) in [(9, 1), (4, 1), (7, 1), (0, 0), (5, 1)] {
            world.shard.set_limits(idle(seconds));
            world.shard.check();
            assert_eq!(world.timers(), due, "{seconds}");
            assert_eq!(world.due(), (due > 0).then_some(SECOND * seconds));
        }
        // Into the past: due at once.
        world.at(3);
        world.shard.set_limits(idle(2));
        assert_eq!(world.expire(), [(key, Reason::Idle)]);
        // One that is over is left alone.
        let key = world.arrive([In::End], []);
        let turn = world.turn(key);
        world.shard.set_limits(idle(1));
        assert_eq!(world.timers(), 0);
        world.take_out(key, turn);
    }

    #[test]
    fn all_are_asked_to_leave_and_do() {
        let mut world = World::new(limits());
        let quiet = world.arrive([], []);
        let owes = world.arrive([In::Data(9)], [Out::Take(1), Out::Block]);
        let busy = world.arrive([In::Interrupt, In::Data(9)], []);
        world.turn(owes);
        world.turn(busy);
        world.shard.leave_all(world.now);
        world.shard.leave_all(world.now);
        assert_eq!(world.shard.ready(), 3, "each once, twice asked or not");
        world.ready();
        for key in [quiet, owes, busy] {
            assert!(!world.stream(key).finished, "it may say something more");
        }
        world.now += GRACE;
        let turns = world.last_turns();
        assert_eq!(turns, [(quiet, Turn::Same), (busy, Turn::Same)]);
        for (key, finished) in [(quiet, true), (owes, false), (busy, true)] {
            assert_eq!(world.stream(key).finished, finished);
        }
        assert_eq!(world.turn(owes), Turn::Rearm(Want::Read));
        assert_eq!(world.due(), Some(GRACE * 2), "it has just taken something");
        world.now += GRACE;
        assert_eq!(world.last_turns(), [(owes, Turn::Same)]);
        assert!(world.stream(owes).finished);
        world.now += LINGER;
        let gone = world.expire();
        assert_eq!(gone.len(), 3);
        assert!(gone.iter().all(|(_, reason)| *reason == Reason::Left));
        assert!(world.shard.is_empty());
    }

    #[test]
    fn all_are_abandoned_at_once() {
        let mut world = World::new(Limits {
            idle: Some(SECOND),
            ..limits()
        });
        let owes = world.arrive([In::Data(9)], [Out::Take(4), Out::Block]);
        let busy = world.arrive([In::Interrupt], []);
        let lingers = world.arrive([], []);
        let leaves = world.arrive([], []);
        world.turn(owes);
        world.turn(busy);
        world.shard.leave(lingers, world.now);
        world.now += GRACE;
        world.turn(lingers);
        world.shard.leave(leaves, world.now);
        world.turn(leaves);
        let gone = world.shard.abandon(|_| true, world.now);
        world.shard.check();
        assert_eq!((world.shard.ready(), world.timers()), (0, 0));
        let gone: Vec<_> = gone
            .into_iter()
            .map(|(key, turn)| (key, world.take_out(key, turn)))
            .map(|(key, summary)| (key, summary.reason, summary.owed))
            .collect();
        assert_eq!(
            gone,
            [
                (owes, Reason::Abandoned, 5),
                (busy, Reason::Abandoned, 0),
                (lingers, Reason::Left, 0),
                (leaves, Reason::Abandoned, 0)
            ]
        );
        assert!(world.shard.is_empty());
    }

    #[test]
    fn the_counters_add_up() {
        let mut world = World::new(Limits {
            idle: Some(SECOND),
            ..limits()
        });
        let done = world.arrive([In::Data(100), In::End], []);
        let reset = world.arrive([In::Data(10), In::Fail(104)], [Out::Take(4)]);
        let idle = world.arrive([In::Data(1)], []);
        for key in [done, reset, idle] {
            world.turn(key);
        }
        let counters = world.shard.counters();
        assert_eq!((counters.received, counters.sent), (111, 105));
        assert_eq!((counters.accepted, counters.open()), (3, 3));
        for key in [done, reset] {
            let turn = world.turn(key);
            assert!(matches!(turn, Turn::Over(_)));
            world.take_out(key, turn);
        }
        assert_eq!(world.at(1).expire(), [(idle, Reason::Idle)]);
        let counters = world.shard.counters();
        assert_eq!((counters.received, counters.sent), (111, 111));
        assert_eq!((counters.open(), counters.closed()), (0, 3));
        for (reason, count) in counters.by_reason() {
            let expected = u64::from(["peer-done", "reset", "idle"].contains(&reason));
            assert_eq!(count, expected, "{reason}");
        }
    }
}
