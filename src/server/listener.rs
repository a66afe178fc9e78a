//! A listener: it accepts in bursts, pauses when it has to, and never misses a caller for good.
//!
//! A *caller* is a client with a connection in the accept queue of the kernel.  The poll is
//! edge-triggered (epoll(7)), so callers are announced once.  Those that are not accepted then (the
//! burst is used up, the connection limit is reached, descriptors are short, accept(2) failed) are not
//! announced again: [`State`] records that there are some, and the server tries again.  While a
//! listener is paused, callers stay in the accept queue; none is accepted only to be closed.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener};
use mio::{Interest, Registry, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, acceptfrom_with};

use super::stream::Socket;
use crate::config::Options;
use crate::config::units::Role;
use crate::echo::time::MonoTime;
use crate::sys::activation::ListenSocket;
use crate::sys::bind::OwnPath;
use crate::sys::endpoint::Endpoint;
use crate::sys::rights::Apart;
use crate::sys::sockopt::{Queue, accept_queue};

/// The most callers that a listener accepts in one round, before connections get their turns.
pub(crate) const BURST: usize = 64;

/// The wait between attempts while the system is short of descriptors or memory, which any process may
/// free.
pub(crate) const SHORT: Duration = Duration::from_millis(50);

/// The longest wait between attempts where only this process can free something
/// ([`Listener::backoff`]).
const LONG: Duration = Duration::from_secs(1);

/// When the server tries to accept at a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// When the kernel announces callers.
    Armed,
    /// In the next round.
    Ready,
    /// When a connection has closed.
    Full,
    /// At this time, or when a connection has closed.
    Short(MonoTime),
    /// Not any more.
    Closed,
}

/// A listening socket, and when it accepts.
#[derive(Debug)]
pub(crate) struct Listener {
    /// The name of its table in the configuration, or that of the passed socket
    /// (sd_listen_fds_with_names(3)).
    pub name: String,
    /// Its address, with the port that the kernel has chosen.
    pub local: Endpoint,
    /// Whether the service manager has passed the socket, and holds it too.
    pub passed: bool,
    /// What it is for, for as long as it is open.
    pub role: Role,
    /// The options that the configuration asks for.
    pub options: Options,
    pub state: State,
    /// Whether each accepted socket gets the options by itself.  Callers may have been in the queue
    /// when they were set on the listener, so this lasts until the queue was seen empty.
    pub apply_options: bool,
    /// Whether the kernel has announced callers since the last burst.
    pub announced: bool,
    /// The index of the name in the state file; [`u32::MAX`]: it has none.
    pub recorded: u32,
    /// When the pause began; `None`: callers do not wait.
    pub paused: Option<MonoTime>,
    /// While stopping, how many more callers are accepted; `None` while serving.
    last: Option<usize>,
    /// The latest wait that [`Listener::backoff`] has doubled; zero after a success.
    waited: Duration,
    socket: Option<ListenerSocket>,
    path: Option<OwnPath>,
}

#[derive(Debug)]
enum ListenerSocket {
    Tcp(TcpListener),
    Unix(Apart<UnixListener>),
}

/// What an error of accept(2) means for a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The queue is empty.
    Drained,
    /// One caller is lost; the next may be fine.
    Caller,
    /// The process or the system is short of descriptors or memory.
    Short,
    /// The listener itself fails, perhaps for good.
    Failing,
}

impl Failure {
    /// The meaning of an errno(3), for all that accept(2) and its notes on Linux name.
    #[must_use]
    pub(crate) fn of(errno: i32) -> Self {
        match errno {
            libc::EAGAIN => Self::Drained,
            // These belong to the new socket: Linux passes its pending network errors on (accept(2)).
            libc::ECONNABORTED
            | libc::ECONNRESET
            | libc::EINTR
            | libc::EPERM
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::ENONET
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ETIMEDOUT => Self::Caller,
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::ENOSR => Self::Short,
            _ => Self::Failing,
        }
    }
}

impl Listener {
    /// A listener from a socket that is non-blocking already.  `passed`: the service manager holds it
    /// too; `path`: a Unix path that this process has bound, and unlinks at the end.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub(crate) fn new(
        name: String,
        socket: ListenSocket,
        passed: bool,
        options: Options,
        path: Option<OwnPath>,
    ) -> io::Result<Self> {
        let local = match &socket {
            ListenSocket::Tcp(socket) => Endpoint::Ip(socket.local_addr()?),
            ListenSocket::Unix(socket) => socket.local_addr()?.into(),
        };
        let socket = match socket {
            ListenSocket::Tcp(socket) => ListenerSocket::Tcp(TcpListener::from_std(socket)),
            ListenSocket::Unix(socket) => {
                ListenerSocket::Unix(Apart::listener(UnixListener::from_std(socket)))
            }
        };
        Ok(Self {
            role: options.role(&name),
            name,
            local,
            passed,
            options,
            state: State::Armed,
            // A socket that this process has bound had its options before its first caller.
            apply_options: passed,
            announced: false,
            recorded: u32::MAX,
            paused: None,
            last: None,
            waited: Duration::ZERO,
            socket: Some(socket),
            path,
        })
    }

    /// Records that the kernel has announced callers.
    pub(crate) fn announce(&mut self) {
        if self.state == State::Armed {
            self.state = State::Ready;
            self.announced = true;
        }
    }

    /// Ends a pause, as a connection is over or a limit was raised.
    pub(crate) fn on_room(&mut self) {
        if matches!(self.state, State::Full | State::Short(_)) {
            self.state = State::Ready;
        }
        self.waited = Duration::ZERO;
    }

    /// How long to wait before the next attempt after a failure: 50 ms to one second.
    ///
    /// Descriptors (ENFILE) or memory of the whole system may be freed by any process, without a notice
    /// to this one, so the wait stays short.  The limit of this process (EMFILE) has room again only
    /// when one of its connections closes, which ends the wait, or when the limit is raised; and a
    /// listener that fails may do so for good.  There the wait doubles each time, so that waiting
    /// costs no processor time.
    pub(crate) fn backoff(&mut self, errno: i32) -> Duration {
        if errno != libc::EMFILE && Failure::of(errno) == Failure::Short {
            return SHORT;
        }
        self.waited = (self.waited * 2).clamp(SHORT, LONG);
        self.waited
    }

    /// Whether the server tries to accept in this round.
    #[must_use]
    pub(crate) fn is_due(&self, now: MonoTime) -> bool {
        match self.state {
            State::Ready => true,
            State::Short(until) => until <= now,
            State::Armed | State::Full | State::Closed => false,
        }
    }

    /// Begins to stop.  A listener that this process opened accepts the callers that wait already, at
    /// most as many as the queue can hold, and closes then: without that bound a stream of new callers
    /// would delay the end.  One that was passed closes at once: its queue remains with the service
    /// manager, and the next process serves those callers in full.
    pub(crate) fn drain(&mut self, registry: &Registry) {
        if self.passed {
            return self.close(registry);
        }
        let backlog = self
            .options
            .backlog
            .map_or(4096, |backlog| backlog.0 as usize);
        self.last = Some(backlog);
        if self.state == State::Armed {
            self.state = State::Ready;
        }
    }

    /// Whether this listener closes when its queue is empty.
    #[must_use]
    pub(crate) fn is_draining(&self) -> bool {
        self.last.is_some()
    }

    /// Records that the queue was seen empty.
    pub(crate) fn drained(&mut self, registry: &Registry) {
        self.waited = Duration::ZERO;
        self.apply_options = false;
        self.state = State::Armed;
        if self.is_draining() {
            self.close(registry);
        }
    }

    /// Ends a burst that has accepted `taken` callers and has not seen the queue empty; the listener
    /// goes on in `state`.
    pub(crate) fn spent(&mut self, taken: usize, state: State, registry: &Registry) {
        self.state = state;
        self.waited = Duration::ZERO;
        if let Some(last) = &mut self.last {
            *last = last.saturating_sub(taken);
            if *last == 0 {
                self.close(registry);
            }
        }
    }

    /// Accepts one caller.
    ///
    /// # Errors
    /// Those of accept(2), for which [`Failure::of`] gives the meaning; `WouldBlock` once it is closed.
    pub(crate) fn accept(&mut self) -> io::Result<Socket> {
        match &self.socket {
            Some(ListenerSocket::Tcp(socket)) => {
                // A direct system call, for the reason that [`super::stream`] gives.
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let (socket, peer) = acceptfrom_with(socket, flags)?;
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                let peer = peer.ok_or(io::ErrorKind::InvalidInput)?;
                let socket = std::net::TcpStream::from(socket);
                Ok(Socket::Tcp(TcpStream::from_std(socket), peer))
            }
            Some(ListenerSocket::Unix(socket)) => {
                let (socket, _) = socket.accept()?;
                Ok(Socket::Unix(Apart::stream(socket)))
            }
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Whether a caller waits, or may wait, by poll(2): accept(2) makes the new socket before it looks
    /// at the queue, which is expensive and fails for want of a descriptor.
    #[must_use]
    pub(crate) fn has_callers(&self) -> bool {
        let Some(socket) = self.socket() else {
            return false;
        };
        let mut polled = [PollFd::new(&socket, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())) != Ok(0)
    }

    /// Whether accepted sockets inherit the options of the listener, as those of TCP do.
    #[must_use]
    pub(crate) fn inherits(&self) -> bool {
        matches!(self.socket, Some(ListenerSocket::Tcp(_)))
    }

    /// Registers the listener with a poll, which announces callers by `token`.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.socket {
            Some(ListenerSocket::Tcp(socket)) => {
                socket.register(registry, token, Interest::READABLE)
            }
            Some(ListenerSocket::Unix(socket)) => {
                (**socket).register(registry, token, Interest::READABLE)
            }
            None => Ok(()),
        }
    }

    /// Stops accepting.  A socket that this process opened is closed, so the kernel refuses new
    /// callers; one that was passed stays open, and callers wait in its queue for the next process.
    pub(crate) fn close(&mut self, registry: &Registry) {
        self.state = State::Closed;
        // An error means that it was not registered.
        let _ = match &mut self.socket {
            Some(ListenerSocket::Tcp(socket)) => socket.deregister(registry),
            Some(ListenerSocket::Unix(socket)) => (**socket).deregister(registry),
            None => Ok(()),
        };
        if !self.passed {
            self.socket = None;
            if let Some(path) = self.path.take() {
                path.unlink();
            }
        }
    }

    /// The address and the accept queue; `None` once it is closed, or where the kernel does not report
    /// the queue (Unix sockets).
    #[must_use]
    pub(crate) fn queue(&self) -> Option<(Endpoint, Queue)> {
        Some((self.local.clone(), accept_queue(&self.socket()?)?))
    }

    /// The socket, unless it was closed.
    #[must_use]
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(|socket| match socket {
            ListenerSocket::Tcp(socket) => socket.as_fd(),
            ListenerSocket::Unix(socket) => socket.as_fd(),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            path.unlink();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_only_while_this_process_itself_is_short() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        socket.set_nonblocking(true).expect("non-blocking");
        let socket = ListenSocket::Tcp(socket);
        let options = Options::default();
        let mut listener =
            Listener::new("test".into(), socket, false, options, None).expect("a listener");
        let mut waits = [Duration::ZERO; 7].map(|_| listener.backoff(libc::EMFILE));
        assert_eq!(waits[..2], [SHORT, 2 * SHORT]);
        assert_eq!(waits[5..], [LONG; 2]);
        assert_eq!(listener.backoff(libc::ENFILE), SHORT);
        listener.on_room();
        waits[0] = listener.backoff(libc::EMFILE);
        assert_eq!(waits[0], SHORT);
    }

    #[test]
    fn every_error_of_accept_has_a_meaning() {
        for (errno, failure) in [
            (libc::EAGAIN, Failure::Drained),
            (libc::EWOULDBLOCK, Failure::Drained),
            (libc::ECONNABORTED, Failure::Caller),
            (libc::EINTR, Failure::Caller),
            (libc::EPERM, Failure::Caller),
            (libc::EPROTO, Failure::Caller),
            (libc::EHOSTUNREACH, Failure::Caller),
            (libc::EMFILE, Failure::Short),
            (libc::ENFILE, Failure::Short),
            (libc::ENOBUFS, Failure::Short),
            (libc::ENOMEM, Failure::Short),
            (libc::EINVAL, Failure::Failing),
            (libc::EBADF, Failure::Failing),
            (libc::ENOTSOCK, Failure::Failing),
            (libc::EFAULT, Failure::Failing),
        ] {
            assert_eq!(
                Failure::of(errno),
                failure,
                "{}",
                io::Error::from_raw_os_error(errno)
            );
        }
    }
}
