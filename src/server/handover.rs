//! Where preservation meets workers, poll and log.
//!
//! At the start, the connections of the previous process go on.  While serving, each connection is
//! preserved once it is old enough: it gets a record in the state file, and its descriptor goes into
//! the queue that the service manager stores.  At a planned end (a restart, an upgrade) all that can be
//! preserved are handed over to the next process.
//!
//! The state machine [`crate::preserve::preserver`] takes every decision; the code here gives it its
//! inputs and carries out the effects.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use mio::Interest;
use mio::net::{TcpStream, UnixStream};
use mio::unix::SourceFd;
use socket2::{Domain, SockRef};

use super::Server;
use super::listener::Listener;
use super::stream::{ProxyHeader, Socket, Stream};
use super::token::EventSource;
use super::worker::Worker;
use super::worker_pool::Walk;
use crate::config::units::{Role, Span};
use crate::echo::LINGER;
use crate::echo::connection::{Connection, Start};
use crate::echo::connections::Connections;
use crate::echo::counters::Counters;
use crate::echo::time::MonoTime;
use crate::log::events::Event;
use crate::log::rate_limit::Limited;
use crate::preserve::partition::Partition;
use crate::preserve::preserve_queue::Waiting;
use crate::preserve::preserver::{Effect, Filled, Input, ROUND};
use crate::preserve::recover::{Found, Recovered};
use crate::preserve::restore::{Restored, RestoredConnection, restore_found};
use crate::preserve::state_file::Record;
use crate::preserve::store_state::{DECLINED, StoreEvent, StoreState};
use crate::preserve::totals::Totals;
use crate::sys::rights::Apart;
use crate::sys::{clock, environment};

/// Entries in the list of waiting connections, beyond twice the open connections, from which on the
/// list is made anew without those that are over.
const EXCESS: usize = 65_536;

/// Connections that are examined and added to the workers at a time.  In a debug build so few that tests
/// have many slices.
const SLICE: usize = if cfg!(debug_assertions) { 16 } else { 256 };

/// How long the end of the process may wait for an answer of the service manager.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// What a listener gives to its connections.
struct Given {
    /// The index of its name in the workers.
    listener: u32,
    quickack: bool,
    /// How long a PROXY header may take.
    timeout: Duration,
}

/// What has become of the connections of the previous process.
#[derive(Default)]
struct Outcome {
    restored: usize,
    /// How many of them owed bytes, and how many bytes.
    owing: usize,
    owed: u64,
    /// What the listeners give to connections, by the indexes of their names in the state file.
    given: BTreeMap<u32, Given>,
}

/// The order in which connections go on: first those for which there is something to do.  These begin at
/// another one each time, by `first`.  Otherwise, when process after process crashes, the same connections
/// would never get a turn.
fn in_order<T>(
    connections: Vec<T>,
    is_busy: impl Fn(&T) -> bool,
    first: usize,
) -> std::vec::IntoIter<T> {
    let (mut busy, quiet): (Vec<_>, Vec<_>) = connections.into_iter().partition(is_busy);
    let middle = first.checked_rem(busy.len()).unwrap_or(0);
    busy.rotate_left(middle);
    busy.extend(quiet);
    busy.into_iter()
}

/// The descriptors that the store of the service manager can hold (`$FDSTORE`, systemd.exec(5));
/// `None`: it is not known, and only an attempt shows it.  systemd sets the variable since version 254,
/// but not for a store of size 0: there `$MEMORY_PRESSURE_WATCH`, of the same version, shows that it
/// would have.
fn store_size() -> Option<usize> {
    match environment::text("FDSTORE") {
        Some(size) => size.parse().ok(),
        None => environment::value("MEMORY_PRESSURE_WATCH").map(|_| 0),
    }
}

impl Server {
    /// Goes on with the totals and the connections of the previous process, and logs what was lost.
    /// Every listener must be added before.
    ///
    /// The connections are restored in slices, first those for which there is something to do, and each
    /// slice gets its turns before the next is examined.
    pub(crate) fn restore(&mut self, mut recovered: Recovered, restored: Restored) {
        let totals = self.store.state_file().totals();
        self.acceptor.refused = totals.refused;
        self.acceptor.health.drained = self.store.state_file().is_drained();
        if self.acceptor.health.drained {
            self.reporter.emit(Event::Drained);
        }
        let expected = restored.preserved();
        let mut counters = totals.counters;
        counters.take_over(expected as u64);
        // Connections that were passed are counted already.
        let own = &mut self.pool.own.connections;
        let passed = own.counters();
        own.resume([counters, passed].into_iter().sum());
        for listener in &mut self.acceptor.listeners {
            listener.recorded = self.store.listener(&listener.name);
        }
        let mut outcome = Outcome::default();
        let first = usize::try_from(self.now.as_micros()).unwrap_or(0);
        let mut placed = in_order(restored.placed, RestoredConnection::is_busy, first);
        while placed.len() > 0 {
            self.restore_slice(placed.by_ref().take(SLICE).collect(), &mut outcome);
        }
        let mut found = in_order(restored.found, |found| found.is_busy, first);
        while found.len() > 0 {
            let slice = self.examined(&mut recovered, found.by_ref().take(SLICE));
            self.restore_slice(slice, &mut outcome);
        }
        self.lose(expected - outcome.restored);
        self.report_restored(recovered, &outcome);
        // An older version has preserved streams that may hold descriptors in their queue.
        for worker in self.pool.pause_all().iter_mut() {
            worker.drain(Stream::is_doubtful, self.now);
        }
        if !self.settings.config.preserve_connections {
            self.preserve(Input::Decline);
            if outcome.restored > 0 {
                let (why, count) = (DECLINED.into(), outcome.restored);
                self.reporter.emit(Event::PredecessorDropped { why, count });
            }
            for worker in self.pool.pause_all().iter_mut() {
                worker.drain(|stream| stream.record_id.is_some(), self.now);
            }
        }
    }

    /// Examines the connections of a slice; returns those that go on.
    fn examined(
        &mut self,
        recovered: &mut Recovered,
        slice: impl Iterator<Item = Found>,
    ) -> Vec<RestoredConnection> {
        // No worker serves a connection meanwhile, so there is none to be blamed for a crash but the one
        // that is examined.
        let mut workers = self.pool.pause_all();
        slice
            .filter_map(|found| {
                let worker = workers.get_mut(found.partition);
                restore_found(recovered, found, worker.connections.store_mut())
            })
            .collect()
    }

    /// Adds the connections of a slice to their workers, and gives those of the main loop their turns.
    fn restore_slice(&mut self, slice: Vec<RestoredConnection>, outcome: &mut Outcome) {
        for pending in slice.iter().filter_map(|it| it.pending.as_ref()) {
            outcome.owing += 1;
            outcome.owed += u64::from(pending.owed());
        }
        outcome.restored += slice.len();
        let slice: Vec<_> = slice
            .into_iter()
            .map(|connection| self.restored(connection, &mut outcome.given))
            .collect();
        self.pool.restore(slice.into_iter(), self.now);
        self.now = clock::now();
        self.pool.own.begin(self.now, false);
        self.pool.own.serve();
    }

    /// Counts so many connections as ended that were expected to go on.
    fn lose(&mut self, count: usize) {
        self.pool.own.connections.not_restored(count as u64);
        for _ in 0..count {
            self.preserver.closed();
        }
    }

    /// Logs which connections of the previous process go on.
    fn report_restored(&mut self, recovered: Recovered, outcome: &Outcome) {
        self.reporter.tally.restored = outcome.restored as u64;
        if let Some(unusable) = &recovered.unusable {
            let (why, count) = (unusable.to_string(), recovered.lost.values().sum());
            self.reporter.emit(Event::PredecessorDropped { why, count });
        }
        if recovered.before > 0 {
            let mut lost: Vec<_> = recovered.lost.into_iter().collect();
            lost.sort_unstable();
            self.reporter.emit(Event::Restored {
                restored: outcome.restored,
                before: recovered.before,
                owing: outcome.owing,
                owed: outcome.owed,
                planned: recovered.planned,
                crashes: recovered.crashes,
                lost,
            });
        }
    }

    /// A connection of the previous process, with the number of its worker.  `given`: what the listeners
    /// give to connections, by the indexes of their names in the state file.
    fn restored(
        &mut self,
        restored: RestoredConnection,
        given: &mut BTreeMap<u32, Given>,
    ) -> (usize, Stream, Start) {
        let RestoredConnection {
            connection,
            pending,
            partition,
            record_id,
        } = restored;
        let record = connection.record;
        // After a crash the recorded total may be older than this connection.
        self.acceptor.number = self.acceptor.number.max(record.number);
        // The kernel counts the bytes of TCP connections only.
        let is_unix = !connection.counted
            && SockRef::from(&connection.socket).domain().ok() == Some(Domain::UNIX);
        let socket = if is_unix {
            let socket = UnixStream::from_std(connection.socket.into());
            Socket::Unix(Apart::stream(socket))
        } else {
            let socket = std::net::TcpStream::from(connection.socket);
            // A connection without a peer is over already, and the first read reports how.
            let no_peer = (Ipv4Addr::UNSPECIFIED, 0);
            let peer = socket.peer_addr().unwrap_or(no_peer.into());
            Socket::Tcp(TcpStream::from_std(socket), peer)
        };
        let Given {
            listener,
            quickack,
            timeout,
        } = *given
            .entry(record.listener)
            .or_insert_with(|| self.given(record.listener));
        let mut stream = Stream::new(socket, record.number, listener, quickack);
        // The proxy may have been kept waiting by the restart, and the time begins anew.
        stream.header = ProxyHeader::restored(record.before, self.now + timeout);
        stream.shared = true;
        stream.record_id = Some(record_id);
        let moved = if pending.is_some() {
            self.now
        } else {
            self.now - connection.positions.quiet
        };
        let start = Start {
            owner: record.cookie,
            header_due: stream.header.due(),
            received: connection.positions.received,
            sent: connection.positions.sent,
            pending,
            began: MonoTime::from_micros(record.began),
            moved,
            finished: connection.positions.finished,
            input: connection.positions.input,
        };
        self.acceptor.count(&stream);
        (partition, stream, start)
    }

    /// What the listener gives to its connections whose name has this index in the state file.
    fn given(&mut self, index: u32) -> Given {
        let name = self.store.state_file().name(index);
        let name = name.unwrap_or_else(|| "unknown".into());
        let options = self.settings.config.options_of_passed(&name);
        Given {
            listener: self.pool.number_of(&name),
            quickack: options.quickack == Some(true),
            timeout: options
                .proxy_timeout
                .map_or(LINGER, |Span(timeout)| timeout),
        }
    }

    /// Whether connections are to be preserved: the configuration asks for it, and there is a service
    /// manager.
    #[must_use]
    pub(crate) fn preserves(&self) -> bool {
        self.settings.config.preserve_connections && self.manager.is_there()
    }

    /// Begins to preserve connections, or empties the store where none are to be preserved.
    pub(super) fn begin_to_preserve(&mut self) {
        if self.preserves() {
            let after = self.settings.config.preserve_after;
            let store = store_size();
            self.preserve(Input::Enable { after, store });
            if self.scrapes.is_on() {
                // The totals are to go on over a crash, also if no connection was old enough to be
                // preserved.
                self.preserve(Input::Ask);
            }
            return;
        }
        self.preserve(Input::Dissolve);
        if self.manager.is_there() {
            let (why, grave) = (DECLINED.into(), false);
            self.reporter.emit(Event::NotPreserving { why, grave });
        }
    }

    /// Gives the state machine an input, and carries out its effects and those of their outcomes.
    pub(super) fn preserve(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            // First whether a message was dropped, as the input may be the outcome of that.
            let exhausted = self.manager.was_exhausted();
            let mut effects = Vec::new();
            if exhausted {
                effects.extend(self.preserver.on(Input::Exhausted, self.now));
            }
            effects.extend(self.preserver.on(input, self.now));
            for effect in effects {
                inputs.extend(self.perform(effect));
            }
        }
    }

    /// Carries out an effect; returns its outcome, where the state machine needs it.
    fn perform(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::StoreFile => {
                let sent = self.store.send_file(&mut self.manager, self.now);
                return Some(Input::FileSent(sent));
            }
            Effect::Unstore(name) => self.manager.unstore(&name, self.now),
            Effect::Rotate(generation) => {
                self.filled = Walk::default();
                let made = self.store.rotate(generation);
                return Some(Input::Filled(made.and_then(|()| self.fill())));
            }
            Effect::Fill => return Some(Input::Filled(self.fill())),
            Effect::Offer => {
                let sent = self.store.offer(&mut self.manager, self.now);
                if let Some(answer) = self.store.answer().map(|answer| answer.as_raw_fd()) {
                    // Without the event, the answer is looked for when its time is over.
                    self.listen_to(answer);
                }
                return Some(Input::RotationSent(sent));
            }
            Effect::Promote => self.store.promote(),
            Effect::DropRotation => self.store.drop_rotation(),
            Effect::DropQueue => self.store.drop_queue(),
            Effect::Append(batch) => return Some(self.append(batch)),
            Effect::Log(event) => self.on_store_event(event),
        }
        None
    }

    /// Puts the next slice of the preserved connections into the new queue.
    fn fill(&mut self) -> io::Result<Filled> {
        let workers = self.pool.pause_all();
        let slice = self.filled.next(&workers);
        let slice = slice.map(|(worker, keys)| preserved(worker, keys).collect::<Vec<_>>());
        self.store.fill(slice.as_deref())
    }

    /// Preserves those connections of a batch that are not over: each gets a record first, then all
    /// descriptors go into the queue in one message.
    fn append(&mut self, mut batch: Vec<Waiting>) -> Input {
        let mut without_record = 0;
        let mut workers = self.pool.pause_all();
        batch.retain(|waiting| {
            let connections = &mut workers.get_mut(waiting.worker).connections;
            if is_over(connections, waiting) {
                return false;
            }
            let listener = connections.stream(waiting.key).and_then(|stream| {
                let index = usize::try_from(stream.listener).ok()?;
                Some(self.acceptor.listeners.get(index)?.recorded)
            });
            let added = add_record(connections, waiting, listener.unwrap_or(u32::MAX));
            without_record += usize::from(!added);
            added
        });
        let descriptors = batch.iter().filter_map(|waiting| {
            let connections = &workers.get(waiting.worker).connections;
            connections.stream(waiting.key).map(AsFd::as_fd)
        });
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.collect();
        let appended = if descriptors.is_empty() {
            Ok(None)
        } else {
            self.store.append(&descriptors)
        };
        if appended.is_err() {
            for waiting in &batch {
                let connections = &mut workers.get_mut(waiting.worker).connections;
                remove_record(connections, waiting.key);
            }
        }
        drop(workers);
        if without_record > 0 {
            let error = io::Error::from_raw_os_error(libc::ENOMEM);
            self.not_preserved(without_record, error);
        }
        match appended {
            Ok(missed) => Input::Appended {
                count: batch.len(),
                missed,
            },
            Err(error) => Input::NotAppended {
                batch,
                error,
                held: self.store.is_held(),
            },
        }
    }

    /// Logs that so many connections are not preserved, and why.
    fn not_preserved(&mut self, count: usize, error: io::Error) {
        self.reporter.tally.not_preserved += count as u64;
        self.emit_limited(
            Limited::NotPreserved,
            Event::PreserveFailed { count, error },
        );
    }

    /// Logs a change of the store, and does what follows from it for the other owners.
    fn on_store_event(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Preserving => {
                self.update_limits();
                self.list_waiting();
                self.reporter.emit(Event::Preserving {
                    max_connections: self.acceptor.max_connections,
                    per_source: self.acceptor.per_source,
                });
            }
            StoreEvent::Refused { why, grave } => {
                self.reporter.emit(Event::NotPreserving { why, grave });
                self.update_limits();
                self.acceptor.on_room();
                // No connection can be handed over any more.  Before the listeners are closed, the
                // hand-over itself finds that out.
                if self.acceptor.is_closed() && self.life.stop_instead() {
                    self.pool.drain_all(self.now);
                }
            }
            StoreEvent::NotRotated { error, all } => {
                let open = self.pool.open();
                let count = if all {
                    open
                } else {
                    open.saturating_sub(self.preserver.preserved())
                };
                self.not_preserved(count, error);
            }
            StoreEvent::NotAppended { count, error } => self.not_preserved(count, error),
        }
    }

    /// Takes the answers of the service manager, and preserves the connections that are due.
    pub(super) fn keep_preserving(&mut self) {
        if self.preserver.answer_due().is_some() {
            let answered = self.store.is_answered(Duration::ZERO);
            self.end_rotation(answered);
        }
        if std::mem::take(&mut self.agenda.answered) && !self.store.is_held() {
            self.preserve(Input::HungUp);
        }
        self.watch_queue();
        self.end_first_round();
        if !self.life.is_serving() {
            return;
        }
        // While the store accepts nothing, the list of waiting connections must not grow without bound.
        if self.preserver.waiting().len() > 2 * self.pool.open() + EXCESS {
            self.list_waiting();
        }
        if self.preserver.next_due().is_some_and(|due| due <= self.now) {
            // A message is for connections that live: a queue takes a few hundred messages only.
            let waiting = self.preserver.waiting();
            let workers = self.pool.pause_all();
            waiting.forget_due(self.now, ROUND, |waiting| {
                is_over(&workers.get(waiting.worker).connections, waiting)
            });
            drop(workers);
            self.preserve(Input::Time);
        }
    }

    /// Registers a descriptor of which the service manager has the other end.
    fn listen_to(&self, descriptor: RawFd) {
        // An error only delays what the event would bring, as each caller says.
        let _ = self.pool.registry().register(
            &mut SourceFd(&descriptor),
            EventSource::Manager.into(),
            Interest::READABLE,
        );
    }

    /// Watches the sending end of a new queue, which hangs up when the service manager has dropped the
    /// receiving end.
    fn watch_queue(&mut self) {
        if let Some(sender) = self.store.unwatched() {
            // Without the event, the loss shows when a connection is preserved or handed over.
            self.listen_to(sender);
        }
    }

    /// Ends the first round, and with it the crash guard, when every restored connection has had a turn.
    fn end_first_round(&mut self) {
        if self.store.crash_guard().is_none() {
            return;
        }
        let mut workers = self.pool.pause_all();
        if workers.iter().all(Worker::has_tried_all) {
            for worker in workers.iter_mut() {
                worker.crash_guard = None;
            }
            self.store.end_first_round();
        }
    }

    /// Drops the connections at the front of the waiting list that are over, so that the store is not
    /// set up for them.
    pub(super) fn forget_closed(&mut self) {
        let waiting = self.preserver.waiting();
        if waiting.is_empty() {
            return;
        }
        let workers = self.pool.pause_all();
        waiting.forget(|waiting| is_over(&workers.get(waiting.worker).connections, waiting));
    }

    /// Makes the waiting list anew, from all connections that can be preserved and are not.
    pub(super) fn list_waiting(&mut self) {
        let after = self.settings.config.preserve_after;
        let workers = self.pool.pause_all();
        let waiting = workers.iter().enumerate().flat_map(|(number, worker)| {
            let connections = worker.connections.iter();
            let own = connections.filter(|(_, stream, _)| stream.can_be_preserved());
            own.map(move |(key, stream, connection)| Waiting {
                due: connection.began() + after,
                worker: number,
                key,
                number: stream.number,
            })
        });
        self.preserver.waiting().replace(waiting.collect());
    }

    /// Begins to hand the connections over to the next process, which is done at once if all can be
    /// preserved.  Those that cannot are drained, and until they have ended the others are still served.
    pub(super) fn hand_over(&mut self) {
        self.preserve(Input::Ending);
        self.preserve(Input::Ask);
        self.settle_rotation();
        if !self.is_store_held() {
            // The wait for the manager is no part of the time that connections have to drain.
            let action = self.life.begin_stop(self.now, self.spans());
            return self.act(action);
        }
        self.take_last_callers();
        self.preserve_all();
        for worker in self.pool.pause_all().iter_mut() {
            worker.drain(|stream| stream.record_id.is_none(), self.now);
        }
        let span = self.settings.config.limits.stop_timeout;
        let status = self.status();
        self.manager.stopping(span, &status, self.now);
    }

    /// Whether the service manager stores what is preserved, as far as this process can see.
    pub(super) fn is_store_held(&self) -> bool {
        *self.preserver.store_state() == StoreState::Preserving && self.store.is_held()
    }

    /// Waits for the answer to a rotation that is under way, [`LAST_ANSWER`] at most.  A connection that
    /// is preserved during a rotation would be in the old queue only, and be lost with it.
    fn settle_rotation(&mut self) {
        if self.preserver.answer_due().is_none() {
            return;
        }
        self.manager.flush(self.now);
        let answered = self.store.is_answered(LAST_ANSWER);
        self.now = clock::now();
        self.end_rotation(answered);
        self.preserve(Input::AbandonRotation);
    }

    /// Ends a rotation that the manager has answered, or whose time is over.
    fn end_rotation(&mut self, answered: bool) {
        let due = self.preserver.answer_due();
        if answered || due.is_some_and(|until| until <= self.now) {
            let held = self.store.is_rotation_held();
            self.preserve(Input::RotationOver { answered, held });
        }
    }

    /// Accepts the callers that wait at listeners that this process opened, as these close with it; the
    /// queue of one that was passed remains for the next process.  Health listeners close at once: the
    /// next process answers, and a restart is nothing to drain for.
    fn take_last_callers(&mut self) {
        let answers = |listener: &Listener| listener.role == Role::Health;
        self.acceptor.close(answers, self.pool.registry());
        self.acceptor.drain(self.pool.registry());
        while self.acceptor.is_due(self.now) {
            self.accept();
        }
        self.acceptor.close(|_| true, self.pool.registry());
    }

    /// Preserves every connection that can be, before `preserve-after` has passed, too.
    fn preserve_all(&mut self) {
        self.list_waiting();
        loop {
            self.preserve(Input::PreserveAll);
            // A full queue starts a rotation; the rest go into the new queue once that is stored.
            if self.preserver.waiting().is_empty() || self.preserver.answer_due().is_none() {
                return;
            }
            let before = self.preserver.generation();
            self.settle_rotation();
            if self.preserver.generation() == before {
                return;
            }
        }
    }

    /// Records the positions of every preserved connection, from which the next process goes on.
    pub(super) fn record_for_successor(&mut self) {
        let workers = self.pool.pause_all();
        for worker in workers.iter() {
            for (_, stream, connection) in worker.connections.iter() {
                if let Some(record_id) = stream.record_id {
                    let record = record(connection, stream, 0);
                    worker.connections.store().record(record_id, &record);
                }
            }
        }
        let snapshots = workers.iter().map(|worker| worker.connections.snapshot());
        let counters = snapshots.sum();
        drop(workers);
        self.record(counters);
        self.store.state_file().hand_over();
        let (preserved, open) = (self.preserver.preserved(), self.counters().open());
        self.reporter.emit(Event::HandedOver { preserved, open });
    }

    /// Records the totals for the next process, while connections are preserved.
    pub(super) fn record_totals(&self) {
        if *self.preserver.store_state() == StoreState::Preserving {
            self.record(self.pool.snapshots());
        }
    }

    fn record(&self, counters: Counters) {
        self.store.state_file().record(&Totals {
            number: self.acceptor.number,
            refused: self.acceptor.refused,
            counters,
        });
    }
}

/// Whether a waiting connection is over.  Its key may be that of a later connection, so the number
/// decides.
fn is_over(connections: &Connections<Stream, Partition>, waiting: &Waiting) -> bool {
    let stream = connections.stream(waiting.key);
    stream.is_none_or(|stream| stream.number != waiting.number)
}

/// The descriptors of those connections of a worker that are preserved and have one of these keys.
fn preserved(worker: &Worker, keys: Range<usize>) -> impl Iterator<Item = BorrowedFd<'_>> {
    let connections = worker.connections.iter_in(keys);
    let connections = connections.map(|(_, stream, _)| stream);
    connections
        .filter(|stream| stream.record_id.is_some() && !stream.is_doubtful())
        .map(AsFd::as_fd)
}

/// Adds a record of a connection to the state file; false: no record or no memory is left.
fn add_record(
    connections: &mut Connections<Stream, Partition>,
    waiting: &Waiting,
    listener: u32,
) -> bool {
    let key = waiting.key;
    let (Some(stream), Some(connection)) = (connections.stream(key), connections.connection(key))
    else {
        return false;
    };
    let Ok(cookie) = SockRef::from(stream).cookie() else {
        return false;
    };
    let mut record = record(connection, stream, listener);
    record.cookie = cookie;
    let Some(record_id) = connections.store_mut().add_record(&record) else {
        return false;
    };
    connections.set_owner(key, cookie);
    let stream = connections.stream_mut(key);
    stream.record_id = Some(record_id);
    stream.shared = true;
    true
}

/// Removes the record of a connection that could not be preserved.
fn remove_record(connections: &mut Connections<Stream, Partition>, key: usize) {
    connections.set_owner(key, 0);
    let stream = connections.stream_mut(key);
    stream.shared = false;
    if let Some(record_id) = stream.record_id.take() {
        connections.store_mut().remove_record(record_id);
    }
}

/// The record of a connection; `listener` is the index of a name in the state file.
fn record(connection: &Connection, stream: &Stream, listener: u32) -> Record {
    Record {
        cookie: connection.owner(),
        began: connection.began().as_micros(),
        number: stream.number,
        listener,
        before: stream.header.before(),
        received: connection.received(),
        sent: connection.sent(),
    }
}
