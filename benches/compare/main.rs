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
mod judged;
mod load;
mod options;
mod plot;
mod repeat;
mod rounds;
mod scale;
mod scenarios;
mod servers;
mod tables;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde::{Deserialize, Serialize};
use testkit::report::Report;
use testkit::{plenty_of_descriptors, process};

use judged::Judged;
use options::Options;
use rounds::Compared;
use scale::Point;
use scenarios::Scenario;
use servers::{PEERS, Peer};

/// The words that make another program of this one.
pub const LOAD: &str = "load";
pub const BARE: &str = "bare";
pub const OWN: &str = "own";

/// Those that are no comparison.
const REPEAT: &str = "200 short bursts";
const SCALE: &str = "from one connection to 19 000";
const JUDGED: &str = "what a probe finds";

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
        OWN => ExitCode::from(u8::from(servers::own(&words[2..]).is_err())),
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
    judged: Vec<Judged>,
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
    let mut names: Vec<(&str, bool)> = scenarios.iter().map(|it| (it.name, it.has_peers)).collect();
    names.extend([(JUDGED, true), (REPEAT, false), (SCALE, false)]);
    let words = &options.words;
    let is_exact = words
        .iter()
        .all(|word| names.iter().any(|(name, _)| name == word));
    let is_meant = |name: &str, word: &str| name == word || (!is_exact && name.contains(word));
    names.retain(|(name, has_peers)| {
        (words.is_empty() && (*has_peers || !options.peers))
            || words.iter().any(|word| is_meant(name, word))
    });
    let is_chosen = |name: &str| names.iter().any(|(chosen, _)| *chosen == name);
    if names.is_empty() {
        for scenario in &scenarios {
            println!("{}", scenario.name);
        }
        println!("{JUDGED}\n{REPEAT}\n{SCALE}");
        return ExitCode::from(u8::from(options.words != ["list"]) * 2);
    }
    let mut report = Report::new(names.len());
    report.note(&format!(
        "{} processors, load {}; {} rounds of {} s for each side",
        process::processors().len(),
        process::load_average(),
        options.rounds,
        options.seconds
    ));
    let has_peers = |scenario: &&Scenario| is_chosen(scenario.name) && scenario.has_peers;
    let mut peers: Vec<&Peer> = Vec::new();
    if !options.alone && (is_chosen(JUDGED) || scenarios.iter().any(|it| has_peers(&it))) {
        report.section("the other servers");
        for peer in &PEERS {
            match peer.prepare() {
                Ok(()) => peers.push(peer),
                Err(why) => report.note(&format!("{}: skipped: {why}", peer.name)),
            }
        }
    }
    let mut results = Results::default();
    for scenario in scenarios.iter().filter(|scenario| is_chosen(scenario.name)) {
        report.section(scenario.name);
        results
            .compared
            .extend(rounds::compare(scenario, options, &peers, &mut report));
    }
    if is_chosen(JUDGED) {
        report.section(JUDGED);
        results.judged = judged::judge(options, &peers, &mut report);
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
    let (compared, scale) = (&results.compared, &results.scale);
    if let Some(path) = &options.plot {
        let beside = |end: &str| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            path.with_file_name(format!("{name}-{end}.svg"))
        };
        let write = |path: PathBuf, drawn: Result<String, _>| {
            let drawn: Result<String, Box<dyn std::error::Error>> = drawn;
            std::fs::write(path, drawn.unwrap()).unwrap();
        };
        // One with the peers alone is not the whole.
        if compared.iter().any(|one| one.sides.len() == 2) {
            write(path.clone(), plot::ratios(compared));
        }
        if compared.iter().any(|one| one.sides.len() > 2) {
            write(beside("peers"), plot::peers(compared));
        }
        if !scale.is_empty() {
            write(beside("scale"), plot::scale(scale));
        }
    }
    if options.markdown {
        tables::print(results);
    }
}
