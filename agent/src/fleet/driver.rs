//! Runs the state machine against Redis, on a thread of its own.
//!
//! All that decisions share with it are words and a queue of bounded length: a leased decision never
//! comes here. Everything that came up meanwhile goes out as one batch. A batch that fails or takes too
//! long ends the connection, and until a new one takes writes nothing is asked and nobody waits.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, timeout},
};
use tracing::{info, warn};

use super::{
    alarm::Alarm,
    directory::{Directory, Quota},
    leaser::{Command, Leaser, Round},
    node::{Node, QuotaId},
    registry,
    store::{
        Reply, Request,
        redis::{Executed, Link, RedisSettings, StoreError},
    },
    survey::Survey,
    terms::Moment,
};
use crate::quota::shared::Cell;

/// So long a decision waits for the store, and a store that takes longer is late. What is left of five
/// milliseconds is for everything else, as being given a CPU.
pub(super) const PATIENCE: Duration = Duration::from_micros(3500);
/// A quota that nobody uses for so long is let go.
const IDLE_NS: u64 = 60_000_000_000;
const SWEEP: Duration = Duration::from_secs(10);
const MOST_AT_ONCE: usize = 4096;

/// What a decision asks of the driver.
#[derive(Debug)]
pub(super) enum Message {
    /// More than the lease has is wanted, and somebody waits.
    Wanted { quota: Arc<Quota>, hits: u32, done: oneshot::Sender<()> },
    /// The lease runs low.
    Low(Arc<Quota>),
    /// There was no lease, and the store is too late to wait for.
    Missed(Arc<Quota>),
    /// Ask the store for this one decision.
    Strict { request: Request, done: oneshot::Sender<Option<Reply>> },
    /// Let the first of these go, and keep leases of the others ahead, and say when that is done.
    Hold { release: Vec<Arc<Quota>>, hold: Vec<Arc<Quota>>, done: oneshot::Sender<()> },
    /// Do this, whatever comes of it.
    Tell(Request),
    /// Who else is there, and what is spent together with them?
    Survey(oneshot::Sender<Survey>),
    /// Give everything back and end.
    Stop(oneshot::Sender<()>),
}

/// How the store does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// It answers in time.
    Up = 0,
    /// It answers too late to wait for.
    Late = 1,
    /// It does not answer.
    Down = 2,
}

/// What the driver tells everybody.
#[derive(Debug)]
pub(super) struct Board {
    health: AtomicU8,
    /// Tells who waits that the store is not up any more.
    pub(super) fell: Notify,
    /// Told whether the store does not answer.
    away: Mutex<Option<Arc<dyn Cell>>>,
    pub(super) commands: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) totals: Totals,
}

/// Sums over all quotas, for metrics.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) quotas: AtomicU64,
    pub(super) stranded: AtomicU64,
    pub(super) overshoot: AtomicU64,
    pub(super) assumed: AtomicU64,
    pub(super) share: AtomicU64,
    pub(super) oldest_lease_ms: AtomicU64,
}

impl Board {
    pub(super) fn new() -> Self {
        Self {
            health: AtomicU8::new(Health::Down as u8),
            fell: Notify::new(),
            away: Mutex::default(),
            commands: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            totals: Totals::default(),
        }
    }

    pub(super) fn health(&self) -> Health {
        match self.health.load(Relaxed) {
            0 => Health::Up,
            1 => Health::Late,
            _ => Health::Down,
        }
    }

    fn set_health(&self, health: Health) {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        self.health.store(health as u8, Relaxed);
        Self::tell(away.as_deref(), health);
        if health != Health::Up {
            self.fell.notify_waiters();
        }
    }

    /// From here on the kernel is told, too.
    pub(super) fn tell_the_kernel(&self, away: Arc<dyn Cell>) {
        let mut told = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        Self::tell(Some(&*away), self.health());
        *told = Some(away);
    }

    fn tell(away: Option<&dyn Cell>, health: Health) {
        if let Some(word) = away.and_then(Cell::word) {
            // A SYN can wait for a store that is late.
            word.store(u64::from(health == Health::Down), Relaxed);
        }
    }
}

/// What a batch was for.
#[derive(Debug)]
enum Purpose {
    Lease(QuotaId, Command),
    Strict(oneshot::Sender<Option<Reply>>),
    Tell,
}

struct Sent {
    link: u64,
    sent: Instant,
    purposes: Vec<Purpose>,
    result: Result<Executed, StoreError>,
}

/// How this node is known.
#[derive(Clone, Debug)]
pub(super) struct Who {
    pub(super) cluster: String,
    pub(super) node: String,
}

pub(super) struct Driver {
    pub(super) who: Who,
    pub(super) settings: RedisSettings,
    pub(super) timeout: Duration,
    pub(super) jitter_s: u32,
    pub(super) directory: Arc<Directory>,
    pub(super) board: Arc<Board>,
    pub(super) now: fn() -> Moment,
    pub(super) seed: u64,
}

struct Running {
    driver: Driver,
    node: Node,
    quotas: HashMap<QuotaId, Arc<Quota>>,
    waiting: HashMap<QuotaId, Vec<(Round, oneshot::Sender<()>)>>,
    link: Option<Link>,
    /// Counts connections, so that a batch of an old one cannot end a new one.
    links: u64,
    outbox: Vec<(Purpose, Request)>,
    in_flight: FuturesUnordered<BoxFuture<'static, Sent>>,
    /// When the oldest batch that is under way was sent.
    sent: Vec<Instant>,
    connecting: Option<BoxFuture<'static, Result<Link, StoreError>>>,
    connect_at: Instant,
    failed: u32,
    register_at: Instant,
    /// What quotas that were let go had counted.
    past: super::leaser::Tally,
}

impl Driver {
    pub(super) async fn run(self, mut alarm: Alarm, mut messages: mpsc::Receiver<Message>) {
        let mut node = Node::new(self.seed);
        let now = Instant::now();
        node.store_is(false, (self.now)());
        let mut running = Running {
            node,
            quotas: HashMap::new(),
            waiting: HashMap::new(),
            link: None,
            links: 0,
            outbox: Vec::new(),
            in_flight: FuturesUnordered::new(),
            sent: Vec::new(),
            connecting: None,
            connect_at: now,
            failed: 0,
            register_at: now,
            past: Default::default(),
            driver: self,
        };
        let mut sweep = tokio::time::interval(SWEEP);
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            running.connect_if_due();
            running.register_if_due();
            running.send();
            alarm.set(running.wake_at());
            tokio::select! {
                message = messages.recv() => {
                    let Some(message) = message else { return };
                    if let Some(stopped) = running.take_in(message) {
                        running.stop(stopped).await;
                        return;
                    }
                    for _ in 0..MOST_AT_ONCE {
                        let Ok(message) = messages.try_recv() else { break };
                        if let Some(stopped) = running.take_in(message) {
                            running.stop(stopped).await;
                            return;
                        }
                    }
                }
                Some(sent) = running.in_flight.next(), if !running.in_flight.is_empty() => {
                    running.answered(sent);
                }
                connected = async {
                    match running.connecting.as_mut() {
                        Some(connecting) => connecting.await,
                        None => std::future::pending().await,
                    }
                } => {
                    running.connecting = None;
                    running.connected(connected);
                }
                () = alarm.rings() => running.time_has_passed(),
                _ = sweep.tick() => running.sweep(),
                _ = second.tick() => running.publish(),
            }
        }
    }
}

impl Running {
    fn now(&self) -> Moment {
        (self.driver.now)()
    }

    fn take_in(&mut self, message: Message) -> Option<oneshot::Sender<()>> {
        match message {
            Message::Wanted { quota, hits, done } => {
                let id = self.id(&quota);
                let now = self.now();
                let round = self.node.wanted(id, hits, now);
                self.waiting.entry(id).or_default().push((round, done));
                self.wake(id);
            }
            Message::Low(quota) => {
                let id = self.id(&quota);
                let now = self.now();
                self.node.low(id, now);
                self.wake(id);
                self.unpoke(id);
            }
            Message::Missed(quota) => {
                let id = self.id(&quota);
                let now = self.now();
                self.node.wanted(id, 1, now);
                self.wake(id);
                self.unpoke(id);
            }
            // Who asked hears of it by the sender's end.
            Message::Strict { .. } | Message::Tell(_) if self.link.is_none() => {}
            Message::Strict { request, done } => self.outbox.push((Purpose::Strict(done), request)),
            Message::Hold { release, hold, done } => {
                let now = self.now();
                release.iter().filter_map(|quota| quota.id()).for_each(|id| self.let_go(id, now));
                for quota in &hold {
                    let id = self.id(quota);
                    self.node.low(id, now);
                }
                // Who gave up is not there any more.
                let _ = done.send(());
            }
            Message::Tell(request) => self.outbox.push((Purpose::Tell, request)),
            Message::Survey(done) => self.survey(done),
            Message::Stop(stopped) => return Some(stopped),
        }
        None
    }

    fn id(&mut self, quota: &Arc<Quota>) -> QuotaId {
        if let Some(id) = quota.id() {
            return id;
        }
        let id = self.node.add(quota.terms.clone(), quota.line.clone());
        quota.set_id(Some(id));
        self.quotas.insert(id, quota.clone());
        id
    }

    /// Lets those look again who waited for what came.
    fn wake(&mut self, id: QuotaId) {
        let answered = self.node.get(id).map_or(Round::MAX, Leaser::answered);
        if let Some(waiting) = self.waiting.get_mut(&id) {
            for (_, done) in waiting.extract_if(.., |(round, _)| *round < answered) {
                // Who gave up is not there any more.
                let _ = done.send(());
            }
            if waiting.is_empty() {
                self.waiting.remove(&id);
            }
        }
    }

    /// From now on it may be said again that a lease runs low.
    fn unpoke(&self, id: QuotaId) {
        let asking = self.node.get(id).is_some_and(Leaser::is_asking);
        if let Some(quota) = self.quotas.get(&id).filter(|_| !asking) {
            quota.line.cell().unpoke();
        }
    }

    /// Sends all that there is to ask.
    fn send(&mut self) {
        let commands = self.node.commands();
        self.queue(commands);
        self.send_queued();
    }

    fn queue(&mut self, commands: Vec<(QuotaId, Command)>) {
        for (id, command) in commands {
            let Some(leaser) = self.node.get(id) else { continue };
            let terms = leaser.terms().clone();
            let random = self.node.random();
            let jitter_s = random % u64::from(self.driver.jitter_s.max(1));
            let jitter_s = u32::try_from(jitter_s).unwrap_or_default();
            let name = format!("{}/{}", self.driver.who.cluster, self.driver.who.node);
            let request = command.request(&terms, &name, jitter_s);
            self.outbox.push((Purpose::Lease(id, command), request));
        }
    }

    fn send_queued(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        let (purposes, requests): (Vec<_>, Vec<_>) = self.outbox.drain(..).unzip();
        let sent = Instant::now();
        let Some(mut link) = self.link.clone() else {
            self.finish(purposes, None);
            return;
        };
        let commands: usize = requests.iter().map(commands_of).sum();
        self.driver.board.commands.fetch_add(commands as u64, Relaxed);
        self.driver.board.batches.fetch_add(1, Relaxed);
        self.sent.push(sent);
        let (links, patience) = (self.links, self.driver.timeout);
        self.in_flight.push(Box::pin(async move {
            let result = match timeout(patience, link.execute(&requests)).await {
                Ok(result) => result,
                Err(_) => Err(StoreError::Timeout),
            };
            Sent { link: links, sent, purposes, result }
        }));
    }

    fn answered(&mut self, sent: Sent) {
        self.sent.retain(|at| *at != sent.sent);
        let took = sent.sent.elapsed();
        match sent.result {
            Ok(Executed { replies, broken }) => {
                self.node.took_ns(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
                if self.link.is_some() && broken.is_none() {
                    let health = if took < PATIENCE { Health::Up } else { Health::Late };
                    self.driver.board.set_health(health);
                }
                if let Some(error) = broken {
                    self.lose(sent.link, &error);
                }
                self.finish(sent.purposes, Some(replies));
            }
            Err(error) => {
                self.lose(sent.link, &error);
                self.finish(sent.purposes, None);
            }
        }
    }

    fn finish(&mut self, purposes: Vec<Purpose>, replies: Option<Vec<Option<Reply>>>) {
        let now = self.now();
        let mut replies = replies.map(Vec::into_iter);
        for purpose in purposes {
            let reply = replies.as_mut().and_then(Iterator::next).flatten();
            match purpose {
                Purpose::Lease(id, command) => {
                    self.node.done(id, command, reply, now);
                    self.wake(id);
                    self.unpoke(id);
                }
                Purpose::Strict(done) => {
                    let _ = done.send(reply);
                }
                Purpose::Tell => {}
            }
        }
    }

    /// Ends a connection: nothing is asked until there is another.
    fn lose(&mut self, link: u64, error: &StoreError) {
        self.driver.board.failures.fetch_add(1, Relaxed);
        if link != self.links || self.link.is_none() {
            return;
        }
        warn!(store = %self.driver.settings.servers(), %error, "the store is gone");
        self.link = None;
        self.driver.board.set_health(Health::Down);
        let now = self.now();
        self.node.store_is(false, now);
        let ids: Vec<QuotaId> = self.waiting.keys().copied().collect();
        for id in ids {
            // Nobody waits for a store that is gone.
            self.waiting.remove(&id);
        }
        self.connect_later();
    }

    fn connect_later(&mut self) {
        let most = Duration::from_millis(25) * 2u32.pow(self.failed.min(6));
        let noise = u32::try_from(self.node.random() % 1000).unwrap_or(0);
        self.connect_at = Instant::now() + most / 2 + most * noise / 2000;
    }

    fn connect_if_due(&mut self) {
        if self.link.is_some() || self.connecting.is_some() || Instant::now() < self.connect_at {
            return;
        }
        let settings = self.driver.settings.clone();
        let patience = settings.connect_timeout;
        let who = self.driver.who.clone();
        self.connecting = Some(Box::pin(async move {
            let connect = async {
                let mut link = settings.connect().await?;
                // That it takes writes is known only by writing.
                registry::register(&mut link, &who.cluster, &who.node).await?;
                Ok(link)
            };
            timeout(patience, connect).await.unwrap_or(Err(StoreError::Timeout))
        }));
    }

    fn connected(&mut self, connected: Result<Link, StoreError>) {
        match connected {
            Ok(link) => {
                info!(store = %self.driver.settings.servers(), "the store answers");
                self.links += 1;
                self.link = Some(link);
                self.failed = 0;
                self.driver.board.set_health(Health::Up);
                self.register_at = Instant::now() + registry::EVERY;
                let now = self.now();
                self.node.store_is(true, now);
            }
            Err(error) => {
                if self.failed == 0 {
                    warn!(store = %self.driver.settings.servers(), %error, "cannot reach the store");
                }
                self.driver.board.failures.fetch_add(1, Relaxed);
                self.failed += 1;
                self.connect_later();
            }
        }
    }

    fn register_if_due(&mut self) {
        let Some(mut link) = self.link.clone().filter(|_| Instant::now() >= self.register_at)
        else {
            return;
        };
        self.register_at = Instant::now() + registry::EVERY;
        let (who, patience) = (self.driver.who.clone(), self.driver.timeout);
        let sent = Instant::now();
        let links = self.links;
        self.sent.push(sent);
        self.in_flight.push(Box::pin(async move {
            let register = registry::register(&mut link, &who.cluster, &who.node);
            let result = match timeout(patience, register).await {
                Ok(Ok(())) => Ok(Executed { replies: Vec::new(), broken: None }),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(StoreError::Timeout),
            };
            Sent { link: links, sent, purposes: Vec::new(), result }
        }));
    }

    fn survey(&self, done: oneshot::Sender<Survey>) {
        let Who { cluster, node } = &self.driver.who;
        let (quotas, more) = Survey::spending(self.node.iter(), self.now().wall_ns);
        let mut survey = Survey {
            cluster: cluster.clone(),
            node: node.clone(),
            servers: self.driver.settings.servers(),
            store: self.driver.board.health().name().to_owned(),
            quotas,
            more,
            ..Survey::default()
        };
        let Some(mut link) = self.link.clone() else {
            survey.problem = Some("the store does not answer".to_owned());
            // Who asked may have gone.
            let _ = done.send(survey);
            return;
        };
        let patience = self.driver.settings.connect_timeout;
        tokio::spawn(async move {
            match timeout(patience, registry::members(&mut link)).await {
                Ok(Ok(members)) => survey.members = members,
                Ok(Err(error)) => survey.problem = Some(error.to_string()),
                Err(_) => survey.problem = Some(StoreError::Timeout.to_string()),
            }
            let _ = done.send(survey);
        });
    }

    /// When something is due though nothing happens.
    fn wake_at(&self) -> Instant {
        let mut at = Instant::now() + Duration::from_secs(1);
        if let Some(due_ns) = self.node.due_ns() {
            let now_ns = self.now().mono_ns;
            at = at.min(Instant::now() + Duration::from_nanos(due_ns.saturating_sub(now_ns)));
        }
        if self.link.is_none() && self.connecting.is_none() {
            at = at.min(self.connect_at);
        }
        // Then the store is late, unless it answers before.
        let is_up = self.driver.board.health() == Health::Up;
        self.sent.iter().min().filter(|_| is_up).map_or(at, |oldest| at.min(*oldest + PATIENCE))
    }

    fn time_has_passed(&mut self) {
        let now = self.now();
        self.node.tick(now);
        let late = self.sent.iter().any(|at| at.elapsed() >= PATIENCE);
        if late && self.driver.board.health() == Health::Up {
            self.driver.board.set_health(Health::Late);
        }
    }

    /// Lets quotas go that nobody uses. Not without the store: they know their share.
    fn sweep(&mut self) {
        if self.link.is_none() {
            return;
        }
        let now = self.now();
        let idle: Vec<QuotaId> = self
            .quotas
            .iter()
            .filter(|(id, quota)| {
                let most = IDLE_NS.max(quota.terms.unit_ns().saturating_mul(3).min(10 * IDLE_NS));
                now.mono_ns.saturating_sub(quota.used_ns()) > most
                    && !quota.line.is_held()
                    && !self.waiting.contains_key(id)
                    && !self.node.get(**id).is_some_and(Leaser::is_asking)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in idle {
            if let Some(quota) = self.quotas.get(&id) {
                self.driver.directory.remove(&quota.name);
            }
            self.let_go(id, now);
        }
    }

    /// Gives back what was leased of a quota, and forgets it.
    fn let_go(&mut self, id: QuotaId, now: Moment) {
        let Some(quota) = self.quotas.remove(&id) else { return };
        // Commands that came up before are others'.
        self.send();
        if let Some(leaser) = self.node.get(id) {
            let tally = leaser.tally();
            self.past.stranded += tally.stranded;
            self.past.overshoot += tally.overshoot;
            self.past.assumed += tally.assumed;
        }
        quota.set_id(None);
        self.waiting.remove(&id);
        let terms = quota.terms.clone();
        self.node.remove(id, now);
        // Its commands name a quota that is gone.
        for (_, command) in self.node.commands() {
            self.outbox.push((Purpose::Tell, command.request(&terms, "", 0)));
        }
    }

    fn publish(&self) {
        let now = self.now();
        let mut sum = self.past;
        let (mut share, mut oldest_ns) = (0, 0);
        for leaser in self.node.iter() {
            let tally = leaser.tally();
            sum.stranded += tally.stranded;
            sum.overshoot += tally.overshoot;
            sum.assumed += tally.assumed;
            let window = leaser.terms().window(now.wall_ns);
            let cell = leaser.line().cell();
            sum.assumed += u64::from(cell.assumed(window));
            share += u64::from(leaser.share().0);
            if cell.left(window) > 0 {
                oldest_ns = oldest_ns.max(now.mono_ns.saturating_sub(tally.granted_at_ns));
            }
        }
        let totals = &self.driver.board.totals;
        totals.quotas.store(self.quotas.len() as u64, Relaxed);
        totals.stranded.store(sum.stranded, Relaxed);
        totals.overshoot.store(sum.overshoot, Relaxed);
        totals.assumed.store(sum.assumed, Relaxed);
        totals.share.store(share, Relaxed);
        totals.oldest_lease_ms.store(oldest_ns / 1_000_000, Relaxed);
    }

    async fn stop(mut self, stopped: oneshot::Sender<()>) {
        // What is under way may still bring a lease, which is to be given back; no more is asked for.
        while let Some(sent) = self.in_flight.next().await {
            self.answered(sent);
        }
        let mut commands = self.node.commands();
        commands.retain(|(_, command)| !matches!(command, Command::Take { .. }));
        self.queue(commands);
        let now = self.now();
        self.node.drain(now);
        self.send();
        while let Some(sent) = self.in_flight.next().await {
            self.answered(sent);
        }
        if let Some(mut link) = self.link.take() {
            let forget =
                registry::forget(&mut link, &self.driver.who.cluster, &self.driver.who.node);
            // It is forgotten by itself a moment later.
            let _ = timeout(self.driver.timeout, forget).await;
        }
        let _ = stopped.send(());
    }
}

fn commands_of(request: &Request) -> usize {
    match request {
        Request::Add { expire_s: Some(_), .. } => 2,
        _ => 1,
    }
}
