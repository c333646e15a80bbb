//! From what was judged to the response, as the original words it (`src/service/ratelimit.go`).

use envoy_types::pb::{
    envoy::{
        config::core::v3::HeaderValue,
        service::ratelimit::v3::{
            RateLimitRequest, RateLimitResponse,
            rate_limit_response::{Code, DescriptorStatus, RateLimit},
        },
    },
    google::protobuf::Duration,
};

use super::{
    Quotas,
    decide::{Found, Judged},
    engine::Taken,
    identity::Name,
    metadata,
    rules::{Domain, Entry, Path, Rule, Rules},
    series::{Counts, Series},
    settings::{HeaderNames, Settings},
    tally,
};

impl Quotas {
    /// Counts what was judged, and words it.
    pub(super) fn answer(
        &self,
        rules: &Rules,
        domain: Option<&Domain>,
        request: &RateLimitRequest,
        judged: &[Judged],
    ) -> RateLimitResponse {
        let settings = &rules.settings;
        let mut overall = Overall::default();
        let mut tightest = Tightest::default();
        let mut statuses = Vec::with_capacity(request.descriptors.len());
        for (judged, descriptor) in judged.iter().zip(&request.descriptors) {
            if let Some(domain) = domain {
                self.count(rules, domain, judged, &descriptor.entries);
            }
            let status = status(rules, judged);
            let rule = judged.rule(rules);
            let is_quota = match rule {
                Some(rule) if rule.unlimited => false,
                Some(rule) => settings.quota_mode || rule.quota_mode,
                None => settings.quota_mode,
            };
            let is_over = status.code == Code::OverLimit as i32;
            overall.add(is_over, is_quota);
            tightest.add(judged, &status, is_over && !is_quota);
            statuses.push(status);
        }
        let mut overall_code = overall.code();
        if overall_code == Code::OverLimit && settings.shadow_mode {
            self.service.global_shadow_mode.add(1);
            overall_code = Code::Ok;
        }
        let dynamic_metadata =
            settings.dynamic_metadata.then(|| metadata::of(rules, request, judged, &statuses));
        RateLimitResponse {
            overall_code: overall_code as i32,
            statuses,
            response_headers_to_add: tightest.headers(settings),
            dynamic_metadata,
            ..RateLimitResponse::default()
        }
    }

    /// Adds a decision to its series.
    fn count(&self, rules: &Rules, domain: &Domain, judged: &Judged, entries: &[Entry]) {
        let Some(taken) = &judged.taken else { return };
        let ratio = rules.settings.near_limit_ratio;
        let add = |counts: &Counts, shadow| {
            tally::count(counts, judged.hits, taken, shadow, ratio);
            counts.crowded.add(u64::from(judged.is_crowded));
        };
        match &judged.found {
            Found::Nothing => {}
            Found::Rule(id, path) => {
                let Some(rule) = rules.rule(*id) else { return };
                if rule.is_named_by_values {
                    add(
                        &self.named_series(rules, domain, rule, path, entries).counts,
                        rule.shadow_mode,
                    );
                } else {
                    add(&rule.series.counts, rule.shadow_mode);
                }
            }
            Found::Override { .. } => add(&self.override_series(domain, entries).counts, false),
        }
    }

    fn named_series<'a>(
        &'a self,
        rules: &Rules,
        domain: &'a Domain,
        rule: &Rule,
        path: &Path,
        entries: &[Entry],
    ) -> &'a Series {
        let level = |(index, entry)| rules.series_level(rule, path, index, entry);
        self.series_of(domain, || entries.iter().enumerate().map(level))
    }

    fn override_series<'a>(&'a self, domain: &'a Domain, entries: &[Entry]) -> &'a Series {
        self.series_of(domain, || {
            entries.iter().map(|entry| {
                let separator = if entry.value.is_empty() { "" } else { "_" };
                [&*entry.key, separator, &*entry.value]
            })
        })
    }

    fn series_of<'a, 'e, I: Iterator<Item = [&'e str; 3]>>(
        &'a self,
        domain: &'a Domain,
        levels: impl Fn() -> I,
    ) -> &'a Series {
        let mut name: Name = self.keys.start();
        name.text(&domain.name);
        for parts in levels() {
            name.beside("");
            parts.into_iter().for_each(|part| name.text(part));
        }
        name.beside("series");
        self.named.get(name.finish(), &domain.others, || {
            Series::new(&domain.name, levels().map(|parts| parts.concat()))
        })
    }
}

impl Judged {
    fn rule<'r>(&self, rules: &'r Rules) -> Option<&'r Rule> {
        match self.found {
            Found::Rule(id, _) if !self.is_replaced => rules.rule(id),
            _ => None,
        }
    }
}

fn status(rules: &Rules, judged: &Judged) -> DescriptorStatus {
    let ok = DescriptorStatus { code: Code::Ok as i32, ..DescriptorStatus::default() };
    let rule = judged.rule(rules);
    if rule.is_some_and(|rule| rule.unlimited) {
        return DescriptorStatus { limit_remaining: u32::MAX, ..ok };
    }
    let Some(taken) = &judged.taken else { return ok };
    let limit = match (&judged.found, rule) {
        (Found::Override { meter, unit }, _) => RateLimit {
            name: String::new(),
            requests_per_unit: meter.requests,
            unit: unit.proto() as i32,
        },
        (_, Some(rule)) => match rule.limits.get(judged.meter) {
            Some(limit) => limit.clone(),
            None => return ok,
        },
        _ => return ok,
    };
    let enforced = taken.over && !rule.is_some_and(|rule| rule.shadow_mode);
    DescriptorStatus {
        code: if enforced { Code::OverLimit } else { Code::Ok } as i32,
        current_limit: Some(limit),
        limit_remaining: taken.remaining(),
        duration_until_reset: Some(Duration { seconds: taken.reset_s.into(), nanos: 0 }),
        quota: None,
    }
}

/// Whether the request is over.
#[derive(Default)]
struct Overall {
    is_over: bool,
    quotas: usize,
    quotas_over: usize,
}

impl Overall {
    fn add(&mut self, is_over: bool, is_quota: bool) {
        if is_quota {
            self.quotas += 1;
            self.quotas_over += usize::from(is_over);
        } else {
            self.is_over |= is_over;
        }
    }

    /// Quotas only count if all of them are over.
    fn code(&self) -> Code {
        let out_of_quota = self.quotas > 0 && self.quotas_over == self.quotas;
        if self.is_over || out_of_quota { Code::OverLimit } else { Code::Ok }
    }
}

/// The limit that the headers tell: the first with least left; but the last that refuses.
#[derive(Default)]
struct Tightest {
    found: Option<(u32, Taken)>,
    refuses: bool,
}

impl Tightest {
    fn add(&mut self, judged: &Judged, status: &DescriptorStatus, refuses: bool) {
        let (Some(taken), Some(limit)) = (judged.taken, &status.current_limit) else { return };
        let remaining = status.limit_remaining;
        let is_tighter = self.found.as_ref().is_none_or(|(_, known)| remaining < known.remaining());
        if refuses || (is_tighter && !self.refuses) {
            self.found = Some((limit.requests_per_unit, taken));
            self.refuses |= refuses;
        }
    }

    fn headers(&self, settings: &Settings) -> Vec<HeaderValue> {
        let (Some(HeaderNames { limit, remaining, reset }), Some((requests, taken))) =
            (&settings.headers, &self.found)
        else {
            return Vec::new();
        };
        let header = |key: &String, value: u32| HeaderValue {
            key: key.clone(),
            value: value.to_string(),
            raw_value: Vec::new(),
        };
        vec![
            header(limit, *requests),
            header(remaining, taken.remaining()),
            header(reset, taken.reset_s),
        ]
    }
}
