//! A breaker in four words does what the plain one does that remembers every connection.
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]

#[path = "model/breaker.rs"]
mod model;

use std::{
    array,
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

use model::Verdict;
use proptest::{prelude::*, sample::select};
use weir_common::{
    breaker::{
        Admission, Edge, Params, Phase, View, abandoned, admit, failed, failed_after_success, open,
        peek, read, succeeded,
    },
    way::LINE,
    word::{TRIES, Word},
};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const DAY: u64 = 86_400 * SECOND;
const TICK: u64 = 1 << 20;

const PARAMS: Params = Params {
    timeout_ms: 1000,
    ejection_ms: 5000,
    max_ejection_ms: 20_000,
    interval_ms: 10_000,
    errors: 3,
    error_ratio: 0,
    min_volume: 1,
    probes: 2,
};

/// A line beside the breaker that it stands for.
struct Pair {
    line: [AtomicU64; LINE],
    params: Params,
    model: model::Breaker,
    /// Attempts whose verdict was not reported yet, by their place in the model's list.
    pending: Vec<usize>,
    /// Eras of those that succeeded.
    successes: Vec<u64>,
    now_ns: u64,
}

impl Pair {
    fn new(params: Params, now_ns: u64) -> Self {
        Self {
            line: Default::default(),
            params,
            model: model::Breaker::new(params),
            pending: Vec::new(),
            successes: Vec::new(),
            now_ns,
        }
    }

    fn words(&self) -> [u64; LINE] {
        self.line.each_ref().map(|word| word.load(Ordering::Relaxed))
    }

    fn admit(&mut self) -> (Admission, Edge) {
        let before = self.words();
        let refuses = self.model.refuses(self.now_ns);
        let foreseen = peek(&self.line, &self.params, self.now_ns);
        assert_eq!(foreseen.is_some(), refuses);
        assert_eq!(self.words(), before, "looking changes nothing");
        let expected = self.model.admit(self.now_ns);
        assert_eq!(admit(&self.line, &self.params, self.now_ns), expected);
        if let Some(foreseen) = foreseen {
            assert_eq!(foreseen, expected.0);
            assert_eq!(self.words(), before, "who would be refused changes nothing");
        }
        if matches!(expected.0, Admission::Admitted { .. }) {
            self.pending.push(self.model.attempts.len() - 1);
        }
        expected
    }

    /// Reports a verdict on one of those that have none.
    fn judge(&mut self, which: usize, verdict: Verdict) -> Edge {
        if self.pending.is_empty() {
            return Edge::None;
        }
        let index = self.pending.swap_remove(which % self.pending.len());
        let attempt = self.model.attempts[index];
        let before = self.words();
        let stale = attempt.era != self.model.era;
        let expected = self.model.judge(index, verdict, self.now_ns);
        let report = match verdict {
            Verdict::Succeeded => succeeded,
            Verdict::Failed => failed,
            Verdict::Abandoned => abandoned,
        };
        let epoch = model::epoch(attempt.era);
        assert_eq!(
            report(&self.line, &self.params, epoch, attempt.opened_ns, self.now_ns),
            expected
        );
        if stale {
            assert_eq!(self.words(), before, "stale evidence changes nothing");
        }
        if verdict == Verdict::Succeeded {
            self.successes.push(attempt.era);
        }
        expected
    }

    fn fail_after_success(&mut self, which: usize) -> Edge {
        if self.successes.is_empty() {
            return Edge::None;
        }
        let era = self.successes.swap_remove(which % self.successes.len());
        let expected = self.model.fail_after_success(era, self.now_ns);
        let epoch = model::epoch(era);
        assert_eq!(failed_after_success(&self.line, &self.params, epoch, self.now_ns), expected);
        expected
    }

    fn view(&self) -> View {
        let view = read(&self.line, &self.params, self.now_ns);
        assert_eq!(view, self.model.view(self.now_ns));
        assert_eq!(self.words()[4..], [0; 4], "words of others");
        view
    }
}

#[derive(Clone, Debug)]
enum Wait {
    Ns(u64),
    /// Quarters of a time-out, of an interval or of an ejection, and a little.
    Timeouts(u64, i64),
    Intervals(u64, i64),
    Ejections(u64, i64),
    /// Just until it tries again.
    UntilOver(i64),
}

fn waits() -> impl Strategy<Value = Wait> {
    let off = || prop_oneof![-2..=2_i64, -(TICK as i64)..=TICK as i64];
    prop_oneof![
        (0..10 * SECOND).prop_map(Wait::Ns),
        (0..10_u64, off()).prop_map(|(quarters, off)| Wait::Timeouts(quarters, off)),
        (0..12_u64, off()).prop_map(|(quarters, off)| Wait::Intervals(quarters, off)),
        (0..20_u64, off()).prop_map(|(quarters, off)| Wait::Ejections(quarters, off)),
        (-2..=2_i64).prop_map(Wait::UntilOver),
    ]
}

impl Wait {
    fn end(&self, pair: &Pair) -> u64 {
        let quarters = |ms: u32, quarters: u64| u64::from(ms) * MS / 4 * quarters;
        let (wait, off) = match *self {
            Self::Ns(ns) => (ns, 0),
            Self::Timeouts(count, off) => (quarters(pair.params.timeout_ms, count), off),
            Self::Intervals(count, off) => (quarters(pair.params.interval_ms, count), off),
            Self::Ejections(count, off) => (quarters(pair.params.ejection_ms, count), off),
            Self::UntilOver(off) => (pair.model.view(pair.now_ns).remaining_ns, off),
        };
        // Far within the time after which a period's number comes round.
        pair.now_ns + wait.saturating_add_signed(off).min(20 * SECOND)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Admit,
    Succeeded(usize),
    Failed(usize),
    Abandoned(usize),
    FailedAfterSuccess(usize),
    Wait(Wait),
    BeTold,
}

fn operations() -> impl Strategy<Value = Op> {
    prop_oneof![
        24 => Just(Op::Admit),
        8 => any::<usize>().prop_map(Op::Succeeded),
        10 => any::<usize>().prop_map(Op::Failed),
        3 => any::<usize>().prop_map(Op::Abandoned),
        2 => any::<usize>().prop_map(Op::FailedAfterSuccess),
        12 => waits().prop_map(Op::Wait),
        // Phases come and go within the 256 that an epoch tells apart.
        1 => Just(Op::BeTold),
    ]
}

fn params() -> impl Strategy<Value = Params> {
    (
        1..2000_u32,
        1..5000_u32,
        1..20_000_u32,
        1..5000_u32,
        prop_oneof![Just(0), 1..8_u32],
        prop_oneof![Just(0), 1..=100_u32],
        1..12_u32,
        prop_oneof![Just(0), 1..6_u32, Just(63)],
    )
        .prop_map(
            |(
                timeout_ms,
                ejection_ms,
                max_ejection_ms,
                interval_ms,
                errors,
                error_ratio,
                min_volume,
                probes,
            )| Params {
                timeout_ms,
                ejection_ms,
                max_ejection_ms,
                interval_ms,
                errors,
                error_ratio,
                min_volume,
                probes,
            },
        )
}

/// Moments of a machine's life, and those at which the ticks come round.
fn uptimes() -> impl Strategy<Value = u64> {
    let range = TICK << 34;
    prop_oneof![
        0..10 * SECOND,
        0..3650 * DAY,
        (1..5_u64, 0..100 * SECOND).prop_map(move |(round, before)| round * range - before),
        (select(&[1000_u64, 1999, 500][..]), 0..100 * SECOND)
            .prop_map(|(ms, before)| ((ms * MS) << 20) - before),
    ]
}

fn run(pair: &mut Pair, ops: &[Op]) {
    for op in ops {
        match *op {
            Op::Admit => {
                let _ = pair.admit();
            }
            Op::Succeeded(which) => {
                let _ = pair.judge(which, Verdict::Succeeded);
            }
            Op::Failed(which) => {
                let _ = pair.judge(which, Verdict::Failed);
            }
            Op::Abandoned(which) => {
                let _ = pair.judge(which, Verdict::Abandoned);
            }
            Op::FailedAfterSuccess(which) => {
                let _ = pair.fail_after_success(which);
            }
            Op::Wait(ref wait) => pair.now_ns = wait.end(pair),
            Op::BeTold => {
                let expected = pair.model.be_told(pair.now_ns);
                assert_eq!(open(&pair.line, &pair.params, pair.now_ns), expected);
            }
        }
        pair.view();
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2048, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn four_words_do_what_a_breaker_does_that_remembers_every_connection(
        params in params(),
        start in uptimes(),
        ops in prop::collection::vec(operations(), 1..250),
    ) {
        run(&mut Pair::new(params, start), &ops);
    }

    #[test]
    fn parameters_survive_a_rule(params in params()) {
        prop_assert_eq!(Params::unpack(params.pack()), params);
    }

    /// Whatever stands in the words, nothing panics, and no breaker is open for longer than it may be.
    #[test]
    fn whatever_the_words_say_a_breaker_closes_again(
        words: [u64; 4],
        start in uptimes(),
        probes in 1..=63_u32,
    ) {
        let params = Params { probes, ..PARAMS };
        let line: [AtomicU64; LINE] = Default::default();
        for (word, value) in line.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        let mut now_ns = start;
        // A time-out for probes that seem to be out, ahead by a clock's error; an ejection; successes.
        for _ in 0..200 {
            now_ns += SECOND;
            let view = read(&line, &params, now_ns);
            let longest = u64::from(params.max_ejection_ms) * MS + 5 * SECOND;
            prop_assert!(view.remaining_ns <= longest);
            if let (Admission::Admitted { epoch }, _) = admit(&line, &params, now_ns) {
                let _ = succeeded(&line, &params, epoch, now_ns, now_ns);
            }
        }
        prop_assert_eq!(read(&line, &params, now_ns).phase, Phase::Closed);
    }

    /// Two CPUs, one with an older time: each connection is counted once all the same.
    #[test]
    fn an_older_time_neither_forgets_nor_times_out(
        start in uptimes(),
        ops in prop::collection::vec((0..400 * MS, 0..900 * MS, any::<bool>()), 1..200),
    ) {
        let params = Params { errors: 1, ..PARAMS };
        let line: [AtomicU64; LINE] = Default::default();
        let mut now_ns = start + SECOND;
        let mut waiting = std::collections::VecDeque::new();
        for (forth, back, late) in ops {
            now_ns += forth;
            let seen = if late { now_ns - back } else { now_ns };
            let (Admission::Admitted { epoch }, Edge::None) = admit(&line, &params, seen) else {
                return Err(TestCaseError::fail("nothing failed"));
            };
            waiting.push_back((epoch, seen, now_ns));
            prop_assert_eq!(read(&line, &params, now_ns).attempts, waiting.len() as u64);
            // Each is answered at once, or before a period passed, by any CPU.
            while waiting.front().is_some_and(|&(_, _, at)| now_ns - at > 500 * MS || late) {
                let (epoch, opened_ns, _) = waiting.pop_front().expect("not empty");
                let edge = succeeded(&line, &params, epoch, opened_ns, seen.max(opened_ns));
                prop_assert_eq!(edge, Edge::None);
            }
        }
        prop_assert_eq!(read(&line, &params, now_ns).consecutive, 0);
    }
}

/// Just before window numbers come round, the number of an untouched word seems to lie ahead.
#[test]
fn an_untouched_window_has_no_time_of_its_own() {
    let params = Params { interval_ms: 125, errors: 0, ..PARAMS };
    let window_ns = 125 * MS;
    let start = ((1 << 20) - 30) * window_ns;
    let line: [AtomicU64; LINE] = Default::default();
    let (Admission::Admitted { epoch }, Edge::None) = admit(&line, &params, start) else {
        panic!("a new breaker admits");
    };
    assert_eq!(succeeded(&line, &params, epoch, start, start), Edge::None);
    assert_eq!(read(&line, &params, start + window_ns).ok, 1);
    assert_eq!(read(&line, &params, start + 2 * window_ns).ok, 0);
}

fn admitted(pair: &mut Pair) {
    assert!(matches!(pair.admit().0, Admission::Admitted { .. }));
}

/// A breaker that has just been tripped.
fn tripped(params: Params, now_ns: u64) -> Pair {
    let mut pair = Pair::new(params, now_ns);
    for nth in 1..=params.errors {
        admitted(&mut pair);
        let edge = pair.judge(0, Verdict::Failed);
        assert_eq!(edge, if nth == params.errors { Edge::Tripped } else { Edge::None });
    }
    pair
}

#[test]
fn a_success_between_failures_keeps_it_closed() {
    let mut pair = Pair::new(PARAMS, DAY);
    for nth in 0..30 {
        admitted(&mut pair);
        let verdict = if nth % 3 == 2 { Verdict::Succeeded } else { Verdict::Failed };
        assert_eq!(pair.judge(0, verdict), Edge::None);
    }
}

#[test]
fn an_attempt_without_an_answer_is_a_failure_within_two_time_outs() {
    let start = DAY / SECOND * SECOND;
    for (offset, after, noticed) in [
        // At the begin of a period, and at its end.
        (0, 2 * SECOND - 1, false),
        (0, 2 * SECOND, true),
        (SECOND - 1, SECOND, false),
        (SECOND - 1, SECOND + 1, true),
    ] {
        let mut pair = Pair::new(Params { errors: 1, ..PARAMS }, start + offset);
        admitted(&mut pair);
        pair.now_ns += after;
        let edge = if noticed { Edge::Tripped } else { Edge::None };
        assert_eq!(pair.admit().1, edge, "{offset} {after}");
        // Either way, what comes later is too late.
        pair.now_ns += 2 * SECOND;
        let _ = pair.judge(0, Verdict::Succeeded);
        assert_eq!(pair.view().phase, Phase::Open);
    }
}

#[test]
fn the_ratio_counts_the_last_two_windows() {
    let params = Params { errors: 0, error_ratio: 50, min_volume: 4, ..PARAMS };
    let mut pair = Pair::new(params, DAY);
    for verdict in [Verdict::Failed, Verdict::Failed, Verdict::Succeeded] {
        admitted(&mut pair);
        assert_eq!(pair.judge(0, verdict), Edge::None);
    }
    pair.now_ns += 20 * SECOND - 1;
    let later = Pair::new(params, DAY);
    for (word, value) in later.line.iter().zip(pair.words()) {
        word.store(value, Ordering::Relaxed);
    }
    admitted(&mut pair);
    assert_eq!(pair.judge(0, Verdict::Failed), Edge::Tripped);
    // A nanosecond later they are of no window that counts.
    let now = DAY + 20 * SECOND;
    let (Admission::Admitted { epoch }, _) = admit(&later.line, &params, now) else {
        panic!("a closed breaker admits");
    };
    assert_eq!(failed(&later.line, &params, epoch, now, now), Edge::None);
}

#[test]
fn each_ejection_in_a_row_lasts_longer_up_to_the_longest() {
    let mut pair = tripped(PARAMS, DAY);
    for seconds in [5, 10, 15, 20, 20] {
        let remaining = pair.view().remaining_ns;
        assert!((seconds * SECOND..seconds * SECOND + TICK).contains(&remaining), "{seconds}");
        pair.now_ns += remaining - 1;
        assert_eq!(pair.admit(), (Admission::Open, Edge::None));
        pair.now_ns += 1;
        assert_eq!(pair.admit().1, Edge::HalfOpened);
        assert_eq!(pair.judge(0, Verdict::Failed), Edge::Reopened);
    }
}

#[test]
fn one_ejection_is_forgotten_in_each_interval_without_a_trip() {
    for (intervals, ejections) in [(0, 4), (1, 3), (2, 2), (3, 1), (9, 1)] {
        let mut pair = tripped(PARAMS, DAY);
        for _ in 0..2 {
            pair.now_ns += 60 * SECOND;
            admitted(&mut pair);
            assert_eq!(pair.judge(0, Verdict::Failed), Edge::Reopened);
        }
        pair.now_ns += 60 * SECOND;
        for _ in 0..2 {
            admitted(&mut pair);
            let _ = pair.judge(0, Verdict::Succeeded);
        }
        assert_eq!(pair.view().phase, Phase::Closed);
        pair.now_ns += intervals * 10 * SECOND + 2 * TICK;
        for _ in 0..3 {
            admitted(&mut pair);
            let _ = pair.judge(0, Verdict::Failed);
        }
        assert_eq!(pair.view().ejections, ejections, "{intervals}");
    }
}

#[test]
fn without_probes_it_closes_when_its_time_is_over() {
    let mut pair = tripped(Params { probes: 0, ..PARAMS }, DAY);
    pair.now_ns += 6 * SECOND;
    assert_eq!(pair.admit().1, Edge::Closed);
    assert_eq!(pair.view().attempts, 1);
}

#[test]
fn a_probe_that_is_taken_back_leaves_its_permit_to_another() {
    let mut pair = tripped(PARAMS, DAY);
    pair.now_ns += 6 * SECOND;
    admitted(&mut pair);
    admitted(&mut pair);
    assert_eq!(pair.admit(), (Admission::Probing, Edge::None));
    assert_eq!(pair.judge(0, Verdict::Abandoned), Edge::None);
    admitted(&mut pair);
    assert_eq!(pair.admit(), (Admission::Probing, Edge::None));
}

#[test]
fn a_probe_that_nobody_answers_opens_it_again() {
    let mut pair = tripped(PARAMS, DAY);
    pair.now_ns += 6 * SECOND;
    admitted(&mut pair);
    admitted(&mut pair);
    assert_eq!(peek(&pair.line, &PARAMS, pair.now_ns), Some(Admission::Probing));
    pair.now_ns += 2 * SECOND;
    // The look ahead must leave that to the one who may change something.
    assert_eq!(peek(&pair.line, &PARAMS, pair.now_ns), None);
    assert_eq!(pair.admit(), (Admission::Open, Edge::Reopened));
}

#[test]
fn a_breaker_that_nobody_met_for_long_is_not_open() {
    let range = TICK << 34;
    let params = Params { errors: 1, ..PARAMS };
    for after in [range / 64, range / 4, range / 2, range - 60 * SECOND] {
        let pair = tripped(params, DAY);
        assert_eq!(peek(&pair.line, &params, DAY + after), None);
        assert!(matches!(admit(&pair.line, &params, DAY + after).0, Admission::Admitted { .. }));
    }
}

#[test]
fn many_verdicts_halve_the_counts_and_keep_their_ratio() {
    let params = Params { errors: 0, error_ratio: 51, min_volume: 65_535, ..PARAMS };
    let line: [AtomicU64; LINE] = Default::default();
    for nth in 0..1_200_000 {
        let (Admission::Admitted { epoch }, Edge::None) = admit(&line, &params, DAY) else {
            panic!("it trips at the {nth}th");
        };
        // The success comes first: never more than half failed.
        let report = if nth % 2 == 0 { succeeded } else { failed };
        assert_eq!(report(&line, &params, epoch, DAY, DAY), Edge::None, "the {nth}th");
    }
    let view = read(&line, &params, DAY);
    assert!(view.ok + view.failed >= 65_535);
    assert!(view.ok.abs_diff(view.failed) <= 2);
}

#[test]
fn more_attempts_than_can_be_counted_pass_all_the_same() {
    let params = Params { errors: 0, error_ratio: 100, min_volume: 1, ..PARAMS };
    let line: [AtomicU64; LINE] = Default::default();
    for period in [0, 1] {
        for _ in 0..300_000 {
            let now = DAY + period * SECOND;
            assert!(matches!(admit(&line, &params, now), (Admission::Admitted { .. }, Edge::None)));
        }
    }
    assert_eq!(read(&line, &params, DAY + SECOND).attempts, 2 * ((1 << 18) - 1));
    // Both periods time out at once, in one word of the same width.
    let now = DAY + 4 * SECOND;
    assert_eq!(admit(&line, &params, now), (Admission::Open, Edge::Tripped));
    assert_eq!(read(&line, &params, now).ejections, 1);
}

/// A line one of whose words somebody else changes right before every compare-and-swap.
struct Restless {
    value: AtomicU64,
    still: bool,
    tries: Cell<u32>,
}

impl Word for Restless {
    fn load(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
        self.tries.set(self.tries.get() + 1);
        if self.still {
            Word::compare_exchange(&self.value, current, new)
        } else {
            Err(self.load())
        }
    }
}

fn restless(which: usize) -> [Restless; LINE] {
    array::from_fn(|index| Restless {
        value: AtomicU64::new(0),
        still: index != which,
        tries: Cell::new(0),
    })
}

#[test]
fn who_loses_every_round_gives_up() {
    let line = restless(3);
    assert_eq!(admit(&line, &PARAMS, DAY), (Admission::Contended, Edge::None));
    assert_eq!(failed(&line, &PARAMS, 0, DAY, DAY), Edge::None);
    assert_eq!(line[3].tries.get(), 2 * TRIES);
    assert_eq!(read(&line, &PARAMS, DAY).failed, 0);
    for index in 0..3 {
        let line = restless(index);
        for _ in 0..PARAMS.errors {
            assert!(matches!(admit(&line, &PARAMS, DAY).0, Admission::Admitted { .. }));
            let edge = failed(&line, &PARAMS, 0, DAY, DAY);
            assert!(index != 0 || edge == Edge::None);
        }
    }
}
