//! A crash between any two system calls loses no preserved connection, and makes no wrong byte.
//!
//! strace(1) kills the daemon on its way into the n-th call of a kind: everything before it is done, that
//! call is not.  As every kind that matters has a row, the crash behind a call is the one before the
//! next call.  For n = 1, 2, 3, … until a daemon gets through the whole scene, a daemon (the *victim*)
//! goes on with the connections, serves and is killed; then an ordinary daemon goes on with them, and
//! every byte is checked.
//!
//! Some of the clients read slowly through a small window, so that writes are short and output is
//! pending.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tcp_echo::log::events::id;
use testkit::load::{Load, Talk};
use testkit::manager::Manager;
use testkit::{SOON, Tape, connect_with_buffers, has, ping};

/// A message id; what it stands for is the catalog's business.
const PREDECESSOR_DROPPED: &str = id("PREDECESSOR_DROPPED");

/// What the victims do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    /// They find nothing to restore, and get their first clients.
    Begin,
    /// They echo for the clients of restored connections.
    Echo,
    /// They get new clients and preserve their connections.
    Preserve,
    /// Most of the connections that they restore are over: the descriptor queue is rotated.
    Rotate,
    /// They hand over.
    HandOver,
    /// They stop.
    Stop,
}

/// A scene, the calls at which its victims die, and the n up to which each n is tried; beyond, the
/// steps grow.
type Row = (Scene, &'static [&'static str], usize);

/// A crash in the middle of the data path.
const ECHO: &[Row] = &[(
    Scene::Echo,
    &["recvfrom", "sendto", "epoll_pwait", "epoll_ctl"],
    9,
)];

/// A crash while connections are restored.
const RECOVERY: &[Row] = &[(
    Scene::Echo,
    &["recvmsg", "getsockopt", "ioctl", "setsockopt"],
    8,
)];

/// A crash while connections are preserved.
const PRESERVATION: &[Row] = &[
    (
        Scene::Begin,
        &["memfd_create", "ftruncate", "socketpair", "sendmsg"],
        6,
    ),
    (Scene::Preserve, &["sendmsg", "sendto"], 6),
];

/// A crash while the descriptor queue is rotated, which in a debug build takes several slices.
const ROTATION: &[Row] = &[
    (Scene::Rotate, &["sendmsg"], 12),
    (Scene::Rotate, &["socketpair", "shutdown", "close"], 3),
];

/// A crash at the end.
const ENDING: &[Row] = &[
    (Scene::HandOver, &["sendmsg", "sendto", "close"], 4),
    (Scene::Stop, &["sendto", "shutdown"], 4),
];

/// The largest n that is tried: a row without an end is a mistake.
const MOST: usize = 400;

/// Clients that connect to the victim, and those that are gone when it starts.
const NEW: usize = 3;
const SHORT_LIVED: usize = 72;

/// The time before each request to the victim.
const ASK: Duration = Duration::from_millis(30);

/// Bytes that each client sends and gets back with each daemon.
const ROUND: u64 = 12_000;

/// The bytes that a slow reader reads with each daemon, and at once.
const SLOW_ROUND: usize = 30_000;
const SLOW_LOOK: usize = 3000;

/// Whether a daemon can be killed at a system call here.
fn can_kill() -> bool {
    static POSSIBLE: OnceLock<bool> = OnceLock::new();
    *POSSIBLE.get_or_init(|| {
        has("strace") && {
            let tried = Command::new("strace")
                .args(["-D", "-f", "-q", "-o", "/dev/null"])
                .args(["-e", "trace=epoll_pwait,exit_group"])
                .args(["-e", "inject=epoll_pwait,exit_group:signal=SIGKILL:when=1"])
                .arg("true")
                .status();
            let possible = tried.is_ok_and(|status| status.signal() == Some(9));
            if !possible {
                eprintln!("skipped: strace cannot kill at a system call here");
            }
            possible
        }
    })
}

/// A client that never reads all that it could, so that it is always owed something.
struct Slow {
    stream: TcpStream,
    sent: Tape,
    received: Tape,
    goal: usize,
    /// Whether there was an end.
    ended: bool,
}

impl Slow {
    fn new(address: SocketAddr, seed: u64) -> Self {
        let stream = connect_with_buffers(address, 4096, 32 * 1024);
        let mut sent = Tape::new(seed);
        sent.fill(&stream);
        stream.set_nonblocking(true).unwrap();
        Self {
            stream,
            sent,
            received: Tape::new(seed),
            goal: 0,
            ended: false,
        }
    }

    /// Reads a little and writes what fits; returns whether it has read enough for now.
    fn look(&mut self) -> bool {
        let left = self.goal.saturating_sub(self.received.position());
        if left > 0 && !self.ended {
            match self.received.read(&self.stream, left.min(SLOW_LOOK)) {
                Ok(0) => self.ended = true,
                Ok(_) => {}
                Err(error) => self.ended = error.kind() != std::io::ErrorKind::WouldBlock,
            }
            let _ = self.sent.send(&self.stream, 1 << 20);
        }
        self.ended || self.received.position() >= self.goal
    }
}

/// The clients of preserved connections.
struct Clients {
    load: Load,
    slow: Vec<Slow>,
}

impl Clients {
    fn new(address: SocketAddr) -> Self {
        let slow = (0..2).map(|seed| Slow::new(address, seed)).collect();
        let mut load = Load::connect(address, 4, Talk::bytes(100));
        load.finish(SOON).unwrap();
        Self { load, slow }
    }

    fn count(&self) -> usize {
        self.load.clients.len() + self.slow.len()
    }

    /// Raises the goal of every client.
    fn want_more(&mut self) {
        for key in 0..self.load.clients.len() {
            let talk = Talk {
                goal: self.load.clients[key].sent + ROUND,
                // A ping-pong, a stream, and two floods.
                window: [700, 5000, u64::MAX, u64::MAX][key],
                reads: true,
            };
            self.load.set_talk(key, talk);
        }
        for slow in &mut self.slow {
            slow.goal = slow.received.position() + SLOW_ROUND;
        }
    }

    /// Sets the goal of every client to all that remains, and the end.
    fn want_all(&mut self) {
        self.load.read_all();
        for slow in &mut self.slow {
            slow.goal = usize::MAX;
        }
    }

    /// Runs until `over` returns true, which gets whether every client has reached its goal.  False: it
    /// never has.
    fn run_until(&mut self, mut over: impl FnMut(bool) -> bool) -> bool {
        let Self { load, slow } = self;
        load.run(SOON, |load| {
            // Each of them reads, also behind one that has not reached its goal.
            let content = slow.iter_mut().filter_map(|slow| slow.look().then_some(()));
            let all = content.count() == slow.len();
            over(all && load.is_finished())
        })
    }

    /// Runs until every client has reached its goal.
    #[track_caller]
    fn run(&mut self) {
        assert!(self.run_until(|served| served), "clients wait in vain");
    }

    /// Asserts that no client was dropped, and that each has reached its goal.
    #[track_caller]
    fn are_served(&self) {
        for client in &self.load.clients {
            assert!(client.end.is_none(), "a client was dropped: {client:?}");
            assert!(client.received >= client.talk.goal, "{client:?}");
        }
        for slow in &self.slow {
            let at = slow.received.position();
            assert!(!slow.ended, "a slow reader was dropped at {at}");
            assert!(at >= slow.goal, "a slow reader is at {at} of {}", slow.goal);
        }
    }
}

/// A service with daemons that are killed.
struct Stage {
    manager: Manager,
    clients: Option<Clients>,
}

impl Stage {
    fn new() -> Self {
        let mut stage = Self {
            manager: Manager::new(),
            clients: None,
        };
        stage.manager.start();
        stage.settle();
        stage
    }

    /// Connects its first clients, and waits until they are preserved.
    #[track_caller]
    fn settle(&mut self) {
        let clients = Clients::new(self.manager.address());
        self.manager
            .status_has(&format!(" {} connections, ", clients.count()));
        self.manager.preserves(clients.count());
        self.clients = Some(clients);
    }

    /// Lets the next daemon be killed on its way into the n-th such call.
    fn kill_at(&mut self, call: &str, n: usize) {
        self.manager
            .inject(call, &format!("signal=SIGKILL:when={n}"));
    }

    /// Plays a scene with one victim and the daemon after it; returns whether the victim got through.
    #[track_caller]
    fn play(&mut self, scene: Scene, call: &str, n: usize) -> bool {
        let clients = self.prepare(scene, n);
        let before = self.manager.names();
        self.kill_at(call, n);
        self.manager.launch();
        self.manager.under(&[]);
        let (clients, newcomers) = self.victim(scene, clients, &before);
        let through = match scene {
            Scene::HandOver | Scene::Stop => self.manager.ended().success(),
            _ if self.manager.is_running() => {
                self.manager.kill();
                true
            }
            _ => {
                self.manager.was_killed();
                false
            }
        };
        self.manager.start();
        ping(self.manager.connect(), b"a new one");
        if let Some(mut newcomers) = newcomers {
            let finished = newcomers.run(SOON, Load::is_finished);
            assert!(finished, "new clients wait in vain");
            // They may be lost if no status had said that they are preserved, but get no wrong byte.
            let verdict = if through {
                newcomers.verdict()
            } else {
                newcomers.no_wrong_byte()
            };
            verdict.unwrap_or_else(|verdict| panic!("new clients: {verdict}"));
        }
        if let Some(mut clients) = clients {
            for _ in 0..2 {
                clients.run();
                clients.are_served();
                clients.want_more();
            }
            self.clients = Some(clients);
        } else {
            self.settle();
        }
        self.manager.one_of_each();
        through
    }

    /// Makes the state in which the victim starts, and ends the daemon before it.
    #[track_caller]
    fn prepare(&mut self, scene: Scene, n: usize) -> Option<Clients> {
        let manager = &mut self.manager;
        let mut clients = self.clients.take();
        if scene == Scene::Begin {
            // There are no clients, and nothing is stored.
            clients = None;
            manager.kill();
            manager.drop_all("preserve-");
            return clients;
        }
        let mut short_lived = Vec::new();
        if scene == Scene::Rotate {
            let living = clients.as_ref().map_or(0, Clients::count);
            short_lived.extend((0..SHORT_LIVED).map(|_| manager.connect()));
            short_lived.iter().for_each(|client| ping(client, b"hello"));
            manager.preserves(living + SHORT_LIVED);
        }
        // The victim gets the positions of a hand-over, or has to recover them after a crash.
        if n % 2 == 0 {
            manager.hand_over();
        } else {
            manager.kill();
        }
        clients
    }

    /// Lets the clients work while the victim runs, which may be short, with new ones if the scene has
    /// them.  Returns both.
    #[track_caller]
    fn victim(
        &mut self,
        scene: Scene,
        mut clients: Option<Clients>,
        before: &[String],
    ) -> (Option<Clients>, Option<Load>) {
        let manager = &mut self.manager;
        let comes = matches!(scene, Scene::Begin | Scene::Preserve | Scene::HandOver);
        let mut newcomers =
            comes.then(|| Load::connect(manager.address(), NEW, Talk::bytes(ROUND)));
        if let Some(clients) = &mut clients {
            clients.want_more();
            if scene == Scene::Stop {
                clients.want_all();
            }
        }
        let kept = clients.as_ref().map_or(0, Clients::count) + NEW;
        let kept = format!("; {kept} connections preserved");
        let (mut ready, mut asked, mut over) = (false, Instant::now(), false);
        let mut step = |served: bool| {
            if !manager.is_running() {
                return true;
            }
            let message = manager.notified_within("", Duration::ZERO);
            let message = message.unwrap_or_default();
            ready |= message.starts_with("READY=1");
            over |= match scene {
                Scene::Begin | Scene::Preserve => message.contains(&kept),
                Scene::Rotate => manager.names().len() == 3 && manager.names() != before,
                Scene::Echo => true,
                Scene::HandOver | Scene::Stop => false,
            };
            if ready && asked.elapsed() > ASK {
                asked = Instant::now();
                match scene {
                    Scene::HandOver => manager.daemon().signal(Signal::USR2),
                    Scene::Stop => manager.daemon().signal(Signal::TERM),
                    // For a status before the second is over.
                    Scene::Begin | Scene::Preserve => manager.daemon().signal(Signal::USR1),
                    Scene::Echo | Scene::Rotate => {}
                }
                ready = !matches!(scene, Scene::HandOver | Scene::Stop);
            }
            over && served
        };
        let in_time = match (&mut clients, &mut newcomers) {
            (Some(clients), Some(newcomers)) => clients.run_until(|served| {
                newcomers.run(Duration::from_millis(1), Load::is_finished);
                step(served)
            }),
            (Some(clients), None) => clients.run_until(step),
            (None, Some(newcomers)) => newcomers.run(SOON, |load| step(load.is_finished())),
            (None, None) => unreachable!("every scene has clients"),
        };
        assert!(in_time, "the scene has no end");
        if scene == Scene::Stop {
            // They get a FIN or a reset, and no wrong byte.
            if let Some(clients) = clients.take() {
                clients.load.no_wrong_byte().unwrap();
            }
        }
        (clients, newcomers)
    }
}

/// Plays all rows.
#[track_caller]
fn play(rows: &[Row]) {
    if !can_kill() {
        return;
    }
    for (scene, calls, dense) in rows {
        let mut stage = Stage::new();
        for call in *calls {
            let (mut n, mut played, mut through) = (1, 0, 0);
            // Two victims: one may get through because of the pace of the clients.
            while through < 2 {
                eprintln!("{scene:?}: death at {call} number {n}");
                played += 1;
                if stage.play(*scene, call, n) {
                    through += 1;
                } else {
                    through = 0;
                }
                n += 1 + n.saturating_sub(*dense) / 2;
                assert!(n < MOST, "{scene:?} has no end of {call}");
            }
            eprintln!("{scene:?}: {played} victims at {call}");
        }
    }
}

#[test]
fn a_crash_between_any_two_calls_of_the_data_path_loses_nothing() {
    play(ECHO);
}

#[test]
fn a_crash_between_any_two_calls_of_the_recovery_loses_nothing() {
    play(RECOVERY);
}

#[test]
fn a_crash_between_any_two_calls_of_preserving_loses_no_preserved_connection() {
    play(PRESERVATION);
}

#[test]
fn a_crash_between_any_two_calls_of_a_rotation_loses_nothing() {
    play(ROTATION);
}

#[test]
fn a_crash_between_any_two_calls_of_the_end_loses_no_preserved_connection() {
    play(ENDING);
}

#[test]
fn after_a_hundred_crashes_in_a_row_every_connection_is_closed() {
    if !can_kill() {
        return;
    }
    let mut manager = Manager::new();
    manager.start();
    let mut idle = Load::connect(manager.address(), 4, Talk::bytes(100));
    idle.finish(SOON).unwrap();
    manager.preserves(4);
    manager.kill();
    let mut stage = Stage {
        manager,
        clients: None,
    };
    for _ in 0..100 {
        // Restored, but never for a full round.
        stage.kill_at("epoll_pwait", 1);
        stage.manager.launch();
        stage.manager.was_killed();
    }
    stage.manager.under(&[]);
    stage.manager.start();
    let told = stage.manager.event(PREDECESSOR_DROPPED);
    assert!(told["echo.reason"].is_string(), "{told}");
    idle.set_all(Talk::bytes(1000));
    assert!(idle.run(SOON, Load::is_finished), "they wait in vain");
    idle.no_wrong_byte().unwrap();
    assert_eq!(idle.count(|client| client.end.is_some()), 4);
    // The service works as after a first start.
    let client = stage.manager.connect();
    ping(&client, b"hello");
    stage.manager.status_has("1 connection, ");
    stage.manager.preserves(1);
    stage.manager.kill();
    stage.manager.start();
    ping(&client, b"still here");
}
