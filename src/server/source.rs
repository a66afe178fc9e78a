//! What a token stands for; total in both directions.
//!
//! The kind stands in the two lowest bits, the number above.  A token carries no generation: an
//! event for a seat that has changed hands costs one wasted read, and nothing else.

use mio::Token;

/// A source of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The pipe behind the signal handlers.
    Signals,
    /// The pipe by which the service manager answers, or what hangs up when it drops something.
    Answer,
    /// The alarm.
    Alarm,
    /// What another loop wakes this one by.
    Crew,
    /// A listener, by its index.
    Listener(usize),
    /// A connection, by its seat.
    Connection(usize),
}

impl From<Source> for Token {
    fn from(source: Source) -> Self {
        match source {
            Source::Connection(key) => Self(key << 2),
            Source::Listener(index) => Self(index << 2 | 1),
            Source::Signals => Self(2),
            Source::Answer => Self(6),
            Source::Alarm => Self(10),
            Source::Crew => Self(14),
        }
    }
}

impl From<Token> for Source {
    fn from(Token(token): Token) -> Self {
        match token & 3 {
            0 => Self::Connection(token >> 2),
            1 => Self::Listener(token >> 2),
            _ if token == 6 => Self::Answer,
            _ if token == 10 => Self::Alarm,
            _ if token == 14 => Self::Crew,
            _ => Self::Signals,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for source in [
            Source::Signals,
            Source::Answer,
            Source::Alarm,
            Source::Crew,
            Source::Listener(0),
            Source::Listener(77),
            Source::Connection(0),
            Source::Connection(1_000_000),
        ] {
            assert_eq!(Source::from(Token::from(source)), source);
        }
    }
}
