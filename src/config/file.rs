//! The configuration as it is written: every key is optional, none is unknown.
//!
//! `section!` defines a table once: its keys, and how a later file is laid over an earlier one,
//! key by key.  Ranges are the business of the types ([`super::units`]), so that an error carries
//! its place in the file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::Error;
use super::address::Address;
use super::units::{Count, Group, Mode, Moment, OrAuto, OrOff, Seconds, Size, Span};

/// No configuration file is larger, in bytes.
const LARGEST: u64 = 1024 * 1024;

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize, PartialEq)]
        #[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: Option<$type>),+ }

        impl $name {
            /// These settings, and those of `base` where nothing is said here.
            #[must_use]
            pub fn over(self, base: Self) -> Self {
                Self { $($field: self.$field.or(base.$field)),+ }
            }

            /// The keys that differ between the two.
            #[must_use]
            pub fn differ(&self, other: &Self) -> Vec<String> {
                let mut keys = Vec::new();
                $(if self.$field != other.$field {
                    keys.push(stringify!($field).replace('_', "-"));
                })+
                keys
            }
        }
    };
}

/// [`Options`], and the same without an address for `[socket]`.
macro_rules! options {
    ($(#[$doc:meta])* Options {
        $(#[$address_doc:meta])* address: Address,
        $($(#[$field_doc:meta])* $field:ident: $type:ty),+ $(,)?
    }) => {
        section! {
            $(#[$doc])*
            Options {
                $(#[$address_doc])* address: Address,
                $($(#[$field_doc])* $field: $type),+
            }
        }

        section! {
            /// `[socket]`.
            SocketFile { $($(#[$field_doc])* $field: $type),+ }
        }

        impl From<SocketFile> for Options {
            fn from(file: SocketFile) -> Self {
                Self { address: None, $($field: file.$field),+ }
            }
        }
    };
}

options! {
    /// Options of a listener's socket and of the connections that it accepts; what is absent is
    /// left as it is.  Source of each: socket(7), tcp(7), ip(7), ipv6(7).
    Options {
        /// Where to listen; only in a `[listener.NAME]` table.
        address: Address,
        /// `SO_REUSEADDR`: listen again over connections in TIME-WAIT; always on where connections
        /// are preserved, as those that wait for the next process would keep it from the address.
        reuse_address: bool,
        /// `SO_REUSEPORT`: let other processes of the same user share the port.
        reuse_port: bool,
        /// `IPV6_V6ONLY`: whether an IPv6 socket leaves IPv4 alone.
        v6only: bool,
        /// Callers that wait to be accepted, listen(2).
        backlog: Count<1, 1_000_000>,
        /// `SO_RCVBUF`, in bytes; "auto" leaves the kernel's autotuning on.
        receive_buffer: OrAuto<Size>,
        /// `SO_SNDBUF`, in bytes; "auto" leaves the kernel's autotuning on.
        send_buffer: OrAuto<Size>,
        /// `TCP_NODELAY`: send small segments at once.
        nodelay: bool,
        /// `TCP_QUICKACK`: acknowledge at once; set again after each read.
        quickack: bool,
        /// `SO_KEEPALIVE`: probe idle peers.
        keepalive: bool,
        /// `TCP_KEEPIDLE`: silence before the first probe.
        keepalive_idle: Seconds<32767>,
        /// `TCP_KEEPINTVL`: between probes.
        keepalive_interval: Seconds<32767>,
        /// `TCP_KEEPCNT`: unanswered probes before the connection is dropped.
        keepalive_probes: Count<1, 127>,
        /// `TCP_USER_TIMEOUT`: how long sent data may stay unacknowledged.
        user_timeout: OrOff<Span>,
        /// `TCP_NOTSENT_LOWAT`: unsent bytes in the send queue above which it counts as full.
        notsent_lowat: OrOff<Size>,
        /// `TCP_CONGESTION`: the algorithm, such as "cubic".
        congestion: Congestion,
        /// The differentiated services code point (RFC 2474), 0 to 63.
        dscp: Count<0, 63>,
        /// Permissions of the path of a Unix socket that is bound here, chmod(2).
        mode: Mode,
        /// Group of the path of a Unix socket that is bound here, chown(2).
        group: Group,
    }
}

section! {
    /// `[limits]`.
    LimitsFile {
        /// Connections at a time.
        max_connections: OrAuto<Count<1, 1_000_000>>,
        /// Connections at a time from one source.
        max_connections_per_source: OrAuto<OrOff<Count<1, 1_000_000>>>,
        /// See [`crate::echo::Limits`].
        idle_timeout: OrOff<Span>,
        /// See [`crate::echo::Limits`].
        stall_timeout: OrOff<Span>,
        /// See [`crate::echo::Limits`].
        max_lifetime: OrOff<Span>,
        /// See [`crate::echo::Limits`].
        max_bytes: OrOff<Size>,
        /// See [`crate::echo::Limits`].
        stop_timeout: Span,
    }
}

section! {
    /// `[log]`.
    LogFile {
        /// What is told.
        level: crate::cli::Level,
        /// How it is told.
        format: crate::cli::Format,
        /// Bytes of payload in a turn's event at level trace.
        payload_preview: Count<0, 65536>,
        /// Ended connections told one by one, each second.
        connection_rate: Count<0, 1_000_000>,
    }
}

section! {
    /// The keys before the first table.
    MainFile {
        /// The longest sleep of the loop.
        poll_timeout: OrOff<Span>,
        /// How long the loop looks for more before it sleeps.
        busy_poll: OrOff<Moment>,
        /// Loops that serve connections.
        workers: OrAuto<Count<1, 64>>,
        /// Listening beyond loopback is intended.
        open: bool,
        /// Connections outlive the process, if the service manager keeps them.
        survival: bool,
        /// How old a connection has to be before it is kept.
        survival_delay: Span,
    }
}

/// The name of a congestion control algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Congestion(pub String);

impl<'de> Deserialize<'de> for Congestion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        // TCP_CA_NAME_MAX is 16 with the final zero.
        if name.is_empty() || name.len() > 15 || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(D::Error::custom(
                "not a congestion control; expected a name of at most 15 characters, such as \"cubic\" \
                 (see net.ipv4.tcp_available_congestion_control)",
            ));
        }
        Ok(Self(name))
    }
}

/// A table and nothing else: what serde derives takes an array for one, too.
#[derive(Default)]
struct Table<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Table<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Table<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Table)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// All files, laid over each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FileConfig {
    /// The keys before the first table.
    pub main: MainFile,
    /// `[limits]`.
    pub limits: LimitsFile,
    /// `[log]`.
    pub log: LogFile,
    /// `[socket]`.
    pub socket: Options,
    /// `[listener.NAME]`.
    pub listeners: BTreeMap<String, Options>,
    /// The files that were read, in order.
    pub read: Vec<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct Tables {
    poll_timeout: Option<OrOff<Span>>,
    busy_poll: Option<OrOff<Moment>>,
    workers: Option<OrAuto<Count<1, 64>>>,
    open: Option<bool>,
    survival: Option<bool>,
    survival_delay: Option<Span>,
    limits: Table<LimitsFile>,
    log: Table<LogFile>,
    socket: Table<SocketFile>,
    listener: Table<BTreeMap<String, Table<Options>>>,
}

impl FileConfig {
    /// Reads the main file and its drop-ins: `FILE.d/*.toml`, in the order of their names.
    ///
    /// A main file that is absent is fine unless it is `required`.
    ///
    /// # Errors
    /// [`Error`] names the file, and the place in it.
    pub fn load(file: &Path, required: bool) -> Result<Self, Error> {
        let mut config = Self::default();
        match read(file) {
            Ok(text) => config = Self::parse(file, &text)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => {}
            Err(error) => {
                return Err(Error::Read {
                    file: file.into(),
                    error,
                });
            }
        }
        let mut folder = file.as_os_str().to_owned();
        folder.push(".d");
        for drop_in in drop_ins(Path::new(&folder))? {
            let text = read(&drop_in).map_err(|error| Error::Read {
                file: drop_in.clone(),
                error,
            })?;
            config = Self::parse(&drop_in, &text)?.over(config);
        }
        Ok(config)
    }

    fn parse(file: &Path, text: &str) -> Result<Self, Error> {
        let tables: Tables = toml::from_str(text).map_err(|error| Error::Parse {
            file: file.into(),
            error: Box::new(error),
        })?;
        Ok(Self {
            main: MainFile {
                poll_timeout: tables.poll_timeout,
                busy_poll: tables.busy_poll,
                workers: tables.workers,
                open: tables.open,
                survival: tables.survival,
                survival_delay: tables.survival_delay,
            },
            limits: tables.limits.0,
            log: tables.log.0,
            socket: tables.socket.0.into(),
            listeners: tables
                .listener
                .0
                .into_iter()
                .map(|(name, Table(options))| (name, options))
                .collect(),
            read: vec![file.into()],
        })
    }

    fn over(self, base: Self) -> Self {
        let mut listeners = base.listeners;
        for (name, options) in self.listeners {
            let under = listeners.remove(&name).unwrap_or_default();
            listeners.insert(name, options.over(under));
        }
        let mut read = base.read;
        read.extend(self.read);
        Self {
            main: self.main.over(base.main),
            limits: self.limits.over(base.limits),
            log: self.log.over(base.log),
            socket: self.socket.over(base.socket),
            listeners,
            read,
        }
    }
}

/// Reads a file whole.
///
/// The loop reads here, and may wait for a disk, but not for a writer that never comes or for a
/// device without an end.
fn read(path: &Path) -> io::Result<String> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_fifo() || kind.is_socket() {
        return Err(io::Error::other(
            "it is a pipe, and could not be read again; name a file",
        ));
    }
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other(
            "it is larger than 1 MiB, which no configuration is",
        ));
    }
    String::from_utf8(text).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        io::Error::other(format!("line {line} is not UTF-8 text"))
    })
}

fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(Error::Read {
                file: folder.into(),
                error,
            });
        }
    };
    let mut files = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::Read {
            file: folder.into(),
            error,
        })?;
    // A leading dot marks an editor's file; the order is that of the names.
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "toml")
            && file
                .file_name()
                .is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."))
    });
    files.sort();
    Ok(files)
}
