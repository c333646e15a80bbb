//! Which quotas of the fleet this node spends from, for those who decide.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use super::{leaser::Line, node::QuotaId, terms::Terms};
use crate::quota::{identity::Identity, store::Question};

const SHARDS: usize = 64;
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

type Shard = HashMap<Name, Arc<Quota>>;

/// The directory. Reading takes a shard's lock for a look; only a new quota writes.
#[derive(Debug)]
pub(super) struct Directory(Vec<RwLock<Shard>>);

impl Directory {
    pub(super) fn new() -> Self {
        Self((0..SHARDS).map(|_| RwLock::default()).collect())
    }

    fn shard(&self, name: &Name) -> &RwLock<Shard> {
        // The identity is a keyed hash already.
        &self.0[name.identity.place() as usize % SHARDS]
    }

    pub(super) fn get(&self, name: &Name) -> Option<Arc<Quota>> {
        self.shard(name).read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(super) fn get_or(&self, name: Name, make: impl FnOnce() -> Quota) -> Arc<Quota> {
        let mut shard = self.shard(&name).write().unwrap_or_else(PoisonError::into_inner);
        shard.entry(name).or_insert_with(|| Arc::new(make())).clone()
    }

    /// Puts a quota in the place of one of its name.
    pub(super) fn replace(&self, quota: Arc<Quota>) -> Option<Arc<Quota>> {
        let mut shard = self.shard(&quota.name).write().unwrap_or_else(PoisonError::into_inner);
        shard.insert(quota.name, quota)
    }

    pub(super) fn remove(&self, name: &Name) {
        self.shard(name).write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}
