//! Clients that come only to go.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::process::processor_time;
use testkit::report::{Report, ms};
use testkit::{Daemon, SOON};

use crate::client::{ping, reset, scan};

pub fn churn(report: &mut Report) {
    let daemon = Daemon::start();
    let descriptors = daemon.descriptors();
    visit(report, &daemon, "resets", 20_000, reset);
    visit(report, &daemon, "scans (connect, close)", 50_000, scan);
    before_accept(report, &daemon, 3_000);
    // Asked behind all of them, so the daemon has seen every one.
    let after = settled(&daemon, descriptors);
    report.figure(
        "descriptors before and after",
        &format!("{descriptors} and {after}"),
        "the same",
        descriptors == after,
    );
}

fn visit(
    report: &mut Report,
    daemon: &Daemon,
    name: &str,
    count: u64,
    visit: fn(u64, SocketAddr) -> io::Result<()>,
) {
    const BATCH: u64 = 5_000;
    let address = daemon.address();
    let (began, before) = (Instant::now(), processor_time(daemon.pid()));
    let mut failed = 0;
    let mut rates = Vec::new();
    for batch in 0..count / BATCH {
        let began = Instant::now();
        for number in 0..BATCH {
            failed += u64::from(visit(batch * BATCH + number, address).is_err());
        }
        // The queue is in order: when this one is served, all before it were.
        let last = ping(&mut daemon.connect(), count);
        report.check(name, last.map(drop));
        rates.push(BATCH as f64 / began.elapsed().as_secs_f64());
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    let cost = (processor_time(daemon.pid()) - before) as f64 / count as f64;
    let best = rates.into_iter().fold(0.0, f64::max);
    report.figure(
        &format!("{count} {name}"),
        &format!(
            "{rate:.0} a second, the best {BATCH} {best:.0}; {failed} failed; \
             daemon {cost:.1} us each"
        ),
        ">= 8000 a second",
        best >= 8000.0 && failed == 0,
    );
}

/// The daemon is held still, so that all of them are gone before it accepts the first.
fn before_accept(report: &mut Report, daemon: &Daemon, count: u64) {
    daemon.signal(Signal::STOP);
    let failed = (0..count).filter(|number| reset(*number, daemon.address()).is_err());
    let failed = failed.count();
    daemon.signal(Signal::CONT);
    let began = Instant::now();
    let last = ping(&mut daemon.connect(), count);
    report.check("resets before accept", last.map(drop));
    report.fact(
        &format!("{count} resets before accept"),
        &format!(
            "{failed} failed; the next client was served after {}",
            ms(began.elapsed())
        ),
    );
}

fn settled(daemon: &Daemon, expected: usize) -> usize {
    let began = Instant::now();
    loop {
        let count = daemon.descriptors();
        if count == expected || began.elapsed() > SOON {
            return count;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
