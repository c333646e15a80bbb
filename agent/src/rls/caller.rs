//! Who asks.
//!
//! A connection knows its other end once: an address, credentials of the kernel, or a name that a
//! certificate proves. Which workload has that address may change while the connection lives, so
//! that alone is looked up again, and only after something changed.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;

use crate::quota::{Caller, Workload};

/// Which workload has which address. One writer, who replaces all of it.
#[derive(Debug, Default)]
pub struct Workloads {
    by_address: ArcSwap<HashMap<IpAddr, Workload>>,
    /// Counts replacements.
    version: AtomicU64,
}

impl Workloads {
    /// Replaces what is known. Nothing happens when it is what was known before.
    pub fn replace(&self, known: impl IntoIterator<Item = (IpAddr, Workload)>) {
        let known: HashMap<_, _> =
            known.into_iter().map(|(address, workload)| (canonical(address), workload)).collect();
        if **self.by_address.load() == known {
            return;
        }
        self.by_address.store(Arc::new(known));
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The caller with the workload that has its address now.
    pub(super) fn resolve(&self, caller: Caller) -> Caller {
        let workload = caller.address.and_then(|address| self.find(address));
        Caller { workload, ..caller }
    }

    fn find(&self, address: IpAddr) -> Option<Workload> {
        self.by_address.load().get(&canonical(address)).cloned()
    }
}

/// An IPv4 client of a socket that serves both families has an address of IPv6.
pub(super) const fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => address,
        },
        IpAddr::V4(_) => address,
    }
}

/// The other end of one connection.
#[derive(Debug)]
pub(super) struct OtherEnd {
    workloads: Arc<Workloads>,
    /// The caller, and the version of [`Workloads`] that it was made from.
    known: ArcSwap<(u64, Caller)>,
}

impl OtherEnd {
    pub(super) fn new(workloads: Arc<Workloads>, caller: Caller) -> Self {
        let version = workloads.version.load(Ordering::Acquire);
        let caller = workloads.resolve(caller);
        Self { workloads, known: ArcSwap::from_pointee((version, caller)) }
    }

    /// Asks with the caller as it is known now.
    pub(super) fn with<T>(&self, ask: impl FnOnce(&Caller) -> T) -> T {
        let version = self.workloads.version.load(Ordering::Acquire);
        let known = self.known.load();
        if known.0 == version {
            return ask(&known.1);
        }
        let caller = self.workloads.resolve(known.1.clone());
        let answer = ask(&caller);
        self.known.store(Arc::new((version, caller)));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Workload {
        Workload { namespace: "".into(), name: "web".into(), identity: "web".into() }
    }

    #[test]
    fn a_connection_learns_of_its_workload_later_and_of_its_end() {
        let workloads = Arc::new(Workloads::default());
        let address: IpAddr = "10.0.0.7".parse().unwrap();
        let caller = Caller { address: Some(address), ..Caller::default() };
        let end = OtherEnd::new(Arc::clone(&workloads), caller);
        let name = || end.with(|caller| caller.workload.clone());
        assert_eq!(name(), None);
        workloads.replace([(address, web())]);
        assert_eq!(name(), Some(web()));
        workloads.replace([]);
        assert_eq!(name(), None);
    }

    #[test]
    fn an_ipv4_client_is_known_on_a_socket_of_both_families() {
        let workloads = Workloads::default();
        workloads.replace([("10.0.0.7".parse().unwrap(), web())]);
        let mapped = "::ffff:10.0.0.7".parse().unwrap();
        assert_eq!(workloads.find(mapped), Some(web()));
    }
}
