//! Addresses as two big-endian words, IPv4 mapped into IPv6 (RFC 4291 §2.5.5.2).
//!
//! One shape for both families: a prefix test is two XORs and two ANDs, with no branch.

/// The upper word of the IPv4-mapped prefix's lower half: `0000:ffff`.
const MAPPED: u64 = 0xffff << 32;

/// An IPv6 address, or an IPv4 one mapped into it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Addr {
    /// Bits 127 to 64.
    pub high: u64,
    /// Bits 63 to 0.
    pub low: u64,
}

impl Addr {
    /// An IPv4 address in host byte order.
    #[inline(always)]
    pub const fn v4(address: u32) -> Self {
        Self { high: 0, low: MAPPED | address as u64 }
    }

    /// Whether this is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.high == 0 && self.low >> 32 == 0xffff
    }

    /// Whether a connection to it stays within the namespace that it begins in: `127.0.0.0/8`, `::1`,
    /// and the unspecified addresses, which `connect(2)` takes for these.
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        if self.is_v4() {
            self.low as u32 >> 24 == 127 || self.low as u32 == 0
        } else {
            self.high == 0 && self.low <= 1
        }
    }

    /// Both words masked.
    #[inline(always)]
    pub const fn masked(self, mask: Self) -> Self {
        Self { high: self.high & mask.high, low: self.low & mask.low }
    }

    /// The mask of the first `bits` bits (128 at most).
    #[inline(always)]
    pub const fn mask(bits: u32) -> Self {
        Self {
            high: leading(if bits > 64 { 64 } else { bits }),
            low: leading(bits.saturating_sub(64)),
        }
    }
}

#[inline(always)]
const fn leading(bits: u32) -> u64 {
    match bits {
        0 => 0,
        64.. => u64::MAX,
        bits => !(u64::MAX >> bits),
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(v4) => Self::v4(v4.to_bits()),
            core::net::IpAddr::V6(v6) => {
                Self { high: (v6.to_bits() >> 64) as u64, low: v6.to_bits() as u64 }
            }
        }
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(address: Addr) -> Self {
        if address.is_v4() {
            core::net::Ipv4Addr::from_bits(address.low as u32).into()
        } else {
            core::net::Ipv6Addr::from_bits(u128::from(address.high) << 64 | u128::from(address.low))
                .into()
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["0.0.0.0", "10.1.2.3", "255.255.255.255", "::", "::1", "2001:db8::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(address)), address);
        }
    }

    #[test]
    fn the_unspecified_address_is_taken_for_loopback() {
        let is_loopback = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap()).is_loopback();
        for own in ["127.0.0.1", "127.255.0.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"] {
            assert!(is_loopback(own), "{own}");
        }
        for other in ["126.0.0.1", "128.0.0.1", "0.0.0.1", "::2", "1::1", "::ffff:10.0.0.1"] {
            assert!(!is_loopback(other), "{other}");
        }
    }

    #[test]
    fn masks_have_as_many_ones_as_asked() {
        for bits in 0..=128 {
            let mask = Addr::mask(bits);
            assert_eq!(mask.high.leading_ones() + mask.low.leading_ones(), bits);
            assert_eq!(mask.high.count_ones() + mask.low.count_ones(), bits);
        }
    }
}
