//! The command line as types; nothing here has an effect.
//!
//! The doc comments of what clap derives are the text of `--help`, of the manual page and of the
//! completions (`cargo xtask generate`).  [`crate::commands::command`] adds the lists of signals, of
//! the environment and of exit statuses.
#![allow(rustdoc::broken_intra_doc_links, reason = "[default: info] is no link")]

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

use crate::config::address::Address;

/// The arguments.
#[derive(Debug, Parser)]
#[command(name = "tcp-echo", version, about = "The TCP echo service (RFC 862)")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Echo whatever arrives (the default)
    Serve,
    /// Read the configuration and print what it means, without serving
    Check {
        /// Only read the files: open no socket, resolve no name, ask the kernel nothing
        #[arg(long)]
        config_only: bool,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Make the daemon ($MAINPID) reload, and report it to the service manager: for ExecReload=
    Reload,
}

/// The settings that the command line may give.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Read FILE and FILE.d/*.toml [default: /etc/tcp-echo/config.toml, which may be absent]
    /// [env: TCP_ECHO_CONFIG]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Listen on ADDRESS, as in 127.0.0.1:9999, [::1]:9999, *:7, localhost:0, unix:/run/echo.sock;
    /// may be repeated; replaces the listeners of the configuration
    #[arg(long, value_name = "ADDRESS", global = true)]
    pub listen: Vec<Address>,
    /// Log events of at least this level [default: info]
    #[arg(long, value_name = "LEVEL", value_enum, global = true)]
    pub log: Option<Level>,
    /// Log in this form [default: auto]
    #[arg(long, value_name = "FORMAT", value_enum, global = true)]
    pub log_format: Option<Format>,
}

/// How important an event is, and from which importance on events are logged.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Nothing is logged.
    Off,
    /// The service cannot do what it should.
    Error,
    /// Something needs attention.
    Warn,
    /// The life of the service, and the end of each connection.
    Info,
    /// Also the beginning of each connection.
    Debug,
    /// Also each turn of a connection.
    Trace,
}

/// The form in which events are logged.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// To the journal when standard error is connected to it, else as text
    Auto,
    /// As lines of text on standard error
    Text,
    /// As one JSON object a line on standard error
    Json,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

impl Level {
    /// Reads `RUST_LOG`: a level, or directives as in `info,tcp_echo=debug`, of which the last one for
    /// this program counts.  `None` if there is no directive for this program.
    #[must_use]
    pub fn from_rust_log(text: &str) -> Option<Self> {
        let mut found = None;
        for directive in text.split(',').map(str::trim) {
            let (target, level) = directive.split_once('=').unwrap_or(("", directive));
            let ours = matches!(target, "" | "tcp_echo" | "tcp-echo");
            if let (true, Ok(level)) = (ours, <Self as FromStr>::from_str(&level.to_lowercase())) {
                found = Some(level);
            }
        }
        found
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(text, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_may_stand_before_and_after_the_command() {
        for line in [
            "tcp-echo --listen *:0 --listen [::1]:7 check",
            "tcp-echo check --listen *:0 --listen [::1]:7",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).expect(line);
            assert_eq!(cli.settings.listen.len(), 2, "{line}");
            assert_eq!(
                cli.command,
                Some(Command::Check {
                    config_only: false,
                    json: false
                })
            );
        }
        assert!(Cli::try_parse_from(["tcp-echo", "--listen", "nowhere"]).is_err());
    }

    #[test]
    fn rust_log_is_read_as_far_as_it_concerns_us() {
        for (text, level) in [
            ("debug", Some(Level::Debug)),
            ("WARN", Some(Level::Warn)),
            ("mio=trace,tcp_echo=error", Some(Level::Error)),
            ("info,tcp_echo=debug", Some(Level::Debug)),
            ("mio=trace", None),
            ("", None),
            ("[span{x=1}]=debug", None),
        ] {
            assert_eq!(Level::from_rust_log(text), level, "{text}");
        }
    }
}
