//! The workers beside the one of the main loop, each with a thread, a poll and a loop of its own.
//!
//! What a worker has is its own: no turn waits for another loop (but in the first round of a
//! successor, [`crate::survival::caution`]).  Only between two rounds the server may come in
//! ([`Crew::hold`]): to bring connections, to change limits, to count, and for all that concerns what
//! is kept for a successor, which is decided over all of them together.  So a worker is behind a lock
//! that it takes once a round, and never for a message.  The lock is fair: who waits for it gets it
//! next, or a worker that is never idle would keep the server out.
//!
//! A worker that hangs in a round makes the main loop wait, too: then the watchdog is not fed, and
//! the service manager ends the process.
//!
//! In the other direction a worker lays down who is over (its tray), and wakes the main loop when
//! there was nothing in it before.
//!
//! With one worker there is no crew, no thread and no such lock.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use mio::{Events, Poll, Registry, Waker};

use super::source::Source;
use super::worker::{Gone, Worker};
use crate::echo::counters::Counters;
use crate::survival::lane::Lane;
use crate::system::clock;
use crate::system::lock::lock;
use crate::system::signals;

/// Events taken from the kernel in one round.
pub const EVENTS: usize = 1024;

/// What the main loop has to know of another one.
#[derive(Debug, Default)]
struct Tray {
    /// The main loop has been woken for it.
    full: bool,
    gone: Vec<Gone>,
    /// The totals at that time, and those for a successor.
    counters: (Counters, Counters),
    /// The poll has failed.
    trouble: Option<io::Error>,
}

impl Tray {
    fn count(&mut self, worker: &Worker) {
        self.counters = (worker.shard.counters(), worker.shard.noted());
    }
}

/// What a worker's thread and the main loop share.
#[derive(Debug)]
struct Desk {
    /// Whoever waits for the worker stands here.
    turn: Mutex<()>,
    worker: Mutex<Worker>,
    tray: Mutex<Tray>,
    /// Wakes the worker.
    waker: Waker,
    /// Wakes the main loop.
    main: Arc<Waker>,
    /// Something was sent, and the main loop has not told it yet.
    untold: AtomicBool,
    /// It has begun a round since it was asked for a sign of life.
    alive: AtomicBool,
    /// It is to end.
    over: AtomicBool,
}

/// Ends the process with a thread that panics, also where a panic unwinds (in a test).
struct Fatal;

impl Drop for Fatal {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

impl Desk {
    fn enter(&self) -> MutexGuard<'_, Worker> {
        let _turn = lock(&self.turn);
        lock(&self.worker)
    }

    /// A worker's loop.
    fn work(&self, poll: &mut Poll) -> io::Result<()> {
        // They are for the main loop.  Failing, one that is taken here gets there all the same.
        let _ = signals::block();
        let mut events = Events::with_capacity(EVENTS);
        let mut wait = self.enter().sleep(None);
        while !self.over.load(Ordering::Acquire) {
            match poll.poll(&mut events, wait) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => result?,
            }
            let mut worker = self.enter();
            self.alive.store(true, Ordering::Relaxed);
            worker.begin(clock::now(), !events.is_empty());
            for event in &events {
                // The others have done what they are for: the poll has returned.
                if let Source::Connection(key) = event.token().into() {
                    worker.announced(key, event);
                }
            }
            worker.serve();
            self.report(&mut worker);
            wait = worker.sleep(None);
        }
        Ok(())
    }

    fn report(&self, worker: &mut Worker) {
        let sent = std::mem::take(&mut worker.sent) && !self.untold.load(Ordering::Relaxed);
        // The main loop has to find out when the first round is over.
        if !sent && worker.gone.is_empty() && worker.caution.is_none() {
            return;
        }
        self.untold.fetch_or(sent, Ordering::Relaxed);
        let mut tray = lock(&self.tray);
        tray.gone.extend(std::mem::take(&mut worker.gone));
        tray.count(worker);
        self.call(&mut tray);
    }

    fn call(&self, tray: &mut Tray) {
        if !std::mem::replace(&mut tray.full, true) {
            // It fails only when there is no memory in the kernel; the main loop comes by itself.
            let _ = self.main.wake();
        }
    }
}

/// A worker that is held still.
#[derive(Debug)]
struct Held<'a> {
    worker: MutexGuard<'a, Worker>,
    desk: &'a Desk,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // What the main loop has brought or taken away is counted at once: the worker may have
        // nothing to report for a long time, and a crash would leave totals without it.
        lock(&self.desk.tray).count(&self.worker);
        // Its poll may wait for longer than is right now.
        if self.worker.rest(None).is_some() {
            let _ = self.desk.waker.wake();
        }
    }
}

/// All workers, held still between two rounds; by number, of which the one of the main loop is 0.
#[derive(Debug)]
pub struct Loops<'a> {
    own: &'a mut Worker,
    others: Vec<Held<'a>>,
}

impl Loops<'_> {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Worker> {
        let others = self.others.iter().map(|held| &*held.worker);
        std::iter::once(&*self.own).chain(others)
    }

    /// All of them, to work with.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Worker> {
        let others = self.others.iter_mut().map(|held| &mut *held.worker);
        std::iter::once(&mut *self.own).chain(others)
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, number: usize) -> &Worker {
        match number.checked_sub(1) {
            None => self.own,
            Some(other) => &self.others[other].worker,
        }
    }

    /// One of them, to work with.
    pub fn get_mut(&mut self, number: usize) -> &mut Worker {
        match number.checked_sub(1) {
            None => self.own,
            Some(other) => &mut self.others[other].worker,
        }
    }
}

/// One of the crew, as the main loop knows it.
#[derive(Debug)]
struct Hand {
    desk: Arc<Desk>,
    /// Until the thread has it.
    poll: Option<Poll>,
    thread: Option<JoinHandle<()>>,
    trouble: Option<io::Error>,
}

/// The workers beside the one of the main loop.
#[derive(Debug, Default)]
pub struct Crew(Vec<Hand>);

impl Drop for Crew {
    fn drop(&mut self) {
        // Whatever went wrong: nobody touches the arena any more.
        self.dismiss();
    }
}

impl Crew {
    /// A worker for each of the lanes; `main` is the registry of the main loop.
    ///
    /// # Errors
    /// There are no descriptors for their polls.
    pub fn new(
        main: &Registry,
        lanes: impl Iterator<Item = Lane>,
        make: impl Fn(Registry, Lane) -> Worker,
    ) -> io::Result<Self> {
        let mut hands = Vec::new();
        let mut waker = None;
        for lane in lanes {
            let main = match &waker {
                Some(waker) => Arc::clone(waker),
                None => Arc::clone(waker.insert(Arc::new(Waker::new(main, Source::Crew.into())?))),
            };
            let poll = Poll::new()?;
            hands.push(Hand {
                desk: Arc::new(Desk {
                    turn: Mutex::default(),
                    worker: Mutex::new(make(poll.registry().try_clone()?, lane)),
                    tray: Mutex::default(),
                    waker: Waker::new(poll.registry(), Source::Crew.into())?,
                    main,
                    untold: AtomicBool::new(false),
                    alive: AtomicBool::new(true),
                    over: AtomicBool::new(false),
                }),
                poll: Some(poll),
                thread: None,
                trouble: None,
            });
        }
        Ok(Self(hands))
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// Those of pthread_create(3).
    pub fn start(&mut self) -> io::Result<()> {
        for (number, hand) in self.0.iter_mut().enumerate() {
            let Some(mut poll) = hand.poll.take() else {
                continue;
            };
            let desk = Arc::clone(&hand.desk);
            let name = format!("worker {}", number + 1);
            let work = move || {
                let _fatal = Fatal;
                if let Err(error) = desk.work(&mut poll) {
                    let mut tray = lock(&desk.tray);
                    tray.trouble = Some(error);
                    desk.call(&mut tray);
                }
            };
            hand.thread = Some(thread::Builder::new().name(name).spawn(work)?);
        }
        Ok(())
    }

    /// Holds all workers still, the main loop's `own` among them.
    pub fn hold<'a>(&'a self, own: &'a mut Worker) -> Loops<'a> {
        // First a place in each line: then all rounds that are under way end at once.
        let turns: Vec<_> = self.0.iter().map(|hand| lock(&hand.desk.turn)).collect();
        let held = |hand: &'a Hand| Held {
            worker: lock(&hand.desk.worker),
            desk: &hand.desk,
        };
        let others = self.0.iter().map(held).collect();
        drop(turns);
        Loops { own, others }
    }

    /// Works with one worker, by its number; `own` is the first.
    pub fn with<T>(
        &self,
        number: usize,
        own: &mut Worker,
        work: impl FnOnce(&mut Worker) -> T,
    ) -> T {
        let Some(other) = number.checked_sub(1) else {
            return work(own);
        };
        let desk = &self.0[other].desk;
        let mut held = Held {
            worker: desk.enter(),
            desk,
        };
        work(&mut held.worker)
    }

    /// Takes what the workers have laid down: who is over, with the number of the worker.
    pub fn collect(&mut self, gone: &mut Vec<(usize, Gone)>) {
        for (number, hand) in (1..).zip(&mut self.0) {
            let mut tray = lock(&hand.desk.tray);
            if !std::mem::take(&mut tray.full) {
                continue;
            }
            // Taken whole, so that the list of a crowd does not stay.
            let over = std::mem::take(&mut tray.gone);
            gone.extend(over.into_iter().map(|over| (number, over)));
            hand.trouble = tray.trouble.take();
        }
    }

    /// Why a worker cannot go on, as it was last laid down.
    pub fn trouble(&mut self) -> Option<io::Error> {
        self.0.iter_mut().find_map(|hand| hand.trouble.take())
    }

    /// The totals of each, and those for a successor, as they were last laid down.
    pub fn counters(&self) -> impl Iterator<Item = (Counters, Counters)> {
        self.0.iter().map(|hand| lock(&hand.desk.tray).counters)
    }

    /// The status was told: the next that is sent is news again.
    pub fn told(&self) {
        for hand in &self.0 {
            hand.desk.untold.store(false, Ordering::Relaxed);
        }
    }

    /// Whether each has begun a round since it was asked for a sign of life.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let alive = |hand: &Hand| hand.desk.alive.load(Ordering::Relaxed);
        self.0.iter().all(alive)
    }

    /// Asks each for a sign of life.
    pub fn ask(&self) {
        for hand in &self.0 {
            hand.desk.alive.store(false, Ordering::Relaxed);
            let _ = hand.desk.waker.wake();
        }
    }

    /// Ends the threads, when the round that each is in is over.
    pub fn dismiss(&mut self) {
        for hand in &self.0 {
            hand.desk.over.store(true, Ordering::Release);
            let _ = hand.desk.waker.wake();
        }
        for hand in &mut self.0 {
            if let Some(thread) = hand.thread.take() {
                // A panic has ended the process.
                let _ = thread.join();
            }
        }
    }
}
