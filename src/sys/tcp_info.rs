//! What the kernel knows about a TCP connection (`TCP_INFO`, tcp(7)), by the one reader.
//!
//! The structure grows with the kernel (linux/tcp.h).  What an older one does not give is absent,
//! and never 0.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Bytes of the structure that are read; 280 in Linux 6.18.
const LONGEST: usize = 320;

/// A field of `struct tcp_info`: what it is called here, with its unit, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name, with its unit.
    pub name: &'static str,
    offset: usize,
    size: usize,
}

impl Field {
    const fn new(name: &'static str, offset: usize, size: usize) -> Self {
        Self { name, offset, size }
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $offset:literal, $size:literal;)+) => {
        /// The fields, in the order of the structure.
        pub mod field {
            use super::Field;
            $($(#[$doc])* pub const $constant: Field = Field::new($name, $offset, $size);)+
            /// Each of them.
            pub const ALL: &[Field] = &[$($constant),+];
        }
    };
}

fields! {
    /// The state of the connection, one of [`super::state`].
    STATE = "state", 0, 1;
    /// Retransmissions of the oldest segment since it was last acknowledged.
    RETRANSMITS = "retransmits", 2, 1;
    /// Window or keepalive probes since they were last answered.
    PROBES = "probes", 3, 1;
    /// How often the retransmission time-out was doubled.
    BACKOFF = "backoff", 4, 1;
    /// What was agreed in the handshake; 1 stands for timestamps.
    OPTIONS = "options", 5, 1;
    /// Bits, of which the first is for [`super::TcpInfo::delivery_rate`] (Linux 4.9).
    FLAGS = "flags", 7, 1;
    /// The retransmission time-out, in microseconds.
    RTO = "rto_us", 8, 4;
    /// Bytes in a segment that is sent.
    SND_MSS = "snd_mss", 16, 4;
    /// Bytes in a segment that is received, as estimated.
    RCV_MSS = "rcv_mss", 20, 4;
    /// Segments sent and not acknowledged; of a listener, the connections that wait.
    UNACKED = "unacked", 24, 4;
    /// Segments selectively acknowledged; of a listener, the connections that may wait.
    SACKED = "sacked", 28, 4;
    /// Segments that are taken for lost.
    LOST = "lost", 32, 4;
    /// Since data was last sent, in milliseconds.
    LAST_DATA_SENT = "last_data_sent_ms", 44, 4;
    /// Since data was last received, in milliseconds.
    LAST_DATA_RECV = "last_data_recv_ms", 52, 4;
    /// Since an acknowledgement was last received, in milliseconds.
    LAST_ACK_RECV = "last_ack_recv_ms", 56, 4;
    /// The path MTU, in bytes.
    PMTU = "pmtu", 60, 4;
    /// The smoothed round-trip time, in microseconds.
    RTT = "rtt_us", 68, 4;
    /// Its mean deviation, in microseconds.
    RTTVAR = "rttvar_us", 72, 4;
    /// The congestion window, in segments.
    SND_CWND = "snd_cwnd", 80, 4;
    /// The segment size that was announced to the peer, in bytes.
    ADVMSS = "advmss", 84, 4;
    /// How far segments may be reordered before one is taken for lost.
    REORDERING = "reordering", 88, 4;
    /// The round-trip time as estimated from what is received, in microseconds.
    RCV_RTT = "rcv_rtt_us", 92, 4;
    /// Segments sent again, ever.
    TOTAL_RETRANS = "total_retrans", 100, 4;
    /// Bytes acknowledged, a FIN counted as one, and a SYN on the side that connected (Linux 4.1).
    BYTES_ACKED = "bytes_acked", 120, 8;
    /// Bytes received, a FIN counted as one (Linux 4.1).
    BYTES_RECEIVED = "bytes_received", 128, 8;
    /// Segments sent (Linux 4.2).
    SEGS_OUT = "segs_out", 136, 4;
    /// Segments received (Linux 4.2).
    SEGS_IN = "segs_in", 140, 4;
    /// Bytes written and never sent yet (Linux 4.6).
    NOTSENT = "notsent_bytes", 144, 4;
    /// The least round-trip time of late, in microseconds (Linux 4.6).
    MIN_RTT = "min_rtt_us", 148, 4;
    /// Segments received that carried data (Linux 4.6).
    DATA_SEGS_IN = "data_segs_in", 152, 4;
    /// Segments sent that carried data (Linux 4.6).
    DATA_SEGS_OUT = "data_segs_out", 156, 4;
    /// The rate at which data was last delivered, in bytes a second (Linux 4.9).
    DELIVERY_RATE = "delivery_rate", 160, 8;
    /// While there was data to send, in microseconds (Linux 4.10).
    BUSY = "busy_us", 168, 8;
    /// While the peer's window kept data back, in microseconds (Linux 4.10).
    RWND_LIMITED = "rwnd_limited_us", 176, 8;
    /// While the own send queue kept data back, in microseconds (Linux 4.10).
    SNDBUF_LIMITED = "sndbuf_limited_us", 184, 8;
    /// Segments delivered (Linux 4.18).
    DELIVERED = "delivered", 192, 4;
    /// Segments delivered with a mark of congestion (Linux 4.18).
    DELIVERED_CE = "delivered_ce", 196, 4;
    /// Bytes sent, those sent again included (Linux 4.19).
    BYTES_SENT = "bytes_sent", 200, 8;
    /// Bytes sent again (Linux 4.19).
    BYTES_RETRANS = "bytes_retrans", 208, 8;
    /// Segments of ours that the peer reports as received twice (Linux 4.19).
    DSACK_DUPS = "dsack_dups", 216, 4;
    /// How often reordering was seen (Linux 4.19).
    REORD_SEEN = "reord_seen", 220, 4;
    /// Segments received out of order (Linux 5.4).
    RCV_OOOPACK = "rcv_ooopack", 224, 4;
    /// The peer's window, in bytes (Linux 5.4).
    SND_WND = "snd_wnd", 228, 4;
    /// The own window, in bytes (Linux 6.2).
    RCV_WND = "rcv_wnd", 232, 4;
    /// Retransmission time-outs, ever (Linux 6.7).
    TOTAL_RTO = "total_rto", 240, 2;
    /// How long they lasted, in milliseconds (Linux 6.7).
    TOTAL_RTO_TIME = "total_rto_time_ms", 244, 4;
}

/// The states of a connection (include/net/tcp_states.h).
pub mod state {
    /// Data goes in both directions.
    pub const ESTABLISHED: u64 = 1;
    /// A SYN came and was answered.
    pub const SYN_RECV: u64 = 3;
    /// Our FIN is out.
    pub const FIN_WAIT1: u64 = 4;
    /// Our FIN is acknowledged.
    pub const FIN_WAIT2: u64 = 5;
    /// Both FINs are acknowledged, ours first.
    pub const TIME_WAIT: u64 = 6;
    /// It is over.
    pub const CLOSE: u64 = 7;
    /// The peer's FIN came.
    pub const CLOSE_WAIT: u64 = 8;
    /// The peer's FIN came, then ours went out.
    pub const LAST_ACK: u64 = 9;
    /// Both FINs are out, and ours is not acknowledged.
    pub const CLOSING: u64 = 11;
}

/// What the kernel said, as far as it said something.
#[derive(Clone, Copy)]
pub struct TcpInfo {
    bytes: [u8; LONGEST],
    length: usize,
}

impl TcpInfo {
    /// Asks the kernel.
    ///
    /// # Errors
    /// Those of getsockopt(2): above all, it is no TCP socket.
    #[expect(unsafe_code, reason = "no crate in the tree gives it by length")]
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let mut bytes = [0; LONGEST];
        let mut length = libc::socklen_t::try_from(LONGEST).unwrap_or(0);
        // SAFETY: the kernel writes at most `length` bytes into `bytes`, which is plain data.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                bytes.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        match result {
            0 => Ok(Self {
                bytes,
                length: length as usize,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The value of a field, in its unit; `None` if this kernel does not have it, or has not measured
    /// it yet.
    #[must_use]
    pub fn get(&self, field: Field) -> Option<u64> {
        let end = field.offset + field.size;
        let bytes = self.bytes[..self.length].get(field.offset..end)?;
        let value = match *bytes {
            [byte] => u64::from(byte),
            [a, b] => u64::from(u16::from_ne_bytes([a, b])),
            [a, b, c, d] => u64::from(u32::from_ne_bytes([a, b, c, d])),
            _ => u64::from_ne_bytes(bytes.try_into().ok()?),
        };
        // A minimum of nothing.
        let unmeasured = field == field::MIN_RTT && value == u64::from(u32::MAX);
        (!unmeasured).then_some(value)
    }

    /// The rate at which the network has delivered data, in bytes a second; `None` also where the
    /// sender had too little to send to measure it (tcp_rate.c).
    #[must_use]
    pub fn delivery_rate(&self) -> Option<u64> {
        // The first bit of a C structure's byte.
        let limited = if cfg!(target_endian = "little") {
            1
        } else {
            0x80
        };
        let measured = self.get(field::FLAGS)? & limited == 0;
        let rate = self.get(field::DELIVERY_RATE)?;
        (measured && rate > 0).then_some(rate)
    }

    /// The least round-trip time of late in microseconds or, where the kernel has not measured it,
    /// nothing; see [`TcpInfo::rtt`].
    #[must_use]
    pub fn min_rtt(&self) -> Option<u64> {
        self.get(field::MIN_RTT).filter(|least| *least > 0)
    }

    /// The smoothed round-trip time in microseconds; `None` also where nothing was acknowledged, of
    /// which the kernel makes a 0.
    #[must_use]
    pub fn rtt(&self) -> Option<u64> {
        self.get(field::RTT).filter(|rtt| *rtt > 0)
    }

    /// As scripted, for tests of what is concluded from it; all else is 0.
    #[must_use]
    pub fn scripted(values: &[(Field, u64)]) -> Self {
        let mut info = Self {
            bytes: [0; LONGEST],
            length: LONGEST,
        };
        for (field, value) in values {
            let value = value.to_ne_bytes();
            let low = match cfg!(target_endian = "little") {
                true => &value[..field.size],
                false => &value[value.len() - field.size..],
            };
            info.bytes[field.offset..field.offset + field.size].copy_from_slice(low);
        }
        info
    }
}

impl fmt::Debug for TcpInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = field::ALL
            .iter()
            .filter_map(|field| Some((field.name, self.get(*field)?)));
        f.debug_map().entries(values).finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_seen_as_it_is() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[1; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        server.write_all(&[1; 77]).unwrap();
        client.read_exact(&mut [0; 77]).unwrap();
        let info = TcpInfo::of(&client).unwrap();
        assert_eq!(info.get(field::STATE), Some(state::ESTABLISHED));
        // With the SYN.
        assert_eq!(info.get(field::BYTES_ACKED), Some(1001));
        assert_eq!(info.get(field::BYTES_RECEIVED), Some(77));
        assert_eq!(info.get(field::UNACKED), Some(0));
        assert!(info.get(field::SND_MSS) >= Some(536), "{info:?}");
        assert!(info.get(field::RTT) > Some(0), "{info:?}");
        if let Some(min_rtt) = info.get(field::MIN_RTT) {
            assert!(min_rtt < 10_000_000, "{info:?}");
        }
        // What stands behind it in the structure is where it is looked for.
        if let Some(sent) = info.get(field::BYTES_SENT) {
            assert_eq!((sent, info.get(field::BYTES_RETRANS)), (1000, Some(0)));
        }
        if let Some(window) = info.get(field::SND_WND) {
            assert!((1000..1 << 30).contains(&window), "{info:?}");
        }
        assert!(TcpInfo::of(&listener).is_ok());
    }

    #[test]
    fn what_the_kernel_does_not_give_is_absent() {
        let mut info = TcpInfo::scripted(&[(field::MIN_RTT, 7), (field::SND_WND, 9)]);
        assert_eq!(info.get(field::MIN_RTT), Some(7));
        info.length = 150;
        assert_eq!(info.get(field::MIN_RTT), None);
        assert_eq!(info.get(field::SND_WND), None);
        assert_eq!(info.get(field::NOTSENT), Some(0));
        let none = TcpInfo::scripted(&[(field::MIN_RTT, u32::MAX.into())]);
        assert_eq!(none.get(field::MIN_RTT), None);
    }

    #[test]
    fn a_rate_that_the_sender_has_limited_says_nothing_of_the_network() {
        let rate = |flags, rate| {
            TcpInfo::scripted(&[(field::FLAGS, flags), (field::DELIVERY_RATE, rate)])
                .delivery_rate()
        };
        let (limited, other) = match cfg!(target_endian = "little") {
            true => (1, 2),
            false => (0x80, 0x40),
        };
        assert_eq!(rate(0, 9), Some(9));
        assert_eq!(rate(other, 9), Some(9));
        assert_eq!(rate(limited, 9), None);
        assert_eq!(rate(0, 0), None);
    }

    #[test]
    fn the_fields_stand_beside_each_other() {
        let mut end = 0;
        for field in field::ALL {
            assert!(field.offset >= end, "{field:?}");
            assert_eq!(field.offset % field.size, 0, "{field:?}");
            end = field.offset + field.size;
        }
        assert!(end <= LONGEST);
    }

    #[test]
    fn a_unix_stream_has_none() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(TcpInfo::of(&one).is_err());
    }
}
