//! Turning a SYN into the RST that refuses it, in place and of the same length.
//!
//! RFC 9293 §3.10.7.1: sequence 0, acknowledgment of the SYN and its data, flags RST and ACK.
//! Options become no-operations, so no byte moves. Checksums: a SYN that comes from a local stack
//! carries only the pseudo header's sum (`CHECKSUM_PARTIAL`), so TC lets the kernel's helper
//! apply the difference, which knows; XDP cannot know and computes the whole sum.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, xdp_action::XDP_TX},
    helpers::generated::{
        bpf_csum_diff, bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
};

use crate::{
    hook::{Packet as _, Uplink, has_ethernet, opaque},
    parse::Segment,
};

/// Flags RST and ACK.
const RST_ACK: u8 = 0x14;
const NO_OPERATION: u8 = 1;
const HOPS: u8 = 64;
/// `BPF_F_RECOMPUTE_CSUM`.
const RECOMPUTE: u64 = 1;

const TCP_MAX: usize = 60;
const TCP_MIN: usize = 20;

/// Turns the SYN into its answer at a TC hook; `false` when a helper failed.
#[inline(always)]
pub fn reset(skb: *mut __sk_buff, syn: &Segment) -> bool {
    let acknowledgment = syn.sequence.wrapping_add(1).wrapping_add(syn.payload);
    let family = if syn.destination.is_v4() { 4 } else { 6 };
    weir_reset(skb, syn.l3, family, syn.l4_length, acknowledgment) == 0
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
    // Each helper that writes asks anew whether the packet may be written: without tags in between
    // all headers are written at once.
    let done = match (l3 as usize, family) {
        (ETHERNET, 4) => answer::<ETHERNET, IPV4>(skb, 0, l4_length, acknowledgment),
        (ETHERNET, _) => answer::<ETHERNET, IPV6>(skb, 0, l4_length, acknowledgment),
        (_, 4) => {
            swap_macs(skb).and_then(|()| answer::<0, IPV4>(skb, l3, l4_length, acknowledgment))
        }
        _ => swap_macs(skb).and_then(|()| answer::<0, IPV6>(skb, l3, l4_length, acknowledgment)),
    };
    u64::from(done.is_none())
}

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const ALL_MAX: usize = ETHERNET + IPV6 + TCP_MAX;

#[inline(always)]
fn swap_macs(skb: *mut __sk_buff) -> Option<()> {
    if !has_ethernet() {
        return Some(());
    }
    let mut macs = [0u16; 6];
    load(skb, 0, macs.as_mut_ptr().cast(), 12)?;
    let [a, b, c, d, e, f] = macs;
    macs = [d, e, f, a, b, c];
    store(skb, 0, macs.as_ptr().cast(), 12, 0)
}

/// Headers in memory, so that both ends of every field are known: the link's (or none), IP's, TCP's.
#[repr(C, align(8))]
struct Headers([MaybeUninit<u8>; ALL_MAX]);

impl Headers {
    #[inline(always)]
    fn at(&mut self, offset: usize) -> *mut u8 {
        self.0.as_mut_ptr().cast::<u8>().wrapping_add(offset)
    }
}

/// Turns a SYN into its answer, from `start` on: `LINK` bytes of link header, `NETWORK` of IP's, and
/// the TCP header of `length` bytes.
#[inline(always)]
fn answer<const LINK: usize, const NETWORK: usize>(
    skb: *mut __sk_buff,
    start: u32,
    length: u32,
    acknowledgment: u32,
) -> Option<()> {
    let length = header_length(length)?;
    let (l3, l4) = (LINK, LINK + NETWORK);
    let mut headers = Headers([const { MaybeUninit::uninit() }; ALL_MAX]);
    let all = l4 as u32 + length;
    load(skb, start, headers.at(0), all)?;
    let tcp = headers.at(l4);
    // SAFETY: `load` filled the headers up to `length` bytes of TCP, which are 20 at least; what is
    // written beyond them lies within the memory; `length` is a multiple of 4.
    let difference = unsafe {
        if LINK != 0 {
            swap::<6>(headers.at(0).addr(), headers.at(6).addr());
        }
        if NETWORK == IPV4 {
            answer_ipv4(headers.at(l3).addr());
        } else {
            swap::<16>(headers.at(l3 + 8).addr(), headers.at(l3 + 24).addr());
        }
        // Summed before and after, in one buffer.
        let before = bpf_csum_diff(tcp.cast(), length, core::ptr::null_mut(), 0, 0);
        swap::<2>(tcp.addr(), tcp.addr() + 2);
        tcp.add(4).cast::<u32>().write_unaligned(0);
        tcp.add(8).cast::<u32>().write_unaligned(acknowledgment.to_be());
        tcp.add(12).write(tcp.add(12).read() & 0xf0);
        tcp.add(13).write(RST_ACK);
        tcp.add(14).cast::<u16>().write_unaligned(0);
        // The checksum stays the question's until the difference is known.
        tcp.add(18).cast::<u16>().write_unaligned(0);
        for word in TCP_MIN / 4..TCP_MAX / 4 {
            tcp.add(word * 4).cast::<u32>().write_unaligned(u32::from_ne_bytes([NO_OPERATION; 4]));
        }
        bpf_csum_diff(core::ptr::null_mut(), 0, tcp.cast(), length, before as u32)
    };
    if difference < 0 {
        return None;
    }
    store(skb, start, headers.at(0), all, 0)?;
    if NETWORK == IPV6 {
        // IPv6 has no header checksum that would balance this byte in a checksum of the whole.
        store(skb, start + l3 as u32 + 7, &HOPS, 1, RECOMPUTE)?;
    }
    let checksum = start + l4 as u32 + 16;
    // SAFETY: the context is valid; the helper checks the offset.
    let failed = unsafe { bpf_l4_csum_replace(skb, checksum, 0, difference as u64, 0) };
    (failed == 0).then_some(())
}

/// Swaps the addresses of a bare IPv4 header and gives it a fresh time to live.
///
/// # Safety
/// 20 bytes must lie at `l3`.
#[inline(always)]
unsafe fn answer_ipv4(l3: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        swap::<4>(l3 + 12, l3 + 16);
        let lifetime = (l3 + 8) as *mut u16;
        let before = lifetime.read_unaligned();
        // Time to live and protocol are one word of the header's checksum.
        let after = u16::from_ne_bytes([HOPS, before.to_ne_bytes()[1]]);
        lifetime.write_unaligned(after);
        let checksum = (l3 + 10) as *mut u16;
        // RFC 1624 §3, equation 3.
        let sum = u32::from(!checksum.read_unaligned()) + u32::from(!before) + u32::from(after);
        checksum.write_unaligned(!fold(sum));
    }
}

/// The header's length as the verifier can follow it.
#[inline(always)]
fn header_length(length: u32) -> Option<u32> {
    let length = length & 0x3c;
    (TCP_MIN as u32..=TCP_MAX as u32).contains(&length).then_some(length)
}

/// Whether XDP can answer this SYN; if not, TC does.
#[inline(always)]
pub fn fits_uplink(syn: &Segment) -> bool {
    syn.answerable != 0 && syn.payload == 0 && has_ethernet()
}

/// Answers at an uplink; `None` when the frame is not what it was parsed as.
#[inline(always)]
pub fn reset_uplink(uplink: &Uplink, syn: &Segment) -> Option<u32> {
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
        unsafe { answer_ipv4(l3) };
    } else {
        // SAFETY: bounds as above.
        unsafe {
            swap::<16>(l3 + 8, l3 + 24);
            ((l3 + 7) as *mut u8).write(HOPS);
        }
    }
    let acknowledgment = syn.sequence.wrapping_add(1);
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
fn load(skb: *mut __sk_buff, offset: u32, to: *mut u8, length: u32) -> Option<()> {
    // SAFETY: the verifier proves that the helper may write so many bytes, and it checks the
    // packet's bounds.
    let failed = unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.cast(), length) };
    (failed == 0).then_some(())
}

#[inline(always)]
fn store(skb: *mut __sk_buff, offset: u32, from: *const u8, length: u32, flags: u64) -> Option<()> {
    // SAFETY: the verifier proves that the helper may read so many bytes, and it checks the
    // packet's bounds.
    let failed = unsafe { bpf_skb_store_bytes(skb, offset, from.cast(), length, flags) };
    (failed == 0).then_some(())
}
