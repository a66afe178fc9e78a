//! What strangers can repeat is not told each time: sums instead of floods.
//!
//! [`Fold`] tells so many ended connections a second one by one and the rest as one summary with
//! exact counts.  `Floods` logs one event of a kind a second, with the number that it stands
//! for.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use super::events::Event;
use crate::echo::reason::{Reason, Summary};
use crate::echo::tick::Tick;

const SECOND: Duration = Duration::from_secs(1);

/// Ended connections within the current second.
#[derive(Debug)]
pub struct Fold {
    rate: u32,
    since: Option<Tick>,
    single: u32,
    reasons: [u64; Reason::KINDS.len()],
    received: u64,
    sent: u64,
}

impl Fold {
    /// A fold that tells `rate` ends a second one by one.
    #[must_use]
    pub fn new(rate: u32) -> Self {
        Self {
            rate,
            since: None,
            single: 0,
            reasons: Default::default(),
            received: 0,
            sent: 0,
        }
    }

    /// Changes the rate.
    pub fn set_rate(&mut self, rate: u32) {
        self.rate = rate;
    }

    /// Whether this end is told by itself; if not, it is in the next summary.
    pub fn admit(&mut self, summary: &Summary, now: Tick) -> bool {
        if self
            .since
            .is_none_or(|since| since + SECOND <= now && self.folded() == 0)
        {
            self.since = Some(now);
            self.single = 0;
        }
        if self.single < self.rate && self.folded() == 0 {
            self.single += 1;
            return true;
        }
        self.reasons[summary.reason.kind()] += 1;
        self.received += summary.received;
        self.sent += summary.sent;
        false
    }

    /// The summary, when it is due; `last`: whatever is left.
    pub fn flush(&mut self, now: Tick, last: bool) -> Option<Event> {
        if !last && self.next_due().is_none_or(|due| now < due) || self.folded() == 0 {
            return None;
        }
        let reasons = std::mem::take(&mut self.reasons);
        self.since = None;
        Some(Event::Folded {
            reasons: Reason::KINDS
                .into_iter()
                .zip(reasons)
                .filter(|(_, count)| *count > 0)
                .collect(),
            received: std::mem::take(&mut self.received),
            sent: std::mem::take(&mut self.sent),
        })
    }

    /// When [`Fold::flush`] has to be called next.
    #[must_use]
    pub fn next_due(&self) -> Option<Tick> {
        self.since
            .filter(|_| self.folded() > 0)
            .map(|since| since + SECOND)
    }

    fn folded(&self) -> u64 {
        self.reasons.iter().sum()
    }
}

/// What can happen often; each kind is limited by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Flood {
    /// Connections that were closed at once, as their source has as many as it may.
    Refused,
    /// Pauses of a listener, by its number.
    Paused(usize),
    /// Ends of such pauses.
    Resumed(usize),
    /// Connections of a listener that were lost before they began.
    Lost(usize),
    /// An option that the kernel refuses for the connections of a listener.
    Option(usize, &'static str),
    /// Connections that cannot be preserved.
    NotPreserved,
}

/// One event a second of each kind: the first one at once, those that follow within a second as
/// one when it is over.  The counts of these events add up to what has happened.
#[derive(Debug, Default)]
pub(crate) struct Floods(BTreeMap<Flood, Gate>);

#[derive(Debug)]
struct Gate {
    since: Tick,
    /// Occurrences that no event has counted yet, and the event for the last of them.
    held: Option<(u64, Event)>,
}

impl Floods {
    /// Takes one occurrence; returns the event that is to be logged now, if any.
    pub(crate) fn pass(&mut self, flood: Flood, event: Event, now: Tick) -> Option<Event> {
        let Entry::Occupied(mut entry) = self.0.entry(flood) else {
            self.0.insert(
                flood,
                Gate {
                    since: now,
                    held: None,
                },
            );
            return Some(event.counting(1));
        };
        let gate = entry.get_mut();
        let count = 1 + gate.held.take().map_or(0, |(count, _)| count);
        if now < gate.since + SECOND {
            gate.held = Some((count, event));
            return None;
        }
        gate.since = now;
        Some(event.counting(count))
    }

    /// Drops what is held of a kind, as something else has made it untrue.
    pub(crate) fn forget(&mut self, flood: Flood) {
        if let Some(gate) = self.0.get_mut(&flood) {
            gate.held = None;
        }
    }

    /// The events whose second is over; `last`: all that are held.
    pub(crate) fn flush(&mut self, now: Tick, last: bool) -> Vec<Event> {
        let mut events = Vec::new();
        self.0.retain(|_, gate| {
            let over = gate.since + SECOND <= now;
            if let Some((count, event)) = gate.held.take_if(|_| over || last) {
                gate.since = now;
                events.push(event.counting(count));
                return true;
            }
            !over
        });
        events
    }

    /// When [`Floods::flush`] has to be called next.
    pub(crate) fn next_due(&self) -> Option<Tick> {
        let held = self.0.values().filter(|gate| gate.held.is_some());
        held.map(|gate| gate.since + SECOND).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(reason: Reason) -> Summary {
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
        let start = Tick::new(1 << 60);
        let at = |millis| start + Duration::from_millis(millis);
        let mut fold = Fold::new(2);
        let told = [0, 10, 20, 30].map(|millis| fold.admit(&ended(Reason::PeerDone), at(millis)));
        assert_eq!(told, [true, true, false, false]);
        assert!(!fold.admit(&ended(Reason::Reset), at(40)));
        assert_eq!(fold.next_due(), Some(at(1000)));
        assert!(fold.flush(at(999), false).is_none());
        let Some(Event::Folded {
            reasons,
            received,
            sent,
        }) = fold.flush(at(1000), false)
        else {
            panic!("no summary")
        };
        assert_eq!(
            (reasons, received, sent),
            (vec![("peer-done", 2), ("reset", 1)], 9, 6)
        );
        assert_eq!(fold.next_due(), None);
        assert!(fold.admit(&ended(Reason::PeerDone), at(1001)));
        assert!(fold.flush(at(9000), false).is_none());
    }

    #[test]
    fn a_rate_of_zero_folds_everything_and_a_slow_trickle_folds_nothing() {
        let start = Tick::new(1 << 60);
        let mut none = Fold::new(0);
        assert!(!none.admit(&ended(Reason::Left), start));
        assert!(none.flush(start, true).is_some());
        let mut one = Fold::new(1);
        for second in 0..5 {
            assert!(one.admit(&ended(Reason::Left), start + SECOND * second));
        }
    }

    #[test]
    fn one_a_second_passes_and_the_rest_follows_when_it_is_over() {
        let start = Tick::new(1 << 60);
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
        let mut floods = Floods::default();
        let mut pass = |listener, name, millis| {
            let event = floods.pass(Flood::Lost(listener), lost(name), at(millis));
            count(event)
        };
        assert_eq!([0, 1, 999].map(|millis| pass(0, "a", millis)), [1, 0, 0]);
        assert_eq!(pass(1, "b", 500), 1, "a listener of its own");
        assert_eq!(floods.next_due(), Some(at(1000)));
        assert!(floods.flush(at(999), false).is_empty());
        let mut tail = floods.flush(at(1000), false);
        assert_eq!(count(tail.pop()), 2);
        assert!(tail.is_empty());
        // That was an event, too: the next second has begun.
        assert_eq!(count(floods.pass(Flood::Lost(0), lost("a"), at(1500))), 0);
        assert_eq!(count(floods.flush(at(1600), true).pop()), 1);
        assert_eq!(floods.next_due(), None);
        assert!(floods.flush(at(9000), false).is_empty());
        assert!(
            floods.0.is_empty(),
            "a listener that is quiet takes no memory"
        );
    }
}
