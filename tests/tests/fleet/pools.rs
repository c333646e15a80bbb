//! Buckets and sliding windows of the fleet, by script in a real Redis.

use std::{
    thread,
    time::{Duration, Instant},
};

use weir::{
    clock::Clock,
    fleet::{
        node::Noise,
        store::{
            pool::{Drawn, Pool, Shape},
            redis::RedisSettings,
        },
    },
};
use weir_tests::{
    agent::{PATIENCE, eventually},
    redis::{Proxy, Server},
};

use crate::site::{Node, rules};

/// The script and its model say the same in the same history, where the test says the time.
#[test]
fn a_script_does_what_its_model_does() {
    redis_or_skip!();
    const FROM_TEST: &str = "local now = tonumber(ARGV[5])\n";
    let server = Server::start();
    let mut client = server.client();
    let mut noise = Noise::new(7);
    for history in 0..60 {
        let burst = 1 + (noise.bits() % 300) as u32;
        let shape = if history % 2 == 0 { Shape::Bucket { burst } } else { Shape::Sliding };
        let requests = 1 + (noise.bits() % 3000) as u32;
        let pool = Pool { requests, period_s: 1 + (noise.bits() % 500) as u32, shape };
        let script = redis::Script::new(&format!("{FROM_TEST}{}", pool.script()));
        let (key, mut state) = (pool.key(&history.to_string()), None);
        // Keys live as long as the server thinks, so histories stay within a second of its time.
        let mut now_us = Clock.realtime_ns() / 1000;
        for _ in 0..60 {
            // Set back at times, and over windows' edges at others.
            let jump = noise.bits() % 1000;
            now_us = if jump == 0 { now_us - 2_000_000 } else { now_us + jump * 1000 };
            let hits = (noise.bits() % u64::from(pool.limit().min(500) + 2)) as i64 / 2 - 2;
            let (admitted, before, reset_s): (u8, u64, u32) = script
                .key(&key)
                .arg(hits)
                .arg(pool.requests)
                .arg(pool.period_s)
                .arg(pool.burst())
                .arg(now_us)
                .invoke(&mut client)
                .unwrap();
            let (changed, expected) = pool.draw(state, hits, now_us);
            let told = Drawn { admitted: admitted == 1, before, reset_s };
            assert_eq!(told, expected, "{hits} of {pool:?} in {state:?} at {now_us}");
            state = changed.or(state);
            // What is due to be forgotten says no more than nothing at all.
            let ttl_ms: i64 = redis::cmd("PTTL").arg(&key).query(&mut client).unwrap();
            assert!(state.is_none() || ttl_ms > 0, "{ttl_ms}");
        }
        let () = redis::cmd("DEL").arg(&key).query(&mut client).unwrap();
    }
}

fn three(url: &str, own: &str, limit: u32, unit: &str) -> [Node; 3] {
    let rules = rules(limit, unit, &format!("  consistency: strict\n{own}"));
    ["east", "west", "north"]
        .map(|cluster| Node::start(RedisSettings::single(url), cluster, &rules))
}

/// What three nodes admit when all of them ask for a while, from the first hit to the last.
fn spent(nodes: &[Node; 3], lasting: Duration) -> (u64, Duration) {
    let begin = Instant::now();
    let (mut admitted, mut last) = (0, Duration::ZERO);
    while begin.elapsed() < lasting {
        for node in nodes {
            if node.admits().1 {
                (admitted, last) = (admitted + 1, begin.elapsed());
            } else {
                // Others want the CPU too, and Redis' answers to be in time.
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
    (admitted, last)
}

#[test]
fn nodes_share_a_token_bucket() {
    redis_or_skip!();
    let server = Server::start();
    let own = "  on-store-failure: deny\n  algorithm: token_bucket\n  burst: 20\n";
    let nodes = three(&server.url(), own, 100, "second");
    let (admitted, took) = spent(&nodes, Duration::from_secs(2));
    let back = took.as_secs_f64() * 100.0;
    assert!(admitted as f64 <= 20.0 + back + 1.0, "{admitted} in {took:?}");
    // Somebody always asks, so what comes back is spent, but for where the machine stopped.
    assert!(admitted > 20, "{admitted} in {took:?}");
}

#[test]
fn nodes_share_a_leaky_bucket() {
    redis_or_skip!();
    let server = Server::start();
    let own = "  on-store-failure: deny\n  algorithm: leaky_bucket\n";
    let nodes = three(&server.url(), own, 20, "second");
    let (admitted, took) = spent(&nodes, Duration::from_secs(1));
    assert!(admitted as f64 <= 1.0 + took.as_secs_f64() * 20.0 + 0.01, "{admitted} in {took:?}");
    assert!(admitted > 1, "{admitted} in {took:?}");
}

#[test]
fn nodes_share_a_sliding_window() {
    redis_or_skip!();
    let server = Server::start();
    let own = "  on-store-failure: deny\n  algorithm: sliding_window\n";
    let nodes = three(&server.url(), own, 30, "hour");
    // A late answer is a refusal, and what it drew is gone: so Redis says when the window is used up.
    let mut client = server.client();
    let mut drawn = || {
        let text: Option<String> =
            redis::cmd("GET").arg("weir:sliding:3600:shop_user_ann_").query(&mut client).unwrap();
        let hits =
            |text: &str| text.split(' ').skip(1).map(|hits| hits.parse::<u64>().unwrap()).sum();
        text.map_or(0, |text| hits(&text))
    };
    let patience = Instant::now() + PATIENCE;
    let mut admitted = 0;
    while drawn() < 30 && Instant::now() < patience {
        admitted += nodes.iter().filter(|node| node.admits().1).count() as u64;
        thread::sleep(Duration::from_millis(1));
    }
    assert!(admitted <= 30 && drawn() == 30, "{admitted}, {}", drawn());
    assert!(nodes.iter().all(|node| !node.admits().1), "it is used up for an hour");
}

/// Without Redis there are no shares of a bucket: what is not allowed is refused.
#[test]
fn without_redis_the_policy_decides_about_buckets() {
    redis_or_skip!();
    for (policy, expected) in [("allow", true), ("local", false), ("deny", false)] {
        let server = Server::start();
        let proxy = Proxy::start(server.address());
        let own = format!("  on-store-failure: {policy}\n  algorithm: token_bucket\n");
        let nodes = three(&proxy.url(), &own, 1000, "hour");
        eventually("it is admitted", || nodes[0].admits().1, |admitted| *admitted);
        drop(server);
        let decided = || nodes.each_ref().map(|node| node.admits().1);
        eventually("the policy decides", decided, |seen| *seen == [expected; 3]);
    }
}
