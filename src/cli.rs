//! The command line as types; nothing here has an effect.
//!
//! The doc comments of what clap derives are the text of `--help`, of the manual page and of the
//! completions (`cargo xtask generate`).  [`crate::commands::command`] adds the lists of signals, of
//! the environment and of exit statuses.
#![allow(rustdoc::broken_intra_doc_links, reason = "[default: info] is no link")]

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

use crate::config::address::Address;
use crate::config::units::{Size, Span, Unit};

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
    /// Answer health checks with drain, so that balancers send no more connections, until undrain
    Drain {
        /// The daemon, by its process id or its unit [default: tcp-echo.service]
        #[arg(value_name = "PROCESS")]
        process: Option<String>,
    },
    /// Answer health checks with ready again
    Undrain {
        /// The daemon, by its process id or its unit [default: tcp-echo.service]
        #[arg(value_name = "PROCESS")]
        process: Option<String>,
    },
    /// Judge the path to an echo server and the server, case by case
    Probe(Box<Probe>),
    /// Measure round trips to an echo server, and say what the cause is where there are none
    Ping(Box<Ping>),
    /// Compare two summaries that `ping --json` wrote
    Diff {
        /// The summary to compare with
        before: PathBuf,
        /// The summary that is compared
        after: PathBuf,
    },
}

const PING_HELP: &str = "\
HOST is a name or an address; the port is 7 where none is given. Spans of time are seconds, or have \
a unit: 0.2, 200ms, 5min.

While it runs, Ctrl-C stops it, Ctrl-\\ or the signal USR1 prints an interim summary.

Exit status: 0 every echo came back, 1 echoes are missing or late or a threshold was missed, 2 usage, \
10 the name has no address, 11 refused, 12 time-out, 13 unreachable, 14 reset, 15 closed by the peer, \
16 silent: no echo ever came, 17 wrong bytes, 18 stalled: echoes came and then stopped. With several \
targets, that of the first which is not 0.";

/// The arguments of `ping`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(after_help = PING_HELP)]
pub struct Ping {
    /// What to talk to: echo.example.net, 192.0.2.7:7, [2001:db8::7]:7, unix:/run/echo.sock
    #[arg(required = true, value_name = "HOST[:PORT]")]
    pub targets: Vec<String>,
    /// Stop after COUNT messages
    #[arg(short = 'c', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Send a message every SPAN [default: 1s]
    #[arg(short = 'i', long, value_name = "SPAN", value_parser = interval, conflicts_with_all = ["rate", "bulk"])]
    pub interval: Option<Duration>,
    /// Send nothing more after SPAN, and wait for the last echoes
    #[arg(short = 'w', long, value_name = "SPAN", value_parser = span)]
    pub deadline: Option<Duration>,
    /// Wait at most SPAN for a connection and for an echo
    #[arg(short = 'W', long, value_name = "SPAN", value_parser = interval, default_value = "10s")]
    pub timeout: Duration,
    /// Send messages of SIZE bytes [default: 64, and 64KiB for --bulk]
    #[arg(short = 's', long, value_name = "SIZE", value_parser = message)]
    pub size: Option<usize>,
    /// Print only the summary
    #[arg(short = 'q', long)]
    pub quiet: bool,
    /// Which addresses of a name count.
    #[command(flatten)]
    pub family: Family,
    /// Come from an address of this host, or go through an interface
    #[arg(short = 'I', long, value_name = "ADDRESS|INTERFACE")]
    pub interface: Option<String>,
    /// Print the time before each line, in seconds since 1970
    #[arg(short = 'D', long)]
    pub timestamps: bool,
    /// Send RATE messages a second, as in 500, 1k or 100k, or max: each as soon as there is room
    #[arg(long, value_name = "RATE", value_parser = rate, conflicts_with = "bulk")]
    pub rate: Option<Duration>,
    /// Open COUNT connections, which take turns
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    /// Have at most COUNT messages under way on each connection [default: 1000, and 1 for --rate max]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub depth: Option<u32>,
    /// Never sleep: more exact, and a whole processor
    #[arg(long)]
    pub busy: bool,
    /// Send as fast as there is room, and verify each byte that comes back [default: for 10s]
    #[arg(long)]
    pub bulk: bool,
    /// Print the summary as JSON, an array for several targets
    #[arg(long, group = "form")]
    pub json: bool,
    /// Print each event as a line of JSON, the summary last
    #[arg(long, group = "form")]
    pub json_lines: bool,
    /// Print each event as a line of comma-separated values
    #[arg(long, group = "form")]
    pub csv: bool,
    /// Draw the distribution and the time line into FILE
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Write the percentiles into FILE, in the text form of HdrHistogram, in milliseconds
    #[arg(long, value_name = "FILE")]
    pub hdr: Option<PathBuf>,
    /// Fail with status 1 if this is so, as in 'p99>20ms' or 'missing>0.1%'; may be repeated
    #[arg(long, value_name = "EXPR")]
    pub fail_if: Vec<String>,
}

/// What `probe` may be given.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The echo server: HOST, HOST:PORT or unix:/PATH; without a port it is 7
    #[arg(value_name = "HOST[:PORT]", required_unless_present = "list")]
    pub target: Option<String>,
    /// Which addresses of a name count.
    #[command(flatten)]
    pub family: Family,
    /// Print the cases and what they try, and connect to nothing
    #[arg(long)]
    pub list: bool,
    /// Do these cases or groups of cases alone, as in size,end/much
    #[arg(long, value_name = "CASES", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Count notes as faults
    #[arg(long)]
    pub strict: bool,
    /// Leave out the cases that send as much as they can
    #[arg(long)]
    pub no_bulk: bool,
    /// Find out for how long a connection may be silent, up to SPAN
    #[arg(long, value_name = "SPAN", value_parser = interval)]
    pub idle: Option<Duration>,
    /// Hold conversations for SPAN, and attribute each pause, instead of the cases
    #[arg(long, value_name = "SPAN", value_parser = interval, conflicts_with_all = ["only", "idle", "junit", "html", "strict"])]
    pub hold: Option<Duration>,
    /// How many conversations are held
    #[arg(long, value_name = "COUNT", default_value = "1", requires = "hold",
        value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub connections: u32,
    /// Write the kernel's counters from before each pause to FILE, as lines of JSON
    #[arg(long, value_name = "FILE", requires = "hold")]
    pub record: Option<PathBuf>,
    /// Send a PROXY header before all else, and try what else a receiver of such must take
    #[arg(long)]
    pub proxy_receiver: bool,
    /// Do not ask before more than 100 MB are sent to an address that is not loopback
    #[arg(long)]
    pub yes: bool,
    /// Print the report as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Write the report as XML of JUnit to FILE, too
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write the report as a page with pictures to FILE, too
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// How long a handshake, or nothing at all, is waited for
    #[arg(short = 'W', long, value_name = "SPAN", default_value = "5s", value_parser = interval)]
    pub wait: Duration,
    /// Send the bytes of the run that had this seed, a hexadecimal number
    #[arg(long, value_name = "SEED", value_parser = seed)]
    pub seed: Option<u64>,
}

/// Which addresses of a name count: all of them, unless one is set.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Connect to IPv4 addresses only
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// Connect to IPv6 addresses only
    #[arg(short = '6', long)]
    pub ipv6: bool,
}

/// A seed, in hexadecimal digits.
fn seed(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|error| error.to_string())
}

/// A span of time: seconds, or with a unit.
fn span(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|span| *span <= Duration::from_secs(100 * 31_557_600))
            .ok_or_else(|| format!("{text:?} is out of range")),
        Err(_) => Span::from_text(text)
            .map(|Span(span)| span)
            .map_err(|why| format!("{why}; expected seconds or {}", Span::expected())),
    }
}

/// A span of time that is longer than nothing.
fn interval(text: &str) -> Result<Duration, String> {
    span(text).and_then(|span| match span.is_zero() {
        true => Err("zero is too short".into()),
        false => Ok(span),
    })
}

/// Messages a second, as the time from one to the next; no time at all for "max".
fn rate(text: &str) -> Result<Duration, String> {
    if text == "max" {
        return Ok(Duration::ZERO);
    }
    let (number, factor) = match (text.strip_suffix(['k', 'K']), text.strip_suffix('M')) {
        (Some(number), _) => (number, 1e3),
        (_, Some(number)) => (number, 1e6),
        _ => (text, 1.0),
    };
    let rate = number.parse::<f64>().ok().map(|number| number * factor);
    let is_possible = |rate: &f64| (1e-6..=1e7).contains(rate);
    rate.filter(is_possible)
        .map(|rate| Duration::from_secs_f64(1.0 / rate))
        .ok_or_else(|| {
            format!("{text:?} is no rate from 0.000001 to 10M a second, such as 500, 1k or max")
        })
}

/// The size of a message: a byte to 16 MiB.
fn message(text: &str) -> Result<usize, String> {
    let Size(size) = Size::from_text(text)?;
    usize::try_from(size)
        .ok()
        .filter(|size| (1..=16 << 20).contains(size))
        .ok_or_else(|| format!("{text:?} is not a size from 1 to 16MiB"))
}

/// The settings that the command line may give.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Settings of the daemon")]
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
    /// No event; what keeps the daemon from starting is still printed.
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
    fn the_letters_of_ping_are_those_of_ping() {
        let line = "tcp-echo ping -c 3 -i 0.2 -w 5 -W 500ms -s 100 -q -4 -D -I lo localhost ::1";
        let cli = Cli::try_parse_from(line.split(' ')).expect(line);
        let Some(Command::Ping(ping)) = cli.command else {
            panic!("{cli:?}");
        };
        assert_eq!(ping.targets, ["localhost", "::1"]);
        assert_eq!(ping.interval, Some(Duration::from_millis(200)));
        assert_eq!(ping.timeout, Duration::from_millis(500));
        assert_eq!((ping.size, ping.count), (Some(100), Some(3)));
        for refused in [
            "tcp-echo ping",
            "tcp-echo ping -c 0 x",
            "tcp-echo ping -i 0 x",
            "tcp-echo ping -i -1 x",
            "tcp-echo ping -s 0 x",
            "tcp-echo ping -4 -6 x",
            "tcp-echo ping --rate 0 x",
            "tcp-echo ping --rate 1k -i 1 x",
            "tcp-echo ping --json --csv x",
            "tcp-echo ping --connections 0 x",
        ] {
            assert!(
                Cli::try_parse_from(refused.split(' ')).is_err(),
                "{refused}"
            );
        }
        for (text, nanos) in [
            ("1k", 1_000_000),
            ("100k", 10_000),
            ("0.5", 2_000_000_000),
            ("max", 0),
        ] {
            assert_eq!(rate(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
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
