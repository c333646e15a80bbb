use std::thread;

use envoy_types::pb::envoy::{
    extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    service::ratelimit::v3::{RateLimitRequest, rate_limit_response::Code},
};
use proptest::prelude::*;

use super::*;
use crate::quota::{
    Bounds, Caller, Decision, Quotas, Settings, config,
    engine::{Hits, Meter},
    model::Algorithm,
};

fn at(seconds: f64) -> Now {
    let ns = |from: u64| from + (seconds * 1e9) as u64;
    Now { monotonic_ns: ns(9_000_000_000_000), realtime_ns: ns(1_700_000_000_000_000_000) }
}

/// Each user has a bucket of `burst` that so many a minute come back to.
fn reload(quotas: &Quotas, requests: u32, burst: u32, now: Now) {
    let text = format!(
        "format: weir\ndomain: shop\ndescriptors:\n  - key: user\n    rate_limit: {{ unit: minute, \
         requests_per_unit: {requests} }}\n    algorithm: token_bucket\n    burst: {burst}\n"
    );
    let source = config::Source { file: "shop.yaml".to_owned(), text };
    quotas.exchange(&config::read(&[source]).unwrap(), Settings::default(), now).unwrap();
}

fn quotas(requests: u32, burst: u32) -> Quotas {
    let quotas = Quotas::new(Bounds { counts: 1000, series: 10 });
    reload(&quotas, requests, burst, at(0.0));
    quotas
}

fn is_admitted(quotas: &Quotas, user: &str, now: Now) -> bool {
    let entry = Entry { key: "user".to_owned(), value: user.to_owned() };
    let request = RateLimitRequest {
        domain: "shop".to_owned(),
        descriptors: vec![RateLimitDescriptor { entries: vec![entry], ..Default::default() }],
        hits_addend: 0,
    };
    match quotas.decide(&request, &Caller::default(), now).unwrap() {
        Decision::Ready(response) => response.overall_code == Code::Ok as i32,
        Decision::Waiting(_) => panic!("there is no store"),
    }
}

/// How many of so many requests of a user's are admitted.
fn admitted(quotas: &Quotas, user: &str, asked: usize, now: Now) -> usize {
    (0..asked).filter(|_| is_admitted(quotas, user, now)).count()
}

#[test]
fn a_bucket_holds_as_many_tokens_after_its_rate_changed() {
    for requests in [600, 10, 1] {
        let quotas = quotas(60, 10);
        assert_eq!(admitted(&quotas, "ann", 7, at(0.0)), 7);
        reload(&quotas, requests, 10, at(0.0));
        assert_eq!(admitted(&quotas, "ann", 10, at(0.0)), 3, "{requests} a minute");
        // From now on it fills at the new rate.
        let until_one = 60.0 / f64::from(requests);
        assert_eq!(admitted(&quotas, "ann", 5, at(until_one * 0.9)), 0, "{requests} a minute");
        assert_eq!(admitted(&quotas, "ann", 5, at(until_one * 1.1)), 1, "{requests} a minute");
    }
}

#[test]
fn what_came_back_before_a_reload_came_at_the_old_rate_and_after_it_at_the_new() {
    let quotas = quotas(60, 100);
    assert_eq!(admitted(&quotas, "ann", 100, at(0.0)), 100);
    // Ten seconds at 1/s, ten at 3/s, ten at 1/min, and nobody asks meanwhile.
    reload(&quotas, 180, 100, at(10.0));
    reload(&quotas, 180, 100, at(15.0));
    reload(&quotas, 1, 100, at(20.0));
    assert_eq!(admitted(&quotas, "ann", 100, at(30.5)), 40);
}

#[test]
fn a_smaller_bucket_keeps_what_fits_and_a_larger_one_is_filled_by_time() {
    let quotas = quotas(60, 100);
    assert_eq!(admitted(&quotas, "ann", 10, at(0.0)), 10);
    reload(&quotas, 60, 20, at(0.0));
    assert_eq!(admitted(&quotas, "ann", 5, at(0.0)), 5);
    // Nor do any come of going back and forth.
    for burst in [1000, 16, 1000, 16, 1000] {
        reload(&quotas, 60, burst, at(0.0));
    }
    assert_eq!(admitted(&quotas, "ann", 100, at(0.0)), 15);
    // Who had spent nothing has a full bucket of the new size.
    assert_eq!(admitted(&quotas, "bob", 2000, at(0.0)), 1000);
}

#[test]
fn a_look_at_a_count_sees_the_new_parameters_too() {
    let quotas = quotas(60, 10);
    assert_eq!(admitted(&quotas, "ann", 7, at(0.0)), 7);
    reload(&quotas, 6, 10, at(0.0));
    let named = quotas.named("shop", &[("user".to_owned(), "ann".to_owned())], "").unwrap();
    let word = quotas.slab.word(named.identity, named.meter.mark()).unwrap();
    assert_eq!(named.meter.step(word, Hits::Add(0), at(0.0)).taken.before, 7);
}

/// The clock stands still, so nothing comes back: whatever the rate is meanwhile, and by whichever rules
/// a decision still goes, there are as many as there were at the beginning.
#[test]
fn reloads_beside_decisions_neither_give_nor_take() {
    const BURST: u32 = 5000;
    let quotas = quotas(60, BURST);
    let admitted: usize = thread::scope(|scope| {
        let asking: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| (0..BURST).filter(|_| is_admitted(&quotas, "ann", at(0.0))).count())
            })
            .collect();
        let mut rates = [600, 7, 60_000, 60].into_iter().cycle();
        while asking.iter().any(|thread| !thread.is_finished()) {
            reload(&quotas, rates.next().unwrap(), BURST, at(0.0));
        }
        asking.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    // Rounding takes parts of a token, and never gives any.
    let most = BURST as usize;
    assert!((most - 50..=most).contains(&admitted), "{admitted}");
}

#[test]
fn a_count_without_a_place_of_its_own_is_rescaled_too() {
    let quotas = Quotas::new(Bounds { counts: 1, series: 10 });
    reload(&quotas, 60, 10, at(0.0));
    // Sixteen ways, and more users than that: the rest share one bucket.
    for number in 0..100 {
        let _ = is_admitted(&quotas, &format!("user-{number}"), at(0.0));
    }
    assert_eq!(admitted(&quotas, "late", 10, at(0.0)), 0);
    reload(&quotas, 6000, 10, at(0.0));
    assert_eq!(admitted(&quotas, "late", 10, at(0.0)), 0);
    assert_eq!(admitted(&quotas, "late", 10, at(0.025)), 2);
}

/// A bucket that so many a minute come back to, with the number of its parameters.
fn meter(requests: u32, burst: u32, number: usize) -> (Meter, Params) {
    let mut meter = Meter::new(requests, 60, Algorithm::TokenBucket, Some(burst)).unwrap();
    let Engine::Bucket { params, tariff, .. } = &mut meter.engine else { panic!("{meter:?}") };
    *tariff = number as u32;
    let params = *params;
    (meter, params)
}

proptest! {
    /// As if every count were known and rescaled when the rules are exchanged.
    #[test]
    fn a_word_that_is_brought_along_late_is_as_if_it_had_been_at_once(
        steps in proptest::collection::vec(
            (0u64..20_000, 0u64..4, proptest::option::of((1u32..500, 1u32..50))),
            1..60,
        ),
    ) {
        let tariffs = Tariffs::default();
        let (word, beside) = (AtomicU64::new(0), AtomicU64::new(0));
        let (mut eager, mut ms) = (0, 0);
        let number = |params, before, now| add(&mut tariffs.0.write().unwrap(), params, before, now);
        let (_, mut params) = meter(60, 10, 0);
        let (mut current, _) = meter(60, 10, number(params, None, at(0.0)));
        for (step, hits, change) in steps {
            ms += step;
            let now = at(ms as f64 / 1000.0);
            if let Some((requests, burst)) = change {
                let (_, new) = meter(requests, burst, 0);
                let clock = q8(now.monotonic_ns);
                if gcra::spent(eager, clock, &params) > 0 {
                    eager = gcra::rescale(eager, clock, &params, &new);
                }
                let before = Some(current.mark().tariff());
                (current, params) = meter(requests, burst, number(new, before, now));
            }
            if hits == 0 {
                continue;
            }
            let take = |word| current.step(word, Hits::Add(hits), now);
            let taken = loop {
                let seen = word.load(Ordering::Relaxed);
                let step = tariffs.step((&word, seen), &beside, (current.mark(), now), take);
                let Some(step) = step else { continue };
                word.store(step.store.unwrap_or(seen), Ordering::Relaxed);
                break step.taken;
            };
            let expected = take(eager);
            eager = expected.store.unwrap_or(eager);
            prop_assert_eq!(taken, expected.taken);
        }
    }
}
