//! The memory that kernel and agent share, map by map.
//!
//! Every map is pinned, so every type here is a contract with the next version of the agent:
//! [`LAYOUT`] names it, and the pin directory carries that number. Integers only, no padding, and
//! each map has one kind of writer, named in its comment.
//!
//! | map | shape | index | writer |
//! |---|---|---|---|
//! | `CONFIG` | array of 1, mapped | – | agent |
//! | `CELLS` | array of [`CellLine`], mapped | cell | kernel and agent, by compare-and-swap only |
//! | `RECORDS` | array of [`Record`] | cell | agent |
//! | `COUNTS` | per-CPU array of [`Counts`] | cell | kernel |
//! | `WORKLOADS` | array of [`Workload`] | slot | agent |
//! | `TALLIES` | per-CPU array of [`Tally`] | slot × [`HOOKS`] + hook | kernel |
//! | `INTERFACES` | hash `u32` → slot | ifindex | agent |
//! | `CALLERS` | hash `u64` → slot | cookie of a network namespace | agent |
//! | `LOCALS` | hash [`Local`] → nothing | an address of that namespace | agent |
//! | `ADDRESSES` | hash [`Addr`] → slot | address | agent |
//! | `PORTS` | hash `u32` → block | [`port_key`], [`bytes_key`] | agent |
//! | `BLOCKS` | array of [`Block`] | block | agent; never changed while referenced |
//! | `SOURCES` | array of lines, mapped | hash | kernel; the agent clears old ways |
//! | `PENDING` | array of lines, mapped | hash | kernel; the agent clears old ways |
//! | `TRACKS` | array of lines, mapped | hash | kernel and agent, by compare-and-swap only |
//! | `SLOTS` | array of [`Slot`], mapped | line × 8 + way | whoever won the way: kernel and agent |
//! | `SOURCE_LOADS` | array of lines, mapped | hash | kernel and agent, by compare-and-swap only |
//! | `FLOWS` | array of lines, mapped | hash | kernel; the agent clears old ways |
//! | `VOLUMES` | per-CPU array of [`Volume`] | cell | kernel |
//! | `EVENTS` | ring buffer of [`Event`] | – | kernel |
//! | `HANDUPS` | ring buffer of [`Handup`] | – | kernel |

use crate::{
    addr::Addr,
    gcra::Params,
    nh::{self, Secret},
    verdict, way,
};

/// Version of this layout, part of the pin directory's name.
pub const LAYOUT: u32 = 5;

/// Workload slots; slot 0 is "none".
pub const MAX_WORKLOADS: u32 = 512;
/// Cells; cell 0 is "none".
pub const MAX_CELLS: u32 = 8192;
/// Rule blocks; block 0 is "none".
pub const MAX_BLOCKS: u32 = 4096;
/// Entries of the port map.
pub const MAX_PORTS: u32 = 8192;
/// Entries of the address map.
pub const MAX_ADDRESSES: u32 = 4096;
/// Entries of the map of addresses that calls do not leave their namespace for.
pub const MAX_LOCALS: u32 = 8192;
/// Lines for sources: 2 MiB, 229 376 sources.
pub const SOURCE_LINES: u32 = 32_768;
/// Lines for handshakes: 512 KiB, 65 536 handshakes. Every SYN looks into one: they should fit into
/// a CPU's second cache.
pub const PENDING_LINES: u32 = 8192;
/// Lines for tracked connections: 1.25 MiB, with slots of 20 MiB, 163 840 connections.
pub const TRACK_LINES: u32 = 20_480;
/// Lines for connections per source: 1 MiB, 114 688 sources.
pub const SOURCE_LOAD_LINES: u32 = 16_384;
/// Lines for connections with byte buckets of their own: 2 MiB, 229 376 directions of connections that
/// send at once.
pub const FLOW_LINES: u32 = 32_768;
/// Bytes of the event ring.
pub const EVENTS_BYTES: u32 = 512 * 1024;

/// Bytes of the ring of SYNs that wait for the agent: about 200 of them. More are dropped, and their
/// clients send them again.
pub const HANDUPS_BYTES: u32 = 64 * 1024;

/// The hooks that count apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Hook {
    /// TC, packets towards the workload.
    TcIngress = 0,
    /// TC, packets from the workload.
    TcEgress = 1,
    /// XDP on an uplink.
    Xdp = 2,
    /// `connect()` of what runs in the workload, before there is a packet.
    Connect = 3,
}

/// Number of hooks.
pub const HOOKS: u32 = 4;

impl Hook {
    /// All hooks, by their number.
    pub const ALL: [Self; HOOKS as usize] =
        [Self::TcIngress, Self::TcEgress, Self::Xdp, Self::Connect];

    /// The hook's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcIngress | Self::TcEgress => "tc",
            Self::Xdp => "xdp",
            Self::Connect => "connect",
        }
    }

    /// Which way the packet goes, seen from the workload.
    pub const fn direction(self) -> Direction {
        match self {
            Self::TcIngress | Self::Xdp => Direction::Ingress,
            Self::TcEgress | Self::Connect => Direction::Egress,
        }
    }
}

/// Directions are the workload's: ingress is towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "user", serde(rename_all = "lowercase"))]
#[repr(u8)]
pub enum Direction {
    /// Towards the workload.
    Ingress = 0,
    /// From the workload.
    Egress = 1,
}

impl Direction {
    /// The direction's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// What the kernel must know of the node. One entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Config {
    /// Key of the placement hashes, drawn when the map is made.
    pub secret: Secret,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, ns (wrapping). Windows are numbered by it.
    pub clock_offset_ns: u64,
    /// When the agent last lived, CLOCK_MONOTONIC ns.
    pub heartbeat_ns: u64,
    /// Least time between two events of one limit on one CPU, ns.
    pub event_interval_ns: u64,
    /// Workloads that are [`TRACKED`]: while there are none, nobody looks at packets that are no
    /// SYN.
    pub tracked: u64,
    /// 1 while the fleet's store does not answer: quotas of the fleet are decided without it.
    pub store_away: u64,
    /// Reserved.
    pub _reserved: [u64; 4],
}

/// One limit's state: a cache line of eight words, whose meaning [`CellKind`] says.
///
/// The array of bare lines never changes its layout; what a line means stands in the record
/// beside it.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct CellLine {
    /// The state words.
    pub words: [u64; 8],
}

/// What the words of a cell mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CellKind {
    /// Unused.
    Free = 0,
    /// Word 0 is a GCRA's theoretical arrival time.
    Gcra = 1,
    /// Word 0 is a window: number and count.
    Window = 2,
    /// Words 0 and 1 are the leases of the even and the odd window.
    Lease = 3,
    /// Words 0 to 3 are a breaker.
    Breaker = 4,
    /// No word is used: the state stands in `SOURCES`, the cell names and counts it.
    Source = 5,
    /// Word 0 is a [load](crate::load).
    Load = 6,
    /// No word is used: the state stands in `SOURCE_LOADS`, the cell names and counts it.
    SourceLoad = 7,
    /// Words 0 and 1 are [debts](crate::debt) towards and from the workload.
    Debt = 8,
    /// No word is used: the state stands in `FLOWS`, the cell names and counts it.
    Flow = 9,
}

impl CellKind {
    /// The kind with this code.
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::Free,
            1 => Self::Gcra,
            2 => Self::Window,
            3 => Self::Lease,
            4 => Self::Breaker,
            5 => Self::Source,
            6 => Self::Load,
            7 => Self::SourceLoad,
            8 => Self::Debt,
            9 => Self::Flow,
            _ => return None,
        })
    }
}

/// Whose a cell is: what a starting agent rebuilds its directory from.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// 128-bit identity of the limit (workload, direction, key, port, peers).
    pub identity: [u64; 2],
    /// The bucket's parameters; they never change while the cell lives.
    pub params: Params,
    /// [`CellKind`].
    pub kind: u32,
    /// Counts the cell's owners.
    pub generation: u32,
    /// Reserved.
    pub _reserved: u64,
}

/// What happened at one cell, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Takes that found a token (and were not given back).
    pub admitted: u64,
    /// Takes that were denied and enforced.
    pub refused: u64,
    /// Takes that were denied in shadow mode.
    pub shadowed: u64,
    /// When the last event of this cell was sent, CLOCK_MONOTONIC ns.
    pub last_event_ns: u64,
}

/// What passed a limit of bytes or packets and what did not, on one CPU. Packets are as they are on the
/// wire: one that the kernel cuts into segments counts as so many.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Bytes of what was charged and passed.
    pub passed_bytes: u64,
    /// Packets of it.
    pub passed_packets: u64,
    /// Bytes of that part of it that was marked (ECN).
    pub marked_bytes: u64,
    /// Packets of it.
    pub marked_packets: u64,
    /// Bytes of what was dropped.
    pub dropped_bytes: u64,
    /// Packets of it.
    pub dropped_packets: u64,
    /// Bytes of what would have been dropped, were the limit not in shadow.
    pub shadowed_bytes: u64,
    /// Packets of it.
    pub shadowed_packets: u64,
}

/// A workload: a pod, or on a VM an interface or a namespace with a name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// 128-bit identity of the workload.
    pub identity: [u64; 2],
    /// Until when refusals are only counted, CLOCK_MONOTONIC ns; 0 when enforced.
    pub shadow_until_ns: u64,
    /// The budget for resets.
    pub reset_cost: u64,
    /// The burst of the budget for resets.
    pub reset_burst: u64,
    /// Cell of the budget for resets.
    pub reset_cell: u32,
    /// Block of the rules for any port, by direction; 0 for none.
    pub any_port: [u32; 2],
    /// [`PORTS_INGRESS`] and the other flags.
    pub flags: u32,
    /// Block of the byte limits for any port, by direction; 0 for none.
    pub any_port_bytes: [u32; 2],
}

/// Key of `LOCALS`: an address that a workload's namespace has itself, so that connections to it
/// never leave.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Local {
    /// The address.
    pub address: Addr,
    /// The workload's slot.
    pub slot: u64,
}

/// The workload has blocks of their own for some inbound ports.
pub const PORTS_INGRESS: u32 = 1;
/// The workload has blocks of their own for some outbound ports.
pub const PORTS_EGRESS: u32 = 2;

/// Some block of the workload is [tracked](Block::tracked): packets that are no SYN matter.
pub const TRACKED: u32 = 4;

/// The workload has blocks of byte limits for some of its ports, towards it.
pub const BYTE_PORTS_INGRESS: u32 = 8;
/// The same from it.
pub const BYTE_PORTS_EGRESS: u32 = 16;
/// What its byte limits hold back towards the workload is delayed: something behind the program sends
/// packets at the time that they carry.
pub const PACED_INGRESS: u32 = 32;
/// The same from it.
pub const PACED_EGRESS: u32 = 64;

/// Key of `PORTS` for byte limits; the port is the workload's own.
#[inline(always)]
pub const fn bytes_key(slot: u32, direction: Direction, port: u16) -> u32 {
    BYTES_KEY | port_key(slot, direction, port)
}

/// What tells keys of byte limits from those of connections.
pub const BYTES_KEY: u32 = 1 << 31;

/// Key of `PORTS`.
#[inline(always)]
pub const fn port_key(slot: u32, direction: Direction, port: u16) -> u32 {
    slot << 17 | (direction as u32) << 16 | port as u32
}

/// Rules in a block.
pub const MAX_RULES: usize = 15;

/// What holds for one port (or any other port) of a workload in one direction, in order.
///
/// A block is never changed while something refers to it: the agent writes another and turns the
/// reference, so a packet sees all of the old policy or all of the new.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Rules in use.
    pub count: u32,
    /// 1 if one of the rules counts connections or breaks circuits, so that they must be tracked.
    pub tracked: u32,
    /// 1 if one of the rules has a bucket for each connection, so that a packet's must be found.
    pub flows: u32,
    /// Reserved.
    pub _reserved: [u32; 13],
    /// The rules.
    pub rules: [Rule; MAX_RULES],
}

impl Default for Block {
    fn default() -> Self {
        Self {
            count: 0,
            tracked: 0,
            flows: 0,
            _reserved: [0; 13],
            rules: [Rule::default(); MAX_RULES],
        }
    }
}

/// One rule: for peers in a prefix, one limit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The peer's prefix (source of ingress, destination of egress), masked.
    pub peer: Addr,
    /// The prefix's mask; all zero for any peer.
    pub mask: Addr,
    /// Cost of a token: 1/256 ns, or ticks of 64 ns for [`RuleKind::Source`].
    pub cost: u64,
    /// Window of a full bucket, same unit.
    pub burst: u64,
    /// Step of the refill, same unit; 0 for smooth.
    pub step: u64,
    /// The limit's cell.
    pub cell: u32,
    /// [`RuleKind`].
    pub kind: u8,
    /// [`RULE_SHADOW`], [`RULE_DROP`] and [`RULE_HTTP1`].
    pub flags: u8,
    /// Prefix length that groups IPv4 sources. Of a breaker: its service's number in the block.
    pub group_v4: u8,
    /// Prefix length that groups IPv6 sources. Of a breaker: how many of the service's may be ejected
    /// at once; 0 for any number.
    pub group_v6: u8,
}

impl Rule {
    /// The keyed hash that places what a peer's group has under this rule.
    #[inline(always)]
    pub fn group_hash(&self, secret: &Secret, peer: Addr) -> u64 {
        let (v4, v6) = (u32::from(self.group_v4), u32::from(self.group_v6));
        let group = peer.masked(Addr::mask(if peer.is_v4() { 96 + v4 } else { v6 }));
        nh::hash(secret, [group.high, group.low, u64::from(self.cell)])
    }
}

/// The rule counts and reports, but does not refuse.
pub const RULE_SHADOW: u8 = 1;
/// The rule refuses by dropping rather than by RST.
pub const RULE_DROP: u8 = 2;

/// A breaker's rule reads HTTP/1 responses.
pub const RULE_HTTP1: u8 = 4;
/// The rule spends from a quota, which others spend from too.
pub const RULE_QUOTA: u8 = 8;
/// A limit's rule counts hits in a window of realtime: [`crate::window`]. `cost` holds the window's seconds,
/// `burst` how many hits it admits; those that it refuses count, too.
pub const RULE_WINDOW: u8 = 16;

/// A quota's rule spends from a lease of the fleet's: [`crate::lease`]. `cost` holds the window's seconds,
/// `burst` how many hits the fleet admits in one.
pub const RULE_LEASE: u8 = 32;

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RuleKind {
    /// Admits at once; nothing is spent.
    Exempt = 1,
    /// Decides by its own bucket alone: health probes.
    Probe = 2,
    /// A bucket per source.
    Source = 3,
    /// A bucket.
    Limit = 4,
    /// So many connections and handshakes at once: [`crate::load`]. `cost` holds the connections,
    /// `burst` the handshakes.
    Load = 5,
    /// So many connections of one source at once: [`crate::load`]. `cost` holds the connections.
    SourceLoad = 6,
    /// A circuit breaker: [`crate::breaker`]. `cost`, `burst` and `step` hold its packed parameters.
    Breaker = 7,
    /// A bucket of bytes in debt mode. Of this and the next two, `cost` is the price of a unit in 2^-20 ns.
    Bandwidth = 8,
    /// A bucket of packets in debt mode.
    Packets = 9,
    /// A bucket of bytes for each direction of a TCP connection.
    ConnectionBandwidth = 10,
}

/// Loads that one connection counts in at most.
pub const MAX_LOADS: usize = 4;
/// Loads per source that one connection counts in at most.
pub const MAX_SOURCE_LOADS: usize = 2;
/// Breakers that learn from one connection at most.
pub const MAX_BREAKERS: usize = 2;

/// A tracked connection, beside its [word](crate::layout). Seen from the workload: its own end is
/// local.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The workload's address.
    pub local: Addr,
    /// The other end's address.
    pub remote: Addr,
    /// Local port << 16 | remote port.
    pub ports: u32,
    /// Workload slot << 1 | direction of the SYN.
    pub owner: u32,
    /// Sequence number of the SYN that was admitted.
    pub isn: u32,
    /// Sequence number of the answer to it.
    pub answer: u32,
    /// Sequence number of another SYN on a connection that lives; 0 for none.
    pub again: u32,
    /// What the local and the remote end acknowledged last.
    pub acknowledged: [u32; 2],
    /// What acknowledges the local and the remote end's FIN.
    pub fins: [u32; 2],
    /// Cells of the loads that it counts in; 0 for none.
    pub loads: [u16; MAX_LOADS],
    /// Cells of the breakers that learn from it; 0 for none.
    pub breakers: [u16; MAX_BREAKERS],
    /// The breakers' epochs when it was admitted.
    pub breaker_epochs: [u8; MAX_BREAKERS],
    /// 1 if HTTP/1 responses are read, 2 while one is due.
    pub http1: u8,
    /// Reserved.
    pub _reserved: [u8; 5],
    /// When it was admitted, CLOCK_MONOTONIC ns.
    pub opened_ns: u64,
    /// Loads per source that it counts in: tag << 32 | line × 8 + way; 0 for none.
    pub source_loads: [u64; MAX_SOURCE_LOADS],
    /// Reserved.
    pub _reserved_too: [u64; 2],
}

/// A sampled refusal.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// CLOCK_MONOTONIC ns.
    pub time_ns: u64,
    /// The SYN's source.
    pub source: Addr,
    /// The SYN's destination.
    pub destination: Addr,
    /// Source port << 16 | destination port.
    pub ports: u32,
    /// Workload slot.
    pub slot: u32,
    /// The limit's cell; 0 when no limit decided.
    pub cell: u32,
    /// [`verdict::Reason`].
    pub reason: u8,
    /// [`verdict::Verdict`].
    pub verdict: u8,
    /// [`Hook`].
    pub hook: u8,
    /// Reserved.
    pub _reserved: u8,
}

/// What the agent is asked about a lease of the fleet's quota.
///
/// A SYN towards a workload for which the lease does not suffice was dropped, and nothing was spent on it. It is judged again
/// like any other when the agent has asked the store and sent it once more.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handup {
    /// The lease's cell.
    pub cell: u32,
    /// The workload's slot.
    pub slot: u32,
    /// The interface that the packet is at.
    pub ifindex: u32,
    /// How long the packet is; 0 when none can be sent once more.
    pub length: u16,
    /// 1 if a SYN lacks a hit, 0 if the lease runs low.
    pub lacks: u16,
    /// The packet, from its link header on, if it has one.
    pub packet: [u8; HANDUP_PACKET],
}

/// The longest SYN that is handed up: link, IPv6 and the longest TCP header, and much room between.
pub const HANDUP_PACKET: usize = 256;

/// Decisions by verdict and reason, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Count of each (verdict, reason).
    pub counts: [[u64; verdict::REASONS]; verdict::VERDICTS],
}

impl Default for Tally {
    fn default() -> Self {
        Self { counts: [[0; verdict::REASONS]; verdict::VERDICTS] }
    }
}

const _: () = {
    assert!(size_of::<CellLine>() == 64 && align_of::<CellLine>() == 64);
    assert!(size_of::<CellLine>() == way::LINE * 8);
    assert!(size_of::<Config>() == 128);
    assert!(size_of::<Record>() == 56);
    assert!(size_of::<Counts>() == 32);
    assert!(size_of::<Volume>() == 64);
    assert!(size_of::<Workload>() == 64);
    assert!(size_of::<Rule>() == 64);
    assert!(size_of::<Block>() == 64 + MAX_RULES * size_of::<Rule>());
    assert!(size_of::<Event>() == 56);
    assert!(size_of::<Handup>() == 16 + HANDUP_PACKET && HANDUP_PACKET.is_power_of_two());
    assert!(size_of::<Local>() == 24);
    assert!(size_of::<Slot>() == 128);
    assert!(MAX_CELLS <= 1 << 16);
    // A slot number, a direction and a port share 31 bits with the one for byte limits.
    assert!(MAX_WORKLOADS <= 1 << 14 && FLOW_LINES.is_power_of_two());
    assert!(SOURCE_LINES.is_power_of_two() && PENDING_LINES.is_power_of_two());
};

#[cfg(feature = "user")]
mod pod {
    //! The agent copies these in and out of maps as bytes.
    #![allow(unsafe_code)]

    use super::*;

    macro_rules! pod {
        ($($type:ty),*) => {$(
            // SAFETY: `repr(C)` integers (and structs of them) without padding, as the size
            // assertions above show, so every bit pattern is a valid value.
            unsafe impl aya::Pod for $type {}
        )*};
    }

    pod!(
        Addr, Block, CellLine, Config, Counts, Event, Handup, Local, Record, Rule, Slot, Tally,
        Volume, Workload
    );
}
