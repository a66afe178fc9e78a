//! A new configuration for a daemon that goes on serving: what takes effect at once, what needs a
//! restart and says so, and a wrong one, which changes nothing.
//!
//! The fixture's `reload` writes the file, sends HUP and waits for `READY=1`, so that the daemon has
//! acted when a test goes on.  Options of accepted connections are read from duplicates of the daemon's
//! own sockets.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::SockRef;
use testkit::{
    Daemon, Folder, Plan, SOON, connect, end_of, eventually, fill, finish, has, listener, pattern,
    ping, waits,
};

#[test]
fn a_time_out_holds_for_connections_that_are_there_already() {
    let mut daemon = Daemon::start();
    let client = daemon.connect();
    ping(&client, b"idle without a limit");
    daemon.reload("[limits]\nidle-timeout = '100ms'\n");
    assert_eq!(end_of(&client).unwrap(), b"");
    daemon.logged("ended (idle-timeout)");
    // And the other way round.
    daemon.reload("[limits]\nidle-timeout = '300ms'\n");
    let client = daemon.connect();
    ping(&client, b"will be idle");
    daemon.reload("");
    waits(&client, Duration::from_millis(1000));
    ping(&client, b"idle without a limit again");
    assert!(daemon.stop().success());
}

#[test]
fn more_room_serves_the_callers_that_wait() {
    let mut daemon = Plan::new()
        .config("[limits]\nmax-connections = 1\n")
        .start();
    let first = daemon.connect();
    ping(&first, b"first");
    let mut second = daemon.connect();
    second.write_all(b"second").unwrap();
    daemon.logged("is paused");
    waits(&second, Duration::from_millis(200));
    daemon.reload("[limits]\nmax-connections = 2\n");
    let mut echo = [0; 6];
    second.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"second");
    // A lower limit ends no connection.
    daemon.reload("[limits]\nmax-connections = 1\n");
    ping(&first, b"first still");
    ping(&second, b"second still");
    assert!(daemon.stop().success());
}

#[test]
fn the_stop_timeout_is_that_of_the_last_reload() {
    let mut daemon = Plan::new()
        .config("[limits]\nstop-timeout = '10min'\n")
        .start();
    let mut client = daemon.connect();
    fill(&mut client);
    daemon.reload("[limits]\nstop-timeout = '200ms'\n");
    let start = Instant::now();
    assert!(daemon.stop().success());
    assert!(start.elapsed() < Duration::from_secs(5));
    daemon.logged("ended (stop-timeout)");
}

#[test]
fn the_level_of_the_log_follows_unless_the_command_line_says_it() {
    let mut daemon = Daemon::start();
    ping(daemon.connect(), b"info");
    daemon.reload("[log]\nlevel = 'debug'\n");
    ping(daemon.connect(), b"debug");
    daemon.logged("connection 2 from");
    eventually(SOON, "the level did not rise", || {
        daemon.log().contains(" opened\n").then_some(())
    });
    daemon.reload("[log]\nlevel = 'error'\n");
    ping(daemon.connect(), b"error");
    assert!(daemon.stop().success());
    let log = daemon.log();
    assert!(
        !log.contains("connection 1 from") || !log.contains("connection 1 from 127.0.0.1 opened")
    );
    assert!(!log.contains("connection 3"), "{log}");

    let mut daemon = Plan::new().argument("--log=info").start();
    daemon.reload("[log]\nlevel = 'debug'\n");
    ping(daemon.connect(), b"as the command line says");
    assert!(daemon.stop().success());
    assert!(!daemon.log().contains(" opened\n"), "{}", daemon.log());
}

#[test]
fn options_hold_for_the_listener_and_for_what_it_accepts_from_then_on() {
    let mut daemon = Daemon::start();
    let old = daemon.connect();
    ping(&old, b"old");
    daemon.reload(
        "[socket]\nnodelay = false\nkeepalive-idle = '33s'\nuser-timeout = '44s'\nnotsent-lowat = '55KiB'\ndscp = 8\n",
    );
    let new = daemon.connect();
    ping(&new, b"new");
    let Some(socket) = daemon.listening_socket() else {
        return;
    };
    for socket in [socket, daemon.end_of(&new).unwrap()] {
        assert!(!socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(33)
        );
        assert_eq!(
            socket.tcp_user_timeout().unwrap(),
            Some(Duration::from_secs(44))
        );
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 55 * 1024);
        assert_eq!(socket.tos_v4().unwrap(), 8 << 2);
    }
    let before = daemon.end_of(&old).unwrap();
    assert!(before.tcp_nodelay().unwrap(), "an old connection changed");
    // What is no longer named is as it was built in.
    daemon.reload("[socket]\nkeepalive = false\n");
    let newest = daemon.connect();
    ping(&newest, b"newest");
    let socket = daemon.end_of(&newest).unwrap();
    assert!(socket.tcp_nodelay().unwrap());
    assert!(!socket.keepalive().unwrap());
    assert_eq!(
        socket.tcp_keepalive_time().unwrap(),
        Duration::from_secs(300)
    );
    assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    assert_eq!(socket.tcp_notsent_lowat().unwrap(), 128 * 1024);
    drop((socket, before));
    assert!(daemon.stop().success());
}

#[test]
fn connections_from_the_queue_have_the_new_options_too() {
    let mut daemon = Daemon::start();
    daemon.freeze();
    // The kernel completes their handshakes, with the options of the listener as it is now.
    let early: Vec<TcpStream> = (0..5).map(|_| daemon.connect()).collect();
    daemon.folder.write(
        "config.toml",
        "[socket]\nnodelay = false\nkeepalive = false\nkeepalive-probes = 7\n",
    );
    daemon.signal(Signal::HUP);
    daemon.thaw();
    daemon.notified("RELOADING=1");
    daemon.notified("READY=1");
    for client in &early {
        ping(client, b"early");
        let Some(socket) = daemon.end_of(client) else {
            return;
        };
        assert!(!socket.tcp_nodelay().unwrap());
        assert!(!socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 7);
    }
    drop(early);
    assert!(daemon.stop().success());
}

#[test]
fn quickack_is_set_again_after_reads_of_new_connections_only_when_asked() {
    if !has("strace") {
        return;
    }
    let folder = Folder::new();
    let trace = folder.path("trace").display().to_string();
    let count = || {
        let text = std::fs::read_to_string(&trace).unwrap();
        text.matches("TCP_QUICKACK").count()
    };
    let mut daemon = Plan::new()
        .under(&["strace", "-D", "-f", "-o", &trace, "-e", "trace=setsockopt"])
        .start();
    let old = daemon.connect();
    ping(&old, b"old");
    daemon.reload("[socket]\nquickack = true\n");
    let new = daemon.connect();
    ping(&new, b"the first read");
    let before = count();
    for _ in 0..10 {
        ping(&new, b"re-armed");
        ping(&old, b"as before");
    }
    // strace may be late by one.
    eventually(SOON, "quickack is not set again", || {
        (count() >= before + 10).then_some(())
    });
    assert!(count() <= before + 11, "{} times", count() - before);
    drop((old, new));
    assert!(daemon.stop().success());
}

#[test]
fn a_connection_costs_no_system_call_for_its_options() {
    if !has("strace") {
        return;
    }
    let folder = Folder::new();
    let trace = folder.path("trace").display().to_string();
    let mut daemon = Plan::new()
        .under(&[
            "strace",
            "-D",
            "-o",
            &trace,
            "-e",
            "trace=setsockopt,accept4,kill",
        ])
        .start();
    for round in 0..2 {
        // The first caller after a setting may find the queue not seen empty yet.
        ping(daemon.connect(), b"first");
        let text = || std::fs::read_to_string(&trace).unwrap();
        let accepted =
            |text: &str| text.matches("accept4(").count() - text.matches("EAGAIN").count();
        let seen = eventually(SOON, "the first accept is not in the trace", || {
            let text = text();
            (accepted(&text) == 1 + round * 11).then_some(text.len())
        });
        for _ in 0..10 {
            ping(daemon.connect(), b"another");
        }
        let text = eventually(SOON, "the accepts are not in the trace", || {
            Some(text()).filter(|text| accepted(text) == (1 + round) * 11)
        });
        assert!(!text[seen..].contains("setsockopt"), "{}", &text[seen..]);
        daemon.reload("[socket]\nkeepalive = false\n");
    }
    assert!(daemon.stop().success());
}

#[test]
fn a_passed_listener_gets_what_the_new_configuration_names_and_no_more() {
    let socket = listener();
    let kept = socket.try_clone().unwrap();
    let kept = SockRef::from(&kept);
    let mut daemon = Plan::bare().pass(vec![socket.into()], "web").start();
    daemon.reload("[listener.web]\nkeepalive = true\n");
    assert!(kept.keepalive().unwrap());
    assert!(!kept.tcp_nodelay().unwrap());
    daemon.reload("[listener.web]\nnodelay = true\n");
    assert!(kept.tcp_nodelay().unwrap());
    // What the socket unit had set is not known.
    assert!(kept.keepalive().unwrap());
    let client = daemon.connect();
    ping(&client, b"named");
    drop(client);
    assert!(daemon.stop().success());
}

#[test]
fn one_listener_changes_and_the_other_does_not() {
    let mut daemon = Plan::bare()
        .config("[listener.a]\naddress = '127.0.0.1:0'\n[listener.b]\naddress = '127.0.0.1:0'\n")
        .start();
    daemon.reload(
        "[listener.a]\naddress = '127.0.0.1:0'\nnodelay = false\n[listener.b]\naddress = '127.0.0.1:0'\n",
    );
    for (address, nodelay) in daemon.listen.iter().zip([false, true]) {
        let client = connect(address.parse().unwrap());
        ping(&client, b"mine");
        if let Some(socket) = daemon.end_of(&client) {
            assert_eq!(socket.tcp_nodelay().unwrap(), nodelay);
        }
    }
    assert!(daemon.stop().success());
}

#[test]
fn what_needs_a_restart_is_named_and_stays_as_it_was() {
    let mut daemon = Plan::bare()
        .config("[listener.a]\naddress = '127.0.0.1:0'\n[socket]\ncongestion = 'reno'\n")
        .start();
    daemon.reload(
        "[listener.a]\naddress = '127.0.0.2:0'\nbacklog = 17\n[listener.b]\naddress = '127.0.0.1:0'\n\
         [log]\nformat = 'json'\n",
    );
    let line = daemon.logged("these keys need a restart to take effect: ");
    assert!(line.contains("<4>"), "{line}");
    for key in [
        "listener.a.address",
        "listener.a.backlog",
        "listener.b",
        "log.format",
        "socket.congestion",
    ] {
        assert!(line.contains(key), "{line:?} lacks {key}");
    }
    assert!(!line.contains("nodelay"), "{line}");
    ping(daemon.connect(), b"where it was");
    assert!(daemon.stop().success());
    assert!(daemon.log().lines().last().unwrap().starts_with("<6>"));
}

#[test]
fn a_broken_file_changes_nothing_and_is_reported_with_its_place() {
    let mut daemon = Plan::new()
        .config("[limits]\nidle-timeout = '1h'\n")
        .start();
    let client = daemon.connect();
    ping(&client, b"here");
    for (text, parts) in [
        (
            "[limits]\nidle-timeout = '10ms'\nmax-bytes = 'many'\n",
            &[
                "line 3, column 13",
                "max-bytes = 'many'",
                "is not a size",
                "\"64KiB\"",
            ][..],
        ),
        (
            "[limits]\nidle-timeuot = '10ms'\n",
            &[
                "line 2, column 1",
                "unknown key `idle-timeuot`",
                "`idle-timeout`",
            ],
        ),
        ("[limits\n", &["line 1, column 8"]),
    ] {
        let ready = daemon.reload(text);
        assert!(ready.contains("the last reload failed"), "{ready}");
        let log = eventually(SOON, "not told", || {
            let log = daemon.log();
            let all = parts.iter().all(|part| log.contains(part));
            (all && log.contains("reload failed, the old configuration stays")).then_some(log)
        });
        assert!(
            log.lines()
                .any(|line| line.starts_with("<3>") && line.contains("/config.toml: ")),
            "{log}"
        );
        ping(&client, b"not idle for an hour");
    }
    waits(&client, Duration::from_millis(200));
    let ready = daemon.reload("");
    assert!(!ready.contains("failed"), "{ready}");
    assert!(daemon.stop().success());
}

#[test]
fn a_file_that_has_vanished_changes_nothing_either() {
    let mut daemon = Plan::new().config("[limits]\nmax-bytes = '10B'\n").start();
    std::fs::remove_file(daemon.folder.path("config.toml")).unwrap();
    daemon.signal(Signal::HUP);
    let ready = daemon.notified("READY=1");
    assert!(ready.contains("the last reload failed"), "{ready}");
    let line = daemon.logged("reload failed");
    assert!(line.contains("config.toml: cannot be read"), "{line}");
    let mut client = daemon.connect();
    client.write_all(&[5; 10]).unwrap();
    // The old limit: ten bytes come back, and then the end.
    assert_eq!(end_of(&client).unwrap(), [5; 10]);
    assert!(daemon.stop().success());
}

#[test]
fn drop_ins_are_read_again_in_their_order() {
    let mut daemon = Plan::new().config("[limits]\nmax-bytes = '1KiB'\n").start();
    daemon
        .folder
        .write("config.toml.d/20-late.toml", "[limits]\nmax-bytes = '5B'\n");
    daemon.folder.write(
        "config.toml.d/10-early.toml",
        "[limits]\nmax-bytes = '7B'\n",
    );
    daemon.reload("[limits]\nmax-bytes = '1KiB'\n");
    let mut client = daemon.connect();
    client.write_all(&[5; 5]).unwrap();
    assert_eq!(end_of(&client).unwrap(), [5; 5]);
    let line = daemon.logged(" reloaded ");
    let place = |part| {
        line.find(part)
            .unwrap_or_else(|| panic!("{line:?} lacks {part}"))
    };
    assert!(place("config.toml, ") < place("10-early.toml"));
    assert!(place("10-early.toml") < place("20-late.toml"));
    // One that is broken is named, not the main file.
    daemon
        .folder
        .write("config.toml.d/15-broken.toml", "[nonsense]\n");
    daemon.signal(Signal::HUP);
    let line = daemon.logged("reload failed");
    assert!(line.contains("15-broken.toml: "), "{line}");
    assert!(daemon.stop().success());
}

#[test]
fn a_hundred_reloads_a_second_under_load_lose_nothing() {
    let mut daemon = Plan::new().config("[log]\nconnection-rate = 0\n").start();
    ping(daemon.connect(), b"warm");
    let idle = eventually(SOON, "the first client is still there", || {
        let first = daemon.descriptors();
        thread::sleep(Duration::from_millis(50));
        (daemon.descriptors() == first).then_some(first)
    });
    let over = AtomicBool::new(false);
    let address = daemon.address();
    let configs = [
        "[log]\nconnection-rate = 0\n",
        "[log]\nconnection-rate = 0\n[socket]\nnodelay = false\nquickack = true\n[limits]\nidle-timeout = '1h'\n",
        "[limits\n",
    ];
    let echoed: usize = thread::scope(|scope| {
        let long = (0..2).map(|seed| {
            let over = &over;
            scope.spawn(move || {
                let client = connect(address);
                let mut total = 0;
                while !over.load(Ordering::Relaxed) {
                    let message = pattern(seed + total as u64, 100_000);
                    ping(&client, &message);
                    total += message.len();
                }
                total
            })
        });
        let short = (0..2).map(|seed| {
            let over = &over;
            scope.spawn(move || {
                let mut total = 0;
                while !over.load(Ordering::Relaxed) {
                    let mut client = connect(address);
                    let message = pattern(seed + total as u64, 5_000);
                    client.write_all(&message).unwrap();
                    assert!(finish(&client) == message);
                    total += message.len();
                }
                total
            })
        });
        let clients: Vec<_> = long.chain(short).collect();
        let start = Instant::now();
        let mut next = start;
        for round in 0..300 {
            // Replaced as an editor does it, or the daemon would read half a file.
            let new = daemon.folder.write("config.new", configs[round % 3]);
            std::fs::rename(new, daemon.folder.path("config.toml")).unwrap();
            daemon.signal(Signal::HUP);
            // The manager's queue is read, as a manager would.
            while daemon
                .notified_within("", Duration::from_millis(1))
                .is_some()
            {}
            next += Duration::from_millis(10);
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        over.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .sum()
    });
    assert!(echoed > 1_000_000, "only {echoed} bytes");
    eventually(SOON, "descriptors have leaked", || {
        (daemon.descriptors() <= idle).then_some(())
    });
    daemon.signal(Signal::HUP);
    assert!(daemon.stop().success());
    let log = daemon.log();
    let reloads = log.matches(" reloaded ").count() + log.matches("reload failed").count();
    assert!(reloads > 100, "only {reloads} reloads");
}

#[test]
fn a_reload_during_the_drain_is_harmless() {
    let mut daemon = Plan::new()
        .config("[limits]\nstop-timeout = '1s'\n")
        .start();
    let mut client = daemon.connect();
    fill(&mut client);
    daemon.signal(Signal::TERM);
    daemon.notified("STOPPING=1");
    daemon
        .folder
        .write("config.toml", "[limits]\nstop-timeout = '10min'\n");
    for _ in 0..5 {
        daemon.signal(Signal::HUP);
    }
    // READY=1 now would mean that it serves again.
    assert_eq!(
        daemon.notified_within("READY=1", Duration::from_millis(300)),
        None
    );
    assert!(daemon.exited(Duration::from_secs(10)).success());
    assert!(!daemon.log().contains(" reloaded "));
}

#[test]
fn a_stop_and_a_reload_at_once_are_a_stop() {
    let mut daemon = Daemon::start();
    let client = daemon.connect();
    ping(&client, b"here");
    daemon.freeze();
    daemon.signal(Signal::HUP);
    daemon.signal(Signal::TERM);
    daemon.thaw();
    assert!(daemon.exited(SOON).success());
    assert_eq!(end_of(&client).unwrap(), b"");
    assert!(!daemon.log().contains(" reloaded "), "{}", daemon.log());
}
