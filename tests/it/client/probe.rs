//! `tcp-echo probe`: each verdict by a server that has exactly that fault, and none by a good one.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use testkit::{Daemon, Folder, Plan, has, has_terminals, program, reset, run};

/// Runs a probe to its end.
pub fn probe(target: &str, arguments: &[&str]) -> Output {
    run(Command::new(program())
        .arg("probe")
        .arg(target)
        .args(arguments))
}

/// Runs some cases; returns the exit status and the report.
pub fn judged(target: &str, arguments: &[&str]) -> (i32, Value) {
    let output = probe(target, &[&["--json", "-W", "2s"], arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    let report =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}\n{complaints}"));
    (output.status.code().unwrap(), report)
}

/// The one case of a report: its verdict and text.
pub fn the_case(report: &Value) -> (&str, &str) {
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 1, "{report:#}");
    let word = |key: &str| cases[0][key].as_str().unwrap();
    (word("verdict"), word("text"))
}

/// A case has this verdict, and its text contains this.
#[track_caller]
fn expect(address: SocketAddr, case: &str, verdict: &str, text: &str) -> Value {
    let (status, report) = judged(&address.to_string(), &["--only", case]);
    assert_eq!(the_case(&report).0, verdict, "{report:#}");
    assert!(the_case(&report).1.contains(text), "{report:#}");
    assert_eq!(status, i32::from(verdict == "fail"), "{report:#}");
    assert_eq!(report["faults"], i32::from(verdict == "fail"));
    report
}

/// A server with a thread for each connection, for as long as the test runs.
pub fn server(serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (serve, stream) = (Arc::clone(&serve), stream.unwrap());
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// A server that echoes what a fault makes of the bytes.  It is given the bytes and their offset.
pub fn changing(change: impl Fn(u64, Vec<u8>) -> Vec<u8> + Send + Sync + 'static) -> SocketAddr {
    server(move |mut stream| {
        let (mut buffer, mut offset) = (vec![0; 16 << 10], 0);
        loop {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return stream.shutdown(Shutdown::Write);
            }
            let made = change(offset, buffer[..count].to_vec());
            stream.write_all(&made)?;
            offset += count as u64;
        }
    })
}

fn good() -> SocketAddr {
    changing(|_, bytes| bytes)
}

/// The part of some bytes at `offset` that lies in a range of the stream.
fn within(offset: u64, bytes: &[u8], range: std::ops::Range<u64>) -> std::ops::Range<usize> {
    let end = offset + bytes.len() as u64;
    let (from, to) = (range.start.clamp(offset, end), range.end.clamp(offset, end));
    (from - offset) as usize..(to - offset) as usize
}

#[test]
fn our_daemon_has_no_fault() {
    let daemon = Daemon::start();
    let (status, report) = judged(&daemon.address().to_string(), &[]);
    for case in report["cases"].as_array().unwrap() {
        // A host with much else to do is slow under load, which is worth a note.
        let slow = case["id"] == "load/working" && case["verdict"] == "note";
        assert!(slow || case["verdict"] == "ok", "{report:#}");
    }
    assert_eq!(status, 0);
    assert_eq!(report["faults"], 0);
}

#[test]
fn a_unix_socket_is_probed_as_far_as_it_goes() {
    let folder = Folder::new();
    let target = format!("unix:{}", folder.path("echo").display());
    let daemon = Plan::bare().argument("--listen").argument(&target).start();
    let (status, report) = judged(&target, &["--no-bulk"]);
    assert_eq!(status, 0, "{report:#}");
    let skipped: Vec<_> = report["cases"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|case| case["verdict"] == "skipped")
        .map(|case| case["id"].as_str().unwrap())
        .collect();
    assert!(
        skipped.contains(&"size/up") && skipped.contains(&"bytes/bulk"),
        "{skipped:?}"
    );
    assert!(!skipped.contains(&"end/much"), "{skipped:?}");
    drop(daemon);
}

/// The status and the last line where there is no conversation.
#[track_caller]
fn fails(target: &str, status: i32, word: &str) {
    let output = probe(target, &["-W", "1s"]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{complaint}");
    assert!(complaint.contains(&format!(": {word}: ")), "{complaint}");
}

#[test]
fn without_a_conversation_the_status_says_why() {
    fails("no-such-host.invalid", 10, "name");
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    fails(&closed.to_string(), 11, "refused");
    // A queue that is full drops what comes.
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _waiting = TcpStream::connect(address).unwrap();
    fails(&address.to_string(), 12, "time-out");
    let resets = server(|mut stream| {
        stream.read_exact(&mut [0; 1])?;
        reset(stream);
        Ok(())
    });
    fails(&resets.to_string(), 14, "reset");
    let closes = server(|mut stream| {
        let mut bytes = [0; 64];
        stream.read_exact(&mut bytes)?;
        stream.write_all(&bytes[..10])
    });
    fails(&closes.to_string(), 15, "closed");
    let silent = server(|mut stream| io::copy(&mut stream, &mut io::sink()).map(drop));
    fails(&silent.to_string(), 16, "silent");
    let wrong = changing(|_, bytes| bytes.iter().map(|byte| !byte).collect());
    fails(&wrong.to_string(), 17, "wrong");
    let speaks = server(|mut stream| {
        thread::sleep(Duration::from_millis(300));
        stream.write_all(b"220 mail.example.net\r\n")?;
        io::copy(&mut stream, &mut io::sink()).map(drop)
    });
    fails(&speaks.to_string(), 17, "wrong");
    let stalls = server(|mut stream| {
        let mut bytes = [0; 64];
        stream.read_exact(&mut bytes)?;
        stream.write_all(&bytes[..10])?;
        io::copy(&mut stream, &mut io::sink()).map(drop)
    });
    fails(&stalls.to_string(), 18, "stalled");
}

#[test]
fn a_command_line_that_is_wrong_is_refused_with_a_reason() {
    for (arguments, text) in [
        (&["host", "--only", "nonesuch"][..], "no such case"),
        (&["host:0"], "port 0"),
        (&[], "required"),
        (&["host", "--wait", "0s"], "zero is too short"),
    ] {
        let output = run(Command::new(program()).arg("probe").args(arguments));
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{complaint}");
        assert!(complaint.contains(text), "{complaint}");
    }
    // Much is not sent to others without being asked: 192.0.2.0/24 is nowhere (RFC 5737).
    let output = probe("192.0.2.1", &["-W", "1s"]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{complaint}");
    assert!(complaint.contains("--no-bulk"), "{complaint}");
}

#[test]
fn the_list_has_each_case_and_selects() {
    let output = run(Command::new(program()).args(["probe", "--list"]));
    let text = String::from_utf8(output.stdout).unwrap();
    let ids: Vec<_> = text
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert!(
        ids.contains(&"size/up") && ids.contains(&"end/full"),
        "{text}"
    );
    let (_, report) = judged(&good().to_string(), &["--only", "end/little,connect"]);
    let done: Vec<_> = report["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|case| &case["id"])
        .collect();
    assert_eq!(done, ["connect/addresses", "connect/proxy", "end/little"]);
}

#[test]
fn a_distance_between_tcp_and_the_echo_is_noted() {
    let slow = changing(|_, bytes| {
        thread::sleep(Duration::from_millis(15));
        bytes
    });
    expect(slow, "connect/proxy", "note", "the echo comes from");
    let (status, report) = judged(&slow.to_string(), &["--only", "connect/proxy", "--strict"]);
    assert_eq!((status, &report["faults"]), (1, &1.into()));
}

#[test]
fn a_server_that_waits_for_more_is_seen() {
    let blocks = server(|mut stream| {
        let mut block = [0; 64];
        loop {
            stream.read_exact(&mut block)?;
            stream.write_all(&block)?;
        }
    });
    expect(blocks, "bytes/small", "fail", "0 of 1 bytes came back");
}

#[test]
fn bytes_that_are_wrong_are_placed() {
    const AT: u64 = 1 << 20;
    let missing = changing(|offset, mut bytes| {
        let hole = within(offset, &bytes, AT..AT + 512);
        bytes.drain(hole);
        bytes
    });
    expect(
        missing,
        "bytes/bulk",
        "fail",
        "512 bytes missing at 1048576",
    );
    let changed = changing(|offset, mut bytes| {
        let hole = within(offset, &bytes, AT..AT + 3);
        bytes[hole].iter_mut().for_each(|byte| *byte = !*byte);
        bytes
    });
    expect(changed, "bytes/bulk", "fail", "3 bytes changed at 1048576");
    let twice = changing(|offset, bytes| {
        let hole = within(offset, &bytes, AT..AT + 100);
        [&bytes[..hole.end], &bytes[hole]].concat()
    });
    let report = expect(twice, "bytes/bulk", "fail", "come again at");
    assert_eq!(report["cases"][0]["standard"], "RFC 862");
    let stops = server(|mut stream| {
        io::copy(&mut (&stream).take(AT), &mut &stream)?;
        io::copy(&mut stream, &mut io::sink()).map(drop)
    });
    let report = expect(stops, "bytes/bulk", "fail", "1048576 of");
    let text = the_case(&report).1;
    assert!(
        text.contains("acknowledged, not echoed: server or proxy"),
        "{text}"
    );
    let cuts = server(|stream| io::copy(&mut (&stream).take(AT), &mut &stream).map(drop));
    expect(cuts, "bytes/bulk", "fail", "ended by RST");
}

#[test]
fn bytes_of_another_connection_are_noticed() {
    let kept = Mutex::new(None);
    let swaps = changing(move |offset, bytes| match offset >= 10_000 {
        // Once, and for as many bytes as came.
        true => {
            let mut kept = kept.lock().unwrap();
            let other = kept.take_if(|other: &mut Vec<u8>| other.len() == bytes.len());
            kept.get_or_insert_with(|| bytes.clone());
            other.unwrap_or(bytes)
        }
        false => bytes,
    });
    expect(swaps, "order/many", "fail", "sent on connection");
    expect(good(), "order/many", "ok", "no byte of another");
}

/// A server that echoes after a pause of the sender, but for the first bytes, which it echoes at
/// once; what it owes when the sender has finished is lost.
fn forgetful(at_once: u64) -> SocketAddr {
    server(move |mut stream| {
        stream.set_read_timeout(Some(Duration::from_millis(30)))?;
        let (mut buffer, mut owed, mut offset) = (vec![0; 64 << 10], Vec::new(), 0);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    let now = within(offset, &buffer[..count], 0..at_once);
                    stream.write_all(&buffer[now.clone()])?;
                    owed.extend_from_slice(&buffer[now.end..count]);
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stream.write_all(&std::mem::take(&mut owed))?;
                }
                Err(error) => return Err(error),
            }
        }
    })
}

/// A server that ends in some way when the sender has finished.
fn ending(end: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    server(move |stream| {
        io::copy(&mut &stream, &mut &stream)?;
        end(stream);
        Ok(())
    })
}

fn hang() -> ! {
    loop {
        thread::park();
    }
}

#[test]
fn each_fault_of_a_half_close_is_seen() {
    let loses = forgetful(0);
    let report = expect(
        loses,
        "end/little",
        "fail",
        "0 of 1000 owed bytes came back, then the end by FIN",
    );
    let cause = report["cases"][0]["cause"].as_str().unwrap();
    assert!(cause.contains("proxy_half_close on"), "{cause}");
    expect(loses, "end/much", "fail", "of 1048576 owed bytes came back");
    expect(loses, "end/nothing", "ok", "");
    expect(
        forgetful(65_535),
        "end/points",
        "fail",
        "at 2 of 16 points (65536, 262144)",
    );
    let keeps_open = ending(|_stream| hang());
    expect(
        keeps_open,
        "end/little",
        "fail",
        "our FIN was not answered within",
    );
    expect(
        keeps_open,
        "end/nothing",
        "fail",
        "our FIN was not answered within",
    );
    let resets = ending(reset);
    expect(resets, "end/little", "fail", "by RST instead of by FIN");
    expect(unbounded(true), "end/full", "fail", "owed bytes came back");
    let (status, report) = judged(&good().to_string(), &["--only", "end"]);
    assert_eq!((status, &report["faults"]), (0, &0.into()), "{report:#}");
}

/// A server that takes whatever comes, and writes it when it can; it may forget all when the sender
/// has finished.
fn unbounded(forgets: bool) -> SocketAddr {
    server(move |mut stream| {
        let (put, take) = std::sync::mpsc::channel::<Vec<u8>>();
        let mut back = stream.try_clone()?;
        let writer = thread::spawn(move || {
            for bytes in take {
                back.write_all(&bytes)?;
            }
            back.shutdown(Shutdown::Write)
        });
        let mut buffer = vec![0; 64 << 10];
        loop {
            match stream.read(&mut buffer)? {
                0 if forgets => return stream.shutdown(Shutdown::Both),
                0 => break,
                count => put.send(buffer[..count].to_vec()).unwrap(),
            }
        }
        drop(put);
        writer.join().unwrap()
    })
}

#[test]
fn resets_that_disturb_others_are_noticed() {
    let dying = |spares_old: bool| {
        let dead = std::sync::atomic::AtomicBool::new(false);
        server(move |mut stream| {
            use std::sync::atomic::Ordering::Relaxed;
            let late = dead.load(Relaxed);
            let mut buffer = [0; 4096];
            loop {
                if dead.load(Relaxed) && (late || !spares_old) {
                    hang();
                }
                match stream.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(count) if stream.write_all(&buffer[..count]).is_ok() => {}
                    _ => dead.store(true, Relaxed),
                }
                if dead.load(Relaxed) && stream.take_error()?.is_some() {
                    return Ok(());
                }
            }
        })
    };
    expect(
        dying(false),
        "reset/others",
        "fail",
        "neither an old nor a new",
    );
    expect(
        dying(true),
        "reset/others",
        "fail",
        "no new conversation is answered",
    );
    expect(good(), "reset/others", "ok", "");
}

#[test]
fn each_fault_of_a_closed_window_is_seen() {
    let impatient = server(|stream| {
        stream.set_write_timeout(Some(Duration::from_millis(500)))?;
        io::copy(&mut &stream, &mut &stream).map(drop)
    });
    expect(impatient, "window/closed", "fail", "the end by RST");
    let drops = server(|mut stream| {
        let mut buffer = vec![0; 16 << 10];
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                // What cannot be written is lost.
                count => drop(stream.write(&buffer[..count])),
            }
        }
    });
    expect(drops, "window/closed", "fail", "bytes missing at");
    expect(unbounded(false), "window/closed", "note", "have no bound");
    // Tuned by itself, a receive buffer may grow to all that the probe sends.
    let bounded = server(|stream| {
        SockRef::from(&stream).set_recv_buffer_size(256 << 10)?;
        io::copy(&mut &stream, &mut &stream).map(drop)
    });
    expect(bounded, "window/closed", "ok", "all of it came back");
}

#[test]
fn what_becomes_of_an_urgent_byte_is_seen() {
    use rustix::event::{PollFd, PollFlags, poll};
    // A socket without SO_OOBINLINE.
    expect(good(), "urgent/byte", "note", "left out");
    let on_urgent = |then: fn(TcpStream)| {
        server(move |mut stream| {
            let mut buffer = [0; 4096];
            loop {
                let mut polled = [PollFd::from_borrowed_fd(
                    stream.as_fd(),
                    PollFlags::IN | PollFlags::PRI,
                )];
                poll(&mut polled, None)?;
                if polled[0].revents().contains(PollFlags::PRI) {
                    then(stream);
                    return Ok(());
                }
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    count => stream.write_all(&buffer[..count])?,
                }
            }
        })
    };
    let resets = on_urgent(reset);
    expect(resets, "urgent/byte", "fail", "answered by RST");
    expect(
        on_urgent(|_stream| hang()),
        "urgent/byte",
        "fail",
        "then nothing for",
    );
    let daemon = Daemon::start();
    expect(daemon.address(), "urgent/byte", "ok", "in its place");
}

#[test]
fn a_terminal_has_colours_and_a_progress_line_and_nothing_else_has() {
    let target = good().to_string();
    let plain = probe(&target, &["--only", "end/little"]);
    assert!(
        !plain.stdout.contains(&0x1b) && plain.stderr.is_empty(),
        "{plain:?}"
    );
    if !has("script") || !has_terminals() {
        return;
    }
    let on_a_terminal = |variables: &str| {
        let line = format!(
            "{variables} {} probe {target} --only window,end/little -W 2s",
            program()
        );
        let output = run(Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("TERM", "xterm"));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let progress = "window/closed: our window closes for a while";
    let coloured = on_a_terminal("NO_COLOR=");
    assert!(
        coloured.contains("\x1b[32mok") && coloured.contains(progress),
        "{coloured:?}"
    );
    // What is over sooner shows nothing.
    assert!(!coloured.contains("end/little: "), "{coloured:?}");
    let without = on_a_terminal("NO_COLOR=1");
    assert!(
        !without.contains("\x1b[32m") && without.contains(progress),
        "{without:?}"
    );
    let dumb = on_a_terminal("TERM=dumb");
    assert!(
        !dumb.contains('\x1b') && !dumb.contains(progress),
        "{dumb:?}"
    );
}

#[test]
fn an_output_that_is_closed_or_full_is_no_reason_to_panic() {
    let target = good().to_string();
    let command = || {
        let mut command = Command::new(program());
        command.args(["probe", &target, "--only", "end/little"]);
        command
    };
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = command().stdout(full).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(71), "{complaint}");
    assert!(complaint.contains("cannot be written"), "{complaint}");
    let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(reader);
    let output = command()
        .stdout(std::os::fd::OwnedFd::from(writer))
        .output()
        .unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    let file = "/nonexistent/report.xml";
    let output = command().args(["--junit", file]).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{complaint}");
    assert!(complaint.contains(file), "{complaint}");
}

/// A picture that a browser takes of a page, as its width and its pixels in red, green and blue.
fn picture(page: &std::path::Path, folder: &Folder, dark: bool) -> (usize, Vec<[u8; 3]>) {
    let file = folder.path("page.png");
    let scheme = match dark {
        true => "--blink-settings=preferredColorScheme=0",
        false => "--blink-settings=preferredColorScheme=1",
    };
    let output = run(Command::new("chromium")
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
        ])
        .args(["--window-size=1000,2000", scheme])
        .arg(format!(
            "--user-data-dir={}",
            folder.path("chromium").display()
        ))
        .arg(format!("--screenshot={}", file.display()))
        .arg(format!("file://{}", page.display())));
    let complaints = String::from_utf8_lossy(&output.stderr);
    let file = std::fs::File::open(file).unwrap_or_else(|error| panic!("{error}: {complaints}"));
    let mut reader = png::Decoder::new(io::BufReader::new(file))
        .read_info()
        .unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    let samples = info.color_type.samples();
    let pixels = bytes
        .chunks(samples)
        .map(|pixel| [pixel[0], pixel[1], pixel[2]]);
    (info.width as usize, pixels.collect())
}

#[test]
fn the_page_is_seen_in_a_browser_light_and_dark() {
    if !has("chromium") {
        return;
    }
    let folder = Folder::new();
    let page = folder.path("page.html");
    let target = forgetful(0).to_string();
    let cases = "bytes/bulk,end/little";
    probe(
        &target,
        &[
            "--only",
            cases,
            "-W",
            "1s",
            "--html",
            page.to_str().unwrap(),
        ],
    );
    for dark in [false, true] {
        let (width, pixels) = picture(&page, &folder, dark);
        assert_eq!(width, 1000);
        let bright = |pixel: &[u8; 3]| pixel.iter().all(|part| *part > 200);
        let dim = |pixel: &[u8; 3]| pixel.iter().all(|part| *part < 60);
        let (bright, dim) = (
            pixels.iter().filter(|pixel| bright(pixel)).count(),
            pixels.iter().filter(|pixel| dim(pixel)).count(),
        );
        // Paper is most of it, and there is ink on it.
        let (paper, ink) = if dark { (dim, bright) } else { (bright, dim) };
        assert!(
            paper > pixels.len() * 8 / 10,
            "{dark}: {paper} of {}",
            pixels.len()
        );
        assert!((1000..paper).contains(&ink), "{dark}: {ink}");
        // The verdict of a fault, and the curve of the throughput.
        let near = |pixel: &[u8; 3], colour: [u8; 3]| {
            pixel
                .iter()
                .zip(colour)
                .all(|(one, other)| one.abs_diff(other) < 12)
        };
        let of = |colour| pixels.iter().filter(|pixel| near(pixel, colour)).count();
        let fault = if dark {
            [0xf8, 0x51, 0x49]
        } else {
            [0xcf, 0x22, 0x2e]
        };
        assert!(of(fault) > 20, "{dark}: no fault is seen");
        assert!(of([0x2f, 0x7d, 0xd6]) > 200, "{dark}: no curve is seen");
    }
}

#[test]
fn the_report_is_also_xml_of_junit() {
    let folder = Folder::new();
    let file = folder.path("report.xml");
    let output = probe(
        &forgetful(0).to_string(),
        &[
            "--only",
            "end/little,end/nothing",
            "-W",
            "1s",
            "--junit",
            file.to_str().unwrap(),
        ],
    );
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("end/little         FAIL  after our FIN 0 of 1000"),
        "{text}"
    );
    assert!(
        text.lines()
            .last()
            .unwrap()
            .starts_with("1 fault, 1 fine, 0 notes. "),
        "{text}"
    );
    let xml = std::fs::read_to_string(file).unwrap();
    assert!(xml.contains("tests=\"2\" failures=\"1\""), "{xml}");
    assert!(
        xml.contains("<testcase classname=\"end\" name=\"end/little\"><failure "),
        "{xml}"
    );
}
