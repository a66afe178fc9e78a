//! Round trips over time, in a bounded number of slots: when they are used up, each two become one.

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

/// Round trips over time.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// The span of a slot, in nanoseconds.
    width: u64,
    slots: Vec<Moment>,
}

impl Timeline {
    pub(super) fn new() -> Self {
        Self {
            width: FIRST,
            slots: Vec::new(),
        }
    }

    pub(super) fn echo(&mut self, at: Duration, rtt: Duration) {
        let rtt = nanos(rtt);
        let moment = self.at(at);
        moment.count += 1;
        moment.min = moment.min.min(rtt);
        moment.max = moment.max.max(rtt);
        moment.sum = moment.sum.saturating_add(rtt);
    }

    pub(super) fn missing(&mut self, at: Duration, count: u64) {
        self.at(at).missing += count;
    }

    /// The slot of a time, with the others joined until there is one.
    fn at(&mut self, at: Duration) -> &mut Moment {
        let at = nanos(at);
        while at / self.width >= SLOTS as u64 {
            self.width *= 2;
            let joined = |pair: &[Moment]| pair.iter().copied().fold(Moment::EMPTY, Moment::join);
            self.slots = self.slots.chunks(2).map(joined).collect();
        }
        #[expect(clippy::cast_possible_truncation, reason = "there are few slots")]
        let slot = (at / self.width) as usize;
        if slot >= self.slots.len() {
            self.slots.resize(slot + 1, Moment::EMPTY);
        }
        &mut self.slots[slot]
    }

    /// The slots in which something happened, with the middle of their times.
    pub fn moments(&self) -> impl Iterator<Item = (Duration, Moment)> {
        (0..)
            .map(|number: u64| Duration::from_nanos(self.width * number + self.width / 2))
            .zip(self.slots.iter().copied())
            .filter(|(_, moment)| moment.count + moment.missing > 0)
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_day_fits_and_nothing_is_lost() {
        let mut timeline = Timeline::new();
        let second = Duration::from_secs(1);
        for at in 0..86_400 {
            timeline.echo(second * at, Duration::from_millis(u64::from(at % 7 + 1)));
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
