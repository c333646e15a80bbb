//! What limits of bytes must know of a packet: how large it is on the wire, whose it is, and whether
//! it may be dropped.
//!
//! Bytes are those of the frames, link header included, as interfaces and `tc` count them. The kernel
//! carries up to 64 KiB (with BIG TCP 512 KiB) as one packet that is cut later, or was put together
//! before: each segment's headers are counted, as they are on the wire.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_get_prandom_u32, programs::TcContext};
use weir_common::{addr::Addr, flow, layout::Direction, track::flag};

use crate::{
    hook::{self, Bytes, Packet as _, Plain},
    maps,
    parse::{
        Parsed, Segment,
        eth::{self, Network},
    },
};

/// A packet as byte limits see it. On the stack of the program, read by functions of its own.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Parcel {
    pub now_ns: u64,
    /// The keyed hash of its connection and direction; 0 if it is of none, or nobody asked.
    pub flow: u64,
    /// The other end's address.
    pub peer: Addr,
    /// On the wire.
    pub bytes: u32,
    /// On the wire.
    pub packets: u32,
    /// What a connection's charge is rounded by; 0 without [`Self::flow`].
    pub random: u32,
    /// [`MUST_PASS`] and the others; bit 0 is the direction.
    pub flags: u32,
}

const MUST_PASS: u32 = 2;
const TCP: u32 = 4;
const PACED: u32 = 8;
const LENIENT: u32 = 16;

impl Parcel {
    /// Reads a packet; fills `segment` with what is known of its ends.
    #[inline(always)]
    pub fn read(
        skb: *mut __sk_buff,
        segment: &mut Segment,
        direction: Direction,
        now_ns: u64,
    ) -> Self {
        let parsed = hook::parse_whole(&TcContext::new(skb), segment);
        let mut flags = direction as u32;
        match parsed {
            Parsed::Syn | Parsed::Later => {
                flags |= TCP;
                let control = u32::from(flag::SYN | flag::RST);
                if segment.payload == 0 || segment.flags & control != 0 {
                    flags |= MUST_PASS;
                }
            }
            Parsed::Other => {
                if weir_parse_other(skb, segment) != 0 {
                    flags |= MUST_PASS;
                }
            }
            // Of TCP, but nobody can say of which connection. (What ICMP quotes is parsed apart, and not
            // here: that packet is one of ICMP.)
            _ => {}
        }
        // SAFETY: the context is valid for the whole run.
        let (length, segs, size) = unsafe { ((*skb).len, (*skb).gso_segs, (*skb).gso_size) };
        let (mut bytes, mut packets) = (length, 1);
        if size != 0 {
            let headers = segment.l4 + segment.l4_length;
            packets = segs;
            if segs == 0 {
                // Not said by whoever put it together (a virtual machine): as many as it takes.
                let payload = if length > headers { length - headers } else { 0 };
                packets = payload.div_ceil(size);
            }
            if packets > 1 {
                bytes += (packets - 1) * headers;
            } else {
                packets = 1;
            }
        }
        let peer = segment.peer(direction);
        Self { now_ns, flow: 0, peer, bytes, packets, random: 0, flags }
    }

    /// Finds its connection, if it is one of TCP. For blocks with a bucket for each: the others need not
    /// pay for the hash, nor for the number that rounds what is charged.
    #[inline(always)]
    pub fn find_flow(&mut self, segment: &Segment) {
        if self.is_tcp() {
            self.flow = weir_flow(segment);
            // SAFETY: no preconditions.
            self.random = unsafe { bpf_get_prandom_u32() };
        }
    }

    #[inline(always)]
    pub fn direction(&self) -> usize {
        (self.flags & 1) as usize
    }

    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.flags & TCP != 0
    }

    #[inline(always)]
    pub fn must_pass(&self) -> bool {
        self.flags & MUST_PASS != 0
    }

    #[inline(always)]
    pub fn is_paced(&self) -> bool {
        self.flags & PACED != 0
    }

    #[inline(always)]
    pub fn set_paced(&mut self) {
        self.flags |= PACED;
    }

    /// Whether nothing is refused, because the workload is in shadow.
    #[inline(always)]
    pub fn is_lenient(&self) -> bool {
        self.flags & LENIENT != 0
    }

    #[inline(always)]
    pub fn set_lenient(&mut self) {
        self.flags |= LENIENT;
    }
}

/// The hash of a segment's connection and direction. A global function, for its registers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_flow(segment: *const Segment) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    let Some(segment) = (unsafe { segment.as_ref() }) else { return 0 };
    let Some(secret) = maps::secret() else { return 0 };
    let Segment { source, destination, ports, .. } = *segment;
    let (from, to) = ([source.high, source.low], [destination.high, destination.low]);
    flow::hash(secret, from, to, ports)
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct V4 {
    version_ihl: u8,
    _until_fragment: [u8; 5],
    fragment: u16,
    _ttl: u8,
    protocol: u8,
    _checksum: u16,
    source: u32,
    destination: u32,
}
const _: () = assert!(size_of::<V4>() == 20);
// SAFETY: integers.
unsafe impl Plain for V4 {}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct V6 {
    _until_next: [u8; 6],
    next: u8,
    _hops: u8,
    source: [u64; 2],
    destination: [u64; 2],
    /// The first byte of what follows: of ICMPv6 its type.
    kind: u8,
}
const _: () = assert!(size_of::<V6>() == 41);
// SAFETY: integers.
unsafe impl Plain for V6 {}

const UDP: u8 = 17;
const ICMP_V6: u8 = 58;
/// Router and neighbour solicitation and advertisement, and redirect (RFC 4861 §4).
const NEIGHBOURS: core::ops::RangeInclusive<u8> = 133..=137;

/// Reads a packet that is not TCP, as far as its ends and headers; 1 when it must pass: what is not IP
/// (ARP above all), and what finds IPv6 neighbours.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_parse_other(skb: *mut __sk_buff, segment: *mut Segment) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    let Some(segment) = (unsafe { segment.as_mut() }) else { return 0 };
    let packet = Bytes(TcContext::new(skb));
    let mut l3 = 0;
    let (protocol, l4) = match eth::parse(&packet, &mut l3) {
        Network::V4 => {
            let Some(header) = packet.header::<V4>(l3) else { return 0 };
            segment.source = Addr::v4(u32::from_be(header.source));
            segment.destination = Addr::v4(u32::from_be(header.destination));
            // A later fragment has no ports: what stands there is payload.
            let is_first = u16::from_be(header.fragment) & 0x1fff == 0;
            let protocol = if is_first { header.protocol } else { 0 };
            (protocol, l3 + usize::from(header.version_ihl & 0xf) * 4)
        }
        Network::V6 => {
            let Some(header) = packet.header::<V6>(l3) else { return 0 };
            let (source, destination) = (header.source, header.destination);
            segment.source = Addr { high: u64::from_be(source[0]), low: u64::from_be(source[1]) };
            segment.destination =
                Addr { high: u64::from_be(destination[0]), low: u64::from_be(destination[1]) };
            if header.next == ICMP_V6 && NEIGHBOURS.contains(&header.kind) {
                return 1;
            }
            (header.next, l3 + 40)
        }
        Network::Other => return 1,
        Network::Short => return 0,
    };
    segment.l4 = l4 as u32;
    if protocol == UDP {
        segment.l4_length = 8;
        if let Some(ports) = packet.header::<[u8; 4]>(l4) {
            segment.ports = u32::from_be_bytes(*ports);
        }
    }
    0
}
