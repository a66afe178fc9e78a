//! System calls that fail cost at most the one client that they were made for.
//!
//! strace(1) makes them fail (`-e inject=`).  Whatever fails: what a client gets is a prefix of
//! what it sent, other connections go on, callers are accepted, nothing spins, and nothing exits.
//! When descriptors run out, callers wait in the accept queue until one is free.
//!
//! The daemons here have no notify socket, so that every recvfrom(2) and sendto(2) is one for a
//! client, or for a signal, and can be counted.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::{
    Daemon, Plan, SOON, Tape, connect, eventually, finish, has, listener, ping,
    plenty_of_descriptors, seconds_since, waits,
};

/// strace(1) counts the calls of each thread by themselves, and an nth call is of one worker.
const LONE: &str = "workers = 1\n";

/// A daemon under strace(1), which runs beside it: the process is the daemon's own.
struct Tried {
    daemon: Daemon,
    trace: PathBuf,
}

impl Tried {
    /// Starts it with system calls that fail, as strace's `-e inject=` wants them.
    fn with(plan: Plan, faults: &[&str]) -> Self {
        let trace = plan.folder().path("trace");
        let calls: Vec<&str> = faults
            .iter()
            .map(|fault| fault.split(':').next().unwrap())
            .collect();
        let calls = format!("trace={}", calls.join(","));
        let mut words = vec!["strace", "-D", "-f", "-q", "-o", trace.to_str().unwrap()];
        words.extend(["-e", &calls, "-e", "signal=none"]);
        let faults: Vec<String> = faults
            .iter()
            .filter(|fault| fault.contains(':'))
            .map(|fault| format!("inject={fault}"))
            .collect();
        for fault in &faults {
            words.extend(["-e", fault]);
        }
        let daemon = plan.under(&words).unnotified().start().logged_ready();
        Self { daemon, trace }
    }

    fn new(faults: &[&str]) -> Self {
        Self::with(Plan::new(), faults)
    }

    /// Lines of the trace so far that contain a text.
    fn traced(&self, text: &str) -> usize {
        let trace = std::fs::read(&self.trace).unwrap_or_default();
        String::from_utf8_lossy(&trace)
            .lines()
            .filter(|line| line.contains(text))
            .count()
    }

    /// Waits until an injected fault has occurred.
    #[track_caller]
    fn failed(&self) {
        eventually(SOON, "no system call was made to fail", || {
            (self.traced("(INJECTED)") > 0).then_some(())
        });
    }
}

/// Whether system calls can be made to fail here: strace is there, new enough, and may trace.
fn can_inject() -> bool {
    static POSSIBLE: OnceLock<bool> = OnceLock::new();
    *POSSIBLE.get_or_init(|| {
        has("strace") && {
            let tried = Command::new("strace")
                .args(["-D", "-f", "-q", "-o", "/dev/null"])
                .args(["-e", "inject=getppid:error=EPERM:when=1..2", "true"])
                .status();
            let possible = tried.is_ok_and(|status| status.success());
            if !possible {
                eprintln!("skipped: strace cannot make system calls fail here");
            }
            possible
        }
    })
}

/// Echoes for a new caller within a time.
#[track_caller]
fn serves(daemon: &Daemon, within: Duration) {
    let began = Instant::now();
    ping(daemon.connect(), b"the next one");
    let took = began.elapsed();
    assert!(took < within, "a caller was served after {took:?}");
}

/// Whatever accept(2) says: its own page, and the pending errors of the new socket.
const ACCEPT: [&str; 27] = [
    "EAGAIN",
    "EBADF",
    "ECONNABORTED",
    "ECONNRESET",
    "EFAULT",
    "EINTR",
    "EINVAL",
    "EMFILE",
    "ENFILE",
    "ENOBUFS",
    "ENOMEM",
    "ENOTSOCK",
    "EOPNOTSUPP",
    "EPERM",
    "EPROTO",
    "ENOSR",
    "ESOCKTNOSUPPORT",
    "EPROTONOSUPPORT",
    "ETIMEDOUT",
    "ENETDOWN",
    "ENOPROTOOPT",
    "EHOSTDOWN",
    "ENONET",
    "EHOSTUNREACH",
    "ENETUNREACH",
    "EIO",
    "ENOSYS",
];

#[test]
fn an_accept_that_fails_once_makes_no_caller_wait_for_long() {
    if !can_inject() {
        return;
    }
    let (one, other) = ACCEPT.split_at(ACCEPT.len() / 2);
    thread::scope(|scope| {
        for errnos in [one, other] {
            scope.spawn(move || {
                for errno in errnos {
                    // The second caller's accept fails.
                    let fault = format!("accept4:error={errno}:when=2");
                    let tried = Tried::new(&[&fault]);
                    let first = tried.daemon.connect();
                    ping(&first, b"hello");
                    let began = Instant::now();
                    ping(tried.daemon.connect(), b"hello");
                    let took = began.elapsed();
                    assert!(took < Duration::from_secs(5), "{errno}: {took:?}");
                    tried.failed();
                    ping(&first, b"still here");
                    ping(tried.daemon.connect(), b"hello");
                }
            });
        }
    });
}

#[test]
fn an_accept_that_fails_for_ever_does_not_spin_and_harms_no_open_connection() {
    if !can_inject() {
        return;
    }
    for errno in ["EMFILE", "ENOBUFS", "ECONNABORTED", "EPERM", "EINVAL"] {
        let fault = format!("accept4:error={errno}:when=2+");
        let plan = Plan::new().config("[limits]\nstop-timeout = '1s'\n");
        let tried = Tried::with(plan, &[&fault, "epoll_pwait"]);
        let mut daemon = tried.daemon;
        let first = daemon.connect();
        ping(&first, b"hello");
        let mut waiting = daemon.connect();
        waiting.write_all(b"hello").unwrap();
        eventually(SOON, "accept did not fail", || {
            let trace = std::fs::read_to_string(&tried.trace).unwrap_or_default();
            trace.contains("INJECTED").then_some(())
        });
        let calls = || {
            let trace = std::fs::read_to_string(&tried.trace).unwrap_or_default();
            (
                trace.matches("accept4(").count(),
                trace.matches("epoll_pwait(").count(),
            )
        };
        let (before, began) = (calls(), Instant::now());
        thread::sleep(Duration::from_secs(1));
        let (after, seconds) = (calls(), began.elapsed().as_secs_f64());
        // Every 50 ms, with at most 64 lost callers each time.
        let accepts = (after.0 - before.0) as f64 / seconds;
        let rounds = (after.1 - before.1) as f64 / seconds;
        assert!(
            accepts <= 21.0 * 64.0,
            "{errno}: {accepts} accepts a second"
        );
        assert!(rounds <= 45.0, "{errno}: {rounds} rounds a second");
        ping(&first, b"still here");
        let told = daemon.log().matches("warning: listener").count();
        assert!(told <= 3 + seconds_since(began), "{errno}");
        daemon.signal(Signal::HUP);
        daemon.logged("reloaded");
        drop(first);
        daemon.signal(Signal::TERM);
        assert!(daemon.exited(SOON).success(), "{errno}");
    }
}

#[test]
fn an_accept_that_fails_for_a_while_works_again_after() {
    if !can_inject() {
        return;
    }
    for (errno, count) in [("EMFILE", 20), ("ECONNABORTED", 640), ("EINVAL", 2)] {
        let fault = format!("accept4:error={errno}:when=1..{count}");
        let tried = Tried::new(&[&fault]);
        let mut early: Vec<TcpStream> = (0..5).map(|_| tried.daemon.connect()).collect();
        for client in &mut early {
            client.write_all(b"hello").unwrap();
        }
        for client in &mut early {
            client.read_exact(&mut [0; 5]).unwrap();
        }
        serves(&tried.daemon, Duration::from_secs(2));
    }
}

/// Sends messages until the connection breaks, if it does; asserts that what comes back is a
/// prefix.  Returns whether all of it came back.
#[track_caller]
fn talks(stream: &TcpStream, messages: usize) -> bool {
    let (mut said, mut heard) = (Tape::new(1), Tape::new(1));
    for message in 1..=messages {
        if said.send(stream, 1000).is_err() {
            return false;
        }
        while heard.position() < message * 1000 {
            match heard.read(stream, 1000) {
                Ok(0) | Err(_) => return false,
                Ok(_) => {}
            }
        }
    }
    true
}

#[test]
fn a_read_or_a_write_that_fails_costs_that_one_client() {
    if !can_inject() {
        return;
    }
    let errnos = [
        "EINTR",
        "ENOBUFS",
        "ENOMEM",
        "ECONNRESET",
        "EPIPE",
        "ETIMEDOUT",
    ];
    thread::scope(|scope| {
        for call in ["recvfrom", "sendto"] {
            scope.spawn(move || {
                for errno in errnos {
                    let fault = format!("{call}:error={errno}:when=7");
                    let tried = Tried::new(&[&fault]);
                    let daemon = &tried.daemon;
                    let base = daemon.descriptors();
                    let other = daemon.connect();
                    ping(&other, b"one");
                    ping(&other, b"two");
                    // The seventh call is the fifth of this one.
                    let client = daemon.connect();
                    let whole = talks(&client, 10);
                    tried.failed();
                    assert_eq!(whole, errno == "EINTR", "{call} {errno}");
                    ping(&other, b"three");
                    ping(daemon.connect(), b"the next one");
                    drop(client);
                    daemon.has_released(base + 1);
                }
            });
        }
    });
}

#[test]
fn interruptions_at_every_other_call_lose_nothing() {
    if !can_inject() {
        return;
    }
    for faults in [
        &[
            "recvfrom:error=EINTR:when=1+2",
            "sendto:error=EINTR:when=1+2",
        ][..],
        &["epoll_pwait:error=EINTR:when=2+2"],
    ] {
        let tried = Tried::new(faults);
        let stalled = tried.daemon.connect();
        let mut said = Tape::new(3);
        said.fill(&stalled);
        let client = tried.daemon.connect();
        assert!(talks(&client, 100));
        assert!(finish(&client).is_empty());
        stalled.shutdown(Shutdown::Write).unwrap();
        let mut heard = Tape::new(3);
        heard.expect_to_the_end(&stalled);
        assert_eq!(heard.position(), said.position());
        tried.failed();
        ping(tried.daemon.connect(), b"the next one");
    }
}

#[test]
fn a_write_that_fails_while_something_is_owed_makes_no_hole() {
    if !can_inject() {
        return;
    }
    for errno in ["ENOBUFS", "ENOMEM", "EPIPE", "ETIMEDOUT"] {
        let fault = format!("sendto:error={errno}:when=60");
        let tried = Tried::new(&[&fault]);
        let base = tried.daemon.descriptors();
        let client = tried.daemon.connect();
        let mut said = Tape::new(4);
        said.fill(&client);
        thread::scope(|scope| {
            scope.spawn(|| {
                // Until it breaks.
                for _ in 0..1000 {
                    if said.send(&client, 100_000).is_err() {
                        return;
                    }
                }
                panic!("nothing broke");
            });
            let mut heard = Tape::new(4);
            while matches!(heard.read(&client, 100_000), Ok(1..)) {}
            assert!(heard.position() > 0);
        });
        tried.failed();
        drop(client);
        ping(tried.daemon.connect(), b"the next one");
        tried.daemon.has_released(base);
    }
}

#[test]
fn a_registration_that_fails_costs_that_one_client() {
    if !can_inject() {
        return;
    }
    let calm = Tried::with(Plan::new().config(LONE), &["epoll_ctl"]);
    let at_start = eventually(SOON, "nothing was registered", || {
        Some(calm.traced("epoll_ctl(")).filter(|count| *count >= 2)
    });
    drop(calm);
    for errno in ["ENOMEM", "ENOSPC"] {
        // The first client is added; the second one is not.
        let fault = format!("epoll_ctl:error={errno}:when={}", at_start + 2);
        let tried = Tried::with(Plan::new().config(LONE), &[&fault]);
        let first = tried.daemon.connect();
        ping(&first, b"hello");
        let base = tried.daemon.descriptors();
        let lost = tried.daemon.connect();
        assert!(!talks(&lost, 1), "{errno}");
        tried.failed();
        ping(tried.daemon.connect(), b"the next one");
        ping(&first, b"still here");
        tried.daemon.has_released(base);

        // The first client is added, and asks for room to write; that fails.
        let tried = Tried::with(Plan::new().config(LONE), &[&fault]);
        let base = tried.daemon.descriptors();
        let stalled = tried.daemon.connect();
        let mut said = Tape::new(1);
        stalled
            .set_write_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        // A reset may have ended it already.
        let _ = said.send(&stalled, 64 << 20);
        tried.failed();
        let mut heard = Tape::new(1);
        while matches!(heard.read(&stalled, 100_000), Ok(1..)) {}
        ping(tried.daemon.connect(), b"the next one");
        tried.daemon.has_released(base);
    }
}

#[test]
fn options_that_cannot_be_set_are_reported_and_change_nothing_else() {
    if !can_inject() {
        return;
    }
    for errno in ["ENOPROTOOPT", "EINVAL", "ENOMEM", "EPERM"] {
        let fault = format!("setsockopt:error={errno}");
        let mut tried = Tried::new(&[&fault]);
        ping(tried.daemon.connect(), b"hello");
        tried.failed();
        tried.daemon.logged("nodelay stays as it was");
        assert!(tried.daemon.stop().success());

        // On a passed listener, whose options are set on what it accepts too.
        let passed = listener();
        let address = passed.local_addr().unwrap();
        let plan = Plan::bare()
            .config("[listener.echo]\nnodelay = false\nkeepalive-idle = '60s'\nquickack = true\n")
            .pass(vec![OwnedFd::from(passed)], "echo");
        let mut tried = Tried::with(plan, &[&fault]);
        for _ in 0..3 {
            ping(connect(address), b"hello");
        }
        tried.failed();
        assert!(tried.daemon.stop().success());
    }
}

#[test]
fn names_and_shutdowns_that_fail_change_nothing() {
    if !can_inject() {
        return;
    }
    let mut tried = Tried::new(&[
        "shutdown:error=ENOTCONN",
        "getsockname:error=ENOBUFS:when=5+",
    ]);
    let client = tried.daemon.connect();
    ping(&client, b"hello");
    assert!(finish(&client).is_empty());
    let client = tried.daemon.connect();
    ping(&client, b"hello");
    tried.daemon.signal(Signal::TERM);
    let mut rest = Vec::new();
    let _ = (&client).read_to_end(&mut rest);
    assert!(rest.is_empty());
    assert!(tried.daemon.exited(SOON).success());
}

/// The number that its next descriptor will have; there may be higher ones that it inherited.
fn next_descriptor(daemon: &Daemon) -> usize {
    let folder = format!("/proc/{}/fd", daemon.pid().as_raw_nonzero());
    (0..)
        .find(|number| !PathBuf::from(format!("{folder}/{number}")).is_symlink())
        .unwrap()
}

/// Changes the most descriptors that a process may have.
fn limit_descriptors(daemon: &Daemon, most: usize) {
    let status = Command::new("prlimit")
        .arg("--pid")
        .arg(daemon.pid().as_raw_nonzero().to_string())
        .arg(format!("--nofile={most}:"))
        .status()
        .unwrap();
    assert!(status.success());
}

/// How long a client that is not served is watched.
const WHILE: Duration = Duration::from_millis(200);

#[test]
fn two_hundred_clients_and_64_descriptors() {
    if !has("prlimit") {
        return;
    }
    plenty_of_descriptors();
    let mut daemon = Plan::new().under(&["prlimit", "--nofile=64:64"]).start();
    let began = Instant::now();
    let mut clients: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut client = daemon.connect();
            client.write_all(b"hello").unwrap();
            client
        })
        .collect();
    daemon.logged("is paused");
    // Open connections stay open; callers wait, which uses no processor time.
    let inside = clients.len() - 1;
    (&clients[0]).read_exact(&mut [0; 5]).unwrap();
    waits(&clients[inside], WHILE);
    daemon.uses_hardly_any_time();
    ping(&clients[0], b"still here");
    // In their order, all callers are accepted as connections end.
    for (number, client) in clients.drain(..).enumerate() {
        if number > 0 {
            { &client }.read_exact(&mut [0; 5]).unwrap();
        }
        if number == 50 {
            daemon.reload("");
        }
    }
    let told = daemon.log().matches("is paused").count();
    assert!(told <= 1 + seconds_since(began), "told {told} times");
    ping(daemon.connect(), b"the next one");
    assert!(daemon.stop().success());
}

#[test]
fn without_descriptors_callers_wait_and_get_the_first_that_is_free() {
    if !has("prlimit") {
        return;
    }
    let mut daemon = Daemon::start();
    let mut inside: Vec<TcpStream> = (0..10).map(|_| daemon.connect()).collect();
    inside.iter().for_each(|client| ping(client, b"hello"));
    let most = next_descriptor(&daemon);
    // Now accept(2) itself says EMFILE.
    let began = Instant::now();
    limit_descriptors(&daemon, most);
    let outside: Vec<TcpStream> = (0..10)
        .map(|_| {
            let mut caller = daemon.connect();
            caller.write_all(b"hello").unwrap();
            caller
        })
        .collect();
    daemon.logged("is paused");
    waits(&outside[0], WHILE);
    daemon.uses_hardly_any_time();
    inside.iter().for_each(|client| ping(client, b"still here"));
    for mut caller in &outside[..5] {
        waits(caller, WHILE);
        let freed = Instant::now();
        drop(inside.pop());
        caller.read_exact(&mut [0; 5]).unwrap();
        let took = freed.elapsed();
        // 100 ms are promised; the rest is for noise.
        assert!(took < Duration::from_millis(1000), "{took:?}");
    }
    // It takes signals and sends its status, and logs this once a second at most.
    daemon.reload("");
    waits(&outside[5], WHILE);
    let told = daemon.log().matches("is paused").count();
    assert!(told <= 1 + seconds_since(began), "{told}");
    // Descriptors that are freed elsewhere are found too.
    limit_descriptors(&daemon, most + 5);
    for mut caller in &outside[5..] {
        caller.read_exact(&mut [0; 5]).unwrap();
    }
    drop((inside, outside));
    assert!(daemon.stop().success());
}

#[test]
fn a_stop_without_descriptors_serves_the_callers_that_wait() {
    if !has("prlimit") {
        return;
    }
    let mut daemon = Daemon::start();
    let inside = daemon.connect();
    ping(&inside, b"hello");
    limit_descriptors(&daemon, next_descriptor(&daemon));
    let mut outside = daemon.connect();
    outside.write_all(b"hello").unwrap();
    daemon.logged("is paused");
    daemon.signal(Signal::TERM);
    let mut rest = Vec::new();
    (&inside).read_to_end(&mut rest).unwrap();
    drop(inside);
    outside.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"hello");
    drop(outside);
    assert!(daemon.exited(SOON).success());
}

/// A socket whose last close waits for as long as this, as its data cannot be sent, and its peer.
fn lingering(span: Duration) -> (TcpStream, TcpStream) {
    let listener = listener();
    let socket = connect(listener.local_addr().unwrap());
    let peer = listener.accept().unwrap().0;
    socket.set_nonblocking(true).unwrap();
    while (&socket).write(&[0; 1 << 16]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    socket2::SockRef::from(&socket)
        .set_linger(Some(span))
        .unwrap();
    (socket, peer)
}

/// Linux before 6.16 does not know `SO_PASSRIGHTS`, as here, where each setsockopt(2) fails.
#[test]
fn where_descriptors_cannot_be_refused_they_hold_up_no_loop() {
    if !has("strace") {
        return;
    }
    let plan = Plan::new().config(LONE);
    let path = plan.folder().path("echo.sock");
    let plan = plan
        .argument("--listen")
        .argument(&format!("unix:{}", path.display()));
    let mut tried = Tried::with(plan, &["setsockopt:error=ENOPROTOOPT"]);
    let other = tried.daemon.connect();
    ping(&other, b"before");
    let call = || {
        let client = testkit::connect_unix(&path);
        ping(&client, b"hello");
        client
    };
    let mut peers = Vec::new();
    // One client with a message that is read, one with a message that is not, one that just closes.
    for kind in 0..3 {
        let client = call();
        let (socket, peer) = lingering(Duration::from_secs(30));
        if kind == 1 {
            tried.daemon.freeze();
        }
        super::echo::give(&client, b"gift", &socket).unwrap();
        drop(socket);
        peers.push(peer);
        if kind == 2 {
            drop(client);
        } else if kind == 1 {
            client.shutdown(Shutdown::Both).unwrap();
            tried.daemon.thaw();
        } else {
            // It ends; what came before was echoed.
            let mut rest = Vec::new();
            let _ = (&client).read_to_end(&mut rest);
            assert!(rest.is_empty());
        }
        let began = Instant::now();
        ping(&other, b"meanwhile");
        ping(call(), b"another");
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "an echo took {took:?}");
    }
    assert!(tried.daemon.stop().success());
}
