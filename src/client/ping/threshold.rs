//! `--fail-if`: a figure, how it compares, and a value, as in `p99>20ms` or `missing>0.1%`.
//!
//! A figure that the sample does not carry is no pass: nothing is known of it.

use std::fmt;
use std::str::FromStr;

use super::summary::{Judgement, Summary, Times, micros};
use crate::client::outcome::Class;
use crate::client::statistics::Percentile;
use crate::config::units::{Span, Unit};

/// Figures that are times without a distribution.
const TIMES: [&str; 5] = [
    "connect",
    "first-echo",
    "variation",
    "late-by",
    "lost-contact",
];

/// Figures that are counts; a percentage is one of the messages sent.
const COUNTS: [&str; 7] = [
    "missing",
    "late",
    "wrong",
    "skipped",
    "pauses",
    "reconnects",
    "sent-again",
];

/// Distributions, of which each figure may be named: `p99` is one of `rtt`.
const DISTRIBUTIONS: [&str; 3] = ["rtt", "wait", "host"];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    /// In microseconds.
    Time(f64),
    Count(f64),
    /// Of the messages sent.
    Percent(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Above,
    AtLeast,
    Below,
    AtMost,
}

/// What must not be.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    text: String,
    figure: String,
    comparison: Comparison,
    value: Value,
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let distributed = Times::default().named().map(|(name, _)| name);
        let refused = |why: String| {
            Err(format!(
                "{why}; write a figure, one of > >= < <=, and a value, as in p99>20ms, wait.max>=1s \
                 or missing>0.1%; figures: {} (of {}., where none is written of {}.), {}, {}",
                distributed.join(", "),
                DISTRIBUTIONS.join("., "),
                DISTRIBUTIONS[0],
                TIMES.join(", "),
                COUNTS.join(", ")
            ))
        };
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let Some(at) = compact.find(['<', '>']) else {
            return refused(format!("{text:?} does not compare"));
        };
        let (figure, rest) = compact.split_at(at);
        let (comparison, value) = if let Some(value) = rest.strip_prefix(">=") {
            (Comparison::AtLeast, value)
        } else if let Some(value) = rest.strip_prefix('>') {
            (Comparison::Above, value)
        } else if let Some(value) = rest.strip_prefix("<=") {
            (Comparison::AtMost, value)
        } else {
            (Comparison::Below, &rest[1..])
        };
        let is_count = COUNTS.contains(&figure);
        let figure = match figure.split_once('.') {
            // The dot of p99.9 is none between two names.
            _ if distributed.contains(&figure) => format!("{}.{figure}", DISTRIBUTIONS[0]),
            _ if is_count || TIMES.contains(&figure) => figure.to_owned(),
            Some((of, name)) if DISTRIBUTIONS.contains(&of) && distributed.contains(&name) => {
                figure.to_owned()
            }
            _ => return refused(format!("{figure:?} is no figure")),
        };
        let number = |text: &str| {
            text.parse::<f64>()
                .ok()
                .filter(|n| n.is_finite() && *n >= 0.0)
        };
        let value = match (is_count, value.strip_suffix('%')) {
            (true, Some(percent)) => number(percent).map(Value::Percent),
            (true, None) => number(value).map(Value::Count),
            (false, _) => Span::from_text(value)
                .ok()
                .map(|Span(span)| Value::Time(micros(span))),
        };
        let Some(value) = value else {
            let expected = match is_count {
                true => "a number or a percentage of the messages sent, such as 0 or 0.1%",
                false => "a span of time with its unit, such as 20ms",
            };
            return refused(format!("the value of {text:?} is not {expected}"));
        };
        Ok(Self {
            text: text.to_owned(),
            figure,
            comparison,
            value,
        })
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Threshold {
    /// Judges a summary.
    #[must_use]
    pub fn judge(&self, summary: &Summary) -> Judgement {
        let found = self.figure(summary);
        let limit = match self.value {
            Value::Time(value) | Value::Count(value) => value,
            #[expect(clippy::cast_precision_loss, reason = "a share is no exact number")]
            Value::Percent(percent) => percent / 100.0 * summary.sent as f64,
        };
        let is = |found: f64| match self.comparison {
            Comparison::Above => found > limit,
            Comparison::AtLeast => found >= limit,
            Comparison::Below => found < limit,
            Comparison::AtMost => found <= limit,
        };
        let name = self.figure.strip_prefix("rtt.").unwrap_or(&self.figure);
        let text = match (found, self.value) {
            (Some(found), Value::Time(_)) => format!("{name} is {}", millis(found)),
            (Some(found), _) => format!("{name} is {found} of {} sent", summary.sent),
            (None, _) => self.unknown(summary),
        };
        Judgement {
            fail_if: self.text.clone(),
            missed: found.is_none_or(is),
            found,
            text,
        }
    }

    fn figure(&self, summary: &Summary) -> Option<f64> {
        if let Some((family, name)) = self.figure.split_once('.') {
            let times = match family {
                "wait" => &summary.wait_us,
                "host" => &summary.kernel.host_us,
                _ => &summary.rtt_us,
            };
            let mut named = times.named().into_iter();
            return named.find(|(known, _)| *known == name)?.1;
        }
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
        let count = |count: u64| Some(count as f64);
        match self.figure.as_str() {
            "connect" => summary.connect_us,
            "first-echo" => summary.first_echo_us,
            "variation" => summary.variation_us.smoothed,
            "late-by" => summary.schedule.worst_late_us,
            "lost-contact" => Some(
                summary
                    .lost_contact
                    .as_ref()
                    .map_or(0.0, |lost| lost.longest_us),
            ),
            "missing" => count(summary.missing),
            "late" => count(summary.late),
            "wrong" => count(summary.wrong),
            "skipped" => count(summary.schedule.skipped),
            "pauses" => count(summary.pauses),
            "reconnects" => count(summary.reconnects),
            _ => summary.kernel.sent_again.and_then(count),
        }
    }

    fn unknown(&self, summary: &Summary) -> String {
        let name = self.figure.split_once('.').map_or("", |(_, name)| name);
        let known = Percentile::ALL
            .into_iter()
            .find(|percentile| percentile.name == name);
        match known.filter(|percentile| summary.received < percentile.needs()) {
            Some(percentile) => format!(
                "{name} needs {} echoes and there are {}",
                percentile.needs(),
                summary.received
            ),
            None => format!("{} is not known", self.figure),
        }
    }
}

impl Summary {
    /// Judges it; a threshold that was missed is what was found where all else is fine.
    pub fn apply(&mut self, thresholds: &[Threshold]) {
        self.thresholds = thresholds
            .iter()
            .map(|threshold| threshold.judge(self))
            .collect();
        let missed = self.thresholds.iter().find(|judged| judged.missed);
        if let (Class::Ok, Some(missed)) = (self.class(), missed) {
            self.error = format!("{}: {}", missed.fail_if, missed.text);
            self.set_class(Class::Missed);
        }
    }
}

/// A time as it is printed.
#[must_use]
pub fn millis(micros: f64) -> String {
    match micros {
        _ if micros < 1000.0 => format!("{micros:.1} us"),
        _ if micros < 10_000_000.0 => format!("{:.2} ms", micros / 1e3),
        _ => format!("{:.1} s", micros / 1e6),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        let mut summary = Summary {
            sent: 1000,
            received: 998,
            missing: 2,
            connect_us: Some(900.0),
            ..Summary::default()
        };
        summary.rtt_us.p99 = Some(20_000.0);
        summary.rtt_us.max = Some(30_000.0);
        summary.wait_us.p50 = Some(1.0);
        summary.set_class(Class::Ok);
        summary
    }

    fn judged(text: &str) -> Judgement {
        text.parse::<Threshold>().unwrap().judge(&summary())
    }

    #[test]
    fn figures_are_compared() {
        for (text, missed) in [
            ("p99>20ms", false),
            ("p99>=20ms", true),
            ("p99 > 19.9ms", true),
            ("rtt.max>25ms", true),
            ("max<31ms", true),
            ("max<=29ms", false),
            ("wait.p50>1ms", false),
            ("connect>1ms", false),
            ("connect>899us", true),
            ("missing>0", true),
            ("missing>0.2%", false),
            ("missing>=0.2%", true),
            ("wrong>0", false),
            ("lost-contact>0s", false),
        ] {
            assert_eq!(judged(text).missed, missed, "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_no_pass() {
        let judgement = judged("p99.9>1h");
        assert!(judgement.missed);
        assert_eq!(judgement.found, None);
        assert!(
            judgement
                .text
                .contains("needs 2995 echoes and there are 998"),
            "{judgement:?}"
        );
        assert!(judged("host.p50>1h").missed);
        assert!(judged("sent-again>1000000").missed);
    }

    #[test]
    fn a_missed_threshold_is_found_only_where_all_else_is_fine() {
        let missed = ["p99>1ms".parse::<Threshold>().unwrap()];
        let mut fine = summary();
        fine.apply(&missed);
        assert_eq!(fine.class(), Class::Missed);
        let mut reset = summary();
        reset.set_class(Class::Reset);
        reset.apply(&missed);
        assert_eq!(reset.class(), Class::Reset);
        let mut held = summary();
        held.apply(&["p99>1s".parse().unwrap()]);
        assert_eq!((held.class(), held.thresholds.len()), (Class::Ok, 1));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_reason() {
        for (text, why) in [
            ("p99", "does not compare"),
            ("p98>1ms", "is no figure"),
            ("rtt.p98>1ms", "is no figure"),
            ("rtt.>1ms", "is no figure"),
            ("rttx.p99>1ms", "is no figure"),
            ("rtt.p99.9.9>1ms", "is no figure"),
            ("wire.p99>1ms", "is no figure"),
            (
                "p98>1ms",
                "p99.9, p99.99, max (of rtt., wait., host., where",
            ),
            ("p99>20", "with its unit"),
            ("p99>1%", "with its unit"),
            ("missing>1ms", "a number or a percentage"),
            ("missing>-1", "a number or a percentage"),
            (">1ms", "is no figure"),
        ] {
            let error = text.parse::<Threshold>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
