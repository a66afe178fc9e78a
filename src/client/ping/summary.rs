//! The figures of a session, as they are printed, compared, judged and written as JSON
//! (docs/ping-summary.schema.json): the unit in every key, and what is not known is absent.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Pace;
use super::kernel::{Counters, Hops};
use super::session::Session;
use super::tally::Tally;
use crate::client::outcome::Class;
use crate::client::statistics::{Percentile, Sample, Variation};
use crate::client::target::{Target, Unresolved};

/// Echoes before a proxy is spoken of: the shortest of few is not the shortest there is.
const FEW: u64 = 5;

/// A distribution of times, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// The shortest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// The median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// At or above 90 % of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p90: Option<f64>,
    /// At or above 95 % of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95: Option<f64>,
    /// At or above 99 % of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// At or above 99.9 % of them.
    #[serde(rename = "p99.9", skip_serializing_if = "Option::is_none")]
    pub p99_9: Option<f64>,
    /// At or above 99.99 % of them.
    #[serde(rename = "p99.99", skip_serializing_if = "Option::is_none")]
    pub p99_99: Option<f64>,
    /// The longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

impl Times {
    fn of(sample: &Sample) -> Self {
        let [p50, p90, p95, p99, p99_9, p99_99] =
            Percentile::ALL.map(|percentile| sample.percentile(percentile).map(micros));
        Self {
            min: sample.min().map(micros),
            p50,
            p90,
            p95,
            p99,
            p99_9,
            p99_99,
            max: sample.max().map(micros),
        }
    }

    /// The figures with their names, in ascending order; a percentile that the sample does not carry
    /// is `None`.
    #[must_use]
    pub fn named(&self) -> [(&'static str, Option<f64>); 8] {
        [
            ("min", self.min),
            ("p50", self.p50),
            ("p90", self.p90),
            ("p95", self.p95),
            ("p99", self.p99),
            ("p99.9", self.p99_9),
            ("p99.99", self.p99_99),
            ("max", self.max),
        ]
    }

    fn is_empty(&self) -> bool {
        self.max.is_none()
    }
}

/// How much successive round trips differ, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Variations {
    /// p95 - p50 of the round trips.
    #[serde(rename = "p95-p50", skip_serializing_if = "Option::is_none")]
    pub spread: Option<f64>,
    /// The median of the differences of successive echoes (RFC 3393).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub successive_p50: Option<f64>,
    /// Their 95th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub successive_p95: Option<f64>,
    /// The smoothed difference (RFC 3550, section 6.4.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smoothed: Option<f64>,
}

/// How the schedule was held.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Schedule {
    /// Messages a second that were asked for; absent in a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked_per_second: Option<f64>,
    /// Messages a second that were sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_per_second: Option<f64>,
    /// The longest time from when a message was due to when it was sent, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst_late_us: Option<f64>,
    /// Messages that were not sent because too many were under way, or their time was long past.
    pub skipped: u64,
    /// Messages that were not sent because there was no connection.
    pub unconnected: u64,
}

/// What the own kernel knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kernel {
    /// Segments with data that were sent, those sent again included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments: Option<u64>,
    /// Segments that were sent again, those of handshakes included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_again: Option<u64>,
    /// Segments of ours that came twice, as the peer reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub came_twice: Option<u64>,
    /// Segments that arrived out of order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_of_order: Option<u64>,
    /// Segments that were delivered with a mark of congestion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub congestion_marks: Option<u64>,
    /// The least round trip that TCP measured, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_rtt_us: Option<f64>,
    /// The longest segment that can be sent, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mss: Option<u64>,
    /// The path MTU, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u64>,
    /// The round trips between the times at which the kernel sent and received, in microseconds.
    #[serde(skip_serializing_if = "Times::is_empty")]
    pub wire_us: Times,
    /// The rest of those round trips: what this host needed, in microseconds.
    #[serde(skip_serializing_if = "Times::is_empty")]
    pub host_us: Times,
}

/// Where TCP ends, and from where the echo comes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    /// The least round trip of TCP, in microseconds.
    pub tcp_us: f64,
    /// The least round trip of an echo, in microseconds.
    pub echo_us: f64,
    /// Whether something nearer than the server ends TCP, or the server itself waits.
    pub proxy: bool,
}

/// How often and how long contact was lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LostContact {
    /// How often.
    pub count: u64,
    /// The longest time, in microseconds.
    pub longest_us: f64,
}

/// The connection that fared worst.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorstConnection {
    /// Its number, from 0.
    pub number: usize,
    /// Its longest round trip, in microseconds.
    pub max_us: f64,
    /// Its missing echoes.
    pub missing: u64,
}

/// Throughput.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// Bytes that came back; each was verified.
    pub received_bytes: u64,
    /// Bytes a second that were sent.
    pub sent_bytes_per_second: f64,
    /// Bytes a second that came back.
    pub received_bytes_per_second: f64,
}

/// What a threshold says of a summary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The threshold, as it was written.
    pub fail_if: String,
    /// Whether what must not be is, or is not known.
    pub missed: bool,
    /// The figure, in microseconds or as a count; absent where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<f64>,
    /// What was found, in words.
    pub text: String,
}

/// The figures of a session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// The target, as it was written, with its port.
    pub target: String,
    /// The address that answered, or was tried last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What was found ([`Class::word`]).
    pub class: String,
    /// The exit status for it.
    pub status: u8,
    /// What that usually means.
    pub meaning: String,
    /// The words of the system.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// From the first connection to the end, in seconds.
    pub seconds: f64,
    /// Bytes of a message.
    pub size: usize,
    /// Connections.
    pub connections: usize,
    /// Messages sent.
    pub sent: u64,
    /// Echoes that came back.
    pub received: u64,
    /// Echoes that did not come.
    pub missing: u64,
    /// Messages whose echoes may still come: only in an interim summary.
    #[serde(skip_serializing_if = "is_zero")]
    pub in_flight: u64,
    /// Echoes that came after the time-out.
    pub late: u64,
    /// Places where bytes were wrong.
    pub wrong: u64,
    /// The first of them, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub wrong_places: Vec<String>,
    /// Echoes that were overdue for a second, or much longer than usual.
    pub pauses: u64,
    /// Connections made anew.
    pub reconnects: u64,
    /// How often and how long contact was lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_contact: Option<LostContact>,
    /// How long the name took to resolve, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolve_us: Option<f64>,
    /// How long the first connection took, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_us: Option<f64>,
    /// How long all connections took, where there are several, in microseconds.
    #[serde(skip_serializing_if = "Times::is_empty")]
    pub connects_us: Times,
    /// The round trip of the first echo, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_echo_us: Option<f64>,
    /// From a message to its echo.
    pub rtt_us: Times,
    /// From when a message was due to its echo; in a closed loop that is the round trip.
    pub wait_us: Times,
    /// How much successive round trips differ.
    pub variation_us: Variations,
    /// How the schedule was held.
    pub schedule: Schedule,
    /// What the own kernel knows.
    pub kernel: Kernel,
    /// Where TCP ends, and from where the echo comes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hops: Option<Distance>,
    /// The connection that fared worst, of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst_connection: Option<WorstConnection>,
    /// Throughput, in a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throughput: Option<Throughput>,
    /// The thresholds, and whether they were held.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<Judgement>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A time in microseconds, to a tenth of a nanosecond.
#[must_use]
pub fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e10).round() / 1e4
}

impl Summary {
    /// The figures of a session by now.
    #[must_use]
    pub fn of(
        target: &Target,
        resolve: Option<Duration>,
        session: &Session,
        now: Duration,
    ) -> Self {
        let plan = session.plan();
        let tally = session.tally();
        let counters = session.counters();
        let several = plan.connections > 1;
        let mut summary = Self {
            target: target.to_string(),
            address: Some(session.place().to_string()),
            error: tally.error().to_owned(),
            seconds: tally
                .end
                .unwrap_or(now)
                .saturating_sub(tally.origin.unwrap_or(tally.began))
                .as_secs_f64(),
            size: plan.size,
            connections: plan.connections,
            sent: tally.sent,
            received: tally.received,
            missing: tally.missing,
            in_flight: session.in_flight(),
            late: tally.late,
            wrong: tally.wrong,
            wrong_places: tally.wrong_places.clone(),
            pauses: tally.pauses,
            reconnects: tally.reconnects,
            lost_contact: tally.lost.max().map(|longest| LostContact {
                count: tally.lost.len(),
                longest_us: micros(longest),
            }),
            resolve_us: resolve.map(micros),
            connect_us: tally.connect.map(micros),
            connects_us: match several {
                true => Times::of(&tally.connects),
                false => Times::default(),
            },
            first_echo_us: tally.first_echo.map(micros),
            rtt_us: Times::of(&tally.rtt),
            wait_us: Times::of(match plan.pace {
                Pace::Every(_) => &tally.wait,
                Pace::Closed => &tally.rtt,
            }),
            variation_us: variations(tally),
            kernel: kernel(&counters, tally),
            // As fast as there is room an echo waits in the own queue.
            hops: hops(&counters, tally).filter(|_| plan.pace != Pace::Closed),
            worst_connection: session.worst().filter(|_| several).map(
                |(number, longest, missing)| WorstConnection {
                    number,
                    max_us: micros(longest),
                    missing,
                },
            ),
            ..Self::default()
        };
        summary.schedule = schedule(plan.pace, tally, summary.seconds);
        if plan.pace == Pace::Closed {
            let per_second = |bytes: u64| rate(bytes, summary.seconds);
            summary.throughput = Some(Throughput {
                sent_bytes: tally.bytes_sent,
                received_bytes: tally.bytes_received,
                sent_bytes_per_second: per_second(tally.bytes_sent),
                received_bytes_per_second: per_second(tally.bytes_received),
            });
        }
        summary.set_class(tally.class());
        summary
    }

    /// That of a name without an address.
    #[must_use]
    pub fn unresolved(target: &Target, size: usize, connections: usize, why: &Unresolved) -> Self {
        let mut summary = Self {
            target: target.to_string(),
            error: why.to_string(),
            size,
            connections,
            ..Self::default()
        };
        summary.set_class(Class::Name);
        summary
    }

    /// What was found.
    #[must_use]
    pub fn class(&self) -> Class {
        let is_it = |class: &Class| class.word() == self.class;
        Class::ALL.into_iter().find(is_it).unwrap_or(Class::Missed)
    }

    pub(super) fn set_class(&mut self, class: Class) {
        self.class = class.word().to_owned();
        self.status = class.status();
        self.meaning = class.meaning().to_owned();
    }
}

fn variations(tally: &Tally) -> Variations {
    let [p50, _, p95, ..] = Percentile::ALL;
    let successive = &tally.variation.successive;
    Variations {
        spread: Variation::spread(&tally.rtt).map(micros),
        successive_p50: successive.percentile(p50).map(micros),
        successive_p95: successive.percentile(p95).map(micros),
        smoothed: tally.variation.smoothed().map(micros),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate is no exact number")]
fn rate(count: u64, seconds: f64) -> f64 {
    match seconds > 0.0 {
        true => (count as f64 / seconds * 1e3).round() / 1e3,
        false => 0.0,
    }
}

fn schedule(pace: Pace, tally: &Tally, seconds: f64) -> Schedule {
    let asked_per_second = match pace {
        Pace::Every(interval) => Some((1e6 / interval.as_secs_f64()).round() / 1e6),
        Pace::Closed => None,
    };
    // Of one message there is no rate; waiting for the last echo is no sending.
    let sending = match tally.last_sent.zip(tally.origin) {
        Some((last, origin)) => last.saturating_sub(origin).as_secs_f64(),
        None => seconds,
    };
    Schedule {
        asked_per_second,
        sent_per_second: (tally.sent > 1 && sending > 0.0).then(|| rate(tally.sent - 1, sending)),
        worst_late_us: asked_per_second.and(tally.lateness.max()).map(micros),
        skipped: tally.skipped,
        unconnected: tally.unconnected,
    }
}

fn kernel(counters: &Counters, tally: &Tally) -> Kernel {
    Kernel {
        segments: counters.segments,
        sent_again: counters.sent_again,
        came_twice: counters.came_twice,
        out_of_order: counters.out_of_order,
        congestion_marks: counters.congestion_marks,
        min_rtt_us: counters.min_rtt.map(micros),
        mss: counters.mss,
        path_mtu: counters.path_mtu,
        wire_us: Times::of(&tally.wire),
        host_us: Times::of(&tally.host),
    }
}

fn hops(counters: &Counters, tally: &Tally) -> Option<Distance> {
    let (tcp, echo) = (counters.min_rtt?, tally.rtt.min()?);
    let hops = Hops { tcp, echo };
    (tally.received >= FEW).then(|| Distance {
        tcp_us: micros(tcp),
        echo_us: micros(echo),
        proxy: hops.are_apart(),
    })
}
