//! `--hold`: conversations that stay, each byte checked, each pause attributed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::talk::{Before, Dialer, End, Talk, drive};
use super::verdict::{micros, span, wrong};
use super::watch::{OVERDUE, Pause, Side, Watch};
use super::{Plan, converse};
use crate::client::outcome::Class;
use crate::client::target::Place;

/// From one message of a connection to the next, and its size in bytes.
const EVERY: Duration = Duration::from_millis(100);
const MESSAGE: u64 = 64;

/// Messages under way, so that an outage does not pile up more.
const UNDER_WAY: usize = 100;

/// How long bytes are moved before anything else is looked at.
const ROUND: Duration = Duration::from_millis(5);

/// From one reading of the kernel's counters to the next.
const READING: Duration = Duration::from_millis(100);

/// From one line about the state to the next, and from one attempt to connect again to the next.
const STATE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    /// For how long.
    pub span: Duration,
    /// Conversations at once.
    pub connections: usize,
}

impl Hold {
    /// The most that is sent, in bytes.
    #[must_use]
    pub fn most(&self) -> u64 {
        let messages = self.span.as_millis() / EVERY.as_millis();
        let messages = u64::try_from(messages).unwrap_or(u64::MAX);
        messages
            .saturating_mul(self.connections as u64)
            .saturating_mul(MESSAGE)
    }
}

/// What happens, as it happens.
pub trait Log {
    /// Something worth a line; and the same for programs.
    fn event(&mut self, line: &str, event: Value);
    /// What the flight recorder of a connection has, when its echo is overdue and when it came.
    fn record(&mut self, record: Value);
}

/// What there was.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Conversations at once.
    pub connections: usize,
    /// Messages that came back.
    pub echoes: u64,
    /// Connections with a byte that was not in its place.
    pub wrong: u64,
    /// Connections that ended.
    pub ended: u64,
    /// All pauses.
    pub pauses: Vec<Pause>,
    /// The longest that a message took.
    pub worst: Duration,
    /// The longest that this process was held up: it did not get a processor, or has too much to do.
    pub late: Duration,
    /// How long it was.
    pub span: Duration,
}

impl Held {
    /// Whether each conversation stayed, and each byte was in its place.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.is_whole() && self.echoes > 0
    }

    fn is_whole(&self) -> bool {
        self.wrong == 0 && self.ended == 0
    }

    fn of(&self, side: Side) -> usize {
        self.pauses
            .iter()
            .filter(|pause| pause.side == side)
            .count()
    }

    /// The last line.
    #[must_use]
    pub fn summary(&self) -> String {
        let sides = Side::ALL.into_iter().filter(|side| self.of(*side) > 0);
        let sides: Vec<_> = sides
            .map(|side| format!("{} {}", self.of(side), side.word()))
            .collect();
        let pauses = match sides.is_empty() {
            true => "no pause".to_owned(),
            false => format!("{} pauses ({})", self.pauses.len(), sides.join(", ")),
        };
        let late = match self.late >= OVERDUE {
            true => format!("; this process was held up for {}", span(self.late)),
            false => String::new(),
        };
        format!(
            "{} connections for {}: {} echoes, worst {}; {pauses}; {} ended, {} with wrong bytes{late}",
            self.connections,
            span(self.span),
            self.echoes,
            span(self.worst),
            self.ended,
            self.wrong
        )
    }

    /// All of it, for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let pauses = Side::ALL.into_iter().filter(|side| self.of(*side) > 0);
        let pauses = pauses.map(|side| (side.word().to_owned(), self.of(side).into()));
        json!({
            "event": "summary",
            "connections": self.connections,
            "echoes": self.echoes,
            "wrong": self.wrong,
            "ended": self.ended,
            "pauses": serde_json::Map::from_iter(pauses),
            "worst_us": micros(self.worst),
            "late_us": micros(self.late),
            "duration_us": micros(self.span),
        })
    }
}

/// All conversations, and what is known about each; both lists have the same order.
struct Conversations<'a> {
    place: Place,
    dialer: Dialer,
    talks: Vec<Talk>,
    watches: Vec<Watch>,
    /// When each is to send next, since the beginning.
    due: Vec<Duration>,
    preamble: u64,
    begun: Instant,
    /// Connections that paused since all talked, and the longest pause.
    paused: (usize, Duration),
    held: Held,
    log: &'a mut dyn Log,
}

/// Holds conversations until the time is over, or `stop` says so.
///
/// # Errors
/// There is no conversation at all: how the last address failed.
pub fn hold(plan: &Plan, hold: Hold, stop: &AtomicBool, log: &mut dyn Log) -> Result<Held, Class> {
    let dialer = Dialer::new(plan.seed, plan.patience, &plan.preamble, 0);
    let place = converse(plan, &dialer)?;
    let mut all = Conversations {
        place,
        dialer,
        talks: Vec::new(),
        watches: Vec::new(),
        due: Vec::new(),
        preamble: plan.preamble.len() as u64,
        begun: Instant::now(),
        paused: (0, Duration::ZERO),
        held: Held {
            connections: hold.connections,
            ..Held::default()
        },
        log,
    };
    let (mut reading, mut state, mut again) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut now = Duration::ZERO;
    loop {
        if now >= hold.span || stop.load(Ordering::Relaxed) {
            break;
        }
        if all.talks.len() < hold.connections && now >= again {
            again = now + AGAIN;
            all.connect(hold.connections, now);
            now = all.begun.elapsed();
        }
        all.send(now);
        let read = all.serve();
        let began = std::mem::replace(&mut now, all.begun.elapsed());
        all.held.late = all.held.late.max((now - began).saturating_sub(ROUND));
        if now >= reading {
            reading = now + READING;
            all.read(now);
        }
        if let Some(read) = read {
            all.look(read);
        }
        if now >= state {
            // The first one when all had time to talk.
            if !state.is_zero() {
                all.state();
            }
            state = now + STATE.min(hold.span / 4);
        }
    }
    Ok(all.over())
}

impl Conversations<'_> {
    /// Connects until there are as many as there should be; they are not waited for.
    fn connect(&mut self, connections: usize, now: Duration) {
        while self.talks.len() < connections {
            let talk = match self.dialer.begin(&self.place, Before::default()) {
                Ok(talk) => talk,
                // It is tried again.
                Err(class) => return self.not_made(&[class]),
            };
            // They take turns.
            let share = u32::try_from(self.talks.len() % 100).unwrap_or(0);
            self.due.push(now + EVERY * share / 100);
            self.talks.push(talk);
            self.watches.push(Watch::new(self.preamble));
        }
    }

    /// Connections could not be made.
    fn not_made(&mut self, classes: &[Class]) {
        if let Some(class) = classes.first() {
            let count = classes.len();
            let event = json!({"event": "not-made", "connections": count, "class": class.word()});
            let line = format!("{} not made: {}", plural(count), class.word());
            self.log.event(&line, event);
        }
    }

    fn send(&mut self, now: Duration) {
        let mut sent = Vec::new();
        for (index, due) in self.due.iter_mut().enumerate() {
            let (talk, watch) = (&mut self.talks[index], &self.watches[index]);
            let room = talk.is_connected() && watch.under_way() < UNDER_WAY;
            if now >= *due && room {
                talk.quota += MESSAGE;
                sent.push(index);
                // What was missed is not made up for.
                *due = (*due + EVERY).max(now);
            }
        }
        // It is written before its time is taken: where this process is held up meanwhile, the peer
        // cannot have the message yet.
        drive(&mut self.talks, Instant::now(), |_| true);
        let now = self.begun.elapsed();
        for index in sent {
            self.watches[index].sent(self.talks[index].quota, now);
        }
    }

    /// Moves bytes for a while; returns a time at which everything that had come by then was read, if
    /// there is one.  What is overdue is judged by it: where this process is held up, an echo may have
    /// come meanwhile.
    fn serve(&mut self) -> Option<Duration> {
        let begun = self.begun;
        let (mut read, mut asked) = (None, None);
        drive(&mut self.talks, Instant::now() + ROUND, |_| {
            // What is done next is to ask for what has come, and to read it.
            read = asked.replace(begun.elapsed());
            false
        });
        read
    }

    fn read(&mut self, now: Duration) {
        for (talk, watch) in self.talks.iter().zip(&mut self.watches) {
            if let Some(info) = talk.info() {
                watch.reading(info, now);
            }
        }
    }

    fn look(&mut self, now: Duration) {
        let mut pausing: Vec<Side> = Vec::new();
        let mut gone = Vec::new();
        for index in 0..self.talks.len() {
            let (talk, watch) = (&mut self.talks[index], &mut self.watches[index]);
            let came = talk
                .last
                .map_or(now, |last| last.saturating_duration_since(self.begun));
            let over = match talk.over() {
                true => watch.ended(now),
                false => watch.came(talk.received(), came, now),
            };
            if let Some(pause) = over {
                let record = json!({
                    "event": "back",
                    "connection": index,
                    "pause_us": micros(pause.span),
                    "side": pause.side.word(),
                    "readings": watch.record(now),
                });
                self.log.record(record);
                self.paused.1 = self.paused.1.max(pause.span);
                self.held.pauses.push(pause);
            }
            // A system call that is of use only then.
            let info = match watch.is_newly_overdue(now) {
                true => talk.info(),
                false => None,
            };
            if let Some(side) = watch.look(now, info.as_ref()) {
                let record = json!({
                    "event": "pause",
                    "connection": index,
                    "side": side.word(),
                    "readings": watch.record(now),
                });
                self.log.record(record);
                pausing.push(side);
            }
            if talk.over() || talk.checker.is_wrong() {
                gone.push(index);
            }
        }
        for side in Side::ALL {
            let count = pausing.iter().filter(|one| **one == side).count();
            if count > 0 {
                self.paused.0 += count;
                let event = json!({"event": "pause", "connections": count, "side": side.word()});
                self.log.event(&format!("{} {side}", pause(count)), event);
            }
        }
        self.part(&gone);
        if self.paused.0 > 0 && !self.watches.iter().any(Watch::is_paused) {
            let (count, longest) = std::mem::take(&mut self.paused);
            let event = json!({"event": "back", "connections": count, "pause_us": micros(longest)});
            let bytes = match self.held.is_whole() {
                true => "no byte lost or out of place",
                false => "see above for what was lost",
            };
            let line = format!("all {count} back after {}; {bytes}", span(longest));
            self.log.event(&line, event);
        }
    }

    /// Conversations that are over, or wrong, make room for new ones.
    fn part(&mut self, gone: &[usize]) {
        let (mut ends, mut not_made): (Vec<String>, _) = (Vec::new(), Vec::new());
        for index in gone.iter().rev() {
            let mut talk = self.talks.remove(*index);
            let watch = self.watches.remove(*index);
            self.due.remove(*index);
            self.held.echoes += watch.echoes();
            self.held.worst = self.held.worst.max(watch.worst());
            talk.checker.finish();
            match (wrong(&talk.checker), talk.failed(), talk.end) {
                (Some(wrong), _, _) => {
                    self.held.wrong += 1;
                    let event = json!({"event": "wrong", "connection": index, "text": wrong});
                    self.log.event(&format!("wrong bytes: {wrong}"), event);
                }
                (None, Some(class), _) => not_made.push(class),
                (None, None, end) => {
                    self.held.ended += 1;
                    ends.push(end.unwrap_or(End::Fin).words());
                }
            }
        }
        self.not_made(&not_made);
        ends.sort();
        for same in ends.chunk_by(|one, other| one == other) {
            let event = json!({"event": "ended", "connections": same.len(), "how": same[0]});
            let line = format!("{} ended {}", plural(same.len()), same[0]);
            self.log.event(&line, event);
        }
    }

    fn state(&mut self) {
        let pausing = self
            .watches
            .iter()
            .filter(|watch| watch.is_paused())
            .count();
        let connected = self.talks.iter().filter(|talk| talk.is_connected()).count();
        let talk = connected - pausing.min(connected);
        let worst = self
            .watches
            .iter()
            .map(Watch::worst)
            .max()
            .unwrap_or_default();
        let worst = worst.max(self.held.worst);
        let wanted = self.held.connections;
        let event = json!({
            "event": "state",
            "talk": talk,
            "connections": wanted,
            "worst_us": micros(worst),
        });
        let line = format!("{talk} of {wanted} talk; worst {}", span(worst));
        self.log.event(&line, event);
    }

    fn over(mut self) -> Held {
        self.held.span = self.begun.elapsed();
        for watch in &mut self.watches {
            self.held.echoes += watch.echoes();
            self.held.worst = self.held.worst.max(watch.worst());
            self.held.pauses.extend(watch.ended(self.held.span));
        }
        self.held
    }
}

fn plural(count: usize) -> String {
    match count {
        1 => "1 connection".into(),
        _ => format!("{count} connections"),
    }
}

fn pause(count: usize) -> String {
    match count {
        1 => "1 connection pauses:".into(),
        _ => format!("{count} connections pause:"),
    }
}
