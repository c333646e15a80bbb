//! What pods, namespaces and administrators say holds for real connections.

use std::time::Duration;

use serde_json::json;
use weir::lab::shape;
use weir_tests::{
    agent::eventually,
    kubelet::{Driver, Kubelet, NODE, uid},
    site::serve,
    traffic::{self, Flood},
};

use super::{Cluster, NOTHING, await_attached, await_limit, codes, name};

const LINE: &str = "weir.dev/connections.80";

/// An annotation comes, changes, and goes, while the pod runs.
fn follows_annotations(lab: &weir::lab::Lab, cluster: &Cluster) {
    let web = cluster.node.pod("web").unwrap();
    let client = cluster.node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let agent = cluster.agent(lab, NOTHING);
    let _container = cluster.start(&web, &uid(1), json!({}));
    let web_name = name(&web);
    await_attached(&agent, &web_name);
    assert_eq!(agent.workload(&web_name).condition, "no-policy");
    assert_eq!(codes(client.namespace(), &web, 20), "ok:20");

    cluster.server.annotate("pods", &web_name, LINE, Some("3 per 60s"));
    await_limit(&agent, &web_name, Some("3/m"));
    assert_eq!(agent.workload(&web_name).condition, "enforced");
    assert_eq!(codes(client.namespace(), &web, 5), "ok:3 refused:2");

    cluster.server.annotate("pods", &web_name, LINE, Some("1 per 60s burst=5"));
    await_limit(&agent, &web_name, Some("1/m burst=5"));
    // What was spent stays spent: a larger bucket is not a full one.
    let seen = codes(client.namespace(), &web, 5);
    assert!(seen.contains("refused"), "{seen}");

    cluster.server.annotate("pods", &web_name, LINE, None);
    await_limit(&agent, &web_name, None);
    assert_eq!(codes(client.namespace(), &web, 20), "ok:20");
    assert_eq!(cluster.server.refused(), Vec::<String>::new());
}

#[test]
fn an_annotation_comes_changes_and_goes() {
    let lab = lab!();
    follows_annotations(&lab, &Cluster::new(&lab));
}

#[test]
fn cgroup_v1_and_its_names_will_do() {
    let lab = lab!();
    match Kubelet::new(&lab, "/sys/fs/cgroup/pids", Driver::Cgroupfs) {
        Some(kubelet) => follows_annotations(&lab, &Cluster::with(&lab, kubelet)),
        None => weir::lab::skip("kube cgroup_v1_and_its_names_will_do", "cgroup v1 is not mounted"),
    }
}

/// A namespace's words hold where the pod has none, and the administrator's maximum clamps both.
#[test]
fn namespaces_and_administrators_have_their_say() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let (web, db) = (cluster.node.pod("web").unwrap(), cluster.node.pod("db").unwrap());
    let client = cluster.node.client("client").unwrap();
    let _servers = (serve(&web, &[80]), serve(&db, &[80]));
    let file = "policies:\n  - match: { namespace: \"sh*\", name: web }\n    \
                max: { connections.http: 2 per 60s }\n    allow: [connections, mode]\n  \
                - match: { namespace: bank }\n    max: { connections.http: 1 per 60s }\n";
    let agent = cluster.agent(&lab, file);
    let _containers = (
        cluster.start(&web, &uid(1), json!({"weir.dev/connections.http": "100/s"})),
        cluster.start(&db, &uid(2), json!({})),
    );
    let (web_name, db_name) = (name(&web), name(&db));
    await_limit(&agent, &web_name, Some("2/m"));
    await_attached(&agent, &web_name);
    await_attached(&agent, &db_name);
    let line = agent.explain(&web_name).lines.remove(0);
    assert!(line.origin.contains("pod shop/web"), "{line:?}");
    assert_eq!(line.clamps.len(), 1, "{line:?}");
    assert_eq!(codes(client.namespace(), &web, 5), "ok:2 refused:3");
    assert_eq!(codes(client.namespace(), &db, 5), "ok:5");

    cluster.server.annotate("namespaces", "shop", "weir.dev/connections.http", Some("3 per 60s"));
    await_limit(&agent, &db_name, Some("3/m"));
    assert_eq!(codes(client.namespace(), &db, 5), "ok:3 refused:2");
    // No pod shadows what is the administrator's.
    cluster.server.annotate("pods", &web_name, "weir.dev/mode", Some("shadow"));
    let look = || agent.explain(&web_name).lines;
    eventually("the pod's own line is in shadow", look, |lines| {
        lines.iter().any(|line| line.shadow.is_some())
    });
    let still = codes(client.namespace(), &web, 3);
    assert!(still.contains("refused"), "{still}");
    cluster.server.annotate("namespaces", "shop", "weir.dev/connections.http", None);
    await_limit(&agent, &db_name, None);
}

/// What Kubernetes' own annotations ask for holds, unless the CNI's `tbf` holds it already; Weir's own
/// key goes before it, and a quantity that Kubernetes refuses is told.
#[test]
fn kubernetes_own_bandwidths_hold_unless_the_cni_holds_them() {
    const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let (web, client) = (cluster.node.pod("web").unwrap(), cluster.node.client("client").unwrap());
    let agent = cluster.agent(&lab, NOTHING);
    let _container = cluster.start(&web, &uid(1), json!({}));
    let web_name = name(&web);
    await_attached(&agent, &web_name);
    let limits = || {
        let limits = agent.workload(&web_name).limits.into_iter();
        limits.map(|limit| format!("{}: {}", limit.limit, limit.value)).collect::<Vec<_>>()
    };
    let await_limits = |expected: &[&str]| {
        eventually("limits", limits, |limits| limits.iter().eq(expected.iter()));
    };
    // The pod runs, and gets the programs with its first limit of bytes.
    cluster.server.annotate("pods", &web_name, INGRESS, Some("1M"));
    await_limits(&["ingress-bandwidth: 1Mbit/s"]);
    let is_paced = || agent.workload(&web_name).pace.is_some();
    eventually("the programs are attached", is_paced, |is| *is);
    let flood = Flood { payload: 1000, time: Duration::from_secs(1), pace: 1_000_000.0 };
    let traffic = traffic::udp(&client, &web, web.ipv4().into(), flood);
    let most = 125_000.0 * traffic.seconds + 31_250.0 + 1514.0;
    assert!((traffic.received as f64) < most && traffic.received > 60_000, "{traffic:?}");

    cluster.server.annotate("pods", &web_name, INGRESS, Some("1Q"));
    let problems = || agent.explain(&web_name).problems;
    eventually("the quantity is refused", problems, |problems| {
        problems.iter().any(|problem| problem.contains(INGRESS) && problem.contains("1k to 1P"))
    });
    // The last good value stays.
    await_limits(&["ingress-bandwidth: 1Mbit/s"]);

    cluster.server.annotate("pods", &web_name, INGRESS, Some("2M"));
    await_limits(&["ingress-bandwidth: 2Mbit/s"]);
    let own = "weir.dev/ingress-bandwidth";
    cluster.server.annotate("pods", &web_name, own, Some("3Mbit/s"));
    await_limits(&["ingress-bandwidth: 3Mbit/s"]);
    cluster.server.annotate("pods", &web_name, own, None);
    await_limits(&["ingress-bandwidth: 2Mbit/s"]);

    // As the CNI's bandwidth plugin has it.
    let end = web.node_interface();
    shape(cluster.node.namespace(), &end, 250_000).unwrap();
    await_limits(&[]);
    let detail = agent.workload(&web_name).detail.unwrap();
    assert!(detail.contains(&format!("`{INGRESS}` is left to the `tbf` on {end}")), "{detail}");
    cluster.server.annotate("pods", &web_name, "kubernetes.io/egress-bandwidth", Some("1G"));
    await_limits(&["egress-bandwidth: 1Gbit/s"]);
    assert_eq!(cluster.server.refused(), Vec::<String>::new());
}

/// One node file for all nodes may say more about those with a label; labels come and go.
#[test]
fn a_policy_may_be_about_nodes_with_a_label() {
    let lab = lab!();
    let cluster = Cluster::new(&lab);
    let web = cluster.node.pod("web").unwrap();
    let node = |pool: &str| {
        let labels = json!({"pool": pool});
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": labels}})
    };
    cluster.server.put("nodes", node("edge"));
    let other = json!({"metadata": {"name": "node-2", "labels": {"pool": "core"}}});
    cluster.server.put("nodes", other);
    let file = "policies:\n  - match: { namespace: shop, node-labels: { pool: edge } }\n    \
                default: { connections.80: 3/s }\n  \
                - match: { node-labels: { pool: core } }\n    default: { connections.80: 7/s }\n";
    let agent = cluster.agent(&lab, file);
    let _container = cluster.start(&web, &uid(1), json!({}));
    await_limit(&agent, &name(&web), Some("3/s"));
    cluster.server.put("nodes", node("core"));
    await_limit(&agent, &name(&web), Some("7/s"));
    cluster.server.put("nodes", node("spare"));
    await_limit(&agent, &name(&web), None);
    assert_eq!(cluster.server.refused(), Vec::<String>::new());
}
