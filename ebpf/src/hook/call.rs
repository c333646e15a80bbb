//! The hooks in `connect()`: a call instead of a packet.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_retval, bpf_set_retval},
    programs::SockAddrContext,
};
use weir_common::addr::Addr;

/// `SOCK_STREAM` and `IPPROTO_TCP`: SCTP has streams too.
const STREAM: u32 = 1;
const TCP: u32 = 6;
/// `AF_INET` and `AF_INET6`.
const INET: u32 = 2;
const INET6: u32 = 10;
const ECONNREFUSED: i32 = 111;

/// A call of `connect()`, or of `sendto()` with `MSG_FASTOPEN`.
pub struct Call {
    ctx: *mut bpf_sock_addr,
    is_v6: bool,
}

/// The context's fields are no memory: the kernel turns each read of four bytes into one of its own,
/// and refuses what a compiler would make of two of them.
macro_rules! field {
    ($call:expr, $($field:tt)+) => {
        // SAFETY: the context is valid for the whole run.
        unsafe { read_volatile(addr_of!((*$call.ctx).$($field)+)) }
    };
}

impl Call {
    #[inline(always)]
    pub fn v4(ctx: SockAddrContext) -> Self {
        Self { ctx: ctx.sock_addr, is_v6: false }
    }

    #[inline(always)]
    pub fn v6(ctx: SockAddrContext) -> Self {
        Self { ctx: ctx.sock_addr, is_v6: true }
    }

    /// Whether a TCP connection would begin, if nobody refused it before.
    ///
    /// The address's family is the caller's to claim; the kernel looks at it after this hook.
    #[inline(always)]
    pub fn opens_tcp(&self) -> bool {
        let family = if self.is_v6 { INET6 } else { INET };
        field!(self, type_) == STREAM
            && field!(self, protocol) == TCP
            && field!(self, user_family) == family
            // SAFETY: no preconditions.
            && unsafe { bpf_get_retval() } == 0
    }

    /// Which network namespace the socket is in: never used again in one boot.
    #[inline(always)]
    pub fn namespace(&self) -> u64 {
        // SAFETY: the context is valid for the whole run.
        unsafe { bpf_get_netns_cookie(self.ctx.cast()) }
    }

    /// Where to, an IPv4 address mapped in either family.
    #[inline(always)]
    pub fn destination(&self) -> Addr {
        if !self.is_v6 {
            return Addr::v4(u32::from_be(field!(self, user_ip4)));
        }
        let half = |high: u32, low: u32| {
            u64::from(u32::from_be(high)) << 32 | u64::from(u32::from_be(low))
        };
        Addr {
            high: half(field!(self, user_ip6[0]), field!(self, user_ip6[1])),
            low: half(field!(self, user_ip6[2]), field!(self, user_ip6[3])),
        }
    }

    /// The port that is dialled.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        u16::from_be(field!(self, user_port) as u16)
    }

    /// Lets it go on, or leaves it as refused as somebody before has made it.
    #[inline(always)]
    pub fn pass(&self) -> i32 {
        1
    }

    /// `connect()` returns ECONNREFUSED, as it does after a RST. Without a value of our own it would
    /// be EPERM.
    #[inline(always)]
    pub fn refuse(&self) -> i32 {
        // SAFETY: no preconditions.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
        0
    }
}
