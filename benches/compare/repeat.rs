//! The same short burst again and again: a lost edge shows itself once in many runs.
//!
//! Server and load on a processor each, so that messages arrive while the server reads, and no
//! warm-up, so that every run has its beginning.  The load waits at its end until everything is
//! back: no connection may be forgotten.

use testkit::report::Report;

use crate::load::{Mode, Work};
use crate::options::Options;
use crate::rounds::{placed, run};
use crate::scenarios::Place;
use crate::servers::{Kind, Server};

const TIMES: usize = 200;

pub fn repeat(options: &Options, report: &mut Report) {
    let (cpus, cpu) = placed(Place::Apart)
        .or_else(|_| placed(Place::Together))
        .unwrap();
    let server = Server::start(&Kind::OURS, &options.config, &cpus);
    let mut messages = 0.0;
    for time in 0..TIMES {
        report.doing(&format!("burst {} of {TIMES}", time + 1));
        let work = Work {
            cpu,
            seconds: 0.03,
            warm_up: 0.0,
            // Of different sizes, so that they meet the ends of buffers differently.
            depth: 2 + time % 31,
            ..Work::new(Mode::Pipelined, 1 + time % 64, 1 + time * 37 % 4096)
        };
        match run(&server, work) {
            Ok(outcome) => messages += outcome.units,
            Err(error) => return report.broken(&format!("burst {time}: {error}")),
        }
    }
    report.figure(
        &format!("{TIMES} bursts"),
        &format!("{messages:.0} messages, all back"),
        "no hang",
        true,
    );
}
