//! `tcp-echo serve`: starts the daemon, in the order that matters.
//!
//! Passed descriptors are taken first, before any other descriptor and any thread exists, and room is
//! made for those of the connections that will be restored.  The log is started second, so that every
//! later error is where an operator looks for it.  Then the state of the previous process is recovered
//! and the listeners are opened; its connections go on when every listener is registered, and
//! readiness is reported last.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::Poll;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockRef;

use super::{Exit, complain};
use crate::cli::{Format, Level};
use crate::config::address::Address;
use crate::config::units::Role;
use crate::config::{self, BUILT_IN_PORT, Config, MOST_CONNECTIONS, Options, Origin};
use crate::log::events::Event;
use crate::log::sink::Log;
use crate::preserve::fd_queue::BATCH;
use crate::preserve::layout::Geometry;
use crate::preserve::recover::{self, StoredFds};
use crate::preserve::restore::{Restored, UNSERVED};
use crate::preserve::store::Store;
use crate::server::health::HELD;
use crate::server::listener::Listener;
use crate::server::scrapes::{DESCRIPTORS, METRICS};
use crate::server::{Parts, Server};
use crate::sys::activation::{self, ListenSocket, Passed, UnexpectedFd};
use crate::sys::bind::{self, Bound, Failure};
use crate::sys::cgroup::is_instance;
use crate::sys::clock;
use crate::sys::descriptor_table::make_room;
use crate::sys::endpoint::Endpoint;
use crate::sys::kernel::Kernel;
use crate::sys::memory::give_back_large_blocks;
use crate::sys::notify::Manager;
use crate::sys::signals::{self, Signals};
use crate::sys::sockopt;

/// The name of the built-in listeners, and of the table of the configuration that gives them options.
pub(super) const BUILT_IN: &str = "default";

/// The addresses of the built-in listeners.
pub(super) const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// The descriptors that are not connections: standard streams, poll, signals, service manager, log,
/// [`LISTENERS`] listeners, and some in reserve.
const OWN: u64 = 32;

/// The listeners for which [`OWN`] has descriptors.
const LISTENERS: usize = 8;

/// The descriptors that listeners need, for a health listener with its answered connections.
pub(super) fn listener_descriptors(roles: impl Iterator<Item = Role>) -> usize {
    let (mut count, mut held) = (0, 0);
    for role in roles {
        count += 1;
        if role == Role::Health {
            held = HELD;
        }
    }
    count + held
}

/// The descriptors of each further worker: its poll and a duplicate of that, its timer, its waker.
const WORKER: u64 = 4;

/// Why the daemon cannot start, or cannot go on.
enum Trouble {
    Config(config::Error),
    UnexpectedFd(UnexpectedFd),
    Bind(Failure),
    System(&'static str, io::Error),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::UnexpectedFd(unexpected) => unexpected.fmt(f),
            Self::Bind(failure) => failure.fmt(f),
            Self::System(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl Trouble {
    fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::UnexpectedFd(_) => Exit::Config,
            Self::Bind(failure) => Exit::of(&failure.error),
            Self::System(_, error) => Exit::of(error),
        }
    }
}

/// Serves until a signal or the end of the last passed connection stops it.
#[must_use]
pub(super) fn run(origin: Origin) -> Exit {
    give_back_large_blocks();
    let passed = activation::take();
    if let Ok(passed) = &passed {
        raise_limit();
        // For the connections that will be restored, one more message of them, and what else there is.
        make_room(recover::expected(&passed.reserved) + 2 * BATCH);
    }
    // Before there is another thread, as threads inherit the mask.  Where this fails, a handler may run
    // in the thread of the log, which does no harm.
    let _ = signals::block();
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
        (_, Err(unexpected)) => Err(Trouble::UnexpectedFd(unexpected)),
        (Ok(config), Ok(passed)) => serve(&config, origin, passed, &log),
    };
    match outcome {
        Ok(()) => {
            drop(log);
            sink.finish();
            Exit::Success
        }
        Err(trouble) => {
            if !log.wants(Level::Error) {
                // The log is off, and an exit without any message would not explain itself.
                complain(&format!("cannot start: {trouble}"));
            }
            log.emit(Event::StartFailed(trouble.to_string()));
            drop(log);
            sink.finish_early();
            trouble.exit()
        }
    }
}

/// Recovers, opens, and serves until the end.
fn serve(config: &Config, origin: Origin, mut passed: Passed, log: &Log) -> Result<(), Trouble> {
    let now = clock::now();
    let signals =
        Signals::install().map_err(|error| Trouble::System("signals cannot be handled", error))?;
    let poll = Poll::new().map_err(|error| Trouble::System("epoll cannot be had", error))?;
    let mut manager = Manager::from_env(now).unwrap_or_else(|error| {
        log.emit(Event::Manager(error));
        Manager::default()
    });
    if rustix::process::geteuid().is_root() {
        log.emit(Event::Root);
    }
    if let Some(why) = passed.ignored.take() {
        log.emit(Event::Ignored(why));
    }
    let is_metrics = |(name, _): &(String, ListenSocket)| name == METRICS;
    let (metrics, listeners) = passed.listeners.into_iter().partition(is_metrics);
    passed.listeners = listeners;
    // An instance for one connection (Accept=yes) has no use for more workers than one.
    let lone = passed.listeners.is_empty() && !passed.connections.is_empty();
    let workers = if lone { 1 } else { config.workers };
    let passed_roles = passed
        .listeners
        .iter()
        .map(|(name, _)| config.options_for(name).role(name));
    let roles = config
        .listeners
        .iter()
        .map(config::Listener::role)
        .chain(passed_roles);
    let listeners = listener_descriptors(roles);
    let on = config.metrics.is_some() || !metrics.is_empty();
    let descriptors = descriptors(workers, listeners, on);
    let stored = StoredFds::sort(std::mem::take(&mut passed.reserved));
    for name in &stored.unexpected {
        log.emit(Event::Reserved { name: name.clone() });
        manager.unstore(name, now);
    }
    let mut recovered = stored.recover(descriptors);
    let most = descriptors.min(config.max_connections.unwrap_or(0).max(MOST_CONNECTIONS));
    let geometry = Geometry {
        partitions: workers,
        // A connection goes to the worker with the fewest, so none has more than its share.
        records: most.div_ceil(workers),
    };
    let stored = recovered.names.clone();
    let (mut restored, partitions) = Restored::new(&mut recovered, geometry)
        .map_err(|error| Trouble::System("memory cannot be mapped", error))?;
    let parts = Parts {
        preservation: Store::new(&mut restored, descriptors),
        signals,
        config: config.clone(),
        origin,
        descriptors,
        kernel: Kernel::read(),
        manager,
        partitions,
        log: log.clone(),
    };
    let (mut server, hint) = match open(parts, &poll, config, passed, metrics, log) {
        Ok(opened) => opened,
        Err(trouble) => {
            if let Some(count) = restored.start_failed(&recovered, clock::now()) {
                let why = format!("no start has succeeded for {}s", UNSERVED.as_secs());
                log.emit(Event::PredecessorDropped { why, count });
                let mut manager = Manager::from_env(now).unwrap_or_default();
                for name in &stored {
                    manager.unstore(name, now);
                }
            }
            return Err(trouble);
        }
    };
    restored.take_over();
    server.restore(recovered, restored);
    server.ready(hint);
    server
        .run(&poll)
        .map_err(|error| Trouble::System("epoll failed", error))
}

/// Puts a server together, with its listeners, and starts its workers; returns it with a command that
/// tries one of the listeners.
fn open(
    parts: Parts,
    poll: &Poll,
    config: &Config,
    passed: Passed,
    metrics: Vec<(String, ListenSocket)>,
    log: &Log,
) -> Result<(Server, Option<String>), Trouble> {
    let mut server = Server::new(parts, poll, clock::now())
        .map_err(|error| Trouble::System("the loops cannot be set up", error))?;
    let opening = Opening {
        server: &mut server,
        config,
        log,
        hint: None,
        ours: Vec::new(),
    };
    let hint = opening.open(passed, metrics)?;
    server
        .start()
        .map_err(|error| Trouble::System("a worker cannot be started", error))?;
    Ok((server, hint))
}

/// Adds listeners and passed connections to a server.
struct Opening<'a> {
    server: &'a mut Server,
    config: &'a Config,
    log: &'a Log,
    /// A command that tries the first listener that this process has opened.
    hint: Option<String>,
    /// The addresses on which this process has listened so far.
    ours: Vec<Endpoint>,
}

impl Opening<'_> {
    /// Adds the listeners that were passed and those that the configuration names, or the built-in ones
    /// if there are neither, and then the connections that were passed.
    fn open(
        mut self,
        passed: Passed,
        metrics: Vec<(String, ListenSocket)>,
    ) -> Result<Option<String>, Trouble> {
        // An instance for one connection opens no listeners, as every other instance would open them too.
        let lone = passed.listeners.is_empty() && !passed.connections.is_empty();
        let taken: Vec<String> = passed
            .listeners
            .iter()
            .map(|(name, _)| name.clone())
            .collect();
        let echoes = |name: &String| self.config.options_for(name).role(name) == Role::Echo;
        let passed_echo = taken.iter().any(echoes);
        self.add_passed(passed.listeners)?;
        self.open_metrics(metrics, lone)?;
        if !lone {
            let mut listeners = self.config.listeners.iter();
            let named = listeners
                .any(|listener| listener.address.is_some() && listener.role() == Role::Echo);
            let built_in = !named && !passed_echo;
            self.open_named(&taken, built_in)?;
            if built_in {
                self.open_built_in()?;
            }
        }
        // After the last listener, as the indices of listeners come first.
        for (name, socket) in passed.connections {
            self.server.add_connection(&name, socket);
        }
        Ok(self.hint)
    }

    /// Adds the listeners that were passed.
    fn add_passed(&mut self, passed: Vec<(String, ListenSocket)>) -> Result<(), Trouble> {
        for (name, socket) in passed {
            let options = self.config.options_of_passed(&name);
            let listener =
                Listener::new(name, socket, true, options, None).map_err(unregistered)?;
            let refused = listener
                .socket()
                .map(|fd| sockopt::apply(&fd, &listener.options))
                .unwrap_or_default();
            self.server
                .add_listener(listener, refused)
                .map_err(unregistered)?;
        }
        Ok(())
    }

    /// Opens what the metrics are served on: the passed sockets, or else the address of the
    /// configuration.
    fn open_metrics(
        &mut self,
        passed: Vec<(String, ListenSocket)>,
        lone: bool,
    ) -> Result<(), Trouble> {
        let ours = passed.is_empty() && !lone;
        for (name, socket) in passed {
            let listener = Listener::new(name, socket, true, Options::default(), None)
                .map_err(unregistered)?;
            self.server.add_metrics(listener).map_err(unregistered)?;
        }
        let Some(address) = self.config.metrics.as_ref().filter(|_| ours) else {
            return Ok(());
        };
        let opened = signals::stoppable(|| bind::open(address, &Options::built_in()));
        let (bound, absent) = opened.map_err(Trouble::Bind)?;
        for failure in absent {
            self.log.emit(Event::Absent(failure.to_string()));
        }
        for bound in bound {
            let options = Options::built_in();
            let listener =
                Listener::new(METRICS.to_owned(), bound.socket, false, options, bound.path)
                    .map_err(unregistered)?;
            self.server.add_metrics(listener).map_err(unregistered)?;
        }
        Ok(())
    }

    /// Opens the listeners of the configuration.  A table with the name of a passed socket (`taken`)
    /// gives options to that socket, and is not opened.
    fn open_named(&mut self, taken: &[String], built_in: bool) -> Result<(), Trouble> {
        for listener in self
            .config
            .listeners
            .iter()
            .filter(|l| !taken.contains(&l.name))
        {
            let Some(address) = &listener.address else {
                if built_in && listener.name == BUILT_IN {
                    continue;
                }
                self.log.emit(Event::Unused {
                    listener: listener.name.clone(),
                    others: is_instance(),
                });
                continue;
            };
            let options = self.options(&listener.options);
            let opened = signals::stoppable(|| bind::open(address, &options));
            let (bound, absent) =
                opened.map_err(|failure| Trouble::Bind(failure.beside(&self.ours)))?;
            for failure in absent {
                self.log.emit(Event::Absent(failure.to_string()));
            }
            self.add(&listener.name, bound, &listener.options)?;
        }
        Ok(())
    }

    /// Opens the built-in listeners.  On a host without IPv6, that for IPv4 is enough, and the other way
    /// round.
    fn open_built_in(&mut self) -> Result<(), Trouble> {
        let mut absent = Vec::new();
        let options = self.config.options_for(BUILT_IN);
        for ip in LOOPBACK {
            match bind::open(
                &Address::Ip((ip, BUILT_IN_PORT).into()),
                &self.options(options),
            ) {
                Ok((bound, _)) => self.add(BUILT_IN, bound, options)?,
                Err(failure) if failure.is_absence() => absent.push(failure),
                Err(failure) => return Err(Trouble::Bind(failure)),
            }
        }
        for failure in &absent {
            self.log.emit(Event::Absent(failure.to_string()));
        }
        match absent.pop() {
            Some(failure) if absent.len() + 1 == LOOPBACK.len() => Err(Trouble::Bind(failure)),
            _ => Ok(()),
        }
    }

    /// The options with which a listener is opened.  Preserved connections hold its address when the
    /// next process binds it, so they need `SO_REUSEADDR` (socket(7)).
    fn options(&self, options: &Options) -> Options {
        let mut options = options.clone();
        if self.server.preserves() {
            options.reuse_address = Some(true);
        }
        options
    }

    /// Adds listeners that this process has opened.
    fn add(&mut self, name: &str, bound: Vec<Bound>, options: &Options) -> Result<(), Trouble> {
        for bound in bound {
            let options = options.clone().over(Options::built_in());
            let listener = Listener::new(name.to_owned(), bound.socket, false, options, bound.path)
                .map_err(unregistered)?;
            self.ours.push(listener.local.clone());
            if let (None, Role::Echo, Endpoint::Ip(address)) =
                (&self.hint, listener.role, &listener.local)
            {
                self.hint = Some(hint(&listener, *address));
            }
            self.server
                .add_listener(listener, bound.refused)
                .map_err(unregistered)?;
        }
        Ok(())
    }
}

fn unregistered(error: io::Error) -> Trouble {
    Trouble::System("a socket cannot be registered", error)
}

/// A command that tries a listener.
fn hint(listener: &Listener, address: SocketAddr) -> String {
    let mut address = address;
    address.set_ip(reachable(listener, address.ip()));
    format!("tcp-echo ping {address}")
}

/// An address under which a client on this host reaches a listener.
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

/// Raises the soft limit of descriptors to the hard one (getrlimit(2)); returns the soft limit.
fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // With an error the soft limit stays as it is, which is then what counts.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Raises the soft limit of descriptors to the hard one; returns the most connections for which that
/// leaves descriptors, at least one.  `metrics`: some are for requests of them.
pub(super) fn descriptors(workers: usize, listeners: usize, metrics: bool) -> usize {
    let descriptors = raise_limit();
    let listeners = listeners.saturating_sub(LISTENERS) as u64;
    let metrics = if metrics { DESCRIPTORS as u64 } else { 0 };
    let own = OWN + WORKER * (workers as u64 - 1) + listeners + metrics;
    usize::try_from(descriptors.saturating_sub(own).max(1)).unwrap_or(usize::MAX)
}
