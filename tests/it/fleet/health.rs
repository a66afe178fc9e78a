//! A health listener answers each connection with one line, whatever the connection sends or leaves
//! undone, and the echo does not notice.

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::SockRef;
use testkit::{Daemon, Plan, SOON, Tape, connect, end_of, eventually, listener, ping, waits};

use super::{answer, health_of};

const CONFIG: &str = "
[listener.echo]
address = '127.0.0.1:0'
[listener.health]
address = '127.0.0.1:0'
";

#[test]
fn a_check_gets_one_line_and_an_end() {
    let daemon = Plan::bare().config(CONFIG).start();
    let health = health_of(&daemon);
    assert_ne!(health, daemon.address(), "what is announced is what echoes");
    assert_eq!(answer(health), "up ready\n");
    ping(daemon.connect(), b"hello");
}

#[test]
fn the_role_is_that_of_the_table_or_else_of_the_name() {
    let passed = |name: &str, config: &str| {
        let (echo, other) = (listener(), listener());
        let address = other.local_addr().unwrap();
        let plan = Plan::bare().config(config);
        let daemon = plan
            .pass(
                vec![OwnedFd::from(echo), OwnedFd::from(other)],
                &format!("echo:{name}"),
            )
            .start();
        let client = connect(address);
        let mut said = [0; 9];
        (&client).write_all(b"up ready\n").unwrap();
        std::io::Read::read_exact(&mut &client, &mut said).unwrap();
        assert_eq!(&said, b"up ready\n");
        // A health check has an end by itself, an echo waits for more.
        client
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let role = end_of(&client).map_or("echo", |rest| {
            assert_eq!(rest, b"");
            "health"
        });
        drop(daemon);
        role
    };
    assert_eq!(passed("health", ""), "health");
    assert_eq!(passed("other", ""), "echo");
    assert_eq!(
        passed("other", "[listener.other]\nmode = 'health'\n"),
        "health"
    );
    assert_eq!(
        passed("health", "[listener.health]\nmode = 'echo'\n"),
        "echo"
    );
}

#[test]
fn without_a_listener_that_echoes_the_built_in_ones_are_opened() {
    let config = "[listener.health]\naddress = '127.0.0.1:0'\n";
    let (status, text) = Plan::bare().config(config).argument("check").run();
    assert!(text.contains("The built-in ones"), "{status} {text}");
    assert!(text.contains("for health checks"), "{text}");
}

#[test]
fn what_a_check_sends_does_not_destroy_its_answer() {
    let daemon = Plan::bare().config(CONFIG).start();
    let health = health_of(&daemon);
    let base = daemon.descriptors();
    // Before the daemon accepts, while it answers, and after that: agent-send of HAProxy, and more.
    for (early, late, times) in [(20, 0, 50), (0, 20, 50), (9000, 2000, 50), (2000, 9000, 1)] {
        for _ in 0..times {
            let client = connect(health);
            (&client).write_all(&vec![b'x'; early]).unwrap();
            thread::sleep(Duration::from_millis(2));
            (&client).write_all(&vec![b'x'; late]).unwrap();
            // A client of one time reads so late that its connection is closed at the other end.
            let read_after = if times == 1 { 800 } else { 1 };
            thread::sleep(Duration::from_millis(read_after));
            assert_eq!(end_of(&client).unwrap(), b"up ready\n");
            // A reset that came behind the line.
            let error = SockRef::from(&client).take_error().unwrap();
            assert!(error.is_none(), "{error:?}");
        }
    }
    daemon.has_released(base);
}

#[test]
fn it_is_no_connection_of_the_echo() {
    let config = format!("{CONFIG}[limits]\nmax-connections = 1\n");
    let daemon = Plan::bare().config(&config).start();
    let health = health_of(&daemon);
    let client = daemon.connect();
    ping(&client, b"the only one");
    for _ in 0..30 {
        assert_eq!(answer(health), "up ready\n");
    }
    ping(&client, b"still here");
    daemon.signal(Signal::USR1);
    let line = daemon.logged("accepted 1, open 1, refused 0, health checks 30");
    assert!(line.contains("connections: accepted 1"), "{line}");
    assert!(
        !daemon.log().contains("ended ("),
        "checks are not logged one by one"
    );
}

#[test]
fn clients_that_neither_read_nor_close_hold_nothing_up() {
    let daemon = Plan::bare().config(CONFIG).start();
    let health = health_of(&daemon);
    let base = daemon.descriptors();
    let idle: Vec<TcpStream> = (0..300).map(|_| connect(health)).collect();
    assert_eq!(answer(health), "up ready\n");
    ping(daemon.connect(), b"hello");
    let most = daemon.descriptors();
    assert!(most <= base + 80, "{most} descriptors, {base} before");
    // Those that were closed early have their line all the same.
    for client in &idle {
        assert_eq!(end_of(client).unwrap(), b"up ready\n");
    }
    daemon.has_released(base);
    daemon.rests();
}

#[test]
fn a_check_that_is_reset_at_once_does_no_harm() {
    let daemon = Plan::bare().config(CONFIG).start();
    let health = health_of(&daemon);
    let base = daemon.descriptors();
    for _ in 0..200 {
        let client = connect(health);
        // As a TCP check of HAProxy does.
        SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
    assert_eq!(answer(health), "up ready\n");
    daemon.has_released(base);
}

#[test]
fn a_thousand_checks_a_second_do_not_hurt_the_echo() {
    let daemon = Plan::bare().config(CONFIG).start();
    let health = health_of(&daemon);
    let client = daemon.connect();
    client.set_nodelay(true).unwrap();
    let mut times = Vec::new();
    let mut measure = |span: Duration| {
        let began = Instant::now();
        times.clear();
        while began.elapsed() < span {
            let sent = Instant::now();
            ping(&client, b"how long does it take");
            times.push(sent.elapsed());
            thread::sleep(Duration::from_millis(1));
        }
        times.sort();
        times[times.len() / 2]
    };
    let quiet = measure(Duration::from_millis(500));
    let (checks, busy) = thread::scope(|scope| {
        let checks = scope.spawn(|| {
            let began = Instant::now();
            let mut checks = 0;
            while began.elapsed() < Duration::from_secs(2) {
                assert_eq!(answer(health), "up ready\n");
                checks += 1;
                let due = Duration::from_millis(checks);
                thread::sleep(due.saturating_sub(began.elapsed()));
            }
            checks
        });
        let busy = measure(Duration::from_millis(1900));
        (checks.join().unwrap(), busy)
    });
    assert!(checks > 500, "only {checks} checks in two seconds");
    let most = (quiet * 10).max(Duration::from_millis(5));
    assert!(busy < most, "the median went from {quiet:?} to {busy:?}");
}

#[test]
fn a_unix_listener_answers_too() {
    let folder = testkit::Folder::new();
    let path = folder.path("health");
    let config = format!(
        "[listener.echo]\naddress = '127.0.0.1:0'\n[listener.health]\naddress = 'unix:{}'\n",
        path.display()
    );
    let daemon = Plan::bare().config(&config).start();
    let client = UnixStream::connect(&path).unwrap();
    (&client).write_all(b"hello?\n").unwrap();
    let mut line = String::new();
    std::io::Read::read_to_string(&mut &client, &mut line).unwrap();
    assert_eq!(line, "up ready\n");
    drop(daemon);
}

#[test]
fn while_it_stops_the_answer_is_down_until_its_port_refuses() {
    let mut daemon = Plan::bare().config(CONFIG).start();
    let health = health_of(&daemon);
    let stalled = daemon.connect();
    let mut said = Tape::new(1);
    said.fill(&stalled);
    daemon.signal(Signal::TERM);
    daemon.notified("STOPPING=1");
    assert_eq!(answer(health), "down#stopping\n");
    eventually(SOON, "the echo does not refuse", || {
        TcpStream::connect(daemon.address()).err().map(drop)
    });
    assert_eq!(answer(health), "down#stopping\n");
    let mut heard = Tape::new(1);
    heard.expect_to_the_end(&stalled);
    stalled.shutdown(Shutdown::Both).unwrap();
    drop(stalled);
    assert!(daemon.exited(SOON).success());
    assert!(TcpStream::connect(health).is_err());
}

#[test]
fn a_passed_health_socket_outlives_the_daemon() {
    let (echo, health) = (listener(), listener());
    let address = health.local_addr().unwrap();
    let copy = |socket: &TcpListener| OwnedFd::from(socket.try_clone().unwrap());
    let start = || -> Daemon {
        let passed = vec![copy(&echo), copy(&health)];
        Plan::bare().pass(passed, "echo:health").start()
    };
    let mut daemon = start();
    assert_eq!(answer(address), "up ready\n");
    assert!(daemon.stop().success());
    // The port is that of the service manager: a check waits for the next process.
    let between = connect(address);
    waits(&between, Duration::from_millis(100));
    between.set_read_timeout(Some(SOON)).unwrap();
    let _daemon = start();
    assert_eq!(end_of(&between).unwrap(), b"up ready\n");
}
