//! What the engine answers to those who ask: nothing here changes it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use weir_common::layout::Hook;

use super::{Applied, Engine, Known, attachments::is_pod, seconds};
use crate::{
    app::{
        observe::{Scope, is_inbound_rate},
        peaks::{Second, Series},
        proposal::{Observed, ObservedPort, propose},
        view,
    },
    compile::{LineRef, Tables},
    config::{Attach, Location},
    datapath::Pacing,
    policy::Port,
};

impl Engine {
    /// The tables as the kernel has them.
    pub fn tables_json(&self) -> serde_json::Value {
        #[derive(Serialize)]
        struct Shown<'a> {
            tables: &'a Tables,
        }
        serde_json::to_value(Shown { tables: &self.tables }).unwrap_or_default()
    }

    /// Everything at a glance.
    pub fn status(&self) -> view::Status {
        let (sources, handshakes) = self.datapath.maps().live_ways(&self.clock);
        view::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: seconds(self.clock.monotonic_ns().saturating_sub(self.started_ns)),
            ready: self.ready(),
            node_file: self.path.display().to_string(),
            loaded_at: self.loaded_at,
            reloads: self.reloads,
            trial: self.trial_status(),
            problems: self.problems(),
            workloads: self.workloads.iter().map(|known| self.workload_status(known)).collect(),
            uplinks: self.uplinks.clone(),
            shields: self.shields.status(),
            shields_raised: self.shields.raised(),
            kubernetes: self.pods.status(),
            live_sources: sources as u64,
            live_handshakes: handshakes as u64,
            corrected_counts: self.auditor.corrected(),
            unsent_syns: self.quotas.leases().left(),
        }
    }

    /// What is wrong with the file, and whether the kernel holds less than it should.
    fn problems(&self) -> Vec<String> {
        let unapplied = match &self.applied {
            Applied::Partly(why) => Some(format!("not all of it holds: {why}")),
            Applied::NotYet | Applied::Whole => None,
        };
        self.problems.iter().cloned().chain(unapplied).collect()
    }

    /// One workload: what holds, where it comes from, what was refused.
    pub fn explain(&self, name: &str) -> Option<view::Explanation> {
        let known = self.workloads.iter().find(|known| known.name == name)?;
        let lines = known.effective.lines.iter().map(|line| view::ExplainedLine {
            limit: LineRef::Limit(line.slot).to_string(),
            value: line.limit.to_string(),
            origin: if line.kept {
                format!(
                    "{} (the last good value: what stands there now cannot be read)",
                    line.origin
                )
            } else {
                line.origin.to_string()
            },
            clamps: line.clamps.iter().map(ToString::to_string).collect(),
            shadow: line.shadow.as_ref().map(ToString::to_string),
        });
        let refusals = self.refusals.get(&known.identity);
        Some(view::Explanation {
            workload: self.workload_status(known),
            lines: lines.collect(),
            problems: known.problems.iter().map(ToString::to_string).collect(),
            refusals: refusals.map(|kept| kept.iter().cloned().collect()).unwrap_or_default(),
        })
    }

    /// What changed for a workload.
    pub fn history(&self, name: &str) -> Option<view::History> {
        let (entries, forgotten) = self.history.of(name)?;
        Some(view::History { workload: name.to_owned(), entries, forgotten })
    }

    /// The last minute.
    pub fn recent(&self) -> view::Recent {
        let workloads = self.workloads.iter().map(|known| {
            let total = self.observer.total(&self.datapath, known.identity);
            let second = |second: Second| view::RecentSecond {
                admitted: second.passed,
                refused: second.refused,
            };
            let series = self.observer.series(known.identity, Scope::All);
            view::RecentWorkload {
                name: known.name.clone(),
                admitted: total.passed,
                refused: total.refused,
                seconds: series
                    .into_iter()
                    .flat_map(|series| series.seconds())
                    .map(second)
                    .collect(),
            }
        });
        view::Recent {
            time: seconds(self.clock.realtime_ns()),
            workloads: workloads.collect(),
            refusals: self.latest.iter().cloned().collect(),
        }
    }

    /// What was seen of a workload, as a policy.
    pub fn suggest(&self, name: &str) -> Option<view::Suggestion> {
        let known = self.workloads.iter().find(|known| known.name == name)?;
        let peak = |scope| {
            let series = self.observer.series(known.identity, scope);
            series.map(Series::peak).unwrap_or_default()
        };
        let inbound = || {
            let lines = known.effective.lines.iter();
            lines.filter(|line| is_inbound_rate(line.slot.kind))
        };
        let holds = |port| {
            let lines = inbound().filter(|line| line.slot.port == port);
            let told =
                lines.map(|line| (LineRef::Limit(line.slot).to_string(), line.limit.to_string()));
            told.collect()
        };
        let ports: BTreeSet<Port> = inbound().filter_map(|line| line.slot.port).collect();
        let watched = self.observer.series(known.identity, Scope::Inbound);
        let (sources, _) = self.datapath.maps().live_ways(&self.clock);
        Some(propose(&Observed {
            workload: known.name.clone(),
            unseen: known.attached.as_ref().err().cloned(),
            watched_seconds: watched.map_or(0.0, |series| seconds(series.watched_ns())),
            ports: ports
                .into_iter()
                .map(|port| ObservedPort {
                    port: port.number(),
                    peak: peak(Scope::Port(port)),
                    holds: holds(Some(port)),
                })
                .collect(),
            inbound: peak(Scope::Inbound),
            unlimited: peak(Scope::Unlimited),
            holds: holds(None),
            live_sources: sources as u64,
        }))
    }

    pub(super) fn condition(&self, known: &Known) -> Condition {
        let now = self.clock.monotonic_ns();
        // Asked of the kernel's record: a pause outlives the agent that was told of it.
        let until = self.datapath.shadowed_until(known.identity);
        let paused = until.checked_sub(now).filter(|left| *left > 0);
        let shadow = known.effective.lines.iter().all(|line| line.shadow.is_some());
        let (condition, detail) = match &known.attached {
            Err(_) if !self.decided => ("undecided", None),
            // Most of a cluster's pods: nothing that should hold does not.
            Err(_) if is_pod(&known.location) && known.effective.lines.is_empty() => {
                ("no-policy", None)
            }
            Err(reason) => ("not-enforced", Some(reason.clone())),
            Ok(_) if known.effective.lines.is_empty() => ("no-policy", None),
            Ok(_) if paused.is_some() => ("paused", None),
            Ok(_) if shadow => ("shadow", None),
            Ok(_) => ("enforced", None),
        };
        let detail = detail.or_else(|| remarks(known, self.remarks_on_sources(known)));
        Condition { word: condition, detail, paused_ns: paused }
    }

    fn workload_status(&self, known: &Known) -> view::WorkloadStatus {
        let Condition { word, detail, paused_ns } = self.condition(known);
        let attached = known.attached.as_ref().ok();
        view::WorkloadStatus {
            name: known.name.clone(),
            location: known.location.to_string(),
            condition: word.to_owned(),
            detail,
            attached: attached.map(|attached| attached.kind.to_owned()),
            before: attached.map(|attached| attached.before.clone()).unwrap_or_default(),
            pace: pace(known),
            paused_seconds: paused_ns.map(seconds),
            connect: known.hooked.as_ref().map(|hooked| view::ConnectStatus {
                hooked: hooked.is_ok(),
                detail: hooked.as_ref().err().cloned(),
            }),
            limits: self.limits(known),
            audit: self.auditor.status(known.identity, self.clock.monotonic_ns()),
            decisions: self.decisions(known),
        }
    }

    fn limits(&self, known: &Known) -> Vec<view::LimitStatus> {
        let Some(table) = self.tables.workloads.get(&known.key) else { return Vec::new() };
        let mut limits: Vec<_> = table.cells.iter().collect();
        limits.sort_by_key(|(_, cell)| cell.line);
        let mut shown = Vec::new();
        for (&identity, cell) in limits {
            let Some(state) = self.datapath.cell(identity) else { continue };
            let slots: Vec<_> = match cell.line {
                LineRef::Probe => vec![None],
                line => line.slots().map(Some).collect(),
            };
            let first = slots.first().copied().flatten();
            for slot in slots {
                let line = slot.and_then(|slot| known.effective.line(&slot));
                let reference = slot.map_or(cell.line, LineRef::Limit);
                let port = slot.and_then(|slot| slot.port).map(|port| port.to_string());
                let to = slot.and_then(|slot| slot.to).map(|to| to.to_string());
                let other = first.filter(|_| slot != first);
                shown.push(view::LimitStatus {
                    limit: reference.to_string(),
                    kind: reference.name().to_owned(),
                    port: port.unwrap_or_default(),
                    to: to.unwrap_or_default(),
                    beside: slot.is_some_and(|slot| slot.beside),
                    value: line.map(|line| line.limit.to_string()).unwrap_or_default(),
                    shadow: line.is_some_and(|line| line.shadow.is_some()),
                    tokens: state.tokens,
                    connections: state.load.map(|load| load.connections),
                    handshakes: state.load.map(|load| load.handshakes),
                    breaker: state.breaker.map(|view| view::BreakerStatus {
                        told_total: self.evidence.told(identity),
                        ..view.into()
                    }),
                    volume: state.volume,
                    sources: self.sources(identity, cell.line),
                    counted_with: other.map(|other| LineRef::Limit(other).to_string()),
                    rate_per_second: line
                        .and_then(|line| line.limit.bucket())
                        .map_or(0.0, |bucket| bucket.rate().per_second()),
                    offered_per_second: self.offered(identity),
                    admitted: state.counts.admitted,
                    refused: state.counts.refused,
                    shadowed: state.counts.shadowed,
                });
            }
        }
        shown
    }

    fn decisions(&self, known: &Known) -> BTreeMap<String, BTreeMap<String, u64>> {
        let mut decisions = BTreeMap::new();
        let Some(slot) = self.datapath.slot(known.identity) else { return decisions };
        for hook in Hook::ALL {
            let tally = self.datapath.maps().tally(slot, hook).unwrap_or_default();
            if tally.is_empty() {
                continue;
            }
            let row = tally.into_iter().map(|(verdict, reason, count)| {
                (format!("{} {}", verdict.name(), reason.name()), count)
            });
            decisions.insert(format!("{} {}", hook.name(), hook.direction().name()), row.collect());
        }
        decisions
    }
}

/// Whether a workload's limits of bytes delay, and why not.
fn pace(known: &Known) -> Option<view::PaceStatus> {
    let (direction, pacing) = known.attached.as_ref().ok()?.pacing.as_ref()?;
    let by = |queue: &str| (Some(queue.to_owned()), None);
    let (by, detail) = match pacing {
        Pacing::Found => by("fq"),
        Pacing::Ours => by("own fq"),
        Pacing::Not(why) => (None, Some(why.clone())),
    };
    Some(view::PaceStatus { direction: direction.name().to_owned(), by, detail })
}

/// What to know about a workload whose programs are attached.
fn remarks(known: &Known, on_sources: Vec<String>) -> Option<String> {
    let before = known.attached.as_ref().ok()?.before.as_slice();
    let others = (!before.is_empty()).then(|| {
        format!("programs of others run first and may decide first: {}", before.join(", "))
    });
    let bypass = known.is_bypassed.then(|| bypass(&known.location).to_owned());
    let said: Vec<String> = others
        .into_iter()
        .chain(bypass)
        .chain(known.remarks.iter().cloned())
        .chain(on_sources)
        .collect();
    (!said.is_empty()).then(|| said.join("; "))
}

/// What it means that packets reach a workload past the host's end of its veth.
const fn bypass(location: &Location) -> &'static str {
    match location {
        Location::Namespace { attach: Attach::Host, .. } => {
            "packets reach it past the host's end of its veth, where it is judged: `attach: auto` or \
             `pod` sees them"
        }
        _ => "packets reach it past the host's end of its veth, so it is judged inside",
    }
}

/// What can be said of a workload in one word, and what to know about it.
pub(super) struct Condition {
    pub(super) word: &'static str,
    pub(super) detail: Option<String>,
    pub(super) paused_ns: Option<u64>,
}
