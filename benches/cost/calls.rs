//! System calls of the loop, as strace(1) counts them.
//!
//! A lone message costs three: the poll, a read and a write.  Where many send the poll is shared.
//! A connection costs eight: a poll, an accept and a look whether there is another caller, a
//! registration, two reads (the second finds the end), a write, a close.  One whose message comes after
//! the accept costs a poll and a read more, and one whose end comes alone another poll; strace(1) slows
//! the daemon down, so that this is seldom seen here.  None for an option, which are all
//! inherited, and none to deregister what the close deregisters.

use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use testkit::report::Report;
use testkit::{Daemon, Plan, SOON, eventually, has};

use crate::{CONFIG, connected, plan, talk, visit};

pub fn calls(report: &mut Report) {
    if !has("strace") {
        return;
    }
    // What the clock causes comes on top: some calls a second.
    for (clients, messages, bound) in [(1, 4000, 3.05), (64, 250, 2.05)] {
        let daemon = plan().start();
        let mut load = connected(&daemon, clients);
        let Some(calls) = count(&daemon, &[], || talk(&mut load, messages)) else {
            return report.note("strace cannot attach");
        };
        let (all, text) = report_of(&calls, messages * clients as u64);
        report.bound(
            &format!("a message, {clients} connection(s) in ping-pong"),
            &text,
            &format!("{bound:.2}"),
            all <= bound,
        );
    }
    // A loop that waits for another one would make this call.
    let daemon = Plan::new()
        .config(&format!("workers = 2\n{CONFIG}"))
        .start();
    let mut load = connected(&daemon, 64);
    let futex = ["-f", "-e", "trace=futex"];
    let Some(calls) = count(&daemon, &futex, || talk(&mut load, 250)) else {
        return report.note("strace cannot attach");
    };
    let (all, text) = report_of(&calls, 250 * 64);
    report.bound(
        "  waits for a lock, two workers",
        &text,
        "0.01",
        all <= 0.01,
    );
    let daemon = plan().start();
    visit(&daemon, 1);
    let connections = 1000;
    let Some(calls) = count(&daemon, &[], || visit(&daemon, connections)) else {
        return report.note("strace cannot attach");
    };
    let (all, text) = report_of(&calls, connections);
    report.bound("a connection with one message", &text, "9", all <= 9.0);
    let options = calls.get("setsockopt").copied().unwrap_or_default();
    report.bound(
        "  options set on connections",
        &options.to_string(),
        "0",
        options == 0,
    );
    let (registrations, text) = report_of(
        &calls
            .into_iter()
            .filter(|(name, _)| name == "epoll_ctl")
            .collect(),
        connections,
    );
    report.bound(
        "  registered, never deregistered",
        &text,
        "1",
        registrations <= 1.0,
    );
}

/// Counts the calls of the loop's thread meanwhile, or with the option `-f` those of all threads;
/// `None`: it may not be traced.
fn count(
    daemon: &Daemon,
    options: &[&str],
    meanwhile: impl FnOnce(),
) -> Option<BTreeMap<String, u64>> {
    let table = daemon.folder.path("calls");
    let pid = daemon.pid().to_string();
    let mut strace = Command::new("strace")
        .args(options)
        .args(["-q", "-c", "-U", "name,calls", "-p", &pid, "-o"])
        .arg(&table)
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let attached = eventually(SOON, "strace does nothing", || {
        let gone = strace.try_wait().unwrap().is_some();
        (gone || is_traced(daemon, options)).then_some(!gone)
    });
    if attached {
        meanwhile();
        let _ = kill_process(Pid::from_child(&strace), Signal::INT);
    }
    let _ = strace.wait();
    let text = read_to_string(table).ok()?;
    let calls = text.lines().filter_map(|line| {
        let (name, calls) = line.trim().split_once(' ')?;
        Some((name.to_owned(), calls.trim().parse().ok()?))
    });
    attached.then(|| calls.filter(|(name, _)| name != "total").collect())
}

fn is_traced(daemon: &Daemon, options: &[&str]) -> bool {
    let pid = daemon.pid().to_string();
    let threads = read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut threads = threads.map(|entry| entry.unwrap());
    threads.all(|thread| {
        let status = read_to_string(thread.path().join("status")).unwrap();
        let is_traced = |line: &str| line.starts_with("TracerPid:") && !line.ends_with("\t0");
        let is_meant = options.contains(&"-f") || thread.file_name() == pid.as_str();
        !is_meant || status.lines().any(is_traced)
    })
}

/// The calls for each of so many, in hundredths: what happens once a second is lost in them.  And
/// all of it in words, the most frequent first, without the rare ones.
fn report_of(calls: &BTreeMap<String, u64>, count: u64) -> (f64, String) {
    let each = |calls: u64| (calls as f64 / count as f64 * 100.0).round() / 100.0;
    let mut words: Vec<_> = calls
        .iter()
        .map(|(name, calls)| (each(*calls), name))
        .filter(|(each, _)| *each > 0.0)
        .collect();
    words.sort_by(|one, other| other.0.total_cmp(&one.0));
    let words: Vec<String> = words
        .iter()
        .map(|(each, name)| format!("{name} {each:.2}"))
        .collect();
    let all = each(calls.values().sum());
    (all, format!("{all:.2}: {}", words.join(", ")))
}
