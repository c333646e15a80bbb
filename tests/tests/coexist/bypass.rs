//! Network plugins that take a shortcut: `bpf_redirect_peer` puts packets into the pod without
//! passing the host's end of its veth.

use std::net::SocketAddr;

use weir_tests::{
    agent::Agent,
    bpf::{Foreign, Hook, Place},
    site::{Side, addresses, ask, serve},
};

/// Emulated by a few instructions on the uplink. Attached at the host's end, limits see nothing;
/// attached inside the pod they hold. That is what `attach: pod` is for.
#[test]
fn a_shortcut_into_the_pod_passes_the_host_side_and_not_the_pod() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let server = serve(&web, &[80]);
    let shortcut = Foreign::tc_into_peer("shortcut", node.namespace(), &web).unwrap();
    let uplink = client.node_interface();
    let _link = shortcut.attach(node.namespace(), &uplink, Hook::Ingress, Place::First).unwrap();
    let policy = ["connections.80: 2 per 60s"];
    let agent = Agent::start(&lab, node.namespace(), &Side::Host.node_file(&web, &policy));
    assert_eq!(agent.workload("web").condition, "enforced");

    let to = |address| SocketAddr::new(address, 80);
    for address in addresses(&web) {
        assert_eq!(ask(client.namespace(), to(address), 10).codes(), "ok:10");
    }
    let limit = agent.limit("web");
    assert_eq!((limit.admitted, limit.refused), (0, 0), "the host side sees nothing");
    assert!(shortcut.seen() >= 20);

    agent.rewrite(&Side::Pod.node_file(&web, &policy));
    assert_eq!(agent.workload("web").condition, "enforced");
    let before = server.accepted(80);
    let mut codes: Vec<_> = Vec::new();
    for address in addresses(&web) {
        codes.push(ask(client.namespace(), to(address), 10).codes());
    }
    assert_eq!(codes[0], "ok:2 refused:8");
    assert!(codes[1..].iter().all(|codes| codes == "refused:10"), "{codes:?}");
    assert_eq!(server.accepted(80) - before, 2);
}

/// What the host's end sends and what the pod receives is compared: with `attach: auto` the programs
/// follow the packets, with `attach: host` it is said that they do not.
#[test]
fn a_shortcut_is_noticed_and_followed() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let client = node.client("client").unwrap();
    let server = serve(&web, &[80]);
    let to = SocketAddr::new(web.ipv4().into(), 80);
    let host = Side::Host.node_file(&web, &["connections.80: 2 per 60s"]);
    let auto = host.replace("attach: host", "attach: auto");
    let agent = Agent::start(&lab, node.namespace(), &auto);
    // Packets that take no shortcut say nothing.
    assert_eq!(ask(client.namespace(), to, 40).codes(), "ok:2 refused:38");
    agent.rewrite(&format!("# again\n{auto}"));
    assert_eq!(agent.workload("web").detail, None);

    let shortcut = Foreign::tc_into_peer("shortcut", node.namespace(), &web).unwrap();
    let uplink = client.node_interface();
    let _link = shortcut.attach(node.namespace(), &uplink, Hook::Ingress, Place::First).unwrap();
    assert_eq!(ask(client.namespace(), to, 40).codes(), "ok:40");
    // Looked at twice a minute, and with every change of the file.
    agent.rewrite(&auto);
    let detail = agent.workload("web").detail.unwrap_or_default();
    assert!(detail.contains("judged inside"), "{detail}");
    let before = server.accepted(80);
    assert_eq!(ask(client.namespace(), to, 10).codes(), "refused:10", "what was spent stays spent");
    assert_eq!(server.accepted(80), before);

    agent.rewrite(&host);
    let detail = agent.workload("web").detail.unwrap_or_default();
    assert!(detail.contains("`attach: auto`"), "{detail}");
    assert_eq!(ask(client.namespace(), to, 10).codes(), "ok:10");
}
