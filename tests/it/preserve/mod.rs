//! Connections outlive the daemon, or it is reported that they do not.
//!
//! - `restart`: connections outlive a restart and a crash
//! - `instants`: a crash between any two system calls
//! - `degrade`: whatever prevents preservation is reported, and every client is served
//! - `multipath`: connections of several subflows
//! - `damage`: the content of a state file is not believed
//! - `regressions`: what once went wrong with all that
//! - `shortage`: preserved connections do not prevent the next start
//! - `store`: the manager of [`testkit`] stores descriptors as systemd does
//! - `test_faults`: preservation that is broken on purpose is seen to fail

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use testkit::manager::Manager;
use testkit::ping;

mod damage;
mod degrade;
mod instants;
mod multipath;
mod regressions;
mod restart;
mod shortage;
mod store;
#[cfg(feature = "test-faults")]
mod test_faults;

/// The closed connections that cause a rotation of the descriptor queue.
const DEAD: usize = 64;

/// Makes connections that are preserved, beside so many others; a rotation begins when they are dropped.
#[track_caller]
fn short_lived(manager: &Manager, others: usize) -> Vec<TcpStream> {
    let flies: Vec<TcpStream> = (0..DEAD).map(|_| manager.connect()).collect();
    flies
        .iter()
        .for_each(|client| ping(client, b"not for long"));
    manager.preserves(others + DEAD);
    flies
}

/// Whether there is an end, of any kind; what comes before it is discarded.
fn is_closed(mut stream: impl Read) -> bool {
    let end = stream.read_to_end(&mut Vec::new());
    !end.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}
