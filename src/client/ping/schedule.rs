//! When messages are due.

use std::time::Duration;

use super::{Pace, Plan};

/// The messages of a session, in their order.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pace: Pace,
    count: Option<u64>,
    /// When the first message is due; `None`: not yet known.
    origin: Option<Duration>,
    /// The number of the next message.
    next: u64,
}

impl Schedule {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            pace: plan.pace,
            count: plan.count,
            origin: None,
            next: 0,
        }
    }

    /// Begins now, unless it has begun.
    pub(super) fn begin(&mut self, now: Duration) {
        self.origin.get_or_insert(now);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.origin.is_some()
    }

    /// Whether every message has been taken.
    pub(super) fn is_complete(&self) -> bool {
        self.count.is_some_and(|count| self.next >= count)
    }

    /// When the next message is due; `None` in a closed loop, and when there is none.
    pub(super) fn due(&self) -> Option<Duration> {
        match (self.pace, self.origin) {
            #[expect(clippy::cast_precision_loss, reason = "exact for a hundred days")]
            (Pace::Every(interval), Some(origin)) if !self.is_complete() => {
                Some(origin + Duration::from_secs_f64(interval.as_secs_f64() * self.next as f64))
            }
            _ => None,
        }
    }

    /// The number of the next message, which is taken.
    pub(super) fn take(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_due_at_its_time_and_the_clock_does_not_drift() {
        let plan = Plan {
            size: 1,
            count: Some(3_000_001),
            pace: Pace::Every(Duration::from_secs_f64(1.0 / 3.0)),
            deadline: None,
            timeout: Duration::from_secs(1),
            connections: 1,
            depth: 1,
            reports: false,
        };
        let mut schedule = Schedule::new(&plan);
        assert_eq!(schedule.due(), None);
        let origin = Duration::from_millis(5);
        schedule.begin(origin);
        schedule.begin(origin * 2);
        for number in 0..3_000_000 {
            assert_eq!(schedule.take(), number);
        }
        // A third of a second is 333 333 333 ns here.
        let late = schedule
            .due()
            .map(|due| due.abs_diff(origin + Duration::from_nanos(333_333_333 * 3_000_000)));
        assert!(late < Some(Duration::from_micros(1)), "{late:?}");
        schedule.take();
        assert!(schedule.is_complete());
        assert_eq!(schedule.due(), None);
        let mut closed = Schedule::new(&Plan {
            pace: Pace::Closed,
            ..plan
        });
        closed.begin(origin);
        assert_eq!(closed.due(), None);
    }
}
