//! Everything that touches the system outside the data path: descriptors, sockets and their
//! options, the service manager, signals, the kernel's settings, the log.
//!
//! In reading order: [`clock`], `cgroup`, [`lock`], [`kernel`], [`socket`], [`rights`], [`positions`], [`memory`], [`report`], [`activation`], [`signals`], [`notify`],
//! [`events`], [`bind`], [`rate`], [`logging`].

pub mod activation;
pub mod bind;
pub(crate) mod cgroup;
pub mod clock;
pub mod events;
pub mod kernel;
pub mod lock;
pub mod logging;
pub mod memory;
pub mod notify;
pub mod positions;
pub mod rate;
pub mod report;
pub mod rights;
pub mod signals;
pub mod socket;
