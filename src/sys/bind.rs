//! Listening sockets that this process opens itself: an address is resolved, bound and listened on, or
//! there is an error that says what to do.
//!
//! A Unix socket needs more than one of TCP.  Its path remains when a process ends without unlinking it,
//! and then bind(2) fails; so a path with no process behind it is removed first, under a lock on the
//! folder, so that two daemons that start at the same time do not remove each other's path.  At the end
//! a path is unlinked only if it is still the one that was bound.

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
use super::endpoint::Endpoint;
use super::rights;
use super::sockopt::{self, Refused};
use crate::config::Options;
use crate::config::address::{Address, unfit, unmapped};
use crate::config::units::{Group, Mode};

/// How long a start waits for the lock on a folder.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// A socket that listens.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The socket, which is non-blocking.
    pub socket: ListenSocket,
    /// The path that was bound, to be unlinked at the end.
    pub path: Option<OwnPath>,
    /// The options that the kernel refused.
    pub refused: Vec<Refused>,
}

/// Why an address cannot be listened on.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The address, as the configuration has it or as it was resolved.
    pub address: String,
    /// The error of the system call, or one that says what is wrong with the address.
    pub error: io::Error,
    /// Whether another listener of this process has the address.
    twice: bool,
    /// Whether `reuse-address` is false, so that an open connection may hold the address.
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

    /// The failure of a process that listens on the addresses `ours` already, of which one may be the
    /// cause.
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

    /// Whether the host does not have this address, or its family.
    #[must_use]
    pub(crate) fn is_absence(&self) -> bool {
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

/// Listens on all addresses that an address of the configuration stands for.  A name may stand for
/// several: those that the host does not have are returned as failures, if there is one that it has.
///
/// # Errors
/// The failure of the first address that cannot be listened on.
pub(crate) fn open(
    address: &Address,
    options: &Options,
) -> Result<(Vec<Bound>, Vec<Failure>), Failure> {
    let options = options.clone().over(Options::built_in());
    match address {
        Address::Unix(path) => {
            let bound = unix(path, &options).map_err(Failure::of(address))?;
            Ok((vec![bound], Vec::new()))
        }
        _ => each(address, |ip, v6only| tcp(ip, v6only, &options)),
    }
}

/// The outcome that [`open`] would have.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    /// The addresses, as they were resolved.
    pub(crate) reals: Vec<SocketAddr>,
    /// The addresses that the host does not have.
    pub(crate) absent: Vec<Failure>,
    /// The addresses that another socket has, perhaps that of the running daemon.
    pub(crate) in_use: Vec<Failure>,
}

/// Does what [`open`] does, but does not listen, so no connection is accepted or refused because of it.
/// A Unix path is not touched: whether it can be bound is tried with a name beside it, which is removed
/// again.
///
/// # Errors
/// Those of [`open`], except for addresses in use.
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

/// Calls `tcp` for each address that an address of the configuration stands for, with whether the
/// socket is for IPv6 alone; what is returned is that of [`open`].
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

/// Whether another server listens on a path; if not, whether the path can be bound was tried.
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
    // By the descriptor of the folder, as its path may be too long for a name beside it (unix(7)).
    let beside = format!(
        "/proc/self/fd/{}/.tcp-echo-check-{}",
        folder.as_raw_fd(),
        std::process::id()
    );
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&beside)?)?;
    let permitted = set_permissions(Path::new(&beside), options);
    std::fs::remove_file(&beside)?;
    permitted.map(|()| false)
}

/// Gives a path the group and the permissions that the options ask for.
fn set_permissions(path: &Path, options: &Options) -> io::Result<()> {
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
    // After the group, as chown(2) may clear permissions.
    match options.mode {
        Some(Mode::Permissions(mode)) => {
            std::fs::set_permissions(path, Permissions::from_mode(mode))
        }
        Some(Mode::Role(_)) | None => Ok(()),
    }
}

/// The id of a group, by its name in `/etc/group` (group(5)) or by its number.
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

/// A TCP socket that listens.
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

/// A TCP socket with its options and its address that does not listen.
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
    let mut check = |option, result: io::Result<()>| {
        if let Err(error) = result {
            refused.push(Refused { option, error });
        }
    };
    if let Some(on) = options.reuse_address {
        check("reuse-address", socket.set_reuse_address(on));
    }
    if let Some(on) = options.reuse_port {
        check("reuse-port", socket.set_reuse_port(on));
    }
    if address.is_ipv6() {
        check(
            "v6only",
            socket.set_only_v6(options.v6only.unwrap_or(v6only)),
        );
    }
    // Before listen(2), as the window in the SYN-ACK depends on the buffer sizes (tcp(7)).
    refused.extend(sockopt::apply(&socket, options));
    socket.bind(&address.into()).map_err(|error| Failure {
        exclusive: options.reuse_address == Some(false),
        ..failed(error)
    })?;
    Ok((socket, refused))
}

/// A Unix socket that listens.
fn unix(path: &Path, options: &Options) -> io::Result<Bound> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    // Between the bind(2) and the listen(2) of another daemon its path looks stale.
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
    // Before listen(2), so that no connection is made with other permissions.
    if let Err(error) = set_permissions(path, options) {
        std::fs::remove_file(path)?;
        return Err(error);
    }
    rights::refuse(&socket);
    socket.listen(backlog(options))?;
    let refused = sockopt::apply(&socket, options);
    let listener: UnixListener = OwnedFd::from(socket).into();
    Ok(Bound {
        socket: ListenSocket::Unix(listener),
        path: own.ok(),
        refused,
    })
}

/// The backlog for listen(2); the kernel limits it to `net.core.somaxconn`.
fn backlog(options: &Options) -> i32 {
    options.backlog.map_or(i32::MAX, |backlog| {
        i32::try_from(backlog.0).unwrap_or(i32::MAX)
    })
}

/// Locks the folder of a path until the returned file is dropped, so that no other daemon examines,
/// removes or binds a path in it meanwhile.  `None`: the folder cannot be read, or another process
/// holds the lock for longer than [`LOCK_TIMEOUT`].
fn lock_folder(path: &Path) -> Option<File> {
    let folder = File::open(path.parent()?).ok()?;
    let end = Instant::now() + LOCK_TIMEOUT;
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

/// Whether a path is that of a socket that no process has any more.  A file of another kind is not
/// stale: it belongs to another program.
fn is_stale(path: &Path, address: &SockAddr) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    // With a datagram socket, as a stream server does not notice that: the kernel refuses it with
    // EPROTOTYPE.
    is_socket
        && Socket::new(Domain::UNIX, Type::DGRAM, None)
            .and_then(|probe| probe.connect(address))
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// A path that this process has bound.
#[derive(Debug)]
pub(crate) struct OwnPath {
    path: PathBuf,
    /// The numbers of the device and of the inode (inode(7)).
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

    /// Unlinks the path, unless another program has put another file there.
    pub(crate) fn unlink(self) {
        if Self::of(&self.path).is_ok_and(|now| now.identity == self.identity) {
            // An error does no harm: the next start removes a stale path.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether an address is one of this host that no other host can reach (RFC 1122, section 3.2.1.3;
/// RFC 4291, section 2.5.3).
#[must_use]
pub(crate) fn is_local(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}
