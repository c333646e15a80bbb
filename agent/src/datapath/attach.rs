//! Attaching programs, keeping them attached, and leaving nothing behind.
//!
//! Where a workload has limits of bytes or packets, a second program stands behind the first, at the
//! same hook.
//!
//! The first TC program goes first in TCX order, the second right behind it; where the kernel has no TCX (before 6.6) it becomes a
//! clsact filter of priority 1, the second one of priority 2. Each attachment has one pin whose name says what it is; a starting
//! agent finds it by that name and swaps the program without a gap. The order is: write the map
//! entry, attach; detach, delete the entry. Foreign programs are left alone.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use aya::programs::{
    LinkOrder, ProgramError, ProgramInfo, SchedClassifier, TcAttachType, Xdp, XdpMode,
    links::{FdLink, LinkError, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    xdp::XdpLink,
};
use serde::Serialize;
use weir_common::{addr::Addr, layout::Direction};

use super::{
    connect,
    error::{AnyError, DatapathError},
    inject::Door,
    layouts::LINKS,
    maps::{self, Writers},
    object::{Programs, Variant},
    queue::{self, Pace, Pacing, Queues},
};
use crate::{
    compile::Identity,
    workload::netns::{self, NetNs},
};

/// Our places among clsact filters, by rank: before everybody who did not ask for a place. Of one
/// priority, the last to come runs first.
const PRIORITIES: [u16; 2] = [1, 2];
/// Our number there, "weir" in ASCII: others count from 1, and who asks for a number that is taken
/// replaces the program behind it.
const HANDLE: TcHandle = TcHandle::new(0x7765, 0x6972);

/// The slot of no workload.
const NOBODY: u32 = 0;

/// The program of one direction at one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    In,
    Out,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// Which of the programs at one hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Decides about connections.
    First,
    /// Limits bytes and packets.
    Volumes,
}

/// One program of an attachment.
struct Place {
    way: Way,
    rank: Rank,
    program: &'static str,
    /// The name of its pin, which says all that is needed to find the program again.
    pin: String,
}

/// Where a workload's packets are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The host's end of a veth pair.
    Host,
    /// An interface of the node itself.
    Own,
    /// An interface inside the workload's network namespace.
    Pod,
}

/// How XDP runs on an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkMode {
    /// In the driver.
    Native,
    /// In the stack, for drivers without XDP.
    Generic,
}

impl UplinkMode {
    const fn other(self) -> Self {
        match self {
            Self::Native => Self::Generic,
            Self::Generic => Self::Native,
        }
    }
}

impl Side {
    /// The direction of a workload's packets that a queue can delay: where its hook is at egress.
    pub const fn paced(self) -> Direction {
        match self {
            Self::Host => Direction::Ingress,
            Self::Own | Self::Pod => Direction::Egress,
        }
    }
}

/// Whose attachments may be others than they were left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Those at these interfaces of the agent's namespace, and those in other namespaces.
    Of(BTreeSet<u32>),
    /// All.
    All,
}

impl Doubt {
    /// Of either.
    pub fn join(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Of(indexes), Self::Of(others)) => indexes.extend(others),
            _ => *self = Self::All,
        }
    }

    fn is_of(&self, attachment: &Attachment) -> bool {
        match self {
            Self::All => true,
            Self::Of(indexes) if attachment.cookie().is_some() => !indexes.is_empty(),
            Self::Of(indexes) => indexes.contains(&attachment.ifindex),
        }
    }
}

/// What programs are attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The two TC programs of a workload.
    Workload {
        /// The workload.
        workload: Identity,
        /// Where.
        side: Side,
        /// The network namespace, for [`Side::Pod`].
        netns: Option<NetNs>,
        /// Addresses by which uplinks know the workload.
        addresses: Vec<IpAddr>,
    },
    /// The same at the host's end of a veth of which nobody has said yet whose it is. Everything
    /// passes there. The kernel takes tens of milliseconds to attach, during which it keeps other
    /// changes of interfaces waiting; to name a workload is one write to a map.
    Unclaimed,
    /// The XDP program of an uplink.
    Uplink(UplinkMode),
}

/// One interface and what is to run there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The interface's name, in its namespace.
    pub interface: String,
    /// Its index, in its namespace.
    pub ifindex: u32,
    /// Whether its packets start with an Ethernet header.
    pub ethernet: bool,
    /// Whether the programs that limit bytes and packets run there too.
    pub volumes: bool,
    /// What they are to do with what is too much.
    pub pace: Pace,
    /// What runs there.
    pub target: Target,
}

/// How it is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// `tcx`, `clsact`, `xdp` or `xdp-generic`.
    pub kind: &'static str,
    /// Programs of others that run before ours, by name.
    pub before: Vec<String>,
    /// Whether limits of bytes and packets delay, in the one direction in which a queue can; `None`
    /// where there are none.
    pub pacing: Option<(Direction, Pacing)>,
}

impl Attachment {
    /// Whether its programs find the workload by ifindex.
    const fn is_found_by_interface(&self) -> bool {
        matches!(self.side(), Some(Side::Host | Side::Own))
    }

    /// Where its TC programs are, if it has any.
    const fn side(&self) -> Option<Side> {
        match &self.target {
            Target::Workload { side, .. } => Some(*side),
            Target::Unclaimed => Some(Side::Host),
            Target::Uplink(_) => None,
        }
    }

    /// Whether its ifindex is one of another network namespace.
    pub fn is_in_another_namespace(&self) -> bool {
        self.cookie().is_some()
    }

    fn cookie(&self) -> Option<u64> {
        match &self.target {
            Target::Workload { side: Side::Pod, netns: Some(netns), .. } => Some(netns.cookie()),
            _ => None,
        }
    }

    /// Its TC programs, the first at each hook before the second.
    fn places(&self) -> Vec<Place> {
        let index = self.ifindex;
        let Some(side) = self.side() else { return Vec::new() };
        let (site, first) = match (side, self.cookie()) {
            (Side::Host, _) => (format!("host-{index}"), ["weir_host_in", "weir_host_out"]),
            (Side::Own, _) => (format!("own-{index}"), ["weir_own_in", "weir_own_out"]),
            (Side::Pod, cookie) => {
                let site = format!("pod-{index}-{}", cookie.unwrap_or(0));
                (site, ["weir_own_in", "weir_own_out"])
            }
        };
        let ways = || [Way::In, Way::Out].into_iter();
        let mut places: Vec<Place> = ways()
            .zip(first)
            .map(|(way, program)| Place {
                way,
                rank: Rank::First,
                program,
                pin: format!("{site}-{}", way.name()),
            })
            .collect();
        if self.volumes {
            places.extend(ways().zip(VOLUME_PROGRAMS).map(|(way, program)| Place {
                way,
                rank: Rank::Volumes,
                program,
                pin: format!("{site}-{}-bytes", way.name()),
            }));
        }
        places
    }

    /// The names of its pins.
    fn pins(&self) -> Vec<String> {
        match &self.target {
            Target::Uplink(mode) => vec![uplink_pin(self.ifindex, *mode)],
            Target::Workload { .. } | Target::Unclaimed => {
                self.places().into_iter().map(|place| place.pin).collect()
            }
        }
    }
}

/// The programs that limit bytes and packets, on whichever side.
const VOLUME_PROGRAMS: [&str; 2] = ["weir_bytes_in", "weir_bytes_out"];

/// What is attached now.
#[derive(Debug)]
pub(super) struct Links {
    directory: PathBuf,
    /// Pins that an earlier agent left and nobody claimed yet.
    inherited: BTreeSet<String>,
    current: BTreeMap<Attachment, (Attached, u32)>,
    /// Whether the kernel lacks TCX, once known.
    no_tcx: bool,
    addresses: BTreeMap<Addr, u32>,
    /// Which of them are to be looked at.
    doubt: Doubt,
}

impl Links {
    /// Where the packets of workloads are judged.
    pub(super) fn doors(&self) -> impl Iterator<Item = (Identity, Door)> {
        self.current.keys().filter_map(|attachment| {
            let Attachment { ifindex, ethernet, .. } = *attachment;
            let Target::Workload { workload, side, netns, .. } = &attachment.target else {
                return None;
            };
            Some((*workload, Door { ifindex, side: *side, netns: netns.clone(), ethernet }))
        })
    }

    pub(super) fn adopt(directory: &Path) -> Result<Self, DatapathError> {
        let directory = directory.join(LINKS);
        let failed = |source| DatapathError::Pin { path: directory.clone(), source };
        fs::create_dir_all(&directory).map_err(failed)?;
        let mut inherited = BTreeSet::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if !connect::is_pin(&name) {
                inherited.insert(name);
            }
        }
        Ok(Self {
            directory,
            inherited,
            current: BTreeMap::new(),
            no_tcx: false,
            addresses: BTreeMap::new(),
            doubt: Doubt::All,
        })
    }

    /// These are looked at with the next [`Links::reconcile`]; others are believed to be as they were.
    pub(super) fn doubt(&mut self, doubt: Doubt) {
        self.doubt.join(doubt);
    }

    pub(super) fn reconcile(
        &mut self,
        wanted: &[Attachment],
        programs: &mut Programs,
        writers: &mut Writers,
        slot_of: impl Fn(Identity) -> Option<u32>,
    ) -> BTreeMap<Attachment, Result<Attached, DatapathError>> {
        let keep: BTreeSet<&Attachment> = wanted.iter().collect();
        let gone: Vec<Attachment> =
            self.current.keys().filter(|have| !keep.contains(have)).cloned().collect();
        // What shares its interface with something wanted is replaced, not removed.
        let pins: BTreeSet<String> = wanted.iter().flat_map(Attachment::pins).collect();
        for attachment in gone {
            self.detach(&attachment, &pins, writers);
        }
        let mut results = BTreeMap::new();
        let queues = LazyCell::new(Queues::list);
        for attachment in wanted {
            let mut result = self.ensure(attachment, programs, writers, &slot_of);
            if let Ok(attached) = &mut result {
                attached.pacing = attachment.volumes.then(|| pace(attachment, &queues)).flatten();
            }
            results.insert(attachment.clone(), result);
        }
        self.doubt = Doubt::Of(BTreeSet::new());
        let namespaces: LazyCell<Vec<NetNs>> = LazyCell::new(netns::all);
        for name in std::mem::take(&mut self.inherited) {
            if !pins.contains(&name) {
                remove_inherited(&self.directory, &name, &namespaces);
            }
        }
        self.publish_addresses(wanted, writers, &slot_of);
        results
    }

    fn ensure(
        &mut self,
        attachment: &Attachment,
        programs: &mut Programs,
        writers: &mut Writers,
        slot_of: &impl Fn(Identity) -> Option<u32>,
    ) -> Result<Attached, DatapathError> {
        let (slot, side, netns) = match &attachment.target {
            Target::Workload { workload, side, netns, .. } => {
                (slot_of(*workload).ok_or(DatapathError::NoSlot)?, side, netns)
            }
            Target::Unclaimed => (NOBODY, &Side::Host, &None),
            Target::Uplink(_) => return self.ensure_uplink(attachment, programs),
        };
        if let Some((attached, known)) = self.current.get(attachment)
            && *known == slot
        {
            if !self.doubt.is_of(attachment) {
                return Ok(attached.clone());
            }
            if let Some(now) = self.look(attachment, attached) {
                self.current.insert(attachment.clone(), (now.clone(), slot));
                return Ok(now);
            }
        }
        if slot == NOBODY {
            // Its pod is gone, or another interface had its number.
            let _ = writers.interfaces.remove(&attachment.ifindex);
        } else if attachment.is_found_by_interface() {
            writers
                .interfaces
                .insert(attachment.ifindex, slot, 0)
                .map_err(|source| DatapathError::Map { name: "INTERFACES", source })?;
        }
        let attached = match side {
            Side::Host | Side::Own => self.attach_all(attachment, None, programs),
            Side::Pod => {
                let Some(netns) = netns else { return Err(DatapathError::NoSlot) };
                netns
                    // One instance for each pod: an ifindex says nothing in other namespaces.
                    .run(|| {
                        let result = self.attach_all(attachment, Some(slot), programs);
                        programs.forget(slot);
                        result
                    })
                    .map_err(|source| DatapathError::Namespace {
                        interface: attachment.interface.clone(),
                        source,
                    })?
            }
        }?;
        self.current.insert(attachment.clone(), (attached.clone(), slot));
        Ok(attached)
    }

    /// How it is attached by now; `None` when it is not any more. An interface that was deleted
    /// and made again under its old name and index took the link along and left the pin, and
    /// others can put themselves before us at any time.
    fn look(&self, attachment: &Attachment, attached: &Attached) -> Option<Attached> {
        let side = attachment.side()?;
        let places = attachment.places();
        let path = |place: &Place| self.directory.join(&place.pin);
        if attached.kind != "tcx" {
            return places.iter().all(|place| path(place).exists()).then(|| attached.clone());
        }
        let look = || {
            let mut before = Vec::new();
            for place in &places {
                let link = FdLink::from(PinnedLink::from_pin(path(place)).ok()?);
                let ours = link.info().ok()?.program_id();
                let hook = hook(side == Side::Host, place.way);
                let earlier = programs_before(ours, &attachment.interface, hook)?;
                if place.rank == Rank::First {
                    before.extend(earlier);
                }
            }
            Some(Attached { kind: attached.kind, before, pacing: None })
        };
        match &attachment.target {
            Target::Workload { side: Side::Pod, netns: Some(netns), .. } => netns.run(look).ok()?,
            _ => look(),
        }
    }

    /// Attaches all programs; called inside the interface's namespace.
    fn attach_all(
        &mut self,
        attachment: &Attachment,
        slot: Option<u32>,
        programs: &mut Programs,
    ) -> Result<Attached, DatapathError> {
        // All must load before the first is attached: half a limiter surprises.
        let variant = Variant { slot, ethernet: attachment.ethernet };
        let places = attachment.places();
        for place in &places {
            programs.classifier(variant, place.program)?;
        }
        // Loading took its time, and programs are attached by name: another interface may have it
        // by now, which the next look will find.
        if nix::net::if_::if_nametoindex(attachment.interface.as_str()) != Ok(attachment.ifindex) {
            return Err(DatapathError::Attach {
                interface: attachment.interface.clone(),
                source: "it was replaced by another one meanwhile".into(),
            });
        }
        let host = attachment.side() == Some(Side::Host);
        let mut before = Vec::new();
        let mut kind = "tcx";
        for place in &places {
            let hook = hook(host, place.way);
            let first = places.iter().find(|first| first.way == place.way);
            let order = match (place.rank, first) {
                (Rank::Volumes, Some(first)) => {
                    let first = programs.classifier(variant, first.program)?;
                    LinkOrder::after_program(first).map_err(|error| DatapathError::Attach {
                        interface: attachment.interface.clone(),
                        source: error.into(),
                    })?
                }
                _ => LinkOrder::first(),
            };
            let program = programs.classifier(variant, place.program)?;
            kind = self.attach_one(program, &attachment.interface, hook, place, order).map_err(
                |error| match error {
                    AttachError::Program(source) => {
                        DatapathError::Attach { interface: attachment.interface.clone(), source }
                    }
                    AttachError::Pin(path, source) => DatapathError::Pin { path, source },
                },
            )?;
            if kind == "tcx" && place.rank == Rank::First {
                let ours = program.info().map(|info| info.id()).unwrap_or_default();
                let others = programs_before(ours, &attachment.interface, hook);
                before.extend(others.unwrap_or_default());
            }
        }
        Ok(Attached { kind, before, pacing: None })
    }

    fn attach_one(
        &mut self,
        program: &mut SchedClassifier,
        interface: &str,
        hook: TcAttachType,
        place: &Place,
        order: LinkOrder,
    ) -> Result<&'static str, AttachError> {
        let path = self.directory.join(&place.pin);
        self.inherited.remove(&place.pin);
        let priority = PRIORITIES[place.rank as usize];
        if path.exists() {
            match replace(program, interface, hook, priority, &path) {
                Ok(kind) => return Ok(kind),
                // The interface died and took the link along, or somebody removed the filter.
                Err(_) => remove_pin(&path)?,
            }
        }
        if !self.no_tcx {
            match program.attach_with_options(interface, hook, TcAttachOptions::TcxOrder(order)) {
                Ok(id) => {
                    let link: FdLink = program.take_link(id)?.try_into()?;
                    link.pin(&path)
                        .map_err(|error| AttachError::Pin(path.clone(), io::Error::other(error)))?;
                    return Ok("tcx");
                }
                Err(ProgramError::SyscallError(error))
                    if error.io_error.raw_os_error() == Some(libc::EINVAL) =>
                {
                    self.no_tcx = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
        // Somebody else's clsact serves as well; it is never removed.
        let _ = tc::qdisc_add_clsact(interface);
        let options = NlOptions { priority, handle: HANDLE, classid: None };
        let id = program.attach_with_options(interface, hook, TcAttachOptions::Netlink(options))?;
        keep_filter(program.take_link(id)?);
        // A filter has no link to pin; the program's pin marks that it is there.
        program.pin(&path).map_err(|error| AttachError::Pin(path, io::Error::other(error)))?;
        Ok("clsact")
    }

    fn ensure_uplink(
        &mut self,
        attachment: &Attachment,
        programs: &mut Programs,
    ) -> Result<Attached, DatapathError> {
        let Target::Uplink(mode) = attachment.target else { return Err(DatapathError::NoSlot) };
        let interface = attachment.interface.clone();
        let pin = uplink_pin(attachment.ifindex, mode);
        let path = self.directory.join(&pin);
        self.inherited.remove(&pin);
        let program = programs.uplink()?;
        let attached = Attached {
            kind: match mode {
                UplinkMode::Native => "xdp",
                UplinkMode::Generic => "xdp-generic",
            },
            before: Vec::new(),
            pacing: None,
        };
        if path.exists() {
            // Also when it is ours already: a link whose interface is gone refuses.
            if replace_uplink(program, &path).is_ok() {
                self.current.insert(attachment.clone(), (attached.clone(), 0));
                return Ok(attached);
            }
            fs::remove_file(&path)
                .map_err(|source| DatapathError::Pin { path: path.clone(), source })?;
        }
        // Changed while no agent ran: one way has to go before the other comes.
        let other = uplink_pin(attachment.ifindex, mode.other());
        if self.inherited.remove(&other) {
            let _ = fs::remove_file(self.directory.join(other));
        }
        let flags = match mode {
            UplinkMode::Native => XdpMode::Driver,
            UplinkMode::Generic => XdpMode::Skb,
        };
        let id = program.attach(&interface, flags).map_err(|error| {
            let code = match &error {
                ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
                _ => None,
            };
            match code {
                Some(libc::EBUSY | libc::EEXIST) => {
                    DatapathError::ForeignXdp { interface: interface.clone() }
                }
                Some(libc::EOPNOTSUPP | libc::EINVAL) if mode == UplinkMode::Native => {
                    DatapathError::NoNativeXdp {
                        interface: interface.clone(),
                        source: Box::new(error),
                    }
                }
                _ => {
                    DatapathError::Attach { interface: interface.clone(), source: Box::new(error) }
                }
            }
        })?;
        let failed =
            |source: AnyError| DatapathError::Attach { interface: interface.clone(), source };
        let link = program.take_link(id).map_err(|error| failed(error.into()))?;
        let link: FdLink = link.try_into().map_err(|error: LinkError| failed(error.into()))?;
        link.pin(&path)
            .map_err(|error| DatapathError::Pin { path, source: io::Error::other(error) })?;
        self.current.insert(attachment.clone(), (attached.clone(), 0));
        Ok(attached)
    }

    fn detach(&mut self, attachment: &Attachment, kept: &BTreeSet<String>, writers: &mut Writers) {
        let attached = self.current.remove(attachment);
        let clsact = attached.is_some_and(|(attached, _)| attached.kind == "clsact");
        let gone: Vec<Place> =
            attachment.places().into_iter().filter(|place| !kept.contains(&place.pin)).collect();
        let filters = || {
            for place in &gone {
                remove_filter(&attachment.interface, place.program);
            }
        };
        let queue = || {
            // What paced went with the programs that told it when.
            if gone.iter().any(|place| place.rank == Rank::Volumes) {
                queue::remove(attachment.ifindex);
            }
        };
        let remove = || {
            if clsact {
                filters();
            }
            queue();
        };
        match &attachment.target {
            Target::Workload { side: Side::Pod, netns: Some(netns), .. } => {
                // The namespace is gone with its interfaces: nothing to remove.
                let _ = netns.run(remove);
            }
            _ => remove(),
        }
        let pins = attachment.pins();
        for pin in pins.iter().filter(|pin| !kept.contains(*pin)) {
            let _ = fs::remove_file(self.directory.join(pin));
        }
        let is_left = !pins.iter().any(|pin| kept.contains(pin));
        if is_left && attachment.is_found_by_interface() {
            let _ = writers.interfaces.remove(&attachment.ifindex);
        }
    }

    fn publish_addresses(
        &mut self,
        wanted: &[Attachment],
        writers: &mut Writers,
        slot_of: &impl Fn(Identity) -> Option<u32>,
    ) {
        let mut addresses = BTreeMap::new();
        for attachment in wanted {
            if let Target::Workload { workload, addresses: theirs, .. } = &attachment.target
                && let Some(slot) = slot_of(*workload)
            {
                addresses.extend(theirs.iter().map(|&address| (Addr::from(address), slot)));
            }
        }
        for (address, slot) in &addresses {
            if self.addresses.get(address) != Some(slot) {
                // Full: uplinks pass what they do not know, and TC judges it.
                let _ = writers.addresses.insert(address, slot, 0);
            }
        }
        let stale: Vec<Addr> = writers
            .addresses
            .keys()
            .filter_map(Result::ok)
            .filter(|address| !addresses.contains_key(address))
            .collect();
        for address in stale {
            let _ = writers.addresses.remove(&address);
        }
        self.addresses = addresses;
    }
}

/// In which directions, towards and from each workload, all of its interfaces delay packets.
pub(super) fn paced(
    results: &BTreeMap<Attachment, Result<Attached, DatapathError>>,
) -> BTreeMap<Identity, [bool; 2]> {
    let mut paced = BTreeMap::new();
    for (attachment, result) in results {
        let Target::Workload { workload, .. } = &attachment.target else { continue };
        let mut here = [false; 2];
        let pacing = result.as_ref().ok().and_then(|attached| attached.pacing.as_ref());
        if let Some((direction, pacing)) = pacing {
            here[*direction as usize] = pacing.is_paced();
        }
        let all = paced.entry(*workload).or_insert(here);
        *all = [all[0] && here[0], all[1] && here[1]];
    }
    paced
}

/// Makes the queue behind the programs that limit bytes what is wanted.
fn pace(attachment: &Attachment, queues: &io::Result<Queues>) -> Option<(Direction, Pacing)> {
    let Target::Workload { side, netns, .. } = &attachment.target else { return None };
    let unknown = |problem: &io::Error| Pacing::Not(format!("cannot list queues: {problem}"));
    let at = |queues: &Queues| {
        queue::pace(queues, attachment.ifindex, &attachment.interface, attachment.pace)
    };
    let inside = || Queues::list().map_or_else(|problem| unknown(&problem), |queues| at(&queues));
    let now = match (side, netns) {
        (Side::Pod, Some(netns)) => netns.run(inside).unwrap_or_else(|problem| unknown(&problem)),
        _ => queues.as_ref().map_or_else(unknown, at),
    };
    Some((side.paced(), now))
}

fn uplink_pin(index: u32, mode: UplinkMode) -> String {
    match mode {
        UplinkMode::Native => format!("uplink-{index}-native"),
        UplinkMode::Generic => format!("uplink-{index}-generic"),
    }
}

enum AttachError {
    Program(AnyError),
    Pin(PathBuf, io::Error),
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for AttachError {
    fn from(error: E) -> Self {
        Self::Program(Box::new(error))
    }
}

const fn hook(host: bool, way: Way) -> TcAttachType {
    match (host, way) {
        // What leaves the host through its end of the pair enters the workload.
        (true, Way::In) | (false, Way::Out) => TcAttachType::Egress,
        (true, Way::Out) | (false, Way::In) => TcAttachType::Ingress,
    }
}

/// Swaps the program behind an existing attachment.
fn replace(
    program: &mut SchedClassifier,
    interface: &str,
    hook: TcAttachType,
    priority: u16,
    path: &Path,
) -> Result<&'static str, AnyError> {
    match pinned_link(path) {
        Ok(link) => {
            let id = program.attach_to_link(link)?;
            // Closing this descriptor leaves the pinned link as it is.
            let _: FdLink = program.take_link(id)?.try_into()?;
            Ok("tcx")
        }
        Err(_) => {
            let link = SchedClassifierLink::attached(interface, hook, priority, HANDLE, None)?;
            let id = program.attach_to_link(link)?;
            keep_filter(program.take_link(id)?);
            Ok("clsact")
        }
    }
}

/// The link behind a pin; an error for a filter's pin.
fn pinned_link(path: &Path) -> Result<SchedClassifierLink, LinkError> {
    PinnedLink::from_pin(path).map(FdLink::from).and_then(SchedClassifierLink::try_from)
}

fn replace_uplink(program: &mut Xdp, path: &Path) -> Result<(), AnyError> {
    let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(path)?))?;
    let id = program.attach_to_link(link)?;
    let _: FdLink = program.take_link(id)?.try_into()?;
    Ok(())
}

/// A filter's handle removes it when dropped; filters are to outlive this process.
fn keep_filter(link: SchedClassifierLink) {
    std::mem::forget(link);
}

fn remove_filter(interface: &str, program: &str) {
    for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
        // At most hooks it is not there.
        let _ = tc::qdisc_detach_program(interface, hook, program);
    }
}

fn remove_pin(path: &Path) -> Result<(), AttachError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(AttachError::Pin(path.to_owned(), error))
        }
        _ => Ok(()),
    }
}

/// An attachment that an earlier agent left and nobody wants any more.
fn remove_inherited(directory: &Path, name: &str, namespaces: &LazyCell<Vec<NetNs>>) {
    let path = directory.join(name);
    let filter = |side: &str, index: &str, way: &str| {
        if let Some(interface) = index.parse().ok().and_then(interface_name) {
            remove_filter(&interface, &format!("weir_{side}_{way}"));
        }
    };
    let in_namespace = |cookie: &str, work: &(dyn Fn() + Sync)| {
        // It went with its namespace, or the namespace is found.
        let is_its = |netns: &&NetNs| cookie.parse() == Ok(netns.cookie());
        if let Some(netns) = namespaces.iter().find(is_its) {
            let _ = netns.run(work);
        }
    };
    let in_pod = |side: &str, index: &str, cookie: &str, way: &str| {
        in_namespace(cookie, &|| filter(side, index, way));
    };
    let words: Vec<&str> = name.split('-').collect();
    let queue = |index: &str| index.parse().into_iter().for_each(queue::remove);
    match words[..] {
        ["host" | "own", index, _, "bytes"] => queue(index),
        ["pod", index, cookie, _, "bytes"] => in_namespace(cookie, &|| queue(index)),
        _ => {}
    }
    match words[..] {
        // Its pin is all that holds a link.
        _ if pinned_link(&path).is_ok() => {}
        ["host", index, way] => filter("host", index, way),
        ["own", index, way] => filter("own", index, way),
        ["host" | "own", index, way, "bytes"] => filter("bytes", index, way),
        ["pod", index, cookie, way] => in_pod("own", index, cookie, way),
        ["pod", index, cookie, way, "bytes"] => in_pod("bytes", index, cookie, way),
        _ => {}
    }
    let _ = fs::remove_file(path);
}

fn interface_name(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}

/// Names of programs that run before ours at a hook; `None` when ours does not run there.
fn programs_before(ours: u32, interface: &str, hook: TcAttachType) -> Option<Vec<String>> {
    let (_, chain) = SchedClassifier::query_tcx(interface, hook).ok()?;
    let place = chain.iter().position(|program| program.id() == ours)?;
    let name = |program: &ProgramInfo| program.name_as_str().unwrap_or("?").to_owned();
    Some(chain[..place].iter().map(name).collect())
}

/// Removes everything below a pin root, and says what.
pub(super) fn uninstall(
    root: &Path,
    lock: impl Fn(&Path) -> Result<File, DatapathError>,
) -> Result<Vec<String>, DatapathError> {
    let mut removed = Vec::new();
    let Ok(layouts) = fs::read_dir(root) else { return Ok(removed) };
    let namespaces: LazyCell<Vec<NetNs>> = LazyCell::new(netns::all);
    for layout in layouts.flatten() {
        let directory = layout.path();
        let _lock = lock(&directory)?;
        let links = directory.join(LINKS);
        for entry in fs::read_dir(&links).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            remove_inherited(&links, &name, &namespaces);
            removed.push(format!("attachment {name}"));
        }
        removed.extend(maps::unpin(&directory));
        for path in [&links, &directory] {
            match fs::remove_dir(path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(DatapathError::Pin { path: path.clone(), source });
                }
                _ => {}
            }
        }
    }
    if fs::remove_dir(root).is_ok() {
        removed.push(format!("directory {}", root.display()));
    }
    Ok(removed)
}
