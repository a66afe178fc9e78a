//! The service manager's protocol, sd_notify(3): readiness, reload, stop, status, watchdog.
//!
//! sd-notify formats the messages and parses the environment.  Sending is ours, because its socket
//! blocks, and a manager that does not read must never stop an echo: one non-blocking socket for
//! the life of the process.  What a full queue refuses is sent again a little later; of the status
//! and the watchdog only the latest counts, the changes of state keep their order.
//!
//! Without `NOTIFY_SOCKET` nothing here does anything.

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

use crate::echo::tick::Tick;

/// Before the first attempt to send again what was refused; each further wait is twice as long.
const RETRY: Duration = Duration::from_millis(100);

/// The longest such wait: a socket that is gone for good must not keep us awake.
const RETRY_MOST: Duration = Duration::from_secs(60);

/// Between two messages of status.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// The most descriptors that go with a message.
const DESCRIPTORS: usize = 4;

/// The most bytes of a message that systemd reads; it ignores a longer one as a whole
/// (`NOTIFY_BUFFER_MAX`).
const MOST: usize = 4096;

/// The most bytes of a value, so that a state and two values always fit into a message.
const VALUE: usize = 1024;

/// Changes of state that may wait: when more do, the oldest no longer matter.
const WAITING: usize = 64;

/// The service manager.
#[derive(Debug, Default)]
pub struct Manager {
    link: Option<(UnixDatagram, SocketAddrUnix)>,
    waiting: VecDeque<Message>,
    retry: Option<Tick>,
    /// The next wait.
    wait: Duration,
    /// The last failure that was not a full queue, until it is told.
    trouble: Option<io::Error>,
    told: bool,
    watchdog: Option<Watchdog>,
    status: Status,
    /// Descriptors were not stored, as too many are in flight (unix(7)).
    exhausted: bool,
}

/// A message, and the descriptors that go with it.
#[derive(Debug)]
struct Message {
    text: String,
    descriptors: Vec<OwnedFd>,
}

#[derive(Debug)]
struct Watchdog {
    interval: Duration,
    due: Tick,
}

/// What the text of the status is made from: while it stays the same, so does the text.
pub type Mark = [u64; 4];

#[derive(Debug, Default)]
struct Status {
    /// What the text was made from.
    mark: Mark,
    text: String,
    sent: Option<Tick>,
    due: Option<Tick>,
}

impl Status {
    /// A change of state has brought it along.
    fn told(&mut self, text: &str, now: Tick) {
        text.clone_into(&mut self.text);
        self.sent = Some(now);
    }
}

impl Manager {
    /// Finds the manager in the environment.
    ///
    /// # Errors
    /// `NOTIFY_SOCKET` cannot be used; the service can do without.
    pub fn from_env(now: Tick) -> io::Result<Self> {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())
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
        // At half the interval, so that one late feeding does no harm; at least a millisecond, so
        // that feeding is not all that we do.
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

    /// Serving: every listener is registered.  `listen` is where, for supervisors and tests that
    /// asked for port 0: as many addresses as fit.
    pub fn ready(&mut self, listen: &str, status: &str, now: Tick) {
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
        self.status.told(status, now);
    }

    /// Reading the configuration again.
    pub fn reloading(&mut self, now: Tick) {
        // Both in one message, or Type=notify-reload waits for ever.
        if let Ok(monotonic) = NotifyState::monotonic_usec_now() {
            self.state(&[NotifyState::Reloading, monotonic], now);
        }
    }

    /// Done with reading the configuration, well or not.
    pub fn reloaded(&mut self, status: &str, now: Tick) {
        self.state(
            &[NotifyState::Ready, NotifyState::Status(&line(status))],
            now,
        );
        self.status.told(status, now);
    }

    /// Stopping, which may take `span`.
    pub fn stopping(&mut self, span: Duration, status: &str, now: Tick) {
        // A little more than we need ourselves: the end is ours to decide, not the manager's.
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
        self.status.told(status, now);
    }

    /// Whether there is a manager.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.link.is_some()
    }

    /// Asks it to keep duplicates of descriptors under a name (`FDSTORE=1`).  It does not look at
    /// them (`FDPOLL=0`): whatever hangs up is ours to remove.  False:
    /// there is no descriptor for a duplicate.
    pub fn store(&mut self, name: &str, descriptors: &[BorrowedFd<'_>], now: Tick) -> bool {
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

    /// Asks it to close what it keeps under a name (`FDSTOREREMOVE=1`).
    pub fn unstore(&mut self, name: &str, now: Tick) {
        let text = format!("FDSTOREREMOVE=1\nFDNAME={}", clean(name));
        let descriptors = Vec::new();
        self.queue(Message { text, descriptors }, now);
    }

    /// Asks it to close this descriptor when it has read everything before (`BARRIER=1`).
    pub fn barrier(&mut self, question: OwnedFd, now: Tick) {
        let text = "BARRIER=1".to_owned();
        let descriptors = vec![question];
        self.queue(Message { text, descriptors }, now);
    }

    /// Tells the status at once.
    pub fn report(&mut self, status: &str, now: Tick) {
        self.status.text.clear();
        self.send_status(status.to_owned(), now);
    }

    /// When a change of the status may be told, if there is anybody to hear it.
    #[must_use]
    pub fn next_status(&self, now: Tick) -> Option<Tick> {
        self.link.as_ref()?;
        Some(self.status.sent.map_or(now, |sent| sent + STATUS_INTERVAL))
    }

    /// Whether the status has changed and may be told again: at most once a second.  `mark` is
    /// what the text is made from; as long as it stays the same, nothing is done and nothing
    /// wakes us.
    pub fn is_status_due(&mut self, mark: Mark, now: Tick) -> bool {
        if self.link.is_none() || mark == self.status.mark {
            self.status.due = None;
            return false;
        }
        let due = self.status.sent.map_or(now, |sent| sent + STATUS_INTERVAL);
        self.status.due = (now < due).then_some(due);
        now >= due
    }

    /// Tells the status, unless its text is the same.
    pub fn status(&mut self, mark: Mark, text: String, now: Tick) {
        self.status.mark = mark;
        self.send_status(text, now);
    }

    /// Feeds the watchdog, if everything is `alive`, and sends again what was refused, when due;
    /// returns whether the watchdog was fed.
    pub fn tick(&mut self, now: Tick, alive: bool) -> bool {
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

    /// Whether descriptors were not stored since the last call, as too many are in flight.
    pub(crate) fn was_exhausted(&mut self) -> bool {
        std::mem::take(&mut self.exhausted)
    }

    /// Why the manager cannot be reached, once.
    pub fn trouble(&mut self) -> Option<io::Error> {
        self.trouble.take()
    }

    /// Why the last change of state has not reached the manager, for whoever cannot try again.
    pub fn unheard(&mut self) -> Option<io::Error> {
        self.waiting.front()?;
        let full = || io::Error::new(io::ErrorKind::WouldBlock, "its queue is full");
        Some(self.trouble.take().unwrap_or_else(full))
    }

    /// When [`Manager::tick`] or [`Manager::status`] has to be called next.
    #[must_use]
    pub fn next_due(&self) -> Option<Tick> {
        let watchdog = self.watchdog.as_ref().map(|watchdog| watchdog.due);
        [watchdog, self.retry, self.status.due]
            .into_iter()
            .flatten()
            .min()
    }

    fn send_status(&mut self, text: String, now: Tick) {
        self.status.sent = Some(now);
        if text == self.status.text {
            return;
        }
        // A refused status is not worth a retry of its own: the next change brings it.
        let message = NotifyState::Status(&line(&text)).to_string();
        if self.waiting.is_empty() && self.send(&message, &[]) == Sent::Yes {
            self.status.text = text;
        }
    }

    fn state(&mut self, states: &[NotifyState<'_>], now: Tick) {
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        let text = lines.join("\n");
        debug_assert!(text.len() <= MOST, "systemd ignores this: {text}");
        let descriptors = Vec::new();
        self.queue(Message { text, descriptors }, now);
    }

    fn queue(&mut self, message: Message, now: Tick) {
        if self.link.is_none() {
            return;
        }
        if self.waiting.len() == WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(message);
        self.flush(now);
    }

    /// Sends what waits, in order, as far as the manager takes it.
    pub fn flush(&mut self, now: Tick) {
        while let Some(message) = self.waiting.pop_front() {
            let sent = self.send(&message.text, &message.descriptors);
            if sent == Sent::Yes {
                self.wait = Duration::ZERO;
                self.retry = None;
                continue;
            }
            self.waiting.push_front(message);
            // A full queue is read sooner or later; a socket that is gone may stay so.
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
            // Too many descriptors are in flight (unix(7)): what they are is not stored, and the
            // messages behind go on.
            Err(rustix::io::Errno::TOOMANYREFS) => {
                self.exhausted = true;
                Sent::Yes
            }
            // It may be away only while the manager executes itself again.
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    self.trouble = Some(error.into());
                }
                Sent::Away
            }
        }
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Yes,
    Full,
    Away,
}

/// A newline in a value would begin another assignment.
fn clean(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// A value of one line that leaves room for the rest of its message.
fn line(text: &str) -> String {
    words(&clean(text), VALUE)
}

/// As many words of a text as `most` bytes hold, with `...` in place of the others.
fn words(text: &str, most: usize) -> String {
    const REST: &str = " ...";
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most - REST.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let kept = &text[..end];
    // The word that would be cut in two is left out.
    let whole = kept.rsplit_once(' ').map_or(kept, |(whole, _)| whole);
    let kept = if text[end..].starts_with(' ') {
        kept
    } else {
        whole
    };
    format!("{kept}{REST}")
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
    fn a_value_cannot_smuggle_in_an_assignment() {
        let (mut manager, inbox) = pair("clean");
        manager.ready("a\nMAINPID=1", "b\nREADY=0", Tick::new(1 << 60));
        assert_eq!(
            received(&inbox),
            ["READY=1\nSTATUS=b READY=0\nX_TCP_ECHO_LISTEN=a MAINPID=1"]
        );
    }

    #[test]
    fn no_message_is_longer_than_what_systemd_reads() {
        let (mut manager, inbox) = pair("long");
        let now = Tick::new(1 << 60);
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
        let start = Tick::new(1 << 60);
        while manager.send("FILL=1", &[]) == Sent::Yes {}
        for _ in 0..5 {
            manager.reloading(start);
        }
        assert_eq!(manager.next_due(), Some(start + RETRY));
        assert!(received(&inbox).iter().all(|message| message == "FILL=1"));
        manager.tick(start + RETRY, true);
        assert_eq!(received(&inbox).len(), 5);
        assert_eq!(manager.next_due(), None);
    }

    #[test]
    fn a_socket_that_is_gone_is_told_once_and_does_not_keep_us_awake() {
        let (mut manager, inbox) = pair("gone");
        drop(inbox);
        let mut now = Tick::new(1 << 60);
        manager.ready("", "", now);
        assert!(manager.trouble().is_some());
        for _ in 0..20 {
            now = manager.next_due().unwrap();
            manager.tick(now, true);
        }
        assert_eq!(manager.next_due(), Some(now + RETRY_MOST));
        assert!(manager.trouble().is_none());
    }

    #[test]
    fn the_status_is_told_when_it_changed_and_once_a_second() {
        let (mut manager, inbox) = pair("status");
        let start = Tick::new(1 << 60);
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
        let start = Tick::new(1 << 60);
        let interval = Duration::from_secs(5);
        manager.watchdog = Some(Watchdog {
            interval,
            due: start,
        });
        manager.tick(start, true);
        assert_eq!(received(&inbox), ["WATCHDOG=1"]);
        assert_eq!(manager.next_due(), Some(start + interval));
        manager.tick(start + interval / 2, true);
        assert!(received(&inbox).is_empty());
        while manager.send("FILL=1", &[]) == Sent::Yes {}
        manager.tick(start + interval, true);
        assert_eq!(manager.next_due(), Some(start + interval + RETRY));
        received(&inbox);
        manager.tick(start + interval + RETRY, true);
        assert_eq!(received(&inbox), ["WATCHDOG=1"]);
        // As long as something hangs it is not fed, and soon after.
        let due = manager.next_due().unwrap();
        assert!(!manager.tick(due, false));
        assert_eq!(manager.next_due(), Some(due + RETRY));
        assert!(received(&inbox).is_empty());
        assert!(manager.tick(due + RETRY, true));
        assert_eq!(received(&inbox), ["WATCHDOG=1"]);
    }

    #[test]
    fn of_more_changes_than_may_wait_the_oldest_are_given_up() {
        let (mut manager, inbox) = pair("many");
        let start = Tick::new(1 << 60);
        while manager.send("FILL=1", &[]) == Sent::Yes {}
        for number in 0..=WAITING {
            manager.reloaded(&number.to_string(), start);
        }
        received(&inbox);
        let mut last = Vec::new();
        while let Some(due) = manager.next_due() {
            manager.tick(due, true);
            last.extend(received(&inbox));
        }
        assert_eq!(last.len(), WAITING);
        assert_eq!(last[0], "READY=1\nSTATUS=1");
        assert_eq!(last.last().unwrap(), &format!("READY=1\nSTATUS={WAITING}"));
    }

    #[test]
    fn what_was_not_heard_is_known_until_it_is() {
        let (mut manager, inbox) = pair("unheard");
        let start = Tick::new(1 << 60);
        manager.reloading(start);
        assert!(manager.unheard().is_none());
        while manager.send("FILL=1", &[]) == Sent::Yes {}
        manager.reloading(start);
        assert_eq!(manager.unheard().unwrap().kind(), io::ErrorKind::WouldBlock);
        received(&inbox);
        manager.tick(start + RETRY, true);
        assert!(manager.unheard().is_none());
        drop(inbox);
        manager.reloading(start);
        assert_eq!(
            manager.unheard().unwrap().kind(),
            io::ErrorKind::ConnectionRefused
        );
    }
}
