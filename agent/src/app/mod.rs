//! `weir agent`: the wiring of files, timers, netlink and sockets to the engine.

mod bare;
mod collapse;
mod engine;
mod heap;
mod history;
mod leases;
pub(crate) mod memory;
mod netlink;
mod observe;
mod peaks;
mod proposal;
mod requests;
mod shield;
mod standby;
mod timing;
pub mod trial;
pub mod view;

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::{broadcast, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tracing::{error, info};

pub use self::engine::Engine;
use self::requests::{Requests, Told};
use crate::{
    admin::{self, Inspect, Peer, Stage},
    audit::{Again, Subject},
    clock::Clock,
    datapath::{Datapath, Events},
    kube::{self, Cluster, Poster, Releaser},
    rls,
    telemetry::LevelHandle,
    workload::{CgroupEvents, cgroup::Cgroups},
};

/// How `weir agent` runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node file.
    pub node_file: PathBuf,
    /// The root of the pins, on a BPF file system.
    pub pin_dir: PathBuf,
    /// The admin socket. What must outlive the process lies beside it.
    pub socket: PathBuf,
    /// The address for metrics and health, instead of the node file's.
    pub listen: Option<SocketAddr>,
    /// Whether workloads are explained there, too.
    pub explain_over_tcp: bool,
    /// The pods to protect, on a node of Kubernetes.
    pub kubernetes: Option<Kubernetes>,
    /// The level at which the programs in the kernel log: 0 for not at all, 1 error to 5 trace.
    pub bpf_log: u8,
    /// Where this process answers for its own health; with it, it waits for another agent of this
    /// node to end, instead of giving up.
    pub standby: Option<PathBuf>,
    /// Changes the level of the log.
    pub level: LevelHandle,
    /// Limit nothing in the kernel: only answer rate limit requests.
    pub no_datapath: bool,
}

impl Options {
    /// What clients may take of this agent.
    const fn bounds(&self) -> admin::Bounds {
        admin::Bounds { explain_over_tcp: self.explain_over_tcp, ..admin::Bounds::DEFAULT }
    }
}

/// Where pods are found.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// The node's name.
    pub node: String,
    /// Where cgroups are mounted.
    pub cgroups: PathBuf,
    /// The key of the taint that is removed from the node when the agent is ready.
    pub startup_taint: Option<String>,
    /// Whether pods' readiness gates are answered.
    pub readiness_gate: bool,
}

/// The engine, for whoever asks.
#[derive(Clone)]
pub struct Shared {
    engine: Arc<Mutex<Engine>>,
    requests: Told,
}

impl Shared {
    fn engine(&self) -> MutexGuard<'_, Engine> {
        // A panic inside would be a bug; what the kernel holds is whole all the same.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a step of the engine where it may block.
    async fn step<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let shared = self.clone();
        tokio::task::spawn_blocking(move || step(&mut shared.engine()))
            .await
            .context("a step of the agent failed")
    }
}

impl Inspect for Shared {
    fn status(&self) -> view::Status {
        let mut status = self.engine().status();
        status.problems.extend(self.requests.problem());
        status
    }

    fn explain(&self, workload: &str) -> Option<view::Explanation> {
        self.engine().explain(workload)
    }

    fn history(&self, workload: &str) -> Option<view::History> {
        self.engine().history(workload)
    }

    fn recent(&self) -> view::Recent {
        self.engine().recent()
    }

    fn suggest(&self, workload: &str) -> Option<view::Suggestion> {
        self.engine().suggest(workload)
    }

    fn pause(&self, pause: &view::Pause, by: Peer) -> Result<Vec<String>, String> {
        self.engine().pause(pause, &by.to_string())
    }

    fn rls(&self) -> Option<Arc<rls::State>> {
        self.requests.state()
    }

    fn ready(&self) -> bool {
        self.engine().ready()
    }

    fn tables_json(&self) -> serde_json::Value {
        self.engine().tables_json()
    }

    fn subscribe(&self) -> broadcast::Receiver<view::Refusal> {
        self.engine().subscribe()
    }
}

/// Runs the agent until it is told to stop. What it attached stays.
pub fn run(options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    if options.no_datapath {
        return runtime.block_on(bare::agent(options));
    }
    runtime.block_on(agent(options))
}

async fn agent(options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let clock = Clock;
    let state = options.socket.parent().unwrap_or(Path::new("/")).to_owned();
    let (stop, drain) = watch::channel(false);
    let (stage, staged) = watch::channel(Stage::Starting);
    let mut probes = None;
    let told = Told::default();
    let memory = state.join("last-good.json");
    let settings = || requests::settings(&options.node_file, &memory);
    let (socket, datapath, mut requests) = if let Some(path) = &options.standby {
        probes = Some(tokio::spawn(admin::serve_probes(admin::bind(path)?, staged, drain.clone())));
        let opened = standby::open(&options, clock)?;
        // Beside the predecessor, which is told to end when this one waits: whoever it sends away
        // finds somebody. Not earlier: one that cannot take over must answer nobody.
        let requests = Requests::start(settings(), &state, &told).await?;
        let datapath = match opened {
            Some(datapath) => Some(datapath),
            None => tokio::select! {
                opened = standby::take_over(&options, clock, &stage) => Some(opened?),
                _ = terminate.recv() => None,
                _ = interrupt.recv() => None,
            },
        };
        let Some(datapath) = datapath else {
            requests.stop().await;
            return Ok(());
        };
        (standby::bind(&options.socket).await?, datapath, requests)
    } else {
        let socket = admin::bind(&options.socket)?;
        let datapath = Datapath::open(&options.pin_dir, clock, options.bpf_log)?;
        (socket, datapath, Requests::start(settings(), &state, &told).await?)
    };
    // SAFETY: the ring owns its descriptor and is never replaced while it is registered.
    let mut events =
        unsafe { AsyncFd::register(datapath.events()?) }.context("cannot wait for events")?;
    // SAFETY: as above.
    let handups = unsafe { AsyncFd::register(datapath.handups()?) }
        .context("cannot wait for what the kernel asks")?;
    let injector = Arc::new(datapath.injector()?);
    let mut engine = Engine::new(datapath, options.node_file.clone(), memory, clock);
    if let Some(quotas) = requests.quotas() {
        engine = engine.with_quotas(quotas);
    }
    let mut pods = match &options.kubernetes {
        Some(kubernetes) => Some(PodEvents::open(kubernetes, &state).await?),
        None => None,
    };
    if let (Some(pods), Some(kubernetes)) = (&pods, &options.kubernetes) {
        engine = engine.with_pods(Arc::clone(&pods.cluster), kubernetes);
    }
    let mut answering = tokio::spawn(leases::answer(handups, engine.leases(), injector));
    let shared = Shared { engine: Arc::new(Mutex::new(engine)), requests: told };
    let mut links =
        netlink::LinkEvents::open().context("cannot listen for interfaces that come and go")?;
    let trial = trial::path(&options.socket);
    // Which file holds now, and which version of it.
    let look = || {
        let trial = trial::current(&trial);
        let holds = trial.as_ref().map_or(&options.node_file, |trial| &trial.path);
        let stamp = Stamp::of(holds);
        (trial, stamp)
    };
    let mut seen = look();
    let trial = seen.0.clone();
    shared.step(move |engine| engine.reload_with(trial)).await?;
    requests.know(shared.engine().addresses());
    let listen = match options.listen {
        Some(listen) => Some(listen),
        None => shared.engine().listen(),
    };
    let tcp = match listen {
        Some(address) => Some(
            standby::listen(address)
                .await
                .with_context(|| format!("cannot listen on {address} for metrics"))?,
        ),
        None => None,
    };
    let inspect: Arc<dyn Inspect> = Arc::new(shared.clone());
    stage.send_replace(Stage::Running(Arc::clone(&inspect)));
    let bounds = options.bounds();
    let level = options.level.clone();
    let admin = tokio::spawn(admin::serve_within(bounds, inspect, level, socket, tcp, drain));
    info!(node_file = %options.node_file.display(), pins = %options.pin_dir.display(), socket = %options.socket.display(), "the agent runs");

    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut poll = interval(Duration::from_millis(250));
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut check = interval(Duration::from_secs(30));
    let mut day = interval(Duration::from_secs(6 * 3600));
    let mut audits = pin!(shared.audit_forever());
    let mut settled = false;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                seen = look();
                let trial = seen.0.clone();
                shared.step(move |engine| engine.reload_with(trial)).await?;
                requests.compare(shared.engine().rls().as_ref());
            }
            ready = events.readable_mut() => {
                let mut ready = ready.context("cannot wait for events")?;
                shared.take(ready.get_inner_mut());
                ready.clear_ready();
            }
            changed = links.changed() => {
                let doubt = changed.context("cannot listen for interfaces that come and go")?;
                shared.step(|engine| engine.look_at_links(doubt)).await?;
            }
            changed = pod_changed(&mut pods) => match changed? {
                PodEvent::Told => shared.step(Engine::take_pods).await?,
                PodEvent::Seen(cgroups) => {
                    shared.step(move |engine| engine.find_pods(&cgroups)).await?;
                }
            },
            _ = poll.tick() => {
                if shared.engine().is_starting() {
                    shared.step(Engine::complete_start).await?;
                }
                let now = look();
                if now != seen {
                    seen = now;
                    let trial = seen.0.clone();
                    shared.step(move |engine| engine.reload_with(trial)).await?;
                    requests.compare(shared.engine().rls().as_ref());
                }
            }
            _ = second.tick() => {
                let (addresses, notices, releases) = shared.step(|engine| {
                    engine.tick();
                    engine.find_missing_pods();
                    // Namespaces come without an event in this one.
                    if engine.is_waiting() {
                        engine.reconcile();
                    }
                    (engine.addresses(), engine.notices(), engine.releases())
                }).await?;
                if let Some(pods) = &pods {
                    notices.into_iter().for_each(|notice| pods.poster.post(notice));
                    releases.into_iter().for_each(|release| pods.releaser.ask(release));
                    let cluster = Arc::clone(&pods.cluster);
                    tokio::task::spawn_blocking(move || cluster.keep());
                }
                requests.know(addresses);
                if !settled && shared.engine().ready() {
                    settled = true;
                    heap::give_back();
                }
            }
            _ = check.tick() => shared.step(Engine::check_pods).await?,
            failed = &mut audits => return Err(failed),
            failed = requests.broken() => return Err(failed),
            failed = &mut answering => {
                return Err(failed?).context("cannot wait for what the kernel asks");
            }
            _ = day.tick() => shared.step(Engine::sweep).await?,
        }
    }
    info!("the agent stops; what it attached goes on enforcing");
    requests.stop().await;
    let _ = stop.send(true);
    if tokio::time::timeout(Duration::from_secs(5), admin).await.is_err() {
        error!("an admin request did not end in time");
    }
    if let Some(probes) = probes {
        probes.await.context("the socket for probes failed")?;
    }
    Ok(())
}

/// What is heard of pods.
struct PodEvents {
    cluster: Arc<Cluster>,
    cgroups: CgroupEvents,
    watch: JoinHandle<()>,
    poster: Poster,
    releaser: Releaser,
}

enum PodEvent {
    /// The API server has told something.
    Told,
    /// Something has changed in their cgroups.
    Seen(Cgroups),
}

impl PodEvents {
    async fn open(kubernetes: &Kubernetes, state: &Path) -> anyhow::Result<Self> {
        let cluster = Cluster::remembered(kubernetes.node.clone(), state.join("pods.json"));
        let cluster = Arc::new(cluster);
        let cgroups = CgroupEvents::open(kubernetes.cgroups.clone())
            .context("cannot watch the pods' cgroups")?;
        let client = kube::connect().await?;
        let (node, posted) = (kubernetes.node.clone(), Arc::clone(cluster.posted()));
        let poster = Poster::start(client.clone(), node, posted);
        let taint = kubernetes.startup_taint.clone();
        let releaser = Releaser::start(client.clone(), Arc::clone(&cluster), taint);
        let watch = tokio::spawn(kube::watch(client, Arc::clone(&cluster)));
        Ok(Self { cluster, cgroups, watch, poster, releaser })
    }

    async fn next(&mut self) -> anyhow::Result<PodEvent> {
        tokio::select! {
            () = self.cluster.changed() => Ok(PodEvent::Told),
            changed = self.cgroups.changed() => {
                Ok(PodEvent::Seen(changed.context("cannot watch the pods' cgroups")?))
            }
            ended = &mut self.watch => {
                ended.context("the watch of the API server failed")?;
                bail!("the watch of the API server has ended")
            }
        }
    }
}

/// The next change of pods; never where there are none.
async fn pod_changed(pods: &mut Option<PodEvents>) -> anyhow::Result<PodEvent> {
    match pods {
        Some(pods) => pods.next().await,
        None => std::future::pending().await,
    }
}

impl Shared {
    /// Compares tracked connections with sockets when that is due. Ends only by a failure.
    ///
    /// Between the steps of the engine, looking at sockets holds nobody up.
    async fn audit_forever(&self) -> anyhow::Error {
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            second.tick().await;
            let shared = self.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || shared.audit()).await {
                return anyhow::Error::new(error).context("an audit failed");
            }
        }
    }

    fn audit(&self) {
        let (due, others) = {
            let mut engine = self.engine();
            (engine.audits_due(), engine.audit_is_due())
        };
        if due.is_empty() && others {
            self.engine().audit(Vec::new());
        }
        // A few at a time: what all of them show would need much memory at once.
        for some in due.chunks(16) {
            let looked = some.iter().cloned().map(Subject::look).collect();
            let untracked = self.engine().audit(looked);
            if untracked.is_empty() {
                continue;
            }
            let again = untracked.into_iter().map(Again::look).collect();
            let unconfirmed = self.engine().adopt(again);
            if !unconfirmed.is_empty() {
                let again = unconfirmed.into_iter().map(Again::look).collect();
                self.engine().confirm(again);
            }
        }
    }

    /// Takes in what the kernel told; bounded, so that a flood of events starves nobody.
    fn take(&self, events: &mut Events) {
        const AT_ONCE: usize = 4096;
        let mut engine = self.engine();
        for _ in 0..AT_ONCE {
            let Some(event) = events.next_told() else { break };
            engine.record(&event);
        }
    }
}

/// What tells one version of a file from another, also behind the symlinks of a mounted ConfigMap.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(Option<(u64, u64, i64, i64, u64)>);

impl Stamp {
    fn of(path: &Path) -> Self {
        Self(
            fs::metadata(path)
                .ok()
                .map(|meta| (meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size())),
        )
    }
}
