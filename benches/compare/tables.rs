//! The tables of a run, in Markdown.

use crate::Results;
use crate::rounds::{Compared, Measured};
use crate::scenarios::BARE;

/// Prints what there is.
pub fn print(results: &Results) {
    let all = &results.compared;
    let is_beside_others = |one: &&Compared| one.sides.len() > 2;
    let beside: Vec<_> = all.iter().filter(is_beside_others).collect();
    if !beside.is_empty() {
        peers(&beside);
    }
    if !all.is_empty() {
        goals(all);
    }
    if !results.judged.is_empty() {
        row(["server", "faults", "notes", "killed with -9"].map(Into::into));
        row(["---"; 4].map(Into::into));
        for one in &results.judged {
            let cells = [&one.name, &one.faults, &one.notes, &one.killed];
            row(cells.map(Clone::clone));
        }
        println!();
    }
}

/// The servers in the order in which they appear, and the figures of each in a scenario.
pub fn servers(all: &[&Compared]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for side in all.iter().flat_map(|one| &one.sides) {
        if !names.contains(&side.name) {
            names.push(side.name.clone());
        }
    }
    names
}

pub fn side<'a>(one: &'a Compared, name: &str) -> Option<&'a Measured> {
    one.sides.iter().find(|side| side.name == name)
}

/// Processor time of each server, as a multiple of what the bare loop takes.
fn peers(all: &[&Compared]) {
    let scenarios = || {
        all.iter()
            .map(|one| format!("{}, {}", one.scenario, one.unit))
    };
    row(["server CPU".into()].into_iter().chain(scenarios()));
    row(std::iter::repeat_n("---".into(), 1 + all.len()));
    for name in servers(all) {
        let cells = all.iter().map(|one| match side(one, &name) {
            None => "-".into(),
            Some(side) if name == BARE => format!("{:.2} µs", side.figures.processor),
            Some(side) => times(side.ratios.processor),
        });
        row([name.clone()].into_iter().chain(cells));
    }
    println!();
}

/// A ratio with three digits.
pub fn times(ratio: f64) -> String {
    match ratio {
        10.0.. => format!("{ratio:.0}"),
        3.0.. => format!("{ratio:.1}"),
        _ => format!("{ratio:.2}"),
    }
}

/// What was to be reached beside what was.
fn goals(all: &[Compared]) {
    let titles = [
        "scenario",
        "against",
        "server CPU each",
        "ratio",
        "rate each second",
        "ratio",
        "p50",
        "ratio",
        "goals",
    ];
    row(titles.map(Into::into));
    row(["---"; 9].map(Into::into));
    for one in all {
        let (ours, ratios) = (one.sides[0].figures, one.sides[0].ratios);
        let goals = one.verdicts.iter().map(|verdict| {
            let word = if verdict.is_met { "met" } else { "missed" };
            format!("{} {}: {word}", verdict.figure, verdict.goal)
        });
        let latency = match ours.p50 {
            0.0 => ["-".into(), "-".into()],
            p50 => [format!("{p50:.0} µs"), format!("{:.2}", ratios.p50)],
        };
        let [p50, p50_ratio] = latency;
        row([
            one.scenario.clone(),
            one.sides[1].name.clone(),
            format!("{:.2} µs a {}", ours.processor, one.unit),
            format!("{:.2}", ratios.processor),
            format!("{:.0}", ours.rate),
            format!("{:.2}", ratios.rate),
            p50,
            p50_ratio,
            goals.collect::<Vec<_>>().join("; "),
        ]);
    }
    println!();
}

fn row(cells: impl IntoIterator<Item = String>) {
    println!("| {} |", cells.into_iter().collect::<Vec<_>>().join(" | "));
}
