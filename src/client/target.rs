//! What to talk to, as it is written (`echo.example.net`, `192.0.2.7:7`, `[2001:db8::7]:7`,
//! `2001:db8::7`, `unix:/run/echo.sock`), and the addresses that it stands for.
//!
//! The port is that of the service (RFC 862) where none is written.  Names are resolved by the
//! system's resolver, which cannot be interrupted: it runs in a thread of its own, and is left alone
//! when the deadline has passed.

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::mpsc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket};

use crate::config::address::Address;
use crate::sys::bind::is_local;

/// The port of the echo service (RFC 862).
pub const PORT: u16 = 7;

/// What to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    host: Host,
    /// Whether the port was written, or there is none.
    has_port: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Place(Place),
    Name(String, u16),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let has_port = has_port(text);
        let whole = match has_port {
            true => text.to_owned(),
            false => with_port(text),
        };
        let host = match whole.parse().map_err(|why: String| refused(text, &why))? {
            Address::Any(_) => {
                return Err("* is every address of this host: name one, as in localhost".into());
            }
            Address::Name(name, port) => Host::Name(name, port),
            Address::Ip(address) => Host::Place(Place::Ip(address)),
            Address::Unix(path) => Host::Place(Place::Unix(path)),
        };
        match host.port() {
            Some(0) => Err(format!(
                "nothing listens on port 0 of {text:?}; write a port from 1 to 65535, or none for 7"
            )),
            _ => Ok(Self { host, has_port }),
        }
    }
}

/// Whether a target needs no port behind it: it has one, or it is a path.
fn has_port(text: &str) -> bool {
    // The name of an interface may stand behind the address.
    let (address, _) = text.split_once('%').unwrap_or((text, ""));
    let is_v6 = address.parse::<Ipv6Addr>().is_ok();
    text.contains(':') && !text.ends_with(']') && !is_v6
}

fn with_port(text: &str) -> String {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let host = bare.unwrap_or(text);
    match host.contains(':') {
        true => format!("[{host}]:{PORT}"),
        false => format!("{host}:{PORT}"),
    }
}

/// The words of a listener's address as those of a target.
fn refused(text: &str, why: &str) -> String {
    let why = why.split("; write ADDRESS:PORT").next().unwrap_or(why);
    match why.contains("has no address") || why.contains("has no port") {
        true => format!(
            "{text:?} is no target; write HOST, HOST:PORT (echo.example.net, 192.0.2.7:7, \
             [2001:db8::7]:7), or unix:/PATH"
        ),
        false => why
            .replace("cannot listen on", "cannot connect to")
            .replace(", or *", ""),
    }
}

impl Host {
    fn port(&self) -> Option<u16> {
        match self {
            Self::Place(Place::Ip(address)) => Some(address.port()),
            Self::Place(Place::Unix(_)) => None,
            Self::Name(_, port) => Some(*port),
        }
    }
}

impl fmt::Display for Target {
    /// Writes it with its port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Place(place) => place.fmt(f),
            Host::Name(name, port) => Address::Name(name.clone(), *port).fmt(f),
        }
    }
}

/// Which addresses of a name count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Family {
    /// All of them, in the order of the resolver (RFC 6724).
    #[default]
    Any,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

impl Family {
    fn has(self, address: &SocketAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

/// One address to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An address and port.
    Ip(SocketAddr),
    /// The path of a Unix stream socket.
    Unix(PathBuf),
}

impl Place {
    /// As socket(2) and connect(2) want it.
    ///
    /// # Errors
    /// A path that is longer than unix(7) allows.
    pub fn socket_address(&self) -> io::Result<(Domain, SockAddr)> {
        match self {
            Self::Ip(address) => Ok((Domain::for_address(*address), (*address).into())),
            Self::Unix(path) => Ok((Domain::UNIX, SockAddr::unix(path)?)),
        }
    }

    /// Whether no packet to it leaves this host: a loopback address, or a path.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Ip(address) => is_local(address.ip()),
            Self::Unix(_) => true,
        }
    }
}

/// How connecting ended; `None`: that is not decided yet.
pub(super) fn connected(socket: &Socket) -> Option<io::Result<()>> {
    match socket.take_error() {
        Ok(None) if socket.peer_addr().is_err() => None,
        Ok(None) => Some(Ok(())),
        Ok(Some(error)) | Err(error) => Some(Err(error)),
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// The resolver says no, in its words.
    Refused(String),
    /// It has addresses, and none of the family that was asked for.
    NoneOf(Family),
    /// The resolver did not answer within this time.
    Late(Duration),
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => f.write_str(why),
            Self::NoneOf(Family::V4) => f.write_str("it has no IPv4 address (-4)"),
            Self::NoneOf(Family::V6) => f.write_str("it has no IPv6 address (-6)"),
            Self::NoneOf(Family::Any) => f.write_str("it has no address"),
            Self::Late(span) => write!(f, "the resolver did not answer within {span:?}"),
        }
    }
}

impl Target {
    /// Whether no port was written, so that it is [`PORT`].
    #[must_use]
    pub fn has_default_port(&self) -> bool {
        !self.has_port
    }

    /// The same target with another port; a path stays as it is.
    #[must_use]
    pub fn at_port(&self, port: u16) -> Self {
        let host = match self.host.clone() {
            Host::Place(Place::Ip(mut address)) => {
                address.set_port(port);
                Host::Place(Place::Ip(address))
            }
            Host::Name(name, _) => Host::Name(name, port),
            path => path,
        };
        Self {
            host,
            has_port: true,
        }
    }

    /// Whether it is a name, which has to be looked up.
    #[must_use]
    pub fn is_name(&self) -> bool {
        matches!(self.host, Host::Name(..))
    }

    /// The addresses that it stands for, of this family, in the order in which to try them; waits
    /// for the resolver at most `within`.
    ///
    /// # Errors
    /// It stands for none.
    pub fn resolve(&self, family: Family, within: Duration) -> Result<Vec<Place>, Unresolved> {
        let found = match &self.host {
            Host::Place(Place::Unix(path)) => return Ok(vec![Place::Unix(path.clone())]),
            Host::Place(Place::Ip(address)) => vec![*address],
            Host::Name(name, port) => {
                let (name, port) = (name.clone(), *port);
                let (answer, answers) = mpsc::channel();
                let lookup = move || {
                    let found = (name.as_str(), port).to_socket_addrs();
                    // Failing, the deadline has passed.
                    let _ = answer.send(found.map(Iterator::collect::<Vec<_>>));
                };
                std::thread::Builder::new()
                    .name("resolver".into())
                    .spawn(lookup)
                    .map_err(|error| Unresolved::Refused(error.to_string()))?;
                answers
                    .recv_timeout(within)
                    .map_err(|_| Unresolved::Late(within))?
                    .map_err(|error| Unresolved::Refused(error.to_string()))?
            }
        };
        let places: Vec<_> = found
            .into_iter()
            .filter(|address| family.has(address))
            .map(Place::Ip)
            .collect();
        match places.is_empty() {
            true => Err(Unresolved::NoneOf(family)),
            false => Ok(places),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_meant() {
        for (text, meant, default) in [
            ("echo.example.net", "echo.example.net:7", true),
            ("echo.example.net:99", "echo.example.net:99", false),
            ("192.0.2.7", "192.0.2.7:7", true),
            ("192.0.2.7:7", "192.0.2.7:7", false),
            ("2001:db8::7", "[2001:db8::7]:7", true),
            ("[2001:db8::7]", "[2001:db8::7]:7", true),
            ("[2001:db8::7]:99", "[2001:db8::7]:99", false),
            ("::1", "[::1]:7", true),
            ("::1:9", "[::1:9]:7", true),
            ("[192.0.2.7]", "192.0.2.7:7", true),
            ("fe80::1%eth0", "[fe80::1%eth0]:7", true),
            ("[fe80::1%eth0]", "[fe80::1%eth0]:7", true),
            ("[fe80::1%eth0]:9", "[fe80::1%eth0]:9", false),
            ("unix:/run/echo.sock", "unix:/run/echo.sock", false),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), meant, "{text}");
            assert_eq!(target.has_default_port(), default, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_reason() {
        for (text, why) in [
            ("", "is no target"),
            ("*", "every address"),
            ("*:7", "every address"),
            ("a b", "is no target"),
            ("host:", "not a number from 0 to 65535"),
            ("host:0", "port 0"),
            ("127.0.0.1:0", "port 0"),
            ("host:70000", "not a number from 0 to 65535"),
            ("224.0.0.1:7", "cannot connect to 224.0.0.1:7"),
            ("224.0.0.1", "cannot connect to 224.0.0.1:7"),
            ("[ff02::1]", "multicast"),
            ("ff02::1", "multicast"),
            ("fe80::1", "name the interface"),
            ("a:b:9", "write [a:b]:9"),
            ("[]", "is no target"),
            ("unix:echo.sock", "not absolute"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn addresses_are_those_of_the_family() {
        let soon = Duration::from_secs(10);
        let of = |text: &str, family| text.parse::<Target>().unwrap().resolve(family, soon);
        let ip = |text: &str| Place::Ip(text.parse().unwrap());
        assert_eq!(of("127.0.0.1", Family::Any), Ok(vec![ip("127.0.0.1:7")]));
        assert_eq!(
            of("127.0.0.1", Family::V6),
            Err(Unresolved::NoneOf(Family::V6))
        );
        assert_eq!(
            of("unix:/x", Family::V4),
            Ok(vec![Place::Unix("/x".into())])
        );
        let found = of("localhost:9", Family::V4).unwrap();
        assert_eq!(found.first(), Some(&ip("127.0.0.1:9")));
        assert!(matches!(
            of("no-such-host.invalid", Family::Any),
            Err(Unresolved::Refused(_))
        ));
        let moved = "localhost".parse::<Target>().unwrap().at_port(9999);
        assert_eq!(moved.to_string(), "localhost:9999");
    }
}
