//! The alarm: wakes the poll when something is due.
//!
//! A poll with a time-out makes the kernel start and cancel a timer each time, which costs as much
//! as a tenth of a message.  Deadlines hardly ever come true, and most are moved away long before,
//! so here one timer (timerfd_create(2)) stays set to the earliest that was ever wanted; it is moved
//! only for an earlier one.  When it fires too early, which it does once a while, the round finds
//! nothing to do and sets it anew.
//!
//! Where there is no such timer (a sandbox forbids it), the poll has a time-out.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::echo::tick::Tick;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// The longest that a poll waits.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The alarm.
#[derive(Debug)]
pub struct Alarm {
    timer: Option<OwnedFd>,
    set: Option<Tick>,
}

impl Alarm {
    /// An alarm that tells the poll.
    #[must_use]
    pub fn new(registry: &Registry, token: Token) -> Self {
        Self {
            timer: Self::timer(registry, token).ok(),
            set: None,
        }
    }

    fn timer(registry: &Registry, token: Token) -> io::Result<OwnedFd> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Each time it fires is a new edge: it need not be read.
        registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
        Ok(timer)
    }

    /// How long the poll may wait, so that it returns when `due`: for ever, if the alarm sees to it.
    pub fn wait(&mut self, due: Option<Tick>, now: Tick) -> Option<Duration> {
        let due = due?;
        // One that has fired is set no more.
        if self.timer.is_some() && self.set.is_some_and(|set| now < set && set <= due) {
            return None;
        }
        let wait = due.since(now);
        if wait.is_zero() || self.set_to(due).is_err() {
            // The poll counts milliseconds in an int.
            return Some(wait.min(DAY));
        }
        self.set = Some(due);
        None
    }

    /// To a time and not to a span: `now` may be long past, where another loop asks.
    fn set_to(&self, due: Tick) -> io::Result<()> {
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
    use crate::system::clock;
    use mio::{Events, Poll};

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn the_poll_returns_when_it_is_due_and_not_later_for_a_later_wish() {
        let mut poll = Poll::new().unwrap();
        let mut events = Events::with_capacity(4);
        let mut alarm = Alarm::new(poll.registry(), Token(7));
        for _ in 0..2 {
            let now = clock::now();
            assert_eq!(alarm.wait(Some(now + 30 * MILLISECOND), now), None);
            assert_eq!(alarm.wait(Some(now + 90 * MILLISECOND), now), None);
            assert_eq!(alarm.wait(None, now), None);
            poll.poll(&mut events, Some(Duration::from_secs(10)))
                .unwrap();
            let took = clock::now().since(now);
            assert!(took >= 29 * MILLISECOND, "{took:?}");
            assert_eq!(events.iter().next().unwrap().token(), Token(7));
        }
    }

    #[test]
    fn what_is_due_already_is_not_waited_for_and_without_a_timer_the_poll_waits() {
        let now = clock::now();
        let mut alarm = Alarm {
            timer: None,
            set: None,
        };
        assert_eq!(alarm.wait(Some(now), now), Some(Duration::ZERO));
        assert_eq!(alarm.wait(Some(now + MILLISECOND), now), Some(MILLISECOND));
    }
}
