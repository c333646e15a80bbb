//! Turning a SYN into the RST that refuses it, in place and of the same length.
//!
//! RFC 9293 §3.10.7.1: sequence 0, acknowledgment of the SYN and its data, flags RST and ACK.
//! Options become no-operations, so no byte moves. Checksums: a SYN that comes from a local stack
//! carries only the pseudo header's sum (`CHECKSUM_PARTIAL`), so TC lets the kernel's helper
//! apply the difference, which knows; XDP cannot know and computes the whole sum.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_action::XDP_TX},
    helpers::generated::{
        bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes,
        bpf_skb_store_bytes,
    },
};

use crate::{
    hook::{Packet as _, Tc, Uplink, has_ethernet, opaque},
    parse::Syn,
};

/// Flags RST and ACK.
const RST_ACK: u8 = 0x14;
const NO_OPERATION: u8 = 1;
const HOPS: u8 = 64;
/// `BPF_F_RECOMPUTE_CSUM`.
const RECOMPUTE: u64 = 1;

const TCP_MAX: usize = 60;
const TCP_MIN: usize = 20;

/// Answers at a TC hook; the hook's code, or `None` when a helper failed.
#[inline(always)]
pub fn reset(tc: &Tc, syn: &Syn) -> Option<i32> {
    let acknowledgment = syn.isn.wrapping_add(1).wrapping_add(syn.payload);
    let family = if syn.destination.is_v4() { 4 } else { 6 };
    let failed = weir_reset(tc.raw(), syn.l3, family, syn.l4_length, acknowledgment);
    if failed == 0 { Some(tc.send_back()) } else { None }
}

/// A function of its own for its stack and because it is rarely called. 0 when it worked.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_reset(
    skb: *mut __sk_buff,
    l3: u32,
    family: u32,
    l4_length: u32,
    acknowledgment: u32,
) -> u64 {
    let done = if family == 4 { reset_ipv4(skb, l3) } else { reset_ipv6(skb, l3) };
    let l4 = l3 + if family == 4 { 20 } else { 40 };
    let done = done
        .and_then(|()| if has_ethernet() { swap_macs(skb) } else { Some(()) })
        .and_then(|()| reset_tcp(skb, l4, l4_length, acknowledgment));
    u64::from(done.is_none())
}

#[inline(always)]
fn swap_macs(skb: *mut __sk_buff) -> Option<()> {
    let [a, b]: [[u8; 6]; 2] = load(skb, 0)?;
    store(skb, 0, &[b, a], 0)
}

#[inline(always)]
fn reset_ipv4(skb: *mut __sk_buff, l3: u32) -> Option<()> {
    let [source, destination]: [u32; 2] = load(skb, l3 + 12)?;
    store(skb, l3 + 12, &[destination, source], 0)?;
    let lifetime: u16 = load(skb, l3 + 8)?;
    // Time to live and protocol are one word of the header's checksum.
    let fresh = u16::from_ne_bytes([HOPS, lifetime.to_ne_bytes()[1]]);
    store(skb, l3 + 8, &fresh, 0)?;
    // SAFETY: the context is valid; the helper checks the offset.
    let failed =
        unsafe { bpf_l3_csum_replace(skb, l3 + 10, u64::from(lifetime), u64::from(fresh), 2) };
    (failed == 0).then_some(())
}

#[inline(always)]
fn reset_ipv6(skb: *mut __sk_buff, l3: u32) -> Option<()> {
    let [source, destination]: [[u64; 2]; 2] = load(skb, l3 + 8)?;
    store(skb, l3 + 8, &[destination, source], 0)?;
    // IPv6 has no header checksum that would balance this byte in a checksum of the whole.
    store(skb, l3 + 7, &HOPS, RECOMPUTE)
}

#[inline(always)]
fn reset_tcp(skb: *mut __sk_buff, l4: u32, length: u32, acknowledgment: u32) -> Option<()> {
    let length = header_length(length)?;
    let mut header = [0u8; TCP_MAX];
    // SAFETY: `length` is at most the buffer's size, and a multiple of 4; the helpers check the
    // packet's bounds.
    unsafe {
        let buffer: *mut u32 = header.as_mut_ptr().cast();
        if bpf_skb_load_bytes(skb.cast(), l4, buffer.cast(), length) != 0 {
            return None;
        }
        // Summed before and after, in one buffer.
        let before = bpf_csum_diff(buffer, length, core::ptr::null_mut(), 0, 0);
        answer(&mut header, acknowledgment);
        let buffer: *mut u32 = header.as_mut_ptr().cast();
        let difference = bpf_csum_diff(core::ptr::null_mut(), 0, buffer, length, before as u32);
        if difference < 0
            || bpf_skb_store_bytes(skb, l4, buffer.cast(), length, 0) != 0
            || bpf_l4_csum_replace(skb, l4 + 16, 0, difference as u64, 0) != 0
        {
            return None;
        }
    }
    Some(())
}

/// The header's length as the verifier can follow it.
#[inline(always)]
fn header_length(length: u32) -> Option<u32> {
    let length = length & 0x3c;
    (TCP_MIN as u32..=TCP_MAX as u32).contains(&length).then_some(length)
}

/// Turns the question's TCP header into the answer's; the checksum stays the question's.
#[inline(always)]
fn answer(header: &mut [u8; TCP_MAX], acknowledgment: u32) {
    header[0..4].rotate_left(2);
    header[4..8].copy_from_slice(&[0; 4]);
    header[8..12].copy_from_slice(&acknowledgment.to_be_bytes());
    header[12] &= 0xf0;
    header[13] = RST_ACK;
    header[14..16].copy_from_slice(&[0; 2]);
    header[18..20].copy_from_slice(&[0; 2]);
    header[20..].copy_from_slice(&[NO_OPERATION; TCP_MAX - TCP_MIN]);
}

/// Whether XDP can answer this SYN; if not, TC does.
#[inline(always)]
pub fn fits_uplink(syn: &Syn) -> bool {
    syn.answerable != 0 && syn.payload == 0 && has_ethernet()
}

/// Answers at an uplink; `None` when the frame is not what it was parsed as.
#[inline(always)]
pub fn reset_uplink(uplink: &Uplink, syn: &Syn) -> Option<u32> {
    let length = header_length(syn.l4_length)?;
    let (start, end) = uplink.bounds();
    let is_v4 = syn.destination.is_v4();
    // One register holds the address whose bounds are checked; everything else is a distance.
    let l3 = opaque(start + (syn.l3 & 0x1f) as usize);
    let l4 = l3 + if is_v4 { 20 } else { 40 };
    if start + 14 > end || l4 + TCP_MIN > end {
        return None;
    }
    // SAFETY: the Ethernet header lies before the headers whose bounds were just checked.
    unsafe { swap::<6>(start, start + 6) };
    if is_v4 {
        // SAFETY: bounds as above.
        unsafe {
            swap::<4>(l3 + 12, l3 + 16);
            let lifetime = (l3 + 8) as *mut u16;
            let before = lifetime.read_unaligned();
            let after = u16::from_ne_bytes([HOPS, before.to_ne_bytes()[1]]);
            lifetime.write_unaligned(after);
            let checksum = (l3 + 10) as *mut u16;
            // RFC 1624 §3, equation 3.
            let sum = u32::from(!checksum.read_unaligned()) + u32::from(!before) + u32::from(after);
            checksum.write_unaligned(!fold(sum));
        }
    } else {
        // SAFETY: bounds as above.
        unsafe {
            swap::<16>(l3 + 8, l3 + 24);
            ((l3 + 7) as *mut u8).write(HOPS);
        }
    }
    let acknowledgment = syn.isn.wrapping_add(1);
    // SAFETY: bounds as above: 20 bytes from `l4`.
    unsafe {
        swap::<2>(l4, l4 + 2);
        ((l4 + 4) as *mut u32).write_unaligned(0);
        ((l4 + 8) as *mut u32).write_unaligned(acknowledgment.to_be());
        let offset = (l4 + 12) as *mut u8;
        offset.write(offset.read() & 0xf0);
        ((l4 + 13) as *mut u8).write(RST_ACK);
        ((l4 + 14) as *mut u16).write_unaligned(0);
        ((l4 + 16) as *mut u32).write_unaligned(0);
    }
    // Pseudo header: both addresses, protocol and length (RFC 9293 §3.1, RFC 8200 §8.1). The
    // options, ten words at most, become no-operations and add their constant sum.
    let options = (length - TCP_MIN as u32) / 4;
    let mut sum = u64::from(6u16.to_be()) + u64::from((length as u16).to_be());
    for address in [syn.source, syn.destination] {
        for word in if is_v4 { [0, address.low & 0xffff_ffff] } else { [address.high, address.low] }
        {
            let word = word.to_be();
            sum += (word & 0xffff_ffff) + (word >> 32);
        }
    }
    for word in 0..(TCP_MIN / 4) {
        // SAFETY: bounds as above.
        sum += u64::from(unsafe { ((l4 + word * 4) as *const u32).read_unaligned() });
    }
    let mut at = l4 + TCP_MIN;
    for word in 0..10 {
        if word >= options {
            break;
        }
        if at + 4 > end {
            return None;
        }
        // SAFETY: bounds just checked.
        unsafe { (at as *mut u32).write_unaligned(u32::from_ne_bytes([NO_OPERATION; 4])) };
        sum += u64::from(u32::from_ne_bytes([NO_OPERATION; 4]));
        at += 4;
    }
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    // SAFETY: bounds as above.
    unsafe { ((l4 + 16) as *mut u16).write_unaligned(!fold(sum as u32)) };
    Some(XDP_TX)
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Swaps two fields of the packet.
///
/// # Safety
/// `N` bytes at both addresses must lie within the packet.
#[inline(always)]
unsafe fn swap<const N: usize>(a: usize, b: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (a as *mut [u8; N], b as *mut [u8; N]);
        let first = a.read();
        a.write(b.read());
        b.write(first);
    }
}

#[inline(always)]
fn load<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    let size = size_of::<T>() as u32;
    // SAFETY: the helper fills all of the buffer, or fails; used with integers and arrays of them.
    unsafe {
        let failed = bpf_skb_load_bytes(skb.cast(), offset, value.as_mut_ptr().cast(), size);
        if failed == 0 { Some(value.assume_init()) } else { None }
    }
}

#[inline(always)]
fn store<T: Copy>(skb: *mut __sk_buff, offset: u32, value: &T, flags: u64) -> Option<()> {
    let size = size_of::<T>() as u32;
    // SAFETY: the helper reads the value's bytes and checks the packet's bounds.
    let failed =
        unsafe { bpf_skb_store_bytes(skb, offset, core::ptr::from_ref(value).cast(), size, flags) };
    (failed == 0).then_some(())
}
