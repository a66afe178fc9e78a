//! The sink: one thread that turns events into journal entries, lines or JSON.
//!
//! An event loop must never wait for its log.  The socket of tracing-journald blocks, and so does a
//! pipe without a reader.  So events go into a bounded queue, and a thread of their own may block for
//! as long as it takes.  What does not fit is counted, and the count is logged when the sink works
//! again.
//!
//! There is exactly one sink.  It is the journal when standard error is connected to it
//! (`JOURNAL_STREAM` names the very file that is our standard error, systemd.exec(5)); else lines
//! on standard error, with the priorities of sd-daemon(3) in front when it is not a terminal.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use tracing::field::{Field, Visit};
use tracing::{Dispatch, Event as TracingEvent, Level as TracingLevel, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::{LookupSpan, Registry};

use super::events::Event;
use crate::cli::{Format, Level};
use crate::sys::environment;

/// The most events that wait for the sink.
const QUEUE: usize = 1024;

/// The longest wait for the queue at the end of the process.
const FLUSH: Duration = Duration::from_millis(400);

/// Where journald listens, systemd-journald.service(8).
const JOURNAL: &str = "/run/systemd/journal/socket";

/// The time that [`Sink::finish_early`] gives journald.
const SETTLE: Duration = Duration::from_millis(100);

/// How many events were lost, and whether the last one could not be written.
#[derive(Debug, Default)]
struct Health {
    /// Those that no event has counted yet.
    lost: AtomicU64,
    /// All of them.
    all: AtomicU64,
    failing: AtomicBool,
}

impl Health {
    fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.all.fetch_add(1, Ordering::Relaxed);
    }
}

/// The end of the queue that takes events.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    queue: SyncSender<Event>,
    health: Arc<Health>,
    level: Level,
}

/// Waits for the end of the sink's thread.
#[derive(Debug)]
pub(crate) struct Sink(Receiver<()>);

impl Log {
    /// Starts the sink.
    ///
    /// # Errors
    /// The thread cannot be started, see pthread_create(3).
    pub(crate) fn start(level: Level, format: Format) -> io::Result<(Self, Sink)> {
        let (queue, events) = sync_channel(QUEUE);
        let (done, finished) = sync_channel(1);
        let health = Arc::new(Health::default());
        let log = Self {
            queue,
            health: Arc::clone(&health),
            level,
        };
        thread::Builder::new().name("log".into()).spawn(move || {
            let (dispatch, journal) = dispatch(format, &health);
            tracing::dispatcher::with_default(&dispatch, || {
                drain(&events, &health, journal.as_ref());
            });
            drop(done);
        })?;
        Ok((log, Sink(finished)))
    }

    /// Queues an event of a level that is logged, or counts it as lost; never blocks.
    pub(crate) fn emit(&self, event: Event) {
        if event.level() <= self.level && self.queue.try_send(event).is_err() {
            self.health.lose();
        }
    }

    /// How many events were lost so far.
    #[must_use]
    pub(crate) fn lost(&self) -> u64 {
        self.health.all.load(Ordering::Relaxed)
    }

    /// Whether an event of this level would be logged, so that an expensive one need not be made.
    #[must_use]
    pub(crate) fn wants(&self, level: Level) -> bool {
        level <= self.level
    }

    /// The least important level that is logged.
    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// Changes the least important level that is logged.
    pub(crate) fn set_level(&mut self, level: Level) {
        self.level = level;
    }
}

impl Sink {
    /// Waits until every event is written, for 400 ms at most.  Every [`Log`] must be dropped before.
    pub(crate) fn finish(self) {
        // An error says that the thread has ended and dropped its end.
        let _ = self.0.recv_timeout(FLUSH);
    }

    /// As [`Sink::finish`], for a process that has just started.  journald learns the unit of an entry from
    /// /proc when it reads the first entry of a process; when that is gone by then, the entry has no
    /// unit, and `journalctl -u` does not show why the start failed.
    pub(crate) fn finish_early(self) {
        self.finish();
        if stderr_is_journal() {
            thread::sleep(SETTLE);
        }
    }
}

fn drain(events: &Receiver<Event>, health: &Health, journal: Option<&UnixDatagram>) {
    for event in events {
        if let Some(journal) = journal {
            // tracing-journald ignores its errors, so the socket is tried before.
            if journal.connect(JOURNAL).is_err() {
                health.lose();
                continue;
            }
        }
        event.printable().emit();
        if !health.failing.load(Ordering::Relaxed) {
            let lost = health.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                Event::Lost(lost).emit();
                if health.failing.load(Ordering::Relaxed) {
                    // The message about them was counted as one of them.
                    health.lost.fetch_add(lost - 1, Ordering::Relaxed);
                    health.all.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }
}

/// The subscriber, and a socket to try the journal with, if that is the sink.
fn dispatch(format: Format, health: &Arc<Health>) -> (Dispatch, Option<UnixDatagram>) {
    let stderr = Stderr(Arc::clone(health));
    let writer = move || stderr.clone();
    let journal = format == Format::Auto && stderr_is_journal();
    if journal {
        // Without it (the socket is not there), lines with priorities reach the journal as well.
        if let Ok(layer) = tracing_journald::layer() {
            let layer = layer
                .with_field_prefix(None)
                .with_syslog_identifier("tcp-echo".into())
                .with_priority_mappings(PriorityMappings {
                    error: Priority::Error,
                    warn: Priority::Warning,
                    info: Priority::Informational,
                    debug: Priority::Debug,
                    trace: Priority::Debug,
                });
            let knock = UnixDatagram::unbound().ok();
            return (Registry::default().with(layer).into(), knock);
        }
    }
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    if format == Format::Json {
        let layer = layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_target(false);
        return (Registry::default().with(layer).into(), None);
    }
    let prefix = !io::IsTerminal::is_terminal(&io::stderr());
    let layer = layer.event_format(Line {
        prefix,
        time: !journal,
    });
    (Registry::default().with(layer).into(), None)
}

/// Whether standard error is the stream of the journal: the variable alone may be inherited.
fn stderr_is_journal() -> bool {
    let Some(stream) = environment::text("JOURNAL_STREAM") else {
        return false;
    };
    let Some((device, inode)) = stream.split_once(':') else {
        return false;
    };
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|stat| device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino))
}

/// Standard error without errors and panics: a line that cannot be written is counted.
#[derive(Clone, Debug)]
struct Stderr(Arc<Health>);

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut rest = line;
        while !rest.is_empty() {
            match io::stderr().write(rest) {
                Ok(count) if count > 0 => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Standard error may be inherited as non-blocking; this thread may wait.
                    let _ = poll(&mut [PollFd::new(&io::stderr(), PollFlags::OUT)], None);
                }
                _ => {
                    self.0.failing.store(true, Ordering::Relaxed);
                    self.0.lose();
                    return Ok(line.len());
                }
            }
        }
        self.0.failing.store(false, Ordering::Relaxed);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One line for an event: its message, which says all that matters; the fields are for machines.
#[derive(Debug)]
struct Line {
    prefix: bool,
    time: bool,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &TracingEvent<'_>,
    ) -> fmt::Result {
        let (priority, word) = match *event.metadata().level() {
            TracingLevel::ERROR => (3, "error: "),
            TracingLevel::WARN => (4, "warning: "),
            TracingLevel::INFO => (6, ""),
            TracingLevel::DEBUG | TracingLevel::TRACE => (7, ""),
        };
        let mut message = Message(String::new());
        event.record(&mut message);
        for line in message.0.lines() {
            if self.prefix {
                write!(writer, "<{priority}>")?;
            }
            if self.time {
                SystemTime.format_time(&mut writer)?;
                writer.write_char(' ')?;
            }
            writeln!(writer, "{word}{line}")?;
        }
        Ok(())
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
