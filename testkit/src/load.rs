//! Any number of clients in one thread, every byte verified.
//!
//! The bytes of each client's stream are known in advance, so all it needs is a position: it writes
//! the next piece of the pattern, and compares what comes back with the piece that is due.  What it may
//! do is its [`Talk`]: how much it sends in all, how much of it may be under way, and whether it reads.
//! A ping-pong, a flood and a stall are the same client with different numbers, and may become one
//! another while they run.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::{Pattern, has_proxy};

/// The most that is written or read with one call.
const CHUNK: usize = 256 * 1024;

/// Calls of each kind before the other clients have their turn.
const TURN: usize = 4;

/// The next piece of the stream of a client, at most [`CHUNK`] bytes.
fn piece(seed: usize, position: u64, most: usize) -> &'static [u8] {
    static PATTERN: OnceLock<Pattern> = OnceLock::new();
    let pattern = PATTERN.get_or_init(|| Pattern::new(42, CHUNK));
    pattern.piece(Pattern::start(seed) + position, most)
}

/// What a client may do.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    /// Bytes that it sends in all.
    pub goal: u64,
    /// Bytes that may be under way.
    pub window: u64,
    /// Whether it reads.
    pub reads: bool,
}

impl Talk {
    /// Sends nothing.
    pub const SILENCE: Self = Self {
        goal: 0,
        window: 0,
        reads: true,
    };

    /// Sends and reads as fast as it can.
    pub const FLOOD: Self = Self {
        goal: u64::MAX,
        window: u64::MAX,
        reads: true,
    };

    /// Sends so many bytes as fast as it can, and reads.
    pub fn bytes(goal: u64) -> Self {
        Self {
            goal,
            ..Self::FLOOD
        }
    }

    /// Sends so many messages, each when the one before is back.
    pub fn messages(size: u64, count: u64) -> Self {
        Self {
            goal: size * count,
            window: size,
            reads: true,
        }
    }

    /// Sends as much as it can, at most `goal`, and never reads.
    pub fn stall(goal: u64) -> Self {
        Self {
            goal,
            window: u64::MAX,
            reads: false,
        }
    }
}

/// How a client's connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a FIN.
    Fin,
    /// With an error.
    Error(ErrorKind),
    /// With bytes that it never sent, or in the wrong order.
    Wrong,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    socket: TcpStream,
    seed: usize,
    pub talk: Talk,
    pub sent: u64,
    pub received: u64,
    /// When the last byte of the goal was back.
    pub done: Option<Instant>,
    pub end: Option<End>,
    /// Counted in [`Load::finished`].
    finished: bool,
    queued: bool,
}

/// All clients.
#[derive(Debug)]
pub struct Load {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    ready: VecDeque<usize>,
    pub clients: Vec<Client>,
    open: usize,
    /// Bytes sent and received by all.
    pub moved: u64,
    /// Clients that have their goal back, or are at their end.
    finished: usize,
}

impl Load {
    pub fn new() -> Self {
        Self {
            poll: Poll::new().unwrap(),
            events: Events::with_capacity(1024),
            buffer: vec![0; CHUNK],
            ready: VecDeque::new(),
            clients: Vec::new(),
            open: 0,
            moved: 0,
            finished: 0,
        }
    }

    /// So many clients at an address, with connections that exist already.
    pub fn connect(address: SocketAddr, count: usize, talk: Talk) -> Self {
        let mut load = Self::new();
        for _ in 0..count {
            load.join(crate::connect(address), talk);
        }
        load
    }

    /// Adds a client with a connection that exists.
    pub fn join(&mut self, socket: std::net::TcpStream, talk: Talk) {
        socket.set_nonblocking(true).unwrap();
        socket.set_nodelay(true).unwrap();
        self.add(TcpStream::from_std(socket), talk);
    }

    /// Adds a client that begins to connect now.
    pub fn begin(&mut self, address: SocketAddr, talk: Talk) {
        if has_proxy() {
            return self.join(crate::connect(address), talk);
        }
        self.add(TcpStream::connect(address).unwrap(), talk);
    }

    fn add(&mut self, mut socket: TcpStream, talk: Talk) {
        let key = self.clients.len();
        self.poll
            .registry()
            .register(
                &mut socket,
                Token(key),
                Interest::READABLE | Interest::WRITABLE,
            )
            .unwrap();
        self.clients.push(Client {
            socket,
            seed: key,
            talk,
            sent: 0,
            received: 0,
            done: None,
            end: None,
            finished: false,
            queued: true,
        });
        self.ready.push_back(key);
        self.open += 1;
    }

    /// Sets what every client may do from now on.
    pub fn set_all(&mut self, talk: Talk) {
        for key in 0..self.clients.len() {
            self.set_talk(key, talk);
        }
    }

    /// Sets what one client may do from now on.
    pub fn set_talk(&mut self, key: usize, talk: Talk) {
        let client = &mut self.clients[key];
        client.talk = talk;
        client.done = None;
        if std::mem::take(&mut client.finished) {
            self.finished -= 1;
        }
        if !std::mem::replace(&mut client.queued, true) {
            self.ready.push_back(key);
        }
    }

    /// Every client sends nothing more, reads what it is owed and is finished then.
    pub fn read_all(&mut self) {
        for key in 0..self.clients.len() {
            self.set_talk(key, Talk::bytes(self.clients[key].sent));
        }
    }

    /// Ends one client's direction.
    pub fn shut(&self, key: usize) {
        // An error means that the other side was faster.
        let _ = self.clients[key].socket.shutdown(Shutdown::Write);
    }

    /// Runs until it is done, which is asked after each round and at least every 10 ms.  False:
    /// it took too long.
    pub fn run(&mut self, within: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let deadline = Instant::now() + within;
        while !done(self) {
            if Instant::now() > deadline {
                return false;
            }
            let wait = if self.ready.is_empty() { 10 } else { 0 };
            let wait = Duration::from_millis(wait);
            match self.poll.poll(&mut self.events, Some(wait)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result.unwrap(),
            }
            for event in &self.events {
                let Token(key) = event.token();
                if !std::mem::replace(&mut self.clients[key].queued, true) {
                    self.ready.push_back(key);
                }
            }
            for _ in 0..self.ready.len() {
                let key = self.ready.pop_front().unwrap();
                self.clients[key].queued = false;
                self.turn(key);
            }
        }
        true
    }

    /// Runs until every client has its goal back or is gone; or has lost bytes.
    pub fn finish(&mut self, within: Duration) -> Result<(), String> {
        self.run(within, Self::is_finished);
        self.verdict()
    }

    /// Whether every client has its goal back, or is gone.
    pub fn is_finished(&self) -> bool {
        self.finished == self.clients.len()
    }

    /// Runs until every connection is at its end.
    pub fn end(&mut self, within: Duration) -> bool {
        self.run(within, |load| load.open == 0)
    }

    /// Runs until nothing has moved for so long: until every client is stalled.
    pub fn settle(&mut self, quiet: Duration) {
        let mut last = (self.moved, Instant::now());
        self.run(crate::SOON, |load| {
            if load.moved != last.0 {
                last = (load.moved, Instant::now());
            }
            last.1.elapsed() > quiet
        });
    }

    /// Whether all that was sent came back, and nothing else.
    pub fn verdict(&self) -> Result<(), String> {
        let wrong = self.count(|client| client.end == Some(End::Wrong));
        let failed = self.count(|client| matches!(client.end, Some(End::Error(_))));
        let short = self.count(|client| client.received < client.talk.goal);
        let lost: u64 = self
            .clients
            .iter()
            .map(|client| client.sent - client.received)
            .sum();
        if wrong + failed + short == 0 && lost == 0 {
            return Ok(());
        }
        let first = self.clients.iter().find_map(|client| client.end);
        Err(format!(
            "of {} clients {wrong} got wrong bytes, {failed} an error, {short} not all; \
             {lost} bytes are not back; first end: {first:?}",
            self.clients.len()
        ))
    }

    /// Whether no byte was wrong, for clients that are cut off on purpose.
    pub fn no_wrong_byte(&self) -> Result<(), String> {
        match self.count(|client| client.end == Some(End::Wrong)) {
            0 => Ok(()),
            wrong => Err(format!("{wrong} clients got wrong bytes")),
        }
    }

    pub fn count(&self, what: impl Fn(&Client) -> bool) -> usize {
        self.clients.iter().filter(|client| what(client)).count()
    }

    fn turn(&mut self, key: usize) {
        let client = &mut self.clients[key];
        let mut blocked = true;
        if client.end.is_none() {
            let before = client.sent + client.received;
            blocked = client.turn(&mut self.buffer);
            self.moved += client.sent + client.received - before;
            if let Some(end) = client.end {
                self.open -= 1;
                if end == End::Fin {
                    // The client closes when the daemon has.
                    self.shut(key);
                }
            }
        }
        let client = &mut self.clients[key];
        if client.done.is_none() && client.received >= client.talk.goal {
            client.done = Some(Instant::now());
        }
        if !client.finished && (client.done.is_some() || client.end.is_some()) {
            client.finished = true;
            self.finished += 1;
        }
        if !blocked && client.end.is_none() && !std::mem::replace(&mut client.queued, true) {
            self.ready.push_back(key);
        }
    }
}

impl Client {
    /// Our port and the daemon's.
    pub fn ports(&self) -> Option<(u16, u16)> {
        let local = self.socket.local_addr().ok()?;
        Some((local.port(), self.socket.peer_addr().ok()?.port()))
    }

    /// Writes and reads what may be written and read; true when the kernel has to say when to go
    /// on, or nothing is left to do.
    fn turn(&mut self, buffer: &mut [u8]) -> bool {
        for _ in 0..TURN {
            let moved = self.sent + self.received;
            let room = self.talk.window.saturating_sub(self.sent - self.received);
            let room = room.min(self.talk.goal.saturating_sub(self.sent));
            if room > 0 {
                let most = usize::try_from(room).unwrap_or(CHUNK);
                match self.socket.write(piece(self.seed, self.sent, most)) {
                    Ok(count) => self.sent += count as u64,
                    Err(error) if is_passing(error.kind()) => {}
                    Err(error) => self.end = Some(End::Error(error.kind())),
                }
            }
            if self.talk.reads && self.end.is_none() {
                match self.socket.read(buffer) {
                    Ok(0) => self.end = Some(End::Fin),
                    Ok(count) if self.is_right(&buffer[..count]) => self.received += count as u64,
                    Ok(_) => self.end = Some(End::Wrong),
                    Err(error) if is_passing(error.kind()) => {}
                    Err(error) => self.end = Some(End::Error(error.kind())),
                }
            }
            if self.end.is_some() || self.sent + self.received == moved {
                return true;
            }
        }
        false
    }

    fn is_right(&self, bytes: &[u8]) -> bool {
        self.received + bytes.len() as u64 <= self.sent
            && bytes == piece(self.seed, self.received, bytes.len())
    }
}

/// Not an end: a socket that is still connecting says `NotConnected`.
fn is_passing(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NotConnected
    )
}
