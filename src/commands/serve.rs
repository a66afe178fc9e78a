//! `tcp-echo serve`: puts everything together, in the order that matters.
//!
//! Passed descriptors come first, before any other descriptor and any thread exists.  The log
//! comes second, so that whatever goes wrong then is told in the one place where an operator
//! looks.  Readiness comes last, when every listener is registered.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use mio::Poll;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockRef;

use super::{Exit, complain};
use crate::cli::{Format, Level};
use crate::config::address::Address;
use crate::config::{self, Config, Options, Origin};
use crate::server::listener::Listener;
use crate::server::{Parts, Server};
use crate::system::activation::{self, Passed, Stranger};
use crate::system::bind::{self, Bound, Failure};
use crate::system::events::{Endpoint, Event};
use crate::system::kernel::Kernel;
use crate::system::logging::Log;
use crate::system::notify::Manager;
use crate::system::signals::Signals;
use crate::system::socket;

/// The port of the built-in listeners: not 7, which needs a privilege.
pub(super) const PORT: u16 = 9999;

/// Descriptors that are not connections: standard streams, poll, signals, manager, log, listeners,
/// and some to spare.
const OWN: u64 = 32;

/// Why serving cannot begin, or go on.
enum Trouble {
    Config(config::Error),
    Stranger(Stranger),
    Bind(Failure),
    System(&'static str, io::Error),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Stranger(stranger) => stranger.fmt(f),
            Self::Bind(failure) => failure.fmt(f),
            Self::System(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl Trouble {
    fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::Stranger(_) => Exit::Config,
            Self::Bind(failure) => Exit::of(&failure.error),
            Self::System(_, error) => Exit::of(error),
        }
    }
}

/// Serves until stopped.
#[must_use]
pub fn run(origin: Origin) -> Exit {
    let passed = activation::take();
    let config = origin.load();
    let (level, format) = match &config {
        Ok(config) => (config.log.level, config.log.format),
        Err(_) => (
            origin.level.unwrap_or(Level::Info),
            origin.format.unwrap_or(Format::Auto),
        ),
    };
    let (log, sink) = match Log::start(level, format) {
        Ok(started) => started,
        Err(error) => {
            complain(&format!("the log cannot be started: {error}"));
            return Exit::of(&error);
        }
    };
    let outcome = match (config, passed) {
        (Err(error), _) => Err(Trouble::Config(error)),
        (_, Err(stranger)) => Err(Trouble::Stranger(stranger)),
        (Ok(config), Ok(passed)) => serve(&config, origin, passed, &log),
    };
    match outcome {
        Ok(()) => {
            drop(log);
            sink.finish();
            Exit::Success
        }
        Err(trouble) => {
            log.tell(Event::StartFailed(trouble.to_string()));
            drop(log);
            sink.finish_early();
            trouble.exit()
        }
    }
}

fn serve(config: &Config, origin: Origin, passed: Passed, log: &Log) -> Result<(), Trouble> {
    let now = Instant::now();
    let signals =
        Signals::install().map_err(|error| Trouble::System("signals cannot be handled", error))?;
    let poll = Poll::new().map_err(|error| Trouble::System("epoll cannot be had", error))?;
    let manager = Manager::from_env(now).unwrap_or_else(|error| {
        log.tell(Event::Manager(error));
        Manager::default()
    });
    if rustix::process::geteuid().is_root() {
        log.tell(Event::Root);
    }
    for name in &passed.reserved {
        log.tell(Event::Reserved { name: name.clone() });
    }
    let parts = Parts {
        poll,
        signals,
        config: config.clone(),
        origin,
        descriptors: descriptors(),
        kernel: Kernel::read(),
        manager,
        log: log.clone(),
    };
    let mut server = Server::new(parts, now)
        .map_err(|error| Trouble::System("signals cannot be registered", error))?;
    let hint = listen(&mut server, config, passed, log)?;
    server.ready(hint);
    server
        .run()
        .map_err(|error| Trouble::System("epoll failed", error))
}

/// Adds every listener and connection; returns a command that tries the first one of ours.
fn listen(
    server: &mut Server,
    config: &Config,
    passed: Passed,
    log: &Log,
) -> Result<Option<String>, Trouble> {
    let registered = |error| Trouble::System("a socket cannot be registered", error);
    // An instance for one conversation has no listeners: another instance would have them too.
    let lone = passed.listeners.is_empty() && !passed.connections.is_empty();
    let names: Vec<String> = passed
        .listeners
        .iter()
        .map(|(name, _)| name.clone())
        .collect();
    let mut hint = None;
    let mut count = names.len();
    for (name, socket) in passed.listeners {
        let options = config.options_for(&name).clone();
        let listener = Listener::new(name, socket, true, options, None).map_err(registered)?;
        let refused = listener
            .socket()
            .map(|fd| socket::apply(&fd, &listener.options))
            .unwrap_or_default();
        server.add_listener(listener, refused).map_err(registered)?;
    }
    if lone {
        for (name, socket) in passed.connections {
            server.add_connection(name, socket).map_err(registered)?;
        }
        return Ok(None);
    }
    let mut add = |name: &str, bound: Bound, options: &Options| {
        let options = options.clone().over(Options::built_in());
        let listener = Listener::new(name.to_owned(), bound.socket, false, options, bound.path)
            .map_err(registered)?;
        if let (None, Endpoint::Ip(address)) = (&hint, &listener.local) {
            hint = Some(format!(
                "printf 'hello\\n' | nc -N {} {}",
                reachable(&listener, address.ip()),
                address.port()
            ));
        }
        count += 1;
        server
            .add_listener(listener, bound.refused)
            .map_err(registered)
    };
    for listener in config
        .listeners
        .iter()
        .filter(|listener| !names.contains(&listener.name))
    {
        let Some(address) = &listener.address else {
            log.tell(Event::Unused {
                listener: listener.name.clone(),
            });
            continue;
        };
        let (bound, absent) = bind::open(address, &listener.options).map_err(Trouble::Bind)?;
        for failure in absent {
            log.tell(Event::Absent(failure.to_string()));
        }
        for bound in bound {
            add(&listener.name, bound, &listener.options)?;
        }
    }
    if config
        .listeners
        .iter()
        .all(|listener| listener.address.is_none())
        && names.is_empty()
    {
        let mut absent = None;
        for ip in [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ] {
            match bind::open(&Address::Ip((ip, PORT).into()), &config.socket) {
                Ok((bound, _)) => bound
                    .into_iter()
                    .try_for_each(|bound| add("default", bound, &config.socket))?,
                // A host without IPv6 serves IPv4, and the other way round.
                Err(failure) if failure.is_absence() => {
                    log.tell(Event::Absent(failure.to_string()));
                    absent = Some(failure);
                }
                Err(failure) => return Err(Trouble::Bind(failure)),
            }
        }
        if let (0, Some(failure)) = (count, absent) {
            return Err(Trouble::Bind(failure));
        }
    }
    // After the last listener, whose numbers come first.
    for (name, socket) in passed.connections {
        server.add_connection(name, socket).map_err(registered)?;
    }
    Ok(hint)
}

/// An address under which this host reaches itself.
fn reachable(listener: &Listener, address: IpAddr) -> IpAddr {
    let both = || {
        let socket = listener.socket();
        socket.is_some_and(|socket| !SockRef::from(&socket).only_v6().unwrap_or(true))
    };
    match address {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() && both() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        _ => address,
    }
}

/// Raises the soft limit of descriptors to the hard one; returns how many connections that allows.
pub(super) fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    // It stays as it is when this fails.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(descriptors.saturating_sub(OWN).max(1)).unwrap_or(usize::MAX)
}
