//! From bytes to a TCP segment: of whom, to whom, and does it start a connection?
//!
//! One protocol layer per file; no policy. What is no TCP leaves as early as it can be told, and so
//! does, where no connection is tracked, what is no SYN.

pub mod eth;
pub mod icmp;
mod ipv4;
pub mod ipv6;
mod tcp;

use weir_common::{addr::Addr, layout::Direction};

use crate::hook::{Packet, has_ethernet, opaque};

/// A TCP segment.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Segment {
    pub source: Addr,
    pub destination: Addr,
    /// Source port << 16 | destination port.
    pub ports: u32,
    /// Sequence number: of a SYN, the connection's first.
    pub sequence: u32,
    pub acknowledgment: u32,
    /// [`weir_common::track::flag`].
    pub flags: u32,
    /// Offset of the IP header.
    pub l3: u32,
    /// Offset of the TCP header.
    pub l4: u32,
    /// Bytes of the TCP header with its options, 20 to 60.
    pub l4_length: u32,
    /// Bytes of payload; of a SYN, TCP Fast Open's.
    pub payload: u32,
    /// 1 if a SYN can be turned into an answer in place: whole, without IP options or extension
    /// headers.
    pub answerable: u32,
    pub _reserved: u32,
}

impl Segment {
    /// Memory for one.
    #[inline(always)]
    pub fn empty() -> Self {
        // Of a zero that it knows the compiler makes a call of `memset`, which writes byte by byte.
        let zero = opaque(0) as u64;
        let (address, half) = (Addr { high: zero, low: zero }, zero as u32);
        Self {
            source: address,
            destination: address,
            ports: half,
            sequence: half,
            acknowledgment: half,
            flags: half,
            l3: half,
            l4: half,
            l4_length: half,
            payload: half,
            answerable: half,
            _reserved: half,
        }
    }

    /// The other end of a workload's packet that goes this way.
    #[inline(always)]
    pub fn peer(&self, direction: Direction) -> Addr {
        match direction {
            Direction::Ingress => self.source,
            Direction::Egress => self.destination,
        }
    }

    /// The workload's own port of a packet that goes this way.
    #[inline(always)]
    pub fn local_port(&self, direction: Direction) -> u16 {
        match direction {
            Direction::Ingress => self.ports as u16,
            Direction::Egress => (self.ports >> 16) as u16,
        }
    }

    /// The destination port.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        self.ports as u16
    }
}

/// What a packet is. A plain number: the verifier refuses what a half-filled variant would leave
/// in a register.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Parsed {
    /// Go on with the next layer; as a result: SYN without ACK, the start of a connection.
    Syn,
    /// Not TCP, or nothing that a receiver would look at.
    Other,
    /// Another TCP segment.
    Later,
    /// ICMP says that a segment could not be delivered: it is that segment's.
    Unreachable,
    /// A later fragment of TCP: without ports; its first fragment was judged.
    Fragment,
    /// Malformed: the stack will drop it.
    Malformed,
    /// A first fragment without a whole TCP header, or one that would overwrite it.
    TinyFragment,
    /// More or longer headers than are followed.
    HeaderChain,
    /// Its headers go beyond the readable bytes.
    Short,
}

impl Parsed {
    /// From the number that a parsing function returned.
    #[inline(always)]
    pub fn from_code(code: u64) -> Self {
        const ALL: [Parsed; 9] = [
            Parsed::Syn,
            Parsed::Other,
            Parsed::Later,
            Parsed::Unreachable,
            Parsed::Fragment,
            Parsed::Malformed,
            Parsed::TinyFragment,
            Parsed::HeaderChain,
            Parsed::Short,
        ];
        let mut parsed = Self::Other;
        for candidate in ALL {
            if code == candidate as u64 {
                parsed = candidate;
            }
        }
        parsed
    }
}

/// The IP layer, as the TCP layer needs it.
#[derive(Default)]
pub struct Ip {
    l4: usize,
    /// Bytes of the IP payload from `l4` on.
    length: u32,
    /// In units of 8 bytes.
    fragment_offset: u16,
    more_fragments: bool,
}

/// Bytes of an IP packet whose header says `stated`, or `None` when there are not as many.
///
/// Zero says nothing, and receivers take all there is: of IPv4 that was merged into more than
/// 64 KiB, and of IPv6 behind any hop-by-hop header (only a jumbogram should, RFC 2675).
#[inline(always)]
fn total<P: Packet>(packet: &P, l3: usize, stated: usize) -> Option<usize> {
    let room = packet.length().saturating_sub(l3);
    let total = if stated == 0 { room } else { stated };
    if total > room { None } else { Some(total) }
}

/// What can be told of a packet at a glance.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Glance {
    /// Plainly not TCP.
    Other,
    /// Plainly TCP without SYN, behind a bare IPv4 header.
    LaterV4,
    /// Plainly TCP without SYN, behind a bare IPv6 header.
    LaterV6,
    /// TCP with SYN, behind a bare IPv4 header.
    SynV4,
    /// ICMP, behind a bare IPv4 header.
    IcmpV4,
    /// ICMPv6, behind a bare IPv6 header.
    IcmpV6,
    /// [`parse`] knows.
    Unknown,
}

impl Glance {
    /// Whether this matters only to connections that are tracked.
    #[inline(always)]
    pub fn is_later(self) -> bool {
        matches!(self, Self::LaterV4 | Self::LaterV6) || self.is_icmp()
    }

    /// Whether this is ICMP.
    #[inline(always)]
    pub fn is_icmp(self) -> bool {
        matches!(self, Self::IcmpV4 | Self::IcmpV6)
    }

    /// Whether the TCP header follows a bare IPv4 header.
    #[inline(always)]
    pub fn is_plain_v4(self) -> bool {
        matches!(self, Self::LaterV4 | Self::SynV4)
    }
}

const ETHERNET: usize = 14;

/// A few loads at fixed offsets, because this is what every packet of every connection pays.
#[inline(always)]
pub fn glance<P: Packet>(packet: &P) -> Glance {
    if !has_ethernet() {
        return Glance::Unknown;
    }
    // Up to the protocol, and up to the flags behind a bare IPv4 and IPv6 header.
    let Some(head) = packet.header::<[u8; ETHERNET + 10]>(0) else { return Glance::Unknown };
    match (head[12], head[13]) {
        (0x08, 0x00) if head[14] == 0x45 => {
            let is_fragment = head[20] & 0x3f != 0 || head[21] != 0;
            if head[23] != tcp::TCP {
                return if head[23] == icmp::V4 { Glance::IcmpV4 } else { Glance::Other };
            }
            if is_fragment {
                return Glance::Unknown;
            }
            match packet.header::<[u8; ETHERNET + 34]>(0) {
                Some(head) if head[ETHERNET + 33] & tcp::SYN == 0 => Glance::LaterV4,
                Some(_) => Glance::SynV4,
                None => Glance::Unknown,
            }
        }
        (0x86, 0xdd) if head[20] == tcp::TCP => match packet.header::<[u8; ETHERNET + 54]>(0) {
            Some(head) if head[ETHERNET + 53] & tcp::SYN == 0 => Glance::LaterV6,
            _ => Glance::Unknown,
        },
        (0x86, 0xdd) if head[20] == icmp::V6 => Glance::IcmpV6,
        (0x86, 0xdd) if !ipv6::is_extension(head[20]) => Glance::Other,
        _ => Glance::Unknown,
    }
}

/// Parses a packet whose TCP header follows a bare IPv4 header.
#[inline(always)]
pub fn parse_plain<P: Packet>(packet: &P, segment: &mut Segment) -> Parsed {
    let mut ip = Ip::default();
    let parsed = ipv4::parse(packet, ETHERNET, segment, &mut ip);
    if parsed != Parsed::Syn {
        return parsed;
    }
    ip.l4 = ETHERNET + 20;
    tcp::parse(packet, &ip, segment)
}

/// Parses a packet; fills `segment` when it is one of TCP.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, segment: &mut Segment) -> Parsed {
    let mut l3 = 0;
    let mut ip = Ip::default();
    let parsed = match eth::parse(packet, &mut l3) {
        eth::Network::V4 => ipv4::parse(packet, l3, segment, &mut ip),
        eth::Network::V6 => ipv6::parse(packet, l3, segment, &mut ip),
        eth::Network::Other => return Parsed::Other,
        eth::Network::Short => return Parsed::Short,
    };
    if parsed != Parsed::Syn {
        return parsed;
    }
    tcp::parse(packet, &ip, segment)
}
