//! Every byte comes back, in order, whatever the client does.
//!
//! The clients do everything that TCP allows: they write without reading, read slowly, close one
//! direction at any moment, send urgent data, announce tiny windows, connect and disconnect within a
//! millisecond, and pass descriptors.  What they send is checked byte by byte; a connection ends with a
//! FIN, its descriptor is released, and a daemon that has nothing to do does not wake up.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::Signal;
use socket2::SockRef;
use testkit::{
    Daemon, Dice, Folder, Plan, SOON, Tape, connect, connect_with_buffers, eventually, finish, has,
    has_namespaces, pattern, ping, reset,
};

const MIB: usize = 1 << 20;

/// Sends all of a text and then FIN while reading; asserts that all of it and a FIN come back.
#[track_caller]
fn converse(stream: &TcpStream, seed: u64, length: usize) {
    thread::scope(|scope| {
        scope.spawn(|| {
            Tape::new(seed).send(stream, length).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut heard = Tape::new(seed);
        heard.expect_to_the_end(stream);
        assert_eq!(heard.position(), length);
    });
}

/// A daemon without the descriptors that preservation needs, as these tests count descriptors.
fn alone() -> Daemon {
    Plan::new().config("preserve-connections = false").start()
}

#[test]
fn a_message_comes_back_and_so_does_the_rest_after_half_close() {
    let mut daemon = alone();
    let client = daemon.connect();
    ping(&client, b"hello");
    ping(&client, &pattern(1, 300_000));
    assert!(finish(&client).is_empty());
    assert!(daemon.stop().success());
}

#[test]
fn random_sizes_and_chunks_come_back_on_many_connections_at_once() {
    let daemon = alone();
    thread::scope(|scope| {
        for seed in 0..32 {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut dice = Dice::new(seed);
                for round in 0..4 {
                    let length = dice.up_to(2 * MIB);
                    let stream = daemon.connect();
                    let (mut said, mut heard) = (Tape::new(seed), Tape::new(seed));
                    let mut chunks = Dice::new(seed + 1000 * round);
                    thread::scope(|scope| {
                        scope.spawn(|| {
                            while said.position() < length {
                                let chunk = chunks.up_to(200_000);
                                said.send(&stream, chunk.min(length - said.position()))
                                    .unwrap();
                            }
                            stream.shutdown(Shutdown::Write).unwrap();
                        });
                        while heard.read(&stream, dice.up_to(200_000)).unwrap() > 0 {}
                    });
                    assert_eq!(heard.position(), length, "seed {seed}, round {round}");
                }
            });
        }
    });
}

#[test]
fn a_client_that_writes_64_mib_before_it_reads_gets_them_and_costs_one_scratch() {
    let daemon = alone();
    let reader = daemon.connect();
    let writer = reader.try_clone().unwrap();
    ping(&reader, &pattern(1, 100_000));
    let memory = daemon.memory();
    let sender = thread::spawn(move || {
        Tape::new(64).send(&writer, 64 * MIB).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    // It writes until no queue takes any more.
    daemon.rests();
    assert!(!sender.is_finished());
    let grown = daemon.memory().saturating_sub(memory);
    // 64 KiB are owed; the rest is the allocator's and the log's.
    assert!(grown <= 512 * 1024, "{grown} bytes more than before");
    let mut heard = Tape::new(64);
    heard.expect_to_the_end(&reader);
    assert_eq!(heard.position(), 64 * MIB);
    sender.join().unwrap();
}

#[test]
fn many_mib_go_both_ways_at_once() {
    let daemon = alone();
    thread::scope(|scope| {
        for seed in 0..2 {
            let stream = daemon.connect();
            scope.spawn(move || converse(&stream, seed, 80 * MIB));
        }
    });
}

#[test]
fn tiny_buffers_on_both_sides_change_nothing() {
    let plan = Plan::bare().config(
        "[listener.a]\naddress = '127.0.0.1:0'\nreceive-buffer = '2KiB'\nsend-buffer = '2KiB'\n",
    );
    let daemon = plan.start();
    let base = daemon.descriptors();
    thread::scope(|scope| {
        for seed in 0..8 {
            let address = daemon.address();
            scope.spawn(move || {
                let stream = connect_with_buffers(address, 2048, 2048);
                converse(&stream, seed, 256 * 1024);
            });
        }
    });
    daemon.has_released(base);
}

#[test]
fn a_window_may_close_and_open_as_often_as_it_likes() {
    let daemon = alone();
    let stream = connect_with_buffers(daemon.address(), 4096, 64 * 1024);
    let (mut said, mut heard) = (Tape::new(3), Tape::new(3));
    for round in 0..4 {
        said.fill(&stream);
        // Now and then only a part is read before everything stalls again.
        let owed = said.position() - heard.position();
        assert!(owed > 64 * 1024, "round {round}: only {owed} bytes stalled");
        heard.expect(&stream, if round % 2 == 0 { owed / 3 } else { owed });
    }
    stream.shutdown(Shutdown::Write).unwrap();
    heard.expect_to_the_end(&stream);
    assert_eq!(heard.position(), said.position());
}

#[test]
fn urgent_bytes_come_back_in_line() {
    let daemon = alone();
    let base = daemon.descriptors();
    let client = daemon.connect();
    let socket = SockRef::from(&client);
    // Alone; between others; one after another; each is the end of what is sent for now.
    let mut sent = Vec::new();
    for round in 0..200_u8 {
        let before = pattern(round.into(), usize::from(round % 7) * 97);
        (&client).write_all(&before).unwrap();
        assert_eq!(socket.send_out_of_band(&[round]).unwrap(), 1);
        sent.extend(before);
        sent.push(round);
        if round % 5 == 0 {
            let mut echo = vec![0; sent.len()];
            (&client).read_exact(&mut echo).unwrap();
            assert!(echo == sent, "round {round} came back wrong");
            sent.clear();
        }
    }
    let mut echo = vec![0; sent.len()];
    (&client).read_exact(&mut echo).unwrap();
    assert_eq!(echo, sent);
    // The last one is announced once more than it is read, which must not use processor time.
    daemon.rests();
    socket.send_out_of_band(b"!").unwrap();
    assert_eq!(finish(&client), b"!");
    daemon.has_released(base);
}

#[test]
fn urgent_bytes_that_arrive_while_something_is_owed_come_back_in_line() {
    let config = "[listener.a]\naddress = '127.0.0.1:0'\nsend-buffer = '8KiB'\n";
    let daemon = Plan::bare().config(config).start();
    let client = connect_with_buffers(daemon.address(), 4096, 200_000);
    let socket = SockRef::from(&client);
    let mut sent = pattern(9, 130_000);
    (&client).write_all(&sent).unwrap();
    for mark in 0..20_u8 {
        socket.send_out_of_band(&[mark]).unwrap();
        (&client).write_all(b"and on").unwrap();
        sent.push(mark);
        sent.extend(b"and on");
    }
    // Nothing is taken: it is owed, with the marks behind it.
    daemon.rests();
    daemon.signal(Signal::USR1);
    let counters = daemon.logged("connections: accepted");
    let (_, bytes) = counters.split_once("received ").unwrap();
    let (received, bytes) = bytes.split_once(", sent ").unwrap();
    let (sent_back, _) = bytes.split_once(';').unwrap();
    assert_ne!(received, sent_back, "nothing is owed: {counters}");
    let mut echo = vec![0; sent.len()];
    (&client).read_exact(&mut echo).unwrap();
    assert!(echo == sent, "urgent bytes came back wrong");
    assert!(finish(&client).is_empty());
}

#[test]
fn whatever_was_sent_before_a_half_close_comes_back_and_then_a_fin() {
    let daemon = alone();
    let base = daemon.descriptors();
    // Around the sizes of the scratch and of a turn's budget.
    for length in [
        0, 1, 65_535, 65_536, 65_537, 131_072, 262_143, 262_144, 262_145, 3_000_000,
    ] {
        converse(&daemon.connect(), length as u64, length);
    }
    daemon.has_released(base);
}

#[test]
fn a_half_close_with_every_queue_full_loses_nothing() {
    let daemon = alone();
    let base = daemon.descriptors();
    let clients: Vec<(TcpStream, usize)> = (0..4)
        .map(|seed| {
            let client = daemon.connect();
            let mut said = Tape::new(seed);
            said.fill(&client);
            client.shutdown(Shutdown::Write).unwrap();
            (client, said.position())
        })
        .collect();
    daemon.rests();
    assert_eq!(daemon.descriptors(), base + clients.len());
    for (seed, (client, said)) in clients.iter().enumerate() {
        let mut heard = Tape::new(seed as u64);
        heard.expect_to_the_end(client);
        assert_eq!(heard.position(), *said);
    }
    // At once, while the client's direction is still open.
    daemon.has_released(base);
}

#[test]
fn data_and_fin_that_arrive_before_the_accept_or_between_polls_are_seen() {
    let daemon = alone();
    let base = daemon.descriptors();
    for length in [0, 1, 1000, 65_536, 100_000] {
        let known = daemon.connect();
        ping(&known, b"known");
        daemon.freeze();
        let strange = daemon.connect();
        for client in [&known, &strange] {
            Tape::new(5).send(client, length).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        }
        daemon.thaw();
        for client in [&known, &strange] {
            let mut heard = Tape::new(5);
            heard.expect_to_the_end(client);
            assert_eq!(heard.position(), length);
        }
    }
    daemon.has_released(base);
}

#[test]
fn a_unix_stream_is_echoed_like_any_other() {
    let plan = Plan::bare();
    let path = plan.folder().path("echo.sock");
    let daemon = plan
        .argument("--listen")
        .argument(&format!("unix:{}", path.display()))
        .start();
    assert_eq!(daemon.path(), path);
    let base = daemon.descriptors();
    let client = unix(&daemon);
    ping(&client, b"hello");
    thread::scope(|scope| {
        scope.spawn(|| {
            Tape::new(1).send(&client, 20 * MIB).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        });
        let mut heard = Tape::new(1);
        heard.expect_to_the_end(&client);
        assert_eq!(heard.position(), 20 * MIB);
    });
    daemon.has_released(base);
}

#[test]
fn descriptors_are_refused_in_the_middle_of_a_stream_and_it_goes_on() {
    let plan = Plan::bare();
    let listen = format!("unix:{}", plan.folder().path("echo.sock").display());
    let daemon = plan.argument("--listen").argument(&listen).start();
    let base = daemon.descriptors();
    let client = unix(&daemon);
    ping(&client, b"before");
    let gift = std::fs::File::open("/dev/null").unwrap();
    if let Ok(()) = give(&client, b"gift", &gift) {
        // Linux before 6.16 cannot refuse them: the stream ends, and what came before was echoed.
        assert!(end_of_unix(&client).is_empty());
        daemon.has_released(base);
        return;
    }
    for round in 0..40_u8 {
        let error = give(&client, b"gift", &gift).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        ping(&client, &pattern(round.into(), 1 + 50 * usize::from(round)));
    }
    assert_eq!(daemon.descriptors(), base + 1, "gifts were kept");
    client.shutdown(Shutdown::Write).unwrap();
    assert!(end_of_unix(&client).is_empty());
    daemon.has_released(base);
}

/// The rest of a stream, also where it ends with an error.
fn end_of_unix(mut client: &UnixStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    rest
}

#[test]
fn a_path_has_the_mode_and_the_group_that_are_asked_for() {
    let group = rustix::process::getegid().as_raw();
    let plan = |keys: &str| {
        let plan = Plan::bare();
        let path = plan.folder().path("echo.sock");
        let table = format!("[listener.x]\naddress = 'unix:{}'\n{keys}", path.display());
        (plan.config(&table), path)
    };
    let (first, path) = plan(&format!("mode = '0604'\ngroup = {group}\n"));
    let mut daemon = first.start();
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o604, group));
    ping(&unix(&daemon), b"hello");
    assert!(daemon.stop().success());
    for (keys, status, part) in [
        ("group = 'no-such-group'\n", 69, "no group no-such-group"),
        ("mode = 660\n", 78, "decimal or octal"),
        ("mode = '0999'\n", 78, "no mode"),
        ("mode = '01777'\n", 78, "no mode"),
        ("group = ''\n", 78, "no name"),
    ] {
        for command in ["check", "serve"] {
            let (plan, path) = plan(keys);
            let (got, text) = plan.unnotified().argument(command).run();
            assert_eq!(got.code(), Some(status), "{keys}: {text}");
            assert!(text.contains(part), "{keys}: {text}");
            assert!(!path.exists(), "{keys}");
        }
    }
    if !rustix::process::geteuid().is_root() || !has("setpriv") {
        return;
    }
    // Another user is in no group of others.
    for command in ["check", "serve"] {
        let (plan, path) = plan("group = 0\n");
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(path.parent().unwrap(), open).unwrap();
        let user = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ];
        let (got, text) = plan.unnotified().argument(command).under(&user).run();
        assert_eq!(got.code(), Some(77), "{text}");
        assert!(text.contains("SupplementaryGroups="), "{text}");
    }
}

/// As under `PrivateTmp=` of systemd.exec(5).
#[test]
fn a_path_in_a_private_tmp_is_warned_of() {
    if !has_namespaces(&["-rm", "true"]) {
        return;
    }
    let warning = "cannot be reached from outside: the service has this folder for itself";
    let bind = "mkdir -p \"$0/systemd-private-1/tmp\" && \
                mount --bind \"$0/systemd-private-1/tmp\" /var/tmp && exec \"$@\"";
    for (script, warned) in [(bind, true), ("exec \"$@\"", false)] {
        let plan = Plan::bare();
        let folder = plan.folder().path("").display().to_string();
        let listen = format!("--listen=unix:/var/tmp/echo-{}.sock", std::process::id());
        let mut daemon = plan
            .argument(&listen)
            .under(&["unshare", "-rm", "sh", "-c", script, &folder])
            .start();
        assert!(daemon.stop().success());
        assert_eq!(daemon.log().contains(warning), warned, "{}", daemon.log());
    }
}

#[test]
fn of_two_daemons_on_a_stale_path_one_serves_and_the_other_reports_it() {
    if !has("strace") {
        return;
    }
    let folder = Folder::new();
    let path = folder.path("echo.sock");
    drop(UnixListener::bind(&path).unwrap());
    let listen = format!("--listen=unix:{}", path.display());
    // The first one has seen that the path is stale, and is slow to remove it.
    let slow = "inject=unlink,unlinkat:delay_enter=1500000";
    let calls = folder.path("calls");
    let traced = [
        "strace",
        "-D",
        "-qq",
        "-o",
        calls.to_str().unwrap(),
        "-e",
        "trace=unlink,unlinkat",
        "-e",
        slow,
    ];
    let first = Plan::bare().argument(&listen).under(&traced);
    let first = thread::spawn(move || first.start());
    eventually(SOON, "it never removes the path", || {
        let calls = std::fs::read_to_string(&calls).unwrap_or_default();
        calls.contains("unlink").then_some(())
    });
    let (status, text) = Plan::bare().unnotified().argument(&listen).run();
    let mut first = first.join().unwrap();
    assert_eq!(status.code(), Some(69), "{text}");
    assert!(text.contains("another server answers there"), "{text}");
    ping(&unix(&first), b"hello");
    assert!(first.stop().success());
}

#[test]
fn a_stale_path_is_used_again_and_unlinked_at_the_stop() {
    let plan = Plan::bare();
    let path = plan.folder().path("echo.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "nothing is stale");
    let mut daemon = plan
        .argument("--listen")
        .argument(&format!("unix:{}", path.display()))
        .start();
    ping(&unix(&daemon), b"hello");
    assert!(daemon.stop().success());
    assert!(!path.exists(), "the path was left behind");
}

#[test]
fn a_path_where_another_server_answers_or_a_file_lies_is_not_taken() {
    let plan = Plan::bare();
    let path = plan.folder().path("echo.sock");
    let other = UnixListener::bind(&path).unwrap();
    let (status, log) = plan
        .argument("--listen")
        .argument(&format!("unix:{}", path.display()))
        .run();
    assert_eq!(status.code(), Some(69), "{log}");
    assert!(log.contains("another server answers there"), "{log}");
    drop(other);

    let plan = Plan::bare();
    let path = plan.folder().write("precious", "text");
    let (status, log) = plan
        .argument("--listen")
        .argument(&format!("unix:{}", path.display()))
        .run();
    assert_eq!(status.code(), Some(69), "{log}");
}

#[test]
fn every_way_to_name_an_address_is_served() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: this host has no IPv6");
        return;
    }
    let plan = ["[::1]:0", "*:0", "localhost:0"]
        .iter()
        .fold(Plan::bare(), |plan, listen| {
            plan.argument("--listen").argument(listen)
        });
    let daemon = plan.start();
    let listen: Vec<SocketAddr> = daemon
        .listen
        .iter()
        .map(|listen| listen.parse().unwrap())
        .collect();
    assert!(listen.len() >= 3, "{listen:?}");
    for address in &listen {
        let port = address.port();
        if address.ip().is_unspecified() {
            // One socket for both families.
            converse(&connect(([127, 0, 0, 1], port).into()), 4, MIB);
            converse(
                &connect((std::net::Ipv6Addr::LOCALHOST, port).into()),
                6,
                MIB,
            );
        } else {
            assert!(address.ip().is_loopback(), "{address}");
            converse(&connect(*address), 1, MIB);
        }
    }
}

#[test]
fn an_ipv6_address_leaves_ipv4_alone() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: this host has no IPv6");
        return;
    }
    let refuses_ipv4 = || {
        let plan = Plan::bare().argument("--listen").argument("[::]:0");
        let daemon = plan.start();
        let port = daemon.address().port();
        ping(
            connect((std::net::Ipv6Addr::LOCALHOST, port).into()),
            b"six",
        );
        let refused = TcpStream::connect(("127.0.0.1", port));
        refused.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    // Another test may listen at the same port of IPv4, but not again and again.
    assert!((0..4).any(|_| refuses_ipv4()), "IPv4 is served as well");
}

#[test]
fn resets_and_scans_leak_no_descriptor() {
    let daemon = alone();
    let witness = daemon.connect();
    ping(&witness, b"before");
    let base = daemon.descriptors();
    for round in 0..300 {
        let mut client = daemon.connect();
        match round % 3 {
            // In the middle of the traffic, with data in both directions.
            0 => client.write_all(&pattern(1, 10_000)).unwrap(),
            1 => ping(&client, b"hello"),
            _ => {}
        }
        reset(client);
        // A scan.
        drop(daemon.connect());
    }
    daemon.has_released(base);

    // Before they are accepted.
    daemon.freeze();
    for round in 0..100 {
        let mut client = daemon.connect();
        if round % 2 == 0 {
            client.write_all(b"hello").unwrap();
        }
        reset(client);
    }
    daemon.thaw();
    ping(daemon.connect(), b"the next one");
    daemon.has_released(base);
    ping(&witness, b"after");
}

#[test]
fn a_reset_is_noticed_while_something_is_owed() {
    let daemon = alone();
    let base = daemon.descriptors();
    for seed in 0..3 {
        let client = daemon.connect();
        Tape::new(seed).fill(&client);
        if seed == 1 {
            client.shutdown(Shutdown::Write).unwrap();
        }
        reset(client);
        daemon.has_released(base);
    }
}

#[test]
fn nothing_wakes_a_daemon_that_has_nothing_to_do() {
    let daemon = alone();
    daemon.rests();
    let idle: Vec<TcpStream> = (0..20).map(|_| daemon.connect()).collect();
    idle.iter().for_each(|client| ping(client, b"hello"));
    daemon.rests();
    let stalled: Vec<TcpStream> = (0..4).map(|_| daemon.connect()).collect();
    for (seed, client) in stalled.iter().enumerate() {
        Tape::new(seed as u64).fill(client);
    }
    daemon.rests();
    for client in &stalled[..2] {
        client.shutdown(Shutdown::Write).unwrap();
    }
    daemon.rests();
    ping(&idle[0], b"still here");
}

fn unix(daemon: &Daemon) -> UnixStream {
    let client = testkit::connect_unix(daemon.path());
    client.set_write_timeout(Some(SOON)).unwrap();
    client
}

/// Sends a text that carries a descriptor.
pub fn give(stream: &UnixStream, text: &[u8], gift: &impl AsFd) -> io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let gifts = [gift.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&gifts)));
    let sent = sendmsg(
        stream,
        &[IoSlice::new(text)],
        &mut control,
        SendFlags::empty(),
    )?;
    assert_eq!(sent, text.len());
    Ok(())
}
