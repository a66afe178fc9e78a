//! `idle/*`: how long a connection may be silent, and what ends it.
//!
//! Many connections are opened at once, and each is silent for another span before it speaks again;
//! one beside them talks all the time, so that a path which is gone altogether is not taken for one
//! that forgets.  Then a second ladder looks between the longest silence that was survived and the
//! shortest that was not, and one connection tries a keepalive that should hold.
//!
//! A keepalive of the other end keeps a middlebox awake, and hides how long that would wait: segments
//! come that carry no data.  Which side speaks first after a silence matters as well: here it is this
//! end, as an echo server does not speak by itself.

use std::time::{Duration, Instant};

use super::Run;
use super::connect::echo_within;
use super::talk::{Before, End, Talk, drive};
use super::verdict::{Finding, Judged, NotJudged, Plot};
use crate::sys::tcp_info::field;

/// Rungs of the first ladder and the ratio of their spans, and rungs of the second.
const RUNGS: i32 = 12;
const RATIO: f64 = 1.5;
const CLOSER: u32 = 8;

/// No silence is shorter.
const LEAST: Duration = Duration::from_secs(1);

/// How often the connection beside them talks.
const TALKS_EVERY: Duration = Duration::from_millis(500);

/// What became of a silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The echo came.
    Alive,
    /// The other end, or something between, ended it meanwhile.
    EndedBefore(End),
    /// It ended when this end spoke.
    EndedThen(End),
    /// Nothing came when this end spoke.
    Silence,
}

/// A connection that was silent.
#[derive(Clone, Copy, Debug)]
struct Silent {
    span: Duration,
    outcome: Outcome,
    /// Segments without data that came meanwhile; `None` if the kernel does not say.
    keepalives: Option<u64>,
}

/// All that was seen.
#[derive(Debug, Default)]
struct Seen {
    silent: Vec<Silent>,
    /// Whether the connection that talked lives.
    talks: bool,
    /// A keepalive that was tried, and whether it held.
    held: Option<(Duration, bool)>,
}

pub(super) fn silence(run: &Run<'_>) -> Judged {
    let Some(longest) = run.plan.idle else {
        return Err(NotJudged::Skipped(
            "it takes long: say how long, with --idle SPAN",
        ));
    };
    let (silent, talks) = climb(run, &ladder(longest), None)?;
    let mut seen = Seen {
        silent,
        talks,
        held: None,
    };
    if let (Some((alive, dead)), true) = (bracket(&seen.silent), talks) {
        let keepalive = (alive / 2).max(LEAST);
        let (closer, talks) = climb(run, &between(alive, dead), Some((keepalive, dead)))?;
        let (held, closer) = closer
            .split_last()
            .map_or((None, &closer[..]), |(last, rest)| (Some(last), rest));
        seen.held = held.map(|held| (keepalive, held.outcome == Outcome::Alive));
        seen.silent.extend(closer);
        seen.silent.sort_by_key(|one| one.span);
        seen.talks = talks;
    }
    Ok(judge(&seen))
}

/// Spans up to the longest, each so much longer than the one before.
fn ladder(longest: Duration) -> Vec<Duration> {
    let spans = (0..RUNGS)
        .rev()
        .map(|rung| longest.div_f64(RATIO.powi(rung)));
    let mut spans: Vec<_> = spans.filter(|span| *span >= LEAST).collect();
    if spans.is_empty() {
        spans.push(longest);
    }
    spans
}

/// Spans between two others.
fn between(alive: Duration, dead: Duration) -> Vec<Duration> {
    let step = dead.saturating_sub(alive) / (CLOSER + 1);
    (1..=CLOSER).map(|count| alive + step * count).collect()
}

/// The longest span below which all live, and the shortest that one did not.
fn bracket(silent: &[Silent]) -> Option<(Duration, Duration)> {
    let dead = silent.iter().find(|one| one.outcome != Outcome::Alive)?;
    let alive = silent
        .iter()
        .take_while(|one| one.outcome == Outcome::Alive)
        .last();
    Some((alive.map_or(Duration::ZERO, |one| one.span), dead.span))
}

/// Lets connections be silent for these spans, and at last one with a keepalive for its span; returns
/// what became of each, and whether the connection that talked lives.
fn climb(
    run: &Run<'_>,
    spans: &[Duration],
    keepalive: Option<(Duration, Duration)>,
) -> Result<(Vec<Silent>, bool), NotJudged> {
    let kept = keepalive.map(|(every, span)| (Some(every), span));
    let rungs: Vec<_> = spans.iter().map(|span| (None, *span)).chain(kept).collect();
    let mut talks = run.dial_many(rungs.iter().map(|(keepalive, _)| Before {
        keepalive: *keepalive,
        ..Before::default()
    }))?;
    let mut beside = run.dial()?;
    for talk in talks.iter_mut().chain([&mut beside]) {
        echo_within(run.plan.patience, talk)
            .ok_or(NotJudged::Fail("an echo of 64 bytes stays out"))?;
    }
    let begun = Instant::now();
    let before: Vec<_> = talks.iter().map(without_data).collect();
    let mut silent: Vec<Option<Silent>> = vec![None; rungs.len()];
    let mut lives = true;
    for next in order(&rungs) {
        let (_, until) = rungs[next];
        while begun.elapsed() < until {
            lives = lives && echo_within(run.plan.patience, &mut beside).is_some();
            let wait = TALKS_EVERY.min(until.saturating_sub(begun.elapsed()));
            // Whatever ends meanwhile is noticed.
            drive(&mut talks, Instant::now() + wait, |_| false);
        }
        let keepalives = without_data(&talks[next])
            .zip(before[next])
            .map(|(now, before)| now.saturating_sub(before));
        // On a busy machine it is longer than it should be.
        let span = begun.elapsed();
        let talk = &mut talks[next];
        let outcome = match talk.end {
            Some(end) => Outcome::EndedBefore(end),
            None => match (echo_within(run.plan.patience, talk), talk.end) {
                (Some(_), _) => Outcome::Alive,
                (None, Some(end)) => Outcome::EndedThen(end),
                (None, None) => Outcome::Silence,
            },
        };
        silent[next] = Some(Silent {
            span,
            outcome,
            keepalives,
        });
    }
    Ok((silent.into_iter().flatten().collect(), lives))
}

/// The rungs, the shortest silence first.
fn order(rungs: &[(Option<Duration>, Duration)]) -> Vec<usize> {
    let mut order: Vec<_> = (0..rungs.len()).collect();
    order.sort_by_key(|index| rungs[*index].1);
    order
}

/// Segments that came and carried no data.
fn without_data(talk: &Talk) -> Option<u64> {
    let info = talk.info()?;
    let with_data = info.get(field::DATA_SEGS_IN)?;
    Some(info.get(field::SEGS_IN)?.saturating_sub(with_data))
}

/// A span as it is meant, to a tenth of a second.
fn whole(span: Duration) -> String {
    let tenths = (span.as_millis() + 50) / 100;
    match (tenths % 10, tenths / 10) {
        (0, seconds) => format!("{seconds}s"),
        (tenth, seconds) => format!("{seconds}.{tenth}s"),
    }
}

fn judge(seen: &Seen) -> Finding {
    let longest = seen.silent.last().map_or(Duration::ZERO, |one| one.span);
    let keepalives = seen
        .silent
        .iter()
        .filter_map(|one| one.keepalives)
        .max()
        .unwrap_or(0);
    let finding = if !seen.talks {
        Finding::fail("the connection that talked meanwhile has ended, too: it is not the silence")
    } else if let Some((alive, dead)) = bracket(&seen.silent) {
        // One that came just when this end spoke looks like an answer to it, and the others do not.
        let mut ends = seen.silent.iter().map(|one| one.outcome);
        let during = ends
            .clone()
            .find(|end| matches!(end, Outcome::EndedBefore(_)));
        let how = match during.or_else(|| ends.find(|end| *end != Outcome::Alive)) {
            Some(Outcome::EndedBefore(end)) => {
                format!(
                    "{}, which came during the silence: a limit of the server or a proxy",
                    end.words()
                )
            }
            Some(Outcome::EndedThen(end)) => {
                format!(
                    "{} when spoken to: a middlebox has forgotten them",
                    end.words()
                )
            }
            _ => "by silence, not RST: a middlebox has forgotten them and says nothing".into(),
        };
        let mut text = format!(
            "silent connections end between {} and {}, {how}",
            whole(alive),
            whole(dead)
        );
        match seen.held {
            Some((every, true)) => text += &format!("; keepalive every {} holds", whole(every)),
            Some((every, false)) => {
                text += &format!("; keepalive every {} does not hold", whole(every));
            }
            None => {}
        }
        Finding::fail(text)
            .with_time("ends_before_us", dead)
            .with_time("lives_us", alive)
    } else if keepalives > 0 {
        let every = longest / u32::try_from(keepalives).unwrap_or(u32::MAX);
        Finding::note(format!(
            "silent connections live for {}, masked: the other end sends a keepalive about every \
             {}, so that nothing on the way sees a silence that is longer",
            whole(longest),
            whole(every)
        ))
        .with_time("lives_us", longest)
    } else {
        Finding::ok(format!("silent connections live for {}", whole(longest)))
            .with_time("lives_us", longest)
    };
    let point = |one: &Silent| {
        let alive = f64::from(u8::from(one.outcome == Outcome::Alive));
        (one.span.as_secs_f64(), alive)
    };
    finding
        .see("RFC 5382 REQ-5")
        .with("keepalives", keepalives)
        .with_plot(Plot {
            title: "silent connections",
            across: "seconds of silence",
            upward: "1 lives, 0 has ended",
            curves: vec![("connections", seen.silent.iter().map(point).collect())],
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::probe::Verdict;

    /// A path that ends silent connections after so many seconds.
    fn seen(longest: u64, limit: u64, outcome: Outcome, keepalives: u64) -> Seen {
        let silent = |span: Duration| Silent {
            span,
            outcome: match span.as_secs() < limit {
                true => Outcome::Alive,
                false => outcome,
            },
            keepalives: Some(keepalives),
        };
        Seen {
            silent: ladder(Duration::from_secs(longest))
                .into_iter()
                .map(silent)
                .collect(),
            talks: true,
            held: None,
        }
    }

    #[test]
    fn a_ladder_ends_where_it_was_asked_to() {
        let spans = ladder(Duration::from_secs(360));
        assert_eq!(spans.last(), Some(&Duration::from_secs(360)));
        assert_eq!(spans.len(), 12);
        assert!(spans[0] > LEAST && spans.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(ladder(LEAST / 2), [LEAST / 2]);
        let closer = between(Duration::from_secs(100), Duration::from_secs(190));
        assert_eq!(closer.first(), Some(&Duration::from_secs(110)));
        assert_eq!(closer.last(), Some(&Duration::from_secs(180)));
    }

    #[test]
    fn each_end_of_a_silence_has_its_words() {
        let never = 1000;
        for (seen, verdict, text) in [
            (
                seen(360, never, Outcome::Silence, 0),
                Verdict::Ok,
                "live for 360s",
            ),
            (
                seen(360, 350, Outcome::Silence, 0),
                Verdict::Fail,
                "between 240s and 360s, by silence, not RST",
            ),
            (
                seen(360, 350, Outcome::EndedThen(End::Reset), 0),
                Verdict::Fail,
                "by RST when spoken to",
            ),
            (
                seen(360, 350, Outcome::EndedBefore(End::Fin), 0),
                Verdict::Fail,
                "by FIN, which came during",
            ),
            (
                seen(360, never, Outcome::Silence, 3),
                Verdict::Note,
                "masked: the other end sends a keepalive about every 120s",
            ),
            (
                seen(360, 1, Outcome::Silence, 0),
                Verdict::Fail,
                "between 0s and",
            ),
        ] {
            let finding = judge(&seen);
            assert_eq!(finding.verdict, verdict, "{}", finding.text);
            assert!(finding.text.contains(text), "{}", finding.text);
        }
    }

    #[test]
    fn an_end_that_came_by_chance_when_this_end_spoke_was_no_answer() {
        let mut limited = seen(360, 100, Outcome::EndedBefore(End::Fin), 0);
        let mut ended = limited.silent.iter_mut();
        let first = ended.find(|one| one.outcome != Outcome::Alive);
        first.expect("it ended").outcome = Outcome::EndedThen(End::Fin);
        assert!(judge(&limited).text.contains("which came during"));
    }

    #[test]
    fn a_path_that_is_gone_is_not_blamed_on_silence() {
        let mut gone = seen(360, 350, Outcome::Silence, 0);
        gone.talks = false;
        assert!(judge(&gone).text.contains("not the silence"));
    }

    #[test]
    fn a_keepalive_that_was_tried_is_named() {
        for (holds, text) in [
            (true, "keepalive every 170s holds"),
            (false, "does not hold"),
        ] {
            let mut tried = seen(360, 350, Outcome::Silence, 0);
            tried.held = Some((Duration::from_secs(170), holds));
            assert!(judge(&tried).text.contains(text));
        }
    }
}
