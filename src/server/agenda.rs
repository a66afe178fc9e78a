//! What is due in a round of the main loop.
//!
//! Most rounds move bytes and nothing else, and to check everything that may be due would cost as much
//! as the traffic itself.  So a full check (`Server::housekeep`) is made only in a round in which
//! something rare has happened (a signal, an answer of the service manager), or when the earliest
//! deadline has passed, which each full check works out anew.

use std::time::Duration;

use crate::echo::time::{MonoTime, earliest};

/// What is due in this round.
#[derive(Debug)]
pub(crate) struct Agenda {
    /// Something rare has happened, or a deadline has passed: this round makes a full check.
    pub everything: bool,
    /// Connections were opened or closed.
    pub changed: bool,
    /// A listener may have callers.
    pub callers: bool,
    /// The service manager has answered, or dropped a descriptor.
    pub answered: bool,
    /// Bytes were sent, and `wake` covers the message with the new status.
    pub status: bool,
    /// When the next full check is due; `None`: when something rare happens.
    wake: Option<MonoTime>,
}

impl Agenda {
    /// An agenda for the first round, which makes a full check.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self {
            everything: true,
            changed: false,
            callers: false,
            answered: false,
            status: false,
            wake: None,
        }
    }

    /// Begins a round, with a full check if one is due.
    pub(crate) fn begin(&mut self, now: MonoTime) {
        self.everything |= self.wake.is_some_and(|wake| wake <= now);
    }

    /// `Ok`: the next round follows at once; `Err`: it is due at this time, or with an event.
    pub(crate) fn wait(&self) -> Result<Duration, Option<MonoTime>> {
        if self.everything || self.callers {
            Ok(Duration::ZERO)
        } else {
            Err(self.wake)
        }
    }

    /// Moves the next full check forward to `due`, unless it is earlier already.
    pub(crate) fn wake_by(&mut self, due: Option<MonoTime>) {
        self.wake = earliest([self.wake, due]);
    }

    /// Ends a full check; the next one is due at `wake`.
    pub(crate) fn done(&mut self, wake: Option<MonoTime>) {
        self.everything = false;
        self.changed = false;
        self.status = false;
        self.wake = wake;
    }
}
