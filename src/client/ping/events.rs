//! What was found, for programs: lines of JSON, comma-separated values, and the percentiles in the
//! text form of HdrHistogram.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::finding::Finding;
use super::report;
use super::summary::{Summary, micros};
use crate::client::statistics::Sample;
use crate::client::target::Target;

/// The first line of comma-separated values.
pub const HEADER: &str =
    "at_us,target,connection,event,seq,rtt_us,wait_us,wire_us,sent_again,class,text";

/// Steps of the percentiles in each half of what is left to 100 %, as of HdrHistogram's own tools.
const STEPS: u32 = 5;

/// An event, as one line.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    event: &'static str,
    /// Since the beginning, in microseconds.
    at_us: f64,
    target: String,
    connection: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wire_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_again: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

impl Event {
    /// What was found with a target.
    #[must_use]
    pub fn of(target: &Target, finding: &Finding, at: Duration) -> Self {
        let (event, connection) = match finding {
            Finding::Connected { number, .. } => ("connected", number),
            Finding::Failed { number, .. } => ("failed", number),
            Finding::Echo { number, .. } => ("echo", number),
            Finding::Pause { number, .. } => ("pause", number),
            Finding::Back { number, .. } => ("back", number),
            Finding::Wrong { number, .. } => ("wrong", number),
            Finding::Ended { number, .. } => ("ended", number),
            Finding::Again { number, .. } => ("contact", number),
        };
        let mut line = Self {
            event,
            at_us: micros(at),
            target: target.to_string(),
            connection: *connection,
            seq: None,
            rtt_us: None,
            wait_us: None,
            wire_us: None,
            sent_again: None,
            class: None,
            text: None,
        };
        if let Finding::Echo {
            echo, sent_again, ..
        } = finding
        {
            line.seq = Some(echo.number + 1);
            line.rtt_us = Some(micros(echo.rtt()));
            line.wait_us = Some(micros(echo.wait()));
            line.wire_us = echo.wire().map(micros);
            line.sent_again = (*sent_again > 0).then_some(*sent_again);
        } else {
            if let Finding::Pause { message, .. } = finding {
                line.seq = Some(message + 1);
            }
            let (text, class) = report::line(finding, false);
            line.text = Some(text);
            line.class = class.map(crate::client::outcome::Class::word);
        }
        line
    }

    /// As JSON.
    #[must_use]
    pub fn json(&self) -> String {
        // Only a map without text as its key could fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// As values below [`HEADER`]; what is absent is empty (RFC 4180).
    #[must_use]
    pub fn csv(&self) -> String {
        fn or_empty<T: ToString>(value: Option<T>) -> String {
            value.map_or_else(String::new, |value| value.to_string())
        }
        [
            self.at_us.to_string(),
            quoted(&self.target),
            self.connection.to_string(),
            self.event.to_owned(),
            or_empty(self.seq),
            or_empty(self.rtt_us),
            or_empty(self.wait_us),
            or_empty(self.wire_us),
            or_empty(self.sent_again),
            or_empty(self.class),
            self.text.as_deref().map_or_else(String::new, quoted),
        ]
        .join(",")
    }
}

fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

/// A summary as an event.
#[must_use]
pub fn summary(summary: &Summary) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        event: &'static str,
        #[serde(flatten)]
        summary: &'a Summary,
    }
    let line = Line {
        event: "summary",
        summary,
    };
    serde_json::to_string(&line).unwrap_or_default()
}

/// The percentiles in the text form of HdrHistogram, in milliseconds.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "the form has twelve digits")]
pub fn hdr(sample: &Sample) -> String {
    let histogram = sample.histogram();
    let millis = |nanos: f64| nanos / 1e6;
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut total = 0;
    for step in histogram.iter_quantiles(STEPS) {
        total += step.count_since_last_iteration();
        let share = step.quantile_iterated_to();
        let value = millis(step.value_iterated_to() as f64);
        let _ = match share < 1.0 {
            true => writeln!(
                text,
                "{value:>12.6} {share:>14.12} {total:>10} {:>14.2}",
                1.0 / (1.0 - share)
            ),
            false => writeln!(text, "{value:>12.6} {share:>14.12} {total:>10}"),
        };
    }
    let max = sample.max().unwrap_or_default().as_nanos() as f64;
    let _ = writeln!(
        text,
        "#[Mean    = {:>12.6}, StdDeviation   = {:>12.6}]\n\
         #[Max     = {:>12.6}, Total count    = {:>12}]\n\
         #[Buckets = {:>12}, SubBuckets     = {:>12}]",
        millis(histogram.mean()),
        millis(histogram.stdev()),
        millis(max),
        histogram.len(),
        histogram.buckets(),
        2048,
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_of_the_percentiles_is_that_of_its_tools() {
        let mut sample = Sample::new();
        for millis in 1..=1000 {
            sample.record(Duration::from_millis(millis));
        }
        let text = hdr(&sample);
        let rows: Vec<Vec<f64>> = text
            .lines()
            .filter(|line| !line.contains(['#', 'V']) && !line.is_empty())
            .map(|line| {
                line.split_whitespace()
                    .filter_map(|word| word.parse().ok())
                    .collect()
            })
            .collect();
        assert!(rows.len() > 20, "{text}");
        for row in &rows {
            // A value has as large a share of the sample below it as it says, to a thousandth.
            assert!((row[0] - row[1] * 1000.0).abs() < 2.0, "{row:?}");
        }
        assert_eq!(rows.last().map(|row| row[2]), Some(1000.0));
        assert!(text.contains("Total count    =         1000"), "{text}");
    }

    #[test]
    fn what_has_a_comma_is_quoted() {
        assert_eq!(quoted("a,b"), "\"a,b\"");
        assert_eq!(quoted("say \"a\""), "\"say \"\"a\"\"\"");
        assert_eq!(quoted("plain"), "plain");
    }
}
