//! Round trips over time, in a bounded number of slots: when they are used up, each two become one.

use std::ops::Range;
use std::time::Duration;

/// Slots at most.
const SLOTS: usize = 600;

/// The span of a slot at first, in nanoseconds.
const FIRST: u64 = 10_000_000;

/// The echoes that came in one slot; times in nanoseconds, for there is one for each echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// How many.
    pub count: u64,
    /// The shortest round trip; all ones where there is none.
    min: u64,
    max: u64,
    sum: u64,
    /// Echoes that were found to be missing.
    pub missing: u64,
}

impl Moment {
    const EMPTY: Self = Self {
        count: 0,
        min: u64::MAX,
        max: 0,
        sum: 0,
        missing: 0,
    };

    /// The shortest round trip.
    #[must_use]
    pub fn min(self) -> Duration {
        Duration::from_nanos(self.min)
    }

    /// The longest round trip.
    #[must_use]
    pub fn max(self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The mean; there has to be one.
    #[must_use]
    pub fn mean(self) -> Duration {
        Duration::from_nanos(self.sum / self.count.max(1))
    }

    fn join(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            sum: self.sum.saturating_add(other.sum),
            missing: self.missing + other.missing,
        }
    }
}

/// Round trips over time, from a beginning on; in nanoseconds.
#[derive(Clone, Debug)]
pub struct Timeline {
    began: u64,
    /// The span of a slot.
    width: u64,
    slots: Vec<Moment>,
    /// The slot that was used last, and its times.
    last: usize,
    span: Range<u64>,
}

impl Timeline {
    pub(super) fn new(began: u64) -> Self {
        Self {
            began,
            width: FIRST,
            slots: Vec::new(),
            last: 0,
            span: 0..0,
        }
    }

    pub(super) fn echo(&mut self, at: u64, rtt: u64) {
        let moment = self.at(at);
        moment.count += 1;
        moment.min = moment.min.min(rtt);
        moment.max = moment.max.max(rtt);
        moment.sum = moment.sum.saturating_add(rtt);
    }

    pub(super) fn missing(&mut self, at: u64, count: u64) {
        self.at(at).missing += count;
    }

    /// The slot of a time, with the others joined until there is one.
    #[inline]
    fn at(&mut self, at: u64) -> &mut Moment {
        if !self.span.contains(&at) {
            self.turn_to(at);
        }
        &mut self.slots[self.last]
    }

    #[cold]
    fn turn_to(&mut self, at: u64) {
        let since = at.saturating_sub(self.began);
        while since / self.width >= SLOTS as u64 {
            self.width *= 2;
            let joined = |pair: &[Moment]| pair.iter().copied().fold(Moment::EMPTY, Moment::join);
            self.slots = self.slots.chunks(2).map(joined).collect();
        }
        let slot = since / self.width;
        let begin = self.began + slot * self.width;
        self.span = begin..begin + self.width;
        #[expect(clippy::cast_possible_truncation, reason = "there are few slots")]
        let slot = slot as usize;
        if slot >= self.slots.len() {
            self.slots.resize(slot + 1, Moment::EMPTY);
        }
        self.last = slot;
    }

    /// The slots in which something happened, with the middle of their times.
    pub fn moments(&self) -> impl Iterator<Item = (Duration, Moment)> {
        (0..)
            .map(|number: u64| Duration::from_nanos(self.width * number + self.width / 2))
            .zip(self.slots.iter().copied())
            .filter(|(_, moment)| moment.count + moment.missing > 0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_day_fits_and_nothing_is_lost() {
        let mut timeline = Timeline::new(0);
        let second = 1_000_000_000;
        for at in 0..86_400 {
            timeline.echo(second * at, (at % 7 + 1) * 1_000_000);
        }
        timeline.missing(second * 86_400, 3);
        assert!(timeline.slots.len() <= SLOTS);
        let moments: Vec<_> = timeline.moments().collect();
        assert_eq!(
            moments.iter().map(|(_, moment)| moment.count).sum::<u64>(),
            86_400
        );
        assert_eq!(
            moments
                .iter()
                .map(|(_, moment)| moment.missing)
                .sum::<u64>(),
            3
        );
        let (first, moment) = moments[0];
        assert!(first < Duration::from_secs(200), "{first:?}");
        assert_eq!(moment.min(), Duration::from_millis(1));
        assert_eq!(moment.max(), Duration::from_millis(7));
        assert!(
            (3900..4100).contains(&moment.mean().as_micros()),
            "{moment:?}"
        );
    }
}
