//! What can become due for a connection, and the deadlines of all connections in one ordered set.
//!
//! A key has at most one entry in the set.  The owner of the key stores the time of its entry and
//! passes it in again to move or remove the entry, so no second map is needed.  Activity of a
//! connection does not touch the set: an entry may be earlier than the deadline that it stands for,
//! and is moved when its time has come.  An entry is never later than its deadline.

use std::collections::BTreeSet;

use super::time::MonoTime;
#[cfg(doc)]
use super::{GRACE, LINGER, Limits};

/// What becomes due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// The connection is closed: nothing is owed, and for [`Limits::idle`] no byte has moved.
    Idle,
    /// The connection is closed: something is owed, and for [`Limits::stall`] the peer took none
    /// of it.
    Stall,
    /// The connection is drained: it has existed for [`Limits::lifetime`].
    Lifetime,
    /// The service's FIN is sent: the connection is drained for a stop, nothing is owed, and the
    /// peer was silent for [`GRACE`], or the stop was [`LINGER`] ago.
    SendFin,
    /// The connection is closed: input was discarded for [`LINGER`] since the service's FIN.  It
    /// stays open for longer while the peer has not acknowledged everything, at most until
    /// [`Limits::stop_timeout`] after the beginning of draining.
    Linger,
    /// The connection is closed with what it still owes: draining has taken
    /// [`Limits::stop_timeout`], or [`LINGER`] where that is longer.
    StopTimeout,
}

/// The deadlines of the connections of one loop.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    entries: BTreeSet<(MonoTime, usize)>,
    /// The time of the first entry, because every round reads it.
    first: Option<MonoTime>,
}

impl Deadlines {
    /// Moves the entry of `key` from `armed` to `due` (`None`: no entry), and stores that in
    /// `armed`.
    pub(crate) fn set(&mut self, key: usize, armed: &mut Option<MonoTime>, due: Option<MonoTime>) {
        if *armed == due {
            return;
        }
        if let Some(old) = armed.take() {
            self.entries.remove(&(old, key));
        }
        if let Some(new) = due {
            self.entries.insert((new, key));
        }
        *armed = due;
        self.first = self.entries.first().map(|(at, _)| *at);
    }

    /// The time of the first entry.
    #[must_use]
    pub(crate) fn next(&self) -> Option<MonoTime> {
        self.first
    }

    /// The key of the first entry, if its time is not after `now`.  The entry stays until
    /// [`Deadlines::set`] moves it.
    #[must_use]
    pub(crate) fn fired(&self, now: MonoTime) -> Option<usize> {
        self.first.filter(|at| *at <= now)?;
        self.entries.first().map(|(_, key)| *key)
    }

    /// The number of entries.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_key_has_one_entry_and_the_earliest_fires_first() {
        let start = MonoTime::new(1 << 60);
        let at = |seconds| Some(start + Duration::from_secs(seconds));
        let mut deadlines = Deadlines::default();
        let (mut one, mut two) = (None, None);
        deadlines.set(1, &mut one, at(5));
        deadlines.set(2, &mut two, at(3));
        deadlines.set(1, &mut one, at(4));
        assert_eq!(deadlines.count(), 2);
        assert_eq!(deadlines.next(), at(3));
        assert_eq!(deadlines.fired(start), None);
        assert_eq!(deadlines.fired(start + Duration::from_secs(3)), Some(2));
        deadlines.set(2, &mut two, None);
        assert_eq!(deadlines.next(), at(4));
        deadlines.set(1, &mut one, None);
        assert_eq!(deadlines.count(), 0);
    }
}
