//! tcp-echo: the TCP echo service (RFC 862) as a systemd-native daemon.
//!
//! The program is `main.rs`; this library exists so that tests and benches reach its parts.  It
//! promises nothing to others.
//!
//! `docs/architecture.md` in the repository has the bird's eye view, the words, the owners of state,
//! the invariants and the decisions with their reasons; `docs/preserving-connections.md` explains how
//! connections survive the process.
//!
//! # Modules
//!
//! In reading order.  A module uses modules of lower rank; `tests/it/layers.rs` checks it.
//!
//! | rank | module | what it is |
//! |---|---|---|
//! | 0 | [`cli`], [`config::units`], [`config::address`] | arguments and values as types |
//! | 1 | [`echo`] | one connection and many of them, pure |
//! | 1 | [`proxy_header`] | the header that a proxy puts before a connection |
//! | 2 | [`config`] | the settings: as they are written, then as they are meant |
//! | 3 | [`sys`] | what else touches the system: descriptors, options, service manager, signals |
//! | 4 | [`log`] | events, summaries, the sink |
//! | 5 | `preserve` | connections that outlive the process |
//! | 6 | `server` | the daemon: its loops |
//! | 6 | [`client`] | the other half: what `ping` and `probe` do, with a loop of its own |
//! | 7 | [`commands`] | `serve`, `check`, `reload`, `ping`, `diff`, `probe` |

// Tests read what selects and prolongs them.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

#[cfg(not(target_pointer_width = "64"))]
compile_error!(
    "tcp-echo needs a 64-bit target: it maps memory for as many connections as there can be"
);

pub mod cli;
pub mod client;
pub mod commands;
pub mod config;
pub mod echo;
pub mod log;
pub(crate) mod preserve;
pub mod proxy_header;
pub(crate) mod server;
pub mod sys;
