//! How a conversation with an echo server can end: one list for the exit statuses, their words and
//! what they usually mean.

use std::io;

/// What a run has found, as the exit status says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Every echo came back as it was sent.
    Ok = 0,
    /// Echoes are missing or late, or a threshold of `--fail-if` was missed.
    Missed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The name has no address.
    Name = 10,
    /// The connection was refused.
    Refused = 11,
    /// The connection was not answered in time.
    TimedOut = 12,
    /// There is no way to the address.
    Unreachable = 13,
    /// The connection was reset.
    Reset = 14,
    /// The peer ended its stream early.
    Closed = 15,
    /// The connection stands, and no echo ever came.
    Silent = 16,
    /// What came back is not what was sent.
    Wrong = 17,
    /// Echoes came, and then no more.
    Stalled = 18,
}

impl Class {
    /// All of them, in the order of their statuses.
    pub const ALL: [Self; 12] = [
        Self::Ok,
        Self::Missed,
        Self::Usage,
        Self::Name,
        Self::Refused,
        Self::TimedOut,
        Self::Unreachable,
        Self::Reset,
        Self::Closed,
        Self::Silent,
        Self::Wrong,
        Self::Stalled,
    ];

    /// Its number, with which `ping` and `probe` exit (EXIT STATUS of tcp-echo-ping(1)).
    #[must_use]
    pub fn status(self) -> u8 {
        self as u8
    }

    /// Its name, as in the JSON summary.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missed => "missed",
            Self::Usage => "usage",
            Self::Name => "name",
            Self::Refused => "refused",
            Self::TimedOut => "time-out",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::Wrong => "wrong",
            Self::Stalled => "stalled",
        }
    }

    /// What it usually means, for the last line of a report.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "every echo came back as it was sent",
            Self::Missed => "echoes are missing or late, or a threshold was missed",
            Self::Usage => "the command line is wrong",
            Self::Name => {
                "the name has no address: usually a spelling mistake, a missing record, or a \
                 resolver that cannot be reached"
            }
            Self::Refused => {
                "the host answers and nothing listens on the port: usually the service is not \
                 running, or a firewall rejects with a reset"
            }
            Self::TimedOut => {
                "the connection was not answered: usually a firewall that drops, a host that is \
                 down, or an accept queue that is full"
            }
            Self::Unreachable => {
                "there is no way to the address: usually a missing route, a host that does not \
                 answer on its link, or a firewall that rejects"
            }
            Self::Reset => {
                "the connection was cut: usually the server or a proxy ended abnormally, or a \
                 middlebox has forgotten the connection"
            }
            Self::Closed => {
                "the peer ended its stream early: usually a limit of the server, a proxy without a \
                 server behind it, or a service that is no echo service"
            }
            Self::Silent => {
                "the connection stands and no echo ever came: usually something other than an echo \
                 service listens there, or a proxy waits for its server"
            }
            Self::Wrong => {
                "what came back is not what was sent: usually a service that is no echo service, or \
                 a proxy that rewrites or mixes up streams"
            }
            Self::Stalled => {
                "echoes came and then stopped: usually the server hangs, a middlebox has forgotten \
                 the connection, or large packets are lost on the way"
            }
        }
    }

    /// What an error of connect(2), send(2) or recv(2) says about the path.
    ///
    /// Without a number of errno(3) it says nothing: [`Class::Unreachable`] then, as there was no
    /// conversation.
    #[must_use]
    pub fn of_error(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Self::Refused,
            Some(libc::ETIMEDOUT) => Self::TimedOut,
            Some(libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED) => Self::Reset,
            // The path of a Unix socket is its name.
            Some(libc::ENOENT | libc::ENOTDIR) => Self::Name,
            _ => Self::Unreachable,
        }
    }

    /// What is left to be said of several runs: the first that was not fine.
    #[must_use]
    pub fn of_all(classes: impl IntoIterator<Item = Self>) -> Self {
        classes
            .into_iter()
            .find(|class| *class != Self::Ok)
            .unwrap_or(Self::Ok)
    }
}

/// The words of the system for an error, without its number.
#[must_use]
pub(crate) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_words_are_distinct_and_in_order() {
        for pair in Class::ALL.windows(2) {
            assert!(pair[0].status() < pair[1].status(), "{pair:?}");
        }
        let words: std::collections::HashSet<_> =
            Class::ALL.iter().map(|class| class.word()).collect();
        assert_eq!(words.len(), Class::ALL.len());
    }

    #[test]
    fn an_errno_has_its_class() {
        for (errno, class) in [
            (libc::ECONNREFUSED, Class::Refused),
            (libc::ETIMEDOUT, Class::TimedOut),
            (libc::EHOSTUNREACH, Class::Unreachable),
            (libc::ENETUNREACH, Class::Unreachable),
            (libc::EPERM, Class::Unreachable),
            (libc::ECONNRESET, Class::Reset),
            (libc::EPIPE, Class::Reset),
            (libc::ENOENT, Class::Name),
        ] {
            assert_eq!(Class::of_error(&io::Error::from_raw_os_error(errno)), class);
        }
    }

    #[test]
    fn the_first_fault_stands_for_all() {
        assert_eq!(Class::of_all([]), Class::Ok);
        assert_eq!(
            Class::of_all([Class::Ok, Class::Reset, Class::Name]),
            Class::Reset
        );
    }
}
