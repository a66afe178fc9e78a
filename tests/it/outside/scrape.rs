//! Requests for metrics and health: what is answered, and clients that misbehave.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::{Folder, Plan, SOON, connect, eventually, ping, program};

use super::{Response, ask, get, metrics, observed, passed};

#[test]
fn each_path_and_method_has_its_answer() {
    let (mut daemon, address) = observed("");
    for (request, status, body) in [
        ("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 200, "ok\n"),
        ("GET /healthz HTTP/1.0\r\n\r\n", 200, "ok\n"),
        ("HEAD /healthz HTTP/1.1\r\n\r\n", 200, ""),
        (
            "GET / HTTP/1.1\r\n\r\n",
            404,
            "there are /metrics and /healthz\n",
        ),
        (
            "POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            405,
            "there are GET and HEAD\n",
        ),
        (
            "DELETE /healthz HTTP/1.1\r\n\r\n",
            405,
            "there are GET and HEAD\n",
        ),
        ("\u{16}\u{3}\u{1}\r\n\r\n", 400, "this is no HTTP/1\n"),
    ] {
        let response = ask(address, request);
        assert_eq!(
            (response.status, &*response.body),
            (status, body),
            "{request}"
        );
        let allow = response.headers.contains("\r\nAllow: GET, HEAD\r\n");
        assert_eq!(allow, status == 405, "{response:?}");
    }
    let head = ask(address, "HEAD /metrics HTTP/1.1\r\n\r\n");
    assert_eq!((head.status, &*head.body), (200, ""));
    assert!(daemon.stop().success());
}

#[test]
fn the_form_is_the_one_that_was_asked_for() {
    let (_daemon, address) = observed("");
    let plain = get(address, "/metrics");
    assert!(
        plain
            .headers
            .contains("Content-Type: text/plain; version=0.0.4;"),
        "{plain:?}"
    );
    assert!(!plain.body.contains("# EOF"));
    let open = ask(
        address,
        "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0;q=0.5,\
         text/plain;version=0.0.4;q=0.3,*/*;q=0.2\r\n\r\n",
    );
    assert!(
        open.headers
            .contains("Content-Type: application/openmetrics-text; version=1.0.0;"),
        "{open:?}"
    );
    assert!(open.body.ends_with("# EOF\n"));
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let (_daemon, address) = observed("");
    let mut client = connect(address);
    client.set_nodelay(true).unwrap();
    for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" {
        client.write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_millis(2));
    }
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(Response::of(&text).body, "ok\n");
}

#[test]
fn a_giant_request_is_refused_and_its_client_can_read_that() {
    let (_daemon, address) = observed("");
    let mut client = connect(address);
    let giant = format!(
        "GET /metrics HTTP/1.1\r\nA: {}\r\n\r\n",
        "a".repeat(100_000)
    );
    client.write_all(giant.as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(Response::of(&text).status, 431);
}

#[test]
fn stuck_scrapers_hurt_neither_the_echo_nor_a_scrape() {
    let (daemon, address) = observed("");
    let client = daemon.connect();
    ping(&client, b"before");
    let descriptors = daemon.descriptors();
    // Half of them have sent a part of a request, the others nothing.
    let stuck: Vec<TcpStream> = (0..50)
        .map(|number| {
            let mut client = connect(address);
            if number % 2 == 0 {
                client.write_all(b"GET /metr").unwrap();
            }
            client
        })
        .collect();
    let began = Instant::now();
    for _ in 0..20 {
        ping(&client, b"meanwhile");
        assert!(metrics(address).value("tcp_echo_connections_accepted_total") >= 1.0);
    }
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert!(daemon.descriptors() <= descriptors + 8);
    // None of them counts as a connection.
    assert_eq!(metrics(address).sum("tcp_echo_connections"), 1.0);
    drop(stuck);
    eventually(SOON, "descriptors are left open", || {
        (daemon.descriptors() <= descriptors).then_some(())
    });
    daemon.rests();
}

#[test]
fn a_client_that_never_finishes_is_closed_after_five_seconds() {
    let (daemon, address) = observed("");
    let began = Instant::now();
    let mut silent = connect(address);
    // It has asked, and reads nothing of a response that is longer than its queue.
    let mut text = Vec::new();
    silent.set_read_timeout(Some(SOON)).unwrap();
    let _ = silent.read_to_end(&mut text);
    assert!(text.is_empty());
    let span = began.elapsed();
    assert!(
        span > Duration::from_secs(4) && span < Duration::from_secs(9),
        "{span:?}"
    );
    daemon.rests();
}

#[test]
fn health_says_that_the_service_is_drained_or_stopping() {
    let (mut daemon, address) = observed("");
    let client = daemon.connect();
    ping(&client, b"hello");
    let is = |status, words, draining| {
        eventually(SOON, "health says something else", || {
            let health = get(address, "/healthz");
            (health.status == status && health.body == words).then_some(())
        });
        assert_eq!(metrics(address).value("tcp_echo_draining"), draining);
    };
    let asked = |what: &str| {
        let pid = daemon.pid().as_raw_nonzero().to_string();
        let status = Command::new(program()).args([what, pid.as_str()]).status();
        assert!(status.unwrap().success(), "{what}");
    };
    is(200, "ok\n", 0.0);
    asked("drain");
    is(503, "up drain\n", 1.0);
    asked("undrain");
    is(200, "ok\n", 0.0);
    // A connection that owes something holds the stop up.
    let mut client = client;
    testkit::fill(&mut client);
    daemon.signal(Signal::TERM);
    is(503, "down#stopping\n", 1.0);
    drop(client);
    daemon.exited(SOON);
}

#[test]
fn the_daemon_opens_the_address_of_the_configuration_itself() {
    let free = passed().1;
    let config = format!("[metrics]\naddress = \"{free}\"\n");
    let daemon = Plan::new().config(&config).start();
    assert_eq!(get(free, "/healthz").status, 200);
    daemon.logged("(listener metrics, bound here)");
    // It is none of the echo's.
    assert_eq!(daemon.listen.len(), 1);
    // Another address needs a restart.
    let said = daemon.reload("[metrics]\naddress = \"127.0.0.1:1\"\n");
    assert!(
        daemon.logged("metrics.address").contains("restart"),
        "{said}"
    );
    assert_eq!(get(free, "/healthz").status, 200);
}

#[test]
fn a_unix_socket_serves_metrics_too() {
    let folder = Folder::new();
    let path = folder.path("metrics.sock");
    let config = format!("[metrics]\naddress = \"unix:{}\"\n", path.display());
    let mut daemon = Plan::new().config(&config).start();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert!(Response::of(&text).value("tcp_echo_connections_limit") > 0.0);
    assert!(daemon.stop().success());
    assert!(!path.exists(), "the path is left behind");
}

#[test]
fn a_passed_socket_takes_the_place_of_the_address() {
    let other = passed().1;
    let (_daemon, address) = observed(&format!("[metrics]\naddress = \"{other}\"\n"));
    assert_eq!(get(address, "/healthz").status, 200);
    assert!(TcpStream::connect(other).is_err());
}
