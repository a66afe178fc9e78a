//! Clients of all kinds, which check everything: every byte, their number, and every end.
//!
//! They are those of [`crate::load`], each with a stream of its own in which the byte at
//! each position is known, all driven by one thread.  The test acts on the daemons in another thread
//! meanwhile ([`ClientMix::meanwhile`]).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::load::{End, Load, Talk};
use crate::{SOON, connect, connect_with_buffers, eventually};

/// How long clients may be driven during an action of the test.
const LONG: Duration = Duration::from_secs(90);

/// After so long without a byte every queue is full.
const QUIET: Duration = Duration::from_millis(150);

/// The bytes in flight of streaming clients: a ping-pong, a stream, a flood.
const WINDOWS: [u64; 3] = [500, 3000, 150_000];

/// Fits into the pending output of a connection, but not into the queues between a narrow listener and
/// a client that does not read.
const LITTLE: u64 = 60_000;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sends and reads without a pause.
    Streaming,
    /// Has sent and read once, and waits.
    Idle,
    /// Has sent what fits, has shut down its direction, and has not read anything.
    HalfClosed,
    /// As `HalfClosed`, with so little that all of it and the FIN have arrived.  The listener must be
    /// narrow, or the bytes are echoed already.
    Finished,
    /// Has sent until every queue was full, and does not read.
    Stalled,
}

/// Clients of several kinds.
#[derive(Debug)]
pub struct ClientMix {
    pub load: Load,
    kinds: Vec<Kind>,
}

impl ClientMix {
    /// Connects so many clients of each kind, and waits until each is in its state.
    #[track_caller]
    pub fn new(address: SocketAddr, kinds: &[(Kind, usize)]) -> Self {
        let mut mix = Self {
            load: Load::new(),
            kinds: Vec::new(),
        };
        // Streaming clients come last, as with them it would not show when the others are settled.
        for quiet in [true, false] {
            for &(kind, count) in kinds {
                for _ in 0..count {
                    if quiet == (kind != Kind::Streaming) {
                        mix.join(address, kind);
                    }
                }
            }
            if quiet {
                mix.settle();
            }
        }
        mix
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
                self.load.set_talk(key, Talk::stall(sent));
                self.load.shut(key);
            }
        }
        self.none_was_dropped();
    }

    fn has_shut(&self, key: usize) -> bool {
        [Kind::HalfClosed, Kind::Finished].contains(&self.kinds[key])
    }

    /// The clients of a kind.
    fn of(&self, kind: Kind) -> impl Iterator<Item = usize> + '_ {
        let keys = 0..self.kinds.len();
        keys.filter(move |key| self.kinds[*key] == kind)
    }

    /// Asserts that no client has seen an end.
    #[track_caller]
    pub fn none_was_dropped(&self) {
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

    /// Asserts that streaming clients get more bytes back, and idle ones an answer to what they send.
    #[track_caller]
    pub fn echoes_on(&mut self) {
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
            self.load.set_talk(key, more);
        }
        let in_time = self.load.run(SOON, |load| {
            talking.iter().zip(&goals).all(|(key, goal)| {
                let client = &load.clients[*key];
                client.received >= *goal || client.end.is_some()
            })
        });
        self.none_was_dropped();
        assert!(
            in_time,
            "a client was not served: {:?}",
            self.still_waiting()
        );
    }

    /// Lets every client read all: asserts that all bytes are right and none is missing, and that those
    /// clients get a FIN that have shut down their direction, and no others.
    #[track_caller]
    pub fn gets_exact_bytes(&mut self) {
        self.load.read_all();
        let verdict = self.load.finish(SOON);
        verdict.unwrap_or_else(|verdict| panic!("{verdict}; {:?}", self.still_waiting()));
        let keys = 0..self.kinds.len();
        let shut: Vec<usize> = keys.filter(|key| self.has_shut(*key)).collect();
        let ended = |load: &Load| shut.iter().all(|key| load.clients[*key].end.is_some());
        assert!(self.load.run(SOON, ended), "a FIN is missing");
        for (key, client) in self.load.clients.iter().enumerate() {
            let fin = self.has_shut(key).then_some(End::Fin);
            assert_eq!(client.end, fin, "{:?}", self.kinds[key]);
        }
    }

    /// Lets every client read to the end: asserts that it gets what is owed, and a FIN.
    #[track_caller]
    pub fn ends_with_fin(&mut self) {
        self.load.read_all();
        assert!(self.load.end(SOON), "no end: {:?}", self.still_waiting());
        for (client, kind) in self.load.clients.iter().zip(&self.kinds) {
            assert_eq!(client.end, Some(End::Fin), "{kind:?}");
            // Of the others some bytes may not have been acknowledged when the daemon ended.
            if [Kind::Idle, Kind::Finished].contains(kind) {
                assert_eq!(client.sent, client.received, "{kind:?}");
            }
        }
    }

    /// Asserts that every client either goes on exactly or is closed, that every byte is right, and that
    /// none waits in vain.  Returns how many were closed.
    #[track_caller]
    pub fn gets_no_wrong_byte(&mut self) -> usize {
        for key in 0..self.kinds.len() {
            let more = if self.has_shut(key) { 0 } else { 1000 };
            let goal = self.load.clients[key].sent + more;
            self.load.set_talk(key, Talk::bytes(goal));
        }
        let finished = self.load.run(SOON, Load::is_finished);
        self.load
            .no_wrong_byte()
            .unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(finished, "some wait in vain: {:?}", self.still_waiting());
        let short = |client: &crate::load::Client| client.received < client.talk.goal;
        self.load
            .count(|client| client.end.is_some() && short(client))
    }

    /// The kinds and positions of the clients that are owed bytes.
    fn still_waiting(&self) -> Vec<(Kind, u64, u64)> {
        let all = self.load.clients.iter().zip(&self.kinds);
        all.filter(|(client, _)| client.sent > client.received && client.end.is_none())
            .map(|(client, kind)| (*kind, client.sent, client.received))
            .take(10)
            .collect()
    }

    /// Drives the clients in another thread while `act` runs in this one.
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
            // Dropped also when this thread panics.
            let _over = Over(&progress.over);
            act(&progress)
        })
    }
}

/// What the driving thread reports.
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
