//! What can go wrong between the agent and the kernel, for people.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

/// Any of aya's errors.
pub(super) type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Why the data plane could not do something.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The pin directory cannot be used.
    #[error("cannot use {}: mount bpffs there (`mount -t bpf bpf /sys/fs/bpf`) and run as root", path.display())]
    PinDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The pin directory does not lie on bpffs.
    #[error("{} is not on a BPF file system: run `mount -t bpf bpf /sys/fs/bpf`, or give another --pin-dir", path.display())]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// Another agent runs.
    #[error("another agent owns {}: stop it first, or give another --pin-dir", path.display())]
    Owned {
        /// The directory.
        path: PathBuf,
    },
    /// The object or a map was refused.
    #[error(
        "the kernel refused the BPF object; it needs BPF with JIT and BTF, and CAP_BPF with CAP_NET_ADMIN"
    )]
    Object(#[from] EbpfError),
    /// A program was refused.
    #[error("the kernel refused the program {name}")]
    Program {
        /// The program.
        name: &'static str,
        /// Why.
        #[source]
        source: Box<ProgramError>,
    },
    /// A map could not be read or written.
    #[error("cannot use the BPF map {name}")]
    Map {
        /// The map.
        name: &'static str,
        /// Why.
        #[source]
        source: MapError,
    },
    /// A pinned map has another size than this version expects.
    #[error(
        "the pinned BPF map {name} does not fit this version: run `weir agent --uninstall`, then start again"
    )]
    Layout {
        /// The map.
        name: &'static str,
    },
    /// Memory of a map could not be mapped.
    #[error("cannot map the memory of the BPF map {name}")]
    Mapping {
        /// The map.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A packet could not be sent once more.
    #[error("cannot send a SYN that waited for a quota of the fleet once more")]
    Injection {
        /// Why.
        source: io::Error,
    },
    /// A table is full.
    #[error("no room for more {what}: {limit} is the most that one node can have")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many there can be.
        limit: u32,
    },
    /// A table names a cell that it does not have.
    #[error("the tables of workload {workload} are inconsistent: this is a bug")]
    Inconsistent {
        /// The workload.
        workload: String,
    },
    /// A foreign XDP program holds the interface.
    #[error("interface {interface} has an XDP program of somebody else; it was left alone")]
    ForeignXdp {
        /// The interface.
        interface: String,
    },
    /// The driver has no native XDP.
    #[error(
        "interface {interface} cannot run XDP in its driver; for an uplink `xdp: generic` works, at a cost, or `xdp: off`"
    )]
    NoNativeXdp {
        /// The interface.
        interface: String,
        /// Why.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("cannot attach to interface {interface}")]
    Attach {
        /// The interface.
        interface: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A namespace could not be entered.
    #[error("cannot enter the network namespace of {interface}")]
    Namespace {
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// A pin could not be made or removed.
    #[error("cannot change the pin {}", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no cgroup to attach to.
    #[error("the root of the cgroup v2 hierarchy is not mounted here")]
    NoCgroup,
    /// A program could not be attached to a cgroup.
    #[error("cannot attach to the cgroup {}", path.display())]
    Cgroup {
        /// The cgroup's directory.
        path: PathBuf,
        /// Why.
        source: AnyError,
    },
    /// An attachment is wanted for a workload that has no slot.
    #[error("no tables were applied for this workload yet")]
    NoSlot,
}
