//! Ways to break survival on purpose: a test that cannot fail proves nothing.
//!
//! They exist in a build with the feature `controls` only, where the variable `TCP_ECHO_CONTROL`
//! names one.  `tests/it/controls.rs` expects each of them to be noticed.

/// Recovery believes what the dead process had noted of a connection instead of the kernel.
pub const NO_COUNTERS: &str = "no-counters";

/// Recovery takes the connections out of the parcel instead of looking at them.
pub const NO_PEEK: &str = "no-peek";

/// Whether survival is to be broken in this way.
#[must_use]
pub fn is_on(control: &str) -> bool {
    cfg!(feature = "controls") && std::env::var("TCP_ECHO_CONTROL").is_ok_and(|on| on == control)
}
