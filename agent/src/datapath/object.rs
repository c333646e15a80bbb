//! The BPF object and its variants.
//!
//! One object file, loaded once per way of finding a workload: constants that are set at load time
//! make the other ways vanish from the program. All variants share the pinned maps.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier, Xdp},
};
use aya_log::EbpfLogger;
use tracing::warn;

use super::{error::DatapathError, maps::NAMES};

/// The object, as the BPF compiler left it.
static OBJECT: &[u8] = include_bytes_aligned!(env!("WEIR_EBPF_OBJECT"));

/// A variant of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    /// The slot that it serves alone; `None` finds the slot by ifindex, in the agent's own network
    /// namespace.
    pub(super) slot: Option<u32>,
    /// Whether packets start with an Ethernet header.
    pub(super) ethernet: bool,
}

/// The plain variant: every program of it loads on every supported kernel.
pub(super) const PLAIN: Variant = Variant { slot: None, ethernet: true };

/// The loaded variants.
pub(super) struct Programs {
    directory: PathBuf,
    log_level: u8,
    loaded: HashMap<Variant, Ebpf>,
    loggers: Vec<EbpfLogger<&'static dyn log::Log>>,
}

impl Programs {
    pub(super) fn new(directory: PathBuf, log_level: u8) -> Self {
        Self { directory, log_level, loaded: HashMap::new(), loggers: Vec::new() }
    }

    /// Makes or finds the maps, and proves that the kernel takes the programs at all.
    pub(super) fn prepare(&mut self) -> Result<(), DatapathError> {
        self.classifier(PLAIN, "weir_own_in").map(drop)
    }

    /// A TC program, loaded.
    pub(super) fn classifier(
        &mut self,
        variant: Variant,
        name: &'static str,
    ) -> Result<&mut SchedClassifier, DatapathError> {
        self.program(variant, name)
    }

    /// An XDP program, loaded.
    pub(super) fn early(&mut self, name: &'static str) -> Result<&mut Xdp, DatapathError> {
        self.program(PLAIN, name)
    }

    /// A program for `connect()`, loaded.
    pub(super) fn connect(
        &mut self,
        name: &'static str,
    ) -> Result<&mut CgroupSockAddr, DatapathError> {
        self.program(PLAIN, name)
    }

    fn program<P: Load>(
        &mut self,
        variant: Variant,
        name: &'static str,
    ) -> Result<&mut P, DatapathError> {
        let refused = |source| DatapathError::Program { name, source: Box::new(source) };
        let program = self.object(variant)?.program_mut(name);
        let program = program.ok_or_else(|| refused(ProgramError::NotLoaded))?;
        let program = P::of(program).map_err(refused)?;
        if !program.is_loaded() {
            program.load().map_err(refused)?;
        }
        Ok(program)
    }

    /// Gives back the programs of one slot: what is attached keeps them alive.
    pub(super) fn forget(&mut self, slot: u32) {
        self.loaded.retain(|variant, _| variant.slot != Some(slot));
    }

    /// Passes on what the programs logged.
    pub(super) fn flush_logs(&mut self) {
        self.loggers.iter_mut().for_each(EbpfLogger::flush);
    }

    fn object(&mut self, variant: Variant) -> Result<&mut Ebpf, DatapathError> {
        match self.loaded.entry(variant) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let object = entry.insert(load(&self.directory, variant, self.log_level)?);
                if self.log_level > 0 {
                    match EbpfLogger::init(object) {
                        Ok(logger) => self.loggers.push(logger),
                        Err(error) => warn!(%error, "the programs cannot log"),
                    }
                }
                Ok(object)
            }
        }
    }
}

/// What aya's kinds of programs have in common, and no trait of its own for.
trait Load: Sized {
    fn of(program: &mut Program) -> Result<&mut Self, ProgramError>;
    fn is_loaded(&self) -> bool;
    fn load(&mut self) -> Result<(), ProgramError>;
}

macro_rules! load {
    ($($kind:ty),*) => {$(
        impl Load for $kind {
            fn of(program: &mut Program) -> Result<&mut Self, ProgramError> {
                program.try_into()
            }

            fn is_loaded(&self) -> bool {
                self.fd().is_ok()
            }

            fn load(&mut self) -> Result<(), ProgramError> {
                self.load()
            }
        }
    )*};
}

load!(CgroupSockAddr, SchedClassifier, Xdp);

pub(super) fn load(
    directory: &Path,
    variant: Variant,
    log_level: u8,
) -> Result<Ebpf, DatapathError> {
    let slot = variant.slot.unwrap_or(0);
    let link_header: u32 = if variant.ethernet { 14 } else { 0 };
    let mut loader = EbpfLoader::new();
    loader
        .override_global("FIXED_SLOT", &slot, true)
        .override_global("LINK_HEADER", &link_header, true)
        // Not there when no program says anything.
        .override_global("AYA_LOG_LEVEL", &log_level, false);
    for name in NAMES {
        loader.map_pin_path(name, directory.join(name));
    }
    Ok(loader.load(OBJECT)?)
}

/// Pins need a BPF file system; a plain directory would take the files and keep nothing.
pub(super) fn require_bpffs(root: &Path) -> Result<(), DatapathError> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    // The nearest that is there, or that this user may not look for.
    let missing = |path: &Path| {
        fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    let parent = root.ancestors().find(|path| !missing(path)).unwrap_or(root);
    let stat = nix::sys::statfs::statfs(parent).map_err(|errno| DatapathError::PinDirectory {
        path: parent.to_owned(),
        source: errno.into(),
    })?;
    if stat.filesystem_type().0 as i64 == BPF_FS_MAGIC {
        Ok(())
    } else {
        Err(DatapathError::NotBpffs { path: parent.to_owned() })
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod memory_tests;
