//! The crashes of processes that had just started, and which connection they are blamed on.
//!
//! If serving a certain connection crashes the process, the next process restores that connection and
//! crashes as well.  So until a process has served every connection once for which it found something
//! to do, and has been through a round of its loop (its *first full round*), it writes the cookie of
//! each connection into the state file before it serves it.  After a crash the next process finds the
//! connection that was being served.  One that was at several crashes in a row
//! ([`MAX_CRASHES_BLAMED`]) is closed instead of restored.  Whatever the reason is, after
//! [`MAX_CRASHES`] crashes in a row all connections are closed.
//!
//! There is one word for the cookie, so in the first round one connection is served at a time, however
//! many workers there are.

use std::sync::{Arc, Mutex, MutexGuard};

use super::state_file::StateFile;
use crate::sys::lock::lock;

/// At this many crashes in a row, each before the first full round, all connections are closed.  It is
/// more than a test with repeated kills causes within its time, and less than `StartLimitBurst=` of
/// the unit.
pub(crate) const MAX_CRASHES: u64 = 100;

/// At this many crashes in a row, each while the same connection was being served, that connection is
/// closed.  One may be an accident, and so may two: a cause that has nothing to do with connections
/// crashes the process while some connection is served, too.
pub(crate) const MAX_CRASHES_BLAMED: u64 = 3;

/// What the state file says of crashes before the first full round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CrashHistory {
    /// Starts in a row that did not get through a full round.
    pub starts: u64,
    /// The cookie of the connection that is being served; 0: none.
    pub current: u64,
    /// The cookie of the connection that was being served at the last crash; 0: none.
    pub suspect: u64,
    /// At how many crashes in a row it was.
    pub suspected: u64,
}

impl CrashHistory {
    /// Reads it from a state file.
    pub(super) fn read(state_file: &StateFile) -> Self {
        let crashes = &state_file.header().crashes;
        Self {
            starts: crashes.starts.get(),
            current: crashes.current.get(),
            suspect: crashes.suspect.get(),
            suspected: crashes.suspected.get(),
        }
    }

    /// Writes it to a state file.
    pub(super) fn write(&self, state_file: &StateFile) {
        let crashes = &state_file.header().crashes;
        crashes.starts.set(self.starts);
        crashes.current.set(self.current);
        crashes.suspect.set(self.suspect);
        crashes.suspected.set(self.suspected);
    }

    /// What it becomes when the next process starts; `planned`: the previous process has handed its
    /// connections over, and did not crash.
    pub(super) fn after_start(self, planned: bool) -> Self {
        if planned || self.starts == 0 {
            return Self {
                starts: 1,
                suspect: 0,
                ..self
            };
        }
        let suspected = if self.current == self.suspect {
            self.suspected
        } else {
            0
        };
        Self {
            starts: self.starts.saturating_add(1),
            current: self.current,
            suspect: self.current,
            suspected: suspected.saturating_add(1),
        }
    }

    /// The cookie of the connection that is to be closed, as it was being served at
    /// [`MAX_CRASHES_BLAMED`] crashes in a row.
    pub(super) fn culprit(&self) -> Option<u64> {
        (self.suspect != 0 && self.suspected >= MAX_CRASHES_BLAMED).then_some(self.suspect)
    }
}

/// Writes down which connection is being served, until the first full round is over.
#[derive(Debug)]
pub(crate) struct CrashGuard {
    state_file: Arc<StateFile>,
    serving: Mutex<()>,
}

impl CrashGuard {
    pub(super) fn new(state_file: Arc<StateFile>) -> Self {
        let serving = Mutex::new(());
        Self {
            state_file,
            serving,
        }
    }

    /// Waits until no other connection is being served, and writes down the cookie of the connection
    /// that is served as long as the guard lives.
    pub(crate) fn take(&self, cookie: u64) -> MutexGuard<'_, ()> {
        let guard = lock(&self.serving);
        self.state_file.header().crashes.current.set(cookie);
        guard
    }

    /// Clears the history of crashes.  No connection may be served under this guard afterwards.
    pub(super) fn forget(&self) {
        let crashes = &self.state_file.header().crashes;
        for word in [&crashes.current, &crashes.starts, &crashes.suspect] {
            word.set(0);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::layout::Geometry;
    use super::*;

    /// What the next process finds if the connections with these cookies were being served at crashes
    /// one after the other.
    fn after_crashes(cookies: &[u64]) -> CrashHistory {
        let mut history = CrashHistory::default().after_start(false);
        for cookie in cookies {
            history.current = *cookie;
            history = history.after_start(false);
        }
        history
    }

    #[test]
    fn a_connection_is_the_culprit_at_the_third_crash_in_a_row() {
        for (cookies, culprit) in [
            (&[7, 7][..], None),
            (&[7, 7, 7], Some(7)),
            (&[7, 7, 8, 7], None),
            (&[8, 8, 7, 7, 7], Some(7)),
            (&[0, 0, 0, 0], None),
        ] {
            let history = after_crashes(cookies);
            assert_eq!(history.culprit(), culprit, "{cookies:?}");
            assert_eq!(history.starts, 1 + cookies.len() as u64);
        }
    }

    #[test]
    fn a_hand_over_or_a_full_round_clears_the_history() {
        let history = after_crashes(&[7, 7, 7]).after_start(true);
        assert_eq!((history.starts, history.culprit()), (1, None));
        let small = Geometry {
            partitions: 1,
            records: 1,
        };
        let (state_file, _payloads) = StateFile::create(small, 1).unwrap();
        let state_file = Arc::new(state_file);
        after_crashes(&[7, 7, 7]).write(&state_file);
        let crash_guard = CrashGuard::new(state_file.clone());
        drop(crash_guard.take(7));
        assert_eq!(CrashHistory::read(&state_file).current, 7);
        crash_guard.forget();
        let history = CrashHistory::read(&state_file);
        assert_eq!((history.starts, history.culprit()), (0, None));
    }
}
