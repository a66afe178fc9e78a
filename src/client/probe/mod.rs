//! `tcp-echo probe`: a verdict on the path to an echo server and on the server, case by case.
//!
//! Each case observes and judges.  To observe takes sockets and time; to judge is a pure function of
//! what was observed, and is tested with observations that are scripted.  A verdict says what was
//! seen; a cause is named only where what was seen fits it.

mod bytes;
mod connect;
mod end;
mod flow;
pub mod hold;
mod html;
mod idle;
mod load;
mod preamble;
pub mod report;
mod size;
mod talk;
mod verdict;
mod watch;

use std::cell::OnceCell;
use std::time::{Duration, Instant};

pub use verdict::{Figures, Finding, Verdict};

use super::outcome::Class;
use super::target::Place;
use size::Sizes;
use talk::{Before, Dialer, End, Talk, drive};
use verdict::{Judged, NotJudged};

/// How the probe is done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The addresses of the target, in the order in which to try them.
    pub places: Vec<Place>,
    /// The seed of what is sent.
    pub seed: u64,
    /// How long a handshake or an echo may take.
    pub patience: Duration,
    /// Whether cases are done that send as much as they can.
    pub bulk: bool,
    /// The longest silence that is tried, if one is.
    pub idle: Option<Duration>,
    /// What stands before each stream: a PROXY header, or nothing.
    pub preamble: Vec<u8>,
}

/// A probe at work: what the cases share.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) plan: &'a Plan,
    /// The address that the cases are about.
    pub(crate) place: Place,
    pub(crate) dialer: Dialer,
    /// What became of the sizes in both directions, once it is known.
    sizes: OnceCell<Result<Sizes, NotJudged>>,
}

impl Run<'_> {
    /// A connection as the cases want it.
    pub(crate) fn dial(&self) -> Result<Talk, NotJudged> {
        self.dial_with(Before::default())
    }

    pub(crate) fn dial_with(&self, before: Before) -> Result<Talk, NotJudged> {
        self.dialer
            .dial(&self.place, before)
            .map_err(NotJudged::NoConnection)
    }

    pub(crate) fn dial_many(
        &self,
        before: impl Iterator<Item = Before>,
    ) -> Result<Vec<Talk>, NotJudged> {
        self.dialer
            .dial_many(&self.place, before)
            .map_err(NotJudged::NoConnection)
    }

    /// Moves bytes until `done` says so, or nothing has moved for as long as patience lasts.
    ///
    /// Returns whether `done` has said so.
    pub(crate) fn drive(
        &self,
        talks: &mut [Talk],
        mut done: impl FnMut(&mut [Talk]) -> bool,
    ) -> bool {
        loop {
            let before = moved(talks);
            let deadline = Instant::now() + self.plan.patience;
            if drive(talks, deadline, &mut done) {
                return true;
            }
            if moved(talks) == before {
                return false;
            }
        }
    }

    /// What became of the sizes in both directions, which are tried at once.
    fn sizes(&self) -> Result<&Sizes, NotJudged> {
        let sizes = self.sizes.get_or_init(|| size::observe(self));
        sizes.as_ref().map_err(|why| *why)
    }

    fn is_tcp(&self) -> bool {
        matches!(self.place, Place::Ip(_))
    }
}

/// Bytes that were moved by now.
fn moved(talks: &[Talk]) -> u64 {
    talks.iter().map(|talk| talk.sent + talk.received()).sum()
}

/// What `--no-bulk` leaves out, in bytes.
pub const MUCH: u64 = 64 << 20;

/// One case of the probe.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name, which stays: the group, and what of it.
    pub id: &'static str,
    /// What is tried.
    pub about: &'static str,
    /// The most that it sends, in bytes; [`MUCH`] and more is what `--no-bulk` leaves out.
    pub most: u64,
    /// Whether it is about TCP, and makes no sense for a Unix socket.
    tcp: bool,
    run: fn(&Run<'_>) -> Judged,
}

/// All cases, in the order in which they are done.
pub const CASES: &[Case] = &[
    Case {
        id: "connect/addresses",
        about: "each address of the name answers, with the first SYN",
        most: 1 << 16,
        tcp: false,
        run: connect::addresses,
    },
    Case {
        id: "connect/proxy",
        about: "the echo comes from where TCP ends",
        most: 1 << 16,
        tcp: true,
        run: connect::proxy,
    },
    Case {
        id: "bytes/small",
        about: "single bytes come back at once and in their place",
        most: 1 << 16,
        tcp: false,
        run: bytes::small,
    },
    Case {
        id: "bytes/bulk",
        about: "a large stream comes back, each byte in its place",
        most: bytes::BULK_REMOTE,
        tcp: false,
        run: bytes::bulk,
    },
    Case {
        id: "order/many",
        about: "64 connections at once, and no byte of another",
        most: bytes::MANY as u64 * bytes::EACH,
        tcp: false,
        run: bytes::many,
    },
    Case {
        id: "end/nothing",
        about: "our FIN without a byte is answered by a FIN",
        most: 1 << 16,
        tcp: false,
        run: end::nothing,
    },
    Case {
        id: "end/little",
        about: "1000 bytes with our FIN behind them come back",
        most: 1 << 16,
        tcp: false,
        run: end::little,
    },
    Case {
        id: "end/much",
        about: "1 MiB with our FIN behind it comes back",
        most: 1 << 20,
        tcp: false,
        run: end::much,
    },
    Case {
        id: "end/points",
        about: "our FIN after each of many counts of bytes",
        most: 1 << 20,
        tcp: false,
        run: end::points,
    },
    Case {
        id: "end/full",
        about: "our FIN while every buffer on the way is full",
        most: end::HELD_MOST,
        tcp: false,
        run: end::full,
    },
    Case {
        id: "reset/others",
        about: "our RST on some connections disturbs no other",
        most: 6 << 20,
        tcp: true,
        run: end::reset,
    },
    Case {
        id: "size/up",
        about: "packets of each size reach the server (path MTU)",
        most: 4 << 20,
        tcp: true,
        run: size::up,
    },
    Case {
        id: "size/down",
        about: "packets of each size come back (path MTU)",
        most: 4 << 20,
        tcp: true,
        run: size::down,
    },
    Case {
        id: "window/closed",
        about: "our window closes for a while, and opens again",
        most: end::HELD_MOST,
        tcp: false,
        run: flow::window,
    },
    Case {
        id: "urgent/byte",
        about: "an urgent byte comes back in its place",
        most: 1 << 16,
        tcp: true,
        run: flow::urgent,
    },
    Case {
        id: "load/working",
        about: "how long an answer takes while the path is busy",
        most: load::MOST_BYTES,
        tcp: true,
        run: load::working,
    },
    Case {
        id: "idle/silence",
        about: "how long a connection may be silent, and what ends it",
        most: 1 << 20,
        tcp: true,
        run: idle::silence,
    },
    Case {
        id: "proxy/v1",
        about: "PROXY headers of version 1",
        most: 1 << 16,
        tcp: false,
        run: preamble::v1,
    },
    Case {
        id: "proxy/v2",
        about: "PROXY headers of version 2",
        most: 1 << 16,
        tcp: false,
        run: preamble::v2,
    },
    Case {
        id: "proxy/split-v1",
        about: "a header of version 1 that is cut in two at any byte",
        most: 1 << 16,
        tcp: false,
        run: preamble::split1,
    },
    Case {
        id: "proxy/split-v2",
        about: "a header of version 2 that is cut in two at any byte",
        most: 1 << 16,
        tcp: false,
        run: preamble::split2,
    },
    Case {
        id: "proxy/local",
        about: "LOCAL headers, with bytes that are to be skipped",
        most: 1 << 16,
        tcp: false,
        run: preamble::local,
    },
    Case {
        id: "proxy/long",
        about: "headers with long TLVs",
        most: 1 << 16,
        tcp: false,
        run: preamble::long,
    },
    Case {
        id: "proxy/checksum",
        about: "a CRC32c that is right, and one that is wrong",
        most: 1 << 16,
        tcp: false,
        run: preamble::checksum,
    },
    Case {
        id: "proxy/without",
        about: "a connection without a header",
        most: 1 << 16,
        tcp: false,
        run: preamble::without,
    },
];

impl Case {
    /// The part of its name that it has in common with its like.
    #[must_use]
    pub fn group(&self) -> &'static str {
        self.id.split('/').next().unwrap_or(self.id)
    }
}

/// The cases that a list of names and groups means; of none, all but those that are done on request:
/// silence, and receivers of PROXY headers.
///
/// # Errors
/// The first word that is no name of a case and no group.
pub fn select(words: &[String], idle: bool, receiver: bool) -> Result<Vec<&'static Case>, String> {
    let means = |word: &str, case: &Case| case.id == word || case.group() == word;
    if let Some(unknown) = words
        .iter()
        .find(|word| !CASES.iter().any(|case| means(word, case)))
    {
        return Err(unknown.clone());
    }
    let usual = |case: &Case| match case.group() {
        "idle" => idle,
        "proxy" => receiver,
        _ => true,
    };
    let selected = CASES.iter().filter(|case| match words {
        [] => usual(case),
        _ => words.iter().any(|word| means(word, case)),
    });
    Ok(selected.collect())
}

/// The PROXY header that stands before each stream for a receiver of such.
#[must_use]
pub fn proxy_header() -> Vec<u8> {
    preamble::usual()
}

/// The most that the cases send, in bytes.
#[must_use]
pub fn most(plan: &Plan, cases: &[&Case]) -> u64 {
    let sent = cases.iter().map(|case| case.most);
    sent.filter(|most| plan.bulk || *most < MUCH).sum()
}

/// What a probe is to do beside the cases: it is asked before each, and sees each verdict.
pub trait Observer {
    /// A case begins.
    fn begins(&mut self, case: &'static Case);
    /// A case is judged.
    fn judged(&mut self, case: &'static Case, finding: &Finding);
}

/// All that a probe found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The address that the cases are about.
    pub place: Place,
    /// The seed of what was sent.
    pub seed: u64,
    /// What each case found, in their order.
    pub findings: Vec<(&'static Case, Finding)>,
    /// Bytes sent and received.
    pub bytes: u64,
    /// How long it took.
    pub span: Duration,
}

/// Does the cases, one after the other, on the first address that echoes.
///
/// # Errors
/// There is no conversation at all: how the last address failed.
pub fn run(
    plan: &Plan,
    cases: &[&'static Case],
    observer: &mut impl Observer,
) -> Result<Report, Class> {
    let begun = Instant::now();
    let dialer = Dialer::new(plan.seed, plan.patience, &plan.preamble, 0);
    let place = converse(plan, &dialer)?;
    let run = Run {
        plan,
        place: place.clone(),
        dialer,
        sizes: OnceCell::new(),
    };
    let mut findings = Vec::new();
    for case in cases {
        observer.begins(case);
        let finding = match (case.tcp && !run.is_tcp(), case.most >= MUCH && !plan.bulk) {
            (true, _) => Finding::skipped("this is about TCP, and the target is a Unix socket"),
            (_, true) => Finding::skipped("it sends much (--no-bulk)"),
            _ => (case.run)(&run).unwrap_or_else(Into::into),
        };
        observer.judged(case, &finding);
        findings.push((*case, finding));
    }
    Ok(Report {
        place,
        seed: plan.seed,
        findings,
        bytes: run.dialer.moved(),
        span: begun.elapsed(),
    })
}

/// The first address that echoes at all.
fn converse(plan: &Plan, dialer: &Dialer) -> Result<Place, Class> {
    let mut class = Class::Name;
    for place in &plan.places {
        match dialer.dial(place, Before::default()) {
            Ok(mut talk) => {
                talk.quota = 64;
                let mut talks = [talk];
                let deadline = Instant::now() + plan.patience;
                drive(&mut talks, deadline, |talks| talks[0].is_settled());
                let [mut talk] = talks;
                talk.checker.finish();
                class = match (talk.checker.is_wrong(), talk.end, talk.received()) {
                    (true, _, _) => Class::Wrong,
                    (false, None, 64) => return Ok(place.clone()),
                    (false, Some(End::Fin), _) => Class::Closed,
                    (false, Some(_), _) => Class::Reset,
                    (false, None, 0) => Class::Silent,
                    (false, None, _) => Class::Stalled,
                };
            }
            Err(failed) => class = failed,
        }
    }
    Err(class)
}
