//! Words that count connections, compared with the connections that say that they count there.
//!
//! Each connection notes beside itself where it counts. So what a counter should hold can be added up
//! anew, whatever it holds.

use std::{collections::BTreeMap, mem::offset_of, sync::atomic::Ordering};

use weir_common::{
    layout::{Block, MAX_LOADS, RuleKind, SOURCE_LOAD_LINES, Slot},
    load,
    track::{self, Phase},
    way::LINE,
};

use super::tracks::{Connection, Tracks, counts_in, is, source_place, swap};

/// A word that counts connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// A load, by its cell.
    Load(u32),
    /// A source's load, by its number in `SOURCE_LOADS`.
    Source(u32),
}

/// A counter that nobody touched while the connections were listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recount {
    /// Which.
    pub counter: Counter,
    /// Its word.
    pub word: u64,
    /// The established connections that the word holds.
    pub holds: u64,
    /// The established connections that count there.
    pub found: u64,
}

impl Recount {
    /// By how many the word is too high; negative when it is too low.
    pub const fn drift(&self) -> i64 {
        self.holds as i64 - self.found as i64
    }
}

impl Tracks<'_> {
    /// Adds up anew what these loads and all sources' loads should hold. A counter that changed
    /// meanwhile is left out: a sum of what moves proves nothing.
    pub fn recount(&self, loads: impl IntoIterator<Item = u32>) -> Vec<Recount> {
        let loads = loads.into_iter().map(Counter::Load);
        let ways = (0..SOURCE_LOAD_LINES * LINE as u32).map(Counter::Source);
        let words: BTreeMap<Counter, u64> = loads
            .chain(ways)
            .filter_map(|counter| Some((counter, self.counter(counter)?)))
            .filter(|(_, word)| *word != 0)
            .collect();
        let mut found = BTreeMap::<Counter, u64>::new();
        for slot in self.established_slots() {
            for cell in slot.loads.into_iter().filter(|cell| *cell != 0) {
                *found.entry(Counter::Load(cell.into())).or_default() += 1;
            }
            for place in slot.source_loads.into_iter().filter(|place| *place != 0) {
                let counter = Counter::Source(place as u32);
                // A way that has another owner by now has forgotten this connection.
                if words.get(&counter).is_some_and(|word| load::owner(*word) == place >> 32) {
                    *found.entry(counter).or_default() += 1;
                }
            }
        }
        let rested = |(counter, word): (&Counter, &u64)| {
            (self.counter(*counter)? == *word).then(|| Recount {
                counter: *counter,
                word: *word,
                holds: load::established(*word),
                found: found.get(counter).copied().unwrap_or_default(),
            })
        };
        words.iter().filter_map(rested).collect()
    }

    /// Makes a counter hold what was found, unless somebody changed it since; whether it was done.
    pub fn correct(&self, recount: &Recount) -> bool {
        let new = load::corrected(recount.word, recount.found);
        match recount.counter {
            Counter::Load(cell) => {
                self.maps.cell(cell).is_some_and(|word| swap(word, recount.word, new))
            }
            Counter::Source(way) => self
                .source_loads
                .word(way as usize)
                .is_some_and(|word| swap(word, recount.word, new)),
        }
    }

    fn counter(&self, counter: Counter) -> Option<u64> {
        let word = match counter {
            Counter::Load(cell) => self.maps.cell(cell)?,
            Counter::Source(way) => self.source_loads.word(way as usize)?,
        };
        Some(word.load(Ordering::SeqCst))
    }

    /// Counts a connection in those rules of its port that came after it; in how many.
    ///
    /// It is noted before it is counted: if it ends in between, a count is wrong that the next
    /// recount finds, and not one that nobody would.
    pub fn count_late(&self, connection: &Connection, rules: &Block) -> usize {
        let Connection { place, word, key, .. } = *connection;
        let mut counted = 0;
        for rule in counts_in(rules, key.remote) {
            let Some(slot) = self.slot(place) else { break };
            let lives = self.word(place).is_some_and(|cell| {
                let now = cell.load(Ordering::SeqCst);
                track::same_owner(now, word) && track::phase(now) == Phase::Established
            });
            if !lives {
                break;
            }
            if is(rule, RuleKind::Load) {
                let cell = rule.cell as u16;
                let free = slot.loads.iter().position(|noted| *noted == 0);
                let Some(free) = free.filter(|_| !slot.loads.contains(&cell)) else { continue };
                if self.note_load(place, free, cell) {
                    self.change_load(rule.cell, load::Change::Reopened, slot.opened_ns);
                    counted += 1;
                }
            } else if is(rule, RuleKind::SourceLoad) {
                let (line, _) = source_place(&self.secret, rule, key.remote);
                let is_there = |noted: &u64| *noted as u32 as usize / LINE == line;
                let free = slot.source_loads.iter().position(|noted| *noted == 0);
                let known = slot.source_loads.iter().any(|noted| *noted != 0 && is_there(noted));
                let Some(free) = free.filter(|_| !known) else { continue };
                let noted = self.open_source(rule, &slot);
                if noted != 0 && self.note_source(place, free, noted) {
                    counted += 1;
                }
            }
        }
        counted
    }

    /// Writes one of a slot's loads and leaves what stands beside it, which packets change.
    fn note_load(&self, place: u32, index: usize, cell: u16) -> bool {
        let at = offset_of!(Slot, loads) + 2 * (index % MAX_LOADS);
        let shift = 8 * (at % 8) as u32;
        self.slot_word(place, at / 8).is_some_and(|word| {
            word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| {
                Some(old & !(0xffff << shift) | u64::from(cell) << shift)
            })
            .is_ok()
        })
    }

    fn note_source(&self, place: u32, index: usize, noted: u64) -> bool {
        let at = offset_of!(Slot, source_loads) / 8 + index;
        self.slot_word(place, at).is_some_and(|word| {
            word.compare_exchange(0, noted, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        })
    }
}
