//! The signals: one table of what each asks for, delivered through the same poll as everything else.
//!
//! The self-pipe of signal-hook says that signals are pending: each of them once, and in the order
//! of their numbers, not of their arrival.  So what is pending is a set, and [`Request`] has the
//! order in which it is acted on.  A drain comes before an end, as the next process goes on with it.
//!
//! The handlers are installed whatever the process has inherited: an ignored SIGTERM is handled,
//! and a signal mask is cleared, as with a blocked SIGTERM the daemon could not be stopped.
//!
//! `--help` and the manual page list [`SIGNALS`].

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::flag::register_conditional_shutdown;

/// What a signal asks for, in the order in which requests that came together are acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Request {
    /// Answer health checks so that balancers send connections again.
    Undrain,
    /// Answer health checks so that balancers send no more connections; together with the opposite,
    /// this holds.
    Drain,
    /// Stop in good order; a second request stops at once.
    Stop,
    /// Leave the connections to the next process and end.
    HandOver,
    /// Read the configuration again.
    Reload,
    /// Log the counters.
    Report,
}

/// A row of [`SIGNALS`].
#[derive(Clone, Copy, Debug)]
pub struct Signal {
    /// Its number (signal(7)).
    pub number: i32,
    /// Its name, as in signal(7).
    pub name: &'static str,
    /// What it asks for; `None` for a signal that is caught only because it would end the process.
    pub request: Option<Request>,
    /// What the daemon is asked to do.
    pub effect: &'static str,
}

/// Every signal that is handled.  Signals of one request stand together and have one effect.
pub const SIGNALS: [Signal; 9] = [
    Signal {
        number: SIGTERM,
        name: "SIGTERM",
        request: Some(Request::Stop),
        effect: STOP,
    },
    Signal {
        number: SIGINT,
        name: "SIGINT",
        request: Some(Request::Stop),
        effect: STOP,
    },
    Signal {
        number: SIGHUP,
        name: "SIGHUP",
        request: Some(Request::Reload),
        effect: "reload the configuration",
    },
    Signal {
        number: SIGUSR1,
        name: "SIGUSR1",
        request: Some(Request::Report),
        effect: "log the counters",
    },
    Signal {
        number: SIGUSR2,
        name: "SIGUSR2",
        request: Some(Request::HandOver),
        effect: "leave the connections to the next process and end; where they are not preserved, stop",
    },
    Signal {
        number: REAL_TIME + 8,
        name: "SIGRTMIN+8",
        request: Some(Request::Drain),
        effect: "answer health checks with drain, as tcp-echo drain asks for",
    },
    Signal {
        number: REAL_TIME + 9,
        name: "SIGRTMIN+9",
        request: Some(Request::Undrain),
        effect: "answer them with ready again, as tcp-echo undrain asks for",
    },
    Signal {
        number: SIGALRM,
        name: "SIGALRM",
        request: None,
        effect: IGNORED,
    },
    // The kernel sends it when a file of the log has reached RLIMIT_FSIZE (setrlimit(2)).
    Signal {
        number: SIGXFSZ,
        name: "SIGXFSZ",
        request: None,
        effect: IGNORED,
    },
];

/// SIGRTMIN of the GNU C library, which has two signals before it for itself (signal(7)).  A table of
/// constants cannot ask for it, and a test compares.  systemd leaves 8 to 12 above it without a meaning,
/// so a mistaken process id of 1 does no harm.
const REAL_TIME: i32 = 34;

const STOP: &str = "stop in good order; a second signal stops at once";
const IGNORED: &str = "nothing";

impl Request {
    /// The first row of the signals that ask for it.
    ///
    /// # Panics
    /// There is no such row.
    #[must_use]
    pub fn signal(self) -> &'static Signal {
        let mut rows = const { &SIGNALS }.iter();
        let row = rows.find(|row| row.request == Some(self));
        row.expect("a request has a signal")
    }
}

/// Sends the signal of a request to a process.  It would end a process that does not handle it, so such
/// a process is not sent it.
///
/// # Errors
/// Those of open(2) for the process in proc(5), those of kill(2), and one of the kind `NotFound` if the
/// process does not handle the signal.
pub(crate) fn send(request: Request, process: i32) -> io::Result<()> {
    let number = request.signal().number;
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    if caught.unwrap_or(0) & 1 << (number - 1) == 0 {
        let why = "it does not handle it, so it is no tcp-echo that serves";
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
    }
    kill(process, number)
}

#[expect(
    unsafe_code,
    reason = "no crate in the tree sends a signal by its number"
)]
fn kill(process: i32, number: i32) -> io::Result<()> {
    // SAFETY: kill(2) takes two numbers and no memory.
    if unsafe { libc::kill(process, number) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The signals of this process, as a mio source.
pub struct Signals(signal_hook_mio::v1_0::Signals);

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signals")
    }
}

impl Signals {
    /// Clears the inherited mask and installs the handlers.
    ///
    /// # Errors
    /// Those of sigaction(2) and socketpair(2).
    pub fn install() -> io::Result<Self> {
        for signal in SIGNALS {
            if signal.request == Some(Request::Stop) {
                register_conditional_shutdown(signal.number, 0, Arc::clone(&AT_ONCE))?;
            }
        }
        let numbers = SIGNALS.map(|signal| signal.number);
        let installed = signal_hook_mio::v1_0::Signals::new(numbers)?;
        clear_mask()?;
        Ok(Self(installed))
    }

    /// What was asked for since the last call, in the order to act on it.
    pub fn pending(&mut self) -> impl Iterator<Item = Request> + use<> {
        requests(self.0.pending()).into_iter()
    }

    /// The source to register with a poll.
    pub fn source(&mut self) -> &mut signal_hook_mio::v1_0::Signals {
        &mut self.0
    }
}

/// The requests of signals that are pending together, each once, in the order to act on them.
fn requests(pending: impl Iterator<Item = i32>) -> BTreeSet<Request> {
    let request = |number| {
        let row = SIGNALS.iter().find(|signal| signal.number == number);
        row.and_then(|signal| signal.request)
    };
    let mut requests: BTreeSet<Request> = pending.filter_map(request).collect();
    // To hand over while stopping would be a second request to stop, which ends the process at once.
    if requests.contains(&Request::Stop) {
        requests.remove(&Request::HandOver);
    }
    requests
}

/// Whether a request to stop ends the process at once.
static AT_ONCE: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Runs `work` that may take long before there is anything to stop in good order, such as resolving
/// a name.  Meanwhile SIGTERM and SIGINT end the process at once, with exit status 0.
pub(crate) fn stoppable<T>(work: impl FnOnce() -> T) -> T {
    AT_ONCE.store(true, Ordering::SeqCst);
    let result = work();
    AT_ONCE.store(false, Ordering::SeqCst);
    result
}

/// Blocks every signal for this thread and for the threads that it starts.
///
/// Signals are for the main loop alone, and wait until their handlers are installed.  A signal that
/// another thread received would reach the loop later than events that came after it.
///
/// # Errors
/// Those of sigprocmask(2).
pub fn block() -> io::Result<()> {
    set_mask(true)
}

fn clear_mask() -> io::Result<()> {
    set_mask(false)
}

#[expect(unsafe_code, reason = "no crate in the tree gives sigprocmask(2)")]
fn set_mask(block: bool) -> io::Result<()> {
    let mut mask = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is filled as a whole before sigprocmask reads it; no old mask is requested.
    let result = unsafe {
        if block {
            libc::sigfillset(mask.as_mut_ptr());
        } else {
            libc::sigemptyset(mask.as_mut_ptr());
        }
        libc::sigprocmask(libc::SIG_SETMASK, mask.as_ptr(), std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_come_together_are_acted_on_in_the_order_of_requests() {
        let order = |numbers: &[i32]| -> Vec<Request> {
            requests(numbers.iter().copied()).into_iter().collect()
        };
        assert_eq!(
            order(&[SIGHUP, SIGUSR1, SIGUSR2, SIGHUP]),
            [Request::HandOver, Request::Reload, Request::Report]
        );
        assert_eq!(
            order(&[SIGUSR2, SIGTERM, SIGINT, SIGHUP]),
            [Request::Stop, Request::Reload]
        );
        assert_eq!(order(&[SIGALRM, SIGXFSZ]), []);
    }

    #[test]
    fn the_real_time_signals_are_those_of_the_c_library() {
        assert_eq!(libc::SIGRTMIN(), REAL_TIME);
    }

    #[test]
    fn signals_of_one_request_stand_together_and_have_one_effect() {
        for pair in SIGNALS.windows(2) {
            let one = pair[0].request == pair[1].request;
            assert_eq!(one, pair[0].effect == pair[1].effect, "{pair:?}");
        }
    }
}
