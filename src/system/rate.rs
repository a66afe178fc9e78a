//! What strangers can repeat is not told each time: sums instead of floods.
//!
//! [`Fold`] tells so many ended connections a second one by one and the rest as one summary with
//! exact counts.  [`Gate`] lets one event of a kind through a second, with the number that it
//! stands for.

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

/// One event a second.
#[derive(Debug, Default)]
pub struct Gate {
    passed: Option<Tick>,
    held: u64,
}

impl Gate {
    /// For how many occurrences an event may be told now, this one included, if at all.
    pub fn pass(&mut self, now: Tick) -> Option<u64> {
        self.held += 1;
        if self.passed.is_some_and(|passed| now < passed + SECOND) {
            return None;
        }
        self.passed = Some(now);
        Some(std::mem::take(&mut self.held))
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
    fn a_gate_lets_one_a_second_through_and_counts_the_rest() {
        let start = Tick::new(1 << 60);
        let mut gate = Gate::default();
        let passed =
            [0, 1, 999, 1000, 1001, 3000].map(|ms| gate.pass(start + Duration::from_millis(ms)));
        assert_eq!(passed, [Some(1), None, None, Some(3), None, Some(2)]);
    }
}
