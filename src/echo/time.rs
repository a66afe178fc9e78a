//! A reading of the monotonic clock in one word.
//!
//! A connection stores up to five of them, and `std::time::Instant` takes two words.  The clock is
//! the same for all processes until the next boot, so a reading can be passed on to a later process.

use std::num::NonZeroU64;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A reading of `CLOCK_MONOTONIC` (clock_gettime(2)): nanoseconds since the boot, from 1 to
/// `u64::MAX` (584 years).  Arithmetic stops at these two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MonoTime(NonZeroU64);

/// A span in nanoseconds; `u64::MAX` if it is longer.
fn nanoseconds(span: Duration) -> u64 {
    let seconds = span.as_secs().saturating_mul(1_000_000_000);
    seconds.saturating_add(u64::from(span.subsec_nanos()))
}

impl MonoTime {
    /// The earliest reading: what is due then is due at once.
    pub(crate) const FIRST: Self = Self(NonZeroU64::MIN);

    /// The reading of so many nanoseconds since the boot; 0 becomes 1.
    #[must_use]
    pub fn new(nanoseconds: u64) -> Self {
        Self(NonZeroU64::new(nanoseconds).unwrap_or(NonZeroU64::MIN))
    }

    /// The reading of so many microseconds since the boot.
    #[must_use]
    pub fn from_micros(microseconds: u64) -> Self {
        Self::new(microseconds.saturating_mul(1000))
    }

    /// The whole microseconds since the boot.
    #[must_use]
    pub fn as_micros(self) -> u64 {
        self.0.get() / 1000
    }

    /// The time since the boot.
    #[must_use]
    pub fn since_boot(self) -> Duration {
        Duration::from_nanos(self.0.get())
    }

    /// The time from `earlier` to this reading; zero if `earlier` is the later one.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }
}

/// The earliest of several times, of which any may be missing.
#[must_use]
pub fn earliest<const N: usize>(times: [Option<MonoTime>; N]) -> Option<MonoTime> {
    // As every round asks: one less than the reading is the greatest number where there is none.
    let before = |time: Option<MonoTime>| time.map_or(0, |time| time.0.get()).wrapping_sub(1);
    let first = times.into_iter().map(before).fold(u64::MAX, u64::min);
    NonZeroU64::new(first.wrapping_add(1)).map(MonoTime)
}

impl Add<Duration> for MonoTime {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(span)))
    }
}

impl AddAssign<Duration> for MonoTime {
    fn add_assign(&mut self, span: Duration) {
        *self = *self + span;
    }
}

impl Sub<Duration> for MonoTime {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self::new(self.0.get().saturating_sub(nanoseconds(span)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_time_is_one_that_is_there() {
        let at = |nanoseconds| Some(MonoTime::new(nanoseconds));
        assert_eq!(earliest([None, at(7), at(3), None, at(5)]), at(3));
        assert_eq!(earliest([at(u64::MAX), None]), at(u64::MAX));
        assert_eq!(earliest([None, None]), None);
    }

    #[test]
    fn it_is_one_word_and_never_overflows() {
        assert_eq!(size_of::<Option<MonoTime>>(), 8);
        let second = Duration::from_secs(1);
        let reading = MonoTime::from_micros(5_000_000);
        assert_eq!((reading + second).since(reading), second);
        assert_eq!(reading.since(reading + second), Duration::ZERO);
        assert_eq!((reading - second).as_micros(), 4_000_000);
        assert_eq!(reading - Duration::MAX, MonoTime::new(0));
        assert!(reading + Duration::MAX > reading + second * 1_000_000_000);
    }
}
