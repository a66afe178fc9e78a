//! What the service reports: events in the log, and its status in one line.
//!
//! Peers decide how often some events occur (a connection is refused, a connection ends).  So that no
//! peer can fill the log, such an event is logged at once if it is rare, and otherwise as a sum once a
//! second ([`crate::log::rate_limit`]).

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::lifecycle::Life;
use crate::config::units::size;
use crate::echo::counters::Counters;
use crate::echo::time::{MonoTime, earliest};
use crate::log::events::Event;
use crate::log::rate_limit::{CloseSummary, Limited, RateLimits};
use crate::log::sink::Log;
use crate::sys::lock::lock;

/// The most listeners for which the status still lists the addresses.
const ADDRESSES: usize = 4;

/// What is counted for the metrics alone, and begins at 0 with each process.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Connections of the previous process with which this one goes on.
    pub restored: u64,
    /// Connections that could not be preserved.
    pub not_preserved: u64,
    /// When the process began, since 1970.
    pub started: Duration,
}

impl Tally {
    /// A tally for a process that begins now.
    #[must_use]
    pub(crate) fn new() -> Self {
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            restored: 0,
            not_preserved: 0,
            started: started.unwrap_or_default(),
        }
    }
}

/// The log, the limits on how often an event is logged, and what is counted beside.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub tally: Tally,
    pub log: Log,
    /// The limit on closed connections, which all workers share.
    pub close_summary: Arc<Mutex<CloseSummary>>,
    rate_limits: RateLimits,
}

impl Reporter {
    /// A reporter that logs at most `connection_rate` closed connections a second one by one.
    #[must_use]
    pub(crate) fn new(log: Log, connection_rate: u32) -> Self {
        Self {
            tally: Tally::new(),
            log,
            close_summary: Arc::new(Mutex::new(CloseSummary::new(connection_rate))),
            rate_limits: RateLimits::default(),
        }
    }

    /// Logs an event.
    pub(crate) fn emit(&self, event: Event) {
        self.log.emit(event);
    }

    /// Logs an event of a kind that may occur often: the first at once, further ones within a second as
    /// a sum.
    pub(crate) fn emit_limited(&mut self, kind: Limited, event: Event, now: MonoTime) {
        if let Some(event) = self.rate_limits.pass(kind, event, now) {
            self.log.emit(event);
        }
    }

    /// Drops what was not logged yet of a kind, as a later event has made it untrue.
    pub(crate) fn forget(&mut self, kind: Limited) {
        self.rate_limits.forget(kind);
    }

    /// Logs the sums of the seconds that are over; with `last`, all sums.
    pub(crate) fn flush(&mut self, now: MonoTime, last: bool) {
        let ended = lock(&self.close_summary).flush(now, last);
        for event in ended.chain(self.rate_limits.flush(now, last)) {
            self.log.emit(event);
        }
    }

    /// When the first of those seconds is over.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<MonoTime> {
        earliest([self.summary_due(), self.rate_limits.next_due()])
    }

    /// When the second of the closed connections is over that are not logged yet.
    #[must_use]
    pub(crate) fn summary_due(&self) -> Option<MonoTime> {
        lock(&self.close_summary).next_due()
    }
}

/// The status in one line, as `STATUS=` of sd_notify(3) has it.
#[derive(Debug)]
pub(crate) struct Status {
    pub life: Life,
    /// Whether the service is drained by request.
    pub drained: bool,
    /// The addresses of the listeners, with the ports that the kernel has chosen.
    pub addresses: Vec<String>,
    /// The totals over all workers.
    pub counters: Counters,
    /// Whether the last reload failed.
    pub stale: bool,
    /// Whether callers wait because the connection limit is reached.
    pub full: bool,
    /// How many connections are preserved or why none is; empty, or a clause that begins with `;`.
    pub preservation: String,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (listeners, open) = (self.addresses.len(), self.counters.open());
        f.write_str(match self.life {
            Life::Serving if self.drained => "drained: ",
            Life::Serving => "",
            Life::LameDuck { .. } => "lame duck: ",
            Life::HandingOver { .. } => "handing over: ",
            Life::Stopping { .. } | Life::Over(_) => "stopping: ",
        })?;
        write!(
            f,
            "{listeners} listener{}, {open} connection{}, {} echoed",
            if listeners == 1 { "" } else { "s" },
            if open == 1 { "" } else { "s" },
            size(self.counters.sent),
        )?;
        if self.stale {
            f.write_str("; the last reload failed, the old configuration is in effect")?;
        } else if self.full {
            f.write_str("; full, callers wait")?;
        }
        if (1..=ADDRESSES).contains(&listeners) {
            write!(f, "; on {}", self.addresses.join(" "))?;
        }
        match self.life {
            // No connection is preserved any more.
            Life::Stopping { .. } => Ok(()),
            _ => f.write_str(&self.preservation),
        }
    }
}
