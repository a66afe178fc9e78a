//! The settings of the kernel that limit this service, and what they mean in seconds.
//!
//! They are read from `/proc/sys` (proc(5)), which a sandbox may hide.  A value that cannot be read is
//! `None`, and a report does without it; no value is guessed.

use std::path::Path;
use std::time::Duration;

/// `TCP_TIMEOUT_INIT` of Linux: the first wait for an answer to a SYN or SYN-ACK (RFC 6298, section 2).
const FIRST_RTO: Duration = Duration::from_secs(1);

/// `TCP_RTO_MIN` of Linux: the least wait before data is sent again.
const LEAST_RTO: Duration = Duration::from_millis(200);

/// The settings that matter to an echo service, by tcp(7), listen(2), socket(7) and the kernel's
/// ip-sysctl document.  `None`: the value cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// `net.core.somaxconn`: the longest accept queue.
    pub somaxconn: Option<u64>,
    /// `net.ipv4.tcp_max_syn_backlog`: the most half-open handshakes of a listener, while
    /// `net.ipv4.tcp_syncookies` is 0.
    pub tcp_max_syn_backlog: Option<u64>,
    /// `net.ipv4.tcp_syncookies`: 0 never, 1 when the queue of a listener is full, 2 always.
    pub tcp_syncookies: Option<u64>,
    /// `net.core.rmem_max`: the most that `SO_RCVBUF` may ask for, in bytes.
    pub rmem_max: Option<u64>,
    /// `net.core.wmem_max`: the most that `SO_SNDBUF` may ask for, in bytes.
    pub wmem_max: Option<u64>,
    /// The third number of `net.ipv4.tcp_rmem`: the most that autotuning gives, in bytes.
    pub tcp_rmem_max: Option<u64>,
    /// The third number of `net.ipv4.tcp_wmem`: the most that autotuning gives, in bytes.
    pub tcp_wmem_max: Option<u64>,
    /// `net.ipv4.tcp_synack_retries`: how often a SYN-ACK is sent again.
    pub tcp_synack_retries: Option<u64>,
    /// `net.ipv4.tcp_retries2`: how often data is sent again before a connection is given up.
    pub tcp_retries2: Option<u64>,
    /// `net.ipv4.tcp_rto_max_ms`: the longest wait before data is sent again, in milliseconds (since
    /// Linux 6.15; 120 s before).
    pub tcp_rto_max_ms: Option<u64>,
    /// `net.ipv4.tcp_slow_start_after_idle`: 1 if the congestion window shrinks while a connection is
    /// idle (RFC 2861).
    pub tcp_slow_start_after_idle: Option<u64>,
    /// `net.ipv4.ip_unprivileged_port_start`: the first port that needs no privilege.
    pub unprivileged_port_start: Option<u64>,
}

impl Kernel {
    /// Reads the settings as they are at this moment.
    #[must_use]
    pub(crate) fn read() -> Self {
        let ipv4 = |name: &str| sysctl(&format!("net/ipv4/{name}"), 0);
        Self {
            somaxconn: sysctl("net/core/somaxconn", 0),
            tcp_max_syn_backlog: ipv4("tcp_max_syn_backlog"),
            tcp_syncookies: ipv4("tcp_syncookies"),
            rmem_max: sysctl("net/core/rmem_max", 0),
            wmem_max: sysctl("net/core/wmem_max", 0),
            tcp_rmem_max: sysctl("net/ipv4/tcp_rmem", 2),
            tcp_wmem_max: sysctl("net/ipv4/tcp_wmem", 2),
            tcp_synack_retries: ipv4("tcp_synack_retries"),
            tcp_retries2: ipv4("tcp_retries2"),
            tcp_rto_max_ms: ipv4("tcp_rto_max_ms"),
            tcp_slow_start_after_idle: ipv4("tcp_slow_start_after_idle"),
            unprivileged_port_start: ipv4("ip_unprivileged_port_start"),
        }
    }

    /// How long the kernel waits for the end of a handshake: the SYN-ACK is sent again
    /// `tcp_synack_retries` times, each wait is twice the one before, and the last one counts, too.
    #[must_use]
    pub(crate) fn connect_timeout(&self) -> Option<Duration> {
        let retries = self.tcp_synack_retries?;
        Some(
            (0..=retries)
                .map(|retry| doubled(FIRST_RTO, retry, self.rto_max()))
                .sum(),
        )
    }

    /// The least time after which data that is never acknowledged ends a connection: the sum of
    /// the waits for `tcp_retries2` retransmissions at the smallest time-out (tcp(7) gives 924.6 s
    /// for 15).
    #[must_use]
    pub(crate) fn data_timeout(&self) -> Option<Duration> {
        let retries = self.tcp_retries2?;
        Some(
            (0..=retries)
                .map(|retry| doubled(LEAST_RTO, retry, self.rto_max()))
                .sum(),
        )
    }

    /// What limits the half-open handshakes of a listener, as a clause for a report (tcp(7), ip-sysctl):
    /// `tcp_max_syn_backlog` does so only without SYN cookies, which need no memory.
    #[must_use]
    pub(crate) fn half_open(&self) -> Option<String> {
        Some(match self.tcp_syncookies? {
            0 => format!(
                "at most {} handshakes are half-open",
                self.tcp_max_syn_backlog?
            ),
            1 => "half-open handshakes beyond the listen queue get SYN cookies, without a bound"
                .into(),
            _ => "half-open handshakes get SYN cookies, without a bound".into(),
        })
    }

    /// The longest wait before data is sent again.
    fn rto_max(&self) -> Duration {
        Duration::from_millis(self.tcp_rto_max_ms.unwrap_or(120_000))
    }
}

/// Whether this network namespace (network_namespaces(7)) has no interface but `lo`, so that no host
/// can reach a listener in it; `None` if that cannot be read.
#[must_use]
pub(crate) fn is_alone() -> Option<bool> {
    // A sandbox may hide /proc/net (ProcSubset=pid), but not this file.
    let text = std::fs::read_to_string("/proc/self/net/dev").ok()?;
    Some(interfaces(&text).all(|name| name == "lo"))
}

/// The names in `/proc/PID/net/dev`, which begins with two lines of headings.
fn interfaces(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim())
}

/// Whether a path is in a /tmp or /var/tmp that no other service sees (`PrivateTmp=` of
/// systemd.exec(5)), as far as /proc/self/mountinfo (proc(5)) shows it.
#[must_use]
pub(crate) fn is_private(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, point) = (fields.next(), fields.next());
        point.is_some_and(|at| ["/tmp", "/var/tmp"].contains(&at) && path.starts_with(at))
            && root.is_some_and(|root| root.contains("/systemd-private-"))
    })
}

/// A wait that was doubled so many times, `most` at most.
fn doubled(first: Duration, times: u64, most: Duration) -> Duration {
    let factor = 1_u32
        .checked_shl(u32::try_from(times).unwrap_or(u32::MAX))
        .unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(most)
}

/// One number of a file in `/proc/sys`, by its position.
fn sysctl(name: &str, field: usize) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    text.split_ascii_whitespace().nth(field)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_syn_cookies_half_open_handshakes_have_no_bound() {
        let of = |tcp_syncookies| Kernel {
            tcp_syncookies,
            tcp_max_syn_backlog: Some(2048),
            ..Kernel::default()
        };
        let text = |cookies| of(cookies).half_open().unwrap_or_default();
        assert!(text(Some(0)).contains("2048"));
        assert!(!text(Some(1)).contains("2048") && text(Some(1)).contains("without a bound"));
        assert!(text(Some(2)).contains("without a bound"));
        assert_eq!(text(None), "");
    }

    #[test]
    fn time_outs_are_the_sums_of_the_back_offs() {
        for (retries, seconds) in [(0, 1), (1, 3), (5, 63), (6, 127), (7, 247), (8, 367)] {
            let kernel = Kernel {
                tcp_synack_retries: Some(retries),
                ..Kernel::default()
            };
            assert_eq!(
                kernel.connect_timeout(),
                Some(Duration::from_secs(seconds)),
                "{retries}"
            );
        }
        for (retries, millis) in [(0, 200), (3, 3000), (8, 102_200), (15, 924_600)] {
            let kernel = Kernel {
                tcp_retries2: Some(retries),
                ..Kernel::default()
            };
            assert_eq!(
                kernel.data_timeout(),
                Some(Duration::from_millis(millis)),
                "{retries}"
            );
        }
        let kernel = Kernel {
            tcp_synack_retries: Some(255),
            tcp_rto_max_ms: Some(1000),
            ..Kernel::default()
        };
        assert_eq!(kernel.connect_timeout(), Some(Duration::from_secs(256)));
        assert_eq!(Kernel::default().data_timeout(), None);
    }

    #[test]
    fn a_setting_that_cannot_be_read_is_none() {
        assert_eq!(sysctl("net/ipv4/no_such_setting", 0), None);
        assert_eq!(sysctl("net/core/somaxconn", 9), None);
    }

    #[test]
    fn interfaces_are_read_by_name() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes packets\n    lo: 1 2 3 4\n\
                    veth0:10 0 0 0\n";
        assert_eq!(interfaces(text).collect::<Vec<_>>(), ["lo", "veth0"]);
        assert!(is_alone().is_some());
    }
}
