//! Which metrics there are, and what of the status each of them shows.
//!
//! Rows are collected in maps before they are written: whatever the status repeats becomes one
//! series, since two with the same labels would make scrapers refuse everything.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric as _, NoLabelSet,
    },
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};
use weir_common::{
    layout::{PENDING_LINES, SOURCE_LINES},
    source, way,
};

use super::{
    Traces,
    labels::{
        Attached, Build, Condition, Decision, Edge, Fault, Kind, Limit, Node, Outcome, Uplink,
        Volume, Workload, kind_of,
    },
};
use crate::{
    app::view::{
        AuditStatus, CONDITIONS, Histogram, KubernetesStatus, LimitStatus, Status, WorkloadStatus,
    },
    datapath::VolumeCounts,
};

/// How programs may be attached to a workload.
const WORKLOAD_KINDS: [&str; 2] = ["tcx", "clsact"];
/// How a program may be attached to an uplink.
const UPLINK_KINDS: [&str; 2] = ["xdp", "xdp-generic"];

/// One scrape.
#[derive(Debug)]
pub(super) struct Exposition {
    status: Status,
    traces: Traces,
}

impl Exposition {
    pub(super) const fn new(status: Status, traces: Traces) -> Self {
        Self { status, traces }
    }
}

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.agent(&mut page)?;
        self.kubernetes(&mut page)?;
        self.workloads(&mut page)?;
        self.uplinks(&mut page)?;
        self.shields(&mut page)?;
        self.limits(&mut page)?;
        self.volumes(&mut page)?;
        self.decisions(&mut page)?;
        self.audits(&mut page)?;
        self.tables(&mut page)
    }
}

impl Exposition {
    fn agent(&self, page: &mut Page<'_>) -> fmt::Result {
        let Self { status, traces } = self;
        page.info("weir_build", "The running agent.", &Build { version: status.version.clone() })?;
        page.seconds("weir_uptime", "How long the agent has been running.", status.uptime_seconds)?;
        page.gauge(
            "weir_ready",
            "1 when every workload is decided: enforced, or listed with the reason why not.",
            u64::from(status.ready),
        )?;
        page.seconds(
            "weir_config_loaded_timestamp",
            "When the node file that holds was read, since 1970.",
            status.loaded_at,
        )?;
        page.gauge(
            "weir_config_problems",
            "Parts of the node file that do not hold, or perhaps not as meant.",
            status.problems.len() as u64,
        )?;
        let reloads = status.reloads;
        page.counters(
            "weir_config_reloads",
            "How often the node file was read.",
            [("succeeded", reloads.succeeded), ("failed", reloads.failed)]
                .map(|(result, count)| (Outcome { result }, count)),
        )?;
        page.gauge("weir_trace_streams", "Readers of /trace.", traces.open)?;
        page.counter(
            "weir_trace_skipped",
            "Sampled refusals that a reader of /trace was too slow for.",
            traces.skipped,
        )
    }

    fn kubernetes(&self, page: &mut Page<'_>) -> fmt::Result {
        let on_node = |value: fn(&KubernetesStatus) -> u64| {
            let node = |status: &KubernetesStatus| Node { node: status.node.clone() };
            self.status.kubernetes.iter().map(move |status| (node(status), value(status)))
        };
        page.gauges(
            "weir_kubernetes_pods",
            "Pods of this node that have not ended.",
            on_node(|status| status.pods),
        )?;
        page.gauges(
            "weir_kubernetes_synced",
            "1 when all pods and namespaces were listed since the agent began.",
            on_node(|status| u64::from(status.synced)),
        )?;
        page.gauges(
            "weir_kubernetes_heard",
            "0 while the API server does not answer: what was known last is enforced.",
            on_node(|status| u64::from(status.failure.is_none())),
        )?;
        page.counters(
            "weir_kubernetes_relists",
            "Lists of pods or namespaces after the first.",
            on_node(|status| status.relists),
        )?;
        page.counters(
            "weir_kubernetes_errors",
            "Requests to the API server that failed, and watches that ended with an error.",
            on_node(|status| status.errors),
        )?;
        page.counters(
            "weir_kubernetes_events_sent",
            "Events about pods and namespaces that were created.",
            on_node(|status| status.events_sent),
        )?;
        page.counters(
            "weir_kubernetes_events_lost",
            "Events that could not be created, or of which there would have been too many.",
            on_node(|status| status.events_lost),
        )?;
        page.histogram(
            "weir_kubernetes_policy",
            "From the arrival of a pod's or namespace's change to the kernel.",
            self.status.kubernetes.as_ref().map(|status| (&status.node, &status.policy_seconds)),
        )?;
        page.histogram(
            "weir_kubernetes_attach",
            "From the start of a pod's first process to its programs' attachment.",
            self.status.kubernetes.as_ref().map(|status| (&status.node, &status.attach_seconds)),
        )
    }

    fn workloads(&self, page: &mut Page<'_>) -> fmt::Result {
        let workloads = &self.status.workloads;
        page.gauges(
            "weir_workload_condition",
            "1 for the condition that a workload is in, 0 for the others.",
            workloads.iter().flat_map(|workload| {
                states(&CONDITIONS, Some(&workload.condition)).map(|(condition, is)| {
                    (Condition { workload: workload.name.clone(), condition }, is)
                })
            }),
        )?;
        page.gauges(
            "weir_attached",
            "1 for the way in which programs are attached to a workload's interface.",
            workloads.iter().flat_map(|workload| {
                states(&WORKLOAD_KINDS, workload.attached.as_deref())
                    .map(|(kind, is)| (Attached { workload: workload.name.clone(), kind }, is))
            }),
        )?;
        page.gauges(
            "weir_foreign_programs",
            "Programs of others that see a workload's packets before Weir does.",
            workloads.iter().map(|workload| (named(workload), workload.before.len() as u64)),
        )?;
        page.gauges(
            "weir_connect_hooked",
            "1 if connect() of a workload's processes fails at once where a limit would refuse it.",
            workloads.iter().filter_map(|workload| {
                Some((named(workload), u64::from(workload.connect.as_ref()?.hooked)))
            }),
        )?;
        let paused = workloads
            .iter()
            .map(|workload| (named(workload), workload.paused_seconds.unwrap_or_default()));
        page.family(
            "weir_pause_remaining",
            "Until a workload's pause ends; 0 without one.",
            Some(Unit::Seconds),
            paused.collect(),
        )
    }

    fn uplinks(&self, page: &mut Page<'_>) -> fmt::Result {
        page.gauges(
            "weir_uplink_attached",
            "1 for the way in which a program is attached to an uplink.",
            self.status.uplinks.iter().flat_map(|uplink| {
                states(&UPLINK_KINDS, uplink.attached.as_deref())
                    .map(|(kind, is)| (Uplink { interface: uplink.interface.clone(), kind }, is))
            }),
        )
    }

    fn shields(&self, page: &mut Page<'_>) -> fmt::Result {
        let up = |is_up| {
            let shields = self.status.shields.iter();
            shields.filter(|shield| shield.attached.is_some() == is_up).count() as u64
        };
        page.gauge(
            "weir_shields_up",
            "Workloads whose SYNs to others of the node XDP refuses early.",
            up(true),
        )?;
        page.gauge(
            "weir_shields_failed",
            "Workloads of which XDP should do so and cannot.",
            up(false),
        )?;
        page.counter(
            "weir_shields_raised",
            "How often a workload flooded others so that XDP was attached.",
            self.status.shields_raised,
        )
    }

    fn limits(&self, page: &mut Page<'_>) -> fmt::Result {
        page.counters(
            "weir_limit_admitted",
            "New connections that a limit had a token for.",
            self.each_counted(|limit| limit.admitted),
        )?;
        page.counters(
            "weir_limit_refused",
            "New connections that a limit refused.",
            self.each_counted(|limit| limit.refused),
        )?;
        page.counters(
            "weir_limit_shadowed",
            "New connections that a limit would have refused, were it not in shadow.",
            self.each_counted(|limit| limit.shadowed),
        )?;
        page.gauges(
            "weir_limit_shadow",
            "1 when a limit only counts by its policy.",
            self.each_limit(|limit| u64::from(limit.shadow)),
        )?;
        page.gauges(
            "weir_limit_tokens",
            "New connections that a limit would admit at once now.",
            self.some_limits(|limit| limit.tokens),
        )?;
        page.gauges(
            "weir_limit_sources_collapsed",
            "1 when one source makes most of what a limit per source counts.",
            self.some_limits(|limit| Some(u64::from(limit.sources.as_ref()?.collapsed))),
        )?;
        page.gauges(
            "weir_breaker_state",
            "Where a breaker is: 0 closed, 1 half-open, 2 open.",
            self.some_limits(|limit| {
                limit.breaker.as_ref().map(|breaker| match breaker.state.as_str() {
                    "open" => 2,
                    "half-open" => 1,
                    _ => 0,
                })
            }),
        )?;
        page.counters(
            "weir_breaker_told",
            "How often this agent opened a breaker because two other workloads' had tripped.",
            self.some_limits(|limit| limit.breaker.as_ref().map(|breaker| breaker.told_total)),
        )?;
        page.gauges(
            "weir_limit_connections",
            "Connections that are open now, of those that a limit counts; handshakes among them.",
            self.some_limits(|limit| limit.connections),
        )?;
        page.gauges(
            "weir_limit_handshakes",
            "Handshakes that are not complete now, of those that a limit counts.",
            self.some_limits(|limit| limit.handshakes),
        )
    }

    /// Bytes and packets, by limit and what became of them. What is marked passes too, so it stands
    /// apart from what adds up to all that was offered.
    fn volumes(&self, page: &mut Page<'_>) -> fmt::Result {
        page.counters(
            "weir_volume_bytes",
            "Bytes on the wire at limits of bytes and packets, by what became of them.",
            self.each_volume(|volume| {
                [volume.passed_bytes, volume.dropped_bytes, volume.shadowed_bytes]
            }),
        )?;
        page.counters(
            "weir_volume_packets",
            "Packets on the wire at limits of bytes and packets, by what became of them.",
            self.each_volume(|volume| {
                [volume.passed_packets, volume.dropped_packets, volume.shadowed_packets]
            }),
        )?;
        let marked = |(workload, limit): (&WorkloadStatus, &LimitStatus)| {
            Some((Limit::new(workload, limit), limit.volume?.marked_packets))
        };
        page.counters(
            "weir_volume_marked_packets",
            "Packets that a limit of bytes or packets marked (ECN), of those that passed.",
            self.all_limits().filter_map(marked),
        )
    }

    fn each_volume(
        &self,
        value: fn(VolumeCounts) -> [u64; 3],
    ) -> impl Iterator<Item = (Volume, u64)> {
        self.all_limits().flat_map(move |(workload, limit)| {
            let counts = limit.volume.map(value).into_iter().flatten();
            counts.zip(["pass", "drop", "shadow"]).map(move |(count, verdict)| {
                (Volume { limit: Limit::new(workload, limit), verdict }, count)
            })
        })
    }

    fn all_limits(&self) -> impl Iterator<Item = (&WorkloadStatus, &LimitStatus)> {
        let workloads = self.status.workloads.iter();
        workloads.flat_map(|workload| workload.limits.iter().map(move |limit| (workload, limit)))
    }

    fn each_limit(&self, value: fn(&LimitStatus) -> u64) -> impl Iterator<Item = (Limit, u64)> {
        self.all_limits().map(move |(workload, limit)| (Limit::new(workload, limit), value(limit)))
    }

    /// Two limits that are counted together are one row, so that a sum counts nothing twice. Limits of
    /// bytes and packets count no connections.
    fn each_counted(&self, value: fn(&LimitStatus) -> u64) -> impl Iterator<Item = (Limit, u64)> {
        self.all_limits()
            .filter(|(_, limit)| limit.counted_with.is_none() && limit.volume.is_none())
            .map(move |(workload, limit)| (Limit::new(workload, limit), value(limit)))
    }

    /// Only the limits that have the value.
    fn some_limits(
        &self,
        value: fn(&LimitStatus) -> Option<u64>,
    ) -> impl Iterator<Item = (Limit, u64)> {
        self.all_limits()
            .filter_map(move |(workload, limit)| Some((Limit::new(workload, limit), value(limit)?)))
    }

    fn decisions(&self, page: &mut Page<'_>) -> fmt::Result {
        let mut decisions = Vec::new();
        let mut faults = Vec::new();
        let mut edges = Vec::new();
        // From the start, so that the first loss is a change that an alert can see.
        let mut lost: Vec<_> =
            self.status.workloads.iter().map(|workload| (named(workload), 0)).collect();
        let mut shielded = Vec::new();
        for (decision, count) in self.all_decisions() {
            match kind_of(&decision.reason) {
                Kind::Decision => decisions.push((decision, count)),
                Kind::Fault => {
                    let Decision { workload, hook, direction, reason, .. } = decision;
                    faults.push((Fault { workload, hook, direction, reason }, count));
                }
                Kind::LostEvent => lost.push((Workload { workload: decision.workload }, count)),
                Kind::Shielded => shielded.push((Workload { workload: decision.workload }, count)),
                Kind::Edge => {
                    let Decision { workload, hook, direction, reason, .. } = decision;
                    let change = reason.trim_start_matches("breaker_").to_owned();
                    edges.push((Edge { workload, hook, direction, change }, count));
                }
            }
        }
        page.counters("weir_decisions", "Packets judged, by what was decided and why.", decisions)?;
        page.counters(
            "weir_faults",
            "Packets whose decision could not be carried out as it was made, by what was missing.",
            faults,
        )?;
        page.counters("weir_breaker_changes", "Breakers that opened, tried and closed.", edges)?;
        page.counters(
            "weir_shielded",
            "SYNs of a workload that XDP refused at its own end, on behalf of who they were addressed to.",
            shielded,
        )?;
        page.counters(
            "weir_events_lost",
            "Sampled refusals that were counted but not told, because the event ring was full.",
            lost,
        )
    }

    fn all_decisions(&self) -> impl Iterator<Item = (Decision, u64)> {
        self.status.workloads.iter().flat_map(|workload| {
            workload.decisions.iter().flat_map(move |(place, row)| {
                row.iter().filter_map(move |(what, count)| {
                    let (hook, direction) = place.split_once(' ')?;
                    let (verdict, reason) = what.split_once(' ')?;
                    let decision = Decision {
                        workload: workload.name.clone(),
                        hook: hook.to_owned(),
                        direction: direction.to_owned(),
                        verdict: verdict.to_owned(),
                        reason: reason.to_owned(),
                    };
                    Some((decision, *count))
                })
            })
        })
    }

    fn audits(&self, page: &mut Page<'_>) -> fmt::Result {
        page.counters(
            "weir_audit_removed",
            "Tracked connections that audits removed because they had no socket any more.",
            self.each_audit(|audit| audit.removed),
        )?;
        page.counters(
            "weir_audit_adopted",
            "Connections that audits found untracked, and that count since.",
            self.each_audit(|audit| audit.adopted),
        )?;
        page.counters(
            "weir_audit_errors",
            "Audits that failed: connections are tracked and limited all the same.",
            self.each_audit(|audit| audit.errors),
        )?;
        page.counter(
            "weir_audit_corrected",
            "Counts of open connections that were wrong though every connection was right.",
            self.status.corrected_counts,
        )?;
        page.counter(
            "weir_quota_unsent_syns",
            "SYNs that waited for a quota of the fleet and were left to their clients.",
            self.status.unsent_syns,
        )?;
        page.gauges(
            "weir_audit_tracked",
            "Established connections that were tracked after the last audit.",
            self.each_audit(|audit| audit.tracked),
        )?;
        page.gauges(
            "weir_audit_unjudged",
            "Tracked connections without a socket of which the last audit could not expect one.",
            self.each_audit(|audit| audit.unjudged),
        )?;
        page.gauges(
            "weir_audit_excess",
            "Connections that the last audit found to be tracked and gone.",
            self.each_audit(|audit| audit.excess),
        )?;
        page.gauges(
            "weir_audit_missing",
            "Connections that the last audit found to exist untracked.",
            self.each_audit(|audit| audit.missing),
        )?;
        let ages = self.all_audits();
        let ages = ages.filter_map(|(workload, audit)| Some((workload, audit.age_seconds?)));
        page.family(
            "weir_audit_age",
            "Since tracked connections were compared with sockets.",
            Some(Unit::Seconds),
            ages.collect(),
        )
    }

    fn all_audits(&self) -> impl Iterator<Item = (Workload, &AuditStatus)> {
        let workloads = self.status.workloads.iter();
        workloads.filter_map(|workload| Some((named(workload), workload.audit.as_ref()?)))
    }

    fn each_audit(&self, value: fn(&AuditStatus) -> u64) -> impl Iterator<Item = (Workload, u64)> {
        self.all_audits().map(move |(workload, audit)| (workload, value(audit)))
    }

    fn tables(&self, page: &mut Page<'_>) -> fmt::Result {
        page.gauge(
            "weir_live_sources",
            "Sources that have a bucket of their own now.",
            self.status.live_sources,
        )?;
        page.gauge(
            "weir_live_sources_capacity",
            "Sources that can have a bucket of their own at once.",
            u64::from(SOURCE_LINES) * source::WAYS as u64,
        )?;
        page.gauge(
            "weir_live_handshakes",
            "Handshakes that are remembered now, so that a repeated SYN is free.",
            self.status.live_handshakes,
        )?;
        page.gauge(
            "weir_live_handshakes_capacity",
            "Handshakes that can be remembered at once.",
            u64::from(PENDING_LINES) * way::LINE as u64,
        )
    }
}

fn named(workload: &WorkloadStatus) -> Workload {
    Workload { workload: workload.name.clone() }
}

/// 1 for the state that is there and 0 for the others. One that nobody foresaw is shown too.
fn states(known: &[&str], now: Option<&str>) -> impl Iterator<Item = (String, u64)> + use<> {
    let mut states: BTreeMap<String, u64> =
        known.iter().map(|&state| (state.to_owned(), 0)).collect();
    if let Some(now) = now {
        states.insert(now.to_owned(), 1);
    }
    states.into_iter()
}

/// The text, written family by family.
pub(super) struct Page<'a>(pub(super) DescriptorEncoder<'a>);

impl Page<'_> {
    fn info(&mut self, name: &str, help: &str, labels: &impl EncodeLabelSet) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    pub(super) fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let unit = Unit::Seconds;
        let metric = self.0.encode_descriptor(name, help, Some(&unit), MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        value: Option<(&String, &Histogram)>,
    ) -> fmt::Result {
        let unit = Unit::Seconds;
        let mut metric =
            self.0.encode_descriptor(name, help, Some(&unit), MetricType::Histogram)?;
        let Some((node, value)) = value else { return Ok(()) };
        let buckets = value.buckets.iter();
        let mut buckets: Vec<_> = buckets.map(|bucket| (bucket.at_most, bucket.count)).collect();
        // The bucket without a bound: what took longer than all of them.
        let bounded: u64 = buckets.iter().map(|(_, count)| count).sum();
        buckets.push((f64::MAX, value.count.saturating_sub(bounded)));
        let node = Node { node: node.clone() };
        let mut metric = metric.encode_family(&node)?;
        metric.encode_histogram::<NoLabelSet>(value.sum, value.count, &buckets, None)
    }

    pub(super) fn counters<L: EncodeLabelSet + Ord>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut sums = BTreeMap::<L, u64>::new();
        for (labels, count) in rows {
            let sum = sums.entry(labels).or_default();
            *sum = sum.wrapping_add(count);
        }
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        sums.iter().try_for_each(|(labels, sum)| {
            metric.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(sum, None)
        })
    }

    fn gauges<L: EncodeLabelSet + Ord>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl Iterator<Item = (L, u64)>,
    ) -> fmt::Result {
        self.family(name, help, None, rows.collect())
    }

    fn family<L: EncodeLabelSet + Ord, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        rows: BTreeMap<L, V>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        rows.iter()
            .try_for_each(|(labels, value)| metric.encode_family(labels)?.encode_gauge(value))
    }
}
