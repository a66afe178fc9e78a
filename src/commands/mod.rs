//! The commands of the program, and the exit statuses.
//!
//! In reading order: `serve`, `findings`, `check`, `reload`, `drain`, `ping`, `diff`, `probe`.

mod check;
mod diff;
mod drain;
mod findings;
mod ping;
mod probe;
mod reload;
mod serve;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use crate::cli::{Cli, Command, Level, Settings};
use crate::config::Origin;
use crate::sys::endpoint::printable;
use crate::sys::environment::{self, ENVIRONMENT};
use crate::sys::signals::{Request, SIGNALS};

/// The exit status of the process.  The numbers are those of sysexits.h(3head) and of clap.
/// `--help` and the manual page list [`Exit::ALL`].  What `ping` finds has numbers of its own:
/// [`Class`](crate::client::outcome::Class).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exit {
    /// All went well.
    #[default]
    Success = 0,
    /// The command line is wrong.
    Usage = 2,
    /// An address is in use or not available (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// A system call failed that should not.
    Os = 71,
    /// A permission is missing, or a file system is read-only (`EX_NOPERM`).
    Permission = 77,
    /// The configuration, or a passed descriptor, cannot be used (`EX_CONFIG`).
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// Every status, with what it means.
    pub const ALL: [(Self, &'static str); 6] = [
        (
            Self::Success,
            "the service was stopped or handed over, or the check found nothing wrong",
        ),
        (Self::Usage, "the command line is wrong"),
        (
            Self::Unavailable,
            "an address or a path is in use or not available, a name cannot be resolved, a group does \
             not exist, or there is no daemon to drain",
        ),
        (Self::Os, "a system call failed that should not"),
        (
            Self::Permission,
            "a permission is missing, or a file system is read-only",
        ),
        (
            Self::Config,
            "the configuration or a passed socket cannot be used; for check also: the kernel \
             refuses an option",
        ),
    ];

    /// The status for an error of the operating system.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM | libc::EROFS) => Self::Permission,
            Some(
                libc::EADDRINUSE
                | libc::EADDRNOTAVAIL
                | libc::EAFNOSUPPORT
                | libc::ENOENT
                | libc::ENOTDIR,
            ) => Self::Unavailable,
            None if error.kind() == io::ErrorKind::PermissionDenied => Self::Permission,
            // An error without a number: a name cannot be resolved, or a group does not exist.
            None => Self::Unavailable,
            Some(_) => Self::Os,
        }
    }
}

/// The command line with all of its help.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command().after_help(after_help())
}

/// The lists below the options in `--help`.
fn after_help() -> String {
    let mut help = "\
Without a command, tcp-echo serves: on the sockets that systemd passes to it, on the listeners of \
its configuration, or else on 127.0.0.1:9999 and [::1]:9999.

Signals:
"
    .to_owned();
    let asking = SIGNALS.iter().filter(|signal| signal.request.is_some());
    let asking: Vec<_> = asking.collect();
    for signals in asking.chunk_by(|one, other| one.request == other.request) {
        let names: Vec<&str> = signals.iter().map(|signal| signal.name).collect();
        help += &format!("  {:<16} {}\n", names.join(", "), signals[0].effect);
    }
    help += "\nEnvironment:\n";
    // The others are part of a protocol, for a reader of the manual page.
    for (names, text) in &ENVIRONMENT[..2] {
        help += &format!("  {:<16} {}\n", names[0], text.replace('`', ""));
    }
    help += "\nExit status:\n";
    for (exit, text) in Exit::ALL {
        help += &format!("  {:<16} {text}\n", exit as u8);
    }
    help
}

/// Runs the command that the command line names, or prints why it cannot be understood.
#[must_use]
pub fn run() -> ExitCode {
    let parsed = command().try_get_matches();
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(answer) => {
            let text = answer.render().to_string();
            let text = printable(&text);
            let text = text.as_bytes();
            // When this fails there is no other place to report it.
            let _ = if answer.use_stderr() {
                io::stderr().write_all(text)
            } else {
                io::stdout().write_all(text)
            };
            return match answer.use_stderr() {
                true => Exit::Usage.into(),
                false => Exit::Success.into(),
            };
        }
    };
    let origin = origin(&cli.settings);
    match &cli.command {
        None | Some(Command::Serve) => serve::run(origin).into(),
        Some(Command::Check { config_only, json }) => {
            check::run(&origin, *config_only, *json).into()
        }
        Some(Command::Reload) => reload::run().into(),
        Some(Command::Drain { process }) => drain::run(Request::Drain, process.as_deref()).into(),
        Some(Command::Undrain { process }) => {
            drain::run(Request::Undrain, process.as_deref()).into()
        }
        Some(Command::Ping(arguments)) => ping::run(arguments),
        Some(Command::Diff { before, after }) => diff::run(before, after).into(),
        Some(Command::Probe(options)) => probe::run(options),
    }
}

/// What the command line and the environment say about the configuration.
fn origin(settings: &Settings) -> Origin {
    Origin {
        file: settings.config.clone().or_else(|| {
            // An empty value counts as not set.
            let file = environment::value("TCP_ECHO_CONFIG")?;
            (!file.is_empty()).then(|| file.into())
        }),
        listen: settings.listen.clone(),
        level: settings.log,
        format: settings.log_format,
        fallback_level: environment::text("RUST_LOG").and_then(|text| Level::from_rust_log(&text)),
    }
}

/// Whether colours are welcome at a terminal: `NO_COLOR` is not set, and `TERM` is no typewriter.
fn wants_colour() -> bool {
    let unasked = environment::value("NO_COLOR").is_none_or(|value| value.is_empty());
    unasked && !is_dumb()
}

/// Whether the terminal can only append.
fn is_dumb() -> bool {
    environment::value("TERM").is_none_or(|term| term == "dumb")
}

/// Writes to standard output, and returns `exit`; a reader that has seen enough closes the pipe.
fn print(bytes: &[u8], name: &str, exit: Exit) -> Exit {
    let mut out = io::stdout();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(&format!("{name} cannot be written: {error}"));
            Exit::Os
        }
        _ => exit,
    }
}

/// Prints an error of a command on standard error.
fn complain(text: &str) {
    // When this fails there is no other place to report it.
    let _ = writeln!(io::stderr(), "tcp-echo: {}", printable(text));
}
