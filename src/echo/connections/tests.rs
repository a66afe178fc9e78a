use super::super::buffers::HeapStore;
use super::super::connection::tests::{In, Out, Script};
use super::*;
use crate::echo::{GRACE, LINGER};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A table of connections, and its clock.
struct Harness {
    connections: Connections<Script, HeapStore>,
    start: MonoTime,
    now: MonoTime,
}

/// No limit but the stop time-out.
fn limits() -> Limits {
    Limits {
        idle: None,
        stall: None,
        lifetime: None,
        bytes: None,
        stop_timeout: SECOND * 10,
    }
}

impl Harness {
    fn new(limits: Limits) -> Self {
        let start = MonoTime::new(1 << 60);
        Self {
            connections: Connections::new(limits, HeapStore::new()),
            start,
            now: start,
        }
    }

    fn arrive(
        &mut self,
        reads: impl IntoIterator<Item = In>,
        writes: impl IntoIterator<Item = Out>,
    ) -> usize {
        let key = self
            .connections
            .insert(Script::new(reads, writes), self.now);
        self.connections.check();
        key
    }

    #[track_caller]
    fn turn(&mut self, key: usize) -> Outcome {
        let turn = self.connections.turn(key, Hint::Plain, self.now);
        self.connections.check();
        turn
    }

    /// One turn for each connection that is ready.
    fn ready(&mut self) -> Vec<(usize, Outcome)> {
        let mut turns = Vec::new();
        for _ in 0..self.connections.ready() {
            let key = self.connections.next_ready().expect("it is in the list");
            let turn = self.turn(key);
            turns.push((key, turn));
        }
        turns
    }

    fn stream(&mut self, key: usize) -> &mut Script {
        self.connections.stream_mut(key)
    }

    fn at(&mut self, seconds: u32) -> &mut Self {
        self.now = self.start + SECOND * seconds;
        self
    }

    /// Acts on one deadline that has passed.
    fn expire_next(&mut self) -> Option<(usize, Outcome)> {
        let key = self.connections.next_overdue(self.now)?;
        let outcome = self.connections.expire(key, self.now);
        self.connections.check();
        Some((key, outcome))
    }

    /// Acts on all deadlines that have passed.
    #[track_caller]
    fn expire_all(&mut self) -> Vec<(usize, Outcome)> {
        let mut turns = Vec::new();
        while let Some(turn) = self.expire_next() {
            turns.push(turn);
            assert!(
                turns.len() <= 2 * self.connections.entries.len(),
                "it does not end"
            );
        }
        assert!(self.connections.next_due().is_none_or(|due| due > self.now));
        turns
    }

    /// Acts on all deadlines that have passed, and removes the connections that have ended.
    #[track_caller]
    fn expire(&mut self) -> Vec<(usize, EndReason)> {
        self.expire_all()
            .into_iter()
            .filter(|(_, turn)| matches!(turn, Outcome::Over(_)))
            .map(|(key, turn)| (key, self.remove(key, turn).reason))
            .collect()
    }

    #[track_caller]
    fn remove(&mut self, key: usize, turn: Outcome) -> Summary {
        let Outcome::Over(summary) = turn else {
            panic!("not over: {turn:?}");
        };
        self.connections.remove(key);
        self.connections.check();
        summary
    }

    fn due(&self) -> Option<Duration> {
        self.connections.next_due().map(|due| due.since(self.start))
    }

    fn deadlines(&self) -> usize {
        self.connections.deadlines.count()
    }

    fn phase(&self, key: usize) -> Phase {
        self.connections
            .connection(key)
            .expect("a taken entry")
            .phase()
    }
}

#[test]
fn a_key_without_a_connection_is_harmless() {
    let mut test = Harness::new(limits());
    assert_eq!(test.turn(7), Outcome::Same);
    test.connections.queue(7, Hint::ReadOn);
    assert_eq!(test.connections.ready(), 0);
    assert!(!test.connections.is_queued(7));
    let key = test.arrive([In::End], []);
    let turn = test.turn(key);
    assert!(matches!(turn, Outcome::Over(_)));
    // A connection that has ended and was not removed yet is neither touched nor counted again.
    assert_eq!(test.turn(key), Outcome::Same);
    test.connections.queue(key, Hint::ReadOn);
    test.connections.drain_all(test.now);
    assert_eq!(test.connections.ready(), 0);
    assert!(test.connections.abandon(|_| true, test.now).is_empty());
    assert_eq!(test.connections.counters().closed(), 1);
    test.remove(key, turn);
    assert_eq!(test.turn(key), Outcome::Same);
    assert!(test.connections.connection(key).is_none());
}

#[test]
fn an_event_for_an_earlier_connection_with_the_same_key_costs_one_read() {
    let mut test = Harness::new(limits());
    let old = test.arrive([In::End], []);
    let turn = test.turn(old);
    test.remove(old, turn);
    let new = test.arrive([], []);
    assert_eq!(old, new, "the entry is reused, or this tests nothing");
    let turn = test.connections.turn(new, Hint::ReadOn, test.now);
    assert_eq!(turn, Outcome::Same);
    assert_eq!(test.connections.stream_mut(new).calls, (1, 0));
}

#[test]
#[should_panic(expected = "before its end")]
fn a_connection_is_not_removed_before_its_end() {
    let mut test = Harness::new(limits());
    let key = test.arrive([], []);
    test.connections.remove(key);
}

#[test]
fn an_outcome_asks_for_registration_only_when_the_interest_changes() {
    let mut test = Harness::new(limits());
    let key = test.arrive(
        [In::Data(9), In::Data(9), In::Data(9)],
        [Out::Take(9), Out::Take(4), Out::Block, Out::Take(5)],
    );
    assert_eq!(test.turn(key), Outcome::Same);
    assert_eq!(test.turn(key), Outcome::Rearm(Want::Write));
    assert_eq!(test.turn(key), Outcome::Same);
    assert_eq!(test.turn(key), Outcome::Rearm(Want::Read));
    assert_eq!(test.turn(key), Outcome::Same);
}

#[test]
fn a_connection_that_yields_is_registered_anew_once_it_is_blocked() {
    let mut test = Harness::new(limits());
    let key = test.arrive(
        [In::Data(9), In::Data(9)],
        [Out::Take(4), Out::Interrupt, Out::Interrupt],
    );
    assert_eq!(test.turn(key), Outcome::Rearm(Want::Write));
    assert_eq!(test.turn(key), Outcome::Same);
    assert!(test.connections.is_queued(key));
    assert_eq!(test.ready(), [(key, Outcome::Same)]);
    assert!(test.connections.is_queued(key));
    assert_eq!(test.ready(), [(key, Outcome::Rearm(Want::Read))]);
    assert!(!test.connections.is_queued(key));
}

#[test]
fn the_ready_list_holds_a_connection_once_and_in_order() {
    let mut test = Harness::new(limits());
    let keys: Vec<_> = (0..3)
        .map(|_| test.arrive([In::Interrupt, In::Interrupt], []))
        .collect();
    for key in [2, 0, 2, 1, 0] {
        test.connections.queue(keys[key], Hint::Plain);
    }
    assert_eq!(test.connections.ready(), 3);
    let order: Vec<_> = test.ready().into_iter().map(|(key, _)| key).collect();
    assert_eq!(order, [keys[2], keys[0], keys[1]]);
    // Each connection yielded, and stands in the list again, in the same order.
    assert_eq!(test.connections.ready(), 3);
    // A turn beside the list (of a deadline) neither removes a connection from it nor adds it twice.
    test.turn(keys[1]);
    assert_eq!(test.connections.ready(), 3);
    let order: Vec<_> = std::iter::from_fn(|| test.connections.next_ready()).collect();
    assert_eq!(order, [keys[2], keys[0], keys[1]]);
    assert!(!keys.iter().any(|key| test.connections.is_queued(*key)));
}

#[test]
fn a_hint_to_a_queued_connection_holds() {
    let mut test = Harness::new(limits());
    let key = test.arrive([In::Interrupt, In::Data(5), In::End], []);
    assert_eq!(test.turn(key), Outcome::Same);
    test.connections.queue(key, Hint::ReadOn);
    let turns = test.ready();
    assert_eq!(test.remove(key, turns[0].1).reason, EndReason::PeerClosed);
}

#[test]
fn a_connection_that_ends_while_queued_is_removed_from_the_list() {
    let mut test = Harness::new(Limits {
        idle: Some(SECOND),
        ..limits()
    });
    let other = test.arrive([In::Interrupt], []);
    let key = test.arrive([In::Interrupt], []);
    test.turn(key);
    test.turn(other);
    let turn = test.connections.end(key, EndReason::Error(12), test.now);
    assert_eq!(test.remove(key, turn).reason, EndReason::Error(12));
    // The key is used again: with a stale entry the new connection would get a turn.
    let new = test.arrive([In::Data(1)], []);
    assert_eq!(key, new);
    assert!(!test.connections.is_queued(new));
    assert_eq!(test.ready(), [(other, Outcome::Same)]);
    assert_eq!(test.connections.stream_mut(new).calls, (0, 0));
    // The same holds for an end by a deadline; the other connection has received something.
    test.connections.queue(other, Hint::Plain);
    assert_eq!(test.at(1).expire(), [(other, EndReason::IdleTimeout)]);
    assert_eq!(test.stream(new).taken, 1);
    assert_eq!(test.connections.next_ready(), None);
    test.connections.queue(new, Hint::Plain);
    assert_eq!(test.at(2).expire(), [(new, EndReason::IdleTimeout)]);
    assert_eq!(test.connections.next_ready(), None);
}

#[test]
fn an_entry_is_moved_lazily_when_later_and_at_once_when_earlier() {
    let mut test = Harness::new(Limits {
        idle: Some(SECOND * 10),
        stall: Some(SECOND * 3),
        ..limits()
    });
    let key = test.arrive([In::Data(1), In::Data(9)], [Out::Take(1), Out::Take(4)]);
    assert_eq!(test.due(), Some(SECOND * 10));
    test.at(4).turn(key);
    assert_eq!(test.due(), Some(SECOND * 10), "traffic moves no entry");
    test.at(5).turn(key);
    assert_eq!(test.due(), Some(SECOND * 8), "a stall is due earlier");
    assert_eq!(test.deadlines(), 1);
    test.at(6).turn(key);
    assert_eq!(
        test.due(),
        Some(SECOND * 8),
        "nothing is owed: idle is later"
    );
    assert!(test.at(8).expire().is_empty(), "too early, so it is moved");
    assert_eq!(test.due(), Some(SECOND * 16));
    assert!(test.at(15).expire().is_empty());
    assert_eq!(test.at(16).expire(), [(key, EndReason::IdleTimeout)]);
    assert_eq!((test.deadlines(), test.due()), (0, None));
}

#[test]
fn an_entry_is_removed_with_its_deadline() {
    let mut test = Harness::new(Limits {
        stall: Some(SECOND),
        ..limits()
    });
    let key = test.arrive([In::Data(9)], [Out::Take(4)]);
    assert_eq!(test.deadlines(), 0);
    test.turn(key);
    assert_eq!(test.due(), Some(SECOND));
    test.turn(key);
    assert_eq!(test.deadlines(), 0, "nothing is owed, nothing is due");
}

#[test]
fn an_entry_is_removed_with_its_connection() {
    let mut test = Harness::new(Limits {
        idle: Some(SECOND),
        ..limits()
    });
    let one = test.arrive([In::End], []);
    let two = test.arrive([], []);
    assert_eq!(test.deadlines(), 2);
    let turn = test.turn(one);
    assert_eq!(test.deadlines(), 1, "before the connection is removed");
    test.remove(one, turn);
    assert_eq!(test.at(1).expire(), [(two, EndReason::IdleTimeout)]);
    assert_eq!(test.deadlines(), 0);
}

#[test]
fn many_deadlines_are_acted_on_in_order() {
    let mut test = Harness::new(Limits {
        idle: Some(SECOND),
        ..limits()
    });
    let keys: Vec<_> = (0..100)
        .map(|tenth| {
            test.now = test.start + SECOND / 10 * tenth;
            test.arrive([], [])
        })
        .collect();
    test.now = test.start + SECOND * 3;
    let ended: Vec<_> = test.expire().into_iter().map(|(key, _)| key).collect();
    assert_eq!(ended, keys[..21]);
    assert_eq!(test.deadlines(), 79);
}

#[test]
fn the_lifetime_drains_and_does_not_close() {
    let mut test = Harness::new(Limits {
        lifetime: Some(SECOND * 5),
        ..limits()
    });
    let key = test.arrive([In::Data(7)], []);
    let owes = test.arrive([In::Data(9)], [Out::Take(4), Out::Block]);
    test.turn(owes);
    let turns = test.at(5).expire_all();
    assert_eq!(turns, [(key, Outcome::Same), (owes, Outcome::Same)]);
    let stream = test.stream(key);
    assert_eq!((stream.taken, stream.finished), (7, true), "in that turn");
    assert!(!test.stream(owes).finished);
    assert_eq!(test.due(), Some(SECOND * 5 + LINGER));
    assert_eq!(test.connections.ready(), 0);
    test.stream(key).reads = [In::End].into();
    let turn = test.turn(key);
    assert_eq!(test.remove(key, turn).reason, EndReason::MaxLifetime);
    assert_eq!(
        test.due(),
        Some(SECOND * 15),
        "draining has a limit of its own"
    );
    assert_eq!(test.turn(owes), Outcome::Rearm(Want::Read));
    assert!(test.stream(owes).finished);
}

#[test]
fn what_arrived_before_a_deadline_was_acted_on_is_not_late() {
    let mut test = Harness::new(Limits {
        idle: Some(SECOND),
        ..limits()
    });
    let spoke = test.arrive([], []);
    let owes = test.arrive([], [Out::Take(4)]);
    let yields = test.arrive([], []);
    let finished = test.arrive([], []);
    let reset = test.arrive([], []);
    let silent = test.arrive([], []);
    test.at(3);
    test.stream(spoke).reads = [In::Data(5)].into();
    test.stream(owes).reads = [In::Data(9)].into();
    test.stream(yields).reads = [In::Data(1 << 20)].into();
    test.stream(finished).reads = [In::End].into();
    test.stream(reset).reads = [In::Fail(104)].into();
    let turns = test.expire_all();
    let still_open = [
        (spoke, Outcome::Same),
        (owes, Outcome::Rearm(Want::Write)),
        (yields, Outcome::Same),
    ];
    assert_eq!(turns[..3], still_open);
    let ended: Vec<_> = turns[3..]
        .iter()
        .map(|(key, turn)| (*key, test.remove(*key, *turn).reason))
        .collect();
    let reasons = [
        EndReason::PeerClosed,
        EndReason::Reset,
        EndReason::IdleTimeout,
    ];
    assert!(
        ended
            .into_iter()
            .eq([finished, reset, silent].into_iter().zip(reasons))
    );
    assert_eq!(test.stream(spoke).taken, 5);
    assert!(!test.connections.is_queued(spoke) && test.connections.is_queued(yields));
    // The next deadlines are as if there had been none before.
    assert_eq!((test.due(), test.deadlines()), (Some(SECOND * 4), 2));
    test.ready();
    assert_eq!(test.turn(owes), Outcome::Rearm(Want::Read));
    assert_eq!(test.at(4).expire().len(), 2);
}

#[test]
fn a_peer_that_took_something_before_a_stall_was_acted_on_is_not_closed() {
    let mut test = Harness::new(Limits {
        stall: Some(SECOND),
        ..limits()
    });
    let blocked = [Out::Take(4), Out::Block];
    let all = test.arrive([In::Data(9)], [Out::Take(4)]);
    let some = test.arrive([In::Data(9)], [Out::Take(4), Out::Take(1), Out::Block]);
    let nothing = test.arrive([In::Data(9)], blocked);
    let ended = test.arrive([In::Data(9)], [Out::Take(4), Out::Fail(32)]);
    for key in [all, some, nothing, ended] {
        assert_eq!(test.turn(key), Outcome::Rearm(Want::Write));
    }
    let turns = test.at(3).expire_all();
    let still_open = [(all, Outcome::Rearm(Want::Read)), (some, Outcome::Same)];
    assert_eq!(turns[..2], still_open);
    for ((key, turn), reason) in turns[2..]
        .iter()
        .zip([EndReason::StallTimeout, EndReason::Reset])
    {
        let summary = test.remove(*key, *turn);
        assert_eq!((summary.reason, summary.owed), (reason, 5));
    }
    assert_eq!(test.stream(all).taken, 9);
    assert_eq!(test.stream(some).taken, 5);
    assert_eq!((test.due(), test.deadlines()), (Some(SECOND * 4), 1));
    test.stream(some).writes = [Out::Block].into();
    assert_eq!(test.at(4).expire(), [(some, EndReason::StallTimeout)]);
}

#[test]
fn a_lifetime_behind_an_idle_time_out_that_was_moved_drains() {
    for (reads, writes) in [
        (vec![In::Data(7)], vec![]),
        (vec![In::Data(7)], vec![Out::Take(2), Out::Block]),
    ] {
        let mut test = Harness::new(Limits {
            idle: Some(SECOND),
            lifetime: Some(SECOND * 2),
            ..limits()
        });
        let key = test.arrive([], []);
        test.at(3);
        let owes = !writes.is_empty();
        test.stream(key).reads = reads.into();
        test.stream(key).writes = writes.into();
        let first = if owes {
            Outcome::Rearm(Want::Write)
        } else {
            Outcome::Same
        };
        // The first turn moves the idle time-out, the second acts on the lifetime.
        assert_eq!(test.expire_all(), [(key, first), (key, Outcome::Same)]);
        if owes {
            assert!(matches!(
                test.phase(key),
                Phase::Draining {
                    reason: EndReason::MaxLifetime,
                    ..
                }
            ));
            test.turn(key);
        }
        let stream = test.stream(key);
        assert_eq!((stream.taken, stream.finished), (7, true));
        test.now += LINGER;
        assert_eq!(test.expire(), [(key, EndReason::MaxLifetime)]);
    }
}

#[test]
fn each_call_gives_one_last_turn_at_most() {
    let mut test = Harness::new(Limits {
        idle: Some(SECOND),
        ..limits()
    });
    let keys: Vec<_> = (0..3).map(|_| test.arrive([], [])).collect();
    test.at(1);
    for key in &keys {
        test.stream(*key).reads = [In::Data(1)].into();
    }
    for key in &keys {
        assert_eq!(test.expire_next(), Some((*key, Outcome::Same)));
        let turned = keys.iter().filter(|other| *other <= key).count();
        assert_eq!(test.connections.counters().received, turned as u64);
    }
    assert_eq!(test.expire_next(), None);
}

#[test]
fn after_a_stop_the_fin_is_sent_by_a_deadline() {
    let mut test = Harness::new(limits());
    let silent = test.arrive([], []);
    let talks = test.arrive([], []);
    test.at(1);
    test.connections.drain_all(test.now);
    test.ready();
    assert_eq!(test.due(), Some(SECOND + GRACE));
    assert_eq!(test.deadlines(), 2);
    test.now += GRACE / 2;
    test.stream(talks).reads = [In::Data(3)].into();
    assert_eq!(test.turn(talks), Outcome::Same);
    assert!(test.expire().is_empty());
    test.now = test.start + SECOND + GRACE;
    assert_eq!(test.expire_all(), [(silent, Outcome::Same)]);
    assert!(test.stream(silent).finished);
    assert!(!test.stream(talks).finished);
    assert_eq!(test.due(), Some(SECOND + GRACE * 3 / 2));
    // What arrives at that time is echoed, and postpones the FIN.
    test.now += GRACE / 2;
    test.stream(talks).reads = [In::Data(4)].into();
    assert_eq!(test.expire_all(), [(talks, Outcome::Same)]);
    let stream = test.stream(talks);
    assert_eq!((stream.taken, stream.finished), (7, false));
    assert_eq!(test.due(), Some(SECOND + GRACE * 5 / 2));
    test.now += GRACE;
    assert_eq!(test.expire_all(), [(talks, Outcome::Same)]);
    assert!(test.stream(talks).finished);
    assert_eq!(test.due(), Some(SECOND + GRACE + LINGER));
    test.now += LINGER;
    let ended = [(silent, EndReason::Shutdown), (talks, EndReason::Shutdown)];
    assert_eq!(test.expire(), ended);
}

#[test]
fn an_interrupted_turn_is_followed_by_another_for_the_fin() {
    let mut test = Harness::new(limits());
    let key = test.arrive([], []);
    test.connections.drain_all(test.now);
    test.ready();
    test.now += GRACE;
    test.stream(key).reads = [In::Interrupt].into();
    let two = [(key, Outcome::Same); 2];
    assert_eq!(test.expire_all(), two);
    assert!(test.stream(key).finished);
    test.now += LINGER;
    assert_eq!(test.expire(), [(key, EndReason::Shutdown)]);
    // What is read after the interruption postpones the FIN, but not beyond `LINGER`.
    let key = test.arrive([], []);
    test.connections.drain(key, test.now);
    let asked = test.now;
    test.now += LINGER - GRACE - GRACE / 2;
    test.stream(key).reads = [In::Data(3)].into();
    test.turn(key);
    test.now += GRACE;
    test.stream(key).reads = [In::Interrupt, In::Data(4)].into();
    assert_eq!(test.expire_all(), two);
    assert_eq!(test.stream(key).taken, 7);
    assert_eq!(test.connections.next_due(), Some(asked + LINGER));
}

#[test]
fn an_interrupted_turn_does_not_make_a_connection_idle_or_stalled() {
    let mut test = Harness::new(Limits {
        idle: Some(SECOND),
        stall: Some(SECOND),
        ..limits()
    });
    let speaks = test.arrive([], []);
    let takes = test.arrive([In::Data(9)], [Out::Take(4)]);
    test.turn(takes);
    test.at(1).stream(speaks).reads = [In::Interrupt, In::Data(5)].into();
    test.stream(takes).writes = [Out::Interrupt, Out::Take(1), Out::Block].into();
    assert_eq!(test.expire(), []);
    assert_eq!(
        (test.stream(speaks).taken, test.stream(takes).taken),
        (5, 5)
    );
    test.stream(takes).writes = [Out::Block].into();
    assert_eq!(test.at(2).expire().len(), 2);
}

#[test]
fn bytes_behind_an_urgent_mark_keep_a_connection_from_being_idle() {
    let mut test = Harness::new(Limits {
        idle: Some(LINGER),
        ..limits()
    });
    let hidden = [In::Hide, In::Data(2)];
    // Without a hint the turn believes `WouldBlock`, and the stream says that there is more.
    let echoing = test.arrive([], []);
    let draining = test.arrive([], []);
    test.connections.drain(draining, test.now);
    test.connections.queue(draining, Hint::ReadOn);
    test.now += LINGER;
    for key in [echoing, draining] {
        test.stream(key).reads = hidden.into();
        test.stream(key).unread = Some(2);
    }
    assert_eq!(test.expire(), []);
    for key in [echoing, draining] {
        assert_eq!(test.stream(key).taken, 2);
    }
    assert!(test.stream(draining).finished);
}

#[test]
fn lingering_ends_by_a_deadline_for_the_reason_of_draining() {
    for (reason, bytes, lifetime) in [
        (EndReason::Shutdown, None, None),
        (EndReason::MaxBytes, Some(1), None),
        (EndReason::MaxLifetime, None, Some(SECOND * 2)),
    ] {
        let mut test = Harness::new(Limits {
            bytes,
            lifetime,
            ..limits()
        });
        let key = test.arrive([In::Data(3)], []);
        test.turn(key);
        match reason {
            EndReason::Shutdown => {
                test.connections.drain(key, test.now);
                test.ready();
                test.now += GRACE;
                assert!(test.expire().is_empty());
            }
            EndReason::MaxLifetime => assert!(test.at(2).expire().is_empty()),
            _ => {}
        }
        assert_eq!(test.connections.ready(), 0);
        let Phase::Lingering { since, reason, .. } = test.phase(key) else {
            panic!("{reason:?}: {:?}", test.phase(key));
        };
        assert_eq!((since, reason), (test.now, reason));
        assert_eq!(test.connections.next_due(), Some(since + LINGER));
        test.now = since + LINGER;
        assert_eq!(test.expire(), [(key, reason)]);
        assert_eq!((test.deadlines(), test.connections.ready()), (0, 0));
    }
}

#[test]
fn lingering_goes_on_while_something_is_unacknowledged() {
    let mut test = Harness::new(Limits {
        stop_timeout: SECOND,
        ..limits()
    });
    let keys: Vec<_> = (0..3).map(|_| test.arrive([], [])).collect();
    test.connections.drain_all(test.now);
    test.now += GRACE;
    test.ready();
    let [ends, settles, never] = keys[..] else {
        unreachable!()
    };
    for key in &keys {
        test.stream(*key).unacknowledged = 1;
    }
    test.now += LINGER;
    let all: Vec<_> = keys.iter().map(|key| (*key, Outcome::Same)).collect();
    assert_eq!(test.expire_all(), all);
    assert_eq!(test.due(), Some(GRACE + LINGER * 2));
    // One peer has ended without an event yet, another has acknowledged everything.
    test.stream(ends).reads = [In::Data(3), In::End].into();
    test.stream(settles).unacknowledged = 0;
    test.now += LINGER;
    let ended = [(ends, EndReason::Shutdown), (settles, EndReason::Shutdown)];
    assert_eq!(test.expire(), ended);
    // Lingering ends with the stop time-out.
    assert_eq!(test.due(), Some(SECOND));
    assert_eq!(test.at(1).expire(), [(never, EndReason::StopTimeout)]);
}

#[test]
fn draining_ends_with_the_stop_time_out() {
    let mut test = Harness::new(limits());
    let blocked = [Out::Take(4), Out::Block, Out::Block];
    let key = test.arrive([In::Data(9)], blocked);
    let other = test.arrive([In::Data(9)], [Out::Take(4), Out::Block]);
    test.turn(key);
    test.turn(other);
    test.connections.drain_all(test.now);
    assert_eq!(test.ready(), [(key, Outcome::Same), (other, Outcome::Same)]);
    assert!(test.at(9).expire_all().is_empty());
    // What can be written in the last turn is written.
    let turns = test.at(10).expire_all();
    assert_eq!(turns[1..], [(other, Outcome::Rearm(Want::Read))]);
    let stream = test.stream(other);
    assert_eq!((stream.taken, stream.finished), (9, true));
    let summary = test.remove(key, turns[0].1);
    assert_eq!((summary.reason, summary.owed), (EndReason::StopTimeout, 5));
}

#[test]
fn new_limits_apply_to_open_connections() {
    let mut test = Harness::new(limits());
    let key = test.arrive([], []);
    let idle = |seconds: u32| Limits {
        idle: (seconds > 0).then_some(SECOND * seconds),
        ..limits()
    };
    for (seconds, due) in [(9, 1), (4, 1), (7, 1), (0, 0), (5, 1)] {
        test.connections.set_limits(idle(seconds));
        test.connections.check();
        assert_eq!(test.deadlines(), due, "{seconds}");
        assert_eq!(test.due(), (due > 0).then_some(SECOND * seconds));
    }
    // A deadline in the past is due at once.
    test.at(3);
    test.connections.set_limits(idle(2));
    assert_eq!(test.expire(), [(key, EndReason::IdleTimeout)]);
    // A connection that has ended has no deadline.
    let key = test.arrive([In::End], []);
    let turn = test.turn(key);
    test.connections.set_limits(idle(1));
    assert_eq!(test.deadlines(), 0);
    test.remove(key, turn);
}

#[test]
fn all_connections_are_drained() {
    let mut test = Harness::new(limits());
    let quiet = test.arrive([], []);
    let owes = test.arrive([In::Data(9)], [Out::Take(1), Out::Block]);
    let busy = test.arrive([In::Interrupt, In::Data(9)], []);
    test.turn(owes);
    test.turn(busy);
    test.connections.drain_all(test.now);
    test.connections.drain_all(test.now);
    assert_eq!(test.connections.ready(), 3, "each stands in the list once");
    test.ready();
    for key in [quiet, owes, busy] {
        assert!(!test.stream(key).finished, "more input may be on its way");
    }
    test.now += GRACE;
    let turns = test.expire_all();
    assert_eq!(turns, [(quiet, Outcome::Same), (busy, Outcome::Same)]);
    for (key, finished) in [(quiet, true), (owes, false), (busy, true)] {
        assert_eq!(test.stream(key).finished, finished);
    }
    assert_eq!(test.turn(owes), Outcome::Rearm(Want::Read));
    assert_eq!(
        test.due(),
        Some(GRACE * 2),
        "the peer has just taken something"
    );
    test.now += GRACE;
    assert_eq!(test.expire_all(), [(owes, Outcome::Same)]);
    assert!(test.stream(owes).finished);
    test.now += LINGER;
    let ended = test.expire();
    assert_eq!(ended.len(), 3);
    assert!(
        ended
            .iter()
            .all(|(_, reason)| *reason == EndReason::Shutdown)
    );
    assert!(test.connections.is_empty());
}

#[test]
fn all_connections_are_abandoned_at_once() {
    let mut test = Harness::new(Limits {
        idle: Some(SECOND),
        ..limits()
    });
    let owes = test.arrive([In::Data(9)], [Out::Take(4), Out::Block]);
    let busy = test.arrive([In::Interrupt], []);
    let lingers = test.arrive([], []);
    let drains = test.arrive([], []);
    test.turn(owes);
    test.turn(busy);
    test.connections.drain(lingers, test.now);
    test.now += GRACE;
    test.turn(lingers);
    test.connections.drain(drains, test.now);
    test.turn(drains);
    let ended = test.connections.abandon(|_| true, test.now);
    test.connections.check();
    assert_eq!((test.connections.ready(), test.deadlines()), (0, 0));
    let ended: Vec<_> = ended
        .into_iter()
        .map(|(key, turn)| (key, test.remove(key, turn)))
        .map(|(key, summary)| (key, summary.reason, summary.owed))
        .collect();
    assert_eq!(
        ended,
        [
            (owes, EndReason::StopTimeout, 5),
            (busy, EndReason::StopTimeout, 0),
            (lingers, EndReason::Shutdown, 0),
            (drains, EndReason::StopTimeout, 0)
        ]
    );
    assert!(test.connections.is_empty());
}

#[test]
fn the_counters_add_up() {
    let mut test = Harness::new(Limits {
        idle: Some(SECOND),
        ..limits()
    });
    let done = test.arrive([In::Data(100), In::End], []);
    let reset = test.arrive([In::Data(10), In::Fail(104)], [Out::Take(4)]);
    let idle = test.arrive([In::Data(1)], []);
    for key in [done, reset, idle] {
        test.turn(key);
    }
    let counters = test.connections.counters();
    assert_eq!((counters.received, counters.sent), (111, 105));
    assert_eq!((counters.accepted, counters.open()), (3, 3));
    for key in [done, reset] {
        let turn = test.turn(key);
        assert!(matches!(turn, Outcome::Over(_)));
        test.remove(key, turn);
    }
    assert_eq!(test.at(1).expire(), [(idle, EndReason::IdleTimeout)]);
    let counters = test.connections.counters();
    assert_eq!((counters.received, counters.sent), (111, 111));
    assert_eq!((counters.open(), counters.closed()), (0, 3));
    for (reason, count) in counters.by_reason() {
        let expected = u64::from(["peer-closed", "reset", "idle-timeout"].contains(&reason));
        assert_eq!(count, expected, "{reason}");
    }
}

// Restored connections.

fn start(now: MonoTime) -> Start {
    Start {
        owner: 7,
        header_due: None,
        received: 30,
        sent: 30,
        pending: None,
        began: now,
        moved: now,
        finished: false,
        input: true,
    }
}

#[test]
fn a_restored_connection_for_which_there_is_nothing_to_do_is_not_ready() {
    let mut test = Harness::new(limits());
    for (input, finished, ready) in [(false, false, 0), (true, false, 1), (false, true, 2)] {
        let start = Start {
            input,
            finished,
            ..start(test.now)
        };
        test.connections
            .restore(Script::resumed([], 30), start, test.now);
        assert_eq!(
            (test.connections.ready(), test.connections.untried()),
            (ready, ready)
        );
    }
}

#[test]
fn a_restored_connection_is_ready_and_untried_until_its_first_turn_or_its_end() {
    let mut test = Harness::new(limits());
    let keys: Vec<_> = (0..3)
        .map(|_| {
            let script = Script::resumed([], 30);
            let (key, want) = test.connections.restore(script, start(test.now), test.now);
            assert_eq!(want, Want::Read);
            key
        })
        .collect();
    test.connections.check();
    assert_eq!(
        (test.connections.ready(), test.connections.untried()),
        (3, 3)
    );
    test.turn(keys[0]);
    assert_eq!(test.connections.untried(), 2);
    let outcome = test
        .connections
        .end(keys[1], EndReason::Error(12), test.now);
    assert_eq!(test.connections.untried(), 1);
    test.remove(keys[1], outcome);
    test.ready();
    test.turn(keys[2]);
    assert_eq!(test.connections.untried(), 0);
    // Their bytes are counted, as connections they are counted already.
    let counters = test.connections.counters();
    assert_eq!((counters.accepted, counters.received), (0, 90));
}

// Rounds.

/// A loop that records what happens in its rounds.
struct Loop {
    test: Harness,
    guarded: Vec<usize>,
    outcomes: Vec<(usize, Outcome)>,
}

impl EventLoop for Loop {
    type Stream = Script;
    type Store = HeapStore;

    fn connections(&mut self) -> &mut Connections<Script, HeapStore> {
        &mut self.test.connections
    }

    fn guard(&mut self, key: usize, turn: impl FnOnce(&mut Self)) {
        self.guarded.push(key);
        turn(self);
        assert_eq!(self.guarded.len(), self.outcomes.len());
    }

    fn on_turn(&mut self, key: usize, outcome: Outcome) {
        self.outcomes.push((key, outcome));
    }
}

impl Loop {
    fn new(limits: Limits) -> Self {
        Self {
            test: Harness::new(limits),
            guarded: Vec::new(),
            outcomes: Vec::new(),
        }
    }

    /// The keys of the turns of one round, and what is left of its allowance.
    fn round(&mut self, bytes: u64, deadlines: usize) -> (Vec<usize>, Allowance) {
        let (allowance, now) = (Allowance { bytes, deadlines }, self.test.now);
        let left = run_round(self, allowance, now);
        self.test.connections.check();
        self.outcomes.clear();
        (std::mem::take(&mut self.guarded), left)
    }
}

#[test]
fn a_round_acts_on_deadlines_first_and_gives_each_ready_connection_one_turn() {
    let mut events = Loop::new(Limits {
        lifetime: Some(SECOND),
        ..limits()
    });
    let old = events.test.arrive([], []);
    events.test.at(1);
    let flood = events.test.arrive([In::Data(1 << 20)], []);
    let quiet = events.test.arrive([], []);
    for key in [flood, quiet] {
        events.test.connections.queue(key, Hint::Plain);
    }
    let (turns, left) = events.round(ROUND_BYTES, ROUND_DEADLINES);
    assert_eq!(turns, [old, flood, quiet]);
    assert!(events.test.connections.is_queued(flood));
    let moved = 2 * crate::echo::TURN_BYTES as u64;
    assert_eq!(left.bytes, ROUND_BYTES - moved - 2 * TURN_MIN_BYTES);
    assert_eq!(left.deadlines, ROUND_DEADLINES - 1);
}

#[test]
fn a_round_ends_with_its_allowance_and_the_next_one_continues() {
    let mut events = Loop::new(Limits {
        idle: Some(SECOND),
        ..limits()
    });
    let keys: Vec<_> = (0..5).map(|_| events.test.arrive([], [])).collect();
    for key in &keys[3..] {
        events.test.now += SECOND / 2;
        events.test.stream(*key).reads = [In::Data(1)].into();
        events.test.turn(*key);
        events.test.connections.queue(*key, Hint::Plain);
    }
    // Three are due, and two are ready.
    let (turns, left) = events.round(1, 2);
    assert_eq!(turns, keys[..1]);
    assert_eq!(
        left,
        Allowance {
            bytes: 0,
            deadlines: 1
        }
    );
    let (turns, left) = events.round(END_MIN_BYTES + 2 * TURN_MIN_BYTES, 1);
    assert_eq!(turns, [keys[1], keys[3], keys[4]]);
    assert_eq!(
        left,
        Allowance {
            bytes: 0,
            deadlines: 0
        }
    );
    assert_eq!(events.test.connections.ready(), 0);
    let (turns, left) = events.round(TURN_MIN_BYTES * 3, 2);
    assert_eq!(turns, keys[2..3]);
    assert_eq!(left.deadlines, 1);
}
