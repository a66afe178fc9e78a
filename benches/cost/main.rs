//! What the daemon costs, counted: the same on every machine, so the bounds fail the run.
//!
//! `cargo bench --bench cost` takes a quarter of a minute; words behind `--` select: `calls`,
//! `instructions`.  Times differ from machine to machine and from minute to minute, and so their
//! bench ([`figures`], [`compare`]) only reports them.  A system call and an instruction are counted
//! one by one, and a change of the code that costs one more for each message is seen at once.
//!
//! - `calls`: the system calls of the loop for each message and each connection, by strace(1).
//! - `instructions`: the instructions of the loop in user space, by valgrind's callgrind.
//! - `atomics`: of these the atomic read-modify-writes, in all threads, with two workers.
//!
//! A connection that is accepted and has spoken in the same round costs a poll less, so its figures
//! differ by a tenth from run to run; those of a message do not.
//!
//! Both look at the loop's thread alone, with limits, time-outs and counters in use.  What depends
//! on time instead of messages is kept small or switched off, or a slow machine would seem to
//! cost more: a status goes out once a second, and the event of an ended connection is logged at most
//! so often a second.
//!
//! A missing tool is reported and skipped, unless `TCP_ECHO_REQUIRE_TOOLS` is set.
//!
//! [`figures`]: ../figures/main.rs
//! [`compare`]: ../compare/main.rs
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod calls;
mod instructions;

use std::process::ExitCode;

use testkit::load::{Load, Talk};
use testkit::report::Report;
use testkit::{Daemon, Plan, SOON, eventually, ping};

/// All that is reckoned for a connection is reckoned; see above for the rate.
const CONFIG: &str = r#"
[limits]
idle-timeout = "10min"
max-lifetime = "1h"
max-bytes = "1TiB"

[log]
level = "info"
connection-rate = 0
"#;

type Measure = fn(&mut Report);

const COSTS: &[(&str, Measure)] = &[
    ("calls", calls::calls),
    ("instructions", instructions::instructions),
    ("atomics", instructions::atomics),
];

fn main() -> ExitCode {
    // Cargo passes --bench to every benchmark, and nothing when it only tests that they run.
    if std::env::args().len() == 1 {
        println!("nothing is counted without --bench or the name of a cost");
        return ExitCode::SUCCESS;
    }
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let chosen: Vec<_> = COSTS
        .iter()
        .filter(|(name, _)| words.is_empty() || words.iter().any(|word| name.contains(&**word)))
        .collect();
    let mut report = Report::new(chosen.len());
    for (name, measure) in chosen {
        report.section(name);
        measure(&mut report);
    }
    report.end()
}

fn plan() -> Plan {
    Plan::new().config(CONFIG)
}

/// Connected clients, each of which has had its first message back.
fn connected(daemon: &Daemon, clients: usize) -> Load {
    let mut load = Load::connect(daemon.address(), clients, Talk::messages(64, 1));
    load.finish(SOON).unwrap();
    load
}

/// So many messages of each client, one after the other, beyond the first.
fn talk(load: &mut Load, messages: u64) {
    load.set_all(Talk::messages(64, 1 + messages));
    load.finish(SOON * 3).unwrap();
}

/// So many connections one after the other, each with one message, and all closed again.
fn visit(daemon: &Daemon, connections: u64) {
    let descriptors = daemon.descriptors();
    for _ in 0..connections {
        ping(&mut daemon.connect(), &[b'.'; 64]);
    }
    eventually(SOON, "descriptors are left open", || {
        (daemon.descriptors() <= descriptors).then_some(())
    });
}
