//! Taking connections in: limits first, then a seat, then the poll.

use std::io;
use std::net::IpAddr;

use mio::net::{TcpStream, UnixStream};

use super::lifecycle::Life;
use super::listener::{BURST, Failure, Listener, SHORT, State};
use super::source::Source;
use super::stream::{Socket, Stream};
use super::{INPUT, Server};
use crate::cli::Level;
use crate::system::activation::StreamSocket;
use crate::system::bind::is_local;
use crate::system::events::{Endpoint, Event, Pause};
use crate::system::kernel::is_alone;
use crate::system::report::read_back;
use crate::system::socket::{self, Refused};

impl Server {
    /// Adds a listener and registers it.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn add_listener(
        &mut self,
        mut listener: Listener,
        refused: Vec<Refused>,
    ) -> io::Result<()> {
        let index = self.listeners.len();
        listener.register(self.poll.registry(), Source::Listener(index).into())?;
        if let Some(socket) = listener.socket() {
            let rows = read_back(&socket, &listener.options, &self.kernel);
            self.log.tell(Event::Listening {
                listener: listener.name.clone(),
                local: listener.local.clone(),
                passed: listener.passed,
                rows,
            });
        }
        for refused in refused {
            self.log.tell(Event::Option {
                listener: listener.name.clone(),
                refused,
            });
        }
        let beyond = matches!(&listener.local, Endpoint::Ip(address) if !is_local(address.ip()));
        // A passed socket may belong to another network namespace than we do.
        if beyond && !listener.passed && is_alone() == Some(true) {
            self.log.tell(Event::Alone {
                listener: listener.name.clone(),
                local: listener.local.clone(),
            });
        } else if beyond && !self.config.open {
            self.log.tell(Event::Open {
                listener: listener.name.clone(),
                local: listener.local.clone(),
            });
        }
        self.names.push(listener.name.clone());
        self.listeners.push(listener);
        Ok(())
    }

    /// Takes in a connection that was passed; every listener must be there already.
    ///
    /// # Errors
    /// It cannot be registered.
    pub fn add_connection(&mut self, name: String, socket: StreamSocket) -> io::Result<()> {
        let index = self.names.len();
        let options = self.config.options_for(&name).clone();
        self.names.push(name);
        let socket = match socket {
            StreamSocket::Tcp(socket) => match socket.peer_addr() {
                Ok(peer) => Socket::Tcp(TcpStream::from_std(socket), peer),
                // Its peer has reset it before we came to look.
                Err(error) => {
                    self.tell_lost(index, error.raw_os_error().unwrap_or(0));
                    return Ok(());
                }
            },
            StreamSocket::Unix(socket) => Socket::Unix(UnixStream::from_std(socket)),
        };
        let mut stream = self.stream(socket, index);
        stream.quickack = options.quickack == Some(true);
        stream.shared = true;
        let refused = socket::apply(&stream, &options);
        self.tell_refused(index, refused);
        self.seat(stream)
    }

    /// Gives every listener that has something to do a burst; each round another one is first, so
    /// that at a limit they share the places.
    pub(super) fn accept(&mut self) {
        let count = self.listeners.len();
        self.first = self.first.wrapping_add(1);
        for offset in 0..count {
            let index = self.first.wrapping_add(offset) % count;
            if self.listeners[index].is_due(self.now) {
                self.accept_burst(index);
            }
        }
    }

    fn accept_burst(&mut self, index: usize) {
        let announced = std::mem::take(&mut self.listeners[index].announced);
        let (mut taken, mut lost) = (0, 0);
        while taken + lost < BURST {
            if self.shard.len() >= self.max_connections {
                return self.pause(index, State::Full, Pause::Limit);
            }
            let error = match self.listeners[index].accept() {
                Ok(socket) => {
                    taken += 1;
                    self.admit(index, socket);
                    continue;
                }
                Err(error) => error,
            };
            let errno = error.raw_os_error().unwrap_or(0);
            match Failure::of(errno) {
                Failure::Drained if announced && taken + lost == 0 => {
                    // Somebody else was faster, or accept failed for once: look again, once.
                    self.listeners[index].state = State::Short(self.now + SHORT);
                    return;
                }
                Failure::Drained => return self.listeners[index].drained(self.poll.registry()),
                Failure::Caller => {
                    lost += 1;
                    // An interruption loses nobody: the next attempt finds the same caller.
                    if errno != libc::EINTR {
                        self.tell_lost(index, errno);
                    }
                }
                Failure::Failing if self.listeners[index].is_draining() => {
                    return self.listeners[index].close(self.poll.registry());
                }
                // Nobody waits, so nobody is kept waiting: the next caller will be announced.
                Failure::Short if !self.listeners[index].has_callers() => {
                    return self.listeners[index].drained(self.poll.registry());
                }
                failure => {
                    let again = self.now + self.listeners[index].patience(errno);
                    let pause = match failure {
                        Failure::Short => Pause::Short(errno),
                        _ => Pause::Failing(errno),
                    };
                    return self.pause(index, State::Short(again), pause);
                }
            }
        }
        // Nothing but failures would keep us busy for nothing.
        let state = if taken == 0 {
            State::Short(self.now + SHORT)
        } else {
            State::Ready
        };
        self.listeners[index].spent(taken, state, self.poll.registry());
    }

    fn admit(&mut self, index: usize, socket: Socket) {
        let stream = self.stream(socket, index);
        if let (Some(most), Some(source)) = (self.per_source, source_of(&stream)) {
            if self
                .sources
                .get(&source)
                .is_some_and(|count| *count >= most)
            {
                self.refused += 1;
                if let Some(count) = self.refusals.pass(self.now) {
                    self.log.tell(Event::Refused {
                        peer: stream.peer(),
                        most,
                        count,
                    });
                }
                return;
            }
        }
        let listener = &self.listeners[index];
        if listener.fresh || !listener.inherits() {
            let refused = socket::apply(&stream, &listener.options);
            self.tell_refused(index, refused);
        }
        if let Err(error) = self.seat(stream) {
            self.tell_lost(index, error.raw_os_error().unwrap_or(0));
        }
    }

    fn stream(&mut self, socket: Socket, index: usize) -> Stream {
        self.number += 1;
        let options = self
            .listeners
            .get(index)
            .map_or(&self.config.socket, |listener| &listener.options);
        let quickack = options.quickack == Some(true);
        Stream::new(
            socket,
            self.number,
            u32::try_from(index).unwrap_or(u32::MAX),
            quickack,
        )
    }

    /// Seats a connection and registers it.
    fn seat(&mut self, stream: Stream) -> io::Result<()> {
        if self.log.wants(Level::Debug) {
            let who = self.who(&stream);
            self.log.tell(Event::Opened(who));
        }
        self.count_source(&stream);
        let (number, kept) = (stream.number, !stream.shared);
        let key = self.shard.insert(stream, self.now);
        let token = Source::Connection(key).into();
        let registered = self
            .poll
            .registry()
            .register(self.shard.stream_mut(key), token, INPUT);
        if let Err(error) = registered {
            self.fail(key, &error);
            return Err(error);
        }
        if matches!(self.life, Life::Leaving { .. }) {
            self.shard.leave(key, self.now);
        } else if kept {
            self.keeper.arrived(key, number, self.now);
        }
        Ok(())
    }

    /// Counts a connection's source.
    pub(super) fn count_source(&mut self, stream: &Stream) {
        if let Some(source) = source_of(stream) {
            *self.sources.entry(source).or_default() += 1;
        }
    }

    /// Uncounts a connection's source.
    pub(super) fn forget_source(&mut self, stream: &Stream) {
        let Some(source) = source_of(stream) else {
            return;
        };
        if let Some(count) = self.sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
    }

    fn pause(&mut self, index: usize, state: State, pause: Pause) {
        self.listeners[index].state = state;
        if let Some(count) = self.pauses.pass(self.now) {
            let listener = self.listeners[index].name.clone();
            self.log.tell(Event::Paused {
                listener,
                pause,
                open: self.shard.counters().open(),
                count,
            });
        }
    }

    fn tell_lost(&mut self, index: usize, errno: i32) {
        if let Some(count) = self.failures.pass(self.now) {
            self.log.tell(Event::AcceptFailed {
                listener: self.names[index].clone(),
                errno,
                count,
            });
        }
    }

    /// Tells options that one accepted socket was refused, and with it perhaps each.
    fn tell_refused(&mut self, index: usize, refused: Vec<Refused>) {
        for refused in refused {
            if self.failures.pass(self.now).is_some() {
                self.log.tell(Event::Option {
                    listener: self.names[index].clone(),
                    refused,
                });
            }
        }
    }
}

/// Whom the cap on connections is for: not for this host, whose processes share one address.  An
/// IPv6 host commands a whole network of 64 bits, so that is one source.
fn source_of(stream: &Stream) -> Option<IpAddr> {
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
