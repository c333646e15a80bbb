//! A block of rules before one SYN: take, look, give back.
//!
//! The `weir_*` functions are global BPF functions: the verifier checks each once, for any
//! arguments, rather than again for every rule of a block and every path that leads to it. That is
//! why they take numbers and find the rule again.

pub mod lease;
pub mod load;
mod source;

use weir_common::{
    addr::Addr,
    breaker::Admission,
    gcra::{self, Params, Step, Taken},
    layout::{
        Direction, MAX_RULES, RULE_LEASE, RULE_QUOTA, RULE_SHADOW, RULE_WINDOW, Rule, RuleKind,
        Workload,
    },
    load::{self as loads, Bounds, Change, Opened},
    source as buckets,
    verdict::Reason,
    window::{self, Window},
    word::{TRIES, Word as _},
};

use crate::{
    breaker,
    decide::{self, Site},
    hook::opaque,
    maps,
    track::{self, Owner},
};

/// What a block of rules says of a SYN, packed into the number that a BPF function returns.
///
/// Bits: 0–4 the refusing rule and whether there is one, 5–9 the same of the first rule that would
/// have refused in shadow, 10 exempt, 11 probe, 12 and 13 why: the shared bucket, contention, the
/// rule's other reason. 16–30 which rules took something, 32–46 of those from what crowded-out sources
/// share; 48–55 and 56–63 the epochs of breakers that admitted it.
#[derive(Clone, Copy)]
pub struct Ruling(pub u64);

const REFUSED: u32 = 0;
const SHADOWED: u32 = 5;
const EXEMPT: u64 = 1 << 10;
const PROBE: u64 = 1 << 11;
const WHY: u32 = 12;
const TAKEN: u32 = 16;
const FROM_CROWD: u32 = 32;
const EPOCHS: u32 = 48;
/// Beside a rule's number: there is one.
const SOME: u64 = 1 << 4;

impl Ruling {
    /// The rule that refuses.
    #[inline(always)]
    pub fn refused(self) -> Option<u32> {
        rule_number(self.0 >> REFUSED)
    }

    /// The first rule that would have refused, were it not in shadow.
    #[inline(always)]
    pub fn shadowed(self) -> Option<u32> {
        rule_number(self.0 >> SHADOWED)
    }

    /// Why the packet passes when nothing refuses it.
    #[inline(always)]
    pub fn admission(self) -> Reason {
        match self.0 & (EXEMPT | PROBE) {
            EXEMPT => Reason::Exempt,
            PROBE => Reason::Probe,
            _ => Reason::Admitted,
        }
    }

    /// Why this rule refused.
    #[inline(always)]
    pub fn reason(self, rule: &Rule, direction: Direction) -> Reason {
        match self.0 >> WHY & 3 {
            0 => plain_reason(rule, direction),
            1 if rule.kind == RuleKind::Breaker as u8 => Reason::EjectionSpared,
            1 => Reason::SourceCrowded,
            2 => Reason::Contended,
            _ if rule.kind == RuleKind::Breaker as u8 => Reason::BreakerProbing,
            _ if rule.flags & RULE_LEASE != 0 => Reason::QuotaAsked,
            _ => Reason::MaxHandshakes,
        }
    }

    /// What the rules of its block took, as [`weir_give_back`] and [`crate::track::open`] want it.
    #[inline(always)]
    pub fn took(self) -> u64 {
        self.0 >> TAKEN
    }
}

#[inline(always)]
fn rule_number(bits: u64) -> Option<u32> {
    if bits & SOME == 0 { None } else { Some(bits as u32 & 0xf) }
}

/// Why a rule refuses when its own bucket is empty.
#[inline(always)]
pub fn plain_reason(rule: &Rule, direction: Direction) -> Reason {
    if rule.kind == RuleKind::Source as u8 {
        Reason::SourceRate
    } else if rule.kind == RuleKind::Probe as u8 {
        Reason::ProbeRate
    } else if rule.kind == RuleKind::Load as u8 {
        Reason::MaxConnections
    } else if rule.kind == RuleKind::SourceLoad as u8 {
        Reason::MaxConnectionsPerSource
    } else if rule.kind == RuleKind::Breaker as u8 {
        Reason::BreakerOpen
    } else if rule.flags & RULE_QUOTA != 0 {
        Reason::Quota
    } else {
        match direction {
            Direction::Ingress => Reason::ConnectionRate,
            Direction::Egress => Reason::OutboundRate,
        }
    }
}

/// Takes from every rule of the block that concerns this peer, up to the one that refuses: what the
/// others gave must be given back. In shadow no rule refuses; `unaudited`, none that counts connections does.
#[inline(always)]
pub fn judge(site: Site, shadow: bool, peer: Addr, now_ns: u64) -> Ruling {
    let unaudited = site.is_tracked() && decide::is_unaudited(now_ns);
    let lenient = if shadow { ALL } else { 0 } | if unaudited { LOADS } else { 0 };
    let owner_and_lenient = site.owner() << 8 | lenient;
    Ruling(weir_judge(site.block(), owner_and_lenient, peer.high, peer.low, now_ns))
}

/// A rule of a block, by its number.
#[inline(always)]
pub fn find(block: u32, rule: Option<u32>) -> Option<&'static Rule> {
    rule_of(block, rule?)
}

/// Whether a block has a rule that must have its connections tracked and is not in shadow.
#[inline(always)]
pub fn enforces_tracked(block: u32) -> bool {
    weir_enforces_tracked(block) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_enforces_tracked(block: u32) -> u64 {
    let Some(rules) = maps::block(block) else { return 0 };
    let mut enforces = 0;
    for index in 0..MAX_RULES {
        let rule = &rules.rules[index];
        if (index as u32) < rules.count
            && rule.kind >= RuleKind::Load as u8
            && rule.flags & RULE_SHADOW == 0
        {
            enforces = 1;
        }
    }
    enforces
}

/// Whether a rule is about how many connections there are.
#[inline(always)]
pub fn counts_connections(rule: &Rule) -> bool {
    rule.kind == RuleKind::Load as u8 || rule.kind == RuleKind::SourceLoad as u8
}

/// Rules that do not refuse: those that count connections, all.
const LOADS: u32 = 1 << RuleKind::Load as u32 | 1 << RuleKind::SourceLoad as u32;
const ALL: u32 = 0xff;
const _: () = assert!((RuleKind::Breaker as u32) < 8);

/// Gives back what rules that are about tracked connections took, because this one is not tracked
/// anew.
#[inline(always)]
pub fn give_back_tracked(block: u32, took: u64, peer: Addr, now_ns: u64) {
    weir_give_back(block, took | TRACKED_ONLY, peer.high, peer.low, now_ns);
}

/// Gives back all that was taken.
#[inline(always)]
pub fn give_back(block: u32, took: u64, peer: Addr, now_ns: u64) {
    weir_give_back(block, took, peer.high, peer.low, now_ns);
}

/// The first rule that would certainly refuse this peer, and why; nothing also where only TC can
/// tell. Writes nothing.
#[inline(always)]
pub fn foresee(block: u32, unaudited: bool, peer: Addr, now_ns: u64) -> Ruling {
    let lenient = if unaudited { LOADS } else { 0 };
    Ruling(weir_foresee(block, lenient, peer.high, peer.low, now_ns))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_judge(
    block: u32,
    owner_and_lenient: u32,
    high: u64,
    low: u64,
    now_ns: u64,
) -> u64 {
    // Taken apart where they are needed: the stack has no room for both of them.
    let part = |index: u32| unknown(owner_and_lenient.into(), index.into()) as u32;
    let peer = Addr { high, low };
    let Some(rules) = maps::block(block) else { return 0 };
    // As in a ruling, from bit 16 on. Built without a branch, so that the verifier follows one path
    // and not one for each subset of rules.
    let mut took = 0u64;
    let mut ruling = 0u64;
    for index in 0..MAX_RULES as u32 {
        took = unknown(took, now_ns);
        ruling = unknown(ruling, now_ns);
        if index >= rules.count {
            break;
        }
        let rule = &rules.rules[index as usize];
        if peer.masked(rule.mask) != rule.peer {
            continue;
        }
        if rule.kind == RuleKind::Exempt as u8 {
            return EXEMPT;
        }
        let outcome = match take_uncontended(rule, now_ns) {
            Some(outcome) => outcome,
            None if rule.kind == RuleKind::Source as u8 => {
                source::weir_take_source(block, index, high, low, now_ns) as u32
            }
            None if rule.kind == RuleKind::SourceLoad as u8 => {
                load::weir_take_source_load(block, index, high, low, now_ns) as u32
            }
            None if rule.kind == RuleKind::Breaker as u8 => {
                ask(rule, part(index) >> 8, now_ns) as u32
            }
            None if rule.kind == RuleKind::Load as u8 => {
                load::weir_take_load(rule.cell, rule.cost, rule.burst, now_ns) as u32
            }
            None if rule.flags & RULE_QUOTA != 0 => {
                weir_spend(block, index | (part(index) as u32 & 0xff) << 8, now_ns) as u32
            }
            None => weir_take(rule.cell, rule.cost, rule.burst, rule.step, now_ns) as u32,
        };
        let outcome = u64::from(outcome);
        took |= (outcome & TOOK | (outcome & CROWDED) << 15) << index;
        if rule.kind == RuleKind::Breaker as u8 {
            // The second breaker's epoch stands behind the first one's.
            let second = took >> 31 & 1;
            took |= (outcome >> 8 & 0xff) << (EPOCHS - TAKEN + 8 * second as u32);
            took |= (outcome & BREAKER) << (31 - BREAKER.trailing_zeros());
        }
        if outcome & TOOK == 0 {
            let mut why = (outcome >> 1 & 3) << WHY;
            if rule.flags & RULE_SHADOW == 0 && part(index) >> rule.kind & 1 == 0 {
                if !breaker::is_spared(rule, block, index, now_ns) {
                    return (SOME | u64::from(index)) << REFUSED | why | took << TAKEN;
                }
                why = 1 << WHY;
            }
            if let Some(counts) = maps::counts(rule.cell) {
                counts.shadowed += 1;
            }
            if ruling == 0 {
                ruling = (SOME | u64::from(index)) << SHADOWED | why;
            }
        }
        if rule.kind == RuleKind::Probe as u8 {
            // A probe spends from its own bucket and from nothing else.
            return ruling | PROBE;
        }
    }
    ruling | took << TAKEN
}

/// Makes the verifier forget what it knows of a value, given any other that it does not know.
///
/// Where a loop calls functions, verifiers before 6.4 compare such values exactly when they look
/// for a state that they have seen: each rule would double the states of the next.
#[inline(always)]
pub fn unknown(value: u64, any: u64) -> u64 {
    opaque((value ^ any) as usize) as u64 ^ any
}

/// The first attempt at a bucket that is not per source, without a call: nearly always the last.
#[inline(always)]
fn take_uncontended(rule: &Rule, now_ns: u64) -> Option<u32> {
    if rule.kind == RuleKind::Source as u8
        || rule.kind >= RuleKind::Load as u8
        || rule.flags & RULE_QUOTA != 0
    {
        return None;
    }
    let cell = maps::cell(rule.cell)?;
    let word = cell.load();
    match gcra::step(word, gcra::q8(now_ns), &params(rule)) {
        Step::Admit(next) => {
            cell.compare_exchange(word, next).ok()?;
            count_admitted(rule.cell, TOOK as u32);
            Some(TOOK as u32)
        }
        Step::Deny => Some(0),
        Step::DenyClamped(_) => None,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_foresee(block: u32, lenient: u32, high: u64, low: u64, now_ns: u64) -> u64 {
    let peer = Addr { high, low };
    let Some(rules) = maps::block(block) else { return 0 };
    for index in 0..MAX_RULES as u32 {
        if index >= rules.count {
            break;
        }
        let rule = &rules.rules[index as usize];
        if peer.masked(rule.mask) != rule.peer {
            continue;
        }
        if rule.kind == RuleKind::Exempt as u8 || rule.kind == RuleKind::Probe as u8 {
            return 0;
        }
        if rule.flags & RULE_SHADOW != 0 || lenient >> rule.kind & 1 != 0 {
            continue;
        }
        let denied = weir_peek(block, index, high, low, now_ns);
        if denied != 0 {
            return SOME | u64::from(index) | (denied >> 1 & 3) << WHY;
        }
    }
    0
}

/// A token was taken.
const TOOK: u64 = 1;
/// The bucket was the one that crowded-out sources share.
const CROWDED: u64 = 2;
/// Too many others changed the bucket at once.
const CONTENDED: u64 = 4;
/// Nothing was taken, for the rule's other reason: handshakes, a half-open breaker, a lease that does
/// not suffice.
const OTHERWISE: u64 = CROWDED | CONTENDED;
/// A breaker admitted; bits 8 to 15 hold its epoch.
const BREAKER: u64 = 8;
/// A quota would have given something, and nothing was taken: there is nothing to give back.
const LOOKED: u64 = TOOK | CROWDED;
/// In what is given back: only by rules about tracked connections.
const TRACKED_ONLY: u64 = 1 << 63;

/// Takes from a workload's budget for resets.
#[inline(always)]
pub fn take_reset(workload: &Workload, now_ns: u64) -> bool {
    let Workload { reset_cell, reset_cost, reset_burst, .. } = *workload;
    weir_take(reset_cell, reset_cost, reset_burst, 0, now_ns) == TOOK
}

/// Whether a workload's budget for resets has one left.
#[inline(always)]
pub fn may_reset(workload: &Workload, now_ns: u64) -> bool {
    let Workload { reset_cell, reset_cost, reset_burst, .. } = *workload;
    let params = Params { cost: reset_cost, burst: reset_burst, step: 0 };
    maps::cell(reset_cell)
        .is_none_or(|cell| !gcra::would_deny(cell.load(), gcra::q8(now_ns), &params))
}

/// Takes from a bucket that others change at the same time.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_take(cell: u32, cost: u64, burst: u64, step: u64, now_ns: u64) -> u64 {
    let Some(word) = maps::cell(cell) else { return TOOK };
    let result = code(gcra::take(&word, gcra::q8(now_ns), &Params { cost, burst, step }));
    count_admitted(cell, result as u32);
    result
}

/// Spends from a quota: by the rule's number in the lowest bits of `how`, with what is lenient from
/// bit 8 on. Others spend from it too, so a rule that is not enforced only looks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_spend(block: u32, how: u32, now_ns: u64) -> u64 {
    let Some(rule) = rule_of(block, how & 0xf) else { return LOOKED };
    let is_shadow = rule.flags & RULE_SHADOW != 0 || how >> 8 >> rule.kind & 1 != 0;
    if !is_shadow && rule.flags & RULE_LEASE != 0 {
        return lease::weir_lease(block, how & 0xf, now_ns);
    }
    if !is_shadow && rule.flags & RULE_WINDOW == 0 {
        return weir_take(rule.cell, rule.cost, rule.burst, rule.step, now_ns);
    }
    let result =
        if is_shadow { if denies(rule, now_ns) { 0 } else { LOOKED } } else { hit(rule, now_ns) };
    count_admitted(rule.cell, result as u32);
    result
}

/// Counts a hit in a window.
#[inline(always)]
fn hit(rule: &Rule, now_ns: u64) -> u64 {
    let (Some(word), Some(window)) = (maps::cell(rule.cell), window_at(rule.cost, now_ns)) else {
        return LOOKED;
    };
    match window::hit(&word, window, 1) {
        None => CONTENDED,
        Some(counted) if counted.after > rule.burst => 0,
        Some(_) => TOOK,
    }
}

/// Whether a bucket or a window would certainly deny.
#[inline(always)]
fn denies(rule: &Rule, now_ns: u64) -> bool {
    if rule.flags & RULE_LEASE != 0 {
        return lease::denies(rule, now_ns);
    }
    let Some(cell) = maps::cell(rule.cell) else { return false };
    if rule.flags & RULE_WINDOW == 0 {
        return gcra::would_deny(cell.load(), gcra::q8(now_ns), &params(rule));
    }
    window_at(rule.cost, now_ns)
        .is_some_and(|window| window.step(cell.load(), 1).after > rule.burst)
}

#[inline(always)]
fn window_at(period_s: u64, now_ns: u64) -> Option<Window> {
    // A rule without a period is none; the compiler must not think of dividing by it.
    (period_s != 0).then(|| Window::at(maps::realtime_s(now_ns), period_s))
}

/// Gives a hit back.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_unhit(cell: u32, period_s: u64, now_ns: u64) -> u64 {
    if let (Some(word), Some(window)) = (maps::cell(cell), window_at(period_s, now_ns)) {
        window::give_back(&word, window, 1);
    }
    0
}

/// Asks a breaker.
#[inline(always)]
fn ask(rule: &Rule, owner: Owner, now_ns: u64) -> u64 {
    let said = breaker::admit(rule, owner, now_ns);
    let result = match said & 0xff {
        breaker::YES => TOOK | BREAKER | said & 0xff00,
        breaker::NOT_NOW => OTHERWISE,
        breaker::CONTENDED => CONTENDED,
        _ => 0,
    };
    count_admitted(rule.cell, result as u32);
    result
}

#[inline(always)]
fn count_admitted(cell: u32, result: u32) {
    if let Some(counts) = maps::counts(cell) {
        counts.admitted += u64::from(result) & TOOK;
    }
}

#[inline(always)]
fn code(taken: Taken) -> u64 {
    match taken {
        Taken::Admitted => TOOK,
        Taken::Denied => 0,
        Taken::Contended => CONTENDED,
    }
}

/// Gives back what rules took: see [`Ruling::took`]. A refused SYN costs nobody anything.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_give_back(block: u32, took: u64, high: u64, low: u64, now_ns: u64) -> u64 {
    // The epochs of breakers stand in the order of their rules.
    let mut epochs = took >> (EPOCHS - TAKEN) & 0xffff;
    for index in 0..MAX_RULES as u32 {
        epochs = unknown(epochs, now_ns);
        if took >> index & 1 != 0 {
            let crowded = (took >> (FROM_CROWD - TAKEN + index)) as u32 & 1;
            let only = (took >> 63) as u32;
            let rule = (epochs as u32 & 0xff) << 6 | only << 5 | index << 1 | crowded;
            if weir_give_back_one(block, rule, high, low, now_ns) != 0 {
                epochs >>= 8;
            }
        }
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_give_back_one(
    block: u32,
    rule: u32,
    high: u64,
    low: u64,
    now_ns: u64,
) -> u64 {
    let Some(limit) = rule_of(block, rule >> 1 & 0xf) else { return 0 };
    if rule >> 5 & 1 != 0 && limit.kind < RuleKind::Load as u8 {
        return 0;
    }
    if limit.flags & RULE_QUOTA != 0 && rule & 1 != 0 {
        return 0;
    }
    if limit.kind == RuleKind::Source as u8 {
        for _ in 0..TRIES {
            if source::weir_give_back_source(block, rule, high, low, now_ns) != 0 {
                break;
            }
        }
    } else if limit.kind == RuleKind::Load as u8 {
        track::weir_change(limit.cell, Change::Abandoned as u32, now_ns, now_ns);
    } else if limit.kind == RuleKind::SourceLoad as u8 {
        let place = load::note(limit, Addr { high, low }, rule & 1 != 0, now_ns);
        track::weir_change_source(place, Change::Abandoned as u32, now_ns, now_ns);
    } else if limit.kind == RuleKind::Breaker as u8 {
        breaker::take_back(limit.cell, rule >> 6 & 0xff, 0, now_ns);
    } else if limit.flags & RULE_LEASE != 0 {
        lease::weir_unlease(block, rule >> 1 & 0xf, now_ns);
    } else if limit.flags & RULE_WINDOW != 0 {
        weir_unhit(limit.cell, limit.cost, now_ns);
    } else if let Some(cell) = maps::cell(limit.cell) {
        gcra::refund(&cell, &params(limit));
    }
    if let Some(counts) = maps::counts(limit.cell) {
        counts.admitted = counts.admitted.wrapping_sub(1);
    }
    u64::from(limit.kind == RuleKind::Breaker as u8)
}

/// Whether a take would certainly fail: 1, beside bits that say why as a taking function does.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_peek(block: u32, index: u32, high: u64, low: u64, now_ns: u64) -> u64 {
    let Some(rule) = rule_of(block, index) else { return 0 };
    let peer = Addr { high, low };
    if rule.kind == RuleKind::Load as u8 {
        let bounds = Bounds { connections: rule.cost, handshakes: rule.burst };
        return maps::cell(rule.cell).map_or(0, |cell| {
            match loads::would_refuse(cell.load(), now_ns, bounds) {
                None => 0,
                Some(Opened::TooManyHandshakes) => 1 | OTHERWISE,
                Some(_) => 1,
            }
        });
    }
    if rule.kind == RuleKind::Breaker as u8 {
        return match breaker::peek(rule, now_ns) {
            None => 0,
            Some(_) if breaker::is_spared(rule, block, index, now_ns) => 0,
            Some(Admission::Probing) => 1 | OTHERWISE,
            Some(_) => 1,
        };
    }
    let denied = if rule.kind == RuleKind::Source as u8 {
        source::place(rule, peer)
            .and_then(|(index, tag)| Some((maps::source_line(index)?, tag)))
            .is_some_and(|(line, tag)| {
                buckets::would_deny(&line, tag, now_ns, &source::params(rule))
            })
    } else if rule.kind == RuleKind::SourceLoad as u8 {
        load::place(rule, peer).is_some_and(|(index, tag)| {
            let place = load::place_of(load::weir_place(index, tag, now_ns));
            maps::source_load_line(index)
                .is_some_and(|line| loads::refuses_in(&line, place, now_ns, rule.cost))
        })
    } else {
        denies(rule, now_ns)
    };
    u64::from(denied)
}

/// A rule of a block, by its number.
#[inline(always)]
pub fn rule_of(block: u32, rule: u32) -> Option<&'static Rule> {
    // The mask says nothing new, but it says it about the register that becomes an address.
    let rule = opaque(rule as usize & 0xf);
    if rule >= MAX_RULES { None } else { Some(&maps::block(block)?.rules[rule]) }
}

#[inline(always)]
fn params(rule: &Rule) -> Params {
    Params { cost: rule.cost, burst: rule.burst, step: rule.step }
}
