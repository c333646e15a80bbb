//! Remembered handshakes in their maps: see [`weir_common::handshake`].

use weir_common::{
    handshake::{self, Known},
    layout::{Direction, PENDING_LINES, Slot},
    nh,
    way::{self, LINE, Line as _},
    word::Word as _,
};

use crate::{
    maps::{self, MapLine},
    parse::Syn,
};

/// Where this handshake stands, or would.
pub struct Place {
    line: MapLine,
    line_index: u32,
    tag: u64,
    owner: u32,
    /// What [`weir_recall`] found in the line.
    found: u64,
}

/// Finds the place of a workload's handshake.
#[inline(always)]
pub fn place(slot: u32, direction: Direction, syn: &Syn, now_ns: u64) -> Option<Place> {
    // The same SYN passes the hooks of both ends of one node: each remembers its own.
    let owner = slot << 1 | direction as u32;
    let hash = weir_hash(syn, owner);
    let line_index = way::line_of(hash, PENDING_LINES);
    let tag = way::tag(hash);
    let found = weir_recall(line_index, tag as u32, now_ns);
    let line = maps::pending_line(line_index)?;
    Some(Place { line, line_index, tag, owner, found })
}

impl Place {
    /// Whether this SYN repeats one that was admitted.
    #[inline(always)]
    pub fn holds(&self, syn: &Syn) -> bool {
        self.find(syn).is_some()
    }

    /// Whether this SYN repeats one that was admitted; remembers it longer if so.
    #[inline(always)]
    pub fn repeats(&self, syn: &Syn, now_ns: u64) -> bool {
        match self.find(syn) {
            Some((word, slot)) => {
                handshake::extend(&self.line, self.way(), word, self.tag, slot, now_ns)
            }
            None => false,
        }
    }

    #[inline(always)]
    fn find(&self, syn: &Syn) -> Option<(u64, &'static Slot)> {
        if self.found & LIVE == 0 {
            return None;
        }
        let word = way::pack(self.tag, way::until(self.found));
        let slot: &Slot = maps::handshake(self.slot_index())?;
        let same = slot.source == syn.source
            && slot.destination == syn.destination
            && slot.ports == syn.ports
            && slot.isn == syn.isn
            && slot.owner == self.owner;
        // The slot was compared while the way was this handshake's, or not at all.
        if same && self.line.word(self.way()).load() == word { Some((word, slot)) } else { None }
    }

    /// Remembers an admitted handshake; `false` when there is no room.
    #[inline(always)]
    pub fn remember(&self, syn: &Syn, now_ns: u64) -> bool {
        if self.found & SOME == 0 || !handshake::claim(&self.line, self.way(), self.tag, now_ns) {
            return false;
        }
        let Some(slot) = maps::handshake(self.slot_index()) else { return false };
        slot.source = syn.source;
        slot.destination = syn.destination;
        slot.ports = syn.ports;
        slot.isn = syn.isn;
        slot.first_ns = now_ns;
        slot.owner = self.owner;
        slot.generation = slot.generation.wrapping_add(1);
        slot.state = 0;
        true
    }

    #[inline(always)]
    fn way(&self) -> usize {
        (self.found >> WAY) as usize & (LINE - 1)
    }

    #[inline(always)]
    fn slot_index(&self) -> u32 {
        self.line_index * LINE as u32 + self.way() as u32
    }
}

/// In what [`weir_recall`] returns: there is a way, and it may be this handshake's. Below stand the
/// way's number and its time.
const SOME: u64 = 1 << 63;
const LIVE: u64 = 1 << 62;
const WAY: u32 = 56;

/// A global function, verified once for any way: see [`crate::rule`]. Looks for the way of this tag,
/// or else for a free one; 0 when there is neither.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_recall(line: u32, tag: u32, now_ns: u64) -> u64 {
    let Some(line) = maps::pending_line(line) else { return 0 };
    match handshake::look(&line, u64::from(tag), now_ns) {
        Known::Live(index, word) => SOME | LIVE | (index as u64) << WAY | way::until(word).0,
        Known::Free(index) => SOME | (index as u64) << WAY,
        Known::Crowded => 0,
    }
}

/// The keyed hash that places a handshake.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_hash(syn: *const Syn, owner: u32) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Syn`.
    let Some(syn) = (unsafe { syn.as_ref() }) else { return 0 };
    let Some(secret) = maps::secret() else { return 0 };
    let tail = u64::from(syn.ports) << 32 | u64::from(syn.isn);
    if syn.destination.is_v4() {
        let pair = syn.source.low << 32 | syn.destination.low & 0xffff_ffff;
        nh::hash(secret, [pair, tail, u64::from(owner)])
    } else {
        let (from, to) = (syn.source, syn.destination);
        nh::hash(secret, [from.high, from.low, to.high, to.low, tail, u64::from(owner)])
    }
}
