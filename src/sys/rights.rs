//! Descriptors that a peer sends over a Unix stream (`SCM_RIGHTS`, unix(7)), and how to refuse them.
//!
//! The echo has no use for them, and they can block it.  A thread that drops the last reference to a
//! socket waits for as long as the sender of that socket has chosen (`SO_LINGER` with data that cannot
//! be sent, socket(7)).  This may be a thread that reads without a buffer for descriptors, or one that
//! closes a stream with the socket unread in its queue.
//!
//! Linux 6.16 and later can refuse such messages (`SO_PASSRIGHTS`): the sender gets EPERM.  On older
//! kernels a stream is examined with `MSG_PEEK` before each read, one over which descriptors arrive is
//! ended, and such streams are closed by threads of their own ([`Apart`]).

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Mutex;

use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, recv, recvmsg};
use socket2::SockRef;

use super::lock::lock;
use super::sockopt::set_number;

/// `SO_PASSRIGHTS` of asm-generic/socket.h.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Options that add control data to every message, among which descriptors could not be recognised:
/// `SO_PASSCRED`, `SO_PASSSEC`, `SO_PASSPIDFD`.
const PASS: [libc::c_int; 3] = [libc::SO_PASSCRED, libc::SO_PASSSEC, 76];

/// The most threads that close sockets.  Each may be blocked for as long as a peer has chosen.
const THREADS: usize = 16;

/// Refuses descriptors from now on; those that are in the queue already stay there.  A kernel before
/// 6.16 does not know the option, which [`are_refused`] reports.
pub(crate) fn refuse(socket: &impl AsFd) {
    let _ = set_number(socket, SO_PASSRIGHTS, 0);
}

/// Whether the kernel refuses messages with descriptors.  If it does for an accepted socket, it has
/// done so since the connection was made, as the socket has inherited the option from the listener.
#[must_use]
#[expect(unsafe_code, reason = "no crate in the tree gives SO_PASSRIGHTS")]
pub(crate) fn are_refused(socket: &impl AsFd) -> bool {
    let mut on: libc::c_int = 1;
    let mut length: libc::socklen_t = 4;
    // SAFETY: the kernel writes at most one int to the address that is given.
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
/// Those of recvmsg(2), and EPERM if descriptors come with the next bytes, which stay unread.
pub(crate) fn read(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let mut none: [MaybeUninit<u8>; 0] = [];
    // With MSG_PEEK the descriptors also stay in the queue, so no reference that is dropped here is the
    // last.
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

/// A Unix socket that another thread closes if it may hold descriptors.
#[derive(Debug)]
pub(crate) struct Apart<T: Into<OwnedFd>> {
    /// `None` once it is dropped.
    socket: Option<T>,
    /// Whether its queue may hold descriptors.
    pub doubtful: bool,
    /// Whether it is a connection, which is shut down before it is closed.
    stream: bool,
}

impl<T: Into<OwnedFd> + AsFd> Apart<T> {
    /// A listener that lets the kernel refuse descriptors from its callers, if it can.
    #[must_use]
    pub(crate) fn listener(socket: T) -> Self {
        refuse(&socket);
        // Callers that wait already may have sent some before that.
        Self {
            socket: Some(socket),
            doubtful: true,
            stream: false,
        }
    }

    /// A connection, which may be one that has inherited the option from its listener.
    #[must_use]
    pub(crate) fn stream(socket: T) -> Self {
        let doubtful = !are_refused(&socket);
        if doubtful {
            refuse(&socket);
            for option in PASS {
                // A kernel that does not know an option does not add its data either.
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
            // At once, so that the peer sees the end before the close.  Not for a listener: the service
            // manager may hold it, too, and it would not listen any more.
            if self.stream {
                // An error means that the connection was over already.
                let _ = SockRef::from(&socket).shutdown(std::net::Shutdown::Both);
            }
            close(socket);
        }
    }
}

/// The sockets to be closed, and the number of threads that close them.
struct Bin {
    waiting: VecDeque<OwnedFd>,
    threads: usize,
}

static BIN: Mutex<Bin> = Mutex::new(Bin {
    waiting: VecDeque::new(),
    threads: 0,
});

/// Closes a socket in another thread.
fn close(socket: OwnedFd) {
    let mut bin = lock(&BIN);
    bin.waiting.push_back(socket);
    // Always a further thread, as each of those that exist may be blocked.
    if bin.threads < THREADS {
        let thread = std::thread::Builder::new()
            .name("close".into())
            .stack_size(64 * 1024)
            .spawn(empty);
        // Without a thread, the socket waits for that of a later one.
        bin.threads += usize::from(thread.is_ok());
    }
}

/// Closes sockets until none is left.
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
