//! A reading of the clock, in one word.
//!
//! A connection remembers up to five of them, and `std::time::Instant` takes two words.  It is the
//! same in every process of a boot, so it can be handed over.

use std::num::NonZeroU64;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A reading of `CLOCK_MONOTONIC` (clock_gettime(2)), in nanoseconds.  It never overflows: what is
/// too far away is the end of time, and what was before the boot its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(NonZeroU64);

/// A span in nanoseconds, of at most 584 years.
fn nanoseconds(span: Duration) -> u64 {
    let seconds = span.as_secs().saturating_mul(1_000_000_000);
    seconds.saturating_add(u64::from(span.subsec_nanos()))
}

impl Tick {
    /// A reading, by the nanoseconds since the boot.
    #[must_use]
    pub fn new(nanoseconds: u64) -> Self {
        Self(NonZeroU64::new(nanoseconds).unwrap_or(NonZeroU64::MIN))
    }

    /// A reading, by the microseconds since the boot.
    #[must_use]
    pub fn from_micros(microseconds: u64) -> Self {
        Self::new(microseconds.saturating_mul(1000))
    }

    /// The microseconds since the boot.
    #[must_use]
    pub fn as_micros(self) -> u64 {
        self.0.get() / 1000
    }

    /// How long after the boot it was.
    #[must_use]
    pub fn since_boot(self) -> Duration {
        Duration::from_nanos(self.0.get())
    }

    /// How long before this one another reading was; zero if it was later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }
}

/// The first of several times, if there is one.
#[must_use]
pub fn earliest<const N: usize>(times: [Option<Tick>; N]) -> Option<Tick> {
    times.into_iter().flatten().min()
}

impl Add<Duration> for Tick {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(span)))
    }
}

impl AddAssign<Duration> for Tick {
    fn add_assign(&mut self, span: Duration) {
        *self = *self + span;
    }
}

impl Sub<Duration> for Tick {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self::new(self.0.get().saturating_sub(nanoseconds(span)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_word_and_never_overflows() {
        assert_eq!(size_of::<Option<Tick>>(), 8);
        let second = Duration::from_secs(1);
        let tick = Tick::from_micros(5_000_000);
        assert_eq!((tick + second).since(tick), second);
        assert_eq!(tick.since(tick + second), Duration::ZERO);
        assert_eq!((tick - second).as_micros(), 4_000_000);
        assert_eq!(tick - Duration::MAX, Tick::new(0));
        assert!(tick + Duration::MAX > tick + second * 1_000_000_000);
    }
}
