//! How the connections of a session come and go.

use std::io;
use std::time::Duration;

use super::{Phase, Session};
use crate::client::outcome::{Class, words};
use crate::client::ping::Pace;
use crate::client::ping::conversation::Conversation;
use crate::client::ping::finding::Finding;
use crate::client::ping::kernel::Counters;
use crate::client::ping::slot::{Slot, State};
use crate::client::target::Place;
use crate::sys::tcp_info::{TcpInfo, field};

/// The bounds of the wait before a connection is made anew.
const RECONNECT: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// Between two attempts to connect to a Unix socket whose queue is full, which connect(2) does not
/// wait for.
const QUEUE_FULL: Duration = Duration::from_millis(10);

impl Session {
    /// A connection stands.
    pub fn connected(&mut self, number: usize, now: Duration, info: Option<TcpInfo>) {
        let slot = &mut self.slots[number];
        if slot.state != State::Connecting {
            return;
        }
        let after = now.saturating_sub(slot.since);
        slot.state = State::Open;
        slot.failed = None;
        let syn_again = info.and_then(|info| info.get(field::TOTAL_RETRANS));
        slot.sent_again = syn_again.unwrap_or(0);
        slot.again = 0;
        slot.info = info;
        if slot.lost.is_none() {
            self.decided(now);
        } else {
            self.tally.reconnects += 1;
        }
        self.tally.connects.record(after);
        self.tally.connect.get_or_insert(after);
        if self.plan.reports {
            self.findings.push(Finding::Connected {
                number,
                place: self.places[self.place].clone(),
                after,
                syn_again: syn_again.filter(|again| *again > 0),
            });
        }
        if self.phase == Phase::Looking {
            self.phase = Phase::Talking;
            for slot in &mut self.slots[1..] {
                slot.state = State::Waiting(now);
            }
        }
        self.scan = now;
    }

    /// One more connection has had its first attempt; with the last of them the schedule begins.
    fn decided(&mut self, now: Duration) {
        self.undecided = self.undecided.saturating_sub(1);
        if self.undecided == 0 {
            self.schedule.begin(now);
            self.tally.origin.get_or_insert(now);
        }
    }

    /// A connection ended, or could not be made: with an error, or with the end of the stream.
    pub fn ended(&mut self, number: usize, now: Duration, error: Option<&io::Error>) {
        match self.slots[number].state {
            State::Connecting => {
                let unknown = io::Error::from_raw_os_error(libc::ECONNRESET);
                self.failed(number, now, error.unwrap_or(&unknown));
            }
            State::Open => self.lost(number, now, error),
            State::Waiting(_) | State::Queuing(_) | State::Over => {}
        }
        self.scan = now;
    }

    /// Could not be connected.
    pub(super) fn failed(&mut self, number: usize, now: Duration, error: &io::Error) {
        let place = self.places[self.place].clone();
        let class = Class::of_error(error);
        let pause = self.pause();
        let slot = &mut self.slots[number];
        // A Unix socket whose queue is full: connect(2) does not wait.
        if error.raw_os_error() == Some(libc::EAGAIN) && matches!(place, Place::Unix(_)) {
            if now - slot.since < self.plan.timeout {
                slot.state = State::Queuing(now + QUEUE_FULL);
                return;
            }
            let late = io::Error::from_raw_os_error(libc::ETIMEDOUT);
            return self.failed(number, now, &late);
        }
        if slot.failed.replace(class) != Some(class) || self.phase == Phase::Looking {
            self.findings.push(Finding::Failed {
                number,
                place,
                class,
                error: words(error),
            });
        }
        slot.state = State::Waiting(now + pause);
        if self.phase == Phase::Looking {
            if self.place + 1 < self.places.len() {
                self.place += 1;
                self.slots[number].state = State::Waiting(now);
                return;
            }
            self.tally.fault(class, &words(error));
            self.finish(now);
            return;
        }
        let is_first = slot.lost.is_none();
        slot.lost.get_or_insert(now);
        self.tally.fault(class, &words(error));
        if is_first {
            self.decided(now);
        }
        self.give_up_without_contact(now);
    }

    /// A connection that stood is lost.
    fn lost(&mut self, number: usize, now: Duration, error: Option<&io::Error>) {
        let is_draining = self.is_draining();
        let slot = &mut self.slots[number];
        let under_way = slot.conversation.in_flight() as u64;
        let is_expected = is_draining && under_way == 0;
        let class = match error.map(Class::of_error) {
            None => Class::Closed,
            // The kernel has given up sending again.
            Some(Class::TimedOut) => Class::Stalled,
            Some(class) => class,
        };
        if slot.wrong.is_some() {
            self.conclude_wrong(number, now);
        } else if is_expected {
            self.leave(number, now, State::Over);
        } else {
            let error = error.map_or_else(String::new, words);
            self.tally.fault(class, &error);
            self.findings.push(Finding::Ended {
                number,
                class,
                error,
                missing: under_way,
            });
            self.leave(number, now, State::Waiting(now + self.pause()));
        }
        self.give_up_without_contact(now);
    }

    /// Says what is wrong on a connection, and leaves it.
    pub(super) fn conclude_wrong(&mut self, number: usize, now: Duration) {
        let slot = &mut self.slots[number];
        let shown = slot.wrong.take().map_or_else(Vec::new, |wrong| wrong.shown);
        let (what, count) = slot.conversation.finish();
        let what: Vec<String> = what.iter().map(ToString::to_string).collect();
        self.tally.wrong += count.max(1);
        self.tally.wrong_at(&what);
        self.tally.fault(Class::Wrong, "");
        self.findings.push(Finding::Wrong {
            number,
            what,
            shown,
        });
        self.leave(number, now, State::Waiting(now + self.pause()));
    }

    /// The connection of a slot is gone; what was under way on it is missing.
    pub(super) fn leave(&mut self, number: usize, now: Duration, state: State) {
        let fresh = Conversation::new(self.stream(), self.plan.size);
        let slot = &mut self.slots[number];
        let old = std::mem::replace(&mut slot.conversation, fresh);
        let missing = old.in_flight() as u64;
        self.in_flight -= missing;
        slot.missing += missing;
        self.tally.missing(now, missing);
        slot.state = state;
        slot.paused = false;
        // At the end no other one is made.
        if self.phase == Phase::Talking {
            slot.lost.get_or_insert(now);
        }
        if let Some(info) = slot.info.take() {
            self.tally.counters.add(Counters::of(&info));
        }
    }

    /// A session that has never had an echo and has no connection is over.
    pub(super) fn give_up_without_contact(&mut self, now: Duration) {
        if self.tally.received == 0 && !self.slots.iter().any(Slot::is_hopeful) {
            self.finish(now);
        }
    }

    fn pause(&self) -> Duration {
        let [least, most] = RECONNECT;
        match self.plan.pace {
            Pace::Every(interval) => interval.clamp(least, most),
            Pace::Closed => least,
        }
    }
}
