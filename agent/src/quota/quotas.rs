//! The quotas of this node: rules that can be exchanged, and counts that stay.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwapOption;

use super::{
    Now,
    identity::Keys,
    model::Configuration,
    refused::Refused,
    rules::{Rules, compile},
    series::{Counter, Named, Series},
    settings::{Bounds, Settings},
    shared::Shared,
    slab::{Fill, Slab},
    store::Store,
};
use crate::policy::Problem;

/// Rules and counts.
#[derive(Debug)]
pub struct Quotas {
    pub(super) rules: ArcSwapOption<Rules>,
    /// Held by whoever exchanges the rules, or where counts lie.
    loading: Mutex<()>,
    pub(super) slab: Slab,
    /// Counts that lie elsewhere; none, nearly always.
    pub(super) shared: ArcSwapOption<Shared>,
    pub(super) keys: Keys,
    pub(super) named: Named,
    pub(super) service: Service,
    pub(super) store: OnceLock<Arc<dyn Store>>,
}

/// What was counted beside the rules.
#[derive(Debug, Default)]
pub struct Service {
    /// Configurations that were taken.
    pub config_load_success: Counter,
    /// Configurations that were not.
    pub config_load_error: Counter,
    /// Requests over a limit that global shadow mode let through.
    pub global_shadow_mode: Counter,
    /// Descriptors of domains that nobody knows.
    pub domain_not_found: Counter,
    /// Requests that could not be understood.
    pub service_error: Counter,
    /// Requests of callers who may not ask.
    pub permission_denied: Counter,
    /// Requests that the store did not decide.
    pub redis_error: Counter,
}

impl Service {
    pub(super) fn refused(&self, refused: &Refused) {
        match refused {
            Refused::PermissionDenied { .. } => &self.permission_denied,
            Refused::CannotDecide { .. } => &self.redis_error,
            Refused::EmptyDomain
            | Refused::NoDescriptors
            | Refused::NothingLoaded
            | Refused::UnknownUnit { .. }
            | Refused::TooManyHits { .. } => &self.service_error,
        }
        .add(1);
    }
}

impl Default for Quotas {
    fn default() -> Self {
        Self::new(Bounds::default())
    }
}

impl Quotas {
    /// Quotas without rules: every request is refused until there are some.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            rules: ArcSwapOption::empty(),
            loading: Mutex::new(()),
            slab: Slab::new(bounds.counts),
            shared: ArcSwapOption::empty(),
            keys: Keys::default(),
            named: Named::new(bounds.series),
            service: Service::default(),
            store: OnceLock::new(),
        }
    }

    /// Gives fleet quotas to a store, once and for all. Rules must be applied with `settings.store`.
    /// False if there is one already.
    pub fn set_store(&self, store: Arc<dyn Store>) -> bool {
        self.store.set(store).is_ok()
    }

    /// Makes rules hold where no bucket has counted yet, so that no time matters.
    pub fn apply(
        &self,
        configuration: &Configuration,
        settings: Settings,
    ) -> Result<(), Vec<Problem>> {
        self.exchange(configuration, settings, Now { monotonic_ns: 0, realtime_ns: 0 })
    }

    /// Exchanges the rules. Counts stay; buckets whose parameters change hold as many tokens as at this
    /// moment, or as many as fit. With any problem the rules stay too.
    pub fn exchange(
        &self,
        configuration: &Configuration,
        settings: Settings,
        now: Now,
    ) -> Result<(), Vec<Problem>> {
        let _loading = self.lock();
        let before = self.rules.load();
        match compile(configuration, settings, before.as_deref()) {
            Ok(mut rules) => {
                self.slab.tariffs().number(&mut rules, before.as_deref(), now);
                self.rules.store(Some(Arc::new(rules)));
                self.service.config_load_success.add(1);
                Ok(())
            }
            Err(problems) => {
                self.service.config_load_error.add(1);
                Err(problems)
            }
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a configuration that could not even be read.
    pub fn note_unreadable(&self) {
        self.service.config_load_error.add(1);
    }

    /// Whether there are rules.
    pub fn is_loaded(&self) -> bool {
        self.rules.load().is_some()
    }

    /// The rules.
    pub fn rules(&self) -> Option<Arc<Rules>> {
        self.rules.load_full()
    }

    /// What was counted beside the rules.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// What was counted for each limit: rules in the order of the configuration, then series that
    /// are named by values, then one for all others of each domain. The number of series is bounded
    /// by the configuration and [`Bounds::series`].
    pub fn series(&self) -> Vec<Arc<Series>> {
        let mut series = Vec::new();
        if let Some(rules) = &*self.rules.load() {
            let of_rules = rules.rules.iter().filter(|rule| !rule.unlimited);
            series.extend(of_rules.map(|rule| Arc::clone(&rule.series)));
            series.extend(self.named.all());
            series.extend(rules.domains.iter().map(|domain| Arc::clone(&domain.others)));
        }
        series
    }

    /// How full the table of counts is. It reads the whole table.
    pub fn fill(&self, now: Now) -> Fill {
        self.slab.fill(now)
    }
}
