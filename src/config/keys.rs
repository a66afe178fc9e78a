//! The keys of the configuration: one table, from which everything follows that lists them.
//!
//! `tcp-echo check` walks [`KEYS`] and shows each of them; [`super::Config::needs_restart`] follows from the
//! table; `cargo xtask generate` makes packaging/config.toml and the lists of tcp-echo.toml(5) from it.  The parser (`file`) has the same keys, which a
//! test compares with these.

use clap::ValueEnum;

use super::units::{
    Congestion, Count, Group, Mode, Moment, Networks, OrAuto, OrOff, Proxy, Seconds, Size, Span,
    Unit, duration, on_off, or_off, size,
};
use super::{Config, Options, PerSource};
use crate::cli::{Format, Level};
use Effect::{AtRestart, Reload};
use Show::{Daemon, Heading, Listener};
use Value::{Default, Example};

/// A key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The table that it belongs to: "limits", "log", "metrics", "socket" (its keys may stand in
    /// `[listener.NAME]` too), "listener", or "" for the keys before the first table.
    pub table: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The values that it takes, with their range, as the end of a sentence.
    pub takes: fn() -> String,
    /// The value that is shown beside it, as it is written in the file.
    pub value: Value,
    /// When a change takes effect.
    pub effect: Effect,
    /// The option that it sets (socket(7), tcp(7), ip(7), ipv6(7)); empty if it sets none.
    pub option: &'static str,
    /// How `tcp-echo check` shows it.
    pub show: Show,
    /// What it means, for the configuration file and the manual page.  A sentence begins behind two
    /// spaces.
    pub help: &'static str,
}

/// A value as it is written in the file.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// The default.
    Default(&'static str),
    /// An example, where the default cannot be written: the kernel decides, or the address does.
    Example(&'static str),
}

/// When a change of a key takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// With a reload; options of sockets for new connections.
    Reload,
    /// At the next start.
    AtRestart,
}

/// How `tcp-echo check` shows a key.
#[derive(Clone, Copy, Debug)]
pub enum Show {
    /// Once.  Values that are shown alike are the same.
    Daemon(fn(&Config) -> String),
    /// For each listener; `None` if the option is left as it is.
    Listener(fn(&Options) -> Option<String>),
    /// As the heading above the options of a listener.
    Heading,
}

/// Every key, in the order of the configuration file.
pub const KEYS: [Key; 41] = [
    Key {
        table: "",
        name: "allow-remote",
        takes: switch,
        value: Default("false"),
        effect: Reload,
        option: "",
        show: Daemon(|config| on_off(config.allow_remote)),
        help: "Listeners beyond loopback are intended, so the daemon does not warn about them.",
    },
    Key {
        table: "",
        name: "preserve-connections",
        takes: switch,
        value: Default("true"),
        effect: AtRestart,
        option: "",
        show: Daemon(|config| on_off(config.preserve_connections)),
        help: "Open connections survive a restart, an upgrade and a crash, where the service \
               manager preserves them for the next process (FileDescriptorStoreMax= of the unit).",
    },
    Key {
        table: "",
        name: "preserve-after",
        takes: Span::expected,
        value: Default("\"1s\""),
        effect: Reload,
        option: "",
        show: Daemon(|config| duration(config.preserve_after)),
        help: "Preserve a connection once it is this old.  A younger connection ends in a crash, \
               but survives a restart.",
    },
    Key {
        table: "",
        name: "poll-timeout",
        takes: OrOff::<Span>::expected,
        value: Default("\"off\""),
        effect: Reload,
        option: "",
        show: Daemon(|config| or_off(config.poll_timeout, duration)),
        help: "The longest sleep of an event loop.  Nothing depends on it: the loop wakes up when \
               something is due.",
    },
    Key {
        table: "",
        name: "busy-poll",
        takes: OrOff::<Moment>::expected,
        value: Default("\"off\""),
        effect: Reload,
        option: "",
        show: Daemon(|config| {
            or_off(
                Some(config.busy_poll).filter(|span| !span.is_zero()),
                duration,
            )
        }),
        help: "How long an event loop looks for more events before it sleeps.  With \"50us\" a \
               single client on another processor waits half as long, for a little more processor \
               time while there is traffic.",
    },
    Key {
        table: "",
        name: "workers",
        takes: OrAuto::<Count<1, 64>>::expected,
        value: Default("1"),
        effect: AtRestart,
        option: "",
        show: Daemon(|config| config.workers.to_string()),
        help: "Event loops that serve connections, each beyond the first in a thread of its own.  \
               \"auto\": one for each processor.  A new connection goes to the loop that has the \
               fewest.",
    },
    Key {
        table: "limits",
        name: "max-connections",
        takes: OrAuto::<Count<1, 1_000_000>>::expected,
        value: Default("\"auto\""),
        effect: Reload,
        option: "",
        show: Daemon(|config| {
            let asked = config.max_connections;
            asked.map_or_else(|| "auto".to_owned(), |most| most.to_string())
        }),
        help: "Connections at a time.  Further clients wait in the accept queue of the kernel.  \
               \"auto\": (LimitNOFILE - 32 - 4 (workers - 1)) x 3/7 while connections are preserved, \
               otherwise without the 3/7; up to 64 descriptors fewer where there is a health listener; at \
               most 65536.",
    },
    Key {
        table: "limits",
        name: "max-connections-per-source",
        takes: OrAuto::<OrOff<Count<1, 1_000_000>>>::expected,
        value: Default("\"auto\""),
        effect: Reload,
        option: "",
        show: Daemon(|config| match config.per_source {
            PerSource::Quarter => "auto".into(),
            PerSource::Off => "off".into(),
            PerSource::Most(most) => most.to_string(),
        }),
        help: "Connections at a time from one IPv4 address or one IPv6 network of 64 bits; loopback \
               and Unix sockets are exempt.  A further connection is closed at once, and counted as \
               refused.  \"auto\": a quarter of max-connections.",
    },
    Key {
        table: "limits",
        name: "idle-timeout",
        takes: OrOff::<Span>::expected,
        value: Default("\"off\""),
        effect: Reload,
        option: "",
        show: Daemon(|config| or_off(config.limits.idle, duration)),
        help: "Close a connection after this long without a byte in either direction.",
    },
    Key {
        table: "limits",
        name: "stall-timeout",
        takes: OrOff::<Span>::expected,
        value: Default("\"5min\""),
        effect: Reload,
        option: "",
        show: Daemon(|config| or_off(config.limits.stall, duration)),
        help: "Close a connection when nothing of what is owed to its peer could be written for this \
               long.  The kernel makes room in lumps, so a peer that reads less than about 1 kB/s \
               counts as stalled.",
    },
    Key {
        table: "limits",
        name: "max-lifetime",
        takes: OrOff::<Span>::expected,
        value: Default("\"off\""),
        effect: Reload,
        option: "",
        show: Daemon(|config| or_off(config.limits.lifetime, duration)),
        help: "End a connection when it is this old, or up to a tenth younger, so that connections which \
               began together do not end together: what it sent so far comes back, then the end of \
               the stream, within stop-timeout.  What arrives later is discarded.",
    },
    Key {
        table: "limits",
        name: "max-bytes",
        takes: OrOff::<Size>::expected,
        value: Default("\"off\""),
        effect: Reload,
        option: "",
        show: Daemon(|config| or_off(config.limits.bytes, size)),
        help: "End a connection as max-lifetime does when this many bytes were received.",
    },
    Key {
        table: "limits",
        name: "lame-duck",
        takes: OrOff::<Span>::expected,
        value: Default("\"off\""),
        effect: Reload,
        option: "",
        show: Daemon(|config| {
            let span = Some(config.lame_duck).filter(|span| !span.is_zero());
            or_off(span, duration)
        }),
        help: "How long a stop is announced before it begins: health checks are answered with drain, \
               and the service goes on accepting and echoing, while balancers learn to send new \
               connections elsewhere.  A second signal begins the stop at once.  Not for a restart over \
               which connections are preserved.",
    },
    Key {
        table: "limits",
        name: "stop-timeout",
        takes: Span::expected,
        value: Default("\"10s\""),
        effect: Reload,
        option: "",
        show: Daemon(|config| duration(config.limits.stop_timeout)),
        help: "How long a stop may take until a connection is closed although bytes are owed.",
    },
    Key {
        table: "log",
        name: "level",
        takes: one_of::<Level>,
        value: Default("\"info\""),
        effect: Reload,
        option: "",
        show: Daemon(|config| config.log.level.to_string()),
        help: "The least important events that are logged.  \"debug\" adds the beginning of each \
               connection, \"trace\" each turn of a connection.",
    },
    Key {
        table: "log",
        name: "format",
        takes: one_of::<Format>,
        value: Default("\"auto\""),
        effect: AtRestart,
        option: "",
        show: Daemon(|config| word(&config.log.format)),
        help: "\"auto\": to the journal where standard error is connected to it, otherwise text.  \
               \"text\" and \"json\": on standard error, an event a line.",
    },
    Key {
        table: "log",
        name: "connection-rate",
        takes: Count::<0, 1_000_000>::expected,
        value: Default("50"),
        effect: Reload,
        option: "",
        show: Daemon(|config| config.log.connection_rate.to_string()),
        help: "Ends of connections that are logged one by one in a second; further ones are logged \
               as a sum.",
    },
    Key {
        table: "log",
        name: "payload-preview",
        takes: Count::<0, 65536>::expected,
        value: Default("0"),
        effect: Reload,
        option: "",
        show: Daemon(|config| config.log.payload_preview.to_string()),
        help: "Bytes of payload in the event of a turn, at level \"trace\".",
    },
    Key {
        table: "metrics",
        name: "address",
        takes: address,
        value: Example("\"127.0.0.1:9107\""),
        effect: AtRestart,
        option: "",
        show: Daemon(|config| {
            let address = config.metrics.as_ref();
            address.map_or_else(|| "off".to_owned(), ToString::to_string)
        }),
        help: "Where metrics (/metrics) and health (/healthz) are served over HTTP, beside the echo.  \
               Without it they are served only on a passed socket of the name metrics \
               (tcp-echo-metrics.socket), which takes the place of this address.  There is neither a \
               password nor encryption: keep it on loopback, or behind a firewall.",
    },
    Key {
        table: "socket",
        name: "reuse-address",
        takes: switch,
        value: Default("true"),
        effect: AtRestart,
        option: "SO_REUSEADDR",
        show: Listener(|options| options.reuse_address.map(on_off)),
        help: "Listen although connections of the address are in TIME-WAIT.  It is always on where \
               connections are preserved, as those would keep the next process from the address.",
    },
    Key {
        table: "socket",
        name: "reuse-port",
        takes: switch,
        value: Default("false"),
        effect: AtRestart,
        option: "SO_REUSEPORT",
        show: Listener(|options| options.reuse_port.map(on_off)),
        help: "Let other processes of the same user listen on the port as well.",
    },
    Key {
        table: "socket",
        name: "v6only",
        takes: switch,
        value: Example("true"),
        effect: AtRestart,
        option: "IPV6_V6ONLY",
        show: Listener(|options| options.v6only.map(on_off)),
        help: "Whether an IPv6 socket leaves IPv4 to others.  Without this key the address decides: \
               *:PORT takes IPv4 as well, [::]:PORT does not.",
    },
    Key {
        table: "socket",
        name: "backlog",
        takes: Count::<1, 1_000_000>::expected,
        value: Default("4096"),
        effect: AtRestart,
        option: "",
        show: Listener(|options| options.backlog.map(|count| count.0.to_string())),
        help: "Connections that may wait to be accepted, see listen(2).  net.core.somaxconn limits it.",
    },
    Key {
        table: "socket",
        name: "receive-buffer",
        takes: OrAuto::<Size>::expected,
        value: Default("\"auto\""),
        effect: Reload,
        option: "SO_RCVBUF",
        show: Listener(|options| options.receive_buffer.map(size_or_auto)),
        help: "The receive queue of a connection in the kernel.  \"auto\": the kernel tunes it.  A \
               size ends that; the kernel doubles it, and net.core.rmem_max limits it.",
    },
    Key {
        table: "socket",
        name: "send-buffer",
        takes: OrAuto::<Size>::expected,
        value: Default("\"auto\""),
        effect: Reload,
        option: "SO_SNDBUF",
        show: Listener(|options| options.send_buffer.map(size_or_auto)),
        help: "The send queue of a connection in the kernel.  \"auto\": the kernel tunes it.  A size \
               ends that; the kernel doubles it, and net.core.wmem_max limits it.",
    },
    Key {
        table: "socket",
        name: "nodelay",
        takes: switch,
        value: Default("true"),
        effect: Reload,
        option: "TCP_NODELAY",
        show: Listener(|options| options.nodelay.map(on_off)),
        help: "Send small segments at once.",
    },
    Key {
        table: "socket",
        name: "quickack",
        takes: switch,
        value: Default("false"),
        effect: Reload,
        option: "TCP_QUICKACK",
        show: Listener(|options| options.quickack.map(on_off)),
        help: "Acknowledge at once.  The kernel forgets this option, so it costs a system call for \
               each read.",
    },
    Key {
        table: "socket",
        name: "keepalive",
        takes: switch,
        value: Default("true"),
        effect: Reload,
        option: "SO_KEEPALIVE",
        show: Listener(|options| options.keepalive.map(on_off)),
        help: "Probe silent peers: first after keepalive-idle, then each keepalive-interval, until \
               keepalive-probes were not answered.",
    },
    Key {
        table: "socket",
        name: "keepalive-idle",
        takes: Seconds::<32767>::expected,
        value: Default("\"300s\""),
        effect: Reload,
        option: "TCP_KEEPIDLE",
        show: Listener(|options| options.keepalive_idle.map(|span| duration(span.0))),
        help: "The silence before the first probe.  Load balancers commonly forget a silent \
               connection after 350 seconds.",
    },
    Key {
        table: "socket",
        name: "keepalive-interval",
        takes: Seconds::<32767>::expected,
        value: Default("\"15s\""),
        effect: Reload,
        option: "TCP_KEEPINTVL",
        show: Listener(|options| options.keepalive_interval.map(|span| duration(span.0))),
        help: "The time between probes.",
    },
    Key {
        table: "socket",
        name: "keepalive-probes",
        takes: Count::<1, 127>::expected,
        value: Default("5"),
        effect: Reload,
        option: "TCP_KEEPCNT",
        show: Listener(|options| options.keepalive_probes.map(|count| count.0.to_string())),
        help: "Unanswered probes after which the kernel closes the connection.",
    },
    Key {
        table: "socket",
        name: "user-timeout",
        takes: OrOff::<Span>::expected,
        value: Default("\"off\""),
        effect: Reload,
        option: "TCP_USER_TIMEOUT",
        show: Listener(|options| {
            let span = options.user_timeout;
            span.map(|OrOff(span)| or_off(span.map(|span| span.0), duration))
        }),
        help: "How long sent data may stay unacknowledged.  With keepalive, it decides instead of \
               keepalive-probes.",
    },
    Key {
        table: "socket",
        name: "notsent-lowat",
        takes: OrOff::<Size>::expected,
        value: Default("\"128KiB\""),
        effect: Reload,
        option: "TCP_NOTSENT_LOWAT",
        show: Listener(|options| {
            let bytes = options.notsent_lowat;
            bytes.map(|OrOff(bytes)| or_off(bytes.map(|bytes| bytes.0), size))
        }),
        help: "Unsent bytes above which the send queue counts as full.  It bounds what a stalled peer \
               costs in the send queue; only receive-buffer bounds the receive queue.",
    },
    Key {
        table: "socket",
        name: "congestion",
        takes: Congestion::expected,
        value: Example("\"cubic\""),
        effect: Reload,
        option: "TCP_CONGESTION",
        show: Listener(|options| options.congestion.as_ref().map(|name| name.0.clone())),
        help: "The congestion control.  Without this key it is the kernel's default \
               (net.ipv4.tcp_congestion_control).",
    },
    Key {
        table: "socket",
        name: "dscp",
        takes: Count::<0, 63>::expected,
        value: Default("0"),
        effect: Reload,
        option: "IP_TOS",
        show: Listener(|options| options.dscp.map(|dscp| dscp.0.to_string())),
        help: "The differentiated services code point of sent packets (RFC 2474).",
    },
    Key {
        table: "socket",
        name: "mode",
        takes: Mode::expected,
        value: Example("\"health\""),
        effect: AtRestart,
        option: "",
        show: Listener(|options| options.mode.map(|mode| mode.to_string())),
        help: "What a listener is for.  \"echo\": to echo.  \"health\": to answer each connection with \
               one line and close it, in the words of HAProxy's agent-check: up ready, up drain \
               (tcp-echo drain, lame-duck), or down#stopping; such a connection counts towards no \
               limit.  Without either, the listener of the name health is for health checks, and any \
               other one echoes.  Octal permissions instead are those of the path of a Unix socket \
               that tcp-echo binds, see chmod(2); without them the umask decides.",
    },
    Key {
        table: "socket",
        name: "group",
        takes: Group::expected,
        value: Example("\"adm\""),
        effect: AtRestart,
        option: "",
        show: Listener(|options| options.group.as_ref().map(|group| group.0.clone())),
        help: "The group of the path of a Unix socket that tcp-echo binds.  The user of the service \
               must be in the group, and chown(2) must be allowed (SupplementaryGroups=adm and \
               SystemCallFilter=@chown in the unit).",
    },
    Key {
        table: "socket",
        name: "proxy",
        takes: Proxy::expected,
        value: Default("\"off\""),
        effect: Reload,
        option: "",
        show: Listener(|options| options.proxy.map(|proxy| proxy.to_string())),
        help: "Whether each connection begins with a PROXY header, version 1 or 2, that names the \
               client.  The log, the limits and preserved connections then use the address of the \
               client, and the header is not echoed.",
    },
    Key {
        table: "socket",
        name: "proxy-trusted",
        takes: Networks::expected,
        value: Default("[\"127.0.0.0/8\", \"::1\"]"),
        effect: Reload,
        option: "",
        show: Listener(|options| options.proxy_trusted.as_ref().map(ToString::to_string)),
        help: "The proxies from which PROXY headers are taken, where proxy is \"required\".  A \
               connection from any other address is closed.  Each peer of a Unix socket is trusted: \
               its mode and group decide which can connect.",
    },
    Key {
        table: "socket",
        name: "proxy-timeout",
        takes: Span::expected,
        value: Default("\"5s\""),
        effect: Reload,
        option: "",
        show: Listener(|options| options.proxy_timeout.map(|Span(span)| duration(span))),
        help: "How long a PROXY header may take to arrive.  A proxy may hold it back until its client \
               sends something, as a network load balancer of AWS does.  It stays in the receive queue \
               until it is complete, so a small receive-buffer leaves no room for a long one.",
    },
    Key {
        table: "listener",
        name: "address",
        takes: address,
        value: Example("\"*:9999\""),
        effect: AtRestart,
        option: "",
        show: Heading,
        help: "Where to listen: 127.0.0.1:9999, [::1]:9999, localhost:9999, *:9999 for any address, \
               IPv4 and IPv6, as one socket, or unix:/run/tcp-echo/echo.sock.  Without an address \
               the listener is only for a passed socket of its name.",
    },
];

/// A key of a table; an option of a socket is one of "socket".
#[must_use]
pub fn find(table: &str, name: &str) -> Option<&'static Key> {
    let is_it = |key: &&Key| (key.table, key.name) == (table, name);
    const { &KEYS }.iter().find(is_it)
}

/// Whether an option of a listener can be changed only before its socket listens.
#[must_use]
pub fn is_fixed(option: &str) -> bool {
    let key = find("socket", option).or_else(|| find("listener", option));
    key.is_some_and(|key| key.effect == AtRestart)
}

impl Key {
    /// The key with its table, as the log names it: `limits.max-bytes`.
    #[must_use]
    pub fn full_name(&self) -> String {
        match self.table {
            "" => self.name.to_owned(),
            table => format!("{table}.{}", self.name),
        }
    }
}

fn switch() -> String {
    "true or false".into()
}

fn address() -> String {
    "ADDRESS:PORT, *:PORT or unix:/PATH".into()
}

fn one_of<T: ValueEnum>() -> String {
    let words = T::value_variants().iter().filter_map(T::to_possible_value);
    let words: Vec<String> = words
        .map(|word| format!("\"{}\"", word.get_name()))
        .collect();
    format!("one of {}", words.join(", "))
}

fn word(value: &impl ValueEnum) -> String {
    let word = value.to_possible_value();
    word.map_or_else(String::new, |word| word.get_name().to_owned())
}

fn size_or_auto(OrAuto(bytes): OrAuto<Size>) -> String {
    bytes.map_or_else(|| "auto".to_owned(), |bytes| size(bytes.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Origin;
    use crate::config::file::{LimitsFile, LogFile, MainFile, MetricsFile};

    /// Reads a configuration that has one key.
    fn load(key: &Key, value: &str) -> Result<Config, String> {
        let table = match key.table {
            "" => String::new(),
            "listener" => "[listener.x]\n".into(),
            table => format!("[{table}]\n"),
        };
        let thread = std::thread::current().id();
        let name = format!("tcp-echo-key-{}-{thread:?}", std::process::id());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, format!("{table}{} = {value}\n", key.name)).unwrap();
        let origin = Origin {
            file: Some(file.clone()),
            ..Origin::default()
        };
        let config = origin.load().map_err(|error| error.to_string());
        std::fs::remove_file(file).unwrap();
        config
    }

    fn shown(key: &Key, config: &Config) -> Option<String> {
        match key.show {
            Daemon(show) => Some(show(config)),
            Listener(show) if key.table == "listener" => show(&config.listeners.first()?.options),
            Listener(show) => show(&config.socket),
            Heading => config.listeners[0]
                .address
                .as_ref()
                .map(ToString::to_string),
        }
    }

    #[test]
    fn the_parser_and_the_table_have_the_same_keys() {
        let tables = ["limits", "log", "metrics", "socket", "listener"].map(str::to_owned);
        let mut main: BTreeSet<String> = MainFile::names().into_iter().collect();
        main.retain(|name| !tables.contains(name));
        let mut options: BTreeSet<String> = Options::names().into_iter().collect();
        options.remove("address");
        for (table, parsed) in [
            ("", main),
            ("limits", LimitsFile::names().into_iter().collect()),
            ("log", LogFile::names().into_iter().collect()),
            ("metrics", MetricsFile::names().into_iter().collect()),
            ("socket", options),
            ("listener", ["address".to_owned()].into()),
        ] {
            let listed = KEYS.iter().filter(|key| key.table == table);
            let listed: BTreeSet<String> = listed.map(|key| key.name.to_owned()).collect();
            assert_eq!(listed, parsed, "[{table}]");
        }
    }

    #[test]
    fn a_key_takes_what_the_parser_expects() {
        for key in &KEYS {
            let error = load(key, "{}").unwrap_err() + &load(key, "'no value'").unwrap_err();
            let expected = (key.takes)();
            let known = error
                .replace('`', "\"")
                .contains(&format!("expected {expected}"));
            // Addresses have an error for each mistake.
            assert!(known || key.name == "address", "{}: {error}", key.name);
        }
    }

    #[test]
    fn a_default_is_what_is_built_in() {
        let built_in = Origin {
            file: Some("/dev/null".into()),
            ..Origin::default()
        };
        let mut built_in = built_in.load().unwrap();
        built_in.socket = Options::built_in();
        for key in &KEYS {
            match key.value {
                Default(value) => {
                    let config = load(key, value).unwrap();
                    assert_eq!(shown(key, &config), shown(key, &built_in), "{}", key.name);
                }
                Example(value) => {
                    assert!(
                        shown(key, &load(key, value).unwrap()).is_some(),
                        "{}",
                        key.name
                    );
                    let usual = (!key.show_is_heading())
                        .then(|| shown(key, &built_in))
                        .flatten();
                    let absent = usual.is_none_or(|usual| usual == "off");
                    assert!(absent, "{} has a default", key.name);
                }
            }
        }
    }

    impl Key {
        fn show_is_heading(&self) -> bool {
            matches!(self.show, Heading)
        }
    }
}
