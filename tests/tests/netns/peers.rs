//! Who is treated apart: probes, exempt peers, and honest clients among forged ones.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use weir::{
    lab::{Host, Node},
    load::{Client, Plan, Talk},
};
use weir_tests::{
    agent::Agent,
    raw::{Wire, syn},
    site::{Side, ask, ask_in_vain, node_file, run, serve},
};

/// Health checks come from the node itself. They pass while the workload is flooded, and cost its
/// clients nothing.
#[test]
fn a_health_probe_keeps_passing_while_its_workload_is_flooded() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[8080]);
    let to = SocketAddr::new(web.ipv4().into(), 8080);
    let lines = ["probes: { ports: [8080] }", "policy: { connections: 10 per 60s }"];
    let file = node_file(&[Side::Host.entry(&web, &lines)]);
    let agent = Agent::start(&lab, node.namespace(), &file);

    let flood = Plan::to(to).talk(Talk::Byte).per_second(2000);
    let flood = client.namespace().run(|| Client::start(flood)).unwrap().unwrap();
    let probes = Plan::to(to).talk(Talk::Byte).per_second(20).lasting(Duration::from_secs(2));
    let probes = run(node.namespace(), probes).stats;
    flood.stop();
    let flood = flood.finish().stats;
    assert_eq!((probes.ok(), probes.attempts()), (40, 40), "{probes}");
    assert_eq!(flood.ok(), 10, "{flood}");
    assert!(flood.refused() > 100, "{flood}");
    assert_eq!(agent.decisions("web", "tc ingress", "pass probe"), 40);
}

/// Who forges the checking address gets the probes' budget, and no more.
#[test]
fn a_flood_through_the_probing_address_is_limited_too() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80, 8080]);
    let probes = format!(
        "probes: {{ ports: [8080], from: [{}, {}], rate: 5 per 60s }}",
        client.source_v4(1),
        node.ipv4()
    );
    let lines = [probes.as_str(), "policy: { connections: 3 per 60s }"];
    let file = node_file(&[Side::Host.entry(&web, &lines)]);
    let agent = Agent::start(&lab, node.namespace(), &file);
    let ask_from = |source: Ipv4Addr, port| {
        let to = SocketAddr::new(web.ipv4().into(), port);
        let plan = Plan::to(to).from([source.into()]).talk(Talk::Byte).attempts(20);
        run(client.namespace(), plan).stats.codes()
    };
    assert_eq!(ask_from(client.source_v4(1), 8080), "ok:5 refused:15");
    assert_eq!(agent.decisions("web", "tc ingress", "reset probe_rate"), 15);
    // At another port it is a client like any other, and so is any other here.
    assert_eq!(ask_from(client.source_v4(1), 80), "ok:3 refused:17");
    assert_eq!(ask_from(client.source_v4(2), 8080), "refused:20");
}

/// Exempt peers are not limited and cost nobody anything, in either direction.
#[test]
fn exempt_peers_are_not_limited() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let (friend, client) = (node.client("friend").unwrap(), node.client("client").unwrap());
    let _servers = (serve(&web, &[80]), serve(&friend, &[3306]), serve(&client, &[3306]));
    let policy = ["connections: 2 per 60s", "outbound-connections: 2 per 60s"];
    let exempt = format!("exempt: [{}/32]\n", friend.ipv4());
    let file = exempt + &Side::Pod.node_file(&web, &policy);
    let agent = Agent::start(&lab, node.namespace(), &file);
    let to_web = SocketAddr::new(web.ipv4().into(), 80);
    assert_eq!(ask(friend.namespace(), to_web, 20).codes(), "ok:20");
    assert_eq!(ask(client.namespace(), to_web, 20).codes(), "ok:2 refused:18");
    assert_eq!(ask(friend.namespace(), to_web, 20).codes(), "ok:20");
    let from_web = |to: &Host| ask(web.namespace(), SocketAddr::new(to.ipv4().into(), 3306), 10);
    assert_eq!(from_web(&friend).codes(), "ok:10");
    assert_eq!(from_web(&client).codes(), "ok:2 refused:8");
    assert_eq!(agent.decisions("web", "tc ingress", "pass exempt"), 40);
    assert_eq!(agent.decisions("web", "tc egress", "pass exempt"), 10);
}

/// The n-th forged address. Their answers go nowhere.
fn forged(number: u64) -> IpAddr {
    // 100.64.0.0/10, the block for carriers' own use (RFC 6598).
    Ipv4Addr::from_bits(0x6440_0000 + number as u32).into()
}

/// Lets packets in whose source is reached by no way at all.
fn believe_sources(node: &Node, client: &Host) {
    for interface in ["all", "default", &client.node_interface()] {
        node.namespace().set(&format!("ipv4/conf/{interface}/rp_filter"), "0").unwrap();
    }
}

/// A client that is there keeps its own budget while fifty thousand forged ones come and go:
/// exactly its five connections, no more and no less.
#[test]
fn an_honest_client_keeps_its_budget_among_forged_ones() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let (attacker, honest) = (node.client("attacker").unwrap(), node.client("honest").unwrap());
    believe_sources(&node, &attacker);
    let _server = serve(&web, &[80]);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let policy = ["connections-per-source.80: 5 per 60s", "on-limit: drop"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    assert_eq!(agent.status().live_sources, 0);

    assert_eq!(ask(honest.namespace(), to, 1).codes(), "ok:1");
    let wire = Wire::open(&attacker).unwrap();
    let flood = || wire.flood(50_000, None, |n| syn(SocketAddr::new(forged(n), 1024), to, 7));
    let during = thread::scope(|scope| {
        scope.spawn(flood);
        // While it goes on.
        ask(honest.namespace(), to, 2)
    });
    assert_eq!(during.codes(), "ok:2");
    assert_eq!(ask(honest.namespace(), to, 2).codes(), "ok:2");
    let vain = ask_in_vain(honest.namespace(), to, 3);
    assert_eq!(vain.ok(), 0, "{vain}");
    let live = agent.status().live_sources;
    assert!(live > 40_000, "{live} sources have a bucket");
    assert!(agent.decisions("web", "tc ingress", "drop source_rate") >= 3);
}

/// There is room for many sources, not for any number. Those that find no room share a bucket, and
/// the refusal says so.
#[test]
fn sources_that_crowd_each_other_out_share_a_budget_and_are_told_so() {
    const SOURCES: u64 = 150_000;
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let attacker = node.client("attacker").unwrap();
    believe_sources(&node, &attacker);
    let policy = ["connections-per-source.80: 1 per 60s", "on-limit: drop"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    let wire = Wire::open(&attacker).unwrap();
    let to = SocketAddr::new(web.ipv4().into(), 80);
    wire.flood(SOURCES, None, |number| syn(SocketAddr::new(forged(number), 1024), to, 7));

    let crowded = agent.decisions("web", "tc ingress", "drop source_crowded");
    let shared = agent.decisions("web", "tc ingress", "drop source_rate");
    let admitted = agent.limit("web").admitted;
    let live = agent.status().live_sources;
    assert!(crowded > 100, "{crowded} were told that they are crowded");
    // Two sources are taken for one with a chance of one in a million.
    assert!(shared < 10, "{shared} were taken for somebody else");
    assert_eq!(admitted + crowded + shared, SOURCES);
    assert!(live <= admitted, "{live} buckets for {admitted}");
}
