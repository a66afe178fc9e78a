//! The echo itself: pure logic over borrowed streams.
//!
//! Nothing in this folder reads a clock, makes a system call except through the stream that it is
//! passed, logs, names a descriptor or knows an address.  Time and limits are arguments.  So a test
//! drives thousands of connections through every kind of short write and reset without a socket,
//! and with a clock of its own.
//!
//! In reading order: [`time`] (a reading of the clock), [`end_reason`] (how a connection ends),
//! [`buffers`] (where bytes wait), [`stream`] (what a connection needs of its stream),
//! [`deadlines`] (what becomes due, and the earliest of it first), [`counters`], [`connection`] (one
//! connection), [`connections`] (all connections of one loop, and their rounds).

pub mod buffers;
pub mod connection;
pub mod connections;
pub mod counters;
pub mod deadlines;
pub mod end_reason;
pub mod stream;
pub mod time;

use std::time::Duration;

use crate::echo::time::MonoTime;

/// Bytes of the one buffer of a loop, through which everything passes.  With 256 KiB bulk traffic
/// costs half as much as with 64 KiB, and a larger buffer brings nothing.
pub const SCRATCH: usize = 256 * 1024;

/// Bytes that the first read of a connection may return, and each read while the send queue is not
/// empty.  A read may be twice as long as the last one if all of that was written at once.  So a
/// peer that stops reading is usually owed at most half of the scratch; it can be more if the
/// kernel has less room than before.
pub(crate) const FIRST_READ_BYTES: usize = 64 * 1024;

/// Bytes that one connection may receive in one turn.
pub const TURN_BYTES: usize = 256 * 1024;

/// How long input is discarded after the service's FIN.  Closing at once would answer unread input
/// with a reset, which destroys what is still in flight (RFC 1122 section 4.2.2.13).
pub const LINGER: Duration = Duration::from_millis(400);

/// How long a peer has to be silent after a stop before the service sends its FIN, because more
/// input may be on its way.  With [`LINGER`] an idle connection is closed within half a second.
pub const GRACE: Duration = Duration::from_millis(50);

/// The limits of a connection, in time and in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Close after this long without a byte in either direction while nothing is owed.
    pub idle: Option<Duration>,
    /// Close after this long without a byte taken by the peer while something is owed.
    pub stall: Option<Duration>,
    /// Drain after this long since the beginning of the connection, or a little earlier
    /// ([`Limits::end_of_life`]).
    pub lifetime: Option<Duration>,
    /// Drain after this many bytes received.
    pub bytes: Option<u64>,
    /// Close when draining has taken this long, with what is still owed.
    pub stop_timeout: Duration,
}

impl Limits {
    /// When a connection that began at this time is drained because of its age: after 90 % to 100 % of
    /// [`Limits::lifetime`].
    ///
    /// Clients that a balancer has sent here together would otherwise all come back together, again
    /// and again.  The part follows from the beginning alone (the golden ratio scatters neighbouring
    /// microseconds), so it is the same in the process that takes the connection over, where the
    /// beginning is known in microseconds.
    #[must_use]
    pub fn end_of_life(&self, began: MonoTime) -> Option<MonoTime> {
        let most = self.lifetime?;
        let part = began.as_micros().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
        // A part is 0 to 1023 of 10 240.
        let earlier = u32::try_from(part).map_or(Duration::ZERO, |part| most / 10_240 * part);
        Some(began + (most - earlier))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle: None,
            stall: Some(Duration::from_secs(300)),
            lifetime: None,
            bytes: None,
            stop_timeout: Duration::from_secs(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_life_is_spread_over_the_last_tenth() {
        let most = Duration::from_secs(1000);
        let limits = Limits {
            lifetime: Some(most),
            ..Limits::default()
        };
        let mut tenths = [0; 10];
        for round in 0..10_000 {
            // Rounds of a busy loop are some microseconds apart.
            let began = MonoTime::from_micros(77_000_000 + 13 * round);
            let end = limits.end_of_life(began).expect("there is a limit");
            let short = most - end.since(began);
            assert!(short < most / 10, "{short:?}");
            tenths[usize::try_from(short.as_secs() / 10).expect("small")] += 1;
            // The process that takes the connection over knows the microseconds.
            let restored = MonoTime::from_micros(began.as_micros());
            assert_eq!(limits.end_of_life(restored), Some(end));
        }
        assert!(
            tenths.iter().all(|count| (900..1100).contains(count)),
            "{tenths:?}"
        );
        assert_eq!(Limits::default().end_of_life(MonoTime::new(1)), None);
        for began in [0, u64::MAX] {
            let limits = Limits {
                lifetime: Some(Duration::MAX),
                ..Limits::default()
            };
            assert!(limits.end_of_life(MonoTime::new(began)).is_some());
        }
    }
}
