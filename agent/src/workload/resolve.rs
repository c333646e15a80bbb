//! Which interface, which side.

use std::{io, net::IpAddr};

use super::{
    interfaces::{self, Interface},
    netns::NetNs,
    pods::PodNetworks,
};
use crate::{
    compile::Identity,
    config::{Attach, Location, Netns, PodLocation, Uplink, Workload, XdpMode},
    datapath::{Attachment, BOTH_WAYS, Caller, Pace, Side, Target, UplinkMode},
};

/// Why a workload's packets cannot be seen.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// The namespace is not there.
    #[error("there is no network namespace {netns}: it is limited as soon as it appears")]
    Namespace {
        /// As the file names it.
        netns: String,
        /// Why.
        source: io::Error,
    },
    /// The interface is not there.
    #[error("there is no interface {interface} {place}: it is limited as soon as it appears")]
    Interface {
        /// Its name.
        interface: String,
        /// Where.
        place: String,
    },
    /// `attach: host` without a host's end.
    #[error("{interface} in {netns} has no other end on the host: use `attach: pod` or `auto`")]
    NoHostEnd {
        /// Its name.
        interface: String,
        /// Where.
        netns: String,
    },
    /// A pod without a network of its own.
    #[error("it uses the node's network, where its connections cannot be told from others")]
    NodeNetwork,
    /// A pod that nothing runs in, as far as one can see.
    #[error("no process of this pod was found yet: it is limited as soon as one appears")]
    NoProcess,
    /// A pod whose processes may not be looked at.
    #[error("its network namespace cannot be opened: {problem}")]
    Hidden {
        /// Why.
        problem: String,
    },
    /// A pod without an interface.
    #[error(
        "its network namespace has no interface that is up: it is limited as soon as one appears"
    )]
    NoInterface,
    /// Netlink failed.
    #[error("cannot list interfaces {place}")]
    Netlink {
        /// Where.
        place: String,
        /// Why.
        source: io::Error,
    },
}

/// Why the calls of a workload's processes cannot be told from those of others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCaller {
    /// It has no namespace of its own.
    #[error("its processes are not known: it is an interface of the agent's own namespace")]
    Shared,
    /// There are ways out where it is not judged.
    #[error("{interface} leads out of its network namespace, too: calls may go that way")]
    OtherWay {
        /// The other interface.
        interface: String,
    },
}

/// So many packets must have come past a host's end. The two counters are exact; a few packets are not
/// worth to attach anew.
const BYPASS: u64 = 64;

/// Where a workload is seen.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Where its packets are.
    pub attachments: Vec<Attachment>,
    /// Whose calls of `connect()` are its own.
    pub caller: Result<Caller, NoCaller>,
    /// Whether packets reach it past the host's end of its veth.
    pub is_bypassed: bool,
}

/// Finds where to attach for a workload: for a pod at all its interfaces, else at one. `host` lists
/// the interfaces of the agent's namespace.
pub fn resolve(
    workload: &Workload,
    identity: Identity,
    host: &[Interface],
    pods: &mut PodNetworks,
) -> Result<Resolved, Missing> {
    let Sight { found, caller, is_bypassed } = match &workload.location {
        Location::Host { interface } => {
            let found = host.iter().find(|link| link.name == *interface);
            let interface = found.cloned().ok_or_else(|| Missing::Interface {
                interface: interface.clone(),
                place: "on this host".to_owned(),
            })?;
            let found = Found { interface, side: Side::Own, netns: None };
            Sight { found: vec![found], caller: Err(NoCaller::Shared), is_bypassed: false }
        }
        Location::Namespace { netns, interface, attach } => {
            in_namespace(netns, interface, *attach, identity, host)?
        }
        Location::Pod(PodLocation::Node) => return Err(Missing::NodeNetwork),
        Location::Pod(PodLocation::Cgroup(uid)) => of_pod(uid, identity, host, pods)?,
    };
    let attachment = |Found { interface, side, netns }| {
        let addresses = if workload.addresses.is_empty() {
            interface.addresses.iter().copied().filter(is_routable).collect()
        } else {
            workload.addresses.clone()
        };
        Attachment {
            interface: interface.name,
            ifindex: interface.index,
            ethernet: interface.ethernet,
            ways: BOTH_WAYS,
            volumes: false,
            pace: Pace::default(),
            target: Target::Workload { workload: identity, side, netns, addresses },
        }
    };
    let attachments = found.into_iter().map(attachment).collect();
    Ok(Resolved { attachments, caller, is_bypassed })
}

/// What [`Resolved`] is made of.
struct Sight {
    found: Vec<Found>,
    caller: Result<Caller, NoCaller>,
    is_bypassed: bool,
}

/// An interface to attach to, with the addresses that the workload has there.
struct Found {
    interface: Interface,
    side: Side,
    netns: Option<NetNs>,
}

fn in_namespace(
    netns: &Netns,
    interface: &str,
    attach: Attach,
    workload: Identity,
    host: &[Interface],
) -> Result<Sight, Missing> {
    let name = netns.to_string();
    let open = NetNs::open(&netns.path().to_string_lossy())
        .map_err(|source| Missing::Namespace { netns: name.clone(), source })?;
    let place = format!("in {name}");
    let inside = list_inside(&open, &place)?;
    let found = inside
        .iter()
        .find(|link| link.name == interface)
        .ok_or_else(|| Missing::Interface { interface: interface.to_owned(), place })?;
    let caller = caller_in(&open, workload, std::slice::from_ref(found), &inside);
    let is_bypassed =
        attach != Attach::Pod && are_bypassed(std::slice::from_ref(found), host, false);
    let found = side_of(found, attach, is_bypassed, host, &open)
        .ok_or_else(|| Missing::NoHostEnd { interface: interface.to_owned(), netns: name })?;
    Ok(Sight { found: vec![found], caller, is_bypassed })
}

fn of_pod(
    uid: &str,
    workload: Identity,
    host: &[Interface],
    pods: &mut PodNetworks,
) -> Result<Sight, Missing> {
    let network = pods.get_mut(uid).map_err(|problem| match problem {
        Some(problem) => Missing::Hidden { problem },
        None => Missing::NoProcess,
    })?;
    // The ends of a veth come and go together, so that the host's ends show whether those inside
    // are the same.
    let is_there = |link: &Interface| link.veth_peer.is_none() || host_end(link, host).is_some();
    let known = network.interfaces.take().filter(|known| known.iter().all(is_there));
    let is_older = known.is_some();
    let inside = match known {
        Some(known) => known,
        None => list_inside(&network.netns, "in the pod")?,
    };
    let carrying: Vec<Interface> = inside.iter().filter(|link| link.carries).cloned().collect();
    if carrying.is_empty() {
        return Err(Missing::NoInterface);
    }
    network.is_bypassed |= are_bypassed(&carrying, host, is_older);
    let caller = caller_in(&network.netns, workload, &carrying, &inside);
    let is_bypassed = network.is_bypassed;
    let found = |link| side_of(link, Attach::Auto, is_bypassed, host, &network.netns);
    let found = carrying.iter().filter_map(found).collect();
    network.interfaces = Some(inside);
    Ok(Sight { found, caller, is_bypassed })
}

/// What calls from a namespace are the workload's: all, if it is judged at every way out.
fn caller_in(
    netns: &NetNs,
    workload: Identity,
    judged: &[Interface],
    inside: &[Interface],
) -> Result<Caller, NoCaller> {
    if netns.is_own() {
        return Err(NoCaller::Shared);
    }
    let is_judged = |link: &Interface| judged.iter().any(|judged| judged.index == link.index);
    match inside.iter().find(|link| link.carries && !is_judged(link)) {
        Some(other) => Err(NoCaller::OtherWay { interface: other.name.clone() }),
        None => Ok(Caller {
            workload,
            namespace: netns.cookie(),
            addresses: inside.iter().flat_map(|link| link.addresses.iter().copied()).collect(),
        }),
    }
}

fn list_inside(netns: &NetNs, place: &str) -> Result<Vec<Interface>, Missing> {
    let list = netns.run(interfaces::list).and_then(|list| list);
    list.map_err(|source| Missing::Netlink { place: place.to_owned(), source })
}

/// On which side of a namespace's interface to attach; `None` when that is to be the host's and
/// there is none.
fn side_of(
    inside: &Interface,
    attach: Attach,
    is_bypassed: bool,
    host: &[Interface],
    netns: &NetNs,
) -> Option<Found> {
    if netns.is_own() {
        return Some(Found { interface: inside.clone(), side: Side::Own, netns: None });
    }
    let at_host = match attach {
        Attach::Auto => !is_bypassed,
        Attach::Host => true,
        Attach::Pod => false,
    };
    match host_end(inside, host).filter(|_| at_host) {
        Some(end) => {
            let addresses = inside.addresses.clone();
            let interface = Interface { addresses, ..end.clone() };
            Some(Found { interface, side: Side::Host, netns: None })
        }
        None if attach == Attach::Host => None,
        None => {
            let netns = Some(netns.clone());
            Some(Found { interface: inside.clone(), side: Side::Pod, netns })
        }
    }
}

/// The host's end of a veth: an interface here whose peer is `inside`, and which is its peer.
fn host_end<'a>(inside: &Interface, host: &'a [Interface]) -> Option<&'a Interface> {
    let peer = inside.veth_peer?;
    host.iter().find(|link| link.index == peer && link.veth_peer == Some(inside.index))
}

/// Whether packets came into a namespace that did not pass the host's end of its veth: another program
/// puts them in at the inner end (`bpf_redirect_peer`). What the host's end has sent is what the inner
/// end has received, but for those; the kernel counts them there since 6.7, and in the stable series
/// since then (commit 024ee930cb3c, "bpf: Fix dev's rx stats for bpf_redirect_peer traffic").
///
/// Packets between two looks must count for the host's end alone. So where the inner ends were not
/// looked at before the host's, those are looked at again before it is believed.
fn are_bypassed(inside: &[Interface], host: &[Interface], is_older: bool) -> bool {
    let is_bypassed = |host: &[Interface]| {
        inside.iter().any(|link| {
            let end = host_end(link, host);
            end.is_some_and(|end| link.received >= end.sent.saturating_add(BYPASS))
        })
    };
    is_bypassed(host) && (is_older || interfaces::list().is_ok_and(|host| is_bypassed(&host)))
}

fn is_routable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

/// Finds an uplink; `None` when XDP is off there.
pub fn resolve_uplink(uplink: &Uplink, host: &[Interface]) -> Option<Result<Attachment, Missing>> {
    let mode = match uplink.xdp {
        XdpMode::Native => UplinkMode::Native,
        XdpMode::Generic => UplinkMode::Generic,
        XdpMode::Off => return None,
    };
    let found = host.iter().find(|link| link.name == uplink.interface);
    Some(match found {
        Some(link) => Ok(Attachment {
            interface: link.name.clone(),
            ifindex: link.index,
            ethernet: link.ethernet,
            ways: BOTH_WAYS,
            volumes: false,
            pace: Pace::default(),
            target: Target::Uplink(mode),
        }),
        None => Err(Missing::Interface {
            interface: uplink.interface.clone(),
            place: "on this host".to_owned(),
        }),
    })
}
