//! One client at a time, in the thread of the test; every wait has a deadline.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::{Pattern, SOON};

/// Whether daemons and clients have a proxy between them: each connection begins with a PROXY header
/// (the variable `TCP_ECHO_TEST_PROXY`).
pub(crate) fn has_proxy() -> bool {
    std::env::var_os("TCP_ECHO_TEST_PROXY").is_some()
}

/// Writes the PROXY header, if there is a proxy, which names a client of this host.
pub(crate) fn greet(mut stream: impl Write) {
    if has_proxy() {
        let header = b"PROXY TCP4 127.0.0.3 127.0.0.4 9 7\r\n";
        stream.write_all(header).unwrap();
    }
}

/// Connects, with deadlines for reading and writing.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, SOON).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    greet(&stream);
    stream
}

/// Connects to a Unix socket, with a deadline for reading.
pub fn connect_unix(path: impl AsRef<Path>) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    greet(&stream);
    stream
}

/// Connects with socket buffers of so many bytes, as the kernel rounds them.
pub fn connect_with_buffers(address: SocketAddr, receive: usize, send: usize) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    // Before the handshake: the window is scaled by them.
    socket.set_recv_buffer_size(receive).unwrap();
    socket.set_send_buffer_size(send).unwrap();
    socket.connect_timeout(&address.into(), SOON).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.set_write_timeout(Some(SOON)).unwrap();
    greet(&socket);
    socket.into()
}

/// Asserts that nothing comes for so long.
#[track_caller]
pub fn waits(mut stream: &TcpStream, span: Duration) {
    stream.set_read_timeout(Some(span)).unwrap();
    let answer = stream.read(&mut [0; 9]);
    stream.set_read_timeout(Some(SOON)).unwrap();
    assert!(
        answer
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock),
        "{answer:?}"
    );
}

/// Writes, without reading, until nothing more goes in for 300 ms, which stays its write timeout.
pub fn fill(stream: &mut TcpStream) {
    stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    while stream.write(&[9; 65536]).is_ok() {}
}

/// Closes with a RST (`SO_LINGER` of zero).
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

/// The most that a [`Tape`] writes or compares at once, in bytes.
const PIECE: usize = 128 * 1024;

/// An endless sequence of bytes, of which any two parts differ, without memory for all of it.
#[derive(Clone, Debug)]
pub struct Tape {
    pattern: Arc<Pattern>,
    at: usize,
}

impl Tape {
    pub fn new(seed: u64) -> Self {
        Self {
            pattern: Arc::new(Pattern::new(seed, PIECE)),
            at: 0,
        }
    }

    /// What comes next, at most `most` bytes.
    fn next(&self, most: usize) -> &[u8] {
        self.pattern.piece(self.at as u64, most)
    }

    /// How many bytes went by.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Sends the next `count` bytes.
    pub fn send(&mut self, mut stream: impl Write, count: usize) -> io::Result<()> {
        let end = self.at + count;
        while self.at < end {
            let written = stream.write(self.next(end - self.at))?;
            self.at += written;
        }
        Ok(())
    }

    /// Sends until nothing more has been taken for a while: every queue on the way is full.
    pub fn fill(&mut self, stream: &TcpStream) {
        stream.set_nonblocking(true).unwrap();
        let mut moved = Instant::now();
        while moved.elapsed() < Duration::from_millis(300) {
            match self.send(stream, 1 << 20) {
                Ok(()) => moved = Instant::now(),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
        stream.set_nonblocking(false).unwrap();
    }

    /// Reads once, at most `most` bytes, and asserts that it is what comes next; zero: the end.
    #[track_caller]
    pub fn read(&mut self, mut stream: impl Read, most: usize) -> io::Result<usize> {
        let mut buffer = vec![0; most.min(1 << 18)];
        let count = stream.read(&mut buffer)?;
        let mut read = &buffer[..count];
        while !read.is_empty() {
            let next = self.next(read.len());
            let (these, rest) = read.split_at(next.len());
            assert!(
                these == next,
                "wrong bytes came back between {} and {}",
                self.at,
                self.at + next.len()
            );
            self.at += these.len();
            read = rest;
        }
        Ok(count)
    }

    /// Reads exactly `count` bytes and asserts that they are what comes next.
    #[track_caller]
    pub fn expect(&mut self, mut stream: impl Read, count: usize) {
        let end = self.at + count;
        while self.at < end {
            let count = self
                .read(&mut stream, end - self.at)
                .unwrap_or_else(|error| panic!("at {} of {end}: {error}", self.at));
            assert!(count > 0, "the stream ended at {} of {end}", self.at);
        }
    }

    /// Reads to the end and asserts that all is what comes next; fails on a reset.
    #[track_caller]
    pub fn expect_to_the_end(&mut self, mut stream: impl Read) {
        loop {
            match self.read(&mut stream, 1 << 18) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => panic!("no FIN but {error} at {}", self.at),
            }
        }
    }
}

/// Sends a message and expects it back.
#[track_caller]
pub fn ping(mut stream: impl Read + Write, message: &[u8]) {
    stream.write_all(message).unwrap();
    let mut echo = vec![0; message.len()];
    stream.read_exact(&mut echo).unwrap();
    assert!(echo == message, "{} bytes came back wrong", message.len());
}

/// Sends nothing more and reads to the end.
#[track_caller]
pub fn finish(mut stream: &TcpStream) -> Vec<u8> {
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    rest
}

/// Reads to the end: whether it was a FIN (`Ok`) or a reset.
pub fn end_of(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).map(|_| rest)
}
