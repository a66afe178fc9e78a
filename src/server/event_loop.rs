//! The loop that the main thread and every worker run: wait, take the events, act on them.
//!
//! One such pass is a *round*.  The clock is read once a round, at its beginning, and everything in the
//! round uses that reading.

use std::io;
use std::time::Duration;

use mio::event::Event;
use mio::{Events, Poll};

/// The most events that are taken from the kernel in one round.
const EVENTS: usize = 1024;

/// What a thread does in its rounds; the methods are called in the order in which they stand.
pub(crate) trait Rounds {
    /// Whether there is another round.
    fn goes_on(&self) -> bool;

    /// How long the poll may wait for an event; `None`: without a limit.
    fn wait(&mut self) -> Option<Duration>;

    /// Begins a round; `announced`: there are events.
    fn begin(&mut self, announced: bool);

    /// Takes one event; called once for each.
    fn take(&mut self, event: &Event);

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
pub(crate) fn run(poll: &mut Poll, rounds: &mut impl Rounds) -> io::Result<()> {
    let mut events = Events::with_capacity(EVENTS);
    while rounds.goes_on() {
        let wait = rounds.wait();
        match poll.poll(&mut events, wait) {
            // A signal handler has run, and its socket is readable in the next round.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => result?,
        }
        rounds.begin(!events.is_empty());
        for event in &events {
            rounds.take(event);
        }
        rounds.finish()?;
    }
    Ok(())
}
