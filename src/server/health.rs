//! Answers to health checks: one line for each connection of a health listener, then its end.
//!
//! The line has the words of HAProxy's agent-check (its configuration manual, section 5.2) and ends
//! with a newline.  It always names the whole state: HAProxy keeps what an answer does not mention, so
//! "up" alone would not end a drain.
//!
//! Nothing here can hold the loop up.  The line fits into the send queue of a new socket, so it is
//! written at once or not at all.  Then the socket stays open for a moment without being looked at:
//! a close with unread input, or before input that is on its way (agent-send), would become a reset,
//! which can destroy the line.  The number of such sockets has a bound, and the oldest is closed
//! where it is reached.

use std::collections::VecDeque;
use std::io::{Read, Write};

use super::lifecycle::Life;
use super::stream::Stream;
use crate::echo::LINGER;
use crate::echo::stream::Duplex;
use crate::echo::time::MonoTime;

/// The answer of a service that should get new connections.
const READY: &str = "up ready\n";

/// The most answered connections that are open at a time.  At 1000 checks a second each is open for
/// 64 ms at least.
pub(crate) const HELD: usize = 64;

/// Reads of input before a close, 1 KiB each.  A peer that sends more is no health check.
const READS: usize = 16;

/// The connections of the health listeners.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Connections that were answered by this process.
    pub checks: u64,
    /// Whether the service is drained by request.
    pub drained: bool,
    /// Answered connections, each with the time of its close; the oldest first.
    held: VecDeque<(MonoTime, Stream)>,
}

impl Health {
    /// Whether the service should get new connections.
    #[must_use]
    pub(crate) fn is_ready(&self, life: Life) -> bool {
        self.line(life) == READY
    }

    /// What a check is answered.
    #[must_use]
    pub(crate) fn line(&self, life: Life) -> &'static str {
        match life {
            Life::Stopping { .. } | Life::Over(_) => "down#stopping\n",
            Life::LameDuck { .. } => "up drain\n",
            _ if self.drained => "up drain\n",
            _ => READY,
        }
    }

    /// Answers a check.
    pub(crate) fn answer(&mut self, mut stream: Stream, life: Life, now: MonoTime) {
        self.checks += 1;
        // After an error the peer is gone.
        let line = self.line(life).as_bytes();
        if stream.write(line).is_err() || stream.finish_write().is_err() {
            return;
        }
        if self.held.len() == HELD {
            self.close_first();
        }
        self.held.push_back((now + LINGER, stream));
    }

    /// Closes the connections whose time has come.
    pub(crate) fn on_time(&mut self, now: MonoTime) {
        while self.next_due().is_some_and(|due| due <= now) {
            self.close_first();
        }
    }

    /// When [`Health::on_time`] has to be called next.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<MonoTime> {
        self.held.front().map(|(due, _)| *due)
    }

    fn close_first(&mut self) {
        if let Some((_, mut stream)) = self.held.pop_front() {
            let mut unread = [0; 1024];
            for _ in 0..READS {
                if stream.read(&mut unread).map_or(true, |count| count == 0) {
                    break;
                }
            }
        }
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        while !self.held.is_empty() {
            self.close_first();
        }
    }
}
