//! The facts of the kernel that the design rests on, each on real sockets.
//!
//! Every test says which rule of the program would have to change if it failed: then the kernel
//! has changed, and not the program.  What is awaited has a deadline; that something does *not*
//! come is taken for a fact after a tenth of a second, as over loopback it would have come at once.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::{Events, Interest, Poll, Token};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use socket2::{SockRef, TcpKeepalive};
use tcp_echo::sys::sockopt::accept_queue;
use testkit::{Folder, SOON, connect, eventually, listener, reset};

/// How long a test waits for what should not come.
const NEVER: Duration = Duration::from_millis(100);

/// What the server registers for input.
const INPUT: Interest = Interest::READABLE.add(Interest::PRIORITY);

/// One announcement, as far as the program uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    readable: bool,
    writable: bool,
    read_closed: bool,
    write_closed: bool,
    priority: bool,
    error: bool,
}

/// A poll with one source in it.
struct Ear {
    poll: Poll,
    events: Events,
}

impl Ear {
    fn new() -> Self {
        Self {
            poll: Poll::new().unwrap(),
            events: Events::with_capacity(16),
        }
    }

    fn on(source: &mut impl Source, interest: Interest) -> Self {
        let ear = Self::new();
        ear.poll
            .registry()
            .register(source, Token(7), interest)
            .unwrap();
        ear
    }

    fn again(&self, source: &mut impl Source, interest: Interest) {
        self.poll
            .registry()
            .reregister(source, Token(7), interest)
            .unwrap();
    }

    fn hear(&mut self, within: Duration) -> Option<Seen> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.poll.poll(&mut self.events, Some(left)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result.unwrap(),
            }
            let mut events = self.events.iter();
            let Some(event) = events.next() else {
                if left.is_zero() {
                    return None;
                }
                continue;
            };
            assert_eq!(event.token(), Token(7));
            assert!(events.next().is_none(), "one source, one event");
            return Some(Seen {
                readable: event.is_readable(),
                writable: event.is_writable(),
                read_closed: event.is_read_closed(),
                write_closed: event.is_write_closed(),
                priority: event.is_priority(),
                error: event.is_error(),
            });
        }
    }

    #[track_caller]
    fn hears(&mut self) -> Seen {
        self.hear(SOON).expect("nothing was announced")
    }

    #[track_caller]
    fn hears_nothing(&mut self) {
        assert_eq!(self.hear(NEVER), None);
    }
}

/// A connection over loopback: the client, and the server's end as mio has it.
fn pair() -> (TcpStream, mio::net::TcpStream) {
    let listener = listener();
    let client = connect(listener.local_addr().unwrap());
    let (server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    (client, mio::net::TcpStream::from_std(server))
}

/// Whether poll(2) says all of this about a socket, in time.
fn comes(socket: &impl AsFd, flags: PollFlags, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    loop {
        let mut polled = [PollFd::new(socket, flags)];
        let soon = Timespec {
            tv_sec: 0,
            tv_nsec: 2_000_000,
        };
        // An interruption (EINTR) announces nothing.
        let _ = rustix::event::poll(&mut polled, Some(&soon));
        if polled[0].revents().contains(flags) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
    }
}

/// Waits until something has arrived that an event will then speak of.
#[track_caller]
fn arrived(socket: &impl AsFd, flags: PollFlags) {
    assert!(comes(socket, flags, SOON), "{flags:?} did not come");
}

fn read(mut stream: impl Read) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 64];
    stream
        .read(&mut buffer)
        .map(|count| buffer[..count].to_vec())
}

/// Writes until both queues are full and stay so.
fn fill(stream: &mut mio::net::TcpStream) {
    let block = vec![7; 1 << 20];
    loop {
        match stream.write(&block) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // Loopback may still be moving bytes from one queue to the other.
                if !comes(stream, PollFlags::OUT, NEVER) {
                    return;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn would_block<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Sends bytes, and descriptors with the first of them.
fn send_with(socket: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    let sent = sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::empty(),
    );
    assert_eq!(sent.unwrap(), bytes.len());
}

// What is announced.

/// The rule: `Outcome::Rearm`.  A connection that changes its want need not try first.
#[test]
fn registration_anew_announces_again_what_is_there() {
    let (mut client, mut server) = pair();
    let mut ear = Ear::on(&mut server, INPUT);
    client.write_all(b"x").unwrap();
    assert!(ear.hears().readable);
    ear.hears_nothing();
    ear.again(&mut server, INPUT);
    assert!(ear.hears().readable);
    ear.again(&mut server, Interest::WRITABLE);
    let seen = ear.hears();
    assert!(seen.writable && !seen.readable);
}

/// The rule: `Hint::ReadOn` on an event that says `is_read_closed`.
#[test]
fn data_and_fin_before_the_poll_are_one_announcement() {
    let (mut client, mut server) = pair();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    arrived(&server, PollFlags::IN | PollFlags::RDHUP);
    let mut ear = Ear::on(&mut server, INPUT);
    let seen = ear.hears();
    assert!(seen.readable && seen.read_closed);
    assert_eq!(read(&server).unwrap(), b"hello", "a short read");
    ear.hears_nothing();
    assert_eq!(read(&server).unwrap(), b"");
}

/// The rule: two system calls a message.  What comes after a short read is announced.
#[test]
fn what_arrives_after_a_short_read_is_announced() {
    let (mut client, mut server) = pair();
    let mut ear = Ear::on(&mut server, INPUT);
    for message in [b"one", b"two"] {
        client.write_all(message).unwrap();
        assert!(ear.hears().readable);
        assert_eq!(read(&server).unwrap(), message);
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert!(ear.hears().read_closed);
}

/// The rule: `State` of a listener.  Callers that a burst leaves behind are not announced again.
#[test]
fn callers_are_announced_once() {
    let listener = listener();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = mio::net::TcpListener::from_std(listener);
    let _clients = [connect(address), connect(address)];
    eventually(SOON, "two callers", || {
        (accept_queue(&server)?.depth == 2).then_some(())
    });
    let mut ear = Ear::on(&mut server, Interest::READABLE);
    assert!(ear.hears().readable);
    server.accept().unwrap();
    ear.hears_nothing();
    server.accept().unwrap();
    assert!(would_block(server.accept()));
    // A later caller is announced.
    let _late = connect(address);
    assert!(ear.hears().readable);
}

/// The rule: `Hint::ReadOn` on an event that says `is_priority`, and SO_OOBINLINE.
#[test]
fn a_read_stops_at_the_urgent_mark_and_the_rest_is_not_announced() {
    let (mut client, mut server) = pair();
    SockRef::from(&server).set_out_of_band_inline(true).unwrap();
    client.write_all(b"abc").unwrap();
    let urgent = SockRef::from(&client).send_out_of_band(b"!").unwrap();
    assert_eq!(urgent, 1);
    client.write_all(b"def").unwrap();
    arrived(&server, PollFlags::IN | PollFlags::PRI);
    eventually(SOON, "the rest did not arrive", || {
        (rustix::io::ioctl_fionread(&server).unwrap() == 7).then_some(())
    });
    let mut ear = Ear::on(&mut server, INPUT);
    let seen = ear.hears();
    assert!(seen.readable && seen.priority);
    assert_eq!(read(&server).unwrap(), b"abc", "it stops at the mark");
    ear.hears_nothing();
    let mut rest = Vec::new();
    while rest.len() < 4 {
        rest.extend(read(&server).unwrap());
    }
    assert_eq!(rest, b"!def", "in line");
}

/// The rule: SO_OOBINLINE is always set.  Without it the echo would have a hole.
#[test]
fn urgent_data_is_taken_out_of_the_stream_unless_it_is_in_line() {
    let (mut client, server) = pair();
    client.write_all(b"abc").unwrap();
    SockRef::from(&client).send_out_of_band(b"!").unwrap();
    client.write_all(b"def").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    arrived(&server, PollFlags::IN | PollFlags::RDHUP);
    loop {
        match read(&server).unwrap() {
            bytes if bytes.is_empty() => break,
            bytes => all.extend(bytes),
        }
    }
    assert_eq!(all, b"abcdef");
}

/// The rule: `Duplex::stops_short` of a Unix stream.
#[test]
fn a_read_from_a_unix_stream_stops_behind_passed_descriptors() {
    let (client, server) = UnixStream::pair().unwrap();
    server.set_nonblocking(true).unwrap();
    let mut server = mio::net::UnixStream::from_std(server);
    send_with(&client, b"abc", &[client.as_fd()]);
    (&client).write_all(b"def").unwrap();
    let mut ear = Ear::on(&mut server, INPUT);
    let seen = ear.hears();
    assert!(
        seen.readable && !seen.read_closed && !seen.priority,
        "no hint"
    );
    assert_eq!(read(&server).unwrap(), b"abc", "a short read");
    ear.hears_nothing();
    assert_eq!(read(&server).unwrap(), b"def");
}

/// The rule: one interest at a time.  A reset is announced also with interest in room alone.
#[test]
fn a_reset_is_announced_under_interest_in_room_alone() {
    let (client, mut server) = pair();
    fill(&mut server);
    let mut ear = Ear::on(&mut server, Interest::WRITABLE);
    ear.hears_nothing();
    reset(client);
    let seen = ear.hears();
    assert!(seen.error && seen.write_closed, "{seen:?}");
    let error = server.write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// The rule: the peer's FIN is not the end of what it is owed.
#[test]
fn half_close_is_not_a_hang_up() {
    let (client, mut server) = pair();
    let mut ear = Ear::on(&mut server, INPUT);
    client.shutdown(Shutdown::Write).unwrap();
    let seen = ear.hears();
    assert!(seen.read_closed && !seen.write_closed && !seen.error);
    assert_eq!(server.write(b"still here").unwrap(), 10);
    assert_eq!(read(&client).unwrap(), b"still here");
}

/// The rule: a peer that has finished and does not read costs no processor time.
#[test]
fn a_fin_is_not_announced_under_interest_in_room_alone() {
    let (client, mut server) = pair();
    fill(&mut server);
    let mut ear = Ear::on(&mut server, Interest::WRITABLE);
    client.shutdown(Shutdown::Write).unwrap();
    arrived(&server, PollFlags::RDHUP);
    ear.hears_nothing();
    // It is announced as an end as soon as there is interest in input again.
    ear.again(&mut server, INPUT);
    assert!(ear.hears().read_closed);
}

/// The rule: after a short write we wait; a second write, which would block, is not needed.
#[test]
fn room_is_announced_after_a_short_write() {
    for anew in [true, false] {
        let (mut client, mut server) = pair();
        let mut ear = Ear::on(&mut server, INPUT);
        if !anew {
            // It waits for room already, which was announced.
            ear.again(&mut server, Interest::WRITABLE);
            assert!(ear.hears().writable);
        }
        let block = vec![7; 64 << 20];
        let count = server.write(&block).unwrap();
        assert!(0 < count && count < block.len(), "a short write");
        if anew {
            ear.again(&mut server, Interest::WRITABLE);
        }
        // Loopback may go on moving bytes between the two queues; then there is room already.
        let mut sink = vec![0; 1 << 20];
        let mut left = count;
        while left > 0 {
            left -= client.read(&mut sink).unwrap();
        }
        assert!(ear.hears().writable, "registered anew: {anew}");
        assert!(server.write(b"more").is_ok());
    }
}

/// The rule: the process that passed a connection may hold it still, so it is deregistered before it is
/// closed.
#[test]
fn a_registration_lasts_as_long_as_a_duplicate() {
    let (mut client, mut server) = pair();
    let duplicate: OwnedFd = server.as_fd().try_clone_to_owned().unwrap();
    let mut ear = Ear::on(&mut server, INPUT);
    drop(server);
    client.write_all(b"x").unwrap();
    assert!(ear.hears().readable, "a ghost");
    // The close of the last descriptor ends the registration.
    drop(duplicate);
    let _ = client.write_all(b"x");
    ear.hears_nothing();
}

/// The rule: a socket with no other descriptor is closed without EPOLL_CTL_DEL.
#[test]
fn a_close_ends_a_registration() {
    let (mut client, mut server) = pair();
    let mut ear = Ear::on(&mut server, INPUT);
    drop(server);
    let _ = client.write_all(b"x");
    ear.hears_nothing();
}

// How a connection ends.

/// The rule: lingering.  What is unread when we close destroys what is on its way to the peer.
#[test]
fn a_close_with_unread_input_resets() {
    for unread in [true, false] {
        let (mut client, server) = pair();
        client.write_all(b"x").unwrap();
        arrived(&server, PollFlags::IN);
        if !unread {
            assert_eq!(read(&server).unwrap(), b"x");
        }
        drop(server);
        let end = read(&client);
        if unread {
            assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        } else {
            assert_eq!(end.unwrap(), b"");
        }
    }
}

// What belongs to what.

/// The rule: a passed socket is made non-blocking, which changes it for every process that holds it.
#[test]
fn non_blocking_belongs_to_the_open_file() {
    let ours = listener();
    let theirs = ours.try_clone().unwrap();
    let blocks = |socket: &TcpListener| !fcntl_getfl(socket).unwrap().contains(OFlags::NONBLOCK);
    assert!(blocks(&ours) && blocks(&theirs));
    ours.set_nonblocking(true).unwrap();
    assert!(!blocks(&theirs));
    assert!(would_block(theirs.accept()));
    // But not to what is accepted (accept(2)).
    let _client = connect(ours.local_addr().unwrap());
    arrived(&ours, PollFlags::IN);
    let (accepted, _) = ours.accept().unwrap();
    assert!(!fcntl_getfl(&accepted).unwrap().contains(OFlags::NONBLOCK));
}

/// The rule: a connection is recognised by its cookie after it was passed from process to process.
#[test]
fn the_cookie_of_a_socket_is_the_same_after_passing() {
    let (client, server) = pair();
    let cookie = SockRef::from(&server).cookie().unwrap();
    assert_ne!(cookie, SockRef::from(&client).cookie().unwrap());
    let duplicate = server.as_fd().try_clone_to_owned().unwrap();
    assert_eq!(SockRef::from(&duplicate).cookie().unwrap(), cookie);

    let (here, there) = UnixStream::pair().unwrap();
    send_with(&here, b"x", &[server.as_fd()]);
    drop((server, duplicate));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        &there,
        &mut [io::IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    let passed: Vec<OwnedFd> = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
            _ => Vec::new(),
        })
        .collect();
    assert_eq!(passed.len(), 1);
    assert_eq!(SockRef::from(&passed[0]).cookie().unwrap(), cookie);
}

/// The options that the program sets on a listener, as values that are not the defaults.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    nodelay: bool,
    keepalive: bool,
    idle: Duration,
    interval: Duration,
    probes: u32,
    user_timeout: Option<Duration>,
    notsent_lowat: u32,
    oobinline: bool,
    tos: u32,
    congestion: Vec<u8>,
}

impl Options {
    fn of(socket: &impl AsFd) -> Self {
        let socket = SockRef::from(socket);
        Self {
            nodelay: socket.tcp_nodelay().unwrap(),
            keepalive: socket.keepalive().unwrap(),
            idle: socket.tcp_keepalive_time().unwrap(),
            interval: socket.tcp_keepalive_interval().unwrap(),
            probes: socket.tcp_keepalive_retries().unwrap(),
            user_timeout: socket.tcp_user_timeout().unwrap(),
            notsent_lowat: socket.tcp_notsent_lowat().unwrap(),
            oobinline: socket.out_of_band_inline().unwrap(),
            tos: socket.tos_v4().unwrap(),
            congestion: socket.tcp_congestion().unwrap(),
        }
    }
}

/// The rule: options are set on the listener, and on what it accepts only until the first
/// `WouldBlock` after they were set.
#[test]
fn options_are_inherited_but_not_by_handshakes_that_are_complete() {
    let listener = listener();
    let plain = Options::of(&listener);
    let address = listener.local_addr().unwrap();
    let _early = connect(address);
    eventually(SOON, "no handshake", || {
        (accept_queue(&listener)?.depth == 1).then_some(())
    });

    let socket = SockRef::from(&listener);
    socket.set_tcp_nodelay(true).unwrap();
    socket.set_out_of_band_inline(true).unwrap();
    socket
        .set_tcp_user_timeout(Some(Duration::from_secs(77)))
        .unwrap();
    socket.set_tcp_notsent_lowat(123_456).unwrap();
    socket.set_tos_v4(0x28).unwrap();
    let times = TcpKeepalive::new()
        .with_time(Duration::from_secs(300))
        .with_interval(Duration::from_secs(17))
        .with_retries(5);
    socket.set_tcp_keepalive(&times).unwrap();
    // The one that every kernel has; where it is the default this shows nothing, and nothing wrong.
    socket.set_tcp_congestion(b"reno").unwrap();
    let set = Options::of(&listener);
    assert_ne!(set, plain);
    assert!(set.congestion.starts_with(b"reno"));

    let _late = connect(address);
    let (early, _) = listener.accept().unwrap();
    let (late, _) = listener.accept().unwrap();
    assert_eq!(Options::of(&early), plain);
    assert_eq!(Options::of(&late), set);
}

/// The rule: buffer sizes are set before listen(2), and inherited.
#[test]
fn buffer_sizes_are_inherited_and_doubled() {
    let listener = listener();
    let socket = SockRef::from(&listener);
    socket.set_recv_buffer_size(30_000).unwrap();
    socket.set_send_buffer_size(40_000).unwrap();
    let _client = connect(listener.local_addr().unwrap());
    let (accepted, _) = listener.accept().unwrap();
    let accepted = SockRef::from(&accepted);
    assert_eq!(accepted.recv_buffer_size().unwrap(), 60_000);
    assert_eq!(accepted.send_buffer_size().unwrap(), 80_000);
}

/// The rule: TCP_QUICKACK is set again after each read.
#[test]
fn quick_acknowledgement_is_forgotten() {
    let (mut client, mut server) = pair();
    let quick = |stream: &mio::net::TcpStream| SockRef::from(stream).tcp_quickack().unwrap();
    SockRef::from(&server).set_tcp_quickack(true).unwrap();
    assert!(quick(&server));
    // Messages back and forth make the kernel delay acknowledgements again (tcp(7)).
    let forgotten = (0..100).any(|_| {
        client.write_all(b"ping").unwrap();
        arrived(&server, PollFlags::IN);
        assert_eq!(read(&server).unwrap(), b"ping");
        server.write_all(b"pong").unwrap();
        assert_eq!(read(&client).unwrap(), b"pong");
        !quick(&server)
    });
    assert!(forgotten);
    SockRef::from(&server).set_tcp_quickack(true).unwrap();
    assert!(quick(&server));
}

/// The rule: TCP_INFO reports how many callers wait, and how many may.
#[test]
fn a_listener_reports_its_accept_queue() {
    let listener = listener();
    rustix::net::listen(&listener, 5).unwrap();
    let queue = || accept_queue(&listener).unwrap();
    assert_eq!((queue().depth, queue().limit), (0, 5));
    let address = listener.local_addr().unwrap();
    let clients: Vec<_> = (0..3).map(|_| connect(address)).collect();
    eventually(SOON, "three callers", || (queue().depth == 3).then_some(()));
    listener.accept().unwrap();
    assert_eq!(queue().depth, 2);
    // A connection is no listener, and a Unix listener has no TCP_INFO.
    assert_eq!(accept_queue(&clients[0]), None);
    let folder = Folder::new();
    let unix = UnixListener::bind(folder.path("socket")).unwrap();
    assert_eq!(accept_queue(&unix), None);
}

/// The rule: a connection that is reset before it is accepted is still accepted, and the read reports
/// the reset: accept(2) does not fail.
#[test]
fn a_connection_that_was_reset_before_the_accept_is_accepted() {
    let listener = listener();
    let client = connect(listener.local_addr().unwrap());
    eventually(SOON, "no handshake", || {
        (accept_queue(&listener)?.depth == 1).then_some(())
    });
    reset(client);
    let (mut accepted, _) = listener.accept().unwrap();
    arrived(&accepted, PollFlags::ERR);
    let error = accepted.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(
        accepted.peer_addr().is_err(),
        "its address has to come from accept"
    );
}
