//! What the agent tells of itself: the answers of the admin socket, as both sides know them.
//!
//! An older agent may leave fields out, and a newer one may send more: both can be read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weir_common::breaker;

use crate::datapath::VolumeCounts;

/// `GET /status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: f64,
    /// Whether every workload is decided: enforced, or listed with the reason why not.
    pub ready: bool,
    /// The node file.
    pub node_file: String,
    /// When the file that holds was read, seconds since 1970.
    pub loaded_at: f64,
    /// How often the file was read.
    pub reloads: Reloads,
    /// The file that holds, or should, in place of the node file; absent when that holds.
    pub trial: Option<TrialStatus>,
    /// What is wrong with the file on disk, and what holds in its place.
    pub problems: Vec<String>,
    /// The workloads, in the file's order.
    pub workloads: Vec<WorkloadStatus>,
    /// The uplinks.
    pub uplinks: Vec<UplinkStatus>,
    /// The hosts' ends of workloads that flood others.
    pub shields: Vec<ShieldStatus>,
    /// How often a shield went up.
    pub shields_raised: u64,
    /// How it stands with Kubernetes; absent without it.
    pub kubernetes: Option<KubernetesStatus>,
    /// Sources that have a bucket of their own now.
    pub live_sources: u64,
    /// Handshakes that are remembered now.
    pub live_handshakes: u64,
    /// Counts of open connections that were wrong, and that audits have corrected.
    pub corrected_counts: u64,
    /// SYNs that waited for a quota of the fleet and were left to their clients.
    pub unsent_syns: u64,
}

/// A file on trial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrialStatus {
    /// When the node file holds again unless the trial is confirmed, seconds since 1970.
    pub ends: f64,
    /// Whether it was understood, perhaps but for single values. Else the last good file holds.
    pub holds: bool,
}

/// What is known of the node's pods, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KubernetesStatus {
    /// The node's name.
    pub node: String,
    /// Pods of the node that have not ended.
    pub pods: u64,
    /// Whether all of them, and all namespaces, were listed since the agent began.
    pub synced: bool,
    /// Why the API server cannot be heard now, if it cannot: what was known last is enforced.
    pub failure: Option<String>,
    /// Lists after the first.
    pub relists: u64,
    /// Requests that failed and watches that broke.
    pub errors: u64,
    /// Events that were created.
    pub events_sent: u64,
    /// Events that could not be created, and those of which there would have been too many.
    pub events_lost: u64,
    /// From the arrival of a change to the kernel.
    pub policy_seconds: Histogram,
    /// From the start of a pod's first process to its programs' attachment, of pods that began
    /// while the agent ran.
    pub attach_seconds: Histogram,
}

impl KubernetesStatus {
    /// What is not known of the pods, if anything is not.
    pub fn doubt(&self) -> Option<String> {
        let why = self.failure.as_deref();
        match (self.synced, why) {
            (true, None) => None,
            (true, Some(why)) => Some(format!("the API server is not heard: {why}")),
            (false, why) => {
                let why = why.unwrap_or("it was asked");
                Some(format!("not all pods were listed since the agent began: {why}"))
            }
        }
    }
}

/// How long something took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// By length; what took longer than all bounds is in `count` alone.
    pub buckets: Vec<Bucket>,
    /// How often it happened.
    pub count: u64,
    /// All of it, in seconds.
    pub sum: f64,
}

/// A part of a [`Histogram`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// In seconds; more than the bucket before.
    pub at_most: f64,
    /// How often it took so long.
    pub count: u64,
}

/// How often a file was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloads {
    /// It was understood, perhaps but for single values.
    pub succeeded: u64,
    /// It was not understood; the last good one holds.
    pub failed: u64,
}

/// What can be said of a workload: its policy holds; only counts; only counts until a pause ends;
/// limits nothing; does not hold, for a reason; was not looked at yet.
pub const CONDITIONS: [&str; 6] =
    ["enforced", "shadow", "paused", "no-policy", "not-enforced", "undecided"];

/// One workload of [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkloadStatus {
    /// Its name.
    pub name: String,
    /// Where its packets are seen, for people: `eth0 in netns web`.
    pub location: String,
    /// One of [`CONDITIONS`].
    pub condition: String,
    /// Why it is not enforced, or what to know about it.
    pub detail: Option<String>,
    /// How programs are attached: `tcx`, `clsact`; absent when they are not.
    pub attached: Option<String>,
    /// Programs of others that run before Weir's.
    pub before: Vec<String>,
    /// Whether its limits of bytes and packets delay; absent where it has none.
    pub pace: Option<PaceStatus>,
    /// Seconds until a pause ends.
    pub paused_seconds: Option<f64>,
    /// Whether `connect()` of its processes is hooked; absent where no limit is about what it opens.
    pub connect: Option<ConnectStatus>,
    /// Its limits.
    pub limits: Vec<LimitStatus>,
    /// How its tracked connections compare with its sockets; absent when none are tracked.
    pub audit: Option<AuditStatus>,
    /// Decisions: hook and direction (`tc ingress`), then `verdict reason`, then count.
    pub decisions: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Whether limits of bytes and packets delay what is too much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PaceStatus {
    /// The direction that could be delayed: `ingress`, `egress`. In the other they always drop.
    pub direction: String,
    /// What sends on time: `fq`, or `own fq` where the agent put it there; absent where they drop.
    pub by: Option<String>,
    /// Why they drop.
    pub detail: Option<String>,
}

/// Whether `connect()` of a workload's processes is hooked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectStatus {
    /// It fails at once where a limit would refuse its SYN; else a RST comes.
    pub hooked: bool,
    /// Why it is not.
    pub detail: Option<String>,
}

/// How a workload's tracked connections compare with its sockets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditStatus {
    /// Seconds since they were compared last; absent before the first time.
    pub age_seconds: Option<f64>,
    /// Established connections that are tracked, after the last audit.
    pub tracked: u64,
    /// Those without a socket of which that says nothing: their local end is not in the namespace.
    pub unjudged: u64,
    /// Connections that the last audit found to be tracked and gone.
    pub excess: u64,
    /// Connections that the last audit found to exist untracked.
    pub missing: u64,
    /// Connections that audits have removed.
    pub removed: u64,
    /// Connections that audits have adopted.
    pub adopted: u64,
    /// Audits that failed.
    pub errors: u64,
    /// Why the last one did, if it did.
    pub error: Option<String>,
}

/// One uplink of [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UplinkStatus {
    /// The interface.
    pub interface: String,
    /// `xdp`, `xdp-generic`; absent when nothing is attached.
    pub attached: Option<String>,
    /// Why not.
    pub detail: Option<String>,
}

/// The host's end of a workload's veth where XDP is to refuse early.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShieldStatus {
    /// The interface.
    pub interface: String,
    /// The workload behind it.
    pub workload: String,
    /// `xdp`; absent when nothing is attached.
    pub attached: Option<String>,
    /// Why not.
    pub detail: Option<String>,
    /// SYNs per second that may be the workload's and are refused.
    pub refused_per_second: f64,
}

/// Where a breaker is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BreakerStatus {
    /// `closed`, `open` or `half-open`. Open with no time left means that the next connection tries.
    pub state: String,
    /// How long it stays open, in seconds.
    pub open_seconds: f64,
    /// It is open because of what other workloads found.
    pub told: bool,
    /// How often such a thing opened it since the agent began.
    pub told_total: u64,
    /// Failures in a row, while it is closed.
    pub consecutive: u64,
    /// Ejections in a row that are not forgotten.
    pub ejections: u64,
    /// Probes without a verdict, while it is half-open.
    pub probes_out: u64,
    /// Probes that succeeded, while it is half-open.
    pub probes_succeeded: u64,
    /// Successes of this interval and the one before, while it is closed.
    pub succeeded: u64,
    /// Failures of this interval and the one before, while it is closed.
    pub failed: u64,
    /// Connections that were not answered yet, while it is closed.
    pub unanswered: u64,
}

impl From<breaker::View> for BreakerStatus {
    fn from(view: breaker::View) -> Self {
        let state = match view.phase {
            breaker::Phase::Closed => "closed",
            breaker::Phase::Open => "open",
            breaker::Phase::HalfOpen => "half-open",
        };
        Self {
            state: state.to_owned(),
            open_seconds: view.remaining_ns as f64 / 1e9,
            told: view.told,
            told_total: 0,
            consecutive: view.consecutive,
            ejections: view.ejections,
            probes_out: view.probes_out,
            probes_succeeded: view.probes_succeeded,
            succeeded: view.ok,
            failed: view.failed,
            unanswered: view.attempts,
        }
    }
}

/// Whether most of what a limit per source counts comes from one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourcesStatus {
    /// It does: behind one address there may be many clients, who share a bucket.
    pub collapsed: bool,
    /// That address, or the network that counts as one source.
    pub source: Option<String>,
    /// Its part of the connections that asked within the last minute, 0 to 1; an estimate.
    pub share: f64,
}

/// One limit of a workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitStatus {
    /// The key with its port and destination: `connections.3306`.
    pub limit: String,
    /// The key alone, for metrics: `connections`.
    pub kind: String,
    /// The port, for metrics; empty for all.
    pub port: String,
    /// The destinations it holds for, for metrics; empty for all.
    pub to: String,
    /// Whether it is a workload's own line in shadow, beside a line of the administrator that
    /// holds for the same port and destinations.
    pub beside: bool,
    /// Its value: `100/s burst=200`.
    pub value: String,
    /// Whether it only counts.
    pub shadow: bool,
    /// Tokens that could be taken now, or hits that are left of a quota's window; of rates for all
    /// sources together, and of quotas.
    pub tokens: Option<u64>,
    /// Connections that are open now, handshakes among them; of `max-connections` and
    /// `max-handshakes`.
    pub connections: Option<u64>,
    /// Handshakes that are not complete now; of the same.
    pub handshakes: Option<u64>,
    /// Where a breaker is.
    pub breaker: Option<BreakerStatus>,
    /// Bytes and packets that passed and that did not; of limits of bytes and packets. What they count
    /// as `admitted`, `refused` and `shadowed` are packets.
    pub volume: Option<VolumeCounts>,
    /// Whether it can tell clients apart; of limits per source.
    pub sources: Option<SourcesStatus>,
    /// The limit that this one is counted with: what follows is of both together.
    pub counted_with: Option<String>,
    /// Tokens that come back per second; 0 where that is not known.
    pub rate_per_second: f64,
    /// New connections per second that asked, over the last second.
    pub offered_per_second: f64,
    /// Connections admitted.
    pub admitted: u64,
    /// Connections refused.
    pub refused: u64,
    /// Connections that would have been refused, were it not in shadow.
    pub shadowed: u64,
}

/// `GET /explain/NAME`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// The workload as it stands.
    pub workload: WorkloadStatus,
    /// Each line of the effective policy.
    pub lines: Vec<ExplainedLine>,
    /// What is wrong in this workload's policy, and what holds in its place.
    pub problems: Vec<String>,
    /// The last refusals, newest first, ten at most.
    pub refusals: Vec<Refusal>,
}

/// One line of an effective policy and where it comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExplainedLine {
    /// The key with its port and destination.
    pub limit: String,
    /// What holds.
    pub value: String,
    /// Layer, file, line and column.
    pub origin: String,
    /// The clamps that applied, for people.
    pub clamps: Vec<String>,
    /// Why it only counts, if it does.
    pub shadow: Option<String>,
}

/// A sampled refusal: a line of `GET /trace`, and of [`Explanation`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// Seconds since 1970.
    pub time: f64,
    /// The workload.
    pub workload: String,
    /// `ingress` or `egress`.
    pub direction: String,
    /// `tc` or `xdp`.
    pub hook: String,
    /// `reset`, `drop` or `shadow`.
    pub verdict: String,
    /// Why.
    pub reason: String,
    /// The limit: `connections.3306`.
    pub limit: String,
    /// The limit's value.
    pub value: String,
    /// New connections per second that asked, over the last second.
    pub offered_per_second: f64,
    /// Address and port that the SYN came from.
    pub source: String,
    /// Address and port that it went to.
    pub destination: String,
}

/// `GET /recent`: the last minute, for whoever has just begun to look.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recent {
    /// When this was read, seconds since 1970.
    pub time: f64,
    /// The workloads, in the file's order.
    pub workloads: Vec<RecentWorkload>,
    /// The last sampled refusals of all of them, newest first.
    pub refusals: Vec<Refusal>,
}

/// One workload of [`Recent`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecentWorkload {
    /// Its name.
    pub name: String,
    /// New connections that went on so far, in both directions; repeated SYNs do not count where
    /// a limit remembers the first.
    pub admitted: u64,
    /// New connections that were refused so far, in both directions.
    pub refused: u64,
    /// The seconds of the last minute, newest last; fewer when the agent has just begun to count.
    pub seconds: Vec<RecentSecond>,
}

/// One second of [`RecentWorkload`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecentSecond {
    /// New connections that went on.
    pub admitted: u32,
    /// New connections that were refused.
    pub refused: u32,
}

/// `GET /history/NAME`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// The workload.
    pub workload: String,
    /// What changed, newest last.
    pub entries: Vec<HistoryEntry>,
    /// How many older changes were forgotten.
    pub forgotten: u64,
}

/// One change of [`History`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryEntry {
    /// Seconds since 1970.
    pub time: f64,
    /// What changed: a line of the policy, `mode`, `on-limit`, `exempt`, `attached`, `condition`
    /// or `pause`.
    pub key: String,
    /// How it was; absent when it was not.
    pub from: Option<Stated>,
    /// How it is; absent when it is no more.
    pub to: Option<Stated>,
    /// Who asked for it over the admin socket; empty for what files and interfaces changed.
    pub by: String,
}

/// A value and whose word or what fact it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stated {
    /// `100/s burst=200`, `tcx`, `enforced`.
    pub value: String,
    /// Layer, file, line and column; for attachment and condition: where, or why.
    pub origin: String,
}

/// `GET /suggest/NAME`: what was seen, as a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Suggestion {
    /// The workload.
    pub workload: String,
    /// Seconds that the agent has watched; the last hour at most.
    pub watched_seconds: f64,
    /// Lines for its policy.
    pub lines: Vec<SuggestedLine>,
    /// What the counters do not tell.
    pub unknown: Vec<String>,
}

/// One line of [`Suggestion`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SuggestedLine {
    /// The key: `connections.8080`.
    pub key: String,
    /// The value: `120/s burst=240`.
    pub value: String,
    /// Why.
    pub reason: String,
    /// What it was made from.
    pub seen: Option<Seen>,
}

/// The new connections that a [`SuggestedLine`] is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// Asked in the busiest second.
    pub peak_second: u64,
    /// Asked in the busiest sixty seconds.
    pub peak_minute: u64,
    /// Asked in all of the time watched.
    pub asked: u64,
    /// Of these, refused.
    pub refused: u64,
}

/// `POST /pause`.
///
/// Unknown fields are refused: without its workload, a pause would be for all of the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// The workload; absent for all of the node.
    pub workload: Option<String>,
    /// For how long; 0 ends a pause.
    pub seconds: u64,
}

/// The answer to [`Pause`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// The workloads it concerned.
    pub workloads: Vec<String>,
}

/// A line of `GET /trace`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Traced {
    /// The reader was too slow.
    Lost {
        /// How many refusals it missed.
        lost: u64,
    },
    /// A refusal.
    Refusal(Box<Refusal>),
}

/// `GET /log`, and the answer to `PUT /log?level=LEVEL`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevel {
    /// What is logged: `info`, or `weir::datapath=debug,info`.
    pub level: String,
}

/// `GET /readyz`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether every workload is decided.
    pub ready: bool,
    /// Whether this agent only waits for another one to end; that one decides meanwhile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standby: bool,
    /// Workloads that were not looked at yet.
    pub undecided: Vec<Undecided>,
    /// Workloads whose policy does not hold; they are decided.
    pub not_enforced: Vec<Undecided>,
    /// What is not known of the node's pods, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<String>,
}

/// A workload of [`Readiness`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undecided {
    /// Its name.
    pub workload: String,
    /// Why, if that is known.
    pub reason: String,
}

/// Any answer that is not what was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What is wrong, for people.
    pub error: String,
    /// What could have been asked, if the question itself is unknown: by this a newer client knows
    /// an older agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
}
