//! Shields where TC's programs are filters: the older kernel's veths, and its XDP.

use std::net::SocketAddr;

use weir::lab::{Lab, Offload, has_offload};
use weir_tests::{
    agent::{Agent, eventually},
    raw::{Wire, syn},
    site::{Side, ask, node_file, serve},
    vm,
};

/// It comes while a pod floods another, refuses at that pod's end, outlives the agent, and goes without a trace.
#[test]
fn a_shield_comes_with_a_flood_and_goes_after_it() {
    inside!(|| {
        let lab = Lab::new().unwrap();
        let node = lab.node("node").unwrap();
        let (noisy, web) = (node.pod("noisy").unwrap(), node.pod("web").unwrap());
        let _server = serve(&web, &[80]);
        let policy = "policy: { connections.8080: 1 per 24h, on-limit: drop }";
        let entries = [Side::Host.entry(&web, &[policy]), Side::Host.entry(&noisy, &[])];
        // An emulated machine sends few SYNs a second.
        let file = |calm| format!("shield: {{ above: 20, calm: {calm} }}\n{}", node_file(&entries));
        let mut agent = Agent::start(&lab, node.namespace(), &file("1h"));
        assert_eq!(agent.workload("web").attached.as_deref(), Some("clsact"));
        let to = |port| SocketAddr::new(web.ipv4().into(), port);
        // What was admitted once is not judged again, so the last of them come from other ports.
        let flood = |port: u16, count| {
            Wire::open(&noisy).unwrap().flood(count, Some(2000), |number| {
                let from = SocketAddr::new(noisy.ipv4().into(), port + number as u16);
                syn(from, to(8080), number as u32)
            });
        };
        let shields = |agent: &Agent<'_>| {
            let status = agent.status().shields.into_iter();
            status.map(|shield| (shield.workload, shield.attached)).collect::<Vec<_>>()
        };
        let segments_for_itself =
            || !has_offload(noisy.namespace(), noisy.interface(), Offload::Tso).unwrap();
        let up = [("noisy".to_owned(), Some("xdp".to_owned()))];
        assert!(!segments_for_itself());
        let flooded = || {
            flood(1000, 500);
            shields(&agent)
        };
        eventually("the shield is up", flooded, |shields| *shields == up);
        assert!(segments_for_itself());
        let counted = |agent: &Agent<'_>| {
            let of_web = agent.decisions("web", "xdp ingress", "drop connection_rate");
            (of_web, agent.decisions("noisy", "xdp ingress", "note shielded"))
        };

        agent.kill();
        flood(1000, 500);
        assert_eq!(ask(noisy.namespace(), to(80), 3).codes(), "ok:3");
        agent.restart();
        assert_eq!(shields(&agent), up);
        let (early, shielded) = counted(&agent);
        assert!(early >= 100, "{early} were refused early");
        assert_eq!(shielded, early, "whose they were");

        agent.rewrite_now(&file("1s"));
        eventually("the shield is down", || shields(&agent), Vec::is_empty);
        eventually("the pod leaves it to others", segments_for_itself, |own| !own);
        let late = agent.decisions("web", "tc ingress", "drop connection_rate");
        // Too few to raise it again.
        flood(2000, 15);
        let now = agent.decisions("web", "tc ingress", "drop connection_rate");
        assert_eq!((counted(&agent).0, now), (early, late + 15));
        assert!(agent.terminate().success());
        assert!(agent.uninstall().status.success());
    });
}
