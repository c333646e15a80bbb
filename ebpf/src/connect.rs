//! The decision in `connect()`: what TC would certainly refuse is refused before there is a SYN.
//!
//! Like XDP it looks and never takes, so a connection that goes on spends once, at TC. A refusal here
//! is evidence for no breaker and needs no budget for resets. It knows callers by their network
//! namespace, and only where one workload has all of that namespace's ways out: else the call might
//! take another one.

use weir_common::{
    layout::{Direction, Hook, RULE_DROP},
    verdict::Verdict,
};

use crate::{decide, emit, hook::Call, maps, parse::Segment, rule, workload};

/// Judges one call and returns the hook's code.
#[inline(always)]
pub fn run(call: &Call) -> i32 {
    if call.opens_tcp()
        && let Some(slot) = maps::slot_of_caller(call.namespace())
        && refuses(call, slot).is_some()
    {
        return call.refuse();
    }
    call.pass()
}

/// Counts a refusal and tells of it; nothing where the call may go on.
#[inline(always)]
fn refuses(call: &Call, slot: u32) -> Option<()> {
    let workload = maps::workload(slot)?;
    let rules = workload::rules(slot, workload, Direction::Egress, call.port())?;
    let destination = call.destination();
    let now_ns = decide::now();
    let unaudited = rules.tracked() && decide::is_unaudited(now_ns);
    let ruling = rule::foresee(rules.index, unaudited, destination, now_ns);
    let rule = rules.get(ruling.refused())?;
    // Who asked for silence gets it at TC.
    let is_silent = rule.flags & RULE_DROP != 0;
    if is_silent
        || decide::in_shadow(workload, now_ns)
        || destination.is_loopback()
        || maps::is_local(slot, destination)
    {
        return None;
    }
    let mut syn = Segment::empty();
    // The socket may have no address yet; of its port nobody knows.
    if destination.is_v4() {
        syn.source.low = 0xffff << 32;
    }
    syn.destination = destination;
    syn.ports = u32::from(call.port());
    let reason = ruling.reason(rule, Direction::Egress);
    emit::refusal(slot, Hook::Connect, Verdict::Reset, reason, rule, &syn, now_ns);
    Some(())
}
