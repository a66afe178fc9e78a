//! What a session has counted and measured so far.

use std::time::Duration;

use super::Pace;
use super::conversation::Echo;
use super::kernel::Counters;
use super::timeline::Timeline;
use crate::client::outcome::Class;
use crate::client::statistics::{Sample, Variation, nanos};

/// Places of wrong bytes that are kept.
const KEPT: usize = 16;

/// Counts and samples.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Messages are sent when there is room, so that none of them waits and their neighbours say nothing.
    is_closed: bool,
    /// After which time an echo is late, in nanoseconds.
    timeout: u64,
    /// When the session began.
    pub began: Duration,
    /// When the schedule began.
    pub origin: Option<Duration>,
    /// When the session ended.
    pub end: Option<Duration>,
    /// How long the first connection took.
    pub connect: Option<Duration>,
    /// How long each connection took.
    pub connects: Sample,
    /// The round trip of the first echo.
    pub first_echo: Option<Duration>,
    /// When the last message was sent.
    pub last_sent: Option<Duration>,
    /// Messages sent.
    pub sent: u64,
    /// Echoes that came back.
    pub received: u64,
    /// Echoes that will not come: their connections are gone, or the session is.
    pub missing: u64,
    /// Echoes that came after the time-out.
    pub late: u64,
    /// Places where bytes were wrong.
    pub wrong: u64,
    /// The first of them, in words.
    pub wrong_places: Vec<String>,
    /// Messages that were not sent because too many were under way, or their time was long past.
    pub skipped: u64,
    /// Messages that were not sent because there was no connection.
    pub unconnected: u64,
    /// Connections made anew.
    pub reconnects: u64,
    /// Echoes that were overdue for a second, or much longer than usual.
    pub pauses: u64,
    /// How long contact was lost, each time.
    pub lost: Sample,
    /// Bytes that were sent.
    pub bytes_sent: u64,
    /// Bytes that came back.
    pub bytes_received: u64,
    /// From a message to its echo.
    pub rtt: Sample,
    /// From when a message was due to its echo; none in a closed loop, where it is the round trip.
    pub wait: Sample,
    /// From when a message was due to when it was sent; none in a closed loop.
    pub lateness: Sample,
    /// The round trips between the times at which the kernel sent and received.
    pub wire: Sample,
    /// The rest of those round trips: what this host needed.
    pub host: Sample,
    /// How much successive round trips of a connection differ; not known in a closed loop.
    pub variation: Variation,
    /// The kernel's counters of the connections that have ended.
    pub counters: Counters,
    /// Round trips over time.
    pub timeline: Timeline,
    fault: Option<(Class, String)>,
}

impl Tally {
    pub(super) fn new(began: Duration, pace: Pace, timeout: Duration) -> Self {
        Self {
            is_closed: pace == Pace::Closed,
            timeout: nanos(timeout),
            began,
            origin: None,
            end: None,
            connect: None,
            connects: Sample::new(),
            first_echo: None,
            last_sent: None,
            sent: 0,
            received: 0,
            missing: 0,
            late: 0,
            wrong: 0,
            wrong_places: Vec::new(),
            skipped: 0,
            unconnected: 0,
            reconnects: 0,
            pauses: 0,
            lost: Sample::new(),
            bytes_sent: 0,
            bytes_received: 0,
            rtt: Sample::new(),
            wait: Sample::new(),
            lateness: Sample::new(),
            wire: Sample::new(),
            host: Sample::new(),
            variation: Variation::default(),
            counters: Counters::default(),
            timeline: Timeline::new(nanos(began)),
            fault: None,
        }
    }

    pub(super) fn begun(&mut self, now: Duration, lateness: Duration) {
        self.sent += 1;
        self.last_sent = Some(now);
        if !self.is_closed {
            self.lateness.record(lateness);
        }
    }

    /// An echo is back, now in nanoseconds.
    pub(super) fn echo(&mut self, now: u64, echo: &Echo) {
        self.received += 1;
        self.first_echo.get_or_insert_with(|| echo.rtt());
        self.rtt.record_nanos(echo.rtt);
        self.late += u64::from(echo.rtt > self.timeout);
        if !self.is_closed {
            self.wait.record_nanos(echo.wait);
            if let Some(before) = echo.before {
                self.variation.record_nanos(before, echo.rtt);
            }
        }
        if let Some(wire) = echo.wire {
            self.wire.record_nanos(wire);
            self.host.record_nanos(echo.rtt - wire);
        }
        self.timeline.echo(now, echo.rtt);
    }

    pub(super) fn missing(&mut self, now: Duration, count: u64) {
        self.missing += count;
        if count > 0 {
            self.timeline.missing(nanos(now), count);
        }
    }

    pub(super) fn wrong_at(&mut self, places: &[String]) {
        let room = KEPT.saturating_sub(self.wrong_places.len());
        self.wrong_places.extend(places.iter().take(room).cloned());
    }

    /// Contact was lost and did not come back.
    pub(super) fn lost_at_the_end(&mut self, span: Duration) {
        if self.received > 0 && !span.is_zero() {
            self.lost.record(span);
        }
    }

    /// After which time an echo is overdue: so long, or four times as long as the shortest round trip.
    pub(super) fn pause(&self, least: Duration) -> Duration {
        least.max(self.rtt.min().unwrap_or_default() * 4)
    }

    /// Something went wrong: the first fault counts, and wrong bytes before all.
    pub(super) fn fault(&mut self, class: Class, error: &str) {
        let counts = match &self.fault {
            None => true,
            Some((Class::Wrong, _)) => false,
            Some(_) => class == Class::Wrong,
        };
        if counts {
            self.fault = Some((class, error.to_owned()));
        }
    }

    /// What was found, without thresholds.
    #[must_use]
    pub fn class(&self) -> Class {
        match &self.fault {
            Some((class, _)) => *class,
            None if self.missing + self.late > 0 => Class::Missed,
            None => Class::Ok,
        }
    }

    /// The words of the system for the fault; empty where it had none.
    #[must_use]
    pub fn error(&self) -> &str {
        self.fault.as_ref().map_or("", |(_, error)| error)
    }
}
