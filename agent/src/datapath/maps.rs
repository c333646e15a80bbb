//! The maps, typed: who writes what stands in [`weir_common::layout`].

use std::{
    collections::BTreeSet,
    fs,
    mem::offset_of,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::maps::{Array, HashMap, MapData, MapError, MapType, PerCpuArray};
use memmap2::{MmapOptions, MmapRaw};
use weir_common::{
    addr::Addr,
    handshake,
    layout::{
        Block, CellLine, Config, Counts, FLOW_LINES, HOOKS, Hook, Local, MAX_BREAKERS, MAX_CELLS,
        MAX_LOADS, PENDING_LINES, Record, SOURCE_LINES, Slot, TRACK_LINES, Tally, Volume, Workload,
    },
    lease,
    nh::Secret,
    source,
    track::{self, Phase},
    verdict::{Reason, Verdict},
    way::{self, Tick},
};

use super::error::DatapathError;
use crate::{
    clock::Clock,
    quota::{self, store::Words},
};

/// All pinned maps.
pub(super) const NAMES: [&str; 21] = [
    "CONFIG",
    "CELLS",
    "RECORDS",
    "COUNTS",
    "WORKLOADS",
    "TALLIES",
    "INTERFACES",
    "CALLERS",
    "LOCALS",
    "ADDRESSES",
    "PORTS",
    "BLOCKS",
    "SOURCES",
    "PENDING",
    "TRACKS",
    "SLOTS",
    "SOURCE_LOADS",
    "FLOWS",
    "VOLUMES",
    "EVENTS",
    "HANDUPS",
];

/// Words of [`Config`] that change while programs read it.
const HEARTBEAT_WORD: usize = offset_of!(Config, heartbeat_ns) / 8;
const CLOCK_OFFSET_WORD: usize = offset_of!(Config, clock_offset_ns) / 8;
const TRACKED_WORD: usize = offset_of!(Config, tracked) / 8;
const STORE_AWAY_WORD: usize = offset_of!(Config, store_away) / 8;

/// Words of a [`CellLine`].
const CELL_WORDS: usize = size_of::<CellLine>() / size_of::<u64>();

/// The least time between two events of one limit on one CPU.
const EVENT_INTERVAL_NS: u64 = 10_000_000;

/// Memory of an array map, as words.
pub(super) struct Mapped {
    memory: MmapRaw,
    words: usize,
}

impl std::fmt::Debug for Mapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} words", self.words)
    }
}

impl Mapped {
    pub(super) fn open(
        directory: &Path,
        name: &'static str,
        words: usize,
    ) -> Result<Self, DatapathError> {
        let data = pinned(directory, name)?;
        let memory = MmapOptions::new()
            .len(words * size_of::<u64>())
            .map_raw(data.fd().as_fd().as_raw_fd())
            .map_err(|source| DatapathError::Mapping { name, source })?;
        Ok(Self { memory, words })
    }

    pub(super) fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.words {
            return None;
        }
        // SAFETY: within the mapping, which lives as long as `self`; page-aligned, so each word is
        // aligned; the kernel changes it only by atomics or whole-word stores.
        Some(unsafe { AtomicU64::from_ptr(self.memory.as_mut_ptr().cast::<u64>().add(index)) })
    }

    fn words(&self) -> impl Iterator<Item = &AtomicU64> {
        (0..self.words).filter_map(|index| self.word(index))
    }

    /// A line of ways.
    pub(super) fn line(&self, index: usize) -> Option<[&AtomicU64; way::LINE]> {
        let first = index * way::LINE;
        let mut line = [self.word(first)?; way::LINE];
        for (way, word) in line.iter_mut().enumerate() {
            *word = self.word(first + way)?;
        }
        Some(line)
    }
}

/// The maps that may be read at any time, and the words that are changed in place.
pub struct Maps {
    config: Arc<Mapped>,
    cells: Arc<Mapped>,
    sources: Mapped,
    pending: Mapped,
    flows: Mapped,
    counts: PerCpuArray<MapData, Counts>,
    volumes: PerCpuArray<MapData, Volume>,
    tallies: PerCpuArray<MapData, Tally>,
}

/// A word that others than the owner of the data plane use: a cell's, to spend from it.
#[derive(Clone, Debug)]
pub struct SharedCell {
    cells: Arc<Mapped>,
    word: usize,
}

/// A lease's words, for those who fill it and spend from it outside the kernel.
#[derive(Debug)]
pub struct SharedLease {
    words: NonNull<[AtomicU64; lease::WORDS]>,
    /// Where they lie.
    _cells: Arc<Mapped>,
}

// SAFETY: the words are atomics of a mapping that lives as long as this.
unsafe impl Send for SharedLease {}
// SAFETY: as above.
unsafe impl Sync for SharedLease {}

impl Words for SharedLease {
    fn words(&self) -> &[AtomicU64; lease::WORDS] {
        // SAFETY: within the mapping, which lives as long as `self`; a cell is a cache line, aligned.
        unsafe { self.words.as_ref() }
    }
}

impl quota::shared::Cell for SharedCell {
    fn word(&self) -> Option<&AtomicU64> {
        self.cells.word(self.word)
    }
}

/// The maps that the agent alone writes.
pub(super) struct Writers {
    pub(super) records: Array<MapData, Record>,
    pub(super) workloads: Array<MapData, Workload>,
    pub(super) blocks: Array<MapData, Block>,
    pub(super) ports: HashMap<MapData, u32, u32>,
    pub(super) interfaces: HashMap<MapData, u32, u32>,
    pub(super) callers: HashMap<MapData, u64, u32>,
    pub(super) locals: HashMap<MapData, Local, u32>,
    pub(super) addresses: HashMap<MapData, Addr, u32>,
    counts: PerCpuArray<MapData, Counts>,
    volumes: PerCpuArray<MapData, Volume>,
    tallies: PerCpuArray<MapData, Tally>,
}

impl Writers {
    pub(super) fn open(directory: &Path) -> Result<Self, DatapathError> {
        Ok(Self {
            records: array(directory, "RECORDS")?,
            workloads: array(directory, "WORKLOADS")?,
            blocks: array(directory, "BLOCKS")?,
            ports: hash(directory, "PORTS")?,
            interfaces: hash(directory, "INTERFACES")?,
            callers: hash(directory, "CALLERS")?,
            locals: hash(directory, "LOCALS")?,
            addresses: hash(directory, "ADDRESSES")?,
            counts: per_cpu(directory, "COUNTS")?,
            volumes: per_cpu(directory, "VOLUMES")?,
            tallies: per_cpu(directory, "TALLIES")?,
        })
    }

    /// Forgets what happened at a cell: it is another limit's now.
    pub(super) fn clear_counts(&mut self, cell: u32) -> Result<(), DatapathError> {
        clear(&mut self.volumes, "VOLUMES", cell)?;
        clear(&mut self.counts, "COUNTS", cell)
    }

    /// Forgets what happened to a workload: the slot is another's now.
    pub(super) fn clear_tallies(&mut self, slot: u32) -> Result<(), DatapathError> {
        (0..HOOKS).try_for_each(|hook| clear(&mut self.tallies, "TALLIES", slot * HOOKS + hook))
    }
}

fn clear<T: aya::Pod + Default>(
    map: &mut PerCpuArray<MapData, T>,
    name: &'static str,
    index: u32,
) -> Result<(), DatapathError> {
    let failed = |source| DatapathError::Map { name, source };
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed(MapError::IoError(error)))?;
    let zeros = aya::maps::PerCpuValues::try_from(vec![T::default(); cpus])
        .map_err(|error| failed(MapError::IoError(error)))?;
    map.set(index, zeros, 0).map_err(failed)
}

/// What happened at a limit, summed over CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CellCounts {
    /// Takes that found a token.
    pub admitted: u64,
    /// Takes that were refused.
    pub refused: u64,
    /// Takes that would have been refused, were the line not in shadow.
    pub shadowed: u64,
}

impl CellCounts {
    /// Both together.
    pub(super) const fn and(self, other: Self) -> Self {
        Self {
            admitted: self.admitted.wrapping_add(other.admitted),
            refused: self.refused.wrapping_add(other.refused),
            shadowed: self.shadowed.wrapping_add(other.shadowed),
        }
    }
}

/// What passed a limit of bytes or packets and what did not, summed over CPUs; packets as on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct VolumeCounts {
    /// Bytes that passed.
    pub passed_bytes: u64,
    /// Packets that passed.
    pub passed_packets: u64,
    /// Of these, bytes that were marked (ECN).
    pub marked_bytes: u64,
    /// Packets that were marked.
    pub marked_packets: u64,
    /// Bytes that were dropped.
    pub dropped_bytes: u64,
    /// Packets that were dropped.
    pub dropped_packets: u64,
    /// Bytes that would have been dropped, were the limit not in shadow.
    pub shadowed_bytes: u64,
    /// Packets that would have been dropped.
    pub shadowed_packets: u64,
}

impl VolumeCounts {
    /// Nothing.
    pub(super) const ZERO: Self = Self {
        passed_bytes: 0,
        passed_packets: 0,
        marked_bytes: 0,
        marked_packets: 0,
        dropped_bytes: 0,
        dropped_packets: 0,
        shadowed_bytes: 0,
        shadowed_packets: 0,
    };

    /// Both together.
    pub(super) const fn and(self, other: Self) -> Self {
        // Wrapping: what is given back may be counted on another CPU than what passed.
        Self {
            passed_bytes: self.passed_bytes.wrapping_add(other.passed_bytes),
            passed_packets: self.passed_packets.wrapping_add(other.passed_packets),
            marked_bytes: self.marked_bytes.wrapping_add(other.marked_bytes),
            marked_packets: self.marked_packets.wrapping_add(other.marked_packets),
            dropped_bytes: self.dropped_bytes.wrapping_add(other.dropped_bytes),
            dropped_packets: self.dropped_packets.wrapping_add(other.dropped_packets),
            shadowed_bytes: self.shadowed_bytes.wrapping_add(other.shadowed_bytes),
            shadowed_packets: self.shadowed_packets.wrapping_add(other.shadowed_packets),
        }
    }
}

impl From<&Volume> for VolumeCounts {
    fn from(volume: &Volume) -> Self {
        let Volume {
            passed_bytes,
            passed_packets,
            marked_bytes,
            marked_packets,
            dropped_bytes,
            dropped_packets,
            shadowed_bytes,
            shadowed_packets,
        } = *volume;
        Self {
            passed_bytes,
            passed_packets,
            marked_bytes,
            marked_packets,
            dropped_bytes,
            dropped_packets,
            shadowed_bytes,
            shadowed_packets,
        }
    }
}

/// The decisions of a workload at a hook, summed over CPUs; only those that happened.
pub type TallyView = Vec<(Verdict, Reason, u64)>;

impl Maps {
    pub(super) fn open(directory: &Path) -> Result<Self, DatapathError> {
        Ok(Self {
            config: Arc::new(Mapped::open(
                directory,
                "CONFIG",
                size_of::<Config>() / size_of::<u64>(),
            )?),
            cells: Arc::new(Mapped::open(directory, "CELLS", MAX_CELLS as usize * CELL_WORDS)?),
            sources: Mapped::open(directory, "SOURCES", SOURCE_LINES as usize * way::LINE)?,
            pending: Mapped::open(directory, "PENDING", PENDING_LINES as usize * way::LINE)?,
            flows: Mapped::open(directory, "FLOWS", FLOW_LINES as usize * way::LINE)?,
            counts: per_cpu(directory, "COUNTS")?,
            volumes: per_cpu(directory, "VOLUMES")?,
            tallies: per_cpu(directory, "TALLIES")?,
        })
    }

    /// Draws the secret of new maps; sets what this agent decides.
    pub(super) fn prepare(&self, directory: &Path, clock: &Clock) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Map { name: "CONFIG", source };
        let mut entry: Array<MapData, Config> = array(directory, "CONFIG")?;
        let mut config = entry.get(&0, 0).map_err(failed)?;
        if config.secret == Secret::default() {
            let mut bytes = [0; size_of::<Secret>()];
            getrandom::fill(&mut bytes)
                .map_err(|error| failed(MapError::IoError(std::io::Error::other(error))))?;
            for (word, bytes) in config.secret.iter_mut().zip(bytes.as_chunks().0) {
                *word = u64::from_ne_bytes(*bytes);
            }
        }
        config.event_interval_ns = EVENT_INTERVAL_NS;
        entry.set(0, config, 0).map_err(failed)?;
        self.beat(clock);
        Ok(())
    }

    /// Tells the kernel that the agent lives, and what time it is.
    pub(super) fn beat(&self, clock: &Clock) {
        let set = |word, value| {
            if let Some(word) = self.config.word(word) {
                word.store(value, Ordering::Relaxed);
            }
        };
        set(CLOCK_OFFSET_WORD, clock.realtime_ns().wrapping_sub(clock.monotonic_ns()));
        set(HEARTBEAT_WORD, clock.monotonic_ns());
    }

    /// The key of the placement hashes.
    pub(super) fn secret(&self) -> Secret {
        const FIRST: usize = offset_of!(Config, secret) / 8;
        std::array::from_fn(|index| {
            self.config.word(FIRST + index).map_or(0, |word| word.load(Ordering::Relaxed))
        })
    }

    /// Tells the kernel how many workloads are tracked: while there are none, it looks at nothing
    /// but SYNs.
    pub(super) fn set_tracked(&self, workloads: u64) {
        if let Some(word) = self.config.word(TRACKED_WORD) {
            word.store(workloads, Ordering::SeqCst);
        }
    }

    /// The first state word of a cell; all there is but for breakers.
    pub(super) fn cell(&self, index: u32) -> Option<&AtomicU64> {
        self.cell_words(index).next()
    }

    /// The state words of a cell.
    pub(super) fn cell_words(&self, index: u32) -> impl Iterator<Item = &AtomicU64> {
        let first = index as usize * CELL_WORDS;
        (first..first + CELL_WORDS).filter_map(|word| self.cells.word(word))
    }

    /// The same as a line.
    pub(super) fn cell_line(&self, index: u32) -> Option<[&AtomicU64; way::LINE]> {
        self.cell_words(index).collect::<Vec<_>>().try_into().ok()
    }

    /// The first word of a cell, for as long as somebody needs it.
    pub(super) fn shared_cell(&self, index: u32) -> SharedCell {
        SharedCell { cells: Arc::clone(&self.cells), word: index as usize * CELL_WORDS }
    }

    /// The words of a lease, for as long as somebody needs them.
    pub(super) fn lease(&self, index: u32) -> Option<SharedLease> {
        let first = index as usize * CELL_WORDS;
        // The last one's being there says that all are.
        self.cells.word(first + CELL_WORDS - 1)?;
        let words = NonNull::from(self.cells.word(first)?).cast();
        Some(SharedLease { words, _cells: Arc::clone(&self.cells) })
    }

    /// The word that says whether the fleet's store does not answer.
    pub(super) fn store_away(&self) -> SharedCell {
        SharedCell { cells: Arc::clone(&self.config), word: STORE_AWAY_WORD }
    }

    /// What happened at a cell.
    pub fn counts(&self, cell: u32) -> Result<CellCounts, DatapathError> {
        let values = self
            .counts
            .get(&cell, 0)
            .map_err(|source| DatapathError::Map { name: "COUNTS", source })?;
        // Wrapping: a refund may be counted on another CPU than the take.
        let sum =
            |field: fn(&Counts) -> u64| values.iter().map(field).fold(0u64, u64::wrapping_add);
        Ok(CellCounts {
            admitted: sum(|counts| counts.admitted),
            refused: sum(|counts| counts.refused),
            shadowed: sum(|counts| counts.shadowed),
        })
    }

    /// What passed a limit of bytes.
    pub fn volume(&self, cell: u32) -> Result<VolumeCounts, DatapathError> {
        let values = self
            .volumes
            .get(&cell, 0)
            .map_err(|source| DatapathError::Map { name: "VOLUMES", source })?;
        Ok(values.iter().map(VolumeCounts::from).fold(VolumeCounts::ZERO, VolumeCounts::and))
    }

    /// The decisions of a slot at a hook.
    pub fn tally(&self, slot: u32, hook: Hook) -> Result<TallyView, DatapathError> {
        let values = self
            .tallies
            .get(&(slot * HOOKS + hook as u32), 0)
            .map_err(|source| DatapathError::Map { name: "TALLIES", source })?;
        let mut view = Vec::new();
        for verdict in Verdict::ALL {
            for &reason in Reason::ALL {
                let count = values
                    .iter()
                    .map(|tally| tally.counts[verdict as usize][reason as usize])
                    .sum();
                if count > 0 {
                    view.push((verdict, reason, count));
                }
            }
        }
        Ok(view)
    }

    /// Clears what has passed long ago, before the counter of time comes round to it.
    pub fn clear_old_ways(&self, clock: &Clock) -> usize {
        let now_ns = clock.monotonic_ns();
        let now = Tick::from_ns(now_ns);
        clear_absent(&self.sources, |word| way::ahead(word, now) == 0)
            + clear_absent(&self.flows, |word| way::ahead(word, now) == 0)
            + clear_absent(&self.pending, |word| handshake::ahead(word, now_ns) == 0)
    }

    /// How many sources and handshakes are live.
    pub fn live_ways(&self, clock: &Clock) -> (usize, usize) {
        let now_ns = clock.monotonic_ns();
        let now = Tick::from_ns(now_ns);
        let sources = self.sources.words().enumerate().filter(|(index, word)| {
            // The last word of a line is the bucket that the crowded share.
            index % way::LINE < source::WAYS && way::ahead(word.load(Ordering::Relaxed), now) > 0
        });
        let handshakes = self
            .pending
            .words()
            .filter(|word| handshake::ahead(word.load(Ordering::Relaxed), now_ns) > 0);
        (sources.count(), handshakes.count())
    }
}

/// Clears the words that equal absent ones, unless somebody takes them over just now.
fn clear_absent(lines: &Mapped, is_absent: impl Fn(u64) -> bool) -> usize {
    let words = lines.words();
    words
        .filter(|word| {
            let value = word.load(Ordering::Relaxed);
            value != 0
                && is_absent(value)
                && word.compare_exchange(value, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })
        .count()
}

fn pinned(directory: &Path, name: &'static str) -> Result<MapData, DatapathError> {
    MapData::from_pin(directory.join(name)).map_err(|source| DatapathError::Map { name, source })
}

/// A pinned array, checked against the size of what this version keeps in it.
pub(super) fn array<T: aya::Pod>(
    directory: &Path,
    name: &'static str,
) -> Result<Array<MapData, T>, DatapathError> {
    let data = pinned(directory, name)?;
    check(&data, name, size_of::<T>())?;
    Array::try_from(aya::maps::Map::Array(data))
        .map_err(|source| DatapathError::Map { name, source })
}

pub(super) fn per_cpu<T: aya::Pod>(
    directory: &Path,
    name: &'static str,
) -> Result<PerCpuArray<MapData, T>, DatapathError> {
    let data = pinned(directory, name)?;
    check(&data, name, size_of::<T>())?;
    PerCpuArray::try_from(aya::maps::Map::PerCpuArray(data))
        .map_err(|source| DatapathError::Map { name, source })
}

fn hash<K: aya::Pod, V: aya::Pod>(
    directory: &Path,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, DatapathError> {
    let data = pinned(directory, name)?;
    check(&data, name, size_of::<V>())?;
    HashMap::try_from(aya::maps::Map::HashMap(data))
        .map_err(|source| DatapathError::Map { name, source })
}

/// aya compares kinds; a pinned map of another version may still have another value.
fn check(data: &MapData, name: &'static str, value_size: usize) -> Result<(), DatapathError> {
    let info = data.info().map_err(|source| DatapathError::Map { name, source })?;
    let _: MapType = info.map_type().map_err(|source| DatapathError::Map { name, source })?;
    if info.value_size() as usize == value_size {
        Ok(())
    } else {
        Err(DatapathError::Layout { name })
    }
}

/// The cells that tracked connections count in or teach. They are mapped for as long as it takes to
/// look through them, which is seldom.
///
/// A connection has a word in `TRACKS` and a slot with the same number in `SLOTS`; a slot without a
/// word is nobody's, whatever stands in it.
pub(super) fn referred_cells(directory: &Path) -> Result<BTreeSet<u32>, DatapathError> {
    const SLOT_WORDS: usize = size_of::<Slot>() / size_of::<u64>();
    let connections = TRACK_LINES as usize * way::LINE;
    let tracks = Mapped::open(directory, "TRACKS", connections)?;
    let slots = Mapped::open(directory, "SLOTS", connections * SLOT_WORDS)?;
    let mut cells = BTreeSet::new();
    for (index, track) in tracks.words().enumerate() {
        if track::phase(track.load(Ordering::Relaxed)) == Phase::Free {
            continue;
        }
        let mut slot = [0; SLOT_WORDS];
        for (word, to) in slot.iter_mut().enumerate() {
            *to = slots
                .word(index * SLOT_WORDS + word)
                .map_or(0, |word| word.load(Ordering::Relaxed));
        }
        cells.extend(cells_of(&slot));
    }
    Ok(cells)
}

/// The cells that the words of a [`Slot`] name.
fn cells_of(slot: &[u64]) -> impl Iterator<Item = u32> {
    const FROM: usize = offset_of!(Slot, loads) / 2;
    const COUNT: usize = MAX_LOADS + MAX_BREAKERS;
    const _: () = assert!(offset_of!(Slot, breakers) == offset_of!(Slot, loads) + MAX_LOADS * 2);
    let shorts = slot.iter().flat_map(|word| {
        let bytes = word.to_ne_bytes();
        [0, 2, 4, 6].map(|at| u32::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]])))
    });
    shorts.skip(FROM).take(COUNT).filter(|cell| *cell != 0).collect::<Vec<_>>().into_iter()
}

/// Removes the pins of all maps in a directory, whatever they are called: other layouts have others.
pub(super) fn unpin(directory: &Path) -> Vec<String> {
    let mut removed: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| fs::remove_file(entry.path()).is_ok())
        .map(|entry| format!("map {}", entry.file_name().display()))
        .collect();
    removed.sort();
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_names_the_cells_of_its_loads_and_breakers() {
        const WORDS: usize = size_of::<Slot>() / 8;
        let mut words = [u64::MAX; WORDS];
        let mut set = |at: usize, value: u16| {
            let mut bytes = words[at / 8].to_ne_bytes();
            bytes[at % 8..at % 8 + 2].copy_from_slice(&value.to_ne_bytes());
            words[at / 8] = u64::from_ne_bytes(bytes);
        };
        for (index, cell) in [7, 0, 8191, 0].into_iter().enumerate() {
            set(offset_of!(Slot, loads) + 2 * index, cell);
        }
        for (index, cell) in [300, 0].into_iter().enumerate() {
            set(offset_of!(Slot, breakers) + 2 * index, cell);
        }
        assert_eq!(cells_of(&words).collect::<Vec<_>>(), [7, 8191, 300]);
    }
}
