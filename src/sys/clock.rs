//! The clock of the process, read in one place.
//!
//! Deadlines, timers and the times that a state file records all count from one origin, so that they
//! can be compared with each other, across processes too.  [`std::time::Instant`] does not give its
//! number, hence this.

use rustix::time::{ClockId, clock_gettime};

use crate::echo::time::MonoTime;

/// Reads `CLOCK_MONOTONIC` (clock_gettime(2)), which counts nanoseconds since the boot of the host and
/// stands still while the host is suspended.
#[must_use]
pub(crate) fn now() -> MonoTime {
    let time = clock_gettime(ClockId::Monotonic);
    let number = |part: i64| u64::try_from(part).unwrap_or(0);
    MonoTime::new(number(time.tv_sec) * 1_000_000_000 + number(time.tv_nsec))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn it_advances_at_the_same_rate_as_the_clock_of_the_standard_library() {
        let (before, instant) = (now(), Instant::now());
        std::thread::sleep(Duration::from_millis(20));
        let (ours, theirs) = (now().since(before), instant.elapsed());
        assert!(
            ours.abs_diff(theirs) < Duration::from_millis(15),
            "{ours:?}"
        );
    }
}
