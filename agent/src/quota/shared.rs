//! Counts that others change too: those of descriptors that workloads name in their policy. Their words
//! lie where the kernel's programs count new connections, so that a request and a connection spend one
//! budget.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Now, Quotas,
    caller::Caller,
    engine::{Engine, Hits, Kind, Meter, Step, Taken},
    identity::Identity,
    model::{Consistency, Scope},
    rules::Entry,
    store::{Ask, Held, Question, Store},
};

/// Where a count lies that others change, too.
pub trait Cell: Send + Sync + fmt::Debug {
    /// Its word, if there is one; 0 for a count that is not there.
    fn word(&self) -> Option<&AtomicU64>;
}

/// What a descriptor that a workload names is limited by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its count, in this process.
    pub identity: Identity,
    /// Its count, for whoever must know it again after this process: the domain, and each entry's key
    /// and what is counted of its value.
    pub text: Vec<String>,
    /// Its limit.
    pub meter: Meter,
    /// What the store is asked, if it counts for the whole fleet.
    pub leased: Option<Question>,
}

/// Why a descriptor cannot be spent by connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNamed {
    /// No quotas are configured.
    #[error("no quotas are loaded")]
    NothingLoaded,
    /// Nobody knows the domain.
    #[error("no quota file has this domain")]
    UnknownDomain,
    /// The domain's owners are others.
    #[error("the domain belongs to other namespaces")]
    NotOwner,
    /// No limit is written for it.
    #[error("no limit is written for this descriptor")]
    NoLimit,
    /// It has more limits than the kernel decides at once.
    #[error("it has several limits, and connections can spend from one")]
    SeveralLimits,
    /// It counts where the kernel does not.
    #[error("connections can spend from quotas of scope `node` or `fleet`")]
    Scope,
    /// Nothing is leased of it.
    #[error("connections can spend from what is leased, and its consistency is `strict`")]
    Strict,
    /// Over the fleet, the kernel counts in windows.
    #[error("connections can spend from fixed windows of the fleet, not from buckets")]
    FleetBucket,
    /// The kernel does not count so.
    #[error("connections can spend from fixed windows and buckets, not from sliding windows")]
    Sliding,
}

/// The words, in the order of their counts' identities.
#[derive(Debug, Default)]
pub(super) struct Shared(Box<[(Named, Arc<dyn Cell>)]>);

impl Shared {
    fn new(mut cells: Vec<(Named, Arc<dyn Cell>)>) -> Self {
        cells.sort_by_key(|(named, _)| named.identity);
        cells.dedup_by_key(|(named, _)| named.identity);
        Self(cells.into())
    }

    fn get(&self, identity: Identity) -> Option<&AtomicU64> {
        let index = self.0.binary_search_by_key(&identity, |(named, _)| named.identity).ok()?;
        self.0.get(index).and_then(|(_, cell)| cell.word())
    }

    /// Changes a count by a step, if it is one of these.
    pub(super) fn update(
        &self,
        identity: Identity,
        mut step: impl FnMut(u64) -> Step,
    ) -> Option<Taken> {
        let cell = self.get(identity)?;
        let mut word = cell.load(Ordering::SeqCst);
        loop {
            let Step { store, taken } = step(word);
            let Some(next) = store else { return Some(taken) };
            match cell.compare_exchange(word, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Some(taken),
                Err(seen) => word = seen,
            }
        }
    }

    /// A count's word, if it is one of these.
    pub(super) fn word(&self, identity: Identity) -> Option<u64> {
        self.get(identity).map(|cell| cell.load(Ordering::SeqCst))
    }
}

impl Quotas {
    /// What limits a descriptor that a workload of a namespace names. It is found as for a request.
    pub fn named(
        &self,
        domain: &str,
        entries: &[(String, String)],
        namespace: &str,
    ) -> Result<Named, NotNamed> {
        let rules = self.rules.load();
        let rules = rules.as_ref().ok_or(NotNamed::NothingLoaded)?;
        let domain = rules.domain(domain).ok_or(NotNamed::UnknownDomain)?;
        if !domain.access.owners.is_empty() && !domain.access.is_owner(namespace) {
            return Err(NotNamed::NotOwner);
        }
        let entry =
            |(key, value): &(String, String)| Entry { key: key.clone(), value: value.clone() };
        let entries: Vec<Entry> = entries.iter().map(entry).collect();
        let (id, path) = rules.find(domain, &entries).ok_or(NotNamed::NoLimit)?;
        let rule = rules.rule(id).ok_or(NotNamed::NoLimit)?;
        let meter = match &*rule.meters {
            [] => return Err(NotNamed::NoLimit),
            [meter] => *meter,
            _ => return Err(NotNamed::SeveralLimits),
        };
        if meter.engine == Engine::Sliding {
            return Err(NotNamed::Sliding);
        }
        let name = self.name_of(rules, domain, rule, &path, &entries, &Caller::default());
        let identity = name.of_kind(meter.kind());
        let leased = match rule.scope {
            Scope::Node => None,
            Scope::Workload => return Err(NotNamed::Scope),
            Scope::Fleet if rule.consistency == Consistency::Strict => {
                return Err(NotNamed::Strict);
            }
            Scope::Fleet if meter.engine != Engine::Fixed => return Err(NotNamed::FleetBucket),
            Scope::Fleet => {
                let (domain, hits) = (&*domain.name, Hits::Add(1));
                let (entries, path) = (&entries, &path);
                Some(Ask { identity, meter, rule, hits, rules, domain, entries, path }.question())
            }
        };
        let mut text = vec![domain.name.to_string()];
        for (index, entry) in entries.iter().enumerate() {
            text.extend([entry.key.clone(), rules.counted_value(&path, index, entry).to_owned()]);
        }
        Ok(Named { identity, text, meter, leased })
    }

    /// From here on the leases of these quotas of the fleet, and of no others, lie in these words.
    pub fn hold(&self, held: Vec<Held>, away: Arc<dyn Cell>, now: Now) {
        if let Some(store) = self.store.get() {
            store.hold(held, away, now);
        }
    }

    /// Who keeps leases, if anybody does.
    pub fn store(&self) -> Option<&Arc<dyn Store>> {
        self.store.get()
    }

    /// From here on these counts, and no others, lie in these cells. What was counted elsewhere so far
    /// is brought along, and back when a count is given up.
    pub fn share(&self, cells: Vec<(Named, Arc<dyn Cell>)>, now: Now) {
        let _loading = self.lock();
        let before = self.shared.load_full().unwrap_or_default();
        let after = Arc::new(Shared::new(cells));
        self.shared.store((!after.0.is_empty()).then(|| Arc::clone(&after)));
        for (Named { identity, meter, .. }, _) in &after.0 {
            if before.get(*identity).is_some() || self.slab.word(*identity, meter.mark()).is_none()
            {
                continue;
            }
            let mut word = 0;
            let empty = |found| {
                word = found;
                let taken = meter.step(found, Hits::Add(0), now).taken;
                Step { store: (found != 0).then_some(0), taken }
            };
            // It is there, so there is a place for it.
            let _ = self.slab.update(*identity, meter.mark(), now, empty);
            after.update(*identity, |to| meter.carry(word, to, now));
        }
        for (Named { identity, meter, .. }, cell) in &before.0 {
            if after.get(*identity).is_none()
                && let Some(cell) = cell.word()
            {
                let word = cell.swap(0, Ordering::SeqCst);
                let carry = |to| meter.carry(word, to, now);
                // Where there is no place for it, it is as crowded as any other.
                let _ = self.slab.update(*identity, meter.mark(), now, carry);
            }
        }
    }
}

impl Meter {
    /// What a word holds, added to another of the same count.
    fn carry(&self, from: u64, to: u64, now: Now) -> Step {
        match self.kind() {
            Kind::Fixed { .. } => {
                let spent = self.step(from, Hits::Add(0), now).taken.before;
                self.step(to, Hits::Add(spent), now)
            }
            // The later of two times is the emptier bucket.
            Kind::Bucket { .. } | Kind::Sliding { .. } => {
                let store = (to == 0 && from != 0).then_some(from);
                Step { store, ..self.step(to, Hits::Add(0), now) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use envoy_types::pb::envoy::{
        extensions::common::ratelimit::v3::RateLimitDescriptor,
        service::ratelimit::v3::{RateLimitRequest, rate_limit_response::Code},
    };
    use weir_common::window::{self, Window};

    use super::*;
    use crate::quota::{Bounds, Decision, Settings, config};

    const NOW: Now =
        Now { monotonic_ns: 9_000_000_000_000, realtime_ns: 1_700_000_000_000_000_000 };
    const FILE: &str = "
domain: shop
descriptors:
  - key: user
    rate_limit: { unit: minute, requests_per_unit: 10 }
    descriptors:
      - key: deep
  - key: free
    rate_limit: { unlimited: true }
";

    fn quotas() -> Quotas {
        let quotas = Quotas::new(Bounds { counts: 1000, series: 10 });
        let source = config::Source { file: "shop.yaml".to_owned(), text: FILE.to_owned() };
        let configuration = config::read(&[source]).unwrap();
        quotas.apply(&configuration, Settings::default()).unwrap();
        quotas
    }

    fn user(name: &str) -> Vec<(String, String)> {
        vec![("user".to_owned(), name.to_owned())]
    }

    fn is_admitted(quotas: &Quotas, name: &str) -> bool {
        let entry = |(key, value)| Entry { key, value };
        let entries = user(name).into_iter().map(entry).collect();
        let request = RateLimitRequest {
            domain: "shop".to_owned(),
            descriptors: vec![RateLimitDescriptor { entries, ..Default::default() }],
            hits_addend: 0,
        };
        match quotas.decide(&request, &Caller::default(), NOW).unwrap() {
            Decision::Ready(response) => response.overall_code == Code::Ok as i32,
            Decision::Waiting(_) => panic!("there is no store"),
        }
    }

    impl Cell for AtomicU64 {
        fn word(&self) -> Option<&AtomicU64> {
            Some(self)
        }
    }

    #[test]
    fn a_request_and_a_connection_spend_one_budget() {
        let quotas = quotas();
        let cell = Arc::new(AtomicU64::new(0));
        let named = quotas.named("shop", &user("ann"), "").unwrap();
        let Engine::Fixed = named.meter.engine else { panic!("{named:?}") };
        // Three requests before anybody knew of connections.
        assert!((0..3).all(|_| is_admitted(&quotas, "ann")));
        quotas.share(vec![(named.clone(), Arc::clone(&cell) as Arc<dyn Cell>)], NOW);
        // What the kernel does for a SYN.
        let window = Window::at(NOW.realtime_s(), 60);
        let connect = || window::hit(&*cell, window, 1).unwrap().after <= 10;
        let admitted = thread::scope(|scope| {
            let connections = scope.spawn(|| (0..50).filter(|_| connect()).count());
            let requests = (0..50).filter(|_| is_admitted(&quotas, "ann")).count();
            connections.join().unwrap() + requests
        });
        assert_eq!(admitted, 7);
        assert!(is_admitted(&quotas, "bob"));
        // Given up, it goes on from where it was.
        quotas.share(Vec::new(), NOW);
        assert!(!is_admitted(&quotas, "ann"));
    }

    #[test]
    fn what_is_shared_again_is_not_counted_twice() {
        let quotas = quotas();
        let cell: Arc<dyn Cell> = Arc::new(AtomicU64::new(0));
        let named = quotas.named("shop", &user("ann"), "").unwrap();
        assert!((0..4).all(|_| is_admitted(&quotas, "ann")));
        for _ in 0..3 {
            quotas.share(vec![(named.clone(), Arc::clone(&cell))], NOW);
            quotas.share(vec![(named.clone(), Arc::clone(&cell))], NOW);
            quotas.share(Vec::new(), NOW);
        }
        assert_eq!((0..10).filter(|_| is_admitted(&quotas, "ann")).count(), 6);
    }

    #[test]
    fn what_connections_cannot_spend_from_is_said() {
        let quotas = quotas();
        let entries = |key: &str| vec![(key.to_owned(), "x".to_owned())];
        assert_eq!(quotas.named("none", &user("ann"), ""), Err(NotNamed::UnknownDomain));
        assert_eq!(quotas.named("shop", &entries("other"), ""), Err(NotNamed::NoLimit));
        assert_eq!(quotas.named("shop", &entries("free"), ""), Err(NotNamed::NoLimit));
        let empty = Quotas::default();
        assert_eq!(empty.named("shop", &user("ann"), ""), Err(NotNamed::NothingLoaded));
    }
}
