//! Remembered handshakes in their map: see [`weir_common::handshake`].

use weir_common::{
    handshake::{self, Known},
    layout::{Direction, PENDING_LINES},
    nh, way,
};

use crate::{maps, parse::Segment};

/// What is known of a handshake, and where it stands or would: the number that [`weir_recall`]
/// returns.
///
/// Bits: 0–2 the place in its line, 3 it is remembered there, 4 there is room there, 5–18 the line,
/// 19–63 the tag.
#[derive(Clone, Copy)]
pub struct Recalled(u64);

const LIVE: u64 = 1 << 3;
const FREE: u64 = 1 << 4;
const LINE: u32 = 5;
const TAG: u32 = 19;
const _: () = assert!(PENDING_LINES <= 1 << (TAG - LINE) && way::LINE <= 8);

/// Looks for a workload's handshake.
#[inline(always)]
pub fn look(slot: u32, direction: Direction, syn: &Segment, now_ns: u64) -> Recalled {
    Recalled(weir_recall(syn, owner(slot, direction), now_ns, 0))
}

/// Looks for a workload's handshake; remembers it longer when it is there.
#[inline(always)]
pub fn recall(slot: u32, direction: Direction, syn: &Segment, now_ns: u64) -> Recalled {
    Recalled(weir_recall(syn, owner(slot, direction), now_ns, 1))
}

/// The same SYN passes the hooks of both ends of one node: each remembers its own.
#[inline(always)]
fn owner(slot: u32, direction: Direction) -> u32 {
    slot << 1 | direction as u32
}

impl Recalled {
    /// Whether this SYN repeats one that was admitted.
    #[inline(always)]
    pub fn is_live(self) -> bool {
        self.0 & LIVE != 0
    }

    /// Remembers an admitted handshake; `false` when there is no room.
    #[inline(always)]
    pub fn remember(self, now_ns: u64) -> bool {
        let line = (self.0 >> LINE) as u32 & (PENDING_LINES - 1);
        let Some(line) = maps::pending_line(line) else { return false };
        let index = self.0 as usize & (way::LINE - 1);
        self.0 & FREE != 0 && handshake::claim(&line, index, self.0 >> TAG, now_ns)
    }
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
        Known::Live(index, word) => {
            if extend != 0 && !handshake::extend(&line, index, word, tag, now_ns) {
                return place;
            }
            place | LIVE | index as u64
        }
        Known::Free(index) => place | FREE | index as u64,
        Known::Crowded => place,
    }
}
