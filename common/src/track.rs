//! A tracked connection's state, in one word.
//!
//! The word is `tag:28 | generation:12 | phase:4 | flags:4 | until:16`. It stands as a way in one of
//! the two lines that a keyed hash of the connection selects; the whole key stands in the
//! [slot](crate::layout::Slot) with the same number. A word changes by compare-and-swap only, and
//! whoever wins a change counts what it means, so every count falls exactly once, however many CPUs
//! see FINs and RSTs at once. The generation changes with every owner: who still holds the word of a
//! connection that is gone cannot touch the next one, though it had the same addresses and ports.
//!
//! A segment is believed where its receiver would believe it, as far as one can see from outside:
//! an answer must acknowledge the SYN that was admitted, a FIN counts once the other end acknowledged
//! it, a RST must stand where its receiver acknowledged last. A RST that was believed and whose
//! receiver then goes on was wrong, and the connection counts again.
//!
//! What was never established expires by the clock; its counts do so by themselves
//! ([`load`](crate::load)), so whoever needs the way takes it and owes nobody anything. For the same
//! reason a new connection that finds both lines full takes the place of the oldest handshake there: a
//! flood of forged SYNs can displace handshakes, never an established connection.

use crate::{
    addr::Addr,
    layout::{Slot, TRACK_LINES},
    load::Change,
    nh::{self, Secret},
    way::{LINE, Line},
    word::Word as _,
};

const TAG: u32 = 28;
const GENERATION: u32 = 12;
const FLAGS_AT: u32 = 16;
const PHASE_AT: u32 = 20;
const GENERATION_AT: u32 = 24;
const TAG_AT: u32 = 36;
const UNTIL_MASK: u64 = (1 << 16) - 1;
const _: () = assert!(TAG + TAG_AT == 64 && GENERATION_AT + GENERATION == TAG_AT);

/// Nanoseconds in a tick of `until`: 2^26, 67 ms; it comes round every 73 minutes.
const TICK_NS: u64 = 1 << 26;
/// For so long a handshake is waited for: 256 ticks, 17.2 s, as long as it may count.
const HANDSHAKE: u64 = 256;
/// For so long a RST may prove wrong: 150 ticks, 10 s.
const DOUBT: u64 = 150;

/// TCP flags.
pub mod flag {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// A connection starts.
    pub const SYN: u8 = 0x02;
    /// A connection ends at once.
    pub const RST: u8 = 0x04;
    /// The acknowledgment means something.
    pub const ACK: u8 = 0x10;
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Nobody's.
    Free = 0,
    /// A SYN was admitted.
    Opening = 1,
    /// It was answered.
    Answered = 2,
    /// Both ends know of it.
    Established = 3,
    /// It was reset; until the doubt is over a segment from who should be dead revives it.
    Reset = 4,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// The workload's.
    Local = 0,
    /// The other.
    Remote = 1,
}

impl End {
    /// The other end.
    #[inline(always)]
    pub const fn other(self) -> Self {
        match self {
            Self::Local => Self::Remote,
            Self::Remote => Self::Local,
        }
    }

    /// The bit of this end's FIN; the one of its acknowledgment is two higher.
    #[inline(always)]
    const fn fin(self) -> u64 {
        1 << self as u64
    }
}

/// The flags of a handshake: the remote end opened it.
const INBOUND: u64 = 1;
/// The FIN bits' acknowledgments.
const DONE: u32 = 2;
const ALL_DONE: u64 = 3 << DONE;

/// What a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Who sent it.
    pub from: End,
    /// Its [flags](flag).
    pub flags: u8,
    /// Its sequence number.
    pub sequence: u32,
    /// Its acknowledgment.
    pub acknowledgment: u32,
    /// Bytes of payload.
    pub payload: u32,
}

impl Segment {
    #[inline(always)]
    const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// What acknowledges all of it.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        let controls = (self.flags & flag::SYN != 0) as u32 + (self.flags & flag::FIN != 0) as u32;
        self.sequence.wrapping_add(self.payload).wrapping_add(controls)
    }
}

/// What a change of a connection's word means to those who count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// Nothing.
    Nothing = 0,
    /// The SYN was answered.
    Answered = 1,
    /// Both ends know of the connection.
    Established = 2,
    /// A RST answered the SYN.
    Refused = 3,
    /// Who opened it gave up before an answer.
    GivenUp = 4,
    /// A RST followed the answer before both ends knew of the connection.
    Cut = 5,
    /// Who opened it gave up after the answer.
    Left = 6,
    /// The connection ended as it should.
    Closed = 7,
    /// An established connection was reset.
    Broken = 8,
    /// The RST was wrong: the connection goes on.
    Reopened = 9,
}

impl Event {
    /// From a number that a function of BPF was given.
    #[inline(always)]
    pub const fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Answered,
            2 => Self::Established,
            3 => Self::Refused,
            4 => Self::GivenUp,
            5 => Self::Cut,
            6 => Self::Left,
            7 => Self::Closed,
            8 => Self::Broken,
            9 => Self::Reopened,
            _ => Self::Nothing,
        }
    }

    /// What it is to a load.
    #[inline(always)]
    pub const fn change(self) -> Option<Change> {
        match self {
            Self::Nothing | Self::Answered => None,
            Self::Established => Some(Change::Established),
            Self::Refused | Self::GivenUp | Self::Cut | Self::Left => Some(Change::Abandoned),
            Self::Closed | Self::Broken => Some(Change::Closed),
            Self::Reopened => Some(Change::Reopened),
        }
    }
}

/// A change of a connection's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The new word.
    pub word: u64,
    /// What it means.
    pub event: Event,
}

/// Where a connection may stand: one of two lines, and its tag there.
///
/// `ports` are local port << 16 | remote port.
#[inline(always)]
pub fn places(
    secret: &Secret,
    local: Addr,
    remote: Addr,
    ports: u32,
    workload: u32,
) -> ([u32; 2], u64) {
    let tail = u64::from(ports) << 32 | u64::from(workload);
    let (hash, second) = if local.is_v4() {
        let pair = local.low << 32 | remote.low & 0xffff_ffff;
        (nh::hash(secret, [pair, tail]), nh::second_hash(secret, [pair, tail]))
    } else {
        let words = [local.high, local.low, remote.high, remote.low, tail];
        (nh::hash(secret, words), nh::second_hash(secret, words))
    };
    (lines_of(hash, TRACK_LINES), tag(second))
}

/// The two lines that a connection's hash selects among `lines`.
///
/// Two, because the emptier of them takes a new connection: so lines fill evenly, and three quarters of
/// all ways can be taken before two full ones meet.
#[inline(always)]
const fn lines_of(hash: u64, lines: u32) -> [u32; 2] {
    // A product's upper half: any number of lines will do, and nothing is divided.
    let line = [(hash & 0xffff_ffff) * lines as u64, (hash >> 32) * lines as u64];
    [(line[0] >> 32) as u32, (line[1] >> 32) as u32]
}

/// The tag of a hash; never 0.
#[inline(always)]
const fn tag(hash: u64) -> u64 {
    let tag = hash >> (64 - TAG);
    if tag == 0 { 1 } else { tag }
}

#[inline(always)]
const fn tag_of(word: u64) -> u64 {
    word >> TAG_AT
}

/// Where the connection stands.
#[inline(always)]
pub const fn phase(word: u64) -> Phase {
    match word >> PHASE_AT & 0xf {
        1 => Phase::Opening,
        2 => Phase::Answered,
        3 => Phase::Established,
        4 => Phase::Reset,
        _ => Phase::Free,
    }
}

#[inline(always)]
const fn flags(word: u64) -> u64 {
    word >> FLAGS_AT & 0xf
}

/// The owner's word in another phase.
#[inline(always)]
const fn in_phase(word: u64, phase: Phase, flags: u64, until: u64) -> u64 {
    word >> GENERATION_AT << GENERATION_AT
        | (phase as u64) << PHASE_AT
        | flags << FLAGS_AT
        | until & UNTIL_MASK
}

/// Nobody's word, which remembers the generation.
#[inline(always)]
pub const fn freed(word: u64) -> u64 {
    word & (((1 << GENERATION) - 1) << GENERATION_AT)
}

#[inline(always)]
const fn after(now_ns: u64, ticks: u64) -> u64 {
    now_ns / TICK_NS + 1 + ticks
}

/// Whether the way is nobody's: free, or its time has passed.
#[inline(always)]
pub const fn is_absent(word: u64, now_ns: u64) -> bool {
    match phase(word) {
        Phase::Free => true,
        Phase::Established => false,
        Phase::Opening | Phase::Answered | Phase::Reset => {
            let ahead = word.wrapping_sub(now_ns / TICK_NS) & UNTIL_MASK;
            ahead == 0 || ahead > HANDSHAKE + 1
        }
    }
}

/// The first way of a line that a connection with this tag may have; `LINE` for none. The caller
/// compares the slot, and looks on behind it when it is another's.
#[inline(always)]
pub fn find<L: Line>(line: &L, from: usize, tag: u64, now_ns: u64) -> usize {
    let mut found = LINE;
    for index in 0..LINE {
        let word = line.word(index).load();
        if index >= from && found == LINE && tag_of(word) == tag && !is_absent(word, now_ns) {
            found = index;
        }
    }
    found
}

/// A way that a new connection may take; `LINE` for none.
#[inline(always)]
pub fn room<L: Line>(line: &L, now_ns: u64) -> usize {
    let mut found = LINE;
    for index in 0..LINE {
        if found == LINE && is_absent(line.word(index).load(), now_ns) {
            found = index;
        }
    }
    found
}

/// Whether two words are of one owner.
#[inline(always)]
pub const fn same_owner(one: u64, other: u64) -> bool {
    one >> GENERATION_AT == other >> GENERATION_AT
}

/// Ways that a new connection may take.
#[inline(always)]
pub fn rooms<L: Line>(line: &L, now_ns: u64) -> u64 {
    let mut rooms = 0;
    for index in 0..LINE {
        rooms += u64::from(is_absent(line.word(index).load(), now_ns));
    }
    rooms
}

/// The way of the handshake that was answered or begun longest ago; `LINE` when all are established.
#[inline(always)]
pub fn oldest_handshake<L: Line>(line: &L, now_ns: u64) -> usize {
    let (mut found, mut least) = (LINE, u64::MAX);
    for index in 0..LINE {
        let word = line.word(index).load();
        let ahead = match phase(word) {
            Phase::Established => u64::MAX,
            _ => word.wrapping_sub(now_ns / TICK_NS) & UNTIL_MASK,
        };
        if ahead < least {
            (found, least) = (index, ahead);
        }
    }
    found
}

/// Whether a way's owner may be displaced.
#[inline(always)]
pub const fn is_displaceable(word: u64) -> bool {
    !matches!(phase(word), Phase::Established)
}

/// The word of a connection that was just admitted, for a way that held `word`.
#[inline(always)]
pub const fn opening(word: u64, tag: u64, opener: End, now_ns: u64) -> u64 {
    let inbound = match opener {
        End::Remote => INBOUND,
        End::Local => 0,
    };
    in_phase(owned(word, tag), Phase::Opening, inbound, after(now_ns, HANDSHAKE))
}

/// The word of a connection that is older than whoever tracks it, for a way that held `word`.
pub const fn adopted(word: u64, tag: u64) -> u64 {
    in_phase(owned(word, tag), Phase::Established, 0, 0)
}

/// The next owner's word.
#[inline(always)]
const fn owned(word: u64, tag: u64) -> u64 {
    let generation = (word >> GENERATION_AT).wrapping_add(1) & ((1 << GENERATION) - 1);
    tag << TAG_AT | generation << GENERATION_AT
}

/// Nobody's word after this one, with what it means: for an audit that knows the connection is gone.
pub const fn removed(word: u64, now_ns: u64) -> Option<Step> {
    let event = match phase(word) {
        Phase::Free => return None,
        _ if is_absent(word, now_ns) => Event::Nothing,
        Phase::Opening => Event::GivenUp,
        Phase::Answered => Event::Left,
        Phase::Established => Event::Closed,
        Phase::Reset => Event::Nothing,
    };
    Some(Step { word: freed(word), event })
}

/// Who opened a handshake.
#[inline(always)]
const fn opener(word: u64) -> End {
    if flags(word) & INBOUND != 0 { End::Remote } else { End::Local }
}

/// How far ahead of what it acknowledges a number may lie: `from..=from + reach`.
#[inline(always)]
const fn within(number: u32, from: u32, reach: u32) -> bool {
    number.wrapping_sub(from) <= reach
}

/// Data that a SYN may carry (TCP Fast Open, RFC 7413), so that the answer acknowledges it.
const SYN_DATA: u32 = 1500;
/// How far from the last acknowledgment a RST is believed.
const WINDOW: u32 = 1 << 20;

/// What a segment does to the connection with this word and slot; `None` when it changes nothing.
#[inline(always)]
pub fn next(word: u64, slot: &Slot, segment: &Segment, now_ns: u64) -> Option<Step> {
    match phase(word) {
        Phase::Free => None,
        Phase::Opening | Phase::Answered => handshake(word, slot, segment, now_ns),
        Phase::Established => established(word, slot, segment, now_ns),
        Phase::Reset => {
            let dead = if flags(word) & INBOUND != 0 { End::Remote } else { End::Local };
            let goes_on = segment.flags & (flag::RST | flag::SYN) == 0 && segment.from == dead;
            goes_on.then_some(Step {
                word: in_phase(word, Phase::Established, 0, 0),
                event: Event::Reopened,
            })
        }
    }
}

#[inline(always)]
fn handshake(word: u64, slot: &Slot, segment: &Segment, now_ns: u64) -> Option<Step> {
    let opener = opener(word);
    let answered = matches!(phase(word), Phase::Answered);
    let by_opener = segment.from as u8 == opener as u8;
    let acknowledges = segment.has(flag::ACK)
        && within(segment.acknowledgment, slot.isn.wrapping_add(1), SYN_DATA);
    if segment.has(flag::RST) {
        let event = if by_opener {
            // Behind the SYN, or behind what was sent since.
            if !within(segment.sequence, slot.isn, WINDOW) {
                return None;
            }
            if answered { Event::Left } else { Event::GivenUp }
        } else {
            let after_answer = answered && segment.sequence == slot.answer.wrapping_add(1);
            if !acknowledges && !after_answer {
                return None;
            }
            if answered { Event::Cut } else { Event::Refused }
        };
        return Some(Step { word: freed(word), event });
    }
    if !by_opener {
        // SYN and ACK: the answer. Repeated, it says nothing new.
        let is_answer = segment.has(flag::SYN) && acknowledges && !answered;
        return is_answer.then_some(Step {
            word: in_phase(word, Phase::Answered, flags(word), after(now_ns, HANDSHAKE)),
            event: Event::Answered,
        });
    }
    // The opener acknowledges the answer: by an ACK, or by a SYN with ACK when both opened at once.
    let knows = answered
        && segment.has(flag::ACK)
        && within(segment.acknowledgment, slot.answer.wrapping_add(1), 1 << 30);
    if !knows {
        return None;
    }
    let word = in_phase(word, Phase::Established, 0, 0);
    // It may be its last segment as well.
    let word = established(word, slot, segment, now_ns).map_or(word, |step| step.word);
    Some(Step { word, event: Event::Established })
}

#[inline(always)]
fn established(word: u64, slot: &Slot, segment: &Segment, now_ns: u64) -> Option<Step> {
    let (from, other) = (segment.from, segment.from.other());
    if segment.has(flag::RST) {
        let acknowledged = slot.acknowledged[other as usize & 1];
        // Of an adopted connection nothing is known yet.
        if acknowledged != 0 && !within(segment.sequence, acknowledged, WINDOW) {
            return None;
        }
        // Whom the RST should kill.
        let dead = match other {
            End::Remote => INBOUND,
            End::Local => 0,
        };
        return Some(Step {
            word: in_phase(word, Phase::Reset, dead, after(now_ns, DOUBT)),
            event: Event::Broken,
        });
    }
    let before = flags(word);
    let mut flags = before;
    if segment.has(flag::SYN) {
        // An answer to another SYN with the same ports: the old connection is gone, the new one has
        // its place and its counts.
        let anew = segment.has(flag::ACK)
            && slot.again != 0
            && segment.acknowledgment == slot.again.wrapping_add(1);
        return (anew && before != 0).then_some(Step {
            word: in_phase(word, Phase::Established, 0, 0),
            event: Event::Nothing,
        });
    }
    if segment.has(flag::FIN) {
        flags |= from.fin();
    }
    if segment.has(flag::ACK)
        && flags & other.fin() != 0
        && within(segment.acknowledgment, slot.fins[other as usize & 1], i32::MAX as u32)
    {
        flags |= other.fin() << DONE;
    }
    if flags & ALL_DONE == ALL_DONE {
        return Some(Step { word: freed(word), event: Event::Closed });
    }
    (flags != before).then_some(Step {
        word: in_phase(word, Phase::Established, flags, 0),
        event: Event::Nothing,
    })
}
