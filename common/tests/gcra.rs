//! A token bucket in one word answers like an exact one, whatever the clock and the agent do.
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]

mod model;

use std::{
    cell::Cell,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use model::Bucket;
use proptest::{prelude::*, sample::select};
use weir_common::{
    gcra::{
        MAX_WINDOW, Params, Q8, Refill, Step, Taken, q8, refund, rescale, spent, step, take,
        tokens_left, would_deny,
    },
    word::{TRIES, Word},
};

const NS: i128 = 256;
const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400 * SECOND;
const YEAR: u64 = 365 * DAY;
/// The clock comes round after 2.3 years.
const CLOCK_RANGE: i128 = 1 << 64;
const CLOCK_RANGE_NS: u64 = 1 << 56;

/// A word beside the bucket that it stands for, both at one absolute time.
struct Pair {
    word: AtomicU64,
    params: Params,
    model: Bucket,
    now: i128,
}

impl Pair {
    fn unused(params: Params, now: i128) -> Self {
        let model = Bucket::full(params.cost, params.burst, params.step, CLOCK_RANGE, now);
        Self { word: AtomicU64::new(0), params, model, now }
    }

    fn clock(&self) -> Q8 {
        clock(self.now)
    }

    fn word(&self) -> u64 {
        self.word.load(Ordering::Relaxed)
    }

    /// Takes from both and returns what both said.
    fn take(&mut self) -> bool {
        let tokens = self.model.tokens(self.now);
        assert_eq!(tokens_left(self.word(), self.clock(), &self.params), tokens);
        assert_eq!(would_deny(self.word(), self.clock(), &self.params), tokens == 0);
        let expected = self.model.take(self.now);
        let taken = take(&self.word, self.clock(), &self.params);
        assert_eq!(taken, if expected { Taken::Admitted } else { Taken::Denied });
        self.reserve_zero();
        expected
    }

    fn refund(&mut self) {
        self.model.refund(self.now);
        refund(&self.word, &self.params);
        self.reserve_zero();
    }

    fn change(&mut self, new: Params) {
        let before = self.model.level(self.now);
        let word = rescale(self.word(), self.clock(), &self.params, &new);
        self.word.store(word, Ordering::Relaxed);
        let mut model = Bucket::full(new.cost, new.burst, new.step, CLOCK_RANGE, self.now);
        // As many tokens as before, or as many as fit.
        let left = (before * model.cost / self.model.cost).min(model.burst);
        model.lose(model.burst - left);
        self.params = new;
        self.model = model;
        self.reserve_zero();
    }

    /// The word 0 means "never used", so a bucket that would be full again at exactly that
    /// moment of the clock is full 1/256 ns later.
    fn reserve_zero(&mut self) {
        if self.word() == 1 && self.model.full_at() % CLOCK_RANGE == 0 {
            self.model.lose(1);
        }
    }
}

fn clock(now: i128) -> Q8 {
    (now % CLOCK_RANGE) as u64
}

/// Numbers of every size, small ones as often as large ones.
fn of_any_size(range: Range<u64>) -> impl Strategy<Value = u64> {
    let bits = 64 - range.end.leading_zeros();
    (0..=bits, any::<u64>()).prop_map(move |(bits, raw)| {
        let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        (raw & mask).clamp(range.start, range.end - 1)
    })
}

fn refill() -> impl Strategy<Value = Refill> {
    select(&[Refill::Smooth, Refill::Step][..])
}

fn buckets(refill: impl Strategy<Value = Refill>) -> impl Strategy<Value = Params> {
    (of_any_size(1..10_000_000), of_any_size(1..7 * DAY), of_any_size(1..1_000_000), refill)
        .prop_filter_map(
            "takes longer than the longest window to fill",
            |(tokens, ns, burst, refill)| Params::new(tokens, ns, burst, refill),
        )
}

/// Buckets small enough that a run of some hundred takes meets their end.
fn small_buckets(refill: impl Strategy<Value = Refill>) -> impl Strategy<Value = Params> {
    (of_any_size(1..1000), of_any_size(1..DAY), 1..20_u64, refill).prop_filter_map(
        "takes longer than the longest window to fill",
        |(tokens, ns, burst, refill)| Params::new(tokens, ns, burst, refill),
    )
}

/// Moments of a machine's life: just booted, before and after 1.14 and 2.28 years, and right at
/// the edges of the word.
fn uptimes() -> impl Strategy<Value = i128> {
    let edge = (select(&[1_i128 << 63, 1 << 64, 3 << 63, 1 << 65][..]), -1_000_000..1_000_000_i128);
    prop_oneof![
        (1..10 * SECOND).prop_map(|ns| i128::from(ns) * NS),
        (1..10 * YEAR).prop_map(|ns| i128::from(ns) * NS),
        edge.clone().prop_map(|(edge, off)| edge + off),
        edge.prop_map(|(edge, off)| edge + off * 1_000_000),
    ]
}

/// A passage of time, often one that matters to the bucket.
#[derive(Clone, Debug)]
enum Wait {
    Time(u64),
    /// Eighths of a token's time, and a little.
    Tokens(u64, i64),
    /// Quarters of a step's time, and a little.
    Steps(u64, i64),
    /// Just until the next token.
    UntilAdmitted(i64),
}

impl Wait {
    fn end(&self, pair: &mut Pair) -> i128 {
        let (base, off) = match *self {
            Self::Time(q8) => (i128::from(q8), 0),
            Self::Tokens(eighths, off) => (pair.model.cost * i128::from(eighths) / 8, off),
            Self::Steps(quarters, off) => (pair.model.step * i128::from(quarters) / 4, off),
            Self::UntilAdmitted(off) => (pair.model.wait(pair.now), off),
        };
        // A test must not run into the idle time after which a word is no longer understood.
        let wait = (base + i128::from(off)).clamp(0, i128::from(3 * DAY) * NS);
        pair.now + wait
    }
}

fn waits() -> impl Strategy<Value = Wait> {
    prop_oneof![
        of_any_size(1..q8(3 * DAY)).prop_map(Wait::Time),
        (0..40_u64, -2..=2_i64).prop_map(|(eighths, off)| Wait::Tokens(eighths, off)),
        (0..12_u64, -2..=2_i64).prop_map(|(quarters, off)| Wait::Steps(quarters, off)),
        (-1..=1_i64).prop_map(Wait::UntilAdmitted),
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Take,
    Wait(Wait),
    Refund,
    Change(Params),
}

fn operations() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => Just(Op::Take),
        4 => waits().prop_map(Op::Wait),
        1 => Just(Op::Refund),
    ]
}

fn operations_and_changes() -> impl Strategy<Value = Op> {
    prop_oneof![10 => operations(), 1 => small_buckets(refill()).prop_map(Op::Change)]
}

fn run(pair: &mut Pair, ops: &[Op]) -> Vec<i128> {
    let mut admitted = Vec::new();
    // Only what was taken is ever given back.
    let mut refundable = 0;
    for op in ops {
        match op {
            Op::Take if pair.take() => {
                refundable += 1;
                admitted.push(pair.now);
            }
            Op::Take => {}
            Op::Wait(wait) => pair.now = wait.end(pair),
            Op::Refund if refundable > 0 => {
                refundable -= 1;
                pair.refund();
            }
            Op::Refund => {}
            Op::Change(new) => {
                pair.change(*new);
                refundable = 0;
            }
        }
    }
    admitted
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_word_answers_like_an_exact_bucket(
        params in small_buckets(refill()),
        start in uptimes(),
        ops in prop::collection::vec(operations(), 1..200),
    ) {
        run(&mut Pair::unused(params, start), &ops);
    }

    #[test]
    fn a_word_of_any_size_answers_like_an_exact_bucket(
        params in buckets(refill()),
        start in uptimes(),
        ops in prop::collection::vec(operations(), 1..100),
    ) {
        run(&mut Pair::unused(params, start), &ops);
    }

    #[test]
    fn a_word_that_is_rescaled_answers_like_an_exact_bucket(
        params in small_buckets(refill()),
        start in uptimes(),
        ops in prop::collection::vec(operations_and_changes(), 1..200),
    ) {
        run(&mut Pair::unused(params, start), &ops);
    }

    #[test]
    fn no_window_admits_more_than_its_time_and_one_burst(
        params in small_buckets(refill()),
        start in uptimes(),
        ops in prop::collection::vec(
            prop_oneof![2 => Just(Op::Take), 1 => waits().prop_map(Op::Wait)],
            1..200,
        ),
    ) {
        let mut pair = Pair::unused(params, start);
        let admitted = run(&mut pair, &ops);
        model::never_more_than(pair.model.burst, pair.model.cost, pair.model.step, &admitted);
    }

    /// CPUs read the clock before they take, so a take may come with an older time than the
    /// last one: by nanoseconds, or by as long as a virtual CPU was not scheduled.
    #[test]
    fn a_clock_that_steps_back_admits_no_more(
        params in small_buckets(refill()),
        start in uptimes(),
        ops in prop::collection::vec(
            (0..q8(2_000), prop_oneof![0..q8(1_000), 0..q8(SECOND)]), 1..200
        ),
    ) {
        let word = AtomicU64::new(0);
        let mut admitted = Vec::new();
        let mut now = start + i128::from(q8(2 * SECOND));
        for (forth, back) in ops {
            now += i128::from(forth);
            let seen = now - i128::from(back);
            if take(&word, clock(seen), &params) == Taken::Admitted {
                admitted.push(seen);
            }
            if take(&word, clock(now), &params) == Taken::Admitted {
                admitted.push(now);
            }
        }
        model::never_more_than(params.burst.into(), params.cost.into(), params.step.into(), &admitted);
    }

    #[test]
    fn who_waits_for_the_next_token_gets_it_and_not_earlier(
        params in small_buckets(refill()),
        start in uptimes(),
        ops in prop::collection::vec(operations(), 1..60),
        asks in 0..50_i128,
    ) {
        let mut pair = Pair::unused(params, start);
        run(&mut pair, &ops);
        while pair.take() {}
        let from = pair.now;
        let wait = pair.model.wait(from);
        prop_assert!(wait > 0);
        // However often the client asks meanwhile, it does not push its token away.
        for ask in 1..=asks {
            pair.now = from + (wait - 1) * ask / asks;
            prop_assert_eq!(take(&pair.word, pair.clock(), &params), Taken::Denied);
        }
        pair.now = from + wait - 1;
        prop_assert!(would_deny(pair.word(), pair.clock(), &params));
        pair.now += 1;
        prop_assert!(pair.take());
    }

    #[test]
    fn the_tokens_that_are_left_are_those_that_can_be_taken(
        params in small_buckets(refill()),
        start in uptimes(),
        ops in prop::collection::vec(operations(), 0..60),
    ) {
        let mut pair = Pair::unused(params, start);
        run(&mut pair, &ops);
        let left = tokens_left(pair.word(), pair.clock(), &params);
        let mut taken = 0;
        while pair.take() {
            taken += 1;
        }
        prop_assert_eq!(taken, left);
        prop_assert_eq!(tokens_left(pair.word(), pair.clock(), &params), 0);
    }

    #[test]
    fn a_refused_connection_costs_nothing(
        params in small_buckets(refill()),
        start in uptimes(),
        ops in prop::collection::vec(operations(), 0..60),
    ) {
        let mut pair = Pair::unused(params, start);
        run(&mut pair, &ops);
        let before = spent(pair.word(), pair.clock(), &params);
        if pair.take() {
            pair.refund();
        }
        // Or as good as nothing, where the word would have become the reserved one.
        let after = spent(pair.word(), pair.clock(), &params);
        prop_assert!(after == before || (after == before + 1 && pair.word() == 1));
    }

    #[test]
    fn a_denied_take_leaves_the_bucket_as_it_was(
        params in small_buckets(refill()),
        start in uptimes(),
        ops in prop::collection::vec(operations(), 0..60),
    ) {
        let mut pair = Pair::unused(params, start);
        run(&mut pair, &ops);
        while pair.take() {}
        let word = pair.word();
        prop_assert!(!pair.take());
        prop_assert_eq!(pair.word(), word);
    }

    #[test]
    fn parameters_admit_no_more_than_was_written_and_hardly_less(
        tokens in of_any_size(0..u64::MAX),
        period_ns in of_any_size(0..u64::MAX),
        burst in of_any_size(0..u64::MAX),
        refill in refill(),
    ) {
        let exact = u128::from(period_ns) << 8;
        let Some(params) = Params::new(tokens, period_ns, burst, refill) else {
            let rounded = if tokens == 0 { 0 } else { exact.div_ceil(tokens.into()) };
            let longest = u128::from(MAX_WINDOW);
            let step = if refill == Refill::Step { rounded * u128::from(tokens) } else { 0 };
            prop_assert!(
                tokens == 0 || period_ns == 0 || burst == 0
                    || exact >= longest
                    || rounded.saturating_mul(burst.into()) > longest
                    || step > longest,
                "refused without a reason"
            );
            return Ok(());
        };
        prop_assert!(tokens > 0 && period_ns > 0 && burst > 0);
        // A token's time is at least its exact part of the period, and less than 1/256 ns more.
        let cost = u128::from(params.cost);
        prop_assert!(cost * u128::from(tokens) >= exact);
        prop_assert!((cost - 1) * u128::from(tokens) < exact);
        prop_assert_eq!(u128::from(params.burst), cost * u128::from(burst));
        prop_assert!(params.burst <= MAX_WINDOW);
        match refill {
            Refill::Smooth => prop_assert_eq!(params.step, 0),
            Refill::Step => {
                prop_assert_eq!(u128::from(params.step), cost * u128::from(tokens));
                prop_assert!(params.step <= MAX_WINDOW);
            }
        }
    }

    #[test]
    fn rescaling_keeps_the_tokens_that_fit(
        old in small_buckets(refill()),
        new in small_buckets(refill()),
        start in uptimes(),
        ops in prop::collection::vec(operations(), 0..60),
    ) {
        let mut pair = Pair::unused(old, start);
        run(&mut pair, &ops);
        let before = i128::from(old.burst - spent(pair.word(), pair.clock(), &old));
        let word = rescale(pair.word(), pair.clock(), &old, &new);
        let after = i128::from(new.burst - spent(word, pair.clock(), &new));
        // In tokens: after / new.cost ≤ before / old.cost, by less than two units of 1/256 ns: one
        // for rounding, one for the word that is reserved.
        let exact = (before * i128::from(new.cost)).min(i128::from(new.burst) * i128::from(old.cost));
        let scaled = after * i128::from(old.cost);
        prop_assert!(scaled <= exact);
        prop_assert!(scaled > exact - 2 * i128::from(old.cost));
    }

    #[test]
    fn rescaling_to_the_same_parameters_changes_nothing(
        params in small_buckets(refill()),
        start in uptimes(),
        ops in prop::collection::vec(operations(), 0..60),
    ) {
        let mut pair = Pair::unused(params, start);
        run(&mut pair, &ops);
        let before = spent(pair.word(), pair.clock(), &params);
        let word = rescale(pair.word(), pair.clock(), &params, &params);
        prop_assert_eq!(spent(word, pair.clock(), &params), before);
    }
}

/// What a minute admits in which the agent pushes the next of `rates` (tokens per second, burst)
/// every 100 ms and clients ask `asks` times as often as the fastest rate, but only while one of
/// the rates that `asked` marks is in force.
fn push_rates(rates: &[(u64, u64)], asked: &[bool], refill: Refill, start: u64, asks: u64) -> u64 {
    let params: Vec<_> = rates
        .iter()
        .map(|&(rate, burst)| Params::new(rate, SECOND, burst, refill).expect("valid parameters"))
        .collect();
    let fastest = rates.iter().map(|rate| rate.0).max().expect("a rate");
    let requests = (fastest * asks / 10).max(1);
    let word = AtomicU64::new(0);
    let mut admitted = 0;
    for push in 0..PUSHES {
        let index = push % rates.len();
        let begin = q8(start + push as u64 * PUSH_NS);
        if push > 0 {
            let old = &params[(push - 1) % rates.len()];
            let new = rescale(word.load(Ordering::Relaxed), begin, old, &params[index]);
            word.store(new, Ordering::Relaxed);
        }
        for request in 0..requests {
            let now = begin + q8(PUSH_NS) / requests * request;
            if asked[index] && take(&word, now, &params[index]) == Taken::Admitted {
                admitted += 1;
            }
        }
    }
    admitted
}

const PUSHES: usize = 600;
const PUSH_NS: u64 = SECOND / 10;

/// What the rates of that minute allow, rounded up, and the largest burst.
fn allowed(rates: &[(u64, u64)]) -> u64 {
    let tenths: u64 = (0..PUSHES).map(|push| rates[push % rates.len()].0).sum();
    tenths.div_ceil(10) + rates.iter().map(|rate| rate.1).max().expect("a rate")
}

#[test]
fn a_new_rate_every_100_ms_is_no_new_burst() {
    for burst in [1, 10, 100] {
        for rates in [[100, 1000], [1, 1000], [999, 1000], [1000, 7]] {
            let rates = rates.map(|rate| (rate, burst));
            for asked in [[true, true], [true, false], [false, true]] {
                for start in [1, 5 * SECOND, 2 * YEAR, CLOCK_RANGE_NS - 30 * SECOND] {
                    let admitted = push_rates(&rates, &asked, Refill::Smooth, start, 10);
                    assert!(admitted <= allowed(&rates), "{rates:?} {asked:?}: {admitted}");
                    if asked == [true, true] && burst > 1 {
                        // Nor does it starve anybody.
                        assert!(admitted + 3 >= allowed(&rates), "{rates:?}: {admitted}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_new_burst_every_100_ms_is_no_free_burst() {
    for rates in [[(10, 1), (10, 1000)], [(9, 9), (1000, 1000)], [(100, 100), (1000, 1000)]] {
        for asked in [[true, true], [true, false], [false, true]] {
            let admitted = push_rates(&rates, &asked, Refill::Smooth, 5 * SECOND, 10);
            assert!(admitted <= allowed(&rates), "{rates:?} {asked:?}: {admitted}");
        }
    }
}

#[test]
fn a_stepped_rate_that_is_pushed_every_100_ms_refills_once_a_second() {
    // The agent pushes between the ends of the seconds; each end belongs to the rate in force.
    for (start, in_force) in [(5 * SECOND + 50_000_000, 1), (5 * SECOND + 150_000_000, 0)] {
        let rates = [(100, 100), (1000, 1000)];
        let admitted = push_rates(&rates, &[true, true], Refill::Step, start, 100);
        let refills = 60 * rates[in_force].0;
        assert!(admitted <= refills + 1000, "{admitted}");
        assert!(admitted + 100 >= refills, "{admitted}");
    }
}

fn smooth(tokens: u64, period_ns: u64, burst: u64) -> Params {
    Params::new(tokens, period_ns, burst, Refill::Smooth).expect("valid parameters")
}

fn stepped(tokens: u64, period_ns: u64, burst: u64) -> Params {
    Params::new(tokens, period_ns, burst, Refill::Step).expect("valid parameters")
}

/// Takes until a take is denied.
fn spend(word: &AtomicU64, now: Q8, params: &Params) -> u64 {
    let mut admitted = 0;
    while take(word, now, params) == Taken::Admitted {
        admitted += 1;
        assert!(admitted <= params.burst / params.cost, "more than one burst at once");
    }
    admitted
}

#[test]
fn a_bucket_that_was_never_used_is_full_at_any_uptime() {
    let params = smooth(100, SECOND, 50);
    for uptime in
        [1, SECOND, YEAR, YEAR * 114 / 100, YEAR * 115 / 100, 2 * YEAR, 3 * YEAR, 9 * YEAR]
    {
        let word = AtomicU64::new(0);
        assert_eq!(tokens_left(0, q8(uptime), &params), 50);
        assert_eq!(spend(&word, q8(uptime), &params), 50, "{uptime} ns after boot");
    }
}

#[test]
fn a_bucket_in_use_survives_both_edges_of_its_word() {
    let params = smooth(1000, SECOND, 10);
    for edge in [CLOCK_RANGE_NS / 2, CLOCK_RANGE_NS] {
        let word = AtomicU64::new(0);
        let start = edge - SECOND;
        assert_eq!(spend(&word, q8(start), &params), 10);
        // Two seconds across the edge: each millisecond and 1/256 ns, one token.
        for ms in 1..2000 {
            assert_eq!(spend(&word, q8(start + ms * 1_000_000) + 1, &params), 1, "{ms} ms");
        }
    }
}

#[test]
fn a_bucket_that_is_full_again_at_the_reserved_word_is_not_taken_for_unused() {
    let params = Params { cost: 1000, burst: 10_000, step: 0 };
    let now = 0_u64.wrapping_sub(params.burst);
    let word = AtomicU64::new(0);
    assert_eq!(spend(&word, now, &params), 10);
    assert_ne!(word.load(Ordering::Relaxed), 0);
    assert_eq!(spend(&word, now.wrapping_add(1), &params), 0);
    assert_eq!(spend(&word, now.wrapping_add(1001), &params), 1);
}

#[test]
fn a_refund_that_ends_at_the_reserved_word_is_one_token() {
    let params = Params { cost: 1000, burst: 10_000, step: 0 };
    let now = 0_u64.wrapping_sub(params.burst - params.cost);
    // An empty bucket, as rescaling may leave it.
    let word = AtomicU64::new(params.cost);
    assert_eq!(tokens_left(params.cost, now, &params), 0);
    refund(&word, &params);
    assert_eq!(spend(&word, now + 1, &params), 1);
}

#[test]
fn rescaling_to_the_reserved_word_does_not_fill_the_bucket() {
    let params = Params { cost: 1000, burst: 10_000, step: 0 };
    let now = 0_u64.wrapping_sub(params.burst);
    let empty = now.wrapping_add(params.burst).wrapping_add(1);
    assert_eq!(tokens_left(rescale(empty, now, &params, &params), now, &params), 0);
}

#[test]
fn a_refund_to_a_full_or_unused_bucket_gives_nothing() {
    let params = smooth(10, SECOND, 3);
    let word = AtomicU64::new(0);
    refund(&word, &params);
    assert_eq!(word.load(Ordering::Relaxed), 0);
    assert_eq!(spend(&word, q8(SECOND), &params), 3);
    for _ in 0..100 {
        refund(&word, &params);
    }
    assert_eq!(spend(&word, q8(SECOND), &params), 3);
}

#[test]
fn an_empty_bucket_stays_empty_for_a_cpu_whose_clock_is_a_microsecond_behind() {
    let params = smooth(1_000_000, SECOND, 1);
    let word = AtomicU64::new(0);
    let now = q8(SECOND);
    let mut admitted = 0;
    for _ in 0..1000 {
        admitted += u64::from(take(&word, now, &params) == Taken::Admitted);
        admitted += u64::from(take(&word, now - q8(1000), &params) == Taken::Admitted);
    }
    assert_eq!(admitted, 1);
}

#[test]
fn an_empty_bucket_stays_empty_for_a_cpu_that_has_not_seen_the_step_yet() {
    let params = stepped(3600, 3600 * SECOND, 3600);
    let word = AtomicU64::new(0);
    let now = 1000 * params.step;
    assert_eq!(spend(&word, now, &params), 3600);
    for _ in 0..10 {
        assert_eq!(take(&word, now - q8(1000), &params), Taken::Denied);
        assert_eq!(take(&word, now, &params), Taken::Denied);
    }
}

#[test]
fn a_word_of_a_much_larger_bucket_empties_a_small_one_and_no_more() {
    let (large, small) = (smooth(1, SECOND, 1000), smooth(10, SECOND, 3));
    let word = AtomicU64::new(0);
    let now = q8(2 * YEAR);
    assert_eq!(spend(&word, now, &large), 1000);
    assert_eq!(spend(&word, now, &small), 0);
    assert_eq!(tokens_left(word.load(Ordering::Relaxed), now, &small), 0);
    assert_eq!(spend(&word, now + small.cost - 1, &small), 0);
    assert_eq!(spend(&word, now + small.cost, &small), 1);
    assert_eq!(spend(&word, now + 100 * small.cost, &small), 3);
}

#[test]
fn the_largest_buckets_hold_one_burst_after_any_idle_time() {
    for params in [
        smooth(1, MAX_WINDOW / 256 - 1, 1),
        smooth(1, 1 << 45, 256),
        smooth(10_000_000_000, SECOND, 10_000_000_000),
        stepped(256, 1 << 53 >> 1, 256),
    ] {
        for start in [1, q8(YEAR), u64::MAX - params.burst / 2, u64::MAX] {
            let word = AtomicU64::new(0);
            let burst = params.burst / params.cost;
            // Emptied by hand: some of these hold too many tokens to take them one by one.
            let shown = if params.step == 0 { start } else { start - start % params.step };
            word.store(shown.wrapping_add(params.burst).max(1), Ordering::Relaxed);
            assert!(would_deny(word.load(Ordering::Relaxed), start, &params));
            for idle in [params.burst + params.step, q8(300 * DAY)] {
                let now = start.wrapping_add(idle);
                assert_eq!(tokens_left(word.load(Ordering::Relaxed), now, &params), burst);
                assert!(matches!(step(word.load(Ordering::Relaxed), now, &params), Step::Admit(_)));
            }
        }
    }
}

#[test]
fn ten_minutes_of_rest_are_one_burst() {
    // Ten gigabits of the smallest packets, were they connections.
    let params = smooth(14_880_952, SECOND, 1000);
    let word = AtomicU64::new(0);
    assert_eq!(spend(&word, q8(SECOND), &params), 1000);
    assert_eq!(spend(&word, q8(601 * SECOND), &params), 1000);
}

#[test]
fn a_bucket_that_rested_for_years_serves_again_after_one_burst_at_most() {
    let params = smooth(10, SECOND, 5);
    for years in 1..12 {
        let word = AtomicU64::new(0);
        assert_eq!(spend(&word, q8(DAY), &params), 5);
        let now = q8(years * YEAR);
        let first = spend(&word, now, &params);
        assert!(first <= 5);
        assert_eq!(spend(&word, now.wrapping_add(params.burst), &params), 5, "{years} years");
    }
}

#[test]
fn however_often_clients_ask_the_rate_is_admitted_in_full() {
    let params = smooth(1_000_000, SECOND, 5);
    for gap_ns in [1, 2, 3, 7, 10, 333, 999, 1000] {
        let word = AtomicU64::new(0);
        let start = SECOND;
        let mut admitted = 0;
        for at in (0..=100_000).step_by(gap_ns) {
            admitted += u64::from(take(&word, q8(start + at), &params) == Taken::Admitted);
        }
        // Five at once and one each microsecond, if there are as many asks.
        let full = (5 + 100).min(1 + 100_000 / gap_ns as u64);
        assert!(admitted <= full, "{admitted} every {gap_ns} ns");
        // The last may come between two asks.
        assert!(admitted + 1 >= full, "{admitted} every {gap_ns} ns");
    }
}

#[test]
fn stepped_refill_brings_a_periods_tokens_at_its_end_and_nothing_before() {
    let params = stepped(10, SECOND, 25);
    let word = AtomicU64::new(0);
    let second = |second: u64| second * params.step;
    assert_eq!(spend(&word, second(100) + 1, &params), 25);
    assert_eq!(spend(&word, second(101) - 1, &params), 0);
    assert_eq!(spend(&word, second(101), &params), 10);
    assert_eq!(spend(&word, second(103) - 1, &params), 10);
    assert_eq!(spend(&word, second(103), &params), 10);
    assert_eq!(spend(&word, second(110), &params), 25);
}

/// A word that somebody else changes right before every compare-and-swap.
struct Restless {
    value: u64,
    tries: Cell<u32>,
}

impl Word for Restless {
    fn load(&self) -> u64 {
        self.value
    }

    fn compare_exchange(&self, _: u64, _: u64) -> Result<u64, u64> {
        self.tries.set(self.tries.get() + 1);
        Err(self.value)
    }
}

#[test]
fn who_loses_every_round_is_contended_and_not_admitted() {
    let params = smooth(10, SECOND, 5);
    for value in [0, 1, q8(SECOND)] {
        let word = Restless { value, tries: Cell::new(0) };
        assert_eq!(take(&word, q8(SECOND), &params), Taken::Contended);
        assert_eq!(word.tries.get(), TRIES);
    }
    let word = Restless { value: q8(SECOND), tries: Cell::new(0) };
    refund(&word, &params);
    assert_eq!(word.tries.get(), TRIES);
}

#[test]
fn who_is_denied_writes_nothing() {
    let params = smooth(10, SECOND, 5);
    let word = Restless { value: q8(SECOND) + params.burst, tries: Cell::new(0) };
    assert_eq!(take(&word, q8(SECOND), &params), Taken::Denied);
    assert_eq!(word.tries.get(), 0);
}

#[test]
fn empty_and_endless_limits_are_refused() {
    for refill in [Refill::Smooth, Refill::Step] {
        assert_eq!(Params::new(0, SECOND, 1, refill), None);
        assert_eq!(Params::new(1, 0, 1, refill), None);
        assert_eq!(Params::new(1, SECOND, 0, refill), None);
        assert_eq!(Params::new(1, u64::MAX, 1, refill), None);
        assert_eq!(Params::new(1, MAX_WINDOW >> 8, 1, refill), None);
        assert_eq!(Params::new(1, SECOND, u64::MAX, refill), None);
        assert_eq!(Params::new(1, 1 << 45, 257, refill), None);
        assert!(Params::new(1, 1 << 45, 256, refill).is_some());
        assert!(Params::new(1, (MAX_WINDOW >> 8) - 1, 1, refill).is_some());
    }
    assert!(Params::new(u64::MAX, SECOND, 1, Refill::Smooth).is_some());
    assert_eq!(Params::new(u64::MAX, SECOND, 1, Refill::Step), None);
}
