//! Stopping loses nothing that was acknowledged, and it ends.
//!
//! TERM, INT or USR2 stops the daemon.  Whatever the kernel had acknowledged by then comes back, also
//! to clients that were not accepted yet or do not read for a while, and every connection ends with a
//! FIN.  A client that never reads is closed at `stop-timeout`, and a second signal ends the process at
//! once.  A daemon that was killed can be started again at once.

use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::{
    Daemon, Dice, Plan, SOON, Tape, connect, connect_with_buffers, end_of, eventually, has,
    has_namespaces, listener, ping, waits,
};

use crate::{is_acknowledged, unacknowledged};

/// What may pass beyond a deadline, and what a noisy machine needs besides.
const SLACK: Duration = Duration::from_millis(500);
const NOISE: Duration = Duration::from_millis(2500);

/// Sends TERM and waits until the daemon has begun to stop.
fn ask(daemon: &Daemon, signal: Signal) {
    daemon.signal(signal);
    daemon.notified("STOPPING=1");
}

#[test]
fn what_a_hundred_clients_had_in_flight_comes_back_and_then_a_fin() {
    for signal in [Signal::TERM, Signal::INT, Signal::USR2] {
        let mut daemon = Daemon::start();
        let mut dice = Dice::new(7);
        let clients: Vec<(TcpStream, Tape, Tape)> = (0..100)
            .map(|seed| {
                let client = daemon.connect();
                ping(&client, b"here");
                (client, Tape::new(seed), Tape::new(seed))
            })
            .collect();
        // It is suspended, so that all bytes are in flight when the signal arrives.
        daemon.freeze();
        let mut clients = clients;
        for (client, said, _) in &mut clients {
            said.send(&*client, dice.up_to(60_000)).unwrap();
            is_acknowledged(client);
        }
        daemon.signal(signal);
        daemon.thaw();
        for (client, said, heard) in &mut clients {
            heard.expect_to_the_end(&*client);
            assert_eq!(heard.position(), said.position());
        }
        drop(clients);
        assert!(daemon.exited(SOON).success());
        assert!(daemon.log().contains("ended: shutdown 100"), "{signal:?}");
    }
}

#[test]
fn clients_that_go_on_sending_get_a_prefix_and_a_fin() {
    let mut daemon = Daemon::start();
    let stopping = AtomicBool::new(false);
    let all_are_served = Barrier::new(21);
    thread::scope(|scope| {
        for seed in 0..20 {
            let (daemon, stopping) = (&daemon, &stopping);
            let all_are_served = &all_are_served;
            scope.spawn(move || {
                let stream = daemon.connect();
                ping(&stream, b"here");
                all_are_served.wait();
                let ended = AtomicBool::new(false);
                thread::scope(|scope| {
                    let (ended, reader) = (&ended, &stream);
                    scope.spawn(move || {
                        let mut heard = Tape::new(seed);
                        heard.expect_to_the_end(reader);
                        assert!(heard.position() > 0);
                        ended.store(true, Ordering::Relaxed);
                    });
                    let mut said = Tape::new(seed);
                    while !ended.load(Ordering::Relaxed) {
                        // Not faster than it comes back, as a client sends that waits for answers.
                        if said.send(&stream, 5000).is_err() {
                            assert!(stopping.load(Ordering::Relaxed));
                            break;
                        }
                        thread::sleep(Duration::from_millis(1));
                    }
                });
            });
        }
        all_are_served.wait();
        thread::sleep(Duration::from_millis(300));
        stopping.store(true, Ordering::Relaxed);
        daemon.signal(Signal::TERM);
    });
    assert!(daemon.exited(SOON).success());
}

#[test]
fn a_peer_that_floods_without_a_pause_is_drained_too() {
    let mut daemon = Daemon::start();
    thread::scope(|scope| {
        let clients: Vec<TcpStream> = (0..4).map(|_| daemon.connect()).collect();
        for (seed, client) in clients.into_iter().enumerate() {
            scope.spawn(move || {
                thread::scope(|scope| {
                    let writer = &client;
                    scope.spawn(move || {
                        let mut said = Tape::new(seed as u64);
                        while said.send(writer, 1 << 20).is_ok() {}
                    });
                    let mut heard = Tape::new(seed as u64);
                    heard.expect_to_the_end(&client);
                    let _ = client.shutdown(Shutdown::Both);
                });
            });
        }
        thread::sleep(Duration::from_millis(300));
        let asked = Instant::now();
        daemon.signal(Signal::TERM);
        assert!(daemon.exited(SOON).success());
        eprintln!("left flooding clients after {:?}", asked.elapsed());
    });
    assert!(
        !daemon.log().contains("stop-timeout)"),
        "a flood was cut off"
    );
}

#[test]
fn what_lies_unread_behind_a_stalled_client_comes_back_when_it_reads_on() {
    let mut daemon = Daemon::start();
    let clients: Vec<(TcpStream, usize)> = (0..3)
        .map(|seed| {
            let client = connect_with_buffers(daemon.address(), 8192, 1 << 20);
            let mut said = Tape::new(seed);
            said.fill(&client);
            (client, said.position())
        })
        .collect();
    let acknowledged: Vec<usize> = clients
        .iter()
        .map(|(client, said)| said - unacknowledged(client))
        .collect();
    ask(&daemon, Signal::TERM);
    thread::sleep(Duration::from_millis(700));
    assert!(daemon.is_running());
    for (seed, (client, said)) in clients.iter().enumerate() {
        let mut heard = Tape::new(seed as u64);
        heard.expect_to_the_end(client);
        let (heard, acknowledged) = (heard.position(), acknowledged[seed]);
        assert!(
            (acknowledged..=*said).contains(&heard),
            "{heard} came back of {acknowledged} acknowledged and {said} sent"
        );
    }
    drop(clients);
    assert!(daemon.exited(SOON).success());
    assert!(!daemon.log().contains("stop-timeout)"));
}

#[test]
fn a_slow_reader_that_goes_on_sending_loses_nothing_of_what_was_acknowledged() {
    let config = "[listener.a]\naddress = '127.0.0.1:0'\nreceive-buffer = '64KiB'\n";
    let mut daemon = Plan::bare().config(config).start();
    let client = connect_with_buffers(daemon.address(), 64 * 1024, 1 << 20);
    let mut said = Tape::new(1);
    said.fill(&client);
    let acknowledged = said.position() - unacknowledged(&client);
    ask(&daemon, Signal::TERM);
    thread::scope(|scope| {
        scope.spawn(|| while said.send(&client, 10_000).is_ok() {});
        let mut heard = Tape::new(1);
        // At most 250 kB a second: what stands in the kernel's queues takes longer than the linger.
        while heard.read(&client, 5_000).unwrap() > 0 {
            thread::sleep(Duration::from_millis(20));
        }
        assert!(
            heard.position() >= acknowledged,
            "{} came back of {acknowledged}",
            heard.position()
        );
        let _ = client.shutdown(Shutdown::Both);
    });
    assert!(daemon.exited(SOON).success());
    assert!(!daemon.log().contains("stop-timeout)"));
}

#[test]
fn callers_in_the_queue_are_served_at_a_stop() {
    let mut daemon = Daemon::start();
    daemon.freeze();
    let callers: Vec<TcpStream> = (0..150)
        .map(|seed| {
            let caller = daemon.connect();
            Tape::new(seed).send(&caller, 3000).unwrap();
            if seed % 3 == 0 {
                caller.shutdown(Shutdown::Write).unwrap();
            }
            is_acknowledged(&caller);
            caller
        })
        .collect();
    daemon.signal(Signal::TERM);
    daemon.thaw();
    for (seed, caller) in callers.iter().enumerate() {
        let mut heard = Tape::new(seed as u64);
        heard.expect_to_the_end(caller);
        assert_eq!(heard.position(), 3000);
    }
    drop(callers);
    assert!(daemon.exited(SOON).success());
}

#[test]
fn callers_behind_the_connection_limit_are_served_as_connections_end() {
    let mut daemon = Plan::new()
        .config("[limits]\nmax-connections = 3\n")
        .start();
    let inside: Vec<TcpStream> = (0..3).map(|_| daemon.connect()).collect();
    inside.iter().for_each(|client| ping(client, b"inside"));
    let outside: Vec<TcpStream> = (0..6)
        .map(|seed| {
            let caller = daemon.connect();
            Tape::new(seed).send(&caller, 3000).unwrap();
            is_acknowledged(&caller);
            caller
        })
        .collect();
    daemon.signal(Signal::TERM);
    drop(inside);
    for (seed, caller) in outside.iter().enumerate() {
        let mut heard = Tape::new(seed as u64);
        heard.expect_to_the_end(caller);
        assert_eq!(heard.position(), 3000);
    }
    drop(outside);
    assert!(daemon.exited(SOON).success());
}

#[test]
fn a_client_that_never_reads_is_closed_at_the_stop_timeout() {
    let mut daemon = Plan::new()
        .config("[limits]\nstop-timeout = '1s'\n")
        .start();
    let client = daemon.connect();
    Tape::new(1).fill(&client);
    let asked = Instant::now();
    daemon.signal(Signal::TERM);
    assert!(daemon.exited(SOON).success());
    let took = asked.elapsed();
    let due = Duration::from_secs(1);
    assert!(
        (due..due + SLACK + NOISE).contains(&took),
        "it took {took:?}"
    );
    assert!(daemon.log().contains("stop-timeout)"));
}

#[test]
fn idle_clients_are_gone_at_once() {
    let mut daemon = Daemon::start();
    let clients: Vec<TcpStream> = (0..50).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| ping(client, b"hello"));
    let asked = Instant::now();
    daemon.signal(Signal::TERM);
    // They leave their direction open and send nothing; one of them checks the end.
    assert_eq!(end_of(&clients[0]).unwrap(), b"");
    assert!(daemon.exited(SOON).success());
    let took = asked.elapsed();
    assert!(took < SLACK + NOISE, "it took {took:?}");
    for client in &clients {
        assert_eq!(end_of(client).unwrap(), b"");
    }
}

#[test]
fn bytes_that_were_on_their_way_come_back_before_the_fin() {
    let mut daemon = Daemon::start();
    let clients: Vec<TcpStream> = (0..20).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| ping(client, b"hello"));
    let asked = Instant::now();
    ask(&daemon, Signal::TERM);
    thread::sleep(Duration::from_millis(20));
    for mut client in &clients {
        client.write_all(b"one more").unwrap();
    }
    let said = asked.elapsed();
    let answers: Vec<_> = clients.iter().map(end_of).collect();
    let took = asked.elapsed();
    if said < Duration::from_millis(50) {
        for answer in answers {
            assert_eq!(answer.unwrap(), b"one more");
        }
    } else {
        eprintln!("skipped: this machine took {said:?} to say it");
    }
    assert!(
        took >= Duration::from_millis(50),
        "the FIN came after {took:?}"
    );
    assert!(daemon.exited(SOON).success());
}

#[test]
fn a_client_that_sends_on_is_answered_for_a_while_after_a_stop_and_not_for_ever() {
    let mut daemon = Daemon::start();
    let client = daemon.connect();
    ping(&client, b"hello");
    let asked = Instant::now();
    daemon.signal(Signal::TERM);
    let (mut said, mut heard) = (Tape::new(1), Tape::new(1));
    // It waits for each answer, and never pauses for long enough.
    loop {
        if said.send(&client, 100).is_err() || heard.read(&client, 100).unwrap() == 0 {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    let took = asked.elapsed();
    let linger = Duration::from_millis(400);
    assert!(heard.position() > 0);
    assert!(took < linger + SLACK + NOISE, "it took {took:?}");
    drop(client);
    assert!(daemon.exited(SOON).success());
    assert!(daemon.log().contains("ended: shutdown 1"));
}

#[test]
fn the_second_request_ends_it_at_once() {
    for (first, second) in [
        (Signal::TERM, Signal::TERM),
        (Signal::INT, Signal::INT),
        (Signal::USR2, Signal::TERM),
    ] {
        let mut daemon = Daemon::start();
        let client = daemon.connect();
        Tape::new(1).fill(&client);
        ask(&daemon, first);
        thread::sleep(Duration::from_millis(100));
        assert!(daemon.is_running());
        let asked = Instant::now();
        daemon.signal(second);
        assert!(daemon.exited(SOON).success());
        let took = asked.elapsed();
        assert!(took < SLACK + NOISE, "it took {took:?}");
    }
}

#[test]
fn with_a_passed_listener_new_callers_wait_for_the_next_process() {
    let listener = listener();
    let address = listener.local_addr().unwrap();
    let copy = |listener: &TcpListener| vec![OwnedFd::from(listener.try_clone().unwrap())];
    let mut old = Plan::bare().pass(copy(&listener), "echo").start();
    let stalled = connect(address);
    let mut said = Tape::new(1);
    said.fill(&stalled);
    ask(&old, Signal::TERM);
    // The report comes in a later round than the last accept: it accepts no more, but is busy.
    old.signal(Signal::USR1);
    old.logged("connections: accepted");
    let waiting: Vec<TcpStream> = (0..20)
        .map(|seed| {
            let caller = connect(address);
            Tape::new(seed).send(&caller, 1000).unwrap();
            caller
        })
        .collect();
    waits(&waiting[0], Duration::from_millis(300));
    assert!(old.is_running());
    // The moment between the two counts, too.
    let mut heard = Tape::new(1);
    heard.expect_to_the_end(&stalled);
    drop(stalled);
    assert!(old.exited(SOON).success());
    let between = connect(address);
    let mut new = Plan::bare().pass(copy(&listener), "echo").start();
    for (seed, caller) in waiting.iter().enumerate() {
        let mut heard = Tape::new(seed as u64);
        heard.expect(caller, 1000);
    }
    ping(&between, b"between");
    ping(connect(address), b"after");
    assert!(new.stop().success());
}

#[test]
fn no_caller_is_refused_while_daemons_follow_each_other_on_a_passed_listener() {
    let listener = listener();
    let address = listener.local_addr().unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let calls: Vec<_> = (0..4_u64)
            .map(|seed| {
                let over = &over;
                scope.spawn(move || {
                    let mut calls = 0;
                    while !over.load(Ordering::Relaxed) {
                        let caller = connect(address);
                        Tape::new(seed).send(&caller, 100).unwrap();
                        caller.shutdown(Shutdown::Write).unwrap();
                        let mut heard = Tape::new(seed);
                        heard.expect_to_the_end(&caller);
                        // A client that is accepted and sends nothing until the FIN is out is too late.
                        let served = heard.position();
                        assert!(served == 100 || served == 0, "{served}");
                        calls += usize::from(served > 0);
                    }
                    calls
                })
            })
            .collect();
        for _ in 0..5 {
            let passed = vec![OwnedFd::from(listener.try_clone().unwrap())];
            let mut daemon = Plan::bare().pass(passed, "echo").start();
            thread::sleep(Duration::from_millis(50));
            assert!(daemon.stop().success());
        }
        // One more, so that the last callers are served.
        let passed = vec![OwnedFd::from(listener.try_clone().unwrap())];
        let _daemon = Plan::bare().pass(passed, "echo").start();
        over.store(true, Ordering::Relaxed);
        for calls in calls {
            assert!(calls.join().unwrap() > 0);
        }
    });
}

#[test]
fn on_a_listener_of_the_daemon_new_callers_are_refused_during_a_drain() {
    let daemon = Daemon::start();
    let client = daemon.connect();
    Tape::new(1).fill(&client);
    ask(&daemon, Signal::TERM);
    eventually(SOON, "callers were still taken", || {
        TcpStream::connect(daemon.address())
            .err()
            .filter(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    });
}

#[test]
fn after_a_kill_the_port_can_be_had_again_at_once() {
    // An address that no other test uses, as the port has to be free for the second start.
    let [high, low] = std::process::id().to_be_bytes()[2..] else {
        unreachable!()
    };
    let host = format!("127.9.{high}.{low}");
    let start = |port: u16| {
        let listen = format!("{host}:{port}");
        let plan = Plan::bare().argument("--listen").argument(&listen);
        plan.start()
    };
    let mut daemon = start(0);
    let port = daemon.address().port();
    for round in 0..3 {
        let clients: Vec<TcpStream> = (0..20).map(|_| daemon.connect()).collect();
        clients.iter().for_each(|client| ping(client, b"hello"));
        daemon.signal(Signal::KILL);
        assert!(!daemon.exited(SOON).success());
        // The daemon's end closed first, so it is in TIME-WAIT, or in FIN-WAIT while a client is open.
        drop(clients);
        let began = Instant::now();
        daemon = start(port);
        ping(daemon.connect(), b"again");
        let took = began.elapsed();
        assert!(took < Duration::from_secs(4), "round {round}: {took:?}");
    }
}

#[test]
fn other_signals_are_harmless() {
    let mut daemon = Daemon::start();
    let client = daemon.connect();
    ping(&client, b"hello");
    for _ in 0..20 {
        daemon.signal(Signal::ALARM);
        daemon.signal(Signal::PIPE);
        ping(&client, b"still here");
    }
    assert!(daemon.is_running());
    assert!(daemon.stop().success());
}

#[test]
fn signals_are_taken_whatever_dispositions_and_mask_were_inherited() {
    let sh = [
        "sh",
        "-c",
        "trap '' TERM INT HUP USR1 USR2 ALRM PIPE; exec \"$@\"",
        "sh",
    ];
    let all = "TERM,INT,HUP,USR1,USR2,ALRM,PIPE";
    let ignored = ["env", &format!("--ignore-signal={all}")];
    let blocked = ["env", &format!("--block-signal={all}")];
    let help = std::process::Command::new("env")
        .arg("--help")
        .output()
        .unwrap();
    let mut wrappers: Vec<&[&str]> = vec![&sh];
    if has("env") && String::from_utf8_lossy(&help.stdout).contains("--block-signal") {
        wrappers.extend([&ignored[..], &blocked[..]]);
    } else {
        eprintln!("skipped: this env cannot block signals");
    }
    for wrapper in wrappers {
        for signal in [Signal::TERM, Signal::INT] {
            let mut daemon = Plan::new().under(wrapper).start();
            let client = daemon.connect();
            ping(&client, b"hello");
            daemon.reload("");
            daemon.signal(Signal::ALARM);
            daemon.signal(Signal::PIPE);
            ping(&client, b"hello");
            daemon.signal(signal);
            assert!(daemon.exited(SOON).success(), "{wrapper:?} {signal:?}");
        }
    }
}

/// The file of hosts is a pipe that nothing writes, so that a name is never resolved.
#[test]
fn a_stop_while_a_name_is_resolved_is_obeyed_at_once() {
    if !has("mkfifo") || !has_namespaces(&["-rm", "true"]) {
        return;
    }
    for signal in [Signal::TERM, Signal::INT] {
        let plan = Plan::bare();
        let pipe = plan.folder().path("hosts");
        let script = format!(
            "mkfifo {0} && mount --bind {0} /etc/hosts && exec \"$@\"",
            pipe.display()
        );
        let mut daemon = plan
            .argument("--listen")
            .argument("name.invalid:0")
            .under(&["unshare", "-rm", "sh", "-c", &script, "sh"])
            .unnotified()
            .start();
        let name = format!("/proc/{}/comm", daemon.pid().as_raw_nonzero());
        eventually(SOON, "it does not begin", || {
            let name = std::fs::read_to_string(&name).ok()?;
            (name.trim() == "tcp-echo").then_some(())
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(daemon.is_running());
        daemon.signal(signal);
        let status = daemon.exited(Duration::from_secs(5));
        assert_eq!(status.code(), Some(0), "{status}");
    }
}
