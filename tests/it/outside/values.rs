//! What the metrics say is what clients have seen.

use std::collections::HashSet;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use testkit::load::{Load, Talk};
use testkit::manager::Manager;
use testkit::{SOON, eventually, finish, ping, reset};

use super::{Response, metrics, observed, passed};

/// Accepted connections, ended ones, and bytes in both directions.
fn totals(response: &Response) -> [f64; 4] {
    [
        response.value("tcp_echo_connections_accepted_total"),
        response.sum("tcp_echo_connections_ended_total"),
        response.value("tcp_echo_bytes_total{direction=\"received\"}"),
        response.value("tcp_echo_bytes_total{direction=\"sent\"}"),
    ]
}

#[test]
fn what_was_done_is_counted_with_any_number_of_workers() {
    for workers in [1, 4] {
        let (_daemon, address, clients) = {
            let (daemon, address) = observed(&format!("workers = {workers}\n"));
            let clients: Vec<TcpStream> = (0..12).map(|_| daemon.connect()).collect();
            for client in &clients {
                ping(client, &[7; 1000]);
            }
            (daemon, address, clients)
        };
        let page = metrics(address);
        assert_eq!(totals(&page), [12.0, 0.0, 12_000.0, 12_000.0]);
        assert_eq!(page.sum("tcp_echo_connections"), 12.0);
        assert_eq!(page.value("tcp_echo_owed_bytes"), 0.0);
        for worker in 0..workers {
            let open = page.value(&format!("tcp_echo_connections{{worker=\"{worker}\"}}"));
            assert_eq!(open, f64::from(12 / workers));
            let round = format!("tcp_echo_round_longest_seconds{{worker=\"{worker}\"}}");
            let longest = page.value(&round);
            assert!(longest > 0.0 && longest < 1.0, "{longest}");
        }
        for (number, client) in clients.into_iter().enumerate() {
            if number < 4 {
                reset(client);
            } else {
                assert!(finish(&client).is_empty());
            }
        }
        eventually(SOON, "ends are not counted", || {
            (totals(&metrics(address))[1] == 12.0).then_some(())
        });
        let page = metrics(address);
        for (reason, count) in [("peer-closed", 8.0), ("reset", 4.0), ("shutdown", 0.0)] {
            let sample = format!("tcp_echo_connections_ended_total{{reason=\"{reason}\"}}");
            assert_eq!(page.value(&sample), count);
        }
        for histogram in ["rtt_min", "duration"] {
            let name = format!("tcp_echo_connection_{histogram}_seconds");
            assert_eq!(page.value(&format!("{name}_count")), 12.0);
            assert_eq!(page.value(&format!("{name}_bucket{{le=\"+Inf\"}}")), 12.0);
            assert!(page.value(&format!("{name}_sum")) > 0.0);
        }
        assert!(page.value("tcp_echo_segments_sent_total") >= 12.0);
        assert_eq!(page.sum("tcp_echo_connections"), 0.0);
    }
}

#[test]
fn what_a_peer_does_not_take_is_owed() {
    let (daemon, address) = observed("");
    let mut client = daemon.connect();
    testkit::fill(&mut client);
    eventually(SOON, "nothing is owed", || {
        (metrics(address).value("tcp_echo_owed_bytes") > 0.0).then_some(())
    });
    reset(client);
    eventually(
        SOON,
        "something is owed to a connection that is over",
        || (metrics(address).value("tcp_echo_owed_bytes") == 0.0).then_some(()),
    );
}

#[test]
fn callers_that_wait_are_seen_at_their_listener() {
    let (daemon, address) = observed("[limits]\nmax-connections = 1\n");
    let first = daemon.connect();
    ping(&first, b"hello");
    let _waiting: Vec<TcpStream> = (0..3).map(|_| daemon.connect()).collect();
    let name = format!("listener=\"{}\"", daemon.address());
    let name = name.replace(&daemon.address().port().to_string(), "0");
    eventually(SOON, "no caller waits", || {
        let page = metrics(address);
        let depth = page.value(&format!("tcp_echo_accept_queue{{{name}}}"));
        (depth == 3.0).then_some(())
    });
    let page = metrics(address);
    assert!(page.value(&format!("tcp_echo_accept_queue_limit{{{name}}}")) >= 3.0);
    assert_eq!(
        page.value(&format!("tcp_echo_accept_queue_drops_total{{{name}}}")),
        0.0
    );
    assert_eq!(page.value("tcp_echo_connections_limit"), 1.0);
    assert_eq!(page.value("tcp_echo_listeners{state=\"paused\"}"), 1.0);
    drop(first);
}

/// The names of labels of a text.
fn labels(text: &str) -> HashSet<String> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let labels = samples.filter_map(|line| Some(line.split_once('{')?.1.split_once('}')?.0));
    let names = labels.flat_map(|labels| labels.split("\",").map(|label| label.split('=').next()));
    names.flatten().map(Into::into).collect()
}

#[test]
fn no_label_holds_anything_of_a_peer() {
    let (daemon, address) = observed("");
    let clients: Vec<TcpStream> = (0..20).map(|_| daemon.connect()).collect();
    for client in &clients {
        ping(client, b"hello");
    }
    let open = metrics(address).body;
    let ports: Vec<String> = clients
        .iter()
        .map(|client| client.local_addr().unwrap().port().to_string())
        .collect();
    for client in clients {
        assert!(finish(&client).is_empty());
    }
    let over = metrics(address).body;
    for text in [&open, &over] {
        for line in text.lines().filter(|line| line.contains('{')) {
            let label = line.split_once('}').unwrap().0;
            assert!(
                !ports.iter().any(|port| label.contains(port.as_str())),
                "{line}"
            );
        }
        for name in labels(text) {
            let known = [
                "listener",
                "reason",
                "direction",
                "state",
                "worker",
                "le",
                "version",
            ];
            assert!(known.contains(&&*name), "{name}");
        }
    }
    // As many series as before.
    assert_eq!(open.lines().count(), over.lines().count());
}

#[test]
fn a_page_is_cheap_and_does_not_disturb_the_echo() {
    let (daemon, address) = observed("");
    let client = daemon.connect();
    ping(&client, b"hello");
    let ticks = daemon.ticks();
    let began = Instant::now();
    let mut pages = 0;
    while began.elapsed() < Duration::from_secs(2) {
        metrics(address);
        pages += 1;
        thread::sleep(Duration::from_millis(10));
    }
    // A hundredth of a second each.  A page takes less than a millisecond, also on a slow machine.
    let used = daemon.ticks() - ticks;
    assert!(used * 10 <= pages, "{used} ticks for {pages} pages");
}

#[test]
fn totals_are_exact_over_restarts_and_kills() {
    const CLIENTS: usize = 40;
    let (listener, address) = passed();
    let mut manager = Manager::new().listener("metrics", listener);
    manager.start();
    let mut load = Load::connect(manager.address(), CLIENTS, Talk::messages(1000, 1));
    load.finish(SOON).unwrap();
    manager.preserves(CLIENTS);
    let mut messages = 1;
    let before = totals(&metrics(address));
    assert_eq!(before[0], CLIENTS as f64);
    for kill in 0..55 {
        messages += 20;
        load.set_all(Talk::messages(1000, messages));
        // Killed in the middle of it.
        load.run(Duration::from_millis(5 + kill % 20), Load::is_finished);
        if kill % 11 == 10 {
            manager.hand_over();
        } else {
            manager.kill();
        }
        manager.start();
        load.finish(SOON * 3).unwrap();
    }
    let bytes = (CLIENTS as u64 * messages * 1000) as f64;
    let page = metrics(address);
    assert_eq!(totals(&page), [CLIENTS as f64, 0.0, bytes, bytes]);
    assert_eq!(
        page.value("tcp_echo_connections_restored_total"),
        CLIENTS as f64
    );
    drop(load);
    eventually(SOON, "ends are not counted", || {
        (totals(&metrics(address))[1] == CLIENTS as f64).then_some(())
    });
    manager.kill();
    manager.start();
    assert_eq!(
        totals(&metrics(address)),
        [CLIENTS as f64, CLIENTS as f64, bytes, bytes]
    );
    manager.stop();
}

#[test]
fn totals_go_on_over_a_kill_although_no_connection_was_ever_preserved() {
    let (listener, address) = passed();
    let mut manager = Manager::new().listener("metrics", listener);
    manager.config("preserve-after = '1h'\n");
    manager.start();
    let state = "tcp_echo_preservation{state=\"preserving\"}";
    eventually(SOON, "nothing is stored", || {
        (metrics(address).value(state) == 1.0).then_some(())
    });
    for _ in 0..7 {
        ping(manager.connect(), b"hello");
    }
    let ended = || totals(&metrics(address));
    eventually(SOON, "ends are not counted", || {
        (ended()[1] == 7.0).then_some(())
    });
    manager.kill();
    manager.start();
    assert_eq!(ended(), [7.0, 7.0, 35.0, 35.0]);
    manager.stop();
}
