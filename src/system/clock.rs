//! The clock, read in one place.

use std::mem::MaybeUninit;

use crate::echo::tick::Tick;

/// The time: `CLOCK_MONOTONIC` of clock_gettime(2), which stands still while the machine sleeps.
#[must_use]
#[expect(unsafe_code, reason = "the standard library does not tell the number")]
pub fn now() -> Tick {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the pointer is valid, and any content of the structure is; with this clock the call
    // cannot fail.
    let time = unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, time.as_mut_ptr());
        time.assume_init()
    };
    let number = |part: i64| u64::try_from(part).unwrap_or(0);
    Tick::new(number(time.tv_sec) * 1_000_000_000 + number(time.tv_nsec))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn it_goes_as_fast_as_any_other() {
        let (tick, instant) = (now(), Instant::now());
        std::thread::sleep(Duration::from_millis(20));
        let (ours, theirs) = (now().since(tick), instant.elapsed());
        assert!(
            ours.abs_diff(theirs) < Duration::from_millis(15),
            "{ours:?}"
        );
    }
}
