//! `tcp-echo reload`: the command of `ExecReload=` in the unit (systemd.service(5)).
//!
//! It sends `RELOADING=1` to the service manager *before* it sends SIGHUP to the daemon, so that
//! `systemctl reload` waits for the daemon's `READY=1`, however late the daemon acts on the signal.  The
//! unit needs `NotifyAccess=exec`.  This works with every version of systemd, whereas
//! `Type=notify-reload` is unknown before 253.

use rustix::process::{Pid, Signal, kill_process};

use super::{Exit, complain};
use crate::sys::notify::Manager;
use crate::sys::{clock, environment};

/// Reloads the daemon with the process id of `MAINPID`.
#[must_use]
pub(super) fn run() -> Exit {
    let Some(text) = environment::text("MAINPID") else {
        complain(
            "MAINPID is not set: this command is for ExecReload= in a unit; reload with \
             `systemctl reload tcp-echo`, or with `kill -HUP PID` where no service manager runs it",
        );
        return Exit::Usage;
    };
    // Not 0 and not 1, which stand for the process group and the service manager (kill(2)).
    let Some(pid) = text
        .parse()
        .ok()
        .filter(|pid| *pid > 1)
        .and_then(Pid::from_raw)
    else {
        complain(&format!(
            "MAINPID is {text:?}, which is not the id of a process"
        ));
        return Exit::Usage;
    };
    // The daemon sends the same message, only later, so the reload goes on.
    if let Some(error) = notify_manager() {
        complain(&format!(
            "the service manager cannot be reached (NOTIFY_SOCKET): {error}"
        ));
    }
    match kill_process(pid, Signal::HUP) {
        Ok(()) => Exit::Success,
        Err(error) => {
            complain(&format!(
                "process {text} cannot be sent HUP: {}",
                std::io::Error::from(error)
            ));
            Exit::of(&error.into())
        }
    }
}

/// Sends `RELOADING=1` (sd_notify(3)); returns why it could not be sent.
fn notify_manager() -> Option<std::io::Error> {
    let now = clock::now();
    match Manager::from_env(now) {
        Ok(mut manager) => {
            manager.reloading(now);
            manager.unsent()
        }
        Err(error) => Some(error),
    }
}
