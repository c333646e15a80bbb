//! The audit: do the connections that the kernel tracks exist, and does it track those that exist?
//!
//! The kernel follows segments, so it errs where it misses some: before it was attached, while a
//! client vanished, while no rule counted. Sockets are the truth for a workload whose connections end
//! in its network namespace. Now and then the audit lists them, removes what has no socket and adopts
//! what is not tracked, by the functions and compare-and-swaps that the kernel's programs use
//! ([`crate::datapath::Tracks`]). It learns nothing for breakers and spends no tokens.
//!
//! It refuses to know how rules came to be, who runs it, and when a second has passed. Looking takes
//! its time and holds no lock; acting takes little and checks again.

mod drift;
mod judge;
mod sockets;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    env, io,
    path::PathBuf,
    time::Duration,
};

use tracing::{info, warn};
use weir_common::{addr::Addr, layout::Direction};

pub use self::judge::Missing;
use self::{
    drift::Drifts,
    judge::{Judged, Look, Suspects, judge, missing},
    sockets::Sockets,
};
use crate::{
    app::view::AuditStatus,
    compile::Identity,
    datapath::{Adopted, Adoption, Connection, Datapath, Rules, Tracks},
    workload::{interfaces, netns::NetNs},
};

/// How often a workload is looked at.
const INTERVAL: Duration = Duration::from_secs(30);
/// How soon after its first look: handshakes that were under way then are complete by now.
const SECOND_LOOK: Duration = Duration::from_secs(5);

/// Whole seconds between two audits, instead of 30. For tests, which cannot wait: it is no setting,
/// and may go.
const INTERVAL_VARIABLE: &str = "WEIR_AUDIT_INTERVAL";

/// A workload that can be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Which.
    pub workload: Identity,
    /// Its name, for people.
    pub name: String,
    /// Its network namespace; none for the agent's own.
    pub network: Option<Network>,
    /// The interface that its packets are seen at: another one, another workload behind it.
    pub ifindex: u32,
    /// Its addresses.
    pub addresses: Vec<std::net::IpAddr>,
}

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// By the file that is to be opened.
    File(PathBuf),
    /// Open.
    Open(NetNs),
}

impl Network {
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        match self {
            Self::File(path) => NetNs::open(&path.to_string_lossy())?.run(work),
            Self::Open(netns) => netns.run(work),
        }
    }
}

/// What a look at a subject showed.
#[derive(Debug)]
pub struct Looked {
    subject: Subject,
    look: io::Result<Look>,
}

impl Subject {
    /// Lists the sockets of its namespace, on a thread of their own. This may take a while.
    pub fn look(self) -> Looked {
        let context = |what, error| io::Error::other(format!("{what}: {error}"));
        let inside = || {
            let list = interfaces::list().map_err(|error| context("its addresses", error))?;
            let addresses = list.into_iter().flat_map(|interface| interface.addresses);
            // Without the kernel's tcp_diag there is no such family: "no such file or directory".
            let sockets = Sockets::dump().map_err(|error| context("its sockets", error))?;
            Ok(Look { sockets, addresses: addresses.map(Addr::from).collect() })
        };
        let look = match &self.network {
            Some(network) => network
                .run(inside)
                .map_err(|error| context("its network namespace", error))
                .flatten(),
            None => inside(),
        };
        Looked { subject: self, look }
    }
}

/// What a look showed of a subject that needs another one.
#[derive(Debug)]
pub struct Again<T> {
    subject: Subject,
    about: Vec<T>,
}

/// Connections that had a socket before they were found untracked: one that ended in between was seen to
/// end, and has none any more.
pub type Untracked = Again<Missing>;
/// What was adopted: who closed before that closed unseen.
pub type Unconfirmed = Again<(Missing, Adopted)>;

impl<T> Again<T> {
    /// Looks once more, see [`Subject::look`].
    pub fn look(self) -> LookedAgain<T> {
        LookedAgain { looked: self.subject.look(), about: self.about }
    }
}

/// See [`Again::look`].
#[derive(Debug)]
pub struct LookedAgain<T> {
    looked: Looked,
    about: Vec<T>,
}

/// What is known of one workload.
#[derive(Debug)]
struct Audited {
    subject: Subject,
    slot: u32,
    blocks: Vec<u32>,
    looks: u64,
    due_ns: u64,
    last_ns: Option<u64>,
    suspects: Suspects,
    view: AuditStatus,
}

/// What audits found so far.
#[derive(Debug)]
pub struct Auditor {
    interval_ns: u64,
    workloads: BTreeMap<Identity, Audited>,
    orphans: Suspects,
    drifts: Drifts,
    corrected: u64,
    node_due_ns: u64,
}

impl Auditor {
    /// One that has not looked yet.
    pub fn new() -> Self {
        let seconds = env::var(INTERVAL_VARIABLE).ok().and_then(|text| text.parse().ok());
        let interval = seconds.filter(|s| *s > 0).map_or(INTERVAL, Duration::from_secs);
        Self {
            interval_ns: interval.as_nanos() as u64,
            workloads: BTreeMap::new(),
            orphans: Suspects::new(),
            drifts: Drifts::default(),
            corrected: 0,
            node_due_ns: 0,
        }
    }

    /// Of the workloads that can be looked at, those that are tracked and due: at once when they are
    /// new here, have other rules or another interface, then again a little later, then at every
    /// interval.
    pub fn due(&mut self, all: Vec<Subject>, datapath: &Datapath, now_ns: u64) -> Vec<Subject> {
        let mut due = Vec::new();
        let mut tracked = BTreeSet::new();
        for subject in all {
            let rules = datapath.rules(subject.workload).filter(Rules::is_tracked);
            let Some(rules) = rules else { continue };
            tracked.insert(subject.workload);
            let (slot, blocks) = (rules.slot(), rules.blocks());
            let audited = self.workloads.entry(subject.workload).or_insert_with(|| Audited {
                subject: subject.clone(),
                slot,
                blocks: blocks.clone(),
                looks: 0,
                due_ns: now_ns,
                last_ns: None,
                suspects: Suspects::new(),
                view: AuditStatus::default(),
            });
            if audited.slot != slot || audited.subject.ifindex != subject.ifindex {
                audited.suspects.clear();
            }
            if audited.slot != slot || audited.blocks != blocks || audited.subject != subject {
                (audited.looks, audited.due_ns) = (0, now_ns);
                (audited.slot, audited.blocks) = (slot, blocks);
                audited.subject.clone_from(&subject);
            }
            if audited.due_ns <= now_ns {
                due.push(subject);
            }
        }
        // One that cannot be looked at for now keeps what is known of it, as long as it is tracked.
        self.workloads.retain(|workload, _| {
            tracked.contains(workload) || datapath.rules(*workload).is_some_and(|r| r.is_tracked())
        });
        due
    }

    /// Whether connections of workloads that are tracked no more are to be looked for.
    pub fn is_due(&self, now_ns: u64) -> bool {
        self.node_due_ns <= now_ns
    }

    /// Takes in what looks showed, and acts on it; but for what is untracked.
    pub fn audit(
        &mut self,
        looked: Vec<Looked>,
        datapath: &Datapath,
        now_ns: u64,
    ) -> Vec<Untracked> {
        let tracks = match datapath.tracks() {
            Ok(tracks) => tracks,
            Err(error) => {
                for Looked { subject, .. } in looked {
                    self.fail(&subject, &error, now_ns);
                }
                self.node_due_ns = now_ns + self.interval_ns;
                return Vec::new();
            }
        };
        let mut by_slot = BTreeMap::<u32, Vec<Connection>>::new();
        for connection in tracks.established() {
            by_slot.entry(connection.workload).or_default().push(connection);
        }
        let mut untracked = Vec::new();
        for Looked { subject, look } in looked {
            match look {
                Ok(look) => {
                    let slot = datapath.rules(subject.workload).map_or(0, |rules| rules.slot());
                    let tracked = by_slot.remove(&slot).unwrap_or_default();
                    let about = self.compare(&subject, &look, tracked, datapath, &tracks, now_ns);
                    if !about.is_empty() {
                        untracked.push(Again { subject, about });
                    }
                }
                Err(error) => self.fail(&subject, &error, now_ns),
            }
        }
        if self.is_due(now_ns) {
            self.node_due_ns = now_ns + self.interval_ns;
            // Those of slots that are no workload's at all go when the slot is given back.
            self.remove_orphans(datapath, &tracks, by_slot);
            self.correct_counters(datapath, &tracks);
        }
        untracked
    }

    fn compare(
        &mut self,
        subject: &Subject,
        look: &Look,
        tracked: Vec<Connection>,
        datapath: &Datapath,
        tracks: &Tracks<'_>,
        now_ns: u64,
    ) -> Vec<Missing> {
        // What was true when the look began may not be any more.
        let Some(audited) = self.workloads.get_mut(&subject.workload) else { return Vec::new() };
        let rules = datapath.rules(subject.workload).filter(Rules::is_tracked);
        let Some(rules) = rules.filter(|_| audited.subject == *subject) else { return Vec::new() };
        let slot = rules.slot();

        if audited.looks == 0 {
            // Rules that came after a connection have not counted it.
            for connection in &tracked {
                let port = match connection.direction {
                    Direction::Ingress => connection.key.local_port,
                    Direction::Egress => connection.key.remote_port,
                };
                if let Some(block) = rules.of_port(connection.direction, port) {
                    tracks.count_late(connection, block);
                }
            }
        }
        let Judged { gone, suspects, unjudged, tracked } = judge(tracked, look, &audited.suspects);
        let removed = gone.iter().filter(|connection| tracks.remove(connection)).count() as u64;

        let addresses: HashSet<Addr> = subject.addresses.iter().copied().map(Addr::from).collect();
        let of_port = |direction, port| rules.of_port(direction, port);
        let missing = missing(look, &addresses, of_port, |key| tracks.is_tracked(slot, key));

        audited.suspects = suspects;
        audited.looks += 1;
        let wait = match audited.looks {
            1 => self.interval_ns.min(SECOND_LOOK.as_nanos() as u64),
            _ => self.interval_ns,
        };
        (audited.due_ns, audited.last_ns) = (now_ns + wait, Some(now_ns));
        let view = &mut audited.view;
        view.tracked = tracked.saturating_sub(removed);
        view.unjudged = unjudged;
        // What is untracked is added when it was looked at again.
        (view.excess, view.missing) = (removed, 0);
        view.removed += removed;
        view.error = None;
        if removed > 0 {
            info!(workload = subject.name, removed, "tracked connections without a socket");
        }
        missing
    }

    /// Takes in second looks: adopts what still has its socket, and is still not tracked.
    pub fn adopt(
        &mut self,
        again: Vec<LookedAgain<Missing>>,
        datapath: &Datapath,
        now_ns: u64,
    ) -> Vec<Unconfirmed> {
        let mut unconfirmed = Vec::new();
        for LookedAgain { looked: Looked { subject, look }, about } in again {
            match datapath.tracks().map_err(io::Error::other).and_then(|tracks| Ok((tracks, look?)))
            {
                Ok((tracks, look)) => {
                    let about = self.adopt_all(&subject, &look, about, datapath, &tracks);
                    if !about.is_empty() {
                        unconfirmed.push(Again { subject, about });
                    }
                }
                Err(error) => self.fail(&subject, &error, now_ns),
            }
        }
        unconfirmed
    }

    fn adopt_all(
        &mut self,
        subject: &Subject,
        look: &Look,
        missing: Vec<Missing>,
        datapath: &Datapath,
        tracks: &Tracks<'_>,
    ) -> Vec<(Missing, Adopted)> {
        let Some(audited) = self.workloads.get_mut(&subject.workload) else { return Vec::new() };
        let rules = datapath.rules(subject.workload).filter(Rules::is_tracked);
        let Some(rules) = rules.filter(|_| audited.subject == *subject) else { return Vec::new() };
        let mut adopted = Vec::new();
        let mut no_room = 0;
        for connection in missing {
            let Missing { key, direction, cookie, .. } = connection;
            let socket = look.sockets.connections.get(&key);
            let Some(half) = socket.filter(|it| it.cookie == cookie).and_then(|it| it.adoptable())
            else {
                continue;
            };
            let port = match direction {
                Direction::Ingress => key.local_port,
                Direction::Egress => key.remote_port,
            };
            let Some(block) = rules.of_port(direction, port) else { continue };
            match tracks.adopt(rules.slot(), direction, &key, block, half) {
                Adoption::Adopted(place) => adopted.push((connection, place)),
                Adoption::NoRoom => no_room += 1,
                Adoption::Known | Adoption::NotCounted => {}
            }
        }
        audited.view.missing = no_room;
        if no_room > 0 {
            warn!(
                workload = subject.name,
                no_room, "there is no room to track connections that are open"
            );
        }
        adopted
    }

    /// Takes in third looks: what was adopted and is gone by now may have closed unseen.
    pub fn confirm(
        &mut self,
        again: Vec<LookedAgain<(Missing, Adopted)>>,
        datapath: &Datapath,
        now_ns: u64,
    ) {
        for LookedAgain { looked: Looked { subject, look }, about: adopted } in again {
            let all = adopted.len() as u64;
            let disowned = match look {
                Ok(look) => disown(&subject, &look, &adopted, datapath),
                // Whatever is gone will have no socket in the next audits.
                Err(error) => {
                    self.fail(&subject, &error, now_ns);
                    0
                }
            };
            let adopted = all.saturating_sub(disowned);
            if let Some(audited) = self.workloads.get_mut(&subject.workload) {
                let view = &mut audited.view;
                view.tracked += adopted;
                view.missing += adopted;
                view.adopted += adopted;
            }
            if adopted > 0 {
                info!(workload = subject.name, adopted, "connections that were not tracked");
            }
        }
    }

    /// Removes connections whose workload is not tracked any more: nobody sees them end.
    fn remove_orphans(
        &mut self,
        datapath: &Datapath,
        tracks: &Tracks<'_>,
        by_slot: BTreeMap<u32, Vec<Connection>>,
    ) {
        let tracked = datapath.tracked_slots();
        let mut suspects = Suspects::new();
        let mut removed = 0u64;
        for connection in by_slot.into_values().flatten() {
            if tracked.contains(&connection.workload) {
                continue;
            }
            let state = (connection.word, connection.seen);
            if self.orphans.get(&connection.place) == Some(&state) {
                removed += u64::from(tracks.remove(&connection));
            } else {
                suspects.insert(connection.place, state);
            }
        }
        self.orphans = suspects;
        if removed > 0 {
            info!(removed, "connections of workloads that are not tracked any more");
        }
    }

    /// Corrects counters that are wrong although every connection is right: a count that was lost when
    /// too many CPUs changed a word at once, or when an agent died between two steps.
    fn correct_counters(&mut self, datapath: &Datapath, tracks: &Tracks<'_>) {
        for wrong in self.drifts.judge(&tracks.recount(datapath.loads())) {
            if tracks.correct(&wrong) {
                self.corrected += 1;
                warn!(
                    counter = ?wrong.counter,
                    held = wrong.holds,
                    found = wrong.found,
                    "a count of open connections was wrong, and is corrected"
                );
            }
        }
    }

    /// Counters that were corrected.
    pub const fn corrected(&self) -> u64 {
        self.corrected
    }

    fn fail(&mut self, subject: &Subject, error: &(impl std::error::Error + 'static), now_ns: u64) {
        let Some(audited) = self.workloads.get_mut(&subject.workload) else { return };
        audited.due_ns = now_ns + self.interval_ns;
        audited.view.errors += 1;
        let text = error.to_string();
        if audited.view.error.as_ref() != Some(&text) {
            warn!(
                workload = subject.name,
                error = error as &dyn std::error::Error,
                "its sockets cannot be compared with its tracked connections"
            );
        }
        audited.view.error = Some(text);
    }

    /// What the last audit of a workload found; `None` for one that is not audited.
    pub fn status(&self, workload: Identity, now_ns: u64) -> Option<AuditStatus> {
        let audited = self.workloads.get(&workload)?;
        let mut view = audited.view.clone();
        view.age_seconds = audited.last_ns.map(|last| now_ns.saturating_sub(last) as f64 / 1e9);
        Some(view)
    }
}

/// Takes back the adoption of what has no socket any more, or was tracked by the kernel at the same
/// moment; how many that were.
fn disown(
    subject: &Subject,
    look: &Look,
    adopted: &[(Missing, Adopted)],
    datapath: &Datapath,
) -> u64 {
    let rules = datapath.rules(subject.workload);
    let (Ok(tracks), Some(rules)) = (datapath.tracks(), rules) else { return 0 };
    let disowned = adopted.iter().filter(|(missing, adopted)| {
        let now = look.sockets.connections.get(&missing.key);
        match now {
            Some(socket) if socket.cookie == missing.cookie => {
                tracks.disown_twin(rules.slot(), &missing.key, *adopted)
            }
            _ => tracks.disown(*adopted),
        }
    });
    disowned.count() as u64
}

impl Default for Auditor {
    fn default() -> Self {
        Self::new()
    }
}
