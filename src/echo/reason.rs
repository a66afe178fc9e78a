//! Why a conversation ended, and what is told of it then.

use std::io::{self, ErrorKind};
use std::time::Duration;

/// Why a conversation ended.  Counted and told; never an `Err`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The peer finished, and got everything back.
    PeerDone,
    /// We were stopped, and everything readable came back.
    Left,
    /// The peer reset the connection.
    Reset,
    /// The peer, or the path to it, is gone: nothing was acknowledged for too long.
    Vanished,
    /// Another error of the stream, by errno(3).
    Error(i32),
    /// Nothing was said for the idle time-out.
    Idle,
    /// The peer took nothing of what it is owed for the stall time-out.
    Stalled,
    /// The connection reached its greatest age.
    Lifetime,
    /// The peer sent as many bytes as it may.
    Spent,
    /// Leaving took too long; what was owed is lost.
    Abandoned,
    /// It could not be taken over from a process that has ended.
    Lost,
}

impl Reason {
    /// The words for the log, the counters and the manual, in the order of [`Reason::kind`].
    pub const KINDS: [&'static str; 11] = [
        "peer-done",
        "left",
        "reset",
        "vanished",
        "error",
        "idle",
        "stalled",
        "lifetime",
        "spent",
        "abandoned",
        "lost",
    ];

    /// The index into [`Reason::KINDS`].
    #[must_use]
    pub fn kind(self) -> usize {
        match self {
            Self::PeerDone => 0,
            Self::Left => 1,
            Self::Reset => 2,
            Self::Vanished => 3,
            Self::Error(_) => 4,
            Self::Idle => 5,
            Self::Stalled => 6,
            Self::Lifetime => 7,
            Self::Spent => 8,
            Self::Abandoned => 9,
            Self::Lost => 10,
        }
    }

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::KINDS[self.kind()]
    }

    /// The reason for an error of the stream.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected => Self::Reset,
            ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                Self::Vanished
            }
            _ => Self::Error(error.raw_os_error().unwrap_or(0)),
        }
    }
}

/// What is told of a conversation when it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Why it ended.
    pub reason: Reason,
    /// Bytes received, those thrown away after our FIN included.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes that were owed and could not be paid.
    pub owed: u64,
    /// From its beginning to its end.
    pub duration: Duration,
}
