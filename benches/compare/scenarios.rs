//! What is compared, and what it should show.
//!
//! A scenario has two sides; each is a server and a load.  Most compare the daemon with the bare
//! loop under the same load; some compare the daemon with itself, once with and once without
//! something.  A ratio is always that of the first side to the second.

use crate::load::{Mode, Work};
use crate::rounds::Figures;
use crate::servers::Kind;

/// Where server and load run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Both on one processor: the least noise.
    Together,
    /// On one each.
    Apart,
    /// The load on one, the server on all others, or the load would be the limit.
    Spread,
}

/// One side of a comparison.
#[derive(Clone, Debug)]
pub struct Side {
    pub name: &'static str,
    pub server: Kind,
    pub work: Work,
}

/// What a ratio should be.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    pub name: &'static str,
    pub of: fn(&Figures) -> f64,
    pub most: Option<f64>,
    pub least: Option<f64>,
    /// Better still.
    pub stretch: Option<f64>,
}

impl Goal {
    pub fn is_met(&self, value: f64) -> bool {
        // As it is printed.
        let value = (value * 100.0).round() / 100.0;
        self.most.is_none_or(|most| value <= most) && self.least.is_none_or(|least| value >= least)
    }

    /// In words.
    pub fn text(&self) -> String {
        let bound = match (self.most, self.least) {
            (Some(most), _) => format!("<= {most:.2}"),
            (_, Some(least)) => format!(">= {least:.2}"),
            _ => "none".into(),
        };
        match self.stretch {
            Some(stretch) => format!("{bound}, stretch {stretch:.2}"),
            None => bound,
        }
    }
}

/// A comparison.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub place: Place,
    pub sides: [Side; 2],
    pub goals: Vec<Goal>,
    /// Whether the other installed servers take part.
    pub has_peers: bool,
}

const fn goal(name: &'static str, of: fn(&Figures) -> f64) -> Goal {
    Goal {
        name,
        of,
        most: None,
        least: None,
        stretch: None,
    }
}

fn processor(most: f64) -> Goal {
    Goal {
        most: Some(most),
        ..goal("server CPU", |figures| figures.processor)
    }
}

fn rate(least: f64) -> Goal {
    Goal {
        least: Some(least),
        ..goal("rate", |figures| figures.rate)
    }
}

fn p50(most: f64) -> Goal {
    Goal {
        most: Some(most),
        ..goal("p50", |figures| figures.p50)
    }
}

/// Small messages: all is the kernel's, and we may add nothing.
fn parity() -> Vec<Goal> {
    let stretch = Goal {
        stretch: Some(0.97),
        ..processor(1.0)
    };
    vec![stretch, rate(0.98)]
}

/// The daemon, with these keys, against the bare loop.
fn against_bare(
    name: &'static str,
    place: Place,
    (root, socket): (&'static str, &'static str),
    work: &Work,
    goals: Vec<Goal>,
) -> Scenario {
    let side = |name, server| Side {
        name,
        server,
        work: work.clone(),
    };
    Scenario {
        name,
        place,
        sides: [
            side("tcp-echo", Kind::Daemon(root, socket)),
            side("bare", Kind::Bare),
        ],
        goals,
        has_peers: false,
    }
}

/// The daemon against itself.
fn against_itself(
    name: &'static str,
    place: Place,
    ours: (&'static str, &'static str, Work),
    other: (&'static str, &'static str, Work),
    goals: Vec<Goal>,
) -> Scenario {
    let side = |(name, root, work): (&'static str, &'static str, Work)| Side {
        name,
        server: Kind::Daemon(root, ""),
        work,
    };
    Scenario {
        name,
        place,
        sides: [side(ours), side(other)],
        goals,
        has_peers: false,
    }
}

/// All of them, in the order in which they run.
pub fn all() -> Vec<Scenario> {
    use Place::{Apart, Spread, Together};
    const PLAIN: (&str, &str) = ("", "");
    const CUBIC: (&str, &str) = ("", "congestion = \"cubic\"");
    const PRESERVING: (&str, &str) = ("preserve-connections = true", "");
    const MORTAL: (&str, &str) = ("preserve-connections = false", "");
    let small = Work::new(Mode::PingPong, 64, 64);
    let lone = Work::new(Mode::PingPong, 1, 64);
    let bulk = |connections| Work::new(Mode::Bulk, connections, 1024);
    let churn = Work::new(Mode::Churn, 1, 64);
    let ratios = |rate_least, processor_most| vec![processor(processor_most), rate(rate_least)];
    let mut all = vec![
        against_bare("ping-pong-64", Together, PLAIN, &small, parity()),
        against_bare(
            "ping-pong-1000",
            Together,
            PLAIN,
            &Work::new(Mode::PingPong, 1000, 512),
            parity(),
        ),
        against_bare(
            "pipelined",
            Together,
            PLAIN,
            &Work::new(Mode::Pipelined, 64, 64),
            parity(),
        ),
        against_bare(
            "lone",
            Together,
            PLAIN,
            &lone,
            vec![processor(1.0), p50(1.02)],
        ),
        against_bare(
            "lone-busy-poll",
            Apart,
            ("busy-poll = \"50us\"", ""),
            &lone,
            vec![p50(0.55), rate(1.6)],
        ),
        against_bare(
            "bulk-16-apart-cubic",
            Apart,
            CUBIC,
            &bulk(16),
            ratios(2.6, 0.36),
        ),
        against_bare("bulk-16-apart", Apart, PLAIN, &bulk(16), ratios(2.0, 0.50)),
        against_bare("bulk-16", Together, CUBIC, &bulk(16), ratios(1.35, 0.65)),
        // What is under way stays in the processors' caches, and no window closes: no goal,
        // but the steadiest of them.
        against_bare(
            "bulk-16-window",
            Together,
            CUBIC,
            &Work {
                window: Some(256 * 1024),
                ..bulk(16)
            },
            Vec::new(),
        ),
        against_bare(
            "bulk-1-apart-cubic",
            Apart,
            CUBIC,
            &bulk(1),
            ratios(1.9, 0.57),
        ),
        against_bare("bulk-1-apart", Apart, PLAIN, &bulk(1), ratios(1.5, 0.80)),
        against_bare("churn", Together, PLAIN, &churn, ratios(0.98, 1.02)),
        against_itself(
            "beside-idle",
            Together,
            ("10 000 idle", "", small.clone().beside(10_000)),
            ("none idle", "", small.clone()),
            vec![processor(1.05)],
        ),
        against_bare(
            "mixed",
            Together,
            PLAIN,
            &Work::new(Mode::Mixed, 64, 64),
            Vec::new(),
        ),
        against_itself(
            "workers",
            Spread,
            ("2 workers", "workers = 2", small.clone()),
            ("1 worker", "workers = 1", small.clone()),
            vec![processor(1.10)],
        ),
        against_bare(
            "preserve-ping-pong-64",
            Together,
            PRESERVING,
            &small,
            parity(),
        ),
        against_bare(
            "preserve-bulk-16",
            Together,
            PRESERVING,
            &bulk(16),
            Vec::new(),
        ),
        against_bare(
            "preserve-churn",
            Together,
            PRESERVING,
            &churn,
            ratios(0.98, 1.02),
        ),
        against_bare("mortal-ping-pong-64", Together, MORTAL, &small, parity()),
        against_bare("mortal-churn", Together, MORTAL, &churn, ratios(0.98, 1.02)),
    ];
    for scenario in &mut all {
        scenario.has_peers = ["ping-pong-64", "lone", "bulk-16", "churn"].contains(&scenario.name);
    }
    all
}
