//! What is compared, and what it should show.
//!
//! A scenario has two sides; each is a server and a load.  Most compare the daemon with the bare
//! loop under the same load; some compare the daemon with itself, once with and once without
//! something.  A ratio is always that of the first side to the second.

use crate::load::{Mode, Work};
use crate::options::Options;
use crate::rounds::Figures;
use crate::servers::{Kind, Peer};

/// The name of the bare loop.
pub const BARE: &str = "bare epoll loop";

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
            Some(stretch) => format!("{bound}, better {stretch:.2}"),
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
    /// Whether [`others`] take part.
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
    vec![better(0.97, processor(1.0)), rate(0.98)]
}

fn better(stretch: f64, goal: Goal) -> Goal {
    Goal {
        stretch: Some(stretch),
        ..goal
    }
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
            side(BARE, Kind::Bare),
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
    let small = Work::new(Mode::PingPong, 64, 64);
    let lone = Work::new(Mode::PingPong, 1, 64);
    let bulk = |connections| Work::new(Mode::Bulk, connections, 1024);
    let ratios = |rate_least, processor_most| vec![processor(processor_most), rate(rate_least)];
    let beside_others = |scenario: Scenario| Scenario {
        has_peers: true,
        ..scenario
    };
    vec![
        beside_others(against_bare(
            "one client",
            Together,
            PLAIN,
            &lone,
            vec![better(1.0, processor(1.02)), p50(1.02)],
        )),
        beside_others(against_bare(
            "64 clients",
            Together,
            PLAIN,
            &small,
            parity(),
        )),
        beside_others(against_bare(
            "1000 clients",
            Together,
            PLAIN,
            &Work::new(Mode::PingPong, 1000, 512),
            parity(),
        )),
        beside_others(against_bare(
            "64 clients, 16 messages under way each",
            Together,
            PLAIN,
            &Work::new(Mode::Pipelined, 64, 64),
            parity(),
        )),
        beside_others(against_bare(
            "bulk, 16 connections",
            Together,
            PLAIN,
            &bulk(16),
            Vec::new(),
        )),
        beside_others(against_bare(
            "a new connection for each message",
            Together,
            PLAIN,
            &Work::new(Mode::Churn, 1, 64),
            vec![better(1.0, processor(1.02)), rate(0.98)],
        )),
        against_bare(
            "one client, a core each, busy-poll",
            Apart,
            ("busy-poll = \"50us\"", ""),
            &lone,
            vec![p50(0.55), rate(1.6)],
        ),
        against_bare(
            "bulk, 16 connections, a core each, cubic",
            Apart,
            CUBIC,
            &bulk(16),
            ratios(2.6, 0.36),
        ),
        against_bare(
            "bulk, 16 connections, a core each",
            Apart,
            PLAIN,
            &bulk(16),
            ratios(2.0, 0.50),
        ),
        against_bare(
            "bulk, 16 connections, cubic",
            Together,
            CUBIC,
            &bulk(16),
            ratios(1.35, 0.65),
        ),
        // What is under way stays in the processors' caches, and no window closes: no goal,
        // but the steadiest of them.
        against_bare(
            "bulk, 16 connections, 256 KiB under way each",
            Together,
            CUBIC,
            &Work {
                window: Some(256 * 1024),
                ..bulk(16)
            },
            Vec::new(),
        ),
        against_bare(
            "bulk, one connection, a core each, cubic",
            Apart,
            CUBIC,
            &bulk(1),
            ratios(1.9, 0.57),
        ),
        against_bare(
            "bulk, one connection, a core each",
            Apart,
            PLAIN,
            &bulk(1),
            ratios(1.5, 0.80),
        ),
        against_itself(
            "64 clients beside 10 000 idle ones",
            Together,
            ("10 000 idle", "", small.clone().beside(10_000)),
            ("none idle", "", small.clone()),
            vec![processor(1.05)],
        ),
        against_bare(
            "messages of all sizes",
            Together,
            PLAIN,
            &Work::new(Mode::Mixed, 64, 64),
            Vec::new(),
        ),
        against_itself(
            "64 clients, two workers",
            Spread,
            ("2 workers", "workers = 2", small.clone()),
            ("1 worker", "workers = 1", small),
            vec![processor(1.10)],
        ),
    ]
}

/// The sides of a scenario beside the two that are compared: ours with and without preserving, another
/// build of ours, and what else echoes here.
pub fn others(options: &Options, peers: &[&'static Peer], work: &Work) -> Vec<Side> {
    let side = |(name, server)| Side {
        name,
        server,
        work: work.clone(),
    };
    let ours = [
        ("tcp-echo, preserving at once", Kind::Preserving),
        (
            "tcp-echo, not preserving",
            Kind::Daemon("preserve-connections = false", ""),
        ),
    ];
    let former = options
        .former
        .clone()
        .map(|path| ("former", Kind::Other(path)));
    let peers = peers.iter().map(|peer| (peer.name, Kind::Peer(peer)));
    ours.into_iter()
        .chain(former)
        .chain(peers)
        .map(side)
        .collect()
}
