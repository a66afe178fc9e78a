//! What `tcp-echo probe` finds in each server, and whether an open connection outlives a kill.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use testkit::report::Report;
use testkit::{connect, ping, program};

use crate::load::{Mode, Work};
use crate::options::Options;
use crate::scenarios::{BARE, others};
use crate::servers::{Kind, Peer, Server};

/// All that are about a server; `load` and `proxy` are about what stands before it.
const CASES: &str = "connect,bytes,order,end,reset,size,window,urgent,idle";

/// One server, in words.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Judged {
    pub name: String,
    pub faults: String,
    pub notes: String,
    pub killed: String,
}

pub fn judge(options: &Options, peers: &[&'static Peer], report: &mut Report) -> Vec<Judged> {
    let others = others(options, peers, &Work::new(Mode::PingPong, 1, 1));
    let others = others.into_iter().map(|side| (side.name, side.server));
    let all = [(BARE, Kind::Bare)].into_iter().chain(others);
    all.map(|(name, kind)| {
        report.doing(name);
        let mut server = Server::start(&kind, &options.config, &[]);
        let output = Command::new(program())
            .args(["probe", "--json", "--idle=1s", "--only", CASES])
            .arg(server.address.to_string())
            .output()
            .unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let cases = |verdict: &str| {
            let cases = found["cases"].as_array().into_iter().flatten();
            let cases = cases.filter(|case| case["verdict"] == verdict);
            let texts = cases.map(|case| {
                let word = |key: &str| case[key].as_str().unwrap_or_default().to_owned();
                format!("`{}`: {}", word("id"), word("text"))
            });
            texts.collect::<Vec<String>>()
        };
        // The probe counts them itself: a verdict of another name may not pass for none.
        let faults = cases("fail");
        if found["faults"].as_u64() != Some(faults.len() as u64) {
            report.broken(&format!(
                "{name}: not as many faults as the probe says: {found}"
            ));
        }
        let listed = |cases: Vec<String>| match cases.len() {
            0 => "none".to_owned(),
            _ => cases.join("; "),
        };
        let judged = Judged {
            name: name.into(),
            faults: listed(faults),
            notes: listed(cases("note")),
            killed: killed(&mut server).into(),
        };
        report.fact(name, &format!("faults: {}", judged.faults));
        report.fact("", &format!("notes: {}", judged.notes));
        report.fact("", &format!("killed: {}", judged.killed));
        judged
    })
    .collect()
}

/// What becomes of an open connection when the process that listens is killed.
fn killed(server: &mut Server) -> &'static str {
    let mut open = connect(server.address);
    ping(&mut open, b"before");
    server.await_preserved();
    server.kill();
    match echoes(&mut open) {
        true => "open connections go on",
        false => "open connections end",
    }
}

fn echoes(stream: &mut TcpStream) -> bool {
    let mut echo = [0; 5];
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    stream.write_all(b"after").is_ok() && stream.read_exact(&mut echo).is_ok() && echo == *b"after"
}
