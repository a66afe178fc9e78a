//! All connections to one target: the schedule, what is under way, and what was found.  Pure: it
//! is given times, bytes and the kernel's counters, and says what to do.
//!
//! The schedule is an open loop: a message is due at its time whether the one before is back or
//! not, so that an echo that hangs does not hide those that would have hung behind it.  What is
//! under way is bounded, and what was not sent for it is counted.  In a closed loop
//! ([`Pace::Closed`]) a message is due as soon as there is room.
//!
//! The first connection tries the addresses one after the other; the others follow where it got
//! through.  A session without a first echo is over with its last connection; afterwards a
//! connection that is lost is made anew, and how long contact was lost is a finding.

mod contact;

use std::io;
use std::time::Duration;

use super::finding::{Action, Finding};
use super::kernel::{Cause, Counters};
use super::schedule::Schedule;
use super::slot::{Next, Slot, State};
use super::tally::Tally;
use super::{Pace, Plan};
use crate::client::outcome::Class;
use crate::client::pattern::{CONNECTIONS, Stream};
use crate::client::statistics::nanos;
use crate::client::target::Place;
use crate::sys::tcp_info::{TcpInfo, field};

/// An echo that is not back after so long is a pause, which is reported.
const PAUSE: Duration = Duration::from_secs(1);

/// The least time for the last echoes, after a stop.
const LAST_ECHOES: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first connection looks for an address.
    Looking,
    Talking,
    /// Nothing more is sent, since this time; until another one echoes are waited for.
    Draining {
        since: Duration,
        until: Duration,
    },
    /// No further echo is waited for; the driver takes a last look at the connections.
    Drained,
    Over,
}

/// All connections to one target.
#[derive(Debug)]
pub struct Session {
    plan: Plan,
    places: Vec<Place>,
    /// The place that is tried or was taken.
    place: usize,
    seed: u64,
    /// Streams so far: each connection has one of its own.
    streams: u32,
    slots: Vec<Slot>,
    /// Connections whose first attempt is not decided.
    undecided: usize,
    phase: Phase,
    schedule: Schedule,
    /// Messages under way on all connections.
    in_flight: u64,
    /// When all connections are to be looked at.
    scan: Duration,
    /// When to stop, whatever is left.
    deadline: Option<Duration>,
    tally: Tally,
    findings: Vec<Finding>,
}

impl Session {
    /// A session that has not begun, to the first of these places that answers.
    ///
    /// # Panics
    /// There is no place.
    #[must_use]
    pub fn new(plan: Plan, places: Vec<Place>, seed: u64, now: Duration) -> Self {
        assert!(!places.is_empty(), "a session needs a place");
        let mut session = Self {
            places,
            place: 0,
            seed,
            streams: 0,
            slots: Vec::new(),
            undecided: plan.connections,
            phase: Phase::Looking,
            schedule: Schedule::new(&plan),
            in_flight: 0,
            scan: now,
            deadline: plan.deadline.map(|span| now + span),
            tally: Tally::new(now, plan.pace, plan.timeout),
            findings: Vec::new(),
            plan,
        };
        for _ in 0..session.plan.connections {
            let stream = session.stream();
            session.slots.push(Slot::new(stream, session.plan.size));
        }
        session.slots[0].state = State::Waiting(now);
        session
    }

    /// The stream of a further connection.
    fn stream(&mut self) -> Stream {
        self.streams += 1;
        Stream::new(self.seed, (self.streams - 1) % CONNECTIONS)
    }

    /// What it was asked to do.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What was counted and measured.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The place that it talks to, or tried last.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.places[self.place]
    }

    /// Whether nothing more happens.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Whether it sends nothing more.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        matches!(
            self.phase,
            Phase::Draining { .. } | Phase::Drained | Phase::Over
        )
    }

    /// Messages whose echoes are not back.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Whether this connection stands.
    #[must_use]
    pub fn is_open(&self, number: usize) -> bool {
        self.slots[number].state == State::Open
    }

    /// Whether something was found since the last time.
    #[must_use]
    pub fn has_findings(&self) -> bool {
        !self.findings.is_empty()
    }

    /// Takes what was found since the last time.
    pub fn findings(&mut self) -> std::vec::Drain<'_, Finding> {
        self.findings.drain(..)
    }

    /// The kernel's counters of all connections, those that have ended included.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = self.tally.counters;
        for info in self.slots.iter().filter_map(|slot| slot.info.as_ref()) {
            sum.add(Counters::of(info));
        }
        sum
    }

    /// The connection that fared worst: its number, its longest round trip, its missing echoes.
    #[must_use]
    pub fn worst(&self) -> Option<(usize, Duration, u64)> {
        let key = |(_, longest, missing): &(usize, Duration, u64)| (*missing, *longest);
        let figures = |(number, slot): (usize, &Slot)| {
            let longest = Duration::from_nanos(slot.longest);
            (number, longest, slot.missing)
        };
        self.slots.iter().enumerate().map(figures).max_by_key(key)
    }

    /// When to call [`Session::on_time`] or [`Session::begin`] next.
    #[must_use]
    pub fn wake(&self) -> Option<Duration> {
        match self.phase {
            Phase::Drained | Phase::Over => None,
            Phase::Draining { .. } => Some(self.scan),
            Phase::Looking | Phase::Talking => {
                let times = [Some(self.scan), self.schedule.due(), self.deadline];
                times.into_iter().flatten().min()
            }
        }
    }

    /// Begins the next message that is due; returns the connection that has to write it.
    pub fn begin(&mut self, now: Duration) -> Option<usize> {
        loop {
            let due = self.schedule.due().filter(|due| *due <= now)?;
            let Pace::Every(interval) = self.plan.pace else {
                return None;
            };
            if self.phase != Phase::Talking {
                return None;
            }
            // After a time in which this process did not run, the schedule is not made up for.
            let is_past = now - due > interval.max(PAUSE);
            let message = self.take(now);
            #[expect(clippy::cast_possible_truncation, reason = "less than a usize")]
            let number = (message % self.slots.len() as u64) as usize;
            let slot = &mut self.slots[number];
            if !slot.may_send() {
                self.tally.unconnected += 1;
            } else if is_past || slot.conversation.in_flight() >= self.plan.depth {
                self.tally.skipped += 1;
            } else {
                slot.conversation.begin(message, due, now);
                self.in_flight += 1;
                self.tally.begun(now, now - due);
                return Some(number);
            }
        }
    }

    /// The number of the next message; behind the last one only echoes are waited for.
    fn take(&mut self, now: Duration) -> u64 {
        let message = self.schedule.take();
        if self.schedule.is_complete() {
            self.drain(now, self.plan.timeout);
        }
        message
    }

    /// The next bytes to write on a connection: in a closed loop those of a further message, if there
    /// is room for one.  Empty when nothing is to be written.
    pub fn piece<'a>(&mut self, number: usize, now: Duration, buffer: &'a mut [u8]) -> &'a [u8] {
        let slot = &self.slots[number];
        if !slot.may_send() {
            return &[];
        }
        if !slot.conversation.is_written() {
            return slot.conversation.piece(buffer);
        }
        if self.plan.pace != Pace::Closed
            || self.phase != Phase::Talking
            || slot.conversation.in_flight() >= self.plan.depth
            || !self.has_begun()
        {
            return &[];
        }
        let message = self.take(now);
        self.in_flight += 1;
        self.tally.begun(now, Duration::ZERO);
        let conversation = &mut self.slots[number].conversation;
        conversation.begin(message, now, now);
        conversation.piece(buffer)
    }

    /// The kernel took so many bytes; returns whether there may be a further piece.
    pub fn wrote(&mut self, number: usize, bytes: usize) -> bool {
        self.tally.bytes_sent += bytes as u64;
        let conversation = &mut self.slots[number].conversation;
        conversation.wrote(bytes);
        !conversation.is_written() || conversation.in_flight() < self.plan.depth
    }

    /// The kernel sent the byte at this offset, modulo 2^32, at this time of the wall clock.
    pub fn stamped(&mut self, number: usize, offset: u32, time: Duration) {
        self.slots[number].conversation.stamped(offset, time);
    }

    /// Whether messages may be sent: every connection has had its first attempt.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.schedule.has_begun()
    }

    /// Takes what came on a connection; `stamp` is when it arrived, by the wall clock.
    pub fn received(
        &mut self,
        number: usize,
        now: Duration,
        bytes: &[u8],
        stamp: Option<Duration>,
    ) {
        self.tally.bytes_received += bytes.len() as u64;
        let slot = &mut self.slots[number];
        if slot.state != State::Open {
            return;
        }
        if !slot.feed(bytes, now) {
            self.scan = now;
            return;
        }
        let nanos = nanos(now);
        while let Some(mut echo) = slot.conversation.echo(nanos, stamp) {
            // What waited in the own queue for something that was sent again, or was sent again itself,
            // has times of the kernel that say nothing about this host.
            if echo.wire.is_some()
                && slot
                    .disturbed
                    .is_some_and(|at| now.saturating_sub(echo.rtt()) <= at)
            {
                echo.wire = None;
            }
            self.in_flight -= 1;
            self.tally.echo(nanos, &echo);
            slot.longest = slot.longest.max(echo.rtt);
            if let Some(lost) = slot.lost.take() {
                let lost = now - lost;
                self.tally.lost.record(lost);
                self.findings.push(Finding::Again { number, lost });
            }
            if std::mem::take(&mut slot.paused) {
                let after = echo.rtt();
                self.findings.push(Finding::Back { number, after });
            }
            if self.plan.reports {
                self.findings.push(Finding::Echo {
                    number,
                    echo,
                    sent_again: std::mem::take(&mut slot.again),
                });
            }
        }
        if let Phase::Draining { since, until } = self.phase {
            // One that took longer than all before shows how long the others may take.
            self.phase = Phase::Draining {
                since,
                until: (since + self.slowest()).max(until),
            };
            if self.in_flight == 0 {
                self.scan = now;
            }
        }
    }

    /// The kernel's counters of a connection; `None` if it has none.
    pub fn looked(&mut self, number: usize, now: Duration, info: Option<TcpInfo>) {
        let slot = &mut self.slots[number];
        if slot.state != State::Open {
            return;
        }
        if let Some(info) = info {
            let again = info.get(field::TOTAL_RETRANS).unwrap_or(0);
            let again = again.saturating_sub(slot.sent_again);
            if again > 0 {
                slot.sent_again += again;
                slot.again += again;
                slot.disturbed = Some(now);
            }
            slot.info = Some(info);
        }
        let Some((message, begun)) = slot.conversation.oldest() else {
            return;
        };
        let since = now.saturating_sub(begun);
        if !slot.paused && since >= self.tally.pause(PAUSE) {
            slot.paused = true;
            self.tally.pauses += 1;
            let cause = Cause::of(slot.info.as_ref());
            self.findings.push(Finding::Pause {
                number,
                message,
                since,
                cause,
            });
        }
    }

    /// Sends nothing more, and waits for the last echoes: for as long as the slowest took twice, of
    /// those that come meanwhile as well, and at least a second, but no longer than the time-out.
    pub fn stop(&mut self, now: Duration) {
        match self.phase {
            Phase::Talking => self.drain(now, self.slowest()),
            Phase::Looking => {
                self.tally
                    .fault(Class::TimedOut, "stopped before there was an answer");
                self.finish(now);
            }
            Phase::Draining { .. } | Phase::Drained | Phase::Over => {}
        }
    }

    /// How long echoes are waited for after a stop.
    fn slowest(&self) -> Duration {
        let longest = self.tally.rtt.max().unwrap_or_default() * 2;
        longest.max(LAST_ECHOES).min(self.plan.timeout)
    }

    fn drain(&mut self, now: Duration, within: Duration) {
        self.phase = Phase::Draining {
            since: now,
            until: now + within,
        };
        self.scan = now;
    }

    /// Ends it; what is under way is missing.
    pub fn finish(&mut self, now: Duration) {
        if self.phase == Phase::Over {
            return;
        }
        self.phase = Phase::Over;
        for number in 0..self.slots.len() {
            let slot = &mut self.slots[number];
            if slot.state == State::Open {
                if slot.wrong.is_some() {
                    self.conclude_wrong(number, now);
                } else if slot.conversation.in_flight() > 0 {
                    let class = match slot.conversation.has_talked() {
                        true => Class::Stalled,
                        false => Class::Silent,
                    };
                    let cause = Cause::of(slot.info.as_ref());
                    self.tally.fault(class, &cause.to_string());
                }
                if self.slots[number].state == State::Open {
                    self.leave(number, now, State::Over);
                }
            }
            self.slots[number].state = State::Over;
            if let Some(lost) = self.slots[number].lost.take() {
                self.tally.lost_at_the_end(now - lost);
            }
        }
        self.tally.end = Some(now);
    }

    /// Does what is to be done by the clock.
    pub fn on_time(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.stop(now);
        }
        if matches!(self.phase, Phase::Drained | Phase::Over) || now < self.scan {
            return;
        }
        if let Phase::Draining { until, .. } = self.phase {
            let is_searching = self.slots.iter().any(|slot| slot.wrong.is_some());
            if (self.in_flight == 0 && !is_searching) || now >= until {
                // What the kernel knows at the end.
                for number in 0..self.slots.len() {
                    if self.slots[number].state == State::Open {
                        actions.push(Action::Look(number));
                        actions.push(Action::Close(number));
                    }
                }
                self.phase = Phase::Drained;
                return;
            }
        }
        let mut next = now + PAUSE;
        if let Phase::Draining { until, .. } = self.phase {
            next = next.min(until);
        }
        for number in 0..self.slots.len() {
            if let Some(at) = self.watch(number, now, actions) {
                next = next.min(at);
            }
        }
        self.scan = next;
    }

    /// Whether it is over but for [`Session::finish`], which comes after the last look.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.phase == Phase::Drained
    }

    /// Looks after one connection; returns when to look again.
    fn watch(
        &mut self,
        number: usize,
        now: Duration,
        actions: &mut Vec<Action>,
    ) -> Option<Duration> {
        let timeout = self.plan.timeout;
        let slot = &mut self.slots[number];
        match slot.next(now, timeout, self.tally.pause(PAUSE)) {
            Next::Wait(until) => until,
            Next::Connect if matches!(self.phase, Phase::Draining { .. }) => None,
            Next::Connect => {
                if matches!(slot.state, State::Waiting(_)) {
                    slot.since = now;
                }
                slot.state = State::Connecting;
                actions.push(Action::Connect(number, self.places[self.place].clone()));
                Some(slot.since + timeout)
            }
            Next::TimeOut => {
                actions.push(Action::Close(number));
                let late = io::Error::from_raw_os_error(libc::ETIMEDOUT);
                self.failed(number, now, &late);
                Some(now)
            }
            Next::Look => {
                actions.push(Action::Look(number));
                None
            }
            Next::Conclude => {
                actions.push(Action::Close(number));
                self.conclude_wrong(number, now);
                self.give_up_without_contact(now);
                Some(now)
            }
        }
    }
}
