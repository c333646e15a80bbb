//! Which interface, which side.

use std::{io, net::IpAddr};

use super::{
    interfaces::{self, Interface},
    netns::NetNs,
};
use crate::{
    compile::Identity,
    config::{Attach, Location, Uplink, Workload, XdpMode},
    datapath::{Attachment, Side, Target, UplinkMode},
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
    /// Netlink failed.
    #[error("cannot list interfaces {place}")]
    Netlink {
        /// Where.
        place: String,
        /// Why.
        source: io::Error,
    },
}

/// Finds where to attach for a workload. `host` lists the interfaces of the agent's namespace.
pub fn resolve(
    workload: &Workload,
    identity: Identity,
    host: &[Interface],
) -> Result<Attachment, Missing> {
    let (found, side, netns) = match &workload.location {
        Location::Host { interface } => {
            let found = host.iter().find(|link| link.name == *interface).ok_or_else(|| {
                Missing::Interface {
                    interface: interface.clone(),
                    place: "on this host".to_owned(),
                }
            })?;
            (found.clone(), Side::Own, None)
        }
        Location::Namespace { netns, interface, attach } => {
            let path = netns.path();
            let netns_name = netns.to_string();
            let open = NetNs::open(&path.to_string_lossy())
                .map_err(|source| Missing::Namespace { netns: netns_name.clone(), source })?;
            let place = format!("in {netns_name}");
            let inside = open
                .run(interfaces::list)
                .and_then(|list| list)
                .map_err(|source| Missing::Netlink { place: place.clone(), source })?;
            let found = inside
                .iter()
                .find(|link| link.name == *interface)
                .ok_or_else(|| Missing::Interface { interface: interface.clone(), place })?;
            let host_end = host_end(found, host, open.is_own());
            match (attach, host_end) {
                (_, _) if open.is_own() => (found.clone(), Side::Own, None),
                (Attach::Auto | Attach::Host, Some(end)) => {
                    let addresses = found.addresses.clone();
                    (Interface { addresses, ..end.clone() }, Side::Host, None)
                }
                (Attach::Host, None) => {
                    return Err(Missing::NoHostEnd {
                        interface: interface.clone(),
                        netns: netns_name,
                    });
                }
                (Attach::Auto | Attach::Pod, _) => (found.clone(), Side::Pod, Some(open)),
            }
        }
    };
    let addresses = if workload.addresses.is_empty() {
        found.addresses.iter().copied().filter(is_routable).collect()
    } else {
        workload.addresses.clone()
    };
    Ok(Attachment {
        interface: found.name,
        ifindex: found.index,
        ethernet: found.ethernet,
        target: Target::Workload { workload: identity, side, netns, addresses },
    })
}

/// The host's end of a veth: an interface here whose peer is `inside`, and which is its peer.
fn host_end<'a>(inside: &Interface, host: &'a [Interface], same: bool) -> Option<&'a Interface> {
    let peer = inside.veth_peer.filter(|_| !same)?;
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
            target: Target::Uplink(mode),
        }),
        None => Err(Missing::Interface {
            interface: uplink.interface.clone(),
            place: "on this host".to_owned(),
        }),
    })
}
