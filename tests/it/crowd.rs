//! Clients of all kinds, who notice everything: a byte that is wrong, a byte too many, an end that
//! they did not ask for.
//!
//! They are those of the bench ([`crate::load`]), each with a stream of its own that is known by
//! position, all driven by one thread.  What happens to the daemons meanwhile is done by another
//! one ([`Crowd::meanwhile`]).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::daemon::{SOON, connect, connect_with_buffers, eventually};
use crate::load::{End, Load, Talk};

/// How long clients may be driven beside something else.
const LONG: Duration = Duration::from_secs(90);

/// After so long without a byte every queue is full.
const QUIET: Duration = Duration::from_millis(150);

/// Windows of those who talk: a ping-pong, a stream, a flood.
const WINDOWS: [u64; 3] = [500, 3000, 150_000];

/// Fits into a backlog, but not into the queues between a narrow listener and a client that does
/// not read.
const LITTLE: u64 = 60_000;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Talks without a pause.
    Streaming,
    /// Has talked once, and waits.
    Idle,
    /// Has sent what fits, has shut its direction, and has not read anything.
    HalfClosed,
    /// The same, with so little that all of it and the FIN have arrived.  The listener must be
    /// narrow, or it is given back already.
    Finished,
    /// Has sent what fits, until everything was full, and does not read.
    Stalled,
}

/// All of them.
#[derive(Debug)]
pub struct Crowd {
    pub load: Load,
    kinds: Vec<Kind>,
}

impl Crowd {
    /// So many clients of each kind, each in its state.
    #[track_caller]
    pub fn new(address: SocketAddr, kinds: &[(Kind, usize)]) -> Self {
        let mut crowd = Self {
            load: Load::new(),
            kinds: Vec::new(),
        };
        // Who talks without a pause comes last, as nobody could tell when the others are settled.
        for quiet in [true, false] {
            for &(kind, count) in kinds {
                for _ in 0..count {
                    if quiet == (kind != Kind::Streaming) {
                        crowd.join(address, kind);
                    }
                }
            }
            if quiet {
                crowd.settle();
            }
        }
        crowd
    }

    fn join(&mut self, address: SocketAddr, kind: Kind) {
        let number = self.kinds.len();
        let socket = match kind {
            Kind::Streaming | Kind::Idle => connect(address),
            _ => connect_with_buffers(address, 4096, 64 * 1024),
        };
        let talk = match kind {
            Kind::Streaming => Talk {
                window: WINDOWS[number % WINDOWS.len()],
                ..Talk::FLOOD
            },
            Kind::Idle => Talk::bytes(100),
            Kind::Finished => Talk::stall(LITTLE),
            Kind::HalfClosed | Kind::Stalled => Talk::stall(u64::MAX),
        };
        self.load.join(socket, talk);
        self.kinds.push(kind);
    }

    fn settle(&mut self) {
        self.load.settle(QUIET);
        for key in 0..self.kinds.len() {
            if self.has_shut(key) {
                let sent = self.load.clients[key].sent;
                self.load.log_one(key, Talk::stall(sent));
                self.load.shut(key);
            }
        }
        self.nobody_was_dropped();
    }

    fn has_shut(&self, key: usize) -> bool {
        [Kind::HalfClosed, Kind::Finished].contains(&self.kinds[key])
    }

    /// The clients of a kind.
    fn of(&self, kind: Kind) -> impl Iterator<Item = usize> + '_ {
        let keys = 0..self.kinds.len();
        keys.filter(move |key| self.kinds[*key] == kind)
    }

    /// Asserts that nobody's conversation has ended, as far as they can see.
    #[track_caller]
    pub fn nobody_was_dropped(&self) {
        for (client, kind) in self.load.clients.iter().zip(&self.kinds) {
            assert!(
                client.end.is_none(),
                "a client was dropped: {kind:?}, {:?}, sent {}, received {}",
                client.end,
                client.sent,
                client.received
            );
        }
    }

    /// Everybody who talks gets some more bytes back; who was idle says something.
    #[track_caller]
    pub fn goes_on(&mut self) {
        let talking: Vec<usize> = self
            .of(Kind::Streaming)
            .chain(self.of(Kind::Idle))
            .collect();
        let goals: Vec<u64> = talking
            .iter()
            .map(|key| self.load.clients[*key].sent + 1000)
            .collect();
        for key in self.of(Kind::Idle).collect::<Vec<_>>() {
            let more = Talk::bytes(self.load.clients[key].sent + 1000);
            self.load.log_one(key, more);
        }
        let in_time = self.load.run(SOON, |load| {
            talking.iter().zip(&goals).all(|(key, goal)| {
                let client = &load.clients[*key];
                client.received >= *goal || client.end.is_some()
            })
        });
        self.nobody_was_dropped();
        assert!(in_time, "not everybody was served: {:?}", self.hungry());
    }

    /// Everybody reads what it is owed: all bytes are right, none is missing, who has shut its
    /// direction gets the FIN, and nobody else does.
    #[track_caller]
    pub fn comes_back_exact(&mut self) {
        self.load.wind_up();
        let verdict = self.load.finish(SOON);
        verdict.unwrap_or_else(|verdict| panic!("{verdict}; {:?}", self.hungry()));
        let keys = 0..self.kinds.len();
        let shut: Vec<usize> = keys.filter(|key| self.has_shut(*key)).collect();
        let ended = |load: &Load| shut.iter().all(|key| load.clients[*key].end.is_some());
        assert!(self.load.run(SOON, ended), "a FIN is missing");
        for (key, client) in self.load.clients.iter().enumerate() {
            let fin = self.has_shut(key).then_some(End::Fin);
            assert_eq!(client.end, fin, "{:?}", self.kinds[key]);
        }
    }

    /// Everybody reads to the end: what is owed, and a FIN.
    #[track_caller]
    pub fn is_let_go(&mut self) {
        self.load.wind_up();
        assert!(self.load.end(SOON), "no end: {:?}", self.hungry());
        for (client, kind) in self.load.clients.iter().zip(&self.kinds) {
            assert_eq!(client.end, Some(End::Fin), "{kind:?}");
            // Of the others something may not have been acknowledged when the daemon left.
            if [Kind::Idle, Kind::Finished].contains(kind) {
                assert_eq!(client.sent, client.received, "{kind:?}");
            }
        }
    }

    /// Everybody either goes on exactly or is dropped; what comes back is right and nobody waits
    /// in vain.  Returns how many were dropped.
    #[track_caller]
    pub fn is_dealt_honestly(&mut self) -> usize {
        for key in 0..self.kinds.len() {
            let more = if self.has_shut(key) { 0 } else { 1000 };
            let goal = self.load.clients[key].sent + more;
            self.load.log_one(key, Talk::bytes(goal));
        }
        let finished = self.load.run(SOON, Load::is_finished);
        self.load.honest().unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(finished, "some wait in vain: {:?}", self.hungry());
        let short = |client: &crate::load::Client| client.received < client.talk.goal;
        self.load
            .count(|client| client.end.is_some() && short(client))
    }

    /// Kinds and positions of those to whom something is owed.
    fn hungry(&self) -> Vec<(Kind, u64, u64)> {
        let all = self.load.clients.iter().zip(&self.kinds);
        all.filter(|(client, _)| client.sent > client.received && client.end.is_none())
            .map(|(client, kind)| (*kind, client.sent, client.received))
            .take(10)
            .collect()
    }

    /// Drives the clients while something is done in this thread.
    pub fn meanwhile<T>(&mut self, act: impl FnOnce(&Progress) -> T) -> T {
        let progress = Progress::default();
        thread::scope(|scope| {
            scope.spawn(|| {
                self.load.run(LONG, |load| {
                    let received = load.clients.iter().map(|client| client.received).sum();
                    progress.received.store(received, Ordering::Relaxed);
                    progress.over.load(Ordering::Relaxed)
                })
            });
            // Also when this thread panics.
            let _over = Over(&progress.over);
            act(&progress)
        })
    }
}

/// What the driving thread tells.
#[derive(Debug, Default)]
pub struct Progress {
    received: AtomicU64,
    over: AtomicBool,
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Progress {
    /// Waits until so many more bytes have come back.
    #[track_caller]
    pub fn moves(&self, bytes: u64) {
        let now = self.received.load(Ordering::Relaxed);
        eventually(SOON, "nothing comes back", || {
            (self.received.load(Ordering::Relaxed) >= now + bytes).then_some(())
        });
    }
}
