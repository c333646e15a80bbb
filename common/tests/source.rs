//! Seven sources on a line have an exact bucket each; who finds no place shares the eighth word.
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]

mod model;

use std::{
    array,
    cell::Cell,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use model::Bucket;
use proptest::{prelude::*, sample::select};
use weir_common::{
    gcra::{Refill, Taken},
    source::{MAX_WINDOW_NS, SourceParams, SourceTaken, WAYS, refund, take, would_deny},
    way::{self, LINE, TICK_NS, TIME_BITS, Tick},
    word::{TRIES, Word},
};

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;
const DAY: u64 = 24 * HOUR;
/// The ticks come round after 13 days.
const CLOCK_RANGE_NS: u64 = TICK_NS << TIME_BITS;

/// A line beside exact buckets, one for each source and the shared one.
struct Pair {
    line: [AtomicU64; LINE],
    params: SourceParams,
    sources: Vec<Bucket>,
    shared: Bucket,
    now_ns: u64,
}

impl Pair {
    fn unused(params: SourceParams, sources: usize, now_ns: u64) -> Self {
        let full =
            Bucket::full(params.cost, params.burst, params.step, 0, i128::from(now_ns / TICK_NS));
        Self {
            line: Default::default(),
            params,
            sources: vec![full.clone(); sources],
            shared: full,
            now_ns,
        }
    }

    fn ticks(&self) -> i128 {
        i128::from(self.now_ns / TICK_NS)
    }

    /// A source is live while its bucket is not full.
    fn live(&mut self, source: usize) -> bool {
        let now = self.ticks();
        self.sources[source].level(now) < self.sources[source].burst
    }

    /// A source shares when it has no bucket of its own and seven others have one.
    fn shares(&mut self, source: usize) -> bool {
        let others =
            (0..self.sources.len()).filter(|&other| other != source && self.live(other)).count();
        !self.live(source) && others >= WAYS
    }

    fn bucket(&mut self, source: usize) -> (&mut Bucket, bool) {
        if self.shares(source) {
            (&mut self.shared, true)
        } else {
            (&mut self.sources[source], false)
        }
    }

    /// Takes from both; returns what both said.
    fn take(&mut self, source: usize) -> SourceTaken {
        let now = self.ticks();
        let (bucket, crowded) = self.bucket(source);
        let there = bucket.take(now);
        let expected =
            SourceTaken { taken: if there { Taken::Admitted } else { Taken::Denied }, crowded };
        let tag = tag(source);
        assert_eq!(would_deny(&self.line, tag, self.now_ns, &self.params), !there);
        assert_eq!(take(&self.line, tag, self.now_ns, &self.params), expected);
        expected
    }

    /// Takes, and gives back at once, as when an outer limit refuses.
    fn take_in_vain(&mut self, source: usize) {
        let SourceTaken { taken, crowded } = self.take(source);
        if taken == Taken::Admitted {
            let now = self.ticks();
            let bucket = if crowded { &mut self.shared } else { &mut self.sources[source] };
            bucket.refund(now);
            refund(&self.line, tag(source), crowded, self.now_ns, &self.params);
        }
    }
}

/// Tags from all over their range; the shared word's constant and both ends are among them.
fn tag(source: usize) -> u64 {
    match source {
        0 => 1,
        1 => (1 << (64 - TIME_BITS)) - 1,
        _ => 2 + source as u64 * 7919,
    }
}

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

fn buckets(refill: impl Strategy<Value = Refill>) -> impl Strategy<Value = SourceParams> {
    (of_any_size(1..1000), of_any_size(1..DAY), 1..12_u64, refill).prop_filter_map(
        "takes longer than the longest window to fill",
        |(tokens, ns, burst, refill)| SourceParams::new(tokens, ns, burst, refill),
    )
}

/// Moments of a machine's life, many of them near those at which the ticks come round.
fn uptimes() -> impl Strategy<Value = u64> {
    let edge = (1..40_u64, 0..2 * HOUR);
    prop_oneof![
        1..10 * SECOND,
        1..1000 * DAY,
        edge.prop_map(|(round, before)| round * CLOCK_RANGE_NS - before),
        (1..40_u64, 0..100_000_u64).prop_map(|(round, off)| round * CLOCK_RANGE_NS - 50_000 + off),
    ]
}

#[derive(Clone, Debug)]
enum Wait {
    Time(u64),
    /// Eighths of a token's time, and a little.
    Tokens(u64, i64),
    /// Quarters of a step's time, and a little.
    Steps(u64, i64),
    /// Until a source's next token.
    UntilAdmitted(usize, i64),
}

impl Wait {
    fn end_ns(&self, pair: &mut Pair) -> u64 {
        let (ticks, off) = match *self {
            Self::Time(ns) => (ns / TICK_NS, 0),
            Self::Tokens(eighths, off) => (pair.params.cost * eighths / 8, off),
            Self::Steps(quarters, off) => (pair.params.step * quarters / 4, off),
            Self::UntilAdmitted(source, off) => {
                let now = pair.ticks();
                let (bucket, _) = pair.bucket(source % pair.sources.len());
                (u64::try_from(bucket.wait(now)).unwrap_or(0), off)
            }
        };
        // Way within the 9.8 days after which a forgotten way could come alive again.
        pair.now_ns + (ticks * TICK_NS).saturating_add_signed(off).min(3 * HOUR)
    }
}

fn waits() -> impl Strategy<Value = Wait> {
    let off = || -(2 * TICK_NS as i64)..=2 * TICK_NS as i64;
    prop_oneof![
        of_any_size(1..3 * HOUR).prop_map(Wait::Time),
        (0..40_u64, off()).prop_map(|(eighths, off)| Wait::Tokens(eighths, off)),
        (0..12_u64, off()).prop_map(|(quarters, off)| Wait::Steps(quarters, off)),
        (0..20_usize, off()).prop_map(|(source, off)| Wait::UntilAdmitted(source, off)),
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Take(usize),
    TakeInVain(usize),
    Wait(Wait),
}

fn operations(sources: usize) -> impl Strategy<Value = Op> {
    prop_oneof![
        16 => (0..sources).prop_map(Op::Take),
        2 => (0..sources).prop_map(Op::TakeInVain),
        3 => waits().prop_map(Op::Wait),
    ]
}

/// Runs and returns each source's admissions from a bucket of its own, in ticks.
fn run(pair: &mut Pair, ops: &[Op]) -> Vec<Vec<i128>> {
    let mut admitted = vec![Vec::new(); pair.sources.len()];
    for op in ops {
        match op {
            Op::Take(source) => {
                if pair.take(*source) == ADMITTED {
                    admitted[*source].push(pair.ticks());
                }
            }
            Op::TakeInVain(source) => pair.take_in_vain(*source),
            Op::Wait(wait) => pair.now_ns = wait.end_ns(pair),
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
    fn seven_sources_have_an_exact_bucket_each(
        params in buckets(refill()),
        start in uptimes(),
        sources in 1..=WAYS,
        ops in prop::collection::vec(operations(WAYS), 1..200),
    ) {
        let mut pair = Pair::unused(params, WAYS, start);
        for op in &ops {
            if let Op::Take(source) | Op::TakeInVain(source) = op
                && *source >= sources
            {
                continue;
            }
            run(&mut pair, std::slice::from_ref(op));
        }
        prop_assert_eq!(pair.line[WAYS].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn more_sources_share_the_last_word_until_a_place_falls_idle(
        params in buckets(Just(Refill::Smooth)),
        start in uptimes(),
        ops in prop::collection::vec(operations(12), 1..300),
    ) {
        run(&mut Pair::unused(params, 12, start), &ops);
    }

    #[test]
    fn no_window_of_a_source_admits_more_than_its_time_and_one_burst(
        params in buckets(refill()),
        start in uptimes(),
        ops in prop::collection::vec(
            prop_oneof![4 => (0..3_usize).prop_map(Op::Take), 1 => waits().prop_map(Op::Wait)],
            1..200,
        ),
    ) {
        let mut pair = Pair::unused(params, 3, start);
        for admitted in run(&mut pair, &ops) {
            model::never_more_than(
                params.burst.into(), params.cost.into(), params.step.into(), &admitted,
            );
        }
    }

    /// One source alone: to a CPU with a newer clock its bucket may be full, so that another takes
    /// its place over, and the window's time is then that clock's.
    #[test]
    fn a_clock_that_steps_back_admits_no_more(
        params in buckets(refill()),
        start in uptimes(),
        ops in prop::collection::vec(
            (0..2_000_u64, prop_oneof![0..1_000_u64, 0..SECOND]), 1..200,
        ),
    ) {
        let line: [AtomicU64; LINE] = Default::default();
        let mut admitted = Vec::new();
        let mut now = start + 2 * SECOND;
        for (forth, back) in ops {
            now += forth;
            for seen in [now - back, now] {
                if take(&line, tag(0), seen, &params).taken == Taken::Admitted {
                    admitted.push(i128::from(seen / TICK_NS));
                }
            }
        }
        model::never_more_than(
            params.burst.into(), params.cost.into(), params.step.into(), &admitted,
        );
    }

    #[test]
    fn who_waits_for_the_next_token_gets_it_and_not_earlier(
        params in buckets(refill()),
        start in uptimes(),
        ops in prop::collection::vec(operations(WAYS), 1..60),
        source in 0..WAYS,
        asks in 0..50_u64,
    ) {
        let mut pair = Pair::unused(params, WAYS, start);
        run(&mut pair, &ops);
        while pair.take(source).taken == Taken::Admitted {}
        let from = pair.ticks();
        let wait = u64::try_from(pair.sources[source].wait(from)).expect("positive");
        prop_assert!(wait > 0);
        // However often the client asks meanwhile, it does not push its token away.
        for ask in 1..=asks {
            pair.now_ns = (from as u64 + (wait - 1) * ask / asks) * TICK_NS;
            prop_assert_eq!(pair.take(source).taken, Taken::Denied);
        }
        pair.now_ns = (from as u64 + wait) * TICK_NS - 1;
        prop_assert_eq!(pair.take(source).taken, Taken::Denied);
        pair.now_ns += 1;
        prop_assert_eq!(pair.take(source).taken, Taken::Admitted);
    }

    #[test]
    fn parameters_admit_no_more_than_was_written_and_hardly_less(
        tokens in of_any_size(0..u64::MAX),
        period_ns in of_any_size(0..u64::MAX),
        burst in of_any_size(0..u64::MAX),
        refill in refill(),
    ) {
        let rounded =
            u128::from(period_ns).div_ceil((u128::from(tokens) * u128::from(TICK_NS)).max(1));
        let longest = u128::from(MAX_WINDOW_NS / TICK_NS);
        let Some(params) = SourceParams::new(tokens, period_ns, burst, refill) else {
            prop_assert!(
                tokens == 0 || period_ns == 0 || burst == 0
                    || rounded.saturating_mul(burst.into()) > longest
                    || rounded * u128::from(tokens) > longest,
                "refused without a reason"
            );
            return Ok(());
        };
        prop_assert!(tokens > 0 && period_ns > 0 && burst > 0);
        // A token's time is at least its exact part of the period, and less than a tick more.
        let cost = u128::from(params.cost);
        let all = u128::from(tokens) * u128::from(TICK_NS);
        prop_assert!(cost * all >= period_ns.into());
        prop_assert!((cost - 1) * all < period_ns.into());
        prop_assert_eq!(u128::from(params.burst), cost * u128::from(burst));
        prop_assert!(u128::from(params.burst) <= longest);
        let step = if refill == Refill::Step { cost * u128::from(tokens) } else { 0 };
        prop_assert_eq!(u128::from(params.step), step);
    }
}

fn smooth(tokens: u64, period_ns: u64, burst: u64) -> SourceParams {
    SourceParams::new(tokens, period_ns, burst, Refill::Smooth).expect("valid parameters")
}

fn stepped(tokens: u64, period_ns: u64, burst: u64) -> SourceParams {
    SourceParams::new(tokens, period_ns, burst, Refill::Step).expect("valid parameters")
}

const ADMITTED: SourceTaken = SourceTaken { taken: Taken::Admitted, crowded: false };
const DENIED: SourceTaken = SourceTaken { taken: Taken::Denied, crowded: false };
const SHARED: SourceTaken = SourceTaken { taken: Taken::Admitted, crowded: true };
const SHARED_DENIED: SourceTaken = SourceTaken { taken: Taken::Denied, crowded: true };

#[test]
fn the_eighth_source_shares_and_is_reported_as_crowded() {
    let line: [AtomicU64; LINE] = Default::default();
    let params = smooth(1, SECOND, 2);
    for source in 0..7 {
        assert_eq!(take(&line, tag(source), SECOND, &params), ADMITTED);
    }
    assert_eq!(take(&line, tag(7), SECOND, &params), SHARED);
    assert_eq!(take(&line, tag(8), SECOND, &params), SHARED);
    assert!(would_deny(&line, tag(9), SECOND, &params));
    assert_eq!(take(&line, tag(9), SECOND, &params), SHARED_DENIED);
    // The seven still have what is theirs.
    for source in 0..7 {
        assert_eq!(take(&line, tag(source), SECOND, &params), ADMITTED);
        assert_eq!(take(&line, tag(source), SECOND, &params), DENIED);
    }
}

#[test]
fn a_place_is_reclaimed_in_the_tick_in_which_its_bucket_is_full_and_not_before() {
    let line: [AtomicU64; LINE] = Default::default();
    let params = smooth(1, SECOND, 1);
    for source in 0..7 {
        assert_eq!(take(&line, tag(source), 10 * SECOND, &params), ADMITTED);
    }
    let full = 11 * SECOND;
    assert_eq!(take(&line, tag(7), full - TICK_NS, &params), SHARED);
    for source in 7..14 {
        assert_eq!(take(&line, tag(source), full, &params), ADMITTED);
    }
    // Whose place was reclaimed lost nothing: there is no room, but also no debt.
    assert!(take(&line, tag(0), full, &params).crowded);
    assert_eq!(take(&line, tag(0), 12 * SECOND, &params), ADMITTED);
}

#[test]
fn a_refund_goes_to_the_bucket_that_paid() {
    let line: [AtomicU64; LINE] = Default::default();
    let params = smooth(1, SECOND, 1);
    for source in 0..7 {
        assert_eq!(take(&line, tag(source), SECOND, &params), ADMITTED);
    }
    assert_eq!(take(&line, tag(7), SECOND, &params), SHARED);
    refund(&line, tag(7), true, SECOND, &params);
    for source in 0..7 {
        assert_eq!(take(&line, tag(source), SECOND, &params), DENIED);
    }
    assert_eq!(take(&line, tag(8), SECOND, &params), SHARED);
    refund(&line, tag(3), false, SECOND, &params);
    assert_eq!(take(&line, tag(8), SECOND, &params), ADMITTED);
    assert_eq!(take(&line, tag(3), SECOND, &params), SHARED_DENIED);
}

#[test]
fn a_refund_to_a_source_without_a_bucket_touches_nobody_elses() {
    let line: [AtomicU64; LINE] = Default::default();
    let params = smooth(1, SECOND, 1);
    for source in 0..6 {
        assert_eq!(take(&line, tag(source), SECOND, &params), ADMITTED);
    }
    let before = line.each_ref().map(|word| word.load(Ordering::Relaxed));
    refund(&line, tag(20), false, SECOND, &params);
    refund(&line, tag(20), true, SECOND, &params);
    assert_eq!(before, line.each_ref().map(|word| word.load(Ordering::Relaxed)));
}

#[test]
fn a_line_of_sources_crosses_the_end_of_the_ticks() {
    for round in [1, 2, 30] {
        let line: [AtomicU64; LINE] = Default::default();
        let params = smooth(10, SECOND, 5);
        let end = round * CLOCK_RANGE_NS;
        let before = end - SECOND / 4;
        for _ in 0..5 {
            assert_eq!(take(&line, 9, before, &params), ADMITTED);
        }
        assert_eq!(take(&line, 9, before, &params), DENIED);
        // Half a second later, on the other side, five tokens came back.
        for _ in 0..5 {
            assert_eq!(take(&line, 9, end + SECOND / 4, &params), ADMITTED);
        }
        assert_eq!(take(&line, 9, end + SECOND / 4, &params), DENIED);
    }
}

#[test]
fn steps_keep_their_phase_across_the_end_of_the_ticks() {
    let params = stepped(7, SECOND, 7);
    let end = CLOCK_RANGE_NS;
    let step_ns = params.step * TICK_NS;
    let line: [AtomicU64; LINE] = Default::default();
    let boundary = end - end % step_ns;
    assert!(boundary < end && boundary + step_ns > end);
    let spend = |now_ns| (0..20).filter(|_| take(&line, 9, now_ns, &params) == ADMITTED).count();
    assert_eq!(spend(boundary), 7);
    assert_eq!(spend(end - 1), 0);
    // The counter coming round is no refill.
    assert_eq!(spend(end), 0);
    assert_eq!(spend(end + TICK_NS), 0);
    assert_eq!(spend(boundary + step_ns - 1), 0);
    assert_eq!(spend(boundary + step_ns), 7);
    assert_eq!(spend(boundary + 2 * step_ns - 1), 0);
}

#[test]
fn two_limits_on_one_line_do_not_know_of_each_other() {
    let line: [AtomicU64; LINE] = Default::default();
    let (fast, slow) = (smooth(1000, SECOND, 3), smooth(1, HOUR, 2));
    let now = 20 * DAY;
    for _ in 0..2 {
        assert_eq!(take(&line, 5, now, &slow), ADMITTED);
    }
    for _ in 0..3 {
        assert_eq!(take(&line, 6, now, &fast), ADMITTED);
    }
    assert_eq!(take(&line, 6, now + SECOND, &fast), ADMITTED);
    // Others come and go in the places that are idle.
    for other in 0..1000 {
        assert_eq!(take(&line, 100 + other, now + (10 + other) * SECOND, &fast), ADMITTED);
    }
    assert_eq!(take(&line, 5, now + HOUR - TICK_NS, &slow), DENIED);
    assert_eq!(take(&line, 5, now + HOUR, &slow), ADMITTED);
    assert_eq!(take(&line, 5, now + HOUR, &slow), DENIED);
}

#[test]
fn a_bucket_that_waits_for_its_step_is_not_reclaimed() {
    let line: [AtomicU64; LINE] = Default::default();
    let (steps, other) = (stepped(10, SECOND, 10), smooth(1000, SECOND, 1));
    let start = 1000 * steps.step * TICK_NS;
    for _ in 0..3 {
        assert_eq!(take(&line, 5, start + SECOND / 10, &steps), ADMITTED);
    }
    // The three would be back by now, were the refill smooth; somebody else looks for a place.
    assert_eq!(take(&line, 6, start + SECOND / 2, &other), ADMITTED);
    let later = start + SECOND * 6 / 10;
    let admitted = (0..20).filter(|_| take(&line, 5, later, &steps) == ADMITTED).count();
    assert_eq!(admitted, 7);
}

#[test]
fn a_source_that_waits_for_its_step_finds_the_places_that_fell_idle_meanwhile() {
    let line: [AtomicU64; LINE] = Default::default();
    let (steps, other) = (stepped(10, SECOND, 10), smooth(1000, SECOND, 1));
    let start = 1000 * steps.step * TICK_NS;
    for source in 0..7 {
        assert_eq!(take(&line, 100 + source, start + SECOND / 10, &other), ADMITTED);
    }
    assert_eq!(take(&line, 5, start + SECOND / 2, &steps), ADMITTED);
}

#[test]
fn a_token_that_is_given_back_late_still_fills_the_bucket() {
    let line: [AtomicU64; LINE] = Default::default();
    let params = smooth(1, SECOND, 1);
    assert_eq!(take(&line, 5, 10 * SECOND, &params), ADMITTED);
    refund(&line, 5, false, 10 * SECOND + SECOND / 2, &params);
    assert_eq!(take(&line, 5, 10 * SECOND + SECOND / 2, &params), ADMITTED);
}

#[test]
fn a_source_waits_no_longer_than_the_window_that_is_in_force() {
    let line: [AtomicU64; LINE] = Default::default();
    let (slow, fast) = (smooth(1, HOUR, 10), smooth(100, SECOND, 100));
    let now = 50 * DAY;
    for _ in 0..10 {
        assert_eq!(take(&line, 5, now, &slow), ADMITTED);
    }
    // The administrator relaxes the limit.
    assert_eq!(take(&line, 5, now, &fast), DENIED);
    // That is no reason to hand out a burst.
    assert_eq!(take(&line, 5, now, &fast), DENIED);
    assert_eq!(take(&line, 5, now + SECOND, &fast), ADMITTED);
}

#[test]
fn an_empty_source_stays_empty_for_a_cpu_that_has_not_seen_the_step_yet() {
    let params = stepped(3600, HOUR, 3600);
    let line: [AtomicU64; LINE] = Default::default();
    let now = 1000 * params.step * TICK_NS;
    for _ in 0..3600 {
        assert_eq!(take(&line, 5, now, &params), ADMITTED);
    }
    for _ in 0..10 {
        assert_eq!(take(&line, 5, now - 1000, &params), DENIED);
        assert_eq!(take(&line, 5, now, &params), DENIED);
    }
}

#[test]
fn the_longest_steps_are_not_forgotten_by_a_cpu_that_has_not_seen_the_last_one_yet() {
    assert!(SourceParams::new(1, DAY, 1, Refill::Step).is_some());
    assert!(SourceParams::new(1000, DAY, 1000, Refill::Step).is_some());
    for hours in 1..=48 {
        let Some(params) = SourceParams::new(1, hours * HOUR, 1, Refill::Step) else { continue };
        let line: [AtomicU64; LINE] = Default::default();
        let now = 100 * params.step * TICK_NS;
        assert_eq!(take(&line, 5, now, &params), ADMITTED);
        assert_eq!(take(&line, 5, now - 1000, &params), DENIED, "{hours} h");
    }
}

#[test]
fn an_old_way_with_the_same_tag_stops_nobody() {
    let params = smooth(1, SECOND, 3);
    let now = Tick::from_ns(100 * SECOND);
    for (live, old) in [(2, 4), (4, 2)] {
        let line: [AtomicU64; LINE] = Default::default();
        line[live].store(way::pack(5, now.after(params.cost)), Ordering::Relaxed);
        line[old].store(way::pack(5, now.before(1)), Ordering::Relaxed);
        refund(&line, 5, false, 100 * SECOND, &params);
        assert_eq!(way::ahead(line[live].load(Ordering::Relaxed), now), 0);
        line[live].store(way::pack(5, now.after(params.burst)), Ordering::Relaxed);
        assert!(would_deny(&line, 5, 100 * SECOND, &params));
        line[live].store(way::pack(5, now.after(params.cost)), Ordering::Relaxed);
        for expected in [ADMITTED, ADMITTED, DENIED] {
            assert_eq!(take(&line, 5, 100 * SECOND, &params), expected);
        }
    }
}

/// A line whose chosen word somebody else changes right before every compare-and-swap.
struct Restless {
    value: AtomicU64,
    tries: Cell<u32>,
}

impl Word for Restless {
    fn load(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    fn compare_exchange(&self, _: u64, _: u64) -> Result<u64, u64> {
        self.tries.set(self.tries.get() + 1);
        Err(self.load())
    }
}

#[test]
fn who_loses_every_round_is_contended_and_charges_nothing() {
    let line: [Restless; LINE] =
        array::from_fn(|_| Restless { value: AtomicU64::new(0), tries: Cell::new(0) });
    let params = smooth(1, SECOND, 1);
    assert_eq!(take(&line, 5, SECOND, &params).taken, Taken::Contended);
    assert_eq!(line.iter().map(|word| word.tries.get()).sum::<u32>(), TRIES);
    let spent = way::pack(5, Tick::from_ns(2 * SECOND));
    line[3].value.store(spent, Ordering::Relaxed);
    refund(&line, 5, false, SECOND, &params);
    assert_eq!(line[3].tries.get(), TRIES);
}

#[test]
fn sources_of_the_longest_window_spend_one_burst_a_day() {
    let params = smooth(100, DAY, 100);
    let line: [AtomicU64; LINE] = Default::default();
    let start = 400 * DAY;
    let spend = |now| (0..1000).filter(|_| take(&line, 5, now, &params) == ADMITTED).count();
    assert_eq!(spend(start), 100);
    for day in 1..30 {
        assert_eq!(spend(start + day * DAY - 60 * SECOND), 99, "day {day}");
        assert_eq!(spend(start + day * DAY), 1, "day {day}");
    }
}

#[test]
fn empty_limits_are_no_limits() {
    for refill in [Refill::Smooth, Refill::Step] {
        assert_eq!(SourceParams::new(0, SECOND, 1, refill), None);
        assert_eq!(SourceParams::new(1, 0, 1, refill), None);
        assert_eq!(SourceParams::new(1, SECOND, 0, refill), None);
        assert_eq!(SourceParams::new(u64::MAX, SECOND, 1, refill), None);
        assert_eq!(SourceParams::new(1, SECOND, u64::MAX, refill), None);
        assert_eq!(SourceParams::new(1, u64::MAX, 1, refill), None);
        assert_eq!(SourceParams::new(1, MAX_WINDOW_NS + TICK_NS, 1, refill), None);
        assert!(SourceParams::new(1, DAY, 1, refill).is_some());
    }
}
