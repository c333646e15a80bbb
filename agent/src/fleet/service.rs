//! What decides quotas of scope `fleet`: from words where it can, by asking the driver where it must,
//! and then for no longer than a decision may wait.

use std::{
    collections::HashMap,
    io, mem,
    pin::pin,
    ptr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    thread,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use weir_common::lease;

use super::{
    alarm::Alarm,
    directory::{Directory, Name, Quota},
    driver::{Board, Driver, Health, Message, PATIENCE, Who},
    leaser::Line,
    store::{
        Reply, Request,
        pool::{Pool, Shape},
        redis::RedisSettings,
    },
    survey::Survey,
    terms::{Consistency, Moment, OnStoreFailure, Terms},
};
use crate::quota::{
    Now,
    engine::{Engine, Hits, Meter, Taken},
    identity::Identity,
    shared::Cell,
    store::{Ask, Asking, Held, NoAnswer, Question, Store, Wanted},
};

/// Messages that may wait for the driver. Beyond that the failure policy decides.
const QUEUE: usize = 16 * 1024;

/// How a fleet's quotas are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetSettings {
    /// Where the store is.
    pub redis: RedisSettings,
    /// The name of this node's cluster.
    pub cluster: String,
    /// The name of this node there.
    pub node: String,
    /// Put before each counter's name (`CACHE_KEY_PREFIX` of the original).
    pub key_prefix: String,
    /// After so long a batch counts as lost, and the connection with it.
    pub timeout: Duration,
    /// Counters live up to so many seconds longer than their window (`EXPIRATION_JITTER_MAX_SECONDS`).
    pub expiration_jitter_s: u32,
}

impl FleetSettings {
    /// The original's defaults, with a shorter timeout.
    pub fn new(redis: RedisSettings, cluster: impl Into<String>, node: impl Into<String>) -> Self {
        Self {
            redis,
            cluster: cluster.into(),
            node: node.into(),
            key_prefix: String::new(),
            timeout: Duration::from_millis(100),
            expiration_jitter_s: 300,
        }
    }
}

/// The quotas of the fleet, as this node keeps them.
#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: Arc<Directory>,
    /// Those whose leases the kernel spends from, too.
    held: Mutex<HashMap<Identity, Arc<Quota>>>,
    board: Arc<Board>,
    messages: mpsc::Sender<Message>,
    key_prefix: String,
    jitter_s: u32,
}

/// Figures of the store and of all quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// How the store does.
    pub health: Health,
    /// Commands sent to it.
    pub commands: u64,
    /// Batches that they went in.
    pub batches: u64,
    /// Batches and connections that failed.
    pub failures: u64,
    /// Quotas that this node spends from.
    pub quotas: u64,
    /// Hits leased whose window ended before they were spent.
    pub stranded: u64,
    /// Hits admitted without the store that turned out to exceed their limit.
    pub overshoot: u64,
    /// Hits admitted without the store.
    pub assumed: u64,
    /// What this node may admit in a window without the store, over all quotas.
    pub assumed_share: u64,
    /// Age of the oldest lease that is not spent.
    pub lease_age: Duration,
}

impl Fleet {
    /// Starts the driver. It ends with [`Self::stop`], or when the last handle is gone.
    pub fn start(settings: FleetSettings) -> io::Result<Self> {
        Self::start_by(settings, Moment::now)
    }

    /// Starts one that goes by other clocks than the machine's: those of a node whose time is wrong.
    pub fn start_by(settings: FleetSettings, now: fn() -> Moment) -> io::Result<Self> {
        let (messages, receiver) = mpsc::channel(QUEUE);
        let directory = Arc::new(Directory::new());
        let board = Arc::new(Board::new());
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(io::Error::other)?;
        let driver = Driver {
            who: Who { cluster: settings.cluster, node: settings.node },
            settings: settings.redis,
            timeout: settings.timeout,
            jitter_s: settings.expiration_jitter_s,
            directory: directory.clone(),
            board: board.clone(),
            now,
            seed: u64::from_ne_bytes(seed),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let alarm = {
            let _inside = runtime.enter();
            Alarm::new()?
        };
        thread::Builder::new()
            .name("weir-fleet".to_owned())
            .spawn(move || runtime.block_on(driver.run(alarm, receiver)))?;
        let shared = Shared {
            directory,
            held: Mutex::default(),
            board,
            messages,
            key_prefix: settings.key_prefix,
            jitter_s: settings.expiration_jitter_s,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Gives back what was leased, and ends.
    pub async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        if self.shared.messages.send(Message::Stop(done)).await.is_ok() {
            // An end without a word is an end too.
            let _ = stopped.await;
        }
    }

    /// Who belongs to the fleet, and what this node spends together with them.
    pub async fn survey(&self) -> Survey {
        let (done, survey) = oneshot::channel();
        let asked = self.shared.messages.send(Message::Survey(done)).await;
        let told = match asked {
            Ok(()) => survey.await.ok(),
            Err(_) => None,
        };
        told.unwrap_or_else(|| Survey {
            store: Health::Down.name().to_owned(),
            problem: Some("what asks the store has ended".to_owned()),
            ..Survey::default()
        })
    }

    /// How it does. Sums are up to a second old.
    pub fn figures(&self) -> Figures {
        let Board { commands, batches, failures, totals, .. } = &*self.shared.board;
        Figures {
            health: self.shared.board.health(),
            commands: commands.load(Relaxed),
            batches: batches.load(Relaxed),
            failures: failures.load(Relaxed),
            quotas: totals.quotas.load(Relaxed),
            stranded: totals.stranded.load(Relaxed),
            overshoot: totals.overshoot.load(Relaxed),
            assumed: totals.assumed.load(Relaxed),
            assumed_share: totals.share.load(Relaxed),
            lease_age: Duration::from_millis(totals.oldest_lease_ms.load(Relaxed)),
        }
    }
}

impl Store for Fleet {
    fn take(&self, ask: &Ask<'_>, now: Now) -> Option<Taken> {
        if ask.meter.engine != Engine::Fixed || ask.rule.consistency == Consistency::Strict {
            return None;
        }
        let Hits::Add(hits) = ask.hits else { return None };
        let name = Name {
            identity: ask.identity,
            limit: ask.meter.requests,
            consistency: ask.rule.consistency,
            on_failure: ask.rule.on_store_failure,
        };
        self.shared.directory.with(&name, |quota| self.shared.decide(quota, hits, now))?
    }

    fn ask(&self, questions: Vec<Question>, now: Now) -> Asking {
        let shared = self.shared.clone();
        let until = Instant::now() + PATIENCE;
        Box::pin(async move {
            join_all(questions.into_iter().map(|question| shared.answer(question, now, until)))
                .await
        })
    }

    fn hold(&self, held: Vec<Held>, away: Arc<dyn Cell>, now: Now) {
        self.shared.board.tell_the_kernel(away);
        self.shared.hold(held, now);
    }

    fn want(&self, identity: Identity) -> Wanted {
        let quota = self.shared.held().get(&identity).cloned();
        let (done, answered) = oneshot::channel();
        if let Some(quota) = quota {
            // Who is not heard does not wait either.
            let _ = self.shared.messages.try_send(Message::Wanted { quota, hits: 1, done });
        }
        Box::pin(async move {
            // An end without a word is an end too.
            let _ = answered.await;
        })
    }

    fn low(&self, identity: Identity) {
        let quota = self.shared.held().get(&identity).cloned();
        if let Some(quota) = quota {
            self.shared.poke(&quota, Message::Low(quota.clone()));
        }
    }
}

/// Which quotas' leases the kernel spends from, too, and what that makes others do.
impl Shared {
    fn held(&self) -> MutexGuard<'_, HashMap<Identity, Arc<Quota>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, held: Vec<Held>, now: Now) {
        let mut before = mem::take(&mut *self.held());
        let mut after = HashMap::new();
        let mut fresh = Vec::new();
        let mut release = Vec::new();
        for Held { question, words } in held {
            let name = Name::of(&question);
            let is_there = |quota: &Arc<Quota>| {
                quota.name == name
                    && matches!(&*quota.line, Line::Held(there) if ptr::eq(there.words(), words.words()))
            };
            let quota = match before.remove(&question.identity).filter(is_there) {
                Some(quota) => quota,
                None => {
                    let terms = self.terms(&question);
                    let quota = Quota::new(name, terms, Line::Held(words), now.monotonic_ns);
                    let quota = Arc::new(quota);
                    release.extend(self.directory.replace(quota.clone()));
                    fresh.push(quota.clone());
                    quota
                }
            };
            after.insert(question.identity, quota);
        }
        for quota in before.into_values() {
            self.directory.remove(&quota.name);
            release.push(quota);
        }
        *self.held() = after;
        let (done, settled) = oneshot::channel();
        let message = Message::Hold { release, hold: fresh, done };
        if self.messages.blocking_send(message).is_ok() {
            // An end without a word is an end too.
            let _ = settled.blocking_recv();
        }
    }
}

impl Shared {
    /// Decides from the words, if they suffice.
    fn decide(&self, quota: &Arc<Quota>, hits: u64, now: Now) -> Option<Taken> {
        quota.use_at(now.monotonic_ns);
        let terms = &*quota.terms;
        let Some(hits) = u32::try_from(hits).ok().filter(|hits| *hits <= terms.limit) else {
            return Some(over(terms, hits, now));
        };
        let window = terms.window(now.realtime_ns);
        match quota.line.cell().take(window, terms.limit, hits) {
            lease::Taken::Admitted { low, .. } => {
                if low && quota.line.cell().poke() {
                    self.poke(quota, Message::Low(quota.clone()));
                }
                Some(admitted(quota, hits, now))
            }
            lease::Taken::Exhausted => Some(over(terms, hits.into(), now)),
            lease::Taken::Short | lease::Taken::Contended => {
                (self.board.health() != Health::Up).then(|| {
                    // It may answer late: then the next has a lease.
                    if quota.line.cell().poke() {
                        self.poke(quota, Message::Missed(quota.clone()));
                    }
                    without_the_store(quota, hits, now)
                })
            }
        }
    }

    fn poke(&self, quota: &Quota, message: Message) {
        if self.messages.try_send(message).is_err() {
            quota.line.cell().unpoke();
        }
    }

    async fn answer(
        &self,
        question: Question,
        now: Now,
        until: Instant,
    ) -> Result<Taken, NoAnswer> {
        let Meter { requests, period_s, engine } = question.meter;
        let shape = match engine {
            Engine::Fixed => None,
            Engine::Sliding => Some(Shape::Sliding),
            Engine::Bucket { burst, .. } => Some(Shape::Bucket { burst }),
        };
        if let Some(shape) = shape {
            let pool = Pool { requests, period_s, shape };
            return Ok(self.draw(&question, pool, until).await);
        }
        let name = Name::of(&question);
        let quota = self.directory.get_or(name, || {
            Quota::new(name, self.terms(&question), Line::default(), now.monotonic_ns)
        });
        match question.hits {
            Hits::GiveBack(hits) => Ok(self.give_back(&quota, hits, now)),
            Hits::Add(hits) if question.consistency == Consistency::Strict => {
                Ok(self.strictly(&quota, hits, now, until).await)
            }
            Hits::Add(hits) => Ok(self.lease(&quota, hits, now, until).await),
        }
    }

    fn terms(&self, question: &Question) -> Terms {
        Terms {
            stem: format!("{}{}", self.key_prefix, question.prefix),
            limit: question.meter.requests,
            unit_s: question.meter.period_s,
            consistency: question.consistency,
            on_failure: question.on_store_failure,
        }
    }

    /// Waits for a lease as long as a decision may.
    async fn lease(&self, quota: &Arc<Quota>, hits: u64, now: Now, until: Instant) -> Taken {
        loop {
            if let Some(taken) = self.decide(quota, hits, now) {
                return taken;
            }
            let hits = u32::try_from(hits).unwrap_or(u32::MAX);
            let (done, answered) = oneshot::channel();
            let wanted = Message::Wanted { quota: quota.clone(), hits, done };
            if self.messages.try_send(wanted).is_err()
                || self.patiently(until, answered).await.is_none()
                || Instant::now() >= until
            {
                return without_the_store(quota, hits, now);
            }
        }
    }

    /// Asks the store for this one decision.
    async fn strictly(&self, quota: &Arc<Quota>, hits: u64, now: Now, until: Instant) -> Taken {
        quota.use_at(now.monotonic_ns);
        let terms = &*quota.terms;
        let window = terms.window(now.realtime_ns);
        let hits = u32::try_from(hits).unwrap_or(u32::MAX);
        let jitter_s = now.monotonic_ns % u64::from(self.jitter_s.max(1));
        let jitter_s = u32::try_from(jitter_s).unwrap_or(0);
        let request = Request::Add {
            key: terms.counter(window),
            hits,
            expire_s: Some(terms.unit_s.saturating_add(jitter_s)),
        };
        if let Some(Reply::Counted(after)) = self.ask_once(request, until).await {
            let before = after.saturating_sub(u64::from(hits));
            return taken(terms, after > u64::from(terms.limit), before, after, now);
        }
        without_the_store(quota, hits, now)
    }

    /// Asks the store for one decision. One that is late counts all the same, and shows when it is late
    /// no more.
    async fn ask_once(&self, request: Request, until: Instant) -> Option<Reply> {
        let health = self.board.health();
        if health == Health::Down {
            return None;
        }
        let (done, answered) = oneshot::channel();
        self.messages.try_send(Message::Strict { request, done }).ok()?;
        if health != Health::Up {
            return None;
        }
        self.patiently(until, answered).await?.ok()?
    }

    /// Waits for an answer, but not for a store that is late. The driver knows first that it is; should
    /// the driver not come to it, one's own timer ends the waiting, up to two milliseconds later.
    async fn patiently<T>(&self, until: Instant, answered: impl Future<Output = T>) -> Option<T> {
        let mut fell = pin!(self.board.fell.notified());
        // From here on it is heard of.
        fell.as_mut().enable();
        if self.board.health() != Health::Up {
            return None;
        }
        tokio::select! {
            biased;
            answer = answered => Some(answer),
            () = fell => None,
            () = sleep_until(until) => None,
        }
    }

    /// Draws from a bucket or a sliding window; without the store the policy decides, and there are no
    /// shares: `local` is `deny`.
    async fn draw(&self, question: &Question, pool: Pool, until: Instant) -> Taken {
        let hits = match question.hits {
            Hits::Add(hits) => i64::try_from(hits).unwrap_or(i64::MAX),
            Hits::GiveBack(hits) => i64::try_from(hits).map_or(i64::MIN, |hits| -hits),
        };
        let key = pool.key(&format!("{}{}", self.key_prefix, question.prefix));
        let reply = self.ask_once(Request::Draw { key, pool, hits }, until).await;
        let (over, before, reset_s) = match reply {
            Some(Reply::Drawn(drawn)) => (!drawn.admitted, drawn.before, drawn.reset_s),
            _ if hits <= 0 || question.on_store_failure == OnStoreFailure::Allow => {
                (false, 0, pool.period_s)
            }
            _ => (true, u64::from(pool.limit()), pool.period_s),
        };
        let after = before.saturating_add_signed(hits);
        Taken { over, before, after, limit: pool.limit(), reset_s }
    }

    /// Takes back what a client did not use after all.
    fn give_back(&self, quota: &Arc<Quota>, hits: u64, now: Now) -> Taken {
        let terms = &*quota.terms;
        let window = terms.window(now.realtime_ns);
        let hits = u32::try_from(hits).unwrap_or(u32::MAX);
        let request = Request::GiveBack { key: terms.counter(window), hits };
        // Lost if the queue is full: then the window keeps what was counted.
        let _ = self.messages.try_send(Message::Tell(request));
        let left = quota.line.cell().remaining(window, terms.limit);
        let before = u64::from(terms.limit - left.min(terms.limit));
        taken(terms, false, before, before.saturating_sub(u64::from(hits)), now)
    }
}

/// What the failure policy says.
fn without_the_store(quota: &Quota, hits: u32, now: Now) -> Taken {
    let terms = &*quota.terms;
    let window = terms.window(now.realtime_ns);
    let cell = quota.line.cell();
    let may = match cell.assume(window, terms.limit, hits) {
        lease::Assumed::Admitted => true,
        // Before the driver knew the quota there were no marks.
        lease::Assumed::Refused => {
            terms.on_failure == OnStoreFailure::Allow && !cell.is_exhausted(window, terms.limit)
        }
    };
    if may { admitted(quota, hits, now) } else { over(terms, hits.into(), now) }
}

fn admitted(quota: &Quota, hits: u32, now: Now) -> Taken {
    let terms = &*quota.terms;
    let left = quota.line.cell().remaining(terms.window(now.realtime_ns), terms.limit);
    let after = u64::from(terms.limit - left.min(terms.limit));
    taken(terms, false, after.saturating_sub(u64::from(hits)), after, now)
}

fn over(terms: &Terms, hits: u64, now: Now) -> Taken {
    let before = u64::from(terms.limit);
    taken(terms, true, before, before.saturating_add(hits), now)
}

fn taken(terms: &Terms, over: bool, before: u64, after: u64, now: Now) -> Taken {
    let reset_s = terms.rest_ns(now.realtime_ns).div_ceil(1_000_000_000);
    let reset_s = u32::try_from(reset_s).unwrap_or(u32::MAX);
    Taken { over, before, after, limit: terms.limit, reset_s }
}
