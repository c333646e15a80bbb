//! Which workload a packet belongs to, and which rules hold for it.

use aya_ebpf::Global;
use weir_common::layout::{
    Block, Direction, MAX_RULES, PORTS_EGRESS, PORTS_INGRESS, Rule, Workload, port_key,
};

use crate::{
    hook::{Tc, opaque},
    maps,
};

/// The slot that this instance of the programs is for, when it is for one alone; 0 when it finds the
/// slot by ifindex. Set when the object is loaded, so that the other way vanishes.
///
/// One instance serves all interfaces of the agent's own network namespace. An ifindex says nothing
/// in other namespaces, and TC cannot ask which one it runs in: `bpf_get_netns_cookie` asks the
/// packet's socket, which incoming packets do not have yet.
#[unsafe(no_mangle)]
static FIXED_SLOT: Global<u32> = Global::new(0);

/// The slot of the workload at a TC hook.
#[inline(always)]
pub fn at(tc: &Tc) -> Option<u32> {
    match FIXED_SLOT.load() {
        0 => maps::slot_of_interface(tc.ifindex()),
        slot => Some(slot),
    }
}

/// The block of rules that holds for a port.
pub struct Rules {
    pub index: u32,
    block: &'static Block,
}

impl Rules {
    /// Whether the connections that these rules admit are tracked.
    #[inline(always)]
    pub fn tracked(&self) -> bool {
        self.block.tracked != 0
    }

    /// One of its rules.
    #[inline(always)]
    pub fn get(&self, rule: Option<u32>) -> Option<&'static Rule> {
        // The compiler knows that the number has four bits and would ask whether it is 15, which
        // tells the verifier nothing before 6.8.
        let rule = opaque(rule? as usize);
        if rule < MAX_RULES { Some(&self.block.rules[rule]) } else { None }
    }
}

/// Whether there are rules for any port of this direction.
#[inline(always)]
pub fn has_rules(workload: &Workload, direction: Direction) -> bool {
    workload.flags & own_ports(direction) != 0 || workload.any_port[direction as usize] != 0
}

/// The flag that says that some ports have blocks of their own.
#[inline(always)]
fn own_ports(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => PORTS_INGRESS,
        Direction::Egress => PORTS_EGRESS,
    }
}

/// The block of rules for a port, if any holds.
#[inline(always)]
pub fn rules(slot: u32, workload: &Workload, direction: Direction, port: u16) -> Option<Rules> {
    let any = workload.any_port[direction as usize];
    let index = if workload.flags & own_ports(direction) == 0 {
        any
    } else {
        maps::block_of_port(port_key(slot, direction, port)).unwrap_or(any)
    };
    if index == 0 { None } else { Some(Rules { index, block: maps::block(index)? }) }
}
