//! Which interfaces are to have programs, and which have them: one is made the other.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{
    LinkOrder,
    links::{FdLink, PinnedLink},
};
use weir_common::{addr::Addr, layout::Direction};

use super::{
    Attached, Attachment, Doubt, Place, Rank, Side, Target, leftovers,
    tc::{self, AttachError},
    xdp::{self, Early},
};
use crate::{
    compile::Identity,
    datapath::{
        connect,
        error::DatapathError,
        inject::Door,
        layouts::LINKS,
        maps::Writers,
        object::{Programs, Variant},
        queue::{self, Pacing, Queues},
    },
    workload::netns::{self, NetNs},
};

/// The slot of no workload.
const NOBODY: u32 = 0;

/// What is attached now.
#[derive(Debug)]
pub(in crate::datapath) struct Links {
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
    pub(in crate::datapath) fn doors(&self) -> impl Iterator<Item = (Identity, Door)> {
        self.current.keys().filter_map(|attachment| {
            let Attachment { ifindex, ethernet, .. } = *attachment;
            let Target::Workload { workload, side, netns, .. } = &attachment.target else {
                return None;
            };
            Some((*workload, Door { ifindex, side: *side, netns: netns.clone(), ethernet }))
        })
    }

    /// Whether an earlier agent left nothing, and this one has attached nothing.
    pub(in crate::datapath) fn is_fresh(&self) -> bool {
        self.inherited.is_empty() && self.current.is_empty()
    }

    pub(in crate::datapath) fn adopt(directory: &Path) -> Result<Self, DatapathError> {
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

    /// The interfaces of shields that an earlier agent left and nobody claimed yet.
    pub(in crate::datapath) fn inherited_shields(&self) -> BTreeSet<u32> {
        self.inherited.iter().filter_map(|pin| xdp::shielded(pin)).collect()
    }

    /// These are looked at with the next [`Links::reconcile`]; others are believed to be as they were.
    pub(in crate::datapath) fn doubt(&mut self, doubt: Doubt) {
        self.doubt.join(doubt);
    }

    pub(in crate::datapath) fn reconcile(
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
                leftovers::remove(&self.directory, &name, &namespaces);
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
            Target::Uplink(mode) => {
                return self.ensure_early(attachment, Early::Uplink(*mode), programs);
            }
            Target::Shield => return self.ensure_early(attachment, Early::Shield, programs),
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
                let hook = tc::hook(side == Side::Host, place.way);
                let earlier = tc::programs_before(ours, &attachment.interface, hook)?;
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
            let hook = tc::hook(host, place.way);
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
            self.inherited.remove(&place.pin);
            let path = self.directory.join(&place.pin);
            let at = tc::Hook { interface: &attachment.interface, hook, rank: place.rank, order };
            kind =
                tc::attach(program, at, &path, &mut self.no_tcx).map_err(|error| match error {
                    AttachError::Program(source) => {
                        DatapathError::Attach { interface: attachment.interface.clone(), source }
                    }
                    AttachError::Pin(path, source) => DatapathError::Pin { path, source },
                })?;
            if kind == "tcx" && place.rank == Rank::First {
                let ours = program.info().map(|info| info.id()).unwrap_or_default();
                let others = tc::programs_before(ours, &attachment.interface, hook);
                before.extend(others.unwrap_or_default());
            }
        }
        Ok(Attached { kind, before, pacing: None })
    }

    fn ensure_early(
        &mut self,
        attachment: &Attachment,
        early: Early,
        programs: &mut Programs,
    ) -> Result<Attached, DatapathError> {
        let pin = early.pin(attachment.ifindex);
        self.inherited.remove(&pin);
        // Changed while no agent ran: one has to go before the other comes.
        for other in Early::ALL.map(|early| early.pin(attachment.ifindex)) {
            if self.inherited.remove(&other) {
                let _ = fs::remove_file(self.directory.join(other));
            }
        }
        let (program, path) = (programs.early(early.program())?, self.directory.join(pin));
        xdp::attach(program, &attachment.interface, early.mode(), &path)?;
        let attached = Attached { kind: early.mode().kind(), before: Vec::new(), pacing: None };
        self.current.insert(attachment.clone(), (attached.clone(), NOBODY));
        Ok(attached)
    }

    fn detach(&mut self, attachment: &Attachment, kept: &BTreeSet<String>, writers: &mut Writers) {
        let attached = self.current.remove(attachment);
        let clsact = attached.is_some_and(|(attached, _)| attached.kind == "clsact");
        let gone: Vec<Place> =
            attachment.places().into_iter().filter(|place| !kept.contains(&place.pin)).collect();
        let filters = || {
            for place in &gone {
                tc::remove_filter(&attachment.interface, place.program);
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
pub(in crate::datapath) fn paced(
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
