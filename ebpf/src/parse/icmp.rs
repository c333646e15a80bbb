//! ICMP's "destination unreachable" (RFC 792, RFC 4443 §3.1) about a TCP segment, which it quotes: the
//! IP header and at least eight bytes of TCP, ports and sequence number.
//!
//! Only bare headers are read, outside and inside: it is a hint, and what has options is none.

use weir_common::addr::Addr;

use super::{ETHERNET, Parsed, Segment, tcp::TCP};
use crate::hook::{Packet, Plain};

/// Protocol number of ICMP.
pub const V4: u8 = 1;
/// Next header of ICMPv6.
pub const V6: u8 = 58;

const UNREACHABLE_V4: u8 = 3;
/// Says that the packet was too big, not that nobody is there.
const FRAGMENTATION_NEEDED: u8 = 4;
const UNREACHABLE_V6: u8 = 1;

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Message {
    kind: u8,
    code: u8,
    _checksum: u16,
    _unused: u32,
}
// SAFETY: integers.
unsafe impl Plain for Message {}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct QuotedV4 {
    version_ihl: u8,
    _until_protocol: [u8; 8],
    protocol: u8,
    _checksum: u16,
    source: u32,
    destination: u32,
    ports: u32,
    sequence: u32,
}
const _: () = assert!(size_of::<QuotedV4>() == 28);
// SAFETY: integers.
unsafe impl Plain for QuotedV4 {}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct QuotedV6 {
    _until_next: [u8; 6],
    next: u8,
    _hops: u8,
    source: [u64; 2],
    destination: [u64; 2],
    ports: u32,
    sequence: u32,
}
const _: () = assert!(size_of::<QuotedV6>() == 48);
// SAFETY: integers.
unsafe impl Plain for QuotedV6 {}

/// Reads what could not be delivered.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, is_v4: bool, segment: &mut Segment) -> Parsed {
    let at = ETHERNET + if is_v4 { 20 } else { 40 };
    let Some(message) = packet.header::<Message>(at) else { return Parsed::Other };
    let quoted = at + size_of::<Message>();
    if is_v4 {
        if message.kind != UNREACHABLE_V4 || message.code == FRAGMENTATION_NEEDED {
            return Parsed::Other;
        }
        let Some(inner) = packet.header::<QuotedV4>(quoted) else { return Parsed::Other };
        if inner.version_ihl != 0x45 || inner.protocol != TCP {
            return Parsed::Other;
        }
        segment.source = Addr::v4(u32::from_be(inner.source));
        segment.destination = Addr::v4(u32::from_be(inner.destination));
        segment.ports = u32::from_be(inner.ports);
        segment.sequence = u32::from_be(inner.sequence);
    } else {
        if message.kind != UNREACHABLE_V6 {
            return Parsed::Other;
        }
        let Some(inner) = packet.header::<QuotedV6>(quoted) else { return Parsed::Other };
        if inner.next != TCP {
            return Parsed::Other;
        }
        let (source, destination) = (inner.source, inner.destination);
        segment.source = Addr { high: u64::from_be(source[0]), low: u64::from_be(source[1]) };
        segment.destination =
            Addr { high: u64::from_be(destination[0]), low: u64::from_be(destination[1]) };
        segment.ports = u32::from_be(inner.ports);
        segment.sequence = u32::from_be(inner.sequence);
    }
    Parsed::Unreachable
}
