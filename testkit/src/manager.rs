//! A service manager for tests: it passes listeners, stores descriptors, and starts one daemon after the
//! other.
//!
//! It does what systemd does with the messages of sd_notify(3): `FDSTORE=1` stores descriptors by
//! name while there is room, `FDSTOREREMOVE=1` drops all of a name, `BARRIER=1` is answered by
//! closing its descriptor, and everything is done in the order of the messages.  The next daemon
//! gets the listeners and the stored descriptors, these in another order each time, as no order is
//! promised.  Unlike systemd it drops nothing at the end of a stop, so that a test sees what remains.
//!
//! All daemons log as JSON, so that events are found by their message ids.

use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, RecvMsg, recvmsg};
use rustix::process::Signal;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::daemon::nothing_starts;
use crate::{Daemon, Dice, Folder, LONGEST_MESSAGE, Plan, SOON, connect, eventually};

/// `FileDescriptorStoreMax=` of the shipped unit.
const CAPACITY: usize = 16;

/// Descriptors in one message, `SCM_MAX_FD`.
const MOST: usize = 253;

/// The message that ends the thread of the manager, and the one that it counts.
const END: &str = "X_END=1";
const MARK: &str = "X_MARK=1";

/// The time between two requests for the status.
const ASK: Duration = Duration::from_millis(100);

/// A descriptor in the store.
#[derive(Debug)]
struct Stored {
    name: String,
    descriptor: OwnedFd,
    /// Stored without `FDPOLL=0`: it is removed when its other end hangs up.
    polled: bool,
}

#[derive(Debug, Default)]
struct State {
    capacity: usize,
    stored: Vec<Stored>,
    /// The most that were stored at a time.
    peak: usize,
    /// Every message but the barriers.
    messages: Vec<String>,
    /// Messages before this one were looked at.
    seen: usize,
    barriers: usize,
    /// How often [`MARK`] was taken.
    marks: usize,
    /// Barriers are not answered.
    ignores_barriers: bool,
    unanswered: Vec<OwnedFd>,
    /// No message is to be taken out of the queue.
    pause_asked: bool,
    /// The thread has stopped doing so.
    is_paused: bool,
    dice: Option<Dice>,
}

fn identity(descriptor: &OwnedFd) -> (u64, u64) {
    let stat = rustix::fs::fstat(descriptor).unwrap();
    (stat.st_dev, stat.st_ino)
}

impl State {
    fn take(&mut self, message: String, mut descriptors: Vec<OwnedFd>) {
        if value(&message, "BARRIER") == Some("1") {
            self.barriers += 1;
            if self.ignores_barriers {
                self.unanswered.extend(descriptors);
            }
            return;
        }
        let name = value(&message, "FDNAME").unwrap_or("stored");
        if value(&message, "FDSTOREREMOVE") == Some("1") {
            self.stored.retain(|stored| stored.name != name);
        } else if value(&message, "FDSTORE") == Some("1") {
            self.shuffle(&mut descriptors);
            for descriptor in descriptors {
                // Nor does systemd store the same file twice.
                let same = |stored: &Stored| identity(&stored.descriptor) == identity(&descriptor);
                if self.stored.len() < self.capacity && !self.stored.iter().any(same) {
                    self.stored.push(Stored {
                        name: name.into(),
                        descriptor,
                        polled: value(&message, "FDPOLL") != Some("0"),
                    });
                }
            }
            self.peak = self.peak.max(self.stored.len());
        }
        self.messages.push(message);
    }

    /// No order is promised, neither of storing nor of passing.
    fn shuffle<T>(&mut self, things: &mut [T]) {
        let dice = self.dice.get_or_insert_with(|| Dice::new(1));
        for last in (1..things.len()).rev() {
            things.swap(last, dice.up_to(last + 1) - 1);
        }
    }

    /// Drops what systemd would have dropped by itself.
    fn poll(&mut self) {
        self.stored.retain(|stored| {
            let mut ask = [PollFd::new(&stored.descriptor, PollFlags::empty())];
            !(stored.polled && poll(&mut ask, Some(&Timespec::default())) == Ok(1))
        });
    }
}

/// What the thread of the manager and the test share.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // The panic that has poisoned it is reported already.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits, in the thread of the manager, while messages are to stay in their queue.
    fn awake(&self) {
        let mut state = self.state();
        while state.pause_asked {
            state.is_paused = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap();
        }
        state.is_paused = false;
    }

    /// The next message that fits, which counts as seen with all before it.
    fn next(&self, within: Duration, fits: impl Fn(&str) -> bool) -> Option<String> {
        let deadline = Instant::now() + within;
        let mut state = self.state();
        loop {
            while state.seen < state.messages.len() {
                state.seen += 1;
                let message = &state.messages[state.seen - 1];
                if fits(message) {
                    return Some(message.clone());
                }
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

/// The value of a message's first line of a key.
pub fn value<'a>(message: &'a str, key: &str) -> Option<&'a str> {
    message
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// Takes messages until [`END`].
fn pump(socket: &UnixDatagram, shared: &Shared) {
    loop {
        shared.awake();
        let mut bytes = [0; LONGEST_MESSAGE + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], None);
        // What is refused or removed has to hang up before a barrier is answered.
        let _nothing_starts = nothing_starts();
        let received = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let count = match received {
            Ok(RecvMsg { bytes, .. }) => bytes,
            Err(Errno::INTR) => continue,
            Err(error) => panic!("the manager cannot receive: {error}"),
        };
        if count > LONGEST_MESSAGE {
            continue;
        }
        let descriptors = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        let message = String::from_utf8_lossy(&bytes[..count]).into_owned();
        match message.as_str() {
            END => return,
            MARK => shared.state().marks += 1,
            _ => shared.state().take(message, descriptors),
        }
        shared.changed.notify_all();
    }
}

/// How a daemon ends.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    Restart,
    Kill,
}

/// A manager, and the daemon that is its service.
#[derive(Debug)]
pub struct Manager {
    folder: Folder,
    shared: Arc<Shared>,
    pump: Option<JoinHandle<()>>,
    /// Connected to the notify socket, also while that is hidden.
    sender: UnixDatagram,
    listeners: Vec<(String, OwnedFd)>,
    /// The address at which the daemon itself listens, and the port from the second start on.
    own: Option<(String, u16)>,
    config: String,
    wrapper: Vec<String>,
    environment: Vec<(String, String)>,
    daemon: Option<Daemon>,
    past: Vec<Past>,
}

/// A daemon that has ended.
#[derive(Debug)]
struct Past {
    circumstances: String,
    log: String,
}

impl Manager {
    /// With one TCP listener of the name "echo" whose connections have small buffers at this end,
    /// so that little is enough to fill them.
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(32 * 1024).unwrap();
        socket.set_send_buffer_size(16 * 1024).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        socket.listen(1024).unwrap();
        Self::bare().listener("echo", socket)
    }

    /// The same with buffers as the kernel makes them.
    pub fn wide() -> Self {
        Self::bare().listener("echo", TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// The daemon listens for itself, at an address that no other test of this process uses.
    pub fn without_listeners(number: u8) -> Self {
        let [high, low] = std::process::id().to_be_bytes()[2..] else {
            unreachable!()
        };
        let mut manager = Self::bare();
        manager.own = Some((format!("127.{}.{high}.{low}", 10 + number), 0));
        manager
    }

    fn bare() -> Self {
        let folder = Folder::new();
        let socket = UnixDatagram::bind(folder.path("notify")).unwrap();
        // As with systemd, every user may send to it.
        let mode = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder.path("notify"), mode).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(folder.path("notify")).unwrap();
        let shared = Arc::new(Shared::default());
        shared.state().capacity = CAPACITY;
        let for_pump = Arc::clone(&shared);
        Self {
            folder,
            shared,
            pump: Some(std::thread::spawn(move || pump(&socket, &for_pump))),
            sender,
            listeners: Vec::new(),
            own: None,
            config: "preserve-after = '0s'\n".into(),
            wrapper: Vec::new(),
            environment: Vec::new(),
            daemon: None,
            past: Vec::new(),
        }
    }

    /// Passes another listener to every daemon.
    pub fn listener(mut self, name: &str, socket: impl Into<OwnedFd>) -> Self {
        self.listeners.push((name.into(), socket.into()));
        self
    }

    /// Passes a Unix listener in the manager's own folder to every daemon.
    pub fn unix_listener(self, name: &str) -> Self {
        let socket = UnixListener::bind(self.folder.path(name)).unwrap();
        self.listener(name, socket)
    }

    /// Where the Unix listener of a name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path(name)
    }

    /// The next daemon has other listeners.
    pub fn replace_listeners(&mut self, name: &str, socket: impl Into<OwnedFd>) {
        self.listeners = vec![(name.into(), socket.into())];
    }

    /// `FileDescriptorStoreMax=`, from now on.
    pub fn capacity(&self, most: usize) {
        self.shared.state().capacity = most;
    }

    /// Whether barriers are answered from now on; those that were not are answered once they are.
    pub fn answers(&self, yes: bool) {
        let mut state = self.shared.state();
        state.ignores_barriers = !yes;
        if yes {
            state.unanswered.clear();
        }
    }

    /// Moves the notify socket away, or back.
    pub fn hides(&self, yes: bool) {
        let (here, away) = (self.folder.path("notify"), self.folder.path("away"));
        let (from, to) = if yes { (here, away) } else { (away, here) };
        std::fs::rename(from, to).unwrap();
    }

    /// Takes no messages any more, and fills the queue; or takes messages again.
    #[track_caller]
    pub fn pauses(&self, yes: bool) {
        self.shared.state().pause_asked = yes;
        self.shared.changed.notify_all();
        if !yes {
            return;
        }
        self.sender.set_nonblocking(true).unwrap();
        let fill = || self.sender.send(b"X_FILL=1");
        // The thread waits for a message, and takes this one.
        fill().unwrap();
        eventually(SOON, "the manager does not fall asleep", || {
            self.shared.state().is_paused.then_some(())
        });
        while fill().is_ok() {}
        self.sender.set_nonblocking(false).unwrap();
    }

    /// Gives the daemon, and the next ones, another configuration.
    #[track_caller]
    pub fn reload(&mut self, text: &str) {
        self.config(text);
        self.daemon().folder.write("config.toml", text);
        self.daemon().signal(Signal::HUP);
        self.notified("RELOADING=1");
        self.notified("READY=1");
    }

    /// Sets the configuration of the next daemons.
    pub fn config(&mut self, text: &str) {
        self.config = text.into();
    }

    /// Runs the next daemons under another program ([`Plan::under`]).
    pub fn under(&mut self, wrapper: &[&str]) {
        self.wrapper = wrapper.iter().map(ToString::to_string).collect();
    }

    /// Runs the next daemons under strace(1), which does this to each such system call
    /// (`-e inject=`).
    pub fn inject(&mut self, call: &str, fault: &str) {
        let (trace, fault) = (format!("trace={call}"), format!("inject={call}:{fault}"));
        let quiet = [
            "strace",
            "-D",
            "-f",
            "-q",
            "-o",
            "/dev/null",
            "-e",
            "signal=none",
        ];
        let words = [&quiet[..], &["-e", &trace, "-e", &fault]].concat();
        self.under(&words);
    }

    /// Sets a variable in the environment of the next daemons, such as `FDSTORE`.
    pub fn environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.into(), value.into()));
    }

    /// Starts the next daemon without waiting for it.
    pub fn launch(&mut self) {
        assert!(self.daemon.is_none(), "there is a daemon already");
        let mut plan = Plan::bare()
            .config(&self.config)
            .argument("--log-format=json")
            .unnotified();
        let notify = self.folder.path("notify");
        plan = plan.environment("NOTIFY_SOCKET", notify.to_str().unwrap());
        for (name, value) in &self.environment {
            plan = plan.environment(name, value);
        }
        if let Some((host, port)) = &self.own {
            plan = plan.argument(&format!("--listen={host}:{port}"));
        }
        let wrapper: Vec<&str> = self.wrapper.iter().map(String::as_str).collect();
        if !wrapper.is_empty() {
            plan = plan.under(&wrapper);
        }
        let (names, descriptors) = self.passed();
        let plan = plan.pass(descriptors, &names.join(":"));
        self.daemon = Some(plan.start());
    }

    /// Duplicates of the listeners, then of the stored descriptors.
    fn passed(&self) -> (Vec<String>, Vec<OwnedFd>) {
        let mut state = self.shared.state();
        state.poll();
        state.seen = state.messages.len();
        let copy = |name: &String, it: &OwnedFd| (name.clone(), it.try_clone().unwrap());
        let stored = state.stored.iter();
        let mut stored: Vec<_> = stored
            .map(|stored| copy(&stored.name, &stored.descriptor))
            .collect();
        state.shuffle(&mut stored);
        let listeners = self.listeners.iter().map(|(name, it)| copy(name, it));
        listeners.chain(stored).unzip()
    }

    /// Waits until the daemon that was launched is ready.
    #[track_caller]
    pub fn ready(&mut self) {
        let deadline = Instant::now() + SOON;
        let ready = loop {
            if let Some(ready) = self.notified_within("READY=1", Duration::from_millis(50)) {
                break ready;
            }
            let ended = !self.daemon_mut().is_running();
            assert!(!ended, "the daemon ended before it was ready");
            assert!(Instant::now() < deadline, "the daemon is not ready in time");
        };
        let listen = value(&ready, "X_TCP_ECHO_LISTEN").unwrap_or_default();
        let words = listen.split(' ').filter(|word| !word.is_empty());
        self.daemon_mut().listen = words.map(Into::into).collect();
        let address = self.address();
        if let Some((_, port)) = &mut self.own {
            *port = address.port();
        }
    }

    /// Starts the next daemon and waits until it is ready.
    #[track_caller]
    pub fn start(&mut self) {
        self.launch();
        self.ready();
    }

    /// Kills the daemon.
    #[track_caller]
    pub fn kill(&mut self) {
        self.daemon().signal(Signal::KILL);
        self.was_killed();
    }

    /// Waits until the daemon has ended by SIGKILL, which strace(1) may have sent.
    #[track_caller]
    pub fn was_killed(&mut self) {
        let status = self.ended();
        assert_eq!(status.signal(), Some(9), "it ended otherwise: {status}");
    }

    /// Sends USR2, and waits until the daemon has exited well.
    #[track_caller]
    pub fn hand_over(&mut self) {
        self.daemon().signal(Signal::USR2);
        let status = self.ended();
        assert!(status.success(), "it ended with {status}");
    }

    /// Ends the daemon in this way.
    #[track_caller]
    pub fn ends(&mut self, way: Way) {
        match way {
            Way::Restart => self.hand_over(),
            Way::Kill => self.kill(),
        }
    }

    /// Ends the daemon in this way, and starts the next one.
    #[track_caller]
    pub fn replace(&mut self, way: Way) {
        self.ends(way);
        self.start();
    }

    /// Hands over to the next daemon.
    #[track_caller]
    pub fn restart(&mut self) {
        self.replace(Way::Restart);
    }

    /// Sends TERM, and waits until the daemon has exited well.
    #[track_caller]
    pub fn stop(&mut self) {
        self.daemon().signal(Signal::TERM);
        let status = self.ended();
        assert!(status.success(), "it ended with {status}");
    }

    /// Waits for the end of the daemon, and until every message that it has sent is taken.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let status = self.daemon_mut().exited(SOON);
        self.settle();
        let daemon = self.daemon.take().unwrap();
        self.past.push(Past {
            circumstances: daemon.circumstances(),
            log: daemon.log(),
        });
        status
    }

    /// Waits until every message that was sent before is taken, if messages are taken at all.
    #[track_caller]
    fn settle(&self) {
        let State {
            marks, pause_asked, ..
        } = *self.shared.state();
        if pause_asked {
            return;
        }
        self.sender.send(MARK.as_bytes()).unwrap();
        eventually(SOON, "the manager takes no messages", || {
            (self.shared.state().marks > marks).then_some(())
        });
    }

    #[track_caller]
    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("there is no daemon")
    }

    #[track_caller]
    pub fn daemon_mut(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("there is no daemon")
    }

    pub fn is_running(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(Daemon::is_running)
    }

    /// The address of the first TCP listener, also while there is no daemon.
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        let own = || self.daemon().address();
        let address = |socket: &OwnedFd| socket2::SockRef::from(socket).local_addr().ok();
        self.listeners
            .iter()
            .find_map(|(_, socket)| address(socket)?.as_socket())
            .unwrap_or_else(own)
    }

    #[track_caller]
    pub fn connect(&self) -> TcpStream {
        connect(self.address())
    }

    /// The next message of the daemon with a line that begins with `start`.
    #[track_caller]
    pub fn notified(&self, start: &str) -> String {
        self.notified_within(start, SOON)
            .unwrap_or_else(|| panic!("no {start} in time"))
    }

    pub fn notified_within(&self, start: &str, within: Duration) -> Option<String> {
        let begins = |message: &str| message.lines().any(|line| line.starts_with(start));
        self.shared.next(within, begins)
    }

    /// Every message so far, of all daemons.
    pub fn messages(&self) -> Vec<String> {
        self.shared.state().messages.clone()
    }

    /// Waits until a status contains a text.
    #[track_caller]
    pub fn status_has(&self, text: &str) -> String {
        self.status_has_one_of(&[text])
    }

    /// Waits until a status contains one of these.  The daemon is asked for it again and again, as it
    /// sends a changed status only once a second by itself.
    #[track_caller]
    fn status_has_one_of(&self, texts: &[&str]) -> String {
        let deadline = Instant::now() + SOON;
        let says = |status: &str| texts.iter().any(|text| status.contains(text));
        loop {
            let message = self
                .shared
                .next(ASK, |message| value(message, "STATUS").is_some_and(says));
            if let Some(message) = message {
                return message;
            }
            assert!(Instant::now() < deadline, "the status never says {texts:?}");
            self.daemon().signal(Signal::USR1);
        }
    }

    /// Waits until so many connections are preserved.
    #[track_caller]
    pub fn preserves(&self, count: usize) {
        let plural = if count == 1 { "" } else { "s" };
        self.status_has(&format!("; {count} connection{plural} preserved"));
    }

    /// Waits until the daemon has reported that it preserves nothing, and why.
    #[track_caller]
    pub fn preserves_nothing(&self) -> String {
        self.status_has("; preservation off: ")
    }

    /// Waits until the daemon has reported whether it preserves connections; returns whether it does.
    #[track_caller]
    pub fn decides(&self) -> bool {
        let stored = " preserved";
        self.status_has_one_of(&[stored, "; preservation off: "])
            .contains(stored)
    }

    /// Waits for an event in the log of the daemon.
    #[track_caller]
    pub fn event(&self, id: &str) -> Value {
        serde_json::from_str(&self.daemon().logged(id)).unwrap()
    }

    /// The last event of this kind in the log of the last daemon that has ended.
    #[track_caller]
    pub fn past_event(&self, id: &str) -> Value {
        let Past { log, .. } = self.past.last().expect("no daemon has ended");
        let line = log.lines().rfind(|line| line.contains(id));
        let line = line.unwrap_or_else(|| panic!("no event {id} in\n{log}"));
        serde_json::from_str(line).unwrap()
    }

    /// The names of all stored descriptors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut state = self.shared.state();
        state.poll();
        let mut names: Vec<String> = state
            .stored
            .iter()
            .map(|stored| stored.name.clone())
            .collect();
        names.sort();
        names
    }

    /// The descriptors in the first message of each stored queue.
    pub fn in_flight(&self) -> Vec<OwnedFd> {
        let mut state = self.shared.state();
        state.poll();
        let mut found = Vec::new();
        for stored in state.stored.iter() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            // Only one end of a queue has messages, and a memory file has none.
            let _ = recvmsg(
                &stored.descriptor,
                &mut [IoSliceMut::new(&mut [0])],
                &mut control,
                flags,
            );
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    found.extend(descriptors);
                }
            }
        }
        found
    }

    /// How many stored descriptors have a name that begins with this.
    pub fn stored(&self, name: &str) -> usize {
        let names = self.names();
        names
            .iter()
            .filter(|stored| stored.starts_with(name))
            .count()
    }

    /// Waits until one state file and one descriptor queue are stored, and nothing else; returns the name
    /// of the queue.
    #[track_caller]
    pub fn one_of_each(&self) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let names = self.names();
            if let [one, other, state_file] = &names[..] {
                if state_file.starts_with("preserve-state-")
                    && one.starts_with("preserve-queue-")
                    && one == other
                {
                    return one.clone();
                }
            }
            assert!(Instant::now() < deadline, "in the store is {names:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The most descriptors that were stored at a time.
    pub fn peak(&self) -> usize {
        self.shared.state().peak
    }

    /// Barriers so far.
    pub fn barriers(&self) -> usize {
        self.shared.state().barriers
    }

    /// The state file.
    #[track_caller]
    pub fn state_file(&self) -> File {
        let state = self.shared.state();
        let state_file = state
            .stored
            .iter()
            .find(|stored| stored.name.starts_with("preserve-state-"));
        let state_file = state_file.expect("no state file is stored");
        state_file.descriptor.try_clone().unwrap().into()
    }

    /// Stores another descriptor, as if a daemon had sent it.
    pub fn store(&self, name: &str, descriptor: impl Into<OwnedFd>) {
        self.shared.state().stored.push(Stored {
            name: name.into(),
            descriptor: descriptor.into(),
            polled: false,
        });
    }

    /// Drops all descriptors with a name that begins with this; returns the first of the names.
    pub fn drop_all(&self, name: &str) -> Option<String> {
        let mut state = self.shared.state();
        let found = state
            .stored
            .iter()
            .map(|stored| &stored.name)
            .find(|stored| stored.starts_with(name))
            .cloned();
        state.stored.retain(|stored| !stored.name.starts_with(name));
        found
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for Past { circumstances, log } in self.past.iter().rev().take(2).rev() {
                let lines: Vec<&str> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(30)..].join("\n");
                eprintln!("{circumstances}--- the end of the log of a daemon before:\n{last}\n---");
            }
            eprintln!("--- stored: {:?}", self.names());
            for message in self.messages().iter().rev().take(12).rev() {
                eprintln!("--- message: {}", message.replace('\n', "; "));
            }
        }
        self.daemon = None;
        self.shared.state().pause_asked = false;
        self.shared.changed.notify_all();
        // A thread that has panicked has closed its end.
        let _ = self.sender.send(END.as_bytes());
        let _ = self.pump.take().unwrap().join();
    }
}

/// A memory file of so many bytes that cannot shrink, as a state file is.
pub fn memory_file(length: u64) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("test", flags).unwrap());
    file.set_len(length).unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    file
}
