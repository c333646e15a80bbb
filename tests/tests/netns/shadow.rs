//! Counted and reported, and not enforced: by the policy's word, or for a while by an operator's.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use weir::lab::Lab;
use weir_tests::{
    agent::{Agent, PATIENCE},
    site::{Side, ask, serve},
};

on_each_side! {
    a_limit_in_shadow_refuses_nothing_and_counts_everything
}

fn a_limit_in_shadow_refuses_nothing_and_counts_everything(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let server = serve(&web, &[80]);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let line = side.node_file(&web, &["connections.80: 3 per 60s shadow"]);
    let agent = Agent::start(lab, side.agent_in(&node, &web), &line);
    assert_eq!(agent.workload("web").condition, "shadow");
    assert_eq!(ask(client.namespace(), to, 10).codes(), "ok:10");
    let limit = agent.limit("web");
    assert!(limit.shadow);
    assert_eq!((limit.admitted, limit.refused, limit.shadowed), (3, 0, 7));
    assert_eq!(agent.decisions("web", "tc ingress", "shadow connection_rate"), 7);
    assert_eq!(agent.last_refusal("web").verdict, "shadow");

    // The same for the whole workload, and for the node.
    let enforced = side.node_file(&web, &["connections.80: 3 per 60s"]);
    let node_wide = format!("mode: shadow\n{enforced}");
    let own = side.node_file(&web, &["connections.80: 3 per 60s", "mode: shadow"]);
    for file in [node_wide, own] {
        agent.rewrite(&file);
        assert_eq!(agent.workload("web").condition, "shadow", "{file}");
        assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:5", "{file}");
    }
    agent.rewrite(&enforced);
    assert_eq!(agent.workload("web").condition, "enforced");
    assert_eq!(ask(client.namespace(), to, 5).codes(), "refused:5");
    assert_eq!(server.accepted(80), 20);
}

/// Connects until it is refused; when that was, and how often it was not.
fn until_refused(from: &weir::lab::Namespace, to: SocketAddr) -> (Instant, u64) {
    let patience = Instant::now() + PATIENCE;
    let mut passed = 0;
    loop {
        let asked = Instant::now();
        let stats = ask(from, to, 1);
        if stats.refused() == 1 {
            return (asked, passed);
        }
        assert_eq!(stats.ok(), 1, "{stats}");
        assert!(Instant::now() < patience, "the pause does not end");
        passed += 1;
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_pause_ends_by_itself() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let file = Side::Host.node_file(&web, &["connections.80: 1 per 60s"]);
    let agent = Agent::start(&lab, node.namespace(), &file);
    assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:1 refused:4");
    let paused = Instant::now();
    agent.pause("web", 2);
    let status = agent.workload("web");
    assert_eq!(status.condition, "paused");
    let log = agent.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("audit: a pause")).collect();
    assert!(told.len() == 1 && told[0].contains("web"), "{log}");
    assert!(status.paused_seconds.is_some_and(|seconds| seconds > 0.0 && seconds <= 2.0));
    let (refused, passed) = until_refused(client.namespace(), to);
    assert!(passed > 0);
    assert!(refused - paused >= Duration::from_millis(1900), "after {:?}", refused - paused);
    agent.await_condition("web", "enforced");
    assert_eq!(agent.limit("web").shadowed, passed);
}

/// The kernel holds the time: nobody has to be there to end it.
#[test]
fn a_pause_ends_by_itself_when_the_agent_is_dead() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let file = Side::Host.node_file(&web, &["connections.80: 1 per 60s"]);
    let mut agent = Agent::start(&lab, node.namespace(), &file);
    assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:1 refused:4");
    let paused = Instant::now();
    agent.pause("web", 2);
    agent.kill();
    let (refused, passed) = until_refused(client.namespace(), to);
    assert!(passed > 0);
    assert!(refused - paused >= Duration::from_millis(1900), "after {:?}", refused - paused);
}

/// A pause outlives the agent that was told of it, and the next agent knows.
#[test]
fn the_next_agent_knows_of_a_pause() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let file = Side::Host.node_file(&web, &["connections.80: 1 per 60s"]);
    let mut agent = Agent::start(&lab, node.namespace(), &file);
    agent.pause("web", 600);
    agent.kill();
    agent.restart();
    assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:5");
    assert_eq!(agent.workload("web").condition, "paused");
    // And can end it.
    agent.pause("web", 0);
    assert_eq!(agent.workload("web").condition, "enforced");
    assert_eq!(ask(client.namespace(), to, 5).codes(), "refused:5");
}
