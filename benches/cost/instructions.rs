//! Instructions of the loop in user space, as valgrind's callgrind counts them.
//!
//! Two runs that differ only in their number of messages; what they differ by in instructions,
//! divided by that number, is the cost of one.  The start, the end and the connections cancel out.
//!
//! Where they go is shown by an annotated profile of a build with names:
//!
//! ```text
//! CARGO_PROFILE_RELEASE_STRIP=none CARGO_PROFILE_RELEASE_DEBUG=1 cargo build --release
//! valgrind --tool=callgrind --separate-threads=yes target/release/tcp-echo --listen 127.0.0.1:0
//! callgrind_annotate --inclusive=yes callgrind.out.*-01
//! ```

use std::collections::{HashMap, HashSet};
use std::fs::{read_dir, read_to_string};
use std::path::Path;
use std::process::Command;

use testkit::report::Report;
use testkit::{Daemon, Folder, Plan, has};

use crate::{CONFIG, connected, plan, talk, visit};

pub fn instructions(report: &mut Report) {
    if !has("valgrind") {
        return;
    }
    for (clients, messages, bound) in [(1, 4000, (250.0, 600.0)), (64, 250, (200.0, 380.0))] {
        let cost = difference(messages, clients as u64, |daemon, messages| {
            let mut load = connected(daemon, clients);
            talk(&mut load, messages);
        });
        let name = format!("a message, {clients} connection(s) in ping-pong");
        report_of(report, &name, cost, bound);
    }
    let cost = difference(1000, 1, visit);
    report_of(
        report,
        "a connection with one message",
        cost,
        // In one round as a rule.  Where the client is slower, its FIN comes in a round of its own, which
        // takes some 1000 more.
        (1200.0, 3500.0),
    );
}

/// Prints a cost beside its target, and fails above its bound.
fn report_of(report: &mut Report, name: &str, cost: Cost, (target, bound): (f64, f64)) {
    report.bound(
        name,
        // Without the sign of a zero.
        &format!(
            "{:.0} (other threads {:.0})",
            cost.own,
            cost.others.round() + 0.0
        ),
        &format!("{bound:.0}, target {target:.0}"),
        cost.own <= bound,
    );
}

/// Instructions.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Of the loop's thread.
    own: f64,
    /// Of all others.
    others: f64,
}

/// Atomic read-modify-writes of all threads for each message, with two workers.
///
/// What two loops share is written by such instructions, as are the locks, and each costs as much as
/// twenty others.  A message has none of its own: a worker takes its two locks once a round.
pub fn atomics(report: &mut Report) {
    if !has("valgrind") || !has("objdump") {
        return;
    }
    if cfg!(not(target_arch = "x86_64")) {
        return report.note("only the instructions of x86_64 are known");
    }
    for (clients, messages, bound) in [(1, 2000, 4.1), (64, 100, 0.5)] {
        let work = |daemon: &Daemon, messages| {
            let mut load = connected(daemon, clients);
            talk(&mut load, messages);
        };
        let plan = || Plan::new().config(&format!("workers = 2\n{CONFIG}"));
        let count = |messages| {
            let profiles = profiles(plan(), &["--dump-instr=yes"], messages, work);
            profiles.iter().map(|text| locked(text)).sum::<u64>() as f64
        };
        let number = (2 * messages * clients as u64) as f64;
        let each = (count(3 * messages) - count(messages)) / number;
        report.bound(
            &format!("a message, {clients} connection(s) in ping-pong, two workers"),
            &format!("{each:.2}"),
            &format!("{bound}"),
            each <= bound,
        );
    }
}

/// How many atomic read-modify-writes were executed, by a profile with the place of each instruction.
fn locked(profile: &str) -> u64 {
    let mut objects = HashMap::new();
    let mut object = "";
    let mut places: HashMap<&str, HashSet<u64>> = HashMap::new();
    // A place is absolute or relative to the one before.
    let (mut at, mut is_call, mut count) = (0u64, false, 0);
    for line in profile.lines() {
        let name = line.strip_prefix("ob=");
        if let Some(name) = name.or_else(|| line.strip_prefix("cob=")) {
            // A name follows its number once.
            let (number, full) = name.split_once(' ').unwrap_or((name, ""));
            let full = *objects.entry(number).or_insert(full);
            if line.starts_with("ob=") {
                object = full;
            }
            continue;
        }
        if line.starts_with("calls=") {
            // The line that follows has the cost of what was called.
            is_call = true;
            continue;
        }
        let mut words = line.split(' ');
        let place = words.next().unwrap_or_default();
        let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16);
        at = match place.split_at_checked(1) {
            Some(("+", by)) => at + by.parse::<u64>().unwrap(),
            Some(("-", by)) => at - by.parse::<u64>().unwrap(),
            Some(("*", _)) => at,
            Some(("0", _)) => number(place).unwrap(),
            _ => continue,
        };
        if std::mem::take(&mut is_call) {
            continue;
        }
        let places = places.entry(object).or_insert_with(|| locks_of(object));
        if places.contains(&at) {
            count += words.nth(1).unwrap().parse::<u64>().unwrap();
        }
    }
    count
}

/// The places of the atomic read-modify-writes in a program or library.
fn locks_of(object: &str) -> HashSet<u64> {
    if !Path::new(object).is_file() {
        return HashSet::new();
    }
    let output = Command::new("objdump")
        .args(["--disassemble", "--no-show-raw-insn", object])
        .output()
        .unwrap();
    assert!(output.status.success(), "objdump cannot read {object}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter_map(|line| {
        let (place, instruction) = line.trim().split_once(":\t")?;
        // `xchg` with memory locks by itself.
        let is_atomic = instruction.starts_with("lock ")
            || instruction.starts_with("xchg") && instruction.contains('(');
        is_atomic.then(|| u64::from_str_radix(place, 16).unwrap())
    });
    lines.collect()
}

/// The cost of one, by runs of `count` and of three times as many; each is `times` of them.
fn difference(count: u64, times: u64, work: impl Fn(&Daemon, u64)) -> Cost {
    let (few, many) = (run(count, &work), run(3 * count, &work));
    let number = (2 * count * times) as f64;
    Cost {
        own: (many.own - few.own) / number,
        others: (many.others - few.others) / number,
    }
}

/// The profile of each thread of a daemon that did some work.
fn profiles(plan: Plan, options: &[&str], count: u64, work: impl Fn(&Daemon, u64)) -> Vec<String> {
    let folder = Folder::new();
    let profile = folder.path("profile");
    let output = format!("--callgrind-out-file={}", profile.display());
    let valgrind = &["valgrind", "--quiet", "--tool=callgrind"][..];
    let threads = &["--separate-threads=yes", &*output][..];
    let mut daemon = plan.under(&[valgrind, threads, options].concat()).start();
    work(&daemon, count);
    assert!(daemon.stop().success(), "{}", daemon.log());
    let files = read_dir(profile.parent().unwrap()).unwrap();
    let texts = files.map(|entry| read_to_string(entry.unwrap().path()).unwrap());
    texts
        .filter(|text| text.lines().any(|line| line.starts_with("thread: ")))
        .collect()
}

fn run(count: u64, work: impl Fn(&Daemon, u64)) -> Cost {
    let mut cost = Cost::default();
    for text in profiles(plan(), &[], count, work) {
        let thread = text.lines().find_map(|line| line.strip_prefix("thread: "));
        let thread = thread.unwrap();
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        let total: f64 = total.unwrap().trim().parse().unwrap();
        if thread.trim() == "1" {
            cost.own += total;
        } else {
            cost.others += total;
        }
    }
    assert!(cost.own > 0.0, "callgrind wrote no profile");
    cost
}
