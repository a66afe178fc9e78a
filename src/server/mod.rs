//! What is polled, and the loop.
//!
//! One `Poll` holds the signals, the listeners and connections; the loop is
//! [`Server::run`] and stays that size.  The clock is read once a round, right after the poll:
//! everything in the round shares that reading, and the next time-out is reckoned from it.
//!
//! Nothing in a round may take long.  A connection has a budget a turn, a listener a burst, and a
//! round an allowance (`ROUND`); what is left over stands in a list of ours, and while there is
//! any, the poll does not wait.  So signals, new callers and the watchdog are never more than a
//! few milliseconds away, whatever the number of flooders.
//!
//! The loop never blocks: not on the log (a queue), not on the manager (its own socket), not in
//! accept (every listener is non-blocking).  The exceptions are reading the configuration on HUP and,
//! with several workers, the end of a round that one of them is in.
//!
//! The connections are in workers.  One is here, in the main loop; with `workers` in the configuration
//! there are others, each with a loop of its own, and the main loop gives each caller to the one
//! that has the fewest.
//!
//! In reading order: [`source`], [`alarm`], [`lifecycle`], [`stream`], [`listener`], [`worker`] (turns),
//! [`crew`] (several workers), then the parts of [`Server`] in this file, `intake` (accepting),
//! `housekeeping`, `keeping` and `handing_over` (survival), `reload` and `telling`.

pub mod alarm;
pub mod crew;
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
pub mod worker;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mio::{Events, Interest, Poll, Registry};

use crate::config::{Config, Origin};
use crate::echo::tick::{Tick, earliest};
use crate::survival::keeper::Keeper;
use crate::survival::lane::Lane;
use crate::system::clock;
use crate::system::events::Event;
use crate::system::kernel::Kernel;
use crate::system::lock::lock;
use crate::system::logging::Log;
use crate::system::memory::give_back_free_memory;
use crate::system::notify::Manager;
use crate::system::rate::{Flood, Floods, Fold};
use crate::system::signals::Signals;
use crew::{Crew, EVENTS};
use lifecycle::{Action, Life};
use listener::Listener;
use source::Source;
use stream::Stream;
use worker::{Gone, Worker};

/// As many connections as make a crowd.
const CROWD: usize = 1024;

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
    /// The memory of each loop; the first is that of the main loop.
    pub lanes: Vec<Lane>,
    /// The log.
    pub log: Log,
}

/// The daemon at work.
#[derive(Debug)]
pub struct Server {
    poll: Poll,
    signals: Signals,
    listeners: Vec<Listener>,
    /// The connections of this loop.
    own: Worker,
    /// Those of the others.
    crew: Crew,
    /// How many connections each worker has, by its number.
    places: Vec<usize>,
    /// Accepted for each worker, and not brought to it yet.
    arrivals: Vec<Vec<Stream>>,
    /// Connections that are over, with the number of the worker; empty but for a moment.
    departed: Vec<(usize, Gone)>,
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
    fold: Arc<Mutex<Fold>>,
    /// What can happen often.
    floods: Floods,
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
    now: Tick,
    /// Something rare has happened, or something is due: everything is looked after in this round.
    stirred: bool,
    /// Somebody has come or gone.
    changed: bool,
    /// A listener may have callers.
    calling: bool,
    /// There were many connections since there was none.
    crowd: bool,
    /// The others were held in this round to see who has left.
    asked: bool,
    /// When everything has to be looked after at the latest.
    wake: Option<Tick>,
    /// The service manager has answered, or dropped something.
    answered: bool,
    /// The parcel that the poll has.
    watched: Option<u64>,
    /// Traffic has made the status a matter of time.
    busy: bool,
}

/// A descriptor in reserve.
fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

impl Server {
    /// Puts a server together; listeners and passed connections are added to it.
    ///
    /// # Errors
    /// The signals cannot be registered, or there are no descriptors for the loops.
    ///
    /// # Panics
    /// If there is no lane for the main loop.
    pub fn new(parts: Parts, now: Tick) -> io::Result<Self> {
        let Parts {
            poll,
            mut signals,
            config,
            origin,
            descriptors,
            kernel,
            manager,
            keeper,
            lanes,
            log,
        } = parts;
        poll.registry()
            .register(signals.source(), Source::Signals.into(), Interest::READABLE)?;
        let fold = Arc::new(Mutex::new(Fold::new(config.log.connection_rate)));
        let make = |registry: Registry, lane| {
            let (log, fold) = (log.clone(), Arc::clone(&fold));
            let mut worker = Worker::new(registry, lane, &config, log, fold, now);
            worker.caution = keeper.caution().cloned();
            worker
        };
        let number = keeper.arena().totals().number;
        let count = lanes.len();
        let mut lanes = lanes.into_iter();
        let lane = lanes.next().expect("a lane for the main loop");
        let own = make(poll.registry().try_clone()?, lane);
        let crew = Crew::new(poll.registry(), lanes, make)?;
        let mut server = Self {
            own,
            crew,
            places: vec![0; count],
            arrivals: (0..count).map(|_| Vec::new()).collect(),
            departed: Vec::new(),
            poll,
            signals,
            listeners: Vec::new(),
            sources: HashMap::new(),
            life: Life::Serving,
            fold,
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
            floods: Floods::default(),
            refused: 0,
            number,
            stale: false,
            handing_over: false,
            first: 0,
            spare: spare(),
            now,
            stirred: true,
            changed: false,
            calling: false,
            crowd: false,
            asked: false,
            wake: None,
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

    /// Starts the other loops.
    ///
    /// # Errors
    /// A thread cannot be had.
    pub fn start(&mut self) -> io::Result<()> {
        self.crew.start()
    }

    /// Says that all is registered.
    pub fn ready(&mut self, hint: Option<String>) {
        let listen = self.whereabouts();
        let status = self.status();
        self.manager.ready(&listen, &status, self.now);
        self.log.tell(Event::Ready { listen, hint });
        // Nobody has to wait for that.
        self.begin_to_keep();
    }

    /// Serves until it is over.
    ///
    /// # Errors
    /// A poll itself fails.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        // A conversation that was passed may be over already, and nothing would wake us.
        self.housekeep()?;
        while self.life != Life::Over {
            let wait = if self.stirred || self.calling {
                Some(Duration::ZERO)
            } else {
                self.own.sleep(self.wake)
            };
            match self.poll.poll(&mut events, wait) {
                // A signal: its pipe is readable in the next round.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => result?,
            }
            self.now = clock::now();
            self.own.begin(self.now, !events.is_empty());
            self.asked = false;
            self.stirred |= self.wake.is_some_and(|wake| wake <= self.now);
            for event in &events {
                match Source::from(event.token()) {
                    Source::Connection(key) => self.own.announced(key, event),
                    Source::Listener(index) => {
                        self.calling = true;
                        self.listeners[index].announce();
                    }
                    // What is due is known without it.
                    Source::Alarm => {}
                    // Housekeeping looks at it.
                    Source::Answer => {
                        self.answered = true;
                        self.stirred = true;
                    }
                    Source::Crew => self.changed = true,
                    Source::Signals => {
                        self.stirred = true;
                        self.obey();
                    }
                }
            }
            if self.stirred || self.calling {
                // Those who have left make room for who waits.
                self.part();
                self.accept();
            }
            self.own.serve();
            self.look_round()?;
        }
        self.end()
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
        let open = self.counters().open();
        self.log.tell(Event::Stopping { open, span });
        for listener in &mut self.listeners {
            listener.drain(self.poll.registry());
        }
        self.leave_all();
    }

    /// Logs what can happen often: at once, or with what follows within a second.
    fn flood(&mut self, flood: Flood, event: Event) {
        if let Some(event) = self.floods.pass(flood, event, self.now) {
            self.log.tell(event);
        }
        self.wake = earliest([self.wake, self.floods.next_due()]);
    }

    /// Logs the sums whose second is over; `last`: all of them.
    fn flush_sums(&mut self, last: bool) {
        let ended = lock(&self.fold).flush(self.now, last);
        for event in ended.into_iter().chain(self.floods.flush(self.now, last)) {
            self.log.tell(event);
        }
    }

    fn leave_all(&mut self) {
        for worker in self.crew.hold(&mut self.own).iter_mut() {
            worker.shard.leave_all(self.now);
        }
    }

    /// How many connections there are.
    fn open(&self) -> usize {
        self.places.iter().sum()
    }

    /// Takes note of those that are over.
    fn part(&mut self) {
        self.crew.collect(&mut self.departed);
        self.forget();
    }

    /// The same, after the rounds that are under way: with those who are over in them.
    fn part_now(&mut self) {
        for (number, worker) in (0..).zip(self.crew.hold(&mut self.own).iter_mut()) {
            let gone = worker.gone.drain(..).map(|gone| (number, gone));
            self.departed.extend(gone);
        }
        self.part();
    }

    fn forget(&mut self) {
        let own = self.own.gone.drain(..).map(|gone| (0, gone));
        self.departed.extend(own);
        if self.departed.is_empty() {
            return;
        }
        for (number, gone) in self.departed.drain(..) {
            self.places[number] -= 1;
            if gone.kept {
                self.keeper.gone();
            }
            let Some(source) = gone.source else {
                continue;
            };
            if let Entry::Occupied(mut entry) = self.sources.entry(source) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
        if self.crowd && self.open() == 0 {
            // It has left, and what it took would stay.
            self.crowd = false;
            self.departed = Vec::new();
            self.own.gone = Vec::new();
            give_back_free_memory();
        }
        for listener in &mut self.listeners {
            listener.vacancy();
        }
        self.calling = true;
    }

    /// The end: whatever is left is abandoned, told and counted.
    fn end(mut self) -> io::Result<()> {
        self.crew.dismiss();
        self.part_now();
        let handing_over = self.handing_over && self.keeper.is_held();
        let abandoned = |stream: &Stream| !handing_over || stream.seat.is_none();
        for worker in self.crew.hold(&mut self.own).iter_mut() {
            for (key, turn) in worker.shard.abandon(abandoned, self.now) {
                worker.settle(key, turn);
            }
        }
        self.part_now();
        if handing_over {
            self.leave_to_successor();
        } else {
            self.keeper.dissolve(&mut self.manager, self.now);
        }
        self.flush_sums(true);
        self.manager.flush(self.now);
        let (counters, refused) = (self.counters(), self.refused);
        self.log.tell(Event::Stopped { counters, refused });
        self.crew.trouble().map_or(Ok(()), Err)
    }
}
