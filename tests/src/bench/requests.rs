//! What an answered rate limit request costs, next to an empty handler of tonic's own server.
//!
//! Both serve on one thread with a runtime of its own and are asked by the same client over the same
//! connections. Closed loop: as many as go, so many under way at once. Open loop: at a fixed rate,
//! and a latency counts from when a request was due, so that a stall is not forgotten.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use envoy_types::pb::envoy::{
    extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    service::ratelimit::v3::{
        RateLimitRequest, RateLimitResponse,
        rate_limit_response::Code,
        rate_limit_service_client::RateLimitServiceClient,
        rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
    },
};
use hdrhistogram::Histogram;
use rand::{SeedableRng as _, rngs::SmallRng};
use rand_distr::{Distribution as _, Zipf};
use tokio::{runtime, task::JoinSet, time::sleep_until};
use tonic::{
    Status,
    transport::{Channel, Endpoint, Server},
};
use weir::rls::{Running, Settings};

use super::estimate::{Estimate, in_turns, pick};

pub(crate) const BENCH: &str = "rls";

/// HTTP/2 connections of the client.
const CONNECTIONS: usize = 4;
/// Requests under way at once, closed loop.
const UNDER_WAY: usize = 128;
/// Requests per second, open loop.
const RATE: u32 = 4000;
/// Rules of the domain that has many, and keys of the one that has many.
const RULES: usize = 10_000;
const KEYS: u64 = 1_000_000;
/// How unevenly those are asked for: the key of rank r as often as 1/r to this, as in YCSB.
const EXPONENT: f64 = 0.99;
/// Descriptors of a request that fills the table with them.
const FILLED_AT_ONCE: u64 = 100;

static RANKS: LazyLock<Option<Zipf<f64>>> = LazyLock::new(|| Zipf::new(KEYS as f64, EXPONENT).ok());

/// What is asked of whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    name: &'static str,
    /// The empty handler, not Weir.
    empty: bool,
    domain: &'static str,
    descriptors: usize,
    /// Each of many keys is as likely as any other.
    evenly: bool,
}

impl Case {
    /// Asked of Weir, as clients ask.
    const fn new(name: &'static str, domain: &'static str, descriptors: usize) -> Self {
        Self { name, empty: false, domain, descriptors, evenly: false }
    }
}

const CASES: [Case; 10] = [
    Case { empty: true, ..Case::new("empty handler", "hot", 1) },
    Case::new("one hot key", "hot", 1),
    Case::new("all over limit", "over", 1),
    Case::new("a million keys, zipf", "keys", 1),
    Case { evenly: true, ..Case::new("a million keys, evenly", "keys", 1) },
    Case::new("10 000 rules", "rules", 1),
    Case::new("2 descriptors", "hot", 2),
    Case::new("10 descriptors", "hot", 10),
    Case { empty: true, ..Case::new("empty handler, 2 descriptors", "hot", 2) },
    Case { empty: true, ..Case::new("empty handler, 10 descriptors", "hot", 10) },
];

impl Case {
    /// The question of this number: always the same.
    fn question(&self, number: u64) -> RateLimitRequest {
        // Spread over all keys, and never in order.
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let value = match self.domain {
            "keys" if self.evenly => user(spread % KEYS),
            "keys" => user(rank(number)),
            "rules" => format!("rule-{}", spread % RULES as u64),
            _ => "/productpage".to_owned(),
        };
        RateLimitRequest {
            domain: self.domain.to_owned(),
            descriptors: vec![path(value); self.descriptors],
            hits_addend: 0,
        }
    }
}

fn path(value: String) -> RateLimitDescriptor {
    let entry = Entry { key: "PATH".to_owned(), value };
    RateLimitDescriptor { entries: vec![entry], ..RateLimitDescriptor::default() }
}

fn user(key: u64) -> String {
    format!("user-{key}")
}

/// The key that a question of this number asks for, drawn by its rank.
fn rank(number: u64) -> u64 {
    let draw = |ranks: &Zipf<f64>| ranks.sample(&mut SmallRng::seed_from_u64(number)) as u64 - 1;
    RANKS.as_ref().map_or(0, draw)
}

/// One round of one case.
struct Round {
    per_second: f64,
    cpu_us: f64,
    latency: Histogram<u64>,
}

pub(crate) fn run(rounds: usize, round: Duration) -> Result<()> {
    let folder = Folder::new()?;
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let settings = Settings {
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        quotas: vec![folder.0.join("quotas")],
        ..Settings::default()
    };
    let memory = folder.0.join("memory");
    let weir = runtime.block_on(Running::start(settings, Arc::default(), memory))?;
    let address = *weir.addresses().first().context("Weir listens nowhere")?;
    let (weir_at, empty_at) = (address, empty()?);

    // What is measured is a full table.
    let client = Client::new(weir_at)?;
    client.fill()?;
    let to_empty = Client::new(empty_at)?;
    let of = |case: &Case| if case.empty { (&to_empty, "empty-0") } else { (&client, "rls-0") };

    let closed = in_turns(rounds, CASES.len(), |index| {
        let case = &CASES[index];
        let (client, thread) = of(case);
        measured(thread, || client.closed(case, round))
    })?;
    println!(
        "closed loop, {CONNECTIONS} connections, {UNDER_WAY} under way, {rounds} rounds of {round:?}"
    );
    print(&CASES, &closed);

    let some: Vec<Case> = CASES[..2].to_vec();
    let open = in_turns(rounds, some.len(), |index| {
        let case = &some[index];
        let (client, thread) = of(case);
        measured(thread, || client.open(case, round))
    })?;
    println!("open loop, {RATE} requests/s");
    print(&some, &open);
    runtime.block_on(weir.stop());
    Ok(())
}

fn print(cases: &[Case], rounds: &[Vec<Round>]) {
    println!(
        "  {:<30} {:>9} {:>8} {:>8} {:>8} {:>10}   of the empty handler",
        "", "req/s", "p50 ms", "p99 ms", "p99.9 ms", "CPU us"
    );
    let cpus: Vec<Vec<f64>> =
        rounds.iter().map(|rounds| rounds.iter().map(|round| round.cpu_us).collect()).collect();
    for (index, (case, rounds)) in cases.iter().zip(rounds).enumerate() {
        let mut latency =
            Histogram::<u64>::new(3).unwrap_or_else(|_| Histogram::clone(&rounds[0].latency));
        for round in rounds {
            let _ = latency.add(&round.latency);
        }
        let quantile = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
        let mut per_second: Vec<f64> = rounds.iter().map(|round| round.per_second).collect();
        let mut cpu = cpus[index].clone();
        let beside =
            cases.iter().position(|other| other.empty && other.descriptors == case.descriptors);
        let ratio = beside
            .filter(|_| !case.empty)
            .and_then(|beside| Estimate::quotient(&cpus[index], &cpus[beside]))
            .map(|ratio| format!("{:.2} ({:.2}-{:.2})", ratio.value, ratio.low, ratio.high));
        println!(
            "  {:<30} {:>9.0} {:>8.2} {:>8.2} {:>8.2} {:>10.1}   {}",
            case.name,
            pick(&mut per_second, 0.5),
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            pick(&mut cpu, 0.5),
            ratio.unwrap_or_default(),
        );
    }
}

/// A round and what the server's thread used meanwhile.
fn measured(server: &str, run: impl FnOnce() -> Result<Histogram<u64>>) -> Result<Round> {
    let (before, began) = (cpu(server)?, Instant::now());
    let latency = run()?;
    let (took, used) = (began.elapsed(), cpu(server)?.saturating_sub(before));
    let requests = latency.len().max(1) as f64;
    let per_second = requests / took.as_secs_f64();
    Ok(Round { per_second, cpu_us: used.as_secs_f64() * 1e6 / requests, latency })
}

/// What this process's thread of a name has used (`Documentation/scheduler/sched-stats.rst`).
fn cpu(name: &str) -> Result<Duration> {
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim_end() == name {
            let stat = fs::read_to_string(task.join("schedstat"))?;
            let nanos = stat.split(' ').next().and_then(|word| word.parse().ok());
            return Ok(Duration::from_nanos(nanos.context("no CPU time in schedstat")?));
        }
    }
    anyhow::bail!("there is no thread {name}")
}

/// A client with its connections, on a thread of its own.
struct Client {
    runtime: runtime::Runtime,
    channels: Vec<Channel>,
    /// Rounds so far: each asks other questions, and those of two runs are the same.
    rounds: AtomicU64,
}

impl Client {
    fn new(to: SocketAddr) -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let channels = runtime.block_on(async {
            let mut channels = Vec::new();
            for _ in 0..CONNECTIONS {
                channels.push(Endpoint::new(format!("http://{to}"))?.connect().await?);
            }
            Ok::<_, tonic::transport::Error>(channels)
        })?;
        Ok(Self { runtime, channels, rounds: AtomicU64::new(0) })
    }

    /// Asks for each of the million keys once.
    fn fill(&self) -> Result<()> {
        self.runtime.block_on(async {
            let mut workers = JoinSet::new();
            for (number, channel) in (0u64..).zip(&self.channels) {
                let mut client = RateLimitServiceClient::new(channel.clone());
                workers.spawn(async move {
                    for first in
                        (0..KEYS / FILLED_AT_ONCE).skip(number as usize).step_by(CONNECTIONS)
                    {
                        let keys = first * FILLED_AT_ONCE..(first + 1) * FILLED_AT_ONCE;
                        let request = RateLimitRequest {
                            domain: "keys".to_owned(),
                            descriptors: keys.map(|key| path(user(key))).collect(),
                            hits_addend: 0,
                        };
                        client.should_rate_limit(request).await?;
                    }
                    Ok::<_, anyhow::Error>(())
                });
            }
            while let Some(filled) = workers.join_next().await {
                filled??;
            }
            Ok(())
        })
    }

    /// As many as go.
    fn closed(&self, case: &Case, lasting: Duration) -> Result<Histogram<u64>> {
        let end = Instant::now() + lasting;
        let round = self.rounds.fetch_add(1, Ordering::Relaxed);
        self.runtime.block_on(async {
            let mut workers = JoinSet::new();
            for (number, channel) in self.channels.iter().cycle().take(UNDER_WAY).enumerate() {
                let (case, mut client) = (*case, RateLimitServiceClient::new(channel.clone()));
                workers.spawn(async move {
                    let mut latency = Histogram::<u64>::new(3)?;
                    // Fewer than 2^20 a round, and 2^12 rounds.
                    let mut question = (number as u64) << 32 | round << 20;
                    while Instant::now() < end {
                        question += 1;
                        let began = Instant::now();
                        ask(&mut client, &case, question).await?;
                        latency.record(began.elapsed().as_micros() as u64)?;
                    }
                    Ok::<_, anyhow::Error>(latency)
                });
            }
            gather(workers).await
        })
    }

    /// At a fixed rate.
    fn open(&self, case: &Case, lasting: Duration) -> Result<Histogram<u64>> {
        let began = Instant::now();
        let count = (lasting.as_secs_f64() * f64::from(RATE)) as u32;
        self.runtime.block_on(async {
            let mut workers = JoinSet::new();
            for (number, channel) in (0..count).zip(self.channels.iter().cycle()) {
                let due = began + Duration::from_secs(1) / RATE * number;
                sleep_until(due.into()).await;
                let (case, mut client) = (*case, RateLimitServiceClient::new(channel.clone()));
                workers.spawn(async move {
                    ask(&mut client, &case, number.into()).await?;
                    let mut latency = Histogram::<u64>::new(3)?;
                    latency.record(due.elapsed().as_micros() as u64)?;
                    Ok::<_, anyhow::Error>(latency)
                });
            }
            gather(workers).await
        })
    }
}

async fn ask(client: &mut RateLimitServiceClient<Channel>, case: &Case, number: u64) -> Result<()> {
    let answer = client.should_rate_limit(case.question(number)).await?.into_inner();
    let over = answer.overall_code == Code::OverLimit as i32;
    anyhow::ensure!(over == (case.domain == "over"), "{case:?} was answered {answer:?}");
    Ok(())
}

async fn gather(mut workers: JoinSet<Result<Histogram<u64>>>) -> Result<Histogram<u64>> {
    let mut all = Histogram::<u64>::new(3)?;
    while let Some(latency) = workers.join_next().await {
        all.add(latency??)?;
    }
    Ok(all)
}

/// Answers `OK` and looks at nothing.
struct Nothing;

#[tonic::async_trait]
impl RateLimitService for Nothing {
    async fn should_rate_limit(
        &self,
        _: tonic::Request<RateLimitRequest>,
    ) -> Result<tonic::Response<RateLimitResponse>, Status> {
        let overall_code = Code::Ok as i32;
        Ok(tonic::Response::new(RateLimitResponse { overall_code, ..RateLimitResponse::default() }))
    }
}

/// Starts tonic's own server on a thread of its own. It ends with the process.
fn empty() -> Result<SocketAddr> {
    let (told, tell) = mpsc::channel();
    thread::Builder::new().name("empty-0".to_owned()).spawn(move || -> Result<()> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let address = SocketAddr::from(([127, 0, 0, 1], 0));
            let incoming =
                tonic::transport::server::TcpIncoming::bind(address)?.with_nodelay(Some(true));
            told.send(incoming.local_addr()?)?;
            let service = RateLimitServiceServer::new(Nothing);
            Server::builder().add_service(service).serve_with_incoming(incoming).await?;
            Ok(())
        })
    })?;
    tell.recv().context("the empty handler does not listen")
}

/// Quota files that go with the bench.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("weir-bench-rls-{}", std::process::id()));
        let quotas = path.join("quotas");
        fs::create_dir_all(&quotas)?;
        let folder = Self(path);
        let limit =
            |requests: u32| format!("rate_limit: {{unit: hour, requests_per_unit: {requests}}}");
        let mut files = BTreeMap::new();
        for (domain, requests) in [("hot", u32::MAX), ("over", 0), ("keys", u32::MAX)] {
            let limit = limit(requests);
            files.insert(
                domain,
                format!("domain: {domain}\ndescriptors:\n  - key: PATH\n    {limit}\n"),
            );
        }
        let rule =
            |number| format!("  - key: PATH\n    value: rule-{number}\n    {}\n", limit(u32::MAX));
        let rules: String = (0..RULES).map(rule).collect();
        files.insert("rules", format!("domain: rules\ndescriptors:\n{rules}"));
        for (name, text) in files {
            write(&quotas, name, &text)?;
        }
        Ok(folder)
    }
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    Ok(fs::write(folder.join(format!("{name}.yaml")), text)?)
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
