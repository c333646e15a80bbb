//! Remembered handshakes in their map: see [`weir_common::handshake`].

use weir_common::{
    handshake::{self, Known as Memory},
    layout::PENDING_LINES,
    nh, way,
};

use crate::{
    maps,
    parse::Segment,
    track::{Known, Owner},
};

/// The number that [`weir_recall`] returns, beside what it says as a [`Known`]: bits 2–4 the place in its
/// line, 5–18 the line, 19–63 the tag.
const PLACE: u32 = 2;
const LINE: u32 = 5;
const TAG: u32 = 19;
/// In place of [`Known`]'s words: there is no room.
const CROWDED: u64 = 3;
const _: () = assert!(PENDING_LINES <= 1 << (TAG - LINE) && way::LINE <= 8);

/// Looks for a workload's handshake.
#[inline(always)]
pub fn look(syn: &Segment, owner: Owner, now_ns: u64) -> Known {
    Known(weir_recall(syn, owner, now_ns, 0))
}

/// Looks for a workload's handshake; remembers it longer when it is there.
///
/// The same SYN passes the hooks of both ends of one node: each remembers its own.
#[inline(always)]
pub fn recall(syn: &Segment, owner: Owner, now_ns: u64) -> Known {
    Known(weir_recall(syn, owner, now_ns, 1))
}

/// Remembers an admitted handshake; `false` when there is no room.
#[inline(always)]
pub fn remember(known: Known, now_ns: u64) -> bool {
    let line = (known.0 >> LINE) as u32 & (PENDING_LINES - 1);
    let Some(line) = maps::pending_line(line) else { return false };
    let index = (known.0 >> PLACE) as usize & (way::LINE - 1);
    known.0 & 3 != CROWDED && handshake::claim(&line, index, known.0 >> TAG, now_ns)
}

/// A global function, verified once for any handshake: see [`crate::rule`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_recall(syn: *const Segment, owner: u32, now_ns: u64, extend: u32) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    let Some(syn) = (unsafe { syn.as_ref() }) else { return 0 };
    let Some(secret) = maps::secret() else { return 0 };
    let (tail, owner) = (u64::from(syn.ports) << 32 | u64::from(syn.sequence), u64::from(owner));
    let (hash, second) = if syn.destination.is_v4() {
        let pair = syn.source.low << 32 | syn.destination.low & 0xffff_ffff;
        let words = [pair, tail, owner];
        (nh::hash(secret, words), nh::second_hash(secret, words))
    } else {
        let (from, to) = (syn.source, syn.destination);
        let words = [from.high, from.low, to.high, to.low, tail, owner];
        (nh::hash(secret, words), nh::second_hash(secret, words))
    };
    let (line_index, tag) = (way::line_of(hash, PENDING_LINES), handshake::tag(second));
    let Some(line) = maps::pending_line(line_index) else { return 0 };
    let place = tag << TAG | u64::from(line_index) << LINE;
    match handshake::look(&line, tag, now_ns) {
        Memory::Live(index, word) => {
            if extend != 0 && !handshake::extend(&line, index, word, tag, now_ns) {
                return place | CROWDED;
            }
            place | Known::REPEATED | (index as u64) << PLACE
        }
        Memory::Free(index) => place | (index as u64) << PLACE,
        Memory::Crowded => place | CROWDED,
    }
}
