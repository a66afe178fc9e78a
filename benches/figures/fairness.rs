//! What a polite client sees of the others.
//!
//! The load takes processor time from the polite client itself, which no daemon can help.  So
//! each case is measured twice, in turns: with the load on the same daemon, and with the same
//! load on a second one.  What the first adds to the second is the daemon's doing.

use std::time::Duration;

use testkit::Daemon;
use testkit::report::{Report, median, ms, percentile};

use crate::client::{Background, Company, ping_pong};

const SPAN: Duration = Duration::from_millis(1200);
const RUNS: usize = 3;

pub fn fairness(report: &mut Report) {
    let (one, other) = (Daemon::start(), Daemon::start());
    for (company, name, target) in [
        (Company::None, "none", None),
        (Company::Flood(1), "one flooding client", Some(10)),
        (Company::Flood(8), "eight flooding clients", Some(25)),
        (Company::Stalled(50), "50 stalled clients", Some(5)),
        (Company::Storm, "a connection storm", Some(5)),
    ] {
        let mut here = Vec::new();
        let mut elsewhere = Vec::new();
        let mut note = String::new();
        for _ in 0..RUNS {
            for (daemon, results) in [(&one, &mut here), (&other, &mut elsewhere)] {
                let background = Background::start(company, daemon.address());
                match ping_pong(one.address(), SPAN) {
                    Ok(mut samples) => results.push((
                        percentile(&mut samples, 50),
                        percentile(&mut samples, 99),
                        percentile(&mut samples, 100),
                    )),
                    Err(text) => report.broken(&text),
                }
                match background.end() {
                    Ok(done) => note = done,
                    Err(text) => report.broken(&format!("{name}: {text}")),
                }
            }
        }
        let summary_of = |results: &[(Duration, Duration, Duration)]| {
            let of = |pick: fn(&(Duration, Duration, Duration)) -> Duration| {
                median(results.iter().map(pick).collect())
            };
            (of(|r| r.0), of(|r| r.1), of(|r| r.2))
        };
        let ((p50, p99, worst), noise) = (summary_of(&here), summary_of(&elsewhere));
        let measured = format!(
            "p50 {} p99 {} max {}; load elsewhere: p50 {} p99 {} max {}{}{note}",
            ms(p50),
            ms(p99),
            ms(worst),
            ms(noise.0),
            ms(noise.1),
            ms(noise.2),
            if note.is_empty() { "" } else { "; load: " },
        );
        let name = format!("ping-pong beside {name}");
        match target {
            Some(most) => {
                let met = p99 <= Duration::from_millis(most);
                report.figure(&name, &measured, &format!("p99 <= {most} ms"), met);
            }
            None => report.fact(&name, &measured),
        }
    }
    report.note(&format!(
        "fairness: medians of {RUNS} runs of {SPAN:?}; \"load elsewhere\" is the same load on a second daemon"
    ));
}
