//! The figures that the daemon promises, measured on the release build over loopback.
//!
//! `cargo bench --bench figures` measures all of them in about two minutes,
//! `cargo bench --bench figures -- idle churn` those whose names contain one of the words.
//! Each line has what was measured, the target and whether it was met.  A missed target is reported
//! and does not fail the run: the machine may be busy.  Bytes that are lost or wrong do.
//!
//! The measuring client stands apart from the figures: [`testkit::load`] drives any number of verified
//! clients in one thread, `client` has those that misbehave on purpose and the ping-pong that times the
//! polite ones, [`testkit::process`] reads what the kernel knows of the daemon.  What can be counted
//! instead of timed is the business of the bench `cost`; how much another server would have needed,
//! of `compare`.
//!
//! The targets are those of a quiet machine with two processors; the first line reports its load
//! average.  Client and daemon share the processors.  Where that colours a figure, the same client is
//! measured in the same noise without the cause: see `fairness`.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod client;

mod churn;
mod crowd;
mod end;
mod fairness;
mod idle;
mod memory;
mod restore;
mod transfer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use rustix::process::{Resource, getrlimit};
use testkit::report::Report;
use testkit::{plenty_of_descriptors, process};

type Measure = fn(&mut Report);

/// In the order of the issue.
const FIGURES: &[(&str, Measure)] = &[
    ("throughput", transfer::throughput),
    ("writes-first", transfer::writes_first),
    ("memory", memory::memory),
    ("fairness", fairness::fairness),
    ("idle", idle::idle),
    ("churn", churn::churn),
    ("crowd", crowd::crowd),
    ("crowd-rounds", crowd::rounds),
    ("descriptors", crowd::descriptors),
    ("stop", end::stop),
    ("reload", transfer::reload),
    ("kill", end::kill),
    ("restore", restore::restore),
];

fn main() -> ExitCode {
    // Cargo passes --bench to every benchmark, and nothing when it only tests that they run.
    if std::env::args().len() == 1 {
        println!("nothing is measured without --bench or the name of a figure");
        return ExitCode::SUCCESS;
    }
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let chosen: Vec<_> = FIGURES
        .iter()
        .filter(|(name, _)| words.is_empty() || words.iter().any(|word| name.contains(&**word)))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = FIGURES.iter().map(|(name, _)| *name).collect();
        eprintln!("no such figure; there are: {}", names.join(" "));
        return ExitCode::from(2);
    }
    plenty_of_descriptors();
    let limit = getrlimit(Resource::Nofile).current;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut report = Report::new(chosen.len());
    report.note(&format!(
        "{processors} processors, {} descriptors, load {}",
        limit.map_or("any number of".into(), |limit| limit.to_string()),
        process::load_average()
    ));
    for (name, measure) in chosen {
        report.section(name);
        // One that fails (it reports why) does not prevent the others from being measured, and
        // its daemons are stopped as it unwinds.
        if catch_unwind(AssertUnwindSafe(|| measure(&mut report))).is_err() {
            report.broken("not measured: see above");
        }
    }
    report.end()
}
