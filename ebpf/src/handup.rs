//! What the agent is asked: to lease more of a fleet's quota, and to send a SYN once more when it has.

use core::{ffi::c_void, mem::MaybeUninit, ptr::addr_of_mut};

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use weir_common::{
    layout::{HANDUP_PACKET, Handup},
    verdict::{Reason, Verdict},
};

use crate::{
    decide::Site,
    emit,
    hook::{SHOT, opaque},
    maps,
};

/// Says that a lease runs low. It is said once until the agent has looked.
#[inline(always)]
pub fn low(cell: u32) {
    // Without room, the agent looks a moment later by itself, or a SYN is handed up.
    if let Some(mut entry) = maps::HANDUPS.reserve::<Handup>(0) {
        fill(&mut entry, Head { cell, slot: 0, ifindex: 0, length: 0, lacks: 0 });
        entry.submit(0);
    }
}

/// Drops a SYN and hands it to the agent; the hook's code.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_hand_up(skb: *mut __sk_buff, site: u64, cell: u32) -> u64 {
    let site = Site(site);
    let (slot, hook) = (site.slot(), site.hook().counted());
    // SAFETY: the context is valid for the whole run.
    let (ifindex, whole, tagged) = unsafe { ((*skb).ifindex, (*skb).len, (*skb).vlan_present) };
    emit::count(slot, hook, Verdict::Note, Reason::QuotaAsked);
    let Some(mut entry) = maps::HANDUPS.reserve::<Handup>(0) else {
        emit::count(slot, hook, Verdict::Note, Reason::EventLost);
        return SHOT as u64;
    };
    // One that cannot be sent once more as it is comes by itself: its client repeats it.
    let fits = whole as usize <= HANDUP_PACKET && whole != 0 && tagged == 0;
    // Verifiers before 6.3 learn nothing from a comparison with 0: this says 1 to 256 by itself.
    let length = (opaque(whole.wrapping_sub(1) as usize) & (HANDUP_PACKET - 1)) as u32 + 1;
    let says = if fits { length as u16 } else { 0 };
    fill(&mut entry, Head { cell, slot, ifindex, length: says, lacks: 1 });
    if fits {
        // SAFETY: the packet has room for as many bytes.
        let failed = unsafe {
            let to = addr_of_mut!((*entry.as_mut_ptr()).packet).cast::<c_void>();
            bpf_skb_load_bytes(skb.cast(), 0, to, length)
        };
        if failed != 0 {
            // SAFETY: as above.
            unsafe { addr_of_mut!((*entry.as_mut_ptr()).length).write(0) };
        }
    }
    entry.submit(0);
    SHOT as u64
}

/// All but the packet.
struct Head {
    cell: u32,
    slot: u32,
    ifindex: u32,
    length: u16,
    lacks: u16,
}

/// Written in place: the stack has no room for a packet.
#[inline(always)]
fn fill(entry: &mut MaybeUninit<Handup>, head: Head) {
    let at = entry.as_mut_ptr();
    // SAFETY: within the entry.
    unsafe {
        addr_of_mut!((*at).cell).write(head.cell);
        addr_of_mut!((*at).slot).write(head.slot);
        addr_of_mut!((*at).ifindex).write(head.ifindex);
        addr_of_mut!((*at).length).write(head.length);
        addr_of_mut!((*at).lacks).write(head.lacks);
    }
}
