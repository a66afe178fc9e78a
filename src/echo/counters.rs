//! The totals of a loop: plain numbers that only grow, also across a hand-over to another process.
//!
//! Gauges are computed from them ([`Counters::open`]), so the two cannot disagree.

use std::iter::Sum;

use super::end_reason::{EndReason, Summary};

/// The totals of one loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections accepted.
    pub accepted: u64,
    /// Bytes received, including those discarded after the service's FIN.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Ended connections by reason, in the order of [`EndReason::ALL`].
    pub closed: [u64; EndReason::ALL.len()],
}

impl Counters {
    /// Continues the totals of a process that has ended, `open` of whose connections were restored.
    /// The others count as ended because they could not be restored; if there are more than the
    /// totals say, the excess counts as accepted.
    pub(crate) fn take_over(&mut self, open: u64) {
        let before = self.accepted.saturating_sub(self.closed());
        self.closed[EndReason::NotRestored.index()] += before.saturating_sub(open);
        self.accepted = self.closed() + open;
    }

    /// Counts a connection that has ended.
    pub(crate) fn close(&mut self, summary: &Summary) {
        self.closed[summary.reason.index()] += 1;
    }

    /// The number of connections that have ended.
    #[must_use]
    pub fn closed(&self) -> u64 {
        self.closed.iter().sum()
    }

    /// The number of connections that are open.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.accepted.saturating_sub(self.closed())
    }

    /// The word for each reason and the number of connections that ended for it, in the order of
    /// [`EndReason::ALL`].
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        EndReason::ALL
            .map(|row| row.word)
            .into_iter()
            .zip(self.closed)
    }
}

/// A loop that has restored connections may count what another loop counts now, so only the sum
/// over all loops has a meaning.
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
    fn after_a_hand_over_the_open_connections_are_the_restored_ones() {
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
            assert_eq!(counters.closed[EndReason::NotRestored.index()], lost);
        }
    }
}
