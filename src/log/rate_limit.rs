//! Events that any client can cause again and again are logged as sums, so that they cannot flood
//! the log.
//!
//! [`CloseSummary`] lets the ends of so many connections a second be logged one by one, and sums the
//! others up with exact counts; connections without a byte, as health checks and scans make them, by
//! source ([`Empty`]).  [`RateLimits`] lets one event of a kind pass in a second, with the
//! number of occurrences that it stands for.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::time::Duration;

use super::events::Event;
use crate::echo::counters::Counters;
use crate::echo::end_reason::{EndReason, Summary};
use crate::echo::time::{MonoTime, earliest};

const SECOND: Duration = Duration::from_secs(1);

/// How long connections without a byte are summed up.
const MINUTE: Duration = Duration::from_secs(60);

/// The sources that are counted one by one; what a scan from more of them does is counted together.
const SOURCES: usize = 32;

/// Ended connections within the current second.
#[derive(Debug)]
pub(crate) struct CloseSummary {
    rate: u32,
    since: Option<MonoTime>,
    single: u32,
    /// The ends that are not logged one by one.
    folded: Counters,
    empty: Empty,
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
            empty: Empty::default(),
        }
    }

    /// Changes the rate, in ends a second.
    pub(crate) fn set_rate(&mut self, rate: u32) {
        self.rate = rate;
    }

    /// Whether this end is to be logged by itself; if not, the next summary counts it.  `source`: the
    /// address of the peer; `None` for a Unix stream.
    pub(crate) fn admit(
        &mut self,
        summary: &Summary,
        source: Option<IpAddr>,
        now: MonoTime,
    ) -> bool {
        let by_peer = matches!(summary.reason, EndReason::PeerClosed | EndReason::Reset);
        let empty = by_peer && summary.received == 0 && summary.sent == 0;
        if empty && self.empty.folds(summary, source, now) {
            return false;
        }
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

    /// The summaries that are due; with `last`, also before.
    pub(crate) fn flush(
        &mut self,
        now: MonoTime,
        last: bool,
    ) -> impl Iterator<Item = Event> + use<> {
        let many = self.flush_many(now, last);
        many.into_iter().chain(self.empty.flush(now, last))
    }

    fn flush_many(&mut self, now: MonoTime, last: bool) -> Option<Event> {
        if !last && self.many_due().is_none_or(|due| now < due) || self.folded.closed() == 0 {
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

    fn many_due(&self) -> Option<MonoTime> {
        self.since
            .filter(|_| self.folded.closed() > 0)
            .map(|since| since + SECOND)
    }

    /// When [`CloseSummary::flush`] has to be called next.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<MonoTime> {
        earliest([
            self.many_due(),
            self.empty.since.map(|since| since + MINUTE),
        ])
    }
}

/// Connections that their peers have ended without a byte: of each source the first is logged, and those that follow are
/// summed up once a minute, for as long as there are some in each minute.
#[derive(Debug, Default)]
struct Empty {
    /// When the minute began; `None`: no source is known.
    since: Option<MonoTime>,
    /// How many ends of each source are not logged yet, [`SOURCES`] of them at most.
    sources: Vec<(Option<IpAddr>, u64)>,
    /// The ends of further sources.
    others: u64,
    /// All of them.
    folded: Counters,
}

impl Empty {
    /// Whether the next summary counts this end.
    fn folds(&mut self, summary: &Summary, source: Option<IpAddr>, now: MonoTime) -> bool {
        self.since.get_or_insert(now);
        let full = self.sources.len() == SOURCES;
        match self.sources.iter_mut().find(|(known, _)| *known == source) {
            Some((_, count)) => *count += 1,
            None if full => self.others += 1,
            None => {
                self.sources.push((source, 0));
                return false;
            }
        }
        self.folded.close(summary);
        true
    }

    fn flush(&mut self, now: MonoTime, last: bool) -> Option<Event> {
        if !last && self.since.is_none_or(|since| now < since + MINUTE) {
            return None;
        }
        self.sources.retain(|(_, count)| *count > 0);
        let sources = self.sources.clone();
        self.sources.iter_mut().for_each(|(_, count)| *count = 0);
        self.since = (!sources.is_empty()).then_some(now);
        let folded = std::mem::take(&mut self.folded);
        let others = std::mem::take(&mut self.others);
        (folded.closed() > 0).then(|| Event::ClosedEmpty {
            reasons: folded.by_reason().filter(|(_, count)| *count > 0).collect(),
            sources,
            others,
        })
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
            .map(|millis| close_summary.admit(&ended(EndReason::PeerClosed), None, at(millis)));
        assert_eq!(admitted, [true, true, false, false]);
        assert!(!close_summary.admit(&ended(EndReason::Reset), None, at(40)));
        assert_eq!(close_summary.next_due(), Some(at(1000)));
        assert!(close_summary.flush(at(999), false).next().is_none());
        let Some(Event::ClosedMany {
            reasons,
            received,
            sent,
        }) = close_summary.flush(at(1000), false).next()
        else {
            panic!("no summary")
        };
        assert_eq!(
            (reasons, received, sent),
            (vec![("peer-closed", 2), ("reset", 1)], 9, 6)
        );
        assert_eq!(close_summary.next_due(), None);
        assert!(close_summary.admit(&ended(EndReason::PeerClosed), None, at(1001)));
        assert!(close_summary.flush(at(9000), false).next().is_none());
    }

    #[test]
    fn a_rate_of_zero_folds_everything_and_a_slow_trickle_folds_nothing() {
        let start = MonoTime::new(1 << 60);
        let mut none = CloseSummary::new(0);
        assert!(!none.admit(&ended(EndReason::Shutdown), None, start));
        assert!(none.flush(start, true).next().is_some());
        let mut one = CloseSummary::new(1);
        for second in 0..5 {
            assert!(one.admit(&ended(EndReason::Shutdown), None, start + SECOND * second));
        }
    }

    /// The sources, the others and the count of a summary of connections without a byte.
    fn empties(event: Option<Event>) -> (Vec<(Option<IpAddr>, u64)>, u64, u64) {
        match event {
            Some(Event::ClosedEmpty {
                reasons,
                sources,
                others,
            }) => (
                sources,
                others,
                reasons.iter().map(|(_, count)| count).sum(),
            ),
            event => panic!("{event:?}"),
        }
    }

    #[test]
    fn connections_without_a_byte_are_summed_up_by_source_once_a_minute() {
        let start = MonoTime::new(1 << 60);
        let at = |seconds| start + SECOND * seconds;
        let empty = Summary {
            received: 0,
            sent: 0,
            owed: 0,
            ..ended(EndReason::PeerClosed)
        };
        let check = Some(IpAddr::from([192, 0, 2, 1]));
        let mut summary = CloseSummary::new(1000);
        // A health check every two seconds: one line, and then one a minute.
        let admitted: Vec<u32> = (0..180)
            .step_by(2)
            .filter(|second| {
                let mut sums = summary.flush(at(*second), false);
                if let Some(event) = sums.next() {
                    assert!([60, 120].contains(second), "{second}");
                    let count = if *second == 60 { 29 } else { 30 };
                    assert_eq!(empties(Some(event)), (vec![(check, count)], 0, count));
                }
                summary.admit(&empty, check, at(*second))
            })
            .collect();
        assert_eq!(admitted, [0]);
        assert_eq!(summary.next_due(), Some(at(180)));
        assert_eq!(empties(summary.flush(at(180), false).next()).2, 30);
        // A quiet minute ends it.
        assert!(summary.flush(at(240), false).next().is_none());
        assert_eq!(summary.next_due(), None);
        assert!(summary.admit(&empty, check, at(241)));
        // A connection with bytes is none of these, nor is one that a limit has ended.
        assert!(summary.admit(&ended(EndReason::PeerClosed), check, at(241)));
        let reason = EndReason::IdleTimeout;
        assert!(summary.admit(&Summary { reason, ..empty }, check, at(241)));
    }

    #[test]
    fn a_scan_from_very_many_sources_takes_no_more_memory_and_is_counted_exactly() {
        let start = MonoTime::new(1 << 60);
        let empty = Summary {
            received: 0,
            sent: 0,
            owed: 0,
            ..ended(EndReason::Reset)
        };
        let mut summary = CloseSummary::new(u32::MAX);
        let sources = 100_000_u32;
        let single = (0..sources)
            .flat_map(|source| [source; 2])
            .filter(|source| summary.admit(&empty, Some(IpAddr::from(source.to_be_bytes())), start))
            .count();
        assert_eq!(single, SOURCES);
        assert!(summary.empty.sources.capacity() <= 2 * SOURCES);
        let (of_each, others, count) = empties(summary.flush(start, true).next());
        assert_eq!(of_each.len(), SOURCES);
        assert!(of_each.iter().all(|(_, count)| *count == 1));
        assert_eq!(count + single as u64, u64::from(2 * sources));
        assert_eq!(others, count - SOURCES as u64);
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
