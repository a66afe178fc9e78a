//! The servers: the daemon, the bare loop, and what else is installed.
//!
//! Each runs in processes of its own, on a port of its own on loopback, and ends with its owner.
//! The daemon does all that it can do beside the echo: limits, time-outs, counters, events.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, wait};
use testkit::manager::Manager;
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
    /// Ours under a service manager that stores each connection from its beginning.
    Preserving,
    /// The bare loop.
    Bare,
    /// What else echoes.
    Peer(&'static Peer),
    /// Another build of ours, by its path.
    Other(String),
}

/// A program that echoes, too.
#[derive(Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: &'static str,
    /// What builds it, from the root of the repository; nothing if it is installed as it is.
    build: &'static [&'static str],
    /// The command, in which `{address}`, `{port}` and `{folder}` are replaced.
    command: &'static [&'static str],
}

/// Those that may be here.
pub const PEERS: [Peer; 7] = [
    Peer {
        name: "tokio",
        build: &[
            "cargo",
            "build",
            "--quiet",
            "--release",
            "--manifest-path=benches/peers/tokio/Cargo.toml",
            "--target-dir=target/peers",
        ],
        command: &["target/peers/release/tokio-echo", "{address}"],
    },
    Peer {
        name: "Go",
        build: &[
            "go",
            "build",
            "-o",
            "target/peers/",
            "benches/peers/echo.go",
        ],
        command: &["target/peers/echo", "{address}"],
    },
    Peer {
        name: "socat PIPE",
        build: &[],
        command: &[
            "socat",
            "TCP4-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,backlog=4096,nodelay",
            "PIPE",
        ],
    },
    Peer {
        name: "xinetd",
        build: &[],
        command: &[
            "xinetd",
            "-dontfork",
            "-f",
            "{folder}/xinetd.conf",
            "-pidfile",
            "{folder}/pid",
        ],
    },
    Peer {
        name: "systemd + cat",
        build: &[],
        command: &[
            "systemd-socket-activate",
            "--accept",
            "--inetd",
            "--listen={address}",
            "cat",
        ],
    },
    Peer {
        name: "socat EXEC:cat",
        build: &[],
        command: &[
            "socat",
            "TCP4-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,backlog=4096,nodelay",
            "EXEC:cat",
        ],
    },
    Peer {
        name: "ncat --exec cat",
        build: &[],
        command: &[
            "ncat",
            "-l",
            "-k",
            "-m",
            "2000",
            "--exec",
            "/bin/cat",
            "127.0.0.1",
            "{port}",
        ],
    },
];

/// The configuration of xinetd(8), with its own echo service.  It looks up the name of each client before
/// it echoes, with and without NOLIBWRAP; where the name service is slow, new connections wait for it.
const XINETD: &str = "defaults
{
    instances = UNLIMITED
    cps = 1000000 1
    per_source = UNLIMITED
}
service echo
{
    type = INTERNAL UNLISTED
    id = echo-stream
    socket_type = stream
    protocol = tcp
    wait = no
    user = root
    bind = 127.0.0.1
    port = {port}
}
";

impl Peer {
    /// Builds it, if it has to be built.
    ///
    /// # Errors
    /// Why it cannot take part.
    pub fn prepare(&self) -> Result<(), String> {
        let tool = self.build.first().unwrap_or(&self.command[0]);
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|folder| folder.join(tool).is_file()) {
            return Err(format!("{tool} is not installed"));
        }
        let Some((tool, arguments)) = self.build.split_first() else {
            return Ok(());
        };
        let output = Command::new(tool).args(arguments).output();
        let output = output.map_err(|error| format!("{tool}: {error}"))?;
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().last().unwrap_or_default();
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("it cannot be built: {last}")),
        }
    }
}

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
    owner: Owner,
    /// Sockets without connections.
    sockets: usize,
}

/// What ends with the server.
#[derive(Debug)]
enum Owner {
    Daemon(Daemon),
    Manager(Box<Manager>),
    Child(
        Child,
        #[expect(dead_code, reason = "it is removed with the server")] Option<Folder>,
    ),
}

impl Server {
    /// Starts one on these processors.
    pub fn start(kind: &Kind, extra: &str, cpus: &[usize]) -> Self {
        let mut server = match kind {
            Kind::Daemon(root, socket) => {
                let daemon = Plan::new().config(&config(root, socket, extra)).start();
                Self::of(daemon.address(), daemon.pid(), Owner::Daemon(daemon))
            }
            Kind::Preserving => {
                let mut manager = Manager::without_listeners(0);
                manager.config(&config("preserve-after = \"0s\"", "", extra));
                manager.start();
                let (address, pid) = (manager.address(), manager.daemon().pid());
                Self::of(address, pid, Owner::Manager(Box::new(manager)))
            }
            Kind::Bare => bare(),
            Kind::Peer(peer) => other(peer.command, "", cpus),
            Kind::Other(path) => {
                let command = [path, "--listen={address}", "--config={folder}/config.toml"];
                other(&command, &config("", "", extra), cpus)
            }
        };
        if !cpus.is_empty() {
            family(server.pid)
                .into_iter()
                .for_each(|pid| pin(pid, cpus));
        }
        // Before the first connection some have yet to allocate.
        let mut first = testkit::connect(server.address);
        ping(&mut first, &[b'.'; 64]);
        server.await_preserved();
        drop(first);
        std::thread::sleep(Duration::from_millis(20));
        server.sockets = server.count();
        server
    }

    fn of(address: SocketAddr, pid: Pid, owner: Owner) -> Self {
        Self {
            address,
            pid,
            owner,
            sockets: 0,
        }
    }

    /// Waits until its only connection is preserved, if it preserves any under a service manager.
    pub fn await_preserved(&self) {
        if let Owner::Manager(manager) = &self.owner {
            manager.preserves(1);
        }
    }

    /// Kills the process that listens; a service manager starts the next one.
    pub fn kill(&mut self) {
        if let Owner::Manager(manager) = &mut self.owner {
            manager.kill();
            manager.start();
            return;
        }
        // Behind the process that owns it.
        let family = family(self.pid);
        let _ = kill_process(*family.get(1).unwrap_or(&self.pid), Signal::KILL);
    }

    /// Waits until it has closed every connection and does nothing more.
    pub fn settle(&self) -> Result<(), String> {
        let deadline = Instant::now() + SOON;
        let mut closed = false;
        loop {
            closed = closed || self.count() <= self.sockets;
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
        if let Owner::Daemon(daemon) = &self.owner {
            // The manager reads its messages.
            while daemon
                .notified_within("", Duration::from_millis(1))
                .is_some()
            {}
        }
        Ok(())
    }

    /// The sockets of all its processes.  Pipes do not count: Go keeps those of splice(2) for later.
    fn count(&self) -> usize {
        let sockets = |pid| {
            let open = std::fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten();
            let links = open
                .flatten()
                .flat_map(|entry| std::fs::read_link(entry.path()));
            let is_socket = |link: &PathBuf| link.to_string_lossy().starts_with("socket:");
            links.filter(is_socket).count()
        };
        family(self.pid).into_iter().map(sockets).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Owner::Child(child, _) = &mut self.owner else {
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
    let pid = Pid::from_child(&child);
    Server::of(line.trim().parse().unwrap(), pid, Owner::Child(child, None))
}

fn other(command: &[&str], config: &str, cpus: &[usize]) -> Server {
    // Free now; another process may still take it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let port = address.port().to_string();
    let folder = Folder::new();
    folder.write("config.toml", config);
    folder.write("xinetd.conf", &XINETD.replace("{port}", &port));
    let place = folder.path("");
    let words = command.iter().map(|word| {
        word.replace("{address}", &address.to_string())
            .replace("{port}", &port)
            .replace("{folder}", place.to_str().unwrap())
    });
    let cpus: Vec<String> = cpus.iter().map(ToString::to_string).collect();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([crate::OWN, &cpus.join(",")])
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    let server = Server::of(address, pid, Owner::Child(child, Some(folder)));
    let began = Instant::now();
    while TcpStream::connect(address).is_err() && began.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(10));
    }
    server
}

/// Runs a command on some processors, as the parent of all that it leaves behind: the processor time
/// of a process whose parent does not wait for it would be in no sum otherwise.
pub fn own(words: &[String]) -> std::io::Result<()> {
    let cpus: Vec<usize> = words[0].split(',').flat_map(str::parse).collect();
    if !cpus.is_empty() {
        pin(getpid(), &cpus);
    }
    set_child_subreaper(Some(getpid()))?;
    Command::new(&words[1]).args(&words[2..]).spawn()?;
    // Until there is no child any more.
    while wait(WaitOptions::empty()).is_ok() {}
    Ok(())
}
