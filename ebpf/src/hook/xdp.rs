//! The XDP hook of an uplink.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use super::Packet;
use crate::parse::{
    self, Glance, Parsed, Segment,
    ipv6::{self, Chain},
};

/// A packet at an uplink.
pub struct Uplink {
    /// The kernel's context.
    pub ctx: XdpContext,
}

impl Uplink {
    #[inline(always)]
    pub fn new(ctx: XdpContext) -> Self {
        Self { ctx }
    }

    /// The interface that the frame came in by.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }

    /// Parses the frame.
    #[inline(always)]
    pub fn parse(&self, segment: &mut Segment) -> Parsed {
        match parse::glance(self) {
            Glance::Other | Glance::LaterV4 | Glance::LaterV6 | Glance::IcmpV4 | Glance::IcmpV6 => {
                return Parsed::Other;
            }
            Glance::SynV4 => return parse::parse_plain(self, segment),
            Glance::Unknown => {}
        }
        Parsed::from_code(weir_parse_xdp(self.ctx.ctx, segment))
    }
}

impl Packet for Uplink {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.ctx.data(), self.ctx.data_end())
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.ctx.data_end() - self.ctx.data()
    }

    #[inline(always)]
    fn follow_extensions(&self, offset: usize, next: u8) -> Chain {
        Chain(weir_extensions_xdp(self.ctx.ctx, offset as u32, u32::from(next)))
    }
}

/// A global function: see `weir_parse_tc`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_extensions_xdp(frame: *mut xdp_md, offset: u32, next: u32) -> u64 {
    let frame = Uplink::new(XdpContext::new(frame));
    ipv6::follow(&frame, (offset & 0xff) as usize, next as u8).0
}

/// A global function: see `weir_parse_tc`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_parse_xdp(frame: *mut xdp_md, segment: *mut Segment) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    match unsafe { segment.as_mut() } {
        Some(segment) => parse::parse(&Uplink::new(XdpContext::new(frame)), segment) as u64,
        None => Parsed::Other as u64,
    }
}
