//! Connections that are too young to be packed: most are over before their time comes.

use std::collections::VecDeque;

use super::parcel::BATCH;
use crate::echo::tick::Tick;

/// A connection that is not packed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Young {
    /// When it has lived long enough.
    pub due: Tick,
    /// The lane of its loop.
    pub lane: usize,
    /// Its key in the shard of that loop.
    pub key: usize,
    /// Its number, as the key may have changed hands.
    pub number: u64,
}

/// Those that wait, the oldest first.
#[derive(Debug, Default)]
pub struct Unpacked(VecDeque<Young>);

impl Unpacked {
    /// Another one, the youngest.
    pub fn add(&mut self, young: Young) {
        self.0.push_back(young);
    }

    /// When the time of the oldest has come.
    #[must_use]
    pub fn next_due(&self) -> Option<Tick> {
        self.0.front().map(|young| young.due)
    }

    /// How many there are, dead ones among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets the oldest as long as they are over.
    pub fn forget(&mut self, is_over: impl Fn(&Young) -> bool) {
        while self.0.front().is_some_and(&is_over) {
            self.0.pop_front();
        }
    }

    /// Those whose time has come and who are not over, at most so many as go into one message;
    /// `all`: whoever is left.
    pub fn batch(&mut self, now: Tick, all: bool, is_over: impl Fn(&Young) -> bool) -> Vec<Young> {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            match self.0.front() {
                Some(young) if all || young.due <= now => {
                    batch.extend(self.0.pop_front().filter(|young| !is_over(young)));
                }
                _ => break,
            }
        }
        if self.0.is_empty() {
            // A crowd was packed, and its list would stay as long as it was.
            self.0 = VecDeque::new();
        }
        batch
    }

    /// Those could not be packed.
    pub fn put_back(&mut self, batch: Vec<Young>) {
        for young in batch.into_iter().rev() {
            self.0.push_front(young);
        }
    }

    /// Others instead.
    pub fn replace(&mut self, mut young: Vec<Young>) {
        young.sort_by_key(|young| young.due);
        self.0 = young.into();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_batch_has_whose_time_has_come_and_who_lives() {
        let now = Tick::new(1 << 60);
        let young = |key: usize, millis| Young {
            due: now + Duration::from_millis(millis),
            lane: 0,
            key,
            number: key as u64,
        };
        let mut unpacked = Unpacked::default();
        unpacked.replace((0..600).rev().map(|key| young(key, key as u64)).collect());
        assert_eq!(unpacked.next_due(), Some(now));
        unpacked.forget(|young| young.key < 10);
        let odd = |young: &Young| young.key % 2 == 1;
        let later = now + Duration::from_millis(20);
        let batch = unpacked.batch(later, false, odd);
        let keys: Vec<usize> = batch.iter().map(|young| young.key).collect();
        assert_eq!(keys, [10, 12, 14, 16, 18, 20]);
        unpacked.put_back(batch);
        assert_eq!(unpacked.batch(later, true, odd).len(), BATCH);
        assert!(unpacked.batch(later, true, odd).len() < BATCH);
        assert!(unpacked.is_empty());
    }
}
