//! The events: one table of what is logged, with ids, levels and fields; and their values.
//!
//! An `Event` is a value.  An event loop makes it and forgets it; the thread of the sink renders
//! it (`render`).  [`EVENTS`] says what a reader or a program can rely on.  The manual page
//! and the skeleton of the message catalog follow from it (`cargo xtask generate`), and so do the
//! ids in tests/systemd.
//!
//! Nothing that a peer sends gets into an event, except for its address and, on demand, a preview
//! of its payload, escaped.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::cli::Level;
use crate::config::units::Role;
use crate::echo::counters::Counters;
use crate::echo::end_reason::{Summary, same};
use crate::proxy_header::{Header, Invalid};
use crate::sys::endpoint::Endpoint;
use crate::sys::kernel::Kernel;
use crate::sys::option_report::Row;
use crate::sys::sockopt::{Credentials, Queue, Refused};
use crate::sys::tcp_info::TcpInfo;

/// A kind of events: a row of [`EVENTS`].
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name in the catalog, in tests and in documents: that of the `Event`, in capitals.
    pub name: &'static str,
    /// The id by which a program finds it (`journalctl MESSAGE_ID=`), 128 random bits: `uuidgen -r`
    /// without hyphens, as systemd-id128(1) makes them.
    pub id: &'static str,
    /// How important it usually is; `Event::level` says when it is more or less than that.
    pub level: Level,
    /// Its fields, each only where it applies.  In the journal the names are in capitals, with an
    /// underscore in place of the dot: `ECHO_PEER=`, `ERRNO=`.
    pub fields: &'static [&'static str],
}

/// Every kind of events.
pub const EVENTS: [Kind; 39] = [
    Kind {
        name: "STARTED",
        id: "e28f14c0857c416cbca1090fae4718ae",
        level: Level::Info,
        fields: &[
            "echo.version",
            "echo.files",
            "echo.max_connections",
            "echo.per_source",
        ],
    },
    Kind {
        name: "KERNEL",
        id: "238a737fc79f4b0185228c0b8d8ebe5f",
        level: Level::Info,
        fields: &[
            "echo.connect_timeout_ms",
            "echo.data_timeout_ms",
            "echo.somaxconn",
            "echo.tcp_max_syn_backlog",
            "echo.rmem_max",
            "echo.wmem_max",
            "echo.tcp_rmem_max",
            "echo.tcp_wmem_max",
            "echo.tcp_synack_retries",
            "echo.tcp_retries2",
            "echo.slow_start_after_idle",
        ],
    },
    Kind {
        name: "LISTENING",
        id: "66da9798332243448a6c1590529d5d3d",
        level: Level::Info,
        fields: &[
            "echo.listener",
            "echo.role",
            "echo.local",
            "echo.passed",
            "echo.options",
        ],
    },
    Kind {
        name: "READY",
        id: "709de5214d8b42cfae309a00711e4fe5",
        level: Level::Info,
        fields: &["echo.listen"],
    },
    Kind {
        name: "DRAINED",
        id: "251a1e45259e4e6587ebcff62172d532",
        level: Level::Info,
        fields: &[],
    },
    Kind {
        name: "UNDRAINED",
        id: "a696a57a81d74770a44c16973d18ab14",
        level: Level::Info,
        fields: &[],
    },
    Kind {
        name: "LAME_DUCK",
        id: "13574f4ef03c4e24b02fe9b029b92a5c",
        level: Level::Info,
        fields: &["echo.open", "echo.lame_duck_ms"],
    },
    Kind {
        name: "STOPPING",
        id: "dfc5bc61aaf64d89826286cb2ac52781",
        level: Level::Info,
        fields: &["echo.open", "echo.stop_timeout_ms"],
    },
    Kind {
        name: "STOPPED",
        id: "b546b27959714ab0a1bc5dd82d5806ce",
        level: Level::Info,
        fields: &[
            "echo.accepted",
            "echo.open",
            "echo.refused",
            "echo.checks",
            "echo.received",
            "echo.sent",
            "echo.reasons",
        ],
    },
    Kind {
        name: "RELOADED",
        id: "62ac936182ba4e0ca4887977cb2d0437",
        level: Level::Info,
        fields: &["echo.files", "echo.needs_restart"],
    },
    Kind {
        name: "RELOAD_FAILED",
        id: "3135d613ff064fc4b2e013bc4e288c01",
        level: Level::Error,
        fields: &[],
    },
    Kind {
        name: "START_FAILED",
        id: "5d7e87ea61024e1cb87e5535c77e00be",
        level: Level::Error,
        fields: &[],
    },
    Kind {
        name: "OPENED",
        id: "f6c24715b886444f891659a28a47d8fb",
        level: Level::Debug,
        fields: &[
            "echo.connection",
            "echo.peer",
            "echo.peer_pid",
            "echo.peer_uid",
            "echo.proxy",
            "echo.local",
            "echo.listener",
        ],
    },
    Kind {
        name: "MOVED",
        id: "b3930fa0301e4c589e4d63185b5b3a78",
        level: Level::Trace,
        fields: &[
            "echo.connection",
            "echo.received",
            "echo.sent",
            "echo.owed",
            "echo.preview",
        ],
    },
    Kind {
        name: "CLOSED",
        id: "4e825188735243ffa04e59da89f838a7",
        level: Level::Info,
        fields: &[
            "echo.connection",
            "echo.peer",
            "echo.peer_pid",
            "echo.peer_uid",
            "echo.proxy",
            "echo.authority",
            "echo.unique_id",
            "echo.endpoint",
            "echo.error",
            "echo.local",
            "echo.listener",
            "echo.received",
            "echo.sent",
            "echo.owed",
            "echo.duration_usec",
            "echo.reason",
            "errno",
            "echo.closed_first",
            "echo.rtt_usec",
            "echo.rttvar_usec",
            "echo.min_rtt_usec",
            "echo.segments",
            "echo.segments_again",
            "echo.segments_needless",
            "echo.mss",
            "echo.path_mtu",
            "echo.delivery_rate",
            "echo.busy_usec",
            "echo.rwnd_limited_usec",
            "echo.sndbuf_limited_usec",
        ],
    },
    Kind {
        name: "CLOSED_EMPTY",
        id: "0c55ac4d3d2e47399e28e874ce5d333b",
        level: Level::Info,
        fields: &["echo.count", "echo.reasons", "echo.sources"],
    },
    Kind {
        name: "CLOSED_MANY",
        id: "2fa50739ecdd4fc98b8fd9d8c9df4fa2",
        level: Level::Info,
        fields: &["echo.count", "echo.reasons", "echo.received", "echo.sent"],
    },
    Kind {
        name: "REFUSED",
        id: "00afb773cbf34747b73808877767c7a7",
        level: Level::Warn,
        fields: &["echo.peer", "echo.limit", "echo.count"],
    },
    Kind {
        name: "PAUSED",
        id: "2eb21e7394684092af1c3d8501e53566",
        level: Level::Warn,
        fields: &[
            "echo.listener",
            "echo.cause",
            "errno",
            "echo.open",
            "echo.count",
        ],
    },
    Kind {
        name: "RESUMED",
        id: "bf55f1d07771400ea344e8a94babd090",
        level: Level::Info,
        fields: &["echo.listener", "echo.duration_usec"],
    },
    Kind {
        name: "IGNORED",
        id: "9b9c717e52b0455fb2f3c005fe9b6866",
        level: Level::Warn,
        fields: &[],
    },
    Kind {
        name: "ACCEPT_FAILED",
        id: "f9316b0a3ce74e5cb515b067af13cd8b",
        level: Level::Warn,
        fields: &["echo.listener", "errno", "echo.count"],
    },
    Kind {
        name: "COUNTERS",
        id: "7cc00e0f218a49398192dbfc1f40e617",
        level: Level::Info,
        fields: &[
            "echo.accepted",
            "echo.open",
            "echo.refused",
            "echo.checks",
            "echo.received",
            "echo.sent",
            "echo.owed",
            "echo.reasons",
            "echo.queues",
        ],
    },
    Kind {
        name: "EXPOSED",
        id: "4019bf40d6cf43249b84868d863db712",
        level: Level::Warn,
        fields: &["echo.listener", "echo.local"],
    },
    Kind {
        name: "ISOLATED",
        id: "e2dcecbc495c4b32bd0b7bdace6b8717",
        level: Level::Warn,
        fields: &["echo.listener", "echo.local"],
    },
    Kind {
        name: "ROOT",
        id: "4a7a4ac7b2de40719e1b671c79eb50a7",
        level: Level::Warn,
        fields: &[],
    },
    Kind {
        name: "OPTION",
        id: "3c8b796df26747aaab009f1360cd62c1",
        level: Level::Warn,
        fields: &["echo.listener", "echo.option", "errno"],
    },
    Kind {
        name: "UNUSED",
        id: "b5e75560545b465aba693fd700a0b2eb",
        level: Level::Warn,
        fields: &["echo.listener"],
    },
    Kind {
        name: "ABSENT",
        id: "d18f50018b084175b9e13ce0c55d910a",
        level: Level::Info,
        fields: &[],
    },
    Kind {
        name: "RESERVED",
        id: "735b864c75c142fe8aea4073798c2c2c",
        level: Level::Warn,
        fields: &["echo.name"],
    },
    Kind {
        name: "MANAGER",
        id: "847d50b682e04215bd0fb1d7ee9ed904",
        level: Level::Warn,
        fields: &["errno"],
    },
    Kind {
        name: "CLAMPED",
        id: "f9d7d794254e496c95186bd7b67f6ece",
        level: Level::Warn,
        fields: &["echo.asked", "echo.max_connections"],
    },
    Kind {
        name: "PRESERVING",
        id: "a31e4c1d81744f6c880d7c15144baeb9",
        level: Level::Info,
        fields: &["echo.max_connections", "echo.per_source"],
    },
    Kind {
        name: "NOT_PRESERVING",
        id: "8c59b44899504210948a1bc498609de0",
        level: Level::Warn,
        fields: &["echo.reason"],
    },
    Kind {
        name: "RESTORED",
        id: "b7a544a1d4944ad69841e636ced82de4",
        level: Level::Info,
        fields: &[
            "echo.restored",
            "echo.of",
            "echo.owing",
            "echo.owed",
            "echo.planned",
            "echo.crashes",
        ],
    },
    Kind {
        name: "HANDED_OVER",
        id: "7421e840185647579c4b157481855911",
        level: Level::Info,
        fields: &["echo.preserved", "echo.open"],
    },
    Kind {
        name: "PRESERVE_FAILED",
        id: "c84db1bd54944134846d22a958183113",
        level: Level::Warn,
        fields: &["echo.count", "errno"],
    },
    Kind {
        name: "PREDECESSOR_DROPPED",
        id: "b68dfb7b65ab42b69b2248362535a20b",
        level: Level::Warn,
        fields: &["echo.reason", "echo.count"],
    },
    Kind {
        name: "LOST",
        id: "2651cf1d49be4b07abf3c1e4c1548b0b",
        level: Level::Warn,
        fields: &["echo.count"],
    },
];

/// The row of a name; one that the table lacks does not compile where it stands in a constant.
const fn kind(name: &str) -> &'static Kind {
    let events = const { &EVENTS };
    let mut at = 0;
    while at < events.len() {
        if same(events[at].name, name) {
            return &events[at];
        }
        at += 1;
    }
    panic!("EVENTS does not have this name")
}

/// The id of a kind of events, by its name.
///
/// # Panics
/// [`EVENTS`] has no such name.
#[must_use]
pub const fn id(name: &str) -> &'static str {
    kind(name).id
}

/// Why a listener is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// `limits.max-connections` connections are open.
    Limit,
    /// The process or the system lacks descriptors, or memory for them; the error of accept(2).
    Short(i32),
    /// The listener itself fails; the error of accept(2).
    Failing(i32),
}

/// What identifies a connection in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its number, which no other connection of the service has, over all of its processes.
    pub(crate) number: u64,
    /// The address of the peer, or of the client that the PROXY header names.
    pub(crate) peer: Endpoint,
    /// The address of the proxy that has named the client.
    pub(crate) proxy: Option<Endpoint>,
    /// What the PROXY header says.
    pub(crate) header: Option<Box<Header>>,
    /// Why what has arrived is no PROXY header.
    pub(crate) invalid: Option<Invalid>,
    /// The process that connected, for a Unix stream whose peer is known (unix(7)).
    pub(crate) credentials: Option<Credentials>,
    /// The address on this side, or the one on the side of the proxy.
    pub(crate) local: Endpoint,
    /// The name of the listener that accepted it.
    pub(crate) listener: String,
}

/// What happened; [`EVENTS`] has a row for each.
#[derive(Debug)]
pub(crate) enum Event {
    /// The process starts to serve, with the configuration of the files `read`.
    Started {
        read: Vec<PathBuf>,
        max_connections: usize,
        per_source: Option<usize>,
    },
    /// The settings of the kernel at the start.
    Kernel(Kernel),
    /// A listener is open.
    Listening {
        listener: String,
        role: Role,
        local: Endpoint,
        passed: bool,
        rows: Vec<Row>,
    },
    /// Every listener is registered; `hint`: a command to try.
    Ready {
        listen: String,
        hint: Option<String>,
    },
    /// Health checks are answered with drain from now on, by request.
    Drained,
    /// Health checks are answered with ready again.
    Undrained,
    /// The process stops after `span`, and announces it to balancers until then.
    LameDuck { open: u64, span: Duration },
    /// The process stops, with `open` connections that may take `span` to end.
    Stopping { open: u64, span: Duration },
    /// The process ends.
    Stopped {
        counters: Counters,
        refused: u64,
        checks: u64,
    },
    /// A new configuration is in effect, except for the keys `restart`.
    Reloaded {
        read: Vec<PathBuf>,
        restart: Vec<String>,
    },
    /// A new configuration cannot be used, for this reason.
    ReloadFailed(String),
    /// The process cannot start, for this reason.
    StartFailed(String),
    /// A connection began.
    Opened(Identity),
    /// A connection had a turn.
    Moved {
        number: u64,
        received: u64,
        sent: u64,
        owed: u64,
        preview: Option<String>,
    },
    /// A connection ended; the last is what the kernel knows of it, if it is one of TCP.
    Closed(Identity, Summary, Option<Box<TcpInfo>>),
    /// Connections without a byte ended, so many of each source (`None`: Unix sockets), and so many
    /// of `others`.
    ClosedEmpty {
        reasons: Vec<(&'static str, u64)>,
        sources: Vec<(Option<IpAddr>, u64)>,
        others: u64,
    },
    /// Connections ended faster than their ends are logged one by one.
    ClosedMany {
        reasons: Vec<(&'static str, u64)>,
        received: u64,
        sent: u64,
    },
    /// `count` connections were closed at once, as their sources have `most` open.
    Refused {
        peer: Endpoint,
        most: usize,
        count: u64,
    },
    /// A listener is paused.
    Paused {
        listener: String,
        pause: Pause,
        open: u64,
        count: u64,
    },
    /// A listener accepts again, after a pause of `span`.
    Resumed { listener: String, span: Duration },
    /// The environment announces sockets that are not for this process.
    Ignored(String),
    /// Connections could not be accepted.
    AcceptFailed {
        listener: String,
        errno: i32,
        count: u64,
    },
    /// The counters, on demand.
    Counters {
        counters: Counters,
        refused: u64,
        checks: u64,
        owed: u64,
        queues: Vec<(Endpoint, Queue)>,
    },
    /// Other hosts can reach a listener.
    Exposed { listener: String, local: Endpoint },
    /// A listener cannot be reached from outside of the sandbox.
    Isolated { listener: String, local: Endpoint },
    /// The process runs as root.
    Root,
    /// The kernel refused an option.
    Option { listener: String, refused: Refused },
    /// A listener has neither an address nor a passed socket; `others`: this process is an instance of
    /// a template, so the listener may be for another instance.
    Unused { listener: String, others: bool },
    /// The host lacks one of several addresses.
    Absent(String),
    /// A passed descriptor with a reserved name was closed, as it is not from a previous process.
    Reserved { name: String },
    /// The service manager cannot be reached.
    Manager(io::Error),
    /// There are too few descriptors for the connections that the configuration asks for.
    Clamped { asked: usize, effective: usize },
    /// The service manager preserves connections for the next process.
    Preserving {
        max_connections: usize,
        per_source: Option<usize>,
    },
    /// Connections are not preserved; `grave`: although the configuration asks for it.
    NotPreserving { why: String, grave: bool },
    /// Connections of the previous process go on.
    Restored {
        restored: usize,
        before: usize,
        owing: usize,
        owed: u64,
        planned: bool,
        crashes: u64,
        lost: Vec<(&'static str, usize)>,
    },
    /// Connections were left to the next process.
    HandedOver { preserved: usize, open: u64 },
    /// Connections could not be preserved, or (`count` is 0) the descriptor queue not rotated.
    PreserveFailed { count: usize, error: io::Error },
    /// Connections of the previous process were closed; `count` is 0 if their number is not known.
    PredecessorDropped { why: String, count: usize },
    /// So many events were lost.
    Lost(u64),
}

impl Event {
    /// The row of this event in [`EVENTS`].
    #[must_use]
    pub(crate) fn kind(&self) -> &'static Kind {
        match self {
            Self::Started { .. } => const { kind("STARTED") },
            Self::Kernel(..) => const { kind("KERNEL") },
            Self::Listening { .. } => const { kind("LISTENING") },
            Self::Ready { .. } => const { kind("READY") },
            Self::Drained => const { kind("DRAINED") },
            Self::Undrained => const { kind("UNDRAINED") },
            Self::LameDuck { .. } => const { kind("LAME_DUCK") },
            Self::Stopping { .. } => const { kind("STOPPING") },
            Self::Stopped { .. } => const { kind("STOPPED") },
            Self::Reloaded { .. } => const { kind("RELOADED") },
            Self::ReloadFailed(..) => const { kind("RELOAD_FAILED") },
            Self::StartFailed(..) => const { kind("START_FAILED") },
            Self::Opened(..) => const { kind("OPENED") },
            Self::Moved { .. } => const { kind("MOVED") },
            Self::Closed(..) => const { kind("CLOSED") },
            Self::ClosedEmpty { .. } => const { kind("CLOSED_EMPTY") },
            Self::ClosedMany { .. } => const { kind("CLOSED_MANY") },
            Self::Refused { .. } => const { kind("REFUSED") },
            Self::Paused { .. } => const { kind("PAUSED") },
            Self::Resumed { .. } => const { kind("RESUMED") },
            Self::Ignored(..) => const { kind("IGNORED") },
            Self::AcceptFailed { .. } => const { kind("ACCEPT_FAILED") },
            Self::Counters { .. } => const { kind("COUNTERS") },
            Self::Exposed { .. } => const { kind("EXPOSED") },
            Self::Isolated { .. } => const { kind("ISOLATED") },
            Self::Root => const { kind("ROOT") },
            Self::Option { .. } => const { kind("OPTION") },
            Self::Unused { .. } => const { kind("UNUSED") },
            Self::Absent(..) => const { kind("ABSENT") },
            Self::Reserved { .. } => const { kind("RESERVED") },
            Self::Manager(..) => const { kind("MANAGER") },
            Self::Clamped { .. } => const { kind("CLAMPED") },
            Self::Preserving { .. } => const { kind("PRESERVING") },
            Self::NotPreserving { .. } => const { kind("NOT_PRESERVING") },
            Self::Restored { .. } => const { kind("RESTORED") },
            Self::HandedOver { .. } => const { kind("HANDED_OVER") },
            Self::PreserveFailed { .. } => const { kind("PRESERVE_FAILED") },
            Self::PredecessorDropped { .. } => const { kind("PREDECESSOR_DROPPED") },
            Self::Lost(..) => const { kind("LOST") },
        }
    }

    /// How important this event is.
    #[must_use]
    pub(crate) fn level(&self) -> Level {
        match self {
            Self::Reloaded { restart, .. } if !restart.is_empty() => Level::Warn,
            Self::Restored { lost, .. } if !lost.is_empty() => Level::Warn,
            Self::Unused { others: true, .. } | Self::NotPreserving { grave: false, .. } => {
                Level::Info
            }
            // EVENTS has a level for every kind.
            usual => usual.kind().level,
        }
    }

    /// The same event, which stands for `occurrences` if it has a count.
    pub(crate) fn counting(mut self, occurrences: u64) -> Self {
        if let Self::Refused { count, .. }
        | Self::Paused { count, .. }
        | Self::AcceptFailed { count, .. } = &mut self
        {
            *count = occurrences;
        }
        self
    }
}
