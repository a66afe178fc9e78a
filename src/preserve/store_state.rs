//! Whether connections are preserved, and how that is reported.
//!
//! Whether the service manager can store descriptors, and has room for ours, shows only when it has
//! been asked.  This module has the states that result from it with the text of each for the status,
//! the events to be logged, and the numbers of connections and descriptors that there is room for.

use std::io;

/// Why no connection is preserved if the configuration says so.
pub(crate) const DECLINED: &str =
    "it is switched off in the configuration (preserve-connections = false)";

/// Why no connection is preserved if the manager does not store the descriptors.
pub(super) const NO_ROOM: &str =
    "there is no descriptor store, or no room in it (FileDescriptorStoreMax= of the unit)";

/// Whether connections are preserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreState {
    /// There is no service manager.
    Off,
    /// They are not, as the configuration says so.
    Declined,
    /// The manager will be asked when there is a connection to preserve.
    Waiting,
    /// The manager was asked to store the descriptors, and has not answered.
    Asking,
    /// They are preserved.
    Preserving,
    /// They cannot be preserved, for this reason.
    Refused(String),
}

/// Something about preservation that is to be logged.
#[derive(Debug)]
pub(crate) enum StoreEvent {
    /// The manager stores the descriptors.
    Preserving,
    /// No connection can be preserved.
    Refused {
        /// The reason.
        why: String,
        /// Whether there should be a store, or connections were already preserved.
        grave: bool,
    },
    /// A new descriptor queue could not be made or stored, so the old one stays.
    NotRotated {
        /// The reason.
        error: io::Error,
        /// Whether the connections in the old queue are not preserved any more either.
        all: bool,
    },
    /// Connections could not be put into the queue.  They are tried again.
    NotAppended {
        /// How many connections.
        count: usize,
        /// The reason.
        error: io::Error,
    },
}

/// How many connections can be preserved by a process that may have so many `descriptors` open: at
/// least 1.  An unprivileged user may have as many descriptors in flight as open (unix(7)).  During a
/// rotation there are two copies of each open connection in flight, and in the old queue also the
/// descriptors of connections that are over, which are a third of the open ones at most.
#[must_use]
pub(crate) fn max_preserved(descriptors: usize) -> usize {
    (descriptors / 7 * 3).max(1)
}

/// How many of the `entries` of a descriptor queue may be those of connections that are over (dead)
/// before a new queue replaces it.  It is a third of the open ones, or a number too small to be worth a
/// rotation, but never more than there is room for in flight beside two copies of as many as
/// [`max_preserved`] allows.
pub(super) fn max_dead(descriptors: usize, entries: usize) -> usize {
    /// So few dead descriptors are not worth a new queue.
    const NOT_WORTH_A_ROTATION: usize = 64;
    let room = descriptors.saturating_sub(2 * max_preserved(descriptors));
    // A part of it is for what goes into both queues while a new one is filled.
    let room = (room - room / 8).max(1);
    NOT_WORTH_A_ROTATION.max(entries / 4).min(room)
}

impl StoreState {
    /// The text for the status (`STATUS=` of sd_notify(3)), with the number of connections that are
    /// preserved; empty where there is nothing to report.
    #[must_use]
    pub(crate) fn status(&self, preserved: usize) -> String {
        match self {
            Self::Off | Self::Waiting | Self::Asking => String::new(),
            Self::Declined => format!("; preservation off: {DECLINED}"),
            Self::Preserving => format!(
                "; {preserved} connection{} preserved",
                if preserved == 1 { "" } else { "s" }
            ),
            Self::Refused(why) => format!("; preservation off: {why}"),
        }
    }

    /// A number that differs if the text of [`StoreState::status`] does, as a rule: to compare numbers
    /// costs less than to make texts.
    #[must_use]
    pub(crate) fn mark(&self, preserved: usize) -> u64 {
        match self {
            Self::Off | Self::Declined | Self::Waiting | Self::Asking => 0,
            Self::Preserving => 2 * preserved as u64 + 1,
            Self::Refused(_) => 2 * preserved as u64 + 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_never_has_more_descriptors_in_flight_than_allowed() {
        let mut descriptors = 64;
        while descriptors <= 1_048_576 {
            let open = max_preserved(descriptors);
            // The entries of the old queue when the rotation begins, at the latest.
            let entries = open
                + (0..descriptors)
                    .find(|count| *count >= max_dead(descriptors, open + count))
                    .expect("it is rotated at some time");
            assert!(
                open + entries <= descriptors,
                "{descriptors}: {open}, {entries}"
            );
            descriptors += descriptors / 5 + 1;
        }
    }
}
