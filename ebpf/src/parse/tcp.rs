//! The TCP header (RFC 9293 §3.1), and fragments of it.
//!
//! A fragment that splits the header, or that starts 8 bytes into it and could overwrite the flags
//! of the first, has no honest use (RFC 1858 §3, RFC 3128): refused where a workload has rules.

use super::{Ip, Parsed, Syn};
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
pub fn parse<P: Packet>(packet: &P, ip: &Ip, syn: &mut Syn) -> Parsed {
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
    if header.flags & (SYN | ACK | RST) != SYN {
        return Parsed::Other;
    }
    let length = u32::from(header.offset >> 4) * 4;
    if length > ip.length && ip.more_fragments {
        return Parsed::TinyFragment;
    }
    if length < size_of::<Header>() as u32 || length > ip.length {
        return Parsed::Malformed;
    }
    syn.ports = u32::from_be(header.ports);
    syn.isn = u32::from_be(header.sequence);
    syn.l4 = ip.l4 as u32;
    syn.l4_length = length;
    syn.payload = ip.length - length;
    syn.answerable &= u32::from(!ip.more_fragments);
    Parsed::Syn
}
