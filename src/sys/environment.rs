//! The variables of the environment that the program reads, and the one way to read them: clippy
//! refuses another one in this library (clippy.toml).

use std::ffi::OsString;

/// Variables of the environment that are read, with what each set of them means.  Names of options
/// and of other variables stand between backquotes.  `--help` and the manual page list them.
pub const ENVIRONMENT: [(&[&str], &str); 9] = [
    (
        &["TCP_ECHO_CONFIG"],
        "the configuration file, where `--config` is not given",
    ),
    (
        &["RUST_LOG"],
        "a level, or directives as in info,tcp_echo=debug, where neither the configuration nor the \
         command line gives a level",
    ),
    (
        &["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"],
        "the descriptors that the service manager passes, see sd_listen_fds(3): sockets, and what it \
         has preserved of a previous process (names that begin with preserve-)",
    ),
    (
        &["FDSTORE"],
        "how many descriptors the service manager preserves for the service (systemd 254 and later); \
         fewer than 3 are not enough to preserve connections",
    ),
    (
        &["MEMORY_PRESSURE_WATCH"],
        "where this is set and `FDSTORE` is not, the service manager is one that would set it, and \
         preserves no descriptors",
    ),
    (
        &["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"],
        "where readiness, reload, status and stop are reported and descriptors are stored, and how \
         often a sign of life is due, see sd_notify(3) and sd_watchdog_enabled(3)",
    ),
    (
        &["JOURNAL_STREAM"],
        "with log format auto, events go to the journal if this names the file that standard error \
         is, see systemd.exec(5)",
    ),
    (
        &["MAINPID"],
        "the process that is to reload, for the command reload; systemd sets it for ExecReload=",
    ),
    (
        &["NO_COLOR", "TERM"],
        "ping and probe print colours and a live line only at a terminal; no colours where `NO_COLOR` is \
         set and not empty, neither where `TERM` is dumb",
    ),
];

/// The value of a variable, which stands in [`ENVIRONMENT`]; `None` if it is not set.
pub(crate) fn value(name: &str) -> Option<OsString> {
    let mut listed = ENVIRONMENT.iter().flat_map(|(names, _)| *names);
    debug_assert!(listed.any(|listed| *listed == name), "{name} is not listed");
    #[expect(clippy::disallowed_methods, reason = "the variable is documented")]
    std::env::var_os(name)
}

/// The value of a variable as text; `None` also if it is not UTF-8.
pub(crate) fn text(name: &str) -> Option<String> {
    value(name)?.into_string().ok()
}
