//! Where to listen, as it is written: `127.0.0.1:9999`, `[::1]:9999`, `*:7`, `localhost:9999`,
//! `unix:/run/echo.sock`.
//!
//! Parsing touches nothing outside.  Names are resolved once, at start, where the sockets are
//! opened.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error};

/// One place to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address and port.
    Ip(SocketAddr),
    /// Any address, IPv4 and IPv6, as one dual-stack socket.
    Any(u16),
    /// A name, to be resolved to one or more addresses.
    Name(String, u16),
    /// The path of a Unix stream socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(format!(
                    "the path of {text:?} is not absolute; write unix:/run/echo.sock"
                ));
            }
            // sockaddr_un holds 108 bytes with the final zero, unix(7).
            if path.len() > 107 {
                return Err(format!("the path of {text:?} is longer than 107 bytes"));
            }
            return Ok(Self::Unix(path.into()));
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return match unfit(address) {
                Some(why) => Err(format!("cannot listen on {text}: {why}")),
                None => Ok(Self::Ip(unmapped(address))),
            };
        }
        let expected = "write ADDRESS:PORT (127.0.0.1:9999, [::1]:9999, localhost:9999), \
                        *:PORT for any address, or unix:/PATH";
        // The last colon of [::1] is one of the address.
        let Some((host, port)) = text.rsplit_once(':').filter(|_| !text.ends_with(']')) else {
            return Err(format!("{text:?} has no port; {expected}"));
        };
        let Ok(port) = port.parse::<u16>() else {
            return Err(format!(
                "the port of {text:?} is not a number from 0 to 65535; {expected}"
            ));
        };
        if host.contains(':') && !host.starts_with('[') {
            return Err(format!("{text:?} is ambiguous: write [{host}]:{port}"));
        }
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        match host {
            "*" => Ok(Self::Any(port)),
            _ if !host.is_empty()
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b".-_:%".contains(&b)) =>
            {
                Ok(Self::Name(host.into(), port))
            }
            _ => Err(format!("{text:?} has no address; {expected}")),
        }
    }
}

/// An IPv4-mapped address (RFC 4291, section 2.5.5.2) as the IPv4 address that it stands for: a
/// dual-stack socket gives such for its IPv4 peers, and none can be bound to one.
#[must_use]
pub(crate) fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => (ip, address.port()).into(),
        IpAddr::V6(_) => address,
    }
}

/// Why TCP cannot listen on an address, if so.
#[must_use]
pub fn unfit(address: SocketAddr) -> Option<&'static str> {
    if let SocketAddr::V6(address) = address {
        if address.ip().is_unicast_link_local() && address.scope_id() == 0 {
            return Some(
                "it is a link-local address, which each interface may have: name the interface, as in [fe80::1%eth0]:7",
            );
        }
    }
    // [::ffff:224.0.0.1] is the IPv4 address in another dress.
    let address = address.ip().to_canonical();
    if address.is_multicast() {
        Some(
            "it is a multicast address, and TCP has one peer; use the address of an interface, or *",
        )
    } else if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some(
            "it is the broadcast address, and TCP has one peer; use the address of an interface, or *",
        )
    } else {
        None
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Any(port) => write!(f, "*:{port}"),
            Self::Name(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_comes_back() {
        for text in [
            "127.0.0.1:9999",
            "[::1]:0",
            "[::]:7",
            "*:7",
            "localhost:9999",
            "unix:/run/e.sock",
            "[fe80::1%eth0]:7",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let mapped: Address = "[::ffff:127.0.0.1]:7".parse().unwrap();
        assert_eq!(mapped.to_string(), "127.0.0.1:7");
        assert_eq!("*:0".parse(), Ok(Address::Any(0)));
        assert_eq!("[::]:7".parse(), Ok(Address::Ip("[::]:7".parse().unwrap())));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_reason() {
        for (text, why) in [
            ("9999", "has no port"),
            (":9999", "has no address"),
            ("::1:9999", "write [::1]:9999"),
            ("127.0.0.1:70000", "not a number from 0 to 65535"),
            ("127.0.0.1:", "not a number"),
            ("255.255.255.255:7", "broadcast"),
            ("224.0.0.1:7", "multicast"),
            ("[ff02::1]:7", "multicast"),
            ("[::ffff:224.0.0.1]:7", "multicast"),
            ("[::ffff:255.255.255.255]:7", "broadcast"),
            ("unix:e.sock", "not absolute"),
            ("unix:", "not absolute"),
            ("unix:/a\0b", "not absolute"),
            ("*", "has no port"),
            ("[::1]", "has no port"),
            ("[fe80::1%eth0]", "has no port"),
            ("[fe80::1]:7", "[fe80::1%eth0]:7"),
            ("[]:7", "has no address"),
            ("127.0.0.1:-1", "not a number"),
            ("a b:7", "has no address"),
            ("", "has no port"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(
            format!("unix:/{}", "x".repeat(107))
                .parse::<Address>()
                .is_err()
        );
    }
}
