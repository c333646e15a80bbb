//! How a connection is refused: at once by a RST that the client's own stack believes, or in
//! silence; and never at the cost of a flood of answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use weir::{
    lab::{Host, Lab, Node, Offload, set_offload},
    load::Outcome,
};
use weir_tests::{
    agent::Agent,
    raw::{Answer, Says, Wire, syn},
    site::{Side, addresses, ask, ask_in_vain, nft, serve, stack_counter},
};

on_each_side! {
    a_client_that_is_refused_knows_at_once
    a_workload_that_is_refused_knows_at_once
    a_refusal_is_believed_where_nobody_offloads_checksums
    a_dropped_connection_gets_no_answer
    a_workloads_dropped_connection_gets_no_answer
    answers_are_limited
}

/// The client's first SYN is answered, and by a segment that its stack finds nothing wrong with:
/// with a wrong checksum or number it would have sent another SYN after a second.
fn knows_at_once(client: &Host, to: SocketAddr) {
    let count = |name| stack_counter(client.namespace(), "Tcp", name);
    let before = ["RetransSegs", "InErrs", "InCsumErrors"].map(count);
    let stats = ask(client.namespace(), to, 10);
    assert_eq!(stats.codes(), "refused:10", "{to}");
    assert_eq!(["RetransSegs", "InErrs", "InCsumErrors"].map(count), before, "{to}");
}

fn a_client_that_is_refused_knows_at_once(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let file = side.node_file(&web, &["connections.80: 1 per 60s"]);
    let agent = Agent::start(lab, side.agent_in(&node, &web), &file);
    let to = |address| SocketAddr::new(address, 80);
    assert_eq!(ask(client.namespace(), to(web.ipv4().into()), 1).codes(), "ok:1");
    for address in addresses(&web) {
        knows_at_once(&client, to(address));
    }
    // And the agent can tell who was refused by what.
    let refusal = agent.last_refusal("web");
    assert_eq!((refusal.verdict.as_str(), refusal.reason.as_str()), ("reset", "connection_rate"));
    assert_eq!((refusal.limit.as_str(), refusal.value.as_str()), ("connections.80", "1/m"));
    let source: SocketAddr = refusal.source.parse().unwrap();
    assert!(addresses(&client).contains(&source.ip()), "{source}");
}

fn a_workload_that_is_refused_knows_at_once(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let app = node.pod("app").unwrap();
    let vm = node.client("vm").unwrap();
    let _server = serve(&vm, &[3306]);
    let file = side.node_file(&app, &["outbound-connections.3306: 1 per 60s"]);
    let _agent = Agent::start(lab, side.agent_in(&node, &app), &file);
    let to = |address| SocketAddr::new(address, 3306);
    assert_eq!(ask(app.namespace(), to(vm.ipv4().into()), 1).codes(), "ok:1");
    for address in addresses(&vm) {
        knows_at_once(&app, to(address));
    }
}

/// Between namespaces checksums are usually left unfinished. Here every one is computed when sent
/// and verified when received.
fn a_refusal_is_believed_where_nobody_offloads_checksums(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    for host in [&web, &client] {
        let ends = [
            (host.namespace(), host.interface().to_owned()),
            (node.namespace(), host.node_interface()),
        ];
        for (namespace, interface) in ends {
            for offload in [Offload::SendChecksum, Offload::Tso, Offload::Gso, Offload::Gro] {
                set_offload(namespace, &interface, offload, false).unwrap();
            }
        }
    }
    let _servers = (serve(&web, &[80]), serve(&client, &[3306]));
    let policy = ["connections.80: 1 per 60s", "outbound-connections.3306: 1 per 60s"];
    let _agent = Agent::start(lab, side.agent_in(&node, &web), &side.node_file(&web, &policy));
    let at = |host: &Host, port| addresses(host).into_iter().map(move |a| SocketAddr::new(a, port));
    assert_eq!(ask(client.namespace(), at(&web, 80).next().unwrap(), 1).codes(), "ok:1");
    assert_eq!(ask(web.namespace(), at(&client, 3306).next().unwrap(), 1).codes(), "ok:1");
    at(&web, 80).for_each(|to| knows_at_once(&client, to));
    at(&client, 3306).for_each(|to| knows_at_once(&web, to));
}

/// A service address of the cluster, as kube-proxy makes one.
const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1);

/// Connections to the service addresses go to this host.
fn translate(test: &str, node: &Node, to: &Host, port: u16) -> bool {
    let (v4, v6) = (to.ipv4(), to.ipv6());
    let rules = format!(
        "table inet service {{ chain pre {{ type nat hook prerouting priority dstnat
           ip daddr {SERVICE_V4} tcp dport {port} dnat ip to {v4}
           ip6 daddr {SERVICE_V6} tcp dport {port} dnat ip6 to {v6}
         }}\n}}\n"
    );
    nft(test, node.namespace(), &rules)
}

fn service(node: &Node) -> Vec<IpAddr> {
    let v6 = node.namespace().has_ipv6().then_some(IpAddr::from(SERVICE_V6));
    [IpAddr::from(SERVICE_V4)].into_iter().chain(v6).collect()
}

/// The client must see the RST come from the address that it dialled.
fn refused_through_a_service(test: &str, lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    if !translate(test, &node, &web, 80) {
        return;
    }
    let server = serve(&web, &[80]);
    let file = side.node_file(&web, &["connections.80: 1 per 60s"]);
    let agent = Agent::start(lab, node.namespace(), &file);
    let service = service(&node);
    assert_eq!(ask(client.namespace(), SocketAddr::new(service[0], 80), 1).codes(), "ok:1");
    for &address in &service {
        knows_at_once(&client, SocketAddr::new(address, 80));
    }
    assert_eq!(server.accepted(80), 1);
    assert_eq!(agent.limit("web").refused, 10 * service.len() as u64);
}

#[test]
fn a_refusal_comes_back_through_a_service_on_the_host_side() {
    let test = "refusals::a_refusal_comes_back_through_a_service_on_the_host_side";
    refused_through_a_service(test, &lab!(), Side::Host);
}

#[test]
fn a_refusal_comes_back_through_a_service_inside_the_pod() {
    let test = "refusals::a_refusal_comes_back_through_a_service_inside_the_pod";
    refused_through_a_service(test, &lab!(), Side::Pod);
}

/// Outbound, the limit is about the address that the workload dialled.
#[test]
fn a_workload_is_refused_by_the_service_address_that_it_dialled() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let app = node.pod("app").unwrap();
    let vm = node.client("vm").unwrap();
    let test = "refusals::a_workload_is_refused_by_the_service_address_that_it_dialled";
    if !translate(test, &node, &vm, 3306) {
        return;
    }
    let server = serve(&vm, &[3306]);
    let line =
        format!("outbound-connections: 1 per 60s to={SERVICE_V4}; 1 per 60s to={SERVICE_V6}");
    let _agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&app, &[&line]));
    let service = service(&node);
    for &address in &service {
        let to = SocketAddr::new(address, 3306);
        assert_eq!(ask(app.namespace(), to, 1).codes(), "ok:1");
        knows_at_once(&app, to);
    }
    // The same server under its own address is not what the line is about.
    assert_eq!(ask(app.namespace(), SocketAddr::new(vm.ipv4().into(), 3306), 5).codes(), "ok:5");
    assert_eq!(server.accepted(3306), 5 + service.len() as u64);
}

fn a_dropped_connection_gets_no_answer(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80, 81]);
    let file = side.node_file(&web, &["connections.80: 1 per 60s", "on-limit: drop"]);
    let agent = Agent::start(lab, side.agent_in(&node, &web), &file);
    let wire = Wire::open_alone(&client).unwrap();
    let families: Vec<_> = addresses(&client).into_iter().zip(addresses(&web)).collect();
    for (place, (from, to)) in families.into_iter().enumerate() {
        for number in 0..10 {
            let from = SocketAddr::new(from, 20_000 + number);
            wire.send(&syn(from, SocketAddr::new(to, 80), 7));
        }
        let last = SocketAddr::new(to, 81);
        wire.send(&syn(SocketAddr::new(from, 20_000), last, 7));
        let says: Vec<_> = wire.answers_until(last).iter().map(|answer| answer.says).collect();
        let expected: &[Says] = if place == 0 { &[Says::SynAck] } else { &[] };
        assert_eq!(says, expected);
        let dropped = agent.decisions("web", "tc ingress", "drop connection_rate");
        assert_eq!(dropped, 9 + 10 * place as u64);
    }
}

fn a_workloads_dropped_connection_gets_no_answer(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let app = node.pod("app").unwrap();
    let vm = node.client("vm").unwrap();
    let server = serve(&vm, &[3306]);
    let policy = ["outbound-connections.3306: 1 per 60s", "on-limit.3306: drop"];
    let agent = Agent::start(lab, side.agent_in(&node, &app), &side.node_file(&app, &policy));
    let to = SocketAddr::new(vm.ipv4().into(), 3306);
    assert_eq!(ask(app.namespace(), to, 1).codes(), "ok:1");
    let stats = ask_in_vain(app.namespace(), to, 10);
    assert_eq!(stats.count(Outcome::Timeout), 10, "{stats}");
    assert_eq!(agent.decisions("app", "tc egress", "drop outbound_rate"), 10);
    assert_eq!(server.accepted(3306), 1);
}

/// Whoever forges addresses must not make this node answer strangers without end: above the
/// budget for answers, refusals are silent.
fn answers_are_limited(lab: &Lab, side: Side) {
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let _server = serve(&web, &[80, 81]);
    let lines = ["resets: 10 per 60s", "policy: { connections.80: 1 per 60s }"];
    let file = weir_tests::site::node_file(&[side.entry(&web, &lines)]);
    let agent = Agent::start(lab, side.agent_in(&node, &web), &file);
    let wire = Wire::open_alone(&client).unwrap();
    let (from, to) = (IpAddr::from(client.ipv4()), SocketAddr::new(web.ipv4().into(), 80));
    let isn = |number: u16| 1_000_000 + u32::from(number);
    for number in 0..41 {
        wire.send(&syn(SocketAddr::new(from, 20_000 + number), to, isn(number)));
    }
    let last = SocketAddr::new(to.ip(), 81);
    wire.send(&syn(SocketAddr::new(from, 20_000), last, 7));
    let answers = wire.answers_until(last);
    assert_eq!(answers.len(), 11, "{answers:#?}");
    assert_eq!((answers[0].says, answers[0].to.port()), (Says::SynAck, 20_000));
    for (number, answer) in (1..).zip(&answers[1..]) {
        let expected = Answer {
            says: Says::Reset,
            from: to,
            to: SocketAddr::new(from, 20_000 + number),
            sequence: 0,
            acknowledgment: isn(number) + 1,
        };
        assert_eq!(*answer, expected);
    }
    assert_eq!(agent.decisions("web", "tc ingress", "reset connection_rate"), 10);
    assert_eq!(agent.decisions("web", "tc ingress", "note reset_limited"), 30);
    assert_eq!(agent.limit("web").refused, 40);
}
