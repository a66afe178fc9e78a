//! The server: what is polled, and what follows from an event.
//!
//! One poll, that of the main loop, has the signals, the listeners and connections; with several
//! workers the connections are spread over their polls.  A loop runs in *rounds*: it waits for events,
//! and then gives each connection that is ready a *turn*.  Nothing in a round may take long: a turn has
//! a budget, a listener accepts one burst, and a round has an allowance of bytes.  What exceeds these
//! stands in a list of ours, and while such a list has an entry, the poll does not wait.  So signals,
//! new callers and the watchdog are served within a few milliseconds, whatever the number of
//! connections that send as fast as they can.
//!
//! A loop never blocks: not on the log (a queue and a thread), not on the service manager (a
//! non-blocking socket), not in accept(2) (every listener is non-blocking).  The exceptions are
//! reading the configuration on HUP, with several workers the main loop's wait for the end of a round
//! that a worker is in, and at a hand-over the manager's answer to a rotation (a second at most).
//!
//! [`Server`] composes owners, each with its own fields, none of which knows another: the [`Acceptor`]
//! (listeners, limits, answers to health checks), the [`WorkerPool`] (connections), the
//! [`Preserver`] with its [`Store`] (what outlives the process), the [`Reporter`] (log), the
//! [`Scrapes`] (requests for metrics), the [`Agenda`] (what is due in a round).  What concerns several
//! of them stands in this file, in `reload`, `handover` or `observe`, and nowhere else.
//!
//! In reading order: [`token`], [`event_loop`], [`deadline_timer`], [`lifecycle`], [`stream`],
//! [`header`], [`listener`], [`health`], [`acceptor`], [`measured`], [`worker`] (turns),
//! [`worker_pool`], [`agenda`], [`reporter`], [`metrics`] (their table and text), [`scrapes`] (requests
//! for them), then the parts of [`Server`] in this file, `handover`, `reload` and `observe`.

pub(crate) mod acceptor;
pub(crate) mod agenda;
pub(crate) mod deadline_timer;
pub(crate) mod event_loop;
mod handover;
pub(crate) mod header;
pub(crate) mod health;
pub(crate) mod lifecycle;
pub(crate) mod listener;
pub(crate) mod measured;
pub(crate) mod metrics;
mod observe;
mod reload;
pub(crate) mod reporter;
pub(crate) mod scrapes;
pub(crate) mod stream;
pub(crate) mod token;
pub(crate) mod worker;
pub(crate) mod worker_pool;

use std::io;
use std::time::Duration;

use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Poll};

use crate::config::units::{Role, size};
use crate::config::{Config, Origin};
use crate::echo::connection::Hint;
use crate::echo::counters::Counters;
use crate::echo::end_reason::EndReason;
use crate::echo::time::{MonoTime, earliest};
use crate::log::events::Event;
use crate::log::rate_limit::Limited;
use crate::log::sink::Log;
use crate::preserve::partition::Partition;
use crate::preserve::preserver::{Input, Preserver};
use crate::preserve::store::Store;
use crate::sys::activation::StreamSocket;
use crate::sys::bind::is_local;
use crate::sys::clock;
use crate::sys::endpoint::Endpoint;
use crate::sys::kernel::{Kernel, is_alone, is_private};
use crate::sys::notify::Manager;
use crate::sys::option_report::read_back;
use crate::sys::rights::Apart;
use crate::sys::signals::Signals;
use crate::sys::sockopt::{self, Refused};
use acceptor::{Acceptor, Attempt};
use agenda::Agenda;
use event_loop::{Announced, Rounds};
use lifecycle::{Action, How, Life, Spans};
use listener::{Listener, State};
use reload::Settings;
use reporter::{Reporter, Status};
use scrapes::Scrapes;
use stream::{ProxyHeader, Socket, Stream};
use token::EventSource;
use worker::{Report, Worker};
use worker_pool::{Walk, WorkerPool};

/// What [`Server::new`] puts together.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The signals, not yet registered with the poll.
    pub signals: Signals,
    /// The configuration to serve with.
    pub config: Config,
    /// The file and the arguments that a reload reads again.
    pub origin: Origin,
    /// The most connections for which RLIMIT_NOFILE leaves descriptors.
    pub descriptors: usize,
    pub kernel: Kernel,
    pub manager: Manager,
    /// What the service manager stores, and the state machine that decides about it.
    pub preservation: (Store, Preserver),
    /// The memory of each worker, by its number; there is one worker for each partition.
    pub partitions: Vec<Partition>,
    pub log: Log,
}

/// The daemon, composed of its owners.
#[derive(Debug)]
pub(crate) struct Server {
    signals: Signals,
    settings: Settings,
    acceptor: Acceptor,
    pool: WorkerPool,
    preserver: Preserver,
    store: Store,
    /// How far the preserved connections are in the new queue, while the queue is rotated.
    filled: Walk,
    manager: Manager,
    reporter: Reporter,
    scrapes: Scrapes,
    agenda: Agenda,
    life: Life,
    /// The clock as it was read at the beginning of this round.
    now: MonoTime,
}

impl Server {
    /// Puts a server together that has no listener and no connection yet.
    ///
    /// # Errors
    /// Those of epoll_ctl(2) for the signals, and those of epoll_create1(2) and eventfd(2) for the
    /// workers.
    pub(crate) fn new(parts: Parts, poll: &Poll, now: MonoTime) -> io::Result<Self> {
        let Parts {
            mut signals,
            config,
            origin,
            descriptors,
            kernel,
            manager,
            preservation: (store, preserver),
            partitions,
            log,
        } = parts;
        poll.registry().register(
            signals.source(),
            EventSource::Signals.into(),
            Interest::READABLE,
        )?;
        let reporter = Reporter::new(log, config.log.connection_rate);
        let pool = WorkerPool::new(poll.registry(), partitions, |registry, partition| {
            let (log, summary) = (reporter.log.clone(), reporter.close_summary.clone());
            let mut worker = Worker::new(registry, partition, &config, log, summary, now);
            worker.crash_guard = store.crash_guard().cloned();
            worker
        })?;
        let mut acceptor = Acceptor::default();
        acceptor.number = store.state_file().totals().number;
        let mut server = Self {
            signals,
            settings: Settings::new(config, origin, descriptors, kernel),
            acceptor,
            pool,
            preserver,
            store,
            filled: Walk::default(),
            manager,
            reporter,
            scrapes: Scrapes::default(),
            agenda: Agenda::new(),
            life: Life::Serving,
            now,
        };
        server.update_limits();
        server.reporter.emit(Event::Started {
            read: server.settings.config.read.clone(),
            max_connections: server.acceptor.max_connections,
            per_source: server.acceptor.per_source,
        });
        server.reporter.emit(Event::Kernel(server.settings.kernel));
        Ok(server)
    }

    /// Adds a listener, registers it with the poll, and logs its options and how far it can be reached.
    /// `refused` are the options that the kernel refused.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn add_listener(
        &mut self,
        mut listener: Listener,
        refused: Vec<Refused>,
    ) -> io::Result<()> {
        self.acceptor
            .register(&mut listener, self.pool.registry())?;
        self.introduce(&listener, refused);
        self.pool.add_name(&listener.name);
        self.acceptor.listeners.push(listener);
        Ok(())
    }

    /// Logs a new listener, its options and how far it can be reached.
    fn introduce(&self, listener: &Listener, refused: Vec<Refused>) {
        let name = || listener.name.clone();
        let local = || listener.local.clone();
        if let Some(socket) = listener.socket() {
            let rows = read_back(&socket, &listener.options, &self.settings.kernel);
            self.reporter.emit(Event::Listening {
                listener: name(),
                role: listener.role,
                local: local(),
                passed: listener.passed,
                rows,
            });
        }
        for refused in refused {
            let listener = name();
            self.reporter.emit(Event::Option { listener, refused });
        }
        let beyond = matches!(&listener.local, Endpoint::Ip(address) if !is_local(address.ip()));
        // A passed socket may belong to other namespaces than this process.
        let alone = !listener.passed
            && match &listener.local {
                Endpoint::Unix(Some(path)) => is_private(path),
                _ => beyond && is_alone() == Some(true),
            };
        if alone {
            self.reporter.emit(Event::Isolated {
                listener: name(),
                local: local(),
            });
        } else if beyond && !self.settings.config.allow_remote {
            self.reporter.emit(Event::Exposed {
                listener: name(),
                local: local(),
            });
        }
    }

    /// Serves a connection that the service manager has passed.  Every listener must be added before,
    /// as the index of its name is also that of the listener.
    pub(crate) fn add_connection(&mut self, name: &str, socket: StreamSocket) {
        let index = self.pool.add_name(name);
        let options = self.settings.config.options_of_passed(name);
        let socket = match socket {
            StreamSocket::Tcp(socket) => match socket.peer_addr() {
                Ok(peer) => Socket::Tcp(TcpStream::from_std(socket), peer),
                // The peer has reset the connection before this process started.
                Err(error) => {
                    return self.lost(index, error.raw_os_error().unwrap_or(0));
                }
            },
            StreamSocket::Unix(socket) => Socket::Unix(Apart::stream(UnixStream::from_std(socket))),
        };
        let mut stream = self.acceptor.stream(socket, index, &options, self.now);
        stream.shared = true;
        let refused = sockopt::apply(&stream, &options);
        self.options_refused(index, refused);
        self.admit(stream);
        self.deliver();
    }

    /// Starts the threads of all workers but that of the main loop.
    ///
    /// # Errors
    /// Those of pthread_create(3).
    pub(crate) fn start(&mut self) -> io::Result<()> {
        self.pool.start()
    }

    /// Reports to the service manager and the log that every listener is registered; `hint` is a
    /// command that tries one of them.
    pub(crate) fn ready(&mut self, hint: Option<String>) {
        let listen = self.acceptor.addresses().join(" ");
        let status = self.status();
        self.manager.ready(&listen, &status, self.now);
        self.reporter.emit(Event::Ready { listen, hint });
        // After readiness, so that clients do not wait for the store.
        self.begin_to_preserve();
    }

    /// Runs the main loop until the life of the server is over, and closes or hands over what is left.
    ///
    /// # Errors
    /// Those of epoll_wait(2), in this loop or in that of a worker.
    pub(crate) fn run(mut self, poll: &Poll) -> io::Result<()> {
        // The first round makes a full check ([`Agenda::new`]): a passed connection may be over already, and
        // no event would come for it.  Not before the poll, so that a process that crashes there has not
        // got through a full round.
        event_loop::run(poll.registry(), &mut self)?;
        self.end()
    }

    fn handle_signals(&mut self) {
        for request in self.signals.pending() {
            let spans = self.spans();
            if let Some(action) = self.life.on(request, self.now, spans) {
                self.act(action);
            }
        }
    }

    /// Does what a change of the life asks for.
    fn act(&mut self, action: Action) {
        match action {
            Action::Announce => self.announce_stop(),
            Action::Stop => self.stop(),
            Action::HandOver => self.hand_over(),
            Action::Reload => self.reload(),
            Action::Report => self.report(),
            Action::Drain(drained) => self.drain(drained),
        }
    }

    /// How long the parts of an end may take.
    fn spans(&self) -> Spans {
        // An instance for passed connections gets no new ones, so there is no balancer to wait for.
        let lone = self.acceptor.listeners.is_empty();
        let config = &self.settings.config;
        Spans {
            lame_duck: if lone {
                Duration::ZERO
            } else {
                config.lame_duck
            },
            stop_timeout: config.limits.stop_timeout,
        }
    }

    /// Begins to drain the service by request, or ends that: health checks are answered accordingly,
    /// and nothing else changes.
    fn drain(&mut self, drained: bool) {
        if std::mem::replace(&mut self.acceptor.health.drained, drained) != drained {
            self.store.state_file().set_drained(drained);
            // The next process is to know, even if there has been no connection so far.
            if self.preserves() {
                self.preserve(Input::Ask);
            }
            self.reporter.emit(if drained {
                Event::Drained
            } else {
                Event::Undrained
            });
        }
        let status = self.status();
        self.manager.report(&status, self.now);
    }

    /// Announces a stop to balancers, and serves on until it begins.
    fn announce_stop(&mut self) {
        let Spans {
            lame_duck,
            stop_timeout,
        } = self.spans();
        let status = self.status();
        // From here on the manager waits for the end, and starts nothing that depends on the service.
        let span = lame_duck + stop_timeout;
        self.manager.stopping(span, &status, self.now);
        let open = self.counters().open();
        self.reporter.emit(Event::LameDuck {
            open,
            span: lame_duck,
        });
    }

    /// Stops accepting, and lets every connection echo what has arrived, send a FIN and end.
    fn stop(&mut self) {
        self.preserve(Input::Ending);
        let span = self.settings.config.limits.stop_timeout;
        let status = self.status();
        self.manager.stopping(span, &status, self.now);
        let open = self.counters().open();
        self.reporter.emit(Event::Stopping { open, span });
        self.acceptor.drain(self.pool.registry());
        self.pool.drain_all(self.now);
    }

    /// Accepts a burst from every listener that is due.
    fn accept(&mut self) {
        let mut asked = false;
        for offset in 0.. {
            let Some(index) = self.acceptor.turn_of(offset) else {
                break;
            };
            let Some(mut burst) = self.acceptor.begin(index, self.now) else {
                continue;
            };
            loop {
                let open = self.pool.open();
                let (now, registry) = (self.now, self.pool.registry());
                match self
                    .acceptor
                    .attempt(index, &mut burst, open, now, registry)
                {
                    Attempt::Accepted(socket) => self.accepted(index, socket, &mut asked),
                    Attempt::Lost(errno) => self.lost(index, errno),
                    Attempt::Again => {}
                    last => {
                        if matches!(last, Attempt::Paused(_)) {
                            self.reporter.forget(Limited::Resumed(index));
                        }
                        if let Some((kind, event)) = last.event(index) {
                            self.emit_limited(kind, event);
                        }
                        break;
                    }
                }
            }
            self.deliver();
            self.acceptor.table.prepare(self.pool.open());
            // Housekeeping works out when the next attempt is due.
            let state = self.acceptor.listeners[index].state;
            self.agenda.everything |= matches!(state, State::Short(_));
        }
    }

    /// Serves an accepted connection, or closes it if its source has as many as it may.  `asked`:
    /// whether the workers were paused in this burst already, to count the connections that are over.
    fn accepted(&mut self, index: usize, socket: Socket, asked: &mut bool) {
        if self.acceptor.listeners[index].role == Role::Health {
            return self.checked(index, socket);
        }
        let stream = self.acceptor.accepted(socket, index, self.now);
        // A connection of this source may be over and not counted as such yet.  Once a burst is enough:
        // a source that connects again and again must not hold up all loops.
        let mut exceeded = self.acceptor.exceeded(&stream);
        if exceeded.is_some() && !std::mem::replace(asked, true) {
            self.collect_closed(true);
            exceeded = self.acceptor.exceeded(&stream);
        }
        if let Some(most) = exceeded {
            self.acceptor.refused += 1;
            let (peer, count) = (stream.peer(), 1);
            let event = Event::Refused { peer, most, count };
            return self.emit_limited(Limited::Refused, event);
        }
        let refused = self.acceptor.apply_options(index, &stream);
        self.options_refused(index, refused);
        self.admit(stream);
    }

    /// Answers a health check, which is no connection of the echo.
    fn checked(&mut self, index: usize, socket: Socket) {
        let stream = Stream::new(socket, 0, u32::MAX, false);
        let refused = self.acceptor.apply_options(index, &stream);
        self.options_refused(index, refused);
        self.acceptor.health.answer(stream, self.life, self.now);
        self.agenda.wake_by(self.acceptor.health.next_due());
    }

    /// Counts a connection, and assigns it to a worker.
    fn admit(&mut self, stream: Stream) {
        self.acceptor.count(&stream);
        self.pool.assign(stream);
        self.agenda.changed = true;
    }

    /// Moves the assigned connections into their workers.
    fn deliver(&mut self) {
        let (life, now) = (self.life, self.now);
        let preserver = &mut self.preserver;
        let mut lost = Vec::new();
        self.pool.deliver(|worker, of, stream| {
            let preserve = stream.can_be_preserved();
            let (number, listener) = (stream.number, stream.listener);
            let is_untrusted = matches!(stream.header, ProxyHeader::Untrusted);
            let key = match worker.admit(stream, now) {
                Ok(key) => key,
                Err(error) => return lost.push((listener as usize, error)),
            };
            if is_untrusted {
                return worker.end(key, EndReason::Untrusted);
            }
            if matches!(life, Life::Stopping { .. }) {
                return worker.connections.drain(key, now);
            }
            if of == 0 {
                // Its first message is often there already, and a turn in this round costs less than
                // another round.  (A worker with a loop of its own would have to be woken for it.)
                worker.connections.queue(key, Hint::Plain);
            }
            if preserve {
                preserver.opened(of, key, number, now);
            }
        });
        for (listener, error) in lost {
            self.lost(listener, error.raw_os_error().unwrap_or(0));
        }
    }

    /// Logs a connection that was over before it could be served; `index` is that of a listener's name.
    fn lost(&mut self, index: usize, errno: i32) {
        let event = Event::AcceptFailed {
            listener: self.pool.own.names[index].clone(),
            errno,
            count: 1,
        };
        self.emit_limited(Limited::Lost(index), event);
    }

    /// Logs options that the kernel refused for an accepted socket.  The rate is limited, as it may
    /// refuse them for every one.
    fn options_refused(&mut self, index: usize, refused: Vec<Refused>) {
        for refused in refused {
            let listener = self.pool.own.names[index].clone();
            let kind = Limited::Option(index, refused.option);
            self.emit_limited(kind, Event::Option { listener, refused });
        }
    }

    fn emit_limited(&mut self, kind: Limited, event: Event) {
        self.reporter.emit_limited(kind, event, self.now);
        self.agenda.wake_by(self.reporter.next_due());
    }

    /// Subtracts the connections that are over from the counts of the other owners.  `pause`: waits for
    /// the rounds that are under way, to include the connections that end in them.
    fn collect_closed(&mut self, pause: bool) {
        let (preserver, acceptor) = (&mut self.preserver, &mut self.acceptor);
        let mut exceeding = Vec::new();
        let any = self.pool.take_reports(pause, |worker, report| {
            let closed = match report {
                Report::Closed(closed) => closed,
                Report::Identified(identified) => {
                    if acceptor.add(identified.source) {
                        exceeding.push((worker, identified));
                    }
                    return;
                }
            };
            if closed.preserved {
                preserver.closed();
            }
            if let Some(source) = closed.source {
                acceptor.release(source);
            }
        });
        for (worker, identified) in exceeding {
            let reason = EndReason::MaxConnectionsPerSource;
            self.pool.end(worker, &identified, reason);
        }
        if any {
            self.acceptor.on_room();
            self.agenda.callers = true;
            self.agenda.wake_by(self.reporter.summary_due());
        }
    }

    /// Ends a round: does what it has made due, and works out when the next one has to come.
    fn look_round(&mut self) -> io::Result<()> {
        self.agenda.changed |= !self.pool.own.reports.is_empty();
        // While stopping, the end of any connection or listener may be what the server waits for.
        self.agenda.everything |= self.pool.own.crash_guard.is_some() || !self.life.is_serving();
        let sent = std::mem::take(&mut self.pool.own.sent);
        if (sent || self.agenda.changed) && !self.agenda.status {
            self.agenda.status = true;
            self.agenda.wake_by(self.manager.next_status(self.now));
        }
        if self.agenda.changed && !self.agenda.everything {
            self.collect_closed(false);
            self.pool.trouble().map_or(Ok(()), Err)?;
            self.agenda.everything = self.acceptor.listeners.is_empty();
            self.record_totals();
            self.agenda.wake_by(self.preserver.next_due());
            self.agenda.changed = false;
        }
        if self.agenda.everything {
            return self.housekeep();
        }
        if self.agenda.callers {
            self.agenda.callers = self.acceptor.is_any(State::Ready);
        }
        Ok(())
    }

    /// Does everything that is due by the clock and not by an event.
    fn housekeep(&mut self) -> io::Result<()> {
        self.collect_closed(false);
        self.pool.trouble().map_or(Ok(()), Err)?;
        self.acceptor.health.on_time(self.now);
        self.reporter.flush(self.now, false);
        self.forget_closed();
        self.keep_preserving();
        let idle = match self.life {
            Life::HandingOver { .. } => self.preserver.preserved() == self.pool.open(),
            _ => self.pool.open() == 0,
        };
        if idle && self.acceptor.listeners.is_empty() && self.life == Life::Serving {
            // An instance for passed connections ends with the last of them.
            self.life.finish();
        }
        let done = idle && self.acceptor.is_closed();
        if let Some(action) = self.life.on_time(self.now, done, self.spans()) {
            self.act(action);
        }
        self.send_status();
        self.record_totals();
        if self.manager.on_time(self.now, self.pool.is_alive()) {
            self.pool.ask();
        }
        if let Some(error) = self.manager.trouble() {
            self.reporter.emit(Event::Manager(error));
        }
        self.serve_scrapes();
        let preserve = (self.life.is_serving())
            .then(|| self.preserver.next_due())
            .flatten();
        self.agenda.done(earliest([
            self.life.next_due(),
            self.manager.next_due(),
            self.reporter.next_due(),
            self.acceptor.next_due(),
            self.acceptor.health.next_due(),
            self.scrapes.next_due(),
            preserve,
        ]));
        // More clients than are accepted in a round.
        self.agenda.everything = self.scrapes.is_due();
        self.agenda.callers = self.acceptor.is_any(State::Ready);
        Ok(())
    }

    /// Sends the status to the service manager, if it has changed and a second has passed.
    fn send_status(&mut self) {
        let counters = self.pool.reported();
        let store_state = self.preserver.store_state();
        let mark = [
            self.acceptor.number,
            counters.closed(),
            counters.sent,
            store_state.mark(self.preserver.preserved()),
        ];
        if self.manager.is_status_due(mark, self.now) {
            self.pool.status_sent();
            let status = self.status();
            self.manager.status(mark, status, self.now);
        }
    }

    /// The status in one line, with the totals of this moment.
    fn status(&mut self) -> String {
        let preserved = self.preserver.preserved();
        Status {
            life: self.life,
            drained: self.acceptor.health.drained,
            addresses: self.acceptor.addresses(),
            counters: self.counters(),
            stale: self.settings.stale,
            full: self.acceptor.is_any(State::Full),
            preservation: self.preserver.store_state().status(preserved),
        }
        .to_string()
    }

    /// The totals over all workers, at this moment.
    fn counters(&mut self) -> Counters {
        self.pool.counters()
    }

    /// Reports the counters to the log and to the service manager.
    fn report(&mut self) {
        let owed = self.pool.owed();
        let counters = self.counters();
        let refused = self.acceptor.refused;
        let status = format!(
            "{}; accepted {}, refused {refused}, received {}, sent {}, owed {}",
            self.status(),
            counters.accepted,
            size(counters.received),
            size(counters.sent),
            size(owed)
        );
        self.reporter.emit(Event::Counters {
            counters,
            refused,
            checks: self.acceptor.health.checks,
            owed,
            queues: self.acceptor.queues(),
        });
        self.manager.report(&status, self.now);
    }

    /// Ends the process: hands the preserved connections over, or closes them; the others are closed,
    /// logged and counted.
    fn end(mut self) -> io::Result<()> {
        self.pool.join();
        self.collect_closed(true);
        let handed_over = self.life == Life::Over(How::HandedOver) && self.is_store_held();
        let close = |stream: &Stream| !handed_over || stream.record_id.is_none();
        for worker in self.pool.pause_all().iter_mut() {
            for (key, outcome) in worker.connections.abandon(close, self.now) {
                worker.settle(key, outcome);
            }
        }
        self.collect_closed(true);
        if handed_over {
            self.record_for_successor();
        } else {
            self.preserve(Input::Dissolve);
        }
        self.reporter.flush(self.now, true);
        self.manager.flush(self.now);
        let (counters, refused) = (self.counters(), self.acceptor.refused);
        self.reporter.emit(Event::Stopped {
            counters,
            refused,
            checks: self.acceptor.health.checks,
        });
        self.pool.trouble().map_or(Ok(()), Err)
    }
}

impl Rounds for Server {
    fn goes_on(&self) -> bool {
        !matches!(self.life, Life::Over(_))
    }

    fn wait(&mut self) -> Option<Duration> {
        self.pool.own.finish();
        match self.agenda.wait() {
            Ok(at_once) => Some(at_once),
            Err(wake) => self.pool.own.sleep(wake),
        }
    }

    fn begin(&mut self, announced: bool) {
        let now = clock::now();
        self.now = now;
        self.pool.own.begin(now, announced);
        self.agenda.begin(now);
    }

    #[inline]
    fn take(&mut self, event: Announced) {
        match EventSource::from(event.token) {
            EventSource::Connection(key) => self.pool.own.announced(key, event),
            EventSource::Listener(index) => {
                self.agenda.callers = true;
                self.acceptor.listeners[index].announce();
            }
            // The timer only has to wake the poll: what is due is worked out by the clock.
            EventSource::Deadline => {}
            // Housekeeping asks the store what has happened.
            EventSource::Manager => {
                self.agenda.answered = true;
                self.agenda.everything = true;
            }
            EventSource::Worker => self.agenda.changed = true,
            EventSource::Scraper => {
                self.scrapes.announce();
                self.agenda.everything = true;
            }
            EventSource::Scrape(key) => {
                self.scrapes.ready(key);
                self.agenda.everything = true;
            }
            EventSource::Signals => {
                self.agenda.everything = true;
                self.handle_signals();
            }
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.agenda.everything || self.agenda.callers {
            // First, as connections that are over make room for callers that wait.
            self.collect_closed(false);
            self.accept();
        }
        self.pool.own.serve();
        self.look_round()
    }
}
