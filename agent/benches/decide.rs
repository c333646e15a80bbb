//! What a decision costs, from request to response, without any network.
//!
//! `cargo bench -p weir --bench decide`. Each decision includes making and dropping the response. Times
//! are CPU time of the thread, so a busy machine does not change what they mean.

use std::{hint::black_box, num::Wrapping, time::Duration};

use criterion::{
    BatchSize, Criterion, criterion_group, criterion_main,
    measurement::{Measurement, ValueFormatter, WallTime},
};
use envoy_types::pb::envoy::{
    extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    service::ratelimit::v3::RateLimitRequest,
};
use weir::quota::{
    Bounds, Caller, Now, Quotas, Settings,
    config::{self, Source},
};

/// CPU time of this thread, told as criterion tells wall time.
struct CpuTime(WallTime);

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
        clock.now().map_or(Duration::ZERO, Duration::from)
    }

    fn end(&self, start: Duration) -> Duration {
        self.start().saturating_sub(start)
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        self.0.formatter()
    }
}

/// So few requests are made at a time that they lie in the caches when they are decided, as a request does
/// that was just decoded, and so many that reading the clock costs nearly nothing.
const FRESH: BatchSize = BatchSize::NumIterations(64);

const NOW: Now = Now { monotonic_ns: 1 << 40, realtime_ns: 1_700_000_000_000_000_000 };

/// A domain in which every user has a limit, beside as many paths with limits of their own.
fn quotas(paths: usize) -> Quotas {
    let mut text = "domain: shop\ndescriptors:\n  - key: user\n    rate_limit: {unit: hour, \
                    requests_per_unit: 1000000}\n"
        .to_owned();
    for path in 0..paths {
        text.push_str(&format!(
            "  - key: path\n    value: /p/{path}\n    descriptors: [{{key: user, rate_limit: {{unit: \
             minute, requests_per_unit: 100}}}}]\n"
        ));
    }
    let source = Source { file: "shop.yaml".to_owned(), text };
    let configuration = config::read(&[source]).unwrap_or_default();
    let quotas = Quotas::new(Bounds { counts: 1 << 20, series: 1000 });
    if let Err(problems) = quotas.apply(&configuration, Settings::default()) {
        panic!("{problems:?}");
    }
    quotas
}

fn request(descriptors: &[&[(&str, &str)]]) -> RateLimitRequest {
    let descriptor = |entries: &&[(&str, &str)]| RateLimitDescriptor {
        entries: entries
            .iter()
            .map(|(key, value)| Entry { key: (*key).to_owned(), value: (*value).to_owned() })
            .collect(),
        ..RateLimitDescriptor::default()
    };
    RateLimitRequest {
        domain: "shop".to_owned(),
        descriptors: descriptors.iter().map(descriptor).collect(),
        hits_addend: 0,
    }
}

fn decide(criterion: &mut Criterion<CpuTime>) {
    let caller = Caller::default();
    let mut group = criterion.benchmark_group("decide");
    let small = quotas(10);

    let hot = request(&[&[("user", "bob")]]);
    group.bench_function("one hot key", |bencher| {
        bencher.iter(|| small.decide(black_box(&hot), &caller, NOW));
    });

    for count in [2, 10] {
        let users: Vec<_> = (0..count).map(|user| format!("user-{user}")).collect();
        let entries: Vec<_> = users.iter().map(|user| [("user", &**user)]).collect();
        let descriptors: Vec<_> = entries.iter().map(|entry| &entry[..]).collect();
        let several = request(&descriptors);
        group.bench_function(format!("{count} descriptors"), |bencher| {
            bencher.iter(|| small.decide(black_box(&several), &caller, NOW));
        });
    }

    let large = quotas(10_000);
    let mut next = Wrapping(0u64);
    let mut random = move || {
        next = next * Wrapping(6_364_136_223_846_793_005) + Wrapping(1_442_695_040_888_963_407);
        next.0 >> 33
    };
    group.bench_function("10 000 rules, two levels", |bencher| {
        bencher.iter_batched(
            || {
                let path = format!("/p/{}", random() % 10_000);
                request(&[&[("path", &path), ("user", "bob")]])
            },
            |request| (large.decide(&request, &caller, NOW), request),
            FRESH,
        );
    });
    for user in 0..1_000_000 {
        let _ = large.decide(&request(&[&[("user", &user.to_string())]]), &caller, NOW);
    }
    group.bench_function("a million keys, at random", |bencher| {
        bencher.iter_batched(
            || request(&[&[("user", &(random() % 1_000_000).to_string())]]),
            |request| (large.decide(&request, &caller, NOW), request),
            FRESH,
        );
    });
    group.finish();
    let fill = large.fill(NOW);
    println!(
        "{} of {} ways live, {} bytes a live count",
        fill.live,
        fill.ways,
        fill.ways * 32 / fill.live.max(1)
    );
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime(WallTime));
    targets = decide
}
criterion_main!(benches);
