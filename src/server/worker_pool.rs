//! All workers: that of the main loop, and those that have a thread, a poll and a loop of their own.
//!
//! A worker shares nothing that a turn needs, so no turn waits for another loop (except in the first
//! round of a process, [`crate::preserve::crash_guard`]).  Between two rounds of a worker the main loop
//! may use it ([`WorkerPool::pause_all`]): to add connections, to change limits, to count, and for
//! preservation, which is decided over all workers together.  So a worker is behind a lock that it
//! takes once a round, and never for a message.  The lock is fair: a thread that waits for it gets it
//! next.  Otherwise a worker that is never idle could hold the main loop up without end.
//!
//! A worker that hangs in a round makes the main loop wait, too.  Then the watchdog is not fed, and
//! the service manager ends the process.
//!
//! In the other direction, a worker puts the connections that are over into its outbox, and wakes the
//! main loop if the outbox was empty.
//!
//! With one worker there is no thread and no such lock.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mio::{Poll, Registry, Waker};

use super::event_loop::{self, Announced, Rounds};
use super::stream::Stream;
use super::token::EventSource;
use super::worker::{Identified, Report, Worker};
use crate::config::Config;
use crate::echo::connection::Start;
use crate::echo::counters::Counters;
use crate::echo::end_reason::EndReason;
use crate::echo::time::MonoTime;
use crate::preserve::fd_queue::BATCH;
use crate::preserve::partition::Partition;
use crate::sys::clock;
use crate::sys::lock::lock;
use crate::sys::memory::give_back_free_memory;
use crate::sys::signals;

/// From so many connections of one worker on, their memory is given back when all are over.
const LARGE: usize = 1024;

/// What a worker reports to the main loop.
#[derive(Debug, Default)]
struct Outbox {
    /// Whether the main loop was woken for it, and has not looked yet.
    full: bool,
    reports: Vec<Report>,
    /// The totals of this process, and those for the next process, at the time of the report.
    counters: (Counters, Counters),
    /// Why the loop of the worker has ended: an error of epoll_wait(2).
    trouble: Option<io::Error>,
}

impl Outbox {
    fn count(&mut self, worker: &Worker) {
        self.counters = (worker.connections.counters(), worker.connections.snapshot());
    }
}

/// What a worker's thread and the main loop share.  No other worker's memory is in its cache lines, of
/// which processors fetch two at a time.
#[derive(Debug)]
#[repr(align(128))]
struct Shared {
    /// Held by the one thread that is next to lock the worker, which makes that lock fair.  A single
    /// fair mutex would not do: [`WorkerPool::pause_all`] takes its turn at all workers first, so that
    /// it waits for the longest of the rounds under way and not for their sum.
    turn: Mutex<()>,
    worker: Mutex<Worker>,
    outbox: Mutex<Outbox>,
    /// Wakes the poll of the worker.
    waker: Waker,
    /// Wakes the poll of the main loop.
    main: Arc<Waker>,
    /// Whether bytes were sent since the last message of status.
    unreported: AtomicBool,
    /// Whether the worker has begun a round since [`WorkerPool::ask`].
    alive: AtomicBool,
    /// Whether the thread is to end after this round.
    over: AtomicBool,
}

/// Ends the process when its thread panics, also in a build in which a panic unwinds.
struct Fatal;

impl Drop for Fatal {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

impl Shared {
    /// Locks the worker, as the next thread after those that wait already.
    fn enter(&self) -> MutexGuard<'_, Worker> {
        let _turn = lock(&self.turn);
        lock(&self.worker)
    }

    /// Runs the loop of the worker's thread.
    fn run(&self, poll: &Poll) -> io::Result<()> {
        // Signals are for the main loop.  Without this a handler may run here, and still write to the
        // socket that the main loop polls.
        let _ = signals::block();
        let wait = self.enter().sleep(None);
        let mut rounds = ThreadLoop {
            shared: self,
            worker: None,
            wait,
        };
        event_loop::run(poll.registry(), &mut rounds)
    }

    /// Puts what a round has brought into the outbox.
    fn report(&self, worker: &mut Worker) {
        let sent = std::mem::take(&mut worker.sent) && !self.unreported.load(Ordering::Relaxed);
        // With a crash guard always: the main loop has to see when the first round is over.
        if !sent && worker.reports.is_empty() && worker.crash_guard.is_none() {
            return;
        }
        self.unreported.fetch_or(sent, Ordering::Relaxed);
        let mut outbox = lock(&self.outbox);
        outbox.reports.append(&mut worker.reports);
        outbox.count(worker);
        self.call(&mut outbox);
    }

    /// Wakes the main loop, unless it was woken already and has not looked yet.
    fn call(&self, outbox: &mut Outbox) {
        if !std::mem::replace(&mut outbox.full, true) {
            // An error (no memory in the kernel) does no harm: the main loop looks with its next event.
            let _ = self.main.wake();
        }
    }
}

/// The rounds of a worker's thread.
struct ThreadLoop<'a> {
    shared: &'a Shared,
    /// The worker, locked from the beginning of a round to its end.
    worker: Option<MutexGuard<'a, Worker>>,
    /// The time-out of the next poll.
    wait: Option<Duration>,
}

impl Rounds for ThreadLoop<'_> {
    fn goes_on(&self) -> bool {
        !self.shared.over.load(Ordering::Acquire)
    }

    fn wait(&mut self) -> Option<Duration> {
        self.wait
    }

    fn begin(&mut self, announced: bool) {
        let worker = self.worker.insert(self.shared.enter());
        self.shared.alive.store(true, Ordering::Relaxed);
        // After the wait for the worker, so that it is no older than what the main loop has brought.
        worker.begin(clock::now(), announced);
    }

    #[inline]
    fn take(&mut self, event: Announced) {
        // The timer and the waker only have to wake the poll.
        if let (Some(worker), EventSource::Connection(key)) = (&mut self.worker, event.token.into())
        {
            worker.announced(key, event);
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        if let Some(mut worker) = self.worker.take() {
            worker.serve();
            self.shared.report(&mut worker);
            worker.finish();
            self.wait = worker.sleep(None);
        }
        Ok(())
    }
}

/// A worker that the main loop has locked between two of its rounds.
#[derive(Debug)]
struct Paused<'a> {
    worker: MutexGuard<'a, Worker>,
    shared: &'a Shared,
}

impl<'a> Paused<'a> {
    fn of(other: &'a WorkerHandle) -> Self {
        Self {
            worker: lock(&other.shared.worker),
            shared: &other.shared,
        }
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        // What the main loop has added or removed is counted at once: the worker may have nothing to
        // report for a long time, and after a crash the totals would lack it.
        lock(&self.shared.outbox).count(&self.worker);
        // The worker's poll waits with a time-out that was worked out before this change.
        if self.worker.rest(None).is_some() {
            let _ = self.shared.waker.wake();
        }
    }
}

/// All workers, locked between two rounds; by their numbers, of which 0 is that of the main loop.
#[derive(Debug)]
pub(crate) struct PausedWorkers<'a> {
    own: &'a mut Worker,
    others: Vec<Paused<'a>>,
}

impl PausedWorkers<'_> {
    /// The workers in the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Worker> {
        let others = self.others.iter().map(|paused| &*paused.worker);
        std::iter::once(&*self.own).chain(others)
    }

    /// The workers in the order of their numbers, to change them.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Worker> {
        let others = self.others.iter_mut().map(|paused| &mut *paused.worker);
        std::iter::once(&mut *self.own).chain(others)
    }

    /// The worker of this number.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub(crate) fn get(&self, number: usize) -> &Worker {
        match number.checked_sub(1) {
            None => self.own,
            Some(other) => &self.others[other].worker,
        }
    }

    /// The worker of this number, to change it.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn get_mut(&mut self, number: usize) -> &mut Worker {
        match number.checked_sub(1) {
            None => self.own,
            Some(other) => &mut self.others[other].worker,
        }
    }
}

/// Keys in a slice of a walk over all connections: as many as fill eight messages of a descriptor queue,
/// with which a slice takes less than a millisecond.  In a debug build so few that tests have many slices.
const SLICE: usize = if cfg!(debug_assertions) {
    16
} else {
    8 * BATCH
};

/// A walk over all connections, in slices of keys, between which connections may begin and end.  It comes
/// by every connection that is open all the time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Walk {
    worker: usize,
    key: usize,
}

impl Walk {
    /// The next slice; `None`: the walk is at its end.
    pub(crate) fn next<'a>(
        &mut self,
        workers: &'a PausedWorkers<'_>,
    ) -> Option<(&'a Worker, Range<usize>)> {
        loop {
            let worker = workers.iter().nth(self.worker)?;
            let end = worker.connections.end_of_keys();
            if self.key < end {
                let first = self.key;
                self.key = end.min(first + SLICE);
                return Some((worker, first..self.key));
            }
            self.worker += 1;
            self.key = 0;
        }
    }
}

/// A worker with a thread of its own, as the main loop has it.
#[derive(Debug)]
struct WorkerHandle {
    shared: Arc<Shared>,
    /// The poll of the worker, until its thread is started.
    poll: Option<Poll>,
    thread: Option<JoinHandle<()>>,
    /// The error that the outbox had.
    trouble: Option<io::Error>,
}

/// All workers, and the connections on their way to and from them.
#[derive(Debug)]
pub(crate) struct WorkerPool {
    /// The worker of the main loop, which has number 0.
    pub own: Worker,
    others: Vec<WorkerHandle>,
    /// How many connections each worker has, by its number; those in `incoming` are included.
    load: Vec<usize>,
    /// Connections that were assigned to each worker and are not delivered yet.
    incoming: Vec<Vec<Stream>>,
    /// Whether a worker had [`LARGE`] connections or more since there was none.
    was_large: bool,
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        // Whatever went wrong: no thread touches the state file any more.
        self.join();
    }
}

impl WorkerPool {
    /// Makes a worker for each partition; the first is that of the main loop, with registry `main`.
    ///
    /// # Errors
    /// Those of epoll_create1(2), eventfd(2) and epoll_ctl(2).
    ///
    /// # Panics
    /// If there is no partition.
    pub(crate) fn new(
        main: &Registry,
        partitions: Vec<Partition>,
        make: impl Fn(Registry, Partition) -> Worker,
    ) -> io::Result<Self> {
        let count = partitions.len();
        let mut partitions = partitions.into_iter();
        let first = partitions.next().expect("a partition for the main loop");
        let own = make(main.try_clone()?, first);
        let mut others = Vec::new();
        let mut waker = None;
        for partition in partitions {
            let token = EventSource::Worker.into();
            let main = match &waker {
                Some(waker) => Arc::clone(waker),
                None => Arc::clone(waker.insert(Arc::new(Waker::new(main, token)?))),
            };
            let poll = Poll::new()?;
            others.push(WorkerHandle {
                shared: Arc::new(Shared {
                    turn: Mutex::default(),
                    worker: Mutex::new(make(poll.registry().try_clone()?, partition)),
                    outbox: Mutex::default(),
                    waker: Waker::new(poll.registry(), token)?,
                    main,
                    unreported: AtomicBool::new(false),
                    alive: AtomicBool::new(true),
                    over: AtomicBool::new(false),
                }),
                poll: Some(poll),
                thread: None,
                trouble: None,
            });
        }
        Ok(Self {
            own,
            others,
            load: vec![0; count],
            incoming: (0..count).map(|_| Vec::new()).collect(),
            was_large: false,
        })
    }

    /// The registry of the main loop.
    #[must_use]
    pub(crate) fn registry(&self) -> &Registry {
        &self.own.registry
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// Those of pthread_create(3).
    pub(crate) fn start(&mut self) -> io::Result<()> {
        for (number, handle) in self.others.iter_mut().enumerate() {
            let Some(poll) = handle.poll.take() else {
                continue;
            };
            let shared = Arc::clone(&handle.shared);
            let name = format!("worker {}", number + 1);
            let work = move || {
                let _fatal = Fatal;
                if let Err(error) = shared.run(&poll) {
                    let mut outbox = lock(&shared.outbox);
                    outbox.trouble = Some(error);
                    shared.call(&mut outbox);
                }
            };
            handle.thread = Some(thread::Builder::new().name(name).spawn(work)?);
        }
        Ok(())
    }

    /// Waits until every worker is between two rounds, and locks it there.
    pub(crate) fn pause_all(&mut self) -> PausedWorkers<'_> {
        // First the turn at every lock, so that the rounds under way are waited for at the same time.
        let others = &self.others;
        let turns: Vec<_> = others
            .iter()
            .map(|other| lock(&other.shared.turn))
            .collect();
        let others = others.iter().map(Paused::of).collect();
        drop(turns);
        PausedWorkers {
            own: &mut self.own,
            others,
        }
    }

    /// Does something with one worker, between two of its rounds.
    fn with<T>(&mut self, number: usize, work: impl FnOnce(&mut Worker) -> T) -> T {
        let Some(other) = number.checked_sub(1) else {
            return work(&mut self.own);
        };
        let shared = &self.others[other].shared;
        let mut paused = Paused {
            worker: shared.enter(),
            shared,
        };
        work(&mut paused.worker)
    }

    /// Adds the name of a listener, or of passed or restored connections; returns its index.
    pub(crate) fn add_name(&mut self, name: &str) -> usize {
        for worker in self.pause_all().iter_mut() {
            worker.names.push(name.to_owned());
        }
        self.own.names.len() - 1
    }

    /// The index of a name; a new name is added.
    pub(crate) fn number_of(&mut self, name: &str) -> u32 {
        let known = self.own.names.iter().position(|known| known == name);
        let index = known.unwrap_or_else(|| self.add_name(name));
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    /// Assigns a connection to the worker that has the fewest; [`WorkerPool::deliver`] moves it there.
    pub(crate) fn assign(&mut self, stream: Stream) {
        // Of several workers the last, as the first one's loop accepts callers, too.
        let load = self.load.iter().enumerate().rev();
        let number = load.min_by_key(|(_, open)| **open);
        let number = number.map_or(0, |(number, _)| number);
        self.add_load(number);
        self.incoming[number].push(stream);
    }

    fn add_load(&mut self, number: usize) {
        self.load[number] += 1;
        self.was_large |= self.load[number] >= LARGE;
    }

    /// Moves the assigned connections to their workers: calls `admit` for each, with the worker and its
    /// number.
    pub(crate) fn deliver(&mut self, mut admit: impl FnMut(&mut Worker, usize, Stream)) {
        for number in 0..self.incoming.len() {
            if self.incoming[number].is_empty() {
                continue;
            }
            let mut incoming = std::mem::take(&mut self.incoming[number]);
            self.with(number, |worker| {
                for stream in incoming.drain(..) {
                    admit(worker, number, stream);
                }
            });
            self.incoming[number] = incoming;
        }
    }

    /// Adds restored connections, each to the worker of its number, between two rounds of that.
    pub(crate) fn restore(
        &mut self,
        restored: impl Iterator<Item = (usize, Stream, Start)>,
        now: MonoTime,
    ) {
        let mut lists: Vec<Vec<_>> = self.load.iter().map(|_| Vec::new()).collect();
        for (number, stream, start) in restored {
            self.add_load(number);
            lists[number].push((stream, start));
        }
        let lists = lists.into_iter().enumerate();
        for (number, list) in lists.filter(|(_, list)| !list.is_empty()) {
            self.with(number, |worker| {
                for (stream, start) in list {
                    worker.restore(stream, start, now);
                }
            });
        }
    }

    /// The number of connections, as far as their ends were reported.
    #[must_use]
    pub(crate) fn open(&self) -> usize {
        self.load.iter().sum()
    }

    /// Takes what the workers have reported, and calls `take` for each report, with the number of its
    /// worker; returns whether a connection is over.  `pause`: waits for the rounds that are under way, to
    /// include what is reported in them.
    pub(crate) fn take_reports(
        &mut self,
        pause: bool,
        mut take: impl FnMut(usize, Report),
    ) -> bool {
        if pause {
            for paused in &mut self.pause_all().others {
                let mut outbox = lock(&paused.shared.outbox);
                outbox.reports.append(&mut paused.worker.reports);
                outbox.full = true;
            }
        }
        let mut any = false;
        let load = &mut self.load;
        let mut take = |number: usize, report| {
            if matches!(report, Report::Closed(_)) {
                (load[number], any) = (load[number] - 1, true);
            }
            take(number, report);
        };
        for report in self.own.reports.drain(..) {
            take(0, report);
        }
        for (number, other) in (1..).zip(&mut self.others) {
            let mut outbox = lock(&other.shared.outbox);
            if !std::mem::take(&mut outbox.full) {
                continue;
            }
            other.trouble = outbox.trouble.take();
            // The list itself is taken, as a long one would keep its memory.
            let list = std::mem::take(&mut outbox.reports);
            drop(outbox);
            for report in list {
                take(number, report);
            }
        }
        if any && self.was_large && self.open() == 0 {
            // The allocator by itself would keep the memory of many connections.
            self.was_large = false;
            self.own.reports = Vec::new();
            give_back_free_memory();
        }
        any
    }

    /// Ends a connection, if it is not over.
    pub(crate) fn end(&mut self, worker: usize, identified: &Identified, reason: EndReason) {
        let Identified { key, number, .. } = *identified;
        self.with(worker, |worker| {
            let stream = worker.connections.stream(key);
            if stream.is_some_and(|stream| stream.number == number) {
                worker.end(key, reason);
            }
        });
    }

    /// Drains every connection: it echoes what has arrived, sends a FIN and ends.
    pub(crate) fn drain_all(&mut self, now: MonoTime) {
        for worker in self.pause_all().iter_mut() {
            worker.connections.drain_all(now);
        }
    }

    /// Applies the settings of a new configuration to every worker.
    pub(crate) fn reconfigure(&mut self, config: &Config) {
        for worker in self.pause_all().iter_mut() {
            worker.configure(config);
        }
    }

    /// How many connections each worker has, by its number, as far as their ends were reported.
    #[must_use]
    pub(crate) fn load(&self) -> &[usize] {
        &self.load
    }

    /// Measures from now on what the metrics have of workers.
    pub(crate) fn measure(&mut self) {
        for worker in self.pause_all().iter_mut() {
            worker.measured.get_or_insert_default();
        }
    }

    /// The totals over all workers, at this moment.
    pub(crate) fn counters(&mut self) -> Counters {
        let workers = self.pause_all();
        let counters = workers.iter().map(|worker| worker.connections.counters());
        counters.sum()
    }

    /// Bytes that were received and not sent back yet, over all connections, at this moment.
    pub(crate) fn owed(&mut self) -> u64 {
        let workers = self.pause_all();
        let connections = workers.iter().flat_map(|worker| worker.connections.iter());
        connections
            .map(|(_, _, connection)| connection.owed())
            .sum()
    }

    /// The totals as the workers have reported them last, without a wait.
    #[must_use]
    pub(crate) fn reported(&self) -> Counters {
        let others = self.others.iter();
        let others = others.map(|other| lock(&other.shared.outbox).counters.0);
        std::iter::once(self.own.connections.counters())
            .chain(others)
            .sum()
    }

    /// The totals for the next process, as the workers have reported them last, without a wait.
    #[must_use]
    pub(crate) fn snapshots(&self) -> Counters {
        let others = self.others.iter();
        let others = others.map(|other| lock(&other.shared.outbox).counters.1);
        std::iter::once(self.own.connections.snapshot())
            .chain(others)
            .sum()
    }

    /// Why the loop of a worker has ended, if one has; an error is returned once.
    pub(crate) fn trouble(&mut self) -> Option<io::Error> {
        self.others
            .iter_mut()
            .find_map(|handle| handle.trouble.take())
    }

    /// Records that a message of status is sent, so that a worker reports again when it sends bytes.
    pub(crate) fn status_sent(&self) {
        for other in &self.others {
            other.shared.unreported.store(false, Ordering::Relaxed);
        }
    }

    /// Whether every worker has begun a round since [`WorkerPool::ask`], for the watchdog.
    #[must_use]
    pub(crate) fn is_alive(&self) -> bool {
        let alive = |handle: &WorkerHandle| handle.shared.alive.load(Ordering::Relaxed);
        self.others.iter().all(alive)
    }

    /// Wakes every worker for a round, by which [`WorkerPool::is_alive`] knows that it does not hang.
    pub(crate) fn ask(&self) {
        for handle in &self.others {
            handle.shared.alive.store(false, Ordering::Relaxed);
            let _ = handle.shared.waker.wake();
        }
    }

    /// Ends the threads after the rounds that they are in, and waits for that.
    pub(crate) fn join(&mut self) {
        for handle in &self.others {
            handle.shared.over.store(true, Ordering::Release);
            let _ = handle.shared.waker.wake();
        }
        for handle in &mut self.others {
            if let Some(thread) = handle.thread.take() {
                // An error would mean a panic, which has ended the process ([`Fatal`]).
                let _ = thread.join();
            }
        }
    }
}
