//! Nodes whose clocks are wrong. A window is the one that a node's clock names, and whatever the clocks
//! show, no window admits more than its limit.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicI64, Ordering::SeqCst},
};

use weir::fleet::{store::redis::RedisSettings, terms::Moment};
use weir_tests::redis::Server;

use crate::site::{Node, Second, admitted, rules, seconds_begin, under_load};

const LIMIT: u64 = 200;
const MS: i64 = 1_000_000;
const SECOND: i64 = 1_000 * MS;

/// A clock that is wrong by so much.
fn wrong_by(ns: i64) -> Moment {
    let Moment { mono_ns, wall_ns } = Moment::now();
    Moment { mono_ns, wall_ns: wall_ns.saturating_add_signed(ns) }
}

fn node(server: &Server, cluster: &str, now: fn() -> Moment) -> Node {
    let rules = rules(LIMIT as u32, "second", "  on-store-failure: deny\n");
    Node::start_by(now, RedisSettings::single(server.url()), cluster, &rules)
}

fn assert_within_the_limit(loads: &[BTreeMap<u64, Second>]) {
    for (window, sum) in admitted(loads) {
        assert!(sum <= LIMIT, "{sum} in {window}: {loads:?}");
    }
}

#[test]
fn clocks_that_differ_share_windows() {
    redis_or_skip!();
    let server = Server::start();
    let mut nodes = [
        node(&server, "right", Moment::now),
        node(&server, "ahead", || wrong_by(700 * MS)),
        node(&server, "behind", || wrong_by(-1_300 * MS)),
    ];
    let loads = under_load(&mut nodes, || seconds_begin(6));
    assert_within_the_limit(&loads);
    // Who comes to a window later finds in it what the others left. Together it is the limit.
    let sums = admitted(&loads);
    let wanted = |window: &u64| {
        loads.iter().all(|load| load.get(window).is_some_and(|second| second.wanted_more))
    };
    let wanted: Vec<_> = sums.iter().filter(|(window, _)| wanted(window)).collect();
    assert!(wanted.len() >= 2, "{loads:?}");
    assert!(wanted.iter().any(|(_, sum)| **sum >= LIMIT - LIMIT / 100), "{wanted:?}: {loads:?}");
}

#[test]
fn a_clock_that_is_set_spends_no_window_twice() {
    static WRONG_BY: AtomicI64 = AtomicI64::new(0);
    redis_or_skip!();
    let server = Server::start();
    let mut nodes = [
        node(&server, "right", Moment::now),
        node(&server, "set", || wrong_by(WRONG_BY.load(SeqCst))),
    ];
    let loads = under_load(&mut nodes, || {
        seconds_begin(3);
        // Back, to windows that were spent; ahead, to some that nobody reached; and right.
        for by in [-3 * SECOND, 6 * SECOND, 0] {
            WRONG_BY.store(by, SeqCst);
            seconds_begin(2);
        }
    });
    assert_within_the_limit(&loads);
    let furthest = |load: &BTreeMap<u64, Second>| {
        load.iter().filter(|(_, did)| did.admitted > 0).map(|(window, _)| *window).max()
    };
    // It spent where nobody was but it, and both of them go on.
    assert!(furthest(&loads[1]) > furthest(&loads[0]), "{loads:?}");
    let last = loads[0].keys().next_back().unwrap();
    let lately =
        |load: &BTreeMap<u64, Second>| load.range(last - 2..).any(|(_, did)| did.admitted > 0);
    assert!(loads.iter().all(lately), "{loads:?}");
}
