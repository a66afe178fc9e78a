//! The protocol of the service manager (sd_notify(3)): readiness, reload, stop, status, watchdog, and
//! descriptors to store.
//!
//! The crate sd-notify formats the messages and parses the environment.  They are sent here, because
//! the socket of the crate blocks, and a service manager that does not read must not stop an echo.  So
//! there is one non-blocking socket for the life of the process.  A message that finds the queue of the
//! manager full is sent again a little later.  Changes of state and stored descriptors stay in order;
//! of the status and the watchdog only the latest message matters, so these are not queued.
//!
//! Without `NOTIFY_SOCKET` every function here does nothing.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr,
};
use sd_notify::NotifyState;

use super::environment;
use crate::echo::time::{MonoTime, earliest};

/// The wait before a message is sent again; while the socket is gone, it doubles each time.
const RETRY: Duration = Duration::from_millis(100);

/// The longest such wait, so that a socket that is gone for good causes hardly any wakeups.
const RETRY_MOST: Duration = Duration::from_secs(60);

/// The least time between two messages of status.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// The most descriptors in one message.
const DESCRIPTORS: usize = 4;

/// The most bytes of a message that systemd reads (`NOTIFY_BUFFER_MAX`); it ignores a longer one as a
/// whole.
const MOST: usize = 4096;

/// The most bytes of a value, so that a state and two values always fit into a message.
const VALUE: usize = 1024;

/// The most messages that wait to be sent; beyond that the oldest are dropped, as later ones have
/// made them out of date.
const WAITING: usize = 64;

/// The service manager, and what it has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Manager {
    /// The socket, and the address that `NOTIFY_SOCKET` gives; `None`: there is no service manager.
    link: Option<(UnixDatagram, SocketAddrUnix)>,
    waiting: VecDeque<Message>,
    /// When the waiting messages are sent again.
    retry: Option<MonoTime>,
    /// The latest wait before that.
    wait: Duration,
    /// The first failure that was not a full queue, until it is logged.
    trouble: Option<io::Error>,
    /// Whether there was such a failure: later ones are not logged.
    failed: bool,
    watchdog: Option<Watchdog>,
    status: Status,
    /// Whether a message was dropped, as too many descriptors are in flight (unix(7)).
    exhausted: bool,
}

/// A message, and the descriptors that go with it (`SCM_RIGHTS`, unix(7)).
#[derive(Debug)]
struct Message {
    text: String,
    descriptors: Vec<OwnedFd>,
}

/// The watchdog of the service manager (`WatchdogSec=`, systemd.service(5)).
#[derive(Debug)]
struct Watchdog {
    /// The time between two messages.
    interval: Duration,
    /// When the next message is due.
    due: MonoTime,
}

/// The numbers that the text of a status depends on: while they stay the same, so does the text.
pub(crate) type Mark = [u64; 4];

#[derive(Debug, Default)]
struct Status {
    /// The numbers for which the last text was made.
    mark: Mark,
    /// The text that the manager has.
    text: String,
    /// When the last status was sent.
    sent: Option<MonoTime>,
    /// When a changed status may be sent.
    due: Option<MonoTime>,
}

impl Status {
    /// Records a status that was sent together with a change of state.
    fn sent_along(&mut self, text: &str, now: MonoTime) {
        text.clone_into(&mut self.text);
        self.sent = Some(now);
    }
}

impl Manager {
    /// Finds the service manager by `NOTIFY_SOCKET`, and the watchdog by `WATCHDOG_USEC`.
    ///
    /// # Errors
    /// `NOTIFY_SOCKET` has no usable address, or those of socket(2); the service can run without.
    pub(crate) fn from_env(now: MonoTime) -> io::Result<Self> {
        let Some(address) =
            environment::value("NOTIFY_SOCKET").filter(|address| !address.is_empty())
        else {
            return Ok(Self::default());
        };
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            [b'/', path @ ..] if !path.is_empty() => SocketAddrUnix::new(&*address)?,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "neither a path nor an abstract address",
                ));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // Half of what is asked for, so that one late message does no harm (sd_watchdog_enabled(3)); a
        // millisecond at least, so that the service has time for anything else.
        let watchdog = sd_notify::watchdog_enabled()
            .filter(|interval| !interval.is_zero())
            .map(|interval| Watchdog {
                interval: (interval / 2).max(Duration::from_millis(1)),
                due: now,
            });
        Ok(Self {
            link: Some((socket, address)),
            watchdog,
            ..Self::default()
        })
    }

    /// Reports that every listener is registered (`READY=1`).  `listen` has their addresses, for
    /// supervisors and tests that have asked for port 0; as many of them are sent as fit.
    pub(crate) fn ready(&mut self, listen: &str, status: &str, now: MonoTime) {
        let room = MOST - "READY=1\nSTATUS=\nX_TCP_ECHO_LISTEN=".len() - VALUE;
        let listen = format!("X_TCP_ECHO_LISTEN={}", words(&clean(listen), room));
        self.state(
            &[
                NotifyState::Ready,
                NotifyState::Status(&line(status)),
                NotifyState::Custom(&listen),
            ],
            now,
        );
        self.status.sent_along(status, now);
    }

    /// Reports that the configuration is being read again (`RELOADING=1`).
    pub(crate) fn reloading(&mut self, now: MonoTime) {
        // With Type=notify-reload the manager takes the two lines only from one message.
        if let Ok(monotonic) = NotifyState::monotonic_usec_now() {
            self.state(&[NotifyState::Reloading, monotonic], now);
        }
    }

    /// Reports the end of a reload, whether it has succeeded or not (`READY=1`).
    pub(crate) fn reloaded(&mut self, status: &str, now: MonoTime) {
        self.state(
            &[NotifyState::Ready, NotifyState::Status(&line(status))],
            now,
        );
        self.status.sent_along(status, now);
    }

    /// Reports that the service stops, for which it may take `span` (`STOPPING=1`).
    pub(crate) fn stopping(&mut self, span: Duration, status: &str, now: MonoTime) {
        // Five seconds more than `span`, so that the service ends before the manager kills it.
        let extend = format!(
            "EXTEND_TIMEOUT_USEC={}",
            (span + Duration::from_secs(5)).as_micros()
        );
        self.state(
            &[
                NotifyState::Stopping,
                NotifyState::Custom(&extend),
                NotifyState::Status(&line(status)),
            ],
            now,
        );
        self.status.sent_along(status, now);
    }

    /// Whether there is a service manager.
    #[must_use]
    pub(crate) fn is_there(&self) -> bool {
        self.link.is_some()
    }

    /// Asks the manager to store duplicates of descriptors under a name (`FDSTORE=1`).  The manager does
    /// not watch them (`FDPOLL=0`), so one that hangs up stays until [`Manager::unstore`].  Returns
    /// false if this process has no descriptor left for a duplicate.
    pub(crate) fn store(
        &mut self,
        name: &str,
        descriptors: &[BorrowedFd<'_>],
        now: MonoTime,
    ) -> bool {
        let descriptors: io::Result<_> = descriptors
            .iter()
            .map(BorrowedFd::try_clone_to_owned)
            .collect();
        let Ok(descriptors) = descriptors else {
            return false;
        };
        let text = format!("FDSTORE=1\nFDNAME={}\nFDPOLL=0", clean(name));
        self.queue(Message { text, descriptors }, now);
        true
    }

    /// Asks the manager to close what it stores under a name (`FDSTOREREMOVE=1`).
    pub(crate) fn unstore(&mut self, name: &str, now: MonoTime) {
        let text = format!("FDSTOREREMOVE=1\nFDNAME={}", clean(name));
        let descriptors = Vec::new();
        self.queue(Message { text, descriptors }, now);
    }

    /// Asks the manager to close this descriptor once it has read all messages before (`BARRIER=1`,
    /// sd_notify_barrier(3)).
    pub(crate) fn barrier(&mut self, question: OwnedFd, now: MonoTime) {
        let text = "BARRIER=1".to_owned();
        let descriptors = vec![question];
        self.queue(Message { text, descriptors }, now);
    }

    /// Sends the status at once.
    pub(crate) fn report(&mut self, status: &str, now: MonoTime) {
        self.status.text.clear();
        self.send_status(status.to_owned(), now);
    }

    /// When a changed status may be sent next; `None`: there is no service manager.
    #[must_use]
    pub(crate) fn next_status(&self, now: MonoTime) -> Option<MonoTime> {
        self.link.as_ref()?;
        Some(self.status.sent.map_or(now, |sent| sent + STATUS_INTERVAL))
    }

    /// Whether the status has changed, as `mark` shows, and may be sent, which is at most once a second.
    /// While the mark stays the same, the status causes no wakeups.
    pub(crate) fn is_status_due(&mut self, mark: Mark, now: MonoTime) -> bool {
        if self.link.is_none() || mark == self.status.mark {
            self.status.due = None;
            return false;
        }
        let due = self.status.sent.map_or(now, |sent| sent + STATUS_INTERVAL);
        self.status.due = (now < due).then_some(due);
        now >= due
    }

    /// Sends the status, unless its text is the same as before.
    pub(crate) fn status(&mut self, mark: Mark, text: String, now: MonoTime) {
        self.status.mark = mark;
        self.send_status(text, now);
    }

    /// Sends waiting messages and a message to the watchdog, when they are due; the latter only if all
    /// workers are `alive`.  Returns whether the watchdog was fed.
    pub(crate) fn on_time(&mut self, now: MonoTime, alive: bool) -> bool {
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            self.flush(now);
        }
        if let Some(watchdog) = self
            .watchdog
            .as_mut()
            .filter(|watchdog| watchdog.due <= now)
        {
            let interval = watchdog.interval;
            watchdog.due = now + interval;
            let sent = if alive {
                self.send(&NotifyState::Watchdog.to_string(), &[])
            } else {
                Sent::Full
            };
            match (sent, &mut self.watchdog) {
                (Sent::Yes, _) => {
                    self.flush(now);
                    return true;
                }
                (Sent::Full, Some(watchdog)) => watchdog.due = now + RETRY.min(interval),
                _ => {}
            }
        }
        false
    }

    /// Whether a message was dropped since the last call, as too many descriptors are in flight.
    pub(crate) fn was_exhausted(&mut self) -> bool {
        std::mem::take(&mut self.exhausted)
    }

    /// Why the service manager cannot be reached; an error is returned once.
    pub(crate) fn trouble(&mut self) -> Option<io::Error> {
        self.trouble.take()
    }

    /// Why the last change of state was not sent, for a process that ends before it could be sent again.
    pub(crate) fn unsent(&mut self) -> Option<io::Error> {
        self.waiting.front()?;
        let full = || io::Error::new(io::ErrorKind::WouldBlock, "its queue is full");
        Some(self.trouble.take().unwrap_or_else(full))
    }

    /// When [`Manager::on_time`] or [`Manager::status`] has to be called next.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<MonoTime> {
        let watchdog = self.watchdog.as_ref().map(|watchdog| watchdog.due);
        earliest([watchdog, self.retry, self.status.due])
    }

    fn send_status(&mut self, text: String, now: MonoTime) {
        self.status.sent = Some(now);
        if text == self.status.text {
            return;
        }
        // A status that finds the queue full is not sent again: the next change brings a newer one.
        let message = NotifyState::Status(&line(&text)).to_string();
        if self.waiting.is_empty() && self.send(&message, &[]) == Sent::Yes {
            self.status.text = text;
        }
    }

    fn state(&mut self, states: &[NotifyState<'_>], now: MonoTime) {
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        let text = lines.join("\n");
        debug_assert!(text.len() <= MOST, "systemd ignores this: {text}");
        let descriptors = Vec::new();
        self.queue(Message { text, descriptors }, now);
    }

    fn queue(&mut self, message: Message, now: MonoTime) {
        if self.link.is_none() {
            return;
        }
        if self.waiting.len() == WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(message);
        self.flush(now);
    }

    /// Sends the waiting messages in order, until one finds the queue of the manager full.
    pub(crate) fn flush(&mut self, now: MonoTime) {
        while let Some(message) = self.waiting.pop_front() {
            let sent = self.send(&message.text, &message.descriptors);
            if sent == Sent::Yes {
                self.wait = Duration::ZERO;
                self.retry = None;
                continue;
            }
            self.waiting.push_front(message);
            // The manager will read a full queue, but a socket that is gone may be gone for good.
            self.wait = match sent {
                Sent::Away => (self.wait * 2).clamp(RETRY, RETRY_MOST),
                _ => RETRY,
            };
            self.retry = Some(now + self.wait);
            return;
        }
    }

    fn send(&mut self, message: &str, descriptors: &[OwnedFd]) -> Sent {
        let Some((socket, address)) = &self.link else {
            return Sent::Yes;
        };
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let payload = [IoSlice::new(message.as_bytes())];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg_addr(socket, address, &payload, &mut ancillary, flags) {
            Ok(_) => Sent::Yes,
            Err(rustix::io::Errno::AGAIN) => Sent::Full,
            // Too many descriptors are in flight (unix(7)): this message is dropped, so that those
            // behind it are sent.
            Err(rustix::io::Errno::TOOMANYREFS) => {
                self.exhausted = true;
                Sent::Yes
            }
            // The socket may be back soon: it is gone while the manager executes itself again.
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    self.trouble = Some(error.into());
                }
                Sent::Away
            }
        }
    }
}

/// The outcome of an attempt to send a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Yes,
    /// The queue of the manager is full.
    Full,
    /// The manager cannot be reached.
    Away,
}

/// A text without control characters: a newline in a value would begin another assignment.
fn clean(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// A value of one line, [`VALUE`] bytes at most.
fn line(text: &str) -> String {
    words(&clean(text), VALUE)
}

/// A text of at most `most` bytes: words that do not fit are replaced by `...`.
fn words(text: &str, most: usize) -> String {
    const REST: &str = " ...";
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most - REST.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let cut = &text[..end];
    let shown = if text[end..].starts_with(' ') {
        cut
    } else {
        // Without the word that would be cut in two.
        cut.rsplit_once(' ').map_or(cut, |(whole, _)| whole)
    };
    format!("{shown}{REST}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    use super::*;

    fn pair(name: &str) -> (Manager, UnixDatagram) {
        let name = format!("tcp-echo-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let inbox = UnixDatagram::bind_addr(&address).unwrap();
        inbox.set_nonblocking(true).unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        socket.set_nonblocking(true).unwrap();
        (
            Manager {
                link: Some((
                    socket,
                    SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap(),
                )),
                ..Manager::default()
            },
            inbox,
        )
    }

    fn received(inbox: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 4096];
        std::iter::from_fn(|| {
            inbox
                .recv(&mut buffer)
                .ok()
                .map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned())
        })
        .collect()
    }

    #[test]
    fn a_newline_in_a_value_does_not_begin_an_assignment() {
        let (mut manager, inbox) = pair("clean");
        manager.ready("a\nMAINPID=1", "b\nREADY=0", MonoTime::new(1 << 60));
        assert_eq!(
            received(&inbox),
            ["READY=1\nSTATUS=b READY=0\nX_TCP_ECHO_LISTEN=a MAINPID=1"]
        );
    }

    #[test]
    fn no_message_is_longer_than_what_systemd_reads() {
        let (mut manager, inbox) = pair("long");
        let now = MonoTime::new(1 << 60);
        for text in ["[2001:db8::1]:9999 ".repeat(500), "\u{20ac}".repeat(5000)] {
            manager.ready(&text, &text, now);
            manager.reloaded(&text, now);
            manager.stopping(Duration::MAX / 2, &text, now);
            manager.report(&text, now);
            manager.status([1; 4], text + "!", now);
        }
        let mut buffer = [0; 65536];
        let mut count = 0;
        while let Ok(length) = inbox.recv(&mut buffer) {
            assert!(length <= MOST, "{length}");
            count += 1;
        }
        assert_eq!(count, 10);
    }

    #[test]
    fn no_address_is_cut_in_two() {
        assert_eq!(words("one two", 7), "one two");
        assert_eq!(words("one two three", 12), "one two ...");
        assert_eq!(words("one two three", 10), "one ...");
    }

    #[test]
    fn a_full_queue_delays_but_loses_no_change_of_state() {
        let (mut manager, inbox) = pair("full");
        let start = MonoTime::new(1 << 60);
        while manager.send("FILL=1", &[]) == Sent::Yes {}
        for _ in 0..5 {
            manager.reloading(start);
        }
        assert_eq!(manager.next_due(), Some(start + RETRY));
        assert!(received(&inbox).iter().all(|message| message == "FILL=1"));
        manager.on_time(start + RETRY, true);
        assert_eq!(received(&inbox).len(), 5);
        assert_eq!(manager.next_due(), None);
    }

    #[test]
    fn a_socket_that_is_gone_is_reported_once_and_causes_few_wakeups() {
        let (mut manager, inbox) = pair("gone");
        drop(inbox);
        let mut now = MonoTime::new(1 << 60);
        manager.ready("", "", now);
        assert!(manager.trouble().is_some());
        for _ in 0..20 {
            now = manager.next_due().unwrap();
            manager.on_time(now, true);
        }
        assert_eq!(manager.next_due(), Some(now + RETRY_MOST));
        assert!(manager.trouble().is_none());
    }

    #[test]
    fn the_status_is_sent_when_it_has_changed_and_at_most_once_a_second() {
        let (mut manager, inbox) = pair("status");
        let start = MonoTime::new(1 << 60);
        let at = |millis| start + Duration::from_millis(millis);
        for (mark, millis, due, text) in [
            (0, 0, false, ""),
            (1, 0, true, "one"),
            (2, 10, false, ""),
            (3, 1000, true, "three"),
            (3, 5000, false, ""),
            (4, 6000, true, "three"),
        ] {
            assert_eq!(
                manager.is_status_due([mark, 0, 0, 0], at(millis)),
                due,
                "at {millis}"
            );
            if due {
                manager.status([mark, 0, 0, 0], text.into(), at(millis));
            } else if mark == 2 {
                assert_eq!(manager.next_due(), Some(at(1000)));
            }
        }
        assert_eq!(received(&inbox), ["STATUS=one", "STATUS=three"]);
        assert_eq!(manager.next_due(), None);
    }

    #[test]
    fn the_watchdog_is_fed_when_due_and_soon_again_when_the_queue_is_full() {
        let (mut manager, inbox) = pair("watchdog");
        let start = MonoTime::new(1 << 60);
        let interval = Duration::from_secs(5);
        manager.watchdog = Some(Watchdog {
            interval,
            due: start,
        });
        manager.on_time(start, true);
        assert_eq!(received(&inbox), ["WATCHDOG=1"]);
        assert_eq!(manager.next_due(), Some(start + interval));
        manager.on_time(start + interval / 2, true);
        assert!(received(&inbox).is_empty());
        while manager.send("FILL=1", &[]) == Sent::Yes {}
        manager.on_time(start + interval, true);
        assert_eq!(manager.next_due(), Some(start + interval + RETRY));
        received(&inbox);
        manager.on_time(start + interval + RETRY, true);
        assert_eq!(received(&inbox), ["WATCHDOG=1"]);
        // While a worker hangs it is not fed; once it goes on, it is fed soon.
        let due = manager.next_due().unwrap();
        assert!(!manager.on_time(due, false));
        assert_eq!(manager.next_due(), Some(due + RETRY));
        assert!(received(&inbox).is_empty());
        assert!(manager.on_time(due + RETRY, true));
        assert_eq!(received(&inbox), ["WATCHDOG=1"]);
    }

    #[test]
    fn of_more_changes_than_may_wait_the_oldest_are_dropped() {
        let (mut manager, inbox) = pair("many");
        let start = MonoTime::new(1 << 60);
        while manager.send("FILL=1", &[]) == Sent::Yes {}
        for number in 0..=WAITING {
            manager.reloaded(&number.to_string(), start);
        }
        received(&inbox);
        let mut last = Vec::new();
        while let Some(due) = manager.next_due() {
            manager.on_time(due, true);
            last.extend(received(&inbox));
        }
        assert_eq!(last.len(), WAITING);
        assert_eq!(last[0], "READY=1\nSTATUS=1");
        assert_eq!(last.last().unwrap(), &format!("READY=1\nSTATUS={WAITING}"));
    }

    #[test]
    fn the_reason_for_an_unsent_change_is_known_until_it_is_sent() {
        let (mut manager, inbox) = pair("unsent");
        let start = MonoTime::new(1 << 60);
        manager.reloading(start);
        assert!(manager.unsent().is_none());
        while manager.send("FILL=1", &[]) == Sent::Yes {}
        manager.reloading(start);
        assert_eq!(manager.unsent().unwrap().kind(), io::ErrorKind::WouldBlock);
        received(&inbox);
        manager.on_time(start + RETRY, true);
        assert!(manager.unsent().is_none());
        drop(inbox);
        manager.reloading(start);
        assert_eq!(
            manager.unsent().unwrap().kind(),
            io::ErrorKind::ConnectionRefused
        );
    }
}
