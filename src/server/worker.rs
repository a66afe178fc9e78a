//! The connections of one loop, and their turns.
//!
//! The main loop has a worker; with `workers` in the configuration there are others, each with a
//! loop of its own ([`super::crew`]).  A worker knows no listener, no signal and no manager.  What
//! the server has to know of the past round it finds in [`Worker::gone`] and [`Worker::sent`].

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mio::event::Event as Announced;
use mio::{Interest, Registry, Token};

use super::alarm::Alarm;
use super::source::Source;
use super::stream::{Stream, source_of};
use crate::cli::Level;
use crate::config::Config;
use crate::echo::connection::{Connection, Hint, Start, Want};
use crate::echo::duplex::Duplex;
use crate::echo::reason::{Reason, Summary};
use crate::echo::shard::{Shard, Turn};
use crate::echo::tick::{Tick, earliest};
use crate::survival::caution::Caution;
use crate::survival::lane::Lane;
use crate::system::events::{Endpoint, Event, Who};
use crate::system::lock::lock;
use crate::system::logging::Log;
use crate::system::rate::Fold;
use crate::system::socket;

/// Bytes that may move in one round, received and sent together, before the poll is asked again.
const ROUND: u64 = 4 * 1024 * 1024;

/// What the shortest turn costs of it, in bytes: turns that move nothing take their time too.
const LEAST: u64 = 4096;

/// Deadlines acted on in one round.
const DEADLINES: usize = 256;

/// For input: urgent data is input too, and its announcement a hint to read on.
const INPUT: Interest = Interest::READABLE.add(Interest::PRIORITY);

/// A connection that is over, as the server has to know of it.
#[derive(Debug)]
pub struct Gone {
    /// Its source, where that is counted.
    pub source: Option<IpAddr>,
    /// Whether it was kept for a successor.
    pub kept: bool,
}

/// The connections of one loop.
#[derive(Debug)]
pub struct Worker {
    /// What they are.
    pub shard: Shard<Stream, Lane>,
    /// The names of the listeners, and of passed connections behind them.
    pub names: Vec<String>,
    /// Connections that are over, until the server has taken note.
    pub gone: Vec<Gone>,
    /// Something was sent, since the server looked.
    pub sent: bool,
    /// What every turn is taken under, in the first round after a start.
    pub caution: Option<Arc<Caution>>,
    registry: Registry,
    alarm: Alarm,
    log: Log,
    /// Ended connections are told so many a second, whichever loop they were in.
    fold: Arc<Mutex<Fold>>,
    preview: usize,
    busy_poll: Duration,
    poll_timeout: Option<Duration>,
    /// This round's reading of the clock.
    now: Tick,
    /// Bytes that may still move in this round.
    allowance: u64,
    /// Until then the poll does not wait (`busy-poll`).
    awake_until: Tick,
    /// Memory was taken or given back, or somebody is over: a round is due.
    touched: bool,
    /// Those who were adopted and have had no turn.
    untried: usize,
}

/// What the poll is asked for on behalf of a connection.
fn interest(want: Want) -> Interest {
    match want {
        Want::Read => INPUT,
        Want::Write => Interest::WRITABLE,
    }
}

impl Worker {
    /// A worker without connections, in the loop that has this registry.
    #[must_use]
    pub fn new(
        registry: Registry,
        lane: Lane,
        config: &Config,
        log: Log,
        fold: Arc<Mutex<Fold>>,
        now: Tick,
    ) -> Self {
        Self {
            shard: Shard::new(config.limits.clone(), lane),
            names: Vec::new(),
            gone: Vec::new(),
            sent: false,
            caution: None,
            alarm: Alarm::new(&registry, Source::Alarm.into()),
            registry,
            log,
            fold,
            preview: config.log.payload_preview,
            busy_poll: config.busy_poll,
            poll_timeout: config.poll_timeout,
            now,
            allowance: 0,
            awake_until: now,
            // What a predecessor has left may be given back.
            touched: true,
            untried: 0,
        }
    }

    /// Goes on with other settings.
    pub fn configure(&mut self, config: &Config) {
        // How long the poll waits changes, too.
        self.touched = true;
        self.shard.set_limits(config.limits.clone());
        self.log.set_level(config.log.level);
        self.preview = config.log.payload_preview;
        self.busy_poll = config.busy_poll;
        self.poll_timeout = config.poll_timeout;
    }

    /// How long the poll may wait: until the first thing that is due, or for ever.  `wake`: what else
    /// is due in this loop.
    pub fn sleep(&mut self, wake: Option<Tick>) -> Option<Duration> {
        // Whoever has just spoken may have more to say soon, and waking up takes longer.
        if self.now < self.awake_until {
            return Some(Duration::ZERO);
        }
        match (self.rest(wake), self.poll_timeout) {
            (Some(wait), Some(most)) => Some(wait.min(most)),
            (wait, most) => wait.or(most),
        }
    }

    /// How long there is nothing to do; `None`: until the poll has something.
    pub fn rest(&mut self, wake: Option<Tick>) -> Option<Duration> {
        if self.shard.ready() > 0 || self.touched {
            return Some(Duration::ZERO);
        }
        let due = earliest([wake, self.shard.next_due(), self.shard.store().next_due()]);
        self.alarm.wait(due, self.now)
    }

    /// A round begins; `announced`: with events.
    pub fn begin(&mut self, now: Tick, announced: bool) {
        self.now = now;
        self.allowance = ROUND;
        if announced {
            self.awake_until = now + self.busy_poll;
        }
    }

    /// An event is a hint; the turn comes from the list, in the order of arrival.  A turn at once
    /// would let those who are announced again and again use up the round before the list.
    pub fn announced(&mut self, key: usize, event: &Announced) {
        // The peer's end and an urgent mark may stand behind what a short read returns.
        let hint = if event.is_read_closed() || event.is_priority() {
            Hint::ReadOn
        } else {
            Hint::Plain
        };
        self.shard.queue(key, hint);
    }

    /// Gives turns: to those whose deadline has passed, and to those that are ready.
    pub fn serve(&mut self) {
        // Before the list, which may use up the round for as long as there is a flood.
        for _ in 0..DEADLINES {
            if self.allowance == 0 {
                break;
            }
            let Some(key) = self.shard.next_overdue(self.now) else {
                break;
            };
            self.turn(key, Shard::expire);
        }
        // Each of them once: a lone flooder, too, lets the poll speak between its turns.
        for _ in 0..self.shard.ready() {
            if self.allowance == 0 {
                break;
            }
            if let Some(key) = self.shard.next_ready() {
                if self.untried > 0 && self.is_kept(key) {
                    self.untried -= 1;
                }
                self.turn(key, |shard, now| {
                    Some((key, shard.turn(key, Hint::Plain, now)))
                });
            }
        }
        let due = self.shard.store().next_due();
        if std::mem::take(&mut self.touched) || due.is_some_and(|due| due <= self.now) {
            self.shard.store_mut().trim(self.now);
        }
    }

    /// Gives a connection a turn of some kind.
    #[inline]
    fn turn(
        &mut self,
        key: usize,
        turn: impl FnOnce(&mut Shard<Stream, Lane>, Tick) -> Option<(usize, Turn)>,
    ) {
        if self.caution.is_some() {
            return self.cautious_turn(key, turn);
        }
        if let Some((key, turn)) = turn(&mut self.shard, self.now) {
            self.turned(key, turn);
        }
    }

    /// A turn that may kill us: whose it is stands in the arena.
    #[cold]
    fn cautious_turn(
        &mut self,
        key: usize,
        turn: impl FnOnce(&mut Shard<Stream, Lane>, Tick) -> Option<(usize, Turn)>,
    ) {
        let caution = self.caution.clone();
        let owner = self.shard.connection(key).map_or(0, Connection::owner);
        let _alone = caution.as_ref().map(|caution| caution.take(owner));
        if let Some((key, turn)) = turn(&mut self.shard, self.now) {
            self.turned(key, turn);
        }
    }

    /// Whether everybody who was adopted has had a turn.
    #[must_use]
    pub fn has_tried_all(&self) -> bool {
        self.untried == 0 || self.shard.ready() == 0
    }

    #[cold]
    fn is_kept(&self, key: usize) -> bool {
        let stream = self.shard.stream(key);
        stream.is_some_and(|stream| stream.seat.is_some())
    }

    /// Those that are not kept for a successor.
    pub fn unkept(&self) -> impl Iterator<Item = &Stream> {
        let streams = self.shard.connections().map(|(_, stream, _)| stream);
        streams.filter(|stream| stream.seat.is_none())
    }

    /// Asks some to end in good order.
    pub fn leave(&mut self, whom: impl Fn(&Stream) -> bool, now: Tick) {
        let connections = self.shard.connections();
        let leaving = connections.filter(|(_, stream, _)| whom(stream));
        let leaving: Vec<usize> = leaving.map(|(key, _, _)| key).collect();
        for key in leaving {
            self.shard.leave(key, now);
        }
    }

    /// Accounts for a turn, tells of it and acts on it.
    #[inline]
    fn turned(&mut self, key: usize, turn: Turn) {
        let (received, sent) = self.shard.moved();
        self.sent |= sent > 0;
        self.allowance = self.allowance.saturating_sub((received + sent).max(LEAST));
        if self.log.wants(Level::Trace) {
            self.trace(key, received, sent);
        }
        if turn != Turn::Same {
            self.settle(key, turn);
        }
    }

    /// Acts on a turn.
    #[cold]
    pub fn settle(&mut self, key: usize, turn: Turn) {
        match turn {
            Turn::Same => {}
            Turn::Rearm(want) => {
                self.touched = true;
                let token = Token::from(Source::Connection(key));
                let stream = self.shard.stream_mut(key);
                let registered = self.registry.reregister(stream, token, interest(want));
                if let Err(error) = registered {
                    // It would never be announced again.
                    self.fail(key, &error);
                }
            }
            Turn::Over(summary) => self.close(key, &summary),
        }
    }

    fn fail(&mut self, key: usize, error: &io::Error) {
        let reason = Reason::Error(error.raw_os_error().unwrap_or(0));
        let turn = self.shard.end(key, reason, self.now);
        self.settle(key, turn);
    }

    fn close(&mut self, key: usize, summary: &Summary) {
        self.touched = true;
        let mut stream = self.shard.remove(key);
        let admitted = lock(&self.fold).admit(summary, self.now);
        if admitted && self.log.wants(Level::Info) {
            let who = self.who(&stream);
            self.log.tell(Event::Closed(who, *summary));
        }
        self.gone.push(Gone {
            source: source_of(&stream),
            kept: stream.seat.is_some(),
        });
        if let Some(seat) = stream.seat {
            // First the seat: whoever finds the socket in flight and no seat ends it.
            self.shard.store_mut().stand(seat);
            // What is still in the queues of such a socket arrives nowhere.
            let broken = matches!(
                summary.reason,
                Reason::Reset | Reason::Vanished | Reason::Error(_)
            );
            socket::end(&stream, broken || summary.owed > 0);
            let _ = self.registry.deregister(&mut stream);
        } else if stream.shared {
            // Whoever passed it may hold it still: the peer waits for our FIN, and the poll would
            // go on announcing it.
            let _ = stream.finish_write();
            let _ = self.registry.deregister(&mut stream);
        } else if stream.is_doubtful() {
            // It is open for a while yet.
            let _ = self.registry.deregister(&mut stream);
        }
    }

    /// Takes in a connection, and registers it; returns its key.
    ///
    /// # Errors
    /// Those of epoll_ctl(2); it is over then.
    pub fn admit(&mut self, stream: Stream, now: Tick) -> io::Result<usize> {
        let key = self.shard.insert(stream, now);
        self.register(key, INPUT)?;
        Ok(key)
    }

    /// Takes in a connection of a predecessor.
    pub fn adopt(&mut self, stream: Stream, start: Start, now: Tick) {
        self.untried += 1;
        let (key, want) = self.shard.adopt(stream, start, now);
        // Failing, it is over, which is told.
        let _ = self.register(key, interest(want));
    }

    fn register(&mut self, key: usize, interest: Interest) -> io::Result<()> {
        let token = Source::Connection(key).into();
        let stream = self.shard.stream_mut(key);
        let registered = self.registry.register(stream, token, interest);
        registered.inspect_err(|error| self.fail(key, error))
    }

    /// Who has a connection, for an event.
    #[must_use]
    pub fn who(&self, stream: &Stream) -> Who {
        Who {
            number: stream.number,
            peer: stream.peer(),
            credentials: stream.credentials(),
            local: stream.local().unwrap_or(Endpoint::Unix(None)),
            listener: self.names[stream.listener as usize].clone(),
        }
    }

    /// Tells a turn.
    #[cold]
    fn trace(&mut self, key: usize, received: u64, sent: u64) {
        let Some(connection) = self.shard.connection(key) else {
            return;
        };
        let owed = connection.owed();
        let number = self.shard.stream_mut(key).number;
        let preview = (self.preview > 0 && received > 0).then(|| {
            let read = self.shard.last_read();
            read[..read.len().min(self.preview)]
                .escape_ascii()
                .to_string()
        });
        self.log.tell(Event::Turned {
            number,
            received,
            sent,
            owed,
            preview,
        });
    }
}
