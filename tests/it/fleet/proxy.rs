//! A listener takes PROXY headers, from proxies that it trusts, however they arrive.
//!
//! The headers are written out here byte by byte, not by the code that reads them.  What the standard
//! asks of a receiver is also judged by `tcp-echo probe --proxy-receiver`, which other receivers are
//! held against too.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tcp_echo::log::events::id;
use testkit::crowd::{ClientMix, Kind};
use testkit::manager::Manager;
use testkit::{Daemon, Plan, SOON, connect, end_of, eventually, finish, has, ping, reset, waits};

use super::documented;
use crate::client::probe::judged;
use crate::client::receivers::{Other, start_nginx, unused, verdicts};

const CLOSED: &str = id("CLOSED");

/// From 203.0.113.9:51812 to 192.0.2.1:7, as a line.
const LINE: &[u8] = b"PROXY TCP4 203.0.113.9 192.0.2.1 51812 7\r\n";

/// The same in version 2.
const BINARY: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x09\xc0\x00\x02\x01\xca\x64\x00\x07";

/// A check of the proxy itself in version 2, with some bytes that mean nothing.
const CHECK: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x03\x04\x00\x00";

/// A header of version 2 for a client with this address, with extensions.
fn binary(client: [u8; 4], extensions: &[u8]) -> Vec<u8> {
    let length = u16::try_from(12 + extensions.len()).unwrap();
    let ends = [192, 0, 2, 1, 0xca, 0x64, 0, 7];
    [
        &BINARY[..14],
        &length.to_be_bytes(),
        &client,
        &ends,
        extensions,
    ]
    .concat()
}

fn plan(more: &str) -> Plan {
    Plan::new()
        .config(&format!("[socket]\nproxy = 'required'\n{more}"))
        .argument("--log-format=json")
}

fn connect_with(address: SocketAddr, header: &[u8]) -> TcpStream {
    let mut client = connect(address);
    client.write_all(header).unwrap();
    client
}

/// The events of ends of connections, of which there have to be so many.
#[track_caller]
fn ends(log: impl Fn() -> String, count: usize) -> Vec<Value> {
    eventually(SOON, "not all ends were logged", || {
        let log = log();
        let lines = log.lines().filter(|line| line.contains(CLOSED));
        let events: Vec<Value> = lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        (events.len() >= count).then_some(events)
    })
}

/// The one end that was logged.
#[track_caller]
fn end(daemon: &Daemon) -> Value {
    ends(|| daemon.log(), 1).remove(0)
}

#[test]
fn a_header_is_taken_wherever_it_is_split_and_never_echoed() {
    let daemon = plan("").start();
    for header in [LINE, BINARY, CHECK, b"PROXY UNKNOWN\r\n"] {
        let clients: Vec<TcpStream> = (0..header.len())
            .map(|cut| {
                let client = connect(daemon.address());
                client.set_nodelay(true).unwrap();
                (&client).write_all(&header[..cut]).unwrap();
                client
            })
            .collect();
        // Each first part was looked at.
        thread::sleep(Duration::from_millis(50));
        for (cut, client) in clients.iter().enumerate() {
            let rest = [&header[cut..], b"and some bytes"].concat();
            (&mut &*client).write_all(&rest).unwrap();
            let mut echo = [0; 14];
            (&mut &*client).read_exact(&mut echo).unwrap();
            assert_eq!(&echo, b"and some bytes", "cut behind byte {cut}");
            ping(client, b"again");
            assert!(finish(client).is_empty());
        }
    }
}

#[test]
fn a_header_may_come_byte_by_byte_and_what_it_says_is_logged() {
    let daemon = plan("").start();
    let extensions = [
        &b"\x02\x00\x0cecho.example"[..],
        b"\x05\x00\x03id\n",
        b"\xea\x00\x0a\x01vpce-0123",
        b"\x77\x00\x01x",
    ];
    let header = binary([203, 0, 113, 9], &extensions.concat());
    let client = connect(daemon.address());
    client.set_nodelay(true).unwrap();
    for byte in &header {
        (&client).write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    ping(&client, b"hello");
    assert!(finish(&client).is_empty());
    let end = end(&daemon);
    for (field, value) in [
        ("echo.peer", "203.0.113.9:51812"),
        ("echo.local", "192.0.2.1:7"),
        ("echo.proxy", &client.local_addr().unwrap().to_string()),
        ("echo.authority", "echo.example"),
        ("echo.unique_id", "id\\n"),
        ("echo.endpoint", "vpce-0123"),
        ("echo.reason", "peer-closed"),
    ] {
        assert_eq!(end[field], value, "{field} of {end:#}");
    }
    // The header is no part of the stream.
    assert_eq!(
        (&end["echo.received"], &end["echo.sent"]),
        (&5.into(), &5.into())
    );
}

#[test]
fn what_is_no_header_is_refused_at_once_and_not_echoed() {
    let daemon = plan("").start();
    let wrong_sum = binary([203, 0, 113, 9], b"\x03\x00\x04abcd");
    for bytes in [
        &b"hello"[..],
        b"\0",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\n",
        &[b'P'; 9000],
        &wrong_sum,
    ] {
        let client = connect_with(daemon.address(), bytes);
        assert_eq!(end_of(&client).unwrap_or_default(), b"");
    }
    let mut client = connect_with(daemon.address(), &BINARY[..20]);
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
    for end in ends(|| daemon.log(), 6) {
        assert_eq!(end["echo.reason"], "header-invalid", "{end:#}");
        assert!(end["echo.error"].is_string(), "{end:#}");
        assert_eq!(end["echo.received"], 0, "{end:#}");
    }
    ping(connect_with(daemon.address(), LINE), b"the next one");
}

#[test]
fn a_header_that_stays_away_ends_the_connection() {
    let daemon = plan("proxy-timeout = '400ms'\n").start();
    let silent = connect(daemon.address());
    let half = connect_with(daemon.address(), &LINE[..20]);
    let began = Instant::now();
    waits(&silent, Duration::from_millis(200));
    for client in [&silent, &half] {
        assert_eq!(end_of(client).unwrap_or_default(), b"");
    }
    assert!(began.elapsed() >= Duration::from_millis(390));
    for end in ends(|| daemon.log(), 2) {
        assert_eq!(end["echo.reason"], "header-timeout", "{end:#}");
    }
}

#[test]
fn only_a_trusted_proxy_may_name_clients() {
    let daemon = plan("proxy-trusted = ['127.0.0.2', '10.0.0.0/8']\n").start();
    let client = connect_with(daemon.address(), LINE);
    assert_eq!(end_of(&client).unwrap_or_default(), b"");
    let end = end(&daemon);
    assert_eq!(end["echo.reason"], "untrusted", "{end:#}");
    assert_eq!(end["echo.peer"], client.local_addr().unwrap().to_string());
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let from: SocketAddr = "127.0.0.2:0".parse().unwrap();
    socket.bind(&from.into()).unwrap();
    socket.connect(&daemon.address().into()).unwrap();
    let client = TcpStream::from(socket);
    client.set_read_timeout(Some(SOON)).unwrap();
    (&client).write_all(BINARY).unwrap();
    ping(&client, b"trusted");
}

#[test]
fn a_peer_of_a_unix_socket_is_trusted() {
    let folder = testkit::Folder::new();
    let path = folder.path("echo.sock");
    let _daemon = Plan::bare()
        .config("[socket]\nproxy = 'required'\nproxy-trusted = []\n")
        .argument(&format!("--listen=unix:{}", path.display()))
        .start();
    let mut client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    client.write_all(LINE).unwrap();
    ping(client, b"hello");
}

#[test]
fn the_limit_of_a_source_counts_the_clients_of_the_header() {
    let daemon = plan("[limits]\nmax-connections-per-source = 2\n").start();
    let of = |last| connect_with(daemon.address(), &binary([203, 0, 113, last], b""));
    let served: Vec<TcpStream> = [9, 9, 10, 10].map(of).into();
    served.iter().for_each(|client| ping(client, b"hello"));
    let third = of(9);
    assert_eq!(end_of(&third).unwrap_or_default(), b"");
    let end = end(&daemon);
    assert_eq!(end["echo.reason"], "max-connections-per-source", "{end:#}");
    assert_eq!(end["echo.peer"], "203.0.113.9:51812");
    // Checks of the proxy have no source, and one that is over makes room.
    let checks: Vec<TcpStream> = (0..5)
        .map(|_| connect_with(daemon.address(), CHECK))
        .collect();
    checks.iter().for_each(|check| ping(check, b"check"));
    assert!(finish(&served[0]).is_empty());
    eventually(SOON, "there is no room for the next one", || {
        let mut next = of(9);
        next.write_all(b"?").unwrap();
        (next.read(&mut [0]).ok()? == 1).then_some(())
    });
    served[1..]
        .iter()
        .for_each(|client| ping(client, b"still here"));
}

#[test]
fn a_stop_echoes_what_has_arrived_behind_a_header() {
    let mut daemon = plan("").start();
    daemon.freeze();
    let whole = connect_with(daemon.address(), &[LINE, b"some bytes"].concat());
    let part = connect_with(daemon.address(), &LINE[..7]);
    let none = connect(daemon.address());
    daemon.signal(rustix::process::Signal::TERM);
    daemon.thaw();
    assert_eq!(end_of(&whole).unwrap(), b"some bytes");
    for client in [part, none] {
        assert_eq!(end_of(&client).unwrap_or_default(), b"");
    }
    assert!(daemon.exited(SOON).success());
}

#[test]
fn checks_and_scans_do_no_harm() {
    let daemon = plan("").start();
    let descriptors = daemon.descriptors();
    for bytes in [
        CHECK,
        b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n",
        b"",
        &LINE[..9],
    ] {
        for _ in 0..50 {
            reset(connect_with(daemon.address(), bytes));
        }
    }
    ping(connect_with(daemon.address(), BINARY), b"hello");
    daemon.has_released(descriptors);
}

#[test]
fn a_reload_changes_what_the_next_connections_begin_with() {
    let daemon = plan("").start();
    let before = connect_with(daemon.address(), LINE);
    ping(&before, b"hello");
    daemon.reload("");
    ping(&before, b"still here");
    ping(daemon.connect(), LINE);
    daemon.reload("[socket]\nproxy = 'required'\n");
    ping(connect_with(daemon.address(), LINE), b"hello");
}

#[test]
fn the_probe_finds_no_fault() {
    let daemon = plan("").start();
    let address = daemon.address().to_string();
    let (status, report) = judged(&address, &["--proxy-receiver", "--only", "proxy"]);
    assert_eq!(status, 0, "{report:#}");
    // Headers longer than 4096 bytes are refused, which the standard allows.
    let noted = verdicts(&report)
        .into_iter()
        .filter(|(_, verdict)| *verdict != "ok");
    assert_eq!(noted.collect::<Vec<_>>(), [("proxy/long", "note")]);
}

// Over restarts and crashes.

fn manager() -> Manager {
    let mut manager = Manager::new();
    manager.config("preserve-after = '0s'\n[socket]\nproxy = 'required'\n");
    manager.start();
    manager
}

/// Connections at each byte of a header go on after `end`.
fn survive(header: &[u8], again: impl Fn(&mut Manager)) {
    let mut manager = manager();
    let parts: Vec<TcpStream> = (0..=header.len())
        .map(|cut| connect_with(manager.address(), &header[..cut]))
        .collect();
    manager.preserves(parts.len());
    for _ in 0..3 {
        again(&mut manager);
    }
    for (cut, client) in parts.iter().enumerate() {
        (&mut &*client).write_all(&header[cut..]).unwrap();
        ping(client, b"behind the header");
    }
    // And once it was taken.
    again(&mut manager);
    for client in &parts {
        ping(client, b"still behind it");
        assert!(finish(client).is_empty());
    }
    let ends = ends(|| manager.daemon().log(), parts.len());
    for end in ends {
        assert_eq!(end["echo.peer"], "203.0.113.9:51812", "{end:#}");
        assert_eq!(end["echo.local"], "192.0.2.1:7", "{end:#}");
        assert_eq!(end["echo.received"], 32, "{end:#}");
    }
}

#[test]
fn the_header_phase_survives_a_restart_at_each_byte() {
    survive(LINE, Manager::restart);
    survive(BINARY, Manager::restart);
}

#[test]
fn the_header_phase_survives_a_kill_at_each_byte() {
    let kill = |manager: &mut Manager| {
        manager.kill();
        manager.start();
    };
    survive(LINE, kill);
    survive(BINARY, kill);
}

/// Killed on the way into a system call between the look at the header and the echo, again and again.
#[test]
fn a_kill_between_two_calls_neither_loses_nor_repeats_a_header() {
    if !has("strace") {
        return;
    }
    for call in ["recvfrom", "fallocate", "sendto"] {
        for number in 1..=6 {
            let mut manager = manager();
            let clients: Vec<TcpStream> = (0..2)
                .map(|_| connect_with(manager.address(), &BINARY[..9]))
                .collect();
            manager.preserves(2);
            manager.kill();
            for client in &clients {
                (&mut &*client).write_all(&BINARY[9..]).unwrap();
                (&mut &*client).write_all(b"some bytes").unwrap();
            }
            manager.inject(call, &format!("signal=SIGKILL:when={number}"));
            manager.launch();
            // It may get through the whole, where there are fewer calls of that kind.
            thread::sleep(Duration::from_millis(300));
            manager.kill();
            manager.under(&[]);
            manager.start();
            for client in &clients {
                let mut echo = [0; 10];
                (&mut &*client)
                    .read_exact(&mut echo)
                    .unwrap_or_else(|error| {
                        panic!("killed at {call} {number}: {error}");
                    });
                assert_eq!(&echo, b"some bytes", "killed at {call} {number}");
                ping(client, b"more");
                assert!(finish(client).is_empty());
            }
        }
    }
}

// Behind proxies of others.

#[test]
fn haproxy_and_nginx_name_their_clients() {
    let daemon = plan("").start();
    let echo = daemon.address();
    let [first, second, third] = unused();
    let at_test = |text: String| {
        text.replace("192.0.2.11:7", &echo.to_string())
            .replace(" :7001", &format!(" {first}"))
            .replace(" :7002", &format!(" {second}"))
            .replace("listen 7;", &format!("listen {third};"))
    };
    let mut proxies = Vec::new();
    let mut names = Vec::new();
    if has("haproxy") {
        let text = "defaults
    timeout connect 5s
    timeout client 60s
    timeout server 60s
"
        .to_owned()
            + &at_test(documented("haproxy", "send-proxy-v2"));
        let arguments = ["-db", "-f", "FILE"];
        proxies.push(Other::start("haproxy", &arguments, &text, &[first, second]));
        names.extend([first, second]);
    }
    let stream = at_test(documented("nginx", "proxy_protocol"));
    let servers = stream.trim().strip_prefix("stream {").unwrap();
    let servers = servers.strip_suffix('}').unwrap();
    proxies.extend(start_nginx(servers, &[third]).inspect(|_| names.push(third)));
    for name in names {
        let client = connect(name);
        ping(&client, &[7; 100_000]);
        assert!(finish(&client).is_empty());
        let peer = client.local_addr().unwrap().to_string();
        let event = eventually(SOON, "the client was not named", || {
            let ends = ends(|| daemon.log(), 1);
            ends.into_iter()
                .find(|end| end["echo.peer"] == peer.as_str())
        });
        assert_eq!(event["echo.local"], name.to_string(), "{event:#}");
        assert_eq!(event["echo.received"], 100_000, "{event:#}");
        let has_id = event["echo.unique_id"].is_string();
        assert_eq!(has_id, name == second && has("haproxy"), "{event:#}");
    }
    // Their checks were taken for checks.
    let wrong = ["header-invalid", "untrusted", "error"];
    let log = daemon.log();
    assert!(
        !wrong
            .iter()
            .any(|word| log.contains(&format!("\"{word}\""))),
        "{log}"
    );
}

#[test]
fn what_haproxy_has_named_is_still_known_after_restarts_and_kills() {
    if !has("haproxy") {
        return;
    }
    let mut manager = manager();
    let [first, second] = unused();
    let text = documented("haproxy", "send-proxy-v2")
        .replace("192.0.2.11:7", &manager.address().to_string())
        .replace(" :7001", &format!(" {first}"))
        .replace(" :7002", &format!(" {second}"));
    let text =
        format!("defaults\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n{text}");
    let _haproxy = Other::start("haproxy", &["-db", "-f", "FILE"], &text, &[first, second]);
    let clients: Vec<TcpStream> = [first, second, first, second].map(connect).into();
    clients.iter().for_each(|client| ping(client, b"before"));
    let mut mix = ClientMix::new(second, &[(Kind::Streaming, 4)]);
    mix.meanwhile(|progress| {
        for _ in 0..3 {
            progress.moves(100_000);
            manager.preserves(8);
            manager.restart();
            progress.moves(100_000);
            manager.preserves(8);
            manager.kill();
            manager.start();
        }
        progress.moves(100_000);
    });
    mix.none_was_dropped();
    mix.gets_exact_bytes();
    for client in &clients {
        ping(client, b"after");
        let peer = client.local_addr().unwrap().to_string();
        assert!(finish(client).is_empty());
        eventually(SOON, "the client is not known any more", || {
            let ends = ends(|| manager.daemon().log(), 1);
            ends.into_iter()
                .find(|end| end["echo.peer"] == peer.as_str())
        });
    }
}
