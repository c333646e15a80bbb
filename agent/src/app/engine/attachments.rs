//! Where workloads are seen: from what is there now to what is attached, and why the rest is not.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use tracing::{error, info, warn};

use super::{Engine, Known, Shaped};
use crate::{
    app::view,
    causes::with_causes,
    compile::{Identity, WorkloadTable},
    config::{self, Location, PodLocation},
    datapath::{
        self, Attached, Attachment, BOTH_WAYS, Caller, DatapathError, Doubt, Shapers, Side, Target,
    },
    quota,
    workload::{self, Interface, Resolved, interfaces},
};

impl Engine {
    /// Something has changed at these interfaces.
    pub fn look_at_links(&mut self, doubt: Doubt) {
        self.datapath.doubt(doubt);
        self.reconcile();
    }

    /// Attaches to what is there now.
    pub fn reconcile(&mut self) {
        let host = match interfaces::list() {
            Ok(host) => host,
            Err(problem) => {
                error!(error = %problem, "cannot list this host's interfaces; attachments stay as they are");
                return;
            }
        };
        if !self.pods.are_known() {
            return;
        }
        let mut wanted = Vec::new();
        let (mut callers, mut unhooked) = (Vec::new(), BTreeMap::new());
        let (mut missing, mut bypassed) = (BTreeMap::new(), BTreeSet::new());
        let mut asking = BTreeSet::new();
        let pods = self.pods.workloads();
        let all = || self.file.workloads.iter().chain(pods.iter().map(Arc::as_ref));
        self.start.know(all().map(|workload| Identity::workload(&workload.identity)));
        for workload in all() {
            let identity = Identity::workload(&workload.identity);
            if workload.policy.iter().any(|entry| entry.is_of_kubernetes()) {
                asking.insert(identity);
            }
            match workload::resolve(workload, identity, &host, &mut self.pods.networks) {
                Ok(Resolved { attachments, caller, is_bypassed }) => {
                    if is_bypassed {
                        bypassed.insert(identity);
                    }
                    let table = self.tables.workloads.get(&workload.identity);
                    let volumes = table.is_some_and(WorkloadTable::limits_volumes);
                    let pace = pace(workload.pace.unwrap_or(self.file.pace));
                    let judges = table.map_or([false; 2], WorkloadTable::judges);
                    let ways = self.start.ways(identity, judges);
                    let with = |attachment| Attachment { ways, volumes, pace, ..attachment };
                    wanted.extend(attachments.into_iter().map(with));
                    match caller {
                        Ok(caller) => callers.push(caller),
                        Err(problem) => _ = unhooked.insert(identity, problem.to_string()),
                    }
                }
                Err(problem) => _ = missing.insert(identity, with_causes(&problem)),
            }
        }
        let shaped = shapers(&wanted, &asking, &host);
        let uplinks = self.wanted_uplinks(&host, &mut wanted);
        let shields = self.shields.wanted(self.file.shield.xdp, &wanted);
        wanted.extend(shields.iter().cloned());
        if self.pods.may_come() && !self.start.is_under_way() {
            let unclaimed = unclaimed(&host, &wanted);
            wanted.extend(unclaimed);
        }
        let results = self.datapath.attach(&wanted);
        self.quotas.leases().know(&self.datapath);
        self.note_attached(&results, &mut missing);
        self.note_bypassed(&bypassed);
        // What nothing judges must not be judged by a call either.
        callers.retain(|caller| self.calls_are_limited(caller.workload));
        self.hook(&callers, unhooked);
        self.note_shields(&shields, &results);
        self.uplinks = uplinks
            .into_iter()
            .map(|(interface, found)| uplink_status(interface, found, &results))
            .collect();
        self.decided = true;
        self.note_states();
        if shaped != self.shaped {
            self.shaped = shaped;
            self.hold_again();
        }
    }

    /// Whether a first start has left something for later.
    pub const fn is_starting(&self) -> bool {
        self.decided && self.start.is_under_way()
    }

    /// Goes on with what a first start left for later, a few workloads at a time.
    pub fn complete_start(&mut self) {
        self.start.go_on();
        self.reconcile();
    }

    /// Whether its connections are judged, and some limit is about those that it opens.
    fn calls_are_limited(&self, workload: Identity) -> bool {
        let mut known = self.workloads.iter();
        known.any(|known| {
            known.identity == workload && known.attached.is_ok() && known.limits_calls()
        })
    }

    /// Hooks `connect()` of these, and notes of all whether it is, and why not.
    fn hook(&mut self, callers: &[Caller], mut unhooked: BTreeMap<Identity, String>) {
        let mut hooked = BTreeSet::new();
        match self.datapath.hook(callers) {
            Ok(results) => {
                for (workload, result) in results {
                    match result {
                        Ok(()) => _ = hooked.insert(workload),
                        Err(problem) => _ = unhooked.insert(workload, with_causes(&problem)),
                    }
                }
            }
            Err(problem) => {
                let problem = with_causes(&problem);
                unhooked.extend(callers.iter().map(|caller| (caller.workload, problem.clone())));
            }
        }
        for known in &mut self.workloads {
            let now = known.limits_calls().then(|| {
                if hooked.contains(&known.identity) {
                    return Ok(());
                }
                let reason = unhooked.remove(&known.identity);
                Err(reason.unwrap_or_else(|| "nothing is attached".to_owned()))
            });
            if now == known.hooked {
                continue;
            }
            match &now {
                Some(Err(reason)) => {
                    info!(workload = known.name, reason, "connect() is not hooked: RSTs refuse");
                }
                Some(Ok(())) => info!(workload = known.name, "connect() is hooked"),
                None => info!(workload = known.name, "connect() is not limited"),
            }
            known.hooked = now;
        }
    }

    fn wanted_uplinks(
        &self,
        host: &[Interface],
        wanted: &mut Vec<Attachment>,
    ) -> Vec<(String, Result<Attachment, String>)> {
        let mut uplinks = Vec::new();
        for uplink in &self.file.uplinks {
            let Some(found) = workload::resolve_uplink(uplink, host) else { continue };
            let found = found.map_err(|problem| with_causes(&problem));
            if let Ok(attachment) = &found {
                wanted.push(attachment.clone());
            }
            uplinks.push((uplink.interface.clone(), found));
        }
        uplinks
    }

    fn note_attached(
        &mut self,
        results: &BTreeMap<Attachment, Result<Attached, DatapathError>>,
        missing: &mut BTreeMap<Identity, String>,
    ) {
        let mut attached: BTreeMap<Identity, Result<Attached, String>> = BTreeMap::new();
        let mut seen_at: BTreeMap<Identity, (u32, Vec<IpAddr>)> = BTreeMap::new();
        for (attachment, result) in results {
            let Target::Workload { workload, addresses, .. } = &attachment.target else { continue };
            if result.is_ok() {
                let (_, all) = seen_at.entry(*workload).or_insert((attachment.ifindex, Vec::new()));
                let new = addresses.iter().filter(|address| !all.contains(address));
                let new: Vec<IpAddr> = new.copied().collect();
                all.extend(new);
            }
            let result = match result {
                Ok(how) => Ok(how.clone()),
                Err(problem) => Err(with_causes(problem)),
            };
            // It is attached when all its interfaces are.
            match attached.entry(*workload) {
                Entry::Vacant(entry) => _ = entry.insert(result),
                Entry::Occupied(mut entry) => match (entry.get_mut(), result) {
                    (Ok(all), Ok(how)) => {
                        all.before.extend(how.before);
                        // Where one of them drops, the workload's packets are not all delayed.
                        if how.pacing.as_ref().is_some_and(|(_, pacing)| !pacing.is_paced()) {
                            all.pacing = how.pacing;
                        }
                    }
                    (Ok(_), Err(problem)) => *entry.get_mut() = Err(problem),
                    (Err(_), _) => {}
                },
            }
        }
        for known in &mut self.workloads {
            known.seen_at = seen_at.remove(&known.identity);
            let now = attached.remove(&known.identity).unwrap_or_else(|| {
                Err(missing.remove(&known.identity).unwrap_or_else(|| "not attached".to_owned()))
            });
            if now != known.attached {
                match &now {
                    Ok(how) => {
                        if known.attached.is_err() {
                            let now = self.clock.boottime_ns();
                            self.pods.note_attached(&known.location, self.began_ns, now);
                        }
                        info!(workload = known.name, location = %known.location, kind = how.kind, before = ?how.before, pacing = ?how.pacing, "attached")
                    }
                    Err(reason) => warn!(
                        workload = known.name,
                        location = %known.location,
                        reason,
                        "not enforced"
                    ),
                }
                known.attached = now;
            }
        }
    }

    /// Notes whom packets reach past the host's end of their veth.
    fn note_bypassed(&mut self, bypassed: &BTreeSet<Identity>) {
        for known in &mut self.workloads {
            let now = bypassed.contains(&known.identity);
            if now && !known.is_bypassed {
                warn!(workload = known.name, location = %known.location, "packets reach it past the host's end of its veth");
            }
            known.is_bypassed = now;
        }
    }

    /// Whether somebody is missing who may appear without a link event of this namespace.
    pub fn is_waiting(&self) -> bool {
        let may_come = |known: &Known| known.attached.is_err() && !is_pod(&known.location);
        self.workloads.iter().any(may_come)
            || self.uplinks.iter().any(|uplink| uplink.attached.is_none())
    }

    /// Which workload has which address, as far as its interface was found.
    pub fn addresses(&self) -> Vec<(IpAddr, quota::Workload)> {
        let of = |known: &Known| {
            let found = known.seen_at.as_ref().map(|(_, addresses)| addresses.as_slice());
            let (namespace, name) = known.name.split_once('/').unwrap_or(("", &known.name));
            let workload = quota::Workload {
                namespace: namespace.into(),
                name: name.into(),
                identity: known.key.as_str().into(),
            };
            let addresses = own_addresses(&known.location, &known.addresses, found);
            let pairs = addresses.iter().map(|address| (*address, workload.clone()));
            pairs.collect::<Vec<_>>()
        };
        self.workloads.iter().flat_map(of).collect()
    }
}

/// The addresses by which a workload is known. A pod's are told; others' are found at their
/// interface.
fn own_addresses<'a>(
    location: &Location,
    told: &'a [IpAddr],
    found: Option<&'a [IpAddr]>,
) -> &'a [IpAddr] {
    match location {
        // The node's address is that of every process on it: it says nothing about who asks.
        Location::Pod(PodLocation::Node) => &[],
        _ if !told.is_empty() => told,
        _ => found.unwrap_or_default(),
    }
}

/// Who limits the bytes of these workloads already, as far as can be seen from the host's end.
fn shapers(wanted: &[Attachment], asking: &BTreeSet<Identity>, host: &[Interface]) -> Shaped {
    let mut shaped = Shaped::new();
    let shapers = LazyCell::new(|| Shapers::look(host));
    for attachment in wanted {
        if let Target::Workload { workload, side: Side::Host, .. } = &attachment.target
            && asking.contains(workload)
        {
            let others = shapers.of(attachment.ifindex, &attachment.interface);
            if others.iter().any(Option::is_some) {
                shaped.insert(*workload, others);
            }
        }
    }
    shaped
}

/// Where pods may be that nobody has told of: ends of veths into other namespaces.
fn unclaimed(host: &[Interface], wanted: &[Attachment]) -> Vec<Attachment> {
    let is_wanted = |link: &Interface| {
        let is_it = |attachment: &Attachment| {
            attachment.ifindex == link.index && !attachment.is_in_another_namespace()
        };
        wanted.iter().any(is_it)
    };
    let attachment = |link: &Interface| Attachment {
        interface: link.name.clone(),
        ifindex: link.index,
        ethernet: link.ethernet,
        ways: BOTH_WAYS,
        volumes: false,
        pace: datapath::Pace::default(),
        target: Target::Unclaimed,
    };
    host.iter().filter(|link| link.leads_away && !is_wanted(link)).map(attachment).collect()
}

const fn pace(wanted: config::Pace) -> datapath::Pace {
    match wanted {
        config::Pace::Auto => datapath::Pace::Auto,
        config::Pace::Fq => datapath::Pace::Fq,
        config::Pace::Off => datapath::Pace::Off,
    }
}

fn uplink_status(
    interface: String,
    found: Result<Attachment, String>,
    results: &BTreeMap<Attachment, Result<Attached, DatapathError>>,
) -> view::UplinkStatus {
    let (attached, detail) = match found {
        Ok(attachment) => early_status(&attachment, results),
        Err(reason) => (None, Some(reason)),
    };
    view::UplinkStatus { interface, attached, detail }
}

/// How an early program is attached, or why it is not.
pub(super) fn early_status(
    attachment: &Attachment,
    results: &BTreeMap<Attachment, Result<Attached, DatapathError>>,
) -> (Option<String>, Option<String>) {
    match results.get(attachment) {
        Some(Ok(attached)) => (Some(attached.kind.to_owned()), None),
        Some(Err(problem)) => (None, Some(with_causes(problem))),
        None => (None, Some("not attached".to_owned())),
    }
}

pub(super) const fn is_pod(location: &Location) -> bool {
    matches!(location, Location::Pod(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_known_by_the_nodes_own_address() {
        let (told, found) = ([IpAddr::from([10, 0, 0, 1])], [IpAddr::from([10, 0, 0, 2])]);
        let node = Location::Pod(PodLocation::Node);
        assert!(own_addresses(&node, &told, Some(&found)).is_empty());
        let pod = Location::Pod(PodLocation::Cgroup("u-1".to_owned()));
        assert_eq!(own_addresses(&pod, &told, Some(&found)), told);
        let host = Location::Host { interface: "eth0".to_owned() };
        assert_eq!(own_addresses(&host, &[], Some(&found)), found);
        assert!(own_addresses(&host, &[], None).is_empty());
    }
}
