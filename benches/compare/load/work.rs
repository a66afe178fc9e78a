//! What a load is asked to do, and what it has seen: both cross the border of a process.

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

/// How the clients behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A message, its echo, the next message.
    PingPong,
    /// Several messages under way, each sent with a write of its own.
    Pipelined,
    /// As many bytes as there is room for.
    Bulk,
    /// Connect, one message, its echo, close; and again.
    Churn,
    /// Ping-pong and pipelining with messages of all sizes, beside clients that come and go.
    Mixed,
}

/// A load.
#[derive(Clone, Debug, Parser)]
#[command(name = "load", bin_name = "cargo bench --bench compare -- load")]
pub struct Work {
    /// The server.
    pub address: SocketAddr,
    /// How the clients behave
    #[arg(long, default_value = "ping-pong")]
    pub mode: Mode,
    /// Clients that send
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Clients that have talked once and are silent
    #[arg(long, default_value_t = 0)]
    pub idle: usize,
    /// Bytes of a message
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// Messages under way, when pipelined
    #[arg(long, default_value_t = 16)]
    pub depth: usize,
    /// Bytes under way of each client in bulk; all that there is room for otherwise
    #[arg(long)]
    pub window: Option<u64>,
    /// What is measured, in seconds
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// What goes before, in seconds
    #[arg(long, default_value_t = 0.15)]
    pub warm_up: f64,
    /// The processor to run on
    #[arg(long)]
    pub cpu: Option<usize>,
    /// The server's process, to read its processor time
    #[arg(long)]
    pub server: Option<i32>,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Work {
    /// A load that has yet to learn of its server.
    pub fn new(mode: Mode, connections: usize, size: usize) -> Self {
        Self {
            address: ([127, 0, 0, 1], 0).into(),
            mode,
            connections,
            idle: 0,
            size,
            depth: 16,
            window: None,
            seconds: 1.0,
            warm_up: 0.15,
            cpu: None,
            server: None,
            json: true,
            bench: false,
        }
    }

    pub fn beside(mut self, idle: usize) -> Self {
        self.idle = idle;
        self
    }

    /// The unit in which work is counted.
    pub fn unit(&self) -> &'static str {
        match self.mode {
            Mode::Bulk => "KiB",
            Mode::Churn => "connection",
            _ => "message",
        }
    }

    /// As arguments.
    pub fn words(&self) -> Vec<String> {
        let mode = self.mode.to_possible_value().unwrap();
        let mut words = vec![self.address.to_string()];
        let mut option = |name: &str, value: String| words.extend([format!("--{name}"), value]);
        option("mode", mode.get_name().into());
        option("connections", self.connections.to_string());
        option("idle", self.idle.to_string());
        option("size", self.size.to_string());
        option("depth", self.depth.to_string());
        option("seconds", self.seconds.to_string());
        option("warm-up", self.warm_up.to_string());
        if let Some(window) = self.window {
            option("window", window.to_string());
        }
        if let Some(cpu) = self.cpu {
            option("cpu", cpu.to_string());
        }
        if let Some(server) = self.server {
            option("server", server.to_string());
        }
        if self.json {
            words.push("--json".into());
        }
        words
    }
}

/// What a load has seen.  Latencies are in microseconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Outcome {
    pub seconds: f64,
    /// Units that came back: messages, connections, or KiB in bulk.
    pub units: f64,
    /// Bytes that came back.
    pub bytes: u64,
    /// Processor time of the server, in microseconds.
    pub server: f64,
    /// Processor time of the load.
    pub load: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub longest: f64,
    /// Jain's index of fairness over the bytes of each connection: one when all are equal, the
    /// reciprocal of their number when one has everything.
    pub jain: f64,
    /// The server's memory with all connected before and after the measured span, in bytes.
    pub memory: Option<[i64; 2]>,
    /// The slabs of the kernel before the measured span, in bytes.
    pub kernel: i64,
}
