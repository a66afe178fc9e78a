//! Many at once, and more than there is room for.

use std::time::{Duration, Instant};

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use rustix::process::{Resource, Signal, getrlimit};
use testkit::load::{Client, Load, Talk};
use testkit::manager::Manager;
use testkit::process;
use testkit::report::{Report, median, ms, percentile};
use testkit::{Daemon, Plan, SOON, connect, eventually};

use crate::client::ping;

/// The most connections that are held at once.
const MOST: usize = 250_000;

/// Connections to one address: with more, the kernel takes long to find a free port.
const PORTS: usize = 8000;

pub fn crowd(report: &mut Report) {
    all_echoing(report);
    connecting_at_once(report);
}

fn all_echoing(report: &mut Report) {
    const COUNT: usize = 10_000;
    let daemon = Daemon::start();
    let began = Instant::now();
    let mut load = Load::connect(daemon.address(), COUNT, Talk::SILENCE);
    let connected = began.elapsed();
    report.check("connected", load.finish(SOON));
    let mut spans = Vec::new();
    for round in 1..=3 {
        let start = Instant::now();
        load.set_all(Talk::bytes(64 * round));
        report.check("10 000 echoing", load.finish(SOON));
        spans.push(start.elapsed());
    }
    let took = median(spans.clone());
    report.figure(
        &format!("{COUNT} connections, a message each"),
        &format!(
            "connected in {}, all echoed in {} (median of 3; first {})",
            ms(connected),
            ms(took),
            ms(spans[0])
        ),
        "<= 1 s",
        took <= Duration::from_secs(1),
    );
}

fn connecting_at_once(report: &mut Report) {
    const COUNT: usize = 5_000;
    let daemon = Daemon::start();
    let mut load = Load::new();
    let began = Instant::now();
    for _ in 0..COUNT {
        load.begin(daemon.address(), Talk::messages(64, 1));
    }
    let begun = began.elapsed();
    let outcome = load.finish(Duration::from_secs(10));
    let mut spans: Vec<Duration> = load
        .clients
        .iter()
        .filter_map(|client| client.done)
        .map(|done| done - began)
        .collect();
    let served = spans.len();
    // A handshake whose SYN was dropped comes again after a second.
    let slow = spans.iter().filter(|span| span.as_millis() >= 900).count();
    let last = percentile(&mut spans, 100);
    let intact = load.no_wrong_byte();
    report.check("connecting at once", intact);
    report.figure(
        &format!("{COUNT} connects at once"),
        &format!(
            "begun in {}, {served} served, the last after {}; {slow} handshakes were repeated",
            ms(begun),
            ms(last)
        ),
        "none refused or timed out",
        outcome.is_ok(),
    );
}

/// The longest round of the loop while something is done that concerns all connections: preserved ones,
/// as many as there are descriptors for.
pub fn rounds(report: &mut Report) {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let count = usize::try_from(descriptors - 200).map_or(MOST, |room| room.min(MOST));
    let listen = |host: usize| TcpListener::bind(format!("127.0.0.{}:0", 1 + host)).unwrap();
    let metrics = listen(0);
    let at = metrics.local_addr().unwrap();
    let mut manager = Manager::wide().listener("metrics", metrics);
    let mut addresses = vec![manager.address()];
    for host in 1..=count / PORTS {
        let listener = listen(host);
        addresses.push(listener.local_addr().unwrap());
        manager = manager.listener(&format!("echo-{host}"), listener);
    }
    let limits = format!("preserve-after = '0s'\n[limits]\nmax-connections = {MOST}\n");
    manager.config(&limits);
    manager.start();
    Page::of(at);
    let before = process::memory(manager.daemon().pid());
    let mut figure = |what: &str, longest: Duration| {
        let name = format!("{count} connections, longest round: {what}");
        let goal = Duration::from_millis(5);
        report.figure(&name, &ms(longest), "<= 5 ms", longest <= goal);
    };
    let mut clients: Vec<TcpStream> = addresses
        .iter()
        .cycle()
        .take(count)
        .map(|address| connect(*address))
        .collect();
    figure("they connect", Page::of(at).longest);
    figure(
        "are preserved",
        Page::until(at, |page| page.preserved == count),
    );
    // Beside the messages of the queue, which are the kernel's: 3 bytes each.
    let grown = process::memory(manager.daemon().pid()) - before;
    let mut each = |what: &str, act: &mut dyn FnMut(&mut Manager)| {
        let span = |_| {
            Page::of(at);
            act(&mut manager);
            std::thread::sleep(Duration::from_millis(300));
            Page::of(at).longest
        };
        // The least of some, as this process has the processors, too.
        figure(what, (0..3).map(span).min().unwrap_or_default());
    };
    each("nothing", &mut |_| {});
    each("USR1", &mut |manager| manager.daemon().signal(Signal::USR1));
    each("a reload", &mut |manager| manager.reload(&limits));
    let mut hours = 0;
    each("a reload with an idle-timeout", &mut |manager| {
        hours += 1;
        manager.reload(&format!("{limits}idle-timeout = '{hours}h'\n"));
    });
    manager.reload(&limits);
    let before = manager.names();
    clients.truncate(count - count / 3);
    figure("a third ends, and the queue is rotated", {
        Page::until(at, |page| {
            page.preserved == clients.len() && manager.names() != before
        })
    });
    let grown = usize::try_from(grown).unwrap_or(0) / count;
    report.figure(
        &format!("{count} connections, memory with preservation"),
        &format!("{grown} bytes each"),
        "<= 250 bytes",
        grown <= 250,
    );
    let mut took = |what: &str, act: &dyn Fn(&mut Manager)| {
        let began = Instant::now();
        act(&mut manager);
        let name = format!("{} connections, {what}", clients.len());
        report.fact(&name, &ms(began.elapsed()));
    };
    took("a hand-over", &Manager::hand_over);
    took("a start with them", &Manager::start);
    took("a stop", &Manager::stop);
}

/// What the metrics have of a daemon.
struct Page {
    /// The longest round since the last page.
    longest: Duration,
    preserved: usize,
}

impl Page {
    fn of(address: SocketAddr) -> Self {
        let mut stream = connect(address);
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let value = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.rsplit(' ').next());
            value.unwrap_or_else(|| panic!("no {name} in {text}"))
        };
        let longest = value("tcp_echo_round_longest_seconds{").parse();
        Self {
            longest: Duration::from_secs_f64(longest.unwrap()),
            preserved: value("tcp_echo_connections_preserved ").parse().unwrap(),
        }
    }

    /// Waits until it is so; returns the longest round meanwhile.
    fn until(address: SocketAddr, so: impl Fn(&Self) -> bool) -> Duration {
        let mut longest = Duration::ZERO;
        eventually(10 * SOON, "the metrics do not say so", || {
            let page = Self::of(address);
            longest = longest.max(page.longest);
            std::thread::sleep(Duration::from_millis(20));
            so(&page).then_some(longest)
        })
    }
}

pub fn descriptors(report: &mut Report) {
    const COUNT: usize = 200;
    let started = Instant::now();
    let mut daemon = Plan::new().under(&["prlimit", "--nofile=64:64"]).start();
    let mut established = daemon.connect();
    established.set_nodelay(true).unwrap();
    let mut load = Load::connect(daemon.address(), COUNT, Talk::messages(64, 1));
    load.settle(Duration::from_millis(300));
    let served = |load: &Load| load.count(|client| client.done.is_some());
    let first = served(&load);
    let mut spans: Vec<Duration> = Vec::new();
    for number in 0..2000 {
        match ping(&mut established, number) {
            Ok(span) => spans.push(span),
            Err(text) => return report.broken(&text),
        }
    }
    report.figure(
        "64 descriptors, 200 clients",
        &format!(
            "{first} served, {} wait; an established client: p50 {} p99 {}",
            COUNT - first,
            ms(percentile(&mut spans, 50)),
            ms(percentile(&mut spans, 99))
        ),
        "unaffected",
        first < COUNT && percentile(&mut spans, 99) < Duration::from_millis(5),
    );
    let mut spans = Vec::new();
    for _ in 0..20 {
        let before = served(&load);
        let leaver = load.clients.iter().position(is_served).unwrap();
        let began = Instant::now();
        load.shut(leaver);
        if !load.run(Duration::from_secs(5), |load| served(load) > before) {
            return report.broken("a freed descriptor serves no caller");
        }
        spans.push(began.elapsed());
    }
    report.figure(
        "a freed descriptor serves the next",
        &format!(
            "after {}, at most {} in {} times",
            ms(percentile(&mut spans, 50)),
            ms(percentile(&mut spans, 100)),
            spans.len()
        ),
        "<= 100 ms",
        percentile(&mut spans, 100) <= Duration::from_millis(100),
    );
    report.check("clients", load.no_wrong_byte());
    daemon.reload("");
    let began = Instant::now();
    daemon.signal(Signal::TERM);
    load.run(SOON, |load| load.count(|client| client.end.is_none()) == 0);
    drop(established);
    let status = eventually(SOON, "TERM did not end it", || {
        (!daemon.is_running()).then(|| daemon.exited(SOON))
    });
    let unserved = load.count(|client| client.received < client.talk.goal);
    report.figure(
        "HUP and TERM meanwhile",
        &format!(
            "reloaded; ended after {} with {status}; {unserved} of those that waited were not served",
            ms(began.elapsed())
        ),
        "exit 0",
        status.success(),
    );
    let log = daemon.log();
    let events = log.lines().filter(|line| line.contains("paused")).count();
    let seconds = started.elapsed().as_secs_f64();
    report.figure(
        "events that report it",
        &format!("{events} in {seconds:.1} s"),
        "<= 1 a second",
        events >= 1 && events as f64 <= seconds + 1.0,
    );
}

fn is_served(client: &Client) -> bool {
    client.done.is_some() && client.end.is_none()
}
