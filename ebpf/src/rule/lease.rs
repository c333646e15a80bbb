//! Quotas of the fleet, spent from what this node leased: see [`weir_common::lease`].

use weir_common::{
    layout::Rule,
    lease::{Assumed, Cell, Taken, Window},
};

use super::{CONTENDED, LOOKED, OTHERWISE, TOOK, count_admitted, rule_of};
use crate::{handup, maps};

/// An agent that has not lived for so long asks no store: 3 seconds.
const DEAF_NS: u64 = 3_000_000_000;

/// Spends a hit of the lease. Where it does not suffice, somebody must ask the store; where nobody can,
/// the quota's own policy decides by what this node may admit alone.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_lease(block: u32, index: u32, now_ns: u64) -> u64 {
    let Some(rule) = rule_of(block, index) else { return LOOKED };
    let (Some(line), Some(window)) = (maps::cell_line(rule.cell), window(rule, now_ns)) else {
        return LOOKED;
    };
    let (cell, limit) = (Cell(&line), rule.burst as u32);
    let result = match cell.take(window, limit, 1) {
        Taken::Admitted { low, .. } => {
            if low && cell.poke() {
                handup::low(rule.cell);
            }
            TOOK
        }
        Taken::Exhausted => 0,
        Taken::Contended => CONTENDED,
        Taken::Short if can_ask(now_ns) => OTHERWISE,
        Taken::Short => match cell.assume(window, limit, 1) {
            // It stays counted whatever comes of the SYN: the store may have heard of it.
            Assumed::Admitted => LOOKED,
            Assumed::Refused => 0,
        },
    };
    count_admitted(rule.cell, result as u32);
    result
}

/// Whether the quota is certainly spent for this window.
#[inline(always)]
pub fn denies(rule: &Rule, now_ns: u64) -> bool {
    let (Some(line), Some(window)) = (maps::cell_line(rule.cell), window(rule, now_ns)) else {
        return false;
    };
    let cell = Cell(&line);
    cell.left(window) == 0 && cell.is_exhausted(window, rule.burst as u32)
}

/// Gives a hit back.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_unlease(block: u32, index: u32, now_ns: u64) -> u64 {
    if let Some(rule) = rule_of(block, index)
        && let (Some(line), Some(window)) = (maps::cell_line(rule.cell), window(rule, now_ns))
    {
        Cell(&line).put_back(window);
    }
    0
}

#[inline(always)]
fn can_ask(now_ns: u64) -> bool {
    !maps::store_is_away() && now_ns.saturating_sub(maps::heartbeat_ns()) < DEAF_NS
}

/// The number of the window, as the agent has it (`fleet::terms`).
#[inline(always)]
fn window(rule: &Rule, now_ns: u64) -> Option<Window> {
    // A rule without a period is none; the compiler must not think of dividing by it.
    (rule.cost != 0).then(|| (maps::realtime_s(now_ns) / rule.cost) as Window)
}
