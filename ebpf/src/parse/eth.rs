//! Ethernet and up to two VLAN tags (802.1Q, 802.1ad). A tag that the NIC stripped is not in the
//! bytes and needs nothing. Devices without a link header start with IP.

use crate::hook::{Packet, has_ethernet};

/// What the link layer carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Network {
    V4,
    V6,
    Other,
    Short,
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;

/// Parses the link layer; `l3` becomes the offset of what it carries.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, l3: &mut usize) -> Network {
    if !has_ethernet() {
        return match packet.header::<u8>(0) {
            Some(first) if first >> 4 == 4 => Network::V4,
            Some(first) if first >> 4 == 6 => Network::V6,
            Some(_) => Network::Other,
            None => Network::Short,
        };
    }
    let Some(kind) = packet.header::<[u8; 2]>(12) else { return Network::Short };
    let mut kind = u16::from_be_bytes(*kind);
    let mut offset = 14;
    for _ in 0..2 {
        if kind != VLAN && kind != QINQ {
            break;
        }
        let Some(next) = packet.header::<[u8; 2]>(offset + 2) else { return Network::Short };
        kind = u16::from_be_bytes(*next);
        offset += 4;
    }
    *l3 = offset;
    match kind {
        IPV4 => Network::V4,
        IPV6 => Network::V6,
        _ => Network::Other,
    }
}
