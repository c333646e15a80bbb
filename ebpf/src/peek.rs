//! The decision at an uplink, and at the host's end of a pod that floods: what TC would certainly refuse
//! is refused before the stack sees it.
//!
//! XDP looks and never takes: the same SYN passes TC afterwards, and one SYN spends once. What it
//! cannot decide alone (no workload with that address, an unusual packet) passes on to TC.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use weir_common::{
    layout::{Direction, Hook, RULE_DROP},
    verdict::{Reason, Verdict},
};

use crate::{
    decide, emit,
    hook::Uplink,
    maps,
    parse::{Parsed, Segment},
    pending, reply, rule, track, workload,
};

/// Who answers a SYN that is to be refused by RST.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// The program itself, on the way that the SYN came.
    Here,
    /// TC. A veth loses what XDP sends back unless its other end polls (`veth_xdp_xmit`,
    /// <https://elixir.bootlin.com/linux/v6.12/source/drivers/net/veth.c#L480>), and a pod's end does not.
    AtTc,
}

/// Judges one frame and returns XDP's code.
#[inline(always)]
pub fn run(uplink: &Uplink, answers: Answers) -> u32 {
    let mut syn = Segment::empty();
    match uplink.parse(&mut syn) {
        Parsed::Syn => on_syn(uplink, answers, &syn).unwrap_or(XDP_PASS),
        _ => XDP_PASS,
    }
}

#[inline(always)]
fn on_syn(uplink: &Uplink, answers: Answers, syn: &Segment) -> Option<u32> {
    let slot = maps::slot_of_address(&syn.destination)?;
    let workload = maps::workload(slot)?;
    let rules = workload::rules(slot, workload, Direction::Ingress, syn.port())?;
    let now_ns = decide::now();
    let tracked = rules.tracked();
    let unaudited = tracked && decide::is_unaudited(now_ns);
    let ruling = rule::foresee(rules.index, unaudited, syn.source, now_ns);
    let rule = rules.get(ruling.refused())?;
    if decide::in_shadow(workload, now_ns) {
        return None;
    }
    // A repeated SYN is free, here as there; TC knows about one of a connection that lives.
    let owner = track::owner(slot, Direction::Ingress);
    let is_known = if tracked {
        track::find(syn, owner, now_ns).is_some()
    } else {
        pending::look(syn, owner, now_ns).is_repeated()
    };
    if is_known {
        return None;
    }
    let drop = rule.flags & RULE_DROP != 0;
    if !drop && !reply::fits_uplink(syn) {
        return None;
    }
    let answers_at_tc = !drop && answers == Answers::AtTc;
    if answers_at_tc && rule::may_reset(workload, now_ns) {
        return None;
    }
    let reason = ruling.reason(rule, Direction::Ingress);
    let verdict = decide::refusal(workload, syn, drop || answers_at_tc, now_ns);
    emit::refusal(slot, Hook::Xdp, verdict, reason, rule, syn, now_ns);
    if verdict == Verdict::Reset {
        return Some(reply::reset_uplink(uplink, syn).unwrap_or_else(|| {
            emit::count(slot, Hook::Xdp, Verdict::Note, Reason::RewriteFailed);
            XDP_DROP
        }));
    }
    if !drop {
        emit::count(slot, Hook::Xdp, Verdict::Note, Reason::ResetLimited);
    }
    // Who sent it is known where only one can have.
    if answers == Answers::AtTc
        && let Some(sender) = maps::slot_of_interface(uplink.interface())
    {
        emit::count(sender, Hook::Xdp, Verdict::Note, Reason::Shielded);
    }
    Some(XDP_DROP)
}
