//! The parcel: a socket in whose queue the descriptors of connections are in flight.
//!
//! The manager compares each stored descriptor with every other, so thousands of them would stop
//! it for seconds.  A socket it stores like any other, and does not look into: whatever was sent
//! into it (`SCM_RIGHTS`, unix(7)) lives as long as the socket does.
//!
//! It is a pair of which the manager holds both ends and we the sending one.  A successor looks at
//! the queue without emptying it, and goes on sending: nothing is stored again, and a crash at any
//! moment of this loses nothing.  The reading direction of the sending end is shut down, which
//! tells the ends apart; and when the manager has dropped its copies, our end hangs up, which is
//! the only way to learn that a store is full, or that there is none.
//!
//! Nothing can be taken out of the queue.  Connections that are over leave their descriptors
//! there, and the queue takes some 278 messages only, so now and then a new parcel replaces it
//! ([`super::keeper`]).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
    recvmsg, sendmsg, shutdown, socketpair,
};

use super::controls;
use crate::system::socket::set_peek_offset;

/// The most descriptors in a message (`SCM_MAX_FD` in the kernel).
pub const BATCH: usize = 253;

/// The sending end.
#[derive(Debug)]
pub struct Parcel {
    /// The number in its name.
    pub generation: u64,
    sender: OwnedFd,
    /// Descriptors in it.
    pub entries: usize,
}

/// The receiving end.
#[derive(Debug)]
pub struct Queue(OwnedFd);

/// What an end of a pair is.
#[derive(Debug)]
pub enum End {
    /// The sending one.
    Sender(OwnedFd),
    /// The receiving one.
    Queue(Queue),
}

impl Parcel {
    /// A new pair, empty.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn new(generation: u64) -> io::Result<(Self, Queue)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (sender, queue) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        shutdown(&sender, Shutdown::Read)?;
        Ok((Self::resumed(generation, sender, 0), Queue(queue)))
    }

    /// The sending end of one that was found.
    #[must_use]
    pub fn resumed(generation: u64, sender: OwnedFd, entries: usize) -> Self {
        Self {
            generation,
            sender,
            entries,
        }
    }

    /// Puts up to [`BATCH`] descriptors into it: all of them or none.
    ///
    /// # Errors
    /// `EAGAIN`: the queue is full.  `ETOOMANYREFS`: as many descriptors are in flight as an
    /// unprivileged user may have open (unix(7)).
    pub fn append(&mut self, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
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
        Ok(())
    }

    /// Whether somebody holds the receiving end still.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let mut polled = [PollFd::new(&self.sender, PollFlags::empty())];
        let _ = poll(&mut polled, Some(&Timespec::default()));
        !polled[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::NVAL)
    }
}

impl AsFd for Parcel {
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
    /// Finds out which end it is.
    ///
    /// # Errors
    /// It is none.
    pub fn of(socket: OwnedFd) -> io::Result<Self> {
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
    /// Looks at all that is in flight, a message at a time, and takes nothing out.  The descriptors
    /// are new ones of this process.  `see` is told, too, whether some could not be opened, as
    /// this process has as many as it may.
    ///
    /// # Errors
    /// Those of recvmsg(2).
    pub fn peek(&self, mut see: impl FnMut(Vec<OwnedFd>, bool)) -> io::Result<()> {
        // Each peek moves it on; it belongs to the open socket, so a predecessor may have moved it.
        set_peek_offset(&self.0, 0)?;
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let mut payload = [IoSliceMut::new(&mut byte)];
            let mut flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            flags.set(RecvFlags::PEEK, !controls::is_on(controls::NO_PEEK));
            let message = match recvmsg(&self.0, &mut payload, &mut ancillary, flags) {
                Ok(message) => message,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if message.bytes == 0 {
                return Ok(());
            }
            let short = message.flags.contains(ReturnFlags::CTRUNC);
            let mut found = Vec::new();
            for part in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                    found.extend(descriptors);
                }
            }
            see(found, short);
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
    fn what_is_in_flight_can_be_seen_again_and_again_and_added_to() {
        let (mut parcel, queue) = Parcel::new(1).unwrap();
        let file = File::open("/dev/null").unwrap();
        assert_eq!(count(&queue), 0);
        parcel.append(&[file.as_fd(); BATCH]).unwrap();
        parcel.append(&[file.as_fd()]).unwrap();
        assert_eq!((count(&queue), count(&queue)), (BATCH + 1, BATCH + 1));
        parcel.append(&[file.as_fd(); 2]).unwrap();
        assert_eq!(count(&queue), BATCH + 3);
        assert_eq!(parcel.entries, BATCH + 3);
    }

    #[test]
    fn a_full_queue_says_so_and_takes_nothing_in_part() {
        let (mut parcel, queue) = Parcel::new(1).unwrap();
        let file = File::open("/dev/null").unwrap();
        let error = loop {
            if let Err(error) = parcel.append(&[file.as_fd()]) {
                break error;
            }
            assert!(parcel.entries < 100_000);
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(count(&queue), parcel.entries);
    }

    #[test]
    fn the_ends_are_told_apart_and_a_lost_queue_is_noticed() {
        for filled in [false, true] {
            let (mut parcel, queue) = Parcel::new(1).unwrap();
            if filled {
                parcel.append(&[io::stdin().as_fd()]).unwrap();
            }
            assert!(parcel.is_held());
            let sender = parcel.sender.try_clone().unwrap();
            assert!(matches!(End::of(sender), Ok(End::Sender(_))));
            let Ok(End::Queue(queue)) = End::of(queue.0) else {
                panic!("not the queue");
            };
            drop(queue);
            assert!(!parcel.is_held());
            assert!(parcel.append(&[io::stdin().as_fd()]).is_err());
        }
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(End::of(stream.into()).is_err());
        assert!(End::of(File::open("/dev/null").unwrap().into()).is_err());
    }
}
