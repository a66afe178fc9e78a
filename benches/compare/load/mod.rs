//! The load: any number of verified connections in one thread of a process of its own.
//!
//! It stands apart from the comparison so that it can be pinned apart from the server, and so that
//! its processor time is measured apart.  It must cost less than the server that it measures:
//! a level-triggered epoll, one receive and one send for a message, one reading of the clock for
//! both, and nothing that has to be made while it runs.  It looks at the server's processor time
//! itself, right before and right after the measured span.
//!
//! At the end nothing more is sent, and everything that is under way must come back: a server that
//! has lost an edge has forgotten a connection, and that is a failure like a wrong byte.
//!
//! In reading order: `work` (asked, seen), `client` (a connection), and
//! the loop in this file.

mod client;
mod work;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::process::{Pid, getpid};
use testkit::Pattern;
use testkit::process::{family_time, memory, pin, processor_time, slabs};

use client::{Client, Talk, WHOLE};
pub use work::{Mode, Outcome, Work};

/// How long the last bytes may take to come back.
const PATIENCE: Duration = Duration::from_secs(10);

/// The loop looks at the clock at least so often.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};

/// Does the work.
///
/// # Errors
/// Bytes that are wrong or lost, or a connection that is refused or closed.
pub fn run(work: &Work) -> Result<Outcome, String> {
    if let Some(cpu) = work.cpu {
        pin(getpid(), &[cpu]);
    }
    let server = work.server.and_then(Pid::from_raw);
    let mut load = Load::connect(work)?;
    load.drive(Duration::from_secs_f64(work.warm_up))?;
    load.is_measuring = true;
    let time = || (server.map_or(0, family_time), processor_time(getpid()));
    let before = time();
    let (footprint, kernel) = (server.map(memory), slabs());
    let began = Instant::now();
    load.drive(Duration::from_secs_f64(work.seconds))?;
    let seconds = began.elapsed().as_secs_f64();
    let after = time();
    load.is_measuring = false;
    load.drain()?;
    let at = |quantile: f64| load.latencies.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Outcome {
        seconds,
        units: load.units,
        bytes: load.bytes.iter().sum(),
        server: (after.0 - before.0) as f64,
        load: (after.1 - before.1) as f64,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        longest: load.latencies.max() as f64 / 1e3,
        jain: jain(&load.bytes),
        memory: footprint
            .zip(server.map(memory))
            .map(|(before, after)| [before, after]),
        kernel,
    })
}

fn jain(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|share| *share as f64).sum();
    let squares: f64 = shares.iter().map(|share| (*share as f64).powi(2)).sum();
    if squares == 0.0 {
        return 0.0;
    }
    sum * sum / (squares * shares.len() as f64)
}

struct Load<'a> {
    work: &'a Work,
    pattern: Pattern,
    poll: OwnedFd,
    buffer: Vec<u8>,
    clients: Vec<Client>,
    /// They have had one message, and stay open.
    _idle: Vec<Client>,
    /// Clients so far.
    number: usize,
    is_measuring: bool,
    /// Nothing more is sent.
    is_draining: bool,
    units: f64,
    /// What came back for each client.
    bytes: Vec<u64>,
    latencies: Histogram<u64>,
}

impl<'a> Load<'a> {
    fn connect(work: &'a Work) -> Result<Self, String> {
        let mut load = Self {
            work,
            pattern: Pattern::new(862, WHOLE),
            poll: epoll::create(CreateFlags::CLOEXEC).map_err(|error| error.to_string())?,
            buffer: vec![0; 256 * 1024],
            clients: Vec::new(),
            _idle: Vec::new(),
            number: 0,
            is_measuring: false,
            is_draining: false,
            units: 0.0,
            bytes: vec![0; work.connections],
            // A nanosecond to a minute, to a thousandth.
            latencies: Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap(),
        };
        // Those that will be idle send once, like the others, and then get no further turn.
        let once = Work::new(Mode::PingPong, work.idle, 64);
        for key in 0..work.idle {
            load.seat(key, Talk::of(&once, key))?;
        }
        load.is_draining = true;
        load.drain()?;
        load.is_draining = false;
        for client in &load.clients {
            let _ = epoll::delete(&load.poll, &client.socket);
        }
        load._idle = std::mem::take(&mut load.clients);
        for key in 0..work.connections {
            load.seat(key, Talk::of(work, key))?;
        }
        Ok(load)
    }

    /// Gives a client the place of one that has ended, or a new one, and lets it send.
    fn seat(&mut self, key: usize, talk: Talk) -> Result<(), String> {
        let began = Instant::now();
        let mut client = Client::connect(self.work, self.number, talk)?;
        self.number += 1;
        if !client.is_full {
            client.write(&self.pattern, began)?;
        }
        client.was_full = client.is_full;
        epoll::add(
            &self.poll,
            &client.socket,
            EventData::new_u64(key as u64),
            interest(&client),
        )
        .map_err(|error| format!("epoll: {error}"))?;
        if key == self.clients.len() {
            self.clients.push(client);
        } else {
            self.clients[key] = client;
        }
        Ok(())
    }

    /// Lets the clients send and read for a while.
    fn drive(&mut self, span: Duration) -> Result<(), String> {
        let end = Instant::now() + span;
        let mut events = Vec::with_capacity(1024);
        while Instant::now() < end {
            self.round(&mut events)?;
        }
        Ok(())
    }

    /// Waits until everything is back.
    fn drain(&mut self) -> Result<(), String> {
        self.is_draining = true;
        let deadline = Instant::now() + PATIENCE;
        let mut events = Vec::with_capacity(1024);
        loop {
            let late = self
                .clients
                .iter()
                .filter(|client| client.received < client.sent);
            let (count, bytes) = late.fold((0, 0), |(count, bytes), client| {
                (count + 1, bytes + client.sent - client.received)
            });
            if count == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{count} clients wait in vain for {bytes} bytes"));
            }
            self.round(&mut events)?;
        }
    }

    fn round(&mut self, events: &mut Vec<Event>) -> Result<(), String> {
        events.clear();
        epoll::wait(&self.poll, spare_capacity(events), Some(&TICK))
            .map_err(|error| format!("epoll: {error}"))?;
        for event in &*events {
            let (flags, data) = (event.flags, event.data);
            let key = usize::try_from(data.u64()).unwrap();
            self.turn(key, flags)
                .map_err(|error| format!("client {key}: {error}"))?;
        }
        Ok(())
    }

    fn turn(&mut self, key: usize, flags: EventFlags) -> Result<(), String> {
        let client = &mut self.clients[key];
        let now = Instant::now();
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            let (is_measuring, latencies) = (self.is_measuring, &mut self.latencies);
            let count = client.read(&mut self.buffer, &self.pattern, |began| {
                if is_measuring {
                    let span = now.saturating_duration_since(began).as_nanos();
                    latencies.saturating_record(u64::try_from(span).unwrap_or(u64::MAX).max(1));
                }
            })?;
            if is_measuring {
                self.bytes[key] += count;
                self.units += count as f64 / client.talk.unit as f64;
            }
        }
        if self.is_draining {
            client.is_full = false;
        } else if client.is_over() {
            let talk = client.talk;
            return self.seat(key, talk);
        } else if !client.is_full || flags.contains(EventFlags::OUT) {
            client.write(&self.pattern, now)?;
        }
        let client = &mut self.clients[key];
        if client.is_full != client.was_full {
            client.was_full = client.is_full;
            epoll::modify(
                &self.poll,
                &client.socket,
                EventData::new_u64(key as u64),
                interest(client),
            )
            .map_err(|error| format!("epoll: {error}"))?;
        }
        Ok(())
    }
}

fn interest(client: &Client) -> EventFlags {
    if client.is_full {
        EventFlags::IN | EventFlags::OUT
    } else {
        EventFlags::IN
    }
}
