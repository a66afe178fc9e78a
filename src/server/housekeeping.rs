//! Everything that is done by the clock and not by traffic, and when.
//!
//! Most rounds are traffic and nothing else, and housekeeping would cost as much as they do.  So it is
//! done when something rare has happened (a signal, an answer), or when its time has come, which is
//! worked out at its end.  When somebody comes or goes, that is noted, and the time worked out again.

use std::io;

use super::Server;
use super::lifecycle::Life;
use super::listener::{Listener, State};
use crate::echo::counters::Counters;
use crate::echo::tick::{Tick, earliest};
use crate::system::events::Event;
use crate::system::lock::lock;

impl Server {
    /// When housekeeping and callers have to be looked after, if nothing happens before.
    fn next_wake(&self) -> Option<Tick> {
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
            lock(&self.fold).next_due(),
            self.floods.next_due(),
            (self.life == Life::Serving)
                .then(|| self.keeper.next_due())
                .flatten(),
        ]
        .into_iter()
        .flatten()
        .chain(listeners)
        .min()
    }

    /// The end of a round: looks after what it has brought.
    ///
    /// # Errors
    /// The poll of a worker has failed.
    pub(super) fn look_round(&mut self) -> io::Result<()> {
        self.changed |= !self.own.gone.is_empty();
        // The last one to go, or a listener that closes, may be what is waited for.
        self.stirred |= self.own.caution.is_some() || self.life != Life::Serving;
        let sent = std::mem::take(&mut self.own.sent);
        if (sent || self.changed) && !self.busy {
            self.busy = true;
            self.wake = earliest([self.wake, self.manager.next_status(self.now)]);
        }
        if self.changed && !self.stirred {
            self.part();
            self.crew.trouble().map_or(Ok(()), Err)?;
            self.stirred = self.listeners.is_empty();
            self.note_totals();
            let told = lock(&self.fold).next_due();
            self.wake = earliest([self.wake, self.keeper.next_due(), told]);
            self.changed = false;
        }
        if self.stirred {
            return self.housekeep();
        }
        if self.calling {
            self.calling = self.has_callers();
        }
        Ok(())
    }

    /// Whether a listener goes on in the next round, as its burst was not enough.
    fn has_callers(&self) -> bool {
        let ready = |listener: &Listener| listener.state == State::Ready;
        self.listeners.iter().any(ready)
    }

    /// Everything that is done by the clock and not by an event.
    ///
    /// # Errors
    /// The poll of a worker has failed.
    pub(super) fn housekeep(&mut self) -> io::Result<()> {
        self.part();
        self.crew.trouble().map_or(Ok(()), Err)?;
        self.flush_sums(false);
        // Nothing is asked of the manager for those who are over.
        self.forget_young();
        self.keep();
        let idle = match self.life {
            Life::HandingOver { .. } => self.is_all_kept(),
            _ => self.open() == 0,
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
        self.tell_status();
        self.note_totals();
        if self.manager.tick(self.now, self.crew.is_alive()) {
            self.crew.ask();
        }
        if let Some(error) = self.manager.trouble() {
            self.log.tell(Event::Manager(error));
        }
        self.busy = false;
        self.changed = false;
        self.stirred = false;
        self.calling = self.has_callers();
        self.wake = self.next_wake();
        Ok(())
    }

    /// Tells the manager how it is, if that has changed and may be told again.
    fn tell_status(&mut self) {
        let crew = self.crew.counters().map(|(counters, _)| counters);
        let counters: Counters = std::iter::once(self.own.shard.counters()).chain(crew).sum();
        let standing = self.keeper.standing().mark(self.keeper.kept());
        let mark = [self.number, counters.closed(), counters.sent, standing];
        if self.manager.is_status_due(mark, self.now) {
            // What is sent from here on is news again.
            self.crew.told();
            let status = self.status();
            self.manager.status(mark, status, self.now);
        }
    }
}
