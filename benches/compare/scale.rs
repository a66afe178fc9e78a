//! From one connection to as many as there are descriptors: what each costs.
//!
//! For each number a new server, so that nothing is left over from a greater one.  All connect,
//! send once and are silent: then the memory in user space is read; then all send in turn, which
//! gives the processor time of a message, and the memory must not have grown by it; then all are
//! closed, and it must be given back.  The kernel's own memory is reported for both ends of a
//! connection, as they live on the same machine here.

use serde::{Deserialize, Serialize};
use testkit::process::{memory, slabs};
use testkit::report::Report;

use crate::load::{Mode, Work};
use crate::options::Options;
use crate::rounds::{placed, run};
use crate::scenarios::{BARE, Place};
use crate::servers::{Kind, Server};

const COUNTS: [usize; 9] = [1, 10, 100, 1000, 2000, 5000, 10_000, 15_000, 19_000];

/// What a server needed for a number of connections.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Point {
    pub count: usize,
    /// Bytes in user space for each connection.
    pub memory: f64,
    /// Further bytes for each after use.
    pub growth: f64,
    /// Bytes that are left when all are closed, all together.
    pub rest: i64,
    /// Bytes in the kernel for both ends of each connection.
    pub kernel: f64,
    /// Processor time of the server for each message, in microseconds.
    pub processor: f64,
}

/// The daemon's points, and those of the bare loop.
pub fn scale(options: &Options, report: &mut Report) -> Option<Vec<(String, Vec<Point>)>> {
    // In its first second a connection waits to be preserved, which takes 32 bytes, and whether the
    // memory was read within that second would decide what is reported.
    let ours = Kind::Daemon("preserve-connections = false", "");
    let servers = [("tcp-echo", ours), (BARE, Kind::Bare)];
    let mut lines = Vec::new();
    for (name, kind) in servers {
        let mut points = Vec::new();
        for count in COUNTS {
            report.doing(&format!("{name}, {count} connection(s)"));
            match point(&kind, count, options) {
                Ok(point) => points.push(point),
                Err(error) => {
                    report.broken(&format!("{name}, {count} connections: {error}"));
                    return None;
                }
            }
        }
        lines.push((name.into(), points));
    }
    for (name, points) in &lines {
        for point in points {
            // For few it is lost in what else the kernel does.
            let kernel = match point.count {
                1000.. => format!(
                    "{:.1} KiB in the kernel (both ends), ",
                    point.kernel / 1024.0
                ),
                _ => String::new(),
            };
            report.fact(
                &format!("{name}, {} connection(s)", point.count),
                &format!(
                    "{:.0} bytes each in user space, {kernel}{:.3} us of server CPU for each message; \
                     {} KiB are left",
                    point.memory,
                    point.processor,
                    point.rest / 1024
                ),
            );
        }
    }
    for point in lines[0].1.iter().filter(|point| point.count >= 10_000) {
        let text = format!("{:.0} bytes each", point.memory);
        report.figure(
            &format!("{} idle", point.count),
            &text,
            "<= 200 bytes",
            point.memory <= 200.0,
        );
        let text = format!("{:.1} bytes each", point.growth);
        // Pages are what is counted, and a few of them no growth.
        report.figure("  growth after use", &text, "< 4 bytes", point.growth < 4.0);
        let text = format!("{} KiB are left", point.rest / 1024);
        report.figure(
            "  after all are closed",
            &text,
            "<= 128 KiB",
            point.rest <= 128 * 1024,
        );
    }
    Some(lines)
}

fn point(kind: &Kind, count: usize, options: &Options) -> Result<Point, String> {
    let (cpus, cpu) = placed(Place::Together)?;
    let server = Server::start(kind, &options.config, &cpus);
    let work = Work {
        cpu,
        seconds: 0.02,
        ..Work::new(Mode::Bulk, 1, 1024)
    };
    // The first connection allocates what all of them share.
    run(&server, work.clone())?;
    server.settle()?;
    let (before, kernel) = (memory(server.pid), slabs());
    // First with all of them idle but one, then with all at work.
    let idle = Work {
        idle: count - 1,
        mode: Mode::PingPong,
        size: 64,
        ..work.clone()
    };
    let idle = run(&server, idle)?;
    server.settle()?;
    let busy = Work {
        connections: count,
        mode: Mode::PingPong,
        size: 64,
        seconds: options.seconds,
        warm_up: 0.0,
        ..work
    };
    let busy = run(&server, busy)?;
    server.settle()?;
    let each = |bytes: i64| bytes as f64 / count as f64;
    let (with_idle, [with_busy, after_use]) = (
        idle.memory.unwrap_or_default()[0],
        busy.memory.unwrap_or_default(),
    );
    Ok(Point {
        count,
        memory: each(with_idle - before),
        growth: each(after_use.max(with_busy) - with_idle),
        rest: memory(server.pid) - before,
        kernel: each(idle.kernel - kernel),
        processor: busy.server / busy.units.max(1.0),
    })
}
