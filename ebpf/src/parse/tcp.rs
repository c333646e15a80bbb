//! The TCP header (RFC 9293 §3.1), and fragments of it.
//!
//! A fragment that splits the header, or that starts 8 bytes into it and could overwrite the flags
//! of the first, has no honest use (RFC 1858 §3, RFC 3128): refused where a workload has rules.

use super::{Ip, Parsed, Segment};
use crate::hook::{Packet, Plain};

/// Protocol number.
pub const TCP: u8 = 6;

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Header {
    /// Source and destination port.
    ports: u32,
    sequence: u32,
    acknowledgment: u32,
    /// Header length in words, in the upper half.
    offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}
const _: () = assert!(size_of::<Header>() == 20);
// SAFETY: integers.
unsafe impl Plain for Header {}

/// The flag that starts a connection.
pub const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

#[inline(always)]
pub fn parse<P: Packet>(packet: &P, ip: &Ip, segment: &mut Segment) -> Parsed {
    match ip.fragment_offset {
        0 if ip.more_fragments && ip.length < size_of::<Header>() as u32 => {
            return Parsed::TinyFragment;
        }
        0 => {}
        1 => return Parsed::TinyFragment,
        _ => return Parsed::Fragment,
    }
    let Some(header) = packet.header::<Header>(ip.l4) else { return Parsed::Short };
    // SYN alone, or with ECN's ECE and CWR, or with data (TFO). A SYN with RST opens nothing.
    let is_syn = header.flags & (SYN | ACK | RST) == SYN;
    let length = u32::from(header.offset >> 4) * 4;
    if length > ip.length && ip.more_fragments && is_syn {
        return Parsed::TinyFragment;
    }
    if length < size_of::<Header>() as u32 || length > ip.length {
        return if is_syn { Parsed::Malformed } else { Parsed::Other };
    }
    segment.ports = u32::from_be(header.ports);
    segment.sequence = u32::from_be(header.sequence);
    segment.acknowledgment = u32::from_be(header.acknowledgment);
    segment.flags = u32::from(header.flags);
    segment.l4 = ip.l4 as u32;
    segment.l4_length = length;
    segment.payload = ip.length - length;
    segment.answerable &= u32::from(!ip.more_fragments);
    if is_syn { Parsed::Syn } else { Parsed::Later }
}
