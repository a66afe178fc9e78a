//! Several workers serve as one does.
//!
//! All tests run with any number of workers (`TCP_ECHO_TEST_WORKERS`).  The tests here are about that
//! number: that there are so many, that callers are shared evenly, that limits, counters, reload and
//! stop apply to all of them, that one that hangs is noticed, and that connections are restored when the
//! next process has another number.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tcp_echo::log::events::id;
use testkit::crowd::{ClientMix, Kind, Kind::*};
use testkit::manager::{Manager, Way};
use testkit::{Daemon, Plan, SOON, Tape, eventually, finish, has, pattern, ping};

const COUNTERS: &str = id("COUNTERS");

/// Some of each kind.
const ALL: [(Kind, usize); 5] = [
    (Streaming, 8),
    (Idle, 8),
    (HalfClosed, 4),
    (Finished, 4),
    (Stalled, 4),
];

fn config(workers: usize) -> String {
    format!("workers = {workers}\n")
}

fn start(workers: usize) -> Daemon {
    Plan::new().config(&config(workers)).start()
}

/// The names of its threads.
fn threads(daemon: &Daemon) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid().as_raw_nonzero())).unwrap();
    let mut names: Vec<String> = tasks
        .map(|task| {
            let name = std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap();
            name.trim().to_owned()
        })
        .collect();
    names.sort();
    names
}

/// How many connections each of its polls has, the fewest first.
fn shares(daemon: &Daemon) -> Vec<usize> {
    let of = format!("/proc/{}", daemon.pid().as_raw_nonzero());
    let mut polls = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(format!("{of}/fd")).unwrap() {
        let entry = entry.unwrap();
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy() != "anon_inode:[eventpoll]" {
            continue;
        }
        let info = format!("{of}/fdinfo/{}", entry.file_name().to_string_lossy());
        let info = std::fs::read_to_string(info).unwrap();
        let word = |line: &str, name| {
            let (_, rest) = line.split_once(name)?;
            Some(rest.split_whitespace().next()?.to_owned())
        };
        let watched = info
            .lines()
            .filter_map(|line| Some((word(line, "tfd:")?, word(line, "data:")?)));
        let watched: Vec<_> = watched.collect();
        // A token whose two lowest bits are 0 is that of a connection.
        let token = |data: &str| u64::from_str_radix(data, 16).unwrap();
        let connections = watched.iter().filter(|(_, data)| token(data) & 3 == 0);
        // Each poll is there twice, as it has a registry.
        polls.insert(watched.clone(), connections.count());
    }
    let mut shares: Vec<usize> = polls.into_values().collect();
    shares.sort_unstable();
    shares
}

fn counted(daemon: &Daemon) -> Value {
    let before = daemon.log().matches(COUNTERS).count();
    daemon.signal(Signal::USR1);
    let line = eventually(SOON, "the counters were not told", || {
        let log = daemon.log();
        let mut lines = log.lines().filter(|line| line.contains(COUNTERS));
        lines.nth(before).map(ToOwned::to_owned)
    });
    serde_json::from_str(&line).unwrap()
}

#[test]
fn there_are_as_many_workers_as_asked_for_and_one_is_the_main_thread() {
    for workers in [1, 2, 8] {
        let mut daemon = start(workers);
        ping(daemon.connect(), b"hello");
        let mut expected = vec!["log".to_owned(), "tcp-echo".to_owned()];
        expected.extend((1..workers).map(|number| format!("worker {number}")));
        expected.sort();
        // A thread names itself when it begins to run.
        let complaint = format!("the threads are never {expected:?}");
        eventually(SOON, &complaint, || {
            (threads(&daemon) == expected).then_some(())
        });
        assert!(daemon.stop().success());
    }
    let mut daemon = Plan::new().config("workers = \"auto\"\n").start();
    let processors = thread::available_parallelism().unwrap().get().min(64);
    assert_eq!(threads(&daemon).len(), processors + 1);
    assert!(daemon.stop().success());
}

#[test]
fn what_is_no_number_of_workers_is_named() {
    for text in ["0", "65", "\"many\"", "-1", "1.5"] {
        let plan = Plan::new().config(&format!("workers = {text}\n"));
        let (status, said) = plan.unnotified().run();
        assert_eq!(status.code(), Some(78), "{said}");
        for part in ["config.toml", "line 1", "workers"] {
            assert!(said.contains(part), "{said}");
        }
    }
}

#[test]
fn callers_are_shared_evenly_and_every_client_gets_its_bytes() {
    for workers in [1, 2, 8] {
        let daemon = start(workers);
        let clients: Vec<TcpStream> = (0..40).map(|_| daemon.connect()).collect();
        for (number, client) in clients.iter().enumerate() {
            ping(client, &pattern(number as u64, 10_000));
        }
        assert_eq!(shares(&daemon), vec![40 / workers; workers]);
        // New callers go to the workers with connections that have ended.
        for client in clients.iter().step_by(workers) {
            finish(client);
        }
        eventually(SOON, "they are not gone", || {
            (shares(&daemon).iter().sum::<usize>() == 40 - 40_usize.div_ceil(workers)).then_some(())
        });
        let more: Vec<TcpStream> = (0..40).map(|_| daemon.connect()).collect();
        more.iter().for_each(|client| ping(client, b"hello"));
        let shares = shares(&daemon);
        let (least, most) = (shares[0], shares[workers - 1]);
        assert!(most - least <= 1, "{shares:?}");
    }
}

#[test]
fn a_limit_is_about_all_workers_and_a_caller_gets_in_wherever_a_connection_ends() {
    for workers in [2, 8] {
        let config = format!("workers = {workers}\n[limits]\nmax-connections = 16\n");
        let daemon = Plan::new().config(&config).start();
        let clients: Vec<TcpStream> = (0..16).map(|_| daemon.connect()).collect();
        clients.iter().for_each(|client| ping(client, b"in"));
        let mut served = Vec::new();
        for client in clients {
            let waiting = daemon.connect();
            waiting
                .set_read_timeout(Some(Duration::from_millis(50)))
                .unwrap();
            let mut tape = Tape::new(7);
            tape.send(&waiting, 100).unwrap();
            let mut heard = Tape::new(7);
            assert!(heard.read(&waiting, 100).is_err(), "beyond the limit");
            waiting.set_read_timeout(Some(SOON)).unwrap();
            drop(client);
            heard.expect(&waiting, 100);
            served.push(waiting);
        }
    }
}

#[test]
fn counters_limits_and_level_are_those_of_all_workers() {
    for workers in [1, 2, 8] {
        let mut daemon = Plan::new()
            .config(&config(workers))
            .argument("--log-format=json")
            .start();
        let clients: Vec<TcpStream> = (0..24).map(|_| daemon.connect()).collect();
        for client in &clients {
            ping(client, &[7; 1000]);
        }
        for client in &clients[..8] {
            finish(client);
        }
        eventually(SOON, "eight are not over", || {
            (shares(&daemon).iter().sum::<usize>() == 16).then_some(())
        });
        let told = counted(&daemon);
        for (field, expected) in [
            ("echo.accepted", 24),
            ("echo.open", 16),
            ("echo.received", 24_000),
            ("echo.sent", 24_000),
            ("echo.owed", 0),
        ] {
            assert_eq!(told[field], expected, "{field} with {workers}: {told}");
        }
        daemon.notified("STATUS=1 listener, 16 connections, 23.4 KiB echoed");
        // The limits of open connections change, too.
        let text = config(workers) + "[limits]\nidle-timeout = '100ms'\n";
        daemon.reload(&text);
        eventually(SOON, "the idle were not closed", || {
            (shares(&daemon).iter().sum::<usize>() == 0).then_some(())
        });
        daemon.logged_times("ended (idle-timeout)", 16);
        // Their number does not.
        daemon.reload(&config(workers + 1));
        let told = daemon.logged("these keys need a restart to take effect");
        assert!(told.contains("take effect: workers"), "{told}");
        assert_eq!(threads(&daemon).len(), workers + 1);
        assert!(daemon.stop().success());
    }
}

#[test]
fn a_stop_echoes_everything_and_ends_every_thread() {
    for workers in [1, 2, 8] {
        let mut daemon = start(workers);
        let slow: Vec<(TcpStream, Tape)> = (0..16)
            .map(|number| {
                let client = daemon.connect();
                let mut said = Tape::new(number);
                said.send(&client, 100_000).unwrap();
                (client, said)
            })
            .collect();
        daemon.signal(Signal::TERM);
        for (number, (client, said)) in (0..).zip(&slow) {
            let mut heard = Tape::new(number);
            heard.expect_to_the_end(client);
            assert_eq!(heard.position(), said.position());
        }
        assert!(daemon.exited(SOON).success());
    }
}

#[test]
fn a_worker_that_hangs_leaves_the_watchdog_unfed() {
    if !has("strace") {
        return;
    }
    let mut daemon = Plan::new()
        .config(&config(2))
        .environment("WATCHDOG_USEC", "400000")
        .start();
    daemon.notified("WATCHDOG=1");
    // The next poll of the worker takes three seconds.
    let tasks = format!("/proc/{}/task", daemon.pid().as_raw_nonzero());
    let thread = eventually(SOON, "there is no worker", || {
        let mut tasks = std::fs::read_dir(&tasks).unwrap();
        tasks.find_map(|task| {
            let task = task.unwrap().path();
            let name = std::fs::read_to_string(task.join("comm")).unwrap();
            (name.trim() == "worker 1").then_some(task)
        })
    });
    let thread = thread.file_name().unwrap().to_str().unwrap().to_owned();
    let mut strace = std::process::Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "-p", &thread])
        .args(["-e", "inject=epoll_pwait:delay_exit=3000000:when=1"])
        .spawn()
        .unwrap();
    eventually(SOON, "it is fed while a worker hangs", || {
        let fed = daemon.notified_within("WATCHDOG=1", Duration::from_secs(1));
        fed.is_none().then_some(())
    });
    // The others serve: the first caller would go to the worker, the second does not.
    let clients = [daemon.connect(), daemon.connect()];
    ping(&clients[1], b"meanwhile");
    // It comes back, and all is well.
    ping(&clients[0], b"at last");
    daemon.notified("WATCHDOG=1");
    let _ = strace.kill();
    let _ = strace.wait();
    assert!(daemon.stop().success());
}

#[test]
fn connections_are_restored_whatever_the_number_of_workers_of_the_next_process() {
    let mut manager = Manager::new();
    manager.config(&config(2));
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &ALL);
    manager.preserves(28);
    for (round, workers) in [1, 2, 8, 8, 3, 2, 2, 1, 8].into_iter().enumerate() {
        manager.config(&config(workers));
        manager.replace(if round % 2 == 0 {
            Way::Restart
        } else {
            Way::Kill
        });
        mix.echoes_on();
        manager.one_of_each();
        let shares = shares(manager.daemon());
        assert_eq!(shares.len(), workers);
        assert_eq!(shares.iter().sum::<usize>(), 28);
    }
    mix.gets_exact_bytes();
}

#[test]
fn kills_and_restarts_lose_no_connection_with_any_number_of_workers() {
    for workers in [2, 8] {
        let mut manager = Manager::new();
        manager.config(&config(workers));
        manager.start();
        let mut mix = ClientMix::new(manager.address(), &ALL);
        manager.preserves(28);
        mix.meanwhile(|progress| {
            for round in 0..12 {
                progress.moves(200_000);
                manager.replace(if round % 3 == 0 {
                    Way::Restart
                } else {
                    Way::Kill
                });
            }
        });
        mix.echoes_on();
        manager.one_of_each();
        mix.gets_exact_bytes();
    }
}

#[test]
fn callers_come_and_go_while_others_flood() {
    let mut daemon = start(2);
    let address = daemon.address();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 0..4 {
            let over = &over;
            scope.spawn(move || {
                let client = testkit::connect(address);
                let (mut said, mut heard) = (Tape::new(seed), Tape::new(seed));
                while !over.load(Ordering::Relaxed) {
                    said.send(&client, 200_000).unwrap();
                    heard.expect(&client, 200_000);
                }
            });
        }
        let begin = Instant::now();
        let mut served = 0;
        while begin.elapsed() < Duration::from_secs(2) {
            let client = testkit::connect(address);
            ping(&client, b"hello");
            finish(&client);
            served += 1;
        }
        over.store(true, Ordering::Relaxed);
        assert!(served > 100, "only {served} callers were served");
    });
    assert!(daemon.stop().success());
}

#[test]
fn a_deadline_comes_in_time_however_long_the_worker_has_slept() {
    for workers in [1, 2] {
        let config = config(workers) + "[limits]\nidle-timeout = '1s'\n";
        let daemon = Plan::new().config(&config).start();
        thread::sleep(Duration::from_secs(3));
        let begin = Instant::now();
        // The first one goes to the last worker, which has had nothing to do so far.
        let silent = daemon.connect();
        Tape::new(0).expect_to_the_end(&silent);
        let took = begin.elapsed();
        assert!(took > Duration::from_millis(900), "{workers}: {took:?}");
        assert!(took < Duration::from_millis(2500), "{workers}: {took:?}");
    }
}

#[test]
fn at_the_limit_a_stop_is_over_with_the_last_connection() {
    for workers in [1, 2] {
        let config = config(workers) + "[limits]\nmax-connections = 1\n";
        let mut daemon = Plan::new().config(&config).start();
        let last = daemon.connect();
        ping(&last, b"the last");
        let begin = Instant::now();
        daemon.signal(Signal::TERM);
        thread::sleep(Duration::from_millis(20));
        finish(&last);
        assert!(daemon.exited(SOON).success());
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(3), "{workers}: {took:?}");
    }
}

#[test]
fn silent_callers_are_in_the_status() {
    for workers in [1, 2, 8] {
        let daemon = Plan::new().config(&config(workers)).start();
        let silent: Vec<TcpStream> = (0..workers).map(|_| daemon.connect()).collect();
        let some = if workers == 1 { "" } else { "s" };
        daemon.notified(&format!(
            "STATUS=1 listener, {workers} connection{some}, 0 B echoed"
        ));
        drop(silent);
        daemon.notified("STATUS=1 listener, 0 connections, 0 B echoed");
    }
}

#[test]
fn a_place_is_free_again_when_a_registration_fails() {
    if !has("strace") {
        return;
    }
    // Of the main thread's calls: the polls and their wakers, the listener, then the callers.
    let calm = Plan::new().config(&config(2)).start();
    let watched = |daemon: &Daemon| {
        let of = format!("/proc/{}/fdinfo", daemon.pid().as_raw_nonzero());
        let infos = std::fs::read_dir(of).unwrap();
        let lines = infos.map(|info| {
            let info = std::fs::read_to_string(info.unwrap().path()).unwrap_or_default();
            info.matches("tfd:").count()
        });
        // Each poll is there twice.
        lines.sum::<usize>() / 2
    };
    let before = watched(&calm);
    drop(calm);
    let inject = format!("inject=epoll_ctl:error=ENOSPC:when={}", before + 1);
    let text = config(2) + "[limits]\nmax-connections = 1\n";
    let mut daemon = Plan::new()
        .config(&text)
        .under(&[
            "strace",
            "-D",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &inject,
        ])
        .start();
    let lost = daemon.connect();
    assert!(finish(&lost).is_empty());
    let next = daemon.connect();
    ping(&next, b"there is room");
    finish(&next);
    daemon.logged("No space left on device");
    assert!(daemon.stop().success());
}

#[test]
fn the_totals_are_exact_after_a_crash_and_a_restart_however_many_there_are() {
    for workers in [1, 2, 8] {
        let mut manager = Manager::new();
        manager.config(&format!("preserve-after = '1s'\n{}", config(workers)));
        manager.start();
        let mut old: Vec<TcpStream> = (0..10).map(|_| manager.connect()).collect();
        for client in &old {
            ping(client, b"before");
        }
        manager.preserves(10);
        finish(&old.pop().unwrap());
        let young: Vec<TcpStream> = (0..6).map(|_| manager.connect()).collect();
        for client in &young {
            ping(client, b"young");
        }
        manager.preserves(9);
        manager.kill();
        manager.start();
        let exact = |manager: &Manager| {
            manager.daemon().signal(Signal::USR1);
            let totals = manager.event(COUNTERS);
            let number = |key: &str| totals[key].as_u64().unwrap();
            let found = (number("echo.accepted"), number("echo.open"));
            assert_eq!(found, (16, 9), "{workers} workers: {totals}");
            assert_eq!(
                totals["echo.reasons"], "peer-closed 1, not-restored 6",
                "{workers} workers"
            );
            // What the six had received was known only to the process that was killed.
            assert_eq!(number("echo.received"), 60, "{workers} workers: {totals}");
        };
        exact(&manager);
        manager.restart();
        exact(&manager);
        manager.stop();
    }
}
