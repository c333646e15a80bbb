//! The decision at a TC hook: the only place that spends.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use weir_common::{
    gcra::{self, Params, Taken},
    layout::{Direction, Hook, RULE_DROP, TRACKED, Workload},
    verdict::{Reason, Verdict},
};

use crate::{
    emit,
    hook::{NEXT, SHOT, Tc},
    maps,
    parse::{Parsed, Segment},
    pending, reply, rule, track, workload,
};

/// Judges one packet and returns the hook's code.
#[inline(always)]
pub fn run(tc: &Tc, direction: Direction) -> i32 {
    let hook = match direction {
        Direction::Ingress => Hook::TcIngress,
        Direction::Egress => Hook::TcEgress,
    };
    let mut segment = Segment::empty();
    match tc.parse(&mut segment) {
        Parsed::Other => NEXT,
        Parsed::Syn => on_syn(tc, hook, &segment),
        Parsed::Later => follow(tc, hook, &segment),
        Parsed::Fragment => skip(tc, hook, Reason::Fragment),
        Parsed::Malformed | Parsed::Short => skip(tc, hook, Reason::Malformed),
        Parsed::TinyFragment => on_hidden(tc, hook, Reason::TinyFragment),
        Parsed::HeaderChain => on_hidden(tc, hook, Reason::HeaderChain),
    }
}

/// A segment that starts no connection is never refused: it may end one.
#[inline(always)]
fn follow(tc: &Tc, hook: Hook, segment: &Segment) -> i32 {
    if maps::tracks()
        && let Some(slot) = workload::at(tc)
        && let Some(workload) = maps::workload(slot)
        && workload.flags & TRACKED != 0
    {
        let (owner, now_ns) = (track::owner(slot, hook.direction()), now());
        if let Some(place) = track::find(segment, owner, now_ns) {
            place.follow(segment, owner, now_ns);
        }
    }
    NEXT
}

#[inline(always)]
fn skip(tc: &Tc, hook: Hook, reason: Reason) -> i32 {
    if let Some(slot) = workload::at(tc) {
        emit::count(slot, hook, Verdict::Pass, reason);
    }
    NEXT
}

/// A packet that hides what it is passes only where nothing is to be protected.
#[inline(always)]
fn on_hidden(tc: &Tc, hook: Hook, reason: Reason) -> i32 {
    let Some(slot) = workload::at(tc) else { return NEXT };
    let Some(workload) = maps::workload(slot) else { return NEXT };
    if !workload::has_rules(workload, hook.direction()) {
        return NEXT;
    }
    if in_shadow(workload, now()) {
        emit::count(slot, hook, Verdict::Shadow, reason);
        return NEXT;
    }
    emit::count(slot, hook, Verdict::Drop, reason);
    SHOT
}

#[inline(always)]
fn on_syn(tc: &Tc, hook: Hook, syn: &Segment) -> i32 {
    let direction = hook.direction();
    let Some(slot) = workload::at(tc) else { return NEXT };
    let Some(workload) = maps::workload(slot) else { return NEXT };
    let Some(rules) = workload::rules(slot, workload, direction, syn.port()) else {
        emit::count(slot, hook, Verdict::Pass, Reason::NoRule);
        return NEXT;
    };
    let now_ns = now();
    let owner = track::owner(slot, direction);
    let tracked = rules.tracked();
    let (mut recalled, mut known) = (None, track::Known::New);
    let repeated = if tracked {
        if let Some(place) = track::find(syn, owner, now_ns) {
            known = place.know(syn, owner);
        }
        known == track::Known::Repeated
    } else {
        let found = pending::recall(slot, direction, syn, now_ns);
        recalled = Some(found);
        found.is_live()
    };
    if repeated {
        emit::count(slot, hook, Verdict::Pass, Reason::Retransmission);
        return NEXT;
    }
    let shadow = in_shadow(workload, now_ns);
    let peer = match direction {
        Direction::Ingress => syn.source,
        Direction::Egress => syn.destination,
    };
    let unaudited = tracked && is_unaudited(now_ns);
    let ruling = rule::judge(rules.index, shadow, unaudited, peer, now_ns);
    if let Some(rule) = rules.get(ruling.refused()) {
        let reason = ruling.reason(rule, direction);
        let drop = rule.flags & RULE_DROP != 0;
        let verdict = refusal(workload, syn, drop, now_ns);
        emit::refusal(slot, hook, verdict, reason, rule, syn, now_ns);
        emit::log(slot, verdict, reason, syn);
        if verdict == Verdict::Reset {
            match reply::reset(tc, syn) {
                Some(code) => return code,
                None => emit::count(slot, hook, Verdict::Note, Reason::RewriteFailed),
            }
        } else if !drop && syn.answerable != 0 {
            emit::count(slot, hook, Verdict::Note, Reason::ResetLimited);
        }
        return SHOT;
    }
    let must_track = tracked && ruling.admission() == Reason::Admitted;
    if must_track && known == track::Known::Again {
        // The connection that has its addresses and ports is counted already.
        rule::give_back_tracked(rules.index, ruling.took(), peer, now_ns);
    } else if must_track && !track::open(syn, owner, rules.index, ruling.took(), now_ns) {
        rule::give_back(rules.index, ruling.took(), peer, now_ns);
        return without_room(tc, hook, slot, workload, syn, now_ns);
    }
    if let Some(rule) = rules.get(ruling.shadowed()) {
        let reason = match rule::counts_connections(rule) && unaudited {
            true => Reason::Unaudited,
            false => ruling.reason(rule, direction),
        };
        emit::refusal(slot, hook, Verdict::Shadow, reason, rule, syn, now_ns);
    } else {
        emit::count(slot, hook, Verdict::Pass, ruling.admission());
        emit::log(slot, Verdict::Pass, ruling.admission(), syn);
    }
    if ruling.admission() != Reason::Exempt
        && recalled.is_some_and(|recalled| !recalled.remember(now_ns))
    {
        emit::count(slot, hook, Verdict::Note, Reason::NotRemembered);
    }
    NEXT
}

/// What cannot be tracked cannot be counted: it is refused, or the limit would not hold.
#[inline(always)]
fn without_room(
    tc: &Tc,
    hook: Hook,
    slot: u32,
    workload: &Workload,
    syn: &Segment,
    now_ns: u64,
) -> i32 {
    if in_shadow(workload, now_ns) {
        emit::count(slot, hook, Verdict::Shadow, Reason::TableFull);
        return NEXT;
    }
    let verdict = refusal(workload, syn, false, now_ns);
    emit::count(slot, hook, verdict, Reason::TableFull);
    if verdict == Verdict::Reset
        && let Some(code) = reply::reset(tc, syn)
    {
        return code;
    }
    SHOT
}

/// Connections that nobody has audited for so long are counted, not refused: 5 minutes.
const UNAUDITED_NS: u64 = 300_000_000_000;

/// Whether no agent has lived for too long to believe the counts of connections.
#[inline(always)]
pub fn is_unaudited(now_ns: u64) -> bool {
    now_ns.saturating_sub(maps::heartbeat_ns()) > UNAUDITED_NS
}

/// Resets have a budget, or spoofed SYNs would make this node their amplifier.
#[inline(always)]
pub fn refusal(workload: &Workload, syn: &Segment, drop: bool, now_ns: u64) -> Verdict {
    if drop || syn.answerable == 0 {
        return Verdict::Drop;
    }
    let Some(cell) = maps::cell(workload.reset_cell) else { return Verdict::Drop };
    let budget = Params { cost: workload.reset_cost, burst: workload.reset_burst, step: 0 };
    match gcra::take(&cell, gcra::q8(now_ns), &budget) {
        Taken::Admitted => Verdict::Reset,
        Taken::Denied | Taken::Contended => Verdict::Drop,
    }
}

#[inline(always)]
pub fn in_shadow(workload: &Workload, now_ns: u64) -> bool {
    now_ns < workload.shadow_until_ns
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bpf_ktime_get_ns() }
}
