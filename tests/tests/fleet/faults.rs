//! What goes wrong with the store in the middle of load, and what is admitted then.
//!
//! With `deny` a window never admits more than its limit, and what a store lost. With `local` a window
//! admits at most its limit once more. Afterwards everything is as before, by itself.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use weir::fleet::{Health, store::redis::RedisSettings};
use weir_tests::{
    agent::{PATIENCE, eventually},
    redis::{Proxy, Server, free_port, sets},
};

use crate::site::{Node, Second, admitted, rules, seconds_begin, under_load};

const LIMIT: u64 = 200;

fn two(url: &str, policy: &str) -> Vec<Node> {
    let own = format!("  on-store-failure: {policy}\n");
    ["east", "west"]
        .map(|cluster| {
            let redis = RedisSettings::single(url);
            Node::start(redis, cluster, &rules(LIMIT as u32, "second", &own))
        })
        .into()
}

fn assert_at_most(loads: &[BTreeMap<u64, Second>], most: u64) {
    for (second, sum) in admitted(loads) {
        assert!(sum <= most, "{sum} of {most} in {second}: {loads:?}");
    }
}

/// In one of the last whole seconds at least all is as it should be, if the load was above the limit: on
/// a busy machine what was leased may come too late to be spent.
fn assert_normal_again(loads: &[BTreeMap<u64, Second>]) {
    let sums = admitted(loads);
    let is_normal = |(second, sum): (&u64, &u64)| {
        let wanted = loads.iter().all(|load| load.get(second).is_some_and(|s| s.wanted_more));
        *sum > 0 && (!wanted || *sum >= LIMIT - LIMIT / 100)
    };
    assert!(sums.iter().rev().skip(1).take(3).any(is_normal), "{sums:?}: {loads:?}");
}

/// Waits until both nodes see the store so.
fn await_health(fleets: &[std::sync::Arc<weir::fleet::Fleet>], health: Health) {
    for fleet in fleets {
        eventually("the store's health", || fleet.figures().health, |seen| *seen == health);
    }
}

/// Load, a fault, its end, and load again.
fn through(
    nodes: &mut [Node],
    breaks: impl FnOnce(),
    heals: impl FnOnce(),
) -> Vec<BTreeMap<u64, Second>> {
    let fleets: Vec<_> = nodes.iter().map(|node| node.fleet.clone()).collect();
    under_load(nodes, || {
        seconds_begin(3);
        breaks();
        await_health(&fleets, Health::Down);
        seconds_begin(2);
        heals();
        await_health(&fleets, Health::Up);
        seconds_begin(4);
    })
}

#[test]
fn a_store_that_stops_answering() {
    redis_or_skip!();
    let server = Server::start();
    let mut nodes = two(&server.url(), "deny");
    let loads = through(&mut nodes, || server.freeze(), || server.thaw());
    assert_at_most(&loads, LIMIT);
    assert_normal_again(&loads);
}

#[test]
fn a_store_that_stops_answering_while_shares_go_on() {
    redis_or_skip!();
    let server = Server::start();
    let mut nodes = two(&server.url(), "local");
    let loads = through(&mut nodes, || server.freeze(), || server.thaw());
    assert_at_most(&loads, 2 * LIMIT);
    assert_normal_again(&loads);
    let assumed: u64 = nodes.iter().map(|node| node.fleet.figures().assumed).sum();
    assert!(assumed > 0, "shares were spent");
    // The two seconds in the middle of the outage: shares alone, and never more than the limit.
    let sums = admitted(&loads);
    assert!(sums.values().all(|sum| *sum > 0), "an outage that nobody notices: {sums:?}");
}

#[test]
fn a_store_that_is_killed_and_comes_back_empty() {
    redis_or_skip!();
    let mut server = Server::start();
    let mut nodes = two(&server.url(), "deny");
    let url = server.url();
    let server = std::cell::RefCell::new(&mut server);
    let loads =
        through(&mut nodes, || server.borrow_mut().kill(), || server.borrow_mut().restart());
    assert!(url.starts_with("redis://"));
    // It lost what it had granted in that second.
    assert_at_most(&loads, 2 * LIMIT);
    assert_normal_again(&loads);
}

#[test]
fn a_store_that_becomes_a_replica() {
    redis_or_skip!();
    let server = Server::start();
    let mut nodes = two(&server.url(), "deny");
    let replica_of = |host: &str, port: &str| {
        let () = redis::cmd("REPLICAOF").arg(host).arg(port).query(&mut server.client()).unwrap();
    };
    let loads = through(&mut nodes, || replica_of("127.0.0.1", "1"), || replica_of("NO", "ONE"));
    assert_at_most(&loads, LIMIT);
    assert_normal_again(&loads);
}

#[test]
fn a_store_that_is_full() {
    redis_or_skip!();
    let server = Server::start();
    let mut nodes = two(&server.url(), "deny");
    let memory = |most: &str| {
        let mut client = server.client();
        let () = redis::cmd("CONFIG").arg(&["SET", "maxmemory", most]).query(&mut client).unwrap();
    };
    let loads = through(&mut nodes, || memory("1"), || memory("0"));
    assert_at_most(&loads, LIMIT);
    assert_normal_again(&loads);
}

/// Three nodes, of which one loses the way to the store for some seconds. What each did.
fn one_cut_off(policy: &str) -> Vec<BTreeMap<u64, Second>> {
    let server = Server::start();
    let proxy = Proxy::start(server.address());
    let rules = rules(LIMIT as u32, "second", &format!("  on-store-failure: {policy}\n"));
    let mut nodes: Vec<_> = [proxy.url(), server.url(), server.url()]
        .iter()
        .zip(["east", "west", "north"])
        .map(|(url, cluster)| Node::start(RedisSettings::single(url), cluster, &rules))
        .collect();
    let cut_off = [nodes[0].fleet.clone()];
    let others = [nodes[1].fleet.clone(), nodes[2].fleet.clone()];
    let loads = under_load(&mut nodes, || {
        seconds_begin(4);
        proxy.cut(true);
        await_health(&cut_off, Health::Down);
        seconds_begin(3);
        // They have nothing to do with it.
        await_health(&others, Health::Up);
        if policy == "local" {
            let assumed = || cut_off[0].figures().assumed;
            eventually("it spends its share", assumed, |hits| *hits > 0);
        }
        proxy.cut(false);
        await_health(&cut_off, Health::Up);
        seconds_begin(3);
    });
    let others = admitted(&loads[1..]);
    assert!(others.values().all(|sum| *sum > 0), "the others lease as before: {loads:?}");
    assert_normal_again(&loads);
    loads
}

#[test]
fn a_node_that_is_cut_off_from_the_store() {
    redis_or_skip!();
    let loads = one_cut_off("deny");
    assert_at_most(&loads, LIMIT);
}

#[test]
fn a_node_that_is_cut_off_from_the_store_spends_its_share() {
    redis_or_skip!();
    let loads = one_cut_off("local");
    assert_at_most(&loads, 2 * LIMIT);
}

#[test]
fn a_replica_takes_over_that_missed_the_last_writes() {
    redis_or_skip!();
    let mut master = Server::start();
    let port = master.address().port().to_string();
    let replica = Server::start_with(free_port(), &["--replicaof", &format!("127.0.0.1 {port}")]);
    sets::await_replica(&replica);
    let proxy = Proxy::start(master.address());
    let mut nodes = two(&proxy.url(), "deny");
    let fleets: Vec<_> = nodes.iter().map(|node| node.fleet.clone()).collect();
    let mut lost = BTreeMap::new();
    let loads = under_load(&mut nodes, || {
        seconds_begin(3);
        // From here on it misses what the master acknowledges.
        let () = redis::cmd("REPLICAOF").arg(&["NO", "ONE"]).query(&mut replica.client()).unwrap();
        let begun = counters(&replica);
        let more = || -> u64 { counters(&master).values().sum() };
        eventually("it missed some", more, |sum| *sum >= begun.values().sum::<u64>() + LIMIT / 2);
        // The master has acknowledged what it will.
        let pause = ["PAUSE", "60000", "WRITE"];
        let () = redis::cmd("CLIENT").arg(&pause).query(&mut master.client()).unwrap();
        lost = counters(&master);
        for (window, count) in counters(&replica) {
            lost.entry(window).and_modify(|lost| *lost -= count);
        }
        proxy.lead_to(replica.address());
        master.kill();
        await_health(&fleets, Health::Up);
        let newest = || counters(&replica).keys().max().copied();
        let before = lost.keys().max().copied();
        eventually("it counts", newest, |newest| *newest > before);
        seconds_begin(3);
    });
    assert!(lost.values().sum::<u64>() > 0);
    for (second, sum) in admitted(&loads) {
        let most = LIMIT + lost.get(&second).copied().unwrap_or(0);
        assert!(sum <= most, "{sum} of {most} in {second}, lost {lost:?}: {loads:?}");
    }
    assert_normal_again(&loads);
}

/// What a server counted in each window.
fn counters(server: &Server) -> BTreeMap<u64, u64> {
    let mut client = server.client();
    let keys: Vec<String> = redis::cmd("KEYS").arg("shop_user_ann_*").query(&mut client).unwrap();
    let mut count = |key: &String| {
        let window = key.rsplit('_').next()?.parse().ok()?;
        let count: Option<u64> = redis::cmd("GET").arg(key).query(&mut client).unwrap();
        Some((window, count?))
    };
    keys.iter().filter_map(&mut count).collect()
}

/// What a server was asked since the last time, as the sums that it tells: connections, commands.
fn asked(server: &Server) -> (u64, u64) {
    let mut client = server.client();
    let told: String = redis::cmd("INFO").arg("stats").query(&mut client).unwrap();
    let value = |name: &str| -> u64 {
        let line = told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("{name}: {told}"))
    };
    let asked = (value("total_connections_received"), value("total_commands_processed"));
    let () = redis::cmd("CONFIG").arg("RESETSTAT").query(&mut client).unwrap();
    asked
}

#[test]
fn nodes_do_not_come_back_as_a_herd() {
    redis_or_skip!();
    let server = Server::start();
    let proxy = Proxy::start(server.address());
    let rules = rules(100_000, "second", "  on-store-failure: local\n");
    let mut nodes: Vec<Node> = (0..6)
        .map(|node| {
            let redis = RedisSettings::single(proxy.url());
            Node::start(redis, &format!("cluster-{node}"), &rules)
        })
        .collect();
    let fleets: Vec<_> = nodes.iter().map(|node| node.fleet.clone()).collect();
    let (mut before, mut after) = ((0, 0), (0, 0));
    under_load(&mut nodes, || {
        seconds_begin(3);
        asked(&server);
        seconds_begin(2);
        before = asked(&server);
        proxy.cut(true);
        await_health(&fleets, Health::Down);
        seconds_begin(2);
        asked(&server);
        proxy.cut(false);
        await_health(&fleets, Health::Up);
        seconds_begin(2);
        after = asked(&server);
    });
    println!("connections and commands before the outage {before:?}, after it {after:?}");
    // One connection of each, and the test's own.
    assert!(after.0 <= 6 + 1, "{after:?}");
    // Leases, shares and what was admitted meanwhile: not much more than in other seconds.
    assert!(after.1 <= 3 * before.1 + 100, "{before:?} {after:?}");
}

#[test]
fn a_store_that_is_slow_is_not_waited_for() {
    redis_or_skip!();
    let server = Server::start();
    let proxy = Proxy::start(server.address());
    let mut nodes = two(&proxy.url(), "deny");
    let fleets: Vec<_> = nodes.iter().map(|node| node.fleet.clone()).collect();
    let loads = under_load(&mut nodes, || {
        seconds_begin(2);
        proxy.delay(Duration::from_millis(20));
        await_health(&fleets, Health::Late);
        seconds_begin(2);
        proxy.delay(Duration::ZERO);
        await_health(&fleets, Health::Up);
        seconds_begin(3);
    });
    assert_at_most(&loads, LIMIT);
    assert_normal_again(&loads);
    // Leases go on all the while.
    assert!(admitted(&loads).values().all(|sum| *sum > 0), "{loads:?}");
}

#[test]
fn without_a_store_from_the_start_the_policy_decides_at_once() {
    redis_or_skip!();
    for (policy, expected) in [("allow", true), ("deny", false)] {
        let own = format!("  on-store-failure: {policy}\n");
        let url = format!("redis://127.0.0.1:{}/0", free_port());
        let node =
            Node::start_without_store(RedisSettings::single(url), "east", &rules(10, "hour", &own));
        let begin = Instant::now();
        for _ in 0..50 {
            assert_eq!(node.admits().1, expected, "{policy}");
        }
        assert!(begin.elapsed() < PATIENCE, "nobody waits for a server that is not there");
    }
}
