//! The agent's state and its transitions: what the file says, what the kernel holds, what is seen.
//!
//! One lock guards all of it ([`super::Shared`]); every method is one step that leaves it whole.
//! It refuses to know who asks: timers, netlink, files and sockets are `super::run`'s.

mod answers;
mod pods;
mod quotas;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use tokio::sync::broadcast;
use tracing::{debug, error, info, warn};
use weir_common::{
    layout::{Event, Hook},
    verdict::{Reason, Verdict},
};

use self::{answers::Condition, pods::Pods, quotas::Spent};
use super::{
    history::{Facts, History, Part},
    memory::{self, Memory},
    observe::Observer,
    view,
};
use crate::{
    audit::{Auditor, Confirmation, Looked, Network, Subject, Unconfirmed},
    clock::Clock,
    compile::{
        Change, Compiled, Identity, LineRef, NodeFacts, Tables, WorkloadTable, compile, diff,
    },
    config::{self, Evaluated, Location, NodeFile, PodLocation, Report, evaluate_all, read},
    datapath::{Attached, Attachment, Caller, Datapath, DatapathError, Target},
    policy::{Effective, LastGood, Origin, Period, Problem},
    quota::{self, Now, Quotas},
    rls,
    workload::{self, Interface, Resolved, interfaces},
};

/// Refusals that are kept for each workload.
const REFUSALS: usize = 10;
/// Refusals that are kept of all workloads together.
const LATEST: usize = 32;
/// Refusals that a slow reader of the trace may fall behind.
const TRACE: usize = 1024;

/// Everything the agent knows.
pub struct Engine {
    datapath: Datapath,
    clock: Clock,
    started_ns: u64,
    /// The same by the clock of processes' starts.
    began_ns: u64,
    path: PathBuf,
    /// The file that holds in its place for now.
    trial: Option<PathBuf>,
    memory: PathBuf,
    /// The text of the file that holds; empty when none was ever good.
    text: String,
    file: NodeFile,
    last_good: BTreeMap<String, LastGood>,
    /// Whether values were read that the file of the last good ones does not have.
    last_good_changed: bool,
    /// What Kubernetes says; on a machine without it, nothing.
    pods: Pods,
    loaded_at: f64,
    reloads: view::Reloads,
    problems: Vec<String>,
    workloads: Vec<Known>,
    uplinks: Vec<view::UplinkStatus>,
    tables: Tables,
    observer: Observer,
    history: History,
    history_path: PathBuf,
    /// Whether the history is newer than its file.
    history_changed: bool,
    auditor: Auditor,
    quotas: Spent,
    refusals: BTreeMap<Identity, VecDeque<view::Refusal>>,
    latest: VecDeque<view::Refusal>,
    trace: broadcast::Sender<view::Refusal>,
    decided: bool,
}

/// A workload of the file, or a pod.
struct Known {
    name: String,
    /// What tells it from all others, as text: its key in the tables.
    key: String,
    identity: Identity,
    location: Location,
    /// Its addresses, if they were told.
    addresses: Vec<IpAddr>,
    effective: Effective,
    problems: Vec<Problem>,
    remarks: Vec<String>,
    attached: Result<Attached, String>,
    /// Whether `connect()` of its processes is hooked, or why not; `None` where no limit is about
    /// what it opens.
    hooked: Option<Result<(), String>>,
    /// The interface that its packets are seen at, and its addresses.
    seen_at: Option<(u32, Vec<IpAddr>)>,
}

impl Known {
    /// Whether some limit is about what it opens.
    fn limits_calls(&self) -> bool {
        let mut lines = self.effective.lines.iter();
        lines.any(|line| line.slot.kind.is_outbound())
    }
}

impl Engine {
    /// Takes over the data plane. Nothing changes in the kernel until the first reload.
    pub fn new(datapath: Datapath, path: PathBuf, memory: PathBuf, clock: Clock) -> Self {
        let mut engine = Self {
            datapath,
            clock,
            started_ns: clock.monotonic_ns(),
            began_ns: clock.boottime_ns(),
            path,
            trial: None,
            history_path: memory.with_file_name("history.json"),
            memory,
            text: String::new(),
            file: NodeFile::default(),
            last_good: BTreeMap::new(),
            last_good_changed: false,
            pods: Pods::default(),
            loaded_at: 0.0,
            reloads: view::Reloads::default(),
            problems: Vec::new(),
            workloads: Vec::new(),
            uplinks: Vec::new(),
            tables: Tables::default(),
            observer: Observer::default(),
            history: History::default(),
            history_changed: false,
            auditor: Auditor::new(),
            quotas: Spent::default(),
            refusals: BTreeMap::new(),
            latest: VecDeque::new(),
            trace: broadcast::channel(TRACE).0,
            decided: false,
        };
        engine.remember_last_good();
        engine
    }

    /// What held before this process, so that a file that is broken now removes nothing.
    fn remember_last_good(&mut self) {
        match memory::load(&self.history_path) {
            Ok(history) => self.history = history.unwrap_or_default(),
            Err(problem) => {
                warn!(path = %self.history_path.display(), error = %problem, "what changed before is not known");
            }
        }
        match memory::load::<Memory>(&self.memory) {
            Ok(Some(memory)) => {
                let name = self.path.display().to_string();
                if let Ok(reading) = read(&memory.file, &name, None) {
                    (self.file, self.text) = (reading.file, memory.file);
                }
                self.last_good = memory.last_good;
            }
            Ok(None) => {}
            Err(problem) => {
                warn!(path = %self.memory.display(), error = %problem, "the last good policy is not known");
            }
        }
    }

    /// From the next reload on, this file holds in place of the node file; with `None`, that again.
    pub fn try_out(&mut self, trial: Option<PathBuf>) {
        self.trial = trial;
    }

    /// These are the quotas that workloads may name.
    #[must_use]
    pub fn with_quotas(mut self, quotas: Arc<Quotas>) -> Self {
        self.quotas = Spent::of(quotas);
        self
    }

    fn now(&self) -> Now {
        Now { monotonic_ns: self.clock.monotonic_ns(), realtime_ns: self.clock.realtime_ns() }
    }

    /// Reads the file and makes it hold. What cannot be understood keeps what it was.
    pub fn reload(&mut self) {
        let path = self.trial.as_ref().unwrap_or(&self.path);
        let name = path.display().to_string();
        let reading = config::load(path).map_err(|error| error.to_string()).and_then(|text| {
            read(&text, &name, Some(&self.file))
                .map(|reading| (text, reading))
                .map_err(|problem| problem.to_string())
        });
        let (text, problems) = match reading {
            Ok((text, reading)) => {
                self.file = reading.file.clone();
                (Some(text), Some(reading))
            }
            Err(problem) => {
                self.reloads.failed += 1;
                error!(
                    file = name,
                    problem, "the file was not understood; the last good one holds"
                );
                self.problems = vec![format!("{problem}; the last good file holds")];
                (None, None)
            }
        };
        let file = self.file.clone();
        let pods = self.pods.workloads();
        let workloads = file.workloads.iter().chain(pods.iter().map(Arc::as_ref));
        let evaluated = evaluate_all(&file.administrator, workloads, &self.last_good);
        let compiled = self.compile(&evaluated);
        if let Some(reading) = &problems {
            self.loaded_at = seconds(self.clock.realtime_ns());
            self.reloads.succeeded += 1;
            let report = Report::of(reading, &evaluated, &compiled.misfits);
            self.problems = report.problems.iter().map(ToString::to_string).collect();
            for problem in &self.problems {
                warn!(file = name, problem, "a part of the file does not hold");
            }
        }
        if let Some(text) = text {
            self.text = text;
            self.last_good_changed = true;
        }
        // Who does not know the pods yet would take away what holds for them.
        if self.pods.are_known() {
            self.hold(evaluated, compiled);
            self.reconcile();
        }
        self.keep_last_good();
    }

    /// Keeps what is good now for the next start.
    fn keep_last_good(&mut self) {
        // What no file was good for is not kept either.
        if !std::mem::take(&mut self.last_good_changed) || self.text.is_empty() {
            return;
        }
        let memory = Memory { file: self.text.clone(), last_good: self.last_good.clone() };
        if let Err(problem) = memory::store(&self.memory, &memory) {
            warn!(path = %self.memory.display(), error = %problem, "the last good policy was not kept for the next start");
        }
    }

    fn compile(&self, evaluated: &[Evaluated<'_>]) -> Compiled {
        let addresses = workload::node_addresses().unwrap_or_else(|problem| {
            warn!(error = %problem, "the node's own addresses are not known; probes are not recognised");
            Vec::new()
        });
        compile(
            evaluated.iter().map(Evaluated::subject),
            &NodeFacts { addresses, quotas: self.quotas.service() },
            Some(&self.tables),
        )
    }

    /// Makes the kernel hold this. Whether a workload came, went, or is seen elsewhere, so that
    /// attachments are to be reconciled.
    fn hold(&mut self, evaluated: Vec<Evaluated<'_>>, compiled: Compiled) -> bool {
        let Compiled { tables, misfits, quotas } = compiled;
        for change in diff(&self.tables, &tables) {
            let name =
                |tables: &Tables| Some(tables.workloads.get(change.workload())?.name.clone());
            let name = name(&tables).or_else(|| name(&self.tables)).unwrap_or_default();
            audit(&name, &change);
        }
        let now = self.now();
        // What is spent no more leaves its cell before the cell is given back.
        self.quotas.leave(&quotas, &self.datapath, now);
        if let Err(problem) = self.datapath.apply(&tables) {
            error!(error = &problem as &dyn std::error::Error, "the tables do not hold as a whole");
            self.problems.push(explain_error(&problem));
        }
        self.quotas.enter(quotas, &self.datapath, now);
        self.tables = tables;
        let mut before: BTreeMap<String, Known> =
            self.workloads.drain(..).map(|known| (known.key.clone(), known)).collect();
        let mut moved = before.len() != evaluated.len();
        let mut last_good = BTreeMap::new();
        for Evaluated { workload, effective, last_good: good, mut problems } in evaluated {
            let key = workload.identity.clone();
            last_good.insert(key.clone(), good);
            let known = before.remove(&key);
            let stayed = |known: &Known| {
                known.location == workload.location && known.addresses == workload.addresses
            };
            moved |= !known.as_ref().is_some_and(stayed);
            let (attached, hooked, seen_at) = match known {
                Some(known) => (known.attached, known.hooked, known.seen_at),
                None => (Err("not attached yet".to_owned()), None, None),
            };
            let misfits = misfits.iter().filter(|misfit| misfit.workload() == key);
            problems.extend(
                misfits
                    .map(|misfit| Problem::error(workload.place.clone(), misfit.to_string(), "")),
            );
            let known = Known {
                name: workload.name.clone(),
                identity: Identity::workload(&key),
                key,
                location: workload.location.clone(),
                addresses: workload.addresses.clone(),
                effective,
                problems,
                remarks: workload.remarks.clone(),
                attached,
                hooked,
                seen_at,
            };
            // Calls are hooked where they are attached.
            moved |= known.hooked.is_some() != known.limits_calls();
            self.workloads.push(known);
        }
        self.last_good_changed |= self.last_good != last_good;
        self.last_good = last_good;
        let there: BTreeSet<Identity> = self.workloads.iter().map(|known| known.identity).collect();
        self.refusals.retain(|workload, _| there.contains(workload));
        self.note_policies();
        self.note_bad_values();
        moved
    }

    /// Attaches to what is there now.
    pub fn reconcile(&mut self) {
        let host = match interfaces::list() {
            Ok(host) => host,
            Err(problem) => {
                error!(error = %problem, "cannot list this host's interfaces; attachments stay as they are");
                return;
            }
        };
        if !self.pods.are_known() {
            return;
        }
        let mut wanted = Vec::new();
        let (mut callers, mut unhooked) = (Vec::new(), BTreeMap::new());
        let mut missing = BTreeMap::new();
        let pods = self.pods.workloads();
        for workload in self.file.workloads.iter().chain(pods.iter().map(Arc::as_ref)) {
            let identity = Identity::workload(&workload.identity);
            match workload::resolve(workload, identity, &host, &mut self.pods.networks) {
                Ok(Resolved { attachments, caller }) => {
                    let table = self.tables.workloads.get(&workload.identity);
                    let volumes = table.is_some_and(WorkloadTable::limits_volumes);
                    let with = |attachment| Attachment { volumes, ..attachment };
                    wanted.extend(attachments.into_iter().map(with));
                    match caller {
                        Ok(caller) => callers.push(caller),
                        Err(problem) => _ = unhooked.insert(identity, problem.to_string()),
                    }
                }
                Err(problem) => _ = missing.insert(identity, explain_error(&problem)),
            }
        }
        let uplinks = self.wanted_uplinks(&host, &mut wanted);
        let results = self.datapath.attach(&wanted);
        self.note_attached(&results, &mut missing);
        // What nothing judges must not be judged by a call either.
        callers.retain(|caller| self.calls_are_limited(caller.workload));
        self.hook(&callers, unhooked);
        self.uplinks = uplinks
            .into_iter()
            .map(|(interface, found)| uplink_status(interface, found, &results))
            .collect();
        self.decided = true;
        self.note_states();
    }

    /// Whether its connections are judged, and some limit is about those that it opens.
    fn calls_are_limited(&self, workload: Identity) -> bool {
        let mut known = self.workloads.iter();
        known.any(|known| {
            known.identity == workload && known.attached.is_ok() && known.limits_calls()
        })
    }

    /// Hooks `connect()` of these, and notes of all whether it is, and why not.
    fn hook(&mut self, callers: &[Caller], mut unhooked: BTreeMap<Identity, String>) {
        let mut hooked = BTreeSet::new();
        match self.datapath.hook(callers) {
            Ok(results) => {
                for (workload, result) in results {
                    match result {
                        Ok(()) => _ = hooked.insert(workload),
                        Err(problem) => _ = unhooked.insert(workload, explain_error(&problem)),
                    }
                }
            }
            Err(problem) => {
                let problem = explain_error(&problem);
                unhooked.extend(callers.iter().map(|caller| (caller.workload, problem.clone())));
            }
        }
        for known in &mut self.workloads {
            let now = known.limits_calls().then(|| {
                if hooked.contains(&known.identity) {
                    return Ok(());
                }
                let reason = unhooked.remove(&known.identity);
                Err(reason.unwrap_or_else(|| "nothing is attached".to_owned()))
            });
            if now == known.hooked {
                continue;
            }
            match &now {
                Some(Err(reason)) => {
                    info!(workload = known.name, reason, "connect() is not hooked: RSTs refuse");
                }
                Some(Ok(())) => info!(workload = known.name, "connect() is hooked"),
                None => info!(workload = known.name, "connect() is not limited"),
            }
            known.hooked = now;
        }
    }

    /// Takes what holds into the history.
    fn note_policies(&mut self) {
        let time = seconds(self.clock.realtime_ns());
        let Self { history, workloads, .. } = self;
        let is_there = |name: &str| workloads.iter().any(|known| known.name == name);
        let mut changed = history.retain(is_there, time);
        for known in workloads {
            changed |= history.observe(&known.name, Part::Policy, lines(&known.effective), time);
        }
        self.history_changed |= changed;
    }

    /// Takes attachments and conditions into the history.
    fn note_states(&mut self) {
        if !self.decided {
            return;
        }
        let time = seconds(self.clock.realtime_ns());
        for index in 0..self.workloads.len() {
            let Some(known) = self.workloads.get(index) else { break };
            let Condition { word, detail, .. } = self.condition(known);
            let detail = detail.unwrap_or_default();
            let mut facts =
                Facts::from([("condition".to_owned(), stated(word.to_owned(), detail))]);
            if let Ok(attached) = &known.attached {
                let kind = stated(attached.kind.to_owned(), known.location.to_string());
                facts.insert("attached".to_owned(), kind);
            }
            self.history_changed |= self.history.observe(&known.name, Part::State, facts, time);
        }
    }

    fn keep_history(&mut self) {
        if !std::mem::take(&mut self.history_changed) {
            return;
        }
        if let Err(problem) = memory::store(&self.history_path, &self.history) {
            warn!(path = %self.history_path.display(), error = %problem, "what changed was not kept for the next start");
        }
    }

    fn wanted_uplinks(
        &self,
        host: &[Interface],
        wanted: &mut Vec<Attachment>,
    ) -> Vec<(String, Result<Attachment, String>)> {
        let mut uplinks = Vec::new();
        for uplink in &self.file.uplinks {
            let Some(found) = workload::resolve_uplink(uplink, host) else { continue };
            let found = found.map_err(|problem| explain_error(&problem));
            if let Ok(attachment) = &found {
                wanted.push(attachment.clone());
            }
            uplinks.push((uplink.interface.clone(), found));
        }
        uplinks
    }

    fn note_attached(
        &mut self,
        results: &BTreeMap<Attachment, Result<Attached, DatapathError>>,
        missing: &mut BTreeMap<Identity, String>,
    ) {
        let mut attached: BTreeMap<Identity, Result<Attached, String>> = BTreeMap::new();
        let mut seen_at: BTreeMap<Identity, (u32, Vec<IpAddr>)> = BTreeMap::new();
        for (attachment, result) in results {
            let Target::Workload { workload, addresses, .. } = &attachment.target else { continue };
            if result.is_ok() {
                let (_, all) = seen_at.entry(*workload).or_insert((attachment.ifindex, Vec::new()));
                let new = addresses.iter().filter(|address| !all.contains(address));
                let new: Vec<IpAddr> = new.copied().collect();
                all.extend(new);
            }
            let result = match result {
                Ok(how) => Ok(how.clone()),
                Err(problem) => Err(explain_error(problem)),
            };
            // It is attached when all its interfaces are.
            match attached.entry(*workload) {
                Entry::Vacant(entry) => _ = entry.insert(result),
                Entry::Occupied(mut entry) => match (entry.get_mut(), result) {
                    (Ok(all), Ok(how)) => all.before.extend(how.before),
                    (Ok(_), Err(problem)) => *entry.get_mut() = Err(problem),
                    (Err(_), _) => {}
                },
            }
        }
        for known in &mut self.workloads {
            known.seen_at = seen_at.remove(&known.identity);
            let now = attached.remove(&known.identity).unwrap_or_else(|| {
                Err(missing.remove(&known.identity).unwrap_or_else(|| "not attached".to_owned()))
            });
            if now != known.attached {
                match &now {
                    Ok(how) => {
                        if known.attached.is_err() {
                            let now = self.clock.boottime_ns();
                            self.pods.note_attached(&known.location, self.began_ns, now);
                        }
                        info!(workload = known.name, location = %known.location, kind = how.kind, before = ?how.before, "attached")
                    }
                    Err(reason) => warn!(
                        workload = known.name,
                        location = %known.location,
                        reason,
                        "not enforced"
                    ),
                }
                known.attached = now;
            }
        }
    }

    /// Whether somebody is missing who may appear without a link event of this namespace.
    pub fn is_waiting(&self) -> bool {
        let may_come = |known: &Known| known.attached.is_err() && !is_pod(&known.location);
        self.workloads.iter().any(may_come)
            || self.uplinks.iter().any(|uplink| uplink.attached.is_none())
    }

    /// Where the file wants metrics and health to be served.
    pub const fn listen(&self) -> Option<SocketAddr> {
        self.file.listen
    }

    /// How rate limit requests are to be answered, if at all.
    pub fn rls(&self) -> Option<rls::Settings> {
        self.file.rls.clone()
    }

    /// Which workload has which address, as far as its interface was found.
    pub fn addresses(&self) -> Vec<(IpAddr, quota::Workload)> {
        let of = |known: &Known| {
            // A pod's are told; others' are found at their interface.
            let found = known.seen_at.as_ref().map(|(_, addresses)| addresses);
            let addresses = Some(&known.addresses).filter(|told| !told.is_empty()).or(found)?;
            let (namespace, name) = known.name.split_once('/').unwrap_or(("", &known.name));
            let workload = quota::Workload {
                namespace: namespace.into(),
                name: name.into(),
                identity: known.key.as_str().into(),
            };
            Some(addresses.iter().map(move |address| (*address, workload.clone())).collect())
        };
        self.workloads.iter().filter_map(of).flat_map(|some: Vec<_>| some).collect()
    }

    /// What is due every second.
    pub fn tick(&mut self) {
        if let Err(problem) = self.datapath.tick() {
            error!(error = &problem as &dyn std::error::Error, "cannot tidy the maps");
        }
        self.observer.look(&self.datapath, &self.tables, self.clock.monotonic_ns());
        if self.quotas.have_changed() {
            self.reload();
        }
        // A pause that has ended was ended by the kernel, which tells nobody.
        self.note_states();
        self.keep_history();
        self.keep_last_good();
    }

    /// Clears what time has made meaningless; due once in a while.
    pub fn sweep(&mut self) {
        let cleared = self.datapath.maps().clear_old_ways(&self.clock);
        debug!(cleared, "cleared ways whose time has passed");
    }

    /// The workloads whose connections are to be compared with their sockets now. Looking at them
    /// needs no engine, and takes its time.
    pub fn audits_due(&mut self) -> Vec<Subject> {
        let mut subjects = Vec::new();
        for known in &self.workloads {
            let Some((ifindex, addresses)) = known.seen_at.clone() else { continue };
            let network = match &known.location {
                Location::Host { .. } | Location::Pod(PodLocation::Node) => None,
                Location::Namespace { netns, .. } => Some(Network::File(netns.path())),
                Location::Pod(PodLocation::Cgroup(uid)) => match self.pods.networks.get(uid) {
                    Some(network) => Some(Network::Open(network.netns.clone())),
                    None => continue,
                },
            };
            let (workload, name) = (known.identity, known.name.clone());
            subjects.push(Subject { workload, name, network, ifindex, addresses });
        }
        let now = self.clock.monotonic_ns();
        self.auditor.due(subjects, &self.datapath, now)
    }

    /// Whether there is something to audit without a look at sockets.
    pub fn audit_is_due(&self) -> bool {
        self.auditor.is_due(self.clock.monotonic_ns())
    }

    /// Takes in what looks at sockets showed; what was adopted is to be looked at again.
    pub fn audit(&mut self, looked: Vec<Looked>) -> Vec<Unconfirmed> {
        let now = self.clock.monotonic_ns();
        self.auditor.audit(looked, &self.datapath, now)
    }

    /// Takes in those second looks.
    pub fn confirm(&mut self, confirmations: Vec<Confirmation>) {
        let now = self.clock.monotonic_ns();
        self.auditor.confirm(confirmations, &self.datapath, now);
    }

    /// Takes in one event of the kernel.
    pub fn record(&mut self, event: &Event) {
        let Some((identity, refusal)) = self.refusal(event) else { return };
        self.note_refusal(identity, &refusal, event.cell);
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

    fn line(&self, workload: &str, limit: Identity) -> Option<&LineRef> {
        Some(&self.tables.workloads.get(workload)?.cells.get(&limit)?.line)
    }

    fn offered(&self, limit: Identity) -> f64 {
        self.observer.per_second(limit)
    }

    /// The stream of refusals.
    pub fn subscribe(&self) -> broadcast::Receiver<view::Refusal> {
        self.trace.subscribe()
    }

    /// Whether every workload is decided.
    pub fn ready(&self) -> bool {
        self.decided && self.pods.are_complete()
    }

    /// Pauses enforcement, or ends a pause, at somebody's word; the names it concerned. The kernel
    /// ends it by itself.
    pub fn pause(&mut self, pause: &view::Pause, by: &str) -> Result<Vec<String>, String> {
        /// A pause is for the length of an incident.
        const LONGEST: u64 = 24 * 3600;
        if pause.seconds > LONGEST {
            return Err("a pause may last 24 hours at most".to_owned());
        }
        let until = match pause.seconds {
            0 => 0,
            seconds => self.clock.monotonic_ns() + seconds * 1_000_000_000,
        };
        let mut names = Vec::new();
        let now = self.clock.monotonic_ns();
        let time = seconds(self.clock.realtime_ns());
        for known in &self.workloads {
            if pause.workload.as_ref().is_some_and(|name| *name != known.name) {
                continue;
            }
            let before = self.datapath.shadowed_until(known.identity).saturating_sub(now);
            match self.datapath.shadow_until(known.identity, until) {
                // Whoever was asked notes who asked.
                Ok(true) => {
                    names.push(known.name.clone());
                    let entry = view::HistoryEntry {
                        time,
                        key: "pause".to_owned(),
                        from: left(before.div_ceil(1_000_000_000)),
                        to: left(pause.seconds),
                        by: by.to_owned(),
                    };
                    self.history.push(&known.name, entry);
                    self.history_changed = true;
                }
                Ok(false) => {}
                Err(problem) => {
                    let (workloads, seconds) = (&names, pause.seconds);
                    warn!(?workloads, seconds, "audit: a pause reached these and then failed");
                    return Err(explain_error(&problem));
                }
            }
        }
        self.note_states();
        match (&pause.workload, names.is_empty()) {
            (Some(name), true) => Err(format!("there is no workload `{name}`")),
            _ => Ok(names),
        }
    }
}

fn stated(value: String, origin: String) -> view::Stated {
    view::Stated { value, origin }
}

/// What is left of a pause.
fn left(seconds: u64) -> Option<view::Stated> {
    let left = Period::from_millis(seconds.saturating_mul(1000))?;
    Some(stated(left.to_string(), String::new()))
}

/// What holds, by key.
fn lines(effective: &Effective) -> Facts {
    let lines = effective.lines.iter().map(|line| {
        let origin = stated(line.limit.to_string(), line.origin.to_string());
        (LineRef::Limit(line.slot).to_string(), origin)
    });
    let sourced = |value: String, origin: &Origin| stated(value, origin.to_string());
    let mut facts: Facts = lines.collect();
    let Effective { mode, on_limit, on_limit_ports, exempt, .. } = effective;
    facts.insert("mode".to_owned(), sourced(mode.value.to_string(), &mode.origin));
    facts.insert("on-limit".to_owned(), sourced(on_limit.value.to_string(), &on_limit.origin));
    for (port, on_limit) in on_limit_ports {
        let fact = sourced(on_limit.value.to_string(), &on_limit.origin);
        facts.insert(format!("on-limit.{port}"), fact);
    }
    for peer in exempt {
        facts.insert(format!("exempt {}", peer.value), sourced("exempt".to_owned(), &peer.origin));
    }
    facts
}

fn uplink_status(
    interface: String,
    found: Result<Attachment, String>,
    results: &BTreeMap<Attachment, Result<Attached, DatapathError>>,
) -> view::UplinkStatus {
    let attached = found.and_then(|attachment| match results.get(&attachment) {
        Some(Ok(attached)) => Ok(attached.kind.to_owned()),
        Some(Err(problem)) => Err(explain_error(problem)),
        None => Err("not attached".to_owned()),
    });
    match attached {
        Ok(kind) => view::UplinkStatus { interface, attached: Some(kind), detail: None },
        Err(reason) => view::UplinkStatus { interface, attached: None, detail: Some(reason) },
    }
}

const fn is_pod(location: &Location) -> bool {
    matches!(location, Location::Pod(_))
}

/// Effective changes, for whoever asks later what changed and when.
fn audit(workload: &str, change: &Change) {
    info!(workload, change = %serde_json::to_string(change).unwrap_or_default(), "audit: policy");
}

/// An error with its causes, in one line.
fn explain_error(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

fn endpoint(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
