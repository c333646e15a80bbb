//! Quotas of the fleet that a workload names: its connections spend from what the node leased, and wait
//! for the store where that does not suffice.

use std::{
    fs,
    net::SocketAddr,
    sync::atomic::{AtomicU16, Ordering::SeqCst},
    thread,
};

use weir::{
    lab::{Lab, Namespace},
    load::{Plan, Talk},
};
use weir_tests::{
    agent::{Agent, eventually},
    raw::{Wire, syn},
    redis::{Server, available_or_skip},
    rls,
    site::{Side, addresses, ask, ask_in_vain, run, serve, stack_counter},
};

on_each_side! {
    connections_and_requests_spend_one_budget_of_the_fleet
}

const LINE: [&str; 1] = ["quota.80: domain=shop user=ann"];

/// What an agent is told: a quota for a year, whose window does not end during a test.
struct Site<'a> {
    lab: &'a Lab,
    redis: &'a Server,
}

impl Site<'_> {
    /// The node file of one of the nodes.
    fn node_file(&self, node: &str, limit: u64, on_failure: &str, node_file: &str) -> String {
        let quotas = self.lab.directory().join(format!("{node}-quotas.yaml"));
        let text = format!(
            "format: weir\n\
             domain: shop\n\
             descriptors:\n\
             - key: user\n  \
               scope: fleet\n  \
               on-store-failure: {on_failure}\n  \
               rate_limit: {{ unit: year, requests_per_unit: {limit} }}\n"
        );
        fs::write(&quotas, text).unwrap();
        format!(
            "rls:\n  http: 127.0.0.1:8080\n  listen: 127.0.0.1:8081\n  quotas: {}\n  \
             store: {{ redis: \"unix://{}\", node: {node} }}\n{node_file}",
            quotas.display(),
            self.redis.socket().display()
        )
    }
}

fn is_admitted(agent_in: &Namespace) -> bool {
    rls::is_admitted(agent_in, SocketAddr::from(([127, 0, 0, 1], 8080)), ("user", "ann"))
}

fn connections_and_requests_spend_one_budget_of_the_fleet(lab: &Lab, side: Side) {
    if !available_or_skip("connections_and_requests_spend_one_budget_of_the_fleet") {
        return;
    }
    let redis = Server::start();
    let site = Site { lab, redis: &redis };
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    // Too small to lease ahead: each connection is handed up.
    let text = site.node_file("one", 7, "deny", &side.node_file(&web, &LINE));
    let agent_in = side.agent_in(&node, &web);
    let agent = Agent::start(lab, agent_in, &text);
    let to = SocketAddr::new(addresses(&web)[0], 80);
    let asked = || agent.decisions("web", "tc ingress", "note quota_asked");

    let resent = || stack_counter(client.namespace(), "Tcp", "RetransSegs");
    let before = resent();
    assert_eq!(ask(client.namespace(), to, 2).ok(), 2);
    assert_eq!(resent(), before, "nobody waited for a SYN to be repeated");
    assert!(asked() >= 1, "the store was asked");
    // A request does not wait for a store that is late: then it is refused, and spends nothing.
    eventually("a request is admitted", || is_admitted(agent_in), |admitted| *admitted);
    let (connected, admitted) = thread::scope(|scope| {
        let load = Plan::to(to).talk(Talk::Byte).parallel(8).attempts(20);
        let connections = scope.spawn(|| run(client.namespace(), load).stats);
        let admitted = (0..20).filter(|_| is_admitted(agent_in)).count();
        (connections.join().unwrap(), admitted)
    });
    assert_eq!(connected.ok() + admitted as u64, 4, "{connected:?}");
    assert_eq!(connected.refused(), 20 - connected.ok(), "{connected:?}");
    // The store said that all is spent: nobody asks again.
    let before = asked();
    assert_eq!(ask(client.namespace(), to, 5).refused(), 5);
    assert_eq!(asked(), before);
}

/// Two nodes that know nothing of each other but the store.
#[test]
fn nodes_spend_one_budget() {
    const LIMIT: u64 = 25;
    if !available_or_skip("nodes_spend_one_budget") {
        return;
    }
    let (labs, redis) = ([lab!(), lab!()], Server::start());
    let nodes = labs.each_ref().map(|lab| (lab, lab.node("node").unwrap()));
    let parts = nodes.each_ref().map(|(lab, node)| {
        let web = node.pod("web").unwrap();
        let client = node.client("client").unwrap();
        let site = Site { lab, redis: &redis };
        let node_file = Side::Host.node_file(&web, &LINE);
        let text = site.node_file(lab.id(), LIMIT, "deny", &node_file);
        let server = serve(&web, &[80]);
        (Agent::start(lab, node.namespace(), &text), web, client, server)
    });
    let connected: u64 = thread::scope(|scope| {
        let load = parts.each_ref().map(|(_, web, client, _)| {
            let to = SocketAddr::new(web.ipv4().into(), 80);
            let load = Plan::to(to).talk(Talk::Byte).parallel(4).attempts(40);
            scope.spawn(move || run(client.namespace(), load).stats.ok())
        });
        load.into_iter().map(|load| load.join().unwrap()).sum()
    });
    assert_eq!(connected, LIMIT);
}

/// More SYNs come than may wait for a store that is late. Those that may not are left to their clients, and
/// not one is admitted beyond the limit.
#[test]
fn a_flood_that_waits_is_bounded() {
    const LIMIT: u64 = 7;
    const SYNS: u64 = 1000;
    if !available_or_skip("a_flood_that_waits_is_bounded") {
        return;
    }
    let (lab, redis) = (lab!(), Server::start());
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let site = Site { lab: &lab, redis: &redis };
    let text = site.node_file("one", LIMIT, "deny", &Side::Host.node_file(&web, &LINE));
    // So long that it is late, and not given up.
    let text = text.replace("node: one", "node: one, timeout: 10s");
    let agent = Agent::start(&lab, node.namespace(), &text);
    let wire = Wire::open_alone(&client).unwrap();
    let to = SocketAddr::new(web.ipv4().into(), 80);
    // Nobody's SYN is another's, once again.
    let sent = AtomicU16::new(0);
    let next = || SocketAddr::new(client.ipv4().into(), 10_000 + sent.fetch_add(1, SeqCst));
    redis.freeze();
    let unsent = || {
        // A busy agent hears of few: then there is no place in the ring that tells of them.
        wire.flood(SYNS, Some(20_000), |_| syn(next(), to, 7));
        agent.metric("weir_quota_unsent_syns_total", &[])
    };
    eventually("some are left to their clients", unsent, |unsent| *unsent > 0.0);
    let admitted = || agent.decisions("web", "tc ingress", "pass admitted");
    assert_eq!(admitted(), 0);
    redis.thaw();
    // Who waits is sent again until it is known that all is spent; and then nobody is admitted.
    eventually("all of it is spent", admitted, |admitted| *admitted == LIMIT);
    let refused = || agent.decisions("web", "tc ingress", "reset quota");
    let refused_now = || {
        wire.send(&syn(next(), to, 7));
        refused()
    };
    eventually("it is known that all is spent", refused_now, |refused| *refused > 0);
    assert_eq!(admitted(), LIMIT);
}

/// Without the store each SYN is decided in the kernel, as the quota says, and nobody waits.
fn decides_without_the_store(test: &str, on_failure: &str, admits: impl Fn(u64) -> bool) {
    if !available_or_skip(test) {
        return;
    }
    let (lab, mut redis) = (lab!(), Server::start());
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let site = Site { lab: &lab, redis: &redis };
    let text = site.node_file("one", 1000, on_failure, &Side::Host.node_file(&web, &LINE));
    let agent = Agent::start(&lab, node.namespace(), &text);
    assert_eq!(ask(client.namespace(), to, 3).ok(), 3);
    redis.kill();
    // Late is not gone: a SYN waits for a store that is late.
    let failures = || agent.metric("weir_fleet_store_failures_total", &[]);
    eventually("the agent misses the store", failures, |failures| *failures > 0.0);
    let asked = agent.decisions("web", "tc ingress", "note quota_asked");
    let stats = ask(client.namespace(), to, 20);
    assert!(admits(stats.ok()), "{stats:?}");
    assert_eq!(stats.ok() + stats.refused(), 20, "{stats:?}");
    assert_eq!(agent.decisions("web", "tc ingress", "note quota_asked"), asked);
    redis.restart();
    let back = || ask(client.namespace(), to, 1).ok();
    eventually("the store is asked again", back, |ok| *ok == 1);
}

#[test]
fn without_the_store_all_are_refused_if_the_quota_says_so() {
    let test = "without_the_store_all_are_refused_if_the_quota_says_so";
    // What was leased may still be spent.
    decides_without_the_store(test, "deny", |ok| ok <= 10);
}

#[test]
fn without_the_store_all_are_admitted_if_the_quota_says_so() {
    let test = "without_the_store_all_are_admitted_if_the_quota_says_so";
    decides_without_the_store(test, "allow", |ok| ok == 20);
}

/// A dead agent asks nobody: what it leased is spent, and then the quota's policy decides.
#[test]
fn what_a_dead_agent_leased_is_spent() {
    if !available_or_skip("what_a_dead_agent_leased_is_spent") {
        return;
    }
    let (lab, redis) = (lab!(), Server::start());
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let site = Site { lab: &lab, redis: &redis };
    let text = site.node_file("one", 20, "deny", &Side::Host.node_file(&web, &LINE));
    let mut agent = Agent::start(&lab, node.namespace(), &text);
    assert_eq!(ask(client.namespace(), to, 5).ok(), 5);
    agent.kill();
    // Until it is known to be dead, SYNs beyond the lease are dropped, and then refused.
    let refused = || ask_in_vain(client.namespace(), to, 1).refused();
    eventually("the kernel decides alone", refused, |refused| *refused == 1);
    agent.launch();
    agent.await_ready();
    let again = || ask(client.namespace(), to, 1).ok();
    eventually("the next agent leases", again, |ok| *ok == 1);
    let rest = ask(client.namespace(), to, 30).ok();
    assert!((13..=14).contains(&rest), "{rest}: what the dead one leased is spent once");
    assert_eq!(ask(client.namespace(), to, 3).refused(), 3);
}
