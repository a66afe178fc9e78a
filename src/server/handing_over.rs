//! A planned end: every connection is left to the successor (USR2).
//!
//! Whoever is not packed yet is packed now, however young, and then there is nothing to wait for.
//! Whoever cannot be packed leaves, as at a stop, and meanwhile the others are served on.

use std::time::Duration;

use super::Server;
use super::keeping::{Packed, record};
use super::lifecycle::Life;
use super::listener::State;
use crate::survival::standing::Standing;
use crate::system::clock;
use crate::system::events::Event;

/// How long the end may wait for the manager.
const LAST: Duration = Duration::from_secs(1);

impl Server {
    /// Leaves every connection to the successor, at once if all can be packed.
    pub(super) fn hand_over(&mut self) {
        if *self.keeper.standing() == Standing::Waiting {
            self.ask();
        }
        self.settle_renewal();
        if !self.keeper.is_held() {
            self.life = Life::Leaving {
                until: self.now + self.config.limits.leave,
            };
            return self.leave();
        }
        self.handing_over = true;
        self.take_the_last();
        let span = self.config.limits.leave;
        self.pack_all();
        for worker in self.crew.hold(&mut self.own).iter_mut() {
            worker.leave(|stream| stream.seat.is_none(), self.now);
        }
        let status = self.status();
        self.manager.stopping(span, &status, self.now);
    }

    /// Waits for the manager's answer, if one is due.  Whoever is packed meanwhile would be in the
    /// old parcel only, and gone with it.
    fn settle_renewal(&mut self) {
        if self.keeper.answer().is_none() {
            return;
        }
        self.manager.flush(self.now);
        self.keeper.wait(LAST);
        self.now = clock::now();
        let news = self.keeper.expire(&mut self.manager, self.now);
        self.hear(news);
        self.keeper.abandon_renewal(&mut self.manager, self.now);
    }

    /// Takes in who waits at listeners of our own, which nobody will hold; those that were passed
    /// keep their callers for the successor.
    fn take_the_last(&mut self) {
        for listener in &mut self.listeners {
            listener.drain(self.poll.registry());
        }
        while self
            .listeners
            .iter()
            .any(|listener| listener.is_due(self.now))
        {
            self.accept();
        }
        for listener in &mut self.listeners {
            if listener.state != State::Closed {
                listener.close(self.poll.registry());
            }
        }
    }

    /// Packs everybody, however young.
    fn pack_all(&mut self) {
        let young = self.unkept_young();
        self.keeper.unpacked.replace(young);
        loop {
            if self.pack(true) != Packed::Failed {
                if !self.keeper.unpacked.is_empty() {
                    continue;
                }
                return;
            }
            // The queue was full: on into the new parcel, as soon as the manager has it.
            if self.keeper.answer().is_none() {
                return;
            }
            let before = self.keeper.generation();
            self.settle_renewal();
            if self.keeper.generation() == before {
                return;
            }
        }
    }

    /// Whether nobody is left who cannot be handed over.
    pub(super) fn is_all_kept(&mut self) -> bool {
        let loops = self.crew.hold(&mut self.own);
        loops.iter().all(|worker| worker.unkept().next().is_none())
    }

    /// Says how far everybody has come, and that the successor may go on from there.
    pub(super) fn leave_to_successor(&mut self) {
        let loops = self.crew.hold(&mut self.own);
        for worker in loops.iter() {
            for (_, stream, connection) in worker.shard.connections() {
                if let Some(seat) = stream.seat {
                    let record = record(connection, stream, 0);
                    worker.shard.store().note(seat, &record);
                }
            }
        }
        let noted = loops.iter().map(|worker| worker.shard.noted()).sum();
        drop(loops);
        self.note(noted);
        self.keeper.arena().hand_over();
        let (kept, open) = (self.keeper.kept(), self.counters().open());
        self.log.tell(Event::HandedOver { kept, open });
    }
}
