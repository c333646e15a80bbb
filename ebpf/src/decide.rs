//! The decision at a TC hook: the only place that spends.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use weir_common::{
    gcra::{self, Params, Taken},
    layout::{Direction, Hook, RULE_DROP, Workload},
    verdict::{Reason, Verdict},
};

use crate::{
    emit,
    hook::{NEXT, SHOT, Tc},
    maps,
    parse::{Parsed, Syn},
    pending, reply, rule, workload,
};

/// Judges one packet and returns the hook's code.
#[inline(always)]
pub fn run(tc: &Tc, direction: Direction) -> i32 {
    let hook = match direction {
        Direction::Ingress => Hook::TcIngress,
        Direction::Egress => Hook::TcEgress,
    };
    let mut syn = Syn::empty();
    match tc.parse(&mut syn) {
        Parsed::Other => NEXT,
        Parsed::Syn => on_syn(tc, hook, &syn),
        Parsed::Fragment => skip(tc, hook, Reason::Fragment),
        Parsed::Malformed | Parsed::Short => skip(tc, hook, Reason::Malformed),
        Parsed::TinyFragment => on_hidden(tc, hook, Reason::TinyFragment),
        Parsed::HeaderChain => on_hidden(tc, hook, Reason::HeaderChain),
    }
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
fn on_syn(tc: &Tc, hook: Hook, syn: &Syn) -> i32 {
    let direction = hook.direction();
    let Some(slot) = workload::at(tc) else { return NEXT };
    let Some(workload) = maps::workload(slot) else { return NEXT };
    let Some(rules) = workload::rules(slot, workload, direction, syn.port()) else {
        emit::count(slot, hook, Verdict::Pass, Reason::NoRule);
        return NEXT;
    };
    let now_ns = now();
    let recalled = pending::recall(slot, direction, syn, now_ns);
    if recalled.is_live() {
        emit::count(slot, hook, Verdict::Pass, Reason::Retransmission);
        return NEXT;
    }
    let shadow = in_shadow(workload, now_ns);
    let peer = match direction {
        Direction::Ingress => syn.source,
        Direction::Egress => syn.destination,
    };
    let ruling = rule::judge(rules.index, shadow, peer, now_ns);
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
    if let Some(rule) = rules.get(ruling.shadowed()) {
        emit::refusal(
            slot,
            hook,
            Verdict::Shadow,
            ruling.reason(rule, direction),
            rule,
            syn,
            now_ns,
        );
    } else {
        emit::count(slot, hook, Verdict::Pass, ruling.admission());
        emit::log(slot, Verdict::Pass, ruling.admission(), syn);
    }
    if ruling.admission() != Reason::Exempt && !recalled.remember(now_ns) {
        emit::count(slot, hook, Verdict::Note, Reason::NotRemembered);
    }
    NEXT
}

/// Resets have a budget, or spoofed SYNs would make this node their amplifier.
#[inline(always)]
pub fn refusal(workload: &Workload, syn: &Syn, drop: bool, now_ns: u64) -> Verdict {
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
