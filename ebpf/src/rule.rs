//! A block of rules before one SYN: take, look, give back.
//!
//! The `weir_*` functions are global BPF functions: the verifier checks each once, for any
//! arguments, rather than again for every rule of a block and every path that leads to it. That is
//! why they take numbers and find the rule again.

use weir_common::{
    addr::Addr,
    gcra::{self, Params, Step, Taken},
    layout::{Direction, MAX_RULES, RULE_SHADOW, Rule, RuleKind, SOURCE_LINES},
    nh,
    source::{self, SourceParams},
    verdict::Reason,
    way,
    word::{TRIES, Word as _},
};

use crate::{
    hook::opaque,
    maps::{self, MapLine},
};

/// What a block of rules says of a SYN, packed into the number that a BPF function returns.
///
/// Bits: 0–4 the refusing rule and whether there is one, 5–9 the same of the first rule that would
/// have refused in shadow, 10 exempt, 11 probe, 12 and 13 why: the shared bucket, contention.
#[derive(Clone, Copy)]
pub struct Ruling(u32);

const REFUSED: u32 = 0;
const SHADOWED: u32 = 5;
const EXEMPT: u32 = 1 << 10;
const PROBE: u32 = 1 << 11;
const WHY: u32 = 12;
/// Beside a rule's number: there is one.
const SOME: u32 = 1 << 4;

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
            1 => Reason::SourceCrowded,
            _ => Reason::Contended,
        }
    }
}

#[inline(always)]
fn rule_number(bits: u32) -> Option<u32> {
    if bits & SOME == 0 { None } else { Some(bits & 0xf) }
}

/// Why a rule refuses when its own bucket is empty.
#[inline(always)]
pub fn plain_reason(rule: &Rule, direction: Direction) -> Reason {
    if rule.kind == RuleKind::Source as u8 {
        Reason::SourceRate
    } else if rule.kind == RuleKind::Probe as u8 {
        Reason::ProbeRate
    } else {
        match direction {
            Direction::Ingress => Reason::ConnectionRate,
            Direction::Egress => Reason::OutboundRate,
        }
    }
}

/// Takes from every rule of the block that concerns this peer, or from none.
#[inline(always)]
pub fn judge(block: u32, shadow: bool, peer: Addr, now_ns: u64) -> Ruling {
    Ruling(weir_judge(block, u32::from(shadow), peer.high, peer.low, now_ns) as u32)
}

/// The first rule that would certainly refuse this peer; `None` also where only TC can tell.
/// Writes nothing.
#[inline(always)]
pub fn foresee(block: u32, peer: Addr, now_ns: u64) -> Option<u32> {
    rule_number(weir_foresee(block, peer.high, peer.low, now_ns) as u32)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_judge(block: u32, shadow: u32, high: u64, low: u64, now_ns: u64) -> u64 {
    let peer = Addr { high, low };
    let Some(rules) = maps::block(block) else { return 0 };
    // Bit i: rule i took a token; bit 16 + i: from the bucket of crowded-out sources. Built without
    // a branch, so that the verifier follows one path and not one for each subset of rules.
    let mut took = 0u32;
    let mut ruling = 0u32;
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
            return u64::from(EXEMPT);
        }
        let outcome = match take_uncontended(rule, now_ns) {
            Some(outcome) => outcome,
            None if rule.kind == RuleKind::Source as u8 => {
                weir_take_source(block, index, high, low, now_ns) as u32
            }
            None => weir_take(rule.cell, rule.cost, rule.burst, rule.step, now_ns) as u32,
        };
        took |= (outcome & TOOK | (outcome & CROWDED) << 15) << index;
        if outcome & TOOK == 0 {
            let why = (outcome >> 1 & 3) << WHY;
            if rule.flags & RULE_SHADOW == 0 && shadow == 0 {
                if took != 0 {
                    weir_give_back(block, took, high, low, now_ns);
                }
                return u64::from((SOME | index) << REFUSED | why);
            }
            if let Some(counts) = maps::counts(rule.cell) {
                counts.shadowed += 1;
            }
            if ruling == 0 {
                ruling = (SOME | index) << SHADOWED | why;
            }
        }
        if rule.kind == RuleKind::Probe as u8 {
            // A probe spends from its own bucket and from nothing else.
            return u64::from(ruling | PROBE);
        }
    }
    u64::from(ruling)
}

/// Makes the verifier forget what it knows of a value, given any other that it does not know.
///
/// Where a loop calls functions, verifiers before 6.4 compare such values exactly when they look
/// for a state that they have seen: each rule would double the states of the next.
#[inline(always)]
fn unknown(value: u32, any: u64) -> u32 {
    (opaque((u64::from(value) ^ any) as usize) as u64 ^ any) as u32
}

/// The first attempt at a bucket that is not per source, without a call: nearly always the last.
#[inline(always)]
fn take_uncontended(rule: &Rule, now_ns: u64) -> Option<u32> {
    if rule.kind == RuleKind::Source as u8 {
        return None;
    }
    let cell = maps::cell(rule.cell)?;
    let word = cell.load();
    match gcra::step(word, gcra::q8(now_ns), &params(rule)) {
        Step::Admit(next) => {
            cell.compare_exchange(word, next).ok()?;
            count_admitted(rule.cell, TOOK);
            Some(TOOK)
        }
        Step::Deny => Some(0),
        Step::DenyClamped(_) => None,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_foresee(block: u32, high: u64, low: u64, now_ns: u64) -> u64 {
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
        if rule.flags & RULE_SHADOW == 0 && weir_peek(block, index, high, low, now_ns) != 0 {
            return u64::from(SOME | index);
        }
    }
    0
}

/// A token was taken.
const TOOK: u32 = 1;
/// The bucket was the one that crowded-out sources share.
const CROWDED: u32 = 2;
/// Too many others changed the bucket at once.
const CONTENDED: u32 = 4;

/// Takes from a bucket that others change at the same time.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_take(cell: u32, cost: u64, burst: u64, step: u64, now_ns: u64) -> u64 {
    let Some(word) = maps::cell(cell) else { return u64::from(TOOK) };
    let result = code(gcra::take(&word, gcra::q8(now_ns), &Params { cost, burst, step }));
    count_admitted(cell, result);
    u64::from(result)
}

/// Takes from a source's bucket.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_take_source(block: u32, rule: u32, high: u64, low: u64, now_ns: u64) -> u64 {
    let mut result = u64::from(CONTENDED);
    for _ in 0..TRIES {
        result = weir_try_source(block, rule, high, low, now_ns);
        if result & u64::from(CONTENDED) == 0 {
            break;
        }
    }
    result
}

/// One attempt at a source's bucket.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_try_source(block: u32, rule: u32, high: u64, low: u64, now_ns: u64) -> u64 {
    let Some(rule) = find(block, rule) else { return u64::from(TOOK) };
    let Some((line, tag)) = source_place(rule, Addr { high, low }) else { return u64::from(TOOK) };
    let taken = source::attempt(&line, tag, now_ns, &source_params(rule));
    let result = code(taken.taken) | if taken.crowded { CROWDED } else { 0 };
    count_admitted(rule.cell, result);
    u64::from(result)
}

#[inline(always)]
fn count_admitted(cell: u32, result: u32) {
    if let Some(counts) = maps::counts(cell) {
        counts.admitted += u64::from(result & TOOK);
    }
}

#[inline(always)]
fn code(taken: Taken) -> u32 {
    match taken {
        Taken::Admitted => TOOK,
        Taken::Denied => 0,
        Taken::Contended => CONTENDED,
    }
}

/// Gives back what the rules `took & 0xffff` took; `took >> 16` says which of them from the
/// crowded-out sources' bucket. A refused SYN costs nobody anything.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_give_back(block: u32, took: u32, high: u64, low: u64, now_ns: u64) -> u64 {
    for index in 0..MAX_RULES as u32 {
        if took >> index & 1 != 0 {
            weir_give_back_one(block, index << 1 | took >> (16 + index) & 1, high, low, now_ns);
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
    let Some(limit) = find(block, rule >> 1) else { return 0 };
    if limit.kind == RuleKind::Source as u8 {
        for _ in 0..TRIES {
            if weir_give_back_source(block, rule, high, low, now_ns) != 0 {
                break;
            }
        }
    } else if let Some(cell) = maps::cell(limit.cell) {
        gcra::refund(&cell, &params(limit));
    }
    if let Some(counts) = maps::counts(limit.cell) {
        counts.admitted = counts.admitted.wrapping_sub(1);
    }
    0
}

/// One attempt to give back to a source's bucket; 1 when it is done.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_give_back_source(
    block: u32,
    rule: u32,
    high: u64,
    low: u64,
    now_ns: u64,
) -> u64 {
    let Some(limit) = find(block, rule >> 1) else { return 1 };
    let Some((line, tag)) = source_place(limit, Addr { high, low }) else { return 1 };
    let crowded = rule & 1 != 0;
    u64::from(source::attempt_refund(&line, tag, crowded, now_ns, &source_params(limit)))
}

/// Whether a take would certainly fail.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_peek(block: u32, rule: u32, high: u64, low: u64, now_ns: u64) -> u64 {
    let Some(rule) = find(block, rule) else { return 0 };
    let denied = if rule.kind == RuleKind::Source as u8 {
        source_place(rule, Addr { high, low })
            .is_some_and(|(line, tag)| source::would_deny(&line, tag, now_ns, &source_params(rule)))
    } else {
        maps::cell(rule.cell)
            .is_some_and(|cell| gcra::would_deny(cell.load(), gcra::q8(now_ns), &params(rule)))
    };
    u64::from(denied)
}

#[inline(always)]
fn find(block: u32, rule: u32) -> Option<&'static Rule> {
    // The mask says nothing new, but it says it about the register that becomes an address.
    let rule = opaque(rule as usize & 0xf);
    if rule >= MAX_RULES { None } else { Some(&maps::block(block)?.rules[rule]) }
}

#[inline(always)]
fn params(rule: &Rule) -> Params {
    Params { cost: rule.cost, burst: rule.burst, step: rule.step }
}

#[inline(always)]
fn source_params(rule: &Rule) -> SourceParams {
    SourceParams { cost: rule.cost, burst: rule.burst, step: rule.step }
}

/// The line and tag of a peer's own bucket under a rule.
#[inline(always)]
fn source_place(rule: &Rule, peer: Addr) -> Option<(MapLine, u64)> {
    let bits = if peer.is_v4() { 96 + u32::from(rule.group_v4) } else { u32::from(rule.group_v6) };
    let group = peer.masked(Addr::mask(bits));
    let hash = nh::hash(maps::secret()?, [group.high, group.low, u64::from(rule.cell)]);
    let line = maps::source_line(way::line_of(hash, SOURCE_LINES))?;
    Some((line, way::tag(hash)))
}
