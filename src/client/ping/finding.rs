//! What a session says: what the driver has to do, and what was found.

use std::time::Duration;

use super::conversation::Echo;
use super::kernel::Cause;
use crate::client::outcome::Class;
use crate::client::target::Place;

/// What the driver has to do; the number is that of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a connection.
    Connect(usize, Place),
    /// Ask the kernel for its counters.
    Look(usize),
    /// Close the connection.
    Close(usize),
}

/// What was found; the number is that of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A connection stands.
    Connected {
        /// The connection.
        number: usize,
        /// The other side.
        place: Place,
        /// Since it was begun.
        after: Duration,
        /// How often the SYN was sent again.
        syn_again: Option<u64>,
    },
    /// A connection could not be made.
    Failed {
        /// The connection.
        number: usize,
        /// The other side.
        place: Place,
        /// The kind of failure.
        class: Class,
        /// The words of the system.
        error: String,
    },
    /// An echo is back.
    Echo {
        /// The connection.
        number: usize,
        /// Its times.
        echo: Echo,
        /// Segments that were sent again since the echo before.
        sent_again: u64,
    },
    /// An echo is overdue.
    Pause {
        /// The connection.
        number: usize,
        /// The number of its message in the schedule.
        message: u64,
        /// Since it was sent.
        since: Duration,
        /// Where it seems to be.
        cause: Cause,
    },
    /// An echo that was overdue is back.
    Back {
        /// The connection.
        number: usize,
        /// Since its message was sent.
        after: Duration,
    },
    /// Bytes are wrong.
    Wrong {
        /// The connection.
        number: usize,
        /// What and where.
        what: Vec<String>,
        /// The first of them.
        shown: Vec<u8>,
    },
    /// A connection ended.
    Ended {
        /// The connection.
        number: usize,
        /// How.
        class: Class,
        /// The words of the system; empty for an end of stream.
        error: String,
        /// Echoes that are missing.
        missing: u64,
    },
    /// There is contact again.
    Again {
        /// The connection.
        number: usize,
        /// How long there was none.
        lost: Duration,
    },
}
