//! The service manager, played by the test: it passes listeners, keeps descriptors, and starts one
//! daemon after the other.
//!
//! It does what systemd does with the messages of sd_notify(3): `FDSTORE=1` keeps descriptors by
//! name while there is room, `FDSTOREREMOVE=1` drops all of a name, `BARRIER=1` is answered by
//! closing its descriptor, and everything is done in the order of the messages.  The next daemon
//! gets the listeners and what is kept, the latter in another order each time, as nobody promises
//! one.  Unlike systemd it drops nothing at the end of a stop, so that a test sees what is left.
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

use crate::daemon::{Daemon, Dice, Folder, LONGEST_MESSAGE, Plan, SOON, connect, eventually};

/// `FileDescriptorStoreMax=` of the shipped unit.
const CAPACITY: usize = 16;

/// Descriptors in one message, `SCM_MAX_FD`.
const MOST: usize = 253;

/// Tells the pump to end.
const END: &str = "X_END=1";

/// Between two requests to tell the status.
const ASK: Duration = Duration::from_millis(100);

/// A descriptor in the store.
#[derive(Debug)]
struct Kept {
    name: String,
    descriptor: OwnedFd,
    /// Without `FDPOLL=0` it goes when its other end does.
    polled: bool,
}

#[derive(Debug, Default)]
struct State {
    capacity: usize,
    kept: Vec<Kept>,
    /// The most that were kept at a time.
    peak: usize,
    /// Every message but the barriers.
    messages: Vec<String>,
    /// Messages before this one have been looked at.
    seen: usize,
    barriers: usize,
    /// Barriers are not answered.
    deaf: bool,
    unanswered: Vec<OwnedFd>,
    /// No message is taken out of the queue.
    asleep: bool,
    /// And none is being taken out.
    sleeps: bool,
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
            if self.deaf {
                self.unanswered.extend(descriptors);
            }
            return;
        }
        let name = value(&message, "FDNAME").unwrap_or("stored");
        if value(&message, "FDSTOREREMOVE") == Some("1") {
            self.kept.retain(|kept| kept.name != name);
        } else if value(&message, "FDSTORE") == Some("1") {
            self.shuffle(&mut descriptors);
            for descriptor in descriptors {
                // Nor does systemd store the same file twice.
                let same = |kept: &Kept| identity(&kept.descriptor) == identity(&descriptor);
                if self.kept.len() < self.capacity && !self.kept.iter().any(same) {
                    self.kept.push(Kept {
                        name: name.into(),
                        descriptor,
                        polled: value(&message, "FDPOLL") != Some("0"),
                    });
                }
            }
            self.peak = self.peak.max(self.kept.len());
        }
        self.messages.push(message);
    }

    /// Nobody promises an order, neither of storing nor of passing.
    fn shuffle<T>(&mut self, things: &mut [T]) {
        let dice = self.dice.get_or_insert_with(|| Dice::new(1));
        for last in (1..things.len()).rev() {
            things.swap(last, dice.up_to(last + 1) - 1);
        }
    }

    /// Drops what systemd would have dropped by itself.
    fn poll(&mut self) {
        self.kept.retain(|kept| {
            let mut ask = [PollFd::new(&kept.descriptor, PollFlags::empty())];
            !(kept.polled && poll(&mut ask, Some(&Timespec::default())) == Ok(1))
        });
    }
}

/// What the pump and the test share.
#[derive(Debug, Default)]
struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        // A test that failed elsewhere is told once.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits, in the pump, as long as messages stay in their queue.
    fn awake(&self) {
        let mut state = self.state();
        while state.asleep {
            state.sleeps = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap();
        }
        state.sleeps = false;
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

/// Takes in messages until it is told to end.
fn pump(socket: &UnixDatagram, desk: &Desk) {
    loop {
        desk.awake();
        let mut bytes = [0; LONGEST_MESSAGE + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
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
        if message == END {
            return;
        }
        desk.state().take(message, descriptors);
        desk.changed.notify_all();
    }
}

/// How a daemon goes.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    Restart,
    Kill,
}

/// A manager, and the daemon that is its service now.
#[derive(Debug)]
pub struct Manager {
    folder: Folder,
    desk: Arc<Desk>,
    pump: Option<JoinHandle<()>>,
    listeners: Vec<(String, OwnedFd)>,
    /// The host at which the daemon itself listens, and the port from the second time on.
    own: Option<(String, u16)>,
    config: String,
    wrapper: Vec<String>,
    environment: Vec<(String, String)>,
    daemon: Option<Daemon>,
    /// The logs of its predecessors.
    past: Vec<String>,
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
        // As for the real one: anybody may talk to it.
        let mode = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder.path("notify"), mode).unwrap();
        let desk = Arc::new(Desk::default());
        desk.state().capacity = CAPACITY;
        let shared = Arc::clone(&desk);
        Self {
            folder,
            desk,
            pump: Some(std::thread::spawn(move || pump(&socket, &shared))),
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
    pub fn relist(&mut self, name: &str, socket: impl Into<OwnedFd>) {
        self.listeners = vec![(name.into(), socket.into())];
    }

    /// `FileDescriptorStoreMax=`, from now on.
    pub fn capacity(&self, most: usize) {
        self.desk.state().capacity = most;
    }

    /// Whether barriers are answered, from now on.  Those that were not are when they will be.
    pub fn answers(&self, yes: bool) {
        let mut state = self.desk.state();
        state.deaf = !yes;
        if yes {
            state.unanswered.clear();
        }
    }

    /// Nobody finds the manager any more, or everybody does again.
    pub fn hides(&self, yes: bool) {
        let (here, away) = (self.folder.path("notify"), self.folder.path("away"));
        let (from, to) = if yes { (here, away) } else { (away, here) };
        std::fs::rename(from, to).unwrap();
    }

    /// Takes no message any more, and its queue is full; or takes them all again.
    #[track_caller]
    pub fn sleeps(&self, yes: bool) {
        self.desk.state().asleep = yes;
        self.desk.changed.notify_all();
        if !yes {
            return;
        }
        let sender = UnixDatagram::unbound().unwrap();
        sender.set_nonblocking(true).unwrap();
        let fill = || sender.send_to(b"X_FILL=1", self.folder.path("notify"));
        // The pump waits for a message, which it may have still.
        fill().unwrap();
        eventually(SOON, "the manager does not fall asleep", || {
            self.desk.state().sleeps.then_some(())
        });
        while fill().is_ok() {}
    }

    /// Gives the daemon, and those to come, another configuration.
    #[track_caller]
    pub fn reload(&mut self, text: &str) {
        self.config(text);
        self.daemon().folder.write("config.toml", text);
        self.daemon().signal(Signal::HUP);
        self.notified("RELOADING=1");
        self.notified("READY=1");
    }

    /// The configuration of the daemons to come.
    pub fn config(&mut self, text: &str) {
        self.config = text.into();
    }

    /// The daemons to come run under another program; see [`Plan::under`].
    pub fn under(&mut self, wrapper: &[&str]) {
        self.wrapper = wrapper.iter().map(ToString::to_string).collect();
    }

    /// The daemons to come run under strace(1), which does this to each such system call
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

    /// The daemons to come have a variable in their environment, such as `FDSTORE`.
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

    /// Duplicates of the listeners, then of what is kept.
    fn passed(&self) -> (Vec<String>, Vec<OwnedFd>) {
        let mut state = self.desk.state();
        state.poll();
        state.seen = state.messages.len();
        let copy = |name: &String, it: &OwnedFd| (name.clone(), it.try_clone().unwrap());
        let kept = state.kept.iter();
        let mut kept: Vec<_> = kept
            .map(|kept| copy(&kept.name, &kept.descriptor))
            .collect();
        state.shuffle(&mut kept);
        let listeners = self.listeners.iter().map(|(name, it)| copy(name, it));
        listeners.chain(kept).unzip()
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
        self.died();
    }

    /// Waits until the daemon is dead of SIGKILL, whoever sent it.
    #[track_caller]
    pub fn died(&mut self) {
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

    /// The daemon goes, in this way.
    #[track_caller]
    pub fn goes(&mut self, way: Way) {
        match way {
            Way::Restart => self.hand_over(),
            Way::Kill => self.kill(),
        }
    }

    /// It goes, and the next one comes.
    #[track_caller]
    pub fn replace(&mut self, way: Way) {
        self.goes(way);
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

    /// Waits for the end of the daemon.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let status = self.daemon_mut().exited(SOON);
        let daemon = self.daemon.take().unwrap();
        self.past.push(daemon.log());
        status
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
        self.desk.next(within, begins)
    }

    /// Every message so far, of all daemons.
    pub fn messages(&self) -> Vec<String> {
        self.desk.state().messages.clone()
    }

    /// Waits until a status says a text.
    #[track_caller]
    pub fn says(&self, text: &str) -> String {
        self.says_one_of(&[text])
    }

    /// Waits until a status says one of these.  The daemon is asked for it again and again, as it
    /// tells a change by itself only once a second.
    #[track_caller]
    fn says_one_of(&self, texts: &[&str]) -> String {
        let deadline = Instant::now() + SOON;
        let says = |status: &str| texts.iter().any(|text| status.contains(text));
        loop {
            let message = self
                .desk
                .next(ASK, |message| value(message, "STATUS").is_some_and(says));
            if let Some(message) = message {
                return message;
            }
            assert!(Instant::now() < deadline, "the status never says {texts:?}");
            self.daemon().signal(Signal::USR1);
        }
    }

    /// Waits until so many connections are kept, and no crash can harm them.
    #[track_caller]
    pub fn keeps(&self, count: usize) {
        let plural = if count == 1 { "" } else { "s" };
        self.says(&format!("; {count} connection{plural} preserved"));
    }

    /// Waits until the daemon has told that it keeps nothing, and why.
    #[track_caller]
    pub fn keeps_nothing(&self) -> String {
        self.says("; preservation off: ")
    }

    /// Waits until the daemon has told whether it keeps anything; says whether it does.
    #[track_caller]
    pub fn decides(&self) -> bool {
        let kept = " preserved";
        self.says_one_of(&[kept, "; preservation off: "])
            .contains(kept)
    }

    /// Waits for an event of the daemon's.
    #[track_caller]
    pub fn event(&self, id: &str) -> Value {
        serde_json::from_str(&self.daemon().logged(id)).unwrap()
    }

    /// The last event of this kind that the last daemon which ended has told.
    #[track_caller]
    pub fn past_event(&self, id: &str) -> Value {
        let log = self.past.last().expect("no daemon has ended");
        let line = log.lines().rfind(|line| line.contains(id));
        let line = line.unwrap_or_else(|| panic!("no event {id} in\n{log}"));
        serde_json::from_str(line).unwrap()
    }

    /// Names of all that is kept, in order.
    pub fn names(&self) -> Vec<String> {
        let mut state = self.desk.state();
        state.poll();
        let mut names: Vec<String> = state.kept.iter().map(|kept| kept.name.clone()).collect();
        names.sort();
        names
    }

    /// Descriptors that are in flight in the first message of each queue that is kept.
    pub fn in_flight(&self) -> Vec<OwnedFd> {
        let mut state = self.desk.state();
        state.poll();
        let mut found = Vec::new();
        for kept in state.kept.iter() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            // Only one end of a queue has messages, and a memory file has none.
            let _ = recvmsg(
                &kept.descriptor,
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

    /// How many descriptors are kept whose names begin with this.
    pub fn stored(&self, name: &str) -> usize {
        let names = self.names();
        names.iter().filter(|kept| kept.starts_with(name)).count()
    }

    /// Waits until one arena and one parcel are kept, and nothing else; returns the parcel's name.
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

    /// The most descriptors that were kept at a time.
    pub fn peak(&self) -> usize {
        self.desk.state().peak
    }

    /// Barriers so far.
    pub fn barriers(&self) -> usize {
        self.desk.state().barriers
    }

    /// The memory of the kept connections.
    #[track_caller]
    pub fn arena(&self) -> File {
        let state = self.desk.state();
        let arena = state
            .kept
            .iter()
            .find(|kept| kept.name.starts_with("preserve-state-"));
        let arena = arena.expect("no arena is kept");
        arena.descriptor.try_clone().unwrap().into()
    }

    /// Keeps another descriptor, as if a daemon had sent it.
    pub fn put(&self, name: &str, descriptor: impl Into<OwnedFd>) {
        self.desk.state().kept.push(Kept {
            name: name.into(),
            descriptor: descriptor.into(),
            polled: false,
        });
    }

    /// Drops all whose names begin with this; returns the first of the names.
    pub fn drop_all(&self, name: &str) -> Option<String> {
        let mut state = self.desk.state();
        let found = state
            .kept
            .iter()
            .map(|kept| &kept.name)
            .find(|kept| kept.starts_with(name))
            .cloned();
        state.kept.retain(|kept| !kept.name.starts_with(name));
        found
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in self.past.iter().rev().take(2).rev() {
                let lines: Vec<&str> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(30)..].join("\n");
                eprintln!("--- the log of a daemon before:\n{last}\n---");
            }
            eprintln!("--- kept: {:?}", self.names());
            for message in self.messages().iter().rev().take(12).rev() {
                eprintln!("--- message: {}", message.replace('\n', "; "));
            }
        }
        self.daemon = None;
        self.desk.state().asleep = false;
        self.desk.changed.notify_all();
        let sender = UnixDatagram::unbound().unwrap();
        let told = sender.send_to(END.as_bytes(), self.folder.path("notify"));
        if told.is_ok() {
            let _ = self.pump.take().unwrap().join();
        }
    }
}

/// A memory file of so many bytes that cannot shrink, as arenas are.
pub fn memory_file(length: u64) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("test", flags).unwrap());
    file.set_len(length).unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    file
}
