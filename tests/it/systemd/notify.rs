//! The protocol of the service manager, sd_notify(3): what is sent, when, and how often; and a manager
//! that does not read.
//!
//! The notify socket of the fixture stands for the manager.  Where the manager itself is the subject
//! (abstract, full, gone), the test has an [`Inbox`].

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sd_notify::NotifyState;
use socket2::{Domain, Socket, Type};
use testkit::manager::value;
use testkit::{
    Daemon, Folder, Plan, SOON, connect, eventually, fill, has, listener, pattern, ping, program,
};

/// Without preservation, so that there are no messages about it.
const ALONE: &str = "preserve-connections = false";

/// The socket of a manager that the test plays itself.
struct Inbox {
    socket: UnixDatagram,
    path: PathBuf,
    _folder: Folder,
}

impl Inbox {
    fn new() -> Self {
        let folder = Folder::new();
        let path = folder.path("manager");
        Self {
            socket: UnixDatagram::bind(&path).unwrap(),
            path,
            _folder: folder,
        }
    }

    fn address(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// The next message, if one comes in time.
    fn next(&self, within: Duration) -> Option<String> {
        next(&self.socket, within)
    }

    /// Fills the queue, which is not read.
    fn fill(&self) {
        let sender = UnixDatagram::unbound().unwrap();
        sender.set_nonblocking(true).unwrap();
        while sender.send_to(b"FILL=1", &self.path).is_ok() {}
    }
}

fn next(socket: &UnixDatagram, within: Duration) -> Option<String> {
    let mut buffer = [0; 8192];
    socket.set_read_timeout(Some(within)).unwrap();
    let count = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..count]).into_owned())
}

/// Every message of the fixture's manager for so long, with the moment of its arrival.
fn heard(daemon: &Daemon, within: Duration) -> Vec<(Instant, String)> {
    let end = Instant::now() + within;
    let mut messages = Vec::new();
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        // The empty text begins a line of every message.
        if let Some(message) = daemon.notified_within("", left) {
            messages.push((Instant::now(), message));
        }
    }
    messages
}

/// CLOCK_MONOTONIC, in microseconds.
fn monotonic() -> u64 {
    let text = NotifyState::monotonic_usec_now().unwrap().to_string();
    value(&text, "MONOTONIC_USEC").unwrap().parse().unwrap()
}

/// A daemon with another manager than the fixture's; where it listens is read from its log.
fn start_under(manager: &str) -> (Daemon, SocketAddr) {
    let daemon = Plan::new()
        .environment("NOTIFY_SOCKET", manager)
        .unnotified()
        .start()
        .logged_ready();
    let address = daemon.address();
    (daemon, address)
}

/// A client that writes and does not read, until nothing more goes in.
fn stalled(daemon: &Daemon) -> TcpStream {
    let mut client = daemon.connect();
    fill(&mut client);
    client
}

/// Clients that write and read as fast as they can, until the flag is set.
fn flood(
    address: SocketAddr,
    clients: usize,
    over: &Arc<AtomicBool>,
) -> Vec<thread::JoinHandle<()>> {
    (0..clients)
        .flat_map(|_| {
            let mut writer = connect(address);
            let mut reader = writer.try_clone().unwrap();
            let over = Arc::clone(over);
            let write = thread::spawn(move || {
                let chunk = [3; 65536];
                while !over.load(Ordering::Relaxed) && writer.write(&chunk).is_ok() {}
                let _ = writer.shutdown(std::net::Shutdown::Write);
            });
            let read = thread::spawn(move || {
                let mut chunk = [0; 65536];
                while reader.read(&mut chunk).is_ok_and(|count| count > 0) {}
            });
            [write, read]
        })
        .collect()
}

#[test]
fn ready_is_sent_once_when_every_listener_serves() {
    let folder = Folder::new();
    let path = folder.path("echo.sock");
    let mut daemon = Plan::bare()
        .config(&format!(
            "[listener.a]\naddress = '127.0.0.1:0'\n[listener.b]\naddress = '127.0.0.1:0'\n\
             [listener.c]\naddress = 'unix:{}'\n",
            path.display()
        ))
        .start();
    // At once, as clients may connect from readiness on.
    let unix = std::os::unix::net::UnixStream::connect(&path).unwrap();
    unix.set_read_timeout(Some(SOON)).unwrap();
    ping(&unix, b"c");
    assert_eq!(daemon.listen.len(), 3, "{:?}", daemon.listen);
    assert_eq!(daemon.listen[2], format!("unix:{}", path.display()));
    for address in &daemon.listen[..2] {
        let address: SocketAddr = address.parse().unwrap();
        assert_ne!(address.port(), 0);
        ping(connect(address), b"a and b");
    }
    drop(unix);
    assert!(daemon.stop().success());
    let rest = heard(&daemon, Duration::from_millis(10));
    assert!(
        rest.iter().all(|(_, message)| !message.contains("READY=1")),
        "{rest:?}"
    );
}

#[test]
fn the_message_of_readiness_has_the_status_and_the_real_port() {
    let inbox = Inbox::new();
    let (mut daemon, address) = start_under(inbox.address());
    let ready = inbox.next(SOON).unwrap();
    assert_eq!(
        ready,
        format!(
            "READY=1\nSTATUS=1 listener, 0 connections, 0 B echoed; on {address}\nX_TCP_ECHO_LISTEN={address}"
        )
    );
    assert!(daemon.stop().success());
}

/// The fixture's manager ignores what systemd ignores, so a start is the test.
#[test]
fn many_listeners_do_not_make_the_message_of_readiness_too_long() {
    let tables: String = (0..300)
        .map(|number| format!("[listener.n{number}]\naddress = \"127.0.0.1:0\"\n"))
        .collect();
    let mut daemon = Plan::bare().config(&tables).start();
    daemon.logged_times("listening on", 300);
    ping(daemon.connect(), b"hello");
    let reloaded = daemon.reload(&tables);
    assert!(reloaded.starts_with("READY=1"), "{reloaded}");
    assert!(daemon.stop().success());
}

#[test]
fn long_addresses_do_not_make_the_message_of_readiness_too_long() {
    let sockets = (0..100).map(|number| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        // This host need not have the address.
        socket.set_freebind_v6(true).unwrap();
        let address = format!(
            "[fd00:1111:2222:3333:4444:5555:6666:{:x}]:40000",
            0x7000 + number
        );
        socket
            .bind(&address.parse::<SocketAddr>().unwrap().into())
            .unwrap();
        socket.listen(16).unwrap();
        socket.into()
    });
    let sockets = sockets.collect();
    let mut daemon = Plan::bare()
        .pass(sockets, &vec!["web"; 100].join(":"))
        .start();
    assert!(daemon.stop().success());
}

#[test]
fn a_second_instance_on_the_port_is_never_ready_and_reports_what_to_do() {
    let mut first = Daemon::start();
    let inbox = Inbox::new();
    // The first listener can be opened, but a start needs all of them.
    let (status, text) = Plan::bare()
        .argument("--listen=127.0.0.1:0")
        .argument(&format!("--listen={}", first.address()))
        .environment("NOTIFY_SOCKET", inbox.address())
        .run();
    assert_eq!(status.code(), Some(69), "{text}");
    for part in [
        "cannot start: cannot listen on",
        &first.address().to_string(),
        "another socket listens there",
        "ss -ltnp",
        "--listen",
    ] {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    while let Some(message) = inbox.next(Duration::from_millis(10)) {
        assert!(!message.contains("READY=1"), "{message}");
    }
    ping(first.connect(), b"undisturbed");
    assert!(first.stop().success());
}

#[test]
fn a_socket_that_cannot_be_had_gives_its_own_exit_status() {
    let folder = Folder::new();
    let path = folder.write("closed/there", "");
    let closed = path.parent().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o555);
    std::fs::set_permissions(closed, mode).unwrap();
    let unix = format!("--listen=unix:{}/echo.sock", closed.display());
    let gone = format!("--listen=unix:{}/no/echo.sock", closed.display());
    let mut cases = vec![
        ("--listen=192.0.2.1:0", 69, "no interface of this host has"),
        (&gone, 69, "the folder does not exist"),
        ("--listen=nonsense", 2, "has no port"),
    ];
    let mut wrapper: &[&str] = &[];
    if rustix::process::geteuid().is_root() {
        // Root may write anywhere by its capabilities.
        if has("setpriv") {
            wrapper = &["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
        }
    }
    if !wrapper.is_empty() || !rustix::process::geteuid().is_root() {
        cases.push((&unix, 77, "the folder must be writable"));
    }
    for (argument, code, part) in cases {
        let (status, text) = Plan::bare().under(wrapper).argument(argument).run();
        assert_eq!(status.code(), Some(code), "{argument}: {text}");
        assert!(text.contains(part), "{argument}: {text}");
    }
}

#[test]
fn an_address_family_that_the_sandbox_forbids_is_reported_with_the_way_out() {
    if !has("strace") {
        return;
    }
    let (status, text) = Plan::new()
        .under(&[
            "strace",
            "-D",
            "-o",
            "/dev/null",
            "-e",
            "trace=socket",
            "-e",
            "inject=socket:error=EAFNOSUPPORT",
        ])
        .run();
    assert_eq!(status.code(), Some(69), "{text}");
    for part in [
        "RestrictAddressFamilies=",
        "tcp-echo.socket",
        "standalone unit",
    ] {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

#[test]
fn a_reload_is_announced_with_the_clock_and_ends_ready_also_when_it_fails() {
    let mut daemon = Daemon::start();
    for (config, fails) in [
        ("[limits]\nidle-timeout = '1h'\n", false),
        ("[limits\n", true),
        ("", false),
    ] {
        daemon.folder.write("config.toml", config);
        let before = monotonic();
        daemon.signal(Signal::HUP);
        let reloading = daemon.notified("RELOADING=1");
        let after = monotonic();
        let told: u64 = value(&reloading, "MONOTONIC_USEC")
            .expect("MONOTONIC_USEC is in the same datagram")
            .parse()
            .unwrap();
        assert!(before <= told && told <= after, "{before} {told} {after}");
        let ready = daemon.notified("READY=1");
        assert_eq!(
            value(&ready, "STATUS")
                .unwrap()
                .contains("the last reload failed, the old configuration is in effect"),
            fails,
            "{ready}"
        );
    }
    assert!(daemon.stop().success());
}

#[test]
fn stopping_is_sent_once_with_the_time_that_it_may_take() {
    let mut daemon = Plan::new()
        .config("[limits]\nstop-timeout = '1500ms'\n")
        .start();
    let client = stalled(&daemon);
    daemon.signal(Signal::TERM);
    let stopping = daemon.notified("STOPPING=1");
    let extend: u64 = value(&stopping, "EXTEND_TIMEOUT_USEC")
        .unwrap()
        .parse()
        .unwrap();
    assert!(extend > 1_500_000, "{stopping}");
    assert!(
        value(&stopping, "STATUS")
            .unwrap()
            .starts_with("stopping: "),
        "{stopping}"
    );
    assert!(daemon.exited(SOON).success());
    let rest = heard(&daemon, Duration::from_millis(10));
    assert!(
        rest.iter()
            .all(|(_, message)| !message.contains("STOPPING=1") && !message.contains("READY=1")),
        "{rest:?}"
    );
    drop(client);
}

#[test]
fn the_status_follows_the_traffic_once_a_second_and_not_without_a_change() {
    let mut daemon = Plan::new().config(ALONE).start();
    let client = daemon.connect();
    let start = Instant::now();
    let watcher = thread::scope(|scope| {
        let busy = scope.spawn(|| {
            while start.elapsed() < Duration::from_millis(3200) {
                ping(&client, &pattern(1, 1000));
            }
        });
        let messages = heard(&daemon, Duration::from_millis(3300));
        busy.join().unwrap();
        messages
    });
    let texts: Vec<&str> = watcher
        .iter()
        .map(|(_, message)| value(message, "STATUS").expect("nothing but status"))
        .collect();
    assert!((2..=5).contains(&texts.len()), "{texts:?}");
    assert!(texts.windows(2).all(|two| two[0] != two[1]), "{texts:?}");
    assert!(
        texts[0].starts_with("1 listener, 1 connection, "),
        "{texts:?}"
    );
    // The last change is sent a second later at most, and then there is no further message.
    heard(&daemon, Duration::from_millis(1500));
    assert!(heard(&daemon, Duration::from_millis(1500)).is_empty());
    assert!(daemon.stop().success());
}

#[test]
fn the_numbers_of_the_status_are_right() {
    let mut daemon = Daemon::start();
    let clients = [daemon.connect(), daemon.connect(), daemon.connect()];
    ping(&clients[0], &pattern(1, 512 * 1024));
    ping(&clients[1], &pattern(2, 1024 * 1024));
    let status = daemon.notified("STATUS=1 listener, 3 connections, 1.5 MiB echoed");
    assert!(!status.contains("READY=1"));
    drop(clients);
    daemon.notified("STATUS=1 listener, 0 connections, 1.5 MiB echoed");
    assert!(daemon.stop().success());
}

#[test]
fn a_status_that_a_reload_has_sent_is_not_sent_again() {
    let mut daemon = Plan::new().config(ALONE).start();
    let client = daemon.connect();
    ping(
        &client,
        b"changes the status, which is sent a second after the last one",
    );
    let ready = daemon.reload("");
    let told = value(&ready, "STATUS").unwrap().to_owned();
    assert!(told.contains("1 connection,"), "{told}");
    let rest = heard(&daemon, Duration::from_millis(1500));
    assert!(rest.is_empty(), "{rest:?}");
    drop(client);
    assert!(daemon.stop().success());
}

#[test]
fn usr1_reports_the_counters_at_once_and_every_time() {
    const COUNTERS: &str = tcp_echo::log::events::id("COUNTERS");
    let mut daemon = Plan::new().argument("--log-format=json").start();
    let client = daemon.connect();
    for round in 1..=3 {
        ping(&client, &pattern(round, 2048));
        daemon.signal(Signal::USR1);
        // At once: the second since the last status need not be over.
        let expected = format!("\"echo.sent\":{}", round * 2048);
        let line = eventually(SOON, "the counters were not told", || {
            daemon
                .log()
                .lines()
                .find(|line| line.contains(COUNTERS) && line.contains(&expected))
                .map(ToOwned::to_owned)
        });
        for field in ["\"echo.accepted\":1", "\"echo.open\":1", "\"echo.owed\":0"] {
            assert!(line.contains(field), "{line}");
        }
        daemon.notified(&format!(
            "STATUS=1 listener, 1 connection, {} KiB echoed",
            round * 2
        ));
    }
    assert_eq!(daemon.log().matches(COUNTERS).count(), 3);
    drop(client);
    assert!(daemon.stop().success());
}

#[test]
fn an_idle_daemon_feeds_the_watchdog_at_half_its_interval() {
    let mut daemon = Plan::new().environment("WATCHDOG_USEC", "400000").start();
    let fed = heard(&daemon, Duration::from_secs(3))
        .iter()
        .filter(|(_, message)| message == "WATCHDOG=1")
        .count();
    // Fifteen by the clock, seven at the whole interval; a busy host may make it fewer.
    assert!((9..=17).contains(&fed), "fed {fed} times in 3 s");
    assert!(daemon.stop().success());
}

#[test]
fn the_watchdog_is_fed_in_time_under_a_flood() {
    let interval = Duration::from_secs(2);
    let mut daemon = Plan::new().environment("WATCHDOG_USEC", "2000000").start();
    let over = Arc::new(AtomicBool::new(false));
    let flooders = flood(daemon.address(), 4, &over);
    let mut last = Instant::now();
    let messages = heard(&daemon, Duration::from_secs(6));
    over.store(true, Ordering::Relaxed);
    let mut fed = 0;
    for (at, message) in messages {
        if message == "WATCHDOG=1" {
            assert!(at - last < interval, "{:?} without food", at - last);
            last = at;
            fed += 1;
        }
    }
    assert!(fed >= 3, "fed {fed} times in 6 s");
    flooders
        .into_iter()
        .for_each(|flooder| flooder.join().unwrap());
    assert!(daemon.stop().success());
}

#[test]
fn the_watchdog_is_fed_during_a_drain() {
    let mut daemon = Plan::new()
        .config("[limits]\nstop-timeout = '3s'\n")
        .environment("WATCHDOG_USEC", "600000")
        .start();
    let client = stalled(&daemon);
    daemon.signal(Signal::TERM);
    daemon.notified("STOPPING=1");
    let fed = heard(&daemon, Duration::from_millis(2500))
        .iter()
        .filter(|(_, message)| message == "WATCHDOG=1")
        .count();
    assert!(fed >= 3, "fed {fed} times in 2.5 s");
    assert!(daemon.exited(SOON).success());
    drop(client);
}

#[test]
fn without_a_watchdog_of_ours_nothing_wakes_the_daemon() {
    let environments: [&[(&str, &str)]; 2] = [
        &[],
        // That of another process.
        &[("WATCHDOG_USEC", "200000"), ("WATCHDOG_PID", "1")],
    ];
    for environment in environments {
        let mut plan = Plan::new().config(ALONE);
        for (name, value) in environment {
            plan = plan.environment(name, value);
        }
        let mut daemon = plan.start();
        let idle = daemon.connect();
        ping(&idle, b"then silence");
        // The status of the connection is the last thing to do.
        daemon.notified("STATUS=1 listener, 1 connection, 12 B echoed");
        thread::sleep(Duration::from_millis(100));
        let before = daemon.wakeups();
        let messages = heard(&daemon, Duration::from_millis(1500));
        assert_eq!(daemon.wakeups() - before, 0);
        assert!(messages.is_empty(), "{messages:?}");
        assert!(daemon.stop().success());
    }
}

#[test]
fn an_abstract_address_works() {
    let name = format!("tcp-echo-it-notify-{}", std::process::id());
    let address = UnixAddress::from_abstract_name(&name).unwrap();
    let inbox = UnixDatagram::bind_addr(&address).unwrap();
    let (mut daemon, address) = start_under(&format!("@{name}"));
    assert!(next(&inbox, SOON).unwrap().starts_with("READY=1\n"));
    ping(connect(address), b"abstract");
    assert!(daemon.stop().success());
    let mut messages = std::iter::from_fn(|| next(&inbox, Duration::from_millis(10)));
    assert!(messages.any(|message| message.starts_with("STOPPING=1\n")));
}

#[test]
fn without_a_usable_manager_the_service_goes_on_and_logs_it_once() {
    for manager in ["/nonexistent/notify", "vsock:2:1234", "relative/path"] {
        let (mut daemon, address) = start_under(manager);
        let client = connect(address);
        ping(&client, b"alone");
        for round in 1..=3 {
            daemon.signal(Signal::HUP);
            eventually(SOON, "the reload was not told", || {
                (daemon.log().matches(" reloaded ").count() == round).then_some(())
            });
        }
        let before = daemon.wakeups();
        thread::sleep(Duration::from_millis(1500));
        // A few attempts, each later than the one before.
        let awake = daemon.wakeups() - before;
        assert!(awake < 20, "{awake} wake-ups in 1.5 s");
        ping(&client, b"still alone");
        drop(client);
        assert!(daemon.stop().success());
        let log = daemon.log();
        let told = log.matches("cannot reach the service manager").count();
        assert_eq!(told, 1, "{log}");
    }
}

#[test]
fn a_manager_that_does_not_read_holds_nothing_up_and_gets_the_messages_later() {
    let inbox = Inbox::new();
    inbox.fill();
    let (mut daemon, address) = start_under(inbox.address());
    let client = connect(address);
    ping(&client, b"unheard");
    daemon.signal(Signal::HUP);
    daemon.logged(" reloaded ");
    let (wakeups, ticks) = (daemon.wakeups(), daemon.ticks());
    thread::sleep(Duration::from_secs(2));
    let (wakeups, ticks) = (daemon.wakeups() - wakeups, daemon.ticks() - ticks);
    assert!(
        wakeups < 40 && ticks <= 10,
        "{wakeups} wake-ups, {ticks} ticks"
    );
    ping(&client, b"unheard still");
    // Now it reads: every change of state arrives, in order.
    let messages = std::iter::from_fn(|| inbox.next(SOON))
        .filter(|message| message != "FILL=1" && !message.starts_with("STATUS="))
        .take(3)
        .map(|message| message.split('\n').next().unwrap().to_owned())
        .collect::<Vec<_>>();
    assert_eq!(messages, ["READY=1", "RELOADING=1", "READY=1"]);
    drop(client);
    assert!(daemon.stop().success());
}

#[test]
fn a_manager_that_never_reads_does_not_delay_the_end_of_the_daemon() {
    let inbox = Inbox::new();
    inbox.fill();
    let (mut daemon, address) = start_under(inbox.address());
    ping(connect(address), b"unheard");
    let start = Instant::now();
    assert!(daemon.stop().success());
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_manager_that_comes_back_gets_what_it_missed() {
    let inbox = Inbox::new();
    let (mut daemon, _) = start_under(inbox.address());
    assert!(inbox.next(SOON).unwrap().starts_with("READY=1\n"));
    // As when the manager executes itself again.
    std::fs::remove_file(&inbox.path).unwrap();
    daemon.signal(Signal::HUP);
    daemon.logged("cannot reach the service manager");
    let again = UnixDatagram::bind(&inbox.path).unwrap();
    assert!(next(&again, SOON).unwrap().starts_with("RELOADING=1\n"));
    assert!(next(&again, SOON).unwrap().starts_with("READY=1\n"));
    assert!(daemon.stop().success());
}

/// Runs `tcp-echo reload` as the unit's `ExecReload=` does.
fn reload(main: Option<&str>, manager: Option<&str>) -> (Option<i32>, String) {
    let mut command = Command::new(program());
    command
        .arg("reload")
        .env_remove("MAINPID")
        .env_remove("NOTIFY_SOCKET");
    if let Some(main) = main {
        command.env("MAINPID", main);
    }
    if let Some(manager) = manager {
        command.env("NOTIFY_SOCKET", manager);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}

#[test]
fn the_reload_command_notifies_the_manager_before_the_daemon_acts() {
    let inbox = Inbox::new();
    let (mut daemon, _) = start_under(inbox.address());
    assert!(inbox.next(SOON).unwrap().starts_with("READY=1\n"));
    let pid = daemon.pid().as_raw_nonzero().to_string();
    // A daemon that is slow to act, so that the first message is that of the command.
    daemon.freeze();
    let before = monotonic();
    assert_eq!(
        reload(Some(&pid), Some(inbox.address())),
        (Some(0), String::new())
    );
    let told = inbox.next(SOON).unwrap();
    let (first, second) = told.split_once('\n').expect("two lines");
    assert_eq!(first, "RELOADING=1");
    let clock: u64 = value(second, "MONOTONIC_USEC").unwrap().parse().unwrap();
    assert!(before <= clock && clock <= monotonic());
    assert_eq!(inbox.next(Duration::from_millis(100)), None);
    daemon.thaw();
    assert!(inbox.next(SOON).unwrap().starts_with("RELOADING=1\n"));
    assert!(inbox.next(SOON).unwrap().starts_with("READY=1\n"));
    assert!(daemon.stop().success());
}

#[test]
fn the_reload_command_reloads_without_a_manager_and_reports_one_that_it_cannot_reach() {
    let mut daemon = Daemon::start();
    let pid = daemon.pid().as_raw_nonzero().to_string();
    assert_eq!(reload(Some(&pid), None), (Some(0), String::new()));
    daemon.notified("RELOADING=1");
    daemon.notified("READY=1");
    let full = Inbox::new();
    full.fill();
    for manager in ["/nonexistent/notify", "vsock:2:1", full.address()] {
        let (code, text) = reload(Some(&pid), Some(manager));
        assert_eq!(code, Some(0), "{manager}: {text}");
        assert!(
            text.contains("the service manager cannot be reached"),
            "{manager}: {text:?}"
        );
        daemon.notified("READY=1");
    }
    assert!(daemon.stop().success());
}

#[test]
fn the_reload_command_needs_a_process_to_send_the_signal_to() {
    let (code, text) = reload(None, None);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("MAINPID is not set") && text.contains("systemctl reload tcp-echo"));
    for nonsense in ["", "0", "1", "-1", "abc", "99999999999", "12 13"] {
        let (code, text) = reload(Some(nonsense), None);
        assert_eq!(code, Some(2), "{nonsense}: {text}");
        assert!(
            text.contains(&format!("MAINPID is {nonsense:?}")),
            "{nonsense}: {text}"
        );
    }
    let mut dead = Command::new("true").spawn().unwrap();
    let pid = dead.id().to_string();
    dead.wait().unwrap();
    let (code, text) = reload(Some(&pid), None);
    assert_eq!(code, Some(71), "{text}");
    assert!(
        text.contains(&pid)
            && text.contains(&io::Error::from_raw_os_error(libc::ESRCH).to_string()),
        "{text}"
    );
}

#[test]
fn a_passed_listener_alone_is_ready_too() {
    let socket = listener();
    let address = socket.local_addr().unwrap().to_string();
    let mut daemon = Plan::bare().pass(vec![socket.into()], "web").start();
    assert_eq!(daemon.listen, [address]);
    assert!(daemon.stop().success());
}
