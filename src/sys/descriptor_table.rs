//! The kernel's table of the descriptors of this process, which is enlarged before it is full.
//!
//! The table doubles as it fills.  As soon as a process has several threads, the kernel waits each time
//! until no processor looks at the old table, some 10 ms, in the call that needs the room.  So it is made
//! large enough for a good part of the services before the first thread starts, and later it is enlarged
//! by a thread of its own while half of it is free.  The loops do not wait for that: the kernel holds up
//! only those calls for which the old table has no room.

use std::io;
use std::os::fd::RawFd;
use std::thread;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, getrlimit};

use super::signals;

/// Descriptors for which the table has room from the start: 32 KiB.
const LEAST: usize = 4096;

/// The table, by the descriptors for which it has room.
#[derive(Debug)]
pub(crate) struct DescriptorTable(usize);

impl Default for DescriptorTable {
    /// As [`make_room`] has left it, at least.
    fn default() -> Self {
        Self(LEAST)
    }
}

impl DescriptorTable {
    /// Begins to enlarge the table if it has not room for twice as many descriptors as are `open`.
    pub(crate) fn prepare(&mut self, open: usize) {
        if open <= self.0 / 2 {
            return;
        }
        self.0 = (2 * open).next_power_of_two();
        let size = self.0;
        let grow = move || {
            // Signals are for the main loop.
            let _ = signals::block();
            enlarge(size);
        };
        // Without the thread, the table grows when it has to.
        let _ = thread::Builder::new().name("table".into()).spawn(grow);
    }
}

/// Enlarges the table for so many descriptors, and at least [`LEAST`], in this thread: for a process that
/// has no other.
pub(crate) fn make_room(count: usize) {
    enlarge(count.max(LEAST));
}

/// Takes a descriptor at the end of a table of this size, or the last one that this process may have, and
/// gives it back.
fn enlarge(size: usize) {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let last = u64::try_from(size)
        .unwrap_or(u64::MAX)
        .min(most)
        .saturating_sub(1);
    // An error means that it has descriptors up to the last one, or that there is no memory.
    if let Ok(last) = RawFd::try_from(last) {
        let _ = fcntl_dupfd_cloexec(io::stderr(), last);
    }
}
