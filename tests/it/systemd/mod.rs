//! The daemon as a service: what it takes from the service manager, and what it reports.
//!
//! - `activation`: sockets that are passed to the daemon
//! - `notify`: the service manager's protocol
//! - `reload`: a new configuration, right or wrong
//! - `logging`: what is logged, and a log that cannot be written

mod activation;
mod logging;
mod notify;
mod reload;
