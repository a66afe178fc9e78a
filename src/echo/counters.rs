//! What a shard has done so far: plain numbers, added and never reset.
//!
//! Gauges are computed from them ([`Counters::open`]), so they cannot drift.

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
    closed: [u64; Reason::KINDS.len()],
}

impl Counters {
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
        self.accepted - self.closed()
    }

    /// Ended connections by reason, in the order of [`Reason::KINDS`].
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Reason::KINDS.into_iter().zip(self.closed)
    }
}
