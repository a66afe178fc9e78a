//! Connections outlive the daemon, or it is reported that they do not.
//!
//! - `survival`: connections outlive a restart and a crash
//! - `instants`: a crash between any two system calls
//! - `degrade`: whatever prevents preservation is reported, and every client is served
//! - `multipath`: connections of several subflows
//! - `damage`: the content of a state file is not believed
//! - `regressions`: what once went wrong with all that
//! - `shortage`: preserved connections do not prevent the next start
//! - `store`: the manager of [`testkit`] stores descriptors as systemd does
//! - `test_faults`: preservation that is broken on purpose is seen to fail

mod damage;
mod degrade;
mod instants;
mod multipath;
mod regressions;
mod shortage;
mod store;
mod survival;
#[cfg(feature = "test-faults")]
mod test_faults;
