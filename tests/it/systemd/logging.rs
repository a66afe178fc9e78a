//! What is logged, in which form, and a log that cannot be written.
//!
//! Two promises.  A program can rely on what it reads: one sink, one event for the end of each
//! connection, ids and fields, sums that are exact when events are summed up or lost.  And a log that
//! cannot be written never delays the echo or the end of the process.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::{self as unix, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use tcp_echo::log::events::id;
use testkit::{
    Daemon, Folder, Plan, SOON, end_of, eventually, fill, finish, has, has_namespaces,
    has_terminals, pattern, ping, program, reset,
};

use crate::outside::{metrics, passed};

/// Message ids that the tests look for; what they stand for is the catalog's business.
const CLOSED: &str = id("CLOSED");
const OPENED: &str = id("OPENED");
const CLOSED_MANY: &str = id("CLOSED_MANY");
const CLOSED_EMPTY: &str = id("CLOSED_EMPTY");
const MOVED: &str = id("MOVED");
const COUNTERS: &str = id("COUNTERS");
const LOST: &str = id("LOST");

/// All events in a log of JSON lines.
fn events(log: &str) -> Vec<Value> {
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}")))
        .collect()
}

fn of<'a>(events: &'a [Value], id: &str) -> Vec<&'a Value> {
    events
        .iter()
        .filter(|event| event["message_id"] == id)
        .collect()
}

fn sum(events: &[&Value], field: &str) -> u64 {
    events
        .iter()
        .map(|event| event[field].as_u64().unwrap())
        .sum()
}

/// The event of the end of the first connection, as soon as it is logged.
fn first_end(daemon: &Daemon) -> Value {
    let line = daemon.logged(CLOSED);
    serde_json::from_str(&line).unwrap()
}

fn json() -> Plan {
    Plan::new().argument("--log-format=json")
}

#[test]
fn off_a_terminal_every_line_has_a_priority_and_the_time() {
    let mut daemon = Plan::new().argument("--listen=*:0").start();
    daemon.reload("[limits]\nidle-timeout = 5\n");
    assert!(daemon.stop().success());
    let log = daemon.log();
    for line in log.lines() {
        // Each line of a message of several lines, too: it may quote a file.
        let rest = ["<3>", "<4>", "<6>"]
            .iter()
            .find_map(|priority| line.strip_prefix(priority));
        let rest = rest.unwrap_or_else(|| panic!("no priority: {line:?}"));
        assert!(rest.starts_with("20") && rest.contains("Z "), "{line:?}");
    }
    let priority = |text: &str| {
        let line = log.lines().find(|line| line.contains(text));
        line.unwrap_or_else(|| panic!("no {text}: {log}"))[..3].to_owned()
    };
    assert_eq!(priority("ready on"), "<6>");
    assert_eq!(priority("warning: listener"), "<4>");
    assert_eq!(priority("error: reload failed"), "<3>");
    assert_eq!(priority("idle-timeout = 5"), "<3>");
}

#[test]
fn on_a_terminal_there_are_no_priorities() {
    if !has("script") || !has_terminals() {
        return;
    }
    let folder = Folder::new();
    let output = Command::new("script")
        .arg("-qec")
        .arg(format!(
            "{} --config {}/absent",
            program(),
            folder.path("").display()
        ))
        .arg("/dev/null")
        .stdin(Stdio::null())
        .env_remove("JOURNAL_STREAM")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("Z error: cannot start: "), "{text}");
    assert!(!text.contains("<3>"), "{text}");
    assert_eq!(output.status.code(), Some(78));
}

#[test]
fn no_text_from_outside_can_drive_a_terminal() {
    let quoted = "idle\u{1b}]0;title\u{7}\u{1b}[31m = 1\n";
    let path = "[listener.'\u{1b}[31m']\naddress = \"unix:/nowhere/\\u001b[31m.sock\"\n";
    let unused = "[listener.\"\\u001b[31m\"]\nnodelay = true\n";
    let hostile = |text: &str| {
        text.replace("\\n", "\n")
            .contains(|c: char| c.is_control() && c != '\n')
    };
    for (config, status) in [
        (quoted, 78),
        (path, 78),
        (&path.replacen('\u{1b}', "x", 1), 69),
    ] {
        for argument in ["serve", "check", "--log-format=json", "--log=off"] {
            let (got, text) = Plan::bare()
                .config(config)
                .unnotified()
                .argument(argument)
                .run();
            assert_eq!(got.code(), Some(status), "{argument}: {text:?}");
            assert!(text.contains("u{1b}") && !hostile(&text), "{text:?}");
            // What a reader of the JSON shows is as harmless.
            assert!(!text.to_lowercase().contains("\\u001b"), "{text:?}");
        }
    }
    for argument in ["\u{1b}[31m", "--log=\u{1b}[31m"] {
        let (status, text) = Plan::bare().unnotified().argument(argument).run();
        assert_eq!(status.code(), Some(2), "{text:?}");
        assert!(text.contains("u{1b}") && !hostile(&text), "{text:?}");
    }
    let mut daemon = Plan::new().config(unused).start();
    assert!(daemon.stop().success());
    let (status, text) = Plan::bare().config(unused).argument("check").run();
    assert_eq!(status.code(), Some(0), "{text}");
    assert!(text.contains("u{1b}") && !hostile(&text), "{text:?}");
}

#[test]
fn a_start_that_fails_reports_why_at_any_level() {
    let (status, text) = Plan::new().argument("--log=off").config("idle = 1\n").run();
    assert_eq!(status.code(), Some(78), "{text}");
    assert!(
        text.contains("cannot start: ") && text.contains("line 1"),
        "{text}"
    );
}

#[test]
fn a_reload_that_logs_more_is_confirmed() {
    let daemon = Plan::new().config("[log]\nlevel = 'warn'\n").start();
    daemon.reload("[log]\nlevel = 'info'\n");
    daemon.logged("reloaded ");
}

#[test]
fn json_is_one_object_a_line_with_an_id_of_its_own() {
    let mut daemon = json().argument("--log=trace").start();
    let client = daemon.connect();
    ping(&client, b"hello");
    daemon.reload("");
    daemon.reload("[nonsense]");
    daemon.signal(Signal::USR1);
    daemon.logged(COUNTERS);
    drop(client);
    daemon.logged(CLOSED);
    assert!(daemon.stop().success());
    let mut messages: HashMap<String, String> = HashMap::new();
    let events = events(&daemon.log());
    for event in &events {
        let id = event["message_id"].as_str().unwrap();
        assert!(
            id.len() == 32
                && id
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
            "{event}"
        );
        for key in ["timestamp", "level", "message"] {
            assert!(
                event[key].as_str().is_some_and(|text| !text.is_empty()),
                "{event}"
            );
        }
        for key in event.as_object().unwrap().keys() {
            let known = ["timestamp", "level", "message", "message_id", "errno"];
            assert!(
                key.starts_with("echo.") || known.contains(&key.as_str()),
                "{event}"
            );
        }
        messages.insert(id.into(), event["message"].to_string());
    }
    // Started, kernel, listening, ready, opened, turned, reloaded, failed, counters, closed,
    // stopping, stopped.
    assert!(messages.len() >= 12, "{messages:#?}");
}

#[test]
fn the_end_of_a_connection_is_one_event_with_all_that_matters() {
    let mut daemon = json().start();
    let client = daemon.connect();
    let (peer, local) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    ping(&client, &pattern(1, 12_345));
    thread::sleep(Duration::from_millis(30));
    assert!(finish(&client).is_empty());
    let end = first_end(&daemon);
    assert_eq!(end["level"], "INFO");
    assert_eq!(end["echo.connection"], 1);
    assert_eq!(end["echo.peer"], peer.to_string());
    assert_eq!(end["echo.local"], local.to_string());
    assert_eq!(end["echo.listener"], "127.0.0.1:0");
    assert_eq!(end["echo.received"], 12_345);
    assert_eq!(end["echo.sent"], 12_345);
    assert_eq!(end["echo.owed"], 0);
    assert_eq!(end["echo.reason"], "peer-closed");
    let duration = Duration::from_micros(end["echo.duration_usec"].as_u64().unwrap());
    assert!(
        duration >= Duration::from_millis(30) && duration < SOON,
        "{end}"
    );
    assert!(daemon.stop().success());
    assert_eq!(of(&events(&daemon.log()), CLOSED).len(), 1);
}

#[test]
fn the_end_of_a_connection_says_what_the_kernel_has_measured() {
    let mut daemon = json().start();
    let mut client = daemon.connect();
    // The window of the peer keeps the echo back for as long as the peer does not read.
    fill(&mut client);
    thread::sleep(Duration::from_millis(300));
    client.shutdown(Shutdown::Write).unwrap();
    assert!(!end_of(&client).unwrap().is_empty());
    let end = first_end(&daemon);
    let field = |name: &str| end[format!("echo.{name}")].as_u64();
    assert_eq!(end["echo.closed_first"], "peer", "{end}");
    assert!(
        field("rtt_usec") > Some(0) && field("rtt_usec") < Some(10_000_000),
        "{end}"
    );
    assert!(
        field("rttvar_usec").is_some() && field("mss") >= Some(536),
        "{end}"
    );
    assert!(field("path_mtu") >= field("mss"), "{end}");
    assert!(field("segments") > Some(0), "{end}");
    // Kernels of the last years have them.
    assert!(field("rwnd_limited_usec") > Some(100_000), "{end}");
    assert!(field("busy_usec") >= field("rwnd_limited_usec"), "{end}");
    let message = end["message"].as_str().unwrap();
    assert!(
        message.contains("; rtt ") && message.contains(", mss "),
        "{end}"
    );
    assert!(message.contains(" limited by the peer's window"), "{end}");
    let broken = daemon.connect();
    ping(&broken, b"hello");
    testkit::reset(broken);
    daemon.logged_times(CLOSED, 2);
    assert!(daemon.stop().success());
    let events = events(&daemon.log());
    assert!(of(&events, CLOSED)[1].get("echo.closed_first").is_none());
}

#[test]
fn connections_without_a_byte_are_summed_up_by_source() {
    // Unprivileged processes may use every address of loopback.
    let from = |last: u8, daemon: &Daemon| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let source = SocketAddr::from(([127, 0, 1, last], 0));
        socket.bind(&source.into()).unwrap();
        socket.connect(&daemon.address().into()).unwrap();
        TcpStream::from(socket)
    };
    let mut daemon = json().start();
    let descriptors = daemon.descriptors();
    let (sources, visits) = (40, 3);
    for _ in 0..visits {
        for last in 1..=sources {
            drop(from(last, &daemon));
        }
    }
    let talker = from(1, &daemon);
    ping(&talker, b"hello");
    drop(talker);
    daemon.has_released(descriptors);
    assert!(daemon.stop().success());
    let events = events(&daemon.log());
    let (single, summed) = (of(&events, CLOSED), of(&events, CLOSED_EMPTY));
    // The first one of 32 sources, and the one with bytes.
    assert_eq!(single.len(), 33);
    assert_eq!(summed.len(), 1, "{summed:?}");
    let count = summed[0]["echo.count"].as_u64().unwrap();
    assert_eq!(count + 32, u64::from(sources) * visits);
    assert_eq!(summed[0]["echo.reasons"], format!("peer-closed {count}"));
    let by_source = summed[0]["echo.sources"].as_str().unwrap();
    let parts: Vec<&str> = by_source.split(", ").collect();
    assert_eq!(parts.len(), 33, "{by_source}");
    assert_eq!(parts[0], "127.0.1.1 2");
    assert_eq!(parts[32], "others 24");
}

#[test]
fn a_unix_peer_is_logged_with_its_process() {
    let folder = Folder::new();
    let path = folder.path("echo.sock");
    let mut daemon = Plan::bare()
        .argument("--log-format=json")
        .argument(&format!("--listen=unix:{}", path.display()))
        .start();
    let client = UnixStream::connect(&path).unwrap();
    ping(&client, b"hello");
    drop(client);
    let end = first_end(&daemon);
    assert_eq!(end["echo.peer"], "unix");
    assert_eq!(end["echo.peer_pid"], std::process::id());
    let user = rustix::process::geteuid().as_raw();
    assert_eq!(end["echo.peer_uid"], user);
    assert_eq!(end["echo.local"], format!("unix:{}", path.display()));
    let process = format!("from unix (pid {}, uid {user}) on ", std::process::id());
    assert!(end["message"].as_str().unwrap().contains(&process), "{end}");
    assert!(daemon.stop().success());
}

#[test]
fn an_abstract_name_is_logged_and_cannot_drive_a_terminal() {
    let name = format!("tcp-echo-it-{}-\u{1b}\n", std::process::id());
    let address = unix::SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let mut daemon = Plan::bare()
        .argument("--log-format=json")
        .pass(vec![listener.into()], "abstract")
        .start();
    let shown = format!("unix:@tcp-echo-it-{}-\\u{{1b}}\\u{{a}}", std::process::id());
    assert_eq!(daemon.listen.join(" "), shown);
    let client = UnixStream::connect_addr(&address).unwrap();
    ping(&client, b"hello");
    // The other way round, a peer that has a name.
    let named = format!("{name}peer");
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket
        .bind(&SockAddr::unix(format!("\0{named}")).unwrap())
        .unwrap();
    socket
        .connect(&SockAddr::unix(format!("\0{name}")).unwrap())
        .unwrap();
    let second = UnixStream::from(OwnedFd::from(socket));
    ping(&second, b"hello");
    drop(second);
    let end = first_end(&daemon);
    assert_eq!(end["echo.local"], shown);
    assert_eq!(end["echo.peer"], format!("{shown}peer"));
    assert!(daemon.stop().success());
}

/// Asserts that a connection under a configuration ends for this reason.
#[track_caller]
fn ends_with(reason: &str, config: &str, act: impl FnOnce(&mut Daemon)) {
    let mut daemon = json().config(config).start();
    act(&mut daemon);
    let end = first_end(&daemon);
    assert_eq!(end["echo.reason"], reason, "{end}");
    assert!(daemon.stop().success());
    let all = events(&daemon.log());
    assert_eq!(of(&all, CLOSED).len(), 1);
    let stopped = all.last().unwrap();
    assert_eq!(stopped["echo.reasons"], format!("{reason} 1"), "{stopped}");
}

#[test]
fn the_reason_is_the_right_one() {
    ends_with("peer-closed", "", |daemon| {
        assert!(finish(&daemon.connect()).is_empty());
    });
    ends_with("reset", "", |daemon| {
        let client = daemon.connect();
        ping(&client, b"hello");
        reset(client);
    });
    ends_with(
        "idle-timeout",
        "[limits]\nidle-timeout = '100ms'\n",
        |daemon| {
            let client = daemon.connect();
            ping(&client, b"hello");
            end_of(&client).unwrap();
        },
    );
    ends_with(
        "stall-timeout",
        "[limits]\nstall-timeout = '300ms'\n",
        |daemon| {
            let mut client = daemon.connect();
            fill(&mut client);
            daemon.logged("stall-timeout");
        },
    );
    ends_with(
        "max-lifetime",
        "[limits]\nmax-lifetime = '100ms'\n",
        |daemon| {
            let client = daemon.connect();
            ping(&client, b"hello");
            end_of(&client).unwrap();
        },
    );
    ends_with("max-bytes", "[limits]\nmax-bytes = '5B'\n", |daemon| {
        let client = daemon.connect();
        ping(&client, b"hello");
        end_of(&client).unwrap();
    });
    ends_with("shutdown", "", |daemon| {
        let client = daemon.connect();
        ping(&client, b"hello");
        assert!(daemon.stop().success());
        end_of(&client).unwrap();
    });
    ends_with(
        "stop-timeout",
        "[limits]\nstop-timeout = '200ms'\n",
        |daemon| {
            let mut client = daemon.connect();
            fill(&mut client);
            assert!(daemon.stop().success());
        },
    );
}

#[test]
fn bytes_that_could_not_be_sent_back_are_logged() {
    let mut daemon = json().config("[limits]\nstall-timeout = '300ms'\n").start();
    let mut client = daemon.connect();
    fill(&mut client);
    let end = first_end(&daemon);
    let number = |field| end[field].as_u64().unwrap();
    assert!(number("echo.owed") > 0, "{end}");
    assert_eq!(
        number("echo.received"),
        number("echo.sent") + number("echo.owed")
    );
    drop(client);
    assert!(daemon.stop().success());
}

#[test]
fn above_a_rate_ends_are_summed_and_the_sums_are_exact() {
    let mut daemon = json().config("[log]\nconnection-rate = 3\n").start();
    let start = Instant::now();
    let (clients, bytes) = (60, 100);
    for seed in 0..clients {
        let client = daemon.connect();
        ping(&client, &pattern(seed, bytes));
        if seed % 3 == 0 {
            reset(client);
        } else {
            finish(&client);
        }
    }
    // The first summary comes by the clock, without another end.
    daemon.logged(CLOSED_MANY);
    let seconds = start.elapsed().as_secs() + 1;
    for seed in 0..5 {
        ping(daemon.connect(), &pattern(seed, bytes));
    }
    // What was not summed yet is summed at the end.
    assert!(daemon.stop().success());
    let events = events(&daemon.log());
    let (logged, folded) = (of(&events, CLOSED), of(&events, CLOSED_MANY));
    assert!(
        logged.len() as u64 <= 3 * (seconds + 2),
        "{} logged",
        logged.len()
    );
    assert_eq!(
        logged.len() as u64 + sum(&folded, "echo.count"),
        clients + 5
    );
    let bytes = (clients + 5) * bytes as u64;
    for field in ["echo.received", "echo.sent"] {
        assert_eq!(sum(&logged, field) + sum(&folded, field), bytes, "{field}");
    }
    let mut reasons: HashMap<String, u64> = HashMap::new();
    for event in &logged {
        let reason = event["echo.reason"].as_str().unwrap();
        *reasons.entry(reason.into()).or_default() += 1;
    }
    for event in &folded {
        let mut total = 0;
        for reason in event["echo.reasons"].as_str().unwrap().split(", ") {
            let (reason, count) = reason.split_once(' ').unwrap();
            let count: u64 = count.parse().unwrap();
            *reasons.entry(reason.into()).or_default() += count;
            total += count;
        }
        assert_eq!(event["echo.count"], total, "{event}");
    }
    assert_eq!(reasons["reset"], clients / 3);
    assert_eq!(
        reasons["peer-closed"],
        clients - clients / 3 + 5 - reasons.get("shutdown").unwrap_or(&0)
    );
}

#[test]
fn new_connections_are_logged_at_debug_and_turns_at_trace() {
    for (level, opened, turned) in [("info", 0, false), ("debug", 1, false), ("trace", 1, true)] {
        let mut daemon = json().argument(&format!("--log={level}")).start();
        let client = daemon.connect();
        ping(&client, b"secret payload");
        finish(&client);
        first_end(&daemon);
        assert!(daemon.stop().success());
        let log = daemon.log();
        assert!(!log.contains("secret"), "{log}");
        let events = events(&log);
        assert_eq!(of(&events, OPENED).len(), opened, "{level}");
        let turns = of(&events, MOVED);
        assert_eq!(!turns.is_empty(), turned, "{level}");
        if turned {
            assert_eq!(sum(&turns, "echo.received"), 14);
            assert_eq!(sum(&turns, "echo.sent"), 14);
            assert!(turns.iter().all(|turn| turn["echo.owed"] == 0
                && turn["echo.connection"] == 1
                && turn["level"] == "TRACE"));
        }
    }
}

#[test]
fn events_below_the_level_are_not_logged_and_off_logs_nothing() {
    for (level, lines) in [
        ("off", &[][..]),
        ("error", &["reload failed"]),
        (
            "warn",
            &["accepts connections of other hosts", "reload failed"],
        ),
    ] {
        let mut daemon = Plan::new()
            .argument("--listen=*:0")
            .argument(&format!("--log={level}"))
            .start();
        ping(daemon.connect(), b"hello");
        daemon.reload("[nonsense]");
        assert!(daemon.stop().success());
        let log = daemon.log();
        for line in lines {
            assert!(log.contains(line), "{level}: {log}");
        }
        assert!(!log.contains("ready on"), "{level}: {log}");
        if level == "off" {
            assert_eq!(log, "");
        }
    }
}

#[test]
fn rust_log_counts_where_nothing_else_is_set() {
    for (config, argument, logged) in [
        ("", None, true),
        ("[log]\nlevel = 'info'\n", None, false),
        ("", Some("--log=info"), false),
    ] {
        let mut plan = Plan::new()
            .config(config)
            .environment("RUST_LOG", "mio=trace,tcp_echo=debug");
        if let Some(argument) = argument {
            plan = plan.argument(argument);
        }
        let mut daemon = plan.start();
        ping(daemon.connect(), b"hello");
        assert!(daemon.stop().success());
        assert_eq!(
            daemon.log().contains(" opened\n"),
            logged,
            "{config} {argument:?}"
        );
    }
}

#[test]
fn payload_is_logged_when_asked_for_escaped_and_cut() {
    let mut daemon = json()
        .config("[log]\nlevel = 'trace'\npayload-preview = 8\n")
        .start();
    let client = daemon.connect();
    ping(&client, b"a\n\"\xff\x1b[1mBEYOND");
    let line = daemon.logged("echo.preview");
    let turn: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(turn["echo.preview"], r#"a\n\"\xff\x1b[1m"#);
    assert!(!daemon.log().contains("BEYOND"));
    // Only at trace.
    daemon.reload("[log]\nlevel = 'debug'\npayload-preview = 8\n");
    ping(&client, b"unseen");
    drop(client);
    assert!(daemon.stop().success());
    assert!(!daemon.log().contains("unseen"));
}

// The journal.

/// A journal in a folder, which a daemon in a mount namespace of its own finds in the usual place.
struct Journal {
    folder: Folder,
    socket: UnixDatagram,
}

impl Journal {
    /// Where this user may not make namespaces, prints that the test skips, and returns `None`.
    fn new() -> Option<Self> {
        if !has_namespaces(&["-rm", "mount", "-t", "tmpfs", "tmpfs", "/run"]) {
            return None;
        }
        let folder = Folder::new();
        std::fs::create_dir(folder.path("journal")).unwrap();
        let socket = UnixDatagram::bind(folder.path("journal/socket")).unwrap();
        Some(Self { folder, socket })
    }

    /// Runs the plan's daemon with this journal.
    fn serve(&self, plan: Plan) -> Plan {
        let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && \
                      mount --bind \"$1\" /run/systemd/journal && shift && exec \"$@\"";
        let folder = self.folder.path("journal").display().to_string();
        plan.under(&["unshare", "-rm", "sh", "-c", script, "sh", &folder])
    }

    /// The next entry, with its fields.
    fn next(&self, within: Duration) -> Option<HashMap<String, String>> {
        let end = Instant::now() + within;
        let mut buffer = vec![0; 1 << 18];
        loop {
            let left = end.checked_duration_since(Instant::now())?;
            self.socket
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))
                .unwrap();
            let Ok(count) = self.socket.recv(&mut buffer) else {
                continue;
            };
            // An empty one asks whether the journal is there.
            if count > 0 {
                return Some(entry(&buffer[..count]));
            }
        }
    }
}

/// The native protocol: `NAME=value\n`, or `NAME\n`, the length in 64 bits, and the value.
fn entry(mut data: &[u8]) -> HashMap<String, String> {
    let mut fields = HashMap::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    while !data.is_empty() {
        let end = data.iter().position(|b| *b == b'\n').unwrap();
        let line = &data[..end];
        data = &data[end + 1..];
        if let Some(equals) = line.iter().position(|b| *b == b'=') {
            fields.insert(text(&line[..equals]), text(&line[equals + 1..]));
        } else {
            let (length, rest) = data.split_at(8);
            let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
            fields.insert(text(line), text(&rest[..length]));
            assert_eq!(rest[length], b'\n');
            data = &rest[length + 1..];
        }
    }
    fields
}

/// Standard error is the file `log` of the plan, and the environment calls it the journal's.
fn claimed(plan: Plan) -> Plan {
    let log = plan.folder().write("log", "");
    let meta = std::fs::metadata(log).unwrap();
    plan.environment("JOURNAL_STREAM", &format!("{}:{}", meta.dev(), meta.ino()))
}

#[test]
fn in_the_journal_events_have_fields_and_nothing_goes_to_standard_error() {
    let Some(journal) = Journal::new() else {
        return;
    };
    let mut daemon = journal.serve(claimed(Plan::new())).start();
    let client = daemon.connect();
    let peer = client.local_addr().unwrap().to_string();
    ping(&client, b"hello");
    drop(client);
    let mut seen = Vec::new();
    let end = loop {
        let entry = journal.next(SOON).expect("the end is not in the journal");
        if entry["MESSAGE_ID"] == CLOSED {
            break entry;
        }
        seen.push(entry);
    };
    for (field, value) in [
        ("ECHO_PEER", peer.as_str()),
        ("ECHO_RECEIVED", "5"),
        ("ECHO_SENT", "5"),
        ("ECHO_REASON", "peer-closed"),
        ("ECHO_LISTENER", "127.0.0.1:0"),
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "tcp-echo"),
    ] {
        assert_eq!(
            end.get(field).map(String::as_str),
            Some(value),
            "{field}: {end:?}"
        );
    }
    assert!(end["MESSAGE"].contains(&peer), "{end:?}");
    assert!(
        seen.iter()
            .any(|entry| entry["MESSAGE"].starts_with("ready on"))
    );
    daemon.reload("[nonsense]");
    let failed = std::iter::from_fn(|| journal.next(SOON))
        .find(|entry| entry["MESSAGE"].starts_with("reload failed"))
        .unwrap();
    assert_eq!(failed["PRIORITY"], "3");
    assert!(failed["MESSAGE"].contains("line 1"), "{failed:?}");
    assert!(daemon.stop().success());
    assert_eq!(daemon.log(), "", "two sinks");
}

#[test]
fn a_journal_stream_that_is_not_ours_means_text() {
    let Some(journal) = Journal::new() else {
        return;
    };
    // Inherited from a service whose standard error was replaced, or nonsense.
    for stream in ["1:2", "", "nonsense", "8:"] {
        let plan = journal
            .serve(Plan::new())
            .environment("JOURNAL_STREAM", stream);
        let mut daemon = plan.start();
        assert!(daemon.stop().success());
        assert!(daemon.log().contains("<6>20"), "{}", daemon.log());
        assert_eq!(journal.next(Duration::from_millis(10)), None);
    }
}

#[test]
fn a_form_that_was_asked_for_beats_the_journal() {
    let Some(journal) = Journal::new() else {
        return;
    };
    let plan = journal.serve(claimed(json()));
    let mut daemon = plan.start();
    assert!(daemon.stop().success());
    assert!(events(&daemon.log()).len() > 3);
    assert_eq!(journal.next(Duration::from_millis(10)), None);
}

#[test]
fn without_the_journals_socket_lines_reach_it_through_standard_error() {
    let Some(journal) = Journal::new() else {
        return;
    };
    std::fs::remove_file(journal.folder.path("journal/socket")).unwrap();
    let mut daemon = journal.serve(claimed(Plan::new())).start();
    ping(daemon.connect(), b"hello");
    assert!(daemon.stop().success());
    let log = daemon.log();
    // The journal has a clock of its own.
    assert!(log.contains("<6>ready on "), "{log}");
    assert!(log.contains("<6>connection 1 from "), "{log}");
}

#[test]
fn a_journal_that_does_not_read_holds_nothing_up() {
    let Some(journal) = Journal::new() else {
        return;
    };
    let mut daemon = journal.serve(claimed(Plan::new())).start();
    let client = daemon.connect();
    for seed in 0..100 {
        ping(daemon.connect(), &pattern(seed, 100));
        ping(&client, &pattern(seed, 100));
    }
    daemon.reload("");
    drop(client);
    let start = Instant::now();
    assert!(daemon.stop().success());
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

// A log that cannot be written.

/// Asserts that the daemon serves, reloads and stops in good order although its log cannot be written.
#[track_caller]
fn serves_regardless(mut daemon: Daemon, connections: u64) {
    let client = daemon.connect();
    for seed in 0..connections {
        ping(daemon.connect(), &pattern(seed, 64));
    }
    ping(&client, &pattern(7, 1_000_000));
    daemon.reload("[nonsense]");
    daemon.signal(Signal::USR1);
    daemon.signal(Signal::PIPE);
    ping(&client, b"still here");
    drop(client);
    let start = Instant::now();
    let status = daemon.stop();
    assert!(status.success(), "{status}");
    // Half a second for the log, and the rest for a busy host.
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

/// A daemon that logs much: two events a connection and more.
fn talkative() -> Plan {
    Plan::new().config("[log]\nlevel = 'debug'\nformat = 'json'\nconnection-rate = 1000000\n")
}

#[test]
fn a_pipe_without_a_reader_holds_nothing_up() {
    let mut daemon = talkative().stderr(Stdio::piped()).start();
    let pipe = daemon.take_stderr();
    // More than the pipe and the queue hold.
    serves_regardless(daemon, 1500);
    drop(pipe);
}

#[test]
fn a_broken_pipe_holds_nothing_up() {
    let mut daemon = talkative().stderr(Stdio::piped()).start();
    drop(daemon.take_stderr());
    serves_regardless(daemon, 50);
}

#[test]
fn a_full_disk_holds_nothing_up() {
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    serves_regardless(talkative().stderr(full).start(), 50);
}

#[test]
fn closed_standard_descriptors_hold_nothing_up_and_mix_with_no_connection() {
    let plan = talkative().under(&["sh", "-c", "exec \"$@\" 0<&- 1>&- 2>&-", "sh"]);
    let daemon = plan.start();
    // What is logged must not go to a client that got the number of standard error.
    let client = daemon.connect();
    for seed in 0..20 {
        ping(&client, &pattern(seed, 1000));
    }
    serves_regardless(daemon, 50);
    assert_eq!(end_of(&client).unwrap(), b"");
}

#[test]
fn a_start_that_fails_does_not_hang_on_its_message() {
    let mut plan = Plan::new().config("[nonsense]").stderr(Stdio::piped());
    let mut child = plan.command().spawn().unwrap();
    drop(child.stderr.take());
    let status = eventually(SOON, "it did not end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(78));
}

/// Reads lines as they come, for as long as there are any.
fn reader(source: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let lines = Arc::new(Mutex::new(String::new()));
    let sink = Arc::clone(&lines);
    thread::spawn(move || {
        for line in BufReader::new(source).lines() {
            let Ok(line) = line else { return };
            let mut sink = sink.lock().unwrap();
            sink.push_str(&line);
            sink.push('\n');
        }
    });
    lines
}

/// Asserts that every event of a connection is logged or counted as lost.
#[track_caller]
fn nothing_is_missing(mut daemon: Daemon, lines: &Arc<Mutex<String>>, connections: u64) {
    let log = || lines.lock().unwrap().clone();
    let counted = |log: &str| {
        let events = events(log);
        let logged = of(&events, OPENED).len() + of(&events, CLOSED).len();
        (logged as u64, sum(&of(&events, LOST), "echo.count"))
    };
    // At its end the daemon waits for the log for less than a busy machine needs for all of it.
    eventually(SOON, "events are missing", || {
        let (logged, lost) = counted(&log());
        (logged + lost >= 2 * connections).then_some(())
    });
    assert!(daemon.stop().success());
    let log = eventually(SOON, "the log has no end", || {
        Some(log()).filter(|log| log.contains("\"stopped; "))
    });
    let (logged, lost) = counted(&log);
    assert!(lost > 0);
    assert_eq!(logged + lost, 2 * connections, "{lost} lost");
}

#[test]
fn when_the_reader_comes_back_the_log_says_exactly_how_much_was_lost() {
    // The writing end is blocking, or another process has made it non-blocking.
    for flags in [0, libc::O_NONBLOCK] {
        let folder = Folder::new();
        let path = folder.path("fifo");
        let (reading, writing) = fifo(&path, flags);
        let daemon = talkative().stderr(writing).start();
        let connections = 1500;
        for seed in 0..connections {
            let client = daemon.connect();
            ping(&client, &pattern(seed, 10));
            finish(&client);
        }
        let lines = reader(reading);
        nothing_is_missing(daemon, &lines, connections);
    }
}

#[test]
fn when_the_log_can_be_written_again_it_says_exactly_how_much_was_lost() {
    let folder = Folder::new();
    let path = folder.path("fifo");
    let (reading, writing) = fifo(&path, 0);
    let (listener, page) = passed();
    let plan = talkative().stderr(writing);
    let daemon = plan.pass(vec![listener], "metrics").start();
    let mut early = BufReader::new(reading);
    let mut text = String::new();
    while !text.contains("\"ready on ") {
        early.read_line(&mut text).unwrap();
    }
    // There is no reader, so each event fails.
    drop(early);
    // The thread of the log may be late, and a process that another test has just started may be a
    // reader until it executes its program.
    let mut connections = 0;
    eventually(SOON, "nothing is lost", || {
        connections += 1;
        ping(daemon.connect(), &pattern(connections, 10));
        let dropped = metrics(page).value("tcp_echo_log_events_dropped_total");
        (dropped >= 10.0).then_some(())
    });
    // The next event that can be written brings the count with it.
    let (reading, _unused) = open(&path, 0);
    for seed in 0..5 {
        ping(daemon.connect(), &pattern(seed, 10));
    }
    let lines = reader(reading);
    nothing_is_missing(daemon, &lines, connections + 5);
}

/// A new pipe with a name: both ends.
fn fifo(path: &Path, flags: i32) -> (std::fs::File, std::fs::File) {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RWXU).unwrap();
    open(path, flags)
}

fn open(path: &Path, flags: i32) -> (std::fs::File, std::fs::File) {
    // Without waiting for the writer; read(2) itself waits.
    let reading = std::fs::File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .unwrap();
    let writing = std::fs::File::options()
        .write(true)
        .custom_flags(flags)
        .open(path)
        .unwrap();
    let blocking = rustix::fs::OFlags::empty();
    rustix::fs::fcntl_setfl(&reading, blocking).unwrap();
    (reading, writing)
}
