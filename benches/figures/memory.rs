//! What a connection costs in user space.

use std::time::Duration;

use testkit::load::{Load, Talk};
use testkit::process;
use testkit::report::Report;
use testkit::{Daemon, SOON, eventually};

use crate::client::stalled;

pub fn memory(report: &mut Report) {
    idle(report);
    idle_with_deadlines(report);
    stalling(report);
}

/// A daemon without preservation, as descriptors are counted.
fn alone(config: &str) -> Daemon {
    let config = format!("preserve-connections = false\n{config}");
    testkit::Plan::new().config(&config).start()
}

fn idle(report: &mut Report) {
    let daemon = alone("");
    crowd(report, &daemon, "idle connections");
}

/// With a deadline for each of them, which takes an entry in the timers.
fn idle_with_deadlines(report: &mut Report) {
    let daemon = alone("[limits]\nidle-timeout = \"1h\"\n");
    crowd(report, &daemon, "idle, with an idle time-out");
}

fn crowd(report: &mut Report, daemon: &Daemon, name: &str) {
    const COUNT: usize = 10_000;
    let (before, descriptors) = warm(daemon);
    let mut load = Load::connect(daemon.address(), COUNT, Talk::messages(64, 1));
    report.check(name, load.finish(SOON));
    let grown = process::memory(daemon.pid()) - before;
    let each = grown / i64::try_from(COUNT).unwrap();
    report.figure(
        &format!("{COUNT} {name}"),
        &format!("{each} bytes each ({} KiB)", grown / 1024),
        "<= 300 bytes",
        each <= 300,
    );
    drop(load);
    closed(report, daemon, before, descriptors);
}

fn stalling(report: &mut Report) {
    const COUNT: usize = 200;
    let daemon = alone("");
    let (before, descriptors) = warm(&daemon);
    let load = stalled(daemon.address(), COUNT);
    let grown = process::memory(daemon.pid()) - before;
    let each = grown / i64::try_from(COUNT).unwrap();
    report.figure(
        &format!("{COUNT} stalled connections"),
        &format!("{:.1} KiB each", each as f64 / 1024.0),
        "<= 128 KiB",
        each <= 128 * 1024,
    );
    std::thread::sleep(Duration::from_secs(2));
    let more = process::memory(daemon.pid()) - before - grown;
    report.figure(
        "growth in 2 s of stalling",
        &format!("{} KiB", more / 1024),
        "0",
        more <= 0,
    );
    all_back(report, load);
    closed(report, &daemon, before, descriptors);
    // What stays for the next wave is used again, or every wave of stalled clients would add to it; and
    // after a while without need it is given back.
    for _ in 0..3 {
        let load = stalled(daemon.address(), COUNT);
        all_back(report, load);
    }
    gone(&daemon, descriptors);
    std::thread::sleep(Duration::from_millis(2500));
    let rest = process::memory(daemon.pid()) - before;
    report.figure(
        "  2.5 s after three more such waves",
        &format!("{} KiB more than before", rest / 1024),
        "<= 512 KiB",
        rest <= 512 * 1024,
    );
}

fn all_back(report: &mut Report, mut load: Load) {
    load.read_all();
    report.check("stalled", load.finish(SOON));
}

/// The first connection allocates what all of them share.
fn warm(daemon: &Daemon) -> (i64, usize) {
    let descriptors = daemon.descriptors();
    let mut load = Load::connect(daemon.address(), 1, Talk::bytes(4 << 20));
    load.finish(SOON).unwrap();
    drop(load);
    gone(daemon, descriptors);
    (process::memory(daemon.pid()), descriptors)
}

fn closed(report: &mut Report, daemon: &Daemon, before: i64, descriptors: usize) {
    gone(daemon, descriptors);
    let rest = process::memory(daemon.pid()) - before;
    report.fact(
        "  after all are closed",
        &format!("{} KiB more than before", rest / 1024),
    );
}

/// Waits until every connection is closed.
fn gone(daemon: &Daemon, descriptors: usize) {
    eventually(SOON, "descriptors are left open", || {
        (daemon.descriptors() <= descriptors).then_some(())
    });
}
