//! Tracked connections in their maps: see [`weir_common::track`].
//!
//! As in [`crate::rule`], `weir_*` are global functions, which find again what they are told by
//! number.

use weir_common::{
    addr::Addr,
    layout::{
        Direction, MAX_BREAKERS, MAX_LOADS, MAX_RULES, MAX_SOURCE_LOADS, RULE_HTTP1, RuleKind,
        Slot, TRACK_LINES,
    },
    load,
    track::{self, End, Event, Phase, flag},
    way::{LINE, Line as _},
    word::{TRIES, Word as _},
};

use crate::{breaker, maps, parse::Segment, rule};

/// Workload slot << 1 | direction of a packet: whose connection it may be, and which way it goes.
pub type Owner = u32;

#[inline(always)]
pub fn owner(slot: u32, direction: Direction) -> Owner {
    slot << 1 | direction as u32
}

/// A tracked connection: its place, plus 1.
#[derive(Clone, Copy)]
pub struct Place(u32);

/// Looks for a segment's connection. Writes nothing.
#[inline(always)]
pub fn find(segment: &Segment, owner: Owner, now_ns: u64) -> Option<Place> {
    match weir_find(segment, owner, now_ns) {
        0 => None,
        place => Some(Place(place as u32)),
    }
}

/// What is known of a SYN, in the two lowest bits of a number.
#[derive(Clone, Copy)]
pub struct Known(pub u64);

impl Known {
    /// It was admitted.
    pub const REPEATED: u64 = 1;
    /// There is a connection with its addresses and ports, which it may open anew.
    pub const AGAIN: u64 = 2;

    #[inline(always)]
    pub fn is_repeated(self) -> bool {
        self.0 & 3 == Self::REPEATED
    }

    #[inline(always)]
    pub fn is_again(self) -> bool {
        self.0 & 3 == Self::AGAIN
    }
}

/// What is known of a SYN whose connection is tracked if it was admitted.
#[inline(always)]
pub fn known(syn: &Segment, owner: Owner, now_ns: u64) -> Known {
    match find(syn, owner, now_ns) {
        Some(place) => Known(weir_know(place.0, syn, owner)),
        None => Known(0),
    }
}

impl Place {
    /// Follows a segment of this connection that starts none, and counts what it means.
    #[inline(always)]
    pub fn follow(self, segment: &Segment, owner: Owner, now_ns: u64) {
        let mut event = LOST;
        for _ in 0..CHANGES {
            event = weir_follow(self.0, segment, owner, now_ns);
            if event != LOST {
                break;
            }
        }
        if event != 0 {
            weir_count(self.0, event as u32, owner, now_ns);
        }
    }
}

impl Place {
    /// The connection's SYN, as it is quoted, could not be delivered: it failed, if nobody has
    /// answered it.
    #[inline(always)]
    pub fn lose(self, quoted: &Segment, owner: Owner, now_ns: u64) {
        if weir_lose(self.0, quoted, owner) != 0 {
            weir_count(self.0, Event::Refused as u32, owner ^ 1, now_ns);
        }
    }
}

/// See [`Place::lose`]; 1 when this ended it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_lose(place: u32, quoted: *const Segment, owner: u32) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    let Some(quoted) = (unsafe { quoted.as_ref() }) else { return 0 };
    let Some((cell, slot)) = at(place) else { return 0 };
    let word = cell.load();
    let is_its_syn = track::phase(word) == Phase::Opening
        && slot.owner == owner
        && slot.isn == quoted.sequence
        && key(quoted, owner).is_of(slot, owner);
    u64::from(is_its_syn && cell.compare_exchange(word, track::freed(word)).is_ok())
}

/// [`Slot::http1`]: responses are read, and one is due.
const READS: u8 = 1;
const DUE: u8 = 2;

impl Place {
    /// Whether this segment may begin a response of HTTP/1 that a breaker wants to know of: the first
    /// payload of who answered the connection after some of who opened it.
    #[inline(always)]
    pub fn may_respond(self, segment: &Segment, owner: Owner) -> bool {
        if segment.payload == 0 {
            return false;
        }
        let Some((_, slot)) = at(self.0) else { return false };
        if slot.http1 == 0 {
            return false;
        }
        let by_opener = (slot.owner ^ owner) & 1 == 0;
        if by_opener {
            slot.http1 = DUE;
        }
        !by_opener && slot.http1 == DUE
    }

    /// Tells the connection's breakers of a response; 1xx is none yet.
    #[inline(always)]
    pub fn respond(self, status: u32, now_ns: u64) {
        if status >= 2 {
            weir_respond(self.0, u32::from(status == 5), now_ns);
        }
    }
}

/// See [`Place::respond`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_respond(place: u32, failed: u32, now_ns: u64) -> u64 {
    let Some((_, slot)) = at(place) else { return 0 };
    slot.http1 = READS;
    for index in 0..MAX_BREAKERS {
        let cell = u32::from(slot.breakers[index]);
        if cell != 0 {
            let epoch = slot.breaker_epochs[index];
            breaker::learn_response(cell, epoch, failed != 0, slot.owner, place, now_ns);
        }
    }
    0
}

/// Tracks the connection of a SYN that was admitted; `false` when there is no room.
#[inline(always)]
pub fn open(syn: &Segment, owner: Owner, block: u32, took: u64, now_ns: u64) -> Opened {
    let place = weir_claim(syn, owner, now_ns);
    if place == 0 {
        return Opened::NoRoom;
    }
    weir_note(place as u32, block, took);
    if place & DISPLACED == 0 { Opened::Tracked } else { Opened::Displacing }
}

/// What became of a connection that was to be tracked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// It is not tracked.
    NoRoom,
    /// It is.
    Tracked,
    /// It is, where a handshake was, which nothing follows any more.
    Displacing,
}

/// Beside a place: a handshake was there.
const DISPLACED: u64 = 1 << 32;

/// A connection as its workload sees it.
struct Key {
    local: Addr,
    remote: Addr,
    /// Local port << 16 | remote port.
    ports: u32,
}

#[inline(always)]
fn key(segment: &Segment, owner: Owner) -> Key {
    if owner & 1 == Direction::Ingress as u32 {
        Key {
            local: segment.destination,
            remote: segment.source,
            ports: segment.ports.rotate_left(16),
        }
    } else {
        Key { local: segment.source, remote: segment.destination, ports: segment.ports }
    }
}

impl Key {
    #[inline(always)]
    fn is_of(&self, slot: &Slot, owner: Owner) -> bool {
        slot.ports == self.ports
            && slot.owner >> 1 == owner >> 1
            && slot.local == self.local
            && slot.remote == self.remote
    }
}

/// The two lines that may hold a connection, and its tag there.
#[derive(Clone, Copy)]
struct Places(u64);

const LINE_BITS: u32 = TRACK_LINES.ilog2() + 1;
const TAG_AT: u32 = 2 * LINE_BITS;
const _: () = assert!(TAG_AT + 28 < 64);

impl Places {
    #[inline(always)]
    fn of(segment: *const Segment, owner: Owner) -> Self {
        Self(weir_places(segment, owner))
    }

    #[inline(always)]
    fn line(self, which: usize) -> u32 {
        (self.0 >> (LINE_BITS * (which as u32 & 1))) as u32 & ((1 << LINE_BITS) - 1)
    }

    #[inline(always)]
    fn tag(self) -> u64 {
        self.0 >> TAG_AT
    }
}

/// See [`Places`]: both lines, and the tag above them. A function of its own for its stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_places(segment: *const Segment, owner: u32) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    let Some(segment) = (unsafe { segment.as_ref() }) else { return 0 };
    let Some(secret) = maps::secret() else { return 0 };
    let Key { local, remote, ports } = key(segment, owner);
    let ([one, other], tag) = track::places(secret, local, remote, ports, owner >> 1);
    u64::from(one) | u64::from(other) << LINE_BITS | tag << TAG_AT
}

#[inline(always)]
fn from(owner: Owner) -> End {
    if owner & 1 == Direction::Ingress as u32 { End::Remote } else { End::Local }
}

/// The place of a segment's connection, plus 1; 0 for none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_find(segment: *const Segment, owner: u32, now_ns: u64) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    let Some(segment) = (unsafe { segment.as_ref() }) else { return 0 };
    let places = Places::of(segment, owner);
    let key = key(segment, owner);
    for which in 0..2 {
        let line = places.line(which);
        let mut way = 0;
        // Two connections of a line with one tag are rare, three are not looked for.
        for _ in 0..2 {
            way = weir_way(line, way as u32, places.tag(), now_ns);
            if way >= LINE as u64 {
                break;
            }
            let index = line * LINE as u32 + way as u32;
            let Some(slot) = maps::slot(index) else { break };
            if key.is_of(slot, owner) {
                return u64::from(index) + 1;
            }
            way += 1;
        }
    }
    0
}

/// The first way of a line from `first` on with this tag; 8 for none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_way(line: u32, first: u32, tag: u64, now_ns: u64) -> u64 {
    let Some(line) = maps::track_line(line) else { return LINE as u64 };
    track::find(&line, first as usize, tag, now_ns) as u64
}

/// What a SYN is to the connection at a place, see [`Known`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_know(place: u32, syn: *const Segment, owner: u32) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    let Some(syn) = (unsafe { syn.as_ref() }) else { return 0 };
    let Some((cell, slot)) = at(place) else { return 0 };
    let word = cell.load();
    let phase = track::phase(word);
    let by_opener = slot.owner & 1 == owner & 1;
    match phase {
        Phase::Opening | Phase::Answered if !by_opener => {
            // Both open at once: the other's SYN is as good as an answer.
            slot.answer = syn.sequence;
            Known::REPEATED
        }
        Phase::Opening | Phase::Answered if slot.isn == syn.sequence => Known::REPEATED,
        Phase::Established if slot.again == syn.sequence => Known::REPEATED,
        Phase::Opening | Phase::Answered => {
            slot.isn = syn.sequence;
            Known::AGAIN
        }
        Phase::Established => {
            // The next answer to this SYN makes the connection its own.
            slot.again = syn.sequence;
            Known::AGAIN
        }
        Phase::Reset => {
            // It is beyond doubt now, and leaves its way before another takes one.
            let _ = cell.compare_exchange(word, track::freed(word));
            0
        }
        Phase::Free => 0,
    }
}

/// The word and the slot of a place, see [`Place`].
#[inline(always)]
fn at(place: u32) -> Option<(maps::MapWord, &'static mut Slot)> {
    let index = place.wrapping_sub(1);
    let line = maps::track_line(index / LINE as u32)?;
    Some((line.word(index as usize & (LINE - 1)), maps::slot(index)?))
}

/// One attempt to follow a segment, see [`Place::follow`]. Returns the [`Event`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_follow(place: u32, segment: *const Segment, owner: u32, now_ns: u64) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    let Some(segment) = (unsafe { segment.as_ref() }) else { return 0 };
    let Some((cell, slot)) = at(place) else { return 0 };
    let word = cell.load();
    // The key was compared before the word was read: once more, or the way may be another's by now.
    if track::phase(word) == Phase::Free || !key(segment, owner).is_of(slot, owner) {
        return 0;
    }
    let from = from(owner);
    let seen = track::Segment {
        from,
        flags: segment.flags as u8,
        sequence: segment.sequence,
        acknowledgment: segment.acknowledgment,
        payload: segment.payload,
    };
    if seen.flags & flag::FIN != 0 {
        slot.fins[from as usize & 1] = seen.end();
    }
    let mut event = 0;
    if let Some(step) = track::next(word, slot, &seen, now_ns) {
        if step.event == Event::Answered {
            slot.answer = seen.sequence;
        }
        if cell.compare_exchange(word, step.word).is_err() {
            return LOST;
        }
        event = step.event as u64;
    }
    if seen.flags & flag::ACK != 0 && seen.flags & flag::RST == 0 {
        slot.acknowledged[from as usize & 1] = seen.acknowledgment;
    }
    event
}

/// How often a connection's word may change under one segment: it has few states.
const CHANGES: u32 = 4;
/// Instead of an event: the word changed meanwhile.
const LOST: u64 = 0xff;

/// Claims a way for a SYN's connection and describes it there; its place plus 1, with [`DISPLACED`]
/// where that is so, 0 for none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_claim(syn: *const Segment, owner: u32, now_ns: u64) -> u64 {
    // SAFETY: the verifier proves that it is null or a whole `Segment`.
    let Some(syn) = (unsafe { syn.as_ref() }) else { return 0 };
    let places = Places::of(syn, owner);
    let key = key(syn, owner);
    // In the emptier line, or lines would be full long before the table is.
    let swap = weir_rooms(places.line(0), now_ns) < weir_rooms(places.line(1), now_ns);
    // A free way of either line, else the place of a handshake; twice, because another CPU may take the
    // way that was found.
    for attempt in 0..8 {
        let line = places.line(attempt ^ usize::from(swap));
        let displace = attempt as u32 >> 2;
        let way = weir_take_way(line, places.tag(), from(owner) as u32 | displace << 1, now_ns);
        if way >= LINE as u64 {
            continue;
        }
        let index = line * LINE as u32 + way as u32;
        let Some(slot) = maps::slot(index) else { return 0 };
        slot.local = key.local;
        slot.remote = key.remote;
        slot.ports = key.ports;
        slot.owner = owner;
        slot.isn = syn.sequence;
        slot.answer = 0;
        slot.again = 0;
        slot.acknowledged = [0; 2];
        slot.fins = [0; 2];
        slot.opened_ns = now_ns;
        let displaced = if displace == 0 { 0 } else { DISPLACED };
        return displaced | u64::from(index) + 1;
    }
    0
}

/// How many ways of a line are free.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_rooms(line: u32, now_ns: u64) -> u64 {
    maps::track_line(line).map_or(0, |line| track::rooms(&line, now_ns))
}

/// Takes a way of a line for a connection that the end in bit 0 of `how` opened: a free one, or with
/// bit 1 a handshake's. Its number; 8 for none, and also when another was faster.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_take_way(line: u32, tag: u64, how: u32, now_ns: u64) -> u64 {
    let Some(line) = maps::track_line(line) else { return LINE as u64 };
    let opener = if how & 1 == End::Local as u32 { End::Local } else { End::Remote };
    let displaces = how >> 1 != 0;
    let way =
        if displaces { track::oldest_handshake(&line, now_ns) } else { track::room(&line, now_ns) };
    if way >= LINE {
        return LINE as u64;
    }
    let cell = line.word(way);
    let word = cell.load();
    let may = track::is_absent(word, now_ns) || displaces && track::is_displaceable(word);
    let next = track::opening(word, tag, opener, now_ns);
    if may && cell.compare_exchange(word, next).is_ok() {
        return way as u64;
    }
    LINE as u64
}

/// Notes beside a connection what it counts in: see [`rule::Ruling::took`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_note(place: u32, block: u32, took: u64) -> u64 {
    let Some((_, slot)) = at(place) else { return 0 };
    let Some(block) = maps::block(block) else { return 0 };
    slot.loads = [0; MAX_LOADS];
    slot.breakers = [0; MAX_BREAKERS];
    slot.source_loads = [0; MAX_SOURCE_LOADS];
    slot.http1 = 0;
    let (mut loads, mut breakers, mut sources) = (0usize, 0usize, 0usize);
    for index in 0..MAX_RULES {
        loads = rule::unknown(loads as u64, took) as usize;
        breakers = rule::unknown(breakers as u64, took) as usize;
        sources = rule::unknown(sources as u64, took) as usize;
        if index as u32 >= block.count {
            break;
        }
        if took >> index & 1 == 0 {
            continue;
        }
        let rule = &block.rules[index];
        if rule.kind == RuleKind::Load as u8 {
            if loads < MAX_LOADS {
                slot.loads[loads] = rule.cell as u16;
                loads += 1;
            }
        } else if rule.kind == RuleKind::Breaker as u8 {
            if breakers < MAX_BREAKERS {
                if rule.flags & RULE_HTTP1 != 0 {
                    slot.http1 = READS;
                }
                slot.breakers[breakers] = rule.cell as u16;
                slot.breaker_epochs[breakers] = (took >> (32 + 8 * breakers)) as u8;
                breakers += 1;
            }
        } else if rule.kind == RuleKind::SourceLoad as u8 && sources < MAX_SOURCE_LOADS {
            let crowded = (took >> (16 + index)) as u32 & 1;
            slot.source_loads[sources] =
                rule::load::note(rule, slot.remote, crowded != 0, slot.opened_ns);
            sources += 1;
        }
    }
    0
}

/// Counts what happened to a connection, wherever it counts.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_count(place: u32, event: u32, owner: u32, now_ns: u64) -> u64 {
    let Some((_, slot)) = at(place) else { return 0 };
    let event = Event::from_code(event);
    // Who opened a connection breaks it: that says nothing of whom the breaker is for.
    let by_opener = (slot.owner ^ owner) & 1 == 0;
    let age_ms = now_ns.saturating_sub(slot.opened_ns) / 1_000_000;
    // Breakers first: whoever finds room in a load because of this end should find them tripped by it.
    for index in 0..MAX_BREAKERS {
        let cell = u32::from(slot.breakers[index]);
        if cell != 0 && !(event == Event::Broken && by_opener) {
            let young = age_ms <= breaker::timeout_ms(cell);
            let epoch = slot.breaker_epochs[index];
            breaker::learn(cell, epoch, event, young, slot.owner, place, now_ns);
        }
    }
    if let Some(change) = event.change() {
        for cell in slot.loads {
            if cell != 0 {
                weir_change(u32::from(cell), change as u32, slot.opened_ns, now_ns);
            }
        }
        for place in slot.source_loads {
            if place != 0 {
                weir_change_source(place, change as u32, slot.opened_ns, now_ns);
            }
        }
    }
    0
}

#[inline(always)]
fn change(code: u32) -> load::Change {
    match code {
        1 => load::Change::Established,
        2 => load::Change::Abandoned,
        3 => load::Change::Closed,
        _ => load::Change::Reopened,
    }
}

/// Counts what happened to a connection in a load.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_change(cell: u32, code: u32, opened_ns: u64, now_ns: u64) -> u64 {
    for _ in 0..TRIES {
        if weir_try_change(cell, code, opened_ns, now_ns) != 0 {
            return 1;
        }
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_try_change(cell: u32, code: u32, opened_ns: u64, now_ns: u64) -> u64 {
    let Some(cell) = maps::cell(cell) else { return 1 };
    u64::from(load::try_change(&cell, change(code), opened_ns, now_ns))
}

/// The same in a source's load.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_change_source(place: u64, code: u32, opened_ns: u64, now_ns: u64) -> u64 {
    for _ in 0..TRIES {
        if weir_try_change_source(place, code, opened_ns, now_ns) != 0 {
            return 1;
        }
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_try_change_source(
    place: u64,
    code: u32,
    opened_ns: u64,
    now_ns: u64,
) -> u64 {
    let Some(line) = maps::source_load_line(place as u32 / LINE as u32) else { return 1 };
    let word = line.word(place as usize & (LINE - 1));
    u64::from(load::try_change_source(&word, place >> 32, change(code), opened_ns, now_ns))
}
