//! The configuration as the daemon uses it: defaults are filled in, ranges are checked.
//!
//! There are two types on purpose: `file::FileConfig` is what was written, [`Config`] is what the
//! daemon uses, and [`Origin::load`] is the only way from one to the other.  Precedence, from low to
//! high: built in, `config.toml`, `config.toml.d/*.toml`, environment, command line.
//!
//! The values of [`Options`] stay optional: an option that is absent is not set, so the socket keeps
//! what it has.  A listener that the daemon opens has [`Options::built_in`] below its options; a
//! passed socket keeps what its socket unit says.
//!
//! In reading order: [`units`], [`address`], `file`, [`keys`].

pub mod address;
mod file;
pub mod keys;
pub mod units;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::{Format, Level};
use crate::echo;
use address::Address;
use file::FileConfig;
pub use file::Options;
use keys::{Effect, KEYS, Show};
use units::{
    Count, Mode, Moment, Network, Networks, OrAuto, OrOff, Proxy, Role, Seconds, Size, Span, Unit,
};

/// The configuration file where neither `--config` nor `TCP_ECHO_CONFIG` names one.
pub const DEFAULT_FILE: &str = "/etc/tcp-echo/config.toml";

/// The port of the built-in listeners; port 7 of RFC 862 needs a privilege.
pub const BUILT_IN_PORT: u16 = 9999;

/// The most connections at a time unless the configuration asks for more.
pub const MOST_CONNECTIONS: usize = 65_536;

/// Why a configuration cannot be used, and the place in it.
#[derive(Debug)]
pub enum Error {
    /// A file cannot be read.
    Read {
        /// The file or folder.
        file: PathBuf,
        /// The error of open(2) or read(2).
        error: std::io::Error,
    },
    /// A file has a wrong key or value.
    Parse {
        /// The file.
        file: PathBuf,
        /// The error with line, column, the line itself and what is possible.
        error: Box<toml::de::Error>,
    },
}

impl std::error::Error for Error {}

/// Former names of keys, with the names that they have now.
const FORMER_KEYS: [(&str, &str); 3] = [
    ("open", "allow-remote"),
    ("survival", "preserve-connections"),
    ("survival-delay", "preserve-after"),
];

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { file, error } => {
                write!(f, "{}: cannot be read: {error}", file.display())?;
                match error.kind() {
                    std::io::ErrorKind::PermissionDenied => {
                        let (mode, path) = unreadable(file);
                        write!(
                            f,
                            "; the service reads it without privileges: chmod {mode} {}",
                            path.display()
                        )
                    }
                    std::io::ErrorKind::NotFound => {
                        f.write_str("; name another file with --config")
                    }
                    _ => Ok(()),
                }
            }
            Self::Parse { file, error } => {
                let text = error.to_string();
                let (place, message) = text
                    .rsplit_once(error.message())
                    .map_or(("", text.as_str()), |(place, _)| (place, error.message()));
                write!(
                    f,
                    "{}: {place}{}",
                    file.display(),
                    plain(message).trim_end()
                )?;
                let former = |(name, _): &&(&str, &str)| {
                    message.starts_with(&format!("unknown field `{name}`"))
                };
                match FORMER_KEYS.iter().find(former) {
                    Some((_, name)) => write!(f, "; its name is `{name}`"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// The mode that is missing where a file or folder cannot be read, and the path that lacks it.
fn unreadable(file: &Path) -> (&'static str, &Path) {
    let hidden = |path: &&Path| {
        std::fs::metadata(path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    };
    // The outermost path that cannot be seen is in a folder that may not be searched.
    match file
        .ancestors()
        .filter(hidden)
        .last()
        .and_then(Path::parent)
    {
        Some(folder) => ("a+x", folder),
        None if file.is_dir() => ("a+rx", file),
        None => ("a+r", file),
    }
}

/// A message of the parser in the words of TOML instead of those of Rust.
fn plain(message: &str) -> String {
    let mut message = message.to_owned();
    for (theirs, ours) in [
        ("invalid type: map,", "invalid type: a table,"),
        ("invalid type: sequence,", "invalid type: an array,"),
        (" as i128,", ","),
        (" as u128,", ","),
        ("a boolean", "true or false"),
        (
            "wanted string or table",
            "expected one of its words in quotes",
        ),
        (
            "unknown field `address`, expected",
            "`address` belongs in a [listener.NAME] table; here is expected",
        ),
        ("unknown field", "unknown key"),
        ("unknown variant", "unknown word"),
    ] {
        message = message.replace(theirs, ours);
    }
    message
}

/// The settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The listeners that the configuration names.
    pub listeners: Vec<Listener>,
    /// Common options, also for passed sockets of no table.
    pub socket: Options,
    /// The limits of a connection.
    pub limits: echo::Limits,
    /// How long a stop is announced before it begins; zero: not at all.
    pub lame_duck: Duration,
    /// Connections at a time; `None`: as many as the descriptors allow.
    pub max_connections: Option<usize>,
    /// Connections at a time from one source.
    pub per_source: PerSource,
    /// What is logged, and how.
    pub log: Log,
    /// Where the metrics are served; `None`: only on a passed socket.
    pub metrics: Option<Address>,
    /// The longest sleep of an event loop.
    pub poll_timeout: Option<Duration>,
    /// How long an event loop looks for more events before it sleeps, at most 10 ms.
    pub busy_poll: Duration,
    /// Event loops that serve connections, 1 to 64.
    pub workers: usize,
    /// Listening beyond loopback is intended.
    pub allow_remote: bool,
    /// Connections survive the process, if the service manager preserves them.
    pub preserve_connections: bool,
    /// The age from which on a connection is preserved.
    pub preserve_after: Duration,
    /// The files that were read.
    pub read: Vec<PathBuf>,
}

/// One named listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Its table's name; a passed socket of this name takes its place.
    pub name: String,
    /// Where to listen; `None`: only on a passed socket.
    pub address: Option<Address>,
    /// The options of its socket, those of `[socket]` included.
    pub options: Options,
}

impl Listener {
    /// What it is for.
    #[must_use]
    pub fn role(&self) -> Role {
        self.options.role(&self.name)
    }
}

/// How many connections at a time one source may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerSource {
    /// A quarter of all connections.
    Quarter,
    /// No limit.
    Off,
    /// This many.
    Most(usize),
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least important level that is logged.
    pub level: Level,
    /// The form of the log.
    pub format: Format,
    /// Bytes of payload in a turn's event.
    pub payload_preview: usize,
    /// Ends of connections that are logged one by one in a second.
    pub connection_rate: u32,
}

impl Options {
    /// The options of a listener that the daemon opens, where the configuration names no others.
    #[must_use]
    pub fn built_in() -> Self {
        Self {
            address: None,
            reuse_address: Some(true),
            reuse_port: Some(false),
            v6only: None,
            backlog: Some(Count(4096)),
            receive_buffer: Some(OrAuto(None)),
            send_buffer: Some(OrAuto(None)),
            nodelay: Some(true),
            quickack: Some(false),
            keepalive: Some(true),
            keepalive_idle: Some(Seconds(Duration::from_secs(300))),
            keepalive_interval: Some(Seconds(Duration::from_secs(15))),
            keepalive_probes: Some(Count(5)),
            user_timeout: Some(OrOff(None)),
            notsent_lowat: Some(OrOff(Some(Size(128 * 1024)))),
            congestion: None,
            dscp: Some(Count(0)),
            mode: None,
            group: None,
            proxy: Some(Proxy::Off),
            proxy_trusted: Some(Networks(loopback())),
            proxy_timeout: Some(Span(Duration::from_secs(5))),
        }
    }

    /// What the listener of this name is for.
    #[must_use]
    pub fn role(&self, name: &str) -> Role {
        match self.mode {
            Some(Mode::Role(role)) => role,
            Some(Mode::Permissions(_)) | None => Role::of(name),
        }
    }

    /// The options of a passed socket where the configuration names no others: those for which a
    /// socket unit has no setting.
    #[must_use]
    pub(crate) fn passed() -> Self {
        let built_in = Self::built_in();
        Self {
            notsent_lowat: built_in.notsent_lowat,
            proxy: built_in.proxy,
            proxy_trusted: built_in.proxy_trusted,
            proxy_timeout: built_in.proxy_timeout,
            ..Self::default()
        }
    }

    /// Whether PROXY headers are taken from this address.
    #[must_use]
    pub(crate) fn trusts(&self, peer: IpAddr) -> bool {
        let trusted = self.proxy_trusted.as_ref();
        trusted.is_some_and(|networks| networks.contain(peer))
    }

    /// How long the PROXY header of a connection may take; `None`: connections begin without one.
    #[must_use]
    pub(crate) fn header_timeout(&self) -> Option<Duration> {
        match (self.proxy, self.proxy_timeout) {
            (Some(Proxy::Required), Some(Span(timeout))) => Some(timeout),
            _ => None,
        }
    }
}

/// The loopback addresses.
fn loopback() -> Vec<Network> {
    let texts = ["127.0.0.0/8", "::1"];
    let networks = texts.map(|text| Network::from_text(text).expect("a network"));
    networks.to_vec()
}

/// The sources of the configuration; a reload reads the same ones.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// `--config` or `TCP_ECHO_CONFIG`.
    pub file: Option<PathBuf>,
    /// `--listen`; when given at all, it replaces the listeners of the files.
    pub listen: Vec<Address>,
    /// `--log`.
    pub level: Option<Level>,
    /// `--log-format`.
    pub format: Option<Format>,
    /// `RUST_LOG`, below the files.
    pub fallback_level: Option<Level>,
}

impl Origin {
    /// Reads, checks and completes the configuration.
    ///
    /// # Errors
    /// [`Error`] names the file, and the place in it.
    pub fn load(&self) -> Result<Config, Error> {
        let path = self.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
        let file = FileConfig::load(path, self.file.is_some())?;
        Ok(self.complete(file))
    }

    fn complete(&self, file: FileConfig) -> Config {
        let FileConfig {
            main,
            limits,
            log,
            metrics,
            socket,
            listeners,
            read,
        } = file;
        let listeners = if self.listen.is_empty() {
            listeners
                .into_iter()
                .map(|(name, mut options)| Listener {
                    name,
                    address: options.address.take(),
                    options: options.over(socket.clone()),
                })
                .collect()
        } else {
            self.listen
                .iter()
                .map(|address| Listener {
                    name: address.to_string(),
                    address: Some(address.clone()),
                    options: socket.clone(),
                })
                .collect()
        };
        let usual = echo::Limits::default();
        let span = |written: Option<OrOff<Span>>, usual| match written {
            Some(OrOff(span)) => span.map(|Span(span)| span),
            None => usual,
        };
        Config {
            listeners,
            socket,
            limits: echo::Limits {
                idle: span(limits.idle_timeout, usual.idle),
                stall: span(limits.stall_timeout, usual.stall),
                lifetime: span(limits.max_lifetime, usual.lifetime),
                bytes: limits
                    .max_bytes
                    .and_then(|OrOff(size)| size)
                    .map(|Size(size)| size),
                stop_timeout: limits
                    .stop_timeout
                    .map_or(usual.stop_timeout, |Span(span)| span),
            },
            lame_duck: span(limits.lame_duck, None).unwrap_or_default(),
            max_connections: limits
                .max_connections
                .and_then(|OrAuto(most)| most)
                .map(|most| most.0 as usize),
            per_source: match limits.max_connections_per_source {
                None | Some(OrAuto(None)) => PerSource::Quarter,
                Some(OrAuto(Some(OrOff(None)))) => PerSource::Off,
                Some(OrAuto(Some(OrOff(Some(Count(most)))))) => PerSource::Most(most as usize),
            },
            log: Log {
                level: self
                    .level
                    .or(log.level)
                    .or(self.fallback_level)
                    .unwrap_or(Level::Info),
                format: self.format.or(log.format).unwrap_or(Format::Auto),
                payload_preview: log.payload_preview.map_or(0, |bytes| bytes.0 as usize),
                connection_rate: log.connection_rate.map_or(50, |rate| rate.0),
            },
            metrics: metrics.address,
            poll_timeout: span(main.poll_timeout, None),
            busy_poll: main
                .busy_poll
                .and_then(|OrOff(span)| span)
                .map_or(Duration::ZERO, |Moment(span)| span),
            workers: match main.workers {
                None => 1,
                Some(OrAuto(Some(Count(count)))) => count as usize,
                Some(OrAuto(None)) => processors(),
            },
            allow_remote: main.allow_remote.unwrap_or(false),
            preserve_connections: main.preserve_connections.unwrap_or(true),
            preserve_after: main
                .preserve_after
                .map_or(Duration::from_secs(1), |Span(span)| span),
            read,
        }
    }
}

/// Processors that this process may use, at most 64.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(64))
}

impl PerSource {
    /// The number for a daemon that serves `connections` at a time; at least one.
    #[must_use]
    pub fn most(self, connections: usize) -> Option<usize> {
        match self {
            Self::Quarter => Some((connections / 4).max(1)),
            Self::Off => None,
            Self::Most(most) => Some(most),
        }
    }
}

impl Config {
    /// The most connections to serve with so many `descriptors` for them.  More than
    /// [`MOST_CONNECTIONS`] have to be asked for.
    #[must_use]
    pub fn connections(&self, descriptors: usize) -> usize {
        self.max_connections
            .unwrap_or(descriptors.min(MOST_CONNECTIONS))
    }

    fn listener(&self, name: &str) -> Option<&Listener> {
        self.listeners.iter().find(|listener| listener.name == name)
    }

    /// The options that the configuration has for a passed socket of this name.
    #[must_use]
    pub fn options_for(&self, name: &str) -> &Options {
        self.listener(name)
            .map_or(&self.socket, |listener| &listener.options)
    }

    /// The options that are set on a passed socket of this name; the others stay as its unit says.
    #[must_use]
    pub(crate) fn options_of_passed(&self, name: &str) -> Options {
        self.options_for(name).clone().over(Options::passed())
    }

    /// The keys of `new` that need a restart in a daemon that was started with `self`.
    #[must_use]
    pub fn needs_restart(&self, new: &Self) -> Vec<String> {
        let mut keys = Vec::new();
        for key in KEYS {
            if let (Effect::AtRestart, Show::Daemon(show)) = (key.effect, key.show) {
                if show(self) != show(new) {
                    keys.push(key.full_name());
                }
            }
        }
        keys.extend(self.differ(new, |option, _| keys::is_fixed(option)));
        for name in names(self, new) {
            match (self.listener(&name), new.listener(&name)) {
                (Some(old), Some(new)) if old.address != new.address => {
                    keys.push(format!("listener.{name}.address"));
                }
                (Some(_), Some(_)) => {}
                _ => keys.push(format!("listener.{name}")),
            }
        }
        keys.sort();
        keys
    }

    /// The keys that are set and that `new` leaves to the kernel, which does not restore its own value.
    #[must_use]
    pub fn cannot_undo(&self, new: &Self) -> Vec<String> {
        self.differ(new, |key, new| match key {
            // Once a size was set, the kernel does not tune the socket's buffer again.
            "receive-buffer" => !matches!(new.receive_buffer, Some(OrAuto(Some(_)))),
            "send-buffer" => !matches!(new.send_buffer, Some(OrAuto(Some(_)))),
            // What the kernel had before is not known.
            "congestion" => new.congestion.is_none(),
            _ => false,
        })
    }

    /// The options that differ, of those that `matters` selects; one that differs in `[socket]` is named
    /// only there.
    fn differ(&self, new: &Self, matters: impl Fn(&str, &Options) -> bool) -> Vec<String> {
        let differ = |old: &Options, new: &Options| {
            let mut keys = old.differ(new);
            keys.retain(|key| matters(key, new));
            keys
        };
        let common = differ(&self.socket, &new.socket);
        let mut keys: Vec<String> = common.iter().map(|key| format!("socket.{key}")).collect();
        for listener in &self.listeners {
            let Some(other) = new.listener(&listener.name) else {
                continue;
            };
            let own = differ(&listener.options, &other.options).into_iter();
            let own = own.filter(|key| !common.contains(key));
            keys.extend(own.map(|key| format!("listener.{}.{key}", listener.name)));
        }
        keys
    }
}

fn names(one: &Config, other: &Config) -> Vec<String> {
    let mut names: Vec<String> = one
        .listeners
        .iter()
        .chain(&other.listeners)
        .map(|listener| listener.name.clone())
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("tcp-echo-config-{name}-{}", std::process::id()));
            std::fs::create_dir_all(path.join("config.toml.d")).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, text: &str) -> &Self {
            std::fs::write(self.0.join(name), text).unwrap();
            self
        }

        fn origin(&self) -> Origin {
            Origin {
                file: Some(self.0.join("config.toml")),
                ..Origin::default()
            }
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn an_absent_default_file_is_fine_and_a_named_one_is_not() {
        assert!(FileConfig::load(Path::new("/nonexistent/config.toml"), false).is_ok());
        let error = FileConfig::load(Path::new("/nonexistent/config.toml"), true).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/nonexistent/config.toml: cannot be read"),
            "{error}"
        );
    }

    #[test]
    fn drop_ins_merge_by_key_in_the_order_of_their_names() {
        let folder = Folder::new("merge");
        folder
            .write("config.toml", "[limits]\nidle-timeout = '1min'\nmax-bytes = 7\n[listener.a]\naddress = '*:1'\nnodelay = false\n")
            .write("config.toml.d/20-b.toml", "[limits]\nidle-timeout = '3min'\n[listener.a]\naddress = '*:2'\n")
            .write("config.toml.d/10-a.toml", "[limits]\nidle-timeout = '2min'\n[socket]\nquickack = true\n")
            .write("config.toml.d/.hidden.toml", "nonsense")
            .write("config.toml.d/README", "nonsense");
        let config = folder.origin().load().unwrap();
        assert_eq!(config.limits.idle, Some(Duration::from_secs(180)));
        assert_eq!(config.limits.bytes, Some(7));
        let listener = &config.listeners[0];
        assert_eq!(listener.address, Some(Address::Any(2)));
        assert_eq!(
            (listener.options.nodelay, listener.options.quickack),
            (Some(false), Some(true))
        );
        assert_eq!(config.read.len(), 3);
    }

    #[test]
    fn errors_name_file_line_column_and_what_would_be_right() {
        for (text, parts) in [
            (
                "nodelay = true",
                &[
                    "line 1, column 1",
                    "unknown key `nodelay`",
                    "`poll-timeout`",
                ][..],
            ),
            (
                "[limits]\nidle-timeout = '5 elephants'",
                &[
                    "line 2, column 16",
                    "idle-timeout = '5 elephants'",
                    "\"90s\"",
                ],
            ),
            (
                "[listener.x]\naddress = '224.0.0.1:7'",
                &["line 2, column 11", "multicast"],
            ),
            (
                "[socket]\naddress = '*:7'",
                &["line 2, column 1", "belongs in a [listener.NAME] table"],
            ),
            (
                "[log]\nlevel = 5",
                &["line 2, column 9", "one of its words in quotes"],
            ),
            (
                "[limits]\nmax-connections-per-source = 0",
                &["line 2, column 30", "from 1 to", "or \"off\""],
            ),
            (
                "[socket]\nkeepalive-probes = 300",
                &["line 2, column 20", "from 1 to 127"],
            ),
            ("[log]\nlevel = 'loud'", &["line 2, column 9", "`debug`"]),
            ("[limits", &["line 1, column 8"]),
            (
                "limits = [5, 2, '3s']",
                &["line 1, column 10", "an array, expected a table"],
            ),
            (
                "limits = 5",
                &["line 1, column 10", "`5`, expected a table"],
            ),
            (
                "socket = [[]]",
                &["line 1, column 10", "an array, expected a table"],
            ),
            (
                "[[socket]]",
                &["line 1, column 1", "an array, expected a table"],
            ),
            (
                "[listener]\na = [1]",
                &["line 2, column 5", "an array, expected a table"],
            ),
            (
                "[listener]\na = 'b'",
                &["line 2, column 5", "expected a table"],
            ),
            (
                "listener = []",
                &["line 1, column 12", "an array, expected a table"],
            ),
            (
                "preserve-after = {}",
                &["line 1, column 18", "a table, expected a span of time"],
            ),
            (
                "allow-remote = {}",
                &["line 1, column 16", "a table, expected true or false"],
            ),
            (
                "open = true",
                &["unknown key `open`", "its name is `allow-remote`"],
            ),
            ("survival-delay = '1s'", &["its name is `preserve-after`"]),
            (
                "allow-remote = 99999999999999999999",
                &["line 1, column 16", "expected true or false"],
            ),
            (
                "workers = 99999999999999999999",
                &["line 1, column 11", "from 1 to 64"],
            ),
            (
                "[socket]\nkeepalive-probes = 99999999999999999999",
                &["line 2, column 20", "from 1 to 127"],
            ),
            (
                "[limits]\nmax-bytes = 99999999999999999999",
                &["line 2, column 13", "too large"],
            ),
            (
                "[limits]\nstop-timeout = '0'",
                &["line 2, column 16", "has no unit", "expected a span"],
            ),
            (
                "preserve-after = '1M'",
                &["line 1, column 18", "\"1min\"", "\"1month\""],
            ),
            (
                "[socket]\nnodelai = true",
                &["line 2, column 1", "unknown key `nodelai`", "`nodelay`"],
            ),
        ] {
            let folder = Folder::new("errors");
            let error = folder
                .write("config.toml", text)
                .origin()
                .load()
                .unwrap_err()
                .to_string();
            let offered = error.contains("`address`") && !text.contains("address");
            assert!(
                !offered || !text.contains("[socket]"),
                "{text:?} gives {error:?}"
            );
            for part in parts.iter().chain([&"config.toml: "]) {
                assert!(
                    error.contains(part),
                    "{text:?} gives {error:?} without {part:?}"
                );
            }
        }
    }

    #[test]
    fn an_error_speaks_of_the_file_and_not_of_the_program() {
        for (text, wrong) in [
            ("limits = [5, 2, '3s']", "LimitsFile"),
            ("limits = 5", "struct"),
            ("allow-remote = 99999999999999999999", "i128"),
            ("workers = 99999999999999999999", "i128"),
            ("preserve-after = {}", "invalid type: map"),
            ("[log]\nlevel = 5", "enum"),
            ("[log]\nlevel = []", "enum"),
            ("[listener]\na = []", "struct"),
        ] {
            let folder = Folder::new("words");
            let error = folder.write("config.toml", text).origin().load();
            let error = error.unwrap_err().to_string();
            assert!(!error.contains(wrong), "{text:?} gives {error:?}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_says_what_to_do_about_it() {
        let folder = Folder::new("unreadable");
        std::fs::write(
            folder.0.join("config.toml"),
            b"allow-remote = true\n# caf\xe9\n",
        )
        .unwrap();
        let error = folder.origin().load().unwrap_err().to_string();
        assert!(error.contains("line 2 is not UTF-8"), "{error}");
        let denied = |file: &Path| Error::Read {
            file: file.into(),
            error: std::io::Error::from_raw_os_error(libc::EACCES),
        };
        let file = folder.0.join("config.toml");
        let error = denied(&file).to_string();
        assert!(
            error.contains(&format!("chmod a+r {}", file.display())),
            "{error}"
        );
        let error = denied(&folder.0.join("config.toml.d")).to_string();
        assert!(error.contains("chmod a+rx "), "{error}");
        if rustix::process::geteuid().is_root() {
            return;
        }
        let mode = |mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&folder.0, mode).unwrap();
        };
        mode(0o600);
        let error = folder.origin().load().unwrap_err().to_string();
        mode(0o700);
        assert!(
            error.contains(&format!("chmod a+x {}", folder.0.display())),
            "{error}"
        );
    }

    #[test]
    fn the_command_line_wins_and_rust_log_is_the_last() {
        let folder = Folder::new("precedence");
        folder.write(
            "config.toml",
            "[log]\nlevel = 'warn'\n[listener.a]\naddress = '*:1'\n",
        );
        let mut origin = folder.origin();
        origin.fallback_level = Some(Level::Trace);
        assert_eq!(origin.load().unwrap().log.level, Level::Warn);
        origin.level = Some(Level::Debug);
        origin.listen = vec!["127.0.0.1:0".parse().unwrap()];
        let config = origin.load().unwrap();
        assert_eq!(config.log.level, Level::Debug);
        assert_eq!(config.listeners.len(), 1);
        assert_eq!(config.listeners[0].name, "127.0.0.1:0");
        folder.write("config.toml", "");
        origin.level = None;
        assert_eq!(origin.load().unwrap().log.level, Level::Trace);
    }

    #[test]
    fn a_reload_names_what_it_cannot_change() {
        let folder = Folder::new("restart");
        let old = folder
            .write("config.toml", "[listener.a]\naddress = '*:1'\n")
            .origin()
            .load()
            .unwrap();
        let new = folder
            .write("config.toml", "[listener.a]\naddress = '*:2'\nbacklog = 5\nnodelay = false\n[listener.b]\naddress = '*:3'\n")
            .origin()
            .load()
            .unwrap();
        assert_eq!(
            old.needs_restart(&new),
            ["listener.a.address", "listener.a.backlog", "listener.b"]
        );
        assert!(old.needs_restart(&old).is_empty());
    }

    #[test]
    fn a_quarter_is_at_least_one() {
        assert_eq!(PerSource::Quarter.most(2), Some(1));
        assert_eq!(PerSource::Quarter.most(100), Some(25));
        assert_eq!(PerSource::Off.most(100), None);
    }
}
