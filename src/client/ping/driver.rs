//! The loop of a ping: sockets, the clock and signals, and nothing that decides.
//!
//! Messages are sent at their time by a timer, or, where they are close together or on request, by
//! a loop that does not sleep.  Where messages are few, each is accompanied by the kernel's times
//! and counters.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use socket2::{Socket, Type};

use super::Pace;
use super::finding::Action;
use super::session::Session;
use crate::client::target::{Place, connected};
use crate::sys::tcp_info::TcpInfo;
use crate::sys::timestamps;

const SIGNALS: Token = Token(0);
const TIMER: Token = Token(1);
/// The token of the first connection.
const FIRST: usize = 2;

/// The most that is read or written with one call, in bytes.
const CHUNK: usize = 256 * 1024;

/// Reads of one connection before the others have their turn.
const READS: usize = 4;

/// Messages closer together than this are not worth a sleep.
const SPIN: Duration = Duration::from_micros(200);

/// The least time between messages that are each accompanied by the kernel's times and counters.
const DETAILED: Duration = Duration::from_micros(500);

/// Between two looks at the kernel's counters otherwise, and between two calls of
/// [`Observer::second`].
const SECOND: Duration = Duration::from_secs(1);

/// How long what was found may wait for the echoes that are under way: what is printed meanwhile
/// would be part of their round trips.
const SHOWN: Duration = Duration::from_millis(10);

/// How sockets are made.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The address to come from, or the interface to go through.
    pub from: Option<From>,
    /// Never sleeps.
    pub busy: bool,
}

/// Where a connection comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// An address of this host.
    Address(std::net::IpAddr),
    /// An interface of this host.
    Interface(String),
}

/// What is done with what is found.
pub trait Observer {
    /// After each round of a session in which something was found.  Returns whether to go on.
    fn found(&mut self, number: usize, session: &mut Session, now: Duration) -> bool;

    /// Once a second.  Returns whether to go on.
    fn second(&mut self, sessions: &[Session], now: Duration) -> bool;

    /// An interim summary was asked for.
    fn interim(&mut self, sessions: &[Session], now: Duration);
}

/// A connection of a session.
struct Line {
    session: usize,
    number: usize,
    socket: Option<Socket>,
    /// The kernel gives its times.
    stamps: bool,
    /// Has to be served though nothing is announced.
    is_ready: bool,
}

/// Sessions with their sockets.
pub struct Driver {
    poll: Poll,
    timer: Option<OwnedFd>,
    timer_is_set: Option<Duration>,
    signals: Option<signal_hook_mio::v1_0::Signals>,
    options: Options,
    /// When time began, by the clock of [`Driver::now`].
    origin: Duration,
    sessions: Vec<Session>,
    /// The first line of each session.
    first: Vec<usize>,
    /// When what was found in each session is shown.
    shown: Vec<Option<Duration>>,
    lines: Vec<Line>,
    ready: Vec<usize>,
    buffer: Vec<u8>,
    actions: Vec<Action>,
    is_detailed: bool,
    is_spinning: bool,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("sessions", &self.sessions)
            .finish_non_exhaustive()
    }
}

impl Driver {
    /// A driver without sessions, whose time begins at `origin`.
    ///
    /// # Errors
    /// Those of epoll_create1(2).
    pub fn new(origin: Instant, options: Options) -> io::Result<Self> {
        let poll = Poll::new()?;
        let timer = timer(poll.registry()).ok();
        Ok(Self {
            poll,
            timer,
            timer_is_set: None,
            signals: None,
            options,
            origin: monotonic().saturating_sub(origin.elapsed()),
            sessions: Vec::new(),
            first: Vec::new(),
            shown: Vec::new(),
            lines: Vec::new(),
            ready: Vec::new(),
            buffer: vec![0; CHUNK],
            actions: Vec::new(),
            is_detailed: false,
            is_spinning: false,
        })
    }

    /// INT and TERM stop the sessions in good order, and end the process when they come again; QUIT
    /// and USR1 ask for an interim summary.
    ///
    /// # Errors
    /// Those of sigaction(2).
    pub fn handle_signals(&mut self) -> io::Result<()> {
        let mut signals = signal_hook_mio::v1_0::Signals::new([SIGINT, SIGTERM, SIGQUIT, SIGUSR1])?;
        self.poll
            .registry()
            .register(&mut signals, SIGNALS, Interest::READABLE)?;
        self.signals = Some(signals);
        Ok(())
    }

    /// The time since the origin.
    #[must_use]
    pub fn now(&self) -> Duration {
        monotonic().saturating_sub(self.origin)
    }

    /// Adds a session.
    pub fn add(&mut self, session: Session) {
        self.first.push(self.lines.len());
        self.shown.push(None);
        let number = self.sessions.len();
        self.lines
            .extend((0..session.plan().connections).map(|connection| Line {
                session: number,
                number: connection,
                socket: None,
                stamps: false,
                is_ready: false,
            }));
        self.sessions.push(session);
        let intervals = self
            .sessions
            .iter()
            .map(|session| match session.plan().pace {
                Pace::Every(interval) => interval,
                Pace::Closed => Duration::ZERO,
            });
        let rate: f64 = intervals
            .map(|interval| 1.0 / interval.as_secs_f64().max(1e-9))
            .sum();
        let between = Duration::from_secs_f64(1.0 / rate);
        self.is_detailed = between >= DETAILED;
        let is_open = |session: &Session| session.plan().pace != Pace::Closed;
        self.is_spinning =
            self.options.busy || (between < SPIN && self.sessions.iter().all(is_open));
    }

    /// Runs until every session is over; returns them.
    ///
    /// # Errors
    /// Those of epoll_wait(2).
    pub fn run(mut self, observer: &mut dyn Observer) -> io::Result<Vec<Session>> {
        let mut events = Events::with_capacity(1024);
        let mut second = self.now() + SECOND;
        let mut look_in_detail = second;
        loop {
            let mut now = self.now();
            for session in 0..self.sessions.len() {
                self.serve(session, now);
                let place = &mut self.sessions[session];
                if place.has_findings() {
                    let shown = *self.shown[session].get_or_insert(now + SHOWN);
                    if place.in_flight() == 0 || now >= shown {
                        self.shown[session] = None;
                        if !observer.found(session, place, now) {
                            self.stop(now);
                        }
                    }
                }
            }
            if self.sessions.iter().all(Session::is_over) {
                return Ok(self.sessions);
            }
            now = self.now();
            if now >= second {
                second = now + SECOND;
                if !observer.second(&self.sessions, now) {
                    self.stop(now);
                }
            }
            if !self.is_detailed && now >= look_in_detail {
                look_in_detail = now + SECOND;
                for line in 0..self.lines.len() {
                    self.look(line, now);
                }
            }
            let wait = self.wait(second, now);
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => result?,
            }
            for event in &events {
                match event.token() {
                    SIGNALS => self.signalled(observer),
                    TIMER => self.timer_is_set = None,
                    Token(token) => {
                        let is_over = event.is_read_closed() || event.is_error();
                        self.turn(token - FIRST, is_over);
                    }
                }
            }
            for line in std::mem::take(&mut self.ready) {
                self.lines[line].is_ready = false;
                self.turn(line, true);
            }
        }
    }

    fn stop(&mut self, now: Duration) {
        for session in &mut self.sessions {
            session.stop(now);
        }
    }

    fn signalled(&mut self, observer: &mut dyn Observer) {
        let now = self.now();
        let Some(signals) = &mut self.signals else {
            return;
        };
        for signal in signals.pending() {
            match signal {
                SIGQUIT | SIGUSR1 => observer.interim(&self.sessions, now),
                // The second time there is no more waiting.
                _ => {
                    for session in &mut self.sessions {
                        match session.is_draining() {
                            true => session.finish(now),
                            false => session.stop(now),
                        }
                    }
                }
            }
        }
    }

    /// How long the poll may wait.
    fn wait(&mut self, second: Duration, now: Duration) -> Option<Duration> {
        if self.is_spinning || !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let wakes = self.sessions.iter().filter_map(Session::wake);
        let wakes = wakes.chain(self.shown.iter().copied().flatten());
        let due = wakes.min().unwrap_or(second).min(second);
        if due <= now {
            return Some(Duration::ZERO);
        }
        let wait = due - now;
        let Some(timer) = &self.timer else {
            return Some(wait);
        };
        if self.timer_is_set.is_some_and(|set| set <= due) {
            return None;
        }
        let timespec = |span: Duration| Timespec {
            tv_sec: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: span.subsec_nanos().into(),
        };
        let setting = Itimerspec {
            it_interval: timespec(Duration::ZERO),
            it_value: timespec(wait),
        };
        match timerfd_settime(timer, TimerfdTimerFlags::empty(), &setting) {
            Ok(_) => {
                self.timer_is_set = Some(due);
                None
            }
            Err(_) => Some(wait),
        }
    }

    /// Does what is due in a session.
    fn serve(&mut self, session: usize, now: Duration) {
        let first = self.first[session];
        let mut actions = std::mem::take(&mut self.actions);
        self.sessions[session].on_time(now, &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Connect(number, place) => self.connect(first + number, &place),
                Action::Look(number) => self.look(first + number, now),
                Action::Close(number) => self.close(first + number),
            }
        }
        self.actions = actions;
        let mut now = now;
        while let Some(number) = self.sessions[session].begin(now) {
            self.pump(first + number, now);
            now = self.now();
        }
        if self.sessions[session].is_drained() {
            self.sessions[session].finish(now);
        }
        if self.sessions[session].is_over() {
            for number in 0..self.sessions[session].plan().connections {
                self.close(first + number);
            }
        }
    }

    fn close(&mut self, line: usize) {
        let line = &mut self.lines[line];
        line.stamps = false;
        line.socket = None;
    }

    fn connect(&mut self, line: usize, place: &Place) {
        match open(place, &self.options) {
            Ok((socket, outcome)) => {
                let registered = self.poll.registry().register(
                    &mut SourceFd(&socket.as_raw_fd()),
                    Token(FIRST + line),
                    Interest::READABLE | Interest::WRITABLE,
                );
                self.lines[line].socket = Some(socket);
                match registered.and(outcome) {
                    Ok(()) => self.connected(line),
                    Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
                    Err(error) => self.ended(line, Some(&error)),
                }
            }
            Err(error) => self.ended(line, Some(&error)),
        }
    }

    fn connected(&mut self, line: usize) {
        let now = self.now();
        let place = &mut self.lines[line];
        let Some(socket) = &place.socket else {
            return;
        };
        let info = TcpInfo::of(socket).ok();
        place.stamps = self.is_detailed && info.is_some() && timestamps::enable(socket).is_ok();
        let session = &mut self.sessions[place.session];
        let had_begun = session.has_begun();
        session.connected(place.number, now, info);
        if had_begun {
            self.pump(line, now);
        } else if session.has_begun() {
            // With the last of them, all begin.
            let first = self.first[place.session];
            for number in 0..session.plan().connections {
                self.pump(first + number, now);
            }
        }
    }

    fn ended(&mut self, line: usize, error: Option<&io::Error>) {
        let now = self.now();
        self.look(line, now);
        let place = &mut self.lines[line];
        self.sessions[place.session].ended(place.number, now, error);
        self.close(line);
    }

    fn look(&mut self, line: usize, now: Duration) {
        let place = &self.lines[line];
        if let Some(socket) = &place.socket {
            let info = TcpInfo::of(socket).ok();
            self.sessions[place.session].looked(place.number, now, info);
        }
    }

    /// Something has stirred on a connection; `is_over` if there may be an end behind what came.
    fn turn(&mut self, line: usize, is_over: bool) {
        let place = &self.lines[line];
        let Some(socket) = &place.socket else {
            return;
        };
        if !self.sessions[place.session].is_open(place.number) {
            match connected(socket) {
                Some(Ok(())) => self.connected(line),
                Some(Err(error)) => return self.ended(line, Some(&error)),
                // What was announced is older than this attempt.
                None => return,
            }
        }
        let now = self.read(line, is_over).unwrap_or_else(|| self.now());
        self.pump(line, now);
    }

    /// Reads what came; returns when the last of it did.
    fn read(&mut self, line: usize, is_over: bool) -> Option<Duration> {
        let mut last = None;
        let place = &self.lines[line];
        let socket = place.socket.as_ref()?;
        let session = &mut self.sessions[place.session];
        for _ in 0..READS {
            let received = if place.stamps {
                while let Some((offset, time)) = timestamps::sent(socket) {
                    session.stamped(place.number, offset, time);
                }
                timestamps::receive(socket, &mut self.buffer)
            } else {
                rustix::net::recv(
                    socket,
                    &mut self.buffer[..],
                    rustix::net::RecvFlags::empty(),
                )
                .map(|(_, count)| (count, None))
                .map_err(io::Error::from)
            };
            match received {
                Ok((0, _)) => {
                    self.ended(line, None);
                    return None;
                }
                Ok((count, stamp)) => {
                    let now = monotonic().saturating_sub(self.origin);
                    last = Some(now);
                    if self.is_detailed {
                        let info = TcpInfo::of(socket).ok();
                        session.looked(place.number, now, info);
                    }
                    session.received(place.number, now, &self.buffer[..count], stamp);
                    // Nothing is left behind a read that was not filled, but perhaps the end, which is
                    // announced only once.
                    if count < self.buffer.len() && !is_over {
                        return last;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return last,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.ended(line, Some(&error));
                    return None;
                }
            }
        }
        if !std::mem::replace(&mut self.lines[line].is_ready, true) {
            self.ready.push(line);
        }
        last
    }

    /// Writes what is to be written, and begins what there is room for.
    fn pump(&mut self, line: usize, now: Duration) {
        loop {
            let place = &self.lines[line];
            let Some(socket) = &place.socket else {
                return;
            };
            let session = &mut self.sessions[place.session];
            let piece = session.piece(place.number, now, &mut self.buffer);
            if piece.is_empty() {
                return;
            }
            let length = piece.len();
            match rustix::net::send(socket, piece, rustix::net::SendFlags::NOSIGNAL) {
                Ok(count) => {
                    let may_go_on = session.wrote(place.number, count);
                    // The kernel says when there is room again.
                    if count < length || !may_go_on {
                        return;
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR) => {}
                // What the peer sent before it ended may still be read.
                Err(error) => {
                    let error = error.into();
                    self.read_the_rest(line);
                    return self.ended(line, Some(&error));
                }
            }
        }
    }

    /// Reads what came before the end.
    fn read_the_rest(&mut self, line: usize) {
        let place = &self.lines[line];
        let Some(socket) = &place.socket else {
            return;
        };
        while let Ok((_, count)) = rustix::net::recv(
            socket,
            &mut self.buffer[..],
            rustix::net::RecvFlags::empty(),
        ) {
            if count == 0 {
                return;
            }
            let now = self.now();
            self.sessions[place.session].received(place.number, now, &self.buffer[..count], None);
        }
    }
}

/// The time of the clock that [`Instant`] reads (clock_gettime(2)).  It is read for each echo, and as
/// an [`Instant`] that costs three times as much.
fn monotonic() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "since the start of the system, and less than a second"
    )]
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn timer(registry: &Registry) -> io::Result<OwnedFd> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    // Each time it fires is a new edge: it need not be read.
    registry.register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
    Ok(timer)
}

/// A socket that is connecting, and what connect(2) said.
fn open(place: &Place, options: &Options) -> io::Result<(Socket, io::Result<()>)> {
    let (domain, address) = place.socket_address()?;
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
    if let Place::Ip(_) = place {
        match &options.from {
            Some(From::Address(address)) => {
                socket.bind(&std::net::SocketAddr::new(*address, 0).into())?;
            }
            Some(From::Interface(name)) => socket.bind_device(Some(name.as_bytes()))?,
            None => {}
        }
        // What is sent goes out at once, one message in one segment.
        socket.set_tcp_nodelay(true)?;
    }
    let outcome = socket.connect(&address);
    Ok((socket, outcome))
}
