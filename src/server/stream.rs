//! The stream of a connection: a connected socket, and what the server records about it.
//!
//! Reads and writes go straight to recv(2) and send(2) on the descriptor, beside mio, although its
//! documentation asks that all I/O on a registered socket pass through mio.  The reason for that rule is
//! the state that mio keeps on Windows, where it has to ask for the next event after a `WouldBlock`.
//! On Linux it keeps none: epoll(7) itself announces a socket again once it becomes ready after a
//! `WouldBlock`, whichever code made the call, and mio's own read only calls the C library.  That call
//! is what is avoided: with a second thread in the process, calls of the C library are points where a
//! thread may be cancelled (pthread_setcancelstate(3)), which costs more than the rest of a turn.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::SockRef;

use crate::config::address::unmapped;
use crate::echo::stream::Duplex;
use crate::echo::time::MonoTime;
use crate::preserve::partition::RecordId;
use crate::preserve::state_file::{Before, Taken};
use crate::proxy_header::{Addresses, Header, Invalid};
use crate::sys::bind::is_local;
use crate::sys::endpoint::Endpoint;
use crate::sys::rights::{self, Apart};
use crate::sys::sockopt::{Credentials, credentials, unacknowledged, unsent};

/// A connected socket and what the server records about it.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Socket,
    /// The number of the connection, which no other one of this service has, in no process.
    pub number: u64,
    /// The index of the name of its listener in [`super::worker::Worker::names`].
    pub listener: u32,
    /// Whether `TCP_QUICKACK` is set again after each read: the kernel does not keep it (tcp(7)).
    pub quickack: bool,
    /// Whether another descriptor may refer to the socket: it was passed, or is preserved.
    pub shared: bool,
    /// The PROXY header before its stream.
    pub header: ProxyHeader,
    /// Its record in the state file; `None`: it is not preserved.
    pub record_id: Option<RecordId>,
}

/// What is known of the PROXY header before the stream of a connection.
#[derive(Debug)]
pub(crate) enum ProxyHeader {
    /// Connections of this listener begin without one.
    Off,
    /// It has not arrived completely, which it has to until this time.
    Expected(MonoTime),
    /// The peer is none of the proxies whose headers are taken.
    Untrusted,
    /// What has arrived is none.  In a box, as every open connection has room for this.
    Invalid(Box<Invalid>),
    /// What it says.
    Taken(Box<Header>),
}

impl ProxyHeader {
    /// The addresses that the header gives.
    #[must_use]
    pub(crate) fn addresses(&self) -> Option<Addresses> {
        match self {
            Self::Taken(header) => header.addresses,
            _ => None,
        }
    }

    /// What the previous process has recorded.  A header that is missing still has the time until `due`.
    #[must_use]
    pub(crate) fn restored(before: Before, due: MonoTime) -> Self {
        match before {
            Before::Nothing => Self::Off,
            Before::Header => Self::Expected(due),
            Before::Taken(Taken { length, addresses }) => Self::Taken(Box::new(Header {
                length,
                addresses,
                ..Header::default()
            })),
        }
    }

    /// When the header has to be complete, if it is missing.
    #[must_use]
    pub(crate) fn due(&self) -> Option<MonoTime> {
        match self {
            Self::Expected(due) => Some(*due),
            _ => None,
        }
    }

    /// What the record of a connection has of it.
    #[must_use]
    pub(crate) fn before(&self) -> Before {
        match self {
            Self::Off => Before::Nothing,
            Self::Expected(_) | Self::Untrusted | Self::Invalid(_) => Before::Header,
            Self::Taken(header) => Before::Taken((&**header).into()),
        }
    }
}

impl From<&Header> for Taken {
    fn from(header: &Header) -> Self {
        Self {
            length: header.length,
            addresses: header.addresses,
        }
    }
}

/// A connected socket of either kind.
#[derive(Debug)]
pub(crate) enum Socket {
    /// A TCP socket, and the address of its peer.
    Tcp(TcpStream, SocketAddr),
    /// A Unix stream socket (unix(7)).
    Unix(Apart<UnixStream>),
}

impl Stream {
    /// A stream of a socket that was accepted, passed or restored.
    #[must_use]
    pub(crate) fn new(socket: Socket, number: u64, listener: u32, quickack: bool) -> Self {
        Self {
            socket,
            number,
            listener,
            quickack,
            shared: false,
            header: ProxyHeader::Off,
            record_id: None,
        }
    }

    /// Whether it can be preserved, and is not yet.  A connection that was passed cannot: the process
    /// that passed it may have moved bytes, so this process counts from another position than the
    /// kernel.
    pub(super) fn can_be_preserved(&self) -> bool {
        !self.shared && !self.is_doubtful()
    }

    /// Whether its queue may hold descriptors that the peer has sent ([`rights`]).  Such a stream is
    /// never preserved: the service manager would have to close them, and may block in that.
    #[must_use]
    pub(crate) fn is_doubtful(&self) -> bool {
        matches!(&self.socket, Socket::Unix(socket) if socket.doubtful)
    }

    /// The address of the client: the one that its PROXY header gives, or that of the peer.
    #[must_use]
    pub(crate) fn client(&self) -> Endpoint {
        match self.header.addresses() {
            Some(Addresses { source, .. }) => Endpoint::Ip(source),
            None => self.peer(),
        }
    }

    /// The address of the proxy that has given other addresses than those of the socket.
    #[must_use]
    pub(crate) fn proxy(&self) -> Option<Endpoint> {
        self.header.addresses().map(|_| self.peer())
    }

    /// The address of the peer.
    #[must_use]
    pub(crate) fn peer(&self) -> Endpoint {
        match &self.socket {
            Socket::Tcp(_, peer) => Endpoint::Ip(unmapped(*peer)),
            Socket::Unix(socket) => socket
                .peer_addr()
                .map_or(Endpoint::Unix(None), Endpoint::from),
        }
    }

    /// The process of the peer; `None` for TCP, and where the kernel does not know it.
    #[must_use]
    pub(crate) fn credentials(&self) -> Option<Credentials> {
        match &self.socket {
            Socket::Tcp(..) => None,
            Socket::Unix(_) => credentials(self),
        }
    }

    /// The IP address and port of the peer; `None` for a Unix stream.
    #[must_use]
    pub(crate) fn peer_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(_, peer) => Some(unmapped(*peer)),
            Socket::Unix(_) => None,
        }
    }

    /// The address that the client has connected to: the one that its PROXY header gives, or that of
    /// this end.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub(crate) fn local(&self) -> io::Result<Endpoint> {
        if let Some(Addresses { destination, .. }) = self.header.addresses() {
            return Ok(Endpoint::Ip(destination));
        }
        match &self.socket {
            Socket::Tcp(socket, _) => socket
                .local_addr()
                .map(|address| Endpoint::Ip(unmapped(address))),
            Socket::Unix(socket) => socket.local_addr().map(Endpoint::from),
        }
    }
}

/// The source for which a connection counts towards `max-connections-per-source`: the IPv4 address of
/// its peer, or the /64 network of its IPv6 address, as a host usually has all addresses of one
/// (RFC 4291, section 2.5.1).  `None` for this host, where all processes share one address, and for a
/// proxy, whose address is that of many clients.
#[must_use]
pub(crate) fn source_of(stream: &Stream) -> Option<IpAddr> {
    let address = match &stream.header {
        ProxyHeader::Off => stream.peer_address()?.ip(),
        header => header.addresses()?.source.ip(),
    };
    if is_local(address) {
        return None;
    }
    Some(match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(ip) => {
            let network = ip.segments();
            [network[0], network[1], network[2], network[3], 0, 0, 0, 0].into()
        }
    })
}

impl Read for Stream {
    // In the path of every message, and beside it in that of headers.
    #[inline(always)]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_doubtful() {
            return rights::read(self, buffer);
        }
        let (count, _) = recv(&*self, buffer, RecvFlags::empty())?;
        if self.quickack {
            // The kernel refuses it where the peer is gone, which the next read reports.
            let _ = SockRef::from(&*self).set_tcp_quickack(true);
        }
        Ok(count)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(&*self, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Duplex for Stream {
    fn finish_write(&mut self) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(socket, _) => socket.shutdown(Shutdown::Write),
            Socket::Unix(socket) => socket.shutdown(Shutdown::Write),
        }
    }

    fn unread(&self) -> Option<u64> {
        rustix::io::ioctl_fionread(self).ok()
    }

    fn unacknowledged(&self) -> u64 {
        match &self.socket {
            // One of them may be the FIN, which the kernel counts as a byte.
            Socket::Tcp(socket, _) => unacknowledged(socket).saturating_sub(1),
            // What was written is in the queue of the peer already.
            Socket::Unix(_) => 0,
        }
    }

    fn unsent(&self) -> u64 {
        match &self.socket {
            Socket::Tcp(socket, _) => unsent(socket).unwrap_or(1),
            Socket::Unix(_) => 1,
        }
    }

    fn stops_short(&self) -> bool {
        matches!(self.socket, Socket::Unix(_))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(socket, _) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Source for Stream {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        match &mut self.socket {
            Socket::Tcp(socket, _) => socket.register(registry, token, interest),
            Socket::Unix(socket) => (**socket).register(registry, token, interest),
        }
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        match &mut self.socket {
            Socket::Tcp(socket, _) => socket.reregister(registry, token, interest),
            Socket::Unix(socket) => (**socket).reregister(registry, token, interest),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match &mut self.socket {
            Socket::Tcp(socket, _) => socket.deregister(registry),
            Socket::Unix(socket) => (**socket).deregister(registry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every open connection takes as much.  In a debug build mio's streams have a check of their own.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn a_stream_is_small() {
        let apart = size_of::<Stream>() - size_of::<TcpStream>();
        assert!(apart <= 72, "{apart} bytes beside the socket");
    }
}
