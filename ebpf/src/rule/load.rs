//! Loads, and those of sources, in their maps: see [`weir_common::load`].

use weir_common::{
    addr::Addr,
    layout::{Rule, SOURCE_LOAD_LINES},
    load::{self, Bounds, Change, Opened, Place},
    way,
    word::TRIES,
};

use super::{CONTENDED, CROWDED, OTHERWISE, TOOK, count_admitted, rule_of};
use crate::{hook::opaque, maps, track};

/// Takes from a source's load.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_take_source_load(
    block: u32,
    rule: u32,
    high: u64,
    low: u64,
    now_ns: u64,
) -> u64 {
    let mut result = CONTENDED;
    for _ in 0..TRIES {
        result = weir_open_source(block, rule, high, low, now_ns);
        if result & CONTENDED == 0 {
            break;
        }
    }
    result
}

/// Takes from a load.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_take_load(cell: u32, connections: u64, handshakes: u64, now_ns: u64) -> u64 {
    let mut result = CONTENDED;
    for _ in 0..TRIES {
        result = weir_open_load(cell, connections, handshakes, now_ns);
        if result != CONTENDED {
            break;
        }
    }
    count_admitted(cell, result as u32);
    result
}

/// One attempt at a load.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_open_load(cell: u32, connections: u64, handshakes: u64, now_ns: u64) -> u64 {
    let Some(cell) = maps::cell(cell) else { return TOOK };
    match load::try_open(&cell, now_ns, Bounds { connections, handshakes }) {
        Opened::Opened => TOOK,
        Opened::TooManyConnections => 0,
        Opened::TooManyHandshakes => OTHERWISE,
        Opened::Contended => CONTENDED,
    }
}

/// One attempt at a source's load.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_open_source(block: u32, rule: u32, high: u64, low: u64, now_ns: u64) -> u64 {
    let Some(rule) = rule_of(block, rule) else { return TOOK };
    let Some((index, tag)) = place(rule, Addr { high, low }) else { return TOOK };
    let Some(line) = maps::source_load_line(index) else { return TOOK };
    let place = place_of(weir_place(index, tag, now_ns));
    let (mut opened, here) = load::open_in(&line, place, tag, now_ns, rule.cost);
    if opened == Opened::Opened {
        let room = rule.cost.saturating_sub(here);
        if weir_is_too_much(index, (place.way as u64) << 32 | tag, room, now_ns) != 0 {
            let place = tag << 32 | u64::from(index) * way::LINE as u64 + place.way as u64;
            track::weir_change_source(place, Change::Abandoned as u32, now_ns, now_ns);
            opened = Opened::Contended;
        }
    }
    let crowded = if place.way == load::WAYS { CROWDED } else { 0 };
    let result = match opened {
        Opened::Opened => TOOK | crowded,
        Opened::TooManyConnections | Opened::TooManyHandshakes => crowded,
        Opened::Contended => CONTENDED,
    };
    count_admitted(rule.cell, result as u32);
    result
}

/// Where a source's connections count in a line: `elsewhere << 8 | way`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_place(line: u32, tag: u64, now_ns: u64) -> u64 {
    let Some(line) = maps::source_load_line(line) else { return load::WAYS as u64 };
    let place = load::place_for(&line, tag, now_ns);
    place.elsewhere << 8 | place.way as u64
}

#[inline(always)]
pub fn place_of(packed: u64) -> Place {
    // The compiler knows what the function returns, the verifier must see it.
    Place { way: opaque(packed as usize) & (way::LINE - 1), elsewhere: packed >> 8 }
}

/// Looks once more after a connection was counted at `place`, `way << 32 | tag` of a line; 1 when it
/// must be taken back.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_is_too_much(line: u32, place: u64, room: u64, now_ns: u64) -> u64 {
    let Some(line) = maps::source_load_line(line) else { return 0 };
    let (way, tag) = ((place >> 32) as usize & (way::LINE - 1), place & 0xffff_ffff);
    u64::from(load::is_too_much(&line, way, tag, now_ns, room))
}

/// The line and tag of a peer's own load under a rule.
#[inline(always)]
pub fn place(rule: &Rule, peer: Addr) -> Option<(u32, u64)> {
    let hash = rule.group_hash(maps::secret()?, peer);
    Some((way::line_of(hash, SOURCE_LOAD_LINES), load::tag(hash)))
}

/// Where a peer's connection counts under a rule, as a connection's slot keeps it; 0 for nowhere.
#[inline(always)]
pub fn note(rule: &Rule, peer: Addr, crowded: bool, now_ns: u64) -> u64 {
    let Some((index, tag)) = place(rule, peer) else { return 0 };
    let owner = if crowded { load::SHARED } else { tag };
    let way = if crowded { load::WAYS } else { place_of(weir_place(index, tag, now_ns)).way };
    owner << 32 | u64::from(index) * way::LINE as u64 + way as u64
}
