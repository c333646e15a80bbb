//! A node that routes between its pods and the clients beyond its uplinks.
//!
//! Pods have single addresses behind a veth each, as container networks give them; the node is
//! their gateway, under one address on every veth. Each client has an uplink and a network of its
//! own, and owns half of that network whole, so that one client can be many sources.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicU8, Ordering},
};

use super::{
    error::LabError,
    links::{End, Prefix, Route, add_address, add_route, delete_link, link_index, veth},
    namespace::Namespace,
};

/// All pods' IPv4 addresses.
pub const PODS_V4: &str = "10.77.0.0/24";
/// All pods' IPv6 addresses.
pub const PODS_V6: &str = "fd77::/64";
/// All clients' IPv4 addresses (of the block that RFC 2544 sets aside for tests).
pub const CLIENTS_V4: &str = "198.18.0.0/16";
/// All clients' IPv6 addresses.
pub const CLIENTS_V6: &str = "fd77:18::/32";

/// The node's own address on every pod's veth; pods are numbered from 2.
const NODE: u8 = 1;
/// The last number of a pod or client.
const LAST: u8 = 250;
/// The interface inside a pod or client.
const INSIDE: &str = "eth0";
/// Leaves room for `veth-` in an interface name of 15 bytes.
const LONGEST_NAME: usize = 10;

/// On which side of the node a host lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A workload on the node.
    Pod,
    /// A machine beyond an uplink of the node.
    Client,
}

/// A router with pods and clients.
#[derive(Debug)]
pub struct Node {
    prefix: String,
    namespace: Namespace,
    // Pods and clients count together: a number is never used twice, whatever was dropped.
    numbers: AtomicU8,
}

impl Node {
    pub(super) fn create(lab: &str, name: &str) -> Result<Self, LabError> {
        check(name)?;
        let namespace = Namespace::create(&format!("{lab}-{name}"))?;
        // Before the first interface, which inherits from `default`.
        namespace.set("ipv4/ip_forward", "1")?;
        for scope in ["all", "default"] {
            // Loose, as systemd's sysctl.d sets it on a distribution's hosts.
            namespace.set(&format!("ipv4/conf/{scope}/rp_filter"), "2")?;
            if namespace.has_ipv6() {
                namespace.set(&format!("ipv6/conf/{scope}/forwarding"), "1")?;
            }
        }
        Ok(Self { prefix: lab.to_owned(), namespace, numbers: AtomicU8::new(NODE) })
    }

    /// The router's namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The IPv4 address from which the node itself speaks to pods, as a kubelet does.
    pub fn ipv4(&self) -> Ipv4Addr {
        pod_v4(NODE)
    }

    /// The IPv6 address from which the node itself speaks to pods.
    pub fn ipv6(&self) -> Ipv6Addr {
        pod_v6(NODE)
    }

    /// A workload: a namespace with `eth0`, whose other end is `veth-NAME` on the node.
    pub fn pod(&self, name: &str) -> Result<Host, LabError> {
        self.host(name, Role::Pod)
    }

    /// A client: a namespace with `eth0`, whose other end is the node's uplink `up-NAME`.
    pub fn client(&self, name: &str) -> Result<Host, LabError> {
        self.host(name, Role::Client)
    }

    fn host(&self, name: &str, role: Role) -> Result<Host, LabError> {
        check(name)?;
        let number = self
            .numbers
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < LAST).then_some(used + 1)
            })
            .map_err(|_| LabError::Full(LAST - NODE))?
            + 1;
        let namespace = Namespace::create(&format!("{}-{name}", self.prefix))?;
        let host = Host { name: name.to_owned(), role, number, namespace };
        self.plug(&host, None)?;
        if role == Role::Client {
            host.claim_sources()?;
        }
        Ok(host)
    }

    /// Connects a host that was unplugged: a new veth pair with the same names and addresses. The
    /// node's end gets `index` if one is given.
    pub fn plug(&self, host: &Host, index: Option<u32>) -> Result<(), LabError> {
        let outside = host.node_interface();
        let node = &self.namespace;
        veth(
            End { namespace: node, name: &outside, mac: host.node_mac(), index },
            End { namespace: &host.namespace, name: INSIDE, mac: host.mac(), index: None },
        )?;
        let pairs = [
            (IpAddr::from(host.ipv4()), IpAddr::from(host.gateway_v4())),
            (IpAddr::from(host.ipv6()), IpAddr::from(host.gateway_v6())),
        ];
        for (address, gateway) in pairs {
            if address.is_ipv6() && !node.has_ipv6() {
                continue;
            }
            self.connect(host, &outside, address, gateway)?;
        }
        Ok(())
    }

    fn connect(
        &self,
        host: &Host,
        outside: &str,
        address: IpAddr,
        gateway: IpAddr,
    ) -> Result<(), LabError> {
        let (node, inside) = (&self.namespace, &host.namespace);
        let everything = match address {
            IpAddr::V4(_) => Prefix::new(Ipv4Addr::UNSPECIFIED, 0),
            IpAddr::V6(_) => Prefix::new(Ipv6Addr::UNSPECIFIED, 0),
        };
        match host.role {
            Role::Pod => {
                add_address(node, outside, Prefix::host(gateway))?;
                add_route(node, outside, Prefix::host(address), Route::Link)?;
                add_address(inside, INSIDE, Prefix::host(address))?;
                add_route(inside, INSIDE, Prefix::host(gateway), Route::Link)?;
            }
            Role::Client => {
                let length = if address.is_ipv4() { 24 } else { 64 };
                add_address(node, outside, Prefix::new(gateway, length))?;
                add_address(inside, INSIDE, Prefix::new(address, length))?;
                if address.is_ipv6() {
                    // The rest of the client's /48 lies behind its first address: neighbour
                    // discovery, unlike ARP, answers for configured addresses only.
                    add_route(node, outside, host.network_v6(), Route::Via(address))?;
                }
            }
        }
        add_route(inside, INSIDE, everything, Route::Via(gateway))
    }

    /// Takes a host's veth pair away. Its namespace, with what listens in it, stays.
    pub fn unplug(&self, host: &Host) -> Result<(), LabError> {
        delete_link(&self.namespace, &host.node_interface())
    }

    /// Takes a host away, and makes another with the same name and addresses in a namespace of its
    /// own.
    pub fn replace(&self, host: Host) -> Result<Host, LabError> {
        self.unplug(&host)?;
        let Host { name, role, number, namespace } = host;
        drop(namespace);
        let namespace = Namespace::create(&format!("{}-{name}", self.prefix))?;
        let host = Host { name, role, number, namespace };
        self.plug(&host, None)?;
        Ok(host)
    }

    /// The index of the node's end of a host's veth pair.
    pub fn index_of(&self, host: &Host) -> Result<u32, LabError> {
        link_index(&self.namespace, &host.node_interface())
    }
}

/// A pod or a client.
#[derive(Debug)]
pub struct Host {
    name: String,
    role: Role,
    number: u8,
    namespace: Namespace,
}

impl Host {
    /// Its name within the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// On which side of the node it lies.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its interface, inside.
    pub fn interface(&self) -> &'static str {
        INSIDE
    }

    /// The other end of its interface, in the node's namespace.
    pub fn node_interface(&self) -> String {
        match self.role {
            Role::Pod => format!("veth-{}", self.name),
            Role::Client => format!("up-{}", self.name),
        }
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> Ipv4Addr {
        match self.role {
            Role::Pod => pod_v4(self.number),
            Role::Client => client_v4(self.number, 2),
        }
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> Ipv6Addr {
        match self.role {
            Role::Pod => pod_v6(self.number),
            Role::Client => client_v6(self.number, 0, 2),
        }
    }

    /// Its Ethernet address.
    pub fn mac(&self) -> [u8; 6] {
        // The second bit of the first byte: locally administered.
        [0x02, 0x77, 0, 0, 0, self.number]
    }

    /// The Ethernet address of the node's end.
    pub fn node_mac(&self) -> [u8; 6] {
        [0x02, 0x77, 0, 0, 1, self.number]
    }

    /// The node's address on its side.
    pub fn gateway_v4(&self) -> Ipv4Addr {
        match self.role {
            Role::Pod => pod_v4(NODE),
            Role::Client => client_v4(self.number, 1),
        }
    }

    /// The node's address on its side.
    pub fn gateway_v6(&self) -> Ipv6Addr {
        match self.role {
            Role::Pod => pod_v6(NODE),
            Role::Client => client_v6(self.number, 0, 1),
        }
    }

    /// One of a client's 127 further IPv4 addresses, from which it can connect.
    pub fn source_v4(&self, number: u8) -> Ipv4Addr {
        // The network's last address is its broadcast address.
        client_v4(self.number, 128 + number % 127)
    }

    /// One of a client's 32768 further IPv6 addresses, each of another /64, from which it can
    /// connect.
    pub fn source_v6(&self, number: u16) -> Ipv6Addr {
        client_v6(self.number, 0x8000 | number, 1)
    }

    /// Makes the upper half of a client's networks its own, address by address.
    fn claim_sources(&self) -> Result<(), LabError> {
        let v4 = Prefix::new(client_v4(self.number, 128), 25);
        add_route(&self.namespace, "lo", v4, Route::Local)?;
        if self.namespace.has_ipv6() {
            let v6 = Prefix::new(client_v6(self.number, 0x8000, 0), 49);
            add_route(&self.namespace, "lo", v6, Route::Local)?;
            // For IPv6 a local route alone does not allow to bind.
            self.namespace.set("ipv6/ip_nonlocal_bind", "1")?;
        }
        Ok(())
    }

    fn network_v6(&self) -> Prefix {
        Prefix::new(client_v6(self.number, 0, 0), 48)
    }
}

const fn pod_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

const fn pod_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number as u16)
}

const fn client_v4(client: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, client, host)
}

const fn client_v6(client: u8, network: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0x18, client as u16, network, 0, 0, 0, host)
}

pub(super) fn check(name: &str) -> Result<(), LabError> {
    let fits = (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits { Ok(()) } else { Err(LabError::Name { name: name.to_owned(), longest: LONGEST_NAME }) }
}
