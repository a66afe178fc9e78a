//! When the kernel sent and received (`SO_TIMESTAMPING`; Documentation/networking/timestamping).
//!
//! The stamps are made by software, where a packet goes to or comes from the driver: what lies
//! between the two is the wire and the other side, and the rest of a round trip was spent on this
//! host.  Stamps of what is sent come through the error queue, each with the number of its last
//! byte; they need no privilege.  Both are of the wall clock, so that only differences count, and
//! where the kernel gives none there is none.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use super::sockopt::set_number;

/// Flags of `SO_TIMESTAMPING` (linux/net_tstamp.h): software stamps both ways, of what is sent with
/// its number and without its bytes.
const FLAGS: libc::c_int = (libc::SOF_TIMESTAMPING_TX_SOFTWARE
    | libc::SOF_TIMESTAMPING_RX_SOFTWARE
    | libc::SOF_TIMESTAMPING_SOFTWARE
    | libc::SOF_TIMESTAMPING_OPT_ID
    | libc::SOF_TIMESTAMPING_OPT_TSONLY) as libc::c_int;

/// `SCM_TSTAMP_SND` of linux/errqueue.h: the packet went to the driver.
const SENT: u32 = 0;

/// Room for the control messages of one call: three times and an extended error, with headers.
const CONTROL: usize = 256;

/// Control messages, aligned as cmsg(3) wants it.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Asks for stamps from now on.  Nothing may be under way: the bytes are counted from here.
///
/// # Errors
/// Those of setsockopt(2): the kernel does not have it.
pub fn enable(socket: &impl AsFd) -> io::Result<()> {
    set_number(socket, libc::SO_TIMESTAMPING, FLAGS)
}

/// The next stamp of something sent: the offset of its last byte, modulo 2^32, counted from
/// [`enable`], and when it was sent, since 1970.  `None` when there is no further one.
pub fn sent(socket: &impl AsFd) -> Option<(u32, Duration)> {
    loop {
        let (_, stamps) = message(socket, &mut [], libc::MSG_ERRQUEUE).ok()?;
        if let (Some(offset), Some(time)) = (stamps.offset, stamps.time) {
            return Some((offset, time));
        }
        // Something else in that queue, such as an ICMP error.
    }
}

/// Receives like recv(2), with the time at which the last of it arrived, since 1970.
///
/// # Errors
/// Those of recvmsg(2).
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<Duration>)> {
    let (count, stamps) = message(socket, buffer, 0)?;
    Ok((count, stamps.time))
}

/// What the control messages of one call say.
#[derive(Default)]
struct Stamps {
    time: Option<Duration>,
    /// The offset of the last byte that a stamp of something sent is for.
    offset: Option<u32>,
}

#[expect(
    unsafe_code,
    reason = "no crate in the tree reads these control messages"
)]
fn message(
    socket: &impl AsFd,
    buffer: &mut [u8],
    flags: libc::c_int,
) -> io::Result<(usize, Stamps)> {
    let mut control = Control([0; CONTROL]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: a header of zeros is a valid one.  The kernel writes at most as much as it is given
    // into the buffer and the control messages, which outlive the call; what is read afterwards lies
    // inside of what it wrote, as the macros of cmsg(3) and the lengths say, and is read unaligned.
    unsafe {
        let mut header: libc::msghdr = MaybeUninit::zeroed().assume_init();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL as _;
        let count = libc::recvmsg(
            socket.as_fd().as_raw_fd(),
            &raw mut header,
            flags | libc::MSG_DONTWAIT,
        );
        let Ok(count) = usize::try_from(count) else {
            return Err(io::Error::last_os_error());
        };
        let mut stamps = Stamps::default();
        let mut next = libc::CMSG_FIRSTHDR(&raw const header);
        while !next.is_null() {
            let room = (*next).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
            let data = libc::CMSG_DATA(next);
            match ((*next).cmsg_level, (*next).cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPING)
                    if room >= size_of::<libc::timespec>() =>
                {
                    // The first of three is the one by software.
                    let time: libc::timespec = data.cast::<libc::timespec>().read_unaligned();
                    stamps.time = span(&time);
                }
                (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
                    if room >= size_of::<libc::sock_extended_err>() =>
                {
                    let error = data.cast::<libc::sock_extended_err>().read_unaligned();
                    if error.ee_origin == libc::SO_EE_ORIGIN_TIMESTAMPING && error.ee_info == SENT {
                        stamps.offset = Some(error.ee_data);
                    }
                }
                _ => {}
            }
            next = libc::CMSG_NXTHDR(&raw const header, next);
        }
        Ok((count, stamps))
    }
}

/// A time, unless it is 0, which stands for none.
fn span(time: &libc::timespec) -> Option<Duration> {
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let span = Duration::new(seconds, u32::try_from(time.tv_nsec).ok()?);
    (!span.is_zero()).then_some(span)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Instant, SystemTime};

    use super::*;

    #[test]
    fn what_is_sent_and_received_has_its_time_and_its_number() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        enable(&client).unwrap();
        assert_eq!(sent(&client), None);
        // The kernel begins to stamp what arrives some time after the first socket has asked for it.
        let mut end = 0;
        for _ in 0..1000 {
            client.write_all(&[7]).unwrap();
            let mut echo = [0];
            server.read_exact(&mut echo).unwrap();
            server.write_all(&echo).unwrap();
            end += 1;
            std::thread::sleep(Duration::from_millis(1));
            if receive(&client, &mut echo).is_ok_and(|(_, time)| time.is_some()) {
                break;
            }
        }
        while sent(&client).is_some() {}
        for size in [64, 1, 5000] {
            let begin = SystemTime::UNIX_EPOCH.elapsed().unwrap();
            client.write_all(&vec![7; size]).unwrap();
            let mut echo = vec![0; size];
            server.read_exact(&mut echo).unwrap();
            server.write_all(&echo).unwrap();
            let mut came = 0;
            let mut last = None;
            let deadline = Instant::now() + Duration::from_secs(10);
            while came < size && Instant::now() < deadline {
                match receive(&client, &mut echo) {
                    Ok((count, time)) => (came, last) = (came + count, time),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
            assert_eq!(came, size);
            end += u32::try_from(size).unwrap();
            let mut out = None;
            while let Some(stamp) = sent(&client) {
                out = Some(stamp);
            }
            let (offset, out) = out.unwrap();
            assert_eq!(offset, end - 1);
            let back = last.unwrap();
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
            assert!(
                begin <= out && out <= back && back <= now,
                "{begin:?} {out:?} {back:?} {now:?}"
            );
        }
    }

    #[test]
    fn without_stamps_it_receives_all_the_same() {
        let (mut one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        one.write_all(b"hello").unwrap();
        let mut buffer = [0; 9];
        assert_eq!(receive(&other, &mut buffer).unwrap(), (5, None));
        assert_eq!(sent(&other), None);
        drop(one);
        assert_eq!(receive(&other, &mut buffer).unwrap(), (0, None));
    }
}
