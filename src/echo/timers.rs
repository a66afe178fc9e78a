//! Deadlines: one ordered set of (instant, key), lazily moved.
//!
//! A key has at most one entry.  The owner remembers the instant of that entry and hands it back
//! to move or remove it, so there is no second map.  Activity does not touch the set: an entry
//! may be earlier than the true deadline, and is put back when it fires too early.  It is never
//! later.

use std::collections::BTreeSet;

use super::tick::Tick;

/// The deadlines of one shard.
#[derive(Debug, Default)]
pub struct Timers {
    entries: BTreeSet<(Tick, usize)>,
    /// The earliest of them, as every round asks for it.
    first: Option<Tick>,
}

impl Timers {
    /// Moves the entry of `key` from where it is (`armed`) to where it should be (`due`).
    pub fn set(&mut self, key: usize, armed: &mut Option<Tick>, due: Option<Tick>) {
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

    /// The earliest entry.
    #[must_use]
    pub fn next(&self) -> Option<Tick> {
        self.first
    }

    /// The key of an entry that is due at `now`.  The entry stays until it is moved.
    #[must_use]
    pub fn fired(&self, now: Tick) -> Option<usize> {
        self.first.filter(|at| *at <= now)?;
        self.entries.first().map(|(_, key)| *key)
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_key_has_one_entry_and_the_earliest_fires_first() {
        let start = Tick::new(1 << 60);
        let at = |seconds| Some(start + Duration::from_secs(seconds));
        let mut timers = Timers::default();
        let (mut one, mut two) = (None, None);
        timers.set(1, &mut one, at(5));
        timers.set(2, &mut two, at(3));
        timers.set(1, &mut one, at(4));
        assert_eq!(timers.len(), 2);
        assert_eq!(timers.next(), at(3));
        assert_eq!(timers.fired(start), None);
        assert_eq!(timers.fired(start + Duration::from_secs(3)), Some(2));
        timers.set(2, &mut two, None);
        assert_eq!(timers.next(), at(4));
        timers.set(1, &mut one, None);
        assert!(timers.is_empty());
    }
}
