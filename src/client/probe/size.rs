//! `size/*`: which packets pass, in each direction, and whether anything says so where one does not.
//!
//! A ladder of connections, each with its own largest segment (`TCP_MAXSEG` of tcp(7), set before
//! the handshake, which announces it to the peer as well).  The rungs of both directions are opened
//! before anything is sent on one: a path MTU that the kernel of either end has learnt lowers what
//! later connections announce, and hides the fault.
//!
//! - Up: full segments are sent.  What the peer's host acknowledges has arrived, whatever comes back.
//! - Down: the requests are small, so that they arrive where large ones would not.  Our window is
//!   closed meanwhile; when it opens, the echo comes in segments that are as large as allowed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Run;
use super::talk::{Before, Talk, drive};
use super::verdict::{Finding, Judged, NotJudged, Plot};
use crate::client::target::Place;
use crate::sys::tcp_info::{Field, TcpInfo, field};

/// Packets that end at limits which exist: the least of IPv4 and IPv6, tunnels, Ethernet, jumbo
/// frames; in bytes, with the headers of IP and TCP.
const RUNGS: [u64; 20] = [
    576, 1024, 1280, 1300, 1320, 1340, 1360, 1380, 1400, 1412, 1420, 1440, 1452, 1460, 1480, 1492,
    1500, 4000, 9000, 32_000,
];

/// The largest packet: `TCP_MAXSEG` takes segments up to 32 767 bytes.
const LARGEST: u64 = 32_767;

/// The largest packet of the way down, so that the server's buffers hold what is to come.
const LARGEST_BACK: u64 = 9000;

/// The longest packet of IP, in bytes: no path MTU is larger.
const LONGEST: u64 = 65_535;

/// How long a rung has: some retransmissions.
const WAIT: Duration = Duration::from_secs(4);

/// Rungs between two others, and how often there are such.
const BETWEEN: u64 = 16;
const ROUNDS: usize = 3;

/// How often a size that was lost or late is tried again.
const AGAIN: usize = 2;

/// Bytes of a small segment, and how many of them may be on the way: fewer than a connection may
/// have there at its beginning, so that none waits and is joined with another.
const LITTLE: usize = 500;
const AT_ONCE: u64 = 8;

/// `TCPI_OPT_TIMESTAMPS` of linux/tcp.h, and the bytes of that option in each segment.
const TIMESTAMPS: u64 = 1;
const TIMESTAMPS_BYTES: u64 = 12;

/// What became of one size; the later, the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Passage {
    Passes,
    /// The kernel has learnt this path MTU, and went on with smaller packets.
    Learnt(u64),
    /// It passed, but by smaller packets, and only after the kernel had tried for long.
    GotAround(u64),
    Lost,
}

/// A size, in bytes of a whole packet, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rung {
    packet: u64,
    passage: Passage,
}

/// What the kernel says about a connection of the ladder.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Bytes of a full segment.
    segment: u64,
    packet: u64,
    pmtu: u64,
    /// Whether everything that was sent was acknowledged.
    arrived: bool,
}

/// What became of a size on the way up.
fn passage_up(before: Seen, after: Seen) -> Passage {
    match after.arrived {
        false => Passage::Lost,
        true if after.pmtu < before.pmtu => Passage::Learnt(after.pmtu),
        true if after.packet < before.packet => Passage::GotAround(after.packet),
        true => Passage::Passes,
    }
}

/// Bytes of the headers of IP and TCP, without options.
fn headers(place: &Place) -> u64 {
    match place {
        Place::Ip(SocketAddr::V6(address)) if address.ip().to_ipv4_mapped().is_none() => 60,
        _ => 40,
    }
}

/// What became of the sizes in both directions.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    /// The path MTU as the kernel of this host had it before.
    pmtu: u64,
    up: Vec<Rung>,
    down: Vec<Rung>,
}

pub(super) fn up(run: &Run<'_>) -> Judged {
    let sizes = run.sizes()?;
    Ok(judge("there", &sizes.up, sizes.pmtu, &interfaces()))
}

pub(super) fn down(run: &Run<'_>) -> Judged {
    let sizes = run.sizes()?;
    Ok(judge("back", &sizes.down, sizes.pmtu, &interfaces()))
}

/// Climbs both ladders.
pub(super) fn observe(run: &Run<'_>) -> Result<Sizes, NotJudged> {
    let headers = headers(&run.place);
    let pmtu = run
        .dial()?
        .get(field::PMTU)
        .ok_or(NotJudged::Skipped("this kernel does not say the path MTU"))?;
    let (there, back) = (ladder(pmtu, LARGEST), ladder(pmtu, LARGEST_BACK));
    let there = open_up(run, &there, headers)?;
    let back = open_down(run, &back, headers)?;
    let mut down = send_down(back, headers);
    let mut up = send_up(there, headers)?;
    look_closer(&mut down, |sizes| {
        Ok(send_down(open_down(run, sizes, headers)?, headers))
    })?;
    look_closer(&mut up, |sizes| {
        send_up(open_up(run, sizes, headers)?, headers)
    })?;
    Ok(Sizes { pmtu, up, down })
}

/// The sizes up to the path MTU as the kernel has it.
fn ladder(pmtu: u64, largest: u64) -> Vec<u64> {
    let top = pmtu.min(largest);
    let below = RUNGS.into_iter().filter(|size| *size < top);
    below.chain([top]).collect()
}

/// Tries sizes between what passes and what does not, and [`AGAIN`] times what was lost or late: a packet
/// that is lost for its size is lost each time.
fn look_closer(
    rungs: &mut Vec<Rung>,
    mut try_all: impl FnMut(&[u64]) -> Result<Vec<Rung>, NotJudged>,
) -> Result<(), NotJudged> {
    let mut tried: Vec<u64> = Vec::new();
    for round in 0..ROUNDS + 2 * AGAIN {
        let Some(doubtful) = first_worse(rungs, Passage::Learnt(LONGEST)) else {
            break;
        };
        let mut sizes = match gap(rungs) {
            Some((passes, lost)) if round < ROUNDS => between(passes, lost),
            _ => Vec::new(),
        };
        if tried.iter().filter(|size| **size == doubtful).count() < AGAIN {
            tried.push(doubtful);
            sizes.push(doubtful);
        }
        if sizes.is_empty() {
            break;
        }
        rungs.extend(try_all(&sizes)?);
        sort(rungs);
    }
    Ok(())
}

/// What the peer announced may be less than some rungs, which are then the same size, and a size that
/// was doubtful is tried again: what has passed once can pass.
fn sort(rungs: &mut Vec<Rung>) {
    rungs.sort_by_key(|rung| (rung.packet, rung.passage));
    rungs.dedup_by_key(|rung| rung.packet);
}

/// Sizes to try between one that passes and one that does not.
fn between(passes: u64, lost: u64) -> Vec<u64> {
    let gap = lost - passes;
    let steps = gap.min(BETWEEN + 1);
    (1..steps).map(|step| passes + gap * step / steps).collect()
}

/// The largest size below which all pass, and the smallest that is lost, if one is.
fn gap(rungs: &[Rung]) -> Option<(u64, u64)> {
    let lost = first_worse(rungs, Passage::GotAround(LONGEST))?;
    let passes = rungs
        .iter()
        .take_while(|rung| rung.passage == Passage::Passes);
    let passes = passes.last()?.packet;
    (passes < lost).then_some((passes, lost))
}

/// The smallest size with a worse passage than this one.
fn first_worse(rungs: &[Rung], passage: Passage) -> Option<u64> {
    let worse = rungs.iter().find(|rung| rung.passage > passage);
    worse.map(|rung| rung.packet)
}

/// The packet that a segment of the kernel's is in, in bytes; those are without options.
fn packet(info: &TcpInfo, segment: Field, headers: u64) -> Option<u64> {
    let timestamps = info.get(field::OPTIONS)? & TIMESTAMPS;
    Some(info.get(segment)? + timestamps * TIMESTAMPS_BYTES + headers)
}

fn look(talk: &Talk, headers: u64) -> Option<Seen> {
    let info = talk.info()?;
    Some(Seen {
        segment: info.get(field::SND_MSS)?,
        packet: packet(&info, field::SND_MSS, headers)?,
        pmtu: info.get(field::PMTU)?,
        arrived: talk.sent == talk.quota && talk.unacknowledged() == 0,
    })
}

fn maxseg(size: u64, headers: u64) -> Option<u32> {
    u32::try_from(size - headers).ok()
}

fn open_up(run: &Run<'_>, sizes: &[u64], headers: u64) -> Result<Vec<Talk>, NotJudged> {
    run.dial_many(sizes.iter().map(|size| Before {
        maxseg: maxseg(*size, headers),
        ..Before::default()
    }))
}

fn open_down(run: &Run<'_>, sizes: &[u64], headers: u64) -> Result<Vec<Way>, NotJudged> {
    let talks = run.dial_many(sizes.iter().map(|size| Before {
        maxseg: maxseg(*size, headers),
        receive_buffer: usize::try_from(4 * size).ok(),
        ..Before::default()
    }))?;
    let way = |(talk, size): (Talk, &u64)| (talk, *size);
    Ok(talks.into_iter().zip(sizes).map(way).collect())
}

/// A connection for a way back, and its size.
type Way = (Talk, u64);

fn send_up(mut talks: Vec<Talk>, headers: u64) -> Result<Vec<Rung>, NotJudged> {
    let unknown = NotJudged::Skipped("this kernel does not say how large segments are");
    let look = |talk: &Talk| look(talk, headers);
    let all = |talks: &[Talk]| talks.iter().map(look).collect::<Option<Vec<_>>>();
    let before = all(&talks).ok_or(unknown)?;
    for (talk, seen) in talks.iter_mut().zip(&before) {
        talk.piece = usize::try_from(seen.segment).unwrap_or(0).max(1);
        talk.quota = 3 * seen.segment;
    }
    drive(&mut talks, Instant::now() + WAIT, |talks| {
        let arrived =
            |talk: &Talk| talk.end.is_some() || look(talk).is_some_and(|seen| seen.arrived);
        talks.iter().all(arrived)
    });
    let after = all(&talks).ok_or(unknown)?;
    let rung = |(before, after): (&Seen, &Seen)| Rung {
        packet: before.packet,
        passage: passage_up(*before, *after),
    };
    let mut rungs = before.iter().zip(&after).map(rung).collect();
    sort(&mut rungs);
    Ok(rungs)
}

fn send_down(ways: Vec<Way>, headers: u64) -> Vec<Rung> {
    let (mut talks, sizes): (Vec<_>, Vec<_>) = ways.into_iter().unzip();
    for talk in &mut talks {
        talk.reads = false;
        talk.piece = LITTLE;
    }
    // More than our window takes, and some segments.
    let total = |index: usize| 3 * 4 * sizes[index] + 6 * sizes[index];
    let closed = Instant::now();
    drive(&mut talks, closed + 2 * WAIT, |talks| {
        let mut full = true;
        for (index, talk) in talks.iter_mut().enumerate() {
            if talk.sent == talk.quota && talk.sent < total(index) && talk.unacknowledged() == 0 {
                talk.quota += AT_ONCE * LITTLE as u64;
            }
            full &= talk.sent >= total(index) || talk.end.is_some();
        }
        full
    });
    for talk in &mut talks {
        talk.reads = true;
        talk.quota = talk.sent;
    }
    let opened = Instant::now();
    // What our full buffer dropped is sent again after a time that doubles: after as long as the window
    // was closed, at most.
    let wait = WAIT + (opened - closed);
    drive(&mut talks, opened + wait, |talks| {
        talks.iter().all(Talk::is_settled)
    });
    let took = |talk: &Talk| {
        let last = talk.last.map(|last| last.saturating_duration_since(opened));
        last.unwrap_or(wait)
    };
    let soonest = talks.iter().map(took).min().unwrap_or_default();
    let rungs = talks.iter().zip(sizes).map(|(talk, size)| {
        // What was announced is less where this host has learnt a smaller path MTU.
        let info = talk.info();
        let of = |segment| packet(info.as_ref()?, segment, headers);
        let announced = of(field::ADVMSS).unwrap_or(size);
        let came = of(field::RCV_MSS).unwrap_or(0);
        match talk.received() == talk.sent {
            true => rung_down(size.min(announced), came, took(talk), soonest),
            false => Rung {
                packet: size.min(announced),
                passage: Passage::Lost,
            },
        }
    });
    let mut rungs = rungs.collect();
    sort(&mut rungs);
    rungs
}

/// A size on the way down that came, and the largest packet that did.
fn rung_down(packet: u64, came: u64, took: Duration, soonest: Duration) -> Rung {
    let is_late = took > soonest * 4 + Duration::from_millis(900);
    match is_late && came < packet {
        true => Rung {
            packet,
            passage: Passage::GotAround(came),
        },
        // The peer need not send as much as it may.
        false => Rung {
            packet: packet.min(came),
            passage: Passage::Passes,
        },
    }
}

/// The sizes of packets that the interfaces of this host take, in bytes.
fn interfaces() -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else {
        return Vec::new();
    };
    let mtu = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(path.join("mtu")).ok()?;
        let mtu: u64 = text.trim().parse().ok()?;
        Some(mtu.min(LONGEST))
    };
    entries
        .flatten()
        .filter_map(|entry| mtu(entry.path()))
        .collect()
}

fn judge(way: &str, rungs: &[Rung], pmtu: u64, interfaces: &[u64]) -> Finding {
    let largest = rungs.last().map_or(0, |rung| rung.packet);
    let passes = |rung: &&Rung| rung.passage == Passage::Passes;
    let most = rungs
        .iter()
        .take_while(passes)
        .last()
        .map(|rung| rung.packet);
    let learnt = rungs.iter().find_map(|rung| match rung.passage {
        Passage::Learnt(pmtu) => Some(pmtu),
        _ => None,
    });
    let late = rungs.iter().find_map(|rung| match rung.passage {
        Passage::GotAround(packet) => Some((rung.packet, packet)),
        _ => None,
    });
    let lost = rungs.iter().find(|rung| rung.passage == Passage::Lost);
    let finding = match (lost, most, late, learnt) {
        (Some(lost), _, _, _)
            if rungs
                .iter()
                .any(|rung| passes(&rung) && rung.packet > lost.packet) =>
        {
            Finding::note(format!(
                "{} bytes did not pass on the way {way} and larger packets did: packets are lost, \
                 and not by their size",
                lost.packet
            ))
        }
        (Some(_), None, _, _) => {
            Finding::fail(format!("no packet of any size arrived on the way {way}"))
        }
        (Some(lost), Some(most), _, _) => Finding::fail(format!(
            "{most} bytes pass on the way {way}, {} do not, and no ICMP said so: black hole",
            lost.packet
        )),
        (None, _, Some((size, packet)), _) => Finding::fail(format!(
            "{size} bytes do not pass on the way {way}, and no ICMP said so: black hole; the \
             sender got around it by itself with {packet} (tcp_mtu_probing)"
        )),
        (None, _, None, Some(learnt)) => Finding::ok(format!(
            "up to {learnt} bytes; larger packets are answered, and path MTU discovery works"
        )),
        (None, _, None, None) if !interfaces.is_empty() && !interfaces.contains(&pmtu) => {
            Finding::note(format!(
                "up to {largest} bytes; the kernel knew this path MTU before: learnt, or set on the route, \
                 which hides what larger packets would meet"
            ))
        }
        (None, _, None, None) if largest < pmtu.min(LARGEST_BACK) => Finding::ok(format!(
            "up to {largest} bytes; no larger packets were sent: the interface of the other end takes no more, \
             or path MTU discovery works"
        )),
        (None, _, None, None) => Finding::ok(format!("up to {largest} bytes")),
    };
    finding
        .see("RFC 2923 2.1")
        .with("passes", most)
        .with("lost", lost.map(|rung| rung.packet))
        .with("path_mtu", learnt.unwrap_or(pmtu))
        .with("sizes", rungs.len() as u64)
        .with_plot(plot(rungs))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "packets have 65 535 bytes at most"
)]
fn plot(rungs: &[Rung]) -> Plot {
    let point = |rung: &Rung| {
        let passes = u8::from(rung.passage == Passage::Passes);
        (rung.packet as f64, f64::from(passes))
    };
    Plot {
        title: "packets of each size",
        across: "bytes of a packet",
        upward: "1 passes, 0 does not",
        curves: vec![("packets", rungs.iter().map(point).collect())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::probe::Verdict;

    /// A path that takes packets up to a size, and either says so or does not.
    fn path(limit: u64, says: bool) -> impl FnMut(&[u64]) -> Result<Vec<Rung>, NotJudged> {
        move |sizes| {
            let rung = |size: &u64| Rung {
                packet: *size,
                passage: match *size > limit {
                    true if says => Passage::Learnt(limit),
                    true => Passage::Lost,
                    false => Passage::Passes,
                },
            };
            Ok(sizes.iter().map(rung).collect())
        }
    }

    #[track_caller]
    fn verdict(limit: u64, says: bool) -> Finding {
        let mut path = path(limit, says);
        let mut rungs = path(&ladder(1500, LARGEST)).expect("the path is scripted");
        look_closer(&mut rungs, path).expect("the path is scripted");
        judge("there", &rungs, 1500, &[1500, 65_536])
    }

    #[test]
    fn a_black_hole_is_found_to_the_byte() {
        for limit in [576, 1000, 1279, 1280, 1341, 1499] {
            let finding = verdict(limit, false);
            assert_eq!(finding.verdict, Verdict::Fail);
            let text = format!("{limit} bytes pass on the way there, {} do not", limit + 1);
            assert!(finding.text.contains(&text), "{}", finding.text);
        }
        assert!(verdict(100, false).text.contains("no packet of any size"));
    }

    #[test]
    fn a_size_that_is_lost_once_by_chance_is_no_black_hole() {
        let late = Passage::GotAround(1024);
        for (by_chance, passage) in [(1500, Passage::Lost), (1400, late), (576, Passage::Lost)] {
            let mut is_first = true;
            let mut path = path(1500, false);
            let mut try_all = |sizes: &[u64]| {
                let mut rungs = path(sizes)?;
                if std::mem::take(&mut is_first) {
                    let rung = rungs.iter_mut().find(|rung| rung.packet == by_chance);
                    rung.expect("it is on the ladder").passage = passage;
                }
                Ok(rungs)
            };
            let mut rungs = try_all(&ladder(1500, LARGEST)).expect("the path is scripted");
            look_closer(&mut rungs, try_all).expect("the path is scripted");
            let finding = judge("back", &rungs, 1500, &[1500]);
            assert_eq!(finding.text, "up to 1500 bytes");
        }
    }

    #[test]
    fn a_path_that_says_what_it_takes_is_fine() {
        assert_eq!(verdict(1500, false).verdict, Verdict::Ok);
        assert_eq!(verdict(1500, false).text, "up to 1500 bytes");
        let finding = verdict(1340, true);
        assert_eq!(finding.verdict, Verdict::Ok);
        assert!(
            finding.text.starts_with("up to 1340 bytes; "),
            "{}",
            finding.text
        );
    }

    #[test]
    fn what_hides_a_fault_is_named() {
        let rungs = [Rung {
            packet: 1400,
            passage: Passage::Passes,
        }];
        assert_eq!(judge("there", &rungs, 1400, &[1500]).verdict, Verdict::Note);
        assert_eq!(judge("there", &rungs, 1400, &[1400]).verdict, Verdict::Ok);
        let rungs = [Rung {
            packet: 1500,
            passage: Passage::GotAround(1024),
        }];
        let finding = judge("back", &rungs, 1500, &[1500]);
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.text.contains("with 1024"), "{}", finding.text);
    }

    #[test]
    fn loss_by_chance_is_no_black_hole() {
        let rung = |packet, passage| Rung { packet, passage };
        let rungs = [
            rung(576, Passage::Lost),
            rung(1280, Passage::Passes),
            rung(1500, Passage::Passes),
        ];
        let finding = judge("there", &rungs, 1500, &[1500]);
        assert!(!finding.text.contains("black hole"), "{}", finding.text);
    }

    #[test]
    fn a_passage_is_read_from_the_kernels_numbers() {
        let seen = |packet, pmtu, arrived| Seen {
            segment: packet - 52,
            packet,
            pmtu,
            arrived,
        };
        let before = seen(1500, 1500, false);
        for (after, passage) in [
            (seen(1500, 1500, true), Passage::Passes),
            (seen(1400, 1400, true), Passage::Learnt(1400)),
            (seen(1024, 1500, true), Passage::GotAround(1024)),
            (seen(1500, 1500, false), Passage::Lost),
            (seen(1400, 1400, false), Passage::Lost),
        ] {
            assert_eq!(passage_up(before, after), passage);
        }
        let ms = Duration::from_millis;
        for (came, took, packet, passage) in [
            (1500, 300, 1500, Passage::Passes),
            (1400, 300, 1400, Passage::Passes),
            (1024, 3000, 1500, Passage::GotAround(1024)),
            // It is late for another reason.
            (1500, 3000, 1500, Passage::Passes),
        ] {
            let rung = rung_down(1500, came, ms(took), ms(100));
            assert_eq!(rung, Rung { packet, passage });
        }
    }
}
