//! `end/*` and `reset/*`: half-close at many points, and resets.
//!
//! A FIN ends one direction (RFC 9293, section 3.6): what the peer still owes must come, and then its
//! own FIN.  Many a proxy takes the first FIN for the end of both.

use std::time::{Duration, Instant};

use super::Run;
use super::bytes::Conversation;
use super::connect::echo;
use super::talk::{Before, End, Talk, drive, pause};
use super::verdict::{Finding, Judged, NotJudged, bytes, span};

const STANDARD: &str = "RFC 9293 3.6";

/// What is known to take the first FIN for the end of both directions.
const CLOSES_BOTH: &str = "nginx stream without proxy_half_close on does so, and ncat --exec";

/// Counts of bytes around those at which buffers and packets end.
const POINTS: [u64; 16] = [
    1, 2, 8, 536, 1448, 1460, 1461, 4095, 4096, 4097, 16_383, 16_384, 16_385, 65_535, 65_536,
    262_144,
];

/// For how long nothing may move before all buffers on the way are taken to be full.
const STUCK: Duration = Duration::from_secs(1);

/// What may be sent while nothing is read.
pub(super) const HELD_MOST: u64 = 32 << 20;

/// Sends `quota` bytes with our FIN behind them on each connection, and reads to the end.
fn half_close(run: &Run<'_>, quotas: &[u64]) -> Result<Vec<Conversation>, NotJudged> {
    let mut talks = run.dial_many(quotas.iter().map(|_| Before::default()))?;
    for (talk, quota) in talks.iter_mut().zip(quotas) {
        talk.quota = *quota;
        talk.finishes = true;
    }
    run.drive(&mut talks, |talks| talks.iter().all(Talk::is_settled));
    Ok(talks.iter_mut().map(Conversation::of).collect())
}

pub(super) fn nothing(run: &Run<'_>) -> Judged {
    Ok(judge(&half_close(run, &[0])?[0], run.plan.patience))
}

pub(super) fn little(run: &Run<'_>) -> Judged {
    Ok(judge(&half_close(run, &[1000])?[0], run.plan.patience))
}

pub(super) fn much(run: &Run<'_>) -> Judged {
    Ok(judge(&half_close(run, &[1 << 20])?[0], run.plan.patience))
}

pub(super) fn points(run: &Run<'_>) -> Judged {
    let seen = half_close(run, &POINTS)?;
    Ok(judge_points(&seen, run.plan.patience))
}

pub(super) fn full(run: &Run<'_>) -> Judged {
    let mut talks = [run.dial()?];
    fill(&mut talks, HELD_MOST);
    // Behind all of it.
    talks[0].finishes = true;
    drive(&mut talks, Instant::now() + STUCK, |_| false);
    talks[0].reads = true;
    run.drive(&mut talks, |talks| talks[0].is_settled());
    Ok(judge(&Conversation::of(&mut talks[0]), run.plan.patience))
}

/// Sends without reading until nothing moves any more, or `most` bytes are sent.
pub(super) fn fill(talks: &mut [Talk; 1], most: u64) {
    talks[0].reads = false;
    talks[0].quota = most;
    let (mut sent, mut since) = (0, Instant::now());
    drive(talks, since + Duration::from_secs(60), |talks| {
        if talks[0].sent > sent {
            (sent, since) = (talks[0].sent, Instant::now());
        }
        talks[0].sent == most || talks[0].end.is_some() || since.elapsed() > STUCK
    });
    talks[0].quota = talks[0].sent;
}

/// What is wrong with an end, if something is, and a cause that fits.
fn fault(seen: &Conversation, patience: Duration) -> Option<Finding> {
    let (sent, came) = (seen.sent, seen.came);
    if let Some(wrong) = &seen.wrong {
        return Some(Finding::fail(wrong.clone()).see("RFC 862"));
    }
    let owed = format!("after our FIN {came} of {sent} owed bytes came back");
    let all = match sent {
        0 => "our FIN".to_owned(),
        _ => format!("all {} came back, then our FIN", bytes(sent)),
    };
    let text = match seen.end {
        Some(End::Fin) if came == sent => return None,
        Some(end) if came < sent => format!("{owed}, then the end {}", end.words()),
        None if came < sent => {
            let side = seen.where_it_hangs();
            format!("{owed}, then nothing for {}{side}", span(patience))
        }
        Some(end) => format!("{all} was answered {} instead of by FIN", end.words()),
        None => format!("{all} was not answered within {}", span(patience)),
    };
    let finding = Finding::fail(text).see(STANDARD);
    // As measured: they close both sides as soon as one of them has finished.
    let fits = came < sent && matches!(seen.end, Some(End::Fin | End::Reset));
    Some(match fits {
        true => finding.because(CLOSES_BOTH),
        false => finding,
    })
}

fn judge(seen: &Conversation, patience: Duration) -> Finding {
    let good = || match seen.sent {
        0 => Finding::ok("our FIN is answered by a FIN"),
        sent => Finding::ok(format!(
            "all {} came back after our FIN, then a FIN",
            bytes(sent)
        )),
    };
    fault(seen, patience)
        .unwrap_or_else(good)
        .with("sent", seen.sent)
        .with("came_back", seen.came)
}

fn judge_points(seen: &[Conversation], patience: Duration) -> Finding {
    let faults: Vec<_> = seen
        .iter()
        .filter_map(|one| fault(one, patience).map(|fault| (one.sent, fault)))
        .collect();
    match faults.first() {
        None => Finding::ok(format!(
            "our FIN after {} to {}, at {} points: all came back, then a FIN",
            POINTS[0],
            bytes(POINTS[POINTS.len() - 1]),
            seen.len()
        )),
        Some((_, first)) => {
            let at: Vec<_> = faults.iter().map(|(sent, _)| sent.to_string()).collect();
            let at = match faults.len() == seen.len() {
                true => format!("at all {} points", seen.len()),
                false => format!(
                    "at {} of {} points ({})",
                    at.len(),
                    seen.len(),
                    at.join(", ")
                ),
            };
            Finding {
                text: format!("{at}: {}", first.text),
                ..first.clone()
            }
        }
    }
    .with("points", seen.len() as u64)
    .with("faulty", faults.len() as u64)
}

/// Connections that are reset.
const RESETS: usize = 16;

/// What resets do to others.
#[derive(Clone, Copy, Debug)]
struct Resets {
    /// Whether a conversation beside them went on.
    beside: bool,
    /// Whether a new one was answered after them.
    after: bool,
}

pub(super) fn reset(run: &Run<'_>) -> Judged {
    let mut beside = run.dial()?;
    let mut good = echo(run, &mut beside).is_some();
    let mut talks = run.dial_many((0..RESETS).map(|_| Before::default()))?;
    for (index, talk) in talks.iter_mut().enumerate() {
        // With nothing owed, a little, and much.
        talk.quota = [0, 100, 1 << 20][index % 3];
        talk.reads = false;
    }
    drive(
        &mut talks,
        Instant::now() + Duration::from_millis(200),
        |_| false,
    );
    for talk in talks {
        talk.reset();
        good = good && echo(run, &mut beside).is_some();
    }
    pause(Duration::from_millis(50));
    good = good && echo(run, &mut beside).is_some();
    let after = run
        .dial()
        .is_ok_and(|mut talk| echo(run, &mut talk).is_some());
    Ok(judge_resets(Resets {
        beside: good,
        after,
    }))
}

fn judge_resets(seen: Resets) -> Finding {
    match (seen.beside, seen.after) {
        (true, true) => Finding::ok(format!("{RESETS} resets disturb no other conversation")),
        (false, true) => Finding::fail(format!(
            "a conversation beside {RESETS} resets was disturbed"
        )),
        (true, false) => Finding::fail(format!(
            "after {RESETS} resets no new conversation is answered"
        )),
        (false, false) => Finding::fail(format!(
            "after {RESETS} resets neither an old nor a new conversation is answered"
        )),
    }
    .with("resets", RESETS as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::probe::Verdict;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn seen(sent: u64, came: u64, end: Option<End>) -> Conversation {
        Conversation {
            sent,
            came,
            wrong: None,
            end,
            hangs: None,
        }
    }

    #[test]
    fn an_end_is_judged_by_what_came_and_how_it_ended() {
        for (seen, verdict, text, cause) in [
            (
                seen(1000, 1000, Some(End::Fin)),
                Verdict::Ok,
                "all 1000 bytes came back",
                None,
            ),
            (
                seen(0, 0, Some(End::Fin)),
                Verdict::Ok,
                "answered by a FIN",
                None,
            ),
            (
                seen(1000, 0, Some(End::Fin)),
                Verdict::Fail,
                "0 of 1000 owed bytes came back, then the end by FIN",
                Some(CLOSES_BOTH),
            ),
            (
                seen(1000, 10, Some(End::Reset)),
                Verdict::Fail,
                "then the end by RST",
                Some(CLOSES_BOTH),
            ),
            (
                seen(1000, 10, None),
                Verdict::Fail,
                "then nothing for 5.00 s",
                None,
            ),
            (
                seen(1000, 1000, None),
                Verdict::Fail,
                "not answered within 5.00 s",
                None,
            ),
            (
                seen(1000, 1000, Some(End::Reset)),
                Verdict::Fail,
                "by RST instead of by FIN",
                None,
            ),
            (
                seen(0, 0, None),
                Verdict::Fail,
                "our FIN was not answered",
                None,
            ),
        ] {
            let finding = judge(&seen, PATIENCE);
            assert_eq!(finding.verdict, verdict, "{seen:?}");
            assert!(finding.text.contains(text), "{}", finding.text);
            assert_eq!(finding.cause, cause, "{seen:?}");
        }
        let wrong = Conversation {
            wrong: Some("5 bytes changed at 3".into()),
            ..seen(9, 9, Some(End::Fin))
        };
        assert_eq!(judge(&wrong, PATIENCE).text, "5 bytes changed at 3");
    }

    #[test]
    fn points_name_those_that_are_lost() {
        let good = seen(8, 8, Some(End::Fin));
        assert_eq!(
            judge_points(&[good.clone(), good.clone()], PATIENCE).verdict,
            Verdict::Ok
        );
        let finding = judge_points(&[good, seen(4096, 0, Some(End::Fin))], PATIENCE);
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(
            finding.text.starts_with("at 1 of 2 points (4096): "),
            "{}",
            finding.text
        );
    }

    #[test]
    fn resets_must_not_matter() {
        for (beside, after) in [(true, true), (true, false), (false, true), (false, false)] {
            let finding = judge_resets(Resets { beside, after });
            assert_eq!(finding.verdict == Verdict::Ok, beside && after);
        }
    }
}
