//! Interfaces and namespaces that come, go and come again: limits follow the workload's name, never
//! a number that somebody else may have by now.

use std::net::SocketAddr;

use weir::lab::{Host, Lab, Namespace, Node};
use weir_tests::{
    agent::{Agent, eventually},
    bpf::{Hook, programs_at},
    site::{Side, ask, node_file, serve},
};

on_each_side! {
    an_interface_that_is_made_again_is_limited_again
}

fn at(host: &Host) -> SocketAddr {
    SocketAddr::new(host.ipv4().into(), 80)
}

/// Where a side's inbound program is.
fn place<'a>(side: Side, node: &'a Node, host: &'a Host) -> (&'a Namespace, String, Hook) {
    match side {
        Side::Host => (node.namespace(), host.node_interface(), Hook::Egress),
        Side::Pod | Side::Own => (host.namespace(), host.interface().to_owned(), Hook::Ingress),
    }
}

fn await_programs(side: Side, node: &Node, host: &Host) {
    let (namespace, interface, hook) = place(side, node, host);
    // None while the interface is not there.
    let programs = || programs_at(namespace, &interface, hook).unwrap_or_default();
    eventually("a program is attached", programs, |programs| programs.len() == 1);
}

/// Deleted and made again, under its old number or a new one, while the agent looks and while it
/// does not: there is a program again, and it goes on with what the workload had left.
fn an_interface_that_is_made_again_is_limited_again(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80, 81]);
    let file = side.node_file(&web, &["connections.80: 10 per 60s"]);
    let mut agent = Agent::start(lab, side.agent_in(&node, &web), &file);
    assert_eq!(ask(client.namespace(), at(&web), 4).codes(), "ok:4");
    let old = Some(node.index_of(&web).unwrap());
    for (index, unseen, attempts, codes) in [
        (old, true, 1, "ok:1"),
        (old, false, 2, "ok:2"),
        (None, true, 2, "ok:2"),
        (None, false, 5, "ok:1 refused:4"),
    ] {
        let make_again = || {
            node.unplug(&web).unwrap();
            node.plug(&web, index).unwrap();
        };
        if unseen {
            agent.behind_its_back(make_again)
        } else {
            make_again()
        };
        // Connections that no limit is about are counted, once they are seen.
        let counted = || agent.decisions("web", "tc ingress", "pass no_rule");
        let before = counted();
        let unlimited = SocketAddr::new(web.ipv4().into(), 81);
        let connect = || {
            ask(client.namespace(), unlimited, 1);
            counted()
        };
        eventually("connections are seen again", connect, |now| *now > before);
        assert_eq!(ask(client.namespace(), at(&web), attempts).codes(), codes);
    }
    assert_eq!(agent.limit("web").admitted, 10);
}

/// The number of a deleted interface is free for anybody. Who gets it next has nothing to do with
/// the limits of who had it.
fn a_stranger_gets_the_number(agent_lives: bool) {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let (web, stranger) = (node.pod("web").unwrap(), node.pod("stranger").unwrap());
    let client = node.client("client").unwrap();
    let _servers = (serve(&web, &[80]), serve(&stranger, &[80]));
    let file = Side::Host.node_file(&web, &["connections: 3 per 60s"]);
    let mut agent = Agent::start(&lab, node.namespace(), &file);
    node.unplug(&stranger).unwrap();
    assert_eq!(ask(client.namespace(), at(&web), 2).codes(), "ok:2");
    if !agent_lives {
        agent.kill();
    }
    let index = node.index_of(&web).unwrap();
    node.unplug(&web).unwrap();
    node.plug(&stranger, Some(index)).unwrap();
    assert_eq!(node.index_of(&stranger).unwrap(), index);
    assert_eq!(ask(client.namespace(), at(&stranger), 20).codes(), "ok:20");
    if !agent_lives {
        agent.restart();
    }
    let status = agent.await_condition("web", "not-enforced");
    assert!(status.detail.is_some_and(|detail| detail.contains("eth0")));
    assert_eq!(ask(client.namespace(), at(&stranger), 20).codes(), "ok:20");
    // The workload's own return: what it had left, and no more.
    node.plug(&web, None).unwrap();
    agent.await_condition("web", "enforced");
    assert_eq!(ask(client.namespace(), at(&web), 5).codes(), "ok:1 refused:4");
    assert_eq!(ask(client.namespace(), at(&stranger), 20).codes(), "ok:20");
}

#[test]
fn a_stranger_under_the_old_number_is_not_limited() {
    a_stranger_gets_the_number(true);
}

#[test]
fn a_stranger_under_the_old_number_is_not_limited_by_a_dead_agents_entry() {
    a_stranger_gets_the_number(false);
}

/// A workload may be in the file long before it is there.
fn comes_later(side: Side) {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let client = node.client("client").unwrap();
    let name = format!("{}-web", lab.id());
    let attach = if side == Side::Host { "host" } else { "pod" };
    let file = format!(
        "workloads:\n  - {{ name: web, netns: {name}, attach: {attach}, \
         policy: {{ connections: 3 per 60s }} }}\n"
    );
    let agent = Agent::start(&lab, node.namespace(), &file);
    let status = agent.workload("web");
    assert_eq!(status.condition, "not-enforced");
    assert!(status.detail.is_some_and(|detail| detail.contains(&name)));

    let mut left = ["ok:2", "ok:1 refused:4"].into_iter().zip([2, 5]);
    // It comes, goes, and comes again as another namespace under its old name.
    for (codes, attempts) in left.by_ref() {
        let web = node.pod("web").unwrap();
        let server = serve(&web, &[80]);
        await_programs(side, &node, &web);
        agent.await_condition("web", "enforced");
        assert_eq!(ask(client.namespace(), at(&web), attempts).codes(), codes);
        node.unplug(&web).unwrap();
        drop((server, web));
        agent.await_condition("web", "not-enforced");
    }
    assert_eq!(agent.limit("web").admitted, 3);
}

#[test]
fn a_pod_that_comes_later_is_limited_on_the_host_side() {
    comes_later(Side::Host);
}

#[test]
fn a_pod_that_comes_later_is_limited_inside() {
    comes_later(Side::Pod);
}

/// `attach: auto`, which is what holds when nothing is said: at the host's end of the veth where
/// the agent has it in sight, else inside the pod. The limit is the same.
#[test]
fn what_is_attached_by_itself_is_attached_where_it_can_be() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let (web, db) = (node.pod("web").unwrap(), node.pod("db").unwrap());
    let (client, watch) = (node.client("client").unwrap(), node.client("watch").unwrap());
    let _servers = (serve(&web, &[80]), serve(&db, &[80]));
    let file = |pod: &Host| {
        let (name, netns) = (pod.name(), pod.namespace().name());
        let policy = "policy: { connections: 2 per 60s }";
        format!("workloads: [ {{ name: {name}, netns: {netns}, {policy} }} ]\n")
    };
    let holds = |pod: &Host| {
        assert_eq!(ask(client.namespace(), at(pod), 5).codes(), "ok:2 refused:3");
        [Side::Host, Side::Pod].map(|side| {
            let (namespace, interface, hook) = place(side, &node, pod);
            programs_at(namespace, &interface, hook).unwrap().len()
        })
    };
    let agent = Agent::start(&lab, node.namespace(), &file(&web));
    assert_eq!(holds(&web), [1, 0]);
    drop(agent);
    // This one looks from a namespace that has no part in the pod's veth.
    let other = Lab::new().unwrap();
    let _agent = Agent::start(&other, watch.namespace(), &file(&db));
    assert_eq!(holds(&db), [0, 1]);
}

/// A first start attaches at once what judges, and the rest a few workloads at a time. What is to judge
/// meanwhile does not wait for its turn.
#[test]
fn what_a_first_start_left_for_later_comes_when_it_judges_and_in_the_end() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let pods: Vec<Host> = (0..40).map(|number| node.pod(&format!("p{number}")).unwrap()).collect();
    let file = |policy: &str| {
        let policy = format!("policy: {{ {policy} }}");
        node_file(&pods.iter().map(|pod| Side::Host.entry(pod, &[&policy])).collect::<Vec<_>>())
    };
    let mut agent = Agent::start(&lab, node.namespace(), &file("connections.80: 10 per 60s"));
    let attached = |hook| {
        let is_there = |pod: &&Host| {
            programs_at(node.namespace(), &pod.node_interface(), hook).unwrap().len() == 1
        };
        pods.iter().filter(is_there).count()
    };
    // What is late is looked at before it comes.
    let late = pods.len() - attached(Hook::Ingress);
    assert_eq!(attached(Hook::Egress), pods.len(), "it judges what comes to them");
    assert!(late > 0, "nothing was left for later");
    // Connections that are counted are followed in both directions.
    agent.rewrite_now(&file("max-connections: 10"));
    assert_eq!((attached(Hook::Egress), attached(Hook::Ingress)), (pods.len(), pods.len()));
    agent.terminate();
    assert!(agent.uninstall().status.success());
    // The kernel detaches a moment after the last pin has gone.
    eventually("none is there", || attached(Hook::Egress), |count| *count == 0);
    agent.restart();
    eventually("all are there", || attached(Hook::Ingress), |count| *count == pods.len());
}
