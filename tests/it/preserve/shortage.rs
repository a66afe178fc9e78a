//! Where memory is short, or an address is in use, preserved connections do not prevent the start of the
//! next process: it starts, and ends those that it cannot serve.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::net::{SendFlags, sendto};
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};
use tcp_echo::log::events::id;
use testkit::manager::Manager;
use testkit::{
    SOON, connect_with_buffers, eventually, finish, has, has_namespaces, in_a_network, ping,
};

/// Message ids that the tests look for; what they stand for is the catalog's business.
const RESTORED: &str = id("RESTORED");
const CLOSED: &str = id("CLOSED");
const LISTENING: &str = id("LISTENING");
const PRESERVE_FAILED: &str = id("PRESERVE_FAILED");
const PREDECESSOR_DROPPED: &str = id("PREDECESSOR_DROPPED");
const START_FAILED: &str = id("START_FAILED");

#[test]
fn an_address_that_is_not_to_be_shared_is_no_obstacle_for_the_next_process() {
    let mut manager = Manager::without_listeners(91);
    manager.config("preserve-after = '0s'\n[socket]\nreuse-address = false\n");
    manager.start();
    let client = manager.connect();
    ping(&client, b"hello");
    manager.preserves(1);
    for _ in 0..3 {
        manager.kill();
        manager.start();
        ping(&client, b"after a crash");
        manager.restart();
        ping(&client, b"after a restart");
    }
    let options = manager.event(LISTENING)["echo.options"].to_string();
    assert!(options.contains("reuse-address=on"), "{options}");
}

#[test]
fn connections_do_not_wait_for_ever_while_no_start_succeeds() {
    let ahead = ["unshare", "--time", "--fork", "--monotonic", "100"];
    if !has_namespaces(&[&ahead[1..], &["true"]].concat()) {
        return;
    }
    let usual = "preserve-after = '0s'\n";
    let mut manager = Manager::new();
    manager.start();
    let client = manager.connect();
    ping(&client, b"hello");
    manager.preserves(1);
    manager.kill();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    manager.config(&format!("{usual}[listener.more]\naddress = '{address}'\n"));
    for _ in 0..3 {
        manager.launch();
        assert!(!manager.ended().success(), "it started");
        manager.past_event(START_FAILED);
    }
    assert!(!manager.names().is_empty());
    // More than a minute later by the clock of the daemon.
    let own_pid = ["sh", "-c", "LISTEN_PID=$$ exec \"$@\"", "sh"];
    manager.under(&[&ahead[..], &own_pid].concat());
    manager.launch();
    assert!(!manager.ended().success(), "it started");
    manager.past_event(START_FAILED);
    let dropped = manager.past_event(PREDECESSOR_DROPPED);
    assert_eq!(dropped["echo.count"], 1, "{dropped}");
    assert_eq!(finish(&client), b"");
    eventually(SOON, "something stays in the store", || {
        manager.names().is_empty().then_some(())
    });
    manager.under(&[]);
    manager.config(usual);
    manager.start();
    let client = manager.connect();
    ping(&client, b"hello");
    manager.preserves(1);
}

#[test]
fn without_memory_for_its_pending_output_a_connection_ends() {
    if !has("strace") {
        return;
    }
    let mut manager = Manager::new();
    manager.config("workers = 1\npreserve-after = '0s'\n");
    // The first two are the head of the memory file and the scratch of the one worker; the next ones
    // are for the first record and for what is owed.
    manager.inject("fallocate", "error=ENOSPC:when=5+");
    manager.start();
    let client = manager.connect();
    ping(&client, b"hello");
    manager.preserves(1);
    for _ in 0..3 {
        // It sends and does not read, so that the daemon has pending output for it.
        let slow = connect_with_buffers(manager.address(), 4096, 64 * 1024);
        slow.set_write_timeout(Some(SOON)).unwrap();
        let end = eventually(SOON, "no end", || (&slow).write_all(&[7; 65_536]).err());
        assert_ne!(
            end.kind(),
            std::io::ErrorKind::WouldBlock,
            "it waits in vain"
        );
        manager.event(CLOSED);
        ping(&client, b"still here");
    }
    assert!(manager.is_running());
}

#[test]
fn without_memory_for_a_record_a_connection_is_not_preserved_and_served() {
    if !has("strace") {
        return;
    }
    let mut manager = Manager::new();
    manager.config("workers = 1\npreserve-after = '0s'\n");
    manager.inject("fallocate", "error=ENOSPC:when=3+");
    manager.start();
    let client = manager.connect();
    ping(&client, b"hello");
    eventually(SOON, "it is not logged", || {
        let log = manager.daemon().log();
        log.contains(PRESERVE_FAILED).then_some(())
    });
    ping(&client, b"still here");
}

/// A control group with so much memory, which ends with this.
struct Group(PathBuf);

impl Group {
    /// Where no group can be made, prints that the test skips, and returns `None`.
    fn new(bytes: usize) -> Option<Self> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = |line: &str| line.splitn(3, ':').nth(2).map(|path| path[1..].to_owned());
        let old = groups.lines().find(|line| line.contains(":memory:"));
        let (top, file) = match old {
            Some(line) => (
                PathBuf::from("/sys/fs/cgroup/memory").join(path(line)?),
                "memory.limit_in_bytes",
            ),
            None => (
                PathBuf::from("/sys/fs/cgroup").join(path(groups.lines().next()?)?),
                "memory.max",
            ),
        };
        let group = Self(top.join(format!("tcp-echo-it-{}", std::process::id())));
        let made = std::fs::create_dir(&group.0)
            .and_then(|()| std::fs::write(group.0.join(file), bytes.to_string()));
        if let Err(error) = made {
            eprintln!("skipped: no control group with a limit of memory: {error}");
            return None;
        }
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last process may not have ended yet.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn what_a_process_was_killed_for_does_not_kill_the_next_one() {
    let Some(group) = Group::new(16 << 20) else {
        return;
    };
    let mut manager = Manager::new();
    let script = format!("echo $$ >{}/cgroup.procs; exec \"$@\"", group.0.display());
    manager.under(&["sh", "-c", &script, "sh"]);
    manager.start();
    let client = manager.connect();
    ping(&client, b"hello");
    let busy: Vec<TcpStream> = (0..200).map(|_| manager.connect()).collect();
    manager.preserves(1 + busy.len());
    let mut slow = Vec::new();
    while manager.is_running() {
        assert!(slow.len() < 2000, "it is never killed");
        // It may be killed meanwhile.
        let Ok(stream) = TcpStream::connect(manager.address()) else {
            break;
        };
        stream.set_nonblocking(true).unwrap();
        let _ = (&stream).write(&vec![7; 400_000]);
        slow.push(stream);
        // They are to be preserved before it is killed.
        if slow.len() % 16 == 0 {
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    manager.was_killed();
    // What the others have must be given back before these need memory.
    for client in &busy {
        client.set_nonblocking(true).unwrap();
        for _ in 0..8 {
            let _ = (&mut &*client).write(&vec![7; 400_000]);
        }
    }
    let mut starts = 0;
    loop {
        starts += 1;
        assert!(starts <= 3, "killed again and again");
        manager.launch();
        // It is killed, or serves; where memory is short, a start takes long.
        let ready = eventually(3 * SOON, "it is neither killed nor ready", || {
            let ready = manager.notified_within("READY=1", Duration::from_millis(50));
            (ready.is_some() || !manager.is_running()).then_some(ready.is_some())
        });
        std::thread::sleep(Duration::from_millis(500));
        if ready && manager.is_running() {
            break;
        }
        manager.was_killed();
    }
    let adopted = manager.event(RESTORED);
    assert!(
        adopted.to_string().contains("killed for want of memory"),
        "{adopted}"
    );
    let restored = adopted["echo.restored"].as_u64().unwrap();
    assert!(restored > busy.len() as u64, "{adopted}");
    ping(&client, b"still here");
    ping(manager.connect(), b"hello");
    drop((slow, busy));
    manager.stop();
}

/// In a network namespace of its own the answers of a client to a handshake are dropped, so that a
/// connection with data in its SYN (TCP Fast Open, RFC 7413) is in SYN-RECEIVED when it is handed over.
#[test]
fn a_connection_without_the_end_of_its_handshake_is_handed_over() {
    let setup = "ip link set lo up && echo 1543 >/proc/sys/net/ipv4/tcp_fastopen && \
        nft add table ip t && \
        nft add chain ip t out '{ type filter hook output priority 0; }'";
    if !has("nft") {
        return;
    }
    in_a_network(
        "preserve::shortage::a_connection_without_the_end_of_its_handshake_is_handed_over",
        setup,
        hands_a_fast_open_over,
    );
}

fn hands_a_fast_open_over() {
    let mut manager = Manager::new();
    manager.start();
    let address = manager.address();
    let port = address.port().to_string();
    let nft = |words: &[&str]| {
        assert!(Command::new("nft").args(words).status().unwrap().success());
    };
    let drop = "tcp flags & (syn | ack | fin | rst) == ack drop";
    let rule = format!("add rule ip t out tcp dport {port} {drop}");
    nft(&rule.split(' ').collect::<Vec<_>>());
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // `MSG_FASTOPEN` of send(2): the SYN carries the first bytes.
    let fast = SendFlags::from_bits_retain(0x2000_0000);
    assert_eq!(sendto(&socket, b"hello", fast, &address).unwrap(), 5);
    let mut client: TcpStream = OwnedFd::from(socket).into();
    client.set_read_timeout(Some(SOON)).unwrap();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
    manager.preserves(1);
    let sockets = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let local = format!(":{:04X} ", address.port());
    // include/net/tcp_states.h
    let half = |line: &str| {
        line.split(": ")
            .nth(1)
            .is_some_and(|rest| rest[..15].contains(&local) && rest[..].contains(" 03 "))
    };
    assert!(
        sockets.lines().any(half),
        "none is in SYN-RECEIVED: {sockets}"
    );
    manager.daemon().signal(Signal::USR2);
    assert!(manager.ended().success());
    manager.start();
    let adopted = manager.event(RESTORED);
    assert_eq!(adopted["echo.restored"], 1, "{adopted}");
    nft(&["flush", "chain", "ip", "t", "out"]);
    ping(&client, b"still here");
}
