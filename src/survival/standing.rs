//! Whether connections are kept, and how that is said.

use std::io;

/// Why connections are not kept where nobody wants it.
pub const DECLINED: &str = "it is switched off in the configuration (survival = false)";

/// Why nothing is kept where there is nobody who would.
pub(super) const NO_ROOM: &str =
    "there is no descriptor store, or no room in it (FileDescriptorStoreMax= of the unit)";

/// Whether connections are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is no manager.
    Off,
    /// The configuration says so.
    Declined,
    /// The manager will be asked when there is something to keep.
    Waiting,
    /// The manager was asked to store, and has not answered.
    Asking,
    /// They are.
    Kept,
    /// They cannot be, and why.
    Refused(String),
}

/// Something to tell.
#[derive(Debug)]
pub enum News {
    /// The manager keeps what it is given.
    Kept,
    /// It does not.
    Refused {
        /// Why.
        why: String,
        /// There should be a store, or somebody relied on it.
        grave: bool,
    },
    /// The old parcel stays, as a new one could not be made or stored.
    NotRenewed(io::Error),
}

/// How many connections can be kept with so many `descriptors`.  A renewal has two copies in flight
/// beside what is dead, which is a third of the living at most, and an unprivileged user may have
/// only as many in flight as open (unix(7)).
#[must_use]
pub fn kept(descriptors: usize) -> usize {
    (descriptors / 7 * 3).max(1)
}

/// How many dead descriptors a parcel with so many `entries` may have before it is renewed: a third of
/// the living, or as many as are not worth it, but never more than there is room for in flight, with
/// two copies of as many as [`kept`] allows.
pub(super) fn dead(descriptors: usize, entries: usize) -> usize {
    /// Dead descriptors that are not worth a new parcel.
    const FEW: usize = 64;
    let room = descriptors.saturating_sub(2 * kept(descriptors)).max(1);
    FEW.max(entries / 4).min(room)
}

impl Standing {
    /// What is said of it in the status, where so many are kept.
    #[must_use]
    pub fn status(&self, kept: usize) -> String {
        match self {
            Self::Off | Self::Waiting | Self::Asking => String::new(),
            Self::Declined => format!("; survival off: {DECLINED}"),
            Self::Kept => format!(
                "; {kept} connection{} kept for the successor",
                if kept == 1 { "" } else { "s" }
            ),
            Self::Refused(why) => format!("; survival off: {why}"),
        }
    }

    /// A number that changes with that text, most of the time.
    #[must_use]
    pub fn mark(&self, kept: usize) -> u64 {
        match self {
            Self::Off | Self::Declined | Self::Waiting | Self::Asking => 0,
            Self::Kept => 2 * kept as u64 + 1,
            Self::Refused(_) => 2 * kept as u64 + 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_copies_and_what_is_dead_fit_into_what_may_be_in_flight() {
        let mut descriptors = 64;
        while descriptors <= 1_048_576 {
            let living = kept(descriptors);
            // When the renewal begins, at the latest.
            let entries = living
                + (0..descriptors)
                    .find(|count| *count >= dead(descriptors, living + count))
                    .expect("it is renewed at some time");
            assert!(
                living + entries <= descriptors,
                "{descriptors}: {living}, {entries}"
            );
            descriptors += descriptors / 5 + 1;
        }
    }
}
