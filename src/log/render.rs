//! How events look: the message and the fields of each, for `tracing`.
//!
//! [`Event::emit`] makes one `tracing` event of each.  Its level is that of [`Event::level`], its id
//! and the names of its fields are those of [`super::events::EVENTS`]; tests compare them.  A message
//! is a sentence that can be read alone: what happened, to what, why, and what to do.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing::{debug, error, info, trace, warn};

use super::events::{Event, Identity, Pause};
use crate::cli::Level;
use crate::config::units::Role;
use crate::config::units::{duration, size};
use crate::echo::counters::Counters;
use crate::echo::end_reason::{EndReason, Summary};
use crate::proxy_header::Invalid;
use crate::sys::endpoint::{Endpoint, printable};
use crate::sys::kernel::Kernel;
use crate::sys::option_report::Row;
use crate::sys::sockopt::Credentials;
use crate::sys::tcp_info::{TcpInfo, field, state};

/// Makes a `tracing` event with the id of an [`Event`], as a warning or as information after its
/// level.  `tracing` wants a level that is known when the program is compiled, so a kind of another
/// level names it (`@ error`); a test compares them.
macro_rules! say {
    (@ $level:ident, $event:expr, $($rest:tt)+) => {
        $level!(message_id = $event.kind().id, $($rest)+)
    };
    ($event:expr, $($rest:tt)+) => {
        match $event.level() {
            Level::Warn => say!(@ warn, $event, $($rest)+),
            _ => say!(@ info, $event, $($rest)+),
        }
    };
}

impl Event {
    /// This event with all text that comes from outside (files, paths, names) as [`printable`] shows
    /// it, for every sink, and in the fields as well as in the message.
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
            Self::Opened(identity) | Self::Closed(identity, ..) => text(&mut identity.listener),
            Self::Listening { listener: name, .. }
            | Self::Exposed { listener: name, .. }
            | Self::Isolated { listener: name, .. }
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
            | Self::NotPreserving { why, .. }
            | Self::PredecessorDropped { why, .. } => text(why),
            Self::Moved { preview, .. } => preview.iter_mut().for_each(text),
            // These have numbers, addresses, and words of the program and of the system.
            Self::Kernel(_)
            | Self::Refused { .. }
            | Self::Counters { .. }
            | Self::Drained
            | Self::Undrained
            | Self::LameDuck { .. }
            | Self::Stopping { .. }
            | Self::Stopped { .. }
            | Self::ClosedEmpty { .. }
            | Self::ClosedMany { .. }
            | Self::Root
            | Self::Manager(_)
            | Self::Clamped { .. }
            | Self::Preserving { .. }
            | Self::Restored { .. }
            | Self::HandedOver { .. }
            | Self::PreserveFailed { .. }
            | Self::Lost(_) => {}
        }
        self
    }

    /// Makes the `tracing` event of this event.
    pub(crate) fn emit(&self) {
        match self {
            Self::Started {
                read,
                max_connections,
                per_source,
            } => {
                let files = files(read);
                say!(
                    self,
                    "echo.version" = env!("CARGO_PKG_VERSION"),
                    "echo.files" = files,
                    "echo.max_connections" = max_connections,
                    "echo.per_source" = per_source,
                    "tcp-echo {} starts with {files}; {}",
                    env!("CARGO_PKG_VERSION"),
                    at_most(*max_connections, *per_source)
                );
            }
            Self::Kernel(kernel) => say!(
                self,
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
                "kernel: {}",
                settings(kernel)
            ),
            Self::Listening {
                listener,
                role,
                local,
                passed,
                rows,
            } => {
                let options = rows
                    .iter()
                    .map(|row| format!("{}={}", row.option, row.effective));
                let notes = rows
                    .iter()
                    .filter(|row| row.option == "backlog" || row.differs())
                    .map(|row| format!("; {}", note(row)));
                say!(
                    self,
                    "echo.listener" = listener,
                    "echo.role" = role.word(),
                    "echo.local" = %local,
                    "echo.passed" = passed,
                    "echo.options" = list(options, "none"),
                    "listening on {local}{} (listener {listener}, {}){}",
                    if *role == Role::Health { " for health checks" } else { "" },
                    if *passed { "passed by the service manager" } else { "bound here" },
                    notes.collect::<String>()
                );
            }
            Self::Ready { listen, hint } => {
                let hint = hint.as_ref();
                say!(
                    self,
                    "echo.listen" = listen,
                    "ready{}{}",
                    if listen.is_empty() {
                        String::new()
                    } else {
                        format!(" on {listen}")
                    },
                    hint.map_or_else(String::new, |hint| format!("; try: {hint}"))
                );
            }
            Self::Drained => say!(
                self,
                "drained: health checks are answered with drain until tcp-echo undrain"
            ),
            Self::Undrained => say!(
                self,
                "no longer drained: health checks are answered with ready"
            ),
            Self::LameDuck { open, span } => say!(
                self,
                "echo.open" = open,
                "echo.lame_duck_ms" = millis(*span),
                "lame duck for {}: health checks are answered with drain, and {} served on",
                duration(*span),
                match open {
                    1 => "1 connection is".to_owned(),
                    open => format!("{} are", connections(*open)),
                }
            ),
            Self::Stopping { open, span } => say!(
                self,
                "echo.open" = open,
                "echo.stop_timeout_ms" = millis(*span),
                "stopping{}",
                match open {
                    0 => "; no connection is open".to_owned(),
                    open => {
                        let (open, span) = (connections(*open), duration(*span));
                        format!("; waiting up to {span} for {open} to finish")
                    }
                }
            ),
            Self::Stopped {
                counters,
                refused,
                checks,
            } => say!(
                self,
                "echo.accepted" = counters.accepted,
                "echo.open" = counters.open(),
                "echo.refused" = refused,
                "echo.checks" = checks,
                "echo.received" = counters.received,
                "echo.sent" = counters.sent,
                "echo.reasons" = reasons(counters.by_reason()),
                "stopped; {}",
                sums(counters, *refused, *checks)
            ),
            Self::Counters {
                counters,
                refused,
                checks,
                owed,
                queues,
            } => {
                let queues = queues
                    .iter()
                    .map(|(local, queue)| format!("{local} {queue}"));
                let queues = list(queues, "none");
                say!(
                    self,
                    "echo.accepted" = counters.accepted,
                    "echo.open" = counters.open(),
                    "echo.refused" = refused,
                    "echo.checks" = checks,
                    "echo.received" = counters.received,
                    "echo.sent" = counters.sent,
                    "echo.owed" = owed,
                    "echo.reasons" = reasons(counters.by_reason()),
                    "echo.queues" = queues,
                    "{}; accept queues: {queues}",
                    sums(counters, *refused, *checks)
                );
            }
            Self::Reloaded { read, restart } => {
                let files = files(read);
                let keys = Some(list(restart.iter(), "")).filter(|keys| !keys.is_empty());
                say!(
                    self,
                    "echo.files" = files,
                    "echo.needs_restart" = keys,
                    "reloaded {files}{}",
                    keys.as_ref().map_or_else(String::new, |keys| {
                        format!("; these keys need a restart to take effect: {keys}")
                    })
                );
            }
            Self::ReloadFailed(why) => {
                say!(@ error, self,
                    "reload failed, the old configuration stays in effect: {why}"
                );
            }
            Self::StartFailed(why) => say!(@ error, self, "cannot start: {why}"),
            Self::Opened(identity) => say!(@ debug, self,
                "echo.connection" = identity.number,
                "echo.peer" = %identity.peer,
                "echo.peer_pid" = identity.credentials.and_then(|peer| peer.pid),
                "echo.peer_uid" = identity.credentials.map(|peer| peer.uid),
                "echo.proxy" = identity.proxy.as_ref().map(ToString::to_string),
                "echo.local" = %identity.local,
                "echo.listener" = identity.listener,
                "connection {} from {}{} to {}{} opened",
                identity.number,
                identity.peer,
                process(identity),
                identity.local,
                through(identity)
            ),
            Self::Moved {
                number,
                received,
                sent,
                owed,
                preview,
            } => {
                let text = preview.as_ref();
                say!(@ trace, self,
                    "echo.connection" = number,
                    "echo.received" = received,
                    "echo.sent" = sent,
                    "echo.owed" = owed,
                    "echo.preview" = preview,
                    "connection {number} had a turn: received {received}, sent {sent}, owed {owed}{}",
                    text.map_or_else(String::new, |text| format!(", payload \"{text}\""))
                );
            }
            Self::Closed(identity, summary, info) => {
                self.emit_closed(identity, summary, info.as_deref());
            }
            Self::ClosedEmpty {
                reasons: by_reason,
                sources,
                others,
            } => {
                let count: u64 = by_reason.iter().map(|(_, count)| count).sum();
                let reasons = reasons(by_reason.iter().copied());
                let name = |source: &Option<IpAddr>| match source {
                    Some(address) => address.to_string(),
                    None => "unix".to_owned(),
                };
                let of_each = sources
                    .iter()
                    .map(|(source, count)| format!("{} {count}", name(source)))
                    .chain((*others > 0).then(|| format!("others {others}")));
                let sources = list(of_each, "none");
                say!(
                    self,
                    "echo.count" = count,
                    "echo.reasons" = reasons,
                    "echo.sources" = sources,
                    "{count} more connection{} ended without a byte ({reasons}): from {sources}",
                    plural(count)
                );
            }
            Self::ClosedMany {
                reasons: by_reason,
                received,
                sent,
            } => {
                let count: u64 = by_reason.iter().map(|(_, count)| count).sum();
                let reasons = reasons(by_reason.iter().copied());
                say!(
                    self,
                    "echo.count" = count,
                    "echo.reasons" = reasons,
                    "echo.received" = received,
                    "echo.sent" = sent,
                    "{count} more connection{} ended ({reasons}): received {received}, sent {sent}",
                    plural(count)
                );
            }
            Self::Refused { peer, most, count } => say!(
                self,
                "echo.peer" = %peer,
                "echo.limit" = most,
                "echo.count" = count,
                "closed {} at once, the last from {peer}: {most} connections of one source are open \
                 (limits.max-connections-per-source)",
                connections(*count)
            ),
            Self::Paused {
                listener,
                pause,
                open,
                count,
            } => {
                let (word, errno, why) = cause(*pause);
                say!(
                    self,
                    "echo.listener" = listener,
                    "echo.cause" = word,
                    errno,
                    "echo.open" = open,
                    "echo.count" = count,
                    "listener {listener} is paused, new connections wait in the kernel's queue: {why}; \
                     {} open",
                    match open {
                        1 => "1 connection is".to_owned(),
                        open => format!("{open} connections are"),
                    }
                );
            }
            Self::Resumed { listener, span } => say!(
                self,
                "echo.listener" = listener,
                "echo.duration_usec" = micros(*span),
                "listener {listener} accepts again, after a pause of {span:.1?}"
            ),
            Self::Ignored(why) => say!(
                self,
                "ignoring the sockets that LISTEN_FDS announces: {why}"
            ),
            Self::AcceptFailed {
                listener,
                errno,
                count,
            } => say!(
                self,
                "echo.listener" = listener,
                errno,
                "echo.count" = count,
                "listener {listener} could not accept {}: {}",
                connections(*count),
                io::Error::from_raw_os_error(*errno)
            ),
            Self::Exposed { listener, local } => say!(
                self,
                "echo.listener" = listener,
                "echo.local" = %local,
                "listener {listener} accepts connections of other hosts on {local}: allow only the networks \
                 that need it (IPAddressAllow= in the socket unit, or a firewall), then set \
                 allow-remote = true"
            ),
            Self::Isolated { listener, local } => say!(
                self,
                "echo.listener" = listener,
                "echo.local" = %local,
                "listener {listener} on {local} cannot be reached from outside: {}",
                match local {
                    Endpoint::Ip(_) => {
                        "this network namespace has no interface but lo (PrivateNetwork= in the unit, or a \
                         container without a network)"
                    }
                    Endpoint::Unix(_) | Endpoint::Abstract(_) => {
                        "the service has this folder for itself (PrivateTmp= in the unit); choose a path below \
                         /run (RuntimeDirectory= in the unit), or let a socket unit open it"
                    }
                }
            ),
            Self::Root => say!(
                self,
                "running as root, which an echo does not need: use tcp-echo.service, or User= in a unit"
            ),
            Self::Option { listener, refused } => say!(
                self,
                "echo.listener" = listener,
                "echo.option" = refused.option,
                errno = refused.error.raw_os_error(),
                "listener {listener}: {refused}"
            ),
            Self::Unused { listener, others } => say!(
                self,
                "echo.listener" = listener,
                "listener {listener} has no socket{}: give it an address, or pass a socket with \
                 FileDescriptorName={listener}",
                if *others {
                    ", unless in another instance of the service"
                } else {
                    ""
                }
            ),
            Self::Absent(why) => say!(self, "going on without one address: {why}"),
            Self::Reserved { name } => say!(
                self,
                "echo.name" = name,
                "closed the passed descriptor {name:?}: this name is reserved for descriptors that a previous \
                 process has left, and this is none; choose another FileDescriptorName="
            ),
            Self::Manager(error) => say!(
                self,
                errno = error.raw_os_error(),
                "cannot reach the service manager (NOTIFY_SOCKET): {error}"
            ),
            Self::Clamped { asked, effective } => say!(
                self,
                "echo.asked" = asked,
                "echo.max_connections" = effective,
                "limits.max-connections is {effective}, not {asked}: there are not enough descriptors; raise \
                 LimitNOFILE= in the unit, or ulimit -n"
            ),
            Self::Preserving {
                max_connections,
                per_source,
            } => say!(
                self,
                "echo.max_connections" = max_connections,
                "echo.per_source" = per_source,
                "the service manager preserves connections over a restart; {}",
                at_most(*max_connections, *per_source)
            ),
            Self::NotPreserving { why, .. } => say!(
                self,
                "echo.reason" = why,
                "connections do not survive this process: {why}"
            ),
            Self::Restored {
                restored,
                before,
                owing,
                owed,
                planned,
                crashes,
                lost,
            } => say!(
                self,
                "echo.restored" = restored,
                "echo.of" = before,
                "echo.owing" = owing,
                "echo.owed" = owed,
                "echo.planned" = planned,
                "echo.crashes" = crashes,
                "restored {restored} of {}{}{}{}",
                connections(*before as u64),
                match owing {
                    0 => String::new(),
                    owing => format!(", {owing} owed {}", size(*owed)),
                },
                if *planned { "" } else { ", after a crash" },
                lost.iter()
                    .map(|(why, count)| format!("; {count} not restored: {why}"))
                    .collect::<String>()
            ),
            Self::HandedOver { preserved, open } => say!(
                self,
                "echo.preserved" = preserved,
                "echo.open" = open,
                "handed over {} to the next process",
                connections(*preserved as u64)
            ),
            Self::PreserveFailed { count, error } => say!(
                self,
                "echo.count" = count,
                errno = error.raw_os_error(),
                "cannot {}: {error}{}",
                match count {
                    0 => "rotate the descriptor queue in the service manager's store".to_owned(),
                    count => format!("preserve {}", connections(*count as u64)),
                },
                match error.raw_os_error() {
                    Some(libc::ETOOMANYREFS) => {
                        " (as many descriptors are in flight as LimitNOFILE= of the unit allows)"
                    }
                    _ => "",
                }
            ),
            Self::PredecessorDropped { why, count } => say!(
                self,
                "echo.reason" = why,
                "echo.count" = count,
                "closed {} left by the previous process: {why}",
                match count {
                    0 => "everything".to_owned(),
                    count => connections(*count as u64),
                }
            ),
            Self::Lost(count) => say!(
                self,
                "echo.count" = count,
                "lost {count} event{} while the log could not be written",
                plural(*count)
            ),
        }
    }

    fn emit_closed(&self, identity: &Identity, summary: &Summary, info: Option<&TcpInfo>) {
        let Identity {
            number,
            peer,
            proxy,
            header,
            invalid,
            credentials,
            local,
            listener,
        } = identity;
        let header = header.as_deref();
        let Summary {
            reason,
            received,
            sent,
            owed,
            duration: span,
        } = summary;
        let errno = match reason {
            EndReason::Error(errno) => Some(i32::from(*errno)),
            _ => None,
        };
        let mut text = match *span {
            // It has begun and ended in one round, which has one time.
            Duration::ZERO => ", at once".to_owned(),
            span => format!(", in {span:.1?}"),
        };
        if *owed > 0 {
            let _ = write!(text, ", {owed} bytes could not be sent back");
        }
        if let Some(errno) = errno {
            let _ = write!(text, ": {}", io::Error::from_raw_os_error(errno));
        }
        if let Some(invalid) = invalid {
            let _ = write!(
                text,
                ": what the proxy sent is no PROXY header, as {invalid}"
            );
        }
        let get = |field| info?.get(field);
        text.push_str(&info.map_or_else(String::new, path));
        say!(
            self,
            "echo.connection" = number,
            "echo.peer" = %peer,
            "echo.peer_pid" = credentials.and_then(|peer| peer.pid),
            "echo.peer_uid" = credentials.map(|peer| peer.uid),
            "echo.proxy" = proxy.as_ref().map(ToString::to_string),
            "echo.authority" = header.and_then(|header| header.authority.as_deref()),
            "echo.unique_id" = header.and_then(|header| header.unique_id.as_deref()),
            "echo.endpoint" = header.and_then(|header| header.endpoint.as_deref()),
            "echo.error" = invalid.map(|Invalid(why)| why),
            "echo.local" = %local,
            "echo.listener" = listener,
            "echo.received" = received,
            "echo.sent" = sent,
            "echo.owed" = owed,
            "echo.duration_usec" = micros(*span),
            "echo.reason" = reason.as_str(),
            errno,
            "echo.closed_first" = info.and_then(|info| closed_first(*reason, info)),
            "echo.rtt_usec" = info.and_then(TcpInfo::rtt),
            "echo.rttvar_usec" = info.and_then(TcpInfo::rtt).and(get(field::RTTVAR)),
            "echo.min_rtt_usec" = info.and_then(TcpInfo::min_rtt),
            "echo.segments" = get(field::DATA_SEGS_OUT),
            "echo.segments_again" = get(field::TOTAL_RETRANS),
            "echo.segments_needless" = get(field::DSACK_DUPS),
            "echo.mss" = get(field::SND_MSS),
            "echo.path_mtu" = get(field::PMTU),
            "echo.delivery_rate" = info.and_then(TcpInfo::delivery_rate),
            "echo.busy_usec" = get(field::BUSY),
            "echo.rwnd_limited_usec" = get(field::RWND_LIMITED),
            "echo.sndbuf_limited_usec" = get(field::SNDBUF_LIMITED),
            "connection {number} from {peer}{} on {local}{} ended ({}): received {received}, sent {sent}{text}",
            process(identity),
            through(identity),
            reason.as_str()
        );
    }
}

/// Which side has ended the connection first, as far as that is known.
fn closed_first(reason: EndReason, info: &TcpInfo) -> Option<&'static str> {
    match (reason, info.get(field::STATE)?) {
        (EndReason::Reset | EndReason::TimedOut | EndReason::Error(_), _) => None,
        (EndReason::PeerClosed, _) | (_, state::CLOSE_WAIT | state::LAST_ACK) => Some("peer"),
        _ => Some("service"),
    }
}

/// What the kernel says of a connection, behind the message of its end; what says nothing is left
/// out.
fn path(info: &TcpInfo) -> String {
    let mut parts = Vec::new();
    let span = Duration::from_micros;
    if let Some(rtt) = info.rtt() {
        let least = info.min_rtt();
        let least = least.map_or_else(String::new, |least| format!(" (least {:.1?})", span(least)));
        parts.push(format!("rtt {:.1?}{least}", span(rtt)));
    }
    if let Some(again) = info.get(field::TOTAL_RETRANS).filter(|again| *again > 0) {
        let of = info.get(field::DATA_SEGS_OUT).filter(|of| *of >= again);
        let of = of.map_or_else(String::new, |of| format!(" of {of}"));
        let needless = info.get(field::DSACK_DUPS).filter(|needless| *needless > 0);
        let needless = needless.map_or_else(String::new, |count| format!(" ({count} needless)"));
        parts.push(format!("sent again {again}{of} segments{needless}"));
    }
    if let Some(mss) = info.get(field::SND_MSS) {
        parts.push(format!("mss {mss}"));
    }
    for (field, what) in [
        (field::RWND_LIMITED, "the peer's window"),
        (field::SNDBUF_LIMITED, "the send buffer"),
    ] {
        if let Some(limited) = info.get(field).filter(|micros| *micros >= 1000) {
            parts.push(format!("{:.1?} limited by {what}", span(limited)));
        }
    }
    match parts.is_empty() {
        true => String::new(),
        false => format!("; {}", parts.join(", ")),
    }
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn connections(count: u64) -> String {
    format!("{count} connection{}", plural(count))
}

fn at_most(max_connections: usize, per_source: Option<usize>) -> String {
    let source = per_source.map_or_else(String::new, |most| format!(", {most} from one source"));
    format!("connections at most: {max_connections}{source}")
}

fn files(read: &[PathBuf]) -> String {
    list(
        read.iter().map(|file| file.display()),
        "no file (built-in defaults)",
    )
}

/// The process of a peer, behind its address.
fn process(identity: &Identity) -> String {
    let Some(Credentials { pid, uid }) = identity.credentials else {
        return String::new();
    };
    let pid = pid.map_or_else(String::new, |pid| format!("pid {pid}, "));
    format!(" ({pid}uid {uid})")
}

/// The proxy that has named the client, behind the address of the client's connection.
fn through(identity: &Identity) -> String {
    let proxy = identity.proxy.as_ref();
    proxy.map_or_else(String::new, |proxy| format!(" through {proxy}"))
}

fn reasons(by_reason: impl Iterator<Item = (&'static str, u64)>) -> String {
    let ended = by_reason.filter(|(_, count)| *count > 0);
    list(
        ended.map(|(reason, count)| format!("{reason} {count}")),
        "none",
    )
}

fn sums(counters: &Counters, refused: u64, checks: u64) -> String {
    let checks = match checks {
        0 => String::new(),
        checks => format!(", health checks {checks}"),
    };
    format!(
        "connections: accepted {}, open {}, refused {refused}{checks}; received {}, sent {}; ended: {}",
        counters.accepted,
        counters.open(),
        size(counters.received),
        size(counters.sent),
        reasons(counters.by_reason())
    )
}

/// Why a listener is paused: the word for programs, the error, and the end of the message.
fn cause(pause: Pause) -> (&'static str, Option<i32>, String) {
    match pause {
        Pause::Limit => ("limit", None, "limits.max-connections is reached".into()),
        Pause::Short(errno) => {
            let error = io::Error::from_raw_os_error(errno);
            let advice = "raise LimitNOFILE= in the unit, or see fs.file-max";
            ("short", Some(errno), format!("{error} ({advice})"))
        }
        Pause::Failing(errno) => {
            let error = io::Error::from_raw_os_error(errno);
            ("failing", Some(errno), format!("{error}; trying again"))
        }
    }
}

/// The settings of the kernel that decide how long data and handshakes are kept, and how many.
fn settings(kernel: &Kernel) -> String {
    let parts = [
        kernel
            .connect_timeout()
            .map(|span| format!("a handshake is given up after {}", duration(span))),
        kernel
            .data_timeout()
            .map(|span| format!("unacknowledged data after {} at least", duration(span))),
        kernel
            .somaxconn
            .map(|most| format!("at most {most} connections wait in an accept queue")),
        kernel.half_open(),
        kernel.tcp_slow_start_after_idle.map(|on| {
            format!(
                "slow start after idle is {}",
                if on == 0 { "off" } else { "on" }
            )
        }),
    ];
    let text = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
    if text.is_empty() {
        return "its settings cannot be seen from here; run tcp-echo check outside of the sandbox"
            .into();
    }
    text
}

/// An option that a message names, as asked and as it is.
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
    use crate::log::events::EVENTS;
    use crate::proxy_header::Header;
    use crate::sys::sockopt::{Queue, Refused};

    /// What reached the sink.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<(TracingLevel, Fields)>>>);

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

    impl<S: Subscriber> Layer<S> for Sink {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            let mut fields = Fields::default();
            event.record(&mut fields);
            let level = *event.metadata().level();
            self.0.lock().unwrap().push((level, fields));
        }
    }

    /// What the kernel says of a connection with all kinds of trouble.
    fn measured() -> Box<TcpInfo> {
        Box::new(TcpInfo::scripted(&[
            (field::STATE, state::CLOSE_WAIT),
            (field::RTT, 12_100),
            (field::RTTVAR, 900),
            (field::MIN_RTT, 11_800),
            (field::DATA_SEGS_OUT, 3022),
            (field::TOTAL_RETRANS, 17),
            (field::DSACK_DUPS, 2),
            (field::SND_MSS, 1428),
            (field::DELIVERY_RATE, 1_000_000),
            (field::RWND_LIMITED, 400_000),
            (field::SNDBUF_LIMITED, 999),
        ]))
    }

    fn one_of_each() -> Vec<Event> {
        let identity = || Identity {
            number: 1,
            peer: Endpoint::Ip("127.0.0.1:1".parse().unwrap()),
            proxy: Some(Endpoint::Ip("127.0.0.1:2".parse().unwrap())),
            header: Some(Box::new(Header {
                authority: Some("a".into()),
                unique_id: Some("b".into()),
                endpoint: Some("c".into()),
                ..Header::default()
            })),
            invalid: Some(Invalid("it is wrong")),
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
            reason: EndReason::numbered(&io::Error::from_raw_os_error(libc::EHOSTUNREACH)),
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
                role: Role::Health,
                local: Endpoint::Unix(Some("/run/\u{1b}.sock".into())),
                passed: true,
                rows: Vec::new(),
            },
            Event::Ready {
                listen: "unix:/\u{1b}".into(),
                hint: Some("\u{1b}".into()),
            },
            Event::Drained,
            Event::Undrained,
            Event::LameDuck {
                open: 1,
                span: Duration::ZERO,
            },
            Event::Stopping {
                open: 0,
                span: Duration::ZERO,
            },
            Event::Stopped {
                counters: Counters::default(),
                refused: 0,
                checks: 0,
            },
            Event::Reloaded {
                read: vec!["/etc/\u{7}".into()],
                restart: Vec::new(),
            },
            Event::ReloadFailed("w\u{1b}y".into()),
            Event::StartFailed("w\u{1b}y".into()),
            Event::Opened(identity()),
            Event::Moved {
                number: 1,
                received: 1,
                sent: 1,
                owed: 0,
                preview: Some("\u{1b}".into()),
            },
            Event::Closed(identity(), summary, Some(measured())),
            Event::ClosedEmpty {
                reasons: vec![("peer-closed", 9)],
                sources: vec![(None, 4), (Some([192, 0, 2, 1].into()), 3)],
                others: 2,
            },
            Event::ClosedMany {
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
                checks: 0,
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
            Event::Isolated {
                listener: listener(),
                local: Endpoint::Unix(Some("/\r".into())),
            },
            Event::Exposed {
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
            Event::Preserving {
                max_connections: 9,
                per_source: None,
            },
            Event::Resumed {
                listener: listener(),
                span: Duration::ZERO,
            },
            Event::Ignored("w\u{1b}y".into()),
            Event::NotPreserving {
                why: "\u{9b}".into(),
                grave: true,
            },
            Event::Restored {
                restored: 1,
                before: 2,
                owing: 1,
                owed: 5,
                planned: false,
                crashes: 1,
                lost: vec![("it was", 1)],
            },
            Event::HandedOver {
                preserved: 1,
                open: 1,
            },
            Event::PreserveFailed {
                count: 1,
                error: error(),
            },
            Event::PredecessorDropped {
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

    /// Emits events; returns what reached the sink, one for each.
    fn emitted(events: &[Event]) -> Vec<(TracingLevel, Fields)> {
        let sink = Sink::default();
        let registry = Registry::default().with(sink.clone());
        tracing::subscriber::with_default(registry, || events.iter().for_each(Event::emit));
        let found = std::mem::take(&mut *sink.0.lock().unwrap());
        assert_eq!(found.len(), events.len());
        found
    }

    fn tracing_level(level: Level) -> TracingLevel {
        match level {
            Level::Error => TracingLevel::ERROR,
            Level::Warn => TracingLevel::WARN,
            Level::Info => TracingLevel::INFO,
            Level::Debug => TracingLevel::DEBUG,
            Level::Trace => TracingLevel::TRACE,
            Level::Off => panic!("no event is logged at this level"),
        }
    }

    /// [`one_of_each`], and the same kinds with other values, so that each field is there.
    fn all() -> Vec<Event> {
        let mut events = one_of_each();
        // A connection that breaks has no side that ended it first.
        if let Some(Event::Closed(identity, summary, info)) = one_of_each()
            .into_iter()
            .find(|event| matches!(event, Event::Closed(..)))
        {
            let reason = EndReason::PeerClosed;
            events.push(Event::Closed(identity, Summary { reason, ..summary }, info));
        }
        events.push(Event::Unused {
            listener: "web".into(),
            others: true,
        });
        events.push(Event::Reloaded {
            read: vec!["/etc/\u{7}".into()],
            restart: vec!["log.format".into()],
        });
        events.push(Event::NotPreserving {
            why: "it is off".into(),
            grave: false,
        });
        events.push(Event::Started {
            read: Vec::new(),
            max_connections: 9,
            per_source: Some(2),
        });
        events.push(Event::Preserving {
            max_connections: 9,
            per_source: Some(2),
        });
        // Fields of settings that the kernel does not show are left out.
        events.push(Event::Kernel(Kernel {
            somaxconn: Some(1),
            tcp_max_syn_backlog: Some(1),
            tcp_synack_retries: Some(1),
            tcp_retries2: Some(1),
            rmem_max: Some(1),
            wmem_max: Some(1),
            tcp_rmem_max: Some(1),
            tcp_wmem_max: Some(1),
            tcp_slow_start_after_idle: Some(1),
            ..Kernel::default()
        }));
        events
    }

    #[test]
    fn an_event_has_the_id_the_level_and_the_fields_of_its_row() {
        let events = all();
        let mut seen: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (event, (level, Fields(fields))) in events.iter().zip(emitted(&events)) {
            let kind = event.kind();
            assert_eq!(tracing_level(event.level()), level, "{event:?}");
            assert_eq!(fields["message_id"], kind.id, "{event:?}");
            // journalctl shows nothing of an entry without a message.
            assert!(!fields["message"].is_empty(), "{event:?}");
            let names = fields.keys().filter(|name| !name.starts_with("message"));
            seen.entry(kind.name).or_default().extend(names);
        }
        for kind in EVENTS {
            let row: BTreeSet<&str> = kind.fields.iter().copied().collect();
            assert_eq!(seen.remove(kind.name), Some(row), "{}", kind.name);
        }
        assert!(seen.is_empty(), "{seen:?}");
    }

    #[test]
    fn the_end_of_a_connection_says_what_its_path_was_like_and_no_more() {
        assert_eq!(
            path(&measured()),
            "; rtt 12.1ms (least 11.8ms), sent again 17 of 3022 segments (2 needless), mss 1428, \
             400.0ms limited by the peer's window"
        );
        let smooth = [
            (field::RTT, 90),
            (field::DATA_SEGS_OUT, 9),
            (field::SND_MSS, 536),
        ];
        assert_eq!(path(&TcpInfo::scripted(&smooth)), "; rtt 90.0µs, mss 536");
    }

    #[test]
    fn the_side_that_ended_first_is_known_unless_the_connection_broke() {
        let first =
            |reason, state| closed_first(reason, &TcpInfo::scripted(&[(field::STATE, state)]));
        for (reason, state, side) in [
            (EndReason::PeerClosed, state::CLOSE_WAIT, Some("peer")),
            (EndReason::PeerClosed, state::CLOSE, Some("peer")),
            (EndReason::MaxBytes, state::FIN_WAIT2, Some("service")),
            (EndReason::MaxBytes, state::CLOSE, Some("service")),
            (EndReason::IdleTimeout, state::ESTABLISHED, Some("service")),
            (EndReason::Shutdown, state::CLOSE_WAIT, Some("peer")),
            (EndReason::Reset, state::CLOSE, None),
            (EndReason::TimedOut, state::CLOSE, None),
        ] {
            assert_eq!(first(reason, state), side, "{reason:?} {state}");
        }
    }

    #[test]
    fn ids_and_names_are_unique_and_of_the_right_form() {
        let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
        for kind in EVENTS {
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            assert!(kind.id.len() == 32 && kind.id.bytes().all(hex), "{kind:?}");
            assert!(ids.insert(kind.id) && names.insert(kind.name), "{kind:?}");
            for field in kind.fields {
                // The journal drops names of more than 64 bytes.
                let ours = field.starts_with("echo.") && field.len() <= 64;
                assert!(ours || *field == "errno", "{kind:?}");
            }
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
        for (event, (_, Fields(fields))) in events.iter().zip(emitted(&events)) {
            for (name, value) in fields {
                assert!(!value.contains(char::is_control), "{event:?}: {name}");
            }
        }
        assert_eq!(printable("a\tb\nc\u{1b}[31m"), "a\tb\nc\\u{1b}[31m");
    }
}
