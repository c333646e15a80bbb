//! Peers: CIDRs, and the prefixes by which sources are grouped.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Serialize, Serializer};

use super::fault::Fault;

/// A network, or with a full prefix one address. No bits are set behind the prefix, and an IPv6
/// network never contains the mapped IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The network of one address. IPv4 addresses mapped into IPv6 become IPv4.
    pub fn host(address: IpAddr) -> Self {
        let network = address.to_canonical();
        Self { network, prefix: bits(network) }
    }

    /// Reads `10.0.0.0/8`, `2001:db8::/32` or a lone address.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| Fault::NotAnAddress)?;
        if let IpAddr::V6(v6) = address
            && let Some(v4) = v6.to_ipv4_mapped()
        {
            return Err(Fault::Mapped(v4));
        }
        let max = bits(address);
        let prefix = match prefix {
            None => max,
            // `parse` alone would take "+8".
            Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().ok().filter(|bits| *bits <= max).ok_or(Fault::PrefixLength { max })?
            }
            Some(_) => return Err(Fault::PrefixLength { max }),
        };
        let network = Self { network: masked(address, prefix), prefix };
        if network.network != address {
            return Err(Fault::HostBits { network });
        }
        if address.is_ipv6() && network.contains_mapped() {
            return Err(Fault::CoversIpv4);
        }
        Ok(network)
    }

    /// First address of the network.
    pub const fn network(self) -> IpAddr {
        self.network
    }

    /// Length of the prefix, of 32 or 128 bits.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether the address lies in the network.
    pub fn contains(self, address: IpAddr) -> bool {
        masked(address.to_canonical(), self.prefix.min(bits(address.to_canonical())))
            == self.network
            && address.to_canonical().is_ipv4() == self.network.is_ipv4()
    }

    /// Whether all of another network lies in this one.
    pub fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.network)
    }

    fn contains_mapped(self) -> bool {
        masked(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into(), self.prefix) == self.network
    }
}

/// Where connections go that a limit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum To {
    /// To an address or a network.
    Cidr(Cidr),
    /// To the endpoints of a service.
    Service(ServiceName),
}

impl To {
    /// What a service's name stands behind.
    const SERVICE: &str = "service/";

    /// Reads a CIDR, an address or `service/NAME`.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        match text.strip_prefix(Self::SERVICE) {
            Some(name) => ServiceName::parse(name).map(Self::Service).ok_or(Fault::NotAService),
            None => Cidr::parse(text).map(Self::Cidr),
        }
    }

    /// The service, if it is one.
    pub const fn service(self) -> Option<ServiceName> {
        match self {
            Self::Service(name) => Some(name),
            Self::Cidr(_) => None,
        }
    }

    /// The network, if it is one.
    pub const fn cidr(self) -> Option<Cidr> {
        match self {
            Self::Cidr(cidr) => Some(cidr),
            Self::Service(_) => None,
        }
    }
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cidr(cidr) => cidr.fmt(f),
            Self::Service(name) => write!(f, "{}{name}", Self::SERVICE),
        }
    }
}

impl Serialize for To {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The longest name of a service.
const LONGEST_SERVICE: usize = 31;

/// The name of a service: up to 31 of `a-z`, `0-9` and `-`, with a letter or digit at both ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Filled up with zeros, which no name contains.
    bytes: [u8; LONGEST_SERVICE],
}

impl ServiceName {
    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let valid = (1..=LONGEST_SERVICE).contains(&text.len())
            && text.bytes().all(allowed)
            && !text.starts_with('-')
            && !text.ends_with('-');
        let mut bytes = [0; LONGEST_SERVICE];
        bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        valid.then_some(Self { bytes })
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        let length = self.bytes.iter().take_while(|byte| **byte != 0).count();
        // ASCII, as it was parsed.
        str::from_utf8(self.bytes.get(..length).unwrap_or_default()).unwrap_or_default()
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ServiceName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Services and their endpoints, of which none lies in another.
pub type Services = std::collections::BTreeMap<ServiceName, Vec<Cidr>>;

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    // A shift by the full width is no shift at all in hardware, so a prefix of 0 has its own case.
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == bits(self.network) {
            write!(f, "{}", self.network)
        } else {
            write!(f, "{}/{}", self.network, self.prefix)
        }
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The prefixes by which sources are told apart: all addresses of one prefix share a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    v4: u8,
    v6: u8,
}

impl Group {
    /// Groups by so many bits, unless they are none or more than an address has.
    pub const fn new(v4: u8, v6: u8) -> Option<Self> {
        if v4 == 0 || v4 > 32 || v6 == 0 || v6 > 128 { None } else { Some(Self { v4, v6 }) }
    }

    /// Reads `/24,/56`.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let bits = |text: &str| {
            let digits = text.strip_prefix('/')?;
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
        };
        let (v4, v6) = text.split_once(',').ok_or(Fault::NotAGroup)?;
        bits(v4).zip(bits(v6)).and_then(|(v4, v6)| Self::new(v4, v6)).ok_or(Fault::NotAGroup)
    }

    /// Prefix length for IPv4 sources.
    pub const fn v4(self) -> u8 {
        self.v4
    }

    /// Prefix length for IPv6 sources.
    pub const fn v6(self) -> u8 {
        self.v6
    }

    /// The network by which an address is counted. IPv4 addresses mapped into IPv6 are IPv4.
    pub fn of(self, address: IpAddr) -> Cidr {
        let address = address.to_canonical();
        let prefix = if address.is_ipv4() { self.v4 } else { self.v6 };
        Cidr { network: masked(address, prefix), prefix }
    }

    /// The wider of two: more sources share a bucket, so fewer connections come through.
    pub fn stricter(self, other: Self) -> Self {
        Self { v4: self.v4.min(other.v4), v6: self.v6.min(other.v6) }
    }
}

impl Default for Group {
    /// Each IPv4 address; each IPv6 /64, because a single host commonly has a whole one.
    fn default() -> Self {
        Self { v4: 32, v6: 64 }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{},/{}", self.v4, self.v6)
    }
}

impl Serialize for Group {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_and_addresses_are_read_and_printed() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "10.1.2.3", "2001:db8::/32", "::1", "2000::/3"] {
            assert_eq!(Cidr::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Cidr::parse("10.1.2.3/32").unwrap().to_string(), "10.1.2.3");
    }

    #[test]
    fn what_is_not_a_network_is_refused_for_its_reason() {
        for text in ["", "/", "10.0.0/8", "10.0.0.0 /8", "db.example", "1.2.3.4:80", "010.0.0.1"] {
            assert_eq!(Cidr::parse(text), Err(Fault::NotAnAddress), "{text}");
        }
        for text in ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/-1", "10.0.0.0/999999"] {
            assert_eq!(Cidr::parse(text), Err(Fault::PrefixLength { max: 32 }), "{text}");
        }
        assert_eq!(Cidr::parse("2001:db8::/129"), Err(Fault::PrefixLength { max: 128 }));
        assert_eq!(Cidr::parse("::ffff:10.0.0.1"), Err(Fault::Mapped(Ipv4Addr::new(10, 0, 0, 1))));
        for text in ["::/0", "::/8", "::/80"] {
            assert_eq!(Cidr::parse(text), Err(Fault::CoversIpv4), "{text}");
        }
        let network = Cidr::parse("10.0.0.0/8").unwrap();
        assert_eq!(Cidr::parse("10.0.0.1/8"), Err(Fault::HostBits { network }));
    }

    #[test]
    fn a_network_contains_its_own_family_only() {
        let any_v4 = Cidr::parse("0.0.0.0/0").unwrap();
        assert!(any_v4.contains("192.0.2.1".parse().unwrap()));
        assert!(any_v4.contains("::ffff:192.0.2.1".parse().unwrap()));
        assert!(!any_v4.contains("::".parse().unwrap()));
        let ten = Cidr::parse("10.0.0.0/8").unwrap();
        assert!(ten.contains("10.255.0.1".parse().unwrap()));
        assert!(!ten.contains("11.0.0.0".parse().unwrap()));
    }

    #[test]
    fn groups_are_two_prefixes() {
        assert_eq!(Group::parse("/24,/56").unwrap().to_string(), "/24,/56");
        assert_eq!(Group::default().to_string(), "/32,/64");
        for text in ["", "/24", "24,56", "/0,/64", "/33,/64", "/32,/129", "/24,/56,", "/24, /56"] {
            assert_eq!(Group::parse(text), Err(Fault::NotAGroup), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_network_survives_the_round_trip(address: Ipv4Addr, prefix in 0..=32_u8) {
            let network = Cidr { network: masked(address.into(), prefix), prefix };
            prop_assert_eq!(Cidr::parse(&network.to_string()), Ok(network));
            prop_assert!(network.contains(address.into()));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = Cidr::parse(&text);
            let _ = Group::parse(&text);
        }
    }
}
