//! When something stands in the way of survival, the service goes on without it, and says so.
//!
//! The manager keeps nothing, or too little, or does not answer; the kernel refuses to have more
//! descriptors in flight; the successor is another one than the predecessor expected.  Each time
//! clients are served as ever, nothing hangs, and who cannot be kept gets what it is owed and a
//! FIN, as without survival.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use tcp_echo::log::events::id;

use crate::crowd::{Crowd, Kind, Kind::*};
use crate::daemon::{PROGRAM, SOON, connect, eventually, finish, has, ping};
use crate::manager::{Manager, Way, memory_file};

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

/// Those who wait for an answer before they go on, and those who do not talk.
const CALM: [(Kind, usize); 4] = [(Idle, 4), (HalfClosed, 1), (Finished, 1), (Stalled, 2)];

/// Dead connections that make a parcel be renewed.
const DEAD: usize = 64;

/// Hands over without a store: as TERM does, so everybody is let go.
#[track_caller]
fn leaves_as_without_survival(manager: &mut Manager, crowd: &mut Crowd) {
    manager.daemon().signal(Signal::USR2);
    manager.notified("STOPPING=1");
    crowd.is_let_go();
    assert!(manager.ended().success());
}

/// Hands over, be there a store or not: everybody reads, so that all can be paid.
#[track_caller]
fn hands_over_or_pays(manager: &mut Manager, crowd: &mut Crowd) {
    crowd.load.wind_up();
    crowd.meanwhile(|_| manager.hand_over());
}

/// Makes connections that are kept and then dead, beside so many that live.
#[track_caller]
fn let_die(manager: &Manager, living: usize) {
    let dead: Vec<TcpStream> = (0..DEAD).map(|_| manager.connect()).collect();
    dead.iter().for_each(|client| ping(client, b"not for long"));
    manager.keeps(living + DEAD);
}

/// Waits until another parcel than this one is kept alone.
#[track_caller]
fn is_renewed(manager: &Manager, before: &str) {
    eventually(SOON, "the parcel was not renewed", || {
        (!manager.names().iter().any(|name| name == before)).then_some(())
    });
    assert_ne!(manager.one_of_each(), before);
}

#[test]
fn without_a_store_everybody_is_served_and_let_go() {
    for (capacity, environment) in [(0, None), (1, None), (0, Some("0")), (2, Some("2"))] {
        let mut manager = Manager::new();
        manager.capacity(capacity);
        if let Some(size) = environment {
            manager.environment("FDSTORE", size);
        }
        manager.start();
        let mut crowd = Crowd::new(manager.address(), &ALL);
        let status = manager.keeps_nothing();
        assert!(status.contains("no descriptor store"), "{status}");
        let told = manager.event(NOT_PRESERVING);
        assert!(told["echo.reason"].is_string(), "{told}");
        assert!(!manager.daemon().log().contains(PRESERVING));
        crowd.goes_on();
        leaves_as_without_survival(&mut manager, &mut crowd);
        // What little was kept must not be in the way of the next.
        manager.capacity(16);
        manager.start();
        let client = manager.connect();
        ping(&client, b"hello");
        if environment.is_none() {
            manager.keeps(1);
            manager.one_of_each();
            manager.kill();
            manager.start();
            ping(&client, b"still here");
        }
    }
}

#[test]
fn a_store_that_takes_half_a_parcel_makes_nobody_wait() {
    // Which half is the manager's choice.
    for _ in 0..4 {
        let mut manager = Manager::new();
        manager.capacity(2);
        manager.start();
        let mut crowd = Crowd::new(manager.address(), &CALM);
        manager.decides();
        crowd.goes_on();
        hands_over_or_pays(&mut manager, &mut crowd);
        manager.capacity(16);
        manager.start();
        crowd.is_dealt_honestly();
        ping(manager.connect(), b"hello");
    }
}

#[test]
fn a_store_with_just_enough_room_is_enough() {
    let mut manager = Manager::new();
    manager.capacity(3);
    manager.environment("FDSTORE", "3");
    manager.start();
    let mut crowd = Crowd::new(manager.address(), &ALL);
    manager.keeps(16);
    for _ in 0..3 {
        manager.kill();
        manager.start();
        crowd.goes_on();
        manager.restart();
        crowd.goes_on();
    }
    manager.one_of_each();
    crowd.comes_back_exact();
}

#[test]
fn a_manager_that_never_answers_makes_nobody_wait() {
    let mut manager = Manager::new();
    manager.answers(false);
    let began = Instant::now();
    manager.start();
    assert!(began.elapsed() < Duration::from_secs(4), "ready comes late");
    let mut crowd = Crowd::new(manager.address(), &ALL);
    crowd.goes_on();
    let status = manager.keeps_nothing();
    assert!(status.contains("does not answer"), "{status}");
    manager.event(NOT_PRESERVING);
    assert_eq!(manager.barriers(), 1);
    crowd.goes_on();
    leaves_as_without_survival(&mut manager, &mut crowd);
}

#[test]
fn a_hand_over_before_the_manager_has_answered_harms_nobody() {
    let mut manager = Manager::new();
    manager.answers(false);
    manager.start();
    let mut crowd = Crowd::new(manager.address(), &CALM);
    leaves_as_without_survival(&mut manager, &mut crowd);
    manager.answers(true);
    manager.start();
    // The manager is asked only when there is something to keep.
    let client = manager.connect();
    ping(&client, b"hello");
    manager.keeps(1);
    drop(client);
    manager.keeps(0);
    manager.one_of_each();
}

#[test]
fn a_parcel_with_many_dead_is_renewed() {
    let mut manager = Manager::new();
    manager.start();
    let mut crowd = Crowd::new(manager.address(), &ALL);
    manager.keeps(16);
    for round in 0..3 {
        let before = manager.one_of_each();
        let_die(&manager, 16);
        is_renewed(&manager, &before);
        crowd.goes_on();
        if round == 1 {
            manager.restart();
        } else {
            manager.kill();
            manager.start();
        }
        crowd.goes_on();
        manager.keeps(16);
    }
    assert!(
        manager.peak() <= 5,
        "{} descriptors at a time",
        manager.peak()
    );
    crowd.comes_back_exact();
}

#[test]
fn a_store_that_is_full_at_a_renewal_makes_nobody_wait() {
    // With room for one more, which end of the new parcel that is is the manager's choice; one of
    // them is enough.
    for room in [0, 1, 1, 1, 1] {
        let mut manager = Manager::new();
        manager.capacity(3 + room);
        manager.start();
        let mut crowd = Crowd::new(manager.address(), &CALM);
        manager.keeps(8);
        let before = manager.one_of_each();
        let barriers = manager.barriers();
        let_die(&manager, 8);
        eventually(SOON, "nothing was renewed", || {
            (manager.barriers() > barriers).then_some(())
        });
        eventually(SOON, "neither told nor renewed", || {
            let log = manager.daemon().log();
            let told = log.contains(NOT_PRESERVING) || log.contains(PRESERVE_FAILED);
            let renewed = room > 0 && !manager.names().contains(&before);
            (told || renewed).then_some(())
        });
        crowd.goes_on();
        ping(manager.connect(), b"a new one");
        hands_over_or_pays(&mut manager, &mut crowd);
        manager.capacity(16);
        manager.start();
        crowd.is_dealt_honestly();
        ping(manager.connect(), b"a new one");
        manager.one_of_each();
    }
}

/// Eight who are kept, while a renewal waits for an answer that does not come.
fn in_a_renewal() -> (Manager, Crowd) {
    let mut manager = Manager::new();
    manager.start();
    let crowd = Crowd::new(manager.address(), &CALM);
    manager.keeps(8);
    manager.answers(false);
    let_die(&manager, 8);
    eventually(SOON, "nothing was renewed", || {
        (manager.stored("preserve-queue-") == 4).then_some(())
    });
    (manager, crowd)
}

#[test]
fn a_manager_that_does_not_answer_at_a_renewal_makes_nobody_wait() {
    let (mut manager, mut crowd) = in_a_renewal();
    crowd.goes_on();
    ping(manager.connect(), b"a new one");
    // A crash now, with two parcels in the store.
    manager.kill();
    manager.answers(true);
    let barriers = manager.barriers();
    manager.start();
    crowd.goes_on();
    let adopted = manager.event(RESTORED);
    assert_eq!(adopted["echo.restored"], 8, "{adopted}");
    manager.one_of_each();
    // There may be no room in flight for a third.
    assert_eq!(manager.barriers(), barriers, "another parcel was made");
    manager.keeps(8);
    manager.kill();
    manager.start();
    crowd.goes_on();
    crowd.comes_back_exact();
}

#[test]
fn a_restart_in_the_middle_of_a_renewal_keeps_everybody() {
    let (mut manager, mut crowd) = in_a_renewal();
    manager.hand_over();
    manager.answers(true);
    manager.start();
    crowd.goes_on();
    manager.one_of_each();
    crowd.comes_back_exact();
}

/// What runs a program as a user of its own, the n-th, without privileges; `None` where that is
/// not possible, which is said.  The kernel counts by user what is in flight.
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
    let tried = command.args(&words[1..]).args([PROGRAM, "--version"]);
    if !tried.output().unwrap().status.success() {
        eprintln!("skipped: another user cannot run {PROGRAM}");
        return None;
    }
    Some(words.into())
}

/// The daemons to come may have so many descriptors, and run as others do.
fn limit(manager: &mut Manager, descriptors: usize, wrapper: &[String]) {
    let limit = format!("--nofile={descriptors}:{descriptors}");
    let mut words = vec!["prlimit", &limit];
    words.extend(wrapper.iter().map(String::as_str));
    manager.under(&words);
}

/// Has 70 connections that are kept, of 96 that there may be, with 128 descriptors: too few for a second
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
    manager.keeps(70);
    (manager, living)
}

#[test]
fn who_cannot_be_packed_is_told_and_served() {
    let Some(wrapper) = unprivileged(0) else {
        return;
    };
    let (mut manager, living) = nearly_full(&wrapper);
    let mut told = false;
    for _ in 0..12 {
        let batch: Vec<TcpStream> = (0..20).map(|_| manager.connect()).collect();
        batch.iter().for_each(|client| ping(client, b"hello"));
        // Either they are packed, or it is told that they are not.
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
    manager.daemon().hardly_works();
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
    manager.keeps(1);
    for way in [Way::Restart, Way::Kill] {
        manager.replace(way);
        ping(&client, b"still here");
        manager.keeps(1);
    }
}

/// Where there is no room in flight, the arena is not stored either: it has to be when there is.
#[test]
fn what_another_instance_has_in_flight_is_in_the_way_only_as_long_as_it_is_there() {
    let Some(wrapper) = unprivileged(1) else {
        return;
    };
    let mut other = Manager::new();
    other.config("workers = 1\npreserve-after = '0s'\n");
    limit(&mut other, 1024, &wrapper);
    other.start();
    let crowd: Vec<TcpStream> = (0..200).map(|_| other.connect()).collect();
    crowd.iter().for_each(|client| ping(client, b"hello"));
    other.keeps(200);
    let mut manager = Manager::new();
    manager.config("workers = 1\npreserve-after = '0s'\n");
    limit(&mut manager, 128, &wrapper);
    manager.start();
    let client = manager.connect();
    ping(&client, b"hello");
    let status = manager.keeps_nothing();
    assert!(status.contains("descriptors in flight"), "{status}");
    drop(crowd);
    drop(other);
    manager.keeps(1);
    manager.one_of_each();
    for way in [Way::Kill, Way::Restart] {
        manager.replace(way);
        ping(&client, b"still here");
        manager.keeps(1);
    }
}

#[test]
fn a_successor_without_survival_pays_and_lets_go() {
    for planned in [true, false] {
        let mut manager = Manager::new();
        manager.start();
        let mut crowd = Crowd::new(manager.address(), &ALL);
        manager.keeps(16);
        if planned {
            manager.hand_over();
        } else {
            manager.kill();
        }
        manager.config("preserve-connections = false\n");
        manager.start();
        ping(manager.connect(), b"a new one");
        crowd.is_let_go();
        let told = manager.event(PREDECESSOR_DROPPED);
        assert_eq!(told["level"], "WARN", "{told}");
        assert!(told["echo.reason"].is_string(), "{told}");
        eventually(SOON, "something is still in the store", || {
            manager.names().is_empty().then_some(())
        });
    }
}

/// Has 93 connections, then a successor that may have a third of them.
#[track_caller]
fn shrinks(planned: bool, wrapper: &[String]) {
    let mut manager = Manager::new();
    limit(&mut manager, 1024, wrapper);
    manager.start();
    let mut crowd = Crowd::new(manager.address(), &[(Idle, 90), (Stalled, 3)]);
    manager.keeps(93);
    if planned {
        manager.hand_over();
    } else {
        manager.kill();
    }
    limit(&mut manager, 64, wrapper);
    manager.start();
    let dropped = crowd.is_dealt_honestly();
    assert!((30..93).contains(&dropped), "{dropped} of 93 were dropped");
    let told = manager.event(RESTORED);
    assert_eq!(told["echo.of"], 93, "{told}");
    assert_eq!(told["echo.restored"], 93 - dropped, "{told}");
    assert_eq!(told["level"], "WARN", "{told}");
    drop(crowd);
    ping(manager.connect(), b"a new one");
    manager.stop();
    assert!(manager.names().is_empty());
}

#[test]
fn a_successor_with_fewer_descriptors_keeps_whom_it_can() {
    if has("prlimit") {
        shrinks(true, &[]);
        shrinks(false, &[]);
    }
}

#[test]
fn a_successor_that_may_have_fewer_descriptors_in_flight_is_ready_and_keeps_whom_it_can() {
    if let Some(wrapper) = unprivileged(1) {
        shrinks(true, &wrapper);
        shrinks(false, &wrapper);
    }
}

#[test]
fn a_successor_whose_configuration_lacks_the_old_listener_keeps_its_connections() {
    let configured = |name: &str| {
        format!("preserve-after = '0s'\n[listener.{name}]\nnodelay = false\nkeepalive = true\n")
    };
    let mut manager = Manager::new();
    manager.config(&configured("echo"));
    manager.start();
    let mut crowd = Crowd::new(manager.address(), &ALL);
    manager.keeps(16);
    for (planned, name) in [(true, "other"), (false, "third")] {
        if planned {
            manager.hand_over();
        } else {
            manager.kill();
        }
        manager.relist(name, TcpListener::bind("127.0.0.1:0").unwrap());
        manager.config(&configured(name));
        manager.start();
        crowd.goes_on();
        ping(manager.connect(), b"a new one");
    }
    crowd.comes_back_exact();
}

#[test]
fn a_successor_that_is_not_allowed_so_many_connections_keeps_those_that_are_there() {
    let mut manager = Manager::new();
    manager.start();
    let mut crowd = Crowd::new(manager.address(), &ALL);
    manager.keeps(16);
    manager.hand_over();
    manager.config("preserve-after = '0s'\n[limits]\nmax-connections = 4\n");
    manager.start();
    let dropped = crowd.is_dealt_honestly();
    eprintln!("{dropped} of 16 were dropped");
    // Whoever is new waits until there is room.
    let waiting = connect(manager.address());
    drop(crowd);
    ping(&waiting, b"hello");
    assert!(finish(&waiting).is_empty());
}

#[test]
fn strangers_in_the_store_are_closed_and_the_service_starts() {
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
                    0 => manager.put(name, pair()),
                    1 => manager.put(name, datagram()),
                    2 => manager.put(name, null()),
                    3 => manager.put(name, TcpListener::bind("127.0.0.1:0").unwrap()),
                    _ => manager.put(name, memory_file(1 << 20)),
                }
            }
            manager.start();
            let client = manager.connect();
            ping(&client, b"hello");
            manager.keeps(1);
            manager.kill();
            manager.start();
            ping(&client, b"still here");
            manager.stop();
        }
    }
}

#[test]
fn survival_that_is_switched_off_asks_the_manager_for_nothing() {
    let mut manager = Manager::new();
    manager.config("preserve-connections = false\n");
    manager.start();
    ping(manager.connect(), b"hello");
    manager.says("0 connections, 5 B echoed");
    manager.stop();
    assert_eq!(manager.barriers(), 0);
    for message in manager.messages() {
        for word in ["FDSTORE=", "preserved"] {
            assert!(!message.contains(word), "{message}");
        }
    }
}

/// A stream whose queue may hold descriptors must not come to the service manager, which would wait
/// for their close.
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
    manager.keeps(1);
    // Without those faults the next one can look into the queue of descriptors.
    manager.under(&[]);
    manager.restart();
    ping(&tcp, b"still here");
    // A FIN, or a reset where something was unread.
    let mut rest = Vec::new();
    let ended = (&client).read_to_end(&mut rest);
    let waits = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!waits, "it hangs");
}
