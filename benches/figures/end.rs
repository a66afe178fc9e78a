//! How it ends: in good order, at the deadline, at once, and by violence.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::load::{End, Load, Talk};
use testkit::process::unacknowledged;
use testkit::report::{Report, median, ms};
use testkit::{Daemon, Plan, SOON};

use crate::client::{mebibytes, ping, stalled};

pub fn stop(report: &mut Report) {
    in_flight(report);
    idle_clients(report);
    never_reading(report);
    twice(report);
}

/// Half of the clients flood, half have sent all they can and read nothing until later.
fn in_flight(report: &mut Report) {
    let mut daemon = Daemon::start();
    let mut load = Load::connect(daemon.address(), 100, Talk::FLOOD);
    for key in 50..100 {
        load.set_talk(key, Talk::stall(u64::MAX));
    }
    let began = Instant::now();
    load.run(SOON, |_| began.elapsed() > Duration::from_millis(700));
    // No client sends from here on.
    let waiting = unacknowledged();
    let acknowledged: Vec<u64> = load
        .clients
        .iter()
        .map(|client| {
            let unsent = client.ports().and_then(|ports| waiting.get(&ports));
            client.sent - unsent.copied().unwrap_or(client.sent)
        })
        .collect();
    let under_way: u64 = load
        .clients
        .iter()
        .map(|client| client.sent - client.received)
        .sum();
    daemon.signal(Signal::TERM);
    let began = Instant::now();
    for key in 0..50 {
        load.set_talk(key, Talk::bytes(load.clients[key].sent));
    }
    for key in 50..100 {
        load.set_talk(key, Talk::stall(load.clients[key].sent));
    }
    load.run(SOON, |_| began.elapsed() > Duration::from_millis(200));
    load.read_all();
    load.end(SOON);
    let took = began.elapsed();
    let status = daemon.exited(SOON);
    let mut lost = 0;
    for (client, acknowledged) in load.clients.iter().zip(acknowledged) {
        lost += acknowledged.saturating_sub(client.received);
    }
    let resets = load.count(|client| client.end != Some(End::Fin));
    let back: u64 = load.clients.iter().map(|client| client.received).sum();
    let sent: u64 = load.clients.iter().map(|client| client.sent).sum();
    let later = sent - back - lost;
    let measured = format!(
        "{:.1} MiB under way, {lost} bytes lost, {resets} resets, {later} unacknowledged \
         bytes not taken; all ended after {}, {status}",
        mebibytes(under_way),
        ms(took)
    );
    let met = lost == 0 && resets == 0 && status.success();
    report.figure(
        "100 clients, data in flight",
        &measured,
        "0 lost, 0 resets",
        met,
    );
    report.check("stop", load.no_wrong_byte());
    if lost > 0 {
        report.broken(&format!("{lost} acknowledged bytes were lost at a stop"));
    }
}

fn idle_clients(report: &mut Report) {
    let mut daemon = Daemon::start();
    let mut load = Load::connect(daemon.address(), 100, Talk::messages(64, 1));
    report.check("stop", load.finish(SOON));
    let began = Instant::now();
    daemon.signal(Signal::TERM);
    load.end(SOON);
    let gone = began.elapsed();
    drop(load);
    let status = daemon.exited(SOON);
    report.figure(
        "100 idle clients",
        &format!(
            "gone after {}, exit after {}, {status}",
            ms(gone),
            ms(began.elapsed())
        ),
        "<= 500 ms",
        began.elapsed() <= Duration::from_millis(500) && status.success(),
    );
}

fn never_reading(report: &mut Report) {
    let mut daemon = Plan::new()
        .config("[limits]\nstop-timeout = \"1s\"\n")
        .start();
    let load = stalled(daemon.address(), 10);
    let began = Instant::now();
    let status = daemon.stop();
    let took = began.elapsed();
    drop(load);
    report.figure(
        "never reading, stop-timeout 1 s",
        &format!("exit after {}, {status}", ms(took)),
        "<= 1500 ms",
        took <= Duration::from_millis(1500),
    );
}

fn twice(report: &mut Report) {
    let mut daemon = Daemon::start();
    let load = stalled(daemon.address(), 10);
    daemon.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    let patient = daemon.is_running();
    let began = Instant::now();
    let status = daemon.stop();
    let took = began.elapsed();
    drop(load);
    report.figure(
        "a second TERM",
        &format!("exit after {}, {status}", ms(took)),
        "<= 500 ms",
        patient && took <= Duration::from_millis(500),
    );
}

pub fn kill(report: &mut Report) {
    const RUNS: usize = 5;
    let mut daemon = Daemon::start();
    let address = daemon.address();
    let mut spans = Vec::new();
    for _ in 0..RUNS {
        let mut load = Load::connect(address, 100, Talk::messages(64, 1));
        report.check("before the kill", load.finish(SOON));
        daemon.signal(Signal::KILL);
        daemon.exited(SOON);
        let plan = Plan::bare()
            .argument("--listen")
            .argument(&address.to_string());
        let began = Instant::now();
        daemon = plan.unnotified().start();
        let first = loop {
            if let Ok(mut stream) = TcpStream::connect(address) {
                break ping(&mut stream, 0);
            }
            if began.elapsed() > SOON {
                return report.broken("it does not come back");
            }
            std::thread::sleep(Duration::from_micros(200));
        };
        spans.push(began.elapsed());
        report.check("after the kill", first.map(drop));
        drop(load);
    }
    let worst = spans.iter().copied().max().unwrap_or_default();
    report.figure(
        "kill -9, start, first echo",
        &format!(
            "median {}, at most {} in {RUNS} runs, over 100 old connections each",
            ms(median(spans)),
            ms(worst)
        ),
        "<= 200 ms",
        worst <= Duration::from_millis(200),
    );
}
