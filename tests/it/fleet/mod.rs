//! The place behind balancers.
//!
//! - `proxy`: a listener takes PROXY headers, whoever sends them and however they arrive

mod proxy;
