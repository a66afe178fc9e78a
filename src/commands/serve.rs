//! `tcp-echo serve`: puts everything together, in the order that matters.
//!
//! Passed descriptors come first, before any other descriptor and any thread exists.  The log
//! comes second, so that whatever goes wrong then is told in the one place where an operator
//! looks.  Readiness comes last, when every listener is registered.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::Poll;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockRef;

use super::{Exit, complain};
use crate::cli::{Format, Level};
use crate::config::address::Address;
use crate::config::{self, Config, MOST_CONNECTIONS, Options, Origin};
use crate::server::listener::Listener;
use crate::server::{Parts, Server};
use crate::survival::heritage::{Heritage, UNSERVED};
use crate::survival::keeper::Keeper;
use crate::survival::layout::Geometry;
use crate::survival::recovery::Estate;
use crate::system::activation::{self, ListenSocket, Passed, Stranger};
use crate::system::bind::{self, Bound, Failure};
use crate::system::cgroup::is_instance;
use crate::system::clock;
use crate::system::events::{Endpoint, Event};
use crate::system::kernel::Kernel;
use crate::system::logging::Log;
use crate::system::memory::give_back_large_blocks;
use crate::system::notify::Manager;
use crate::system::signals::{self, Signals};
use crate::system::socket;

/// The port of the built-in listeners: not 7, which needs a privilege.
pub(super) const PORT: u16 = 9999;

/// Their name, and that of the table that may give them options.
pub(super) const BUILT_IN: &str = "default";

/// Where the built-in listeners are.
pub(super) const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Descriptors that are not connections: standard streams, poll, signals, manager, log, a few
/// listeners, and some to spare.
const OWN: u64 = 32;

/// Listeners that are among those.
const LISTENERS: usize = 8;

/// Those that each further worker takes: its poll twice, its timer, what wakes it.
const WORKER: u64 = 4;

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
    give_back_large_blocks();
    let passed = activation::take();
    // Before there is another thread; the handlers come later.  Failing, the log's thread may take a
    // signal, and pass it on.
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
            if !log.wants(Level::Error) {
                // The only word there is about it.
                complain(&format!("cannot start: {trouble}"));
            }
            log.tell(Event::StartFailed(trouble.to_string()));
            drop(log);
            sink.finish_early();
            trouble.exit()
        }
    }
}

fn serve(config: &Config, origin: Origin, mut passed: Passed, log: &Log) -> Result<(), Trouble> {
    let now = clock::now();
    let signals =
        Signals::install().map_err(|error| Trouble::System("signals cannot be handled", error))?;
    let poll = Poll::new().map_err(|error| Trouble::System("epoll cannot be had", error))?;
    let mut manager = Manager::from_env(now).unwrap_or_else(|error| {
        log.tell(Event::Manager(error));
        Manager::default()
    });
    if rustix::process::geteuid().is_root() {
        log.tell(Event::Root);
    }
    if let Some(why) = passed.ignored.take() {
        log.tell(Event::Ignored(why));
    }
    // An instance for one conversation needs no more than one.
    let lone = passed.listeners.is_empty() && !passed.connections.is_empty();
    let workers = if lone { 1 } else { config.workers };
    let listeners = passed.listeners.len() + config.listeners.len();
    let descriptors = descriptors(workers, listeners);
    let estate = Estate::sort(std::mem::take(&mut passed.reserved));
    for name in &estate.strangers {
        log.tell(Event::Reserved { name: name.clone() });
        manager.unstore(name, now);
    }
    let mut findings = estate.read(descriptors);
    let most = descriptors.min(config.max_connections.unwrap_or(0).max(MOST_CONNECTIONS));
    let geometry = Geometry {
        lanes: workers,
        // Callers go to the worker that has the fewest, so none has more than its share.
        seats: most.div_ceil(workers),
    };
    let stored = findings.names.clone();
    let (mut heritage, lanes) = Heritage::settle(&mut findings, geometry)
        .map_err(|error| Trouble::System("memory cannot be mapped", error))?;
    let keeper = Keeper::new(&mut heritage, descriptors);
    let parts = Parts {
        poll,
        signals,
        config: config.clone(),
        origin,
        descriptors,
        kernel: Kernel::read(),
        manager,
        keeper,
        lanes,
        log: log.clone(),
    };
    let (mut server, hint) = match open(parts, config, passed, log) {
        Ok(opened) => opened,
        Err(trouble) => {
            if let Some(count) = heritage.start_failed(&findings, clock::now()) {
                let why = format!("no start has succeeded for {}s", UNSERVED.as_secs());
                log.tell(Event::GivenUp { why, count });
                let mut manager = Manager::from_env(now).unwrap_or_default();
                for name in &stored {
                    manager.unstore(name, now);
                }
            }
            return Err(trouble);
        }
    };
    heritage.take_over();
    server.inherit(&findings, heritage.adopted);
    server.ready(hint);
    server
        .run()
        .map_err(|error| Trouble::System("epoll failed", error))
}

/// Puts a server together, with its listeners, and starts its loops; returns it with a command that
/// tries it.
fn open(
    parts: Parts,
    config: &Config,
    passed: Passed,
    log: &Log,
) -> Result<(Server, Option<String>), Trouble> {
    let mut server = Server::new(parts, clock::now())
        .map_err(|error| Trouble::System("the loops cannot be set up", error))?;
    let opening = Opening {
        server: &mut server,
        config,
        log,
        hint: None,
        ours: Vec::new(),
    };
    let hint = opening.open(passed)?;
    server
        .start()
        .map_err(|error| Trouble::System("a worker cannot be started", error))?;
    Ok((server, hint))
}

/// Puts listeners and connections into a server.
struct Opening<'a> {
    server: &'a mut Server,
    config: &'a Config,
    log: &'a Log,
    /// A command that tries the first listener of ours.
    hint: Option<String>,
    /// Where we listen so far.
    ours: Vec<Endpoint>,
}

impl Opening<'_> {
    /// Adds all there are: those that were passed, and those that the configuration names; or,
    /// where there are neither, those that are built in.
    fn open(mut self, passed: Passed) -> Result<Option<String>, Trouble> {
        // An instance for one conversation has no listeners: another instance would have them too.
        let lone = passed.listeners.is_empty() && !passed.connections.is_empty();
        let taken: Vec<String> = passed
            .listeners
            .iter()
            .map(|(name, _)| name.clone())
            .collect();
        self.adopt(passed.listeners)?;
        if !lone {
            let mut listeners = self.config.listeners.iter();
            let named = listeners.any(|listener| listener.address.is_some());
            let built_in = !named && taken.is_empty();
            self.open_named(&taken, built_in)?;
            if built_in {
                self.open_built_in()?;
            }
        }
        // After the last listener, whose numbers come first.
        for (name, socket) in passed.connections {
            self.server.add_connection(&name, socket);
        }
        Ok(self.hint)
    }

    fn adopt(&mut self, passed: Vec<(String, ListenSocket)>) -> Result<(), Trouble> {
        for (name, socket) in passed {
            let options = self.config.options_of_passed(&name);
            let listener =
                Listener::new(name, socket, true, options, None).map_err(unregistered)?;
            let refused = listener
                .socket()
                .map(|fd| socket::apply(&fd, &listener.options))
                .unwrap_or_default();
            self.server
                .add_listener(listener, refused)
                .map_err(unregistered)?;
        }
        Ok(())
    }

    /// A table whose name a passed socket has is that socket's.
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
                self.log.tell(Event::Unused {
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
                self.log.tell(Event::Absent(failure.to_string()));
            }
            self.add(&listener.name, bound, &listener.options)?;
        }
        Ok(())
    }

    /// A host without IPv6 serves IPv4, and the other way round.
    fn open_built_in(&mut self) -> Result<(), Trouble> {
        let mut absent = Vec::new();
        let options = self.config.options_for(BUILT_IN);
        for ip in LOOPBACK {
            match bind::open(&Address::Ip((ip, PORT).into()), &self.options(options)) {
                Ok((bound, _)) => self.add(BUILT_IN, bound, options)?,
                Err(failure) if failure.is_absence() => absent.push(failure),
                Err(failure) => return Err(Trouble::Bind(failure)),
            }
        }
        for failure in &absent {
            self.log.tell(Event::Absent(failure.to_string()));
        }
        match absent.pop() {
            Some(failure) if absent.len() + 1 == LOOPBACK.len() => Err(Trouble::Bind(failure)),
            _ => Ok(()),
        }
    }

    /// The options that a listener is opened with: connections that are preserved would hold its
    /// address against the next process, so they and it share it.
    fn options(&self, options: &Options) -> Options {
        let mut options = options.clone();
        if self.server.preserves() {
            options.reuse_address = Some(true);
        }
        options
    }

    fn add(&mut self, name: &str, bound: Vec<Bound>, options: &Options) -> Result<(), Trouble> {
        for bound in bound {
            let options = options.clone().over(Options::built_in());
            let listener = Listener::new(name.to_owned(), bound.socket, false, options, bound.path)
                .map_err(unregistered)?;
            self.ours.push(listener.local.clone());
            if let (None, Endpoint::Ip(address)) = (&self.hint, &listener.local) {
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

/// A command that tries a listener, in any shell of a host that has bash: of nc there are several,
/// which end the stream in different ways.
fn hint(listener: &Listener, address: SocketAddr) -> String {
    let ip = reachable(listener, address.ip());
    let scope = match address {
        SocketAddr::V6(address) if address.scope_id() > 0 => format!("%{}", address.scope_id()),
        _ => String::new(),
    };
    let port = address.port();
    format!("bash -c 'exec 3<>/dev/tcp/{ip}{scope}/{port}; echo hello >&3; head -n 1 <&3'")
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
pub(super) fn descriptors(workers: usize, listeners: usize) -> usize {
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
    let listeners = listeners.saturating_sub(LISTENERS) as u64;
    let own = OWN + WORKER * (workers as u64 - 1) + listeners;
    usize::try_from(descriptors.saturating_sub(own).max(1)).unwrap_or(usize::MAX)
}
