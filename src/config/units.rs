//! The units of the configuration: spans of time, sizes, counts, names, and "off" or "auto" beside
//! them; how they are read and how they are shown.
//!
//! Every range is checked here, while a file is read, so that an error can point at its line.  A
//! value that was read needs no second check.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// The longest span, so that adding one to an instant cannot overflow: 100 years of 365.25 days,
/// which is how the parser reads years.
const LONGEST: Duration = Duration::from_secs(100 * 31_557_600);

/// A value that is written as text or as a whole number.
pub trait Unit: Sized {
    /// The values that are possible, with their range, as the end of a sentence.
    fn expected() -> String;

    /// Reads a value that was written as text.
    ///
    /// # Errors
    /// Says what is wrong with the text; the caller adds [`Unit::expected`].
    fn from_text(text: &str) -> Result<Self, String>;

    /// Reads a value that was written as a whole number.
    ///
    /// # Errors
    /// Says what is wrong with the number; the caller adds [`Unit::expected`].
    fn from_number(number: i128) -> Result<Self, String>;
}

struct UnitVisitor<T>(PhantomData<T>);

impl<T: Unit> Visitor<'_> for UnitVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&T::expected())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::from_text(text).map_err(|why| E::custom(format!("{why}; expected {}", T::expected())))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.visit_i128(number.into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.visit_i128(number.into())
    }

    fn visit_i128<E: Error>(self, number: i128) -> Result<T, E> {
        T::from_number(number)
            .map_err(|why| E::custom(format!("{why}; expected {}", T::expected())))
    }

    fn visit_u128<E: Error>(self, number: u128) -> Result<T, E> {
        self.visit_i128(i128::try_from(number).unwrap_or(i128::MAX))
    }
}

macro_rules! deserialize_unit {
    ($([$($generic:tt)*] $type:ty),+ $(,)?) => {$(
        impl<'de, $($generic)*> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(UnitVisitor(PhantomData))
            }
        }
    )+};
}
deserialize_unit!([] Mode, [] Proxy, [] Network, [] Group, [] Congestion, [] Span, [] Moment, [] Size, [const LEAST: u32, const MOST: u32] Count<LEAST, MOST>,
    [const MOST: u64] Seconds<MOST>, [T: Unit + Zero] OrOff<T>, [T: Unit] OrAuto<T>);

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It echoes.
    Echo,
    /// It answers each connection with one line about the health of the service, and closes it.
    Health,
}

impl Role {
    /// What it is called in the configuration.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Health => "health",
        }
    }

    /// The role of a listener of this name where the configuration does not say.
    #[must_use]
    pub fn of(name: &str) -> Self {
        if name == Self::Health.word() {
            Self::Health
        } else {
            Self::Echo
        }
    }
}

/// A span of time, as in "90s", "5min" or "1h 30min".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Unit for Span {
    fn expected() -> String {
        "a span of time such as \"90s\", \"500ms\" or \"5min\"".into()
    }

    fn from_text(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Err("this cannot be switched off".into());
        }
        if text.bytes().all(|byte| byte == b'0') && !text.is_empty() {
            return Err(format!("{text:?} has no unit"));
        }
        if text
            .split(|c: char| !c.is_alphabetic())
            .any(|unit| unit == "M")
        {
            return Err(format!(
                "{text:?} might be minutes or months: write \"1min\" or \"1month\""
            ));
        }
        let span = humantime::parse_duration(text).map_err(|error| format!("{text:?}: {error}"))?;
        if span > LONGEST {
            return Err(format!("{text:?} is longer than 100 years"));
        }
        Ok(Self(span))
    }

    fn from_number(number: i128) -> Result<Self, String> {
        Err(format!("{number} has no unit"))
    }
}

/// A span of at most ten milliseconds, for which a loop may wait without sleeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(pub Duration);

impl Unit for Moment {
    fn expected() -> String {
        "a span of time such as \"50us\", of at most \"10ms\"".into()
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let Span(span) = Span::from_text(text)?;
        if span > Duration::from_millis(10) {
            return Err(format!("{text:?} is too long"));
        }
        Ok(Self(span))
    }

    fn from_number(number: i128) -> Result<Self, String> {
        Err(format!("{number} has no unit"))
    }
}

/// Whole seconds from one to `MOST`, as the keepalive options of tcp(7) take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds<const MOST: u64>(pub Duration);

impl<const MOST: u64> Unit for Seconds<MOST> {
    fn expected() -> String {
        format!("a span of whole seconds such as \"300s\", from \"1s\" to \"{MOST}s\"")
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let Span(span) = Span::from_text(text)?;
        if span.subsec_nanos() != 0 || !(1..=MOST).contains(&span.as_secs()) {
            return Err(format!("{text:?} is out of range"));
        }
        Ok(Self(span))
    }

    fn from_number(number: i128) -> Result<Self, String> {
        Err(format!("{number} has no unit"))
    }
}

/// A number of bytes, as in "64KiB" or 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl Unit for Size {
    fn expected() -> String {
        "a size such as \"64KiB\" or a number of bytes".into()
    }

    fn from_text(text: &str) -> Result<Self, String> {
        match bytesize::ByteSize::from_str(text) {
            Ok(size) if size.0 <= i64::MAX as u64 => Ok(Self(size.0)),
            Ok(_) => Err(format!("{text:?} is too large")),
            Err(_) => Err(format!("{text:?} is not a size")),
        }
    }

    fn from_number(number: i128) -> Result<Self, String> {
        match u64::try_from(number) {
            Ok(size) if i64::try_from(number).is_ok() => Ok(Self(size)),
            _ if number < 0 => Err(format!("{number} is negative")),
            _ => Err(format!("{number} is too large")),
        }
    }
}

/// A whole number from `LEAST` to `MOST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count<const LEAST: u32, const MOST: u32>(pub u32);

impl<const LEAST: u32, const MOST: u32> Unit for Count<LEAST, MOST> {
    fn expected() -> String {
        format!("a whole number from {LEAST} to {MOST}")
    }

    fn from_text(text: &str) -> Result<Self, String> {
        Err(format!("{text:?} is not a number"))
    }

    fn from_number(number: i128) -> Result<Self, String> {
        u32::try_from(number)
            .ok()
            .filter(|number| (LEAST..=MOST).contains(number))
            .map(Self)
            .ok_or_else(|| format!("{number} is out of range"))
    }
}

/// What a listener is for, or the permissions of the path of its Unix socket (chmod(2)), from 0 to 0777.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What it is for.
    Role(Role),
    /// The permissions.
    Permissions(u32),
}

impl Unit for Mode {
    fn expected() -> String {
        "\"echo\", \"health\", or octal permissions as text, such as \"0660\"".into()
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let roles = [Role::Echo, Role::Health];
        if let Some(role) = roles.into_iter().find(|role| role.word() == text) {
            return Ok(Self::Role(role));
        }
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match u32::from_str_radix(text, 8) {
            Ok(mode) if digits && mode <= 0o777 => Ok(Self::Permissions(mode)),
            _ => Err(format!("{text:?} is no mode from \"0\" to \"0777\"")),
        }
    }

    fn from_number(number: i128) -> Result<Self, String> {
        Err(format!("{number} might be decimal or octal"))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Role(role) => f.write_str(role.word()),
            Self::Permissions(mode) => write!(f, "{mode:04o}"),
        }
    }
}

/// Whether each connection begins with a PROXY header.  It is never guessed: a client could send one as
/// well (proxy-protocol.txt, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// None does; what looks like one is echoed.
    Off,
    /// Each does.
    Required,
}

impl Unit for Proxy {
    fn expected() -> String {
        "\"off\" or \"required\"".into()
    }

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "required" => Ok(Self::Required),
            _ => Err(format!("{text:?} is neither")),
        }
    }

    fn from_number(number: i128) -> Result<Self, String> {
        Err(format!("{number} is neither"))
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Required => "required",
        })
    }
}

/// An IP network, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(pub ipnet::IpNet);

impl Unit for Network {
    fn expected() -> String {
        "a network such as \"10.0.0.0/8\" or \"2001:db8::/32\", or an address".into()
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let network = text.parse();
        let network = network.or_else(|_| text.parse().map(|ip: IpAddr| ip.into()));
        let network = network.map_err(|_| format!("{text:?} is neither"))?;
        Ok(Self(network))
    }

    fn from_number(number: i128) -> Result<Self, String> {
        Err(format!("{number} is neither"))
    }
}

/// IP networks and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks(pub Vec<Network>);

impl Networks {
    /// The values that are possible, as the end of a sentence.
    #[must_use]
    pub fn expected() -> String {
        "networks and addresses such as [\"10.0.0.0/8\", \"2001:db8::1\"]".into()
    }

    /// Whether an address is in one of the networks.  An IPv4 address that is written as one of IPv6
    /// (RFC 4291, section 2.5.5.2) counts as what it is.
    #[must_use]
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let mut networks = self.0.iter();
        networks.any(|Network(network)| network.contains(&address))
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks: Vec<String> = self
            .0
            .iter()
            .map(
                |Network(network)| match network.max_prefix_len() == network.prefix_len() {
                    true => network.addr().to_string(),
                    false => network.trunc().to_string(),
                },
            )
            .collect();
        match networks.is_empty() {
            true => f.write_str("none"),
            false => f.write_str(&networks.join(", ")),
        }
    }
}

impl<'de> Deserialize<'de> for Networks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items;

        impl<'de> Visitor<'de> for Items {
            type Value = Networks;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&Networks::expected())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Networks, A::Error> {
                let mut networks = Vec::new();
                while let Some(network) = items.next_element()? {
                    networks.push(network);
                }
                Ok(Networks(networks))
            }
        }

        deserializer.deserialize_any(Items)
    }
}

/// A group, by its name or its number; see group(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group(pub String);

impl Unit for Group {
    fn expected() -> String {
        "the name of a group of /etc/group, or its number".into()
    }

    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty()
            || text.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control())
        {
            return Err(format!("{text:?} is no name"));
        }
        Ok(Self(text.into()))
    }

    fn from_number(number: i128) -> Result<Self, String> {
        // The last number stands for "none", chown(2).
        u32::try_from(number)
            .ok()
            .filter(|number| *number < u32::MAX)
            .map(|number| Self(number.to_string()))
            .ok_or_else(|| format!("{number} is out of range"))
    }
}

/// The name of a congestion control algorithm, at most 15 characters (`TCP_CONGESTION`, tcp(7)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Congestion(pub String);

impl Unit for Congestion {
    fn expected() -> String {
        "a name of at most 15 characters, such as \"cubic\" \
         (see net.ipv4.tcp_available_congestion_control)"
            .into()
    }

    fn from_text(text: &str) -> Result<Self, String> {
        // TCP_CA_NAME_MAX of linux/tcp.h is 16, with the final zero.
        if text.is_empty() || text.len() > 15 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!("{text:?} is not a congestion control"));
        }
        Ok(Self(text.into()))
    }

    fn from_number(number: i128) -> Result<Self, String> {
        Err(format!("{number} is not a congestion control"))
    }
}

/// Values of which zero would be ambiguous beside "off".
pub trait Zero {
    /// Whether the value is zero.
    fn is_zero(&self) -> bool;
}

impl Zero for Span {
    fn is_zero(&self) -> bool {
        self.0.is_zero()
    }
}

impl Zero for Moment {
    fn is_zero(&self) -> bool {
        self.0.is_zero()
    }
}

impl Zero for Size {
    fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

impl<const LEAST: u32, const MOST: u32> Zero for Count<LEAST, MOST> {
    fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

/// A value above zero, or "off".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrOff<T>(pub Option<T>);

impl<T: Unit + Zero> OrOff<T> {
    fn above_zero(value: T) -> Result<Self, String> {
        if value.is_zero() {
            return Err("zero would be ambiguous: write \"off\" to switch it off".into());
        }
        Ok(Self(Some(value)))
    }
}

impl<T: Unit + Zero> Unit for OrOff<T> {
    fn expected() -> String {
        format!("{}, or \"off\"", T::expected())
    }

    fn from_text(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        T::from_text(text).and_then(Self::above_zero)
    }

    fn from_number(number: i128) -> Result<Self, String> {
        T::from_number(number).and_then(Self::above_zero)
    }
}

/// A value, or "auto".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrAuto<T>(pub Option<T>);

impl<T: Unit> Unit for OrAuto<T> {
    fn expected() -> String {
        format!("{}, or \"auto\"", T::expected())
    }

    fn from_text(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self(None));
        }
        T::from_text(text).map(|value| Self(Some(value)))
    }

    fn from_number(number: i128) -> Result<Self, String> {
        T::from_number(number).map(|value| Self(Some(value)))
    }
}

/// A size for a reader, as in "64 KiB".
#[must_use]
pub fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes)
        .display()
        .iec()
        .to_string()
        .replace(".0 ", " ")
}

/// A span of time for a reader, as in "1m 30s".
#[must_use]
pub fn duration(span: Duration) -> String {
    humantime::format_duration(span).to_string()
}

/// A value for a reader, or "off" where there is none.
pub fn or_off<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "off".to_owned(), text)
}

/// A switch for a reader, as "on" or "off".
#[must_use]
pub fn on_off(on: bool) -> String {
    if on { "on" } else { "off" }.to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct File<T> {
        key: T,
    }

    fn read<T: for<'de> Deserialize<'de>>(value: &str) -> Result<T, String> {
        toml::from_str::<File<T>>(&format!("key = {value}"))
            .map(|file| file.key)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn spans() {
        for (text, span) in [
            ("\"90s\"", Duration::from_secs(90)),
            ("\"5min\"", Duration::from_secs(300)),
            ("\"5.5s\"", Duration::from_millis(5500)),
            ("\"1h 30min\"", Duration::from_secs(5400)),
            ("\"0s\"", Duration::ZERO),
            ("\"1month\"", Duration::from_secs(2_630_016)),
            ("\"100years\"", LONGEST),
        ] {
            assert_eq!(read::<Span>(text).unwrap().0, span, "{text}");
        }
        for text in [
            "90",
            "\"90\"",
            "\"-1s\"",
            "\"\"",
            "\"101years\"",
            "\"100years 1ns\"",
            "\"0\"",
            "\"00\"",
            "\"1M\"",
            "\"1h 5M\"",
            "\"99999999999999999999s\"",
            "\"off\"",
            "\"1s\\u0000\"",
            "true",
            "[]",
        ] {
            let error = read::<Span>(text).unwrap_err();
            assert!(error.contains("expected a span of time"), "{text}: {error}");
            assert!(error.contains("line 1"), "{text}: {error}");
        }
    }

    #[test]
    fn sizes() {
        for (text, size) in [
            ("\"64KiB\"", 65536),
            ("65536", 65536),
            ("\"1MB\"", 1_000_000),
            ("0", 0),
            ("\"1.5KiB\"", 1536),
            ("\"7\"", 7),
            ("9223372036854775807", i64::MAX as u64),
        ] {
            assert_eq!(read::<Size>(text).unwrap().0, size, "{text}");
        }
        for text in [
            "\"64 elephants\"",
            "-1",
            "\"\"",
            "1.5",
            "\"99999999999GiB\"",
            "\"-5B\"",
            "\"NaN\"",
            "\"inf\"",
            "\"1e400KiB\"",
            "true",
        ] {
            assert!(read::<Size>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn counts_seconds_and_words() {
        assert_eq!(read::<Count<1, 127>>("5").unwrap().0, 5);
        assert!(
            read::<Count<1, 127>>("128")
                .unwrap_err()
                .contains("from 1 to 127")
        );
        assert!(read::<Count<1, 127>>("0").is_err());
        assert!(read::<Seconds<32767>>("\"32768s\"").is_err());
        assert!(read::<Seconds<32767>>("\"1500ms\"").is_err());
        let error = read::<OrAuto<Count<1, 64>>>("'many'").unwrap_err();
        assert!(
            error.contains("expected a whole number from 1 to 64"),
            "{error}"
        );
        assert_eq!(read::<OrOff<Span>>("\"off\"").unwrap(), OrOff(None));
        assert!(
            read::<OrOff<Span>>("\"0s\"")
                .unwrap_err()
                .contains("\"off\"")
        );
        assert!(read::<OrOff<Size>>("0").is_err());
        assert_eq!(read::<OrAuto<Size>>("\"auto\"").unwrap(), OrAuto(None));
        assert_eq!(read::<OrAuto<Size>>("7").unwrap(), OrAuto(Some(Size(7))));
    }
}
