//! A byte bucket answers like an exact one, whatever the clock, the packets and the agent do.
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use proptest::{prelude::*, sample::select};
use weir_common::{
    debt::{MAX_UNITS, Spent, Tariff, ahead, force, refund, rescale, take},
    flow::{self, Charge},
    gcra::{Q8, q8},
    way::{LINE, Tick},
    word::{TRIES, Word},
};

const SECOND: u64 = 1_000_000_000;
/// Bits of a price below 1/256 ns.
const FRACTION: u32 = 12;

/// Whole units that are left at `now`; 0 in debt.
fn units_left(word: u64, now: Q8, tariff: &Tariff) -> u64 {
    let left = tariff.burst.saturating_sub(ahead(word, now));
    let left = (u128::from(left) << FRACTION) / u128::from(tariff.price.max(1));
    u64::try_from(left).unwrap_or(u64::MAX)
}

/// The reference: when the bucket will be full, as a number without bounds.
struct Model {
    tariff: Tariff,
    full_at: i128,
}

impl Model {
    fn spent(&self, now: i128) -> i128 {
        (self.full_at - now).max(0)
    }

    fn charge(&self, units: u64) -> i128 {
        let exact = u128::from(units.min(MAX_UNITS)) * u128::from(self.tariff.price);
        exact.div_ceil(1 << FRACTION) as i128
    }

    fn take(&mut self, now: i128, units: u64, bound: i128) -> Option<i128> {
        let spent = self.spent(now);
        (spent < bound).then(|| self.full_at = now + spent + self.charge(units)).map(|()| spent)
    }

    fn force(&mut self, now: i128, units: u64, cap: i128) {
        let spent = self.spent(now);
        self.full_at = now + (spent + self.charge(units)).min(cap.max(spent));
    }
}

fn tariffs() -> impl Strategy<Value = Tariff> {
    (0..40_u32, any::<u64>(), 0..30_u32, any::<u64>()).prop_filter_map(
        "out of bounds",
        |(rate_bits, rate, burst_bits, burst)| {
            let rate = 1 + (rate & ((1 << rate_bits) - 1));
            let burst = 1 + (burst & ((1 << burst_bits) - 1));
            Tariff::new(rate, SECOND, burst)
        },
    )
}

/// Just booted, up for 1.14 and 2.28 years, and at the edges of the word.
fn uptimes() -> impl Strategy<Value = i128> {
    let edge = (select(&[1_i128 << 63, 1 << 64, 3 << 63][..]), -1_000_000..1_000_000_i128);
    prop_oneof![
        (1..10 * SECOND).prop_map(|ns| i128::from(ns) << 8),
        edge.prop_map(|(edge, off)| edge + off * 1_000),
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Take(u64),
    Force(u64),
    Refund,
    Wait(u64),
}

fn operations() -> impl Strategy<Value = Op> {
    let units = prop_oneof![1..2000_u64, 1..300_000_u64, select(&[1, MAX_UNITS, u64::MAX][..])];
    prop_oneof![
        6 => units.clone().prop_map(Op::Take),
        1 => units.prop_map(Op::Force),
        1 => Just(Op::Refund),
        4 => (0..40_u32, any::<u64>()).prop_map(|(bits, ns)| Op::Wait(ns & ((1 << bits) - 1))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn a_word_answers_like_an_exact_bucket(
        tariff in tariffs(),
        start in uptimes(),
        ops in prop::collection::vec(operations(), 1..200),
    ) {
        let word = AtomicU64::new(0);
        let mut model = Model { tariff, full_at: start };
        let mut now = start;
        let mut last = None;
        let bound = tariff.burst;
        for op in ops {
            let clock = now as u64;
            match op {
                Op::Take(units) => {
                    let charge = tariff.charge(units);
                    let taken = take(&word, clock, charge, bound, tariff.longest());
                    let expected = model.take(now, units, bound.into());
                    let expected =
                        expected.map_or(Spent::Denied, |spent| Spent::Admitted(spent as u64));
                    prop_assert_eq!(taken, expected);
                    last = matches!(taken, Spent::Admitted(_)).then_some(charge);
                }
                Op::Force(units) => {
                    force(&word, clock, tariff.charge(units), tariff.cap());
                    model.force(now, units, 2 * i128::from(bound));
                    last = None;
                }
                Op::Refund => {
                    if let Some(charge) = last.take() {
                        refund(&word, charge);
                        model.full_at -= i128::from(charge);
                    }
                }
                Op::Wait(ns) => now += i128::from(ns) << 8,
            }
            // The word 0 is taken for "never used", so it is never stored.
            if word.load(Ordering::Relaxed) == 1 && model.full_at % (1 << 64) == 0 {
                model.full_at += 1;
            }
            let word = word.load(Ordering::Relaxed);
            prop_assert_eq!(i128::from(ahead(word, now as u64)), model.spent(now));
            let left = (i128::from(bound) - model.spent(now)).max(0);
            let left = (left << FRACTION) / i128::from(tariff.price);
            prop_assert_eq!(i128::from(units_left(word, now as u64, &tariff)), left);
        }
    }

    #[test]
    fn any_stretch_admits_its_time_a_burst_and_one_packet_at_most(
        tariff in tariffs(),
        packets in prop::collection::vec((1..200_000_u64, 0..1_000_000_u64), 1..200),
    ) {
        let word = AtomicU64::new(0);
        let mut now = q8(SECOND);
        let mut admitted: Vec<(Q8, u64)> = Vec::new();
        for (units, wait) in packets {
            now += q8(wait);
            let charge = tariff.charge(units);
            if let Spent::Admitted(_) = take(&word, now, charge, tariff.burst, tariff.longest()) {
                admitted.push((now, units));
            }
        }
        let longest = admitted.iter().map(|(_, units)| *units).max().unwrap_or(0);
        for (first, (from, _)) in admitted.iter().enumerate() {
            let mut sum = 0_u128;
            for (until, units) in &admitted[first..] {
                sum += u128::from(*units);
                let time = u128::from(until - from) + u128::from(tariff.burst);
                let most = (time << FRACTION) / u128::from(tariff.price) + u128::from(longest);
                prop_assert!(sum <= most + 1, "{sum} of {most}");
            }
        }
    }

    #[test]
    fn a_change_of_tariff_gives_nothing_and_forgives_nothing(
        old in tariffs(), new in tariffs(), spend in 1..MAX_UNITS, start in uptimes(),
    ) {
        let word = AtomicU64::new(0);
        let now = start as u64;
        let _ = take(&word, now, old.charge(spend), old.burst, old.longest());
        let before = word.load(Ordering::Relaxed);
        let after = rescale(before, now, &old, &new);
        let (had, has) = (units_left(before, now, &old), units_left(after, now, &new));
        // One unit may fall to rounding.
        prop_assert!(has <= had + 1, "{had} became {has}");
        let owed = ahead(before, now).saturating_sub(old.burst);
        let owes = ahead(after, now).saturating_sub(new.burst);
        let units = |time: u64, of: &Tariff| (u128::from(time) << FRACTION) / u128::from(of.price);
        prop_assert!(units(owes, &new) <= units(owed, &old) + 1);
        prop_assert!(units(owes, &new) + 1 + (1 << FRACTION) / u128::from(new.price) >= units(owed, &old).min(1 << 40));
    }
}

fn gbit(gbit: u64, burst: u64) -> Tariff {
    Tariff::new(gbit * SECOND / 8, SECOND, burst).expect("within bounds")
}

/// What a refill in whole tokens loses with each packet, and with it all of them.
#[test]
fn small_packets_at_any_pace_get_the_whole_rate() {
    let tariff = Tariff::new(125_000, SECOND, 6250).expect("within bounds");
    for gap_ns in [500, 5_000, 7_999, 8_001, 100_000] {
        let word = AtomicU64::new(0);
        let mut bytes = 0;
        let start = q8(50 * SECOND);
        let packets = 2 * SECOND / gap_ns;
        for packet in 0..packets {
            let now = start + q8(packet * gap_ns);
            let charge = tariff.charge(60);
            if let Spent::Admitted(_) = take(&word, now, charge, tariff.burst, tariff.longest()) {
                bytes += 60;
            }
        }
        let offered = packets * 60;
        let most = 250_000 + 6250 + 60;
        assert!(bytes <= most, "{gap_ns} ns: {bytes}");
        assert!(bytes >= offered.min(250_000 - 60), "{gap_ns} ns: {bytes}");
    }
}

#[test]
fn after_ten_idle_minutes_at_100_gbit_there_is_one_burst() {
    let tariff = gbit(100, 10_000_000);
    let word = AtomicU64::new(0);
    let admitted = |now| {
        let spent = take(&word, now, tariff.charge(9000), tariff.burst, tariff.longest());
        matches!(spent, Spent::Admitted(_))
    };
    for now in [q8(5 * SECOND), q8(605 * SECOND)] {
        let count = (0..10_000).filter(|_| admitted(now)).count();
        assert_eq!(count, 10_000_000_usize.div_ceil(9000));
    }
}

#[test]
fn a_price_is_what_was_written() {
    for (units, error) in [(125, 1e-9), (12_500_000, 1e-6), (12_500_000_000, 2e-5)] {
        let tariff = Tariff::new(units, SECOND, units / 20).expect("within bounds");
        let exact = 1e9 * 256.0 / units as f64;
        for packet in [64_u64, 1514, 65_536] {
            let charged = tariff.charge(packet) as f64;
            let exact = exact * packet as f64;
            assert!(charged >= exact * (1.0 - 1e-12), "{units} {packet}: {charged} for {exact}");
            assert!(
                charged <= exact * (1.0 + error) + 1.0,
                "{units} {packet}: {charged} for {exact}"
            );
        }
    }
    assert_eq!(Tariff::new(0, SECOND, 1), None);
    assert_eq!(Tariff::new(1, 0, 1), None);
    assert_eq!(Tariff::new(1, SECOND, 0), None);
    assert_eq!(Tariff::new(1, SECOND + 1, 1), None);
    assert_eq!(Tariff::new(1, SECOND, 3601), None);
    assert!(Tariff::new(1, SECOND, 3600).is_some());
    assert!(Tariff::new(u64::MAX, SECOND, 1).is_some());
}

#[test]
fn a_packet_larger_than_the_bucket_passes_and_is_repaid() {
    let tariff = Tariff::new(1_250_000, SECOND, 10_000).expect("within bounds");
    let word = AtomicU64::new(0);
    let (mut now, mut bytes) = (q8(SECOND), 0);
    // 64 KiB are 52 ms.
    for _ in 0..10_000 {
        now += q8(1_000_000);
        let charge = tariff.charge(65_536);
        if let Spent::Admitted(_) = take(&word, now, charge, tariff.burst, tariff.longest()) {
            bytes += 65_536;
        }
    }
    assert!((12_500_000 - 65_536..=12_500_000 + 10_000 + 65_536).contains(&bytes), "{bytes}");
}

#[test]
fn what_must_pass_keeps_nothing_out_for_longer_than_a_burst() {
    let tariff = Tariff::new(125_000, SECOND, 6250).expect("within bounds");
    let word = AtomicU64::new(0);
    let now = q8(SECOND);
    for _ in 0..1_000_000 {
        force(&word, now, tariff.charge(66), tariff.cap());
    }
    assert_eq!(ahead(word.load(Ordering::Relaxed), now), 2 * tariff.burst);
    let denied = take(&word, now, 1, tariff.burst, tariff.longest());
    assert_eq!(denied, Spent::Denied);
    let later = now + tariff.burst + 1;
    assert!(matches!(take(&word, later, 1, tariff.burst, tariff.longest()), Spent::Admitted(_)));
}

#[test]
fn a_word_from_nowhere_is_brought_back() {
    let tariff = gbit(1, 1_000_000);
    let now = q8(SECOND);
    let word = AtomicU64::new(now + q8(3600 * SECOND));
    assert_eq!(take(&word, now, 100, tariff.burst, tariff.longest()), Spent::Denied);
    assert_eq!(ahead(word.load(Ordering::Relaxed), now), tariff.burst);
}

#[test]
fn threads_admit_together_what_one_would() {
    const PACKET: u64 = 1500;
    let tariff = Tariff::new(1, SECOND, 1500).expect("within bounds");
    for _ in 0..20 {
        let word = AtomicU64::new(0);
        let now = q8(SECOND);
        let admitted: usize = thread::scope(|scope| {
            let one = || {
                let taken = || take(&word, now, PACKET, 100 * PACKET, tariff.longest());
                (0..1000).filter(|_| matches!(taken(), Spent::Admitted(_))).count()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(admitted, 100);
    }
}

/// A word that somebody else always changes first.
struct Stubborn(Cell<u64>);

impl Word for Stubborn {
    fn load(&self) -> u64 {
        self.0.get()
    }

    fn compare_exchange(&self, _: u64, _: u64) -> Result<u64, u64> {
        self.0.set(self.0.get() + 1);
        Err(self.0.get())
    }
}

#[test]
fn a_packet_that_always_loses_the_race_is_not_admitted() {
    let word = Stubborn(Cell::new(0));
    assert_eq!(take(&word, q8(SECOND), 1, 1 << 40, 1), Spent::Contended);
    assert_eq!(word.0.get(), u64::from(TRIES));
}

fn line() -> [AtomicU64; LINE] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

fn charge(ticks: u64, bound: u64) -> Charge {
    Charge { ticks, bound, longest: 1 << 20, forced: false }
}

#[test]
fn each_connection_has_a_bucket_until_eight_crowd_a_line() {
    let line = line();
    let now = Tick::from_ns(1000 * SECOND);
    for tag in 1..=10_u64 {
        let way = flow::way_for(&line, tag, now);
        assert_eq!(way, (tag as usize - 1).min(flow::WAYS), "{tag}");
        let spent = flow::attempt(&line, way, tag, now, charge(100, 150));
        // The eighth and ninth share what the tenth finds spent.
        let expected = match tag {
            1..=8 => flow::Spent::Admitted(0),
            9 => flow::Spent::Admitted(100),
            _ => flow::Spent::Denied,
        };
        assert_eq!(spent, expected, "{tag}");
    }
    // Idle for as long as it takes to fill, all of them are gone.
    let later = now.after(200);
    assert_eq!(flow::way_for(&line, 99, later), 0);
    assert_eq!(flow::attempt(&line, 0, 99, later, charge(1, 150)), flow::Spent::Admitted(0));
}

#[test]
fn a_connection_in_debt_waits_and_a_refund_makes_room() {
    let line = line();
    let now = Tick::from_ns(1000 * SECOND);
    assert_eq!(flow::attempt(&line, 0, 7, now, charge(1000, 150)), flow::Spent::Admitted(0));
    assert_eq!(flow::way_for(&line, 7, now), 0);
    assert_eq!(flow::attempt(&line, 0, 7, now.after(850), charge(1, 150)), flow::Spent::Denied);
    assert_eq!(
        flow::attempt(&line, 0, 7, now.after(851), charge(1, 150)),
        flow::Spent::Admitted(149)
    );
    assert!(flow::attempt_refund(&line, 0, 7, now.after(851), 100));
    assert_eq!(
        flow::attempt(&line, 0, 7, now.after(851), charge(1, 150)),
        flow::Spent::Admitted(50)
    );
    // What must pass adds up to the bound and no further.
    let forced = Charge { forced: true, ..charge(1000, 150) };
    assert_eq!(flow::attempt(&line, 0, 7, now.after(851), forced), flow::Spent::Admitted(51));
    assert_eq!(flow::attempt(&line, 0, 7, now.after(851), forced), flow::Spent::Admitted(150));
    // Under a faster tariff an old debt is not repaid for ever.
    let stale = now.before(1 << 27);
    assert_eq!(flow::attempt(&line, 0, 7, stale, charge(1, 150)), flow::Spent::Denied);
    assert_eq!(
        flow::attempt(&line, 0, 7, stale.after(150), charge(1, 150)),
        flow::Spent::Admitted(0)
    );
}

#[test]
fn ticks_are_exact_on_average() {
    let time = 3 * (1 << 14) + 5000;
    let sum: u64 = (0..1 << 14).map(|random| flow::ticks(time, random)).sum();
    assert_eq!(sum, time);
    assert_eq!(flow::ticks(time, 0), 3);
    assert_eq!(flow::ticks(time, u32::MAX), 4);
}

/// A flood of what must pass leaves a debt of its own: it is not a word of another tariff.
#[test]
fn a_debt_of_what_must_pass_is_repaid_by_time_alone() {
    // A burst that is worth more than the largest packet.
    let tariff = Tariff::new(125_000, SECOND, 4 << 20).expect("within bounds");
    let word = AtomicU64::new(0);
    let now = q8(SECOND);
    for _ in 0..20 {
        force(&word, now, tariff.charge(MAX_UNITS), tariff.cap());
    }
    // Early drop denies below the burst, and the whole debt lies above it.
    let bound = tariff.burst / 5 * 4;
    assert_eq!(take(&word, now, 1, bound, tariff.longest()), Spent::Denied);
    assert_eq!(ahead(word.load(Ordering::Relaxed), now), 2 * tariff.burst);
}
