//! Who decides quotas of scope `fleet`: the seam to whatever holds their counts.
//!
//! [`Store::take`] is called on the decision, for each fleet limit, and should nearly always answer:
//! from a lease, from remembered exhaustion, from the policy for a store that is known to be down.
//! What it leaves open is asked for in one [`Store::ask`] for the whole request, which may wait.

use std::{
    fmt::Debug,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
};

use weir_common::lease;

use super::{
    Now,
    engine::{Hits, Meter, Taken},
    identity::Identity,
    rules::{Entry, Path, Rule, Rules},
    shared::Cell,
};

/// Holds the counts of fleet quotas.
pub trait Store: Debug + Send + Sync {
    /// Decides hits at once, or leaves it to [`Self::ask`]. It must not wait, lock for long or
    /// allocate where that can be avoided.
    fn take(&self, ask: &Ask<'_>, now: Now) -> Option<Taken>;

    /// Decides what was left open, answers in the order of the questions.
    fn ask(&self, questions: Vec<Question>, now: Now) -> Asking;

    /// From here on the leases of these quotas, and of no others, lie in these words, where the kernel
    /// spends from them, too: they are leased ahead even while nobody spends. Comes back when nobody
    /// here writes to words that were given up; it may wait for a moment. `away` is told whether the
    /// store does not answer: 1, or 0.
    fn hold(&self, held: Vec<Held>, away: Arc<dyn Cell>, now: Now);

    /// Asks for a hit of one of these, and comes back when the words were changed or nothing can be
    /// asked.
    fn want(&self, identity: Identity) -> Wanted;

    /// The lease of one of these runs low.
    fn low(&self, identity: Identity);
}

/// Where a lease lies that the kernel spends from, too.
pub trait Words: Send + Sync + Debug {
    /// The words of a [`lease::Cell`].
    fn words(&self) -> &[AtomicU64; lease::WORDS];
}

/// A quota whose lease lies elsewhere.
#[derive(Clone, Debug)]
pub struct Held {
    /// What it is.
    pub question: Question,
    /// Where its lease lies.
    pub words: Arc<dyn Words>,
}

/// The end of waiting.
pub type Wanted = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Answers that take a while.
pub type Asking = Pin<Box<dyn Future<Output = Vec<Result<Taken, NoAnswer>>> + Send>>;

/// The store did not answer, and the rule's policy leaves nothing to decide by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoAnswer(pub String);

/// Hits on one limit of a fleet quota.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Names the count in this process: equal names are equal counts.
    pub identity: Identity,
    /// The limit.
    pub meter: Meter,
    /// The rule that it is a limit of: consistency and failure policy.
    pub rule: &'a Rule,
    /// What to do.
    pub hits: Hits,
    pub(super) rules: &'a Rules,
    pub(super) domain: &'a str,
    pub(super) entries: &'a [Entry],
    pub(super) path: &'a Path,
}

/// An [`Ask`] that can be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Names the count in this process.
    pub identity: Identity,
    /// The count's name in the fleet, but for the start of the window.
    pub prefix: String,
    /// The limit.
    pub meter: Meter,
    /// What to do.
    pub hits: Hits,
    /// How exact.
    pub consistency: super::model::Consistency,
    /// What holds without an answer.
    pub on_store_failure: super::model::OnStoreFailure,
}

impl Ask<'_> {
    /// The count's name in the fleet, but for the start of the window in seconds of the epoch, which
    /// is to be appended in decimal: `domain_key_value_key_value_`, byte for byte the original's
    /// (`src/limiter/cache_key.go`), so that a mixed fleet counts together.
    pub fn prefix(&self) -> String {
        let mut key = format!("{}_", self.domain);
        for (index, entry) in self.entries.iter().enumerate() {
            key.push_str(&entry.key);
            key.push('_');
            key.push_str(self.rules.counted_value(self.path, index, entry));
            key.push('_');
        }
        key
    }

    /// The same, to keep.
    pub fn question(&self) -> Question {
        Question {
            identity: self.identity,
            prefix: self.prefix(),
            meter: self.meter,
            hits: self.hits,
            consistency: self.rule.consistency,
            on_store_failure: self.rule.on_store_failure,
        }
    }
}
