//! The arguments.

use std::path::PathBuf;

use clap::Parser;

/// Compares the daemon with a bare loop.
#[derive(Clone, Debug, Parser)]
#[command(name = "compare", bin_name = "cargo bench --bench compare --")]
pub struct Options {
    /// Scenarios of these names, or whose names contain one of these; "list" lists them
    pub words: Vec<String>,
    /// Rounds of each scenario
    #[arg(long, default_value_t = 7)]
    pub rounds: usize,
    /// What is measured of each side in a round, in seconds
    #[arg(long, default_value_t = 0.7)]
    pub seconds: f64,
    /// Further keys for every daemon, such as 'preserve-connections = true'
    #[arg(long, default_value = "")]
    pub config: String,
    /// Leave out the other servers
    #[arg(long)]
    pub alone: bool,
    /// Only what the other servers take part in
    #[arg(long, conflicts_with_all = ["words", "alone"])]
    pub peers: bool,
    /// Another build of tcp-echo that takes part
    #[arg(long, value_name = "PROGRAM", conflicts_with = "alone")]
    pub former: Option<String>,
    /// Draw the ratios into this file, the other servers into FILE-peers.svg, and what is measured
    /// over the number of connections into FILE-scale.svg
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Print the tables in Markdown
    #[arg(long)]
    pub markdown: bool,
    /// Write all figures into this file
    #[arg(long, value_name = "FILE.json")]
    pub json: Option<PathBuf>,
    /// Measure nothing: take the figures of an earlier run from the file that --json wrote
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["words", "json"])]
    pub from: Option<PathBuf>,
    /// Cargo says so
    #[arg(long, hide = true)]
    pub bench: bool,
}
