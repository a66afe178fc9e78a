//! The connections of one loop, and their turns.
//!
//! The main loop has a worker; with `workers` in the configuration there are others, each with a loop
//! of its own ([`super::worker_pool`]).  A worker knows no listener, no signal and no service manager.
//! What the server needs to know of a round stands in [`Worker::reports`] and [`Worker::sent`].

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mio::{Interest, Registry, Token};

use super::deadline_timer::DeadlineTimer;
use super::event_loop::Announced;
use super::header::{self, Progress};
use super::measured::Measured;
use super::stream::{ProxyHeader, Stream, source_of};
use super::token::EventSource;
use crate::cli::Level;
use crate::config::Config;
use crate::echo::connection::{Connection, Hint, Start, Want};
use crate::echo::connections::{Allowance, Connections, EventLoop, Moved, Outcome, run_round};
use crate::echo::end_reason::{EndReason, Summary};
use crate::echo::stream::Duplex;
use crate::echo::time::{MonoTime, earliest};
use crate::log::events::{Event, Identity};
use crate::log::rate_limit::CloseSummary;
use crate::log::sink::Log;
use crate::preserve::crash_guard::CrashGuard;
use crate::preserve::partition::Partition;
use crate::sys::clock;
use crate::sys::endpoint::Endpoint;
use crate::sys::lock::lock;
use crate::sys::sockopt;
use crate::sys::tcp_info::TcpInfo;

/// The interest in input.  Urgent data is input too, and its event a hint to read on.
const INPUT: Interest = Interest::READABLE.add(Interest::PRIORITY);

/// What the server needs to know of a connection that is over.
#[derive(Debug)]
pub(crate) struct Closed {
    /// Its source; `None`: it does not count for a limit.
    pub source: Option<IpAddr>,
    /// Whether it was preserved.
    pub preserved: bool,
}

/// A connection whose client is known by its PROXY header, and has to be counted for its source.
#[derive(Debug)]
pub(crate) struct Identified {
    /// The key of the connection, and its number, as the key may be that of a later one meanwhile.
    pub key: usize,
    pub number: u64,
    pub source: IpAddr,
}

/// What a worker reports of a connection, in the order in which it happens.
#[derive(Debug)]
pub(crate) enum Report {
    Identified(Identified),
    Closed(Closed),
}

/// The connections of one loop, and what their turns need.
#[derive(Debug)]
pub(crate) struct Worker {
    pub connections: Connections<Stream, Partition>,
    /// The names of the listeners by their index, and behind them those that only passed or restored
    /// connections have.
    pub names: Vec<String>,
    /// What the server has not been given yet.
    pub reports: Vec<Report>,
    /// Whether bytes were sent since the server looked.
    pub sent: bool,
    /// In the first round after a start, records which connection has its turn.
    pub crash_guard: Option<Arc<CrashGuard>>,
    /// What is measured for the metrics; `None`: nothing asks for them.
    pub measured: Option<Box<Measured>>,
    /// The registry of the poll of its loop.
    pub registry: Registry,
    deadline_timer: DeadlineTimer,
    log: Log,
    /// The limit on how many closed connections are logged, which all workers share.
    close_summary: Arc<Mutex<CloseSummary>>,
    /// The most bytes of what was read that are logged (`payload-preview`).
    preview: usize,
    busy_poll: Duration,
    poll_timeout: Option<Duration>,
    /// The clock as it was read at the beginning of this round.
    now: MonoTime,
    /// Until when the poll does not wait (`busy-poll`).
    awake_until: MonoTime,
    /// Whether a further round is due, as memory was used or freed, or a connection is over.
    touched: bool,
}

/// The events that the poll has to report for a connection.
fn interest(want: Want) -> Interest {
    match want {
        Want::Read => INPUT,
        Want::Write => Interest::WRITABLE,
    }
}

impl Worker {
    /// A worker without connections, for the loop that polls with this registry.
    #[must_use]
    pub(crate) fn new(
        registry: Registry,
        partition: Partition,
        config: &Config,
        log: Log,
        close_summary: Arc<Mutex<CloseSummary>>,
        now: MonoTime,
    ) -> Self {
        Self {
            connections: Connections::new(config.limits.clone(), partition),
            names: Vec::new(),
            reports: Vec::new(),
            sent: false,
            crash_guard: None,
            measured: None,
            deadline_timer: DeadlineTimer::new(&registry, EventSource::Deadline.into()),
            registry,
            log,
            close_summary,
            preview: config.log.payload_preview,
            busy_poll: config.busy_poll,
            poll_timeout: config.poll_timeout,
            now,
            awake_until: now,
            // Memory that the previous process has used may be given back.
            touched: true,
        }
    }

    /// Applies the settings of a new configuration.
    pub(crate) fn configure(&mut self, config: &Config) {
        // For a round at once, as the time-out of the poll may have changed.
        self.touched = true;
        self.connections.set_limits(config.limits.clone());
        self.log.set_level(config.log.level);
        self.preview = config.log.payload_preview;
        self.busy_poll = config.busy_poll;
        self.poll_timeout = config.poll_timeout;
    }

    /// The time-out of the poll, with `busy-poll` and `poll-timeout`; `None`: without a limit.  `wake`:
    /// when something else is due in this loop.
    pub(crate) fn sleep(&mut self, wake: Option<MonoTime>) -> Option<Duration> {
        // A peer that has just sent may send more soon, and to wake up takes longer than to poll on.
        if self.now < self.awake_until {
            return Some(Duration::ZERO);
        }
        match (self.rest(wake), self.poll_timeout) {
            (Some(wait), Some(most)) => Some(wait.min(most)),
            (wait, most) => wait.or(most),
        }
    }

    /// How long there is nothing to do; `None`: until the next event, which may be that of the timer.
    pub(crate) fn rest(&mut self, wake: Option<MonoTime>) -> Option<Duration> {
        if self.connections.ready() > 0 || self.touched {
            return Some(Duration::ZERO);
        }
        let due = earliest([
            wake,
            self.connections.next_due(),
            self.connections.store().next_due(),
        ]);
        self.deadline_timer.wait(due, self.now)
    }

    /// Begins a round; `announced`: there are events.
    pub(crate) fn begin(&mut self, now: MonoTime, announced: bool) {
        self.now = now;
        if announced {
            self.awake_until = now + self.busy_poll;
        }
    }

    /// Puts a connection into the ready list, as there is an event for it.  Its turn comes in the order
    /// of that list: with turns at once, connections that have an event in every round would use up the
    /// round before the list.
    #[inline]
    pub(crate) fn announced(&mut self, key: usize, event: Announced) {
        let hint = if event.is_read_on() {
            Hint::ReadOn
        } else {
            Hint::Plain
        };
        self.connections.queue(key, hint);
    }

    /// Gives turns to the connections with a deadline that has passed, and to those that are ready.
    pub(crate) fn serve(&mut self) {
        run_round(self, Allowance::default(), self.now);
        let due = self.connections.store().next_due();
        if std::mem::take(&mut self.touched) || due.is_some_and(|due| due <= self.now) {
            self.connections.store_mut().trim(self.now);
        }
    }

    /// Ends a round.
    #[inline]
    pub(crate) fn finish(&mut self) {
        if self.measured.is_some() {
            self.measure_round();
        }
    }

    /// Apart, so that a round that nothing measures does not save registers for it.
    #[cold]
    fn measure_round(&mut self) {
        if let Some(measured) = &mut self.measured {
            measured.longest = measured.longest.max(clock::now().since(self.now));
        }
    }

    /// Whether every restored connection has had a turn.
    #[must_use]
    pub(crate) fn has_tried_all(&self) -> bool {
        self.connections.untried() == 0
    }

    /// Drains the connections that `which` selects: each echoes what has arrived, sends a FIN and ends.
    pub(crate) fn drain(&mut self, which: impl Fn(&Stream) -> bool, now: MonoTime) {
        let connections = self.connections.iter();
        let selected = connections.filter(|(_, stream, _)| which(stream));
        let selected: Vec<usize> = selected.map(|(key, _, _)| key).collect();
        for key in selected {
            self.connections.drain(key, now);
        }
    }

    /// Acts on the outcome of a turn.
    #[cold]
    pub(crate) fn settle(&mut self, key: usize, turn: Outcome) {
        match turn {
            Outcome::Same => {}
            Outcome::Rearm(want) => {
                self.touched = true;
                let token = Token::from(EventSource::Connection(key));
                let stream = self.connections.stream_mut(key);
                let registered = self.registry.reregister(stream, token, interest(want));
                if let Err(error) = registered {
                    // There would be no further event for it.
                    self.fail(key, &error);
                }
            }
            Outcome::Header => self.take_header(key),
            Outcome::Over(summary) => self.close(key, &summary),
        }
    }

    /// Takes the header before the stream of a connection, if it is complete.
    fn take_header(&mut self, key: usize) {
        let owner = self.connections.connection(key).map(Connection::owner);
        let (stream, partition) = self.connections.parts_mut(key);
        match header::take(stream, owner.unwrap_or(0), partition) {
            Progress::Missing => {
                let turn = self.connections.header_missing(key, self.now);
                self.settle(key, turn);
            }
            Progress::Over(reason) => self.end(key, reason),
            Progress::Taken => {
                let (number, source) = (stream.number, source_of(stream));
                self.connections.header_taken(key, self.now);
                self.log_opened(key);
                if let Some(source) = source {
                    self.reports.push(Report::Identified(Identified {
                        key,
                        number,
                        source,
                    }));
                }
                self.touched = true;
            }
        }
    }

    /// Ends a connection at once.
    pub(crate) fn end(&mut self, key: usize, reason: EndReason) {
        let turn = self.connections.end(key, reason, self.now);
        self.settle(key, turn);
    }

    /// Logs, at level `debug`, that a connection has begun, once its client is known.
    fn log_opened(&self, key: usize) {
        if !self.log.wants(Level::Debug) {
            return;
        }
        if let Some(stream) = self.connections.stream(key) {
            self.log.emit(Event::Opened(self.identity(stream)));
        }
    }

    fn fail(&mut self, key: usize, error: &io::Error) {
        self.end(key, EndReason::numbered(error));
    }

    fn close(&mut self, key: usize, summary: &Summary) {
        self.touched = true;
        let mut stream = self.connections.remove(key);
        let peer = stream.peer_address();
        let client = stream.header.addresses();
        let client = client.map_or(peer, |addresses| Some(addresses.source));
        let source = client.map(|address| address.ip());
        let admitted = lock(&self.close_summary).admit(summary, source, self.now);
        let logged = admitted && self.log.wants(Level::Info);
        let info = match peer {
            Some(_) if logged || self.measured.is_some() => TcpInfo::of(&stream).ok(),
            _ => None,
        };
        if let Some(measured) = &mut self.measured {
            measured.end(summary, info.as_ref());
        }
        if logged {
            let identity = self.identity(&stream);
            self.log
                .emit(Event::Closed(identity, *summary, info.map(Box::new)));
        }
        self.reports.push(Report::Closed(Closed {
            source: source_of(&stream),
            preserved: stream.record_id.is_some(),
        }));
        if let Some(record_id) = stream.record_id {
            // The record goes first: a next process that finds the socket in the queue and no record
            // closes it.
            self.connections.store_mut().remove_record(record_id);
            // What is still in the queues of a broken socket arrives nowhere.
            let broken = matches!(
                summary.reason,
                EndReason::Reset | EndReason::TimedOut | EndReason::Error(_)
            );
            sockopt::end(&stream, broken || summary.owed > 0);
            let _ = self.registry.deregister(&mut stream);
        } else if stream.shared {
            // The process that passed the socket may hold it still.  Then a close sends no FIN, and the
            // socket stays registered with the poll (epoll(7)).
            let _ = stream.finish_write();
            let _ = self.registry.deregister(&mut stream);
        } else if stream.is_doubtful() {
            // A thread of its own closes it, perhaps much later.
            let _ = self.registry.deregister(&mut stream);
        }
    }

    /// Adds a new connection and registers it with the poll; returns its key.
    ///
    /// # Errors
    /// Those of epoll_ctl(2); the connection was closed then, and that was logged.
    pub(crate) fn admit(&mut self, stream: Stream, now: MonoTime) -> io::Result<usize> {
        let key = match stream.header.due() {
            Some(due) => self.connections.insert_behind_header(stream, due, now),
            None => {
                let key = self.connections.insert(stream, now);
                self.log_opened(key);
                key
            }
        };
        self.register(key, INPUT)?;
        Ok(key)
    }

    /// Adds a connection of the previous process, which goes on as `start` says.
    pub(crate) fn restore(&mut self, stream: Stream, start: Start, now: MonoTime) {
        let (key, want) = self.connections.restore(stream, start, now);
        // A connection that cannot be registered was closed, and that was logged.
        let _ = self.register(key, interest(want));
    }

    fn register(&mut self, key: usize, interest: Interest) -> io::Result<()> {
        let token = EventSource::Connection(key).into();
        let stream = self.connections.stream_mut(key);
        let registered = self.registry.register(stream, token, interest);
        registered.inspect_err(|error| self.fail(key, error))
    }

    /// What identifies a connection in an event of the log.
    #[must_use]
    pub(crate) fn identity(&self, stream: &Stream) -> Identity {
        Identity {
            number: stream.number,
            peer: stream.client(),
            proxy: stream.proxy(),
            header: match &stream.header {
                ProxyHeader::Taken(header) => Some(header.clone()),
                _ => None,
            },
            invalid: match &stream.header {
                ProxyHeader::Invalid(invalid) => Some(**invalid),
                _ => None,
            },
            credentials: stream.credentials(),
            local: stream.local().unwrap_or(Endpoint::Unix(None)),
            listener: self.names[stream.listener as usize].clone(),
        }
    }

    /// Logs what a turn has moved, at level `trace`.
    #[cold]
    fn trace(&mut self, key: usize, Moved { received, sent }: Moved) {
        let Some(connection) = self.connections.connection(key) else {
            return;
        };
        let owed = connection.owed();
        let number = self.connections.stream_mut(key).number;
        let preview = (self.preview > 0 && received > 0).then(|| {
            let read = self.connections.last_read();
            read[..read.len().min(self.preview)]
                .escape_ascii()
                .to_string()
        });
        self.log.emit(Event::Moved {
            number,
            received,
            sent,
            owed,
            preview,
        });
    }
}

impl EventLoop for Worker {
    type Stream = Stream;
    type Store = Partition;

    #[inline]
    fn connections(&mut self) -> &mut Connections<Stream, Partition> {
        &mut self.connections
    }

    /// In the first round after a start a turn may crash the process: the state file names the
    /// connection.
    #[inline]
    fn guard(&mut self, key: usize, turn: impl FnOnce(&mut Self)) {
        let Some(crash_guard) = self.crash_guard.clone() else {
            return turn(self);
        };
        let connection = self.connections.connection(key);
        let _alone = crash_guard.take(connection.map_or(0, Connection::owner));
        turn(self);
    }

    #[inline]
    fn on_turn(&mut self, key: usize, outcome: Outcome) {
        let moved = self.connections.moved();
        self.sent |= moved.sent > 0;
        if self.log.wants(Level::Trace) {
            self.trace(key, moved);
        }
        if outcome != Outcome::Same {
            self.settle(key, outcome);
        }
    }
}
