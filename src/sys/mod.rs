//! What touches the system outside the data path: descriptors, sockets and their options, the
//! service manager, signals, the kernel's settings.
//!
//! Each file stands for one thing that the system gives, and knows nothing of connections or of the
//! server.  All unsafe code of the crate is here, each block with its reason.
//!
//! In reading order: `clock`, [`environment`], `cgroup`, `lock`, [`endpoint`], [`kernel`], [`tcp_info`], [`sockopt`], `rights`,
//! `positions`, `memory`, [`option_report`], `activation`, [`signals`],
//! `descriptor_table`, `notify`, [`timestamps`], `bind`.

pub(crate) mod activation;
pub(crate) mod bind;
pub(crate) mod cgroup;
pub(crate) mod clock;
pub(crate) mod descriptor_table;
pub mod endpoint;
pub mod environment;
pub mod kernel;
pub(crate) mod lock;
pub(crate) mod memory;
pub(crate) mod notify;
pub mod option_report;
pub(crate) mod positions;
pub(crate) mod rights;
pub mod signals;
pub mod sockopt;
pub mod tcp_info;
pub mod timestamps;
