//! Descriptors that a peer passes over a Unix stream (`SCM_RIGHTS`, unix(7)) are none of ours.
//!
//! To drop the last reference to a foreign socket may take as long as its owner has chosen
//! (`SO_LINGER` with data that cannot be sent), and it is the dropping thread that waits: the one
//! that reads without a control buffer, or that closes a stream whose queue holds the socket
//! unread.  Linux 6.16 and later can refuse such messages (`SO_PASSRIGHTS`): the sender gets EPERM.
//! On older kernels a stream is looked at (`MSG_PEEK`) before it is read, one over which descriptors
//! come is ended, and all are closed by threads of their own ([`Apart`]).

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Mutex;

use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, recv, recvmsg};
use socket2::SockRef;

use super::lock::lock;
use super::socket::set_number;

/// `SO_PASSRIGHTS` of asm-generic/socket.h.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Options that make every message carry something besides its bytes, so that descriptors would not
/// be told apart: `SO_PASSCRED`, `SO_PASSSEC`, `SO_PASSPIDFD`.
const PASS: [libc::c_int; 3] = [libc::SO_PASSCRED, libc::SO_PASSSEC, 76];

/// Threads that close.  Each may be held up for as long as a peer has chosen.
const THREADS: usize = 16;

/// Refuses descriptors from now on; those that were queued before stay.  Failing, the kernel is
/// older than 6.16, and [`are_refused`] says so.
pub fn refuse(socket: &impl AsFd) {
    let _ = set_number(socket, SO_PASSRIGHTS, 0);
}

/// Whether the kernel refuses what carries descriptors.  If an accepted socket says so, it does since
/// the connection began: the setting is that of the listener at that time.
#[must_use]
#[expect(unsafe_code, reason = "no crate in the tree gives SO_PASSRIGHTS")]
pub fn are_refused(socket: &impl AsFd) -> bool {
    let mut on: libc::c_int = 1;
    let mut length: libc::socklen_t = 4;
    // SAFETY: the kernel writes at most one int to the place that is given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw mut on).cast(),
            &raw mut length,
        )
    };
    result == 0 && on == 0
}

/// Reads from a stream that may hold descriptors.
///
/// # Errors
/// Those of recvmsg(2), and EPERM where descriptors come with the next bytes: these stay unread.
pub fn read(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let mut none: [MaybeUninit<u8>; 0] = [];
    // What is looked at stays in the queue, so no reference dropped here is the last.
    let seen = recvmsg(
        socket,
        &mut [io::IoSliceMut::new(buffer)],
        &mut RecvAncillaryBuffer::new(&mut none),
        RecvFlags::PEEK,
    )?;
    if seen.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    if seen.bytes == 0 {
        return Ok(0);
    }
    Ok(recv(socket, &mut buffer[..seen.bytes], RecvFlags::empty())?.0)
}

/// A Unix socket that is closed by a thread of its own if it may hold descriptors.
#[derive(Debug)]
pub struct Apart<T: Into<OwnedFd>> {
    socket: Option<T>,
    /// Whether it may hold descriptors.
    pub doubtful: bool,
    /// Whether it is a stream, whose peer hears of the end at once.
    stream: bool,
}

impl<T: Into<OwnedFd> + AsFd> Apart<T> {
    /// A listener; its callers cannot pass descriptors if the kernel knows how to refuse them.
    #[must_use]
    pub fn listener(socket: T) -> Self {
        refuse(&socket);
        // Callers that wait already came before.
        Self {
            socket: Some(socket),
            doubtful: true,
            stream: false,
        }
    }

    /// A stream.
    #[must_use]
    pub fn stream(socket: T) -> Self {
        let doubtful = !are_refused(&socket);
        if doubtful {
            refuse(&socket);
            for option in PASS {
                // Failing, this kernel does not have it.
                let _ = set_number(&socket, option, 0);
            }
        }
        Self {
            socket: Some(socket),
            doubtful,
            stream: true,
        }
    }
}

impl<T: Into<OwnedFd>> Deref for Apart<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.socket.as_ref().expect("there until it is dropped")
    }
}

impl<T: Into<OwnedFd>> DerefMut for Apart<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.socket.as_mut().expect("there until it is dropped")
    }
}

impl<T: Into<OwnedFd>> Drop for Apart<T> {
    fn drop(&mut self) {
        if let (true, Some(socket)) = (self.doubtful, self.socket.take()) {
            let socket = socket.into();
            // Not a listener: the service manager may hold that, too, and it would accept no more.
            if self.stream {
                // Failing, it was over.
                let _ = SockRef::from(&socket).shutdown(std::net::Shutdown::Both);
            }
            close(socket);
        }
    }
}

/// What is to be closed, and the threads that are at it.
struct Bin {
    waiting: VecDeque<OwnedFd>,
    threads: usize,
}

static BIN: Mutex<Bin> = Mutex::new(Bin {
    waiting: VecDeque::new(),
    threads: 0,
});

/// Closes a socket without waiting for it.
fn close(socket: OwnedFd) {
    let mut bin = lock(&BIN);
    bin.waiting.push_back(socket);
    // Those at work may be held up, each of them.
    if bin.threads < THREADS {
        let thread = std::thread::Builder::new()
            .name("close".into())
            .stack_size(64 * 1024)
            .spawn(empty);
        // Failing, it waits for the next one.
        bin.threads += usize::from(thread.is_ok());
    }
}

fn empty() {
    loop {
        let mut bin = lock(&BIN);
        let Some(socket) = bin.waiting.pop_front() else {
            bin.threads -= 1;
            return;
        };
        drop(bin);
        drop(socket);
    }
}
