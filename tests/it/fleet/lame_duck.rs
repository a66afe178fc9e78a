//! A stop is announced to balancers first, and until it begins nothing is refused and nothing is late.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::manager::{Manager, value};
use testkit::{Daemon, Plan, SOON, connect, end_of, listener, ping};

use super::{answer, answers, health_of};

fn config(lame_duck: &str) -> String {
    format!(
        "[listener.echo]\naddress = '127.0.0.1:0'\n[listener.health]\naddress = '127.0.0.1:0'\n\
         [limits]\nlame-duck = '{lame_duck}'\n"
    )
}

fn start(lame_duck: &str) -> Daemon {
    Plan::bare().config(&config(lame_duck)).start()
}

#[test]
fn it_accepts_and_echoes_until_the_stop_begins() {
    let span = Duration::from_secs(2);
    let mut daemon = start("2s");
    let health = health_of(&daemon);
    let old = daemon.connect();
    ping(&old, b"before");
    let asked = Instant::now();
    daemon.signal(Signal::TERM);
    let message = daemon.notified("STOPPING=1");
    let extended: u64 = value(&message, "EXTEND_TIMEOUT_USEC")
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(extended, 2_000_000 + 10_000_000 + 5_000_000);
    assert!(
        value(&message, "STATUS")
            .unwrap()
            .starts_with("lame duck: "),
        "{message}"
    );
    let mut served = 0;
    // A tenth is left for what a noisy machine adds to a round.
    while asked.elapsed() < span - span / 10 {
        assert_eq!(answer(health), "up drain\n");
        ping(&old, b"meanwhile");
        ping(daemon.connect(), b"a new one");
        served += 1;
        thread::sleep(Duration::from_millis(20));
    }
    assert!(served > 10, "{served} rounds");
    assert_eq!(end_of(&old).unwrap(), b"");
    let took = asked.elapsed();
    assert!(took >= span, "the stop began after {took:?}");
    drop(old);
    assert!(daemon.exited(SOON).success());
    let took = asked.elapsed();
    assert!(took < span * 2, "it ended after {took:?}");
    let log = daemon.log();
    assert!(log.contains("lame duck for 2s: "), "{log}");
    assert!(log.contains("ended (shutdown)"), "{log}");
    assert!(TcpStream::connect(health).is_err());
}

#[test]
fn a_second_signal_begins_the_stop_and_a_third_ends_it() {
    for second in [Signal::TERM, Signal::INT, Signal::USR2] {
        let mut daemon = start("1h");
        let health = health_of(&daemon);
        let client = daemon.connect();
        testkit::Tape::new(1).fill(&client);
        daemon.signal(Signal::TERM);
        daemon.notified("STOPPING=1");
        answers(health, "up drain\n");
        daemon.signal(second);
        answers(health, "down#stopping\n");
        assert!(daemon.is_running(), "{second:?}");
        let asked = Instant::now();
        daemon.signal(Signal::TERM);
        assert!(daemon.exited(SOON).success());
        assert!(asked.elapsed() < Duration::from_secs(3));
    }
}

#[test]
fn without_it_a_stop_begins_at_once() {
    let mut daemon = start("off");
    let asked = Instant::now();
    assert!(daemon.stop().success());
    assert!(asked.elapsed() < Duration::from_secs(3));
    assert!(!daemon.log().contains("lame duck"));
}

#[test]
fn it_is_as_long_as_the_last_reload_says_and_no_reload_ends_it() {
    let mut daemon = start("1h");
    let health = health_of(&daemon);
    daemon.reload(&config("1s"));
    let asked = Instant::now();
    daemon.signal(Signal::TERM);
    daemon.notified("STOPPING=1");
    daemon.signal(Signal::HUP);
    assert_eq!(answer(health), "up drain\n");
    assert!(daemon.exited(SOON).success());
    assert!(asked.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_restart_over_which_connections_are_preserved_does_not_wait() {
    let health = listener();
    let address = health.local_addr().unwrap();
    let mut manager = Manager::new().listener("health", health);
    manager.config("preserve-after = '0s'\n[limits]\nlame-duck = '1h'\n");
    manager.start();
    let client = manager.connect();
    ping(&client, b"before");
    manager.preserves(1);
    let asked = Instant::now();
    manager.restart();
    ping(&client, b"after");
    assert!(asked.elapsed() < Duration::from_secs(10));
    assert_eq!(answer(address), "up ready\n");
}

#[test]
fn a_restart_over_which_none_is_preserved_is_announced_as_a_stop_is() {
    // Asked before, or only when it matters.
    for capacity in [0, 1] {
        let health = listener();
        let address = health.local_addr().unwrap();
        let mut manager = Manager::new().listener("health", health);
        manager.capacity(capacity);
        manager.config("preserve-after = '0s'\n[limits]\nlame-duck = '1s'\n");
        manager.start();
        let client = manager.connect();
        ping(&client, b"before");
        if capacity == 0 {
            manager.preserves_nothing();
        }
        let asked = Instant::now();
        manager.daemon().signal(Signal::USR2);
        answers(address, "up drain\n");
        ping(&client, b"meanwhile");
        ping(connect(manager.address()), b"a new one");
        assert_eq!(end_of(&client).unwrap(), b"");
        assert!(asked.elapsed() >= Duration::from_secs(1));
        drop(client);
        assert!(manager.ended().success());
    }
}

#[test]
fn connections_are_preserved_in_it_too() {
    let mut manager = Manager::new();
    manager.config("preserve-after = '0s'\n[limits]\nlame-duck = '1h'\n");
    manager.start();
    manager.daemon().signal(Signal::TERM);
    manager.status_has("lame duck: ");
    let client = manager.connect();
    ping(&client, b"in the lame duck");
    manager.preserves(1);
    manager.kill();
    manager.start();
    ping(&client, b"after the kill");
}
