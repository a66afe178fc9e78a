//! The connections that wait to be preserved.
//!
//! To preserve a connection costs a record and a part of a message to the descriptor queue.  Most
//! connections end within moments, so a connection is preserved only when it has been open for a while
//! (`preserve-after`), and waits until then.  That time is the same for all of them, so the connections
//! are due in the order in which they were accepted, and a queue is enough.

use std::collections::VecDeque;

use crate::echo::time::MonoTime;

/// The connections that are looked at in one round.
const LOOKS: usize = 65_536;

/// A connection that waits to be preserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// When it has been open for long enough.
    pub due: MonoTime,
    /// The index of its worker.
    pub worker: usize,
    /// Its key among the connections of that worker.
    pub key: usize,
    /// Its number.  When the connection is over, its key may be given to another one.
    pub number: u64,
}

/// The connections that wait, in the order in which they are due.
#[derive(Debug, Default)]
pub(crate) struct PreserveQueue(VecDeque<Waiting>);

impl PreserveQueue {
    /// Adds a connection that is due after all others.
    pub(crate) fn add(&mut self, waiting: Waiting) {
        self.0.push_back(waiting);
    }

    /// When the first connection is due.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<MonoTime> {
        self.0.front().map(|waiting| waiting.due)
    }

    /// How many connections there are, including those that are over.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no connection.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes connections that are over from the front of the queue, up to the first that is not, and
    /// [`LOOKS`] at most.
    pub(crate) fn forget(&mut self, is_over: impl Fn(&Waiting) -> bool) {
        for _ in 0..LOOKS {
            if !self.0.front().is_some_and(&is_over) {
                break;
            }
            self.0.pop_front();
        }
    }

    /// Forgets those that are over, of those whose time has come, until `most` are found that are not,
    /// or [`LOOKS`] were looked at.
    pub(crate) fn forget_due(
        &mut self,
        now: MonoTime,
        most: usize,
        is_over: impl Fn(&Waiting) -> bool,
    ) {
        let mut living = Vec::new();
        for _ in 0..LOOKS {
            if living.len() == most || self.next_due().is_none_or(|due| due > now) {
                break;
            }
            living.extend(self.0.pop_front().filter(|waiting| !is_over(waiting)));
        }
        self.put_back(living);
    }

    /// Takes the first connections that are due, or the first of all, at most `most`.
    pub(crate) fn take(&mut self, now: MonoTime, all: bool, most: usize) -> Vec<Waiting> {
        let first = self.0.iter().take(most);
        let count = first
            .take_while(|waiting| all || waiting.due <= now)
            .count();
        let batch = self.0.drain(..count).collect();
        if self.0.is_empty() {
            // The memory for a large number of connections would stay allocated.
            self.0 = VecDeque::new();
        }
        batch
    }

    /// Puts connections back that were taken and could not be preserved.
    pub(crate) fn put_back(&mut self, batch: Vec<Waiting>) {
        for waiting in batch.into_iter().rev() {
            self.0.push_front(waiting);
        }
    }

    /// Replaces all connections.  They may be in any order.
    pub(crate) fn replace(&mut self, mut waiting: Vec<Waiting>) {
        waiting.sort_by_key(|waiting| waiting.due);
        self.0 = waiting.into();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn connections_are_taken_in_order_when_they_are_due() {
        let now = MonoTime::new(1 << 60);
        let waiting = |key: usize| Waiting {
            due: now + Duration::from_millis(key as u64),
            worker: 0,
            key,
            number: key as u64,
        };
        let mut queue = PreserveQueue::default();
        queue.replace((0..600).rev().map(waiting).collect());
        assert_eq!(queue.next_due(), Some(now));
        queue.forget(|waiting| waiting.key < 10);
        let later = now + Duration::from_millis(20);
        let batch = queue.take(later, false, 253);
        let keys: Vec<usize> = batch.iter().map(|waiting| waiting.key).collect();
        assert_eq!(keys, (10..=20).collect::<Vec<_>>());
        queue.put_back(batch);
        assert_eq!(queue.take(later, true, 253).len(), 253);
        assert_eq!(queue.len(), 600 - 10 - 253);
        while !queue.take(later, true, 253).is_empty() {}
        assert!(queue.is_empty());
    }
}
