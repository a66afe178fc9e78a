//! The shipped recipe: its values, read back from the sockets of a daemon that runs it.

use std::time::Duration;

use testkit::{Daemon, Plan, SOON, connect, eventually, has, ping};

fn recipe() -> Plan {
    let text = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/packaging/recipe.toml"
    ))
    .unwrap();
    let plan = Plan::bare().config(&text);
    // Any port but the recipe's own, which may be in use.
    plan.folder().write(
        "config.toml.d/port.toml",
        "[listener.recipe]\naddress = 'localhost:0'\n",
    );
    plan
}

#[test]
fn the_recipe_says_what_the_recipe_says() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/recipe.toml");
    let origin = tcp_echo::config::Origin {
        file: Some(file.into()),
        ..Default::default()
    };
    let config = origin.load().unwrap();
    assert_eq!(config.poll_timeout, Some(Duration::from_millis(5500)));
    assert_eq!(config.log.level, tcp_echo::cli::Level::Debug);
    assert_eq!(config.listeners.len(), 1);
    assert_eq!(
        config.listeners[0].address,
        Some("localhost:9999".parse().unwrap())
    );
}

#[test]
fn the_recipe_s_values_are_on_the_sockets() {
    let mut daemon = recipe().start();
    let client = connect(daemon.address());
    ping(&client, b"hello");
    let listener = daemon.listening_socket().expect("pidfd_getfd(2)");
    assert!(listener.reuse_address().unwrap());
    assert!(listener.reuse_port().unwrap());
    let accepted = daemon.end_of(&client).expect("pidfd_getfd(2)");
    for socket in [&listener, &accepted] {
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(1800)
        );
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 5);
        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(15)
        );
    }
    // The recipe logs at debug.
    daemon.logged("opened");
    assert!(daemon.stop().success());
}

#[test]
fn quickack_is_set_again_after_each_read() {
    if !has("strace") {
        return;
    }
    let plan = recipe();
    // Not where the daemon logs: the lines would break each other.
    let calls = plan.folder().path("calls");
    let wrapper = ["strace", "-D", "-f", "-qq", "-o", calls.to_str().unwrap()];
    let wrapper = [&wrapper[..], &["-e", "trace=setsockopt,recvfrom"]].concat();
    let mut daemon = plan.under(&wrapper).start();
    let client = connect(daemon.address());
    for _ in 0..20 {
        ping(&client, b"again");
    }
    // The first one is the listener's, and strace writes when it likes.
    let again = |line: &&str| line.contains("TCP_QUICKACK") || line.contains("\"again\"");
    let log = eventually(SOON, "not all calls were seen", || {
        let log = std::fs::read_to_string(&calls).unwrap_or_default();
        Some(log).filter(|log| log.lines().filter(again).count() >= 41)
    });
    let mut calls = log.lines().filter(again).skip(1);
    for _ in 0..20 {
        assert!(
            calls.next().is_some_and(|line| line.contains("recvfrom")),
            "{log}"
        );
        assert!(
            calls
                .next()
                .is_some_and(|line| line.contains("TCP_QUICKACK, [1]")),
            "{log}"
        );
    }
    drop(client);
    assert!(daemon.stop().success());
}

#[test]
fn the_poll_time_out_bounds_a_sleep_and_nothing_else_wakes_the_loop() {
    let often = Plan::new().config("poll-timeout = '20ms'").start();
    let never = Daemon::start();
    for daemon in [&often, &never] {
        ping(daemon.connect(), b"hello");
        // The last thing to be done about it: a status, within a second.
        daemon.notified("STATUS=1 listener, 0 connections, 5 B echoed");
    }
    std::thread::sleep(Duration::from_millis(100));
    let before = (often.wakeups(), never.wakeups());
    std::thread::sleep(Duration::from_secs(1));
    let woken = (often.wakeups() - before.0, never.wakeups() - before.1);
    assert!(woken.0 >= 10, "woken {} times", woken.0);
    assert_eq!(woken.1, 0, "woken for nothing");
}
