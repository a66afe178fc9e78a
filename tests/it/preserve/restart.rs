//! Connections outlive the daemon: over a restart, and over a kill at any time.
//!
//! The manager is the fixture's ([`testkit::manager`]), so that a restart takes milliseconds.  The
//! clients ([`testkit::crowd`]) check every byte; all that they may see is a pause.  These are the
//! promises of a service with a manager that stores what it is given; other cases are in `degrade`, and
//! a crash between any two system calls is in `instants`.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};
use rustix::process::Signal;
use tcp_echo::log::events::id;
use testkit::crowd::{ClientMix, Kind, Kind::*};
use testkit::manager::{Manager, Way, value};
use testkit::{
    Dice, Folder, SOON, Tape, connect, end_of, eventually, finish, has, ping, reset, traced,
};

use super::is_closed;
use crate::is_acknowledged;

/// Message ids that the tests look for; what they stand for is the catalog's business.
const PRESERVING: &str = id("PRESERVING");
const RESTORED: &str = id("RESTORED");
const HANDED_OVER: &str = id("HANDED_OVER");
const CLOSED: &str = id("CLOSED");
const COUNTERS: &str = id("COUNTERS");

/// Connections are not preserved, as `preserve-after` is never over.
const NEVER: &str = "preserve-after = '1h'\n";

/// Some of each kind.
const ALL: [(Kind, usize); 5] = [
    (Streaming, 6),
    (Idle, 4),
    (HalfClosed, 2),
    (Finished, 3),
    (Stalled, 3),
];

/// Some of each kind that is possible with large buffers.
const WIDE: [(Kind, usize); 4] = [(Streaming, 6), (Idle, 4), (HalfClosed, 4), (Stalled, 4)];

/// The event of the end of the connection from this client's address.
#[track_caller]
fn end_logged(manager: &Manager, peer: &str) -> serde_json::Value {
    let daemon = manager.daemon();
    eventually(SOON, "the end was not told", || {
        let log = daemon.log();
        let events = log.lines().filter(|line| line.contains(CLOSED));
        let mut events = events.map(|line| serde_json::from_str(line).unwrap());
        events.find(|event: &serde_json::Value| event["echo.peer"] == peer)
    })
}

/// Of many connections, the daemon serves those with traffic while the others are still to be examined.
#[test]
fn the_first_connection_goes_on_before_the_last_is_examined() {
    if !has("strace") {
        return;
    }
    let mut manager = Manager::new();
    manager.start();
    // More than two slices.
    let quiet: Vec<TcpStream> = (0..600).map(|_| manager.connect()).collect();
    let busy = manager.connect();
    manager.preserves(quiet.len() + 1);
    manager.hand_over();
    (&busy).write_all(b"traffic").unwrap();
    let folder = Folder::new();
    let trace = folder.path("trace").display().to_string();
    let calls = "trace=getsockopt,sendto";
    manager.under(&["strace", "-D", "-f", "-q", "-o", &trace, "-e", calls]);
    manager.start();
    (&busy).read_exact(&mut [0; 7]).unwrap();
    for client in &quiet {
        ping(client, b"still here");
    }
    manager.stop();
    let text = traced(&trace);
    let place = |wanted: &str| text.lines().position(|line| line.contains(wanted));
    let echoed = place("\"traffic\"").unwrap();
    let examined = text
        .lines()
        .take_while(|line| !line.contains("\"still here\""));
    let examined = examined
        .enumerate()
        .filter(|(_, line)| line.contains("TCP_INFO"));
    let after = examined.filter(|(at, _)| *at > echoed).count();
    assert!(
        after > quiet.len() / 2,
        "{after} were examined later:\n{text}"
    );
}

#[test]
fn connections_live_through_a_restart() {
    let mut manager = Manager::new();
    manager.start();
    let clients: Vec<TcpStream> = (0..50).map(|_| manager.connect()).collect();
    for round in 0..5 {
        for client in &clients {
            ping(client, format!("round {round}").as_bytes());
        }
        manager.restart();
    }
    for client in &clients {
        ping(client, b"still here");
        assert!(finish(client).is_empty());
    }
}

#[test]
fn connections_live_through_a_kill() {
    let mut manager = Manager::new();
    manager.start();
    let clients: Vec<TcpStream> = (0..50).map(|_| manager.connect()).collect();
    clients.iter().for_each(|client| ping(client, b"hello"));
    manager.preserves(50);
    for round in 0..5 {
        manager.kill();
        manager.start();
        for client in &clients {
            ping(client, format!("round {round}").as_bytes());
        }
    }
    for client in &clients {
        assert!(finish(client).is_empty());
    }
}

#[test]
fn streams_live_through_thirty_kills_in_a_row() {
    let mut manager = Manager::new();
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &[(Streaming, 24)]);
    mix.meanwhile(|progress| {
        manager.preserves(24);
        let mut dice = Dice::new(30);
        for _ in 0..30 {
            // At any moment, but not before it has done a whole round.
            ping(manager.connect(), b"hello");
            thread::sleep(Duration::from_micros(dice.up_to(30_000) as u64));
            manager.kill();
            manager.start();
        }
        progress.moves(100_000);
    });
    mix.none_was_dropped();
    mix.gets_exact_bytes();
}

#[test]
fn streams_live_through_restarts_and_kills_in_turn() {
    let mut manager = Manager::new();
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &[(Streaming, 24)]);
    mix.meanwhile(|progress| {
        manager.preserves(24);
        let mut dice = Dice::new(31);
        for _ in 0..20 {
            ping(manager.connect(), b"hello");
            thread::sleep(Duration::from_micros(dice.up_to(30_000) as u64));
            let way = if dice.up_to(2) == 1 {
                Way::Restart
            } else {
                Way::Kill
            };
            manager.replace(way);
        }
        progress.moves(100_000);
    });
    mix.none_was_dropped();
    mix.gets_exact_bytes();
}

#[test]
fn every_kind_of_client_gets_exactly_its_bytes() {
    for wide in [false, true] {
        for ways in [
            &[Way::Restart][..],
            &[Way::Kill],
            &[Way::Restart, Way::Kill, Way::Kill, Way::Restart, Way::Kill],
        ] {
            let (mut manager, kinds) = if wide {
                (Manager::wide(), &WIDE[..])
            } else {
                (Manager::new(), &ALL[..])
            };
            manager.start();
            let mut mix = ClientMix::new(manager.address(), kinds);
            manager.preserves(18);
            for way in ways {
                manager.replace(*way);
                mix.echoes_on();
            }
            mix.gets_exact_bytes();
        }
    }
}

#[test]
fn what_was_on_its_way_when_the_daemon_was_killed_comes_back() {
    let mut manager = Manager::new();
    manager.start();
    let clients: Vec<TcpStream> = (0..20).map(|_| manager.connect()).collect();
    clients.iter().for_each(|client| ping(client, b"hello"));
    manager.preserves(20);
    let mut dice = Dice::new(1);
    // It is suspended, so that all bytes are in the kernel and none was read.
    manager.daemon().freeze();
    let mut tapes: Vec<(Tape, Tape)> = (0..20)
        .map(|seed| (Tape::new(seed), Tape::new(seed)))
        .collect();
    for (client, (said, _)) in clients.iter().zip(&mut tapes) {
        said.send(client, dice.up_to(60_000)).unwrap();
        is_acknowledged(client);
    }
    manager.kill();
    // While there is no daemon, too.
    for (number, (client, (said, _))) in clients.iter().zip(&mut tapes).enumerate() {
        said.send(client, dice.up_to(20_000)).unwrap();
        if number % 2 == 0 {
            client.shutdown(Shutdown::Write).unwrap();
        }
    }
    manager.start();
    for (number, (client, (said, heard))) in clients.iter().zip(&mut tapes).enumerate() {
        if number % 2 == 0 {
            heard.expect_to_the_end(client);
            assert_eq!(heard.position(), said.position());
        } else {
            heard.expect(client, said.position());
            ping(client, b"still here");
        }
    }
}

#[test]
fn an_urgent_byte_does_not_upset_the_sums() {
    let mut manager = Manager::new();
    manager.start();
    let client = manager.connect();
    ping(&client, b"hello");
    manager.preserves(1);
    for _ in 0..3 {
        manager.daemon().freeze();
        (&client).write_all(b"before").unwrap();
        send(&client, b"!", SendFlags::OOB).unwrap();
        (&client).write_all(b"behind").unwrap();
        is_acknowledged(&client);
        manager.kill();
        manager.start();
        let mut echo = [0; 13];
        (&client).read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"before!behind");
    }
    assert!(finish(&client).is_empty());
}

#[test]
fn a_new_connection_survives_a_restart_and_is_closed_in_a_crash() {
    let mut manager = Manager::new();
    manager.config(NEVER);
    manager.start();
    let old = manager.connect();
    ping(&old, b"hello");
    manager.restart();
    ping(&old, b"still here");
    // The hand-over has preserved it, so a crash does no harm from now on.
    manager.preserves(1);
    let young = manager.connect();
    ping(&young, b"hello");
    manager.kill();
    assert!(is_closed(&young));
    manager.start();
    ping(&old, b"still here");
    manager.preserves(1);
}

#[test]
fn callers_that_come_while_there_is_no_daemon_are_served_by_the_next() {
    let mut manager = Manager::new();
    manager.start();
    for way in [Way::Restart, Way::Kill] {
        manager.ends(way);
        let caller = manager.connect();
        Tape::new(1).send(&caller, 5000).unwrap();
        manager.start();
        Tape::new(1).expect(&caller, 5000);
        ping(&caller, b"hello");
    }
}

#[test]
fn a_daemon_that_listens_for_itself_hands_its_connections_over_too() {
    let mut manager = Manager::without_listeners(1);
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &WIDE);
    manager.preserves(18);
    for way in [Way::Restart, Way::Kill, Way::Restart] {
        manager.replace(way);
        mix.echoes_on();
        ping(manager.connect(), b"a new one");
    }
    mix.gets_exact_bytes();
}

#[test]
fn unix_connections_survive_a_restart_and_end_in_a_crash() {
    let mut manager = Manager::new().unix_listener("local");
    manager.start();
    let call = || {
        let client = UnixStream::connect(manager.path("local")).unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        client.set_write_timeout(Some(SOON)).unwrap();
        ping(&client, b"hello");
        client
    };
    let (client, finished, full) = (call(), call(), call());
    let tcp = manager.connect();
    ping(&tcp, b"hello");
    // One that has finished and not read, and one that is stalled.
    Tape::new(1).send(&finished, 50_000).unwrap();
    finished.shutdown(Shutdown::Write).unwrap();
    full.set_nonblocking(true).unwrap();
    let mut said = Tape::new(2);
    for _ in 0..50 {
        let _ = said.send(&full, 1 << 20);
        thread::sleep(Duration::from_millis(2));
    }
    full.set_nonblocking(false).unwrap();
    manager.restart();
    manager.restart();
    let mut heard = Tape::new(1);
    heard.expect_to_the_end(&finished);
    assert_eq!(heard.position(), 50_000);
    ping(&client, b"still here");
    let mut heard = Tape::new(2);
    heard.expect(&full, said.position());
    ping(&full, b"still here");
    drop(full);
    // The manager holds the listener, too, so it outlives the process.
    let other = UnixStream::connect(manager.path("local")).unwrap();
    other.set_read_timeout(Some(SOON)).unwrap();
    ping(&other, b"a new one");
    drop(other);
    // The restart has preserved them, but after a crash the position of a Unix stream is unknown.
    manager.kill();
    manager.start();
    assert!(is_closed(&client));
    ping(&tcp, b"still here");
}

#[test]
fn a_stop_drains_every_connection_and_empties_the_store() {
    for before in [None, Some(Way::Restart), Some(Way::Kill)] {
        let mut manager = Manager::new();
        manager.start();
        let mut mix = ClientMix::new(manager.address(), &ALL);
        manager.preserves(18);
        if let Some(way) = before {
            manager.replace(way);
            mix.echoes_on();
        }
        manager.daemon().signal(Signal::TERM);
        manager.notified("STOPPING=1");
        mix.ends_with_fin();
        assert!(manager.ended().success());
        assert!(manager.names().is_empty(), "{:?}", manager.names());
        manager.start();
        let client = manager.connect();
        ping(&client, b"a new beginning");
        manager.preserves(1);
    }
}

#[test]
fn numbers_durations_bytes_and_totals_go_on() {
    let mut manager = Manager::new();
    manager.start();
    let began = Instant::now();
    let first = manager.connect();
    ping(&first, &[1; 1000]);
    let peer = first.local_addr().unwrap().to_string();
    manager.preserves(1);
    for round in 0..3 {
        manager.restart();
        ping(&first, &[2; 1000]);
        let caller = manager.connect();
        ping(&caller, &[3; 10]);
        let address = caller.local_addr().unwrap().to_string();
        drop(caller);
        let told = end_logged(&manager, &address);
        assert_eq!(told["echo.connection"], round + 2);
        assert_eq!(told["echo.received"], 10);
    }
    manager.restart();
    manager.daemon().signal(Signal::USR1);
    let totals = manager.event(COUNTERS);
    assert_eq!(totals["echo.accepted"], 4, "{totals}");
    assert_eq!(totals["echo.open"], 1, "{totals}");
    assert_eq!(totals["echo.received"], 4030, "{totals}");
    assert_eq!(totals["echo.sent"], 4030, "{totals}");
    // Nothing that is recorded of a connection is lost in a crash.
    manager.kill();
    manager.start();
    ping(&first, &[4; 1000]);
    let lived = began.elapsed();
    drop(first);
    let told = end_logged(&manager, &peer);
    assert_eq!(told["echo.connection"], 1, "{told}");
    assert_eq!(told["echo.received"], 5000, "{told}");
    assert_eq!(told["echo.sent"], 5000, "{told}");
    assert_eq!(told["echo.listener"], "echo", "{told}");
    assert_eq!(told["echo.reason"], "peer-closed", "{told}");
    let duration = Duration::from_micros(told["echo.duration_usec"].as_u64().unwrap());
    let began_late = Duration::from_millis(50);
    assert!(duration + began_late >= lived, "{duration:?} of {lived:?}");
}

#[test]
fn max_lifetime_counts_from_the_opening() {
    let mut manager = Manager::new();
    manager.config("preserve-after = '0s'\n[limits]\nmax-lifetime = '3s'\n");
    manager.start();
    let client = manager.connect();
    let began = Instant::now();
    ping(&client, b"hello");
    manager.preserves(1);
    while began.elapsed() < Duration::from_secs(2) {
        manager.restart();
        manager.kill();
        manager.start();
        ping(&client, b"still here");
    }
    assert_eq!(end_of(&client).unwrap(), b"");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(6), "it took {took:?}");
    manager.event(CLOSED);
}

#[test]
fn what_a_client_did_while_there_was_no_daemon_is_noticed() {
    for way in [Way::Restart, Way::Kill] {
        let mut manager = Manager::new();
        manager.start();
        let clients: Vec<TcpStream> = (0..9).map(|_| manager.connect()).collect();
        clients.iter().for_each(|client| ping(client, b"hello"));
        manager.preserves(9);
        manager.ends(way);
        let mut left = Vec::new();
        for (number, client) in clients.into_iter().enumerate() {
            match number % 3 {
                0 => drop(client),
                1 => reset(client),
                _ => left.push(client),
            }
        }
        manager.start();
        left.iter().for_each(|client| ping(client, b"still here"));
        manager.status_has("3 connections, ");
        let open = manager.daemon().descriptors();
        drop(left);
        manager.status_has("0 connections, ");
        manager.daemon().has_released(open - 3);
    }
}

#[test]
fn status_and_events_report_what_is_preserved_handed_over_and_restored() {
    let mut manager = Manager::new();
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &[(Idle, 3), (Stalled, 2)]);
    manager.preserves(5);
    let keeping = manager.event(PRESERVING);
    assert!(keeping["echo.max_connections"].as_u64().unwrap() > 0);
    assert_eq!(keeping["level"], "INFO");
    manager.hand_over();
    let stopping = manager.messages().pop().unwrap();
    assert!(stopping.contains("STOPPING=1"), "{stopping}");
    let status = value(&stopping, "STATUS").unwrap();
    assert!(status.ends_with("; 5 connections preserved"), "{status}");
    let handed = manager.past_event(HANDED_OVER);
    assert_eq!(handed["echo.preserved"], 5, "{handed}");
    assert_eq!(handed["echo.open"], 5, "{handed}");
    manager.start();
    let adopted = manager.event(RESTORED);
    assert_eq!(adopted["echo.restored"], 5, "{adopted}");
    assert_eq!(adopted["echo.of"], 5, "{adopted}");
    assert_eq!(adopted["echo.owing"], 2, "{adopted}");
    assert!(adopted["echo.owed"].as_u64().unwrap() > 0, "{adopted}");
    assert_eq!(adopted["echo.planned"], true, "{adopted}");
    assert_eq!(adopted["echo.crashes"], 0, "{adopted}");
    assert_eq!(adopted["level"], "INFO", "{adopted}");
    manager.preserves(5);
    mix.echoes_on();
    manager.kill();
    manager.start();
    let adopted = manager.event(RESTORED);
    assert_eq!(adopted["echo.restored"], 5, "{adopted}");
    assert_eq!(adopted["echo.planned"], false, "{adopted}");
    mix.echoes_on();
    mix.gets_exact_bytes();
}

#[test]
fn after_many_restarts_the_store_holds_no_more_than_after_one() {
    let mut manager = Manager::new();
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &ALL);
    manager.preserves(18);
    manager.restart();
    mix.echoes_on();
    let mut dice = Dice::new(3);
    let measure = |manager: &Manager| {
        let blocks =
            std::os::unix::fs::MetadataExt::blocks(&manager.state_file().metadata().unwrap());
        let queue = manager.one_of_each();
        (manager.daemon().descriptors(), queue, blocks)
    };
    let once = measure(&manager);
    for _ in 0..30 {
        let way = if dice.up_to(2) == 1 {
            Way::Restart
        } else {
            Way::Kill
        };
        manager.replace(way);
        mix.echoes_on();
    }
    manager.preserves(18);
    let often = measure(&manager);
    // Restored in place: neither a new descriptor queue nor a new state file.
    assert_eq!(often.1, once.1);
    assert_eq!(manager.peak(), 3);
    assert!(often.0 <= once.0, "{} descriptors, {}", often.0, once.0);
    // Of 512 bytes; a slot is at most 128 of them, given back a second later.
    assert!(
        often.2 <= once.2 + 24 * 128,
        "{} blocks, {}",
        often.2,
        once.2
    );
    mix.gets_exact_bytes();
    let stores = manager.messages();
    let stores = stores.iter().filter(|message| message.contains("FDSTORE="));
    // The state file, and the ends of the descriptor queue one by one.
    assert_eq!(stores.count(), 3);
}

#[test]
fn a_configuration_that_changes_meanwhile_is_the_one_in_effect() {
    let mut manager = Manager::new();
    manager.start();
    let client = manager.connect();
    ping(&client, b"hello");
    manager.preserves(1);
    manager.config("preserve-after = '0s'\n[limits]\nidle-timeout = '1s'\n");
    manager.restart();
    ping(&client, b"still here");
    assert_eq!(end_of(&client).unwrap(), b"");
    assert_eq!(manager.event(CLOSED)["echo.reason"], "idle-timeout");
}

#[test]
fn connections_outlive_the_listener_that_accepted_them() {
    let mut manager = Manager::new();
    manager.start();
    let client = connect(manager.address());
    ping(&client, b"hello");
    manager.preserves(1);
    for way in [Way::Restart, Way::Kill] {
        manager.replace_listeners("other", TcpListener::bind("127.0.0.1:0").unwrap());
        manager.replace(way);
        ping(&client, b"still here");
        ping(manager.connect(), b"a new one");
    }
    let peer = client.local_addr().unwrap().to_string();
    drop(client);
    let told = end_logged(&manager, &peer);
    assert_eq!(told["echo.listener"], "echo", "{told}");
}

/// The queue of descriptors holds a socket until it is rotated: its memory must not stay as long.
#[test]
fn a_closed_connection_has_nothing_in_its_queues_and_a_stalled_peer_sees_the_end() {
    let mut manager = Manager::new();
    manager.config("preserve-after = '100ms'\n[limits]\nstall-timeout = '2s'\n");
    manager.start();
    let clients: Vec<TcpStream> = (0..20).map(|_| manager.connect()).collect();
    for client in &clients {
        ping(client, b"hello");
    }
    manager.preserves(20);
    for mut client in &clients {
        client.set_nonblocking(true).unwrap();
        for _ in 0..20 {
            while client.write(&[7; 1 << 16]).is_ok() {}
            thread::sleep(Duration::from_millis(2));
        }
        client.set_nonblocking(false).unwrap();
    }
    let held = || manager.in_flight();
    let unread = |socket: &OwnedFd| rustix::io::ioctl_fionread(socket).unwrap_or(0);
    assert!(
        held().iter().any(|socket| unread(socket) > 0),
        "nothing is stalled"
    );
    let mut clients = clients;
    let stalled = clients.split_off(10);
    clients.into_iter().for_each(reset);
    manager.preserves(0);
    assert!(!held().is_empty(), "nothing is over");
    for socket in held() {
        assert_eq!(
            unread(&socket),
            0,
            "bytes of a connection that is over stay"
        );
    }
    for client in stalled {
        assert!(end_of(&client).is_err(), "a stalled peer was not reset");
    }
}
