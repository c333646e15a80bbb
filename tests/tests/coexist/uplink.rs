//! The early program of the uplinks: what TC would certainly refuse is refused in the driver, and
//! nothing is spent there.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use weir::{
    lab::{Host, Lab, Node},
    load::{Plan, Server, Talk},
};
use weir_tests::{
    agent::{Agent, eventually},
    bpf::{Foreign, Link},
    raw::{Answer, Says, Wire, syn},
    site::{Side, addresses, ask, run, serve, stack_counter},
};

struct Scene {
    node: Node,
    web: Host,
    client: Host,
    server: Server,
    // What XDP sends back on a veth arrives only where the other end has an XDP program, too.
    _pass: Link,
}

impl Scene {
    fn new(lab: &Lab) -> Self {
        let node = lab.node("node").unwrap();
        let (web, client) = (node.pod("web").unwrap(), node.client("client").unwrap());
        let server = serve(&web, &[80, 81]);
        let pass = Foreign::xdp_pass("pass").unwrap();
        let pass = pass.attach_xdp(client.namespace(), client.interface()).unwrap();
        Self { node, web, client, server, _pass: pass }
    }

    fn file(&self, mode: &str, policy: &[&str]) -> String {
        let uplink = self.client.node_interface();
        let uplinks = format!("uplinks: [ {{ interface: {uplink}, xdp: {mode} }} ]\n");
        uplinks + &Side::Host.node_file(&self.web, policy)
    }

    fn to(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.web.ipv4().into(), port)
    }
}

/// What the early program refuses is counted under its hook, and the client's own stack believes
/// the RST.
#[test]
fn what_is_certain_to_be_refused_is_refused_at_the_uplink() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let file = scene.file("native", &["connections.80: 5 per 60s"]);
    let agent = Agent::start(&lab, scene.node.namespace(), &file);
    let uplink = agent.uplink(&scene.client.node_interface());
    assert_eq!((uplink.attached.as_deref(), uplink.detail), (Some("xdp"), None));

    // Five tokens, five connections: nobody else took one.
    let client = scene.client.namespace();
    assert_eq!(ask(client, scene.to(80), 5).codes(), "ok:5");
    assert_eq!(agent.limit("web").tokens, Some(0));
    let count = |name| stack_counter(client, "Tcp", name);
    let before = ["RetransSegs", "InErrs", "InCsumErrors"].map(count);
    let families = addresses(&scene.web);
    for &address in &families {
        let stats = ask(client, SocketAddr::new(address, 80), 10);
        assert_eq!(stats.codes(), "refused:10", "{address}");
    }
    assert_eq!(["RetransSegs", "InErrs", "InCsumErrors"].map(count), before);
    let refused = 10 * families.len() as u64;
    assert_eq!(agent.decisions("web", "xdp ingress", "reset connection_rate"), refused);
    assert_eq!(agent.decisions("web", "tc ingress", "reset connection_rate"), 0);
    let limit = agent.limit("web");
    assert_eq!((limit.admitted, limit.refused), (5, refused));
    assert_eq!(scene.server.accepted(80), 5);
    assert_eq!(agent.last_refusal("web").hook, "xdp");
    // What has no limit passes.
    assert_eq!(ask(client, scene.to(81), 5).codes(), "ok:5");
}

/// Two hooks see each SYN, and it is paid for once; sent again it is free, also when by now
/// everybody else is refused.
#[test]
fn one_syn_is_paid_for_once_at_two_hooks() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let policy = ["connections.80: 100 per 1h", "connections-per-source.80: 50 per 1h"];
    let agent = Agent::start(&lab, scene.node.namespace(), &scene.file("native", &policy));
    let wire = Wire::open_alone(&scene.client).unwrap();
    let from = |number: u16| {
        // Four addresses of the client.
        let source = IpAddr::from(scene.client.source_v4((number % 4) as u8));
        SocketAddr::new(source, 20_000 + number)
    };
    let numbers = 0..400;
    for number in numbers.clone().chain(numbers) {
        wire.send(&syn(from(number), scene.to(80), 7));
    }
    let last = scene.to(81);
    wire.send(&syn(from(0), last, 7));
    let answers = wire.answers_until(last);
    let whom = |says| -> BTreeSet<SocketAddr> {
        answers.iter().filter(|answer: &&Answer| answer.says == says).map(|a| a.to).collect()
    };
    let expected: BTreeSet<_> = (0..100).map(from).collect();
    assert_eq!(whom(Says::SynAck), expected, "the first hundred, each of which got a token");
    assert_eq!(whom(Says::Reset).len(), 300);
    assert_eq!(agent.decisions("web", "tc ingress", "pass admitted"), 100);
    assert_eq!(agent.decisions("web", "tc ingress", "pass retransmission"), 100);
    let early = agent.decisions("web", "xdp ingress", "reset connection_rate");
    assert_eq!(early, 600, "the rest, each time");
}

#[test]
fn a_drop_at_the_uplink_has_no_answer() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let policy = ["connections.80: 1 per 60s", "on-limit: drop"];
    let agent = Agent::start(&lab, scene.node.namespace(), &scene.file("native", &policy));
    let wire = Wire::open_alone(&scene.client).unwrap();
    let from = |number: u16| SocketAddr::new(scene.client.ipv4().into(), 20_000 + number);
    for number in 0..20 {
        wire.send(&syn(from(number), scene.to(80), 7));
    }
    let last = scene.to(81);
    wire.send(&syn(from(0), last, 7));
    let says: Vec<_> = wire.answers_until(last).iter().map(|answer| answer.says).collect();
    assert_eq!(says, [Says::SynAck]);
    assert_eq!(agent.decisions("web", "xdp ingress", "drop connection_rate"), 19);
}

/// For drivers without XDP: the same in the stack, when it is asked for.
#[test]
fn an_uplink_can_refuse_in_the_stack_when_asked_to() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let file = scene.file("generic", &["connections.80: 2 per 60s"]);
    let agent = Agent::start(&lab, scene.node.namespace(), &file);
    let uplink = agent.uplink(&scene.client.node_interface());
    assert_eq!(uplink.attached.as_deref(), Some("xdp-generic"));
    let client = scene.client.namespace();
    assert_eq!(ask(client, scene.to(80), 10).codes(), "ok:2 refused:8");
    assert_eq!(agent.decisions("web", "xdp ingress", "reset connection_rate"), 8);
    // Off again: TC does it all.
    agent.rewrite(&scene.file("off", &["connections.80: 2 per 60s"]));
    let later = || {
        let stats = ask(client, scene.to(80), 1);
        (stats.codes(), agent.decisions("web", "tc ingress", "reset connection_rate"))
    };
    eventually("TC refuses", later, |(codes, at_tc)| codes == "refused:1" && *at_tc > 0);
}

/// An XDP program of somebody else is left alone; the limits hold all the same, later on the way.
#[test]
fn a_foreign_xdp_program_is_left_alone_and_reported() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let uplink = scene.client.node_interface();
    let theirs = Foreign::xdp_pass("theirs").unwrap();
    let link = theirs.attach_xdp(scene.node.namespace(), &uplink).unwrap();
    let file = scene.file("native", &["connections.80: 2 per 60s"]);
    let mut agent = Agent::start(&lab, scene.node.namespace(), &file);
    let status = agent.uplink(&uplink);
    assert_eq!(status.attached, None);
    assert!(status.detail.is_some_and(|detail| detail.contains("somebody else")));
    assert_eq!(agent.workload("web").condition, "enforced");
    let client = scene.client.namespace();
    let before = theirs.seen();
    assert_eq!(ask(client, scene.to(80), 10).codes(), "ok:2 refused:8");
    assert_eq!(agent.decisions("web", "tc ingress", "reset connection_rate"), 8);
    assert!(theirs.seen() > before);

    // When they leave, we come.
    drop(link);
    eventually(
        "our own program is attached",
        || agent.uplink(&uplink),
        |uplink| uplink.attached.as_deref() == Some("xdp"),
    );
    assert_eq!(ask(client, scene.to(80), 5).codes(), "refused:5");
    assert_eq!(agent.decisions("web", "xdp ingress", "reset connection_rate"), 5);

    // And theirs stays when we leave.
    agent.terminate();
    assert!(agent.uninstall().status.success());
    eventually(
        "the uplink is free",
        || theirs.attach_xdp(scene.node.namespace(), &uplink).is_ok(),
        |free| *free,
    );
    assert_eq!(ask(client, scene.to(80), 5).codes(), "ok:5");
}

/// An uplink that is made again gets its program again.
#[test]
fn an_uplink_that_is_made_again_refuses_again() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let file = scene.file("native", &["connections.80: 1 per 60s", "on-limit: drop"]);
    let mut agent = Agent::start(&lab, scene.node.namespace(), &file);
    let early = |agent: &Agent<'_>| agent.decisions("web", "xdp ingress", "drop connection_rate");
    assert_eq!(ask(scene.client.namespace(), scene.to(80), 1).codes(), "ok:1");
    let index = scene.node.index_of(&scene.client).unwrap();
    for index in [Some(index), None] {
        agent.behind_its_back(|| {
            scene.node.unplug(&scene.client).unwrap();
            scene.node.plug(&scene.client, index).unwrap();
        });
        let before = early(&agent);
        let try_again = || {
            let plan = Plan::to(scene.to(80)).talk(Talk::Byte);
            run(scene.client.namespace(), plan.timeout(Duration::from_millis(50)));
            early(&agent)
        };
        eventually("the uplink refuses", try_again, |now| *now > before);
    }
}

/// A killed agent's early program goes on, and the next agent takes it over where it is.
#[test]
fn an_uplinks_program_outlives_its_agent() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let uplink = scene.client.node_interface();
    let file = scene.file("native", &["connections.80: 2 per 60s"]);
    let mut agent = Agent::start(&lab, scene.node.namespace(), &file);
    let client = scene.client.namespace();
    assert_eq!(ask(client, scene.to(80), 4).codes(), "ok:2 refused:2");
    agent.kill();
    assert_eq!(ask(client, scene.to(80), 5).codes(), "refused:5");
    agent.restart();
    assert_eq!(agent.uplink(&uplink).attached.as_deref(), Some("xdp"));
    assert_eq!(ask(client, scene.to(80), 3).codes(), "refused:3");
    assert_eq!(agent.decisions("web", "xdp ingress", "reset connection_rate"), 10);
}
