//! Quotas that a workload names: its connections in the kernel and requests to the agent spend one
//! budget.

use std::{fs, net::SocketAddr, thread};

use weir::{
    lab::{Lab, Namespace},
    load::{Plan, Talk},
};
use weir_tests::{
    agent::{Agent, eventually},
    rls,
    site::{Side, addresses, ask, run, serve},
};

on_each_side! {
    connections_and_requests_spend_one_budget
}

/// Where the agent answers requests, in its own namespace.
const HTTP: &str = "127.0.0.1:8080";
const LIMIT: u64 = 10;

/// Writes the quotas, and the node file that names them. No window of a year ends during a test.
fn files(lab: &Lab, node_file: &str, requests: u64) -> String {
    let quotas = lab.directory().join("quotas.yaml");
    let text = format!(
        "domain: shop\n\
         descriptors:\n\
         - key: authenticated\n  \
           rate_limit: {{ unit: year, requests_per_unit: {requests} }}\n\
         - key: port\n  \
           value: \"81\"\n  \
           rate_limit: {{ unit: year, requests_per_unit: 3 }}\n"
    );
    fs::write(&quotas, text).unwrap();
    format!(
        "rls:\n  http: {HTTP}\n  listen: 127.0.0.1:8081\n  quotas: {}\n{node_file}",
        quotas.display()
    )
}

/// Asks the agent about a descriptor of one entry; whether it is admitted.
fn is_admitted(agent_in: &Namespace, key: &str, value: &str) -> bool {
    rls::is_admitted(agent_in, HTTP.parse().unwrap(), (key, value))
}

fn connections_and_requests_spend_one_budget(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80, 81]);
    let policy = ["quota.80: domain=shop authenticated=false", "quota.81: domain=shop port=$port"];
    let text = files(lab, &side.node_file(&web, &policy), LIMIT);
    let agent_in = side.agent_in(&node, &web);
    let mut agent = Agent::start(lab, agent_in, &text);
    let at = |port| SocketAddr::new(addresses(&web)[0], port);
    let requests =
        |count| (0..count).filter(|_| is_admitted(agent_in, "authenticated", "false")).count();

    assert_eq!(ask(client.namespace(), at(80), 4).ok(), 4);
    assert_eq!(requests(3), 3);
    // Three are left, whoever comes: both at once, more than there are.
    let (connected, admitted) = thread::scope(|scope| {
        let load = Plan::to(at(80)).talk(Talk::Byte).parallel(8).attempts(20);
        let connections = scope.spawn(|| run(client.namespace(), load).stats);
        let admitted = requests(20);
        (connections.join().unwrap(), admitted)
    });
    assert_eq!(connected.ok() + admitted as u64, 3, "{connected:?}");
    assert_eq!(connected.refused(), 20 - connected.ok());
    let refused = agent.decisions("web", "tc ingress", "reset quota");
    assert_eq!(refused, connected.refused());
    assert_eq!(agent.limit_named("web", "quota.80").refused, refused);
    // Another descriptor is another budget.
    assert!(is_admitted(agent_in, "authenticated", "true"));
    assert_eq!(ask(client.namespace(), at(81), 5).ok(), 3);
    assert!(!is_admitted(agent_in, "port", "81"));

    // What was spent is spent for the next agent, too.
    agent.kill();
    assert_eq!(ask(client.namespace(), at(80), 2).ok(), 0);
    agent.launch();
    agent.await_ready();
    assert_eq!(requests(2), 0);
    assert_eq!(ask(client.namespace(), at(80), 2).ok(), 0);
}

/// A limit that changes judges the same count; a line that goes takes no count away from requests.
#[test]
fn a_quota_that_changes_keeps_what_was_spent() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let line = ["quota.80: domain=shop authenticated=false"];
    let with = Side::Host.node_file(&web, &line);
    let agent = Agent::start(&lab, node.namespace(), &files(&lab, &with, 5));
    let to = SocketAddr::new(web.ipv4().into(), 80);
    assert_eq!(ask(client.namespace(), to, 7).ok(), 5);
    // Refused hits count as well, as they do for requests: two of nine are left.
    let left = || agent.limit_named("web", "quota.80").tokens;
    assert_eq!(left(), Some(0));
    files(&lab, &with, 9);
    eventually("the new limit holds", left, |left| *left == Some(2));
    assert_eq!(ask(client.namespace(), to, 5).ok(), 2);
    let without = Side::Host.node_file(&web, &["connections.80: 1000/s"]);
    agent.rewrite(&files(&lab, &without, 9));
    assert_eq!(ask(client.namespace(), to, 2).ok(), 2);
    assert!(!is_admitted(node.namespace(), "authenticated", "false"));
}

/// What is not enforced takes nothing from those who share the budget, and tells what it would refuse.
#[test]
fn a_quota_in_shadow_spends_nothing() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let shadowed = ["quota.80: domain=shop authenticated=false shadow"];
    let node_file = Side::Host.node_file(&web, &shadowed);
    let agent = Agent::start(&lab, node.namespace(), &files(&lab, &node_file, LIMIT));
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let requests = |count| {
        (0..count).filter(|_| is_admitted(node.namespace(), "authenticated", "false")).count()
    };

    assert_eq!(ask(client.namespace(), to, 4).ok(), 4);
    assert_eq!(agent.limit_named("web", "quota.80").tokens, Some(LIMIT));
    assert_eq!(requests(20), LIMIT as usize);
    assert_eq!(ask(client.namespace(), to, 3).ok(), 3);
    let quota = agent.limit_named("web", "quota.80");
    assert_eq!((quota.admitted, quota.shadowed, quota.refused), (4, 3, 0), "{quota:?}");
}

/// A name that nobody knows limits nothing, and says so.
#[test]
fn a_quota_that_nobody_knows_is_a_problem_that_is_told() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let line = ["quota.80: domain=shoop authenticated=false"];
    let agent =
        Agent::start(&lab, node.namespace(), &files(&lab, &Side::Host.node_file(&web, &line), 5));
    let problems = agent.status().problems;
    let told = "web: quota.80: no quota file has this domain: `domain=shoop authenticated=false`";
    assert!(problems.iter().any(|problem| problem.contains(told)), "{problems:?}");
}
