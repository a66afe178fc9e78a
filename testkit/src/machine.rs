//! What a test needs of the machine: time, tools, descriptors, a port.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How long anything may take that should take no time.
pub const SOON: Duration = Duration::from_secs(20);

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

/// Whether a tool that a test needs is there.  Where `TCP_ECHO_REQUIRE_TOOLS` is set, as in
/// continuous integration, a missing one is a failure; elsewhere the test says that it skips.
pub fn has(tool: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| Path::new(&folder).join(tool).is_file())
    });
    is_there(found, &format!("{tool} is not installed"))
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
