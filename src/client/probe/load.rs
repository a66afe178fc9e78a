//! `load/*`: how long an answer takes while the path is busy (working latency), after
//! draft-ietf-ippm-responsiveness.
//!
//! Connections are added until throughput and the figure come to rest, and load both directions, as
//! an echo does: the figure is that of the narrower one.  Meanwhile two things are measured: new connections and their
//! first echo (*foreign*), and how long a byte takes that is written on a connection under load
//! (*self*).  Little may wait unsent in our own kernel, or that would be measured.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::bytes::Conversation;
use super::connect::echo_within;
use super::talk::{Before, Dialer, Talk, drive, pause};
use super::verdict::{Finding, Judged, NotJudged, Plot, bytes, span};
use super::{Plan, Run};
use crate::client::target::Place;

/// How long an interval is, how many of them must agree, how far they may differ, and how many there
/// are at most.
const INTERVAL: Duration = Duration::from_secs(1);
const AGREEING: usize = 4;
const TOLERANCE: f64 = 0.05;
const INTERVALS: usize = 20;

/// Connections that carry load, at most.
const MOST: usize = 16;

/// What is sent at most, in bytes.
pub(super) const MOST_BYTES: u64 = 4 << 30;

/// What may wait unsent on a connection under load (`TCP_NOTSENT_LOWAT`, tcp(7)), in bytes.
const UNSENT: u32 = 16 << 10;

/// How often patience may end before what is under way counts as lost.
const DRAINING: usize = 4;

/// From one new connection to the next.
const FOREIGN_EVERY: Duration = Duration::from_millis(100);

/// New connections on the path at rest.
const AT_REST: usize = 10;

/// Numbers of the connections that are made beside those of the other thread.
const FOREIGN_NUMBERS: u32 = 1 << 20;

/// The share of times that counts; the longest are left out.
const TRIMMED: f64 = 0.95;

/// Round trips a minute from which a person notices no load.
const FINE: f64 = 1000.0;

/// A new connection: when, how long its handshake took, and its first echo.
#[derive(Clone, Copy, Debug)]
struct Foreign {
    at: Duration,
    connect: Duration,
    echo: Duration,
}

/// What was measured in an interval.
#[derive(Clone, Copy, Debug)]
struct Interval {
    /// Bytes that came back in it.
    came: u64,
    /// Round trips a minute in it.
    rpm: Option<f64>,
}

/// How far the figure is to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Confidence {
    /// Neither throughput nor the figure came to rest.
    Low,
    /// Throughput did.
    Medium,
    /// Both did.
    High,
}

impl Confidence {
    fn word(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// The mean of all but the longest times, in milliseconds; `None` of none.
fn trimmed_mean(times: impl Iterator<Item = Duration>) -> Option<f64> {
    let mut times: Vec<_> = times.map(|time| time.as_secs_f64() * 1e3).collect();
    times.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "it is a part of a length"
    )]
    let kept = ((times.len() as f64 * TRIMMED).ceil() as usize).min(times.len());
    let kept = &times[..kept];
    #[expect(clippy::cast_precision_loss, reason = "there are not so many")]
    (!kept.is_empty()).then(|| kept.iter().sum::<f64>() / kept.len() as f64)
}

/// Round trips a minute: the mean of that of new connections and that of those under load.
fn rpm(foreign: &[Foreign], own: &[Duration]) -> Option<f64> {
    let connect = trimmed_mean(foreign.iter().map(|one| one.connect))?;
    let echo = trimmed_mean(foreign.iter().map(|one| one.echo))?;
    let own = trimmed_mean(own.iter().copied())?;
    Some(f64::midpoint(
        60_000.0 / f64::midpoint(connect, echo),
        60_000.0 / own,
    ))
}

/// Whether the last values are within the tolerance of their mean.
fn at_rest(values: &[f64]) -> bool {
    let Some(last) = values.last_chunk::<AGREEING>() else {
        return false;
    };
    #[expect(clippy::cast_precision_loss, reason = "it is four")]
    let mean = last.iter().sum::<f64>() / AGREEING as f64;
    last.iter()
        .all(|value| (value - mean).abs() <= mean * TOLERANCE)
}

#[expect(clippy::cast_precision_loss, reason = "bytes of a second")]
fn confidence(intervals: &[Interval]) -> Confidence {
    let came: Vec<_> = intervals.iter().map(|one| one.came as f64).collect();
    let rpm: Vec<_> = intervals.iter().filter_map(|one| one.rpm).collect();
    match (at_rest(&came), at_rest(&rpm)) {
        (true, true) => Confidence::High,
        (true, false) => Confidence::Medium,
        (false, _) => Confidence::Low,
    }
}

/// All that was measured.
#[derive(Debug)]
struct Seen {
    /// The first echoes of new connections on the path at rest.
    idle: Vec<Foreign>,
    /// Those under load.
    foreign: Vec<Foreign>,
    /// How long bytes took on the connections under load, and when.
    own: Vec<(Duration, Duration)>,
    intervals: Vec<Interval>,
    connections: usize,
    /// What is wrong with the bytes, or with an end.
    fault: Option<String>,
    came: u64,
}

/// Opens connections one after the other until it is to stop, and measures each.
fn foreign(place: &Place, plan: &Plan, stop: impl Fn(usize) -> bool) -> Vec<Foreign> {
    let dialer = Dialer::new(plan.seed, plan.patience, &plan.preamble, FOREIGN_NUMBERS);
    let begun = Instant::now();
    let mut seen = Vec::new();
    while !stop(seen.len()) {
        let at = begun.elapsed();
        if let Ok(mut talk) = dialer.dial(place, Before::default()) {
            if let Some(echo) = echo_within(plan.patience, &mut talk) {
                let connect = talk.connect_time();
                seen.push(Foreign { at, connect, echo });
            }
        }
        pause(FOREIGN_EVERY.saturating_sub(begun.elapsed() - at));
    }
    seen
}

pub(super) fn working(run: &Run<'_>) -> Judged {
    let (place, plan) = (&run.place, run.plan);
    let idle = foreign(place, plan, |count| count >= AT_REST);
    let over = AtomicBool::new(false);
    let mut seen = thread::scope(|scope| {
        let beside = scope.spawn(|| foreign(place, plan, |_| over.load(Ordering::Relaxed)));
        let loaded = load(run);
        over.store(true, Ordering::Relaxed);
        let foreign = beside.join().unwrap_or_default();
        loaded.map(|loaded| Seen { foreign, ..loaded })
    })?;
    seen.idle = idle;
    Ok(judge(&seen))
}

/// Bytes on their way on a connection under load: up to which one, and since when.
type Mark = Option<(u64, Instant)>;

fn load(run: &Run<'_>) -> Result<Seen, NotJudged> {
    let before = Before {
        notsent_lowat: Some(UNSENT),
        ..Before::default()
    };
    let begun = Instant::now();
    let (mut talks, mut marks): (Vec<Talk>, Vec<Mark>) = (Vec::new(), Vec::new());
    let mut own = Vec::new();
    let mut intervals: Vec<Interval> = Vec::new();
    let moved = |talks: &[Talk]| talks.iter().map(Talk::received).sum::<u64>();
    while intervals.len() < INTERVALS && moved(&talks) < MOST_BYTES {
        if talks.len() < MOST {
            let mut talk = run.dial_with(before)?;
            talk.quota = u64::MAX;
            talks.push(talk);
            marks.push(None);
        }
        let (came, first) = (moved(&talks), own.len());
        drive(&mut talks, Instant::now() + INTERVAL, |talks| {
            watch(talks, &mut marks, |at, took| own.push((at - begun, took)));
            talks.iter().any(|talk| talk.end.is_some()) || moved(talks) >= MOST_BYTES
        });
        let took: Vec<_> = own[first..].iter().map(|(_, took)| *took).collect();
        let came = moved(&talks) - came;
        intervals.push(Interval {
            came,
            rpm: trimmed_mean(took.into_iter()).map(|own| 60_000.0 / own),
        });
        if talks.iter().any(|talk| talk.end.is_some()) || confidence(&intervals) == Confidence::High
        {
            break;
        }
    }
    for talk in &mut talks {
        talk.quota = talk.sent;
    }
    // After a load windows may be closed for longer than an echo may take otherwise.
    (0..DRAINING).any(|_| run.drive(&mut talks, |talks| talks.iter().all(Talk::is_settled)));
    let came = moved(&talks);
    let connections = talks.len();
    let fault = talks
        .iter_mut()
        .find_map(|talk| Conversation::of(talk).fault(run.plan.patience));
    Ok(Seen {
        idle: Vec::new(),
        foreign: Vec::new(),
        own,
        intervals,
        connections,
        fault,
        came,
    })
}

/// Measures how long bytes take, one at a time on each connection.
fn watch(talks: &[Talk], marks: &mut [Mark], mut took: impl FnMut(Instant, Duration)) {
    for (talk, mark) in talks.iter().zip(marks) {
        let now = Instant::now();
        if let Some((offset, since)) = *mark {
            if talk.received() >= offset {
                let came = talk.last.unwrap_or(now);
                took(came, came.saturating_duration_since(since));
                *mark = None;
            }
        }
        if mark.is_none() && talk.sent > 0 {
            *mark = Some((talk.sent, now));
        }
    }
}

fn judge(seen: &Seen) -> Finding {
    if let Some(fault) = &seen.fault {
        return Finding::fail(format!("under load: {fault}")).with("came_back", seen.came);
    }
    let mean = |times: &[Foreign]| trimmed_mean(times.iter().map(|one| one.echo));
    let own: Vec<_> = seen.own.iter().map(|(_, took)| *took).collect();
    let (Some(idle), Some(busy), Some(rpm)) = (
        mean(&seen.idle),
        mean(&seen.foreign),
        rpm(&seen.foreign, &own),
    ) else {
        return Finding::fail("under load no new connection gets an answer");
    };
    let confidence = confidence(&seen.intervals);
    let millis = |value: f64| Duration::from_secs_f64(value / 1e3);
    let text = format!(
        "{} -> {}, {rpm:.0} round trips a minute (RPM), confidence {}; {} connections, {}",
        span(millis(idle)),
        span(millis(busy)),
        confidence.word(),
        seen.connections,
        bytes(seen.came)
    );
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is positive"
    )]
    let whole = rpm as u64;
    let finding = match rpm < FINE {
        true => Finding::note(format!(
            "{text}; queues on the way or in the server fill up"
        )),
        false => Finding::ok(text),
    };
    finding
        .with("rpm", whole)
        .with_time("idle_us", millis(idle))
        .with_time("working_us", millis(busy))
        .with_time("self_us", trimmed_mean(own.iter().copied()).map(millis))
        .with("connections", seen.connections as u64)
        .with("came_back", seen.came)
        .with_word("confidence", confidence.word())
        .with_plot(plot(seen))
}

fn plot(seen: &Seen) -> Plot {
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let foreign = seen.foreign.iter();
    // As many points as can be told apart.
    let step = seen.own.len().div_ceil(1000).max(1);
    let own: Vec<_> = seen.own.iter().step_by(step).collect();
    Plot {
        title: "answers under load",
        across: "seconds",
        upward: "ms",
        curves: vec![
            (
                "new connections",
                foreign
                    .map(|one| (one.at.as_secs_f64(), millis(one.echo)))
                    .collect(),
            ),
            (
                "connections under load",
                own.iter()
                    .map(|(at, took)| (at.as_secs_f64(), millis(*took)))
                    .collect(),
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::probe::Verdict;

    const MS: Duration = Duration::from_millis(1);

    fn foreign(echo: Duration) -> Foreign {
        Foreign {
            at: Duration::ZERO,
            connect: echo,
            echo,
        }
    }

    fn seen(busy: Duration, came: [u64; 6]) -> Seen {
        let interval = |came| Interval {
            came,
            rpm: Some(60_000.0 / (busy.as_secs_f64() * 1e3)),
        };
        Seen {
            idle: vec![foreign(12 * MS); 10],
            foreign: vec![foreign(busy); 50],
            own: vec![(MS, busy); 50],
            intervals: came.map(interval).to_vec(),
            connections: 4,
            fault: None,
            came: 1 << 30,
        }
    }

    #[test]
    fn the_longest_times_are_left_out() {
        let times = (1..=20).map(|count| match count {
            20 => 1000 * MS,
            _ => 10 * MS,
        });
        assert_eq!(trimmed_mean(times), Some(10.0));
        assert_eq!(trimmed_mean([].into_iter()), None);
        assert_eq!(trimmed_mean([7 * MS].into_iter()), Some(7.0));
    }

    #[test]
    fn round_trips_a_minute_are_the_mean_of_both_kinds() {
        let mixed = Foreign {
            at: MS,
            connect: 100 * MS,
            echo: 200 * MS,
        };
        // 60000 / 150 = 400, and 60000 / 100 = 600.
        assert_eq!(rpm(&[mixed], &[100 * MS]), Some(500.0));
        assert_eq!(rpm(&[], &[MS]), None);
    }

    #[test]
    fn confidence_comes_with_rest() {
        let steady = seen(148 * MS, [10, 50, 100, 101, 99, 100]);
        assert_eq!(confidence(&steady.intervals), Confidence::High);
        let mut restless = seen(148 * MS, [10, 50, 100, 101, 99, 100]);
        restless.intervals[5].rpm = Some(1.0);
        assert_eq!(confidence(&restless.intervals), Confidence::Medium);
        let rising = seen(148 * MS, [10, 20, 40, 80, 160, 320]);
        assert_eq!(confidence(&rising.intervals), Confidence::Low);
        assert_eq!(confidence(&rising.intervals[..2]), Confidence::Low);
    }

    #[test]
    fn load_is_noted_where_a_person_would_feel_it() {
        let steady = [10, 50, 100, 101, 99, 100];
        let finding = judge(&seen(148 * MS, steady));
        assert_eq!(finding.verdict, Verdict::Note);
        let text = "12.0 ms -> 148 ms, 405 round trips a minute (RPM), confidence high";
        assert!(finding.text.starts_with(text), "{}", finding.text);
        assert_eq!(judge(&seen(14 * MS, steady)).verdict, Verdict::Ok);
        let mut wrong = seen(14 * MS, steady);
        wrong.fault = Some("1 bytes missing at 9".into());
        assert_eq!(judge(&wrong).verdict, Verdict::Fail);
        let mut silent = seen(14 * MS, steady);
        silent.foreign.clear();
        assert_eq!(judge(&silent).verdict, Verdict::Fail);
    }
}
