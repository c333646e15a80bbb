//! Tracked connections, mapped: here the agent does what a CPU does when it sees a segment.
//!
//! It changes words by the same functions and by compare-and-swap only, so what it changes counts
//! once, whatever the kernel does meanwhile.

use std::{
    mem::{offset_of, transmute},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use weir_common::{
    addr::Addr,
    layout::{
        Block, Direction, MAX_LOADS, MAX_SOURCE_LOADS, Rule, RuleKind, SOURCE_LOAD_LINES, Slot,
        TRACK_LINES,
    },
    load::{self, Change, MAX_CONNECTIONS, Opened},
    nh::Secret,
    track::{self, End, Phase, Segment, flag},
    way::{self, LINE},
};

use super::{
    error::DatapathError,
    maps::{Mapped, Maps},
};
use crate::clock::Clock;

const SLOT_WORDS: usize = size_of::<Slot>() / size_of::<u64>();
const WAYS: usize = TRACK_LINES as usize * LINE;

/// Both are bounded for a CPU of the kernel; here an attempt that fails is made again, and nobody
/// changes one word ten thousand times meanwhile.
const ATTEMPTS: u32 = 10_000;

/// A connection as its workload sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The workload's address.
    pub local: Addr,
    /// The other end's.
    pub remote: Addr,
    /// The workload's port.
    pub local_port: u16,
    /// The other end's.
    pub remote_port: u16,
}

impl Key {
    const fn ports(&self) -> u32 {
        (self.local_port as u32) << 16 | self.remote_port as u32
    }

    fn of(slot: &Slot) -> Self {
        Self {
            local: slot.local,
            remote: slot.remote,
            local_port: (slot.ports >> 16) as u16,
            remote_port: slot.ports as u16,
        }
    }

    /// The two lines that may hold it, and its tag there.
    fn places(&self, secret: &Secret, workload: u32) -> ([u32; 2], u64) {
        track::places(secret, self.local, self.remote, self.ports(), workload)
    }
}

/// What changes beside a connection's word while it is used: what both ends acknowledged, their FINs,
/// another SYN.
pub type Seen = [u32; 5];

/// An established connection that is tracked, at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its number in `TRACKS` and `SLOTS`.
    pub place: u32,
    /// Its word.
    pub word: u64,
    /// Who it is.
    pub key: Key,
    /// The workload's slot.
    pub workload: u32,
    /// Which way its SYN went.
    pub direction: Direction,
    /// What changes while it is used.
    pub seen: Seen,
}

/// Which end has said that it sends no more, and was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfClosed {
    /// None.
    No,
    /// The workload's.
    Local,
    /// The other.
    Remote,
}

/// A connection that was adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopted {
    place: u32,
    /// The word that it was given.
    word: u64,
}

/// What came of an adoption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// It is tracked from here on, and counted.
    Adopted(Adopted),
    /// It is tracked already.
    Known,
    /// There is no room to track it.
    NoRoom,
    /// No rule would count it.
    NotCounted,
}

/// The rules of a block that count the connections of a peer; none for one that is not counted.
pub fn counts_in(block: &Block, peer: Addr) -> Vec<&Rule> {
    let mut counting = Vec::new();
    for rule in block.rules.iter().take(block.count as usize) {
        if peer.masked(rule.mask) != rule.peer {
            continue;
        }
        if rule.kind == RuleKind::Exempt as u8 || rule.kind == RuleKind::Probe as u8 {
            return Vec::new();
        }
        if is(rule, RuleKind::Load) || is(rule, RuleKind::SourceLoad) {
            counting.push(rule);
        }
    }
    counting
}

pub(super) fn is(rule: &Rule, kind: RuleKind) -> bool {
    rule.kind == kind as u8
}

/// The maps of connections, mapped for as long as it takes to look through them, which is seldom.
pub struct Tracks<'a> {
    tracks: Mapped,
    slots: Mapped,
    pub(super) source_loads: Mapped,
    pub(super) maps: &'a Maps,
    pub(super) secret: Secret,
    clock: Clock,
}

impl<'a> Tracks<'a> {
    pub(super) fn open(
        directory: &Path,
        maps: &'a Maps,
        clock: Clock,
    ) -> Result<Self, DatapathError> {
        Ok(Self {
            tracks: Mapped::open(directory, "TRACKS", WAYS)?,
            slots: Mapped::open(directory, "SLOTS", WAYS * SLOT_WORDS)?,
            source_loads: Mapped::open(
                directory,
                "SOURCE_LOADS",
                SOURCE_LOAD_LINES as usize * LINE,
            )?,
            secret: maps.secret(),
            maps,
            clock,
        })
    }

    /// All established connections.
    pub fn established(&self) -> impl Iterator<Item = Connection> + '_ {
        (0..WAYS as u32).filter_map(|place| {
            let word = self.word(place)?.load(Ordering::SeqCst);
            if track::phase(word) != Phase::Established {
                return None;
            }
            let slot = self.slot(place)?;
            // What was read belongs together if the owner still is the same.
            if self.word(place)?.load(Ordering::SeqCst) != word {
                return None;
            }
            let ([local, remote], [local_fin, remote_fin]) = (slot.acknowledged, slot.fins);
            Some(Connection {
                place,
                word,
                key: Key::of(&slot),
                workload: slot.owner >> 1,
                direction: direction(slot.owner),
                seen: [local, remote, local_fin, remote_fin, slot.again],
            })
        })
    }

    /// What stands beside all established connections.
    pub(super) fn established_slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.established().filter_map(|connection| self.slot(connection.place))
    }

    /// Whether a connection of a workload is tracked, in whatever state.
    pub fn is_tracked(&self, workload: u32, key: &Key) -> bool {
        self.find(workload, key, None).is_some()
    }

    /// Where a connection stands, at any other place than this one.
    fn find(&self, workload: u32, key: &Key, but: Option<u32>) -> Option<u32> {
        let (lines, tag) = key.places(&self.secret, workload);
        let now_ns = self.clock.monotonic_ns();
        for line in lines.map(|line| line as usize) {
            let ways = self.tracks.line(line)?;
            let mut way = track::find(&ways, 0, tag, now_ns);
            while way < LINE {
                let place = (line * LINE + way) as u32;
                let slot = self.slot(place)?;
                if Some(place) != but && slot.owner >> 1 == workload && Key::of(&slot) == *key {
                    return Some(place);
                }
                way = track::find(&ways, way + 1, tag, now_ns);
            }
        }
        None
    }

    /// Removes a connection and takes it out of the counts, unless its word is another by now.
    /// Breakers learn nothing of it.
    pub fn remove(&self, connection: &Connection) -> bool {
        self.remove_word(connection.place, connection.word)
    }

    /// Removes the connections of slots that are no workload's any more: whoever has the slot next
    /// has nothing to do with them.
    pub(super) fn vacate(&self, is_left: impl Fn(u32) -> bool) -> usize {
        let left = self.established().filter(|connection| is_left(connection.workload));
        left.filter(|connection| self.remove(connection)).count()
    }

    fn remove_word(&self, place: u32, word: u64) -> bool {
        let (Some(cell), Some(slot)) = (self.word(place), self.slot(place)) else { return false };
        let Some(step) = track::removed(word, self.clock.monotonic_ns()) else { return false };
        // The slot was this owner's while the word was: generations tell owners apart.
        if !swap(cell, word, step.word) {
            return false;
        }
        if let Some(change) = step.event.change() {
            self.count(&slot, change);
        }
        true
    }

    /// Takes back an adoption, for a connection that was gone already. What the kernel did with it
    /// meanwhile stands.
    pub fn disown(&self, adopted: Adopted) -> bool {
        for _ in 0..ATTEMPTS {
            let Some(word) = self.word(adopted.place).map(|word| word.load(Ordering::SeqCst))
            else {
                return false;
            };
            if !track::same_owner(word, adopted.word) || track::phase(word) != Phase::Established {
                return false;
            }
            if self.remove_word(adopted.place, word) {
                return true;
            }
        }
        false
    }

    /// Takes back an adoption if the kernel tracked the same connection at the same time: it looked
    /// before this one was there, and claimed its own place after. True if it was taken back.
    pub fn disown_twin(&self, workload: u32, key: &Key, adopted: Adopted) -> bool {
        self.find(workload, key, Some(adopted.place)).is_some() && self.disown(adopted)
    }

    /// Tracks a connection that is older than whoever tracks it, and counts it wherever the rules of
    /// its port count connections, whatever their bounds are. No token is spent.
    ///
    /// The way is claimed as a handshake's, which counts nothing and expires by itself, so that what
    /// dies half-way leaves nothing behind.
    pub fn adopt(
        &self,
        workload: u32,
        direction: Direction,
        key: &Key,
        rules: &Block,
        half: HalfClosed,
    ) -> Adoption {
        let counting = counts_in(rules, key.remote);
        if counting.is_empty() {
            return Adoption::NotCounted;
        }
        if self.is_tracked(workload, key) {
            return Adoption::Known;
        }
        let opener = match direction {
            Direction::Ingress => End::Remote,
            Direction::Egress => End::Local,
        };
        let Some((place, claimed, tag)) = self.claim(workload, key, opener) else {
            return Adoption::NoRoom;
        };
        let mut slot = Slot {
            local: key.local,
            remote: key.remote,
            ports: key.ports(),
            owner: workload << 1 | direction as u32,
            opened_ns: self.clock.monotonic_ns(),
            ..Slot::default()
        };
        self.describe(place, slot);
        if self.find(workload, key, Some(place)).is_some() {
            self.give_up(place, claimed);
            return Adoption::Known;
        }
        self.count_in(&mut slot, &counting);
        self.describe(place, slot);
        let word = established(claimed, tag, &slot, half, self.clock.monotonic_ns());
        let Some(cell) = self.word(place) else { return Adoption::NoRoom };
        if !swap(cell, claimed, word) {
            // Somebody opens it anew just now: the next audit will see what came of it.
            self.count(&slot, Change::Closed);
            return Adoption::Known;
        }
        Adoption::Adopted(Adopted { place, word })
    }

    /// Claims a way: its place, its word and the connection's tag.
    fn claim(&self, workload: u32, key: &Key, opener: End) -> Option<(u32, u64, u64)> {
        let (lines, tag) = key.places(&self.secret, workload);
        let mut lines = lines.map(|line| line as usize);
        // The emptier first, as the programs do, or lines would be full long before the table is.
        let now_ns = self.clock.monotonic_ns();
        let rooms = |line| self.tracks.line(line).map(|ways| track::rooms(&ways, now_ns));
        if rooms(lines[0]) < rooms(lines[1]) {
            lines.swap(0, 1);
        }
        for line in lines {
            let ways = self.tracks.line(line)?;
            loop {
                let now_ns = self.clock.monotonic_ns();
                let way = track::room(&ways, now_ns);
                let Some(&cell) = ways.get(way) else { break };
                let word = cell.load(Ordering::SeqCst);
                let claimed = track::opening(word, tag, opener, now_ns);
                // Another may take the way first; there are seven more.
                if track::is_absent(word, now_ns) && swap(cell, word, claimed) {
                    return Some(((line * LINE + way) as u32, claimed, tag));
                }
            }
        }
        None
    }

    fn give_up(&self, place: u32, claimed: u64) {
        if let Some(cell) = self.word(place) {
            // If it is not ours any more, there is nothing to give up.
            swap(cell, claimed, track::freed(claimed));
        }
    }

    /// Counts an established connection by these rules, and notes in its slot where.
    fn count_in(&self, slot: &mut Slot, rules: &[&Rule]) {
        let (mut loads, mut sources) = (0, 0);
        for rule in rules {
            if is(rule, RuleKind::Load) && loads < MAX_LOADS {
                slot.loads[loads] = rule.cell as u16;
                loads += 1;
                self.change_load(rule.cell, Change::Reopened, slot.opened_ns);
            } else if is(rule, RuleKind::SourceLoad) && sources < MAX_SOURCE_LOADS {
                slot.source_loads[sources] = self.open_source(rule, slot);
                sources += 1;
            }
        }
    }

    /// Counts an established connection of a source: as a handshake that is complete at once, because
    /// only those claim a way. Returns where, as a slot keeps it; 0 for nowhere.
    pub(super) fn open_source(&self, rule: &Rule, slot: &Slot) -> u64 {
        let (index, tag) = source_place(&self.secret, rule, slot.remote);
        let Some(line) = self.source_loads.line(index) else { return 0 };
        for _ in 0..ATTEMPTS {
            let now_ns = self.clock.monotonic_ns();
            let opened = load::open_source(&line, tag, now_ns, MAX_CONNECTIONS);
            match opened.opened {
                Opened::Contended => {}
                Opened::TooManyConnections | Opened::TooManyHandshakes => return 0,
                Opened::Opened => {
                    let owner = if opened.way == load::WAYS { load::SHARED } else { tag };
                    let place = owner << 32 | (index * LINE + opened.way) as u64;
                    self.change_source(place, Change::Established, now_ns);
                    return place;
                }
            }
        }
        0
    }

    /// Counts what happened to a connection, wherever it counts.
    fn count(&self, slot: &Slot, change: Change) {
        for cell in slot.loads.into_iter().filter(|cell| *cell != 0) {
            self.change_load(u32::from(cell), change, slot.opened_ns);
        }
        for place in slot.source_loads.into_iter().filter(|place| *place != 0) {
            self.change_source(place, change, slot.opened_ns);
        }
    }

    pub(super) fn change_load(&self, cell: u32, change: Change, opened_ns: u64) {
        let Some(cell) = self.maps.cell(cell) else { return };
        for _ in 0..ATTEMPTS {
            if load::try_change(&cell, change, opened_ns, self.clock.monotonic_ns()) {
                break;
            }
        }
    }

    fn change_source(&self, place: u64, change: Change, opened_ns: u64) {
        let Some(word) = self.source_loads.word(place as u32 as usize) else { return };
        for _ in 0..ATTEMPTS {
            let now_ns = self.clock.monotonic_ns();
            if load::try_change_source(&word, place >> 32, change, opened_ns, now_ns) {
                break;
            }
        }
    }

    pub(super) fn word(&self, place: u32) -> Option<&AtomicU64> {
        self.tracks.word(place as usize)
    }

    pub(super) fn slot(&self, place: u32) -> Option<Slot> {
        let mut words = [0; SLOT_WORDS];
        for (index, to) in words.iter_mut().enumerate() {
            *to = self.slots.word(place as usize * SLOT_WORDS + index)?.load(Ordering::SeqCst);
        }
        // SAFETY: `repr(C)` integers without padding (`Slot: aya::Pod`), of the same size: any words
        // are a slot.
        Some(unsafe { transmute::<[u64; SLOT_WORDS], Slot>(words) })
    }

    pub(super) fn slot_word(&self, place: u32, index: usize) -> Option<&AtomicU64> {
        self.slots.word(place as usize * SLOT_WORDS + index)
    }

    fn describe(&self, place: u32, slot: Slot) {
        // SAFETY: integers without padding, of the same size.
        let words = unsafe { transmute::<Slot, [u64; SLOT_WORDS]>(slot) };
        for (index, word) in words.into_iter().enumerate() {
            if let Some(to) = self.slots.word(place as usize * SLOT_WORDS + index) {
                to.store(word, Ordering::SeqCst);
            }
        }
    }
}

// No padding: the fields fill the slot to its end.
const _: () = assert!(offset_of!(Slot, _reserved_too) + 16 == size_of::<Slot>());

/// Changes a word unless it is another by now.
pub(super) fn swap(cell: &AtomicU64, word: u64, new: u64) -> bool {
    cell.compare_exchange(word, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}

const fn direction(owner: u32) -> Direction {
    if owner & 1 == Direction::Ingress as u32 { Direction::Ingress } else { Direction::Egress }
}

/// The line and tag of a peer's own load under a rule.
pub(super) fn source_place(secret: &Secret, rule: &Rule, peer: Addr) -> (usize, u64) {
    let hash = rule.group_hash(secret, peer);
    (way::line_of(hash, SOURCE_LOAD_LINES) as usize, load::tag(hash))
}

/// The word of an adopted connection. Who said that it sends no more does not say it again: it is
/// told to the word as if it was seen now.
fn established(claimed: u64, tag: u64, slot: &Slot, half: HalfClosed, now_ns: u64) -> u64 {
    let word = track::adopted(claimed, tag);
    let by = match half {
        HalfClosed::No => return word,
        HalfClosed::Local => End::Local,
        HalfClosed::Remote => End::Remote,
    };
    // Numbers do not matter: of a fresh slot, 0 acknowledges the FIN.
    let said = |from, flags| Segment { from, flags, sequence: 0, acknowledgment: 0, payload: 0 };
    [said(by, flag::FIN), said(by.other(), flag::ACK)].iter().fold(word, |word, segment| {
        track::next(word, slot, segment, now_ns).map_or(word, |step| step.word)
    })
}

#[cfg(test)]
mod tests {
    use weir_common::track::Event;

    use super::*;

    const NOW: u64 = 1 << 40;

    fn follow(word: u64, slot: &Slot, from: End, flags: u8) -> Option<(u64, Event)> {
        let segment = Segment { from, flags, sequence: 7, acknowledgment: 8, payload: 0 };
        track::next(word, slot, &segment, NOW).map(|step| (step.word, step.event))
    }

    #[test]
    fn an_adopted_connection_ends_as_others_do() {
        let slot = Slot::default();
        let word = established(0, 5, &slot, HalfClosed::No, NOW);
        assert_eq!(track::phase(word), Phase::Established);
        let mut slot = slot;
        slot.fins = [8; 2];
        let (word, event) = follow(word, &slot, End::Local, flag::FIN | flag::ACK).unwrap();
        assert_eq!(event, Event::Nothing);
        let (word, event) = follow(word, &slot, End::Remote, flag::FIN | flag::ACK).unwrap();
        assert_eq!(event, Event::Nothing);
        let (word, event) = follow(word, &slot, End::Local, flag::ACK).unwrap();
        assert_eq!((track::phase(word), event), (Phase::Free, Event::Closed));
    }

    #[test]
    fn one_that_is_closed_by_half_ends_with_the_other_half() {
        for (half, other) in [(HalfClosed::Local, End::Remote), (HalfClosed::Remote, End::Local)] {
            let mut slot = Slot::default();
            let word = established(0, 5, &slot, half, NOW);
            assert_eq!(track::phase(word), Phase::Established);
            slot.fins[other as usize] = 8;
            let (word, event) = follow(word, &slot, other, flag::FIN | flag::ACK).unwrap();
            assert_eq!(event, Event::Nothing);
            let (_, event) = follow(word, &slot, other.other(), flag::ACK).unwrap();
            assert_eq!(event, Event::Closed);
        }
    }

    #[test]
    fn exempt_peers_and_probes_are_not_counted() {
        let rule = |kind: RuleKind, cell| Rule { kind: kind as u8, cell, ..Rule::default() };
        let block = |kinds: &[RuleKind]| {
            let mut block = Block { count: kinds.len() as u32, ..Block::default() };
            for (index, kind) in kinds.iter().enumerate() {
                block.rules[index] = rule(*kind, index as u32 + 1);
            }
            block
        };
        let peer = Addr::v4(1);
        let cells = |block: &Block| -> Vec<u32> {
            counts_in(block, peer).iter().map(|rule| rule.cell).collect()
        };
        use RuleKind::{Breaker, Exempt, Limit, Load, Probe, SourceLoad};
        assert_eq!(cells(&block(&[Limit, Load, Breaker, SourceLoad])), [2, 4]);
        assert_eq!(cells(&block(&[Limit, Breaker])), [0; 0]);
        assert_eq!(cells(&block(&[Exempt, Load])), [0; 0]);
        assert_eq!(cells(&block(&[Probe, Load])), [0; 0]);
        let mut foreign = block(&[Exempt, Load]);
        foreign.rules[0].mask = Addr::mask(128);
        foreign.rules[0].peer = Addr::v4(2);
        assert_eq!(cells(&foreign), [2]);
    }

    #[test]
    fn a_rule_that_is_not_in_use_counts_nobody() {
        let mut block = Block { count: 1, ..Block::default() };
        block.rules[0].kind = RuleKind::Limit as u8;
        block.rules[1].kind = RuleKind::Load as u8;
        assert!(counts_in(&block, Addr::v4(1)).is_empty());
    }
}
