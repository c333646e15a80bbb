//! Interfaces, addresses and routes, each in its namespace.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
};

use nix::net::if_::if_nametoindex;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressScope},
        link::{InfoData, InfoVeth},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType},
    },
};

use super::{
    error::{Doing, LabError},
    namespace::Namespace,
};

/// The loopback's index, in every namespace.
pub(super) const LOOPBACK: u32 = 1;

/// An address and how many of its bits name the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// Its first bits that count.
    pub length: u8,
}

impl Prefix {
    /// A prefix of `length` bits.
    pub fn new(address: impl Into<IpAddr>, length: u8) -> Self {
        Self { address: address.into(), length }
    }

    /// One address alone.
    pub fn host(address: impl Into<IpAddr>) -> Self {
        let address = address.into();
        Self { length: if address.is_ipv4() { 32 } else { 128 }, address }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it lies.
    pub namespace: &'a Namespace,
    /// Its name, at most 15 bytes.
    pub name: &'a str,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its index, where the test is about one; else the kernel chooses.
    pub index: Option<u32>,
}

/// Where a prefix is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// At the other end of the interface.
    Link,
    /// Behind a router on the interface.
    Via(IpAddr),
    /// Here: every address of the prefix is this namespace's own.
    Local,
}

/// Makes a veth pair, both ends up.
pub fn veth(one: End<'_>, other: End<'_>) -> Result<(), LabError> {
    let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(other.name)
        .address(other.mac.to_vec())
        .setns_by_fd(other.namespace.handle().as_raw_fd());
    if let Some(index) = other.index {
        peer = peer.index(index);
    }
    let mut link = LinkVeth::new(one.name, other.name)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
        .address(one.mac.to_vec())
        .up();
    if let Some(index) = one.index {
        link = link.index(index);
    }
    netlink(one.namespace, async |handle| handle.link().add(link.build()).execute().await)
        .doing(|| format!("make the veth pair {} and {}", one.name, other.name))?;
    // The kernel makes the peer first, and a veth without a peer cannot come up.
    let up = LinkUnspec::new_with_name(other.name).up().build();
    netlink(other.namespace, async |handle| handle.link().set(up).execute().await)
        .doing(|| format!("bring up {} in {}", other.name, other.namespace.name()))
}

/// Deletes an interface; of a veth pair both ends go.
pub fn delete_link(namespace: &Namespace, interface: &str) -> Result<(), LabError> {
    let index = link_index(namespace, interface)?;
    netlink(namespace, async |handle| handle.link().del(index).execute().await)
        .doing(|| format!("delete the interface {interface} in {}", namespace.name()))
}

/// The index of an interface.
pub fn link_index(namespace: &Namespace, interface: &str) -> Result<u32, LabError> {
    namespace
        .run(|| if_nametoindex(interface))?
        .doing(|| format!("find the interface {interface} in {}", namespace.name()))
}

/// Gives an interface an address, usable at once.
pub fn add_address(
    namespace: &Namespace,
    interface: &str,
    address: Prefix,
) -> Result<(), LabError> {
    let index = link_index(namespace, interface)?;
    netlink(namespace, async |handle| {
        let mut request = handle.address().add(index, address.address, address.length);
        if address.address.is_ipv6() {
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            message.header.scope = AddressScope::Universe;
        }
        request.execute().await
    })
    .doing(|| format!("give {interface} in {} the address {address}", namespace.name()))
}

/// Adds a route for a prefix.
pub fn add_route(
    namespace: &Namespace,
    interface: &str,
    to: Prefix,
    route: Route,
) -> Result<(), LabError> {
    let index = link_index(namespace, interface)?;
    let mut message = match to.address {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, to.length)
            .output_interface(index)
            .build(),
        IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(address, to.length)
            .output_interface(index)
            .build(),
    };
    direct(&mut message, route);
    netlink(namespace, async |handle| handle.route().add(message).execute().await)
        .doing(|| format!("add a route to {to} in {}", namespace.name()))
}

fn direct(message: &mut RouteMessage, route: Route) {
    match route {
        Route::Link => message.header.scope = RouteScope::Link,
        Route::Via(gateway) => message.attributes.push(RouteAttribute::Gateway(match gateway {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        })),
        Route::Local => {
            message.header.table = libc::RT_TABLE_LOCAL;
            message.header.kind = RouteType::Local;
            message.header.scope = RouteScope::Host;
        }
    }
}

/// One exchange with the kernel's routing socket of a namespace.
pub(super) fn netlink<T: Send>(
    namespace: &Namespace,
    work: impl AsyncFnOnce(Handle) -> Result<T, rtnetlink::Error> + Send,
) -> io::Result<T> {
    let answer = namespace.run_async(async || {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let answer = work(handle).await;
        connection.abort();
        answer.map_err(|error| match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        })
    });
    answer.map_err(io::Error::other)?
}
