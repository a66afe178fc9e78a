//! `tcp-echo ping` says what the cause is: each class by a server or a path with exactly that fault,
//! and none by a good one.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use testkit::{Daemon, Folder, Plan, SOON, has, has_namespaces, has_terminals, program, reset};

use super::schema;

/// How often each class has to be found.
const TIMES: usize = 20;

/// What a run of the program left behind.
#[derive(Debug)]
struct Ran {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The last line, which names the class.
    fn verdict(&self) -> &str {
        let text = if self.stderr.is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        text.lines().last().unwrap_or_default()
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command
        .arg("ping")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // It is shown if the test fails, and captured otherwise.
    eprintln!("--- {command:?}");
    command
}

/// Waits for a child that writes little; kills it when it takes too long.
fn finished(mut child: Child) -> Ran {
    let deadline = Instant::now() + SOON;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it did not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran {
        status: status.code().unwrap_or(-1),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

fn ping(arguments: &[&str]) -> Ran {
    finished(command(arguments).spawn().unwrap())
}

/// Serves each connection in a thread of its own, with its number; for as long as the test runs.
fn serve(conversation: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let conversation = Arc::new(conversation);
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let conversation = Arc::clone(&conversation);
            std::thread::spawn(move || conversation(stream.unwrap(), number));
        }
    });
    address
}

/// Echoes what `change` makes of each piece, which is given with the place where it begins: a piece
/// may be any number of messages, and begin within one.
fn echo(mut stream: TcpStream, mut change: impl FnMut(u64, &mut Vec<u8>)) {
    let mut buffer = vec![0; 64 * 1024];
    let mut place = 0;
    stream.set_nodelay(true).unwrap();
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let mut piece = buffer[..count].to_vec();
        change(place, &mut piece);
        place += count as u64;
        if stream.write_all(&piece).is_err() {
            return;
        }
    }
}

/// Echoes so many bytes, and waits for one more, which it leaves alone.
fn echo_some(mut stream: &TcpStream, mut bytes: usize) {
    let mut buffer = [0; 4096];
    stream.set_nodelay(true).unwrap();
    while bytes > 0 {
        let most = bytes.min(buffer.len());
        let Ok(count @ 1..) = stream.read(&mut buffer[..most]) else {
            return;
        };
        stream.write_all(&buffer[..count]).unwrap();
        bytes -= count;
    }
    let _ = stream.peek(&mut buffer[..1]);
}

/// Reads for ever, and says nothing.
fn swallow(mut stream: &TcpStream) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
}

/// Runs `ping` twenty times with these arguments, some at the same time; each has to end with this
/// status and say this word, in its last line and in JSON.
fn each_time(status: i32, word: &str, arguments: &[&str]) {
    let mut arguments = arguments.to_vec();
    arguments.push("--json");
    let run = || {
        let ran = ping(&arguments);
        assert_eq!(ran.status, status, "{word}: {ran:?}");
        assert!(
            ran.verdict().contains(&format!(": {word}")),
            "{word}: {ran:?}"
        );
        let summary = ran.json();
        assert_eq!(summary["class"], word, "{ran:?}");
        assert_eq!(summary["status"], status, "{ran:?}");
        described(&summary);
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..TIMES / 4).for_each(|_| run())))
            .collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// The summary is as docs/ping-summary.schema.json describes it.
fn described(summary: &Value) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ping-summary.schema.json");
    let schema = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let complaints = schema::complaints(&schema, summary);
    assert!(complaints.is_empty(), "{complaints:#?}\n{summary}");
}

#[test]
fn a_good_server_has_no_fault() {
    let daemon = Daemon::start();
    let address = daemon.address().to_string();
    each_time(0, "ok", &["-c", "20", "-i", "5ms", &address]);
    let plain = serve(|stream, _| echo(stream, |_, _| {})).to_string();
    each_time(
        0,
        "ok",
        &[
            "-c",
            "40",
            "--rate",
            "2k",
            "--connections",
            "4",
            "-s",
            "3000",
            &plain,
        ],
    );
}

#[test]
fn a_name_without_an_address() {
    each_time(10, "name", &["-c", "1", "no-such-host.invalid"]);
    let missing = "unix:/nonexistent/echo.sock";
    each_time(10, "name", &["-c", "1", missing]);
    assert_eq!(ping(&["-c", "1", "-6", "127.0.0.1"]).status, 10);
}

#[test]
fn a_port_without_a_listener() {
    // Bound and not listening: no other process can take the port meanwhile.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    let address = socket
        .local_addr()
        .unwrap()
        .as_socket()
        .unwrap()
        .to_string();
    each_time(11, "refused", &["-c", "1", &address]);
}

#[test]
fn an_accept_queue_that_is_full() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap();
    let _callers: Vec<_> = (0..8)
        .map(|_| {
            let caller = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            caller.set_nonblocking(true).unwrap();
            let _ = caller.connect(&address);
            caller
        })
        .collect();
    let address = address.as_socket().unwrap().to_string();
    each_time(12, "time-out", &["-c", "1", "-W", "0.3", &address]);
    // The queue of a Unix socket is answered at once, which is the same for the one that waits.
    let folder = Folder::new();
    let path = folder.path("full.sock");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _caller = std::os::unix::net::UnixStream::connect(&path).unwrap();
    each_time(
        12,
        "time-out",
        &["-c", "1", "-W", "0.3", &format!("unix:{}", path.display())],
    );
}

#[test]
fn a_network_without_a_way() {
    if !has_namespaces(&["-rn", "true"]) {
        return;
    }
    for _ in 0..TIMES {
        let child = Command::new("unshare")
            .args(["-rn", program(), "ping", "-c", "1", "--json", "192.0.2.1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ran = finished(child);
        assert_eq!(ran.status, 13, "{ran:?}");
        assert_eq!(ran.json()["class"], "unreachable");
        described(&ran.json());
    }
}

#[test]
fn a_connection_that_is_reset() {
    for bytes in [0, 2 * 64, 2 * 64 + 7] {
        let server = serve(move |stream, _| {
            echo_some(&stream, bytes);
            reset(stream);
        });
        each_time(14, "reset", &["-c", "4", "-i", "5ms", &server.to_string()]);
    }
}

#[test]
fn a_connection_that_is_closed() {
    let at_once = serve(|stream, _| {
        stream.shutdown(Shutdown::Write).unwrap();
        swallow(&stream);
    });
    each_time(
        15,
        "closed",
        &["-c", "3", "-i", "10ms", &at_once.to_string()],
    );
    let later = serve(|stream, _| {
        echo_some(&stream, 2 * 64 + 7);
        stream.shutdown(Shutdown::Write).unwrap();
        swallow(&stream);
    });
    each_time(15, "closed", &["-c", "4", "-i", "5ms", &later.to_string()]);
}

#[test]
fn a_server_that_says_nothing() {
    let silent = serve(|stream, _| swallow(&stream)).to_string();
    each_time(
        16,
        "silent",
        &["-c", "2", "-i", "10ms", "-W", "0.3", &silent],
    );
}

#[test]
fn a_server_that_stops_echoing() {
    let stalls = serve(|stream, _| {
        echo_some(&stream, 2 * 64 + 7);
        swallow(&stream);
    });
    let arguments = ["-c", "4", "-i", "5ms", "-W", "0.5", &stalls.to_string()];
    each_time(18, "stalled", &arguments);
}

#[test]
fn an_echo_that_comes_late() {
    let slow = serve(|stream, _| {
        echo_some(&stream, 64);
        std::thread::sleep(Duration::from_millis(600));
        echo(stream, |_, _| {});
    });
    // The last messages leave a busy machine time for the late echo.
    let arguments = ["-c", "8", "-i", "0.3", "-W", "0.5", &slow.to_string()];
    each_time(1, "missed", &arguments);
}

#[test]
fn wrong_bytes_are_located() {
    let flipped = serve(|stream, _| {
        echo(stream, |place, piece| {
            if let Some(byte) = 100_u64
                .checked_sub(place)
                .and_then(|at| piece.get_mut(at as usize))
            {
                *byte ^= 0x20;
            }
        });
    })
    .to_string();
    let cut = serve(|stream, _| {
        echo(stream, |place, piece| {
            let mut at = place;
            piece.retain(|_| {
                at += 1;
                !(512..1024).contains(&(at - 1))
            });
        });
    })
    .to_string();
    let twice = serve(|mut stream, _| {
        let mut first = [0; 1024];
        stream.read_exact(&mut first).unwrap();
        stream.write_all(&[first, first].concat()).unwrap();
        echo(stream, |_, _| {});
    })
    .to_string();
    let banner = serve(|mut stream, _| {
        stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").unwrap();
        swallow(&stream);
    })
    .to_string();
    let messages = ["-c", "6", "-i", "5ms", "-s", "1024"];
    for (server, place) in [
        (&flipped, "changed at 100"),
        (&cut, "512 bytes missing at 512"),
        (&twice, "come again at 1024"),
        (&banner, "never sent at 0"),
    ] {
        let mut arguments = messages.to_vec();
        arguments.push(server);
        each_time(17, "wrong", &arguments);
        let ran = ping(&arguments);
        assert!(ran.stdout.contains(place), "{place}: {ran:?}");
        arguments.push("--json");
        let summary = ping(&arguments).json();
        assert!(summary["wrong"].as_u64() > Some(0), "{summary}");
        assert!(
            summary["wrong_places"][0].as_str().unwrap().contains(place),
            "{summary}"
        );
    }
    // What listens there says so itself.
    assert!(
        ping(&["-c", "1", &banner])
            .stdout
            .contains("SSH-2.0-OpenSSH_9.6")
    );
}

#[test]
fn a_server_that_speaks_first_after_a_silence_is_no_echo_server() {
    // Longer than all messages take to be sent, so that it looks like a silent server until then.
    let greet = |mut stream: &TcpStream| {
        std::thread::sleep(Duration::from_millis(300));
        stream.write_all(b"220 mail.example.net\r\n").unwrap();
    };
    let mute = serve(move |stream, _| {
        greet(&stream);
        swallow(&stream);
    })
    .to_string();
    each_time(17, "wrong", &["-c", "3", "-i", "5ms", &mute]);
    let ran = ping(&["-c", "3", "-i", "5ms", &mute]);
    assert!(ran.stdout.contains("never sent at 0"), "{ran:?}");
    assert!(ran.stdout.contains("220 mail.example.net"), "{ran:?}");
    // One that echoes all the same puts its words before what it owes.
    let polite = serve(move |stream, _| {
        echo_some(&stream, 64);
        greet(&stream);
        echo(stream, |_, _| {});
    })
    .to_string();
    each_time(17, "wrong", &["-c", "3", "-i", "20ms", &polite]);
    let ran = ping(&["-c", "3", "-i", "20ms", &polite]);
    assert!(ran.stdout.contains("wrong bytes: 22 bytes "), "{ran:?}");
}

#[test]
fn bytes_of_another_connection_are_known() {
    // What comes on one connection goes back on the other.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (one, _) = listener.accept().unwrap();
        let (other, _) = listener.accept().unwrap();
        let pass = |mut from: TcpStream, mut to: TcpStream| {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    let _ = to.write_all(&buffer[..count]);
                }
            });
        };
        pass(one.try_clone().unwrap(), other.try_clone().unwrap());
        pass(other, one);
        std::thread::sleep(SOON);
    });
    let ran = ping(&["-c", "2", "-i", "5ms", "--connections", "2", &address]);
    assert_eq!(ran.status, 17, "{ran:?}");
    assert!(ran.stdout.contains("sent on connection"), "{ran:?}");
}

#[test]
fn contact_that_is_lost_comes_back_and_its_length_is_said() {
    let server = serve(|stream, number| match number {
        0 => {
            echo_some(&stream, 3 * 64);
            stream.shutdown(Shutdown::Write).unwrap();
            swallow(&stream);
        }
        _ => echo(stream, |_, _| {}),
    });
    let ran = ping(&[
        "-c",
        "10",
        "-i",
        "50ms",
        "--json-lines",
        &server.to_string(),
    ]);
    assert_eq!(ran.status, 15, "{ran:?}");
    let events: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let named = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!(
        (named("connected"), named("ended"), named("contact")),
        (2, 1, 1),
        "{ran:?}"
    );
    let mut summary = events.last().unwrap().clone();
    assert_eq!(summary["event"], "summary");
    summary.as_object_mut().unwrap().remove("event");
    described(&summary);
    assert_eq!(summary["reconnects"], 1);
    assert_eq!(summary["missing"], 1);
    assert_eq!(named("echo") as u64, summary["received"].as_u64().unwrap());
    let lost = summary["lost_contact"]["longest_us"].as_f64().unwrap();
    assert!((90_000.0..5_000_000.0).contains(&lost), "{summary}");
}

#[test]
fn a_pause_is_named_with_its_place() {
    let server = serve(|stream, _| {
        echo_some(&stream, 64);
        std::thread::sleep(Duration::from_millis(1500));
        echo(stream, |_, _| {});
    });
    let ran = ping(&["-c", "3", "-i", "100ms", &server.to_string()]);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.stdout.contains("acknowledged, not echoed"), "{ran:?}");
    assert!(ran.stdout.contains("the echo is back after 1"), "{ran:?}");
}

/// In a network of its own: a daemon, and a ping during which what is sent to it is dropped after half
/// a second for `span` seconds.
fn ping_while_dropped(span: &str, arguments: &str) -> Option<Ran> {
    if !has("nft") || !has("ss") || !has_namespaces(&["-rn", "nft", "add", "table", "ip", "t"]) {
        return None;
    }
    let script = format!(
        "ip link set lo up
         $0 --config /dev/null --listen 127.0.0.1:7777 2>/dev/null & daemon=$!
         trap 'kill $daemon' EXIT
         until ss -ltn | grep -q 7777; do sleep 0.05; done
         (sleep 0.5
         nft 'add table ip t; add chain ip t c {{ type filter hook prerouting priority 0; }}; \
              add rule ip t c tcp dport 7777 drop'
         sleep {span}; nft delete table ip t) >/dev/null 2>&1 </dev/null &
         $0 ping {arguments} 127.0.0.1:7777"
    );
    let child = Command::new("unshare")
        .args(["-rn", "sh", "-c", &script, program()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Some(finished(child))
}

#[test]
fn what_is_lost_is_sent_again_and_where_nothing_arrives_the_way_there_is_named() {
    if let Some(ran) = ping_while_dropped("0.4", "-i 0.1 -c 20") {
        assert_eq!(ran.status, 0, "{ran:?}");
        assert!(
            ran.stdout.contains("sent again, then acknowledged"),
            "{ran:?}"
        );
        // The wait of those behind is the path's, not this host's.
        let host = ran
            .stdout
            .lines()
            .find(|line| line.contains("of it on this host"))
            .unwrap();
        let max = host.split("max ").nth(1).unwrap();
        assert!(
            max.split(' ').next().unwrap().parse::<f64>().unwrap() < 100.0,
            "{ran:?}"
        );
    }
    if let Some(ran) = ping_while_dropped("5", "-i 0.1 -c 10 -W 2") {
        assert_eq!(ran.status, 18, "{ran:?}");
        assert!(
            ran.stdout.contains("not acknowledged (sent again"),
            "{ran:?}"
        );
    }
}

#[test]
fn a_proxy_is_seen_where_tcp_ends_nearer_than_the_echo() {
    let daemon = Daemon::start();
    let far = daemon.address();
    // A proxy whose server is 10 ms away.
    let proxy = serve(move |near, _| {
        let far = TcpStream::connect(far).unwrap();
        far.set_nodelay(true).unwrap();
        near.set_nodelay(true).unwrap();
        let pass = |mut from: TcpStream, mut to: TcpStream| {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                std::thread::sleep(Duration::from_millis(5));
                if to.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
        };
        let (back, forth) = (far.try_clone().unwrap(), near.try_clone().unwrap());
        std::thread::spawn(move || pass(back, forth));
        pass(near, far);
    });
    let summary = |address: SocketAddr| {
        ping(&["-c", "10", "-i", "20ms", "--json", &address.to_string()]).json()
    };
    let (through, direct) = (summary(proxy), summary(far));
    assert_eq!(through["hops"]["proxy"], true, "{through}");
    assert_eq!(direct["hops"]["proxy"], false, "{direct}");
}

#[test]
fn the_summary_has_what_was_promised_and_is_as_it_is_described() {
    let daemon = Daemon::start();
    let address = daemon.address().to_string();
    let ran = ping(&["-c", "400", "--rate", "2k", "--json", &address]);
    assert_eq!(ran.status, 0, "{ran:?}");
    let summary = ran.json();
    described(&summary);
    assert_eq!(summary["target"], address.as_str());
    assert_eq!(summary["address"], address.as_str());
    assert_eq!(
        (&summary["sent"], &summary["received"]),
        (&400.into(), &400.into())
    );
    assert_eq!(
        (&summary["missing"], &summary["wrong"]),
        (&0.into(), &0.into())
    );
    assert!(summary["connect_us"].as_f64() > Some(0.0), "{summary}");
    for family in ["rtt_us", "wait_us"] {
        let figures = &summary[family];
        let order: Vec<f64> = ["min", "p50", "p90", "p95", "p99", "max"]
            .map(|name| figures[name].as_f64().unwrap())
            .to_vec();
        assert!(order.is_sorted(), "{figures}");
        // 400 echoes do not carry it.
        assert!(figures.get("p99.9").is_none(), "{figures}");
    }
    assert!(
        summary["variation_us"]["smoothed"].as_f64() > Some(0.0),
        "{summary}"
    );
    // Not taken from this host: what the kernel itself measured.
    let wire = summary["kernel"]["wire_us"]["p50"].as_f64().unwrap();
    assert!(
        wire > 0.0 && wire < summary["rtt_us"]["p50"].as_f64().unwrap(),
        "{summary}"
    );
    assert!(
        summary["kernel"]["min_rtt_us"].as_f64().is_some(),
        "{summary}"
    );
    // An array for several targets, and the status of the first that is not fine.
    let several = ping(&[
        "-c",
        "2",
        "-i",
        "10ms",
        "--json",
        &address,
        "no-such-host.invalid",
    ]);
    assert_eq!(several.status, 10, "{several:?}");
    described(&several.json());
    assert_eq!(several.json()[0]["class"], "ok");
    assert_eq!(several.json()[1]["class"], "name");
}

#[test]
fn thresholds_decide_and_an_unknown_figure_is_no_pass() {
    let daemon = Daemon::start();
    let address = daemon.address().to_string();
    let with = |expression: &str| {
        ping(&[
            "-c",
            "6",
            "-i",
            "5ms",
            "--fail-if",
            expression,
            "--json",
            &address,
        ])
    };
    for (expression, status) in [
        ("max>10s", 0),
        ("max>1us", 1),
        ("p99>10s", 1),
        ("missing>0", 0),
        ("sent-again>1000", 0),
    ] {
        let ran = with(expression);
        assert_eq!(ran.status, status, "{expression}: {ran:?}");
        described(&ran.json());
    }
    let ran = with("p99>10s");
    assert!(
        ran.verdict()
            .contains("p99 needs 299 echoes and there are 6"),
        "{ran:?}"
    );
    assert_eq!(with("p98>1ms").status, 2);
}

#[test]
fn what_makes_no_sense_is_a_matter_of_usage() {
    for arguments in [
        &["host:0"][..],
        &["*"],
        &["unix:relative"],
        &["-c", "0", "localhost"],
        &["--svg", "/tmp/x", "localhost", "127.0.0.1"],
        &["--no-such-option", "localhost"],
        &[],
    ] {
        let ran = ping(arguments);
        assert_eq!(ran.status, 2, "{arguments:?}: {ran:?}");
        assert!(!ran.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_million_bytes_in_bulk_are_verified_each_way() {
    let daemon = Daemon::start();
    let address = daemon.address().to_string();
    let ran = ping(&[
        "--bulk",
        "-c",
        "256",
        "--connections",
        "2",
        "--json",
        &address,
    ]);
    assert_eq!(ran.status, 0, "{ran:?}");
    let summary = ran.json();
    described(&summary);
    let through = &summary["throughput"];
    assert_eq!(through["sent_bytes"], 256 * 64 * 1024);
    assert_eq!(through["received_bytes"], 256 * 64 * 1024);
    assert!(
        through["received_bytes_per_second"].as_f64() > Some(1e6),
        "{summary}"
    );
    // The deadline ends it too, in good order.
    let ran = ping(&["--bulk", "-w", "0.3", "--json", &address]);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert_eq!(ran.json()["missing"], 0);
}

#[test]
fn a_unix_socket_and_both_families_are_talked_to() {
    let folder = Folder::new();
    let path = format!("unix:{}", folder.path("echo.sock").display());
    let daemon = Plan::new()
        .argument("--listen")
        .argument(&path)
        .argument("--listen")
        .argument("[::1]:0")
        .start();
    for target in &daemon.listen {
        let ran = ping(&["-c", "3", "-i", "5ms", "--json", target]);
        assert_eq!(ran.status, 0, "{target}: {ran:?}");
        described(&ran.json());
        assert_eq!(ran.json()["address"], target.as_str());
    }
    let port = daemon.address().port();
    let ran = ping(&[
        "-c",
        "1",
        "-4",
        "-I",
        "127.0.0.9",
        "--json",
        &format!("localhost:{port}"),
    ]);
    assert_eq!(
        ran.json()["address"],
        format!("127.0.0.1:{port}"),
        "{ran:?}"
    );
    let ran = ping(&["-c", "1", "-I", "192.0.2.1", &format!("127.0.0.1:{port}")]);
    assert_eq!(ran.status, 13, "{ran:?}");
}

#[test]
fn files_and_the_comparison_of_two_summaries() {
    let daemon = Daemon::start();
    let address = daemon.address().to_string();
    let folder = Folder::new();
    let (svg, hdr) = (folder.path("a.svg"), folder.path("a.hdr"));
    let ran = ping(&[
        "-c",
        "300",
        "--rate",
        "2k",
        "--json",
        "--svg",
        svg.to_str().unwrap(),
        "--hdr",
        hdr.to_str().unwrap(),
        &address,
    ]);
    assert_eq!(ran.status, 0, "{ran:?}");
    let drawn = std::fs::read_to_string(svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("round trips by percentile"));
    assert!(drawn.contains(&address) && drawn.matches("<circle").count() >= 4);
    let text = std::fs::read_to_string(hdr).unwrap();
    assert!(text.contains("Total count    =          300"), "{text}");
    let summary = folder.write("a.json", &ran.stdout);
    let diff = |one: &str, other: &str| {
        let mut command = Command::new(program());
        command
            .args(["diff", one, other])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        finished(command.spawn().unwrap())
    };
    let path = summary.to_str().unwrap();
    let same = diff(path, path);
    assert_eq!(same.status, 0, "{same:?}");
    let row = same
        .stdout
        .lines()
        .find(|line| line.starts_with("rtt p50"))
        .unwrap();
    assert!(row.ends_with("+0.0 %"), "{row}");
    let other = folder.write("other.json", "{\"some\": \"thing\"}");
    let refused = diff(path, other.to_str().unwrap());
    assert_eq!(refused.status, 2, "{refused:?}");
    assert!(refused.stderr.contains("no summary"), "{refused:?}");
}

#[test]
fn lines_of_values_have_as_many_as_their_heading() {
    let daemon = Daemon::start();
    let ran = ping(&[
        "-c",
        "5",
        "-i",
        "5ms",
        "--csv",
        &daemon.address().to_string(),
    ]);
    let mut lines = ran.stdout.lines();
    let heading: Vec<_> = lines.next().unwrap().split(',').collect();
    let rtt = heading.iter().position(|name| *name == "rtt_us").unwrap();
    let event = heading.iter().position(|name| *name == "event").unwrap();
    let mut echoes = 0;
    for line in lines {
        let values: Vec<_> = line.split(',').collect();
        assert_eq!(values.len(), heading.len(), "{line}");
        if values[event] == "echo" {
            echoes += 1;
            assert!(values[rtt].parse::<f64>().unwrap() > 0.0, "{line}");
        }
    }
    assert_eq!(echoes, 5, "{ran:?}");
}

#[test]
fn signals_ask_for_an_interim_summary_and_for_the_end() {
    let daemon = Daemon::start();
    for (interim, end) in [(Signal::USR1, Signal::INT), (Signal::QUIT, Signal::TERM)] {
        let mut child = command(&["-i", "10ms", "--json-lines", &daemon.address().to_string()])
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let stdout = child.stdout.take().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(stdout)) {
                let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
                let _ = sender.send(line);
            }
        });
        let next = |name: &str| loop {
            let line = receiver.recv_timeout(SOON).unwrap();
            if line["event"] == name {
                break line;
            }
        };
        next("echo");
        kill_process(pid, interim).unwrap();
        assert!(next("summary")["sent"].as_u64() > Some(0));
        next("echo");
        kill_process(pid, end).unwrap();
        let last = next("summary");
        assert_eq!(last["class"], "ok", "{last}");
        assert_eq!(last["sent"], last["received"], "{last}");
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_terminal_has_a_live_line_and_colours_and_nothing_else_has() {
    let daemon = Daemon::start();
    let address = daemon.address().to_string();
    let plain = ping(&["-c", "8", "-i", "5ms", &address]);
    assert!(!plain.stdout.contains('\x1b'), "{plain:?}");
    if !has("script") || !has_terminals() {
        return;
    }
    let on_a_terminal = |variables: &str| {
        let line = format!("{variables} {} ping -c 8 -i 50ms {address}", program());
        let mut command = Command::new("script");
        command
            .args(["-qec", &line, "/dev/null"])
            .env("TERM", "xterm")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let ran = finished(command.spawn().unwrap());
        assert_eq!(ran.status, 0, "{ran:?}");
        ran.stdout
    };
    let coloured = on_a_terminal("NO_COLOR=");
    assert!(
        coloured.contains("\x1b[32m") && coloured.contains("\r\x1b[K"),
        "{coloured:?}"
    );
    let without = on_a_terminal("NO_COLOR=1");
    assert!(
        !without.contains("\x1b[3") && without.contains("\r\x1b[K"),
        "{without:?}"
    );
    let dumb = on_a_terminal("TERM=dumb");
    assert!(!dumb.contains('\x1b'), "{dumb:?}");
}

#[test]
fn an_output_that_is_closed_or_full_is_no_reason_to_panic() {
    let daemon = Daemon::start();
    let address = daemon.address().to_string();
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut command_ = command(&["-c", "2", "-i", "5ms", &address]);
    let ran = finished(command_.stdout(full).spawn().unwrap());
    assert_eq!(ran.status, 71, "{ran:?}");
    assert!(ran.stderr.contains("cannot be written"), "{ran:?}");
    let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(reader);
    let mut command_ = command(&["-i", "5ms", &address]);
    command_.stdout(std::os::fd::OwnedFd::from(writer));
    let ran = finished(command_.spawn().unwrap());
    assert!(ran.stderr.is_empty(), "{ran:?}");
}

#[test]
fn the_same_on_many_connections_is_said_a_few_times_and_counted() {
    let server = serve(|stream, number| {
        if number < 40 {
            echo_some(&stream, 64);
            stream.shutdown(Shutdown::Write).unwrap();
            swallow(&stream);
        } else {
            echo(stream, |_, _| {});
        }
    });
    let arguments = [
        "-i",
        "20ms",
        "--connections",
        "40",
        "-c",
        "160",
        "-q",
        &server.to_string(),
    ];
    let ran = ping(&arguments);
    assert_eq!(ran.status, 15, "{ran:?}");
    let closed = ran
        .stdout
        .lines()
        .filter(|line| line.ends_with("; one echo is missing"))
        .count();
    // In three seconds or so.
    assert!((3..=15).contains(&closed), "{ran:?}");
    let more: u64 = ran
        .stdout
        .lines()
        .filter_map(|line| {
            line.strip_prefix("closed (")?
                .strip_suffix(" more)")?
                .parse::<u64>()
                .ok()
        })
        .sum();
    assert_eq!(closed as u64 + more, 40, "{ran:?}");
}

#[test]
fn a_rate_is_held_over_many_connections() {
    let daemon = Daemon::start();
    let address = daemon.address().to_string();
    let arguments = [
        "--rate",
        "5k",
        "--connections",
        "20",
        "-c",
        "5000",
        "--json",
        &address,
    ];
    // A busy machine may hold up the last message, but not each time.
    let mut rates = Vec::new();
    while !rates.iter().any(|rate| (4900.0..5100.0).contains(rate)) {
        assert!(rates.len() < 10, "{rates:?}");
        let summary = ping(&arguments).json();
        assert_eq!(summary["received"], 5000, "{summary}");
        assert_eq!(summary["wrong"], 0);
        assert!(
            summary["worst_connection"]["number"].as_u64() < Some(20),
            "{summary}"
        );
        rates.push(summary["schedule"]["sent_per_second"].as_f64().unwrap());
    }
}

#[test]
fn the_port_of_a_daemon_without_a_configuration_is_offered() {
    // Only where it is free, and nothing has the port of the service.
    let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    if !free(9999) || TcpStream::connect((Ipv4Addr::LOCALHOST, 7)).is_ok() {
        eprintln!("skipped: port 9999 or 7 of this host is in use");
        return;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 9999)).unwrap();
    let ran = ping(&["-c", "1", "127.0.0.1"]);
    assert_eq!(ran.status, 11, "{ran:?}");
    assert!(
        ran.verdict().contains("tcp-echo ping 127.0.0.1:9999"),
        "{ran:?}"
    );
    let ran = ping(&["-c", "1", "127.0.0.1:7"]);
    assert!(!ran.verdict().contains("9999"), "{ran:?}");
    drop(listener);
}
