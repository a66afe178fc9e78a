//! A crash between any two system calls loses nobody who was kept, and makes no wrong byte.
//!
//! strace(1) kills the daemon on its way into the n-th call of a kind: all before it is done, that
//! call is not.  As every kind that matters has its row, the crash behind a call is the one before
//! the next.  For n = 1, 2, 3, … until daemons get through the whole scene, a victim takes over,
//! works and dies; then an ordinary successor takes over, and every byte is checked.
//!
//! Some of the clients read slowly through a small window, so that writes are short and backlogs
//! are owed.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use tcp_echo::log::events::id;

use crate::daemon::{SOON, Tape, connect_with_buffers, has, ping};
use crate::load::{Load, Talk};
use crate::manager::Manager;

/// A message id; what it stands for is the catalog's business.
const PREDECESSOR_DROPPED: &str = id("PREDECESSOR_DROPPED");

/// What the victims do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    /// They have no predecessor, and get their first clients.
    Begin,
    /// They echo for those whom they adopted.
    Echo,
    /// They get new clients and pack them.
    Pack,
    /// Most of those whom they adopt are dead: the parcel is renewed.
    Renew,
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
    &["recvfrom", "sendto", "?epoll_wait", "epoll_ctl"],
    9,
)];

/// A crash while a predecessor's connections are adopted.
const RECOVERY: &[Row] = &[(
    Scene::Echo,
    &["recvmsg", "getsockopt", "ioctl", "setsockopt"],
    8,
)];

/// A crash while connections are packed.
const PACKING: &[Row] = &[
    (
        Scene::Begin,
        &["memfd_create", "ftruncate", "socketpair", "sendmsg"],
        6,
    ),
    (Scene::Pack, &["sendmsg", "sendto"], 6),
];

/// A crash while a parcel is renewed.
const RENEWAL: &[Row] = &[(
    Scene::Renew,
    &["sendmsg", "socketpair", "shutdown", "close"],
    3,
)];

/// A crash at the end.
const ENDING: &[Row] = &[
    (Scene::HandOver, &["sendmsg", "sendto", "close"], 4),
    (Scene::Stop, &["sendto", "shutdown"], 4),
];

/// The most n that are tried: a row that goes on for ever is a mistake.
const MOST: usize = 400;

/// Clients who come while the victim lives, and those who are dead when it comes.
const YOUNG: usize = 3;
const MAYFLIES: usize = 72;

/// Between two requests to the victim, and before the first.
const ASK: Duration = Duration::from_millis(30);

/// Bytes that each client sends and gets back with each daemon.
const ROUND: u64 = 12_000;

/// Bytes that a slow reader reads with each daemon, and with each look.
const SLOW_ROUND: usize = 30_000;
const SLOW_LOOK: usize = 3000;

/// Whether a daemon can be killed at a system call here.
fn can_kill() -> bool {
    static POSSIBLE: OnceLock<bool> = OnceLock::new();
    *POSSIBLE.get_or_init(|| {
        has("strace") && {
            let tried = Command::new("strace")
                .args(["-D", "-f", "-q", "-o", "/dev/null"])
                .args(["-e", "trace=?epoll_wait,exit_group"])
                .args(["-e", "inject=?epoll_wait,exit_group:signal=SIGKILL:when=1"])
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

/// A client that never reads as much as it might: it is always owed something.
struct Slow {
    stream: TcpStream,
    said: Tape,
    heard: Tape,
    goal: usize,
    /// Whether there was an end.
    ended: bool,
}

impl Slow {
    fn new(address: SocketAddr, seed: u64) -> Self {
        let stream = connect_with_buffers(address, 4096, 32 * 1024);
        let mut said = Tape::new(seed);
        said.fill(&stream);
        stream.set_nonblocking(true).unwrap();
        Self {
            stream,
            said,
            heard: Tape::new(seed),
            goal: 0,
            ended: false,
        }
    }

    /// Reads a little and writes what it may; says whether it has enough for now.
    fn look(&mut self) -> bool {
        let left = self.goal.saturating_sub(self.heard.position());
        if left > 0 && !self.ended {
            match self.heard.read(&self.stream, left.min(SLOW_LOOK)) {
                Ok(0) => self.ended = true,
                Ok(_) => {}
                Err(error) => self.ended = error.kind() != std::io::ErrorKind::WouldBlock,
            }
            let _ = self.said.send(&self.stream, 1 << 20);
        }
        self.ended || self.heard.position() >= self.goal
    }
}

/// Those who are kept.
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

    /// Everybody wants some more from now on.
    fn want_more(&mut self) {
        for key in 0..self.load.clients.len() {
            let talk = Talk {
                goal: self.load.clients[key].sent + ROUND,
                // A ping-pong, a stream, and two floods.
                window: [700, 5000, u64::MAX, u64::MAX][key],
                reads: true,
            };
            self.load.log_one(key, talk);
        }
        for slow in &mut self.slow {
            slow.goal = slow.heard.position() + SLOW_ROUND;
        }
    }

    /// Everybody wants to hear all that is left, and the end.
    fn want_the_rest(&mut self) {
        self.load.wind_up();
        for slow in &mut self.slow {
            slow.goal = usize::MAX;
        }
    }

    /// Runs until something is the case; it is told whether everybody has what it wants.  False:
    /// it never was.
    fn run_until(&mut self, mut over: impl FnMut(bool) -> bool) -> bool {
        let Self { load, slow } = self;
        load.run(SOON, |load| {
            // All of them look, not only the first who is not content.
            let content = slow.iter_mut().filter_map(|slow| slow.look().then_some(()));
            let all = content.count() == slow.len();
            over(all && load.is_finished())
        })
    }

    /// Runs until everybody has what it wants.
    #[track_caller]
    fn run(&mut self) {
        assert!(self.run_until(|served| served), "clients wait in vain");
    }

    /// Nobody was dropped, and everybody has what it wanted.
    #[track_caller]
    fn are_well(&self) {
        for client in &self.load.clients {
            assert!(client.end.is_none(), "a client was dropped: {client:?}");
            assert!(client.received >= client.talk.goal, "{client:?}");
        }
        for slow in &self.slow {
            let at = slow.heard.position();
            assert!(!slow.ended, "a slow reader was dropped at {at}");
            assert!(at >= slow.goal, "a slow reader is at {at} of {}", slow.goal);
        }
    }
}

/// A service under whose daemons death walks.
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

    /// Its first clients, kept.
    #[track_caller]
    fn settle(&mut self) {
        let clients = Clients::new(self.manager.address());
        self.manager
            .says(&format!(" {} connections, ", clients.count()));
        self.manager.keeps(clients.count());
        self.clients = Some(clients);
    }

    /// The next daemon dies on its way into the n-th such call.
    fn doom(&mut self, call: &str, n: usize) {
        self.manager
            .inject(call, &format!("signal=SIGKILL:when={n}"));
    }

    /// One victim and its successor; says whether the victim got through the scene.
    #[track_caller]
    fn play(&mut self, scene: Scene, call: &str, n: usize) -> bool {
        let clients = self.prepare(scene, n);
        let before = self.manager.names();
        self.doom(call, n);
        self.manager.launch();
        self.manager.under(&[]);
        let (clients, young) = self.victim(scene, clients, &before);
        let through = match scene {
            Scene::HandOver | Scene::Stop => self.manager.ended().success(),
            _ if self.manager.is_running() => {
                self.manager.kill();
                true
            }
            _ => {
                self.manager.died();
                false
            }
        };
        self.manager.start();
        ping(self.manager.connect(), b"a new one");
        if let Some(mut young) = young {
            let finished = young.run(SOON, Load::is_finished);
            assert!(finished, "young clients wait in vain");
            // They may be lost if nobody had promised to keep them, but not cheated.
            let verdict = if through {
                young.verdict()
            } else {
                young.honest()
            };
            verdict.unwrap_or_else(|verdict| panic!("the young: {verdict}"));
        }
        if let Some(mut clients) = clients {
            for _ in 0..2 {
                clients.run();
                clients.are_well();
                clients.want_more();
            }
            self.clients = Some(clients);
        } else {
            self.settle();
        }
        self.manager.one_of_each();
        through
    }

    /// Makes the state in which the victim begins, and ends its predecessor.
    #[track_caller]
    fn prepare(&mut self, scene: Scene, n: usize) -> Option<Clients> {
        let manager = &mut self.manager;
        let mut clients = self.clients.take();
        if scene == Scene::Begin {
            // Nobody is there, nothing is kept.
            clients = None;
            manager.kill();
            manager.drop_all("preserve-");
            return clients;
        }
        let mut mayflies = Vec::new();
        if scene == Scene::Renew {
            let living = clients.as_ref().map_or(0, Clients::count);
            mayflies.extend((0..MAYFLIES).map(|_| manager.connect()));
            mayflies.iter().for_each(|client| ping(client, b"hello"));
            manager.keeps(living + MAYFLIES);
        }
        // The victim may learn what its predecessor knew, or has to find out.
        if n % 2 == 0 {
            manager.hand_over();
        } else {
            manager.kill();
        }
        clients
    }

    /// What happens while the victim lives, which may be short: who is there works, and so may
    /// some who come now.  Returns them.
    #[track_caller]
    fn victim(
        &mut self,
        scene: Scene,
        mut clients: Option<Clients>,
        before: &[String],
    ) -> (Option<Clients>, Option<Load>) {
        let manager = &mut self.manager;
        let comes = matches!(scene, Scene::Begin | Scene::Pack | Scene::HandOver);
        let mut young = comes.then(|| Load::connect(manager.address(), YOUNG, Talk::bytes(ROUND)));
        if let Some(clients) = &mut clients {
            clients.want_more();
            if scene == Scene::Stop {
                clients.want_the_rest();
            }
        }
        let kept = clients.as_ref().map_or(0, Clients::count) + YOUNG;
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
                Scene::Begin | Scene::Pack => message.contains(&kept),
                Scene::Renew => manager.names().len() == 3 && manager.names() != before,
                Scene::Echo => true,
                Scene::HandOver | Scene::Stop => false,
            };
            if ready && asked.elapsed() > ASK {
                asked = Instant::now();
                match scene {
                    Scene::HandOver => manager.daemon().signal(Signal::USR2),
                    Scene::Stop => manager.daemon().signal(Signal::TERM),
                    // The status is wanted sooner than in a second.
                    Scene::Begin | Scene::Pack => manager.daemon().signal(Signal::USR1),
                    Scene::Echo | Scene::Renew => {}
                }
                ready = !matches!(scene, Scene::HandOver | Scene::Stop);
            }
            over && served
        };
        let in_time = match (&mut clients, &mut young) {
            (Some(clients), Some(young)) => clients.run_until(|served| {
                young.run(Duration::from_millis(1), Load::is_finished);
                step(served)
            }),
            (Some(clients), None) => clients.run_until(step),
            (None, Some(young)) => young.run(SOON, |load| step(load.is_finished())),
            (None, None) => unreachable!("somebody is there"),
        };
        assert!(in_time, "the scene has no end");
        if scene == Scene::Stop {
            // Let go, or cut off; not cheated.
            if let Some(clients) = clients.take() {
                clients.load.honest().unwrap();
            }
        }
        (clients, young)
    }
}

/// Plays rows to their ends.
#[track_caller]
fn play(rows: &[Row]) {
    if !can_kill() {
        return;
    }
    for (scene, calls, dense) in rows {
        let mut stage = Stage::new();
        for call in *calls {
            let (mut n, mut played, mut through) = (1, 0, 0);
            // Twice: one may have had it easy, when the clients were slow or fast enough.
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
fn a_crash_between_any_two_calls_of_the_packing_loses_nobody_who_was_kept() {
    play(PACKING);
}

#[test]
fn a_crash_between_any_two_calls_of_a_renewal_loses_nothing() {
    play(RENEWAL);
}

#[test]
fn a_crash_between_any_two_calls_of_the_end_loses_nobody_who_is_to_be_kept() {
    play(ENDING);
}

#[test]
fn after_a_hundred_crashes_in_a_row_everybody_is_let_go() {
    if !can_kill() {
        return;
    }
    let mut manager = Manager::new();
    manager.start();
    let mut idle = Load::connect(manager.address(), 4, Talk::bytes(100));
    idle.finish(SOON).unwrap();
    manager.keeps(4);
    manager.kill();
    let mut stage = Stage {
        manager,
        clients: None,
    };
    for _ in 0..100 {
        // Adopted, but never a full round.
        stage.doom("?epoll_wait,?epoll_pwait", 1);
        stage.manager.launch();
        stage.manager.died();
    }
    stage.manager.under(&[]);
    stage.manager.start();
    let told = stage.manager.event(PREDECESSOR_DROPPED);
    assert!(told["echo.reason"].is_string(), "{told}");
    idle.emit(Talk::bytes(1000));
    assert!(idle.run(SOON, Load::is_finished), "they wait in vain");
    idle.honest().unwrap();
    assert_eq!(idle.count(|client| client.end.is_some()), 4);
    // And the service is as good as new.
    let client = stage.manager.connect();
    ping(&client, b"hello");
    stage.manager.says("1 connection, ");
    stage.manager.keeps(1);
    stage.manager.kill();
    stage.manager.start();
    ping(&client, b"still here");
}
