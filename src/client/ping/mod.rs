//! `tcp-echo ping`: round trips to an echo server, and what the cause is where there are none.
//!
//! What decides is pure ([`session`] and those before it); [`driver`] has the sockets and the loop,
//! [`summary`] and those after it say what came out.

use std::time::Duration;

pub mod conversation;
pub mod difference;
pub mod driver;
pub mod events;
pub mod finding;
pub mod kernel;
pub mod plot;
pub mod report;
mod schedule;
pub mod session;
mod slot;
pub mod summary;
pub mod tally;
pub mod threshold;
pub mod timeline;

/// What a session is asked to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Bytes of a message; at least 1.
    pub size: usize,
    /// Messages in all; `None`: until it is stopped.
    pub count: Option<u64>,
    /// When messages are sent.
    pub pace: Pace,
    /// After which time it stops.
    pub deadline: Option<Duration>,
    /// How long an answer may take: that to a connection, and an echo.
    pub timeout: Duration,
    /// Connections side by side; at least 1.
    pub connections: usize,
    /// Messages under way on each connection at most; at least 1.
    pub depth: usize,
    /// Whether each connection and each echo is a finding, and not only what is remarkable.
    pub reports: bool,
}

/// When messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// One after each such time, the connections taking turns, whatever has become of those before.
    Every(Duration),
    /// On each connection as soon as there is room.
    Closed,
}
