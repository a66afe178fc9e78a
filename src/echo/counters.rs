//! What a shard has done so far: plain numbers, added and never reset, not even by a hand-over to
//! another process.
//!
//! Gauges are computed from them ([`Counters::open`]), so they cannot drift.

use std::iter::Sum;

use super::reason::{Reason, Summary};

/// The totals of one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections taken in.
    pub accepted: u64,
    /// Bytes received, those thrown away after our FIN included.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Ended connections by reason, in the order of [`Reason::KINDS`].
    pub closed: [u64; Reason::KINDS.len()],
}

impl Counters {
    /// Goes on from the totals of a process that has ended, of whose connections `open` are here
    /// now.  What it had and is not here was lost; what it had not yet noted counts as accepted.
    pub fn take_over(&mut self, open: u64) {
        let before = self.accepted.saturating_sub(self.closed());
        self.closed[Reason::Lost.kind()] += before.saturating_sub(open);
        self.accepted = self.closed() + open;
    }

    /// Counts a connection that is over.
    pub fn close(&mut self, summary: &Summary) {
        self.closed[summary.reason.kind()] += 1;
    }

    /// Connections that are over.
    #[must_use]
    pub fn closed(&self) -> u64 {
        self.closed.iter().sum()
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.accepted.saturating_sub(self.closed())
    }

    /// Ended connections by reason, in the order of [`Reason::KINDS`].
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Reason::KINDS.into_iter().zip(self.closed)
    }
}

/// What one loop has taken over from another process may count what another loop has now, so of
/// several only the sum means something.
impl Sum for Counters {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self {
            accepted: sum.accepted + part.accepted,
            received: sum.received + part.received,
            sent: sum.sent + part.sent,
            closed: std::array::from_fn(|kind| sum.closed[kind] + part.closed[kind]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_after_a_hand_over_is_what_is_there() {
        for (accepted, ended, open, lost) in
            [(10, 4, 6, 0), (10, 4, 5, 1), (10, 4, 8, 0), (0, 0, 2, 0)]
        {
            let mut counters = Counters {
                accepted,
                ..Counters::default()
            };
            counters.closed[0] = ended;
            counters.take_over(open);
            assert_eq!(counters.open(), open);
            assert_eq!(counters.closed[Reason::Lost.kind()], lost);
        }
    }
}
