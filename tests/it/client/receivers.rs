//! `tcp-echo probe --proxy-receiver`: what a receiver of PROXY headers gets wrong, by one that can get
//! each of it wrong, and by haproxy and nginx, where they are installed.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::{Daemon, Folder, SOON, eventually, has};

use super::probe::{judged, server, the_case};

/// What a receiver gets wrong.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    /// It wants the whole header in one read.
    OneRead,
    /// It takes what LOCAL brings along for the stream.
    KeepsLocal,
    /// It has room for 232 bytes.
    Short,
    /// It does not look at the checksum.
    NoChecksum,
    /// It takes what is no header for the stream.
    Guesses,
    /// It does not know version 1.
    NoText,
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// How long the header is, once that is known; an error where there is none.
fn length(bytes: &[u8], fault: Fault) -> Result<Option<usize>, ()> {
    if SIGNATURE.starts_with(&bytes[..bytes.len().min(12)]) {
        let Some([high, low]) = bytes.get(14..16) else {
            return Ok(None);
        };
        let length = 16 + usize::from(u16::from_be_bytes([*high, *low]));
        let keeps = fault == Fault::KeepsLocal && bytes[12] == 0x20;
        return match fault == Fault::Short && length > 232 {
            true => Err(()),
            false => Ok(Some(if keeps { 16 } else { length })),
        };
    }
    if b"PROXY ".starts_with(&bytes[..bytes.len().min(6)]) && fault != Fault::NoText {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n");
        return Ok(end.map(|end| end + 2));
    }
    Err(())
}

/// CRC-32C, from a table that is made each time.
fn crc32c(bytes: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256_u32)
        .map(|byte| (0..8).fold(byte, |crc, _| (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78)))
        .collect();
    !bytes.iter().fold(!0, |crc, byte| {
        crc >> 8 ^ table[((crc ^ u32::from(*byte)) & 255) as usize]
    })
}

/// Whether the checksum of a header over IPv4 is right, if it has one.
fn is_right(header: &[u8]) -> bool {
    let checksum = header.get(28..35).filter(|tlv| tlv[..3] == [3, 0, 4]);
    checksum.is_none_or(|tlv| {
        let mut zeroed = header.to_vec();
        zeroed[31..35].fill(0);
        crc32c(&zeroed).to_be_bytes() == tlv[3..]
    })
}

fn receiver(fault: Fault) -> SocketAddr {
    server(move |mut stream| {
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        let length = loop {
            let count = stream.read(&mut buffer)?;
            bytes.extend_from_slice(&buffer[..count]);
            match length(&bytes, fault) {
                Ok(Some(length)) if bytes.len() >= length => break length,
                Ok(_) if count > 0 && fault != Fault::OneRead => {}
                Err(()) if fault == Fault::Guesses => break 0,
                _ => return Ok(()),
            }
        };
        if fault != Fault::NoChecksum && !is_right(&bytes[..length]) {
            return Ok(());
        }
        stream.write_all(&bytes[length..])?;
        io::copy(&mut &stream, &mut &stream)?;
        stream.shutdown(Shutdown::Write)
    })
}

/// A case has this verdict by a receiver with this fault, and its text contains this.
#[track_caller]
fn expect(fault: Fault, case: &str, verdict: &str, text: &str) {
    let target = receiver(fault).to_string();
    let (_, report) = judged(&target, &["--proxy-receiver", "--only", case]);
    assert_eq!(the_case(&report).0, verdict, "{report:#}");
    assert!(the_case(&report).1.contains(text), "{report:#}");
}

#[test]
fn a_good_receiver_has_no_fault() {
    let target = receiver(Fault::None).to_string();
    let cases = ["--proxy-receiver", "--only", "proxy,end/much,order"];
    let (status, report) = judged(&target, &cases);
    for case in report["cases"].as_array().unwrap() {
        assert_eq!(case["verdict"], "ok", "{report:#}");
    }
    assert_eq!(status, 0);
}

#[test]
fn each_fault_of_a_receiver_is_seen() {
    for (case, text) in [
        ("proxy/split-v1", "cut in two behind byte 1-42: ended by"),
        ("proxy/split-v2", "cut in two behind byte 1-39: ended by"),
    ] {
        let target = receiver(Fault::OneRead).to_string();
        // On a busy machine it reads late, and then has both parts at once.
        eventually(SOON, text, || {
            let (_, report) = judged(&target, &["--proxy-receiver", "--only", case]);
            let (verdict, found) = the_case(&report);
            (verdict == "note" && found.contains(text)).then_some(())
        });
    }
    expect(
        Fault::KeepsLocal,
        "proxy/local",
        "fail",
        "LOCAL with addresses: 12 bytes inserted at 0",
    );
    expect(
        Fault::Short,
        "proxy/long",
        "fail",
        "a TLV of 256 bytes: ended by",
    );
    expect(
        Fault::NoChecksum,
        "proxy/checksum",
        "note",
        "does not check it",
    );
    expect(
        Fault::Guesses,
        "proxy/without",
        "fail",
        "without a header is served",
    );
    expect(Fault::NoText, "proxy/v1", "fail", "TCP4: ended by");
    expect(Fault::NoText, "proxy/v2", "ok", "");
}

#[test]
fn without_the_option_receivers_are_not_tried() {
    let daemon = Daemon::start();
    let (status, report) = judged(&daemon.address().to_string(), &["--only", "proxy"]);
    let verdicts = report["cases"].as_array().unwrap().iter();
    assert!(
        verdicts.clone().all(|case| case["verdict"] == "skipped"),
        "{report:#}"
    );
    assert_eq!((status, verdicts.count()), (0, 8));
}

/// A program of others, for one test.
pub struct Other {
    child: Child,
    _folder: Folder,
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Other {
    /// Starts a program with a file of its own, and waits until it accepts at each of some addresses.
    pub fn start(program: &str, arguments: &[&str], text: &str, addresses: &[SocketAddr]) -> Self {
        let folder = Folder::new();
        let file = folder.write("config", text);
        let mut command = Command::new(program);
        for argument in arguments {
            command.arg(argument.replace("FILE", file.to_str().unwrap()));
        }
        command.current_dir(folder.path(""));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut other = Self {
            child: command.spawn().unwrap(),
            _folder: folder,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !addresses
            .iter()
            .all(|address| TcpStream::connect(address).is_ok())
        {
            assert!(Instant::now() < deadline, "{program} does not listen");
            assert!(
                other.child.try_wait().unwrap().is_none(),
                "{program} has ended"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        other
    }
}

/// So many addresses at which nothing listens.
pub fn unused<const COUNT: usize>() -> [SocketAddr; COUNT] {
    let listeners = [(); COUNT].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

/// Starts haproxy before a daemon: a plain frontend, and one that receives PROXY headers.
pub fn haproxy(daemon: SocketAddr, plain: SocketAddr, receiver: SocketAddr) -> Other {
    let text = format!(
        "defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen plain
  bind {plain}
  server echo {daemon}
listen receiver
  bind {receiver} accept-proxy
  server echo {daemon}
"
    );
    Other::start("haproxy", &["-db", "-f", "FILE"], &text, &[plain, receiver])
}

/// Starts nginx before a daemon: with half-close as it is by default and as it should be, and a
/// receiver of PROXY headers; `None`, and said, where its stream module is not installed.
pub fn nginx(daemon: SocketAddr, at: [SocketAddr; 3]) -> Option<Other> {
    let [plain, half, receiver] = at;
    let servers = format!(
        "server {{ listen {plain}; proxy_pass {daemon}; }}
  server {{ listen {half}; proxy_pass {daemon}; proxy_half_close on; }}
  server {{ listen {receiver} proxy_protocol; proxy_pass {daemon}; proxy_half_close on; }}"
    );
    start_nginx(&servers, &at)
}

/// Starts nginx with these servers of its stream module; `None`, and said, where that is not installed.
pub fn start_nginx(servers: &str, at: &[SocketAddr]) -> Option<Other> {
    const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
    if !std::path::Path::new(MODULE).exists() && !has("the stream module of nginx") {
        return None;
    }
    let text = format!(
        "load_module {MODULE};
daemon off; pid nginx.pid; error_log nginx.log; worker_processes 1;
events {{ worker_connections 1000; }}
stream {{
  {servers}
}}
"
    );
    let arguments = ["-p", ".", "-e", "nginx.log", "-c", "FILE"];
    Some(Other::start("nginx", &arguments, &text, at))
}

/// The verdicts of some cases, by their ids.
pub fn verdicts(report: &Value) -> Vec<(&str, &str)> {
    let cases = report["cases"].as_array().unwrap().iter();
    cases
        .map(|case| {
            (
                case["id"].as_str().unwrap(),
                case["verdict"].as_str().unwrap(),
            )
        })
        .collect()
}

#[test]
fn haproxy_wants_the_header_at_once() {
    if !has("haproxy") {
        return;
    }
    let daemon = Daemon::start();
    let [plain, receiver] = unused();
    let _haproxy = haproxy(daemon.address(), plain, receiver);
    let cases = ["--only", "end,bytes/small,order,reset"];
    let (status, report) = judged(&plain.to_string(), &cases);
    assert_eq!(status, 0, "{report:#}");
    let (_, report) = judged(
        &receiver.to_string(),
        &["--proxy-receiver", "--only", "proxy"],
    );
    let found = verdicts(&report);
    for expected in [
        ("proxy/split-v1", "note"),
        ("proxy/split-v2", "note"),
        ("proxy/local", "ok"),
        ("proxy/without", "ok"),
    ] {
        assert!(found.contains(&expected), "{expected:?}: {report:#}");
    }
}

/// A server loses what it owes behind our FIN, and the cause is named: in one case at least, as a
/// little may come back before the FIN is read.
#[track_caller]
fn forgets(target: SocketAddr) {
    let (status, report) = judged(&target.to_string(), &["--only", "end"]);
    let cases = report["cases"].as_array().unwrap();
    let fault = cases.iter().find(|case| case["verdict"] == "fail");
    let fault = fault.unwrap_or_else(|| panic!("no fault: {report:#}"));
    let cause = fault["cause"]
        .as_str()
        .unwrap_or_else(|| panic!("no cause: {report:#}"));
    assert!(
        cause.contains("proxy_half_close on") && cause.contains("ncat"),
        "{cause}"
    );
    assert_eq!(status, 1);
}

#[test]
fn nginx_forgets_what_is_owed_without_half_close() {
    if !has("nginx") {
        return;
    }
    let daemon = Daemon::start();
    let at @ [plain, half, receiver] = unused();
    let Some(_nginx) = nginx(daemon.address(), at) else {
        return;
    };
    forgets(plain);
    let (status, report) = judged(&half.to_string(), &["--only", "end,order"]);
    assert_eq!(status, 0, "{report:#}");
    let (_, report) = judged(
        &receiver.to_string(),
        &["--proxy-receiver", "--only", "proxy"],
    );
    assert!(
        verdicts(&report).contains(&("proxy/split-v2", "note")),
        "{report:#}"
    );
    assert!(
        verdicts(&report).contains(&("proxy/without", "ok")),
        "{report:#}"
    );
}

#[test]
fn what_others_get_wrong_is_judged() {
    let [socat, ncat, xinetd] = unused();
    let port = |address: SocketAddr| address.port().to_string();
    if has("socat") {
        let listen = format!("TCP-LISTEN:{},fork,bind=127.0.0.1,backlog=128", port(socat));
        let _socat = Other::start("socat", &[&listen, "EXEC:cat"], "", &[socat]);
        let (status, report) = judged(&socat.to_string(), &["--only", "end,order,bytes/small"]);
        assert_eq!(status, 0, "{report:#}");
    }
    if has("ncat") {
        let arguments = ["-l", "-k", "-e", "/bin/cat", "127.0.0.1", &port(ncat)];
        let _ncat = Other::start("ncat", &arguments, "", &[ncat]);
        forgets(ncat);
    }
    if has("xinetd") {
        let text = format!(
            "defaults
{{
  instances = 1000
  cps = 10000 1
}}
service echo
{{
  type = INTERNAL UNLISTED
  id = echo-stream
  socket_type = stream
  protocol = tcp
  user = root
  wait = no
  port = {}
  bind = 127.0.0.1
}}
",
            port(xinetd)
        );
        let _xinetd = Other::start("xinetd", &["-f", "FILE", "-dontfork"], &text, &[xinetd]);
        let (status, report) = judged(&xinetd.to_string(), &["--only", "end,bytes/small,order"]);
        assert_eq!(status, 0, "{report:#}");
    }
}
