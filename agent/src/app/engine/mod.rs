//! The agent's state and its transitions: what the file says, what the kernel holds, what is seen.
//!
//! One lock guards all of it ([`super::Shared`]); every method is one step that leaves it whole.
//! It refuses to know who asks: timers, netlink, files and sockets are `super::run`'s.

mod answers;
mod attachments;
mod audits;
mod changes;
mod collapses;
mod evidence;
mod pods;
mod quotas;
mod refusals;
mod releases;
mod shields;
mod start;
mod trials;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use tokio::sync::broadcast;
use tracing::{debug, error, info, warn};

use self::{
    collapses::Collapses, evidence::Evidence, pods::Pods, quotas::Spent, shields::Shields,
    start::Start, trials::OnTrial,
};
use super::{
    history::History,
    leases::Leases,
    memory::{self, Keeper, Memory},
    observe::Observer,
    view,
};
use crate::{
    audit::Auditor,
    causes::with_causes,
    clock::Clock,
    compile::{Change, Compiled, Identity, NodeFacts, Tables, WorkloadTable, compile, diff},
    config::{self, Evaluated, Location, NodeFile, Report, Workload, evaluate_all, read},
    datapath::{Attached, Datapath, Doubt},
    policy::{Effective, LastGood, Problem},
    quota::{Now, Quotas},
    rls, workload,
};

/// Refusals that a slow reader of the trace may fall behind.
const TRACE: usize = 1024;

/// Who else limits bytes towards and from each workload.
type Shaped = BTreeMap<Identity, [Option<String>; 2]>;

/// Everything the agent knows.
pub struct Engine {
    datapath: Datapath,
    clock: Clock,
    started_ns: u64,
    /// The same by the clock of processes' starts.
    began_ns: u64,
    path: PathBuf,
    /// The file that holds in its place for now.
    trial: Option<OnTrial>,
    memory: Keeper,
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
    shields: Shields,
    /// Who else limits the bytes of workloads of which Kubernetes' annotations ask the same.
    shaped: Shaped,
    tables: Tables,
    /// Whether the kernel holds the tables.
    applied: Applied,
    observer: Observer,
    history: History,
    history_file: Keeper,
    /// Whether the history is newer than its file.
    history_changed: bool,
    auditor: Auditor,
    quotas: Spent,
    evidence: Evidence,
    collapses: Collapses,
    refusals: BTreeMap<Identity, VecDeque<view::Refusal>>,
    latest: VecDeque<view::Refusal>,
    trace: broadcast::Sender<view::Refusal>,
    decided: bool,
    /// What a first start leaves for later.
    start: Start,
}

/// Whether the kernel holds what it should.
enum Applied {
    /// Nothing was tried: whatever an agent before this one left is there.
    NotYet,
    /// All of it.
    Whole,
    /// Not all of it, and why.
    Partly(String),
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
    /// Whether packets reach it past the host's end of its veth.
    is_bypassed: bool,
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
        let shields = Shields::inherit(datapath.inherited_shields());
        let start = if datapath.is_fresh() { Start::First } else { Start::Over };
        let mut engine = Self {
            datapath,
            clock,
            started_ns: clock.monotonic_ns(),
            began_ns: clock.boottime_ns(),
            path,
            trial: None,
            history_file: Keeper::new(memory.with_file_name("history.json")),
            memory: Keeper::new(memory),
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
            shields,
            shaped: Shaped::new(),
            tables: Tables::default(),
            applied: Applied::NotYet,
            observer: Observer::default(),
            history: History::default(),
            history_changed: false,
            auditor: Auditor::new(),
            quotas: Spent::default(),
            evidence: Evidence::default(),
            collapses: Collapses::new(),
            refusals: BTreeMap::new(),
            latest: VecDeque::new(),
            trace: broadcast::channel(TRACE).0,
            decided: false,
            start,
        };
        engine.remember_last_good();
        engine
    }

    /// What held before this process, so that a file that is broken now removes nothing.
    fn remember_last_good(&mut self) {
        match memory::load(self.history_file.path()) {
            Ok(history) => self.history = history.unwrap_or_default(),
            Err(problem) => {
                warn!(path = %self.history_file.path().display(), error = %problem, "what changed before is not known");
            }
        }
        match memory::load::<Memory>(self.memory.path()) {
            Ok(Some(memory)) => {
                let name = self.path.display().to_string();
                if let Ok(reading) = read(&memory.file, &name, None) {
                    (self.file, self.text) = (reading.file, memory.file);
                }
                self.last_good = memory.last_good;
            }
            Ok(None) => {}
            Err(problem) => {
                warn!(path = %self.memory.path().display(), error = %problem, "the last good policy is not known");
            }
        }
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
        self.quotas.look();
        let path = self.path();
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
        self.note_trial(text.is_some());
        let file = self.file.clone();
        let pods = self.pods.workloads();
        let evaluated = self.evaluate(&file, &pods);
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
            self.datapath.doubt(Doubt::All);
            self.pods.networks.list_again();
            self.reconcile();
        }
        self.keep_last_good();
    }

    /// What holds for the workloads of the file and for pods.
    fn evaluate<'a>(&self, file: &'a NodeFile, pods: &'a [Arc<Workload>]) -> Vec<Evaluated<'a>> {
        let workloads = file.workloads.iter().chain(pods.iter().map(Arc::as_ref));
        let administrator = file.administrator.on_node(&self.pods.node_labels);
        let mut evaluated = evaluate_all(&administrator, workloads, &self.last_good);
        for one in &mut evaluated {
            if let Some(others) = self.shaped.get(&Identity::workload(&one.workload.identity)) {
                one.leave_to(others);
            }
        }
        evaluated
    }

    /// Makes hold what follows from what is known now.
    fn hold_again(&mut self) {
        let (file, pods) = (self.file.clone(), self.pods.workloads());
        let evaluated = self.evaluate(&file, &pods);
        let compiled = self.compile(&evaluated);
        if self.hold(evaluated, compiled) {
            self.reconcile();
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
        let is_news = self.tables != tables;
        self.tables = tables;
        if is_news || !matches!(self.applied, Applied::Whole) {
            self.apply();
        }
        self.quotas.enter(quotas, &self.datapath, now);
        let mut before: BTreeMap<String, Known> =
            self.workloads.drain(..).map(|known| (known.key.clone(), known)).collect();
        // At first programs are attached in the directions in which something is judged.
        let mut moved = before.len() != evaluated.len() || self.start.is_under_way();
        let mut last_good = BTreeMap::new();
        for Evaluated { workload, effective, last_good: good, mut problems, remarks } in evaluated {
            let key = workload.identity.clone();
            last_good.insert(key.clone(), good);
            let known = before.remove(&key);
            let stayed = |known: &Known| {
                known.location == workload.location && known.addresses == workload.addresses
            };
            moved |= !known.as_ref().is_some_and(stayed);
            let (attached, hooked, seen_at, is_bypassed) = match known {
                Some(known) => (known.attached, known.hooked, known.seen_at, known.is_bypassed),
                None => (Err("not attached yet".to_owned()), None, None, false),
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
                remarks,
                attached,
                is_bypassed,
                hooked,
                seen_at,
            };
            // Programs that limit bytes are attached where there are such limits.
            let table = self.tables.workloads.get(&known.key);
            let volumes = table.is_some_and(WorkloadTable::limits_volumes);
            let had = known.attached.as_ref().is_ok_and(|attached| attached.pacing.is_some());
            moved |= known.attached.is_ok() && had != volumes;
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

    /// Makes the kernel hold the tables. What it refuses is tried again every second: room may come
    /// with the grace of what was freed.
    fn apply(&mut self) {
        self.applied = match self.datapath.apply(&self.tables) {
            Ok(()) => Applied::Whole,
            Err(problem) => {
                let why = with_causes(&problem);
                if !matches!(&self.applied, Applied::Partly(known) if *known == why) {
                    error!(error = why, "the tables do not hold as a whole");
                }
                Applied::Partly(why)
            }
        };
    }

    /// Where the file wants metrics and health to be served.
    pub const fn listen(&self) -> Option<SocketAddr> {
        self.file.listen
    }

    /// How rate limit requests are to be answered, if at all.
    pub fn rls(&self) -> Option<rls::Settings> {
        self.file.rls.clone()
    }

    /// What the kernel asks about, for whoever answers.
    pub fn leases(&self) -> Arc<Leases> {
        Arc::clone(self.quotas.leases())
    }

    /// What is due every second.
    pub fn tick(&mut self) {
        if let Err(problem) = self.datapath.tick() {
            error!(error = &problem as &dyn std::error::Error, "cannot tidy the maps");
        }
        self.quotas.leases().tell();
        // Who came since has not heard; an event may have been lost.
        self.share_evidence();
        self.observer.look(&self.datapath, &self.tables, self.clock.monotonic_ns());
        self.look_for_collapses();
        self.look_for_floods();
        if self.quotas.have_changed() {
            self.reload();
        }
        if matches!(self.applied, Applied::Partly(_)) {
            self.apply();
            if matches!(self.applied, Applied::Whole) {
                // Who had no slot had no programs either.
                self.reconcile();
            }
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

    /// Whether every workload is decided.
    pub fn ready(&self) -> bool {
        self.decided && self.pods.are_complete()
    }
}

/// Effective changes, for whoever asks later what changed and when.
fn audit(workload: &str, change: &Change) {
    info!(workload, change = %serde_json::to_string(change).unwrap_or_default(), "audit: policy");
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
