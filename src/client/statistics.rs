//! What a sample of times says, and no more than it says.
//!
//! A percentile is given only where the sample carries it: where the chance that no value lies above
//! the true percentile is at most 5 %, which takes ln 0.05 / ln p values.  Values are nanoseconds,
//! kept to a thousandth in a histogram, which grows with their range and not with their number; the
//! smallest and the largest are exact.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest time that is told apart from longer ones: an hour, in nanoseconds.
const LONGEST: u64 = 3_600_000_000_000;

/// A percentile that is reported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percentile {
    /// Its name, as it is printed and as the key in JSON.
    pub name: &'static str,
    /// The share of values at or below it, between 0 and 1.
    pub share: f64,
}

impl Percentile {
    /// Those that are reported, in ascending order.
    pub const ALL: [Self; 6] = [
        Self::new("p50", 0.5),
        Self::new("p90", 0.9),
        Self::new("p95", 0.95),
        Self::new("p99", 0.99),
        Self::new("p99.9", 0.999),
        Self::new("p99.99", 0.9999),
    ];

    const fn new(name: &'static str, share: f64) -> Self {
        Self { name, share }
    }

    /// How many values a sample needs to carry it.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // At most 29 956.
    pub fn needs(self) -> u64 {
        (0.05_f64.ln() / self.share.ln()).ceil() as u64
    }
}

/// A time in nanoseconds, in which the times of an echo are kept: to calculate with [`Duration`]s takes
/// several times as many instructions.
pub(super) fn nanos(span: Duration) -> u64 {
    let whole = span.as_secs().saturating_mul(1_000_000_000);
    whole.saturating_add(u64::from(span.subsec_nanos()))
}

/// A sample of times.
#[derive(Clone, Debug)]
pub struct Sample {
    histogram: Histogram<u64>,
    least: u64,
    most: u64,
}

impl Default for Sample {
    fn default() -> Self {
        Self::new()
    }
}

impl Sample {
    /// An empty sample.
    ///
    /// # Panics
    /// Never: the precision is a constant that is allowed.
    #[must_use]
    pub fn new() -> Self {
        Self {
            histogram: Histogram::new_with_bounds(1, LONGEST, 3).expect("these bounds are allowed"),
            least: u64::MAX,
            most: 0,
        }
    }

    /// Adds a time.
    pub fn record(&mut self, time: Duration) {
        self.record_nanos(nanos(time));
    }

    /// Adds a time in nanoseconds.
    pub(super) fn record_nanos(&mut self, nanos: u64) {
        self.least = self.least.min(nanos);
        self.most = self.most.max(nanos);
        // It grows to hold what is no longer than this, so that nothing can be out of bounds.
        let _ = self.histogram.record(nanos.clamp(1, LONGEST));
    }

    /// Adds all times of another sample.
    pub fn add(&mut self, other: &Self) {
        self.least = self.least.min(other.least);
        self.most = self.most.max(other.most);
        // As above.
        let _ = self.histogram.add(&other.histogram);
    }

    /// What was added since it was as `before`; the ends are those of the histogram, to a thousandth.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut histogram = self.histogram.clone();
        // What was counted before is counted now.
        let _ = histogram.subtract(&before.histogram);
        Self {
            least: histogram.min(),
            most: histogram.max().min(self.most),
            histogram,
        }
    }

    /// How many times it has.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.histogram.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.histogram.is_empty()
    }

    /// The shortest time.
    #[must_use]
    pub fn min(&self) -> Option<Duration> {
        (!self.is_empty()).then(|| Duration::from_nanos(self.least))
    }

    /// The longest time.
    #[must_use]
    pub fn max(&self) -> Option<Duration> {
        (!self.is_empty()).then(|| Duration::from_nanos(self.most))
    }

    /// A percentile, if the sample carries it.
    #[must_use]
    pub fn percentile(&self, percentile: Percentile) -> Option<Duration> {
        (self.len() >= percentile.needs()).then(|| self.at(percentile.share))
    }

    /// The time that so large a share of a sample is at or below, whether the sample carries it or
    /// not; zero for an empty one.
    #[must_use]
    pub fn at(&self, share: f64) -> Duration {
        let nanos = self.histogram.value_at_quantile(share);
        // The value stands for a range, which may reach beyond what was seen.
        Duration::from_nanos(nanos.clamp(self.least.min(self.most), self.most))
    }

    /// The histogram, in nanoseconds.
    #[must_use]
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }
}

/// How much successive times differ, in three ways.
#[derive(Clone, Debug, Default)]
pub struct Variation {
    /// The difference of each time from the one before, without its sign (the idea of RFC 3393).
    pub successive: Sample,
    /// In nanoseconds.
    smoothed: Option<f64>,
}

impl Variation {
    /// Adds a time and the one before it on the same connection, in nanoseconds.
    pub(super) fn record_nanos(&mut self, before: u64, time: u64) {
        let difference = time.abs_diff(before);
        self.successive.record_nanos(difference);
        let smoothed = self.smoothed.unwrap_or(0.0);
        self.smoothed = Some(smoothed + (difference as f64 - smoothed) / 16.0);
    }

    /// J += (|D| - J) / 16 (RFC 3550, section 6.4.1); `None` before the second time.
    #[must_use]
    pub fn smoothed(&self) -> Option<Duration> {
        self.smoothed
            .map(|nanos| Duration::from_secs_f64(nanos / 1e9))
    }

    /// p95 - p50 of the times themselves, where their sample carries both.
    #[must_use]
    pub fn spread(sample: &Sample) -> Option<Duration> {
        let [p50, _, p95, ..] = Percentile::ALL;
        Some(
            sample
                .percentile(p95)?
                .saturating_sub(sample.percentile(p50)?),
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    fn sample(micros: impl IntoIterator<Item = u32>) -> Sample {
        let mut sample = Sample::new();
        for micros in micros {
            sample.record(MICROSECOND * micros);
        }
        sample
    }

    #[test]
    fn a_percentile_needs_so_many_values() {
        let needs: Vec<_> = Percentile::ALL.iter().map(|p| p.needs()).collect();
        assert_eq!(needs, [5, 29, 59, 299, 2995, 29_956]);
        for percentile in Percentile::ALL {
            let few = sample(1..u32::try_from(percentile.needs()).unwrap());
            assert_eq!(few.percentile(percentile), None, "{percentile:?}");
            let enough = sample(1..=u32::try_from(percentile.needs()).unwrap());
            assert!(enough.percentile(percentile).is_some(), "{percentile:?}");
        }
    }

    #[test]
    fn percentiles_are_right_to_a_thousandth_and_the_ends_exactly() {
        let sample = sample(1..=10_000);
        for percentile in &Percentile::ALL[..5] {
            let found = sample.percentile(*percentile).unwrap().as_secs_f64() * 1e6;
            let expected = percentile.share * 10_000.0;
            assert!(
                (found / expected - 1.0).abs() < 0.002,
                "{percentile:?}: {found}"
            );
        }
        assert_eq!(sample.min(), Some(MICROSECOND));
        assert_eq!(sample.max(), Some(MICROSECOND * 10_000));
        assert_eq!(sample.len(), 10_000);
    }

    #[test]
    fn nothing_is_said_of_nothing() {
        let sample = Sample::new();
        assert_eq!((sample.min(), sample.max()), (None, None));
        assert_eq!(sample.percentile(Percentile::ALL[0]), None);
        assert_eq!(sample.at(0.5), Duration::ZERO);
        assert_eq!(Variation::default().smoothed(), None);
        assert_eq!(Variation::spread(&sample), None);
    }

    #[test]
    fn what_is_longer_than_an_hour_counts_and_its_maximum_is_exact() {
        let long = Duration::from_secs(7200);
        let mut sample = Sample::new();
        for _ in 0..5 {
            sample.record(long);
        }
        assert_eq!(sample.max(), Some(long));
        assert_eq!(sample.len(), 5);
    }

    #[test]
    fn samples_add_up() {
        let mut sum = sample(1..=10);
        sum.add(&Sample::new());
        sum.add(&sample(100..=109));
        assert_eq!(
            (sum.len(), sum.min(), sum.max()),
            (20, Some(MICROSECOND), Some(MICROSECOND * 109))
        );
    }

    #[test]
    fn variation_is_that_of_neighbours() {
        let mut variation = Variation::default();
        for (before, micros) in [(100, 116), (116, 100)] {
            variation.record_nanos(before * 1000, micros * 1000);
        }
        // 16/16, then 1 + (16 - 1)/16.
        let smoothed = variation.smoothed().unwrap().as_secs_f64() * 1e6;
        assert!((smoothed - 1.9375).abs() < 0.01, "{smoothed}");
        assert_eq!(variation.successive.len(), 2);
        assert_eq!(variation.successive.max(), Some(MICROSECOND * 16));
        let sample = sample(1..=100);
        let spread = Variation::spread(&sample).unwrap();
        assert!((44..=46).contains(&spread.as_micros()), "{spread:?}");
    }
}
