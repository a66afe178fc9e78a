//! The commands, and how they end.
//!
//! In reading order: [`serve`], `findings`, [`check`], [`reload`].

pub mod check;
mod findings;
pub mod reload;
pub mod serve;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command, Level, Settings};
use crate::config::Origin;
use crate::system::events::printable;

/// How the process ends; the numbers are those of sysexits.h(3head) and of clap, and are listed
/// in `--help` and the manual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exit {
    /// All went well.
    #[default]
    Success = 0,
    /// The arguments make no sense.
    Usage = 2,
    /// An address is in use or not available.
    Unavailable = 69,
    /// A system call failed that must not.
    Os = 71,
    /// A permission is missing, or a file system is read-only.
    Permission = 77,
    /// The configuration, or a passed socket, cannot be used.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// The status for an error of the system.
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
            // A name that cannot be resolved, a group that does not exist.
            None => Self::Unavailable,
            Some(_) => Self::Os,
        }
    }
}

/// Runs what the command line says, or says why it cannot be understood.
#[must_use]
pub fn run() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            let text = answer.render().to_string();
            let text = printable(&text);
            let text = text.as_bytes();
            // There is nobody left to tell when this fails.
            let _ = if answer.use_stderr() {
                io::stderr().write_all(text)
            } else {
                io::stdout().write_all(text)
            };
            return if answer.use_stderr() {
                Exit::Usage
            } else {
                Exit::Success
            };
        }
    };
    let origin = origin(&cli.settings);
    match &cli.command {
        None | Some(Command::Serve) => serve::run(origin),
        Some(Command::Check { config_only, json }) => check::run(&origin, *config_only, *json),
        Some(Command::Reload) => reload::run(),
    }
}

fn origin(settings: &Settings) -> Origin {
    Origin {
        file: settings.config.clone().or_else(|| {
            // Set and empty is as good as not set.
            let file = std::env::var_os("TCP_ECHO_CONFIG")?;
            (!file.is_empty()).then(|| file.into())
        }),
        listen: settings.listen.clone(),
        level: settings.log,
        format: settings.log_format,
        fallback_level: std::env::var("RUST_LOG")
            .ok()
            .and_then(|text| Level::from_rust_log(&text)),
    }
}

/// Tells an error of a command on standard error.
fn complain(text: &str) {
    // There is nobody left to tell when this fails.
    let _ = writeln!(io::stderr(), "tcp-echo: {}", printable(text));
}
