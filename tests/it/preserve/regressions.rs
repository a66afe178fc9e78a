//! Defects of preservation that were found once, in the order in which they were found.
//!
//! Each of these needs several things at once: a manager that is slow, full or away, at the very
//! moment at which a descriptor queue is rotated, the limits change, or the end comes.  The promises
//! themselves are tested in `restart`, `degrade` and `instants`.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tcp_echo::log::events::id;
use testkit::crowd::{ClientMix, Kind, Kind::*};
use testkit::manager::Manager;
use testkit::{SOON, Tape, connect_with_buffers, end_of, eventually, has, ping};

use super::{DEAD, short_lived};
use crate::is_acknowledged;

/// Message ids that the tests look for; what they stand for is the catalog's business.
const NOT_PRESERVING: &str = id("NOT_PRESERVING");
const RESTORED: &str = id("RESTORED");
const PRESERVE_FAILED: &str = id("PRESERVE_FAILED");
const PREDECESSOR_DROPPED: &str = id("PREDECESSOR_DROPPED");
const START_FAILED: &str = id("START_FAILED");

/// Limits with which a daemon needs a state file of another size.
const FEWER: [&str; 2] = ["prlimit", "--nofile=4000:4000"];

/// Connections are not preserved, as `preserve-after` is never over.
const NEVER: &str = "preserve-after = '1h'\n";

/// Clients that wait for each answer, and clients that do not send.
const CALM: [(Kind, usize); 4] = [(Idle, 4), (HalfClosed, 1), (Finished, 1), (Stalled, 2)];

/// The number of these clients.
const CALM_ONES: usize = 8;

/// Waits until the manager has got more barriers than before.
#[track_caller]
fn renews(manager: &Manager, before: usize) {
    eventually(SOON, "nothing was renewed", || {
        (manager.barriers() > before).then_some(())
    });
}

/// New clients, served once.
#[track_caller]
fn clients(manager: &Manager, count: usize) -> Vec<TcpStream> {
    let clients: Vec<TcpStream> = (0..count).map(|_| manager.connect()).collect();
    clients.iter().for_each(|client| ping(client, b"hello"));
    clients
}

#[track_caller]
fn live(clients: &[TcpStream]) {
    clients
        .iter()
        .for_each(|client| ping(client, b"still here"));
}

/// Waits for a status that contains a text, without asking for it.
#[track_caller]
fn status_contains(manager: &Manager, text: &str, within: Duration) {
    let deadline = Instant::now() + within;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        let status = manager.notified_within("STATUS=", left);
        if status.is_some_and(|status| status.contains(text)) {
            return;
        }
    }
    panic!("the status does not say {text:?} within {within:?}");
}

/// A client that is owed something most of the time, as it reads only on demand.
struct Slow {
    stream: TcpStream,
    sent: Tape,
    received: Tape,
}

impl Slow {
    fn new(manager: &Manager, seed: u64) -> Self {
        Self {
            stream: connect_with_buffers(manager.address(), 4096, 64 * 1024),
            sent: Tape::new(seed),
            received: Tape::new(seed),
        }
    }

    /// Sends so many bytes, all of which arrive.
    #[track_caller]
    fn status_has(&mut self, count: usize) {
        self.sent.send(&self.stream, count).unwrap();
        is_acknowledged(&self.stream);
    }

    #[track_caller]
    fn receives(&mut self, count: usize) {
        self.received.expect(&self.stream, count);
    }

    /// Reads until everything has come back, or to the end; asserts that every byte is right.  Returns
    /// whether the connection goes on.
    #[track_caller]
    fn gets_no_wrong_byte(&mut self) -> bool {
        while self.received.position() < self.sent.position() {
            let left = self.sent.position() - self.received.position();
            match self.received.read(&self.stream, left) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => {
                    let waits = error.kind() == std::io::ErrorKind::WouldBlock;
                    assert!(!waits, "it waits in vain");
                    return false;
                }
            }
        }
        self.sent.send(&self.stream, 1000).is_ok()
    }
}

/// strace(1) beside a daemon that runs already.
struct Tracer(Child);

impl Tracer {
    /// Injects a fault into each sendmsg(2) from now on, by which connections are preserved and
    /// messages are sent.  Where that is not possible, prints that the test skips, and returns `None`.
    fn of(manager: &Manager, fault: &str) -> Option<Self> {
        if !has("strace") {
            return None;
        }
        let pid = manager.daemon().pid().as_raw_nonzero().to_string();
        let child = Command::new("strace")
            .args(["-qq", "-o", "/dev/null", "-e", "trace=sendmsg"])
            .args(["-e", &format!("inject=sendmsg:{fault}"), "-p", &pid])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut tracer = Self(child);
        let attached = eventually(SOON, "strace does not begin", || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            if !status.contains("TracerPid:\t0\n") {
                return Some(true);
            }
            tracer.0.try_wait().unwrap().map(|_| false)
        });
        if !attached {
            eprintln!("skipped: strace cannot be attached here");
        }
        attached.then_some(tracer)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How messages to the manager are prevented.
#[derive(Clone, Copy, Debug)]
enum Silence {
    Away,
    Full,
}

#[test]
fn a_state_file_that_never_reached_the_manager_makes_no_wrong_byte() {
    if !has("prlimit") {
        return;
    }
    for (silence, back) in [
        (Silence::Away, false),
        (Silence::Away, true),
        (Silence::Full, false),
        (Silence::Full, true),
    ] {
        eprintln!("{silence:?}, back to the old limits: {back}");
        let mut manager = Manager::new();
        manager.start();
        let idle = clients(&manager, 2);
        // One connection is owed bytes in a slot; of the other the scratch holds old bytes.
        let (mut owed, mut other) = (Slow::new(&manager, 1), Slow::new(&manager, 2));
        for slow in [&mut owed, &mut other] {
            slow.status_has(200);
            slow.receives(200);
        }
        manager.preserves(4);
        owed.status_has(40_000);
        live(&idle);
        other.status_has(100);
        other.receives(100);
        manager.hand_over();
        match silence {
            Silence::Away => manager.hides(true),
            Silence::Full => manager.pauses(true),
        }
        manager.under(&FEWER);
        manager.launch();
        live(&idle);
        other.status_has(3000);
        other.receives(3000);
        owed.receives(15_000);
        owed.status_has(10_000);
        other.status_has(56_000);
        // Messages that have arrived are taken before a later caller is served.
        live(&idle);
        live(&idle);
        manager.kill();
        match silence {
            Silence::Away => manager.hides(false),
            Silence::Full => manager.pauses(false),
        }
        if back {
            manager.under(&[]);
        }
        manager.start();
        let on = [&mut owed, &mut other].map(Slow::gets_no_wrong_byte);
        eprintln!("the connection that was owed something goes on: {on:?}");
        live(&idle);
        manager.one_of_each();
        manager.status_has(" preserved");
        manager.kill();
        manager.start();
        live(&idle);
    }
}

#[test]
fn a_full_store_and_other_limits_are_reported_before_a_client_relies_on_it() {
    if !has("prlimit") {
        return;
    }
    for planned in [true, false] {
        let mut manager = Manager::new();
        manager.capacity(3);
        manager.start();
        let mut mix = ClientMix::new(manager.address(), &CALM);
        manager.preserves(CALM_ONES);
        if planned {
            manager.hand_over();
        } else {
            manager.kill();
        }
        manager.under(&FEWER);
        manager.start();
        mix.echoes_on();
        let kept = manager.decides();
        if kept {
            manager.hand_over();
            manager.start();
            assert!(!manager.daemon().log().contains(PREDECESSOR_DROPPED));
            mix.echoes_on();
            mix.gets_exact_bytes();
        } else {
            manager.event(NOT_PRESERVING);
            mix.load.read_all();
            mix.meanwhile(|_| manager.hand_over());
            manager.start();
            mix.gets_no_wrong_byte();
            // The obstacle is gone.
            let client = clients(&manager, 1);
            manager.preserves(1);
            manager.kill();
            manager.start();
            live(&client);
        }
    }
}

/// When the manager answers in the middle of a renewal.
#[derive(Clone, Copy, Debug)]
enum Answer {
    BeforeTheEnd,
    AtTheEnd,
    Never,
}

#[test]
fn connections_that_are_not_preserved_yet_survive_a_restart_during_a_rotation() {
    for answer in [Answer::BeforeTheEnd, Answer::AtTheEnd, Answer::Never] {
        eprintln!("{answer:?}");
        let mut manager = Manager::new();
        manager.start();
        let mut mix = ClientMix::new(manager.address(), &CALM);
        manager.preserves(CALM_ONES);
        let flies = short_lived(&manager, CALM_ONES);
        manager.answers(false);
        drop(flies);
        eventually(SOON, "nothing was renewed", || {
            (manager.stored("preserve-queue-") == 4).then_some(())
        });
        let young = clients(&manager, 5);
        match answer {
            Answer::BeforeTheEnd => {
                manager.daemon().freeze();
                manager.daemon().signal(Signal::USR2);
                manager.answers(true);
                manager.daemon().thaw();
            }
            Answer::AtTheEnd => {
                // Each of its messages takes long.
                let tracer = Tracer::of(&manager, "delay_exit=300000:when=1..2");
                manager.daemon().signal(Signal::USR2);
                // It is sending; there is no other sign of that.
                thread::sleep(Duration::from_millis(150));
                manager.answers(true);
                manager.daemon_mut().exited(SOON);
                drop(tracer);
            }
            Answer::Never => manager.daemon().signal(Signal::USR2),
        }
        assert!(manager.ended().success());
        manager.answers(true);
        manager.start();
        live(&young);
        mix.echoes_on();
        let adopted = manager.event(RESTORED);
        assert_eq!(adopted["echo.restored"], CALM_ONES + 5, "{adopted}");
        assert_eq!(adopted["echo.of"], CALM_ONES + 5, "{adopted}");
        manager.one_of_each();
        mix.gets_exact_bytes();
    }
}

#[test]
fn new_connections_are_preserved_while_no_rotation_succeeds() {
    let mut manager = Manager::new();
    manager.capacity(3);
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &CALM);
    manager.preserves(CALM_ONES);
    let flies = short_lived(&manager, CALM_ONES);
    let before = manager.barriers();
    drop(flies);
    renews(&manager, before);
    let first = clients(&manager, 5);
    manager.preserves(CALM_ONES + 5);
    // The next attempt, which fails as well.
    renews(&manager, before + 1);
    let second = clients(&manager, 5);
    manager.preserves(CALM_ONES + 10);
    manager.kill();
    manager.start();
    live(&first);
    live(&second);
    mix.echoes_on();
    mix.gets_exact_bytes();
}

#[test]
fn a_shorter_preserve_after_is_for_open_and_for_new_connections() {
    // Asked at the start, or when there is a connection to preserve.
    for certain in [true, false] {
        let mut manager = Manager::new();
        if certain {
            manager.environment("FDSTORE", "16");
        }
        manager.config(NEVER);
        manager.start();
        let there = clients(&manager, 3);
        if certain {
            manager.preserves(0);
        }
        manager.reload("preserve-after = '0s'\n");
        manager.preserves(3);
        let new = clients(&manager, 2);
        manager.preserves(5);
        manager.kill();
        manager.start();
        live(&there);
        live(&new);
    }
}

#[test]
fn a_shorter_preserve_after_lets_no_new_connection_overtake() {
    let mut manager = Manager::new();
    manager.config(NEVER);
    manager.start();
    let there = clients(&manager, 1);
    manager.reload("preserve-after = '500ms'\n");
    let new = clients(&manager, 1);
    manager.preserves(2);
    manager.kill();
    manager.start();
    live(&there);
    live(&new);
}

#[test]
fn a_stop_uses_no_time_while_one_peer_is_slow_and_many_are_gone() {
    let mut manager = Manager::new();
    manager.config("preserve-after = '0s'\n[limits]\nstop-timeout = '1m'\n");
    manager.start();
    let flies = short_lived(&manager, 0);
    let more = clients(&manager, 10);
    let mut slow = Slow::new(&manager, 1);
    slow.status_has(60_000);
    manager.preserves(DEAD + 11);
    manager.daemon().signal(Signal::TERM);
    manager.notified("STOPPING=1");
    for client in flies.iter().chain(&more) {
        assert_eq!(end_of(client).unwrap(), b"");
    }
    drop((flies, more));
    manager.daemon().rests();
    slow.received.expect_to_the_end(&slow.stream);
    assert_eq!(slow.received.position(), slow.sent.position());
    assert!(manager.ended().success());
}

#[test]
fn a_stop_uses_no_time_while_a_connection_is_slow_that_would_have_been_preserved() {
    let mut manager = Manager::new();
    manager.config("preserve-after = '500ms'\n[limits]\nstop-timeout = '1m'\n");
    manager.start();
    let mut slow = Slow::new(&manager, 1);
    slow.status_has(60_000);
    ping(manager.connect(), b"hello");
    manager.daemon().signal(Signal::TERM);
    manager.notified("STOPPING=1");
    manager.daemon().rests();
    slow.received.expect_to_the_end(&slow.stream);
    assert_eq!(slow.received.position(), slow.sent.position());
    assert!(manager.ended().success());
    assert_eq!(manager.barriers(), 0);
}

#[test]
fn a_hand_over_uses_no_time_while_a_connection_is_slow_that_cannot_be_preserved() {
    let mut manager = Manager::new();
    manager.config("preserve-after = '0s'\n[limits]\nstop-timeout = '1m'\n");
    manager.start();
    let kept = clients(&manager, 1);
    manager.preserves(1);
    let Some(tracer) = Tracer::of(&manager, "error=ETOOMANYREFS") else {
        return;
    };
    let mut slow = Slow::new(&manager, 1);
    slow.status_has(60_000);
    manager.event(PRESERVE_FAILED);
    live(&kept);
    manager.daemon().signal(Signal::USR2);
    // A preserved connection is served on; once it is served, the signal was handled.
    live(&kept);
    live(&kept);
    manager.daemon().rests();
    live(&kept);
    drop(tracer);
    slow.received.expect_to_the_end(&slow.stream);
    assert_eq!(slow.received.position(), slow.sent.position());
    assert!(manager.ended().success());
    manager.start();
    live(&kept);
}

#[test]
fn the_status_follows_when_a_preserved_connection_ends() {
    let mut manager = Manager::new();
    manager.start();
    let mut kept = clients(&manager, 5);
    manager.preserves(5);
    // No change is left to report.
    manager.daemon().rests();
    kept.truncate(2);
    status_contains(
        &manager,
        "; 2 connections preserved",
        Duration::from_secs(5),
    );
}

#[test]
fn a_manager_that_does_not_answer_is_reported_at_the_next_occasion() {
    let managers: Vec<(Manager, TcpStream)> = (0..2)
        .map(|_| {
            let mut manager = Manager::new();
            manager.environment("FDSTORE", "16");
            manager.answers(false);
            manager.start();
            let client = manager.connect();
            ping(&client, b"hello");
            (manager, client)
        })
        .collect();
    // Its time for an answer.
    thread::sleep(Duration::from_millis(5100));
    for (number, (manager, client)) in managers.iter().enumerate() {
        match number {
            // Traffic, or a caller.
            0 => ping(client, b"hello"),
            _ => ping(manager.connect(), b"hello"),
        }
    }
    for (manager, _) in &managers {
        status_contains(manager, "does not answer", Duration::from_secs(3));
        manager.event(NOT_PRESERVING);
    }
}

/// Ends a daemon that has TCP connections and a Unix one, lets the next one fail again and again,
/// as an address that it wants is taken, and then one succeed.  The failing ones may have other
/// limits.
#[track_caller]
fn fails_and_succeeds(planned: bool, limits: bool) {
    eprintln!("planned: {planned}, other limits: {limits}");
    let mut manager = Manager::new().unix_listener("local");
    let usual = "preserve-after = '0s'\n";
    manager.start();
    let local = UnixStream::connect(manager.path("local")).unwrap();
    local.set_read_timeout(Some(SOON)).unwrap();
    ping(&local, b"hello");
    let tcp = clients(&manager, 2);
    let mut slow = Slow::new(&manager, 1);
    slow.status_has(60_000);
    manager.preserves(4);
    let survivors = if planned {
        manager.hand_over();
        4
    } else {
        manager.kill();
        3
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    manager.config(&format!("{usual}[listener.more]\naddress = '{address}'\n"));
    if limits {
        manager.under(&FEWER);
    }
    for _ in 0..5 {
        manager.launch();
        assert!(!manager.ended().success(), "it started");
        manager.past_event(START_FAILED);
    }
    manager.config(usual);
    manager.under(&[]);
    manager.start();
    let adopted = manager.event(RESTORED);
    assert_eq!(adopted["echo.restored"], survivors, "{adopted}");
    assert_eq!(adopted["echo.planned"], planned, "{adopted}");
    // They did not crash, but end.
    assert_eq!(adopted["echo.crashes"], 0, "{adopted}");
    if planned {
        ping(&local, b"still here");
    }
    live(&tcp);
    assert!(
        slow.gets_no_wrong_byte(),
        "the connection that was owed something"
    );
}

#[test]
fn a_start_that_fails_does_not_spoil_a_hand_over() {
    fails_and_succeeds(true, false);
}

#[test]
fn a_start_that_fails_under_other_limits_does_not_spoil_a_hand_over() {
    if has("prlimit") {
        fails_and_succeeds(true, true);
    }
}

#[test]
fn starts_that_fail_after_a_crash_lose_no_connection() {
    fails_and_succeeds(false, false);
    if has("prlimit") {
        fails_and_succeeds(false, true);
    }
}

#[test]
fn a_store_that_is_dropped_is_in_the_status_without_any_traffic() {
    let mut manager = Manager::new();
    manager.start();
    let client = manager.connect();
    ping(&client, b"hello");
    manager.preserves(1);
    manager.drop_all("preserve-");
    eventually(SOON, "the status does not follow", || {
        let told = manager.notified_within("STATUS=", Duration::from_millis(50));
        told.filter(|status| status.contains("preservation off"))
    });
    ping(&client, b"still here");
}

#[test]
fn connections_that_wait_when_the_store_drops_the_old_queue_go_into_the_new_one() {
    let mut manager = Manager::new();
    manager.start();
    let stay = manager.connect();
    ping(&stay, b"hello");
    let flies: Vec<TcpStream> = (0..70).map(|_| manager.connect()).collect();
    flies.iter().for_each(|fly| ping(fly, b"hello"));
    manager.preserves(71);
    let old = manager.names();
    let queue = old.iter().find(|name| name.contains("queue")).unwrap();
    manager.answers(false);
    let before = manager.barriers();
    drop(flies);
    eventually(SOON, "not renewed", || {
        (manager.barriers() > before).then_some(())
    });
    let young = manager.connect();
    ping(&young, b"hello");
    manager.drop_all(queue);
    manager.answers(true);
    manager.preserves(2);
    manager.kill();
    manager.start();
    ping(&stay, b"still here");
    ping(&young, b"still here");
}

#[test]
fn the_highest_number_in_a_name_is_no_number() {
    let mut manager = Manager::new();
    let (_kept, end) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    manager.store("preserve-queue-18446744073709551615", end);
    manager.start();
    let client = manager.connect();
    ping(&client, b"hello");
    manager.preserves(1);
}

#[test]
fn under_a_limit_of_file_sizes_every_connection_has_a_place_for_its_pending_output() {
    if !has("prlimit") {
        return;
    }
    let mut manager = Manager::new();
    manager.under(&["prlimit", "--fsize=1000000"]);
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &[(Stalled, 60)]);
    eventually(SOON, "it is not told", || {
        manager
            .daemon()
            .log()
            .contains("there is no memory file")
            .then_some(())
    });
    mix.none_was_dropped();
    mix.gets_exact_bytes();
}
