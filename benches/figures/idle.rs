//! What the daemon does when there is nothing to do: nothing.
//!
//! All cases are watched at the same time, each with a daemon of its own, while this process
//! sleeps too.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, prlimit};
use testkit::load::{Load, Talk};
use testkit::process::processor_time;
use testkit::report::{Report, median};
use testkit::{Daemon, Plan, SOON};

use crate::client::stalled;

/// For so many seconds.
const SPAN: usize = 5;

pub fn idle(report: &mut Report) {
    let cases: [(&str, Daemon, Option<Load>); 6] = [
        ("no connection", Daemon::start(), None),
        with("1000 idle connections", Daemon::start(), |daemon| {
            let mut load = Load::connect(daemon.address(), 1000, Talk::messages(64, 1));
            load.finish(SOON).unwrap();
            load
        }),
        with("100 stalled", Daemon::start(), |daemon| {
            stalled(daemon.address(), 100)
        }),
        with("100 half-closed and stalled", Daemon::start(), |daemon| {
            let load = stalled(daemon.address(), 100);
            (0..100).for_each(|key| load.shut(key));
            load
        }),
        with(
            "64 descriptors, 200 clients",
            Plan::new().under(&["prlimit", "--nofile=64:64"]).start(),
            |daemon| waiting(daemon.address(), 200),
        ),
        with("accept fails: EMFILE", Daemon::start(), |daemon| {
            let limit = Some(40);
            let limit = Rlimit {
                current: limit,
                maximum: limit,
            };
            prlimit(Some(daemon.pid()), Resource::Nofile, limit).unwrap();
            waiting(daemon.address(), 200)
        }),
    ];
    // The status goes to the manager at most once a second, and what is short is looked at less
    // and less often: the last of both is on its way.
    std::thread::sleep(Duration::from_millis(2500));
    let read = |(_, daemon, _): &(&str, Daemon, Option<Load>)| {
        (
            daemon.ticks(),
            processor_time(daemon.pid()),
            daemon.wakeups(),
        )
    };
    let mut seconds = vec![cases.iter().map(read).collect::<Vec<_>>()];
    for _ in 0..SPAN {
        std::thread::sleep(Duration::from_secs(1));
        seconds.push(cases.iter().map(read).collect());
    }
    for (index, case) in cases.into_iter().enumerate() {
        let (name, _daemon, load) = case;
        let (before, after) = (seconds[0][index], seconds[seconds.len() - 1][index]);
        let (ticks, wakeups) = (after.0 - before.0, after.2 - before.2);
        // What interrupts a process is charged to it: the middle one of the seconds is its own.
        let times = seconds.windows(2).map(|w| w[1][index].1 - w[0][index].1);
        let time = median(times.collect());
        let percent = time as f64 / 1e6 * 100.0;
        let measured = format!(
            "{percent:.3} % ({time} us a second; {ticks} ticks), {wakeups} wake-ups in {SPAN} s"
        );
        if name.contains("EMFILE") {
            // The limit may be raised from outside: it has to look now and then.
            report.figure(name, &measured, "0.0 %", percent < 0.05);
        } else {
            let met = ticks == 0 && wakeups == 0;
            report.figure(name, &measured, "0.0 %, 0 wake-ups", met);
        }
        if let Some(load) = load {
            report.check(name, load.no_wrong_byte());
        }
    }
}

fn with(
    name: &'static str,
    daemon: Daemon,
    clients: impl FnOnce(&Daemon) -> Load,
) -> (&'static str, Daemon, Option<Load>) {
    let load = clients(&daemon);
    (name, daemon, Some(load))
}

/// Clients that have sent a message and wait for it, most of them in the accept queue.
fn waiting(address: std::net::SocketAddr, count: usize) -> Load {
    let mut load = Load::connect(address, count, Talk::messages(64, 1));
    load.settle(Duration::from_millis(300));
    load
}
