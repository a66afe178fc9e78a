//! What can become due for a connection, and the deadlines of all connections, the earliest first.
//!
//! A key is armed for one time at most.  Most connections end long before they reach a deadline, and
//! activity makes deadlines later.  So neither of these searches for an entry: activity leaves the entry
//! of its connection too early, and it is moved when its time has come; an entry whose key is not armed
//! for its time any more is *stale*, and is dropped when it comes first, or when most entries are stale.
//! A key is never armed for later than its deadline.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::time::MonoTime;
#[cfg(doc)]
use super::{GRACE, LINGER, Limits};

/// What becomes due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// The connection is closed: its header is not complete.
    Header,
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

/// So many stale entries are kept in any case.
const KEPT_STALE: usize = 64;

/// The deadlines of the connections of one loop.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    /// The entries.  The first one is not stale.
    entries: BinaryHeap<Reverse<(MonoTime, usize)>>,
    /// For each key the time that it is armed for.
    armed: Vec<Option<MonoTime>>,
    /// How many keys are armed.
    count: usize,
}

impl Deadlines {
    /// Arms `key` for `due`; `None`: for no time.
    pub(crate) fn set(&mut self, key: usize, due: Option<MonoTime>) {
        if self.armed.len() <= key {
            self.armed.resize(key + 1, None);
        }
        let armed = std::mem::replace(&mut self.armed[key], due);
        if armed == due {
            return;
        }
        self.count = self.count + usize::from(due.is_some()) - usize::from(armed.is_some());
        if self.count == 0 {
            self.entries.clear();
            return;
        }
        if let Some(due) = due {
            self.entries.push(Reverse((due, key)));
        }
        let armed = &self.armed;
        let is_stale = |entry: &Reverse<(MonoTime, usize)>| armed[entry.0.1] != Some(entry.0.0);
        while self.entries.peek().is_some_and(is_stale) {
            self.entries.pop();
        }
        if self.entries.len() > 2 * self.count + KEPT_STALE {
            self.entries.retain(|entry| !is_stale(entry));
        }
    }

    /// The time that `key` is armed for.
    #[must_use]
    pub(crate) fn armed(&self, key: usize) -> Option<MonoTime> {
        self.armed.get(key).copied().flatten()
    }

    /// The earliest time that a key is armed for.
    #[inline]
    #[must_use]
    pub(crate) fn next(&self) -> Option<MonoTime> {
        self.entries.peek().map(|Reverse((at, _))| *at)
    }

    /// The key that is armed for the earliest time, if that is not after `now`.  It stays armed until
    /// [`Deadlines::set`] changes that.
    #[inline]
    #[must_use]
    pub(crate) fn fired(&self, now: MonoTime) -> Option<usize> {
        let Reverse((at, key)) = self.entries.peek()?;
        (*at <= now).then_some(*key)
    }

    /// How many keys are armed.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Option<MonoTime> {
        Some(MonoTime::new(1 << 60) + Duration::from_secs(seconds))
    }

    #[test]
    fn a_key_is_armed_once_and_the_earliest_fires_first() {
        let start = MonoTime::new(1 << 60);
        let mut deadlines = Deadlines::default();
        deadlines.set(1, at(5));
        deadlines.set(2, at(3));
        deadlines.set(1, at(4));
        assert_eq!(deadlines.count(), 2);
        assert_eq!((deadlines.armed(1), deadlines.armed(7)), (at(4), None));
        assert_eq!(deadlines.next(), at(3));
        assert_eq!(deadlines.fired(start), None);
        assert_eq!(deadlines.fired(start + Duration::from_secs(3)), Some(2));
        deadlines.set(2, None);
        assert_eq!(deadlines.next(), at(4));
        deadlines.set(1, None);
        assert_eq!((deadlines.count(), deadlines.next()), (0, None));
    }

    #[test]
    fn stale_entries_never_come_first_and_do_not_pile_up() {
        let mut deadlines = Deadlines::default();
        let mut armed = [None; 40];
        for step in 0..20_000 {
            let key = (step * 7 + step / 40) % 40;
            armed[key] = at(step as u64 % 997).filter(|_| step % 3 > 0);
            deadlines.set(key, armed[key]);
            let count = armed.iter().flatten().count();
            assert_eq!(deadlines.next(), armed.into_iter().flatten().min());
            assert_eq!(deadlines.count(), count);
            assert!(deadlines.entries.len() <= 2 * count + KEPT_STALE);
        }
    }
}
