//! A node file that changes under load: no change is a gift of tokens, and none takes any away.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use weir::load::{Client, Plan, Talk};
use weir_tests::{
    agent::Agent,
    site::{Side, ask, serve},
};

/// A generator at ten times the limit, and a hundred reloads meanwhile: the same file again,
/// another rate, and back. What gets in is at most the sum of rate × time and one burst, and at
/// least nine tenths of it.
#[test]
fn a_hundred_reloads_under_load_admit_the_sum_of_the_rates_and_one_burst() {
    const BURST: u64 = 100;
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let server = serve(&web, &[80]);
    let file = |rate: u64, reload: usize| {
        // Another comment each time, so that the file is another even where the rate is not.
        let line = format!("connections.80: {rate}/s burst={BURST} # {reload}");
        Side::Host.node_file(&web, &[&line])
    };
    let mut agent = Agent::start(&lab, node.namespace(), &file(100, 0));
    let plan = Plan::to(SocketAddr::new(web.ipv4().into(), 80)).talk(Talk::Byte).per_second(1000);

    let start = Instant::now();
    let client = client.namespace().run(|| Client::start(plan)).unwrap().unwrap();
    // In tokens per second × nanoseconds. While a change is under way either rate may hold.
    let (mut at_least, mut at_most) = (0u128, 0u128);
    let mut before = 100;
    let mut since = start;
    for reload in 1..=100 {
        // Same, changed, same, changed back.
        let rate = if reload % 4 < 2 { 100 } else { 50 };
        let written = Instant::now();
        let settled = (written - since).as_nanos() * u128::from(before);
        agent.rewrite_now(&file(rate, reload));
        let held = Instant::now();
        let change = (held - written).as_nanos();
        at_least += settled + change * u128::from(rate.min(before));
        at_most += settled + change * u128::from(rate.max(before));
        (before, since) = (rate, held);
        // Time for the generator to spend at this rate.
        std::thread::sleep(Duration::from_millis(60));
    }
    client.stop();
    let stopped = Instant::now();
    let report = client.finish();
    at_least += (stopped - since).as_nanos() * u128::from(before);
    at_most += since.elapsed().as_nanos() * u128::from(before);

    let ok = u128::from(report.stats.ok());
    let second = 1_000_000_000;
    let most = at_most / second + u128::from(BURST);
    let least = (at_least / second + u128::from(BURST)) * 9 / 10;
    assert!(ok <= most, "{ok} of at most {most} in {:?}", stopped - start);
    assert!(ok >= least, "{ok} of at least {least} in {:?}", stopped - start);
    assert_eq!(report.stats.failed(), 0, "{}", report.stats);
    assert_eq!(u128::from(server.accepted(80)), ok);
    let limit = agent.limit("web");
    assert_eq!(u128::from(limit.admitted), ok);
    assert_eq!(limit.refused, report.stats.refused());
    assert!(agent.status().reloads.succeeded >= 100);
}

/// What was spent stays spent when the rate changes, and a line that is taken away is gone.
#[test]
fn a_new_rate_keeps_what_was_spent() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let with = |line: &str| Side::Host.node_file(&web, &[line]);
    let agent = Agent::start(&lab, node.namespace(), &with("connections.80: 10 per 60s"));
    assert_eq!(ask(client.namespace(), to, 10).codes(), "ok:10");
    for line in
        ["connections.80: 10 per 120s", "connections.80: 10 per 60s", "connections.80: 10 per 1h"]
    {
        agent.rewrite(&with(line));
        assert_eq!(ask(client.namespace(), to, 5).codes(), "refused:5", "{line}");
    }
    // Each source's bucket, too, when its rate grows. (When it shrinks, the time that was spent is
    // worth fewer tokens of the new rate.)
    agent.rewrite(&with("connections-per-source.80: 5 per 60s"));
    assert_eq!(ask(client.namespace(), to, 10).codes(), "ok:5 refused:5");
    agent.rewrite(&with("connections-per-source.80: 5 per 50s"));
    assert_eq!(ask(client.namespace(), to, 5).codes(), "refused:5");
    agent.rewrite(&with("on-limit: drop"));
    assert_eq!(agent.workload("web").condition, "no-policy");
    assert_eq!(ask(client.namespace(), to, 20).codes(), "ok:20");
}

/// From reset to drop, from one port to another, from enforced to shadow and back: each holds from
/// when the agent says so.
#[test]
fn every_change_of_a_policy_holds_at_once() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let (web, db) = (node.pod("web").unwrap(), node.pod("db").unwrap());
    let client = node.client("client").unwrap();
    let _servers = (serve(&web, &[80, 81]), serve(&db, &[80]));
    let at = |port| SocketAddr::new(web.ipv4().into(), port);
    let with = |lines: &[&str]| Side::Host.node_file(&web, lines);
    let agent = Agent::start(&lab, node.namespace(), &with(&["connections.80: 1 per 60s"]));
    assert_eq!(ask(client.namespace(), at(80), 3).codes(), "ok:1 refused:2");
    agent.rewrite(&with(&["connections.81: 1 per 60s"]));
    assert_eq!(ask(client.namespace(), at(80), 3).codes(), "ok:3");
    assert_eq!(ask(client.namespace(), at(81), 3).codes(), "ok:1 refused:2");
    agent.rewrite(&with(&["connections.81: 1 per 60s shadow"]));
    assert_eq!(ask(client.namespace(), at(81), 3).codes(), "ok:3");
    agent.rewrite(&with(&["connections.81: 1 per 60s"]));
    assert_eq!(ask(client.namespace(), at(81), 3).codes(), "refused:3");
    // Another workload comes, the first one goes.
    agent.rewrite(&Side::Host.node_file(&db, &["connections: 1 per 60s"]));
    agent.await_condition("db", "enforced");
    let at_db = SocketAddr::new(db.ipv4().into(), 80);
    assert_eq!(ask(client.namespace(), at_db, 3).codes(), "ok:1 refused:2");
    assert_eq!(ask(client.namespace(), at(81), 3).codes(), "ok:3");
    assert!(agent.status().workloads.iter().all(|workload| workload.name != "web"));
}
