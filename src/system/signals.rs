//! Signals as requests, delivered through the same poll as everything else.
//!
//! signal-hook's self-pipe says that something is pending, each signal once and in the order of
//! their numbers, not of their arrival.  So a batch is a set, and the order in which it is acted
//! on is ours: stopping beats everything.
//!
//! The handlers are installed whatever disposition was inherited.  A mask that was inherited is
//! cleared: a blocked TERM would make the daemon deaf.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::flag::register_conditional_shutdown;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// TERM, INT: stop in good order.
    Stop,
    /// USR2: leave the connections to a successor.
    HandOver,
    /// HUP: read the configuration again.
    Reload,
    /// USR1: tell the counters.
    Report,
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
        // ALRM would end the process by default, and XFSZ when a log file has reached its limit;
        // here they ask for nothing.
        let signals = [SIGTERM, SIGINT, SIGUSR2, SIGHUP, SIGUSR1, SIGALRM, SIGXFSZ];
        for signal in [SIGTERM, SIGINT] {
            register_conditional_shutdown(signal, 0, Arc::clone(&AT_ONCE))?;
        }
        let installed = signal_hook_mio::v1_0::Signals::new(signals)?;
        clear_mask()?;
        Ok(Self(installed))
    }

    /// What has been asked for since the last call, in the order to act on it.
    pub fn pending(&mut self) -> impl Iterator<Item = Request> + use<> {
        let (mut stop, mut hand_over, mut reload, mut report) = (false, false, false, false);
        for signal in self.0.pending() {
            match signal {
                SIGTERM | SIGINT => stop = true,
                SIGUSR2 => hand_over = true,
                SIGHUP => reload = true,
                SIGUSR1 => report = true,
                _ => {}
            }
        }
        [
            (stop, Request::Stop),
            // Both at once are one request, not a second one that is in a hurry.
            (hand_over && !stop, Request::HandOver),
            (reload, Request::Reload),
            (report, Request::Report),
        ]
        .into_iter()
        .filter_map(|(asked, request)| asked.then_some(request))
    }

    /// The source to register with a poll.
    pub fn source(&mut self) -> &mut signal_hook_mio::v1_0::Signals {
        &mut self.0
    }
}

/// Whether a request to stop ends the process at once.
static AT_ONCE: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Does something that may take long before there is anything to stop in good order, such as resolving
/// a name: TERM and INT end the process meanwhile, with success.
pub(crate) fn stoppable<T>(work: impl FnOnce() -> T) -> T {
    AT_ONCE.store(true, Ordering::SeqCst);
    let result = work();
    AT_ONCE.store(false, Ordering::SeqCst);
    result
}

/// Blocks every signal for this thread and those that it starts: a signal is for the loop alone, and
/// waits until its handler is there.  What another thread took would come a little later than what
/// the loop sees meanwhile.
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
    // SAFETY: the set is filled as a whole before sigprocmask reads it; the old mask is not asked for.
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
