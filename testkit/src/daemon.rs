//! The fixture: a real daemon in a folder of its own, and what a test does with it.
//!
//! Readiness comes through a notify socket of the fixture, so no test sleeps to wait for it.
//! Every wait has a deadline; a daemon that outlives its test is killed by its process id, and
//! its folder is removed.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open,
};
use socket2::Socket;

use crate::{SOON, connect, eventually, has_proxy};

/// The path of the program under test.
///
/// Cargo builds it before a test or a bench of its package, and writes it beside their folder
/// `deps`.  (The variable `CARGO_BIN_EXE_tcp-echo` of the compiler is for their own files alone.)
pub fn program() -> &'static str {
    static PROGRAM: LazyLock<String> = LazyLock::new(|| {
        let own = std::env::current_exe().unwrap();
        let path = own.parent().unwrap().with_file_name("tcp-echo");
        assert!(path.is_file(), "{} does not exist", path.display());
        path.into_os_string().into_string().unwrap()
    });
    &PROGRAM
}

/// Held while a process is started: until it executes its program it has every descriptor of this
/// process, so that what is closed here meanwhile does not hang up.
static STARTING: Mutex<()> = Mutex::new(());

/// Waits while a process is started, and prevents that one is.
pub(crate) fn nothing_starts() -> MutexGuard<'static, ()> {
    // Nothing is behind the lock that a panic could have left unfinished.
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a process; when this returns, it executes its program.
pub(crate) fn spawn(command: &mut Command) -> Child {
    let _starting = nothing_starts();
    command.spawn().unwrap()
}

/// A folder that is removed with its owner.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("tcp-echo-it-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A daemon to be started.
#[derive(Debug)]
pub struct Plan {
    folder: Folder,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    passed: Vec<OwnedFd>,
    names: String,
    notify: bool,
    stderr: Option<Stdio>,
}

impl Plan {
    /// On the listener `127.0.0.1:0`, without the host's own configuration.
    pub fn new() -> Self {
        Self::bare().argument("--listen").argument("127.0.0.1:0")
    }

    /// Without a listener and without the host's own configuration.
    ///
    /// It has as many workers as the variable `TCP_ECHO_TEST_WORKERS` says, unless the configuration
    /// does: everything else is true for any number of them.
    pub fn bare() -> Self {
        let folder = Folder::new();
        if let Ok(workers) = std::env::var("TCP_ECHO_TEST_WORKERS") {
            folder.write(
                "config.toml.d/workers.toml",
                &format!("workers = {workers}\n"),
            );
        }
        if has_proxy() {
            folder.write("config.toml.d/proxy.toml", "[socket]\nproxy = 'required'\n");
        }
        Self {
            folder,
            arguments: Vec::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            passed: Vec::new(),
            names: String::new(),
            notify: true,
            stderr: None,
        }
        .config("")
    }

    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Writes the configuration file that the daemon reads.
    pub fn config(self, text: &str) -> Self {
        if text.contains("workers = ") {
            let _ = std::fs::remove_file(self.folder.path("config.toml.d/workers.toml"));
        }
        self.folder.write("config.toml", text);
        self
    }

    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs the daemon under another program, such as `["strace", "-f"]` or `["prlimit", "--nofile=64"]`,
    /// which must execute it in the same process or forward its signals.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(ToString::to_string).collect();
        self
    }

    /// Passes descriptors as systemd does, with the content of `LISTEN_FDNAMES`.
    pub fn pass(mut self, descriptors: Vec<OwnedFd>, names: &str) -> Self {
        self.passed = descriptors;
        self.names = names.into();
        self
    }

    /// Without a notify socket: [`Plan::start`] does not wait for readiness.
    pub fn unnotified(mut self) -> Self {
        self.notify = false;
        self
    }

    /// Standard error goes elsewhere than to the file `log`.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = Some(stderr.into());
        self
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The command that would be run, with standard error going to the file `log` in the folder.
    pub fn command(&mut self) -> Command {
        let count = self.passed.len();
        let mut words: Vec<String> = Vec::new();
        if count > 0 {
            // The shell executes the daemon, so both have the same process id.
            words.extend(["sh", "-c", "LISTEN_PID=$$ exec \"$@\"", "sh"].map(Into::into));
        }
        words.extend(self.wrapper.clone());
        words.push(program().into());
        words.extend([
            "--config".into(),
            self.folder.path("config.toml").display().to_string(),
        ]);
        words.extend(self.arguments.clone());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        for name in [
            "NOTIFY_SOCKET",
            "WATCHDOG_USEC",
            "WATCHDOG_PID",
            "JOURNAL_STREAM",
            "RUST_LOG",
            "TCP_ECHO_CONFIG",
        ] {
            command.env_remove(name);
        }
        if count > 0 {
            command
                .env("LISTEN_FDS", count.to_string())
                .env("LISTEN_FDNAMES", &self.names);
            pass_descriptors(&mut command, std::mem::take(&mut self.passed));
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let log = || {
            std::fs::File::create(self.folder.path("log"))
                .unwrap()
                .into()
        };
        command.stderr(self.stderr.take().unwrap_or_else(log));
        command
    }

    /// Starts the daemon and waits until it is ready.
    pub fn start(mut self) -> Daemon {
        let mut command = self.command();
        let notify = self.notify.then(|| {
            let path = self.folder.path("notify");
            command.env("NOTIFY_SOCKET", &path);
            UnixDatagram::bind(path).unwrap()
        });
        let child = spawn(&mut command);
        let mut daemon = Daemon {
            child,
            command: format!("{command:?}"),
            notify,
            folder: self.folder,
            listen: Vec::new(),
            status: None,
        };
        drop(command);
        if daemon.notify.is_some() {
            let ready = daemon.notified("READY=1");
            let listen = ready
                .lines()
                .find_map(|line| line.strip_prefix("X_TCP_ECHO_LISTEN="))
                .unwrap();
            daemon.listen = listen
                .split(' ')
                .filter(|word| !word.is_empty())
                .map(Into::into)
                .collect();
        }
        daemon
    }

    /// Runs the program to its end; returns its status and all that it wrote.
    pub fn run(mut self) -> (ExitStatus, String) {
        let mut command = self.command();
        let output = self.folder.path("output");
        command.stdout(std::fs::File::create(&output).unwrap());
        let child = spawn(&mut command);
        let mut daemon = Daemon {
            child,
            command: format!("{command:?}"),
            notify: None,
            folder: self.folder,
            listen: Vec::new(),
            status: None,
        };
        let status = daemon.exited(SOON);
        let text = std::fs::read_to_string(output).unwrap() + &daemon.log();
        // It is shown if the test fails, and captured otherwise.
        eprintln!(
            "{}--- {status}, it wrote:\n{text}---",
            daemon.circumstances()
        );
        (status, text)
    }
}

/// systemd ignores a longer message as a whole, `NOTIFY_BUFFER_MAX`.
pub const LONGEST_MESSAGE: usize = 4096;

/// The number of the first passed descriptor, `SD_LISTEN_FDS_START`.
const FIRST: i32 = 3;

/// Makes descriptors those of a command, from number 3 on, for as long as the command exists.
#[expect(unsafe_code, reason = "a child sets its own numbers, after the fork")]
fn pass_descriptors(command: &mut Command, descriptors: Vec<OwnedFd>) {
    let count = i32::try_from(descriptors.len()).unwrap();
    // Out of the way of the numbers that they will have.
    let away =
        |descriptor: OwnedFd| rustix::io::fcntl_dupfd_cloexec(descriptor, FIRST + count).unwrap();
    let away: Vec<OwnedFd> = descriptors.into_iter().map(away).collect();
    // SAFETY: after the fork only dup2(2) is called, which is async-signal-safe; nothing is
    // allocated or locked.  A number that is replaced here may be the one by which the child
    // reports that it could not execute; then the test notices the missing daemon later.
    unsafe {
        command.pre_exec(move || {
            for (number, descriptor) in (FIRST..).zip(&away) {
                if libc::dup2(descriptor.as_raw_fd(), number) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// As it was started, with its environment.
    command: String,
    notify: Option<UnixDatagram>,
    pub folder: Folder,
    /// Where it listens, as its message of readiness says.
    pub listen: Vec<String>,
    status: Option<ExitStatus>,
}

impl Daemon {
    pub fn start() -> Self {
        Plan::new().start()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The address of its first TCP listener.
    pub fn address(&self) -> SocketAddr {
        self.listen
            .iter()
            .find_map(|listen| listen.parse().ok())
            .expect("no TCP listener")
    }

    pub fn connect(&self) -> TcpStream {
        connect(self.address())
    }

    /// The reading end of its standard error, if that was `Stdio::piped()`.
    pub fn take_stderr(&mut self) -> ChildStderr {
        self.child.stderr.take().expect("standard error is no pipe")
    }

    /// A duplicate of the daemon's end of a connection, to read its options.  Where the sandbox forbids
    /// pidfd_getfd(2), prints that the test skips, and returns `None`.
    pub fn end_of(&self, client: &TcpStream) -> Option<Socket> {
        let local = client.local_addr().unwrap();
        self.socket(|socket| {
            socket
                .peer_addr()
                .is_ok_and(|peer| peer.as_socket() == Some(local))
        })
    }

    /// A duplicate of its first listening socket; `None` as with [`Daemon::end_of`].
    pub fn listening_socket(&self) -> Option<Socket> {
        self.socket(|socket| socket.is_listener().unwrap_or(false))
    }

    fn socket(&self, is_it: impl Fn(&Socket) -> bool) -> Option<Socket> {
        let process = match pidfd_open(self.pid(), PidfdFlags::empty()) {
            Ok(process) => process,
            Err(error) => {
                eprintln!("skipped: pidfd_open: {error}");
                return None;
            }
        };
        // Standard input, only to find out whether descriptors can be duplicated at all.
        let probe = pidfd_getfd(&process, 0, PidfdGetfdFlags::empty());
        if let Err(error @ (rustix::io::Errno::PERM | rustix::io::Errno::NOSYS)) = probe {
            eprintln!("skipped: pidfd_getfd: {error}");
            return None;
        }
        let found = eventually(SOON, "the daemon has no such socket", || {
            std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))
                .unwrap()
                .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
                .filter_map(|fd| pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok())
                .map(Socket::from)
                .find(|socket| is_it(socket))
        });
        Some(found)
    }

    /// The path of its first Unix listener.
    pub fn path(&self) -> PathBuf {
        self.listen
            .iter()
            .find_map(|listen| listen.strip_prefix("unix:"))
            .expect("no Unix listener")
            .into()
    }

    /// Waits until a daemon without a notify socket has logged where it is ready.
    pub fn logged_ready(mut self) -> Self {
        let line = self.logged("ready on ");
        let (_, listen) = line.split_once("ready on ").unwrap();
        self.listen = listen
            .split(' ')
            .map(|word| word.trim_end_matches(';').to_owned())
            .take_while(|word| word.parse::<SocketAddr>().is_ok() || word.starts_with("unix:"))
            .collect();
        self
    }

    /// Asserts that it does nothing at all: within a few seconds there is one without a wake-up and
    /// without processor time.  (What is still due, such as a last `STATUS=`, may come first.)
    #[track_caller]
    pub fn rests(&self) {
        let mut seen = Vec::new();
        for _ in 0..6 {
            let before = (self.wakeups(), self.ticks());
            std::thread::sleep(Duration::from_millis(1100));
            let after = (self.wakeups() - before.0, self.ticks() - before.1);
            if after == (0, 0) {
                return;
            }
            seen.push(after);
        }
        panic!("no rest; wake-ups and ticks: {seen:?}");
    }

    /// Asserts that it burns no processor time for a while; it may wake up now and then.
    #[track_caller]
    pub fn uses_hardly_any_time(&self) {
        let before = self.ticks();
        std::thread::sleep(Duration::from_secs(1));
        let ticks = self.ticks() - before;
        assert!(ticks <= 20, "{ticks} ticks of 10 ms in a second");
    }

    /// Waits until it has as many descriptors open as before something.
    #[track_caller]
    pub fn has_released(&self, descriptors: usize) {
        let mut open = 0;
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            open = self.descriptors();
            if open == descriptors {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("{open} descriptors are open, {descriptors} were before");
    }

    /// The next message of the manager that contains a line beginning with `start`.
    #[track_caller]
    pub fn notified(&self, start: &str) -> String {
        self.notified_within(start, SOON)
            .unwrap_or_else(|| panic!("no {start} in time; log:\n{}", self.log()))
    }

    pub fn notified_within(&self, start: &str, within: Duration) -> Option<String> {
        let deadline = Instant::now() + within;
        let notify = self
            .notify
            .as_ref()
            .expect("started without a notify socket");
        let mut buffer = [0; LONGEST_MESSAGE + 1];
        loop {
            let left = deadline
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())?;
            notify.set_read_timeout(Some(left)).unwrap();
            let Ok(count) = notify.recv(&mut buffer) else {
                continue;
            };
            if count > LONGEST_MESSAGE {
                continue;
            }
            let message = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if message.lines().any(|line| line.starts_with(start)) {
                return Some(message);
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            kill_process(self.pid(), signal).unwrap();
        }
    }

    /// Suspends it until [`Daemon::thaw`]; returns when every thread is suspended.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        eventually(SOON, "the daemon does not stand still", || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
            tasks
                .map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap())
                .all(|stat| stat.rsplit_once(") ").unwrap().1.starts_with(['T', 't']))
                .then_some(())
        });
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Replaces the configuration, sends HUP and waits for the answer.
    pub fn reload(&self, config: &str) -> String {
        self.folder.write("config.toml", config);
        self.signal(Signal::HUP);
        self.notified("RELOADING=1");
        self.notified("READY=1")
    }

    /// Sends TERM and waits for the end.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.exited(SOON)
    }

    /// Waits for the end.
    #[track_caller]
    pub fn exited(&mut self, within: Duration) -> ExitStatus {
        eventually(within, "the daemon did not exit", || {
            self.status = self.status.or(self.child.try_wait().unwrap());
            self.status
        })
    }

    pub fn is_running(&mut self) -> bool {
        self.status = self.status.or(self.child.try_wait().unwrap());
        self.status.is_none()
    }

    /// How it was started, and the files of its configuration as they are now, for a test that fails.
    pub fn circumstances(&self) -> String {
        let mut files = vec![self.folder.path("config.toml")];
        let more = std::fs::read_dir(self.folder.path("config.toml.d"));
        files.extend(more.into_iter().flatten().map(|file| file.unwrap().path()));
        let mut text = format!("--- the command:\n{}\n", self.command);
        for file in files {
            let content = std::fs::read_to_string(&file).unwrap_or_else(|error| error.to_string());
            text += &format!("--- {}:\n{}\n", file.display(), content.trim_end());
        }
        text
    }

    /// All that it has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.path("log")).unwrap_or_default())
            .into_owned()
    }

    /// Waits until the log contains a text, and returns its line.
    #[track_caller]
    pub fn logged(&self, text: &str) -> String {
        eventually(SOON, &format!("{text:?} was not logged"), || {
            self.log()
                .lines()
                .find(|line| line.contains(text))
                .map(Into::into)
        })
    }

    /// Waits until the log contains a text so many times.
    #[track_caller]
    pub fn logged_times(&self, text: &str, times: usize) {
        let complaint = format!("{text:?} was not logged {times} times");
        eventually(SOON, &complaint, || {
            (self.log().matches(text).count() == times).then_some(())
        });
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .unwrap()
            .count()
    }

    /// Processor time used so far, in ticks of 10 ms.
    pub fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// How often its threads have gone to sleep by themselves: wake-ups.
    pub fn wakeups(&self) -> u64 {
        std::fs::read_dir(format!("/proc/{}/task", self.child.id()))
            .unwrap()
            .map(|task| {
                let status = std::fs::read_to_string(task.unwrap().path().join("status"))
                    .unwrap_or_default();
                let line = status
                    .lines()
                    .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
                line.map_or(0, |number| number.trim().parse::<u64>().unwrap())
            })
            .sum()
    }

    /// Private anonymous memory, in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = kill_process(self.pid(), Signal::KILL);
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let circumstances = self.circumstances();
            eprintln!("{circumstances}--- the daemon's log:\n{}---", self.log());
        }
    }
}
