//! The client's verdicts, each by a server, a path or a script with exactly that fault.
//!
//! - `probe`: each verdict of the probe by a server that has exactly that fault
//! - `receivers`: receivers of PROXY headers, and what proxies and servers of others get wrong
//! - `paths`: each verdict of the probe by a path in network namespaces that has exactly that fault
//! - `hold`: conversations that stay, and where a pause hangs
//! - `ping`: the class of what went wrong, by servers with exactly that fault
//! - `kernel_times`: the p50 of `ping` is what the kernel's times of its packets say
//! - `simulation`: the verdicts of `ping` on a scripted path
//! - `schema`: as much of JSON Schema as our schemas use

mod hold;
mod kernel_times;
mod paths;
mod ping;
pub mod probe;
pub mod receivers;
mod schema;
mod simulation;
