//! Serving, leaving or handing over, over: a table, and nothing but a table.

use std::time::Duration;

use crate::echo::tick::Tick;
use crate::system::signals::Request;

/// Where in its life the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Connections come and go.
    Serving,
    /// No more come; those that are here leave.
    Leaving {
        /// When the rest is abandoned.
        until: Tick,
    },
    /// No more come; those that the successor cannot have leave.
    HandingOver {
        /// When the rest is abandoned.
        until: Tick,
    },
    /// Nothing more is done.
    Over,
}

/// What a request asks the server to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop accepting, and ask every connection to leave.
    Leave,
    /// Stop accepting, and leave every connection to the successor.
    HandOver,
    /// Read the configuration again.
    Reload,
    /// Tell the counters.
    Report,
}

impl Life {
    /// Takes a request.
    pub fn on(&mut self, request: Request, now: Tick, stop_timeout: Duration) -> Option<Action> {
        match (*self, request) {
            (Self::Serving, Request::Stop) => {
                *self = Self::Leaving {
                    until: now + stop_timeout,
                };
                Some(Action::Leave)
            }
            (Self::Serving, Request::HandOver) => {
                *self = Self::HandingOver {
                    until: now + stop_timeout,
                };
                Some(Action::HandOver)
            }
            // Asked twice: at once.
            (
                Self::Leaving { .. } | Self::HandingOver { .. },
                Request::Stop | Request::HandOver,
            ) => {
                *self = Self::Over;
                None
            }
            (Self::Serving, Request::Reload) => Some(Action::Reload),
            (Self::Over, _) => None,
            (_, Request::Report) => Some(Action::Report),
            (Self::Leaving { .. } | Self::HandingOver { .. }, Request::Reload) => None,
        }
    }

    /// Notes the time, and whether anything is left to do.
    pub fn tick(&mut self, now: Tick, done: bool) {
        if let Self::Leaving { until } | Self::HandingOver { until } = *self {
            if done || until <= now {
                *self = Self::Over;
            }
        }
    }

    /// When [`Life::tick`] has to be called next.
    #[must_use]
    pub fn next_due(&self) -> Option<Tick> {
        match self {
            Self::Leaving { until } | Self::HandingOver { until } => Some(*until),
            Self::Serving | Self::Over => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let now = Tick::new(1 << 60);
        let span = Duration::from_secs(10);
        let until = now + span;
        let (leaving, handing) = (Life::Leaving { until }, Life::HandingOver { until });
        for (before, request, after, action) in [
            (Life::Serving, Request::Stop, leaving, Some(Action::Leave)),
            (
                Life::Serving,
                Request::Reload,
                Life::Serving,
                Some(Action::Reload),
            ),
            (
                Life::Serving,
                Request::Report,
                Life::Serving,
                Some(Action::Report),
            ),
            (
                Life::Serving,
                Request::HandOver,
                handing,
                Some(Action::HandOver),
            ),
            (handing, Request::Stop, Life::Over, None),
            (handing, Request::HandOver, Life::Over, None),
            (handing, Request::Reload, handing, None),
            (handing, Request::Report, handing, Some(Action::Report)),
            (leaving, Request::HandOver, Life::Over, None),
            (leaving, Request::Stop, Life::Over, None),
            (leaving, Request::Reload, leaving, None),
            (leaving, Request::Report, leaving, Some(Action::Report)),
            (Life::Over, Request::Stop, Life::Over, None),
            (Life::Over, Request::Report, Life::Over, None),
        ] {
            let mut life = before;
            assert_eq!(
                life.on(request, now, span),
                action,
                "{before:?} {request:?}"
            );
            assert_eq!(life, after, "{before:?} {request:?}");
        }
    }

    #[test]
    fn leaving_ends_when_done_or_when_it_took_too_long() {
        let now = Tick::new(1 << 60);
        let until = now + Duration::from_secs(1);
        for (at, done, over) in [(now, false, false), (now, true, true), (until, false, true)] {
            for mut life in [Life::Leaving { until }, Life::HandingOver { until }] {
                life.tick(at, done);
                assert_eq!(life == Life::Over, over);
            }
        }
        let mut life = Life::Serving;
        life.tick(until, true);
        assert_eq!(life, Life::Serving);
    }
}
