//! `tcp-echo check` says what the configuration means, and complains as the daemon would.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use serde_json::Value;
use testkit::{Daemon, Folder, Plan, SOON, eventually, has, has_namespaces, program};

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
fn an_address_in_use_is_noted_and_not_touched() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let folder = Folder::new();
    let path = folder.path("echo.sock");
    let unix = UnixListener::bind(&path).unwrap();
    unix.set_nonblocking(true).unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    for address in [taken, format!("unix:{}", path.display())] {
        let (status, text) = check("", &["--listen", &address]);
        assert_eq!(status, Some(0), "{text}");
        let note = format!(
            "in use now, as it should be where the service runs; else: cannot listen on {address}"
        );
        assert!(text.contains(&note), "{text}");
    }
    assert!(listener.accept().is_err(), "the check has connected");
    assert!(unix.accept().is_err(), "the check has connected");
    let left: Vec<_> = std::fs::read_dir(folder.path("")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
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
    let output = Command::new(program())
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
    let output = Command::new(program())
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
fn options_for_passed_sockets_are_tried() {
    let (status, text) = check("[listener.web]\ncongestion = 'nosuch'\n", &[]);
    assert_eq!(status, Some(78), "{text}");
    assert!(text.contains("listener web: congestion"), "{text}");
    // A Unix listener has no use for it, a passed socket may.
    let config =
        "[socket]\ncongestion = 'nosuch'\n[listener.x]\naddress = 'unix:/tmp/tcp-echo-it'\n";
    let (status, text) = check(config, &[]);
    assert_eq!(status, Some(78), "{text}");
    assert!(text.contains("listener of no table: congestion"), "{text}");
}

/// A host of our own: names, folders of all kinds, no port in use, and no privilege.
const HOST: &str = "
    ip link set lo up
    cd \"$0\" && mkdir ro shut && mount -t tmpfs -o ro none ro && chmod 555 shut && touch file
    printf '%s\\n' '192.0.2.1 lacking' '224.0.0.1 multi' '127.0.0.1 both' '192.0.2.1 both' > hosts
    mount --bind hosts /etc/hosts
    exec setpriv --bounding-set=-all --inh-caps=-all \"$@\"";

#[test]
fn the_check_and_the_daemon_never_disagree() {
    if !has("ip") || !has("setpriv") || !has_namespaces(&["-rmn", "true"]) {
        return;
    }
    let another = "another listener of the configuration";
    for (addresses, status, part) in [
        (&["127.0.0.1:9940"][..], 0, "127.0.0.1:9940"),
        (&["127.0.0.1:7"], 77, "CAP_NET_BIND_SERVICE"),
        (&["*:7"], 77, "CAP_NET_BIND_SERVICE"),
        (&["192.0.2.1:9940"], 69, "no interface of this host"),
        (&["lacking:9940"], 69, "no interface of this host"),
        (&["multi:9940"], 69, "multicast"),
        (&["both:9940"], 0, "192.0.2.1"),
        (&["nowhere:9940"], 69, "nowhere:9940"),
        (&["[::ffff:127.0.0.1]:9940"], 0, "127.0.0.1:9940"),
        (&["[fe80::1]:9940"], 78, "name the interface"),
        (&["[fe80::1%lo]:9940"], 69, "fe80::1"),
        (&["unix:FOLDER/echo.sock"], 0, "echo.sock"),
        (&["unix:FOLDER/stale"], 0, "stale"),
        (&["unix:FOLDER/ro/x"], 77, "another folder"),
        (&["unix:FOLDER/shut/x"], 77, "must be writable"),
        (&["unix:FOLDER/file"], 69, "no socket"),
        (&["unix:FOLDER/file/x"], 69, "Not a directory"),
        (&["unix:FOLDER/none/x"], 69, "does not exist"),
        (&["unix:/proc/x"], 69, "takes no socket"),
        (&["unix:/sys/x"], 77, "/sys/x"),
        (&["unix:FOLDER/a", "unix:FOLDER/a"], 69, another),
        (&["*:9940", "127.0.0.1:9940"], 69, another),
        (&["127.0.0.1:9940", "*:9940"], 69, another),
        (&["127.0.0.1:9940", "127.0.0.1:9940"], 69, another),
        (&["127.0.0.1:9940", "both:9940"], 69, another),
        (&["127.0.0.1:9940", "[::1]:9940"], 0, "[::1]:9940"),
        (&["[::]:9940", "127.0.0.1:9940"], 0, "127.0.0.1:9940"),
        (&["*:9940", "127.0.0.1:9941"], 0, "127.0.0.1:9941"),
    ] {
        let plan = || {
            let plan = Plan::bare();
            let folder = plan.folder().path("").display().to_string();
            drop(UnixListener::bind(plan.folder().path("stale")).unwrap());
            let mut config = String::new();
            for (number, address) in addresses.iter().enumerate() {
                let address = address.replace("FOLDER/", &folder);
                config += &format!("[listener.l{number}]\naddress = '{address}'\n");
            }
            plan.config(&config)
                .under(&["unshare", "-rmn", "sh", "-c", HOST, &folder])
        };
        let (checked, text) = plan().unnotified().argument("check").run();
        assert_eq!(checked.code(), Some(status), "{addresses:?}\n{text}");
        assert!(text.contains(part), "{addresses:?}\n{text}");
        let (served, log) = if status == 0 {
            let mut daemon = plan().start();
            (daemon.stop(), daemon.log())
        } else {
            // On a busy machine its end may come before its log.
            eventually(SOON, &format!("{addresses:?}: {part}"), || {
                let (served, log) = plan().unnotified().run();
                log.contains(part).then_some((served, log))
            })
        };
        assert_eq!(served.code(), Some(status), "{addresses:?}\n{log}");
        assert!(log.contains(part), "{addresses:?}\n{log}");
    }
}

#[test]
fn a_machine_reads_the_same_as_one_object() {
    let json = |config: &str, arguments: &[&str]| -> (Option<i32>, Value) {
        let mut plan = Plan::bare().config(config);
        for argument in ["check", "--json"].iter().chain(arguments) {
            plan = plan.argument(argument);
        }
        let output = plan.command().stdout(Stdio::piped()).output().unwrap();
        let found = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), found)
    };
    let config = "[socket]\nbacklog = 7\n[limits]\nmax-connections = 9\n[listener.web]\n\
                  address = '127.0.0.1:0'\n[listener.later]\n[listener.wrong]\naddress = 'unix:/nowhere/x'\n";
    let (status, found) = json(config, &[]);
    assert_eq!(status, Some(69), "{found:#}");
    assert_eq!(found["exit"], 69);
    assert!(found["files"][0].as_str().unwrap().ends_with("config.toml"));
    let listener = |name: &str| {
        let all = found["listeners"].as_array().unwrap();
        all.iter().find(|one| one["name"] == name).unwrap()
    };
    assert_eq!(listener("web")["address"], "127.0.0.1:0");
    let options = listener("web")["options"].as_array().unwrap();
    let backlog = options.iter().find(|row| row["option"] == "backlog");
    let backlog = backlog.unwrap();
    assert_eq!(
        (&backlog["asked"], &backlog["effective"]),
        (&"7".into(), &"7".into())
    );
    assert_eq!(listener("later")["address"], Value::Null);
    let wrong = &listener("wrong")["wrong"][0];
    assert!(
        wrong
            .as_str()
            .unwrap()
            .contains("cannot listen on unix:/nowhere/x")
    );
    assert_eq!(&found["wrong"][0], wrong);
    assert_eq!(found["settings"]["limits.max-connections"]["value"], "9");
    assert_eq!(found["settings"]["poll-timeout"]["value"], "off");
    assert!(found["kernel"]["net.core.somaxconn"].is_u64());
    let cases = found["cases"].as_array().unwrap();
    assert!(
        cases
            .iter()
            .any(|case| case.as_str().unwrap().starts_with("keepalive finds"))
    );

    let (status, found) = json("nonsense = 1\n", &["--config-only"]);
    assert_eq!((status, &found["exit"]), (Some(78), &78.into()));
    assert!(
        found["wrong"][0].as_str().unwrap().contains("line 1"),
        "{found:#}"
    );
    let (status, found) = json("", &["--config-only"]);
    assert_eq!((status, &found["exit"]), (Some(0), &0.into()));
    assert_eq!(found["listeners"], Value::Array(Vec::new()));
}
