//! Round after round: A B, B A, A B.
//!
//! A machine is never twice the same, so figures are compared only with their neighbours: in each
//! round both sides run, one right after the other, and the order is swapped from round to round.
//! The ratio that counts is the median of the rounds' ratios; what is printed behind it is the
//! middle half of them.  Processor time of the server for each message comes first: it hardly
//! depends on what else the machine does.  The rate does.

use std::process::Command;

use serde::{Deserialize, Serialize};
use testkit::process::processors;
use testkit::report::{Report, median};

use crate::load::{Outcome, Work};
use crate::options::Options;
use crate::scenarios::{Place, Scenario, others};
use crate::servers::{Kind, Peer, Server, config, is_known};

/// One side in one round; or the medians of many; or the ratios of two.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Figures {
    /// Processor time of the server for each unit, in microseconds.
    pub processor: f64,
    /// Units each second.
    pub rate: f64,
    /// Of the latencies, in microseconds.
    pub p50: f64,
    pub p99: f64,
    /// Fairness.
    pub jain: f64,
    /// Processor time of the load for each unit, in microseconds.
    pub load: f64,
}

/// What is asked of a figure.
type Of = fn(&Figures) -> f64;

/// A goal and what became of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Verdict {
    pub figure: String,
    pub ratio: f64,
    pub goal: String,
    pub is_met: bool,
}

/// A scenario and what came out.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Compared {
    pub scenario: String,
    /// What is counted.
    pub unit: String,
    /// The two that are compared, then those beside them.
    pub sides: Vec<Measured>,
    /// Of the first side.
    pub verdicts: Vec<Verdict>,
}

/// What came out of one side.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Measured {
    pub name: String,
    /// The medians.
    pub figures: Figures,
    /// The medians of the rounds' ratios to the second side.
    pub ratios: Figures,
}

/// Runs a scenario; `None`: not here, or not to the end.
pub fn compare(
    scenario: &Scenario,
    options: &Options,
    peers: &[&'static Peer],
    report: &mut Report,
) -> Option<Compared> {
    let (server_cpus, load_cpu) = match placed(scenario.place) {
        Ok(cpus) => cpus,
        Err(why) => {
            report.note(&format!("{}: skipped: {why}", scenario.name));
            return None;
        }
    };
    let mut sides = scenario.sides.to_vec();
    for side in &sides {
        let Kind::Daemon(root, socket) = side.server else {
            continue;
        };
        if !is_known(&config(root, socket, &options.config)) {
            let keys = [root, socket, &options.config];
            let keys = keys.iter().filter(|key| !key.is_empty());
            let key: Vec<_> = keys.map(|key| key.replace(" = ", "=")).collect();
            report.note(&format!(
                "{}: skipped: this daemon has no such key: {}",
                scenario.name,
                key.join(", ")
            ));
            return None;
        }
    }
    if scenario.has_peers && !options.alone {
        sides.extend(others(options, peers, &scenario.sides[1].work));
    }
    let mut servers: Vec<Option<Server>> = sides
        .iter()
        .map(|side| Server::start(&side.server, &options.config, &server_cpus))
        .map(Some)
        .collect();
    // By side and round; a side that fails has no more rounds.
    let mut rounds: Vec<Vec<Figures>> = vec![Vec::new(); sides.len()];
    for round in 0..options.rounds {
        report.doing(&format!("round {} of {}", round + 1, options.rounds));
        let mut order: Vec<usize> = (0..sides.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let Some(server) = &servers[index] else {
                continue;
            };
            let mut work = sides[index].work.clone();
            work.seconds = options.seconds;
            work.cpu = load_cpu;
            match measure(server, work) {
                Ok(figures) => rounds[index].push(figures),
                // Figures of other servers are only reported.
                Err(error) if index > 1 => {
                    report.note(&format!(
                        "{}: {}: {error}",
                        scenario.name, sides[index].name
                    ));
                    servers[index] = None;
                }
                Err(error) => {
                    report.broken(&format!("{}: {error}", sides[index].name));
                    return None;
                }
            }
        }
    }
    let to_second = |side: &[Figures]| -> Vec<Figures> {
        let both = side.iter().zip(&rounds[1]);
        both.map(|(one, other)| one.to(other)).collect()
    };
    let ratios = to_second(&rounds[0]);
    let ratio = Figures::medians(&ratios);
    let whole = sides
        .iter()
        .zip(&rounds)
        .filter(|(_, side)| side.len() == options.rounds);
    let compared = Compared {
        scenario: scenario.name.into(),
        unit: scenario.sides[0].work.unit().into(),
        sides: whole
            .map(|(side, rounds)| Measured {
                name: side.name.into(),
                figures: Figures::medians(rounds),
                ratios: Figures::medians(&to_second(rounds)),
            })
            .collect(),
        verdicts: scenario
            .goals
            .iter()
            .map(|goal| Verdict {
                figure: goal.name.into(),
                ratio: (goal.of)(&ratio),
                goal: goal.text(),
                is_met: goal.is_met((goal.of)(&ratio)),
            })
            .collect(),
    };
    print(&compared, scenario, &ratios, report);
    Some(compared)
}

/// One load on one server.
pub fn measure(server: &Server, work: Work) -> Result<Figures, String> {
    let outcome = run(server, work)?;
    server.settle()?;
    let units = outcome.units;
    if units < 1.0 {
        return Err("nothing came back while it was measured".into());
    }
    Ok(Figures {
        processor: outcome.server / units,
        rate: outcome.units / outcome.seconds,
        p50: outcome.p50,
        p99: outcome.p99,
        jain: outcome.jain,
        load: outcome.load / units,
    })
}

/// Runs the load in its process.
pub fn run(server: &Server, mut work: Work) -> Result<Outcome, String> {
    work.address = server.address;
    work.server = Some(server.pid.as_raw_nonzero().get());
    let output = Command::new(std::env::current_exe().unwrap())
        .arg(crate::LOAD)
        .args(work.words())
        .output()
        .map_err(|error| format!("the load: {error}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(text.trim().to_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("the load: {error}"))
}

/// The processors of the server (none: any) and that of the load.
pub fn placed(place: Place) -> Result<(Vec<usize>, Option<usize>), &'static str> {
    let all = processors();
    let (first, last) = (all[0], all[all.len() - 1]);
    match place {
        Place::Together => Ok((vec![last], Some(last))),
        Place::Apart if first == last => Err("there is one processor only"),
        Place::Spread if first == last => Err("there is one processor only"),
        Place::Apart => Ok((vec![last], Some(first))),
        Place::Spread => Ok((all[1..].to_vec(), Some(first))),
    }
}

impl Figures {
    const ALL: [Of; 6] = [
        |figures| figures.processor,
        |figures| figures.rate,
        |figures| figures.p50,
        |figures| figures.p99,
        |figures| figures.jain,
        |figures| figures.load,
    ];

    fn of(mut value: impl FnMut(Of) -> f64) -> Self {
        let [processor, rate, p50, p99, jain, load] = Self::ALL.map(&mut value);
        Self {
            processor,
            rate,
            p50,
            p99,
            jain,
            load,
        }
    }

    fn medians(all: &[Self]) -> Self {
        Self::of(|of| median(all.iter().map(of).collect()))
    }

    fn to(self, other: &Self) -> Self {
        Self::of(|of| {
            let (one, other) = (of(&self), of(other));
            if other == 0.0 { 1.0 } else { one / other }
        })
    }
}

fn print(compared: &Compared, scenario: &Scenario, ratios: &[Figures], report: &mut Report) {
    let unit = &compared.unit;
    for side in &compared.sides {
        let figures = side.figures;
        let mut text = format!(
            "{:.3} us of server CPU for each {unit}, {:.0} each second (load {:.3} us)",
            figures.processor, figures.rate, figures.load
        );
        if figures.p50 > 0.0 {
            text += &format!(", p50 {:.0} us, p99 {:.0} us", figures.p50, figures.p99);
        }
        if unit == "KiB" {
            text += &format!(", Jain {:.3}", figures.jain);
        }
        text += &format!("; CPU ratio {:.2}", side.ratios.processor);
        report.fact(&side.name, &text);
    }
    for (goal, verdict) in scenario.goals.iter().zip(&compared.verdicts) {
        report.figure(
            &format!("  ratio of {}", goal.name),
            &format!("{:.2} {}", verdict.ratio, spread(ratios, goal.of)),
            &verdict.goal,
            verdict.is_met,
        );
    }
    if scenario.goals.is_empty() {
        let ratio = compared.sides[0].ratios;
        report.fact(
            "  ratios",
            &format!(
                "server CPU {:.2}, rate {:.2}, p50 {:.2}",
                ratio.processor, ratio.rate, ratio.p50
            ),
        );
    }
    if unit == "KiB" && scenario.sides[0].work.connections > 1 {
        let jain = compared.sides[0].figures.jain;
        report.figure(
            "  fairness",
            &format!("{jain:.3}"),
            "Jain >= 0.98",
            jain >= 0.98,
        );
    }
}

/// The middle half.
fn spread(ratios: &[Figures], of: Of) -> String {
    let mut values: Vec<f64> = ratios.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    format!(
        "({:.2} to {:.2})",
        values[last / 4],
        values[last - last / 4]
    )
}
