//! Taking the PROXY header before the stream of a connection.
//!
//! The header is not read until it is complete: until then its bytes stay in the queue of the kernel,
//! and are looked at again whenever more have come (`MSG_PEEK`, recv(2)).  So nothing of an incomplete
//! header has to be remembered, by this process or the next.  Once it is complete, what it says is
//! written into the connection's record, if it has one, and then exactly its bytes are read, as a rule by
//! one call.  After a crash in between the kernel has counted no byte as read, and the next process looks
//! at the header again; after the read it has counted all of them, and the record says how many that are.

use std::io::{self, ErrorKind, Read};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};

use super::stream::{ProxyHeader, Stream};
use crate::echo::buffers::BufferStore;
use crate::echo::end_reason::EndReason;
use crate::preserve::partition::Partition;
use crate::proxy_header::{Header, Invalid, MAX_LENGTH, parse};

/// What a look at the header has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It is not complete; the kernel announces when more has come.
    Missing,
    /// It was taken.
    Taken,
    /// The connection is to be closed.
    Over(EndReason),
}

/// Looks at the header of a connection that the store knows as `owner` (0: not at all), and takes it if
/// it is complete.
pub(crate) fn take(stream: &mut Stream, owner: u64, partition: &mut Partition) -> Progress {
    // What is in the scratch from here on belongs to no connection.
    partition.begin_read(0, 0);
    let peeked = loop {
        let buffer = &mut partition.scratch()[..MAX_LENGTH];
        match recv(&*stream, buffer, RecvFlags::PEEK).map(|(count, _)| count) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result,
        }
    };
    let found = match peeked {
        // Most such connections are checks of whether the port is open.
        Ok(0) => return Progress::Over(EndReason::PeerClosed),
        Ok(count) => parse(&partition.scratch()[..count]),
        Err(rustix::io::Errno::AGAIN) => return Progress::Missing,
        Err(errno) => return Progress::Over(EndReason::of(&errno.into())),
    };
    match found {
        Ok(Some(header)) => match take_complete(stream, owner, partition, header) {
            Ok(()) => Progress::Taken,
            Err(error) => Progress::Over(EndReason::of(&error)),
        },
        Ok(None) => match has_ended(stream) {
            None => Progress::Missing,
            Some(EndReason::PeerClosed) => refuse(stream, Invalid("the connection ends within it")),
            Some(reason) => Progress::Over(reason),
        },
        Err(invalid) => refuse(stream, invalid),
    }
}

fn refuse(stream: &mut Stream, invalid: Invalid) -> Progress {
    stream.header = ProxyHeader::Invalid(Box::new(invalid));
    Progress::Over(EndReason::HeaderInvalid)
}

/// Records a complete header, and reads its bytes.
fn take_complete(
    stream: &mut Stream,
    owner: u64,
    partition: &mut Partition,
    header: Header,
) -> io::Result<()> {
    let mut left = usize::from(header.length);
    if let Some(record_id) = stream.record_id {
        partition.record_header(record_id, owner, (&header).into())?;
    }
    while left > 0 {
        match stream.read(&mut partition.scratch()[..left]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => left -= count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.header = ProxyHeader::Taken(Box::new(header));
    Ok(())
}

/// How the peer has ended the connection behind what has arrived, if it has.  The bytes that are there
/// hide it from recv(2).
fn has_ended(stream: &Stream) -> Option<EndReason> {
    let mut descriptor = [PollFd::new(stream, PollFlags::IN | PollFlags::RDHUP)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut descriptor, Some(&at_once)).ok()?;
    let seen = descriptor[0].revents();
    if seen.contains(PollFlags::ERR) {
        return Some(EndReason::Reset);
    }
    seen.contains(PollFlags::RDHUP)
        .then_some(EndReason::PeerClosed)
}
