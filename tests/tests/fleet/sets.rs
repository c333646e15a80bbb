//! Quotas in a Redis cluster, and in a Redis that sentinels watch: shared as in one server, and over a
//! failover in the middle of load.

use std::collections::BTreeMap;

use weir::{
    clock::Clock,
    fleet::{
        Health,
        store::redis::{RedisSettings, Topology},
    },
};
use weir_tests::{
    agent::eventually,
    redis::{
        Server,
        sets::{Cluster, MASTER, Watched, await_master},
    },
};

use crate::site::{Node, Second, admitted, rules, seconds_begin, under_load};

const LIMIT: u64 = 200;

fn settings(topology: Topology) -> RedisSettings {
    RedisSettings { topology, ..RedisSettings::single("") }
}

fn in_cluster(cluster: &Cluster) -> RedisSettings {
    settings(Topology::Cluster(cluster.urls()))
}

fn watched(by: &Watched) -> RedisSettings {
    let (master, sentinels) = (MASTER.to_owned(), by.urls());
    settings(Topology::Sentinel { master, sentinels, database: 0 })
}

fn two(redis: &RedisSettings) -> Vec<Node> {
    let rules = rules(LIMIT as u32, "second", "  on-store-failure: deny\n");
    ["east", "west"].map(|cluster| Node::start(redis.clone(), cluster, &rules)).into()
}

fn now_s() -> u64 {
    Clock.realtime_ns() / 1_000_000_000
}

/// Load, a server that takes over from one that is killed, and load again.
fn over(redis: &RedisSettings, to: &Server, fails_over: impl FnOnce()) {
    let mut nodes = two(redis);
    let fleets: Vec<_> = nodes.iter().map(|node| node.fleet.clone()).collect();
    let mut failed = (0, 0);
    let loads = under_load(&mut nodes, || {
        seconds_begin(3);
        failed.0 = now_s();
        fails_over();
        for fleet in &fleets {
            eventually("the store answers", || fleet.figures().health, |seen| *seen == Health::Up);
        }
        failed.1 = now_s();
        // In a cluster it has every third window, or so.
        let newest = || newest_window(to);
        eventually("what took over counts", newest, |window| *window > failed.1);
        seconds_begin(3);
    });
    for (second, sum) in admitted(&loads) {
        // What the replica had not got yet when it took over is granted once more, and no more than
        // that: the promise asks for a store that keeps what it acknowledged.
        let most = if (failed.0..=failed.1).contains(&second) { 2 * LIMIT } else { LIMIT };
        assert!(sum <= most, "{sum} of {most} in {second}, failed in {failed:?}: {loads:?}");
    }
    // They go on.
    let sums = admitted(&loads);
    assert!(sums.iter().any(|(second, sum)| *second > failed.1 && *sum > 0), "{sums:?}");
}

/// The newest window that a server has a counter for.
fn newest_window(server: &Server) -> u64 {
    let keys: Vec<String> =
        redis::cmd("KEYS").arg("shop_user_ann_*").query(&mut server.client()).unwrap();
    let window = |key: &String| key.rsplit('_').next()?.parse().ok();
    keys.iter().filter_map(window).max().unwrap_or_default()
}

/// After a moment both spend, and together the limit: in one of the last whole seconds at least, as on a
/// busy machine what was leased may come too late to be spent.
fn assert_shared(loads: &[BTreeMap<u64, Second>], after: u64) {
    let sums = admitted(loads);
    let is_shared = |(second, sum): (&u64, &u64)| {
        let wanted = loads.iter().all(|load| load.get(second).is_some_and(|s| s.wanted_more));
        *second > after && *sum > 0 && (!wanted || *sum >= LIMIT - LIMIT / 100)
    };
    let is_well = sums.iter().rev().skip(1).take(3).any(is_shared);
    assert!(is_well, "{sums:?}, up in {after}: {loads:?}");
}

#[test]
fn a_redis_cluster_keeps_the_limit() {
    redis_or_skip!();
    let cluster = Cluster::start();
    let mut nodes = two(&in_cluster(&cluster));
    let begin = now_s();
    let loads = under_load(&mut nodes, || seconds_begin(6));
    for (second, sum) in admitted(&loads) {
        assert!(sum <= LIMIT, "{sum} in {second}: {loads:?}");
    }
    assert_shared(&loads, begin);
    // Each window's counter lies where its name says: on more than one of the servers.
    let used = cluster.masters.iter().filter(|master| newest_window(master) > 0).count();
    assert!(used >= 2, "{used} of the masters hold counters");
}

#[test]
fn a_replica_takes_over_in_a_redis_cluster() {
    redis_or_skip!();
    let mut cluster = Cluster::start();
    let redis = in_cluster(&cluster);
    over(&redis, &cluster.replica, || {
        cluster.masters[0].kill();
        await_master(&cluster.replica);
    });
}

#[test]
fn a_replica_takes_over_where_sentinels_watch() {
    redis_or_skip!();
    let mut set = Watched::start();
    let redis = watched(&set);
    over(&redis, &set.replica, || {
        set.master.kill();
        await_master(&set.replica);
    });
}
