//! Socket options, and what else the kernel knows about a socket.
//!
//! Options are set on the listener, and accepted sockets inherit them, so a connection costs no system
//! call for them.  A connection that was complete before an option was set does not have it,
//! and a Unix socket inherits nothing: for those `apply` is called on the accepted socket.
//!
//! An option that the kernel refuses is a [`Refused`], which is logged as a warning: a service that
//! echoes without a special buffer size is of more use than one that does not start.

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::{Domain, SockRef, TcpKeepalive};

use super::tcp_info::{TcpInfo, field};
use crate::config::Options;
use crate::config::units::{OrAuto, OrOff, Size};

/// An option that could not be set.
#[derive(Debug)]
pub struct Refused {
    /// Its key in the configuration.
    pub option: &'static str,
    /// The error of setsockopt(2).
    pub error: io::Error,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { option, error } = self;
        match (*option, error.raw_os_error()) {
            ("congestion", Some(libc::ENOENT | libc::EPERM)) => write!(
                f,
                "{option} stays as it was: this kernel does not offer it to us \
                 (net.ipv4.tcp_available_congestion_control, net.ipv4.tcp_allowed_congestion_control)"
            ),
            _ => write!(f, "{option} stays as it was: {error}"),
        }
    }
}

/// Sets the options that can be set on a socket at any time, whether it listens or is connected;
/// returns those that the kernel refused.  An option that `options` does not name stays as it is,
/// except for `SO_OOBINLINE` and `SO_LINGER`, on which the echo depends.
pub(crate) fn apply(socket: &impl AsFd, options: &Options) -> Vec<Refused> {
    let socket = SockRef::from(socket);
    let mut refused = Vec::new();
    let mut check = |option, result: io::Result<()>| {
        if let Err(error) = result {
            refused.push(Refused { option, error });
        }
    };
    let bytes = |size: u64| {
        usize::try_from(size)
            .unwrap_or(usize::MAX)
            .min(i32::MAX as usize / 2)
    };
    // Urgent bytes stay at their place in the stream; otherwise a read skips them (tcp(7)).
    check("oobinline", socket.set_out_of_band_inline(true));
    // A close that waits (socket(7)) would hold up all other connections.
    check("linger", socket.set_linger(None));
    if let Some(OrAuto(Some(Size(size)))) = options.receive_buffer {
        check("receive-buffer", socket.set_recv_buffer_size(bytes(size)));
    }
    if let Some(OrAuto(Some(Size(size)))) = options.send_buffer {
        check("send-buffer", socket.set_send_buffer_size(bytes(size)));
    }
    let Some(domain) = domain(&socket) else {
        return refused;
    };
    if domain == Domain::UNIX {
        return refused;
    }
    if let Some(on) = options.nodelay {
        check("nodelay", socket.set_tcp_nodelay(on));
    }
    if let Some(on) = options.quickack {
        check("quickack", socket.set_tcp_quickack(on));
    }
    check("keepalive", keepalive(&socket, options));
    if let Some(OrOff(span)) = options.user_timeout {
        check(
            "user-timeout",
            // The kernel takes milliseconds in an int, and zero switches the time-out off.
            socket.set_tcp_user_timeout(span.map(|span| {
                let most = Duration::from_millis(i32::MAX as u64);
                span.0.clamp(Duration::from_millis(1), most)
            })),
        );
    }
    if let Some(OrOff(size)) = options.notsent_lowat {
        // Zero stands for the default of the kernel, net.ipv4.tcp_notsent_lowat.
        let size = size.map_or(0, |Size(size)| u32::try_from(size).unwrap_or(u32::MAX));
        check("notsent-lowat", socket.set_tcp_notsent_lowat(size));
    }
    if let Some(congestion) = &options.congestion {
        check(
            "congestion",
            socket.set_tcp_congestion(congestion.0.as_bytes()),
        );
    }
    if let Some(dscp) = options.dscp {
        // The two low bits belong to ECN (RFC 3168).
        let tos = dscp.0 << 2;
        if domain == Domain::IPV6 {
            check("dscp", socket.set_tclass_v6(tos));
            if !socket.only_v6().unwrap_or(true) {
                check("dscp", socket.set_tos_v4(tos));
            }
        } else {
            check("dscp", socket.set_tos_v4(tos));
        }
    }
    refused
}

/// Sets the options of keepalive (tcp(7)).
fn keepalive(socket: &SockRef<'_>, options: &Options) -> io::Result<()> {
    let mut times = TcpKeepalive::new();
    let mut named = false;
    if let Some(idle) = options.keepalive_idle {
        times = times.with_time(idle.0);
        named = true;
    }
    if let Some(interval) = options.keepalive_interval {
        times = times.with_interval(interval.0);
        named = true;
    }
    if let Some(probes) = options.keepalive_probes {
        times = times.with_retries(probes.0);
        named = true;
    }
    if named {
        // socket2 switches keepalive on together with the times, which was not asked for.
        let on = socket.keepalive()?;
        socket.set_tcp_keepalive(&times)?;
        socket.set_keepalive(on)?;
    }
    options
        .keepalive
        .map_or(Ok(()), |on| socket.set_keepalive(on))
}

/// The accept queue of a listener (listen(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The connections that wait in it.
    pub depth: u32,
    /// The backlog as the kernel has it; one connection more may wait.
    pub limit: u32,
    /// The handshakes that the kernel has dropped since the socket was opened, most of them because the
    /// queue was full; `None`: the kernel does not report it.
    pub drops: Option<u32>,
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} waiting", self.depth, self.limit)?;
        self.drops
            .map_or(Ok(()), |drops| write!(f, " and {drops} dropped"))
    }
}

/// Reads the accept queue of a TCP listener (`TCP_INFO`, tcp(7)); `None` for any other socket.
pub fn accept_queue(socket: &impl AsFd) -> Option<Queue> {
    if !SockRef::from(socket).is_listener().unwrap_or(false) {
        return None;
    }
    let info = TcpInfo::of(socket).ok()?;
    // In state LISTEN the two fields hold the queue (net/ipv4/tcp.c, tcp_get_info).
    let number = |field| u32::try_from(info.get(field)?).ok();
    Some(Queue {
        depth: number(field::UNACKED)?,
        limit: number(field::SACKED)?,
        drops: drops(socket),
    })
}

/// Reads how many packets the kernel has dropped at a socket (`SO_MEMINFO`, since Linux 4.12).
#[expect(unsafe_code, reason = "no crate in the tree gives SO_MEMINFO")]
fn drops(socket: &impl AsFd) -> Option<u32> {
    /// The numbers of the array up to the one that is needed (linux/sock_diag.h).
    const COUNT: usize = libc::SK_MEMINFO_DROPS as usize + 1;
    let mut info = [0_u32; COUNT];
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).ok()?;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which is plain data.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0 && length as usize == size_of_val(&info)).then_some(info[COUNT - 1])
}

/// How long sent bytes may stay unacknowledged on a connection that was ended and that another
/// descriptor refers to: about as long as the kernel waits where none does (`tcp_orphan_retries` of
/// tcp(7)).
const OVER: Duration = Duration::from_secs(60);

/// Ends a stream in both directions although another descriptor refers to it, as close(2) would end
/// one: by a reset if bytes are unread or `given_up`, otherwise by a FIN behind the bytes that were
/// sent.
///
/// With shutdown(2) alone both queues would remain in the kernel as long as the other descriptor does,
/// and a peer that does not read would be probed without end.  connect(2) to an address of family
/// `AF_UNSPEC` resets the connection and empties the queues.
pub(crate) fn end(socket: &impl AsFd, given_up: bool) {
    let is_tcp = domain(&SockRef::from(socket)) != Some(Domain::UNIX);
    let unread = || rustix::io::ioctl_fionread(socket).is_ok_and(|count| count > 0);
    if is_tcp && (given_up || unread()) && rustix::net::connect_unspec(socket).is_ok() {
        return;
    }
    // An error means that the connection was over already.
    let _ = SockRef::from(socket).shutdown(Shutdown::Both);
    if is_tcp && unacknowledged(socket) > 0 {
        let asked = SockRef::from(socket).tcp_user_timeout().ok().flatten();
        let span = asked.map_or(OVER, |asked| asked.min(OVER));
        // Multipath TCP refuses it: then the send queue remains until the next rotation of the
        // descriptor queue closes the other descriptor.
        let _ = SockRef::from(socket).set_tcp_user_timeout(Some(span));
    }
}

/// The process at the other end of a Unix stream, as it was when it connected or called listen(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The process id; `None`: it is not in the PID namespace of this process (pid_namespaces(7)).
    pub pid: Option<u32>,
    /// The effective user id.
    pub uid: u32,
}

/// Reads the credentials of the peer of a Unix stream (`SO_PEERCRED`, unix(7)); `None` if the kernel
/// does not know them.
#[expect(
    unsafe_code,
    reason = "of rustix, a process id cannot be zero, as it is for one of another namespace"
)]
pub(crate) fn credentials(socket: &impl AsFd) -> Option<Credentials> {
    let mut found = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = libc::socklen_t::try_from(size_of_val(&found)).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes into `found`, which is plain data.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut length,
        )
    };
    // The kernel gives user id -1 where it does not know the peer.
    (result == 0 && found.uid != u32::MAX).then_some(Credentials {
        pid: u32::try_from(found.pid).ok().filter(|pid| *pid > 0),
        uid: found.uid,
    })
}

/// The bytes in the send queue of a TCP socket that the peer has not acknowledged (`SIOCOUTQ`, tcp(7)),
/// where an unacknowledged FIN counts as one; zero if the kernel does not report it.
pub fn unacknowledged(socket: &impl AsFd) -> u64 {
    queued(socket, libc::TIOCOUTQ).unwrap_or(0)
}

/// The bytes in the send queue of a TCP socket that were not sent yet (`SIOCOUTQNSD` of
/// linux/sockios.h); `None` if the kernel does not report it.
pub(crate) fn unsent(socket: &impl AsFd) -> Option<u64> {
    const SIOCOUTQNSD: libc::Ioctl = 0x894b;
    queued(socket, SIOCOUTQNSD)
}

/// The number of bytes that a request of ioctl(2) reports.
#[expect(unsafe_code, reason = "no crate in the tree gives these requests")]
fn queued(socket: &impl AsFd, request: libc::Ioctl) -> Option<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int to the address that the last argument gives.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request, &raw mut bytes) };
    if result == 0 {
        u64::try_from(bytes).ok()
    } else {
        None
    }
}

/// Sets the offset in bytes at which the next recv(2) with `MSG_PEEK` reads the queue of a Unix socket
/// (`SO_PEEK_OFF`, socket(7)); each such call moves it on.
///
/// # Errors
/// Those of setsockopt(2).
pub(crate) fn set_peek_offset(socket: &impl AsFd, offset: libc::c_int) -> io::Result<()> {
    set_number(socket, libc::SO_PEEK_OFF, offset)
}

/// Sets an option of level `SOL_SOCKET` (socket(7)) that takes an int.
///
/// # Errors
/// Those of setsockopt(2).
#[expect(unsafe_code, reason = "no crate in the tree gives such an option")]
pub(super) fn set_number(
    socket: &impl AsFd,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    // SAFETY: the kernel reads one int from the address that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The address family of a socket; `None` if the kernel does not report it.
#[must_use]
pub(crate) fn domain(socket: &SockRef<'_>) -> Option<Domain> {
    socket.domain().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::config::units::{Count, Seconds, Span, size};
    use crate::sys::kernel::Kernel;
    use crate::sys::option_report::{Row, read_back};

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn find<'a>(rows: &'a [Row], option: &str) -> &'a Row {
        rows.iter().find(|row| row.option == option).unwrap()
    }

    #[test]
    fn an_option_that_is_not_named_stays_as_it_is() {
        let socket = listener();
        let reference = SockRef::from(&socket);
        reference.set_keepalive(true).unwrap();
        reference.set_tcp_nodelay(true).unwrap();
        reference.set_tos_v4(0x28).unwrap();
        let before = read_back(&socket, &Options::default(), &Kernel::default());
        assert!(apply(&socket, &Options::default()).is_empty());
        let after = read_back(&socket, &Options::default(), &Kernel::default());
        assert_eq!(before, after);
    }

    #[test]
    fn the_times_of_keepalive_switch_it_neither_on_nor_off() {
        for on in [false, true] {
            let socket = listener();
            let reference = SockRef::from(&socket);
            reference.set_keepalive(on).unwrap();
            let times = Options {
                keepalive_idle: Some(Seconds(Duration::from_secs(7))),
                keepalive_interval: Some(Seconds(Duration::from_secs(8))),
                keepalive_probes: Some(Count(9)),
                ..Options::default()
            };
            assert!(apply(&socket, &times).is_empty());
            assert_eq!(reference.keepalive().unwrap(), on);
            assert_eq!(
                (
                    reference.tcp_keepalive_time().unwrap().as_secs(),
                    reference.tcp_keepalive_interval().unwrap().as_secs(),
                    reference.tcp_keepalive_retries().unwrap()
                ),
                (7, 8, 9)
            );
        }
    }

    #[test]
    fn the_built_in_options_are_read_back_as_they_were_asked() {
        let socket = listener();
        let options = Options::built_in();
        assert!(apply(&socket, &options).is_empty());
        let rows = read_back(&socket, &options, &Kernel::default());
        for option in [
            "nodelay",
            "quickack",
            "keepalive",
            "keepalive-idle",
            "keepalive-interval",
            "keepalive-probes",
            "user-timeout",
            "notsent-lowat",
            "dscp",
        ] {
            let row = find(&rows, option);
            assert_eq!(row.asked, row.effective, "{option}");
        }
    }

    #[test]
    fn a_buffer_size_beyond_the_limit_of_the_kernel_is_reported_with_that_limit() {
        let kernel = Kernel::read();
        let (Some(receive), Some(send)) = (kernel.rmem_max, kernel.wmem_max) else {
            return;
        };
        let socket = listener();
        let options = Options {
            receive_buffer: Some(OrAuto(Some(Size(receive + 1)))),
            send_buffer: Some(OrAuto(Some(Size(send + 1)))),
            ..Options::default()
        };
        apply(&socket, &options);
        let rows = read_back(&socket, &options, &kernel);
        for (option, name, most) in [
            ("receive-buffer", "rmem_max", receive),
            ("send-buffer", "wmem_max", send),
        ] {
            let row = find(&rows, option);
            assert!(
                row.note
                    .contains(&format!("limited by net.core.{name} = {most}")),
                "{row:?}"
            );
            assert_eq!(row.effective, size(2 * most), "{row:?}");
        }
    }

    #[test]
    fn an_option_that_the_kernel_refuses_is_named_and_the_others_are_set() {
        let socket = listener();
        let options = Options {
            congestion: Some(crate::config::units::Congestion("nonesuch".into())),
            user_timeout: Some(OrOff(Some(Span(Duration::from_secs(5))))),
            dscp: Some(Count(10)),
            ..Options::default()
        };
        let refused = apply(&socket, &options);
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(refused[0].option, "congestion");
        let reference = SockRef::from(&socket);
        assert_eq!(
            reference.tcp_user_timeout().unwrap(),
            Some(Duration::from_secs(5))
        );
        assert_eq!(reference.tos_v4().unwrap(), 40);
    }

    #[test]
    fn a_user_timeout_below_a_millisecond_does_not_switch_it_off() {
        let socket = listener();
        let options = Options {
            user_timeout: Some(OrOff(Some(Span(Duration::from_micros(100))))),
            ..Options::default()
        };
        assert!(apply(&socket, &options).is_empty());
        assert_eq!(
            SockRef::from(&socket).tcp_user_timeout().unwrap(),
            Some(Duration::from_millis(1))
        );
    }

    #[test]
    fn a_unix_socket_accepts_all_options_and_has_no_accept_queue_to_read() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(apply(&one, &Options::built_in()).is_empty());
        assert_eq!(accept_queue(&one), None);
    }

    #[test]
    fn only_a_listener_has_an_accept_queue() {
        let socket = listener();
        let address = socket.local_addr().unwrap();
        let queue = accept_queue(&socket).unwrap();
        assert_eq!((queue.depth, queue.drops), (0, Some(0)));
        assert!(queue.limit > 0);
        let client = std::net::TcpStream::connect(address).unwrap();
        assert_eq!(accept_queue(&client), None);
        drop(socket.accept().unwrap());
    }

    #[test]
    fn a_full_accept_queue_drops_callers_and_reports_how_many() {
        let socket = socket2::Socket::new(Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        socket.listen(1).unwrap();
        let address = socket.local_addr().unwrap();
        let _callers: Vec<_> = (0..8)
            .map(|_| {
                let caller =
                    socket2::Socket::new(Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                caller.set_nonblocking(true).unwrap();
                let _ = caller.connect(&address);
                caller
            })
            .collect();
        let queue = accept_queue(&socket).unwrap();
        // The kernel lets one more wait than the backlog says.
        assert_eq!((queue.depth, queue.limit), (2, 1));
        assert!(queue.drops > Some(0), "{queue:?}");
        let rows = read_back(&socket, &Options::default(), &Kernel::default());
        assert!(find(&rows, "backlog").note.contains("dropped"), "{rows:?}");
    }
}
