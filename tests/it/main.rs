//! The integration tests: one binary, one file per promise, none of which needs root.
//!
//! - `echo`: every byte comes back, whatever the client does
//! - `activation`: sockets that are passed to the daemon
//! - `notify`: the service manager's protocol
//! - `reload`: a new configuration, right or wrong
//! - `stop`: draining, deadlines, the second signal
//! - `limits`: connections, sources, time-outs, bytes
//! - `faults`: system calls that fail, descriptors that run out
//! - `logging`: what is logged, and a log that cannot be written
//! - `check`: what the configuration means
//! - `recipe`: the shipped recipe, read back from real sockets
//! - `shipped`: the files that are installed
//! - `generated`: what is generated and checked in is fresh
//! - `manuals`: the manuals explain all that there is
//! - `catalog`: what `journalctl -x` says about each message
//! - `survival`: connections outlive the daemon
//! - `instants`: a crash between any two system calls
//! - `degrade`: whatever prevents preservation is reported, and every client is served
//! - `multipath`: connections of several subflows
//! - `damage`: the memory of kept connections is not believed
//! - `regressions`: what once went wrong with all that
//! - `shortage`: what waits for a successor is not in its way
//! - `store`: the fixture's manager keeps descriptors as systemd does
//! - `client_hold`: conversations that stay, and where a pause hangs
//! - `client_paths`: each verdict of the probe by a path that has exactly that fault
//! - `client_probe`: each verdict of the probe by a server that has exactly that fault
//! - `client_receivers`: receivers of PROXY headers, and what proxies and servers of others get wrong
//! - `simulation`: thousands of scripted conversations, seeded
//! - `kernel`: the facts of the kernel that the design rests on
//! - `layers`: who may import whom
//! - `client_simulation`: the verdicts of the client on a scripted path
//! - `client_ping`: the class of what went wrong, by servers with exactly that fault
//!
//! What they share: `daemon` starts one, `manager` is a service manager that keeps descriptors,
//! `load` and `crowd` are clients that notice everything, `schema` checks JSON.
#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

mod crowd;
mod daemon;
// The clients of the bench, of which the tests do not use everything.
#[allow(dead_code)]
#[path = "../../benches/common/load.rs"]
mod load;
mod manager;

mod activation;
mod catalog;
mod check;
mod client_hold;
mod client_paths;
mod client_ping;
mod client_probe;
mod client_receivers;
mod client_simulation;
mod damage;
mod degrade;
mod echo;
mod faults;
mod generated;
mod instants;
mod kernel;
mod layers;
mod limits;
mod logging;
mod manuals;
mod multipath;
mod notify;
mod recipe;
mod regressions;
mod reload;
mod schema;
mod shipped;
mod shortage;
mod simulation;
mod stop;
mod store;
mod survival;
#[cfg(feature = "test-faults")]
mod test_faults;
mod workers;
