//! `tcp-echo ping`: resolves, runs, prints.
//!
//! What is printed is for a person, or JSON, or comma-separated values; the last line names the
//! class and what it usually means, on standard error where standard output is for a program.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use super::serve::descriptors;
use super::{Exit, complain, is_dumb, wants_colour};
use crate::cli::{self, Ping};
use crate::client::outcome::Class;
use crate::client::ping::driver::{Driver, From, Observer, Options};
use crate::client::ping::events::{self, Event};
use crate::client::ping::finding::Finding;
use crate::client::ping::report;
use crate::client::ping::session::Session;
use crate::client::ping::summary::Summary;
use crate::client::ping::threshold::Threshold;
use crate::client::ping::{Pace, Plan, plot};
use crate::client::statistics::Sample;
use crate::client::target::{Family, Place, Target, Unresolved};
use crate::config::BUILT_IN_PORT;

/// How long the resolver may take.
const RESOLVE: Duration = Duration::from_secs(10);

/// How long the other port may take to answer, on this host.
const OTHER_PORT: Duration = Duration::from_millis(200);

/// Messages further apart than this have a line each.
const LINES: Duration = Duration::from_millis(5);

/// How long throughput is measured.
const BULK: Duration = Duration::from_secs(10);

/// Between two drawings of the line that is drawn over.
const LIVE: Duration = Duration::from_millis(200);

/// Lines of one kind in a second, where there are several connections; the others are counted.
const SAID: u64 = 3;

/// Bytes of a message.
const SIZE: usize = 64;
const BULK_SIZE: usize = 64 * 1024;

/// Messages under way on a connection.
const DEPTH: usize = 1000;

/// Runs it.
#[must_use]
pub(super) fn run(arguments: &Ping) -> ExitCode {
    match try_run(arguments) {
        Ok(class) => ExitCode::from(class.status()),
        Err((exit, why)) => {
            complain(&why);
            exit.into()
        }
    }
}

type Failure = (Exit, String);

fn usage(why: String) -> Failure {
    (Exit::Usage, why)
}

fn unwritable(error: &io::Error) -> Failure {
    (Exit::Os, format!("the output cannot be written: {error}"))
}

fn try_run(arguments: &Ping) -> Result<Class, Failure> {
    let parsed = |text: &String| text.parse::<Target>().map_err(usage);
    let targets: Vec<Target> = arguments
        .targets
        .iter()
        .map(parsed)
        .collect::<Result<_, _>>()?;
    let parsed = |text: &String| text.parse::<Threshold>().map_err(usage);
    let thresholds: Vec<_> = arguments
        .fail_if
        .iter()
        .map(parsed)
        .collect::<Result<_, _>>()?;
    if targets.len() > 1 && (arguments.svg.is_some() || arguments.hdr.is_some()) {
        return Err(usage("--svg and --hdr are for one target".into()));
    }
    let connections = arguments.connections as usize;
    let possible = descriptors(1, 0, false);
    if connections.saturating_mul(targets.len()) > possible {
        return Err(usage(format!(
            "{connections} connections to each target need more descriptors than the {possible} \
             that there are; raise the limit (ulimit -Hn)"
        )));
    }
    let plan = plan(arguments);
    let from = |text: &String| match text.parse::<IpAddr>() {
        Ok(address) => From::Address(address),
        Err(_) => From::Interface(text.clone()),
    };
    let options = Options {
        from: arguments.interface.as_ref().map(from),
        busy: arguments.busy,
    };
    let origin = Instant::now();
    let resolved = resolve(&targets, family(arguments.family));
    let system = |what| move |error: io::Error| (Exit::Os, format!("{what}: {error}"));
    let mut driver = Driver::new(origin, options).map_err(system("epoll cannot be used"))?;
    driver
        .handle_signals()
        .map_err(system("signals cannot be handled"))?;
    let mut printer = Printer::new(arguments, &plan, targets.len() > 1);
    let mut summaries = Vec::new();
    let mut shown = Vec::new();
    for (target, (outcome, took)) in targets.iter().zip(resolved) {
        match outcome {
            Err(why) => {
                summaries.push(Summary::unresolved(
                    target,
                    plan.size,
                    plan.connections,
                    &why,
                ));
                shown.push(None);
            }
            Ok(places) => {
                shown.push(Some(printer.views.len()));
                summaries.push(Summary::default());
                printer.view(target, target.is_name().then_some(took), &places[0]);
                let session = Session::new(plan.clone(), places, seed(shown.len()), driver.now());
                driver.add(session);
            }
        }
    }
    let sessions = driver
        .run(&mut printer)
        .map_err(system("the loop cannot go on"))?;
    printer.end();
    for (summary, view) in summaries.iter_mut().zip(&shown) {
        if let Some(view) = *view {
            *summary = printer.summary(view, &sessions[view], origin.elapsed());
        }
        summary.apply(&thresholds);
    }
    for (summary, view) in summaries.iter().zip(&shown) {
        let rtt = view.map(|view| &sessions[view].tally().rtt);
        printer.conclude(summary, rtt);
    }
    printer.json(&summaries);
    for (summary, target) in summaries.iter().zip(&targets) {
        printer.verdict(summary, target);
    }
    if let (Some(session), Some(path)) = (sessions.first(), &arguments.svg) {
        let drawn = plot::svg(&summaries[0], session.tally());
        write(path, &drawn)?;
    }
    if let (Some(session), Some(path)) = (sessions.first(), &arguments.hdr) {
        write(path, &events::hdr(&session.tally().rtt))?;
    }
    match printer.broken {
        // A reader that has seen enough closes the pipe.
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(unwritable(&error)),
        _ => Ok(Class::of_all(summaries.iter().map(Summary::class))),
    }
}

fn write(path: &std::path::Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| {
        (
            Exit::Os,
            format!("{} cannot be written: {error}", path.display()),
        )
    })
}

fn plan(arguments: &Ping) -> Plan {
    let pace = match (arguments.rate, arguments.bulk) {
        (Some(Duration::ZERO), _) | (_, true) => Pace::Closed,
        (Some(interval), _) => Pace::Every(interval),
        _ => Pace::Every(arguments.interval.unwrap_or(Duration::from_secs(1))),
    };
    let depth = match (arguments.depth, pace) {
        (Some(depth), _) => depth as usize,
        (None, Pace::Closed) if !arguments.bulk => 1,
        _ => DEPTH,
    };
    let bulk = arguments.bulk && arguments.count.is_none();
    let is_slow = matches!(pace, Pace::Every(interval) if interval >= LINES);
    let is_for_programs = arguments.json_lines || arguments.csv;
    Plan {
        size: arguments
            .size
            .unwrap_or(if arguments.bulk { BULK_SIZE } else { SIZE }),
        count: arguments.count,
        pace,
        deadline: arguments.deadline.or(bulk.then_some(BULK)),
        timeout: arguments.timeout,
        connections: arguments.connections as usize,
        depth,
        reports: is_for_programs || (is_slow && !arguments.quiet && !arguments.json),
    }
}

/// All at the same time: a resolver that does not answer holds up nothing but its own target.
/// The addresses that count, as the command line says it.
pub(super) fn family(arguments: cli::Family) -> Family {
    match (arguments.ipv4, arguments.ipv6) {
        (true, _) => Family::V4,
        (_, true) => Family::V6,
        _ => Family::Any,
    }
}

fn resolve(targets: &[Target], family: Family) -> Vec<(Result<Vec<Place>, Unresolved>, Duration)> {
    std::thread::scope(|scope| {
        let start = |target| {
            scope.spawn(move || {
                let begun = Instant::now();
                let outcome = Target::resolve(target, family, RESOLVE);
                (outcome, begun.elapsed())
            })
        };
        let threads: Vec<_> = targets.iter().map(start).collect();
        let none = || (Err(Unresolved::Late(RESOLVE)), RESOLVE);
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| none()))
            .collect()
    })
}

/// A seed of its own for each session of each run.
fn seed(number: usize) -> u64 {
    let time = SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default()
        .as_nanos();
    let time = u64::try_from(time & u128::from(u64::MAX)).unwrap_or(0);
    time ^ (u64::from(std::process::id()) << 40) ^ ((number as u64) << 56)
}

/// What is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json,
    JsonLines,
    Csv,
}

/// A target as it is printed.
struct View {
    target: Target,
    resolve: Option<Duration>,
    /// The round trips that were printed already.
    seen: Sample,
    /// The address of the heading.
    place: Place,
    has_connected: bool,
}

struct Printer {
    out: io::BufWriter<io::Stdout>,
    form: Form,
    plan: Plan,
    quiet: bool,
    several: bool,
    timestamps: bool,
    /// Lines are for a terminal.
    is_live: bool,
    has_colour: bool,
    /// The line that is drawn over.
    is_drawn: bool,
    drawn: Option<Instant>,
    views: Vec<View>,
    /// What was found in this second, by its kind: how often.
    kinds: BTreeMap<String, u64>,
    broken: Option<io::Error>,
}

impl Printer {
    fn new(arguments: &Ping, plan: &Plan, several: bool) -> Self {
        let form = match arguments {
            Ping { json: true, .. } => Form::Json,
            Ping {
                json_lines: true, ..
            } => Form::JsonLines,
            Ping { csv: true, .. } => Form::Csv,
            _ => Form::Text,
        };
        let is_live = form == Form::Text && io::stdout().is_terminal() && !is_dumb();
        let mut printer = Self {
            out: io::BufWriter::new(io::stdout()),
            form,
            plan: plan.clone(),
            quiet: arguments.quiet,
            several,
            timestamps: arguments.timestamps,
            is_live,
            has_colour: is_live && wants_colour(),
            is_drawn: false,
            drawn: None,
            views: Vec::new(),
            kinds: BTreeMap::new(),
            broken: None,
        };
        if printer.form == Form::Csv {
            printer.line(events::HEADER, None);
        }
        printer
    }

    /// Another target.
    fn view(&mut self, target: &Target, resolve: Option<Duration>, place: &Place) {
        self.views.push(View {
            target: target.clone(),
            resolve,
            seen: Sample::new(),
            place: place.clone(),
            has_connected: false,
        });
        if self.form == Form::Text {
            let heading = report::heading(&target.to_string(), &place.to_string(), &self.plan);
            self.line(&heading, None);
        }
    }

    /// Prints a line; a class other than ok gives it a colour.
    fn line(&mut self, text: &str, class: Option<Class>) {
        let text = match self.timestamps && self.form == Form::Text && !text.is_empty() {
            true => {
                let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
                format!("[{}.{:06}] {text}", now.as_secs(), now.subsec_micros())
            }
            false => text.to_owned(),
        };
        let colour = match class {
            _ if !self.has_colour => None,
            Some(Class::Ok) => Some("32"),
            Some(Class::Missed) => Some("33"),
            Some(_) => Some("31"),
            None => None,
        };
        let clear = if std::mem::take(&mut self.is_drawn) {
            "\r\x1b[K"
        } else {
            ""
        };
        let written = match colour {
            Some(colour) => writeln!(self.out, "{clear}\x1b[{colour}m{text}\x1b[0m"),
            None => writeln!(self.out, "{clear}{text}"),
        };
        self.keep(written);
    }

    fn keep(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            self.broken.get_or_insert(error);
        }
    }

    fn flush(&mut self) {
        let written = self.out.flush();
        self.keep(written);
    }

    /// Draws the line that is drawn over.
    fn live(&mut self, session: &Session) {
        let is_early = |drawn: Instant| drawn.elapsed() < LIVE;
        if !self.is_live || self.several || self.drawn.is_some_and(is_early) {
            return;
        }
        let tally = session.tally();
        let picture = report::picture(&tally.rtt).unwrap_or_default();
        let text = format!(
            "{} sent, {} back, {} missing   {picture}",
            tally.sent, tally.received, tally.missing
        );
        // A line that is broken could not be drawn over.
        let columns = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| size.ws_col);
        let text: String = match columns {
            0 => text,
            columns => text.chars().take(usize::from(columns) - 1).collect(),
        };
        let clear = if self.is_drawn { "\r\x1b[K" } else { "" };
        let written = match self.has_colour {
            true => write!(self.out, "{clear}\x1b[2m{text}\x1b[0m"),
            false => write!(self.out, "{clear}{text}"),
        };
        self.keep(written);
        self.is_drawn = true;
        self.drawn = Some(Instant::now());
    }

    /// What was found more often than it was said.
    fn folded(&mut self) {
        for (kind, count) in std::mem::take(&mut self.kinds) {
            if let Some(more @ 1..) = count.checked_sub(SAID) {
                self.line(&format!("{kind} ({more} more)"), None);
            }
        }
    }

    /// Nothing more is found.
    fn end(&mut self) {
        self.folded();
        if std::mem::take(&mut self.is_drawn) {
            let written = write!(self.out, "\r\x1b[K");
            self.keep(written);
        }
    }

    fn prefix(&self, view: usize) -> String {
        match self.several {
            true => format!("{}: ", self.views[view].target),
            false => String::new(),
        }
    }

    fn finding(&mut self, number: usize, finding: &Finding, session: &Session, now: Duration) {
        let event = || Event::of(&self.views[number].target, finding, now);
        match self.form {
            Form::Json => {}
            Form::JsonLines => {
                let text = event().json();
                self.line(&text, None);
            }
            Form::Csv => {
                let text = event().csv();
                self.line(&text, None);
            }
            Form::Text => self.text(number, finding, session),
        }
    }

    fn text(&mut self, number: usize, finding: &Finding, session: &Session) {
        let prefix = self.prefix(number);
        let view = &mut self.views[number];
        if let Finding::Connected {
            after,
            syn_again: None,
            ..
        } = finding
        {
            // Only the first one is news.
            if std::mem::replace(&mut view.has_connected, true) {
                return;
            }
            let counters = session.counters();
            let (mss, mtu) = (counters.mss, counters.path_mtu);
            let mut text = report::phases(view.resolve, *after, mss, mtu);
            if *session.place() != view.place {
                text = format!("{text}   {}", session.place());
            }
            return self.line(&format!("{prefix}{}", text.trim_start()), None);
        }
        if self.quiet && matches!(finding, Finding::Echo { .. } | Finding::Connected { .. }) {
            return;
        }
        let several = session.plan().connections > 1;
        let (text, class) = report::line(finding, several);
        if let Some(kind) = report::kind(finding).filter(|_| several) {
            let said = self.kinds.entry(prefix.clone() + &kind).or_default();
            *said += 1;
            if *said > SAID {
                return;
            }
        }
        self.line(&(prefix + &text), class);
    }

    fn summary(&self, view: usize, session: &Session, now: Duration) -> Summary {
        let view = &self.views[view];
        Summary::of(&view.target, view.resolve, session, now)
    }

    /// The summary for a person.
    fn conclude(&mut self, summary: &Summary, rtt: Option<&Sample>) {
        // Without a connection the last line says it all.
        if self.form == Form::Text && summary.connect_us.is_some() {
            for line in report::summary(summary, &self.plan, rtt).lines() {
                self.line(line, None);
            }
        }
    }

    /// The summary for a program.
    fn json(&mut self, summaries: &[Summary]) {
        match (self.form, summaries) {
            (Form::Json, [summary]) => self.value(summary),
            (Form::Json, _) => self.value(&summaries),
            (Form::JsonLines, _) => {
                for summary in summaries {
                    let text = events::summary(summary);
                    self.line(&text, None);
                }
            }
            _ => {}
        }
    }

    fn value(&mut self, value: &impl serde::Serialize) {
        // Only a map without text as its key could fail.
        let text = serde_json::to_string_pretty(value).unwrap_or_default();
        self.line(&text, None);
    }

    /// The last line.
    fn verdict(&mut self, summary: &Summary, target: &Target) {
        let mut text = report::verdict(summary);
        if summary.class() == Class::Refused {
            let address = summary.address.as_ref().and_then(|text| text.parse().ok());
            if let Some(other) = address.and_then(|address| other_port(target, address)) {
                text = format!(
                    "{text}; something listens on port {BUILT_IN_PORT}: tcp-echo ping {other}"
                );
            }
        }
        match self.form {
            Form::Text => self.line(&text, Some(summary.class())),
            _ => complain(&text),
        }
        self.flush();
    }
}

/// The same host at the port of a daemon without a configuration, if the default one was refused on
/// this host, and something listens there.
pub(super) fn other_port(target: &Target, address: SocketAddr) -> Option<Target> {
    let is_meant = target.has_default_port() && Place::Ip(address).is_local();
    let other = SocketAddr::new(address.ip(), BUILT_IN_PORT);
    (is_meant && TcpStream::connect_timeout(&other, OTHER_PORT).is_ok())
        .then(|| target.at_port(BUILT_IN_PORT))
}

impl Observer for Printer {
    fn found(&mut self, number: usize, session: &mut Session, now: Duration) -> bool {
        let findings: Vec<Finding> = session.findings().collect();
        for finding in &findings {
            self.finding(number, finding, session, now);
        }
        if self.plan.reports && self.form == Form::Text {
            self.live(session);
        }
        self.flush();
        self.broken.is_none()
    }

    fn second(&mut self, sessions: &[Session], now: Duration) -> bool {
        self.folded();
        if self.form == Form::Text && !self.plan.reports && !self.quiet {
            for (number, session) in sessions.iter().enumerate() {
                let prefix = self.prefix(number);
                let tally = session.tally();
                let view = &mut self.views[number];
                let recent = tally.rtt.since(&view.seen);
                view.seen = tally.rtt.clone();
                let lost = tally.missing + tally.late;
                let text = report::second(now, &recent, session.in_flight(), lost);
                self.line(&(prefix + &text), None);
            }
        }
        if let [session] = sessions {
            self.live(session);
        }
        self.flush();
        self.broken.is_none()
    }

    fn interim(&mut self, sessions: &[Session], now: Duration) {
        for (number, session) in sessions.iter().enumerate() {
            let summary = self.summary(number, session, now);
            match self.form {
                Form::Text => self.conclude(&summary, Some(&session.tally().rtt)),
                Form::JsonLines => self.json(std::slice::from_ref(&summary)),
                // Standard output has room for one summary, and for lines of one kind.
                Form::Json | Form::Csv => {
                    let text = report::summary(&summary, &self.plan, None);
                    let _ = write!(io::stderr(), "{text}");
                }
            }
        }
        self.flush();
    }
}
