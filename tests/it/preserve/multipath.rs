//! Multipath TCP (RFC 8684), over listeners that the service manager passes: the kernel does not count
//! its bytes as a whole, so a connection outlives a restart, and a crash ends it on all of its subflows.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};
use testkit::manager::Manager;
use testkit::{SOON, Tape, end_of, eventually, in_a_network, ping};

/// Connections of Multipath TCP with two subflows each, in a network of our own, where this test runs
/// itself once more.
#[test]
fn over_multipath_tcp_a_restart_preserves_connections_and_a_crash_ends_them_at_once() {
    in_a_network(
        "preserve::multipath::over_multipath_tcp_a_restart_preserves_connections_and_a_crash_ends_them_at_once",
        "ip link set lo up && ip mptcp limits set subflow 2 add_addr_accepted 2 && \
         ip mptcp endpoint add 127.0.0.2 dev lo subflow",
        || (0..20).for_each(|_| multipath()),
    );
}

fn multipath() {
    let multipath = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listener = multipath();
    listener.bind(&any.into()).unwrap();
    listener.listen(64).unwrap();
    let mut manager = Manager::new();
    manager.replace_listeners("multipath", listener);
    manager.start();
    let address = manager.address();
    let call = || -> TcpStream {
        let client = multipath();
        client.connect(&address.into()).unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        let client = TcpStream::from(OwnedFd::from(client));
        ping(&client, b"hello");
        client
    };
    let [idle, finished, mute, stalled] = [call(), call(), call(), call()];
    // Of each connection both ends of both subflows.
    let port = format!(":{:04X}", address.port());
    eventually(SOON, "there are no second subflows", || {
        let sockets = std::fs::read_to_string("/proc/net/tcp").ok()?;
        let ours = |line: &&str| line.contains(&port) && line.contains(" 01 ");
        (sockets.lines().filter(ours).count() == 16).then_some(())
    });
    manager.preserves(4);
    manager.restart();
    for client in [&idle, &finished, &mute, &stalled] {
        ping(client, b"still here");
    }
    manager.preserves(4);
    let mut said = Tape::new(1);
    said.send(&finished, 50_000).unwrap();
    finished.shutdown(Shutdown::Write).unwrap();
    for client in [&mute, &stalled] {
        client.set_nonblocking(true).unwrap();
        for _ in 0..20 {
            let _ = Tape::new(2).send(client, 1 << 20);
            thread::sleep(Duration::from_millis(2));
        }
        client.set_nonblocking(false).unwrap();
    }
    manager.kill();
    manager.start();
    let began = Instant::now();
    for (name, client) in [
        ("idle", &idle),
        ("finished", &finished),
        ("stalled", &stalled),
    ] {
        let _ = end_of(client);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{name}: {took:?}");
    }
    // A client that does not read sees the end, too.
    let mut asked = [PollFd::new(&mute, PollFlags::RDHUP)];
    let waited = poll(
        &mut asked,
        Some(&Timespec {
            tv_sec: 5,
            tv_nsec: 0,
        }),
    );
    assert_eq!(waited, Ok(1), "one that does not read is not ended");
}
