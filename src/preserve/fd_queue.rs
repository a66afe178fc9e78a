//! The descriptor queue: a socket in whose receive queue the descriptors of connections are in flight.
//!
//! A connection lives as long as a descriptor of its socket is open in some process, or in flight.  The
//! service manager can store descriptors, but it compares each new one with every one that it has, so
//! thousands of them would keep it busy for seconds.  It stores a Unix socket like any other
//! descriptor, though, and does not look into it.  Whatever was sent into that socket (`SCM_RIGHTS` of
//! unix(7)) lives as long as the socket does.
//!
//! A queue is a pair of sockets.  The manager stores both ends, and this process keeps the sending end.
//! The next process gets both ends, reads the queue without emptying it (`MSG_PEEK` of recv(2)), and
//! goes on sending into it.  So nothing has to be stored again, and a crash at any moment loses
//! nothing.  The reading direction of the sending end is shut down, which tells the two ends apart.
//! When the manager has dropped its copies, the sending end hangs up.  There is no other way to learn
//! that the store is full, or that there is none.
//!
//! Nothing can be taken out of the queue.  The descriptors of connections that are over stay in it, so
//! from time to time a new queue replaces it ([`super::preserver`]).
//!
//! How many messages a queue takes is decided by the send buffer of the sending end, of which each uses
//! some 768 bytes, however few descriptors it has.  So that end has the largest buffer that the kernel
//! gives (`net.core.wmem_max` of socket(7)).  It is a limit and no memory.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
    recvmsg, sendmsg, shutdown, socketpair,
};
use socket2::SockRef;

use super::test_faults;
use crate::sys::sockopt::{set_peek_offset, unacknowledged};

/// The most descriptors in a message (`SCM_MAX_FD` in the kernel).
pub(crate) const BATCH: usize = 253;

/// How many connections a queue takes here (`net.core.wmem_max`); `None` if the kernel does not say.
#[must_use]
pub(crate) fn room() -> Option<usize> {
    let (mut fd_queue, _queue) = FdQueue::new(0).ok()?;
    fd_queue.append(&[io::stderr().as_fd()]).ok()?;
    Some(fd_queue.most_messages()? * BATCH)
}

/// A send buffer that is larger than what the kernel gives.
const LARGEST_BUFFER: usize = 1 << 30;

/// The sending end of a queue.
#[derive(Debug)]
pub(crate) struct FdQueue {
    /// The number in its name in the store.
    pub generation: u64,
    sender: OwnedFd,
    /// How many descriptors are in the queue, and in how many messages.
    pub entries: usize,
    pub messages: usize,
}

/// The receiving end of a queue.
#[derive(Debug)]
pub(crate) struct Queue(OwnedFd);

/// One end of a queue.
#[derive(Debug)]
pub(crate) enum End {
    /// The sending end.
    Sender(OwnedFd),
    /// The receiving end.
    Queue(Queue),
}

impl FdQueue {
    /// Makes an empty queue.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub(crate) fn new(generation: u64) -> io::Result<(Self, Queue)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (sender, queue) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        shutdown(&sender, Shutdown::Read)?;
        Ok((Self::resumed(generation, sender, 0, 0), Queue(queue)))
    }

    /// The sending end of a queue that a previous process has made, with so many `entries` in so many
    /// `messages`.
    #[must_use]
    pub(crate) fn resumed(
        generation: u64,
        sender: OwnedFd,
        entries: usize,
        messages: usize,
    ) -> Self {
        // The kernel takes its maximum instead, and counts twice of that (socket(7)).  An error leaves
        // the default, and with it a smaller queue.
        let _ = SockRef::from(&sender).set_send_buffer_size(LARGEST_BUFFER);
        Self {
            generation,
            sender,
            entries,
            messages,
        }
    }

    /// Puts descriptors into the queue, at most [`BATCH`]: all of them or none.
    ///
    /// # Errors
    /// `EAGAIN`: the queue is full.  `ETOOMANYREFS`: as many descriptors are in flight as an
    /// unprivileged user may have open (unix(7)).  Others of sendmsg(2): the receiving end is closed.
    pub(crate) fn append(&mut self, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let payload = [IoSlice::new(&[0])];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(&self.sender, &payload, &mut ancillary, flags) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result.map(drop)?,
            }
        }
        self.entries += descriptors.len();
        self.messages += 1;
        Ok(())
    }

    /// How many messages fit into the queue, which has one at least; `None` if the kernel does not say.
    fn most_messages(&self) -> Option<usize> {
        let used = usize::try_from(unacknowledged(&self.sender)).ok()?;
        let each = used.checked_div(self.messages).filter(|each| *each > 0)?;
        let buffer = SockRef::from(&self.sender).send_buffer_size().ok()?;
        // A message is taken as long as less than the buffer is in use.
        Some(buffer.div_ceil(each))
    }

    /// Whether the receiving end still exists, in a process or in flight.
    #[must_use]
    pub(crate) fn is_held(&self) -> bool {
        let mut polled = [PollFd::new(&self.sender, PollFlags::empty())];
        let _ = poll(&mut polled, Some(&Timespec::default()));
        !polled[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::NVAL)
    }
}

impl AsFd for FdQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl End {
    /// Finds out which end a socket is.
    ///
    /// # Errors
    /// It is neither, or not a socket.
    pub(crate) fn of(socket: OwnedFd) -> io::Result<Self> {
        let kind = rustix::net::sockopt::socket_type(&socket)?;
        let domain = rustix::net::sockopt::socket_domain(&socket)?;
        if kind != SocketType::SEQPACKET || domain != AddressFamily::UNIX {
            return Err(io::Error::other("not a sequential-packet socket"));
        }
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&socket, &mut byte, flags) {
            Ok((_, 0)) => Ok(Self::Sender(socket)),
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(Self::Queue(Queue(socket))),
            Err(error) => Err(error.into()),
        }
    }
}

impl Queue {
    /// Reads all messages in the queue and leaves them there.  `see` gets the descriptors of each
    /// message, which are new ones of this process, and whether some could not be opened because this
    /// process has as many as it may (`RLIMIT_NOFILE` of getrlimit(2)).
    ///
    /// # Errors
    /// Those of recvmsg(2).
    pub(crate) fn peek(&self, mut see: impl FnMut(Vec<OwnedFd>, bool)) -> io::Result<()> {
        // Each peek moves the offset on.  It belongs to the socket, not to this process, so a previous
        // process may have moved it.
        set_peek_offset(&self.0, 0)?;
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let mut payload = [IoSliceMut::new(&mut byte)];
            let mut flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            flags.set(RecvFlags::PEEK, !test_faults::is_on(test_faults::NO_PEEK));
            let message = match recvmsg(&self.0, &mut payload, &mut ancillary, flags) {
                Ok(message) => message,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if message.bytes == 0 {
                return Ok(());
            }
            let cut = message.flags.contains(ReturnFlags::CTRUNC);
            let mut found = Vec::new();
            for part in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                    found.extend(descriptors);
                }
            }
            see(found, cut);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;

    use super::*;

    fn count(queue: &Queue) -> usize {
        let mut count = 0;
        queue.peek(|found, _| count += found.len()).unwrap();
        count
    }

    #[test]
    fn a_queue_can_be_read_repeatedly_and_added_to() {
        let (mut fd_queue, queue) = FdQueue::new(1).unwrap();
        let file = File::open("/dev/null").unwrap();
        assert_eq!(count(&queue), 0);
        fd_queue.append(&[file.as_fd(); BATCH]).unwrap();
        fd_queue.append(&[file.as_fd()]).unwrap();
        assert_eq!((count(&queue), count(&queue)), (BATCH + 1, BATCH + 1));
        fd_queue.append(&[file.as_fd(); 2]).unwrap();
        assert_eq!(count(&queue), BATCH + 3);
        assert_eq!((fd_queue.entries, fd_queue.messages), (BATCH + 3, 3));
    }

    /// A queue of a process that has not enlarged its buffer, full of messages of one descriptor.
    fn full() -> (FdQueue, Queue) {
        let (mut fd_queue, queue) = FdQueue::new(1).unwrap();
        let sender = SockRef::from(&fd_queue.sender);
        sender.set_send_buffer_size(20_000).unwrap();
        while fd_queue.append(&[io::stdin().as_fd()]).is_ok() {
            assert!(fd_queue.entries < 1000);
        }
        (fd_queue, queue)
    }

    #[test]
    fn a_full_queue_is_an_error_and_takes_no_part_of_a_message() {
        let (mut fd_queue, queue) = full();
        let error = fd_queue.append(&[io::stdin().as_fd(); 2]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(fd_queue.most_messages(), Some(fd_queue.messages));
        assert_eq!(count(&queue), fd_queue.entries);
    }

    #[test]
    fn a_full_queue_that_is_resumed_has_room_again() {
        let (fd_queue, queue) = full();
        let mut resumed = FdQueue::resumed(1, fd_queue.sender, fd_queue.entries, fd_queue.messages);
        // With the default of `net.core.wmem_max`, a message of at most 1 KiB, and twice the buffer.
        for _ in resumed.entries..2 * 212_992 / 1024 {
            resumed.append(&[io::stdin().as_fd()]).unwrap();
        }
        assert_eq!(count(&queue), resumed.entries);
    }

    #[test]
    fn the_ends_differ_and_a_dropped_receiving_end_shows() {
        for filled in [false, true] {
            let (mut fd_queue, queue) = FdQueue::new(1).unwrap();
            if filled {
                fd_queue.append(&[io::stdin().as_fd()]).unwrap();
            }
            assert!(fd_queue.is_held());
            let sender = fd_queue.sender.try_clone().unwrap();
            assert!(matches!(End::of(sender), Ok(End::Sender(_))));
            let Ok(End::Queue(queue)) = End::of(queue.0) else {
                panic!("not the queue");
            };
            drop(queue);
            assert!(!fd_queue.is_held());
            assert!(fd_queue.append(&[io::stdin().as_fd()]).is_err());
        }
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(End::of(stream.into()).is_err());
        assert!(End::of(File::open("/dev/null").unwrap().into()).is_err());
    }
}
