//! Taking connections in: limits first, then a seat, then the poll.

use std::io;
use std::net::IpAddr;

use mio::net::{TcpStream, UnixStream};

use super::lifecycle::Life;
use super::listener::{BURST, Failure, Listener, SHORT, State};
use super::source::Source;
use super::stream::{Socket, Stream, source_of};
use super::{CROWD, Server};
use crate::cli::Level;
use crate::system::activation::StreamSocket;
use crate::system::bind::is_local;
use crate::system::events::{Endpoint, Event, Pause};
use crate::system::kernel::{is_alone, is_private};
use crate::system::rate::Flood;
use crate::system::report::read_back;
use crate::system::rights::Apart;
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
        // A passed socket may belong to other namespaces than we do.
        let alone = !listener.passed
            && match &listener.local {
                Endpoint::Unix(Some(path)) => is_private(path),
                _ => beyond && is_alone() == Some(true),
            };
        if alone {
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
        self.know(&listener.name);
        self.listeners.push(listener);
        Ok(())
    }

    /// Takes in a connection that was passed; every listener must be there already.
    pub fn add_connection(&mut self, name: &str, socket: StreamSocket) {
        let index = self.know(name);
        let options = self.config.options_of_passed(name);
        let socket = match socket {
            StreamSocket::Tcp(socket) => match socket.peer_addr() {
                Ok(peer) => Socket::Tcp(TcpStream::from_std(socket), peer),
                // Its peer has reset it before we came to look.
                Err(error) => {
                    return self.tell_lost(index, error.raw_os_error().unwrap_or(0));
                }
            },
            StreamSocket::Unix(socket) => Socket::Unix(Apart::stream(UnixStream::from_std(socket))),
        };
        let mut stream = self.stream(socket, index);
        stream.quickack = options.quickack == Some(true);
        stream.shared = true;
        let refused = socket::apply(&stream, &options);
        self.tell_refused(index, refused);
        self.place(stream);
        self.deliver();
    }

    /// Puts down the name of a listener, or of what stands for one; returns its number.
    pub(super) fn know(&mut self, name: &str) -> usize {
        for worker in self.crew.hold(&mut self.own).iter_mut() {
            worker.names.push(name.to_owned());
        }
        self.own.names.len() - 1
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
                self.deliver();
                // The time of the next attempt has to be worked out.
                self.stirred |= matches!(self.listeners[index].state, State::Short(_));
            }
        }
    }

    fn accept_burst(&mut self, index: usize) {
        let announced = std::mem::take(&mut self.listeners[index].announced);
        let (mut taken, mut lost) = (0, 0);
        while taken + lost < BURST {
            if self.open() >= self.max_connections {
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
                Failure::Drained => return self.drained(index),
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
                    return self.drained(index);
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
            // Somebody of them may have left just now; but nobody may hold up all loops by calling
            // again and again.
            if self.is_full(source, most) && !std::mem::replace(&mut self.asked, true) {
                self.part_now();
            }
            if self.is_full(source, most) {
                self.refused += 1;
                let (peer, count) = (stream.peer(), 1);
                let event = Event::Refused { peer, most, count };
                return self.flood(Flood::Refused, event);
            }
        }
        let listener = &self.listeners[index];
        if listener.fresh || !listener.inherits() {
            let refused = socket::apply(&stream, &listener.options);
            self.tell_refused(index, refused);
        }
        self.place(stream);
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

    /// Finds a place for a connection: with the worker that has the fewest.
    fn place(&mut self, stream: Stream) {
        if self.log.wants(Level::Debug) {
            let who = self.own.who(&stream);
            self.log.tell(Event::Opened(who));
        }
        // Of several, the last: the first has callers to look after besides.
        let places = self.places.iter().enumerate().rev();
        let number = places.min_by_key(|(_, open)| **open);
        let number = number.map_or(0, |(number, _)| number);
        self.occupy(number, &stream);
        self.arrivals[number].push(stream);
        self.changed = true;
    }

    /// Brings connections to their workers.
    fn deliver(&mut self) {
        for number in 0..self.arrivals.len() {
            if self.arrivals[number].is_empty() {
                continue;
            }
            let mut arrivals = std::mem::take(&mut self.arrivals[number]);
            let (life, now) = (self.life, self.now);
            let keeper = &mut self.keeper;
            let mut lost = Vec::new();
            self.crew.with(number, &mut self.own, |worker| {
                for stream in arrivals.drain(..) {
                    let kept = stream.can_be_kept();
                    let (name, listener) = (stream.number, stream.listener);
                    match worker.admit(stream, now) {
                        Ok(key) if matches!(life, Life::Leaving { .. }) => {
                            worker.shard.leave(key, now);
                        }
                        Ok(key) if kept => keeper.arrived(number, key, name, now),
                        Ok(_) => {}
                        Err(error) => lost.push((listener as usize, error)),
                    }
                }
            });
            self.arrivals[number] = arrivals;
            for (listener, error) in lost {
                self.tell_lost(listener, error.raw_os_error().unwrap_or(0));
            }
        }
    }

    fn is_full(&self, source: IpAddr, most: usize) -> bool {
        self.sources
            .get(&source)
            .is_some_and(|count| *count >= most)
    }

    /// Counts a connection of a worker.
    pub(super) fn occupy(&mut self, number: usize, stream: &Stream) {
        self.places[number] += 1;
        self.crowd |= self.places[number] >= CROWD;
        if let Some(source) = source_of(stream) {
            *self.sources.entry(source).or_default() += 1;
        }
    }

    fn pause(&mut self, index: usize, state: State, pause: Pause) {
        let listener = &mut self.listeners[index];
        listener.state = state;
        listener.paused.get_or_insert(self.now);
        let event = Event::Paused {
            listener: listener.name.clone(),
            pause,
            open: self.open() as u64,
            count: 1,
        };
        self.floods.forget(Flood::Resumed(index));
        self.flood(Flood::Paused(index), event);
    }

    /// The queue of a listener was seen empty, and with it a pause is over.
    fn drained(&mut self, index: usize) {
        let listener = &mut self.listeners[index];
        listener.drained(self.poll.registry());
        if let Some(since) = listener.paused.take() {
            let listener = listener.name.clone();
            let span = self.now.since(since);
            self.flood(Flood::Resumed(index), Event::Resumed { listener, span });
        }
    }

    fn tell_lost(&mut self, index: usize, errno: i32) {
        let event = Event::AcceptFailed {
            listener: self.own.names[index].clone(),
            errno,
            count: 1,
        };
        self.flood(Flood::Lost(index), event);
    }

    /// Tells options that one accepted socket was refused, and with it perhaps each.
    fn tell_refused(&mut self, index: usize, refused: Vec<Refused>) {
        for refused in refused {
            let listener = self.own.names[index].clone();
            let flood = Flood::Option(index, refused.option);
            self.flood(flood, Event::Option { listener, refused });
        }
    }
}
