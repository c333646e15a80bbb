//! A pod is its UID.

use serde_json::json;
use weir_tests::{agent::eventually, kubelet::uid, site::serve};

use super::{Cluster, NOTHING, await_attached, await_gone, codes, name};

#[test]
fn a_pod_that_is_made_again_inherits_nothing() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let web = cluster.node.pod("web").unwrap();
    let client = cluster.node.client("client").unwrap();
    let server = serve(&web, &[80]);
    let agent = cluster.agent(&lab, NOTHING);
    let policy = || json!({"weir.dev/connections.80": "2 per 60s"});
    let container = cluster.start(&web, &uid(1), policy());
    let web_name = name(&web);
    await_attached(&agent, &web_name);
    assert_eq!(codes(client.namespace(), &web, 5), "ok:2 refused:3");

    cluster.server.delete("pods", &web_name);
    drop((container, server));
    await_gone(&agent, &web_name);
    // The same name, address and interface.
    let (address, interface) = (web.ipv4(), web.node_interface());
    let web = cluster.node.replace(web).unwrap();
    assert_eq!((web.ipv4(), web.node_interface()), (address, interface));
    let _server = serve(&web, &[80]);
    assert_eq!(codes(client.namespace(), &web, 5), "ok:5", "nobody's pod yet");
    let _container = cluster.start(&web, &uid(2), policy());
    await_attached(&agent, &web_name);
    assert_eq!(codes(client.namespace(), &web, 5), "ok:2 refused:3");
    assert_eq!(agent.limit(&web_name).admitted, 2, "another pod's counts are not its own");
}

#[test]
fn a_container_that_restarts_changes_nothing() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let web = cluster.node.pod("web").unwrap();
    let client = cluster.node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let agent = cluster.agent(&lab, NOTHING);
    let pause = cluster.start(&web, &uid(1), json!({"weir.dev/connections.80": "2 per 60s"}));
    let run = || cluster.kubelet.run(&uid(1), cluster.node.namespace(), web.namespace());
    let container = run();
    let web_name = name(&web);
    await_attached(&agent, &web_name);
    assert_eq!(codes(client.namespace(), &web, 5), "ok:2 refused:3");
    drop(container);
    let container = run();
    assert_eq!(codes(client.namespace(), &web, 3), "refused:3");
    drop(pause);
    assert_eq!(codes(client.namespace(), &web, 3), "refused:3");
    drop(container);
    // All of it has ended, and the API server has not said so yet.
    let _container = run();
    await_attached(&agent, &web_name);
    assert_eq!(codes(client.namespace(), &web, 3), "refused:3");
}

/// The kernel takes its time to attach, so interfaces have their programs before their pods are known.
#[test]
fn an_interface_waits_for_its_pod() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let client = cluster.node.client("client").unwrap();
    let agent = cluster.agent(&lab, NOTHING);
    let links = || std::fs::read_dir(agent.layout().join("links")).unwrap().count();
    let before = links();
    let web = cluster.node.pod("web").unwrap();
    eventually("programs wait there", links, |count| *count == before + 2);
    let _server = serve(&web, &[80]);
    let web_name = name(&web);
    for number in 1..=2 {
        assert_eq!(codes(client.namespace(), &web, 5), "ok:5", "nobody's pod yet, or any more");
        let policy = json!({"weir.dev/connections.80": "2 per 60s"});
        let container = cluster.start(&web, &uid(number), policy);
        await_attached(&agent, &web_name);
        assert_eq!(codes(client.namespace(), &web, 5), "ok:2 refused:3");
        cluster.server.delete("pods", &web_name);
        drop(container);
        await_gone(&agent, &web_name);
        assert_eq!(links(), before + 2);
    }
}
