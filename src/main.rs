//! Run what the command line says, turn the outcome into an exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    tcp_echo::commands::run()
}
