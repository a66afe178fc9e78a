//! Conversations, and the loop that moves their bytes.
//!
//! What a conversation is to do is data (how much to send, in which pieces, whether to read, when to
//! end), and so is what became of it.  The loop polls all of them until it is asked to stop.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Protocol, Socket, TcpKeepalive, Type};

use crate::client::outcome::Class;
use crate::client::pattern::{Checker, Stream};
use crate::client::target::{Place, connected};
use crate::sys::sockopt::unacknowledged;
use crate::sys::tcp_info::{Field, TcpInfo};

/// Bytes that are moved at once.
///
/// Not 64 KiB: on loopback, whose largest segment has 65 483 bytes, 53 of those would follow by themselves.
/// Linux (seen with 6.18) closes its window to 0 when it has no room for what it had offered room for, and
/// ignores then every acknowledgement that comes from a little beyond, by less than the unit of the window
/// scale.  If the peer owes much, neither side goes on, and nothing is wrong with the peer.
const SCRATCH: usize = 50_000;

/// How the peer's direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With its FIN.
    Fin,
    /// With a reset.
    Reset,
    /// With another error of the socket, a number of errno(3).
    Error(i32),
}

impl End {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ECONNRESET | libc::EPIPE) => Self::Reset,
            number => Self::Error(number.unwrap_or(0)),
        }
    }

    /// As words that follow "the connection ended".
    pub(crate) fn words(self) -> String {
        match self {
            Self::Fin => "by FIN".into(),
            Self::Reset => "by RST".into(),
            Self::Error(number) => format!("by an error: {}", io::Error::from_raw_os_error(number)),
        }
    }
}

/// What is set before a connection is made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Before {
    /// The largest segment (`TCP_MAXSEG`, tcp(7)), in bytes, in both directions.
    pub(crate) maxseg: Option<u32>,
    /// The receive buffer (`SO_RCVBUF`, socket(7)), in bytes.
    pub(crate) receive_buffer: Option<usize>,
    /// What may wait unsent (`TCP_NOTSENT_LOWAT`, tcp(7)), in bytes.
    pub(crate) notsent_lowat: Option<u32>,
    /// No preamble of its own stands before the stream.
    pub(crate) bare: bool,
    /// How often the kernel asks a silent peer whether it is there (`SO_KEEPALIVE`, socket(7)).
    pub(crate) keepalive: Option<Duration>,
}

/// Where connections go, and what each of them will send.
#[derive(Debug)]
pub(crate) struct Dialer {
    /// The seed of the run.
    seed: u64,
    next: Cell<u32>,
    /// Bytes sent and received on all connections.
    moved: Rc<Cell<u64>>,
    /// How long a handshake may take.
    patience: Duration,
    /// What stands before each stream, and is not echoed.
    preamble: Vec<u8>,
}

impl Dialer {
    /// For the run of a seed, with connections that are numbered from `first` on.
    pub(crate) fn new(seed: u64, patience: Duration, preamble: &[u8], first: u32) -> Self {
        Self {
            seed,
            next: Cell::new(first),
            moved: Rc::default(),
            patience,
            preamble: preamble.to_vec(),
        }
    }

    /// Bytes sent and received on all connections by now.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.get()
    }

    /// Connects, and waits until the handshake is over.
    pub(crate) fn dial(&self, place: &Place, before: Before) -> Result<Talk, Class> {
        let talk = self.begin(place, before)?;
        let mut talks = [talk];
        settle(&mut talks, Instant::now() + self.patience);
        let [talk] = talks;
        talk.connected()
    }

    /// Begins so many connections at once; each has its own outcome.
    pub(crate) fn dial_many(
        &self,
        place: &Place,
        before: impl Iterator<Item = Before>,
    ) -> Result<Vec<Talk>, Class> {
        let mut talks = before
            .map(|before| self.begin(place, before))
            .collect::<Result<Vec<_>, _>>()?;
        settle(&mut talks, Instant::now() + self.patience);
        talks.into_iter().map(Talk::connected).collect()
    }

    /// Begins a connection, which [`drive`] finishes.
    pub(crate) fn begin(&self, place: &Place, before: Before) -> Result<Talk, Class> {
        let number = self.next.get();
        self.next.set(number + 1);
        let stream = Stream::new(self.seed, number);
        self.open(place, before, stream)
            .map_err(|error| Class::of_error(&error))
    }

    fn open(&self, place: &Place, before: Before, stream: Stream) -> io::Result<Talk> {
        let (domain, address) = place.socket_address()?;
        let socket = Socket::new(domain, Type::STREAM, is_tcp(place).then_some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        if is_tcp(place) {
            socket.set_tcp_nodelay(true)?;
            if let Some(bytes) = before.receive_buffer {
                socket.set_recv_buffer_size(bytes)?;
            }
            if let Some(maxseg) = before.maxseg {
                socket.set_tcp_mss(maxseg)?;
            }
            if let Some(bytes) = before.notsent_lowat {
                socket.set_tcp_notsent_lowat(bytes)?;
            }
            if let Some(every) = before.keepalive {
                let times = TcpKeepalive::new().with_time(every).with_interval(every);
                socket.set_tcp_keepalive(&times)?;
            }
        }
        let begun = Instant::now();
        let outcome = match socket.connect(&address) {
            Ok(()) => Some(Ok(begun.elapsed())),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => None,
            Err(error) => Some(Err(Class::of_error(&error))),
        };
        Ok(Talk {
            socket,
            stream,
            checker: Checker::new(stream),
            preamble: match before.bare {
                true => Vec::new(),
                false => self.preamble.clone(),
            },
            sent: 0,
            quota: 0,
            piece: SCRATCH,
            reads: true,
            finishes: false,
            finished: false,
            end: None,
            begun,
            moved: Rc::clone(&self.moved),
            outcome,
            first: None,
            last: None,
        })
    }
}

fn is_tcp(place: &Place) -> bool {
    matches!(place, Place::Ip(_))
}

/// A conversation: what it is to do, and how far it has come.
#[derive(Debug)]
pub(crate) struct Talk {
    socket: Socket,
    stream: Stream,
    pub(crate) checker: Checker,
    /// What is to be sent before the stream.
    pub(crate) preamble: Vec<u8>,
    /// Bytes sent.
    pub(crate) sent: u64,
    /// Bytes to be sent in all.
    pub(crate) quota: u64,
    /// The most that is sent at once, in bytes.
    pub(crate) piece: usize,
    /// Whether what comes is read.
    pub(crate) reads: bool,
    /// Whether our FIN follows when everything is sent.
    pub(crate) finishes: bool,
    finished: bool,
    /// How the peer's direction ended.
    pub(crate) end: Option<End>,
    begun: Instant,
    moved: Rc<Cell<u64>>,
    outcome: Option<Result<Duration, Class>>,
    /// When the first byte came.
    pub(crate) first: Option<Instant>,
    /// When the last byte came.
    pub(crate) last: Option<Instant>,
}

impl Talk {
    fn connected(self) -> Result<Self, Class> {
        match self.outcome {
            Some(Ok(_)) => Ok(self),
            Some(Err(class)) => Err(class),
            None => Err(Class::TimedOut),
        }
    }

    /// How long the handshake took.
    pub(crate) fn connect_time(&self) -> Duration {
        match self.outcome {
            Some(Ok(time)) => time,
            _ => Duration::ZERO,
        }
    }

    /// Whether the handshake is over, and it stands.
    pub(crate) fn is_connected(&self) -> bool {
        matches!(self.outcome, Some(Ok(_))) && self.end.is_none()
    }

    /// Why there is no connection, if there is none.
    pub(crate) fn failed(&self) -> Option<Class> {
        self.outcome?.err()
    }

    /// Whether nothing more comes of it.
    pub(crate) fn over(&self) -> bool {
        self.end.is_some() || self.failed().is_some()
    }

    /// What the kernel knows about it; `None` if it is not TCP.
    pub(crate) fn info(&self) -> Option<TcpInfo> {
        TcpInfo::of(&self.socket).ok()
    }

    /// A field of the kernel's; `None` where there is none.
    pub(crate) fn get(&self, field: Field) -> Option<u64> {
        self.info()?.get(field)
    }

    /// Bytes that came back.
    pub(crate) fn received(&self) -> u64 {
        self.checker.received()
    }

    /// Whether all that was to be sent is sent and has come back, or no more can come.
    pub(crate) fn is_settled(&self) -> bool {
        let whole = self.sent == self.quota && self.received() >= self.sent;
        self.end.is_some() || whole && !self.finishes
    }

    /// Bytes that the peer's host has not acknowledged.
    pub(crate) fn unacknowledged(&self) -> u64 {
        unacknowledged(&self.socket)
    }

    /// Sends the next byte as urgent data.
    pub(crate) fn send_urgent(&mut self) -> io::Result<()> {
        let mut byte = [0];
        self.stream.fill(self.sent, &mut byte);
        self.socket.send_out_of_band(&byte)?;
        self.sent += 1;
        self.quota = self.quota.max(self.sent);
        Ok(())
    }

    /// Ends it with a reset.
    pub(crate) fn reset(self) {
        // Failing, it ends with a FIN.
        let _ = self.socket.set_linger(Some(Duration::ZERO));
    }

    fn wants(&self) -> PollFlags {
        let mut wanted = PollFlags::empty();
        if self.outcome.is_none() || self.sent < self.quota || !self.preamble.is_empty() {
            wanted |= PollFlags::OUT;
        }
        if self.outcome.is_some() && self.reads {
            wanted |= PollFlags::IN;
        }
        wanted
    }

    fn settle_handshake(&mut self) {
        self.outcome = connected(&self.socket).map(|result| match result {
            Ok(()) => Ok(self.begun.elapsed()),
            Err(error) => Err(Class::of_error(&error)),
        });
    }

    /// Writes until the kernel takes no more, or everything is sent.
    ///
    /// # Errors
    /// How the conversation ended instead.
    fn write(&mut self, scratch: &mut [u8]) -> Result<(), End> {
        while !self.preamble.is_empty() {
            let Some(count) = write(&self.socket, &self.preamble)? else {
                return Ok(());
            };
            self.preamble.drain(..count);
        }
        while self.sent < self.quota {
            let left = usize::try_from(self.quota - self.sent).unwrap_or(usize::MAX);
            let piece = &mut scratch[..left.min(self.piece).min(SCRATCH)];
            self.stream.fill(self.sent, piece);
            let Some(count) = write(&self.socket, piece)? else {
                return Ok(());
            };
            self.sent += count as u64;
            self.moved.set(self.moved.get() + count as u64);
            if self.piece < SCRATCH {
                break;
            }
        }
        if self.sent == self.quota && self.finishes && !self.finished {
            // Failing, the connection is over, which reading says.
            let _ = self.socket.shutdown(Shutdown::Write);
            self.finished = true;
        }
        Ok(())
    }

    fn read(&mut self, scratch: &mut [u8]) {
        // Some rounds, so that no conversation keeps the others waiting.
        for _ in 0..4 {
            match (&self.socket).read(scratch) {
                Ok(0) => self.end = Some(End::Fin),
                Ok(count) => {
                    let now = Instant::now();
                    self.first.get_or_insert(now);
                    self.last = Some(now);
                    self.moved.set(self.moved.get() + count as u64);
                    self.checker.feed(&scratch[..count], self.sent);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => self.end = Some(End::of(&error)),
            }
            break;
        }
    }
}

/// Writes what the kernel takes at once, and returns how much that was; `None` if it has no room.
fn write(mut socket: &Socket, bytes: &[u8]) -> Result<Option<usize>, End> {
    loop {
        return match socket.write(bytes) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(End::of(&error)),
        };
    }
}

/// Waits until each handshake is over.
fn settle(talks: &mut [Talk], deadline: Instant) {
    drive(talks, deadline, |talks| {
        talks.iter().all(|talk| talk.outcome.is_some())
    });
}

/// Moves bytes until `done` says so, or the deadline has passed; returns whether `done` has said so.
///
/// `done` is asked after each round, and at least each 20 ms.
pub(crate) fn drive(
    talks: &mut [Talk],
    deadline: Instant,
    mut done: impl FnMut(&mut [Talk]) -> bool,
) -> bool {
    let mut scratch = vec![0; SCRATCH];
    loop {
        for talk in talks.iter_mut().filter(|talk| talk.end.is_none()) {
            if matches!(talk.outcome, Some(Ok(_))) {
                talk.end = talk.write(&mut scratch).err();
            }
        }
        if done(talks) {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        for (index, ready) in ready(talks, left.min(Duration::from_millis(20))) {
            let talk = &mut talks[index];
            if talk.outcome.is_none() {
                talk.settle_handshake();
            } else if talk.reads && !(ready & !PollFlags::OUT).is_empty() {
                talk.read(&mut scratch);
            }
        }
    }
}

/// Which of the conversations the kernel has something for, and what.
fn ready(talks: &[Talk], wait: Duration) -> Vec<(usize, PollFlags)> {
    let (mut polled, mut indices) = (Vec::new(), Vec::new());
    for (index, talk) in talks.iter().enumerate() {
        let wanted = talk.wants();
        let failed = matches!(talk.outcome, Some(Err(_)));
        // An error is announced, wanted or not: only those that take it are polled.
        if talk.end.is_none() && !failed && !wanted.is_empty() {
            polled.push(PollFd::from_borrowed_fd(talk.socket.as_fd(), wanted));
            indices.push(index);
        }
    }
    let wait = Timespec::try_from(wait).ok();
    // Interrupted, it is asked again.
    let _ = poll(&mut polled, wait.as_ref());
    let found = indices.into_iter().zip(polled.iter().map(PollFd::revents));
    found.filter(|(_, ready)| !ready.is_empty()).collect()
}

/// Waits without moving bytes.
pub(crate) fn pause(span: Duration) {
    std::thread::sleep(span);
}
