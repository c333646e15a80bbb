//! Packets for tests, field by field, and the answer that a refusal must be.
//!
//! A library that shares nothing with the programs writes the headers and computes the checksums:
//! what a program sends is compared with it byte by byte. Nothing here knows rules or hooks.
#![allow(clippy::expect_used, reason = "a packet that cannot be written fails its test")]

use std::{
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, SingleVlanHeader,
    TcpHeader, VlanId,
};

/// Bytes of an Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub const IPV6: usize = 40;
/// Bytes of a TCP header without options.
pub const TCP: usize = 20;

/// What Linux puts into a SYN: MSS, SACK permitted, timestamps, window scale.
const LINUX_OPTIONS: [u8; 20] =
    [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0, 1, 3, 3, 7];

/// TCP's flags, by their bit.
pub mod flag {
    /// Ends the sender's side.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Ends a connection at once.
    pub const RST: u8 = 0x04;
    /// Deliver now.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// ECN: congestion was seen.
    pub const ECE: u8 = 0x40;
    /// ECN: the window was reduced.
    pub const CWR: u8 = 0x80;
}

/// An extension header of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Options for every hop, of 8 × (this + 1) bytes.
    HopByHop(u8),
    /// Routing, type 4 with no segment left, of 8 × (this + 1) bytes.
    Routing(u8),
    /// Options for the destination, of 8 × (this + 1) bytes.
    Destination(u8),
    /// An authentication header of 4 × (this + 2) bytes.
    Authentication(u8),
    /// A fragment header; what it says follows from [`Packet::cut`].
    Fragment,
}

impl Extension {
    const fn number(self) -> u8 {
        match self {
            Self::HopByHop(_) => 0,
            Self::Routing(_) => 43,
            Self::Destination(_) => 60,
            Self::Authentication(_) => 51,
            Self::Fragment => 44,
        }
    }

    fn bytes(self, next: u8, id: u16, cut: Option<&Range<usize>>, whole: usize) -> Vec<u8> {
        match self {
            Self::HopByHop(length) | Self::Destination(length) => {
                let mut bytes = vec![next, length];
                // Options that a receiver skips: each fills what is left, up to its longest.
                let mut left = 8 * (usize::from(length) + 1) - 2;
                while left > 0 {
                    let option = left.min(257);
                    if option == 1 {
                        bytes.push(0); // Pad1
                    } else {
                        // Experimental (RFC 4727), "skip" in its upper bits.
                        bytes.extend([0x1e, (option - 2) as u8]);
                        bytes.resize(bytes.len() + option - 2, 0);
                    }
                    left -= option;
                }
                bytes
            }
            Self::Routing(length) => {
                let mut bytes = vec![next, length, 4, 0];
                bytes.resize(8 * (usize::from(length) + 1), 0);
                bytes
            }
            Self::Authentication(length) => {
                let mut bytes = vec![next, length];
                bytes.resize(4 * (usize::from(length) + 2), 0);
                bytes
            }
            Self::Fragment => {
                let (offset, more) = match cut {
                    Some(cut) => (cut.start as u16, u16::from(cut.end < whole)),
                    None => (0, 0),
                };
                let mut bytes = vec![next, 0];
                bytes.extend((offset | more).to_be_bytes());
                bytes.extend(u32::from(id).to_be_bytes());
                bytes
            }
        }
    }
}

/// A TCP segment in IP in Ethernet, or without Ethernet.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Destination and source of the Ethernet header; `None` for a device without one.
    pub macs: Option<[[u8; 6]; 2]>,
    /// Tags: TPID and VLAN.
    pub tags: Vec<(u16, u16)>,
    /// Sender.
    pub source: IpAddr,
    /// Receiver; of the same family.
    pub destination: IpAddr,
    /// What tells the fragments of one packet from those of another.
    pub id: u16,
    /// Time to live, or hop limit.
    pub lifetime: u8,
    /// Options of IPv4, a multiple of 4 bytes.
    pub ip_options: Vec<u8>,
    /// Extension headers of IPv6.
    pub extensions: Vec<Extension>,
    /// The part of the fragmentable bytes that this packet carries (multiples of 8, but for the
    /// last): TCP, and in IPv6 the extension headers after the fragment header.
    pub cut: Option<Range<usize>>,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
    /// Flags of [`flag`].
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// TCP's options, a multiple of 4 bytes.
    pub tcp_options: Vec<u8>,
    /// TCP's payload.
    pub payload: Vec<u8>,
}

impl Packet {
    /// A SYN as Linux sends it. Sender and receiver are of one family.
    pub fn syn(source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Self {
        Self {
            macs: Some([[0x02, 0, 0, 0, 0, 0xbb], [0x02, 0, 0, 0, 0, 0xaa]]),
            tags: Vec::new(),
            source: source.into(),
            destination: destination.into(),
            id: 0x1001,
            lifetime: 57,
            ip_options: Vec::new(),
            extensions: Vec::new(),
            cut: None,
            source_port: 40_001,
            port: 8080,
            sequence: 0x89ab_cdef,
            acknowledgment: 0,
            flags: flag::SYN,
            window: 64_240,
            urgent: 0,
            tcp_options: LINUX_OPTIONS.to_vec(),
            payload: Vec::new(),
        }
    }

    /// The same with something changed.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The bytes of the packet.
    ///
    /// # Panics
    /// When the fields do not fit: families differ, lengths are not multiples of what they must be.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.link();
        let segment = self.segment();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.write_ipv4(&mut bytes, source, destination, &segment);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.write_ipv6(&mut bytes, source, destination, segment);
            }
            _ => panic!("{} and {} are of two families", self.source, self.destination),
        }
        bytes
    }

    /// Where the IP header starts.
    pub fn l3(&self) -> usize {
        self.macs.map_or(0, |_| ETHERNET) + 4 * self.tags.len()
    }

    /// Where the TCP header starts, in a packet that is not cut.
    pub fn l4(&self) -> usize {
        let chain: usize =
            self.extensions.iter().map(|extension| extension.bytes(0, 0, None, 0).len()).sum();
        self.l3() + if self.source.is_ipv4() { IPV4 + self.ip_options.len() } else { IPV6 + chain }
    }

    /// The RST that refuses this SYN, of the same length (RFC 9293 §3.10.7.1, for a connection
    /// that does not exist): sequence 0, all of the SYN acknowledged, nothing offered.
    pub fn refusal(&self) -> Self {
        let mut answer = self.clone();
        if let Some([destination, source]) = &mut answer.macs {
            mem::swap(destination, source);
        }
        mem::swap(&mut answer.source, &mut answer.destination);
        mem::swap(&mut answer.source_port, &mut answer.port);
        answer.lifetime = 64;
        answer.sequence = 0;
        answer.acknowledgment =
            self.sequence.wrapping_add(1).wrapping_add(self.payload.len() as u32);
        answer.flags = flag::RST | flag::ACK;
        answer.window = 0;
        answer.urgent = 0;
        answer.tcp_options.fill(1);
        answer
    }

    fn link(&self) -> Vec<u8> {
        let Some([destination, source]) = self.macs else { return Vec::new() };
        let network = if self.source.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        // Each header names the next.
        let mut kinds: Vec<EtherType> = self.tags.iter().map(|tag| EtherType(tag.0)).collect();
        kinds.push(network);
        let header = Ethernet2Header { source, destination, ether_type: kinds[0] };
        let mut bytes = header.to_bytes().to_vec();
        for (tag, next) in self.tags.iter().zip(&kinds[1..]) {
            let header = SingleVlanHeader {
                pcp: Default::default(),
                drop_eligible_indicator: false,
                vlan_id: VlanId::try_new(tag.1).expect("a VLAN has 12 bits"),
                ether_type: *next,
            };
            bytes.extend(header.to_bytes());
        }
        bytes
    }

    /// TCP header and payload.
    fn segment(&self) -> Vec<u8> {
        let has = |bit| self.flags & bit != 0;
        let mut header = TcpHeader::new(self.source_port, self.port, self.sequence, self.window);
        header.acknowledgment_number = self.acknowledgment;
        header.urgent_pointer = self.urgent;
        (header.fin, header.syn, header.rst) = (has(flag::FIN), has(flag::SYN), has(flag::RST));
        (header.psh, header.ack, header.urg) = (has(flag::PSH), has(flag::ACK), has(flag::URG));
        (header.ece, header.cwr) = (has(flag::ECE), has(flag::CWR));
        header.set_options_raw(&self.tcp_options).expect("at most 40 bytes of options");
        let checksum = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), &self.payload)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), &self.payload)
            }
            _ => panic!("{} and {} are of two families", self.source, self.destination),
        };
        header.checksum = checksum.expect("a payload of less than 64 KiB");
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(&self.payload);
        bytes
    }

    fn write_ipv4(
        &self,
        bytes: &mut Vec<u8>,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        segment: &[u8],
    ) {
        let cut = self.cut.clone().unwrap_or(0..segment.len());
        let body = &segment[cut.clone()];
        let mut header = Ipv4Header::new(
            body.len() as u16,
            self.lifetime,
            IpNumber::TCP,
            source.octets(),
            destination.octets(),
        )
        .expect("less than 64 KiB");
        header.identification = self.id;
        header.dont_fragment = self.cut.is_none();
        header.more_fragments = cut.end < segment.len();
        header.fragment_offset =
            IpFragOffset::try_new((cut.start / 8) as u16).expect("a fragment's offset");
        header.options = self.ip_options.as_slice().try_into().expect("options of 4 to 40 bytes");
        header.set_payload_len(body.len()).expect("less than 64 KiB");
        header.header_checksum = header.calc_header_checksum();
        bytes.extend(&header.to_bytes());
        bytes.extend(body);
    }

    fn write_ipv6(
        &self,
        bytes: &mut Vec<u8>,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        segment: Vec<u8>,
    ) {
        // From the end, because each header names the next and a fragment header cuts what follows.
        let (mut next, mut body) = (IpNumber::TCP.0, segment);
        for extension in self.extensions.iter().rev() {
            let cut = self.cut.as_ref();
            let mut chain = extension.bytes(next, self.id, cut, body.len());
            match (extension, cut) {
                (Extension::Fragment, Some(cut)) => chain.extend(&body[cut.clone()]),
                _ => chain.extend(&body),
            }
            (next, body) = (extension.number(), chain);
        }
        let header = Ipv6Header {
            payload_length: u16::try_from(body.len()).expect("less than 64 KiB"),
            next_header: IpNumber(next),
            hop_limit: self.lifetime,
            source: source.octets(),
            destination: destination.octets(),
            ..Ipv6Header::default()
        };
        bytes.extend(header.to_bytes());
        bytes.extend(body);
    }
}

/// Bytes with some of them replaced: what no library writes.
pub fn patched(mut bytes: Vec<u8>, at: usize, with: &[u8]) -> Vec<u8> {
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

#[cfg(test)]
mod tests {
    use etherparse::SlicedPacket;

    use super::*;

    #[test]
    fn a_strict_parser_reads_what_was_written() {
        for (source, destination) in [("10.1.2.3", "10.9.8.7"), ("2001:db8::1", "2001:db8::2")] {
            let source: IpAddr = source.parse().unwrap();
            let destination: IpAddr = destination.parse().unwrap();
            let packet = Packet::syn(source, destination).with(|packet| {
                packet.payload = b"hello".to_vec();
                packet.tags = vec![(0x88a8, 5), (0x8100, 7)];
                if source.is_ipv6() {
                    packet.extensions = vec![Extension::HopByHop(0), Extension::Destination(2)];
                }
            });
            let bytes = packet.bytes();
            let parsed = SlicedPacket::from_ethernet(&bytes).unwrap();
            let etherparse::TransportSlice::Tcp(tcp) = parsed.transport.unwrap() else {
                panic!("not TCP");
            };
            assert_eq!(tcp.payload(), b"hello");
            assert_eq!(bytes.len() - tcp.slice().len(), packet.l4());
            assert_eq!((tcp.syn(), tcp.ack(), tcp.destination_port()), (true, false, 8080));
        }
    }

    #[test]
    fn fragments_carry_together_what_the_whole_carries() {
        let whole = Packet::syn(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let first = whole.clone().with(|packet| packet.cut = Some(0..24)).bytes();
        let last = whole.clone().with(|packet| packet.cut = Some(24..40)).bytes();
        let body = [&first[34..], &last[34..]].concat();
        assert_eq!(body, whole.bytes()[34..]);
        assert_eq!((first[20], first[21], last[20], last[21]), (0x20, 0, 0, 3));
    }
}
