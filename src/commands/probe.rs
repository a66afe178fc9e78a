//! `tcp-echo probe`: asks, runs the cases, and writes what they found.

use std::fs::File;
use std::io::{self, BufRead, BufWriter, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::ping::{family, other_port};
use super::{Exit, complain, is_dumb, wants_colour};
use crate::cli;
use crate::client::outcome::Class;
use crate::client::probe::hold::Hold;
use crate::client::probe::{self, Case, Finding, Observer, Plan, Report, report};
use crate::client::target::{Place, Target};
use crate::config::BUILT_IN_PORT;
use crate::config::units::size;

/// What may be sent to an address that is not loopback without asking, in bytes.
const UNASKED: u64 = 100_000_000;

/// Runs what the command line says.
#[must_use]
pub(super) fn run(options: &cli::Probe) -> ExitCode {
    match go(options) {
        Ok(class) => ExitCode::from(class.status()),
        Err(Failure::Usage(text)) => {
            complain(&text);
            Exit::Usage.into()
        }
        Err(Failure::NoConversation(class, text)) => {
            complain(&text);
            ExitCode::from(class.status())
        }
        Err(Failure::Output(name, error)) => {
            complain(&format!("{name} cannot be written: {error}"));
            Exit::of(&error).into()
        }
    }
}

/// Why there is no report.
enum Failure {
    Usage(String),
    NoConversation(Class, String),
    Output(String, io::Error),
}

fn go(options: &cli::Probe) -> Result<Class, Failure> {
    if options.list {
        return list().map(|()| Class::Ok);
    }
    let cases = probe::select(
        &options.only,
        options.idle.is_some(),
        options.proxy_receiver,
    );
    let cases = cases.map_err(|word| {
        Failure::Usage(format!(
            "--only {word}: there is no such case and no such group; see tcp-echo probe --list"
        ))
    })?;
    let target: Target = options
        .target
        .as_deref()
        .unwrap_or_default()
        .parse()
        .map_err(Failure::Usage)?;
    let plan = plan(options, &target)?;
    if let Some(span) = options.hold {
        return hold(options, &plan, span, &target);
    }
    ask(options, &plan, probe::most(&plan, &cases))?;
    let mut out = io::stdout().lock();
    let name = target.to_string();
    let mut screen = Screen::new(&mut out, options);
    screen.say(&format!("{name}  {}, seed {:x}", plan.places[0], plan.seed));
    let report =
        probe::run(&plan, &cases, &mut screen).map_err(|class| none(&target, &plan, class))?;
    screen.say(&report.summary());
    if let Some(error) = screen.broken.take() {
        gone(error)?;
    }
    write(options, &report, &name)?;
    Ok(match report.faults(options.strict) {
        0 => Class::Ok,
        _ => Class::Missed,
    })
}

/// There is no conversation with a target at all.
fn none(target: &Target, plan: &Plan, class: Class) -> Failure {
    let mut text = format!("{target}: {}: {}", class.word(), class.meaning());
    if let (Class::Refused, Some(Place::Ip(address))) = (class, plan.places.first()) {
        if let Some(other) = other_port(target, *address) {
            text += &format!("; something listens on port {BUILT_IN_PORT}: tcp-echo probe {other}");
        }
    }
    Failure::NoConversation(class, text)
}

/// Holds conversations; INT and TERM end that early.
fn hold(
    options: &cli::Probe,
    plan: &Plan,
    span: Duration,
    target: &Target,
) -> Result<Class, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Without it the signal ends the process, without a summary.
        let _ = signal_hook::flag::register(signal, Arc::clone(&stop));
    }
    let record = options.record.as_ref().map(|path| {
        let file = File::create(path);
        file.map_err(|error| Failure::Output(path.display().to_string(), error))
    });
    let hold = Hold {
        span,
        connections: options.connections as usize,
    };
    ask(options, plan, hold.most())?;
    let mut log = Journal {
        json: options.json,
        record: record.transpose()?.map(BufWriter::new),
        failed: None,
        broken: None,
    };
    let held = probe::hold::hold(plan, hold, &stop, &mut log)
        .map_err(|class| none(target, plan, class))?;
    log.write(&held.summary(), &held.json());
    log.broken.take().map_or(Ok(()), gone)?;
    let ended = log.record.as_mut().map_or(Ok(()), BufWriter::flush);
    match log.failed.or(ended.err()) {
        Some(error) => Err(Failure::Output("the record".into(), error)),
        None if held.is_good() => Ok(Class::Ok),
        None => Ok(Class::Missed),
    }
}

/// What happens while conversations are held, as lines with the time, and the flight recorder's file.
struct Journal {
    json: bool,
    record: Option<BufWriter<File>>,
    failed: Option<io::Error>,
    /// Why standard output cannot be written.
    broken: Option<io::Error>,
}

impl Journal {
    fn write(&mut self, line: &str, event: &Value) {
        let mut out = io::stdout().lock();
        let written = match self.json {
            true => writeln!(out, "{event}"),
            false => writeln!(out, "{line}"),
        };
        self.broken = self.broken.take().or(written.err());
    }
}

/// The time, as in RFC 3339.
fn time() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

impl probe::hold::Log for Journal {
    fn event(&mut self, line: &str, mut event: Value) {
        let time = time();
        event["time"] = time.as_str().into();
        self.write(&format!("{time}  {line}"), &event);
    }

    fn record(&mut self, mut record: Value) {
        record["time"] = time().into();
        if let Some(file) = &mut self.record {
            self.failed = self.failed.take().or(writeln!(file, "{record}").err());
        }
    }
}

fn list() -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for case in probe::CASES {
        writeln!(out, "{:<18} {}", case.id, case.about).or_else(gone)?;
    }
    Ok(())
}

fn stdout(error: io::Error) -> Failure {
    Failure::Output("standard output".into(), error)
}

/// Standard output cannot be written: a failure, unless its reader has gone, which needs no more.
fn gone(error: io::Error) -> Result<(), Failure> {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(stdout(error)),
    }
}

fn plan(options: &cli::Probe, target: &Target) -> Result<Plan, Failure> {
    let places = target
        .resolve(family(options.family), options.wait)
        .map_err(|why| Failure::NoConversation(Class::Name, format!("{target}: name: {why}")))?;
    Ok(Plan {
        places,
        seed: options.seed.unwrap_or_else(seed),
        patience: options.wait,
        bulk: !options.no_bulk,
        idle: options.idle,
        preamble: match options.proxy_receiver {
            true => probe::proxy_header(),
            false => Vec::new(),
        },
    })
}

/// A seed that is another one each time.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // Short enough to be written down.
    std::hash::RandomState::new().build_hasher().finish() >> 32
}

/// Asks before much is sent to an address that is not loopback.
fn ask(options: &cli::Probe, plan: &Plan, most: u64) -> Result<(), Failure> {
    if options.yes || most <= UNASKED || plan.places.iter().all(Place::is_local) {
        return Ok(());
    }
    let much = format!("up to {} will be sent to {}", size(most), plan.places[0]);
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::Usage(format!(
            "{much}: allow it with --yes, or send less (--no-bulk)"
        )));
    }
    // Failing, there is no answer either.
    let _ = write!(io::stderr(), "{much}. Go on? [y/N] ");
    let mut answer = String::new();
    let _ = io::stdin().lock().read_line(&mut answer);
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::Usage(
            "nothing was sent; --no-bulk leaves out the cases that send much".into(),
        )),
    }
}

fn write(options: &cli::Probe, report: &Report, target: &str) -> Result<(), Failure> {
    if options.json {
        let json = report.json(target, options.strict);
        writeln!(io::stdout(), "{json:#}").or_else(gone)?;
    }
    if let Some(path) = &options.junit {
        save(path, &report.junit(target, options.strict))?;
    }
    if let Some(path) = &options.html {
        save(path, &report.html(target, options.strict))?;
    }
    Ok(())
}

fn save(path: &Path, text: &str) -> Result<(), Failure> {
    File::create(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Failure::Output(path.display().to_string(), error))
}

/// The report as it grows, and at a terminal what is being waited for.
struct Screen<'a> {
    out: &'a mut io::StdoutLock<'static>,
    /// Whether the report is for a reader.
    text: bool,
    colour: bool,
    progress: Option<Progress>,
    /// Why the report cannot be written.
    broken: Option<io::Error>,
}

/// What is being waited for, shown after a second.
struct Progress {
    /// Dropped, it ends.
    end: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Progress {
    fn begin(text: String) -> Self {
        let (end, ended) = mpsc::channel();
        let bar = ProgressBar::new_spinner().with_message(text);
        let show = move || {
            if ended.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
                    bar.set_style(style);
                }
                bar.enable_steady_tick(Duration::from_millis(100));
                // Until the sender is gone.
                let _ = ended.recv();
                bar.finish_and_clear();
            }
        };
        Self {
            end,
            thread: thread::spawn(show),
        }
    }

    fn end(self) {
        drop(self.end);
        // A progress line that failed is no reason to fail.
        let _ = self.thread.join();
    }
}

impl<'a> Screen<'a> {
    fn new(out: &'a mut io::StdoutLock<'static>, options: &cli::Probe) -> Self {
        Self {
            colour: out.is_terminal() && wants_colour(),
            out,
            text: !options.json,
            progress: None,
            broken: None,
        }
    }

    fn say(&mut self, line: &str) {
        if self.text && self.broken.is_none() {
            self.broken = writeln!(self.out, "{line}").err();
        }
    }
}

impl Observer for Screen<'_> {
    fn begins(&mut self, case: &'static Case) {
        if io::stderr().is_terminal() && !is_dumb() {
            let text = format!("{}: {}", case.id, case.about);
            self.progress = Some(Progress::begin(text));
        }
    }

    fn judged(&mut self, case: &'static Case, finding: &Finding) {
        if let Some(progress) = self.progress.take() {
            progress.end();
        }
        let line = report::line(case, finding, self.colour);
        self.say(&line);
    }
}
