//! `tcp-echo check` says what the configuration means, and complains as the daemon would.

use std::net::TcpListener;

use crate::daemon::{Daemon, Folder, PROGRAM, Plan, has};

fn check(config: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut plan = Plan::bare().config(config).argument("check");
    for argument in arguments {
        plan = plan.argument(argument);
    }
    let (status, text) = plan.run();
    (status.code(), text)
}

#[test]
fn the_defaults_are_explained() {
    let (status, text) = check("", &[]);
    assert_eq!(status, Some(0), "{text}");
    for part in [
        "127.0.0.1:9999",
        "backlog             4096",
        "keepalive finds a dead peer after 375 s",
        "forgets after 350 s: yes",
        "stall-timeout               5m",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

#[test]
fn asked_effective_and_who_limits_it() {
    let (status, text) = check(
        "[socket]\nbacklog = 1000000\nreceive-buffer = '32KiB'\nkeepalive-idle = '1800s'",
        &[],
    );
    assert_eq!(status, Some(0), "{text}");
    let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let row = |option: &str| {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(option))
            .unwrap_or_default();
        line.split_whitespace()
            .skip(1)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        row("backlog"),
        format!(
            "1000000 {} limited by net.core.somaxconn = {}",
            somaxconn.trim(),
            somaxconn.trim()
        )
    );
    assert!(
        row("receive-buffer").starts_with("32 KiB 64 KiB doubled by the kernel"),
        "{text}"
    );
    assert!(text.contains("after 1875 s"), "{text}");
    assert!(text.contains("350 s: no"), "{text}");
}

#[test]
fn a_taken_port_is_no_matter_to_it_and_not_touched() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let (status, text) = check(
        "",
        &["--listen", &listener.local_addr().unwrap().to_string()],
    );
    assert_eq!(status, Some(0), "{text}");
    assert!(listener.accept().is_err(), "somebody called");
}

#[test]
fn what_is_wrong_is_said_in_the_daemon_s_words() {
    for (config, status) in [
        ("[limits]\nidle-timeout = 'soon'", 78),
        ("[listener.x]\naddress = 'nowhere'", 78),
        ("[listener.x]\naddress = 'no-such-host.invalid:7'", 69),
    ] {
        let (checked, text) = check(config, &[]);
        let (served, log) = Plan::bare().config(config).unnotified().run();
        assert_eq!(
            (checked, served.code()),
            (Some(status), Some(status)),
            "{config}\n{text}\n{log}"
        );
        let complaint = text
            .lines()
            .find_map(|line| line.strip_prefix("tcp-echo: "))
            .unwrap();
        let place = complaint
            .split_once(": ")
            .map_or(complaint, |(_, rest)| rest);
        assert!(log.contains(place), "{place:?} is not in\n{log}");
    }
    // An option that this kernel does not have: the daemon warns and serves, the check fails.
    let config = "[socket]\ncongestion = 'nosuch'";
    let (checked, text) = check(config, &[]);
    assert_eq!(checked, Some(78), "{text}");
    let mut daemon = Plan::new().config(config).start();
    daemon.logged("congestion stays as it was: this kernel does not offer it");
    assert!(daemon.stop().success());
}

#[test]
fn config_only_opens_no_socket() {
    let (status, text) = check("[limits]\nidle-timeout = '5min'", &["--config-only"]);
    assert_eq!((status, text.as_str()), (Some(0), ""));
    let (status, text) = check("idle-timeout = '5min'", &["--config-only"]);
    assert_eq!(status, Some(78));
    assert!(
        text.contains("line 1, column 1") && text.contains("idle-timeout = '5min'"),
        "{text}"
    );
    if has("strace") {
        let (status, text) = Plan::bare()
            .config("[listener.x]\naddress = 'localhost:0'")
            .under(&["strace", "-f", "-qq", "-e", "trace=%network"])
            .argument("check")
            .argument("--config-only")
            .run();
        assert_eq!(status.code(), Some(0), "{text}");
        assert!(!text.contains("socket("), "{text}");
    }
}

#[test]
fn an_output_that_is_closed_or_full_is_no_reason_to_panic() {
    for target in ["/dev/full", "closed"] {
        let mut plan = Plan::bare().argument("check");
        let mut command = plan.command();
        if target == "closed" {
            let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
            drop(reader);
            command.stdout(std::os::fd::OwnedFd::from(writer));
        } else {
            command.stdout(
                std::fs::OpenOptions::new()
                    .write(true)
                    .open(target)
                    .unwrap(),
            );
        }
        let status = command.status().unwrap();
        // A reader that has seen enough is no failure.
        let expected = if target == "closed" { 0 } else { 71 };
        assert_eq!(status.code(), Some(expected), "{target}");
    }
}

#[test]
fn the_command_line_explains_itself() {
    for (arguments, status, part) in [
        (&["--help"][..], 0, "--listen <ADDRESS>"),
        (
            &["--version"],
            0,
            concat!("tcp-echo ", env!("CARGO_PKG_VERSION")),
        ),
        (&["--listen", "224.0.0.1:7"], 2, "multicast"),
        (&["--log", "loud"], 2, "debug"),
        (&["--nonsense"], 2, "--nonsense"),
        (&["reload"], 2, "MAINPID"),
    ] {
        let mut plan = Plan::bare().unnotified();
        for argument in arguments {
            plan = plan.argument(argument);
        }
        let (got, text) = plan.run();
        assert_eq!(got.code(), Some(status), "{arguments:?}: {text}");
        assert!(text.contains(part), "{arguments:?}: {text}");
    }
}

#[test]
fn the_daemon_says_at_start_what_the_kernel_is_set_to() {
    let mut daemon = Daemon::start();
    let line = daemon.logged("kernel: ");
    assert!(line.contains("a handshake is given up after"), "{line}");
    assert!(daemon.stop().success());
}

#[test]
fn a_report_that_cannot_be_written_is_a_failure() {
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = std::process::Command::new(PROGRAM)
        .args(["check", "--config", "/dev/null"])
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(71));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot be written"), "{said}");
}

#[test]
fn the_table_of_the_built_in_listeners_is_theirs() {
    let folder = Folder::new();
    let file = folder.write("config.toml", "[listener.default]\nnodelay = false\n");
    let output = std::process::Command::new(PROGRAM)
        .args(["check", "--config", file.to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let row = said
        .lines()
        .find(|line| line.trim().starts_with("nodelay"))
        .unwrap();
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words[1..3], ["off", "off"], "{said}");
    assert!(!said.contains("only on a passed socket"), "{said}");
}

#[test]
fn listeners_that_collide_and_options_for_passed_sockets_are_found() {
    let two = |one: &str, other: &str| {
        format!("[listener.a]\naddress = '{one}'\n[listener.b]\naddress = '{other}'\n")
    };
    for (config, status, part) in [
        (
            two("*:9940", "127.0.0.1:9940"),
            69,
            "another listener of the configuration",
        ),
        (
            two("127.0.0.1:9940", "*:9940"),
            69,
            "another listener of the configuration",
        ),
        (
            two("127.0.0.1:9940", "127.0.0.1:9940"),
            69,
            "another listener of the configuration",
        ),
        (
            two("unix:/tmp/a.sock", "unix:/tmp/a.sock"),
            69,
            "another listener of the configuration",
        ),
        (two("127.0.0.1:9940", "[::1]:9940"), 0, "[::1]:9940"),
        (two("[::]:9940", "127.0.0.1:9940"), 0, "127.0.0.1:9940"),
        (two("*:9940", "127.0.0.1:9941"), 0, "127.0.0.1:9941"),
        (
            "[listener.web]\ncongestion = 'nosuch'\n".into(),
            78,
            "listener web: congestion",
        ),
    ] {
        let (checked, text) = check(&config, &[]);
        assert_eq!(checked, Some(status), "{config}\n{text}");
        assert!(text.contains(part), "{config}\n{text}");
        if status == 69 && !config.contains("unix:") {
            let (served, log) = Plan::bare().config(&config).unnotified().run();
            assert_eq!(served.code(), Some(status), "{config}\n{log}");
            assert!(log.contains(part), "{config}\n{log}");
        }
    }
}
