//! What a turn is told, how it ends, and what has to be waited for then.

use super::reason::Reason;

/// What the connection waits for; never both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing is owed: for input.
    Read,
    /// Something is owed: for room in the send queue.
    Write,
}

/// What an event said besides "try".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// A short read has drained the stream.
    Plain,
    /// It may not have: read on to the end or to `WouldBlock`.
    ReadOn,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing more can be done until the kernel announces what `Connection::want` says.
    Blocked,
    /// There may be more to do, but it is somebody else's turn.  Nothing will be announced.
    Yield,
    /// The conversation is over.
    Done(Reason),
}
