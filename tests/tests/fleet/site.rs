//! Agents' quotas, load on them, and what was admitted in each window.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::{
    extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    service::ratelimit::v3::{RateLimitRequest, RateLimitResponse, rate_limit_response::Code},
};
use weir::{
    clock::Clock,
    fleet::{Fleet, FleetSettings, Health, store::redis::RedisSettings, terms::Moment},
    quota::{Bounds, Caller, Decision, Now, Quotas, Settings, config},
};
use weir_tests::agent::eventually;

/// A file with one limit, `user` of domain `shop`, and how it is kept.
pub(crate) fn rules(limit: u32, unit: &str, own: &str) -> String {
    format!(
        "format: weir\ndomain: shop\ndescriptors:\n- key: user\n  scope: fleet\n{own}  \
         rate_limit: {{unit: {unit}, requests_per_unit: {limit}}}\n"
    )
}

/// One node's quotas.
pub(crate) struct Node {
    pub(crate) quotas: Arc<Quotas>,
    pub(crate) fleet: Arc<Fleet>,
    now: fn() -> Moment,
    runtime: tokio::runtime::Runtime,
}

impl Node {
    /// Starts one and waits until the store answers.
    pub(crate) fn start(redis: RedisSettings, cluster: &str, rules: &str) -> Self {
        let node = Self::start_without_store(redis, cluster, rules);
        node.await_store();
        node
    }

    /// Starts one whose clocks are not the machine's.
    pub(crate) fn start_by(
        now: fn() -> Moment,
        redis: RedisSettings,
        cluster: &str,
        rules: &str,
    ) -> Self {
        let node = Self::make(now, redis, cluster, rules);
        node.await_store();
        node
    }

    pub(crate) fn start_without_store(redis: RedisSettings, cluster: &str, rules: &str) -> Self {
        Self::make(Moment::now, redis, cluster, rules)
    }

    fn make(now: fn() -> Moment, redis: RedisSettings, cluster: &str, rules: &str) -> Self {
        let settings = FleetSettings::new(redis, cluster, "node");
        let fleet = Arc::new(Fleet::start_by(settings, now).unwrap());
        let quotas = Quotas::new(Bounds::default());
        assert!(quotas.set_store(fleet.clone()));
        let source = config::Source { file: "shop.yaml".to_owned(), text: rules.to_owned() };
        let configuration = config::read(&[source]).unwrap();
        quotas.apply(&configuration, Settings { store: true, ..Settings::default() }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { quotas: Arc::new(quotas), fleet, now, runtime }
    }

    pub(crate) fn await_store(&self) {
        eventually("the store answers", || self.fleet.figures().health, |h| *h == Health::Up);
    }

    /// One request of a user. Returns the second it was made in, by this node's clock, and the answer.
    pub(crate) fn ask(&self, user: &str, hits: u32) -> (u64, RateLimitResponse) {
        let Moment { mono_ns, wall_ns } = (self.now)();
        let now = Now { monotonic_ns: mono_ns, realtime_ns: wall_ns };
        let entries = vec![Entry { key: "user".to_owned(), value: user.to_owned() }];
        let descriptor = RateLimitDescriptor { entries, ..RateLimitDescriptor::default() };
        let request = RateLimitRequest {
            domain: "shop".to_owned(),
            descriptors: vec![descriptor],
            hits_addend: hits,
        };
        let answer = match self.quotas.decide(&request, &Caller::default(), now).unwrap() {
            Decision::Ready(answer) => answer,
            Decision::Waiting(waiting) => {
                self.runtime.block_on(waiting.finish(&self.quotas)).unwrap()
            }
        };
        (now.realtime_ns / 1_000_000_000, answer)
    }

    /// Whether one hit of ann is admitted, and in which second.
    pub(crate) fn admits(&self) -> (u64, bool) {
        let (second, answer) = self.ask("ann", 1);
        (second, answer.overall_code() == Code::Ok)
    }
}

/// What one node did in each second.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Second {
    pub(crate) admitted: u64,
    pub(crate) refused: u64,
    /// The last answer of the second was a refusal.
    pub(crate) wanted_more: bool,
}

/// Asks as fast as is decent until it is told to end.
pub(crate) fn load(node: &Node, end: &AtomicBool) -> BTreeMap<u64, Second> {
    let mut seconds: BTreeMap<u64, Second> = BTreeMap::new();
    while !end.load(SeqCst) {
        let (second, admitted) = node.admits();
        let entry = seconds.entry(second).or_default();
        entry.admitted += u64::from(admitted);
        entry.refused += u64::from(!admitted);
        entry.wanted_more = !admitted;
        if !admitted {
            // Others want the CPU too.
            thread::sleep(Duration::from_micros(300));
        }
    }
    seconds
}

/// Several nodes under load while something happens. What each did in each second.
pub(crate) fn under_load(nodes: &mut [Node], happens: impl FnOnce()) -> Vec<BTreeMap<u64, Second>> {
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = &end;
        let loads: Vec<_> =
            nodes.iter_mut().map(|node| scope.spawn(move || load(node, end))).collect();
        // Ends the load also when what happens fails.
        let happened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(happens));
        end.store(true, SeqCst);
        let loads = loads.into_iter().map(|load| load.join().unwrap()).collect();
        if let Err(panic) = happened {
            std::panic::resume_unwind(panic);
        }
        loads
    })
}

/// What all nodes admitted in each second.
pub(crate) fn admitted(loads: &[BTreeMap<u64, Second>]) -> BTreeMap<u64, u64> {
    let mut sum = BTreeMap::new();
    for load in loads {
        for (second, did) in load {
            *sum.entry(*second).or_default() += did.admitted;
        }
    }
    sum
}

/// Waits until so many seconds began.
pub(crate) fn seconds_begin(count: u64) {
    let begin = Clock.realtime_ns() / 1_000_000_000;
    let patience = Instant::now() + Duration::from_secs(count + 30);
    while Clock.realtime_ns() / 1_000_000_000 < begin + count && Instant::now() < patience {
        thread::sleep(Duration::from_millis(5));
    }
}
