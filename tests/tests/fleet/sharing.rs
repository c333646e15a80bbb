//! Several clusters, one Redis: the sum is exact (SCENARIOS A7, B6).

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
};

use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::Code;
use redis::Commands as _;
use weir::fleet::store::redis::RedisSettings;
use weir_tests::{agent::eventually, redis::Server};

use crate::site::{Node, admitted, load, rules, seconds_begin, under_load};

fn clusters(server: &Server, rules: &str) -> Vec<Node> {
    ["east", "west", "north"]
        .map(|cluster| Node::start(RedisSettings::single(server.url()), cluster, rules))
        .into()
}

#[test]
fn three_clusters_admit_the_limit_in_each_window_and_no_more() {
    redis_or_skip!();
    const LIMIT: u64 = 300;
    let server = Server::start();
    let mut nodes = clusters(&server, &rules(LIMIT as u32, "second", "  on-store-failure: deny\n"));
    let loads = under_load(&mut nodes, || seconds_begin(8));
    let mut full = 0;
    let sums = admitted(&loads);
    for (second, sum) in &sums {
        assert!(*sum <= LIMIT, "{sum} in {second}: {loads:?}");
    }
    // The first and the last second are no whole ones.
    for (second, sum) in sums.into_iter().skip(1).rev().skip(1) {
        // Every node was refused at last, so all of them had spent what they held.
        let wanted = loads.iter().all(|load| load.get(&second).is_some_and(|s| s.wanted_more));
        if wanted {
            full += 1;
            assert!(sum >= LIMIT - LIMIT / 100, "only {sum} in {second}: {loads:?}");
        }
    }
    assert!(full >= 2, "the load was above the limit in {full} windows: {loads:?}");
}

#[test]
fn a_small_limit_is_exact_over_three_clusters() {
    redis_or_skip!();
    let server = Server::start();
    let nodes = clusters(&server, &rules(10, "hour", "  on-store-failure: deny\n"));
    let mut by_hour = BTreeMap::<u64, (u32, u32)>::new();
    for _ in 0..12 {
        for node in &nodes {
            let (second, admitted) = node.admits();
            let entry = by_hour.entry(second / 3600).or_default();
            entry.0 += u32::from(admitted);
            entry.1 += 1;
        }
    }
    for (hour, (admitted, asked)) in by_hour {
        assert!(admitted <= 10, "{admitted} in {hour}");
        // A decision that the machine kept waiting for 5 ms is refused: that is the policy here.
        assert!(asked < 36 || admitted >= 8, "{admitted} of {asked} in {hour}");
    }
}

#[test]
fn a_client_that_counts_as_the_original_does_shares_the_limit() {
    redis_or_skip!();
    const LIMIT: u64 = 400;
    let server = Server::start();
    let node = Node::start(
        RedisSettings::single(server.url()),
        "east",
        &rules(LIMIT as u32, "second", "  on-store-failure: deny\n"),
    );
    let end = AtomicBool::new(false);
    let (ours, theirs) = thread::scope(|scope| {
        let original = scope.spawn(|| {
            let mut client = server.client();
            let mut admitted = BTreeMap::<u64, u64>::new();
            while !end.load(SeqCst) {
                let second = weir::clock::Clock.realtime_ns() / 1_000_000_000;
                let key = format!("shop_user_ann_{second}");
                let (after,): (u64,) = redis::pipe()
                    .incr(&key, 1)
                    .expire(&key, 1 + 7)
                    .ignore()
                    .query(&mut client)
                    .unwrap();
                *admitted.entry(second).or_default() += u64::from(after <= LIMIT);
                thread::sleep(std::time::Duration::from_millis(1));
            }
            admitted
        });
        let end_ref = &end;
        let node = &node;
        // A runtime is not shared between threads: the node stays on this one.
        let waker = scope.spawn(move || {
            seconds_begin(5);
            end_ref.store(true, SeqCst);
        });
        let ours = load(node, &end);
        waker.join().unwrap();
        (ours, original.join().unwrap())
    });
    let mut both = 0;
    for (second, did) in &ours {
        let theirs = theirs.get(second).copied().unwrap_or(0);
        let sum = did.admitted + theirs;
        assert!(sum <= LIMIT, "{} + {theirs} in {second}", did.admitted);
        both += u64::from(did.admitted > 0 && theirs > 0);
    }
    assert!(both >= 2, "both were admitted in {both} windows: {ours:?} {theirs:?}");
}

#[test]
fn strict_answers_are_the_originals() {
    redis_or_skip!();
    let server = Server::start();
    let own = "  consistency: strict\n  on-store-failure: deny\n";
    let nodes = clusters(&server, &rules(5, "hour", own));
    // Again if the hour ended meanwhile, or if the machine was too slow for an answer.
    let seven = || {
        let mut client = server.client();
        let () = redis::cmd("FLUSHALL").query(&mut client).unwrap();
        let mut hours = Vec::new();
        let mut answers = Vec::new();
        for turn in 0..7 {
            let (second, answer) = nodes[turn % 3].ask("ann", 1);
            hours.push(second / 3600);
            answers.push((answer.overall_code(), answer.statuses[0].limit_remaining));
        }
        let count: u64 = client.get(format!("shop_user_ann_{}", hours[0] * 3600)).unwrap_or(0);
        let in_time = answers.iter().filter(|(code, _)| *code == Code::Ok).count() == 5;
        let one = hours.iter().all(|hour| *hour == hours[0]) && count == 7 && in_time;
        one.then_some((hours[0], answers))
    };
    let seven = eventually("seven answers of one hour", seven, Option::is_some);
    let (hour, answers) = seven.unwrap();
    let expected: Vec<_> = [4, 3, 2, 1, 0].map(|left| (Code::Ok, left)).into();
    assert_eq!(answers[..5], expected);
    assert_eq!(answers[5..], [(Code::OverLimit, 0), (Code::OverLimit, 0)]);
    let ttl: i64 = server.client().ttl(format!("shop_user_ann_{}", hour * 3600)).unwrap();
    assert!((3600 - 60..3600 + 300).contains(&ttl), "expires in {ttl} s");
}

#[test]
fn clusters_know_each_other() {
    redis_or_skip!();
    let server = Server::start();
    let nodes = clusters(&server, &rules(10, "hour", ""));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let survey = || runtime.block_on(nodes[0].fleet.survey());
    let names = survey();
    let names: Vec<_> = names.members.iter().map(|member| member.cluster.as_str()).collect();
    assert_eq!(names, ["east", "north", "west"]);
    runtime.block_on(nodes[1].fleet.stop());
    let left = survey();
    assert_eq!(left.members.len(), 2, "one that stopped is gone: {left:?}");
}

#[test]
fn a_node_that_stops_gives_back_what_it_leased() {
    redis_or_skip!();
    let server = Server::start();
    let rules = rules(10_000, "hour", "  on-store-failure: deny\n");
    let mut nodes = vec![Node::start(RedisSettings::single(server.url()), "east", &rules)];
    let counter = |hour: u64| -> u64 {
        server.client().get(format!("shop_user_ann_{}", hour * 3600)).unwrap_or(0)
    };
    let spent = RefCell::new(BTreeMap::<u64, u64>::new());
    let ahead = || {
        let (second, admitted) = nodes[0].admits();
        let hour = second / 3600;
        let mut spent = spent.borrow_mut();
        *spent.entry(hour).or_default() += u64::from(admitted);
        counter(hour) > spent[&hour]
    };
    eventually("more is leased than spent", ahead, |ahead| *ahead);
    let node = nodes.pop().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(node.fleet.stop());
    let (hour, spent) = spent.into_inner().pop_last().unwrap();
    assert_eq!(counter(hour), spent, "what was spent is counted, and nothing else");
}
