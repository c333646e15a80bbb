//! From policy to the kernel's rules: pure, and the same for the same input.
//!
//! For each workload and direction there is one block of rules for any port, and one for each
//! port that something was written for. A block is flat: the port's own lines and those for all
//! ports, so a packet meets one block and must pass all of it. [`diff`] turns two such tables into
//! the changes that lead from one to the other.
//!
//! It performs no input or output and has never heard of interfaces, maps or block numbers: the
//! data path gives each workload a slot and each cell an index.

mod cells;
mod change;
mod encode;
mod rules;
mod tables;

pub use self::{
    cells::{Cell, CellKind, Identity},
    change::{Change, diff},
    encode::Encoded,
    rules::{Compiled, Misfit, NoQuota, NodeFacts, Overflow, RuleSet, Subject, compile},
    tables::{Block, Blocks, LineRef, LoadRef, Rule, RuleKind, Stage, Tables, WorkloadTable},
};
