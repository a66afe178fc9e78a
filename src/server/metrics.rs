//! The metrics: one table of them, and the text that a scraper reads.
//!
//! The text is OpenMetrics 1.0 or Prometheus' text format 0.0.4, as the scraper asks.  They differ in
//! little: in the older one a counter is named with its suffix where it is described, there are no
//! units, and nothing marks the end.
//!
//! A label never holds anything of a peer, so the number of series is bounded.

use std::fmt::{Display, Write};

use super::measured::Histogram;
use crate::echo::end_reason::same;

/// What the values of a family are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A number that goes up and down.
    Gauge,
    /// A number that only grows.
    Counter,
    /// Counts of values by size.
    Histogram,
    /// A constant whose labels say something.
    Info,
}

/// A family of series: a row of [`FAMILIES`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    /// Its name, without the suffix of its kind.
    pub name: &'static str,
    pub kind: Kind,
    /// Its unit, with which the name ends; empty for plain numbers.
    pub unit: &'static str,
    /// What it is, in one sentence.
    pub help: &'static str,
}

const fn row(name: &'static str, kind: Kind, unit: &'static str, help: &'static str) -> Family {
    Family {
        name,
        kind,
        unit,
        help,
    }
}

/// Every family, in the order of the text.
pub(crate) const FAMILIES: [Family; 26] = [
    row(
        "tcp_echo_build",
        Kind::Info,
        "",
        "The version of the daemon.",
    ),
    row(
        "tcp_echo_connections",
        Kind::Gauge,
        "",
        "Open connections, by worker.",
    ),
    row(
        "tcp_echo_connections_limit",
        Kind::Gauge,
        "",
        "Connections that may be open at a time (limits.max-connections).",
    ),
    row(
        "tcp_echo_connections_accepted",
        Kind::Counter,
        "",
        "Connections accepted, over all processes of the service.",
    ),
    row(
        "tcp_echo_connections_refused",
        Kind::Counter,
        "",
        "Connections closed at once (limits.max-connections-per-source), over all processes of the \
         service.",
    ),
    row(
        "tcp_echo_connections_ended",
        Kind::Counter,
        "",
        "Connections ended, by reason, over all processes of the service.",
    ),
    row(
        "tcp_echo_bytes",
        Kind::Counter,
        "bytes",
        "Bytes received and sent, over all processes of the service.",
    ),
    row(
        "tcp_echo_owed_bytes",
        Kind::Gauge,
        "bytes",
        "Bytes that open connections have received and not sent back yet.",
    ),
    row(
        "tcp_echo_listeners",
        Kind::Gauge,
        "",
        "Listeners, by state: accepting, paused or closed.",
    ),
    row(
        "tcp_echo_accept_queue",
        Kind::Gauge,
        "",
        "Connections that wait to be accepted, by listener.",
    ),
    row(
        "tcp_echo_accept_queue_limit",
        Kind::Gauge,
        "",
        "Connections that may wait to be accepted, by listener.",
    ),
    row(
        "tcp_echo_accept_queue_drops",
        Kind::Counter,
        "",
        "Packets that the kernel has dropped at a listener, as its accept queue was full.",
    ),
    row(
        "tcp_echo_connection_rtt_min_seconds",
        Kind::Histogram,
        "seconds",
        "The least round-trip time of TCP connections that have ended in this process.",
    ),
    row(
        "tcp_echo_connection_duration_seconds",
        Kind::Histogram,
        "seconds",
        "How long connections lasted that have ended in this process.",
    ),
    row(
        "tcp_echo_segments_sent",
        Kind::Counter,
        "",
        "Segments with data that TCP connections have sent that have ended in this process.",
    ),
    row(
        "tcp_echo_segments_retransmitted",
        Kind::Counter,
        "",
        "Segments that TCP connections have sent again that have ended in this process.",
    ),
    row(
        "tcp_echo_preservation",
        Kind::Gauge,
        "",
        "1 for the state of preservation: off, waiting, preserving or refused.",
    ),
    row(
        "tcp_echo_connections_preserved",
        Kind::Gauge,
        "",
        "Open connections that the next process would go on with after a crash.",
    ),
    row(
        "tcp_echo_connections_restored",
        Kind::Counter,
        "",
        "Connections of the previous process that this one goes on with.",
    ),
    row(
        "tcp_echo_preservation_failures",
        Kind::Counter,
        "",
        "Connections that could not be preserved in this process; they are tried again.",
    ),
    row(
        "tcp_echo_log_events_dropped",
        Kind::Counter,
        "",
        "Events of this process that the log could not take.",
    ),
    row(
        "tcp_echo_round_longest_seconds",
        Kind::Gauge,
        "seconds",
        "The longest round of a worker since the last scrape.",
    ),
    row(
        "tcp_echo_draining",
        Kind::Gauge,
        "",
        "1 while the service is drained, in its lame duck or stopping, and 0 otherwise.",
    ),
    row(
        "process_start_time_seconds",
        Kind::Gauge,
        "seconds",
        "When this process began, in seconds since 1970.",
    ),
    row(
        "process_cpu_seconds",
        Kind::Counter,
        "seconds",
        "Processor time that this process has used.",
    ),
    row(
        "process_resident_memory_bytes",
        Kind::Gauge,
        "bytes",
        "Memory of this process that is resident.",
    ),
];

/// The row of a name; one that the table lacks does not compile where it stands in a constant.
pub(crate) const fn family(name: &str) -> &'static Family {
    let families = const { &FAMILIES };
    let mut at = 0;
    while at < families.len() {
        if same(families[at].name, name) {
            return &families[at];
        }
        at += 1;
    }
    panic!("FAMILIES does not have this name")
}

/// The form of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format 0.0.4 of Prometheus.
    Plain,
}

impl Form {
    /// The value of `Content-Type`.
    #[must_use]
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// A label: its name and its value.
type Label<'a> = (&'static str, &'a str);

/// The text, family by family.
#[derive(Debug)]
pub(crate) struct Page {
    form: Form,
    text: String,
}

/// A family whose samples are written.
#[derive(Debug)]
pub(crate) struct Samples<'a> {
    page: &'a mut Page,
    family: &'static Family,
}

impl Page {
    /// A text without families.
    #[must_use]
    pub(crate) fn new(form: Form) -> Self {
        Self {
            form,
            text: String::with_capacity(16 * 1024),
        }
    }

    /// Begins a family.
    pub(crate) fn family(&mut self, family: &'static Family) -> Samples<'_> {
        let Family {
            name,
            kind,
            unit,
            help,
        } = *family;
        let old = self.form == Form::Plain;
        let (suffix, word) = match kind {
            Kind::Gauge => ("", "gauge"),
            Kind::Counter => ("_total", "counter"),
            Kind::Histogram => ("", "histogram"),
            Kind::Info if old => ("_info", "gauge"),
            Kind::Info => ("_info", "info"),
        };
        let suffix = if old { suffix } else { "" };
        // To write into a `String` does not fail, here and below.
        let _ = writeln!(self.text, "# HELP {name}{suffix} {help}");
        let _ = writeln!(self.text, "# TYPE {name}{suffix} {word}");
        if !old && !unit.is_empty() {
            let _ = writeln!(self.text, "# UNIT {name} {unit}");
        }
        Samples { page: self, family }
    }

    /// A family of one sample without a label.
    pub(crate) fn single(&mut self, family: &'static Family, value: impl Display) {
        self.family(family).sample(&[], value);
    }

    /// Ends the text.
    #[must_use]
    pub(crate) fn finish(mut self) -> String {
        if self.form == Form::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    fn line(&mut self, family: &Family, suffix: &str, labels: &[Label], value: impl Display) {
        let _ = write!(self.text, "{}{suffix}", family.name);
        for (at, (name, value)) in labels.iter().enumerate() {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let sign = if at == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{sign}{name}=\"{value}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
    }
}

impl Samples<'_> {
    /// Writes a sample.
    pub(crate) fn sample(&mut self, labels: &[Label], value: impl Display) {
        let suffix = match self.family.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        self.page.line(self.family, suffix, labels, value);
    }

    /// Writes a histogram whose bounds are in microseconds.
    pub(crate) fn histogram(&mut self, bounds: &[u64], histogram: &Histogram) {
        let mut below = 0;
        for (place, count) in histogram.counts.iter().enumerate() {
            below += count;
            let bound = bounds.get(place).map(|micros| seconds(*micros));
            // With a point, as both formats want a bound to be written in one way only.
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| format!("{bound:?}"));
            self.page
                .line(self.family, "_bucket", &[("le", &bound)], below);
        }
        self.page
            .line(self.family, "_sum", &[], seconds(histogram.sum));
        self.page.line(self.family, "_count", &[], below);
    }
}

/// Microseconds in seconds.
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::measured::RTT_BOUNDS;
    use super::*;

    #[test]
    fn names_are_unique_and_end_with_their_units() {
        let mut names = BTreeSet::new();
        for family in FAMILIES {
            assert!(names.insert(family.name), "{family:?}");
            assert!(family.name.ends_with(family.unit), "{family:?}");
            for suffix in ["_total", "_info", "_count", "_sum", "_bucket", "_created"] {
                assert!(!family.name.ends_with(suffix), "{family:?}");
            }
            assert!(family.help.ends_with('.'), "{family:?}");
        }
    }

    #[test]
    fn a_label_cannot_end_its_quotation_or_its_line() {
        let mut page = Page::new(Form::Plain);
        let mut samples = page.family(const { family("tcp_echo_accept_queue") });
        samples.sample(&[("listener", "a\"b\\c\nd")], 1);
        assert!(
            page.finish()
                .ends_with("tcp_echo_accept_queue{listener=\"a\\\"b\\\\c\\nd\"} 1\n")
        );
    }

    #[test]
    fn each_format_describes_a_counter_in_its_way() {
        let text = |form| {
            let mut page = Page::new(form);
            let mut samples = page.family(const { family("tcp_echo_bytes") });
            samples.sample(&[("direction", "sent")], 5);
            page.finish()
        };
        let help = "Bytes received and sent, over all processes of the service.";
        assert_eq!(
            text(Form::Plain),
            format!(
                "# HELP tcp_echo_bytes_total {help}\n# TYPE tcp_echo_bytes_total counter\n\
                 tcp_echo_bytes_total{{direction=\"sent\"}} 5\n"
            )
        );
        assert_eq!(
            text(Form::OpenMetrics),
            format!(
                "# HELP tcp_echo_bytes {help}\n# TYPE tcp_echo_bytes counter\n\
                 # UNIT tcp_echo_bytes bytes\ntcp_echo_bytes_total{{direction=\"sent\"}} 5\n# EOF\n"
            )
        );
    }

    #[test]
    fn a_histogram_counts_what_is_below_each_bound() {
        let mut histogram = Histogram::default();
        (histogram.counts[0], histogram.counts[2], histogram.sum) = (3, 4, 1_500_000);
        let mut page = Page::new(Form::Plain);
        page.family(const { family("tcp_echo_connection_rtt_min_seconds") })
            .histogram(&RTT_BOUNDS, &histogram);
        let text = page.finish();
        for line in [
            "_bucket{le=\"0.0001\"} 3",
            "_bucket{le=\"0.0005\"} 7",
            "_bucket{le=\"1.0\"} 7",
            "_bucket{le=\"+Inf\"} 7",
            "_sum 1.5",
            "_count 7",
        ] {
            let line = format!("tcp_echo_connection_rtt_min_seconds{line}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
    }
}
