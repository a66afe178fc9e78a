//! Sockets that are passed to the daemon: taken by name and kind, never by number, and left as
//! the socket unit made them but for what the configuration names.
//!
//! The fixture passes a socket as systemd does: blocking, inherited, with `LISTEN_FDS`,
//! `LISTEN_PID` and `LISTEN_FDNAMES`.  The test holds a duplicate, as the manager does, which
//! makes two things visible: the state of the very socket that the daemon has, and whether a peer
//! sees a FIN although another process still holds the connection.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use testkit::{
    Daemon, Folder, Plan, SOON, connect, eventually, fill, finish, has, has_namespaces, listener,
    ping, program, reset, traced,
};

/// A client of the test, and the socket at the other end, to be passed.
fn connected_pair() -> (TcpStream, TcpStream) {
    let listener = listener();
    let client = connect(listener.local_addr().unwrap());
    (listener.accept().unwrap().0, client)
}

/// Whether this host has IPv6 on loopback.
fn listener_v6() -> Option<TcpListener> {
    let bound = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).ok();
    if bound.is_none() {
        eprintln!("skipped: this host has no ::1");
    }
    bound
}

fn fd(socket: impl Into<OwnedFd>) -> OwnedFd {
    socket.into()
}

fn connect_unix(path: &std::path::Path) -> UnixStream {
    let stream = eventually(SOON, "no socket listens on the path", || {
        UnixStream::connect(path).ok()
    });
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

/// The daemon must refuse what is passed: exit status 78 and a message with these parts.
#[track_caller]
fn refused(plan: Plan, parts: &[&str]) {
    let (status, text) = plan.run();
    assert_eq!(status.code(), Some(78), "{text}");
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    assert!(!text.contains("ready on"), "{text}");
}

#[test]
fn a_passed_listener_is_served_under_its_name_and_nothing_else_is_opened() {
    let socket = listener();
    let address = socket.local_addr().unwrap();
    let mut daemon = Plan::bare().pass(vec![fd(socket)], "web").start();
    assert_eq!(daemon.listen, [address.to_string()]);
    ping(daemon.connect(), b"passed");
    let line = daemon.logged("listening on");
    assert!(
        line.contains("listener web, passed by the service manager"),
        "{line}"
    );
    assert!(daemon.stop().success());
    assert_eq!(daemon.log().matches("listening on").count(), 1);
}

#[test]
fn two_families_are_served_whatever_their_order() {
    for swapped in [false, true] {
        let Some(six) = listener_v6() else { return };
        let four = listener();
        let addresses = [four.local_addr().unwrap(), six.local_addr().unwrap()];
        let (sockets, names) = if swapped {
            (vec![fd(six), fd(four)], "six:four")
        } else {
            (vec![fd(four), fd(six)], "four:six")
        };
        let mut daemon = Plan::bare().pass(sockets, names).start();
        for (address, name) in addresses.iter().zip(["four", "six"]) {
            ping(connect(*address), name.as_bytes());
            let line = daemon.logged(&format!("listening on {address}"));
            assert!(line.contains(&format!("listener {name},")), "{line}");
        }
        assert!(daemon.stop().success());
    }
}

#[test]
fn a_unix_listener_is_served_and_its_path_is_left_to_the_manager() {
    let folder = Folder::new();
    let path = folder.path("echo.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let kept = socket.try_clone().unwrap();
    let tcp = listener();
    let mut daemon = Plan::bare()
        .pass(vec![fd(socket), fd(tcp)], "local:net")
        .start();
    ping(connect_unix(&path), b"by path");
    ping(daemon.connect(), b"by address");
    assert!(daemon.stop().success());
    assert!(path.exists(), "the manager's path was unlinked");
    drop(kept);
}

#[test]
fn two_sockets_may_share_a_name_and_its_table() {
    let (one, two) = (listener(), listener());
    let kept = [one.try_clone().unwrap(), two.try_clone().unwrap()];
    let addresses = kept.each_ref().map(|kept| kept.local_addr().unwrap());
    let mut daemon = Plan::bare()
        .config(
            "[listener.web]\naddress = '127.0.0.1:0'\nkeepalive = true\nkeepalive-idle = '77s'\n",
        )
        .pass(vec![fd(one), fd(two)], "web:web")
        .start();
    assert_eq!(daemon.listen.len(), 2, "the table's address was opened too");
    for (address, kept) in addresses.into_iter().zip(&kept) {
        ping(connect(address), b"shared");
        assert_eq!(
            SockRef::from(kept).tcp_keepalive_time().unwrap(),
            Duration::from_secs(77)
        );
    }
    assert!(daemon.stop().success());
}

#[test]
fn a_socket_without_a_name_is_served_all_the_same() {
    // No variable, an empty one, fewer names than sockets: all happen.
    let cases: [(&[&str], &str, usize); 3] = [
        (&["env", "-u", "LISTEN_FDNAMES"], "", 2),
        (&[], "", 1),
        (&[], "lonely", 2),
    ];
    for (wrapper, names, count) in cases {
        let sockets: Vec<TcpListener> = (0..count).map(|_| listener()).collect();
        let addresses: Vec<SocketAddr> = sockets
            .iter()
            .map(|socket| socket.local_addr().unwrap())
            .collect();
        let mut daemon = Plan::bare()
            .under(wrapper)
            .pass(sockets.into_iter().map(fd).collect(), names)
            .start();
        for address in addresses {
            ping(connect(address), b"nameless");
        }
        daemon.logged("(listener unknown,");
        assert!(daemon.stop().success());
    }
}

#[test]
fn a_blocking_listener_does_not_stop_the_loop() {
    let socket = listener();
    let kept = socket.try_clone().unwrap();
    assert!(!SockRef::from(&kept).nonblocking().unwrap());
    let mut daemon = Plan::bare().pass(vec![fd(socket)], "web").start();
    // A blocking accept would hold up the first client's echo until the second one comes.
    for _ in 0..3 {
        ping(daemon.connect(), b"prompt");
    }
    assert!(SockRef::from(&kept).nonblocking().unwrap());
    assert!(daemon.stop().success());
}

#[test]
fn on_a_passed_listener_only_what_is_named_is_changed() {
    let socket = listener();
    let kept = socket.try_clone().unwrap();
    let kept = SockRef::from(&kept);
    // Against every built-in default, also that of the one option that a socket unit has no setting
    // for.
    kept.set_keepalive(false).unwrap();
    kept.set_tcp_nodelay(false).unwrap();
    kept.set_tcp_user_timeout(Some(Duration::from_millis(1234)))
        .unwrap();
    kept.set_tcp_notsent_lowat(7777).unwrap();
    kept.set_tos_v4(0x20).unwrap();
    kept.set_reuse_address(false).unwrap();
    let before = (
        kept.tcp_keepalive_time().unwrap(),
        kept.recv_buffer_size().unwrap(),
        kept.send_buffer_size().unwrap(),
        kept.reuse_port().unwrap(),
    );
    let mut daemon = Plan::bare()
        .config("[socket]\nkeepalive-probes = 3\n[listener.web]\nkeepalive-interval = '9s'\n")
        .pass(vec![fd(socket)], "web")
        .start();
    let client = daemon.connect();
    ping(&client, b"as the unit says");
    assert!(!kept.keepalive().unwrap());
    assert!(!kept.tcp_nodelay().unwrap());
    assert_eq!(
        kept.tcp_user_timeout().unwrap(),
        Some(Duration::from_millis(1234))
    );
    assert_eq!(kept.tcp_notsent_lowat().unwrap(), 128 * 1024);
    assert_eq!(kept.tos_v4().unwrap(), 0x20);
    assert!(!kept.reuse_address().unwrap());
    assert_eq!(
        before,
        (
            kept.tcp_keepalive_time().unwrap(),
            kept.recv_buffer_size().unwrap(),
            kept.send_buffer_size().unwrap(),
            kept.reuse_port().unwrap()
        )
    );
    assert_eq!(kept.tcp_keepalive_retries().unwrap(), 3);
    assert_eq!(
        kept.tcp_keepalive_interval().unwrap(),
        Duration::from_secs(9)
    );
    assert!(kept.out_of_band_inline().unwrap());
    if let Some(accepted) = daemon.end_of(&client) {
        assert!(!accepted.keepalive().unwrap());
        assert!(!accepted.tcp_nodelay().unwrap());
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 3);
    }
    assert!(daemon.stop().success());
}

#[test]
fn a_caller_that_waited_before_the_start_has_the_options_too() {
    let socket = listener();
    let kept = socket.try_clone().unwrap();
    SockRef::from(&kept).set_tcp_nodelay(false).unwrap();
    let early = connect(kept.local_addr().unwrap());
    let mut daemon = Plan::bare()
        .config("[socket]\nnodelay = true\n")
        .pass(vec![fd(socket)], "web")
        .start();
    ping(&early, b"early");
    if let Some(accepted) = daemon.end_of(&early) {
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.out_of_band_inline().unwrap());
    }
    drop(early);
    assert!(daemon.stop().success());
}

#[test]
fn listen_is_never_called_again_on_a_passed_socket() {
    if !has("strace") {
        return;
    }
    let folder = Folder::new();
    let trace = folder.path("trace").display().to_string();
    let mut daemon = Plan::bare()
        .under(&["strace", "-D", "-o", &trace, "-e", "trace=listen,bind"])
        .config("[listener.web]\nbacklog = 7\n[listener.own]\naddress = '127.0.0.1:0'\n")
        .pass(vec![fd(listener())], "web")
        .start();
    assert_eq!(daemon.listen.len(), 2);
    daemon.reload("[listener.web]\nbacklog = 9\n[listener.own]\naddress = '127.0.0.1:0'\n");
    assert!(daemon.stop().success());
    let text = traced(&trace);
    assert_eq!(text.matches("listen(").count(), 1, "{text}");
    assert!(!text.contains("listen(3,"), "{text}");
}

#[test]
fn passed_and_configured_listeners_are_served_together() {
    let socket = listener();
    let passed = socket.local_addr().unwrap();
    let mut daemon = Plan::bare()
        .config("[listener.own]\naddress = '127.0.0.1:0'\n")
        .pass(vec![fd(socket)], "web")
        .start();
    assert_eq!(daemon.listen[0], passed.to_string());
    assert_eq!(daemon.listen.len(), 2);
    for address in daemon.listen.clone() {
        ping(connect(address.parse().unwrap()), b"together");
    }
    assert!(daemon.stop().success());
    // After the stop, one is refused and the other would be if the test held no duplicate.
    assert!(TcpStream::connect(daemon.listen[1].as_str()).is_err());
}

#[test]
fn a_passed_connection_between_listeners_does_not_shift_their_names() {
    let socket = listener();
    let (ours, client) = connected_pair();
    let mut daemon = Plan::bare()
        .config(
            "[log]\nlevel = 'debug'\nformat = 'json'\n[listener.own]\naddress = '127.0.0.1:0'\n",
        )
        .pass(vec![fd(socket), fd(ours)], "web:talk")
        .start();
    ping(&client, b"passed conversation");
    ping(connect(daemon.listen[0].parse().unwrap()), b"passed");
    ping(connect(daemon.listen[1].parse().unwrap()), b"own");
    drop(client);
    assert!(daemon.stop().success());
    for name in ["web", "talk", "own"] {
        let ends = daemon
            .log()
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .filter(|event| event["echo.reason"].is_string() && event["echo.listener"] == name)
            .count();
        assert_eq!(ends, 1, "{name}: {}", daemon.log());
    }
}

#[test]
fn a_passed_connection_is_counted_and_needs_no_preservation() {
    for preserve in [true, false] {
        let (ours, client) = connected_pair();
        let config =
            format!("workers = 2\npreserve-connections = {preserve}\n[log]\nformat = 'json'\n");
        let mut daemon = Plan::bare()
            .config(&config)
            .pass(vec![fd(ours)], "talk")
            .start();
        std::thread::sleep(Duration::from_millis(200));
        ping(&client, b"still here");
        daemon.notified("STATUS=0 listeners, 1 connection, 10 B echoed");
        drop(client);
        assert!(daemon.exited(SOON).success());
        let log = daemon.log();
        assert!(log.contains("\"echo.accepted\":1,"), "{log}");
    }
}

#[test]
fn sockets_for_another_process_are_ignored() {
    let socket = listener();
    let kept = socket.try_clone().unwrap();
    let mut daemon = Plan::bare()
        .under(&["env", "LISTEN_PID=1"])
        .config("[listener.own]\naddress = '127.0.0.1:0'\n")
        .pass(vec![fd(socket)], "web")
        .start();
    assert_eq!(daemon.listen.len(), 1);
    assert_ne!(daemon.address(), kept.local_addr().unwrap());
    ping(daemon.connect(), b"own");
    assert!(daemon.stop().success());
}

#[test]
fn sockets_for_no_process_are_ignored_and_that_is_logged() {
    for (wrapper, why) in [
        (vec!["env", "-u", "LISTEN_PID"], "is not set"),
        (vec!["env", "LISTEN_PID=me"], "is no process id"),
        (vec!["env", "LISTEN_PID="], "is no process id"),
    ] {
        let socket = listener();
        let kept = socket.try_clone().unwrap();
        let mut daemon = Plan::bare()
            .under(&wrapper)
            .config("[listener.own]\naddress = '127.0.0.1:0'\n")
            .pass(vec![fd(socket)], "web")
            .start();
        assert_eq!(daemon.listen.len(), 1);
        assert_ne!(daemon.address(), kept.local_addr().unwrap());
        let log = daemon.logged("that LISTEN_FDS announces");
        assert!(log.contains(why), "{log}");
        ping(daemon.connect(), b"own");
        assert!(daemon.stop().success());
    }
}

#[test]
fn what_is_no_stream_socket_is_refused_with_index_name_and_kind() {
    let datagram = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    refused(
        Plan::bare().pass(vec![fd(listener()), fd(datagram)], "web:names"),
        &["index 1", "\"names\"", "a datagram socket"],
    );
    let (unix, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    refused(
        Plan::bare().pass(vec![fd(unix)], "log"),
        &["index 0", "\"log\"", "a datagram socket"],
    );
    let packets = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    refused(
        Plan::bare().pass(vec![fd(packets)], "packets"),
        &["index 0", "\"packets\"", "a sequential-packet socket"],
    );
    let file = std::fs::File::open("/dev/null").unwrap();
    refused(
        Plan::bare().pass(vec![fd(file)], "file"),
        &["index 0", "\"file\"", "not a stream socket (/dev/null)"],
    );
    let folder = Folder::new();
    let fifo = folder.path("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let fifo = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&fifo)
        .unwrap();
    refused(
        Plan::bare().pass(vec![fd(fifo)], "pipe"),
        &["index 0", "\"pipe\"", "not a stream socket"],
    );
}

#[test]
fn a_stream_socket_without_callers_or_a_peer_is_refused() {
    let bound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    bound
        .bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))
        .unwrap();
    refused(
        Plan::bare().pass(vec![fd(bound)], "half"),
        &["index 0", "\"half\"", "neither listens nor is connected"],
    );
    let unix = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    refused(
        Plan::bare().pass(vec![fd(unix)], "bare"),
        &["index 0", "\"bare\"", "neither listens nor is connected"],
    );
}

#[test]
fn a_descriptor_that_is_not_open_is_refused_by_its_name() {
    refused(
        Plan::bare()
            .environment("LISTEN_FDS", "2")
            .pass(vec![fd(listener())], "web:ghost"),
        &["index 1", "\"ghost\"", "not open"],
    );
}

#[test]
fn a_passed_connection_is_served_to_its_end_and_then_the_process_ends() {
    let (ours, mut client) = connected_pair();
    let kept = ours.try_clone().unwrap();
    let mut daemon = Plan::bare().pass(vec![fd(ours)], "connection").start();
    assert!(daemon.listen.is_empty(), "{:?}", daemon.listen);
    ping(&client, b"one conversation");
    assert!(daemon.is_running());
    client.write_all(b"last words").unwrap();
    // The duplicate must not keep the FIN from the peer.
    assert_eq!(finish(&client), b"last words");
    assert!(daemon.exited(SOON).success());
    drop(kept);
}

#[test]
fn a_passed_unix_connection_is_served_to_its_end_and_then_the_process_ends() {
    let (ours, mut client) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    let kept = ours.try_clone().unwrap();
    let mut daemon = Plan::bare().pass(vec![fd(ours)], "connection").start();
    ping(&client, b"one conversation");
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"last words");
    assert!(daemon.exited(SOON).success());
    drop(kept);
}

#[test]
fn the_process_ends_after_the_last_of_two_passed_connections() {
    let (one, first) = connected_pair();
    let (two, second) = connected_pair();
    let mut daemon = Plan::bare().pass(vec![fd(one), fd(two)], "a:b").start();
    ping(&first, b"first");
    drop(first);
    ping(&second, b"second");
    daemon.logged("ended (peer-closed)");
    ping(&second, b"still here");
    drop(second);
    assert!(daemon.exited(SOON).success());
}

#[test]
fn a_passed_connection_that_was_reset_before_the_start_is_no_failure() {
    let (ours, client) = connected_pair();
    reset(client);
    let kept = ours.try_clone().unwrap();
    eventually(SOON, "the reset did not arrive", || {
        kept.peer_addr().is_err().then_some(())
    });
    let (status, text) = Plan::bare().pass(vec![fd(ours)], "connection").run();
    assert_eq!(status.code(), Some(0), "{text}");
    assert!(!text.contains("listening on"), "{text}");
}

#[test]
fn a_passed_connection_is_drained_on_term() {
    let (ours, client) = connected_pair();
    let kept = ours.try_clone().unwrap();
    let mut daemon = Plan::bare().pass(vec![fd(ours)], "connection").start();
    ping(&client, b"here");
    assert!(daemon.stop().success());
    assert_eq!(
        testkit::end_of(&client).unwrap(),
        Vec::<u8>::new(),
        "a reset instead of a FIN"
    );
    drop(kept);
}

#[test]
fn a_reserved_name_is_closed_with_a_warning_and_the_rest_is_served() {
    // A socket, and a file as a state file would be.
    let (socket, _other) = UnixStream::pair().unwrap();
    let folder = Folder::new();
    let file = std::fs::File::open(folder.write("state-file", "preserved")).unwrap();
    for (reserved, name) in [(fd(socket), "preserve-queue"), (fd(file), "preserve-state")] {
        let web = listener();
        let mut daemon = Plan::bare()
            .pass(vec![reserved, fd(web)], &format!("{name}:web"))
            .start();
        ping(daemon.connect(), b"the rest");
        let line = daemon.logged("closed the passed descriptor");
        assert!(line.contains("<4>") && line.contains(name), "{line}");
        let kept = std::fs::read_link(format!("/proc/{}/fd/3", daemon.pid().as_raw_nonzero()));
        if let Ok(target) = kept {
            // The number may be in use again, but for another file.
            assert!(
                !target.ends_with("state-file"),
                "{} is open",
                target.display()
            );
        }
        assert_eq!(daemon.listen.len(), 1);
        assert!(daemon.stop().success());
    }
}

#[test]
fn no_descriptor_outlives_an_exec() {
    let mut daemon = Plan::bare()
        .config("[listener.own]\naddress = '127.0.0.1:0'\n")
        .pass(vec![fd(listener()), fd(listener())], "a:b")
        .start();
    let clients: Vec<TcpStream> = daemon
        .listen
        .iter()
        .map(|address| connect(address.parse().unwrap()))
        .collect();
    clients.iter().for_each(|client| ping(client, b"open"));
    let mut seen = 0;
    let folder = format!("/proc/{}", daemon.pid().as_raw_nonzero());
    for entry in std::fs::read_dir(format!("{folder}/fdinfo")).unwrap() {
        let entry = entry.unwrap();
        let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let info = std::fs::read_to_string(entry.path()).unwrap();
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        let inherits = flags & libc::O_CLOEXEC == 0;
        // Descriptors that the test itself has inherited do not count.
        let target = std::fs::read_link(format!("{folder}/fd/{number}")).ok();
        let ours = || std::fs::read_link(format!("/proc/self/fd/{number}")).ok();
        if number > 2 && !(inherits && target == ours()) {
            seen += 1;
            assert!(!inherits, "descriptor {number} is inherited: {target:?}");
        }
    }
    // Three listeners, three clients, poll, signals and manager at least.
    assert!(seen >= 9, "only {seen} descriptors seen");
    drop(clients);
    assert!(daemon.stop().success());
}

#[test]
fn after_term_callers_wait_for_the_next_process() {
    let socket = listener();
    let kept = socket.try_clone().unwrap();
    let address = kept.local_addr().unwrap();
    let mut daemon = Plan::bare().pass(vec![fd(socket)], "web").start();
    let served = daemon.connect();
    ping(&served, b"served");
    assert!(daemon.stop().success());
    let mut waiting: Vec<TcpStream> = (0..5).map(|_| connect(address)).collect();
    for client in &mut waiting {
        client.write_all(b"patience").unwrap();
    }
    let mut successor = Plan::bare().pass(vec![fd(kept)], "web").start();
    for client in &mut waiting {
        assert_eq!(finish(client), b"patience");
    }
    assert!(successor.stop().success());
}

#[test]
fn callers_that_come_during_a_drain_wait_for_the_next_process() {
    let socket = listener();
    let kept = socket.try_clone().unwrap();
    let address = kept.local_addr().unwrap();
    let mut daemon = Plan::bare()
        .config("[limits]\nstop-timeout = '2s'\n")
        .pass(vec![fd(socket)], "web")
        .start();
    // One that does not read keeps the daemon from its end.
    let mut stalled = daemon.connect();
    fill(&mut stalled);
    daemon.signal(rustix::process::Signal::TERM);
    daemon.notified("STOPPING=1");
    eventually(SOON, "the queue was not emptied", || {
        daemon.log().contains("stopping;").then_some(())
    });
    let mut late = connect(address);
    late.write_all(b"late").unwrap();
    assert!(daemon.exited(SOON).success());
    let mut successor = Plan::bare().pass(vec![fd(kept)], "web").start();
    assert_eq!(finish(&late), b"late");
    assert!(successor.stop().success());
}

#[test]
fn systemd_socket_activate_passes_a_listener() {
    if !has("systemd-socket-activate") {
        return;
    }
    let folder = Folder::new();
    let path = folder.path("echo.sock");
    let mut daemon = Plan::bare()
        .under(&[
            "systemd-socket-activate",
            "-l",
            path.to_str().unwrap(),
            "--fdname=web",
        ])
        .unnotified()
        .start();
    // It executes the daemon in its own process when the first caller connects.
    ping(connect_unix(&path), b"activated");
    let line = daemon.logged("listening on");
    assert!(line.contains("listener web, passed"), "{line}");
    ping(connect_unix(&path), b"and again");
    assert!(daemon.stop().success());
}

#[test]
fn systemd_socket_activate_passes_connections() {
    if !has("systemd-socket-activate") {
        return;
    }
    let folder = Folder::new();
    let path = folder.path("echo.sock");
    let mut daemon: Daemon = Plan::bare()
        .under(&[
            "systemd-socket-activate",
            "--accept",
            "-l",
            path.to_str().unwrap(),
        ])
        .unnotified()
        .start();
    for message in [b"one".as_slice(), b"two"] {
        let mut client = connect_unix(&path);
        ping(&client, message);
        client.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }
    eventually(SOON, "the instances did not end", || {
        (daemon.log().matches(" stopped; ").count() == 2).then_some(())
    });
    assert!(daemon.is_running(), "{} took the passer's place", program());
    daemon.stop();
}

#[test]
fn a_table_of_another_instance_is_no_warning() {
    if !has_namespaces(&["-rm", "true"]) {
        return;
    }
    for (unit, priority) in [
        ("tcp-echo@web.service", "<6>"),
        ("tcp-echo.service", "<4>"),
        ("user@0.service/app.slice/echo.service", "<4>"),
    ] {
        let plan = Plan::bare().config("[listener.other]\nnodelay = true\n");
        let group = plan
            .folder()
            .write("cgroup", &format!("0::/system.slice/{unit}\n"));
        let script = "mount --bind \"$0\" /proc/$$/cgroup && exec \"$@\"";
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let group = group.to_str().unwrap();
        let mut daemon = plan
            .pass(vec![listener.into()], "web")
            .under(&["unshare", "-rm", "sh", "-c", script, group])
            .start();
        assert!(daemon.stop().success());
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains("has no socket"));
        let line = line.unwrap_or_else(|| panic!("{log}"));
        assert!(
            line.starts_with(priority) && line.contains("listener other"),
            "{line}"
        );
    }
}
