//! Counting decisions, and telling of some.

use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
};
use weir_common::{
    addr::Addr,
    breaker::Edge,
    layout::{Event, HOOKS, Hook, Rule},
    verdict::{REASONS, Reason, VERDICTS, Verdict},
};

use crate::{hook::opaque, maps, parse::Segment, track::Owner};

/// Counts one decision of a workload at a hook.
#[inline(always)]
pub fn count(slot: u32, hook: Hook, verdict: Verdict, reason: Reason) {
    tally(slot * HOOKS + hook as u32, verdict as u32, reason as u32);
}

#[inline(always)]
fn tally(index: u32, verdict: u32, reason: u32) {
    if let Some(tally) = maps::tally(index) {
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
    let decision = (hook as u32) << 16 | (verdict as u32) << 8 | reason as u32;
    weir_refusal(syn, slot, decision, rule.cell, now_ns);
}

/// A function of its own for its stack. `decision` is `hook << 16 | verdict << 8 | reason`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_refusal(
    syn: *const Segment,
    slot: u32,
    decision: u32,
    cell: u32,
    now_ns: u64,
) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    let Some(syn) = (unsafe { syn.as_ref() }) else { return 0 };
    let (hook, verdict, reason) = (decision >> 16, decision >> 8 & 0xff, decision & 0xff);
    tally(slot * HOOKS + hook, verdict, reason);
    let Some(counts) = maps::counts(cell) else { return 0 };
    // What shadow mode lets pass is counted where the rules are: there may be several.
    if verdict != Verdict::Shadow as u32 {
        counts.refused += 1;
    }
    if now_ns.wrapping_sub(counts.last_event_ns) < maps::event_interval_ns() {
        return 0;
    }
    counts.last_event_ns = now_ns;
    let Some(mut entry) = maps::EVENTS.reserve::<Event>(0) else {
        tally(slot * HOOKS + hook, Verdict::Note as u32, Reason::EventLost as u32);
        return 0;
    };
    // Written in place: the stack has no room for a second copy.
    entry.write(Event {
        time_ns: now_ns,
        source: syn.source,
        destination: syn.destination,
        ports: syn.ports,
        slot,
        cell,
        reason: reason as u8,
        verdict: verdict as u8,
        hook: hook as u8,
        _reserved: 0,
    });
    entry.submit(0);
    0
}

/// Counts a breaker's change and tells of it, with the connection at `place` that caused it, if any.
#[inline(always)]
pub fn edge(owner: Owner, cell: u32, edge: Edge, place: u32, now_ns: u64) {
    let reason = match edge {
        Edge::None => return,
        Edge::Tripped => Reason::BreakerTripped,
        Edge::Reopened => Reason::BreakerReopened,
        Edge::HalfOpened => Reason::BreakerHalfOpened,
        Edge::Closed => Reason::BreakerClosed,
    };
    weir_edge(owner, cell, reason as u32, place, now_ns);
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_edge(owner: u32, cell: u32, reason: u32, place: u32, now_ns: u64) -> u64 {
    let (slot, hook) = (owner >> 1, if owner & 1 == 0 { Hook::TcIngress } else { Hook::TcEgress });
    tally(slot * HOOKS + hook as u32, Verdict::Note as u32, reason);
    let Some(mut entry) = maps::EVENTS.reserve::<Event>(0) else {
        count(slot, hook, Verdict::Note, Reason::EventLost);
        return 0;
    };
    let mut event = Event {
        time_ns: now_ns,
        source: Addr { high: 0, low: 0 },
        destination: Addr { high: 0, low: 0 },
        ports: 0,
        slot,
        cell,
        reason: reason as u8,
        verdict: Verdict::Note as u8,
        hook: hook as u8,
        _reserved: 0,
    };
    if place != 0
        && let Some(connection) = maps::slot(place - 1)
    {
        (event.source, event.destination) = (connection.remote, connection.local);
        event.ports = connection.ports.rotate_left(16);
        if owner & 1 != 0 {
            (event.source, event.destination) = (connection.local, connection.remote);
            event.ports = connection.ports;
        }
    }
    entry.write(event);
    entry.submit(0);
    0
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
