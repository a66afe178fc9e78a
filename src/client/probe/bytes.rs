//! `bytes/*` and `order/*`: what was sent comes back, each byte in its place and on its connection.

use std::time::{Duration, Instant};

use super::Run;
use super::talk::{Before, End, Talk};
use super::verdict::{Finding, Judged, Plot, bytes, span, wrong};
use super::watch::Side;

/// What is sent in single bytes, and how many of those wait for the one before to come back.
const SMALL: u64 = 2048;
const ALONE: u64 = 8;

/// What is sent at most as one large stream, and for how long.
const BULK_LOCAL: u64 = 256 << 20;
pub(super) const BULK_REMOTE: u64 = 64 << 20;
const BULK_SPAN: Duration = Duration::from_secs(10);

/// Connections at once, and what is sent on each.
pub(super) const MANY: usize = 64;
pub(super) const EACH: u64 = 64 << 10;

/// A conversation, after it.
#[derive(Clone, Debug, Default)]
pub(super) struct Conversation {
    pub(super) sent: u64,
    pub(super) came: u64,
    /// What is wrong with the bytes.
    pub(super) wrong: Option<String>,
    pub(super) end: Option<End>,
    /// Where the next byte hangs, if more should come; `None` if the kernel does not say.
    pub(super) hangs: Option<Side>,
}

impl Conversation {
    pub(super) fn of(talk: &mut Talk) -> Self {
        talk.checker.finish();
        Self {
            sent: talk.sent,
            came: talk.received(),
            wrong: wrong(&talk.checker),
            end: talk.end,
            hangs: hangs(talk),
        }
    }

    /// Where the next byte hangs, as words behind others.
    pub(super) fn where_it_hangs(&self) -> String {
        self.hangs
            .map_or(String::new(), |side| format!(" ({side})"))
    }

    /// What is wrong while neither side should have ended it; `None` if all came back.
    pub(super) fn fault(&self, patience: Duration) -> Option<String> {
        let of = format!("{} of {}", self.came, bytes(self.sent));
        match (&self.wrong, self.end) {
            (Some(wrong), _) => Some(wrong.clone()),
            (None, Some(end)) if self.sent == 0 => Some(format!("ended {} at once", end.words())),
            (None, Some(end)) => Some(format!("ended {} when {of} had come back", end.words())),
            (None, None) if self.came < self.sent => Some(format!(
                "{of} came back, then nothing for {}{}",
                span(patience),
                self.where_it_hangs()
            )),
            (None, None) => None,
        }
    }
}

fn hangs(talk: &Talk) -> Option<Side> {
    if talk.end.is_some() || talk.received() >= talk.sent {
        return None;
    }
    let side = Side::of(None, talk.info().as_ref(), talk.received() + 1);
    (side != Side::Unknown).then_some(side)
}

pub(super) fn small(run: &Run<'_>) -> Judged {
    let mut talks = [run.dial()?];
    talks[0].piece = 1;
    // Alone at first, so that a server which waits for more shows.
    let settled = (1..=ALONE).all(|count| {
        talks[0].quota = count;
        run.drive(&mut talks, |talks| talks[0].is_settled())
    });
    if settled {
        talks[0].quota = SMALL;
        run.drive(&mut talks, |talks| talks[0].is_settled());
    }
    let seen = Conversation::of(&mut talks[0]);
    Ok(judge_small(&seen, run.plan.patience))
}

fn judge_small(seen: &Conversation, patience: Duration) -> Finding {
    match seen.fault(patience) {
        None => Finding::ok(format!(
            "{} sent one by one, each in its place",
            bytes(seen.sent)
        )),
        Some(fault) => Finding::fail(fault).see("RFC 862"),
    }
    .with("bytes", seen.came)
}

pub(super) fn bulk(run: &Run<'_>) -> Judged {
    let mut talks = [run.dial()?];
    talks[0].quota = match run.place.is_local() {
        true => BULK_LOCAL,
        false => BULK_REMOTE,
    };
    let begun = Instant::now();
    let mut course = vec![(0.0, 0)];
    run.drive(&mut talks, |talks| {
        let talk = &mut talks[0];
        if begun.elapsed() > BULK_SPAN {
            talk.quota = talk.sent;
        }
        let time = begun.elapsed().as_secs_f64();
        if time > course.last().map_or(0.0, |(last, _)| *last) + 0.1 {
            course.push((time, talk.received()));
        }
        talk.is_settled()
    });
    let took = talks[0].last.map_or(Duration::ZERO, |last| last - begun);
    let seen = Conversation::of(&mut talks[0]);
    Ok(judge_bulk(&seen, run.plan.patience, took).with_plot(speed(&course)))
}

/// The bytes that came by some times, as a curve of Mbit/s.
fn speed(course: &[(f64, u64)]) -> Plot {
    let rate = |pair: &[(f64, u64)]| {
        #[expect(clippy::cast_precision_loss, reason = "it is drawn")]
        let bits = (pair[1].1 - pair[0].1) as f64 * 8e-6;
        (pair[1].0, bits / (pair[1].0 - pair[0].0))
    };
    Plot {
        title: "echoed",
        across: "seconds",
        upward: "Mbit/s each way",
        curves: vec![("echoed", course.windows(2).map(rate).collect())],
    }
}

fn judge_bulk(seen: &Conversation, patience: Duration, took: Duration) -> Finding {
    let per_second = |count: u64| {
        let micros = took.as_micros().max(1);
        u64::try_from(u128::from(count) * 1_000_000 / micros).unwrap_or(u64::MAX)
    };
    match seen.fault(patience) {
        None => Finding::ok(format!(
            "{} each way in {}, each byte in its place",
            bytes(seen.came),
            span(took)
        ))
        .with("bytes_per_second", per_second(seen.came)),
        Some(fault) => Finding::fail(fault).see("RFC 862"),
    }
    .with("bytes", seen.came)
    .with_time("duration_us", took)
}

pub(super) fn many(run: &Run<'_>) -> Judged {
    let mut talks = run.dial_many((0..MANY).map(|_| Before::default()))?;
    for talk in &mut talks {
        talk.quota = EACH;
        talk.piece = 1000;
    }
    run.drive(&mut talks, |talks| talks.iter().all(Talk::is_settled));
    let seen: Vec<_> = talks.iter_mut().map(Conversation::of).collect();
    Ok(judge_many(&seen, run.plan.patience))
}

fn judge_many(seen: &[Conversation], patience: Duration) -> Finding {
    let faults: Vec<_> = seen.iter().filter_map(|one| one.fault(patience)).collect();
    match faults.first() {
        None => Finding::ok(format!(
            "{} connections at once, {} on each, no byte of another",
            seen.len(),
            bytes(EACH)
        )),
        Some(first) => Finding::fail(format!(
            "{} of {} connections at once: {first}",
            faults.len(),
            seen.len()
        )),
    }
    .with("connections", seen.len() as u64)
    .with("faulty", faults.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::probe::Verdict;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn each_fault_of_a_conversation_has_its_words() {
        let good = Conversation {
            sent: 2048,
            came: 2048,
            ..Conversation::default()
        };
        let short = Conversation {
            came: 7,
            ..good.clone()
        };
        let hangs = Conversation {
            hangs: Some(Side::Server),
            ..short.clone()
        };
        let reset = Conversation {
            end: Some(End::Reset),
            ..short.clone()
        };
        let wrong = Conversation {
            wrong: Some("1 bytes missing at 9".into()),
            ..good.clone()
        };
        for (seen, verdict, text) in [
            (good.clone(), Verdict::Ok, "2048 bytes sent one by one"),
            (
                short,
                Verdict::Fail,
                "7 of 2048 bytes came back, then nothing for 5.00 s",
            ),
            (
                hangs,
                Verdict::Fail,
                "then nothing for 5.00 s (acknowledged, not echoed: server or proxy)",
            ),
            (reset, Verdict::Fail, "ended by RST when 7 of 2048 bytes"),
            (wrong.clone(), Verdict::Fail, "1 bytes missing at 9"),
        ] {
            for finding in [
                judge_small(&seen, PATIENCE),
                judge_bulk(&seen, PATIENCE, PATIENCE),
            ] {
                assert_eq!(finding.verdict, verdict, "{finding:?}");
                let bulk = finding.text.contains("each way");
                assert!(bulk || finding.text.contains(text), "{}", finding.text);
            }
        }
        assert_eq!(
            judge_many(&[good.clone(), good.clone()], PATIENCE).verdict,
            Verdict::Ok
        );
        let some = judge_many(&[good, wrong], PATIENCE);
        assert_eq!(some.verdict, Verdict::Fail);
        assert!(some.text.starts_with("1 of 2 connections"), "{}", some.text);
    }
}
