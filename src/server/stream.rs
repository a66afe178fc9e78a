//! The stream of a connection as the server knows it: a socket, whose it is, and what has to be
//! done for it per read.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::SockRef;

use crate::config::address::unmapped;
use crate::echo::duplex::Duplex;
use crate::survival::lane::Seat;
use crate::system::bind::is_local;
use crate::system::events::Endpoint;
use crate::system::rights::{self, Apart};
use crate::system::socket::{Credentials, credentials, unacknowledged, unsent};

/// A connected socket and what the server remembers of it.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    /// Its number, which no other connection of the service has.
    pub number: u64,
    /// The index of the listener that accepted it.
    pub listener: u32,
    /// Whether `TCP_QUICKACK` is set again after each read: the kernel forgets it (tcp(7)).
    pub quickack: bool,
    /// Whether somebody else may hold the socket too: it was passed, or is kept for a successor.
    pub shared: bool,
    /// Where it is noted in the arena, if it is kept for a successor.
    pub seat: Option<Seat>,
}

/// A socket of either family, with the address of a peer of TCP.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream, SocketAddr),
    /// A Unix stream.
    Unix(Apart<UnixStream>),
}

impl Stream {
    /// A stream that was accepted, or passed.
    #[must_use]
    pub fn new(socket: Socket, number: u64, listener: u32, quickack: bool) -> Self {
        Self {
            socket,
            number,
            listener,
            quickack,
            shared: false,
            seat: None,
        }
    }

    /// Whether it can be kept for a successor.  What was passed to us as a conversation counts its bytes
    /// from another beginning than the kernel.
    pub(super) fn can_be_kept(&self) -> bool {
        !self.shared && !self.is_doubtful()
    }

    /// Whether descriptors may be in its queue: such a stream is never kept, or the service manager
    /// would drop them, and wait.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        matches!(&self.socket, Socket::Unix(socket) if socket.doubtful)
    }

    /// The other side.
    #[must_use]
    pub fn peer(&self) -> Endpoint {
        match &self.socket {
            Socket::Tcp(_, peer) => Endpoint::Ip(unmapped(*peer)),
            Socket::Unix(socket) => socket
                .peer_addr()
                .map_or(Endpoint::Unix(None), Endpoint::from),
        }
    }

    /// The process of the peer, where it can be told.
    #[must_use]
    pub fn credentials(&self) -> Option<Credentials> {
        match &self.socket {
            Socket::Tcp(..) => None,
            Socket::Unix(_) => credentials(self),
        }
    }

    /// The other side's address, if it has one.
    #[must_use]
    pub fn peer_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(_, peer) => Some(unmapped(*peer)),
            Socket::Unix(_) => None,
        }
    }

    /// Our side, by getsockname(2).
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn local(&self) -> io::Result<Endpoint> {
        match &self.socket {
            Socket::Tcp(socket, _) => socket
                .local_addr()
                .map(|address| Endpoint::Ip(unmapped(address))),
            Socket::Unix(socket) => socket.local_addr().map(Endpoint::from),
        }
    }
}

/// Whom the cap on connections is for: not for this host, whose processes share one address.  An
/// IPv6 host commands a whole network of 64 bits, so that is one source.
#[must_use]
pub fn source_of(stream: &Stream) -> Option<IpAddr> {
    let address = stream.peer_address()?.ip();
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
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_doubtful() {
            return rights::read(self, buffer);
        }
        // Not through the C library: with a second thread in the process its calls are points where a
        // thread may be cancelled, which costs more than the rest of the turn.
        let (count, _) = recv(&*self, buffer, RecvFlags::empty())?;
        if self.quickack {
            // Refused by a peer that is gone: the next read says so.
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
            // One byte may be the FIN.
            Socket::Tcp(socket, _) => unacknowledged(socket).saturating_sub(1),
            // What was written is with the peer already.
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
