//! Single clients: the polite one that is timed, and those that come and go.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use testkit::load::{Load, Talk};
use testkit::{SOON, connect, connect_with_buffers};

/// Addresses of this host to come from, so that those in TIME-WAIT do not use up the ports.
const SOURCES: u64 = 200;

/// Connects from one of many source addresses.
pub fn connect_from(number: u64, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    let host = u8::try_from(2 + number % SOURCES).unwrap();
    let source = SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0));
    socket.bind(&source.into())?;
    socket.connect(&address.into())?;
    Ok(socket.into())
}

/// Connects and resets at once.
pub fn reset(number: u64, address: SocketAddr) -> io::Result<()> {
    testkit::reset(connect_from(number, address)?);
    Ok(())
}

/// Connects and closes at once.
pub fn scan(number: u64, address: SocketAddr) -> io::Result<()> {
    connect_from(number, address).map(drop)
}

/// One client that sends 64 bytes and waits for them, again and again: how long each took.
pub fn ping_pong(address: SocketAddr, span: Duration) -> Result<Vec<Duration>, String> {
    let mut stream = connect(address);
    stream.set_nodelay(true).unwrap();
    let mut samples = Vec::new();
    let began = Instant::now();
    while began.elapsed() < span {
        let number = samples.len() as u64;
        samples.push(ping(&mut stream, number)?);
    }
    Ok(samples)
}

/// Sends 64 bytes that differ with the number, and waits for them.
pub fn ping(stream: &mut TcpStream, number: u64) -> Result<Duration, String> {
    let message: [u8; 64] = std::array::from_fn(|at| number.to_le_bytes()[at % 8]);
    let mut echo = [0; 64];
    let began = Instant::now();
    stream
        .write_all(&message)
        .and_then(|()| stream.read_exact(&mut echo))
        .map_err(|error| format!("ping {number}: {error}"))?;
    let took = began.elapsed();
    if echo == message {
        Ok(took)
    } else {
        Err(format!("ping {number}: wrong bytes"))
    }
}

/// What keeps a daemon busy meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    None,
    /// So many clients that send and read as fast as they can, in one thread.
    Flood(usize),
    /// So many clients that have sent all they can and never read.
    Stalled(usize),
    /// One thread that connects and closes as fast as it can.
    Storm,
}

/// Company in a thread of its own.
#[derive(Debug)]
pub struct Background {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<String, String>>,
}

impl Background {
    /// Starts it and returns when it is under way.
    pub fn start(company: Company, address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let progress = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let (stop, progress) = (Arc::clone(&stop), Arc::clone(&progress));
            move || keep(company, address, &stop, &progress)
        });
        let began = Instant::now();
        while progress.load(Ordering::Relaxed) == 0 && began.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(1));
        }
        Self { stop, thread }
    }

    /// Ends it; what it did, or the bytes that it lost.
    pub fn end(self) -> Result<String, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|_| Err("the load failed".into()))
    }
}

fn keep(
    company: Company,
    address: SocketAddr,
    stop: &AtomicBool,
    progress: &AtomicU64,
) -> Result<String, String> {
    let began = Instant::now();
    let stopped = || stop.load(Ordering::Relaxed);
    let idle = || {
        progress.store(1, Ordering::Relaxed);
        while !stopped() {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    match company {
        Company::None => idle(),
        Company::Flood(count) => {
            let mut load = Load::connect(address, count, Talk::FLOOD);
            load.run(Duration::from_secs(600), |load| {
                progress.store(load.moved, Ordering::Relaxed);
                stopped()
            });
            let rate = mebibytes(load.moved / 2) / began.elapsed().as_secs_f64();
            load.read_all();
            load.finish(SOON)?;
            return Ok(format!("{rate:.0} MiB/s"));
        }
        Company::Stalled(count) => {
            let mut load = stalled(address, count);
            idle();
            load.read_all();
            load.finish(SOON)?;
        }
        Company::Storm => {
            let mut number = 0;
            while !stopped() {
                scan(number, address).map_err(|error| format!("connection {number}: {error}"))?;
                number += 1;
                progress.store(number, Ordering::Relaxed);
            }
            let rate = number as f64 / began.elapsed().as_secs_f64();
            return Ok(format!("{rate:.0} connections/s"));
        }
    }
    Ok(String::new())
}

/// Clients that have sent all they can and never read.  Small buffers, or the queues of the
/// kernel would take megabytes for each of them.
pub fn stalled(address: SocketAddr, count: usize) -> Load {
    let mut load = Load::new();
    for _ in 0..count {
        let stream = connect_with_buffers(address, 64 << 10, 64 << 10);
        load.join(stream, Talk::stall(64 << 20));
    }
    load.settle(Duration::from_millis(300));
    load
}

/// Bytes as MiB.
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
