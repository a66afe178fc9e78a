//! The servers: the daemon, the bare loop, and what else is installed.
//!
//! Each runs in processes of its own, on a port of its own on loopback, and ends with its owner.
//! The daemon does all that it can do beside the echo: limits, time-outs, counters, events.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use testkit::process::{family, family_time, pin};
use testkit::{Daemon, Folder, Plan, SOON, ping, program};

/// What every daemon is configured to do; keys of the root come first.
const FEATURES: &str = r#"
[limits]
idle-timeout = "10min"
stall-timeout = "5min"
max-lifetime = "1h"
max-bytes = "1TiB"

[log]
level = "info"
"#;

/// Which server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours, with keys of the configuration's root and of its table `[socket]`.
    Daemon(&'static str, &'static str),
    /// The bare loop.
    Bare,
    /// socat(1), with a process for each connection.
    Socat,
    /// ncat(1), with a process for each connection.
    Ncat,
    /// xinetd(8), with its own echo service.
    Xinetd,
}

/// Those that may be installed.
pub const PEERS: [(&str, Kind); 3] = [
    ("socat", Kind::Socat),
    ("ncat", Kind::Ncat),
    ("xinetd", Kind::Xinetd),
];

impl Kind {
    /// Ours, as it comes.
    pub const OURS: Self = Self::Daemon("", "");
}

/// The configuration of a daemon; `extra` are further keys of the root.
pub fn config(root: &str, socket: &str, extra: &str) -> String {
    format!("{root}\n{extra}\n{FEATURES}\n[socket]\n{socket}\n")
}

/// Whether the daemon knows the keys of this configuration.
pub fn is_known(config: &str) -> bool {
    let folder = Folder::new();
    let path = folder.write("config.toml", config);
    let check = Command::new(program())
        .args(["check", "--config-only", "--config"])
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_remove("TCP_ECHO_CONFIG")
        .status();
    check.unwrap().success()
}

/// A server at work.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    pub pid: Pid,
    daemon: Option<Daemon>,
    child: Option<Child>,
    _folder: Option<Folder>,
    /// Descriptors open without connections.
    descriptors: usize,
}

impl Server {
    /// Starts one on these processors.
    pub fn start(kind: &Kind, extra: &str, cpus: &[usize]) -> Self {
        let mut server = match kind {
            Kind::Daemon(root, socket) => {
                let daemon = Plan::new().config(&config(root, socket, extra)).start();
                Self {
                    address: daemon.address(),
                    pid: daemon.pid(),
                    daemon: Some(daemon),
                    child: None,
                    _folder: None,
                    descriptors: 0,
                }
            }
            Kind::Bare => bare(),
            peer => self::peer(peer),
        };
        if !cpus.is_empty() {
            family(server.pid)
                .into_iter()
                .for_each(|pid| pin(pid, cpus));
        }
        // Before the first connection some have yet to allocate.
        ping(&mut testkit::connect(server.address), &[b'.'; 64]);
        std::thread::sleep(Duration::from_millis(20));
        server.descriptors = server.count();
        server
    }

    /// Waits until it has closed every connection and does nothing more.
    pub fn settle(&self) -> Result<(), String> {
        let deadline = Instant::now() + SOON;
        let mut closed = false;
        loop {
            closed = closed || self.count() <= self.descriptors;
            let before = family_time(self.pid);
            std::thread::sleep(Duration::from_millis(10));
            if closed && family_time(self.pid) - before < 100 {
                break;
            }
            if Instant::now() > deadline {
                let what = if closed {
                    "come to rest"
                } else {
                    "close its connections"
                };
                return Err(format!("it does not {what} within {SOON:?}"));
            }
        }
        if let Some(daemon) = &self.daemon {
            // The manager reads its messages.
            while daemon
                .notified_within("", Duration::from_millis(1))
                .is_some()
            {}
        }
        Ok(())
    }

    fn count(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).map_or(0, Iterator::count)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else {
            return;
        };
        // From the last process to the first, which could start more of them.
        for pid in family(self.pid).into_iter().rev() {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = child.wait();
    }
}

fn bare() -> Server {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg(crate::BARE)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    running(child, line.trim().parse().unwrap(), None)
}

fn peer(kind: &Kind) -> Server {
    // Free now; another process may still take it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let port = address.port().to_string();
    let folder = Folder::new();
    let mut command = match kind {
        Kind::Socat => {
            let mut command = Command::new("socat");
            command.arg(format!(
                "TCP4-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,backlog=4096,nodelay"
            ));
            command.arg("PIPE");
            command
        }
        Kind::Ncat => {
            let mut command = Command::new("ncat");
            command.args([
                "-l",
                "-k",
                "-m",
                "1000",
                "--exec",
                "/bin/cat",
                "127.0.0.1",
                &port,
            ]);
            command
        }
        _ => {
            let config = format!(
                "defaults\n{{\ninstances = UNLIMITED\ncps = 1000000 1\nper_source = UNLIMITED\n}}\n\
                 service echo\n{{\ntype = INTERNAL UNLISTED\nid = echo-stream\n\
                 socket_type = stream\nprotocol = tcp\nwait = no\nuser = root\n\
                 bind = 127.0.0.1\nport = {port}\n}}\n"
            );
            let mut command = Command::new("xinetd");
            command
                .args(["-dontfork", "-f"])
                .arg(folder.write("xinetd.conf", &config));
            command.arg("-pidfile").arg(folder.path("pid"));
            command
        }
    };
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = running(child, address, Some(folder));
    let began = Instant::now();
    while TcpStream::connect(address).is_err() && began.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(10));
    }
    server
}

fn running(child: Child, address: SocketAddr, folder: Option<Folder>) -> Server {
    Server {
        address,
        pid: Pid::from_child(&child),
        daemon: None,
        child: Some(child),
        _folder: folder,
        descriptors: 0,
    }
}
