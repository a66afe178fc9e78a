//! A listener: accepts in bursts, waits when it has to, and is never deaf.
//!
//! Edge triggering announces callers once.  Whatever is not accepted then (the burst is used up,
//! the connection limit is reached, descriptors are short, accept failed) is not announced again:
//! [`State`] remembers it, and the server comes back.  While a listener is paused the kernel's
//! queue holds the callers; nobody is accepted only to be closed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use mio::event::Source;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::stream::Socket;
use crate::config::Options;
use crate::echo::tick::Tick;
use crate::system::activation::ListenSocket;
use crate::system::bind::OwnPath;
use crate::system::events::Endpoint;
use crate::system::rights::Apart;
use crate::system::socket::{Queue, accept_queue};

/// Callers accepted in one turn before connections get theirs.
pub const BURST: usize = 64;

/// Between attempts while the system is short of descriptors or memory: others may free some.
pub const SHORT: Duration = Duration::from_millis(50);

/// The longest wait between attempts where nobody else can help: see [`Listener::patience`].
const LONG: Duration = Duration::from_secs(1);

/// What the server has to do about a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing until the kernel announces callers.
    Armed,
    /// Try again in the next round.
    Ready,
    /// Try again when a connection has closed.
    Full,
    /// Try again then, or when a connection has closed.
    Short(Tick),
    /// Nothing any more.
    Closed,
}

/// One listener.
#[derive(Debug)]
pub struct Listener {
    /// Its name in the configuration, or that of the passed socket.
    pub name: String,
    /// Where it listens.
    pub local: Endpoint,
    /// Whether the service manager holds it too.
    pub passed: bool,
    /// What was asked of its socket.
    pub options: Options,
    /// What to do about it.
    pub state: State,
    /// Options were set while callers may have been in the queue already: what is accepted gets
    /// them one by one, until the queue was seen empty.
    pub fresh: bool,
    /// The kernel has announced callers since the last burst.
    pub announced: bool,
    /// Since when it has kept callers waiting, as far as is known.
    pub paused: Option<Tick>,
    /// How many more callers are accepted after the stop; `None` while serving.
    last: Option<usize>,
    /// The last wait where nobody else can help.
    waited: Duration,
    socket: Option<ListenerSocket>,
    path: Option<OwnPath>,
}

#[derive(Debug)]
enum ListenerSocket {
    Tcp(TcpListener),
    Unix(Apart<UnixListener>),
}

/// What an error of accept(2) means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody waits.
    Drained,
    /// That one caller is lost; the next may be fine.
    Caller,
    /// Descriptors or memory are short.
    Short,
    /// The listener fails, perhaps for good.
    Failing,
}

impl Failure {
    /// Sorts the errors, all that accept(2) and its Linux notes name.
    #[must_use]
    pub fn of(errno: i32) -> Self {
        match errno {
            libc::EAGAIN => Self::Drained,
            // Of the new socket: Linux passes pending network errors on.
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
    /// A listener from a socket that is non-blocking already.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn new(
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
            name,
            local,
            passed,
            options,
            state: State::Armed,
            // What we bound ourselves had its options before its first caller.
            fresh: passed,
            announced: false,
            paused: None,
            last: None,
            waited: Duration::ZERO,
            socket: Some(socket),
            path,
        })
    }

    /// Callers were announced.
    pub fn announce(&mut self) {
        if self.state == State::Armed {
            self.state = State::Ready;
            self.announced = true;
        }
    }

    /// A connection has closed, or there may be more of them: there may be room.
    pub fn vacancy(&mut self) {
        if matches!(self.state, State::Full | State::Short(_)) {
            self.state = State::Ready;
        }
        self.waited = Duration::ZERO;
    }

    /// How long to wait before the next attempt after a failure.
    ///
    /// What the whole system is short of may be freed anywhere, and nobody tells us.  Our own
    /// limit (EMFILE) changes only when a connection of ours closes, which tries at once, or when
    /// somebody raises it; and a listener that fails may do so for good.  There we look less and
    /// less often, down to once a second, so that waiting costs no processor time.
    pub fn patience(&mut self, errno: i32) -> Duration {
        if errno != libc::EMFILE && Failure::of(errno) == Failure::Short {
            return SHORT;
        }
        self.waited = (self.waited * 2).clamp(SHORT, LONG);
        self.waited
    }

    /// Whether to try now.
    #[must_use]
    pub fn is_due(&self, now: Tick) -> bool {
        match self.state {
            State::Ready => true,
            State::Short(until) => until <= now,
            State::Armed | State::Full | State::Closed => false,
        }
    }

    /// We are stopping.  A listener of our own takes those who wait already, and closes then: as
    /// many as the queue can hold, or a stream of new callers would keep us here.  One that was
    /// passed keeps its queue for our successor, who can serve them in full.
    pub fn drain(&mut self, registry: &Registry) {
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

    /// Whether we are stopping.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.last.is_some()
    }

    /// The queue was seen empty.
    pub fn drained(&mut self, registry: &Registry) {
        self.waited = Duration::ZERO;
        self.fresh = false;
        self.state = State::Armed;
        if self.is_draining() {
            self.close(registry);
        }
    }

    /// A burst is over before the queue was; goes on in `state`.
    pub fn spent(&mut self, taken: usize, state: State, registry: &Registry) {
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
    /// Those of accept(2); [`Failure::of`] sorts them.
    pub fn accept(&mut self) -> io::Result<Socket> {
        match &self.socket {
            Some(ListenerSocket::Tcp(socket)) => socket
                .accept()
                .map(|(socket, peer)| Socket::Tcp(socket, peer)),
            Some(ListenerSocket::Unix(socket)) => {
                let (socket, _) = socket.accept()?;
                Ok(Socket::Unix(Apart::stream(socket)))
            }
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Whether somebody waits to be accepted, by poll(2): accept(2) looks for a descriptor first.
    #[must_use]
    pub fn has_callers(&self) -> bool {
        let Some(socket) = self.socket() else {
            return false;
        };
        let mut polled = [PollFd::new(&socket, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Whether an accepted socket inherits its options: not from a Unix listener.
    #[must_use]
    pub fn inherits(&self) -> bool {
        matches!(self.socket, Some(ListenerSocket::Tcp(_)))
    }

    /// Registers it for callers.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
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

    /// Takes no more callers.  Our own socket is closed, and new callers are refused; one that was
    /// passed stays open and keeps them for our successor.
    pub fn close(&mut self, registry: &Registry) {
        self.state = State::Closed;
        // Failing means that it was not registered.
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

    /// Who waits to be accepted, where the kernel tells it.
    #[must_use]
    pub fn queue(&self) -> Option<(Endpoint, Queue)> {
        Some((self.local.clone(), accept_queue(&self.socket()?)?))
    }

    /// The socket, unless it is closed.
    #[must_use]
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
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
    fn our_own_shortage_is_looked_at_less_and_less_often() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        socket.set_nonblocking(true).expect("non-blocking");
        let socket = ListenSocket::Tcp(socket);
        let options = Options::default();
        let mut listener =
            Listener::new("test".into(), socket, false, options, None).expect("a listener");
        let mut waits = [Duration::ZERO; 7].map(|_| listener.patience(libc::EMFILE));
        assert_eq!(waits[..2], [SHORT, 2 * SHORT]);
        assert_eq!(waits[5..], [LONG; 2]);
        assert_eq!(listener.patience(libc::ENFILE), SHORT);
        listener.vacancy();
        waits[0] = listener.patience(libc::EMFILE);
        assert_eq!(waits[0], SHORT);
    }

    #[test]
    fn every_error_of_accept_has_its_meaning() {
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
