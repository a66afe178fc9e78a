//! One connection of a session, and those that were in its place before.

use std::time::Duration;

use super::conversation::Conversation;
use crate::client::outcome::Class;
use crate::client::pattern::Stream;
use crate::sys::tcp_info::TcpInfo;

/// How long a connection whose bytes are wrong may go on, to see where the bytes belong.
const SEARCH: Duration = Duration::from_millis(300);

/// Bytes after the first wrong one that are looked at.
const LOOKED_AT: u64 = 64 * 1024;

/// Bytes of what is wrong that are shown.
const SHOWN: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// No connection, until this time.
    Waiting(Duration),
    /// The other side's queue is full, and is tried again at this time.
    Queuing(Duration),
    Connecting,
    Open,
    /// No connection, and none to come.
    Over,
}

/// A connection, and those that were in its place.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) state: State,
    /// When connecting began.
    pub(super) since: Duration,
    pub(super) conversation: Conversation,
    /// Since when there is no contact.
    pub(super) lost: Option<Duration>,
    /// The failure that was reported last.
    pub(super) failed: Option<Class>,
    /// A pause was reported.
    pub(super) paused: bool,
    pub(super) wrong: Option<WrongBytes>,
    pub(super) info: Option<TcpInfo>,
    /// Segments sent again, as seen at the last look.
    pub(super) sent_again: u64,
    /// Those of them that no echo was reported with.
    pub(super) again: u64,
    /// When it was last seen that something was sent again.
    pub(super) disturbed: Option<Duration>,
    /// The longest round trip, in nanoseconds.
    pub(super) longest: u64,
    pub(super) missing: u64,
}

#[derive(Debug)]
pub(super) struct WrongBytes {
    pub(super) since: Duration,
    /// Bytes received when it was noticed.
    pub(super) at: u64,
    pub(super) shown: Vec<u8>,
}

/// What is to be done with a connection by the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing, until this time, if any.
    Wait(Option<Duration>),
    /// Connect.
    Connect,
    /// Give up connecting.
    TimeOut,
    /// Ask the kernel why an echo is overdue.
    Look,
    /// Say what is wrong with the bytes.
    Conclude,
}

impl Slot {
    /// A slot that does not connect by itself.
    pub(super) fn new(stream: Stream, size: usize) -> Self {
        Self {
            state: State::Waiting(Duration::MAX),
            since: Duration::ZERO,
            conversation: Conversation::new(stream, size),
            lost: None,
            failed: None,
            paused: false,
            wrong: None,
            info: None,
            sent_again: 0,
            again: 0,
            disturbed: None,
            longest: 0,
            missing: 0,
        }
    }

    /// Whether messages can be sent.
    pub(super) fn may_send(&self) -> bool {
        self.state == State::Open && self.wrong.is_none()
    }

    /// Whether there is a first connection, or may be one.
    pub(super) fn is_hopeful(&self) -> bool {
        match self.state {
            State::Open | State::Connecting | State::Queuing(_) => true,
            State::Waiting(_) => self.lost.is_none(),
            State::Over => false,
        }
    }

    /// Takes what came; whether all of it is right.
    pub(super) fn feed(&mut self, bytes: &[u8], now: Duration) -> bool {
        if let Some(wrong) = &self.wrong {
            if self.conversation.received() - wrong.at < LOOKED_AT {
                self.conversation.feed(bytes);
            }
            return false;
        }
        let at = self.conversation.received();
        if self.conversation.feed(bytes) {
            return true;
        }
        self.wrong = Some(WrongBytes {
            since: now,
            at,
            shown: bytes[..bytes.len().min(SHOWN)].to_vec(),
        });
        false
    }

    /// What is to be done by the clock: an attempt is given up after `timeout`, and an echo is overdue
    /// after `pause`.
    pub(super) fn next(&self, now: Duration, timeout: Duration, pause: Duration) -> Next {
        let at = |time: Duration, next| {
            if now >= time {
                next
            } else {
                Next::Wait(Some(time))
            }
        };
        match self.state {
            State::Over => Next::Wait(None),
            State::Waiting(until) | State::Queuing(until) => at(until, Next::Connect),
            State::Connecting => at(self.since + timeout, Next::TimeOut),
            State::Open => match (&self.wrong, self.conversation.oldest()) {
                (Some(wrong), _) => at(wrong.since + SEARCH, Next::Conclude),
                (None, Some((_, begun))) if !self.paused => at(begun + pause, Next::Look),
                _ => Next::Wait(None),
            },
        }
    }
}
