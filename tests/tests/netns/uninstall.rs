//! Gone is gone: what the agent brought into the kernel leaves with it, and nothing else does.

use std::net::SocketAddr;

use weir_tests::{
    agent::{Agent, eventually},
    bpf::{Foreign, Hook, Object, exists, objects_of, pinned_link, pinned_map, programs_at},
    site::{Side, ask, node_file, serve},
};

#[test]
fn uninstall_leaves_nothing() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let (web, db) = (node.pod("web").unwrap(), node.pod("db").unwrap());
    let (client, other) = (node.client("client").unwrap(), node.client("other").unwrap());
    let _server = serve(&web, &[80]);
    // What an uplink's program sends back arrives on a veth whose other end has a program, too.
    let pass = Foreign::xdp_pass("pass").unwrap();
    let _link = pass.attach_xdp(client.namespace(), client.interface()).unwrap();
    let policy = ["policy: { connections.80: 1 per 60s, outbound-connections.81: 1 per 60s }"];
    let edge =
        format!("  - {{ name: edge, interface: {}, {} }}\n", other.node_interface(), policy[0]);
    let entries = [Side::Host.entry(&web, &policy), Side::Pod.entry(&db, &policy), edge];
    let uplinks = format!("uplinks: [ {{ interface: {} }} ]\n", client.node_interface());
    let mut agent = Agent::start(&lab, node.namespace(), &(uplinks + &node_file(&entries)));
    for name in ["web", "db", "edge"] {
        assert_eq!(agent.workload(name).condition, "enforced", "{name}");
    }
    assert_eq!(agent.uplink(&client.node_interface()).attached.as_deref(), Some("xdp"));
    let to = SocketAddr::new(web.ipv4().into(), 80);
    assert_eq!(ask(client.namespace(), to, 3).codes(), "ok:1 refused:2");

    // All that it has open, and all that it has pinned.
    let mut objects = objects_of(agent.id()).unwrap();
    let (mut links, mut maps) = (0, 0);
    for entry in std::fs::read_dir(agent.layout()).unwrap() {
        let path = entry.unwrap().path();
        if let Ok(map) = pinned_map(&path) {
            objects.push(Object::Map(map));
            maps += 1;
        }
    }
    for entry in std::fs::read_dir(agent.layout().join("links")).unwrap() {
        let pinned = pinned_link(&entry.unwrap().path()).unwrap();
        objects.extend([Object::Link(pinned.link), Object::Program(pinned.program)]);
        links += 1;
    }
    // Two for each workload and for `connect()`, and one for the uplink.
    assert_eq!(links, 9);
    assert!(maps > 10, "{maps} maps");
    assert!(objects.iter().all(|object| exists(*object)));

    // Not from under a running agent.
    let refused = agent.uninstall();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("another agent"), "{said}");
    assert_eq!(ask(client.namespace(), to, 2).codes(), "refused:2");

    // With its programs still in place it goes on without an agent; then it goes.
    assert!(agent.terminate().success());
    assert_eq!(ask(client.namespace(), to, 2).codes(), "refused:2");
    let removed = agent.uninstall();
    assert!(removed.status.success(), "{removed:?}");
    let places = [
        (node.namespace(), web.node_interface()),
        (node.namespace(), other.node_interface()),
        (db.namespace(), db.interface().to_owned()),
    ];
    let hooks = places.iter().flat_map(|place| [(place, Hook::Ingress), (place, Hook::Egress)]);
    for ((namespace, interface), hook) in hooks {
        // The kernel lets go of a link a moment after its pin is gone.
        let programs = || programs_at(namespace, interface, hook).unwrap();
        eventually("the programs are detached", programs, Vec::is_empty);
    }
    assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:5");
    assert!(!agent.pins().exists());
    eventually(
        "the kernel has freed all of it",
        || objects.iter().copied().filter(|object| exists(*object)).collect::<Vec<_>>(),
        Vec::is_empty,
    );
    // Again is no error, and there is room for a new start.
    assert!(agent.uninstall().status.success());
    agent.restart();
    assert_eq!(ask(client.namespace(), to, 5).codes(), "ok:1 refused:4");
}
