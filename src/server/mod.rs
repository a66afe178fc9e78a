//! What is polled, and the loop.
//!
//! One `Poll` holds the signals, the listeners and the connections; the loop is
//! [`Server::run`] and stays that size.  The clock is read once a round, right after the poll:
//! everything in the round shares that reading, and the next time-out is reckoned from it.
//!
//! Nothing in a round may take long.  A connection has a budget a turn, a listener a burst, and a
//! round an allowance (`ROUND`); what is left over stands in a list of ours, and while there is
//! any, the poll does not wait.  So signals, new callers and the watchdog are never more than a
//! few milliseconds away, whatever the number of flooders.
//!
//! The loop never blocks: not on the log (a queue), not on the manager (its own socket), not in
//! accept (every listener is non-blocking).  The one exception is reading the configuration on
//! HUP.
//!
//! In reading order: [`source`], [`alarm`], [`lifecycle`], [`stream`], [`listener`], then the parts of
//! [`Server`] in this file, `intake` (accepting), `housekeeping`, `keeping` and `handing_over`
//! (survival), `reload` and `telling`.

pub mod alarm;
mod handing_over;
mod housekeeping;
mod intake;
mod keeping;
pub mod lifecycle;
pub mod listener;
mod reload;
pub mod source;
pub mod stream;
mod telling;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mio::event::Event as Announced;
use mio::{Events, Interest, Poll, Token};

use crate::cli::Level;
use crate::config::{Config, Origin};
use crate::echo::connection::{Connection, Hint, Want};
use crate::echo::duplex::Duplex;
use crate::echo::reason::{Reason, Summary};
use crate::echo::shard::{Shard, Turn};
use crate::survival::keeper::Keeper;
use crate::survival::lane::Lane;
use crate::system::events::Event;
use crate::system::kernel::Kernel;
use crate::system::logging::Log;
use crate::system::notify::Manager;
use crate::system::rate::{Fold, Gate};
use crate::system::signals::Signals;
use alarm::Alarm;
use lifecycle::{Action, Life};
use listener::Listener;
use source::Source;
use stream::Stream;

/// Bytes that may move in one round, received and sent together, before the poll is asked again.
const ROUND: u64 = 4 * 1024 * 1024;

/// What the shortest turn costs of it, in bytes: turns that move nothing take their time too.
const LEAST: u64 = 4096;

/// Deadlines acted on in one round.
const DEADLINES: usize = 256;

/// Events taken from the kernel in one round.
const EVENTS: usize = 1024;

/// For input: urgent data is input too, and its announcement a hint to read on.
const INPUT: Interest = Interest::READABLE.add(Interest::PRIORITY);

/// What the server is made of.
#[derive(Debug)]
pub struct Parts {
    /// The poll.
    pub poll: Poll,
    /// The signals, not yet registered.
    pub signals: Signals,
    /// The settings.
    pub config: Config,
    /// Where they came from.
    pub origin: Origin,
    /// The most connections that the descriptors allow.
    pub descriptors: usize,
    /// The kernel's settings.
    pub kernel: Kernel,
    /// The manager.
    pub manager: Manager,
    /// What is kept for a successor.
    pub keeper: Keeper,
    /// The memory of the loop.
    pub lane: Lane,
    /// The log.
    pub log: Log,
}

/// The daemon at work.
#[derive(Debug)]
pub struct Server {
    poll: Poll,
    alarm: Alarm,
    signals: Signals,
    listeners: Vec<Listener>,
    /// The names of the listeners, and of passed connections behind them.
    names: Vec<String>,
    shard: Shard<Stream, Lane>,
    /// Connections by source, where there is a cap.
    sources: HashMap<IpAddr, usize>,
    life: Life,
    config: Config,
    /// The settings at the start, of which some stay in effect until the end.
    started: Config,
    origin: Origin,
    descriptors: usize,
    max_connections: usize,
    per_source: Option<usize>,
    kernel: Kernel,
    manager: Manager,
    keeper: Keeper,
    /// The listeners, as the arena knows them.
    noted: Vec<u32>,
    log: Log,
    fold: Fold,
    refusals: Gate,
    pauses: Gate,
    failures: Gate,
    pack_failures: Gate,
    /// Connections closed at once for their source's sake.
    refused: u64,
    /// Connections so far, for their numbers.
    number: u64,
    /// The last reload failed.
    stale: bool,
    /// The successor gets the connections that are left.
    handing_over: bool,
    /// The listener that is first in this round.
    first: usize,
    /// A descriptor in reserve, so that a reload can read its files when there is no other.
    spare: Option<File>,
    /// This round's reading of the clock.
    now: Instant,
    /// Bytes that may still move in this round.
    allowance: u64,
    /// Something happened besides traffic: callers and everything that is done by the clock are
    /// looked after in this round.
    stirred: bool,
    /// When they have to be otherwise.
    wake: Option<Instant>,
    /// Until then the poll does not wait (`busy-poll`).
    awake_until: Instant,
    /// The service manager has answered, or dropped something.
    answered: bool,
    /// The parcel that the poll has.
    watched: Option<u64>,
    /// Traffic has made the status a matter of time.
    busy: bool,
}

/// What the poll is asked for on behalf of a connection.
fn interest(want: Want) -> Interest {
    match want {
        Want::Read => INPUT,
        Want::Write => Interest::WRITABLE,
    }
}

/// A descriptor in reserve.
fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

impl Server {
    /// Puts a server together; listeners and passed connections are added to it.
    ///
    /// # Errors
    /// The signals cannot be registered.
    pub fn new(parts: Parts, now: Instant) -> io::Result<Self> {
        let Parts {
            poll,
            mut signals,
            config,
            origin,
            descriptors,
            kernel,
            manager,
            keeper,
            lane,
            log,
        } = parts;
        poll.registry()
            .register(signals.source(), Source::Signals.into(), Interest::READABLE)?;
        let mut server = Self {
            alarm: Alarm::new(poll.registry(), Source::Alarm.into()),
            poll,
            signals,
            listeners: Vec::new(),
            names: Vec::new(),
            shard: Shard::new(config.limits.clone(), lane),
            sources: HashMap::new(),
            life: Life::Serving,
            fold: Fold::new(config.log.connection_rate),
            started: config.clone(),
            config,
            origin,
            descriptors,
            max_connections: 0,
            per_source: None,
            kernel,
            manager,
            keeper,
            noted: Vec::new(),
            log,
            refusals: Gate::default(),
            pauses: Gate::default(),
            failures: Gate::default(),
            pack_failures: Gate::default(),
            refused: 0,
            number: 0,
            stale: false,
            handing_over: false,
            first: 0,
            spare: spare(),
            now,
            allowance: 0,
            stirred: true,
            wake: None,
            awake_until: now,
            answered: false,
            watched: None,
            busy: false,
        };
        server.size_up();
        server.log.tell(Event::Started {
            read: server.config.read.clone(),
            max_connections: server.max_connections,
            per_source: server.per_source,
        });
        server.log.tell(Event::Kernel(server.kernel));
        Ok(server)
    }

    /// Says that all is registered.
    pub fn ready(&mut self, hint: Option<String>) {
        let listen = self.places();
        let status = self.status();
        self.manager.ready(&listen, &status, self.now);
        self.log.tell(Event::Ready { listen, hint });
        // Nobody has to wait for that.
        self.begin_to_keep();
    }

    /// Serves until it is over.
    ///
    /// # Errors
    /// The poll itself fails.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        // A conversation that was passed may be over already, and nothing would wake us.
        self.housekeep();
        while self.life != Life::Over {
            // Whoever has just spoken may have more to say soon, and waking up takes longer.
            let wait = if self.now < self.awake_until {
                Some(Duration::ZERO)
            } else {
                self.sleep()
            };
            match self.poll.poll(&mut events, wait) {
                // A signal: its pipe is readable in the next round.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => result?,
            }
            self.now = Instant::now();
            self.allowance = ROUND;
            self.stirred |= self.wake.is_some_and(|wake| wake <= self.now);
            if !events.is_empty() {
                self.awake_until = self.now + self.config.busy_poll;
            }
            for event in &events {
                match Source::from(event.token()) {
                    Source::Connection(key) => self.announced(key, event),
                    Source::Listener(index) => {
                        self.stirred = true;
                        self.listeners[index].announce();
                    }
                    // What is due is known without it.
                    Source::Alarm => {}
                    // Housekeeping looks at it.
                    Source::Answer => {
                        self.answered = true;
                        self.stirred = true;
                    }
                    Source::Signals => {
                        self.stirred = true;
                        self.obey();
                    }
                }
            }
            if self.stirred {
                self.accept();
            }
            // Before the list, which may use up the round for as long as there is a flood.
            for _ in 0..DEADLINES {
                if self.allowance == 0 {
                    break;
                }
                let Some((key, turn)) = self.shard.expire(self.now) else {
                    break;
                };
                self.turned(key, turn);
            }
            // Each of them once: a lone flooder, too, lets the poll speak between its turns.
            for _ in 0..self.shard.ready() {
                if self.allowance == 0 {
                    break;
                }
                if let Some(key) = self.shard.next_ready() {
                    self.turn(key);
                }
            }
            if self.stirred {
                self.housekeep();
            }
        }
        self.end();
        Ok(())
    }

    /// An event is a hint; the turn comes from the list, in the order of arrival.  A turn at once
    /// would let those who are announced again and again use up the round before the list.
    fn announced(&mut self, key: usize, event: &Announced) {
        // The peer's end and an urgent mark may stand behind what a short read returns.
        let hint = if event.is_read_closed() || event.is_priority() {
            Hint::ReadOn
        } else {
            Hint::Plain
        };
        self.shard.queue(key, hint);
    }

    fn turn(&mut self, key: usize) {
        if self.keeper.is_unsettled() {
            self.stirred = true;
            let owner = self.shard.connection(key).map_or(0, Connection::owner);
            self.keeper.in_hand(owner);
        }
        let turn = self.shard.turn(key, Hint::Plain, self.now);
        self.turned(key, turn);
    }

    /// Accounts for a turn, tells of it and acts on it.
    fn turned(&mut self, key: usize, turn: Turn) {
        let (received, sent) = self.shard.moved();
        if !self.busy && received + sent > 0 {
            self.busy = true;
            let due = self.manager.next_status(self.now);
            self.wake = [self.wake, due].into_iter().flatten().min();
        }
        self.allowance = self.allowance.saturating_sub((received + sent).max(LEAST));
        if self.log.wants(Level::Trace) {
            self.trace(key, received, sent);
        }
        if turn != Turn::Same {
            self.settle(key, turn);
        }
    }

    fn settle(&mut self, key: usize, turn: Turn) {
        match turn {
            Turn::Same => {}
            Turn::Rearm(want) => {
                // Memory was taken or given back.
                self.stirred = true;
                let token = Token::from(Source::Connection(key));
                let registered = self.poll.registry().reregister(
                    self.shard.stream_mut(key),
                    token,
                    interest(want),
                );
                if let Err(error) = registered {
                    // It would never be announced again.
                    self.fail(key, &error);
                }
            }
            Turn::Over(summary) => self.close(key, &summary),
        }
    }

    fn fail(&mut self, key: usize, error: &io::Error) {
        let turn = self.shard.end(
            key,
            Reason::Error(error.raw_os_error().unwrap_or(0)),
            self.now,
        );
        self.settle(key, turn);
    }

    fn close(&mut self, key: usize, summary: &Summary) {
        self.stirred = true;
        let mut stream = self.shard.remove(key);
        if self.fold.admit(summary, self.now) && self.log.wants(Level::Info) {
            let who = self.who(&stream);
            self.log.tell(Event::Closed(who, *summary));
        }
        self.forget_source(&stream);
        if let Some(seat) = stream.seat {
            // First the seat: whoever finds the socket in flight and no seat ends it.
            self.shard.store_mut().stand(seat);
            self.keeper.gone();
            stream.end();
            let _ = self.poll.registry().deregister(&mut stream);
        } else if stream.shared {
            // Whoever passed it may hold it still: the peer waits for our FIN, and the poll would
            // go on announcing it.
            let _ = stream.finish_write();
            let _ = self.poll.registry().deregister(&mut stream);
        }
        drop(stream);
        self.keeper
            .unpacked
            .forget(|young| keeping::is_over(&self.shard, young));
        for listener in &mut self.listeners {
            listener.vacancy();
        }
    }

    fn obey(&mut self) {
        for request in self.signals.pending() {
            match self.life.on(request, self.now, self.config.limits.leave) {
                Some(Action::Leave) => self.leave(),
                Some(Action::HandOver) => self.hand_over(),
                Some(Action::Reload) => self.reload(),
                Some(Action::Report) => self.report(),
                None => {}
            }
        }
    }

    fn leave(&mut self) {
        let span = self.config.limits.leave;
        let status = self.status();
        self.manager.stopping(span, &status, self.now);
        self.log.tell(Event::Stopping {
            open: self.shard.counters().open(),
            span,
        });
        for listener in &mut self.listeners {
            listener.drain(self.poll.registry());
        }
        self.shard.leave_all(self.now);
    }

    /// The end: whatever is left is abandoned, told and counted.
    fn end(mut self) {
        let handing_over = self.handing_over && self.keeper.is_held();
        let abandoned = |stream: &Stream| !handing_over || stream.seat.is_none();
        for (key, turn) in self.shard.abandon(abandoned, self.now) {
            self.settle(key, turn);
        }
        if handing_over {
            self.leave_to_successor();
        } else {
            self.keeper.dissolve(&mut self.manager, self.now);
        }
        if let Some(event) = self.fold.flush(self.now, true) {
            self.log.tell(event);
        }
        self.manager.flush(self.now);
        self.log.tell(Event::Stopped {
            counters: self.shard.counters(),
            refused: self.refused,
        });
    }
}
