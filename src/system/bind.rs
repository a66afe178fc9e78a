//! Listeners of our own: resolved, bound and listening, or an error that says what to do.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use super::activation::ListenSocket;
use super::rights;
use super::socket::{self, Refused};
use crate::config::Options;
use crate::config::address::{Address, unfit, unmapped};

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
    pub(crate) fn beside(mut self, ours: &[SocketAddr]) -> Self {
        let port = self
            .address
            .parse::<SocketAddr>()
            .map(|address| address.port());
        let in_use = self.error.raw_os_error() == Some(libc::EADDRINUSE);
        self.twice |= in_use && ours.iter().any(|ours| Ok(ours.port()) == port);
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
            Some(libc::EPERM) if unix => "; the file system does not allow a socket there: choose another folder",
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
            Some(libc::ENOENT) if unix => "; the folder does not exist (RuntimeDirectory= in a unit makes one)",
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
    let failed = Failure::of(address);
    match address {
        Address::Unix(path) => Ok((vec![unix(path, &options).map_err(failed)?], Vec::new())),
        Address::Ip(ip) => Ok((vec![tcp(*ip, true, &options)?], Vec::new())),
        Address::Any(port) => match tcp((Ipv6Addr::UNSPECIFIED, *port).into(), false, &options) {
            Err(failure) if failure.error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                let bound = tcp((Ipv4Addr::UNSPECIFIED, *port).into(), false, &options)?;
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
                match tcp(address, true, &options) {
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

/// Whether an address could be listened on, as far as that can be told without its port and
/// without touching a path.
///
/// # Errors
/// As [`open`] would give.
pub fn probe(address: &Address) -> Result<(), Failure> {
    let failed = Failure::of(address);
    match address {
        Address::Ip(ip) => {
            let socket =
                Socket::new(Domain::for_address(*ip), Type::STREAM, None).map_err(&failed)?;
            let mut any_port = *ip;
            any_port.set_port(0);
            socket.bind(&any_port.into()).map_err(&failed)
        }
        Address::Unix(path) => {
            let folder = path.parent().unwrap_or(Path::new("/"));
            let is_folder = std::fs::metadata(folder).map_err(&failed)?.is_dir();
            let in_the_way =
                std::fs::symlink_metadata(path).is_ok_and(|meta| !meta.file_type().is_socket());
            match (is_folder, in_the_way) {
                (false, _) => Err(failed(io::Error::from_raw_os_error(libc::ENOTDIR))),
                (_, true) => Err(failed(io::Error::from_raw_os_error(libc::EADDRINUSE))),
                _ => Ok(()),
            }
        }
        Address::Any(_) | Address::Name(..) => Ok(()),
    }
}

/// The addresses of a name, each once.
///
/// # Errors
/// Those of getaddrinfo(3).
pub fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for address in (host, port).to_socket_addrs()?.map(unmapped) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn tcp(address: SocketAddr, v6only: bool, options: &Options) -> Result<Bound, Failure> {
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
    let exclusive = options.reuse_address == Some(false);
    let taken = |error| Failure {
        exclusive,
        ..failed(error)
    };
    socket.bind(&address.into()).map_err(taken)?;
    socket.listen(backlog(options)).map_err(taken)?;
    Ok(Bound {
        socket: ListenSocket::Tcp(OwnedFd::from(socket).into()),
        path: None,
        refused,
    })
}

fn unix(path: &Path, options: &Options) -> io::Result<Bound> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
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

/// A socket that nobody listens on any more.  Anything else in its place is not ours to remove.
fn is_stale(path: &Path, address: &SockAddr) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    // Non-blocking: a live server with a full queue must not hold us up.
    is_socket
        && Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)
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
