//! The interfaces of a network namespace, by netlink.

use std::{collections::BTreeMap, io, net::IpAddr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::{
    address::{AddressAttribute, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
};

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// The index of its peer, in the peer's namespace, if it is one end of a veth pair.
    pub veth_peer: Option<u32>,
    /// Whether it is one end of a veth pair whose other end is in another namespace.
    pub leads_away: bool,
    /// Whether its packets start with an Ethernet header.
    pub ethernet: bool,
    /// Whether it is up, and not the loopback.
    pub carries: bool,
    /// Packets that it has received so far.
    pub received: u64,
    /// Packets that it has sent so far.
    pub sent: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// The interfaces of the calling thread's namespace.
pub fn list() -> io::Result<Vec<Interface>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let links: Result<Vec<LinkMessage>, _> = handle.link().get().execute().try_collect().await;
        let addresses: Result<Vec<AddressMessage>, _> =
            handle.address().get().execute().try_collect().await;
        connection.abort();
        let mut found = BTreeMap::new();
        for link in links.map_err(io::Error::other)? {
            found.insert(link.header.index, interface(&link));
        }
        for message in addresses.map_err(io::Error::other)? {
            if let (Some(interface), Some(address)) =
                (found.get_mut(&message.header.index), address(&message))
            {
                interface.addresses.push(address);
            }
        }
        Ok(found.into_values().collect())
    })
}

/// Bytes that these interfaces of the calling thread's namespace have received so far. One that is not
/// there, or no more, is left out.
pub fn received_bytes(indexes: &[u32]) -> io::Result<BTreeMap<u32, u64>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let mut found = BTreeMap::new();
        for &index in indexes {
            let mut links = handle.link().get().match_index(index).execute();
            if let Ok(Some(link)) = links.try_next().await {
                let bytes = link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Stats64(stats) => Some(stats.rx_bytes),
                    _ => None,
                });
                found.extend(bytes.map(|bytes| (index, bytes)));
            }
        }
        connection.abort();
        Ok(found)
    })
}

/// The node's own addresses: those of the calling thread's namespace, but for loopback's.
pub fn node_addresses() -> io::Result<Vec<IpAddr>> {
    let all = list()?.into_iter().flat_map(|interface| interface.addresses);
    Ok(all.filter(|address| !address.is_loopback()).collect())
}

fn interface(link: &LinkMessage) -> Interface {
    let mut name = String::new();
    let mut peer = None;
    let mut is_veth = false;
    let mut is_away = false;
    let (mut received, mut sent) = (0, 0);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name.clone_from(text),
            LinkAttribute::Link(index) => peer = Some(*index),
            LinkAttribute::LinkNetNsId(_) => is_away = true,
            LinkAttribute::Stats64(stats) => {
                (received, sent) = (stats.rx_packets, stats.tx_packets);
            }
            LinkAttribute::LinkInfo(infos) => {
                is_veth = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
            }
            _ => {}
        }
    }
    Interface {
        name,
        index: link.header.index,
        veth_peer: peer.filter(|_| is_veth),
        leads_away: is_veth && is_away,
        ethernet: matches!(
            link.header.link_layer_type,
            LinkLayerType::Ether | LinkLayerType::Loopback
        ),
        carries: link.header.flags.contains(LinkFlags::Up)
            && !link.header.flags.contains(LinkFlags::Loopback),
        received,
        sent,
        addresses: Vec::new(),
    }
}

fn address(message: &AddressMessage) -> Option<IpAddr> {
    // On a point-to-point link `Address` is the peer's and `Local` is ours.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}
