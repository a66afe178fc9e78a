//! `connect/*`: does each address answer, and does the echo come from where TCP ends?

use std::time::{Duration, Instant};

use super::Run;
use super::talk::{Before, Talk, drive};
use super::verdict::{Finding, Judged, NotJudged, span};
use crate::client::outcome::Class;
use crate::client::ping::kernel::Hops;
use crate::client::target::Place;
use crate::sys::tcp_info::field;

/// Addresses that are tried.
const MOST: usize = 16;

/// Echoes from which the fastest is taken.
const ECHOES: usize = 20;

/// One address, and what became of the handshake.
#[derive(Clone, Debug)]
struct Handshake {
    place: Place,
    outcome: Result<Duration, Class>,
    /// SYNs that were sent again; `None` if the kernel does not say, or there is no connection.
    sent_again: Option<u64>,
}

pub(super) fn addresses(run: &Run<'_>) -> Judged {
    let observe = |place: &Place| {
        let talk = run.dialer.dial(place, Before::default());
        Handshake {
            place: place.clone(),
            sent_again: talk
                .as_ref()
                .ok()
                .and_then(|talk| talk.get(field::TOTAL_RETRANS)),
            outcome: talk.map(|talk| talk.connect_time()),
        }
    };
    let seen: Vec<_> = run.plan.places.iter().take(MOST).map(observe).collect();
    Ok(judge_addresses(&seen))
}

fn judge_addresses(seen: &[Handshake]) -> Finding {
    let mut parts = Vec::new();
    let (mut slow, mut refused, mut again) = (false, false, false);
    for handshake in seen {
        let kind = match &handshake.place {
            _ if seen.len() > 2 => handshake.place.to_string(),
            Place::Ip(address) if address.is_ipv4() => "IPv4".into(),
            Place::Ip(_) => "IPv6".into(),
            Place::Unix(_) => "Unix socket".into(),
        };
        parts.push(match handshake.outcome {
            Ok(time) => match handshake.sent_again.unwrap_or(0) {
                0 => format!("{kind} {}", span(time)),
                times => {
                    again = true;
                    let after = format!(
                        "{kind} {}, after its SYN was sent {}",
                        span(time),
                        times + 1
                    );
                    format!("{after} times")
                }
            },
            Err(class) => {
                refused |= class == Class::Refused;
                slow |= class != Class::Refused;
                format!("{kind} {} at {}", class.word(), handshake.place)
            }
        });
    }
    let text = parts.join("; ");
    let fastest = seen.iter().filter_map(|one| one.outcome.ok()).min();
    let finding = if slow {
        Finding::fail(format!(
            "{text}: clients wait there before they try another"
        ))
    } else if refused {
        Finding::note(format!("{text}: clients go on to another address"))
    } else if again {
        Finding::note(format!(
            "{text}: the SYN or its answer was lost, or the accept queue was full"
        ))
    } else {
        Finding::ok(format!("{text}; no SYN was sent twice"))
    };
    finding
        .with("addresses", seen.len() as u64)
        .with(
            "syn_sent_again",
            seen.iter().filter_map(|one| one.sent_again).sum::<u64>(),
        )
        .with_time("connect_us", fastest)
}

/// How far away TCP ends, and how far the echo comes from.
#[derive(Clone, Copy, Debug)]
struct Distances {
    connect: Duration,
    /// The kernel's least round trip; `None` if it does not say.
    tcp: Option<Duration>,
    echo: Duration,
    sent_again: u64,
}

pub(super) fn proxy(run: &Run<'_>) -> Judged {
    let mut talk = run.dial()?;
    let connect = talk.connect_time();
    let sent_again = talk.get(field::TOTAL_RETRANS).unwrap_or(0);
    let mut fastest = Duration::MAX;
    for _ in 0..ECHOES {
        let echo = echo(run, &mut talk).ok_or(NotJudged::Fail("an echo of 64 bytes stays out"))?;
        fastest = fastest.min(echo);
    }
    let min_rtt = talk.get(field::MIN_RTT).map(Duration::from_micros);
    Ok(judge_proxy(Distances {
        connect,
        tcp: min_rtt,
        echo: fastest,
        sent_again,
    }))
}

/// How long an echo of 64 bytes takes; `None` if it does not come.
pub(super) fn echo(run: &Run<'_>, talk: &mut Talk) -> Option<Duration> {
    echo_within(run.plan.patience, talk)
}

/// How long an echo of 64 bytes takes; `None` if it does not come in time.
pub(super) fn echo_within(patience: Duration, talk: &mut Talk) -> Option<Duration> {
    talk.quota += 64;
    let begun = Instant::now();
    let came = drive(std::slice::from_mut(talk), begun + patience, |talks| {
        talks[0].is_settled()
    });
    let right = came && talk.end.is_none() && !talk.checker.is_wrong();
    let last = talk.last.filter(|_| right)?;
    Some(last.saturating_duration_since(begun))
}

fn judge_proxy(seen: Distances) -> Finding {
    let with_figures = |finding: Finding| {
        finding
            .with_time("echo_min_us", seen.echo)
            .with_time("tcp_min_rtt_us", seen.tcp)
            .with_time("connect_us", seen.connect)
    };
    let Some(tcp) = seen.tcp else {
        return with_figures(Finding::skipped(
            "this kernel does not say how far away TCP ends",
        ));
    };
    if seen.sent_again > 0 {
        // Then the first round trip is the grain of the clock of timestamps.
        return with_figures(Finding::skipped(
            "the SYN was sent twice: the kernel has no round trip to compare with",
        ));
    }
    let hops = Hops {
        tcp,
        echo: seen.echo,
    };
    with_figures(match hops.are_apart() {
        true => Finding::note(format!(
            "TCP ends {} from here, and the echo comes from {}: a proxy ends TCP, or the server \
             takes its time",
            span(tcp),
            span(seen.echo)
        )),
        false => Finding::ok(format!(
            "the echo comes from where TCP ends ({} and {})",
            span(tcp),
            span(seen.echo)
        )),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::client::probe::Verdict;

    const MS: Duration = Duration::from_millis(1);

    fn handshake(address: &str, outcome: Result<Duration, Class>, again: u64) -> Handshake {
        Handshake {
            place: Place::Ip(address.parse().unwrap()),
            outcome,
            sent_again: Some(again),
        }
    }

    #[test]
    fn addresses_are_judged_by_how_they_answer() {
        let four = handshake("192.0.2.7:7", Ok(12 * MS), 0);
        let six = |outcome, again| handshake("[2001:db8::7]:7", outcome, again);
        for (seen, verdict, text) in [
            (
                vec![four.clone()],
                Verdict::Ok,
                "IPv4 12.0 ms; no SYN was sent twice",
            ),
            (
                vec![four.clone(), six(Ok(MS), 0)],
                Verdict::Ok,
                "IPv6 1.00 ms",
            ),
            (
                vec![four.clone(), six(Ok(1012 * MS), 1)],
                Verdict::Note,
                "sent 2 times",
            ),
            (
                vec![four.clone(), six(Err(Class::Refused), 0)],
                Verdict::Note,
                "IPv6 refused at [2001:db8::7]:7",
            ),
            (
                vec![four.clone(), six(Err(Class::TimedOut), 0)],
                Verdict::Fail,
                "IPv6 time-out",
            ),
        ] {
            let finding = judge_addresses(&seen);
            assert_eq!(finding.verdict, verdict, "{}", finding.text);
            assert!(finding.text.contains(text), "{}", finding.text);
        }
    }

    #[test]
    fn a_proxy_is_seen_by_the_distance() {
        let seen = |tcp, echo, sent_again| Distances {
            connect: MS,
            tcp,
            echo,
            sent_again,
        };
        let tenth = Duration::from_micros(100);
        for (seen, verdict) in [
            (seen(Some(12 * MS), 12 * MS, 0), Verdict::Ok),
            (seen(Some(tenth), 9 * tenth, 0), Verdict::Ok),
            (seen(Some(tenth), 12 * MS, 0), Verdict::Note),
            (seen(Some(20 * MS), 35 * MS, 0), Verdict::Ok),
            (seen(Some(MS), 12 * MS, 1), Verdict::Skipped),
            (seen(None, 12 * MS, 0), Verdict::Skipped),
        ] {
            assert_eq!(judge_proxy(seen).verdict, verdict, "{seen:?}");
        }
    }
}
