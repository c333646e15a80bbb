//! What pods, namespaces and administrators say holds for real connections.

use serde_json::json;
use weir_tests::{
    agent::eventually,
    kubelet::{Driver, Kubelet, uid},
    site::serve,
};

use super::{Cluster, NOTHING, await_limit, codes, name};

const LINE: &str = "weir.dev/connections.80";

/// An annotation comes, changes, and goes, while the pod runs.
fn follows_annotations(lab: &weir::lab::Lab, cluster: &Cluster) {
    let web = cluster.node.pod("web").unwrap();
    let client = cluster.node.client("client").unwrap();
    let _server = serve(&web, &[80]);
    let agent = cluster.agent(lab, NOTHING);
    let _container = cluster.start(&web, &uid(1), json!({}));
    let web_name = name(&web);
    let look = || agent.status().workloads;
    eventually("the pod is there", look, |all| {
        all.iter().any(|it| it.name == web_name && it.attached.is_some())
    });
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
