//! `tcp-echo probe` on paths that have a fault: network namespaces in a row, made for one test and
//! gone with it.
//!
//! ```text
//! c (client) -- m -- n -- s (server)
//! 10.0.1.1  .2  10.0.2.1 .2  10.0.3.1 .2
//! ```
//!
//! A veth end with a smaller MTU drops what is larger without a word, so the path is cut where it is
//! neither the client's link nor the server's.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use testkit::{has, has_namespaces, program, run};

use super::hold::paused;

/// Namespaces, links and routes.  One segment is one packet, as a large one that the kernel would cut
/// later is let through.
const BED: &str = r#"
set -e
mount -t tmpfs tmpfs /run
for n in c m n s; do ip netns add $n; ip -n $n link set lo up; done
link() {
    ip -n $1 link add $2 type veth peer name $5 netns $4
    ip -n $1 addr add $3 dev $2
    ip -n $4 addr add $6 dev $5
    ip -n $1 link set $2 up gso_max_segs 1
    ip -n $4 link set $5 up gso_max_segs 1
}
link c c0 10.0.1.1/24 m m0 10.0.1.2/24
link m m1 10.0.2.1/24 n n0 10.0.2.2/24
link n n1 10.0.3.1/24 s s0 10.0.3.2/24
ip -n c route add default via 10.0.1.2
ip -n m route add 10.0.3.0/24 via 10.0.2.2
ip -n n route add 10.0.1.0/24 via 10.0.2.1
ip -n s route add default via 10.0.3.1
for n in m n; do ip netns exec $n sysctl -qw net.ipv4.ip_forward=1; done
client() { ip netns exec c "$PROGRAM" probe 10.0.3.2 --json "$@"; }
"#;

/// A daemon in the namespace `s`.
const SERVER: &str = r#"
server() {
    ip netns exec s "$PROGRAM" --listen '*:7' --log off &
    for i in $(seq 100); do
        ip netns exec s ss -Hltn sport = 7 | grep -q . && return
        sleep 0.05
    done
    exit 99
}
"#;

/// Runs a script in namespaces of its own; `None`, and said, where there can be none.
fn unshared(script: &str) -> Option<Output> {
    let apart = ["-rnmp", "--fork", "--kill-child", "sh", "-c"];
    let trial = "mount -t tmpfs tmpfs /run && ip netns add x && ip netns exec x true";
    has_namespaces(&[&apart[..], &[trial]].concat()).then(|| {
        run(Command::new("unshare")
            .args(apart)
            .arg(script)
            .env("PROGRAM", program())
            .env("TEST", std::env::current_exe().unwrap()))
    })
}

/// Runs a script on the bed; `None`, and said, where there can be no such bed.
fn bed(script: &str) -> Option<Output> {
    let tools = ["ip", "ss", "sysctl"].into_iter().all(has);
    tools
        .then(|| unshared(&format!("{SERVER}{BED}\n{script}")))
        .flatten()
}

/// The exit status of a script, and the report that it printed.
fn report(output: &Output) -> (i32, Value) {
    let text = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    let report =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}\n{complaints}"));
    (output.status.code().unwrap(), report)
}

/// Runs a script on the bed; returns the exit status and the report that it prints.
fn on_bed(script: &str) -> Option<(i32, Value)> {
    bed(script).as_ref().map(report)
}

/// A case of a report has this verdict and text.
#[track_caller]
fn expect(report: &Value, id: &str, verdict: &str, text: &str) {
    let cases = report["cases"].as_array().unwrap();
    let case = cases.iter().find(|case| case["id"] == id);
    let case = case.unwrap_or_else(|| panic!("no {id}: {report:#}"));
    assert_eq!(case["verdict"], verdict, "{report:#}");
    assert!(case["text"].as_str().unwrap().contains(text), "{report:#}");
}

const SIZES: &str = "server; client --only size -W 2s";

#[test]
fn a_path_without_a_fault_takes_every_size() {
    let Some((status, report)) = on_bed(SIZES) else {
        return;
    };
    expect(&report, "size/up", "ok", "up to 1500 bytes");
    expect(&report, "size/down", "ok", "up to 1500 bytes");
    assert_eq!(status, 0);
}

#[test]
fn a_black_hole_on_the_way_there_is_found() {
    let Some((status, report)) = on_bed(&format!("ip -n n link set n0 mtu 1340; {SIZES}")) else {
        return;
    };
    // The kernel drops what is longer than the MTU and a VLAN tag.
    expect(
        &report,
        "size/up",
        "fail",
        "1340 bytes pass on the way there, 1360 do not",
    );
    // On the way back the router says so.
    expect(&report, "size/down", "ok", "1340");
    assert_eq!(status, 1);
}

#[test]
fn a_black_hole_on_the_way_back_is_found() {
    let Some((status, report)) = on_bed(&format!("ip -n m link set m1 mtu 1340; {SIZES}")) else {
        return;
    };
    expect(
        &report,
        "size/down",
        "fail",
        "1340 bytes pass on the way back, 1360 do not",
    );
    expect(&report, "size/up", "ok", "path MTU discovery works");
    assert_eq!(status, 1);
}

#[test]
fn path_mtu_discovery_that_works_is_no_fault() {
    let cut = "ip -n m link set m1 mtu 1340; ip -n n link set n0 mtu 1340";
    let Some((status, report)) = on_bed(&format!("{cut}; {SIZES}")) else {
        return;
    };
    expect(
        &report,
        "size/up",
        "ok",
        "up to 1340 bytes; larger packets are answered",
    );
    expect(
        &report,
        "size/down",
        "ok",
        "up to 1340 bytes; no larger packets were sent",
    );
    assert_eq!(status, 0);
}

#[test]
fn what_the_kernel_knew_before_is_noted() {
    let cut = "ip -n m link set m1 mtu 1340; ip -n n link set n0 mtu 1340";
    let script = format!("{cut}; {SIZES} > /dev/null; client --only size/up -W 2s");
    let Some((_, report)) = on_bed(&script) else {
        return;
    };
    expect(&report, "size/up", "note", "knew this path MTU before");
}

#[test]
fn a_syn_that_is_lost_is_named() {
    if !has("nft") {
        return;
    }
    // The second connection, that of the case, loses its first SYN.
    let lose = "ip netns exec m nft -f - <<'END'
table ip t {
    chain c {
        type filter hook forward priority 0
        ip daddr 10.0.3.2 tcp flags & (syn | ack) == syn jump syns
    }
    chain syns {
        numgen inc mod 1000 == 1 drop
    }
}
END
";
    let Some((status, report)) = on_bed(&format!("{lose}\nserver; client --only connect")) else {
        return;
    };
    expect(&report, "connect/addresses", "note", "sent 2 times");
    expect(&report, "connect/proxy", "ok", "");
    assert_eq!(status, 0);
}

#[test]
fn an_address_that_does_not_answer_is_a_fault() {
    // A name with two addresses, of which one is nowhere.
    let script = "echo '10.0.3.2 echo.test
10.0.3.9 echo.test' > /run/hosts; mount --bind /run/hosts /etc/hosts
server; ip netns exec c \"$PROGRAM\" probe echo.test --json --only connect/addresses -W 1s";
    let Some((status, report)) = on_bed(script) else {
        return;
    };
    expect(&report, "connect/addresses", "fail", "10.0.3.9:7");
    assert_eq!(status, 1);
}

#[test]
fn an_address_without_a_way_is_unreachable() {
    let script = "ip -n c route del default; ip netns exec c \"$PROGRAM\" probe 10.0.3.2 --no-bulk";
    let Some(output) = bed(script) else {
        return;
    };
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(13), "{complaint}");
    assert!(complaint.contains(": unreachable: "), "{complaint}");
}

/// A NAT in the middle that forgets a silent connection after 3 s.
const NAT: &str = "
ip netns exec m nft -f - <<'END'
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname m1 masquerade
    }
    chain forward {
        type filter hook forward priority 0
        ct state established accept
    }
}
END
ip netns exec m sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0
ip netns exec m sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=3
server
";

const SILENCE: &str = "client --only idle --idle 8s -W 1s";

/// The case of silence behind a NAT, with a rule of its own; `None` where there can be no NAT.
fn behind_nat(rule: &str) -> Option<Value> {
    if !has("nft") {
        return None;
    }
    let (_, report) = on_bed(&format!("{NAT}\n{rule}\n{SILENCE}"))?;
    Some(report)
}

/// The bracket that a report gives, in seconds.
fn bracket(report: &Value) -> (f64, f64) {
    let figures = &report["cases"][0]["figures"];
    let seconds = |name: &str| figures[name].as_f64().unwrap() / 1e6;
    (seconds("lives_us"), seconds("ends_before_us"))
}

#[test]
fn a_nat_that_forgets_and_says_nothing_is_bracketed() {
    let Some(report) =
        behind_nat("ip netns exec m nft add rule ip nat forward ct state invalid drop")
    else {
        return;
    };
    expect(&report, "idle/silence", "fail", "by silence, not RST");
    expect(
        &report,
        "idle/silence",
        "fail",
        "keepalive every 1.2s holds",
    );
    let (lives, ends) = bracket(&report);
    assert!(
        lives <= 3.1 && ends >= 2.9 && ends - lives < 0.8,
        "{report:#}"
    );
}

#[test]
fn a_nat_that_forgets_and_lets_the_server_reset_is_bracketed() {
    let Some(report) = behind_nat("") else {
        return;
    };
    expect(&report, "idle/silence", "fail", "by RST when spoken to");
    let (lives, ends) = bracket(&report);
    assert!(
        lives <= 3.1 && ends >= 2.9 && ends - lives < 0.8,
        "{report:#}"
    );
}

#[test]
fn a_path_that_forgets_nothing_has_no_fault_and_keepalive_hides_one() {
    let Some((_, report)) = on_bed("server; client --only idle --idle 4s") else {
        return;
    };
    expect(&report, "idle/silence", "ok", "live for 4s");
    // The other end keeps a NAT awake that would forget.
    let keepalive = "echo '[socket]
keepalive-idle = \"1s\"
keepalive-interval = \"1s\"' > /run/config.toml
ip netns exec s \"$PROGRAM\" --config /run/config.toml --listen '*:9' --log off &
sleep 0.5
ip netns exec c \"$PROGRAM\" probe 10.0.3.2:9 --json --only idle --idle 6s -W 1s";
    if !has("nft") {
        return;
    }
    let Some((_, report)) = on_bed(&format!("{NAT}\n{keepalive}")) else {
        return;
    };
    expect(
        &report,
        "idle/silence",
        "note",
        "masked: the other end sends a keepalive about every 1",
    );
}

#[test]
fn a_server_that_ends_silent_connections_is_no_middlebox() {
    let limited = "echo '[limits]
idle-timeout = \"3s\"' > /run/config.toml
ip netns exec s \"$PROGRAM\" --config /run/config.toml --listen '*:7' --log off &
sleep 0.5";
    let Some((status, report)) = on_bed(&format!("{limited}\n{SILENCE}")) else {
        return;
    };
    expect(
        &report,
        "idle/silence",
        "fail",
        "by FIN, which came during the silence",
    );
    assert_eq!(status, 1);
}

/// What a probe that held conversations says at the end, one line of JSON for each event before it.
fn held(script: &str) -> Option<(Vec<Value>, Value)> {
    let output = bed(script)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{text}"));
    let mut events: Vec<Value> = text.lines().map(parse).collect();
    let summary = events.pop().unwrap();
    assert_eq!(summary["event"], "summary", "{text}");
    Some((events, summary))
}

#[test]
fn a_pause_of_the_network_is_attributed_to_it() {
    let script = "server
(sleep 2; ip -n m link set m1 down; sleep 1; ip -n m link set m1 up
ip -n m route add 10.0.3.0/24 via 10.0.2.2) &
client --hold 6s --connections 10";
    let Some((events, summary)) = held(script) else {
        return;
    };
    paused("network", 10, &events, &summary);
    assert_eq!(
        (&summary["ended"], &summary["wrong"]),
        (&0.into(), &0.into())
    );
    assert!(summary["worst_us"].as_u64().unwrap() > 900_000, "{summary}");
}

#[test]
fn a_way_back_that_loses_packets_is_attributed_to_it() {
    if !has("nft") {
        return;
    }
    // Each echo of one of the connections is lost for a while but for the second packet after it,
    // which arrives out of order, as do those that follow.
    let script = "server
(sleep 2
ip netns exec m nft -f - <<'END'
table ip back {
    chain forward {
        type filter hook forward priority 0
        ip saddr 10.0.3.2 tcp flags & psh == psh meta length 116 jump first
    }
    chain first {
        numgen inc mod 3 < 2 drop
    }
}
END
sleep 1; ip netns exec m nft delete table ip back) &
client --hold 5s --connections 4";
    let Some((events, summary)) = held(script) else {
        return;
    };
    let pauses = &summary["pauses"];
    assert!(
        pauses["way-back"].as_u64().is_some_and(|count| count > 0),
        "{events:#?} {summary}"
    );
    assert_eq!(
        (&summary["ended"], &summary["wrong"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn queues_that_fill_up_under_load_are_noted() {
    if !has("tc") {
        return;
    }
    // A narrow link with room for most of a second.
    let narrow = "ip netns exec m tc qdisc add dev m1 root tbf rate 20mbit burst 32k latency 800ms";
    let Some((status, report)) = on_bed(&format!("{narrow}; server; client --only load --yes"))
    else {
        return;
    };
    expect(&report, "load/working", "note", "fill up");
    let figures = &report["cases"][0]["figures"];
    let number = |name: &str| figures[name].as_u64().unwrap();
    assert!(
        number("rpm") < 1000 && number("working_us") > 20_000,
        "{report:#}"
    );
    assert!(number("idle_us") * 4 < number("working_us"), "{report:#}");
    assert_eq!(status, 0);
}

/// A long path: this test runs itself once more as the forwarder between two ends, which delays every
/// packet and loses some.
#[test]
fn a_long_path_that_loses_packets_is_no_fault() {
    const INSIDE: &str = "TCP_ECHO_IT_FORWARDS";
    const NAME: &str = "client::paths::a_long_path_that_loses_packets_is_no_fault";
    if std::env::var_os(INSIDE).is_some() {
        tunnel::forward(Duration::from_millis(30), 100);
    }
    if !["ip", "ss"].into_iter().all(has) {
        return;
    }
    let ends = "set -e
mount -t tmpfs tmpfs /run
ip netns add c; ip netns add s
TCP_ECHO_IT_FORWARDS=1 \"$TEST\" --exact NAME --nocapture >&2 &
for i in $(seq 100); do
    ip link show near > /dev/null 2>&1 && ip link show far > /dev/null 2>&1 && break
    sleep 0.05
done
ip link set near netns c; ip link set far netns s
ip -n c addr add 10.0.3.1/24 dev near; ip -n c link set near up mtu 1500
ip -n s addr add 10.0.3.2/24 dev far; ip -n s link set far up mtu 1500
server
ip netns exec c \"$PROGRAM\" probe 10.0.3.2 --json --only connect,bytes,order,end,reset,size,window,urgent --no-bulk";
    let Some(output) = unshared(&format!("{SERVER}{}", ends.replace("NAME", NAME))) else {
        return;
    };
    let (_, report) = report(&output);
    let cases = report["cases"].as_array().unwrap();
    let faults: Vec<_> = cases
        .iter()
        .filter(|case| case["verdict"] == "fail")
        .collect();
    assert!(faults.is_empty(), "{report:#}");
    expect(&report, "connect/proxy", "ok", "where TCP ends");
    let echo = cases
        .iter()
        .find(|case| case["id"] == "connect/proxy")
        .unwrap();
    let micros = echo["figures"]["echo_min_us"].as_u64().unwrap();
    assert!((60_000..90_000).contains(&micros), "{report:#}");
}

/// A forwarder between two TUN devices, `near` and `far`.
mod tunnel {
    use std::collections::VecDeque;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    /// `TUNSETIFF` of linux/if_tun.h, and its flags: packets of IP, without a header of their own.
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    const FLAGS: u16 = 0x0001 | 0x1000;

    #[expect(unsafe_code, reason = "no crate in the tree makes TUN devices")]
    fn device(name: &str) -> File {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap();
        let mut request = [0_u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
        // SAFETY: the kernel reads and writes one `struct ifreq`, which is not longer.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        rustix::io::ioctl_fionbio(&file, true).unwrap();
        file
    }

    /// Forwards until the process is killed: each packet after a delay, and one of so many never.
    pub fn forward(delay: Duration, one_of: u64) -> ! {
        let ends = [device("near"), device("far")];
        let mut under_way: [VecDeque<(Instant, Vec<u8>)>; 2] = Default::default();
        let (mut count, mut buffer) = (0_u64, vec![0; 65_536]);
        loop {
            let mut polled = ends.each_ref().map(|end| PollFd::new(end, PollFlags::IN));
            let next = under_way
                .iter()
                .filter_map(|queue| queue.front())
                .map(|(at, _)| *at)
                .min();
            let wait = next.map(|at| at.saturating_duration_since(Instant::now()));
            let wait = wait.map(|wait| Timespec::try_from(wait).unwrap());
            poll(&mut polled, wait.as_ref()).unwrap();
            for (end, queue) in ends.iter().zip(&mut under_way) {
                while let Ok(length) = (&*end).read(&mut buffer) {
                    count += 1;
                    if count % one_of != 0 {
                        queue.push_back((Instant::now() + delay, buffer[..length].to_vec()));
                    }
                }
            }
            for (end, queue) in ends.iter().rev().zip(&mut under_way) {
                let due = |queue: &VecDeque<(Instant, Vec<u8>)>| {
                    queue.front().is_some_and(|(at, _)| *at <= Instant::now())
                };
                while due(queue) {
                    let (_, packet) = queue.pop_front().unwrap();
                    // A device that is not up yet takes nothing.
                    let _ = (&*end).write(&packet);
                }
            }
        }
    }
}
