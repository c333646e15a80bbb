//! IPv4 with options and fragments (RFC 791 §3.1).

use weir_common::addr::Addr;

use super::{Ip, Parsed, Segment, tcp::TCP, total};
use crate::hook::{Packet, Plain};

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Header {
    version_ihl: u8,
    tos: u8,
    length: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}
const _: () = assert!(size_of::<Header>() == 20);
// SAFETY: integers.
unsafe impl Plain for Header {}

const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

#[inline(always)]
pub fn parse<P: Packet>(packet: &P, l3: usize, segment: &mut Segment, ip: &mut Ip) -> Parsed {
    let Some(header) = packet.header::<Header>(l3) else { return Parsed::Short };
    if header.protocol != TCP {
        return Parsed::Other;
    }
    let length = usize::from(header.version_ihl & 0xf) * 4;
    if header.version_ihl >> 4 != 4 || length < size_of::<Header>() {
        return Parsed::Malformed;
    }
    let Some(total) = total(packet, l3, usize::from(u16::from_be(header.length))) else {
        return Parsed::Malformed;
    };
    let fragment = u16::from_be(header.fragment);
    ip.l4 = l3 + length;
    ip.length = total.saturating_sub(length) as u32;
    ip.fragment_offset = fragment & OFFSET;
    ip.more_fragments = fragment & MORE_FRAGMENTS != 0;
    segment.source = Addr::v4(u32::from_be(header.source));
    segment.destination = Addr::v4(u32::from_be(header.destination));
    segment.l3 = l3 as u32;
    // An answer must not carry a source route or a recorded one.
    segment.answerable = u32::from(length == size_of::<Header>() && header.length != 0);
    Parsed::Syn
}
