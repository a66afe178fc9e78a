//! Parse, run a command, turn the outcome into an exit status.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    tcp_echo::commands::run(&tcp_echo::cli::Cli::parse()).into()
}
