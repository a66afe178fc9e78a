//! Ways to break preservation on purpose, to see that the tests notice it.
//!
//! They exist in a build with the feature `test-faults` only, in which the environment variable
//! `TCP_ECHO_TEST_FAULT` selects one by its name.  `tests/it/preserve/test_faults.rs` expects a failure of the
//! tests with each of them.

/// Recovery takes the positions of a connection from its record instead of the kernel.
pub(crate) const NO_COUNTERS: &str = "no-counters";

/// Recovery takes the descriptors out of the queue instead of leaving them there.
pub(crate) const NO_PEEK: &str = "no-peek";

/// Whether preservation is to be broken in this way.
#[must_use]
pub(crate) fn is_on(fault: &str) -> bool {
    #[expect(clippy::disallowed_methods, reason = "not in a build that is for use")]
    let selected = std::env::var("TCP_ECHO_TEST_FAULT");
    cfg!(feature = "test-faults") && selected.is_ok_and(|on| on == fault)
}
