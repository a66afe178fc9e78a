//! The echo itself: pure logic over a borrowed stream.
//!
//! Nothing in this folder reads a clock, makes a system call except through the stream that it
//! is handed, logs, names a descriptor or knows an address.  Time and limits are arguments.  So a
//! test drives thousands of conversations through every kind of short write and reset without a
//! socket, and with a clock of its own.
//!
//! In reading order: [`tick`] (a reading of the clock), [`reason`] (how a conversation ends), [`phase`], [`backlog`] (where bytes wait),
//! [`duplex`] (what a stream can do), [`timers`] (an ordered set of deadlines), [`counters`], [`step`] (how a turn ends), [`connection`] (one conversation),
//! [`shard`] (many of them).

pub mod backlog;
pub mod connection;
pub mod counters;
pub mod duplex;
pub mod phase;
pub mod reason;
pub mod shard;
pub mod step;
pub mod tick;
pub mod timers;

use std::time::Duration;

/// Bytes of the one buffer through which everything passes.  Bulk costs half as much with 256 KiB as
/// with 64 KiB, and more gives nothing.
pub const SCRATCH: usize = 256 * 1024;

/// Bytes of the first read of a connection, and of each that may find the send queue filled.  A read
/// may be twice as long as what the last one gave away at once, so what is owed when a peer stops
/// reading is half of the scratch at most, as a rule: the kernel may have less room than it had.
pub const FIRST: usize = 64 * 1024;

/// Bytes that one connection may receive in one turn before the others get theirs.
pub const BUDGET: usize = 256 * 1024;

/// How long input is thrown away after our FIN, so that closing does not turn unread input into a
/// reset that destroys what is still in flight (RFC 1122 section 4.2.2.13).
pub const LINGER: Duration = Duration::from_millis(400);

/// How long a peer has to be silent after a stop before our FIN goes: its last words may be on
/// their way.  With [`LINGER`] an idle peer is gone within half a second.
pub const GRACE: Duration = Duration::from_millis(50);

/// What a connection may take, in time and in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Close after this long without a byte in either direction while nothing is owed.
    pub idle: Option<Duration>,
    /// Close after this long without a byte accepted by the peer while something is owed.
    pub stall: Option<Duration>,
    /// Leave after this long altogether.
    pub lifetime: Option<Duration>,
    /// Leave after this many bytes received.
    pub bytes: Option<u64>,
    /// How long leaving may take before what is still owed is abandoned.
    pub leave: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle: None,
            stall: Some(Duration::from_secs(300)),
            lifetime: None,
            bytes: None,
            leave: Duration::from_secs(10),
        }
    }
}
