//! What was counted, for metrics. Series stand beside the rules and outlive a reload.
//!
//! A rule has one series, named by its path. Where the name depends on values of requests
//! (`detailed_metric`, `value_to_metric`, limits in requests), there could be any number: so many are
//! kept, and what comes later is counted in a series that stands for all others of the domain.

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use super::identity::Identity;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts so many.
    pub fn add(&self, number: u64) {
        // Only the sum matters, never its order among other memory. Most counters of a decision have
        // nothing to add, and a write would take the cache line from others.
        if number > 0 {
            self.0.fetch_add(number, Ordering::Relaxed);
        }
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the original counts for each limit, under its names (`src/stats/manager_impl.go`). One cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Counts {
    /// Hits asked for.
    pub total_hits: Counter,
    /// Hits above the limit.
    pub over_limit: Counter,
    /// Hits between the near limit and the limit.
    pub near_limit: Counter,
    /// Hits admitted.
    pub within_limit: Counter,
    /// Hits refused without asking the store.
    pub over_limit_with_local_cache: Counter,
    /// Hits above the limit that were let through in shadow.
    pub shadow_mode: Counter,
    /// Hits given back.
    pub total_negative_hits: Counter,
    /// Hits decided by the rule's shared count, because there was no place for their own.
    pub crowded: Counter,
}

impl Counts {
    /// All of them, by the name of the statistic.
    pub fn all(&self) -> [(&'static str, &Counter); 8] {
        [
            ("total_hits", &self.total_hits),
            ("over_limit", &self.over_limit),
            ("near_limit", &self.near_limit),
            ("within_limit", &self.within_limit),
            ("over_limit_with_local_cache", &self.over_limit_with_local_cache),
            ("shadow_mode", &self.shadow_mode),
            ("total_negative_hits", &self.total_negative_hits),
            ("crowded", &self.crowded),
        ]
    }
}

/// Counts and their name.
#[derive(Debug)]
pub struct Series {
    /// The domain.
    pub domain: Box<str>,
    /// One text for each level: `key` or `key_value`, as the original writes it into names.
    pub levels: Box<[Box<str>]>,
    /// What was counted.
    pub counts: Counts,
}

impl Series {
    pub(super) fn new(domain: &str, levels: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let clean = |text: &str| Box::from(clean(text));
        let levels = levels.into_iter().map(|level| clean(level.as_ref())).collect();
        Self { domain: clean(domain), levels, counts: Counts::default() }
    }

    /// `domain.key_value.key`, the name in the original's statistics.
    pub fn key(&self) -> String {
        let mut key = self.domain.to_string();
        for level in &self.levels {
            key.push('.');
            key.push_str(level);
        }
        key
    }
}

/// Texts as they stand in names: `:` and `|` have a meaning in statsd, and so have the dots of an
/// IPv4 address.
fn clean(text: &str) -> String {
    let text = text.replace([':', '|'], "_");
    let mut clean = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, address, after)) = split_ipv4(rest) {
        clean.push_str(before);
        clean.push_str(&address.replace('.', "_"));
        rest = after;
    }
    clean + rest
}

/// The first run of four numbers of up to three digits with dots between them.
fn split_ipv4(text: &str) -> Option<(&str, &str, &str)> {
    let starts = (0..text.len()).filter(|at| text.is_char_boundary(*at));
    starts
        .filter_map(|start| {
            let rest = text.get(start..)?;
            let length = ipv4_length(rest)?;
            Some((text.get(..start)?, rest.get(..length)?, rest.get(length..)?))
        })
        .next()
}

fn ipv4_length(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    for part in 0..4 {
        if part > 0 {
            (bytes.get(at) == Some(&b'.')).then_some(())?;
            at += 1;
        }
        let digits =
            bytes.get(at..)?.iter().take(3).take_while(|byte| byte.is_ascii_digit()).count();
        (digits > 0).then_some(())?;
        at += digits;
    }
    Some(at)
}

/// Series named by values, found without a lock.
///
/// A table that is only ever added to, with open addressing and at most half full.
pub struct Named {
    places: Box<[Place]>,
    bound: usize,
    count: AtomicUsize,
    /// Held to add one.
    adding: Mutex<()>,
}

/// A series and the name that finds it.
type Place = OnceLock<(Identity, Arc<Series>)>;

impl std::fmt::Debug for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Named").field("bound", &self.bound).finish_non_exhaustive()
    }
}

impl Named {
    /// At most so many.
    pub fn new(bound: usize) -> Self {
        let places = (bound * 2).next_power_of_two();
        Self {
            places: (0..places).map(|_| OnceLock::new()).collect(),
            bound,
            count: AtomicUsize::new(0),
            adding: Mutex::new(()),
        }
    }

    /// The series of a name, which `make` makes at first; `others` when there are too many.
    pub fn get<'a>(
        &'a self,
        name: Identity,
        others: &'a Series,
        make: impl FnOnce() -> Series,
    ) -> &'a Series {
        if let Some(series) = self.find(name) {
            return series;
        }
        if self.count.load(Ordering::Relaxed) >= self.bound {
            return others;
        }
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = self.find(name) {
            return series;
        }
        if self.count.load(Ordering::Relaxed) >= self.bound {
            return others;
        }
        let made = Arc::new(make());
        for place in self.probe(name) {
            if place.set((name, Arc::clone(&made))).is_ok() {
                self.count.fetch_add(1, Ordering::Relaxed);
                break;
            }
        }
        self.find(name).map_or(others, |series| series)
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Series>> {
        self.places.iter().filter_map(OnceLock::get).map(|(_, series)| Arc::clone(series)).collect()
    }

    fn find(&self, name: Identity) -> Option<&Series> {
        self.probe(name)
            .map_while(OnceLock::get)
            .find(|(known, _)| *known == name)
            .map(|(_, series)| &**series)
    }

    fn probe(&self, name: Identity) -> impl Iterator<Item = &Place> {
        let mask = self.places.len() - 1;
        let start = name.high as usize & mask;
        (0..self.places.len()).filter_map(move |step| self.places.get((start + step) & mask))
    }
}
