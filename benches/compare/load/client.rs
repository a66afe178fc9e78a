//! One client of the load.
//!
//! A client is its position in its stream; everything else follows from the [`Talk`], which all
//! of a kind share: how much may be under way, how much goes into one write, and after how much
//! the client is replaced by a new one.  A ping-pong is a window of one message, bulk one without
//! bounds.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Socket, Type};
use testkit::Pattern;

use super::work::{Mode, Work};

/// A piece up to this length is one slice.
pub const WHOLE: usize = 4096;

/// Addresses of this host to come from, so that those in TIME-WAIT do not use up the ports.
const SOURCES: usize = 200;

/// The most that is written with one call in bulk, in bytes.
const CHUNK: usize = 256 * 1024;

/// How a client sends.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    /// Bytes that may be under way.
    window: u64,
    /// Bytes of one write.
    write: usize,
    /// Bytes after which the connection ends.
    pub total: Option<u64>,
    /// Bytes that count as one.
    pub unit: u64,
    /// Whether the time of each write is worth knowing.
    is_timed: bool,
}

impl Talk {
    /// That of the client with a number.
    pub fn of(work: &Work, number: usize) -> Self {
        let messages = |size: usize, depth: usize| Self {
            window: (size * depth) as u64,
            write: size,
            total: None,
            unit: size as u64,
            is_timed: true,
        };
        let once = |size: usize| Self {
            total: Some(size as u64),
            ..messages(size, 1)
        };
        match work.mode {
            Mode::PingPong => messages(work.size, 1),
            Mode::Pipelined => messages(work.size, work.depth),
            Mode::Churn => once(work.size),
            Mode::Bulk => Self {
                window: work.window.unwrap_or(u64::MAX),
                write: CHUNK,
                total: None,
                unit: 1024,
                is_timed: false,
            },
            Mode::Mixed => match number % 4 {
                0 => once(1 << (number / 4 % 15)),
                1 => messages(1 << (number / 4 % 9), work.depth),
                _ => messages(1 << (number / 4 % 17), 1),
            },
        }
    }
}

/// A client.
#[derive(Debug)]
pub struct Client {
    pub socket: OwnedFd,
    pub talk: Talk,
    start: u64,
    pub sent: u64,
    pub received: u64,
    /// Where each write that is not back yet ended, and when it began.
    writes: VecDeque<(u64, Instant)>,
    /// The kernel took less than it was given: it must say when to go on.
    pub is_full: bool,
    /// As it is registered.
    pub was_full: bool,
}

impl Client {
    /// Connects from one of many source addresses.
    pub fn connect(work: &Work, number: usize, talk: Talk) -> Result<Self, String> {
        let socket =
            dial(work.address, number).map_err(|error| format!("client {number}: {error}"))?;
        // In bulk only the kernel's own announcement makes it write.
        let is_full = !talk.is_timed;
        Ok(Self {
            socket: socket.into(),
            talk,
            start: Pattern::start(number),
            sent: 0,
            received: 0,
            writes: VecDeque::with_capacity(1),
            is_full,
            was_full: is_full,
        })
    }

    /// Writes what may be written.
    pub fn write(&mut self, pattern: &Pattern, began: Instant) -> Result<(), String> {
        self.is_full = false;
        loop {
            let room = self.talk.window.saturating_sub(self.sent - self.received);
            let piece = if self.talk.is_timed {
                // A write that was cut short is completed first.
                self.talk.write - (self.sent % self.talk.write as u64) as usize
            } else {
                usize::try_from(room).map_or(CHUNK, |room| room.min(CHUNK))
            };
            let is_over = self.talk.total.is_some_and(|total| self.sent >= total);
            if is_over || piece == 0 || room < piece as u64 {
                return Ok(());
            }
            let position = self.start + self.sent;
            let taken = if piece <= WHOLE {
                send(
                    &self.socket,
                    pattern.piece(position, piece),
                    SendFlags::NOSIGNAL,
                )
            } else {
                rustix::io::writev(&self.socket, &pattern.slices(position, piece))
            };
            let taken = match taken {
                Ok(taken) => taken,
                Err(Errno::AGAIN) => 0,
                Err(error) => return Err(format!("send: {error}")),
            };
            self.sent += taken as u64;
            if self.talk.is_timed {
                self.writes.push_back((self.sent, began));
            }
            if taken < piece || !self.talk.is_timed {
                self.is_full = true;
                return Ok(());
            }
        }
    }

    /// Reads once and compares; returns how many bytes came back.  `record` is called when each
    /// write that is back now began.
    pub fn read(
        &mut self,
        buffer: &mut [u8],
        pattern: &Pattern,
        mut record: impl FnMut(Instant),
    ) -> Result<u64, String> {
        let count = match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((_, 0)) => return Err("the server has closed".into()),
            Ok((_, count)) => count,
            Err(Errno::AGAIN) => return Ok(0),
            Err(error) => return Err(format!("recv: {error}")),
        };
        if self.received + count as u64 > self.sent {
            return Err("more came back than was sent".into());
        }
        if !pattern.is_at(self.start + self.received, &buffer[..count]) {
            return Err(format!(
                "wrong bytes between {} and {}",
                self.received,
                self.received + count as u64
            ));
        }
        self.received += count as u64;
        while let Some((end, began)) = self.writes.front().copied() {
            if end > self.received {
                break;
            }
            record(began);
            self.writes.pop_front();
        }
        Ok(count as u64)
    }

    /// Whether it has had its say.
    pub fn is_over(&self) -> bool {
        self.talk.total.is_some_and(|total| self.received >= total)
    }
}

fn dial(address: SocketAddr, number: usize) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.ip().is_loopback() && address.is_ipv4() {
        let host = 2 + (number % SOURCES) as u8;
        socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0)).into())?;
    }
    // On loopback the kernel answers for the server, so this does not wait for it.
    socket.connect(&address.into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
