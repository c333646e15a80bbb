//! Quotas of the fleet that a workload names: its connections spend from what the node leased, and wait
//! for the store where that does not suffice.

use std::{
    fs,
    net::SocketAddr,
    sync::atomic::{AtomicU16, Ordering::SeqCst},
    thread,
};

use weir::{
    lab::{Host, Lab, Namespace, Node},
    load::{Plan, Talk},
};
use weir_tests::{
    agent::{Agent, eventually},
    raw::{Wire, syn},
    redis::{Server, available_or_skip},
    redis_or_skip, rls,
    site::{self, Side, addresses, ask, ask_in_vain, node_file, run, serve, stack_counter},
};

on_each_side! {
    connections_and_requests_spend_one_budget_of_the_fleet
}

/// So long that a store that is frozen is late and not given up.
const TIMEOUT: &str = "10s";
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
             store: {{ redis: \"unix://{}\", node: {node}, timeout: {TIMEOUT} }}\n{node_file}",
            quotas.display(),
            self.redis.socket().display()
        )
    }
}

/// A node with a pod and a client; the agent is at the host's end.
struct Pair<'a> {
    lab: &'a Lab,
    node: Node,
    web: Host,
    client: Host,
}

impl<'a> Pair<'a> {
    fn new(lab: &'a Lab) -> Self {
        let node = lab.node("node").unwrap();
        let (web, client) = (node.pod("web").unwrap(), node.client("client").unwrap());
        Self { lab, node, web, client }
    }

    fn to(&self) -> SocketAddr {
        SocketAddr::new(self.web.ipv4().into(), 80)
    }

    fn agent(&self, redis: &Server, limit: u64, on_failure: &str) -> Agent<'_> {
        let site = Site { lab: self.lab, redis };
        let node_file = Side::Host.node_file(&self.web, &LINE);
        let text = site.node_file(self.lab.id(), limit, on_failure, &node_file);
        Agent::start(self.lab, self.node.namespace(), &text)
    }
}

fn is_admitted(agent_in: &Namespace) -> bool {
    rls::is_admitted(agent_in, SocketAddr::from(([127, 0, 0, 1], 8080)), ("user", "ann"))
}

fn connections_and_requests_spend_one_budget_of_the_fleet(lab: &Lab, side: Side) {
    redis_or_skip!();
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
    redis_or_skip!();
    let (labs, redis) = ([lab!(), lab!()], Server::start());
    let pairs = labs.each_ref().map(Pair::new);
    let parts = pairs.each_ref().map(|pair| {
        let server = serve(&pair.web, &[80]);
        (pair, pair.agent(&redis, LIMIT, "deny"), server)
    });
    let connected: u64 = thread::scope(|scope| {
        let load = parts.each_ref().map(|(pair, ..)| {
            let load = Plan::to(pair.to()).talk(Talk::Byte).parallel(4).attempts(40);
            scope.spawn(move || run(pair.client.namespace(), load).stats.ok())
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
    redis_or_skip!();
    let (lab, redis) = (lab!(), Server::start());
    let pair = Pair::new(&lab);
    let agent = pair.agent(&redis, LIMIT, "deny");
    let (wire, to) = (Wire::open_alone(&pair.client).unwrap(), pair.to());
    // Nobody's SYN is another's, once again.
    let sent = AtomicU16::new(0);
    let client = pair.client.ipv4().into();
    let next = || SocketAddr::new(client, 10_000 + sent.fetch_add(1, SeqCst));
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

/// A SYN with much data in it does not fit into what is handed up.
#[test]
fn a_syn_that_cannot_be_sent_again_is_left_to_its_client() {
    redis_or_skip!();
    let (lab, redis) = (lab!(), Server::start());
    let pair = Pair::new(&lab);
    let agent = pair.agent(&redis, 7, "deny");
    let wire = Wire::open_alone(&pair.client).unwrap();
    let large = syn(SocketAddr::new(pair.client.ipv4().into(), 10_000), pair.to(), 7);
    let plain = large.clone();
    wire.send(&large.with(|packet| packet.payload = vec![0x55; 300]));
    let unsent = || agent.metric("weir_quota_unsent_syns_total", &[]);
    eventually("it is left to its client", unsent, |unsent| *unsent > 0.0);
    let admitted = || agent.decisions("web", "tc ingress", "pass admitted");
    assert_eq!(admitted(), 0);
    // Who is not answered tries without.
    wire.send(&plain);
    eventually("it is admitted", admitted, |admitted| *admitted == 1);
    assert_eq!(unsent(), 1.0);
}

/// A frame's VLAN stands beside the packet where it enters a machine; sent once more it would be without.
#[test]
fn a_syn_with_a_tag_is_left_to_its_client() {
    redis_or_skip!();
    let (lab, redis) = (lab!(), Server::start());
    let pair = Pair::new(&lab);
    let (client, machine) = (&pair.client, pair.node.namespace());
    let interface = client.node_interface();
    let policy = site::policy_lines(&LINE).join("\n    ");
    let entry = format!("  - name: machine\n    interface: {interface}\n    {policy}\n");
    let site = Site { lab: &lab, redis: &redis };
    let text = site.node_file(lab.id(), 7, "deny", &node_file(&[entry]));
    let agent = Agent::start(&lab, machine, &text);
    let wire = Wire::open_alone(client).unwrap();
    let to = SocketAddr::new(client.gateway_v4().into(), 80);
    let plain = syn(SocketAddr::new(client.ipv4().into(), 10_000), to, 7);
    wire.send(&plain.clone().with(|packet| packet.tags = vec![(0x8100, 5)]));
    let unsent = || agent.metric("weir_quota_unsent_syns_total", &[]);
    eventually("it is left to its client", unsent, |unsent| *unsent > 0.0);
    let admitted = || agent.decisions("machine", "tc ingress", "pass admitted");
    assert_eq!(admitted(), 0);
    wire.send(&plain);
    eventually("one without is admitted", admitted, |admitted| *admitted == 1);
    assert_eq!(unsent(), 1.0);
}

/// Without the store each SYN is decided in the kernel, as the quota says, and nobody waits.
fn decides_without_the_store(test: &str, on_failure: &str, admits: impl Fn(u64) -> bool) {
    if !available_or_skip(test) {
        return;
    }
    let (lab, mut redis) = (lab!(), Server::start());
    let pair = Pair::new(&lab);
    let (client, to, _server) = (&pair.client, pair.to(), serve(&pair.web, &[80]));
    let agent = pair.agent(&redis, 1000, on_failure);
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
    redis_or_skip!();
    let (lab, redis) = (lab!(), Server::start());
    let pair = Pair::new(&lab);
    let (client, to, _server) = (&pair.client, pair.to(), serve(&pair.web, &[80]));
    let mut agent = pair.agent(&redis, 20, "deny");
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
