//! The daemon beside a bare loop that does nothing but echo: what everything else costs.
//!
//! `cargo bench --bench compare` runs all scenarios in about five minutes; words behind `--`
//! select (`list` lists them), and `--help` lists the options.  A line for each side has medians,
//! lines behind them the ratios of the first side to the second, with their goals.  A missed goal
//! is reported and does not fail the run, as the machine may be busy.  Wrong, lost or late bytes do.
//!
//! Processor time of the server for each message is the first figure, and the rate the second:
//! see `rounds`.  What does not depend on the machine is counted by the bench `cost`.
//!
//! This binary is four programs: the comparison; with the word `load` the load ([`load`]), which
//! can be used by itself against any echo server; with the word `bare` the server to compare
//! with ([`bare`]).  Apart from their processes they share nothing that could disturb.
//!
//! In reading order: `options`; `load` and `bare`; `servers` (start, settle, end); `scenarios`
//! (what is compared, and the goals); `rounds` (how); `scale` and `repeat`, which are no
//! comparisons; `plot`.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::unwrap_used,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub
)]

mod bare;
mod load;
mod options;
mod plot;
mod repeat;
mod rounds;
mod scale;
mod scenarios;
mod servers;

use std::process::ExitCode;

use clap::Parser;
use serde::{Deserialize, Serialize};
use testkit::report::Report;
use testkit::{plenty_of_descriptors, process};

use options::Options;
use rounds::Compared;
use scale::Point;

/// The words that make another program of this one.
pub const LOAD: &str = "load";
pub const BARE: &str = "bare";

/// Those that are no comparison.
const REPEAT: &str = "pipelined-200";
const SCALE: &str = "scale";

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().collect();
    // Cargo passes --bench to every benchmark, and nothing when it only tests that they run.
    if words.len() == 1 {
        println!("nothing is compared without --bench or the name of a scenario");
        return ExitCode::SUCCESS;
    }
    plenty_of_descriptors();
    match words[1].as_str() {
        BARE => {
            // It ends by being killed.
            eprintln!("bare: {:?}", bare::serve());
            ExitCode::FAILURE
        }
        LOAD => {
            words.remove(1);
            work(&load::Work::parse_from(words))
        }
        _ => compare(&Options::parse_from(words)),
    }
}

/// The load, for the comparison or by itself.
fn work(work: &load::Work) -> ExitCode {
    match load::run(work) {
        Ok(outcome) if work.json => println!("{}", serde_json::to_string(&outcome).unwrap()),
        Ok(outcome) => println!("{outcome:#?}"),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// All that was measured.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Results {
    compared: Vec<Compared>,
    scale: Vec<(String, Vec<Point>)>,
}

fn compare(options: &Options) -> ExitCode {
    if let Some(path) = &options.from {
        let earlier = std::fs::read(path).and_then(|text| Ok(serde_json::from_slice(&text)?));
        return match earlier {
            Ok(results) => {
                show(&results, options);
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{}: {error}", path.display());
                ExitCode::FAILURE
            }
        };
    }
    let scenarios = scenarios::all();
    let names = scenarios.iter().map(|scenario| scenario.name);
    let names: Vec<&str> = names.chain([REPEAT, SCALE]).collect();
    let is_chosen = |name: &str| {
        options.words.is_empty() || options.words.iter().any(|word| name.contains(&**word))
    };
    if !names.iter().any(|name| is_chosen(name)) {
        println!("there are: {}", names.join(" "));
        return ExitCode::from(u8::from(options.words != ["list"]) * 2);
    }
    let mut report = Report::new(names.iter().filter(|name| is_chosen(name)).count());
    report.note(&format!(
        "{} processors, load {}; {} rounds of {} s for each side",
        process::processors().len(),
        process::load_average(),
        options.rounds,
        options.seconds
    ));
    let mut results = Results::default();
    for scenario in scenarios.iter().filter(|scenario| is_chosen(scenario.name)) {
        report.section(scenario.name);
        results
            .compared
            .extend(rounds::compare(scenario, options, &mut report));
    }
    if is_chosen(REPEAT) {
        report.section(REPEAT);
        repeat::repeat(options, &mut report);
    }
    if is_chosen(SCALE) {
        report.section(SCALE);
        results.scale = scale::scale(options, &mut report).unwrap_or_default();
    }
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&results).unwrap()).unwrap();
    }
    show(&results, options);
    report.end()
}

/// What the options ask for besides the lines.
fn show(results: &Results, options: &Options) {
    if let Some(path) = &options.plot {
        if !results.compared.is_empty() {
            std::fs::write(path, plot::ratios(&results.compared).unwrap()).unwrap();
        }
        if !results.scale.is_empty() {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let path = path.with_file_name(format!("{name}-scale.svg"));
            std::fs::write(path, plot::scale(&results.scale).unwrap()).unwrap();
        }
    }
    if options.markdown {
        table(&results.compared);
    }
}

/// A table for the README.
fn table(all: &[Compared]) {
    println!(
        "\n| scenario | against | server CPU each | ratio | rate each second | ratio | p50 | ratio | goals |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for one in all {
        let (ours, other) = (one.sides[0].1, &one.sides[1]);
        let goals: Vec<String> = one
            .verdicts
            .iter()
            .map(|verdict| {
                let word = if verdict.is_met { "met" } else { "missed" };
                format!("{} {}: {word}", verdict.figure, verdict.goal)
            })
            .collect();
        let latency = match ours.p50 {
            0.0 => "- | -".into(),
            p50 => format!("{p50:.0} us | {:.2}", one.ratios.p50),
        };
        println!(
            "| {} | {} | {:.2} us a {} | {:.2} | {:.0} | {:.2} | {latency} | {} |",
            one.scenario,
            other.0,
            ours.processor,
            one.unit,
            one.ratios.processor,
            ours.rate,
            one.ratios.rate,
            goals.join("; ")
        );
    }
    println!();
}
