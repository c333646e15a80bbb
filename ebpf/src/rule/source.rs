//! Buckets of sources in their map: see [`weir_common::source`].

use weir_common::{
    addr::Addr,
    gcra::Taken,
    layout::{Rule, SOURCE_LINES},
    source::{self, SourceParams},
    way,
    word::TRIES,
};

use super::{CONTENDED, CROWDED, TOOK, code, count_admitted, rule_of};
use crate::{hook::opaque, maps};

/// Takes from a source's bucket.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_take_source(block: u32, rule: u32, high: u64, low: u64, now_ns: u64) -> u64 {
    let mut result = CONTENDED;
    for _ in 0..TRIES {
        result = weir_try_source(block, rule, high, low, now_ns);
        if result & CONTENDED == 0 {
            break;
        }
    }
    result
}

/// One attempt at a source's bucket.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_try_source(block: u32, rule: u32, high: u64, low: u64, now_ns: u64) -> u64 {
    let Some(rule) = rule_of(block, rule) else { return TOOK };
    let Some((index, tag)) = place(rule, Addr { high, low }) else { return TOOK };
    let Some(line) = maps::source_line(index) else { return TOOK };
    // The compiler knows what the function returns, the verifier must see it.
    let way = opaque(weir_source_way(index, tag, now_ns) as usize) & (way::LINE - 1);
    let mut taken = source::take_from(&line, way, tag, now_ns, &params(rule));
    let place = (way as u64) << 32 | tag;
    if taken == Taken::Admitted && weir_has_rival(index, place, rule.step, now_ns) != 0 {
        taken = Taken::Contended;
        for _ in 0..TRIES {
            if weir_take_back(index, place, rule.cost, rule.step, now_ns) != 0 {
                break;
            }
        }
    }
    let result = code(taken) | if way == source::WAYS { CROWDED } else { 0 };
    count_admitted(rule.cell, result as u32);
    result
}

/// The way of a line from which a source's tokens are taken.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_source_way(line: u32, tag: u64, now_ns: u64) -> u64 {
    maps::source_line(line).map_or(0, |line| source::way_for(&line, tag, now_ns) as u64)
}

/// Looks once more after a token was taken from `place`, `way << 32 | tag` of a line; 1 when it must be
/// taken back.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_has_rival(line: u32, place: u64, step: u64, now_ns: u64) -> u64 {
    let Some(line) = maps::source_line(line) else { return 0 };
    let (way, tag) = ((place >> 32) as usize & (way::LINE - 1), place & 0xffff_ffff);
    // What a bucket holds says nothing here.
    let params = SourceParams { cost: 0, burst: 0, step };
    u64::from(source::has_rival(&line, way, tag, now_ns, &params))
}

/// One attempt to take that token back; 1 when it is done.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_take_back(line: u32, place: u64, cost: u64, step: u64, now_ns: u64) -> u64 {
    let Some(line) = maps::source_line(line) else { return 1 };
    let (way, tag) = ((place >> 32) as usize & (way::LINE - 1), place & 0xffff_ffff);
    let params = SourceParams { cost, burst: 0, step };
    u64::from(source::try_take_back(&line, way, tag, now_ns, &params))
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
    let Some(limit) = rule_of(block, rule >> 1 & 0xf) else { return 1 };
    let Some((index, tag)) = place(limit, Addr { high, low }) else { return 1 };
    let Some(line) = maps::source_line(index) else { return 1 };
    let crowded = rule & 1 != 0;
    u64::from(source::attempt_refund(&line, tag, crowded, now_ns, &params(limit)))
}

#[inline(always)]
pub fn params(rule: &Rule) -> SourceParams {
    SourceParams { cost: rule.cost, burst: rule.burst, step: rule.step }
}

/// The line and tag of a peer's own bucket under a rule.
#[inline(always)]
pub fn place(rule: &Rule, peer: Addr) -> Option<(u32, u64)> {
    let hash = rule.group_hash(maps::secret()?, peer);
    Some((way::line_of(hash, SOURCE_LINES), way::tag(hash)))
}
