//! What the kernel told of refusals: kept for each workload, and passed on to who listens.

use std::net::{IpAddr, SocketAddr};

use tokio::sync::broadcast;
use weir_common::{
    layout::{Event, Hook},
    verdict::{Reason, Verdict},
};

use super::{Engine, seconds};
use crate::{
    app::view,
    compile::{Identity, LineRef},
};

/// Refusals that are kept for each workload.
const REFUSALS: usize = 10;
/// Refusals that are kept of all workloads together.
const LATEST: usize = 32;

impl Engine {
    /// Takes in one event of the kernel.
    pub fn record(&mut self, event: &Event) {
        self.weigh_event(event);
        let Some((identity, refusal)) = self.refusal(event) else { return };
        self.note_refusal(identity, &refusal, event.cell);
        self.sample_source(identity, event);
        let kept = self.refusals.entry(identity).or_default();
        kept.push_front(refusal.clone());
        kept.truncate(REFUSALS);
        self.latest.push_front(refusal.clone());
        self.latest.truncate(LATEST);
        // Nobody listens: nothing to tell.
        let _ = self.trace.send(refusal);
    }

    fn refusal(&self, event: &Event) -> Option<(Identity, view::Refusal)> {
        let identity = self.datapath.workload_in(event.slot)?;
        let known = self.workloads.iter().find(|known| known.identity == identity)?;
        let limit = self.datapath.limit_of_cell(event.cell);
        let line = limit.and_then(|limit| self.line(&known.key, limit));
        let hook = Hook::ALL.get(usize::from(event.hook)).copied()?;
        let verdict = Verdict::ALL.get(usize::from(event.verdict)).copied()?;
        let ago = self.clock.monotonic_ns().saturating_sub(event.time_ns);
        let reason = Reason::from_code(event.reason);
        // Of the lines that share a cell, the one that refused.
        let slot = line.and_then(|line| line.refused_by(reason));
        let value = slot.and_then(|slot| known.effective.line(&slot));
        let line = slot.map(LineRef::Limit).or(line.copied());
        let refusal = view::Refusal {
            time: seconds(self.clock.realtime_ns().saturating_sub(ago)),
            workload: known.name.clone(),
            direction: hook.direction().name().to_owned(),
            hook: hook.name().to_owned(),
            verdict: verdict.name().to_owned(),
            reason: reason.map_or("unknown", Reason::name).to_owned(),
            limit: line.map(|line| line.to_string()).unwrap_or_default(),
            value: value.map(|line| line.limit.to_string()).unwrap_or_default(),
            offered_per_second: limit.map_or(0.0, |limit| self.offered(limit)),
            source: endpoint(event.source.into(), (event.ports >> 16) as u16),
            destination: endpoint(event.destination.into(), event.ports as u16),
        };
        Some((identity, refusal))
    }

    pub(super) fn line(&self, workload: &str, limit: Identity) -> Option<&LineRef> {
        Some(&self.tables.workloads.get(workload)?.cells.get(&limit)?.line)
    }

    pub(super) fn offered(&self, limit: Identity) -> f64 {
        self.observer.per_second(limit)
    }

    /// The stream of refusals.
    pub fn subscribe(&self) -> broadcast::Receiver<view::Refusal> {
        self.trace.subscribe()
    }
}

fn endpoint(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}
