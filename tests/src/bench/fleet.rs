//! What a quota of the whole fleet costs: decisions, their latency and what Redis is asked, by one agent
//! and by several, beside a quota of the node.
//!
//! Agents' quotas run in this process, each with its own connection and its own thread that asks; so
//! does what decides for them. There is no gRPC here: a decision is timed from the decoded request to its
//! verdict. Redis is real, behind a proxy that delays what it is sent. Policies are `deny` where decisions
//! without Redis are counted: they are the refused ones, as no limit is ever reached.

use std::{
    fmt::Write as _,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use envoy_types::pb::envoy::{
    extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    service::ratelimit::v3::{RateLimitRequest, rate_limit_response::Code},
};
use hdrhistogram::Histogram;
use nix::time::{ClockId, clock_gettime};
use tokio::{runtime, task::JoinSet};
use weir::{
    clock::Clock,
    fleet::{Fleet, FleetSettings, Health, store::redis::RedisSettings},
    quota::{Bounds, Caller, Decision, Now, Quotas, Settings, config},
};
use weir_tests::{
    agent::eventually,
    redis::{Proxy, Server},
};

use super::{
    estimate::{Estimate, in_turns, pick},
    report::{Report, Target},
    stalls::Stalls,
};

pub(crate) const BENCH: &str = "redis";

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) agents: &'static [usize],
    pub(crate) delays_ms: &'static [u64],
    pub(crate) rounds: usize,
    pub(crate) round: Duration,
    /// How long a case runs before its rounds.
    pub(crate) warm: Duration,
    /// How long the paced measurements last.
    pub(crate) paced: Duration,
}

/// Requests of an agent that are under way at once.
const UNDER_WAY: usize = 32;
/// No decision is to take longer.
const LONGEST: Duration = Duration::from_millis(5);
/// Keys where there are many.
const KEYS: u64 = 100_000;
/// Decisions a second where they are paced.
const RATE: u32 = 10_000;
/// Decisions between two looks at the clock, where only CPU time counts.
const BURST: u64 = 2000;

const RULES: &str = "
format: weir
domain: shop
descriptors:
- {key: node, rate_limit: {unit: second, requests_per_unit: 100000000}}
- {key: hot, scope: fleet, on-store-failure: deny,
   rate_limit: {unit: second, requests_per_unit: 100000000}}
- {key: hot-strict, scope: fleet, on-store-failure: deny, consistency: strict,
   rate_limit: {unit: second, requests_per_unit: 100000000}}
- {key: many, scope: fleet, on-store-failure: deny,
   rate_limit: {unit: hour, requests_per_unit: 1000000}}
- {key: many-strict, scope: fleet, on-store-failure: deny, consistency: strict,
   rate_limit: {unit: hour, requests_per_unit: 1000000}}
- {key: by-second, scope: fleet, rate_limit: {unit: second, requests_per_unit: 100000}}
- {key: by-minute, scope: fleet, rate_limit: {unit: minute, requests_per_unit: 6000000}}
- {key: tight, scope: fleet, rate_limit: {unit: second, requests_per_unit: 10000}}
- {key: outage, scope: fleet, rate_limit: {unit: second, requests_per_unit: 100000}}
";

/// One agent's quotas.
struct Agent {
    quotas: Arc<Quotas>,
    fleet: Arc<Fleet>,
}

impl Agent {
    fn start(url: String, number: usize) -> Result<Self> {
        let settings =
            FleetSettings::new(RedisSettings::single(url), format!("cluster-{number}"), "node");
        let fleet = Arc::new(Fleet::start(settings)?);
        let quotas = Quotas::new(Bounds::default());
        ensure!(quotas.set_store(fleet.clone()), "a second store");
        let source = config::Source { file: "bench.yaml".to_owned(), text: RULES.to_owned() };
        let configuration = config::read(&[source]).map_err(|bad| anyhow::anyhow!("{bad:?}"))?;
        quotas
            .apply(&configuration, Settings { store: true, ..Settings::default() })
            .map_err(|bad| anyhow::anyhow!("{bad:?}"))?;
        Ok(Self { quotas: Arc::new(quotas), fleet })
    }
}

/// A question, which is asked again with other values.
struct Question(RateLimitRequest);

impl Question {
    fn new(key: &str) -> Self {
        let entry = Entry { key: key.to_owned(), value: "0".to_owned() };
        let descriptor =
            RateLimitDescriptor { entries: vec![entry], ..RateLimitDescriptor::default() };
        let descriptors = vec![descriptor];
        Self(RateLimitRequest { domain: "shop".to_owned(), descriptors, hits_addend: 0 })
    }

    fn about(&mut self, number: u64) {
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        if let Some(entry) =
            self.0.descriptors.first_mut().and_then(|descriptor| descriptor.entries.first_mut())
        {
            entry.value.clear();
            // Writing to a string cannot fail.
            let _ = write!(entry.value, "{}", spread % KEYS);
        }
    }
}

/// Whether it is admitted.
async fn decide(quotas: &Quotas, question: &Question) -> Result<bool> {
    let now = Now { monotonic_ns: Clock.monotonic_ns(), realtime_ns: Clock.realtime_ns() };
    let answer = match quotas.decide(&question.0, &Caller::default(), now)? {
        Decision::Ready(answer) => answer,
        Decision::Waiting(waiting) => waiting.finish(quotas).await?,
    };
    Ok(answer.overall_code == Code::Ok as i32)
}

/// What is asked, by how many agents, how far from Redis.
#[derive(Clone, Copy, Debug)]
struct Case {
    key: &'static str,
    many: bool,
    agents: usize,
    delay_ms: u64,
}

impl Case {
    fn name(&self) -> String {
        let keys = if self.many { "100 000 keys" } else { "one key" };
        let kind = if self.key.ends_with("strict") { "strict" } else { "leased" };
        let agents = if self.agents == 1 { "1 agent" } else { &format!("{} agents", self.agents) };
        format!("{kind}, {keys}, {agents}, {} ms", self.delay_ms)
    }
}

/// One round.
#[derive(Debug)]
struct Round {
    per_second: f64,
    /// Redis commands for each decision.
    commands: f64,
    /// The part that was decided without Redis.
    without: f64,
    latency: Histogram<u64>,
}

struct Site {
    server: Server,
    proxy: Proxy,
    agents: Vec<Agent>,
}

impl Site {
    fn new(count: usize) -> Result<Self> {
        let server = Server::start();
        let proxy = Proxy::start(server.address());
        let agents: Result<Vec<_>> =
            (0..count).map(|number| Agent::start(proxy.url(), number)).collect();
        let site = Self { server, proxy, agents: agents? };
        site.await_store();
        Ok(site)
    }

    fn await_store(&self) {
        for agent in &self.agents {
            eventually("Redis answers", || agent.fleet.figures().health, |it| *it == Health::Up);
        }
    }

    /// As many as go, so many under way at once at each agent.
    fn round(&self, case: &Case, lasting: Duration) -> Result<Round> {
        self.proxy.delay(Duration::from_millis(case.delay_ms));
        let agents = self.agents.get(..case.agents).context("enough agents")?;
        // What the last case had under way is not this one's.
        thread::sleep(Duration::from_millis(2 * case.delay_ms));
        let commands = || agents.iter().map(|agent| agent.fleet.figures().commands).sum::<u64>();
        let (before, began) = (commands(), Instant::now());
        let each: Result<Vec<_>> = thread::scope(|scope| {
            let each: Vec<_> =
                agents.iter().map(|agent| scope.spawn(|| closed(agent, case, lasting))).collect();
            each.into_iter()
                .map(|one| one.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
                .collect()
        });
        let (took, commands) = (began.elapsed(), commands() - before);
        let mut latency = Histogram::<u64>::new(3)?;
        let mut refused = 0;
        for (one, without) in each? {
            latency.add(&one)?;
            refused += without;
        }
        let decisions = latency.len().max(1) as f64;
        Ok(Round {
            per_second: decisions / took.as_secs_f64(),
            commands: commands as f64 / decisions,
            without: refused as f64 / decisions,
            latency,
        })
    }
}

/// An agent's clients: what they waited, and how many were refused.
fn closed(agent: &Agent, case: &Case, lasting: Duration) -> Result<(Histogram<u64>, u64)> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let end = Instant::now() + lasting;
    runtime.block_on(async {
        let mut clients = JoinSet::new();
        for number in 0..UNDER_WAY as u64 {
            let (quotas, case) = (agent.quotas.clone(), *case);
            clients.spawn(async move {
                let mut latency = Histogram::<u64>::new(3)?;
                let (mut question, mut refused) = (Question::new(case.key), 0);
                let mut about = number << 40 | u64::from(Clock.monotonic_ns() as u32);
                while Instant::now() < end {
                    about += 1;
                    if case.many {
                        question.about(about);
                    }
                    let began = Instant::now();
                    let is_admitted = decide(&quotas, &question).await?;
                    latency.record(began.elapsed().as_nanos() as u64)?;
                    if !is_admitted {
                        refused += 1;
                        // Who is refused comes again later, or refusals would be all there is.
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    if about.is_multiple_of(64) {
                        tokio::task::yield_now().await;
                    }
                }
                Ok::<_, anyhow::Error>((latency, refused))
            });
        }
        let mut all = Histogram::<u64>::new(3)?;
        let mut sum = 0;
        while let Some(client) = clients.join_next().await {
            let (latency, refused) = client??;
            all.add(latency)?;
            sum += refused;
        }
        Ok((all, sum))
    })
}

pub(crate) fn run(report: &mut Report, effort: Effort) -> Result<()> {
    let found = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
    ensure!(
        found.is_ok_and(|status| status.success()),
        "there is no redis-server here: run `cargo xtask setup`"
    );
    let most = effort.agents.iter().copied().max().unwrap_or(1);
    grid(&Site::new(most)?, effort)?;
    // Of an agent that has no other quota: what is asked for those would be counted, too.
    cpu(report, &Site::new(1)?, effort)?;
    let commands = |key| Ok::<_, anyhow::Error>(paced(&Site::new(1)?, key, effort.paced)? * 100.0);
    for (key, name) in [
        ("by-second", "commands for 100 decisions, 10 000/s of 100 000 per second"),
        ("by-minute", "commands for 100 decisions, 10 000/s of 6 000 000 per minute"),
    ] {
        report.hold(BENCH, name, "", Estimate::exact(commands(key)?), Target::AtMost(1.0));
    }
    let name = "commands for 100 decisions, 10 000/s of 10 000 per second";
    report.add(BENCH, name, "", Estimate::exact(commands("tight")?));
    outage(report, Site::new(3)?, effort)
}

/// The table of all cases.
fn grid(site: &Site, effort: Effort) -> Result<()> {
    let mut cases = Vec::new();
    for &delay_ms in effort.delays_ms {
        for (key, many) in
            [("hot", false), ("many", true), ("hot-strict", false), ("many-strict", true)]
        {
            let of = |&agents| Case { key, many, agents, delay_ms };
            cases.extend(effort.agents.iter().map(of));
        }
    }
    println!(
        "closed loop, {UNDER_WAY} under way at each agent, {} rounds of {:?}",
        effort.rounds, effort.round
    );
    println!(
        "  {:<44} {:>10} {:>21} {:>9} {:>9} {:>10} {:>8}",
        "", "decisions/s", "", "p99 ms", "max ms", "commands", "without"
    );
    println!(
        "  {:<44} {:>10} {:>21} {:>9} {:>9} {:>10} {:>8}",
        "", "", "", "", "", "/decision", "Redis"
    );
    for case in &cases {
        // Until every agent has its share of a quota that all spend.
        let warm = if case.many { effort.warm / 4 } else { effort.warm };
        site.round(case, warm)?;
        let rounds: Result<Vec<_>> =
            (0..effort.rounds).map(|_| site.round(case, effort.round)).collect();
        let rounds = rounds?;
        let of = |figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
        let Some(rate) = Estimate::median(&of(|round| round.per_second)) else { continue };
        let mut latency = Histogram::<u64>::new(3)?;
        for round in &rounds {
            latency.add(&round.latency)?;
        }
        println!(
            "  {:<44} {:>10.0} {:>21} {:>9.3} {:>9.2} {:>10.5} {:>7.1}%",
            case.name(),
            rate.value,
            format!("({:.0}-{:.0})", rate.low, rate.high),
            latency.value_at_quantile(0.99) as f64 / 1e6,
            latency.max() as f64 / 1e6,
            pick(&mut of(|round| round.commands), 0.5),
            pick(&mut of(|round| round.without), 0.5) * 100.0,
        );
    }
    Ok(())
}

/// CPU time of a decision, all of it: this process decides, asks Redis and does nothing else.
fn cpu(report: &mut Report, site: &Site, effort: Effort) -> Result<()> {
    let agent = site.agents.first().context("an agent")?;
    let used = || {
        Ok::<_, anyhow::Error>(Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?))
    };
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let samples = in_turns(effort.rounds.max(3) * 4, 2, |index| {
        let question = Question::new(if index == 0 { "node" } else { "hot" });
        let (begin, before, mut decisions) = (Instant::now(), used()?, 0);
        while begin.elapsed() < effort.round / 2 {
            runtime.block_on(async {
                for _ in 0..BURST {
                    decide(&agent.quotas, &question).await?;
                }
                Ok::<_, anyhow::Error>(())
            })?;
            decisions += BURST;
        }
        Ok::<_, anyhow::Error>(
            (used()?.saturating_sub(before)).as_nanos() as f64 / decisions as f64,
        )
    })?;
    let [node, leased] =
        <[_; 2]>::try_from(samples).map_err(|_| anyhow::anyhow!("two contenders"))?;
    report.add(BENCH, "CPU of a decision, scope node", "ns", Estimate::median(&node));
    report.add(BENCH, "CPU of a decision, leased", "ns", Estimate::median(&leased));
    let ratio = Estimate::quotient(&leased, &node);
    report.hold(BENCH, "leased to node", "x", ratio, Target::AtMost(1.1));
    Ok(())
}

/// Decisions at a rate, while it goes on; what each is told and how long it took goes to `each`.
fn at_rate(
    quotas: &Quotas,
    key: &str,
    rate: u32,
    goes_on: impl Fn(Duration) -> bool,
    mut each: impl FnMut(Result<bool>, Duration),
) -> Result<u64> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (question, begin) = (Question::new(key), Instant::now());
    let mut decisions = 0;
    while goes_on(begin.elapsed()) {
        let due = (begin.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        while decisions < due {
            let began = Instant::now();
            let told = runtime.block_on(decide(quotas, &question));
            each(told, began.elapsed());
            decisions += 1;
        }
        thread::sleep(Duration::from_micros(500));
    }
    Ok(decisions)
}

/// Redis commands for each decision, at [`RATE`].
fn paced(site: &Site, key: &str, lasting: Duration) -> Result<f64> {
    let agent = site.agents.first().context("an agent")?;
    let before = agent.fleet.figures().commands;
    let decisions = at_rate(&agent.quotas, key, RATE, |elapsed| elapsed < lasting, |_, _| ())?;
    Ok((agent.fleet.figures().commands - before) as f64 / decisions.max(1) as f64)
}

/// How long agents may take until each has a share of the limit, to go on with while the store is away.
const SHARE_WITHIN: Duration = Duration::from_secs(30);

/// Redis stops answering, answers again, is killed and comes back, under load.
fn outage(report: &mut Report, mut site: Site, effort: Effort) -> Result<()> {
    let Site { server, agents, .. } = &mut site;
    let step = effort.paced / 4;
    let (is_over, begin) = (AtomicBool::new(false), Instant::now());
    let (each, stalls) = Stalls::during(|| {
        thread::scope(|scope| -> Result<Vec<_>> {
            let load: Vec<_> = agents
                .iter()
                .map(|agent| {
                    let is_over = &is_over;
                    scope.spawn(move || -> Result<_> {
                        let mut latency = Histogram::<u64>::new(3)?;
                        let (mut errors, mut late) = (0u64, Vec::new());
                        let goes_on = |_| !is_over.load(Relaxed);
                        at_rate(&agent.quotas, "outage", RATE / 3, goes_on, |told, took| {
                            errors += u64::from(told.is_err());
                            if took > LONGEST {
                                late.extend(
                                    Instant::now().checked_sub(took).map(|begin| (begin, took)),
                                );
                            }
                            // A duration always fits.
                            let _ = latency.record(took.as_nanos() as u64);
                        })?;
                        Ok((latency, errors, late))
                    })
                })
                .collect();
            let has_share = |agent: &Agent| agent.fleet.figures().assumed_share > 0;
            let all_have_one = || agents.iter().all(has_share);
            while !all_have_one() && begin.elapsed() < SHARE_WITHIN {
                thread::sleep(Duration::from_millis(100));
            }
            if !all_have_one() {
                is_over.store(true, Relaxed);
                bail!("after {SHARE_WITHIN:?} an agent has no share to go on with");
            }
            server.freeze();
            thread::sleep(step);
            server.thaw();
            thread::sleep(step);
            server.kill();
            thread::sleep(step);
            server.restart();
            thread::sleep(step);
            is_over.store(true, Relaxed);
            load.into_iter()
                .map(|one| one.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
                .collect()
        })
    });
    let lasting = begin.elapsed();
    let mut latency = Histogram::<u64>::new(3)?;
    let (mut errors, mut late) = (0, Vec::new());
    for (one, failed, slow) in each? {
        latency.add(&one)?;
        errors += failed;
        late.extend(slow);
    }
    let own = |&(begin, took): &(Instant, Duration)| took - stalls.within(begin, begin + took);
    let by_themselves = late.iter().filter(|one| own(one) > LONGEST).count();
    let ms = |ns: u64| Estimate::exact(ns as f64 / 1e6);
    let count = |count: u64| Estimate::exact(count as f64);
    report.add(BENCH, "decisions while Redis stops and is killed", "", count(latency.len()));
    report.hold(BENCH, "of these, errors", "", count(errors), Target::AtMost(0.0));
    report.add(BENCH, "of these, longer than 5 ms", "", count(late.len() as u64));
    let name = "of these, longer than 5 ms though the machine ran";
    report.hold(BENCH, name, "", count(by_themselves as u64), Target::AtMost(0.0));
    report.add(BENCH, "p99.99 of these", "ms", ms(latency.value_at_quantile(0.9999)));
    report.add(BENCH, "longest of these", "ms", ms(latency.max()));
    // What each window of the three left unspent, at most one for each or a hundredth.
    let stranded: u64 = agents.iter().map(|agent| agent.fleet.figures().stranded).sum();
    let seconds = lasting.as_secs_f64();
    let name = "stranded in a window of 100 000, on average";
    report.hold(
        BENCH,
        name,
        "hits",
        Estimate::exact(stranded as f64 / seconds),
        Target::AtMost(1000.0),
    );
    Ok(())
}
