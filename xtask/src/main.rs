//! Tasks of the development: `cargo xtask generate` writes the files that follow from the tables of
//! the program and are checked in, so that a build and a package need no generator.
//!
//! - [`config`]: packaging/config.toml, from the keys of the configuration
//! - [`manual`]: the generated regions of the manual pages, for the keys, the command line, signals,
//!   exit statuses, the environment, reasons and messages
//! - [`catalog`]: the frame of each entry of the message catalog, and tests/systemd/event_ids.py
//! - [`completions`]: the completions of the shells
//! - [`copyright`]: the notices of the crates in packaging/debian/copyright
//!
//! Nothing of it depends on the day or on the machine, and nothing needs the network.  A test
//! compares the files with what would be written now.
#![allow(
    clippy::unwrap_used,
    reason = "a tool for developers stops where something is not as it knows it"
)]

mod catalog;
mod completions;
mod config;
mod copyright;
mod manual;
mod region;
mod roff;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A generated file: its path from the root of the repository, and its text.
type Generated = (String, String);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["generate"] => {
            for (name, made) in stale() {
                fs::write(path(&name), made).unwrap();
                println!("wrote {name}");
            }
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: cargo xtask generate");
            ExitCode::from(2)
        }
    }
}

/// Every generated file.
fn generated() -> Vec<Generated> {
    let mut files = vec![
        config::file(),
        catalog::file(),
        catalog::ids(),
        copyright::file(),
    ];
    files.extend(manual::files());
    files.extend(completions::files());
    files
}

/// The files that are not what they should be.
fn stale() -> Vec<Generated> {
    let mut files = generated();
    files.retain(|(name, made)| text(name) != *made);
    files
}

/// A file of the repository.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// The text of a file of the repository; empty if there is no such file yet.
fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_generated_is_fresh() {
        let mut complaints = String::new();
        for (name, made) in stale() {
            let kept = text(&name);
            let differ = |(kept, made)| kept != made;
            let line = kept.lines().zip(made.lines()).position(differ);
            let shorter = kept.lines().count().min(made.lines().count());
            complaints += &format!(
                "{name} is stale from line {}\n",
                line.unwrap_or(shorter) + 1
            );
        }
        assert!(
            complaints.is_empty(),
            "run: cargo xtask generate\n{complaints}"
        );
    }
}
