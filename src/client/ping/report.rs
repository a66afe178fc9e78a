//! What a ping prints for a person: a line for what happens, and the summary.

use std::fmt::Write as _;
use std::time::Duration;

use super::finding::Finding;
use super::kernel::Cause;
use super::summary::{Summary, Times};
use super::{Pace, Plan};
use crate::client::outcome::Class;
use crate::client::statistics::{Percentile, Sample};
use crate::config::units::size;

/// Columns of the picture of a distribution.
const COLUMNS: usize = 24;

/// Heights of a column.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A unit of time, with microseconds in it.
#[derive(Clone, Copy, Debug)]
struct UnitOfTime(&'static str, f64);

impl UnitOfTime {
    /// The one in which most of these times are read best.
    fn of(typical_us: Option<f64>) -> Self {
        match typical_us.unwrap_or(0.0) {
            us if us < 1000.0 => Self("us", 1.0),
            us if us < 10_000_000.0 => Self("ms", 1e3),
            _ => Self("s", 1e6),
        }
    }

    fn bare(self, us: f64) -> String {
        digits(us / self.1)
    }

    fn with_name(self, us: f64) -> String {
        format!("{} {}", self.bare(us), self.0)
    }
}

/// A number with at least three digits that count.
fn digits(value: f64) -> String {
    match value {
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ if value >= 1.0 || value == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A time by itself.
#[must_use]
pub fn time(span: Duration) -> String {
    let us = span.as_secs_f64() * 1e6;
    UnitOfTime::of(Some(us)).with_name(us)
}

/// A count with its noun.
fn count(number: u64, one: &str, many: &str) -> String {
    match number {
        0 => format!("no {one}"),
        1 => format!("one {one}"),
        _ => format!("{number} {many}"),
    }
}

fn none_or(number: u64) -> String {
    match number {
        0 => "none".into(),
        _ => number.to_string(),
    }
}

/// What is going to be done with a target.
#[must_use]
pub fn heading(target: &str, address: &str, plan: &Plan) -> String {
    let connections = count(plan.connections as u64, "connection", "connections");
    let pace = match plan.pace {
        Pace::Every(interval) if interval >= Duration::from_millis(10) => {
            format!("every {}", humantime::format_duration(interval))
        }
        Pace::Every(interval) => format!("{:.0} a second", 1.0 / interval.as_secs_f64()),
        Pace::Closed => "as fast as there is room".into(),
    };
    // An address by itself need not be repeated.
    let address = match address == target {
        true => String::new(),
        false => format!("  {address},"),
    };
    format!(
        "{target}{address}  {} bytes, {connections}, {pace}",
        plan.size
    )
}

/// How the first connection came about.
#[must_use]
pub fn phases(
    resolve: Option<Duration>,
    connect: Duration,
    mss: Option<u64>,
    mtu: Option<u64>,
) -> String {
    let mut text = String::new();
    if let Some(resolve) = resolve {
        let _ = write!(text, "  resolve {} ", time(resolve));
    }
    let _ = write!(text, "  connect {}", time(connect));
    if let (Some(mss), Some(mtu)) = (mss, mtu) {
        let _ = write!(text, "   mss {mss}, path mtu {mtu}");
    }
    text
}

/// What was found, as a line, and its class where it is a fault; `several` connections have numbers.
#[must_use]
pub fn line(finding: &Finding, several: bool) -> (String, Option<Class>) {
    let name = |number: &usize| match several {
        true => format!("connection {number}: "),
        false => String::new(),
    };
    match finding {
        Finding::Connected {
            number,
            place,
            after,
            syn_again,
        } => {
            let mut text = format!(
                "{}connected to {place} after {}",
                name(number),
                time(*after)
            );
            if let Some(again) = syn_again {
                let _ = write!(
                    text,
                    "; the SYN was sent again {}: it was lost, or the accept queue was full",
                    count(*again, "time", "times").replace("one time", "once")
                );
            }
            (text, None)
        }
        Finding::Failed {
            number,
            place,
            class,
            error,
        } => (
            format!("{}{place}: {}: {error}", name(number), class.word()),
            Some(*class),
        ),
        Finding::Echo {
            number,
            echo,
            sent_again,
        } => {
            let mut text = format!(
                "{}seq {}  {}",
                name(number),
                echo.number + 1,
                time(echo.rtt())
            );
            if let Some(wire) = echo.wire() {
                let _ = write!(text, "  (wire {})", time(wire));
            }
            let late = echo.wait() - echo.rtt();
            if late > echo.rtt().max(Duration::from_millis(1)) {
                let _ = write!(text, "   sent {} late", time(late));
            }
            if *sent_again > 0 {
                let again = count(*sent_again, "segment", "segments");
                let _ = write!(text, "   {again} sent again, then acknowledged");
            }
            (text, None)
        }
        Finding::Pause {
            number,
            message,
            since,
            cause,
        } => (
            format!(
                "{}seq {}  no echo for {}: {cause}",
                name(number),
                message + 1,
                time(*since)
            ),
            Some(Class::Missed),
        ),
        Finding::Back { number, after } => (
            format!("{}the echo is back after {}", name(number), time(*after)),
            None,
        ),
        Finding::Wrong {
            number,
            what,
            shown,
        } => {
            let mut text = format!("{}wrong bytes: {}", name(number), what.join("; "));
            if !shown.is_empty() {
                let _ = write!(text, "; what came begins with \"{}\"", shown.escape_ascii());
            }
            (text, Some(Class::Wrong))
        }
        Finding::Ended {
            number,
            class,
            error,
            missing,
        } => {
            let mut text = format!("{}{}", name(number), class.word());
            if !error.is_empty() {
                let _ = write!(text, ": {error}");
            }
            if *missing > 0 {
                let _ = write!(
                    text,
                    "; {} missing",
                    count(*missing, "echo is", "echoes are")
                );
            }
            (text, Some(*class))
        }
        Finding::Again { number, lost } => (
            format!("{}contact again after {}", name(number), time(*lost)),
            None,
        ),
    }
}

/// What kind of thing was found, so that the same on many connections need not be said for each;
/// `None` for an echo and for a connection, of which each is wanted or none.
#[must_use]
pub fn kind(finding: &Finding) -> Option<String> {
    Some(match finding {
        Finding::Echo { .. } | Finding::Connected { .. } => return None,
        Finding::Failed { class, .. } | Finding::Ended { class, .. } => class.word().into(),
        Finding::Pause { cause, .. } => match cause {
            Cause::NotAcknowledged { .. } => "no echo: not acknowledged".into(),
            cause => format!("no echo: {cause}"),
        },
        Finding::Back { .. } => "the echo is back".into(),
        Finding::Wrong { .. } => "wrong bytes".into(),
        Finding::Again { .. } => "contact again".into(),
    })
}

/// What one second brought, where there are too many echoes for a line each.
#[must_use]
pub fn second(at: Duration, recent: &Sample, in_flight: u64, lost: u64) -> String {
    let [p50, _, _, p99, ..] = Percentile::ALL;
    let unit = UnitOfTime::of(recent.percentile(p50).map(|p50| p50.as_secs_f64() * 1e6));
    let figure = |value: Option<Duration>| {
        value.map_or_else(|| "-".into(), |value| unit.bare(value.as_secs_f64() * 1e6))
    };
    format!(
        "{:>4.0} s  {:>7} back  p50 {} p99 {} max {} {}  in flight {in_flight}, missing or late {lost}",
        at.as_secs_f64(),
        recent.len(),
        figure(recent.percentile(p50)),
        figure(recent.percentile(p99)),
        figure(recent.max()),
        unit.0,
    )
}

/// A distribution as columns, from the shortest to the longest time in steps of equal ratio.
#[must_use]
pub fn picture(sample: &Sample) -> Option<String> {
    let (min, max) = (sample.min()?, sample.max()?);
    let nanos = |span: Duration| span.as_secs_f64().max(1e-9) * 1e9;
    let (low, high) = (nanos(min), nanos(max));
    if sample.len() < 5 || high <= low {
        return None;
    }
    let mut columns = [0_u64; COLUMNS];
    let step = (high / low).ln() / COLUMNS as f64;
    for value in sample.histogram().iter_recorded() {
        #[expect(clippy::cast_precision_loss, reason = "a column is no exact place")]
        let place = (value.value_iterated_to() as f64 / low).ln() / step;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is the number of a column"
        )]
        let column = place.max(0.0) as usize;
        columns[column.min(COLUMNS - 1)] += value.count_since_last_iteration();
    }
    let highest = columns.iter().max().copied().unwrap_or(1).max(1);
    let drawn = columns.iter().map(|count| match count {
        0 => ' ',
        // Rare ones are seen: the tail is what matters.
        _ => {
            let height = (*count * (HEIGHTS.len() as u64 - 1)).div_ceil(highest);
            HEIGHTS[usize::try_from(height).unwrap_or(0).min(HEIGHTS.len() - 1)]
        }
    });
    let drawn: String = drawn.collect();
    Some(format!("{} {drawn} {} (log)", time(min), time(max)))
}

fn distribution(times: &Times, unit: UnitOfTime) -> String {
    let mut text = String::new();
    for (name, value) in times.named() {
        // What few samples carry is not worth a dash.
        let shown = match value {
            None if name == "p99.99" => continue,
            None => "-".into(),
            Some(value) => unit.bare(value),
        };
        let _ = write!(text, "{name} {shown}   ");
    }
    format!("{}{}", text.trim_end(), format_args!(" {}", unit.0))
}

/// The summary.
#[must_use]
pub fn summary(summary: &Summary, plan: &Plan, rtt: Option<&Sample>) -> String {
    let mut text = format!(
        "--- {}, {}: {} sent, {} back, {} wrong, {} missing",
        summary.target,
        humantime::format_duration(whole(summary.seconds)),
        summary.sent,
        summary.received,
        none_or(summary.wrong),
        none_or(summary.missing)
    );
    if summary.in_flight > 0 {
        let _ = write!(text, ", {} under way", summary.in_flight);
    }
    if summary.late > 0 {
        let timeout = humantime::format_duration(plan.timeout);
        let _ = write!(text, ", {} later than {timeout}", summary.late);
    }
    text.push('\n');
    for place in &summary.wrong_places {
        let _ = writeln!(text, "wrong      {place}");
    }
    if let Some(lost) = &summary.lost_contact {
        let longest = UnitOfTime::of(Some(lost.longest_us)).with_name(lost.longest_us);
        let times = count(lost.count, "time", "times").replace("one time", "once");
        let _ = writeln!(
            text,
            "contact    lost {times}, for {longest} at the longest"
        );
    }
    if summary.received > 0 {
        distributions(summary, &mut text);
    }
    if let Some(through) = &summary.throughput {
        let _ = writeln!(
            text,
            "bulk       {} sent and {} back, each byte verified: {}/s there, {}/s back",
            size(through.sent_bytes),
            size(through.received_bytes),
            size(rounded(through.sent_bytes_per_second)),
            size(rounded(through.received_bytes_per_second)),
        );
    }
    kernel(summary, &mut text);
    if let Some(worst) = &summary.worst_connection {
        let longest = UnitOfTime::of(Some(worst.max_us)).with_name(worst.max_us);
        let _ = writeln!(
            text,
            "worst      connection {}: max {longest}, {} missing",
            worst.number,
            none_or(worst.missing)
        );
    }
    if let Some(picture) = rtt.and_then(picture) {
        let _ = writeln!(text, "{picture}");
    }
    let next = Percentile::ALL
        .into_iter()
        .find(|percentile| percentile.needs() > summary.received);
    if let (Some(next), true) = (next, summary.received > 0) {
        let _ = writeln!(
            text,
            "{} needs {} echoes: -c {}",
            next.name,
            next.needs(),
            next.needs()
        );
    }
    for judged in summary.thresholds.iter().filter(|judged| judged.missed) {
        let _ = writeln!(
            text,
            "threshold  {} is missed: {}",
            judged.fail_if, judged.text
        );
    }
    text
}

fn distributions(summary: &Summary, text: &mut String) {
    // A tail of many milliseconds is not read well in microseconds.
    let has_tail = summary.rtt_us.max >= Some(10_000.0);
    let typical = summary.rtt_us.p50.or(summary.rtt_us.max);
    let unit = UnitOfTime::of(typical.map(|us| if has_tail { us.max(1000.0) } else { us }));
    let _ = writeln!(text, "rtt        {}", distribution(&summary.rtt_us, unit));
    let host = &summary.kernel.host_us;
    if let Some(max) = host.max {
        let p50 = host.p50.map_or_else(|| "-".into(), |p50| unit.bare(p50));
        let max = unit.with_name(max);
        let _ = writeln!(text, "           of it on this host p50 {p50}, max {max}");
    }
    let schedule = &summary.schedule;
    if let Some(late) = schedule.worst_late_us {
        let total = summary.sent + schedule.skipped + schedule.unconnected;
        let late = UnitOfTime::of(Some(late)).with_name(late);
        // What differs by less than what is printed is the same.
        let is_same = |(wait, rtt): ((_, Option<f64>), (_, Option<f64>))| match (wait.1, rtt.1) {
            (Some(wait), Some(rtt)) => wait - rtt < rtt * 0.005,
            (wait, rtt) => wait == rtt,
        };
        let (wait, rtt) = (summary.wait_us.named(), summary.rtt_us.named());
        let same = wait.into_iter().zip(rtt).all(is_same);
        let wait = match same {
            true => "as rtt".to_owned(),
            false => distribution(&summary.wait_us, unit),
        };
        let _ = writeln!(text, "wait       {wait}");
        let _ = write!(
            text,
            "schedule   {} of {total} sent, worst {late} late",
            summary.sent
        );
        if schedule.skipped > 0 {
            let _ = write!(text, "; {} skipped, too many under way", schedule.skipped);
        }
        if schedule.unconnected > 0 {
            let _ = write!(text, "; {} without a connection", schedule.unconnected);
        }
        if let (Some(asked), Some(sent)) = (schedule.asked_per_second, schedule.sent_per_second) {
            if asked >= 10.0 {
                let _ = write!(text, "; {sent:.0} of {asked:.0} a second");
            }
        }
        text.push('\n');
    }
    let varies = &summary.variation_us;
    if let Some(smoothed) = varies.smoothed {
        let figure = |value: Option<f64>| value.map_or_else(|| "-".into(), |us| unit.bare(us));
        let _ = writeln!(
            text,
            "variation  p95-p50 {}   successive p50 {}, p95 {}   smoothed {}   (of round trips)",
            figure(varies.spread),
            figure(varies.successive_p50),
            figure(varies.successive_p95),
            unit.with_name(smoothed)
        );
    }
}

fn kernel(summary: &Summary, text: &mut String) {
    let kernel = &summary.kernel;
    let mut parts = Vec::new();
    if let Some(again) = kernel.sent_again {
        let of = kernel
            .segments
            .map_or_else(String::new, |all| format!(" of {all}"));
        let twice = match kernel.came_twice {
            Some(twice) if twice > 0 => format!(", {twice} of them in vain"),
            _ => String::new(),
        };
        parts.push(format!("sent again {again}{of} segments{twice}"));
    }
    if let Some(out) = kernel.out_of_order {
        parts.push(format!("out of order {out}"));
    }
    if let Some(marks) = kernel.congestion_marks.filter(|marks| *marks > 0) {
        parts.push(format!("congestion marks {marks}"));
    }
    if let Some(min) = kernel.min_rtt_us {
        parts.push(format!(
            "min_rtt {}",
            UnitOfTime::of(Some(min)).with_name(min)
        ));
    }
    if !parts.is_empty() {
        let _ = writeln!(text, "kernel     {}", parts.join("; "));
    }
    if let Some(hops) = &summary.hops {
        let unit = UnitOfTime::of(Some(hops.echo_us));
        let (tcp, echo) = (unit.with_name(hops.tcp_us), unit.with_name(hops.echo_us));
        let _ = match hops.proxy {
            true => writeln!(
                text,
                "hops       TCP answers {tcp} away, the echo comes from {echo}: a proxy ends TCP \
                 there, or the server waits"
            ),
            false => writeln!(
                text,
                "hops       the echo comes from where TCP ends ({tcp} and {echo})"
            ),
        };
    }
}

/// The last line: the class and what it usually means.
#[must_use]
pub fn verdict(summary: &Summary) -> String {
    let error = match summary.error.is_empty() {
        true => String::new(),
        false => format!(" ({})", summary.error),
    };
    let Summary {
        target,
        class,
        status,
        meaning,
        ..
    } = summary;
    match summary.class() {
        Class::Ok => format!("{target}: ok: {meaning}"),
        _ => format!("{target}: {class}{error}, exit status {status}: {meaning}"),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bytes a second"
)]
fn rounded(rate: f64) -> u64 {
    rate.max(0.0) as u64
}

/// A time as it is worth saying: to a second, and a short one more exactly.
fn whole(seconds: f64) -> Duration {
    let grain = match seconds {
        _ if seconds < 1.0 => 0.001,
        _ if seconds < 10.0 => 0.1,
        _ => 1.0,
    };
    Duration::from_millis(rounded(((seconds / grain).round() * grain * 1e3).round()))
}
