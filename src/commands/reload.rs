//! `tcp-echo reload`: the unit's `ExecReload=`.
//!
//! It tells the manager that the daemon is reloading *before* it sends HUP, so that
//! `systemctl reload` waits for the daemon's `READY=1` however late HUP is acted on.  The unit
//! needs `NotifyAccess=exec`.  It works alike with every version of systemd, whereas
//! `Type=notify-reload` is unknown before 253.

use rustix::process::{Pid, Signal, kill_process};

use super::{Exit, complain};
use crate::system::clock;
use crate::system::notify::Manager;

/// Reloads the daemon whose process id is in `MAINPID`.
#[must_use]
pub fn run() -> Exit {
    let Ok(text) = std::env::var("MAINPID") else {
        complain(
            "MAINPID is not set: this command is for ExecReload= in a unit; reload with \
             `systemctl reload tcp-echo`, or with `kill -HUP PID` where no service manager runs it",
        );
        return Exit::Usage;
    };
    // Not 0 and not 1: that would be our process group, or the manager.
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
    // The daemon tells it as well, so this is a pity and no more.
    if let Some(error) = tell_manager() {
        complain(&format!(
            "the service manager cannot be told (NOTIFY_SOCKET): {error}"
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

/// Says that the daemon is reloading; returns why the manager has not heard it.
fn tell_manager() -> Option<std::io::Error> {
    let now = clock::now();
    match Manager::from_env(now) {
        Ok(mut manager) => {
            manager.reloading(now);
            manager.unheard()
        }
        Err(error) => Some(error),
    }
}
