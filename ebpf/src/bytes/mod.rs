//! Limits of bytes and packets: every packet of a workload that has one.
//!
//! Programs of their own, attached behind those that decide about connections and only where a
//! workload has such a limit: who has none pays nothing, and what the first refuses never comes here.
//! All buckets are in debt mode ([`weir_common::debt`]). How a bucket bites depends on what the path
//! has: a packet is delayed where something sends packets at the time they carry; else it is marked
//! when the bucket is half spent, and dropped when it does not fit into what is left.
//! What TCP cannot do without (segments without payload, SYN, RST) and what finds neighbours is
//! charged, and never dropped or delayed.

mod parcel;
mod spend;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_skb_ecn_set_ce, bpf_skb_set_tstamp},
    programs::TcContext,
};
use weir_common::{
    layout::{Direction, Hook, Rule, RuleKind},
    verdict::{Reason, Verdict},
};

use self::{
    parcel::Parcel,
    spend::{Outcome, Ruling},
};
use crate::{
    decide::{in_shadow, now},
    emit,
    hook::{NEXT, SHOT},
    maps,
    parse::Segment,
    workload,
};

/// `BPF_SKB_TSTAMP_DELIVERY_MONO`: the time is when to send, CLOCK_MONOTONIC.
const DELIVERY_MONO: u32 = 1;

/// Judges one packet and returns the hook's code.
#[inline(always)]
pub fn run(ctx: &TcContext, direction: Direction) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid for the whole run.
    let Some(slot) = workload::at_interface(unsafe { (*skb).ifindex }) else { return NEXT };
    let Some(workload) = maps::workload(slot) else { return NEXT };
    if !workload::has_byte_rules(workload, direction) {
        return NEXT;
    }
    let now_ns = now();
    let mut segment = Segment::empty();
    let mut parcel = Parcel::read(skb, &mut segment, direction, now_ns);
    let port = if parcel.is_tcp() { segment.local_port(direction) } else { 0 };
    let Some(block) = workload::byte_rules(slot, workload, direction, port) else { return NEXT };
    if maps::block(block).is_some_and(|rules| rules.flows != 0) {
        parcel.find_flow(&segment);
    }
    if workload::is_paced(workload, direction) {
        parcel.set_paced();
    }
    if in_shadow(workload, now_ns) {
        parcel.set_lenient();
    }
    let ruling = spend::judge(block, &parcel);
    if ruling.is_refused() {
        spend::give_back(block, ruling, &parcel);
        return refuse(slot, block, direction, &segment, ruling, now_ns);
    }
    if ruling.delay_ns() != 0 {
        delay(skb, now_ns + ruling.delay_ns());
    }
    if let Some(rule) = ruling.marked() {
        mark(skb, slot, block, direction, rule, &parcel);
    }
    NEXT
}

/// Has a packet sent not before this time. Whoever paces its own connections may have said a later one,
/// which stays.
#[inline(always)]
fn delay(skb: *mut __sk_buff, until_ns: u64) {
    // SAFETY: the context is valid for the whole run.
    if unsafe { (*skb).tstamp } < until_ns {
        // SAFETY: as above. Where the kernel refuses (what is no IP, which is never delayed, and what
        // carries a VLAN's tag in its bytes), the packet goes at once and its bucket has the next wait.
        unsafe { bpf_skb_set_tstamp(skb, until_ns, DELIVERY_MONO) };
    }
}

/// Marks a packet, if its sender understands that (RFC 3168).
#[inline(always)]
fn mark(
    skb: *mut __sk_buff,
    slot: u32,
    block: u32,
    direction: Direction,
    rule: u32,
    parcel: &Parcel,
) {
    // SAFETY: the context is valid for the whole run.
    if unsafe { bpf_skb_ecn_set_ce(skb) } == 1 {
        spend::weir_count_volume(block, rule, Outcome::Marked as u32, parcel);
        emit::count(slot, counted(direction), Verdict::Note, Reason::Marked);
    }
}

#[inline(always)]
fn refuse(
    slot: u32,
    block: u32,
    direction: Direction,
    segment: &Segment,
    ruling: Ruling,
    now_ns: u64,
) -> i32 {
    let Some(rule) = crate::rule::find(block, ruling.refused()) else { return NEXT };
    let reason = reason(rule, ruling, direction);
    emit::refusal(slot, counted(direction), Verdict::Drop, reason, rule, segment, now_ns);
    SHOT
}

#[inline(always)]
fn reason(rule: &Rule, ruling: Ruling, direction: Direction) -> Reason {
    if ruling.is_contended() {
        return Reason::Contended;
    }
    match (rule.kind, direction) {
        (kind, _) if kind == RuleKind::Packets as u8 => Reason::PacketRate,
        (kind, Direction::Ingress) if kind == RuleKind::Bandwidth as u8 => Reason::IngressBandwidth,
        (kind, Direction::Egress) if kind == RuleKind::Bandwidth as u8 => Reason::EgressBandwidth,
        _ if ruling.is_crowded() => Reason::ConnectionCrowded,
        _ => Reason::ConnectionBandwidth,
    }
}

#[inline(always)]
const fn counted(direction: Direction) -> Hook {
    match direction {
        Direction::Ingress => Hook::TcIngress,
        Direction::Egress => Hook::TcEgress,
    }
}
