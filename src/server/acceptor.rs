//! The listeners, and which of their callers become connections.
//!
//! Two limits decide.  While there are `max-connections` of them, callers wait in the accept queues
//! of the kernel.  A connection from a network that has `max-connections-per-source` already is
//! accepted and closed at once, as it would keep other callers waiting behind it.  Which worker serves
//! a connection is decided in [`super::worker_pool`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::IpAddr;

use mio::Registry;

use super::health::Health;
use super::listener::{BURST, Failure, Listener, SHORT, State};
use super::stream::{ProxyHeader, Socket, Stream, source_of};
use super::token::EventSource;
use crate::config::units::Role;
use crate::config::{Config, Options};
use crate::echo::time::MonoTime;
use crate::log::events::{Event, Pause};
use crate::log::rate_limit::Limited;
use crate::sys::descriptor_table::DescriptorTable;
use crate::sys::endpoint::Endpoint;
use crate::sys::sockopt::{self, Queue, Refused};

/// The listeners, and the limits on connections.
#[derive(Debug, Default)]
pub(crate) struct Acceptor {
    /// Answers to the callers of health listeners.
    pub health: Health,
    /// The listeners, by the index that their tokens have.
    pub listeners: Vec<Listener>,
    /// The most connections at a time, over all listeners.
    pub max_connections: usize,
    /// The most connections at a time from one source ([`source_of`]); `None`: no limit.
    pub per_source: Option<usize>,
    /// The number of the latest connection; numbers go on from one process to the next.
    pub number: u64,
    /// Connections that were closed at once because of `per_source`, over all processes.
    pub refused: u64,
    /// Open connections of each source that is limited.
    sources: HashMap<IpAddr, usize>,
    /// The table in which each of them has a descriptor.
    pub table: DescriptorTable,
    /// Counts the rounds, so that each begins with another listener.
    first: usize,
}

/// The outcome of one attempt to accept a connection.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// A connection was accepted.
    Accepted(Socket),
    /// A connection was over before it was accepted; the number is that of errno(3).
    Lost(i32),
    /// A signal interrupted the attempt, and the next one finds the same caller.
    Again,
    /// The burst is over.
    Done,
    /// The burst is over, and the listener has to pause.
    Paused(Event),
    /// The burst is over with an empty queue, which ends a pause.
    Resumed(Event),
}

/// The attempts of one listener in one round, [`BURST`] of them at most.
#[derive(Debug)]
pub(crate) struct Burst {
    /// Whether the kernel has announced callers since the burst before.
    announced: bool,
    /// Connections that were accepted.
    taken: usize,
    /// Connections that were over before they were accepted.
    lost: usize,
}

impl Acceptor {
    /// Registers a listener, which is added next.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn register(&self, listener: &mut Listener, registry: &Registry) -> io::Result<()> {
        let index = self.listeners.len();
        listener.register(registry, EventSource::Listener(index).into())
    }

    /// The index of the listener that comes after `offset` others in this round; `None` behind the
    /// last.  Each round begins with another listener, so that at the connection limit all of them
    /// share what becomes free.
    pub(crate) fn turn_of(&mut self, offset: usize) -> Option<usize> {
        let count = self.listeners.len();
        if offset == 0 {
            self.first = self.first.wrapping_add(1);
        }
        (offset < count).then(|| self.first.wrapping_add(offset) % count)
    }

    /// Begins a burst, if the listener is due.
    pub(crate) fn begin(&mut self, index: usize, now: MonoTime) -> Option<Burst> {
        let listener = &mut self.listeners[index];
        listener.is_due(now).then(|| Burst {
            announced: std::mem::take(&mut listener.announced),
            taken: 0,
            lost: 0,
        })
    }

    /// Tries to accept one caller; `open` is the number of connections at this moment.
    pub(crate) fn attempt(
        &mut self,
        index: usize,
        burst: &mut Burst,
        open: usize,
        now: MonoTime,
        registry: &Registry,
    ) -> Attempt {
        let listener = &mut self.listeners[index];
        let full = listener.role == Role::Echo && open >= self.max_connections;
        let tried = burst.taken + burst.lost;
        if tried >= BURST {
            // After failures only, a pause: the loop would be busy with them and serve nothing.
            let state = if burst.taken == 0 {
                State::Short(now + SHORT)
            } else {
                State::Ready
            };
            listener.spent(burst.taken, state, registry);
            return Attempt::Done;
        }
        if full {
            return self.pause(index, State::Full, Pause::Limit, open, now);
        }
        // Most bursts have one caller, and a look costs a fifth of an accept(2) that finds none.
        if tried > 0 && !listener.has_callers() {
            return self.drained(index, now, registry);
        }
        let error = match listener.accept() {
            Ok(socket) => {
                burst.taken += 1;
                return Attempt::Accepted(socket);
            }
            Err(error) => error,
        };
        let errno = error.raw_os_error().unwrap_or(0);
        match Failure::of(errno) {
            // Another process has accepted the caller, or accept(2) has failed this once.  One further
            // look makes sure that a caller was not missed.
            Failure::Drained if burst.announced && tried == 0 => {
                listener.state = State::Short(now + SHORT);
                Attempt::Done
            }
            Failure::Drained => self.drained(index, now, registry),
            Failure::Caller => {
                burst.lost += 1;
                if errno == libc::EINTR {
                    Attempt::Again
                } else {
                    Attempt::Lost(errno)
                }
            }
            Failure::Failing if listener.is_draining() => {
                listener.close(registry);
                Attempt::Done
            }
            // Nothing waits in the queue, so there is no need for a pause: the kernel announces the next
            // caller.
            Failure::Short if !listener.has_callers() => self.drained(index, now, registry),
            failure => {
                let again = now + listener.backoff(errno);
                let pause = match failure {
                    Failure::Short => Pause::Short(errno),
                    _ => Pause::Failing(errno),
                };
                self.pause(index, State::Short(again), pause, open, now)
            }
        }
    }

    fn pause(
        &mut self,
        index: usize,
        state: State,
        pause: Pause,
        open: usize,
        now: MonoTime,
    ) -> Attempt {
        let listener = &mut self.listeners[index];
        listener.state = state;
        listener.paused.get_or_insert(now);
        Attempt::Paused(Event::Paused {
            listener: listener.name.clone(),
            pause,
            open: open as u64,
            count: 1,
        })
    }

    /// Ends a burst, and a pause, at an empty queue.
    fn drained(&mut self, index: usize, now: MonoTime, registry: &Registry) -> Attempt {
        let listener = &mut self.listeners[index];
        listener.drained(registry);
        match listener.paused.take() {
            Some(since) => Attempt::Resumed(Event::Resumed {
                listener: listener.name.clone(),
                span: now.since(since),
            }),
            None => Attempt::Done,
        }
    }

    /// Gives a socket its number; `index` is that of the name of its listener, which has these options.
    pub(crate) fn stream(
        &mut self,
        socket: Socket,
        index: usize,
        options: &Options,
        now: MonoTime,
    ) -> Stream {
        self.number += 1;
        stream(socket, self.number, index, options, now)
    }

    /// A socket that the listener of this index has accepted, with its number.
    pub(crate) fn accepted(&mut self, socket: Socket, index: usize, now: MonoTime) -> Stream {
        self.number += 1;
        let options = &self.listeners[index].options;
        stream(socket, self.number, index, options, now)
    }

    /// Sets the options that an accepted socket has not inherited from its listener; returns those that
    /// the kernel refused.
    pub(crate) fn apply_options(&self, index: usize, stream: &Stream) -> Vec<Refused> {
        let listener = &self.listeners[index];
        if listener.apply_options || !listener.inherits() {
            return sockopt::apply(stream, &listener.options);
        }
        Vec::new()
    }

    /// The limit per source, if the source of this connection has reached it.
    #[must_use]
    pub(crate) fn exceeded(&self, stream: &Stream) -> Option<usize> {
        let most = self.per_source?;
        let count = self.sources.get(&source_of(stream)?)?;
        (*count >= most).then_some(most)
    }

    /// Counts a connection for its source.
    pub(crate) fn count(&mut self, stream: &Stream) {
        if let Some(source) = source_of(stream) {
            self.add(source);
        }
    }

    /// Counts a connection for a source; whether it has more than it may now.
    pub(crate) fn add(&mut self, source: IpAddr) -> bool {
        let count = self.sources.entry(source).or_default();
        *count += 1;
        self.per_source.is_some_and(|most| *count > most)
    }

    /// Counts a connection of a source as over.
    pub(crate) fn release(&mut self, source: IpAddr) {
        if let Entry::Occupied(mut entry) = self.sources.entry(source) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// Lets paused listeners try again, as a connection is over or a limit was raised.
    pub(crate) fn on_room(&mut self) {
        for listener in &mut self.listeners {
            listener.on_room();
        }
    }

    /// Begins to stop: a listener that this process opened accepts the callers that wait already and
    /// closes then, one that was passed closes at once ([`Listener::drain`]).  Health listeners go on
    /// until the process ends, so that checks see how it ends.
    pub(crate) fn drain(&mut self, registry: &Registry) {
        for listener in self.listeners.iter_mut().filter(|it| it.role == Role::Echo) {
            listener.drain(registry);
        }
    }

    /// Stops accepting at once at the selected listeners ([`Listener::close`]).
    pub(crate) fn close(&mut self, selected: impl Fn(&Listener) -> bool, registry: &Registry) {
        for listener in &mut self.listeners {
            if listener.state != State::Closed && selected(listener) {
                listener.close(registry);
            }
        }
    }

    /// Whether any listener is due.
    #[must_use]
    pub(crate) fn is_due(&self, now: MonoTime) -> bool {
        self.listeners.iter().any(|listener| listener.is_due(now))
    }

    /// Whether any listener is in this state.
    #[must_use]
    pub(crate) fn is_any(&self, state: State) -> bool {
        let mut listeners = self.listeners.iter();
        listeners.any(|listener| listener.state == state)
    }

    /// The listeners that echo.
    fn echoing(&self) -> impl Iterator<Item = &Listener> {
        let listeners = self.listeners.iter();
        listeners.filter(|listener| listener.role == Role::Echo)
    }

    /// Whether no listener accepts connections to echo any more.
    #[must_use]
    pub(crate) fn is_closed(&self) -> bool {
        self.echoing()
            .all(|listener| listener.state == State::Closed)
    }

    /// When the first paused listener tries again.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<MonoTime> {
        let waits = |listener: &Listener| match listener.state {
            State::Short(until) => Some(until),
            _ => None,
        };
        self.listeners.iter().filter_map(waits).min()
    }

    /// The addresses of the listeners that echo, with the ports that the kernel has chosen.
    #[must_use]
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.echoing()
            .map(|listener| listener.local.to_string())
            .collect()
    }

    /// The accept queue of each listener that is open and for which the kernel reports it (TCP).
    #[must_use]
    pub(crate) fn queues(&self) -> Vec<(Endpoint, Queue)> {
        self.listeners.iter().filter_map(Listener::queue).collect()
    }

    /// Gives the listeners the options of a new configuration; returns those that the kernel refused,
    /// each with the name of its listener.
    pub(crate) fn reconfigure(&mut self, config: &Config) -> Vec<(String, Refused)> {
        let mut refused = Vec::new();
        for listener in &mut self.listeners {
            let options = if listener.passed {
                config.options_of_passed(&listener.name)
            } else {
                let asked = config.options_for(&listener.name).clone();
                asked.over(Options::built_in())
            };
            if options == listener.options {
                continue;
            }
            listener.options = options;
            // Connections in the accept queue have inherited the old options.
            listener.apply_options = true;
            if listener.state == State::Armed {
                listener.state = State::Ready;
            }
            let applied = listener.socket();
            let applied = applied.map(|socket| sockopt::apply(&socket, &listener.options));
            let named = |option| (listener.name.clone(), option);
            refused.extend(applied.into_iter().flatten().map(named));
        }
        refused
    }
}

/// The stream of a new connection; `index` is that of the name of its listener.
fn stream(socket: Socket, number: u64, index: usize, options: &Options, now: MonoTime) -> Stream {
    let listener = u32::try_from(index).unwrap_or(u32::MAX);
    let quickack = options.quickack == Some(true);
    let mut stream = Stream::new(socket, number, listener, quickack);
    if let Some(timeout) = options.header_timeout() {
        stream.header = match stream.peer_address() {
            Some(peer) if !options.trusts(peer.ip()) => ProxyHeader::Untrusted,
            _ => ProxyHeader::Expected(now + timeout),
        };
    }
    stream
}

impl Attempt {
    /// The event to log for the listener of this index, and its kind for the rate limit.
    #[must_use]
    pub(crate) fn event(self, index: usize) -> Option<(Limited, Event)> {
        match self {
            Self::Paused(event) => Some((Limited::Paused(index), event)),
            Self::Resumed(event) => Some((Limited::Resumed(index), event)),
            _ => None,
        }
    }
}
