//! The other half: a client that says what the cause is, against any TCP echo server and whatever
//! stands before it.
//!
//! It is separate from the server, and neither imports the other.  What decides is pure: its input
//! is time, bytes and the kernel's counters, its output what to do and what was found.  A thin
//! driver has the sockets and the loop.
//!
//! In reading order: [`outcome`], [`target`], [`pattern`], [`statistics`],
//! [`ping`], [`ping::conversation`], [`ping::kernel`], [`ping::timeline`], [`ping::tally`], [`ping::finding`],
//! `ping::schedule`, `ping::slot`, [`ping::session`],
//! `ping::session::contact`,
//! [`ping::driver`], [`ping::summary`], [`ping::threshold`],
//! [`ping::report`], [`ping::events`], [`ping::plot`], [`ping::difference`],
//! `probe::verdict`, `probe::watch`, `probe::talk`, `probe::connect`, `probe::bytes`, `probe::end`, `probe::flow`,
//! `probe::size`, `probe::load`, `probe::idle`, `probe::preamble`,
//! [`probe::report`], `probe::html`, [`probe`], [`probe::hold`].

pub mod outcome;
pub mod pattern;
pub mod ping;
pub mod probe;
pub mod statistics;
pub mod target;
