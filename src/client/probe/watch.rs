//! One conversation that stays: which echo is overdue, where it hangs, and what the kernel saw until
//! then.
//!
//! Sent and not acknowledged: the network, or the peer's host.  A window of nothing: the peer does not
//! read.  Acknowledged, and segments come out of order: the way back.  Acknowledged, and no echo: the
//! server, or a proxy before it.  The flight recorder is a ring of the kernel's counters; it says what
//! happened before anything was amiss.
//!
//! Nothing here reads a clock or a socket.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::client::ping::kernel::is_window_closed;
use crate::sys::tcp_info::{TcpInfo, field};

/// How late an echo is before it counts as a pause.
pub(super) const OVERDUE: Duration = Duration::from_millis(200);

/// Readings that the flight recorder keeps.
const RING: usize = 100;

/// Where an echo hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Not acknowledged.
    Network,
    /// The peer's window is closed.
    Receiver,
    /// Acknowledged, not echoed.
    Server,
    /// Acknowledged, and what comes back is out of order.
    WayBack,
    /// The kernel does not say.
    Unknown,
}

impl Side {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Network,
        Self::Receiver,
        Self::Server,
        Self::WayBack,
        Self::Unknown,
    ];

    /// Its word, as in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Receiver => "receiver",
            Self::Server => "server-or-proxy",
            Self::WayBack => "way-back",
            Self::Unknown => "unknown",
        }
    }

    /// What the counters say about an echo that is overdue, of which the request ends at `needed` in
    /// what was sent; `before` are those of when all was well.
    pub(super) fn of(before: Option<&TcpInfo>, now: Option<&TcpInfo>, needed: u64) -> Self {
        let Some(now) = now else {
            return Self::Unknown;
        };
        let came = |info: &TcpInfo| info.get(field::RCV_OOOPACK).unwrap_or(0);
        // The SYN counts as one.
        let acknowledged = now.get(field::BYTES_ACKED).map(|acked| acked > needed);
        if is_window_closed(now) {
            return Self::Receiver;
        }
        match acknowledged {
            None => Self::Unknown,
            Some(false) => Self::Network,
            Some(true) if before.is_some_and(|before| came(now) > came(before)) => Self::WayBack,
            Some(true) => Self::Server,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "not acknowledged: network, or the peer's host",
            Self::Receiver => "the peer's window is closed: it does not read",
            Self::Server => "acknowledged, not echoed: server or proxy",
            Self::WayBack => "acknowledged, and what comes is out of order: way back",
            Self::Unknown => "the kernel does not say where",
        })
    }
}

/// A pause that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// When the echo was due, since the beginning.
    pub at: Duration,
    /// How long it took to come, or until the connection ended.
    pub span: Duration,
    /// Where it hung for the longest part.
    pub side: Side,
}

/// A pause that lasts.
#[derive(Clone, Debug)]
struct Lasting {
    at: Duration,
    sides: Vec<Side>,
}

/// A conversation that is watched.  Times are since the beginning.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// What is under way: where each message ends, and when it was sent.
    under_way: VecDeque<(u64, Duration)>,
    ring: VecDeque<(Duration, TcpInfo)>,
    lasting: Option<Lasting>,
    /// Bytes that stand before the stream.
    preamble: u64,
    echoes: u64,
    worst: Duration,
}

impl Watch {
    pub(super) fn new(preamble: u64) -> Self {
        Self {
            preamble,
            ..Self::default()
        }
    }

    /// Messages under way.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Messages that are back.
    pub(super) fn echoes(&self) -> u64 {
        self.echoes
    }

    /// The longest that a message took.
    pub(super) fn worst(&self) -> Duration {
        self.worst
    }

    pub(super) fn is_paused(&self) -> bool {
        self.lasting.is_some()
    }

    /// A message was sent that ends at `end` of the stream.
    pub(super) fn sent(&mut self, end: u64, now: Duration) {
        self.under_way.push_back((end, now));
    }

    /// The kernel's counters, some times a second.
    pub(super) fn reading(&mut self, info: TcpInfo, now: Duration) {
        if self.ring.len() == RING {
            self.ring.pop_front();
        }
        self.ring.push_back((now, info));
        if let Some(lasting) = &mut self.lasting {
            let needed = self.under_way.front().map_or(0, |(end, _)| *end);
            let before = self.ring.iter().rfind(|(at, _)| *at <= lasting.at);
            let before = before.map(|(_, info)| info);
            let side = Side::of(before, Some(&info), needed + self.preamble);
            lasting.sides.push(side);
        }
    }

    /// So many bytes have come back by now, the last of them at `last`; returns the pause that is over
    /// by that.
    pub(super) fn came(&mut self, received: u64, last: Duration, now: Duration) -> Option<Pause> {
        while let Some((_, at)) = self.under_way.front().filter(|(end, _)| *end <= received) {
            self.echoes += 1;
            self.worst = self.worst.max(last.saturating_sub(*at));
            self.under_way.pop_front();
        }
        let overdue = self.overdue(now).is_some();
        self.lasting
            .take_if(|_| !overdue)
            .map(|lasting| lasting.over(last))
    }

    /// It ended by `now`; returns the pause that is over by that.
    pub(super) fn ended(&mut self, now: Duration) -> Option<Pause> {
        self.under_way.clear();
        self.lasting.take().map(|lasting| lasting.over(now))
    }

    /// The oldest message, if its echo is overdue.
    fn overdue(&self, now: Duration) -> Option<(u64, Duration)> {
        let oldest = self.under_way.front().copied();
        oldest.filter(|(_, at)| now.saturating_sub(*at) >= OVERDUE)
    }

    /// Whether [`Watch::look`] has something to find, for which it needs the kernel's counters.
    pub(super) fn is_newly_overdue(&self, now: Duration) -> bool {
        self.lasting.is_none() && self.overdue(now).is_some()
    }

    /// Looks at the clock, with the kernel's counters; returns where an echo hangs that is overdue
    /// since now.
    pub(super) fn look(&mut self, now: Duration, info: Option<&TcpInfo>) -> Option<Side> {
        let (end, at) = self.overdue(now)?;
        if self.lasting.is_some() {
            return None;
        }
        let before = self.ring.iter().rfind(|(when, _)| *when <= at);
        let before = before.map(|(_, info)| info);
        let side = Side::of(before, info, end + self.preamble);
        self.lasting = Some(Lasting {
            at,
            sides: vec![side],
        });
        Some(side)
    }

    /// What the flight recorder has, the oldest reading first.
    pub(super) fn record(&self, now: Duration) -> Vec<Value> {
        let reading = |(at, info): &(Duration, TcpInfo)| {
            let mut made = Map::new();
            let ago = now.saturating_sub(*at).as_millis();
            made.insert(
                "ago_ms".into(),
                u64::try_from(ago).unwrap_or(u64::MAX).into(),
            );
            for field in field::ALL {
                if let Some(value) = info.get(*field) {
                    made.insert(field.name.into(), value.into());
                }
            }
            Value::Object(made)
        };
        self.ring.iter().map(reading).collect()
    }
}

impl Lasting {
    fn over(self, now: Duration) -> Pause {
        let times = |side: &Side| self.sides.iter().filter(|seen| *seen == side).count();
        let most = Side::ALL.into_iter().max_by_key(times);
        Pause {
            at: self.at,
            span: now.saturating_sub(self.at),
            side: most.unwrap_or(Side::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tcp_info::Field;

    const MS: Duration = Duration::from_millis(1);

    /// Counters when `acked` bytes of the stream are acknowledged.
    fn info(acked: u64, more: &[(Field, u64)]) -> TcpInfo {
        let usual = [(field::BYTES_ACKED, acked + 1), (field::SND_WND, 65_536)];
        TcpInfo::scripted(&[&usual, more].concat())
    }

    #[test]
    fn each_side_shows_in_its_counters() {
        let before = info(64, &[(field::RCV_OOOPACK, 2)]);
        for (now, side) in [
            (info(128, &[(field::RCV_OOOPACK, 2)]), Side::Server),
            (info(64, &[(field::BACKOFF, 1)]), Side::Network),
            (info(127, &[]), Side::Network),
            (info(64, &[(field::SND_WND, 0)]), Side::Receiver),
            (info(64, &[(field::PROBES, 1)]), Side::Receiver),
            (info(128, &[(field::RCV_OOOPACK, 3)]), Side::WayBack),
        ] {
            assert_eq!(Side::of(Some(&before), Some(&now), 128), side, "{now:?}");
        }
        assert_eq!(Side::of(None, None, 128), Side::Unknown);
    }

    #[test]
    fn a_path_without_a_pause_has_none() {
        let mut watch = Watch::new(0);
        for round in 1..=100 {
            let now = 100 * MS * u32::try_from(round).expect("small");
            watch.sent(64 * round, now);
            assert_eq!(watch.look(now, None), None);
            assert_eq!(watch.came(64 * round, now + 50 * MS, now + 60 * MS), None);
        }
        assert_eq!((watch.echoes(), watch.worst()), (100, 50 * MS));
        assert!(!watch.is_paused());
    }

    #[test]
    fn a_pause_begins_once_and_ends_with_its_echo() {
        let mut watch = Watch::new(0);
        watch.reading(info(0, &[]), Duration::ZERO);
        watch.sent(64, 100 * MS);
        watch.sent(128, 200 * MS);
        let stuck = info(64, &[]);
        assert_eq!(watch.look(299 * MS, Some(&stuck)), None);
        assert_eq!(watch.look(300 * MS, Some(&stuck)), Some(Side::Server));
        assert_eq!(watch.look(310 * MS, Some(&stuck)), None);
        assert!(watch.is_paused());
        // One is back, and the next is overdue as well.
        assert_eq!(watch.came(64, 450 * MS, 450 * MS), None);
        // Nothing comes for a while, which ends nothing.
        assert_eq!(watch.came(64, 450 * MS, 480 * MS), None);
        let pause = watch.came(128, 500 * MS, 520 * MS);
        assert_eq!(
            pause,
            Some(Pause {
                at: 100 * MS,
                span: 400 * MS,
                side: Side::Server
            })
        );
        assert_eq!(watch.worst(), 350 * MS);
        assert!(!watch.is_paused());
    }

    #[test]
    fn a_pause_has_the_side_where_it_hung_longest() {
        let mut watch = Watch::new(28);
        watch.sent(64, Duration::ZERO);
        // What stands before the stream is acknowledged as well.
        assert_eq!(
            watch.look(200 * MS, Some(&info(64, &[]))),
            Some(Side::Network)
        );
        for round in 3..9 {
            watch.reading(info(92, &[]), 100 * MS * round);
        }
        let pause = watch.ended(Duration::from_secs(1));
        assert_eq!(pause.map(|pause| pause.side), Some(Side::Server));
        assert_eq!(watch.under_way(), 0);
    }

    #[test]
    fn the_recorder_keeps_the_last_readings() {
        let mut watch = Watch::new(0);
        for round in 0..150 {
            watch.reading(info(u64::from(round), &[]), 100 * MS * round);
        }
        let record = watch.record(15_000 * MS);
        assert_eq!(record.len(), RING);
        assert_eq!(record[99]["bytes_acked"], 150);
        assert_eq!(record[99]["ago_ms"], 100);
        assert_eq!(record[0]["ago_ms"], 10_000);
    }
}
