//! XDP at the host's ends of workloads that flood others: see [`crate::app::shield`].

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use super::{Engine, attachments::early_status, pods::object};
use crate::{
    app::{
        observe::Syns,
        shield::{Seen, Shield, Terms, Turn},
        view,
    },
    compile::Identity,
    config::ShieldMode,
    datapath::{Attached, Attachment, BOTH_WAYS, DatapathError, Pace, Side, Target},
    kube::Cause,
    workload::interfaces,
};

/// The host's ends of workloads, and their shields.
#[derive(Debug, Default)]
pub(super) struct Shields {
    /// By their ifindex.
    ends: BTreeMap<u32, End>,
    /// Where an agent before this one left one up, until the end there is known.
    inherited: BTreeSet<u32>,
    /// Those that are to be up, and whether they are.
    status: Vec<view::ShieldStatus>,
    /// How often one went up.
    raised: u64,
}

/// The host's end of one workload.
#[derive(Debug)]
struct End {
    interface: String,
    workload: Identity,
    shield: Shield,
    /// SYNs per second of it that are refused; at most, while the shield is down.
    flood: f64,
    /// Bytes that the workload has sent, and when they were read; while that matters.
    bytes: Option<(u64, u64)>,
    /// Whether it was told that a shield would cost more than it saves.
    is_too_dear: bool,
}

impl End {
    /// Bytes per second since the last reading, which this one replaces; 0 when there was none.
    fn bytes_since(&mut self, now: Option<u64>, now_ns: u64) -> f64 {
        let before = std::mem::replace(&mut self.bytes, now.map(|now| (now, now_ns)));
        let (Some((before, before_ns)), Some(now)) = (before, now) else { return 0.0 };
        let seconds = now_ns.saturating_sub(before_ns) as f64 / 1e9;
        if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
    }
}

impl Shields {
    pub(super) fn inherit(inherited: BTreeSet<u32>) -> Self {
        Self { inherited, ..Self::default() }
    }

    pub(super) fn status(&self) -> Vec<view::ShieldStatus> {
        self.status.clone()
    }

    pub(super) const fn raised(&self) -> u64 {
        self.raised
    }

    /// These are attached to; of whose shields are to be up, the attachments.
    pub(super) fn wanted(&mut self, mode: ShieldMode, wanted: &[Attachment]) -> Vec<Attachment> {
        let mut before = std::mem::take(&mut self.ends);
        let mut shields = Vec::new();
        for attachment in wanted {
            let Target::Workload { workload, side: Side::Host, .. } = attachment.target else {
                continue;
            };
            let index = attachment.ifindex;
            let known = before.remove(&index).filter(|end| end.workload == workload);
            let inherited = self.inherited.remove(&index);
            let mut end = known.unwrap_or_else(|| End {
                interface: attachment.interface.clone(),
                workload,
                shield: if inherited { Shield::INHERITED } else { Shield::default() },
                flood: 0.0,
                bytes: None,
                is_too_dear: false,
            });
            let is_up = match mode {
                ShieldMode::Auto => end.shield.is_up(),
                ShieldMode::Always => true,
                ShieldMode::Off => {
                    end.shield = Shield::default();
                    false
                }
            };
            // An uplink has its own program.
            let is_uplink = |other: &Attachment| {
                other.ifindex == index && matches!(other.target, Target::Uplink(_))
            };
            if is_up && !wanted.iter().any(is_uplink) {
                shields.push(Attachment {
                    ways: BOTH_WAYS,
                    volumes: false,
                    pace: Pace::default(),
                    target: Target::Shield,
                    ..attachment.clone()
                });
            }
            self.ends.insert(index, end);
        }
        // Who is gone has no shield to keep.
        self.inherited.clear();
        shields
    }
}

/// Bytes that came in at these interfaces. Of those that cannot be read it is believed that only SYNs did.
fn bytes_of(indexes: &[u32]) -> BTreeMap<u32, u64> {
    if indexes.is_empty() {
        return BTreeMap::new();
    }
    interfaces::received_bytes(indexes).unwrap_or_else(|error| {
        warn!(%error, "cannot read what workloads that flood others send else");
        BTreeMap::new()
    })
}

impl Engine {
    /// A second is over: whose shields go up, whose come down.
    pub(super) fn look_for_floods(&mut self) {
        let settings = self.file.shield;
        if settings.xdp != ShieldMode::Auto {
            return;
        }
        let terms = Terms {
            above: f64::from(settings.above.get()),
            calm_ns: u64::try_from(settings.calm.as_nanos()).unwrap_or(u64::MAX),
        };
        let syns: BTreeMap<Identity, Syns> = self.observer.syns().collect();
        let refused = syns.values().map(|syns| syns.refused).sum();
        let now_ns = self.clock.monotonic_ns();
        let seen_of = |end: &End| {
            let Syns { sent, shielded, .. } = syns.get(&end.workload).copied().unwrap_or_default();
            Seen { sent, shielded, refused, bytes: 0.0 }
        };
        let asking = self.shields.ends.iter();
        let asking = asking.filter(|(_, end)| end.shield.asks_for_bytes(seen_of(end), terms));
        let bytes = bytes_of(&asking.map(|(&index, _)| index).collect::<Vec<_>>());
        let mut turns = Vec::new();
        for (index, end) in &mut self.shields.ends {
            let mut seen = seen_of(end);
            seen.bytes = end.bytes_since(bytes.get(index).copied(), now_ns);
            end.flood = end.shield.flood(seen);
            let is_too_dear = end.shield.is_too_dear(seen, terms);
            if is_too_dear && !end.is_too_dear {
                info!(
                    interface = end.interface,
                    refused_per_second = end.flood,
                    bytes_per_second = seen.bytes,
                    "its workload floods others of this node, and sends so much else that a shield would \
                     cost more than it saves: TC refuses alone"
                );
            }
            end.is_too_dear = is_too_dear;
            if let Some(turn) = end.shield.look(seen, terms, now_ns) {
                turns.push((end.workload, end.interface.clone(), end.flood, turn));
            }
        }
        for status in &mut self.shields.status {
            let mut ends = self.shields.ends.values();
            let end = ends.find(|end| end.interface == status.interface);
            status.refused_per_second = end.map_or(0.0, |end| end.flood);
        }
        if turns.is_empty() {
            return;
        }
        self.reconcile();
        for (workload, interface, flood, turn) in turns {
            self.tell(workload, &interface, flood, turn);
        }
    }

    fn tell(&mut self, workload: Identity, interface: &str, flood: f64, turn: Turn) {
        let Some(known) = self.workloads.iter().find(|known| known.identity == workload) else {
            return;
        };
        let (cause, note) = match turn {
            Turn::Up => {
                self.shields.raised += 1;
                warn!(
                    workload = known.name,
                    interface,
                    refused_per_second = flood,
                    "it floods others of this node: its shield goes up"
                );
                let note = format!(
                    "up to {flood:.0} SYNs a second that it sends to others of this node are refused: \
                     XDP refuses them at {interface}, and segmentation offload is off for the pod, \
                     until it is calm"
                );
                (Cause::ShieldUp, note)
            }
            Turn::Down => {
                info!(
                    workload = known.name,
                    interface,
                    refused_per_second = flood,
                    "it is calm: its shield comes down"
                );
                (Cause::ShieldDown, format!("is calm: XDP is gone from {interface}"))
            }
            Turn::TooDear => {
                info!(
                    workload = known.name,
                    interface,
                    refused_per_second = flood,
                    "it sends so much else that its shield costs more than it saves: it comes down"
                );
                let note = format!(
                    "sends so much else that XDP at {interface} costs more than it saves, and is gone: TC \
                     refuses alone"
                );
                (Cause::ShieldDown, note)
            }
        };
        if let Some(pod) = object(known) {
            let now = self.clock.monotonic_ns();
            self.pods.notices.say(pod, cause, interface, now, || note);
        }
    }

    /// Takes in which shields are up by now, and why others are not.
    pub(super) fn note_shields(
        &mut self,
        wanted: &[Attachment],
        results: &BTreeMap<Attachment, Result<Attached, DatapathError>>,
    ) {
        let mut now = Vec::new();
        for attachment in wanted {
            let Some(end) = self.shields.ends.get(&attachment.ifindex) else { continue };
            let known = self.workloads.iter().find(|known| known.identity == end.workload);
            let (attached, detail) = early_status(attachment, results);
            now.push(view::ShieldStatus {
                interface: attachment.interface.clone(),
                workload: known.map(|known| known.name.clone()).unwrap_or_default(),
                attached,
                detail,
                refused_per_second: end.flood,
            });
        }
        for status in &now {
            let is_known = |old: &view::ShieldStatus| {
                old.interface == status.interface && old.detail == status.detail
            };
            if let Some(reason) = &status.detail
                && !self.shields.status.iter().any(is_known)
            {
                warn!(
                    workload = status.workload,
                    interface = status.interface,
                    reason,
                    "its shield cannot go up: TC refuses alone"
                );
            }
        }
        self.shields.status = now;
    }
}
