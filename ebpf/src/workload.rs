//! Which workload a packet belongs to, and which rules hold for it.

use aya_ebpf::Global;
use weir_common::layout::{
    BYTE_PORTS_EGRESS, BYTE_PORTS_INGRESS, Block, Direction, MAX_RULES, PACED_EGRESS,
    PACED_INGRESS, PORTS_EGRESS, PORTS_INGRESS, Rule, Workload, bytes_key, port_key,
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
    at_interface(tc.ifindex())
}

/// The same, by the interface's index.
#[inline(always)]
pub fn at_interface(ifindex: u32) -> Option<u32> {
    match FIXED_SLOT.load() {
        0 => maps::slot_of_interface(ifindex),
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

/// Whether there are byte limits for any port of this direction.
#[inline(always)]
pub fn has_byte_rules(workload: &Workload, direction: Direction) -> bool {
    workload.flags & own_byte_ports(direction) != 0
        || workload.any_port_bytes[direction as usize] != 0
}

/// The flag that says that some ports have byte limits of their own.
#[inline(always)]
fn own_byte_ports(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => BYTE_PORTS_INGRESS,
        Direction::Egress => BYTE_PORTS_EGRESS,
    }
}

/// The block of byte limits for one of the workload's own ports, if any hold; 0 is no port.
#[inline(always)]
pub fn byte_rules(slot: u32, workload: &Workload, direction: Direction, port: u16) -> Option<u32> {
    let any = workload.any_port_bytes[direction as usize];
    let index = if port == 0 || workload.flags & own_byte_ports(direction) == 0 {
        any
    } else {
        maps::block_of_port(bytes_key(slot, direction, port)).unwrap_or(any)
    };
    if index == 0 { None } else { Some(index) }
}

/// Whether packets can be delayed in this direction.
#[inline(always)]
pub fn is_paced(workload: &Workload, direction: Direction) -> bool {
    let flag = match direction {
        Direction::Ingress => PACED_INGRESS,
        Direction::Egress => PACED_EGRESS,
    };
    workload.flags & flag != 0
}
