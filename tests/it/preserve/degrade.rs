//! When something prevents preservation, the service goes on without it, and reports that.
//!
//! The manager stores nothing, or too little, or does not answer; the kernel refuses to have more
//! descriptors in flight; the next process has another configuration or other limits.  Each time
//! clients are served as ever, nothing hangs, and a connection that cannot be preserved gets all of its
//! bytes and a FIN, as without preservation.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tcp_echo::log::events::id;
use testkit::crowd::{ClientMix, Kind, Kind::*};
use testkit::manager::{Manager, Way, memory_file};
use testkit::{SOON, connect, eventually, finish, has, ping, program};

use super::{is_closed, short_lived};

/// Message ids that the tests look for; what they stand for is the catalog's business.
const PRESERVING: &str = id("PRESERVING");
const NOT_PRESERVING: &str = id("NOT_PRESERVING");
const RESTORED: &str = id("RESTORED");
const PRESERVE_FAILED: &str = id("PRESERVE_FAILED");
const PREDECESSOR_DROPPED: &str = id("PREDECESSOR_DROPPED");

/// Some of each kind.
const ALL: [(Kind, usize); 5] = [
    (Streaming, 4),
    (Idle, 4),
    (HalfClosed, 2),
    (Finished, 2),
    (Stalled, 4),
];

/// Clients that wait for each answer, and clients that do not send.
const CALM: [(Kind, usize); 4] = [(Idle, 4), (HalfClosed, 1), (Finished, 1), (Stalled, 2)];

/// Hands over without a store: every client is drained, as with TERM.
#[track_caller]
fn ends_as_without_preservation(manager: &mut Manager, mix: &mut ClientMix) {
    manager.daemon().signal(Signal::USR2);
    manager.notified("STOPPING=1");
    mix.ends_with_fin();
    assert!(manager.ended().success());
}

/// Hands over, whether there is a store or not: every client reads, so that all can be drained.
#[track_caller]
fn hands_over_or_drains(manager: &mut Manager, mix: &mut ClientMix) {
    mix.load.read_all();
    mix.meanwhile(|_| manager.hand_over());
}

/// Waits until the store has another descriptor queue than this one, and no other.
#[track_caller]
fn is_rotated(manager: &Manager, before: &str) {
    eventually(SOON, "the queue was not rotated", || {
        (!manager.names().iter().any(|name| name == before)).then_some(())
    });
    assert_ne!(manager.one_of_each(), before);
}

#[test]
fn without_a_store_every_client_is_served_and_drained_at_the_end() {
    for (capacity, environment) in [(0, None), (1, None), (0, Some("0")), (2, Some("2"))] {
        let mut manager = Manager::new();
        manager.capacity(capacity);
        if let Some(size) = environment {
            manager.environment("FDSTORE", size);
        }
        manager.start();
        let mut mix = ClientMix::new(manager.address(), &ALL);
        let status = manager.preserves_nothing();
        assert!(status.contains("no descriptor store"), "{status}");
        let told = manager.event(NOT_PRESERVING);
        assert!(told["echo.reason"].is_string(), "{told}");
        assert!(!manager.daemon().log().contains(PRESERVING));
        mix.echoes_on();
        ends_as_without_preservation(&mut manager, &mut mix);
        // What little was stored must not hinder the next daemon.
        manager.capacity(16);
        manager.start();
        let client = manager.connect();
        ping(&client, b"hello");
        if environment.is_none() {
            manager.preserves(1);
            manager.one_of_each();
            manager.kill();
            manager.start();
            ping(&client, b"still here");
        }
    }
}

#[test]
fn a_store_with_room_for_one_end_of_a_queue_makes_no_client_wait() {
    // Which end is stored is the manager's choice.
    for _ in 0..4 {
        let mut manager = Manager::new();
        manager.capacity(2);
        manager.start();
        let mut mix = ClientMix::new(manager.address(), &CALM);
        manager.decides();
        mix.echoes_on();
        hands_over_or_drains(&mut manager, &mut mix);
        manager.capacity(16);
        manager.start();
        mix.gets_no_wrong_byte();
        ping(manager.connect(), b"hello");
    }
}

#[test]
fn a_store_with_just_enough_room_is_enough() {
    let mut manager = Manager::new();
    manager.capacity(3);
    manager.environment("FDSTORE", "3");
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &ALL);
    manager.preserves(16);
    for _ in 0..3 {
        manager.kill();
        manager.start();
        mix.echoes_on();
        manager.restart();
        mix.echoes_on();
    }
    manager.one_of_each();
    mix.gets_exact_bytes();
}

#[test]
fn a_manager_that_never_answers_makes_no_client_wait() {
    let mut manager = Manager::new();
    manager.answers(false);
    let began = Instant::now();
    manager.start();
    assert!(began.elapsed() < Duration::from_secs(4), "ready comes late");
    let mut mix = ClientMix::new(manager.address(), &ALL);
    mix.echoes_on();
    let status = manager.preserves_nothing();
    assert!(status.contains("does not answer"), "{status}");
    manager.event(NOT_PRESERVING);
    assert_eq!(manager.barriers(), 1);
    mix.echoes_on();
    ends_as_without_preservation(&mut manager, &mut mix);
}

#[test]
fn a_hand_over_before_the_manager_has_answered_harms_no_client() {
    let mut manager = Manager::new();
    manager.answers(false);
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &CALM);
    ends_as_without_preservation(&mut manager, &mut mix);
    manager.answers(true);
    manager.start();
    // The manager is asked only when there is a connection to preserve.
    let client = manager.connect();
    ping(&client, b"hello");
    manager.preserves(1);
    drop(client);
    manager.preserves(0);
    manager.one_of_each();
}

#[test]
fn a_descriptor_queue_with_many_closed_connections_is_rotated() {
    let mut manager = Manager::new();
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &ALL);
    manager.preserves(16);
    for round in 0..3 {
        let before = manager.one_of_each();
        drop(short_lived(&manager, 16));
        is_rotated(&manager, &before);
        mix.echoes_on();
        if round == 1 {
            manager.restart();
        } else {
            manager.kill();
            manager.start();
        }
        mix.echoes_on();
        manager.preserves(16);
    }
    assert!(
        manager.peak() <= 5,
        "{} descriptors at a time",
        manager.peak()
    );
    mix.gets_exact_bytes();
}

#[test]
fn a_store_that_is_full_at_a_rotation_makes_no_client_wait() {
    // There is room for one end of the new queue, which the manager chooses; one of them is enough.
    for room in [0, 1, 1, 1, 1] {
        let mut manager = Manager::new();
        manager.capacity(3 + room);
        manager.start();
        let mut mix = ClientMix::new(manager.address(), &CALM);
        manager.preserves(8);
        let before = manager.one_of_each();
        let barriers = manager.barriers();
        drop(short_lived(&manager, 8));
        eventually(SOON, "nothing was renewed", || {
            (manager.barriers() > barriers).then_some(())
        });
        eventually(SOON, "neither reported nor rotated", || {
            let log = manager.daemon().log();
            let told = log.contains(NOT_PRESERVING) || log.contains(PRESERVE_FAILED);
            let renewed = room > 0 && !manager.names().contains(&before);
            (told || renewed).then_some(())
        });
        mix.echoes_on();
        ping(manager.connect(), b"a new one");
        hands_over_or_drains(&mut manager, &mut mix);
        manager.capacity(16);
        manager.start();
        mix.gets_no_wrong_byte();
        ping(manager.connect(), b"a new one");
        manager.one_of_each();
    }
}

/// Eight preserved connections, while a rotation waits for an answer that does not come.
fn in_a_rotation() -> (Manager, ClientMix) {
    let mut manager = Manager::new();
    manager.start();
    let mix = ClientMix::new(manager.address(), &CALM);
    manager.preserves(8);
    manager.answers(false);
    drop(short_lived(&manager, 8));
    eventually(SOON, "nothing was renewed", || {
        (manager.stored("preserve-queue-") == 4).then_some(())
    });
    (manager, mix)
}

#[test]
fn what_is_preserved_during_a_rotation_survives_with_either_queue() {
    for answers in [false, true] {
        let (mut manager, mut mix) = in_a_rotation();
        let client = manager.connect();
        ping(&client, b"a new one");
        manager.preserves(9);
        if answers {
            manager.answers(true);
            manager.one_of_each();
        }
        manager.kill();
        manager.answers(true);
        manager.start();
        ping(&client, b"still here");
        mix.echoes_on();
        manager.preserves(9);
        manager.one_of_each();
    }
}

#[test]
fn a_manager_that_does_not_answer_at_a_rotation_makes_no_client_wait() {
    let (mut manager, mut mix) = in_a_rotation();
    mix.echoes_on();
    ping(manager.connect(), b"a new one");
    manager.status_has(" 8 connections, ");
    // A crash now, with two descriptor queues in the store.
    manager.kill();
    manager.answers(true);
    let barriers = manager.barriers();
    manager.start();
    mix.echoes_on();
    let adopted = manager.event(RESTORED);
    assert_eq!(adopted["echo.restored"], 8, "{adopted}");
    manager.one_of_each();
    // There may be no room in flight for a third queue.
    assert_eq!(manager.barriers(), barriers, "another queue was made");
    manager.preserves(8);
    manager.kill();
    manager.start();
    mix.echoes_on();
    mix.gets_exact_bytes();
}

#[test]
fn a_restart_in_the_middle_of_a_rotation_preserves_every_connection() {
    let (mut manager, mut mix) = in_a_rotation();
    manager.hand_over();
    manager.answers(true);
    manager.start();
    mix.echoes_on();
    manager.one_of_each();
    mix.gets_exact_bytes();
}

/// A command that runs a program as a user of its own, the n-th, without privileges, as the kernel
/// counts descriptors in flight by user.  Where that is not possible, prints that the test skips, and
/// returns `None`.
fn unprivileged(number: u32) -> Option<Vec<String>> {
    if !has("prlimit") || !has("setpriv") {
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be another user");
        return None;
    }
    let user = 100_000 + std::process::id() % 10_000 * 10 + number;
    let words = [
        "setpriv".to_owned(),
        format!("--reuid={user}"),
        format!("--regid={user}"),
        "--clear-groups".into(),
    ];
    let mut command = Command::new(&words[0]);
    let tried = command.args(&words[1..]).args([program(), "--version"]);
    if !tried.output().unwrap().status.success() {
        eprintln!("skipped: another user cannot run {}", program());
        return None;
    }
    Some(words.into())
}

/// Runs the next daemons under this wrapper, with so many descriptors.
fn limit(manager: &mut Manager, descriptors: usize, wrapper: &[String]) {
    let limit = format!("--nofile={descriptors}:{descriptors}");
    let mut words = vec!["prlimit", &limit];
    words.extend(wrapper.iter().map(String::as_str));
    manager.under(&words);
}

/// Has 70 preserved connections, of 96 that there may be, with 128 descriptors: too few for a second
/// copy in flight.
#[track_caller]
fn nearly_full(wrapper: &[String]) -> (Manager, Vec<TcpStream>) {
    let mut manager = Manager::new();
    // Another worker would take some of the descriptors.
    manager.config("workers = 1\npreserve-after = '0s'\n[limits]\nmax-connections = 96\n");
    limit(&mut manager, 128, wrapper);
    manager.start();
    let living: Vec<TcpStream> = (0..70).map(|_| manager.connect()).collect();
    living.iter().for_each(|client| ping(client, b"hello"));
    manager.preserves(70);
    (manager, living)
}

#[test]
fn a_connection_that_cannot_be_preserved_is_reported_and_served() {
    let Some(wrapper) = unprivileged(0) else {
        return;
    };
    let (mut manager, living) = nearly_full(&wrapper);
    let mut told = false;
    for _ in 0..12 {
        let batch: Vec<TcpStream> = (0..20).map(|_| manager.connect()).collect();
        batch.iter().for_each(|client| ping(client, b"hello"));
        // Either they are preserved, or the log says that they are not.
        eventually(SOON, "neither packed nor told", || {
            told = manager.daemon().log().contains(PRESERVE_FAILED);
            let kept = "; 90 connections preserved";
            manager.daemon().signal(Signal::USR1);
            let status = manager.notified_within("STATUS=", Duration::from_millis(50));
            let kept = status.is_some_and(|status| status.contains(kept));
            (told || kept).then_some(())
        });
        batch.iter().for_each(|client| ping(client, b"still here"));
        if told {
            break;
        }
    }
    assert!(told, "everything could be packed");
    let event = manager.event(PRESERVE_FAILED);
    assert_eq!(event["level"], "WARN", "{event}");
    assert!(event["errno"].is_number(), "{event}");
    assert!(event["echo.count"].as_u64().unwrap() > 0, "{event}");
    for client in &living {
        ping(client, b"still here");
    }
    manager.daemon().uses_hardly_any_time();
    ping(manager.connect(), b"a new one");
    manager.daemon().signal(Signal::TERM);
    assert!(manager.ended().success());
    drop(living);
}

/// A rotation needs room in flight for a second copy.  Where there is none the store is emptied, which
/// needs no room, and filled anew.
#[test]
fn preservation_comes_back_when_there_was_no_room_in_flight() {
    let Some(wrapper) = unprivileged(0) else {
        return;
    };
    let (mut manager, living) = nearly_full(&wrapper);
    // Those that come and go stay in the queue, until it can be neither filled nor rotated.
    let exhausted = |manager: &Manager| {
        let log = manager.daemon().log();
        log.contains("descriptors in flight")
    };
    for _ in 0..20 {
        let batch: Vec<TcpStream> = (0..20).map(|_| manager.connect()).collect();
        batch.iter().for_each(|client| ping(client, b"hello"));
        std::thread::sleep(Duration::from_millis(250));
        if exhausted(&manager) {
            break;
        }
    }
    assert!(exhausted(&manager), "there was always room");
    living.iter().for_each(|client| ping(client, b"still here"));
    drop(living);
    let client = manager.connect();
    ping(&client, b"the only one");
    manager.preserves(1);
    for way in [Way::Restart, Way::Kill] {
        manager.replace(way);
        ping(&client, b"still here");
        manager.preserves(1);
    }
}

/// Where there is no room in flight, the state file is not stored either, and has to be once there is.
#[test]
fn descriptors_of_another_instance_in_flight_are_in_the_way_only_as_long_as_it_runs() {
    let Some(wrapper) = unprivileged(1) else {
        return;
    };
    let mut other = Manager::new();
    other.config("workers = 1\npreserve-after = '0s'\n");
    limit(&mut other, 1024, &wrapper);
    other.start();
    let mix: Vec<TcpStream> = (0..200).map(|_| other.connect()).collect();
    mix.iter().for_each(|client| ping(client, b"hello"));
    other.preserves(200);
    let mut manager = Manager::new();
    manager.config("workers = 1\npreserve-after = '0s'\n");
    limit(&mut manager, 128, &wrapper);
    manager.start();
    let client = manager.connect();
    ping(&client, b"hello");
    let status = manager.preserves_nothing();
    assert!(status.contains("descriptors in flight"), "{status}");
    drop(mix);
    drop(other);
    manager.preserves(1);
    manager.one_of_each();
    for way in [Way::Kill, Way::Restart] {
        manager.replace(way);
        ping(&client, b"still here");
        manager.preserves(1);
    }
}

#[test]
fn a_next_process_without_preservation_drains_the_connections() {
    for planned in [true, false] {
        let mut manager = Manager::new();
        manager.start();
        let mut mix = ClientMix::new(manager.address(), &ALL);
        manager.preserves(16);
        if planned {
            manager.hand_over();
        } else {
            manager.kill();
        }
        manager.config("preserve-connections = false\n");
        manager.start();
        ping(manager.connect(), b"a new one");
        mix.ends_with_fin();
        let told = manager.event(PREDECESSOR_DROPPED);
        assert_eq!(told["level"], "WARN", "{told}");
        assert!(told["echo.reason"].is_string(), "{told}");
        eventually(SOON, "something is still in the store", || {
            manager.names().is_empty().then_some(())
        });
    }
}

/// Has 93 connections, then a daemon that may have a third of them.
#[track_caller]
fn shrinks(planned: bool, wrapper: &[String]) {
    let mut manager = Manager::new();
    limit(&mut manager, 1024, wrapper);
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &[(Idle, 90), (Stalled, 3)]);
    manager.preserves(93);
    if planned {
        manager.hand_over();
    } else {
        manager.kill();
    }
    limit(&mut manager, 64, wrapper);
    manager.start();
    let dropped = mix.gets_no_wrong_byte();
    assert!((30..93).contains(&dropped), "{dropped} of 93 were dropped");
    let told = manager.event(RESTORED);
    assert_eq!(told["echo.of"], 93, "{told}");
    assert_eq!(told["echo.restored"], 93 - dropped, "{told}");
    assert_eq!(told["level"], "WARN", "{told}");
    drop(mix);
    ping(manager.connect(), b"a new one");
    manager.stop();
    assert!(manager.names().is_empty());
}

#[test]
fn a_next_process_with_fewer_descriptors_restores_what_it_can() {
    if has("prlimit") {
        shrinks(true, &[]);
        shrinks(false, &[]);
    }
}

#[test]
fn a_next_process_with_a_lower_limit_in_flight_is_ready_and_restores_what_it_can() {
    if let Some(wrapper) = unprivileged(1) {
        shrinks(true, &wrapper);
        shrinks(false, &wrapper);
    }
}

#[test]
fn a_next_process_without_the_old_listener_restores_its_connections() {
    let configured = |name: &str| {
        format!("preserve-after = '0s'\n[listener.{name}]\nnodelay = false\nkeepalive = true\n")
    };
    let mut manager = Manager::new();
    manager.config(&configured("echo"));
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &ALL);
    manager.preserves(16);
    for (planned, name) in [(true, "other"), (false, "third")] {
        if planned {
            manager.hand_over();
        } else {
            manager.kill();
        }
        manager.replace_listeners(name, TcpListener::bind("127.0.0.1:0").unwrap());
        manager.config(&configured(name));
        manager.start();
        mix.echoes_on();
        ping(manager.connect(), b"a new one");
    }
    mix.gets_exact_bytes();
}

#[test]
fn a_next_process_with_a_lower_connection_limit_restores_all_connections() {
    let mut manager = Manager::new();
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &ALL);
    manager.preserves(16);
    manager.hand_over();
    manager.config("preserve-after = '0s'\n[limits]\nmax-connections = 4\n");
    manager.start();
    let dropped = mix.gets_no_wrong_byte();
    eprintln!("{dropped} of 16 were dropped");
    // New callers wait until there is room.
    let waiting = connect(manager.address());
    drop(mix);
    ping(&waiting, b"hello");
    assert!(finish(&waiting).is_empty());
}

#[test]
fn unexpected_descriptors_in_the_store_are_closed_and_the_service_starts() {
    let pair = || UnixStream::pair().unwrap().0;
    let datagram = || std::os::unix::net::UnixDatagram::unbound().unwrap();
    let null = || std::fs::File::open("/dev/null").unwrap();
    for name in [
        "preserve-state-1",
        "preserve-queue-1",
        "preserve-",
        "preserve-queue",
        "preserve-state-99999999999999999999999",
        "preserve-queue-x",
        "preserve-other-1",
    ] {
        for kind in 0..5 {
            let mut manager = Manager::new();
            for _ in 0..2 {
                match kind {
                    0 => manager.store(name, pair()),
                    1 => manager.store(name, datagram()),
                    2 => manager.store(name, null()),
                    3 => manager.store(name, TcpListener::bind("127.0.0.1:0").unwrap()),
                    _ => manager.store(name, memory_file(1 << 20)),
                }
            }
            manager.start();
            let client = manager.connect();
            ping(&client, b"hello");
            manager.preserves(1);
            manager.kill();
            manager.start();
            ping(&client, b"still here");
            manager.stop();
        }
    }
}

#[test]
fn preservation_that_is_switched_off_asks_the_manager_for_nothing() {
    let mut manager = Manager::new();
    manager.config("preserve-connections = false\n");
    manager.start();
    ping(manager.connect(), b"hello");
    manager.status_has("0 connections, 5 B echoed");
    manager.stop();
    assert_eq!(manager.barriers(), 0);
    for message in manager.messages() {
        for word in ["FDSTORE=", "preserved"] {
            assert!(!message.contains(word), "{message}");
        }
    }
}

/// A stream that may hold descriptors in its queue must not come to the service manager, which would
/// wait for their close.
#[test]
fn unix_streams_that_may_hold_descriptors_are_not_preserved() {
    if !has("strace") {
        return;
    }
    let mut manager = Manager::new().unix_listener("local");
    manager.inject("setsockopt", "error=ENOPROTOOPT");
    manager.start();
    let client = UnixStream::connect(manager.path("local")).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    ping(&client, b"not preserved");
    let tcp = manager.connect();
    ping(&tcp, b"preserved");
    manager.preserves(1);
    // Without those faults the next daemon can read the queue of descriptors.
    manager.under(&[]);
    manager.restart();
    ping(&tcp, b"still here");
    // A FIN, or a reset where something was unread.
    assert!(is_closed(&client), "it hangs");
}
