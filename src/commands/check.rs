//! `tcp-echo check`: what the configuration means, without serving.
//!
//! Every key of [`KEYS`] is shown: those of the daemon once, those of sockets for each listener.
//! Each address is bound as the daemon would bind it.  Options are read back from sockets on port 0
//! of loopback, as a socket that listens on the real port would accept connections of clients.  The
//! last section turns the numbers into cases: after how long a dead peer is found, and whether a
//! silent connection outlives a middlebox.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use super::findings::Report;
use super::serve::{BUILT_IN, LOOPBACK, descriptors, listener_descriptors};
use super::{Exit, complain, print};
use crate::config::address::Address;
use crate::config::keys::{KEYS, Key, Show, is_fixed};
use crate::config::units::{OrOff, Role, Span};
use crate::config::{BUILT_IN_PORT, Config, DEFAULT_FILE, Listener, Options, Origin};
use crate::preserve::fd_queue;
use crate::preserve::store_state::max_preserved;
use crate::server::scrapes::METRICS;
use crate::sys::activation::ListenSocket;
use crate::sys::bind::{self, Bound, Failure, is_local};
use crate::sys::endpoint::printable;
use crate::sys::kernel::Kernel;
use crate::sys::option_report::{Row, read_back, seconds};

/// After this silence a well-known cloud load balancer forgets a connection, without a packet to
/// either side; most NATs and firewalls wait longer.
const MIDDLEBOX: Duration = Duration::from_secs(350);

/// Checks the configuration; with `config_only` nothing but its files, with `json` for machines.
#[must_use]
pub(super) fn run(origin: &Origin, config_only: bool, json: bool) -> Exit {
    let mut report = Report::default();
    match origin.load() {
        Ok(config) if config_only => report.found.files = files(&config),
        Ok(config) => {
            let kernel = Kernel::read();
            report.files(origin, &config);
            report.listeners(&config, &kernel);
            report.settings(&config);
            report.kernel(&kernel);
            report.cases(&config, &kernel);
        }
        Err(error) => {
            let text = error.to_string();
            complain(&text);
            report.found.wrong.push(printable(&text).into());
            report.exit = Exit::Config;
        }
    }
    print(
        &report.written(config_only, json),
        "the report",
        report.exit,
    )
}

fn files(config: &Config) -> Vec<String> {
    let names = config.read.iter().map(|file| file.to_string_lossy());
    names.map(|name| printable(&name).into()).collect()
}

impl Report {
    fn files(&mut self, origin: &Origin, config: &Config) {
        self.found.files = files(config);
        self.line("configuration");
        if config.read.is_empty() {
            let file = origin
                .file
                .as_deref()
                .map_or(DEFAULT_FILE.into(), |file| file.display().to_string());
            self.line(format!("  built-in defaults ({file} is absent)"));
        }
        for file in &config.read {
            self.line(format!("  {}", file.display()));
        }
    }

    fn listeners(&mut self, config: &Config, kernel: &Kernel) {
        self.line("\nlisteners");
        let named: Vec<_> = config
            .listeners
            .iter()
            .filter(|listener| listener.address.is_some())
            .collect();
        let echoes = named.iter().any(|listener| listener.role() == Role::Echo);
        for listener in &named {
            if let Some(address) = &listener.address {
                let result = self.listener(
                    &listener.name,
                    address,
                    &listener.options,
                    config.allow_remote,
                    kernel,
                );
                self.unless(result);
            }
        }
        for listener in config
            .listeners
            .iter()
            .filter(|listener| listener.address.is_none())
            .filter(|listener| listener.name != BUILT_IN || echoes)
        {
            self.begin(&listener.name, None);
            self.passed(&listener.name, &listener.options);
        }
        let is_unix = |listener: &&Listener| matches!(listener.address, Some(Address::Unix(_)));
        if echoes && named.iter().all(is_unix) {
            self.passed("of no table", &config.socket);
        }
        if !echoes {
            self.line("  The built-in ones, opened only if no socket is passed:");
            let options = config.options_for(BUILT_IN);
            let mut absent = Vec::new();
            for ip in LOOPBACK {
                let address = Address::Ip((ip, BUILT_IN_PORT).into());
                match self.listener(BUILT_IN, &address, options, true, kernel) {
                    Err(failure) if failure.is_absence() => absent.push(failure),
                    result => self.unless(result),
                }
            }
            for failure in &absent {
                self.note(&format!("not on this host: {failure}"));
            }
            if absent.len() == LOOPBACK.len() {
                self.unless(absent.pop().map_or(Ok(()), Err));
            }
        }
        if let Some(address) = &config.metrics {
            let options = Options::default();
            let result = self.listener(METRICS, address, &options, config.allow_remote, kernel);
            self.unless(result);
        }
        let mut asked = config.socket.differ(&Options::default());
        asked.retain(|key| !is_fixed(key));
        self.line(
            "  Sockets that the service manager passes are not seen from here: systemctl cat tcp-echo.socket\n  \
             shows their addresses, the event \"listening on\" their options as they are (ECHO_OPTIONS=).\n  \
             One with the name of a listener above (FileDescriptorName=) takes its place.",
        );
        self.line(format!(
            "  A passed socket keeps what its unit says{}.",
            if asked.is_empty() {
                String::new()
            } else {
                format!(", but for {}", asked.join(", "))
            }
        ));
    }

    /// Tries what is asked of a passed socket on one of ours.
    fn passed(&mut self, name: &str, options: &Options) {
        let any_port = Address::Ip((Ipv4Addr::LOCALHOST, 0).into());
        // On a host without IPv4 the options cannot be tried.
        if let Ok((bound, _)) = bind::open(&any_port, options) {
            for refused in bound.iter().flat_map(|bound| &bound.refused) {
                self.wrong(&format!("listener {name}: {refused}"), Exit::Config);
            }
        }
    }

    /// Tries a listener, up to its listening.
    fn listener(
        &mut self,
        name: &str,
        address: &Address,
        options: &Options,
        allow_remote: bool,
        kernel: &Kernel,
    ) -> Result<(), Failure> {
        self.begin(name, Some(address));
        if options.role(name) == Role::Health {
            self.note("for health checks: each connection gets one line");
        }
        let mut options = options.clone();
        if let Address::Any(_) = address {
            options.v6only = options.v6only.or(Some(false));
        }
        let options = &options;
        let probe = bind::probe(address, options)?;
        for failure in &probe.in_use {
            self.note(&format!(
                "in use now, as it should be where the service runs; else: {failure}"
            ));
        }
        for failure in &probe.absent {
            self.note(&format!("not on this host: {failure}"));
        }
        if let Address::Unix(path) = address {
            self.note("a Unix stream socket: the options of TCP do not apply");
            if self.paths.contains(path) {
                return Err(Failure::twice(address));
            }
            self.paths.push(path.clone());
        }
        for real in probe.reals {
            self.notes(real, options, allow_remote, kernel);
            let dual = options.v6only == Some(false);
            let taken = options.reuse_port != Some(true)
                && self.seen.iter().any(|seen| collide(*seen, real, dual));
            if taken {
                return Err(Failure::twice(&real));
            }
            if real.port() != 0 {
                self.seen.push(real);
                if dual && real.ip().is_unspecified() {
                    self.seen.push((Ipv4Addr::UNSPECIFIED, real.port()).into());
                }
            }
            let opened = match bind::open(&on_loopback(real), options) {
                // The wildcard is served by a host without this family's loopback too.
                Err(failure) if failure.is_absence() => {
                    bind::open(&Address::Ip((Ipv4Addr::LOCALHOST, 0).into()), options)
                }
                opened => opened,
            };
            match opened {
                Ok((bound, _)) => self.opened(name, options, bound, kernel),
                Err(failure) => self.note(&format!("its options cannot be seen: {failure}")),
            }
        }
        Ok(())
    }

    fn opened(&mut self, name: &str, options: &Options, bound: Vec<Bound>, kernel: &Kernel) {
        for bound in bound {
            for refused in &bound.refused {
                self.wrong(&format!("listener {name}: {refused}"), Exit::Config);
            }
            let mut rows = Vec::new();
            if let ListenSocket::Tcp(socket) = &bound.socket {
                let options = options.clone().over(Options::built_in());
                rows = read_back(&socket.as_fd(), &options, kernel);
                // An address that is not the wildcard has one family in any case.
                rows.retain(|row| row.option != "v6only");
            }
            self.rows(&complete(rows, options));
        }
    }

    fn notes(&mut self, real: SocketAddr, options: &Options, allow_remote: bool, kernel: &Kernel) {
        if real.is_ipv6() && real.ip().is_unspecified() {
            self.note(if options.v6only == Some(false) {
                "one socket for IPv6 and IPv4"
            } else {
                "IPv6 only: v6only = false or *:PORT would take IPv4 as well"
            });
        }
        if !is_local(real.ip()) && !allow_remote {
            self.note(
                "open to other hosts: allow only the networks that need it, then set allow-remote = true",
            );
        }
        if let Some(start) = kernel
            .unprivileged_port_start
            .filter(|start| u64::from(real.port()) < *start)
        {
            if real.port() != 0 {
                self.note(&format!(
 "port {} needs CAP_NET_BIND_SERVICE (net.ipv4.ip_unprivileged_port_start = {start}), or the socket unit",
                    real.port()
                ));
            }
        }
    }

    /// Every key of the daemon, table by table; those of the listeners stand with each listener.
    fn settings(&mut self, config: &Config) {
        let listeners = listener_descriptors(config.listeners.iter().map(Listener::role));
        let most = descriptors(config.workers, listeners, config.metrics.is_some());
        let mut table = None;
        for key in KEYS {
            let Show::Daemon(show) = key.show else {
                continue;
            };
            if table != Some(key.table) {
                table = Some(key.table);
                self.line(match key.table {
                    "" => "\nsettings".to_owned(),
                    name => format!("\n[{name}]"),
                });
            }
            self.setting(&key, show(config), remark(&key, config, most));
        }
    }

    fn kernel(&mut self, kernel: &Kernel) {
        self.line("\nkernel");
        let rows = [
            ("net.core.somaxconn", kernel.somaxconn, "the longest accept queue".to_owned()),
            ("net.ipv4.tcp_max_syn_backlog", kernel.tcp_max_syn_backlog, kernel.half_open().unwrap_or_default()),
            ("net.ipv4.tcp_syncookies", kernel.tcp_syncookies, "1: SYN cookies when the queue of a listener is full; 2: always".to_owned()),
            (
                "net.ipv4.tcp_synack_retries",
                kernel.tcp_synack_retries,
                kernel.connect_timeout().map_or_else(String::new, |span| {
                    format!("a handshake that is not completed is given up after {}", seconds(span))
                }),
            ),
            (
                "net.ipv4.tcp_retries2",
                kernel.tcp_retries2,
                kernel.data_timeout().map_or_else(String::new, |span| {
                    format!("data that is not acknowledged ends a connection after {} at least", seconds(span))
                }),
            ),
            ("net.core.rmem_max", kernel.rmem_max, "the most that receive-buffer may ask for, in bytes".to_owned()),
            ("net.core.wmem_max", kernel.wmem_max, "the most that send-buffer may ask for, in bytes".to_owned()),
            ("net.ipv4.tcp_rmem", kernel.tcp_rmem_max, "the most that autotuning gives, in bytes".to_owned()),
            ("net.ipv4.tcp_wmem", kernel.tcp_wmem_max, "the most that autotuning gives, in bytes".to_owned()),
            (
                "net.ipv4.tcp_slow_start_after_idle",
                kernel.tcp_slow_start_after_idle,
                "1: after a pause a connection starts slowly again, which distorts tests with pauses".to_owned(),
            ),
        ];
        for (name, value, meaning) in rows {
            self.found.kernel.insert(name, value);
            let value = value.map_or_else(
                || "cannot be seen from here".to_owned(),
                |value| value.to_string(),
            );
            self.line(format!("  {name:<36}{value:<10}{meaning}").trim_end());
        }
    }

    fn cases(&mut self, config: &Config, kernel: &Kernel) {
        self.line("\ncases");
        let options = config
            .listeners
            .iter()
            .find(|listener| listener.role() == Role::Echo)
            .map_or(&config.socket, |listener| &listener.options);
        let options = options.clone().over(Options::built_in());
        match dead_peer(&options) {
            Some(Dead { after, how }) => {
                self.case(format!(
                    "keepalive finds a dead peer after {} ({how})",
                    seconds(after)
                ));
                let idle = options.keepalive_idle.map_or(Duration::ZERO, |idle| idle.0);
                let verdict = if idle < MIDDLEBOX {
                    "yes"
                } else {
                    "no: the first probe comes too late, lower keepalive-idle"
                };
                self.case(format!(
                    "a silent connection survives a middlebox that forgets after {}: {verdict}",
                    seconds(MIDDLEBOX)
                ));
            }
            None => {
                self.case(
                    "a peer that dies in silence is never found: keepalive is off".to_owned(),
                );
                self.case(format!(
                    "a silent connection survives a middlebox that forgets after {}: no",
                    seconds(MIDDLEBOX)
                ));
            }
        }
        let user = match options.user_timeout {
            Some(OrOff(Some(Span(span)))) => Some(span),
            _ => None,
        };
        if let Some(span) = user.or(kernel.data_timeout()) {
            let by = if user.is_some() {
                "user-timeout"
            } else {
                "net.ipv4.tcp_retries2"
            };
            self.case(format!(
                "a peer that dies with our data in flight is found after {} ({by})",
                seconds(span)
            ));
        }
        self.case(match config.limits.stall {
            Some(span) => format!(
                "a peer that takes nothing of what it is owed is closed after {}",
                seconds(span)
            ),
            None => {
                "a peer that takes nothing of what it is owed stays for ever: stall-timeout is off"
                    .to_owned()
            }
        });
        self.case(match config.limits.idle {
            Some(span) => format!(
                "a peer that sends nothing is closed after {}",
                seconds(span)
            ),
            None => "a peer that sends nothing stays: idle-timeout is off".to_owned(),
        });
        self.case(format!(
            "a stop takes at most {}",
            seconds(config.limits.stop_timeout)
        ));
        if config.listeners.len() > 1 {
            self.case(format!(
                "(the cases of keepalive and time-outs are those of listener {})",
                config.listeners[0].name
            ));
        }
    }
}

/// What has to be known of a key beside its value.
fn remark(key: &Key, config: &Config, most: usize) -> String {
    let connections = config.connections(most).min(most);
    match (key.name, config.max_connections) {
        ("max-connections", Some(asked)) if asked > most => {
            format!("{most} here: limited by RLIMIT_NOFILE (LimitNOFILE= in a unit)")
        }
        ("max-connections", None) => {
            format!("{connections} here, from RLIMIT_NOFILE (LimitNOFILE= in a unit)")
        }
        ("max-connections-per-source", _) => config
            .per_source
            .most(connections)
            .map_or_else(String::new, |most| {
                format!("{most} here; loopback and Unix sockets are exempt")
            }),
        ("preserve-connections", _) if config.preserve_connections => {
            let preserved = config.connections(max_preserved(most)).min(most);
            let room = fd_queue::room().filter(|room| *room < preserved);
            let room = room.map_or_else(String::new, |room| {
                format!(
                    ", of which {room} can be preserved: a descriptor queue has no more room here \
                     (net.core.wmem_max)"
                )
            });
            format!(
                "where the service manager has a descriptor store; max-connections is \
                 {preserved} then{room}"
            )
        }
        _ => String::new(),
    }
}

/// The rows of a listener, and one for each option that is asked of it and cannot be read back.
fn complete(mut rows: Vec<Row>, options: &Options) -> Vec<Row> {
    for key in KEYS {
        if let Show::Listener(show) = key.show {
            if let Some(asked) =
                show(options).filter(|_| rows.iter().all(|row| row.option != key.name))
            {
                rows.push(Row {
                    option: key.name,
                    asked,
                    effective: String::new(),
                    note: String::new(),
                });
            }
        }
    }
    rows
}

/// Where the options of a listener are tried: never on the real port, where callers would come.
fn on_loopback(real: SocketAddr) -> Address {
    let ip = match real.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    Address::Ip((ip, 0).into())
}

struct Dead {
    after: Duration,
    how: String,
}

/// Whether `other` cannot be bound beside `one`, which has a listener; `dual`: `other` is for IPv4 as
/// well.
fn collide(one: SocketAddr, other: SocketAddr, dual: bool) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    let family = one.is_ipv4() == other.is_ipv4() || dual && one.is_ipv4() && any;
    one.port() == other.port() && family && (any || one.ip() == other.ip())
}

/// When keepalive closes a connection whose peer does not answer (tcp(7)).
fn dead_peer(options: &Options) -> Option<Dead> {
    let (idle, interval, probes) = (
        options.keepalive_idle?.0,
        options.keepalive_interval?.0,
        options.keepalive_probes?.0,
    );
    if options.keepalive != Some(true) {
        return None;
    }
    if let Some(OrOff(Some(Span(user)))) = options.user_timeout {
        // The time decides then instead of the number of probes; the kernel compares it when a probe is
        // due.
        let (wait, probe) = (
            user.saturating_sub(idle).as_secs_f64(),
            interval.as_secs_f64(),
        );
        let whole = (wait / probe).ceil().max(1.0);
        return Some(Dead {
            after: idle + interval.mul_f64(whole),
            how: format!(
                "user-timeout {} decides, not the number of probes",
                seconds(user)
            ),
        });
    }
    Some(Dead {
        after: idle + interval * probes,
        how: format!(
            "{} idle, then {probes} probes, {} apart",
            seconds(idle),
            seconds(interval)
        ),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use socket2::{Domain, SockRef, Socket, Type};

    use super::*;
    use crate::config::keys::Key;
    use crate::config::units::{Count, Seconds};
    use crate::sys::sockopt::apply;

    #[test]
    fn a_dead_peer_is_found_by_probes_or_by_the_user_time_out() {
        let usual = Options::built_in();
        assert_eq!(seconds(dead_peer(&usual).unwrap().after), "375 s");
        let recipe = Options {
            keepalive_idle: Some(Seconds(Duration::from_secs(1800))),
            keepalive_probes: Some(Count(5)),
            ..usual.clone()
        };
        assert_eq!(seconds(dead_peer(&recipe).unwrap().after), "1875 s");
        let user = Options {
            user_timeout: Some(OrOff(Some(Span(Duration::from_secs(320))))),
            ..usual.clone()
        };
        assert_eq!(seconds(dead_peer(&user).unwrap().after), "330 s");
        assert!(
            dead_peer(&Options {
                keepalive: Some(false),
                ..usual
            })
            .is_none()
        );
    }

    /// The options of a table that has one key; without a key, those that are built in.
    fn options(setting: &str) -> Options {
        let written: Options = toml::from_str(setting).unwrap();
        written.over(Options::built_in())
    }

    /// A value of a socket option that is not the default.
    fn another_value(option: &str) -> String {
        match option {
            "reuse-address" | "v6only" | "nodelay" | "keepalive" => "false".into(),
            "reuse-port" | "quickack" => "true".into(),
            "backlog" | "keepalive-probes" | "dscp" => "7".into(),
            "receive-buffer" | "send-buffer" => "'32KiB'".into(),
            "keepalive-idle" | "keepalive-interval" | "user-timeout" => "'77s'".into(),
            "notsent-lowat" => "'7KiB'".into(),
            "congestion" => {
                let read =
                    |name| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap();
                let usual = read("tcp_congestion_control");
                let all = read("tcp_available_congestion_control");
                // The last one is a module that is loaded, or the default where it is the only one.
                let other = all.split_whitespace().find(|name| *name != usual.trim());
                format!("'{}'", other.unwrap_or(usual.trim()))
            }
            "mode" => "'0604'".into(),
            "group" => rustix::process::getgroups()
                .unwrap()
                .into_iter()
                .map(|group| group.as_raw().to_string())
                .find(|group| *group != rustix::process::getegid().as_raw().to_string())
                .unwrap_or_else(|| "1".into()),
            _ => panic!("give {option} a value here that is not its default"),
        }
    }

    /// What can be read back of an option: from a listener, from a connection, or from a path.
    fn read_back_of(option: &str, options: &Options) -> String {
        match option {
            "mode" | "group" => {
                let thread = std::thread::current().id();
                let name = format!("tcp-echo-option-{}-{thread:?}", std::process::id());
                let address = Address::Unix(std::env::temp_dir().join(name));
                let (bound, _) = bind::open(&address, options).unwrap();
                let Address::Unix(path) = address else {
                    unreachable!()
                };
                let found = std::fs::metadata(path).unwrap();
                bound
                    .into_iter()
                    .for_each(|bound| bound.path.unwrap().unlink());
                format!(
                    "{:o} of {}",
                    found.permissions().mode() & 0o777,
                    found.gid()
                )
            }
            // Of a listener the kernel says "on" until something was sent.
            "quickack" => {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                assert!(apply(&socket, options).is_empty());
                SockRef::from(&socket).tcp_quickack().unwrap().to_string()
            }
            _ => {
                let address = match option {
                    // The kernel switches it on for any other address.
                    "v6only" => "[::]:0",
                    _ => "127.0.0.1:0",
                };
                let (bound, _) = bind::open(&address.parse().unwrap(), options).unwrap();
                assert!(bound[0].refused.is_empty(), "{:?}", bound[0].refused);
                let ListenSocket::Tcp(socket) = &bound[0].socket else {
                    unreachable!()
                };
                let rows = read_back(&socket.as_fd(), options, &Kernel::default());
                let row = rows.into_iter().find(|row| row.option == option);
                row.unwrap_or_else(|| panic!("{option} is not read back"))
                    .effective
            }
        }
    }

    #[test]
    fn every_socket_option_changes_something_that_is_read_back() {
        let is_root = rustix::process::geteuid().is_root();
        // PROXY headers are no option of a socket.
        let is_option = |key: &&Key| key.table == "socket" && !key.name.starts_with("proxy");
        for key in KEYS.iter().filter(is_option) {
            let value = another_value(key.name);
            let other = options(&format!("{} = {value}", key.name));
            let impossible = match key.name {
                "v6only" => std::net::TcpListener::bind("[::]:0").is_err(),
                "group" => value == "1" && !is_root,
                "congestion" => other.congestion.as_ref().is_some_and(|name| {
                    let usual = read_back_of("congestion", &options(""));
                    usual == name.0
                }),
                _ => false,
            };
            if impossible {
                eprintln!("skipped: {} has only one value on this host", key.name);
                continue;
            }
            let (usual, changed) = (
                read_back_of(key.name, &options("")),
                read_back_of(key.name, &other),
            );
            assert_ne!(usual, changed, "{} = {value} changes nothing", key.name);
        }
    }
}
