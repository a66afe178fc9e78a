//! Limits make callers wait, and time-outs end connections in good order.
//!
//! At `max-connections` no caller is refused: the listener pauses, and callers wait in the accept queue
//! until a connection ends.  Only the limit per source closes connections, and this host itself has
//! none.  A connection that ends by a time-out or `max-bytes` has that reason in the log, and what its
//! client sent until then comes back.  A reload changes the limits of open connections.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use testkit::load::{Load, Talk};
use testkit::{
    Daemon, Plan, SOON, Tape, connect_with_buffers, end_of, eventually, in_a_network, pattern,
    ping, plenty_of_descriptors, seconds_since, waits,
};

fn limited(limits: &str) -> Daemon {
    // Without the descriptors that preservation needs.
    let config = format!("preserve-connections = false\n[limits]\n{limits}\n");
    Plan::new().config(&config).start()
}

/// How long a client that is not served is watched.
const WHILE: Duration = Duration::from_millis(200);

/// Asserts that a message comes back that was sent before.
#[track_caller]
fn answered(mut caller: &TcpStream, message: &[u8]) {
    let mut echo = vec![0; message.len()];
    caller.read_exact(&mut echo).unwrap();
    assert_eq!(echo, message);
}

#[test]
fn at_the_limit_callers_wait_in_the_queue_until_connections_end() {
    let daemon = limited("max-connections = 4");
    let mut inside: Vec<TcpStream> = (0..4).map(|_| daemon.connect()).collect();
    inside.iter().for_each(|client| ping(client, b"inside"));
    let outside: Vec<TcpStream> = (0..6)
        .map(|_| {
            let mut caller = daemon.connect();
            caller.write_all(b"outside").unwrap();
            caller
        })
        .collect();
    daemon.logged("is paused");
    waits(&outside[0], WHILE);
    daemon.rests();
    inside.iter().for_each(|client| ping(client, b"inside"));
    // For each connection that ends the first caller in the queue is accepted, without a new event.
    for caller in &outside[..4] {
        let _ = end_after_fin(&inside.remove(0));
        answered(caller, b"outside");
    }
    waits(&outside[4], WHILE);
    drop(outside);
    drop(inside);
    ping(daemon.connect(), b"the next one");
    daemon.logged("accepts again, after a pause of");
}

fn end_after_fin(client: &TcpStream) -> io::Result<Vec<u8>> {
    client.shutdown(Shutdown::Write)?;
    end_of(client)
}

#[test]
fn a_pause_is_logged_once_a_second_at_most() {
    let daemon = limited("max-connections = 1");
    let began = Instant::now();
    // Each of these is the one connection that there may be, and makes the listener pause again.
    for round in 0..300 {
        ping(daemon.connect(), format!("round {round}").as_bytes());
    }
    let client = daemon.connect();
    ping(&client, b"the last");
    let seconds = seconds_since(began);
    daemon.logged("is paused");
    let told = daemon.log().matches("is paused").count();
    assert!(told <= seconds + 1, "told {told} times in {seconds} s");
}

#[test]
fn one_source_has_no_cap_when_it_is_this_host() {
    let plan = Plan::new().config("[limits]\nmax-connections-per-source = 1\n");
    let path = plan.folder().path("echo.sock");
    let plan = plan
        .argument("--listen")
        .argument(&format!("unix:{}", path.display()));
    let daemon = plan.start();
    let clients: Vec<TcpStream> = (0..5).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| ping(client, b"hello"));
    let clients: Vec<_> = (0..5).map(|_| testkit::connect_unix(&path)).collect();
    clients.iter().for_each(|client| ping(client, b"hello"));
}

/// A source that is not loopback exists in a network namespace of its own, where this test runs
/// itself once more.
#[test]
fn one_source_beyond_its_cap_is_closed_at_once_and_counted() {
    in_a_network(
        "protocol::limits::one_source_beyond_its_cap_is_closed_at_once_and_counted",
        "ip link set lo up",
        the_cap_of_a_source,
    );
}

fn the_cap_of_a_source() {
    let added = Command::new("ip")
        .args(["addr", "add", "192.0.2.1/32", "dev", "lo"])
        .status();
    assert!(added.unwrap().success());
    let daemon = Plan::bare()
        .config("allow-remote = true\n[limits]\nmax-connections-per-source = 3\n")
        .argument("--listen")
        .argument("192.0.2.1:0")
        .argument("--listen")
        .argument("127.0.0.1:0")
        .start();
    let base = daemon.descriptors();
    let mut clients: Vec<TcpStream> = (0..3).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| ping(client, b"hello"));
    assert!(!clients[0].peer_addr().unwrap().ip().is_loopback());
    for _ in 0..20 {
        let caller = daemon.connect();
        assert_eq!(end_of(&caller).unwrap(), b"");
    }
    daemon.has_released(base + 3);
    let told = daemon.logged("closed ");
    assert!(told.contains("192.0.2.1"), "{told}");
    // What the first event has not counted is logged when the second is over.
    let counted = || -> u64 {
        let log = daemon.log();
        let counts = log.lines().filter_map(|line| {
            let (_, rest) = line.split_once("closed ")?;
            rest.split(' ').next()?.parse::<u64>().ok()
        });
        counts.sum()
    };
    eventually(SOON, "the events do not count all", || {
        (counted() == 20).then_some(())
    });
    // Other sources are not affected, and neither are open connections.
    let other = daemon.listen[1].parse().unwrap();
    ping(testkit::connect(other), b"hello");
    clients.iter().for_each(|client| ping(client, b"hello"));
    // A connection that ends makes room for another.
    drop(clients.pop());
    daemon.has_released(base + 2);
    let next = daemon.connect();
    ping(&next, b"hello");
    assert_eq!(end_of(&daemon.connect()).unwrap(), b"");
    daemon.signal(rustix::process::Signal::USR1);
    assert!(
        daemon
            .logged("connections: accepted")
            .contains("refused 21")
    );
}

#[test]
fn five_hundred_connects_at_once_are_all_served() {
    plenty_of_descriptors();
    let daemon = Daemon::start();
    let queue: usize = std::fs::read_to_string("/proc/sys/net/core/somaxconn")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    // What the kernel's queue can hold while the daemon stands still.
    let count = queue.min(500);
    daemon.freeze();
    let callers: Vec<TcpStream> = (0..count).map(|_| daemon.connect()).collect();
    daemon.thaw();
    for caller in &callers {
        ping(caller, b"hello");
    }
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let callers: Vec<TcpStream> = (0..50).map(|_| daemon.connect()).collect();
                callers.iter().for_each(|caller| ping(caller, b"hello"));
            });
        }
    });
    callers
        .iter()
        .for_each(|caller| ping(caller, b"still here"));
}

#[test]
fn a_connection_that_is_idle_for_the_idle_timeout_gets_a_fin() {
    let daemon = limited("idle-timeout = '500ms'");
    let talker = daemon.connect();
    let silent = daemon.connect();
    ping(&silent, b"hello");
    let began = Instant::now();
    let talking = thread::spawn(move || {
        for _ in 0..30 {
            ping(&talker, b"and on");
            thread::sleep(Duration::from_millis(50));
        }
    });
    assert_eq!(end_of(&silent).unwrap(), b"");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(450), "{took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    talking.join().unwrap();
    assert!(
        daemon
            .logged("ended (idle-timeout)")
            .contains("received 5, sent 5")
    );
    // A client that has never sent anything.
    assert_eq!(end_of(&daemon.connect()).unwrap(), b"");
}

#[test]
fn a_flood_does_not_put_off_the_deadlines_of_others() {
    let daemon = limited("idle-timeout = '1s'");
    let mut flood = Load::connect(daemon.address(), 40, Talk::bytes(1 << 40));
    let silent = daemon.connect();
    ping(&silent, b"then silence");
    let began = Instant::now();
    let watcher = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            assert_eq!(end_of(&silent).unwrap(), b"");
            began.elapsed()
        });
        assert!(flood.run(SOON, |_| watcher.is_finished()));
        watcher.join().unwrap()
    });
    // A deadline counts from the beginning of a round, and the echo comes at its end.  The rest is for
    // noise; it was four seconds, and no end in sight.
    assert!((0.95..3.0).contains(&watcher.as_secs_f64()), "{watcher:?}");
    assert!(
        daemon
            .logged("ended (idle-timeout)")
            .contains("received 12, sent 12")
    );
    flood.no_wrong_byte().unwrap();
}

#[test]
fn a_peer_that_reads_nothing_for_the_stall_timeout_is_closed_and_a_slow_one_is_not() {
    let daemon = limited("stall-timeout = '1s'");
    let base = daemon.descriptors();
    let stalled = daemon.connect();
    let mut said = Tape::new(1);
    said.fill(&stalled);
    let trickling = connect_with_buffers(daemon.address(), 32 * 1024, 1 << 20);
    let mut sent = Tape::new(2);
    sent.fill(&trickling);
    let mut heard = Tape::new(2);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        heard.expect(&trickling, 40_000);
        thread::sleep(Duration::from_millis(100));
    }
    daemon.logged("ended (stall-timeout)");
    daemon.has_released(base + 1);
    trickling.shutdown(Shutdown::Write).unwrap();
    heard.expect_to_the_end(&trickling);
    assert_eq!(heard.position(), sent.position());
    daemon.has_released(base);
    // A client that is owed nothing does not stall.
    let quiet = daemon.connect();
    ping(&quiet, b"hello");
    thread::sleep(Duration::from_millis(1500));
    ping(&quiet, b"hello");
}

#[test]
fn a_peer_that_sent_while_the_daemon_was_held_up_is_not_idle() {
    plenty_of_descriptors();
    let daemon = limited("idle-timeout = '1s'");
    // More than one poll announces, and than one round gives last turns to.
    let clients: Vec<TcpStream> = (0..1500).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| ping(client, b"here"));
    let (silent, ended) = (daemon.connect(), daemon.connect());
    ping(&silent, b"here");
    ping(&ended, b"here");
    daemon.freeze();
    for mut client in &clients {
        client.write_all(b"and still here").unwrap();
    }
    ended.shutdown(Shutdown::Write).unwrap();
    thread::sleep(Duration::from_millis(1500));
    let thawed = Instant::now();
    daemon.thaw();
    clients
        .iter()
        .for_each(|client| answered(client, b"and still here"));
    let took = thawed.elapsed();
    eprintln!("answered after {took:?}");
    // No connection ends before the time-out has passed once more.
    if took < Duration::from_millis(500) {
        for client in &clients {
            ping(client, b"and on");
        }
    }
    assert_eq!(end_of(&silent).unwrap(), b"");
    assert_eq!(end_of(&ended).unwrap(), b"");
    daemon.logged("ended (idle-timeout)");
}

#[test]
fn a_peer_that_read_while_the_daemon_was_held_up_has_not_stalled() {
    let sockets = "[socket]\nsend-buffer = '4KiB'\nreceive-buffer = '4KiB'\n";
    let limits = "[limits]\nstall-timeout = '1s'\n";
    let mut daemon = Plan::new().config(&format!("{limits}{sockets}")).start();
    let mut clients: Vec<(TcpStream, Tape, Tape)> = (0..300)
        .map(|seed| {
            let client = connect_with_buffers(daemon.address(), 4096, 8192);
            (client, Tape::new(seed), Tape::new(seed))
        })
        .collect();
    let deaf = connect_with_buffers(daemon.address(), 4096, 8192);
    // All queues are full, and each client is owed something, for less than the time-out.
    thread::scope(|scope| {
        scope.spawn(|| Tape::new(1).fill(&deaf));
        for group in clients.chunks_mut(10) {
            scope.spawn(|| {
                group.iter_mut().for_each(|(client, said, _)| {
                    client.set_nonblocking(true).unwrap();
                    let error = said.send(&*client, 1 << 20).unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                });
            });
        }
    });
    daemon.freeze();
    let frozen = Instant::now();
    while frozen.elapsed() < Duration::from_millis(1500) {
        for (client, _, heard) in &mut clients {
            match heard.read(&*client, 1 << 16) {
                Ok(count) => assert!(count > 0, "closed"),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    daemon.thaw();
    for (client, said, heard) in &mut clients {
        client.set_nonblocking(false).unwrap();
        let rest = said.position() - heard.position();
        heard.expect(&*client, rest);
        ping(&*client, b"and on");
    }
    // A client that has read nothing at all is closed as before.
    daemon.logged_times("ended (stall-timeout)", 1);
    assert!(daemon.stop().success());
    let log = daemon.log();
    assert_eq!(log.matches("ended (stall-timeout)").count(), 1, "{log}");
}

#[test]
fn at_max_lifetime_a_connection_ends_with_everything_echoed() {
    let daemon = limited("max-lifetime = '700ms'");
    let base = daemon.descriptors();
    let began = Instant::now();
    let idle = daemon.connect();
    let talker = daemon.connect();
    let mut talk = Tape::new(1);
    let mut said = 0;
    // A client that waits for each answer gets each, and at last the end in place of one.
    loop {
        if Tape::clone(&talk).send(&talker, 1000).is_err() {
            break;
        }
        said += 1000;
        match talk.read(&talker, 1000).unwrap() {
            0 => break,
            count => talk.expect(&talker, 1000 - count),
        }
    }
    assert!(said > 1000);
    let took = began.elapsed();
    // Up to a tenth before its time.
    assert!(took >= Duration::from_millis(580), "{took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(end_of(&idle).unwrap(), b"");
    // Whether the client closes its direction or not.
    drop(talker);
    daemon.has_released(base);
    daemon.logged_times("ended (max-lifetime)", 2);
    ping(daemon.connect(), b"the next one");
    drop(idle);
}

#[test]
fn connections_that_began_together_do_not_end_together() {
    let daemon = limited("max-lifetime = '4s'");
    let clients: Vec<TcpStream> = (0..40)
        .map(|_| {
            let client = daemon.connect();
            ping(&client, b"one round each");
            client
        })
        .collect();
    let began = Instant::now();
    let mut ends: Vec<Duration> = thread::scope(|scope| {
        let wait = |client| {
            scope.spawn(move || {
                assert_eq!(end_of(client).unwrap(), b"");
                began.elapsed()
            })
        };
        let waiting: Vec<_> = clients.iter().map(wait).collect();
        waiting.into_iter().map(|end| end.join().unwrap()).collect()
    });
    ends.sort();
    let (first, last) = (ends[0], ends[39]);
    assert!(first > Duration::from_millis(3500), "{ends:?}");
    assert!(last - first > Duration::from_millis(200), "{ends:?}");
}

#[test]
fn at_max_bytes_a_connection_ends_with_everything_echoed() {
    let daemon = limited("max-bytes = '100KB'");
    let base = daemon.descriptors();
    // Exactly so many, in one piece and in many; then more at once; then less.
    let exact = daemon.connect();
    let message = pattern(1, 100_000);
    (&exact).write_all(&message).unwrap();
    assert!(end_of(&exact).unwrap() == message);
    let exact = daemon.connect();
    for _ in 0..100 {
        ping(&exact, &message[..1000]);
    }
    assert_eq!(end_of(&exact).unwrap(), b"");

    daemon.freeze();
    let more = daemon.connect();
    let mut said = Tape::new(2);
    said.send(&more, 120_000).unwrap();
    daemon.thaw();
    let mut heard = Tape::new(2);
    heard.expect_to_the_end(&more);
    assert_eq!(heard.position(), said.position());

    let less = daemon.connect();
    ping(&less, &message[..99_999]);
    waits(&less, WHILE);
    assert_eq!(end_after_fin(&less).unwrap(), b"");
    daemon.has_released(base);
    daemon.logged_times("ended (max-bytes)", 3);
}

#[test]
fn a_peer_that_sends_on_beyond_max_bytes_gets_a_prefix_and_a_fin() {
    let daemon = limited("max-bytes = '1MiB'");
    let base = daemon.descriptors();
    thread::scope(|scope| {
        for seed in 0..4 {
            let client = daemon.connect();
            scope.spawn(move || {
                thread::scope(|scope| {
                    scope.spawn(|| {
                        let mut said = Tape::new(seed);
                        // A write fails once the daemon has closed.
                        while said.send(&client, 100_000).is_ok() {}
                    });
                    let mut heard = Tape::new(seed);
                    heard.expect_to_the_end(&client);
                    assert!(heard.position() >= 1 << 20);
                    eprintln!("{} bytes came back", heard.position());
                    let _ = client.shutdown(Shutdown::Both);
                });
            });
        }
    });
    daemon.has_released(base);
    daemon.logged("ended (max-bytes)");
    assert!(
        !daemon.log().contains("stop-timeout)"),
        "a flood was cut off"
    );
}

#[test]
fn a_reload_changes_limits_for_open_connections() {
    let daemon = limited("max-connections = 2");
    let one = daemon.connect();
    let two = daemon.connect();
    ping(&one, b"hello");
    ping(&two, &pattern(1, 5000));
    let mut waiting = daemon.connect();
    waiting.write_all(b"let me in").unwrap();
    waits(&waiting, WHILE);
    // More callers are accepted, without a new event.
    daemon.reload("[limits]\nmax-connections = 3\n");
    answered(&waiting, b"let me in");
    // What was sent before counts.
    daemon.reload("[limits]\nmax-bytes = 5005\n");
    ping(&two, b"12345");
    assert_eq!(end_of(&two).unwrap(), b"");
    daemon.logged("ended (max-bytes)");
    // So does the time that has passed; and a time-out may come and go.
    daemon.reload("[limits]\nidle-timeout = '1h'\n");
    daemon.reload("");
    ping(&one, b"hello");
    daemon.reload("[limits]\nmax-lifetime = '10ms'\n");
    assert_eq!(end_of(&one).unwrap(), b"");
    daemon.logged("ended (max-lifetime)");
    daemon.reload("");
    let three = daemon.connect();
    ping(&three, b"hello");
    daemon.reload("[limits]\nidle-timeout = '300ms'\n");
    assert_eq!(end_of(&three).unwrap(), b"");
    daemon.logged("ended (idle-timeout)");
    daemon.reload("");
    let stalled = daemon.connect();
    Tape::new(1).fill(&stalled);
    let open = daemon.descriptors();
    daemon.reload("[limits]\nstall-timeout = '300ms'\n");
    daemon.has_released(open - 1);
    daemon.logged("ended (stall-timeout)");
    // Open connections stay open when the limit is lowered.
    let client = daemon.connect();
    let other = daemon.connect();
    ping(&client, b"hello");
    ping(&other, b"hello");
    daemon.reload("[limits]\nmax-connections = 1\n");
    ping(&client, b"hello");
    ping(&other, b"hello");
    let mut waiting = daemon.connect();
    waiting.write_all(b"let me in").unwrap();
    drop(other);
    waits(&waiting, WHILE);
    drop(client);
    answered(&waiting, b"let me in");
}
