//! Everything that is done by the clock and not by traffic, and when.
//!
//! Most rounds are traffic and nothing else, and housekeeping would cost as much as they do.  So it is
//! done when something has stirred (a caller, an end, a signal, an answer), or when its time has
//! come, which is worked out at its end.

use std::time::{Duration, Instant};

use super::Server;
use super::lifecycle::Life;
use super::listener::{Listener, State};
use crate::survival::standing::Standing;
use crate::system::events::Event;

impl Server {
    /// How long the poll may wait: until the first thing that is due, or for ever.
    pub(super) fn sleep(&mut self) -> Option<Duration> {
        if self.stirred || self.shard.ready() > 0 {
            return Some(Duration::ZERO);
        }
        let due = match (self.wake, self.shard.next_due()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        match (self.alarm.wait(due, self.now), self.config.poll_timeout) {
            (Some(wait), Some(most)) => Some(wait.min(most)),
            (wait, most) => wait.or(most),
        }
    }

    /// When housekeeping and callers have to be looked after, if nothing happens before.
    fn next_wake(&self) -> Option<Instant> {
        let listeners = self
            .listeners
            .iter()
            .filter_map(|listener| match listener.state {
                State::Short(until) => Some(until),
                _ => None,
            });
        [
            self.life.next_due(),
            self.manager.next_due(),
            self.fold.next_due(),
            (self.life == Life::Serving)
                .then(|| self.keeper.next_due())
                .flatten(),
            self.shard.store().next_due(),
        ]
        .into_iter()
        .flatten()
        .chain(listeners)
        .min()
    }

    /// Everything that is done by the clock and not by an event.
    pub(super) fn housekeep(&mut self) {
        if let Some(event) = self.fold.flush(self.now, false) {
            self.log.tell(event);
        }
        self.keep();
        let idle = match self.life {
            Life::HandingOver { .. } => self.unkept().next().is_none(),
            _ => self.shard.is_empty(),
        };
        if idle && self.listeners.is_empty() && self.life == Life::Serving {
            // The conversations that we were started for are over.
            self.life = Life::Over;
        }
        let closed = self
            .listeners
            .iter()
            .all(|listener| listener.state == State::Closed);
        self.life.tick(self.now, idle && closed);
        let counters = self.shard.counters();
        let standing = self.keeper.standing().mark(self.keeper.kept());
        let mark = [
            counters.accepted,
            counters.closed(),
            counters.sent,
            standing,
        ];
        if self.manager.is_status_due(mark, self.now) {
            let status = self.status();
            self.manager.status(mark, status, self.now);
        }
        if *self.keeper.standing() == Standing::Kept {
            self.note_totals();
        }
        self.manager.tick(self.now);
        if let Some(error) = self.manager.trouble() {
            self.log.tell(Event::Manager(error));
        }
        self.busy = false;
        // A listener whose burst was not enough goes on in the next round.
        let calling = |listener: &Listener| listener.state == State::Ready;
        self.stirred = self.listeners.iter().any(calling);
        self.wake = self.next_wake();
    }
}
