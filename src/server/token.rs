//! What the token of an event stands for.
//!
//! The kind stands in the two lowest bits of a token, the number in those above.  Every [`EventSource`]
//! has a token, and every token an event source, so no conversion can fail.  A token does not say
//! which connection had the key when the event occurred: an event that arrives after the key was given
//! to another connection costs one read that finds nothing.

use mio::Token;

/// What is registered with a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventSource {
    /// The socket that the signal handlers write to.
    Signals,
    /// A descriptor of which the service manager holds the other end: it is readable when the manager has
    /// answered, and hangs up when the manager has dropped that end.
    Manager,
    /// The timer that is set to the earliest deadline ([`super::deadline_timer`]).
    Deadline,
    /// The eventfd(2) by which another loop wakes this one.
    Worker,
    /// A listener, by its index in [`super::acceptor::Acceptor`].
    Listener(usize),
    /// A connection, by its key in [`crate::echo::connections::Connections`].
    Connection(usize),
    /// The listeners for metrics.
    Scraper,
    /// A request for metrics, by its key in [`super::scrapes::Scrapes`].
    Scrape(usize),
}

impl From<EventSource> for Token {
    fn from(source: EventSource) -> Self {
        match source {
            EventSource::Connection(key) => Self(key << 2),
            EventSource::Listener(index) => Self(index << 2 | 1),
            EventSource::Signals => Self(2),
            EventSource::Manager => Self(6),
            EventSource::Deadline => Self(10),
            EventSource::Worker => Self(14),
            EventSource::Scraper => Self(18),
            EventSource::Scrape(key) => Self(key << 2 | 3),
        }
    }
}

impl From<Token> for EventSource {
    fn from(Token(token): Token) -> Self {
        match token & 3 {
            0 => Self::Connection(token >> 2),
            1 => Self::Listener(token >> 2),
            3 => Self::Scrape(token >> 2),
            _ if token == 6 => Self::Manager,
            _ if token == 10 => Self::Deadline,
            _ if token == 14 => Self::Worker,
            _ if token == 18 => Self::Scraper,
            _ => Self::Signals,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_becomes_a_token_and_the_same_source_again() {
        for source in [
            EventSource::Signals,
            EventSource::Manager,
            EventSource::Deadline,
            EventSource::Worker,
            EventSource::Listener(0),
            EventSource::Listener(77),
            EventSource::Connection(0),
            EventSource::Connection(1_000_000),
            EventSource::Scraper,
            EventSource::Scrape(0),
            EventSource::Scrape(7),
        ] {
            assert_eq!(EventSource::from(Token::from(source)), source);
        }
    }
}
