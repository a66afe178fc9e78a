//! Rolling restarts of three instances behind a real balancer, under load.
//!
//! Where connections are preserved, no client notices anything.  Where they are not, none is refused
//! or reset, and those that stay connected find the end of their stream.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use testkit::manager::Manager;
use testkit::{Folder, SOON, eventually, has, ping, program};

use super::{answer, answers, documented};
use crate::client::receivers::{Other, unused};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// The port of the health listeners in docs/fleet.md; each instance has an address of its own.
const HEALTH: u16 = 9108;

/// The balancer of docs/fleet.md in front of three instances.
struct Fleet {
    instances: Vec<(Manager, SocketAddr)>,
    front: SocketAddr,
    control: Folder,
    _haproxy: Other,
}

impl Fleet {
    /// `number`: which of the tests of this process asks, as each needs addresses of its own; `agent`:
    /// further words of the agent-check.
    fn start(number: u8, config: &str, agent: &str) -> Self {
        let [high, low] = std::process::id().to_be_bytes()[2..] else {
            unreachable!()
        };
        let [front] = unused();
        let control = Folder::new();
        let socket = control.path("control");
        let mut text = documented("haproxy", "agent-check")
            .replace(" :7\n", &format!(" {front}\n"))
            .replace("agent-check ", &format!("agent-check {agent} "));
        let instances = (0..3)
            .map(|index| {
                let ip = format!("127.{}.{high}.{low}", number + index);
                let open = |port| TcpListener::bind(format!("{ip}:{port}")).unwrap();
                let (echo, health) = (open(0), open(HEALTH));
                let at = echo.local_addr().unwrap();
                let checked = health.local_addr().unwrap();
                let documented = format!(" 192.0.2.{}:7\n", 11 + index);
                assert!(text.contains(&documented), "{text}");
                text = text.replace(&documented, &format!(" {at}\n"));
                let mut manager = Manager::wide();
                manager.replace_listeners("echo", echo);
                let mut manager = manager.listener("health", health);
                manager.config(config);
                manager.start();
                (manager, checked)
            })
            .collect();
        let socket = socket.display();
        let text = format!("global\n    stats socket {socket} mode 600\n{text}");
        let arguments = ["-db", "-f", "FILE"];
        let fleet = Self {
            instances,
            front,
            control,
            _haproxy: Other::start("haproxy", &arguments, &text, &[front]),
        };
        for name in NAMES {
            fleet.shows(name, &["UP"]);
        }
        fleet
    }

    /// The state of a server, as haproxy sees it; nothing while it starts.
    fn state(&self, name: &str) -> String {
        let Ok(mut control) = UnixStream::connect(self.control.path("control")) else {
            return String::new();
        };
        control.write_all(b"show stat\n").unwrap();
        let mut text = String::new();
        control.read_to_string(&mut text).unwrap();
        let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let status = lines
            .next()
            .unwrap()
            .iter()
            .position(|field| *field == "status")
            .unwrap();
        lines
            .find(|line| line[..2] == ["echo", name])
            .map(|line| line[status].into())
            .unwrap_or_default()
    }

    /// Waits until haproxy shows a server in one of these states.
    #[track_caller]
    fn shows(&self, name: &str, states: &[&str]) {
        eventually(SOON, &format!("{name} is not seen as {states:?}"), || {
            let state = self.state(name);
            states
                .iter()
                .any(|begin| state.starts_with(begin))
                .then_some(())
        });
    }

    /// Runs `work` for each instance while clients are served; returns the summary of those that stay
    /// connected, and how many others came and went.
    fn under_load(&mut self, mut work: impl FnMut(&mut Self, usize)) -> (i32, Value, usize) {
        let front = self.front;
        let long = Ping::start(front);
        let over = AtomicBool::new(false);
        let short = thread::scope(|scope| {
            let short = scope.spawn(|| {
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    // It panics when it is refused, reset or not answered.
                    let client = testkit::connect(front);
                    ping(&client, b"a new connection");
                    count += 1;
                    thread::sleep(Duration::from_millis(2));
                }
                count
            });
            let _over = Over(&over);
            for index in 0..NAMES.len() {
                work(self, index);
            }
            drop(_over);
            short.join().unwrap()
        });
        let (status, summary) = long.stop();
        (status, summary, short)
    }

    fn drain(&self, index: usize, what: &str) {
        let pid = self.instances[index].0.daemon().pid().as_raw_nonzero();
        let status = Command::new(program())
            .args([what, &pid.to_string()])
            .status();
        assert!(status.unwrap().success());
    }
}

/// Ends the short connections, also if the work fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `tcp-echo ping` with a hundred connections.
struct Ping(Child);

impl Ping {
    fn start(front: SocketAddr) -> Self {
        let ping = Command::new(program())
            .args(["ping", "--connections", "100", "--rate", "2k", "--json"])
            .arg(front.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Until all are connected.
        thread::sleep(Duration::from_millis(500));
        Self(ping)
    }

    fn stop(mut self) -> (i32, Value) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, Signal::INT).unwrap();
        let mut text = String::new();
        let mut out = self.0.stdout.take().unwrap();
        out.read_to_string(&mut text).unwrap();
        let status = self.0.wait().unwrap().code().unwrap();
        (status, serde_json::from_str(&text).unwrap())
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn count(summary: &Value, key: &str) -> u64 {
    summary[key]
        .as_u64()
        .unwrap_or_else(|| panic!("no {key} in {summary:#}"))
}

#[test]
fn a_rolling_restart_with_preserved_connections_is_seen_by_no_client() {
    if !has("haproxy") {
        return;
    }
    let mut fleet = Fleet::start(101, "preserve-after = '0s'\n", "");
    let (status, summary, short) = fleet.under_load(|fleet, index| {
        fleet.drain(index, "drain");
        fleet.shows(NAMES[index], &["DRAIN"]);
        let (manager, health) = &mut fleet.instances[index];
        manager.restart();
        // The one that takes over is drained too.
        assert_eq!(answer(*health), "up drain\n");
        fleet.drain(index, "undrain");
        fleet.shows(NAMES[index], &["UP"]);
        // And again, without a drain.
        fleet.instances[index].0.restart();
        answers(fleet.instances[index].1, "up ready\n");
    });
    eprintln!("{short} short connections, {summary:#}");
    assert_eq!(status, 0, "{summary:#}");
    assert_eq!(count(&summary, "missing"), 0);
    assert_eq!(count(&summary, "reconnects"), 0);
    assert_eq!(count(&summary, "sent"), count(&summary, "received"));
    assert!(short > 100, "{short}");
}

#[test]
fn a_rolling_stop_with_a_lame_duck_refuses_no_connection() {
    if !has("haproxy") {
        return;
    }
    let config = "preserve-connections = false\n[limits]\nlame-duck = '2s'\n";
    let mut fleet = Fleet::start(104, config, "");
    let (status, summary, short) = fleet.under_load(|fleet, index| {
        let name = NAMES[index];
        fleet.instances[index].0.daemon().signal(Signal::TERM);
        fleet.shows(name, &["DRAIN"]);
        let (manager, health) = &mut fleet.instances[index];
        assert_eq!(answer(*health), "up drain\n");
        assert!(manager.ended().success());
        // Held by the manager, its port is open and answers nothing.
        fleet.shows(name, &["DOWN", "DRAIN"]);
        let (manager, health) = &mut fleet.instances[index];
        manager.start();
        answers(*health, "up ready\n");
        fleet.shows(name, &["UP"]);
    });
    eprintln!("{short} short connections, {summary:#}");
    // Closed by the peer, and nothing worse.
    assert_eq!(status, 15, "{summary:#}");
    let [missing, reconnects] = ["missing", "reconnects"].map(|key| count(&summary, key));
    assert!(reconnects >= 100, "{summary:#}");
    // Only what a client sent while the end of its stream was on its way to it: one message in 50 ms.
    let late = summary["schedule"]["worst_late_us"].as_f64().unwrap() / 50e3;
    let most = reconnects as f64 * (1.0 + late.floor());
    assert!(missing as f64 <= most, "{summary:#}");
    for key in ["late", "wrong"] {
        assert_eq!(count(&summary, key), 0, "{summary:#}");
    }
    assert!(short > 100, "{short}");
}

#[test]
fn what_is_not_up_gets_no_connection_and_what_the_agent_sends_changes_nothing() {
    if !has("haproxy") {
        return;
    }
    let agent = "agent-send hello\\n";
    let mut fleet = Fleet::start(107, "preserve-after = '0s'\n", agent);
    fleet.drain(1, "drain");
    fleet.shows("b", &["DRAIN"]);
    fleet.drain(1, "undrain");
    fleet.shows("b", &["UP"]);
    fleet.instances[0].0.kill();
    fleet.shows("a", &["DOWN"]);
    for _ in 0..10 {
        ping(TcpStream::connect(fleet.front).unwrap(), b"elsewhere");
    }
    fleet.instances[0].0.start();
    fleet.shows("a", &["UP"]);
}
