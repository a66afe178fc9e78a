//! Where in its life a conversation is, in one word.

use super::reason::Reason;
use super::tick::Tick;
#[cfg(doc)]
use super::{GRACE, LINGER};

/// Where in its life a conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Both directions are open.
    Echoing,
    /// We were asked to go: echo until a read says `WouldBlock`, for a stop until the peer has been
    /// silent for [`GRACE`] as well, pay, then FIN.
    Leaving {
        /// When we were asked.
        since: Tick,
        /// Why.
        why: Reason,
        /// The position in the peer's stream up to which it is echoed, once that is known.  A
        /// peer that never stops sending gets back what had arrived when we asked, or for a stop
        /// [`LINGER`] later, and no more.
        until: Option<u64>,
    },
    /// Our FIN is out; input is thrown away until the peer's FIN, or for [`LINGER`] and until the
    /// peer has acknowledged what it was sent.
    Lingering {
        /// When the FIN went out, or when something was last found unacknowledged.
        since: Tick,
        /// When that does not count any more.
        until: Tick,
        /// Why we left.
        why: Reason,
    },
}
