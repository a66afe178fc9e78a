//! `tcp-echo drain` and `tcp-echo undrain`: planned work on one instance, without a stop.
//!
//! The daemon gets a signal, and answers health checks accordingly.

use std::process::Command;

use super::{Exit, complain};
use crate::sys::signals::{Request, send};

/// The service whose daemon is meant where none is named.
const UNIT: &str = "tcp-echo.service";

/// Sends the signal of a request to a daemon: `process` is the id of a process or the name of a unit.
#[must_use]
pub(super) fn run(request: Request, process: Option<&str>) -> Exit {
    let process = process.unwrap_or(UNIT);
    match ask(request, process) {
        Ok(()) => Exit::Success,
        Err((exit, why)) => {
            complain(&why);
            exit
        }
    }
}

fn ask(request: Request, process: &str) -> Result<(), (Exit, String)> {
    let pid = match process.parse() {
        Ok(pid) => pid,
        Err(_) => main_pid(process)?,
    };
    if pid <= 0 {
        let why = format!("{process} is not the id of a process");
        return Err((Exit::Usage, why));
    }
    send(request, pid).map_err(|error| {
        let name = request.signal().name;
        let why = format!("process {pid} cannot be sent {name}: {error}");
        (Exit::of(&error), why)
    })
}

/// The main process of a unit, by systemctl(1).
fn main_pid(unit: &str) -> Result<i32, (Exit, String)> {
    let mut systemctl = Command::new("systemctl");
    let asked = systemctl
        .args(["show", "--property=MainPID", "--value", "--", unit])
        .output();
    let output = asked.map_err(|error| {
        let why = format!("systemctl cannot be run: {error}; name the id of the process instead");
        (Exit::of(&error), why)
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.trim().parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ if output.status.success() => Err((Exit::Unavailable, format!("{unit} is not running"))),
        _ => {
            let error = String::from_utf8_lossy(&output.stderr);
            let why = format!(
                "systemctl does not know the process of {unit}: {}",
                error.trim()
            );
            Err((Exit::Unavailable, why))
        }
    }
}
