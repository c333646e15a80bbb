//! Who asks.

use std::{net::IpAddr, sync::Arc};

use super::{
    identity::Name,
    model::{Access, CallerRule},
};

/// What is known of the peer of a connection. The server finds it out once for each connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Its address; none on a unix socket.
    pub address: Option<IpAddr>,
    /// The workload that has the address, or that the process belongs to.
    pub workload: Option<Workload>,
    /// The name in the certificate that it proved to own.
    pub tls_name: Option<Arc<str>>,
    /// What the kernel says of the peer of a unix socket.
    pub credentials: Option<Credentials>,
}

/// A workload of this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Its namespace; empty on a VM.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// What tells it from its namesakes before and after it: the UID of a pod.
    pub identity: Arc<str>,
}

/// `SO_PEERCRED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process.
    pub pid: i32,
}

impl Caller {
    /// Who this is, for counts of scope `workload`: the workload, else the certificate's name, else
    /// the address, else the user. Callers of whom nothing is known share a count.
    pub(super) fn name(&self, name: &mut Name) {
        if let Some(workload) = &self.workload {
            name.beside("workload");
            name.beside(&workload.namespace);
            name.beside(&workload.name);
            name.beside(&workload.identity);
        } else if let Some(tls_name) = &self.tls_name {
            name.beside("tls");
            name.beside(tls_name);
        } else if let Some(address) = &self.address {
            name.beside("address");
            name.bytes(&match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            });
        } else if let Some(Credentials { uid, .. }) = &self.credentials {
            name.beside("user");
            name.bytes(&uid.to_le_bytes());
        } else {
            name.beside("unknown");
        }
    }
}

impl Access {
    /// Whether the caller may ask about the domain.
    pub fn permits(&self, caller: &Caller) -> bool {
        if self.callers.is_empty() && self.owners.is_empty() {
            return true;
        }
        let owns =
            caller.workload.as_ref().is_some_and(|workload| self.is_owner(&workload.namespace));
        owns || self.callers.iter().any(|rule| rule.matches(caller))
    }

    /// Whether workloads of a namespace may name the domain.
    pub fn is_owner(&self, namespace: &str) -> bool {
        self.owners.iter().any(|owner| owner == namespace)
    }
}

impl CallerRule {
    fn matches(&self, caller: &Caller) -> bool {
        let workload = caller.workload.as_ref();
        match self {
            Self::Namespace(namespace) => {
                workload.is_some_and(|workload| *workload.namespace == **namespace)
            }
            Self::Workload(names) => workload
                .is_some_and(|workload| names.matches([&workload.namespace, "/", &workload.name])),
            Self::TlsName(names) => {
                caller.tls_name.as_ref().is_some_and(|name| names.matches([name, "", ""]))
            }
            Self::Address(cidr) => caller.address.is_some_and(|address| cidr.contains(address)),
            Self::Uid(uid) => caller.credentials.is_some_and(|peer| peer.uid == *uid),
        }
    }
}
