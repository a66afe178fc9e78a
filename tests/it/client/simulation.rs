//! The pure part of `tcp-echo ping` on a scripted path: each verdict right where its fault is, and
//! none where it is not, in virtual time.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use tcp_echo::client::outcome::Class;
use tcp_echo::client::ping::finding::{Action, Finding};
use tcp_echo::client::ping::kernel::Cause;
use tcp_echo::client::ping::session::Session;
use tcp_echo::client::ping::{Pace, Plan};
use tcp_echo::client::target::Place;
use tcp_echo::sys::tcp_info::{TcpInfo, field};

const MS: Duration = Duration::from_millis(1);

/// What becomes of an attempt to connect.
#[derive(Clone, Copy, Debug)]
enum Answer {
    After(Duration),
    Error(Duration, i32),
    Never,
}

/// What a path does to the bytes of a connection, counted from its beginning.
#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// Bytes of a range are changed.
    Flip(u64),
    /// So many bytes at this place are left out.
    Lose(u64, u64),
    /// So many bytes at this place come twice.
    Repeat(u64, u64),
    /// Two pieces of so many bytes change places.
    Displace(u64, u64),
    /// From here on nothing comes back.
    Stall(u64),
    /// What comes from here on is held up for so long.
    Hold(u64, Duration),
    /// Here the stream ends.
    Fin(u64),
    /// Here the connection is reset.
    Reset(u64),
}

/// A path: its round trip is `rtt`, and up to `spread` more.
#[derive(Clone, Debug)]
struct Path {
    answers: Vec<Answer>,
    rtt: Duration,
    spread: Duration,
    /// The faults of the connections, in the order in which they are made; then there is none.
    faults: Vec<Fault>,
    info: Option<TcpInfo>,
}

impl Path {
    fn good() -> Self {
        Self {
            answers: vec![Answer::After(MS * 3)],
            rtt: MS * 10,
            spread: MS * 5,
            faults: Vec::new(),
            info: None,
        }
    }

    fn with(fault: Fault) -> Self {
        Self {
            faults: vec![fault],
            ..Self::good()
        }
    }

    fn answering(answer: Answer) -> Self {
        Self {
            answers: vec![answer],
            ..Self::good()
        }
    }
}

enum Event {
    Connected,
    Failed(i32),
    Bytes(Vec<u8>),
    Ended(Option<i32>),
}

/// A connection as the path sees it.
struct Wire {
    generation: usize,
    fault: Fault,
    /// Bytes that were sent on it.
    sent: Vec<u8>,
    /// Bytes that were given to the way back.
    passed: u64,
    /// Nothing arrives before this.
    free: Duration,
}

struct World {
    path: Path,
    attempts: usize,
    connections: usize,
    wires: Vec<Wire>,
    events: BTreeMap<(Duration, u64), (usize, usize, Event)>,
    sequence: u64,
    random: u64,
}

impl World {
    fn at(&mut self, time: Duration, number: usize, event: Event) {
        self.sequence += 1;
        let generation = self.wires[number].generation;
        self.events
            .insert((time, self.sequence), (number, generation, event));
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below.max(1)
    }

    fn connect(&mut self, number: usize, now: Duration) {
        let wire = &mut self.wires[number];
        wire.generation += 1;
        wire.sent.clear();
        wire.passed = 0;
        wire.free = now;
        wire.fault = Fault::None;
        let answers = &self.path.answers;
        let answer = answers[self.attempts.min(answers.len() - 1)];
        self.attempts += 1;
        match answer {
            Answer::After(span) => {
                let fault = self.path.faults.get(self.connections).copied();
                self.wires[number].fault = fault.unwrap_or(Fault::None);
                self.connections += 1;
                self.at(now + span, number, Event::Connected);
            }
            Answer::Error(span, errno) => self.at(now + span, number, Event::Failed(errno)),
            Answer::Never => {}
        }
    }

    /// Sends what was written back, as far as the fault of the connection lets it.
    fn write(&mut self, number: usize, bytes: &[u8], now: Duration) {
        let spread = u64::try_from(self.path.spread.as_nanos()).unwrap();
        let extra = Duration::from_nanos(self.random(spread + 1));
        let wire = &mut self.wires[number];
        wire.sent.extend(bytes);
        let mut arrival = now + self.path.rtt + extra;
        let mut end = wire.sent.len() as u64;
        let mut last = None;
        match wire.fault {
            Fault::Stall(at) => end = end.min(at),
            Fault::Hold(at, span) if end > at && wire.passed <= at => arrival += span,
            Fault::Fin(at) if end >= at => (end, last) = (at, Some(Event::Ended(None))),
            Fault::Reset(at) if end >= at => {
                (end, last) = (at, Some(Event::Ended(Some(libc::ECONNRESET))));
            }
            // Whole, so that it is seen what the pieces are.
            Fault::Lose(at, span) | Fault::Repeat(at, span) if end < at + span && end > at => {
                return;
            }
            Fault::Displace(at, span) if end < at + 2 * span && end > at => return,
            _ => {}
        }
        if end < wire.passed || (end == wire.passed && last.is_none()) {
            return;
        }
        let range = wire.passed as usize..end as usize;
        let mut piece = wire.sent[range.clone()].to_vec();
        let inside = |at: u64| {
            (at as usize)
                .checked_sub(range.start)
                .filter(|at| *at < piece.len())
        };
        match wire.fault {
            Fault::Flip(at) => {
                if let Some(at) = inside(at) {
                    piece[at] ^= 1;
                }
            }
            Fault::Lose(at, span) => {
                if let Some(at) = inside(at) {
                    piece.drain(at..at + span as usize);
                }
            }
            Fault::Repeat(at, span) => {
                if let Some(at) = inside(at) {
                    let again = piece[at..at + span as usize].to_vec();
                    piece.splice(at..at, again);
                }
            }
            Fault::Displace(at, span) => {
                if let Some(at) = inside(at) {
                    piece[at..at + 2 * span as usize].rotate_left(span as usize);
                }
            }
            _ => {}
        }
        wire.passed = end;
        // A stream keeps its order.
        arrival = arrival.max(wire.free);
        wire.free = arrival;
        // However the segments are cut.
        let cut = self.random(piece.len() as u64 + 1) as usize;
        let rest = piece.split_off(cut);
        for part in [piece, rest].into_iter().filter(|part| !part.is_empty()) {
            self.at(arrival, number, Event::Bytes(part));
        }
        if let Some(last) = last {
            self.at(arrival, number, last);
        }
    }
}

fn plan() -> Plan {
    Plan {
        size: 64,
        count: Some(20),
        pace: Pace::Every(MS * 100),
        deadline: None,
        timeout: MS * 2000,
        connections: 1,
        depth: 1000,
        reports: true,
    }
}

/// What a run left behind.
struct Outcome {
    session: Session,
    findings: Vec<Finding>,
    took: Duration,
}

impl Outcome {
    fn class(&self) -> Class {
        self.session.tally().class()
    }

    fn count(&self, is_it: impl Fn(&Finding) -> bool) -> usize {
        self.findings
            .iter()
            .filter(|finding| is_it(finding))
            .count()
    }
}

/// Runs a session on a path to its end; `stop` is when it is told to stop.
fn run(plan: &Plan, path: Path, seed: u64, stop: Option<Duration>) -> Outcome {
    let places: Vec<Place> = ["192.0.2.1:7", "192.0.2.2:7"]
        .iter()
        .map(|place| Place::Ip(place.parse().unwrap()))
        .collect();
    let mut session = Session::new(plan.clone(), places, seed, Duration::ZERO);
    let mut world = World {
        path,
        attempts: 0,
        connections: 0,
        wires: (0..plan.connections)
            .map(|_| Wire {
                generation: 0,
                fault: Fault::None,
                sent: Vec::new(),
                passed: 0,
                free: Duration::ZERO,
            })
            .collect(),
        events: BTreeMap::new(),
        sequence: 0,
        random: seed | 1,
    };
    let mut findings = Vec::new();
    let mut actions = Vec::new();
    let mut now = Duration::ZERO;
    let mut stop = stop;
    for _ in 0..200_000 {
        if stop.is_some_and(|stop| now >= stop) {
            stop = None;
            session.stop(now);
        }
        session.on_time(now, &mut actions);
        for action in std::mem::take(&mut actions) {
            match action {
                Action::Connect(number, _) => world.connect(number, now),
                Action::Look(number) => session.looked(number, now, world.path.info),
                Action::Close(number) => world.wires[number].generation += 1,
            }
        }
        while session.begin(now).is_some() {}
        for number in 0..plan.connections {
            loop {
                let mut buffer = [0; 100];
                let piece = session.piece(number, now, &mut buffer).to_vec();
                if piece.is_empty() {
                    break;
                }
                session.wrote(number, piece.len());
                world.write(number, &piece, now);
            }
        }
        if session.is_drained() {
            session.finish(now);
        }
        findings.extend(session.findings());
        if session.is_over() {
            // What is under way at the end is counted, and nothing else.
            let tally = session.tally();
            assert_eq!(session.in_flight(), 0);
            assert_eq!(tally.sent, tally.received + tally.missing);
            return Outcome {
                session,
                findings,
                took: now,
            };
        }
        let event = world.events.keys().next().map(|(time, _)| *time);
        let next = [event, session.wake(), stop].into_iter().flatten().min();
        now = now.max(next.expect("nothing will ever happen, and it is not over"));
        if event.is_some_and(|event| event <= now) {
            let (_, (number, generation, event)) = world.events.pop_first().unwrap();
            if world.wires[number].generation != generation {
                continue;
            }
            match event {
                Event::Connected => session.connected(number, now, world.path.info),
                Event::Failed(errno) => {
                    session.ended(number, now, Some(&io::Error::from_raw_os_error(errno)));
                }
                Event::Bytes(bytes) => session.received(number, now, &bytes, None),
                Event::Ended(errno) => {
                    let error = errno.map(io::Error::from_raw_os_error);
                    session.ended(number, now, error.as_ref());
                }
            }
        }
    }
    panic!("it does not end: {session:?}");
}

fn runs(path: &Path, check: impl Fn(&Outcome)) {
    for seed in 1..=20 {
        for connections in [1, 3] {
            let plan = Plan {
                connections,
                ..plan()
            };
            check(&run(&plan, path.clone(), seed, None));
        }
    }
}

#[test]
fn a_good_path_has_no_fault() {
    runs(&Path::good(), |outcome| {
        let tally = outcome.session.tally();
        assert_eq!(outcome.class(), Class::Ok, "{:?}", outcome.findings);
        assert_eq!((tally.sent, tally.received), (20, 20));
        assert_eq!(
            (tally.wrong, tally.missing, tally.late, tally.pauses),
            (0, 0, 0, 0)
        );
        let (min, max) = (tally.rtt.min().unwrap(), tally.rtt.max().unwrap());
        // An echo behind another one waits for it, and no longer.
        assert!(min >= MS * 10 && max <= MS * 15, "{min:?} {max:?}");
        assert_eq!(
            outcome.count(|finding| matches!(finding, Finding::Echo { .. })),
            20
        );
        assert!(outcome.took < MS * 2000, "{:?}", outcome.took);
    });
}

#[test]
fn what_keeps_a_connection_from_being_made_has_its_class() {
    for (answer, class) in [
        (Answer::Error(MS, libc::ECONNREFUSED), Class::Refused),
        (Answer::Error(MS, libc::EHOSTUNREACH), Class::Unreachable),
        (Answer::Error(MS * 3000, libc::ETIMEDOUT), Class::TimedOut),
        (Answer::Never, Class::TimedOut),
    ] {
        runs(&Path::answering(answer), |outcome| {
            assert_eq!(outcome.class(), class, "{answer:?}");
            assert_eq!(outcome.session.tally().sent, 0);
            // Both addresses were tried.
            assert_eq!(
                outcome.count(|finding| matches!(finding, Finding::Failed { .. })),
                2
            );
            assert!(outcome.took <= MS * 4000, "{:?}", outcome.took);
        });
    }
    // The second address is taken where the first one does not answer.
    let path = Path {
        answers: vec![Answer::Error(MS, libc::ENETUNREACH), Answer::After(MS)],
        ..Path::good()
    };
    runs(&path, |outcome| {
        assert_eq!(outcome.class(), Class::Ok);
        assert_eq!(outcome.session.place().to_string(), "192.0.2.2:7");
    });
}

#[test]
fn bytes_that_are_wrong_are_located() {
    for (fault, words) in [
        (Fault::Flip(200), "changed at 200"),
        (Fault::Lose(128, 64), "64 bytes missing at 128"),
        (Fault::Repeat(128, 64), "come again at 192"),
        (Fault::Displace(128, 64), "64 bytes missing at 128"),
    ] {
        let only = Plan {
            size: 320,
            ..plan()
        };
        for seed in 1..=20 {
            let outcome = run(&only, Path::with(fault), seed, None);
            assert_eq!(outcome.class(), Class::Wrong, "{fault:?}");
            let found = outcome.findings.iter().find_map(|finding| match finding {
                Finding::Wrong { what, .. } => Some(what.join("; ")),
                _ => None,
            });
            let found = found.unwrap();
            // The beginning of a piece may already be out when its rest is seen to be wrong.
            assert!(found.contains(words), "{fault:?}: {found}");
        }
    }
}

#[test]
fn an_end_has_its_class_and_contact_comes_back() {
    for (fault, class, missing) in [
        (Fault::Fin(64 * 5), Class::Closed, 0),
        (Fault::Fin(64 * 5 - 1), Class::Closed, 1),
        (Fault::Reset(64 * 5 - 32), Class::Reset, 1),
    ] {
        for seed in 1..=20 {
            let outcome = run(&plan(), Path::with(fault), seed, None);
            let tally = outcome.session.tally();
            assert_eq!(outcome.class(), class, "{fault:?}");
            assert_eq!((tally.missing, tally.reconnects), (missing, 1), "{fault:?}");
            assert_eq!(tally.sent + tally.unconnected, 20);
            assert!(tally.received >= 17, "{tally:?}");
            let again = outcome.findings.iter().find_map(|finding| match finding {
                Finding::Again { lost, .. } => Some(*lost),
                _ => None,
            });
            let again = again.unwrap();
            assert!((MS * 100..MS * 300).contains(&again), "{again:?}");
        }
    }
    // Where no echo ever came there is nothing to come back to.
    let outcome = run(&plan(), Path::with(Fault::Reset(0)), 1, None);
    assert_eq!(
        (outcome.class(), outcome.session.tally().reconnects),
        (Class::Reset, 0)
    );
    assert!(outcome.took < MS * 500, "{:?}", outcome.took);
}

#[test]
fn a_connection_that_cannot_be_made_again_ends_with_the_schedule() {
    let path = Path {
        answers: vec![Answer::After(MS), Answer::Error(MS, libc::ECONNREFUSED)],
        faults: vec![Fault::Fin(64 * 3)],
        ..Path::good()
    };
    let outcome = run(&plan(), path, 1, None);
    let tally = outcome.session.tally();
    assert_eq!(outcome.class(), Class::Closed);
    assert_eq!((tally.received, tally.unconnected), (3, 17));
    // It was tried again and again, and said once.
    assert_eq!(
        outcome.count(|finding| matches!(finding, Finding::Failed { .. })),
        1
    );
    let lost = tally.lost.max().unwrap();
    assert!(lost > MS * 1500, "{lost:?}");
}

#[test]
fn silence_and_a_stall_are_told_apart_and_so_is_where_the_bytes_are() {
    let acknowledged = TcpInfo::scripted(&[(field::SND_WND, 65_536)]);
    let sent = [
        (field::SND_WND, 65_536),
        (field::UNACKED, 3),
        (field::BACKOFF, 2),
    ];
    let unacknowledged = TcpInfo::scripted(&sent);
    for (fault, class) in [
        (0, Class::Silent),
        (64 * 4, Class::Stalled),
        (64 * 4 + 7, Class::Stalled),
    ] {
        for (info, cause) in [
            (Some(acknowledged), Cause::NotEchoed),
            (Some(unacknowledged), Cause::NotAcknowledged { again: 2 }),
            (None, Cause::Unknown),
        ] {
            let path = Path {
                info,
                ..Path::with(Fault::Stall(fault))
            };
            let outcome = run(&plan(), path, 7, None);
            assert_eq!(outcome.class(), class, "{fault}");
            let causes: Vec<_> = outcome
                .findings
                .iter()
                .filter_map(|finding| match finding {
                    Finding::Pause { cause, .. } => Some(*cause),
                    _ => None,
                })
                .collect();
            assert_eq!(causes, [cause], "one pause is one finding");
            // 20 messages take 1.9 s, and the last one may take 2 s.
            assert!(
                (MS * 3900..MS * 4100).contains(&outcome.took),
                "{:?}",
                outcome.took
            );
        }
    }
}

#[test]
fn a_pause_ends_and_counts_as_late_only_beyond_the_time_out() {
    for (hold, class, late) in [(1500, Class::Ok, 0), (2500, Class::Missed, 5)] {
        let path = Path {
            spread: Duration::ZERO,
            ..Path::with(Fault::Hold(64 * 5, MS * hold))
        };
        // With time for the last echo.
        let long = Plan {
            count: Some(40),
            ..plan()
        };
        let outcome = run(&long, path, 3, None);
        assert_eq!(outcome.class(), class, "{hold}");
        let tally = outcome.session.tally();
        assert_eq!(
            (tally.late, tally.missing, tally.pauses),
            (late + late / 5, 0, 1),
            "{hold}"
        );
        assert_eq!(
            outcome.count(|finding| matches!(finding, Finding::Back { .. })),
            1
        );
    }
}

#[test]
fn what_is_under_way_is_bounded_and_what_was_not_sent_is_counted() {
    let bounded = Plan { depth: 3, ..plan() };
    let outcome = run(&bounded, Path::with(Fault::Hold(64, MS * 1000)), 1, None);
    let tally = outcome.session.tally();
    assert_eq!(outcome.class(), Class::Ok);
    assert_eq!(tally.sent + tally.skipped, 20);
    assert!((5..=9).contains(&tally.skipped), "{tally:?}");
    // The wait says what the round trips do not.
    assert!(tally.wait.max() >= tally.rtt.max());
}

#[test]
fn a_closed_loop_keeps_its_depth() {
    let closed = Plan {
        pace: Pace::Closed,
        depth: 4,
        connections: 2,
        count: Some(400),
        ..plan()
    };
    let path = Path {
        spread: Duration::ZERO,
        ..Path::good()
    };
    let outcome = run(&closed, path, 1, None);
    assert_eq!(outcome.class(), Class::Ok);
    // Eight under way in 10 ms.
    assert_eq!(outcome.session.tally().received, 400);
    assert!(
        (MS * 500..MS * 530).contains(&outcome.took),
        "{:?}",
        outcome.took
    );
}

#[test]
fn a_stop_waits_for_the_last_echo_and_not_for_ever() {
    let endless = Plan {
        count: None,
        ..plan()
    };
    let outcome = run(&endless, Path::good(), 5, Some(MS * 1001));
    assert_eq!(outcome.class(), Class::Ok);
    assert!(outcome.took < MS * 1020, "{:?}", outcome.took);
    let outcome = run(
        &endless,
        Path::with(Fault::Stall(64 * 3)),
        5,
        Some(MS * 1001),
    );
    assert_eq!(outcome.class(), Class::Stalled);
    assert!(
        (MS * 2000..MS * 2010).contains(&outcome.took),
        "{:?}",
        outcome.took
    );
    // An echo that was held up meanwhile shows how long the other may take.
    let two = Plan {
        connections: 2,
        ..endless.clone()
    };
    let held = Path {
        faults: vec![
            Fault::Hold(64 * 4, MS * 900),
            Fault::Hold(64 * 4, MS * 1600),
        ],
        ..Path::good()
    };
    let outcome = run(&two, held, 5, Some(MS * 1001));
    assert_eq!(outcome.class(), Class::Ok);
    assert!(outcome.took > MS * 2400, "{:?}", outcome.took);
    let timed = Plan {
        deadline: Some(MS * 1001),
        ..endless
    };
    let outcome = run(&timed, Path::good(), 5, None);
    assert_eq!(
        (outcome.class(), outcome.session.tally().sent),
        (Class::Ok, 10)
    );
    // Before there was an answer.
    let outcome = run(&timed, Path::answering(Answer::Never), 5, None);
    assert_eq!(outcome.class(), Class::TimedOut);
}

#[test]
fn after_a_time_without_running_the_schedule_is_not_made_up_for() {
    let endless = Plan {
        count: None,
        ..plan()
    };
    let mut session = Session::new(
        endless,
        vec![Place::Ip("192.0.2.1:7".parse().unwrap())],
        1,
        Duration::ZERO,
    );
    let mut actions = Vec::new();
    session.on_time(Duration::ZERO, &mut actions);
    session.connected(0, MS, None);
    assert_eq!(session.begin(MS), Some(0));
    // An hour later: what was due in the last second is sent, nothing else.
    let hour = Duration::from_secs(3600);
    let begun = std::iter::from_fn(|| session.begin(hour)).count();
    assert!((10..=11).contains(&begun), "{begun}");
    assert_eq!(session.tally().skipped + begun as u64, 35_999);
    let due = session.wake().unwrap();
    assert!(due <= hour + MS * 100);
}
