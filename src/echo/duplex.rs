//! What a conversation needs of its stream: a test's script has it as well as a socket.

use std::io::{self, Read, Write};

/// A stream with two directions that end on their own.
pub trait Duplex: Read + Write {
    /// Ends our direction with a FIN (shutdown(2) with `SHUT_WR`).
    ///
    /// # Errors
    /// Those of shutdown(2): the peer may be gone already.
    fn finish_write(&mut self) -> io::Result<()>;

    /// How many bytes wait to be read (`FIONREAD`, tcp(7)), if that can be told.
    fn unread(&self) -> Option<u64> {
        None
    }

    /// How many bytes were written and not acknowledged by the peer (`SIOCOUTQ`, tcp(7)), our FIN
    /// aside: a reset would destroy them.
    fn unacknowledged(&self) -> u64 {
        0
    }

    /// How many bytes were written and not sent yet (`SIOCOUTQNSD`, tcp(7)), or something above zero
    /// where that cannot be told: the send queue may be full.
    fn unsent(&self) -> u64 {
        0
    }

    /// Whether a read may always return less than there is, without a further event: on a Unix
    /// stream it stops behind passed descriptors (unix(7)).
    fn stops_short(&self) -> bool {
        false
    }
}
