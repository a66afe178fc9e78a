//! The life of the server: it serves, then it stops or hands over, then it is over.
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
    /// Stop accepting, and drain every connection.
    Stop,
    /// Stop accepting, and preserve every connection for the next process.
    HandOver,
    /// Read the configuration again.
    Reload,
    /// Report the counters.
    Report,
}

impl Life {
    /// Changes the state as a request asks; returns what the server has to do.  `stop_timeout` is how
    /// long a stop or a hand-over may take.
    pub(crate) fn on(
        &mut self,
        request: Request,
        now: MonoTime,
        stop_timeout: Duration,
    ) -> Option<Action> {
        let until = now + stop_timeout;
        match (*self, request) {
            (Self::Serving, Request::Stop) => {
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
            (Self::Over(_), _) => None,
            (_, Request::Report) => Some(Action::Report),
            (Self::Stopping { .. } | Self::HandingOver { .. }, Request::Reload) => None,
        }
    }

    /// Ends a stop or a hand-over when it is `done`, or when its time is over.
    pub(crate) fn on_time(&mut self, now: MonoTime, done: bool) {
        match *self {
            Self::Stopping { until } if done || until <= now => *self = Self::Over(How::Stopped),
            Self::HandingOver { until } if done || until <= now => {
                *self = Self::Over(How::HandedOver);
            }
            _ => {}
        }
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

    /// Turns a hand-over into a stop that may take until then.
    pub(crate) fn stop_until(&mut self, until: MonoTime) {
        if matches!(self, Self::HandingOver { .. } | Self::Stopping { .. }) {
            *self = Self::Stopping { until };
        }
    }

    /// Ends an instance for passed connections, all of which are over.
    pub(crate) fn finish(&mut self) {
        *self = Self::Over(How::Stopped);
    }

    /// When [`Life::on_time`] has to be called next.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<MonoTime> {
        match self {
            Self::Stopping { until } | Self::HandingOver { until } => Some(*until),
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
        let span = Duration::from_secs(10);
        let until = now + span;
        let (stopping, handing) = (Life::Stopping { until }, Life::HandingOver { until });
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
                life.on(request, now, span),
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
        for (at, done, over) in [(now, false, false), (now, true, true), (until, false, true)] {
            for mut life in [Life::Stopping { until }, Life::HandingOver { until }] {
                life.on_time(at, done);
                assert_eq!(matches!(life, Life::Over(_)), over);
            }
        }
        let mut life = Life::Serving;
        life.on_time(until, true);
        assert_eq!(life, Life::Serving);
    }
}
