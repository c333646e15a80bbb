//! The decision about a request: find the rules, spend, answer.

use std::sync::Arc;

use envoy_types::pb::envoy::{
    extensions::common::ratelimit::v3::RateLimitDescriptor,
    service::ratelimit::v3::{RateLimitRequest, RateLimitResponse},
};
use smallvec::SmallVec;

use super::{
    Now, Quotas,
    caller::Caller,
    engine::{Hits, Meter, Taken},
    identity::Identity,
    model::Scope,
    refused::Refused,
    rules::{Domain, Entry, Path, Rule, Rules},
    store::{Ask, Asking, Question, Store},
    unit::Unit,
};

/// What came of a request.
#[derive(Debug)]
pub enum Decision {
    /// It is decided.
    Ready(RateLimitResponse),
    /// The store has to be asked: await it.
    Waiting(Waiting),
}

/// What is known of one descriptor.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    pub(super) found: Found,
    /// The name of its count, without the kind.
    pub(super) name: Identity,
    pub(super) hits: Hits,
    /// Another limit of the request replaces this one.
    pub(super) is_replaced: bool,
    /// What holds; of several limits the one that holds most.
    pub(super) taken: Option<Taken>,
    /// Which of the rule's limits that is.
    pub(super) meter: usize,
    /// There was no place for its count.
    pub(super) is_crowded: bool,
}

/// What was found for a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing limits it.
    Nothing,
    /// A rule, by number.
    Rule(u32, Path),
    /// The limit in the request itself.
    Override { meter: Meter, unit: Unit },
}

/// Descriptors that are judged without allocating.
pub(super) type Judgements = SmallVec<[Judged; 10]>;

impl Quotas {
    /// Decides about a request: matches every descriptor, counts, and says whether any limit is
    /// exceeded. All counts are taken even if one is over its limit, as the original does, unless
    /// the settings say otherwise.
    pub fn decide(
        &self,
        request: &RateLimitRequest,
        caller: &Caller,
        now: Now,
    ) -> Result<Decision, Refused> {
        let decided = self.try_decide(request, caller, now);
        if let Err(refused) = &decided {
            self.service.refused(refused);
        }
        decided
    }

    fn try_decide(
        &self,
        request: &RateLimitRequest,
        caller: &Caller,
        now: Now,
    ) -> Result<Decision, Refused> {
        if request.domain.is_empty() {
            return Err(Refused::EmptyDomain);
        }
        if request.descriptors.is_empty() {
            return Err(Refused::NoDescriptors);
        }
        let rules = self.rules.load();
        let rules = rules.as_ref().ok_or(Refused::NothingLoaded)?;
        let Some(domain) = rules.domain(&request.domain) else {
            self.service.domain_not_found.add(request.descriptors.len() as u64);
            let found: Judgements = request.descriptors.iter().map(|_| Judged::nothing()).collect();
            return Ok(Decision::Ready(self.answer(rules, None, request, &found)));
        };
        if !domain.access.permits(caller) {
            return Err(Refused::PermissionDenied { domain: request.domain.clone() });
        }
        let mut judged = Judgements::default();
        for (index, descriptor) in request.descriptors.iter().enumerate() {
            judged.push(self.find(rules, domain, request, (index, descriptor), caller)?);
        }
        replace(rules, &mut judged);
        if rules.settings.stop_when_over {
            self.spare(rules, &mut judged, now);
        }
        let mut questions = Vec::new();
        for (index, judged) in judged.iter_mut().enumerate() {
            let Some(descriptor) = request.descriptors.get(index) else { continue };
            self.spend((rules, domain), judged, (index, descriptor), now, &mut questions);
        }
        match self.store.get().filter(|_| !questions.is_empty()) {
            None => Ok(Decision::Ready(self.answer(rules, Some(domain), request, &judged))),
            Some(store) => {
                let (rules, request) = (Arc::clone(rules), request.clone());
                let judged = judged.into_vec();
                Ok(Decision::Waiting(Waiting::new(store, questions, rules, request, judged, now)))
            }
        }
    }

    /// Takes from all counts of one descriptor, or notes what the store has to be asked.
    fn spend(
        &self,
        (rules, domain): (&Rules, &Domain),
        judged: &mut Judged,
        (index, descriptor): (usize, &RateLimitDescriptor),
        now: Now,
        questions: &mut Vec<(Place, Question)>,
    ) {
        if judged.is_replaced {
            return;
        }
        let (id, path) = match judged.found {
            Found::Nothing => return,
            Found::Override { meter, unit } => {
                let overflow = domain.overflow.get(unit as usize);
                return self.take(judged, (0, &meter), overflow.map(|overflow| &**overflow), now);
            }
            Found::Rule(id, path) => (id, path),
        };
        let Some(rule) = rules.rule(id) else { return };
        let store = self.store.get().filter(|_| rule.scope == Scope::Fleet);
        for (number, meter) in rule.meters.iter().enumerate() {
            let Some(store) = store else {
                self.take(judged, (number, meter), Some(&rule.overflow), now);
                continue;
            };
            let ask = Ask {
                identity: judged.name.of_kind(meter.kind()),
                meter: *meter,
                rule,
                hits: judged.hits,
                rules,
                domain: &domain.name,
                entries: &descriptor.entries,
                path: &path,
            };
            match store.take(&ask, now) {
                Some(taken) => judged.add(number, taken),
                None => {
                    let place = Place { descriptor: index, meter: number };
                    questions.push((place, ask.question()));
                }
            }
        }
    }

    /// What one descriptor asks for, and what was found for it.
    fn find(
        &self,
        rules: &Rules,
        domain: &Domain,
        request: &RateLimitRequest,
        (index, descriptor): (usize, &RateLimitDescriptor),
        caller: &Caller,
    ) -> Result<Judged, Refused> {
        let hits = match &descriptor.hits_addend {
            Some(hits) => hits.value,
            None => u64::from(request.hits_addend).max(1),
        };
        if let Some(most) = domain.access.max_hits_addend.filter(|most| hits > *most) {
            return Err(Refused::TooManyHits { descriptor: index, hits, most });
        }
        let hits = if descriptor.is_negative_hits { Hits::GiveBack(hits) } else { Hits::Add(hits) };
        let mut judged = Judged { hits, ..Judged::nothing() };
        if let Some(limit) = &descriptor.limit {
            let unit = Unit::from_proto(limit.unit)
                .ok_or(Refused::UnknownUnit { descriptor: index, unit: limit.unit })?;
            let meter = Meter::fixed(limit.requests_per_unit, unit.seconds());
            judged.found = Found::Override { meter, unit };
            let mut name = self.keys.start();
            name.text(&domain.name);
            name.beside("");
            for entry in &descriptor.entries {
                name.entry(&entry.key, &entry.value);
            }
            judged.name = name.finish();
        } else if let Some((id, path)) = rules.find(domain, &descriptor.entries) {
            judged.found = Found::Rule(id, path);
            let Some(rule) = rules.rule(id) else { return Ok(judged) };
            if rule.meters.is_empty() {
                return Ok(judged);
            }
            let entries = &descriptor.entries;
            judged.name = self.name_of(rules, domain, rule, &path, entries, caller);
        }
        Ok(judged)
    }

    /// The name of a rule's count for these entries.
    pub(super) fn name_of(
        &self,
        rules: &Rules,
        domain: &Domain,
        rule: &Rule,
        path: &Path,
        entries: &[Entry],
        caller: &Caller,
    ) -> Identity {
        let mut name = self.keys.start();
        name.text(&domain.name);
        name.beside("");
        for (index, entry) in entries.iter().enumerate() {
            name.entry(&entry.key, rules.counted_value(path, index, entry));
        }
        if rule.scope == Scope::Workload {
            caller.name(&mut name);
        }
        name.finish()
    }

    fn take(
        &self,
        judged: &mut Judged,
        (number, meter): (usize, &Meter),
        overflow: Option<&super::overflow::Overflow>,
        now: Now,
    ) {
        let kind = meter.kind();
        let step = |word| meter.step(word, judged.hits, now);
        let shared = self.shared.load();
        let shared = shared.as_ref().map(|shared| shared.update(judged.name.of_kind(kind), step));
        if let Some(Some(taken)) = shared {
            return judged.add(number, taken);
        }
        let taken = match self.slab.update(judged.name.of_kind(kind), meter.mark(), now, step) {
            Ok(taken) => taken,
            Err(super::slab::Crowded) => {
                judged.is_crowded = true;
                match overflow {
                    Some(overflow) => overflow.update(meter, (self.slab.tariffs(), now), step),
                    None => step(0).taken,
                }
            }
        };
        judged.add(number, taken);
    }

    /// If any hits would be over their limit, those count and all others only ask. Between this look
    /// and the counting others may count: the original has the same gap.
    fn spare(&self, rules: &Rules, judged: &mut Judgements, now: Now) {
        let is_over = |judged: &Judged| {
            let would_be_over = |meter: &Meter| {
                let identity = judged.name.of_kind(meter.kind());
                let shared = self.shared.load();
                let word = shared.as_ref().and_then(|shared| shared.word(identity));
                let word = word.or_else(|| self.slab.word(identity, meter.mark())).unwrap_or(0);
                meter.step(word, judged.hits, now).taken.over
            };
            !judged.is_replaced
                && match &judged.found {
                    Found::Nothing => false,
                    Found::Override { meter, .. } => would_be_over(meter),
                    Found::Rule(id, _) => {
                        rules.rule(*id).is_some_and(|rule| rule.meters.iter().any(would_be_over))
                    }
                }
        };
        if !judged.iter().any(is_over) {
            return;
        }
        for judged in judged.iter_mut() {
            if !is_over(judged) && matches!(judged.hits, Hits::Add(_)) {
                judged.hits = Hits::Add(0);
            }
        }
    }
}

/// Drops limits whose name stands in another's `replaces`.
fn replace(rules: &Rules, judged: &mut Judgements) {
    let rule = |judged: &Judged| match judged.found {
        Found::Rule(id, _) => rules.rule(id),
        Found::Nothing | Found::Override { .. } => None,
    };
    if judged.iter().filter_map(rule).all(|rule| rule.replaces.is_empty()) {
        return;
    }
    let is_replaced = |candidate: &Judged| {
        let name = rule(candidate).and_then(|rule| rule.name);
        name.is_some_and(|name| {
            judged.iter().filter_map(rule).any(|rule: &Rule| rule.replaces.contains(&name))
        })
    };
    let replaced: SmallVec<[bool; 10]> = judged.iter().map(is_replaced).collect();
    for (judged, is_replaced) in judged.iter_mut().zip(replaced) {
        judged.is_replaced = is_replaced;
    }
}

impl Judged {
    fn nothing() -> Self {
        Self {
            found: Found::Nothing,
            name: Identity::NONE,
            hits: Hits::Add(0),
            is_replaced: false,
            taken: None,
            meter: 0,
            is_crowded: false,
        }
    }

    /// Notes what one limit says. What is over counts for more than what is not, then what has least
    /// left.
    fn add(&mut self, meter: usize, taken: Taken) {
        let key = |taken: &Taken| (!taken.over, taken.remaining());
        if self.taken.is_none_or(|known| key(&taken) < key(&known)) {
            self.taken = Some(taken);
            self.meter = meter;
        }
    }
}

/// Which limit of which descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    descriptor: usize,
    meter: usize,
}

/// A decision that the store has to be asked for.
pub struct Waiting {
    asking: Asking,
    /// What each answer is for.
    places: Vec<Place>,
    rules: Arc<Rules>,
    request: RateLimitRequest,
    judged: Vec<Judged>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("request", &self.request).finish_non_exhaustive()
    }
}

impl Waiting {
    fn new(
        store: &Arc<dyn Store>,
        questions: Vec<(Place, Question)>,
        rules: Arc<Rules>,
        request: RateLimitRequest,
        judged: Vec<Judged>,
        now: Now,
    ) -> Self {
        let (places, questions) = questions.into_iter().unzip();
        Self { asking: store.ask(questions, now), places, rules, request, judged }
    }

    /// Waits for the store, and answers.
    pub async fn finish(mut self, quotas: &Quotas) -> Result<RateLimitResponse, Refused> {
        let answers = self.asking.await;
        let mut answers = answers.into_iter();
        for place in self.places {
            let answer = answers.next();
            let cannot = |why| {
                let refused = Refused::CannotDecide { why };
                quotas.service.refused(&refused);
                refused
            };
            let answer =
                answer.ok_or_else(|| cannot("the store left a question open".to_owned()))?;
            let taken = answer.map_err(|no_answer| cannot(no_answer.0))?;
            if let Some(judged) = self.judged.get_mut(place.descriptor) {
                judged.add(place.meter, taken);
            }
        }
        let domain = self.rules.domain(&self.request.domain);
        let judged = &self.judged;
        Ok(quotas.answer(&self.rules, domain, &self.request, judged))
    }
}
