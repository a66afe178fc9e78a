//! The integration tests: one binary, a folder for each promise, and none of them needs root.
//!
//! - [`protocol`]: every byte comes back, whatever clients and the kernel do
//! - [`systemd`]: sockets, messages, configuration and log, as the service manager has them
//! - [`preserve`]: connections outlive the daemon
//! - [`shipped`]: what is installed is right: units, configuration, manuals, completions, catalog
//! - [`fleet`]: the place behind balancers
//! - [`outside`]: metrics and health, asked for by others
//! - [`client`]: each verdict of `ping` and `probe`, by a server or a path with exactly that fault
//! - [`simulation`]: thousands of scripted conversations, seeded
//! - [`kernel`]: the facts of the kernel that the design rests on
//! - [`layers`]: which module may import which
//!
//! What they and the benches share is in the crate [`testkit`].
#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

mod client;
mod fleet;
mod outside;
mod preserve;
mod protocol;
mod shipped;
mod systemd;

mod kernel;
mod layers;
mod simulation;

/// Bytes that a client sent and the daemon's kernel has not acknowledged yet.
fn unacknowledged(stream: &std::net::TcpStream) -> usize {
    usize::try_from(tcp_echo::sys::sockopt::unacknowledged(stream)).unwrap()
}

/// Waits until the kernel of the daemon has acknowledged everything that a client sent.
#[track_caller]
fn is_acknowledged(client: &std::net::TcpStream) {
    testkit::eventually(testkit::SOON, "data stayed unacknowledged", || {
        (unacknowledged(client) == 0).then_some(())
    });
}
