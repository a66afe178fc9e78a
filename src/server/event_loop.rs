//! The loop that the main thread and every worker run: wait, take the events, act on them.
//!
//! One such pass is a *round*.  The clock is read once a round, at its beginning, and everything in the
//! round uses that reading.
//!
//! mio registers what is polled, and the wait itself is a direct system call, for the reason that
//! [`super::stream`] gives.  On Linux mio keeps nothing of a wait but the list of events.

use std::io;
use std::time::Duration;

use mio::{Registry, Token};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::time::Timespec;

/// The most events that are taken from the kernel in one round.
const EVENTS: usize = 1024;

/// The longest time-out of a wait, well within the milliseconds in an int that epoll_wait(2) takes.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What the kernel announces (epoll_ctl(2)).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announced {
    /// The token with which the source was registered.
    pub token: Token,
    flags: epoll::EventFlags,
}

impl Announced {
    /// Whether there may be more input behind what a short read returns: the peer's end, or what
    /// follows an urgent mark.
    #[must_use]
    pub(crate) fn is_read_on(self) -> bool {
        use epoll::EventFlags;
        let more = EventFlags::RDHUP | EventFlags::HUP | EventFlags::PRI;
        self.flags.intersects(more)
    }
}

/// What a thread does in its rounds; the methods are called in the order in which they stand.
pub(crate) trait Rounds {
    /// Whether there is another round.
    fn goes_on(&self) -> bool;

    /// How long the poll may wait for an event; `None`: without a limit.
    fn wait(&mut self) -> Option<Duration>;

    /// Begins a round; `announced`: there are events.
    fn begin(&mut self, announced: bool);

    /// Takes one event; called once for each.
    fn take(&mut self, event: Announced);

    /// Acts on the events, and on what else is due.
    ///
    /// # Errors
    /// Those of epoll_wait(2) in another loop of the process.
    fn finish(&mut self) -> io::Result<()>;
}

/// Runs rounds until [`Rounds::goes_on`] says that there is no other.
///
/// # Errors
/// Those of epoll_wait(2), except for EINTR, and those of [`Rounds::finish`].
#[inline]
pub(crate) fn run(registry: &Registry, rounds: &mut impl Rounds) -> io::Result<()> {
    let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS);
    while rounds.goes_on() {
        // A conversion of a day cannot fail.
        let wait = rounds.wait().map(|wait| wait.min(DAY));
        let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
        events.clear();
        match epoll::wait(registry, spare_capacity(&mut events), wait.as_ref()) {
            // A signal handler has run, and its socket is readable in the next round.
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        rounds.begin(!events.is_empty());
        for event in &events {
            let (data, flags) = (event.data, event.flags);
            let token = Token(usize::try_from(data.u64()).unwrap_or(usize::MAX));
            rounds.take(Announced { token, flags });
        }
        rounds.finish()?;
    }
    Ok(())
}
