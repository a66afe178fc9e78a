//! What a test needs of the machine: time, tools, descriptors, a port.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use crate::daemon::spawn;

/// How long anything may take that should take no time.
pub const SOON: Duration = Duration::from_secs(20);

/// How long a probe may take at most.
const LONGEST: Duration = Duration::from_secs(120);

/// Whole seconds that have passed: one event a second is at most one more than these.
pub fn seconds_since(began: Instant) -> usize {
    usize::try_from(began.elapsed().as_secs()).unwrap()
}

/// Lets this process hold as many descriptors as it may.
pub fn plenty_of_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// A listener as systemd would pass it: blocking.
pub fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Runs a command to its end, within two minutes; after that it is killed.
pub fn run(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = spawn(command);
    let id = Pid::from_child(&child);
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if is_done.recv_timeout(LONGEST).is_err() {
            let _ = kill_process(id, Signal::KILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    let _ = done.send(());
    watch.join().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // It is shown if the test fails, and captured otherwise.
    eprintln!(
        "--- {command:?}: {}\n{}---\n{}---",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

/// Asks again and again until there is an answer.
#[track_caller]
pub fn eventually<T>(within: Duration, complaint: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{complaint} within {within:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a terminal can be opened (pty(7)); said as for a tool where it cannot.
pub fn has_terminals() -> bool {
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/ptmx");
    let slave = opened.is_ok() && Path::new("/dev/pts/ptmx").exists();
    is_there(slave, "/dev/pts: no terminal can be opened")
}

/// What strace(1) has written to a file about a process that has ended, as one that runs beside it (`-D`)
/// writes the last lines a little later.
#[track_caller]
pub fn traced(file: &str) -> String {
    eventually(SOON, "the trace has no end", || {
        let text = std::fs::read_to_string(file).ok()?;
        text.contains("+++ exited").then_some(text)
    })
}

/// Whether a tool that a test needs is there.  Where `TCP_ECHO_REQUIRE_TOOLS` is set, as in
/// continuous integration, a missing one is a failure; elsewhere the test says that it skips.
pub fn has(tool: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| Path::new(&folder).join(tool).is_file())
    });
    is_there(found, &format!("{tool} is not installed"))
}

/// Whether a Python has a module that a test needs, as [`has`] says of a tool.
pub fn has_module(python: &str, module: &str) -> bool {
    let mut import = Command::new(python);
    let output = import.args(["-c", &format!("import {module}")]).output();
    let found = output.is_ok_and(|output| output.status.success());
    is_there(found, &format!("{python} has no module {module}"))
}

/// Whether unshare(1) with these arguments succeeds, of which the last ones are a command that shows
/// what the namespaces can do; where it does not, the test says that it skips.
pub fn has_namespaces(arguments: &[&str]) -> bool {
    if !has("unshare") {
        return false;
    }
    let output = Command::new("unshare").args(arguments).output().unwrap();
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        eprintln!("skipped: unshare {}: {why}", arguments.join(" "));
    }
    output.status.success()
}

/// Runs the test of this name once more, alone and in a network of its own: there `setup`, of the
/// language of sh(1), runs first, and then `inside` instead of the rest of the test.  Where `setup` fails,
/// the test says that it skips: what has to succeed belongs to `inside`.
#[track_caller]
pub fn in_a_network(name: &str, setup: &str, inside: impl FnOnce()) {
    const INSIDE: &str = "TCP_ECHO_IT_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let script = format!("{setup} && exec \"$@\"");
    let network = ["-rn", "sh", "-c", &script, "sh"];
    if !has("ip") || !has_namespaces(&[&network[..], &["true"]].concat()) {
        return;
    }
    let output = Command::new("unshare")
        .args(network)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

fn is_there(found: bool, complaint: &str) -> bool {
    assert!(
        found || std::env::var_os("TCP_ECHO_REQUIRE_TOOLS").is_none(),
        "{complaint}"
    );
    if !found {
        eprintln!("skipped: {complaint}");
    }
    found
}
