//! The kernel's side of the agent: programs, maps and attachments.
//!
//! It has never heard of annotations or files. It is told tables and interfaces, makes the kernel
//! hold them, and reads back what happened. Everything is pinned: the programs go on when the
//! agent dies, and the next agent adopts what it finds ([`Datapath::open`]) without a gap, a free
//! burst or a reset connection.

mod attach;
mod cells;
mod connect;
mod error;
mod events;
mod inject;
mod layouts;
mod maps;
mod object;
mod publish;
mod queue;
mod recount;
mod tracks;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use weir_common::{breaker, layout::LAYOUT};

use self::{
    attach::Links, cells::Cells, connect::Hooks, layouts::Others, maps::Writers, object::Programs,
    publish::Publisher,
};
pub use self::{
    attach::{Attached, Attachment, BOTH_WAYS, Doubt, Side, Target, UplinkMode},
    cells::{CellView, LoadView},
    connect::Caller,
    error::DatapathError,
    events::{Events, Handups},
    inject::{Door, Injector},
    maps::{CellCounts, Maps, SharedCell, SharedLease, TallyView, VolumeCounts},
    publish::Rules,
    queue::{Pace, Pacing, Shapers},
    recount::{Counter, Recount},
    tracks::{Adopted, Adoption, Connection, HalfClosed, Key, Seen, Tracks, counts_in},
};
use crate::{
    clock::Clock,
    compile::{Identity, Tables},
};

/// Where everything is pinned unless told otherwise.
pub const DEFAULT_PIN_ROOT: &str = "/sys/fs/bpf/weir";

/// The data plane of one node, owned by one process.
pub struct Datapath {
    directory: PathBuf,
    maps: Maps,
    writers: Writers,
    programs: Programs,
    cells: Cells,
    publisher: Publisher,
    links: Links,
    hooks: Hooks,
    clock: Clock,
    /// Holding it is what makes this process the owner.
    _lock: File,
}

impl Datapath {
    /// Loads the programs, takes over what an earlier agent pinned below `root`, in this layout or
    /// another, and becomes the one owner.
    pub fn open(root: &Path, clock: Clock, log_level: u8) -> Result<Self, DatapathError> {
        let directory = root.join(format!("v{LAYOUT}"));
        object::require_bpffs(root)?;
        fs::create_dir_all(&directory)
            .map_err(|source| DatapathError::PinDirectory { path: directory.clone(), source })?;
        let lock = lock(&directory)?;
        let others = Others::own(root, &directory, self::lock)?;
        let mut programs = Programs::new(directory.clone(), log_level);
        // Loading makes the maps, or finds the pinned ones.
        programs.prepare()?;
        // Only who can run takes over.
        others.inherit(&directory)?;
        let maps = Maps::open(&directory)?;
        maps.prepare(&directory, &clock)?;
        let writers = Writers::open(&directory)?;
        let cells = Cells::adopt(&writers)?;
        let publisher = Publisher::adopt(&writers)?;
        // What the last agent had no time to tidy up.
        Tracks::open(&directory, &maps, clock)?
            .vacate(|slot| publisher.workload_in(slot).is_none());
        let links = Links::adopt(&directory)?;
        let hooks = Hooks::new(&directory);
        Ok(Self {
            directory,
            maps,
            writers,
            programs,
            cells,
            publisher,
            links,
            hooks,
            clock,
            _lock: lock,
        })
    }

    /// Proves that the kernel takes this version's programs, while another agent owns the pins. It
    /// uses the pinned maps of this layout, or makes them, and changes nothing in them.
    pub fn rehearse(root: &Path, log_level: u8) -> Result<(), DatapathError> {
        Programs::new(root.join(format!("v{LAYOUT}")), log_level).prepare()
    }

    /// Makes the kernel hold these tables, workload by workload.
    pub fn apply(&mut self, tables: &Tables) -> Result<(), DatapathError> {
        let Self { publisher, cells, writers, maps, clock, .. } = self;
        publisher.apply(tables, cells, writers, maps, clock)
    }

    /// Whether nothing is attached: no agent was here before, or it took everything along.
    pub fn is_fresh(&self) -> bool {
        self.links.is_fresh()
    }

    /// Makes the programs run on exactly these interfaces. What cannot be attached is in the
    /// result, with the reason; the others are attached all the same.
    pub fn attach(
        &mut self,
        wanted: &[Attachment],
    ) -> BTreeMap<Attachment, Result<Attached, DatapathError>> {
        let Self { links, programs, writers, publisher, .. } = self;
        let results =
            links.reconcile(wanted, programs, writers, |identity| publisher.slot(identity));
        for (workload, directions) in attach::paced(&results) {
            // A limit that is not told drops instead, as it did before.
            let _ = publisher.set_paced(workload, directions, writers);
        }
        results
    }

    /// The interfaces where an agent before this one left a shield up.
    pub fn inherited_shields(&self) -> BTreeSet<u32> {
        self.links.inherited_shields()
    }

    /// Says which attachments may be others by now; the next [`Datapath::attach`] looks at them.
    pub fn doubt(&mut self, doubt: Doubt) {
        self.links.doubt(doubt);
    }

    /// Makes `connect()` fail at once for exactly these, where a limit of theirs would refuse it. An
    /// error is about all of them; then what they open is refused by RST, as is what others open.
    pub fn hook(
        &mut self,
        callers: &[Caller],
    ) -> Result<BTreeMap<Identity, Result<(), DatapathError>>, DatapathError> {
        let Self { hooks, programs, writers, publisher, .. } = self;
        hooks.reconcile(callers, programs, writers, |identity| publisher.slot(identity))
    }

    /// Gives back what nothing refers to any more, marks the agent as alive and clears old ways.
    pub fn tick(&mut self) -> Result<(), DatapathError> {
        self.maps.beat(&self.clock);
        self.programs.flush_logs();
        let Self { publisher, cells, writers, maps, directory, clock, .. } = self;
        publisher.collect(cells, writers, maps, directory, clock)
    }

    /// Shadows a workload until a time (CLOCK_MONOTONIC, ns), or ends that with 0. The kernel
    /// ends it by itself.
    pub fn shadow_until(
        &mut self,
        workload: Identity,
        until_ns: u64,
    ) -> Result<bool, DatapathError> {
        self.publisher.shadow_until(workload, until_ns, &mut self.writers)
    }

    /// Until when a workload is shadowed (CLOCK_MONOTONIC, ns); 0 when it is not.
    pub fn shadowed_until(&self, workload: Identity) -> u64 {
        self.publisher.shadowed_until(workload)
    }

    /// The maps, for reading.
    pub const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The slot of a workload.
    pub fn slot(&self, workload: Identity) -> Option<u32> {
        self.publisher.slot(workload)
    }

    /// The workload in a slot.
    pub fn workload_in(&self, slot: u32) -> Option<Identity> {
        self.publisher.workload_in(slot)
    }

    /// What the kernel judges a workload by.
    pub fn rules(&self, workload: Identity) -> Option<Rules<'_>> {
        self.publisher.rules(workload)
    }

    /// The slots of workloads whose connections the kernel tracks.
    pub fn tracked_slots(&self) -> BTreeSet<u32> {
        self.publisher.tracked_slots()
    }

    /// The tracked connections.
    pub fn tracks(&self) -> Result<Tracks<'_>, DatapathError> {
        Tracks::open(&self.directory, &self.maps, self.clock)
    }

    /// The cells that count connections, also those that no rule names any more.
    pub fn loads(&self) -> impl Iterator<Item = u32> + '_ {
        self.cells.loads()
    }

    /// The state of a limit's cell now.
    pub fn cell(&self, limit: Identity) -> Option<CellView> {
        self.cells.view(limit, &self.maps, &self.clock)
    }

    /// Opens a breaker that is closed, for its first ejection, because of what others learned; whether
    /// it did.
    pub fn open_breaker(&self, limit: Identity, params: &breaker::Params) -> bool {
        let index = self.cells.index(limit);
        let line = index.and_then(|index| self.maps.cell_line(index));
        let Some(line) = line else { return false };
        // As the kernel does it: who looks at the breaker finds by what it was opened.
        for (word, param) in line.iter().skip(breaker::WORDS).zip(params.pack()) {
            word.store(param, Ordering::Relaxed);
        }
        breaker::open(&line, params, self.clock.monotonic_ns())
    }

    /// The word of a limit's cell, to be spent from.
    pub fn shared_cell(&self, limit: Identity) -> Option<SharedCell> {
        self.cells.index(limit).map(|index| self.maps.shared_cell(index))
    }

    /// The words of a limit's lease, to be filled and spent from.
    pub fn shared_lease(&self, limit: Identity) -> Option<SharedLease> {
        self.cells.index(limit).and_then(|index| self.maps.lease(index))
    }

    /// The word that tells the kernel whether the fleet's store does not answer.
    pub fn store_away(&self) -> SharedCell {
        self.maps.store_away()
    }

    /// Where the packets of workloads are judged, by the workload's slot.
    pub fn doors(&self) -> impl Iterator<Item = (u32, Door)> {
        self.links
            .doors()
            .filter_map(|(workload, door)| Some((self.publisher.slot(workload)?, door)))
    }

    /// The number of a limit's cell.
    pub fn cell_of(&self, limit: Identity) -> Option<u32> {
        self.cells.index(limit)
    }

    /// The limit that a cell's number stands for.
    pub fn limit_of_cell(&self, cell: u32) -> Option<Identity> {
        self.cells.identity(cell)
    }

    /// The stream of events.
    pub fn events(&self) -> Result<Events, DatapathError> {
        Events::open(&self.directory)
    }

    /// What the kernel asks about leases.
    pub fn handups(&self) -> Result<Handups, DatapathError> {
        Handups::open(&self.directory)
    }

    /// What sends packets once more.
    pub fn injector(&self) -> Result<Injector, DatapathError> {
        Injector::load(&self.directory)
    }

    /// Removes every program, pin and map below `root`, of every layout. Whoever runs there loses
    /// what it holds, so this needs the lock.
    pub fn uninstall(root: &Path) -> Result<Vec<String>, DatapathError> {
        attach::uninstall(root, lock)
    }
}

/// Becomes the owner of a pin directory, or says that somebody else is.
fn lock(directory: &Path) -> Result<File, DatapathError> {
    let at = |source| DatapathError::PinDirectory { path: directory.to_owned(), source };
    let file = File::open(directory).map_err(at)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DatapathError::Owned { path: directory.to_owned() }),
        Err(TryLockError::Error(source)) => Err(at(source)),
    }
}
