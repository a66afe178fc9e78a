//! Why a connection ended: one table of reasons, and the summary of a connection that is over.
//!
//! A reason is never an `Err`: that connections end, in whatever way, is the daily business of an
//! echo service.  The end is counted and logged under the word of its reason.  A reason that a key
//! of the configuration causes has the name of that key.
//!
//! The manual page and the catalog of messages list [`EndReason::ALL`] (`cargo xtask generate`).

use std::io::{self, ErrorKind};
use std::time::Duration;

/// Why a connection ended; [`EndReason::ALL`] says what each of them means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The end of the stream was read, and everything was sent back.
    PeerClosed,
    /// The process was asked to stop.
    Shutdown,
    /// The connection was reset.
    Reset,
    /// The kernel gave the peer or the path to it up.
    TimedOut,
    /// Another error of the stream, by its number (errno(3)); 0 if it has none.
    Error(u16),
    /// `limits.idle-timeout`.
    IdleTimeout,
    /// `limits.stall-timeout`.
    StallTimeout,
    /// `limits.max-lifetime`.
    MaxLifetime,
    /// `limits.max-bytes`.
    MaxBytes,
    /// `limits.stop-timeout`.
    StopTimeout,
    /// The process of the connection has ended, and the next process did not go on with it.
    NotRestored,
    /// `proxy-timeout`.
    HeaderTimeout,
    /// What a proxy sent is no PROXY header.
    HeaderInvalid,
    /// The peer is none of `proxy-trusted`.
    Untrusted,
    /// `limits.max-connections-per-source`, for the source that the PROXY header names.
    MaxConnectionsPerSource,
}

/// A row of [`EndReason::ALL`].
#[derive(Clone, Copy, Debug)]
pub struct Meaning {
    /// The word in the log (`ECHO_REASON=`), in the counters and in the manual page.
    pub word: &'static str,
    /// What the word means, in one sentence for the manual page.  Keys of the configuration and
    /// fields of the log stand between backquotes.
    pub text: &'static str,
}

impl EndReason {
    /// Every reason.  The order is that of the counters, also in the memory that one process
    /// leaves to the next.
    pub const ALL: [Meaning; 15] = [
        Meaning {
            word: "peer-closed",
            text: "The peer finished sending, and everything was sent back.",
        },
        Meaning {
            word: "shutdown",
            text: "The daemon was stopped, and everything that had arrived was sent back.",
        },
        Meaning {
            word: "reset",
            text: "The peer reset the connection.",
        },
        Meaning {
            word: "timed-out",
            text: "The peer or the path to it is gone: keepalive, `user-timeout` or the \
                   retransmissions of the kernel gave up.",
        },
        Meaning {
            word: "error",
            text: "Another error of the socket, by its number in `ERRNO=`.",
        },
        Meaning {
            word: "idle-timeout",
            text: "No byte moved for `limits.idle-timeout`.",
        },
        Meaning {
            word: "stall-timeout",
            text: "The peer took nothing of what is owed to it for `limits.stall-timeout`.",
        },
        Meaning {
            word: "max-lifetime",
            text: "The connection was open for `limits.max-lifetime`.",
        },
        Meaning {
            word: "max-bytes",
            text: "The peer sent `limits.max-bytes` bytes.",
        },
        Meaning {
            word: "stop-timeout",
            text: "Sending what was owed took longer than `limits.stop-timeout`; `ECHO_OWED=` \
                   bytes were dropped.",
        },
        Meaning {
            word: "not-restored",
            text: "The process of the connection has ended, and the next process could not go on \
                   with it; this is counted, and logged in one message for all connections.",
        },
        Meaning {
            word: "header-timeout",
            text: "The PROXY header was not complete within `proxy-timeout`.  A proxy may hold it \
                   back until its client sends something.",
        },
        Meaning {
            word: "header-invalid",
            text: "What the proxy sent is not a PROXY header, by the reason in `ECHO_ERROR=`.",
        },
        Meaning {
            word: "untrusted",
            text: "The peer is in none of the networks of `proxy-trusted`, and might forge a PROXY \
                   header.",
        },
        Meaning {
            word: "max-connections-per-source",
            text: "The source that the PROXY header names has \
                   `limits.max-connections-per-source` connections.",
        },
    ];

    /// The place of this reason in [`EndReason::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        // Each word is looked up by the compiler, which refuses one that is not in the table.
        match self {
            Self::PeerClosed => const { place("peer-closed") },
            Self::Shutdown => const { place("shutdown") },
            Self::Reset => const { place("reset") },
            Self::TimedOut => const { place("timed-out") },
            Self::Error(_) => const { place("error") },
            Self::IdleTimeout => const { place("idle-timeout") },
            Self::StallTimeout => const { place("stall-timeout") },
            Self::MaxLifetime => const { place("max-lifetime") },
            Self::MaxBytes => const { place("max-bytes") },
            Self::StopTimeout => const { place("stop-timeout") },
            Self::NotRestored => const { place("not-restored") },
            Self::HeaderTimeout => const { place("header-timeout") },
            Self::HeaderInvalid => const { place("header-invalid") },
            Self::Untrusted => const { place("untrusted") },
            Self::MaxConnectionsPerSource => const { place("max-connections-per-source") },
        }
    }

    /// The word for this reason.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL[self.index()].word
    }

    /// The reason for an error of the stream (recv(2), send(2)).
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected => Self::Reset,
            ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                Self::TimedOut
            }
            _ => Self::numbered(error),
        }
    }

    /// The reason for an error by its number alone.
    #[must_use]
    pub(crate) fn numbered(error: &io::Error) -> Self {
        // Linux has no number above 4095, and every open connection has room for a reason.
        let number = error.raw_os_error().map(u16::try_from);
        Self::Error(number.and_then(Result::ok).unwrap_or(0))
    }
}

/// The place of a word in [`EndReason::ALL`].
const fn place(word: &str) -> usize {
    let mut at = 0;
    while at < EndReason::ALL.len() {
        if same(EndReason::ALL[at].word, word) {
            return at;
        }
        at += 1;
    }
    panic!("EndReason::ALL does not have this word")
}

/// Whether two texts are the same, for tables that the compiler looks into.
#[must_use]
pub(crate) const fn same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// What is logged and counted of a connection when it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Why it ended.
    pub reason: EndReason,
    /// Bytes received, including those that were discarded after the FIN was sent.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes that were received and could not be sent back.
    pub owed: u64,
    /// The time from the accept to the end.
    pub duration: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_belongs_to_one_reason() {
        use EndReason::*;
        let reasons = [
            PeerClosed,
            Shutdown,
            Reset,
            TimedOut,
            Error(1),
            IdleTimeout,
            StallTimeout,
            MaxLifetime,
            MaxBytes,
            StopTimeout,
            NotRestored,
            HeaderTimeout,
            HeaderInvalid,
            Untrusted,
            MaxConnectionsPerSource,
        ];
        let places: Vec<usize> = reasons.iter().map(|reason| reason.index()).collect();
        assert_eq!(places, (0..EndReason::ALL.len()).collect::<Vec<_>>());
    }
}
