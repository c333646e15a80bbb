//! A client that opens connections by plan and records how each ended.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU64,
    panic,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::{setsockopt, sockopt::IpBindAddressNoPort},
};
use tokio::{
    net::{TcpSocket, TcpStream},
    runtime,
    task::{JoinSet, LocalSet},
    time::{sleep_until, timeout_at},
};

use super::{
    outcome::{Attempt, Outcome},
    stats::Stats,
    talk::Talk,
};

/// More attempts are not begun while so many are unanswered; those that were due are counted.
const MOST_IN_FLIGHT: usize = 8192;
/// How soon a client notices that it should stop, when nothing is due.
const NOTICE: Duration = Duration::from_millis(20);

/// When attempts are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Open loop: the n-th attempt leaves n / rate after the start, whatever became of the others.
    PerSecond(NonZeroU64),
    /// Closed loop: so many at a time, each followed by the next.
    Parallel(usize),
}

/// What a client does.
#[derive(Clone, Debug)]
pub struct Plan {
    to: SocketAddr,
    from: Vec<IpAddr>,
    pace: Pace,
    duration: Option<Duration>,
    attempts: Option<u64>,
    timeout: Duration,
    talk: Talk,
}

impl Plan {
    /// One attempt, without a word, given up after 3 s.
    pub fn to(address: SocketAddr) -> Self {
        Self {
            to: address,
            from: Vec::new(),
            pace: Pace::Parallel(1),
            duration: None,
            attempts: Some(1),
            timeout: Duration::from_secs(3),
            talk: Talk::Nothing,
        }
    }

    /// Connects from these addresses in turn; none: the kernel chooses.
    #[must_use]
    pub fn from(mut self, sources: impl IntoIterator<Item = IpAddr>) -> Self {
        self.from = sources.into_iter().collect();
        self
    }

    /// Open loop, at this rate, without an end until one is set. A rate of 0 is one of 1.
    #[must_use]
    pub fn per_second(mut self, rate: u64) -> Self {
        self.pace = Pace::PerSecond(NonZeroU64::new(rate).unwrap_or(NonZeroU64::MIN));
        self.attempts = None;
        self
    }

    /// Closed loop, so many at a time, without an end until one is set.
    #[must_use]
    pub fn parallel(mut self, clients: usize) -> Self {
        self.pace = Pace::Parallel(clients.max(1));
        self.attempts = None;
        self
    }

    /// Begins no attempt later than this after the start.
    #[must_use]
    pub fn lasting(mut self, duration: Duration) -> Self {
        self.duration = Some(duration);
        self
    }

    /// Begins no more attempts than this.
    #[must_use]
    pub fn attempts(mut self, attempts: u64) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// When an attempt without an answer is given up.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What is said once connected; the server must be of the same mind.
    #[must_use]
    pub fn talk(mut self, talk: Talk) -> Self {
        self.talk = talk;
        self
    }

    /// Carries it out and waits for the end.
    pub fn run(self) -> io::Result<Report> {
        Ok(Client::start(self)?.finish())
    }

    fn source(&self, number: u64) -> Option<IpAddr> {
        let turn = number.checked_rem(self.from.len() as u64)?;
        self.from.get(turn as usize).copied()
    }
}

/// What came of a plan.
#[derive(Clone, Debug)]
pub struct Report {
    /// All attempts.
    pub stats: Stats,
    /// Attempts that were due but not begun, because too many were unanswered.
    pub unsent: u64,
    /// When they were; `None` if there were none.
    pub span: Option<Span>,
}

/// When the attempts of a plan were decided.
///
/// Whoever refuses or admits an attempt does so between its begin and its end. The first and the
/// last decision are therefore known within bounds, and the time between them too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    first_begin: Instant,
    first_end: Instant,
    last_begin: Instant,
    last_end: Instant,
}

impl Span {
    fn of(begin: Instant, end: Instant) -> Self {
        Self { first_begin: begin, first_end: end, last_begin: begin, last_end: end }
    }

    /// Between the first and the last decision lies at least this.
    pub fn at_least(&self) -> Duration {
        self.last_begin.saturating_duration_since(self.first_end)
    }

    /// Between the first and the last decision lies at most this.
    pub fn at_most(&self) -> Duration {
        self.last_end.saturating_duration_since(self.first_begin)
    }

    /// The span of both plans' attempts together.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self {
            first_begin: self.first_begin.min(other.first_begin),
            first_end: self.first_end.min(other.first_end),
            last_begin: self.last_begin.max(other.last_begin),
            last_end: self.last_end.max(other.last_end),
        }
    }
}

/// A running plan, in the namespace of the thread that started it. Dropping it stops it.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    in_flight: AtomicU64,
    unsent: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    stats: Stats,
    // Since the last look.
    recent: Stats,
    span: Option<Span>,
}

impl Client {
    /// Starts.
    pub fn start(plan: Plan) -> io::Result<Self> {
        raise_file_limit();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("load-client".to_owned())
            .spawn(move || LocalSet::new().block_on(&runtime, follow(plan, theirs)))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// All attempts that have ended so far.
    pub fn stats(&self) -> Stats {
        self.shared.seen().stats.clone()
    }

    /// The attempts that have ended since the last call.
    pub fn take_recent(&self) -> Stats {
        std::mem::take(&mut self.shared.seen().recent)
    }

    /// Attempts begun and not yet ended.
    pub fn in_flight(&self) -> u64 {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// Begins no further attempts; those in flight still end.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until the plan is carried out and every attempt has ended.
    pub fn wait(&mut self) {
        if let Some(thread) = self.thread.take()
            && let Err(payload) = thread.join()
        {
            panic::resume_unwind(payload);
        }
    }

    /// Waits for the end and tells what came of it.
    pub fn finish(mut self) -> Report {
        self.wait();
        let seen = self.shared.seen();
        Report {
            stats: seen.stats.clone(),
            unsent: self.shared.unsent.load(Ordering::Relaxed),
            span: seen.span,
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic was printed by its thread; here others are being cleaned up.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The counts stay true even if a thread died holding them: each change is complete.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, begin: Instant, attempt: &Attempt) {
        let end = begin + attempt.connect;
        let mut seen = self.seen();
        seen.stats.record(attempt);
        seen.recent.record(attempt);
        let span = Span::of(begin, end);
        seen.span = Some(seen.span.map_or(span, |before| before.with(&span)));
    }
}

async fn follow(plan: Plan, shared: Arc<Shared>) {
    let start = Instant::now();
    let deadline = plan.duration.map(|duration| start + duration);
    let mut flying = JoinSet::new();
    let mut number = 0;
    loop {
        let due = match plan.pace {
            Pace::PerSecond(rate) => Some(start + offset(number, rate)),
            Pace::Parallel(clients) => (flying.len() < clients).then(Instant::now),
        };
        let over = plan.attempts.is_some_and(|most| number >= most)
            || deadline.is_some_and(|end| due.unwrap_or_else(Instant::now) >= end)
            || shared.stop.load(Ordering::Relaxed);
        if over {
            break;
        }
        match due {
            Some(due) if due <= Instant::now() => {
                if flying.len() < MOST_IN_FLIGHT {
                    shared.in_flight.fetch_add(1, Ordering::Relaxed);
                    flying.spawn_local(attempt(plan.clone(), number, Arc::clone(&shared)));
                } else {
                    shared.unsent.fetch_add(1, Ordering::Relaxed);
                }
                number += 1;
                while flying.try_join_next().is_some() {}
            }
            due => {
                let notice = Instant::now() + NOTICE;
                let until = due.map_or(notice, |due| due.min(notice));
                tokio::select! {
                    () = sleep_until(until.into()) => {}
                    Some(_) = flying.join_next() => {}
                }
            }
        }
        // Attempts that are due together still take turns with the answers.
        tokio::task::yield_now().await;
    }
    while flying.join_next().await.is_some() {}
}

/// When the n-th attempt leaves. By multiplication, so that no rounding adds up.
fn offset(number: u64, rate: NonZeroU64) -> Duration {
    let nanos = u128::from(number) * 1_000_000_000 / u128::from(rate.get());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

async fn attempt(plan: Plan, number: u64, shared: Arc<Shared>) {
    let begin = Instant::now();
    let deadline = (begin + plan.timeout).into();
    let connecting = timeout_at(deadline, connect(plan.to, plan.source(number))).await;
    let connect = begin.elapsed();
    let (outcome, bytes) = match connecting {
        Err(_) => (Outcome::Timeout, 0),
        Ok(Err(error)) => (Outcome::of(&error), 0),
        Ok(Ok(mut stream)) => match timeout_at(deadline, plan.talk.ask(&mut stream)).await {
            Err(_) => (Outcome::Timeout, 0),
            Ok(Err(error)) => (Outcome::of(&error), 0),
            Ok(Ok(bytes)) => (Outcome::Ok, bytes),
        },
    };
    shared.record(begin, &Attempt { outcome, connect, bytes });
    shared.in_flight.fetch_sub(1, Ordering::Relaxed);
}

async fn connect(to: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(source) = from {
        // The port is chosen when the peer is known: one source has its ports for each peer anew.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.connect(to).await
}

/// Raises this process's soft limit of open files to the hard one; connections need them. Where
/// that is refused the lower limit shows as EMFILE among the outcomes.
pub(super) fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_leave_on_schedule_without_drift() {
        let rate = NonZeroU64::new(3).unwrap();
        assert_eq!(offset(0, rate), Duration::ZERO);
        assert_eq!(offset(1, rate), Duration::from_nanos(333_333_333));
        assert_eq!(offset(3_000_000_000, rate), Duration::from_secs(1_000_000_000));
    }

    #[test]
    fn the_time_between_decisions_lies_within_the_span() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let span = Span::of(at(10), at(13)).with(&Span::of(at(100), at(102)));
        // At the earliest 13 to 100, at the latest 10 to 102.
        assert_eq!(span.at_least(), Duration::from_millis(87));
        assert_eq!(span.at_most(), Duration::from_millis(92));
        assert_eq!(span, Span::of(at(100), at(102)).with(&Span::of(at(10), at(13))));
        assert_eq!(Span::of(at(10), at(13)).at_least(), Duration::ZERO);
    }

    #[test]
    fn sources_take_turns() {
        let to = SocketAddr::from(([127, 0, 0, 1], 1));
        let sources = [IpAddr::from([127, 0, 0, 2]), IpAddr::from([127, 0, 0, 3])];
        let plan = Plan::to(to).from(sources);
        assert_eq!(plan.source(0), Some(sources[0]));
        assert_eq!(plan.source(1), Some(sources[1]));
        assert_eq!(plan.source(2), Some(sources[0]));
        assert_eq!(Plan::to(to).source(7), None);
    }
}
