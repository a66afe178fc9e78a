//! `proxy/*`: does a receiver of PROXY headers take each header that the specification allows, however
//! it arrives, and refuse what it must?
//!
//! The specification is haproxy's doc/proxy-protocol.txt.  A receiver may drop a connection whose
//! header arrives in parts (section 2 recommends to take it), may reject an unspecified family, and
//! need not take a header that is longer than 536 bytes: to refuse these is worth a note, no fault.
//!
//! With `--proxy-receiver` a header stands before the bytes of each conversation, in the other cases,
//! too.

use std::time::{Duration, Instant};

use super::Run;
use super::bytes::Conversation;
use super::talk::{Before, End, Talk, drive, pause};
use super::verdict::{Finding, Judged, NotJudged};
use crate::proxy_header::{
    LOCAL, PADDING, PROXY, TCP4, TCP6, UNSPECIFIED, binary, extension, with_checksum,
};

const STANDARD: &str = "proxy-protocol.txt 2";

/// Bytes behind a header.
const PAYLOAD: u64 = 100;

/// Between the parts of a header.
const BETWEEN: Duration = Duration::from_millis(20);

/// From 192.0.2.1:56324 to 198.51.100.1:7 (RFC 5737).
const ADDRESSES4: &[u8; 12] = &[192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0, 7];

fn version1() -> Vec<u8> {
    b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 7\r\n".to_vec()
}

/// The header that stands before the bytes of other cases.
pub(super) fn usual() -> Vec<u8> {
    binary(PROXY, TCP4, ADDRESSES4)
}

fn addresses6() -> Vec<u8> {
    let host = |last: u8| [[0x20, 1, 0x0d, 0xb8], [0; 4], [0; 4], [0, 0, 0, last]].concat();
    [host(1), host(7), vec![0xdc, 0x04, 0, 7]].concat()
}

fn ready(run: &Run<'_>) -> Result<(), NotJudged> {
    match run.plan.preamble.is_empty() {
        true => Err(NotJudged::Skipped(
            "this is about receivers of PROXY headers (--proxy-receiver)",
        )),
        false => Ok(()),
    }
}

/// What becomes of a conversation behind each header, which is cut in two where that is said.
fn converse(
    run: &Run<'_>,
    headers: &[(Vec<u8>, Option<usize>)],
) -> Result<Vec<Conversation>, NotJudged> {
    let bare = headers.iter().map(|_| Before {
        bare: true,
        ..Before::default()
    });
    let mut talks = run.dial_many(bare)?;
    for (talk, (header, cut)) in talks.iter_mut().zip(headers) {
        talk.preamble = header[..cut.unwrap_or(header.len())].to_vec();
    }
    drive(&mut talks, Instant::now() + BETWEEN, |_| false);
    pause(BETWEEN);
    for (talk, (header, cut)) in talks.iter_mut().zip(headers) {
        talk.preamble
            .extend_from_slice(&header[cut.unwrap_or(header.len())..]);
        talk.quota = PAYLOAD;
    }
    run.drive(&mut talks, |talks| talks.iter().all(Talk::is_settled));
    Ok(talks.iter_mut().map(Conversation::of).collect())
}

/// Whether a header must be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    Must,
    May,
}
use Duty::{May, Must};

/// Tries headers, each with its name.
fn taken(run: &Run<'_>, headers: &[(Duty, &str, Vec<u8>)]) -> Judged {
    ready(run)?;
    let whole = headers.iter().map(|(_, _, header)| (header.clone(), None));
    let seen = converse(run, &whole.collect::<Vec<_>>())?;
    let faults = headers
        .iter()
        .zip(&seen)
        .filter_map(|((duty, name, _), seen)| {
            let fault = seen.fault(run.plan.patience)?;
            Some((*duty, format!("{name}: {fault}")))
        });
    Ok(judge_taken(&faults.collect::<Vec<_>>(), headers.len()))
}

fn judge_taken(faults: &[(Duty, String)], count: usize) -> Finding {
    let texts: Vec<_> = faults.iter().map(|(_, text)| text.as_str()).collect();
    let text = texts.join("; ");
    if faults.is_empty() {
        Finding::ok(format!("all {count} are taken"))
    } else if faults.iter().any(|(duty, _)| *duty == Must) {
        Finding::fail(text).see(STANDARD)
    } else {
        Finding::note(format!("{text}; the specification allows it")).see(STANDARD)
    }
}

pub(super) fn v1(run: &Run<'_>) -> Judged {
    let v6 = b"PROXY TCP6 2001:db8::1 2001:db8::7 56324 7\r\n".to_vec();
    let unknown = b"PROXY UNKNOWN\r\n".to_vec();
    let longest = format!(
        "PROXY UNKNOWN {} {} 65535 65535\r\n",
        ["ffff"; 8].join(":"),
        ["ffff"; 8].join(":")
    );
    taken(
        run,
        &[
            (Must, "TCP4", version1()),
            (Must, "TCP6", v6),
            (Must, "UNKNOWN", unknown),
            (Must, "UNKNOWN with addresses", longest.into_bytes()),
        ],
    )
}

pub(super) fn v2(run: &Run<'_>) -> Judged {
    taken(
        run,
        &[
            (Must, "TCP4", usual()),
            (Must, "TCP6", binary(PROXY, TCP6, &addresses6())),
            (May, "UNSPEC", binary(PROXY, UNSPECIFIED, &[])),
        ],
    )
}

pub(super) fn local(run: &Run<'_>) -> Judged {
    taken(
        run,
        &[
            (Must, "LOCAL", binary(LOCAL, UNSPECIFIED, &[])),
            (
                Must,
                "LOCAL with addresses",
                binary(LOCAL, TCP4, ADDRESSES4),
            ),
            (
                Must,
                "LOCAL with other bytes",
                binary(LOCAL, UNSPECIFIED, &[0xaa; 77]),
            ),
        ],
    )
}

pub(super) fn long(run: &Run<'_>) -> Judged {
    let header = |length: usize| {
        let rest = [&ADDRESSES4[..], &extension(PADDING, &vec![0; length])].concat();
        binary(PROXY, TCP4, &rest)
    };
    taken(
        run,
        &[
            (Must, "a TLV of 256 bytes", header(256)),
            (May, "a TLV of 4096 bytes", header(4096)),
            (May, "a TLV of 32768 bytes", header(32_768)),
        ],
    )
}

/// A header that is cut at each byte.
fn split(run: &Run<'_>, header: &[u8]) -> Judged {
    ready(run)?;
    let cuts: Vec<_> = (1..header.len())
        .map(|cut| (header.to_vec(), Some(cut)))
        .collect();
    let seen = converse(run, &cuts)?;
    let faults = (1..)
        .zip(&seen)
        .filter_map(|(cut, seen): (usize, _)| Some((cut, seen.fault(run.plan.patience)?)));
    Ok(judge_split(&faults.collect::<Vec<_>>(), seen.len()))
}

fn judge_split(faults: &[(usize, String)], count: usize) -> Finding {
    match faults {
        [] => Finding::ok(format!("taken, cut in two at any of {count} places")),
        [(_, first), ..] => {
            let cuts: Vec<_> = faults.iter().map(|(cut, _)| *cut).collect();
            Finding::note(format!(
                "cut in two behind byte {}: {first}; the specification allows it, and recommends \
                 to take a header in parts",
                ranges(&cuts)
            ))
            .see(STANDARD)
        }
    }
    .with("cuts", count as u64)
    .with("faulty", faults.len() as u64)
}

/// Numbers in ascending order, as ranges.
fn ranges(numbers: &[usize]) -> String {
    let of = |run: &[usize]| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    };
    let runs = numbers.chunk_by(|one, next| one + 1 == *next);
    runs.map(of).collect::<Vec<_>>().join(", ")
}

pub(super) fn split1(run: &Run<'_>) -> Judged {
    split(run, &version1())
}

pub(super) fn split2(run: &Run<'_>) -> Judged {
    let noop = extension(PADDING, &[0; 9]);
    split(
        run,
        &binary(PROXY, TCP4, &[&ADDRESSES4[..], &noop].concat()),
    )
}

pub(super) fn checksum(run: &Run<'_>) -> Judged {
    ready(run)?;
    let headers = [0, 1].map(|flipped| (with_checksum(PROXY, TCP4, ADDRESSES4, flipped), None));
    let seen = converse(run, &headers)?;
    let right = seen[0].fault(run.plan.patience);
    Ok(judge_checksum(right, &seen[1]))
}

fn judge_checksum(right: Option<String>, wrong: &Conversation) -> Finding {
    match (right, wrong.came, wrong.end) {
        (Some(fault), _, _) => Finding::fail(format!("a right CRC32c: {fault}")),
        (None, 0, Some(End::Fin | End::Reset)) => {
            Finding::ok("a right CRC32c is taken, a wrong one refused")
        }
        (None, 0, _) => Finding::note("a wrong CRC32c is neither taken nor refused: silence"),
        (None, _, _) => Finding::note("a wrong CRC32c is taken: the receiver does not check it"),
    }
    .see(STANDARD)
}

pub(super) fn without(run: &Run<'_>) -> Judged {
    ready(run)?;
    let seen = converse(run, &[(Vec::new(), None)])?;
    Ok(judge_without(&seen[0]))
}

fn judge_without(seen: &Conversation) -> Finding {
    match (seen.came, seen.end) {
        (0, Some(_)) => Finding::ok("a connection without a header is refused"),
        (0, None) => Finding::note("a connection without a header is neither served nor refused"),
        _ => Finding::fail("a connection without a header is served: its source can be forged")
            .see(STANDARD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::probe::Verdict;

    fn seen(came: u64, end: Option<End>) -> Conversation {
        Conversation {
            sent: PAYLOAD,
            came,
            wrong: None,
            end,
            hangs: None,
        }
    }

    #[test]
    fn headers_have_the_lengths_that_they_say() {
        for header in [
            usual(),
            with_checksum(PROXY, TCP4, ADDRESSES4, 0),
            binary(PROXY, TCP6, &addresses6()),
        ] {
            let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
            assert_eq!(header.len(), 16 + length);
        }
        assert_eq!(addresses6().len(), 36);
    }

    #[test]
    fn places_are_named_as_ranges() {
        assert_eq!(ranges(&[1, 2, 3, 14, 16, 17]), "1-3, 14, 16-17");
        assert_eq!(judge_split(&[], 30).verdict, Verdict::Ok);
        let finding = judge_split(&[(14, "ended by RST".into())], 30);
        assert_eq!(finding.verdict, Verdict::Note);
        let text = "cut in two behind byte 14: ended by RST; ";
        assert!(finding.text.starts_with(text), "{}", finding.text);
    }

    #[test]
    fn what_must_be_refused_is_judged() {
        let closed = seen(0, Some(End::Fin));
        assert_eq!(judge_checksum(None, &closed).verdict, Verdict::Ok);
        assert_eq!(
            judge_checksum(None, &seen(100, None)).verdict,
            Verdict::Note
        );
        assert_eq!(judge_checksum(None, &seen(0, None)).verdict, Verdict::Note);
        assert_eq!(
            judge_checksum(Some("x".into()), &closed).verdict,
            Verdict::Fail
        );
        assert_eq!(judge_without(&closed).verdict, Verdict::Ok);
        assert_eq!(judge_without(&seen(0, None)).verdict, Verdict::Note);
        assert_eq!(judge_without(&seen(100, None)).verdict, Verdict::Fail);
        let taken = |faults: &[Duty]| {
            let faults: Vec<_> = faults.iter().map(|duty| (*duty, "no".into())).collect();
            judge_taken(&faults, 3).verdict
        };
        assert_eq!(taken(&[]), Verdict::Ok);
        assert_eq!(taken(&[May]), Verdict::Note);
        assert_eq!(taken(&[May, Must]), Verdict::Fail);
    }
}
