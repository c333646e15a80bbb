//! Tables into maps, so that a packet sees all of the old policy or all of the new.
//!
//! New cells first, then new blocks, then the references to them; what nothing refers to any more
//! is freed a while later, when no packet can have it in hand. Blocks are never changed in place.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use weir_common::layout::{
    BYTE_PORTS_EGRESS, BYTE_PORTS_INGRESS, BYTES_KEY, Block, Direction, MAX_BLOCKS, MAX_PORTS,
    MAX_WORKLOADS, PACED_EGRESS, PACED_INGRESS, PORTS_EGRESS, PORTS_INGRESS, TRACKED, Workload,
    bytes_key, port_key,
};

use super::{
    cells::Cells,
    error::DatapathError,
    maps::{Maps, Writers, referred_cells},
    tracks::Tracks,
};
use crate::{
    clock::Clock,
    compile::{Identity, Stage, Tables, WorkloadTable},
};

/// A program run lasts microseconds; nothing holds an old block for this long.
const GRACE_NS: u64 = 1_000_000_000;
/// Long enough for every program run that began before.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(2);

/// What one workload has in the maps.
#[derive(Debug, Default)]
struct Published {
    slot: u32,
    record: Workload,
    /// The block of any port, by stage and direction; 0 for none.
    any: [[u32; 2]; 2],
    ports: BTreeMap<PortKey, u32>,
}

/// One of a workload's ports, for the programs of a stage in a direction.
type PortKey = (Stage, Direction, u16);

impl Published {
    const fn is_tracked(&self) -> bool {
        self.record.flags & TRACKED != 0
    }

    fn blocks(&self) -> impl Iterator<Item = u32> + '_ {
        let any = self.any.as_flattened().iter();
        any.chain(self.ports.values()).copied().filter(|&index| index != 0)
    }
}

/// The rules of a workload as its packets meet them.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    published: &'a Published,
    contents: &'a BTreeMap<u32, Block>,
}

impl<'a> Rules<'a> {
    /// The workload's number in the maps.
    pub const fn slot(&self) -> u32 {
        self.published.slot
    }

    /// Whether the kernel tracks its connections.
    pub const fn is_tracked(&self) -> bool {
        self.published.is_tracked()
    }

    /// The rules about connections for a port, if any hold.
    pub fn of_port(&self, direction: Direction, port: u16) -> Option<&'a Block> {
        let stage = Stage::Connections;
        let any = self.published.any[stage as usize][direction as usize];
        let index = self.published.ports.get(&(stage, direction, port)).copied().unwrap_or(any);
        self.contents.get(&index)
    }

    /// The numbers of its blocks: others mean other rules.
    pub fn blocks(&self) -> Vec<u32> {
        self.published.blocks().collect()
    }
}

/// Something to free when its time comes.
#[derive(Clone, Copy, Debug)]
enum Garbage {
    Block(u32),
    Cell(u32),
    Slot(u32),
}

impl Garbage {
    const fn slot(self) -> Option<u32> {
        match self {
            Self::Slot(slot) => Some(slot),
            Self::Block(_) | Self::Cell(_) => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Publisher {
    workloads: BTreeMap<Identity, Published>,
    /// What the blocks in use hold.
    contents: BTreeMap<u32, Block>,
    free_slots: BTreeSet<u32>,
    free_blocks: BTreeSet<u32>,
    garbage: Vec<(u64, Garbage)>,
}

impl Publisher {
    /// Finds what an earlier agent published.
    pub(super) fn adopt(writers: &Writers) -> Result<Self, DatapathError> {
        let mut publisher = Self {
            workloads: BTreeMap::new(),
            contents: BTreeMap::new(),
            // Slot 0 and block 0 are "none".
            free_slots: (1..MAX_WORKLOADS).collect(),
            free_blocks: (1..MAX_BLOCKS).collect(),
            garbage: Vec::new(),
        };
        let mut slots = BTreeMap::new();
        for slot in 1..MAX_WORKLOADS {
            let record = writers
                .workloads
                .get(&slot, 0)
                .map_err(|source| DatapathError::Map { name: "WORKLOADS", source })?;
            if record.identity != [0, 0] {
                let identity = Identity::from_words(record.identity);
                let any = [record.any_port, record.any_port_bytes];
                let published = Published { slot, record, any, ports: BTreeMap::new() };
                publisher.free_slots.remove(&slot);
                publisher.workloads.insert(identity, published);
                slots.insert(slot, identity);
            }
        }
        for entry in writers.ports.iter() {
            let (key, block) =
                entry.map_err(|source| DatapathError::Map { name: "PORTS", source })?;
            let (slot, key) = split(key);
            let owner = slots.get(&slot).and_then(|identity| publisher.workloads.get_mut(identity));
            if let Some(published) = owner {
                published.ports.insert(key, block);
            }
        }
        let used: Vec<u32> = publisher.workloads.values().flat_map(Published::blocks).collect();
        for index in used {
            let block = writers
                .blocks
                .get(&index, 0)
                .map_err(|source| DatapathError::Map { name: "BLOCKS", source })?;
            publisher.free_blocks.remove(&index);
            publisher.contents.insert(index, block);
        }
        Ok(publisher)
    }

    pub(super) fn slot(&self, workload: Identity) -> Option<u32> {
        self.workloads.get(&workload).map(|published| published.slot)
    }

    /// What the kernel judges a workload by.
    pub(super) fn rules(&self, workload: Identity) -> Option<Rules<'_>> {
        let published = self.workloads.get(&workload)?;
        Some(Rules { published, contents: &self.contents })
    }

    /// The slots of workloads whose connections the kernel tracks.
    pub(super) fn tracked_slots(&self) -> BTreeSet<u32> {
        let tracked = self.workloads.values().filter(|published| published.is_tracked());
        tracked.map(|published| published.slot).collect()
    }

    pub(super) fn workload_in(&self, slot: u32) -> Option<Identity> {
        self.workloads
            .iter()
            .find_map(|(identity, published)| (published.slot == slot).then_some(*identity))
    }

    /// Makes the maps hold these tables.
    pub(super) fn apply(
        &mut self,
        tables: &Tables,
        cells: &mut Cells,
        writers: &mut Writers,
        maps: &Maps,
        clock: &Clock,
    ) -> Result<(), DatapathError> {
        let wanted: BTreeSet<Identity> =
            tables.workloads.values().map(|table| table.identity).collect();
        let mut result = Ok(());
        // Before the first block that needs it, and until after the last.
        let tracked = tables.workloads.values().filter(|table| table.is_tracked());
        let tracked: BTreeSet<Identity> =
            tracked.map(|table| table.identity).chain(self.tracked()).collect();
        maps.set_tracked(tracked.len() as u64);
        for table in tables.workloads.values() {
            // One workload without room does not keep the others from their new policy.
            if let Err(error) = self.publish(table, cells, writers, maps, clock) {
                result = Err(error);
            }
        }
        let gone: Vec<Identity> =
            self.workloads.keys().filter(|identity| !wanted.contains(identity)).copied().collect();
        for identity in gone {
            self.withdraw(identity, writers, clock)?;
        }
        let named: BTreeSet<Identity> =
            tables.workloads.values().flat_map(|table| table.cells.keys()).copied().collect();
        let unnamed: Vec<Identity> =
            cells.identities().filter(|identity| !named.contains(identity)).collect();
        for identity in unnamed {
            if let Some(cell) = cells.forget(identity, clock.monotonic_ns()) {
                self.discard(Garbage::Cell(cell), clock);
            }
        }
        std::thread::sleep(SETTLE);
        cells.settle(maps);
        maps.set_tracked(self.tracked().count() as u64);
        result
    }

    /// The workloads whose connections the kernel tracks.
    fn tracked(&self) -> impl Iterator<Item = Identity> + '_ {
        let tracked = self.workloads.iter().filter(|(_, published)| published.is_tracked());
        tracked.map(|(identity, _)| *identity)
    }

    fn publish(
        &mut self,
        table: &WorkloadTable,
        cells: &mut Cells,
        writers: &mut Writers,
        maps: &Maps,
        clock: &Clock,
    ) -> Result<(), DatapathError> {
        let mut published = match self.workloads.remove(&table.identity) {
            Some(published) => published,
            None => self.admit(writers)?,
        };
        let result = self.update(&mut published, table, cells, writers, maps, clock);
        self.workloads.insert(table.identity, published);
        result
    }

    fn admit(&mut self, writers: &mut Writers) -> Result<Published, DatapathError> {
        let slot = self
            .free_slots
            .pop_first()
            .ok_or(DatapathError::Full { what: "workloads", limit: MAX_WORKLOADS - 1 })?;
        writers.clear_tallies(slot)?;
        Ok(Published { slot, ..Published::default() })
    }

    fn update(
        &mut self,
        published: &mut Published,
        table: &WorkloadTable,
        cells: &mut Cells,
        writers: &mut Writers,
        maps: &Maps,
        clock: &Clock,
    ) -> Result<(), DatapathError> {
        for (&identity, cell) in &table.cells {
            if let Some(left) = cells.ensure(identity, cell, writers, maps, clock)? {
                self.discard(Garbage::Cell(left), clock);
            }
        }
        let slot = published.slot;
        let mut any = [[0; 2]; 2];
        // Whether packets are delayed is decided by what they are seen at, not by the policy.
        let mut flags = published.record.flags & (PACED_INGRESS | PACED_EGRESS);
        if table.is_tracked() {
            flags |= TRACKED;
            if !published.is_tracked() && published.record.identity != [0, 0] {
                // Before the first connection that is tracked: its answer is no SYN.
                published.record.flags |= TRACKED;
                write(writers, slot, published.record)?;
            }
        }
        let mut ports = BTreeMap::new();
        let ways = [Direction::Ingress, Direction::Egress];
        for (stage, direction) in
            Stage::ALL.into_iter().flat_map(|stage| ways.map(|way| (stage, way)))
        {
            let blocks = table.blocks(stage, direction);
            let before = published.any[stage as usize][direction as usize];
            any[stage as usize][direction as usize] =
                self.block(before, &blocks.any, table, cells, writers, clock)?;
            for (&port, block) in &blocks.ports {
                let key = (stage, direction, port.number());
                let before = published.ports.get(&key).copied().unwrap_or(0);
                let index = self.block(before, block, table, cells, writers, clock)?;
                if index != before {
                    writers.ports.insert(join(slot, key), index, 0).map_err(|_| {
                        DatapathError::Full { what: "ports with limits", limit: MAX_PORTS }
                    })?;
                }
                ports.insert(key, index);
            }
            if !blocks.ports.is_empty() {
                flags |= match (stage, direction) {
                    (Stage::Connections, Direction::Ingress) => PORTS_INGRESS,
                    (Stage::Connections, Direction::Egress) => PORTS_EGRESS,
                    (Stage::Volumes, Direction::Ingress) => BYTE_PORTS_INGRESS,
                    (Stage::Volumes, Direction::Egress) => BYTE_PORTS_EGRESS,
                };
            }
        }
        let resets = table.cells.get(&table.resets).zip(cells.index(table.resets));
        let (budget, reset_cell) =
            resets.ok_or_else(|| DatapathError::Inconsistent { workload: table.name.clone() })?;
        let record = Workload {
            identity: table.identity.words(),
            shadow_until_ns: published.record.shadow_until_ns,
            reset_cost: budget.params.cost,
            reset_burst: budget.params.burst,
            reset_cell,
            any_port: any[Stage::Connections as usize],
            flags,
            any_port_bytes: any[Stage::Volumes as usize],
        };
        write(writers, slot, record)?;
        for &key in published.ports.keys().filter(|key| !ports.contains_key(key)) {
            // Not there: nothing to remove.
            let _ = writers.ports.remove(&join(slot, key));
        }
        let kept: BTreeSet<u32> =
            any.as_flattened().iter().chain(ports.values()).copied().collect();
        let left: Vec<u32> = published.blocks().filter(|index| !kept.contains(index)).collect();
        for index in left {
            self.discard(Garbage::Block(index), clock);
        }
        (published.record, published.any, published.ports) = (record, any, ports);
        Ok(())
    }

    /// The block with this content: the one in use if it has it, else a new one. 0 for no rules.
    fn block(
        &mut self,
        current: u32,
        block: &crate::compile::Block,
        table: &WorkloadTable,
        cells: &Cells,
        writers: &mut Writers,
        clock: &Clock,
    ) -> Result<u32, DatapathError> {
        if block.rules.is_empty() {
            return Ok(0);
        }
        let content = block
            .encode(table, |identity| cells.index(identity))
            .ok_or_else(|| DatapathError::Inconsistent { workload: table.name.clone() })?;
        if current != 0 && self.contents.get(&current) == Some(&content) {
            return Ok(current);
        }
        if self.free_blocks.is_empty() {
            self.reclaim_blocks(clock);
        }
        let index = self
            .free_blocks
            .pop_first()
            .ok_or(DatapathError::Full { what: "sets of rules", limit: MAX_BLOCKS - 1 })?;
        writers
            .blocks
            .set(index, content, 0)
            .map_err(|source| DatapathError::Map { name: "BLOCKS", source })?;
        self.contents.insert(index, content);
        Ok(index)
    }

    fn withdraw(
        &mut self,
        identity: Identity,
        writers: &mut Writers,
        clock: &Clock,
    ) -> Result<(), DatapathError> {
        let Some(published) = self.workloads.remove(&identity) else { return Ok(()) };
        write(writers, published.slot, Workload::default())?;
        for &key in published.ports.keys() {
            let _ = writers.ports.remove(&join(published.slot, key));
        }
        for index in published.blocks() {
            self.discard(Garbage::Block(index), clock);
        }
        self.discard(Garbage::Slot(published.slot), clock);
        Ok(())
    }

    pub(super) fn shadow_until(
        &mut self,
        workload: Identity,
        until_ns: u64,
        writers: &mut Writers,
    ) -> Result<bool, DatapathError> {
        let Some(published) = self.workloads.get_mut(&workload) else { return Ok(false) };
        published.record.shadow_until_ns = until_ns;
        write(writers, published.slot, published.record)?;
        Ok(true)
    }

    /// Tells the kernel in which directions packets of a workload can be delayed.
    pub(super) fn set_paced(
        &mut self,
        workload: Identity,
        [towards, from]: [bool; 2],
        writers: &mut Writers,
    ) -> Result<(), DatapathError> {
        let Some(published) = self.workloads.get_mut(&workload) else { return Ok(()) };
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let mut record = published.record;
        record.flags &= !(PACED_INGRESS | PACED_EGRESS);
        record.flags |= flag(towards, PACED_INGRESS) | flag(from, PACED_EGRESS);
        if record == published.record {
            return Ok(());
        }
        published.record = record;
        write(writers, published.slot, record)
    }

    pub(super) fn shadowed_until(&self, workload: Identity) -> u64 {
        self.workloads.get(&workload).map_or(0, |published| published.record.shadow_until_ns)
    }

    fn discard(&mut self, garbage: Garbage, clock: &Clock) {
        self.garbage.push((clock.monotonic_ns() + GRACE_NS, garbage));
    }

    /// Frees what has been unreferenced for long enough.
    pub(super) fn collect(
        &mut self,
        cells: &mut Cells,
        writers: &mut Writers,
        maps: &Maps,
        directory: &Path,
        clock: &Clock,
    ) -> Result<(), DatapathError> {
        self.reclaim_blocks(clock);
        let now = clock.monotonic_ns();
        let is_due = |(time, _): &(u64, Garbage)| *time <= now;
        let left = |garbage: &&(u64, Garbage)| is_due(garbage);
        let left: BTreeSet<u32> =
            self.garbage.iter().filter(left).filter_map(|(_, garbage)| garbage.slot()).collect();
        if !left.is_empty() {
            Tracks::open(directory, maps, *clock)?.vacate(|slot| left.contains(&slot));
        }
        let (due, later) = self.garbage.drain(..).partition(is_due);
        self.garbage = later;
        let due: Vec<(u64, Garbage)> = due;
        for (_, garbage) in due {
            match garbage {
                Garbage::Block(_) => {}
                Garbage::Cell(index) => cells.free(index, writers)?,
                Garbage::Slot(slot) => _ = self.free_slots.insert(slot),
            }
        }
        let free = |cells: &mut Cells, index| cells.free(index, writers);
        cells.free_kept(now, || referred_cells(directory), free)
    }

    fn reclaim_blocks(&mut self, clock: &Clock) {
        let now = clock.monotonic_ns();
        let Self { garbage, contents, free_blocks, .. } = self;
        garbage.retain(|(time, garbage)| match garbage {
            Garbage::Block(index) if *time <= now => {
                contents.remove(index);
                free_blocks.insert(*index);
                false
            }
            _ => true,
        });
    }
}

fn write(writers: &mut Writers, slot: u32, record: Workload) -> Result<(), DatapathError> {
    writers
        .workloads
        .set(slot, record, 0)
        .map_err(|source| DatapathError::Map { name: "WORKLOADS", source })
}

/// A key of `PORTS`.
const fn join(slot: u32, (stage, direction, port): PortKey) -> u32 {
    match stage {
        Stage::Connections => port_key(slot, direction, port),
        Stage::Volumes => bytes_key(slot, direction, port),
    }
}

/// A key of `PORTS`, taken apart.
const fn split(key: u32) -> (u32, PortKey) {
    let stage = if key & BYTES_KEY == 0 { Stage::Connections } else { Stage::Volumes };
    let direction = if key >> 16 & 1 == 0 { Direction::Ingress } else { Direction::Egress };
    ((key & !BYTES_KEY) >> 17, (stage, direction, key as u16))
}
