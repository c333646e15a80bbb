//! Rate limit requests, under the names that envoyproxy/ratelimit's Prometheus exporter uses
//! (`src/stats/prom/default_mapper.yaml`), so that its dashboards and alerts go on working.
//!
//! Those names do not end as OpenMetrics wants a counter to (`_total`), so their type is `unknown`:
//! samples then have the bare name, and `rate()` does not mind.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, NoLabelSet},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};

use super::{
    exposition::Page,
    labels::{Denied, ErrorType, Method, Question, Quota},
};
use crate::rls::view::{Fleet, Rls};

/// One scrape.
#[derive(Debug)]
pub(super) struct Requests {
    rls: Rls,
}

impl Requests {
    pub(super) const fn new(rls: Rls) -> Self {
        Self { rls }
    }
}

/// The statistics of each limit.
const OF_LIMITS: [(&str, &str); 8] = [
    ("total_hits", "Hits that were asked for."),
    ("over_limit", "Hits above the limit."),
    ("near_limit", "Hits between the near limit and the limit."),
    ("within_limit", "Hits that were admitted."),
    ("over_limit_with_local_cache", "Hits that were refused without asking the store."),
    ("shadow_mode", "Hits above the limit that were let through in shadow."),
    ("total_negative_hits", "Hits that were given back."),
    ("crowded", "Hits that had no count of their own, because the table was full."),
];

const METHOD: Method = Method { grpc_method: "ShouldRateLimit" };

impl Collector for Requests {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.of_limits(&mut page)?;
        self.of_the_service(&mut page)?;
        self.latency(&mut page)?;
        self.own(&mut page)
    }
}

impl Requests {
    fn of_limits(&self, page: &mut Page<'_>) -> fmt::Result {
        for (statistic, help) in OF_LIMITS {
            let rows = self.rls.series.iter().map(|series| {
                // The original's mapper knows two levels; what is deeper is part of the second.
                let mut levels = series.levels.iter().map(String::as_str);
                let key1 = levels.next().unwrap_or_default().to_owned();
                let key2 = levels.collect::<Vec<_>>().join(".");
                let labels = Quota { domain: series.domain.clone(), key1, key2 };
                (labels, series.counts.get(statistic).copied().unwrap_or_default())
            });
            let name = format!("ratelimit_service_rate_limit_{statistic}");
            unknown(page, &name, help, rows)?;
        }
        Ok(())
    }

    fn of_the_service(&self, page: &mut Page<'_>) -> fmt::Result {
        let count = |name: &str| self.rls.service.get(name).copied().unwrap_or_default();
        unknown(
            page,
            "ratelimit_service_total_requests",
            "Requests that were answered, with an answer or an error.",
            [(METHOD, self.rls.outcomes.values().sum())],
        )?;
        let errors = ["redis_error", "service_error", "permission_denied"];
        unknown(
            page,
            "ratelimit_service_should_rate_limit_error",
            "Requests without a decision.",
            errors.map(|err_type| {
                let count = count(&format!("call.should_rate_limit.{err_type}"));
                (ErrorType { err_type }, count)
            }),
        )?;
        for (name, statistic, help) in [
            ("config_load_success", "config_load_success", "Configurations that were taken."),
            ("config_load_error", "config_load_error", "Configurations that were not."),
            (
                "global_shadow_mode",
                "global_shadow_mode",
                "Requests over a limit that global shadow mode let through.",
            ),
            (
                "rate_limit_domain_not_found",
                "rate_limit.domain_not_found",
                "Descriptors of domains that nobody knows.",
            ),
        ] {
            let name = format!("ratelimit_service_{name}");
            let metric = page.0.encode_descriptor(&name, help, None, MetricType::Unknown)?;
            ConstGauge::new(count(statistic)).encode(metric)?;
        }
        Ok(())
    }

    fn latency(&self, page: &mut Page<'_>) -> fmt::Result {
        let took = &self.rls.took;
        let count = took.buckets.iter().map(|(_, count)| count).sum();
        let buckets: Vec<_> = (took.buckets.iter())
            .map(|(bound, count)| (bound.unwrap_or(f64::MAX), *count))
            .collect();
        let mut metric = page.0.encode_descriptor(
            "ratelimit_service_response_time",
            "From a request that is decoded to its answer.",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        metric.encode_family(&METHOD)?.encode_histogram::<NoLabelSet>(
            took.sum_seconds,
            count,
            &buckets,
            None,
        )
    }

    fn own(&self, page: &mut Page<'_>) -> fmt::Result {
        let rls = &self.rls;
        page.gauge(
            "weir_rls_healthy",
            "1 while health checks of the rate limit service pass.",
            u64::from(rls.healthy),
        )?;
        page.seconds(
            "weir_rls_config_loaded_timestamp",
            "When the quotas that hold were read, since 1970.",
            rls.loaded_at,
        )?;
        page.gauge(
            "weir_rls_config_problems",
            "What is wrong with the quotas that were read last; what was read before holds.",
            rls.problems.len() as u64,
        )?;
        page.counters(
            "weir_rls_requests",
            "Rate limit requests, by what became of them.",
            rls.outcomes
                .iter()
                .map(|(outcome, count)| (Question { outcome: outcome.clone() }, *count)),
        )?;
        page.counters(
            "weir_rls_denied",
            "Rate limit requests of callers who may not ask about the domain.",
            rls.denied.iter().map(|denied| {
                let labels =
                    Denied { domain: denied.domain.clone(), caller: denied.caller.clone() };
                (labels, denied.count)
            }),
        )?;
        page.gauge("weir_rls_live_counts", "Counts of quotas that live now.", rls.live_counts)?;
        page.gauge(
            "weir_rls_live_counts_capacity",
            "Counts of quotas that can live at once.",
            rls.live_counts_capacity,
        )?;
        page.gauge(
            "weir_rls_certificate_problems",
            "1 while certificates cannot be used as they are written; those of before hold.",
            u64::from(rls.certificates.is_some()),
        )?;
        if let Some(xds) = &rls.xds {
            page.gauge(
                "weir_rls_xds_connected",
                "1 while there is a connection to the server that sends quotas.",
                u64::from(xds.connected),
            )?;
        }
        match &rls.fleet {
            Some(fleet) => self::fleet(page, fleet),
            None => Ok(()),
        }
    }
}

/// Quotas of the fleet and their store.
fn fleet(page: &mut Page<'_>, fleet: &Fleet) -> fmt::Result {
    let up = u64::from(fleet.store == "up");
    page.gauge("weir_fleet_store_up", "1 while the fleet's store answers in time.", up)?;
    page.counter("weir_fleet_store_commands", "Commands sent to the store.", fleet.commands)?;
    page.counter(
        "weir_fleet_store_failures",
        "Batches and connections that failed.",
        fleet.failures,
    )?;
    page.gauge("weir_fleet_quotas", "Quotas that this node spends from.", fleet.quotas)?;
    page.counter(
        "weir_fleet_stranded_hits",
        "Hits leased whose window ended before they were spent.",
        fleet.stranded,
    )?;
    page.counter(
        "weir_fleet_overshoot_hits",
        "Hits admitted without the store that turned out to exceed their limit.",
        fleet.overshoot,
    )?;
    page.counter("weir_fleet_assumed_hits", "Hits admitted without the store.", fleet.assumed)?;
    page.gauge(
        "weir_fleet_assumed_share",
        "What this node may admit in a window without the store, over all quotas.",
        fleet.assumed_share,
    )?;
    page.seconds(
        "weir_fleet_lease_age",
        "Age of the oldest lease that is not spent.",
        fleet.lease_age,
    )
}

/// A family whose samples have its bare name.
fn unknown<L: EncodeLabelSet + Ord>(
    page: &mut Page<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut sums = BTreeMap::<L, u64>::new();
    for (labels, count) in rows {
        let sum = sums.entry(labels).or_default();
        *sum = sum.wrapping_add(count);
    }
    let mut metric = page.0.encode_descriptor(name, help, None, MetricType::Unknown)?;
    // A gauge's sample is the bare name and a number, which is all that an unknown has.
    sums.iter().try_for_each(|(labels, sum)| metric.encode_family(labels)?.encode_gauge(sum))
}
