//! The part of preservation that has effects: the descriptor queue and the state file themselves, and the
//! messages to the service manager.  What it does, and when, is decided by [`super::preserver`].

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use super::crash_guard::CrashGuard;
use super::fd_queue::{BATCH, FdQueue, Queue};
use super::preserver::{self, Beginning, Filled, Preserver};
use super::recover::{fd_queue_name, state_file_name};
use super::restore::Restored;
use super::state_file::StateFile;
use crate::echo::time::MonoTime;
use crate::sys::notify::Manager;

/// A queue that is to replace the one in use.
#[derive(Debug)]
struct Rotation {
    queue: FdQueue,
    /// The receiving end, until the manager is asked to store both.
    receiver: Option<Queue>,
    /// The reading end of a pipe whose other end the manager closes to answer, once it is asked.
    answer: Option<OwnedFd>,
}

/// The state file and the descriptor queue of this process, which the manager stores as well.
#[derive(Debug)]
pub(crate) struct Store {
    state_file: Arc<StateFile>,
    queue: Option<FdQueue>,
    rotation: Option<Rotation>,
    /// The generation of the queue that is registered with the poll.
    watched: Option<u64>,
    /// Indexes of the names of listeners that are in use.
    names: BTreeSet<u32>,
    /// The guard of the first full round, until that is over.
    crash_guard: Option<Arc<CrashGuard>>,
}

impl Store {
    /// The store that a process begins with, and the machine that makes its decisions.
    #[must_use]
    pub(crate) fn new(restored: &mut Restored, descriptors: usize) -> (Self, Preserver) {
        let state_file = restored.state_file.clone();
        let queue = restored.queue.take();
        let beginning = Beginning {
            state_file: state_file.generation(),
            unstored: restored.unstored,
            no_file: state_file
                .file()
                .is_none()
                .then(|| state_file.no_file().to_owned()),
            queue: queue.as_ref().map(|queue| preserver::Queue {
                generation: queue.generation,
                entries: queue.entries,
                messages: queue.messages,
            }),
            obsolete: std::mem::take(&mut restored.obsolete),
            unseen: restored.unseen,
            latest: restored.latest,
            preserved: restored.preserved(),
            descriptors,
        };
        let store = Self {
            crash_guard: Some(Arc::new(CrashGuard::new(state_file.clone()))),
            state_file,
            queue,
            rotation: None,
            watched: None,
            names: std::mem::take(&mut restored.listeners),
        };
        (store, Preserver::new(beginning))
    }

    /// The state file, for what concerns the whole of it.
    #[must_use]
    pub(crate) fn state_file(&self) -> &StateFile {
        &self.state_file
    }

    /// How many connections can have a record and a slot at the same time.
    #[must_use]
    pub(crate) fn records(&self) -> usize {
        let geometry = self.state_file.geometry();
        geometry.partitions * geometry.records
    }

    /// Writes down the name of a listener; returns its index.
    pub(crate) fn listener(&mut self, name: &str) -> u32 {
        let index = self.state_file.put_name(name, &self.names);
        self.names.extend(index);
        index.unwrap_or(u32::MAX)
    }

    /// The guard under which each connection is served until the first full round is over.
    #[must_use]
    pub(crate) fn crash_guard(&self) -> Option<&Arc<CrashGuard>> {
        self.crash_guard.as_ref()
    }

    /// Ends the first full round: earlier crashes do not count any more.
    pub(crate) fn end_first_round(&mut self) {
        if let Some(crash_guard) = self.crash_guard.take() {
            crash_guard.forget();
        }
    }

    /// Sends the state file to the manager; returns whether a message could be made.
    pub(crate) fn send_file(&self, manager: &mut Manager, now: MonoTime) -> bool {
        self.state_file.file().is_some_and(|file| {
            manager.store(&state_file_name(self.state_file.generation()), &[file], now)
        })
    }

    /// Makes a queue beside the one in use.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub(crate) fn rotate(&mut self, generation: u64) -> io::Result<()> {
        let (queue, receiver) = FdQueue::new(generation)?;
        self.rotation = Some(Rotation {
            queue,
            receiver: Some(receiver),
            answer: None,
        });
        Ok(())
    }

    /// Puts a slice of the descriptors of all preserved connections into the new queue; `None`: there is
    /// no other slice.
    ///
    /// # Errors
    /// Those of [`FdQueue::append`], and `ENOTCONN` without a new queue.
    pub(crate) fn fill(&mut self, slice: Option<&[BorrowedFd<'_>]>) -> io::Result<Filled> {
        let rotation = self.rotation.as_mut();
        let queue = &mut rotation.ok_or(io::ErrorKind::NotConnected)?.queue;
        let descriptors = slice.unwrap_or_default();
        let batches = descriptors.chunks(BATCH);
        let (entries, messages) = (descriptors.len(), batches.len());
        for batch in batches {
            queue.append(batch)?;
        }
        Ok(Filled {
            entries,
            messages,
            whole: slice.is_none(),
        })
    }

    /// Sends the new queue to the manager, and asks for an answer.
    ///
    /// # Errors
    /// Those of pipe2(2); nothing was sent then.
    pub(crate) fn offer(&mut self, manager: &mut Manager, now: MonoTime) -> io::Result<()> {
        let Some(rotation) = &mut self.rotation else {
            return Ok(());
        };
        let (answer, question) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let name = fd_queue_name(rotation.queue.generation);
        // One after the other, as a message has no order: if there is room for one only, it is not
        // the receiving end, and that shows.
        manager.store(&name, &[rotation.queue.as_fd()], now);
        if let Some(receiver) = rotation.receiver.take() {
            manager.store(&name, &[receiver.as_fd()], now);
        }
        manager.barrier(question, now);
        rotation.answer = Some(answer);
        Ok(())
    }

    /// Uses the new queue instead of the old one.
    pub(crate) fn promote(&mut self) {
        if let Some(rotation) = self.rotation.take() {
            self.queue = Some(rotation.queue);
        }
    }

    /// Forgets the new queue.
    pub(crate) fn drop_rotation(&mut self) {
        self.rotation = None;
    }

    /// Forgets the queue.
    pub(crate) fn drop_queue(&mut self) {
        self.queue = None;
    }

    /// Puts up to [`BATCH`] descriptors into the queue: all of them or none.  Then they go into the new
    /// queue as well, if there is one; returns why they do not, if so.
    ///
    /// # Errors
    /// Those of [`FdQueue::append`], and `ENOTCONN` without a queue.
    pub(crate) fn append(
        &mut self,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<Option<io::Error>> {
        let queue = self.queue.as_mut();
        let queue = queue.ok_or(io::ErrorKind::NotConnected)?;
        queue.append(descriptors)?;
        let rotation = self.rotation.as_mut();
        Ok(rotation.and_then(|rotation| rotation.queue.append(descriptors).err()))
    }

    /// The pipe that the manager closes to answer.
    #[must_use]
    pub(crate) fn answer(&self) -> Option<BorrowedFd<'_>> {
        let answer = self.rotation.as_ref()?.answer.as_ref();
        answer.map(AsFd::as_fd)
    }

    /// Whether the manager has answered, or does within `span`.
    #[must_use]
    pub(crate) fn is_answered(&self, span: Duration) -> bool {
        let Some(answer) = self.answer() else {
            return false;
        };
        let mut polled = [PollFd::new(&answer, PollFlags::IN)];
        let _ = poll(&mut polled, Timespec::try_from(span).ok().as_ref());
        polled[0].revents().contains(PollFlags::HUP)
    }

    /// Whether the manager holds the new queue, as far as can be seen.
    #[must_use]
    pub(crate) fn is_rotation_held(&self) -> bool {
        let rotation = self.rotation.as_ref();
        rotation.is_some_and(|rotation| rotation.queue.is_held())
    }

    /// Whether the manager holds the queue, as far as can be seen.
    #[must_use]
    pub(crate) fn is_held(&self) -> bool {
        self.queue.as_ref().is_some_and(FdQueue::is_held)
    }

    /// The sending end of the queue, which hangs up when the manager drops the other; once for each
    /// queue.
    #[must_use]
    pub(crate) fn unwatched(&mut self) -> Option<RawFd> {
        let queue = self.queue.as_ref()?;
        let watched = self.watched.replace(queue.generation);
        (watched != Some(queue.generation)).then(|| queue.as_fd().as_raw_fd())
    }
}
