//! What a restart costs for each connection that is restored.
//!
//! The service manager of the tests passes the connections on, so that what is measured is the daemon and
//! not systemd.  A start without connections is measured as well, and subtracted.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use testkit::manager::Manager;
use testkit::process::processor_time;
use testkit::report::{Report, median, ms};

const COUNTS: [usize; 3] = [100, 2000, 8000];

const RUNS: usize = 7;

/// Long enough for the first round of a start to be over.
const REST: Duration = Duration::from_millis(300);

/// What one restart has taken.
struct Restart {
    /// From the start of the process to the message that it is ready.
    ready: Duration,
    /// Processor time of the process when all is done.
    time: Duration,
    /// From the start of the process to the first and the last echo.
    echoes: Option<(Duration, Duration)>,
}

/// When the first bytes arrive on one of these.
fn first_echo(sockets: &[TcpStream]) -> Instant {
    let watch = |socket| PollFd::new(socket, PollFlags::IN);
    let mut watched: Vec<PollFd<'_>> = sockets.iter().map(watch).collect();
    poll(&mut watched, None).unwrap();
    Instant::now()
}

/// Restarts the daemon.  `busy`: each client has sent a message meanwhile.
fn restart(manager: &mut Manager, clients: &mut [TcpStream], busy: bool) -> Restart {
    manager.hand_over();
    if busy {
        for client in &mut *clients {
            client.write_all(b"message").unwrap();
        }
    }
    // The first echo may come before readiness.
    let sockets = clients.iter().map(|client| client.try_clone().unwrap());
    let sockets: Vec<TcpStream> = if busy { sockets.collect() } else { Vec::new() };
    let reader = busy.then(|| std::thread::spawn(move || first_echo(&sockets)));
    let began = Instant::now();
    manager.launch();
    manager.ready();
    let ready = began.elapsed();
    let echoes = busy.then(|| {
        let first = reader.map(|reader| reader.join().unwrap() - began);
        for client in clients {
            client.read_exact(&mut [0; 7]).unwrap();
        }
        (first.unwrap_or_default(), began.elapsed())
    });
    std::thread::sleep(REST);
    let time = Duration::from_micros(processor_time(manager.daemon().pid()));
    Restart {
        ready,
        time,
        echoes,
    }
}

fn restarts(manager: &mut Manager, clients: &mut [TcpStream], busy: bool) -> Vec<Restart> {
    (0..RUNS).map(|_| restart(manager, clients, busy)).collect()
}

fn median_of(restarts: &[Restart], what: impl Fn(&Restart) -> Duration) -> Duration {
    median(restarts.iter().map(what).collect())
}

/// In microseconds for each of so many connections, of what exceeds `base`.
fn each(took: Duration, base: Duration, count: usize) -> f64 {
    (took.as_secs_f64() - base.as_secs_f64()) * 1e6 / f64::from(u32::try_from(count).unwrap())
}

pub fn restore(report: &mut Report) {
    let mut manager = Manager::wide();
    manager.start();
    let none = restarts(&mut manager, &mut [], false);
    let base = median_of(&none, |restart| restart.ready);
    let base_time = median_of(&none, |restart| restart.time);
    report.note(&format!(
        "a start without connections: ready after {}, {} of processor time",
        ms(base),
        ms(base_time)
    ));
    drop(manager);
    for count in COUNTS {
        measure(report, count, base, base_time);
    }
}

fn measure(report: &mut Report, count: usize, base: Duration, base_time: Duration) {
    let mut manager = Manager::wide();
    manager.start();
    let mut clients: Vec<TcpStream> = (0..count).map(|_| manager.connect()).collect();
    manager.preserves(count);
    let quiet = restarts(&mut manager, &mut clients, false);
    let busy = restarts(&mut manager, &mut clients, true);
    manager.preserves(count);
    let each = |took, base| each(took, base, count);
    let time = each(median_of(&quiet, |restart| restart.time), base_time);
    let ready = each(median_of(&quiet, |restart| restart.ready), base);
    let echo = |restart: &Restart| restart.echoes.unwrap_or_default();
    let first = median_of(&busy, |restart| echo(restart).0);
    let last = median_of(&busy, |restart| echo(restart).1);
    report.figure(
        &format!("{count} connections"),
        &format!(
            "{time:.1} us of processor time each, ready after {ready:.1} us each; where each has \
             sent a message, the first echo after {}, the last after {}, {:.1} us each",
            ms(first),
            ms(last),
            each(last, base)
        ),
        "<= 8 us each",
        time <= 8.0,
    );
}
