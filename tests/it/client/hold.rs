//! `tcp-echo probe --hold`: conversations that stay, and where each pause hangs.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use testkit::manager::Manager;
use testkit::{Daemon, Folder, program, run};

use super::probe::{changing, server};

/// Holds conversations while something is done; returns the exit status, the events and the summary.
fn hold(target: &str, arguments: &[&str], meanwhile: impl FnOnce()) -> (i32, Vec<Value>, Value) {
    let mut command = Command::new(program());
    command
        .args(["probe", target, "--json", "--hold"])
        .args(arguments);
    let output: Output = thread::scope(|scope| {
        let running = scope.spawn(|| run(&mut command));
        meanwhile();
        running.join().unwrap()
    });
    let text = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    let parse =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{text}\n{complaints}"));
    let mut events: Vec<Value> = text.lines().map(parse).collect();
    let summary = events
        .pop()
        .unwrap_or_else(|| panic!("nothing was said: {complaints}"));
    assert_eq!(summary["event"], "summary", "{text}");
    (output.status.code().unwrap(), events, summary)
}

/// Asserts that so many connections paused on this side and on no other, and that all came back.  Where
/// the machine is busy, the client may have seen fewer of them, and the server may have paused as well,
/// also at the end.
#[track_caller]
pub fn paused(side: &str, count: u64, events: &[Value], summary: &Value) {
    let is_busy = is_busy(summary);
    let pauses = summary["pauses"].as_object().unwrap();
    let of = |side: &str| pauses.get(side).map_or(0, |count| count.as_u64().unwrap());
    let all: u64 = pauses.keys().map(|side| of(side)).sum();
    let is_right = match is_busy {
        false => (all, of(side)) == (count, count),
        true if side == "server-or-proxy" => all == of(side) && all >= count.min(1),
        true => all == of(side) + of("server-or-proxy") && of(side) >= count.min(1),
    };
    let back = events.iter().filter(|event| event["event"] == "back");
    let back: u64 = back
        .map(|event| event["connections"].as_u64().unwrap())
        .sum();
    let are_back = back == all || is_busy && back < all;
    assert!(is_right && are_back, "{events:#?} {summary}");
}

/// Whether the client itself was held up.
fn is_busy(summary: &Value) -> bool {
    summary["late_us"].as_u64().unwrap() >= 50_000
}

#[test]
fn without_a_pause_there_is_none() {
    let daemon = Daemon::start();
    let target = daemon.address().to_string();
    let (status, events, summary) = hold(&target, &["3s", "--connections", "50"], || ());
    assert_eq!(status, 0, "{events:#?} {summary}");
    paused("none", 0, &events, &summary);
    // Ten a second each, for three seconds.
    let echoes = summary["echoes"].as_u64().unwrap();
    let least = if is_busy(&summary) { 1 } else { 1200 };
    assert!((least..=1500).contains(&echoes), "{summary}");
}

#[test]
fn a_pause_of_the_server_is_attributed_to_it_and_recorded() {
    let daemon = Daemon::start();
    let folder = Folder::new();
    let record = folder.path("record");
    let arguments = [
        "4s",
        "--connections",
        "20",
        "--record",
        record.to_str().unwrap(),
    ];
    let (status, events, summary) = hold(&daemon.address().to_string(), &arguments, || {
        thread::sleep(Duration::from_millis(1500));
        kill_process(daemon.pid(), Signal::STOP).unwrap();
        thread::sleep(Duration::from_millis(600));
        kill_process(daemon.pid(), Signal::CONT).unwrap();
    });
    assert_eq!(status, 0, "{events:#?} {summary}");
    paused("server-or-proxy", 20, &events, &summary);
    let recorded = std::fs::read_to_string(record).unwrap();
    let lines: Vec<Value> = recorded
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let pauses = summary["pauses"].as_object().unwrap().values();
    let pauses: u64 = pauses.map(|count| count.as_u64().unwrap()).sum();
    let of = |event: &str| {
        let lines = lines.iter().filter(|line| line["event"] == event);
        lines.count() as u64
    };
    assert_eq!(of("pause"), pauses);
    assert!(of("back") == pauses || is_busy(&summary), "{lines:#?}");
    let acked = |reading: &Value| reading["bytes_acked"].as_u64().unwrap();
    let is_recorded = |pause: &Value| {
        let readings = pause["readings"].as_array().unwrap();
        readings.len() > 5 && acked(&readings[0]) < acked(readings.last().unwrap())
    };
    let mut pauses = lines.iter().filter(|line| line["event"] == "pause");
    assert!(pauses.any(is_recorded) || is_busy(&summary), "{lines:#?}");
}

#[test]
fn every_pause_of_restarts_and_kills_is_the_servers_and_no_byte_is_lost() {
    let mut manager = Manager::new();
    manager.start();
    let target = manager.address().to_string();
    let (status, events, summary) = hold(&target, &["12s", "--connections", "20"], || {
        manager.preserves(20);
        for round in 0..10 {
            thread::sleep(Duration::from_millis(300));
            match round % 2 {
                0 => manager.kill(),
                _ => manager.hand_over(),
            }
            thread::sleep(Duration::from_millis(350));
            manager.start();
        }
    });
    assert_eq!(status, 0, "{events:#?} {summary}");
    let pauses = summary["pauses"].as_object().unwrap();
    let sides: Vec<_> = pauses.keys().collect();
    assert_eq!(sides, ["server-or-proxy"], "{events:#?} {summary}");
    assert!(pauses["server-or-proxy"].as_u64() >= Some(20), "{summary}");
    assert_eq!(
        (&summary["ended"], &summary["wrong"]),
        (&json!(0), &json!(0))
    );
}

#[test]
fn a_receiver_that_does_not_read_is_named() {
    // A window of a few messages, and after some of them nothing is read for a while.
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.set_recv_buffer_size(1).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(8).unwrap();
    let listener = TcpListener::from(listener);
    let asleep = listener.local_addr().unwrap();
    let serve = |mut stream: TcpStream| {
        let mut buffer = [0; 64];
        for round in 1.. {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            stream.write_all(&buffer[..count])?;
            if round == 10 {
                thread::sleep(Duration::from_secs(7));
            }
        }
        Ok::<_, io::Error>(())
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    let (_, events, summary) = hold(&asleep.to_string(), &["11s"], || ());
    paused("receiver", 1, &events, &summary);
}

#[test]
fn what_ends_or_is_wrong_is_counted_and_made_anew() {
    let number = AtomicU32::new(0);
    let cuts = server(move |stream| {
        // The first is only tried out.
        let most = match number.fetch_add(1, Ordering::Relaxed) {
            1 => 64 * 5,
            _ => u64::MAX,
        };
        std::io::copy(&mut std::io::Read::take(&stream, most), &mut &stream).map(drop)
    });
    let (status, events, summary) = hold(&cuts.to_string(), &["4s", "--connections", "3"], || ());
    assert_eq!(status, 1, "{events:#?}");
    assert_eq!(summary["ended"], 1, "{events:#?}");
    let state = events
        .iter()
        .rfind(|event| event["event"] == "state")
        .unwrap();
    assert_eq!(state["talk"], 3, "{events:#?}");
    let changes = changing(|offset, mut bytes| {
        let at = 645_u64.checked_sub(offset);
        if let Some(byte) = at.and_then(|at| bytes.get_mut(at as usize)) {
            *byte ^= 1;
        }
        bytes
    });
    let (status, events, summary) = hold(&changes.to_string(), &["3s"], || ());
    assert_eq!(
        (status, summary["wrong"].as_u64() > Some(0)),
        (1, true),
        "{summary}"
    );
    let wrong = events
        .iter()
        .find(|event| event["event"] == "wrong")
        .unwrap();
    assert_eq!(wrong["text"], "1 bytes changed at 645", "{events:#?}");
}
