//! The client's verdicts, each by a server, a path or a script with exactly that fault.
//!
//! - `probe`: each verdict of the probe by a server that has exactly that fault
//! - `receivers`: receivers of PROXY headers, and what proxies and servers of others get wrong
//! - `paths`: each verdict of the probe by a path in network namespaces that has exactly that fault
//! - `hold`: conversations that stay, and where a pause hangs
//! - `ping`: the class of what went wrong, by servers with exactly that fault
//! - `simulation`: the verdicts of `ping` on a scripted path
//! - `schema`: as much of JSON Schema as our schemas use

mod hold;
mod paths;
mod ping;
pub mod probe;
pub mod receivers;
mod schema;
mod simulation;
