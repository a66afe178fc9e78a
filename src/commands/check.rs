//! `tcp-echo check`: what the configuration means, without serving.
//!
//! Each address is bound as the daemon would bind it.  Values are read back from sockets that are
//! opened on port 0 of loopback: none listens on the real port, where it would steal callers.  The
//! last section turns numbers into cases: how long a dead peer goes unnoticed, and whether a quiet
//! connection outlives a middlebox.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use super::findings::Report;
use super::serve::{BUILT_IN, LOOPBACK, PORT, descriptors};
use super::{Exit, complain};
use crate::config::address::Address;
use crate::config::units::{OrOff, Span};
use crate::config::{Config, DEFAULT_FILE, Listener, Options, Origin};
use crate::survival::standing::kept;
use crate::system::activation::ListenSocket;
use crate::system::bind::{self, Bound, Failure, is_local};
use crate::system::events::printable;
use crate::system::kernel::Kernel;
use crate::system::report::{read_back, seconds};
use crate::system::socket::{duration, size};

/// After so much silence a well-known cloud load balancer forgets a connection, without a word to
/// either side; many NATs and firewalls are more patient, few are less.
const MIDDLEBOX: Duration = Duration::from_secs(350);

/// Checks the configuration; with `config_only` nothing but its files, with `json` for machines.
#[must_use]
pub fn run(origin: &Origin, config_only: bool, json: bool) -> Exit {
    let mut report = Report::default();
    match origin.load() {
        Ok(config) if config_only => report.found.files = files(&config),
        Ok(config) => {
            let kernel = Kernel::read();
            report.files(origin, &config);
            report.listeners(&config, &kernel);
            report.limits(&config);
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
    let mut out = io::stdout();
    let written = out.write_all(&report.written(config_only, json));
    match written.and_then(|()| out.flush()) {
        // A reader that has seen enough closes the pipe.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(&format!("the report cannot be written: {error}"));
            Exit::Os
        }
        _ => report.exit,
    }
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
        for listener in &named {
            if let Some(address) = &listener.address {
                let result = self.listener(
                    &listener.name,
                    address,
                    &listener.options,
                    config.open,
                    kernel,
                );
                self.unless(result);
            }
        }
        for listener in config
            .listeners
            .iter()
            .filter(|listener| listener.address.is_none())
            .filter(|listener| listener.name != BUILT_IN || !named.is_empty())
        {
            self.begin(&listener.name, None);
            self.passed(&listener.name, &listener.options);
        }
        let is_unix = |listener: &&Listener| matches!(listener.address, Some(Address::Unix(_)));
        if !named.is_empty() && named.iter().all(is_unix) {
            self.passed("of no table", &config.socket);
        }
        if named.is_empty() {
            self.line("  The built-in ones, opened only if no socket is passed:");
            let options = config.options_for(BUILT_IN);
            let mut absent = Vec::new();
            for ip in LOOPBACK {
                let address = Address::Ip((ip, PORT).into());
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
        let mut asked = config.socket.differ(&Options::default());
        asked.retain(|key| !Options::FIXED.contains(&key.as_str()));
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
        // A host without IPv4 cannot tell.
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
        open: bool,
        kernel: &Kernel,
    ) -> Result<(), Failure> {
        self.begin(name, Some(address));
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
            self.notes(real, options, open, kernel);
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
            let options = options.clone().over(Options::built_in());
            if let ListenSocket::Tcp(socket) = &bound.socket {
                let mut rows = read_back(&socket.as_fd(), &options, kernel);
                // An address that is not the wildcard has but one family anyway.
                rows.retain(|row| row.option != "v6only");
                self.rows(&rows);
            }
        }
    }

    fn notes(&mut self, real: SocketAddr, options: &Options, open: bool, kernel: &Kernel) {
        if real.is_ipv6() && real.ip().is_unspecified() {
            self.note(if options.v6only == Some(false) {
                "one socket for IPv6 and IPv4"
            } else {
                "IPv6 only: v6only = false or *:PORT would take IPv4 as well"
            });
        }
        if !is_local(real.ip()) && !open {
            self.note(
                "open to others than this host: limit who may reach it, then say open = true in the configuration",
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

    fn limits(&mut self, config: &Config) {
        let off = |span: Option<Duration>| span.map_or_else(|| "off".to_owned(), duration);
        let most = descriptors(config.workers, config.listeners.len());
        let connections = config.connections(most).min(most);
        self.line("\nlimits");
        let text = match config.max_connections {
            Some(asked) if asked > most => {
                format!("{most}, not {asked}: limited by RLIMIT_NOFILE here")
            }
            Some(asked) => asked.to_string(),
            None => format!("{connections}, from RLIMIT_NOFILE here (LimitNOFILE= in a unit)"),
        };
        self.limit("max-connections", text);
        let source = config.per_source.most(connections);
        let text = source.map_or_else(
            || "off".to_owned(),
            |most| format!("{most}; not for loopback and Unix sockets"),
        );
        self.limit("max-connections-per-source", text);
        self.limit("idle-timeout", off(config.limits.idle));
        self.limit("stall-timeout", off(config.limits.stall));
        self.limit("max-lifetime", off(config.limits.lifetime));
        self.limit(
            "max-bytes",
            config.limits.bytes.map_or_else(|| "off".to_owned(), size),
        );
        self.limit("stop-timeout", duration(config.limits.leave));
        let text = if config.survival {
            let kept = config.connections(kept(most)).min(most);
            format!(
                "on, where the service manager has a descriptor store; max-connections is {kept} then"
            )
        } else {
            "off".to_owned()
        };
        self.limit("survival", text);
        self.limit("survival-delay", duration(config.survival_delay));
        self.line("\nloops");
        self.of_loops("workers", config.workers.to_string());
        self.of_loops(
            "busy-poll",
            off(Some(config.busy_poll).filter(|span| !span.is_zero())),
        );
        self.of_loops("poll-timeout", off(config.poll_timeout));
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
            .first()
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
            Some(span) => format!("a peer that takes nothing of what it is owed is closed after {}", seconds(span)),
            None => "a peer that takes nothing of what it is owed is kept for ever: stall-timeout is off".to_owned(),
        });
        self.case(match config.limits.idle {
            Some(span) => format!("a peer that says nothing is closed after {}", seconds(span)),
            None => "a peer that says nothing is kept: idle-timeout is off".to_owned(),
        });
        self.case(format!(
            "a stop takes at most {}",
            seconds(config.limits.leave)
        ));
        if config.listeners.len() > 1 {
            self.case(format!(
                "(the cases of keepalive and time-outs are those of listener {})",
                config.listeners[0].name
            ));
        }
    }
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

/// Whether one of two addresses, of which the other has a listener, cannot have one, too; `dual`: the
/// new one is for IPv4 as well.
fn collide(one: SocketAddr, other: SocketAddr, dual: bool) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    let family = one.is_ipv4() == other.is_ipv4() || dual && one.is_ipv4() && any;
    one.port() == other.port() && family && (any || one.ip() == other.ip())
}

/// When keepalive gives a silent peer up (tcp(7)).
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
        // Not the number of probes decides then, but the time; looked at when a probe is due.
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
    use super::*;
    use crate::config::units::{Count, Seconds};

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
}
