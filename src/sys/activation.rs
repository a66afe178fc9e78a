//! Descriptors that the service manager has passed (sd_listen_fds(3)), taken by name and kind.
//!
//! Their order differs between versions of systemd, so a number alone says nothing.  The crate
//! sd-notify gives their names, and listenfd the descriptors; the latter also removes `LISTEN_PID` and
//! `LISTEN_FDS` from the environment.  Both are called before any thread and any other descriptor
//! exists.
//!
//! A stream socket that listens becomes a listener, and one that is connected becomes a connection (a
//! unit with `Accept=yes`).  A descriptor with a reserved name is one that this service has stored.  Any
//! other is a mistake in the configuration, and refused with its number, name and kind.

use std::fmt;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use listenfd::ListenFd;
use rustix::process::{Resource, getrlimit};
use socket2::{Domain, SockRef};

use super::environment;

/// What the names of descriptors begin with that a previous process has left in the service manager's
/// store: now, and before the first release.
const RESERVED: [&str; 2] = ["preserve-", "survival-"];

/// The name of a descriptor that has none, as sd_listen_fds_with_names(3) gives it.
const NAMELESS: &str = "unknown";

/// The descriptors that were passed, each with its name.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// Listening sockets; names need not be unique.
    pub listeners: Vec<(String, ListenSocket)>,
    /// Connected sockets.
    pub connections: Vec<(String, StreamSocket)>,
    /// Descriptors with reserved names, of any kind.
    pub reserved: Vec<(String, OwnedFd)>,
    /// Why the descriptors that the environment names are ignored, if they are.
    pub ignored: Option<String>,
}

/// A listening socket.
#[derive(Debug)]
pub(crate) enum ListenSocket {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpListener),
    /// A Unix stream socket.
    Unix(UnixListener),
}

/// A connected socket.
#[derive(Debug)]
pub(crate) enum StreamSocket {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpStream),
    /// A Unix stream socket.
    Unix(UnixStream),
}

/// A passed descriptor that is neither a listener nor a connection.
#[derive(Debug)]
pub(crate) struct UnexpectedFd {
    /// Its index in `LISTEN_FDS`, from 0 on.
    number: usize,
    name: String,
    /// What it is, with an article.
    kind: String,
}

impl fmt::Display for UnexpectedFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "passed descriptor {} (LISTEN_FDS index {}, name {:?}) is {}; tcp-echo takes stream sockets that \
             listen or are connected (ListenStream= in the socket unit)",
            self.number + 3,
            self.number,
            self.name,
            self.kind
        )
    }
}

/// Takes all passed descriptors; a second call finds none.
///
/// # Errors
/// The first descriptor that cannot be served.
pub(crate) fn take() -> Result<Passed, UnexpectedFd> {
    if let Some(why) = misaddressed() {
        return Ok(Passed {
            ignored: Some(why),
            ..Passed::default()
        });
    }
    if let Some(number) = beyond_all_limits() {
        let kind = "not open: no process may have so many".into();
        return Err(UnexpectedFd {
            number,
            name: NAMELESS.into(),
            kind,
        });
    }
    // An error here means that the names cannot be used, or that a descriptor is not open.  The error
    // for that one follows below, with its name.
    let names = sd_notify::listen_fds_with_names()
        .map(|fds| fds.map(|(_, name)| name).collect())
        .unwrap_or_else(|_| names_as_written());
    let mut descriptors = ListenFd::from_env();
    // If there are not as many names as descriptors, a name may be that of another descriptor.
    let names = if names.len() == descriptors.len() {
        names
    } else {
        Vec::new()
    };
    let mut passed = Passed::default();
    for number in 0..descriptors.len() {
        let name = names
            .get(number)
            .filter(|name| !name.is_empty())
            .map_or(NAMELESS, String::as_str)
            .to_owned();
        let unexpected = |kind: String| UnexpectedFd {
            number,
            name: name.clone(),
            kind,
        };
        if RESERVED.iter().any(|start| name.starts_with(start)) {
            let taken = take_any(&mut descriptors, number);
            passed.reserved.extend(taken.map(|taken| (name, taken)));
            continue;
        }
        let taken = take_stream(&mut descriptors, number);
        let Some((domain, socket)) = taken else {
            return Err(unexpected(kind_of(&mut descriptors, number)));
        };
        let socket_ref = SockRef::from(&socket);
        let listening = socket_ref.is_listener().unwrap_or(false);
        // A connection that the peer has reset meanwhile has no peer any more, but a pending error.
        let was_connected = || matches!(socket_ref.take_error(), Ok(Some(_)));
        if !listening && socket_ref.peer_addr().is_err() && !was_connected() {
            return Err(unexpected(
                "a stream socket that neither listens nor is connected".into(),
            ));
        }
        // systemd passes sockets blocking.
        socket_ref
            .set_nonblocking(true)
            .map_err(|error| unexpected(format!("unusable: {error}")))?;
        match (domain, listening) {
            (Domain::UNIX, true) => passed
                .listeners
                .push((name, ListenSocket::Unix(socket.into()))),
            (Domain::UNIX, false) => passed
                .connections
                .push((name, StreamSocket::Unix(socket.into()))),
            (_, true) => passed
                .listeners
                .push((name, ListenSocket::Tcp(socket.into()))),
            (_, false) => passed
                .connections
                .push((name, StreamSocket::Tcp(socket.into()))),
        }
    }
    Ok(passed)
}

/// Why `LISTEN_FDS` is ignored: sd_listen_fds(3) requires the id of this process in `LISTEN_PID`, and
/// there is none.  The id of another process is no mistake: the variables were inherited from it.
fn misaddressed() -> Option<String> {
    let promised = environment::text("LISTEN_FDS").filter(|fds| !fds.is_empty())?;
    match environment::text("LISTEN_PID") {
        Some(pid) if pid.parse::<u32>().is_ok() => None,
        Some(pid) => Some(format!(
            "LISTEN_FDS is {promised:?}, and LISTEN_PID is {pid:?}, which is no process id"
        )),
        None => Some(format!(
            "LISTEN_FDS is {promised:?}, and LISTEN_PID, the process they are for, is not set"
        )),
    }
}

/// The index of the first descriptor of `LISTEN_FDS` that is beyond RLIMIT_NOFILE and so cannot be
/// open.  It is looked for first, as listenfd makes a list of all numbers, however many.
fn beyond_all_limits() -> Option<usize> {
    let pid = environment::text("LISTEN_PID").unwrap_or_default();
    if pid.parse() != Ok(std::process::id()) {
        return None;
    }
    let promised: u64 = environment::text("LISTEN_FDS")?.parse().ok()?;
    let most = getrlimit(Resource::Nofile).current?;
    (promised > most).then(|| usize::try_from(most).unwrap_or(usize::MAX))
}

/// The names in the environment, which sd-notify does not give where a descriptor is not open.
fn names_as_written() -> Vec<String> {
    let names = environment::text("LISTEN_FDNAMES").unwrap_or_default();
    names.split(':').map(str::to_owned).collect()
}

/// Takes a descriptor of any kind, to be closed on exec(3) as the others are.
#[expect(
    unsafe_code,
    reason = "a passed descriptor is a number and nothing else"
)]
fn take_any(descriptors: &mut ListenFd, number: usize) -> Option<OwnedFd> {
    let raw = descriptors.take_raw_fd(number).ok()??;
    // SAFETY: the descriptor was passed to this process, and `descriptors` does not own it any more, so
    // there is no other owner.  If it is not open, it is released below without a close.
    let taken = unsafe { OwnedFd::from_raw_fd(raw) };
    // An error means that it is not open.
    match rustix::io::fcntl_setfd(&taken, rustix::io::FdFlags::CLOEXEC) {
        Ok(()) => Some(taken),
        Err(_) => {
            let _ = taken.into_raw_fd();
            None
        }
    }
}

/// Takes a descriptor if it is a stream socket.
fn take_stream(descriptors: &mut ListenFd, number: usize) -> Option<(Domain, OwnedFd)> {
    // listenfd takes a socket of IPv6 for one of IPv4 here.
    [Domain::IPV4, Domain::UNIX].into_iter().find_map(|domain| {
        let taken: io::Result<Option<OwnedFd>> =
            descriptors.take_custom(number, domain.into(), libc::SOCK_STREAM, "stream socket");
        taken.ok().flatten().map(|socket| (domain, socket))
    })
}

/// What a descriptor is that is not a stream socket, with an article.
fn kind_of(descriptors: &mut ListenFd, number: usize) -> String {
    let kinds = [
        (libc::SOCK_DGRAM, "a datagram socket"),
        (libc::SOCK_SEQPACKET, "a sequential-packet socket"),
        (libc::SOCK_RAW, "a raw socket"),
    ];
    for (kind, words) in kinds {
        for domain in [
            libc::AF_INET,
            libc::AF_UNIX,
            libc::AF_NETLINK,
            libc::AF_VSOCK,
        ] {
            let taken: io::Result<Option<OwnedFd>> =
                descriptors.take_custom(number, domain, kind, words);
            if let Ok(Some(_)) = taken {
                return words.into();
            }
        }
    }
    match std::fs::read_link(format!("/proc/self/fd/{}", number + 3)) {
        Ok(path) => format!("not a stream socket ({})", path.display()),
        Err(_) => "not open".into(),
    }
}
