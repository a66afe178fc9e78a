//! One instance among others: what a balancer sees of it, and what clients notice of its planned work.
//!
//! - `proxy`: a listener takes PROXY headers, whoever sends them and however they arrive
//! - `health`: what a health listener answers, and that it costs the echo nothing
//! - `lame_duck`: a stop that is announced first
//! - `drain`: planned work without a stop
//! - `haproxy`: rolling restarts behind a real balancer

mod drain;
mod haproxy;
mod health;
mod lame_duck;
mod proxy;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use testkit::{Daemon, SOON, connect, end_of};

/// The address of the health listener of a daemon, which its log has.
#[track_caller]
fn health_of(daemon: &Daemon) -> SocketAddr {
    let line = daemon.logged(" for health checks");
    let (_, address) = line.split_once("listening on ").unwrap();
    let (address, _) = address.split_once(' ').unwrap();
    address.parse().unwrap()
}

/// What a health check is answered.
#[track_caller]
fn answer(address: SocketAddr) -> String {
    let answer = end_of(&connect(address)).unwrap();
    String::from_utf8(answer).unwrap()
}

/// Waits until a health check is answered this.
#[track_caller]
fn answers(address: SocketAddr, line: &str) {
    let deadline = Instant::now() + SOON;
    loop {
        let found = answer(address);
        if found == line {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?} instead of {line:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The first configuration of docs/fleet.md in this language that has a word.
fn documented(language: &str, word: &str) -> String {
    let document = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fleet.md");
    let text = std::fs::read_to_string(document).unwrap();
    let begin = format!("```{language}\n");
    let mut blocks = text.split(&begin).skip(1);
    let block = blocks.find_map(|block| {
        let (block, _) = block.split_once("```")?;
        block.contains(word).then(|| block.to_owned())
    });
    block.expect("there is no such configuration")
}
