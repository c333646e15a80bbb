//! What parsing needs of a packet, and the only place that knows TC from XDP from `connect()`.

mod call;
mod tc;
mod xdp;

use core::arch::asm;

use crate::parse::ipv6::Chain;

pub use self::{
    call::Call,
    tc::{Bytes, NEXT, SHOT, Tc, TcHook, inject, parse_whole},
    xdp::Uplink,
};

/// Bytes of the link header: 14 for Ethernet, 0 for devices without one (tun, WireGuard).
///
/// Set when the object is loaded, so that the other branch vanishes.
#[unsafe(no_mangle)]
static LINK_HEADER: aya_ebpf::Global<u32> = aya_ebpf::Global::new(14);

/// Whether packets start with an Ethernet header.
#[inline(always)]
pub fn has_ethernet() -> bool {
    LINK_HEADER.load() != 0
}

/// The readable part of a packet.
pub trait Packet {
    /// First and one-past-last address of the directly readable bytes.
    fn bounds(&self) -> (usize, usize);

    /// Bytes of the whole packet, readable or not.
    fn length(&self) -> usize;

    /// Follows IPv6 extension headers, in a function of its own for the verifier's sake.
    fn follow_extensions(&self, offset: usize, next: u8) -> Chain;

    /// A header at `offset` bytes from the packet's start, where it lies.
    #[inline(always)]
    fn header<T: Plain>(&self, offset: usize) -> Option<&T> {
        const { assert!(align_of::<T>() == 1) };
        let (start, end) = self.bounds();
        let at = opaque(start + offset);
        if at + size_of::<T>() > end {
            return None;
        }
        // SAFETY: within the packet, as the verifier checks once more; a `Plain` type is valid for
        // any bytes and needs no alignment.
        Some(unsafe { &*(at as *const T) })
    }
}

/// Hides from the compiler how an address was computed.
///
/// The verifier knows the bounds of the very register that was compared with the packet's end:
/// the compiler must not compute the address again from its parts for a later field.
#[inline(always)]
pub fn opaque(mut address: usize) -> usize {
    // SAFETY: copies a register to itself (an empty text would leave line information for an
    // instruction that does not exist, which the kernel refuses).
    unsafe {
        asm!("{0} = {0}", inout(reg) address, options(pure, nomem, nostack, preserves_flags))
    };
    address
}

/// Types that any bytes at any address make valid.
///
/// # Safety
/// Every bit pattern must be a valid value: integers, arrays and packed structs of them.
pub unsafe trait Plain: Copy {}
// SAFETY: an integer.
unsafe impl Plain for u8 {}
// SAFETY: an array of integers.
unsafe impl<const N: usize> Plain for [u8; N] {}
