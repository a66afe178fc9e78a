//! What a connection needs of its stream, so that a script in a test can stand in for a socket.

use std::io::{self, Read, Write};

/// A non-blocking byte stream whose two directions end separately.
pub trait Duplex: Read + Write {
    /// Ends the outgoing direction with a FIN (shutdown(2) with `SHUT_WR`).
    ///
    /// # Errors
    /// Those of shutdown(2), such as `ENOTCONN` after a reset by the peer.
    fn finish_write(&mut self) -> io::Result<()>;

    /// The number of bytes that wait to be read (`FIONREAD`, tcp(7), unix(7)); `None` if the stream
    /// cannot say.
    fn unread(&self) -> Option<u64>;

    /// The number of bytes that were written and that the peer has not acknowledged (`SIOCOUTQ`,
    /// tcp(7)), not counting a FIN.  A reset would destroy them.  0 if there is no such queue.
    fn unacknowledged(&self) -> u64;

    /// The number of bytes that were written and not sent yet (`SIOCOUTQNSD` in linux/sockios.h),
    /// which tells how full the send queue is; at least 1 if the stream cannot say.
    fn unsent(&self) -> u64;

    /// Whether a read may return fewer bytes than there are, without a further event for the rest:
    /// a Unix stream stops behind passed descriptors (unix(7)).
    fn stops_short(&self) -> bool;
}
