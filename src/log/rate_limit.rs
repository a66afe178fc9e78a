//! Events that any client can cause again and again are logged as sums, so that they cannot flood
//! the log.
//!
//! [`CloseSummary`] lets the ends of so many connections a second be logged one by one, and sums the
//! others up with exact counts.  [`RateLimits`] lets one event of a kind pass in a second, with the
//! number of occurrences that it stands for.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use super::events::Event;
use crate::echo::counters::Counters;
use crate::echo::end_reason::Summary;
use crate::echo::time::MonoTime;

const SECOND: Duration = Duration::from_secs(1);

/// Ended connections within the current second.
#[derive(Debug)]
pub(crate) struct CloseSummary {
    rate: u32,
    since: Option<MonoTime>,
    single: u32,
    /// The ends that are not logged one by one.
    folded: Counters,
}

impl CloseSummary {
    /// Lets `rate` ends a second be logged one by one.
    #[must_use]
    pub(crate) fn new(rate: u32) -> Self {
        Self {
            rate,
            since: None,
            single: 0,
            folded: Counters::default(),
        }
    }

    /// Changes the rate, in ends a second.
    pub(crate) fn set_rate(&mut self, rate: u32) {
        self.rate = rate;
    }

    /// Whether this end is to be logged by itself; if not, the next summary counts it.
    pub(crate) fn admit(&mut self, summary: &Summary, now: MonoTime) -> bool {
        if self
            .since
            .is_none_or(|since| since + SECOND <= now && self.folded.closed() == 0)
        {
            self.since = Some(now);
            self.single = 0;
        }
        if self.single < self.rate && self.folded.closed() == 0 {
            self.single += 1;
            return true;
        }
        self.folded.close(summary);
        self.folded.received += summary.received;
        self.folded.sent += summary.sent;
        false
    }

    /// The summary, if it is due; with `last`, also before.
    pub(crate) fn flush(&mut self, now: MonoTime, last: bool) -> Option<Event> {
        if !last && self.next_due().is_none_or(|due| now < due) || self.folded.closed() == 0 {
            return None;
        }
        self.since = None;
        let folded = std::mem::take(&mut self.folded);
        Some(Event::ClosedMany {
            reasons: folded.by_reason().filter(|(_, count)| *count > 0).collect(),
            received: folded.received,
            sent: folded.sent,
        })
    }

    /// When [`CloseSummary::flush`] has to be called next.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<MonoTime> {
        self.since
            .filter(|_| self.folded.closed() > 0)
            .map(|since| since + SECOND)
    }
}

/// What can happen often; each kind, and each listener, is limited by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Limited {
    /// Connections that were closed at once (`limits.max-connections-per-source`).
    Refused,
    /// Pauses of a listener, by its number.
    Paused(usize),
    /// Ends of such pauses.
    Resumed(usize),
    /// Connections of a listener that could not be accepted.
    Lost(usize),
    /// An option that the kernel refuses for the connections of a listener.
    Option(usize, &'static str),
    /// Connections that cannot be preserved.
    NotPreserved,
}

/// One event a second of each kind: the first one at once, those that follow within a second as
/// one when it is over.  The counts of these events add up to what has happened.
#[derive(Debug, Default)]
pub(crate) struct RateLimits(BTreeMap<Limited, RateLimit>);

#[derive(Debug)]
struct RateLimit {
    since: MonoTime,
    /// Occurrences that no event has counted yet, and the event for the last of them.
    held: Option<(u64, Event)>,
}

impl RateLimits {
    /// Takes one occurrence; returns the event that is to be logged now, if any.
    pub(crate) fn pass(&mut self, kind: Limited, event: Event, now: MonoTime) -> Option<Event> {
        let Entry::Occupied(mut entry) = self.0.entry(kind) else {
            self.0.insert(
                kind,
                RateLimit {
                    since: now,
                    held: None,
                },
            );
            return Some(event.counting(1));
        };
        let limit = entry.get_mut();
        let count = 1 + limit.held.take().map_or(0, |(count, _)| count);
        if now < limit.since + SECOND {
            limit.held = Some((count, event));
            return None;
        }
        limit.since = now;
        Some(event.counting(count))
    }

    /// Drops what is held of a kind, as something else has made it untrue.
    pub(crate) fn forget(&mut self, kind: Limited) {
        if let Some(limit) = self.0.get_mut(&kind) {
            limit.held = None;
        }
    }

    /// The events whose second is over; `last`: all that are held.
    pub(crate) fn flush(&mut self, now: MonoTime, last: bool) -> Vec<Event> {
        let mut events = Vec::new();
        self.0.retain(|_, limit| {
            let over = limit.since + SECOND <= now;
            if let Some((count, event)) = limit.held.take_if(|_| over || last) {
                limit.since = now;
                events.push(event.counting(count));
                return true;
            }
            !over
        });
        events
    }

    /// When [`RateLimits::flush`] has to be called next.
    pub(crate) fn next_due(&self) -> Option<MonoTime> {
        let held = self.0.values().filter(|limit| limit.held.is_some());
        held.map(|limit| limit.since + SECOND).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::echo::end_reason::EndReason;

    fn ended(reason: EndReason) -> Summary {
        Summary {
            reason,
            received: 3,
            sent: 2,
            owed: 1,
            duration: SECOND,
        }
    }

    #[test]
    fn above_the_rate_ends_are_summed_exactly() {
        let start = MonoTime::new(1 << 60);
        let at = |millis| start + Duration::from_millis(millis);
        let mut close_summary = CloseSummary::new(2);
        let admitted = [0, 10, 20, 30]
            .map(|millis| close_summary.admit(&ended(EndReason::PeerClosed), at(millis)));
        assert_eq!(admitted, [true, true, false, false]);
        assert!(!close_summary.admit(&ended(EndReason::Reset), at(40)));
        assert_eq!(close_summary.next_due(), Some(at(1000)));
        assert!(close_summary.flush(at(999), false).is_none());
        let Some(Event::ClosedMany {
            reasons,
            received,
            sent,
        }) = close_summary.flush(at(1000), false)
        else {
            panic!("no summary")
        };
        assert_eq!(
            (reasons, received, sent),
            (vec![("peer-closed", 2), ("reset", 1)], 9, 6)
        );
        assert_eq!(close_summary.next_due(), None);
        assert!(close_summary.admit(&ended(EndReason::PeerClosed), at(1001)));
        assert!(close_summary.flush(at(9000), false).is_none());
    }

    #[test]
    fn a_rate_of_zero_folds_everything_and_a_slow_trickle_folds_nothing() {
        let start = MonoTime::new(1 << 60);
        let mut none = CloseSummary::new(0);
        assert!(!none.admit(&ended(EndReason::Shutdown), start));
        assert!(none.flush(start, true).is_some());
        let mut one = CloseSummary::new(1);
        for second in 0..5 {
            assert!(one.admit(&ended(EndReason::Shutdown), start + SECOND * second));
        }
    }

    #[test]
    fn one_a_second_passes_and_the_rest_follows_when_it_is_over() {
        let start = MonoTime::new(1 << 60);
        let at = |millis| start + Duration::from_millis(millis);
        let lost = |listener: &str| Event::AcceptFailed {
            listener: listener.into(),
            errno: 1,
            count: 0,
        };
        let count = |event: Option<Event>| match event {
            Some(Event::AcceptFailed { count, .. }) => count,
            None => 0,
            event => panic!("{event:?}"),
        };
        let mut rate_limits = RateLimits::default();
        let mut pass = |listener, name, millis| {
            let event = rate_limits.pass(Limited::Lost(listener), lost(name), at(millis));
            count(event)
        };
        assert_eq!([0, 1, 999].map(|millis| pass(0, "a", millis)), [1, 0, 0]);
        assert_eq!(pass(1, "b", 500), 1, "a listener of its own");
        assert_eq!(rate_limits.next_due(), Some(at(1000)));
        assert!(rate_limits.flush(at(999), false).is_empty());
        let mut tail = rate_limits.flush(at(1000), false);
        assert_eq!(count(tail.pop()), 2);
        assert!(tail.is_empty());
        // That was an event, too: the next second has begun.
        assert_eq!(
            count(rate_limits.pass(Limited::Lost(0), lost("a"), at(1500))),
            0
        );
        assert_eq!(count(rate_limits.flush(at(1600), true).pop()), 1);
        assert_eq!(rate_limits.next_due(), None);
        assert!(rate_limits.flush(at(9000), false).is_empty());
        assert!(
            rate_limits.0.is_empty(),
            "a listener that is quiet takes no memory"
        );
    }
}
