//! The directory of cells: which line of the array is whose.
//!
//! A limit keeps its cell over restarts of the agent (found by identity in the pinned records) and
//! its fill over changes of its rate (the new cell starts equally full). A cell's parameters never
//! change while it lives: a packet that still holds the old rules spends from the old cell, and
//! what it spent is charged to the new one afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use serde::Serialize;
use weir_common::{
    gcra::{self, Params},
    layout::{CellKind, MAX_CELLS, Record},
};

use super::{
    error::DatapathError,
    maps::{CellCounts, Maps, Writers},
};
use crate::{
    clock::Clock,
    compile::{self, Identity},
};

#[derive(Clone, Copy, Debug)]
struct Entry {
    index: u32,
    record: Record,
    /// What happened at the cells that the limit had before, as far as this process saw.
    carried: CellCounts,
}

/// A limit that moved to a new cell, until packets with the old rules are through.
#[derive(Clone, Copy, Debug)]
struct Move {
    from: Entry,
    to: Entry,
    /// The old cell's word when the new one was filled from it.
    word: u64,
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
    /// Tokens that could be taken now; `None` for limits per source, which have many buckets.
    pub tokens: Option<u64>,
    /// What happened so far.
    pub counts: CellCounts,
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
                let carried = CellCounts::default();
                cells.entries.insert(identity, Entry { index, record, carried });
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
        };
        let old = self.entries.get(&identity).copied();
        if let Some(old) = old.filter(|old| old.record.kind == kind as u32) {
            if old.record.params == cell.params {
                return Ok(None);
            }
            if kind == CellKind::Source {
                // The cell's number places the sources' buckets: they keep what they spent.
                let entry = Entry { record: Record { params: cell.params, ..old.record }, ..old };
                write_record(writers, entry.index, entry.record)?;
                self.entries.insert(identity, entry);
                return Ok(None);
            }
        }
        let mut entry = self.allocate(identity, kind, cell.params, writers)?;
        entry.carried = old.map(|old| old.carried).unwrap_or_default();
        let word = match old.filter(|old| old.record.kind == kind as u32) {
            Some(old) => {
                let word = load(maps, old.index);
                self.moves.push(Move { from: old, to: entry, word });
                let now = gcra::q8(clock.monotonic_ns());
                gcra::rescale(word, now, &old.record.params, &cell.params)
            }
            None => 0,
        };
        if let Some(state) = maps.cell(entry.index) {
            state.store(word, Ordering::SeqCst);
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
        Ok(Entry { index, record, carried: CellCounts::default() })
    }

    /// Charges the new cells for what was spent at the old ones after they were copied. Called
    /// when no packet can hold the old rules any more.
    pub(super) fn settle(&mut self, maps: &Maps) {
        for Move { from, to, word } in self.moves.drain(..) {
            let identity = Identity::from_words(to.record.identity);
            if let (Some(entry), Ok(counts)) =
                (self.entries.get_mut(&identity), maps.counts(from.index))
            {
                entry.carried = entry.carried.and(counts);
            }
            let spent = load(maps, from.index).wrapping_sub(word) as i64;
            let tokens = if spent > 0 { spent as u64 / from.record.params.cost } else { 0 };
            if let (Some(state), true) = (maps.cell(to.index), tokens > 0 && word != 0) {
                let charge =
                    tokens.saturating_mul(to.record.params.cost).min(to.record.params.burst);
                let _ = state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
                    (word != 0).then(|| word.wrapping_add(charge))
                });
            }
        }
    }

    /// Takes a limit out of the directory; its cell is returned, to be freed later.
    pub(super) fn forget(&mut self, identity: Identity) -> Option<u32> {
        self.entries.remove(&identity).map(|entry| entry.index)
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

    /// The state of a limit now.
    pub(super) fn view(&self, identity: Identity, maps: &Maps, clock: &Clock) -> Option<CellView> {
        let entry = self.entries.get(&identity)?;
        let counts = entry.carried.and(maps.counts(entry.index).ok()?);
        let now = gcra::q8(clock.monotonic_ns());
        let tokens = (entry.record.kind == CellKind::Gcra as u32)
            .then(|| gcra::tokens_left(load(maps, entry.index), now, &entry.record.params));
        Some(CellView { index: entry.index, tokens, counts })
    }
}

fn load(maps: &Maps, index: u32) -> u64 {
    maps.cell(index).map_or(0, |word| word.load(Ordering::SeqCst))
}

fn write_record(writers: &mut Writers, index: u32, record: Record) -> Result<(), DatapathError> {
    writers
        .records
        .set(index, record, 0)
        .map_err(|source| DatapathError::Map { name: "RECORDS", source })
}
