//! What the tests and the benches of tcp-echo share.  It knows the program from outside, as clients
//! and a service manager do, and nothing of its library.
//!
//! - `machine`: waiting with a deadline, the tools and limits of this machine
//! - `pattern`: the bytes that are sent, known in advance
//! - `client`: one connection at a time, in the thread of the test
//! - [`load`]: any number of clients in one thread, which check every byte
//! - [`crowd`]: clients of all kinds, made of these
//! - `daemon`: a real daemon in a folder of its own
//! - [`manager`]: a service manager that stores descriptors, and starts one daemon after the other
//! - [`process`]: what the kernel knows of a process and of its sockets
//! - [`report`]: what a bench has measured, line by line
//!
//! Whatever is not as expected panics: these are the assertions of the tests.
#![allow(
    clippy::cast_possible_truncation,
    clippy::new_without_default,
    clippy::unwrap_used,
    missing_docs,
    reason = "as in the tests themselves"
)]

mod client;
pub mod crowd;
mod daemon;
pub mod load;
mod machine;
pub mod manager;
mod pattern;
pub mod process;
pub mod report;

pub use client::*;
pub use daemon::*;
pub use machine::*;
pub use pattern::*;
