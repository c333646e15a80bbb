//! A word counts as a list of connections does, handshakes by the epoch they began in.
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]

use std::{
    array,
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

use proptest::prelude::*;
use weir_common::{
    load::{
        Bounds, Change, EPOCH_SHIFT, Load, MAX_CONNECTIONS, MAX_HANDSHAKES, Opened, SHARED,
        SourceOpened, WAYS, change, change_source, open, open_source, read, read_source, tag,
        would_refuse, would_refuse_source,
    },
    way::LINE,
    word::{TRIES, Word},
};

const SECOND: u64 = 1_000_000_000;
const EPOCH: u64 = 1 << EPOCH_SHIFT;
const NOW: u64 = 100_000 * EPOCH;
const ANY: Bounds = Bounds { connections: MAX_CONNECTIONS, handshakes: MAX_HANDSHAKES };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Handshake,
    Established,
    Gone,
}

/// A connection as an observer knows it.
#[derive(Clone, Copy, Debug)]
struct Connection {
    opened_ns: u64,
    state: State,
    /// Where it counts: a source's number, or the shared word.
    owner: usize,
}

impl Connection {
    fn counts(&self, now_ns: u64) -> bool {
        match self.state {
            State::Handshake => now_ns / EPOCH - self.opened_ns / EPOCH <= 1,
            State::Established => true,
            State::Gone => false,
        }
    }
}

/// All connections there ever were.
#[derive(Default)]
struct Model(Vec<Connection>);

impl Model {
    fn of(&self, owner: usize) -> impl Iterator<Item = &Connection> {
        self.0.iter().filter(move |connection| connection.owner == owner)
    }

    fn load(&self, owner: usize, now_ns: u64) -> Load {
        let began = |ago: u64| {
            self.of(owner)
                .filter(|it| it.state == State::Handshake)
                .filter(|it| now_ns / EPOCH - it.opened_ns / EPOCH == ago)
                .count() as u64
        };
        let established = self.of(owner).filter(|it| it.state == State::Established).count();
        Load { previous: began(1), current: began(0), established: established as u64 }
    }

    fn open(&mut self, owner: usize, now_ns: u64, bounds: Bounds, most: u64) -> Opened {
        let load = self.load(owner, now_ns);
        if load.previous + load.current >= bounds.handshakes || load.current >= most {
            return Opened::TooManyHandshakes;
        }
        if load.previous + load.current + load.established >= bounds.connections {
            return Opened::TooManyConnections;
        }
        self.0.push(Connection { opened_ns: now_ns, state: State::Handshake, owner });
        Opened::Opened
    }

    /// What may be reported of a connection, and what it is afterwards.
    fn change(&mut self, index: usize, change: Change) -> bool {
        let state = &mut self.0[index].state;
        *state = match (*state, change) {
            (State::Handshake, Change::Established) | (State::Gone, Change::Reopened) => {
                State::Established
            }
            (State::Handshake, Change::Abandoned) | (State::Established, Change::Closed) => {
                State::Gone
            }
            _ => return false,
        };
        true
    }
}

#[derive(Clone, Debug)]
enum Op {
    Open(usize),
    Change(usize, Change),
    Wait(u64),
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => Just(Change::Established),
        2 => Just(Change::Abandoned),
        3 => Just(Change::Closed),
        1 => Just(Change::Reopened),
    ]
}

fn operations(sources: usize) -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..sources).prop_map(Op::Open),
        8 => (any::<usize>(), changes()).prop_map(|(which, change)| Op::Change(which, change)),
        2 => prop_oneof![0..EPOCH / 2, Just(EPOCH), 0..5 * EPOCH].prop_map(Op::Wait),
    ]
}

fn starts() -> impl Strategy<Value = u64> {
    // Epochs come round after 256 and after 4096.
    prop_oneof![
        0..100 * EPOCH,
        (1..20_u64, 0..4 * EPOCH).prop_map(|(round, before)| round * 256 * EPOCH - before),
        (1..20_u64, 0..4 * EPOCH).prop_map(|(round, before)| round * 4096 * EPOCH - before),
    ]
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_word_counts_as_a_list_does(
        start in starts(),
        connections in 1..12_u64,
        handshakes in 1..8_u64,
        ops in prop::collection::vec(operations(1), 1..200),
    ) {
        let bounds = Bounds { connections, handshakes };
        let (word, mut model, mut now) = (AtomicU64::new(0), Model::default(), start);
        for op in ops {
            match op {
                Op::Open(_) => {
                    let before = word.load(Ordering::Relaxed);
                    let expected = model.open(0, now, bounds, MAX_HANDSHAKES);
                    prop_assert_eq!(would_refuse(before, now, bounds).is_some(), expected != Opened::Opened);
                    prop_assert_eq!(open(&word, now, bounds), expected);
                    if expected != Opened::Opened {
                        prop_assert_eq!(word.load(Ordering::Relaxed), before);
                    }
                }
                Op::Change(which, what) if !model.0.is_empty() => {
                    let index = which % model.0.len();
                    let opened = model.0[index].opened_ns;
                    if model.change(index, what) {
                        prop_assert!(change(&word, what, opened, now));
                    }
                }
                Op::Change(..) => {}
                Op::Wait(ns) => now += ns,
            }
            prop_assert_eq!(read(word.load(Ordering::Relaxed), now), model.load(0, now));
        }
    }

    /// As many sources as have a way each, and more, which share the last word.
    #[test]
    fn a_line_counts_as_lists_do(
        start in starts(),
        bound in 1..6_u64,
        sources in 1..12_usize,
        ops in prop::collection::vec(operations(12), 1..250),
    ) {
        let line: [AtomicU64; LINE] = Default::default();
        let words = || line.each_ref().map(|word| word.load(Ordering::Relaxed));
        let (mut model, mut ways, mut now) = (Model::default(), Vec::new(), start);
        let bounds = Bounds { connections: bound, handshakes: MAX_HANDSHAKES };
        let shared = 12;
        for op in ops {
            match op {
                Op::Open(source) => {
                    let source = source % sources;
                    // A source has a way while it has a connection; the eighth shares.
                    let live = |owner| model.of(owner).any(|it| it.counts(now));
                    let others = (0..12).filter(|&other| other != source && live(other)).count();
                    let owner = if live(source) || others < WAYS { source } else { shared };
                    let before = words();
                    let expected = match model.open(owner, now, bounds, 255) {
                        Opened::Opened => Opened::Opened,
                        _ => Opened::TooManyConnections,
                    };
                    let name = name(source);
                    let refuses = would_refuse_source(&line, name, now, bound);
                    prop_assert_eq!(refuses, expected != Opened::Opened);
                    prop_assert_eq!(words(), before);
                    let SourceOpened { opened, way } = open_source(&line, name, now, bound);
                    prop_assert_eq!(opened, expected);
                    prop_assert_eq!(way == WAYS, owner == shared);
                    if opened == Opened::Opened {
                        ways.push((way, if way == WAYS { SHARED } else { name }));
                    }
                }
                Op::Change(which, what) if !model.0.is_empty() => {
                    let index = which % model.0.len();
                    let (opened, (way, owner)) = (model.0[index].opened_ns, ways[index]);
                    // What comes back, or is established late, finds its way only if that still is its
                    // source's, and its source counts nowhere else.
                    let mine = model.0[index];
                    let there = line[way].load(Ordering::Relaxed) >> 44 == owner;
                    let elsewhere = model.0.iter().zip(&ways).any(|(it, at)| {
                        it.owner == mine.owner && it.counts(now) && at.0 != way
                    });
                    if mine.counts(now) || (there && !elsewhere) {
                        if model.change(index, what) {
                            prop_assert!(change_source(&line[way], owner, what, opened, now));
                        }
                    } else if !there {
                        let before = words();
                        prop_assert!(change_source(&line[way], owner, what, opened, now));
                        prop_assert_eq!(words(), before, "somebody else's");
                    }
                }
                Op::Change(..) => {}
                Op::Wait(ns) => now += ns,
            }
            for source in 0..sources {
                let here: Vec<_> = words()[..WAYS]
                    .iter()
                    .filter_map(|&word| read_source(word, now))
                    .filter(|&(owner, _)| owner == name(source))
                    .collect();
                let load = model.load(source, now);
                if load.connections() == 0 {
                    prop_assert!(here.is_empty());
                } else {
                    prop_assert_eq!(&here, &[(name(source), load)][..]);
                }
            }
            let load = read_source(words()[WAYS], now).map(|(_, load)| load);
            let expected = model.load(shared, now);
            prop_assert_eq!(load, (expected.connections() > 0).then_some(expected));
        }
    }

    /// Two CPUs, one with an older time: nothing is forgotten, and nothing stays.
    #[test]
    fn an_older_time_neither_forgets_nor_keeps(
        start in starts(),
        ops in prop::collection::vec(
            (0..EPOCH / 4, 0..2 * SECOND, any::<bool>(), any::<bool>()), 1..100,
        ),
    ) {
        let word = AtomicU64::new(0);
        let line: [AtomicU64; LINE] = Default::default();
        let mut now = start + 4 * SECOND;
        let mut waiting: Vec<u64> = Vec::new();
        for (forth, back, late, done) in ops {
            now += forth;
            let seen = if late { now - back } else { now };
            // Two epochs later who opened late looks for it where it does not stand any more.
            if done || waiting.first().is_some_and(|&opened| now - opened > EPOCH / 4) {
                for opened in waiting.drain(..) {
                    // Nobody reports what he cannot have seen.
                    let seen = seen.max(opened);
                    prop_assert!(change(&word, Change::Abandoned, opened, seen));
                    prop_assert!(change_source(&line[0], 7, Change::Abandoned, opened, seen));
                }
            } else {
                prop_assert_eq!(open(&word, seen, ANY), Opened::Opened);
                let opened = SourceOpened { opened: Opened::Opened, way: 0 };
                prop_assert_eq!(open_source(&line, 7, seen, 200), opened);
                waiting.push(seen);
            }
            let count = waiting.len() as u64;
            for at in [seen, now] {
                prop_assert_eq!(read(word.load(Ordering::Relaxed), at).handshakes(), count);
                let there = read_source(line[0].load(Ordering::Relaxed), at);
                prop_assert_eq!(there.map_or(0, |(_, load)| load.handshakes()), count);
            }
        }
    }

    #[test]
    fn nothing_is_ever_negative(
        start in starts(),
        word: u64,
        established in prop_oneof![0..3_u64, 0..=MAX_CONNECTIONS],
        changes in prop::collection::vec((changes(), 0..3 * EPOCH, 0..EPOCH), 1..50),
    ) {
        let word = word >> 20 << 20 | established;
        let (plain, way) = (AtomicU64::new(word), AtomicU64::new(word));
        let mut now = start + 3 * EPOCH;
        for (what, ago, forth) in changes {
            now += forth;
            let before = read(plain.load(Ordering::Relaxed), now);
            prop_assert!(change(&plain, what, now - ago, now));
            let after = read(plain.load(Ordering::Relaxed), now);
            prop_assert!(after.connections() <= before.connections() + 1);
            prop_assert!(change_source(&way, word >> 44, what, now - ago, now));
            prop_assert_eq!(way.load(Ordering::Relaxed) >> 44, word >> 44);
        }
    }
}

/// Tags from all over their range.
fn name(source: usize) -> u64 {
    match source {
        0 => 2,
        1 => (1 << 20) - 1,
        _ => 2 + source as u64 * 7919,
    }
}

#[test]
fn a_forged_handshake_is_forgotten_by_the_clock_alone() {
    let word = AtomicU64::new(0);
    let bounds = Bounds { connections: 1, ..ANY };
    assert_eq!(open(&word, NOW, bounds), Opened::Opened);
    assert_eq!(open(&word, NOW + 2 * EPOCH - 1, bounds), Opened::TooManyConnections);
    assert_eq!(open(&word, NOW + 2 * EPOCH, bounds), Opened::Opened);
}

#[test]
fn the_fields_hold_their_maximum_and_no_more() {
    let word = AtomicU64::new(0);
    for _ in 0..MAX_HANDSHAKES {
        assert_eq!(open(&word, NOW, ANY), Opened::Opened);
    }
    assert_eq!(open(&word, NOW, ANY), Opened::TooManyHandshakes);
    let full = read(word.load(Ordering::Relaxed), NOW);
    assert_eq!(full, Load { previous: 0, current: MAX_HANDSHAKES, established: 0 });
    for _ in 0..MAX_CONNECTIONS + 5 {
        assert!(change(&word, Change::Reopened, NOW, NOW));
    }
    let full = read(word.load(Ordering::Relaxed), NOW + EPOCH);
    assert_eq!(full, Load { previous: MAX_HANDSHAKES, current: 0, established: MAX_CONNECTIONS });
}

#[test]
fn a_source_has_255_handshakes_of_an_epoch_at_most() {
    let line: [AtomicU64; LINE] = Default::default();
    let count = |now| {
        (0..300)
            .filter(|_| open_source(&line, 7, now, MAX_CONNECTIONS).opened == Opened::Opened)
            .count()
    };
    assert_eq!(count(NOW), 255);
    assert_eq!(count(NOW + EPOCH), 255);
    let load = Load { previous: 255, current: 255, established: 0 };
    assert_eq!(read_source(line[0].load(Ordering::Relaxed), NOW + EPOCH), Some((7, load)));
}

#[test]
fn a_source_with_two_ways_has_one_bound() {
    let line: [AtomicU64; LINE] = Default::default();
    let other: [AtomicU64; LINE] = Default::default();
    for _ in 0..2 {
        assert_eq!(open_source(&other, 7, NOW, 9).opened, Opened::Opened);
    }
    let two = other[0].load(Ordering::Relaxed);
    line[3].store(two, Ordering::Relaxed);
    line[5].store(two, Ordering::Relaxed);
    assert!(would_refuse_source(&line, 7, NOW, 4));
    assert_eq!(open_source(&line, 7, NOW, 4).opened, Opened::TooManyConnections);
    assert!(!would_refuse_source(&line, 7, NOW, 5));
    assert_eq!(open_source(&line, 7, NOW, 5), SourceOpened { opened: Opened::Opened, way: 3 });
    assert_eq!(open_source(&line, 7, NOW, 5).opened, Opened::TooManyConnections);
}

#[test]
fn a_tag_is_neither_that_of_an_unused_way_nor_the_shared_words() {
    for hash in [0, 1 << 44, 2 << 44, u64::MAX] {
        assert!(tag(hash) > SHARED);
    }
}

/// A word that somebody else changes right before every compare-and-swap.
struct Restless {
    value: AtomicU64,
    tries: Cell<u32>,
}

impl Restless {
    fn new() -> Self {
        Self { value: AtomicU64::new(0), tries: Cell::new(0) }
    }
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
fn who_loses_every_round_is_contended_and_counts_nothing() {
    let word = Restless::new();
    assert_eq!(open(&word, NOW, ANY), Opened::Contended);
    assert!(!change(&word, Change::Closed, NOW, NOW));
    assert_eq!(word.tries.get(), 2 * TRIES);
    let line: [Restless; LINE] = array::from_fn(|_| Restless::new());
    assert_eq!(open_source(&line, 7, NOW, 9).opened, Opened::Contended);
    assert!(change_source(&line[0], 7, Change::Closed, NOW, NOW));
}
