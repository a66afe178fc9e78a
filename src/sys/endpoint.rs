//! Addresses of sockets, as they are logged and reported.
//!
//! A peer chooses part of what is reported (the name of a Unix socket), so no text of it reaches a
//! terminal, the journal or the service manager with control characters in it.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;
use std::path::PathBuf;

/// A text with control characters written as `\u{1b}`, except for newlines and tabulators.  A terminal
/// would obey some of them, and the journal hides a message that has one.
#[must_use]
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let is_hidden = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(is_hidden) {
        return text.into();
    }
    let mut shown = String::new();
    for c in text.chars() {
        if is_hidden(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

/// A text that is [`printable`], with its newlines written as `\u{a}`.
fn one_line(text: &str) -> String {
    printable(text).replace('\n', "\\u{a}")
}

/// The address of a socket, at this end of a connection or at that of the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The address of a TCP socket.
    Ip(SocketAddr),
    /// The path of a Unix socket; `None`: it is not bound, as most clients are.
    Unix(Option<PathBuf>),
    /// The name of a Unix socket in the abstract namespace (unix(7)), which may be any bytes.
    Abstract(Vec<u8>),
}

impl From<unix::SocketAddr> for Endpoint {
    fn from(address: unix::SocketAddr) -> Self {
        address.as_abstract_name().map_or_else(
            || Self::Unix(address.as_pathname().map(Into::into)),
            |name| Self::Abstract(name.into()),
        )
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix(Some(path)) => write!(f, "unix:{}", one_line(&path.to_string_lossy())),
            Self::Abstract(name) => {
                write!(f, "unix:@{}", one_line(&String::from_utf8_lossy(name)))
            }
            Self::Unix(None) => f.write_str("unix"),
        }
    }
}
