//! What is told: every log line of the program, beside its message id.
//!
//! An [`Event`] is a value.  The loop makes it and forgets it; the sink's thread turns it into a
//! `tracing` call ([`Event::tell`]).  The names of the fields are the journal's with a dot in
//! place of the underscore (`echo.peer` becomes `ECHO_PEER=`); `message_id` and `errno` keep their
//! own.  Messages say the same in words, for a reader who sees only them.
//!
//! Nothing that a peer sends gets here, but for its address and, when asked for, a preview of its
//! payload, escaped.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;
use std::path::PathBuf;
use std::time::Duration;

use tracing::{debug, error, info, trace, warn};

use super::kernel::Kernel;
use super::report::Row;
use super::socket::{Credentials, Queue, Refused, duration, size};
use crate::cli::Level;
use crate::echo::counters::Counters;
use crate::echo::reason::{Reason, Summary};

/// The ids by which a machine finds an event (`journalctl MESSAGE_ID=`), 128 random bits each.
mod id {
    pub(super) const STARTED: &str = "e28f14c0857c416cbca1090fae4718ae";
    pub(super) const LISTENING: &str = "66da9798332243448a6c1590529d5d3d";
    pub(super) const READY: &str = "709de5214d8b42cfae309a00711e4fe5";
    pub(super) const STOPPING: &str = "dfc5bc61aaf64d89826286cb2ac52781";
    pub(super) const STOPPED: &str = "b546b27959714ab0a1bc5dd82d5806ce";
    pub(super) const RELOADED: &str = "62ac936182ba4e0ca4887977cb2d0437";
    pub(super) const RELOAD_FAILED: &str = "3135d613ff064fc4b2e013bc4e288c01";
    pub(super) const START_FAILED: &str = "5d7e87ea61024e1cb87e5535c77e00be";
    pub(super) const OPENED: &str = "f6c24715b886444f891659a28a47d8fb";
    pub(super) const TURNED: &str = "b3930fa0301e4c589e4d63185b5b3a78";
    pub(super) const CLOSED: &str = "4e825188735243ffa04e59da89f838a7";
    pub(super) const FOLDED: &str = "2fa50739ecdd4fc98b8fd9d8c9df4fa2";
    pub(super) const REFUSED: &str = "00afb773cbf34747b73808877767c7a7";
    pub(super) const PAUSED: &str = "2eb21e7394684092af1c3d8501e53566";
    pub(super) const RESUMED: &str = "bf55f1d07771400ea344e8a94babd090";
    pub(super) const IGNORED: &str = "9b9c717e52b0455fb2f3c005fe9b6866";
    pub(super) const ACCEPT_FAILED: &str = "f9316b0a3ce74e5cb515b067af13cd8b";
    pub(super) const COUNTERS: &str = "7cc00e0f218a49398192dbfc1f40e617";
    pub(super) const KERNEL: &str = "238a737fc79f4b0185228c0b8d8ebe5f";
    pub(super) const OPEN: &str = "4019bf40d6cf43249b84868d863db712";
    pub(super) const ALONE: &str = "e2dcecbc495c4b32bd0b7bdace6b8717";
    pub(super) const ROOT: &str = "4a7a4ac7b2de40719e1b671c79eb50a7";
    pub(super) const OPTION: &str = "3c8b796df26747aaab009f1360cd62c1";
    pub(super) const UNUSED: &str = "b5e75560545b465aba693fd700a0b2eb";
    pub(super) const ABSENT: &str = "d18f50018b084175b9e13ce0c55d910a";
    pub(super) const RESERVED: &str = "735b864c75c142fe8aea4073798c2c2c";
    pub(super) const MANAGER: &str = "847d50b682e04215bd0fb1d7ee9ed904";
    pub(super) const CLAMPED: &str = "f9d7d794254e496c95186bd7b67f6ece";
    pub(super) const KEPT: &str = "a31e4c1d81744f6c880d7c15144baeb9";
    pub(super) const UNKEPT: &str = "8c59b44899504210948a1bc498609de0";
    pub(super) const ADOPTED: &str = "b7a544a1d4944ad69841e636ced82de4";
    pub(super) const HANDED_OVER: &str = "7421e840185647579c4b157481855911";
    pub(super) const PACK_FAILED: &str = "c84db1bd54944134846d22a958183113";
    pub(super) const GIVEN_UP: &str = "b68dfb7b65ab42b69b2248362535a20b";
    pub(super) const LOST: &str = "2651cf1d49be4b07abf3c1e4c1548b0b";
}

/// Text without control characters, of which a terminal would act on some and for which the journal
/// hides the whole message: they are shown as `\u{1b}`.  Lines and tabulators stay.
#[must_use]
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(acts) {
        return text.into();
    }
    let mut shown = String::new();
    for c in text.chars() {
        if acts(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

/// The same for text of one line, such as a line of a message to the service manager.
fn one_line(text: &str) -> String {
    printable(text).replace('\n', "\\u{a}")
}

/// An address of a socket, ours or the peer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP.
    Ip(SocketAddr),
    /// A Unix stream socket, by its path if it has one.
    Unix(Option<PathBuf>),
    /// One by its name in the abstract namespace, unix(7).
    Abstract(Vec<u8>),
}

impl From<unix::SocketAddr> for Endpoint {
    fn from(address: unix::SocketAddr) -> Self {
        address.as_abstract_name().map_or_else(
            || Self::Unix(address.as_pathname().map(Into::into)),
            |name| Self::Abstract(name.into()),
        )
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix(Some(path)) => write!(f, "unix:{}", one_line(&path.to_string_lossy())),
            Self::Abstract(name) => {
                write!(f, "unix:@{}", one_line(&String::from_utf8_lossy(name)))
            }
            Self::Unix(None) => f.write_str("unix"),
        }
    }
}

/// Why a listener is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// As many connections as there may be.
    Limit,
    /// No descriptors, or no memory for them: errno(3).
    Short(i32),
    /// The listener itself fails: errno(3).
    Failing(i32),
}

/// Who has which connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Its number, which no other connection of the service has.
    pub number: u64,
    /// The other side.
    pub peer: Endpoint,
    /// The process that connected, where it is of this host and known.
    pub credentials: Option<Credentials>,
    /// Our side.
    pub local: Endpoint,
    /// The listener that accepted it.
    pub listener: String,
}

/// What happened.
#[expect(missing_docs, reason = "each field is explained where it is told")]
#[derive(Debug)]
pub enum Event {
    /// The process serves from these files.
    Started {
        read: Vec<PathBuf>,
        max_connections: usize,
        per_source: Option<usize>,
    },
    /// What the kernel is set to.
    Kernel(Kernel),
    /// A listener is open.
    Listening {
        listener: String,
        local: Endpoint,
        passed: bool,
        rows: Vec<Row>,
    },
    /// Every listener is registered.
    Ready {
        listen: String,
        hint: Option<String>,
    },
    /// The process leaves.
    Stopping { open: u64, span: Duration },
    /// The process ends.
    Stopped { counters: Counters, refused: u64 },
    /// A new configuration is in effect, but for some keys.
    Reloaded {
        read: Vec<PathBuf>,
        restart: Vec<String>,
    },
    /// The old configuration stays.
    ReloadFailed(String),
    /// The process cannot start.
    StartFailed(String),
    /// A connection began.
    Opened(Who),
    /// A connection had a turn.
    Turned {
        number: u64,
        received: u64,
        sent: u64,
        owed: u64,
        preview: Option<String>,
    },
    /// A connection ended.
    Closed(Who, Summary),
    /// Connections ended faster than they are told one by one.
    Folded {
        reasons: Vec<(&'static str, u64)>,
        received: u64,
        sent: u64,
    },
    /// Connections were closed at once: their sources have as many as they may.
    Refused {
        peer: Endpoint,
        most: usize,
        count: u64,
    },
    /// A listener waits.
    Paused {
        listener: String,
        pause: Pause,
        open: u64,
        count: u64,
    },
    /// A listener accepts again, after this long.
    Resumed { listener: String, span: Duration },
    /// The environment promises sockets that cannot be ours.
    Ignored(String),
    /// A connection could not be taken in.
    AcceptFailed {
        listener: String,
        errno: i32,
        count: u64,
    },
    /// The counters, on demand.
    Counters {
        counters: Counters,
        refused: u64,
        owed: u64,
        queues: Vec<(Endpoint, Queue)>,
    },
    /// Others than this host can reach a listener.
    Open { listener: String, local: Endpoint },
    /// A listener that is meant for others cannot be reached.
    Alone { listener: String, local: Endpoint },
    /// The process has privileges that it does not need.
    Root,
    /// An option was refused.
    Option { listener: String, refused: Refused },
    /// A listener has neither an address nor a passed socket; `others`: this is an instance of a
    /// template, so it may be for another one.
    Unused { listener: String, others: bool },
    /// The host lacks an address.
    Absent(String),
    /// A descriptor of a reserved name, and of no use, was closed.
    Reserved { name: String },
    /// The service manager cannot be reached.
    Manager(io::Error),
    /// A limit is lower than was asked.
    Clamped { asked: usize, effective: usize },
    /// The service manager keeps connections for a successor.
    Kept {
        max_connections: usize,
        per_source: Option<usize>,
    },
    /// It does not.
    Unkept { why: String, grave: bool },
    /// A predecessor's connections go on.
    Adopted {
        adopted: usize,
        before: usize,
        owing: usize,
        owed: u64,
        planned: bool,
        crashes: u64,
        lost: Vec<(&'static str, usize)>,
    },
    /// The successor has them.
    HandedOver { kept: usize, open: u64 },
    /// Connections could not be packed, or the parcel not renewed.
    PackFailed { count: usize, error: io::Error },
    /// A predecessor's connections were ended.
    GivenUp { why: String, count: usize },
    /// Events were lost.
    Lost(u64),
}

impl Event {
    /// How important it is.
    #[must_use]
    pub fn level(&self) -> Level {
        match self {
            Self::StartFailed(_) | Self::ReloadFailed(_) => Level::Error,
            Self::Refused { .. }
            | Self::Paused { .. }
            | Self::AcceptFailed { .. }
            | Self::Open { .. }
            | Self::Alone { .. }
            | Self::Root
            | Self::Option { .. }
            | Self::Unused { others: false, .. }
            | Self::Reserved { .. }
            | Self::Ignored(_)
            | Self::Manager(_)
            | Self::Clamped { .. }
            | Self::PackFailed { .. }
            | Self::GivenUp { .. }
            | Self::Lost(_) => Level::Warn,
            Self::Unkept { grave: true, .. } => Level::Warn,
            Self::Adopted { lost, .. } if !lost.is_empty() => Level::Warn,
            Self::Reloaded { restart, .. } if !restart.is_empty() => Level::Warn,
            Self::Opened(_) => Level::Debug,
            Self::Turned { .. } => Level::Trace,
            Self::Started { .. }
            | Self::Kernel(_)
            | Self::Listening { .. }
            | Self::Ready { .. }
            | Self::Stopping { .. }
            | Self::Stopped { .. }
            | Self::Reloaded { .. }
            | Self::Closed(..)
            | Self::Folded { .. }
            | Self::Resumed { .. }
            | Self::Counters { .. }
            | Self::Absent(_)
            | Self::Unused { .. }
            | Self::Kept { .. }
            | Self::Unkept { .. }
            | Self::Adopted { .. }
            | Self::HandedOver { .. } => Level::Info,
        }
    }

    /// The same event, for so many occurrences where it counts them.
    pub(crate) fn counting(mut self, occurrences: u64) -> Self {
        if let Self::Refused { count, .. }
        | Self::Paused { count, .. }
        | Self::AcceptFailed { count, .. } = &mut self
        {
            *count = occurrences;
        }
        self
    }

    /// The same event with all text that comes from outside (files, paths, names) as
    /// [`printable`] shows it: whatever sink it goes to, and in its fields as in its message.
    pub(crate) fn printable(mut self) -> Self {
        let text = |text: &mut String| {
            if let Cow::Owned(shown) = printable(text) {
                *text = shown;
            }
        };
        let path = |path: &mut PathBuf| {
            if let Cow::Owned(shown) = printable(&path.to_string_lossy()) {
                *path = shown.into();
            }
        };
        match &mut self {
            Self::Started { read, .. } => read.iter_mut().for_each(path),
            Self::Reloaded { read, restart } => {
                read.iter_mut().for_each(path);
                restart.iter_mut().for_each(text);
            }
            Self::Ready { listen, hint } => {
                text(listen);
                hint.iter_mut().for_each(text);
            }
            Self::Opened(who) | Self::Closed(who, _) => text(&mut who.listener),
            Self::Listening { listener: name, .. }
            | Self::Open { listener: name, .. }
            | Self::Alone { listener: name, .. }
            | Self::Paused { listener: name, .. }
            | Self::Resumed { listener: name, .. }
            | Self::AcceptFailed { listener: name, .. }
            | Self::Option { listener: name, .. }
            | Self::Unused { listener: name, .. }
            | Self::Reserved { name } => text(name),
            Self::ReloadFailed(why)
            | Self::StartFailed(why)
            | Self::Ignored(why)
            | Self::Absent(why)
            | Self::Unkept { why, .. }
            | Self::GivenUp { why, .. } => text(why),
            Self::Turned { preview, .. } => preview.iter_mut().for_each(text),
            // Numbers, words of ours and of the system, and addresses.
            Self::Kernel(_)
            | Self::Refused { .. }
            | Self::Counters { .. }
            | Self::Stopping { .. }
            | Self::Stopped { .. }
            | Self::Folded { .. }
            | Self::Root
            | Self::Manager(_)
            | Self::Clamped { .. }
            | Self::Kept { .. }
            | Self::Adopted { .. }
            | Self::HandedOver { .. }
            | Self::PackFailed { .. }
            | Self::Lost(_) => {}
        }
        self
    }

    /// Hands it to `tracing`.
    pub fn tell(&self) {
        match self {
            Self::Started {
                read,
                max_connections,
                per_source,
            } => {
                let files = list(
                    read.iter().map(|file| file.display()),
                    "no file (built-in defaults)",
                );
                info!(
                    message_id = id::STARTED,
                    "echo.version" = env!("CARGO_PKG_VERSION"),
                    "echo.files" = files,
                    "echo.max_connections" = max_connections,
                    "echo.per_source" = per_source,
                    "tcp-echo {} starts with {files}; connections at most: {max_connections}{}",
                    env!("CARGO_PKG_VERSION"),
                    per_source.map_or_else(String::new, |most| format!(", {most} from one source"))
                );
            }
            Self::Kernel(kernel) => tell_kernel(kernel),
            Self::Listening {
                listener,
                local,
                passed,
                rows,
            } => {
                let options = list(
                    rows.iter()
                        .map(|row| format!("{}={}", row.option, row.effective)),
                    "none",
                );
                let notes: Vec<String> = rows
                    .iter()
                    .filter(|row| row.option == "backlog" || row.differs())
                    .map(note)
                    .collect();
                info!(
                    message_id = id::LISTENING, "echo.listener" = listener, "echo.local" = %local,
                    "echo.passed" = passed, "echo.options" = options,
                    "listening on {local} (listener {listener}, {}){}",
                    if *passed { "passed by the service manager" } else { "bound here" },
                    notes.iter().fold(String::new(), |text, note| text + "; " + note)
                );
            }
            Self::Ready { listen, hint } => info!(
                message_id = id::READY,
                "echo.listen" = listen,
                "{}{}",
                if listen.is_empty() {
                    "ready".to_owned()
                } else {
                    format!("ready on {listen}")
                },
                hint.as_ref()
                    .map_or_else(String::new, |hint| format!("; try: {hint}"))
            ),
            Self::Stopping { open, span } => info!(
                message_id = id::STOPPING,
                "echo.open" = open,
                "echo.stop_timeout_ms" = millis(*span),
                "stopping: what is owed is paid within {}; connections open: {open}",
                duration(*span)
            ),
            Self::Stopped { counters, refused } => {
                tell_counters("stopped; ", counters, *refused, None, id::STOPPED);
            }
            Self::Reloaded { read, restart } => {
                let files = list(
                    read.iter().map(|file| file.display()),
                    "no file (built-in defaults)",
                );
                let keys = list(restart.iter(), "");
                if restart.is_empty() {
                    info!(
                        message_id = id::RELOADED,
                        "echo.files" = files,
                        "reloaded {files}"
                    );
                } else {
                    warn!(
                        message_id = id::RELOADED,
                        "echo.files" = files,
                        "echo.needs_restart" = keys,
                        "reloaded {files}; these need a restart to take effect: {keys}"
                    );
                }
            }
            Self::ReloadFailed(why) => error!(
                message_id = id::RELOAD_FAILED,
                "reload failed, the old configuration stays: {why}"
            ),
            Self::StartFailed(why) => error!(message_id = id::START_FAILED, "cannot start: {why}"),
            Self::Opened(who) => debug!(
                message_id = id::OPENED, "echo.connection" = who.number, "echo.peer" = %who.peer,
                "echo.peer_pid" = who.credentials.and_then(|peer| peer.pid),
                "echo.peer_uid" = who.credentials.map(|peer| peer.uid),
                "echo.local" = %who.local, "echo.listener" = who.listener,
                "connection {} from {}{} to {} opened", who.number, who.peer, by(who), who.local
            ),
            Self::Turned {
                number,
                received,
                sent,
                owed,
                preview,
            } => trace!(
                message_id = id::TURNED,
                "echo.connection" = number,
                "echo.received" = received,
                "echo.sent" = sent,
                "echo.owed" = owed,
                "echo.preview" = preview,
                "connection {number} had a turn: received {received}, sent {sent}, owed {owed}{}",
                preview
                    .as_ref()
                    .map_or_else(String::new, |preview| format!(", payload \"{preview}\""))
            ),
            Self::Closed(who, summary) => tell_closed(who, summary),
            Self::Folded {
                reasons,
                received,
                sent,
            } => {
                let total: u64 = reasons.iter().map(|(_, count)| count).sum();
                let reasons = list(
                    reasons
                        .iter()
                        .map(|(reason, count)| format!("{reason} {count}")),
                    "",
                );
                info!(
                    message_id = id::FOLDED,
                    "echo.count" = total,
                    "echo.reasons" = reasons,
                    "echo.received" = received,
                    "echo.sent" = sent,
                    "{total} more connection{} ended ({reasons}), received {received}, sent {sent}",
                    if total == 1 { "" } else { "s" }
                );
            }
            Self::Refused { peer, most, count } => warn!(
                message_id = id::REFUSED, "echo.peer" = %peer, "echo.limit" = most, "echo.count" = count,
                "closed {} at once, the last from {peer}: a source may have {most} \
                 (limits.max-connections-per-source)",
                connections(*count)
            ),
            Self::Paused {
                listener,
                pause,
                open,
                count,
            } => tell_paused(listener, *pause, *open, *count),
            Self::Resumed { listener, span } => info!(
                message_id = id::RESUMED,
                "echo.listener" = listener,
                "echo.duration_usec" = micros(*span),
                "listener {listener} accepts again, after a pause of {span:.1?}"
            ),
            Self::Ignored(why) => warn!(
                message_id = id::IGNORED,
                "sockets that the environment promises are ignored: {why}"
            ),
            Self::AcceptFailed {
                listener,
                errno,
                count,
            } => warn!(
                message_id = id::ACCEPT_FAILED,
                "echo.listener" = listener,
                errno,
                "echo.count" = count,
                "listener {listener}: lost {} before it began: {}",
                connections(*count),
                io::Error::from_raw_os_error(*errno)
            ),
            Self::Counters {
                counters,
                refused,
                owed,
                queues,
            } => tell_counters("", counters, *refused, Some((*owed, queues)), id::COUNTERS),
            Self::Open { listener, local } => warn!(
                message_id = id::OPEN, "echo.listener" = listener, "echo.local" = %local,
                "listener {listener} is open to others on {local}: limit who may reach it (IPAddressAllow= in the \
                 socket unit, or a firewall), then say open = true in the configuration"
            ),
            Self::Alone { listener, local } => warn!(
                message_id = id::ALONE, "echo.listener" = listener, "echo.local" = %local,
                "listener {listener} on {local} cannot be reached from outside: {}",
                match local {
                    Endpoint::Ip(_) => {
                        "this network namespace has no interface but lo (PrivateNetwork= in the unit, or a container \
                         without a network)"
                    }
                    Endpoint::Unix(_) | Endpoint::Abstract(_) => {
                        "the service has this folder for itself (PrivateTmp= in the unit): choose a path below /run \
                         (RuntimeDirectory= in the unit), or let a socket unit open it"
                    }
                }
            ),
            Self::Root => warn!(
                message_id = id::ROOT,
                "running as root, which an echo does not need: use tcp-echo.service, or User= in a unit"
            ),
            Self::Option { listener, refused } => warn!(
                message_id = id::OPTION,
                "echo.listener" = listener,
                "echo.option" = refused.option,
                errno = refused.error.raw_os_error(),
                "listener {listener}: {refused}"
            ),
            Self::Unused { listener, others } => tell_unused(listener, *others),
            Self::Absent(why) => info!(
                message_id = id::ABSENT,
                "going on without one address: {why}"
            ),
            Self::Reserved { name } => warn!(
                message_id = id::RESERVED,
                "echo.name" = name,
                "closed the passed descriptor {name:?}: the name is reserved for what a predecessor has left, and \
                 it is nothing of the kind"
            ),
            Self::Manager(error) => warn!(
                message_id = id::MANAGER,
                errno = error.raw_os_error(),
                "the service manager cannot be reached (NOTIFY_SOCKET): {error}"
            ),
            Self::Clamped { asked, effective } => warn!(
                message_id = id::CLAMPED,
                "echo.asked" = asked,
                "echo.max_connections" = effective,
                "limits.max-connections is {effective}, not {asked}: there are not enough descriptors \
                 (LimitNOFILE= in the unit, ulimit -n)"
            ),
            Self::Kept {
                max_connections,
                per_source,
            } => info!(
                message_id = id::KEPT,
                "echo.max_connections" = max_connections,
                "echo.per_source" = per_source,
                "connections survive a restart: the service manager keeps them; connections at most: \
                 {max_connections}{}",
                per_source.map_or_else(String::new, |most| format!(", {most} from one source"))
            ),
            Self::Unkept { why, grave } => tell_unkept(why, *grave),
            Self::Adopted { .. } => self.tell_adopted(),
            Self::HandedOver { kept, open } => info!(
                message_id = id::HANDED_OVER,
                "echo.kept" = kept,
                "echo.open" = open,
                "{} kept for the successor",
                connections(*kept as u64)
            ),
            Self::PackFailed { count, error } => warn!(
                message_id = id::PACK_FAILED,
                "echo.count" = count,
                errno = error.raw_os_error(),
                "{}: {error}{}",
                if *count > 0 {
                    format!(
                        "{} cannot be kept for a successor",
                        connections(*count as u64)
                    )
                } else {
                    "what is kept for a successor cannot be put in order".into()
                },
                if error.raw_os_error() == Some(libc::ETOOMANYREFS) {
                    " (descriptors in flight, of which there may be as many as LimitNOFILE= of the unit says)"
                } else {
                    ""
                }
            ),
            Self::GivenUp { why, count } => warn!(
                message_id = id::GIVEN_UP,
                "echo.reason" = why,
                "echo.count" = count,
                "{} that a predecessor had left ended: {why}",
                match count {
                    0 => "everything".to_owned(),
                    count => connections(*count as u64),
                }
            ),
            Self::Lost(count) => warn!(
                message_id = id::LOST,
                "echo.count" = count,
                "{count} event{} lost while the log could not take them",
                if *count == 1 { " was" } else { "s were" }
            ),
        }
    }
}

fn connections(count: u64) -> String {
    format!("{count} connection{}", if count == 1 { "" } else { "s" })
}

fn tell_unused(listener: &str, others: bool) {
    macro_rules! tell {
        ($level:ident, $advice:literal) => {
            $level!(
                message_id = id::UNUSED,
                "echo.listener" = listener,
                "listener {} is not used{}: give it an address, or pass a socket with FileDescriptorName={}",
                listener,
                $advice,
                listener
            )
        };
    }
    if others {
        tell!(info, ", unless another instance has it");
    } else {
        tell!(warn, "");
    }
}

fn tell_unkept(why: &str, grave: bool) {
    macro_rules! tell {
        ($level:ident) => {
            $level!(
                message_id = id::UNKEPT,
                "echo.reason" = why,
                "connections do not survive this process: {why}"
            )
        };
    }
    if grave {
        tell!(warn);
    } else {
        tell!(info);
    }
}

impl Event {
    fn tell_adopted(&self) {
        let Self::Adopted {
            adopted,
            before,
            owing,
            owed,
            planned,
            crashes,
            lost,
        } = self
        else {
            return;
        };
        let mut text = format!("adopted {adopted} of {}", connections(*before as u64));
        if *owing > 0 {
            let _ = write!(text, ", {owing} owed {}", size(*owed));
        }
        if !planned {
            text += ", after a crash";
        }
        for (why, count) in lost {
            let _ = write!(text, "; {count} lost: {why}");
        }
        macro_rules! tell {
            ($level:ident) => {
                $level!(
                    message_id = id::ADOPTED,
                    "echo.adopted" = adopted,
                    "echo.of" = before,
                    "echo.owing" = owing,
                    "echo.owed" = owed,
                    "echo.planned" = planned,
                    "echo.crashes" = crashes,
                    "{text}"
                )
            };
        }
        if lost.is_empty() {
            tell!(info);
        } else {
            tell!(warn);
        }
    }
}

/// The process of a peer, behind its address.
fn by(who: &Who) -> String {
    let Some(Credentials { pid, uid }) = who.credentials else {
        return String::new();
    };
    let pid = pid.map_or_else(String::new, |pid| format!("pid {pid}, "));
    format!(" ({pid}uid {uid})")
}

fn tell_closed(who: &Who, summary: &Summary) {
    let Who {
        number,
        peer,
        credentials,
        local,
        listener,
    } = who;
    let Summary {
        reason,
        received,
        sent,
        owed,
        duration: span,
    } = summary;
    let errno = match reason {
        Reason::Error(errno) => Some(*errno),
        _ => None,
    };
    let mut text = String::new();
    if *owed > 0 {
        let _ = write!(text, ", {owed} bytes could not be given back");
    }
    if let Some(errno) = errno {
        let _ = write!(text, ": {}", io::Error::from_raw_os_error(errno));
    }
    info!(
        message_id = id::CLOSED, "echo.connection" = number, "echo.peer" = %peer,
        "echo.peer_pid" = credentials.and_then(|peer| peer.pid),
        "echo.peer_uid" = credentials.map(|peer| peer.uid), "echo.local" = %local,
        "echo.listener" = listener, "echo.received" = received, "echo.sent" = sent, "echo.owed" = owed,
        "echo.duration_usec" = micros(*span), "echo.reason" = reason.as_str(), errno,
        "connection {number} from {peer}{} on {local} ended ({}): received {received}, sent {sent}, in {span:.1?}{text}",
        by(who),
        reason.as_str()
    );
}

fn tell_counters(
    prefix: &str,
    counters: &Counters,
    refused: u64,
    now: Option<(u64, &Vec<(Endpoint, Queue)>)>,
    message_id: &str,
) {
    let reasons = list(
        counters
            .by_reason()
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| format!("{reason} {count}")),
        "none",
    );
    let owed = now.map(|(owed, _)| owed);
    // In the sandbox of the service, this is all that can be known of the kernel.
    let queues = now.map(|(_, queues)| {
        let queues = queues.iter();
        list(
            queues.map(|(local, queue)| format!("{local} {queue}")),
            "none",
        )
    });
    info!(
        message_id,
        "echo.accepted" = counters.accepted,
        "echo.open" = counters.open(),
        "echo.refused" = refused,
        "echo.received" = counters.received,
        "echo.sent" = counters.sent,
        "echo.owed" = owed,
        "echo.reasons" = reasons,
        "echo.queues" = queues,
        "{prefix}connections: accepted {}, open {}, refused {refused}; received {}, sent {}; ended: {reasons}{}",
        counters.accepted,
        counters.open(),
        size(counters.received),
        size(counters.sent),
        queues
            .as_ref()
            .map_or_else(String::new, |queues| format!("; callers: {queues}"))
    );
}

fn tell_paused(listener: &str, pause: Pause, open: u64, count: u64) {
    let errno = match pause {
        Pause::Limit => None,
        Pause::Short(errno) | Pause::Failing(errno) => Some(errno),
    };
    let text = errno.map_or_else(String::new, |errno| {
        io::Error::from_raw_os_error(errno).to_string()
    });
    let cause = match pause {
        Pause::Limit => "limit",
        Pause::Short(_) => "short",
        Pause::Failing(_) => "failing",
    };
    let advice = match pause {
        Pause::Limit => "as many connections as there may be (limits.max-connections)".to_owned(),
        Pause::Short(_) => format!("{text} (raise LimitNOFILE= in the unit, or see fs.file-max)"),
        Pause::Failing(_) => format!("{text}; trying again"),
    };
    warn!(
        message_id = id::PAUSED,
        "echo.listener" = listener,
        "echo.cause" = cause,
        errno,
        "echo.open" = open,
        "echo.count" = count,
        "listener {listener} is paused, callers wait in the kernel's queue: {advice}; {} open",
        connections(open)
    );
}

fn tell_kernel(kernel: &Kernel) {
    let mut text = String::new();
    let mut add = |part: Option<String>| {
        if let Some(part) = part {
            text.push_str(if text.is_empty() { "" } else { "; " });
            text.push_str(&part);
        }
    };
    add(kernel
        .connect_timeout()
        .map(|span| format!("a handshake is given up after {}", duration(span))));
    add(kernel
        .data_timeout()
        .map(|span| format!("unacknowledged data after {} at least", duration(span))));
    add(kernel
        .somaxconn
        .map(|most| format!("at most {most} callers wait in a listen queue")));
    add(kernel.half_open());
    add(kernel.tcp_slow_start_after_idle.map(|on| {
        format!(
            "slow start after idle is {}",
            if on == 0 { "off" } else { "on" }
        )
    }));
    if text.is_empty() {
        text.push_str(
            "its settings cannot be seen from here; run tcp-echo check outside of the sandbox",
        );
    }
    info!(
        message_id = id::KERNEL,
        "echo.connect_timeout_ms" = kernel.connect_timeout().map(millis),
        "echo.data_timeout_ms" = kernel.data_timeout().map(millis),
        "echo.somaxconn" = kernel.somaxconn,
        "echo.tcp_max_syn_backlog" = kernel.tcp_max_syn_backlog,
        "echo.rmem_max" = kernel.rmem_max,
        "echo.wmem_max" = kernel.wmem_max,
        "echo.tcp_rmem_max" = kernel.tcp_rmem_max,
        "echo.tcp_wmem_max" = kernel.tcp_wmem_max,
        "echo.tcp_synack_retries" = kernel.tcp_synack_retries,
        "echo.tcp_retries2" = kernel.tcp_retries2,
        "echo.slow_start_after_idle" = kernel.tcp_slow_start_after_idle,
        "kernel: {text}"
    );
}

/// What a row says, in a few words.
fn note(row: &Row) -> String {
    let Row {
        option,
        asked,
        effective,
        note,
    } = row;
    let mut text = format!("{option} {effective}");
    if !asked.is_empty() && asked != effective {
        let _ = write!(text, " (asked {asked})");
    }
    if !note.is_empty() {
        let _ = write!(text, ": {note}");
    }
    text
}

fn list(items: impl Iterator<Item = impl fmt::Display>, none: &str) -> String {
    let text = items
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ");
    if text.is_empty() {
        none.to_owned()
    } else {
        text
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::{Level as TracingLevel, Subscriber};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
    use tracing_subscriber::registry::Registry;

    use super::*;

    /// What reached the sink.
    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<(TracingLevel, Fields)>>>);

    #[derive(Default)]
    struct Fields(BTreeMap<&'static str, String>);

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0.insert(field.name(), format!("{value:?}"));
        }

        fn record_str(&mut self, field: &Field, value: &str) {
            self.0.insert(field.name(), value.to_owned());
        }
    }

    impl<S: Subscriber> Layer<S> for Told {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            let mut fields = Fields::default();
            event.record(&mut fields);
            let level = *event.metadata().level();
            self.0.lock().unwrap().push((level, fields));
        }
    }

    fn one_of_each() -> Vec<Event> {
        let who = || Who {
            number: 1,
            peer: Endpoint::Ip("127.0.0.1:1".parse().unwrap()),
            local: Endpoint::Unix(Some("/\r".into())),
            credentials: Some(Credentials {
                pid: Some(1),
                uid: 0,
            }),
            listener: "w\u{1b}b".into(),
        };
        let listener = || "w\u{1b}b".to_owned();
        let error = || io::Error::from_raw_os_error(libc::EACCES);
        let summary = Summary {
            reason: Reason::Error(libc::EHOSTUNREACH),
            received: 3,
            sent: 2,
            owed: 1,
            duration: Duration::from_millis(1),
        };
        vec![
            Event::Started {
                read: vec!["/etc/\u{7}".into()],
                max_connections: 1,
                per_source: None,
            },
            Event::Kernel(Kernel::default()),
            Event::Listening {
                listener: listener(),
                local: Endpoint::Unix(Some("/run/\u{1b}.sock".into())),
                passed: true,
                rows: Vec::new(),
            },
            Event::Ready {
                listen: "unix:/\u{1b}".into(),
                hint: Some("\u{1b}".into()),
            },
            Event::Stopping {
                open: 0,
                span: Duration::ZERO,
            },
            Event::Stopped {
                counters: Counters::default(),
                refused: 0,
            },
            Event::Reloaded {
                read: vec!["/etc/\u{7}".into()],
                restart: Vec::new(),
            },
            Event::ReloadFailed("w\u{1b}y".into()),
            Event::StartFailed("w\u{1b}y".into()),
            Event::Opened(who()),
            Event::Turned {
                number: 1,
                received: 1,
                sent: 1,
                owed: 0,
                preview: Some("\u{1b}".into()),
            },
            Event::Closed(who(), summary),
            Event::Folded {
                reasons: vec![("reset", 2)],
                received: 0,
                sent: 0,
            },
            Event::Refused {
                peer: Endpoint::Abstract(b"\x08\n\0".to_vec()),
                most: 1,
                count: 1,
            },
            Event::Paused {
                listener: listener(),
                pause: Pause::Short(libc::EMFILE),
                open: 1,
                count: 1,
            },
            Event::AcceptFailed {
                listener: listener(),
                errno: libc::ENETDOWN,
                count: 1,
            },
            Event::Counters {
                counters: Counters::default(),
                refused: 0,
                owed: 0,
                queues: vec![(
                    Endpoint::Unix(Some("/\0".into())),
                    Queue {
                        depth: 1,
                        limit: 2,
                        drops: Some(3),
                    },
                )],
            },
            Event::Alone {
                listener: listener(),
                local: Endpoint::Unix(Some("/\r".into())),
            },
            Event::Open {
                listener: listener(),
                local: Endpoint::Unix(Some("/\r".into())),
            },
            Event::Root,
            Event::Option {
                listener: listener(),
                refused: Refused {
                    option: "dscp",
                    error: error(),
                },
            },
            Event::Unused {
                listener: listener(),
                others: false,
            },
            Event::Absent("w\u{1b}y".into()),
            Event::Reserved {
                name: "w\u{7f}b".into(),
            },
            Event::Kept {
                max_connections: 9,
                per_source: None,
            },
            Event::Resumed {
                listener: listener(),
                span: Duration::ZERO,
            },
            Event::Ignored("w\u{1b}y".into()),
            Event::Unkept {
                why: "\u{9b}".into(),
                grave: true,
            },
            Event::Adopted {
                adopted: 1,
                before: 2,
                owing: 1,
                owed: 5,
                planned: false,
                crashes: 1,
                lost: vec![("it was", 1)],
            },
            Event::HandedOver { kept: 1, open: 1 },
            Event::PackFailed {
                count: 1,
                error: error(),
            },
            Event::GivenUp {
                why: "\u{9b}".into(),
                count: 1,
            },
            Event::Manager(error()),
            Event::Clamped {
                asked: 2,
                effective: 1,
            },
            Event::Lost(1),
        ]
    }

    /// Tells events; returns what reached the sink, each as one.
    fn tell(events: &[Event]) -> Vec<(TracingLevel, Fields)> {
        let told = Told::default();
        let registry = Registry::default().with(told.clone());
        tracing::subscriber::with_default(registry, || events.iter().for_each(Event::tell));
        let told = std::mem::take(&mut *told.0.lock().unwrap());
        assert_eq!(told.len(), events.len());
        told
    }

    fn tracing_level(level: Level) -> TracingLevel {
        match level {
            Level::Error => TracingLevel::ERROR,
            Level::Warn => TracingLevel::WARN,
            Level::Info => TracingLevel::INFO,
            Level::Debug => TracingLevel::DEBUG,
            Level::Trace => TracingLevel::TRACE,
            Level::Off => panic!("an event that is never told"),
        }
    }

    #[test]
    fn an_event_is_filtered_by_the_level_that_it_is_told_at() {
        let mut events = one_of_each();
        events.push(Event::Unused {
            listener: "web".into(),
            others: true,
        });
        events.push(Event::Reloaded {
            read: vec!["/etc/\u{7}".into()],
            restart: vec!["log.format".into()],
        });
        for (event, (level, _)) in events.iter().zip(tell(&events)) {
            assert_eq!(tracing_level(event.level()), level, "{event:?}");
        }
    }

    #[test]
    fn every_kind_of_event_has_an_id_of_its_own_and_a_message() {
        let events = one_of_each();
        let mut ids = BTreeSet::new();
        for (event, (_, Fields(fields))) in events.iter().zip(tell(&events)) {
            let id = &fields["message_id"];
            assert_eq!(id.len(), 32, "{event:?}");
            assert!(
                id.bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
                "{event:?}"
            );
            assert!(ids.insert(id.clone()), "{event:?} shares its id");
            // journalctl shows nothing of an entry without one.
            assert!(!fields["message"].is_empty(), "{event:?}");
        }
    }

    #[test]
    fn no_control_character_gets_into_a_field_or_a_message() {
        let mut events: Vec<Event> = one_of_each().into_iter().map(Event::printable).collect();
        events.push(
            Event::Reloaded {
                read: Vec::new(),
                restart: vec!["listener.\u{1b}".into()],
            }
            .printable(),
        );
        for (event, (_, Fields(fields))) in events.iter().zip(tell(&events)) {
            for (name, value) in fields {
                assert!(!value.contains(char::is_control), "{event:?}: {name}");
            }
        }
        assert_eq!(printable("a\tb\nc\u{1b}[31m"), "a\tb\nc\\u{1b}[31m");
    }

    #[test]
    fn the_names_of_fields_are_ours_alone() {
        let events = one_of_each();
        for (event, (_, Fields(fields))) in events.iter().zip(tell(&events)) {
            for name in fields.keys() {
                let known = matches!(*name, "message" | "message_id" | "errno");
                // The journal drops names of more than 64 bytes.
                assert!(
                    known || name.starts_with("echo.") && name.len() <= 64,
                    "{event:?}: {name}"
                );
            }
        }
    }
}
