//! What a worker measures for the metrics: of each connection that has ended, and of its rounds.
//!
//! It is measured only where something asks for the metrics, begins at 0 with each process, and is
//! read by the main loop between two rounds of the worker.

use std::time::Duration;

use crate::echo::end_reason::Summary;
use crate::sys::tcp_info::{TcpInfo, field};

/// The bounds of a histogram, in microseconds.
const BOUNDS: usize = 13;

/// The bounds of the least round-trip time: 100 us to 1 s.
pub(crate) const RTT_BOUNDS: [u64; BOUNDS] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000,
];

/// The bounds of a connection's duration: 10 ms to a week.
pub(crate) const DURATION_BOUNDS: [u64; BOUNDS] = [
    10_000,
    100_000,
    1_000_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    900_000_000,
    3_600_000_000,
    21_600_000_000,
    86_400_000_000,
    604_800_000_000,
];

/// How often a value was at most that of each bound and above that of the one before; the last place
/// is for values beyond all bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Histogram {
    /// The values in each place.
    pub counts: [u64; BOUNDS + 1],
    /// The sum of all values, in microseconds.
    pub sum: u64,
}

impl Histogram {
    fn record(&mut self, bounds: &[u64; BOUNDS], micros: u64) {
        self.counts[bounds.partition_point(|bound| *bound < micros)] += 1;
        self.sum = self.sum.saturating_add(micros);
    }

    fn add(&mut self, other: &Self) {
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum += count;
        }
        self.sum = self.sum.saturating_add(other.sum);
    }
}

/// What was measured since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    /// The least round-trip time of each TCP connection that has ended.
    pub rtt: Histogram,
    /// How long each connection lasted.
    pub duration: Histogram,
    /// Segments with data that TCP connections have sent until their ends.
    pub segments: u64,
    /// Segments that they have sent again.
    pub again: u64,
    /// The longest round since it was last read.
    pub longest: Duration,
}

impl Measured {
    /// Counts a connection that has ended; `info` is what the kernel knows of it, for TCP.
    pub(crate) fn end(&mut self, summary: &Summary, info: Option<&TcpInfo>) {
        let micros = u64::try_from(summary.duration.as_micros()).unwrap_or(u64::MAX);
        self.duration.record(&DURATION_BOUNDS, micros);
        let Some(info) = info else {
            return;
        };
        if let Some(rtt) = info.min_rtt() {
            self.rtt.record(&RTT_BOUNDS, rtt);
        }
        self.segments += info.get(field::DATA_SEGS_OUT).unwrap_or(0);
        self.again += info.get(field::TOTAL_RETRANS).unwrap_or(0);
    }

    /// Adds what another worker has measured.
    pub(crate) fn add(&mut self, other: &Self) {
        self.rtt.add(&other.rtt);
        self.duration.add(&other.duration);
        self.segments += other.segments;
        self.again += other.again;
        self.longest = self.longest.max(other.longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::echo::end_reason::EndReason;

    #[test]
    fn a_value_is_counted_up_to_the_bound_that_it_does_not_exceed() {
        let mut one = Measured::default();
        let summary = |micros| Summary {
            reason: EndReason::PeerClosed,
            received: 0,
            sent: 0,
            owed: 0,
            duration: Duration::from_micros(micros),
        };
        let info = |rtt| {
            TcpInfo::scripted(&[
                (field::MIN_RTT, rtt),
                (field::DATA_SEGS_OUT, 10),
                (field::TOTAL_RETRANS, 1),
            ])
        };
        one.end(&summary(10_000), Some(&info(100)));
        one.end(&summary(10_001), Some(&info(101)));
        // Not measured by the kernel, and a Unix stream.
        one.end(&summary(604_800_000_001), Some(&info(u32::MAX.into())));
        one.end(&summary(0), None);
        assert_eq!(one.rtt.counts[..3], [1, 1, 0]);
        assert_eq!(one.rtt.sum, 201);
        assert_eq!(one.duration.counts[..2], [2, 1]);
        assert_eq!(one.duration.counts[BOUNDS], 1);
        assert_eq!((one.segments, one.again), (30, 3));
        let mut both = one;
        both.add(&one);
        assert_eq!(both.rtt.counts[..2], [2, 2]);
        assert_eq!(
            (both.segments, both.duration.sum),
            (60, 2 * one.duration.sum)
        );
    }
}
