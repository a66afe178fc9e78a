//! `window/*` and `urgent/*`: what else TCP can do to a stream.

use std::time::{Duration, Instant};

use super::Run;
use super::bytes::Conversation;
use super::end::{HELD_MOST, fill};
use super::talk::{End, drive};
use super::verdict::{Finding, Judged, bytes, span};
use crate::client::pattern::Wrong;

/// How long nothing is read.
const CLOSED: Duration = Duration::from_secs(3);

pub(super) fn window(run: &Run<'_>) -> Judged {
    let mut talks = [run.dial()?];
    let begun = Instant::now();
    fill(&mut talks, HELD_MOST);
    drive(&mut talks, begun + CLOSED, |talks| talks[0].end.is_some());
    talks[0].reads = true;
    run.drive(&mut talks, |talks| talks[0].is_settled());
    let seen = Conversation::of(&mut talks[0]);
    Ok(judge_window(&seen, run.plan.patience))
}

fn judge_window(seen: &Conversation, patience: Duration) -> Finding {
    let closed = span(CLOSED);
    let of = format!("{} of {}", seen.came, bytes(seen.sent));
    let finding = if let Some(wrong) = &seen.wrong {
        Finding::fail(format!("after {closed} without reading: {wrong}"))
    } else if let Some(end) = seen.end {
        Finding::fail(format!(
            "after {closed} without reading {of} came back, then the end {}",
            end.words()
        ))
    } else if seen.came < seen.sent {
        Finding::fail(format!(
            "after {closed} without reading {of} came back, then nothing for {}{}",
            span(patience),
            seen.where_it_hangs()
        ))
    } else if seen.sent == HELD_MOST {
        Finding::note(format!(
            "{} were taken without being held back, and all of it came back: the buffers on the \
             way are larger than that, or have no bound",
            bytes(seen.sent)
        ))
    } else {
        Finding::ok(format!(
            "closed for {closed}; {} held on the way, all of it came back",
            bytes(seen.sent)
        ))
    };
    finding
        .see("RFC 9293 3.8.6")
        .with("held_bytes", seen.sent)
        .with("came_back", seen.came)
}

/// Bytes before the urgent one, and in all.
const URGENT_AT: u64 = 10;
const URGENT_OF: u64 = 128;

/// What became of the urgent byte.
#[derive(Clone, Debug)]
struct Urgent {
    conversation: Conversation,
    /// Whether the one fault is that it is missing.
    left_out: bool,
}

pub(super) fn urgent(run: &Run<'_>) -> Judged {
    let mut talks = [run.dial()?];
    talks[0].quota = URGENT_AT;
    run.drive(&mut talks, |talks| talks[0].is_settled());
    // A failure shows in what comes.
    let _ = talks[0].send_urgent();
    talks[0].quota = URGENT_OF;
    // One byte less may come.
    run.drive(&mut talks, |talks| {
        let talk = &talks[0];
        let most = talk.received() == URGENT_OF - 1 && talk.checker.is_wrong();
        most || talk.is_settled()
    });
    let left_out = Wrong::Missing {
        offset: URGENT_AT,
        bytes: 1,
    };
    let conversation = Conversation::of(&mut talks[0]);
    Ok(judge_urgent(
        &Urgent {
            left_out: talks[0].checker.wrong() == [left_out] && conversation.came == URGENT_OF - 1,
            conversation,
        },
        run.plan.patience,
    ))
}

fn judge_urgent(seen: &Urgent, patience: Duration) -> Finding {
    let Conversation {
        sent,
        came,
        wrong,
        end,
        ..
    } = &seen.conversation;
    match (wrong, end) {
        (_, None) if seen.left_out => Finding::note(
            "the urgent byte is left out, and the rest comes back: a socket without SO_OOBINLINE \
             takes it out of the stream",
        ),
        (Some(wrong), _) => Finding::fail(format!("around an urgent byte: {wrong}")),
        (None, Some(End::Reset)) => Finding::fail("an urgent byte is answered by RST"),
        (None, Some(end)) => Finding::fail(format!(
            "an urgent byte ends the connection {}",
            end.words()
        )),
        (None, None) if came < sent => Finding::fail(format!(
            "with an urgent byte {came} of {sent} bytes came back, then nothing for {}",
            span(patience)
        )),
        (None, None) => Finding::ok("an urgent byte comes back in line, in its place"),
    }
    .see("RFC 6093")
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
    fn a_window_that_was_closed() {
        let wrong = Conversation {
            wrong: Some("5 bytes missing at 3".into()),
            ..seen(9, 9, None)
        };
        for (seen, verdict, text) in [
            (
                seen(4 << 20, 4 << 20, None),
                Verdict::Ok,
                "4 MiB held on the way",
            ),
            (
                seen(HELD_MOST, HELD_MOST, None),
                Verdict::Note,
                "have no bound",
            ),
            (
                seen(4 << 20, 3, None),
                Verdict::Fail,
                "then nothing for 5.00 s",
            ),
            (
                seen(4 << 20, 3, Some(End::Reset)),
                Verdict::Fail,
                "the end by RST",
            ),
            (wrong, Verdict::Fail, "5 bytes missing at 3"),
        ] {
            let finding = judge_window(&seen, PATIENCE);
            assert_eq!(finding.verdict, verdict, "{seen:?}");
            assert!(finding.text.contains(text), "{}", finding.text);
        }
    }

    #[test]
    fn an_urgent_byte() {
        let wrong = Conversation {
            wrong: Some("1 bytes missing at 10".into()),
            ..seen(128, 127, None)
        };
        for (conversation, left_out, verdict) in [
            (seen(128, 128, None), false, Verdict::Ok),
            (wrong.clone(), true, Verdict::Note),
            (wrong, false, Verdict::Fail),
            (seen(128, 10, None), false, Verdict::Fail),
            (seen(128, 10, Some(End::Reset)), false, Verdict::Fail),
            (seen(128, 10, Some(End::Fin)), false, Verdict::Fail),
        ] {
            let seen = Urgent {
                conversation,
                left_out,
            };
            assert_eq!(judge_urgent(&seen, PATIENCE).verdict, verdict, "{seen:?}");
        }
    }
}
