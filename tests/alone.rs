//! What needs the machine for itself: `cargo test` runs this binary when the others have ended.
//!
//! What `tcp-echo ping` prints as round trip and as this host's part of it, held against the kernel's
//! times of the same packets, which a packet socket (packet(7)) sees for itself.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use tcp_echo::sys::timestamps;
use testkit::{Daemon, in_a_network, program, run};

/// How far a median may be from what the kernel says, in microseconds.
const NEAR: f64 = 2.0;

/// Runs of which one has to be near: on a busy machine packets are not seen, and a message is held up
/// between two stamps.
const ATTEMPTS: usize = 10;

/// Messages of a run, and the bytes of each.
const MESSAGES: usize = 300;
const SIZE: u32 = 64;

#[test]
fn the_p50_is_what_the_kernel_s_times_of_the_packets_say() {
    in_a_network(
        "the_p50_is_what_the_kernel_s_times_of_the_packets_say",
        "ip link set lo up",
        || {
            let daemon = Daemon::start();
            let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, daemon.address().port());
            let mut seen = Vec::new();
            while seen.len() < ATTEMPTS {
                match attempt(server) {
                    Ok(()) => return,
                    Err(why) => seen.push(why),
                }
            }
            panic!("{}", seen.join("\n"));
        },
    );
}

/// Pings, and holds what is printed against the packets.
///
/// This host's part of a round trip has no stamp of the kernel's: it is what is printed as such, and
/// no round trip is shorter than what the kernel saw of it.
fn attempt(server: SocketAddrV4) -> Result<(), String> {
    // ETH_P_ALL: packets that go out, as well.
    let all = Protocol::from(i32::from(3_u16.to_be()));
    let tap = Socket::new(Domain::PACKET, Type::DGRAM, Some(all)).unwrap();
    timestamps::enable(&tap).unwrap();
    let is_over = AtomicBool::new(false);
    let (output, kernel) = thread::scope(|scope| {
        let watch = scope.spawn(|| spans(&tap, server.port(), &is_over));
        // The kernel begins to stamp what arrives some time after it was asked.
        thread::sleep(Duration::from_millis(100));
        let (count, size) = (MESSAGES.to_string(), SIZE.to_string());
        let output = run(Command::new(program())
            .args(["ping", "--busy", "-i", "5ms", "--json-lines"])
            .args(["-c", &count, "-s", &size, &server.to_string()]));
        is_over.store(true, Ordering::Relaxed);
        (output, watch.join().unwrap())
    });
    let lines: Vec<Value> = output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    let of = |event: &'static str| lines.iter().filter(move |line| line["event"] == event);
    let summary = of("summary").next().unwrap();
    let number = |value: &Value| value.as_f64().ok_or("a time is missing");
    let (mut wires, mut trips) = (Vec::new(), Vec::new());
    for echo in of("echo") {
        // Two messages that are in one packet have no time of their own.
        let Some(seen) = kernel.get(&echo["seq"].as_u64().unwrap()) else {
            continue;
        };
        let seen = seen.as_nanos() as f64 / 1e3;
        let (rtt, wire) = (number(&echo["rtt_us"])?, number(&echo["wire_us"])?);
        if rtt < seen {
            return Err(format!("{echo}, and the kernel needed {seen} us"));
        }
        wires.push(seen);
        trips.push(seen + rtt - wire);
    }
    if trips.len() < MESSAGES * 29 / 30 {
        return Err(format!("only {} messages were seen", trips.len()));
    }
    let printed = [&summary["kernel"]["wire_us"], &summary["rtt_us"]];
    for (printed, mut expected) in printed.into_iter().zip([wires, trips]) {
        let p50 = number(&printed["p50"])?;
        expected.sort_by(f64::total_cmp);
        let median = expected[(expected.len() - 1) / 2];
        // With --nocapture the figures can be read.
        eprintln!("p50 {p50} us is printed, {median} us is expected");
        if (p50 - median).abs() > NEAR {
            return Err(format!("p50 {p50} us instead of {median} us in {summary}"));
        }
    }
    Ok(())
}

/// By the number of each message, how long it was from when it went out to when the last of its echo
/// came in.
fn spans(tap: &Socket, server: u16, is_over: &AtomicBool) -> HashMap<u64, Duration> {
    let mut buffer = [0; 2048];
    let (mut sent, mut echoed) = (HashMap::new(), HashMap::new());
    let mut first = [None; 2];
    let mut spans = HashMap::new();
    loop {
        let was_over = is_over.load(Ordering::Relaxed);
        while let Ok((count, Some(time))) = timestamps::receive(tap, &mut buffer) {
            let Some(segment) = Segment::of(&buffer[..count]) else {
                continue;
            };
            let is_echo = segment.from == server;
            let begin = *first[usize::from(is_echo)].get_or_insert(segment.begin);
            let message = u64::from(segment.end.wrapping_sub(begin) / SIZE);
            // Everything passes twice on loopback, going out and coming in.
            if !is_echo {
                sent.entry(message).or_insert(time);
            } else if echoed.insert(message, time).is_some() {
                let span = sent.get(&message).and_then(|sent| time.checked_sub(*sent));
                spans.extend(span.map(|span| (message, span)));
            }
        }
        if was_over {
            return spans;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Where a TCP segment with data comes from, and its place in the stream.
struct Segment {
    from: u16,
    begin: u32,
    end: u32,
}

impl Segment {
    /// The one in an IPv4 packet (RFC 791, section 3.1; RFC 9293, section 3.1), if it has data.
    fn of(packet: &[u8]) -> Option<Self> {
        let version = packet.first()?;
        let header = usize::from(version & 15) * 4;
        let (tcp, protocol) = (packet.get(header..)?, *packet.get(9)?);
        if version >> 4 != 4 || protocol != 6 {
            return None;
        }
        let begin = u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?);
        let data = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?;
        (!data.is_empty()).then_some(Self {
            from: u16::from_be_bytes([tcp[0], tcp[1]]),
            begin,
            end: begin.wrapping_add(u32::try_from(data.len()).ok()?),
        })
    }
}
