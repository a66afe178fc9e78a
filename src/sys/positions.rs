//! The positions of a connection: how many bytes were read from it and written to it, by the counters of
//! the kernel (`TCP_INFO`, tcp(7)).
//!
//! The kernel counts what every process has read and written that had the socket, so the positions are
//! right after a crash as well, whatever that process has recorded.
//!
//! - Read = `tcpi_bytes_received`, minus what waits to be read (`SIOCINQ`), minus the FIN of the peer,
//!   which counts as a byte received.
//! - Written = `tcpi_bytes_acked`, plus what is not acknowledged yet (`SIOCOUTQ`), minus the FIN of this
//!   end.
//!
//! The first sum requires that urgent bytes stay in the stream (`SO_OOBINLINE`), which
//! [`super::sockopt::apply`] sets.  The counters change while the peer sends and acknowledges, so as a
//! rule they are read before and after the queues until both readings agree.
//!
//! Where nothing is under way, one reading is enough, as all of it is of one moment:
//!
//! - If everything that was written was sent and acknowledged (`tcpi_unacked` and `tcpi_notsent_bytes`
//!   are 0), `tcpi_bytes_acked` is what was written.  That does not change until something is written.
//! - If nothing waits to be read, `tcpi_bytes_received` is what was read.  What waits can only grow
//!   while nothing is read, so nothing has waited if nothing does after the reading.  Nor has anything
//!   if it is known that as many bytes were read already.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::sockopt::unacknowledged;
use super::tcp_info::{TcpInfo, field, state};

/// The most readings: for so many, a peer would have to change the counters between every two.
const TRIES: usize = 10_000;

/// How many bytes were read and written, and in which state the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Positions {
    /// Bytes that were read from the socket.
    pub received: u64,
    /// Bytes that were written to the socket.
    pub sent: u64,
    /// Whether this end has sent its FIN.
    pub finished: bool,
    /// Whether the connection is over: reset, timed out, or ended by both sides.
    pub over: bool,
    /// Whether bytes or the FIN of the peer may wait to be read.
    pub input: bool,
    /// How long no bytes have moved in either direction, in whole milliseconds.
    pub quiet: Duration,
}

/// The readings that are compared.
struct Reading {
    state: u64,
    acked: u64,
    received: u64,
    /// Whether everything that was written was sent and acknowledged, for certain.
    acknowledged: bool,
    /// Since bytes last went in either direction.
    quiet: Duration,
}

impl Reading {
    fn of(socket: &impl AsFd) -> io::Result<Self> {
        let info = TcpInfo::of(socket)?;
        let get = |field| info.get(field).ok_or(io::ErrorKind::Unsupported);
        let quiet = get(field::LAST_DATA_SENT)?.min(get(field::LAST_DATA_RECV)?);
        Ok(Self {
            state: get(field::STATE)?,
            acked: get(field::BYTES_ACKED)?,
            received: get(field::BYTES_RECEIVED)?,
            acknowledged: info.get(field::UNACKED) == Some(0)
                && info.get(field::NOTSENT) == Some(0),
            quiet: Duration::from_millis(quiet),
        })
    }

    fn counts(&self) -> (u64, u64, u64) {
        (self.state, self.acked, self.received)
    }

    /// The positions, if this reading is enough for them.
    fn alone(&self, socket: &impl AsFd, at_least: u64) -> io::Result<Option<Positions>> {
        let ended = match self.state {
            state::ESTABLISHED => false,
            state::CLOSE_WAIT => true,
            _ => return Ok(None),
        };
        let received = self.received.saturating_sub(ended.into());
        let is_exact =
            self.acknowledged && (received == at_least || rustix::io::ioctl_fionread(socket)? == 0);
        Ok(is_exact.then_some(Positions {
            received,
            sent: self.acked,
            finished: false,
            over: false,
            input: ended,
            quiet: self.quiet,
        }))
    }
}

/// Reads the positions of a TCP connection.  No thread may read or write it meanwhile.  `at_least`: so
/// many bytes were read from it, as far as is known.
///
/// # Errors
/// Those of getsockopt(2), for a socket that is not one of TCP; `Unsupported` for a kernel before 4.1;
/// `NotConnected` while the handshake of a connection with TCP Fast Open (RFC 7413) is not complete, as
/// the kernel does not report its queues until then.
pub(crate) fn positions(socket: &impl AsFd, at_least: u64) -> io::Result<Positions> {
    let mut before = Reading::of(socket)?;
    if let Some(found) = before.alone(socket, at_least)? {
        return Ok(found);
    }
    for _ in 0..TRIES {
        let unread = rustix::io::ioctl_fionread(socket)?;
        let unacknowledged = unacknowledged(socket);
        let after = Reading::of(socket)?;
        if before.counts() != after.counts() {
            before = after;
            continue;
        }
        let state = after.state;
        if state == state::SYN_RECV {
            // TCP Fast Open: the kernel reports empty queues until the handshake is complete.
            return Err(io::ErrorKind::NotConnected.into());
        }
        let ended = matches!(
            state,
            state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING | state::TIME_WAIT
        );
        let finished = matches!(
            state,
            state::FIN_WAIT1
                | state::FIN_WAIT2
                | state::CLOSING
                | state::LAST_ACK
                | state::TIME_WAIT
        );
        let sent = after.acked + unacknowledged;
        return Ok(Positions {
            received: after.received.saturating_sub(unread + u64::from(ended)),
            sent: sent.saturating_sub(u64::from(finished)),
            finished,
            over: state == state::CLOSE,
            input: ended || unread > 0,
            quiet: after.quiet,
        });
    }
    Err(io::Error::other("the counters never stood still"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;
    use std::time::Instant;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[track_caller]
    fn expect(server: &TcpStream, wanted: (u64, u64, bool)) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let found = positions(server, 0).unwrap();
            if (found.received, found.sent, found.finished) == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{wanted:?} expected, {found:?}");
        }
    }

    #[test]
    fn positions_count_the_bytes_read_and_written_and_no_fin() {
        let (mut client, mut server) = pair();
        expect(&server, (0, 0, false));
        client.write_all(&[1; 1000]).unwrap();
        let mut buffer = [0; 400];
        server.read_exact(&mut buffer).unwrap();
        expect(&server, (400, 0, false));
        server.write_all(&buffer).unwrap();
        expect(&server, (400, 400, false));
        client.shutdown(Shutdown::Write).unwrap();
        expect(&server, (400, 400, false));
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).unwrap();
        expect(&server, (1000, 400, false));
        server.shutdown(Shutdown::Write).unwrap();
        let found = positions(&server, 0).unwrap();
        // The connection is over as soon as the client's kernel has acknowledged the FIN.
        assert!(found.over || (found.received, found.sent, found.finished) == (1000, 400, true));
    }

    #[test]
    fn the_fin_of_this_end_is_no_byte_whether_it_was_acknowledged_or_not() {
        let (client, mut server) = pair();
        server.write_all(&[1; 70]).unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        expect(&server, (0, 70, true));
        drop(client);
    }

    #[test]
    fn a_connection_that_was_reset_is_over() {
        let (client, mut server) = pair();
        server.write_all(b"unread").unwrap();
        drop(client);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !positions(&server, 0).unwrap().over {
            assert!(Instant::now() < deadline);
        }
    }

    #[test]
    fn positions_are_exact_at_any_instant() {
        let (client, mut server) = pair();
        let mut reader = client.try_clone().unwrap();
        let peer = std::thread::spawn(move || {
            let mut writer = client;
            // In bursts, so that the queues are empty again and again.
            for length in 1..2000 {
                writer.write_all(&[1; 64][..1 + length % 64]).unwrap();
                if length % 7 == 0 {
                    std::thread::yield_now();
                }
            }
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let taken = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        let (mut received, mut sent) = (0, 0);
        loop {
            let mut buffer = [0; 100];
            let count = server.read(&mut buffer).unwrap();
            received += count as u64;
            for at_least in [received, 0, 1] {
                let found = positions(&server, at_least).unwrap();
                assert_eq!((found.received, found.sent), (received, sent));
            }
            if count == 0 {
                break;
            }
            server.write_all(&buffer[..count]).unwrap();
            sent += count as u64;
            for at_least in [received, 0] {
                let found = positions(&server, at_least).unwrap();
                assert_eq!((found.received, found.sent), (received, sent));
            }
        }
        peer.join().unwrap();
        drop(server);
        assert_eq!(taken.join().unwrap().unwrap(), sent);
    }

    #[test]
    fn a_unix_stream_has_no_positions() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(positions(&one, 0).is_err());
    }
}
