//! Many at once, and more than there is room for.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::load::{Client, Load, Talk};
use testkit::report::{Report, median, ms, percentile};
use testkit::{Daemon, Plan, SOON, eventually};

use crate::client::ping;

pub fn crowd(report: &mut Report) {
    all_echoing(report);
    connecting_at_once(report);
}

fn all_echoing(report: &mut Report) {
    const COUNT: usize = 10_000;
    let daemon = Daemon::start();
    let began = Instant::now();
    let mut load = Load::connect(daemon.address(), COUNT, Talk::SILENCE);
    let connected = began.elapsed();
    report.check("connected", load.finish(SOON));
    let mut spans = Vec::new();
    for round in 1..=3 {
        let start = Instant::now();
        load.set_all(Talk::bytes(64 * round));
        report.check("10 000 echoing", load.finish(SOON));
        spans.push(start.elapsed());
    }
    let took = median(spans.clone());
    report.figure(
        &format!("{COUNT} connections, a message each"),
        &format!(
            "connected in {}, all echoed in {} (median of 3; first {})",
            ms(connected),
            ms(took),
            ms(spans[0])
        ),
        "<= 1 s",
        took <= Duration::from_secs(1),
    );
}

fn connecting_at_once(report: &mut Report) {
    const COUNT: usize = 5_000;
    let daemon = Daemon::start();
    let mut load = Load::new();
    let began = Instant::now();
    for _ in 0..COUNT {
        load.begin(daemon.address(), Talk::messages(64, 1));
    }
    let begun = began.elapsed();
    let outcome = load.finish(Duration::from_secs(10));
    let mut spans: Vec<Duration> = load
        .clients
        .iter()
        .filter_map(|client| client.done)
        .map(|done| done - began)
        .collect();
    let served = spans.len();
    // A handshake whose SYN was dropped comes again after a second.
    let slow = spans.iter().filter(|span| span.as_millis() >= 900).count();
    let last = percentile(&mut spans, 100);
    let intact = load.no_wrong_byte();
    report.check("connecting at once", intact);
    report.figure(
        &format!("{COUNT} connects at once"),
        &format!(
            "begun in {}, {served} served, the last after {}; {slow} handshakes were repeated",
            ms(begun),
            ms(last)
        ),
        "none refused or timed out",
        outcome.is_ok(),
    );
}

pub fn descriptors(report: &mut Report) {
    const COUNT: usize = 200;
    let started = Instant::now();
    let mut daemon = Plan::new().under(&["prlimit", "--nofile=64:64"]).start();
    let mut established = daemon.connect();
    established.set_nodelay(true).unwrap();
    let mut load = Load::connect(daemon.address(), COUNT, Talk::messages(64, 1));
    load.settle(Duration::from_millis(300));
    let served = |load: &Load| load.count(|client| client.done.is_some());
    let first = served(&load);
    let mut spans: Vec<Duration> = Vec::new();
    for number in 0..2000 {
        match ping(&mut established, number) {
            Ok(span) => spans.push(span),
            Err(text) => return report.broken(&text),
        }
    }
    report.figure(
        "64 descriptors, 200 clients",
        &format!(
            "{first} served, {} wait; an established client: p50 {} p99 {}",
            COUNT - first,
            ms(percentile(&mut spans, 50)),
            ms(percentile(&mut spans, 99))
        ),
        "unaffected",
        first < COUNT && percentile(&mut spans, 99) < Duration::from_millis(5),
    );
    let mut spans = Vec::new();
    for _ in 0..20 {
        let before = served(&load);
        let leaver = load.clients.iter().position(is_served).unwrap();
        let began = Instant::now();
        load.shut(leaver);
        if !load.run(Duration::from_secs(5), |load| served(load) > before) {
            return report.broken("a freed descriptor serves no caller");
        }
        spans.push(began.elapsed());
    }
    report.figure(
        "a freed descriptor serves the next",
        &format!(
            "after {}, at most {} in {} times",
            ms(percentile(&mut spans, 50)),
            ms(percentile(&mut spans, 100)),
            spans.len()
        ),
        "<= 100 ms",
        percentile(&mut spans, 100) <= Duration::from_millis(100),
    );
    report.check("clients", load.no_wrong_byte());
    daemon.reload("");
    let began = Instant::now();
    daemon.signal(Signal::TERM);
    load.run(SOON, |load| load.count(|client| client.end.is_none()) == 0);
    drop(established);
    let status = eventually(SOON, "TERM did not end it", || {
        (!daemon.is_running()).then(|| daemon.exited(SOON))
    });
    let unserved = load.count(|client| client.received < client.talk.goal);
    report.figure(
        "HUP and TERM meanwhile",
        &format!(
            "reloaded; ended after {} with {status}; {unserved} of those that waited were not served",
            ms(began.elapsed())
        ),
        "exit 0",
        status.success(),
    );
    let log = daemon.log();
    let events = log.lines().filter(|line| line.contains("paused")).count();
    let seconds = started.elapsed().as_secs_f64();
    report.figure(
        "events that report it",
        &format!("{events} in {seconds:.1} s"),
        "<= 1 a second",
        events >= 1 && events as f64 <= seconds + 1.0,
    );
}

fn is_served(client: &Client) -> bool {
    client.done.is_some() && client.end.is_none()
}
