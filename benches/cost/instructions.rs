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

use std::fs::{read_dir, read_to_string};

use testkit::report::Report;
use testkit::{Daemon, Folder, has};

use crate::{connected, plan, talk, visit};

pub fn instructions(report: &mut Report) {
    if !has("valgrind") {
        return;
    }
    for (clients, messages, bound) in [(1, 4000, (250.0, 680.0)), (64, 250, (200.0, 390.0))] {
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
        (1200.0, 3900.0),
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

/// The cost of one, by runs of `count` and of three times as many; each is `times` of them.
fn difference(count: u64, times: u64, work: impl Fn(&Daemon, u64)) -> Cost {
    let (few, many) = (run(count, &work), run(3 * count, &work));
    let number = (2 * count * times) as f64;
    Cost {
        own: (many.own - few.own) / number,
        others: (many.others - few.others) / number,
    }
}

fn run(count: u64, work: impl Fn(&Daemon, u64)) -> Cost {
    let folder = Folder::new();
    let profile = folder.path("profile");
    let output = format!("--callgrind-out-file={}", profile.display());
    let mut daemon = plan()
        .under(&[
            "valgrind",
            "--quiet",
            "--tool=callgrind",
            "--separate-threads=yes",
            &output,
        ])
        .start();
    work(&daemon, count);
    assert!(daemon.stop().success(), "{}", daemon.log());
    let mut cost = Cost::default();
    for entry in read_dir(profile.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        let text = read_to_string(&path).unwrap();
        let Some(thread) = text.lines().find_map(|line| line.strip_prefix("thread: ")) else {
            continue;
        };
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
