//! A parcel that the manager was asked to store, and has not answered for.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::parcel::Parcel;
use crate::echo::tick::Tick;

/// What is waited for, and until when.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) parcel: Parcel,
    /// The reading end of a pipe whose other end the manager closes.
    pub(super) answer: OwnedFd,
    pub(super) until: Tick,
}

impl Renewal {
    /// Whether the manager has closed its end, or does within `span`.
    pub(super) fn is_answered(&self, span: Duration) -> bool {
        let mut polled = [PollFd::new(&self.answer, PollFlags::IN)];
        let _ = poll(&mut polled, Timespec::try_from(span).ok().as_ref());
        polled[0].revents().contains(PollFlags::HUP)
    }
}
