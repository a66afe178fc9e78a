//! The configuration as it is written: every key is optional, and an unknown key is an error.
//!
//! `section!` defines the keys of a table, and how a later file is laid over an earlier one, key by
//! key.  The types ([`super::units`]) check the ranges, so that an error carries its place in the
//! file.  What the keys mean is in [`super::keys`].

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::Error;
use super::address::Address;
use super::units::{
    Congestion, Count, Group, Mode, Moment, Networks, OrAuto, OrOff, Proxy, Seconds, Size, Span,
};
use crate::cli::{Format, Level};

/// The largest configuration file that is read, in bytes.
const LARGEST: u64 = 1024 * 1024;

macro_rules! section {
    ($(#[$doc:meta])* $vis:vis $name:ident { $($field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize, PartialEq)]
        #[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
        #[allow(missing_docs, reason = "keys::KEYS says what each key means")]
        $vis struct $name { $($vis $field: Option<$type>),+ }

        #[allow(dead_code, reason = "not every table is laid over another, compared or listed")]
        impl $name {
            /// The names of the keys.
            #[cfg(test)]
            pub(super) fn names() -> Vec<String> {
                vec![$(key(stringify!($field))),+]
            }

            /// These values, and those of `base` for the keys that are absent here.
            #[must_use]
            $vis fn over(self, base: Self) -> Self {
                Self { $($field: self.$field.or(base.$field)),+ }
            }

            /// The names of the keys whose values differ between the two.
            #[must_use]
            $vis fn differ(&self, other: &Self) -> Vec<String> {
                let mut keys = Vec::new();
                $(if self.$field != other.$field {
                    keys.push(key(stringify!($field)));
                })+
                keys
            }
        }
    };
}

/// The key of a field.
fn key(field: &str) -> String {
    field.replace('_', "-")
}

/// [`Options`], and the same without what only one listener can have for `[socket]`.
macro_rules! options {
    ($(#[$doc:meta])* Options { address: Address, $($field:ident: $type:ty),+ $(,)? }) => {
        section! {
            $(#[$doc])*
            pub Options { address: Address, $($field: $type),+ }
        }

        /// `[socket]`.
        #[derive(Clone, Debug, Default, Deserialize, PartialEq)]
        #[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
        pub(super) struct SocketFile { $($field: Option<$type>),+ }

        impl From<SocketFile> for Options {
            fn from(file: SocketFile) -> Self {
                Self { address: None, $($field: file.$field),+ }
            }
        }
    };
}

options! {
    /// The options of a listener's socket and of the connections that it accepts: `[socket]` and
    /// `[listener.NAME]`.  An option of a socket that is absent is not set, so the socket keeps what it
    /// has; the keys of PROXY headers are not options of a socket.
    Options {
        address: Address,
        reuse_address: bool,
        reuse_port: bool,
        v6only: bool,
        backlog: Count<1, 1_000_000>,
        receive_buffer: OrAuto<Size>,
        send_buffer: OrAuto<Size>,
        nodelay: bool,
        quickack: bool,
        keepalive: bool,
        keepalive_idle: Seconds<32767>,
        keepalive_interval: Seconds<32767>,
        keepalive_probes: Count<1, 127>,
        user_timeout: OrOff<Span>,
        notsent_lowat: OrOff<Size>,
        congestion: Congestion,
        dscp: Count<0, 63>,
        mode: Mode,
        group: Group,
        proxy: Proxy,
        proxy_trusted: Networks,
        proxy_timeout: Span,
    }
}

section! {
    /// `[limits]`.
    pub(super) LimitsFile {
        max_connections: OrAuto<Count<1, 1_000_000>>,
        max_connections_per_source: OrAuto<OrOff<Count<1, 1_000_000>>>,
        idle_timeout: OrOff<Span>,
        stall_timeout: OrOff<Span>,
        max_lifetime: OrOff<Span>,
        max_bytes: OrOff<Size>,
        lame_duck: OrOff<Span>,
        stop_timeout: Span,
    }
}

section! {
    /// `[log]`.
    pub(super) LogFile {
        level: Level,
        format: Format,
        connection_rate: Count<0, 1_000_000>,
        payload_preview: Count<0, 65536>,
    }
}

section! {
    /// `[metrics]`.
    pub(super) MetricsFile {
        address: Address,
    }
}

section! {
    /// The keys before the first table, and the tables.
    pub(super) MainFile {
        allow_remote: bool,
        preserve_connections: bool,
        preserve_after: Span,
        poll_timeout: OrOff<Span>,
        busy_poll: OrOff<Moment>,
        workers: OrAuto<Count<1, 64>>,
        limits: Table<LimitsFile>,
        log: Table<LogFile>,
        metrics: Table<MetricsFile>,
        socket: Table<SocketFile>,
        listener: Table<BTreeMap<String, Table<Options>>>,
    }
}

/// A table and nothing else: what serde derives would accept an array as well.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Table<T>(T);

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
pub(super) struct FileConfig {
    /// The keys before the first table; its tables are empty, as they stand below.
    pub(super) main: MainFile,
    /// `[limits]`.
    pub(super) limits: LimitsFile,
    /// `[log]`.
    pub(super) log: LogFile,
    /// `[metrics]`.
    pub(super) metrics: MetricsFile,
    /// `[socket]`.
    pub(super) socket: Options,
    /// `[listener.NAME]`, by name.
    pub(super) listeners: BTreeMap<String, Options>,
    /// The files that were read, in order.
    pub(super) read: Vec<PathBuf>,
}

fn table<T: Default>(table: &mut Option<Table<T>>) -> T {
    table.take().unwrap_or_default().0
}

impl FileConfig {
    /// Reads the main file and its drop-ins: `FILE.d/*.toml`, in the order of their names.
    ///
    /// A main file that is absent is fine unless it is `required`.
    ///
    /// # Errors
    /// [`Error`] names the file, and the place in it.
    pub(super) fn load(file: &Path, required: bool) -> Result<Self, Error> {
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
        let mut main: MainFile = toml::from_str(text).map_err(|error| Error::Parse {
            file: file.into(),
            error: Box::new(error),
        })?;
        let listeners = table(&mut main.listener).into_iter();
        Ok(Self {
            limits: table(&mut main.limits),
            log: table(&mut main.log),
            metrics: table(&mut main.metrics),
            socket: table(&mut main.socket).into(),
            listeners: listeners
                .map(|(name, Table(options))| (name, options))
                .collect(),
            read: vec![file.into()],
            main,
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
            metrics: self.metrics.over(base.metrics),
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
