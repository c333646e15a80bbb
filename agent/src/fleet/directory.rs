//! Which quotas of the fleet this node spends from, for those who decide.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use arc_swap::ArcSwapOption;

use super::{leaser::Line, node::QuotaId, terms::Terms};
use crate::quota::{identity::Identity, store::Question};

/// Places of quotas. Those of one place are looked at one after another.
const PLACES: usize = 1 << 14;
const NO_ID: u32 = u32::MAX;
/// Uses are noted to this precision: a decision does not write for nothing.
const USED_NS: u64 = 1_000_000_000;

/// One quota, as decisions see it.
#[derive(Debug)]
pub(super) struct Quota {
    pub(super) name: Name,
    pub(super) terms: Arc<Terms>,
    pub(super) line: Arc<Line>,
    used_ns: AtomicU64,
    id: AtomicU32,
}

impl Quota {
    pub(super) fn new(name: Name, terms: Terms, line: Line, now_ns: u64) -> Self {
        Self {
            name,
            terms: Arc::new(terms),
            line: Arc::new(line),
            used_ns: AtomicU64::new(now_ns),
            id: AtomicU32::new(NO_ID),
        }
    }

    pub(super) fn use_at(&self, now_ns: u64) {
        if now_ns.saturating_sub(self.used_ns.load(Relaxed)) > USED_NS {
            self.used_ns.store(now_ns, Relaxed);
        }
    }

    pub(super) fn used_ns(&self) -> u64 {
        self.used_ns.load(Relaxed)
    }

    /// Its number in the driver, if it has one. Only the driver asks.
    pub(super) fn id(&self) -> Option<QuotaId> {
        Some(self.id.load(Relaxed)).filter(|id| *id != NO_ID)
    }

    pub(super) fn set_id(&self, id: Option<QuotaId>) {
        self.id.store(id.unwrap_or(NO_ID), Relaxed);
    }
}

/// What tells quotas apart on this node. Two limits on one counter are two quotas, which lease from
/// the same counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub(super) identity: Identity,
    pub(super) limit: u32,
    pub(super) consistency: super::terms::Consistency,
    pub(super) on_failure: super::terms::OnStoreFailure,
}

impl Name {
    pub(super) const fn of(question: &Question) -> Self {
        Self {
            identity: question.identity,
            limit: question.meter.requests,
            consistency: question.consistency,
            on_failure: question.on_store_failure,
        }
    }
}

/// The quotas of one place.
type Place = Box<[Arc<Quota>]>;

/// The directory. Reading waits for nobody and takes no count of references, because every leased decision
/// does it; who writes replaces the few quotas of a place.
pub(super) struct Directory {
    places: Box<[ArcSwapOption<Place>]>,
    /// Held to write.
    writing: Mutex<()>,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").finish_non_exhaustive()
    }
}

impl Directory {
    pub(super) fn new() -> Self {
        let places = (0..PLACES).map(|_| ArcSwapOption::empty()).collect();
        Self { places, writing: Mutex::new(()) }
    }

    fn place(&self, name: &Name) -> &ArcSwapOption<Place> {
        // The identity is a keyed hash already.
        &self.places[name.identity.place() as usize % PLACES]
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a quota, if it is known.
    pub(super) fn with<T>(&self, name: &Name, look: impl FnOnce(&Arc<Quota>) -> T) -> Option<T> {
        let place = self.place(name).load();
        place.as_ref()?.iter().find(|quota| quota.name == *name).map(look)
    }

    pub(super) fn get_or(&self, name: Name, make: impl FnOnce() -> Quota) -> Arc<Quota> {
        if let Some(known) = self.with(&name, Arc::clone) {
            return known;
        }
        let _writing = self.lock();
        // Somebody else may have been faster.
        self.with(&name, Arc::clone).unwrap_or_else(|| {
            let quota = Arc::new(make());
            self.exchange(&name, Some(quota.clone()));
            quota
        })
    }

    /// Puts a quota in the place of one of its name.
    pub(super) fn replace(&self, quota: Arc<Quota>) -> Option<Arc<Quota>> {
        let _writing = self.lock();
        let name = quota.name;
        self.exchange(&name, Some(quota))
    }

    pub(super) fn remove(&self, name: &Name) {
        let _writing = self.lock();
        self.exchange(name, None);
    }

    /// Takes what has the name out, and puts another in. Only while writing.
    fn exchange(&self, name: &Name, new: Option<Arc<Quota>>) -> Option<Arc<Quota>> {
        let place = self.place(name);
        let before = place.load();
        let before = before.as_ref().map(|place| &***place).unwrap_or_default();
        let others = before.iter().filter(|quota| quota.name != *name).cloned();
        let after: Place = others.chain(new).collect();
        let old = before.iter().find(|quota| quota.name == *name).cloned();
        place.store((!after.is_empty()).then(|| Arc::new(after)));
        old
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{
        fleet::terms::{Consistency, OnStoreFailure},
        quota::identity::Keys,
    };

    fn quota(name: Name) -> Quota {
        let terms = Terms {
            stem: String::new(),
            limit: name.limit,
            unit_s: 1,
            consistency: name.consistency,
            on_failure: name.on_failure,
        };
        Quota::new(name, terms, Line::default(), 0)
    }

    fn name(identity: Identity, limit: u32) -> Name {
        let (consistency, on_failure) = (Consistency::Leased, OnStoreFailure::Local);
        Name { identity, limit, consistency, on_failure }
    }

    #[test]
    fn all_who_make_a_quota_at_once_have_the_same_and_those_beside_it_stay() {
        // One identity: one place for all of them.
        let (directory, identity) = (Directory::new(), Keys::default().start().finish());
        for limit in 0..20 {
            let name = name(identity, limit);
            let made: Vec<_> = thread::scope(|scope| {
                let make = || directory.get_or(name, || quota(name));
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(made.iter().all(|one| Arc::ptr_eq(one, &made[0])));
        }
        directory.remove(&name(identity, 7));
        let old = directory.replace(Arc::new(quota(name(identity, 8))));
        assert_eq!(old.map(|old| old.name.limit), Some(8));
        let there = |limit| directory.with(&name(identity, limit), |quota| quota.name.limit);
        assert!((0..20).all(|limit| there(limit) == (limit != 7).then_some(limit)));
        assert_eq!(there(20), None);
    }
}
