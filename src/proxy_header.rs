//! The header of the PROXY protocol, by which a proxy says for which client it has connected.
//!
//! The header stands before the first byte of a connection.  Version 1 is a line of text, version 2 is
//! binary and may carry further facts about the client (*extensions*; the standard calls them TLV).
//! The standard is proxy-protocol.txt in the documentation of HAProxy, by whose sections this module
//! goes.
//!
//! [`parse`] is pure: it is given the bytes that have arrived so far, in however many pieces they came,
//! and says that more are needed, or what the header is, or why it is none.  A byte that no header has
//! in its place is refused as soon as it arrives.  The client's `probe` builds headers with the numbers
//! that stand here.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::str::FromStr;

/// The most bytes of a header.  Version 2 could say 65 551; a proxy has no use for so many, and nginx
/// reads no more than this either.
pub const MAX_LENGTH: usize = 4096;

/// The most bytes of a header of version 1, with its end of line (section 2.1).
const MAX_LINE: usize = 107;

/// What a header of version 1 begins with (section 2.1).
const LINE: &[u8] = b"PROXY ";

/// What a header of version 2 begins with (section 2.2).
pub(crate) const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes of version 2 before the addresses: signature, command, family and length.
pub(crate) const FIXED: usize = 16;

/// Version 2, and the command for a connection of the proxy itself, such as a health check.
pub(crate) const LOCAL: u8 = 0x20;

/// Version 2, and the command for a connection of a client.
pub(crate) const PROXY: u8 = 0x21;

/// The families of addresses with TCP, and the one that is not specified.
pub(crate) const UNSPECIFIED: u8 = 0x00;
/// TCP over IPv4.
pub(crate) const TCP4: u8 = 0x11;
/// TCP over IPv6.
pub(crate) const TCP6: u8 = 0x21;

/// The kinds of extensions that are used here (section 2.2.1).
pub(crate) const AUTHORITY: u8 = 0x02;
/// A checksum of the whole header.
pub(crate) const CHECKSUM: u8 = 0x03;
/// An extension without a meaning.
pub(crate) const PADDING: u8 = 0x04;
/// A name that the proxy gives the connection.
pub(crate) const UNIQUE_ID: u8 = 0x05;
/// An extension of AWS; its first byte is 1 where the name of a VPC endpoint follows.
const AWS: u8 = 0xea;

/// The longest value of an extension that is kept, in bytes; the standard allows a unique id 128.
const MAX_VALUE: usize = 255;

/// Why some bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid(pub &'static str);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Its bytes, from 15 to [`MAX_LENGTH`].
    pub length: u16,
    /// The version, 1 or 2.
    pub version: u8,
    /// The addresses of the client's connection; `None`: the connection is one of the proxy itself, or
    /// the proxy does not know them, so that those of the socket hold (section 2.2).
    pub addresses: Option<Addresses>,
    /// The name of the host that the client has asked for (section 2.2.1).
    pub authority: Option<Box<str>>,
    /// The name that the proxy has given the connection, with bytes that are no text escaped
    /// (section 2.2.5).
    pub unique_id: Option<Box<str>>,
    /// The VPC endpoint of AWS through which the client has come.
    pub endpoint: Option<Box<str>>,
}

/// Both ends of the connection between a client and a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// The address that the client has connected to.
    pub destination: SocketAddr,
}

/// Reads the header at the beginning of what has arrived; `None`: more bytes are needed.
///
/// # Errors
/// [`Invalid`] says why the bytes are no header, whatever may follow.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, Invalid> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(byte, other)| byte == other);
    if begins(SIGNATURE) {
        return parse_binary(bytes);
    }
    if begins(LINE) {
        return parse_line(bytes);
    }
    Err(Invalid("it begins with something else"))
}

/// Version 1 (section 2.1).
fn parse_line(bytes: &[u8]) -> Result<Option<Header>, Invalid> {
    let line = &bytes[..bytes.len().min(MAX_LINE)];
    let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
        if line.len() == MAX_LINE {
            return Err(Invalid("its line is longer than 107 bytes"));
        }
        return Ok(None);
    };
    let line = line[..end]
        .strip_suffix(b"\r")
        .and_then(|line| std::str::from_utf8(line.get(LINE.len()..)?).ok())
        .filter(|line| !line.contains('\r'))
        .ok_or(Invalid("its line is no text that ends with CR and LF"))?;
    let addresses = match line.split(' ').collect::<Vec<_>>()[..] {
        ["UNKNOWN", ..] => None,
        ["TCP4", source, destination, from, to] => Some(Addresses {
            source: address::<std::net::Ipv4Addr>(source, from)?,
            destination: address::<std::net::Ipv4Addr>(destination, to)?,
        }),
        ["TCP6", source, destination, from, to] => Some(Addresses {
            source: address::<std::net::Ipv6Addr>(source, from)?,
            destination: address::<std::net::Ipv6Addr>(destination, to)?,
        }),
        _ => {
            return Err(Invalid(
                "its line names neither TCP4, TCP6 with addresses and ports, nor UNKNOWN",
            ));
        }
    };
    Ok(Some(Header {
        length: u16::try_from(end + 1).unwrap_or(u16::MAX),
        version: 1,
        addresses,
        ..Header::default()
    }))
}

/// An address and a port of version 1.  A sign or a needless zero before a number is refused, as
/// programs disagree about its meaning.
fn address<T: FromStr + Into<IpAddr>>(ip: &str, port: &str) -> Result<SocketAddr, Invalid> {
    let ip: T = ip
        .parse()
        .map_err(|_| Invalid("an address in its line is none of that family"))?;
    let is_plain = port == "0" || port.starts_with(|first| matches!(first, '1'..='9'));
    let port = port.parse().ok().filter(|_| is_plain);
    let port: u16 = port.ok_or(Invalid("a port in its line is no number from 0 to 65535"))?;
    // An IPv4 address that is written as one of IPv6 counts as what it is, as in version 2.
    Ok(SocketAddr::new(ip.into().to_canonical(), port))
}

/// Version 2 (section 2.2).
fn parse_binary(bytes: &[u8]) -> Result<Option<Header>, Invalid> {
    let command = match bytes.get(SIGNATURE.len()) {
        None => return Ok(None),
        Some(command @ &(LOCAL | PROXY)) => *command,
        Some(_) => return Err(Invalid("its version is not 2, or its command is unknown")),
    };
    let Some(&[family, high, low]) = bytes.get(SIGNATURE.len() + 1..FIXED) else {
        return Ok(None);
    };
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_LENGTH {
        return Err(Invalid("it says that it is longer than 4096 bytes"));
    }
    let Some(bytes) = bytes.get(..length) else {
        return Ok(None);
    };
    // What a proxy says of a connection of its own is to be ignored, whatever it is.
    let is_local = command == LOCAL;
    let (addresses, size) = match family {
        TCP4 => (ip_addresses::<4>(bytes), 12),
        TCP6 => (ip_addresses::<16>(bytes), 36),
        UNSPECIFIED => (None, 0),
        // UDP, which this connection is not, and Unix sockets, which have no address that helps.
        0x12 => (None, 12),
        0x22 => (None, 36),
        0x31 | 0x32 => (None, 216),
        _ if is_local => (None, 0),
        _ => return Err(Invalid("its family of addresses is unknown")),
    };
    let mut header = Header {
        length: u16::try_from(length).unwrap_or(u16::MAX),
        version: 2,
        addresses: addresses.filter(|_| !is_local),
        ..Header::default()
    };
    let extensions = FIXED + size;
    let read = if extensions > length {
        Err(Invalid("it is too short for its addresses"))
    } else {
        header.read_extensions(bytes, extensions)
    };
    match read {
        Err(invalid) if invalid != WRONG_CHECKSUM && (is_local || family == UNSPECIFIED) => {}
        read => read?,
    }
    Ok(Some(header))
}

const WRONG_CHECKSUM: Invalid = Invalid("its checksum is wrong");

/// Two addresses of `N` bytes each, and two ports, behind the fixed part.
fn ip_addresses<const N: usize>(bytes: &[u8]) -> Option<Addresses>
where
    IpAddr: From<[u8; N]>,
{
    let at = |from: usize| -> Option<IpAddr> {
        let bytes: [u8; N] = bytes.get(from..from + N)?.try_into().ok()?;
        Some(IpAddr::from(bytes).to_canonical())
    };
    let port = |from: usize| -> Option<u16> {
        Some(u16::from_be_bytes(
            bytes.get(from..from + 2)?.try_into().ok()?,
        ))
    };
    let ports = FIXED + 2 * N;
    Some(Addresses {
        source: SocketAddr::new(at(FIXED)?, port(ports)?),
        destination: SocketAddr::new(at(FIXED + N)?, port(ports + 2)?),
    })
}

impl Header {
    /// Reads the extensions that stand from `at` on to the end.
    fn read_extensions(&mut self, bytes: &[u8], mut at: usize) -> Result<(), Invalid> {
        let mut has_checksum = false;
        while at < bytes.len() {
            let value = bytes.get(at + 1..at + 3).and_then(|length| {
                let begin = at + 3;
                let length = u16::from_be_bytes([length[0], length[1]]);
                Some(begin..begin + usize::from(length)).filter(|value| value.end <= bytes.len())
            });
            let value = value.ok_or(Invalid("an extension is longer than the rest of it"))?;
            let (kind, place) = (bytes[at], value.clone());
            at = value.end;
            let value = &bytes[value];
            match kind {
                // A header full of them would cost milliseconds.
                CHECKSUM if std::mem::replace(&mut has_checksum, true) => {
                    return Err(Invalid("it has two checksums"));
                }
                CHECKSUM if value != checksum(bytes, place).to_be_bytes() => {
                    return Err(WRONG_CHECKSUM);
                }
                AUTHORITY => self.authority = Some(text(value)),
                UNIQUE_ID => self.unique_id = Some(text(value)),
                AWS if value.first() == Some(&1) => self.endpoint = Some(text(&value[1..])),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A value as text, with everything escaped that is not printable ASCII.
fn text(value: &[u8]) -> Box<str> {
    let value = &value[..value.len().min(MAX_VALUE)];
    value.escape_ascii().to_string().into()
}

/// The checksum of a header, whose own checksum stands in the bytes `but` and counts as zeros.
pub(crate) fn checksum(header: &[u8], but: Range<usize>) -> u32 {
    let bytes = header.iter().enumerate();
    crc32c(bytes.map(|(at, byte)| if but.contains(&at) { 0 } else { *byte }))
}

/// CRC-32C (RFC 3720, appendix B.4), bit by bit, as headers are short and rarely have one.
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    !bytes.fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| match crc & 1 {
            0 => crc >> 1,
            _ => crc >> 1 ^ 0x82f6_3b78,
        })
    })
}

/// A header of version 2 with this command, this family and what follows them.
#[must_use]
pub(crate) fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap_or(u16::MAX).to_be_bytes();
    [SIGNATURE, &[command, family][..], &length, rest].concat()
}

/// An extension of a header of version 2.
#[must_use]
pub(crate) fn extension(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[kind][..], &length, value].concat()
}

/// The same header with a checksum at its end, which is the right one but for the bits in `flipped`.
#[must_use]
pub(crate) fn with_checksum(command: u8, family: u8, rest: &[u8], flipped: u32) -> Vec<u8> {
    let rest = [rest, &extension(CHECKSUM, &[0; 4])].concat();
    let mut header = binary(command, family, &rest);
    let at = header.len() - 4;
    let sum = checksum(&header, at..header.len()) ^ flipped;
    header[at..].copy_from_slice(&sum.to_be_bytes());
    header
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IPV4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0, 7];

    fn addresses(source: &str, destination: &str) -> Option<Addresses> {
        Some(Addresses {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        })
    }

    fn whole(bytes: &[u8]) -> Result<Header, &'static str> {
        match parse(bytes) {
            Ok(Some(header)) => Ok(header),
            Ok(None) => Err("incomplete"),
            Err(Invalid(why)) => Err(why),
        }
    }

    fn ipv6() -> Vec<u8> {
        let host = |last: u8| [[0x20, 1, 0x0d, 0xb8], [0; 4], [0; 4], [0, 0, 0, last]].concat();
        [host(1), host(7), vec![0xdc, 0x04, 0, 7]].concat()
    }

    /// Headers that are right, with the addresses that they give.
    fn good() -> Vec<(Vec<u8>, Option<Addresses>)> {
        let v4 = addresses("192.0.2.1:56324", "198.51.100.1:7");
        let v6 = addresses("[2001:db8::1]:56324", "[2001:db8::7]:7");
        let long = extension(PADDING, &[7; MAX_LENGTH - FIXED - 12 - 3]);
        vec![
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 7\r\n".to_vec(),
                v4,
            ),
            (
                b"PROXY TCP6 2001:db8::1 2001:db8::7 56324 7\r\n".to_vec(),
                v6,
            ),
            (
                b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.1 56324 7\r\n".to_vec(),
                v4,
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ff:: anything 1 2\r\n".to_vec(), None),
            (binary(PROXY, TCP4, &IPV4), v4),
            (binary(PROXY, TCP6, &ipv6()), v6),
            (with_checksum(PROXY, TCP4, &IPV4, 0), v4),
            (binary(PROXY, TCP4, &[&IPV4[..], &long].concat()), v4),
            (binary(PROXY, UNSPECIFIED, b""), None),
            (binary(PROXY, UNSPECIFIED, b"whatever"), None),
            (binary(PROXY, 0x31, &[0; 216]), None),
            (binary(PROXY, 0x12, &IPV4), None),
            (binary(LOCAL, UNSPECIFIED, b""), None),
            (binary(LOCAL, UNSPECIFIED, b"whatever"), None),
            (binary(LOCAL, 0x77, b"whatever"), None),
            (binary(LOCAL, TCP4, &IPV4), None),
            (binary(LOCAL, TCP4, b"short"), None),
            (with_checksum(LOCAL, UNSPECIFIED, b"", 0), None),
        ]
    }

    #[test]
    fn a_header_is_read_once_its_last_byte_is_there_and_whatever_follows() {
        for (header, addresses) in good() {
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut]), Ok(None), "{}", header.escape_ascii());
            }
            for more in ["", "\n", "\r\n\r\n", "PROXY UNKNOWN\r\n"] {
                let found = whole(&[&header, more.as_bytes()].concat()).unwrap();
                assert_eq!(usize::from(found.length), header.len());
                assert_eq!(found.addresses, addresses, "{}", header.escape_ascii());
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused_with_the_reason() {
        let long = [b"PROXY UNKNOWN ", &[b'x'; 100][..]].concat();
        for (bytes, why) in [
            (b"hello".to_vec(), "it begins with something else"),
            (b"PROXZ".to_vec(), "it begins with something else"),
            (b"\r\n\r\r".to_vec(), "it begins with something else"),
            (long, "its line is longer than 107 bytes"),
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 7\n".to_vec(),
                "its line is no text that ends with CR and LF",
            ),
            (
                b"PROXY UNKNOWN \r 1\r\n".to_vec(),
                "its line is no text that ends with CR and LF",
            ),
            (
                b"PROXY TCP4 192.0.2.01 198.51.100.1 56324 7\r\n".to_vec(),
                "an address in its line is none of that family",
            ),
            (
                b"PROXY TCP4 2001:db8::1 198.51.100.1 56324 7\r\n".to_vec(),
                "an address in its line is none of that family",
            ),
            (
                b"PROXY TCP6 192.0.2.1 198.51.100.1 56324 7\r\n".to_vec(),
                "an address in its line is none of that family",
            ),
        ] {
            assert_eq!(whole(&bytes), Err(why), "{}", bytes.escape_ascii());
        }
        for port in ["+7", "07", "-1", "65536", "", "7x", "00"] {
            let line = format!("PROXY TCP4 192.0.2.1 198.51.100.1 56324 {port}\r\n");
            let why = "a port in its line is no number from 0 to 65535";
            assert_eq!(whole(line.as_bytes()), Err(why), "{line}");
        }
        for fields in [
            "",
            "TCP4",
            "TCP4 192.0.2.1 198.51.100.1 1",
            "UDP4",
            "unknown",
        ] {
            let line = format!("PROXY {fields}\r\n");
            let why = "its line names neither TCP4, TCP6 with addresses and ports, nor UNKNOWN";
            assert_eq!(whole(line.as_bytes()), Err(why), "{line}");
        }
        let unfinished = [&IPV4[..], &[AUTHORITY, 0, 9, 1]].concat();
        let mut two_sums = binary(
            PROXY,
            TCP4,
            &[
                &IPV4[..],
                &extension(CHECKSUM, &[0; 4]),
                &extension(CHECKSUM, &[0; 4]),
            ]
            .concat(),
        );
        let first = FIXED + IPV4.len() + 3;
        let sum = checksum(&two_sums, first..first + 4);
        two_sums[first..first + 4].copy_from_slice(&sum.to_be_bytes());
        let short_sum = [&IPV4[..], &extension(CHECKSUM, &[1, 2])].concat();
        for (header, why) in [
            (
                binary(0x31, TCP4, &IPV4),
                "its version is not 2, or its command is unknown",
            ),
            (
                binary(0x22, TCP4, &IPV4),
                "its version is not 2, or its command is unknown",
            ),
            (
                binary(PROXY, 0x13, &IPV4),
                "its family of addresses is unknown",
            ),
            (
                binary(PROXY, TCP4, &IPV4[..11]),
                "it is too short for its addresses",
            ),
            (
                binary(PROXY, TCP6, &IPV4),
                "it is too short for its addresses",
            ),
            (
                binary(PROXY, TCP4, &unfinished),
                "an extension is longer than the rest of it",
            ),
            (
                with_checksum(PROXY, TCP4, &IPV4, 1),
                "its checksum is wrong",
            ),
            (
                with_checksum(LOCAL, UNSPECIFIED, b"", 1 << 31),
                "its checksum is wrong",
            ),
            (binary(PROXY, TCP4, &short_sum), "its checksum is wrong"),
            (two_sums, "it has two checksums"),
            (
                binary(PROXY, TCP4, &[0; MAX_LENGTH]),
                "it says that it is longer than 4096 bytes",
            ),
        ] {
            assert_eq!(whole(&header), Err(why), "{}", header.escape_ascii());
        }
    }

    #[test]
    fn wrong_bytes_are_refused_before_the_rest_arrives() {
        let binary = |rest: &[u8]| [&SIGNATURE[..], rest].concat();
        for bytes in [
            b"h".to_vec(),
            b"PROXY\t".to_vec(),
            binary(&[0x10]),
            binary(&[PROXY, TCP4, 0xff, 0]),
        ] {
            assert!(parse(&bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn extensions_are_read_and_escaped() {
        let rest = [
            &IPV4[..],
            &extension(0x01, b"h2"),
            &extension(AUTHORITY, b"echo.example"),
            &extension(UNIQUE_ID, b"\x01\xff\n7"),
            &extension(AWS, b"\x01vpce-0123"),
            &extension(AWS, b"\x02other"),
        ];
        let header = whole(&with_checksum(PROXY, TCP4, &rest.concat(), 0)).unwrap();
        assert_eq!(header.authority.as_deref(), Some("echo.example"));
        assert_eq!(header.unique_id.as_deref(), Some("\\x01\\xff\\n7"));
        assert_eq!(header.endpoint.as_deref(), Some("vpce-0123"));
    }

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // RFC 3720, appendix B.4, and the check value of the polynomial.
        assert_eq!(crc32c([0; 32].into_iter()), 0x8a91_36aa);
        assert_eq!(crc32c("123456789".bytes()), 0xe306_9283);
    }

    fn canonical(address: SocketAddr) -> SocketAddr {
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    /// What another implementation makes of the same bytes.
    fn oracle(bytes: &[u8]) -> Option<(usize, Option<(SocketAddr, SocketAddr)>)> {
        let config = proxy_header::ParseConfig::default();
        let (header, length) = proxy_header::ProxyHeader::parse(bytes, config).ok()?;
        let addresses = header
            .proxied_address()
            .filter(|addresses| addresses.protocol == proxy_header::Protocol::Stream);
        Some((
            length,
            addresses.map(|found| (canonical(found.source), canonical(found.destination))),
        ))
    }

    /// A header that is right, one of whose bytes may be another.
    fn nearly_good() -> impl Strategy<Value = Vec<u8>> {
        let headers: Vec<Vec<u8>> = good().into_iter().map(|(header, _)| header).collect();
        (
            prop::sample::select(headers),
            any::<prop::sample::Index>(),
            prop::option::of(any::<u8>()),
        )
            .prop_map(|(mut header, at, byte)| {
                if let Some(byte) = byte {
                    let at = at.index(header.len());
                    header[at] = byte;
                }
                header
            })
    }

    proptest! {
        #[test]
        fn what_is_taken_is_what_another_implementation_takes(header in nearly_good()) {
            if let Ok(Some(found)) = parse(&header) {
                let length = usize::from(found.length);
                prop_assert!(length <= header.len());
                let is_local = header.get(12) == Some(&LOCAL);
                // The other one refuses addresses in a connection of the proxy itself that are short
                // or of an unknown family, which are to be ignored.
                match oracle(&header) {
                    Some((theirs, addresses)) => {
                        prop_assert_eq!(length, theirs);
                        let ours = found.addresses.map(|both| (both.source, both.destination));
                        prop_assert_eq!(ours, addresses);
                    }
                    None => prop_assert!(is_local, "only we take it"),
                }
            }
        }

        #[test]
        fn the_answer_does_not_depend_on_how_the_bytes_come(
            header in nearly_good(),
            more in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let bytes = [header, more].concat();
            let all = parse(&bytes);
            for cut in 0..bytes.len() {
                match parse(&bytes[..cut]) {
                    Ok(None) => {}
                    early => prop_assert_eq!(&early, &all),
                }
            }
        }

        #[test]
        fn no_bytes_are_too_wild(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = parse(&[&SIGNATURE[..], &[PROXY, TCP4], &bytes].concat());
            let _ = parse(&[LINE, &bytes].concat());
        }
    }
}
