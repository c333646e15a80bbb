//! The directory of cells: which line of the array is whose.
//!
//! A limit keeps its cell over restarts of the agent (found by identity in the pinned records) and
//! its fill over changes of its rate (the new cell starts equally full). A cell's parameters never
//! change while it lives: a packet that still holds the old rules spends from the old cell, and
//! what it spent is charged to the new one afterwards.
//!
//! Loads and breakers know nothing of their parameters, so they keep their cell, and its state,
//! whatever changes. Connections that are open name these cells: one that no rule names any more is
//! kept for an hour with all that stands in it, and after that for as long as some connection names
//! it. A limit that is written again meanwhile goes on with what it had. After a restart the hour
//! begins anew, because nothing but the limit's name stands in the record. The counts of single
//! sources name no cell, but are found under its number: the hour is all they have.

use std::{
    array,
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
};

use serde::Serialize;
use weir_common::{
    breaker,
    debt::{self, Tariff},
    gcra::{self, Params},
    layout::{CellKind, MAX_CELLS, Record},
    lease, load, way,
    window::Window,
};

use super::{
    error::DatapathError,
    maps::{CellCounts, Maps, VolumeCounts, Writers},
};
use crate::{
    clock::Clock,
    compile::{self, Identity},
    quota::store::Words as _,
};

/// For so long a cell is kept that connections may still name.
const KEPT_NS: u64 = 3600 * 1_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Entry {
    index: u32,
    record: Record,
    /// What happened at the cells that the limit had before, as far as this process saw.
    carried: CellCounts,
    volume: VolumeCounts,
    /// Until when the cell is kept although no rule names it.
    kept_until_ns: Option<u64>,
}

impl Entry {
    const fn new(index: u32, record: Record) -> Self {
        let carried = CellCounts { admitted: 0, refused: 0, shadowed: 0 };
        Self { index, record, carried, volume: VolumeCounts::ZERO, kept_until_ns: None }
    }

    fn kind(&self) -> CellKind {
        CellKind::from_code(self.record.kind).unwrap_or(CellKind::Free)
    }
}

/// Whether the state means the same under other parameters.
const fn outlives_parameters(kind: CellKind) -> bool {
    // The number of such a cell places the buckets of sources and connections: they keep what they
    // spent.
    matches!(kind, CellKind::Source | CellKind::Flow | CellKind::Window | CellKind::Lease)
        || is_tracked(kind)
}

/// Whether connections that are open name the cell, or are counted under its number.
const fn is_tracked(kind: CellKind) -> bool {
    matches!(kind, CellKind::Load | CellKind::SourceLoad | CellKind::Breaker)
}

/// A limit that moved to a new cell, until packets with the old rules are through.
#[derive(Clone, Copy, Debug)]
struct Move {
    from: Entry,
    to: Entry,
    /// The old cell's words when the new one was filled from it; the second of a debt only.
    words: [u64; 2],
}

/// The directory.
#[derive(Debug)]
pub(super) struct Cells {
    entries: BTreeMap<Identity, Entry>,
    owners: BTreeMap<u32, Identity>,
    free: BTreeSet<u32>,
    moves: Vec<Move>,
}

/// A limit's state, for people.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CellView {
    /// The cell.
    pub index: u32,
    /// Tokens or hits that could be taken now; of a bucket or a window only.
    pub tokens: Option<u64>,
    /// What is open now; of a load only.
    pub load: Option<LoadView>,
    /// Where a breaker is; of a breaker only.
    #[serde(skip)]
    pub breaker: Option<breaker::View>,
    /// What passed and what did not; of limits of bytes and packets only.
    pub volume: Option<VolumeCounts>,
    /// What happened so far.
    pub counts: CellCounts,
}

/// What a load counts at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LoadView {
    /// Connections, handshakes among them.
    pub connections: u64,
    /// Handshakes that are not complete.
    pub handshakes: u64,
}

impl Cells {
    /// Rebuilds the directory from the pinned records.
    pub(super) fn adopt(writers: &Writers) -> Result<Self, DatapathError> {
        let mut cells = Self {
            entries: BTreeMap::new(),
            owners: BTreeMap::new(),
            // Cell 0 is "none".
            free: (1..MAX_CELLS).collect(),
            moves: Vec::new(),
        };
        for index in 1..MAX_CELLS {
            let record = writers
                .records
                .get(&index, 0)
                .map_err(|source| DatapathError::Map { name: "RECORDS", source })?;
            if record.kind != CellKind::Free as u32 {
                let identity = Identity::from_words(record.identity);
                cells.free.remove(&index);
                cells.owners.insert(index, identity);
                cells.entries.insert(identity, Entry::new(index, record));
            }
        }
        Ok(cells)
    }

    /// Where a limit stands.
    pub(super) fn index(&self, identity: Identity) -> Option<u32> {
        self.entries.get(&identity).map(|entry| entry.index)
    }

    /// Whose a cell is.
    pub(super) fn identity(&self, index: u32) -> Option<Identity> {
        self.owners.get(&index).copied()
    }

    /// All limits that have a cell.
    pub(super) fn identities(&self) -> impl Iterator<Item = Identity> + '_ {
        self.entries.keys().copied()
    }

    /// Gives a limit a cell with these parameters; a cell that it leaves is returned, to be freed
    /// when no packet can know it any more.
    pub(super) fn ensure(
        &mut self,
        identity: Identity,
        cell: &compile::Cell,
        writers: &mut Writers,
        maps: &Maps,
        clock: &Clock,
    ) -> Result<Option<u32>, DatapathError> {
        let kind = match cell.kind {
            compile::CellKind::Bucket => CellKind::Gcra,
            compile::CellKind::Source => CellKind::Source,
            compile::CellKind::Load => CellKind::Load,
            compile::CellKind::SourceLoad => CellKind::SourceLoad,
            compile::CellKind::Breaker => CellKind::Breaker,
            compile::CellKind::Debt => CellKind::Debt,
            compile::CellKind::Flow => CellKind::Flow,
            compile::CellKind::Window => CellKind::Window,
            compile::CellKind::Lease => CellKind::Lease,
        };
        if let Some(entry) = self.entries.get_mut(&identity) {
            entry.kept_until_ns = None;
        }
        let old = self.entries.get(&identity).copied();
        if let Some(old) = old.filter(|old| old.record.kind == kind as u32) {
            if old.record.params == cell.params {
                return Ok(None);
            }
            if outlives_parameters(kind) {
                let entry = Entry { record: Record { params: cell.params, ..old.record }, ..old };
                write_record(writers, entry.index, entry.record)?;
                self.entries.insert(identity, entry);
                return Ok(None);
            }
        }
        let mut entry = self.allocate(identity, kind, cell.params, writers)?;
        entry.carried = old.map(|old| old.carried).unwrap_or_default();
        entry.volume = old.map(|old| old.volume).unwrap_or_default();
        let mut words = [0; 2];
        if let Some(old) = old.filter(|old| old.record.kind == kind as u32) {
            let before = words_of(maps, old.index);
            self.moves.push(Move { from: old, to: entry, words: before });
            let now = gcra::q8(clock.monotonic_ns());
            words = before.map(|word| rescale(kind, word, now, &old.record.params, &cell.params));
        }
        // Whoever had the cell before may have used more of its words.
        for (index, state) in maps.cell_words(entry.index).enumerate() {
            state.store(words.get(index).copied().unwrap_or(0), Ordering::SeqCst);
        }
        self.owners.insert(entry.index, identity);
        self.entries.insert(identity, entry);
        Ok(old.map(|old| old.index))
    }

    fn allocate(
        &mut self,
        identity: Identity,
        kind: CellKind,
        params: Params,
        writers: &mut Writers,
    ) -> Result<Entry, DatapathError> {
        let index = self
            .free
            .pop_first()
            .ok_or(DatapathError::Full { what: "limits", limit: MAX_CELLS - 1 })?;
        let before = writers
            .records
            .get(&index, 0)
            .map_err(|source| DatapathError::Map { name: "RECORDS", source })?;
        let record = Record {
            identity: identity.words(),
            params,
            kind: kind as u32,
            generation: before.generation.wrapping_add(1),
            _reserved: 0,
        };
        writers.clear_counts(index)?;
        write_record(writers, index, record)?;
        Ok(Entry::new(index, record))
    }

    /// Charges the new cells for what was spent at the old ones after they were copied. Called
    /// when no packet can hold the old rules any more.
    pub(super) fn settle(&mut self, maps: &Maps) {
        for Move { from, to, words } in self.moves.drain(..) {
            let identity = Identity::from_words(to.record.identity);
            if let (Some(entry), Ok(counts)) =
                (self.entries.get_mut(&identity), maps.counts(from.index))
            {
                entry.carried = entry.carried.and(counts);
                entry.volume = entry.volume.and(maps.volume(from.index).unwrap_or_default());
            }
            let now = words_of(maps, from.index);
            for ((state, before), now) in maps.cell_words(to.index).zip(words).zip(now) {
                let spent = now.wrapping_sub(before) as i64;
                let charge = in_tokens(spent, &from.record.params, &to.record.params);
                if charge > 0 && before != 0 {
                    let _ = state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
                        (word != 0).then(|| word.wrapping_add(charge))
                    });
                }
            }
        }
    }

    /// Takes a limit that no rule names out of the directory; its cell is returned, to be freed
    /// later. One that connections may name stays for now.
    pub(super) fn forget(&mut self, identity: Identity, now_ns: u64) -> Option<u32> {
        let entry = self.entries.get_mut(&identity)?;
        if is_tracked(entry.kind()) {
            entry.kept_until_ns.get_or_insert(now_ns + KEPT_NS);
            return None;
        }
        self.entries.remove(&identity).map(|entry| entry.index)
    }

    /// Frees the cells that were kept for long enough and that no connection names. `referred` tells
    /// those that one does; it is asked only if there is a cell to be freed.
    pub(super) fn free_kept<E>(
        &mut self,
        now_ns: u64,
        referred: impl FnOnce() -> Result<BTreeSet<u32>, E>,
        mut free: impl FnMut(&mut Self, u32) -> Result<(), E>,
    ) -> Result<(), E> {
        let is_due = |entry: &Entry| entry.kept_until_ns.is_some_and(|until| until <= now_ns);
        if !self.entries.values().any(is_due) {
            return Ok(());
        }
        let referred = referred();
        let may_name = |index| referred.as_ref().map_or(true, |cells| cells.contains(&index));
        let mut due = Vec::new();
        for (identity, entry) in &mut self.entries {
            if !is_due(entry) {
                continue;
            }
            if may_name(entry.index) {
                // Looked at again in an hour.
                entry.kept_until_ns = Some(now_ns + KEPT_NS);
            } else {
                due.push((*identity, entry.index));
            }
        }
        referred?;
        due.into_iter().try_for_each(|(identity, index)| {
            self.entries.remove(&identity);
            free(self, index)
        })
    }

    /// Frees a cell that no packet can know any more.
    pub(super) fn free(&mut self, index: u32, writers: &mut Writers) -> Result<(), DatapathError> {
        let before = writers
            .records
            .get(&index, 0)
            .map_err(|source| DatapathError::Map { name: "RECORDS", source })?;
        write_record(
            writers,
            index,
            Record { generation: before.generation, ..Record::default() },
        )?;
        self.owners.remove(&index);
        self.free.insert(index);
        Ok(())
    }

    /// Those that count connections.
    pub(super) fn loads(&self) -> impl Iterator<Item = u32> + '_ {
        let loads = self.entries.values().filter(|entry| entry.kind() == CellKind::Load);
        loads.map(|entry| entry.index)
    }

    /// The state of a limit now.
    pub(super) fn view(&self, identity: Identity, maps: &Maps, clock: &Clock) -> Option<CellView> {
        let entry = self.entries.get(&identity)?;
        let counts = entry.carried.and(maps.counts(entry.index).ok()?);
        let now_ns = clock.monotonic_ns();
        let word = word_of(maps, entry.index);
        let mut view = CellView {
            index: entry.index,
            tokens: None,
            load: None,
            breaker: None,
            volume: None,
            counts,
        };
        match entry.kind() {
            CellKind::Gcra => {
                let tokens = gcra::tokens_left(word, gcra::q8(now_ns), &entry.record.params);
                view.tokens = Some(tokens);
            }
            CellKind::Window => {
                let Params { cost: period_s, burst: limit, .. } = entry.record.params;
                let now_s = clock.realtime_ns() / 1_000_000_000;
                let count = Window::at(now_s, period_s.max(1)).count(word);
                view.tokens = Some(limit.saturating_sub(count));
            }
            CellKind::Lease => {
                let Params { cost: period_s, burst: limit, .. } = entry.record.params;
                let window = clock.realtime_ns() / 1_000_000_000 / period_s.max(1);
                let lease = maps.lease(entry.index)?;
                let [window, limit] = [window, limit].map(|number| u32::try_from(number).ok());
                view.tokens = Some(lease::Cell(lease.words()).remaining(window?, limit?).into());
            }
            CellKind::Load => {
                let load = load::read(word, now_ns);
                let (connections, handshakes) = (load.connections(), load.handshakes());
                view.load = Some(LoadView { connections, handshakes });
            }
            CellKind::Breaker => {
                // Its own parameters stand behind its words, as the kernel was told them last.
                let line: [AtomicU64; way::LINE] = array::from_fn(|_| AtomicU64::new(0));
                for (to, word) in line.iter().zip(maps.cell_words(entry.index)) {
                    to.store(word.load(Ordering::SeqCst), Ordering::Relaxed);
                }
                let word = |index: usize| line[breaker::WORDS + index].load(Ordering::Relaxed);
                let params = breaker::Params::unpack([word(0), word(1), word(2)]);
                view.breaker = Some(breaker::read(&line, &params, now_ns));
            }
            CellKind::Debt | CellKind::Flow => {
                let volume = entry.volume.and(maps.volume(entry.index).ok()?);
                view.volume = Some(volume);
                view.counts = CellCounts {
                    admitted: volume.passed_packets,
                    refused: volume.dropped_packets,
                    shadowed: volume.shadowed_packets,
                };
            }
            _ => {}
        }
        Some(view)
    }
}

/// The first two state words of a cell.
fn words_of(maps: &Maps, index: u32) -> [u64; 2] {
    let mut words = maps.cell_words(index).map(|word| word.load(Ordering::SeqCst));
    [words.next().unwrap_or(0), words.next().unwrap_or(0)]
}

/// A state word of a bucket whose parameters change.
fn rescale(kind: CellKind, word: u64, now: gcra::Q8, old: &Params, new: &Params) -> u64 {
    if kind != CellKind::Debt {
        return gcra::rescale(word, now, old, new);
    }
    let tariff = |params: &Params| Tariff { price: params.cost, burst: params.burst };
    debt::rescale(word, now, &tariff(old), &tariff(new))
}

/// What was spent under old parameters, as time under new ones; a burst at most.
fn in_tokens(spent: i64, old: &Params, new: &Params) -> u64 {
    let spent = u128::from(spent.max(0).unsigned_abs());
    let charge = spent * u128::from(new.cost) / u128::from(old.cost.max(1));
    u64::try_from(charge).unwrap_or(u64::MAX).min(new.burst)
}

fn word_of(maps: &Maps, index: u32) -> u64 {
    maps.cell(index).map_or(0, |word| word.load(Ordering::SeqCst))
}

fn write_record(writers: &mut Writers, index: u32, record: Record) -> Result<(), DatapathError> {
    writers
        .records
        .set(index, record, 0)
        .map_err(|source| DatapathError::Map { name: "RECORDS", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = KEPT_NS;

    fn cells(kind: CellKind) -> (Cells, Identity) {
        let identity = Identity::workload("web");
        let record = Record { identity: identity.words(), kind: kind as u32, ..Record::default() };
        let cells = Cells {
            entries: BTreeMap::from([(identity, Entry::new(7, record))]),
            owners: BTreeMap::from([(7, identity)]),
            free: BTreeSet::new(),
            moves: Vec::new(),
        };
        (cells, identity)
    }

    /// The cells that are freed at a time, while connections name these.
    fn freed(cells: &mut Cells, now_ns: u64, referred: &[u32]) -> Vec<u32> {
        let mut freed = Vec::new();
        let referred = || Ok::<_, ()>(referred.iter().copied().collect());
        let free = |_: &mut Cells, index| {
            freed.push(index);
            Ok(())
        };
        cells.free_kept(now_ns, referred, free).unwrap();
        freed
    }

    #[test]
    fn a_bucket_that_no_rule_names_is_given_back_at_once() {
        for kind in [CellKind::Gcra, CellKind::Source] {
            let (mut cells, identity) = cells(kind);
            assert_eq!(cells.forget(identity, 5), Some(7));
            assert_eq!(cells.index(identity), None);
        }
    }

    #[test]
    fn a_cell_that_connections_name_is_kept_for_an_hour_and_for_as_long_as_one_does() {
        for kind in [CellKind::Load, CellKind::SourceLoad, CellKind::Breaker] {
            let (mut cells, identity) = cells(kind);
            assert_eq!(cells.forget(identity, 5), None);
            // Told again at every change of policy: the first time counts.
            assert_eq!(cells.forget(identity, 900), None);
            assert_eq!(cells.index(identity), Some(7));
            assert_eq!(freed(&mut cells, HOUR + 4, &[]), [0; 0]);
            assert_eq!(freed(&mut cells, HOUR + 5, &[3, 7]), [0; 0]);
            assert_eq!(freed(&mut cells, 2 * HOUR, &[]), [0; 0]);
            assert_eq!(freed(&mut cells, 2 * HOUR + 5, &[3]), [7]);
            assert_eq!(cells.index(identity), None);
        }
    }

    #[test]
    fn nobody_looks_through_the_connections_for_nothing() {
        let (mut cells, identity) = cells(CellKind::Load);
        cells.forget(identity, 5);
        let never = || Err("looked");
        assert_eq!(cells.free_kept(HOUR, never, |_, _| Ok(())), Ok(()));
        assert_eq!(cells.free_kept(HOUR + 5, never, |_, _| Ok(())), Err("looked"));
        assert_eq!(cells.index(identity), Some(7));
    }
}
