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
    datapath::{Attachment, Caller, Pace, Side, Target, UplinkMode},
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

/// Where a workload is seen.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Where its packets are.
    pub attachments: Vec<Attachment>,
    /// Whose calls of `connect()` are its own.
    pub caller: Result<Caller, NoCaller>,
}

/// Finds where to attach for a workload: for a pod at all its interfaces, else at one. `host` lists
/// the interfaces of the agent's namespace.
pub fn resolve(
    workload: &Workload,
    identity: Identity,
    host: &[Interface],
    pods: &mut PodNetworks,
) -> Result<Resolved, Missing> {
    let (found, caller) = match &workload.location {
        Location::Host { interface } => {
            let found = host.iter().find(|link| link.name == *interface);
            let interface = found.cloned().ok_or_else(|| Missing::Interface {
                interface: interface.clone(),
                place: "on this host".to_owned(),
            })?;
            (vec![Found { interface, side: Side::Own, netns: None }], Err(NoCaller::Shared))
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
            volumes: false,
            pace: Pace::default(),
            target: Target::Workload { workload: identity, side, netns, addresses },
        }
    };
    Ok(Resolved { attachments: found.into_iter().map(attachment).collect(), caller })
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
) -> Result<(Vec<Found>, Result<Caller, NoCaller>), Missing> {
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
    let found = side_of(found, attach, host, &open)
        .ok_or_else(|| Missing::NoHostEnd { interface: interface.to_owned(), netns: name })?;
    Ok((vec![found], caller))
}

fn of_pod(
    uid: &str,
    workload: Identity,
    host: &[Interface],
    pods: &mut PodNetworks,
) -> Result<(Vec<Found>, Result<Caller, NoCaller>), Missing> {
    let network = pods.get_mut(uid).map_err(|problem| match problem {
        Some(problem) => Missing::Hidden { problem },
        None => Missing::NoProcess,
    })?;
    // The ends of a veth come and go together, so that the host's ends show whether those inside
    // are the same.
    let is_there = |link: &Interface| link.veth_peer.is_none() || host_end(link, host).is_some();
    let known = network.interfaces.take().filter(|known| known.iter().all(is_there));
    let inside = match known {
        Some(known) => known,
        None => list_inside(&network.netns, "in the pod")?,
    };
    let carrying: Vec<Interface> = inside.iter().filter(|link| link.carries).cloned().collect();
    if carrying.is_empty() {
        return Err(Missing::NoInterface);
    }
    let caller = caller_in(&network.netns, workload, &carrying, &inside);
    let found = |link| side_of(link, Attach::Auto, host, &network.netns);
    let found = carrying.iter().filter_map(found).collect();
    network.interfaces = Some(inside);
    Ok((found, caller))
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
fn side_of(inside: &Interface, attach: Attach, host: &[Interface], netns: &NetNs) -> Option<Found> {
    if netns.is_own() {
        return Some(Found { interface: inside.clone(), side: Side::Own, netns: None });
    }
    match (attach, host_end(inside, host)) {
        (Attach::Auto | Attach::Host, Some(end)) => {
            let addresses = inside.addresses.clone();
            let interface = Interface { addresses, ..end.clone() };
            Some(Found { interface, side: Side::Host, netns: None })
        }
        (Attach::Host, None) => None,
        (Attach::Auto | Attach::Pod, _) => {
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
