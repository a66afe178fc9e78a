//! What the kernel's counters of the own socket (`TCP_INFO`) say about the path and the other side.
//!
//! Sent and not acknowledged: the way there, or the peer's host.  Acknowledged and not echoed: the
//! server, a proxy, or the way back.  The least round trip of TCP far below that of the echo: TCP
//! ends somewhere nearer than the server.  A segment that was sent again was not always lost.

use std::fmt;
use std::time::Duration;

use crate::sys::tcp_info::{TcpInfo, field};

/// The grain of the kernel's clock for time stamps: a round trip of exactly this after a SYN that
/// was sent again was not measured.
const GRAIN: u64 = 1000;

/// Whether the peer's window is closed: it is empty, or the kernel asks the peer whether it still is.
pub(crate) fn is_window_closed(info: &TcpInfo) -> bool {
    info.get(field::SND_WND) == Some(0) || info.get(field::PROBES).unwrap_or(0) > 0
}

/// Why an echo is overdue, as far as the own kernel can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Bytes are not acknowledged.
    NotAcknowledged {
        /// How often the oldest of them was sent again.
        again: u64,
    },
    /// The peer's window is closed.
    WindowClosed,
    /// All bytes are acknowledged.
    NotEchoed,
    /// The kernel says nothing: not TCP.
    Unknown,
}

impl Cause {
    /// The cause that these counters point to.
    #[must_use]
    pub fn of(info: Option<&TcpInfo>) -> Self {
        let Some(info) = info else {
            return Self::Unknown;
        };
        let get = |field| info.get(field).unwrap_or(0);
        let backoff = get(field::BACKOFF).max(get(field::RETRANSMITS));
        if is_window_closed(info) {
            Self::WindowClosed
        } else if get(field::UNACKED) > 0 || backoff > 0 {
            Self::NotAcknowledged { again: backoff }
        } else {
            Self::NotEchoed
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAcknowledged { again } => write!(
                f,
                "not acknowledged (sent again {again} times): the way there, or the peer's host"
            ),
            Self::WindowClosed => {
                f.write_str("the peer's window is closed: the peer does not read")
            }
            Self::NotEchoed => {
                f.write_str("acknowledged, not echoed: the server, a proxy, or the way back")
            }
            Self::Unknown => f.write_str("the kernel does not say where it is"),
        }
    }
}

/// The sums over the connections of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Segments with data that were sent, those sent again included.
    pub segments: Option<u64>,
    /// Segments that were sent again, those of the handshake included.
    pub sent_again: Option<u64>,
    /// Segments of ours that came twice, as the peer reports.
    pub came_twice: Option<u64>,
    /// Segments that arrived out of order.
    pub out_of_order: Option<u64>,
    /// Segments that were delivered with a mark of congestion.
    pub congestion_marks: Option<u64>,
    /// The least round trip that TCP itself measured.
    pub min_rtt: Option<Duration>,
    /// The longest segment that can be sent, in bytes.
    pub mss: Option<u64>,
    /// The path MTU, in bytes.
    pub path_mtu: Option<u64>,
}

impl Counters {
    /// Those of one connection.
    #[must_use]
    pub fn of(info: &TcpInfo) -> Self {
        let again = info.get(field::TOTAL_RETRANS);
        let is_grain = |rtt: &u64| *rtt == GRAIN && again > Some(0);
        Self {
            segments: info.get(field::DATA_SEGS_OUT),
            sent_again: again,
            came_twice: info.get(field::DSACK_DUPS),
            out_of_order: info.get(field::RCV_OOOPACK),
            congestion_marks: info.get(field::DELIVERED_CE),
            min_rtt: info
                .get(field::MIN_RTT)
                .filter(|rtt| !is_grain(rtt))
                .map(Duration::from_micros),
            mss: info.get(field::SND_MSS),
            path_mtu: info.get(field::PMTU),
        }
    }

    /// Adds those of a further connection.
    pub fn add(&mut self, other: Self) {
        let sum = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (Some(one), Some(other)) => Some(one + other),
            (one, other) => one.or(other),
        };
        self.segments = sum(self.segments, other.segments);
        self.sent_again = sum(self.sent_again, other.sent_again);
        self.came_twice = sum(self.came_twice, other.came_twice);
        self.out_of_order = sum(self.out_of_order, other.out_of_order);
        self.congestion_marks = sum(self.congestion_marks, other.congestion_marks);
        self.min_rtt = [self.min_rtt, other.min_rtt].into_iter().flatten().min();
        self.mss = [self.mss, other.mss].into_iter().flatten().min();
        self.path_mtu = [self.path_mtu, other.path_mtu].into_iter().flatten().min();
    }
}

/// Where TCP ends, and from where the echo comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hops {
    /// The least round trip of TCP.
    pub tcp: Duration,
    /// The least round trip of an echo.
    pub echo: Duration,
}

impl Hops {
    /// The least difference that is more than the server's own doing.
    const APART: Duration = Duration::from_millis(2);

    /// Whether the echo comes from further away than where TCP ends: at least twice as far, and 2 ms.
    #[must_use]
    pub fn are_apart(self) -> bool {
        self.echo >= self.tcp * 2 && self.echo - self.tcp >= Self::APART
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_where_the_bytes_are() {
        let of = |values: &[_]| Cause::of(Some(&TcpInfo::scripted(values)));
        let open = (field::SND_WND, 65_536);
        assert_eq!(of(&[open]), Cause::NotEchoed);
        assert_eq!(
            of(&[open, (field::UNACKED, 1), (field::BACKOFF, 2)]),
            Cause::NotAcknowledged { again: 2 }
        );
        assert_eq!(of(&[(field::UNACKED, 1)]), Cause::WindowClosed);
        assert_eq!(of(&[open, (field::PROBES, 1)]), Cause::WindowClosed);
        assert_eq!(Cause::of(None), Cause::Unknown);
    }

    #[test]
    fn a_round_trip_of_the_grain_after_a_lost_syn_was_not_measured() {
        let of = |rtt, again| {
            let values = [(field::MIN_RTT, rtt), (field::TOTAL_RETRANS, again)];
            Counters::of(&TcpInfo::scripted(&values)).min_rtt
        };
        assert_eq!(of(1000, 1), None);
        assert_eq!(of(1000, 0), Some(Duration::from_millis(1)));
        assert_eq!(of(1001, 1), Some(Duration::from_micros(1001)));
    }

    #[test]
    fn sums_are_of_what_is_there() {
        let mut sum = Counters::default();
        let one = [
            (field::MIN_RTT, 70),
            (field::TOTAL_RETRANS, 2),
            (field::SND_MSS, 1448),
        ];
        sum.add(Counters::of(&TcpInfo::scripted(&one)));
        let other = [
            (field::MIN_RTT, 50),
            (field::TOTAL_RETRANS, 1),
            (field::SND_MSS, 1400),
        ];
        sum.add(Counters::of(&TcpInfo::scripted(&other)));
        sum.add(Counters::default());
        assert_eq!(sum.sent_again, Some(3));
        assert_eq!(sum.min_rtt, Some(Duration::from_micros(50)));
        assert_eq!(sum.mss, Some(1400));
    }

    #[test]
    fn a_proxy_is_seen_where_the_echo_comes_from_further_away() {
        let apart = |tcp, echo| {
            let (tcp, echo) = (Duration::from_micros(tcp), Duration::from_micros(echo));
            Hops { tcp, echo }.are_apart()
        };
        assert!(apart(400, 12_000));
        assert!(apart(0, 2000));
        for (tcp, echo) in [
            (12_000, 12_400),
            (20, 90),
            (400, 1900),
            (12_000, 20_000),
            (5, 4),
        ] {
            assert!(!apart(tcp, echo), "{tcp} {echo}");
        }
    }
}
