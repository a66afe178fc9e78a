//! System calls for each message and for each connection, as strace(1) counts them.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::client::ping;
use crate::daemon::{Daemon, SOON, eventually, has};
use crate::load::{Load, Talk};
use crate::process::traced;
use crate::report::Report;

pub fn calls(report: &mut Report) {
    if !has("strace") {
        return report.note("calls: strace is not installed");
    }
    for clients in [1, 64] {
        // strace makes each of them some hundred microseconds long.
        let messages = 32_000 / (clients as u64 + 63);
        let daemon = Daemon::start();
        let mut load = Load::connect(daemon.address(), clients, Talk::messages(64, 1));
        report.check("calls", load.finish(SOON));
        let all = messages * clients as u64;
        let Some(calls) = count(&daemon, || {
            load.tell(Talk::messages(64, 1 + messages));
            report.check("calls", load.finish(SOON));
        }) else {
            return report.note("calls: strace cannot attach");
        };
        let of = |name: &str| calls.get(name).copied().unwrap_or_default();
        let data = of("recvfrom") + of("sendto") + of("read") + of("write");
        let met = data as f64 / all as f64 <= 2.01;
        report.figure(
            &format!("a message, {clients} connection(s) in ping-pong"),
            &tell(&calls, all),
            "one recv, one send",
            met,
        );
    }
    let daemon = Daemon::start();
    report.check("calls", ping(&mut daemon.connect(), 0).map(drop));
    let descriptors = daemon.descriptors();
    let connections = 500;
    let calls = count(&daemon, || {
        for number in 0..connections {
            report.check("calls", ping(&mut daemon.connect(), number).map(drop));
        }
        eventually(SOON, "descriptors are left open", || {
            (daemon.descriptors() <= descriptors).then_some(())
        });
    });
    if let Some(calls) = calls {
        report.fact("a connection with one message", &tell(&calls, connections));
    }
}

/// Counts the daemon's calls meanwhile; `None`: it may not be traced.
fn count(daemon: &Daemon, meanwhile: impl FnOnce()) -> Option<BTreeMap<String, u64>> {
    let table = daemon.folder.path("calls");
    let mut strace = Command::new("strace")
        .args([
            "-q",
            "-f",
            "-c",
            "-U",
            "name,calls",
            "-p",
            &daemon.pid().to_string(),
            "-o",
        ])
        .arg(&table)
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let attached = eventually(SOON, "strace does nothing", || {
        let gone = strace.try_wait().unwrap().is_some();
        (gone || traced(daemon)).then_some(!gone)
    });
    if attached {
        meanwhile();
        let _ = kill_process(Pid::from_child(&strace), Signal::INT);
    }
    let _ = strace.wait();
    let text = std::fs::read_to_string(table).ok()?;
    let calls = text.lines().filter_map(|line| {
        let (name, calls) = line.trim().split_once(' ')?;
        Some((name.to_owned(), calls.trim().parse().ok()?))
    });
    attached.then(|| calls.filter(|(name, _)| name != "total").collect())
}

/// The calls for each of so many, the most frequent first; rare ones are left out.
fn tell(calls: &BTreeMap<String, u64>, count: u64) -> String {
    let mut calls: Vec<_> = calls
        .iter()
        .map(|(name, calls)| (*calls as f64 / count as f64, name))
        .filter(|(each, _)| *each >= 0.005)
        .collect();
    calls.sort_by(|one, other| other.0.total_cmp(&one.0));
    let words: Vec<String> = calls
        .iter()
        .map(|(each, name)| format!("{name} {each:.2}"))
        .collect();
    words.join(", ")
}
