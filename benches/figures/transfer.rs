//! Many bytes: how fast they come back, and that they do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::load::{Load, Talk};
use testkit::process::{memory, processor_time};
use testkit::report::{Report, median};
use testkit::{Daemon, Plan, SOON};

use crate::client::mebibytes;

const TOTAL: u64 = 256 << 20;

pub fn throughput(report: &mut Report) {
    const RUNS: usize = 7;
    let daemon = Daemon::start();
    for count in [1, 16] {
        let mut rates = Vec::new();
        let mut costs = Vec::new();
        for _ in 0..RUNS {
            let mut load =
                Load::connect(daemon.address(), count, Talk::bytes(TOTAL / count as u64));
            let (began, before) = (Instant::now(), processor_time(daemon.pid()));
            if let Err(text) = load.finish(SOON) {
                return report.broken(&text);
            }
            rates.push(mebibytes(TOTAL) / began.elapsed().as_secs_f64());
            costs.push((processor_time(daemon.pid()) - before) as f64 / mebibytes(TOTAL));
        }
        let best = rates.iter().copied().fold(0.0, f64::max);
        let (middle, cost) = (median(rates), median(costs));
        report.figure(
            &format!("256 MiB each way, {count} connection(s)"),
            &format!("best {best:.0} MiB/s of {RUNS}, median {middle:.0}; daemon {cost:.0} us/MiB"),
            ">= 500 MiB/s",
            // The best: others on the machine only make it worse.
            best >= 500.0,
        );
    }
}

pub fn writes_first(report: &mut Report) {
    let daemon = Daemon::start();
    // Its first connection allocates what all of them share.
    Load::connect(daemon.address(), 1, Talk::bytes(1 << 20))
        .finish(SOON)
        .unwrap();
    let before = memory(daemon.pid());
    let mut load = Load::connect(daemon.address(), 1, Talk::stall(64 << 20));
    load.settle(Duration::from_millis(300));
    let stuck = load.clients[0].sent;
    let grown = memory(daemon.pid()) - before;
    load.read_all();
    load.set_all(Talk::bytes(64 << 20));
    let outcome = load.finish(SOON);
    report.fact(
        "64 MiB, writes until it cannot",
        &format!("{:.1} MiB before it had to read", mebibytes(stuck)),
    );
    let exact = outcome.is_ok();
    report.check("writes first", outcome);
    report.figure("then reads on", "every byte", "exact", exact);
    report.figure(
        "memory of the daemon meanwhile",
        &format!("+{} KiB", grown / 1024),
        "<= 128 KiB",
        grown <= 128 * 1024,
    );
}

pub fn reload(report: &mut Report) {
    const SPAN: Duration = Duration::from_secs(3);
    let daemon = Plan::new()
        .config("[limits]\nidle-timeout = \"60s\"\n")
        .start();
    let mut load = Load::connect(daemon.address(), 16, Talk::FLOOD);
    let over = AtomicBool::new(false);
    let (sent, answered) = std::thread::scope(|scope| {
        // The manager reads its socket, or the daemon would have to say everything again.
        let manager = scope.spawn(|| {
            let mut answered = 0;
            while !over.load(Ordering::Relaxed) {
                let ready = daemon.notified_within("READY=1", Duration::from_millis(200));
                answered += u32::from(ready.is_some());
            }
            answered
        });
        let (began, mut sent) = (Instant::now(), 0);
        load.run(SOON, |_| {
            if began.elapsed() >= Duration::from_millis(10) * sent {
                daemon.signal(Signal::HUP);
                sent += 1;
            }
            began.elapsed() >= SPAN
        });
        over.store(true, Ordering::Relaxed);
        (sent, manager.join().unwrap())
    });
    let moved = load.moved;
    load.read_all();
    let outcome = load.finish(SOON);
    let intact = outcome.is_ok();
    report.check("reload", outcome);
    report.figure(
        "HUP under load, 16 flooding clients",
        &format!(
            "{sent} signals, {answered} reloads (signals that come together are one), \
             {:.0} MiB echoed",
            mebibytes(moved / 2)
        ),
        "nothing lost",
        intact,
    );
}
