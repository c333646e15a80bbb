//! Other people's TC programs at the hooks where ours are.

use std::{net::SocketAddr, process::Command};

use weir::lab::{Host, Lab, Namespace, Node, skip};
use weir_tests::{
    agent::{Agent, eventually},
    bpf::{Foreign, Hook, Link, Place, programs_at},
    site::{Side, ask, serve},
};

const POLICY: [&str; 2] = ["connections.80: 2 per 60s", "outbound-connections.3306: 2 per 60s"];

fn at(host: &Host, port: u16) -> SocketAddr {
    SocketAddr::new(host.ipv4().into(), port)
}

/// A pod with both kinds of limits, and somebody to talk to.
struct Scene {
    node: Node,
    web: Host,
    client: Host,
    _servers: [weir::load::Server; 2],
}

impl Scene {
    fn new(lab: &Lab) -> Self {
        let node = lab.node("node").unwrap();
        let (web, client) = (node.pod("web").unwrap(), node.client("client").unwrap());
        let servers = [serve(&web, &[80]), serve(&client, &[3306])];
        Self { node, web, client, _servers: servers }
    }

    /// Where a side's programs are.
    fn place(&self, side: Side) -> (&Namespace, String) {
        match side {
            Side::Host => (self.node.namespace(), self.web.node_interface()),
            Side::Pod | Side::Own => (self.web.namespace(), self.web.interface().to_owned()),
        }
    }

    fn foreign(&self, side: Side, place: Place) -> Vec<(Foreign, Hook, Link)> {
        let (namespace, interface) = self.place(side);
        [(Hook::Ingress, "theirs_in"), (Hook::Egress, "theirs_out")]
            .into_iter()
            .map(|(hook, name)| {
                let program = Foreign::tc_ok(name).unwrap();
                let link = program.attach(namespace, &interface, hook, place).unwrap();
                (program, hook, link)
            })
            .collect()
    }

    fn agent(&self, lab: &Lab, side: Side) -> Agent<'_> {
        let file = side.node_file(&self.web, &POLICY);
        let agent_in = match side {
            Side::Host | Side::Pod => self.node.namespace(),
            Side::Own => self.web.namespace(),
        };
        Agent::start(lab, agent_in, &file)
    }

    /// Both limits hold, exactly, from the first connection on.
    fn limits_hold(&self) {
        let stats = ask(self.client.namespace(), at(&self.web, 80), 10);
        assert_eq!(stats.codes(), "ok:2 refused:8");
        let stats = ask(self.web.namespace(), at(&self.client, 3306), 10);
        assert_eq!(stats.codes(), "ok:2 refused:8");
    }
}

/// They were there before and end the chain with `TC_ACT_OK`: we go first, then they run.
fn goes_first(side: Side) {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let theirs = scene.foreign(side, Place::Last);
    let mut agent = scene.agent(&lab, side);
    let workload = agent.workload("web");
    assert_eq!((workload.condition.as_str(), workload.before.len()), ("enforced", 0));
    scene.limits_hold();
    let (namespace, interface) = scene.place(side);
    for (program, hook, _) in &theirs {
        let seen = program.seen();
        assert!(seen >= 2, "{hook:?}: {seen} packets came after us");
        let order = programs_at(namespace, &interface, *hook).unwrap();
        assert_eq!((order.len(), order[1]), (2, program.id()), "{hook:?}");
    }
    // A refused SYN is none of their business.
    let seen = |hook| theirs.iter().find(|theirs| theirs.1 == hook).unwrap().0.seen();
    let refused_in = if side == Side::Host { Hook::Egress } else { Hook::Ingress };
    let before = seen(refused_in);
    assert_eq!(ask(scene.client.namespace(), at(&scene.web, 80), 5).codes(), "refused:5");
    assert_eq!(seen(refused_in), before);

    agent.terminate();
    assert!(agent.uninstall().status.success());
    for (program, hook, _) in &theirs {
        let left = || programs_at(namespace, &interface, *hook).unwrap();
        eventually("only theirs is left", left, |left| *left == [program.id()]);
        let before = program.seen();
        assert_eq!(ask(scene.client.namespace(), at(&scene.web, 80), 5).codes(), "ok:5");
        assert!(program.seen() > before, "{hook:?}: theirs runs on");
    }
}

#[test]
fn a_program_that_was_there_before_runs_after_ours_on_the_host_side() {
    goes_first(Side::Host);
}

#[test]
fn a_program_that_was_there_before_runs_after_ours_inside_the_pod() {
    goes_first(Side::Pod);
}

#[test]
fn a_program_that_was_there_before_runs_after_ours_on_a_machines_own_interface() {
    goes_first(Side::Own);
}

/// They come later and put themselves first, with `TC_ACT_OK`: now they decide, and nothing we do
/// can change that. The agent must not say that all is well.
#[test]
fn a_program_that_pushed_in_before_ours_is_reported() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let mut agent = scene.agent(&lab, Side::Host);
    assert_eq!(ask(scene.client.namespace(), at(&scene.web, 80), 5).codes(), "ok:2 refused:3");
    let theirs = scene.foreign(Side::Host, Place::First);
    // What they let pass, they let pass.
    assert_eq!(ask(scene.client.namespace(), at(&scene.web, 80), 5).codes(), "ok:5");
    // The agent looks again every half minute; a reload is when it looks at once.
    agent.rewrite_now(&Side::Host.node_file(&scene.web, &POLICY));
    let workload = agent.workload("web");
    assert!(workload.before.iter().any(|name| name == "theirs_out"), "{workload:#?}");
    assert!(workload.detail.is_some_and(|detail| detail.contains("theirs_out")));
    // They go, and all is well again.
    drop(theirs);
    agent.rewrite_now(&Side::Host.node_file(&scene.web, &POLICY));
    let workload = agent.workload("web");
    assert_eq!((workload.before.len(), workload.detail), (0, None));
    assert_eq!(ask(scene.client.namespace(), at(&scene.web, 80), 5).codes(), "refused:5");
}

/// The next agent finds them there, and says so from the start.
#[test]
fn the_next_agent_reports_a_program_that_pushed_in_before_ours() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let mut agent = scene.agent(&lab, Side::Host);
    agent.kill();
    let _theirs = scene.foreign(Side::Host, Place::First);
    agent.restart();
    let workload = agent.workload("web");
    assert!(workload.before.iter().any(|name| name == "theirs_out"), "{workload:#?}");
}

/// The older way to attach, which tools still use: a clsact filter. TCX runs before it.
#[test]
fn a_clsact_filter_runs_after_ours_and_stays() {
    const TEST: &str = "tc::a_clsact_filter_runs_after_ours_and_stays";
    let lab = lab!();
    let scene = Scene::new(&lab);
    let interface = scene.web.node_interface();
    let tc = |words: &[&str]| {
        let words: Vec<_> = words.iter().map(|word| word.replace("DEV", &interface)).collect();
        let run = || Command::new("tc").args(&words).output();
        scene.node.namespace().run(run).unwrap()
    };
    let theirs = Foreign::tc_ok("theirs").unwrap();
    let pin = lab.pins().with_file_name("theirs");
    theirs.pin(&pin).unwrap();
    let Ok(added) = tc(&["qdisc", "add", "dev", "DEV", "clsact"]) else {
        skip(TEST, "iproute2 is not installed");
        return;
    };
    assert!(added.status.success(), "{added:?}");
    let pin = pin.to_str().unwrap();
    let filter = ["filter", "add", "dev", "DEV", "egress", "prio", "1", "bpf", "direct-action"];
    let added = tc(&[filter.as_slice(), &["object-pinned", pin]].concat()).unwrap();
    assert!(added.status.success(), "{added:?}");

    let mut agent = scene.agent(&lab, Side::Host);
    assert_eq!(agent.workload("web").condition, "enforced");
    scene.limits_hold();
    let seen = theirs.seen();
    assert!(seen >= 2, "{seen} packets came after us");
    agent.terminate();
    assert!(agent.uninstall().status.success());
    let listed = tc(&["filter", "show", "dev", "DEV", "egress"]).unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("theirs"), "{listed}");
    eventually(
        "ours is gone",
        || programs_at(scene.node.namespace(), &interface, Hook::Egress).unwrap(),
        Vec::is_empty,
    );
    assert_eq!(ask(scene.client.namespace(), at(&scene.web, 80), 5).codes(), "ok:5");
    assert!(theirs.seen() > seen);
}
