//! Keys: which names exist, which take a port, and what a port is.

use std::{borrow::Borrow, collections::BTreeMap, fmt, num::NonZeroU16};

use serde::{Serialize, Serializer};

use super::{
    fault::{KeyError, ValueError},
    suggest::nearest,
};

/// What annotations put before a key.
pub const ANNOTATION_PREFIX: &str = "weir.dev/";

/// A TCP port: 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(NonZeroU16);

impl Port {
    /// The port with this number, unless it is 0.
    pub fn new(port: u16) -> Option<Self> {
        NonZeroU16::new(port).map(Self)
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0.get()
    }

    /// Reads a port written in digits. `+80` and an empty text are none.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok().and_then(Self::new))?
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Port {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.number())
    }
}

/// The name of a port, as Kubernetes spells them (RFC 6335 §5.1): up to 15 of `a-z`, `0-9` and
/// `-`, at least one letter, no `-` at an end or beside another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct PortName(String);

impl PortName {
    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let valid = (1..=15).contains(&text.len())
            && text.bytes().all(allowed)
            && text.bytes().any(|byte| byte.is_ascii_lowercase())
            && !text.starts_with('-')
            && !text.ends_with('-')
            && !text.contains("--");
        valid.then(|| Self(text.to_owned()))
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for PortName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The ports that a workload declares.
pub type Ports = BTreeMap<PortName, Port>;

/// A port in a key: a number, or the name of a port that the workload declares.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortRef {
    /// By number.
    Number(Port),
    /// By name.
    Name(PortName),
}

impl PortRef {
    /// The number, with the workload's names at hand.
    pub fn resolve(&self, ports: &Ports) -> Option<Port> {
        match self {
            Self::Number(port) => Some(*port),
            Self::Name(name) => ports.get(name).copied(),
        }
    }
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(port) => port.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// What can be limited: how fast connections begin, how many there are at once, and what happens
/// when they fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitKind {
    /// `connections`: to the workload, from all clients together.
    Connections,
    /// `connections-per-source`: to the workload, from each client.
    ConnectionsPerSource,
    /// `outbound-connections`: from the workload.
    OutboundConnections,
    /// `max-connections`: open to the workload at once.
    MaxConnections,
    /// `max-connections-per-source`: open to the workload at once, from each client.
    MaxConnectionsPerSource,
    /// `max-handshakes`: not complete at once, to the workload.
    MaxHandshakes,
    /// `breaker`: refuses connections to the workload for a while after they failed.
    Breaker,
    /// `outbound-breaker`: the same from the workload.
    OutboundBreaker,
    /// `connection-bandwidth`: bytes of each TCP connection, each direction for itself.
    ConnectionBandwidth,
    /// `ingress-bandwidth`: bytes towards the workload.
    IngressBandwidth,
    /// `egress-bandwidth`: bytes from the workload.
    EgressBandwidth,
    /// `packets`: packets towards the workload, and as many from it.
    Packets,
    /// `quota`: connections to the workload are hits on a descriptor.
    Quota,
}

impl LimitKind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Connections,
        Self::ConnectionsPerSource,
        Self::OutboundConnections,
        Self::MaxConnections,
        Self::MaxConnectionsPerSource,
        Self::MaxHandshakes,
        Self::Breaker,
        Self::OutboundBreaker,
        Self::ConnectionBandwidth,
        Self::IngressBandwidth,
        Self::EgressBandwidth,
        Self::Packets,
        Self::Quota,
    ];

    /// The key's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ConnectionsPerSource => "connections-per-source",
            Self::OutboundConnections => "outbound-connections",
            Self::MaxConnections => "max-connections",
            Self::MaxConnectionsPerSource => "max-connections-per-source",
            Self::MaxHandshakes => "max-handshakes",
            Self::Breaker => "breaker",
            Self::OutboundBreaker => "outbound-breaker",
            Self::ConnectionBandwidth => "connection-bandwidth",
            Self::IngressBandwidth => "ingress-bandwidth",
            Self::EgressBandwidth => "egress-bandwidth",
            Self::Packets => "packets",
            Self::Quota => "quota",
        }
    }

    /// Whether it limits connections towards the workload.
    pub const fn is_inbound(self) -> bool {
        !self.is_outbound() && !self.is_volume()
    }

    /// Whether it limits connections from the workload, for all destinations or some.
    pub const fn is_outbound(self) -> bool {
        matches!(self, Self::OutboundConnections | Self::OutboundBreaker)
    }

    /// Whether it limits bytes or packets, and not connections.
    pub const fn is_volume(self) -> bool {
        self.is_bandwidth() || matches!(self, Self::Packets)
    }

    /// Whether it limits bytes.
    pub const fn is_bandwidth(self) -> bool {
        matches!(self, Self::ConnectionBandwidth | Self::IngressBandwidth | Self::EgressBandwidth)
    }

    /// Whether it can hold for one port.
    pub const fn takes_port(self) -> bool {
        !self.is_volume() || matches!(self, Self::ConnectionBandwidth)
    }

    /// Whether it limits how fast connections begin.
    pub const fn is_rate(self) -> bool {
        matches!(self, Self::Connections | Self::ConnectionsPerSource | Self::OutboundConnections)
    }

    /// Whether it tells sources apart.
    pub const fn is_per_source(self) -> bool {
        matches!(self, Self::ConnectionsPerSource | Self::MaxConnectionsPerSource)
    }

    /// Whether of two values one can be the stricter.
    pub const fn has_order(self) -> bool {
        !self.is_breaker() && !matches!(self, Self::Quota)
    }

    /// Whether it is a breaker.
    pub const fn is_breaker(self) -> bool {
        matches!(self, Self::Breaker | Self::OutboundBreaker)
    }
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a key is about, without its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyKind {
    /// A limit.
    Limit(LimitKind),
    /// `on-limit`: how a connection is refused.
    OnLimit,
    /// `mode`: whether limits are enforced.
    Mode,
    /// `exempt`: peers that no limit holds for.
    Exempt,
}

impl KeyKind {
    /// The key's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Limit(kind) => kind.name(),
            Self::OnLimit => "on-limit",
            Self::Mode => "mode",
            Self::Exempt => "exempt",
        }
    }

    pub(super) const fn takes_port(self) -> bool {
        match self {
            Self::Limit(kind) => kind.takes_port(),
            Self::OnLimit => true,
            Self::Mode | Self::Exempt => false,
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Limit(LimitKind::Connections),
        Self::Limit(LimitKind::ConnectionsPerSource),
        Self::Limit(LimitKind::OutboundConnections),
        Self::Limit(LimitKind::MaxConnections),
        Self::Limit(LimitKind::MaxConnectionsPerSource),
        Self::Limit(LimitKind::MaxHandshakes),
        Self::Limit(LimitKind::Breaker),
        Self::Limit(LimitKind::OutboundBreaker),
        Self::Limit(LimitKind::ConnectionBandwidth),
        Self::Limit(LimitKind::IngressBandwidth),
        Self::Limit(LimitKind::EgressBandwidth),
        Self::Limit(LimitKind::Packets),
        Self::Limit(LimitKind::Quota),
        Self::OnLimit,
        Self::Mode,
        Self::Exempt,
    ];
}

/// A key as written: what it is about, and for which port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What it is about.
    pub kind: KeyKind,
    /// For which port; `None` for all.
    pub port: Option<PortRef>,
}

impl Key {
    /// The names of all keys.
    pub const NAMES: &[&str] = &[
        "connections",
        "connections-per-source",
        "outbound-connections",
        "max-connections",
        "max-connections-per-source",
        "max-handshakes",
        "breaker",
        "outbound-breaker",
        "connection-bandwidth",
        "ingress-bandwidth",
        "egress-bandwidth",
        "packets",
        "quota",
        "on-limit",
        "mode",
        "exempt",
    ];

    /// Reads a key without its annotation prefix.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        // Files have the bare keys; whoever copies an annotation brings its prefix along.
        if let Some(bare) = text.strip_prefix(ANNOTATION_PREFIX) {
            let meant = Self::parse(bare).ok();
            return Err(KeyError::Unknown { key: text.to_owned(), meant });
        }
        let (name, port) = match text.split_once('.') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        };
        let key = || text.to_owned();
        let Some(kind) = KeyKind::parse(name) else {
            let meant = nearest(name, Self::NAMES.iter().copied()).and_then(KeyKind::parse);
            let port = port.and_then(parse_port);
            let meant = meant.map(|kind| Self { kind, port: port.filter(|_| kind.takes_port()) });
            return Err(KeyError::Unknown { key: key(), meant });
        };
        let port = match port {
            None => None,
            Some(_) if !kind.takes_port() => {
                return Err(KeyError::NoPort { key: key(), name: kind.name() });
            }
            Some(port) => Some(
                parse_port(port)
                    .ok_or_else(|| KeyError::NotAPort { key: key(), port: port.to_owned() })?,
            ),
        };
        Ok(Self { kind, port })
    }

    /// Reads the value that belongs to this key.
    pub fn parse_value(&self, text: &str) -> Result<super::value::Setting, ValueError> {
        super::value::parse(self.kind, text)
    }
}

fn parse_port(text: &str) -> Option<PortRef> {
    Port::parse(text).map(PortRef::Number).or_else(|| PortName::parse(text).map(PortRef::Name))
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        match &self.port {
            Some(port) => write!(f, ".{port}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_name_is_a_key_and_prints_as_itself() {
        assert_eq!(KeyKind::ALL.map(KeyKind::name), Key::NAMES);
        for name in Key::NAMES {
            assert_eq!(Key::parse(name).unwrap().to_string(), *name);
        }
        for text in
            ["connections.3306", "max-connections-per-source.http", "breaker.1", "on-limit.65535"]
        {
            assert_eq!(Key::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_slip_names_the_key_that_was_meant() {
        let Err(KeyError::Unknown { meant: Some(meant), .. }) = Key::parse("conections.mysql")
        else {
            panic!("a suggestion was expected");
        };
        assert_eq!(meant.to_string(), "connections.mysql");
        assert!(matches!(Key::parse("frobnicate"), Err(KeyError::Unknown { meant: None, .. })));
    }

    #[test]
    fn ports_are_numbers_in_range_or_declared_names() {
        for port in ["0", "65536", "99999999999", "", "-", "Http", "a-very-long-name", "1-", "80.1"]
        {
            let key = format!("connections.{port}");
            assert!(matches!(Key::parse(&key), Err(KeyError::NotAPort { .. })), "{key}");
        }
        for name in ["mode", "packets", "ingress-bandwidth", "egress-bandwidth"] {
            let key = format!("{name}.80");
            assert!(matches!(Key::parse(&key), Err(KeyError::NoPort { .. })), "{key}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_key_or_an_error_with_an_expectation(text in ".{0,60}") {
            if let Err(error) = Key::parse(&text) {
                prop_assert!(!error.to_string().is_empty());
                prop_assert!(!error.expected().is_empty());
            }
        }

        #[test]
        fn any_key_survives_the_round_trip(kind in 0..KeyKind::ALL.len(), port: Option<u16>) {
            let port = port.filter(|_| KeyKind::ALL[kind].takes_port());
            let port = port.and_then(Port::new).map(PortRef::Number);
            let key = Key { kind: KeyKind::ALL[kind], port };
            prop_assert_eq!(Key::parse(&key.to_string()), Ok(key));
        }
    }
}
