//! The life of the server: it serves, perhaps as a lame duck at last, then it stops or hands over, then
//! it is over.
//!
//! What a request (a signal) does depends on the state, by the table in [`Life::on`].  No other module
//! assigns a [`Life`], so every transition stands in this file.

use std::time::Duration;

use crate::echo::time::MonoTime;
use crate::sys::signals::Request;

/// The state of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Connections are accepted and served.
    Serving,
    /// Connections are accepted and served, but health checks are answered so that a balancer sends no
    /// more of them; then the server stops.
    LameDuck {
        /// When the stop begins (`lame-duck`).
        until: MonoTime,
    },
    /// No connection is accepted; all that are open are drained.
    Stopping {
        /// When the connections that are still open are closed (`stop-timeout`).
        until: MonoTime,
    },
    /// No connection is accepted; those that cannot be preserved are drained, the others served.
    HandingOver {
        /// When the connections that are not preserved are closed (`stop-timeout`).
        until: MonoTime,
    },
    /// The loops end.
    Over(How),
}

/// What becomes of the connections that are open when the loops end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// All are closed.
    Stopped,
    /// The next process goes on with those that are preserved.
    HandedOver,
}

/// What the server has to do because of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Announce the stop to balancers, and serve on.
    Announce,
    /// Stop accepting, and drain every connection.
    Stop,
    /// Stop accepting, and preserve every connection for the next process.
    HandOver,
    /// Read the configuration again.
    Reload,
    /// Report the counters.
    Report,
    /// Let balancers send no more connections, or let them send some again.
    Drain(bool),
}

/// How long the parts of an end may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spans {
    /// How long a stop is announced before it begins.
    pub lame_duck: Duration,
    /// How long a stop or a hand-over may take.
    pub stop_timeout: Duration,
}

impl Life {
    /// Changes the state as a request asks; returns what the server has to do.
    pub(crate) fn on(&mut self, request: Request, now: MonoTime, spans: Spans) -> Option<Action> {
        let until = now + spans.stop_timeout;
        match (*self, request) {
            (Self::Serving, Request::Stop) => Some(self.begin_stop(now, spans)),
            // A second request to end does not wait for balancers any longer.
            (Self::LameDuck { .. }, Request::Stop | Request::HandOver) => {
                *self = Self::Stopping { until };
                Some(Action::Stop)
            }
            (Self::Serving, Request::HandOver) => {
                *self = Self::HandingOver { until };
                Some(Action::HandOver)
            }
            // A second request to end does not wait for connections any longer.
            (Self::Stopping { .. }, Request::Stop | Request::HandOver) => {
                *self = Self::Over(How::Stopped);
                None
            }
            (Self::HandingOver { .. }, Request::Stop | Request::HandOver) => {
                *self = Self::Over(How::HandedOver);
                None
            }
            (Self::Serving, Request::Reload) => Some(Action::Reload),
            (Self::Serving, Request::Drain) => Some(Action::Drain(true)),
            (Self::Serving, Request::Undrain) => Some(Action::Drain(false)),
            (Self::Over(_), _) => None,
            (_, Request::Report) => Some(Action::Report),
            (
                Self::LameDuck { .. } | Self::Stopping { .. } | Self::HandingOver { .. },
                Request::Reload | Request::Drain | Request::Undrain,
            ) => None,
        }
    }

    /// Begins to stop: as a lame duck, if that takes any time.
    pub(crate) fn begin_stop(&mut self, now: MonoTime, spans: Spans) -> Action {
        if spans.lame_duck.is_zero() {
            *self = Self::Stopping {
                until: now + spans.stop_timeout,
            };
            return Action::Stop;
        }
        *self = Self::LameDuck {
            until: now + spans.lame_duck,
        };
        Action::Announce
    }

    /// Whether connections are accepted and served, and preserved.
    #[must_use]
    pub(crate) fn is_serving(self) -> bool {
        matches!(self, Self::Serving | Self::LameDuck { .. })
    }

    /// Ends a stop or a hand-over when it is `done`, or when its time is over; returns what the server
    /// has to do at the end of a lame duck.
    pub(crate) fn on_time(&mut self, now: MonoTime, done: bool, spans: Spans) -> Option<Action> {
        match *self {
            Self::LameDuck { until } if until <= now => {
                *self = Self::Stopping {
                    until: now + spans.stop_timeout,
                };
                return Some(Action::Stop);
            }
            Self::Stopping { until } if done || until <= now => *self = Self::Over(How::Stopped),
            Self::HandingOver { until } if done || until <= now => {
                *self = Self::Over(How::HandedOver);
            }
            _ => {}
        }
        None
    }

    /// Turns a hand-over into a stop, as the service manager stores nothing; returns whether there was
    /// a hand-over.
    pub(crate) fn stop_instead(&mut self) -> bool {
        if let Self::HandingOver { until } = *self {
            *self = Self::Stopping { until };
            return true;
        }
        false
    }

    /// Ends an instance for passed connections, all of which are over.
    pub(crate) fn finish(&mut self) {
        *self = Self::Over(How::Stopped);
    }

    /// When [`Life::on_time`] has to be called next.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<MonoTime> {
        match self {
            Self::LameDuck { until } | Self::Stopping { until } | Self::HandingOver { until } => {
                Some(*until)
            }
            Self::Serving | Self::Over(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_does_in_each_state_what_the_table_says() {
        let now = MonoTime::new(1 << 60);
        let [none, some] = [0, 5].map(|seconds| Spans {
            lame_duck: Duration::from_secs(seconds),
            stop_timeout: Duration::from_secs(10),
        });
        let until = now + some.stop_timeout;
        let (stopping, handing) = (Life::Stopping { until }, Life::HandingOver { until });
        let duck = Life::LameDuck {
            until: now + some.lame_duck,
        };
        let mut life = Life::Serving;
        assert_eq!(life.on(Request::Stop, now, some), Some(Action::Announce));
        assert_eq!(life, duck);
        let (stopped, handed_over) = (Life::Over(How::Stopped), Life::Over(How::HandedOver));
        for (before, request, after, action) in [
            (Life::Serving, Request::Stop, stopping, Some(Action::Stop)),
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
            (
                Life::Serving,
                Request::Drain,
                Life::Serving,
                Some(Action::Drain(true)),
            ),
            (
                Life::Serving,
                Request::Undrain,
                Life::Serving,
                Some(Action::Drain(false)),
            ),
            (duck, Request::Stop, stopping, Some(Action::Stop)),
            (duck, Request::HandOver, stopping, Some(Action::Stop)),
            (duck, Request::Reload, duck, None),
            (duck, Request::Undrain, duck, None),
            (duck, Request::Report, duck, Some(Action::Report)),
            (handing, Request::Undrain, handing, None),
            (handing, Request::Stop, handed_over, None),
            (handing, Request::HandOver, handed_over, None),
            (handing, Request::Reload, handing, None),
            (handing, Request::Report, handing, Some(Action::Report)),
            (stopping, Request::HandOver, stopped, None),
            (stopping, Request::Stop, stopped, None),
            (stopping, Request::Reload, stopping, None),
            (stopping, Request::Report, stopping, Some(Action::Report)),
            (stopped, Request::Stop, stopped, None),
            (stopped, Request::Report, stopped, None),
        ] {
            let mut life = before;
            assert_eq!(
                life.on(request, now, none),
                action,
                "{before:?} {request:?}"
            );
            assert_eq!(life, after, "{before:?} {request:?}");
        }
    }

    #[test]
    fn a_hand_over_without_a_store_becomes_a_stop_and_nothing_else_does() {
        let until = MonoTime::new(1 << 60);
        let mut life = Life::HandingOver { until };
        assert!(life.stop_instead());
        assert_eq!(life, Life::Stopping { until });
        assert!(!life.stop_instead());
    }

    #[test]
    fn a_stop_ends_when_it_is_done_or_when_its_time_is_over() {
        let now = MonoTime::new(1 << 60);
        let until = now + Duration::from_secs(1);
        let spans = Spans {
            lame_duck: Duration::from_secs(5),
            stop_timeout: Duration::from_secs(10),
        };
        for (at, done, over) in [(now, false, false), (now, true, true), (until, false, true)] {
            for mut life in [Life::Stopping { until }, Life::HandingOver { until }] {
                assert_eq!(life.on_time(at, done, spans), None);
                assert_eq!(matches!(life, Life::Over(_)), over);
            }
        }
        let mut life = Life::Serving;
        assert_eq!(life.on_time(until, true, spans), None);
        assert_eq!(life, Life::Serving);
        // A lame duck without any connection waits for its time all the same.
        let mut life = Life::LameDuck { until };
        assert_eq!(life.on_time(now, true, spans), None);
        assert_eq!(life, Life::LameDuck { until });
        assert_eq!(life.on_time(until, false, spans), Some(Action::Stop));
        let until = until + spans.stop_timeout;
        assert_eq!(life, Life::Stopping { until });
    }
}
