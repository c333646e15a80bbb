//! IPv6 with extension headers (RFC 8200 §4).
//!
//! Six are followed. More than that is not traffic but an attempt to hide a SYN behind them, and
//! is refused where a workload has rules.

use weir_common::addr::Addr;

use super::{Ip, Parsed, Segment, tcp::TCP, total};
use crate::hook::{Packet, Plain};

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Header {
    version: u8,
    _class_and_flow: [u8; 3],
    length: u16,
    next: u8,
    hops: u8,
    source: [u64; 2],
    destination: [u64; 2],
}
const _: () = assert!(size_of::<Header>() == 40);
// SAFETY: integers.
unsafe impl Plain for Header {}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Extension {
    next: u8,
    length: u8,
    /// Of a fragment header: offset in units of 8 bytes, 2 bits, more.
    fragment: u16,
}
// SAFETY: integers.
unsafe impl Plain for Extension {}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

const MAX_HEADERS: u32 = 6;
/// Bytes of the shortest extension header.
const EXTENSION: usize = 8;

#[inline(always)]
pub fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}

/// Where a chain of extension headers ends, as the number that a BPF function returns.
///
/// Bits: 0–7 the next header, 8–21 bytes of the chain (six headers have 12 288 at most), 24–36 the
/// fragment's offset, 37 more fragments follow, 38 the next header lies beyond the readable bytes.
#[derive(Clone, Copy)]
pub struct Chain(pub u64);

const SHORT: u64 = 1 << 38;

impl Chain {
    #[inline(always)]
    fn next(self) -> u8 {
        self.0 as u8
    }

    #[inline(always)]
    fn length(self) -> usize {
        (self.0 >> 8 & 0x3fff) as usize
    }

    #[inline(always)]
    fn fragment_offset(self) -> u16 {
        (self.0 >> 24 & 0x1fff) as u16
    }

    #[inline(always)]
    fn more_fragments(self) -> bool {
        self.0 >> 37 & 1 != 0
    }

    #[inline(always)]
    fn is_short(self) -> bool {
        self.0 & SHORT != 0
    }
}

/// Follows a chain of extension headers that starts at `offset` with one of kind `next`.
#[inline(always)]
pub fn follow<P: Packet>(packet: &P, offset: usize, mut next: u8) -> Chain {
    let mut length = 0;
    let mut fragment = 0u16;
    let mut short = 0;
    for _ in 0..MAX_HEADERS {
        // After a later fragment's header comes payload, whatever it looks like.
        if !is_extension(next) || fragment >> 3 != 0 {
            break;
        }
        let Some(extension) = packet.header::<Extension>(offset + length) else {
            short = SHORT;
            break;
        };
        length += match next {
            FRAGMENT => {
                // Of a fragment in a fragment, the outer one may be cut although the inner is not.
                fragment |= u16::from_be(extension.fragment);
                8
            }
            AUTHENTICATION => (usize::from(extension.length) + 2) * 4,
            _ => (usize::from(extension.length) + 1) * 8,
        };
        next = extension.next;
    }
    Chain(
        u64::from(next)
            | (length as u64) << 8
            | u64::from(fragment >> 3) << 24
            | u64::from(fragment & 1) << 37
            | short,
    )
}

#[inline(always)]
pub fn parse<P: Packet>(packet: &P, l3: usize, segment: &mut Segment, ip: &mut Ip) -> Parsed {
    let Some(header) = packet.header::<Header>(l3) else { return Parsed::Short };
    if header.next != TCP && !is_extension(header.next) {
        return Parsed::Other;
    }
    if header.version >> 4 != 6 {
        return Parsed::Malformed;
    }
    let mut length = size_of::<Header>();
    let stated = match u16::from_be(header.length) {
        0 => 0,
        payload => length + usize::from(payload),
    };
    let Some(total) = total(packet, l3, stated) else { return Parsed::Malformed };
    if header.next != TCP {
        let chain = packet.follow_extensions(l3 + length, header.next);
        length += chain.length();
        // What follows in the frame is not the packet's: nothing may be concluded from it.
        let needs = if chain.is_short() { length + EXTENSION } else { length };
        if needs > total {
            let cut = chain.more_fragments() && chain.fragment_offset() == 0;
            return if cut { Parsed::TinyFragment } else { Parsed::Malformed };
        }
        if chain.is_short() {
            return Parsed::Short;
        }
        if chain.next() != TCP {
            let hidden = is_extension(chain.next()) && chain.fragment_offset() == 0;
            return if hidden { Parsed::HeaderChain } else { Parsed::Other };
        }
        ip.fragment_offset = chain.fragment_offset();
        ip.more_fragments = chain.more_fragments();
    }
    ip.l4 = l3 + length;
    ip.length = total.saturating_sub(length) as u32;
    segment.source = address(header.source);
    segment.destination = address(header.destination);
    segment.l3 = l3 as u32;
    // An answer to an address that stands for one of IPv4 would be written as IPv4.
    let plain = length == size_of::<Header>() && stated != 0 && !segment.destination.is_v4();
    segment.answerable = u32::from(plain);
    Parsed::Syn
}

#[inline(always)]
fn address(words: [u64; 2]) -> Addr {
    Addr { high: u64::from_be(words[0]), low: u64::from_be(words[1]) }
}
