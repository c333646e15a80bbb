//! TC hooks. "Pass" lets the next program run, so that Weir stands before others, never instead.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_clone_redirect, bpf_redirect, bpf_redirect_peer, bpf_skb_load_bytes},
    programs::TcContext,
};

use weir_common::layout::{Direction, Hook};

use super::Packet;
use crate::{
    maps,
    parse::{
        self, Glance, Parsed, Segment, icmp,
        ipv6::{self, Chain},
    },
};

/// `TCX_NEXT`, and `TC_ACT_UNSPEC` on clsact: the next program decides. `TC_ACT_OK` would end the
/// chain on both.
pub const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
pub const SHOT: i32 = 2;

/// What is made readable of a packet whose headers are not: no honest ones are longer.
const HEADERS: u32 = 512;

/// `BPF_F_INGRESS`: redirect to where packets enter the device.
const INGRESS: u64 = 1;

/// Where the program is attached.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum TcHook {
    /// Host side of a veth, packets that leave the host.
    HostEgress,
    /// Host side of a veth, packets that enter the host.
    HostIngress,
    /// The workload's own interface, packets that leave it.
    OwnEgress,
    /// The workload's own interface, packets that enter it.
    OwnIngress,
}

impl TcHook {
    /// From the lowest two bits of a number.
    #[inline(always)]
    pub fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::HostEgress,
            1 => Self::HostIngress,
            2 => Self::OwnEgress,
            _ => Self::OwnIngress,
        }
    }

    /// Which way the workload's packets go here.
    #[inline(always)]
    pub fn direction(self) -> Direction {
        match self {
            Self::HostEgress | Self::OwnIngress => Direction::Ingress,
            Self::HostIngress | Self::OwnEgress => Direction::Egress,
        }
    }

    /// The hook under which it is counted.
    #[inline(always)]
    pub fn counted(self) -> Hook {
        match self.direction() {
            Direction::Ingress => Hook::TcIngress,
            Direction::Egress => Hook::TcEgress,
        }
    }

    /// Sends a packet, rewritten into an answer, back to where it came from.
    #[inline(always)]
    pub fn send_back(self, skb: *mut __sk_buff) -> i32 {
        // SAFETY: the context is valid for the whole run.
        let ifindex = unsafe { (*skb).ifindex };
        let code = match self {
            // As if the pod had answered: reverse NAT and routing see an ordinary packet.
            Self::HostEgress | Self::OwnEgress => unsafe { bpf_redirect(ifindex, INGRESS) },
            // Straight into the pod: another program at the veth's egress has no say.
            Self::HostIngress => unsafe { bpf_redirect_peer(ifindex, 0) },
            Self::OwnIngress => unsafe { bpf_redirect(ifindex, 0) },
        };
        code as i32
    }
}

/// Sends a copy of a packet to where its control block says; what the helper returned.
#[inline(always)]
pub fn inject(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the context is valid for the whole run.
    unsafe {
        let [ifindex, flags, ..] = (*skb).cb;
        bpf_clone_redirect(skb, ifindex, flags.into()) as i32
    }
}

/// A packet at a TC hook.
pub struct Tc {
    /// The kernel's context.
    pub ctx: TcContext,
    hook: TcHook,
}

impl Tc {
    #[inline(always)]
    pub fn new(ctx: TcContext, hook: TcHook) -> Self {
        Self { ctx, hook }
    }

    /// Parses the packet, with its headers pulled together first if they must be.
    #[inline(always)]
    pub fn parse(&self, segment: &mut Segment) -> Parsed {
        let bytes = Bytes(TcContext::new(self.raw()));
        let glance = parse::glance(&bytes);
        if glance == Glance::Other || glance.is_later() && !maps::tracks() {
            return Parsed::Other;
        }
        if glance.is_icmp() {
            return Parsed::from_code(weir_parse_icmp(
                self.raw(),
                segment,
                u32::from(glance == Glance::IcmpV4),
            ));
        }
        if glance.is_plain_v4() {
            let parsed = parse::parse_plain(&bytes, segment);
            if parsed != Parsed::Short {
                return parsed;
            }
        }
        parse_whole(&self.ctx, segment)
    }

    /// The interface's index.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the whole run.
        unsafe { (*self.ctx.skb.skb).ifindex }
    }

    /// Where the program is attached.
    #[inline(always)]
    pub fn hook(&self) -> TcHook {
        self.hook
    }

    /// See [`weir_http1_status`].
    #[inline(always)]
    pub fn http1_status(&self, segment: &Segment) -> u32 {
        weir_http1_status(self.raw(), segment.l4 + segment.l4_length) as u32
    }

    /// The raw context, for helpers.
    #[inline(always)]
    pub fn raw(&self) -> *mut __sk_buff {
        self.ctx.skb.skb
    }
}

/// Parses a packet of any kind, with its headers pulled together first if they must be.
#[inline(always)]
pub fn parse_whole(ctx: &TcContext, segment: &mut Segment) -> Parsed {
    let skb = ctx.skb.skb;
    let mut parsed = weir_parse_tc(skb, segment);
    if parsed == Parsed::Short as u64 && !is_readable(ctx) {
        let length = ctx.len();
        let pulled = ctx.pull_data(if length < HEADERS { length } else { HEADERS });
        if pulled.is_ok() {
            parsed = weir_parse_tc(skb, segment);
        }
        // The receiver will read on where this program cannot.
        if parsed == Parsed::Short as u64 && !is_readable(ctx) {
            return Parsed::HeaderChain;
        }
    }
    Parsed::from_code(parsed)
}

/// Whether all of the packet can be read directly, none of it in fragments of the buffer.
#[inline(always)]
fn is_readable(ctx: &TcContext) -> bool {
    (ctx.data_end() - ctx.data()) as u32 >= ctx.len()
}

/// The packet's bytes, without a place to act.
pub struct Bytes(pub TcContext);

impl Packet for Bytes {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.0.data(), self.0.data_end())
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.0.len() as usize
    }

    #[inline(always)]
    fn follow_extensions(&self, offset: usize, next: u8) -> Chain {
        Chain(weir_extensions_tc(self.0.skb.skb, offset as u32, u32::from(next)))
    }
}

/// A global function: see [`weir_parse_tc`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_extensions_tc(skb: *mut __sk_buff, offset: u32, next: u32) -> u64 {
    ipv6::follow(&Bytes(TcContext::new(skb)), (offset & 0xff) as usize, next as u8).0
}

/// A global function: verified once, and its stack is free again when rules are judged.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_parse_tc(skb: *mut __sk_buff, segment: *mut Segment) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    match unsafe { segment.as_mut() } {
        Some(segment) => parse::parse(&Bytes(TcContext::new(skb)), segment) as u64,
        None => Parsed::Other as u64,
    }
}

/// The first digit of the status of a response of HTTP/1 that begins at this offset (RFC 9112 §4); 0
/// when something else does. A function of its own for its stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_http1_status(skb: *mut __sk_buff, payload: u32) -> u64 {
    let mut line = [0u8; 12];
    // SAFETY: the helper writes twelve bytes into twelve, or fails.
    let failed = unsafe { bpf_skb_load_bytes(skb.cast(), payload, line.as_mut_ptr().cast(), 12) };
    let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', digit, ..] = line else { return 0 };
    if failed != 0 || !digit.is_ascii_digit() { 0 } else { u64::from(digit - b'0') }
}

/// A global function: see [`weir_parse_tc`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_parse_icmp(skb: *mut __sk_buff, segment: *mut Segment, is_v4: u32) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    match unsafe { segment.as_mut() } {
        Some(segment) => icmp::parse(&Bytes(TcContext::new(skb)), is_v4 != 0, segment) as u64,
        None => Parsed::Other as u64,
    }
}
