//! Every map, and the only place where map memory becomes references.
//!
//! Who writes each of them, and how they are sized, stands in [`weir_common::layout`].

use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use weir_common::{
    addr::Addr,
    layout::{
        Block, CellLine, Config, Counts, EVENTS_BYTES, FLOW_LINES, HANDUPS_BYTES, HOOKS, Local,
        MAX_ADDRESSES, MAX_BLOCKS, MAX_CELLS, MAX_LOCALS, MAX_PORTS, MAX_WORKLOADS, PENDING_LINES,
        Record, SOURCE_LINES, SOURCE_LOAD_LINES, Slot, TRACK_LINES, Tally, Volume, Workload,
    },
    nh::Secret,
    way::{LINE, Line},
    word::Word,
};

/// `BPF_F_MMAPABLE`: the agent maps this array and sees every change at once (since 5.5).
const MAPPED: u32 = 1 << 10;

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, MAPPED);
#[map]
static CELLS: Array<CellLine> = Array::with_max_entries(MAX_CELLS, MAPPED);
/// Only the agent reads and writes it; it stands here so that it is made and pinned with the rest.
#[map]
pub static RECORDS: Array<Record> = Array::with_max_entries(MAX_CELLS, 0);
#[map]
static COUNTS: PerCpuArray<Counts> = PerCpuArray::with_max_entries(MAX_CELLS, 0);
#[map]
static WORKLOADS: Array<Workload> = Array::with_max_entries(MAX_WORKLOADS, 0);
#[map]
static TALLIES: PerCpuArray<Tally> = PerCpuArray::with_max_entries(MAX_WORKLOADS * HOOKS, 0);
#[map]
static INTERFACES: HashMap<u32, u32> = HashMap::with_max_entries(MAX_WORKLOADS * 2, 0);
#[map]
static CALLERS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_WORKLOADS, 0);
#[map]
static LOCALS: HashMap<Local, u32> = HashMap::with_max_entries(MAX_LOCALS, 0);
#[map]
static ADDRESSES: HashMap<Addr, u32> = HashMap::with_max_entries(MAX_ADDRESSES, 0);
#[map]
static PORTS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_PORTS, 0);
#[map]
static BLOCKS: Array<Block> = Array::with_max_entries(MAX_BLOCKS, 0);
#[map]
static SOURCES: Array<CellLine> = Array::with_max_entries(SOURCE_LINES, MAPPED);
#[map]
static PENDING: Array<CellLine> = Array::with_max_entries(PENDING_LINES, MAPPED);
#[map]
static TRACKS: Array<CellLine> = Array::with_max_entries(TRACK_LINES, MAPPED);
#[map]
static SLOTS: Array<Slot> = Array::with_max_entries(TRACK_LINES * LINE as u32, MAPPED);
#[map]
static SOURCE_LOADS: Array<CellLine> = Array::with_max_entries(SOURCE_LOAD_LINES, MAPPED);
#[map]
static FLOWS: Array<CellLine> = Array::with_max_entries(FLOW_LINES, MAPPED);
#[map]
static VOLUMES: PerCpuArray<Volume> = PerCpuArray::with_max_entries(MAX_CELLS, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);
#[map]
pub static HANDUPS: RingBuf = RingBuf::with_byte_size(HANDUPS_BYTES, 0);

/// A word of a map value. Map values outlive the program run, so the pointer stays good.
#[derive(Clone, Copy)]
pub struct MapWord(*mut u64);

impl MapWord {
    /// Writes the word, whatever it was.
    #[inline(always)]
    pub fn store(self, new: u64) {
        // SAFETY: points into a live map value, aligned; volatile because others read it.
        unsafe { self.0.write_volatile(new) }
    }
}

impl Word for MapWord {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: points into a live map value, aligned; volatile because others write it.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
        // `AtomicU64` has no read-modify-write for this target; the intrinsic is `cmpxchg_64`.
        // SAFETY: points into a live map value, aligned; only changed by compare-and-swap.
        let (seen, done) =
            unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(self.0, current, new) };
        if done { Ok(seen) } else { Err(seen) }
    }
}

/// A line of eight words in a map.
#[derive(Clone, Copy)]
pub struct MapLine(*mut u64);

impl MapLine {
    #[inline(always)]
    fn new(line: *mut CellLine) -> Self {
        Self(line.cast())
    }
}

impl Line for MapLine {
    type Word<'line> = MapWord;

    #[inline(always)]
    fn word(&self, index: usize) -> MapWord {
        // SAFETY: a `CellLine` is eight words, and the index is one of theirs.
        MapWord(unsafe { self.0.add(index & (LINE - 1)) })
    }
}

/// The key of the placement hashes.
#[inline(always)]
pub fn secret() -> Option<&'static Secret> {
    CONFIG.get(0).map(|config| &config.secret)
}

/// Whether any workload's connections are tracked.
#[inline(always)]
pub fn tracks() -> bool {
    CONFIG.get(0).is_some_and(|config| config.tracked != 0)
}

/// Seconds of CLOCK_REALTIME at a time of CLOCK_MONOTONIC.
#[inline(always)]
pub fn realtime_s(now_ns: u64) -> u64 {
    let offset = CONFIG.get(0).map_or(0, |config| config.clock_offset_ns);
    now_ns.wrapping_add(offset) / 1_000_000_000
}

/// When the agent last lived, CLOCK_MONOTONIC ns.
#[inline(always)]
pub fn heartbeat_ns() -> u64 {
    CONFIG.get(0).map_or(0, |config| config.heartbeat_ns)
}

/// Whether the fleet's store does not answer.
#[inline(always)]
pub fn store_is_away() -> bool {
    CONFIG.get(0).is_none_or(|config| config.store_away != 0)
}

/// The least time between two events of one limit on one CPU, ns.
#[inline(always)]
pub fn event_interval_ns() -> u64 {
    CONFIG.get(0).map_or(u64::MAX, |config| config.event_interval_ns)
}

/// The state word of a one-word cell.
#[inline(always)]
pub fn cell(index: u32) -> Option<MapWord> {
    CELLS.get_ptr_mut(index).map(|line| MapWord(line.cast()))
}

/// What happened at a cell, on this CPU. The program cannot be interrupted by another one that
/// writes the same entry often enough to matter: a nested run may lose one count.
#[inline(always)]
pub fn counts(cell: u32) -> Option<&'static mut Counts> {
    // SAFETY: this CPU's copy; map values outlive the run.
    COUNTS.get_ptr_mut(cell).map(|counts| unsafe { &mut *counts })
}

/// This CPU's tally of a workload at a hook.
#[inline(always)]
pub fn tally(index: u32) -> Option<&'static mut Tally> {
    // SAFETY: as for `counts`.
    TALLIES.get_ptr_mut(index).map(|tally| unsafe { &mut *tally })
}

#[inline(always)]
pub fn workload(slot: u32) -> Option<&'static Workload> {
    WORKLOADS.get(slot)
}

#[inline(always)]
pub fn block(index: u32) -> Option<&'static Block> {
    BLOCKS.get(index)
}

#[inline(always)]
pub fn slot_of_interface(ifindex: u32) -> Option<u32> {
    // SAFETY: a `u32` is read in one load; a reused entry holds another valid slot.
    unsafe { INTERFACES.get(ifindex) }.copied()
}

/// The slot of the workload whose namespace has this cookie.
#[inline(always)]
pub fn slot_of_caller(cookie: u64) -> Option<u32> {
    // SAFETY: as for `slot_of_interface`.
    unsafe { CALLERS.get(cookie) }.copied()
}

/// Whether an address is the workload's own.
#[inline(always)]
pub fn is_local(slot: u32, address: Addr) -> bool {
    let local = Local { address, slot: u64::from(slot) };
    // SAFETY: what it holds is not read.
    unsafe { LOCALS.get(local) }.is_some()
}

#[inline(always)]
pub fn slot_of_address(address: &Addr) -> Option<u32> {
    // SAFETY: as for `slot_of_interface`.
    unsafe { ADDRESSES.get(address) }.copied()
}

#[inline(always)]
pub fn block_of_port(key: u32) -> Option<u32> {
    // SAFETY: as for `slot_of_interface`.
    unsafe { PORTS.get(key) }.copied()
}

#[inline(always)]
pub fn source_line(index: u32) -> Option<MapLine> {
    SOURCES.get_ptr_mut(index).map(MapLine::new)
}

#[inline(always)]
pub fn pending_line(index: u32) -> Option<MapLine> {
    PENDING.get_ptr_mut(index).map(MapLine::new)
}

#[inline(always)]
pub fn track_line(index: u32) -> Option<MapLine> {
    TRACKS.get_ptr_mut(index).map(MapLine::new)
}

/// What stands beside a way of `TRACKS`. Whoever won the way writes; a word that is torn by another's
/// write belongs to a connection that is gone, and its way says so.
#[inline(always)]
pub fn slot(index: u32) -> Option<&'static mut Slot> {
    // SAFETY: map values outlive the run; integers, for which any bytes are valid.
    SLOTS.get_ptr_mut(index).map(|slot| unsafe { &mut *slot })
}

#[inline(always)]
pub fn source_load_line(index: u32) -> Option<MapLine> {
    SOURCE_LOADS.get_ptr_mut(index).map(MapLine::new)
}

#[inline(always)]
pub fn flow_line(index: u32) -> Option<MapLine> {
    FLOWS.get_ptr_mut(index).map(MapLine::new)
}

/// What passed a limit of bytes, on this CPU.
#[inline(always)]
pub fn volume(cell: u32) -> Option<&'static mut Volume> {
    // SAFETY: as for `counts`.
    VOLUMES.get_ptr_mut(cell).map(|volume| unsafe { &mut *volume })
}

/// All words of a cell.
#[inline(always)]
pub fn cell_line(index: u32) -> Option<MapLine> {
    CELLS.get_ptr_mut(index).map(MapLine::new)
}
