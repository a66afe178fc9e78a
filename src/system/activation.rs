//! Sockets that were passed to us, sd_listen_fds(3): taken by name and kind, never by number.
//!
//! The order of the descriptors differs between versions of systemd, so the number says nothing.
//! sd-notify knows the names, listenfd the descriptors; it also removes `LISTEN_PID` and
//! `LISTEN_FDS` from the environment.  Both are asked before any thread and any other descriptor
//! exists.
//!
//! A listening stream socket is a listener, a connected one is a conversation (a unit with
//! `Accept=yes`).  Anything else is a mistake in the configuration, refused with its number, name
//! and kind.

use std::fmt;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use listenfd::ListenFd;
use rustix::process::{Resource, getrlimit};
use socket2::{Domain, SockRef};

/// Descriptors of these names are ours: what a predecessor has left with the service manager.
const RESERVED: &str = "survival-";

/// The name of a descriptor that has none, as sd_listen_fds_with_names(3) gives it.
const NAMELESS: &str = "unknown";

/// What was passed.
#[derive(Debug, Default)]
pub struct Passed {
    /// Listening sockets, by name; names need not be unique.
    pub listeners: Vec<(String, ListenSocket)>,
    /// Connected sockets, by name.
    pub connections: Vec<(String, StreamSocket)>,
    /// Descriptors of reserved names, of whatever kind.
    pub reserved: Vec<(String, OwnedFd)>,
    /// Why descriptors that the environment promises are not taken.
    pub ignored: Option<String>,
}

/// A listening socket.
#[derive(Debug)]
pub enum ListenSocket {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpListener),
    /// A Unix stream socket.
    Unix(UnixListener),
}

/// A connected socket.
#[derive(Debug)]
pub enum StreamSocket {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpStream),
    /// A Unix stream socket.
    Unix(UnixStream),
}

/// A descriptor that cannot be served.
#[derive(Debug)]
pub struct Stranger {
    number: usize,
    name: String,
    kind: String,
}

impl fmt::Display for Stranger {
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

/// Takes all passed descriptors, once.
///
/// # Errors
/// The first one that cannot be served.
pub fn take() -> Result<Passed, Stranger> {
    if let Some(why) = misaddressed() {
        return Ok(Passed {
            ignored: Some(why),
            ..Passed::default()
        });
    }
    if let Some(number) = beyond_all_limits() {
        let kind = "not open: no process may have so many".into();
        return Err(Stranger {
            number,
            name: NAMELESS.into(),
            kind,
        });
    }
    // An error here means that the names are of no use, or that a descriptor is not open; what is
    // wrong with that one is told with its name.
    let names = sd_notify::listen_fds_with_names()
        .map(|fds| fds.map(|(_, name)| name).collect())
        .unwrap_or_else(|_| names_as_written());
    let mut descriptors = ListenFd::from_env();
    // As many names as descriptors, or nobody knows whose they are.
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
        let stranger = |kind: String| Stranger {
            number,
            name: name.clone(),
            kind,
        };
        if name.starts_with(RESERVED) {
            let taken = take_any(&mut descriptors, number);
            passed.reserved.extend(taken.map(|taken| (name, taken)));
            continue;
        }
        let taken = take_stream(&mut descriptors, number);
        let Some((domain, socket)) = taken else {
            return Err(stranger(kind_of(&mut descriptors, number)));
        };
        let socket_ref = SockRef::from(&socket);
        let listening = socket_ref.is_listener().unwrap_or(false);
        // A peer that has reset its connection meanwhile leaves an error behind; that was one.
        let was_connected = || matches!(socket_ref.take_error(), Ok(Some(_)));
        if !listening && socket_ref.peer_addr().is_err() && !was_connected() {
            return Err(stranger(
                "a stream socket that neither listens nor is connected".into(),
            ));
        }
        // It belongs to the open socket, not to us: systemd passes it blocking.
        socket_ref
            .set_nonblocking(true)
            .map_err(|error| stranger(format!("unusable: {error}")))?;
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

/// Why `LISTEN_FDS` cannot be meant for this process: sd_listen_fds(3) wants its id in `LISTEN_PID`.
/// With the id of another process it was inherited, which is no mistake.
fn misaddressed() -> Option<String> {
    let promised = std::env::var("LISTEN_FDS")
        .ok()
        .filter(|fds| !fds.is_empty())?;
    match std::env::var("LISTEN_PID") {
        Ok(pid) if pid.parse::<u32>().is_ok() => None,
        Ok(pid) => Some(format!(
            "LISTEN_FDS is {promised:?}, and LISTEN_PID is {pid:?}, which is no process id"
        )),
        Err(_) => Some(format!(
            "LISTEN_FDS is {promised:?}, and LISTEN_PID, the process they are for, is not set"
        )),
    }
}

/// The first number that `LISTEN_FDS` promises and that cannot be open: listenfd would make a list
/// of them all before anybody could look.
fn beyond_all_limits() -> Option<usize> {
    let pid = std::env::var("LISTEN_PID").unwrap_or_default();
    if pid.parse() != Ok(std::process::id()) {
        return None;
    }
    let promised: u64 = std::env::var("LISTEN_FDS").ok()?.parse().ok()?;
    let most = getrlimit(Resource::Nofile).current?;
    (promised > most).then(|| usize::try_from(most).unwrap_or(usize::MAX))
}

fn names_as_written() -> Vec<String> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    names.split(':').map(str::to_owned).collect()
}

/// Takes a descriptor of whatever kind, closed on exec(3) as the others.
#[expect(
    unsafe_code,
    reason = "a passed descriptor is a number and nothing else"
)]
fn take_any(descriptors: &mut ListenFd, number: usize) -> Option<OwnedFd> {
    let raw = descriptors.take_raw_fd(number).ok()??;
    // SAFETY: it was passed to this process, and taken from those just now: nobody else here has
    // it.  One that is not open makes every call on it fail, its close included.
    let taken = unsafe { OwnedFd::from_raw_fd(raw) };
    // Failing means that it is not open.
    match rustix::io::fcntl_setfd(&taken, rustix::io::FdFlags::CLOEXEC) {
        Ok(()) => Some(taken),
        Err(_) => {
            let _ = taken.into_raw_fd();
            None
        }
    }
}

fn take_stream(descriptors: &mut ListenFd, number: usize) -> Option<(Domain, OwnedFd)> {
    // listenfd takes IPv6 for IPv4 here.
    [Domain::IPV4, Domain::UNIX].into_iter().find_map(|domain| {
        let taken: io::Result<Option<OwnedFd>> =
            descriptors.take_custom(number, domain.into(), libc::SOCK_STREAM, "stream socket");
        taken.ok().flatten().map(|socket| (domain, socket))
    })
}

/// Finds words for a descriptor that is no stream socket.
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
