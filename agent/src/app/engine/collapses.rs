//! Limits per source that see one source for the most part: see [`crate::app::collapse`].

use std::{collections::BTreeMap, net::IpAddr};

use tracing::info;
use weir_common::{layout::Event, verdict::Reason};

use super::{Engine, Known, pods::object};
use crate::{
    app::{
        collapse::{Collapse, Minute},
        peaks::Flow,
        view,
    },
    compile::{Identity, LineRef},
    kube::Cause,
    policy::LimitKind,
};

/// What was seen of each limit per source, by its cell.
pub(super) type Collapses = BTreeMap<Identity, Minute>;

impl Engine {
    /// Takes in a refusal, if it is a limit per source that refused, or would have.
    pub(super) fn sample_source(&mut self, workload: Identity, event: &Event) {
        let Some(cell) = self.datapath.limit_of_cell(event.cell) else { return };
        let known = self.workloads.iter().find(|known| known.identity == workload);
        let group = known.and_then(|known| {
            let slot = self.line(&known.key, cell)?.refused_by(Reason::from_code(event.reason))?;
            known.effective.line(&slot)?.limit.group
        });
        if let Some(group) = group {
            self.collapses.entry(cell).or_default().sample(IpAddr::from(event.source), group);
        }
    }

    /// A second is over: which sources have collapsed, which have not any more.
    pub(super) fn look_for_collapses(&mut self) {
        let mut before = std::mem::take(&mut self.collapses);
        let (mut after, mut begun) = (Collapses::new(), Vec::new());
        for known in &self.workloads {
            for (cell, line) in self.limits_per_source(known) {
                let Some(state) = self.datapath.cell(cell) else { continue };
                let LineRef::Limit(slot) = line else { continue };
                let bucket = known.effective.line(&slot).and_then(|line| line.limit.bucket());
                let rate = bucket.map_or(0.0, |bucket| bucket.rate().per_second());
                let counts = state.counts;
                let refused = counts.refused.saturating_add(counts.shadowed);
                let mut minute = before.remove(&cell).unwrap_or_default();
                let had_collapsed = minute.collapse().is_some();
                minute.look(Flow { passed: counts.admitted, refused }, rate);
                match minute.collapse() {
                    Some(collapse) if !had_collapsed => {
                        info!(workload = known.name, limit = %line, source = %collapse.source, share = percent(collapse), "most of what a limit per source counts comes from one");
                        begun.extend(object(known).map(|pod| (pod, line, collapse)));
                    }
                    None if had_collapsed => {
                        info!(workload = known.name, limit = %line, "a limit per source sees many again");
                    }
                    _ => {}
                }
                after.insert(cell, minute);
            }
        }
        self.collapses = after;
        let now = self.clock.monotonic_ns();
        for (pod, line, collapse) in begun {
            let cause = Cause::SourcesCollapsed;
            self.pods.notices.say(pod, cause, &line.to_string(), now, || {
                format!(
                    "{} of what `{line}` counts comes from {}. If that is a node, a gateway, a proxy \
                     or a NAT, the clients behind it share one bucket: keep their addresses, raise \
                     the limit, or exempt the address and limit it with `connections`",
                    percent(collapse),
                    collapse.source,
                )
            });
        }
    }

    /// The cells of a workload's limits per source, and the lines.
    fn limits_per_source(&self, known: &Known) -> impl Iterator<Item = (Identity, LineRef)> {
        let table = self.tables.workloads.get(&known.key);
        let cells = table.into_iter().flat_map(|table| &table.cells);
        cells.map(|(&cell, about)| (cell, about.line)).filter(|&(_, line)| is_per_source(line))
    }

    /// Whether the sources of a limit have collapsed; `None` of one that tells no sources apart.
    pub(super) fn sources(&self, cell: Identity, line: LineRef) -> Option<view::SourcesStatus> {
        let collapse = self.collapses.get(&cell).and_then(Minute::collapse);
        is_per_source(line).then(|| view::SourcesStatus {
            collapsed: collapse.is_some(),
            source: collapse.map(|it| it.source.to_string()),
            share: collapse.map_or(0.0, |it| it.share.min(1.0)),
        })
    }

    /// What to know about a workload whose sources have collapsed.
    pub(super) fn remarks_on_sources(&self, known: &Known) -> Vec<String> {
        let remark = |(cell, line): (Identity, LineRef)| {
            let Collapse { source, .. } = self.collapses.get(&cell)?.collapse()?;
            Some(format!("most of what `{line}` counts comes from {source}"))
        };
        self.limits_per_source(known).filter_map(remark).collect()
    }
}

fn is_per_source(line: LineRef) -> bool {
    line.limit().is_some_and(LimitKind::is_per_source)
}

fn percent(collapse: Collapse) -> String {
    format!("{:.0} %", collapse.share.min(1.0) * 100.0)
}
