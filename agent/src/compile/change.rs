//! The difference between two tables, as changes in an order that is safe to apply one by one.
//!
//! New cells come before the rules that name them and old cells go after the last rule that did,
//! so at every step each rule has its cell. The kernel's rules carry their cell's parameters, so
//! when these change, the blocks that name the cell are set again although they look the same. A workload that is new is complete before the next
//! begins; which packets it sees is decided by whoever attaches programs.

use std::collections::BTreeSet;

use serde::Serialize;
use weir_common::layout::Direction;

use super::{
    cells::{Cell, Identity},
    tables::{Block, Blocks, Stage, Tables, WorkloadTable},
};
use crate::policy::Port;

/// One step from a table to another. All name the workload by the key it has in [`Tables`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// A workload comes, with nothing but the cell of its budget for resets.
    AddWorkload {
        /// Which.
        workload: String,
        /// Its name for people.
        name: String,
        /// Its identity in the kernel.
        identity: Identity,
        /// The cell of its budget for resets.
        resets: (Identity, Cell),
    },
    /// A workload has another name.
    Rename {
        /// Which.
        workload: String,
        /// Its new name for people.
        name: String,
    },
    /// A cell is new or has new parameters. What was spent from it stays spent. The blocks that
    /// name it follow; the budget for resets is named by the workload itself.
    SetCell {
        /// Which workload.
        workload: String,
        /// Which cell.
        identity: Identity,
        /// What it is now.
        cell: Cell,
    },
    /// The rules for a port are these now.
    SetBlock {
        /// Which workload.
        workload: String,
        /// For which programs.
        stage: Stage,
        /// Which direction.
        direction: Direction,
        /// Which port; `None` for any other. An empty block for any other port means no rules.
        port: Option<Port>,
        /// The rules.
        block: Block,
    },
    /// A port has no block of its own any more; the block for any other port holds there.
    RemoveBlock {
        /// Which workload.
        workload: String,
        /// For which programs.
        stage: Stage,
        /// Which direction.
        direction: Direction,
        /// Which port.
        port: Port,
    },
    /// A cell that no rule names any more.
    RemoveCell {
        /// Which workload.
        workload: String,
        /// Which cell.
        identity: Identity,
    },
    /// A workload is gone, with all it had.
    RemoveWorkload {
        /// Which.
        workload: String,
    },
}

impl Change {
    /// The key of the workload that changes.
    pub fn workload(&self) -> &str {
        match self {
            Self::AddWorkload { workload, .. }
            | Self::Rename { workload, .. }
            | Self::SetCell { workload, .. }
            | Self::SetBlock { workload, .. }
            | Self::RemoveBlock { workload, .. }
            | Self::RemoveCell { workload, .. }
            | Self::RemoveWorkload { workload } => workload,
        }
    }
}

/// The changes that lead from one table to the other; none when they are equal.
pub fn diff(from: &Tables, to: &Tables) -> Vec<Change> {
    let mut changes = Vec::new();
    for workload in from.workloads.keys().filter(|key| !to.workloads.contains_key(*key)) {
        changes.push(Change::RemoveWorkload { workload: workload.clone() });
    }
    for (workload, new) in &to.workloads {
        // Another identity under the same key is another workload.
        match from.workloads.get(workload).filter(|old| old.identity == new.identity) {
            Some(old) => between(workload, old, new, &mut changes),
            None => {
                if from.workloads.contains_key(workload) {
                    changes.push(Change::RemoveWorkload { workload: workload.clone() });
                }
                add(workload, new, &mut changes);
            }
        }
    }
    changes
}

fn add(workload: &str, new: &WorkloadTable, changes: &mut Vec<Change>) {
    let Some(resets) = new.cells.get(&new.resets) else {
        return;
    };
    let WorkloadTable { name, identity, .. } = new;
    changes.push(Change::AddWorkload {
        workload: workload.to_owned(),
        name: name.clone(),
        identity: *identity,
        resets: (new.resets, *resets),
    });
    let bare = WorkloadTable {
        name: name.clone(),
        identity: *identity,
        resets: new.resets,
        cells: [(new.resets, *resets)].into(),
        ingress: Blocks::default(),
        egress: Blocks::default(),
        volumes: Default::default(),
    };
    between(workload, &bare, new, changes);
}

fn between(workload: &str, old: &WorkloadTable, new: &WorkloadTable, changes: &mut Vec<Change>) {
    if old == new {
        return;
    }
    let workload = || workload.to_owned();
    if old.name != new.name {
        changes.push(Change::Rename { workload: workload(), name: new.name.clone() });
    }
    let mut changed = BTreeSet::new();
    for (identity, cell) in &new.cells {
        if old.cells.get(identity) != Some(cell) {
            let (identity, cell) = (*identity, *cell);
            changed.insert(identity);
            changes.push(Change::SetCell { workload: workload(), identity, cell });
        }
    }
    let names_changed = |block: &Block| {
        block.rules.iter().filter_map(|rule| rule.kind.cell()).any(|cell| changed.contains(&cell))
    };
    let ways = [Direction::Ingress, Direction::Egress];
    for (stage, direction) in Stage::ALL.into_iter().flat_map(|stage| ways.map(|way| (stage, way)))
    {
        let (before, after) = (old.blocks(stage, direction), new.blocks(stage, direction));
        let set = |port, block: &Block| Change::SetBlock {
            workload: workload(),
            stage,
            direction,
            port,
            block: block.clone(),
        };
        // Ports first: a port that loses its block falls back on one that is up to date, and one
        // that gains a block never passes through the rules for other ports.
        for (port, block) in &after.ports {
            if before.ports.get(port) != Some(block) || names_changed(block) {
                changes.push(set(Some(*port), block));
            }
        }
        if before.any != after.any || names_changed(&after.any) {
            changes.push(set(None, &after.any));
        }
        for port in before.ports.keys().filter(|port| !after.ports.contains_key(port)) {
            let (workload, port) = (workload(), *port);
            changes.push(Change::RemoveBlock { workload, stage, direction, port });
        }
    }
    for identity in old.cells.keys().filter(|identity| !new.cells.contains_key(identity)) {
        changes.push(Change::RemoveCell { workload: workload(), identity: *identity });
    }
}

impl Tables {
    /// Makes one change. Changes about workloads that are not there do nothing.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::AddWorkload { workload, name, identity, resets } => {
                let table = WorkloadTable {
                    name: name.clone(),
                    identity: *identity,
                    resets: resets.0,
                    cells: [*resets].into(),
                    ingress: Blocks::default(),
                    egress: Blocks::default(),
                    volumes: Default::default(),
                };
                self.workloads.insert(workload.clone(), table);
            }
            Change::RemoveWorkload { workload } => {
                self.workloads.remove(workload);
            }
            Change::Rename { workload, name } => {
                self.edit(workload, |table| table.name.clone_from(name));
            }
            Change::SetCell { workload, identity, cell } => {
                self.edit(workload, |table| _ = table.cells.insert(*identity, *cell));
            }
            Change::RemoveCell { workload, identity } => {
                self.edit(workload, |table| _ = table.cells.remove(identity));
            }
            Change::SetBlock { workload, stage, direction, port, block } => {
                self.edit(workload, |table| {
                    let blocks = table.blocks_mut(*stage, *direction);
                    match port {
                        Some(port) => _ = blocks.ports.insert(*port, block.clone()),
                        None => blocks.any = block.clone(),
                    }
                });
            }
            Change::RemoveBlock { workload, stage, direction, port } => {
                self.edit(workload, |table| {
                    table.blocks_mut(*stage, *direction).ports.remove(port);
                });
            }
        }
    }

    fn edit(&mut self, workload: &str, edit: impl FnOnce(&mut WorkloadTable)) {
        if let Some(table) = self.workloads.get_mut(workload) {
            edit(table);
        }
    }

    /// Cells that rules name and no workload has: none, in every table that `compile` or `diff`
    /// makes.
    pub fn missing_cells(&self) -> BTreeSet<Identity> {
        let missing = |table: &WorkloadTable| {
            let [towards, from] = &table.volumes;
            let blocks = [&table.ingress, &table.egress, towards, from].into_iter();
            let blocks = blocks.flat_map(|blocks| blocks.ports.values().chain([&blocks.any]));
            let rules = blocks.flat_map(|block| &block.rules);
            let named = rules.filter_map(|rule| rule.kind.cell()).chain([table.resets]);
            named.filter(|cell| !table.cells.contains_key(cell)).collect::<BTreeSet<_>>()
        };
        self.workloads.values().flat_map(missing).collect()
    }
}
