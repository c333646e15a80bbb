//! Counting decisions, and telling of some.

use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
};
use weir_common::{
    layout::{Event, HOOKS, Hook, Rule},
    verdict::{REASONS, Reason, VERDICTS, Verdict},
};

use crate::{hook::opaque, maps, parse::Segment};

/// Counts one decision of a workload at a hook.
#[inline(always)]
pub fn count(slot: u32, hook: Hook, verdict: Verdict, reason: Reason) {
    if let Some(tally) = maps::tally(slot * HOOKS + hook as u32) {
        // The compiler knows which numbers there are, the verifier must see them compared.
        let (verdict, reason) = (opaque(verdict as usize), opaque(reason as usize));
        if verdict < VERDICTS && reason < REASONS {
            tally.counts[verdict][reason] += 1;
        }
    }
}

/// Counts a refusal, at its workload and at its limit, and sends an event if the last is old.
#[inline(always)]
pub fn refusal(
    slot: u32,
    hook: Hook,
    verdict: Verdict,
    reason: Reason,
    rule: &Rule,
    syn: &Segment,
    now_ns: u64,
) {
    count(slot, hook, verdict, reason);
    let Some(counts) = maps::counts(rule.cell) else { return };
    // What shadow mode lets pass is counted where the rules are: there may be several.
    if verdict != Verdict::Shadow {
        counts.refused += 1;
    }
    if now_ns.wrapping_sub(counts.last_event_ns) < maps::event_interval_ns() {
        return;
    }
    counts.last_event_ns = now_ns;
    let Some(mut entry) = maps::EVENTS.reserve::<Event>(0) else {
        count(slot, hook, Verdict::Note, Reason::EventLost);
        return;
    };
    // Written in place: the stack has no room for a second copy.
    entry.write(Event {
        time_ns: now_ns,
        source: syn.source,
        destination: syn.destination,
        ports: syn.ports,
        slot,
        cell: rule.cell,
        reason: reason as u8,
        verdict: verdict as u8,
        hook: hook as u8,
        _reserved: 0,
    });
    entry.submit(0);
}

/// Logs a judged SYN, when the agent was started with `--bpf-log`; else the loader's constant makes
/// the call vanish. A function of its own for its stack.
#[inline(always)]
pub fn log(slot: u32, verdict: Verdict, reason: Reason, syn: &Segment) {
    if level_enabled(Level::Debug) {
        let decision = (verdict as u32) << 8 | reason as u32;
        weir_log(slot, decision, syn.ports, syn.source.low as u32);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_log(slot: u32, decision: u32, ports: u32, source: u32) -> u64 {
    debug!(
        (),
        "slot {} verdict {} reason {} source {:i} port {} to port {}",
        slot,
        decision >> 8,
        decision & 0xff,
        source,
        ports >> 16,
        ports & 0xffff
    );
    0
}
