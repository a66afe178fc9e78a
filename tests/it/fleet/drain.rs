//! `tcp-echo drain` and `undrain` change what health checks are answered, and nothing else.

use std::process::Command;

use rustix::process::Signal;
use testkit::manager::{Manager, Way};
use testkit::{Daemon, Plan, connect, listener, ping, program};

use super::{answer, answers, health_of};

/// Runs `tcp-echo drain` or `undrain`; returns its exit status and what it complains about.
fn command(what: &str, process: &str) -> (i32, String) {
    let output = Command::new(program())
        .args([what, process])
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), errors)
}

fn asked(what: &str, daemon: &Daemon) {
    let pid = daemon.pid().as_raw_nonzero().to_string();
    assert_eq!(command(what, &pid), (0, String::new()));
}

#[test]
fn checks_are_answered_drain_until_undrain_and_the_echo_goes_on() {
    let config =
        "[listener.echo]\naddress = '127.0.0.1:0'\n[listener.health]\naddress = '127.0.0.1:0'\n";
    let mut daemon = Plan::bare().config(config).start();
    let health = health_of(&daemon);
    let client = daemon.connect();
    for _ in 0..2 {
        assert_eq!(answer(health), "up ready\n");
        asked("drain", &daemon);
        answers(health, "up drain\n");
        let status = daemon.notified("STATUS=drained: ");
        assert!(status.contains("1 listener"), "{status}");
        // Again, which changes nothing.
        asked("drain", &daemon);
        ping(&client, b"still here");
        ping(daemon.connect(), b"and a new one");
        asked("undrain", &daemon);
        answers(health, "up ready\n");
    }
    daemon.logged_times("Z drained: health checks", 2);
    daemon.logged_times("no longer drained", 2);
    asked("drain", &daemon);
    answers(health, "up drain\n");
    assert!(daemon.stop().success());
}

#[test]
fn a_drain_that_comes_with_other_requests_holds() {
    let config =
        "[listener.echo]\naddress = '127.0.0.1:0'\n[listener.health]\naddress = '127.0.0.1:0'\n";
    let daemon = Plan::bare().config(config).start();
    let health = health_of(&daemon);
    // The order in which signals arrive is lost.
    for order in [["undrain", "drain"], ["drain", "undrain"]] {
        daemon.freeze();
        order.iter().for_each(|what| asked(what, &daemon));
        daemon.thaw();
        answers(health, "up drain\n");
    }
    // It is in the state file before the connections are handed over.
    let health = listener();
    let address = health.local_addr().unwrap();
    let mut manager = Manager::new().listener("health", health);
    manager.start();
    let client = connect(manager.address());
    ping(&client, b"before");
    manager.preserves(1);
    let frozen = manager.daemon();
    frozen.freeze();
    asked("drain", frozen);
    frozen.signal(Signal::USR2);
    frozen.thaw();
    manager.ended();
    manager.start();
    ping(&client, b"after");
    assert_eq!(answer(address), "up drain\n");
}

#[test]
fn the_next_process_is_drained_too_until_a_stop() {
    for (way, connected) in [
        (Way::Restart, true),
        (Way::Kill, true),
        (Way::Restart, false),
    ] {
        let health = listener();
        let address = health.local_addr().unwrap();
        let mut manager = Manager::new().listener("health", health);
        manager.start();
        let client = connected.then(|| {
            let client = connect(manager.address());
            ping(&client, b"before");
            manager.preserves(1);
            client
        });
        asked("drain", manager.daemon());
        answers(address, "up drain\n");
        if !connected {
            // The state file is stored because of the drain alone.
            manager.status_has("preserved");
        }
        // Another number of workers needs another state file.
        manager.replace(way);
        assert_eq!(answer(address), "up drain\n", "{way:?}");
        manager.config("preserve-after = '0s'\nworkers = 3\n");
        manager.replace(way);
        assert_eq!(answer(address), "up drain\n", "{way:?}");
        client.iter().for_each(|client| ping(client, b"after"));
        asked("undrain", manager.daemon());
        answers(address, "up ready\n");
        manager.replace(way);
        assert_eq!(answer(address), "up ready\n", "{way:?}");
        asked("drain", manager.daemon());
        answers(address, "up drain\n");
        drop(client);
        manager.stop();
        manager.start();
        assert_eq!(answer(address), "up ready\n", "after a stop");
    }
}

#[test]
fn what_is_no_daemon_is_not_sent_a_signal() {
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    for what in ["drain", "undrain"] {
        let (status, errors) = command(what, &sleeper.id().to_string());
        assert_eq!(status, 69, "{errors}");
        assert!(errors.contains("no tcp-echo that serves"), "{errors}");
    }
    assert_eq!(sleeper.try_wait().unwrap(), None, "the signal has ended it");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let (status, errors) = command("drain", &sleeper.id().to_string());
    assert_eq!(status, 69, "{errors}");
    for wrong in ["0", "-5"] {
        let output = Command::new(program())
            .args(["drain", "--", wrong])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
}

#[test]
fn the_main_process_of_a_unit_is_asked_from_systemctl() {
    let config =
        "[listener.echo]\naddress = '127.0.0.1:0'\n[listener.health]\naddress = '127.0.0.1:0'\n";
    let daemon = Plan::bare().config(config).start();
    let health = health_of(&daemon);
    let folder = testkit::Folder::new();
    let pid = daemon.pid().as_raw_nonzero();
    let fake = |text: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.write("systemctl", &format!("#!/bin/sh\n{text}\n"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let run = |arguments: &[&str]| {
        let output = Command::new(program())
            .args(arguments)
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", folder.path("").display()),
            )
            .output()
            .unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), errors)
    };
    fake(&format!(
        "[ \"$*\" = 'show --property=MainPID --value -- tcp-echo.service' ] && echo {pid}"
    ));
    assert_eq!(run(&["drain"]), (0, String::new()));
    answers(health, "up drain\n");
    fake(&format!(
        "[ \"$*\" = 'show --property=MainPID --value -- tcp-echo@a.service' ] && echo {pid}"
    ));
    assert_eq!(run(&["undrain", "tcp-echo@a.service"]), (0, String::new()));
    answers(health, "up ready\n");
    fake("echo 0");
    let (status, errors) = run(&["drain"]);
    assert!(
        status == 69 && errors.contains("tcp-echo.service is not running"),
        "{errors}"
    );
    fake("echo no bus >&2; exit 1");
    let (status, errors) = run(&["drain"]);
    assert!(status == 69 && errors.contains("no bus"), "{errors}");
    assert_eq!(answer(health), "up ready\n");
    daemon.signal(Signal::TERM);
}
