//! The timer that wakes the poll when a deadline has passed.
//!
//! A poll with a time-out makes the kernel start and cancel a timer each time, which costs as much as
//! a tenth of a message.  Deadlines seldom pass, and most are postponed long before they do.  So one
//! timer (timerfd_create(2)) stays set to the earliest deadline that was asked for, and is set anew
//! only for an earlier one.  Now and then it expires although that deadline was postponed: the round
//! then finds nothing to do, and sets it to the next deadline.
//!
//! Where there is no such timer (a sandbox forbids it), the poll has a time-out.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::echo::time::MonoTime;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A timer that a poll watches.
#[derive(Debug)]
pub(crate) struct DeadlineTimer {
    /// `None`: the kernel has not given one.
    timer: Option<OwnedFd>,
    /// When the timer expires, or has expired.
    set: Option<MonoTime>,
}

impl DeadlineTimer {
    /// A timer that is not set, registered with a poll under `token`.
    #[must_use]
    pub(crate) fn new(registry: &Registry, token: Token) -> Self {
        Self {
            timer: Self::timer(registry, token).ok(),
            set: None,
        }
    }

    fn timer(registry: &Registry, token: Token) -> io::Result<OwnedFd> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Each time it expires is a new edge (epoll(7)), so it need not be read.
        registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
        Ok(timer)
    }

    /// Sets the timer so that the poll returns at `due` at the latest.  Returns the time-out that the
    /// poll needs besides: `None` where the timer wakes it.
    pub(crate) fn wait(&mut self, due: Option<MonoTime>, now: MonoTime) -> Option<Duration> {
        let due = due?;
        // A timer that has expired does not wake the poll again.
        if self.timer.is_some() && self.set.is_some_and(|set| now < set && set <= due) {
            return None;
        }
        let wait = due.since(now);
        if wait.is_zero() || self.set_to(due).is_err() {
            return Some(wait);
        }
        self.set = Some(due);
        None
    }

    /// Sets the timer to a time and not to a span from now: the main loop calls this for a worker with
    /// an older reading of the clock.
    fn set_to(&self, due: MonoTime) -> io::Result<()> {
        let timer = self.timer.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let value = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(due.since_boot())
                .map_err(|_| io::ErrorKind::InvalidInput)?,
        };
        timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &value)?;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::clock;
    use mio::{Events, Poll};

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn the_poll_returns_at_the_earliest_deadline_although_a_later_one_follows() {
        let mut poll = Poll::new().unwrap();
        let mut events = Events::with_capacity(4);
        let mut deadline_timer = DeadlineTimer::new(poll.registry(), Token(7));
        for _ in 0..2 {
            let now = clock::now();
            assert_eq!(deadline_timer.wait(Some(now + 30 * MILLISECOND), now), None);
            assert_eq!(deadline_timer.wait(Some(now + 90 * MILLISECOND), now), None);
            assert_eq!(deadline_timer.wait(None, now), None);
            poll.poll(&mut events, Some(Duration::from_secs(10)))
                .unwrap();
            let took = clock::now().since(now);
            assert!(took >= 29 * MILLISECOND, "{took:?}");
            assert_eq!(events.iter().next().unwrap().token(), Token(7));
        }
    }

    #[test]
    fn a_passed_deadline_is_not_waited_for_and_without_a_timer_the_poll_has_a_time_out() {
        let now = clock::now();
        let mut deadline_timer = DeadlineTimer {
            timer: None,
            set: None,
        };
        assert_eq!(deadline_timer.wait(Some(now), now), Some(Duration::ZERO));
        assert_eq!(
            deadline_timer.wait(Some(now + MILLISECOND), now),
            Some(MILLISECOND)
        );
    }
}
