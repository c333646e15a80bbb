//! XDP at the host's end of a pod that floods another: there while it floods, and gone without a trace.

use std::{net::SocketAddr, thread, time::Duration};

use weir::{
    app::view::ShieldStatus,
    lab::{Host, Lab, Node, Offload, has_offload, set_mtu},
};
use weir_tests::{
    agent::{Agent, eventually},
    bpf::Foreign,
    counters::Packets,
    raw::{Wire, syn},
    site::{Side, ask, node_file, serve},
    traffic::{self, Bulk},
};

/// The pod that floods, the one that is flooded, and who asks that one for something else.
struct Scene {
    node: Node,
    noisy: Host,
    web: Host,
    client: Host,
}

impl Scene {
    fn new(lab: &Lab) -> Self {
        let node = lab.node("node").unwrap();
        let (noisy, web) = (node.pod("noisy").unwrap(), node.pod("web").unwrap());
        let client = node.client("client").unwrap();
        Self { node, noisy, web, client }
    }

    /// One connection to port 8080 of `web`, and any number to its port 80.
    fn file(&self, shield: &str, on_limit: &str) -> String {
        let policy = format!("policy: {{ connections.8080: 1 per 24h, on-limit: {on_limit} }}");
        let entries = [Side::Host.entry(&self.web, &[&policy]), Side::Host.entry(&self.noisy, &[])];
        format!("shield: {shield}\n{}", node_file(&entries))
    }

    fn to(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.web.ipv4().into(), port)
    }

    /// So many SYNs to port 8080, from as many ports, beside what else the pod does.
    fn flood(&self, from: u16, count: u64, per_second: Option<u64>) {
        let wire = Wire::open(&self.noisy).unwrap();
        wire.flood(count, per_second, |number| {
            let port = from + number as u16;
            syn(SocketAddr::new(self.noisy.ipv4().into(), port), self.to(8080), number as u32)
        });
    }

    fn segments_for_itself(&self) -> bool {
        !has_offload(self.noisy.namespace(), self.noisy.interface(), Offload::Tso).unwrap()
    }

    /// Payload of a packet, on the average, where `noisy` sends as fast as it goes.
    fn bytes_of_a_packet(&self) -> u64 {
        let end = self.noisy.node_interface();
        let count = || Packets::read(self.node.namespace(), &end).unwrap().received;
        let before = count();
        self.send_for(Duration::from_millis(100)) / (count() - before)
    }

    /// Sends as fast as it goes from `noisy`, over one connection: so many bytes arrive.
    fn send_for(&self, time: Duration) -> u64 {
        let bulk = Bulk { port: 9, connections: 1, time, congestion: "cubic" };
        traffic::tcp(&self.noisy, &self.web, self.web.ipv4().into(), bulk)[0].received
    }
}

fn shields(agent: &Agent<'_>) -> Vec<ShieldStatus> {
    agent.status().shields
}

fn is_up(shields: &[ShieldStatus]) -> bool {
    shields.iter().any(|shield| shield.attached.as_deref() == Some("xdp"))
}

#[test]
fn a_pod_that_floods_another_is_refused_at_its_own_end_until_it_is_calm() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let _server = serve(&scene.web, &[80]);
    let file = |calm| scene.file(&format!("{{ above: 100, calm: {calm} }}"), "drop");
    let mut agent = Agent::start(&lab, scene.node.namespace(), &file("1h"));
    let early = |agent: &Agent<'_>| agent.decisions("web", "xdp ingress", "drop connection_rate");
    let sent = |agent: &Agent<'_>| agent.decisions("noisy", "xdp ingress", "note shielded");
    let late = |agent: &Agent<'_>| agent.decisions("web", "tc ingress", "drop connection_rate");
    assert!(!scene.segments_for_itself(), "veths leave segmentation to who receives");

    let until_it_is_up = |agent: &Agent<'_>| {
        let flood = || {
            scene.flood(2000, 1000, Some(4000));
            shields(agent)
        };
        eventually("the shield is up", flood, |shields| is_up(shields))
    };
    let up = until_it_is_up(&agent);
    assert_eq!(up.len(), 1, "{up:?}");
    assert_eq!((up[0].workload.as_str(), &up[0].detail), ("noisy", &None));
    assert!(scene.segments_for_itself());
    assert_eq!(agent.metric("weir_shields_up", &[]), 1.0);
    assert_eq!(agent.metric("weir_shields_raised_total", &[]), 1.0);

    // Without an agent nobody takes it down, so that all of them are refused there.
    agent.kill();
    scene.flood(3000, 1000, None);
    let served = |from: &Host| ask(from.namespace(), scene.to(80), 5).codes();
    assert_eq!((served(&scene.client), served(&scene.noisy)), ("ok:5".into(), "ok:5".into()));
    assert!(scene.segments_for_itself());

    // Its successor goes on with what it finds.
    agent.restart();
    assert!(is_up(&shields(&agent)), "{:?}", shields(&agent));
    let (early_then, late_then) = (early(&agent), late(&agent));
    // A frame that a veth's ring has no room for is counted by nobody.
    assert!(early_then >= 500, "{early_then} were refused early");
    assert_eq!(sent(&agent), early_then, "whose they were");
    assert_eq!(agent.decisions("web", "xdp ingress", "note shielded"), 0);
    agent.rewrite_now(&file("1s"));
    eventually("the shield is down", || shields(&agent), Vec::is_empty);
    eventually("the pod leaves it to others", || scene.segments_for_itself(), |own| !own);
    scene.flood(4000, 50, None);
    assert_eq!((early(&agent), late(&agent)), (early_then, late_then + 50));
    assert_eq!(agent.metric("weir_shields_up", &[]), 0.0);
}

/// TC does not count who was refused: a pod that opens many connections while another floods may get a shield.
#[test]
fn a_shield_that_refuses_nothing_comes_down_and_stays_down() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let file = scene.file("{ above: 100, calm: 1s }", "drop");
    let agent = Agent::start(&lab, scene.node.namespace(), &file);
    let (busy, noisy) = (&scene.noisy, &scene.client);
    let both = || {
        for (from, port) in [(busy, 80), (noisy, 8080)] {
            Wire::open_alone(from).unwrap().flood(500, Some(4000), |number| {
                let source = SocketAddr::new(from.ipv4().into(), 2000 + number as u16);
                syn(source, scene.to(port), number as u32)
            });
        }
        (agent.metric("weir_shields_raised_total", &[]), shields(&agent).len())
    };
    eventually("a shield is up", both, |now| *now == (1.0, 1));
    eventually("it is down", both, |now| *now == (1.0, 0));
    for _ in 0..12 {
        assert_eq!(both(), (1.0, 0));
    }
    assert_eq!(agent.decisions("noisy", "xdp ingress", "note shielded"), 0);
}

/// Segments that the pod must cut by itself cost more than refused SYNs do.
#[test]
fn a_pod_that_sends_much_else_has_no_shield() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let file = scene.file("{ above: 100, calm: 1s }", "drop");
    let agent = Agent::start(&lab, scene.node.namespace(), &file);
    let raised = || agent.metric("weir_shields_raised_total", &[]);
    let late = || agent.decisions("web", "tc ingress", "drop connection_rate");
    thread::scope(|scope| {
        let much = scope.spawn(|| {
            scene.send_for(Duration::from_secs(5));
        });
        while !much.is_finished() {
            scene.flood(1000, 1000, Some(4000));
        }
    });
    assert!(late() >= 2000, "{} were refused", late());
    assert_eq!(raised(), 0.0);
    let is_told = |what: &str| agent.log().contains(what);
    assert!(is_told("a shield would cost more than it saves"), "{}", agent.log());
    let flood = || {
        scene.flood(1000, 1000, Some(4000));
        raised()
    };
    eventually("the shield is up", flood, |raised| *raised == 1.0);
    thread::scope(|scope| {
        scope.spawn(|| scene.send_for(Duration::from_secs(6)));
        let flood = || {
            scene.flood(1000, 1000, Some(4000));
            shields(&agent)
        };
        eventually("the shield is down", flood, Vec::is_empty);
    });
    assert!(is_told("its shield costs more than it saves"), "{}", agent.log());
}

#[test]
fn what_is_refused_by_rst_is_answered_as_before() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let file = scene.file("{ xdp: always }", "reset");
    let agent = Agent::start(&lab, scene.node.namespace(), &file);
    let _server = serve(&scene.web, &[8080]);
    assert_eq!(shields(&agent).len(), 2, "every end has one");
    assert_eq!(ask(scene.noisy.namespace(), scene.to(8080), 6).codes(), "ok:1 refused:5");
    assert_eq!(agent.decisions("web", "tc ingress", "reset connection_rate"), 5);
    assert_eq!(agent.decisions("web", "xdp ingress", "reset connection_rate"), 0);
}

#[test]
fn a_shield_that_is_always_up_goes_with_the_word_and_with_the_agent() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let (always, off) = (scene.file("{ xdp: always }", "drop"), scene.file("{ xdp: off }", "drop"));
    let mut agent = Agent::start(&lab, scene.node.namespace(), &always);
    assert!(scene.segments_for_itself());
    let sent = scene.bytes_of_a_packet();
    assert!(sent <= 1460, "{sent} bytes");
    agent.rewrite_now(&off);
    assert_eq!(shields(&agent), []);
    eventually("the pod leaves it to others", || scene.segments_for_itself(), |own| !own);
    let sent = scene.bytes_of_a_packet();
    assert!(sent >= 4 * 1460, "{sent} bytes");
    agent.rewrite_now(&always);
    assert!(scene.segments_for_itself());
    agent.terminate();
    assert!(scene.segments_for_itself());
    assert!(agent.uninstall().status.success());
    eventually("the pod leaves it to others", || scene.segments_for_itself(), |own| !own);
}

#[test]
fn where_a_shield_cannot_be_it_is_said_and_tc_refuses() {
    let lab = lab!();
    let scene = Scene::new(&lab);
    let (ours, theirs) = (scene.web.node_interface(), scene.noisy.node_interface());
    let foreign = Foreign::xdp_pass("theirs").unwrap();
    let _link = foreign.attach_xdp(scene.node.namespace(), &ours).unwrap();
    // What the pod may send then does not fit into the page that XDP has for it.
    set_mtu(scene.node.namespace(), &theirs, 9000).unwrap();
    set_mtu(scene.noisy.namespace(), scene.noisy.interface(), 9000).unwrap();
    let file = scene.file("{ xdp: always }", "drop");
    let agent = Agent::start(&lab, scene.node.namespace(), &file);
    let all = shields(&agent);
    let detail = |interface: &str| {
        let shield = all.iter().find(|shield| shield.interface == interface).unwrap();
        assert_eq!(shield.attached, None);
        shield.detail.clone().unwrap()
    };
    assert!(detail(&ours).contains("somebody else"), "{}", detail(&ours));
    assert!(detail(&theirs).contains("cannot run XDP in its driver"), "{}", detail(&theirs));
    assert_eq!(agent.metric("weir_shields_failed", &[]), 2.0);
    scene.flood(4000, 20, None);
    assert_eq!(agent.decisions("web", "tc ingress", "drop connection_rate"), 19);
}
