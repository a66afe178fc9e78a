//! Listeners of our own: resolved, bound and listening, or an error that says what to do.

use std::fmt;
use std::fs::{File, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Gid, Mode as Creation, OFlags, chown, flock};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use super::activation::ListenSocket;
use super::events::Endpoint;
use super::rights;
use super::socket::{self, Refused};
use crate::config::Options;
use crate::config::address::{Address, unfit, unmapped};
use crate::config::units::{Group, Mode};

/// How long a start waits for another daemon that opens a path in the same folder.
const PATIENCE: Duration = Duration::from_secs(2);

/// A listener that is ready to be registered.
#[derive(Debug)]
pub struct Bound {
    /// The socket, non-blocking.
    pub socket: ListenSocket,
    /// The path that we made and have to unlink.
    pub path: Option<OwnPath>,
    /// Options that the kernel refused.
    pub refused: Vec<Refused>,
}

/// Why an address cannot be listened on.
#[derive(Debug)]
pub struct Failure {
    /// What was asked.
    pub address: String,
    /// What the system said.
    pub error: io::Error,
    /// Another listener of ours has it.
    twice: bool,
    /// `reuse-address = false`, so a connection may hold it.
    exclusive: bool,
}

impl Failure {
    fn of<A: fmt::Display>(address: &A) -> impl Fn(io::Error) -> Self + use<'_, A> {
        move |error| Self {
            address: address.to_string(),
            error,
            twice: false,
            exclusive: false,
        }
    }

    /// An address that another listener of the configuration has already.
    #[must_use]
    pub(crate) fn twice(address: &impl fmt::Display) -> Self {
        Self {
            twice: true,
            ..Self::of(address)(io::Error::from_raw_os_error(libc::EADDRINUSE))
        }
    }

    /// The same failure, where sockets of ours listen on these addresses already.
    pub(crate) fn beside(mut self, ours: &[Endpoint]) -> Self {
        let port = self
            .address
            .parse::<SocketAddr>()
            .map(|address| address.port());
        let in_use = self.error.raw_os_error() == Some(libc::EADDRINUSE);
        self.twice |= in_use
            && ours.iter().any(|ours| match ours {
                Endpoint::Ip(ours) => Ok(ours.port()) == port,
                Endpoint::Unix(_) | Endpoint::Abstract(_) => ours.to_string() == self.address,
            });
        self
    }

    /// Whether the host simply lacks this address or its family.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(
            self.error.raw_os_error(),
            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, error, .. } = self;
        write!(f, "cannot listen on {address}: {error}")?;
        if self.twice {
            return f.write_str(
                "; another listener of the configuration has this address: give each its own",
            );
        }
        let unix = address.starts_with("unix:");
        f.write_str(match error.raw_os_error() {
            Some(libc::EADDRINUSE) if unix => {
                "; another server answers there, or it is no socket: remove it, or choose another path"
            }
            Some(libc::EADDRINUSE) if self.exclusive => {
                "; another socket listens there (`ss -ltnp` shows whose), or a connection that is not over holds the \
                 address, as reuse-address = false (`ss -tan` shows it): wait for its end, or set reuse-address = true"
            }
            Some(libc::EADDRINUSE) => {
                "; another socket listens there (`ss -ltnp` shows whose): stop it, or choose another address with --listen"
            }
            Some(libc::EACCES) if unix => "; the folder must be writable for this user (RuntimeDirectory= in a unit)",
            Some(libc::EACCES) => {
                "; a port below net.ipv4.ip_unprivileged_port_start needs CAP_NET_BIND_SERVICE: let systemd open it \
                 (systemctl start tcp-echo.socket), or choose a higher port"
            }
            Some(libc::EPERM | libc::EROFS) if unix => {
                "; the file system does not allow a socket there: choose another folder"
            }
            Some(libc::EPERM) => {
                "; the sandbox of the service forbids it (SocketBindDeny=): listen through the socket unit \
                 (tcp-echo.socket), or run the standalone unit (tcp-echo-standalone.service)"
            }
            Some(libc::EAFNOSUPPORT) => {
                "; the kernel lacks this address family, or the sandbox of the service forbids it \
                 (RestrictAddressFamilies=): listen through the socket unit (tcp-echo.socket), or run the \
                 standalone unit (tcp-echo-standalone.service)"
            }
            Some(libc::EADDRNOTAVAIL) => "; no interface of this host has the address (`ip address` shows them)",
            Some(libc::ENOENT) if unix => "; the folder does not exist (RuntimeDirectory= in a unit makes one), or takes no socket",
            _ => "",
        })
    }
}

/// Opens all sockets that an address stands for: a name may have several addresses, of which those
/// that the host lacks are returned as second, as long as there is one that it has.
///
/// # Errors
/// The first address that cannot be listened on.
pub fn open(address: &Address, options: &Options) -> Result<(Vec<Bound>, Vec<Failure>), Failure> {
    let options = options.clone().over(Options::built_in());
    match address {
        Address::Unix(path) => {
            let bound = unix(path, &options).map_err(Failure::of(address))?;
            Ok((vec![bound], Vec::new()))
        }
        _ => each(address, |ip, v6only| tcp(ip, v6only, &options)),
    }
}

/// What [`open`] would find.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    /// The addresses that could be listened on.
    pub(crate) reals: Vec<SocketAddr>,
    /// Those that the host lacks.
    pub(crate) absent: Vec<Failure>,
    /// Those that another socket has now, perhaps that of the daemon itself.
    pub(crate) in_use: Vec<Failure>,
}

/// Does what [`open`] does, up to the listening: nobody who calls is served or turned away.  A Unix
/// path is not touched; what binding it needs is tried on a name beside it, which is removed again.
///
/// # Errors
/// As [`open`] would give, but for addresses in use.
pub(crate) fn probe(address: &Address, options: &Options) -> Result<Probe, Failure> {
    let options = options.clone().over(Options::built_in());
    if let Address::Unix(path) = address {
        let in_use = probe_path(path, &options).map_err(Failure::of(address))?;
        let in_use = in_use.then(|| Failure::of(address)(Errno::ADDRINUSE.into()));
        return Ok(Probe {
            in_use: in_use.into_iter().collect(),
            ..Probe::default()
        });
    }
    let (found, absent) = each(address, |ip, v6only| match bind(ip, v6only, &options) {
        Ok(_) => Ok((ip, None)),
        Err(failure) if failure.error.raw_os_error() == Some(libc::EADDRINUSE) => {
            Ok((ip, Some(failure)))
        }
        Err(failure) => Err(failure),
    })?;
    let (reals, in_use): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    Ok(Probe {
        reals,
        absent,
        in_use: in_use.into_iter().flatten().collect(),
    })
}

/// Does something with each address that an address of TCP stands for, and whether the socket is for
/// IPv6 alone; as [`open`] says.
fn each<T>(
    address: &Address,
    tcp: impl Fn(SocketAddr, bool) -> Result<T, Failure>,
) -> Result<(Vec<T>, Vec<Failure>), Failure> {
    let failed = Failure::of(address);
    match address {
        Address::Unix(_) => Ok((Vec::new(), Vec::new())),
        Address::Ip(ip) => Ok((vec![tcp(*ip, true)?], Vec::new())),
        Address::Any(port) => match tcp((Ipv6Addr::UNSPECIFIED, *port).into(), false) {
            Err(failure) if failure.error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                let bound = tcp((Ipv4Addr::UNSPECIFIED, *port).into(), false)?;
                Ok((vec![bound], vec![failure]))
            }
            bound => Ok((vec![bound?], Vec::new())),
        },
        Address::Name(host, port) => {
            let addresses = resolve(host, *port).map_err(&failed)?;
            let (mut bound, mut absent) = (Vec::new(), Vec::new());
            for address in addresses {
                if let Some(why) = unfit(address) {
                    return Err(failed(io::Error::other(format!("{address}: {why}"))));
                }
                match tcp(address, true) {
                    Ok(listener) => bound.push(listener),
                    Err(failure) if failure.is_absence() => absent.push(failure),
                    Err(failure) => return Err(failure),
                }
            }
            match absent.pop() {
                Some(failure) if bound.is_empty() => Err(failure),
                last => {
                    absent.extend(last);
                    if bound.is_empty() {
                        return Err(failed(io::Error::other("the name has no address")));
                    }
                    Ok((bound, absent))
                }
            }
        }
    }
}

/// Whether another server has a path, which can be bound else.
fn probe_path(path: &Path, options: &Options) -> io::Result<bool> {
    let there = std::fs::symlink_metadata(path);
    if there.is_ok() && !is_stale(path, &SockAddr::unix(path)?) {
        let is_socket = there.is_ok_and(|meta| meta.file_type().is_socket());
        return is_socket.then_some(true).ok_or(Errno::ADDRINUSE.into());
    }
    let folder = rustix::fs::open(
        path.parent().unwrap_or(Path::new("/")),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Creation::empty(),
    )?;
    // As short as can be, however long the folder's path.
    let beside = format!(
        "/proc/self/fd/{}/.tcp-echo-check-{}",
        folder.as_raw_fd(),
        std::process::id()
    );
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&beside)?)?;
    let opened_up = open_up(Path::new(&beside), options);
    std::fs::remove_file(&beside)?;
    opened_up.map(|()| false)
}

/// Gives a path the group and the permissions that are asked for.
fn open_up(path: &Path, options: &Options) -> io::Result<()> {
    if let Some(Group(name)) = &options.group {
        let group = Some(Gid::from_raw(group(name)?));
        chown(path, None, group).map_err(|errno| {
            let error = io::Error::from(errno);
            io::Error::new(
                error.kind(),
                format!(
                    "its group cannot be {name}: {error}; the user must be in the group, and chown(2) be allowed \
                     (SupplementaryGroups= and SystemCallFilter=@chown in the unit)"
                ),
            )
        })?;
    }
    // Behind the group, as chown(2) may take permissions away.
    options.mode.map_or(Ok(()), |Mode(mode)| {
        std::fs::set_permissions(path, Permissions::from_mode(mode))
    })
}

/// The number of a group, group(5).
fn group(name: &str) -> io::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group")?;
    let mut lines = groups.lines().map(|line| line.split(':'));
    lines
        .find_map(|mut fields| {
            (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
        })
        .ok_or_else(|| io::Error::other(format!("there is no group {name} in /etc/group")))
}

/// The addresses of a name, each once.
///
/// # Errors
/// Those of getaddrinfo(3).
fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for address in (host, port).to_socket_addrs()?.map(unmapped) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn tcp(address: SocketAddr, v6only: bool, options: &Options) -> Result<Bound, Failure> {
    let (socket, refused) = bind(address, v6only, options)?;
    let listening = socket.listen(backlog(options));
    listening.map_err(Failure::of(&address))?;
    Ok(Bound {
        socket: ListenSocket::Tcp(OwnedFd::from(socket).into()),
        path: None,
        refused,
    })
}

/// A socket that has an address and its options, and does not listen.
fn bind(
    address: SocketAddr,
    v6only: bool,
    options: &Options,
) -> Result<(Socket, Vec<Refused>), Failure> {
    let failed = Failure::of(&address);
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        None,
    )
    .map_err(&failed)?;
    let mut refused = Vec::new();
    let mut note = |option, result: io::Result<()>| {
        if let Err(error) = result {
            refused.push(Refused { option, error });
        }
    };
    if let Some(on) = options.reuse_address {
        note("reuse-address", socket.set_reuse_address(on));
    }
    if let Some(on) = options.reuse_port {
        note("reuse-port", socket.set_reuse_port(on));
    }
    if address.is_ipv6() {
        note(
            "v6only",
            socket.set_only_v6(options.v6only.unwrap_or(v6only)),
        );
    }
    // Before listen(2): the window that a SYN is answered with depends on the buffer sizes.
    refused.extend(socket::apply(&socket, options));
    socket.bind(&address.into()).map_err(|error| Failure {
        exclusive: options.reuse_address == Some(false),
        ..failed(error)
    })?;
    Ok((socket, refused))
}

fn unix(path: &Path, options: &Options) -> io::Result<Bound> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    // Between its bind and its listen another daemon looks stale.
    let _alone = lock_folder(path);
    match socket.bind(&address) {
        Err(error)
            if error.raw_os_error() == Some(libc::EADDRINUSE) && is_stale(path, &address) =>
        {
            std::fs::remove_file(path)?;
            socket.bind(&address)?;
        }
        result => result?,
    }
    let own = OwnPath::of(path);
    // Before the first caller.
    if let Err(error) = open_up(path, options) {
        std::fs::remove_file(path)?;
        return Err(error);
    }
    rights::refuse(&socket);
    socket.listen(backlog(options))?;
    let refused = socket::apply(&socket, options);
    let listener: UnixListener = OwnedFd::from(socket).into();
    Ok(Bound {
        socket: ListenSocket::Unix(listener),
        path: own.ok(),
        refused,
    })
}

fn backlog(options: &Options) -> i32 {
    options.backlog.map_or(i32::MAX, |backlog| {
        i32::try_from(backlog.0).unwrap_or(i32::MAX)
    })
}

/// Keeps other daemons from looking at, removing and binding a path of the same folder until it is
/// dropped; `None` where the folder cannot be read, or another program keeps its lock for longer than
/// [`PATIENCE`].
fn lock_folder(path: &Path) -> Option<File> {
    let folder = File::open(path.parent()?).ok()?;
    let end = Instant::now() + PATIENCE;
    loop {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(folder),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(_) => return None,
        }
    }
}

/// A socket that no process has any more.  Anything else in its place is not ours to remove.
fn is_stale(path: &Path, address: &SockAddr) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    // A datagram socket troubles no server: one for streams is of the wrong type (EPROTOTYPE).
    is_socket
        && Socket::new(Domain::UNIX, Type::DGRAM, None)
            .and_then(|probe| probe.connect(address))
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// A path that we bound, and may unlink as long as it is still the same.
#[derive(Debug)]
pub struct OwnPath {
    path: PathBuf,
    identity: (u64, u64),
}

impl OwnPath {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.into(),
            identity: (meta.dev(), meta.ino()),
        })
    }

    /// Unlinks the path unless somebody else has put something there.
    pub fn unlink(self) {
        if Self::of(&self.path).is_ok_and(|now| now.identity == self.identity) {
            // Nothing is lost when this fails: a stale path is unlinked by the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether only this host can reach an address.
#[must_use]
pub fn is_local(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}
